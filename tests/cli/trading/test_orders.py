"""Printing an order."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from trio_broker import Order, OrderStatus
from trio_broker.cli.terminal.output import Output
from trio_broker.cli.trading.orders import print_order

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def test_order_is_printed_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order("o\x1b1", "ODD\n", Decimal("2.50"), "0xab", AT, "mine")
    print_order(order, Output())
    assert capsys.readouterr().out == (
        "o\\x1b1  ODD\\n  filled 2.5  tx 0xab  at 2026-01-02 03:04:05 UTC\n"
    )
    print_order(Order(None, OrderStatus.PENDING), Output())
    assert capsys.readouterr().out == "PENDING\n"
