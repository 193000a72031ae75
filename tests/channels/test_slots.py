"""Slots: which channels have one, wait for one, or are evicted."""

from __future__ import annotations

from typing import Any

from trio_broker._channels.channel import Channel, RemoteState, Subscriber
from trio_broker._channels.slots import Slots
from trio_broker._protocol import requests
from trio_broker._streams.buffer import MessageBuffer


class SlotsHarness:
    """Slots and the channels that want them."""

    def __init__(self, limit: int) -> None:
        self.slots = Slots(limit)

    def channel(
        self, name: str, *members: str, remote_state: RemoteState = RemoteState.UNSUBSCRIBED
    ) -> Channel:
        channel = Channel(name, remote_state=remote_state)
        for member in members:
            buffer: MessageBuffer[Any] = MessageBuffer(name)
            kind = channel.trackers if member == "tracked" else channel.subscriptions
            kind[Subscriber(buffer, wants_snapshot=True)] = None
        self.slots.note(channel)
        return channel

    def start_request(self, channel: Channel, op: str) -> None:
        channel.request = requests.subscription(op, channel.name, 0)
        self.slots.note(channel)

    def end_request(self, channel: Channel, remote_state: RemoteState) -> None:
        channel.request, channel.remote_state = None, remote_state
        self.slots.note(channel)

    def next(self) -> tuple[str | None, str | None, str | None]:
        """The next channel to subscribe to, to evict, and to subscribe to in the background."""
        slots = self.slots
        found = (slots.next_waiting(), slots.next_to_leave(), slots.next_polled())
        one, two, three = (None if channel is None else channel.name for channel in found)
        return one, two, three


def test_only_channels_of_users_are_wanted() -> None:
    harness = SlotsHarness(2)
    harness.channel("a", "tracked")
    both = harness.channel("b", "tracked", "user")
    assert list(harness.slots.wanted) == [both]
    both.subscriptions.clear()
    harness.slots.note(both)
    assert not harness.slots.wanted


def test_every_channel_gets_a_slot_while_there_is_room() -> None:
    harness = SlotsHarness(2)
    harness.channel("t", "tracked")
    harness.channel("u", "user")
    assert harness.next() == ("u", None, "t")


def test_longest_held_background_channel_is_evicted_first() -> None:
    harness = SlotsHarness(2)
    first = harness.channel("t1", "tracked", remote_state=RemoteState.SUBSCRIBED)
    second = harness.channel("t2", "tracked", remote_state=RemoteState.UNKNOWN)
    user = harness.channel("u", "user")
    assert harness.next() == (None, "t1", None)
    harness.start_request(first, "unsubscribe")
    assert harness.next() == (None, None, None)  # one is leaving, and one waits
    other = harness.channel("v", "user")
    assert harness.next() == (None, "t2", None)
    harness.end_request(first, RemoteState.UNSUBSCRIBED)
    assert harness.next() == ("u", "t2", None)
    harness.start_request(user, "subscribe")
    assert harness.next() == (None, "t2", None)
    harness.start_request(second, "unsubscribe")
    harness.end_request(second, RemoteState.UNSUBSCRIBED)
    assert harness.next() == ("v", None, None)
    harness.start_request(other, "subscribe")
    assert harness.next() == (None, None, None)


def test_waiting_user_gets_the_slot_before_a_tracked_order() -> None:
    harness = SlotsHarness(2)
    polled = harness.channel("t", "tracked")
    harness.channel("u", "user")
    assert harness.slots.has_room(polled)
    harness.channel("v", "user")
    assert not harness.slots.has_room(polled)


def test_channel_without_subscribers_counts_as_leaving() -> None:
    harness = SlotsHarness(1)
    unwanted = harness.channel("a")
    harness.start_request(unwanted, "subscribe")
    harness.channel("t", "tracked", remote_state=RemoteState.SUBSCRIBED)
    harness.channel("u", "user")
    assert harness.next() == (None, None, None)


def test_channel_wanted_again_while_unsubscribed_makes_no_room() -> None:
    harness = SlotsHarness(2)
    again = harness.channel("a", "user", remote_state=RemoteState.SUBSCRIBED)
    harness.start_request(again, "unsubscribe")
    harness.channel("t", "tracked", remote_state=RemoteState.SUBSCRIBED)
    harness.channel("u", "user")
    assert harness.next() == (None, "t", None)


def test_failed_subscribe_or_client_id_wants_no_slot() -> None:
    harness = SlotsHarness(2)
    for flag in ("subscribe_failed", "is_client_id"):
        channel = harness.channel("t", "tracked")
        setattr(channel, flag, True)
        harness.slots.note(channel)
    assert harness.next() == (None, None, None)


def test_channel_in_unknown_state_keeps_its_slot() -> None:
    harness = SlotsHarness(1)
    harness.channel("u", "user", remote_state=RemoteState.UNKNOWN)
    assert harness.next() == ("u", None, None)


def test_limit_of_the_broker_counts_until_the_next_connection() -> None:
    harness = SlotsHarness(3)
    held = harness.channel("t1", "tracked", remote_state=RemoteState.SUBSCRIBED)
    polled = harness.channel("t2", "tracked")
    assert harness.next() == (None, None, "t2")
    harness.slots.note_full()
    assert not harness.slots.has_room(polled)
    user = harness.channel("u", "user")
    assert harness.next() == (None, "t1", None)
    harness.start_request(held, "unsubscribe")
    harness.end_request(held, RemoteState.UNSUBSCRIBED)
    harness.start_request(user, "subscribe")
    harness.end_request(user, RemoteState.SUBSCRIBED)
    harness.channel("v", "user")  # with nothing to evict, the configured number is tried
    assert harness.next() == ("v", None, None)
    harness.slots.reset()
    assert harness.slots.has_room(polled)
