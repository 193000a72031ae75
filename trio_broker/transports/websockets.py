"""The transport over websockets' Sans-I/O layer, which needs the extra ``speed``.

That layer turns bytes into frames and frames into bytes, and neither reads nor writes. So there is
no task here: whoever calls does the work, and what is left undone waits for the next call.

**Reading.** `receive` takes what one read of the socket brings, all of its messages at once. What
has to be answered, pings and a close, is answered before the next read. So a peer that pings and
doesn't read is not read from either, and goes silent for whoever watches `last_heard`. `aclose`
reads too, for the goodbye of the peer; who reads first has the others wait.

**Writing.** What is to leave is put into one queue, and goes out in one write, whoever makes it. A
write that doesn't end as it should may have left half a frame, in which whatever follows would
disappear: then nothing follows.

**The end** is noted once: how it came, and its code. What was read before it is handed over first.
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
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import CONNECTING, OPEN
from websockets.uri import WebSocketURI

import trio_broker
from trio_broker.exceptions import ConnectionLostError, fresh
from trio_broker.settings import Endpoint
from trio_broker.transports import Transport, ending
from trio_broker.transports.dialing import Attempt, HandshakeAnswer, open_stream

# Some 80 updates of an order; with more at once it would hardly be faster.
_RECEIVE_SIZE: Final = 16 * 1024

# For the answer to a peer's goodbye. A peer that doesn't read it mustn't hide that it has gone.
_LAST_WORDS: Final = 0.5

# At level DEBUG it would write every message into the log, keys and signatures with them.
_SILENT: Final = logging.Logger("silent", logging.CRITICAL + 1)  # noqa: LOG001 - nobody may wake it


@asynccontextmanager
async def open_transport(
    endpoint: Endpoint,
    *,
    ssl_context: ssl.SSLContext | None,
    connect_timeout: float,
    max_receive_size: int,
) -> AsyncIterator[Transport]:
    """Open a transport, as `OpenTransport` says; it counts the bytes of a message."""
    attempt = Attempt(endpoint, connect_timeout)
    async with open_stream(attempt, ssl_context) as stream:
        transport = _WebSocketsTransport(stream, endpoint, max_receive_size)
        with attempt.phase("waiting for the answer to the WebSocket handshake"):
            await transport.shake_hands(attempt)
        try:
            yield transport
        finally:
            transport.drop()


class _WebSocketsTransport:
    """`Transport` over websockets' Sans-I/O layer."""

    def __init__(self, stream: trio.abc.Stream, endpoint: Endpoint, max_receive_size: int) -> None:
        uri = WebSocketURI(endpoint.secure, endpoint.host, endpoint.port, endpoint.resource, "")
        self._stream = stream
        self._protocol = ClientProtocol(uri, max_size=max_receive_size, logger=_SILENT)
        self.last_heard: float = trio.current_time()
        self._reading = trio.Lock()
        self._messages: list[str | bytes] = []
        self._fragments = bytearray()
        self._is_text = False
        self._pings: dict[bytes, trio.Event] = {}
        self._writing = trio.Lock()
        self._outgoing: list[bytes] = []
        self._is_half_written = False
        self._how_writing_failed: str | None = None
        self._end: ConnectionLostError | None = None

    async def shake_hands(self, attempt: Attempt) -> None:
        """Do the client's half of the handshake.

        Args:
            attempt: What it is for.

        Raises:
            ConnectFailedError: There is no WebSocket.
        """
        request = self._protocol.connect()
        request.headers["User-Agent"] = f"trio-broker/{trio_broker.__version__}"
        self._protocol.send_request(request)
        with suppress(ConnectionLostError):  # The peer may have answered all the same.
            await self._write()
        answer = HandshakeAnswer()
        while self._protocol.state is CONNECTING:
            data, how_it_ended = await self._receive_some()
            why_not = how_it_ended or answer.feed(data)
            if why_not:
                raise attempt.refused(answer.text) or attempt.failed(
                    f"{why_not} in the WebSocket handshake"
                )
            self._take(data)
            if (error := self._protocol.handshake_exc) is not None:
                raise attempt.misunderstood(error) from error

    # --- Reading ---------------------------------------------------------------------------

    async def receive(self) -> list[str | bytes]:
        if self._messages:  # They came along with the handshake.
            await trio.lowlevel.checkpoint()
        while not self._messages:
            await self._read()
        return self.taken()

    def taken(self) -> list[str | bytes]:
        messages, self._messages = self._messages, []
        return messages

    async def _read(self) -> None:
        """Read once, when it is this task's turn, and before that answer what wants an answer."""
        await _acquire(self._reading)
        try:
            if self._outgoing:
                await self._answer()
            if self._end is not None:
                await trio.lowlevel.checkpoint()
                raise fresh(self._end)
            data, how_it_ended = await self._receive_some()
            if how_it_ended:
                self._note_end(ending.cut(how_it_ended))
            else:
                self._take(data)
        finally:
            self._reading.release()

    async def _answer(self) -> None:
        """Send pongs, and an answer to a goodbye, for which nobody waits for long."""
        # What is left in the socket can still be read, even if nothing can be written.
        with suppress(ConnectionLostError):
            if self._end is None:
                await self._write()
                return
            with trio.move_on_after(_LAST_WORDS):
                await self._write()

    async def _receive_some(self) -> tuple[bytes | bytearray, str | None]:
        """Some bytes, or how the stream ended."""
        try:
            data = await self._stream.receive_some(_RECEIVE_SIZE)
        except trio.BrokenResourceError as error:
            return b"", self._how_writing_failed or ending.how_it_broke(error)
        except trio.ClosedResourceError:
            return b"", ending.DROPPED
        if not data:
            return b"", self._how_writing_failed or ending.HUNG_UP
        self.last_heard = trio.current_time()
        return data, None

    def _take(self, data: bytes | bytearray) -> None:
        """Turn bytes into messages, and into what is to be answered."""
        protocol = self._protocol
        protocol.receive_data(data)
        try:
            for event in protocol.events_received():
                if isinstance(event, Frame):
                    if event.opcode is Opcode.TEXT and event.fin:
                        self._messages.append(str(event.data, "utf-8"))
                    else:
                        self._take_frame(event)
        except UnicodeDecodeError as error:
            protocol.fail(CloseCode.INVALID_DATA, f"can't decode UTF-8: {error.reason}")
            self._note_end(_closed(Close(CloseCode.INVALID_DATA, "a text isn't UTF-8")))
        if protocol.parser_exc is not None:
            # A goodbye in the middle of a message is one all the same.
            end = _closed(protocol.close_rcvd or protocol.close_sent)
            end.__cause__ = protocol.parser_exc
            self._note_end(end)
        self._outgoing += protocol.data_to_send()

    def _take_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.PONG:
            self._take_pong(bytes(frame.data))
        elif opcode is Opcode.CLOSE:
            self._note_end(_closed(self._protocol.close_rcvd))
        elif opcode is not Opcode.PING:
            self._take_fragment(frame)

    def _take_fragment(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._fragments += frame.data
        if frame.fin:
            payload, self._fragments = self._fragments, bytearray()
            self._messages.append(payload.decode() if self._is_text else bytes(payload))

    def _take_pong(self, payload: bytes) -> None:
        while payload in self._pings:  # It answers those that left earlier too.
            earliest = next(iter(self._pings))
            self._pings.pop(earliest).set()

    # --- Writing ---------------------------------------------------------------------------

    async def send(self, messages: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        for message in messages:
            self._protocol.send_text(message.encode())
        await self._write()

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        payload, answered = secrets.token_bytes(4), trio.Event()
        self._protocol.send_ping(payload)
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
                await self._read()
                self._messages.clear()

    def _check_open(self) -> None:
        """Raise if nothing can be sent any more."""
        if self._end is not None:
            raise fresh(self._end)
        if self._protocol.state is not OPEN:
            raise ending.cut(ending.CLOSED_HERE)

    async def _write(self) -> None:
        """Let all that waits leave, in one write."""
        await _acquire(self._writing)
        try:
            # Here nothing has been begun yet: a task that is cancelled does no harm.
            await trio.lowlevel.checkpoint_if_cancelled()
            data = b"".join((*self._outgoing, *self._protocol.data_to_send()))
            self._outgoing.clear()
            if self._is_half_written:
                raise ending.cut(self._how_writing_failed or "a write was cut short")
            self._is_half_written = True
            await self._stream.send_all(data)
            self._is_half_written = False
        except trio.BrokenResourceError as error:
            self._how_writing_failed = ending.how_it_broke(error)
            raise ending.cut(self._how_writing_failed) from error
        except trio.ClosedResourceError:
            raise ending.cut(ending.DROPPED) from None
        finally:
            self._writing.release()

    # --- The end ---------------------------------------------------------------------------

    def drop(self) -> None:
        """The socket is about to be closed."""
        self._outgoing.clear()
        self._note_end(ending.cut(ending.DROPPED))

    def _note_end(self, end: ConnectionLostError) -> None:
        """Note that nothing more will come, the first reason given being the reason."""
        if self._end is None:
            self._end = end
            for answered in self._pings.values():
                answered.set()


def _closed(close: Close | None) -> ConnectionLostError:
    """The error for a close frame."""
    assert close is not None  # noqa: S101 - websockets has one of every end but a hang-up
    try:
        name = CloseCode(close.code).name
    except ValueError:
        name = "unknown"
    return ending.closed(int(close.code), name, close.reason)


async def _acquire(lock: trio.Lock) -> None:
    """Acquire a lock, at once if it is free: what follows is a checkpoint anyway."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
