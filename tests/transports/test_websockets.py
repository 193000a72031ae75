"""Only for websockets: several messages per read, and no task of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
from types import ModuleType

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked
from websockets.client import ClientProtocol

from tests.transports.raw_server import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    accept_websocket,
    close_frame,
    frame,
    receive_frame,
    send,
    serve_raw,
    wait_gone,
)
from tests.transports.test_both import (
    PATIENCE,
    CancelAtStep,
    connected,
    count_tasks,
    echo,
    loss,
    opening,
    receiving_in_background,
    sending,
    take,
)
from trio_broker import BrokerWSClient, ConfigurationError
from trio_broker.exceptions import ConnectionLostError
from trio_broker.transports import Transport


@pytest.fixture(autouse=True)
def its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.transports.test_both.library", "websockets")


async def test_all_messages_of_a_read_are_received_together() -> None:
    texts = [str(number) for number in range(100)]
    async with connected(sending(b"".join(map(frame, texts)))) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == texts


async def test_messages_sent_with_the_handshake_are_received_at_a_checkpoint() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream, and_send=frame("early"))
        await wait_gone(stream)

    async with serve_raw(handler) as port, opening(port) as transport:
        with assert_checkpoints():
            assert await transport.receive() == ["early"]


async def test_transport_has_no_task_of_its_own() -> None:
    async with serve_raw(wait_for_ever) as port:
        await wait_all_tasks_blocked()
        before = count_tasks()
        async with opening(port):
            await wait_all_tasks_blocked()
            assert count_tasks() == before + 1  # the server's handler


async def wait_for_ever(stream: trio.abc.Stream) -> None:
    await accept_websocket(stream)
    await wait_gone(stream)


async def test_messages_sent_together_take_one_write() -> None:
    chunks: list[bytes] = []

    async def handler(stream: trio.abc.Stream) -> None:
        while chunk := await stream.receive_some(65536):
            chunks.append(bytes(chunk))

    async with connected(handler) as transport:
        await transport.send(["one", "two", "three"])
        await wait_all_tasks_blocked()
        assert [len(chunk) for chunk in chunks] == [3 * 6 + 3 + 3 + 5]


async def test_pings_are_answered_with_the_next_receive() -> None:
    pongs: list[tuple[int, bytes]] = []
    answered = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("a", PING) + frame("message") + frame("b", PING))
        pongs.extend([await receive_frame(stream), await receive_frame(stream)])
        answered.set()
        await wait_gone(stream)

    async with connected(handler) as transport:
        assert await take(transport, 1) == ["message"]
        await wait_all_tasks_blocked()
        assert pongs == []
        async with receiving_in_background(transport):
            await answered.wait()
    assert pongs == [(PONG, b"a"), (PONG, b"b")]


async def test_pong_answers_its_ping_and_earlier_ones() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        payloads = [(await receive_frame(stream))[1] for _ in range(3)]
        await send(stream, frame("unknown", PONG) + frame(payloads[1], PONG))
        await wait_gone(stream)

    returned: list[int] = []

    async with connected(handler) as transport, receiving_in_background(transport):

        async def ping(number: int) -> None:
            await transport.ping()
            returned.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ping, number)
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked(0.01)
            assert sorted(returned) == [0, 1]
            nursery.cancel_scope.cancel()


async def test_close_frame_inside_a_fragmented_message_is_a_close() -> None:
    data = frame("half", TEXT, fin=False) + close_frame(1001, "later")
    async with connected(sending(data)) as transport:
        error = await loss(transport)
        assert error.code == 1001
        assert "'later'" in str(error)


async def test_unknown_close_code_is_reported_as_unknown() -> None:
    async with connected(sending(close_frame(3999))) as transport:
        assert "3999 (unknown)" in str(await loss(transport))


async def test_invalid_utf8_ends_the_messages_of_the_same_read() -> None:
    data = frame("good") + frame(b"\xff") + frame("never seen") + close_frame(1000)
    async with connected(sending(data)) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == ["good"]
        assert (await loss(transport)).code == 1007


async def test_fragments_count_together_against_the_limit() -> None:
    data = frame("x" * 60, fin=False) + frame("x" * 60, CONTINUATION)
    async with connected(sending(data), max_receive_size=100) as transport:
        assert (await loss(transport)).code == 1009


async def test_nothing_is_sent_after_a_cancelled_write() -> None:
    """Bytes after half a frame would be read as its payload."""
    proceed, frames = trio.Event(), []

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        while await stream.receive_some(65536):
            frames.append(1)

    async with connected(handler) as transport:
        with trio.move_on_after(0.05) as scope:
            await transport.send(["x" * 1_000_000] * 100)
        assert scope.cancelled_caught
        with pytest.raises(ConnectionLostError, match="a write was cut short"):
            await transport.send(["lost"])
        with pytest.raises(ConnectionLostError, match="a write was cut short"):
            await transport.ping()
        await transport.aclose()
        proceed.set()


async def test_closing_peer_that_does_not_read_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        await send(stream, close_frame(1001))
        await trio.sleep_forever()

    async with connected(handler) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(fill_send_buffer, transport.send)
        await trio.sleep(0.1)
        proceed.set()
        began = trio.current_time()
        assert (await loss(transport)).code == 1001
        assert trio.current_time() - began <= 0.6
        nursery.cancel_scope.cancel()


async def fill_send_buffer(send: object) -> None:
    assert callable(send)
    await send(["x" * 1_000_000] * 100)


async def test_nothing_is_sent_after_a_close_frame() -> None:
    async with connected(wait_gone) as transport:
        with trio.move_on_after(0.05):
            await transport.aclose()
        with pytest.raises(ConnectionLostError, match="this side closed the connection"):
            await transport.send(["too late"])
        with pytest.raises(ConnectionLostError, match="this side closed the connection"):
            await transport.ping()


async def test_dropped_socket_discards_pending_pongs() -> None:
    async with serve_raw(ping_and_greet) as port:
        async with opening(port) as transport:
            assert await take(transport, 1) == ["hello"]
        assert "this side dropped the connection" in str(await loss(transport))


async def ping_and_greet(stream: trio.abc.Stream) -> None:
    await accept_websocket(stream, and_send=frame("", PING) + frame("hello"))
    await wait_gone(stream)


async def test_closed_socket_is_detected_with_a_blocked_pong() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("", PING) + frame("last"))

    async with connected(handler) as transport:
        assert await take(transport, 1) == ["last"]
        error = await loss(transport)
        assert error.code is None
        with pytest.raises(ConnectionLostError):
            await transport.send(["x"])


async def test_no_traffic_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with connected(echo) as transport:
            await transport.send(['{"op":"auth","key":"a secret"}'])
            assert await take(transport, 1) == ['{"op":"auth","key":"a secret"}']
            await transport.aclose()
    assert "secret" not in caplog.text
    assert "GET" not in caplog.text


@pytest.mark.parametrize(
    "found",
    [
        {"websockets": None},
        {"websockets": ModuleType("websockets"), "websockets.client": ModuleType("client")},
    ],
    ids=["none", "one without the Sans-I/O layer"],
)
def test_error_without_the_extra_names_the_package(
    found: dict[str, ModuleType | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("websockets.")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "trio_broker.transports.websockets", raising=False)
    with pytest.raises(ConfigurationError, match=r"at least 15: install trio-broker\[speed\]"):
        BrokerWSClient("key", "secret", "ws://127.0.0.1:1/ws", transport="websockets")


@pytest.mark.parametrize(
    ("name", "other"), [("trio-websocket", "websockets"), ("websockets", "trio_websocket")]
)
def test_unused_library_is_not_imported(name: str, other: str) -> None:
    script = f"""
