"""One connection's life: authentication, the writer, the heartbeat, and unexpected messages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import (
    BALANCES,
    PATIENCE,
    Body,
    count_tasks,
    link_of,
    open_scripted,
    order,
    scripted_client,
    start,
)
from tests.transports.raw_server import BINARY, close_frame, frame
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
    Order,
    ProtocolError,
    ReconnectPolicy,
    Subscription,
    UnexpectedMessage,
)
from trio_broker._connection.link import Wakeup
from trio_broker._streams.buffer import Overflow
from trio_broker.sandbox import open_sandbox

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
async def test_refused_authentication_raises_its_class_at_once(
    text: str, kind: type[BrokerError], op: Body, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    async with open_scripted(auth={**op, "error": text}) as broker:
        with pytest.raises(kind, match=text):
            async with broker.client():
                pytest.fail("it connected")
        assert trio.current_time() == began


@pytest.mark.parametrize("data", [{"status": "maybe"}, {}, None])
async def test_answer_to_auth_without_a_status_is_an_error(
    data: Body | None, autojump_clock: MockClock
) -> None:
    async with open_scripted(auth={"op": "auth", "data": data}) as broker:
        with pytest.raises(ProtocolError, match="auth"):
            async with broker.client():
                pytest.fail("it connected")


async def test_unanswered_authentication_ends_after_auth_timeout(autojump_clock: MockClock) -> None:
    async with open_scripted(auth=None) as broker:
        began = trio.current_time()
        with pytest.raises(AuthenticationTimeoutError, match="7 s"):
            async with broker.client(auth_timeout=7):
                pytest.fail("it connected")
        assert 7 <= trio.current_time() - began <= 7.5


async def test_close_during_authentication_loses_the_connection() -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        connecting = start(nursery, broker.client().connect, nursery)
        (await broker.line()).hang_up()
        with pytest.raises(ConnectionLostError):
            await connecting.result()


# --- The heartbeat ---------------------------------------------------------------------------


async def test_silent_peer_is_found_within_the_heartbeat_time(
    autojump_clock: MockClock,
) -> None:
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        began = trio.current_time()
        with pytest.raises(ConnectionLostError, match="10 s after a ping"):
            await client.wait_closed()
        assert trio.current_time() - began == pytest.approx(40)


async def test_silent_peer_is_found_with_the_real_clock() -> None:
    with trio.fail_after(PATIENCE):
        async with (
            open_scripted(pongs=False) as broker,
            broker.client(heartbeat_interval=0.02, heartbeat_timeout=0.02) as client,
        ):
            with pytest.raises(ConnectionLostError, match="after a ping"):
                await client.wait_closed()


async def test_peer_that_answers_pings_is_alive_and_has_a_latency(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line):
        latencies = [client.latency]
        await trio.sleep(305)
        latencies.append(client.latency)
        assert line.pings == 11  # one after `stable_after`, then one every 30 s
        assert latencies == [None, 0.0]
        assert client.is_connected()


async def test_peer_that_sends_data_is_alive_without_pongs(
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
        assert line.pings == 3  # no more pings, or they would pile up
        assert count_tasks() == tasks + 3  # three pings
        with pytest.raises(ConnectionLostError, match="after a ping"):
            await client.wait_closed()


@pytest.mark.parametrize("repetition", range(8))
async def test_data_received_while_stopped_is_read_first(
    repetition: int, mock_clock: MockClock
) -> None:
    # Trio runs tasks that wake together in any order.
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        line = await broker.line()
        await wait_all_tasks_blocked(0.001)
        mock_clock.jump(30)
        while not line.pings:
            await wait_all_tasks_blocked(0.001)
        # The peer sends, but the deadline passes before the reader runs.
        assert isinstance(line.stream, trio.SocketStream)
        os.write(line.stream.socket.fileno(), frame('{"ch":"nobody"}'))
        mock_clock.jump(10)
        await wait_all_tasks_blocked(0.001)
        assert client.is_connected()


# --- The reader ------------------------------------------------------------------------------


async def test_reader_does_not_outrun_a_consumer_that_keeps_up() -> None:
    count = 10_000
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
async def test_one_read_does_not_outrun_a_waiting_consumer(overflow: Overflow) -> None:
    count = 320
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        subscribe = partial(
            client.subscribe_order, "o1", snapshot=False, buffer_size=16, overflow=overflow
        )
        subscribing = start(nursery, subscribe)
        await line.acknowledge()
        updates = await subscribing.result()
        consuming = start(nursery, partial(receive_count, updates, count))
        await wait_all_tasks_blocked()
        await line.send(*({"ch": "orders:o1", "data": order(at=at)} for at in range(1, count + 1)))
        with trio.fail_after(PATIENCE):
            assert await consuming.result() == count
        assert updates.dropped == 0


@pytest.mark.parametrize("buffer_size", [16, 17, 31, 33, 64, 100, 1024])
@pytest.mark.parametrize("streams", [1, 5])
async def test_bursts_overflow_no_buffer_of_a_consumer_that_keeps_up(
    buffer_size: int, streams: int
) -> None:
    count = 2000
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        consuming = []
        for number in range(streams):
            subscribe = partial(
                client.subscribe_order, f"o{number}", snapshot=False, buffer_size=buffer_size
            )
            subscribing = start(nursery, subscribe)
            await line.acknowledge()
            updates = await subscribing.result()
            consuming.append((updates, start(nursery, partial(receive_count, updates, count))))
        await wait_all_tasks_blocked()
        for begin in range(1, count + 1, 250):
            await line.send(
                *(
                    {"ch": f"orders:o{number}", "data": {**order(at=at), "orderId": f"o{number}"}}
                    for at in range(begin, begin + 250)
                    for number in range(streams)
                )
            )
        with trio.fail_after(PATIENCE):
            for updates, taking in consuming:
                assert await taking.result() == count
                assert updates.dropped == 0


async def test_other_tasks_run_at_least_every_64_messages() -> None:
    count = 2000
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        subscribe = partial(client.subscribe_order, "o1", snapshot=False, buffer_size=count)
        subscribing = start(nursery, subscribe)
        await line.acknowledge()
        await subscribing.result()
        seen = [client.statistics().messages_received]

        async def watch() -> None:
            while seen[-1] < seen[0] + count:
                seen.append(client.statistics().messages_received)
                await trio.lowlevel.checkpoint()

        watching = start(nursery, watch)
        await line.send(*({"ch": "orders:o1", "data": order(at=at)} for at in range(1, count + 1)))
        with trio.fail_after(PATIENCE):
            await watching.result()
    steps = [later - earlier for earlier, later in pairwise(seen)]
    assert max(steps) <= 64


async def receive_count(updates: Subscription[Order], count: int) -> int:
    taken = 0
    async for _ in updates:
        taken += 1
        if taken == count:
            break
    return taken


async def test_messages_received_before_a_loss_are_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More messages arrive than one step processes, and a write fails meanwhile."""
    pushes = [{"ch": "orders:o1", "data": order(at=at)} for at in range(1, 1000)]
    async with scripted_client() as (client, line):
        transport = link_of(client).transport
        receive, taken = transport.receive, transport.taken
        came: list[str | bytes] = []
        counts: list[int] = []

        async def receiving() -> list[str | bytes]:
            came.extend(messages := await receive())
            return messages

        def taking() -> list[str | bytes]:
            came.extend(messages := taken())
            return messages

        async def failing(_: Sequence[str]) -> None:
            await trio.lowlevel.checkpoint()
            counts.append(client.statistics().messages_received - before)
            raise ConnectionLostError("a write has failed")

        monkeypatch.setattr(transport, "receive", receiving)
        monkeypatch.setattr(transport, "taken", taking)
        monkeypatch.setattr(transport, "send", failing)
        with client.messages() as raw:
            await line.send({"ch": "nobody"})  # the reader is already waiting
            await raw.receive()
            before = client.statistics().messages_received
            await line.send(*pushes)
            await raw.receive()
        with pytest.raises(ConnectionLostError, match="a write has failed"):
            await client.get_balances()
        assert 0 < counts[0] < len(came)
        assert client.statistics().messages_received - before == len(came)


