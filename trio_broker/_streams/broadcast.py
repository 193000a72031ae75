"""Broadcasts items to all channels that are open: a client's events, and its raw messages."""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

from trio.lowlevel import enable_ki_protection

from trio_broker._streams.buffer import Buffer
from trio_broker._streams.subscription import BoundedReceiveChannel

T = TypeVar("T")

BUFFER_SIZE: Final = 1024


class Broadcast(Generic[T]):
    """A set of channels. Each gets every item from its opening on.

    Attributes:
        buffers: The channels' buffers.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.buffers: dict[Buffer[Any], None] = {}
        self._is_over = False

    @enable_ki_protection
    def open(self) -> BoundedReceiveChannel[T]:
        """Open a channel. After `end`, it has ended too."""
        buffer: Buffer[T] = Buffer(self._name, BUFFER_SIZE, self)
        channel = BoundedReceiveChannel(buffer)
        if self._is_over:
            buffer.end()
        else:
            self.buffers[buffer] = None
        return channel

    def put(self, item: T) -> None:
        """Pass an item to every channel. A slow one loses its oldest item."""
        for buffer in tuple(self.buffers):
            buffer.put(item)

    def end(self) -> None:
        """End every channel, after what is buffered."""
        self._is_over = True
        for buffer in tuple(self.buffers):
            buffer.end()
        self.buffers.clear()

    def closed(self, buffer: Buffer[Any]) -> None:
        """The last handle on a channel was closed."""
        self.buffers.pop(buffer, None)

    def overflowed(self, buffer: Buffer[Any]) -> None:
        """Do nothing: the channel counts what it drops."""

    def drained(self, buffer: Buffer[Any]) -> None:
        """Do nothing: dropped items don't come again."""
