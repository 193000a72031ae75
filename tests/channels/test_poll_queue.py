"""Channels that wait for a turn, and the requests that their turns make."""

from __future__ import annotations

import math
from collections.abc import Iterable

from trio_broker._channels.channel import Channel
from trio_broker._channels.poll_queue import PollQueue
from trio_broker._protocol import requests
from trio_broker._protocol.rate_limit import WINDOW
from trio_broker._protocol.requests import Request


class PollQueueHarness:
    """A queue, and channels that make one request in each turn."""

    def __init__(self, limit: int, *, is_open: bool = True) -> None:
        self.queue = PollQueue(limit)
        self.turns: list[str] = []
        self.idle: set[str] = set()
        self.requests: dict[str, Request] = {}
        if is_open:
            self.queue.open()

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            self.queue.add(Channel(name))

    def run(self, now: float) -> None:
        while self.queue.ready_at(now) <= now:
            name = self.queue.next().name
            self.turns.append(name)
            if name not in self.idle:
                request = requests.subscription("subscribe", name, 0.0)
                request.nonces.append("")
                self.requests[name] = request
                self.queue.sent(request, now)

    def ended(self, name: str, now: float, *, times_sent: int = 1) -> None:
        request = self.requests[name]
        request.nonces = [""] * times_sent
        self.queue.ended(request, now)


def after_first_reply(limit: int) -> PollQueueHarness:
    """A queue after replies that were unambiguous."""
    harness = PollQueueHarness(limit)
    harness.add(["first"])
    harness.run(-100.0)
    harness.ended("first", -100.0)
    harness.turns.clear()
    return harness


def test_polls_are_granted_in_order_once_the_queue_is_open() -> None:
    harness = PollQueueHarness(5, is_open=False)
    harness.add("ab")
    harness.run(1.0)
    assert (harness.turns, harness.queue.ready_at(1.0)) == ([], math.inf)
    harness.queue.open()
    assert harness.queue.ready_at(1.0) == 1.0
    harness.run(1.0)
    assert harness.turns == ["a", "b"]
    assert harness.queue.ready_at(1.0) == math.inf


def test_channel_that_waits_twice_has_one_turn() -> None:
    harness = PollQueueHarness(5)
    channel = Channel("a")
    harness.queue.add(channel)
    harness.queue.add(channel)
    harness.run(1.0)
    assert harness.turns == ["a"]


def test_turns_keep_their_rate_and_idle_ones_are_free() -> None:
    harness = after_first_reply(2)
    harness.idle = {"b"}
    harness.add("abcd")
    harness.run(1.0)
    assert harness.turns == ["a", "b", "c"]
    harness.ended("a", 0.0)
    harness.ended("c", 0.0)
    harness.run(1.5)
    assert harness.turns == ["a", "b", "c"]
    assert harness.queue.ready_at(1.5) == 1.0 + WINDOW
    harness.run(1.0 + WINDOW)
    assert harness.turns == ["a", "b", "c", "d"]


def test_number_of_requests_in_flight_is_limited() -> None:
    harness = after_first_reply(2)
    harness.add("abcd")
    harness.run(1.0)
    harness.run(50.0)
    assert (harness.turns, harness.queue.ready_at(50.0)) == (["a", "b"], math.inf)
    harness.ended("b", 0.0)
    harness.queue.ended(requests.balances(0.0), 0.0)  # not of a turn
    harness.run(50.0)
    assert harness.turns == ["a", "b", "c"]
    harness.queue.close()
    harness.run(60.0)
    assert harness.turns == ["a", "b", "c"]
    harness.queue.open()  # what was in flight is lost
    harness.run(70.0)
    assert harness.turns == ["a", "b", "c", "d"]


def test_removed_channel_has_no_turn() -> None:
    harness = PollQueueHarness(2)
    removed = Channel("a")
    harness.queue.add(removed)
    harness.add("b")
    harness.queue.remove(removed)
    harness.queue.remove(removed)
    harness.run(1.0)
    assert harness.turns == ["b"]


def test_turn_counts_twice_before_the_first_reply() -> None:
    harness = PollQueueHarness(4)
    harness.add("abc")
    harness.run(1.0)
    assert harness.turns == ["a", "b"]
    harness.ended("a", 1.0)
    harness.run(1.0 + WINDOW)
    assert harness.turns == ["a", "b", "c"]


def test_ambiguous_replies_limit_the_turns_to_one_in_flight() -> None:
    harness = after_first_reply(10)
    harness.add("abcdefgh")
    harness.run(1.0)
    assert harness.turns == list("abcdefgh")
    for name in "abcdefgh":
        harness.ended(name, 1.0, times_sent=2)
    harness.add("ij")
    harness.run(1.0)
    assert harness.turns == list("abcdefgh")  # sixteen messages are more than ten
    harness.run(1.0 + WINDOW)
    harness.run(1.0 + 2 * WINDOW)
    assert harness.turns == list("abcdefghi")
    harness.ended("i", 5.0)
    harness.run(5.0)
    assert harness.turns == list("abcdefghij")
