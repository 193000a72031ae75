"""The channel that a subscriber holds: buffer, overflow, gap, batches.

A `Mailbox` is the producer's side, for the library; a `BoundedReceiveChannel` is a handle on it,
for a user. Between them is a Trio memory channel. `Feed` and `Subscription` are the same two for
the messages of one of the broker's channels: they add the gap marks and the broker's errors.

The producer is the connection's reader, which must never wait for a consumer: all its methods are
synchronous, and a subscription that nobody reads costs `buffer_size` messages and no more.

**Dropping the oldest.** A memory channel can't drop, so the mailbox keeps a receive end of its own
and takes the oldest off with it. But Trio sees that the users have gone only when the last receive
end is closed, and this one never is before: so the mailbox counts its owners by itself, and
`statistics()` is corrected.

**Where a gap is marked.** What is dropped was at the head of the buffer, so the hole is before the
next message that *leaves the buffer*, and that one is marked, in whichever handle takes it. A
message that is put into an empty buffer is another matter: it may go straight to a task that waits,
and when that task runs at last, newer messages may have been dropped. Their hole is not before this
message but after it. So a task that waited marks nothing; and a mark that still pends when the
buffer has been emptied (only errors were left, and they carry none) is put on by `Feed.put`.

**Who waits without a Trio task**, in another event loop of this thread say, isn't handed a message,
as it may be cancelled before it takes it. It is called, and takes the message off the buffer. All
who wait so are called, and those who find nothing wait again: so none is left asleep.

**Endings** come after what is buffered: when the send end is closed, Trio delivers that first. A
failure is kept here, and copied for every raise.

**Ctrl-C** can land between any two bytecodes of a user's task. Whatever changes what the owners
share is protected from it (this marks code objects, and costs nothing per call).
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Generic, Literal, Self, TypeAlias, TypeVar, get_args

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker.exceptions import ChannelError, SlowConsumerError, fresh
from trio_broker.models import Gap, GapReason, Message

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

logger: Final = logging.getLogger("trio_broker.subscription")

Overflow: TypeAlias = Literal["drop_oldest", "error"]

# A scheduling point costs ten times what taking a buffered message does, so an iteration makes one
# for so many messages only. With more it would hardly be faster, and less fair to other tasks.
MAX_RUN: Final = 16

_BY_OVERFLOW: Final[frozenset[GapReason]] = frozenset({"overflow"})


def _do_nothing() -> None:
    """The callback of those who give none."""


@attrs.frozen
class ErrorItem:
    """What stands in a buffer for an error, in its place among the messages."""

    error: ChannelError
    received_at: dt.datetime


class Mailbox(Generic[T]):
    """The producer's side: a buffer that drops its oldest items when it is full.

    It is open until `end`, `fail`, or the closing of the last handle. What is put in afterwards
    goes nowhere.

    Attributes:
        name: What it holds, for people.
        dropped: How many items were dropped since the beginning.
        owners: How many handles are open.
        has_overflowed: For the handles: whether the buffer hasn't been empty since it was full.
        put_back: For the handles: an error that was taken off the buffer, and is to be received
            next.
    """

    __slots__ = (
        "_buffer_size",
        "_failure",
        "_is_open",
        "_on_close",
        "_on_drained",
        "_root",
        "_send",
        "_wakes",
        "dropped",
        "has_overflowed",
        "name",
        "owners",
        "put_back",
    )

    def __init__(
        self,
        name: str,
        buffer_size: int,
        *,
        on_close: Callable[[], object] = _do_nothing,
        on_drained: Callable[[], object] = _do_nothing,
    ) -> None:
        """Make one that has no handle yet.

        Args:
            name: What it holds, for people.
            buffer_size: How many items are kept for a consumer that is behind, at least 1.
            on_close: Called when the last handle is closed, unless the mailbox has ended before.
                Once, synchronously, when all is closed. It must not raise.
            on_drained: Called when a receive has emptied the buffer after an overflow, unless the
                mailbox has ended. Once until the next overflow, synchronously. It must not raise.

        Raises:
            TypeError: `buffer_size` isn't an int.
            ValueError: `buffer_size` is less than 1.
        """
        if isinstance(buffer_size, bool) or not isinstance(buffer_size, int):
            raise TypeError(f"buffer_size must be an int, as memory is finite, not {buffer_size!r}")
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, not {buffer_size}")
        self.name: str = name
        self._buffer_size = buffer_size
        self._send, self._root = trio.open_memory_channel[T | ErrorItem](buffer_size)
        self._on_close = on_close
        self._on_drained = on_drained
        self._is_open = True
        self._failure: Exception | None = None
        self._wakes: dict[Callable[[], object], None] = {}
        self.dropped: int = 0
        self.owners: int = 0
        self.has_overflowed: bool = False
        self.put_back: ErrorItem | None = None

    @enable_ki_protection
    def put(self, item: T | ErrorItem) -> None:
        """Hand an item to a task that waits for one, or buffer it; never blocks."""
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
        """Let iterations end after what is buffered. Ending twice is fine."""
        self._is_open = False
        self._send.close()
        self._wake_all()

    @enable_ki_protection
    def fail(self, error: Exception, cause: BaseException | None = None) -> None:
        """Let every receive raise a copy of an error, after what is buffered.

        Does nothing if the mailbox has ended already: the first ending counts.

        Args:
            error: The error.
            cause: What it is raised ``from``; None leaves it the cause that it has.
        """
        if self._is_open:
            if cause is not None:
                error.__cause__ = cause
            self._failure = error
            self.end()

    def is_empty(self) -> bool:
        """Whether nothing is buffered."""
        return self._send.statistics().current_buffer_used == 0

    def attach(self) -> trio.MemoryReceiveChannel[T | ErrorItem]:
        """For a new handle: its receive end."""
        receive = self._root.clone()
        self.owners += 1
        return receive

    def detach(self) -> None:
        """For a handle that was closed."""
        self._wake_all()
        self.owners -= 1
        if self.owners == 0:
            self._root.close()  # with the last receive end, Trio lets go of what is buffered
            if self._is_open:
                self.end()
                self._on_close()

    def when_ready(self, wake: Callable[[], object]) -> Callable[[], None]:
        """For a handle that found nothing: what calls it once, when it may look again.

        Returns:
            What lets it be called no more.
        """
        self._wakes[wake] = None
        return lambda: self._forget(wake)

    def _forget(self, wake: Callable[[], object]) -> None:
        self._wakes.pop(wake, None)

    def _wake_all(self) -> None:
        wakes, self._wakes = self._wakes, {}
        for wake in wakes:
            try:
                wake()
            except Exception:  # it is foreign, and its failure mustn't become the connection's
                logger.exception("what was to be called for %r has failed", self.name)

    def taken(self, item: T | ErrorItem) -> T | ErrorItem:
        """For a handle that took an item off the buffer after an overflow: what it delivers."""
        if self.is_empty():
            self.has_overflowed = False
            if self._is_open:
                self._on_drained()
        return item

    def raise_failure(self) -> None:
        """For a handle that came to the end: raise what it ended with, if anything."""
        if self._failure is not None:
            raise fresh(self._failure)

    def _overflow(self, item: T | ErrorItem) -> None:
        self._drop(self._root.receive_nowait())
        self._send.send_nowait(item)
        self.has_overflowed = True

    def _drop(self, _item: T | ErrorItem) -> None:
        self.dropped += 1


class BoundedReceiveChannel(trio.abc.ReceiveChannel[T_co]):
    """A receive channel with a buffer of limited size, as `client.events()` gives it.

    A slow consumer holds nobody up: when the buffer is full, the oldest item is dropped and counted
    in `dropped`. Handles are made by the client and by `clone`; ``async with`` or ``with`` closes
    them. Several tasks may receive at a time: each item goes to one of them.
    """

    __slots__ = ("__weakref__", "_closed", "_mailbox", "_receive", "_run")

    @enable_ki_protection
    def __init__(self, mailbox: Mailbox[T_co]) -> None:
        self._mailbox = mailbox
        self._receive = mailbox.attach()
        self._closed = False
        self._run = 0  # how many items an iteration took since its last scheduling point

    def __repr__(self) -> str:
        buffered = self._receive.statistics().current_buffer_used
        state = "closed" if self._closed else f"buffered={buffered}"
        return f"<{type(self).__name__} {self._mailbox.name!r} {state} dropped={self.dropped}>"

    @property
    def dropped(self) -> int:
        """How many items were dropped since the beginning, for all clones together."""
        return self._mailbox.dropped

    def statistics(self) -> trio.MemoryChannelStatistics:
        """The buffer's state, for all clones together, as Trio's memory channels have it."""
        # The mailbox's own receive end isn't counted.
        return attrs.evolve(self._receive.statistics(), open_receive_channels=self._mailbox.owners)

    @enable_ki_protection
    def receive_nowait(self) -> T_co:
        """Take the next item if there is one; not a checkpoint.

        Raises:
            trio.WouldBlock: Nothing is buffered.
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed.
            BrokerError: As `receive`.
        """
        try:
            item = self._pop()
        except trio.EndOfChannel:
            self._mailbox.raise_failure()
            raise
        if isinstance(item, ErrorItem):
            raise item.error
        return item

    @enable_ki_protection
    def when_ready(self, wake: Callable[[], object]) -> Callable[[], None]:
        """Have a function called when `receive_nowait` may have something new to say.

        For code in Trio's thread that isn't a Trio task and so can't wait in `receive`, as that of
        an event loop whose guest Trio is. It is called once, for an item, the end, or the closing
        of a handle; perhaps in vain, as another one may be quicker. What is there already calls
        nobody: look with `receive_nowait` first.

        Args:
            wake: The function. It is called synchronously by whoever brings the item: it mustn't
                raise, nor receive by itself.

        Returns:
            A function that takes this back; it may be called late, and twice.

        Raises:
            trio.ClosedResourceError: This handle was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        return self._mailbox.when_ready(wake)

    @enable_ki_protection
    async def receive(self) -> T_co:
        """Wait for the next item and take it.

        A checkpoint, before the item is taken: cancelling is safe, and no item is lost by it.

        Raises:
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed, before or meanwhile.
            BrokerError: What the channel ended with; a subscription's `ChannelError` as well,
                which doesn't end it.
        """
        await trio.lowlevel.checkpoint()
        try:
            return self.receive_nowait()
        except trio.WouldBlock:
            pass
        return await self._wait()

    @enable_ki_protection
    async def __anext__(self) -> T_co:
        """Like `receive`, but faster while something is buffered.

        It is a cancel point for each item, and cancelling is safe; other tasks get their turn when
        it has to wait, and every 16 items at the latest.
        """
        self._run += 1
        if self._run < MAX_RUN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._run = 0
            await trio.lowlevel.checkpoint()
        try:
            item = self._pop()
        except trio.EndOfChannel:
            self._mailbox.raise_failure()
            raise StopAsyncIteration from None
        except trio.WouldBlock:
            pass
        else:
            if isinstance(item, ErrorItem):
                raise item.error
            return item
        self._run = 0
        try:
            return await self._wait()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    @enable_ki_protection
    def clone(self) -> Self:
        """Another handle on the same buffer: each item goes to one of them.

        Raises:
            trio.ClosedResourceError: This handle was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        return type(self)(self._mailbox)

    @enable_ki_protection
    def close(self) -> None:
        """Close this handle; not a checkpoint. Closing it twice is fine.

        Tasks that wait in it get `trio.ClosedResourceError`. With the last handle, what is buffered
        goes away.
        """
        if not self._closed:
            self._closed = True
            self._receive.close()
            self._mailbox.detach()

    @enable_ki_protection
    async def aclose(self) -> None:
        """`close` and a checkpoint: the handle is closed even if that is cancelled."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _pop(self) -> T_co | ErrorItem:
        mailbox = self._mailbox
        if mailbox.put_back is not None and not self._closed:
            error, mailbox.put_back = mailbox.put_back, None
            return error
        item = self._receive.receive_nowait()
        return mailbox.taken(item) if mailbox.has_overflowed else item

    async def _wait(self) -> T_co:
        # Only with an empty buffer: what comes is handed over, marked by `Feed.put` if need be.
        try:
            item = await self._receive.receive()
        except trio.EndOfChannel:
            self._mailbox.raise_failure()
            raise
        if isinstance(item, ErrorItem):
            raise item.error
        return item


