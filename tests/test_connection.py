"""One connection's life: authentication, the writer, the heartbeat, and messages that are odd."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.rawserver import BINARY, frame
from tests.scripted import (
    AUTHENTICATED,
    BALANCES,
    PATIENCE,
    Body,
    count_tasks,
    open_scripted,
    order,
    scripted_client,
    start,
)
from trio_broker import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    ClockSkewError,
    ConnectionLostError,
    InvalidApiKeyError,
    InvalidSignatureError,
    Limits,
    NonceReusedError,
    NotAuthenticatedError,
    OddMessage,
    Order,
    ProtocolError,
    Subscription,
)
from trio_broker.connection import Bell
from trio_broker.subscription import Overflow

pytestmark = pytest.mark.usefixtures("each_transport")

# --- Authentication --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Invalid signature", InvalidSignatureError),
        ("Invalid API key", InvalidApiKeyError),
        ("Request timestamp outside allowed window", ClockSkewError),
        ("Nonce has already been used or is expired", NonceReusedError),
        ("Not authenticated", NotAuthenticatedError),
        ("Go away", AuthenticationError),
    ],
)
@pytest.mark.parametrize("op", [{"op": "auth"}, {}], ids=["named", "bare"])
async def test_refused_it_raises_the_right_class_at_once(
    text: str, kind: type[BrokerError], op: Body, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    async with open_scripted(auth={**op, "error": text}) as broker:
        with pytest.raises(kind, match=text):
            async with broker.client():
                pytest.fail("it connected")
        assert trio.current_time() == began


@pytest.mark.parametrize("data", [{"status": "maybe"}, {}, None])
async def test_an_answer_to_auth_that_says_nothing_is_no_authentication(
    data: Body | None, autojump_clock: MockClock
) -> None:
    async with open_scripted(auth={"op": "auth", "data": data}) as broker:
        with pytest.raises(ProtocolError, match="auth"):
            async with broker.client():
                pytest.fail("it connected")


async def test_never_answered_it_ends_after_auth_timeout(autojump_clock: MockClock) -> None:
    async with open_scripted(auth=None) as broker:
        began = trio.current_time()
        with pytest.raises(AuthenticationTimeoutError, match="7 s"):
            async with broker.client(auth_timeout=7):
                pytest.fail("it connected")
        assert 7 <= trio.current_time() - began <= 7.5


async def test_hung_up_on_during_authentication_the_connection_is_lost() -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        connecting = start(nursery, broker.client().connect, nursery)
        (await broker.line()).hang_up()
        with pytest.raises(ConnectionLostError):
            await connecting.result()


# --- The heartbeat ---------------------------------------------------------------------------


async def test_a_silent_peer_is_found_within_the_heartbeats_time(
    autojump_clock: MockClock,
) -> None:
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        began = trio.current_time()
        with pytest.raises(ConnectionLostError, match="10 s after a ping"):
            await client.wait_closed()
        assert trio.current_time() - began == pytest.approx(40)


async def test_a_silent_peer_is_found_on_the_real_clock_too() -> None:
    with trio.fail_after(PATIENCE):
        async with (
            open_scripted(pongs=False) as broker,
            broker.client(heartbeat_interval=0.02, heartbeat_timeout=0.02) as client,
        ):
            with pytest.raises(ConnectionLostError, match="after a ping"):
                await client.wait_closed()


async def test_a_peer_that_answers_pings_lives_and_its_latency_is_known(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line):
        latencies = [client.latency]
        await trio.sleep(305)
        latencies.append(client.latency)
        assert line.pings == 10
        assert latencies == [None, 0.0]
        assert client.is_connected()


async def test_a_peer_that_talks_lives_though_it_answers_no_ping(
    autojump_clock: MockClock,
) -> None:
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        line = await broker.line()
        await trio.sleep(5)
        tasks = count_tasks()
        for _ in range(100):
            await line.send({"ch": "nobody"})
            await trio.sleep(8)
        assert client.is_connected()
        assert client.latency is None
        assert line.pings == 3  # it is asked no more, or the pings would pile up
        assert count_tasks() == tasks + 3
        with pytest.raises(ConnectionLostError, match="after a ping"):
            await client.wait_closed()


@pytest.mark.parametrize("repetition", range(8))
async def test_what_came_while_the_process_was_stopped_is_read_before_a_ping_decides(
    repetition: int, mock_clock: MockClock
) -> None:
    # Trio runs tasks that wake together in any order.
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        line = await broker.line()
        await wait_all_tasks_blocked(0.001)
        mock_clock.jump(30)
        while not line.pings:
            await wait_all_tasks_blocked(0.001)
        # The peer speaks, and before anybody has read it the time is up.
        assert isinstance(line.stream, trio.SocketStream)
        os.write(line.stream.socket.fileno(), frame('{"ch":"nobody"}'))
        mock_clock.jump(10)
        await wait_all_tasks_blocked(0.001)
        assert client.is_connected()


# --- The reader ------------------------------------------------------------------------------


async def test_a_consumer_that_keeps_up_is_not_outrun_by_the_reader() -> None:
    count = 20_000
    pushes = [{"ch": "orders:o1", "data": order(at=at)} for at in range(1, count + 1)]
    with trio.fail_after(PATIENCE):
        async with scripted_client() as (client, line), trio.open_nursery() as nursery:
            subscribing = start(nursery, partial(client.subscribe_order, "o1", snapshot=False))
            await line.acknowledge()
            updates = await subscribing.result()
            nursery.start_soon(partial(line.send, *pushes))
            received = 0
            async for message in updates:
                assert message.gap is None
                received += 1
                if received == count:
                    break
            assert updates.dropped == 0


@pytest.mark.parametrize("overflow", ["drop_oldest", "error"])
async def test_a_consumer_that_waits_is_not_outrun_by_one_read(overflow: Overflow) -> None:
    count = 320
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        subscribe = partial(
            client.subscribe_order, "o1", snapshot=False, buffer_size=16, overflow=overflow
        )
        subscribing = start(nursery, subscribe)
        await line.acknowledge()
        updates = await subscribing.result()
        consuming = start(nursery, partial(take_until, updates, count))
        await wait_all_tasks_blocked()
        await line.send(*({"ch": "orders:o1", "data": order(at=at)} for at in range(1, count + 1)))
        with trio.fail_after(PATIENCE):
            assert await consuming.result() == count
        assert updates.dropped == 0


async def take_until(updates: Subscription[Order], count: int) -> int:
    taken = 0
    async for _ in updates:
        taken += 1
        if taken == count:
            break
    return taken


async def test_what_came_before_a_loss_is_believed() -> None:
    """More came together than is delivered at a time, and meanwhile a write fails."""
    pushes = [{"ch": "orders:o1", "data": order(at=at)} for at in range(1, 100)]
    async with scripted_client() as (client, line):
        connection = client._supervisor._connection
        assert connection is not None
        delivered: list[str | bytes] = []
        pending: list[str | bytes] = []

        def losing(messages: Sequence[str | bytes]) -> None:
            delivered.extend(messages)
            if connection._arrived and not pending:
                pending.extend(connection._arrived)
                connection.lose(ConnectionLostError("a write has failed"))

        connection._on_arrival = losing
        await line.send(*pushes)
        with pytest.raises(ConnectionLostError, match="a write has failed"):
            await client.wait_closed()
    assert pending
    assert set(pending) <= set(delivered)


async def test_a_write_that_was_done_when_its_deadline_passed_is_no_loss(
    mock_clock: MockClock,
) -> None:
    """This process stood still meanwhile."""
    async with (
        scripted_client(write_timeout=5) as (client, line),
        trio.open_nursery() as nursery,
    ):
        connection = client._supervisor._connection
        assert connection is not None
        send = connection._transport.send

        async def sending(messages: Sequence[str]) -> None:
            await send(messages)
            mock_clock.jump(6)
            await trio.lowlevel.cancel_shielded_checkpoint()

        connection._transport.send = sending  # type: ignore[method-assign]  # as it may happen
        asking = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        with trio.fail_after(PATIENCE):
            await asking.result()
        connection._transport.send = send  # type: ignore[method-assign]
        again = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        with trio.fail_after(PATIENCE):
            await again.result()


# --- The writer ------------------------------------------------------------------------------


async def test_a_peer_that_stops_reading_is_found_by_the_writer(
    autojump_clock: MockClock,
) -> None:
    size = 16_000_000
    limits = Limits(max_message_size=2 * size)
    async with (
        open_scripted(reads=False) as broker,
        broker.client(limits=limits, write_timeout=7) as client,
    ):
        began = trio.current_time()
        with pytest.raises(ConnectionLostError, match="hasn't read for 7 s"):
            await client.get_order_status("x" * size)
        assert trio.current_time() - began == pytest.approx(7)
        with pytest.raises(ConnectionLostError, match="hasn't read"):
            await client.wait_closed()


async def test_thousands_of_messages_leave_in_writes_of_a_hundred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write's deadline is for what a peer can read meanwhile."""
    limits = Limits(messages_per_second=100_000, max_subscriptions=1000)
    async with scripted_client(limits=limits) as (client, line), trio.open_nursery() as nursery:
        transport = client._supervisor._connection._transport  # type: ignore[union-attr]  # it is open
        send, sizes = transport.send, []

        async def noting(messages: Sequence[str]) -> None:
            sizes.append(len(messages))
            await send(messages)

        monkeypatch.setattr(transport, "send", noting)
        for number in range(1000):
            nursery.start_soon(partial(client.subscribe, f"orders:{number}", snapshot=False))
        for _ in range(1000):
            await line.acknowledge()
        assert sum(sizes) == 1000
        assert max(sizes) == 100


