"""The errors that this library raises, in one tree.

    BrokerError
    ├── ConfigurationError (ValueError)         an option or a key that can't work
    ├── MessageTooLargeError (ValueError)       a message over the limit: nothing was sent
    ├── NotSentError                            nothing was sent: repeating is safe
    │   ├── NotConnectedError                   there is no connection to send it on
    │   │   └── ClientClosedError (trio.ClosedResourceError)
    │   ├── JournalError                        the journal of swaps can't be read or written
    │   ├── SlippageError                       an estimate brings less than was asked for
    │   └── QuoteExpiredError                   an estimate ended before it could be used
    ├── DuplicateClientOrderIdError             another swap may have left under this id
    ├── ConnectFailedError                      no WebSocket could be opened
    │   └── CertificateError                    its certificate isn't trusted, or another host's
    ├── ConnectionLostError                     a WebSocket that was open is gone
    ├── ReconnectFailedError                    every try to replace it has failed
    ├── AuthenticationTimeoutError              the broker didn't answer `auth`
    ├── RequestTimeoutError                     sent, but not answered in time
    ├── SwapOutcomeUnknownError                 a swap left, and what became of it is not known
    ├── OrderUnfinishedError                    a swap was taken, and its end can't be waited for
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
    └── ProtocolError                           the broker sent what its protocol doesn't allow

Each is made from plain arguments, so that it survives pickling and copying. No key, secret or
signature is ever part of one.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

import trio

_E = TypeVar("_E", bound=BaseException)


class BrokerError(Exception):
    """The root of this library's errors."""


class ConfigurationError(BrokerError, ValueError):
    """An option, a key or a URL that can't work; the message names which."""


class MessageTooLargeError(BrokerError, ValueError):
    """A message over `Limits.max_message_size`; it was refused here, and nothing was sent.

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
            "send less, or raise Limits.max_message_size if the broker takes more"
        )


class NotSentError(BrokerError):
    """Nothing was sent, so repeating the call is safe."""


class NotConnectedError(NotSentError):
    """There is no connection to send on; nothing was sent."""


class ClientClosedError(NotConnectedError, trio.ClosedResourceError):
    """The client was closed by its owner; nothing was sent."""


class JournalError(NotSentError):
    """The journal of swaps can't be read or written; nothing was sent."""


class SlippageError(NotSentError):
    """A fresh estimate brings less than `min_out`; nothing was sent.

    Attributes:
        expected_out: What the estimate brings.
        min_out: What was asked for at least.
    """

    def __init__(self, expected_out: Decimal, min_out: Decimal) -> None:
        super().__init__(expected_out, min_out)
        self.expected_out = expected_out
        self.min_out = min_out

    def __str__(self) -> str:
        return (
            f"the estimate brings {self.expected_out:f}, less than min_out={self.min_out:f}: "
            "nothing was sent"
        )


class QuoteExpiredError(NotSentError):
    """An estimate had ended before a swap could be sent on the strength of it; nothing was sent.

    Attributes:
        expired_at: When it ended, by the broker's clock.
    """

    def __init__(self, expired_at: dt.datetime) -> None:
        super().__init__(expired_at)
        self.expired_at = expired_at

    def __str__(self) -> str:
        return (
            f"the estimate ended at {self.expired_at.isoformat()}: nothing was sent (if it "
            "always has, this machine's clock is ahead)"
        )


class DuplicateClientOrderIdError(BrokerError):
    """Another swap under this client order id may have left; this one was refused here.

    Nothing was sent. It is no `NotSentError`, as repeating it under another id would swap a second
    time if the earlier one was executed.

    Attributes:
        client_order_id: The id.
        outcome: What became of the earlier swap, a `SwapOutcome`.
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
        status: The HTTP status of the broker's answer, None where it didn't come to one.
        retry_after: The seconds that the broker asked to wait (its ``Retry-After``), or None.
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
    """The certificate at the other end isn't trusted, or is another host's; nothing was sent."""


class ReconnectFailedError(BrokerError):
    """Every try to replace a lost connection has failed; the last reason is its ``__cause__``.

    Attributes:
        attempts: How many tries there were.
        last: What the last one ended with, in words.
    """

    def __init__(self, attempts: int, last: str) -> None:
        super().__init__(attempts, last)
        self.attempts = attempts
        self.last = last

    def __str__(self) -> str:
        return f"gave up after {self.attempts} tries to connect again; the last: {self.last}"


class ConnectionLostError(BrokerError):
    """A WebSocket that was open is gone.

    Attributes:
        code: The WebSocket close code (RFC 6455, section 7.4), None where none came.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


class AuthenticationTimeoutError(BrokerError):
    """The broker didn't answer `auth` within `auth_timeout`."""


class RequestTimeoutError(BrokerError):
    """A request was sent and not answered within `request_timeout`.

    It was a read or a subscription, which changes nothing at the broker: asking again is safe.
    """


