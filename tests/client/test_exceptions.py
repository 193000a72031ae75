from __future__ import annotations

import copy
import datetime as dt
import pickle
from decimal import Decimal

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
    InvalidApiKeyError,
    InvalidChannelError,
    InvalidSignatureError,
    JournalError,
    MessageTooLargeError,
    NonceReusedError,
    NotAuthenticatedError,
    NotConnectedError,
    NotSentError,
    OrderUnfinishedError,
    ProtocolError,
    QuoteExpiredError,
    ReconnectFailedError,
    ReplyTooLargeError,
    RequestTimeoutError,
    ServerError,
    SlippageError,
    SlowConsumerError,
    SubscriptionBrokenError,
    SubscriptionLimitError,
    SwapOutcomeUnknownError,
    UnknownOperationError,
    fresh,
    server_error,
)

EXAMPLES: tuple[BrokerError, ...] = (
    BrokerError("what"),
    ConfigurationError("what"),
    MessageTooLargeError(70_000, 65_536),
    NotSentError("what"),
    NotConnectedError("what"),
    ClientClosedError("what"),
    JournalError("what"),
    SlippageError(Decimal("1.50"), Decimal(2)),
    QuoteExpiredError(dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
    DuplicateClientOrderIdError("c1", "confirmed"),
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
    SubscriptionLimitError(100),
    ChannelError("balances", "what"),
    SlowConsumerError("balances", 16),
    SubscriptionBrokenError("balances"),
    ProtocolError("what"),
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
    assert "accepted as order o1 (client order id c1)" in str(OrderUnfinishedError("o1", "c1"))
    assert str(ServerError(None, "Nope")) == "the broker refused a message: Nope"
    assert str(ServerError("swap", "Nope")) == "the broker refused swap: Nope"
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
        ("Insufficient balance", ServerError),
        ("an Invalid signature further on", ServerError),
    ],
)
def test_documented_error_text_has_its_class(text: str, kind: type[ServerError]) -> None:
    error = server_error("swap", text)
    assert type(error) is kind
    assert (error.op, error.message) == ("swap", text)


def test_other_refusals_of_auth_are_authentication_errors() -> None:
    assert type(server_error("auth", "Go away")) is AuthenticationError
    assert type(server_error("auth", "Request timestamp outside allowed window")) is ClockSkewError
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
