"""The errors of this library, in one tree.

    BrokerError
    ├── ConfigurationError (ValueError)         an invalid option or key
    ├── MessageTooLargeError (ValueError)       a message over the limit: nothing was sent
    ├── NotSentError                            nothing was sent: repeating is safe
    │   ├── NotConnectedError                   there is no connection to send it on
    │   │   └── ClientClosedError (trio.ClosedResourceError)
    │   ├── JournalError                        the journal of swaps can't be read or written
    │   ├── SlippageError                       an estimate is below `min_out`
    │   └── QuoteExpiredError                   an estimate expired before it could be used
    ├── DuplicateClientOrderIdError             another swap was possibly sent under this id
    ├── ConnectFailedError                      no WebSocket could be opened
    │   └── CertificateError                    a certificate is untrusted or another host's
    ├── ConnectionLostError                     an open WebSocket was lost
    ├── ReconnectFailedError                    every attempt to reconnect failed
    ├── AuthenticationTimeoutError              the broker didn't reply to `auth`
    ├── RequestTimeoutError                     sent, but there was no reply in time
    ├── ReplyTooLargeError                      a reply over `Limits.max_receive_size`
    ├── SwapOutcomeUnknownError                 a swap was possibly sent; its outcome is unknown
    ├── OrderUnfinishedError                    a swap was accepted, but its order can't be followed
    ├── ServerError                             the broker refused
    │   ├── AuthenticationError
    │   │   ├── InvalidSignatureError
    │   │   └── InvalidApiKeyError
    │   ├── ClockSkewError
    │   ├── NonceReusedError
    │   ├── UnknownOperationError
    │   ├── InvalidChannelError
    │   ├── NotAuthenticatedError               the broker no longer knows the session
    │   ├── InsufficientBalanceError
    │   ├── InvalidAmountError
    │   ├── UnknownAssetError
    │   ├── OrderNotFoundError
    │   ├── RateLimitedError
    │   ├── InvalidRequestError
    │   └── InternalServerError
    ├── SubscriptionLimitError                  more channels than one connection may have
    ├── ChannelError                            the broker pushed an error to a channel
    ├── SlowConsumerError                       a buffer overflowed under ``overflow="error"``
    ├── SubscriptionBrokenError (trio.BrokenResourceError)
    └── ProtocolError                           the broker violated its protocol
        └── UnreadableError                     an amount can't be read

Each is made from plain arguments, so that it can be pickled and copied. No error contains a key, a
secret or a signature. `BrokerError.is_retryable` says whether repeating the call makes sense;
docs/errors.md has the reasons.

**The class of a refusal** comes from the broker's machine code, if it sent one, otherwise from its
text. `_CODES` and `_TEXTS` have all that are known.
"""

from __future__ import annotations

import copy
import datetime as dt
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import ClassVar, Final, TypeVar

import trio

from trio_broker.models import Order
from trio_broker.redaction import Redact

_E = TypeVar("_E", bound=BaseException)


class BrokerError(Exception):
    """The base class of this library's errors."""

    _may_pass: ClassVar[bool] = False

    @property
    def is_retryable(self) -> bool:
        """Whether repeating the same call later may work and can do no harm.

        Always False for an answer to a swap that was sent.
        """
        return self._may_pass


class ConfigurationError(BrokerError, ValueError):
    """An option, a key or a URL is invalid; the message names it."""


class MessageTooLargeError(BrokerError, ValueError):
    """A message is larger than `Limits.max_message_size`; nothing was sent.

    Attributes:
        size: The message's size in bytes.
        limit: The limit in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"the message has {self.size} bytes, and the limit is {self.limit}: "
            "send less, or raise Limits.max_message_size if the broker accepts more"
        )


class NotSentError(BrokerError):
    """Nothing was sent, so repeating the call is safe."""

    _may_pass = True


class NotConnectedError(NotSentError):
    """There is no connection; nothing was sent.

    Attributes:
        is_final: Whether this client will never be connected again.
    """

    def __init__(self, message: str, is_final: bool = False) -> None:
        super().__init__(message, is_final)
        self.message = message
        self.is_final = is_final

    def __str__(self) -> str:
        return self.message

    @property
    def is_retryable(self) -> bool:
        """True, unless this client will never be connected again."""
        return not self.is_final


class ClientClosedError(NotConnectedError, trio.ClosedResourceError):
    """The client was closed by its owner; nothing was sent."""

    def __init__(self, message: str, is_final: bool = True) -> None:
        super().__init__(message, is_final)


class JournalError(NotSentError):
    """The journal of swaps can't be read or written; nothing was sent."""


