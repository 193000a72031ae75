"""This library, as its documentation says that it is used."""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import trio

from benchmarks.speed import messages, sends
from benchmarks.speed.peers.counting import ORDER, Stopwatch, check_all, delays, resident
from trio_broker import BrokerWSClient, Limits, Order, Subscription
from trio_broker.settings import TransportName

# The broker's limits would be what is measured.
UNLIMITED: Final = Limits(max_subscriptions=10_000, messages_per_second=1_000_000)

# As long as real ones: every message is searched for them.
_API_KEY: Final = "9b1f" * 8
_SECRET: Final = "c07d" * 16


def open_client(
    url: str, transport: TransportName, *, limits: Limits = UNLIMITED, **options: Any
) -> BrokerWSClient:
    """A client, to be entered.

    Args:
        url: The server's.
        transport: The transport's name.
        limits: Its limits.
        options: Further options.
    """
    return BrokerWSClient(_API_KEY, _SECRET, url, limits=limits, transport=transport, **options)


def pushes(url: str, count: int, transport: TransportName, *, batches: bool) -> dict[str, float]:
    """Count messages as they come.

    Args:
        url: The server's.
        count: How many it pushes.
        transport: The transport's name.
        batches: Whether they are taken in lists.
    """
    return trio.run(partial(_pushes, url, count, transport, batches=batches))


async def _pushes(
    url: str, count: int, transport: TransportName, *, batches: bool
) -> dict[str, float]:
    watch = Stopwatch()
    delivered: list[int] = []

    async def consume() -> None:
        delivered.append(await (_count_batches if batches else count_each)(updates))
        watch.stop()

    async with open_client(url, transport) as client:
        updates = await client.subscribe_order(ORDER, snapshot=False)
        async with updates, trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            watch.start()
            await client.get_order_status(messages.GO)
        return watch.result(count, delivered[0], updates.dropped)


async def count_each(updates: Subscription[Order]) -> int:
    """Count messages up to the last one.

    Args:
        updates: Where they come.
    """
    count = 0
    async for message in updates:
        count += 1
        if message.data.status == messages.LAST:
            break
    return count


async def _count_batches(updates: Subscription[Order]) -> int:
    count = 0
    async for batch in updates.batches():
        for message in batch:
            count += 1
            if message.data.status == messages.LAST:
                return count
    return count


def arrivals(url: str, count: int, transport: TransportName) -> dict[str, Any]:
    """Note how long messages are on their way.

    Args:
        url: The server's.
        count: How many it pushes.
        transport: The transport's name.
    """
    return trio.run(_arrivals, url, count, transport)


async def _arrivals(url: str, count: int, transport: TransportName) -> dict[str, Any]:
    times: list[tuple[int, str | None]] = []

    async def consume() -> None:
        async for message in updates:
            times.append((time.monotonic_ns(), message.data.tx_hash))
            if message.data.status == messages.LAST:
                break

    async with open_client(url, transport) as client:
        updates = await client.subscribe_order(ORDER, snapshot=False)
        async with updates, trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            await client.get_order_status(messages.GO)
        check_all(count, len(times), updates.dropped)
        return {"delays": delays(times), "dropped": updates.dropped}


def calls(url: str, warm_up: int, count: int, transport: TransportName) -> dict[str, list[int]]:
    """Ask for estimates, one after the other.

    Args:
        url: The server's.
        warm_up: How many don't count.
        count: How many do.
        transport: The transport's name.
    """
    return trio.run(_calls, url, warm_up, count, transport)


async def _calls(
    url: str, warm_up: int, count: int, transport: TransportName
) -> dict[str, list[int]]:
    taken, sent = [], []
    async with open_client(url, transport) as client:
        for _ in range(warm_up + count):
            began = time.monotonic_ns()
            await client.estimate_swap("100", "ETH", "USDT")
            taken.append(time.monotonic_ns() - began)
            sent.append(sends.last.at - began)
    return {"taken": taken[warm_up:], "sent": sent[warm_up:]}


def idle(url: str, warm_up: int, count: int, transport: TransportName) -> dict[str, float]:
    """Open many clients that do nothing.

    Args:
        url: The server's.
        warm_up: How many are opened before the memory is looked at.
        count: How many are opened then.
        transport: The transport's name.

    Returns:
        Bytes a client, and bytes of a process with one client.
    """
    return trio.run(_idle, url, warm_up, count, transport)


async def _idle(url: str, warm_up: int, count: int, transport: TransportName) -> dict[str, float]:
    sizes = []
    async with AsyncExitStack() as stack:
        for number in (1, warm_up, count):
            for _ in range(number):
                client = await stack.enter_async_context(open_client(url, transport))
                await client.subscribe_order(ORDER, snapshot=False)
            await trio.sleep(0.1)
            gc.collect()
            sizes.append(resident())
    return {"each": (sizes[2] - sizes[1]) / count, "process": sizes[0]}


def connects(url: str, warm_up: int, count: int, transport: TransportName) -> float:
    """Connect many times, one after the other.

    Args:
        url: The server's.
        warm_up: How many don't count.
        count: How many do.
        transport: The transport's name.

    Returns:
        The median of the seconds until the reply to ``subscribe``.
    """
    return trio.run(_connects, url, warm_up, count, transport)


async def _connects(url: str, warm_up: int, count: int, transport: TransportName) -> float:
    taken = []
    for _ in range(warm_up + count):
        began = time.perf_counter()
        async with open_client(url, transport) as client:
            await client.subscribe_order(ORDER, snapshot=False)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken[warm_up:])
