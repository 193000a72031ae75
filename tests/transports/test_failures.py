"""Every failure of a transport is a lost connection, and a flood of frames delays no other task."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import trio

from tests.scripted import scripted_client, start
from tests.transports.raw_server import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    PeerGoneError,
    close_frame,
    frame,
    receive_frame,
    send,
    serve_raw,
    wait_gone,
)
from tests.transports.test_both import (
    PATIENCE,
    connected,
    echo,
    loss,
    opening,
    sending,
    serve_raw_websocket,
    take,
)
from trio_broker import (
    Connected,
    ConnectFailedError,
    ConnectionLostError,
    Disconnected,
    ReconnectPolicy,
)
from trio_broker.settings import TransportName

ERRORS = [
    MemoryError(),
    OSError(errno.EBADF, os.strerror(errno.EBADF)),
    ValueError("file descriptor cannot be a negative integer (-1)"),
    trio.ClosedResourceError("this socket was already closed"),
    RuntimeError("anything"),
]


@pytest.fixture(autouse=True, params=get_args(TransportName))
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TransportName:
    monkeypatch.setattr(sys.modules["tests.transports.test_both"], "library", request.param)
    name: TransportName = request.param
    return name


class Faulty:
    """Makes the client's sockets to a port raise."""

    def __init__(self) -> None:
        self.port = 0
        self.errors: dict[str, Exception] = {}

    def check(self, stream: trio.SocketStream, name: str) -> None:
        """Raise the next error, if there is one."""
        error = self.errors.get(name)
        if error is not None and _peer(stream.socket) == self.port:
            raise error


def _peer(one: Any) -> int | None:
    try:
        port: int = one.getpeername()[1]
    except OSError:
        return None
    return port


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    faulty = Faulty()
    receive_some, send_all = trio.SocketStream.receive_some, trio.SocketStream.send_all

    async def receive(stream: trio.SocketStream, max_bytes: int | None = None) -> Any:
        data = await receive_some(stream, max_bytes)
        faulty.check(stream, "receive")
        return data

    async def send_or_fail(stream: trio.SocketStream, data: Any) -> None:
        faulty.check(stream, "send")
        await send_all(stream, data)

    monkeypatch.setattr(trio.SocketStream, "receive_some", receive)
    monkeypatch.setattr(trio.SocketStream, "send_all", send_or_fail)
    return faulty


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_unexpected_error_is_a_lost_connection(faulty: Faulty, error: Exception) -> None:
    with trio.fail_after(PATIENCE):
        async with serve_raw_websocket(echo) as port:
            faulty.port = port
            async with opening(port) as transport:
                faulty.errors["send"] = error
                with pytest.raises(ConnectionLostError):
                    await transport.send(["x"])
                with pytest.raises(ConnectionLostError):
                    await transport.ping()
                await transport.aclose()
            faulty.errors.clear()
            async with opening(port) as transport:
                await transport.send(["x"])
                faulty.errors["receive"] = error
                assert (await loss(transport)).code is None
                with pytest.raises(ConnectionLostError):
                    await transport.ping()
                await transport.aclose()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["receive", "send"])
async def test_close_over_a_broken_socket_ends(
    faulty: Faulty, error: Exception, where: str
) -> None:
    with trio.fail_after(PATIENCE):
        async with serve_raw_websocket(echo) as port, opening(port) as transport:
            faulty.port, faulty.errors[where] = port, error
            await transport.aclose()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["receive", "send"])
async def test_client_reconnects_after_an_unexpected_error(
    faulty: Faulty, library: TransportName, error: Exception, where: str
) -> None:
    policy = ReconnectPolicy(initial_delay=0.01)
    with trio.fail_after(PATIENCE):
        async with scripted_client(transport=library, reconnect=policy) as (client, line):
            faulty.port = line.stream.socket.getsockname()[1]  # type: ignore[attr-defined]
            async with trio.open_nursery() as nursery:
                with client.events() as events:
                    faulty.errors[where] = error
                    await line.send_bytes(frame("", PING))
                    call = start(nursery, client.get_balances)
                    lost = await events.receive()
                    assert isinstance(lost, Disconnected)
                    assert isinstance(lost.error, ConnectionLostError)
                    faulty.errors.clear()
                    while not isinstance(await events.receive(), Connected):
                        pass
                    call.scope.cancel()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["receive", "send"])
async def test_unexpected_error_while_connecting_is_a_failed_connection(
    faulty: Faulty, error: Exception, where: str
) -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        with suppress(PeerGoneError):
            await send(stream, b"HTTP/1.1 101 Switching Protocols\r\n")
            await wait_gone(stream)

    with trio.fail_after(PATIENCE):
        async with serve_raw(handler) as port:
            faulty.port, faulty.errors[where] = port, error
            faulty.errors["receive"] = error
            with pytest.raises(ConnectFailedError, match="in the WebSocket handshake"):
                async with opening(port):
                    pytest.fail("it opened")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the descriptor there")
async def test_descriptor_closed_from_outside_is_a_lost_connection() -> None:
    async with serve_raw_websocket(echo) as port:
        with trio.fail_after(PATIENCE):
            async with opening(port) as transport:
                await transport.send(["one"])
                assert await transport.receive() == ["one"]
                replaced = socket.socket()
                os.dup2(replaced.fileno(), descriptor_to(port))
                replaced.close()
                with pytest.raises(ConnectionLostError):
                    await transport.send(["two"])


