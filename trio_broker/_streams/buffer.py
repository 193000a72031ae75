"""The producer's side of a stream: a buffer that drops its oldest items when it is full.

The producer is the connection's reader, which must never wait for a consumer. So all methods are
synchronous, and a stream without a reader costs `buffer_size` items at most. Consumers hold handles
on the buffer (`subscription`). Between the two is a Trio memory channel.

**Dropping the oldest.** A memory channel can't drop items. So the buffer has a receive end of its
own, and takes the oldest item out with it. This end stays open, so Trio can't tell when the
consumers have closed. The buffer counts its handles instead, and corrects `statistics()`.

**Where a gap is marked.** Items are dropped from the head of the buffer, so the gap is before the
next message that is *taken out of the buffer*. The handle that takes it marks it. A task that
waited marks nothing: it was handed its message directly, and newer messages may have been dropped
before it runs. Their gap is after its message. If a mark is left when the buffer is empty, because
only errors were in it, `MessageBuffer.put` marks the next message.

**A consumer that isn't a Trio task**, for example one in another event loop of this thread, is not
handed a message, because it may be cancelled before it takes it. It is called back, and takes the
message out of the buffer. All such consumers are called, and those that find nothing wait again.

**Endings** come after what is buffered: Trio delivers that after the send end is closed. A failure
is kept here, and copied each time it is raised.

**Ctrl-C** can land between any two bytecodes of a user's task. Code that changes what the handles
share is protected from it. The decorator marks code objects, and costs nothing per call.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._log_fields import fields
from trio_broker._protocol.effects import ErrorItem
from trio_broker.exceptions import NotConnectedError, SlowConsumerError, fresh
from trio_broker.models import Gap, GapReason, Message, brief

T = TypeVar("T")

logger: Final = logging.getLogger("trio_broker.subscription")

WakeUp: TypeAlias = Callable[[], object]
Overflow: TypeAlias = Literal["drop_oldest", "error"]

_BY_OVERFLOW: Final[frozenset[GapReason]] = frozenset({"overflow"})


class BufferOwner(Protocol):
    """Called synchronously when consumers close, overflow or drain a buffer. It must not raise."""

    def closed(self, buffer: Buffer[Any]) -> None:
        """The last handle was closed, or an overflow has ended it."""
        ...

    def overflowed(self, buffer: Buffer[Any]) -> None:
        """The first item since the buffer was empty is dropped."""
        ...

    def drained(self, buffer: Buffer[Any]) -> None:
        """A receive has emptied the buffer after an overflow."""
        ...


class Buffer(Generic[T]):
    """A buffer of limited size. It is open until `end`, `fail`, or its last handle is closed.

    Items that come after that are ignored.

    Attributes:
        name: What it holds, for messages and logs.
        dropped: How many items were dropped since the beginning.
        handles: How many handles are open.
        has_overflowed: Whether the buffer hasn't been empty since it was full.
        put_back: An error that was taken out of the buffer, and is to be received next.
        process: The process that it was made in.
    """

    __slots__ = (
        "_buffer_size",
        "_failure",
        "_is_open",
        "_owner",
        "_root",
        "_send",
        "_wakes",
        "dropped",
        "handles",
        "has_overflowed",
        "name",
        "process",
        "put_back",
    )

    def __init__(self, name: str, buffer_size: int, owner: BufferOwner | None = None) -> None:
        """Make a buffer without handles.

        Raises:
            TypeError: `buffer_size` isn't an int.
            ValueError: `buffer_size` is less than 1.
        """
        if isinstance(buffer_size, bool) or not isinstance(buffer_size, int):
            text = brief(buffer_size)
            raise TypeError(f"buffer_size must be an int, as memory is finite, not {text}")
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, not {brief(buffer_size)}")
        if buffer_size > sys.maxsize:
            raise ValueError("buffer_size is too large")
        self.name: str = name
        self._buffer_size = buffer_size
        self._send, self._root = trio.open_memory_channel[T | ErrorItem](buffer_size)
        self._owner = owner
        self._is_open = True
        self._failure: Exception | None = None
        self._wakes: dict[WakeUp, None] = {}
        self.process: int = os.getpid()
        self.dropped: int = 0
        self.handles: int = 0
        self.has_overflowed: bool = False
        self.put_back: ErrorItem | None = None

    @enable_ki_protection
    def put(self, item: T | ErrorItem) -> None:
        """Hand an item to a waiting task, or buffer it. It never blocks."""
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self._overflow(item)
        except trio.ClosedResourceError:
            return
        if self._wakes:
            self._wake_all()

    @enable_ki_protection
    def end(self) -> None:
        """End all iterations after what is buffered. Ending twice is fine."""
        self._is_open = False
        self._send.close()
        self._wake_all()

    @enable_ki_protection
    def fail(self, error: Exception, cause: BaseException | None = None) -> None:
        """End with an error: every receive raises a copy of it, after what is buffered.

        Does nothing if the buffer has already ended.
        """
        if self._is_open:
            if cause is not None:
                error.__cause__ = cause
            self._failure = error
            self.end()

    def is_empty(self) -> bool:
        """Whether nothing is buffered."""
        return self._send.statistics().current_buffer_used == 0

    def has_room(self, count: int) -> bool:
        """Whether so many items more can be buffered."""
        statistics = self._send.statistics()
        return statistics.max_buffer_size - statistics.current_buffer_used >= count

    def attach(self) -> trio.MemoryReceiveChannel[T | ErrorItem]:
        """Count a new handle, and return its receive end."""
        receive = self._root.clone()
        self.handles += 1
        return receive

    def detach(self) -> None:
        """Forget a handle that was closed. The last one ends the buffer."""
        self._wake_all()
        self.handles -= 1
        if self.handles == 0:
            self._root.close()  # Trio frees the items with the last receive end.
            if self._is_open:
                self.end()
                if self._owner is not None:
                    self._owner.closed(self)

    def fork_error(self) -> NotConnectedError:
        """The error for waiting in a forked process, where nothing would ever come."""
        return NotConnectedError(
            "this process was forked from the one that the client is in: make a new client "
            "here, in a Trio run of its own",
            is_final=True,
        )

    def when_ready(self, wake: WakeUp) -> Callable[[], None]:
        """Call `wake` once, when there may be something to receive.

        Returns:
            A function that cancels this.
        """
        self._wakes[wake] = None
        return lambda: self._forget(wake)

    def _forget(self, wake: WakeUp) -> None:
        self._wakes.pop(wake, None)

    def _wake_all(self) -> None:
        wakes, self._wakes = self._wakes, {}
        for wake in wakes:
            try:
                wake()
            except Exception:  # It is foreign code, and must not end the connection.
                logger.exception("the callback for %r has failed", self.name, extra=fields())

    def taken(self, item: T | ErrorItem) -> T | ErrorItem:
        """Note that an item was taken after an overflow. Return the item to deliver."""
        if self.is_empty():
            self.has_overflowed = False
            if self._is_open and self._owner is not None:
                self._owner.drained(self)
        return item

    def raise_failure(self) -> None:
        """Raise the error that the buffer has ended with, if there is one."""
        if self._failure is not None:
            raise fresh(self._failure)

    def _overflow(self, item: T | ErrorItem) -> None:
        self._drop(self._root.receive_nowait())
        self._send.send_nowait(item)
        if not self.has_overflowed:
            self.has_overflowed = True
            if self._owner is not None:
                self._owner.overflowed(self)

    def _drop(self, _item: T | ErrorItem) -> None:
        self.dropped += 1


class MessageBuffer(Buffer[Message[T]]):
    """The buffer of a subscription. Its name is that of the broker's channel."""

    __slots__ = ("_gap", "_policy")

    dropped: int  # Repeated, or type checkers take a += in here for a new attribute.

    def __init__(
        self,
        channel: str,
        buffer_size: int = 1024,
        owner: BufferOwner | None = None,
        *,
        overflow: Overflow = "drop_oldest",
    ) -> None:
        """Make a buffer without handles.

        Args:
            channel: The name of the broker's channel.
            buffer_size: How many messages are kept for a slow consumer, at least 1.
            owner: Is told what consumers do to the buffer.
            overflow: What happens when the buffer is full. ``"drop_oldest"``: the oldest message is
                dropped, and the next one that is delivered reports the gap. ``"error"``: the
                subscription ends with `SlowConsumerError`, after what is buffered.

        Raises:
            TypeError: `buffer_size` isn't an int.
            ValueError: `buffer_size` is less than 1, or `overflow` is none of the two.
        """
        if overflow not in get_args(Overflow):
            raise ValueError(f"overflow must be 'drop_oldest' or 'error', not {brief(overflow)}")
        super().__init__(channel, buffer_size, owner)
        self._policy = overflow
        self._gap: Gap | None = None

    @enable_ki_protection
    def put(self, item: Message[T] | ErrorItem) -> None:
        """Hand a message to a waiting task, or buffer it. It never blocks."""
        if self._gap is not None and not self.has_overflowed:
            item = self._marked(item)
        # The same as in `Buffer.put`. A call costs time for each push.
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self._overflow(item)
        except trio.ClosedResourceError:
            return
        if self._wakes:
            self._wake_all()

    @enable_ki_protection
    def put_all(self, items: Sequence[Message[T] | ErrorItem]) -> None:
        """Hand over several messages in their order, as `put` does."""
        rest = iter(items)
        if self._gap is None:
            send = self._send.send_nowait
            try:
                for item in rest:
                    send(item)
            except trio.WouldBlock:
                self._overflow(item)
            except trio.ClosedResourceError:
                return
            if self._wakes:
                self._wake_all()
        for item in rest:
            self.put(item)

    def taken(self, item: Message[T] | ErrorItem) -> Message[T] | ErrorItem:
        """Note that an item was taken after an overflow. Return it, marked with a gap."""
        return super().taken(self._marked(item))

    def _marked(self, item: Message[T] | ErrorItem) -> Message[T] | ErrorItem:
        if self._gap is None or isinstance(item, ErrorItem):
            return item
        gap, self._gap = self._gap, None
        return attrs.evolve(item, gap=gap.merged(item.gap))

    def _overflow(self, item: Message[T] | ErrorItem) -> None:
        if self._policy == "drop_oldest":
            super()._overflow(item)
        else:
            self.dropped += 1
            self.fail(SlowConsumerError(self.name, self._buffer_size))
            if self._owner is not None:
                self._owner.closed(self)

    def _drop(self, item: Message[T] | ErrorItem) -> None:
        super()._drop(item)
        gap = Gap(reasons=_BY_OVERFLOW, dropped=1, since=item.received_at)
        if not isinstance(item, ErrorItem):
            gap = gap.merged(item.gap)  # It was marked with a gap itself.
        self._gap = gap.merged(self._gap)
