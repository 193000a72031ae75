"""A broker that says what the test says: it accepts, authenticates, and leaves the rest to it.

async with open_scripted() as broker, broker.client() as client:
    line = await broker.line()
    call = start(nursery, client.get_balances)
    await line.receive("balances")
    await line.send(BALANCES)
    await call.result()
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeAlias, TypeVar

import trio

from tests.transports.raw_server import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    accept_websocket,
    close_frame,
    frame,
    receive_frame,
    send,
    serve_raw,
)
from trio_broker import BrokerWSClient, ReconnectPolicy
from trio_broker._connection.link import Link

T = TypeVar("T")
Body: TypeAlias = dict[str, Any]

API_KEY: Final = "key-of-the-tests"
SECRET_KEY: Final = "secret-of-the-tests"

# Many tests are about one connection and its end.
NEVER: Final = ReconnectPolicy(max_attempts=0)

AUTHENTICATED: Final[Body] = {"op": "auth", "data": {"status": "authenticated"}}
BALANCES: Final[Body] = {
    "op": "balances",
    "data": {"balances": [{"asset": "USDT", "total": "5", "locked": "1"}]},
}
ESTIMATE: Final[Body] = {"op": "estimate", "data": {"price": "2", "expectedOut": "20"}}
SWAPPED: Final[Body] = {"op": "swap", "data": {"orderId": "o1", "status": "PENDING"}}

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE: Final = 20.0


def order(order_id: str = "o1", status: str = "PENDING", at: int = 1) -> Body:
    """The body of an order's state."""
    return {"orderId": order_id, "status": status, "updatedAt": 1732526400000 + at}


def order_status(order_id: str = "o1", status: str = "PENDING", at: int = 1) -> Body:
    """A reply to ``order_status``."""
    return {"op": "order_status", "data": order(order_id, status, at)}


def acknowledgement(request: Body) -> Body:
    """The acknowledgement of a ``subscribe`` or ``unsubscribe``."""
    op = request["op"]
    return {"op": op, "ch": request["ch"], "data": {"status": f"{op}d"}}


class ScriptedConnection:
    """One connection of a client, from the broker's side.

    Attributes:
        auth: The client's ``auth`` message, once it has come.
        gone: Set when the client has closed the WebSocket or hung up.
        goodbye: The payload of the client's close frame, None if there was none.
        pings: How many pings came.
    """

    def __init__(self, stream: trio.abc.Stream, auth: Body | None, *, pongs: bool) -> None:
        self.stream = stream
        self.auth: Body = {}
        self.gone = trio.Event()
        self.goodbye: bytes | None = None
        self.pings = 0
        self.pongs = pongs
        self._scope = trio.CancelScope()
        self._reply_to_auth = auth
        self._sending = trio.Lock()
        self._arrived, self._messages = trio.open_memory_channel[Body](math.inf)

    async def receive(self, op: str | None = None) -> Body:
        """The client's next message, which must be of this operation, if one is given."""
        message = await self._messages.receive()
        assert op in {message["op"], None}, message
        return message

    def nothing_came(self) -> bool:
        """Whether there is no message that wasn't received."""
        return self._messages.statistics().current_buffer_used == 0

    async def send(self, *messages: str | Body) -> None:
        """Send messages, each a text or what is printed as JSON."""
        texts = [text if isinstance(text, str) else json.dumps(text) for text in messages]
        await self.send_bytes(b"".join(frame(text) for text in texts))

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes."""
        async with self._sending:
            await send(self.stream, data)

    async def acknowledge(self, op: str = "subscribe") -> Body:
        """Receive a ``subscribe`` or ``unsubscribe``, and acknowledge it."""
        request = await self.receive(op)
        await self.send(acknowledgement(request))
        return request

    async def serve(self) -> None:
        """Take what the client sends, until it is gone."""
        try:
            with self._scope:
                await self._serve()
        finally:
            self.gone.set()

    def hang_up(self) -> None:
        """Close the socket, without a close frame."""
        self._scope.cancel()

    async def _serve(self) -> None:
        while True:
            opcode, payload = await receive_frame(self.stream)
            if opcode == PING:
                self.pings += 1
                if self.pongs:
                    await self.send_bytes(frame(payload, PONG))
            elif opcode == CLOSE:
                self.goodbye = payload
                await self.send_bytes(close_frame(1000))
                return
            elif opcode == TEXT:
                await self._take(json.loads(payload))

    async def _take(self, message: Body) -> None:
        if message["op"] == "auth":
            self.auth = message
            if self._reply_to_auth is not None:
                await self.send(self._reply_to_auth)
        else:
            self._arrived.send_nowait(message)


class Scripted:
    """A running scripted broker.

    Attributes:
        url: Where it listens.
        lines: All connections, in their order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.lines: list[ScriptedConnection] = []
        self._opened, self._to_take = trio.open_memory_channel[ScriptedConnection](math.inf)

    def client(self, **options: Any) -> BrokerWSClient:
        """A client of this broker, not yet connected; it doesn't reconnect unless it is told to."""
        return BrokerWSClient(API_KEY, SECRET_KEY, self.url, **{"reconnect": NEVER, **options})

    async def line(self) -> ScriptedConnection:
        """The next connection."""
        return await self._to_take.receive()

    def add(self, line: ScriptedConnection) -> None:
        """Note a connection."""
        self.lines.append(line)
        self._opened.send_nowait(line)


