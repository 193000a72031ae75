"""Checks of an estimate: whether it brings enough, and how much slippage is left."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from fractions import Fraction

from trio_broker._protocol.requests import MAX_SLIPPAGE_BPS
from trio_broker.exceptions import QuoteExpiredError, SlippageError
from trio_broker.models import SwapEstimate


def check_quote(estimate: SwapEstimate, min_out: Decimal, now: dt.datetime) -> None:
    """Raise if an estimate doesn't bring enough, or has expired.

    Raises:
        SlippageError: It brings less.
        QuoteExpiredError: It has expired.
    """
    if estimate.expected_out < min_out:
        raise SlippageError(estimate.expected_out, min_out)
    if estimate.expires_at is not None and estimate.expires_at <= now:
        raise QuoteExpiredError(estimate.expires_at)


def slippage_left(estimate: SwapEstimate, min_out: Decimal) -> int:
    """How much worse than an estimate a swap may be and still bring enough.

    Returns:
        Basis points, rounded down. A broker that respects them brings at least `min_out`, as long
        as the price is the estimate's.
    """
    expected = Fraction(estimate.expected_out)
    return int((expected - Fraction(min_out)) / expected * MAX_SLIPPAGE_BPS)
