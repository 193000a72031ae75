from __future__ import annotations

from bisect import bisect_left

from hypothesis import given, strategies as st

from trio_broker._protocol.rate_limit import WINDOW, RateLimit


def test_limit_is_sent_at_once_and_the_next_after_the_window() -> None:
    rate_limit = RateLimit(3)
    for _ in range(3):
        assert rate_limit.ready_at(5.0) == 5.0
        rate_limit.record(5.0)
    assert rate_limit.ready_at(5.0) == rate_limit.ready_at(5.5) == 5.0 + WINDOW
    assert rate_limit.ready_at(20.0) == 20.0


@given(
    limit=st.integers(1, 5),
    waits=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3, 1.0, 2.0]), max_size=60),
)
def test_no_window_has_more_messages_than_the_limit(limit: int, waits: list[float]) -> None:
    rate_limit, now, left = RateLimit(limit), 100.0, []
    for wait in waits:
        now = max(now + wait, rate_limit.ready_at(now + wait))
        assert rate_limit.ready_at(now) == now
        rate_limit.record(now)
        left.append(now)
    for index, moment in enumerate(left):
        assert index - bisect_left(left, moment - WINDOW + 1e-9) < limit


def test_messages_sent_together_count_one_by_one() -> None:
    rate_limit = RateLimit(5)
    assert rate_limit.available(1.0) == 5
    rate_limit.record(1.0, 3)
    assert rate_limit.available(1.5) == 2
    rate_limit.record(1.5, 2)
    assert rate_limit.ready_at(1.6) == 1.0 + WINDOW
    assert rate_limit.available(1.0 + WINDOW) == 3
