"""Which channels have one of the broker's slots, wait for one, or must give theirs up.

The broker allows a limited number of channels on a connection. Users' channels come first: one that
finds no slot evicts a background channel, which has trackers only. Background channels share the
rest. The orders of those without a slot are polled.

**The limit** is what the user has configured, and the broker's may be lower. The broker then
refuses a ``subscribe``. The number that it had accepted counts until the connection is lost, as
long as a background channel can be evicted. If none can be evicted, a user's channel is requested
anyway.

A channel also counts as taken if it is unknown whether the broker has the subscription.

There may be a thousand tracked orders, and slots change with every answer. So nothing here looks at
every channel. A channel is in each queue that fits its state, in the order of its arrival. `note`
updates the queues, and must be called after every change of a channel.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from trio_broker._channels.channel import Channel, RemoteState

Queue: TypeAlias = OrderedDict[Channel, None]


class Slots:
    """The slots for channels on one connection.

    Attributes:
        wanted: The channels that users subscribe to.
    """

    def __init__(self, limit: int) -> None:
        self.wanted: Queue = OrderedDict()
        self._configured = self._limit = limit
        self._taken: Queue = OrderedDict()
        self._subscribed: Queue = OrderedDict()
        self._leaving: Queue = OrderedDict()
        self._waiting: Queue = OrderedDict()
        self._evictable: Queue = OrderedDict()
        self._polled: Queue = OrderedDict()

    def note(self, channel: Channel) -> None:
        """Update the queues after a change of a channel."""
        op = channel.request.op if channel.request is not None else None
        is_wanted = bool(channel.subscriptions)
        is_background = not is_wanted and bool(channel.trackers)
        is_subscribed = channel.remote_state is RemoteState.SUBSCRIBED
        is_taken = channel.remote_state is not RemoteState.UNSUBSCRIBED or op is not None
        is_leaving = op == "unsubscribe" or (op is not None and not is_background)
        for queue, belongs in (
            (self.wanted, is_wanted),
            (self._taken, is_taken),
            (self._subscribed, is_subscribed),
            (self._leaving, is_leaving and not is_wanted),
            (self._waiting, is_wanted and op is None and not is_subscribed),
            (self._evictable, not is_wanted and op is None and is_taken),
            (self._polled, is_background and channel.wants_slot),
        ):
            if belongs:
                queue.setdefault(channel)
            else:
                queue.pop(channel, None)

    @property
    def can_evict(self) -> bool:
        """Whether a background channel has a slot, or is about to give it up."""
        return bool(self._evictable or self._leaving)

    def note_full(self) -> None:
        """The broker has refused a channel because there are too many."""
        self._limit = len(self._subscribed)

    def reset(self) -> None:
        """Use the configured limit again: the next connection may allow more."""
        self._limit = self._configured

    def has_room(self, channel: Channel) -> bool:
        """Whether a channel may be subscribed to. Its own slot doesn't count."""
        others = len(self._taken) - (channel in self._taken)
        if channel.subscriptions:
            return others < (self._limit if self.can_evict else self._configured)
        return others + len(self._waiting) < self._limit

    @property
    def is_wanted(self) -> bool:
        """Whether a user's channel waits for a slot."""
        return bool(self._waiting)

    @property
    def is_settled(self) -> bool:
        """Whether no channel waits for a slot."""
        return not (self._waiting or self._polled)

    def next_waiting(self) -> Channel | None:
        """The next user's channel that waits, if there is room for it."""
        channel = next(iter(self._waiting), None)
        return channel if channel is not None and self.has_room(channel) else None

    def next_to_leave(self) -> Channel | None:
        """The next background channel to evict, if more users' channels wait than are leaving."""
        if len(self._waiting) <= len(self._leaving):
            return None
        return next(iter(self._evictable), None)

    def next_polled(self) -> Channel | None:
        """The next background channel that wants a slot, if there is room for it."""
        channel = next(iter(self._polled), None)
        return channel if channel is not None and self.has_room(channel) else None