class SlippageError(NotSentError):
    """A fresh estimate is below `min_out`; nothing was sent.

    Attributes:
        expected_out: The estimated amount.
        min_out: The required minimum.
    """

    def __init__(self, expected_out: Decimal, min_out: Decimal) -> None:
        super().__init__(expected_out, min_out)
        self.expected_out = expected_out
        self.min_out = min_out

    def __str__(self) -> str:
        return (
            f"the estimate is {self.expected_out:f}, less than min_out={self.min_out:f}: "
            "nothing was sent"
        )


class QuoteExpiredError(NotSentError):
    """An estimate expired before its swap could be sent; nothing was sent.

    Attributes:
        expired_at: When it expired, by the broker's clock.
    """

    def __init__(self, expired_at: dt.datetime) -> None:
        super().__init__(expired_at)
        self.expired_at = expired_at

    def __str__(self) -> str:
        return (
            f"the estimate expired at {self.expired_at.isoformat()}: nothing was sent (if this "
            "happens every time, check this machine's clock: it may be ahead)"
        )


class DuplicateClientOrderIdError(BrokerError):
    """Another swap was possibly sent under this client order id.

    It isn't a `NotSentError`: if the earlier swap was executed, repeating this one under another id
    would swap twice.

    Attributes:
        client_order_id: The id.
        outcome: The outcome of the earlier swap, a `SwapOutcome`.
        was_sent: Whether this call's swap was sent. If so, the broker reported the duplicate, and
            it isn't known which of the two swaps has made the order.
        order: The order that the broker has under this id, if it was looked up.
    """

    def __init__(
        self,
        client_order_id: str,
        outcome: str,
        was_sent: bool = False,
        order: Order | None = None,
    ) -> None:
        super().__init__(client_order_id, outcome, was_sent, order)
        self.client_order_id = client_order_id
        self.outcome = outcome
        self.was_sent = was_sent
        self.order = order

    def __str__(self) -> str:
        if not self.was_sent:
            return (
                f"an earlier swap has the client order id {self.client_order_id} (its outcome: "
                f"{self.outcome}); nothing was sent"
            )
        order = self.order
        found = (
            "an order"
            if order is None
            else f"the order {order.order_id or 'of unknown id'} ({order.status})"
        )
        return (
            f"the broker knows the client order id {self.client_order_id} already, and has {found} "
            "under it: this swap or an earlier one made it; follow that order, don't swap again"
        )


class ConnectFailedError(BrokerError):
    """No WebSocket could be opened: DNS, TCP, TLS or the handshake failed.

    Attributes:
        status: The HTTP status of the broker's response, None if there was none.
        retry_after: Seconds to wait, from the broker's ``Retry-After`` header, or None.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, status, retry_after)
        self.message = message
        self.status = status
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message

    @property
    def is_retryable(self) -> bool:
        """Whether the failure may be temporary: True, except for statuses 3xx and most 4xx."""
        return self.status is None or self.status in _PASSING_4XX or not 300 <= self.status < 500


# RFC 9110: Request Timeout, Too Early and Too Many Requests. Other 4xx are about the request.
_PASSING_4XX: Final = frozenset({408, 425, 429})


class CertificateError(ConnectFailedError):
    """The certificate is untrusted or another host's, or this machine has no CA certificates.

    Nothing was sent.
    """

    @property
    def is_retryable(self) -> bool:
        """False: the URL, the certificate or this machine's settings must be corrected."""
        return False


class ReconnectFailedError(BrokerError):
    """Every attempt to reconnect failed; the last error is the ``__cause__``.

    Attributes:
        attempts: The number of attempts.
        last: The text of the last error.
    """

    def __init__(self, attempts: int, last: str) -> None:
        super().__init__(attempts, last)
        self.attempts = attempts
        self.last = last

    def __str__(self) -> str:
        return f"{self.attempts} attempts to reconnect failed; the last error: {self.last}"


class ConnectionLostError(BrokerError):
    """An open WebSocket was lost.

    Attributes:
        code: The WebSocket close code (RFC 6455, section 7.4), None if none was received.
        is_local: Whether this side sent the close frame first, for example 1009 for a message over
            `Limits.max_receive_size`.
    """

    _may_pass = True

    def __init__(self, message: str, code: int | None = None, is_local: bool = False) -> None:
        super().__init__(message, code, is_local)
        self.message = message
        self.code = code
        self.is_local = is_local

    def __str__(self) -> str:
        return self.message


