"""Limits for threads of the library's own, in which blocking functions are called."""

from __future__ import annotations

from typing import Final

import trio

# An abandoned call holds its thread until it returns.
_MAX_THREADS: Final = 100


class ThreadLimit:
    """How many threads one kind of blocking function may have.

    A program may have taken all of Trio's default threads, so they aren't used. Each kind has a
    limit of its own: calls of one kind that hang don't hold up another kind.
    """

    def __init__(self, name: str) -> None:
        self._limiter = trio.lowlevel.RunVar[trio.CapacityLimiter](f"trio_broker: {name}")

    def limiter(self) -> trio.CapacityLimiter:
        """The limiter for `trio.to_thread.run_sync`. Each Trio run has its own."""
        try:
            return self._limiter.get()
        except LookupError:
            limiter = trio.CapacityLimiter(_MAX_THREADS)
            self._limiter.set(limiter)
            return limiter
