"""Streams for asyncio. Each one reads the buffer of a Trio stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import trio

from trio_broker._sealed import Run, Sealed
from trio_broker._streams.subscription import MAX_RUN, BoundedReceiveChannel, Subscription
from trio_broker.aio.guest import Guest
from trio_broker.models import Message

T_co = TypeVar("T_co", covariant=True)


class AioChannel(Sealed, Generic[T_co]):
    """A `trio_broker.BoundedReceiveChannel` for asyncio, as `client.events()` gives it.

    A slow consumer doesn't delay others: when the buffer is full, the oldest item is dropped and
    counted in `dropped`. ``async with`` or ``with`` closes a handle. Several tasks may receive at
    the same time: each item goes to one of them.
    """

    __slots__ = ("__dict__", "__weakref__", "_channel", "_guest", "_run")

    _instead = "write 'async for' over this"

    def __init__(self, channel: BoundedReceiveChannel[T_co], guest: Guest) -> None:
        self._channel = channel
        self._guest = guest
        self._run = Run()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._channel!r}>"

    @property
    def dropped(self) -> int:
        """How many items were dropped since the beginning, for all clones together."""
        return self._channel.dropped

    def statistics(self) -> trio.MemoryChannelStatistics:
        """The buffer's state, for all clones together, as Trio's memory channels have it.

        Tasks that wait in asyncio aren't counted.
        """
        return self._channel.statistics()

    def receive_nowait(self) -> T_co:
        """Take the next item if there is one.

        Raises:
            trio.WouldBlock: Nothing is buffered.
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed.
            BrokerError: As `receive`.
        """
        return self._channel.receive_nowait()

    async def receive(self) -> T_co:
        """Wait for the next item and take it.

        Other tasks run before the item is taken. Cancelling is safe: no item is lost.

        Raises:
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed, before or meanwhile.
            BrokerError: The error that ended the channel, or a `ChannelError`, which doesn't end a
                subscription.
            RuntimeError: Trio has broken down.
        """
        await asyncio.sleep(0)
        while True:
            try:
                return self._channel.receive_nowait()
            except trio.WouldBlock:
                await self._ready()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        """Like `receive`, but faster while something is buffered.

        Cancelling is safe. Other tasks run when it has to wait, and at least every 16 items.
        """
        run = self._run
        run.length += 1
        if run.length >= MAX_RUN:
            run.length = 0
            await asyncio.sleep(0)
        while True:
            try:
                return self._channel.receive_nowait()
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
            except trio.WouldBlock:
                run.length = 0
            await self._ready()

    def clone(self) -> Self:
        """Another handle on the same buffer: each item goes to one of them.

        Raises:
            trio.ClosedResourceError: This handle was closed.
        """
        return type(self)(self._channel.clone(), self._guest)

    def close(self) -> None:
        """Close this handle. Closing it twice is fine.

        Tasks that wait in it get `trio.ClosedResourceError`. With the last handle, the buffered
        items are discarded.
        """
        self._channel.close()

    async def aclose(self) -> None:
        """Close this handle, as `close` does. This doesn't wait for anything."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _ready(self) -> None:
        """Wait until there may be an item. The caller looks, and waits again if there is none."""
        self._guest.check()
        called = asyncio.Event()
        forget = self._channel.when_ready(called.set)
        self._guest.waking.add(called.set)
        try:
            await called.wait()
        finally:
            forget()
            self._guest.waking.discard(called.set)


class AioSubscription(AioChannel[Message[T_co]]):
    """A `trio_broker.Subscription` for asyncio, as `client.subscribe` returns it.

    That class documents what it delivers, how it ends, and what a slow consumer misses.
    """

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription[T_co], guest: Guest) -> None:
        super().__init__(subscription, guest)
        self._subscription = subscription

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self._subscription.channel

    def batch_nowait(self) -> list[Message[T_co]]:
        """Take everything that has arrived, at least one message.

        If the broker pushed an error, the list ends before it, and the next call raises it.

        Raises:
            trio.WouldBlock: Nothing is buffered.
            trio.EndOfChannel: The channel has ended, and everything has been received.
            trio.ClosedResourceError: This handle was closed.
            BrokerError: As `receive`.
        """
        return self._subscription.batch_nowait()

    def batches(self) -> AsyncIterator[list[Message[T_co]]]:
        """Iterate over lists: everything that has arrived, at least one message.

        In each step, other tasks run before anything is taken. Cancelling is safe. If the broker
        pushed an error, the list ends before it, and the next step raises `ChannelError`. The
        iteration can go on after that.
        """
        return _Batches(self)

    async def _batch(self) -> list[Message[T_co]]:
        await asyncio.sleep(0)
        while True:
            try:
                return self._subscription.batch_nowait()
            except trio.WouldBlock:
                await self._ready()


class _Batches(AsyncIterator[list[Message[T_co]]]):
    """What `batches` returns. It isn't a generator because it goes on after a `ChannelError`."""

    def __init__(self, subscription: AioSubscription[T_co]) -> None:
        self._subscription = subscription

    async def __anext__(self) -> list[Message[T_co]]:
        try:
            return await self._subscription._batch()  # noqa: SLF001  # it is the subscription's
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
