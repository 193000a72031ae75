"""What a client, a subscription and a million messages leave in memory."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

import trio

from benchmarks.speed import messages
from benchmarks.speed.figures import NONE, Goal, Report, Table, at_most, ratio, spread
from benchmarks.speed.peers.counting import ORDER, resident
from benchmarks.speed.peers.library import open_client
from benchmarks.speed.processes import LINKS, Bench, Link
from benchmarks.speed.roster import BARE, CALLBACK, TRANSPORTS, library
from trio_broker.settings import TransportName

ABOUT: Final = """
*Clients*: the resident memory of a process with one client, and by how much it grows with each of
{clients} more, which are authenticated, subscribed to a channel and wait. Over TLS, each of them
keeps the system's CA certificates, which are most of what it takes. *Subscriptions*: the same for
each of {subscriptions:,} channels of one client. *Over {count:,} messages*: resident
memory, the blocks that Python has allocated and the objects that its collector knows, after a
collection and with nothing under way, when a tenth, a half and all have come. There is no growth
if from the first tenth on the blocks are less than {blocks:,} more, and the memory less than
{share:.0%}.
"""

_MARKS: Final = (1, 5, 10)
_PARTS: Final = 10
_MORE_BLOCKS: Final = 1_000
_MORE_MEMORY: Final = 0.01

Samples: TypeAlias = list[dict[str, float]]
"""What was found at each of the marks."""


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    clients, subscriptions, count = (20, 500, 20_000) if bench.quick else (100, 5_000, 1_000_000)
    peers = [*map(library, TRANSPORTS), CALLBACK, BARE]
    with bench.server() as server:

        def measuring(link: Link) -> dict[str, Callable[[], dict[str, float]]]:
            told = {"url": server.url(link), "warm_up": 10, "count": clients}
            return {peer.name: peer.measuring(bench, "idle", told) for peer in peers}

        idle = bench.by_ways({link: measuring(link) for link in LINKS})
        told = {"url": server.url(), "number": subscriptions}
        each = _in_turn(bench, "subscribed", told)
        told = {"url": server.url(push=count, parts=_PARTS), "count": count}
        grown: dict[str, list[Samples]] = _in_turn(bench, "pushed", told)
    about = ABOUT.format(
        clients=clients,
        subscriptions=subscriptions,
        count=count,
        blocks=_MORE_BLOCKS,
        share=_MORE_MEMORY,
    )
    return Report(
        "memory",
        about,
        [
            *(_clients_table(link, idle[link]) for link in LINKS),
            _subscriptions_table(each),
            _growth_table(grown, count),
        ],
        [
            *(_idle_goal(transport, idle["plain"]) for transport in TRANSPORTS),
            *(_growth_goal(transport, samples, count) for transport, samples in grown.items()),
        ],
    )


def _in_turn(bench: Bench, function: str, told: dict[str, object]) -> dict[str, list[Any]]:
    return bench.in_turn(
        {
            one: partial(bench.measure, f"memory:{function}", {**told, "transport": one})
            for one in TRANSPORTS
        }
    )


def _clients_table(link: Link, idle: dict[str, list[dict[str, float]]]) -> Table:
    by_peer = {name: [one["each"] for one in measured] for name, measured in idle.items()}
    rows = [
        (
            name,
            spread([one["process"] for one in idle[name]], 1e-6),
            spread(each, 1e-3),
            f"{ratio(each, by_peer[CALLBACK.name]):.2f}",
        )
        for name, each in by_peer.items()
    ]
    columns = ("", "process with one, MB", "each further client, kB", "to callback")
    return Table(f"Clients, {link}: median (least to most)", columns, rows)


def _subscriptions_table(each: dict[str, list[float]]) -> Table:
    rows = [(library(one).name, spread(values, 1e-3, 2)) for one, values in each.items()]
    return Table("Subscriptions: median (least to most)", ("", "each, kB"), rows)


def _growth_table(grown: dict[str, list[Samples]], count: int) -> Table:
    rows = []
    for transport, runs in grown.items():
        for index, mark in enumerate(_MARKS):
            found = [samples[index] for samples in runs]
            dropped = statistics.median(one["dropped"] for one in found)
            rows.append(
                (
                    library(transport).name,
                    f"{count * mark // _PARTS:,}",
                    spread([one["resident"] for one in found], 1e-6, 2),
                    spread([one["blocks"] for one in found], digits=0),
                    spread([one["objects"] for one in found], digits=0),
                    f"{dropped:,.0f}" if dropped else NONE,
                )
            )
    columns = ("", "messages", "resident, MB", "blocks", "objects", "dropped")
    return Table("Over many messages: median (least to most)", columns, rows)


def _idle_goal(transport: str, idle: dict[str, list[dict[str, float]]]) -> Goal:
    name = library(transport).name
    each = statistics.median(one["each"] for one in idle[name])
    return at_most(f"an idle client, kB: {name}", 35, each / 1e3)


def _growth_goal(transport: str, runs: list[Samples], count: int) -> Goal:
    def growth(what: str) -> float:
        return statistics.median(samples[-1][what] - samples[0][what] for samples in runs)

    before = statistics.median(samples[0]["resident"] for samples in runs)
    blocks, memory = growth("blocks"), growth("resident")
    return Goal(
        f"memory over {count:,} messages: {library(transport).name}",
        "no growth",
        f"{blocks:+,.0f} blocks, {memory / 1e3:+,.0f} kB of {before / 1e6:.1f} MB",
        blocks < _MORE_BLOCKS and memory < _MORE_MEMORY * before,
    )


# --- In the client's process ----------------------------------------------------------------


def subscribed(url: str, transport: TransportName, number: int) -> float:
    """Subscribe to many channels.

    Args:
        url: The server's.
        transport: The transport's name.
        number: How many.

    Returns:
        Bytes for each.
    """
    return trio.run(_subscribed, url, transport, number)


async def _subscribed(url: str, transport: TransportName, number: int) -> float:
    warm_up = number // 10
    kept = []
    before = 0
    async with open_client(url, transport) as client:
        for which in range(warm_up + number):
            if which == warm_up:
                gc.collect()
                before = resident()
            kept.append(await client.subscribe_order(messages.order_name(which), snapshot=False))
        gc.collect()
        return (resident() - before) / number


def pushed(url: str, transport: TransportName, count: int) -> Samples:
    """Receive messages in parts, and look at the memory after some of them.

    Args:
        url: The server's.
        transport: The transport's name.
        count: How many messages it pushes.
    """
    return trio.run(_pushed, url, transport, count)


async def _pushed(url: str, transport: TransportName, count: int) -> Samples:
    samples = []
    async with open_client(url, transport) as client:
        updates = await client.subscribe_order(ORDER, snapshot=False)
        delivered = 0
        for part in range(1, _PARTS + 1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.get_order_status, messages.GO)
                async for _ in updates:
                    delivered += 1
                    # The newest message is never dropped, so that this comes true.
                    if delivered + updates.dropped == count * part // _PARTS:
                        break
            if part in _MARKS:
                gc.collect()
                samples.append(_sample(updates.dropped))
    return samples


def _sample(dropped: int) -> dict[str, float]:
    return {
        "resident": resident(),
        "blocks": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
        "dropped": dropped,
    }