import sys
from trio_broker import BrokerWSClient
BrokerWSClient("key", "secret", "ws://127.0.0.1:1/ws", transport={name!r})
assert {other!r} not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)  # noqa: S603 - ours


def test_unknown_transport_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'trio-websocket' or 'websockets'"):
        BrokerWSClient("key", "secret", "ws://127.0.0.1:1/ws", transport="other")  # type: ignore[arg-type]


async def test_simultaneous_close_frames_end_the_connection() -> None:
    frames: list[tuple[int, bytes]] = []
    received = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, close_frame(1001))
        frames.append(await receive_frame(stream))
        received.set()
        await wait_gone(stream)

    async with connected(handler) as transport:
        await wait_all_tasks_blocked()
        await transport.aclose()
        await received.wait()
    assert frames[0][0] == CLOSE


async def test_many_fragments_need_little_more_memory_than_their_text() -> None:
    count = 10_000
    piece = frame("b", CONTINUATION, fin=False) + frame("", CONTINUATION, fin=False)
    data = frame("a", TEXT, fin=False) + piece * count + frame("c", CONTINUATION)
    async with connected(sending(data)) as transport:
        tracemalloc.start()
        try:
            assert await take(transport, 1) == ["a" + "b" * count + "c"]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 150 * count  # frames would need more than twice that


