"""``trio-broker swaps``: what it prints of a journal, and what becomes of swaps in doubt."""

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

import attrs
import pytest
import rich.console
import trio

from tests.clibroker import Broker, Terminal, closings, set_default
from trio_broker import (
    BrokerWSClient,
    SwapFinding,
    SwapJournal,
    SwapOutcome,
    UnresolvedSwap,
    key_fingerprint,
)
from trio_broker.cli import main, swaps
from trio_broker.cli.journals import NextCommands
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


@pytest.mark.parametrize("width", [150, 60, 40])
def test_a_terminal_loses_nothing(
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
    # However narrow it is, an id can be copied.
    assert f"{LONG}\n" in shown or f"  {LONG}  " in shown
    rows = [line.split("  ") for line in wide.splitlines()[1:]]
    squeezed = "".join(shown.split())
    for cell in (cell for row in rows for cell in row):
        assert "".join(cell.split()) in squeezed


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


# --- Which journal --------------------------------------------------------------------------


def make(path: Path, *entries: Intent | Fact, account: tuple[str, str] = ACCOUNT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_file(path, account, 10.0) as file:
        file.write(entries)
    return path


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def outcomes(path: Path) -> dict[str, SwapOutcome]:
    return {row.client_order_id: row.outcome for row in trio.run(SwapJournal(path).rows)}


def test_without_a_file_it_is_the_users_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "No swaps.\n"
    assert run("--json") == 0
    assert capsys.readouterr().out == ""
    assert list(place.iterdir()) == []
    make(place / "state" / "trio-broker" / "swaps.journal", intent("usual", "1", "ETH"))
    assert run("--json") == 0
    assert [row["client_order_id"] for row in listed(capsys)] == ["usual"]


def test_the_variable_names_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place / "named", intent("of the variable", "1", "ETH"))
    monkeypatch.setenv("BROKER_JOURNAL", "named")
    assert run("--json") == 0
    assert [row["client_order_id"] for row in listed(capsys)] == ["of the variable"]
    monkeypatch.setenv("BROKER_JOURNAL", "nowhere")
    assert run() == 1


def test_a_file_with_settings_names_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place / "named", intent("of the file", "1", "ETH"))
    (place / ".env").write_text("BROKER_JOURNAL=named\n")
    assert run("--json") == 0
    assert [row["client_order_id"] for row in listed(capsys)] == ["of the file"]
    (place / "other.env").write_text("BROKER_JOURNAL=nowhere\n")
    assert run("--env-file", "other.env") == 1
    monkeypatch.setenv("BROKER_JOURNAL", "named")
    assert run("--env-file", "other.env") == 0


# --- Asking ---------------------------------------------------------------------------------


def sandbox_account(broker: Broker) -> tuple[str, str]:
    return broker.host, key_fingerprint("test_key_1")


def swap(client_order_id: str, *, at: dt.datetime = AT) -> Intent:
    return attrs.evolve(intent(client_order_id, "1", "ETH"), at=at)


def take(broker: Broker, client_order_id: str) -> str:
    """Have the broker take a swap of which our journal knows the intent alone."""

    async def once() -> str:
        variables = broker.variables
        async with BrokerWSClient.from_env(variables) as client:
            return (
                await client.do_swap(1, "ETH", "USDT", client_order_id=client_order_id)
            ).order_id

    return trio.run(once)


