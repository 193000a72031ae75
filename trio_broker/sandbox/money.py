"""Exact decimal amounts, independent of the user's decimal context."""

from __future__ import annotations

import re
from decimal import ROUND_DOWN, ROUND_UP, Context, Decimal, DivisionByZero, InvalidOperation
from typing import Final

from trio_broker.sandbox.refusals import INVALID_AMOUNT, Refusal

# The largest product is 18 digits of an amount times a price, with 18 decimals: under 60 digits.
# With fewer, a sum would silently be rounded, and the ledger would no longer add up.
CONTEXT: Final = Context(prec=80, rounding=ROUND_DOWN, traps=[InvalidOperation, DivisionByZero])
ZERO: Final = Decimal(0)

_AMOUNT: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


def parse_amount(text: object, decimals: int) -> Decimal:
    """The amount that a client sent.

    Raises:
        Refusal: It isn't a decimal string in plain notation, isn't more than zero, has more than
            18 digits before its point, or more decimals than the asset.
    """
    if not isinstance(text, str) or not _AMOUNT.fullmatch(text):
        raise Refusal(INVALID_AMOUNT)
    amount = Decimal(text)
    if not amount or round_down(amount, decimals) != amount:
        raise Refusal(INVALID_AMOUNT)
    return amount


def plain(amount: Decimal) -> str:
    """A finite amount as text: no exponent, no zeros at the end."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def round_down(amount: Decimal, decimals: int) -> Decimal:
    """Round an amount that isn't negative down to a number of decimals."""
    return amount.quantize(Decimal(1).scaleb(-decimals, CONTEXT), ROUND_DOWN, CONTEXT)


def round_up(amount: Decimal, decimals: int) -> Decimal:
    """Round an amount that isn't negative up to a number of decimals."""
    return amount.quantize(Decimal(1).scaleb(-decimals, CONTEXT), ROUND_UP, CONTEXT)
