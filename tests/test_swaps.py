from __future__ import annotations

import time

import pytest

from trio_broker.exceptions import (
    BrokerError,
    ConnectionLostError,
    NotConnectedError,
    NotSentError,
    ProtocolError,
    RequestTimeoutError,
    SwapOutcomeUnknownError,
    server_error,
)
from trio_broker.models import SwapReceipt
from trio_broker.request import Priority, Request
from trio_broker.swaps import check_client_order_id, is_refusal, new_client_order_id, outcome


def ended(
    error: BrokerError | None = None,
    *,
    sent: bool = True,
    named: bool = False,
    alone: bool = False,
) -> Request:
    request = Request("swap", Priority.SWAP, client_order_id="c1")
    request.was_sent, request.named, request.alone = sent, named, alone
    request.error = error
    if error is None:
        request.result = SwapReceipt("o1", None, "c1")
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


def test_a_reply_confirms() -> None:
    assert outcome(ended()).order_id == "o1"


@pytest.mark.parametrize("error", [NotSentError("no turn"), NotConnectedError("no line")])
def test_what_was_not_sent_may_be_repeated(error: BrokerError) -> None:
    with pytest.raises(type(error)) as caught:
        outcome(ended(error, sent=False))
    assert caught.value is not error


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
    error = refusal(text)
    with pytest.raises(type(error), match=text):
        outcome(ended(error, named=True))


@pytest.mark.parametrize("text", NOT_ACCEPTED)
def test_a_message_that_was_not_accepted_was_not_executed(text: str) -> None:
    assert is_refusal(ended(alone=True), refusal(text))
    assert not is_refusal(ended(alone=False), refusal(text))


@pytest.mark.parametrize(
    "request_",
    [
        ended(refusal("Insufficient balance"), alone=True),
        ended(refusal("Invalid signature")),
        ended(refusal(NONCE), named=True, alone=True),
        ended(refusal(NONCE), alone=True),
        ended(ConnectionLostError("gone")),
        ended(RequestTimeoutError("late")),
        ended(ProtocolError("odd"), named=True, alone=True),
    ],
    ids=lambda request: str(request.error),
)
def test_everything_else_is_unknown(request_: Request) -> None:
    with pytest.raises(SwapOutcomeUnknownError) as caught:
        outcome(request_)
    assert caught.value.client_order_id == "c1"
    assert caught.value.reason == str(request_.error)
    assert caught.value.__cause__ is request_.error
