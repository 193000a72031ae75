"""The engine: all state of the broker's protocol, in one object.

The caller passes in messages, the time, the coming and going of connections, and the requests of
users. The engine changes its state and returns *effects*, which the caller carries out in their
order. The engine does no I/O, imports no Trio, reads no clock and uses no randomness.

    a message ──► receive ──┬─ a push ───► channels ──► messages for streams
                            └─ a reply ──► session ──► the request ends ──► its owner

**Calls go downwards only**: order tracker → channels → session, and swaps → session. A lower part
writes its results into a list (`Session.ended`, `ChannelRegistry.background_updates`). Between two
steps, `_follow_up` passes them to the upper parts. So no part is called while it is in the middle
of a step.

Counters, ids and swaps may be read from outside. Only the engine's methods change state; the
driver clears two flags, `Session.may_send` and `Timers.has_changed`.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from trio_broker._channels.channel import Channel, Subscriber, Update
from trio_broker._channels.order_tracker import OrderTracker, TrackedOrder
from trio_broker._channels.poll_queue import PollQueue
from trio_broker._channels.registry import ChannelRegistry
from trio_broker._protocol import codec
from trio_broker._protocol.effects import Effect, RequestEnded, Sink
from trio_broker._protocol.matching import AmbiguousReply
from trio_broker._protocol.order_ids import OrderIds
from trio_broker._protocol.requests import Purpose, Request, Waiter
from trio_broker._protocol.session import Session
from trio_broker._protocol.timers import Timers
from trio_broker._redactor import Redactor
from trio_broker._swaps.registry import Swap, SwapRegistry
from trio_broker.exceptions import BrokerError, NotSentError, ProtocolError
from trio_broker.models import Dialect


class Engine:
    """All protocol state of one client.

    Attributes:
        next_to_send: Returns the request that may be sent now, if there is one.
        mark_sent: Must be called just before a request is sent.
        enter_swap: Enters a swap into the registry; nothing is sent yet.
        timers: The deadlines. `tick` must be called when the next one has come.
        order_ids: The known ids of orders.
        arrivals: Calls of `receive`.
        received: Messages received.
    """

    def __init__(
        self,
        redactor: Redactor,
        *,
        max_subscriptions: int,
        messages_per_second: int,
        max_receive_size: int,
        request_timeout: float,
        reply_grace: float,
        resolve_timeout: float,
        poll_interval: float,
        dialect: Dialect = "clients",
        refusal_texts: Iterable[str] = (),
    ) -> None:
        self.timers: Timers[Any] = Timers()
        self.order_ids: OrderIds = OrderIds()
        self.arrivals: int = 0
        self.received: int = 0
        self._effects: list[Effect] = []
        self.session: Session = Session(
            self._effects,
            self.timers,
            self.order_ids,
            redactor,
            reply_grace=reply_grace,
            max_receive_size=max_receive_size,
        )
        self.next_to_send = self.session.next_to_send
        self.mark_sent = self.session.mark_sent
        self.channels: ChannelRegistry = ChannelRegistry(
            self._effects,
            self.session,
            self.timers,
            self.order_ids,
            redactor,
            max_subscriptions=max_subscriptions,
            request_timeout=request_timeout,
            messages_per_second=messages_per_second,
            dialect=dialect,
        )
        self.tracker: OrderTracker = OrderTracker(
            self._effects,
            self.channels,
            self.timers,
            self.order_ids,
            poll_interval=poll_interval,
        )
        self.swaps: SwapRegistry = SwapRegistry(
            self._effects,
            self.session,
            self.timers,
            self.order_ids,
            request_timeout=request_timeout,
            resolve_timeout=resolve_timeout,
            refusal_texts=refusal_texts,
        )
        self.enter_swap = self.swaps.enter

    # --- The connection --------------------------------------------------------------------

    def connected(self, auth: Request, now: float) -> None:
        """Authenticate on a new connection."""
        self.session.open(auth, now)

    def restore(self, now: float) -> tuple[int, list[Effect]]:
        """Subscribe to all wanted channels, on an authenticated connection.

        Returns:
            How many channels must be restored, and the effects. `ChannelsRestored` follows when
            they are.
        """
        return self.channels.restore(now), self._finish_step(now)

    def receive(  # noqa: C901 - a call costs time for each message
        self, messages: Sequence[str | bytes], now: float, at: dt.datetime
    ) -> list[Effect]:
        """Handle messages from the broker that arrived together."""
        self.arrivals += 1
        session, channels, trust = self.session, self.channels, self.session.trust
        ended, updates, receipts = (
            session.ended,
            channels.background_updates,
            session.unowed_receipts,
        )
        begins, length = codec.BEGINS_ORDER_PUSH, len(codec.BEGINS_ORDER_PUSH)
        taken = 0
        while taken < len(messages) and not trust.is_over:
            text = messages[taken]
            if text[:length] == begins:
                count = channels.take_usual_pushes(islice(messages, taken, None), at)
                if count:
                    trust.malformed = 0
                    taken += count
                    self.received += count
                    continue
            taken += 1
            self.received += 1
            if not isinstance(text, str):
                session.report_unexpected("it is binary", "")
                continue
            try:
                message = codec.decode_message(text)
                # An error for a channel may answer a `subscribe` or `unsubscribe`.
                if (
                    message.ch
                    and not message.op
                    and not (message.error and session.owes_channel(message.ch))
                ):
                    channels.take_push(message, text, now, at)
                elif message.op or message.error:
                    session.take_reply(message, text, now, at)
                elif not message.unreadable:
                    session.report_unexpected("it has neither op, ch nor error", text)
            except (ProtocolError, codec.MalformedError) as error:
                self._take_unreadable(error, text)
            else:
                trust.malformed = 0
                if message.unreadable:
                    places = ", ".join(message.unreadable)
                    session.report_unexpected(f"parts of it can't be read: {places}", text)
            if ended or updates or receipts:
                self._follow_up(now)
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def _take_unreadable(self, error: Exception, text: str) -> None:
        """Report a message that can't be read. Several in a row that are no JSON are too many."""
        if isinstance(error, codec.MalformedError):
            self.session.take_malformed(error, text)
        else:
            self.session.trust.malformed = 0
            self.session.report_unexpected(str(error), text)

    def lost(self, error: BrokerError, since: dt.datetime, now: float) -> list[Effect]:
        """The connection is lost, or could not be opened."""
        # The channels first: they then ignore the ends of requests of this connection.
        if self.channels.is_online:
            self.channels.lost(since, now)
            self.tracker.lost()
        self.session.lose(error)
        return self._finish_step(now)

    def close(
        self, failure: BrokerError | None, lost: BrokerError, unsent: NotSentError, now: float
    ) -> list[Effect]:
        """End every request and stream: no connection will follow."""
        # The channels first: they would follow a failed request by another one.
        self.channels.finish(failure, lost, unsent)
        self.swaps.finish(unsent, now)
        self.tracker.finish()
        self.session.shut(lost, unsent)
        return self._finish_step(now)

    def tick(self, now: float) -> list[Effect]:
        """Handle all deadlines that have come."""
        while (item := self.timers.pop(now)) is not None:
            if isinstance(item, Request):
                self.session.due(item, now)
            elif isinstance(item, AmbiguousReply):
                self.session.hold_is_over(item, now)
            elif isinstance(item, Session):
                item.make_fresh(now)
            elif isinstance(item, TrackedOrder):
                self.tracker.due(item, now)
            elif isinstance(item, Channel):
                self.channels.ask_state(item, now)
            elif isinstance(item, PollQueue):
                self.channels.give_turns(now)
            else:
                self.swaps.due(item, now)
            self._follow_up(now)
        return self._finish_step(now)

    # --- Requests --------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> list[Effect]:
        """Queue a request. `RequestEnded` reports its end."""
        self.session.submit(request, now)
        return self._finish_step(now)

    def give_up(
        self, request: Request, now: float, error: BrokerError | None = None
    ) -> list[Effect]:
        """Abandon a request."""
        self.session.give_up(request, now, error)
        return self._finish_step(now)

    # --- Channels --------------------------------------------------------------------------

    def subscribe(self, subscriber: Subscriber, now: float) -> list[Effect]:
        """Add a user's subscription. Its waiter is woken when the broker has answered.

        Raises:
            SubscriptionLimitError: The limit of channels is reached.
        """
        self.channels.subscribe(subscriber, now)
        return self._finish_step(now)

    def leave(self, subscriber: Subscriber, now: float) -> list[Effect]:
        """Remove a subscriber, unless it is removed already."""
        if isinstance(subscriber, TrackedOrder):
            self.tracker.leave(subscriber, now)
        else:
            self.channels.leave(subscriber, now)
        return self._finish_step(now)

    def drained(self, subscriber: Subscriber, now: float) -> list[Effect]:
        """A subscriber's buffer is empty again after an overflow."""
        self.channels.drained(subscriber, now)
        return self._finish_step(now)

    def unsubscribe(self, name: str, waiter: Waiter, now: float) -> list[Effect]:
        """End every subscription to a channel. The waiter is woken when the channel is left."""
        self.channels.unsubscribe(name, waiter, now)
        return self._finish_step(now)

    def track(
        self,
        order_id: str,
        sink: Sink,
        now: float,
        *,
        stop_at_partial: bool,
        not_found_timeout: float = math.inf,
    ) -> tuple[TrackedOrder, list[Effect]]:
        """Track an order to its end."""
        order = self.tracker.track(
            order_id,
            sink,
            now,
            stop_at_partial=stop_at_partial,
            not_found_timeout=not_found_timeout,
        )
        return order, self._finish_step(now)

    # --- Swaps -----------------------------------------------------------------------------

    def load_swaps(self, swaps: Iterable[Swap]) -> None:
        """Add swaps of earlier processes."""
        self.swaps.load(swaps)

    def submit_swap(self, swap: Swap, request: Request, waiter: Waiter, now: float) -> list[Effect]:
        """Queue a swap. The waiter is woken when it is resolved."""
        swap.waiters.append(waiter)
        self.swaps.submit(swap, request, now)
        return self._finish_step(now)

    def abandon_swap(self, swap: Swap, why: BrokerError, now: float) -> list[Effect]:
        """Abandon a swap, because its caller doesn't wait any more."""
        self.swaps.abandon(swap, why, now)
        return self._finish_step(now)

    def wait_for_swap(self, swap: Swap, waiter: Waiter, now: float) -> list[Effect]:
        """Wake a waiter when a swap is resolved, or when its lookups have ended."""
        self.swaps.wait(swap, waiter)
        return self._finish_step(now)

    def stop_waiting(self, swap: Swap, waiter: Waiter) -> None:
        """Forget a waiter."""
        if waiter in swap.waiters:
            swap.waiters.remove(waiter)

    def look_up_swap(
        self, client_order_id: str, now: float, at: dt.datetime
    ) -> tuple[Swap, list[Effect]]:
        """Look a swap up by its id."""
        swap = self.swaps.look_up(client_order_id, now, at)
        return swap, self._finish_step(now)

    def settle_swap(self, client_order_id: str, note: str, now: float) -> list[Effect]:
        """Close a swap by hand.

        Raises:
            ValueError: No swap with this id is unresolved, or it is being looked up now.
        """
        self.swaps.settle(client_order_id, note, now)
        return self._finish_step(now)

    # --- Between the parts -----------------------------------------------------------------

    def _finish_step(self, now: float) -> list[Effect]:
        """Let the upper parts follow up, and return the effects of this step."""
        if self.session.ended or self.channels.background_updates:
            self._follow_up(now)
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def _follow_up(self, now: float) -> None:
        """Pass the results of the lower parts to the upper ones."""
        ended, updates = self.session.ended, self.channels.background_updates
        receipts = self.session.unowed_receipts
        while ended or updates or receipts:
            while ended:
                self._request_ended(ended.popleft(), now)
            if updates:
                self._pass_updates(now)
            if receipts:
                self.swaps.take_unowed_receipt(receipts.pop(0), now)

    def _pass_updates(self, now: float) -> None:
        updates = self.channels.background_updates
        while updates:
            self._update_tracker(*updates.pop(0), now)

    def _update_tracker(self, order: Subscriber, update: Update, now: float) -> None:
        assert isinstance(order, TrackedOrder)  # noqa: S101 - the only background subscriber
        self.tracker.take_update(order, update, now)

    def _request_ended(self, request: Request, now: float) -> None:
        self._effects.append(RequestEnded(request))
        purpose = request.purpose
        if purpose is Purpose.SWAP:
            self.swaps.swap_ended(request, now)
        elif purpose is Purpose.LOOKUP:
            self.swaps.lookup_ended(request, now)
        elif purpose is Purpose.RECEIPT:
            self.swaps.receipt_looked_up(request, now)
        elif request.is_late:
            return
        elif request.op == "order_status" and request.error is None:
            self.swaps.take_order(request, now)
        if purpose is Purpose.SUBSCRIPTION:
            self.channels.subscription_ended(request, now)
        elif purpose is Purpose.SNAPSHOT:
            self.channels.snapshot_ended(request, now)
            self._pass_updates(now)  # A final order needs no further turn.
            self.channels.turn_ended(request, now)