class SwapOutcomeUnknownError(BrokerError):
    """A swap left, and what became of it is not known: do not just repeat it.

    Attributes:
        client_order_id: The id that went along with the swap, to ask the broker about it.
        reason: Why the outcome isn't known.
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
    """A swap was taken, and its order's end can't be waited for any more; the cause says why.

    Don't repeat the swap: track its order, on another client.

    Attributes:
        order_id: The order's id at the broker.
        client_order_id: The id that went along with the swap.
    """

    def __init__(self, order_id: str, client_order_id: str) -> None:
        super().__init__(order_id, client_order_id)
        self.order_id = order_id
        self.client_order_id = client_order_id

    def __str__(self) -> str:
        return (
            f"the swap was taken as order {self.order_id} (client order id "
            f"{self.client_order_id}), and the connection ended before the order did: don't "
            "repeat the swap, track the order"
        )


class ServerError(BrokerError):
    """The broker refused.

    Attributes:
        op: The operation that was refused, as far as it is known.
        message: The broker's text, as it came.
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
    """The signature doesn't fit: the secret key is wrong, or `signing_key` is."""


class InvalidApiKeyError(AuthenticationError):
    """The broker doesn't know this API key."""


class ClockSkewError(ServerError):
    """The timestamp is outside of the broker's window of 30 seconds."""

    def __str__(self) -> str:
        return f"{super().__str__()} (this machine's clock is off: synchronize it, with NTP say)"


class NonceReusedError(ServerError):
    """The broker has seen this nonce before."""


class UnknownOperationError(ServerError):
    """The broker doesn't know the operation."""


class InvalidChannelError(ServerError):
    """The broker doesn't know the channel's format."""


class NotAuthenticatedError(ServerError):
    """The broker doesn't take this connection for authenticated."""


class SubscriptionLimitError(BrokerError):
    """One more channel than `Limits.max_subscriptions` allows; nothing was sent.

    Attributes:
        limit: The limit.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.limit} channels are subscribed to already, as many as one connection may have: "
            "close a subscription first, or open another client"
        )


class ChannelError(BrokerError):
    """The broker pushed an error to a channel; the subscription stays open.

    Attributes:
        channel: The channel's name.
        message: The broker's text, as it came.
    """

    def __init__(self, channel: str, message: str) -> None:
        super().__init__(channel, message)
        self.channel = channel
        self.message = message

    def __str__(self) -> str:
        return f"the broker reports on channel {self.channel!r}: {self.message}"


class SlowConsumerError(BrokerError):
    """A subscription with ``overflow="error"`` ended, since its buffer was full.

    Attributes:
        channel: The channel's name.
        buffer_size: How many messages the buffer holds.
    """

    def __init__(self, channel: str, buffer_size: int) -> None:
        super().__init__(channel, buffer_size)
        self.channel = channel
        self.buffer_size = buffer_size

    def __str__(self) -> str:
        return (
            f"the subscription to {self.channel!r} fell {self.buffer_size} messages behind and "
            "was ended: read faster, or give it a larger buffer_size"
        )


class SubscriptionBrokenError(BrokerError, trio.BrokenResourceError):
    """The connection failed for good, and this stream with it; the cause is its ``__cause__``.

    Attributes:
        channel: The channel's name.
    """

    def __init__(self, channel: str) -> None:
        super().__init__(channel)
        self.channel = channel

    def __str__(self) -> str:
        return f"the subscription to {self.channel!r} broke: its connection failed for good"


class ProtocolError(BrokerError):
    """The broker sent what its protocol doesn't allow; the message says where."""


# The broker's documentation gives these texts for its WebSocket side. `Unknown operation: <op>`
# has a tail of its own, so the texts are compared as beginnings, without regard to case.
_BY_TEXT: tuple[tuple[str, type[ServerError]], ...] = (
    ("not authenticated", NotAuthenticatedError),
    ("invalid signature", InvalidSignatureError),
    ("invalid api key", InvalidApiKeyError),
    ("request timestamp outside allowed window", ClockSkewError),
    ("nonce has already been used", NonceReusedError),
    ("unknown operation", UnknownOperationError),
    ("invalid channel format", InvalidChannelError),
)


def server_error(op: str | None, message: str, erase: Callable[[str], str] = str) -> ServerError:
    """The error of the right class for a refusal's text.

    Args:
        op: The operation that was refused, where it is known.
        message: The broker's text.
        erase: Takes out of it what nobody must see, after it has told the class.

    Returns:
        A `ServerError`, of the class that the text names where the text is a documented one.
        A refused ``auth`` whose text isn't known is an `AuthenticationError`.
    """
    folded = message.casefold()
    for beginning, kind in _BY_TEXT:
        if folded.startswith(beginning):
            return kind(op, erase(message))
    return (AuthenticationError if op == "auth" else ServerError)(op, erase(message))


def fresh(error: _E) -> _E:
    """A copy of an error to raise, so that no error is raised twice.

    An exception object that is raised again and again collects a traceback of thousands of
    frames, and two tasks that raise the same one write over each other's.
    """
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin.with_traceback(None)