class AuthenticationTimeoutError(BrokerError):
    """The broker didn't reply to `auth` within `auth_timeout`."""

    _may_pass = True


class RequestTimeoutError(BrokerError):
    """A request was sent, but the broker didn't reply within `request_timeout`.

    It was a read or a subscription, which changes nothing at the broker, so repeating it is safe.
    """

    _may_pass = True


class ReplyTooLargeError(BrokerError):
    """The reply to a read is larger than `Limits.max_receive_size`, and ended the connection.

    It was requested twice: the first time, the caller got a `ConnectionLostError`.

    Attributes:
        op: The operation.
        limit: The limit in bytes.
    """

    def __init__(self, op: str, limit: int) -> None:
        super().__init__(op, limit)
        self.op = op
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"the reply to {self.op!r} is larger than Limits.max_receive_size={self.limit} bytes "
            "and ended the connection twice: raise the limit"
        )


class SwapOutcomeUnknownError(BrokerError):
    """A swap was possibly sent, and its outcome is unknown: don't repeat it, look it up.

    Attributes:
        client_order_id: The swap's client order id, for the lookup.
        reason: Why the outcome is unknown.
    """

    def __init__(self, client_order_id: str, reason: str) -> None:
        super().__init__(client_order_id, reason)
        self.client_order_id = client_order_id
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the outcome of swap {self.client_order_id} is unknown ({self.reason}): it may have "
            "been executed; look it up by this id before you swap again"
        )


class OrderUnfinishedError(BrokerError):
    """A swap was accepted, but its order can't be followed any more; the cause says why.

    Don't repeat the swap: track its order with another client.

    Attributes:
        order_id: The order's id at the broker.
        client_order_id: The swap's client order id.
    """

    def __init__(self, order_id: str, client_order_id: str) -> None:
        super().__init__(order_id, client_order_id)
        self.order_id = order_id
        self.client_order_id = client_order_id

    def __str__(self) -> str:
        return (
            f"the swap was accepted as order {self.order_id} (client order id "
            f"{self.client_order_id}), and the connection ended before the order did: don't "
            "repeat the swap, track the order"
        )


class ServerError(BrokerError):
    """The broker refused a message.

    Attributes:
        op: The refused operation, None if unknown.
        message: The first 2,000 characters of the broker's text.
        code: The broker's machine code in upper case, such as ``"INSUFFICIENT_BALANCE"``: the one
            that it sent, or that of a known text. None if there is none.
    """

    def __init__(self, op: str | None, message: str, code: str | None = None) -> None:
        super().__init__(op, message, code)
        self.op = op
        self.message = message
        self.code = code

    def __str__(self) -> str:
        code = self.code if self.code and _folded(self.code) not in _folded(self.message) else ""
        return f"the broker refused {self.op or 'a message'}: {self.message}" + (
            f" ({code})" if code else ""
        )

    @property
    def is_retryable(self) -> bool:
        """Whether repeating the same call later may work. Always False for a swap."""
        return self._may_pass and self.op != "swap"


class AuthenticationError(ServerError):
    """The broker refused to authenticate this client."""


class InvalidSignatureError(AuthenticationError):
    """The signature is wrong: check the secret key and `signing_key`."""


class InvalidApiKeyError(AuthenticationError):
    """The broker doesn't know this API key."""


class ClockSkewError(ServerError):
    """The timestamp is outside of the broker's window of 30 seconds."""

    _may_pass = True

    def __str__(self) -> str:
        return f"{super().__str__()} (this machine's clock is wrong: synchronize it with NTP)"


class NonceReusedError(ServerError):
    """The broker has seen this nonce before."""

    _may_pass = True


class UnknownOperationError(ServerError):
    """The broker doesn't know the operation."""


class InvalidChannelError(ServerError):
    """The broker doesn't know the channel's format."""


class NotAuthenticatedError(ServerError):
    """The broker doesn't consider this connection authenticated; the client replaces it."""

    _may_pass = True


class InsufficientBalanceError(ServerError):
    """The account has too little of the asset to sell."""


class InvalidAmountError(ServerError):
    """The broker doesn't accept the amount."""


class UnknownAssetError(ServerError):
    """The broker doesn't know the asset, or doesn't trade it."""


class OrderNotFoundError(ServerError):
    """The broker doesn't know the order. This says nothing about whether a swap was executed."""

    _may_pass = True