async def test_closing_does_not_wait_for_a_peer_that_stopped_reading(
    autojump_clock: MockClock,
) -> None:
    size = 16_000_000
    limits = Limits(max_message_size=2 * size)
    async with open_scripted(reads=False) as broker, trio.open_nursery() as nursery:
        client = broker.client(limits=limits, write_timeout=100, request_timeout=100)
        await client.connect(nursery)
        call = start(nursery, client.get_order_status, "x" * size)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await client.aclose()
        assert trio.current_time() - began == pytest.approx(5)
        with pytest.raises(ConnectionLostError, match="closed"):
            await call.result()


async def test_what_is_being_sent_is_sent_whole_before_the_goodbye() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        calls = [start(nursery, client.get_order_status, f"o{n}") for n in range(10)]
        await line.receive("order_status")
        await client.aclose()
        await line.gone.wait()
        assert line.goodbye is not None
        assert line.goodbye[:2] == (1000).to_bytes(2)
        for call in calls:
            with pytest.raises(BrokerError):
                await call.result()


async def test_a_bell_that_rings_while_nobody_waits_is_heard_later() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    await bell.wait()
    with trio.move_on_after(0) as scope:
        await bell.wait()
    assert scope.cancelled_caught


# --- Odd messages ----------------------------------------------------------------------------


