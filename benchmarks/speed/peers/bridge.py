"""This library from asyncio: its client, with Trio as the guest of the loop."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from benchmarks.speed import messages, sends
from benchmarks.speed.peers.counting import ORDER, Stopwatch
from benchmarks.speed.peers.library import open_client as make_client
from trio_broker import Order
from trio_broker.aio import AioSubscription, open_client
from trio_broker.settings import TransportName


def pushes(url: str, count: int, transport: TransportName, *, batches: bool) -> dict[str, float]:
    """Count messages as they come.

    Args:
        url: The server's.
        count: How many it pushes.
        transport: The transport's name.
        batches: Whether they are taken in lists.
    """
    return asyncio.run(_pushes(url, count, transport, batches=batches))


async def _pushes(
    url: str, count: int, transport: TransportName, *, batches: bool
) -> dict[str, float]:
    watch = Stopwatch()
    consume = _count_batches if batches else _count_each
    async with open_client(make_client(url, transport)) as client:
        async with client.subscribe_order(ORDER, snapshot=False) as updates:
            counting = asyncio.create_task(consume(updates))
            counting.add_done_callback(lambda _: watch.stop())
            watch.start()
            await client.get_order_status(messages.GO)
            delivered = await counting
        return watch.result(count, delivered, updates.dropped)


async def _count_each(updates: AioSubscription[Order]) -> int:
    count = 0
    async for message in updates:
        count += 1
        if message.data.status == messages.LAST:
            break
    return count


async def _count_batches(updates: AioSubscription[Order]) -> int:
    count = 0
    async for batch in updates.batches():
        for message in batch:
            count += 1
            if message.data.status == messages.LAST:
                return count
    return count


def calls(url: str, warm_up: int, count: int, transport: TransportName) -> dict[str, list[int]]:
    """Ask for estimates, one after the other.

    Args:
        url: The server's.
        warm_up: How many don't count.
        count: How many do.
        transport: The transport's name.
    """
    return asyncio.run(_calls(url, warm_up, count, transport))


async def _calls(
    url: str, warm_up: int, count: int, transport: TransportName
) -> dict[str, list[int]]:
    taken, sent = [], []
    async with open_client(make_client(url, transport)) as client:
        estimate = partial(client.estimate_swap, "100", "ETH", "USDT")
        for _ in range(warm_up + count):
            began = time.monotonic_ns()
            await estimate()
            taken.append(time.monotonic_ns() - began)
            sent.append(sends.last.at - began)
    return {"taken": taken[warm_up:], "sent": sent[warm_up:]}