class RateLimitedError(ServerError):
    """Too many messages; the broker takes no more for a while."""

    _may_pass = True


class InvalidRequestError(ServerError):
    """The broker doesn't accept the request's form or one of its values."""


class InternalServerError(ServerError):
    """The broker failed, or a server behind it. A swap may have been executed all the same."""

    _may_pass = True


class SubscriptionLimitError(BrokerError):
    """The subscription would exceed `Limits.max_subscriptions`; nothing was sent.

    Attributes:
        limit: The limit.
    """

    _may_pass = True

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.limit} channels are subscribed to, which is the limit for one connection: "
            "close a subscription first, or open another client"
        )


class ChannelError(BrokerError):
    """The broker pushed an error to a channel; the subscription stays open.

    Attributes:
        channel: The channel's name.
        message: The first 2,000 characters of the broker's text.
    """

    _may_pass = True

    def __init__(self, channel: str, message: str) -> None:
        super().__init__(channel, message)
        self.channel = channel
        self.message = message

    def __str__(self) -> str:
        return f"the broker reports on channel {self.channel!r}: {self.message}"


class SlowConsumerError(BrokerError):
    """A subscription with ``overflow="error"`` ended, because its buffer was full.

    Attributes:
        channel: The channel's name.
        buffer_size: The maximum number of messages in the buffer.
    """

    def __init__(self, channel: str, buffer_size: int) -> None:
        super().__init__(channel, buffer_size)
        self.channel = channel
        self.buffer_size = buffer_size

    def __str__(self) -> str:
        return (
            f"the subscription to {self.channel!r} fell {self.buffer_size} messages behind and "
            "was ended: read faster, or use a larger buffer_size"
        )


class SubscriptionBrokenError(BrokerError, trio.BrokenResourceError):
    """The stream ended because the connection failed permanently; see the ``__cause__``.

    Attributes:
        channel: The channel's name.
    """

    def __init__(self, channel: str) -> None:
        super().__init__(channel)
        self.channel = channel

    def __str__(self) -> str:
        return f"the subscription to {self.channel!r} broke: its connection failed permanently"


class ProtocolError(BrokerError):
    """The broker violated its protocol; the message says where."""

    _may_pass = True


class UnreadableError(ProtocolError):
    """The broker sent an amount that can't be read; the message says which.

    It is raised where the amount is read, so that no program takes it for zero.
    """

    _may_pass = False


# The codes that the broker documents for its REST API, some spellings of them that are common
# elsewhere, and HTTP statuses.
_CODES: Final[Mapping[str, type[ServerError]]] = {
    "INSUFFICIENT_BALANCE": InsufficientBalanceError,
    "INSUFFICIENT_FUNDS": InsufficientBalanceError,
    "INVALID_AMOUNT": InvalidAmountError,
    "UNKNOWN_ASSET": UnknownAssetError,
    "UNSUPPORTED_ASSET": UnknownAssetError,
    "INVALID_ASSET": UnknownAssetError,
    "ASSET_NOT_FOUND": UnknownAssetError,
    "ORDER_NOT_FOUND": OrderNotFoundError,
    "NOT_FOUND": OrderNotFoundError,
    "RATE_LIMIT": RateLimitedError,
    "RATE_LIMITED": RateLimitedError,
    "RATE_LIMIT_EXCEEDED": RateLimitedError,
    "TOO_MANY_REQUESTS": RateLimitedError,
    "INVALID_REQUEST": InvalidRequestError,
    "BAD_REQUEST": InvalidRequestError,
    "INTERNAL_ERROR": InternalServerError,
    "INTERNAL_SERVER_ERROR": InternalServerError,
    "SERVICE_UNAVAILABLE": InternalServerError,
    "GATEWAY_TIMEOUT": InternalServerError,
    "BAD_GATEWAY": InternalServerError,
    "UNAUTHORIZED": NotAuthenticatedError,
    "UNAUTHENTICATED": NotAuthenticatedError,
    "NOT_AUTHENTICATED": NotAuthenticatedError,
    "AUTHENTICATION_REQUIRED": NotAuthenticatedError,
    "AUTH_REQUIRED": NotAuthenticatedError,
    "SESSION_EXPIRED": NotAuthenticatedError,
    "TOKEN_EXPIRED": NotAuthenticatedError,
    "INVALID_SIGNATURE": InvalidSignatureError,
    "INVALID_API_KEY": InvalidApiKeyError,
    "MISSING_API_KEY": InvalidApiKeyError,
    "EXPIRED_REQUEST": ClockSkewError,
    "INVALID_NONCE": NonceReusedError,
    "NONCE_ALREADY_USED": NonceReusedError,
    "NONCE_REUSED": NonceReusedError,
    "UNKNOWN_OPERATION": UnknownOperationError,
    "INVALID_CHANNEL": InvalidChannelError,
    "DUPLICATE_REQUEST": ServerError,
    "DUPLICATE_CLIENT_ORDER_ID": ServerError,
    "SWAP_ERROR": ServerError,
    "400": InvalidRequestError,
    "401": NotAuthenticatedError,
    "404": OrderNotFoundError,
    "429": RateLimitedError,
    **dict.fromkeys(("500", "502", "503", "504"), InternalServerError),
}