class Feed(Mailbox[Message[T]]):
    """The producer's side of a subscription; its name is that of the broker's channel."""

    __slots__ = ("_gap", "_policy")

    dropped: int  # said again, or type checkers take a += in here for a new attribute

    def __init__(
        self,
        channel: str,
        buffer_size: int = 1024,
        *,
        overflow: Overflow = "drop_oldest",
        on_close: Callable[[], object] = _do_nothing,
        on_drained: Callable[[], object] = _do_nothing,
    ) -> None:
        """Make one that has no handle yet.

        Args:
            channel: The name of the broker's channel.
            buffer_size: How many messages are kept for a consumer that is behind, at least 1.
            overflow: What happens when they are too many. ``"drop_oldest"``: the oldest goes, and
                the next message that is delivered says so. ``"error"``: the subscription ends with
                `SlowConsumerError`, after what is buffered.
            on_close: As a `Mailbox` calls it, and when ``overflow="error"`` has ended this.
            on_drained: As a `Mailbox` calls it.

        Raises:
            TypeError: `buffer_size` isn't an int.
            ValueError: `buffer_size` is less than 1, or `overflow` is none of the two.
        """
        if overflow not in get_args(Overflow):
            raise ValueError(f"overflow must be 'drop_oldest' or 'error', not {overflow!r}")
        super().__init__(channel, buffer_size, on_close=on_close, on_drained=on_drained)
        self._policy = overflow
        self._gap: Gap | None = None

    @enable_ki_protection
    def put(self, item: Message[T] | ErrorItem) -> None:
        """Hand a message to a task that waits for one, or buffer it; never blocks."""
        if self._gap is not None and not self.has_overflowed:
            item = self._marked(item)
        super().put(item)

    @enable_ki_protection
    def put_error(self, text: str, received_at: dt.datetime) -> None:
        """Let a receive raise `ChannelError`, in its place among the messages.

        Args:
            text: The broker's text.
            received_at: When it came, by this machine's clock.
        """
        self.put(ErrorItem(ChannelError(self.name, text), received_at))

    def taken(self, item: Message[T] | ErrorItem) -> Message[T] | ErrorItem:
        """For a handle that took an item off the buffer after an overflow: what it delivers."""
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
            self._on_close()

    def _drop(self, item: Message[T] | ErrorItem) -> None:
        super()._drop(item)
        gap = Gap(reasons=_BY_OVERFLOW, dropped=1, since=item.received_at)
        if not isinstance(item, ErrorItem):
            gap = gap.merged(item.gap)  # it stood for a hole of its own
        self._gap = gap.merged(self._gap)


