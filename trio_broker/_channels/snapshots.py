"""Requests for the state of a channel, and what becomes of their replies.

A snapshot is requested once the broker has the subscription, so nothing is missed between the
state and the first push. One request serves all subscribers that want the state at that time. The
`registry` decides when a request may be sent.

**If a push comes while a snapshot is under way**, it is unknown which of the two is newer. The
snapshot is requested again, with growing delays, because a busy account might overtake each one.

**At most one repeated request in `SNAPSHOT_INTERVAL`** is sent after an overflow or a failure. A
new subscriber's first state doesn't wait. A tracker decides by itself when to ask again.

**The id in an order's channel** may be the broker's or the client's. A reply to a lookup by the one
may not be recognized as a reply to the other. So the two alternate until any state has come.
"""

from __future__ import annotations

import datetime as dt
from functools import partial
from typing import Final

import attrs

from trio_broker._channels.channel import ORDERS, BackgroundUpdate, Channel, oddity
from trio_broker._protocol.effects import Effect, Emit
from trio_broker._protocol.order_ids import OrderIds
from trio_broker._protocol.requests import Request
from trio_broker._protocol.session import Session
from trio_broker.events import SnapshotUnavailable
from trio_broker.exceptions import (
    BrokerError,
    OrderNotFoundError,
    RequestTimeoutError,
    ServerError,
)
from trio_broker.models import Dialect, Message, Order

SNAPSHOT_INTERVAL: Final = 1.0
_FIRST_RETRY: Final = 0.05


class Snapshots:
    """Requests the states of channels, and delivers them."""

    def __init__(
        self,
        effects: list[Effect],
        background_updates: list[BackgroundUpdate],
        session: Session,
        order_ids: OrderIds,
        dialect: Dialect = "clients",
    ) -> None:
        self._effects = effects
        self._background_updates = background_updates
        self._session = session
        self._order_ids = order_ids
        self._dialect = dialect

    def ask(self, channel: Channel, now: float, deadline: float) -> Request | None:
        """Request a channel's state now. Return None if that isn't possible."""
        request = channel.snapshot_request(deadline, self._dialect)
        if request is None:
            error = BrokerError(f"{channel.name!r} is no channel with a snapshot")
            self._fail(channel, error, is_final=True)
            return None
        if (too_large := self._session.too_large(request)) is not None:
            self._fail(channel, too_large, is_final=True)
            return None
        channel.snapshot, channel.overtaken = request, False
        channel.next_snapshot = now + SNAPSHOT_INTERVAL
        self._session.submit(request, now)
        return request

    def ended(self, channel: Channel, request: Request, now: float) -> None:
        """A request for a channel's state has ended."""
        if request.error is not None:
            is_final = isinstance(request.error, ServerError)
            self._fail(channel, request.error, is_final=is_final, is_certain=request.is_certain)
        elif channel.overtaken:
            delay = min(_FIRST_RETRY * 2.0**channel.retries, SNAPSHOT_INTERVAL)
            channel.next_snapshot = now + (delay if channel.retries else 0.0)
            channel.retries += 1
        else:
            assert request.replied_at is not None  # noqa: S101 - there is a reply
            self._deliver(channel, request, request.replied_at)

    def _deliver(self, channel: Channel, request: Request, at: dt.datetime) -> None:
        channel.retries, channel.has_state = 0, True
        state = request.result
        message = Message(channel.name, state, "snapshot", None, at, request.reply)
        # A tracker looks at the ids that the broker has sent, and completes the state itself.
        for tracker in channel.trackers:
            if tracker.wants_snapshot:
                tracker.wants_snapshot = False
                self._background_updates.append((tracker, message))
        if isinstance(state, Order):
            state = self._order_ids.complete(state, channel.name.removeprefix(ORDERS))
            message = attrs.evolve(message, data=state)
        odd = None
        for subscriber in channel.subscriptions:
            if subscriber.wants_snapshot:
                subscriber.wants_snapshot = False
                newest = subscriber.newest
                if newest is not None:
                    odd = oddity(state, newest) or odd
                if newest is None or not state.is_older_than(newest):
                    self._effects.append(subscriber.delivery(message))
        if odd is not None:
            self._session.report_unexpected(odd, request.reply)

    def _fail(
        self, channel: Channel, error: BrokerError, *, is_final: bool, is_certain: bool = True
    ) -> None:
        is_silent = isinstance(error, RequestTimeoutError) and not channel.has_state
        if is_silent and channel.is_background:
            channel.is_client_id = not channel.is_client_id
        not_found = error if is_certain and isinstance(error, OrderNotFoundError) else None
        is_news = False
        for subscriber in channel.subscriptions:
            if subscriber.wants_snapshot:
                subscriber.wants_snapshot = not is_final
                is_news = True
        for tracker in channel.trackers:
            if tracker.wants_snapshot:
                tracker.wants_snapshot = False
                is_news = is_news or not tracker.is_unavailable
                tracker.is_unavailable = True
                self._background_updates.append((tracker, not_found))
        if is_news:
            event = partial(SnapshotUnavailable, channel=channel.name, error=error)
            self._effects.append(Emit(event))
