"""The names for asyncio as a user writes them: a test of types, which mypy checks. Nothing runs.

An ignored error is one that must be there: mypy tells of an ignore that ignores nothing.
"""

from __future__ import annotations

from typing import Any, assert_type

from trio_broker import (
    Balance,
    BrokerWSClient,
    ClientStatistics,
    ConnectionEvent,
    ConnectionState,
    Limits,
    Message,
    Opening,
    Order,
    SwapEstimate,
    SwapReceipt,
)
from trio_broker.aio import (
    AioBrokerClient,
    AioChannel,
    AioSubscription,
    ClientOptions,
    open_broker,
    open_client,
)


async def opening() -> None:
    async with open_broker("key", "secret", "wss://host/ws", limits=Limits()) as client:
        assert_type(client, AioBrokerClient)
    async with open_client(BrokerWSClient.from_env()) as client:
        assert_type(client.state, ConnectionState)
        assert_type(client.statistics(), ClientStatistics)
        assert_type(client.latency, float | None)
    options: ClientOptions = {"request_timeout": 5.0}
    open_broker("key", "secret", "wss://host/ws", **options)
    open_broker("key", "secret", "wss://host/ws", limit=5)  # type: ignore[call-arg]  # none such


async def streams(client: AioBrokerClient, name: str) -> None:
    assert_type(await client.subscribe("balances"), AioSubscription[tuple[Balance, ...]])
    assert_type(await client.subscribe(name), AioSubscription[Any])
    assert_type(client.subscribe_balances(), Opening[AioSubscription[tuple[Balance, ...]]])
    async with client.subscribe_order("1", overflow="error") as updates:
        assert_type(updates, AioSubscription[Order])
        async for message in updates:
            assert_type(message, Message[Order])
        async for batch in updates.batches():
            assert_type(batch, list[Message[Order]])
        assert_type(updates.clone(), AioSubscription[Order])
        assert_type(updates.receive_nowait().data, Order)
    async with client.track_order("1", stop_at_partial=True, not_found_timeout=9.5) as progress:
        assert_type(progress, AioSubscription[Order])
    assert_type(client.messages(), AioChannel[str | bytes])
    async for event in client.events():
        assert_type(event, ConnectionEvent)


async def operations(client: AioBrokerClient) -> None:
    assert_type(await client.get_balances(), tuple[Balance, ...])
    assert_type(await client.estimate_swap(1, "ETH", "USDT"), SwapEstimate)
    assert_type(await client.do_swap("1", "ETH", "USDT", slippage_bps=5), SwapReceipt)
    assert_type(await client.swap_and_wait("1", "ETH", "USDT"), Order)
    await client.do_swap(0.1, "ETH", "USDT")  # type: ignore[arg-type]  # a float is no amount
