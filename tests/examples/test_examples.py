"""The examples, each run whole: as a process in its own sandbox, and where the environment says.

Here are also the examples' own classes and functions, where a process can't be asked about them.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_broker import BrokerError, ClientClosedError, NotConnectedError, Order, ReconnectPolicy
from trio_broker.sandbox import (
    Account,
    ClientAsked,
    Outcome,
    Sandbox,
    SandboxEvent,
    open_sandbox,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

if not TYPE_CHECKING:
    # As `python examples/service.py` finds its neighbours.
    sys.path.append(str(EXAMPLES))

import order_grid  # noqa: E402 - after its path
import service  # noqa: E402
import somewhere  # noqa: E402

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0

# Keys that no sandbox has by itself, so that they could be anybody's.
MINE = Account("my_key", "my_secret")

# What each tells in its own sandbox.
STORIES = {
    "quickstart": (
        r"^estimate: 0\.01 ETH for \d+\.\d+ USDT$",
        r"^balances \(snapshot\): ",
        r"^orders:ord_\w+_00000001: FILLED",
        r"^sold 0\.01 ETH for \d+\.\d+ USDT$",
    ),
    "simple_connection": (r"^connected: True$", r"^1000 ETH$", r"^connected: False$"),
    "channel_subscriptions": (
        r"^balances \(snapshot\): [\d.]+ ETH, 100000 USDT$",
        r"^orders:ord_\w+_00000001 \(\w+\): FILLED$",
        r"^balances \(push\): 999\.99 ETH, 100033\.\d+ USDT$",
    ),
    "trading_operations": (
        r"^balance: 1000 ETH$",
        r"^balance: 100000 USDT$",
        r"^estimate: 0\.01 ETH for 33\.\d+ USDT$",
        r"^  ETH -> USDT at binance$",
        r"^swap: accepted as ord_\w+_00000001, PENDING$",
        r"^order: [A-Z]+$",
        r"^swap and wait: FILLED, 33\.\d+ USDT$",
    ),
    "error_handling": (
        r"^wrong argument: amount_in must be more than 0$",
        r"^refused: Order not found$",
        r"^refused keys: Invalid signature$",
        r"^accepted as ord_\w+_00000001$",
        r"^refused, nothing was executed: Insufficient balance$",
        r"^unknown, so it is NOT repeated but looked up: ",
        r"^found: it was accepted as ord_\w+_00000002$",
        r"^no reply, so try again: ",
        r"^not sent, so it may be repeated: ",
        r"^the broker has accepted 2 swaps$",
    ),
    "manual_connection": (
        r"^idle$",
        r"^connected$",
        r"^balances: 10 assets$",
        r"^closed$",
        r"^every task has ended$",
    ),
    "several_clients": (r"^account [12] holds 100000 USDT$", r"^together 200000 USDT$"),
    "connection_monitoring": (
        r"^state: connected, latency: None, received: \d+, sent: \d+$",
        r"lost: .*; next attempt in",
        r"lost: no WebSocket to 127.0.0.1:\d+: ",
        r"connected$",
        r"restored: balances$",
        r"^balances \(snapshot\), anything since [\d:]+ may be missing$",
    ),
    "all_messages": (
        r'^message: {"op":"balances"',
        r'^message: {"op":"estimate"',
        r'^message: {"op":"subscribe","ch":"balances"',
        r"^event: Closed$",
    ),
    "following_an_order": (
        r"^ord_\w+_00000001: PENDING, 0$",
        r"^ord_\w+_00000001: [A-Z]+, [\d.]+ \(after an outage\)$",
        r"^ord_\w+_00000001: FILLED, ",
    ),
    "service": (
        r"^the broker is killed$",
        r"^the broker is restarted$",
        r"^(one|another): estimate: 3 ETH for",
        r"^the subscription has ended$",
    ),
    "order_grid": (
        r"^XRP: \w+, \w+, \w+, \w+: ",
        r"^20 orders, paid with \d+",
        r"^the balances match the orders exactly$",
    ),
    "with_anyio": (r"^estimate: 1 ETH for ", r"^no estimate within 0 s$", r"^500000 DOGE$"),
}
# How many swaps each makes where the environment says; the others make none there.
SWAPS = {
    "quickstart": 1,
    "channel_subscriptions": 1,
    "trading_operations": 2,
    "following_an_order": 1,
    "order_grid": 20,
}
# One that watches a broker of the environment's doesn't end by itself.
ASKING = sorted(STORIES.keys() - SWAPS.keys() - {"connection_monitoring"})


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return {**environ, "PYTHONPATH": str(ROOT), **variables}


async def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run an example in another thread, which costs less than a process."""

    def run_as_main() -> object:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            return ended.code
        return 0

    path = str(EXAMPLES / f"{name}.py")
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
    ):
        patch.setattr(os, "environ", environment(variables))
        patch.setattr(sys, "argv", [path, *arguments])
        patch.setattr(somewhere, "clients", [])
        status = await trio.to_thread.run_sync(run_as_main)
    told = stderr.getvalue()
    if isinstance(status, str):
        status, told = 1, f"{told}{status}\n"
    assert isinstance(status, int)
    return subprocess.CompletedProcess(
        [path, *arguments], status, stdout.getvalue().encode(), told.encode()
    )


