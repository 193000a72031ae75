"""How many messages may leave: at most so many in any rolling window. Time is an argument.

A message counts from the moment when it was handed over whole, not from when that began: a write
that was held up for seconds arrives at its end, together with what follows it.
"""

from __future__ import annotations

from collections import deque
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