# Texts, folded as by `_folded`: how an error's text begins, its class, and its code. The broker's
# documentation lists some of them for its WebSocket API. A code as text, such as "Insufficient
# balance", needs no entry.
_TEXTS: Final[tuple[tuple[str, type[ServerError], str | None], ...]] = (
    ("not authenticated", NotAuthenticatedError, "NOT_AUTHENTICATED"),
    ("authentication required", NotAuthenticatedError, "AUTHENTICATION_REQUIRED"),
    ("unauthorized", NotAuthenticatedError, "UNAUTHORIZED"),
    ("unauthorised", NotAuthenticatedError, "UNAUTHORIZED"),
    ("unauthenticated", NotAuthenticatedError, "UNAUTHENTICATED"),
    ("session expired", NotAuthenticatedError, "SESSION_EXPIRED"),
    ("token expired", NotAuthenticatedError, "TOKEN_EXPIRED"),
    ("request timestamp outside allowed window", ClockSkewError, "EXPIRED_REQUEST"),
    ("nonce has already been used", NonceReusedError, "INVALID_NONCE"),
    ("nonce already used", NonceReusedError, "INVALID_NONCE"),
    ("invalid channel format", InvalidChannelError, "INVALID_CHANNEL"),
    ("not enough balance", InsufficientBalanceError, "INSUFFICIENT_BALANCE"),
    ("unknown order", OrderNotFoundError, "ORDER_NOT_FOUND"),
    ("no such order", OrderNotFoundError, "ORDER_NOT_FOUND"),
    # The longest first: "rate limit exceeded" begins with another code.
    *(
        (code.replace("_", " ").casefold(), _CODES[code], code)
        for code in sorted(_CODES, key=len, reverse=True)
        if not code.isdecimal()
    ),
)

# Other words for a session that the broker no longer knows. A "token" alone may be an asset, and a
# trading session is something else.
_SESSION_ENDED: Final = re.compile(
    r"\b(?<!trading )(?<!market )session( \w+){0,3} "
    r"(expired|ended|closed|invalid(ated)?|revoked|terminated|timed out|not found"
    r"|no longer valid)\b"
    r"|\b(jwt|token|login|authentication|credentials?)"
    r"(?! (\w+ ){0,2}(allowance|approval|order|pair|price|quote|swap)\b)( \w+){0,3} "
    r"(expired|revoked|timed out|no longer valid)\b"
    r"|\b(invalid|unknown|expired|no|missing)( (active|open|valid))? session\b"
    r"|\b(invalid|expired|missing) (auth|access|session) token\b|\bexpired token\b"
    r"|\bnot (logged in|authori[sz]ed|(yet )?authenticated)\b|\blogged out\b"
    r"|\b(please|must|need to|have to) (re ?)?(auth|authenticate|log in|login)\b"
    r"|\bauth(enticate)? first\b"
    r"|\b(re ?authentication|authentication|login) (is )?(required|needed)\b"
)
# With these words, "unauthorized" is about what the account may do, and the session is fine. A swap
# or an order counts only beside it: "Unauthorized: swap" may name the operation.
_PERMISSION: Final = re.compile(
    r"\b(permissions?|permitted)\b"
    r"|\b(accounts?|assets?|coins?|currenc(y|ies)|markets?|networks?|pairs?|symbols?)\b"
    r"|\b(trad(e|es|ed|ing)|withdraw(al|als|ing)?)\b"
    r"|\b(un)?authori[sz]ed (to|for)\b(?! (access|call|connect|make|send|use)\b)"
    r"|\bunauthori[sz]ed (order|swap)s?\b|\b(order|swap)s? (\w+ )?(not |un)authori[sz]ed\b"
)
_ABOUT_SESSION: Final = re.compile(
    r"\bsession\b|authenticat|\bcredentials?\b|\blog(ged)? ?(in|out)\b|\btoken\b.*\bexpired\b"
)
# The order's id may stand between the words.
_NO_ORDER: Final = re.compile(
    r"((the|this) )?(order|client order id)( id)?\b.{0,80}\b(not found|(doesn't|does not) exist)\b"
)
# A sent code stands alone, or a separator follows it.
_SENT_CODE: Final = re.compile(r"\W*([A-Za-z0-9]+(?:_[A-Za-z0-9]+)+|[A-Z]{4,})(?:\W|$)")
_HTTP_STATUS: Final = re.compile(r"^(?:http )?(?:error )?[45][0-9]{2}:? ")
_LONGEST_CODE: Final = 64
_COMPARED: Final = 200


