"""The sockets around the sandbox's broker.

Each client's socket has a `Link` with its own nursery. It runs trio-websocket's reader, a task that
passes the client's messages to the broker, a task that writes, and a task that watches the
connection's deadlines. The laws of this file:

- A client can affect only its own link: it may send garbage, disconnect or stop reading.
  trio-websocket's reader raises protocol errors into its nursery. So that nursery is the link's,
  and the link handles every error. (trio-websocket's own server would end with the first one.)
- The server never waits for a client. Messages go into the client's bounded outbox. A client is
  dropped if its outbox is full, or if it doesn't read a message in time.
- Faults are applied in one place each: to accepted streams in `Server._accept`, to received
  messages in `Link._handle`, to sent messages in `Server.dispatch`, and to bytes in the
  `FaultyStream` under the WebSocket. A client is never dropped for a delay that a fault causes.
- A server can be killed and revived. Its listeners and links have their own nursery, inside of the
  nursery of the task that advances the orders.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import attrs
import trio
import trio_websocket
import wsproto.utilities

from trio_broker.sandbox.broker import Broker, Connection, Outgoing
from trio_broker.sandbox.disturbance import (
    Delivery,
    Disturbances,
    FaultyStream,
    Handshake,
    Raw,
    reset,
)
from trio_broker.sandbox.events import ClientCame, ClientLeft, ClientTurnedAway
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.rest import RestBroker
from trio_broker.sandbox.rest_server import RestServer
from trio_broker.sandbox.rules import Rules

logger: Final = logging.getLogger("trio_broker.sandbox")

_READ_SIZE: Final = 64 * 1024
_NO_CLOSE_FRAME: Final = 1006  # wsproto's code if there was no close frame
_BACKLOG: Final = 0xFFFF  # As Trio's own listeners; systems reduce it to their limit.

# Errors of a client that disconnects or breaks the WebSocket protocol.
_CLIENT_ERRORS: Final = (
    trio_websocket.ConnectionClosed,
    wsproto.utilities.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    OSError,
)


class Server:
    """Serves a broker to WebSocket clients, and to REST clients on another port.

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
        self._rest = RestServer(
            RestBroker(broker, rules), rules, self.disturbances, self.now, broker.report
        )
        self._streams: set[trio.SocketStream] = set()
        self._sockets: list[trio.socket.SocketType] = []
        self._rest_sockets: list[trio.socket.SocketType] = []
        self._life = trio.CancelScope()
        self._alive = trio.Event()
        self._revived = trio.Event()
        self._sooner = trio.Event()
        self._deadline = math.inf
        self._left = trio.Event()

    def now(self) -> Moment:
        """The time, on both clocks."""
        return Moment(trio.current_time(), self._clock() + self.disturbances.clock_shift())

    def links(self, api_key: str | None = None) -> list[Link]:
        """The clients whose handshake is done and that aren't dropped.

        With `api_key`, only those that are authenticated with it.
        """
        return [
            link
            for connection, link in self._links.items()
            if api_key in {None, connection.api_key} and not link.is_dropped
        ]

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        rest_listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; every socket is closed then."""
        self._sockets = [listener.socket for listener in listeners]
        self._rest_sockets = [listener.socket for listener in rest_listeners]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._listen)
            await self._alive.wait()
            task_status.started()

    @property
    def is_killed(self) -> bool:
        """Whether the server is killed and not revived."""
        return not self._alive.is_set()

    def kill(self) -> None:
        """Stop listening and reset every socket. Orders continue."""
        self._alive, self._revived = trio.Event(), trio.Event()
        # First, so that the tasks are cancelled before their sockets are closed.
        self._life.cancel()
        for link in self.links():
            link.drop()
        for stream in self._streams:
            reset(stream)
        self._sockets = [_bind_again(listening) for listening in self._sockets]
        self._rest_sockets = [_bind_again(listening) for listening in self._rest_sockets]

    async def revive(self) -> None:
        """Listen again, at the same address."""
        for bound in (*self._sockets, *self._rest_sockets):
            bound.listen(_BACKLOG)
        self._revived.set()
        await self._alive.wait()

    async def close_connections(self) -> None:
        """Close every connection with code 1001, within `close_timeout`.

        Cancelling is safe: what isn't closed then is closed when `serve` is cancelled.
        """
        for link in self.links():
            link.hang_up(1001, "the sandbox closes")
        with trio.move_on_after(self.rules.close_timeout):
            while self._links:
                await self._left.wait()

    def dispatch(self, outgoing: Iterable[Outgoing]) -> None:
        """Send texts to their clients, as far as faults allow it."""
        self._deliver(self.disturbances.altered(outgoing, trio.current_time()))
        if self._next_deadline() < self._deadline:
            self._sooner.set()

    def post(self, item: str | Raw, api_key: str | None) -> int:
        """Send a text or bytes to all `links` of an account, and return their number."""
        links = self.links(api_key)
        for link in links:
            link.post(item)
        return len(links)

    def end_sessions(self, text: str, api_key: str | None) -> int:
        """Send a text to all `links` of an account, and forget their sessions."""
        links = self.links(api_key)
        for connection, link in self._links.items():
            if link in links:
                link.post(text)
                self.broker.end_session(connection)
        return len(links)

    def register(self, link: Link) -> Connection:
        """Begin a connection."""
        connection = self.broker.open(trio.current_time())
        self._links[connection] = link
        self.broker.report(ClientCame(connection=connection.number))
        return connection

    def forget(self, connection: Connection) -> None:
        """End a connection."""
        self.broker.close(connection, trio.current_time())
        link = self._links.pop(connection)
        code, reason = link.close_frame()
        left = ClientLeft(
            connection=connection.number,
            api_key=connection.api_key,
            code=code,
            reason=reason,
            was_dropped=link.is_cut_off,
        )
        self.broker.report(left)
        self._left.set()
        self._left = trio.Event()

    async def _listen(self) -> None:
        """Accept clients, whenever the server isn't killed."""
        try:
            while True:
                async with trio.open_nursery() as nursery:
                    self._life = nursery.cancel_scope
                    for sockets, accept in (
                        (self._sockets, self._accept),
                        (self._rest_sockets, self._accept_rest),
                    ):
                        listeners = [trio.SocketListener(listening) for listening in sockets]
                        await nursery.start(trio.serve_listeners, accept, listeners)
                    self._alive.set()
                await self._revived.wait()
        finally:
            for listening in (*self._sockets, *self._rest_sockets):
                listening.close()

    async def _accept(self, stream: trio.SocketStream) -> None:
        with self._accepted(stream):
            greeting = self.disturbances.greeting()
            if not (greeting is None or (isinstance(greeting, Handshake) and not greeting.ends)):
                self.broker.report(ClientTurnedAway())
            await Link(self, stream).run(greeting)

    async def _accept_rest(self, stream: trio.SocketStream) -> None:
        with self._accepted(stream):
            await self._rest.serve(stream)

    @contextlib.contextmanager
    def _accepted(self, stream: trio.SocketStream) -> Iterator[None]:
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.remove(stream)
            # It may have been accepted just before the server was killed.
            if self._life.cancel_called:
                reset(stream)

    def _deliver(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            # The client of a delayed message may have disconnected.
            link = self._links.get(delivery.connection)
            if link is not None:
                link.post(delivery.item)

    def _next_deadline(self) -> float:
        deadline = self.broker.next_deadline()
        late = self.disturbances.next_deadline()
        return late if deadline is None else min(late, deadline)

    async def _keep_time(self) -> None:
        """Advance the orders, and send delayed messages."""
        while True:
            self._sooner = trio.Event()
            self._deadline = self._next_deadline()
            with trio.move_on_at(self._deadline):
                await self._sooner.wait()
            self.dispatch(self.broker.advance(self.now()))
            self._deliver(self.disturbances.due(trio.current_time()))


def _bind_again(listening: trio.socket.SocketType) -> trio.socket.SocketType:
    """Close a listening socket, and bind another to its address, which doesn't listen.

    As long as it doesn't, clients are refused, but no other process can take the port.
    """
    address = listening.getsockname()
    bound = socket.socket(listening.family, socket.SOCK_STREAM)
    listening.close()
    # On Windows, it would let other processes use the port too.
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


class Link:
    """One client's socket, from its acceptance to its end.

    Attributes:
        stream: The stream under the WebSocket.
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
        self._final_item: _Close | Raw | None = None

    async def run(self, greeting: bytes | str | Handshake | None = None) -> None:
        """Serve the client until either side ends the connection. It raises no error.

        Trio always closes the socket after it.

        With `greeting`, the client gets that instead of a handshake: an HTTP response,
        ``"reset"`` or ``"silence"``; or a changed handshake.
        """
        try:
            with self._scope:
                if greeting == "reset":
                    self.reset()
                elif greeting == "silence":
                    await self._stay_silent()
                elif isinstance(greeting, Handshake):
                    self.stream.handshake = greeting
                    await self._handshake_and_talk(None)
                else:
                    await self._handshake_and_talk(greeting)
                await self._linger()
        except* _CLIENT_ERRORS as errors:
            logger.debug("a client went wrong: %r", errors.exceptions)
        except* Exception:
            logger.exception("serving a client failed: this is a mistake in the sandbox")

    def post(self, item: str | Raw | _Close) -> None:
        """Queue a text, bytes for the socket, or a close. After the end, it is dropped."""
        try:
            self._outbox.send_nowait(item)
        except trio.WouldBlock:
            logger.info("a client that reads too slowly is dropped")
            self.drop()
        except trio.ClosedResourceError:
            pass

    @property
    def is_dropped(self) -> bool:
        """Whether the socket is closed, or about to be."""
        return self._scope.cancel_called

    @property
    def is_cut_off(self) -> bool:
        """Whether this side ended it without a close frame."""
        return self.is_dropped or isinstance(self._final_item, Raw)

    def close_frame(self) -> tuple[int | None, str]:
        """The code and reason of the close frame; no code if there was none."""
        if self.is_cut_off:
            return None, ""
        if isinstance(self._final_item, _Close):
            return self._final_item.code, self._final_item.reason
        closed = self._websocket.closed
        if closed is None or closed.code == _NO_CLOSE_FRAME:
            return None, ""
        return closed.code, closed.reason or ""

    def drop(self) -> None:
        """Close the socket at once, without a close frame."""
        self._scope.cancel()

    def reset(self) -> None:
        """Reset the connection at once."""
        # First, so that the tasks are cancelled before the socket is closed.
        self.drop()
        self.stream.reset()

    def hang_up(self, code: int, reason: str) -> None:
        """Close the WebSocket once all texts before are sent."""
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
                    # It counts characters, so `_read` checks the limit in bytes.
                    max_message_size=self._rules.max_message_size,
                    receive_buffer_size=_READ_SIZE,
                )
                if isinstance(refusal, bytes):
                    await self.stream.send_all(refusal)
                else:
                    self._websocket = await request.accept()
            if refusal is None and not handshake.cancelled_caught:
                await self._serve_connection()
            nursery.cancel_scope.cancel()

    async def _serve_connection(self) -> None:
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
                self._handle(connection, message)

    def _handle(self, connection: Connection, message: str | bytes) -> None:
        server = self._server
        interception = server.disturbances.intercept(connection, message)
        if interception is None:
            outgoing = server.broker.receive(connection, message, server.now())
        elif interception.executes:
            reply, *pushes = server.broker.receive(connection, message, server.now())
            outgoing = [*interception.replies(reply, message), *pushes]
        else:
            reply = server.broker.record(connection, message, trio.current_time())
            outgoing = interception.replies(reply, message)
        server.dispatch(outgoing)

    async def _write(self) -> None:
        """Send the queued items, until a close or until the reader has ended."""
        async for item in self._to_send:
            # Before the timeout, so that a fault's delay doesn't count.
            await self.stream.wait_writable()
            if isinstance(item, _Close):
                self._final_item = item
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
                self._final_item = item
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
        # Closing a socket with unread data resets the connection, and the client may never see
        # the close frame. So the rest is read and thrown away.
        gone = contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError)
        with trio.move_on_after(self._rules.close_timeout), gone:
            await self.stream.send_eof()
            while await self.stream.receive_some(_READ_SIZE):
                pass
