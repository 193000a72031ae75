"""How far this machine's clock is off, as far as the broker's answer tells."""

from __future__ import annotations

from typing import Final, Self

import attrs

BROKERS_WINDOW: Final = 30.0
"""Seconds by which a message's timestamp may differ from the broker's clock."""

# An HTTP date has no fractions: when it is told, up to so much of the next second may be over.
_RESOLUTION: Final = 1.0


@attrs.frozen
class Skew:
    """By how many seconds this machine's clock is ahead of the broker's.

    Attributes:
        least: At least; below 0 it is behind.
        most: At most.
    """

    least: float
    most: float

    @classmethod
    def from_date(cls, date: float, asked_at: float, answered_at: float) -> Self:
        """What a dated answer tells: it was written somewhen between question and answer.

        Args:
            date: Its date, in seconds since the epoch.
            asked_at: When the question left, by this machine's clock.
            answered_at: When the answer was here, by this machine's clock.
        """
        return cls(asked_at - date - _RESOLUTION, answered_at - date)

    @property
    def certain(self) -> float:
        """By how many seconds the clock is certainly off, in either direction."""
        return max(self.least, -self.most, 0.0)

    def __str__(self) -> str:
        return f"between {self.least:+.1f} and {self.most:+.1f} s"
