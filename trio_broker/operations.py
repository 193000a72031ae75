"""The documented operations as requests: what is sent for each, and what its reply becomes.

All that a user passes is checked here, before anything is queued.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from trio_broker import wire
from trio_broker.exceptions import MessageTooLargeError
from trio_broker.models import Amount, amount_text
from trio_broker.request import Priority, Request
from trio_broker.swaps import check_client_order_id

MAX_SLIPPAGE_BPS: Final = 10_000


def authentication(deadline: float) -> Request:
    """The ``auth`` message.

    Args:
        deadline: When its reply isn't waited for any more.
    """
    return Request("auth", Priority.AUTH, wire.decode_authenticated, deadline)


def balances(deadline: float, priority: Priority = Priority.READ) -> Request:
    """The ``balances`` operation, which has no body.

    Args:
        deadline: When its reply isn't waited for any more.
        priority: When it leaves.
    """
    return Request("balances", priority, wire.decode_balances, deadline)


def order_status(order_id: str, deadline: float, priority: Priority = Priority.READ) -> Request:
    """The ``order_status`` operation.

    Args:
        order_id: The order's id at the broker.
        deadline: When its reply isn't waited for any more.
        priority: When it leaves.

    Raises:
        TypeError: The id isn't a str.
        ValueError: The id is empty, or has a character that can't be sent.
    """
    request = _status_request(wire.check_text(order_id, "order_id"), deadline, priority)
    request.order_id = order_id
    return request


def order_lookup(
    client_order_id: str, deadline: float, priority: Priority = Priority.READ
) -> Request:
    """The ``order_status`` operation, by the id that the client gave the order.

    Args:
        client_order_id: The order's client order id. The broker's reply may not repeat it, so such
            lookups take turns.
        deadline: When its reply isn't waited for any more.
        priority: When it leaves.

    Raises:
        TypeError: The id isn't a str.
        ValueError: The id is empty, or has a character that can't be sent.
    """
    name = wire.check_text(client_order_id, "client_order_id")
    request = _status_request(name, deadline, priority)
    request.client_order_id = name
    return request


def estimate(
    amount_in: Amount,
    asset_in: str,
    asset_out: str,
    *,
    filter_sources: Iterable[str] | None,
    network: str | None,
    account: str | None,
    deadline: float,
) -> Request:
    """The ``estimate`` operation; its parameters are `BrokerWSClient.estimate_swap`'s."""
    body = _trade(amount_in, asset_in, asset_out, filter_sources, account)
    if network is not None:
        body["network"] = wire.check_text(network, "network")
    return Request(
        "estimate", Priority.READ, wire.decode_estimate, deadline, body=wire.encode_body(body)
    )


def swap(
    amount_in: Amount,
    asset_in: str,
    asset_out: str,
    *,
    slippage_bps: int | None,
    filter_sources: Iterable[str] | None,
    account: str | None,
    client_order_id: str,
    deadline: float,
) -> Request:
    """The ``swap`` operation; its parameters are `BrokerWSClient.do_swap`'s."""
    body = _trade(amount_in, asset_in, asset_out, filter_sources, account)
    body["clientOrderId"] = check_client_order_id(client_order_id)
    if slippage_bps is not None:
        body["slippage_bps"] = _basis_points(slippage_bps)
    return Request(
        "swap",
        Priority.SWAP,
        partial(wire.decode_receipt, client_order_id=client_order_id),
        deadline,
        body=wire.encode_body(body),
        client_order_id=client_order_id,
    )


def subscription(op: str, channel: str, deadline: float) -> Request:
    """A ``subscribe`` or ``unsubscribe`` message.

    Args:
        op: Which of the two.
        channel: The channel's name.
        deadline: When its reply isn't waited for any more.
    """
    return Request(op, Priority.SUBSCRIBE, deadline=deadline, channel=channel)


def check_size(request: Request, limit: int) -> None:
    """Refuse a message that the broker wouldn't take.

    Args:
        request: The message.
        limit: The limit in bytes.

    Raises:
        MessageTooLargeError: It is over the limit.
    """
    size = wire.frame_size(request.op, request.body, request.channel)
    if size > limit:
        raise MessageTooLargeError(size, limit)


def _status_request(name: str, deadline: float, priority: Priority) -> Request:
    body = wire.encode_body({"id": name})
    return Request("order_status", priority, wire.decode_order, deadline, body=body)


def _trade(
    amount_in: Amount,
    asset_in: str,
    asset_out: str,
    filter_sources: Iterable[str] | None,
    account: str | None,
) -> dict[str, wire.BodyValue]:
    body: dict[str, wire.BodyValue] = {
        "amountIn": amount_text(amount_in, "amount_in"),
        "assetIn": wire.check_text(asset_in, "asset_in"),
        "assetOut": wire.check_text(asset_out, "asset_out"),
    }
    if account is not None:
        body["account"] = wire.check_text(account, "account")
    if filter_sources is not None:
        body["filter"] = _sources(filter_sources)
    return body


def _sources(filter_sources: Iterable[str]) -> list[str]:
    if isinstance(filter_sources, str):
        raise TypeError("filter_sources must be a list of names, not one str")
    sources = list(filter_sources)
    if not sources:
        raise ValueError("filter_sources is empty: leave it out for all sources")
    return [
        wire.check_text(source, f"filter_sources[{index}]") for index, source in enumerate(sources)
    ]


def _basis_points(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"slippage_bps must be an int, not {type(value).__name__}")
    if not 0 <= value <= MAX_SLIPPAGE_BPS:
        raise ValueError(f"slippage_bps must be from 0 to {MAX_SLIPPAGE_BPS}, not {value}")
    return value
