"""Who has one of the broker's channels, who waits for one, and who must give his up. No I/O.

The broker holds so many channels on a connection and no more. Those that a user subscribes to come
first: one that finds no place makes a tracked order's channel leave. Those of tracked orders have
what is left, and while there is nothing they are asked about.

**How many places there are** is what a user has configured, and it may be more than the broker has.
That shows when the broker refuses one, and until the connection is lost its number counts, as long
as anything that gives way is there to be evicted: a user's subscription is worth a try beyond that.

A thousand orders may be tracked, and places are given and taken with every answer, so nothing here
goes through all channels. Each stands on those of the *shelves* that fit what is known of it, in
the order in which it came there; `note` puts it where it belongs, and is called after every change.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from trio_broker.membership import Channel, Standing

Shelf: TypeAlias = OrderedDict[Channel, None]


class Places:
    """The places for channels on one connection.

    Args:
        limit: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self._configured = self._limit = limit
        self._wanted: Shelf = OrderedDict()
        self._taken: Shelf = OrderedDict()
        self._held: Shelf = OrderedDict()
        self._leaving: Shelf = OrderedDict()
        self._waiting: Shelf = OrderedDict()
        self._evictable: Shelf = OrderedDict()
        self._polled: Shelf = OrderedDict()

    @property
    def wanted(self) -> int:
        """How many channels a user subscribes to."""
        return len(self._wanted)

    def note(self, channel: Channel) -> None:
        """Something about a channel has changed.

        Args:
            channel: The channel.
        """
        request, yields = channel.request, channel.yields
        is_taken = channel.standing is not Standing.ABSENT or request is not None
        is_leaving = channel.is_being_given_up or not channel.members
        _put(self._wanted, channel, channel.users > 0)
        _put(self._taken, channel, is_taken)
        _put(self._held, channel, channel.standing is Standing.HELD)
        _put(self._leaving, channel, request is not None and is_leaving and not channel.users)
        _put(self._waiting, channel, channel.users > 0 and request is None and not channel.is_held)
        _put(self._evictable, channel, yields and request is None and is_taken)
        is_polled = yields and not is_taken
        _put(self._polled, channel, is_polled and not channel.is_declined and not channel.by_client)

    @property
    def can_evict(self) -> bool:
        """Whether anything is there that gives way, or that is about to."""
        return bool(self._evictable or self._leaving)

    def note_full(self) -> None:
        """The broker has no further place, by its own word."""
        self._limit = len(self._held)

    def reset(self) -> None:
        """The next connection may have more."""
        self._limit = self._configured

    def has_room(self, channel: Channel) -> bool:
        """Whether a channel may be subscribed to.

        Args:
            channel: The channel; what it has or had itself doesn't count.
        """
        others = len(self._taken) - (channel in self._taken)
        if channel.users:
            return others < (self._limit if self.can_evict else self._configured)
        return others + len(self._waiting) < self._limit

    def next_waiting(self) -> Channel | None:
        """The channel of a user's for which there is room now, if one waits."""
        channel = next(iter(self._waiting), None)
        return channel if channel is not None and self.has_room(channel) else None

    def next_to_leave(self) -> Channel | None:
        """A tracked order's channel that must go, as a user's waits that nobody makes room for."""
        if len(self._waiting) <= len(self._leaving):
            return None
        return next(iter(self._evictable), None)

    def next_polled(self) -> Channel | None:
        """The channel of a tracked order's for which there is room now, if one could do with it."""
        channel = next(iter(self._polled), None)
        return channel if channel is not None and self.has_room(channel) else None


def _put(shelf: Shelf, channel: Channel, belongs: bool) -> None:
    if belongs:
        shelf.setdefault(channel)
    else:
        shelf.pop(channel, None)
