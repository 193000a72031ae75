"""Subscribes to the channels that are wanted, and delivers their messages.

All subscribers of a channel share its subscription at the broker. A channel has one request under
way at a time. When that has ended, `_step` compares what is wanted by then with the broker's state,
and makes the next request. So subscribers may come and go in any order while the broker answers.

**Slots.** Users' channels come first. Channels that have trackers only share the rest of the
`slots`, and take turns at subscribing: a thousand of them must not delay a swap. An order without
a slot is polled. Nothing that the broker answers to its ``subscribe`` ends a tracker.

**A lost connection** takes all subscriptions with it. The next message of every stream reports the
gap. On the next connection all wanted channels are subscribed to at once. A stream that had begun
gets its channel's state, even if it was opened without a snapshot. If the broker refuses a channel,
only its streams end.

**A lost reply** must not take a slot for good. The channel of a ``subscribe`` without an answer
counts as taken, and its ``unsubscribe`` waits for that answer. If a user's channel waits for a
slot, the connection is replaced after `reply_grace`.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from trio_broker._channels.channel import (
    BALANCES,
    ORDERS,
    BackgroundUpdate,
    Channel,
    RemoteState,
    Subscriber,
    oddity,
)
from trio_broker._channels.poll_queue import PollQueue
from trio_broker._channels.slots import Slots
from trio_broker._channels.snapshots import Snapshots
from trio_broker._protocol import codec, requests
from trio_broker._protocol.codec import Inbound
from trio_broker._protocol.effects import (
    ChannelsRestored,
    Effect,
    Emit,
    ErrorItem,
    StreamEnded,
    Wake,
)
from trio_broker._protocol.order_ids import OrderIds, Relation
from trio_broker._protocol.rate_limit import WINDOW
from trio_broker._protocol.requests import Priority, Request, Waiter
from trio_broker._protocol.session import Session
from trio_broker._protocol.timers import Timers
from trio_broker._protocol.values import DecodeErrors
from trio_broker._redactor import Redactor
from trio_broker.events import ChannelRefused
from trio_broker.exceptions import (
    BrokerError,
    ChannelError,
    NotSentError,
    RequestTimeoutError,
    ServerError,
    SubscriptionBrokenError,
    SubscriptionLimitError,
)
from trio_broker.models import FINAL_STATUSES, Dialect, Gap, Message, Order


class ChannelRegistry:
    """The channels of one client.

    Attributes:
        is_online: Whether channels can be subscribed to now.
        background_updates: What the engine must pass on to the order tracker.
    """

    def __init__(
        self,
        effects: list[Effect],
        session: Session,
        timers: Timers[Any],
        order_ids: OrderIds,
        redactor: Redactor,
        *,
        max_subscriptions: int,
        request_timeout: float,
        messages_per_second: int,
        dialect: Dialect = "clients",
    ) -> None:
        self.is_online: bool = False
        self.background_updates: list[BackgroundUpdate] = []
        self._effects = effects
        self._session = session
        self._timers = timers
        self._redactor = redactor
        self._max = max_subscriptions
        self._timeout = request_timeout
        self._seconds_per_message = WINDOW / messages_per_second
        self._busy_until = -math.inf
        self._order_ids = order_ids
        self._ids_by_name = order_ids.by_name
        self._to_restore: set[str] = set()
        self._restored: list[str] = []
        self._channels: dict[str, Channel] = {}
        self._slots = Slots(max_subscriptions)
        # Background channels send half of the messages at most.
        self._queue = PollQueue(max(1, messages_per_second // 2))
        self._snapshots = Snapshots(effects, self.background_updates, session, order_ids, dialect)

    @property
    def wanted(self) -> int:
        """How many channels users subscribe to."""
        return len(self._slots.wanted)

    @property
    def subscriptions(self) -> int:
        """How many subscriptions users have."""
        return sum(len(channel.subscriptions) for channel in self._channels.values())

    # --- Subscribers -----------------------------------------------------------------------

    def subscribe(self, subscriber: Subscriber, now: float) -> None:
        """Add a user's subscription. It gets what is pushed from now on.

        Raises:
            SubscriptionLimitError: The channel limit is reached.
        """
        name = subscriber.sink.name
        channel = self._channels.get(name)
        if (channel is None or not channel.subscriptions) and self.wanted >= self._max:
            raise SubscriptionLimitError(self._max)
        if channel is None:
            channel = self._channels[name] = Channel(name)
        channel.subscriptions[subscriber] = None
        channel.subscribe_failed = False
        self._settle(channel, now)

    def track(self, tracker: Subscriber, now: float, *, is_client_id: bool = False) -> None:
        """Add a tracked order."""
        name = tracker.sink.name
        channel = self._channels.setdefault(name, Channel(name, is_client_id))
        channel.trackers[tracker] = None
        channel.next_snapshot = -math.inf  # Its first state doesn't wait.
        self._settle(channel, now)

    def leave(self, subscriber: Subscriber, now: float) -> None:
        """Remove a subscriber. The channel of the last one is unsubscribed."""
        channel = self._channels.get(subscriber.sink.name)
        if channel is not None:
            channel.remove(subscriber)
            self._settle(channel, now)

    def ask(self, subscriber: Subscriber, now: float) -> None:
        """Request the channel's state for a subscriber, as soon as possible."""
        channel = self._channels.get(subscriber.sink.name)
        if channel is not None:
            subscriber.wants_snapshot = True
            self.ask_state(channel, now)

    def has_state(self, subscriber: Subscriber) -> bool:
        """Whether any state of a subscriber's channel has ever come."""
        channel = self._channels.get(subscriber.sink.name)
        return channel is not None and channel.has_state

    def drained(self, subscriber: Subscriber, now: float) -> None:
        """A subscriber has caught up after an overflow: balances need their whole state again.

        The message of an order is its whole state, and the newest one was not dropped.
        """
        if subscriber.sink.name == BALANCES:
            self.ask(subscriber, now)

    def overdue(self, subscriber: Subscriber) -> BrokerError:
        """The error for a subscription that has had no answer in time."""
        request = self._channels[subscriber.sink.name].request
        if request is not None and request.op == "subscribe" and request.was_sent:
            return RequestTimeoutError("the broker didn't answer 'subscribe' in time")
        return NotSentError("'subscribe' waited for its turn until its time was up")

    def unsubscribe(self, name: str, waiter: Waiter, now: float) -> None:
        """End all subscriptions to a channel. Its trackers stay."""
        channel = self._channels.get(name)
        if channel is None:
            self._effects.append(Wake(waiter))
            return
        for subscriber in tuple(channel.subscriptions):
            channel.remove(subscriber)
            self._effects.append(StreamEnded(subscriber.sink))
            self._answer(subscriber)
        channel.left_waiters.append(waiter)
        self._settle(channel, now)

    def _answer(self, subscriber: Subscriber, error: BrokerError | None = None) -> None:
        """Wake the task that waits for a subscription, once."""
        if subscriber.waiter is not None:
            self._effects.append(Wake(subscriber.waiter))
            subscriber.waiter, subscriber.error = None, error

    def _wake_left(self, channel: Channel) -> None:
        """Wake the tasks that wait until a channel is unsubscribed."""
        self._effects += map(Wake, channel.left_waiters)
        channel.left_waiters.clear()

    # --- Pushes ----------------------------------------------------------------------------

    def take_usual_pushes(  # noqa: C901 - a call costs time for each push
        self, messages: Iterable[str | bytes], at: dt.datetime
    ) -> int:
        """Deliver usual pushes of orders up to the first message that is something else.

        It does what `take_push` does, for the most frequent case only: an order with one
        subscriber, nothing pending, and a state that isn't older than the last one. Pushes of one
        order that follow each other are one effect.

        Returns:
            How many messages it took. `take_push` must decide about the next one.
        """
        name, taken, hints = None, 0, self._redactor.hints
        for text in messages:
            if not isinstance(text, str):
                break
            try:
                push = codec.decode_order_push(text)
            except DecodeErrors:
                break
            if push.ch != name:
                found = self._channels.get(push.ch)
                if found is None or found.ids is None or not found.is_simple:
                    break
                channel, name = found, found.name
                order_id, client_order_id = self._ids_by_name.get(
                    found.ids[0] or found.ids[1] or "", found.ids
                )
                (subscriber,) = channel.subscriptions
                run: list[Any] = []
            order = codec.usual_order(push.data, order_id, client_order_id)
            if order is None:
                break
            for hint in hints:
                if hint in text:
                    return taken
            newest = subscriber.newest
            if newest is not None and (
                order.is_older_than(newest)
                or (order.status is not newest.status and newest.status in FINAL_STATUSES)
            ):
                break
            if not run:
                channel.has_state = subscriber.has_begun = True
                channel.is_client_id = False
                self._effects.append((subscriber.sink, run))
            subscriber.newest = order
            run.append(Message(name, order, "push", None, at, text))
            taken += 1
        return taken

    def take_push(  # noqa: C901, PLR0912 - a call costs time for each push
        self, message: Inbound, text: str, now: float, at: dt.datetime
    ) -> None:
        """Deliver what the broker pushed.

        Raises:
            ProtocolError: The body can't be read.
        """
        channel = self._channels.get(message.ch or "")
        if channel is None:
            self._session.report_unexpected("it was pushed to a channel without subscribers", text)
            return
        if message.error:
            self._take_error(channel, message.error, text, now, at)
            return
        subscriptions, trackers = channel.subscriptions, channel.trackers
        request = channel.request
        if request is not None and request.op == "unsubscribe":
            # Subscriptions that came since then begin later. A tracker can use any state.
            subscriptions = {}
        if not subscriptions and not trackers:
            return
        if channel.snapshot is not None and channel.snapshot.was_sent:
            channel.overtaken = True
        if channel.ids is None:
            data = channel.decode(message)
        else:
            ids = self._ids_by_name.get(channel.ids[0] or channel.ids[1] or "", channel.ids)
            data = channel.decode(message, *ids)
            if data.order_id != ids[0] and self._is_other_order(channel, data):
                self._session.report_unexpected("it was pushed to another order's channel", text)
                return
        # As `Redactor.may_hold` does, which would cost a call for each push.
        for hint in self._redactor.hints:
            if hint in text:
                data = self._redactor.value(data)
                break
        channel.has_state = True
        channel.is_client_id = False  # The broker names the channel by the order's own id.
        delivery = Message(channel.name, data, "push", None, at, text)
        for tracker in trackers:
            self.background_updates.append((tracker, delivery))
        odd = None
        for subscriber in subscriptions:
            if channel.ids is not None:
                newest = subscriber.newest
                if newest is not None:
                    is_older = data.is_older_than(newest)
                    is_change = data.status is not newest.status
                    if is_older or (is_change and newest.status in FINAL_STATUSES):
                        odd = oddity(data, newest) or odd
                    if is_older:
                        continue
                subscriber.newest = data
            if subscriber.gap is None:
                subscriber.has_begun = True
                self._effects.append((subscriber.sink, [delivery]))
            else:
                self._effects.append(subscriber.delivery(delivery))
        if odd is not None:
            self._session.report_unexpected(odd, text)

    def _is_other_order(self, channel: Channel, order: Order) -> bool:
        """Whether an order is certainly not the one that its channel is named by."""
        names = order.order_id, order.client_order_id
        asked = channel.name.removeprefix(ORDERS)
        return self._order_ids.relation(asked, names) is Relation.OTHER

    def report_oddity(self, state: Order, newest: Order, text: str) -> None:
        """Report a state of an order that doesn't fit the one before, if it doesn't."""
        odd = oddity(state, newest)
        if odd is not None:
            self._session.report_unexpected(odd, text)

    def _take_error(
        self, channel: Channel, error: str, text: str, now: float, at: dt.datetime
    ) -> None:
        if channel.trackers:
            reason = "an error was pushed about an order that is tracked"
            self._session.report_unexpected(reason, text)
        for tracker in channel.trackers:
            tracker.wants_snapshot = True
        message = self._redactor.error_text(error)
        for subscriber in channel.subscriptions:
            item = ErrorItem(ChannelError(channel.name, message), at)
            self._effects.append((subscriber.sink, [item]))
        self.ask_state(channel, now)

    # --- Connections -----------------------------------------------------------------------

    def restore(self, now: float) -> int:
        """A connection is authenticated: subscribe to every channel that is wanted.

        Returns:
            How many of them had a stream before. `ChannelsRestored` follows when they have one
            again.
        """
        self.is_online = True
        self._queue.open()
        # Users' channels first: there may be fewer slots than before.
        channels = sorted(self._channels.values(), key=lambda one: not one.subscriptions)
        self._restored = []
        self._to_restore = {
            channel.name
            for channel in channels
            if any(one.is_answered for one in channel.subscriptions)
        }
        # Each channel takes two messages, and background channels may take as many in between. The
        # last one must not time out because of that.
        messages = (2 if self.wanted == len(channels) else 4) * self.wanted
        self._busy_until = now + messages * self._seconds_per_message
        for channel in channels:
            self._step(channel, now)
        self._make_room(now)
        return len(self._to_restore)

    def lost(self, since: dt.datetime, now: float) -> None:
        """The connection is gone, and all subscriptions with it: report a gap."""
        self.is_online = False
        self._queue.close()
        self._slots.reset()
        self._to_restore.clear()
        gap = Gap(frozenset({"reconnected"}), dropped=0, since=since)
        for channel in tuple(self._channels.values()):
            channel.forget()
            self._timers.cancel(channel)
            for tracker in channel.trackers:
                tracker.wants_snapshot = True
            for subscriber in channel.subscribers:
                if subscriber.has_begun:
                    subscriber.miss(gap)
            self._wake_left(channel)
            self._step(channel, now)

    def finish(self, failure: BrokerError | None, lost: BrokerError, unsent: NotSentError) -> None:
        """End all streams: there will be no connection any more."""
        self.is_online = False
        self._queue.close()
        channels, self._channels = self._channels, {}
        self._slots = Slots(self._max)
        for channel in channels.values():
            was_sent = channel.request is not None and channel.request.was_sent
            channel.forget()
            self._timers.cancel(channel)
            for subscriber in channel.subscribers:
                if not subscriber.is_answered:
                    self._answer(subscriber, lost if was_sent else unsent)
                elif failure is None:
                    self._effects.append(StreamEnded(subscriber.sink))
                else:
                    broken = SubscriptionBrokenError(channel.name)
                    self._effects.append(StreamEnded(subscriber.sink, broken, failure))
            self._wake_left(channel)

    # --- Subscribing and unsubscribing -----------------------------------------------------

    def _settle(self, channel: Channel, now: float) -> None:
        """Do what is to be done after a change of a channel's subscribers."""
        self._step(channel, now)
        self._make_room(now)

    def _step(self, channel: Channel, now: float) -> None:
        """Bring the broker's state of a channel one step nearer to what is wanted."""
        self._slots.note(channel)
        request = channel.request
        is_wanted = bool(channel.subscriptions or channel.trackers)
        if request is not None:
            if not is_wanted and request.op == "subscribe" and not request.was_sent:
                self._session.give_up(request, now)
        elif is_wanted and channel.is_subscribed:
            self._welcome(channel, now)
        elif channel.subscriptions:
            if self.is_online and self._slots.has_room(channel):
                self._request(channel, "subscribe", now)
        elif channel.trackers:
            self._left_by_users(channel)
            self._wait_turn(channel, now)
        elif channel.remote_state is not RemoteState.UNSUBSCRIBED:
            if channel.was_background and not channel.left_waiters:
                self._wait_turn(channel, now)  # A thousand tracked orders may end together.
            else:
                self._request(channel, "unsubscribe", now)
        else:
            del self._channels[channel.name]
            self._queue.remove(channel)
            self._timers.cancel(channel)
            self._left_by_users(channel)

    def _welcome(self, channel: Channel, now: float) -> None:
        """The broker has the subscription: acknowledge every subscriber that is new."""
        for tracker in channel.trackers:
            tracker.has_begun = True
        for subscriber in channel.subscriptions:
            if not subscriber.is_answered:
                subscriber.has_begun = True
                self._answer(subscriber)
                if subscriber.wants_snapshot:
                    channel.next_snapshot = -math.inf  # Its first state doesn't wait.
        self._wake_left(channel)
        self.ask_state(channel, now)

    def _left_by_users(self, channel: Channel) -> None:
        self._wake_left(channel)
        self._arrived(channel, restored=False)

    def _arrived(self, channel: Channel, *, restored: bool) -> None:
        """A channel that was to be restored is subscribed, refused or not wanted any more."""
        if channel.name in self._to_restore:
            self._to_restore.remove(channel.name)
            if restored:
                self._restored.append(channel.name)
            if not self._to_restore:
                self._effects.append(ChannelsRestored(tuple(self._restored)))

    def _make_room(self, now: float) -> None:
        """Give free slots to users' channels first, then to background channels."""
        if not self.is_online or self._slots.is_settled:
            self._session.want_slots(wanted=False)
            return
        while (channel := self._slots.next_waiting()) is not None:
            self._request(channel, "subscribe", now)
        while (channel := self._slots.next_to_leave()) is not None:
            # The user's request must still have time to be answered.
            grace = self._session.trust.grace("unsubscribe")
            self._request(channel, "unsubscribe", now, grace)
        self._session.want_slots(wanted=self._slots.is_wanted)
        if (channel := self._slots.next_polled()) is not None:
            self._wait_turn(channel, now)

    def _request(self, channel: Channel, op: str, now: float, timeout: float = math.inf) -> Request:
        deadline = self._deadline(now, timeout)
        request = requests.subscription(op, channel.name, deadline)
        request.subject = channel
        if not channel.subscriptions and (channel.trackers or channel.was_background):
            request.priority = Priority.BACKGROUND
        channel.request = request
        self._slots.note(channel)
        if channel.snapshot is not None and not channel.subscribers:
            self._session.give_up(channel.snapshot, now)
        self._session.submit(request, now)
        return request

    def _deadline(self, now: float, timeout: float = math.inf) -> float:
        return max(now, self._busy_until) + min(self._timeout, timeout)

    def subscription_ended(self, request: Request, now: float) -> None:
        """A ``subscribe`` or ``unsubscribe`` has its answer, or has failed."""
        channel: Channel = request.subject
        if channel.request is not request:  # It belongs to a connection that is gone.
            return
        channel.request = None
        if request.was_sent:
            channel.remote_state = RemoteState.after(request)
        if request.op == "subscribe":
            if request.error is not None:
                self._not_subscribed(channel, request, request.error)
            elif request.was_sent:
                self._subscribed(channel)
        self._step(channel, now)
        self.turn_ended(request, now)

    def _subscribed(self, channel: Channel) -> None:
        for tracker in channel.trackers:
            # There may have been changes that were not pushed.
            tracker.wants_snapshot = True
            channel.next_snapshot = -math.inf
        self._arrived(channel, restored=True)

    def _not_subscribed(self, channel: Channel, request: Request, error: BrokerError) -> None:
        """End the subscriptions that wait. A refusal also ends those that had the channel."""
        is_refused = isinstance(error, ServerError)
        if is_refused and _tells_of_the_limit(error):
            self._slots.note_full()
            if channel.subscriptions and self._slots.can_evict:
                return  # It is subscribed to again when a background channel has left.
        channel.subscribe_failed = request.was_sent
        had_it = False
        for subscriber in tuple(channel.subscriptions):
            if not subscriber.is_answered:
                channel.remove(subscriber)
                self._answer(subscriber, error)
            elif is_refused:
                channel.remove(subscriber)
                self._effects.append(StreamEnded(subscriber.sink, error))
                had_it = True
        if had_it:
            event = partial(ChannelRefused, channel=channel.name, error=error)
            self._effects.append(Emit(event))
        if is_refused:
            self._arrived(channel, restored=False)

    # --- States ----------------------------------------------------------------------------

    def ask_state(self, channel: Channel, now: float, *, is_turn: bool = False) -> Request | None:
        """Request a channel's state, if it is wanted, possible and due.

        A request for trackers only also waits for a turn.
        """
        by_users = [one for one in channel.subscriptions if one.wants_snapshot]
        wanting = by_users or [one for one in channel.trackers if one.wants_snapshot]
        if not wanting or channel.snapshot is not None or not self._may_ask(channel):
            return None
        if now < channel.next_snapshot:
            self._timers.set(channel, channel.next_snapshot)
            return None
        if not by_users and not is_turn:
            self._wait_turn(channel, now)
            return None
        return self._snapshots.ask(channel, now, self._deadline(now))

    def _may_ask(self, channel: Channel) -> bool:
        """Whether nothing can be missed between a channel's state and the pushes.

        A background channel needn't be subscribed: its orders are polled.
        """
        if channel.is_subscribed:
            return True
        return self.is_online and channel.is_background and not channel.is_being_subscribed

    def snapshot_ended(self, request: Request, now: float) -> None:
        """A request for a channel's state has its answer, or has failed."""
        channel: Channel = request.subject
        if channel.snapshot is request:  # Otherwise it belongs to a connection that is gone.
            channel.snapshot = None
            if self._may_ask(channel):
                self._snapshots.ended(channel, request, now)
                self.ask_state(channel, now)

    # --- The turns of background channels --------------------------------------------------

    def _wait_turn(self, channel: Channel, now: float) -> None:
        self._queue.add(channel)
        self.give_turns(now)

    def give_turns(self, now: float) -> None:
        """Give a turn to every background channel that can have one now."""
        queue = self._queue
        while (ready_at := queue.ready_at(now)) <= now:
            channel = queue.next()
            request: Request | None = None
            if not channel.subscribers:
                if channel.request is None:
                    request = self._request(channel, "unsubscribe", now)
            elif channel.wants_slot and channel.snapshot is None and self._slots.has_room(channel):
                request = self._request(channel, "subscribe", now)
            else:
                request = self.ask_state(channel, now, is_turn=True)
            if request is not None:
                queue.sent(request, now)
        self._timers.set(queue, ready_at)

    def turn_ended(self, request: Request, now: float) -> None:
        """A request has ended, perhaps one that a turn has made: give the next turns."""
        self._queue.ended(request, now)
        self._make_room(now)
        self.give_turns(now)


def _tells_of_the_limit(error: BrokerError) -> bool:
    """Whether a refused ``subscribe`` says that there are too many; its text isn't documented."""
    return isinstance(error, ServerError) and "subscription" in error.message.casefold()
