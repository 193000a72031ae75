"""``trio-broker sandbox``: serving, state files, the log and faults."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import open_websocket_url

from tests.cli.harness import COMMAND, PATIENCE, environment, read_variables, run, serving, status
from tests.sandbox_client import RawClient
from trio_broker import (
    AuthenticationError,
    Balance,
    BrokerWSClient,
    ConnectionLostError,
    Order,
    OrderStatus,
    ReconnectPolicy,
)
from trio_broker.cli.sandbox.faults import help_rows
from trio_broker.sandbox import open_sandbox

# --- Serving --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["Ctrl-C", "SIGTERM"]
)
async def test_sandbox_serves_until_a_signal(number: int, expected: int) -> None:
    async with serving("--seed", "5") as (process, variables):
        assert list(variables) == [
            "BROKER_WS_URL", "BROKER_REST_URL", "BROKER_API_KEY", "BROKER_SECRET_KEY",
        ]  # fmt: skip
        never = ReconnectPolicy(max_attempts=0)
        async with BrokerWSClient.from_env(variables, reconnect=never) as client:
            receipt = await client.do_swap("1", "ETH", "USDT")
            assert receipt.order_id
            process.send_signal(number)
            with pytest.raises(ConnectionLostError) as lost:
                await client.wait_closed()
            assert lost.value.code == 1001  # a clean close
        with trio.fail_after(PATIENCE):
            assert await process.wait() == expected


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


async def test_sandbox_listens_at_the_given_address() -> None:
    port = free_port()
    async with serving("--host", "127.0.0.1", "--port", port) as (_, variables):
        assert variables["BROKER_WS_URL"] == f"ws://127.0.0.1:{port}/ws/v1/stream"
        async with BrokerWSClient.from_env(variables) as client:
            assert client.is_connected()


async def test_seed_determines_the_prices() -> None:
    prices = []
    for args in (["--seed", "5"], []):
        async with (
            serving(*args) as (_, variables),
            BrokerWSClient.from_env(variables) as client,
        ):
            prices.append((await client.estimate_swap(1, "DOGE", "USDT")).price)
    async with open_sandbox(seed=5) as sandbox, sandbox.client() as client:
        price = (await client.estimate_swap(1, "DOGE", "USDT")).price
    # Prices change over time, but less than between seeds.
    assert abs(prices[0] - price) < abs(prices[1] - price)


def test_used_port_is_an_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert status("sandbox", "--port", str(taken.getsockname()[1])) == 1
    ended = capsys.readouterr()
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert "in use" in ended.err


@pytest.mark.usefixtures("place")
def test_invalid_address_or_state_is_an_error_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert status("sandbox", "--port", port) == 1
    in_use = os.strerror(errno.EADDRINUSE)
    assert capsys.readouterr().err == f"Error: 127.0.0.1, port {port}: {in_use}\n"
    assert status("sandbox", "--host", "300.1.1.1") == 1
    assert capsys.readouterr().err.startswith("Error: 300.1.1.1, port 0: ")
    for host in ("a..b", ".", "a" * 64, "\udcff"):
        assert status("sandbox", "--host", host) == 2
        assert "is not a valid host name or address" in capsys.readouterr().err
    assert status("sandbox", "--state", "missing/state") == 1
    missing = Path.cwd() / "missing"
    assert capsys.readouterr().err == f"Error: {missing}: {os.strerror(errno.ENOENT)}\n"


# --- State files ----------------------------------------------------------------------------


def altered(options: str) -> tuple[str, ...]:
    """Return the command with options of `open_sandbox` that the command line doesn't have."""
    code = (
        "import functools, time\n"
        "from trio_broker import sandbox\n"
        "from trio_broker.cli import main\n"
        f"sandbox.open_sandbox = functools.partial(sandbox.open_sandbox, {options})\n"
        "main()"
    )
    return (sys.executable, "-c", code)


async def kill(process: trio.Process) -> None:
    process.send_signal(signal.SIGKILL)
    with trio.fail_after(PATIENCE):
        assert await process.wait() == -signal.SIGKILL


async def reached(client: BrokerWSClient, order_id: str, enough: Callable[[Order], bool]) -> Order:
    """Follow an order until it meets a condition."""
    with trio.fail_after(PATIENCE):
        async with await client.subscribe_order(order_id) as updates:
            while True:
                order = (await updates.receive()).data
                if enough(order):
                    return order


def totals(balances: Iterable[Balance]) -> dict[str, Decimal]:
    return {balance.asset: balance.total for balance in balances}


