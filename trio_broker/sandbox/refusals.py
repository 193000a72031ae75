"""The texts of refusals: the documented ones, and the sandbox's own. And their codes."""

from __future__ import annotations

import re
from typing import Final

# Documented for the broker's WebSocket.
NOT_AUTHENTICATED: Final = "Not authenticated"
INVALID_SIGNATURE: Final = "Invalid signature"
INVALID_API_KEY: Final = "Invalid API key"
TIMESTAMP_OUTSIDE_WINDOW: Final = "Request timestamp outside allowed window"
NONCE_REUSED: Final = "Nonce has already been used or is expired"
UNKNOWN_OPERATION: Final = "Unknown operation: "
INVALID_CHANNEL: Final = "Invalid channel format"

# The sandbox's own.
ALREADY_AUTHENTICATED: Final = "Already authenticated with another key"
BINARY_MESSAGE: Final = "Binary messages are not supported"
CONNECTION_LIMIT: Final = "Connection limit exceeded"
DUPLICATE_CLIENT_ORDER_ID: Final = "Duplicate client order id"
INSUFFICIENT_BALANCE: Final = "Insufficient balance"
INVALID_AMOUNT: Final = "Invalid amount"
INVALID_REQUEST: Final = "Invalid request: "
MALFORMED_MESSAGE: Final = "Malformed message: "
ORDER_NOT_FOUND: Final = "Order not found"
RATE_LIMIT: Final = "Rate limit exceeded"
SAME_ASSET: Final = "An asset can't be swapped for itself"
SUBSCRIPTION_LIMIT: Final = "Subscription limit exceeded"
UNKNOWN_ASSET: Final = "Unknown asset: "
UNKNOWN_SOURCE: Final = "Unknown liquidity source: "

# The codes of the broker's REST side, for errors as objects.
_CODES: Final = {
    NOT_AUTHENTICATED: "UNAUTHORIZED",
    INVALID_API_KEY: "UNAUTHORIZED",
    INVALID_SIGNATURE: "INVALID_SIGNATURE",
    TIMESTAMP_OUTSIDE_WINDOW: "EXPIRED_REQUEST",
    NONCE_REUSED: "INVALID_NONCE",
    DUPLICATE_CLIENT_ORDER_ID: "DUPLICATE_REQUEST",
    INSUFFICIENT_BALANCE: "INSUFFICIENT_BALANCE",
    INVALID_AMOUNT: "INVALID_AMOUNT",
    ORDER_NOT_FOUND: "ORDER_NOT_FOUND",
    RATE_LIMIT: "RATE_LIMIT_EXCEEDED",
}
_OTHER_CODE: Final = "INVALID_REQUEST"
_CODE_FIRST: Final = re.compile(r"[A-Z]+(_[A-Z]+)+\b")

_LONGEST_QUOTATION: Final = 64


class Refusal(Exception):  # noqa: N818 - it is an answer to a client, not an error of the sandbox
    """The sandbox refuses a message; the text goes to the client.

    Args:
        text: One of this module's texts.
        detail: What follows a text that ends in a colon. It may quote the client, so it is cut:
            an answer must not be as long as whatever a client sends.
    """

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text + shortened(detail))


def error_code(text: str) -> str:
    """The REST code of a refusal. A text that begins with a code has that one."""
    first = _CODE_FIRST.match(text)
    return first.group() if first else _CODES.get(text, _OTHER_CODE)


def shortened(text: str) -> str:
    """The first 64 characters of a client's text, for a reply or a log line."""
    return text if len(text) <= _LONGEST_QUOTATION else text[:_LONGEST_QUOTATION] + "…"
