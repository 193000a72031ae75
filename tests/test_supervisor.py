"""A client's life around its connection: opening, failing, closing, and what users see of it."""

from __future__ import annotations

import signal
import time as real_time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.rawserver import serve_raw, wait_gone
from tests.scripted import NEVER, PATIENCE, count_tasks, open_scripted, scripted_client, start
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
    NotConnectedError,
    NotSentError,
    ReconnectFailedError,
    ReconnectPolicy,
    Restored,
    SubscriptionBrokenError,
    heartbeat,
)
from trio_broker.sandbox import open_sandbox
from trio_broker.supervisor import Supervisor

pytestmark = pytest.mark.usefixtures("each_transport")

REFUSED = {"op": "auth", "error": "Invalid signature"}


# --- Failing for good ------------------------------------------------------------------------


async def test_a_lost_connection_breaks_streams_and_calls_and_not_the_block() -> None:
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


async def test_a_failure_is_raised_afresh_each_time() -> None:
    async with scripted_client() as (client, line):
        line.hang_up()
        errors = []
        for _ in range(3):
            with pytest.raises(ConnectionLostError) as caught:
                await client.wait_closed()
            errors.append(caught.value)
        assert len({id(error) for error in errors}) == 3


async def test_a_fault_of_the_library_itself_fails_the_client_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def clock() -> float:
        raise ZeroDivisionError

    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client(clock=clock)
        with pytest.raises(BrokerError, match="internal error") as caught:
            await client.connect(nursery)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert client.state is ConnectionState.FAILED
    assert "internal error" in caplog.text
    assert "couldn't be told" in caplog.text


# --- The block's own exceptions --------------------------------------------------------------


async def test_the_blocks_own_exception_comes_through_as_it_was_raised() -> None:
    async with open_scripted() as broker:
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            async with broker.client() as client:
                raise error
        assert caught.value is error
        assert error.__cause__ is error.__context__ is None
        assert client.state is ConnectionState.CLOSED
        assert broker.lines[0].goodbye is not None


async def test_the_blocks_own_group_stays_whole() -> None:
    async with open_scripted() as broker:
        group = ExceptionGroup("mine", [ValueError("one"), KeyError("two")])
        with pytest.RaisesGroup(ValueError, KeyError) as caught:
            async with broker.client():
                raise group
        assert caught.value is group


@pytest.mark.parametrize("already_over", [False, True])
async def test_the_blocks_own_exception_survives_a_cancellation(*, already_over: bool) -> None:
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


async def test_the_blocks_own_group_survives_a_cancellation() -> None:
    async with open_scripted() as broker:

        async def block() -> None:
            with trio.CancelScope() as scope:
                async with broker.client(), trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    scope.cancel()
                    raise ValueError("mine")

        with pytest.RaisesGroup(ValueError):
            await block()


async def test_the_blocks_own_exception_survives_a_lost_connection() -> None:
    async with open_scripted() as broker:

        async def block() -> None:
            async with broker.client() as client:
                (await broker.line()).hang_up()
                with pytest.raises(ConnectionLostError):
                    await client.wait_closed()
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await block()


async def test_a_cancelled_block_closes_within_half_a_second(autojump_clock: MockClock) -> None:
    async with open_scripted(reads=False) as broker:
        with trio.CancelScope() as scope:
            async with broker.client() as client:
                began = trio.current_time()
                scope.cancel()
                await trio.sleep_forever()
        assert trio.current_time() - began <= 0.5
        assert scope.cancelled_caught
        assert client.state is ConnectionState.CLOSED


# --- Under a nursery of the user's -----------------------------------------------------------


async def test_the_first_failure_is_raised_bare_and_leaves_no_task() -> None:
    async with open_scripted(auth=REFUSED) as broker, trio.open_nursery() as nursery:
        client = broker.client()
        with pytest.raises(InvalidSignatureError):
            await client.connect(nursery)
        assert not nursery.child_tasks
        assert client.state is ConnectionState.FAILED


async def test_nobody_listening_is_a_failure_to_connect() -> None:
    client = BrokerWSClient("key", "secret", "ws://127.0.0.1:9/ws", connect_timeout=PATIENCE)
    events = client.events()
    with pytest.raises(ConnectFailedError):
        async with client:
            pytest.fail("it connected")
    assert [type(event) async for event in events] == [Disconnected, GaveUp]


async def test_a_later_failure_is_not_raised_into_the_nursery() -> None:
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        await client.connect(nursery)
        (await broker.line()).hang_up()
        with pytest.raises(ConnectionLostError):
            await client.wait_closed()
        await trio.lowlevel.checkpoint()
        assert not nursery.child_tasks