async def test_odd_messages_are_told_and_the_connection_lives() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        with client.events() as events:
            await line.send_bytes(frame(b"\x00\xff", BINARY))
            for text in ("{", '{"op":7}', '{"data":1}', '{"ch":"nobody"}', "[" * 100_000):
                await line.send(text)
            odd = [await events.receive() for _ in range(6)]
            assert all(isinstance(event, OddMessage) for event in odd)
            first, second = odd[0], odd[1]
            assert isinstance(first, OddMessage)
            assert isinstance(second, OddMessage)
            assert (first.reason, first.raw, second.raw) == ("it is binary", None, "{")
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        await call.result()
        assert client.statistics().odd_messages == 6


async def test_the_fifth_malformed_message_in_a_row_ends_the_connection() -> None:
    async with scripted_client() as (client, line):
        await line.send("{", "{", "{", "{", AUTHENTICATED, "{", "{", "{", "{")
        await wait_all_tasks_blocked(0.01)
        assert client.is_connected()
        await line.send("{")
        with trio.fail_after(PATIENCE), pytest.raises(ConnectionLostError, match="5 malformed"):
            await client.wait_closed()


async def test_not_authenticated_in_the_middle_ends_the_connection() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send({"op": "balances", "error": "Not authenticated"})
        with pytest.raises(NotAuthenticatedError):
            await call.result()
        with pytest.raises(ConnectionLostError, match="Not authenticated"):
            await client.wait_closed()
