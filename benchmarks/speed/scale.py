"""What a message costs with many subscriptions, and with many clients in one process."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, TypeAlias

import trio
from trio.testing import wait_all_tasks_blocked

from benchmarks.speed import messages
from benchmarks.speed.figures import NONE, Goal, Plot, Report, Table, at_most, ratio, spread
from benchmarks.speed.peers.counting import ORDER, Stopwatch
from benchmarks.speed.peers.library import count_each, open_client
from benchmarks.speed.processes import Bench, Server
from benchmarks.speed.roster import TRANSPORTS, library
from trio_broker import BrokerWSClient, Order, Subscription
from trio_broker.settings import TransportName

ABOUT: Final = """
{count:,} messages in all, flat out, and the processor's time that the client's process takes for
one; a task iterates over each subscription. *To one*: all messages go to one of the channels, and
the others are silent. *To all*: they go round, so that every message wakes another task, which
costs something of its own from the second channel on. *Clients*: so many in one process and one
channel each, all pushed to at a time.
"""

SUBSCRIPTIONS: Final = (1, 10, 100, 10_000)
CLIENTS: Final = (1, 10, 100)
_AT_A_TIME: Final = 100  # subscriptions that are asked for

Runs: TypeAlias = dict[str, list[dict[str, float]]]
"""By the transport: one run a round."""


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    count = 20_000 if bench.quick else 100_000
    with bench.server() as server:
        to_one = {
            number: _with_subscriptions(bench, server, count, number) for number in SUBSCRIPTIONS
        }
        to_all = {
            number: _with_subscriptions(bench, server, count, number, to_all=True)
            for number in SUBSCRIPTIONS
        }
        clients = {number: _with_clients(bench, server, count, number) for number in CLIENTS}
    return Report(
        "scale",
        ABOUT.format(count=count),
        [
            _table("Subscriptions, messages to one of them", to_one),
            _table("Subscriptions, messages to all of them by turns", to_all),
            _table("Clients in one process", clients),
        ],
        [_goal(transport, to_all) for transport in TRANSPORTS],
        [_plot(to_one, to_all)],
    )


def _with_subscriptions(
    bench: Bench, server: Server, count: int, number: int, *, to_all: bool = False
) -> Runs:
    receiving = number if to_all else 1
    url = server.url(push=count, channels=receiving)
    told = {"url": url, "count": count, "number": number, "receiving": receiving}
    return _in_turn(bench, "subscribed", told)


def _with_clients(bench: Bench, server: Server, count: int, number: int) -> Runs:
    url = server.url(push=count // number)
    return _in_turn(bench, "connected", {"url": url, "count": count, "number": number})


def _in_turn(bench: Bench, function: str, told: dict[str, object]) -> Runs:
    return bench.in_turn(
        {
            one: partial(bench.measure, f"scale:{function}", {**told, "transport": one})
            for one in TRANSPORTS
        }
    )


def _cpu(measured: list[dict[str, float]]) -> list[float]:
    # What was dropped was read and decoded as well.
    return [one["cpu"] / (one["delivered"] + one["dropped"]) for one in measured]


def _wall(measured: list[dict[str, float]]) -> list[float]:
    return [one["wall"] / (one["delivered"] + one["dropped"]) for one in measured]


def _table(title: str, by_number: dict[int, Runs]) -> Table:
    rows = []
    for transport in TRANSPORTS:
        base = _cpu(by_number[1][transport])
        for number, runs in by_number.items():
            measured = runs[transport]
            dropped = statistics.median(one["dropped"] for one in measured)
            rows.append(
                (
                    library(transport).name,
                    f"{number:,}",
                    spread(_cpu(measured), 1e6, 2),
                    spread(_wall(measured), 1e6, 2),
                    f"{ratio(_cpu(measured), base):.2f}",
                    f"{dropped:,.0f}" if dropped else NONE,
                )
            )
    columns = ("", "how many", "CPU µs a message", "wall µs a message", "CPU to one", "dropped")
    return Table(f"{title}: median (least to most)", columns, rows)


def _goal(transport: str, by_number: dict[int, Runs]) -> Goal:
    most = max(by_number)
    all_of_them, one = (
        statistics.median(_cpu(by_number[number][transport])) * 1e6 for number in (most, 1)
    )
    return at_most(
        f"CPU µs a message to all of {most:,} subscriptions by turns, more than to one: "
        f"{library(transport).name}",
        3,
        all_of_them - one,
    )


def _plot(to_one: dict[int, Runs], to_all: dict[int, Runs]) -> Plot:
    return Plot(
        "scale",
        "What a message costs, by the number of subscriptions (median)",
        "CPU µs a message",
        tuple(f"{number:,}" for number in SUBSCRIPTIONS),
        {
            f"{library(transport).name}, {where}": [
                statistics.median(_cpu(runs[transport])) * 1e6 for runs in by_number.values()
            ]
            for transport in TRANSPORTS
            for where, by_number in (("to one", to_one), ("to all", to_all))
        },
        kind="lines",
    )


# --- In the client's process ----------------------------------------------------------------


class _Counter:
    """Counts what comes over many subscriptions."""

    def __init__(self) -> None:
        self.delivered = 0
        self.dropped = 0

    async def count(self, updates: Subscription[Order]) -> None:
        """Count up to the last message."""
        count = await count_each(updates)
        self.delivered += count
        self.dropped += updates.dropped


def subscribed(
    url: str, transport: TransportName, count: int, number: int, receiving: int
) -> dict[str, float]:
    """Count messages with many subscriptions.

    Args:
        url: The server's.
        transport: The transport's name.
        count: How many messages it pushes.
        number: How many subscriptions there are.
        receiving: To how many of them it pushes.
    """
    return trio.run(_subscribed, url, transport, count, number, receiving)


async def _subscribed(
    url: str, transport: TransportName, count: int, number: int, receiving: int
) -> dict[str, float]:
    watch, counter = Stopwatch(), _Counter()
    async with (
        open_client(url, transport) as client,
        trio.open_nursery() as others,
    ):
        subscriptions = await _subscribe(client, number)
        for updates in subscriptions[receiving:]:
            others.start_soon(count_each, updates)
        async with trio.open_nursery() as nursery:
            for updates in subscriptions[:receiving]:
                nursery.start_soon(counter.count, updates)
            await wait_all_tasks_blocked()
            watch.start()
            await client.get_order_status(messages.GO)
        watch.stop()
        others.cancel_scope.cancel()
    return watch.result(count, counter.delivered, counter.dropped)


async def _subscribe(client: BrokerWSClient, number: int) -> list[Subscription[Order]]:
    """Subscribe to so many orders, to that first which alone is pushed to perhaps."""
    subscriptions = [await client.subscribe_order(ORDER, snapshot=False)]

    rest = iter(range(1, number))

    async def subscribe() -> None:
        for which in rest:
            name = messages.order_name(which)
            subscriptions.append(await client.subscribe_order(name, snapshot=False))

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_A_TIME):
            nursery.start_soon(subscribe)
    return subscriptions


def connected(url: str, transport: TransportName, count: int, number: int) -> dict[str, float]:
    """Count messages with many clients.

    Args:
        url: The server's.
        transport: The transport's name.
        count: How many messages it pushes to all of them.
        number: How many clients there are.
    """
    return trio.run(_connected, url, transport, count, number)


async def _connected(
    url: str, transport: TransportName, count: int, number: int
) -> dict[str, float]:
    watch, counter = Stopwatch(), _Counter()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(url, transport)) for _ in range(number)
        ]
        subscriptions = [await one.subscribe_order(ORDER, snapshot=False) for one in clients]
        async with trio.open_nursery() as nursery:
            for updates in subscriptions:
                nursery.start_soon(counter.count, updates)
            await wait_all_tasks_blocked()
            watch.start()
            for client in clients:
                nursery.start_soon(client.get_order_status, messages.GO)
        watch.stop()
    return watch.result(count, counter.delivered, counter.dropped)
