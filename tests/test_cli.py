"""The command line: what it prints, and with which status it ends."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio

import trio_broker
from trio_broker import (
    Balance,
    BrokerWSClient,
    ConnectionLostError,
    Disconnected,
    Message,
    Order,
    OrderStatus,
    ReconnectPolicy,
    ServerError,
    Subscription,
)
from trio_broker.cli import demo, ending, main
from trio_broker.cli.app import _COMMANDS
from trio_broker.sandbox import Outcome, Sandbox, open_sandbox

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "trio_broker.cli")

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in COLOUR_VARIABLES}
    return {**plain, "PYTHONPATH": str(ROOT)}


COLOUR_VARIABLES = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COLOUR_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def status(*args: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(args)
    return ended.value.code


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        args, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE
    )


# --- The command itself ---------------------------------------------------------------------


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    assert re.findall(r"^  (\w+)  +\w", capsys.readouterr().out, re.MULTILINE) == list(_COMMANDS)


def test_version_is_the_packages() -> None:
    ended = run(*COMMAND, "--version")
    assert ended.stdout == f"trio-broker {trio_broker.__version__}\n"


def test_the_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"trio-broker": f"{main.__module__}:{main.__name__}"}


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from trio_broker.cli import main; main()"
    ended = run(sys.executable, "-c", code)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "pip install 'trio-broker[cli]'" in ended.stderr


# Those that there are.


@pytest.mark.parametrize("args", [[], *([name] for name in _COMMANDS)], ids=" ".join)
def test_help_waits_for_nothing_that_it_does_not_need(args: list[str]) -> None:
    code = (
        "import sys\nfrom trio_broker.cli import main\n"
        f"try: main([*{args}, '--help'])\n"
        "finally: print({'rich', 'trio_websocket', 'wsproto', 'websockets'} & {*sys.modules})"
    )
    ended = run(sys.executable, "-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", ["demo", "sandbox", "completion"])
def test_a_commands_help_begins_as_its_line_does(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(name, "--help") == 0
    assert _COMMANDS[name] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "args", [["nonsense"], ["demo", "--seed", "x"], ["sandbox", "--port", "-1"]]
)
def test_arguments_that_cannot_be_used_end_with_2(args: list[str]) -> None:
    assert status(*args) == 2


# --- How commands end -----------------------------------------------------------------------


def test_status_is_the_commands() -> None:
    async def command() -> int:
        await trio.lowlevel.checkpoint()
        return 3

    with pytest.raises(click.exceptions.Exit) as ended:
        ending.run(command)
    assert ended.value.exit_code == 3


async def interrupted_in_a_task() -> int:
    async def task() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await trio.sleep_forever()


async def interrupted() -> int:
    await trio.lowlevel.checkpoint()
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_polite_ends_are_as_ctrl_c(number: int) -> None:
    async def command() -> int:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    with pytest.raises(click.exceptions.Exit) as ended:
        ending.run(command)
    assert ended.value.exit_code == 130
    assert signal.getsignal(number) is signal.SIG_DFL


def test_ctrl_c_is_not_lost_where_exceptions_are() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    async def command() -> int:
        Dying()
        with trio.move_on_after(PATIENCE):
            await trio.sleep_forever()
        return 0

    with pytest.raises(click.exceptions.Exit) as ended:
        ending.run(command)
    assert ended.value.exit_code == 130


@pytest.mark.parametrize("where", ["make_context", "invoke"])
def test_ctrl_c_before_a_command_runs_is_no_abortion(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, where, interrupted)
    assert status("balances") == 130
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_ends_with_130_wherever_it_lands() -> None:
    for command in (interrupted, interrupted_in_a_task):
        with pytest.raises(click.exceptions.Exit) as ended:
            ending.run(command)
        assert ended.value.exit_code == 130


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ServerError("swap", "no\n  luck"), 5, "the broker refused swap: no luck"),
        (OSError(), 1, "OSError"),
    ],
    ids=["of several lines", "without a text"],
)
def test_an_error_is_told_in_one_line(
    error: Exception,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fail(_: BrokerWSClient) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(BrokerWSClient, "get_balances", fail)
    assert status("demo") == code
    assert capsys.readouterr().err == f"Error: {line}\n"


def test_a_reader_that_has_read_enough_sees_no_traceback() -> None:
    for args in (("demo",), ("demo", "--json")):
        with subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, *args],
            env={**environment(), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(PATIENCE) == 1


@pytest.mark.parametrize(
    "args",
    [["--help"], ["demo"], ["demo", "--json"], ["sandbox"], ["completion", "fish"]],
    ids=" ".join,
)
def test_a_reader_that_was_never_there_sees_no_traceback(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        ended = subprocess.run(  # noqa: S603 - our own command
            [*COMMAND, *args],
            env=environment(),
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )
    assert (ended.returncode, ended.stderr) == (1, b"")


# --- demo -----------------------------------------------------------------------------------


def test_demo_tells_the_whole_story_in_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("demo") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    story = [
        "A broker of play money listens at ws://127.0.0.1:",
        "Connected and authenticated.",
        "The account holds\n",
        "2 ETH would bring ",
        "ord_00000001",
        "is FILLED",
        "The line is cut: ",
        "The next try is in 0.",
        "Connected again.",
        "Subscribed again to balances.",
        "something may be missing, and here is the account as a snapshot.",
        "The account holds now\n",
        "998   -2\n",
        "Said goodbye.",
        "It all happened: 2 ETH sold for ",
    ]
    places = [printed.index(text) for text in story]
    assert places == sorted(places)


# Left to itself, the first order fails with seed 53, and is cancelled with seed 45.
@pytest.mark.parametrize("seed", [45, 53, -1, 2**70])
def test_demo_fills_its_order_with_every_seed(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("demo", "--json", "--seed", str(seed)) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["seed"] == seed
    assert events[-1] == {
        "event": "end",
        "ok": True,
        "sold": "2",
        "bought": [event for event in events if event["event"] == "order"][-1]["filled_out"],
    }
    told = list(dict.fromkeys(event["event"] for event in events))
    assert told == [
        "sandbox", "connected", "balances", "estimate", "swap", "order",
        "lost", "restored", "gap", "closed", "end",
    ]  # fmt: skip
    before, after = (event["balances"] for event in events if event["event"] == "balances")
    gained = Decimal(after["USDT"]) - Decimal(before["USDT"])
    assert gained == Decimal(events[-1]["bought"]) > 0
    assert [event["status"] for event in events if event["event"] == "order"][-1] == "FILLED"


def test_demo_tells_of_a_line_that_does_not_come_back() -> None:
    told: list[str] = []

    def tell(event: str, text: str, **_: object) -> None:
        told.append(f"{event}: {text}")

    gone = Disconnected(at=dt.datetime.now(dt.UTC), error=ConnectionError("gone"), retry_in=None)
    demo._tell_on_the_way(gone, tell)
    assert told == ["lost: The line is cut: gone."]


def test_demo_fails_when_the_stream_does_not_own_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receive = Subscription.receive

    async def silent(self: Subscription[Any]) -> Message[Any]:
        return attrs.evolve(await receive(self), gap=None)

    monkeypatch.setattr(Subscription, "receive", silent)
    assert status("demo") == 1
    assert "the stream should have said" in capsys.readouterr().err


def test_demo_is_coloured_on_a_terminal() -> None:
    terminal, inside = pty.openpty()
    environ = {**environment(), "TERM": "xterm-256color"}
    printed = b""
    with subprocess.Popen([*COMMAND, "demo", "--fast"], env=environ, stdout=inside) as process:  # noqa: S603
        os.close(inside)
        try:
            while chunk := os.read(terminal, 65536):
                printed += chunk
        except OSError:
            pass  # how Linux says that the other end is closed
        assert process.wait(PATIENCE) == 0
    os.close(terminal)
    assert b"\x1b[1;32mIt all happened" in printed


def test_demo_fails_when_its_order_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    force = Sandbox.next_outcome
    monkeypatch.setattr(Sandbox, "next_outcome", lambda self, _: force(self, Outcome.FAILED))
    assert status("demo") == 1
    ended = capsys.readouterr()
    assert ended.err == "Error: the order should be FILLED, and is FAILED\n"
    assert "It all happened" not in ended.out


def test_demo_fails_when_the_account_never_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forever(_: BrokerWSClient) -> tuple[Balance, ...]:
        await trio.lowlevel.checkpoint()
        return (Balance("ETH", Decimal(5)), Balance("USDT", Decimal(5)))

    monkeypatch.setattr(BrokerWSClient, "get_balances", forever)
    assert status("demo") == 1
    assert "the balances didn't change by what the order says" in capsys.readouterr().err


def test_demo_does_not_hang(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_TIME_LIMIT", 0.0)
    assert status("demo") == 1
    assert capsys.readouterr().err == "Error: the demo wasn't over after 0 s\n"


FILLED = Order("1", OrderStatus.FILLED, filled_out=Decimal("7.5"))
BEFORE = {"ETH": Balance("ETH", Decimal(3)), "USDT": Balance("USDT", Decimal(1))}
AFTER = {"ETH": Balance("ETH", Decimal(1)), "USDT": Balance("USDT", Decimal("8.5"))}


def test_check_lets_pass_what_adds_up() -> None:
    demo._check(BEFORE, AFTER, FILLED)


@pytest.mark.parametrize(
    ("after", "order"),
    [
        (AFTER, attrs.evolve(FILLED, status=OrderStatus.CANCELLED)),
        (AFTER, attrs.evolve(FILLED, filled_out=None)),
        (AFTER, attrs.evolve(FILLED, filled_out=Decimal(0))),
        (AFTER, attrs.evolve(FILLED, filled_out=Decimal(7))),
        ({**AFTER, "ETH": Balance("ETH", Decimal(2))}, FILLED),
        ({**AFTER, "BTC": Balance("BTC", Decimal(2))}, FILLED),
        ({**AFTER, "ETH": Balance("ETH", Decimal(1), Decimal(1))}, FILLED),
    ],
)
def test_check_stops_what_does_not_add_up(after: dict[str, Balance], order: Order) -> None:
    with pytest.raises(click.ClickException):
        demo._check(BEFORE, after, order)


# --- sandbox --------------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    *args: str, command: tuple[str, ...] = COMMAND
) -> AsyncIterator[tuple[trio.Process, dict[str, str]]]:
    """A sandbox in a process of its own, and the variables that it printed."""
    process = await trio.lowlevel.open_process(
        [*command, "sandbox", *args], env=environment(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        printed = b""
        with trio.fail_after(PATIENCE):
            while printed.count(b"\n") < 3:
                chunk = await process.stdout.receive_some()
                assert chunk, "the sandbox has ended"
                printed += chunk
        lines = printed.decode().splitlines()
        yield process, dict(line.split("=", 1) for line in lines)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["Ctrl-C", "SIGTERM"]
)
async def test_sandbox_serves_until_it_is_told_to_end(number: int, expected: int) -> None:
    async with serving("--seed", "5") as (process, variables):
        assert list(variables) == ["BROKER_WS_URL", "BROKER_API_KEY", "BROKER_SECRET_KEY"]
        never = ReconnectPolicy(max_attempts=0)
        async with BrokerWSClient.from_env(variables, reconnect=never) as client:
            receipt = await client.do_swap("1", "ETH", "USDT")
            assert receipt.order_id
            process.send_signal(number)
            with pytest.raises(ConnectionLostError) as lost:
                await client.wait_closed()
            assert lost.value.code == 1001  # a polite goodbye
        with trio.fail_after(PATIENCE):
            assert await process.wait() == expected


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


async def test_sandbox_listens_where_it_is_told_to() -> None:
    port = free_port()
    async with serving("--host", "127.0.0.1", "--port", port) as (_, variables):
        assert variables["BROKER_WS_URL"] == f"ws://127.0.0.1:{port}/ws/v1/stream"
        async with BrokerWSClient.from_env(variables) as client:
            assert client.is_connected()


async def test_sandbox_prices_follow_the_seed() -> None:
    prices = []
    for args in (["--seed", "5"], []):
        async with (
            serving(*args) as (_, variables),
            BrokerWSClient.from_env(variables) as client,
        ):
            prices.append((await client.estimate_swap(1, "DOGE", "USDT")).price)
    async with open_sandbox(seed=5) as sandbox, sandbox.client() as client:
        price = (await client.estimate_swap(1, "DOGE", "USDT")).price
    # Prices wander with time, and far less in a moment than two seeds are apart.
    assert abs(prices[0] - price) < abs(prices[1] - price)


def test_sandbox_on_a_port_that_is_taken_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert status("sandbox", "--port", str(taken.getsockname()[1])) == 1
    ended = capsys.readouterr()
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert "in use" in ended.err


# --- sandbox --state ------------------------------------------------------------------------


def altered(options: str) -> tuple[str, ...]:
    """The command, with options of `open_sandbox` that the command line doesn't have."""
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
    """An order once it has got far enough."""
    with trio.fail_after(PATIENCE):
        async with await client.subscribe_order(order_id) as updates:
            while True:
                order = (await updates.receive()).data
                if enough(order):
                    return order


def totals(balances: Iterable[Balance]) -> dict[str, Decimal]:
    return {balance.asset: balance.total for balance in balances}


async def test_sandbox_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
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


async def test_sandbox_in_use_refuses_another(tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with serving("--state", str(file)):
        ended = await trio.to_thread.run_sync(run, *COMMAND, "sandbox", "--state", str(file))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == f"Error: {file} is in use by another sandbox\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("my diary\n", "{file} isn't the state of a sandbox"),
        (None, "{file} is of a sandbox with seed 7, not 8"),
    ],
    ids=["not ours", "another seed"],
)
def test_sandbox_names_a_state_that_can_t_be_taken_up(
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


def test_sandbox_without_the_folder_of_its_state_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("sandbox", "--state", str(tmp_path / "nowhere" / "state")) == 1
    ended = capsys.readouterr()
    assert ended.err.count("\n") == 1
    assert "nowhere" in ended.err
