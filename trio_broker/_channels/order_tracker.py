"""Follows orders to their end, whatever is lost on the way.

A tracked order doesn't rely on its channel. A push may be lost, a stream may be mute while pings
are answered, and an order may be filled during an outage. So the order is polled as well: once its
channel is subscribed, after every reconnection, and when nothing came for `poll_interval`. Without
a subscription it is only polled. So the final status is found as long as the broker answers.

**It never goes backwards,** as `Order.is_older_than` defines it. A state that says nothing new is
delivered only with a gap. A final status is always delivered, whatever its times say, and then the
stream ends.

**"Not found" doesn't end it at once.** The order may be too new, or known to another of the
broker's machines only. One event reports it, and the order is polled again. It ends when the broker
has said so for `not_found_timeout`. Only the time between two such answers counts, and only if
there was no outage and no other failure in between. It never ends an order of which anything was
ever heard, nor an order of one of the client's swaps.

**A client order id** can be tracked too. The order's own id may be known here. Otherwise a reply
names it, and the tracked order moves to that channel. Until it is known whether the broker knows
the id, the order is polled sooner, with growing delays.
"""

from __future__ import annotations

import math
from typing import Any, Final

import attrs

from trio_broker._channels.channel import ORDERS, Subscriber, Update
from trio_broker._channels.registry import ChannelRegistry
from trio_broker._protocol.effects import Effect, Sink, StreamEnded
from trio_broker._protocol.order_ids import CLIENT_ORDER_ID_PREFIX, OrderIds, with_ids
from trio_broker._protocol.timers import Timers
from trio_broker.models import Message, Order, OrderStatus

FIRST_PAUSE: Final = 0.5


@attrs.define(eq=False)
class TrackedOrder(Subscriber):
    """A tracked order.

    Attributes:
        given_id: The id that the user gave.
        stop_at_partial: Whether a partial fill ends the stream.
        is_known: Whether its channel is known to be named by the order's own id.
        pause: The delay between two polls while `is_known` is false.
        not_found_timeout: For how long the broker may say "not found".
        not_found_for: For how long it has said so.
        not_found_at: When it said so last; None if something else has happened since then.
        due: When it is polled next.
    """

    given_id: str = attrs.field(kw_only=True)
    stop_at_partial: bool = attrs.field(kw_only=True)
    is_known: bool = attrs.field(kw_only=True)
    pause: float = attrs.field(kw_only=True)
    not_found_timeout: float = attrs.field(kw_only=True)
    not_found_for: float = attrs.field(init=False, default=0.0)
    not_found_at: float | None = attrs.field(init=False, default=None)
    due: float = attrs.field(init=False, default=math.inf)


