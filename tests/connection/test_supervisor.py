"""Opening, failing, reconnecting and closing, as users see it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import (
    AUTHENTICATED,
    BALANCES,
    ESTIMATE,
    NEVER,
    PATIENCE,
    SWAPPED,
    Body,
    ScriptedConnection,
    acknowledgement,
    count_tasks,
    link_of,
    open_scripted,
    scripted_client,
    start,
    wait_until,
)
from tests.transports.raw_server import frame, serve_raw, wait_gone
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    ClientClosedError,
    Closed,
    ConfigurationError,
    Connected,
    ConnectFailedError,
    ConnectionLostError,
    ConnectionState,
    Disconnected,
    GaveUp,
    InvalidSignatureError,
    Limits,
    NotConnectedError,
    NotSentError,
    ReconnectFailedError,
    ReconnectPolicy,
    RequestTimeoutError,
    Restored,
    SubscriptionBrokenError,
)
from trio_broker._connection import heartbeat
from trio_broker._connection.driver import Driver
from trio_broker._connection.supervisor import Supervisor
from trio_broker._engine import Engine
from trio_broker.sandbox import open_sandbox
from trio_broker.settings import TransportName
from trio_broker.transports import opener

pytestmark = pytest.mark.usefixtures("each_transport")

REFUSED = {"op": "auth", "error": "Invalid signature"}


# --- Final failures --------------------------------------------------------------------------


async def test_lost_connection_breaks_streams_and_calls_only() -> None:
    with trio.fail_after(PATIENCE):
        async with open_sandbox() as sandbox, sandbox.client(reconnect=NEVER) as client:
            subscription = await client.subscribe("balances", snapshot=False)
            events = client.events()
            sandbox.drop_connections()
            with pytest.raises(SubscriptionBrokenError) as broken:
                await subscription.receive()
            assert isinstance(broken.value, trio.BrokenResourceError)
            assert isinstance(broken.value.__cause__, ConnectionLostError)
            with pytest.raises(ConnectionLostError):
                await client.wait_closed()
            with pytest.raises(ConnectionLostError):
                await client.wait_connected()
            with pytest.raises(NotConnectedError):
                await client.get_balances()
            assert client.state is ConnectionState.FAILED
            assert not client.is_connected()
            assert [type(event) async for event in events] == [Disconnected, GaveUp]
            await trio.lowlevel.checkpoint()  # the block isn't cancelled


async def test_failure_is_a_new_object_each_time() -> None:
    async with scripted_client() as (client, line):
        line.hang_up()
        errors = []
        for _ in range(3):
            with pytest.raises(ConnectionLostError) as caught:
                await client.wait_closed()
            errors.append(caught.value)
        assert len({id(error) for error in errors}) == 3


async def test_clock_that_fails_ends_the_client_and_its_events(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def clock() -> float:
        raise ZeroDivisionError

    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client(clock=clock)
        events = client.events()
        with pytest.raises(BrokerError, match="internal error") as caught:
            await client.connect(nursery)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert client.state is ConnectionState.FAILED
        assert [type(event) async for event in events] == [Disconnected, GaveUp]
    assert "internal error" in caplog.text


# --- The block's own exceptions --------------------------------------------------------------


async def test_exception_of_the_block_is_raised_unchanged() -> None:
    async with open_scripted() as broker:
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            async with broker.client() as client:
                raise error
        assert caught.value is error
        assert error.__cause__ is error.__context__ is None
        assert client.state is ConnectionState.CLOSED
        assert broker.lines[0].goodbye is not None


async def test_exception_group_of_the_block_stays_whole() -> None:
    async with open_scripted() as broker:
        group = ExceptionGroup("mine", [ValueError("one"), KeyError("two")])
        with pytest.RaisesGroup(ValueError, KeyError) as caught:
            async with broker.client():
                raise group
        assert caught.value is group


@pytest.mark.parametrize("already_over", [False, True])
async def test_exception_of_the_block_survives_a_cancellation(*, already_over: bool) -> None:
    async with open_scripted() as broker:
        error = ValueError("mine")

        async def block(scope: trio.CancelScope) -> None:
            async with broker.client() as client:
                scope.cancel()
                if already_over:
                    with trio.CancelScope(shield=True):
                        await client.wait_closed()
                raise error

        with trio.CancelScope() as scope, pytest.raises(ValueError, match="mine") as caught:
            await block(scope)
        assert caught.value is error


async def test_exception_group_of_the_block_survives_a_cancellation() -> None:
    async with open_scripted() as broker:

        async def block() -> None:
            with trio.CancelScope() as scope:
                async with broker.client(), trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    scope.cancel()
                    raise ValueError("mine")

        with pytest.RaisesGroup(ValueError):
            await block()


async def test_exception_of_the_block_survives_a_lost_connection() -> None:
    async with open_scripted() as broker:

        async def block() -> None:
            async with broker.client() as client:
                (await broker.line()).hang_up()
                with pytest.raises(ConnectionLostError):
                    await client.wait_closed()
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await block()


async def test_cancelled_block_closes_within_half_a_second(autojump_clock: MockClock) -> None:
    async with open_scripted(reads=False) as broker:
        with trio.CancelScope() as scope:
            async with broker.client() as client:
                began = trio.current_time()
                scope.cancel()
                await trio.sleep_forever()
        assert trio.current_time() - began <= 0.5
        assert scope.cancelled_caught
        assert client.state is ConnectionState.CLOSED


# --- connect() in a nursery of the user ------------------------------------------------------


async def test_first_failure_is_raised_bare_and_leaves_no_task() -> None:
    async with open_scripted(auth=REFUSED) as broker, trio.open_nursery() as nursery:
        client = broker.client()
        with pytest.raises(InvalidSignatureError):
            await client.connect(nursery)
        assert not nursery.child_tasks
        assert client.state is ConnectionState.FAILED


async def test_refused_connection_is_a_connect_failure() -> None:
    client = BrokerWSClient("key", "secret", "ws://127.0.0.1:9/ws", connect_timeout=PATIENCE)
    events = client.events()
    with pytest.raises(ConnectFailedError):
        async with client:
            pytest.fail("it connected")
    assert [type(event) async for event in events] == [Disconnected, GaveUp]


async def test_later_failure_is_not_raised_into_the_nursery() -> None:
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        await client.connect(nursery)
        (await broker.line()).hang_up()
        with pytest.raises(ConnectionLostError):
            await client.wait_closed()
        await trio.lowlevel.checkpoint()
        assert not nursery.child_tasks


@pytest.mark.parametrize("answers", [True, False])
async def test_cancelled_nursery_closes_within_half_a_second(
    *, answers: bool, autojump_clock: MockClock
) -> None:
    async with open_scripted(reads=answers) as broker:
        async with trio.open_nursery() as nursery:
            client = broker.client()
            await client.connect(nursery)
            line = await broker.line()
            subscription = client.events()
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began <= 0.5
        assert client.state is ConnectionState.CLOSED
        assert [type(event) async for event in subscription] == [Closed]
        if answers:
            assert line.goodbye is not None
        await client.wait_closed()


async def test_cancelled_connect_leaves_no_task(autojump_clock: MockClock) -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        client = broker.client()
        with trio.move_on_after(3) as scope:
            await client.connect(nursery)
        assert scope.cancelled_caught
        assert not nursery.child_tasks
        assert client.state is ConnectionState.CLOSED


async def test_nursery_cancelled_before_starts_no_connection() -> None:
    async with open_scripted() as broker:
        async with trio.open_nursery() as outer:
            nurseries: list[trio.Nursery] = []
            outer.start_soon(hold_a_nursery, nurseries)
            await wait_all_tasks_blocked()
            (nursery,) = nurseries
            client = broker.client()
            nursery.cancel_scope.cancel()
            with pytest.raises(ClientClosedError):
                await client.connect(nursery)
        assert client.state is ConnectionState.CLOSED


async def hold_a_nursery(nurseries: list[trio.Nursery]) -> None:
    async with trio.open_nursery() as nursery:
        nurseries.append(nursery)
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked(0.05)


async def test_client_can_be_used_once() -> None:
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        async with client:
            with pytest.raises(RuntimeError, match="used once"):
                await client.connect(nursery)
            with pytest.raises(RuntimeError, match="used once"):
                await client.__aenter__()
            with pytest.raises(RuntimeError, match="used once"):
                client._supervisor.start()
            assert client.is_connected()
        with pytest.raises(RuntimeError, match="used once"):
            await client.connect(nursery)


async def test_closed_nursery_leaves_the_client_unused() -> None:
    async with trio.open_nursery() as nursery:
        pass
    async with open_scripted() as broker:
        client = broker.client()
        with pytest.raises(RuntimeError, match="closed"):
            await client.connect(nursery)
        async with client:
            assert client.is_connected()


# --- Closing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aclose", "close"])
async def test_close_sends_a_close_frame_and_ends_streams(name: str) -> None:
    async with open_scripted() as broker, broker.client() as client:
        line = await broker.line()
        events, messages = client.events(), client.messages()
        await getattr(client, name)()
        assert line.goodbye == (1000).to_bytes(2)
        assert client.state is ConnectionState.CLOSED
        assert [type(event) async for event in events] == [Closed]
        assert [message async for message in messages] == []
        await client.wait_closed()
        await client.aclose()
        await client.aclose()


async def test_concurrent_closes_close_once() -> None:
    async with scripted_client() as (client, _):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(client.aclose)
        assert client.state is ConnectionState.CLOSED


async def test_calls_fail_at_once_while_closing(autojump_clock: MockClock) -> None:
    async with (
        open_scripted(reads=False) as broker,
        broker.client() as client,
        trio.open_nursery() as nursery,
    ):
        closing = start(nursery, client.aclose)
        await wait_all_tasks_blocked()
        assert client.state is ConnectionState.CLOSING
        with pytest.raises(ClientClosedError):
            await client.get_balances()
        await closing.result()


async def test_unanswered_close_ends_after_close_timeout(
    autojump_clock: MockClock,
) -> None:
    async with open_scripted(reads=False) as broker, broker.client(close_timeout=3) as client:
        began = trio.current_time()
        await client.aclose()
        assert trio.current_time() - began == pytest.approx(3)


async def test_cancelled_close_closes_within_half_a_second(autojump_clock: MockClock) -> None:
    async with open_scripted(reads=False) as broker, broker.client() as client:
        began = trio.current_time()
        with trio.move_on_after(1) as scope:
            await client.aclose()
        assert scope.cancelled_caught
        assert trio.current_time() - began <= 1.5
        assert client.state is ConnectionState.CLOSED


async def test_client_closed_before_use_cannot_be_used() -> None:
    async with open_scripted() as broker:
        client = broker.client()
        events = client.events()
        await client.aclose()
        assert [type(event) async for event in events] == [Closed]
        await client.wait_closed()
        with pytest.raises(RuntimeError, match="used once"):
            async with client:
                pytest.fail("it connected")


async def test_close_fails_a_connect_under_way(autojump_clock: MockClock) -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        client = broker.client()
        connecting = start(nursery, client.connect, nursery)
        await broker.line()
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await client.aclose()
        assert trio.current_time() - began <= 0.5
        with pytest.raises(ClientClosedError):
            await connecting.result()


async def test_close_during_the_handshake_does_not_wait(
    autojump_clock: MockClock,
) -> None:
    async with serve_raw(wait_gone) as port, trio.open_nursery() as nursery:
        client = BrokerWSClient("key", "secret", f"ws://127.0.0.1:{port}/ws")
        connecting = start(nursery, client.connect, nursery)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await client.aclose()
        assert trio.current_time() == began
        with pytest.raises(ClientClosedError):
            await connecting.result()


async def test_client_closed_as_the_connection_opens_stays_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states: list[ConnectionState] = []
    become = Driver.become

    def closing_opener(name: TransportName) -> Any:
        @asynccontextmanager
        async def opening(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
            async with opener(name)(*arguments, **options) as transport:
                client._supervisor.request_close()
                yield transport

        return opening

    def noting(self: Driver, state: ConnectionState) -> None:
        states.append(state)
        become(self, state)

    monkeypatch.setattr(Driver, "become", noting)
    monkeypatch.setattr("trio_broker._connection.supervisor.opener", closing_opener)
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        with pytest.raises(ClientClosedError):
            await client.connect(nursery)
    assert states == [ConnectionState.CONNECTING, ConnectionState.CLOSING, ConnectionState.CLOSED]


async def test_loss_during_a_close_is_a_close() -> None:
    async with scripted_client() as (client, line):
        line.hang_up()
        link_of(client).fail(ConnectionLostError("gone"))
        await client.aclose()
        assert client.state is ConnectionState.CLOSED
        await client.wait_closed()


async def test_message_after_the_close_changes_nothing() -> None:
    async with scripted_client() as (client, _):
        await client.aclose()
        client._supervisor._authenticated()
        client._driver.replace(ConnectionLostError("gone"))
        assert client.state is ConnectionState.CLOSED
        await client.wait_closed()


# --- State, events and log -------------------------------------------------------------------


async def test_states_and_events_of_a_client() -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        client = broker.client()
        assert client.state is ConnectionState.IDLE
        events = client.events()
        connecting = start(nursery, client.connect, nursery)
        line = await broker.line()
        await wait_all_tasks_blocked()
        states = [client.state]
        assert not client.is_connected()
        waiter = start(nursery, client.wait_connected)
        await line.send({"op": "auth", "data": {"status": "authenticated"}})
        await connecting.result()
        await waiter.result()
        states.append(client.state)
        assert client.is_connected()
        await client.wait_connected()
        await client.aclose()
        assert states == [ConnectionState.AUTHENTICATING, ConnectionState.CONNECTED]
        assert [type(event) async for event in events] == [Connected, Closed]


async def test_late_timers_do_not_end_the_client(autojump_clock: MockClock) -> None:
    async with scripted_client() as (client, line):
        with trio.move_on_after(1):
            await client.get_balances()
        await trio.sleep(100)
        await line.receive("balances")
        assert client.is_connected()


@pytest.mark.parametrize("child", [False, True])
def test_ctrl_c_in_the_block_ends_cleanly(*, child: bool) -> None:
    clients: list[BrokerWSClient] = []
    connected = trio.Event()

    async def body() -> None:
        async with open_sandbox() as sandbox, sandbox.client() as client:
            clients.append(client)
            await client.subscribe("balances")
            connected.set()
            if not child:
                signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

    async def main() -> None:
        if not child:
            await body()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(body)
            await connected.wait()
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

    # With a child task, the outer nursery is the user's own.
    with pytest.RaisesGroup(KeyboardInterrupt) if child else pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert clients[0].state is ConnectionState.CLOSED


def test_ctrl_c_during_a_swap_reports_it(caplog: pytest.LogCaptureFixture) -> None:
    clients: list[BrokerWSClient] = []

    async def main() -> None:
        async with open_scripted() as broker, broker.client() as client:
            clients.append(client)
            line = await broker.line()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(client.do_swap, "1", "ETH", "USDT", client_order_id="c1")
                )
                await line.receive("swap")
                signal.raise_signal(signal.SIGINT)
                await trio.sleep_forever()

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        trio.run(main)
    assert [one.client_order_id for one in clients[0].unresolved_swaps()] == ["c1"]
    assert "swap c1 unresolved" in caplog.text


async def test_nothing_runs_any_more_after_the_end() -> None:
    async with open_scripted() as broker:
        await wait_all_tasks_blocked()
        tasks = count_tasks()
        async with broker.client():
            await broker.line()
        await wait_all_tasks_blocked(0.01)
        assert count_tasks() == tasks


def test_secret_in_a_url_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerWSClient("key", "secret", "wss://user:hush@broker.example/ws")
    assert "hush" not in str(caught.value)


# --- Reconnecting ----------------------------------------------------------------------------


async def test_stream_goes_on_after_a_lost_connection(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        events = client.events()
        async with await client.subscribe_balances() as updates:
            first = await updates.receive()
            began = trio.current_time()
            sandbox.drop_connections()
            message = await updates.receive()
            assert 0.5 <= trio.current_time() - began <= 1.0
            assert message.gap is not None
            assert message.gap.reasons == {"reconnected"}
            assert (message.origin, message.data) == ("snapshot", first.data)
            lost, connected, restored = [await events.receive() for _ in range(3)]
            assert isinstance(lost, Disconnected)
            assert isinstance(lost.error, ConnectionLostError)
            assert lost.retry_in is not None
            assert isinstance(connected, Connected)
            assert isinstance(restored, Restored)
            assert restored.channels == ("balances",)
            assert lost.at <= connected.at <= restored.at
        assert len(sandbox.connections) == 2


async def test_states_of_an_outage() -> None:
    policy = ReconnectPolicy(initial_delay=0.001)
    async with open_scripted() as broker, broker.client(reconnect=policy) as client:
        first = await broker.line()
        async with trio.open_nursery() as nursery:
            subscribing = start(nursery, client.subscribe_balances)
            await first.acknowledge()
            updates = await subscribing.result()
        first.hang_up()
        states = [client.state]
        with trio.fail_after(PATIENCE):
            await wait_until_lost(client)
            states.append(client.state)
            assert client.latency is None
            await client.wait_connected()
        second = await broker.line()
        states.append(client.state)
        assert client.is_connected()
        await second.acknowledge()
        await second.receive("balances")
        states.append(client.state)
        assert states == [
            ConnectionState.CONNECTED,
            ConnectionState.WAITING,
            ConnectionState.RESTORING,
            ConnectionState.CONNECTED,
        ]
        updates.close()


async def test_last_cause_is_reported_when_attempts_are_exhausted(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        events = client.events()
        subscription = await client.subscribe_balances(snapshot=False)
        began = trio.current_time()
        sandbox.faults.kill()
        with pytest.raises(ReconnectFailedError, match="5 attempts to reconnect failed") as caught:
            await client.wait_closed()
        assert caught.value.attempts == 5
        assert isinstance(caught.value.__cause__, ConnectFailedError)
        assert 15.5 <= trio.current_time() - began <= 31
        with pytest.raises(SubscriptionBrokenError) as broken:
            await subscription.receive()
        assert isinstance(broken.value.__cause__, ReconnectFailedError)
        seen = [event async for event in events]
        assert [type(event) for event in seen] == [Disconnected] * 6 + [GaveUp]
        await sandbox.faults.revive()


async def test_documented_attributes_work_while_running(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        assert (client.max_reconnect_attempts, client.reconnect_delay) == (5, 1.0)
        client.reconnect_delay = 4.0
        began = trio.current_time()
        sandbox.faults.reset()
        await wait_until_lost(client)
        await client.wait_connected()
        assert 2 <= trio.current_time() - began <= 4
        client.max_reconnect_attempts = 0
        sandbox.faults.reset()
        with pytest.raises(ConnectionLostError):
            await client.wait_closed()
        with pytest.raises(ConfigurationError, match="max_attempts"):
            client.max_reconnect_attempts = -1
        with pytest.raises(ConfigurationError, match="initial_delay"):
            client.reconnect_delay = 0


async def wait_until_lost(client: BrokerWSClient) -> None:
    events = client.events()
    while client.is_connected():
        await events.receive()


async def test_reads_wait_for_the_next_connection_and_swaps_do_not(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        sandbox.drop_connections()
        await wait_until_lost(client)
        with pytest.raises(NotConnectedError):
            await client.do_swap("1", "ETH", "USDT")
        assert await client.get_balances()
        assert len(sandbox.connections) == 2
        assert sandbox.orders() == ()
        sandbox.faults.kill()
        await wait_until_lost(client)
        began = trio.current_time()
        with pytest.raises(NotSentError):
            await client.get_balances()
        assert trio.current_time() - began == pytest.approx(10)
        await sandbox.faults.revive()


async def test_first_connection_is_retried_with_retry_first(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.refuse_connections(503, times=2)
        policy = ReconnectPolicy(retry_first=True)
        async with sandbox.client(reconnect=policy) as client:
            assert client.is_connected()
            assert await client.get_balances()


async def test_close_ends_the_wait_for_a_retry(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client(request_timeout=60) as client:
        subscription = await client.subscribe_balances(snapshot=False)
        sandbox.faults.kill()
        await wait_until_lost(client)
        began = trio.current_time()
        await client.aclose()
        assert trio.current_time() == began
        assert [message async for message in subscription] == []
        await client.wait_closed()
        await sandbox.faults.revive()


async def test_client_closed_as_a_retry_begins_stays_closed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        real_move_on_after = trio.move_on_after

        @contextmanager
        def move_on_after(seconds: float) -> Iterator[None]:
            with real_move_on_after(seconds):
                yield
            if client.state is ConnectionState.WAITING:
                client._supervisor.request_close()

        sandbox.drop_connections()
        monkeypatch.setattr(trio, "move_on_after", move_on_after)
        await client.wait_closed()
        assert client.state is ConnectionState.CLOSED
        assert len(sandbox.connections) == 1


async def test_close_during_a_ping_is_one_loss(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_scripted() as broker, broker.client() as client:
        line = await broker.line()

        async def ping() -> None:
            await trio.lowlevel.checkpoint()
            raise ConnectionLostError("gone while it was pinged")

        monkeypatch.setattr(link_of(client).transport, "ping", ping)
        with pytest.raises(ConnectionLostError, match="gone while it was pinged"):
            await client.wait_closed()
        assert not line.pings


async def test_every_call_is_refused_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_scripted() as broker, broker.client() as client:
        events, messages = client.events(), client.messages()
        with monkeypatch.context() as forked:
            forked.setattr("os.getpid", lambda: -1)
            for call in (
                client.get_balances,
                client.aclose,
                client.wait_closed,
                client.wait_connected,
                client.reconnect,
                client.reconcile,
                client.track_order("o1").__aenter__,
                events.receive,
                messages.receive,
                lambda: anext(events),
                lambda: client.do_swap("1", "ETH", "USDT"),
                lambda: client.subscribe("balances"),
                lambda: client.unsubscribe("balances"),
                lambda: client.settle_swap("c1", "by hand"),
            ):
                with pytest.raises(NotConnectedError, match="forked"):
                    await call()
            for plain_call in (client.events, client.messages):
                with pytest.raises(NotConnectedError, match="forked"):
                    plain_call()
            assert not client.is_connected()
        assert client.is_connected()


async def test_log_reports_the_outage(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", logger="trio_broker"):
        async with open_sandbox() as sandbox, sandbox.client() as client:
            await client.subscribe_balances(snapshot=False)
            sandbox.faults.refuse_channel("balances")
            sandbox.drop_connections()
            await wait_until_lost(client)
            await client.wait_connected()
            await trio.sleep(1)
    for part in ("next attempt in", "waiting -> connecting", "restoring -> connected"):
        assert part in caplog.text
    assert "'balances' was refused after the reconnection: the broker refused" in caplog.text
    assert "restored: no channels" in caplog.text


async def test_gap_includes_the_time_of_a_suspend(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asleep = 0.0
    monkeypatch.setattr(heartbeat, "time_suspended", lambda: asleep)
    async with open_sandbox(clock=lambda: 1e9 + trio.current_time() + asleep) as sandbox:
        async with sandbox.client() as client, await client.subscribe_balances() as updates:
            last_received = (await updates.receive()).received_at
            await trio.sleep(5)
            asleep = 3600.0
            message = await updates.receive()
        assert message.gap is not None
        assert abs((message.gap.since - last_received).total_seconds()) < 1
        assert (message.received_at - message.gap.since).total_seconds() > 3600


async def test_broker_that_stops_answering_exhausts_the_attempts(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=2)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        events = client.events()
        sandbox.faults.go_silent()
        async for event in events:
            if isinstance(event, Connected):
                sandbox.faults.go_silent()
        with pytest.raises(ReconnectFailedError):
            await client.wait_closed()
        assert len(sandbox.connections) == 3


async def test_outage_without_subscriptions_reports_restored(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        events = client.events()
        await trio.sleep(31)
        latency = client.latency
        assert latency is not None
        sandbox.faults.reset()
        kinds = [type(await events.receive()) for _ in range(3)]
        assert kinds == [Disconnected, Connected, Restored]
        assert client.state is ConnectionState.CONNECTED
        assert client.latency == latency  # the last one, until there is another


@pytest.mark.parametrize(
    ("where", "own_nursery", "state"),
    [
        ("receive", True, ConnectionState.CLOSED),
        ("receive", False, ConnectionState.CLOSED),
        ("lost", True, ConnectionState.CLOSED),  # it was closing anyway
        ("lost", False, ConnectionState.FAILED),
    ],
)
async def test_fault_of_the_library_during_a_cancellation_is_not_raised(
    *,
    where: str,
    own_nursery: bool,
    state: ConnectionState,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scope = trio.CancelScope()

    def failing(*_: object) -> None:
        scope.cancel()
        raise ZeroDivisionError

    async def fail() -> None:
        monkeypatch.setattr(Engine, where, failing)
        sandbox.push('{"ch":"balances","data":7}')
        sandbox.drop_connections()
        await trio.sleep_forever()

    async with open_sandbox() as sandbox:
        client = sandbox.client()
        with scope:
            if own_nursery:
                async with client:
                    await fail()
            else:
                async with trio.open_nursery() as nursery:
                    await client.connect(nursery)
                    await fail()
        assert scope.cancelled_caught
        assert client.state is state
    assert "ZeroDivisionError" in caplog.text


async def test_fault_of_the_library_while_replacing_a_connection_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    async with open_sandbox() as sandbox, sandbox.client() as client:
        monkeypatch.setattr(Engine, "receive", failing)
        await client.reconnect()
        assert await client.get_balances()
    assert "ZeroDivisionError" in caplog.text


async def test_fault_of_the_library_fails_the_client_and_nothing_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError

    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        client = sandbox.client()
        events = client.events()
        await client.connect(nursery)
        monkeypatch.setattr(Engine, "lost", failing)
        sandbox.drop_connections()
        with pytest.raises(BrokerError, match="internal error") as caught:
            await client.wait_closed()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert client.state is ConnectionState.FAILED
        assert isinstance([event async for event in events][-1], GaveUp)
    assert "ended with an internal error" in caplog.text


async def test_base_exception_is_raised_by_the_clients_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stop(BaseException):
        pass

    async def stop(_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise Stop

    monkeypatch.setattr(Supervisor, "_keep_connected", stop)
    client = BrokerWSClient("key", "secret", "ws://127.0.0.1:9/ws")
    with pytest.RaisesGroup(Stop, ClientClosedError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await client.connect(nursery)
    assert client.state is ConnectionState.CLOSED


async def test_log_has_one_line_per_event_and_no_key(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        events = client.events()
        sandbox.faults.close(1011, f"no {sandbox.api_key}\nERROR forged")
        await events.receive()
        (record,) = [one for one in caplog.records if "1011" in one.getMessage()]
        assert "\n" not in record.getMessage()
        assert sandbox.api_key not in record.getMessage()


async def test_unexpected_message_after_a_close_request_makes_no_event() -> None:
    async with open_scripted() as broker, broker.client() as client:
        line = await broker.line()
        events = client.events()
        client._supervisor.request_close()
        await line.send({"ch": "balances", "data": []})
        await client.aclose()
        assert [type(event) async for event in events] == [Closed]


# --- A quiet connection becomes stable -------------------------------------------------------


@pytest.mark.parametrize("stable_after", [0.5, 10.0, 25.0, 45.0])
async def test_quiet_connection_is_stable_after_stable_after_seconds(
    stable_after: float, autojump_clock: MockClock
) -> None:
    policy = ReconnectPolicy(max_attempts=1, stable_after=stable_after)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        for _ in range(3):
            await trio.sleep(stable_after + 1.1)
            sandbox.drop_connections()
            await wait_until_lost(client)
            await client.wait_connected()
        sandbox.drop_connections()  # at once
        with pytest.raises(ReconnectFailedError):
            await client.wait_closed()


async def test_quiet_connection_that_answers_no_ping_is_not_stable(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=2)
    async with open_scripted(pongs=False) as broker, broker.client(reconnect=policy) as client:
        for _ in range(2):
            line = await broker.line()
            await trio.sleep(15)
            line.hang_up()
            await wait_until_lost(client)
        (await broker.line()).hang_up()
        with pytest.raises(ReconnectFailedError):
            await client.wait_closed()


async def test_ping_that_shows_stability_is_sent_once_for_a_connection(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client(heartbeat_interval=1000) as (client, line):
        await trio.sleep(900)
        assert line.pings == 1
        assert client.is_connected()


# --- reconnect() -----------------------------------------------------------------------------


async def test_reconnect_replaces_the_connection_and_streams_report_the_gap(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=0)
    async with (
        open_sandbox() as sandbox,
        sandbox.client(reconnect=policy) as client,
        await client.subscribe("balances") as updates,
    ):
        assert (await updates.receive()).gap is None
        events = client.events()
        began = trio.current_time()
        for number in range(2, 5):
            await client.reconnect()
            assert client.is_connected()
            assert len(sandbox.connections) == number
            message = await updates.receive()
            assert message.gap is not None
            assert message.gap.reasons == {"reconnected"}
        assert trio.current_time() - began < 1
        lost = await events.receive()
        assert isinstance(lost, Disconnected)
        assert lost.retry_in == 0
        assert "reconnect" in str(lost.error)
        client.max_reconnect_attempts = 1  # no attempt is used up
        sandbox.drop_connections()
        await wait_until_lost(client)
        await client.wait_connected()


async def test_reconnect_ends_the_wait_for_the_next_attempt(autojump_clock: MockClock) -> None:
    policy = ReconnectPolicy(initial_delay=1000, max_delay=1000)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        sandbox.drop_connections()
        await wait_until_lost(client)
        began = trio.current_time()
        await client.reconnect()
        assert client.is_connected()
        assert trio.current_time() - began < 1


async def test_reconnect_raises_the_failure_of_the_connection(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=1)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        sandbox.faults.refuse_connections(503)
        with pytest.raises(ReconnectFailedError):
            await client.reconnect()
        with pytest.raises(NotConnectedError):
            await client.reconnect()
    with pytest.raises(NotConnectedError):
        await client.reconnect()


async def test_reconnect_fails_requests_in_flight_and_finds_a_swap(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        sandbox.faults.swallow(op="balances", times=1)
        async with trio.open_nursery() as nursery:
            read = start(nursery, client.get_balances)
            await wait_all_tasks_blocked()
            await client.reconnect()
            with pytest.raises(ConnectionLostError, match="reconnect"):
                await read.result()
            sandbox.faults.swallow(op="swap", times=1)
            swap = start(nursery, client.do_swap, "1", "ETH", "USDT")
            await wait_all_tasks_blocked()
            await client.reconnect()
            assert (await swap.result()).order_id
        assert len(sandbox.orders()) == 1


async def test_reconnect_called_by_many_replaces_one_connection(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(client.reconnect)
        assert client.is_connected()
        assert len(sandbox.connections) == 2


async def test_cancelled_reconnect_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with trio.move_on_after(0):
            await client.reconnect()
        assert client.is_connected()  # a scope that was cancelled before does nothing
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.reconnect)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await client.wait_connected()
        await client.get_balances()
        assert len(sandbox.connections) == 2


async def test_reconnect_during_an_attempt_that_fails_retries_at_once(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(initial_delay=1000, max_delay=1000)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        fault = sandbox.faults.stall_handshakes(times=1)
        sandbox.drop_connections()
        await wait_until_lost(client)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.reconnect)
            await trio.sleep(1)
            assert client.state is ConnectionState.CONNECTING
            await client.reconnect()
        fault.lift()
        assert trio.current_time() - began < 20
        client.max_reconnect_attempts = 2  # both are used up
        sandbox.drop_connections()
        with pytest.raises(ReconnectFailedError):
            await client.wait_closed()


async def test_reconnect_does_not_retry_a_failed_first_connection(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, trio.open_nursery() as nursery:
        sandbox.faults.delay_auth(5)
        sandbox.faults.refuse_auth("Invalid signature")
        client = sandbox.client()
        opening = start(nursery, client.connect, nursery)
        await trio.sleep(1)
        with pytest.raises(InvalidSignatureError):
            await client.reconnect()
        with pytest.raises(InvalidSignatureError):
            await opening.result()
        assert len(sandbox.connections) == 1


# --- A blocked event loop --------------------------------------------------------------------


def answer_while_blocked(
    clock: MockClock, line: ScriptedConnection, *messages: Body | str, seconds: float = 0.3
) -> None:
    """Send messages, and let a deadline pass before any task can read them."""
    stream = line.stream
    assert isinstance(stream, trio.SocketStream)
    texts = [text if isinstance(text, str) else json.dumps(text) for text in messages]
    data = b"".join(frame(text) for text in texts)
    assert os.write(stream.socket.fileno(), data) == len(data)
    clock.jump(seconds)
    clock.autojump_threshold = 0.1  # a client that waits for ever fails the test and doesn't hang


async def test_fault_during_a_cancellation_does_not_reach_the_users_nursery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail_when_cancelled(*_: object) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("a fault")

    monkeypatch.setattr(heartbeat.Heartbeat, "_beat", fail_when_cancelled)
    async with open_sandbox() as sandbox:
        client = sandbox.client()
        async with trio.open_nursery() as nursery:
            await client.connect(nursery)
            await wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert client.state.is_over
        with trio.CancelScope() as scope:
            async with sandbox.client():
                await wait_all_tasks_blocked(0.05)
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.parametrize("repetition", range(8))
async def test_read_that_flies_alone_is_sent_on_time_behind_an_unanswered_one(
    repetition: int, autojump_clock: MockClock
) -> None:
    # Trio runs tasks that start together in any order.
    options: dict[str, Any] = {
        "limits": Limits(max_receive_size=2000),
        "reconnect": ReconnectPolicy(initial_delay=0.1),
        "heartbeat_interval": 1000,
        "request_timeout": 100,
    }
    async with (
        open_scripted() as broker,
        broker.client(**options) as client,
        trio.open_nursery() as nursery,
    ):
        line = await broker.line()
        suspected = start(nursery, client.get_order_status, "large")
        await line.receive("order_status")
        await line.send({"ch": "any", "data": "x" * 3000})
        with pytest.raises(ConnectionLostError):
            await suspected.result()
        line = await broker.line()
        await client.wait_connected()
        await trio.sleep(20)  # Nothing else will wake the client.
        start(nursery, client.estimate_swap, "1", "ETH", "USDT")
        start(nursery, client.get_order_status, "large")
        first = await line.receive()
        if first["op"] == "estimate":
            with trio.fail_after(0.5):
                await line.receive("order_status")
        nursery.cancel_scope.cancel()


async def test_request_is_not_sent_after_its_deadline_in_a_blocked_loop(
    mock_clock: MockClock,
) -> None:
    options: dict[str, Any] = {
        "request_timeout": 0.5,
        "limits": Limits(messages_per_second=1),  # The authentication was the first one.
    }
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:
        swap = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        mock_clock.jump(5.0)
        mock_clock.autojump_threshold = 0.1  # so that a swap that is sent fails the test
        with pytest.raises(NotSentError, match="too long ago"):
            await swap.result()
        assert line.nothing_came()
        assert client.unresolved_swaps() == ()


async def test_reply_received_while_the_loop_was_blocked_counts(mock_clock: MockClock) -> None:
    options: dict[str, Any] = {"request_timeout": 0.1}
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        answer_while_blocked(mock_clock, line, BALANCES)
        assert (await call.result())[0].asset == "USDT"


async def test_reply_behind_many_pushes_counts_after_a_blocked_loop(mock_clock: MockClock) -> None:
    options: dict[str, Any] = {"request_timeout": 0.1}
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        answer_while_blocked(
            mock_clock, line, *[{"ch": "nobody", "data": "x" * 100}] * 500, BALANCES
        )
        assert (await call.result())[0].asset == "USDT"


@pytest.mark.parametrize("op", ["balances", "swap", "subscribe"])
async def test_reply_behind_thousands_of_pushes_counts(op: str, mock_clock: MockClock) -> None:
    options: dict[str, Any] = {"request_timeout": 1.0, "resolve_timeout": 1.0}
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:
        calls = {
            "balances": client.get_balances,
            "swap": lambda: client.do_swap("1", "ETH", "USDT"),
            "subscribe": lambda: client.subscribe("balances", snapshot=False),
        }
        call = start(nursery, calls[op])
        request = await line.receive(op)
        replies = {"balances": BALANCES, "swap": SWAPPED}
        reply = replies.get(op) or acknowledgement(request)
        answer_while_blocked(mock_clock, line, *[{"ch": "nobody"}] * 4000, reply, seconds=2.0)
        assert await call.result()


async def test_acknowledgement_received_while_the_loop_was_blocked_counts(
    mock_clock: MockClock,
) -> None:
    options: dict[str, Any] = {"request_timeout": 0.1}
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, lambda: client.subscribe("balances", snapshot=False))
        request = await line.receive("subscribe")
        answer_while_blocked(mock_clock, line, acknowledgement(request))
        assert (await call.result()).channel == "balances"


async def test_receipt_received_while_the_loop_was_blocked_confirms(
    mock_clock: MockClock,
) -> None:
    options = {"request_timeout": 0.1, "resolve_timeout": 0.1}
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await line.receive("swap")
        answer_while_blocked(mock_clock, line, SWAPPED)
        assert (await call.result()).order_id == "o1"


async def test_reply_to_a_cancelled_read_counts_after_a_blocked_loop(
    mock_clock: MockClock,
) -> None:
    options: dict[str, Any] = {"reply_grace": 0.1}
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:
        first = start(nursery, client.estimate_swap, "1", "ETH", "USDT")
        await line.receive("estimate")
        first.scope.cancel()
        await first.done.wait()
        answer_while_blocked(mock_clock, line, ESTIMATE)
        second = start(nursery, client.estimate_swap, "2", "ETH", "USDT")
        with trio.fail_after(PATIENCE):
            await line.receive("estimate")
        await line.send(ESTIMATE)
        assert (await second.result()).price == 2
        assert client.is_connected()


async def test_auth_reply_received_while_the_loop_was_blocked_counts(
    mock_clock: MockClock,
) -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        client = broker.client(auth_timeout=0.1)
        opening = start(nursery, client.connect, nursery)
        line = await broker.line()
        await wait_until(lambda: line.auth)
        answer_while_blocked(mock_clock, line, AUTHENTICATED)
        await opening.result()
        assert client.is_connected()
        await client.aclose()


async def test_stream_without_pauses_does_not_delay_deadlines(mock_clock: MockClock) -> None:
    options: dict[str, Any] = {"request_timeout": 0.05}
    async with scripted_client(**options) as (client, line), trio.open_nursery() as nursery:

        async def push() -> None:
            while True:
                await line.send(*[{"ch": "nobody"}] * 50)
                mock_clock.jump(0.05)

        call = start(nursery, client.get_balances)
        await line.receive("balances")
        nursery.start_soon(push)
        mock_clock.jump(0.2)
        with trio.fail_after(PATIENCE), pytest.raises(RequestTimeoutError):
            await call.result()
        nursery.cancel_scope.cancel()
