"""The active faults of the sandbox's server, as rules, and their effects.

The server calls `Disturbances.greeting` for each accepted stream, `intercept` for each received
message, and `altered` for the texts to send. `FaultyStream` is the stream under the WebSocket and
reads the rules itself. The methods with which tests start faults are in `faults`.

Rules are applied in the order in which they were made. They are few, so a list is searched each
time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

import attrs
import trio

from trio_broker.sandbox.broker import Connection, Outgoing
from trio_broker.sandbox.messages import parse_or_empty
from trio_broker.sandbox.rest import RestReply

# With this option, closing a socket resets the connection.
_NO_LINGER: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)

_Rule = TypeVar("_Rule")


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


# A delay in seconds, and what to send after it.
Later: TypeAlias = tuple[float, str | Raw]


@attrs.frozen
class Delivery:
    """What goes to a client.

    Attributes:
        connection: The recipient.
        item: A text, or bytes.
    """

    connection: Connection
    item: str | Raw


def _at_least_once(_: object, attribute: attrs.Attribute[Any], times: int | None) -> None:
    if times is not None and times < 1:
        or_none = ", or None" if attribute.name == "times" else ""
        raise ValueError(f"{attribute.name} must be at least 1{or_none}, not {times!r}")


@attrs.define(eq=False)
class Fault:
    """A fault that lasts until it is lifted, or as a context manager until the end of its block.

    Attributes:
        times: After how many uses it ends by itself, None for no limit.
        every: 1 if it is used for all messages that it can affect, 2 for every second, and so on.
        uses: How often it was used. It stays 0 for faults that can't be counted.
        is_lifted: Whether it is over.
    """

    _forget: Callable[[Fault], object] = attrs.field(repr=False)
    times: int | None = attrs.field(default=None, validator=_at_least_once)
    every: int = attrs.field(default=1, validator=_at_least_once)
    uses: int = 0
    is_lifted: bool = False
    _chances: int = attrs.field(default=0, init=False, repr=False)

    def use(self) -> bool:
        """Count a message that it can affect: whether it does."""
        self._chances += 1
        if self._chances % self.every:
            return False
        self.uses += 1
        if self.uses == self.times:
            self.lift()
        return True

    def lift(self) -> None:
        """End it. Lifting it again does nothing."""
        self.is_lifted = True
        self._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lift()


@attrs.frozen
class Selector:
    """The messages that a rule affects.

    Attributes:
        op: Only requests and replies with this operation.
        channel: Only those with this channel; without `op`, only pushes to it. A ``*`` at its
            end stands for anything.
        api_key: Only on connections that are authenticated with it, or about to be.
    """

    op: str | None = None
    channel: str | None = None
    api_key: str | None = None

    def selects(self, op: str | None, channel: str | None, api_key: str | None) -> bool:
        """Whether a message is among them; `op` is None for a push."""
        if self.api_key not in {None, api_key}:
            return False
        if self.channel is not None and (channel is None or not self._names(channel)):
            return False
        return op == self.op or (self.op is None and self.channel is None)

    def _names(self, channel: str) -> bool:
        return _matches(self.channel or "", channel)


def _matches(pattern: str, name: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


@attrs.frozen
class Handshake:
    """A change of the response to the handshake.

    Attributes:
        change: Makes the bytes to send from those of the response.
        ends: Whether the socket is closed after them.
    """

    change: Callable[[bytes], bytes]
    ends: bool = False


@attrs.frozen
class Greeting:
    """The response to a new client instead of a handshake.

    Attributes:
        how: The bytes of an HTTP response, what else happens to the socket, or a changed
            handshake.
    """

    how: bytes | Literal["reset", "silence"] | Handshake


@attrs.frozen
class Interception:
    """Answer requests instead of the broker.

    Attributes:
        selector: Which.
        answer: Called with the broker's reply and the request; returns what to send instead.
        executes: Whether the broker gets the request. If not, its reply has no text.
    """

    selector: Selector
    answer: Callable[[Outgoing, str | bytes], list[tuple[float, str]]]
    executes: bool = False

    def replies(self, reply: Outgoing, request: str | bytes) -> list[Outgoing]:
        """What to send instead of the broker's reply."""
        return [
            attrs.evolve(reply, text=text, after=after)
            for after, text in self.answer(reply, request)
        ]