class OrderTracker:
    """The tracked orders of one client."""

    def __init__(
        self,
        effects: list[Effect],
        channels: ChannelRegistry,
        timers: Timers[Any],
        order_ids: OrderIds,
        *,
        poll_interval: float,
    ) -> None:
        self._effects = effects
        self._channels = channels
        self._timers = timers
        self._order_ids = order_ids
        self._interval = poll_interval
        self._orders: dict[TrackedOrder, None] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def track(
        self,
        order_id: str,
        sink: Sink,
        now: float,
        *,
        stop_at_partial: bool,
        not_found_timeout: float,
    ) -> TrackedOrder:
        """Follow an order from now on."""
        known = self._order_ids.order_id(order_id)
        sink.name = ORDERS + (known or order_id)
        order = TrackedOrder(
            sink,
            wants_snapshot=True,
            given_id=order_id,
            stop_at_partial=stop_at_partial,
            is_known=known is not None,
            pause=min(FIRST_PAUSE, self._interval),
            not_found_timeout=not_found_timeout,
        )
        self._orders[order] = None
        self._set(order, now + self._interval)
        is_client_id = known is None and order_id.startswith(CLIENT_ORDER_ID_PREFIX)
        self._channels.track(order, now, is_client_id=is_client_id)
        return order

    def leave(self, order: TrackedOrder, now: float) -> None:
        """Stop following an order, if that hasn't happened yet."""
        if order in self._orders:
            del self._orders[order]
            self._timers.cancel(order)
            self._channels.leave(order, now)

    def lost(self) -> None:
        """The connection is gone: the time until the next "not found" doesn't count."""
        for order in self._orders:
            order.not_found_at = None

    def finish(self) -> None:
        """There will be no connection any more. The channels have ended the streams."""
        for order in self._orders:
            self._timers.cancel(order)
        self._orders.clear()

    def due(self, order: TrackedOrder, now: float) -> None:
        """Poll an order that had no update for `poll_interval`."""
        if order.due > now:
            self._timers.set(order, order.due)  # Something came since the timer was set.
            return
        self._set(order, now + self._interval)
        known = None if order.is_known else self._order_ids.order_id(order.given_id)
        if known is not None:
            self._move(order, known, now)
        self._channels.ask(order, now)

    def take_update(self, order: TrackedOrder, update: Update, now: float) -> None:
        """A state of an order has come, or a request for it has failed."""
        if isinstance(update, Message):
            self._take_state(order, update, now)
            return
        if update is None:
            order.not_found_at = None
        else:
            order.not_found_for += now - (now if order.not_found_at is None else order.not_found_at)
            order.not_found_at = now
            is_over = order.not_found_for >= order.not_found_timeout
            if is_over and not self._is_heard_of(order):
                self._effects.append(StreamEnded(order.sink, update))
                self.leave(order, now)
                return
        self._pause(order, now)

    def _is_heard_of(self, order: TrackedOrder) -> bool:
        """Whether a state of the order ever came, or whether it is of one of the client's swaps."""
        return (
            order.newest is not None
            or self._channels.has_state(order)
            or self._order_ids.is_heard_of(order.given_id)
        )

    def _take_state(self, order: TrackedOrder, message: Message[Order], now: float) -> None:
        state = message.data
        order.is_unavailable = False
        if not order.is_known and state.order_id:
            self._move(order, state.order_id, now)
        order.is_known = order.is_known or message.origin == "push"
        self._pause(order, now)
        if order.newest is not None:
            if state.is_older_than(order.newest):
                self._channels.report_oddity(state, order.newest, message.raw)
                return
            if order.gap is None and _what_it_says(state) == _what_it_says(order.newest):
                return
        state = self._completed(order, state)
        message = attrs.evolve(message, channel=order.sink.name, data=state)
        self._effects.append(order.delivery(message))
        if state.is_final or (order.stop_at_partial and state.status is OrderStatus.PARTIAL):
            self._effects.append(StreamEnded(order.sink))
            self.leave(order, now)

    def _completed(self, order: TrackedOrder, state: Order) -> Order:
        """The state, with ids that are known here and that the broker left out."""
        name = order.sink.name.removeprefix(ORDERS)
        state = self._order_ids.complete(state, name)
        if state.client_order_id is None and name != order.given_id:
            # The order was found by this id, so it is the client's.
            state = with_ids(state, state.order_id, order.given_id)
        return state

    def _move(self, order: TrackedOrder, order_id: str, now: float) -> None:
        """The order's own id is known: use its channel."""
        order.is_known = True
        if order.sink.name != ORDERS + order_id:
            self._channels.leave(order, now)
            order.sink.name = ORDERS + order_id
            order.wants_snapshot = True
            self._channels.track(order, now)

    def _pause(self, order: TrackedOrder, now: float) -> None:
        pause = self._interval
        if not order.is_known:
            pause = order.pause
            order.pause = min(2 * pause, self._interval)
        if order.not_found_at is not None and order.not_found_for < order.not_found_timeout:
            pause = min(pause, order.not_found_timeout - order.not_found_for)
        self._set(order, now + pause)

    def _set(self, order: TrackedOrder, due: float) -> None:
        order.due = due
        self._timers.set(order, due)


def _what_it_says(state: Order) -> tuple[object, ...]:
    return state.status, state.filled_out, state.tx_hash, state.updated_at
