from __future__ import annotations

import math
from bisect import bisect_left
from functools import partial

from hypothesis import given, strategies as st

from trio_broker.pacing import WINDOW, Pacer, Turns


def test_as_many_as_allowed_leave_at_once_and_the_next_after_the_window() -> None:
    pacer = Pacer(3)
    for _ in range(3):
        assert pacer.ready_at(5.0) == 5.0
        pacer.note(5.0)
    assert pacer.ready_at(5.0) == pacer.ready_at(5.5) == 5.0 + WINDOW
    assert pacer.ready_at(20.0) == 20.0


@given(
    limit=st.integers(1, 5),
    waits=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3, 1.0, 2.0]), max_size=60),
)
def test_no_window_ever_holds_more_than_the_limit(limit: int, waits: list[float]) -> None:
    pacer, now, left = Pacer(limit), 100.0, []
    for wait in waits:
        now = max(now + wait, pacer.ready_at(now + wait))
        assert pacer.ready_at(now) == now
        pacer.note(now)
        left.append(now)
    for index, moment in enumerate(left):
        assert index - bisect_left(left, moment - WINDOW + 1e-9) < limit


def test_what_left_together_counts_one_by_one() -> None:
    pacer = Pacer(5)
    assert pacer.room(1.0) == 5
    pacer.note(1.0, 3)
    assert pacer.room(1.5) == 2
    pacer.note(1.5, 2)
    assert pacer.ready_at(1.6) == 1.0 + WINDOW
    assert pacer.room(1.0 + WINDOW) == 3


class Errand:
    """One who waits for turns, and what each brings."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.brings: dict[str, object | None] = {}

    def add(self, turns: Turns, *keys: str) -> None:
        for key in keys:
            turns.add(key, partial(self.go, key))

    def go(self, key: str) -> object | None:
        self.turns.append(key)
        return self.brings.get(key, key)


def test_turns_come_in_order_each_once_and_not_before_they_are_open() -> None:
    turns, errand = Turns(5), Errand()
    errand.add(turns, "a", "b", "a")
    turns.run(1.0)
    assert (errand.turns, turns.ready_at(1.0)) == ([], math.inf)
    turns.open()
    assert turns.ready_at(1.0) == 1.0
    turns.run(1.0)
    assert errand.turns == ["a", "b"]
    assert turns.ready_at(1.0) == math.inf


def test_turns_keep_their_pace_and_what_had_nothing_to_do_costs_none() -> None:
    turns, errand = Turns(2), Errand()
    turns.open()
    errand.brings = {"b": None}
    errand.add(turns, "a", "b", "c", "d")
    turns.run(1.0)
    assert errand.turns == ["a", "b", "c"]
    turns.ended("a")
    turns.ended("c")
    turns.run(1.5)
    assert errand.turns == ["a", "b", "c"]
    assert turns.ready_at(1.5) == 1.0 + WINDOW
    turns.run(1.0 + WINDOW)
    assert errand.turns == ["a", "b", "c", "d"]


def test_no_more_turns_are_under_way_than_the_limit() -> None:
    turns, errand = Turns(2), Errand()
    turns.open()
    errand.add(turns, "a", "b", "c", "d")
    turns.run(1.0)
    turns.run(50.0)
    assert (errand.turns, turns.ready_at(50.0)) == (["a", "b"], math.inf)
    turns.ended("b")
    turns.ended("nobody")
    turns.run(50.0)
    assert errand.turns == ["a", "b", "c"]
    turns.close()
    turns.run(60.0)
    assert errand.turns == ["a", "b", "c"]
    turns.open()  # what was under way is lost
    turns.run(70.0)
    assert errand.turns == ["a", "b", "c", "d"]


def test_who_no_longer_waits_has_no_turn() -> None:
    turns, errand = Turns(2), Errand()
    errand.add(turns, "a", "b")
    turns.remove("a")
    turns.remove("a")
    turns.open()
    turns.run(1.0)
    assert errand.turns == ["b"]