def descriptor_to(port: int) -> int:
    """The descriptor of this process's socket that is connected to a port."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.fromfd(int(name), socket.AF_INET, socket.SOCK_STREAM) as one:
            peer: Any = one.getpeername()
            if isinstance(peer, tuple) and peer[1] == port:
                return int(name)
    raise LookupError(port)


async def test_memory_error_in_the_library_is_a_lost_connection(
    library: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {
        "trio-websocket": "wsproto.connection.Connection.receive_data",
        "websockets": "websockets.client.ClientProtocol.receive_data",
    }[library]

    def fail(*_: object) -> None:
        raise MemoryError

    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        await send(stream, frame("one", BINARY))
        await wait_gone(stream)

    async with connected(handler) as transport:
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            proceed.set()
            error = await loss(transport)
        assert "MemoryError()" in str(error)
        assert isinstance(error.__cause__, MemoryError)


async def test_memory_error_while_sending_is_a_lost_connection(
    library: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "trio-websocket": ["wsproto.connection.Connection.send"],
        "websockets": [
            "websockets.client.ClientProtocol.send_text",
            "websockets.client.ClientProtocol.send_ping",
        ],
    }[library]

    def fail(*_: object) -> None:
        raise MemoryError

    async with connected(echo) as transport:
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(name, fail)
            with pytest.raises(ConnectionLostError, match="MemoryError"):
                await transport.send(["one"])
            with pytest.raises(ConnectionLostError, match="MemoryError"):
                await transport.ping()


async def test_memory_error_while_connecting_is_a_failed_connection(
    library: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {
        "trio-websocket": "wsproto.WSConnection.send",
        "websockets": "websockets.client.ClientProtocol.send_request",
    }[library]

    def fail(*_: object) -> None:
        raise MemoryError

    async with serve_raw(wait_gone) as port:
        monkeypatch.setattr(name, fail)
        with pytest.raises(ConnectFailedError, match=r"handshake failed \(MemoryError\(\)\)"):
            async with opening(port):
                pytest.fail("it opened")


# --- Floods ----------------------------------------------------------------------------------

FLOODS = {
    "empty fragments": frame("", fin=False) + frame("", CONTINUATION, fin=False) * 30_000,
    "short fragments": frame("a", fin=False) + frame("b", CONTINUATION, fin=False) * 30_000,
    "pongs": frame("", PONG) * 30_000,
    "pings": frame("", PING) * 10_000,
    "empty messages": frame("") * 10_000,
}
END = frame("", CONTINUATION) + frame("the end")


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_flood_of_frames_lets_other_tasks_run(flood: bytes) -> None:
    """Another task runs after at most so many frames."""
    end = END if not flood[0] & 0x80 else frame("the end")
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def handler(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_gone, stream)
            await send(stream, flood + end)

    async with connected(handler) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(count)
        messages: list[str | bytes] = []
        while messages[-1:] != ["the end"]:
            messages = await transport.receive()
        nursery.cancel_scope.cancel()
    assert turns >= len(flood) / 8192


async def test_close_frame_ends_a_large_read() -> None:
    data = frame("one") * 500 + close_frame(1001) + frame("too late") * 5000
    async with connected(sending(data)) as transport:
        assert await take(transport, 500) == ["one"] * 500
        assert (await loss(transport)).code == 1001


async def test_cancelled_receive_keeps_the_messages_of_a_large_read() -> None:
    texts = [f"{number:0100}" for number in range(1000)]
    received: list[str | bytes] = []
    async with connected(sending(b"".join(map(frame, texts)))) as transport:
        while len(received) < len(texts):
            with trio.CancelScope() as scope:
                scope.cancel()
                received += await transport.receive()
            received += transport.taken()
            received += await transport.receive()
    assert received == texts


# --- Log records of the libraries ------------------------------------------------------------


@pytest.fixture
def root_at_debug(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


async def log_a_secret() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("hush-hush", PING) + frame("hush-hush"))
        opcode = None
        while opcode != CLOSE:
            opcode, _ = await receive_frame(stream)
            if opcode == TEXT:
                await send(stream, close_frame(1008, "bad key hush-hush"))

    def redact(text: str) -> str:
        return text.replace("hush-hush", "<removed>")

    async with serve_raw_websocket(handler) as port, opening(port, redact=redact) as transport:
        await transport.receive()
        await transport.send(["hush-hush"])
        await loss(transport)


async def test_root_logger_at_debug_shows_no_records_of_the_libraries(
    root_at_debug: pytest.LogCaptureFixture,
) -> None:
    await log_a_secret()
    assert root_at_debug.records == []


async def test_librarys_own_logger_at_debug_shows_no_secret(
    root_at_debug: pytest.LogCaptureFixture,
    library: TransportName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger("trio-websocket")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    await log_a_secret()
    monkeypatch.undo()
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    assert "hush-hush" not in root_at_debug.text
    if library == "trio-websocket":
        assert "websocket closed" in root_at_debug.text
        assert "<removed>" in root_at_debug.text


def test_records_of_other_connections_are_unchanged(
    root_at_debug: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("trio-websocket")
    logger.debug("%s is somebody else's", "this")
    logger.debug("no arguments")
    assert [record.getMessage() for record in root_at_debug.records] == [
        "this is somebody else's",
        "no arguments",
    ]


async def test_redirect_that_repeats_a_key_does_not_show_it() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, b"HTTP/1.1 302 Found\r\nLocation: wss://x/hush-hush\r\n\r\n")
        await wait_gone(stream)

    async with serve_raw(handler) as port:
        with pytest.raises(ConnectFailedError, match="redirected") as caught:
            async with opening(port, redact=lambda text: text.replace("hush-hush", "<removed>")):
                pytest.fail("it opened")
    assert "hush-hush" not in repr(caught.value)
