"""The deadlines of the whole core, in one heap.

An item has at most one deadline. Setting a later one changes nothing: the owner sets it again when
the earlier one has come. So an item whose deadline moves with each push, such as a tracked order,
costs nothing here.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Generic, TypeVar

T = TypeVar("T")


class Timers(Generic[T]):
    """Deadlines of items, which are told apart by identity.

    Attributes:
        has_changed: Whether a deadline was set since the caller last cleared this.
    """

    def __init__(self) -> None:
        self.has_changed: bool = False
        self._heap: list[tuple[float, int, T]] = []
        self._times: dict[T, float] = {}
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._times)

    @property
    def next_deadline(self) -> float:
        """When `pop` returns an item, or infinity."""
        heap, times = self._heap, self._times
        while heap:
            at, _, item = heap[0]
            if times.get(item) == at:
                return at
            heapq.heappop(heap)
        return math.inf

    def set(self, item: T, at: float) -> None:
        """Set an item's deadline, unless an earlier one is set."""
        if at < self._times.get(item, math.inf):
            self._times[item] = at
            self.has_changed = True
            heapq.heappush(self._heap, (at, next(self._count), item))
            if len(self._heap) > 2 * len(self._times) + 100:
                self._heap = [
                    entry for entry in self._heap if self._times.get(entry[2]) == entry[0]
                ]
                heapq.heapify(self._heap)

    def cancel(self, item: T) -> None:
        """Remove an item's deadline."""
        self._times.pop(item, None)

    def pop(self, now: float) -> T | None:
        """Remove and return the item with the earliest deadline that has come, or None."""
        if self.next_deadline > now:
            return None
        item = heapq.heappop(self._heap)[2]
        del self._times[item]
        return item
