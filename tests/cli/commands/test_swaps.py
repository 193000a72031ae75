"""``trio-broker swaps``: listing a journal, and reconciling and settling swaps."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import shlex
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import rich.console
import trio

from tests.broker_thread import Broker
from tests.cli.harness import Terminal, record_closings, set_default, status, swap_once
from trio_broker import (
    BrokerWSClient,
    SwapFinding,
    SwapIntent,
    SwapJournal,
    SwapOutcome,
    UnresolvedSwap,
    key_fingerprint,
)
from trio_broker._journal.entries import Fact, Intent, new_fact, new_intent
from trio_broker._journal.journal_db import open_file
from trio_broker.cli.commands import swaps
from trio_broker.cli.trading.next_commands import NextCommands

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
LATER = dt.datetime(2026, 1, 2, 3, 4, 6, tzinfo=dt.UTC)
ACCOUNT = ("broker.example", key_fingerprint("alice"))
LONG = "tb-1767323045000-0123456789abcdef0123"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two swaps."""
    path = tmp_path / "swaps.journal"
    with open_file(path, ACCOUNT, 10.0) as file:
        file.write(
            [
                intent("first", "0.50", "ETH"),
                intent(LONG, "1E+2", "[red]BTC"),
                new_fact(
                    "first",
                    "a1",
                    SwapOutcome.REFUSED,
                    order_id=None,
                    detail="no \x1b[2J\nluck",
                    at=LATER,
                ),
            ]
        )
    return path


def intent(client_order_id: str, amount: str, sold: str, *, at: dt.datetime = AT) -> Intent:
    swap = SwapIntent(
        client_order_id=client_order_id,
        amount_in=Decimal(amount),
        asset_in=sold,
        asset_out="USDT",
        at=at,
    )
    return new_intent(swap, "a1")


def run(*args: object) -> object:
    return status("swaps", *args)


# --- List -----------------------------------------------------------------------------------


def test_each_swap_has_a_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    names = ["when (UTC)", "client order id", "swap", "outcome", "order id", "host", "key"]
    assert [name for name in [*names, "detail"] if name not in head] == []
    assert first.split("  ")[0] == "2026-01-02 03:04:05"
    for text in ("  first  ", "0.50 ETH -> USDT", "refused", *ACCOUNT):
        assert text in first
    # Control characters are escaped.
    assert first.rstrip().endswith("no \\x1b[2J\\nluck")
    for text in (LONG, "100 [red]BTC -> USDT", "unknown", *ACCOUNT):
        assert text in second


