"""``trio-broker swap``: its requests, output and exit status."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio
import trio.testing

from tests.broker_thread import Broker, when_taken
from tests.cli.harness import (
    COMMAND,
    PATIENCE,
    WITHOUT_RECONNECTING,
    Terminal,
    record_closings,
    set_default,
    status,
)
from trio_broker import (
    BrokerWSClient,
    ReconnectPolicy,
    SwapCorrected,
    SwapEstimate,
    SwapJournal,
    SwapOutcome,
    SwapReceipt,
)
from trio_broker.cli.account import find_account
from trio_broker.cli.commands import swap as swap_command
from trio_broker.sandbox import Sandbox

TRADE = ("swap", "0.5", "ETH", "USDT")


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def rows(path: Path) -> dict[str, SwapOutcome]:
    """Return the outcome of each swap in a journal."""
    return {row.client_order_id: row.outcome for row in trio.run(SwapJournal(path).rows)}


def default_journal(place: Path) -> Path:
    return place / "state" / "trio-broker" / "swaps.journal"


def named_command(text: str) -> list[str]:
    """Return the arguments of the command at the end of a text, parsed like in a shell."""
    return shlex.split(text[text.rindex("trio-broker ") :])[1:]


def lose_the_swap(broker: Broker) -> Callable[[], None]:
    """Return a function that drops the receipt of an accepted swap and kills the broker."""

    def lose() -> None:
        broker.sandbox.faults.swallow(op="swap")
        broker.soon(broker.sandbox.faults.kill)

    return lose


def restore(broker: Broker) -> None:
    broker.do(lambda sandbox: sandbox.faults.clear())
    broker.revive()


# --- Success --------------------------------------------------------------------------------


def test_json_has_each_step(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TRADE, "--yes", "--json", "--client-order-id", "mine") == 0
    printed_events = events(capsys)
    kinds = list(dict.fromkeys(event["event"] for event in printed_events))
    assert kinds == ["estimate", "swap", "receipt", "order", "end"]
    estimate, sent, receipt, *orders, end = printed_events
    trade = {"amount_in": "0.5", "asset_in": "ETH", "asset_out": "USDT"}
    assert estimate.items() >= {"label": "SANDBOX", "host": broker.host, **trade}.items()
    assert sent == {
        "event": "swap",
        "client_order_id": "mine",
        **trade,
        "min_out": None,
        "slippage_bps": None,
        "sources": [],
        "wallet": None,
    }
    (order,) = broker.orders()
    assert receipt == {
        "event": "receipt",
        "order_id": order.order_id,
        "status": "PENDING",
        "client_order_id": "mine",
    }
    assert [state["status"] for state in orders][-1] == "FILLED"
    assert end == {
        "event": "end",
        "status": 0,
        "outcome": "confirmed",
        "client_order_id": "mine",
        "order_id": order.order_id,
        "order_status": "FILLED",
        "filled_out": orders[-1]["filled_out"],
        "error": None,
        "command": None,
    }
    assert Decimal(end["filled_out"]) == order.filled_out
    assert (order.client_order_id, order.terms.amount_in) == ("mine", Decimal("0.5"))
    assert rows(default_journal(place)) == {"mine": SwapOutcome.CONFIRMED}
    assert stat.S_IMODE(default_journal(place).parent.stat().st_mode) == 0o700


def test_each_step_is_printed(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*TRADE, "--yes") == 0
    printed = capsys.readouterr()
    (order,) = broker.orders()
    first, *_, taken, state, last = (
        line for line in printed.out.splitlines() if "PENDING" not in line and "PROC" not in line
    )
    assert first.startswith("0.5 ETH would bring ")
    assert taken == f"Accepted as order {order.order_id}"
    assert state.startswith(f"{order.order_id}  FILLED  filled ")
    bought = format(order.filled_out.normalize(), "f")
    assert last == f"Swapped 0.5 ETH for {bought} USDT"
    banner, name = printed.err.splitlines()
    assert banner == f"SANDBOX: play money at {broker.url}"
    assert name == f"Swapping, with the client order id {order.client_order_id}"
    assert "\x1b" not in printed.out + printed.err


def test_quiet_prints_only_results(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*TRADE, "--yes", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Swapped 0.5 ETH for " in printed.out
    assert "would bring" not in printed.out


def test_options_are_sent(broker: Broker) -> None:
    assert status(
        *TRADE, "--yes", "--slippage-bps", "70", "--source", "gate", "--source", "bybit",
        "--wallet", "0xabc",
    ) == 0  # fmt: skip
    (order,) = broker.orders()
    assert order.terms.slippage_bps == 70
    assert order.terms.sources == ("bybit", "gate")
    assert order.terms.wallet == "0xabc"


def test_account_with_real_money_is_labelled_live(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    live = attrs.evolve(find_account(environ=broker.variables), api_key="not the sandbox's")
    swap_command.print_banner(live)
    assert capsys.readouterr().err == f"LIVE: real money at {broker.url}\n"
    plan = swap_command.SwapPlan(amount="2", asset_in="ETH", asset_out="USDT")
    estimate = SwapEstimate((), price=Decimal(2500), expected_out=Decimal("5000.10"))
    assert plan.question(estimate, live) == (
        f"Swap 2 ETH for about 5000.1 USDT at {broker.host}, LIVE?"
    )


def test_question_names_all_options(broker: Broker) -> None:
    plan = swap_command.SwapPlan(
        amount="2",
        asset_in="ETH",
        asset_out="USDT",
        min_out=Decimal("4000.50"),
        slippage_bps=5050,
        sources=("gate", "bybit"),
        wallet="0xabc",
    )
    estimate = SwapEstimate((), price=Decimal(2500), expected_out=Decimal(5000))
    account = find_account(environ=broker.variables)
    assert plan.question(estimate, account) == (
        "Swap 2 ETH for about 5000 USDT (at least 4000.5; up to 50.5 % less; only through gate, "
        f"bybit; wallet 0xabc) at {broker.host}, SANDBOX?"
    )


# --- Orders that aren't filled --------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "ended", "text"),
    [
        ("failed", "FAILED", "Error: the order ended FAILED\n"),
        ("cancelled", "CANCELLED", "Error: the order ended CANCELLED\n"),
        ("partly_filled", "CANCELLED", "Error: the order ended CANCELLED, after "),
    ],
)
def test_order_that_is_not_filled_exits_with_1(
    broker: Broker, outcome: str, ended: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.do(lambda sandbox: sandbox.next_outcome(outcome))
    assert status(*TRADE, "--yes", "--json") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(text)
    end = json.loads(printed.out.splitlines()[-1])
    assert (end["status"], end["outcome"], end["order_status"]) == (1, "confirmed", ended)
    assert end["error"] in printed.err


def test_failed_order_is_not_printed_as_a_swap(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.do(lambda sandbox: sandbox.next_outcome("failed"))
    assert status(*TRADE, "--yes", "--quiet") == 1
    printed = capsys.readouterr()
    assert "FAILED" in printed.out
    assert "Swapped" not in printed.out
    assert printed.err == "Error: the order ended FAILED\n"


def test_refused_swap_exits_with_5(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("swap", "1000000", "ETH", "USDT", "--yes", "--json") == 5
    end = events(capsys)[-1]
    assert (end["status"], end["outcome"]) == (5, "refused")
    assert end["error"] == "the broker refused swap: Insufficient balance"
    assert broker.orders() == ()
    assert list(rows(default_journal(place)).values()) == [SwapOutcome.REFUSED]


# --- Invalid usage, and brokers that can't be used ------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--yes", "--slippage-bps", "10001"],
        ["--yes", "--min-out", "NaN"],
        ["--yes", "--min-out", "-1"],
        ["--yes", "--min-out", "much"],
        ["--yes", "--min-out", "0.0"],
        ["--yes", "--min-out", "1_000"],
        ["--yes", "--min-out", "1e3"],
        ["--yes", "--min-out", "\u0661\u0662"],  # digits of another script
        ["--yes", "--journal", "here", "--no-journal"],
        ["--yes", "--adopt", "--no-journal"],
        ["--json"],
        [],
    ],
    ids=str,
)
def test_invalid_options_are_usage_errors(broker: Broker, options: list[str]) -> None:
    assert status(*TRADE, *options) == 2
    assert broker.received() == []


@pytest.mark.parametrize(
    "args",
    [
        ["swap", "none", "ETH", "USDT"],
        [*TRADE, "--client-order-id", "x" * 65],
        ["swap", "1", "ETH", ""],
    ],
    ids=str,
)
def test_arguments_that_the_library_rejects_are_usage_errors(
    broker: Broker, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*args, "--yes", "--json") == 2
    end = events(capsys)[-1]
    assert (end["status"], end["outcome"]) == (2, "not sent")
    assert "swap" not in broker.received()


def test_missing_terminal_is_a_usage_error(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TRADE) == 2
    assert "standard input is not a terminal" in capsys.readouterr().err
    assert status(*TRADE, "--json") == 2
    assert "--json can't ask for confirmation" in capsys.readouterr().err


def test_closed_standard_input_is_a_usage_error(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert status(*TRADE) == 2


def test_nothing_is_sent_without_a_connection(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.do(lambda sandbox: sandbox.faults.kill())
    assert status(*TRADE, "--yes", "--json") == 4
    (end,) = events(capsys)
    assert (end["status"], end["outcome"], end["command"]) == (4, "not sent", None)
    assert "doctor" in end["error"]


def test_nothing_is_sent_with_a_wrong_key(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_SECRET_KEY", "wrong")
    assert status(*TRADE, "--yes") == 3
    assert broker.orders() == ()


def test_copied_journal_must_be_adopted(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TRADE, "--yes", "--journal", "original") == 0
    (place / "copy").write_bytes((place / "original").read_bytes())
    capsys.readouterr()
    assert status(*TRADE, "--yes", "--json", "--journal", "copy") == 1
    (end,) = events(capsys)
    assert (end["outcome"], end["command"]) == ("not sent", None)
    assert "--adopt" in end["error"]
    assert len(broker.orders()) == 1
    for flags in (["--adopt"], []):
        assert status(*TRADE, "--yes", "--journal", "copy", *flags) == 0
    assert len(rows(place / "copy")) == 3


def test_folder_that_cannot_be_created_stops_the_swap(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "state").write_text("in the way")
    assert status(*TRADE, "--yes", "--json") == 1
    (end,) = events(capsys)
    assert "pass --journal FILE" in end["error"]
    assert broker.received() == []


# --- The smallest acceptable result ---------------------------------------------------------


def test_estimate_below_min_out_stops_the_swap(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TRADE, "--yes", "--json", "--min-out", "1000000") == 1
    end = events(capsys)[-1]
    assert (end["status"], end["outcome"]) == (1, "not sent")
    assert "less than min_out=1000000" in end["error"]
    assert broker.received().count("estimate") == 1
    assert "swap" not in broker.received()


def test_min_out_limits_the_slippage_that_is_sent(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TRADE, "--yes", "--json", "--min-out", "1", "--slippage-bps", "10000") == 0
    printed_events = events(capsys)
    assert [one["event"] for one in printed_events][:3] == ["estimate", "swap", "receipt"]
    assert printed_events[1]["min_out"] == "1"
    # `do_swap` requests an estimate too, and limits the slippage: here to nearly 100 %.
    assert broker.received().count("estimate") == 2
    (order,) = broker.orders()
    assert order.terms.slippage_bps is not None
    assert 9900 < order.terms.slippage_bps < 10000


def test_price_that_falls_before_the_swap_stops_it(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask, asked = BrokerWSClient.estimate_swap, []

    async def estimate(self: BrokerWSClient, *args: Any, **options: Any) -> SwapEstimate:
        asked.append(await ask(self, *args, **options))
        fallen = Decimal(100 if len(asked) == 1 else 99)
        return attrs.evolve(asked[-1], expected_out=fallen)

    monkeypatch.setattr(BrokerWSClient, "estimate_swap", estimate)
    assert status(*TRADE, "--yes", "--json", "--min-out", "100") == 1
    end = events(capsys)[-1]
    assert (end["status"], end["outcome"]) == (1, "not sent")
    assert "is 99, less than min_out=100" in end["error"]
    assert len(asked) == 2
    assert "swap" not in broker.received()


# --- Unknown outcomes -----------------------------------------------------------------------


def check_unknown(capsys: pytest.CaptureFixture[str], client_order_id: str) -> list[str]:
    """Check the error for a swap with unknown outcome, and return the command to run next."""
    printed = capsys.readouterr()
    (error,) = (line for line in printed.err.splitlines() if line.startswith("Error: "))
    assert f"the outcome of swap {client_order_id} is unknown (" in error
    assert "don't repeat it" in error
    return named_command(error)


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("where", ["default", "named", "variable"])
@pytest.mark.parametrize("least", [[], ["--min-out", "1"]], ids=["", "min-out"])
def test_shown_command_resolves_a_lost_swap(
    broker: Broker,
    where: str,
    least: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = Path.cwd()
    journal, options = default_journal(place), []
    if where == "named":
        journal = place / "my swaps"
        options = ["--journal", "my swaps", "--url", broker.url]
    elif where == "variable":
        journal = place / "from the variable"
        monkeypatch.setenv("BROKER_JOURNAL", str(journal))
    with when_taken(lose_the_swap(broker)):
        assert status(*TRADE, "--yes", "--client-order-id", "lost", *least, *options) == 6
    again = check_unknown(capsys, "lost")
    named = {"default": [], "named": [str(journal)], "variable": [str(journal)]}[where]
    url = ["--url", broker.url] if where == "named" else []
    assert again == ["swaps", *named, "--reconcile", *url]
    assert rows(journal) == {"lost": SwapOutcome.UNKNOWN}

    monkeypatch.delenv("BROKER_JOURNAL", raising=False)
    restore(broker)
    assert status(*again, "--json") == 0
    (found,) = events(capsys)
    (order,) = broker.orders()
    assert (found["outcome"], found["order_id"]) == ("confirmed", order.order_id)
    assert rows(journal) == {"lost": SwapOutcome.CONFIRMED}
    assert broker.received().count("swap") == 1


def test_shown_command_looks_up_the_order_without_a_journal(
    broker: Broker, place: Path, no_patience: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with when_taken(lose_the_swap(broker)):
        assert status(*TRADE, "--yes", "--no-journal", "--client-order-id", "-lost") == 6
    again = check_unknown(capsys, "-lost")
    assert again == ["order", "--", "-lost"]
    assert not default_journal(place).exists()
    restore(broker)
    assert status(*again) == 0
    assert capsys.readouterr().out.startswith(broker.orders()[0].order_id)


def test_json_has_the_unknown_outcome_and_the_command(
    broker: Broker, no_patience: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with when_taken(lose_the_swap(broker)):
        assert status(*TRADE, "--yes", "--json") == 6
    printed_events = events(capsys)
    sent = next(event for event in printed_events if event["event"] == "swap")
    end = printed_events[-1]
    assert (end["event"], end["status"], end["outcome"]) == ("end", 6, "unknown")
    assert end["client_order_id"] == sent["client_order_id"]
    assert end["command"] == "trio-broker swaps --reconcile"
    assert (end["order_id"], end["order_status"]) == (None, None)


def test_silent_broker_leaves_the_outcome_unknown(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_default(monkeypatch, request_timeout=1.0, resolve_timeout=0.1)

    def mute(sandbox: Sandbox) -> None:
        sandbox.faults.swallow(op="swap")
        sandbox.faults.swallow(op="order_status")

    broker.do(mute)
    assert status(*TRADE, "--yes", "--client-order-id", "mute") == 6
    again = check_unknown(capsys, "mute")
    broker.do(lambda sandbox: sandbox.faults.clear())
    assert status(*again) == 0
    assert len(broker.orders()) == 1


def test_swap_resolved_after_an_outage_continues(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_default(monkeypatch, reconnect=ReconnectPolicy(initial_delay=0.01))

    def cut() -> None:
        broker.sandbox.faults.swallow(op="swap")
        broker.soon(broker.sandbox.faults.reset)

    with when_taken(cut):
        assert status(*TRADE, "--yes") == 0
    printed = capsys.readouterr()
    assert "Swapped 0.5 ETH for " in printed.out
    assert "No connection: " in printed.err
    assert "Connected again.\n" in printed.err
    assert broker.received().count("swap") == 1


def test_debug_keeps_the_status_of_an_unknown_outcome(
    broker: Broker, no_patience: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with when_taken(lose_the_swap(broker)):
        assert status(*TRADE, "--yes", "--debug", "--client-order-id", "lost") == 6
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "SwapOutcomeUnknownError" in error
    assert "trio-broker swaps --reconcile" in error


def test_earlier_unresolved_swaps_are_shown_first(
    broker: Broker, place: Path, no_patience: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        with when_taken(lose_the_swap(broker)):
            assert status(*TRADE, "--yes", "--client-order-id", name) == 6
        restore(broker)
        capsys.readouterr()
    assert status(*TRADE, "--yes", "--json") == 0
    printed = capsys.readouterr()
    first = json.loads(printed.out.splitlines()[0])
    assert first == {"event": "unresolved", "client_order_ids": ["first", "second"]}
    assert "the outcome of 2 earlier swaps of this account is unknown" in printed.err
    assert named_command(printed.err) == ["swaps", "--reconcile"]
    # A swap with the ID of an unresolved one is refused before anything is sent.
    assert status(*TRADE, "--yes", "--json", "--client-order-id", "first") == 1
    (end,) = events(capsys)
    assert (end["status"], end["outcome"]) == (1, "not sent")
    assert broker.received().count("swap") == 3


def test_used_client_order_id_is_refused(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TRADE, "--yes", "--client-order-id", "once") == 0
    capsys.readouterr()
    assert status(*TRADE, "--yes", "--json", "--client-order-id", "once") == 1
    end = events(capsys)[-1]
    assert (end["status"], end["outcome"]) == (1, "not sent")
    assert "its outcome: confirmed" in end["error"]
    assert broker.received().count("swap") == 1


# --- Swaps that the broker refuses, although it has an order for them -----------------------


@pytest.mark.parametrize(
    "error",
    ["Duplicate client order id", " DUPLICATE_REQUEST", {"code": 409, "message": "order exists"}],
)
def test_duplicate_that_the_broker_reports_exits_with_7_and_names_the_order(
    broker: Broker, capsys: pytest.CaptureFixture[str], error: Any
) -> None:
    broker.do(lambda sandbox: sandbox.faults.refuse(error, executed=True, op="swap"))
    assert status(*TRADE, "--yes", "--client-order-id", "first") == 7
    printed = capsys.readouterr().err
    first, *_ = broker.orders()
    assert "the broker knows the client order id first already" in printed
    assert f"has the order {first.order_id} (" in printed
    assert "don't swap again" in printed
    assert "nothing was sent" not in printed
    assert named_command(printed) == ["order", first.order_id, "--follow"]
    assert status(*TRADE, "--yes", "--json", "--client-order-id", "second") == 7
    end = events(capsys)[-1]
    _, second = broker.orders()
    assert (end["status"], end["outcome"]) == (7, "confirmed")
    assert end["order_id"] == second.order_id
    assert named_command(end["command"]) == ["order", second.order_id, "--follow"]
    assert f"has the order {second.order_id}" in end["error"]
    assert broker.received().count("swap") == 2


def test_receipt_that_follows_a_refusal_while_the_command_ends_exits_with_7(
    broker: Broker, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = BrokerWSClient.__aexit__

    async def leave_late(self: BrokerWSClient, *args: Any) -> None:
        with self.events() as corrections:
            while not isinstance(await corrections.receive(), SwapCorrected):
                pass
        await leave(self, *args)

    monkeypatch.setattr(BrokerWSClient, "__aexit__", leave_late)
    broker.do(
        lambda sandbox: sandbox.faults.refuse(
            "Insufficient balance", executed=True, reply_after=0.3, op="swap"
        )
    )
    assert status(*TRADE, "--yes", "--json", "--client-order-id", "mine") == 7
    end = events(capsys)[-1]
    (order,) = broker.orders()
    assert (end["outcome"], end["order_id"]) == ("confirmed", order.order_id)
    assert f"then it accepted the swap as order {order.order_id}" in end["error"]
    assert rows(default_journal(place)) == {"mine": SwapOutcome.CONFIRMED}


# --- Accepted swaps whose order isn't followed until it is final ----------------------------


def on_receipt(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Call a function when the receipt is printed."""
    print_receipt = swap_command.SwapReporter.receipt

    def receipt(self: Any, receipt: SwapReceipt) -> None:
        print_receipt(self, receipt)
        what()

    monkeypatch.setattr(swap_command.SwapReporter, "receipt", receipt)


