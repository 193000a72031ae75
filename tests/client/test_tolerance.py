"""A client keeps what it can read of a message, and its connection: rows 27 and 50 to 57."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.scripted import PATIENCE, ScriptedConnection, acknowledgement, scripted_client, start
from trio_broker import (
    Balance,
    BrokerWSClient,
    ConnectionEvent,
    Order,
    OrderStatus,
    ProtocolError,
    RateLimitedError,
    ServerError,
    UnexpectedMessage,
    UnreadableError,
)
from trio_broker._streams.subscription import BoundedReceiveChannel

MILLISECONDS: Final = 1732526402000

GOOD: Final = {"asset": "USDT", "total": "5", "locked": "1"}


@asynccontextmanager
async def watched() -> AsyncIterator[
    tuple[BrokerWSClient, ScriptedConnection, BoundedReceiveChannel[ConnectionEvent], trio.Nursery]
]:
    """Open a scripted client with its events. Its connection must survive the block."""
    with trio.fail_after(PATIENCE):
        async with scripted_client() as (client, line), trio.open_nursery() as nursery:
            with client.events() as events:
                yield client, line, events, nursery
            assert client.is_connected()


async def next_reason(events: BoundedReceiveChannel[ConnectionEvent]) -> str:
    event = await events.receive()
    assert isinstance(event, UnexpectedMessage)
    return event.reason


# --- 27, 51, 52: balances --------------------------------------------------------------------


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "1e999999999", "", {}, "9" * 200, None])
async def test_unreadable_balance_stays_in_the_account(amount: Any) -> None:
    body = [GOOD, {"asset": "BTC", "total": amount}, {**GOOD, "asset": "ETH"}]
    async with watched() as (client, line, events, nursery):
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send({"op": "balances", "data": {"balances": body}})
        subscribing = start(nursery, client.subscribe_balances)
        await line.acknowledge()
        updates = await subscribing.result()
        await line.receive("balances")
        await line.send({"op": "balances", "data": {"balances": body}})
        await line.send(*({"ch": "balances", "data": body} for _ in range(20)))
        accounts = [await call.result(), *[(await updates.receive()).data for _ in range(21)]]
        for usdt, btc, eth in accounts:
            assert usdt == Balance("USDT", Decimal(5), Decimal(1))
            assert eth.available == 4
            with pytest.raises(UnreadableError):
                _ = btc.total
        for _ in accounts:
            assert "balances[1].total" in await next_reason(events)
        assert client.statistics().unexpected_messages == len(accounts)


async def test_largest_uint256_is_read_exactly() -> None:
    largest = 2**256 - 1
    entries = [{"asset": "WEI", "total": str(largest)}, {"asset": "NUM", "total": largest}]
    async with watched() as (client, line, _, nursery):
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send({"op": "balances", "data": {"balances": entries}})
        assert [int(balance.total) for balance in await call.result()] == [largest, largest]


@pytest.mark.parametrize(
    ("op", "data"),
    [
        ("estimate", {"price": "NaN", "expectedOut": "1"}),
        ("estimate", {"price": "1", "expectedOut": "1" * 200}),
        ("estimate", {"price": "1"}),
        ("order_status", {"orderId": "o1"}),
        ("order_status", {"orderId": "o1", "status": 5}),
        ("balances", {"balances": None}),
    ],
)
async def test_unreadable_required_field_fails_its_message_alone(
    op: str, data: dict[str, Any]
) -> None:
    async with watched() as (client, line, events, nursery):
        for _ in range(6):  # More than that many messages that are no JSON would be too many.
            if op == "estimate":
                call: Any = start(nursery, client.estimate_swap, "1", "ETH", "USDT")
            elif op == "balances":
                call = start(nursery, client.get_balances)
            else:
                call = start(nursery, client.get_order_status, "o1")
            await line.receive(op)
            await line.send({"op": op, "data": data})
            with pytest.raises(ProtocolError):
                await call.result()
            await next_reason(events)


# --- 50, 53: orders --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [32588, 2**53 + 1, 2**70])
async def test_numeric_ids_become_exact_text_everywhere(number: int) -> None:
    text = str(number)
    state = {"orderId": number, "status": "FILLED", "clientOrderId": 7}
    async with watched() as (client, line, _, nursery):
        swap = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await line.receive("swap")
        await line.send({"op": "swap", "data": {"orderId": number, "status": "PENDING"}})
        assert (await swap.result()).order_id == text
        lookup = start(nursery, client.get_order_status, text)
        await line.receive("order_status")
        await line.send({"op": "order_status", "data": state})
        assert await lookup.result() == Order(text, OrderStatus.FILLED, client_order_id="7")
        async with client.track_order(text) as progress:
            await line.acknowledge()
            await line.send({"ch": f"orders:{number}", "data": {**state, "status": "PENDING"}})
            pushed = await progress.receive()
            assert (pushed.channel, pushed.data.order_id) == (f"orders:{number}", text)


async def test_status_is_delivered_without_the_fields_that_cannot_be_read() -> None:
    odd = {
        "orderId": "o1",
        "status": "FILLED",
        "filledOut": "",
        "txHash": 5,
        "updatedAt": MILLISECONDS // 1000,
    }
    async with watched() as (client, line, events, nursery):
        subscribing = start(nursery, partial(client.subscribe_order, "o1", snapshot=False))
        await line.acknowledge()
        updates = await subscribing.result()
        await line.send({"ch": "orders:o1", "data": odd})
        assert (await updates.receive()).data == Order("o1", OrderStatus.FILLED)
        reason = await next_reason(events)
        assert all(name in reason for name in ("filledOut", "txHash", "updatedAt"))


# --- 56, 57: refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["rejected", "error", "limit"])
async def test_subscribe_that_is_not_acknowledged_as_subscribed_is_refused(status: str) -> None:
    async with watched() as (client, line, _, nursery):
        subscribing = start(nursery, client.subscribe_balances)
        request = await line.receive("subscribe")
        await line.send({**acknowledgement(request), "data": {"status": status}})
        with pytest.raises(ServerError, match=f"refused subscribe: {status}"):
            await subscribing.result()
        await wait_all_tasks_blocked()
        assert line.nothing_came()


@pytest.mark.parametrize(
    "message",
    [
        {"error": {"code": "RATE_LIMIT", "message": "slow down"}},
        {"op": "error", "error": {"code": "RATE_LIMIT", "message": "slow down"}},
        {"op": "error", "error": "RATE_LIMIT: slow down"},
        {"op": "error", "code": "RATE_LIMIT", "message": "slow down"},
        {"op": "balances", "error": {"code": "RATE_LIMIT", "message": "slow down"}},
        {"op": "balances", "error": True, "data": {"code": "RATE_LIMIT", "message": "slow down"}},
    ],
    ids=json.dumps,
)
async def test_error_in_any_form_fails_its_request_at_once_with_its_code(
    message: dict[str, Any],
) -> None:
    async with watched() as (client, line, _, nursery):
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(message)
        with pytest.raises(RateLimitedError, match="slow down") as caught:
            await call.result()
        assert (caught.value.op, caught.value.code) == ("balances", "RATE_LIMIT")


# --- 76: memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "object", "code", "status"])
async def test_long_errors_that_answer_requests_use_little_memory(form: str) -> None:
    long = "INSUFFICIENT_BALANCE: " + "x" * 400_000
    error: Any = {
        "text": {"error": long},
        "object": {"error": {"message": long, "more": long}},
        "code": {"error": {"message": "insufficient", "code": long}},
        "status": {"data": {"status": long}},
    }[form]
    async with watched() as (client, line, _, nursery):
        tracemalloc.start()
        try:
            held = []
            for _ in range(10):
                await _refuse(client, line, nursery, error)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
            # One message may still be in a buffer.
            assert max(held[5:]) - min(held[:5]) < 500_000
        finally:
            tracemalloc.stop()


async def _refuse(
    client: BrokerWSClient, line: ScriptedConnection, nursery: trio.Nursery, error: dict[str, Any]
) -> None:
    calls: dict[str, Any] = {
        "balances": client.get_balances,
        "swap": partial(client.do_swap, "1", "ETH", "USDT"),
        "subscribe": client.subscribe_balances,
    }
    for op, function in calls.items():
        if "error" not in error and op != "subscribe":
            continue
        call = start(nursery, function)
        request = await line.receive(op)
        channel = {"ch": request["ch"]} if op == "subscribe" else {}
        await line.send({"op": op, **channel, **error})
        with pytest.raises(ServerError) as caught:
            await call.result()
        assert len(str(caught.value)) < 3000
