"""The background channels take turns at sending a request.

There may be a thousand tracked orders, and none of them is urgent. So their requests have a rate
limit of their own, and a limited number of them is in flight. Otherwise a slow broker, or a swap
that is alone in flight, would be followed by a burst that delays the next swap.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from trio_broker._channels.channel import Channel
from trio_broker._protocol.rate_limit import RateLimit
from trio_broker._protocol.requests import Request
from trio_broker.exceptions import ProtocolError


class PollQueue:
    """Channels that wait for a turn, and the requests of earlier turns. It is closed at first."""

    def __init__(self, limit: int) -> None:
        self._rate_limit = RateLimit(limit)
        self._limit = self._most_in_flight = limit
        self._messages_each = 2
        self._waiting: OrderedDict[Channel, None] = OrderedDict()
        self._in_flight: set[Request] = set()
        self._is_open = False

    def open(self) -> None:
        """Begin, or go on: a connection is there."""
        self._is_open = True
        self._most_in_flight = self._limit
        # A read may be sent twice, until it is known whether this broker's replies are ambiguous.
        self._messages_each = 2

    def close(self) -> None:
        """Give no more turns: the connection is lost, with the requests in flight."""
        self._is_open = False
        self._in_flight.clear()

    def add(self, channel: Channel) -> None:
        """Let a channel wait for a turn. It waits once at most."""
        self._waiting.setdefault(channel)

    def remove(self, channel: Channel) -> None:
        """Wait no longer."""
        self._waiting.pop(channel, None)

    def ready_at(self, now: float) -> float:
        """When the next turn is; infinity if only `add`, `ended` or `open` can change that."""
        if not self._is_open or not self._waiting or len(self._in_flight) >= self._most_in_flight:
            return math.inf
        return self._rate_limit.ready_at(now)

    def next(self) -> Channel:
        """Take the channel that has the next turn."""
        return self._waiting.popitem(last=False)[0]

    def sent(self, request: Request, now: float) -> None:
        """A turn has made a request."""
        self._in_flight.add(request)
        self._rate_limit.record(now, self._messages_each)

    def ended(self, request: Request, now: float) -> None:
        """A request has ended. It may be one that no turn has made."""
        if request in self._in_flight:
            self._in_flight.remove(request)
            sent_again = len(request.nonces) - 1
            if sent_again > 0 or isinstance(request.error, ProtocolError):
                self._most_in_flight = 1  # This broker's replies are told apart one at a time.
            # Repeated messages count too, or trackers would take more than their half.
            self._rate_limit.record(now, max(0, 1 + sent_again - self._messages_each))
            self._messages_each = 1
