"""One heap of deadlines: each item has one time, and the earliest counts."""

from __future__ import annotations

import math

from hypothesis import given, strategies as st

from trio_broker._protocol.timers import Timers


def test_due_items_are_returned_earliest_first() -> None:
    timers: Timers[str] = Timers()
    timers.set("late", 3.0)
    timers.set("early", 1.0)
    assert (len(timers), timers.next_deadline) == (2, 1.0)
    assert timers.pop(0.9) is None
    assert [timers.pop(3.0) for _ in range(3)] == ["early", "late", None]
    assert (len(timers), timers.next_deadline) == (0, math.inf)


def test_only_an_earlier_time_replaces_a_timer() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 2.0)
    seen = []
    for at in (5.0, 1.0):
        timers.has_changed = False
        timers.set("a", at)
        seen.append((timers.has_changed, timers.next_deadline))
    assert seen == [(False, 2.0), (True, 1.0)]
    assert timers.pop(1.0) == "a"
    assert timers.pop(10.0) is None


def test_infinite_time_is_not_stored() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", math.inf)
    assert len(timers) == 0


def test_cancelled_item_is_not_returned_and_can_be_set_again() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 1.0)
    timers.cancel("a")
    timers.cancel("a")
    assert timers.next_deadline == math.inf
    timers.set("a", 4.0)
    assert timers.pop(1.0) is None
    assert timers.pop(4.0) == "a"


def test_items_set_and_cancelled_use_no_memory() -> None:
    timers: Timers[int] = Timers()
    timers.set(-1, 1.0)
    for number in range(10_000):
        timers.set(number, 2.0)
        timers.cancel(number)
    assert len(timers._heap) < 200
    assert timers.pop(2.0) == -1


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 3), st.integers(0, 9)),
            st.tuples(st.just("cancel"), st.integers(0, 3), st.just(0)),
            st.tuples(st.just("pop"), st.just(0), st.integers(0, 9)),
        )
    )
)
def test_timers_behave_like_a_dict_of_times(steps: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    times: dict[int, float] = {}
    for step, item, at in steps:
        if step == "set":
            timers.set(item, at)
            times[item] = min(at, times.get(item, math.inf))
        elif step == "cancel":
            timers.cancel(item)
            times.pop(item, None)
        else:
            found = timers.pop(at)
            due = {one for one, time in times.items() if time <= at}
            assert (found in due) if due else found is None
            if found is not None:
                assert times[found] == min(times.values())
                del times[found]
        assert timers.next_deadline == min(times.values(), default=math.inf)
        assert len(timers) == len(times)
