"""What only the transport over websockets has: several messages a read, and no task of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
from types import ModuleType

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from tests.rawserver import (
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
from tests.test_transport import (
    PATIENCE,
    connected,
    count_tasks,
    echo,
    loss,
    opening,
    sending,
    somebody_receiving,
    take,
)
from trio_broker import BrokerWSClient, ConfigurationError
from trio_broker.exceptions import ConnectionLostError


@pytest.fixture(autouse=True)
def its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_transport.library", "websockets")


async def test_all_messages_of_a_read_come_at_once() -> None:
    texts = [str(number) for number in range(100)]
    async with connected(sending(b"".join(map(frame, texts)))) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == texts


async def test_what_came_with_the_handshake_is_received_at_a_checkpoint() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream, and_send=frame("early"))
        await wait_gone(stream)

    async with serve_raw(handler) as port, opening(port) as transport:
        with assert_checkpoints():
            assert await transport.receive() == ["early"]


async def test_it_has_no_task_of_its_own() -> None:
    async with serve_raw(wait_for_ever) as port:
        await wait_all_tasks_blocked()
        before = count_tasks()
        async with opening(port):
            await wait_all_tasks_blocked()
            assert count_tasks() == before + 1  # the server's handler


async def wait_for_ever(stream: trio.abc.Stream) -> None:
    await accept_websocket(stream)
    await wait_gone(stream)


async def test_what_is_sent_at_once_leaves_in_one_write() -> None:
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
        async with somebody_receiving(transport):
            await answered.wait()
    assert pongs == [(PONG, b"a"), (PONG, b"b")]


async def test_a_pong_answers_earlier_pings_too_and_others_nobody() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        payloads = [(await receive_frame(stream))[1] for _ in range(3)]
        await send(stream, frame("unknown", PONG) + frame(payloads[1], PONG))
        await wait_gone(stream)

    returned: list[int] = []

    async with connected(handler) as transport, somebody_receiving(transport):

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


async def test_goodbye_in_the_middle_of_a_message_is_one() -> None:
    data = frame("half", TEXT, fin=False) + close_frame(1001, "later")
    async with connected(sending(data)) as transport:
        error = await loss(transport)
        assert error.code == 1001
        assert "'later'" in str(error)


async def test_unknown_close_code_is_called_so() -> None:
    async with connected(sending(close_frame(3999))) as transport:
        assert "3999 (unknown)" in str(await loss(transport))


async def test_text_that_is_no_utf8_ends_what_comes_after_it_in_the_same_read() -> None:
    data = frame("good") + frame(b"\xff") + frame("never seen") + close_frame(1000)
    async with connected(sending(data)) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == ["good"]
        assert (await loss(transport)).code == 1007


async def test_fragments_count_together_against_the_limit() -> None:
    data = frame("x" * 60, fin=False) + frame("x" * 60, CONTINUATION)
    async with connected(sending(data), max_receive_size=100) as transport:
        assert (await loss(transport)).code == 1009


async def test_cancelled_write_lets_nothing_follow() -> None:
    """Whatever came after half a frame would disappear in it."""
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


async def test_peer_that_says_goodbye_and_does_not_read_is_gone_in_half_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        await send(stream, close_frame(1001))
        await trio.sleep_forever()

    async with connected(handler) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(fill_the_line, transport.send)
        await trio.sleep(0.1)
        proceed.set()
        began = trio.current_time()
        assert (await loss(transport)).code == 1001
        assert trio.current_time() - began <= 0.6
        nursery.cancel_scope.cancel()


async def fill_the_line(send: object) -> None:
    assert callable(send)
    await send(["x" * 1_000_000] * 100)


async def test_after_a_goodbye_of_ours_nothing_more_is_sent() -> None:
    async with connected(wait_gone) as transport:
        with trio.move_on_after(0.05):
            await transport.aclose()
        with pytest.raises(ConnectionLostError, match="this side closed the connection"):
            await transport.send(["too late"])
        with pytest.raises(ConnectionLostError, match="this side closed the connection"):
            await transport.ping()


async def test_pongs_that_are_owed_when_the_socket_is_dropped_disturb_nobody() -> None:
    async with serve_raw(ping_and_greet) as port:
        async with opening(port) as transport:
            assert await take(transport, 1) == ["hello"]
        assert "this side dropped the connection" in str(await loss(transport))


async def ping_and_greet(stream: trio.abc.Stream) -> None:
    await accept_websocket(stream, and_send=frame("", PING) + frame("hello"))
    await wait_gone(stream)


async def test_hang_up_is_found_though_a_pong_can_not_be_written() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("", PING) + frame("last"))

    async with connected(handler) as transport:
        assert await take(transport, 1) == ["last"]
        error = await loss(transport)
        assert error.code is None
        with pytest.raises(ConnectionLostError):
            await transport.send(["x"])


async def test_nothing_of_the_traffic_is_logged(caplog: pytest.LogCaptureFixture) -> None:
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
def test_without_the_extra_the_error_says_what_to_install(
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
def test_a_library_that_is_not_used_is_not_imported(name: str, other: str) -> None:
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


async def test_goodbyes_that_cross_are_an_end() -> None:
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


async def test_a_message_of_very_many_fragments_costs_little_more_than_its_text() -> None:
    piece = frame("b", CONTINUATION, fin=False) + frame("", CONTINUATION, fin=False)
    data = frame("a", TEXT, fin=False) + piece * 30_000 + frame("c", CONTINUATION)
    async with connected(sending(data)) as transport:
        tracemalloc.start()
        try:
            assert await take(transport, 1) == ["a" + "b" * 30_000 + "c"]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 150 * 30_000  # frames take twice as much and more


async def test_a_cancelled_receive_that_had_a_ping_to_answer_harms_nothing() -> None:
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


async def test_goodbye_that_nobody_has_read_is_answered_by_ours() -> None:
    """It came with a message, and whoever received that hasn't come back for more."""
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
