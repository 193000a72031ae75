"""The client in anyio's task groups, its stream beside one of anyio's, cancelled by anyio's scopes.

It needs anyio's trio backend: a client speaks to Trio itself.

    python examples/with_anyio.py
"""

from __future__ import annotations

from decimal import Decimal
from functools import partial

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from somewhere import open_client, run

from trio_broker import Balance, BrokerWSClient, Subscription

Updates = Subscription[tuple[Balance, ...]]


async def forward(updates: Updates, totals: ObjectSendStream[tuple[str, Decimal]]) -> None:
    """From a Trio channel into an anyio stream; both end by ending the iteration."""
    async with totals:
        async for message in updates:
            for balance in message.data:
                await totals.send((balance.asset, balance.total))


async def show(totals: ObjectReceiveStream[tuple[str, Decimal]], seen: anyio.Event) -> None:
    """A consumer that knows of anyio alone."""
    async with totals:
        async for asset, total in totals:
            print(f"{total} {asset}")
            seen.set()


async def estimate(client: BrokerWSClient, seconds: float) -> None:
    """A deadline of anyio's around a call. Cancelling any call is safe."""
    with anyio.move_on_after(seconds) as scope:
        quote = await client.estimate_swap("1", "ETH", "USDT")
        print(f"1 ETH would bring {quote.expected_out} USDT")
    if scope.cancelled_caught:
        print(f"no estimate within {seconds} s")


async def main() -> None:
    """Two tasks for the stream, two calls beside them, and the end of all."""
    async with (
        open_client() as client,
        await client.subscribe_balances() as updates,
        anyio.create_task_group() as group,
    ):
        send, receive = anyio.create_memory_object_stream[tuple[str, Decimal]](10)
        group.start_soon(forward, updates, send)
        seen = anyio.Event()
        group.start_soon(show, receive, seen)
        await estimate(client, 10)
        await estimate(client, 0)
        await seen.wait()
        await client.unsubscribe("balances")


if __name__ == "__main__":
    run(main, partial(anyio.run, backend="trio"))
