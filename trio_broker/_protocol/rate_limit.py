"""Limits the messages sent in any rolling window of time.

A message counts from the end of its write, not from its start: if a write is blocked for seconds,
the broker receives the message together with those that follow.
"""

from __future__ import annotations

from typing import Final

# The broker counts messages in a second; a tenth more absorbs what the network bunches together.
WINDOW: Final = 1.1


class RateLimit:
    """Keeps one connection within the broker's limit of messages a second."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sent: list[float] = []

    def available(self, now: float) -> int:
        """How many messages may be sent now."""
        expired = 0
        while expired < len(self._sent) and self._sent[expired] + WINDOW <= now:
            expired += 1
        if expired:
            del self._sent[:expired]
        return self._limit - len(self._sent)

    def ready_at(self, now: float) -> float:
        """When the next message may be sent: now, or later."""
        return now if self.available(now) else self._sent[0] + WINDOW

    def record(self, now: float, count: int = 1) -> None:
        """Count messages that were sent."""
        self._sent += [now] * count
        del self._sent[: -self._limit]
