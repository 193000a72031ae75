"""The consumer's side of a stream: the handles that users hold.

`BoundedReceiveChannel` is a handle on a `Buffer`. `Subscription` is a handle on the messages of one
of the broker's channels. What handles share is in `buffer`, with the rules of gaps and endings.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._protocol.effects import ErrorItem
from trio_broker._sealed import Run, Sealed
from trio_broker._streams.buffer import Buffer
from trio_broker.models import Message

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# A scheduling point costs ten times as much as taking a buffered message. So an iteration has one
# in 16 messages. A longer run would hardly be faster, and less fair to other tasks.
MAX_RUN: Final = 16

_NOTHING: Final[Any] = object()


class BoundedReceiveChannel(Sealed, trio.abc.ReceiveChannel[T_co]):
    """A receive channel with a buffer of limited size, as `client.events()` gives it.

    A slow consumer delays no one: when the buffer is full, the oldest item is dropped and counted
    in `dropped`. Handles are made by the client and by `clone`; ``async with`` or ``with`` closes
    them. Several tasks may receive at a time: each item goes to one of them.
    """

    # With a `__dict__`, so that users' tests can replace a method.
    __slots__ = ("__dict__", "__weakref__", "_buffer", "_closed", "_receive", "_run")

    _instead = "write 'async for' over this"

    @enable_ki_protection
    def __init__(self, buffer: Buffer[T_co]) -> None:
        self._buffer = buffer
        self._receive = buffer.attach()
        self._closed = False
        self._run = Run()  # since the last scheduling point

    def __repr__(self) -> str:
        buffered = self._receive.statistics().current_buffer_used
        state = "closed" if self._closed else f"buffered={buffered}"
        return f"<{type(self).__name__} {self._buffer.name!r} {state} dropped={self.dropped}>"

    @property
    def dropped(self) -> int:
        """How many items were dropped since the beginning, for all clones together."""
        return self._buffer.dropped

    def statistics(self) -> trio.MemoryChannelStatistics:
        """The state of the buffer that all clones share, as of Trio's memory channels."""
        # The buffer's own receive end isn't counted.
        return attrs.evolve(self._receive.statistics(), open_receive_channels=self._buffer.handles)

    @enable_ki_protection
    def receive_nowait(self) -> T_co:
        """Take the next item if there is one. Not a checkpoint.

        Raises:
            trio.WouldBlock: Nothing is buffered.
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed.
            BrokerError: As `receive`.
        """
        try:
            item = self._pop()
        except trio.EndOfChannel:
            self._buffer.raise_failure()
            raise
        if isinstance(item, ErrorItem):
            raise item.error
        return item

    @enable_ki_protection
    def when_ready(self, wake: Callable[[], object]) -> Callable[[], None]:
        """Call a function once, when `receive_nowait` may have a new result.

        For code in Trio's thread that isn't a Trio task and can't wait in `receive`, for example in
        an event loop that has Trio as its guest. The function is called for an item, for the end,
        or when a handle is closed. Another consumer may take the item first. Call `receive_nowait`
        before this: items that are already buffered cause no call.

        Args:
            wake: The function. It is called synchronously by the producer: it must not raise, and
                must not receive.

        Returns:
            A function that cancels this. It may be called late, and more than once.

        Raises:
            trio.ClosedResourceError: This handle was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        return self._buffer.when_ready(wake)

    @enable_ki_protection
    async def receive(self) -> T_co:
        """Wait for the next item and take it.

        A checkpoint before the item is taken, so cancelling is safe and loses no item.

        Raises:
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed, before or meanwhile.
            BrokerError: The channel has ended with an error. A `ChannelError` doesn't end a
                subscription.
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

        Each item has a cancel point, and cancelling is safe. Other tasks run when this waits, and
        every 16 items at the latest.
        """
        run = self._run
        run.length += 1
        if run.length < MAX_RUN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            run.length = 0
            await trio.lowlevel.checkpoint()
        buffer = self._buffer
        try:
            # The same as in `_pop` and `_wait`. Calls cost time for each item.
            if buffer.has_overflowed or buffer.put_back is not None:
                item = self._pop()
            else:
                item = self._receive.receive_nowait()
        except trio.WouldBlock:
            item = _NOTHING
        except trio.EndOfChannel:
            buffer.raise_failure()
            raise StopAsyncIteration from None
        if item is _NOTHING:
            run.length = 0
            if buffer.process != os.getpid():
                raise buffer.fork_error()
            try:
                item = await self._receive.receive()
            except trio.EndOfChannel:
                buffer.raise_failure()
                raise StopAsyncIteration from None
        if isinstance(item, ErrorItem):
            raise item.error
        return item

    @enable_ki_protection
    def clone(self) -> Self:
        """Make another handle on the same buffer. Each item goes to one of them.

        Raises:
            trio.ClosedResourceError: This handle was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        return type(self)(self._buffer)

    @enable_ki_protection
    def close(self) -> None:
        """Close this handle. Not a checkpoint. Closing it twice is fine.

        Tasks that wait in it get `trio.ClosedResourceError`. Closing the last handle discards what
        is buffered.
        """
        if not self._closed:
            self._closed = True
            self._receive.close()
            self._buffer.detach()

    @enable_ki_protection
    async def aclose(self) -> None:
        """`close`, then a checkpoint. The handle is closed even if that is cancelled."""
        self.close()
        await trio.lowlevel.checkpoint()

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close this handle. An exception of the block is raised unchanged."""
        self.close()
        if exc_value is None:
            await trio.lowlevel.checkpoint()  # noqa: ASYNC102 - the handle is already closed
        else:
            # A `Cancelled` would replace it.
            await trio.lowlevel.cancel_shielded_checkpoint()

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
        buffer = self._buffer
        if buffer.put_back is not None and not self._closed:
            error, buffer.put_back = buffer.put_back, None
            return error
        item = self._receive.receive_nowait()
        return buffer.taken(item) if buffer.has_overflowed else item

    async def _wait(self) -> T_co:
        # The buffer is empty, so an item is handed over, and `MessageBuffer.put` marks it.
        if self._buffer.process != os.getpid():
            raise self._buffer.fork_error()
        try:
            item = await self._receive.receive()
        except trio.EndOfChannel:
            self._buffer.raise_failure()
            raise
        if isinstance(item, ErrorItem):
            raise item.error
        return item


class Subscription(BoundedReceiveChannel[Message[T_co]]):
    """The messages of one of the broker's channels, as `client.subscribe` gives them.

    A slow consumer delays no one. With ``overflow="drop_oldest"``, the oldest message is dropped
    when the buffer is full. It is counted in `dropped`, and the next message that is delivered has
    a `gap`. With ``overflow="error"``, the subscription ends with `SlowConsumerError`.

    An error that the broker pushes raises `ChannelError`, and the subscription stays open: go on
    receiving. Endings come after what is buffered. A handle that you have closed raises
    `trio.ClosedResourceError`. If the client is closed or has unsubscribed, iterations end. If the
    connection has failed for good, `SubscriptionBrokenError` is raised ``from`` the cause.

    Handles are made by the client and by `clone`; ``async with`` or ``with`` closes them. Closing
    the last one ends the subscription. Several tasks may receive: each message goes to one of them.
    """

    __slots__ = ()

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self._buffer.name

    def batches(self) -> AsyncIterator[list[Message[T_co]]]:
        """Iterate over lists of everything that has arrived, at least one message.

        Each step is a checkpoint before anything is taken, so cancelling is safe. If the broker
        pushed an error, the list ends before it, and the next step raises `ChannelError`. You can
        iterate on after that.
        """
        return _Batches(self)

    @enable_ki_protection
    def batch_nowait(self) -> list[Message[T_co]]:
        """Take everything that has arrived, at least one message. Not a checkpoint.

        If the broker pushed an error, the list ends before it, and the next call raises it.

        Raises:
            trio.WouldBlock: Nothing is buffered.
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed.
            BrokerError: As `receive`.
        """
        return self._batch(self.receive_nowait())

    def _batch(self, first: Message[T_co]) -> list[Message[T_co]]:
        batch, buffer = [first], self._buffer
        try:
            # Only another handle's error, or an overflow, takes more than a look into the channel.
            while buffer.has_overflowed or buffer.put_back is not None:
                if isinstance(item := self._pop(), ErrorItem):
                    break
                batch.append(item)
            else:
                receive = self._receive.receive_nowait
                while not isinstance(item := receive(), ErrorItem):
                    batch.append(item)
        except (trio.WouldBlock, trio.EndOfChannel):
            return batch  # The next call meets the ending again.
        # The iterator may be abandoned now, so the buffer keeps the error for the next receive.
        buffer.put_back = item
        return batch


class _Batches(AsyncIterator[list[Message[T]]]):
    """The iterator of `Subscription.batches`. A generator couldn't go on after a `ChannelError`."""

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