@asynccontextmanager
async def open_scripted(
    auth: Body | None = AUTHENTICATED, *, pongs: bool = True, reads: bool = True
) -> AsyncIterator[Scripted]:
    """Run a scripted broker.

    Args:
        auth: What it replies to ``auth``, None for nothing.
        pongs: Whether it answers pings.
        reads: Whether it reads anything after ``auth``.
    """
    broker: Scripted

    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream)
        line = ScriptedConnection(stream, auth, pongs=pongs)
        broker.add(line)
        if not reads:
            await receive_frame(stream)
            await line.send(auth or "")
            await trio.sleep_forever()
        await line.serve()

    async with serve_raw(handler) as port:
        broker = Scripted(f"ws://127.0.0.1:{port}/ws/v1/stream")
        yield broker


@asynccontextmanager
async def scripted_client(
    **options: Any,
) -> AsyncIterator[tuple[BrokerWSClient, ScriptedConnection]]:
    """A client that is connected to a scripted broker, and its connection."""
    async with open_scripted() as broker, broker.client(**options) as client:
        yield client, await broker.line()


class Call(Generic[T]):
    """A call that runs in the background."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self._value: list[T] = []
        self._error: Exception | None = None

    async def run(self, function: Callable[..., Awaitable[T]], *arguments: object) -> None:
        """Make the call."""
        try:
            with self.scope:
                self._value.append(await function(*arguments))
        except Exception as error:  # noqa: BLE001 - `result` raises it
            self._error = error
        finally:
            self.done.set()

    async def result(self) -> T:
        """Wait for it, and return or raise what it did."""
        await self.done.wait()
        if self._error is not None:
            raise self._error
        return self._value[0]


def start(
    nursery: trio.Nursery, function: Callable[..., Awaitable[T]], *arguments: object
) -> Call[T]:
    """Start a call in the background."""
    call: Call[T] = Call()
    nursery.start_soon(call.run, function, *arguments)
    return call


async def wait_until(condition: Callable[[], object]) -> None:
    """Let other tasks run until a condition holds."""
    while True:
        if condition():
            return
        await trio.lowlevel.checkpoint()


def link_of(client: BrokerWSClient) -> Link:
    """The connection of a client that is connected."""
    link = client._driver.link
    assert link is not None
    return link


def count_tasks() -> int:
    """How many tasks live."""
    return trio.lowlevel.current_statistics().tasks_living
