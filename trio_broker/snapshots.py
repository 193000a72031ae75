"""The state of a channel, where somebody wants it. No I/O; time comes in as an argument.

A snapshot is asked for when the broker holds the channel, so that nothing falls between the state
and the first push. One request at a time serves all who want it by then.

**If a push comes while one is under way**, nobody can tell which of the two is newer: it is asked
for again, at growing distances, as a busy account might overtake each.

**What is asked for again** by itself, after an overflow or after a failure, comes at most once in
`SNAPSHOT_INTERVAL`. A newcomer's first state doesn't wait.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final

from trio_broker.exceptions import BrokerError, ServerError
from trio_broker.membership import Channel
from trio_broker.models import ConnectionEvent, Message, SnapshotUnavailable
from trio_broker.request import Request
from trio_broker.session import Session

# A snapshot after an overflow, or after one that failed, comes at most so often.
SNAPSHOT_INTERVAL: Final = 1.0
_FIRST_RETRY: Final = 0.05


class Snapshots:
    """Asks for the states of channels.

    Args:
        session: Where requests go.
        may_ask: Whether a channel's state can be asked for now.
        deadline: When a request that is made now is overdue.
        time: Trio's clock.
        wall_time: The time for messages and events.
        on_event: Takes what a user should know.
    """

    def __init__(
        self,
        session: Session,
        *,
        may_ask: Callable[[Channel], bool],
        deadline: Callable[[float], float],
        time: Callable[[], float],
        wall_time: Callable[[], dt.datetime],
        on_event: Callable[[ConnectionEvent], None],
    ) -> None:
        self._session = session
        self._may_ask = may_ask
        self._deadline = deadline
        self._time = time
        self._wall_time = wall_time
        self._on_event = on_event
        self._delayed: list[tuple[float, int, Channel]] = []
        self._count = itertools.count()

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do, infinity for never."""
        return self._delayed[0][0] if self._delayed else math.inf

    def tick(self, now: float) -> None:
        """Ask for those whose time has come.

        Args:
            now: The time.
        """
        while self.next_deadline <= now:
            self.take(heapq.heappop(self._delayed)[2])

    def clear(self) -> None:
        """Forget what was to be asked for later: the connection is gone."""
        self._delayed.clear()

    def take(self, channel: Channel) -> None:
        """Ask for a channel's state, if somebody wants it, as soon as may be.

        Args:
            channel: The channel.
        """
        if channel.snapshot is not None or not self._may_ask(channel) or not channel.wanting():
            return
        now = self._time()
        if now < channel.next_snapshot:
            heapq.heappush(self._delayed, (channel.next_snapshot, next(self._count), channel))
            self._session.listener.changed()
            return
        request = channel.snapshot_request(self._deadline(now))
        if request is None:
            self._forgo(channel, BrokerError(f"{channel.name!r} is no channel with a snapshot"))
            return
        request.on_end = lambda request: self._came(channel, request)
        channel.snapshot, channel.overtaken = request, False
        channel.next_snapshot = now + SNAPSHOT_INTERVAL
        self._session.submit(request, now)

    def _came(self, channel: Channel, request: Request) -> None:
        channel.snapshot = None
        if not self._may_ask(channel):
            return
        if request.error is None and not channel.overtaken:
            wanting = channel.wanting()
            for member in wanting:
                member.wants_snapshot = False
            channel.retries = 0
            now, state = self._wall_time(), request.result
            message = Message(channel.name, state, "snapshot", None, now, request.reply)
            for member in wanting:
                member.offer(message)
        elif request.error is None:
            delay = min(_FIRST_RETRY * 2.0**channel.retries, SNAPSHOT_INTERVAL)
            channel.next_snapshot = self._time() + (delay if channel.retries else 0.0)
            channel.retries += 1
        elif isinstance(request.error, ServerError):
            self._forgo(channel, request.error)
        else:
            self._unavailable(channel, request.error)
        self.take(channel)

    def _forgo(self, channel: Channel, error: BrokerError) -> None:
        for member in channel.wanting():
            member.wants_snapshot = False
        self._unavailable(channel, error)

    def _unavailable(self, channel: Channel, error: BrokerError) -> None:
        event = SnapshotUnavailable(at=self._wall_time(), channel=channel.name, error=error)
        self._on_event(event)
