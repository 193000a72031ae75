from __future__ import annotations

import copy
import datetime as dt
import pickle
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import trio

from trio_broker import exceptions
from trio_broker.exceptions import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    CertificateError,
    ChannelError,
    ClientClosedError,
    ClockSkewError,
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    DuplicateClientOrderIdError,
    InsufficientBalanceError,
    InternalServerError,
    InvalidAmountError,
    InvalidApiKeyError,
    InvalidChannelError,
    InvalidRequestError,
    InvalidSignatureError,
    JournalError,
    MessageTooLargeError,
    NonceReusedError,
    NotAuthenticatedError,
    NotConnectedError,
    NotSentError,
    OrderNotFoundError,
    OrderUnfinishedError,
    ProtocolError,
    QuoteExpiredError,
    RateLimitedError,
    ReconnectFailedError,
    ReplyTooLargeError,
    RequestTimeoutError,
    ServerError,
    SlippageError,
    SlowConsumerError,
    SubscriptionBrokenError,
    SubscriptionLimitError,
    SwapOutcomeUnknownError,
    UnknownAssetError,
    UnknownOperationError,
    UnreadableError,
    fresh,
    server_error,
)
from trio_broker.models import Order, OrderStatus

EXAMPLES: tuple[BrokerError, ...] = (
    BrokerError("what"),
    ConfigurationError("what"),
    MessageTooLargeError(70_000, 65_536),
    NotSentError("what"),
    NotConnectedError("what"),
    NotConnectedError("what", is_final=True),
    ClientClosedError("what"),
    JournalError("what"),
    SlippageError(Decimal("1.50"), Decimal(2)),
    QuoteExpiredError(dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
    DuplicateClientOrderIdError("c1", "confirmed"),
    DuplicateClientOrderIdError("c1", "unknown", True, Order("o1", OrderStatus.FILLED)),
    OrderUnfinishedError("o1", "c1"),
    CertificateError("what"),
    ReconnectFailedError(5, "what"),
    ConnectFailedError("what"),
    ConnectFailedError("what", 503, 2.5),
    ConnectionLostError("what"),
    ConnectionLostError("what", 1006),
    ConnectionLostError("what", 1009, True),
    AuthenticationTimeoutError("what"),
    ReplyTooLargeError("balances", 1024),
    RequestTimeoutError("what"),
    SwapOutcomeUnknownError("c1", "the line was cut"),
    ServerError(None, "what"),
    ServerError("swap", "what"),
    AuthenticationError("auth", "what"),
    InvalidSignatureError("auth", "what"),
    InvalidApiKeyError("auth", "what"),
    ClockSkewError("swap", "what"),
    NonceReusedError("swap", "what"),
    UnknownOperationError("swap", "what"),
    InvalidChannelError("subscribe", "what"),
    NotAuthenticatedError("balances", "what"),
    InsufficientBalanceError("swap", "what", "INSUFFICIENT_BALANCE"),
    InvalidAmountError("swap", "what"),
    UnknownAssetError("estimate", "what"),
    OrderNotFoundError("order_status", "what"),
    RateLimitedError("balances", "what"),
    InvalidRequestError("estimate", "what"),
    InternalServerError("balances", "what"),
    SubscriptionLimitError(100),
    ChannelError("balances", "what"),
    SlowConsumerError("balances", 16),
    SubscriptionBrokenError("balances"),
    ProtocolError("what"),
    UnreadableError("what"),
)


def tree(root: type[BrokerError]) -> set[type[BrokerError]]:
    return {root}.union(*(tree(kind) for kind in root.__subclasses__()))


def test_every_exception_class_has_an_example() -> None:
    ours = {kind for kind in tree(BrokerError) if kind.__module__ == "trio_broker"}
    assert {type(error) for error in EXAMPLES} == ours


def test_docstring_has_the_tree_of_exceptions() -> None:
    assert exceptions.__doc__ is not None
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in exceptions.__doc__.splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if not name.endswith("Error") or (line == line.lstrip() and not parents):
            continue
        depth = (len(line) - len(line.lstrip(" │├└─"))) // 4 - 1
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in map(type, EXAMPLES)}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_error_survives_pickling_and_copying(error: BrokerError) -> None:
    twins = [pickle.loads(pickle.dumps(error, n)) for n in range(6)]  # noqa: S301 - our own
    for twin in [*twins, copy.copy(error), copy.deepcopy(error), fresh(error)]:
        assert twin is not error
        assert type(twin) is type(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)
        assert str(twin) == str(error)