@attrs.frozen
class ClockShift:
    """Shift the broker's wall clock.

    Attributes:
        seconds: By how much it is ahead.
    """

    seconds: float


@attrs.frozen
class Alteration:
    """Change the sent texts.

    Attributes:
        selector: Which texts.
        alter: Called with a delay and a text; returns what to send instead.
    """

    selector: Selector
    alter: Callable[[float, str], list[Later]]


@attrs.frozen
class RestAlteration:
    """Change REST replies.

    Attributes:
        path: Only replies to requests with this path; a ``*`` at its end stands for anything.
        alter: Called with a reply; returns what to send instead.
    """

    path: str | None
    alter: Callable[[RestReply], RestReply]

    def selects(self, path: str) -> bool:
        """Whether the replies to requests with a path are affected."""
        return self.path is None or _matches(self.path, path)


@attrs.frozen
class Stall:
    """Stop some streams.

    Attributes:
        streams: Which.
        reading: Whether nothing is read from them.
        writing: Whether nothing is written to them.
    """

    streams: frozenset[FaultyStream]
    reading: bool = False
    writing: bool = False


@attrs.frozen
class Drip:
    """Send single bytes.

    Attributes:
        delay: Between two bytes, in seconds of Trio's clock.
        api_key: Only on connections that are authenticated with it.
    """

    delay: float
    api_key: str | None


class Disturbances:
    """The rules in force, and the texts that they hold back."""

    def __init__(self) -> None:
        self._rules: dict[Fault, object] = {}
        self._lifted = trio.Event()
        self._late: list[tuple[float, int, Delivery]] = []
        self._numbers = itertools.count()

    def add(self, rule: object, times: int | None = None, every: int = 1) -> Fault:
        """Put a rule of this module in force.

        Raises:
            ValueError: `times` or `every` is less than 1.
        """
        fault = Fault(self._forget, times, every)
        self._rules[fault] = rule
        return fault

    def clear(self) -> None:
        """Lift every fault."""
        for fault in list(self._rules):
            fault.lift()

    def greeting(self) -> bytes | str | Handshake | None:
        """The greeting of a new client, None for a handshake."""
        for fault, rule in self._of(Greeting):
            fault.use()
            return rule.how
        return None

    def clock_shift(self) -> float:
        """By how many seconds the broker's wall clock is ahead."""
        return sum(rule.seconds for _, rule in self._of(ClockShift))

    def intercept(self, connection: Connection, message: str | bytes) -> Interception | None:
        """The rule that answers a message instead of the broker; None if there is none."""
        rules = list(self._of(Interception))
        # The usual case: the message needn't be parsed.
        if not rules:
            return None
        envelope, _ = parse_or_empty(message)
        api_key = connection.api_key or envelope.key
        for fault, rule in rules:
            if rule.selector.selects(envelope.op, envelope.ch, api_key) and fault.use():
                return rule
        return None

    def altered(self, outgoing: Iterable[Outgoing], at: float) -> list[Delivery]:
        """What to send now; what is to be sent later is kept until it is `due`."""
        now: list[Delivery] = []
        for message in outgoing:
            for late, item in self._alter(message):
                delivery = Delivery(message.connection, item)
                if late:
                    heapq.heappush(self._late, (at + late, next(self._numbers), delivery))
                else:
                    now.append(delivery)
        return now

    def altered_reply(self, path: str, reply: RestReply) -> RestReply:
        """What to send in place of the REST reply to a request with a path."""
        for fault, rule in self._of(RestAlteration):
            if rule.selects(path) and fault.use():
                reply = rule.alter(reply)
        return reply

    def due(self, at: float) -> list[Delivery]:
        """What was delayed and is due."""
        due: list[Delivery] = []
        while self.next_deadline() <= at:
            due.append(heapq.heappop(self._late)[2])
        return due

    def next_deadline(self) -> float:
        """When something is `due` next, on Trio's clock; infinity if nothing is kept."""
        return self._late[0][0] if self._late else math.inf

    def drip(self, api_key: str | None) -> float | None:
        """Seconds to wait after every byte; None if bytes aren't sent one by one."""
        delays = [rule.delay for _, rule in self._of(Drip) if rule.api_key in {None, api_key}]
        return max(delays, default=None)

    def stalls(self, stream: FaultyStream, *, writing: bool) -> bool:
        """Whether writing to a stream is blocked, or reading from it."""
        return any(
            stream in rule.streams and (rule.writing if writing else rule.reading)
            for _, rule in self._of(Stall)
        )

    async def wait_lifted(self) -> None:
        """Wait until some fault is lifted."""
        await self._lifted.wait()

    def _of(self, kind: type[_Rule]) -> Iterator[tuple[Fault, _Rule]]:
        for fault, rule in list(self._rules.items()):
            if isinstance(rule, kind):
                yield fault, rule

    def _alter(self, message: Outgoing) -> list[Later]:
        items: list[Later] = [(message.after, message.text)]
        api_key = message.connection.api_key
        for fault, rule in self._of(Alteration):
            # A text that another fault has swallowed doesn't count as a use.
            if (
                items
                and rule.selector.selects(message.op, message.channel, api_key)
                and fault.use()
            ):
                items = [
                    later
                    for late, item in items
                    for later in (
                        rule.alter(late, item) if isinstance(item, str) else [(late, item)]
                    )
                ]
        return items

    def _forget(self, fault: Fault) -> None:
        self._rules.pop(fault, None)
        self._lifted.set()
        self._lifted = trio.Event()


