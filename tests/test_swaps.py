from __future__ import annotations

import time

import pytest

from trio_broker.exceptions import (
    BrokerError,
    ConnectionLostError,
    NotSentError,
    ProtocolError,
    RequestTimeoutError,
    server_error,
)
from trio_broker.request import Priority, Request
from trio_broker.swaps import (
    check_client_order_id,
    is_refusal,
    new_client_order_id,
    says_not_found,
)


def ended(*, named: bool = False, alone: bool = False) -> Request:
    request = Request("swap", Priority.SWAP, client_order_id="c1")
    request.was_sent, request.named, request.alone = True, named, alone
    return request


def refusal(text: str) -> BrokerError:
    return server_error("swap", text)


def test_ids_are_new_and_sort_by_the_time_they_were_made() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_client_order_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1000
    assert {len(one) for one in ids} == {37}
    moments = [one.split("-")[1] for one in ids]
    assert moments == sorted(moments)
    assert all(before <= int(moment) <= after for moment in moments)
    assert all(check_client_order_id(one) == one for one in ids)


def test_an_id_of_the_callers_has_up_to_64_characters() -> None:
    assert check_client_order_id("x" * 64) == "x" * 64
    with pytest.raises(ValueError, match="65 characters, and may have 64"):
        check_client_order_id("x" * 65)
    with pytest.raises(ValueError, match="client_order_id must not be empty"):
        check_client_order_id("")


NOT_ACCEPTED = [
    "Invalid signature",
    "Invalid API key",
    "Request timestamp outside allowed window",
    "Unknown operation: swap",
    "Not authenticated",
]
NONCE = "Nonce has already been used or is expired"


@pytest.mark.parametrize("text", [*NOT_ACCEPTED, "Insufficient balance", "anything"])
def test_an_error_that_names_the_operation_refuses(text: str) -> None:
    assert is_refusal(ended(named=True), refusal(text))


@pytest.mark.parametrize("text", NOT_ACCEPTED)
def test_a_message_that_was_not_accepted_was_not_executed(text: str) -> None:
    assert is_refusal(ended(alone=True), refusal(text))
    assert not is_refusal(ended(alone=False), refusal(text))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ended(alone=True), refusal("Insufficient balance")),
        (ended(), refusal("Invalid signature")),
        (ended(named=True, alone=True), refusal(NONCE)),
        (ended(alone=True), refusal(NONCE)),
        (ended(), ConnectionLostError("gone")),
        (ended(), RequestTimeoutError("late")),
        (ended(named=True, alone=True), ProtocolError("odd")),
    ],
)
def test_everything_else_refuses_nothing(request_: Request, error: BrokerError) -> None:
    assert not is_refusal(request_, error)


@pytest.mark.parametrize("text", ["Order not found", "ORDER_NOT_FOUND", "not_found: c1"])
def test_a_broker_that_does_not_know_an_order_says_so(text: str) -> None:
    assert says_not_found(server_error("order_status", text))


@pytest.mark.parametrize(
    "error", [None, server_error("order_status", "Rate limit exceeded"), NotSentError("not found")]
)
def test_no_other_end_of_a_lookup_says_so(error: BrokerError | None) -> None:
    assert not says_not_found(error)
