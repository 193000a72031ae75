from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from trio_broker._swaps.quotes import check_quote, slippage_left
from trio_broker.exceptions import QuoteExpiredError, SlippageError
from trio_broker.models import SwapEstimate


def quote(expected_out: str, expires_at: dt.datetime | None = None) -> SwapEstimate:
    return SwapEstimate((), Decimal(2), Decimal(expected_out), None, expires_at)


@pytest.mark.parametrize(
    ("expected_out", "min_out", "left"),
    [
        ("100", "100", 0),
        ("100", "99.5", 50),
        ("100", "99.999", 0),
        ("100", "99.98", 2),
        ("3", "2", 3333),
        ("100", "0.000000000000000001", 9999),
    ],
)
def test_remaining_slippage_is_computed_from_min_out(
    expected_out: str, min_out: str, left: int
) -> None:
    assert slippage_left(quote(expected_out), Decimal(min_out)) == left


def test_estimate_must_bring_min_out_and_be_unexpired() -> None:
    now = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    check_quote(quote("10"), Decimal(10), now)
    check_quote(quote("10", now + dt.timedelta(milliseconds=1)), Decimal(10), now)
    with pytest.raises(QuoteExpiredError) as expired:
        check_quote(quote("10", now), Decimal(10), now)
    assert expired.value.expired_at == now
    with pytest.raises(SlippageError) as less:
        check_quote(quote("9.999"), Decimal(10), now)
    assert (less.value.expected_out, less.value.min_out) == (Decimal("9.999"), Decimal(10))