def test_lost_connection_shows_the_order_to_follow(
    slow_broker: Broker,
    no_patience: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker = slow_broker
    on_receipt(monkeypatch, partial(broker.soon, broker.sandbox.faults.kill))
    assert status(*TRADE, "--yes", "--client-order-id", "mine", "--url", broker.url) == 4
    printed = capsys.readouterr()
    (order,) = broker.orders()
    assert f"was accepted as order {order.order_id} (client order id mine)" in printed.err
    assert "don't repeat the swap" in printed.err
    again = named_command(printed.err)
    assert again == ["order", order.order_id, "--follow", "--url", broker.url]


def test_bug_does_not_hide_an_accepted_swap(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    on_receipt(monkeypatch, fail)
    assert status(*TRADE, "--yes", "--json") == 4
    end = events(capsys)[-1]
    assert (end["status"], end["outcome"]) == (4, "confirmed")
    assert "a bug" in end["error"]
    assert end["order_id"] == slow_broker.orders()[0].order_id


# --- Ctrl-C ---------------------------------------------------------------------------------


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_ctrl_c_while_connecting_sends_nothing(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.do(lambda sandbox: sandbox.faults.ignore(op="auth"))
    connect = BrokerWSClient.connect

    async def interrupted(self: BrokerWSClient, nursery: trio.Nursery) -> None:
        interrupt()
        await connect(self, nursery)

    monkeypatch.setattr(BrokerWSClient, "connect", interrupted)
    assert status(*TRADE, "--yes") == 130
    assert capsys.readouterr().err == "interrupted; nothing was sent\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_during_a_swap_leaves_the_outcome_unknown(
    broker: Broker, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def mute_and_interrupt() -> None:
        broker.sandbox.faults.swallow(op="swap")
        interrupt(number)

    with when_taken(mute_and_interrupt):
        assert status(*TRADE, "--yes", "--client-order-id", "left") == 6
    again = check_unknown(capsys, "left")
    broker.do(lambda sandbox: sandbox.faults.clear())
    assert status(*again, "--json") == 0
    assert events(capsys)[0]["order_id"] == broker.orders()[0].order_id
    assert broker.received().count("swap") == 1


@pytest.mark.parametrize("least", [[], ["--min-out", "1"]], ids=["", "min-out"])
def test_ctrl_c_while_an_order_is_followed_shows_the_order(
    slow_broker: Broker,
    least: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    had_time = record_closings(monkeypatch)
    on_receipt(monkeypatch, interrupt)
    assert status(*TRADE, "--yes", "--client-order-id", "taken", *least) == 130
    printed = capsys.readouterr()
    (order,) = slow_broker.orders()
    last = printed.err.splitlines()[-1]
    assert last.startswith(
        f"interrupted; the swap was accepted as order {order.order_id} (client order id taken)"
    )
    assert named_command(last) == ["order", order.order_id, "--follow"]
    assert had_time == [True]


def test_second_ctrl_c_stops_the_closing(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_default(monkeypatch, close_timeout=PATIENCE)
    close = BrokerWSClient.aclose

    async def interrupted(self: BrokerWSClient) -> None:
        slow_broker.soon(slow_broker.sandbox.faults.go_silent)
        interrupt()
        await close(self)

    monkeypatch.setattr(BrokerWSClient, "aclose", interrupted)
    on_receipt(monkeypatch, interrupt)
    began = time.monotonic()
    assert status(*TRADE, "--yes") == 130
    assert time.monotonic() - began < PATIENCE / 2
    slow_broker.do(lambda sandbox: sandbox.faults.clear())
    assert "the swap was accepted as order " in capsys.readouterr().err


# --- On a terminal --------------------------------------------------------------------------


def test_answer_yes_sends_the_swap(broker: Broker) -> None:
    with Terminal(*TRADE) as terminal:
        shown = terminal.until("[y/N]: ")
        assert "swap" not in broker.received()
        assert f"SANDBOX: play money at {broker.url}" in shown
        assert f"USDT at {broker.host}, SANDBOX?" in shown.replace("\r\n", "")
        terminal.type("y\n")
        assert terminal.end() == 0
        assert "Swapped 0.5 ETH for " in terminal.shown
    assert len(broker.orders()) == 1


@pytest.mark.parametrize("answer", ["\n", "\x04"], ids=["enter", "^D"])
def test_other_answers_send_nothing(broker: Broker, answer: str) -> None:
    with Terminal(*TRADE) as terminal:
        terminal.until("[y/N]: ")
        terminal.type(answer)
        assert terminal.end() == 1
        assert terminal.shown.endswith("\r\nError: not confirmed; nothing was sent\r\n")
    assert "swap" not in broker.received()


def test_text_typed_before_the_question_is_discarded(broker: Broker) -> None:
    with Terminal(*TRADE) as terminal:
        terminal.type("y\n")
        terminal.until("[y/N]: ")
        terminal.type("n\n")
        assert terminal.end() == 1
    assert "nothing was sent" in terminal.shown
    assert "swap" not in broker.received()


def test_quiet_shows_the_estimate_with_the_question(broker: Broker) -> None:
    with Terminal(*TRADE, "--quiet") as terminal:
        shown = terminal.until("[y/N]: ")
        terminal.type("n\n")
        assert terminal.end() == 1
    assert "SANDBOX: play money" in shown
    assert "would bring" in shown


@pytest.mark.parametrize("lifetime", [dt.timedelta(seconds=30), dt.timedelta(seconds=-30), None])
def test_question_is_repeated_if_the_estimate_has_expired(
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lifetime: dt.timedelta | None,
) -> None:
    asked = []

    async def slow_yes(_: BrokerWSClient, question: str) -> bool:
        asked.append(question)
        clock.jump(40 if len(asked) == 1 else 0)
        await trio.lowlevel.checkpoint()
        return True

    clock = trio.testing.MockClock(rate=1.0)
    monkeypatch.setattr(swap_command, "confirm_while_connected", slow_yes)
    monkeypatch.setattr(swap_command, "check_can_confirm", lambda *_, **__: None)
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=clock))
    estimate_swap = BrokerWSClient.estimate_swap

    async def lasting(self: BrokerWSClient, *args: Any, **options: Any) -> SwapEstimate:
        estimate = await estimate_swap(self, *args, **options)
        ends = None if lifetime is None else dt.datetime.now(dt.UTC) + lifetime
        return attrs.evolve(estimate, expires_at=ends)

    monkeypatch.setattr(BrokerWSClient, "estimate_swap", lasting)
    assert status(*TRADE) == 0
    again = lifetime is not None and lifetime > dt.timedelta(0)
    assert len(asked) == (2 if again else 1)
    assert ("has expired; here is a new one" in capsys.readouterr().err) is again
    assert len(broker.orders()) == 1


def test_ctrl_c_at_the_question_sends_nothing(broker: Broker) -> None:
    with Terminal(*TRADE) as terminal:
        terminal.until("[y/N]: ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert terminal.shown.endswith("\r\ninterrupted; nothing was sent\r\n")
    assert "swap" not in broker.received()


def test_terminal_shows_the_progress_line(slow_broker: Broker) -> None:
    with Terminal(*TRADE, "--yes", "--no-journal", stdout=subprocess.PIPE) as terminal:
        terminal.until("is PENDING")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert terminal.process.stdout is not None
        results = terminal.process.stdout.read().decode()
    (order,) = slow_broker.orders()
    # The progress line is on the terminal and removed at the end; results are in the pipe.
    assert "\x1b[?25h" in terminal.shown.rsplit("is PENDING", 1)[1]
    assert f"Accepted as order {order.order_id}\n{order.order_id}  PENDING" in results
    assert "\x1b" not in results


# --- Closed pipes and full disks ------------------------------------------------------------


def test_closed_pipe_stops_the_swap_before_it_is_sent(broker: Broker) -> None:
    outside, inside = os.pipe()
    os.close(outside)
    ended = subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, *TRADE, "--yes"], stdout=inside, stderr=subprocess.PIPE, check=False
    )
    os.close(inside)
    assert ended.returncode == 1
    assert ended.stderr.decode() == f"SANDBOX: play money at {broker.url}\n"
    assert "swap" not in broker.received()


@contextmanager
def piped(*args: str, command: Sequence[str] = COMMAND) -> Iterator[Any]:
    with subprocess.Popen(  # noqa: S603 - our own command
        [*command, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["", "json"])
def test_pipe_closed_after_the_swap_keeps_the_status(slow_broker: Broker, form: list[str]) -> None:
    with piped(*TRADE, "--yes", "--quiet", *form) as process:
        while '"order"' not in (line := process.stdout.readline()) and "  PENDING" not in line:
            assert line
        process.stdout.close()
        (order,) = slow_broker.orders()
        for after, state in enumerate(("PROCESSING", "FILLED"), start=1):
            data = {"status": state, "updatedAt": order.updated_at + after}
            push = json.dumps({"ch": f"orders:{order.order_id}", "data": data})
            assert slow_broker.do(partial(Sandbox.push, text=push)) == 1
        errors = process.stderr.read()
        assert process.wait(PATIENCE) == 0
    assert errors == ""


@pytest.mark.usefixtures("no_patience")
def test_full_disk_does_not_change_the_status(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = click.echo

    def full(message: object = None, **options: Any) -> None:
        printed(message, **options)
        if '"receipt"' in str(message) or '"end"' in str(message):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(click, "echo", full)
    assert status(*TRADE, "--yes", "--json") == 0
    with when_taken(lose_the_swap(broker)):
        assert status(*TRADE, "--yes", "--json") == 6
    assert capsys.readouterr().out.count('"receipt"') == 1


def test_closed_pipe_keeps_the_status_of_an_unknown_outcome(broker: Broker) -> None:
    is_gone = threading.Event()

    def lose() -> None:
        lose_the_swap(broker)()
        is_gone.wait(PATIENCE)

    with (
        when_taken(lose),
        piped(*TRADE, "--yes", "--json", command=WITHOUT_RECONNECTING) as process,
    ):
        while '"swap"' not in process.stdout.readline():
            pass
        process.stdout.close()
        is_gone.set()
        errors = process.stderr.read()
        assert process.wait(PATIENCE) == 6
    assert "is unknown (" in errors
    assert errors.count("\n") == 1


# --- Shown texts ----------------------------------------------------------------------------


def test_control_characters_of_the_broker_are_escaped(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"op": "swap", "data": {"orderId": "\x1b[2J[red]", "status": "PENDING"}}
    slow_broker.do(lambda sandbox: sandbox.faults.replace(odd, op="swap"))
    on_receipt(monkeypatch, interrupt)
    assert status(*TRADE, "--yes") == 130
    printed = capsys.readouterr()
    assert "Accepted as order \\x1b[2J[red]\n" in printed.out
    assert "as order \\x1b[2J[red] (client" in printed.err
    assert "\x1b" not in printed.out + printed.err


def test_shown_command_repeats_the_given_flags(
    broker: Broker,
    place: Path,
    no_patience: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place / "keys").write_text("BROKER_API_KEY=test_key_1\nBROKER_SECRET_KEY=test_secret_1\n")
    for name in broker.variables:
        monkeypatch.delenv(name)
    given = ["--env-file", "keys", "--transport", "websockets", "--allow-insecure"]
    url = f"{broker.url}?token=secret"
    with when_taken(lose_the_swap(broker)):
        assert status(*TRADE, "--yes", "--url", url, *given) == 6
    printed = capsys.readouterr()
    assert "token=secret" not in printed.out + printed.err
    assert named_command(printed.err) == [
        "swaps", "--reconcile", "--url", f"{broker.url}?…", "--env-file", str(place / "keys"),
        "--transport", "websockets", "--allow-insecure",
    ]  # fmt: skip