def test_error_messages_describe_the_error_and_the_remedy() -> None:
    shown = [str(error) for error in EXAMPLES]
    assert "the message has 70000 bytes, and the limit is 65536: " in shown[2]
    assert str(ConnectFailedError("no route", 503)) == "no route"
    assert "swap c1 is unknown (the line was cut)" in str(
        SwapOutcomeUnknownError("c1", "the line was cut")
    )
    early = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    assert "is 1.50, less than min_out=2: nothing was sent" in str(
        SlippageError(Decimal("1.50"), Decimal(2))
    )
    assert "expired at 2026-01-02T00:00:00+00:00: nothing was sent" in str(QuoteExpiredError(early))
    assert "order id c1 (its outcome: confirmed); nothing was sent" in str(
        DuplicateClientOrderIdError("c1", "confirmed")
    )
    sent = DuplicateClientOrderIdError("c1", "unknown", True, Order("o1", OrderStatus.FILLED))
    assert "has the order o1 (FILLED) under it" in str(sent)
    assert "nothing was sent" not in str(sent)
    unnamed = DuplicateClientOrderIdError("c1", "unknown", True, Order(None, "NEW"))
    assert "the order of unknown id (NEW)" in str(unnamed)
    assert "has an order under it" in str(DuplicateClientOrderIdError("c1", "unknown", True))
    assert "accepted as order o1 (client order id c1)" in str(OrderUnfinishedError("o1", "c1"))
    assert str(ServerError(None, "Nope")) == "the broker refused a message: Nope"
    assert str(ServerError("swap", "Nope")) == "the broker refused swap: Nope"
    assert str(ServerError("swap", "Nope", "NO_WAY")) == "the broker refused swap: Nope (NO_WAY)"
    assert str(ServerError("swap", "No way!", "NO_WAY")) == "the broker refused swap: No way!"
    assert "clock is wrong" in str(ClockSkewError("swap", "late"))
    assert all(shown)


def test_errors_have_matching_builtin_or_trio_bases() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(MessageTooLargeError, ValueError)
    assert issubclass(ClientClosedError, trio.ClosedResourceError)
    assert issubclass(SubscriptionBrokenError, trio.BrokenResourceError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Not authenticated", NotAuthenticatedError),
        ("Invalid signature", InvalidSignatureError),
        ("invalid SIGNATURE: expected another", InvalidSignatureError),
        ("Invalid API key", InvalidApiKeyError),
        ("Request timestamp outside allowed window", ClockSkewError),
        ("Nonce has already been used or is expired", NonceReusedError),
        ("Unknown operation: dance", UnknownOperationError),
        ("Invalid channel format", InvalidChannelError),
        ("Market closed: the trading session has ended", ServerError),
        ("Token not found", ServerError),
        ("an Invalid signature further on", ServerError),
    ],
)
def test_documented_error_text_has_its_class(text: str, kind: type[ServerError]) -> None:
    error = server_error("swap", text)
    assert type(error) is kind
    assert (error.op, error.message) == ("swap", text)


SAME_SPELLINGS = (str, str.lower, str.upper, lambda text: f"  {text}", lambda text: f"[{text}]")


