"""The time, on the two clocks of a sandbox."""

from __future__ import annotations

import attrs


@attrs.frozen
class Moment:
    """A time on both clocks.

    Attributes:
        at: Seconds on Trio's clock, which timers, limits and prices go by.
        wall: Seconds since the epoch, which stamps and signatures go by.
    """

    at: float
    wall: float

    @property
    def ms(self) -> int:
        """Milliseconds since the epoch, as messages have them."""
        return int(self.wall * 1000)