@pytest.mark.parametrize("width", [150, 60, 40])
def test_narrow_terminal_shows_everything(
    path: Path, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.StringIO()
    real = rich.console.Console

    def console(**options: bool) -> rich.console.Console:
        return real(
            file=printed, force_terminal=True, width=width, highlight=options["highlight"],
            color_system=None,
        )  # fmt: skip

    assert run(path) == 0
    wide = capsys.readouterr().out
    monkeypatch.setattr(rich.console, "Console", console)
    assert run(path) == 0
    shown = printed.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    # IDs aren't wrapped, so that they can be copied.
    assert f"{LONG}\n" in shown or f"  {LONG}  " in shown
    rows = [line.split("  ") for line in wide.splitlines()[1:]]
    squeezed = "".join(shown.split())
    for cell in (cell for row in rows for cell in row):
        assert "".join(cell.split()) in squeezed


def test_json_has_all_members(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_unresolved_lists_unknown_outcomes(
    path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path, *options) == 0
    printed = capsys.readouterr().out
    assert LONG in printed
    assert "first" not in printed


def test_empty_journal_prints_no_swaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_file(tmp_path / "swaps.journal", ACCOUNT, 10.0):
        pass
    assert run(tmp_path / "swaps.journal") == 0
    assert capsys.readouterr().out == "No swaps.\n"
    assert run(tmp_path / "swaps.journal", "--json") == 0
    assert capsys.readouterr().out == ""


def test_list_reads_a_journal_in_use_and_changes_nothing(
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


def test_unreadable_journal_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "text"
    there.write_text("other text, " * 100)
    for name in (there, tmp_path, tmp_path / "none"):
        assert run(name) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("Error: ")
        assert str(name) in printed.err
        assert printed.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [there]


# --- Choice of the journal ------------------------------------------------------------------


def make_journal(path: Path, *entries: Intent | Fact, account: tuple[str, str] = ACCOUNT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_file(path, account, 10.0) as file:
        file.write(entries)
    return path


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def outcomes(path: Path) -> dict[str, SwapOutcome]:
    return {row.client_order_id: row.outcome for row in trio.run(SwapJournal(path).rows)}


def test_default_is_the_users_journal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "No swaps.\n"
    assert run("--json") == 0
    assert capsys.readouterr().out == ""
    assert list(place.iterdir()) == []
    make_journal(place / "state" / "trio-broker" / "swaps.journal", intent("usual", "1", "ETH"))
    assert run("--json") == 0
    assert [row["client_order_id"] for row in listed(capsys)] == ["usual"]


def test_lost_default_journal_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = make_journal(place / "state" / "trio-broker" / "swaps.journal")
    journal.unlink()
    assert run() == 1
    assert "is missing, and swaps.journal.lock shows that it existed" in capsys.readouterr().err


def test_variable_names_a_journal(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_journal(place / "named", intent("of the variable", "1", "ETH"))
    monkeypatch.setenv("BROKER_JOURNAL", "named")
    assert run("--json") == 0
    assert [row["client_order_id"] for row in listed(capsys)] == ["of the variable"]
    monkeypatch.setenv("BROKER_JOURNAL", "nowhere")
    assert run() == 1


def test_settings_file_names_a_journal(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_journal(place / "named", intent("of the file", "1", "ETH"))
    (place / ".env").write_text("BROKER_JOURNAL=named\n")
    assert run("--json") == 0
    assert [row["client_order_id"] for row in listed(capsys)] == ["of the file"]
    (place / "other.env").write_text("BROKER_JOURNAL=nowhere\n")
    assert run("--env-file", "other.env") == 1
    monkeypatch.setenv("BROKER_JOURNAL", "named")
    assert run("--env-file", "other.env") == 0


# --- Reconcile ------------------------------------------------------------------------------


def sandbox_account(broker: Broker) -> tuple[str, str]:
    return broker.host, key_fingerprint("test_key_1")


def swap(client_order_id: str, *, at: dt.datetime = AT) -> Intent:
    return intent(client_order_id, "1", "ETH", at=at)


def test_reconcile_finds_the_outcomes(
    broker: Broker, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order_id = swap_once(broker, "taken")
    make_journal(path, swap("taken"), swap("never there"), account=sandbox_account(broker))
    assert run(path, "--reconcile", "--json") == 6
    taken, never = listed(capsys)
    assert taken == {
        "client_order_id": "taken",
        "amount_in": "1",
        "asset_in": "ETH",
        "asset_out": "USDT",
        "at": "2026-01-02T03:04:05+00:00",
        "outcome": "confirmed",
        "order_id": order_id,
        "status": taken["status"],
        "reason": "",
        "may_still_execute": False,
    }
    assert (never["client_order_id"], never["outcome"]) == ("never there", "unknown")
    assert (never["order_id"], never["status"]) == (None, None)
    assert "not found" in never["reason"]
    # The swap of another account isn't changed.
    unknown = SwapOutcome.UNKNOWN
    assert outcomes(path) == {
        "first": SwapOutcome.REFUSED,
        LONG: unknown,
        "taken": SwapOutcome.CONFIRMED,
        "never there": unknown,
    }


def test_shown_commands_follow_and_settle(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order_id = swap_once(broker, "taken")
    journal = make_journal(
        place / "journal", swap("taken"), swap("never there"), account=sandbox_account(broker)
    )
    assert run(journal, "--reconcile", "--url", broker.url) == 6
    taken, never = capsys.readouterr().out.splitlines()
    url = f"--url {broker.url}"
    assert taken == (
        f"taken  1 ETH -> USDT  confirmed  order {order_id}: "
        f"trio-broker order {order_id} --follow {url}"
    )
    assert never.startswith("never there  1 ETH -> USDT  unknown  its outcome wasn't written down")
    assert never.endswith(
        f"trio-broker swaps {journal} '--settle=never there' --note 'HOW YOU KNOW' {url}"
    )
    # The shown command works.
    words = shlex.split(never[never.rindex("trio-broker swaps ") :])[2:]
    assert run(*words, "--yes") == 0
    assert outcomes(journal)["never there"] is SwapOutcome.SETTLED
    capsys.readouterr()
    assert run(journal, "--reconcile") == 0
    host = broker.host
    assert capsys.readouterr().err == f"No unresolved swaps of this account at {host}.\n"


def test_swap_that_may_still_execute_can_be_reconciled_again(
    broker: Broker,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_default(monkeypatch, resolve_timeout=0.1)
    now = dt.datetime.now(dt.UTC)
    make_journal(place / "journal", swap("new", at=now), account=sandbox_account(broker))
    assert run("journal", "--reconcile", "--json") == 6
    (found,) = listed(capsys)
    assert found["may_still_execute"] is True
    assert run("journal", "--reconcile") == 6
    assert "it may still be executed, so check again in two minutes: " in capsys.readouterr().out


def test_refused_swap_is_described_in_one_line() -> None:
    finding = SwapFinding(
        swap=UnresolvedSwap(
            client_order_id="no", amount_in=Decimal("1.50"), asset_in="ETH", asset_out="USDT",
            at=AT, outcome=SwapOutcome.UNKNOWN, reason="lost", may_still_execute=False,
        ),
        outcome=SwapOutcome.REFUSED, receipt=None, reason="the broker\nrefused it \x1b[2J",
    )  # fmt: skip
    assert swaps.finding_line(finding, NextCommands(None)) == (
        "no  1.5 ETH -> USDT  refused  the broker refused it \\x1b[2J: nothing was executed"
    )


def test_nothing_unresolved_sends_nothing(
    broker: Broker, place: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (["--reconcile"], [path, "--reconcile"]):
        assert run(*args) == 0
        assert "No unresolved swaps of this account" in capsys.readouterr().err
    assert run("--reconcile", "--json") == 0
    assert capsys.readouterr().out == ""
    assert run("nowhere", "--reconcile") == 1
    assert broker.received() == []
    assert not (place / "nowhere").exists()
    assert not (place / "state").exists()


def test_unresolved_swaps_of_other_accounts_cause_a_warning(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make_journal(place / "journal", swap("theirs"), account=("another.example", "0123"))
    assert run(journal, "--reconcile") == 0
    warnings = capsys.readouterr().err
    assert (
        "the outcome of 1 swap of other accounts or hosts in this journal is unknown too"
        in warnings
    )
    command = warnings[warnings.index("trio-broker ") :].splitlines()[0]
    assert shlex.split(command)[1:] == ["swaps", str(journal), "--unresolved"]
    assert "No unresolved swaps of this account" in warnings
    assert broker.received() == []


@pytest.mark.parametrize("flags", [["--reconcile"], ["--settle=a", "--note=seen", "--yes"]])
def test_copied_journal_must_be_adopted(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    original = make_journal(place / "journal", swap("a"), account=sandbox_account(broker))
    copy = place / "copy"
    copy.write_bytes(original.read_bytes())
    assert run(copy, *flags) == 1
    assert "--adopt" in capsys.readouterr().err
    # Listing it is harmless.
    assert run(copy) == 0
    assert outcomes(copy) == {"a": SwapOutcome.UNKNOWN}
    assert run(copy, *flags, "--adopt") == (6 if flags == ["--reconcile"] else 0)
    assert run(copy, "--reconcile") == (6 if flags == ["--reconcile"] else 0)


def test_journal_in_use_is_not_changed(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make_journal(place / "journal", swap("taken"), account=sandbox_account(broker))
    with open_file(journal, ACCOUNT, 10.0):
        assert run(journal, "--reconcile") == 1
    assert "is in use" in capsys.readouterr().err
    assert outcomes(journal) == {"taken": SwapOutcome.UNKNOWN}


def test_ctrl_c_cancels_the_reconciliation(
    broker: Broker, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(_: BrokerWSClient) -> tuple[SwapFinding, ...]:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    monkeypatch.setattr(BrokerWSClient, "reconcile", interrupted)
    journal = make_journal(place / "journal", swap("taken"), account=sandbox_account(broker))
    had_time = record_closings(monkeypatch)
    assert run(journal, "--reconcile") == 130
    assert had_time == [True]


# --- Settle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--settle", "x", "--yes"],
        ["--note", "text"],
        ["--settle", "x", "--note", "text", "--reconcile", "--yes"],
        ["--settle", "x", "--note", "text", "--unresolved", "--yes"],
        ["--unresolved", "--reconcile"],
        ["--reconcile", "--yes"],
        ["--adopt"],
        ["--unresolved", "--adopt"],
        ["--yes"],
        ["--settle", "x", "--note", "text"],
        ["--settle", "x", "--note", "text", "--json"],
        ["--settle", "x", "--note", "text", "--yes"],
        ["--settle", "first", "--note", "text", "--yes"],
        ["--settle", LONG, "--note", "text", "--yes"],
    ],
    ids=str,
)
def test_invalid_options_are_usage_errors(broker: Broker, path: Path, args: list[str]) -> None:
    assert run(path, *args) == 2
    assert broker.received() == []


def test_settled_swap_keeps_the_note(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make_journal(place / "journal", swap("a"), swap("b"), account=sandbox_account(broker))
    assert run(journal, "--settle", "b", "--note", "seen too", "--yes") == 0
    assert capsys.readouterr().out == "b  1 ETH -> USDT  settled: seen too\n"
    assert run(journal, "--settle", "a", "--note", " ", "--yes") == 2
    assert run(journal, "--settle", "a", "--note", "I asked", "--yes", "--json") == 0
    assert listed(capsys) == [{"client_order_id": "a", "outcome": "settled", "note": "I asked"}]
    rows = trio.run(SwapJournal(journal).rows)
    assert [(row.outcome, row.detail) for row in rows] == [
        (SwapOutcome.SETTLED, "I asked"),
        (SwapOutcome.SETTLED, "seen too"),
    ]


@pytest.mark.parametrize(
    ("answer", "expected", "outcome"),
    [("y\n", 0, SwapOutcome.SETTLED), ("\n", 1, SwapOutcome.UNKNOWN)],
    ids=["yes", "no"],
)
def test_settle_asks_for_confirmation(
    broker: Broker, place: Path, answer: str, expected: int, outcome: SwapOutcome
) -> None:
    now = dt.datetime.now(dt.UTC)
    journal = make_journal(place / "journal", swap("new", at=now), account=sandbox_account(broker))
    with Terminal("swaps", str(journal), "--settle", "new", "--note", "text") as terminal:
        shown = terminal.until("[y/N]: ").replace("\r\n", "")
        assert "It may still be executed. Settle new (1 ETH -> USDT, requested at " in shown
        assert f"at {broker.host}, SANDBOX" in shown
        terminal.type(answer)
        assert terminal.end() == expected
    assert outcomes(journal) == {"new": outcome}
