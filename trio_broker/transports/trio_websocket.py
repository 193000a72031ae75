"""The transport over trio-websocket.

trio-websocket reads in a background task, and this file is mostly about the ways in which that
task ends. If the peer hangs up during the handshake, the event for an open WebSocket is never set.
If the task crashes (for example on a ping that arrives while we are closing), its exception goes to
the nursery it was started in. And a task that waits for a pong then waits for ever. So:

- The reader runs in a task of ours (`_Reader`), which notes how it ended, and cancels everything
  that waits for an answer. Its exceptions go nowhere else: they don't cancel the user's block.
- Once the WebSocket is open, that task is shielded. A cancelled user may still close politely under
  a shielded deadline of their own, and for that the reader has to be alive. It ends when the
  context manager is left, and on nothing else; leaving never waits for the network.
- A thin layer under trio-websocket (`_WatchedStream`) sees the bytes: when the last ones came, what
  the answer to the handshake was, and how the stream ended.

The queue between the reader and `receive` holds no message. If it did, trio-websocket would drop
the messages in it when a later one is too large. Instead the reader holds each message until it is
taken. That costs nothing, as both tasks run once for each message anyway.

It would cost much if all callers of `receive` ran once for each message too. So when one read has
brought much, `receive` takes several of its messages before it returns. `_WatchedStream` knows when
there are no more of them: the reader then asks it for the next bytes.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import MethodType
from typing import Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream
from wsproto.connection import ConnectionState

from trio_broker._quiet_nursery import QuietNursery
from trio_broker._version import __version__
from trio_broker.exceptions import ConnectionLostError
from trio_broker.redaction import Redact
from trio_broker.settings import Endpoint
from trio_broker.transports import Transport, ending
from trio_broker.transports.dialing import Attempt, connect
from trio_broker.transports.handshake import AnswerError, HandshakeAnswer, key_of
from trio_broker.transports.tls import ClientContext

_RECEIVE_BUFFER_SIZE: Final = 64 * 1024

# The library gets this many bytes of a read at a time, and other tasks run in between: a read can
# hold 32,000 empty fragments or pongs, which would take it half a second.
_PIECE: Final = 2048

# A read of this many bytes has probably brought several messages, of which so many are taken at
# once. With more, the first would wait longer, and little would be gained.
_MUCH: Final = 2048
_MOST_AT_ONCE: Final = 32

# Between two of them trio-websocket may have to answer a ping, and a peer that doesn't read delays
# that. Then `receive` returns what it has.
_LONGEST_WAIT: Final = 0.01

# The code in RFC 6455 (section 7.4.1) for an end without a close frame.
_NO_CLOSE_FRAME: Final = 1006


@asynccontextmanager
# A Ctrl-C between two lines here would leave a shielded task that nothing stops.
@trio.lowlevel.enable_ki_protection
async def open_transport(
    endpoint: Endpoint,
    *,
    ssl_context: ssl.SSLContext | ClientContext | None,
    connect_timeout: float,
    max_receive_size: int,
    redact: Redact = str,
) -> AsyncIterator[Transport]:
    """Open a transport, as `OpenTransport` says.

    trio-websocket counts the characters of a text and the bytes of a binary message.
    """
    attempt = Attempt(endpoint, connect_timeout, redact)
    try:
        async with QuietNursery() as nursery:
            async with attempt.limited():
                stream = await connect(attempt, ssl_context)
                with attempt.handshake():
                    reader = _Reader(nursery, _WatchedStream(stream, redact), redact)
                    connection = await reader.shake_hands(endpoint, max_receive_size)
            reader.scope.shield = True  # Until now, a failure or a cancellation ended it.
            try:
                yield _TrioWebSocketTransport(connection, reader)
            finally:
                reader.scope.cancel()
    finally:
        attempt.close()


class _TrioWebSocketTransport:
    """`Transport` over a trio-websocket connection.

    The reader doesn't read past a message that waits to be taken. So pings are answered and pongs
    are noticed only while a task receives.
    """

    def __init__(self, connection: WebSocketConnection, reader: _Reader) -> None:
        self._connection = connection
        self._reader = reader
        self._closing = False
        self._closed_first = False
        self._messages: list[str | bytes] = []
        self._returned = 0

    @property
    def last_heard(self) -> float:
        return self._reader.stream.last_heard

    @property
    def progress(self) -> int:
        return self._reader.stream.pieces + self._returned + len(self._messages)

    async def receive(self) -> list[str | bytes]:
        # What was taken when this was cancelled is still there.
        if self._messages:
            await trio.lowlevel.checkpoint()
        try:
            if not self._messages:
                self._messages.append(await self._connection.get_message())
            if self._reader.stream.has_brought_much:
                # More has been read; it is taken until the reader asks for the next bytes.
                with trio.move_on_after(_LONGEST_WAIT) as scope:
                    self._reader.stream.next_read = scope
                    while len(self._messages) < _MOST_AT_ONCE and not scope.cancel_called:
                        self._messages.append(await self._connection.get_message())
        except ConnectionClosed:
            if not self._closing:
                # Otherwise trio-websocket would read on as long as the peer keeps its socket open.
                await self._reader.stopped()  # noqa: ASYNC120 - a cancelled caller asks again
            if not self._messages:
                raise self._lost() from self._reader.crash
        messages, self._messages = self._messages, []
        self._returned += len(messages)
        return messages

    def taken(self) -> list[str | bytes]:
        # The reader holds one message until it is taken. What it has read after that one is lost:
        # only its own task can parse it, and that doesn't run during this function.
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            self._messages.append(self._connection._recv_channel.receive_nowait())  # noqa: SLF001
        messages, self._messages = self._messages, []
        self._returned += len(messages)
        return messages

    async def send(self, messages: Sequence[str]) -> None:
        # Without a turn of the scheduler, in which the writer's deadline could pass.
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._while_open():
            for message in messages:
                await self._connection.send_message(message)

    async def ping(self) -> None:
        with self._while_open():
            await self._connection.ping()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._closing = True
        self._closed_first = self._closed_first or self._connection.closed is None
        with contextlib.suppress(ConnectionLostError), self._while_open():
            await self._connection.aclose()

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        """Cancel the block when no answer can come any more, and raise why."""
        stream = self._reader.stream
        with trio.CancelScope() as scope:
            if stream.is_given_up:
                scope.cancel()
            stream.operations.add(scope)
            try:
                yield
            except ConnectionClosed:
                raise self._lost() from self._reader.crash
            except Exception as error:
                raise ending.failed(error) from error
            finally:
                stream.operations.discard(scope)
        if scope.cancelled_caught or stream.has_write_failed:
            raise self._lost() from self._reader.crash

    def _lost(self) -> ConnectionLostError:
        closed = self._connection.closed
        if closed is None or closed.code == _NO_CLOSE_FRAME:
            return ending.cut(self._reader.stream.end or ending.DROPPED)
        # wsproto enters these two states only after a close frame of the peer. If this side closes,
        # for example as a message is too large or not UTF-8, none has come.
        state = self._connection._wsproto.state  # noqa: SLF001 - there is no public name
        has_peer_closed = state in {ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED}
        is_local = self._closed_first or not has_peer_closed
        return ending.closed(int(closed.code), closed.name, closed.reason or "", is_local=is_local)


class _Reader:
    """The task in which trio-websocket reads, and how it ended.

    trio-websocket uses this object as its nursery.

    Attributes:
        stream: The stream that the task reads from.
        scope: The cancel scope of the task.
        crash: What the task raised, None if it didn't.
    """

    def __init__(self, nursery: trio.Nursery, stream: _WatchedStream, redact: Redact) -> None:
        self._nursery = nursery
        self.stream = stream
        self._redact = redact
        self.scope = trio.CancelScope()
        self.crash: Exception | None = None
        self._ended = trio.Event()

    async def shake_hands(self, endpoint: Endpoint, max_receive_size: int) -> WebSocketConnection:
        """Start the task, and wait for the end of the handshake.

        Raises:
            AnswerError: There is no WebSocket.
            Exception: trio-websocket has crashed.
        """
        user_agent = f"trio-broker/{__version__}"
        with self.stream.handshake:
            return await wrap_client_stream(
                self,  # type: ignore[arg-type]  # it needs `start_soon`
                self.stream,  # type: ignore[arg-type]  # it needs three methods
                endpoint.netloc,
                endpoint.resource,
                extra_headers=[(b"User-Agent", user_agent.encode())],
                message_queue_size=0,
                max_message_size=max_receive_size,
                receive_buffer_size=_RECEIVE_BUFFER_SIZE,
            )
        if self.crash is not None:
            raise self.crash
        assert self.stream.refusal is not None  # noqa: S101 - how else could it have ended?
        raise self.stream.refusal

    def start_soon(self, read: MethodType) -> None:
        """Start trio-websocket's reader, a method of its connection."""
        _redactions[read.__self__] = self._redact
        self._nursery.start_soon(self._run, read)

    # A Ctrl-C in it would be lost with the connection. `read` itself can't be decorated: it would
    # be protected in the whole program.
    @trio.lowlevel.enable_ki_protection
    async def _run(self, read: MethodType) -> None:
        with self.scope:
            try:
                await read()
            except Exception as error:  # noqa: BLE001 - a bug there ends only a connection
                self._note_crash(error)
            except trio.Cancelled as cancelled:
                # It may have been raising an error when the scope was cancelled.
                if isinstance(cancelled.__context__, Exception) and self.stream.end is None:
                    self._note_crash(cancelled.__context__)
                raise
            finally:
                self._ended.set()
                self.stream.give_up()

    def _note_crash(self, error: Exception) -> None:
        self.crash = error
        self.stream.note_end(f"trio-websocket failed ({error!r})")

    async def stopped(self) -> None:
        """End the task, and wait for its end, which takes a few turns of Trio."""
        self.scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()


