"""Which errors refuse a swap. The texts of the broker aren't documented, so doubt wins."""

from __future__ import annotations

import pytest

from trio_broker._swaps.refusals import RefusalTable, Verdict, says_not_found
from trio_broker.exceptions import ProtocolError, ServerError

TABLE = RefusalTable()


def judge(text: str, code: str = "", *, names_op: bool = False) -> Verdict:
    return TABLE.judge(text, code, names_op=names_op)


@pytest.mark.parametrize("names_op", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "Insufficient balance",
        "insufficient funds",
        "INSUFFICIENT_BALANCE",
        "  INSUFFICIENT_BALANCE: 5 ETH are missing",
        "Not enough USDT",
        "Invalid amount",
        "InvalidAmount",
        "malformed amount",
        "Unknown asset: XYZ",
        "Unsupported pair ETH/XYZ",
        "network solana is not supported",
        "Amount is below the minimum of 500 USDT",
        "500 USDT is the minimum",
        "exceeds maximum",
        "Amount too small",
        "too large",
        "No route found",
        "no liquidity",
        "Slippage exceeded",
        "Market closed",
        "market is closed",
        "Swaps are not allowed for this account",
        "Forbidden",
        "Trading disabled",
        "Unknown operation: swap",
        "500,000 USDT exceeds the maximum",
        "received 500 USDT, the minimum is 600",
        "Invalid amount: too many decimals",
        "Invalid clientOrderId",
        "Insufficient balances",
        "Unsupported trading pair",
        "Market is currently closed",
        "Operation not allowed",
        "swap could not be executed: insufficient liquidity",
        "SWAP_ERROR: insufficient balance",
        "INVALID_REQUEST: the amount was duplicated",
        "invalid_amount: try again with less",
        "Swap cannot be executed: insufficient balance",
        "Invalid request sent",
        "Unknown network: solana",
        "Maximum slippage exceeded",
        "Insufficient balance: 0.5 BTC is in use by open orders",
        "Insufficient balance (funds pending withdrawal)",
        "Insufficient balance (withdrawal pending)",
        "Insufficient funds: pending orders hold 5 ETH",
        "INSUFFICIENT FUNDS: 2 orders are still pending",
        "Insufficient available balance: 3 ETH has been used",
        "insufficient USDT balance: 100 in use",
        "Not enough balance: funds in use",
        "Not enough funds, 5 USDT is used as margin",
        "SWAP_ERROR: insufficient balance, a transfer is pending",
    ],
)
def test_listed_text_refuses_a_swap(text: str, names_op: bool) -> None:
    assert judge(text, names_op=names_op) is Verdict.REFUSED


@pytest.mark.parametrize("names_op", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "Duplicate client order id",
        "DUPLICATE_REQUEST",
        "duplicated request",
        "  duplicate clientOrderId",
        "Order already exists",
        "ORDER_ALREADY_EXISTS",
        "client order id exists",
        "Already submitted",
        "request is being processed",
        "Invalid request: duplicate id",
        "duplicate request, try again",
        "Idempotency key conflict",
        "Idempotency-Key was used before",
        "Invalid client order id: must be unique",
        "Invalid clientOrderId: in use",
        "Invalid request: clientOrderId has been used",
        "client order id is taken: not allowed",
        "Replay detected: invalid signature",
        "Repeated request not allowed",
        "Existing order: invalid",
        "409 Conflict: invalid clientOrderId",
        "order id collision: not allowed",
        "previously submitted: not allowed",
        "client order id in use",
        "Client order ID is in use: not enough balance for both",
        "Insufficient balance; clientOrderId has been used",
        "Insufficient balance: idempotency key in use",
        "Insufficient balance: the order exists",
        "Insufficient balance: funds are already in use",
        "Not enough balance: request in flight",
        "already pending",
        "Insufficient balance: already pending",
    ],
)
def test_text_about_a_duplicate_does_not_refuse_a_swap(text: str, names_op: bool) -> None:
    assert judge(text, names_op=names_op) is Verdict.DUPLICATE


