"""Who is subscribed to what, here and at the broker. No I/O; time comes in as an argument.

Subscribers of one channel share it. What is *wanted* (a channel with members) and what the broker
*holds* come together one step at a time: a channel has one request under way, and when that has
ended, `_settle` looks again at what is wanted by then. So it doesn't matter in which order
subscribers come and go while the broker answers.

**When a connection is lost**, the broker holds nothing any more, and nobody can tell what it would
have pushed until it holds the channel again: the next message of each stream is marked with the
gap. On the next connection every channel that is wanted by then is asked for at once, and a stream
that had begun gets its channel's state, however it was subscribed. One that is refused ends alone.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
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
        seconds_per_message: How far apart messages leave, where there are many.
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
        seconds_per_message: float,
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
        self._on_event = on_event
        self._on_restored = on_restored
        self._seconds_per_message = seconds_per_message
        self._is_online = False
        self._busy_until = -math.inf
        self._awaited: set[str] = set()
        self._restored: list[str] = []
        self._channels: dict[str, Channel] = {}
        self._over = False
        self.subscriptions: int = 0
        self._snapshots = Snapshots(
            session,
            may_ask=lambda channel: channel.is_held and not self._over,
            deadline=self._deadline,
            time=time,
            wall_time=wall_time,
            on_event=on_event,
        )

    @property
    def wanted(self) -> int:
        """How many channels have a subscriber."""
        return sum(1 for channel in self._channels.values() if channel.members)

    def join(
        self,
        feed: Feed[Any],
        on_ready: Callable[[BrokerError | None], None],
        *,
        snapshot: bool,
    ) -> Member:
        """Add a subscriber; it gets what is pushed from now on.

        Args:
            feed: Where its messages go, with the channel's name.
            on_ready: Called when the broker has acknowledged or refused.
            snapshot: Whether it gets the channel's state at first.

        Raises:
            SubscriptionLimitError: There are as many channels as there may be.
        """
        channel = self._channels.get(feed.name)
        if channel is None or not channel.members:
            if self.wanted >= self._max:
                raise SubscriptionLimitError(self._max)
            channel = self._channels.setdefault(feed.name, Channel(feed.name))
        member = Member(feed, on_ready, snapshot)
        channel.members[member] = None
        self.subscriptions += 1
        self._settle(channel)
        return member

    def leave(self, member: Member) -> None:
        """Take a subscriber out; the last one's channel is given up at the broker.

        Args:
            member: What `join` gave; one that has left is left alone.
        """
        channel = self._channels.get(member.feed.name)
        if channel is not None and channel.members.pop(member, member) is None:
            self.subscriptions -= 1
            self._settle(channel)

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
        """End every subscription to a channel.

        Args:
            name: The channel's name.
            on_left: Called when the broker doesn't hold it any more, or it is wanted anew.
        """
        channel = self._channels.get(name)
        if channel is None:
            on_left()
            return
        members, channel.members = tuple(channel.members), {}
        self.subscriptions -= len(members)
        for member in members:
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
        channel = self._channels.get(member.feed.name)
        if channel is not None and channel.name == BALANCES and member in channel.members:
            member.wants_snapshot = True
            self._snapshots.take(channel)

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
            for member in tuple(channel.members):
                member.feed.put_error(message.error, self._wall_time())
        elif channel.members and not channel.is_being_given_up:
            if channel.snapshot is not None and channel.snapshot.was_sent:
                channel.overtaken = True
            data, now = channel.decode(message), self._wall_time()
            delivery = Message(channel.name, data, "push", None, now, text)
            for member in tuple(channel.members):
                member.offer(delivery)

    def restore(self) -> int:
        """A connection is authenticated: ask for every channel that is wanted.

        Returns:
            How many of them streams had before; `on_restored` is told when they are there again.
        """
        self._is_online = True
        channels = tuple(self._channels.values())
        self._restored = []
        self._awaited = {
            channel.name
            for channel in channels
            if any(member.is_ready for member in channel.members)
        }
        # Each is subscribed to and asked about; the last ones mustn't be overdue for waiting.
        self._busy_until = self._time() + 2 * len(channels) * self._seconds_per_message
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
        self._snapshots.clear()
        self._awaited.clear()
        gap = Gap(frozenset({"reconnected"}), dropped=0, since=since)
        for channel in tuple(self._channels.values()):
            channel.forget()
            for member in channel.members:
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
        channels, self._channels = self._channels, {}
        self.subscriptions = 0
        for channel in channels.values():
            members, channel.members = channel.members, {}
            was_sent = channel.request is not None and channel.request.was_sent
            for member in members:
                if not member.is_ready:
                    member.on_ready(lost if was_sent else unsent)
                elif failure is None:
                    member.feed.end()
                else:
                    member.feed.fail(SubscriptionBrokenError(channel.name), failure)
            channel.tell_left()

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do, infinity for never."""
        return self._snapshots.next_deadline

    def tick(self, now: float) -> None:
        """Ask for the snapshots whose time has come.

        Args:
            now: The time.
        """
        self._snapshots.tick(now)

    # --- Wanted and held -------------------------------------------------------------------

    def _settle(self, channel: Channel) -> None:
        if self._over:
            return
        request = channel.request
        if request is not None:
            if not channel.members and request.op == "subscribe" and not request.was_sent:
                self._session.give_up(request, self._time())
            return
        if channel.members and channel.is_held:
            self._welcome(channel)
        elif channel.members:
            if self._is_online and self._held_besides(channel) < self._max:
                self._request(channel, "subscribe")
        elif channel.standing is not Standing.ABSENT:
            self._request(channel, "unsubscribe")
        else:
            del self._channels[channel.name]
            channel.tell_left()
            self._arrived(channel, restored=False)

    def _held_besides(self, channel: Channel) -> int:
        """How many other channels the broker holds or may hold."""
        return sum(
            1
            for other in self._channels.values()
            if other is not channel
            and (other.standing is not Standing.ABSENT or other.request is not None)
        )

    def _request(self, channel: Channel, op: str) -> None:
        now = self._time()
        request = operations.subscription(op, channel.name, self._deadline(now))
        request.on_end = lambda request: self._answered(channel, request)
        channel.request = request
        if op == "unsubscribe" and channel.snapshot is not None:
            self._session.give_up(channel.snapshot, now)
        self._session.submit(request, now)

    def _deadline(self, now: float) -> float:
        return max(now, self._busy_until) + self._timeout

    def _answered(self, channel: Channel, request: Request) -> None:
        channel.request = None
        if request.was_sent:
            channel.standing = Standing.after(request)
        if request.op == "subscribe":
            refused = isinstance(request.error, ServerError)
            if request.error is not None:
                self._reject(channel, request.error, refused=refused)
            if request.error is None or refused:
                self._arrived(channel, restored=channel.is_held)
        self._settle(channel)
        self._settle_waiting()

    def _reject(self, channel: Channel, error: BrokerError, *, refused: bool) -> None:
        """End whoever waits for a channel; where it was refused, whoever had it before as well."""
        had_it = [member for member in channel.members if member.is_ready]
        for member in tuple(channel.members) if refused else channel.unready():
            del channel.members[member]
            self.subscriptions -= 1
            if member.is_ready:
                member.feed.fail(error)
            else:
                member.on_ready(error)
        if refused and had_it:
            event = ChannelRefused(at=self._wall_time(), channel=channel.name, error=error)
            self._on_event(event)

    def _arrived(self, channel: Channel, *, restored: bool) -> None:
        """A channel that was to be restored is held, refused or not wanted any more."""
        if channel.name in self._awaited:
            self._awaited.discard(channel.name)
            if restored:
                self._restored.append(channel.name)
            if not self._awaited:
                self._on_restored(tuple(self._restored))

    def _settle_waiting(self) -> None:
        """At the limit, a new channel waits until an old one is gone."""
        for channel in tuple(self._channels.values()):
            if channel.request is None and not channel.is_held:
                self._settle(channel)

    def _welcome(self, channel: Channel) -> None:
        for member in channel.members:
            if not member.is_ready:
                member.is_ready = member.has_begun = True
                member.on_ready(None)
                if member.wants_snapshot:
                    channel.next_snapshot = -math.inf  # A newcomer's first state doesn't wait.
        channel.tell_left()
        self._snapshots.take(channel)
