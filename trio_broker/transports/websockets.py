"""The transport over websockets' Sans-I/O layer, which needs the extra ``speed``.

That layer turns bytes into frames and frames into bytes, and neither reads nor writes. So there is
no background task here: the calling task does the work, and what it leaves undone waits for the
next call.

**Reading.** `receive` returns all messages of one read of the socket at once. Pings and a close
frame are answered before the next read. So nothing is read from a peer that pings and doesn't
read, and `last_heard` stands still. `aclose` reads too, for the close frame of the peer. One task
reads at a time; the others wait.

**Writing.** What is to be sent is put into one queue, and sent in one write. A write that fails may
have sent half a frame, and the peer would take what follows for the rest of it. So nothing follows.

**The end** is noted once: the first reason counts. What was read before is returned first.
"""

from __future__ import annotations

import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio
from websockets.client import ClientProtocol
from websockets.frames import Close, CloseCode
from websockets.protocol import OPEN
from websockets.uri import WebSocketURI

from trio_broker._version import __version__
from trio_broker.exceptions import ConnectionLostError, fresh
from trio_broker.redaction import Redact
from trio_broker.settings import Endpoint
from trio_broker.transports import Transport, ending
from trio_broker.transports.dialing import Attempt, connect
from trio_broker.transports.frame_splitter import FrameSplitter
from trio_broker.transports.handshake import HandshakeAnswer
from trio_broker.transports.tls import ClientContext

# About 300 updates of an order. More at once would hardly be faster.
_RECEIVE_SIZE: Final = 64 * 1024

_END_OF_HEAD: Final = b"\r\n\r\n"

# Seconds for the answer to a close frame, which the peer may not read. `receive` then goes on.
_CLOSE_ANSWER_TIMEOUT: Final = 0.5

# At level DEBUG the library would log every message, with keys and signatures.
_SILENT: Final = logging.Logger("silent", logging.CRITICAL + 1)  # noqa: LOG001 - no configuration may change it


@asynccontextmanager
async def open_transport(
    endpoint: Endpoint,
    *,
    ssl_context: ssl.SSLContext | ClientContext | None,
    connect_timeout: float,
    max_receive_size: int,
    redact: Redact = str,
) -> AsyncIterator[Transport]:
    """Open a transport, as `OpenTransport` says; it counts the bytes of a message."""
    attempt = Attempt(endpoint, connect_timeout, redact)
    try:
        async with attempt.limited():
            stream = await connect(attempt, ssl_context)
            with attempt.handshake():
                transport = _WebSocketsTransport(stream, endpoint, max_receive_size)
                await transport.shake_hands(redact)
        try:
            yield transport
        finally:
            transport.drop()
    finally:
        attempt.close()


