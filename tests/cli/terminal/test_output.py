"""Output of commands: JSON, logs, tables and redacted texts."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
from decimal import Decimal

import click
import pytest
import rich.console

from trio_broker import Balance, ConnectionState, OrderStatus
from trio_broker.cli.app import app
from trio_broker.cli.terminal import output


def test_json_form_of_the_librarys_values_is_stable(capsys: pytest.CaptureFixture[str]) -> None:
    zone = dt.timezone(dt.timedelta(hours=2))
    output.print_json(
        amount=Decimal("1E+2"),
        at=dt.datetime(2026, 1, 2, 5, 0, tzinfo=zone),
        names=frozenset({"b", "a"}),
        status=OrderStatus.FILLED,
        state=ConnectionState.WAITING,
        balance=Balance("ETH", Decimal("1.50")),
        error=ValueError("no"),
        missing=None,
    )
    assert json.loads(capsys.readouterr().out) == {
        "amount": "100",
        "at": "2026-01-02T03:00:00+00:00",
        "names": ["a", "b"],
        "status": "FILLED",
        "state": "waiting",
        "balance": {"asset": "ETH", "total": "1.50", "locked": None},
        "error": "no",
        "missing": None,
    }


def test_verbose_sets_the_level_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels = []
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    logger = logging.getLogger("trio_broker")
    before = logger.level
    try:
        for verbose in (0, 1, 2):
            logger.setLevel(logging.NOTSET)
            output.Output(verbose=verbose).start_log()
            levels.append(logger.level)
    finally:
        logger.setLevel(before)
    assert levels == [logging.NOTSET, logging.INFO, logging.DEBUG]


def test_short_key_is_not_removed_from_amounts(capsys: pytest.CaptureFixture[str]) -> None:
    with click.Context(app):
        output.hide("1", "long-enough")
        output.print_json(amount="100", text="it is long-enough")
        assert output.printable("100 long-enough") == "100 <removed>"
    assert json.loads(capsys.readouterr().out) == {"amount": "100", "text": "it is <removed>"}
    assert output.printable("long-enough") == "long-enough"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> rich.console.Console:
    """A narrow terminal."""
    made = rich.console.Console(file=io.StringIO(), width=25, color_system=None)
    monkeypatch.setattr(output, "console", lambda: made)
    return made


def shown(screen: rich.console.Console) -> list[str]:
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


COLUMNS = ("asset", "total", "", "locked")


def test_table_that_exactly_fits_is_printed_as_a_table(screen: rich.console.Console) -> None:
    output.print_table(COLUMNS, [("ETH", "1.234", "ETH", "")], right=["total"])
    assert shown(screen) == ["asset  total       locked", "ETH    1.234  ETH"]


def test_table_that_is_too_wide_becomes_records(screen: rich.console.Console) -> None:
    rows = [
        ("ETH", "0.123456789012345678", "ETH", "1"),
        ("", "2", "", ""),
        ("A\x1b", "", "ETH", "3"),
    ]
    output.print_table(COLUMNS, rows, right=["total"])
    assert shown(screen) == [
        "ETH",
        "  total 0.123456789012345678 ETH",
        "  locked 1",
        "asset",
        "  total 2",
        "A\\x1b",
        "  locked 3",
    ]