async def test_killed_sandbox_continues_from_its_state(tmp_path: Path) -> None:
    file, hours = tmp_path / "state", 2 * 3600.0
    args = ("--port", free_port(), "--state", str(file))
    slow = altered("processing_delay=(3600, 3600), outcomes={'filled': 1}")
    later = altered(f"clock=lambda: time.time() + {hours}")

    async with serving(*args, "--seed", "5") as (process, variables):
        url = variables["BROKER_WS_URL"]
        async with BrokerWSClient.from_env(variables) as client:
            receipt = await client.do_swap("1", "ETH", "USDT", client_order_id="first")
            first = await reached(client, receipt.order_id, lambda order: order.is_final)
            balances = await client.get_balances()
            await kill(process)

    async with serving(*args, command=slow) as (process, variables):
        assert variables["BROKER_WS_URL"] == url
        async with BrokerWSClient.from_env(variables) as client:
            assert await client.get_balances() == balances
            again = await client.get_order_status("first")
            assert (again.status, again.filled_out) == (first.status, first.filled_out)
            second = await client.do_swap("2", "ETH", "USDT", client_order_id="second")
            await reached(
                client, second.order_id, lambda order: order.status is OrderStatus.PROCESSING
            )
            await kill(process)

    async with (
        serving(*args, "--seed", "5", command=later) as (_, variables),
        BrokerWSClient.from_env(variables, clock=lambda: time.time() + hours) as client,
    ):
        assert variables["BROKER_WS_URL"] == url
        again = await client.get_order_status("first")
        assert (again.status, again.filled_out) == (first.status, first.filled_out)
        ended = await client.get_order_status("second")
        assert (ended.order_id, ended.status) == (second.order_id, OrderStatus.FILLED)
        held = {balance.asset: balance for balance in await client.get_balances()}
        before = totals(balances)
        bought = before["USDT"] + (ended.filled_out or 0)
        after = {**before, "ETH": before["ETH"] - 2, "USDT": bought}
        assert totals(held.values()) == after
        assert not any(balance.locked for balance in held.values())


