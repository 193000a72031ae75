"""Plain TCP servers on 127.0.0.1 that can misbehave: WebSockets by hand, byte by byte.

async def handler(stream):
    await accept_websocket(stream)
    await stream.send_all(frame("hello"))
    await wait_gone(stream)

async with serve_raw(handler) as port:
    ...
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeAlias

import trio

Handler: TypeAlias = Callable[[trio.abc.Stream], Awaitable[None]]

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class PeerGoneError(Exception):
    """The client hung up or reset the connection."""


@asynccontextmanager
async def serve_raw(
    handler: Handler, *, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve each connection with a handler, in the background of the block.

    A handler's connection is closed when it returns, and when the block is left. A handler that
    finds its client gone (`PeerGoneError`) is done; whatever else it raises fails the block.

    Args:
        handler: Called with the stream of each connection.
        ssl_context: Given, the server speaks TLS (from the handler's first read or write on).

    Returns:
        A context manager that gives the port.
    """

    async def serve(tcp: trio.SocketStream) -> None:
        stream: trio.abc.Stream = tcp
        if ssl_context is not None:
            stream = trio.SSLStream(tcp, ssl_context, server_side=True, https_compatible=True)
        with suppress(PeerGoneError):
            await handler(stream)

    async with trio.open_nursery() as nursery:
        listen = partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        (listener,) = await nursery.start(listen)
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def receive_request(stream: trio.abc.Stream) -> bytes:
    """Receive an HTTP request's head."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await _receive_some(stream, 4096)
    return head


def switching_protocols(request: bytes) -> bytes:
    """The valid response to a WebSocket handshake."""
    match = re.search(rb"(?im)^sec-websocket-key:[ ]*(\S+)\r$", request)
    assert match is not None, request
    accept = base64.b64encode(hashlib.sha1(match[1] + _GUID).digest())  # noqa: S324 - RFC 6455
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


async def accept_websocket(stream: trio.abc.Stream, *, and_send: bytes = b"") -> bytes:
    """Do the server's half of a WebSocket handshake.

    Args:
        stream: A client's connection.
        and_send: Bytes to send together with the response.

    Returns:
        The head of the client's request.
    """
    request = await receive_request(stream)
    await send(stream, switching_protocols(request) + and_send)
    return request


def frame(
    payload: str | bytes = b"", opcode: int = TEXT, *, fin: bool = True, mask: bool = False
) -> bytes:
    """A server's frame; with `mask`, an invalid one."""
    body = payload.encode() if isinstance(payload, str) else payload
    first, masked, size = fin << 7 | opcode, mask << 7, len(body)
    if size < 126:
        header = struct.pack("!BB", first, masked | size)
    elif size < 1 << 16:
        header = struct.pack("!BBH", first, masked | 126, size)
    else:
        header = struct.pack("!BBQ", first, masked | 127, size)
    # A key of zeros doesn't change the payload.
    return header + (bytes(4) if mask else b"") + body


def close_frame(code: int | None = None, reason: str = "") -> bytes:
    """A close frame."""
    payload = b"" if code is None else struct.pack("!H", code) + reason.encode()
    return frame(payload, CLOSE)


async def receive_frame(stream: trio.abc.Stream) -> tuple[int, bytes]:
    """Receive one masked frame from a client, whole: its opcode and its payload."""
    first, size = await _receive_exactly(stream, 2)
    assert size & 0x80, "a client's frames are masked"
    size &= 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", await _receive_exactly(stream, 2))
    elif size == 127:
        (size,) = struct.unpack("!Q", await _receive_exactly(stream, 8))
    mask = await _receive_exactly(stream, 4)
    body = await _receive_exactly(stream, size)
    return first & 0x0F, bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))


async def send(stream: trio.abc.Stream, data: bytes) -> None:
    """Send bytes.

    Raises:
        PeerGoneError: The client has reset the connection.
    """
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError as error:
        raise PeerGoneError from error


async def wait_gone(stream: trio.abc.Stream) -> None:
    """Discard received bytes until the client closes or resets the connection."""
    with suppress(PeerGoneError):
        while True:
            await _receive_some(stream, 65536)


async def reset(stream: trio.abc.Stream) -> None:
    """Cut a TCP connection without TLS with a RST."""
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


async def _receive_some(stream: trio.abc.Stream, limit: int) -> bytes:
    try:
        data = await stream.receive_some(limit)
    except trio.BrokenResourceError as error:
        raise PeerGoneError from error
    if not data:
        raise PeerGoneError
    return bytes(data)


async def _receive_exactly(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await _receive_some(stream, size - len(data))
    return data