async def test_finished_write_after_its_deadline_is_no_loss(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was stopped meanwhile."""
    async with (
        scripted_client(write_timeout=5) as (client, line),
        trio.open_nursery() as nursery,
    ):
        transport = link_of(client).transport
        send = transport.send

        async def sending(messages: Sequence[str]) -> None:
            await send(messages)
            mock_clock.jump(6)
            await trio.lowlevel.cancel_shielded_checkpoint()

        monkeypatch.setattr(transport, "send", sending)
        asking = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        with trio.fail_after(PATIENCE):
            await asking.result()
        monkeypatch.setattr(transport, "send", send)
        again = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        with trio.fail_after(PATIENCE):
            await again.result()


# --- The writer ------------------------------------------------------------------------------


async def test_writer_finds_a_peer_that_stops_reading(
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


async def test_thousands_of_messages_are_sent_in_writes_of_a_hundred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write has so few messages that a slow peer can read them before its deadline."""
    limits = Limits(messages_per_second=100_000, max_subscriptions=1000)
    async with scripted_client(limits=limits) as (client, line), trio.open_nursery() as nursery:
        transport = link_of(client).transport
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


async def test_close_does_not_wait_for_a_peer_that_stopped_reading(
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


async def test_message_being_sent_is_completed_before_the_close_frame() -> None:
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


async def test_ring_while_no_task_waits_is_not_lost() -> None:
    wakeup = Wakeup()
    wakeup.wake()
    wakeup.wake()
    await wakeup.wait()
    with trio.move_on_after(0) as scope:
        await wakeup.wait()
    assert scope.cancelled_caught


# --- Unexpected messages ---------------------------------------------------------------------


async def test_unexpected_messages_are_reported_and_the_connection_stays_open() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        with client.events() as events:
            await line.send_bytes(frame(b"\x00\xff", BINARY))
            for text in ("{", '{"op":7}', '{"data":1}', '{"ch":"nobody"}', "[" * 100_000):
                await line.send(text)
            unexpected = [await events.receive() for _ in range(6)]
            assert all(isinstance(event, UnexpectedMessage) for event in unexpected)
            first, second = unexpected[0], unexpected[1]
            assert isinstance(first, UnexpectedMessage)
            assert isinstance(second, UnexpectedMessage)
            assert (first.reason, first.raw, second.raw) == ("it is binary", None, "{")
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        await call.result()
        assert client.statistics().unexpected_messages == 6


async def test_fifth_malformed_message_in_a_row_ends_the_connection() -> None:
    async with scripted_client() as (client, line):
        await line.send("{", "{", "{", "{", {"op": "something"}, "{", "{", "{", "{")
        await wait_all_tasks_blocked(0.01)
        assert client.is_connected()
        await line.send("{")
        with trio.fail_after(PATIENCE), pytest.raises(ConnectionLostError, match="5 malformed"):
            await client.wait_closed()


async def test_not_authenticated_error_ends_the_connection() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send({"op": "balances", "error": "Not authenticated"})
        with pytest.raises(NotAuthenticatedError):
            await call.result()
        with pytest.raises(ConnectionLostError, match="Not authenticated"):
            await client.wait_closed()


@pytest.mark.parametrize(
    ("data", "code", "is_local"),
    [
        (close_frame(1009, "too much"), 1009, False),
        (close_frame(1012), 1012, False),
        (frame("x" * 1001), 1009, True),
        (frame(b"\xff"), 1007, True),
        (frame("", 0x3), 1002, True),
    ],
)
async def test_lost_connection_reports_which_side_closed(
    data: bytes, code: int, *, is_local: bool
) -> None:
    limits = Limits(max_receive_size=1000)
    async with scripted_client(limits=limits) as (client, line):
        await line.send_bytes(data)
        with trio.fail_after(PATIENCE), pytest.raises(ConnectionLostError) as caught:
            await client.wait_closed()
    assert (caught.value.code, caught.value.is_local) == (code, is_local)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), RuntimeError("odd")])
