from __future__ import annotations

import decimal
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from trio_broker.sandbox.money import parse_amount, plain, round_down, round_up
from trio_broker.sandbox.refusals import Refusal


@pytest.mark.parametrize(
    ("text", "amount"),
    [("100", "100"), ("0.00000001", "1E-8"), ("1.50", "1.5"), ("0" * 17 + "1", "1")],
)
def test_a_decimal_text_is_an_amount(text: str, amount: str) -> None:
    assert parse_amount(text, 8) == Decimal(amount)


@pytest.mark.parametrize(
    "value",
    [
        *["", "0", "0.0", "-1", "+1", " 1", "1.", ".5", "1e3", "NaN", "Infinity", "0x1", "1,5"],
        *["1\n", "٣", "1_000", "9" * 19, "0." + "0" * 18 + "1"],
        *[None, 1, 1.5, True, ["1"], {"amount": "1"}],
    ],
)
def test_anything_else_is_an_invalid_amount(value: object) -> None:
    with pytest.raises(Refusal, match=r"^Invalid amount$"):
        parse_amount(value, 18)


def test_an_amount_finer_than_its_asset_is_invalid() -> None:
    assert parse_amount("0.123456", 6) == Decimal("0.123456")
    assert parse_amount("0.1234560", 6) == Decimal("0.123456")
    with pytest.raises(Refusal, match="Invalid amount"):
        parse_amount("0.1234561", 6)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0"),
        ("0E-18", "0"),
        ("1E-18", "0.000000000000000001"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("1.500", "1.5"),
    ],
)
def test_an_amount_is_printed_without_exponent_or_idle_zeros(amount: str, text: str) -> None:
    assert plain(Decimal(amount)) == text


@given(st.decimals(0, 10**18, places=18), st.integers(0, 18))
def test_rounding_keeps_to_its_side_whatever_the_context(amount: Decimal, decimals: int) -> None:
    with decimal.localcontext(prec=3):
        down, up = round_down(amount, decimals), round_up(amount, decimals)
    assert down <= amount <= up
    with decimal.localcontext(prec=80):
        assert up - down in {0, Decimal(1).scaleb(-decimals)}
