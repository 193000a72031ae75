"""A swap's name, and which errors refuse it: nothing is guessed.

Once any byte of a swap may have left, an error refuses it only if it shows that the broker hasn't
executed it. It does if it names the operation, or if it came with the swap alone in flight and says
that the message itself wasn't accepted. "Nonce already used" shows nothing: our nonces are unique,
so the broker may have executed an earlier delivery of the very same message.
"""

from __future__ import annotations

import secrets
import time
from typing import Final

from trio_broker.exceptions import (
    AuthenticationError,
    BrokerError,
    ClockSkewError,
    NonceReusedError,
    NotAuthenticatedError,
    ServerError,
    UnknownOperationError,
)
from trio_broker.request import Request
from trio_broker.wire import check_text

MAX_CLIENT_ORDER_ID: Final = 64
# What the ids begin with that this library makes: no order id of the broker's does.
MADE_HERE: Final = "tb-"
_NOT_ACCEPTED: Final = (
    AuthenticationError,
    ClockSkewError,
    NotAuthenticatedError,
    UnknownOperationError,
)


def new_client_order_id() -> str:
    """A client order id that nobody has used, as `do_swap` makes one where none is given.

    Returns:
        ``tb-<milliseconds since the epoch>-<80 random bits>``: ids sort by the time they were
        made, and the bits come from the operating system, so that no process, fork or restart
        repeats them.
    """
    return f"{MADE_HERE}{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(10)}"


def check_client_order_id(client_order_id: str) -> str:
    """A client order id that the broker can be sent.

    Args:
        client_order_id: The id, of 1 to 64 characters.

    Raises:
        TypeError: It isn't a str.
        ValueError: It is empty, too long, or has a character that can't be sent.
    """
    check_text(client_order_id, "client_order_id")
    if len(client_order_id) > MAX_CLIENT_ORDER_ID:
        raise ValueError(
            f"client_order_id has {len(client_order_id)} characters, and may have "
            f"{MAX_CLIENT_ORDER_ID}"
        )
    return client_order_id


def says_not_found(error: BrokerError | None) -> bool:
    """Whether a lookup was answered, and with this: the broker doesn't know the order.

    That is no word on whether it was executed: only the documented REST side promises to know an
    order by its client order id.

    Args:
        error: What the lookup ended with.
    """
    if not isinstance(error, ServerError):
        return False
    return "not found" in error.message.casefold().replace("_", " ")


def is_refusal(request: Request, error: BrokerError) -> bool:
    """Whether an error shows that the broker has not executed a swap.

    Args:
        request: The swap's request.
        error: What came.
    """
    if not isinstance(error, ServerError) or isinstance(error, NonceReusedError):
        return False
    return request.named or (request.alone and isinstance(error, _NOT_ACCEPTED))
