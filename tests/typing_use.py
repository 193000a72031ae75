"""The public names as a user writes them: a test of types, which mypy checks. Nothing here runs.

An ignored error is one that must be there: mypy tells of an ignore that ignores nothing.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, assert_type

import trio

import trio_broker
from trio_broker import (
    Balance,
    BrokerWSClient,
    ClientStatistics,
    ConnectionEvent,
    ConnectionState,
    Disconnected,
    Gap,
    Limits,
    Message,
    Order,
    OrderStatus,
    RouteStep,
    Subscription,
    SwapEstimate,
    SwapReceipt,
)
from trio_broker.sandbox import (
    BrokerClients,
    Fault,
    Sandbox,
    ThreadedSandbox,
    open_sandbox,
    open_threaded_sandbox,
)


async def streams(client: BrokerWSClient, name: str) -> None:
    assert_type(await client.subscribe("balances"), Subscription[tuple[Balance, ...]])
    assert_type(await client.subscribe(name), Subscription[Any])
    assert_type(await client.subscribe_order("1", overflow="error"), Subscription[Order])
    await client.subscribe_order("1", overflow="wait")  # type: ignore[arg-type]  # no such policy
    async with await client.subscribe_balances(buffer_size=10, snapshot=False) as updates:
        async for message in updates:
            assert_type(message, Message[tuple[Balance, ...]])
            assert_type(message.gap, Gap | None)
            assert_type(message.received_at, dt.datetime)
        async for batch in updates.batches():
            assert_type(batch, list[Message[tuple[Balance, ...]]])
        assert_type(updates.clone(), Subscription[tuple[Balance, ...]])
        assert_type(updates.receive_nowait().data, tuple[Balance, ...])
        channel: trio.abc.ReceiveChannel[Message[tuple[Balance, ...]]] = updates
        await channel.aclose()
    async with client.track_order("1", stop_at_partial=True, buffer_size=5) as progress:
        assert_type(progress, Subscription[Order])
    client.track_order("1", True)  # type: ignore[call-arg]  # by its name alone
    await client.unsubscribe("balances")


async def operations(client: BrokerWSClient) -> None:
    balances = await client.get_balances()
    assert_type(balances, tuple[Balance, ...])
    assert_type(balances[0].available, Decimal)
    assert_type(balances[0].locked, Decimal | None)
    estimate = await client.estimate_swap(1, "ETH", "USDT", filter_sources=("gate",))
    assert_type(estimate, SwapEstimate)
    assert_type(estimate.route, tuple[RouteStep, ...])
    assert_type(estimate.expires_at, dt.datetime | None)
    receipt = await client.do_swap(Decimal(1), "ETH", "USDT", slippage_bps=5)
    assert_type(receipt, SwapReceipt)
    order = await client.get_order_status(receipt.order_id)
    assert_type(order, Order)
    assert_type(order.status, OrderStatus | str)
    order.status = "FILLED"  # type: ignore[misc]  # values are frozen
    await client.do_swap(0.1, "ETH", "USDT")  # type: ignore[arg-type]  # a float is no amount


async def life(nursery: trio.Nursery) -> None:
    client = BrokerWSClient("key", "secret", "wss://host/ws", limits=Limits(max_subscriptions=50))
    assert_type(BrokerWSClient.from_env(), BrokerWSClient)
    await client.connect(nursery)
    assert_type(client.state, ConnectionState)
    assert_type(client.latency, float | None)
    assert_type(client.statistics(), ClientStatistics)
    async for event in client.events():
        assert_type(event, ConnectionEvent)
        if isinstance(event, Disconnected):
            assert_type(event.error, Exception)
    async for message in client.messages():
        assert_type(message, str | bytes)
    resource: trio.abc.AsyncResource = client
    await resource.aclose()
    assert_type(trio_broker.new_client_order_id(), str)


class Desk(BrokerWSClient):
    """A user's own client."""


async def own_client() -> None:
    assert_type(Desk.from_env(), Desk)
    async with Desk("key", "secret", "wss://host/ws") as desk:
        assert_type(desk, Desk)


async def sandbox() -> None:
    async with open_sandbox(seed=7, fee_bps=0) as sandbox:
        assert_type(sandbox, Sandbox)
        async with sandbox.client() as client:
            assert_type(client, BrokerWSClient)
    async with open_sandbox(fees=0):  # type: ignore[call-arg]  # no such setting
        pass


async def fixtures(broker_clients: BrokerClients) -> None:
    assert_type(await broker_clients(account=1, request_timeout=5), BrokerWSClient)


def threaded_sandbox() -> None:
    with open_threaded_sandbox(seed=7, fee_bps=0) as sandbox:
        assert_type(sandbox, ThreadedSandbox)
        assert_type(sandbox.do(lambda it: it.faults.stop_pushing()), Fault)
    with open_threaded_sandbox(fees=0):  # type: ignore[call-arg]  # no such setting
        pass