def server_error(
    op: str | None, message: str, redact: Redact = str, code: str | None = None
) -> ServerError:
    """Make the error for a refusal, with the class that its code or text requires.

    Args:
        op: The refused operation, None if unknown.
        message: The broker's text.
        redact: Redacts and shortens the text, after the class was chosen.
        code: The broker's machine code, if it sent one beside the text.

    Returns:
        The subclass of `ServerError` for this code or text, otherwise an `AuthenticationError` for
        ``auth`` and a `ServerError` for other operations.
    """
    sent = redact(code).strip()[:_LONGEST_CODE].upper() if code else ""
    kind, known = _class_of(message, sent)
    if op == "auth":
        kind = _refused_authentication(kind, message)
    elif kind is OrderNotFoundError and op not in {None, "order_status", "swap"}:
        kind = ServerError  # Something else wasn't found.
    return kind(op, redact(message), known)


def _class_of(message: str, sent: str) -> tuple[type[ServerError], str | None]:
    """The class and the code of a refusal."""
    start = message[:_COMPARED]
    match = _SENT_CODE.match(start)
    if not sent and match and match[1].upper() in _CODES:
        sent = match[1].upper()
    by_text, known = _class_of_text(start)
    kind = _CODES.get(re.sub(r"[\s-]", "_", sent), by_text)
    if kind is InvalidRequestError and by_text is UnknownAssetError:
        kind = by_text  # which says more
    return ServerError if _is_about_permission(kind, _folded(start)) else kind, sent or known


def _is_about_permission(kind: type[ServerError], folded: str) -> bool:
    """Whether a text is about what the account may do, although its first words are of `kind`."""
    if kind is InvalidApiKeyError:
        return "permission" in folded
    is_about_session = kind is not NotAuthenticatedError or _ABOUT_SESSION.search(folded)
    return not is_about_session and bool(_PERMISSION.search(folded))


def _class_of_text(start: str) -> tuple[type[ServerError], str | None]:
    """The class of a text, and its code if the whole text is known."""
    folded = _HTTP_STATUS.sub("", _folded(start), count=1)
    for beginning, kind, code in _TEXTS:
        if folded.startswith(beginning) and not folded[len(beginning) :][:1].isalnum():
            # What follows may change the meaning: "Insufficient balance check timed out".
            rest = folded[len(beginning) :].strip(" .!])}\"'")
            return kind, code if not rest or kind in _WITH_A_NAME else None
    if _NO_ORDER.match(folded):
        return OrderNotFoundError, "ORDER_NOT_FOUND"
    if _SESSION_ENDED.search(folded):
        return NotAuthenticatedError, None
    return ServerError, None


# The broker's texts of these end with a name: "Unknown operation: dance".
_WITH_A_NAME: Final = frozenset({UnknownOperationError, UnknownAssetError, NonceReusedError})


def _refused_authentication(kind: type[ServerError], message: str) -> type[ServerError]:
    """The class of a refused ``auth``, where "unauthorized" is about the key."""
    is_about_key = "unauthori" in _folded(message)
    if kind is NotAuthenticatedError and is_about_key:
        return AuthenticationError
    return AuthenticationError if kind in {ServerError, OrderNotFoundError} else kind


def _folded(text: str) -> str:
    """A text as it is compared: without regard to case, underscores and leading punctuation."""
    words = re.sub(r"[\s_-]+", " ", text[:_COMPARED]).casefold()
    return words.lstrip(" \"'[({*#!").rstrip()


def fresh(error: _E) -> _E:
    """Copy an error before it is raised, so that no error object is raised twice.

    An exception that is raised repeatedly accumulates a traceback of thousands of frames, and two
    tasks that raise the same one overwrite each other's traceback.
    """
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin.with_traceback(None)
