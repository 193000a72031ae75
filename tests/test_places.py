"""Places: who has one, who waits, who must give his up; every change as a real channel's."""

from __future__ import annotations

from typing import Any

from trio_broker import operations
from trio_broker.membership import Channel, Member, Standing
from trio_broker.places import Places
from trio_broker.request import ignore
from trio_broker.subscription import Feed


class Town:
    """Places and the channels that are after them."""

    def __init__(self, limit: int) -> None:
        self.places = Places(limit)

    def channel(self, name: str, *members: str, standing: Standing = Standing.ABSENT) -> Channel:
        channel = Channel(name, standing=standing)
        for member in members:
            feed: Feed[Any] = Feed(name)
            channel.add(Member(feed, ignore, True, yields=member == "tracked"))
        self.places.note(channel)
        return channel

    def asks(self, channel: Channel, op: str) -> None:
        channel.request = operations.subscription(op, channel.name, 0)
        self.places.note(channel)

    def hears(self, channel: Channel, standing: Standing) -> None:
        channel.request, channel.standing = None, standing
        self.places.note(channel)

    def next(self) -> tuple[str | None, str | None, str | None]:
        """Whose turn it is to be asked for, to leave, to be asked for if anything is left."""
        places = self.places
        found = (places.next_waiting(), places.next_to_leave(), places.next_polled())
        one, two, three = (None if channel is None else channel.name for channel in found)
        return one, two, three


def test_only_what_users_subscribe_to_is_wanted() -> None:
    town = Town(2)
    town.channel("a", "tracked")
    both = town.channel("b", "tracked", "user")
    assert town.places.wanted == 1
    for member in both.subscriptions():
        both.remove(member)
    town.places.note(both)
    assert town.places.wanted == 0


def test_while_there_is_room_everybody_may_have_a_place() -> None:
    town = Town(2)
    town.channel("t", "tracked")
    town.channel("u", "user")
    assert town.next() == ("u", None, "t")


def test_whom_a_user_waits_for_must_leave_the_longest_there_first() -> None:
    town = Town(2)
    first = town.channel("t1", "tracked", standing=Standing.HELD)
    second = town.channel("t2", "tracked", standing=Standing.DOUBTFUL)
    user = town.channel("u", "user")
    assert town.next() == (None, "t1", None)
    town.asks(first, "unsubscribe")
    assert town.next() == (None, None, None)  # one leaves, and one waits
    other = town.channel("v", "user")
    assert town.next() == (None, "t2", None)
    town.hears(first, Standing.ABSENT)
    assert town.next() == ("u", "t2", None)
    town.asks(user, "subscribe")
    assert town.next() == (None, "t2", None)
    town.asks(second, "unsubscribe")
    town.hears(second, Standing.ABSENT)
    assert town.next() == ("v", None, None)
    town.asks(other, "subscribe")
    assert town.next() == (None, None, None)


def test_a_place_that_a_user_waits_for_is_not_a_tracked_orders() -> None:
    town = Town(2)
    polled = town.channel("t", "tracked")
    town.channel("u", "user")
    assert town.places.has_room(polled)
    town.channel("v", "user")
    assert not town.places.has_room(polled)


def test_a_channel_that_nobody_wants_any_more_is_on_its_way_out() -> None:
    town = Town(1)
    nobodys = town.channel("a")
    town.asks(nobodys, "subscribe")
    town.channel("t", "tracked", standing=Standing.HELD)
    town.channel("u", "user")
    assert town.next() == (None, None, None)


def test_one_given_up_that_a_user_wants_anew_makes_room_for_nobody() -> None:
    town = Town(2)
    again = town.channel("a", "user", standing=Standing.HELD)
    town.asks(again, "unsubscribe")
    town.channel("t", "tracked", standing=Standing.HELD)
    town.channel("u", "user")
    assert town.next() == (None, "t", None)


def test_what_was_declined_or_has_no_id_of_the_brokers_is_after_no_place() -> None:
    town = Town(2)
    for flag in ("is_declined", "by_client"):
        channel = town.channel("t", "tracked")
        setattr(channel, flag, True)
        town.places.note(channel)
    assert town.next() == (None, None, None)


def test_a_user_whose_channel_is_in_doubt_has_its_place_already() -> None:
    town = Town(1)
    town.channel("u", "user", standing=Standing.DOUBTFUL)
    assert town.next() == ("u", None, None)


def test_the_brokers_own_limit_counts_until_the_next_connection() -> None:
    town = Town(3)
    held = town.channel("t1", "tracked", standing=Standing.HELD)
    polled = town.channel("t2", "tracked")
    assert town.next() == (None, None, "t2")
    town.places.note_full()
    assert not town.places.has_room(polled)
    user = town.channel("u", "user")
    assert town.next() == (None, "t1", None)
    town.asks(held, "unsubscribe")
    town.hears(held, Standing.ABSENT)
    town.asks(user, "subscribe")
    town.hears(user, Standing.HELD)
    town.channel("v", "user")  # where nothing gives way, the configured number is worth a try
    assert town.next() == ("v", None, None)
    town.places.reset()
    assert town.places.has_room(polled)
