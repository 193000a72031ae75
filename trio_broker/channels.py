"""Who is subscribed to what, here and at the broker. No I/O; time comes in as an argument.

Subscribers of one channel share it. What is *wanted* (a channel with members) and what the broker
*holds* come together one step at a time: a channel has one request under way, and when that has
ended, `_settle` looks again at what is wanted by then. So it doesn't matter in which order
subscribers come and go while the broker answers.

**What is wanted at the broker** is first what users subscribe to. Orders that are tracked share the
rest of its places (`places`), and wait for a turn to ask for one: a thousand of them mustn't hold
up a swap. Whatever the broker says to that, none of them ends. One without a place is asked about.

**When a connection is lost**, the broker holds nothing any more, and nobody can tell what it would
have pushed until it holds the channel again: the next message of each stream is marked with the
gap. On the next connection every channel that is wanted by then is asked for at once, and a stream
that had begun gets its channel's state, however it was subscribed. One that is refused ends alone.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from trio_broker import operations
from trio_broker.exceptions import (
    BrokerError,
    NotSentError,
    RequestTimeoutError,
    ServerError,
    SubscriptionBrokenError,
    SubscriptionLimitError,
)
from trio_broker.membership import BALANCES, Channel, Member, Standing
from trio_broker.models import ChannelRefused, ConnectionEvent, Gap, Message
from trio_broker.pacing import WINDOW, Turns
from trio_broker.places import Places
from trio_broker.request import Request
from trio_broker.session import Session
from trio_broker.snapshots import Snapshots
from trio_broker.subscription import Feed
from trio_broker.wire import Inbound


class Channels:
    """The channels of one client.

    Args:
        session: Where requests go.
        max_subscriptions: How many channels one connection may have.
        request_timeout: Seconds that the broker has to acknowledge.
        messages_per_second: How many messages leave in any rolling window; those for tracked
            orders are at most half of them.
        time: Trio's clock.
        wall_time: The time for messages and events.
        on_event: Takes what a user should know.
        on_restored: Told, after an outage, which channels the broker holds again.
    """

    def __init__(
        self,
        session: Session,
        *,
        max_subscriptions: int,
        request_timeout: float,
        messages_per_second: int,
        time: Callable[[], float],
        wall_time: Callable[[], dt.datetime],
        on_event: Callable[[ConnectionEvent], None],
        on_restored: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._session = session
        self._max = max_subscriptions
        self._timeout = request_timeout
        self._time = time
        self._wall_time = wall_time
        self._arrival = -1
        self._arrived_at = dt.datetime.fromtimestamp(0, dt.UTC)
        self._on_event = on_event
        self._on_restored = on_restored
        self._seconds_per_message = WINDOW / messages_per_second
        self._is_online = False
        self._busy_until = -math.inf
        self._awaited: set[str] = set()
        self._restored: list[str] = []
        self._channels: dict[str, Channel] = {}
        self._over = False
        self.subscriptions: int = 0
        self._places = Places(max_subscriptions)
        self._turns = Turns(max(1, messages_per_second // 2))
        self._snapshots = Snapshots(
            session,
            may_ask=self._may_ask,
            wait_turn=self._wait_turn,
            on_end=self._turn_ended,
            deadline=self._deadline,
            time=time,
            wall_time=wall_time,
            received_at=self._received_at,
            on_event=on_event,
        )

    @property
    def wanted(self) -> int:
        """How many channels a user subscribes to."""
        return self._places.wanted

    def join(
        self,
        feed: Feed[Any],
        on_ready: Callable[[BrokerError | None], None],
        *,
        snapshot: bool,
    ) -> Member:
        """Add a user's subscription; it gets what is pushed from now on.

        Args:
            feed: Where its messages go, with the channel's name.
            on_ready: Called when the broker has acknowledged or refused.
            snapshot: Whether it gets the channel's state at first.

        Raises:
            SubscriptionLimitError: There are as many channels as there may be.
        """
        channel = self._channels.get(feed.name)
        if (channel is None or not channel.users) and self.wanted >= self._max:
            raise SubscriptionLimitError(self._max)
        member = Member(feed, on_ready, snapshot)
        self.subscriptions += 1
        self.admit(member)
        return member

    def admit(self, member: Member, *, by_client: bool = False) -> None:
        """Add a member that was made elsewhere: an order that is tracked.

        Args:
            member: The member.
            by_client: Whether the order is known by its client order id.
        """
        name = member.feed.name
        channel = self._channels.setdefault(name, Channel(name, by_client=by_client))
        channel.add(member)
        if not member.yields:
            channel.is_declined = False
        elif member.wants_snapshot and not channel.is_held:
            channel.next_snapshot = -math.inf
        self._settle(channel)

    def leave(self, member: Member) -> None:
        """Take a subscriber out; the last one's channel is given up at the broker.

        Args:
            member: What `join` gave or `admit` took; one that has left is left alone.
        """
        channel = self._channels.get(member.feed.name)
        if channel is not None and channel.remove(member):
            self.subscriptions -= not member.yields
            self._settle(channel)

    def ask(self, member: Member) -> None:
        """Ask for the channel's state for a subscriber, as soon as may be.

        Args:
            member: The subscriber; one that has left is left alone.
        """
        channel = self._channels.get(member.feed.name)
        if channel is not None and member in channel.members:
            member.wants_snapshot = True
            self._snapshots.take(channel)

    def overdue(self, member: Member) -> BrokerError:
        """Why a subscriber has waited for too long.

        Args:
            member: One that isn't ready.
        """
        request = self._channels[member.feed.name].request
        if request is not None and request.op == "subscribe" and request.was_sent:
            return RequestTimeoutError("the broker didn't answer 'subscribe' in time")
        return NotSentError("'subscribe' waited for its turn until its time was up")

    def drop(self, name: str, on_left: Callable[[], None]) -> None:
        """End every subscription to a channel; an order that is tracked goes on being tracked.

        Args:
            name: The channel's name.
            on_left: Called when the broker doesn't hold it any more, or it is wanted anew.
        """
        channel = self._channels.get(name)
        if channel is None:
            on_left()
            return
        for member in channel.subscriptions():
            channel.remove(member)
            self.subscriptions -= 1
            member.feed.end()
            if not member.is_ready:
                member.on_ready(None)
        channel.on_left.append(on_left)
        self._settle(channel)

    def drained(self, member: Member) -> None:
        """A subscriber has caught up after an overflow: balances need their whole state again.

        An order's message is its whole state, and the newest was not dropped.

        Args:
            member: The subscriber.
        """
        if member.feed.name == BALANCES:
            self.ask(member)

    def pushed(self, message: Inbound, text: str) -> None:
        """Deliver what the broker pushed.

        Args:
            message: The envelope.
            text: The message.

        Raises:
            ProtocolError: The body isn't as documented.
        """
        channel = self._channels.get(message.ch or "")
        if channel is None:
            self._session.report_odd("it was pushed to a channel that nobody has", text)
        elif message.error:
            self._take_error(channel, message.error, text)
        else:
            members = tuple(channel.members)
            if channel.request is not None and channel.is_being_given_up:
                # An order's state is whole: what comes before a hole does one that is tracked no
                # harm.
                members = tuple(member for member in members if member.yields)
            if members:
                self._take_push(channel, members, message, text)

    def _take_error(self, channel: Channel, error: str, text: str) -> None:
        if channel.users < len(channel.members):
            self._session.report_odd("an error was pushed about an order that is tracked", text)
        for member in channel.members:
            if member.yields:
                member.wants_snapshot = True
            else:
                member.feed.put_error(self._session.erase(error), self._received_at())
        self._snapshots.take(channel)

    def _take_push(
        self, channel: Channel, members: tuple[Member, ...], message: Inbound, text: str
    ) -> None:
        if channel.snapshot is not None and channel.snapshot.was_sent:
            channel.overtaken = True
        data = channel.decode(message)
        channel.is_answered, channel.by_client = True, False  # It is named as the broker names it.
        delivery = Message(channel.name, data, "push", None, self._received_at(), text)
        for member in members:
            member.offer(delivery)

    def _received_at(self) -> dt.datetime:
        """The time of what the session takes now: the same for all that came together."""
        if self._arrival != self._session.arrivals:
            # Asking for it costs as much as a delivery.
            self._arrival, self._arrived_at = self._session.arrivals, self._wall_time()
        return self._arrived_at

    def restore(self) -> int:
        """A connection is authenticated: ask for every channel that is wanted.

        Returns:
            How many of them users' streams had before; `on_restored` is told when they are there
            again.
        """
        self._is_online = True
        self._turns.open()
        # Whoever came later gives way.
        channels = sorted(self._channels.values(), key=lambda channel: not channel.users)
        self._restored = []
        self._awaited = {
            channel.name
            for channel in channels
            if any(member.is_ready for member in channel.subscriptions())
        }
        # Each is subscribed to and asked about; the last ones mustn't be overdue for waiting,
        # while tracked orders have their half.
        messages = (2 if self.wanted == len(channels) else 4) * self.wanted
        self._busy_until = self._time() + messages * self._seconds_per_message
        for channel in channels:
            self._settle(channel)
        return len(self._awaited)

    def lost(self, since: dt.datetime) -> None:
        """The connection is gone: the broker holds nothing, and what it would push is missed.

        To be called before the session ends what was asked on that connection.

        Args:
            since: From when on anything may be missing.
        """
        self._is_online = False
        self._turns.close()
        self._places.reset()
        self._snapshots.clear()
        self._awaited.clear()
        gap = Gap(frozenset({"reconnected"}), dropped=0, since=since)
        for channel in tuple(self._channels.values()):
            channel.forget()
            for member in channel.members:
                member.wants_snapshot = member.wants_snapshot or member.yields
                if member.has_begun:
                    member.miss(gap)
            channel.tell_left()
            self._settle(channel)

    def finish(self, failure: BrokerError | None, lost: BrokerError, unsent: NotSentError) -> None:
        """There will be no connection any more.

        Args:
            failure: What it failed with, None if it was closed.
            lost: What subscribers are told whose request was sent.
            unsent: What they are told whose request wasn't.
        """
        self._over = True
        self._turns.close()
        channels, self._channels = self._channels, {}
        self._places = Places(self._max)
        self.subscriptions = 0
        for channel in channels.values():
            members, channel.members = channel.members, {}
            channel.users = 0
            was_sent = channel.request is not None and channel.request.was_sent
            for member in members:
                if not member.is_ready and not member.yields:
                    member.on_ready(lost if was_sent else unsent)
                elif failure is None:
                    member.feed.end()
                else:
                    member.feed.fail(SubscriptionBrokenError(channel.name), failure)
            channel.tell_left()

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do, infinity for never."""
        return min(self._snapshots.next_deadline, self._turns.ready_at(self._time()))

    def tick(self, now: float) -> None:
        """Ask for the snapshots whose time has come.

        Args:
            now: The time.
        """
        self._snapshots.tick(now)
        self._turns.run(now)

    # --- Wanted and held -------------------------------------------------------------------

    def _settle(self, channel: Channel) -> None:
        """Look at what is wanted of a channel now, and who gains or loses a place by it."""
        if not self._over:
            self._step(channel)
            self._make_room()

    def _step(self, channel: Channel) -> None:
        self._places.note(channel)
        request = channel.request
        if request is not None:
            if not channel.members and request.op == "subscribe" and not request.was_sent:
                self._session.give_up(request, self._time())
        elif channel.members and channel.is_held:
            self._welcome(channel)
        elif channel.users:
            if self._is_online and self._places.has_room(channel):
                self._request(channel, "subscribe")
        elif channel.members:
            self._left_by_users(channel)
            self._wait_turn(channel)
        elif channel.standing is not Standing.ABSENT:
            self._request(channel, "unsubscribe")
        else:
            del self._channels[channel.name]
            self._turns.remove(channel)
            self._left_by_users(channel)

    def _left_by_users(self, channel: Channel) -> None:
        channel.tell_left()
        self._arrived(channel, restored=False)

    def _make_room(self) -> None:
        """Give places to whom they belong: users' channels first, then those of tracked orders."""
        if not self._is_online:
            return
        while (channel := self._places.next_waiting()) is not None:
            self._request(channel, "subscribe")
        while (channel := self._places.next_to_leave()) is not None:
            self._request(channel, "unsubscribe")
        if (channel := self._places.next_polled()) is not None:
            self._wait_turn(channel)

    def _request(self, channel: Channel, op: str) -> Request:
        now = self._time()
        request = operations.subscription(op, channel.name, self._deadline(now))
        request.on_end = lambda request: self._answered(channel, request)
        channel.request = request
        self._places.note(channel)
        if not channel.members and channel.snapshot is not None:
            self._session.give_up(channel.snapshot, now)
        self._session.submit(request, now)
        return request

    def _deadline(self, now: float) -> float:
        return max(now, self._busy_until) + self._timeout

    def _answered(self, channel: Channel, request: Request) -> None:
        channel.request = None
        if request.was_sent:
            channel.standing = Standing.after(request)
        if request.op == "subscribe":
            self._subscribed(channel, request)
        self._settle(channel)
        self._turn_ended(request)

    def _subscribed(self, channel: Channel, request: Request) -> None:
        refused = isinstance(request.error, ServerError)
        if isinstance(request.error, ServerError) and _tells_of_the_limit(request.error):
            self._places.note_full()
            if channel.users and self._places.can_evict:
                return  # It is asked for again when something has given way.
        if request.error is not None:
            channel.is_declined = request.was_sent
            self._reject(channel, request.error, refused=refused)
        else:
            for member in channel.members:
                # While it wasn't held, anything may have happened that nobody pushed.
                member.wants_snapshot = member.wants_snapshot or member.yields
        if request.error is None or refused:
            self._arrived(channel, restored=channel.is_held)

    def _reject(self, channel: Channel, error: BrokerError, *, refused: bool) -> None:
        """End whoever waits for a channel; where it was refused, whoever had it before as well."""
        members = channel.subscriptions()
        had_it = [member for member in members if member.is_ready]
        for member in members:
            if not member.is_ready:
                self._end(channel, member)
                member.on_ready(error)
            elif refused:
                self._end(channel, member)
                member.feed.fail(error)
        if refused and had_it:
            event = ChannelRefused(at=self._wall_time(), channel=channel.name, error=error)
            self._on_event(event)

    def _end(self, channel: Channel, member: Member) -> None:
        channel.remove(member)
        self.subscriptions -= 1

    def _arrived(self, channel: Channel, *, restored: bool) -> None:
        """A channel that was to be restored is held, refused or not wanted any more."""
        if channel.name in self._awaited:
            self._awaited.discard(channel.name)
            if restored:
                self._restored.append(channel.name)
            if not self._awaited:
                self._on_restored(tuple(self._restored))

    def _welcome(self, channel: Channel) -> None:
        for member in channel.members:
            if not member.is_ready:
                member.is_ready = member.has_begun = True
                member.on_ready(None)
                if member.wants_snapshot:
                    channel.next_snapshot = -math.inf  # A newcomer's first state doesn't wait.
        channel.tell_left()
        self._snapshots.take(channel)

    # --- The turns of tracked orders -------------------------------------------------------

    def _may_ask(self, channel: Channel) -> bool:
        """Whether a channel's state can be asked for: nothing falls between it and the pushes.

        No push is counted on for what tracked orders alone have: they are asked about again.
        """
        if channel.is_held:
            return not self._over
        return self._is_online and channel.yields and not self._is_being_asked_for(channel)

    def _is_being_asked_for(self, channel: Channel) -> bool:
        return channel.request is not None and channel.request.op == "subscribe"

    def _wait_turn(self, channel: Channel) -> None:
        self._turns.add(channel, partial(self._take_turn, channel))
        self._turns.run(self._time())
        self._session.listener.changed()

    def _take_turn(self, channel: Channel) -> Request | None:
        if self._may_subscribe(channel):
            return self._request(channel, "subscribe")
        return self._snapshots.take(channel, in_turn=True)

    def _may_subscribe(self, channel: Channel) -> bool:
        """Whether a tracked order's channel can have a place, and could do with it."""
        return (
            channel.yields
            and channel.standing is Standing.ABSENT
            and channel.request is channel.snapshot is None
            and not channel.is_declined
            and not channel.by_client
            and self._places.has_room(channel)
        )

    def _turn_ended(self, request: Request) -> None:
        self._turns.ended(request)
        if not self._over:
            self._make_room()
            self._turns.run(self._time())


def _tells_of_the_limit(error: ServerError) -> bool:
    """Whether a refused ``subscribe`` says that there are too many; its text isn't documented."""
    return "subscription" in error.message.casefold()
