"""``trio-broker sandbox``: what it tells of its clients, and how it misbehaves when asked to."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio
from trio.testing import MockClock

from trio_broker import (
    AuthenticationError,
    BrokerWSClient,
    ConnectFailedError,
    Disconnected,
    OrderStatus,
    ReconnectPolicy,
    RequestTimeoutError,
    Restored,
    ServerError,
)
from trio_broker.cli import main, sandbox_faults, sandbox_log
from trio_broker.cli.output import Output
from trio_broker.cli.sandbox_faults import AskedFault, FaultType
from trio_broker.sandbox import (
    ClientAsked,
    ClientCame,
    ClientLeft,
    ClientTurnedAway,
    Order,
    OrderMoved,
    SandboxEvent,
    Terms,
    open_sandbox,
)

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "trio_broker.cli", "sandbox")
PATIENCE = 30.0
COLOURS = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COLOURS:
        monkeypatch.delenv(name, raising=False)


def run(*args: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(["sandbox", *args])
    return ended.value.code


# --- What a line says ------------------------------------------------------------------------

ORDER = Order(
    order_id="ord_00000001",
    api_key="test_key_1",
    terms=Terms(Decimal("2.50"), "ETH", "USDT"),
    client_order_id="mine",
    rate=Decimal(3000),
    updated_at=0,
    steps=(),
)
PART = attrs.evolve(
    ORDER, status=OrderStatus.PARTIAL, filled_in=Decimal(1), filled_out=Decimal("3000.5")
)
FILLED = attrs.evolve(PART, status=OrderStatus.FILLED, filled_in=Decimal("2.50"))
FAILED = attrs.evolve(ORDER, status=OrderStatus.FAILED, reason="the market failed it")


def asked(op: str | None, channel: str | None = None, **more: Any) -> ClientAsked:
    return ClientAsked(connection=3, api_key="test_key_1", op=op, channel=channel, **more)


def left(code: int | None = None, **more: Any) -> ClientLeft:
    return ClientLeft(connection=3, api_key=None, code=code, **more)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (ClientCame(connection=3), "#3 connected"),
        (ClientTurnedAway(), "   a connection was turned away by a fault"),
        (asked("auth"), "#3 authenticated as test_key_1"),
        (asked("subscribe", "balances"), "#3 subscribed to balances"),
        (asked("unsubscribe", "orders:\x1b[2J"), "#3 unsubscribed from orders:\\x1b[2J"),
        (asked("balances"), "#3 asked for the balances"),
        (asked("estimate"), "#3 asked for an estimate"),
        (
            asked("swap", order=ORDER),
            "#3 swapped 2.5 ETH for USDT: ord_00000001 is PENDING",
        ),
        (asked("order_status", order=FAILED), "#3 asked for ord_00000001 is FAILED"),
        (asked("b\x07m", error="Unknown operation: b\x07m"),
         "#3 refused b\\x07m: Unknown operation: b\\x07m"),
        (asked(None, error="Malformed message: x"),
         "#3 refused what can't be read: Malformed message: x"),
        (asked("swap", was_handled=False), "#3 swap: kept from the broker by a fault"),
        (OrderMoved(order=PART),
         "   ord_00000001 is PARTIAL: 1 of 2.5 ETH sold for 3000.5 USDT"),
        (OrderMoved(order=FILLED), "   ord_00000001 is FILLED: 2.5 ETH sold for 3000.5 USDT"),
        (OrderMoved(order=FAILED), "   ord_00000001 is FAILED (the market failed it)"),
        (left(1000), "#3 closed with code 1000"),
        (left(4000, reason="bye\n"), "#3 closed with code 4000: bye\\n"),
        (left(), "#3 lost, without a goodbye"),
        (left(was_dropped=True), "#3 dropped by the sandbox"),
    ],
)  # fmt: skip
def test_each_event_has_its_line(event: SandboxEvent, line: str) -> None:
    assert sandbox_log.told(event) == line


@pytest.mark.parametrize(
    ("event", "colour"),
    [
        (asked("swap", order=ORDER), None),
        (asked("swap", error="no"), "red"),
        (asked("swap", was_handled=False), "red"),
        (left(), "red"),
        (left(1000), "magenta"),
        (ClientCame(connection=1), "green"),
    ],
)
def test_what_went_wrong_stands_out(event: SandboxEvent, colour: str | None) -> None:
    assert sandbox_log.colour_of(event) == colour


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        (ClientCame(connection=3), {"event": "connected", "connection": 3}),
        (ClientTurnedAway(), {"event": "turned_away"}),
        (
            asked("swap", order=ORDER),
            {
                "event": "asked",
                "connection": 3,
                "account": "test_key_1",
                "op": "swap",
                "channel": None,
                "order_id": "ord_00000001",
                "error": None,
                "handled": True,
            },
        ),
        (
            OrderMoved(order=PART),
            {
                "event": "order",
                "account": "test_key_1",
                "order_id": "ord_00000001",
                "status": "PARTIAL",
                "asset_in": "ETH",
                "sold": "1",
                "asset_out": "USDT",
                "bought": "3000.5",
                "reason": None,
            },
        ),
        (
            left(1001, reason="idle"),
            {
                "event": "left",
                "connection": 3,
                "account": None,
                "code": 1001,
                "reason": "idle",
                "dropped": False,
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_programs_get_the_values(
    event: SandboxEvent, facts: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    log = sandbox_log.Log(Output(as_json=True), clock=lambda: AT)
    log.event(event)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err) == {"at": "2026-01-02T03:04:05.678+00:00", **facts}


AT = dt.datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=dt.UTC)


def test_lines_have_their_time_and_no_colour_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = sandbox_log.Log(Output(), clock=lambda: AT)
    log.event(asked("swap", "[red]" + "x" * 200, error="no"))
    log.fault("reset-every", "reset", 2)
    log.fault("kill-every", "killed", None)
    assert capsys.readouterr().err.splitlines() == [
        f"03:04:05.678 #3 refused swap [red]{'x' * 200}: no",
        "03:04:05.678    reset-every: reset (2)",
        "03:04:05.678    kill-every: killed",
    ]


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({"FORCE_COLOR": "1"}, "\x1b[31m03:04:05"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "03:04:05"),
    ],
    ids=["colour", "NO_COLOR"],
)
def test_a_terminal_has_colours_unless_somebody_wants_none(
    variables: dict[str, str],
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    sandbox_log.Log(Output(), clock=lambda: AT).event(left())
    assert capsys.readouterr().err.startswith(start)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sandbox_log.Log(Output(quiet=True)).event(ClientCame(connection=1))
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_gone_is_nobodys_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    for output in (Output(), Output(as_json=True)):
        sandbox_log.Log(output).event(ClientCame(connection=1))


# --- The names of faults ---------------------------------------------------------------------


def read(text: str) -> AskedFault:
    return FaultType().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("refuse-connections", 503),
        ("refuse-connections=404", 404),
        ("refuse-connections=reset", None),
        ("stop-pushing", None),
        ("swallow", None),
        ("swallow=swap", "swap"),
        ("refuse-channel=orders:*", "orders:*"),
        ("drip", 0.001),
        ("drip=2.5", 0.0025),
        ("reset-every=5", 5.0),
    ],
)
def test_a_fault_is_read(text: str, value: object) -> None:
    fault = read(text)
    assert fault == AskedFault(text.partition("=")[0], value)
    assert FaultType().convert(fault, None, None) is fault


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "there is no fault 'nonsense'; there are refuse-connections[=STATUS], stall-"),
        ("refuse-connections=99", "refuse-connections: it takes an HTTP status"),
        ("refuse-connections=²00", "refuse-connections: it takes an HTTP status"),
        ("refuse-channel", "refuse-channel: it needs a channel"),
        ("stop-pushing=1", "stop-pushing: it takes no value"),
        ("swallow=swop", "swallow: 'swop' is no operation; there are auth, "),
        ("drip=-1", "drip: it takes a number of milliseconds, not '-1'"),
        ("drip=nan", "drip: it takes a number of milliseconds, not 'nan'"),
        ("drip=inf", "drip: it takes a number of milliseconds, not 'inf'"),
        ("reset-every", "reset-every: it takes a number of seconds, not ''"),
        ("reset-every=soon", "reset-every: it takes a number of seconds, not 'soon'"),
        ("kill-every=0", "kill-every: it takes at least 0.01 seconds, not '0'"),
    ],
)
def test_a_fault_that_cannot_be_is_a_usage_error(
    text: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(click.UsageError) as refused:
        read(text)
    assert refused.value.message.startswith(complaint)
    assert run("--fault", text) == 2
    assert "--fault" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", ""])
def test_a_latency_that_cannot_be_is_a_usage_error(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--latency", text) == 2
    assert "it takes a number of milliseconds" in capsys.readouterr().err


def test_help_tells_of_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    for usage, _ in sandbox_faults.help_rows():
        assert f"\n  {usage}" in printed


# --- What they do ----------------------------------------------------------------------------

NEVER = ReconnectPolicy(max_attempts=0)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("refuse-connections", ConnectFailedError),
        ("stall-handshakes", ConnectFailedError),
        ("refuse-auth", AuthenticationError),
    ],
)
async def test_faults_that_keep_everybody_out(
    text: str, error: type[Exception], autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        read(text).begin(sandbox.faults)
        with pytest.raises(error):
            async with sandbox.client(reconnect=NEVER):
                pytest.fail("it connected")


async def test_faults_of_what_is_said(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        for text in ("ignore=balances", "swallow=estimate", "refuse-channel=orders:*"):
            read(text).begin(sandbox.faults)
        with pytest.raises(RequestTimeoutError):
            await client.get_balances()
        with pytest.raises(RequestTimeoutError):
            await client.estimate_swap("1", "ETH", "USDT")
        with pytest.raises(ServerError, match="Invalid channel"):
            await client.subscribe_order("ord_00000001")


async def test_faults_of_how_it_is_said(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        read("drip=1").begin(sandbox.faults)
        started = trio.current_time()
        async with sandbox.client() as client:
            assert trio.current_time() > started + 0.1
            read("duplicate=balances").begin(sandbox.faults)
            with client.messages() as messages:
                await client.get_balances()
                first, second = [await messages.receive() for _ in range(2)]
            assert first == second
            read("stop-pushing").begin(sandbox.faults)
            async with await client.subscribe("balances", snapshot=False) as updates:
                await client.do_swap("1", "ETH", "USDT")
                with trio.move_on_after(60):
                    await updates.receive()
                    pytest.fail("nothing should be pushed")


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("reset-every=5", "reset"),
        ("hang-up-every=5", "hung up on"),
        ("close-every=5", "closed"),
        ("go-silent-every=5", "silent from now on"),
        ("kill-every=5", "killed"),
    ],
)
async def test_faults_that_happen_again_and_again(
    text: str, lost: str, autojump_clock: MockClock
) -> None:
    reports: list[str] = []
    fault = read(text)
    assert fault.is_periodic
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        policy = ReconnectPolicy(max_attempts=None, initial_delay=0.5)
        async with sandbox.client(reconnect=policy, heartbeat_interval=1) as client:
            with client.events() as events:
                await client.subscribe("balances", snapshot=False)
                nursery.start_soon(
                    fault.repeat, sandbox.faults, lambda deed, _: reports.append(deed)
                )
                for kind in (Disconnected, Restored, Disconnected, Restored):
                    while not isinstance(await events.receive(), kind):
                        pass
        nursery.cancel_scope.cancel()
    assert reports.count(lost) >= 2


async def test_two_that_kill_do_not_get_in_each_others_way(autojump_clock: MockClock) -> None:
    reports: list[str] = []
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        for text in ("kill-every=5", "kill-every=6"):
            nursery.start_soon(
                read(text).repeat, sandbox.faults, lambda deed, _: reports.append(deed)
            )
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert reports[:4] == ["killed", "back", "killed", "back"]


# --- The command -----------------------------------------------------------------------------


class Served:
    """A sandbox in a process of its own."""

    def __init__(self, process: trio.Process, variables: dict[str, str]) -> None:
        self.process = process
        self.variables = variables
        self._rest = b""

    def client(self, **options: Any) -> BrokerWSClient:
        return BrokerWSClient.from_env(self.variables, **options)

    async def line(self) -> str:
        """The next line of its log."""
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
        """The next lines, up to the one with a text in it."""
        lines = []
        while True:
            lines.append(await self.line())
            assert lines[-1], f"the log has ended without {text!r}: {lines}"
            if text in lines[-1]:
                return lines

    async def end(self) -> list[str]:
        """End it politely; all the lines that are left."""
        self.process.send_signal(signal.SIGTERM)
        lines = []
        while line := await self.line():
            lines.append(line)
        with trio.fail_after(PATIENCE):
            assert await self.process.wait() == 0
        return lines


@asynccontextmanager
async def serving(*args: str) -> AsyncIterator[Served]:
    environ = {name: value for name, value in os.environ.items() if name not in COLOURS}
    process = await trio.lowlevel.open_process(
        [*COMMAND, *args],
        env={**environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        printed = b""
        async with process.stdout, process.stderr:
            with trio.fail_after(PATIENCE):
                while printed.count(b"\n") < 3:
                    chunk = await process.stdout.receive_some()
                    assert chunk, "the sandbox has ended"
                    printed += chunk
            lines = printed.decode().splitlines()
            yield Served(process, dict(line.split("=", 1) for line in lines))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_the_log_tells_of_a_clients_visit() -> None:
    async with serving("--seed", "5") as served:
        async with served.client() as client:
            await client.get_balances()
            receipt = await client.do_swap("1", "ETH", "USDT")
            async with aclosing(await client.subscribe_order(receipt.order_id)):
                lines = await served.until("is FILLED")
        lines += await served.until("closed with code 1000")
        lines += await served.end()
    assert lines[0] == "Serving play money until Ctrl-C."
    told = [line.partition(" ")[2] for line in lines[1:]]
    assert told[:4] == [
        "#1 connected",
        "#1 authenticated as test_key_1",
        "#1 asked for the balances",
        "#1 swapped 1 ETH for USDT: ord_00000001 is PENDING",
    ]
    assert "#1 subscribed to orders:ord_00000001" in told
    assert told[-1] == "#1 closed with code 1000"
    assert "test_secret" not in "".join(lines)


async def test_the_log_is_json_if_that_is_wanted() -> None:
    async with serving("--json", "--fault", "reset-every=0.3") as served:
        async with served.client(reconnect=NEVER):
            lines = await served.until('"dropped": true')
        lines += await served.end()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events[:2]] == ["connected", "asked"]
    assert {"event": "fault", "name": "reset-every", "what": "reset", "connections": 1}.items() <= (
        next(event for event in events if event["event"] == "fault").items()
    )


async def test_quiet_leaves_the_three_lines_alone() -> None:
    async with serving("--quiet") as served:
        assert list(served.variables) == ["BROKER_WS_URL", "BROKER_API_KEY", "BROKER_SECRET_KEY"]
        async with served.client() as client:
            await client.get_balances()
        assert await served.end() == []


async def test_latency_makes_every_answer_late() -> None:
    async with serving("--latency", "150", "--quiet") as served:
        started = trio.current_time()
        async with served.client() as client:
            assert trio.current_time() - started >= 0.15
            started = trio.current_time()
            await client.get_balances()
            assert trio.current_time() - started >= 0.15
        await served.end()


async def test_faults_are_there_from_the_start() -> None:
    async with serving("--fault", "refuse-auth", "--fault", "stop-pushing") as served:
        with pytest.raises(AuthenticationError):
            async with served.client(reconnect=NEVER):
                pytest.fail("it connected")
        await served.until("#1 auth: kept from the broker by a fault")
        await served.end()