@pytest.mark.parametrize("answers", [True, False])
async def test_a_cancelled_nursery_closes_the_client_within_half_a_second(
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


async def test_a_cancelled_connect_leaves_no_task(autojump_clock: MockClock) -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        client = broker.client()
        with trio.move_on_after(3) as scope:
            await client.connect(nursery)
        assert scope.cancelled_caught
        assert not nursery.child_tasks
        assert client.state is ConnectionState.CLOSED


async def test_a_nursery_that_is_cancelled_already_connects_nobody() -> None:
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


async def test_used_twice_is_an_error_of_the_program() -> None:
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


async def test_a_closed_nursery_leaves_the_client_unused() -> None:
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
async def test_closed_it_says_goodbye_and_streams_end(name: str) -> None:
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


async def test_closed_by_many_at_a_time_it_closes_once() -> None:
    async with scripted_client() as (client, _):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(client.aclose)
        assert client.state is ConnectionState.CLOSED


async def test_while_closing_calls_fail_at_once(autojump_clock: MockClock) -> None:
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


async def test_a_peer_that_does_not_answer_the_goodbye_is_left_after_close_timeout(
    autojump_clock: MockClock,
) -> None:
    async with open_scripted(reads=False) as broker, broker.client(close_timeout=3) as client:
        began = trio.current_time()
        await client.aclose()
        assert trio.current_time() - began == pytest.approx(3)


async def test_a_cancelled_close_closes_within_half_a_second(autojump_clock: MockClock) -> None:
    async with open_scripted(reads=False) as broker, broker.client() as client:
        began = trio.current_time()
        with trio.move_on_after(1) as scope:
            await client.aclose()
        assert scope.cancelled_caught
        assert trio.current_time() - began <= 1.5
        assert client.state is ConnectionState.CLOSED


async def test_closed_before_it_was_used_it_cannot_be_used() -> None:
    async with open_scripted() as broker:
        client = broker.client()
        events = client.events()
        await client.aclose()
        assert [type(event) async for event in events] == [Closed]
        await client.wait_closed()
        with pytest.raises(RuntimeError, match="used once"):
            async with client:
                pytest.fail("it connected")


async def test_closed_while_it_connects_connecting_fails(autojump_clock: MockClock) -> None:
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


async def test_closed_during_the_handshake_it_does_not_wait_for_the_broker(
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


async def test_closed_at_the_very_moment_of_opening_it_stays_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states: list[ConnectionState] = []

    @asynccontextmanager
    async def opening(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async with open_transport(*arguments, **options) as transport:
            client._supervisor.request_close()
            yield transport

    become = Supervisor._become

    def noting(self: Supervisor, state: ConnectionState) -> None:
        states.append(state)
        become(self, state)

    monkeypatch.setattr(Supervisor, "_become", noting)
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        open_transport = client._supervisor._open_transport
        monkeypatch.setattr(client._supervisor, "_open_transport", opening)
        with pytest.raises(ClientClosedError):
            await client.connect(nursery)
    assert states == [ConnectionState.CONNECTING, ConnectionState.CLOSING, ConnectionState.CLOSED]


async def test_a_loss_that_a_close_overtook_is_a_close() -> None:
    async with scripted_client() as (client, line):
        line.hang_up()
        client._supervisor._connection.lose(ConnectionLostError("gone"))  # type: ignore[union-attr] # it is open
        await client.aclose()
        assert client.state is ConnectionState.CLOSED
        await client.wait_closed()


async def test_what_the_broker_says_after_a_close_changes_nothing() -> None:
    async with scripted_client() as (client, _):
        await client.aclose()
        client._supervisor._authenticated()
        client._supervisor._replace(ConnectionLostError("gone"))
        assert client.state is ConnectionState.CLOSED
        await client.wait_closed()


# --- What is seen of it ----------------------------------------------------------------------


async def test_the_states_and_events_of_a_life() -> None:
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


async def test_late_alarms_do_not_end_the_client(autojump_clock: MockClock) -> None:
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

    # With a child, the nursery around it is the user's own.
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
    assert "SwapUnresolved 'c1'" in caplog.text


async def test_nothing_runs_any_more_after_the_end() -> None:
    async with open_scripted() as broker:
        await wait_all_tasks_blocked()
        tasks = count_tasks()
        async with broker.client():
            await broker.line()
        await wait_all_tasks_blocked(0.01)
        assert count_tasks() == tasks


def test_a_secret_in_a_url_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerWSClient("key", "secret", "wss://user:hush@broker.example/ws")
    assert "hush" not in str(caught.value)


# --- Connection after connection -------------------------------------------------------------


async def test_a_lost_connection_is_replaced_and_the_stream_goes_on(
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


async def test_the_states_of_an_outage() -> None:
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


async def test_tries_are_spent_and_the_last_cause_is_told(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        events = client.events()
        subscription = await client.subscribe_balances(snapshot=False)
        began = trio.current_time()
        sandbox.faults.kill()
        with pytest.raises(ReconnectFailedError, match="after 5 tries") as caught:
            await client.wait_closed()
        assert caught.value.attempts == 5
        assert isinstance(caught.value.__cause__, ConnectFailedError)
        assert 15.5 <= trio.current_time() - began <= 31
        with pytest.raises(SubscriptionBrokenError) as broken:
            await subscription.receive()
        assert isinstance(broken.value.__cause__, ReconnectFailedError)
        told = [event async for event in events]
        assert [type(event) for event in told] == [Disconnected] * 6 + [GaveUp]
        await sandbox.faults.revive()


async def test_the_documented_attributes_work_while_running(autojump_clock: MockClock) -> None:
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


async def test_the_first_connection_is_retried_where_that_is_wanted(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.refuse_connections(503, times=2)
        policy = ReconnectPolicy(retry_first=True)
        async with sandbox.client(reconnect=policy) as client:
            assert client.is_connected()
            assert await client.get_balances()


async def test_closed_while_it_waits_to_retry_it_closes_at_once(autojump_clock: MockClock) -> None:
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


async def test_closed_at_the_very_moment_of_the_next_try_it_stays_closed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        real_sleep = trio.sleep

        async def sleep(seconds: float) -> None:
            await real_sleep(seconds)
            if client.state is ConnectionState.WAITING:
                client._supervisor.request_close()

        sandbox.drop_connections()
        monkeypatch.setattr(trio, "sleep", sleep)
        await client.wait_closed()
        assert client.state is ConnectionState.CLOSED
        assert len(sandbox.connections) == 1


async def test_a_peer_that_goes_while_a_ping_is_sent_is_lost_once(
    autojump_clock: MockClock,
) -> None:
    async with open_scripted() as broker, broker.client() as client:
        line = await broker.line()
        transport = client._supervisor._connection._transport  # type: ignore[union-attr]  # it is open

        async def ping() -> None:
            await trio.lowlevel.checkpoint()
            raise ConnectionLostError("gone while it was pinged")

        transport.ping = ping  # type: ignore[method-assign]  # what a transport may do
        with pytest.raises(ConnectionLostError, match="gone while it was pinged"):
            await client.wait_closed()
        assert not line.pings


async def test_in_a_forked_child_every_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_scripted() as broker, broker.client() as client:
        with monkeypatch.context() as forked:
            forked.setattr("os.getpid", lambda: -1)
            for call in (
                client.get_balances,
                client.aclose,
                client.wait_closed,
                lambda: client.do_swap("1", "ETH", "USDT"),
                lambda: client.subscribe("balances"),
                lambda: client.unsubscribe("balances"),
            ):
                with pytest.raises(NotConnectedError, match="forked"):
                    await call()
        assert client.is_connected()


async def test_the_log_tells_the_same_story(
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
    for part in ("next try in", "waiting -> connecting", "restoring -> connected"):
        assert part in caplog.text
    assert "ChannelRefused 'balances': the broker refused subscribe" in caplog.text
    assert "Restored: none" in caplog.text


async def test_what_was_slept_through_is_part_of_the_gap(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asleep = 0.0
    monkeypatch.setattr(heartbeat, "time_asleep", lambda: asleep)
    async with open_sandbox(clock=lambda: 1e9 + trio.current_time() + asleep) as sandbox:
        async with sandbox.client() as client, await client.subscribe_balances() as updates:
            heard = (await updates.receive()).received_at
            await trio.sleep(5)
            asleep = 3600.0
            message = await updates.receive()
        assert message.gap is not None
        assert abs((message.gap.since - heard).total_seconds()) < 1
        assert (message.received_at - message.gap.since).total_seconds() > 3600


async def test_a_broker_that_goes_mute_whenever_it_is_asked_uses_up_the_tries(
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


async def test_after_an_outage_it_is_told_that_there_was_nothing_to_restore(
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


@pytest.mark.parametrize("own_nursery", [True, False])
async def test_a_fault_of_the_library_that_meets_a_cancellation_stays_within(
    *, own_nursery: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scope = trio.CancelScope()

    def clock() -> float:
        if armed:
            scope.cancel()
            raise ZeroDivisionError
        return real_time.time()

    armed = False
    async with open_sandbox() as sandbox:
        client = sandbox.client(clock=clock)
        with scope:
            if own_nursery:
                async with client:
                    armed = True
                    sandbox.push('{"ch":"balances","data":7}')
                    await trio.sleep_forever()
            else:
                async with trio.open_nursery() as nursery:
                    await client.connect(nursery)
                    armed = True
                    sandbox.push('{"ch":"balances","data":7}')
                    await trio.sleep_forever()
        assert scope.cancelled_caught
        # A block that is left closes its client: then it was to end anyway.
        ends = ConnectionState.CLOSED if own_nursery else ConnectionState.FAILED
        assert client.state is ends
    assert "ZeroDivisionError" in caplog.text


async def test_the_log_is_one_line_an_event_and_holds_no_key(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        events = client.events()
        sandbox.faults.close(1011, f"no {sandbox.api_key}\nERROR forged")
        await events.receive()
        (record,) = [one for one in caplog.records if "1011" in one.getMessage()]
        assert "\n" not in record.getMessage()
        assert sandbox.api_key not in record.getMessage()


async def test_what_comes_after_a_close_was_requested_is_not_told_as_odd() -> None:
    async with open_scripted() as broker, broker.client() as client:
        line = await broker.line()
        events = client.events()
        client._supervisor.request_close()
        await line.send({"ch": "balances", "data": []})
        await client.aclose()
        assert [type(event) async for event in events] == [Closed]
