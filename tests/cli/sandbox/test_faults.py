"""The faults of the sandbox: parsing and effects."""

from __future__ import annotations

import click
import pytest
import trio
from trio.testing import MockClock

from tests.cli.harness import status
from trio_broker import (
    AuthenticationError,
    ConnectFailedError,
    Disconnected,
    ProtocolError,
    ReconnectPolicy,
    RequestTimeoutError,
    Restored,
    ServerError,
)
from trio_broker.cli.sandbox.faults import FaultType, RequestedFault
from trio_broker.sandbox import open_sandbox

# --- Parsing --------------------------------------------------------------------------------


def parse(text: str) -> RequestedFault:
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
        ("named=swap-error-late", "swap_error_late"),
        ("named=busy", "busy"),
    ],
)
def test_fault_is_parsed(text: str, value: object) -> None:
    fault = parse(text)
    assert fault == RequestedFault(text.partition("=")[0], value)
    assert FaultType().convert(fault, None, None) is fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "unknown fault 'nonsense'; choose from refuse-connections[=STATUS], stall-"),
        ("refuse-connections=99", "refuse-connections: expected an HTTP status"),
        ("refuse-connections=²00", "refuse-connections: expected an HTTP status"),
        ("refuse-channel", "refuse-channel: expected a channel"),
        ("stop-pushing=1", "stop-pushing: this fault takes no value"),
        ("swallow=swop", "swallow: unknown operation 'swop'; choose from auth, "),
        ("drip=-1", "drip: expected a number of milliseconds, not '-1'"),
        ("drip=nan", "drip: expected a number of milliseconds, not 'nan'"),
        ("drip=inf", "drip: expected a number of milliseconds, not 'inf'"),
        ("named", "named: unknown name ''; choose from busy, redirect, "),
        ("named=swap-eror", "named: unknown name 'swap-eror'; choose from busy, redirect, "),
        ("reset-every", "reset-every: expected a number of seconds, not ''"),
        ("reset-every=soon", "reset-every: expected a number of seconds, not 'soon'"),
        ("kill-every=0", "kill-every: expected at least 0.01 seconds, not '0'"),
    ],
)
def test_invalid_fault_is_a_usage_error(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(click.UsageError) as refused:
        parse(text)
    assert refused.value.message.startswith(message)
    assert status("sandbox", "--fault", text) == 2
    assert "--fault" in capsys.readouterr().err


# --- Effects --------------------------------------------------------------------------------


NEVER = ReconnectPolicy(max_attempts=0)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("refuse-connections", ConnectFailedError),
        ("stall-handshakes", ConnectFailedError),
        ("refuse-auth", AuthenticationError),
    ],
)
async def test_faults_that_prevent_connections(
    text: str, error: type[Exception], autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        parse(text).begin(sandbox.faults)
        with pytest.raises(error):
            async with sandbox.client(reconnect=NEVER):
                pytest.fail("it connected")


async def test_named_fault_is_started() -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        parse("named=estimate-no-price").begin(sandbox.faults)
        with pytest.raises(ProtocolError):
            await client.estimate_swap("1", "ETH", "USDT")


async def test_faults_that_drop_messages(autojump_clock: MockClock) -> None:
    # While replies are missing, an error that names no request could be of any.
    async with open_sandbox(error_form="named") as sandbox, sandbox.client() as client:
        for text in ("ignore=balances", "swallow=estimate", "refuse-channel=orders:*"):
            parse(text).begin(sandbox.faults)
        with pytest.raises(RequestTimeoutError):
            await client.get_balances()
        with pytest.raises(RequestTimeoutError):
            await client.estimate_swap("1", "ETH", "USDT")
        with pytest.raises(ServerError, match="Invalid channel"):
            await client.subscribe_order("ord_00000001")


async def test_faults_that_change_what_is_sent(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        parse("drip=1").begin(sandbox.faults)
        started = trio.current_time()
        async with sandbox.client() as client:
            assert trio.current_time() > started + 0.1
            parse("duplicate=balances").begin(sandbox.faults)
            with client.messages() as messages:
                await client.get_balances()
                first, second = [await messages.receive() for _ in range(2)]
            assert first == second
            parse("stop-pushing").begin(sandbox.faults)
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
async def test_periodic_fault_interrupts_connections_repeatedly(
    text: str, lost: str, autojump_clock: MockClock
) -> None:
    reports: list[str] = []
    fault = parse(text)
    assert fault.is_periodic
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        policy = ReconnectPolicy(max_attempts=None, initial_delay=0.5)
        async with sandbox.client(reconnect=policy, heartbeat_interval=1) as client:
            with client.events() as events:
                await client.subscribe("balances", snapshot=False)
                nursery.start_soon(
                    fault.repeat, sandbox.faults, lambda what, _: reports.append(what)
                )
                for kind in (Disconnected, Restored, Disconnected, Restored):
                    while not isinstance(await events.receive(), kind):
                        pass
        nursery.cancel_scope.cancel()
    assert reports.count(lost) >= 2


async def test_sessions_are_ended_periodically(autojump_clock: MockClock) -> None:
    reports: list[tuple[str, int | None]] = []
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        async with sandbox.client(reconnect=NEVER):
            report = parse("end-sessions-every=5").repeat
            nursery.start_soon(report, sandbox.faults, lambda *what: reports.append(what))
            await trio.sleep(6)
            assert sandbox.connections[0].api_key is None
        nursery.cancel_scope.cancel()
    assert reports[0] == ("ended the sessions of", 1)


async def test_two_periodic_kills_do_not_interfere(autojump_clock: MockClock) -> None:
    reports: list[str] = []
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        for text in ("kill-every=5", "kill-every=6"):
            nursery.start_soon(
                parse(text).repeat, sandbox.faults, lambda what, _: reports.append(what)
            )
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert reports[:4] == ["killed", "back", "killed", "back"]
