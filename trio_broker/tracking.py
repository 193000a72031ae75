"""Orders that are followed to their end, whatever is lost on the way. No I/O; time is an argument.

A *tracker* is a member of its order's channel that doesn't rely on it. A push may be lost, a stream
may have gone mute while pings are answered, an order may be filled while nobody is connected: so
it is asked about as well, as soon as its channel is held, after every reconnection, and whenever
nothing was heard of it for `poll_interval`. Where its channel can't be held, asking is all there
is. So the final status is found out as long as the broker answers at all.

**It never goes backwards**, and a state that says nothing new isn't delivered, unless it carries a
gap. Nothing follows a final status: one is delivered whatever the times in it say, and then the
tracker ends.

**Not found means not known.** A refusal never ends a tracker: the order may be too new, or known
to another machine of the broker's only. The user is told once, and it is asked about again.

**A client order id** may stand in for the order's own. Its own may be known here; otherwise a reply
names it, and the tracker moves on to the channel of that. As long as it isn't known whether an id
means anything to the broker, asking goes on sooner, at growing distances.

**One alarm for each.** With a thousand orders that are pushed, an alarm that was set anew for each
push would be most of the work. So a push only notes when its order is due by now, and an alarm that
rings too early is set again then.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any, Final

import attrs

from trio_broker.channels import Channels
from trio_broker.exceptions import BrokerError
from trio_broker.membership import ORDERS, Member
from trio_broker.models import Message, Order, OrderStatus
from trio_broker.request import ignore
from trio_broker.subscription import Feed
from trio_broker.swaps import MADE_HERE

FIRST_PAUSE: Final = 0.5


@attrs.define(eq=False)
class Tracker(Member):
    """An order that is tracked.

    Attributes:
        tracking: Where it is.
        given_id: The id that the user gave.
        stop_at_partial: Whether a partial fill ends it.
        is_known: Whether its channel is named by the order's own id, as far as was heard.
        is_unavailable: Whether the last time it was asked about was in vain.
        pause: How long after an answer it is asked about again while it isn't known.
        due: When it is asked about next.
        alarm: The earliest time at which that is looked at, infinity for never.
    """

    tracking: Tracking = attrs.field(kw_only=True)
    given_id: str = attrs.field(kw_only=True)
    stop_at_partial: bool = attrs.field(kw_only=True)
    is_known: bool = False
    is_unavailable: bool = False
    pause: float = FIRST_PAUSE
    due: float = math.inf
    alarm: float = math.inf

    def offer(self, message: Message[Order]) -> None:
        """Deliver a state that says something new, and end with the last one.

        Args:
            message: The state.
        """
        state = message.data
        self.is_unavailable = False
        self.tracking.heard(self, message)
        if self.newest is not None:
            if _is_older(state, self.newest):
                return
            if self.gap is None and _what_it_says(state) == _what_it_says(self.newest):
                return
        self.deliver(attrs.evolve(message, channel=self.feed.name))
        if state.is_final or (self.stop_at_partial and state.status is OrderStatus.PARTIAL):
            self.feed.end()
            self.tracking.leave(self)

    def unavailable(self, error: BrokerError) -> bool:  # noqa: ARG002 - it is the same for all
        """It was asked about in vain: it will be again.

        Args:
            error: Why.

        Returns:
            Whether that is news.
        """
        was_unavailable, self.is_unavailable = self.is_unavailable, True
        self.tracking.not_heard(self)
        return not was_unavailable


class Tracking:
    """The orders that one client tracks.

    Args:
        channels: The client's channels.
        poll_interval: Seconds of silence, after which an order is asked about.
        time: Trio's clock.
        changed: Called when `next_deadline` may be another.
        known_order_id: The broker's id for a client order id, None where it isn't known.
    """

    def __init__(
        self,
        channels: Channels,
        *,
        poll_interval: float,
        time: Callable[[], float],
        changed: Callable[[], None],
        known_order_id: Callable[[str], str | None],
    ) -> None:
        self._channels = channels
        self._interval = poll_interval
        self._time = time
        self._changed = changed
        self._known_order_id = known_order_id
        self._trackers: dict[Tracker, None] = {}
        self._alarms: list[tuple[float, int, Tracker]] = []
        self._count = itertools.count()

    @property
    def orders(self) -> int:
        """How many orders are tracked, each as often as it is."""
        return len(self._trackers)

    def track(self, order_id: str, feed: Feed[Any], *, stop_at_partial: bool) -> Tracker:
        """Follow an order from now on.

        Args:
            order_id: The order's id at the broker, or its client order id.
            feed: Where its states go; its name is set here.
            stop_at_partial: Whether a partial fill is an end.
        """
        known = self._known_order_id(order_id)
        feed.name = ORDERS + (known or order_id)
        tracker = Tracker(
            feed,
            ignore,
            wants_snapshot=True,
            yields=True,
            tracking=self,
            given_id=order_id,
            stop_at_partial=stop_at_partial,
            is_known=known is not None,
            pause=min(FIRST_PAUSE, self._interval),
        )
        self._trackers[tracker] = None
        self._set(tracker, self._time() + self._interval)
        by_client = known is None and order_id.startswith(MADE_HERE)
        self._channels.admit(tracker, by_client=by_client)
        return tracker

    def leave(self, tracker: Tracker) -> None:
        """Follow an order no longer.

        Args:
            tracker: What `track` gave; one that has left is left alone.
        """
        if tracker in self._trackers:
            del self._trackers[tracker]
            tracker.due = math.inf
            self._channels.leave(tracker)
            if len(self._alarms) > 2 * len(self._trackers):
                self._alarms = [entry for entry in self._alarms if entry[2] in self._trackers]
                heapq.heapify(self._alarms)

    def finish(self) -> None:
        """There will be no connection any more; the channels have told everybody."""
        self._trackers.clear()
        self._alarms.clear()

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do, infinity for never."""
        return self._alarms[0][0] if self._alarms else math.inf

    def tick(self, now: float) -> None:
        """Ask about those that have been silent for too long.

        Args:
            now: The time.
        """
        while self.next_deadline <= now:
            at, _, tracker = heapq.heappop(self._alarms)
            if at != tracker.alarm:
                continue  # An earlier one was set since.
            tracker.alarm = math.inf
            if tracker.due > now:
                self._set(tracker, tracker.due)
            else:
                self._set(tracker, now + self._interval)
                self._ask(tracker)

    def heard(self, tracker: Tracker, message: Message[Order]) -> None:
        """For a tracker: something was heard of its order.

        Args:
            tracker: The tracker.
            message: What.
        """
        order_id = message.data.order_id
        if not tracker.is_known and order_id:
            self._move(tracker, order_id)
        tracker.is_known = tracker.is_known or message.origin == "push"
        self._pause(tracker)

    def not_heard(self, tracker: Tracker) -> None:
        """For a tracker: its order was asked about in vain.

        Args:
            tracker: The tracker.
        """
        self._pause(tracker)

    def _ask(self, tracker: Tracker) -> None:
        known = None if tracker.is_known else self._known_order_id(tracker.given_id)
        if known is not None:
            self._move(tracker, known)
        self._channels.ask(tracker)

    def _move(self, tracker: Tracker, order_id: str) -> None:
        """The order's own id is known: its channel is the one to be in."""
        tracker.is_known = True
        if tracker.feed.name != ORDERS + order_id:
            self._channels.leave(tracker)
            tracker.feed.name = ORDERS + order_id
            tracker.wants_snapshot = True
            self._channels.admit(tracker)

    def _pause(self, tracker: Tracker) -> None:
        if tracker.is_known:
            self._set(tracker, self._time() + self._interval)
        else:
            self._set(tracker, self._time() + tracker.pause)
            tracker.pause = min(2 * tracker.pause, self._interval)

    def _set(self, tracker: Tracker, due: float) -> None:
        tracker.due = due
        if due < tracker.alarm:
            tracker.alarm = due
            entry = (due, next(self._count), tracker)
            heapq.heappush(self._alarms, entry)
            if self._alarms[0] is entry:
                self._changed()


def _is_older(state: Order, newest: Order) -> bool:
    """Whether a state is to be kept from whoever has had another one.

    Times come from the broker's machines, whose clocks may differ; a final status is final.
    """
    if state.is_final:
        return False
    if state.is_older_than(newest):
        return True
    if state.updated_at and newest.updated_at and state.updated_at != newest.updated_at:
        return False
    if state.filled_out is None or newest.filled_out is None:
        return False
    return state.status == newest.status and state.filled_out < newest.filled_out


def _what_it_says(state: Order) -> tuple[object, ...]:
    return state.status, state.filled_out, state.tx_hash, state.updated_at