async def run_process(name: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(PATIENCE):
        return await trio.run_process(
            [sys.executable, str(EXAMPLES / f"{name}.py")],
            env=environment({}),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


def variables(sandbox: Sandbox, account: Account | None = None) -> dict[str, str]:
    account = account or sandbox.accounts[0]
    return {
        "BROKER_WS_URL": sandbox.url,
        "BROKER_API_KEY": account.api_key,
        "BROKER_SECRET_KEY": account.secret_key,
    }


def assert_told(story: bytes, *lines: str) -> None:
    """That the lines are in the story, in any order, as several tasks tell it."""
    for line in lines:
        assert re.search(line, story.decode(), re.MULTILINE), f"{line!r} in\n{story.decode()}"


# --- Good conditions ------------------------------------------------------------------------


def test_every_example_is_listed_and_has_its_story() -> None:
    files = {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__", "somewhere"}
    readme = (EXAMPLES / "README.md").read_text()
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \|", readme, re.MULTILINE)
    assert sorted(listed) == sorted(files)
    assert files >= STORIES.keys() >= SWAPS.keys()


@pytest.mark.parametrize("name", sorted(STORIES))
async def test_example_tells_its_story_in_a_sandbox_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it runs from anywhere
    ended = await run_process(name)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert_told(ended.stdout, *STORIES[name])


@pytest.mark.parametrize("name", ASKING)
async def test_example_that_only_asks_works_where_the_environment_says(name: str) -> None:
    async with open_sandbox(accounts=[MINE]) as sandbox:
        ended = await run(name, **variables(sandbox, MINE))
        assert (ended.returncode, ended.stderr) == (0, b"")
        asked = {message.op for one in sandbox.connections for message in one.received}
    assert "auth" in asked
    assert "swap" not in asked


async def test_base_url_will_do() -> None:
    async with open_sandbox() as sandbox:
        named = variables(sandbox)
        url = named.pop("BROKER_WS_URL").removesuffix("/ws/v1/stream").replace("ws:", "http:")
        ended = await run("quickstart", **named, BROKER_BASE_URL=url)
        assert len(sandbox.orders()) == 1
    assert ended.returncode == 0


# --- Real money -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SWAPS))
async def test_no_example_swaps_real_money_unasked(name: str) -> None:
    async with open_sandbox(accounts=[MINE]) as sandbox:
        ended = await run(name, **variables(sandbox, MINE))
        assert sandbox.connections == ()
    assert (ended.returncode, ended.stderr) == (
        1,
        b"nothing was sent: this swaps REAL MONEY at 127.0.0.1; to allow it, pass --live\n",
    )


@pytest.mark.parametrize("name", sorted(SWAPS))
async def test_example_swaps_real_money_when_it_is_told_to(name: str) -> None:
    async with open_sandbox(accounts=[MINE], outcomes={Outcome.FILLED: 1}) as sandbox:
        ended = await run(name, "--live", **variables(sandbox, MINE))
        assert len(sandbox.orders()) == SWAPS[name]
    assert (ended.returncode, ended.stderr) == (0, b"LIVE: this swaps real money at 127.0.0.1\n")


@pytest.mark.parametrize(
    ("url", "key", "is_play_money"),
    [
        ("ws://127.0.0.1:8765/ws/v1/stream", "test_key_1", True),
        ("ws://[::1]:8765/ws/v1/stream", "test_key_2", True),
        ("ws://localhost:8765/ws/v1/stream", "test_key_1", True),
        ("ws://127.0.0.1:8765/ws/v1/stream", "my_key", False),
        ("wss://broker.example/ws/v1/stream", "test_key_1", False),
        ("wss://127.0.0.1.broker.example/ws", "test_key_1", False),
        ("wss://127.0.0.1@broker.example/ws", "test_key_1", False),
        (" ", "test_key_1", False),
    ],
)
def test_what_isnt_certainly_play_money_is_real(
    url: str, key: str, is_play_money: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BROKER_BASE_URL", raising=False)
    monkeypatch.setenv("BROKER_WS_URL", url)
    monkeypatch.setenv("BROKER_API_KEY", key)
    assert somewhere.is_played() is is_play_money


# --- Bad conditions -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quickstart", "with_anyio"])
async def test_example_tells_an_error_in_a_line(name: str) -> None:
    async with open_sandbox() as sandbox:
        wrong = {**variables(sandbox), "BROKER_SECRET_KEY": "wrong"}
        ended = await run(name, **wrong)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
    assert b"Invalid signature" in ended.stderr


async def test_example_says_what_it_misses_in_the_environment() -> None:
    ended = await run("simple_connection", BROKER_API_KEY="my_key")
    assert (ended.returncode, ended.stderr) == (
        1,
        b"the environment variable BROKER_SECRET_KEY is not set\n",
    )


async def test_quickstart_says_that_its_order_failed() -> None:
    async with open_sandbox() as sandbox:
        sandbox.next_outcome("failed")
        ended = await run("quickstart", **variables(sandbox))
    assert (ended.returncode, ended.stderr) == (1, b"the order ended as FAILED\n")


async def test_quickstart_says_what_its_order_brought() -> None:
    async with open_sandbox() as sandbox:
        sandbox.next_outcome("filled_in_parts")
        ended = await run("quickstart", **variables(sandbox))
        (order,) = sandbox.orders()
    assert f"sold 0.01 ETH for {order.filled_out.normalize():f} USDT" in ended.stdout.decode()


async def test_order_that_is_named_is_followed_without_a_swap() -> None:
    async with open_sandbox(accounts=[MINE]) as sandbox:
        sandbox.next_outcome("cancelled")
        async with sandbox.client(MINE.api_key) as client:
            receipt = await client.do_swap("1", "BTC", "USDT")
        ended = await run("following_an_order", receipt.order_id, **variables(sandbox, MINE))
        assert len(sandbox.orders()) == 1
    assert (ended.returncode, ended.stderr) == (1, b"the order ended as CANCELLED\n")
    assert_told(ended.stdout, rf"^{receipt.order_id}: CANCELLED, ")


async def test_two_accounts_have_a_client_each() -> None:
    async with open_sandbox(accounts=[Account("rich", "secret", {"USDT": "250000"})]) as sandbox:
        second = {"BROKER_API_KEY_2": "rich", "BROKER_SECRET_KEY_2": "secret"}
        ended = await run("several_clients", **variables(sandbox), **second)
        assert {one.api_key for one in sandbox.connections} == {"test_key_1", "rich"}
    assert_told(ended.stdout, r"^together 350000 USDT$")


async def test_monitor_tells_an_outage_and_ends_quietly_with_ctrl_c() -> None:
    printed = b""
    async with open_sandbox() as sandbox:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-u", str(EXAMPLES / "connection_monitoring.py")],
            env=environment(variables(sandbox)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = process.stdout, process.stderr
        assert stdout is not None
        assert stderr is not None

        async def told(line: bytes) -> None:
            nonlocal printed
            while line not in printed:
                chunk = await stdout.receive_some()
                assert chunk, printed
                printed += chunk

        try:
            with trio.fail_after(PATIENCE):
                async with stdout, stderr:
                    await told(b"balances (snapshot)\n")
                    sandbox.drop_connections()
                    await told(b"may be missing\n")
                    process.send_signal(signal.SIGINT)
                    assert await stderr.receive_some() == b""
                    assert await process.wait() == 130
        finally:
            process.kill()
    assert_told(printed, r"lost: ", r"connected$", r"restored: balances$", r"may be missing$")


async def test_grid_adds_up_to_the_ledger() -> None:
    async with open_sandbox(seed=3) as sandbox:
        sandbox.next_outcome("failed", "cancelled", "partly_filled", "filled_in_parts")
        before = sandbox.balances()
        ended = await run("order_grid", **variables(sandbox))
        after = sandbox.balances()
        orders = sandbox.orders()
    assert (ended.returncode, ended.stderr) == (0, b"")
    told = dict(re.findall(r"^(\w+): .*: ([\d.]+) \1$", ended.stdout.decode(), re.MULTILINE))
    assert told.keys() == set(order_grid.ASSETS)
    for asset, amount in told.items():
        assert Decimal(amount) == after[asset].total - before[asset].total
    paid = sum((order.filled_in for order in orders), Decimal(0))
    assert before["USDT"].total - after["USDT"].total == paid
    assert f"paid with {paid.normalize():f} USDT" in ended.stdout.decode()
    assert len({order.client_order_id for order in orders}) == len(orders) == 20


async def test_grid_loses_one_order_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    grid: dict[order_grid.Place, Order] = {}
    async with (
        open_sandbox(outcomes={Outcome.FILLED: 1}) as sandbox,
        sandbox.client() as client,
        sandbox.client(request_timeout=0.2, resolve_timeout=0.1) as impatient,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(order_grid.place, client, ("BTC", 2), grid)
            nursery.start_soon(order_grid.place, client, ("BTC", 10**9), grid)
        with sandbox.faults.ignore(op="swap"), sandbox.faults.ignore(op="order_status"):
            await order_grid.place(impatient, ("BTC", 1), grid)
    assert grid.keys() == {("BTC", 2)}
    told = capsys.readouterr().out
    assert re.search("^1 USDT for BTC: DON'T REPEAT it, look up tb-", told, re.MULTILINE)
    assert re.search("^1000000000 USDT for BTC: .*Insufficient balance", told, re.MULTILINE)


# --- The service ----------------------------------------------------------------------------


async def test_service_has_the_operations_and_its_own_streams() -> None:
    async with (
        open_sandbox(outcomes={Outcome.FILLED: 1}) as sandbox,
        trio.open_nursery() as nursery,
    ):
        desk = service.WebSocketService(sandbox.client)
        await desk.start(nursery)
        assert desk.is_connected()
        one, other = [await desk.add_subscription("balances") for _ in range(2)]
        assert (await one.receive()).data == (await other.receive()).data
        assert {balance.asset for balance in await desk.get_balances()} >= {"ETH", "USDT"}
        assert (await desk.estimate_swap("1", "ETH", "USDT", ["gate"])).expected_out > 0
        for number, swap in enumerate((desk.do_swap, desk.execute_swap)):
            receipt = await swap("1", "ETH", "USDT", client_order_id=f"c{number}")
            order = await desk.get_order_status(receipt.order_id)
            assert order.client_order_id == f"c{number}"
        await desk.remove_subscription("balances")
        assert [message.origin async for message in one][-1:] in ([], ["push"])
        await desk.stop()
        await desk.stop()


async def test_service_can_be_started_anew_and_once_at_a_time() -> None:
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        desk = service.WebSocketService(sandbox.client)
        assert not desk.is_connected()
        with pytest.raises(RuntimeError, match="isn't started"):
            await desk.get_balances()
        with sandbox.faults.refuse_auth(times=1), pytest.raises(Exception, match="signature"):
            await desk.start(nursery)
        for _ in range(2):
            await desk.start(nursery)
            with pytest.raises(RuntimeError, match="started already"):
                await desk.start(nursery)
            stream = await desk.add_subscription("balances")
            await desk.stop()
            assert [message async for message in stream][1:] == []
            assert not desk.is_connected()


async def test_service_reads_wait_for_the_broker_and_its_swaps_never_do() -> None:
    policy = ReconnectPolicy(max_attempts=None, initial_delay=0.01, max_delay=0.05)
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        desk = service.WebSocketService(lambda: sandbox.client(reconnect=policy))
        await desk.start(nursery)
        events = desk.client.events()
        sandbox.faults.kill()
        await events.receive()
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await desk.get_balances())

        async with trio.open_nursery() as askers:
            for _ in range(3):
                askers.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(NotConnectedError, match="nothing was sent"):
                await desk.do_swap("1", "ETH", "USDT")
            assert answers == []
            await sandbox.faults.revive()
        assert len(answers) == 3
        assert sandbox.orders() == ()
        client = desk.client
        await desk.stop()
        with pytest.raises(ClientClosedError):
            await client.get_balances()


async def test_swap_that_ctrl_c_leaves_in_doubt_is_named() -> None:
    swapped = trio.Event()

    def look(event: SandboxEvent) -> None:
        if isinstance(event, ClientAsked) and event.op == "swap":
            swapped.set()

    async with open_sandbox(on_event=look) as sandbox:
        sandbox.faults.swallow(op="swap")
        sandbox.faults.ignore(op="order_status")
        process = await trio.lowlevel.open_process(
            [sys.executable, str(EXAMPLES / "quickstart.py")],
            env=environment(variables(sandbox)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        with trio.fail_after(PATIENCE):
            await swapped.wait()
            process.send_signal(signal.SIGINT)
            async with process.stderr as stderr:
                told = b"".join([chunk async for chunk in stderr])
            assert await process.wait() == 130
        (order,) = sandbox.orders()
    assert told.decode() == (
        f"the outcome of swap {order.client_order_id} (0.01 ETH for USDT) is unknown: don't "
        "repeat it, look it up with resolve_swap\n"
    )


async def test_service_that_is_stopped_while_it_starts_loses_no_later_client() -> None:
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        desk = service.WebSocketService(sandbox.client)
        stalling = sandbox.faults.stall_handshakes()
        failed = trio.Event()

        async def start() -> None:
            with pytest.raises(BrokerError):
                await desk.start(nursery)
            failed.set()

        nursery.start_soon(start)
        await wait_all_tasks_blocked()
        nursery.start_soon(desk.stop)
        await wait_all_tasks_blocked()
        stalling.lift()
        await desk.start(nursery)
        await failed.wait()
        assert desk.is_connected()
        await desk.stop()
        await wait_all_tasks_blocked()
        assert all(connection.closed_at is not None for connection in sandbox.connections)


async def test_example_says_what_is_wrong_with_an_order_or_a_url() -> None:
    ended = await run("following_an_order", 'a"b')
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
    assert b"U+0022" in ended.stderr
    wrong = {"BROKER_API_KEY": "k", "BROKER_SECRET_KEY": "s", "BROKER_WS_URL": "http://[::1"}
    ended = await run("simple_connection", **wrong)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
