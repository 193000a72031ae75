"""The result of a swap command."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_broker import (
    ClientClosedError,
    DuplicateClientOrderIdError,
    OrderStatus,
    ServerError,
    SwapOutcome,
    SwapOutcomeUnknownError,
    SwapReceipt,
    UnresolvedSwap,
)
from trio_broker.cli.errors import Status
from trio_broker.cli.trading.next_commands import NextCommands
from trio_broker.cli.trading.swap_result import SwapResult, find_result, verdict_on

AT = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
COMMANDS = NextCommands(Path("/swaps"), ["--url", "wss://broker.example"])
RECEIPT = SwapReceipt("ord_1", OrderStatus.PENDING, "mine")


class ClosedClient:
    """The part of a closed client that `find_result` uses."""

    def __init__(self, outcome: SwapReceipt | Exception, *unresolved: str) -> None:
        self._outcome = outcome
        self._unresolved = unresolved

    def unresolved_swaps(self) -> tuple[UnresolvedSwap, ...]:
        return tuple(
            UnresolvedSwap(
                client_order_id=name, amount_in=Decimal(1), asset_in="ETH", asset_out="USDT",
                at=AT, outcome=SwapOutcome.UNKNOWN, reason="lost", may_still_execute=True,
            )
            for name in self._unresolved
        )  # fmt: skip

    async def resolve_swap(self, client_order_id: str) -> SwapReceipt:
        await trio.lowlevel.checkpoint()
        assert client_order_id == "mine"
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@pytest.mark.parametrize(
    ("client", "error", "outcome"),
    [
        (ClosedClient(RECEIPT), None, SwapOutcome.CONFIRMED),
        (ClosedClient(RECEIPT), SwapOutcomeUnknownError("mine", "then"), SwapOutcome.CONFIRMED),
        (ClosedClient(RECEIPT, "mine"), None, SwapOutcome.UNKNOWN),
        (ClosedClient(ServerError("swap", "no")), None, SwapOutcome.REFUSED),
        (ClosedClient(ClientClosedError("closed"), "another"), None, SwapOutcome.NOT_SENT),
        (ClosedClient(ValueError("no id")), ValueError("no id"), SwapOutcome.NOT_SENT),
        (
            ClosedClient(RECEIPT, "mine"),
            DuplicateClientOrderIdError("mine", "unknown"),
            SwapOutcome.NOT_SENT,
        ),
        (
            ClosedClient(RECEIPT),
            DuplicateClientOrderIdError("mine", "confirmed", was_sent=True),
            SwapOutcome.CONFIRMED,
        ),
        (ClosedClient(RECEIPT), ServerError("swap", "no"), SwapOutcome.CONFIRMED),
        (ClosedClient(RECEIPT, "mine"), ServerError("swap", "no"), SwapOutcome.UNKNOWN),
    ],
)
async def test_outcome_is_read_from_the_client_and_not_from_the_error(
    client: Any, error: Exception | None, outcome: SwapOutcome
) -> None:
    result = await find_result(client, "mine", None, error, was_requested=True)
    assert result.outcome is outcome
    assert result.receipt == (RECEIPT if outcome is SwapOutcome.CONFIRMED else None)


async def test_earlier_swap_with_the_same_id_is_ignored() -> None:
    client: Any = ClosedClient(RECEIPT, "mine")
    result = await find_result(client, "mine", None, OSError("no"), was_requested=False)
    assert result.outcome is SwapOutcome.NOT_SENT


def test_swap_that_was_refused_and_then_executed_has_a_status_of_its_own() -> None:
    result = SwapResult(
        client_order_id="mine", outcome=SwapOutcome.CONFIRMED, receipt=RECEIPT,
        error=ServerError("swap", "Insufficient balance"),
    )  # fmt: skip
    verdict = verdict_on(result, COMMANDS)
    assert verdict.status == 7
    assert verdict.text == (
        "the broker refused swap: Insufficient balance, but then it accepted the swap as order "
        f"ord_1: don't repeat it; to follow the order, run: {verdict.command}"
    )
    assert verdict.command == "trio-broker order ord_1 --follow --url wss://broker.example"


def test_refusal_of_something_else_after_the_receipt_is_no_contradiction() -> None:
    result = SwapResult(
        client_order_id="mine", outcome=SwapOutcome.CONFIRMED, receipt=RECEIPT,
        error=ServerError("subscribe", "Invalid channel"),
    )  # fmt: skip
    verdict = verdict_on(result, COMMANDS)
    assert verdict.status is Status.CONNECTION
    assert "can't be followed" in str(verdict.text)


def test_refusal_received_after_ctrl_c_is_shown() -> None:
    result = SwapResult(
        client_order_id="mine", outcome=SwapOutcome.REFUSED, reason="the broker refused swap: no"
    )
    verdict = verdict_on(result, COMMANDS)
    assert verdict.status is Status.INTERRUPTED
    assert verdict.text == "interrupted; the broker refused swap: no: nothing was executed"
