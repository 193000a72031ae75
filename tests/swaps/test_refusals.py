from __future__ import annotations

import pytest

from trio_broker._protocol.requests import Priority, Request
from trio_broker._swaps.refusals import is_refusal, says_not_found
from trio_broker.exceptions import (
    BrokerError,
    ConnectionLostError,
    NotSentError,
    ProtocolError,
    RequestTimeoutError,
    server_error,
)

NOT_ACCEPTED = [
    "Invalid signature",
    "Invalid API key",
    "Request timestamp outside allowed window",
    "Unknown operation: swap",
    "Not authenticated",
]
NONCE = "Nonce has already been used or is expired"


def ended(*, names_op: bool = False, was_alone: bool = False) -> Request:
    request = Request("swap", Priority.SWAP, client_order_id="c1")
    request.was_sent, request.names_op, request.was_alone = True, names_op, was_alone
    return request


def refusal(text: str) -> BrokerError:
    return server_error("swap", text)


@pytest.mark.parametrize("text", [*NOT_ACCEPTED, "Insufficient balance", "anything"])
def test_error_that_names_the_operation_refuses(text: str) -> None:
    assert is_refusal(ended(names_op=True), refusal(text))


@pytest.mark.parametrize("text", NOT_ACCEPTED)
def test_message_that_was_not_accepted_was_not_executed(text: str) -> None:
    assert is_refusal(ended(was_alone=True), refusal(text))
    assert not is_refusal(ended(was_alone=False), refusal(text))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ended(was_alone=True), refusal("Insufficient balance")),
        (ended(), refusal("Invalid signature")),
        (ended(names_op=True, was_alone=True), refusal(NONCE)),
        (ended(was_alone=True), refusal(NONCE)),
        (ended(), ConnectionLostError("gone")),
        (ended(), RequestTimeoutError("late")),
        (ended(names_op=True, was_alone=True), ProtocolError("malformed")),
    ],
)
def test_any_other_error_refuses_nothing(request_: Request, error: BrokerError) -> None:
    assert not is_refusal(request_, error)


@pytest.mark.parametrize("text", ["Order not found", "ORDER_NOT_FOUND", "not_found: c1"])
def test_unknown_order_is_recognized_as_not_found(text: str) -> None:
    assert says_not_found(server_error("order_status", text))


@pytest.mark.parametrize(
    "error", [None, server_error("order_status", "Rate limit exceeded"), NotSentError("not found")]
)
def test_other_errors_are_not_recognized_as_not_found(error: BrokerError | None) -> None:
    assert not says_not_found(error)