class _WebSocketsTransport:
    """`Transport` over websockets' Sans-I/O layer."""

    def __init__(self, stream: trio.abc.Stream, endpoint: Endpoint, max_receive_size: int) -> None:
        uri = WebSocketURI(endpoint.secure, endpoint.host, endpoint.port, endpoint.resource, "")
        self._stream = stream
        self._protocol = ClientProtocol(uri, max_size=max_receive_size, logger=_SILENT)
        self._splitter = FrameSplitter(self._protocol, max_receive_size)
        self.last_heard: float = trio.current_time()
        self.progress: int = 0
        self._reading = trio.Lock()
        self._unread = b""
        self._pings: dict[bytes, trio.Event] = {}
        self._writing = trio.Lock()
        self._outgoing: list[bytes] = []
        self._is_half_written = False
        self._how_writing_failed: str | None = None
        self._end: ConnectionLostError | None = None

    async def shake_hands(self, redact: Redact) -> None:
        """Send the request of the handshake, and wait for its answer.

        Raises:
            AnswerError: There is no WebSocket.
        """
        request = self._protocol.connect()
        request.headers["User-Agent"] = f"trio-broker/{__version__}"
        self._protocol.send_request(request)
        answer = HandshakeAnswer(request.headers["Sec-WebSocket-Key"], redact)
        with suppress(ConnectionLostError):  # The peer may have answered all the same.
            await self._write()
        received = b""
        while not received:
            data, how_it_ended = await self._receive_some()
            if how_it_ended:
                raise answer.cut(how_it_ended)
            received = answer.feed(data)
        head, _, frames = received.partition(_END_OF_HEAD)
        self._protocol.receive_data(head + _END_OF_HEAD)
        self._protocol.events_received()
        assert self._protocol.state is OPEN  # noqa: S101 - the answer was checked
        self._take(frames)

    # --- Reading ---------------------------------------------------------------------------

    async def receive(self) -> list[str | bytes]:
        if self._splitter.messages:  # They came with the answer to the handshake.
            await trio.lowlevel.checkpoint()
        # The rest of a read is parsed at once, unless something has to be answered first.
        while not self._splitter.messages or (
            self._unread and not self._outgoing and self._end is None
        ):
            try:
                self._reading.acquire_nowait()
            except trio.WouldBlock:
                await self._reading.acquire()
            try:
                if self._outgoing:
                    await self._answer()
                if self._end is not None:
                    await trio.lowlevel.checkpoint()
                    raise fresh(self._end)
                data, how_it_ended = await self._receive_some()
                if how_it_ended:
                    self._note_end(ending.cut(how_it_ended))
                    continue
                try:
                    # Most reads have texts only.
                    at = self._splitter.split(data)
                    if at < len(data):
                        self._take(data[at:])
                except Exception as error:  # noqa: BLE001 - memory may be short, for example
                    self._note_end(ending.failed(error))
            finally:
                self._reading.release()
        messages, self._splitter.messages = self._splitter.messages, []
        return messages

    def taken(self) -> list[str | bytes]:
        # What was read and not parsed yet may be the reply that a task waits for.
        try:
            while self._unread:
                unread, self._unread = self._unread, b""
                self._take(unread)
        except Exception as error:  # noqa: BLE001 - as in `receive`
            self._note_end(ending.failed(error))
        messages, self._splitter.messages = self._splitter.messages, []
        return messages

    async def _answer(self) -> None:
        """Send pongs, and for a short time the answer to a close frame."""
        # Even if nothing can be written, what is left in the socket can still be read.
        with suppress(ConnectionLostError):
            if self._end is None:
                await self._write()
                return
            with trio.move_on_after(_CLOSE_ANSWER_TIMEOUT):
                await self._write()

    async def _receive_some(self) -> tuple[bytes, str | None]:
        """Some bytes, or how the stream ended."""
        if self._unread:
            await trio.lowlevel.checkpoint()
            data, self._unread = self._unread, b""
        else:
            try:
                data = bytes(await self._stream.receive_some(_RECEIVE_SIZE))
            except trio.ClosedResourceError:
                return b"", ending.DROPPED
            except Exception as error:  # noqa: BLE001 - nothing can be read any more
                return b"", self._how_writing_failed or ending.how_it_broke(error)
            if not data:
                return b"", self._how_writing_failed or ending.HUNG_UP
            self.last_heard = trio.current_time()
        self.progress += 1
        return data, None

    def _take(self, data: bytes) -> None:
        """Make messages of bytes, act on other frames, and put answers into the queue."""
        splitter = self._splitter
        self._unread = splitter.receive(data)
        if splitter.pongs:
            pongs, splitter.pongs = splitter.pongs, []
            for payload in pongs:
                self._take_pong(payload)
        if splitter.is_over:
            self._note_end(self._how_it_closed())
        self._outgoing += self._protocol.data_to_send()

    def _how_it_closed(self) -> ConnectionLostError:
        """The error for a close frame, or for what can't be read."""
        protocol = self._protocol
        if self._splitter.is_not_utf8:
            close = Close(CloseCode.INVALID_DATA, "a text isn't UTF-8")
            return _closed(close, is_local=True)
        # A close frame in the middle of a message counts, although it is an error.
        received = protocol.close_rcvd
        is_local = received is None or protocol.close_rcvd_then_sent is False
        end = _closed(received or protocol.close_sent, is_local=is_local)
        end.__cause__ = protocol.parser_exc
        return end

    def _take_pong(self, payload: bytes) -> None:
        while payload in self._pings:  # It answers earlier pings too.
            earliest = next(iter(self._pings))
            self._pings.pop(earliest).set()

    # --- Writing ---------------------------------------------------------------------------

    async def send(self, messages: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        try:
            for message in messages:
                self._protocol.send_text(message.encode())
        except Exception as error:
            raise ending.failed(error) from error
        await self._write()

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        payload, answered = secrets.token_bytes(4), trio.Event()
        try:
            self._protocol.send_ping(payload)
        except Exception as error:
            raise ending.failed(error) from error
        self._pings[payload] = answered
        try:
            await self._write()
            await answered.wait()
        finally:
            is_unanswered = self._pings.pop(payload, None) is not None
        if is_unanswered and self._end is not None:
            raise fresh(self._end)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        with suppress(ConnectionLostError):
            if self._protocol.state is OPEN:
                self._check_open()
                self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            if self._end is None or self._outgoing:
                await self._write()
            while self._end is None:
                await self.receive()

    def _check_open(self) -> None:
        """Raise if nothing can be sent any more."""
        if self._end is not None:
            raise fresh(self._end)
        if self._protocol.state is not OPEN:
            raise ending.cut(ending.CLOSED_HERE)

    async def _write(self) -> None:
        """Send all that waits, in one write."""
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            # Nothing has been written yet, so a cancellation does no harm.
            await trio.lowlevel.checkpoint_if_cancelled()
            data = b"".join((*self._outgoing, *self._protocol.data_to_send()))
            self._outgoing.clear()
            if self._is_half_written:  # What follows would be taken for the rest of a frame.
                why = self._how_writing_failed or "a write was cut short"
                raise ending.cut(why)  # noqa: TRY301
            self._is_half_written = True
            await self._stream.send_all(data)
            self._is_half_written = False
        except ConnectionLostError:
            raise
        except trio.ClosedResourceError:
            raise ending.cut(ending.DROPPED) from None
        except Exception as error:
            self._how_writing_failed = ending.how_it_broke(error)
            raise ending.cut(self._how_writing_failed) from error
        finally:
            self._writing.release()

    # --- The end ---------------------------------------------------------------------------

    def drop(self) -> None:
        """The socket is about to be closed."""
        self._outgoing.clear()
        self._note_end(ending.cut(ending.DROPPED))

    def _note_end(self, end: ConnectionLostError) -> None:
        """Note why nothing more will come. The first reason counts."""
        if self._end is None:
            self._end = end
            for answered in self._pings.values():
                answered.set()


def _closed(close: Close | None, *, is_local: bool) -> ConnectionLostError:
    """The error for a close frame."""
    assert close is not None  # noqa: S101 - only a hang-up has none
    try:
        name = CloseCode(close.code).name
    except ValueError:
        name = "unknown"
    return ending.closed(int(close.code), name, close.reason, is_local=is_local)
