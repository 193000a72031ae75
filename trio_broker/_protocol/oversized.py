"""Finds the request whose reply is too large to be received. No I/O, no clock.

A message over `Limits.max_receive_size` ends the connection with close code 1009. It may have been
a push, or the reply to a request in flight. If it was a reply, sending the request again ends the
next connection too, and so on. So every read that was in flight is *suspected*: on the next
connection it is sent alone. If that connection ends in the same way, its reply is certainly too
large. The caller gets an error, and the request isn't sent in the background again. A reply to the
same question clears it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from trio_broker._protocol.requests import Request

_READS: Final = frozenset({"balances", "estimate", "order_status"})
# A service may ask ever new questions for months.
_MAX_REMEMBERED: Final = 1000


class OversizedReplies:
    """The questions whose replies are, or may be, too large.

    Attributes:
        suspected: The questions whose replies may be too large.
    """

    def __init__(self) -> None:
        self.suspected: set[tuple[str, str]] = set()
        self._certain: set[tuple[str, str]] = set()

    def flies_alone(self, request: Request) -> bool:
        """Whether a request must be alone in flight."""
        return _question(request) in self.suspected

    def is_certain(self, request: Request) -> bool:
        """Whether the reply to a request is certainly too large."""
        return _question(request) in self._certain

    def lost(self, in_flight: Collection[Request]) -> None:
        """Suspect the requests in flight: a message that was too large has ended the connection."""
        questions = {_question(request) for request in in_flight if request.op in _READS}
        if len(in_flight) == 1:
            self._certain |= questions & self.suspected
        if len(self.suspected) > _MAX_REMEMBERED:
            self.suspected.clear()
            self._certain.clear()
        self.suspected |= questions

    def answered(self, request: Request) -> None:
        """Clear a request whose reply has arrived."""
        self.suspected.discard(_question(request))
        self._certain.discard(_question(request))


def _question(request: Request) -> tuple[str, str]:
    return request.op, request.body
