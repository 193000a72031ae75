"""Exact decimal amounts, independent of the decimal context of whoever runs the sandbox."""

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

    Args:
        text: The value of the JSON member.
        decimals: How many decimals the asset has.

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
    """An amount as text: no exponent, no zeros at the end.

    Args:
        amount: A finite amount.
    """
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def round_down(amount: Decimal, decimals: int) -> Decimal:
    """An amount with no more than so many decimals, never more than it was.

    Args:
        amount: An amount that isn't negative.
        decimals: The number of decimals.
    """
    return amount.quantize(Decimal(1).scaleb(-decimals, CONTEXT), ROUND_DOWN, CONTEXT)


def round_up(amount: Decimal, decimals: int) -> Decimal:
    """An amount with no more than so many decimals, never less than it was.

    Args:
        amount: An amount that isn't negative.
        decimals: The number of decimals.
    """
    return amount.quantize(Decimal(1).scaleb(-decimals, CONTEXT), ROUND_UP, CONTEXT)