@pytest.mark.parametrize(
    "where",
    [
        "_protocol.codec.decode_message",
        "_protocol.codec.channel_frame",
        "_connection.connection.new_nonce",
    ],
)
async def test_unexpected_error_of_a_connection_is_a_loss_that_is_retried(
    where: str,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=None)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        patched = pytest.MonkeyPatch()

        def failing(*arguments: Any) -> Any:
            patched.undo()
            raise error

        patched.setattr(f"trio_broker.{where}", failing)
        async with trio.open_nursery() as nursery:
            swap = start(nursery, client.swap_and_wait, "1", "ETH", "USDT")
            if where == "_protocol.codec.channel_frame":
                assert (await swap.result()).is_final
            else:
                with suppress(BrokerError):
                    assert (await swap.result()).is_final
        await client.wait_connected()
        assert await client.get_balances()
        assert len(sandbox.connections) == 2
        assert not client.unresolved_swaps()
    assert "internal error" in caplog.text


async def test_unexpected_error_of_the_heartbeat_is_a_loss_that_is_retried(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    patched = pytest.MonkeyPatch()

    def failing(_: Any) -> Any:
        patched.undo()
        raise MemoryError

    patched.setattr("trio_broker._connection.heartbeat.Heartbeat.run", failing)
    policy = ReconnectPolicy(max_attempts=None)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        await trio.sleep(5)
        assert client.is_connected()
        assert await client.get_balances()
        assert len(sandbox.connections) == 2
    assert "internal error" in caplog.text