class _WatchedStream:
    """The stream that trio-websocket uses: the real one, with notes about what happens.

    It isn't a `trio.abc.Stream`, but has the three methods that trio-websocket uses. It hides that
    a write has failed, as trio-websocket would drop every message that it has read and not
    delivered. Instead it reads on, and soon finds the same end.

    Attributes:
        last_heard: When the last bytes came, on Trio's clock.
        pieces: How many pieces of the bytes that were read the library has got.
        handshake: Cancelled when no answer to the handshake can come any more.
        refusal: Why the handshake has failed, None if it hasn't.
        end: How the stream ended, None while it hasn't.
        has_write_failed: Whether a write has failed.
        operations: The cancel scopes of what waits for a write or an answer.
        is_given_up: Whether no answer can come any more. `operations` are cancelled then.
        has_brought_much: Whether the last read brought much, and the next hasn't begun.
        next_read: Cancelled when the next read begins.
    """

    def __init__(self, stream: trio.abc.Stream, redact: Redact) -> None:
        self._stream = stream
        self._redact = redact
        self.last_heard = trio.current_time()
        self.pieces = 0
        self._answer: HandshakeAnswer | None = None
        self._is_open = False
        self._unread = b""
        self.refusal: AnswerError | None = None
        self.handshake = trio.CancelScope()
        self.end: str | None = None
        self.has_write_failed = False
        self.operations: set[trio.CancelScope] = set()
        self.is_given_up = False
        self.has_brought_much = False
        self.next_read = trio.CancelScope()

    async def receive_some(self, max_bytes: int) -> bytes:
        data = self._unread
        if data:
            await trio.lowlevel.checkpoint()
        else:
            self.has_brought_much = False
            self.next_read.cancel()
        while not data:
            try:
                data = bytes(await self._stream.receive_some(max_bytes))
            except Exception as error:
                self.note_end(ending.how_it_broke(error))
                raise trio.BrokenResourceError from error
            if not data:
                self.note_end(ending.HUNG_UP)
                break
            self.last_heard = trio.current_time()
            if not self._is_open:
                data = self._answered(data)
            self.has_brought_much = len(data) >= _MUCH
        self.pieces += 1
        self._unread = data[_PIECE:]
        return data[:_PIECE]

    def _answered(self, data: bytes) -> bytes:
        """What the library may see of the handshake's answer: nothing until it is complete."""
        assert self._answer is not None  # noqa: S101 - the request was sent before
        try:
            answer = self._answer.feed(data)
        except AnswerError as error:
            self.refusal = error
            self.note_end(error.message)
            raise trio.BrokenResourceError from error
        self._is_open = bool(answer)
        return answer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._answer is None:
            self._answer = HandshakeAnswer(key_of(data), self._redact)
        try:
            await self._stream.send_all(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing can be sent any more
            self.has_write_failed = True
            self.give_up()
            self.end = self.end or ending.how_it_broke(error)

    async def aclose(self) -> None:
        self.note_end(ending.CLOSED_HERE)
        await self._stream.aclose()

    def note_end(self, how: str) -> None:
        """Note why nothing more will come. The first reason counts."""
        self.end = self.end or how
        if self._answer is not None and self.refusal is None:
            self.refusal = self._answer.cut(self.end)
        # trio-websocket doesn't wake the task that waits for the handshake.
        self.handshake.cancel()

    def give_up(self) -> None:
        """Cancel what waits for an answer: none will come."""
        self.is_given_up = True
        for scope in self.operations:
            scope.cancel()


# The connections whose log records are redacted, and how.
_redactions: weakref.WeakKeyDictionary[object, Redact] = weakref.WeakKeyDictionary()
_logger: Final = logging.getLogger("trio-websocket")


def _filter(record: logging.LogRecord) -> bool:
    """Remove keys and signatures from a log record of trio-websocket; False if it isn't logged.

    Records about connections that aren't ours don't change. At DEBUG it logs each frame and the
    text of a close reason. These records are kept only if the level of this logger itself is set.
    """
    connection = record.args[0] if isinstance(record.args, tuple) and record.args else None
    redact = _redactions.get(connection) if isinstance(connection, WebSocketConnection) else None
    if redact is None:
        return True
    if record.levelno < logging.WARNING and _logger.level == logging.NOTSET:
        return False
    record.msg, record.args = redact(record.getMessage()), ()
    return True


_logger.addFilter(_filter)
