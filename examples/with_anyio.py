"""Use the client with anyio's task groups, streams and cancel scopes.

It needs anyio's trio backend, because the client uses Trio directly.

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
    """Forward a Trio channel to an anyio stream; when one ends, so does the other."""
    async with totals:
        async for message in updates:
            for balance in message.data:
                if balance.is_readable:
                    await totals.send((balance.asset, balance.total))


async def show(totals: ObjectReceiveStream[tuple[str, Decimal]], seen: anyio.Event) -> None:
    """A consumer that uses only anyio."""
    async with totals:
        async for asset, total in totals:
            print(f"{total} {asset}")
            seen.set()


async def estimate(client: BrokerWSClient, seconds: float) -> None:
    """Put an anyio deadline around a call. Cancelling any call is safe."""
    with anyio.move_on_after(seconds) as scope:
        quote = await client.estimate_swap("1", "ETH", "USDT")
        print(f"estimate: 1 ETH for {quote.expected_out} USDT")
    if scope.cancelled_caught:
        print(f"no estimate within {seconds} s")


async def main() -> None:
    """Run two tasks for the stream and two calls, then end all of them."""
    async with (
        open_client() as client,
        client.subscribe_balances() as updates,
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
