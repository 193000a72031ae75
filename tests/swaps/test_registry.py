from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import attrs
import pytest

from tests.engine_harness import TIMEOUT
from tests.swaps.harness import RESOLVE, START, SwapsHarness, intent
from trio_broker._protocol import requests
from trio_broker._protocol.requests import Purpose, Request
from trio_broker._protocol.session import ALONE_DELAY, HOLD_TIME
from trio_broker._protocol.trust import PATIENCE
from trio_broker._swaps import registry
from trio_broker._swaps.registry import MAX_WAIT, SIGNATURE_LIFETIME, Swap
from trio_broker.events import SwapCorrected, SwapResolved, SwapUnresolved
from trio_broker.exceptions import (
    ConnectionLostError,
    DuplicateClientOrderIdError,
    NotConnectedError,
    NotSentError,
    RequestTimeoutError,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.models import SwapOutcome, SwapReceipt

LOST = ConnectionLostError("the connection was cut")
SWAPPED = {"op": "swap", "data": {"orderId": "o1", "status": "PENDING"}}
REFUSED = {"op": "swap", "error": "Insufficient balance"}
FOUND = {"op": "order_status", "data": {"orderId": "o1", "status": "FILLED"}}
OTHER = {"op": "order_status", "data": {"orderId": "other", "status": "PENDING"}}
NOT_FOUND = {"op": "order_status", "error": "Order not found"}


def order(order_id: str, client_order_id: str) -> dict[str, Any]:
    data = {"orderId": order_id, "clientOrderId": client_order_id, "status": "FILLED"}
    return {"op": "order_status", "data": data}


@attrs.define(eq=False)
class NamedWaiter:
    """Records its name when it is woken."""

    name: str
    woken: list[str]

    def set(self) -> None:
        self.woken.append(self.name)


class RegistryHarness(SwapsHarness):
    """Swaps on a connection whose broker is the test."""

    def __init__(self, *, resolve_timeout: float = RESOLVE) -> None:
        super().__init__(resolve_timeout=resolve_timeout)
        self.sent: list[Request] = []
        self.woken: list[str] = []
        self.connect()

    @property
    def facts(self) -> list[tuple[str, SwapOutcome, str | None, str]]:
        """The outcomes that a journal would record."""
        return [
            (one.intent.client_order_id, one.outcome, one.order_id, one.detail)
            for one in self.swaps_ended
        ]

    def connect(self) -> None:
        self.engine.connected(requests.authentication(self.now + TIMEOUT), self.now)
        self.send()
        self.receive_json(op="auth", data={"status": "authenticated"})
        self.sent.clear()

    def reconnect(self) -> None:
        """Lose the connection, and authenticate on the next one."""
        self.lose(LOST)
        self.connect()

    def send(self) -> list[str]:
        """Send what may be sent now; returns the operations."""
        ops = []
        while (request := self.engine.next_to_send(self.now)) is not None:
            self.engine.mark_sent(request, "", self.now)
            self.sent.append(request)
            ops.append(request.op)
        return ops

    def until(self, now: float) -> None:
        """Let the time pass, and send what may be sent."""
        while (due := self.next_deadline) <= now:
            self.pass_time(max(0.0, due - self.now))
            self.send()
        self.now = now
        self.send()

    def swap(self, name: str = "c1", *, wait: bool = True) -> Swap:
        swap = self.enter(name)
        self.submit_swap(swap)
        if wait:
            self.wait(swap, name)
        return swap

    def wait(self, swap: Swap, name: str) -> NamedWaiter:
        waiter = NamedWaiter(name, self.woken)
        self.wait_for(swap, waiter)
        return waiter

    def swap_then_lose(self, name: str = "c1") -> Swap:
        """Start a swap, lose the connection, and look it up on the next one."""
        swap = self.swap(name)
        assert self.send() == ["swap"]
        self.reconnect()
        assert self.send() == ["order_status"]
        return swap

    def swap_then_time_out(self) -> Swap:
        """Start a swap without a reply, and look it up after its timeout."""
        swap = self.swap()
        self.send()
        self.until(TIMEOUT)
        assert isinstance(swap.error, RequestTimeoutError)
        assert [request.op for request in self.sent] == ["swap", "order_status"]
        return swap


@pytest.fixture
def harness() -> RegistryHarness:
    return RegistryHarness()


# --- The four ends ---------------------------------------------------------------------------


def test_receipt_confirms(harness: RegistryHarness) -> None:
    swap = harness.swap()
    assert harness.unresolved() == []
    harness.send()
    assert harness.unresolved() == ["c1"]
    assert harness.woken == []
    harness.receive_json(**SWAPPED)
    assert harness.woken == ["c1"]
    assert swap.result() == SwapReceipt("o1", swap.receipt.status, "c1")  # type: ignore[union-attr]
    assert harness.facts == [("c1", SwapOutcome.CONFIRMED, "o1", "")]
    assert harness.unresolved() == []
    assert harness.events == []  # its caller has the result
    assert harness.engine.order_ids.order_id("c1") == "o1"


def test_error_that_names_the_operation_refuses(harness: RegistryHarness) -> None:
    swap = harness.swap()
    harness.send()
    harness.receive_json(**REFUSED)
    assert harness.woken == ["c1"]
    for _ in range(2):
        with pytest.raises(ServerError, match="Insufficient balance") as caught:
            swap.result()
        assert caught.value is not swap.error
    cause = "the broker refused swap: Insufficient balance"
    assert harness.facts == [("c1", SwapOutcome.REFUSED, None, cause)]
    assert harness.unresolved() == []
    assert harness.engine.order_ids.order_id("c1") is None


def test_swap_that_waits_until_its_deadline_is_not_sent(harness: RegistryHarness) -> None:
    swap = harness.swap()
    harness.pass_time(TIMEOUT)
    assert harness.woken == ["c1"]
    with pytest.raises(NotSentError):
        swap.result()
    assert [(name, outcome) for name, outcome, *_ in harness.facts] == [
        ("c1", SwapOutcome.NOT_SENT)
    ]
    assert harness.swaps.find("c1") is None
    assert harness.engine.order_ids.by_name == {}
    harness.swap()  # its id is free


def test_swap_that_waits_when_the_connection_is_lost_is_not_sent(harness: RegistryHarness) -> None:
    swap = harness.swap()
    harness.lose(LOST)
    with pytest.raises(NotConnectedError):
        swap.result()


def test_swap_without_a_known_outcome_is_unknown(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    harness.until(RESOLVE - 0.1)
    assert harness.woken == []
    assert harness.unresolved() == ["c1"]
    harness.until(RESOLVE)
    assert harness.woken == ["c1"]
    with pytest.raises(SwapOutcomeUnknownError, match="was cut; lookup by") as caught:
        swap.result()
    assert caught.value.client_order_id == "c1"
    assert caught.value.__cause__ is LOST
    assert harness.unresolved() == ["c1"]
    assert harness.facts == []
    (event,) = harness.events
    assert isinstance(event, SwapUnresolved)
    assert event.client_order_id == "c1"
    assert event.reason == caught.value.reason
    assert event.at == START + dt.timedelta(seconds=RESOLVE)


@pytest.mark.parametrize(
    "reply",
    [
        {"op": "swap", "error": "Nonce has already been used or is expired"},
        {"error": "Internal server error"},
        {"error": "Timeout waiting for execution"},
        {"error": "504 Gateway Timeout"},
        {"error": "Invalid signature"},
        {"op": "swap", "data": {}},
    ],
)
def test_swap_with_an_inconclusive_reply_is_looked_up(
    reply: dict[str, Any], harness: RegistryHarness
) -> None:
    swap = harness.swap()
    harness.send()
    harness.receive_json(**reply)
    assert harness.woken == []
    assert harness.send() == ["order_status"]
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"


# --- Refusals with the same text -------------------------------------------------------------


def test_refusal_with_an_earlier_text_refuses_at_once(harness: RegistryHarness) -> None:
    harness.swap("c0")
    harness.send()
    harness.receive_json(**REFUSED)
    swap = harness.swap()
    harness.send()
    harness.receive_json(**REFUSED)
    assert harness.woken == ["c0", "c1"]
    assert harness.send() == []  # nothing is looked up
    with pytest.raises(ServerError, match="Insufficient"):
        swap.result()
    cause = "the broker refused swap: Insufficient balance"
    assert harness.facts[-1] == ("c1", SwapOutcome.REFUSED, None, cause)
    assert harness.unresolved() == []
    assert harness.events == []


def test_bare_refusal_with_an_earlier_text_refuses_at_once(
    harness: RegistryHarness,
) -> None:
    for name in ("c0", "c1"):
        harness.swap(name)
        harness.send()
        harness.receive_json(error="Insufficient balance")
    assert harness.woken == ["c0", "c1"]
    assert [outcome for _, outcome, *_ in harness.facts] == [SwapOutcome.REFUSED] * 2
    assert harness.send() == []


def test_late_refusal_with_an_earlier_text_refuses(harness: RegistryHarness) -> None:
    harness.swap("c0")
    harness.send()
    harness.receive_json(**REFUSED)
    swap = harness.swap()
    harness.send()
    harness.until(TIMEOUT)
    assert swap.outcome is SwapOutcome.UNKNOWN
    harness.receive_json(**REFUSED)
    assert harness.woken == ["c0", "c1"]
    with pytest.raises(ServerError, match="Insufficient"):
        swap.result()


def test_refusal_with_a_text_of_another_connection_refuses(
    harness: RegistryHarness,
) -> None:
    harness.swap("c0")
    harness.send()
    harness.receive_json(**REFUSED)
    harness.reconnect()
    harness.swap()
    harness.send()
    harness.receive_json(**REFUSED)
    assert harness.woken == ["c0", "c1"]
    assert [outcome for _, outcome, *_ in harness.facts] == [SwapOutcome.REFUSED] * 2


def test_unreadable_receipt_frees_the_lane(harness: RegistryHarness) -> None:
    first = harness.swap("c0")
    harness.send()
    harness.receive_json(op="swap", data={"orderId": {}, "status": "PENDING"})
    second = harness.swap()
    assert harness.send() == ["swap"]
    harness.receive_json(**REFUSED)
    with pytest.raises(ServerError, match="Insufficient"):
        second.result()
    assert harness.send() == ["order_status"]
    harness.receive_json(**FOUND)
    assert first.result().order_id == "o1"


# --- Replies of other swaps ------------------------------------------------------------------


def found_before_its_reply(harness: RegistryHarness) -> Swap:
    """A swap whose order a lookup has found, and whose reply is still owed."""
    swap = harness.swap_then_time_out()
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"
    return swap


@pytest.mark.parametrize("names", [{}, {"op": "swap"}])
def test_late_error_of_a_found_swap_does_not_refuse_the_next(
    names: dict[str, str], harness: RegistryHarness
) -> None:
    first = found_before_its_reply(harness)
    second = harness.swap("c2")
    assert harness.send() == ["swap"]
    harness.receive_json(error="Insufficient balance", **names)
    assert harness.woken == ["c1"]
    harness.until(harness.now + HOLD_TIME)
    assert second.outcome is SwapOutcome.UNKNOWN
    harness.receive_json(op="order_status", data={"orderId": "o2", "status": "FILLED"})
    assert second.result().order_id == "o2"
    assert first.result().order_id == "o1"


def test_late_error_and_own_receipt_are_told_apart(harness: RegistryHarness) -> None:
    found_before_its_reply(harness)
    second = harness.swap("c2")
    harness.send()
    harness.receive_json(op="swap", error="Insufficient balance")
    harness.receive_json(op="swap", data={"orderId": "o2"})
    assert second.result().order_id == "o2"
    assert harness.session.in_flight == 0


def test_late_receipt_and_own_refusal_are_told_apart(harness: RegistryHarness) -> None:
    found_before_its_reply(harness)
    second = harness.swap("c2")
    harness.send()
    harness.receive_json(op="swap", error="Insufficient balance")
    harness.receive_json(**SWAPPED)
    with pytest.raises(ServerError, match="Insufficient"):
        second.result()
    assert harness.session.in_flight == 0


def test_late_error_of_a_found_swap_changes_nothing(harness: RegistryHarness) -> None:
    swap = found_before_its_reply(harness)
    facts = list(harness.facts)
    harness.receive_json(**REFUSED)
    assert (swap.outcome, harness.facts) == (SwapOutcome.CONFIRMED, facts)
    assert harness.session.in_flight == 0


@pytest.mark.parametrize(
    "reply",
    [
        {"op": "swap", "error": "No route", "data": {"clientOrderId": "c0"}},
        {"op": "swap", "error": "No route", "data": {"orderId": "o1"}},
        {"error": "No route", "data": {"orderId": "o1"}},
        {"error": "No route", "data": {}, "clientOrderId": "c0"},
        {"op": "swap", "error": "No route", "orderId": "o1"},
        {"op": "swap", "clientOrderId": "c0", "data": {"orderId": "o2"}},
        {"op": "swap", "data": {"orderId": "o2", "clientOrderId": "c0"}},
        {"op": "swap", "data": {"orderId": "o2", "clientOrderId": "x"}},
        SWAPPED,
        {"error": "Unknown operation: estimate"},
    ],
)
def test_reply_that_names_something_else_is_not_a_swaps(
    reply: dict[str, Any], harness: RegistryHarness
) -> None:
    harness.swap("c0")
    harness.send()
    harness.receive_json(**SWAPPED)
    swap = harness.swap()
    harness.send()
    harness.receive_json(**reply)
    assert swap.outcome is SwapOutcome.UNDER_WAY
    assert harness.session.unexpected == 1
    harness.receive_json(op="swap", data={"orderId": "o3"})
    assert swap.result().order_id == "o3"


def test_swap_that_waited_for_its_lane_still_lets_reads_be_answered(
    harness: RegistryHarness,
) -> None:
    harness.swap_then_time_out()
    second = harness.swap("c2")
    harness.until(harness.now + 1.0)
    estimate = harness.submit(
        requests.estimate(requests.Trade(1, "ETH", "USDT"), None, harness.now + TIMEOUT)
    )
    assert harness.send() == ["estimate"]
    harness.receive_json(**order("o1", "c1"))
    assert harness.send() == []
    harness.receive_json(op="estimate", error="No route")
    assert "No route" in str(estimate.error)
    assert harness.send() == ["swap"]
    assert second.outcome is SwapOutcome.UNDER_WAY


def test_held_reply_to_a_lookup_is_not_a_swaps_receipt(harness: RegistryHarness) -> None:
    first = harness.swap_then_lose()
    harness.submit(requests.order_status("other", harness.now + 100))
    assert harness.send() == ["order_status"]
    second = harness.swap("c2")
    harness.until(harness.now + ALONE_DELAY)
    assert harness.session.in_flight == 3
    harness.receive_json(error="Internal error")
    harness.receive_json(**FOUND)
    harness.until(harness.now + HOLD_TIME)
    assert second.outcome is SwapOutcome.UNKNOWN
    harness.receive_json(**order("o1", "c1"))
    assert first.result().order_id == "o1"
    assert second.outcome is SwapOutcome.UNKNOWN


def test_swap_that_may_have_had_an_error_may_get_its_receipt_later(
    harness: RegistryHarness,
) -> None:
    first = harness.swap_then_time_out()
    harness.submit(requests.order_status("other", harness.now + 100))
    assert harness.send() == ["order_status"]
    harness.receive_json(error="Internal error")
    harness.receive_json(**FOUND)
    harness.receive_json(**NOT_FOUND)
    second = harness.swap("c2")
    while "swap" not in harness.send():
        harness.until(harness.next_deadline)
    harness.receive_json(**SWAPPED)
    assert second.outcome is SwapOutcome.UNKNOWN
    assert first.outcome is SwapOutcome.UNKNOWN


# --- Corrections -----------------------------------------------------------------------------


def refuse(harness: RegistryHarness, name: str) -> Swap:
    swap = harness.swap(name)
    harness.send()
    harness.receive_json(error="Insufficient balance")
    assert swap.outcome is SwapOutcome.REFUSED
    return swap


def corrections(harness: RegistryHarness) -> list[tuple[str, SwapOutcome, str | None]]:
    return [
        (one.client_order_id, one.outcome, one.receipt.order_id if one.receipt else None)
        for one in harness.events
        if isinstance(one, SwapCorrected)
    ]


def test_receipt_after_a_refusal_is_verified(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    assert harness.send() == ["swap"]
    harness.receive_json(**SWAPPED)
    assert swap.outcome is SwapOutcome.UNKNOWN
    assert harness.send() == ["order_status"]
    assert harness.sent[-1].order_id == "o1"
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "clientOrderId": "c1", "status": "PENDING"}
    )
    assert swap.result().order_id == "o1"
    assert corrections(harness) == []


def test_nothing_is_sent_beside_the_verification_of_a_receipt(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    read = harness.submit(requests.order_status("o9", harness.now + TIMEOUT))
    harness.receive_json(**SWAPPED)
    for order_id in ("o1", None):
        assert harness.send() == ["order_status"]
        assert harness.sent[-1].order_id == order_id
        harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"
    # Beside the lookups, this error could have been theirs, or the swap's.
    assert harness.send() == ["order_status"]
    harness.receive_json(error="Order not found")
    assert isinstance(read.error, ServerError)


def test_verification_waits_for_no_read_and_holds_reads_up_only_twice(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    harness.submit(requests.balances(harness.now + TIMEOUT))
    harness.send()
    swap = harness.swap()
    harness.until(harness.now + ALONE_DELAY)
    harness.receive_json(**SWAPPED)
    harness.submit(requests.order_status("o9", harness.now + TIMEOUT))
    for _ in range(2):
        assert harness.send() == ["order_status"]
        assert harness.sent[-1].purpose is Purpose.LOOKUP
        harness.receive_json(**NOT_FOUND)
    assert swap.is_pending
    assert harness.send() == ["order_status"]
    assert harness.sent[-1].order_id == "o9"


def test_verification_with_an_ambiguous_error_is_sent_again(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.receive_json(error="Order not found")  # or the swap's own error
    harness.until(harness.now + HOLD_TIME + ALONE_DELAY)
    assert [request.order_id for request in harness.sent[-2:]] == ["o1", "o1"]
    harness.receive_json(error="Order not found")
    harness.send()
    assert harness.sent[-1].client_order_id == "c1"


def test_verification_whose_reply_is_lost_does_not_hold_others_up_for_long(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    assert harness.send() == ["order_status"]
    harness.submit(requests.balances(harness.now + TIMEOUT))
    harness.until(harness.now + HOLD_TIME - 0.1)
    assert harness.sent[-1].op == "order_status"
    harness.until(harness.now + 0.1)
    assert harness.sent[-1].op == "balances"
    harness.receive_json(op="balances", data={"balances": []})
    harness.receive_json(**order("o1", "c1"))  # It was only late.
    assert swap.result().order_id == "o1"


@pytest.mark.parametrize("asked", ["o1", "c1"])
def test_lane_of_a_swap_that_another_lookup_finds_is_free(
    asked: str, harness: RegistryHarness
) -> None:
    lookup = harness.submit(requests.order_status(asked, harness.now + TIMEOUT))
    harness.send()
    swap = harness.swap()
    harness.until(harness.now + ALONE_DELAY)
    assert harness.sent[-1].op == "swap"
    harness.receive_json(**order("o1", "c1"))
    assert lookup.result.order_id == swap.result().order_id == "o1"
    read = harness.submit(requests.balances(harness.now + TIMEOUT))
    harness.swap("c2")
    assert harness.send() == ["swap"]
    harness.receive_json(op="swap", data={"orderId": "o2", "clientOrderId": "c2"})
    assert harness.send() == ["balances"]
    harness.receive_json(op="balances", data={"balances": []})
    assert read.result == ()
    harness.receive_json(op="swap", error="SWAP_ERROR: venue timed out")  # its late reply
    assert swap.result().order_id == "o1"
    assert harness.session.in_flight == 0


def test_order_that_is_found_by_a_refused_swaps_id_corrects_the_refusal(
    harness: RegistryHarness,
) -> None:
    swap = refuse(harness, "c0")
    harness.submit(requests.order_status("c0", harness.now + TIMEOUT))
    harness.send()
    harness.receive_json(**FOUND)  # which leaves the client order id out
    assert swap.result().order_id == "o1"
    assert corrections(harness) == [("c0", SwapOutcome.CONFIRMED, "o1")]


def test_verification_goes_on_after_a_reconnection(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    harness.reconnect()  # before the lookup was sent
    assert harness.send() == ["order_status"]
    harness.receive_json(**order("o1", "c1"))
    assert swap.result().order_id == "o1"


def test_receipt_after_a_refusal_that_was_corrected_needs_no_verification(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    harness.receive_json(op="swap", data={"orderId": "o0", "clientOrderId": "c0"})
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    assert swap.result().order_id == "o1"
    assert harness.send() == []


def test_receipt_with_its_client_order_id_needs_no_verification(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(op="swap", data={"orderId": "o1", "clientOrderId": "c1"})
    assert swap.result().order_id == "o1"
    assert harness.send() == []


def test_receipt_on_the_next_connection_needs_no_verification(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    harness.reconnect()
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    assert swap.result().order_id == "o1"


def test_receipt_of_the_refused_swap_is_not_the_next_ones(harness: RegistryHarness) -> None:
    first = refuse(harness, "c0")
    second = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "clientOrderId": "c0", "status": "PENDING"}
    )
    assert first.result().order_id == "o1"
    assert corrections(harness) == [("c0", SwapOutcome.CONFIRMED, "o1")]
    assert harness.facts[-1][:3] == ("c0", SwapOutcome.CONFIRMED, "o1")
    assert second.outcome is SwapOutcome.UNKNOWN
    assert harness.send() == ["order_status"]
    harness.receive_json(op="order_status", data={"orderId": "o2", "status": "PENDING"})
    assert second.result().order_id == "o2"
    assert harness.unresolved() == []


def test_receipt_without_client_order_id_is_verified_by_both_lookups(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    for order_id in ("o1", None):
        harness.send()
        assert harness.sent[-1].order_id == order_id
        assert swap.outcome is SwapOutcome.UNKNOWN
        harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"


def test_receipt_that_cannot_be_verified_leaves_the_outcome_unknown(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.receive_json(**FOUND)
    while swap.is_pending:
        harness.until(harness.next_deadline)
        harness.receive_json(**NOT_FOUND)
    with pytest.raises(SwapOutcomeUnknownError, match="order o1 may be another swap's"):
        swap.result()
    # The next connection knows no refusal.
    harness.until(harness.now + 5)
    assert len(harness.replaced) == 1


def test_refusal_replaces_the_connection_once_receipts_could_not_be_verified(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    while swap.is_pending:
        harness.until(harness.next_deadline)
        harness.receive_json(**NOT_FOUND)
    assert len(harness.replaced) == 1
    for count, name in enumerate(("c2", "c3"), start=2):
        harness.reconnect()
        refuse(harness, name)
        assert len(harness.replaced) == count  # at once, so that the next receipt is certain
    assert not any(one.is_attempt for one in harness.replacements)
    harness.reconnect()
    after = harness.swap("c4")
    harness.send()
    harness.receive_json(op="swap", data={"orderId": "o4"})
    assert after.result().order_id == "o4"


def test_connection_is_replaced_while_a_receipt_that_was_not_verified_is_looked_up(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    for _ in range(2):
        harness.send()
        harness.receive_json(**NOT_FOUND)
    assert harness.replaced == []  # the swap's own reply may still come
    harness.until(harness.now + PATIENCE)
    assert len(harness.replaced) == 1
    harness.reconnect()
    assert swap.is_pending
    harness.until(harness.now + 5)
    assert harness.sent[-1].client_order_id == "c1"
    harness.receive_json(**order("o1", "c1"))
    assert swap.result().order_id == "o1"
    refuse(harness, "c2")
    assert len(harness.replaced) == 1  # receipts can be verified after all


@pytest.mark.parametrize("order_id", ["ord€", "<x>", "a b&c", '"', "\\"])
def test_receipt_whose_order_id_cannot_be_sent_is_verified_by_the_client_order_id(
    order_id: str, harness: RegistryHarness
) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(op="swap", data={"orderId": order_id})
    assert harness.send() == ["order_status"]
    assert harness.sent[-1].client_order_id == "c1"
    harness.receive_json(**order(order_id, "c1"))
    assert swap.result().order_id == order_id


@pytest.mark.parametrize("order_id", ["ord€", "<x>"])
def test_unowed_receipt_whose_order_id_cannot_be_sent_makes_refusals_unknown(
    order_id: str, harness: RegistryHarness
) -> None:
    swap = refuse(harness, "c0")
    harness.receive_json(op="swap", data={"orderId": order_id})
    assert swap.outcome is SwapOutcome.UNKNOWN
    assert corrections(harness) == [("c0", SwapOutcome.UNKNOWN, None)]


@pytest.mark.parametrize("asked", ["o1", "c0"])
def test_order_of_a_refused_swap_corrects_the_refusal(asked: str, harness: RegistryHarness) -> None:
    swap = refuse(harness, "c0")
    harness.submit(requests.order_status(asked, harness.now + TIMEOUT))
    harness.send()
    harness.receive_json(**order("o1", "c0"))
    assert swap.result().order_id == "o1"
    assert corrections(harness) == [("c0", SwapOutcome.CONFIRMED, "o1")]


def receive_another_swaps_receipt(harness: RegistryHarness) -> tuple[Swap, Swap]:
    """A refused swap, and the next one, which gets a receipt that may be the first one's."""
    first, second = refuse(harness, "c0"), harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    assert harness.send() == ["order_status"]
    assert harness.sent[-1].order_id == "o1"
    return first, second


def test_close_ends_the_verification_of_a_receipt(harness: RegistryHarness) -> None:
    receive_another_swaps_receipt(harness)
    harness.close()
    assert harness.woken == ["c0", "c1"]
    assert {*harness.unresolved()} == {"c0", "c1"}
    assert harness.next_deadline == math.inf


def test_receipt_is_attributed_on_the_next_connection(harness: RegistryHarness) -> None:
    _, second = receive_another_swaps_receipt(harness)
    harness.reconnect()
    harness.send()
    harness.receive_json(**order("o2", "c1"))
    assert second.result().order_id == "o2"
    harness.send()
    assert harness.sent[-1].order_id == "o1"
    harness.receive_json(**FOUND)
    assert corrections(harness) == [("c0", SwapOutcome.UNKNOWN, None)]


def test_receipt_that_cannot_be_verified_makes_earlier_refusals_unknown(
    harness: RegistryHarness,
) -> None:
    first, second = receive_another_swaps_receipt(harness)
    harness.receive_json(**NOT_FOUND)
    while second.is_pending:
        harness.until(harness.next_deadline)
        harness.receive_json(**NOT_FOUND)
    assert corrections(harness) == [("c0", SwapOutcome.UNKNOWN, None)]
    assert first.outcome is SwapOutcome.UNKNOWN


def test_swap_with_an_unverified_receipt_is_still_owed_its_reply(harness: RegistryHarness) -> None:
    _, second = receive_another_swaps_receipt(harness)
    harness.receive_json(**order("o1", "c0"))
    third = harness.swap("c2")
    assert harness.send() == ["order_status"]
    harness.receive_json(**NOT_FOUND)
    harness.receive_json(op="swap", error="Insufficient balance")
    assert second.outcome is SwapOutcome.REFUSED
    assert third.outcome is SwapOutcome.UNDER_WAY
    assert harness.send() == ["swap"]


@pytest.mark.parametrize("answer", [order("o1", "c1"), FOUND])
def test_verified_receipt_pays_the_debt(answer: dict[str, Any], harness: RegistryHarness) -> None:
    _, second = receive_another_swaps_receipt(harness)
    while second.outcome is SwapOutcome.UNKNOWN:
        harness.receive_json(**answer)
        harness.send()
    assert second.result().order_id == "o1"
    assert harness.session.in_flight == 0
    refuse(harness, "c2")


def test_second_unverified_receipt_does_not_hide_the_first(harness: RegistryHarness) -> None:
    first = refuse(harness, "c9")
    _, second = receive_another_swaps_receipt(harness)
    harness.receive_json(op="swap", data={"orderId": "o2"})
    harness.receive_json(**NOT_FOUND)
    harness.send()
    harness.receive_json(**order("o1", "c9"))
    harness.until(harness.now + 1)
    harness.receive_json(**order("o2", "c1"))
    assert (first.result().order_id, second.result().order_id) == ("o1", "o2")


def test_receipt_of_a_settled_swap_is_not_the_next_ones() -> None:
    harness = RegistryHarness(resolve_timeout=1.0)
    settled = harness.swap("c0")
    harness.send()
    harness.receive_json(error="Internal error")
    harness.send()
    harness.receive_json(**NOT_FOUND)
    harness.until(harness.now + 1)
    harness.settle("c0", "it never arrived")
    swap = harness.swap()
    harness.until(harness.now + TIMEOUT - 1)
    harness.receive_json(**SWAPPED)
    assert swap.outcome is SwapOutcome.UNKNOWN
    harness.send()
    harness.receive_json(**order("o1", "c0"))
    assert settled.result().order_id == "o1"


def test_settled_swap_does_not_take_the_receipt_of_a_refused_one() -> None:
    harness = RegistryHarness(resolve_timeout=1.0)
    first = refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.until(harness.now + TIMEOUT)
    harness.receive_json(**NOT_FOUND)
    harness.until(harness.now + 1)
    harness.settle("c1", "it never arrived")
    harness.receive_json(**SWAPPED)
    assert swap.outcome is SwapOutcome.SETTLED
    harness.send()
    harness.receive_json(**order("o1", "c0"))
    assert first.result().order_id == "o1"
    assert swap.outcome is SwapOutcome.SETTLED


@pytest.mark.parametrize("is_late", [True, False])
def test_lookup_corrects_a_late_refusal(is_late: bool, harness: RegistryHarness) -> None:
    swap = harness.swap_then_time_out()
    if is_late:
        harness.until(harness.now + TIMEOUT)
    harness.receive_json(op="swap", error="Insufficient balance")
    assert swap.outcome is SwapOutcome.REFUSED
    harness.receive_json(**order("o1", "c1"))
    assert corrections(harness) == [("c1", SwapOutcome.CONFIRMED, "o1")]
    assert swap.result().order_id == "o1"


def test_lookup_that_finds_nothing_leaves_a_late_refusal(harness: RegistryHarness) -> None:
    swap = harness.swap_then_time_out()
    harness.receive_json(op="swap", error="Insufficient balance")
    harness.receive_json(**NOT_FOUND)
    assert swap.outcome is SwapOutcome.REFUSED
    assert harness.next_deadline == math.inf


def test_order_of_a_receipt_is_not_confused_with_another(harness: RegistryHarness) -> None:
    harness.submit(requests.order_status("x1", harness.now + TIMEOUT))
    harness.send()
    elsewhere = {"op": "order_status", "data": {"orderId": "x1", "status": "FILLED"}}
    harness.receive_json(**elsewhere)
    swap = refuse(harness, "c0")
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.receive_json(**elsewhere)
    assert corrections(harness) == []
    harness.receive_json(**order("o1", "c0"))
    assert swap.result().order_id == "o1"


def test_receipt_of_an_order_of_nobody_corrects_nothing(harness: RegistryHarness) -> None:
    harness.submit(requests.order_status("x1", harness.now + TIMEOUT))
    harness.send()
    harness.receive_json(op="order_status", data={"orderId": "x1", "status": "FILLED"})
    refuse(harness, "c0")
    harness.receive_json(op="swap", data={"orderId": "x1"})
    assert harness.send() == []
    assert corrections(harness) == []


def test_settled_swap_stays_settled_after_a_receipt_of_nobody() -> None:
    harness = RegistryHarness(resolve_timeout=1.0)
    _, swap = receive_another_swaps_receipt(harness)
    harness.receive_json(**NOT_FOUND)
    harness.until(harness.now + 1)
    harness.settle("c1", "it never arrived")
    harness.receive_json(op="swap", data={"orderId": "o2"})
    harness.until(harness.now + TIMEOUT)
    assert swap.outcome is SwapOutcome.SETTLED
    assert corrections(harness) == [("c0", SwapOutcome.UNKNOWN, None)]


def test_receipt_whose_owner_is_known_corrects_its_refusal(harness: RegistryHarness) -> None:
    swap = refuse(harness, "c0")
    harness.submit(requests.order_status("o1", harness.now + TIMEOUT))
    harness.send()
    harness.receive_json(**order("o1", "c0"))
    harness.receive_json(**SWAPPED)
    assert corrections(harness) == [("c0", SwapOutcome.CONFIRMED, "o1")]
    assert swap.result().order_id == "o1"


def test_receipt_that_names_a_stranger_makes_bare_errors_uncertain(
    harness: RegistryHarness,
) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(op="swap", data={"orderId": "o9", "clientOrderId": "stranger"})
    harness.receive_json(error="Insufficient balance")
    assert swap.outcome is SwapOutcome.UNKNOWN
    assert harness.send() == ["order_status"]


def test_receipt_of_a_subscribed_order_leaves_bare_errors_certain(
    harness: RegistryHarness,
) -> None:
    subscription = requests.subscription("subscribe", "orders:o9", harness.now + TIMEOUT)
    subscription.purpose = Purpose.USER
    harness.submit(subscription)
    harness.send()
    harness.receive_json(op="subscribe", ch="orders:o9", data={"status": "subscribed"})
    harness.receive_json(op="swap", data={"orderId": "o9", "clientOrderId": "stranger"})
    refuse(harness, "c0")


def test_receipt_does_not_bring_forgotten_swaps_back(
    harness: RegistryHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "REMEMBERED", 3)
    for number in range(5):
        refuse(harness, f"c{number}")
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.receive_json(**FOUND)
    assert [name for name, *_ in corrections(harness)] == ["c2", "c3", "c4"]


def test_connection_with_a_receipt_of_unknown_owner_is_replaced() -> None:
    harness = RegistryHarness(resolve_timeout=1.0)
    first, _ = receive_another_swaps_receipt(harness)
    harness.receive_json(op="swap", data={"orderId": "o7", "clientOrderId": "c0"})
    assert first.outcome is SwapOutcome.CONFIRMED
    harness.receive_json(**NOT_FOUND)
    harness.send()
    harness.receive_json(**NOT_FOUND)
    harness.until(harness.now + PATIENCE - 0.1)
    assert harness.replaced == []  # the swap's own reply may still come
    harness.until(harness.now + 0.1)
    assert len(harness.replaced) == 1


@pytest.mark.parametrize("status", ["PENDING", None])
def test_late_receipt_corrects_a_refusal(status: str | None, harness: RegistryHarness) -> None:
    swap = refuse(harness, "c0")
    data = {"orderId": "o1", "clientOrderId": "c0", "status": status}
    harness.receive_json(op="swap", data=data)
    assert corrections(harness) == [("c0", SwapOutcome.CONFIRMED, "o1")]
    assert [event.before for event in harness.events if isinstance(event, SwapCorrected)] == [
        SwapOutcome.REFUSED
    ]
    assert not any(isinstance(event, SwapResolved) for event in harness.events)
    assert swap.result().order_id == "o1"
    assert harness.facts[-1][:3] == ("c0", SwapOutcome.CONFIRMED, "o1")
    harness.receive_json(op="swap", data=data)
    assert len(corrections(harness)) == 1


def test_unowed_receipt_is_attributed_by_looking_its_order_up(harness: RegistryHarness) -> None:
    first, second = refuse(harness, "c0"), refuse(harness, "c1")
    harness.receive_json(**SWAPPED)
    assert harness.send() == ["order_status"]
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "clientOrderId": "c1", "status": "PENDING"}
    )
    assert corrections(harness) == [("c1", SwapOutcome.CONFIRMED, "o1")]
    assert second.result().order_id == "o1"
    assert first.outcome is SwapOutcome.REFUSED


@pytest.mark.parametrize("answer", [FOUND, NOT_FOUND, None])
def test_unowed_receipt_makes_every_refusal_of_the_connection_unknown(
    answer: dict[str, Any] | None, harness: RegistryHarness
) -> None:
    refuse(harness, "c9")
    harness.reconnect()
    swaps = [refuse(harness, name) for name in ("c0", "c1")]
    harness.receive_json(**SWAPPED)
    harness.send()
    if answer is None:
        harness.until(harness.now + TIMEOUT)
    else:
        harness.receive_json(**answer)
    assert corrections(harness) == [
        ("c0", SwapOutcome.UNKNOWN, None),
        ("c1", SwapOutcome.UNKNOWN, None),
    ]
    assert harness.unresolved() == ["c0", "c1"]
    assert [fact[:2] for fact in harness.facts[-2:]] == [
        ("c0", SwapOutcome.UNKNOWN),
        ("c1", SwapOutcome.UNKNOWN),
    ]
    harness.send()
    assert harness.sent[-1].client_order_id == "c0"
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "clientOrderId": "c0", "status": "FILLED"}
    )
    assert swaps[0].result().order_id == "o1"
    assert any(isinstance(event, SwapResolved) for event in harness.events)
    assert swaps[1].outcome is SwapOutcome.UNKNOWN


def test_unowed_receipt_starts_the_lookups_of_an_unknown_swap_again(
    harness: RegistryHarness,
) -> None:
    swap = harness.swap()
    harness.send()
    harness.receive_json(op="swap", error="Internal error")
    harness.send()
    harness.until(TIMEOUT - 1)
    harness.receive_json(**SWAPPED)
    harness.send()
    assert [request.order_id for request in harness.sent] == [None, None, "o1"]
    before = swap.lookups_end
    harness.receive_json(**FOUND)
    assert swap.lookups_end == before + TIMEOUT - 1
    harness.until(harness.now + TIMEOUT + 1)
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "clientOrderId": "c1", "status": "FILLED"}
    )
    assert swap.result().order_id == "o1"


def test_late_answer_about_an_unowed_receipt_doubts_nothing_more(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.until(harness.now + TIMEOUT)
    assert len(corrections(harness)) == 1
    harness.receive_json(**FOUND)
    assert len(corrections(harness)) == 1


def test_swap_that_cannot_be_verified_any_more_is_unknown(harness: RegistryHarness) -> None:
    refuse(harness, "c0")
    swap = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.close()
    assert swap.outcome is SwapOutcome.UNKNOWN
    assert harness.next_deadline == math.inf


def test_verification_that_finds_another_order_asks_whose_the_receipt_is(
    harness: RegistryHarness,
) -> None:
    first = refuse(harness, "c0")
    second = harness.swap()
    harness.send()
    harness.receive_json(**SWAPPED)
    harness.send()
    harness.receive_json(**FOUND)
    harness.send()
    harness.receive_json(op="order_status", data={"orderId": "o2", "status": "FILLED"})
    assert second.result().order_id == "o2"
    harness.send()
    assert harness.sent[-1].order_id == "o1"
    harness.receive_json(**FOUND)
    assert first.outcome is SwapOutcome.UNKNOWN


def test_late_refusal_of_a_settled_swap_changes_nothing(harness: RegistryHarness) -> None:
    harness.swap_then_time_out()
    harness.until(TIMEOUT + RESOLVE + 1)
    harness.settle("c1", "by hand")
    facts = [*harness.facts]
    harness.receive_json(**REFUSED)
    assert harness.facts == facts


def test_copy_of_a_receipt_corrects_nothing(harness: RegistryHarness) -> None:
    harness.swap("c0")
    harness.send()
    harness.receive_json(**SWAPPED)
    swap = refuse(harness, "c1")
    harness.receive_json(**SWAPPED)
    harness.receive_json(op="swap", data={"orderId": "o1", "clientOrderId": "c1"})
    assert harness.send() == []
    assert (swap.outcome, corrections(harness)) == (SwapOutcome.REFUSED, [])


def test_receipt_that_nothing_explains_replaces_the_connection(harness: RegistryHarness) -> None:
    harness.receive_json(**SWAPPED)
    assert len(harness.replaced) == 1


# --- Duplicates ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [{}, {"op": "swap"}])
def test_duplicate_with_an_order_names_that_order(
    names: dict[str, str], harness: RegistryHarness
) -> None:
    swap = harness.swap()
    harness.send()
    harness.receive_json(error=" DUPLICATE_REQUEST", **names)
    assert harness.woken == []
    harness.send()
    harness.receive_json(**FOUND)
    assert harness.woken == ["c1"]
    assert swap.duplicate is not None
    assert swap.duplicate.was_sent
    assert swap.duplicate.order is not None
    assert swap.duplicate.order.order_id == "o1"
    assert harness.facts[-1][:3] == ("c1", SwapOutcome.CONFIRMED, "o1")


def test_duplicate_without_an_order_is_unknown(harness: RegistryHarness) -> None:
    swap = harness.swap()
    harness.send()
    harness.receive_json(op="swap", error="Order already exists")
    while swap.is_pending:
        harness.until(harness.next_deadline)
        harness.receive_json(**NOT_FOUND)
    assert swap.outcome is SwapOutcome.UNKNOWN
    assert swap.duplicate is None


# --- The clocks ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-600, 600])
def test_wall_clock_that_is_set_does_not_change_what_may_execute(
    step: float, harness: RegistryHarness
) -> None:
    swap = harness.swap_then_time_out()
    at = harness.at + dt.timedelta(seconds=step)
    assert swap.describe(harness.now, at).may_still_execute
    end = MAX_WAIT + SIGNATURE_LIFETIME
    assert swap.describe(end - 0.1, at).may_still_execute
    assert not swap.describe(end, at).may_still_execute


def test_swap_is_looked_up_by_its_id_until_it_is_found(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    assert harness.sent[-1].body == '{"id":"c1"}'
    delays = []
    for _ in range(7):
        sent_at = harness.now
        harness.receive_json(**NOT_FOUND)
        assert harness.send() == []
        harness.until(harness.next_deadline)
        assert harness.sent[-1].op == "order_status"
        delays.append(harness.now - sent_at)
    assert delays == [0.25, 0.5, 1, 2, 4, 4, 4]
    assert harness.woken == []
    harness.receive_json(**FOUND)
    assert harness.woken == ["c1"]
    receipt = swap.result()
    assert (receipt.order_id, receipt.status, receipt.client_order_id) == ("o1", "FILLED", "c1")
    assert harness.facts == [("c1", SwapOutcome.CONFIRMED, "o1", "")]
    assert harness.unresolved() == []
    (event,) = harness.events
    assert isinstance(event, SwapResolved)
    assert (event.client_order_id, event.outcome, event.receipt, event.error) == (
        "c1",
        SwapOutcome.CONFIRMED,
        receipt,
        None,
    )


def test_not_found_never_refuses(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    while harness.woken == []:
        harness.receive_json(**NOT_FOUND)
        harness.until(min(RESOLVE, harness.next_deadline))
    with pytest.raises(SwapOutcomeUnknownError, match=r"lookup by its id: .*Order not found"):
        swap.result()
    assert harness.facts == []
    assert harness.unresolved() == ["c1"]


def test_lookup_without_a_reply_is_repeated_in_the_other_way(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    harness.until(TIMEOUT + 0.25)
    assert [request.op for request in harness.sent] == ["order_status"] * 2
    assert [request.order_id for request in harness.sent] == [None, "c1"]
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "clientOrderId": "c1", "status": "PENDING"}
    )
    assert swap.result().order_id == "o1"


def test_late_reply_to_a_lookup_confirms(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    harness.until(TIMEOUT + 0.1)
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"
    harness.until(3 * RESOLVE)
    assert len(harness.sent) == 1


def test_late_reply_to_a_lookup_after_the_end_changes_nothing(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    harness.until(TIMEOUT + 0.25)
    first, _ = harness.sent
    named = {"orderId": "o1", "clientOrderId": "c1", "status": "PENDING"}
    harness.receive_json(op="order_status", data=named)
    facts = list(harness.facts)
    harness.receive_json(**FOUND)
    assert first.result is not None
    assert harness.facts == facts
    assert swap.result().status == "PENDING"


def test_reply_that_names_no_order_confirms_nothing(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    harness.receive_json(op="order_status", data={"status": "FILLED"})
    assert harness.woken == []
    assert "names no order" in swap.reason


def test_order_of_another_swap_confirms_nothing(harness: RegistryHarness) -> None:
    harness.swap("c0")
    harness.send()
    harness.receive_json(**SWAPPED)
    swap = harness.swap_then_lose()
    harness.receive_json(**FOUND)
    assert harness.woken == ["c0"]
    assert harness.session.unexpected == 1
    harness.receive_json(op="order_status", data={"orderId": "o2", "status": "FILLED"})
    assert swap.result().order_id == "o2"


def test_order_that_names_another_swap_confirms_nothing(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose("12345")
    harness.until(TIMEOUT + 0.25)
    data = {"orderId": "12345", "clientOrderId": "somebody-else", "status": "FILLED"}
    harness.receive_json(op="order_status", data=data)
    assert swap.outcome is SwapOutcome.UNKNOWN
    del data["clientOrderId"]
    harness.until(TIMEOUT + 1)
    harness.receive_json(op="order_status", data=data)
    assert swap.outcome is SwapOutcome.UNKNOWN


def test_ambiguous_lookup_is_repeated_alone(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    read = harness.submit(requests.order_status("other", harness.now + 100))
    assert harness.send() == ["order_status"]
    for name in ("o1", "o3"):
        harness.receive_json(op="order_status", data={"orderId": name, "status": "FILLED"})
    assert swap.outcome is SwapOutcome.UNKNOWN
    assert harness.send() == ["order_status"]
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"
    assert harness.send() == ["order_status"]
    harness.receive_json(**OTHER)
    assert read.result.status == "PENDING"


def test_held_lookup_confirms_once_the_other_reply_has_come(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    harness.submit(requests.order_status("other", harness.now + 100))
    harness.send()
    harness.receive_json(**FOUND)
    assert swap.outcome is SwapOutcome.UNKNOWN
    other = {"orderId": "other", "clientOrderId": "c9", "status": "PENDING"}
    harness.receive_json(op="order_status", data=other)
    assert swap.result().order_id == "o1"


def test_lookups_go_on_after_an_outage(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    harness.lose(LOST)
    harness.until(1.0)
    harness.connect()
    harness.send()
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"


def test_lookups_on_the_next_connection_begin_with_the_client_order_id(
    harness: RegistryHarness,
) -> None:
    harness.swap_then_lose()
    harness.until(TIMEOUT + 0.25)
    assert harness.sent[-1].order_id == "c1"
    harness.reconnect()
    harness.until(harness.next_deadline)
    assert [request.order_id for request in harness.sent] == [None]


def test_once_the_signature_has_expired_one_answer_ends_the_lookups(
    harness: RegistryHarness,
) -> None:
    swap = harness.swap_then_lose()
    harness.until(RESOLVE)
    assert swap.may_have_been_sent
    harness.now = MAX_WAIT + SIGNATURE_LIFETIME - 0.1
    assert swap.describe(harness.now, harness.at).may_still_execute
    harness.now = MAX_WAIT + SIGNATURE_LIFETIME
    assert not swap.describe(harness.now, harness.at).may_still_execute
    harness.reconnect()
    harness.woken.clear()
    assert harness.look_up("c1") is swap
    harness.wait(swap, "asked")
    harness.send()
    harness.receive_json(op="order_status", error="Rate limit exceeded")
    assert harness.woken == []  # this is no outcome
    harness.until(harness.next_deadline)
    harness.receive_json(op="order_status", error="ORDER_NOT_FOUND")
    assert harness.woken == ["asked"]
    assert harness.unresolved() == ["c1"]
    assert len([one for one in harness.events if isinstance(one, SwapUnresolved)]) == 1


def test_unknown_id_is_looked_up_too(harness: RegistryHarness) -> None:
    swap = harness.look_up("from-elsewhere")
    assert harness.unresolved() == []
    harness.send()
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"
    assert harness.facts == []
    assert harness.events == []
    with pytest.raises(DuplicateClientOrderIdError):
        harness.swap("from-elsewhere")


def test_unknown_id_that_is_not_found_leaves_nothing(harness: RegistryHarness) -> None:
    swap = harness.look_up("from-elsewhere")
    harness.wait(swap, "asked")
    harness.send()
    harness.until(4 * RESOLVE)
    assert harness.woken == ["asked"]
    with pytest.raises(SwapOutcomeUnknownError, match=r"\(lookup by its id: the broker didn't"):
        swap.result()
    assert harness.events == []
    assert harness.unresolved() == []
    assert harness.swaps.find("from-elsewhere") is None


def test_unknown_id_may_be_an_orders_own(harness: RegistryHarness) -> None:
    swap = harness.look_up("o7")
    harness.send()
    harness.receive_json(op="order_status", data={"orderId": "o7", "status": "FILLED"})
    assert swap.result().order_id == "o7"


def test_swap_under_an_id_that_is_looked_up_is_kept_apart(harness: RegistryHarness) -> None:
    swap_again = harness.look_up("c1")
    harness.send()
    swap = harness.swap()
    harness.receive_json(**FOUND)
    assert swap_again.outcome is SwapOutcome.CONFIRMED
    harness.send()
    assert harness.unresolved() == ["c1"]
    harness.receive_json(**SWAPPED)
    assert swap.result().order_id == "o1"


def test_swap_resolved_twice_is_looked_up_once(harness: RegistryHarness) -> None:
    harness.swap_then_lose()
    harness.look_up("c1")
    assert harness.send() == []
    harness.receive_json(**NOT_FOUND)
    harness.look_up("c1")
    assert harness.send() == ["order_status"]
    harness.until(harness.next_deadline)
    assert len(harness.sent) == 2


def test_swap_may_be_looked_up_thousands_of_times() -> None:
    harness = RegistryHarness(resolve_timeout=math.inf)
    swap = harness.swap_then_lose()
    for _ in range(1100):
        harness.receive_json(op="order_status", error="Internal error")
        harness.until(harness.next_deadline)
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"


# --- Waiters ---------------------------------------------------------------------------------


def test_swap_that_has_ended_is_not_looked_up(harness: RegistryHarness) -> None:
    swap = harness.swap()
    assert harness.look_up("c1") is swap  # under way: its reply is expected
    harness.send()
    harness.receive_json(**SWAPPED)
    assert harness.look_up("c1") is swap
    assert harness.send() == []
    harness.wait(swap, "at once")
    assert harness.woken == ["c1", "at once"]


def test_waiter_that_was_removed_is_not_woken(harness: RegistryHarness) -> None:
    swap = harness.swap()
    waiter = harness.wait(swap, "removed")
    swap.waiters.remove(waiter)
    harness.send()
    harness.receive_json(**SWAPPED)
    assert harness.woken == ["c1"]


# --- Late replies ----------------------------------------------------------------------------


def test_late_receipt_confirms(harness: RegistryHarness) -> None:
    swap = harness.swap_then_time_out()
    harness.receive_json(**SWAPPED)
    assert swap.result().order_id == "o1"
    assert isinstance(harness.events[0], SwapResolved)
    harness.receive_json(**NOT_FOUND)  # the lookup, which no longer matters
    assert harness.facts == [("c1", SwapOutcome.CONFIRMED, "o1", "")]
    assert harness.next_deadline == math.inf


def test_late_refusal_refuses(harness: RegistryHarness) -> None:
    swap = harness.swap_then_time_out()
    harness.receive_json(**REFUSED)
    with pytest.raises(ServerError, match="Insufficient"):
        swap.result()
    (event,) = harness.events
    assert isinstance(event, SwapResolved)
    assert event.outcome is SwapOutcome.REFUSED
    assert event.error is swap.error
    assert event.receipt is None


def test_late_inconclusive_error_changes_nothing(harness: RegistryHarness) -> None:
    swap = harness.swap_then_time_out()
    harness.receive_json(op="swap", error="Nonce has already been used or is expired")
    assert swap.outcome is SwapOutcome.UNKNOWN
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"


def test_late_refusal_of_a_swap_that_was_found_changes_nothing(harness: RegistryHarness) -> None:
    swap = harness.swap_then_time_out()
    harness.receive_json(**FOUND)
    harness.receive_json(**REFUSED)
    assert swap.result().order_id == "o1"


# --- Cancelled callers -----------------------------------------------------------------------


def test_waiting_swap_of_a_cancelled_caller_is_not_sent(harness: RegistryHarness) -> None:
    swap = harness.swap()
    harness.abandon(swap, "given up")
    assert harness.send() == []
    assert harness.facts == [("c1", SwapOutcome.NOT_SENT, None, "given up")]
    harness.swap()


def test_unsubmitted_swap_ends_as_not_sent(harness: RegistryHarness) -> None:
    swap = harness.enter()
    with pytest.raises(DuplicateClientOrderIdError) as caught:
        harness.swap()
    assert caught.value.outcome is SwapOutcome.UNDER_WAY
    assert harness.unresolved() == []
    harness.abandon(swap, "the disk is full")
    harness.abandon(swap, "twice")
    assert harness.facts == [("c1", SwapOutcome.NOT_SENT, None, "the disk is full")]
    harness.swap()


def test_sent_swap_goes_on_and_an_event_reports_its_end(harness: RegistryHarness) -> None:
    swap = harness.swap(wait=False)
    harness.send()
    harness.abandon(swap, "given up")
    (unresolved,) = harness.swaps.unresolved()
    described = unresolved.describe(harness.now, harness.at)
    assert (
        described.client_order_id,
        described.amount_in,
        described.asset_in,
        described.asset_out,
        described.at,
    ) == (
        "c1",
        Decimal(1),
        "ETH",
        "USDT",
        START,
    )
    assert (described.outcome, described.may_still_execute) == (SwapOutcome.UNDER_WAY, True)
    assert described.reason == "its reply hasn't come"
    harness.receive_json(**SWAPPED)
    (event,) = harness.events
    assert isinstance(event, SwapResolved)
    assert event.receipt == swap.result()
    assert harness.unresolved() == []


def test_event_reports_the_end_even_if_another_task_waits(harness: RegistryHarness) -> None:
    swap = harness.swap()
    harness.send()
    harness.abandon(swap, "given up")
    harness.receive_json(**SWAPPED)
    assert harness.woken == ["c1"]
    assert [type(event) for event in harness.events] == [SwapResolved]


# --- Ids -------------------------------------------------------------------------------------


def test_id_of_a_possibly_sent_swap_is_rejected_with_its_outcome(harness: RegistryHarness) -> None:
    outcomes = []

    def again() -> None:
        with pytest.raises(DuplicateClientOrderIdError) as caught:
            harness.swap()
        outcomes.append(caught.value.outcome)

    harness.swap_then_lose()
    again()
    harness.until(RESOLVE)
    harness.reconnect()
    harness.settle("c1", "the statement has it")
    again()
    assert outcomes == [SwapOutcome.UNKNOWN, SwapOutcome.SETTLED]
    harness.swap("c2")
    harness.send()
    harness.receive_json(**REFUSED)
    with pytest.raises(DuplicateClientOrderIdError, match="refused"):
        harness.swap("c2")


def test_memory_of_ends_is_bounded_but_unresolved_swaps_are_kept(
    harness: RegistryHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.REMEMBERED == 10_000
    monkeypatch.setattr(registry, "REMEMBERED", 100)
    harness.swap_then_lose("unknown")
    harness.until(RESOLVE)
    harness.reconnect()
    for number in range(101):
        harness.swap(f"c{number}", wait=False)
        harness.send()
        harness.receive_json(op="swap", data={"orderId": f"order{number}"})
    assert harness.swaps.find("c0") is None
    assert harness.swaps.find("c1") is not None
    assert harness.unresolved() == ["unknown"]


# --- By hand, and after a crash --------------------------------------------------------------


def test_settled_swap_is_resolved_and_noted(harness: RegistryHarness) -> None:
    swap = harness.swap_then_lose()
    with pytest.raises(ValueError, match="c1 is being looked up"):
        harness.settle("c1", "?")
    harness.until(RESOLVE)
    harness.settle("c1", "the statement has it")
    assert harness.facts == [("c1", SwapOutcome.SETTLED, None, "the statement has it")]
    assert harness.unresolved() == []
    with pytest.raises(SwapOutcomeUnknownError, match="the statement has it"):
        swap.result()
    with pytest.raises(ValueError, match="no unresolved swap has the client order id c1"):
        harness.settle("c1", "again")


@pytest.mark.parametrize("late", [SWAPPED, FOUND])
def test_late_receipt_corrects_a_swap_that_was_settled(late: dict[str, Any]) -> None:
    harness = RegistryHarness(resolve_timeout=1.0)
    swap = harness.swap_then_time_out()
    harness.until(TIMEOUT + 1)
    harness.settle("c1", "it never arrived")
    harness.receive_json(**({"op": "swap", "error": "Nope"} if late is FOUND else NOT_FOUND))
    assert swap.outcome is SwapOutcome.SETTLED
    harness.receive_json(**late)
    assert swap.result().order_id == "o1"
    assert isinstance(harness.events[-1], SwapResolved)
    assert harness.facts == [
        ("c1", SwapOutcome.SETTLED, None, "it never arrived"),
        ("c1", SwapOutcome.CONFIRMED, "o1", "closed by hand before: it never arrived"),
    ]
    assert harness.unresolved() == []


def test_late_refusal_does_not_undo_a_confirmation_after_a_settlement() -> None:
    harness = RegistryHarness(resolve_timeout=1.0)
    swap = harness.swap_then_time_out()
    harness.until(TIMEOUT + 1)
    harness.settle("c1", "it never arrived")
    harness.receive_json(**FOUND)
    assert swap.outcome is SwapOutcome.CONFIRMED
    harness.receive_json(op="swap", error="Insufficient balance")
    assert swap.result().order_id == "o1"
    assert harness.facts[-1][1] is SwapOutcome.CONFIRMED


def test_swap_that_was_not_sent_cannot_be_settled(harness: RegistryHarness) -> None:
    harness.swap()
    with pytest.raises(ValueError, match="no unresolved swap"):
        harness.settle("c1", "?")


def left(client_order_id: str, at: dt.datetime = START) -> Swap:
    """A swap that an earlier process left unresolved."""
    return Swap(intent(client_order_id, at), outcome=SwapOutcome.UNKNOWN, cause="the process ended")


def test_swap_of_an_earlier_process_is_unresolved_until_its_lookup(
    harness: RegistryHarness,
) -> None:
    early = START - dt.timedelta(days=1)
    harness.swaps.load([left("c0", early)])
    (unresolved,) = harness.swaps.unresolved()
    described = unresolved.describe(harness.now, harness.at)
    assert (described.client_order_id, described.outcome) == ("c0", SwapOutcome.UNKNOWN)
    assert (described.reason, described.may_still_execute) == ("the process ended", False)
    assert harness.send() == []
    with pytest.raises(DuplicateClientOrderIdError):
        harness.swap("c0")
    swap = harness.look_up("c0")
    harness.send()
    harness.receive_json(**FOUND)
    assert swap.result().order_id == "o1"
    assert harness.facts == [("c0", SwapOutcome.CONFIRMED, "o1", "")]


def test_swap_of_an_earlier_process_is_not_reported_as_unresolved_again(
    harness: RegistryHarness,
) -> None:
    harness.swaps.load([left("c0")])
    swap = harness.look_up("c0")
    harness.until(2 * RESOLVE)
    assert not swap.is_pending
    assert harness.unresolved() == ["c0"]
    assert harness.events == []


# --- The end of the client -------------------------------------------------------------------


@pytest.mark.parametrize("sent", [False, True])
def test_close_ends_a_swap_under_way(sent: bool, harness: RegistryHarness) -> None:
    swap = harness.swap()
    if sent:
        harness.send()
    harness.close()
    assert harness.woken == ["c1"]
    with pytest.raises(SwapOutcomeUnknownError if sent else NotConnectedError):
        swap.result()
    assert [type(event) for event in harness.events] == [SwapUnresolved] * sent
    assert harness.unresolved() == ["c1"] * sent


@pytest.mark.parametrize("between", [False, True])
def test_close_ends_the_lookups(between: bool, harness: RegistryHarness) -> None:
    harness.swap_then_lose()
    if between:
        harness.receive_json(**NOT_FOUND)
    harness.close()
    assert harness.woken == ["c1"]
    assert [type(event) for event in harness.events] == [SwapUnresolved]
    assert harness.unresolved() == ["c1"]
    assert harness.next_deadline == math.inf
    swap = harness.look_up("c1")  # there is no connection
    harness.wait(swap, "asked")
    assert harness.woken == ["c1", "asked"]


def test_close_ends_the_lookup_of_an_unknown_id(harness: RegistryHarness) -> None:
    swap = harness.look_up("nobodys")
    harness.wait(swap, "asked")
    harness.send()
    harness.receive_json(**NOT_FOUND)
    harness.close()
    assert harness.woken == ["asked"]


def test_close_ends_a_swap_that_was_not_submitted_as_not_sent(harness: RegistryHarness) -> None:
    harness.enter()
    harness.close()
    assert harness.facts == [("c1", SwapOutcome.NOT_SENT, None, "closed")]


def test_close_does_not_report_an_unresolved_swap_again(harness: RegistryHarness) -> None:
    harness.swap_then_lose()
    harness.until(RESOLVE)
    harness.swaps.load([left("c0")])
    harness.close()
    assert [type(event) for event in harness.events] == [SwapUnresolved]
