"""``trio-broker swaps``: what it prints of a journal, and that it changes nothing."""

from __future__ import annotations

import datetime as dt
import io
import json
from decimal import Decimal
from pathlib import Path

import pytest
import rich.console

from trio_broker import SwapOutcome, key_fingerprint
from trio_broker.cli import main
from trio_broker.journalfile import Fact, Intent, open_file

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
LATER = dt.datetime(2026, 1, 2, 3, 4, 6, tzinfo=dt.UTC)
ACCOUNT = ("broker.example", key_fingerprint("alice"))
LONG = "tb-1767323045000-0123456789abcdef0123"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of two swaps."""
    path = tmp_path / "swaps.journal"
    with open_file(path, ACCOUNT, 10.0) as file:
        file.write(
            [
                intent("first", "0.50", "ETH"),
                intent(LONG, "1E+2", "[red]BTC"),
                Fact(
                    client_order_id="first",
                    attempt="a1",
                    outcome=SwapOutcome.REFUSED,
                    order_id=None,
                    detail="no \x1b[2J\nluck",
                    at=LATER,
                ),
            ]
        )
    return path


def intent(client_order_id: str, amount: str, sold: str) -> Intent:
    return Intent(
        client_order_id=client_order_id,
        attempt="a1",
        amount_in=Decimal(amount),
        asset_in=sold,
        asset_out="USDT",
        at=AT,
    )


def run(*args: object) -> object:
    with pytest.raises(SystemExit) as ended:
        main(["swaps", *map(str, args)])
    return ended.value.code


def test_each_swap_has_a_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    names = ["when (UTC)", "client order id", "swap", "outcome", "order id", "host", "key"]
    assert [name for name in [*names, "detail"] if name not in head] == []
    assert first.split("  ")[0] == "2026-01-02 03:04:05"
    for text in ("  first  ", "0.50 ETH -> USDT", "refused", *ACCOUNT):
        assert text in first
    # A terminal would obey what the broker says.
    assert first.rstrip().endswith("no \\x1b[2J\\nluck")
    for text in (LONG, "100 [red]BTC -> USDT", "unknown", *ACCOUNT):
        assert text in second


def test_a_narrow_terminal_loses_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.StringIO()
    real = rich.console.Console

    def console(**options: bool) -> rich.console.Console:
        return real(
            file=printed, force_terminal=True, width=60, highlight=options["highlight"],
            color_system=None,
        )  # fmt: skip

    monkeypatch.setattr(rich.console, "Console", console)
    assert run(path) == 0
    narrow = printed.getvalue()
    assert max(map(len, narrow.splitlines())) <= 60
    monkeypatch.undo()
    assert run(path) == 0
    assert sorted("".join(narrow.split())) == sorted("".join(capsys.readouterr().out.split()))


def test_json_has_all_there_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "host": "broker.example",
        "key_fingerprint": ACCOUNT[1],
        "client_order_id": "first",
        "attempt": "a1",
        "amount_in": "0.50",
        "asset_in": "ETH",
        "asset_out": "USDT",
        "at": "2026-01-02T03:04:05+00:00",
        "outcome": "refused",
        "order_id": None,
        "detail": "no \x1b[2J\nluck",
        "updated_at": "2026-01-02T03:04:06+00:00",
    }
    assert (second["client_order_id"], second["amount_in"]) == (LONG, "100")


@pytest.mark.parametrize("options", [["--unresolved"], ["--json", "--unresolved"]])
def test_unresolved_are_those_that_are_unknown(
    path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path, *options) == 0
    printed = capsys.readouterr().out
    assert LONG in printed
    assert "first" not in printed


def test_a_journal_without_swaps_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_file(tmp_path / "swaps.journal", ACCOUNT, 10.0):
        pass
    assert run(tmp_path / "swaps.journal") == 0
    assert capsys.readouterr().out == "No swaps.\n"
    assert run(tmp_path / "swaps.journal", "--json") == 0
    assert capsys.readouterr().out == ""


def test_it_looks_while_another_writes_and_changes_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_file(path, ACCOUNT, 10.0) as file:
        file.write([intent("third", "1", "ETH")])
        assert run(path, "--json") == 0
        file.write([intent("fourth", "1", "ETH")])
    assert len(capsys.readouterr().out.splitlines()) == 3
    before = path.read_bytes()
    assert run(path, "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert path.read_bytes() == before


def test_what_cannot_be_listed_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "diary"
    there.write_text("dear diary, " * 100)
    for name in (there, tmp_path, tmp_path / "none"):
        assert run(name) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("Error: ")
        assert str(name) in printed.err
        assert printed.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [there]
    assert run() == 2