@pytest.mark.parametrize("names_op", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "Nonce already used",
        "NONCE_ALREADY_USED",
        " nonce has already been used or is expired",
        "NonceAlreadyUsed",
        "Invalid nonce",
        "Internal server error",
        "INTERNAL_ERROR",
        "Timeout waiting for execution",
        "request timed out",
        "insufficient liquidity: venue time-out",
        "context deadline exceeded",
        "504 Gateway Timeout",
        "503",
        "HTTP 502: invalid response",
        "status code 500, invalid state",
        "error 503: market closed",
        "bad gateway",
        "invalid upstream response",
        "unexpected EOF",
        "connection reset by peer",
        "busy",
        "service unavailable",
        "Temporarily unavailable",
        "Slippage too high, try again",
        "please retry",
        "Invalid channel format",
        "Maximum number of subscriptions exceeded",
        "Maximum retries exceeded",
        "Maximum number of attempts reached",
        "Unknown network error",
        "Network error: status unknown",
        "Token swap status unknown",
        "Asset transfer: the outcome is still unknown",
        "Invalid response from venue",
        "Venue did not respond: maximum delay",
        "Insufficient confirmations",
        "Not enough data to determine the outcome",
        "Partially filled, not enough liquidity for the rest",
        "Swap submitted, but the maximum was exceeded",
        "Order was accepted; invalid callback",
        "Order pending, invalid state",
        "Connection error: invalid frame",
        "database error: invalid input syntax",
        "runtime error: invalid memory address",
        "write: broken pipe: invalid",
        "connect ECONNRESET: invalid",
        "request cancelled: invalid",
        "Venue overloaded: maximum reached",
        "invalid character '<' looking for beginning of value",
        "KeyError: 'orderId' of the invalid order",
        "invalid connection",
        "maximum execution time exceeded",
        "Signature 5h6x has expired: block height exceeded",
        "HTTP/1.1 500: invalid",
        "error (500): invalid",
        "[503] market closed",
        "venue returned 502: invalid text",
        "the exchange failed with 500, invalid",
        "connect ETIMEDOUT: invalid socket",
        "venue unavailable: market closed",
        "unexpected error: invalid state",
        "foreign key constraint failed",
        "SWAP_ERROR: venue timed out",
        "SWAP_ERROR",
        "Order not found",
        "Something went wrong",
        "Unknown operation: estimate",
        "insufficient " + "x" * 100_000 + " timeout",
        "x" * 2000 + " insufficient",
        "order pending",
        "pending",
        "Insufficient balance: order pending",
        "Insufficient balance: the swap is pending",
        "Insufficient balance (pending order)",
        "Insufficient balance: request pending withdrawal",
        "Not enough balance: funds in use, venue timed out",
        "Insufficient liquidity: swap queued",
        "Insufficient balance: funds in use, try again",
        "Not authorized to trade: internal error",
        "open /var/journal: permission denied",
        "write: operation not permitted",
    ],
)
def test_text_that_admits_doubt_does_not_refuse_a_swap(text: str, names_op: bool) -> None:
    assert judge(text, names_op=names_op) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "Invalid signature",
        "Invalid API key",
        "Request timestamp outside allowed window",
        "Rate limit exceeded",
        "RATE_LIMIT_EXCEEDED",
        "too many requests",
        "Not authenticated",
        "Unauthorized",
        "Account not authorized to trade",
        "This account isn't authorized for swaps",
        "Unauthorized asset",
        "UNAUTHORIZED_ASSET",
        "You are not authorized to trade ETH",
        "Trading is not currently authorised",
        "API key has no permission to trade",
        "No permission to trade",
        "You do not have the permission to trade ETH",
        "Account lacks trading permission",
        "Missing permission: swap",
        "Permission denied",
        "Not permitted to trade",
    ],
)
def test_error_about_access_refuses_a_swap_only_if_it_names_the_operation(text: str) -> None:
    assert judge(text, names_op=True) is Verdict.REFUSED
    assert judge(text) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "Session expired",
        "Invalid token",
        "token expired",
        "Invalid sig",
        "Invalid HMAC",
        "Invalid ts",
        "Clock skew too large",
        "Invalid authorization",
        "Request rate too high",
        "Maximum of 100 messages per second",
        "Too many connections, the maximum is 100",
        "Invalid channel format",
        "Maximum of 100 subscriptions",
        "Invalid order id",
        "Invalid operation: estimate",
        "order_status: invalid id",
        "INVALID_REQUEST: Invalid signature",
        "INVALID_REQUEST: Invalid channel format",
    ],
)
def test_error_about_something_else_refuses_no_swap_without_the_operation(text: str) -> None:
    assert judge(text) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        ("INSUFFICIENT_BALANCE", "upstream says no", Verdict.REFUSED),
        ("INVALID_AMOUNT", "", Verdict.REFUSED),
        ("invalid_amount", "try again", Verdict.REFUSED),
        ("INTERNAL_ERROR", "Insufficient balance", Verdict.UNKNOWN),
        ("DUPLICATE_REQUEST", "Invalid request", Verdict.DUPLICATE),
        ("503", "No route", Verdict.UNKNOWN),
        ("SWAP_ERROR", "No route", Verdict.REFUSED),
        ("SOMETHING", "else", Verdict.UNKNOWN),
    ],
)
def test_code_of_an_error_object_decides(code: str, text: str, verdict: Verdict) -> None:
    assert judge(text, code) is verdict


def test_users_can_add_texts_but_doubt_wins() -> None:
    table = RefusalTable(["Counterparty_declined"])
    text = "the counterparty declined the trade"
    assert judge(text) is Verdict.UNKNOWN
    assert table.judge(text, "", names_op=True) is Verdict.REFUSED
    text = "counterparty declined: gateway timeout"
    assert table.judge(text, "", names_op=True) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerError("order_status", "Order not found"), True),
        (ServerError("order_status", "ORDER_NOT_FOUND"), True),
        (ServerError("order_status", "Rate limit exceeded"), False),
        (ProtocolError("not found"), False),
        (None, False),
    ],
)
def test_not_found_is_recognized(error: Exception | None, expected: bool) -> None:
    assert says_not_found(error) is expected  # type: ignore[arg-type]
