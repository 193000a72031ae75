"""How many messages may leave: at most so many in any rolling window. Time is an argument.

A message counts from the moment when it was handed over whole, not from when that began: a write
that was held up for seconds arrives at its end, together with what follows it.

`Turns` are for what can wait. They let go of it at a pace of their own, and of no more at once
than can be answered: whatever holds the answers up, a slow broker or a swap that flies alone, must
not end in a burst that the next swap finds in front of itself.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

# The broker counts messages in a second; a tenth more absorbs what the network bunches together.
WINDOW: Final = 1.1


class Pacer:
    """Keeps one connection within the broker's limit of messages a second.

    Args:
        limit: How many messages may leave in any `WINDOW` seconds.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sent: deque[float] = deque(maxlen=limit)

    def room(self, now: float) -> int:
        """How many messages may leave together.

        Args:
            now: The time in seconds.
        """
        while self._sent and self._sent[0] + WINDOW <= now:
            self._sent.popleft()
        return self._limit - len(self._sent)

    def ready_at(self, now: float) -> float:
        """When the next message may leave.

        Args:
            now: The time in seconds.

        Returns:
            `now`, or a later time.
        """
        return now if self.room(now) else self._sent[0] + WINDOW

    def note(self, now: float, count: int = 1) -> None:
        """Messages have left.

        Args:
            now: The time in seconds.
            count: How many.
        """
        self._sent.extend([now] * count)


class Turns:
    """Lets those who wait send something, one after the other. Closed at first.

    Args:
        limit: How many messages may leave in any `WINDOW` seconds, and how many may be under way.
    """

    def __init__(self, limit: int) -> None:
        self._pacer = Pacer(limit)
        self._limit = limit
        self._waiting: OrderedDict[object, Callable[[], object | None]] = OrderedDict()
        self._under_way: set[object] = set()
        self._is_open = False

    def open(self) -> None:
        """Begin, or go on, with those who wait."""
        self._is_open = True

    def close(self) -> None:
        """Let nobody go any more; what is under way is lost."""
        self._is_open = False
        self._under_way.clear()

    def add(self, key: object, go: Callable[[], object | None]) -> None:
        """Wait for a turn; who waits already does so once.

        Args:
            key: Who.
            go: Called when the turn has come. Returns what is under way then, and ends with
                `ended`; None if there was nothing to do after all, and the turn is the next one's.
        """
        self._waiting.setdefault(key, go)

    def remove(self, key: object) -> None:
        """Wait no longer.

        Args:
            key: Who; whoever doesn't wait is left alone.
        """
        self._waiting.pop(key, None)

    def ended(self, thing: object) -> None:
        """What a turn has begun has ended.

        Args:
            thing: What `go` returned; anything else is left alone.
        """
        self._under_way.discard(thing)

    def ready_at(self, now: float) -> float:
        """When the next turn is.

        Args:
            now: The time in seconds.

        Returns:
            `now`, or a later time; infinity if nothing but `add`, `ended` or `open` changes that.
        """
        if not self._is_open or not self._waiting or len(self._under_way) >= self._limit:
            return math.inf
        return self._pacer.ready_at(now)

    def run(self, now: float) -> None:
        """Give everybody a turn who can have one now.

        Args:
            now: The time in seconds.
        """
        while self.ready_at(now) <= now:
            _, go = self._waiting.popitem(last=False)
            thing = go()
            if thing is not None:
                self._under_way.add(thing)
                self._pacer.note(now)
