"""The sockets around the sandbox's broker.

Each client's socket has a `_Link` with a nursery of its own: trio-websocket's reader, a task that
takes the client's messages to the broker, one that writes, and one that watches the deadlines of
a connection's life. The laws of this file:

- Whatever a client does stays within its own link: it may send garbage, vanish or stop reading.
  trio-websocket's reader lets protocol errors out into its nursery, so that nursery is the link's,
  and the link contains every error. (Its own server would end with the first of them.)
- Nobody waits for a client. What goes to one is put into its bounded outbox; a client whose
  outbox is full, or who doesn't take a message in time, is dropped.
- Everything passes one place: an accepted stream `Server._accept`, a message from a client
  `_Link._arrived`, a text to a client `_Link.post`. What is to disturb the traffic belongs there.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from typing import Final

import attrs
import trio
import trio_websocket
import wsproto.utilities

from trio_broker.sandbox.broker import Broker, Connection, Outgoing
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.rules import Rules

logger: Final = logging.getLogger("trio_broker.sandbox")

_READ_SIZE: Final = 64 * 1024

# What a client brings about by going away, or by not speaking WebSocket.
_CLIENTS_FAULTS: Final = (
    trio_websocket.ConnectionClosed,
    wsproto.utilities.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    OSError,
)


class Server:
    """Serves a broker to WebSocket clients.

    Args:
        broker: The broker.
        rules: The sandbox's settings.
        clock: The wall clock, in seconds since the epoch.
    """

    def __init__(self, broker: Broker, rules: Rules, clock: Callable[[], float]) -> None:
        self.broker = broker
        self.rules = rules
        self._clock = clock
        self._links: dict[Connection, _Link] = {}
        self._sooner = trio.Event()
        self._deadline = math.inf
        self._left = trio.Event()

    def now(self) -> Moment:
        """The time, on both clocks."""
        return Moment(trio.current_time(), self._clock())

    def links(self, api_key: str | None = None) -> list[_Link]:
        """The clients whose handshake is done.

        Args:
            api_key: Only those that are authenticated with this key.
        """
        return [
            link
            for connection, link in self._links.items()
            if api_key in {None, connection.api_key}
        ]

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; every socket is closed then.

        Args:
            listeners: Where clients come in.
            task_status: Told once clients are accepted.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._accept, listeners)
            nursery.start_soon(self._keep_time)
            task_status.started()

    async def say_goodbye(self) -> None:
        """Close every connection politely, with code 1001, within `close_timeout`.

        Cancelling is safe: what isn't closed then is closed when `serve` is cancelled.
        """
        for link in self.links():
            link.hang_up(1001, "the sandbox closes")
        with trio.move_on_after(self.rules.close_timeout):
            while self._links:
                await self._left.wait()

    def dispatch(self, outgoing: Iterable[Outgoing]) -> None:
        """Hand texts to the clients that they go to.

        Args:
            outgoing: The texts.
        """
        for message in outgoing:
            self._links[message.connection].post(message.text)
        if self._next_deadline() < self._deadline:
            self._sooner.set()

    def register(self, link: _Link) -> Connection:
        """Begin a connection.

        Args:
            link: Its socket.
        """
        connection = self.broker.open(trio.current_time())
        self._links[connection] = link
        return connection

    def forget(self, connection: Connection) -> None:
        """End a connection.

        Args:
            connection: The connection.
        """
        self.broker.close(connection, trio.current_time())
        del self._links[connection]
        self._left.set()
        self._left = trio.Event()

    async def _accept(self, stream: trio.SocketStream) -> None:
        await _Link(self, stream).run()

    def _next_deadline(self) -> float:
        deadline = self.broker.next_deadline()
        return math.inf if deadline is None else deadline

    async def _keep_time(self) -> None:
        """Take orders through their lives."""
        while True:
            self._sooner = trio.Event()
            self._deadline = self._next_deadline()
            with trio.move_on_at(self._deadline):
                await self._sooner.wait()
            self.dispatch(self.broker.advance(self.now()))


@attrs.frozen
class _Close:
    """Ends a connection, after everything that was posted before."""

    code: int
    reason: str


class _Link:
    """One client's socket, from its acceptance to its end."""

    def __init__(self, server: Server, stream: trio.SocketStream) -> None:
        self._server = server
        self._rules = server.rules
        self._hearing = _Hearing(stream)
        self._stream = trio.StapledStream(stream, self._hearing)
        self._outbox, self._to_send = trio.open_memory_channel[str | _Close](
            self._rules.outbox_size
        )
        self._scope = trio.CancelScope()
        self._websocket: trio_websocket.WebSocketConnection

    async def run(self) -> None:
        """Serve the client until either side ends it. No error comes out, whatever it does.

        Trio closes the socket after it, forcefully, however it ends.
        """
        try:
            with self._scope:
                await self._handshake_and_talk()
                await self._linger()
        except* _CLIENTS_FAULTS as errors:
            logger.debug("a client went wrong: %r", errors.exceptions)
        except* Exception:
            logger.exception("serving a client failed: this is a mistake in the sandbox")

    def post(self, item: str | _Close) -> None:
        """Send a text to the client, soon; one that comes after the end is lost.

        Args:
            item: The text, or the close that ends the connection.
        """
        try:
            self._outbox.send_nowait(item)
        except trio.WouldBlock:
            logger.info("a client that reads too slowly is dropped")
            self.drop()
        except trio.ClosedResourceError:
            pass

    def drop(self) -> None:
        """Close the socket at once, without a word."""
        self._scope.cancel()

    def hang_up(self, code: int, reason: str) -> None:
        """Close the WebSocket once all texts before are sent.

        Args:
            code: The close code.
            reason: What the client is told.
        """
        logger.info("a connection is closed with code %d: %s", code, reason)
        self.post(_Close(code, reason))

    async def _handshake_and_talk(self) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(self._rules.handshake_timeout) as handshake:
                request = await trio_websocket.wrap_server_stream(
                    nursery,
                    self._stream,
                    # It counts characters, so the limit, in bytes, is kept in `_read` as well.
                    max_message_size=self._rules.max_message_size,
                    receive_buffer_size=_READ_SIZE,
                )
                self._websocket = await request.accept()
            if not handshake.cancelled_caught:
                connection = self._server.register(self)
                try:
                    await self._talk(connection)
                finally:
                    self._server.forget(connection)
            nursery.cancel_scope.cancel()

    async def _talk(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, connection)
            nursery.start_soon(self._watch, connection)
            await self._write()
            nursery.cancel_scope.cancel()

    async def _read(self, connection: Connection) -> None:
        with self._outbox, contextlib.suppress(trio_websocket.ConnectionClosed):
            while True:
                message = await self._websocket.get_message()
                size = len(message if isinstance(message, bytes) else message.encode())
                if size > self._rules.max_message_size:
                    self.hang_up(1009, "the message is too large")
                    return
                self._arrived(connection, message)

    def _arrived(self, connection: Connection, message: str | bytes) -> None:
        server = self._server
        server.dispatch(server.broker.receive(connection, message, server.now()))

    async def _write(self) -> None:
        """Send what is posted, until a close or until the reader has found the end."""
        async for item in self._to_send:
            if isinstance(item, _Close):
                with trio.move_on_after(self._rules.close_timeout):
                    await self._websocket.aclose(item.code, item.reason)
                return
            with trio.move_on_after(self._rules.write_timeout) as writing:
                await self._websocket.send_message(item)
            if writing.cancelled_caught:
                logger.info("a client that doesn't read is dropped")
                self.drop()

    async def _watch(self, connection: Connection) -> None:
        while True:
            now = trio.current_time()
            idle_at = self._hearing.heard_at + self._rules.idle_timeout
            late_at = connection.opened_at + self._rules.auth_timeout
            if connection.api_key is not None:
                late_at = math.inf
            if late_at <= now:
                return self.hang_up(1008, "not authenticated in time")
            if idle_at <= now:
                return self.hang_up(1001, "idle for too long")
            await trio.sleep_until(min(idle_at, late_at))

    async def _linger(self) -> None:
        # To close a socket with something unread in it resets the connection, and the client
        # may never see why it was closed: so what it still sends is read and thrown away.
        gone = contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError)
        with trio.move_on_after(self._rules.close_timeout), gone:
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_SIZE):
                pass


class _Hearing(trio.abc.ReceiveStream):
    """The receiving side of a client's stream; it knows when something came, pings included.

    Attributes:
        heard_at: When it last did, on Trio's clock.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.heard_at = trio.current_time()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        self.heard_at = trio.current_time()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