class Subscription(BoundedReceiveChannel[Message[T_co]]):
    """The messages of one of the broker's channels, as `client.subscribe` gives them.

    A slow consumer holds nobody up. With ``overflow="drop_oldest"``, when the buffer is full, the
    oldest message is dropped and counted in `dropped`, and the next one that is delivered says so
    in its `gap`. With ``overflow="error"`` the subscription ends with `SlowConsumerError`.

    An error that the broker pushes raises `ChannelError`, and the subscription stays open: go on
    receiving. Endings come after what is buffered. Closed by you: `trio.ClosedResourceError`.
    Client closed, or unsubscribed: iterations end. Connection failed for good:
    `SubscriptionBrokenError`, ``from`` the cause.

    Handles are made by the client and by `clone`; ``async with`` or ``with`` closes them, and the
    last one ends the subscription. Several tasks may receive at a time: each message goes to one.
    """

    __slots__ = ()

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self._mailbox.name

    def batches(self) -> AsyncIterator[list[Message[T_co]]]:
        """Iterate over lists: everything that has arrived, at least one message.

        Each step is a checkpoint, before anything is taken: cancelling is safe. Where the broker
        pushed an error, the list ends before it, and the next step raises `ChannelError`; iterate
        on after that.
        """
        return _Batches(self)

    @enable_ki_protection
    def batch_nowait(self) -> list[Message[T_co]]:
        """Take everything that has arrived, at least one message; not a checkpoint.

        Where the broker pushed an error, the list ends before it, and the next call raises it.

        Raises:
            trio.WouldBlock: Nothing is buffered.
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed.
            BrokerError: As `receive`.
        """
        return self._batch(self.receive_nowait())

    def _batch(self, first: Message[T_co]) -> list[Message[T_co]]:
        batch = [first]
        try:
            while not isinstance(item := self._pop(), ErrorItem):
                batch.append(item)
        except (trio.WouldBlock, trio.EndOfChannel):
            return batch  # an ending comes again
        # The iterator may be given up now: the error is the buffer's, and whoever receives gets it.
        self._mailbox.put_back = item
        return batch


class _Batches(AsyncIterator[list[Message[T]]]):
    """What `Subscription.batches` gives; no generator, as it goes on after a `ChannelError`."""

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription[T]) -> None:
        self._subscription = subscription

    @enable_ki_protection
    async def __anext__(self) -> list[Message[T]]:
        try:
            first = await self._subscription.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        return self._subscription._batch(first)  # noqa: SLF001  # it is the subscription's