def test_asking_finds_what_there_is(
    broker: Broker, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order_id = take(broker, "taken")
    make(path, swap("taken"), swap("never there"), account=sandbox_account(broker))
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
    # Another account's swap isn't asked for.
    unknown = SwapOutcome.UNKNOWN
    assert outcomes(path) == {
        "first": SwapOutcome.REFUSED,
        LONG: unknown,
        "taken": SwapOutcome.CONFIRMED,
        "never there": unknown,
    }


def test_people_are_told_what_to_do(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order_id = take(broker, "taken")
    journal = make(
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
    # What is shown is what closes it.
    words = shlex.split(never[never.rindex("trio-broker swaps ") :])[2:]
    assert run(*words, "--yes") == 0
    assert outcomes(journal)["never there"] is SwapOutcome.SETTLED
    capsys.readouterr()
    assert run(journal, "--reconcile") == 0
    host = broker.host
    assert capsys.readouterr().err == f"No unresolved swaps of this account at {host}.\n"


def test_what_may_still_be_executed_is_asked_for_again(
    broker: Broker,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_default(monkeypatch, resolve_timeout=0.1)
    now = dt.datetime.now(dt.UTC)
    make(place / "journal", swap("new", at=now), account=sandbox_account(broker))
    assert run("journal", "--reconcile", "--json") == 6
    (found,) = listed(capsys)
    assert found["may_still_execute"] is True
    assert run("journal", "--reconcile") == 6
    assert "it may be executed even now, so ask again in two minutes: " in capsys.readouterr().out


def test_a_refusal_that_is_found_out_about_is_told() -> None:
    finding = SwapFinding(
        swap=UnresolvedSwap(
            client_order_id="no", amount_in=Decimal("1.50"), asset_in="ETH", asset_out="USDT",
            at=AT, outcome=SwapOutcome.UNKNOWN, reason="lost", may_still_execute=False,
        ),
        outcome=SwapOutcome.REFUSED, receipt=None, reason="the broker\nsays \x1b[2J",
    )  # fmt: skip
    assert swaps.line(finding, NextCommands(None)) == (
        "no  1.5 ETH -> USDT  refused  the broker says \\x1b[2J: nothing was executed"
    )


def test_nothing_to_ask_for_asks_nobody(
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


def test_the_doubts_of_other_accounts_are_not_passed_over(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make(place / "journal", swap("theirs"), account=("another.example", "0123"))
    assert run(journal, "--reconcile") == 0
    told = capsys.readouterr().err
    assert "1 swap of other accounts or hosts in this journal is unknown too" in told
    command = told[told.index("trio-broker ") :].splitlines()[0]
    assert shlex.split(command)[1:] == ["swaps", str(journal), "--unresolved"]
    assert "No unresolved swaps of this account" in told
    assert broker.received() == []


def test_a_journal_in_use_is_left_alone(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make(place / "journal", swap("taken"), account=sandbox_account(broker))
    with open_file(journal, ACCOUNT, 10.0):
        assert run(journal, "--reconcile") == 1
    assert "is in use" in capsys.readouterr().err
    assert outcomes(journal) == {"taken": SwapOutcome.UNKNOWN}


def test_ctrl_c_ends_the_asking(
    broker: Broker, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(_: BrokerWSClient) -> tuple[SwapFinding, ...]:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

    monkeypatch.setattr(BrokerWSClient, "reconcile", interrupted)
    journal = make(place / "journal", swap("taken"), account=sandbox_account(broker))
    politely = closings(monkeypatch)
    assert run(journal, "--reconcile") == 130
    assert politely == [True]


# --- Closing by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--settle", "x", "--yes"],
        ["--note", "text"],
        ["--settle", "x", "--note", "text", "--reconcile", "--yes"],
        ["--settle", "x", "--note", "text", "--unresolved", "--yes"],
        ["--unresolved", "--reconcile"],
        ["--reconcile", "--yes"],
        ["--yes"],
        ["--settle", "x", "--note", "text"],
        ["--settle", "x", "--note", "text", "--json"],
        ["--settle", "x", "--note", "text", "--yes"],
        ["--settle", "first", "--note", "text", "--yes"],
        ["--settle", LONG, "--note", "text", "--yes"],
    ],
    ids=str,
)
def test_what_cannot_be_closed_is_refused(broker: Broker, path: Path, args: list[str]) -> None:
    assert run(path, *args) == 2
    assert broker.received() == []


def test_closing_keeps_the_note(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make(place / "journal", swap("a"), swap("b"), account=sandbox_account(broker))
    assert run(journal, "--settle", "b", "--note", "me too", "--yes") == 0
    assert capsys.readouterr().out == "b  1 ETH -> USDT  settled: me too\n"
    assert run(journal, "--settle", "a", "--note", " ", "--yes") == 2
    assert run(journal, "--settle", "a", "--note", "I asked", "--yes", "--json") == 0
    assert listed(capsys) == [{"client_order_id": "a", "outcome": "settled", "note": "I asked"}]
    rows = trio.run(SwapJournal(journal).rows)
    assert [(row.outcome, row.detail) for row in rows] == [
        (SwapOutcome.SETTLED, "I asked"),
        (SwapOutcome.SETTLED, "me too"),
    ]


@pytest.mark.parametrize(
    ("answer", "expected", "outcome"),
    [("y\n", 0, SwapOutcome.SETTLED), ("\n", 1, SwapOutcome.UNKNOWN)],
    ids=["yes", "no"],
)
def test_closing_is_asked_for(
    broker: Broker, place: Path, answer: str, expected: int, outcome: SwapOutcome
) -> None:
    now = dt.datetime.now(dt.UTC)
    journal = make(place / "journal", swap("new", at=now), account=sandbox_account(broker))
    with Terminal("swaps", str(journal), "--settle", "new", "--note", "text") as terminal:
        shown = terminal.until("[y/N]: ").replace("\r\n", "")
        assert "It may be executed even now. Close new (1 ETH -> USDT, asked for at " in shown
        assert f"at {broker.host}, SANDBOX" in shown
        terminal.type(answer)
        assert terminal.end() == expected
    assert outcomes(journal) == {"new": outcome}