@pytest.mark.parametrize("spell", SAME_SPELLINGS)
@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ("Insufficient balance", InsufficientBalanceError, "INSUFFICIENT_BALANCE"),
        ("INSUFFICIENT_BALANCE", InsufficientBalanceError, "INSUFFICIENT_BALANCE"),
        ("INSUFFICIENT_BALANCE: 5 USDT", InsufficientBalanceError, "INSUFFICIENT_BALANCE"),
        ("Insufficient balance: 5 USDT", InsufficientBalanceError, None),
        ("Insufficient balance check timed out", InsufficientBalanceError, None),
        ("Insufficient funds", InsufficientBalanceError, "INSUFFICIENT_FUNDS"),
        ("Invalid amount", InvalidAmountError, "INVALID_AMOUNT"),
        ("INVALID_AMOUNT: it is too small", InvalidAmountError, "INVALID_AMOUNT"),
        ("Unknown asset: XYZ", UnknownAssetError, "UNKNOWN_ASSET"),
        ("Order not found", OrderNotFoundError, "ORDER_NOT_FOUND"),
        ("Order ord_5 not found", OrderNotFoundError, "ORDER_NOT_FOUND"),
        ("The order ord_5 does not exist", OrderNotFoundError, "ORDER_NOT_FOUND"),
        ("NOT_FOUND", OrderNotFoundError, "NOT_FOUND"),
        ("404 Not Found", OrderNotFoundError, "NOT_FOUND"),
        ("Rate limit exceeded", RateLimitedError, "RATE_LIMIT_EXCEEDED"),
        ("RATE_LIMIT", RateLimitedError, "RATE_LIMIT"),
        ("Too many requests", RateLimitedError, "TOO_MANY_REQUESTS"),
        ("INVALID_REQUEST", InvalidRequestError, "INVALID_REQUEST"),
        ("Invalid request: no asset", InvalidRequestError, None),
        ("Internal server error", InternalServerError, "INTERNAL_SERVER_ERROR"),
        ("INTERNAL_ERROR", InternalServerError, "INTERNAL_ERROR"),
        ("504 Gateway Timeout", InternalServerError, "GATEWAY_TIMEOUT"),
        ("500 USDT is too much", ServerError, None),
        ("DUPLICATE_REQUEST: seen", ServerError, "DUPLICATE_REQUEST"),
        ("SWAP_ERROR", ServerError, "SWAP_ERROR"),
        ("Nonce already used", NonceReusedError, "INVALID_NONCE"),
        ("NONCE_ALREADY_USED", NonceReusedError, "NONCE_ALREADY_USED"),
        ("EXPIRED_REQUEST", ClockSkewError, "EXPIRED_REQUEST"),
        ("UNAUTHORIZED", NotAuthenticatedError, "UNAUTHORIZED"),
        ("Session expired", NotAuthenticatedError, "SESSION_EXPIRED"),
        ("Your session has expired", NotAuthenticatedError, None),
        ("Token expired", NotAuthenticatedError, "TOKEN_EXPIRED"),
        ("Authentication required", NotAuthenticatedError, "AUTHENTICATION_REQUIRED"),
        ("Please log in again", NotAuthenticatedError, None),
        ("No liquidity", ServerError, None),
    ],
)
def test_refusal_has_class_and_code_in_every_spelling(
    text: str, kind: type[ServerError], code: str | None, spell: Callable[[str], str]
) -> None:
    error = server_error("order_status", spell(text))
    assert (type(error), error.code) == (kind, code)
    assert error.message == spell(text)


NO_PERMISSION = (
    "Account not authorized to trade",
    "This account is not authorized",
    "Unauthorized asset",
    "UNAUTHORIZED_ASSET",
    "unauthorized asset: XYZ",
    "Unauthorised trading pair",
    "Unauthorized: trading is disabled for this account",
    "Unauthorized withdrawal",
    "Unauthorized swap",
    "Swap not authorized",
    "Swap is unauthorized",
    "401 Unauthorized market",
    "Unauthorized to trade ETH",
    "You are not authorized to trade ETH",
    "You are not authorised for this operation",
    "Not authorized to access this market",
    "ETH is not authorized for you",
    "Trading is not authorized",
    "Unauthorized: permission denied",
    "API key has no permission to trade",
    "API key not authorized to trade",
    "Invalid API key permissions",
    "Token quote expired",
    "The token swap price has expired",
)


def test_text_about_an_asset_says_more_than_the_code_of_a_bad_request() -> None:
    error = server_error("swap", "Unknown asset: NOPE", code="INVALID_REQUEST")
    assert type(error) is UnknownAssetError
    assert error.code == "INVALID_REQUEST"


NO_SESSION = (
    "Connection not authenticated",
    "User is not authenticated",
    "Session invalid",
    "No active session",
    "JWT expired",
    "You have been logged out",
    "Must auth first",
    "Authenticate first",
    "Session expired",
    "Your session is no longer valid",
    "Session expired: you are not authorized to trade",
    "Token expired",
    "Your access token has expired",
    "Token expired, not authorized to trade",
    "Unauthorized",
    "Unauthorised.",
    "unauthorized: please log in to trade",
    "Unauthorized request",
    "Unauthorized access",
    "Unauthorized: swap",
    "Unauthorized: order_status",
    "401 Unauthorized",
    "Unauthorized connection",
    "Not authorized",
    "You are not authorized",
    "You are not authorized to access this resource",
    "Not authenticated: cannot trade",
    "Authentication required to trade",
    "Please log in to your account",
)


