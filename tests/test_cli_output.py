"""What the commands have in common: how they print, and how they end."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
from decimal import Decimal

import click
import pytest
import rich.console
import trio

from trio_broker import (
    Balance,
    ConfigurationError,
    ConnectionState,
    InvalidSignatureError,
    OrderStatus,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.cli import ending, output
from trio_broker.cli.app import app


def test_json_has_the_librarys_values_in_a_stable_form(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_log_goes_to_standard_error_as_far_as_it_is_wanted(
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


def test_a_table_that_just_fits_is_one(screen: rich.console.Console) -> None:
    output.print_table(COLUMNS, [("ETH", "1.234", "ETH", "")], right=["total"])
    assert shown(screen) == ["asset  total       locked", "ETH    1.234  ETH"]


def test_no_amount_is_broken_where_a_table_has_no_room(screen: rich.console.Console) -> None:
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


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SwapOutcomeUnknownError("id", "no reply"), 6),
        (ConfigurationError("no"), 2),
        (InvalidSignatureError("auth", "Invalid signature"), 3),
        (ServerError("auth", "no"), 3),
        (ServerError("swap", "no"), 5),
        (OSError("disk"), 1),
    ],
)
def test_each_kind_of_failure_has_its_status(error: Exception, status: int) -> None:
    assert ending.status_of(error) == status


def test_debug_shows_a_traceback_and_changes_no_status(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> int:
        await trio.lowlevel.checkpoint()
        raise ServerError("swap", "no")

    with pytest.raises(ending.CommandFailed) as failed:
        ending.run(fail, debug=True)
    assert failed.value.exit_code == 5
    assert failed.value.message == "the broker refused swap: no"
    assert "Traceback" in capsys.readouterr().err


def test_commands_are_listed_and_others_are_none() -> None:
    context = click.Context(app)
    names = app.list_commands(context)
    assert {"balances", "watch", "estimate", "swap", "order", "swaps", "doctor"} <= set(names)
    assert all(app.get_command(context, name) for name in names)
    assert app.get_command(context, "nonsense") is None
