from __future__ import annotations

from bisect import bisect_left

from hypothesis import given, strategies as st

from trio_broker.pacing import WINDOW, Pacer


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
