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
    │   └── NotAuthenticatedError
    ├── SubscriptionLimitError                  more channels than one connection may have
    ├── ChannelError                            the broker pushed an error to a channel
    ├── SlowConsumerError                       a buffer overflowed under ``overflow="error"``
    ├── SubscriptionBrokenError (trio.BrokenResourceError)
    └── ProtocolError                           the broker violated its protocol

Each is made from plain arguments, so that it can be pickled and copied. No error contains a key, a
secret or a signature.
"""

from __future__ import annotations

import copy
import datetime as dt
from decimal import Decimal
from typing import TypeVar

import trio

from trio_broker.redaction import Redact

_E = TypeVar("_E", bound=BaseException)


class BrokerError(Exception):
    """The base class of this library's errors."""


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


class NotConnectedError(NotSentError):
    """There is no connection; nothing was sent."""


class ClientClosedError(NotConnectedError, trio.ClosedResourceError):
    """The client was closed by its owner; nothing was sent."""


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
    """Another swap was possibly sent under this client order id; this one was not sent.

    It isn't a `NotSentError`: if the earlier swap was executed, repeating this one under another id
    would swap twice.

    Attributes:
        client_order_id: The id.
        outcome: The outcome of the earlier swap, a `SwapOutcome`.
    """

    def __init__(self, client_order_id: str, outcome: str) -> None:
        super().__init__(client_order_id, outcome)
        self.client_order_id = client_order_id
        self.outcome = outcome

    def __str__(self) -> str:
        return (
            f"an earlier swap has the client order id {self.client_order_id} (its outcome: "
            f"{self.outcome}); nothing was sent"
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


class CertificateError(ConnectFailedError):
    """The certificate is untrusted or another host's, or this machine has no CA certificates.

    Nothing was sent.
    """


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

    def __init__(self, message: str, code: int | None = None, is_local: bool = False) -> None:
        super().__init__(message, code, is_local)
        self.message = message
        self.code = code
        self.is_local = is_local

    def __str__(self) -> str:
        return self.message


class AuthenticationTimeoutError(BrokerError):
    """The broker didn't reply to `auth` within `auth_timeout`."""


class RequestTimeoutError(BrokerError):
    """A request was sent, but the broker didn't reply within `request_timeout`.

    It was a read or a subscription, which changes nothing at the broker, so repeating it is safe.
    """


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
    """

    def __init__(self, op: str | None, message: str) -> None:
        super().__init__(op, message)
        self.op = op
        self.message = message

    def __str__(self) -> str:
        return f"the broker refused {self.op or 'a message'}: {self.message}"


class AuthenticationError(ServerError):
    """The broker refused to authenticate this client."""


class InvalidSignatureError(AuthenticationError):
    """The signature is wrong: check the secret key and `signing_key`."""


class InvalidApiKeyError(AuthenticationError):
    """The broker doesn't know this API key."""


class ClockSkewError(ServerError):
    """The timestamp is outside of the broker's window of 30 seconds."""

    def __str__(self) -> str:
        return f"{super().__str__()} (this machine's clock is wrong: synchronize it with NTP)"


class NonceReusedError(ServerError):
    """The broker has seen this nonce before."""


class UnknownOperationError(ServerError):
    """The broker doesn't know the operation."""


class InvalidChannelError(ServerError):
    """The broker doesn't know the channel's format."""


class NotAuthenticatedError(ServerError):
    """The broker doesn't consider this connection authenticated."""


class SubscriptionLimitError(BrokerError):
    """The subscription would exceed `Limits.max_subscriptions`; nothing was sent.

    Attributes:
        limit: The limit.
    """

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


# The broker's documentation lists these texts for its WebSocket API. `Unknown operation: <op>`
# varies at its end, so only the beginning is compared, without regard to case.
_BY_TEXT: tuple[tuple[str, type[ServerError]], ...] = (
    ("not authenticated", NotAuthenticatedError),
    ("invalid signature", InvalidSignatureError),
    ("invalid api key", InvalidApiKeyError),
    ("request timestamp outside allowed window", ClockSkewError),
    ("nonce has already been used", NonceReusedError),
    ("unknown operation", UnknownOperationError),
    ("invalid channel format", InvalidChannelError),
)


def server_error(op: str | None, message: str, redact: Redact = str) -> ServerError:
    """Make the error for a refusal, with the class that its text requires.

    Args:
        op: The refused operation, None if unknown.
        message: The broker's text.
        redact: Redacts and shortens the text, after the class was chosen.

    Returns:
        The documented subclass of `ServerError` for this text, otherwise an `AuthenticationError`
        for ``auth`` and a `ServerError` for other operations.
    """
    folded = message[:100].casefold()
    text = redact(message)
    for beginning, kind in _BY_TEXT:
        if folded.startswith(beginning):
            return kind(op, text)
    return (AuthenticationError if op == "auth" else ServerError)(op, text)


def fresh(error: _E) -> _E:
    """Copy an error before it is raised, so that no error object is raised twice.

    An exception that is raised repeatedly accumulates a traceback of thousands of frames, and two
    tasks that raise the same one overwrite each other's traceback.
    """
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin.with_traceback(None)
