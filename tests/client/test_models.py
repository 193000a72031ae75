from __future__ import annotations

import datetime as dt
import decimal
import pickle
from decimal import Decimal
from typing import Any

import attrs
import pytest

from trio_broker.models import (
    Balance,
    ConnectionState,
    Gap,
    Message,
    Order,
    OrderStatus,
    RouteStep,
    SwapEstimate,
    SwapReceipt,
)

EARLY = dt.datetime(2024, 11, 25, tzinfo=dt.UTC)
LATE = EARLY + dt.timedelta(milliseconds=1)
FINAL = {OrderStatus.FILLED, OrderStatus.FAILED, OrderStatus.CANCELLED}


def test_available_is_exact_in_every_decimal_context() -> None:
    balance = Balance("ETH", Decimal("12345678901234567890.123456789012345678"), Decimal("1E-18"))
    with decimal.localcontext(prec=3):
        assert str(balance.available) == "12345678901234567890.123456789012345677"


def test_everything_is_available_without_a_locked_amount() -> None:
    assert Balance("ETH", Decimal(5)).available == 5
    assert Balance("ETH", Decimal(5), Decimal(0)).available == 5
    assert Balance("ETH", Decimal(5), Decimal(1)).available == 4


@pytest.mark.parametrize("status", OrderStatus)
def test_three_statuses_are_final(status: OrderStatus) -> None:
    assert status.is_final == (status in FINAL)
    assert Order("o1", status).is_final == (status in FINAL)
    assert status == status.value
    assert str(status) == status.value


def test_unknown_status_is_not_final() -> None:
    assert not Order("o1", "FILLED_ALMOST").is_final
    assert not Order("o1", "FILLED").is_final  # A plain text isn't a status that we know.


S = OrderStatus


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # By progress, whatever the times and fills say.
        ((S.PENDING, 0, LATE), (S.PROCESSING, 0, EARLY)),
        ((S.PENDING, None, LATE), (S.PARTIAL, 1, EARLY)),
        ((S.PENDING, 5, LATE), ("odd", None, EARLY)),
        ((S.PROCESSING, 5, LATE), (S.FILLED, 3, EARLY)),
        ((S.PARTIAL, None, None), (S.FAILED, None, None)),
        (("odd", 5, LATE), (S.CANCELLED, None, EARLY)),
        # Then by what is filled.
        ((S.PROCESSING, 1, LATE), (S.PARTIAL, 2, EARLY)),
        ((S.PARTIAL, 1, LATE), (S.PROCESSING, 2, EARLY)),
        ((S.PARTIAL, 1, LATE), (S.PARTIAL, 2, EARLY)),
        ((S.FILLED, 1, None), (S.FILLED, 2, None)),
        (("odd", 1, LATE), ("odd", 2, EARLY)),
        # Then by time.
        ((S.PENDING, None, EARLY), (S.PENDING, None, LATE)),
        ((S.PARTIAL, 2, EARLY), (S.PARTIAL, 2, LATE)),
        ((S.PARTIAL, 2, EARLY), (S.PROCESSING, 2, LATE)),
        ((S.PROCESSING, None, EARLY), (S.PARTIAL, 2, LATE)),
        ((S.FILLED, 2, EARLY), (S.FILLED, 2, LATE)),
        (("odd", None, EARLY), ("odd", None, LATE)),
    ],
)
def test_state_is_older_by_progress_then_fill_then_time(one: Any, other: Any) -> None:
    assert order(*one).is_older_than(order(*other))
    assert not order(*other).is_older_than(order(*one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((S.FILLED, 2, EARLY), (S.FAILED, 1, LATE)),
        ((S.CANCELLED, None, EARLY), (S.FAILED, None, LATE)),
        (("odd", 1, EARLY), ("strange", 2, LATE)),
        (("odd", 1, EARLY), (S.PROCESSING, 2, LATE)),
        (("odd", 1, EARLY), (S.PARTIAL, 2, LATE)),
        ((S.PENDING, None, None), (S.PENDING, None, LATE)),
        ((S.PENDING, None, None), (S.PENDING, None, None)),
        ((S.PARTIAL, 2, EARLY), (S.PARTIAL, 2, EARLY)),
        # The clock was set back, and only one of them says what is filled.
        ((S.PARTIAL, 2, EARLY), (S.PARTIAL, None, EARLY)),
    ],
)
def test_arrival_decides_between_other_states(one: Any, other: Any) -> None:
    assert not order(*one).is_older_than(order(*other))
    assert not order(*other).is_older_than(order(*one))


def test_first_fill_is_news_although_the_clock_was_set_back() -> None:
    assert not order(S.PARTIAL, 2, EARLY).is_older_than(order(S.PROCESSING, None, LATE))


def order(status: str, filled: int | None, at: dt.datetime | None) -> Order:
    return Order("o1", status, None if filled is None else Decimal(filled), updated_at=at)


def test_gaps_merge_into_one_with_all_reasons() -> None:
    overflow = Gap(frozenset({"overflow"}), 3, LATE)
    reconnected = Gap(frozenset({"reconnected"}), 2, EARLY)
    assert overflow.merged(None) is overflow
    both = Gap(frozenset({"overflow", "reconnected"}), 5, EARLY)
    assert overflow.merged(reconnected) == reconnected.merged(overflow) == both


@pytest.mark.parametrize("state", ConnectionState)
def test_three_connection_states_are_over(state: ConnectionState) -> None:
    assert state.is_over == (state.value in {"closing", "closed", "failed"})


@pytest.mark.parametrize(
    "value",
    [
        Balance("ETH", Decimal("1.50"), Decimal(0)),
        RouteStep(from_asset="ETH"),
        SwapEstimate((RouteStep(),), Decimal(2), Decimal(20), expires_at=EARLY),
        SwapReceipt("o1", OrderStatus.PENDING, "c1"),
        Order("o1", OrderStatus.FILLED, Decimal(1), "0xabc", LATE, "c1"),
        Message("balances", (), "push", Gap(frozenset({"overflow"}), 1, EARLY), LATE, "{}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_frozen_compared_by_content_and_picklable(value: attrs.AttrsInstance) -> None:
    twin = pickle.loads(pickle.dumps(value))  # noqa: S301 - our own
    assert twin == value
    assert hash(twin) == hash(value)
    name = attrs.fields(type(value))[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, name, None)
