"""How many messages may leave: at most so many in any rolling window. Time is an argument."""

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
        self._sent: deque[float] = deque(maxlen=limit)

    def ready_at(self, now: float) -> float:
        """When the next message may leave.

        Args:
            now: The time in seconds.

        Returns:
            `now`, or a later time.
        """
        if len(self._sent) < (self._sent.maxlen or 0):
            return now
        return max(now, self._sent[0] + WINDOW)

    def note(self, now: float) -> None:
        """A message leaves.

        Args:
            now: The time in seconds.
        """
        self._sent.append(now)
