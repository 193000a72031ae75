"""The transport over trio-websocket.

trio-websocket reads in a background task of its own, and that task decides how this file looks.
It can end in many ways, most of them silent: when the peer hangs up or answers nonsense during
the handshake, the event that announces an open WebSocket is simply never set; when it crashes (a
refused handshake, a wrong ``Sec-WebSocket-Accept``, a ping that arrives while we are closing), its
exception goes to whatever nursery it was started in; and whoever waits for a pong then waits for
ever. So:

- The reader lives in a nursery inside a task of ours (`_Reader.run`), which turns every end of it
  into one fact, "over", and wakes everybody who waits. Its exceptions go nowhere else: they
  neither cancel the user's block nor wrap what the user raises there.
- That task is shielded. A user who is cancelled may still say goodbye under a shielded deadline of
  their own, and for that the reader has to be alive. It ends when the context manager is left,
  and on nothing else; leaving never waits for the network.
- A thin layer under trio-websocket (`_WatchedStream`) sees the bytes themselves: when the peer was
  last heard, what it answered to the handshake, and how the stream ended.

The queue between the reader and `receive` has no room at all. With room, trio-websocket would throw
away what waits there when a message is too large; without, the reader holds each message until
it is taken. It costs nothing, as both tasks run once for each message anyway.

What does cost is that everybody behind `receive` runs once for each message too. So where one read
has brought much, `receive` takes several of its messages before it returns. `_WatchedStream` knows
when there are no more of them: the reader then asks it for the next bytes.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

import trio_broker
from trio_broker.exceptions import ConnectionLostError
from trio_broker.settings import Endpoint
from trio_broker.transports import Transport, ending
from trio_broker.transports.dialing import Attempt, HandshakeAnswer, open_stream

_RECEIVE_BUFFER_SIZE: Final = 64 * 1024

# A read of so many bytes has probably brought several messages, and so many are taken at once:
# with more, the first would wait longer, and little would be gained.
_MUCH: Final = 2048
_MOST_AT_ONCE: Final = 32

# Between two of them trio-websocket may have a ping to answer, which a peer that doesn't read holds
# up: then what was taken is enough.
_LONGEST_WAIT: Final = 0.01

# What RFC 6455 (section 7.4.1) calls it when there was no close frame.
_NO_CLOSE_FRAME: Final = 1006


@asynccontextmanager
# A Ctrl-C between two lines here would leave a shielded task that nobody stops.
@trio.lowlevel.enable_ki_protection
async def open_transport(
    endpoint: Endpoint,
    *,
    ssl_context: ssl.SSLContext | None,
    connect_timeout: float,
    max_receive_size: int,
) -> AsyncIterator[Transport]:
    """Open a transport, as `OpenTransport` says.

    trio-websocket counts the characters of a text and the bytes of a binary message.
    """
    attempt = Attempt(endpoint, connect_timeout)
    held = _HeldBack()
    async with open_stream(attempt, ssl_context) as stream:
        reader = _Reader(_WatchedStream(stream))
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                nursery.start_soon(reader.run, endpoint, max_receive_size)
                with held:
                    yield _TrioWebSocketTransport(await reader.opened(attempt), reader)
                reader.stop()
        except BaseExceptionGroup as group:
            # Only a Ctrl-C that struck the reader gets here.
            raise _first_leaf(group) from held.error
    held.release()


class _HeldBack:
    """Takes what its block raises out of a nursery, which would put it into a group."""

    error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        self.error = error
        return True

    def release(self) -> None:
        """Raise it, if there is anything."""
        try:
            if self.error is not None:
                raise self.error
        finally:
            # Its traceback refers to this frame: that would be a cycle.
            self.error = None


class _TrioWebSocketTransport:
    """`Transport` over a trio-websocket connection.

    Pings are answered and pongs are heard only as far as somebody receives: the reader doesn't
    read past a message that waits to be taken.
    """

    def __init__(self, connection: WebSocketConnection, reader: _Reader) -> None:
        self._connection = connection
        self._reader = reader
        self._closing = False
        self._messages: list[str | bytes] = []

    @property
    def last_heard(self) -> float:
        return self._reader.stream.last_heard

    async def receive(self) -> list[str | bytes]:
        # What was taken when this was cancelled is still there.
        if self._messages:
            await trio.lowlevel.checkpoint()
        try:
            if not self._messages:
                self._messages.append(await self._connection.get_message())
            if self._reader.stream.has_brought_much:
                await self._take_more()
        except ConnectionClosed:
            if not self._closing:
                # trio-websocket would read on, for nobody, while the peer keeps its socket open.
                self._reader.stop()
            if not self._messages:
                raise self._lost() from self._reader.crash
        return self.taken()

    def taken(self) -> list[str | bytes]:
        messages, self._messages = self._messages, []
        return messages

    async def _take_more(self) -> None:
        """Take what the last read has brought besides."""
        with self._reader.stream.until_next_read() as scope:
            while len(self._messages) < _MOST_AT_ONCE and not scope.cancel_called:
                self._messages.append(await self._connection.get_message())

    async def send(self, messages: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        for message in messages:
            with self._while_open():
                await self._connection.send_message(message)

    async def ping(self) -> None:
        with self._while_open():
            await self._connection.ping()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._closing = True
        with contextlib.suppress(ConnectionLostError), self._while_open():
            await self._connection.aclose()

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        """Give up what is being done when the connection ends, and say why it ended."""
        with self._reader.until_over() as scope:
            try:
                yield
            except ConnectionClosed:
                raise self._lost() from self._reader.crash
        if scope.cancelled_caught or self._reader.stream.write_failed:
            raise self._lost() from self._reader.crash

    def _lost(self) -> ConnectionLostError:
        closed = self._connection.closed
        if closed is None or closed.code == _NO_CLOSE_FRAME:
            return ending.cut(self._reader.stream.end or ending.DROPPED)
        return ending.closed(int(closed.code), closed.name, closed.reason or "")


class _Reader:
    """The task in which trio-websocket reads, and what became of it.

    Attributes:
        stream: The stream that it reads from.
        crash: What it raised, None if it didn't.
    """

    def __init__(self, stream: _WatchedStream) -> None:
        self.stream = stream
        self.crash: BaseException | None = None
        self._connection: WebSocketConnection | None = None
        self._concluded = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._over = False
        self._operations: set[trio.CancelScope] = set()

    @trio.lowlevel.enable_ki_protection
    async def run(self, endpoint: Endpoint, max_receive_size: int) -> None:
        """Do the handshake and read, until the stream ends or `stop` is called."""
        user_agent = f"trio-broker/{trio_broker.__version__}"
        try:
            with self._scope:
                async with trio.open_nursery(strict_exception_groups=True) as nursery:
                    with self.stream.handshake:
                        self._connection = await wrap_client_stream(
                            nursery,
                            self.stream,  # type: ignore[arg-type]  # it needs three methods
                            endpoint.netloc,
                            endpoint.resource,
                            extra_headers=[(b"User-Agent", user_agent.encode())],
                            message_queue_size=0,
                            max_message_size=max_receive_size,
                            receive_buffer_size=_RECEIVE_BUFFER_SIZE,
                        )
                    self._concluded.set()
        except* Exception as group:  # noqa: BLE001 - it has bugs, and they end a connection only
            self.crash = _first_leaf(group)
            self.stream.note_end(f"trio-websocket failed ({self.crash!r})")
        finally:
            self._concluded.set()
            self._over = True
            for scope in self._operations:
                scope.cancel()

    async def opened(self, attempt: Attempt) -> WebSocketConnection:
        """Wait for the end of the handshake.

        Raises:
            ConnectFailedError: There is no WebSocket.
        """
        with attempt.phase("waiting for the answer to the WebSocket handshake"):
            await self._concluded.wait()
        if self._connection is not None:
            return self._connection
        if error := attempt.refused(self.stream.answer.text):
            raise error
        if self.crash is not None:
            raise attempt.misunderstood(self.crash) from self.crash
        raise attempt.failed(f"{self.stream.end} in the WebSocket handshake")

    def stop(self) -> None:
        """End the task at once."""
        self._scope.cancel()

    @contextmanager
    def until_over(self) -> Iterator[trio.CancelScope]:
        """A scope that is cancelled when the task ends, and with it all hope of an answer."""
        with trio.CancelScope() as scope:
            if self._over:
                scope.cancel()
            self._operations.add(scope)
            try:
                yield scope
            finally:
                self._operations.discard(scope)


class _WatchedStream:
    """What trio-websocket takes for its stream: the real one, and notes about it.

    It isn't a `trio.abc.Stream` but the three methods that trio-websocket uses, for it hides that
    a write failed. trio-websocket would drop every message that it has read and not delivered
    yet; so it may go on reading, and finds the same end a little later.

    Attributes:
        last_heard: When the last bytes came, on Trio's clock.
        answer: The answer to the handshake.
        handshake: Cancelled once no answer to the handshake can come any more.
        end: How the stream ended, None while it hasn't.
        write_failed: Whether a write has failed.
        has_brought_much: Whether the last read brought much, and the next hasn't begun.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.last_heard = trio.current_time()
        self.answer = HandshakeAnswer()
        self.handshake = trio.CancelScope()
        self.end: str | None = None
        self.write_failed = False
        self.has_brought_much = False
        self._next_read = trio.CancelScope()

    @contextmanager
    def until_next_read(self) -> Iterator[trio.CancelScope]:
        """A scope that ends when what the last read has brought has been dealt with, or soon."""
        with trio.move_on_after(_LONGEST_WAIT) as self._next_read:
            yield self._next_read

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        self.has_brought_much = False
        self._next_read.cancel()
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            self.note_end(ending.how_it_broke(error))
            raise
        if not data:
            self.note_end(ending.HUNG_UP)
            return data
        self.last_heard = trio.current_time()
        if why_not := self.answer.feed(data):
            self.note_end(why_not)
            raise trio.BrokenResourceError
        self.has_brought_much = len(data) >= _MUCH
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            self.write_failed = True
            self.end = self.end or ending.how_it_broke(error)

    async def aclose(self) -> None:
        self.note_end(ending.CLOSED_HERE)
        await self._stream.aclose()

    def note_end(self, how: str) -> None:
        """Note that nothing more will come, the first reason given being the reason."""
        self.end = self.end or how
        # trio-websocket doesn't tell whoever waits for the handshake.
        self.handshake.cancel()


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
