"""The state of a channel, where somebody wants it. No I/O; time comes in as an argument.

A snapshot is asked for when the broker holds the channel, so that nothing falls between the state
and the first push. One request at a time serves all who want it by then. An order that is tracked
is asked about without that, where its channel isn't held.

**If a push comes while one is under way**, nobody can tell which of the two is newer: it is asked
for again, at growing distances, as a busy account might overtake each.

**What is asked for again** by itself, after an overflow or after a failure, comes at most once in
`SNAPSHOT_INTERVAL`. A newcomer's first state doesn't wait. What is wanted for tracked orders
alone waits for a turn besides, as there may be a thousand of them; after a failure each of them
knows by itself when to ask again.

**Whose id an order's channel is named after** can be unknown: the broker's, or the client's. A
reply to the one way of asking may not be recognized as one to the other, so as long as nothing
comes, the two take turns.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final

from trio_broker.exceptions import BrokerError, RequestTimeoutError, ServerError
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
        wait_turn: Makes a channel wait for its turn, at which `take` is to be called.
        on_end: Called when a request has ended, after everything else.
        deadline: When a request that is made now is overdue.
        time: Trio's clock.
        wall_time: The time for events.
        received_at: The time of what comes now, for messages.
        on_event: Takes what a user should know.
    """

    def __init__(
        self,
        session: Session,
        *,
        may_ask: Callable[[Channel], bool],
        wait_turn: Callable[[Channel], None],
        on_end: Callable[[Request], None],
        deadline: Callable[[float], float],
        time: Callable[[], float],
        wall_time: Callable[[], dt.datetime],
        received_at: Callable[[], dt.datetime],
        on_event: Callable[[ConnectionEvent], None],
    ) -> None:
        self._session = session
        self._may_ask = may_ask
        self._wait_turn = wait_turn
        self._on_end = on_end
        self._deadline = deadline
        self._time = time
        self._wall_time = wall_time
        self._received_at = received_at
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

    def take(self, channel: Channel, *, in_turn: bool = False) -> Request | None:
        """Ask for a channel's state, if somebody wants it, as soon as may be.

        Args:
            channel: The channel.
            in_turn: Whether it need not wait for its turn.

        Returns:
            The request, if one was made.
        """
        wanting = channel.wanting()
        if channel.snapshot is not None or not wanting or not self._may_ask(channel):
            return None
        now = self._time()
        if now < channel.next_snapshot:
            heapq.heappush(self._delayed, (channel.next_snapshot, next(self._count), channel))
            self._session.listener.changed()
        elif not in_turn and all(member.yields for member in wanting):
            self._wait_turn(channel)
        else:
            return self._ask(channel, now)
        return None

    def _ask(self, channel: Channel, now: float) -> Request | None:
        request = channel.snapshot_request(self._deadline(now))
        if request is None:
            error = BrokerError(f"{channel.name!r} is no channel with a snapshot")
            self._failed(channel, error, is_final=True)
            return None
        request.on_end = lambda request: self._came(channel, request)
        channel.snapshot, channel.overtaken = request, False
        channel.next_snapshot = now + SNAPSHOT_INTERVAL
        self._session.submit(request, now)
        return request

    def _came(self, channel: Channel, request: Request) -> None:
        channel.snapshot = None
        if self._may_ask(channel):
            if request.error is not None:
                is_final = isinstance(request.error, ServerError)
                self._failed(channel, request.error, is_final=is_final)
            elif channel.overtaken:
                delay = min(_FIRST_RETRY * 2.0**channel.retries, SNAPSHOT_INTERVAL)
                channel.next_snapshot = self._time() + (delay if channel.retries else 0.0)
                channel.retries += 1
            else:
                self._deliver(channel, request)
            self.take(channel)
        self._on_end(request)

    def _deliver(self, channel: Channel, request: Request) -> None:
        channel.retries, channel.is_answered = 0, True
        wanting = channel.wanting()
        for member in wanting:
            member.wants_snapshot = False
        now = self._received_at()
        message = Message(channel.name, request.result, "snapshot", None, now, request.reply)
        for member in wanting:
            member.offer(message)

    def _failed(self, channel: Channel, error: BrokerError, *, is_final: bool) -> None:
        if isinstance(error, RequestTimeoutError) and channel.yields and not channel.is_answered:
            channel.by_client = not channel.by_client
        wanting = channel.wanting()
        for member in wanting:
            member.wants_snapshot = not (is_final or member.yields)
        told = [member.unavailable(error) for member in wanting]
        if any(told):
            event = SnapshotUnavailable(at=self._wall_time(), channel=channel.name, error=error)
            self._on_event(event)
