"""The faults of the sandbox that have a name for what goes wrong: one table.

Each is a method of `Faults` with its arguments. `Faults.start`, the pytest marker and the command
take the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

_UINT256: Final = str(2**256 - 1)
_TOO_LARGE: Final = 2 * 1024 * 1024

# A broker may call a duplicate by any of these.
DUPLICATE_TEXTS: Final = (
    "Duplicate client order id",
    "DUPLICATE_REQUEST",
    "  duplicate request: the order already exists",
    "Order is already being processed",
    "CLIENT ORDER ID EXISTS",
    "Nonce already used",
    "NONCE_ALREADY_USED",
)
# Errors that leave open what became of the request.
DOUBTFUL_TEXTS: Final = (
    "Internal server error",
    "INTERNAL_ERROR",
    "Timeout waiting for execution",
    "504 Gateway Timeout",
    "upstream connection closed: EOF",
    "Service temporarily unavailable, try again",
    "SWAP_ERROR: venue timed out",
)


def _as_number(order_id: object) -> object:
    text = str(order_id)
    return int(text) if text.isdecimal() and text[0] != "0" else order_id


@attrs.frozen
class NamedFault:
    """A fault with a name.

    Attributes:
        what: What goes wrong.
        method: The method of `Faults`.
        arguments: Its arguments.
    """

    what: str
    method: str
    arguments: Mapping[str, Any]


def _fault(what: str, method: str, **arguments: Any) -> NamedFault:
    return NamedFault(what, method, arguments)


NAMED_FAULTS: Final[Mapping[str, NamedFault]] = {
    # Connections
    "busy": _fault(
        "Connections are refused with 503 and a `Retry-After` of 1.939 seconds.",
        "refuse_connections", headers={"Retry-After": "1.939"},
    ),
    "redirect": _fault(
        "Connections are redirected to another address.",
        "refuse_connections", status=307, headers={"Location": "wss://broker.example/ws"},
    ),
    "handshake_not_http": _fault(
        "The response to a handshake isn't HTTP.", "alter_handshakes", how="not_http"
    ),
    "handshake_truncated": _fault(
        "The response to a handshake ends in the middle.", "alter_handshakes", how="truncated"
    ),
    "handshake_wrong_accept": _fault(
        "The response to a handshake has a wrong `Sec-WebSocket-Accept`.",
        "alter_handshakes", how="wrong_accept",
    ),
    "handshake_no_reason": _fault(
        "The response to a handshake has no reason phrase.", "alter_handshakes", how="no_reason"
    ),
    "handshake_http_1_0": _fault(
        "The response to a handshake is of HTTP/1.0.", "alter_handshakes", how="http_1_0"
    ),
    "handshake_long_headers": _fault(
        "The response to a handshake has 12 KB of headers.", "alter_handshakes", how="long_headers"
    ),
    "handshake_interim": _fault(
        "The responses 100 and 103 come before that to a handshake.",
        "alter_handshakes", how="interim",
    ),
    "handshake_extension": _fault(
        "The response to a handshake has an unwanted extension.",
        "alter_handshakes", how="extension",
    ),
    "handshake_subprotocol": _fault(
        "The response to a handshake has an unwanted subprotocol.",
        "alter_handshakes", how="subprotocol",
    ),
    "hang_up_after_auth": _fault(
        "Each connection is ended right after its authentication.",
        "disconnect", op="auth", reply=True,
    ),
    "clock_behind": _fault(
        "The broker's clock is a minute behind: timestamps are refused, and orders get earlier "
        "times than before.",
        "shift_clock", seconds=-60.0,
    ),
    "session_forgotten": _fault(
        "Requests for balances are refused as not authenticated.",
        "refuse", error="Not authenticated", op="balances",
    ),
    "session_expired": _fault(
        "Requests for balances get an error of `auth`: the session has expired.",
        "refuse", error="Session expired", members={"op": "auth"}, op="balances",
    ),
    # Swaps
    "swap_reply_lost": _fault(
        "Swaps are executed, but their replies are lost.", "swallow", op="swap"
    ),
    "swap_reply_late": _fault(
        "The replies to swaps come 12 seconds late.", "delay", seconds=12.0, op="swap"
    ),
    "swap_reply_twice": _fault(
        "The replies to swaps come again a second later.", "duplicate", after=1.0, op="swap"
    ),
    "swap_connection_lost": _fault(
        "Swaps are executed, but the connection is reset instead of a reply.",
        "disconnect", op="swap",
    ),
    "swap_refused": _fault(
        "Swaps are refused, always in the same words.",
        "refuse", error="Insufficient balance", op="swap",
    ),
    "swap_error_late": _fault(
        "Swaps are executed; 12 seconds later comes an error.",
        "refuse", error="SWAP_ERROR: venue timed out", executed=True, after=12.0, op="swap",
    ),
    "swap_error_doubtful": _fault(
        "Swaps are executed, but the reply is an internal error or a timeout, in varying words.",
        "refuse", error=DOUBTFUL_TEXTS, executed=True, op="swap",
    ),
    "swap_error_duplicate": _fault(
        "Swaps are executed, but refused as duplicates, in varying words.",
        "refuse", error=DUPLICATE_TEXTS, executed=True, op="swap",
    ),
    "swap_error_then_receipt": _fault(
        "Swaps are refused, but the receipt comes a second later.",
        "refuse", error="Insufficient balance", executed=True, reply_after=1.0, op="swap",
    ),
    "swap_error_of_another": _fault(
        "Swaps are executed, but the reply is an error that names another client order id.",
        "refuse", error="Insufficient balance", executed=True, op="swap",
        members={"data": {"clientOrderId": "another"}},
    ),
    "swap_error_of_another_order": _fault(
        "Swaps are executed, but the reply is an error that names another order.",
        "refuse", error="Insufficient balance", executed=True, op="swap",
        members={"data": {"orderId": "ord_another"}},
    ),
    "swap_receipt_of_another": _fault(
        "The receipts of swaps name another client order id.",
        "change", add={"clientOrderId": "another"}, op="swap",
    ),
    "swap_receipt_of_another_order": _fault(
        "The receipts of swaps name another order, always the same one.",
        "change", members={"orderId": "ord_another"}, op="swap",
    ),
    "swap_receipt_incomplete": _fault(
        "The receipts of swaps have no order id.", "change", without=["orderId"], op="swap"
    ),
    # Orders
    "lookup_of_another_order": _fault(
        "Lookups of orders are answered with another order.",
        "change", members={"orderId": "ord_another"}, op="order_status",
    ),
    "push_of_another_order": _fault(
        "Pushes about an order name another one.",
        "change", members={"orderId": "ord_another"}, channel="orders:*",
    ),
    "lookup_too_large": _fault(
        "The replies to lookups of orders have 2 MiB.", "pad", size=_TOO_LARGE, op="order_status"
    ),
    "numeric_ids": _fault(
        "Order ids are sent as numbers. Set `order_id_prefix` to digits.",
        "change", members={"orderId": _as_number},
    ),
    "order_fields_odd": _fault(
        "`filledOut` is empty, and `txHash` is a number.",
        "change", members={"filledOut": "", "txHash": 5},
    ),
    "order_times_as_text": _fault(
        "`updatedAt` is a text.", "change", members={"updatedAt": str}
    ),
    "order_times_as_float": _fault(
        "`updatedAt` has a fraction.", "change", members={"updatedAt": lambda ms: ms + 0.25}
    ),
    "order_times_set_back": _fault(
        "`updatedAt` is a minute earlier, though requests are checked by the right time.",
        "change",
        members={"updatedAt": lambda ms: ms - 60_000},
    ),
    "order_times_in_seconds": _fault(
        "`updatedAt` is in seconds.", "change", members={"updatedAt": lambda ms: ms // 1000}
    ),
    "order_times_in_microseconds": _fault(
        "`updatedAt` is in microseconds.", "change", members={"updatedAt": lambda ms: ms * 1000}
    ),
    "order_status_missing": _fault(
        "Orders have no status, in lookups and pushes.", "change", without=["status"]
    ),
    # Balances and estimates
    "balance_unreadable": _fault(
        "The balance of BTC is `NaN`; the others are right.",
        "change", members={"total": "NaN"}, asset="BTC",
    ),
    "balance_no_number": _fault(
        "The balance of BTC is an object; the others are right.",
        "change", members={"total": {}}, asset="BTC",
    ),
    "balance_too_long": _fault(
        "The balance of BTC has 200 digits; the others are right.",
        "change", members={"total": "9" * 200}, asset="BTC",
    ),
    "balance_no_object": _fault(
        "There is a number among the balances.",
        "change", members={"balances": lambda balances: [5, *balances]}, op="balances",
    ),
    "balance_locked_empty": _fault(
        "`locked` is empty.", "change", members={"locked": ""}
    ),
    "amounts_large": _fault(
        "Balances, filled and expected amounts have 78 digits.",
        "change",
        members={"total": _UINT256, "filledOut": _UINT256, "expectedOut": _UINT256},
    ),
    "estimate_late": _fault(
        "The replies to estimates come 12 seconds late.", "delay", seconds=12.0, op="estimate"
    ),
    "estimate_lost": _fault(
        "Every tenth estimate gets no reply.", "swallow", op="estimate", every=10
    ),
    "estimate_no_price": _fault(
        "Estimates have no price.", "change", without=["price"], op="estimate"
    ),
    "balances_malformed": _fault(
        "The replies to requests for balances aren't JSON.",
        "replace", message='{"op":"balances","data":', op="balances",
    ),
    # The REST side
    "rest_down": _fault("REST connections are reset instead of a reply.", "stop_rest"),
    "rest_silent": _fault(
        "REST requests get no reply, and their connections stay open.", "stop_rest", how="silence"
    ),
    "rest_slow": _fault("REST replies come 12 seconds late.", "delay_rest", seconds=12.0),
    "rest_limited": _fault(
        "REST requests are refused with 429 and a `Retry-After` of 7 seconds.",
        "refuse_rest", status=429, code="RATE_LIMIT", message="Rate limit exceeded",
        headers={"Retry-After": "7"},
    ),
    "rest_failing": _fault("REST requests are refused with 500.", "refuse_rest"),
    "rest_redirect": _fault(
        "REST requests are redirected to another address.",
        "refuse_rest", status=307, headers={"Location": "https://broker.example/"},
    ),
    "rest_garbage": _fault(
        "REST replies have the status 200, but aren't JSON.",
        "replace_rest", body="<html>Bad Gateway</html>",
    ),
    "rest_wrong_types": _fault(
        "REST replies are JSON, but not an object.", "replace_rest", body="[null]"
    ),
    "rest_too_large": _fault("REST replies have a gigabyte.", "pad_rest", size=1 << 30),
    "rest_orders_hidden": _fault(
        "Lookups of orders over REST are answered with `NOT_FOUND` for 12 seconds.",
        "hide_orders_from_rest", seconds=12.0,
    ),
    "rest_order_of_another": _fault(
        "Lookups over REST are answered with another order, of another client order id.",
        "change_rest", members={"orderId": "ord_another", "clientOrderId": "another"},
    ),
    "rest_clock_ahead": _fault(
        "The time that REST tells is an hour ahead, though requests are checked by the right time.",
        "shift_rest_clock", seconds=3600.0,
    ),
    # Anything
    "subscription_rejected": _fault(
        "Subscriptions are acknowledged with the status `rejected`.",
        "change", members={"status": "rejected"}, op="subscribe",
    ),
    "errors_with_op_error": _fault(
        "Swaps are refused by errors whose `op` is `error`.",
        "refuse", error="Insufficient balance", members={"op": "error"}, op="swap",
    ),
    "errors_echo_keys": _fault(
        "Estimates are refused, and the error repeats the request with its signature.",
        "refuse", error="Invalid request", echo=True, op="estimate",
    ),
    "errors_huge": _fault(
        "Estimates are refused by errors of 900 KB.",
        "refuse", error="x" * 900_000, op="estimate",
    ),
    "unknown_members": _fault(
        "Replies and pushes have a further member.", "change", add={"unexpected": [None]}
    ),
}  # fmt: skip
