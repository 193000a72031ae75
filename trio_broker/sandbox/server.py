"""The sockets around the sandbox's broker.

Each client's socket has a `Link` with a nursery of its own: trio-websocket's reader, a task that
takes the client's messages to the broker, one that writes, and one that watches the deadlines of
a connection's life. The laws of this file:

- Whatever a client does stays within its own link: it may send garbage, vanish or stop reading.
  trio-websocket's reader lets protocol errors out into its nursery, so that nursery is the link's,
  and the link contains every error. (Its own server would end with the first of them.)
- Nobody waits for a client. What goes to one is put into its bounded outbox; a client whose
  outbox is full, or who doesn't take a message in time, is dropped.
- Everything passes one place, and there the faults that a test asks for are asked: an accepted
  stream `Server._accept`, a message from a client `Link._arrived`, what the broker says
  `Server.dispatch`, and bytes the `FaultyStream` under the WebSocket. A slowness that a fault
  brings about is never held against the client.
- A server can be killed and revived: its listeners and links live in a nursery of their own,
  inside the one in which time goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable, Iterable
from typing import Final

import attrs
import trio
import trio_websocket
import wsproto.utilities

from trio_broker.sandbox.broker import Broker, Connection, Outgoing
from trio_broker.sandbox.disturbance import Disturbances, FaultyStream, reset
from trio_broker.sandbox.events import ClientCame, ClientLeft, ClientTurnedAway
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.rules import Rules

logger: Final = logging.getLogger("trio_broker.sandbox")

_READ_SIZE: Final = 64 * 1024
_NO_GOODBYE: Final = 1006  # what a WebSocket library says when there was no close frame
_BACKLOG: Final = 0xFFFF  # As Trio's own listeners; systems reduce it to what they can.

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

    Attributes:
        broker: The broker.
        rules: The sandbox's settings.
        disturbances: The faults in force.
    """

    def __init__(self, broker: Broker, rules: Rules, clock: Callable[[], float]) -> None:
        self.broker = broker
        self.rules = rules
        self.disturbances: Disturbances = Disturbances()
        self._clock = clock
        self._links: dict[Connection, Link] = {}
        self._streams: set[trio.SocketStream] = set()
        self._sockets: list[trio.socket.SocketType] = []
        self._life = trio.CancelScope()
        self._alive = trio.Event()
        self._revived = trio.Event()
        self._sooner = trio.Event()
        self._deadline = math.inf
        self._left = trio.Event()

    def now(self) -> Moment:
        """The time, on both clocks."""
        return Moment(trio.current_time(), self._clock())

    def links(self, api_key: str | None = None) -> list[Link]:
        """The clients whose handshake is done, and who aren't dropped.

        Args:
            api_key: Only those that are authenticated with this key.
        """
        return [
            link
            for connection, link in self._links.items()
            if api_key in {None, connection.api_key} and not link.is_dropped
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
        self._sockets = [listener.socket for listener in listeners]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._listen)
            await self._alive.wait()
            task_status.started()

    @property
    def is_killed(self) -> bool:
        """Whether nobody listens, since `kill`."""
        return not self._alive.is_set()

    def kill(self) -> None:
        """Stop listening and reset every socket, at once. Time goes on."""
        self._alive, self._revived = trio.Event(), trio.Event()
        # First, so that the tasks are cancelled and don't find their sockets closed.
        self._life.cancel()
        for link in self.links():
            link.drop()
        for stream in self._streams:
            reset(stream)
        self._sockets = [_successor(listening) for listening in self._sockets]

    async def revive(self) -> None:
        """Listen again where it did before."""
        for bound in self._sockets:
            bound.listen(_BACKLOG)
        self._revived.set()
        await self._alive.wait()

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
        self._deliver(self.disturbances.altered(outgoing, trio.current_time()))
        if self._next_deadline() < self._deadline:
            self._sooner.set()

    def register(self, link: Link) -> Connection:
        """Begin a connection.

        Args:
            link: Its socket.
        """
        connection = self.broker.open(trio.current_time())
        self._links[connection] = link
        self.broker.tell(ClientCame(connection=connection.number))
        return connection

    def forget(self, connection: Connection) -> None:
        """End a connection.

        Args:
            connection: The connection.
        """
        self.broker.close(connection, trio.current_time())
        link = self._links.pop(connection)
        code, reason = link.goodbye()
        left = ClientLeft(
            connection=connection.number,
            api_key=connection.api_key,
            code=code,
            reason=reason,
            was_dropped=link.is_cut_off,
        )
        self.broker.tell(left)
        self._left.set()
        self._left = trio.Event()

    async def _listen(self) -> None:
        """Accept clients, whenever the server isn't killed."""
        try:
            while True:
                listeners = [trio.SocketListener(listening) for listening in self._sockets]
                async with trio.open_nursery() as nursery:
                    self._life = nursery.cancel_scope
                    await nursery.start(trio.serve_listeners, self._accept, listeners)
                    self._alive.set()
                await self._revived.wait()
        finally:
            for listening in self._sockets:
                listening.close()

    async def _accept(self, stream: trio.SocketStream) -> None:
        self._streams.add(stream)
        try:
            greeting = self.disturbances.greeting()
            if greeting is not None:
                self.broker.tell(ClientTurnedAway())
            await Link(self, stream).run(greeting)
        finally:
            self._streams.remove(stream)
            # It may have been accepted just before the server was killed.
            if self._life.cancel_called:
                reset(stream)

    def _deliver(self, messages: Iterable[Outgoing]) -> None:
        for message in messages:
            # What was delayed may come when the client is gone.
            link = self._links.get(message.connection)
            if link is not None:
                link.post(message.text)

    def _next_deadline(self) -> float:
        deadline = self.broker.next_deadline()
        late = self.disturbances.next_deadline()
        return late if deadline is None else min(late, deadline)

    async def _keep_time(self) -> None:
        """Take orders through their lives, and let go what was delayed."""
        while True:
            self._sooner = trio.Event()
            self._deadline = self._next_deadline()
            with trio.move_on_at(self._deadline):
                await self._sooner.wait()
            self.dispatch(self.broker.advance(self.now()))
            self._deliver(self.disturbances.due(trio.current_time()))


