"""Which errors show that a swap was refused, and which leave its outcome unknown.

Once any byte of a swap may have been sent, an error refuses it only if it shows that the broker
hasn't executed it. It does if it names the operation. It also does if the swap was alone in flight
and the error says that the message itself wasn't accepted. "Nonce already used" shows nothing: our
nonces are unique, so the broker may have executed an earlier delivery of the same message.
"""

from __future__ import annotations

from typing import Final

from trio_broker._protocol.requests import Request
from trio_broker.exceptions import (
    AuthenticationError,
    BrokerError,
    ClockSkewError,
    NonceReusedError,
    NotAuthenticatedError,
    ServerError,
    UnknownOperationError,
)

_NOT_ACCEPTED: Final = (
    AuthenticationError,
    ClockSkewError,
    NotAuthenticatedError,
    UnknownOperationError,
)


def is_refusal(request: Request, error: BrokerError) -> bool:
    """Whether an error shows that the broker has not executed a swap."""
    if not isinstance(error, ServerError) or isinstance(error, NonceReusedError):
        return False
    return request.names_op or (request.was_alone and isinstance(error, _NOT_ACCEPTED))


def says_not_found(error: BrokerError | None) -> bool:
    """Whether this answer to a lookup means that the broker doesn't know the order.

    The swap may have been executed even so. Only the documented REST API promises to find an order
    by its client order id.
    """
    if not isinstance(error, ServerError):
        return False
    return "not found" in error.message.casefold().replace("_", " ")