@pytest.mark.parametrize("op", [None, "swap", "balances", "order_status"])
@pytest.mark.parametrize("spell", SAME_SPELLINGS)
@pytest.mark.parametrize("text", NO_PERMISSION)
def test_missing_permission_is_no_lost_session(
    text: str, spell: Callable[[str], str], op: str | None
) -> None:
    assert type(server_error(op, spell(text))) is ServerError
    assert type(server_error(op, spell(text), code="FORBIDDEN")) is ServerError


@pytest.mark.parametrize("op", [None, "swap", "balances", "order_status"])
@pytest.mark.parametrize("spell", SAME_SPELLINGS)
@pytest.mark.parametrize("text", NO_SESSION)
def test_lost_session_is_recognized_in_other_words(
    text: str, spell: Callable[[str], str], op: str | None
) -> None:
    assert type(server_error(op, spell(text))) is NotAuthenticatedError


def test_code_of_a_lost_session_counts_unless_the_text_is_about_a_permission() -> None:
    for code in ("UNAUTHORIZED", " unauthorized ", "401", "SESSION_EXPIRED", "token expired"):
        assert type(server_error(None, "no", code=code)) is NotAuthenticatedError
    text = "Account not authorized to trade"
    assert type(server_error("swap", text, code="UNAUTHORIZED")) is ServerError
    assert type(server_error("auth", text)) is AuthenticationError


def test_sent_code_decides_before_the_text() -> None:
    error = server_error("swap", "5 USDT are missing", code=" insufficient_balance ")
    assert (type(error), error.code) == (InsufficientBalanceError, "INSUFFICIENT_BALANCE")
    other = server_error("swap", "Insufficient balance", code="E-17")
    assert (type(other), other.code) == (InsufficientBalanceError, "E-17")
    assert server_error("swap", "what", code="").code is None


def test_code_is_redacted_and_short() -> None:
    error = server_error(None, "no", lambda text: text.replace("key", "…"), "my key " + 1000 * "x")
    assert error.code is not None
    assert error.code.startswith("MY … X")
    assert len(error.code) == 64


def test_not_found_is_about_an_order_only_where_one_is_asked_for() -> None:
    assert type(server_error("estimate", "NOT_FOUND")) is ServerError
    assert type(server_error("subscribe", "Not found")) is ServerError
    assert type(server_error("order_status", "Not found")) is OrderNotFoundError


@pytest.mark.parametrize("text", ["Internal server error", "Rate limit exceeded", "Not found"])
def test_answer_to_a_swap_is_never_retryable(text: str) -> None:
    assert server_error("order_status", text).is_retryable
    assert not server_error("swap", text).is_retryable


def test_connection_failures_are_retryable_unless_the_request_is_wrong() -> None:
    assert [s for s in (None, 200, 301, 401, 404, 408, 429, 503) if _may_pass(s)] == [
        *(None, 200, 408, 429, 503)
    ]
    assert not NotConnectedError("what", is_final=True).is_retryable


def _may_pass(status: int | None) -> bool:
    return ConnectFailedError("what", status).is_retryable


def test_page_says_of_every_error_whether_it_is_retryable_and_why() -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (yes|no|sometimes) \| (.+) \|$", page, re.MULTILINE)
    listed = {name: answer for name, answer, reason in rows if reason}
    assert len(listed) == len(rows)
    found: dict[str, set[bool]] = {}
    for error in EXAMPLES:
        for one in (error, server_error("swap", "what")):
            if type(one) is type(error):
                found.setdefault(type(one).__name__, set()).add(one.is_retryable)
    assert set(listed) == set(found)
    for name, answer in listed.items():
        if answer != "sometimes":
            assert found[name] == {answer == "yes"}, name


def test_other_refusals_of_auth_are_authentication_errors() -> None:
    assert type(server_error("auth", "Go away")) is AuthenticationError
    assert type(server_error("auth", "Request timestamp outside allowed window")) is ClockSkewError
    assert type(server_error("auth", "Unauthorized")) is AuthenticationError
    assert type(server_error("auth", "Session expired")) is NotAuthenticatedError
    assert type(server_error("auth", "Rate limit exceeded")) is RateLimitedError
    assert type(server_error(None, "Go away")) is ServerError


def test_fresh_error_keeps_its_cause_without_a_traceback() -> None:
    cause = OSError("cable")

    def fail() -> None:
        raise ConnectionLostError("gone", 1006) from cause

    with pytest.raises(ConnectionLostError) as caught:
        fail()
    error = caught.value
    twin = fresh(error)
    assert error.__traceback__ is not None
    assert twin.__traceback__ is None
    assert twin.__cause__ is cause
    assert twin.code == 1006