async def test_state_in_use_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with serving("--state", str(file)):
        ended = await trio.to_thread.run_sync(run, *COMMAND, "sandbox", "--state", str(file))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == f"Error: {file} is in use by another sandbox\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("other text\n", "{file} isn't the state of a sandbox"),
        (None, "{file} is of a sandbox with seed 7, not 8"),
    ],
    ids=["another file", "another seed"],
)
def test_invalid_state_file_is_a_usage_error(
    tmp_path: Path, content: str | None, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "state"

    async def make() -> None:
        async with open_sandbox(seed=7, state=file):
            pass

    if content is None:
        trio.run(make)
    else:
        file.write_text(content)
    before = file.read_bytes()
    assert status("sandbox", "--state", str(file), "--seed", "8") == 2
    ended = capsys.readouterr()
    assert ended.out == ""
    assert ended.err == f"Error: {line.format(file=file)}\n"
    assert file.read_bytes() == before


def test_missing_folder_of_the_state_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("sandbox", "--state", str(tmp_path / "nowhere" / "state")) == 1
    ended = capsys.readouterr()
    assert ended.err.count("\n") == 1
    assert "nowhere" in ended.err


# --- The log, and faults --------------------------------------------------------------------

NEVER = ReconnectPolicy(max_attempts=0)


class LoggedSandbox:
    """A sandbox in a subprocess, and its log."""

    def __init__(self, process: trio.Process, variables: dict[str, str]) -> None:
        self.process = process
        self.variables = variables
        self._rest = b""

    def client(self, **options: Any) -> BrokerWSClient:
        return BrokerWSClient.from_env(self.variables, **options)

    async def line(self) -> str:
        """Read the next line of the log."""
        assert self.process.stderr is not None
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._rest:
                chunk = await self.process.stderr.receive_some()
                if not chunk:
                    return self._rest.decode()
                self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    async def until(self, text: str) -> list[str]:
        """Read lines up to the first that contains a text."""
        lines = []
        while True:
            lines.append(await self.line())
            assert lines[-1], f"the log ended without {text!r}: {lines}"
            if text in lines[-1]:
                return lines

    async def end(self) -> list[str]:
        """Stop the sandbox with SIGTERM, and return the remaining lines."""
        self.process.send_signal(signal.SIGTERM)
        lines = []
        while line := await self.line():
            lines.append(line)
        with trio.fail_after(PATIENCE):
            assert await self.process.wait() == 0
        return lines


@asynccontextmanager
async def serving_with_log(*args: str) -> AsyncIterator[LoggedSandbox]:
    process = await trio.lowlevel.open_process(
        [*COMMAND, "sandbox", *args],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with process.stdout, process.stderr:
            yield LoggedSandbox(process, await read_variables(process.stdout))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_log_shows_client_activity() -> None:
    async with serving_with_log("--seed", "5", "--order-id-prefix", "ord_") as served:
        async with served.client() as client:
            await client.get_balances()
            receipt = await client.do_swap("1", "ETH", "USDT")
            async with aclosing(await client.subscribe_order(receipt.order_id)):
                lines = await served.until("is FILLED")
        lines += await served.until("closed with code 1000")
        lines += await served.end()
    assert lines[0] == "The sandbox runs until Ctrl-C."
    messages = [line.partition(" ")[2] for line in lines[1:]]
    assert messages[:4] == [
        "#1 connected",
        "#1 authenticated as test_key_1",
        "#1 requested the balances",
        "#1 swapped 1 ETH for USDT: ord_00000001 is PENDING",
    ]
    assert "#1 subscribed to orders:ord_00000001" in messages
    assert messages[-1] == "#1 closed with code 1000"
    assert "test_secret" not in "".join(lines)


async def test_options_set_the_form_of_the_messages() -> None:
    options = [
        *("--dialect", "docs", "--error-form", "object", "--order-id-prefix", "mine-"),
        *("--client-order-id-in-receipts", "--no-client-order-id-in-lookups"),
        "--no-lookup-by-client-order-id",
    ]
    async with (
        serving_with_log(*options) as served,
        open_websocket_url(served.variables["BROKER_WS_URL"]) as websocket,
    ):
        raw = RawClient(websocket, time.time, raw_key=True)
        await raw.authenticate()
        body = {"amount": "1", "from": "ETH", "to": "USDT", "clientOrderId": "one"}
        receipt = (await raw.request("swap", json.dumps(body)))["data"]
        assert receipt == {
            "orderId": "mine-00000001",
            "status": "PENDING",
            "clientOrderId": "one",
        }
        order = (await raw.request("order_status", '{"id":"mine-00000001"}'))["data"]
        assert "clientOrderId" not in order
        refused = await raw.request("order_status", '{"id":"one"}')
        assert refused == {"error": {"code": "ORDER_NOT_FOUND", "message": "Order not found"}}


async def test_client_from_the_printed_variables_uses_the_dialect() -> None:
    async with serving_with_log("--dialect", "docs") as served:
        assert served.variables["BROKER_DIALECT"] == "docs"
        async with served.client() as client:
            assert (await client.do_swap("1", "ETH", "USDT")).order_id


async def test_signing_key_can_differ_from_the_dialects() -> None:
    async with (
        serving_with_log("--signing-key", "derived", "--dialect", "docs") as served,
        open_websocket_url(served.variables["BROKER_WS_URL"]) as websocket,
    ):
        await RawClient(websocket, time.time).authenticate()


def test_invalid_setting_is_an_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("sandbox", "--order-id-prefix", "a b") == 2
    assert "order_id_prefix must have 1 to 64 letters" in capsys.readouterr().err


async def test_json_option_prints_the_log_as_json() -> None:
    async with serving_with_log("--json", "--fault", "reset-every=0.3") as served:
        async with served.client(reconnect=NEVER):
            lines = await served.until('"dropped": true')
        lines += await served.end()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events[:2]] == ["connected", "asked"]
    assert {"event": "fault", "name": "reset-every", "what": "reset", "connections": 1}.items() <= (
        next(event for event in events if event["event"] == "fault").items()
    )


async def test_quiet_prints_only_the_variables() -> None:
    async with serving_with_log("--quiet") as served:
        assert list(served.variables) == [
            "BROKER_WS_URL", "BROKER_REST_URL", "BROKER_API_KEY", "BROKER_SECRET_KEY",
        ]  # fmt: skip
        async with served.client() as client:
            await client.get_balances()
        assert await served.end() == []


async def test_latency_delays_every_reply() -> None:
    async with serving_with_log("--latency", "150", "--quiet") as served:
        started = trio.current_time()
        async with served.client() as client:
            assert trio.current_time() - started >= 0.15
            started = trio.current_time()
            await client.get_balances()
            assert trio.current_time() - started >= 0.15
        await served.end()


async def test_faults_begin_at_the_start() -> None:
    async with serving_with_log("--fault", "refuse-auth", "--fault", "stop-pushing") as served:
        with pytest.raises(AuthenticationError):
            async with served.client(reconnect=NEVER):
                pytest.fail("it connected")
        await served.until("#1 auth: dropped by a fault")
        await served.end()


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", ""])
def test_invalid_latency_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("sandbox", "--latency", text) == 2
    assert "expected a number of milliseconds" in capsys.readouterr().err


def test_help_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("sandbox", "--help") == 0
    printed = capsys.readouterr().out
    for usage, _ in help_rows():
        assert f"\n  {usage}" in printed