async def test_receive_cancelled_before_a_pong_loses_nothing() -> None:
    answered = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("hello") + frame("p", PING))
        assert await receive_frame(stream) == (PONG, b"p")
        assert await receive_frame(stream) == (TEXT, b"still there")
        answered.set()
        await wait_gone(stream)

    async with connected(handler) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == ["hello"]
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.receive()
        await transport.send(["still there"])
        await answered.wait()


async def test_unread_close_frame_is_answered_by_a_close() -> None:
    """It arrived with a message, and no task has received again since."""
    answered: list[tuple[int, bytes]] = []
    received = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("last") + close_frame(1001))
        answered.append(await receive_frame(stream))
        received.set()
        await wait_gone(stream)

    async with connected(handler) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == ["last"]
        await transport.aclose()
        await received.wait()
    assert answered[0][1][:2] == (1001).to_bytes(2, "big")


# Frames that take several steps, even if the first one was taken with the handshake.
MANY_PONGS = frame("", PONG) * 1600


async def give_up_receiving(transport: Transport) -> None:
    """Receive, and be cancelled after a part of a read has been parsed."""
    await wait_all_tasks_blocked()
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, 2)
        trio.lowlevel.add_instrument(instrument)
        try:
            await transport.receive()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    assert scope.cancelled_caught


@pytest.mark.parametrize("length", [1, 1000, 6000, 15_000])
async def test_taken_returns_the_whole_read_after_a_cancelled_receive(length: int) -> None:
    count = 16_000 // (length + 8)
    texts = [f"{number:0{length}}" for number in range(count)]
    data = [frame(text) for text in texts]
    data.insert(len(data) // 2, MANY_PONGS)
    async with connected(sending(b"".join(data))) as transport:
        await give_up_receiving(transport)
        assert transport.taken() == texts


async def test_taken_returns_a_read_with_blocked_pongs() -> None:
    data = frame("", PING) * 1000 + frame("x" * 5000) + frame("receipt")
    async with connected(sending(data)) as transport:
        await give_up_receiving(transport)
        assert transport.taken()[-1] == "receipt"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (close_frame(1001), 1001),
        (frame(b"\xff"), 1007),
        (b"\x8f\0", 1002),
        (frame("x" * 101), 1009),
    ],
)
async def test_end_in_a_cancelled_read_is_reported(end: bytes, code: int) -> None:
    data = frame("y" * 100) * 80 + MANY_PONGS + frame("receipt") + end + frame("never seen")
    async with connected(sending(data), max_receive_size=100) as transport:
        await give_up_receiving(transport)
        assert transport.taken()[-1] == "receipt"
        assert (await loss(transport)).code == code


async def test_failure_in_a_cancelled_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    opened = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await opened.wait()  # Bytes sent with the handshake are a separate read.
        await sending(frame("y" * 100) * 40 + MANY_PONGS + frame("y" * 100) * 40)(stream)

    async with connected(handler) as transport:
        opened.set()
        await give_up_receiving(transport)
        monkeypatch.setattr(ClientProtocol, "receive_data", fail)
        assert transport.taken() == ["y" * 100] * 40
        assert "no more" in str(await loss(transport))