def _successor(listening: trio.socket.SocketType) -> trio.socket.SocketType:
    """Close a listening socket, and bind another to its address, which doesn't listen.

    As long as it doesn't, clients are refused, but the system gives the port to nobody else.
    """
    address = listening.getsockname()
    bound = socket.socket(listening.family, socket.SOCK_STREAM)
    listening.close()
    # On Windows it would let others have the port as well.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name != "nt")
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind(address)
    return trio.socket.from_stdlib_socket(bound)


@attrs.frozen
class _Close:
    """Ends a connection, after everything that was posted before."""

    code: int
    reason: str


@attrs.frozen
class Raw:
    """Bytes that go straight to the socket, between the frames of the WebSocket.

    Attributes:
        data: The bytes.
        ends: Whether the socket's sending side is closed after them.
        resets: Whether the connection is reset after them.
    """

    data: bytes
    ends: bool = False
    resets: bool = False


class Link:
    """One client's socket, from its acceptance to its end.

    Attributes:
        stream: What the WebSocket writes to and reads from.
    """

    def __init__(self, server: Server, stream: trio.SocketStream) -> None:
        self._server = server
        self._rules = server.rules
        self.stream: FaultyStream = FaultyStream(stream, server.disturbances)
        self._outbox, self._to_send = trio.open_memory_channel[str | Raw | _Close](
            self._rules.outbox_size
        )
        self._scope = trio.CancelScope()
        self._websocket: trio_websocket.WebSocketConnection
        self._last_word: _Close | Raw | None = None

    async def run(self, greeting: bytes | str | None = None) -> None:
        """Serve the client until either side ends it. No error comes out, whatever it does.

        Trio closes the socket after it, forcefully, however it ends.

        Args:
            greeting: What the client gets instead of a handshake: an HTTP response, ``"reset"``
                or ``"silence"``.
        """
        try:
            with self._scope:
                if greeting == "reset":
                    self.reset()
                elif greeting == "silence":
                    await self._stay_silent()
                else:
                    await self._handshake_and_talk(greeting)
                await self._linger()
        except* _CLIENTS_FAULTS as errors:
            logger.debug("a client went wrong: %r", errors.exceptions)
        except* Exception:
            logger.exception("serving a client failed: this is a mistake in the sandbox")

    def post(self, item: str | Raw | _Close) -> None:
        """Send a text to the client, soon; one that comes after the end is lost.

        Args:
            item: The text, bytes for the socket, or the close that ends the connection.
        """
        try:
            self._outbox.send_nowait(item)
        except trio.WouldBlock:
            logger.info("a client that reads too slowly is dropped")
            self.drop()
        except trio.ClosedResourceError:
            pass

    @property
    def is_dropped(self) -> bool:
        """Whether the socket is closed, or as good as."""
        return self._scope.cancel_called

    @property
    def is_cut_off(self) -> bool:
        """Whether it was this side that ended it without a goodbye."""
        return self.is_dropped or isinstance(self._last_word, Raw)

    def goodbye(self) -> tuple[int | None, str]:
        """The close code and the reason that it ended with, for one that has talked.

        Returns:
            No code if there was no goodbye.
        """
        if self.is_cut_off:
            return None, ""
        if isinstance(self._last_word, _Close):
            return self._last_word.code, self._last_word.reason
        closed = self._websocket.closed
        if closed is None or closed.code == _NO_GOODBYE:
            return None, ""
        return closed.code, closed.reason or ""

    def drop(self) -> None:
        """Close the socket at once, without a word."""
        self._scope.cancel()

    def reset(self) -> None:
        """Reset the connection at once."""
        # First, so that the tasks are cancelled and don't find the socket closed.
        self.drop()
        self.stream.reset()

    def hang_up(self, code: int, reason: str) -> None:
        """Close the WebSocket once all texts before are sent.

        Args:
            code: The close code.
            reason: What the client is told.
        """
        logger.info("a connection is closed with code %d: %s", code, reason)
        self.post(_Close(code, reason))

    async def _stay_silent(self) -> None:
        while await self.stream.receive_some(_READ_SIZE):
            pass

    async def _handshake_and_talk(self, refusal: bytes | str | None) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(
                self._unless_slowed(self._rules.handshake_timeout)
            ) as handshake:
                request = await trio_websocket.wrap_server_stream(
                    nursery,
                    self.stream,
                    # It counts characters, so the limit, in bytes, is kept in `_read` as well.
                    max_message_size=self._rules.max_message_size,
                    receive_buffer_size=_READ_SIZE,
                )
                if isinstance(refusal, bytes):
                    await self.stream.send_all(refusal)
                else:
                    self._websocket = await request.accept()
            if refusal is None and not handshake.cancelled_caught:
                await self._be_connected()
            nursery.cancel_scope.cancel()

    async def _be_connected(self) -> None:
        connection = self._server.register(self)
        self.stream.connection = connection
        try:
            await self._talk(connection)
        finally:
            self._server.forget(connection)

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
        answer = server.disturbances.intercept(connection, message)
        if answer is None:
            answer = server.broker.receive(connection, message, server.now())
        else:
            server.broker.note(connection, message, trio.current_time())
        server.dispatch(answer)

    async def _write(self) -> None:
        """Send what is posted, until a close or until the reader has found the end."""
        async for item in self._to_send:
            # Here, so that what a fault holds back isn't late.
            await self.stream.wait_writable()
            if isinstance(item, _Close):
                self._last_word = item
                with trio.move_on_after(self._unless_slowed(self._rules.close_timeout)):
                    await self._websocket.aclose(item.code, item.reason)
                return
            with trio.move_on_after(self._unless_slowed(self._rules.write_timeout)) as writing:
                if isinstance(item, str):
                    await self._websocket.send_message(item)
                else:
                    await self.stream.send_all(item.data)
            if writing.cancelled_caught:
                logger.info("a client that doesn't read is dropped")
                self.drop()
            elif isinstance(item, Raw) and item.resets:
                self.reset()
            elif isinstance(item, Raw) and item.ends:
                self._last_word = item
                return

    def _unless_slowed(self, timeout: float) -> float:
        return math.inf if self.stream.is_slowed else timeout

    async def _watch(self, connection: Connection) -> None:
        since = connection.opened_at
        while True:
            if self.stream.is_unread:
                await self.stream.wait_readable()
                since = trio.current_time()
            now = trio.current_time()
            idle_at = max(since, self.stream.heard_at) + self._rules.idle_timeout
            late_at = since + self._rules.auth_timeout
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
            await self.stream.send_eof()
            while await self.stream.receive_some(_READ_SIZE):
                pass
