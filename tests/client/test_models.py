from __future__ import annotations

import datetime as dt
import decimal
import pickle
from decimal import Decimal

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


@pytest.mark.parametrize(
    ("one", "other", "older"),
    [
        (("PENDING", EARLY), ("PENDING", LATE), True),
        (("PENDING", LATE), ("PENDING", EARLY), False),
        (("FILLED", EARLY), ("PENDING", LATE), True),
        (("PENDING", LATE), ("FILLED", EARLY), False),
        (("PENDING", EARLY), ("PROCESSING", EARLY), True),
        (("PROCESSING", EARLY), ("PENDING", EARLY), False),
        (("PROCESSING", None), ("PARTIAL", EARLY), True),
        (("PARTIAL", EARLY), ("FILLED", None), True),
        (("PARTIAL", None), ("FAILED", None), True),
        (("FILLED", None), ("CANCELLED", None), False),
        (("CANCELLED", None), ("FILLED", None), False),
        (("PENDING", None), ("PENDING", None), False),
        (("odd", None), ("FILLED", None), False),
        (("PENDING", None), ("odd", None), False),
        (("odd", EARLY), ("odd", LATE), True),
    ],
)
def test_older_state_has_an_earlier_time_or_status(
    one: tuple[str, dt.datetime | None], other: tuple[str, dt.datetime | None], older: bool
) -> None:
    def order(status: str, at: dt.datetime | None) -> Order:
        known = status in OrderStatus.__members__
        return Order("o1", OrderStatus(status) if known else status, updated_at=at)

    assert order(*one).is_older_than(order(*other)) == older


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
