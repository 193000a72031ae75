"""A Trio stream whose bytes nobody looks at: the limit for clients that use Trio's streams."""

from __future__ import annotations

import ssl
from typing import Final
from urllib.parse import urlsplit

import trio

from benchmarks.speed import messages
from benchmarks.speed.peers.counting import ORDER, Stopwatch, greet

_BUFFER: Final = 64 * 1024  # bytes a read
_REQUEST: Final = (
    "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def pushes(url: str, count: int) -> dict[str, float]:
    """Receive all bytes of the messages.

    Args:
        url: The server's.
        count: How many messages it pushes.
    """
    return trio.run(_pushes, url, count)


async def _pushes(url: str, count: int) -> dict[str, float]:
    awaited = sum(map(len, messages.updates([ORDER], count)))
    watch = Stopwatch()
    parts = urlsplit(url)
    async with await _open(parts.scheme, parts.port or 0) as stream:
        reader = _Reader(stream)
        await stream.send_all(_REQUEST.format(f"{parts.path}?{parts.query}").encode())
        await reader.head()
        await greet(reader.send, reader.frame)
        watch.start()
        await reader.send(messages.status_text(messages.GO))
        await reader.frame()
        awaited -= len(reader.rest)
        while awaited > 0:
            data = await stream.receive_some(_BUFFER)
            if not data:
                raise RuntimeError("the server has hung up")
            awaited -= len(data)
        watch.stop()
    return watch.result(count, count + awaited)


async def _open(scheme: str, port: int) -> trio.abc.Stream:
    if scheme == "ws":
        return await trio.open_tcp_stream("127.0.0.1", port)
    context = ssl.create_default_context()
    return await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port, ssl_context=context, https_compatible=True
    )


class _Reader:
    """Reads a few frames, and keeps what comes after them."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.rest = b""

    async def send(self, text: str) -> None:
        await self._stream.send_all(messages.client_frame(text))

    async def head(self) -> None:
        while b"\r\n\r\n" not in self.rest:
            self.rest += await self._stream.receive_some(_BUFFER)
        self.rest = self.rest.partition(b"\r\n\r\n")[2]

    async def frame(self) -> None:
        await self._have(2)
        head, size = 2, self.rest[1]
        if size == 126:
            await self._have(4)
            head, size = 4, int.from_bytes(self.rest[2:4], "big")
        await self._have(head + size)
        self.rest = self.rest[head + size :]

    async def _have(self, size: int) -> None:
        while len(self.rest) < size:
            self.rest += await self._stream.receive_some(_BUFFER)