class FaultyStream(trio.abc.HalfCloseableStream):
    """A client's stream, with faults applied.

    Each `send_all` is completed before the next one begins. So bytes can be sent between the frames
    of the WebSocket.

    Attributes:
        connection: The connection; None before the handshake is done.
        heard_at: When bytes were last received, on Trio's clock.
        handshake: The change of the first bytes that are sent, None for no change.
    """

    def __init__(self, stream: trio.SocketStream, disturbances: Disturbances) -> None:
        self.connection: Connection | None = None
        self.heard_at: float = trio.current_time()
        self.handshake: Handshake | None = None
        self._stream = stream
        self._disturbances = disturbances
        self._sending = trio.Lock()

    @property
    def is_slowed(self) -> bool:
        """Whether a fault slows writing, so that the client isn't to blame."""
        return self._drip() is not None

    @property
    def is_unread(self) -> bool:
        """Whether a fault forbids to read."""
        return self._disturbances.stalls(self, writing=False)

    async def wait_readable(self) -> None:
        """Wait while a fault forbids to read."""
        while self.is_unread:
            await self._disturbances.wait_lifted()

    async def wait_writable(self) -> None:
        """Wait while a fault forbids to write."""
        while self._disturbances.stalls(self, writing=True):
            await self._disturbances.wait_lifted()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, once no fault forbids to write."""
        handshake, self.handshake = self.handshake, None
        if handshake is not None:
            data = handshake.change(bytes(data))
        async with self._sending:
            while data:
                await self.wait_writable()
                delay = self._drip()
                size = len(data) if delay is None else 1
                await self._stream.send_all(data[:size])
                data = data[size:]
                if delay is not None:
                    await trio.sleep(delay)
        if handshake is not None and handshake.ends:
            raise trio.BrokenResourceError("a fault ends the connection")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive some bytes, once no fault forbids to read."""
        data = await self._stream.receive_some(max_bytes)
        # After the read: a fault usually starts while this waits for the socket.
        await self.wait_readable()
        self.heard_at = trio.current_time()
        return data

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket, whatever faults there are, takes bytes."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send the end of the stream."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()

    def reset(self) -> None:
        """Reset the connection, at once."""
        reset(self._stream)

    def _drip(self) -> float | None:
        connection = self.connection
        return self._disturbances.drip(None if connection is None else connection.api_key)


def reset(stream: trio.SocketStream) -> None:
    """Reset a connection at once; one that is closed already stays as it is.

    Tasks that use the stream get a `trio.ClosedResourceError`.
    """
    if stream.socket.fileno() != -1:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        stream.socket.close()
