"""Messages a second, flat out."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final, TypeAlias

from benchmarks.speed import messages
from benchmarks.speed.figures import NONE, Goal, Plot, Report, Table, at_least, ratio, spread
from benchmarks.speed.processes import Bench, Link
from benchmarks.speed.roster import (
    AIOHTTP,
    BARE,
    BASIC,
    CALLBACK,
    FAST,
    PLAIN,
    TRANSPORTS,
    Peer,
    bridged_iterating,
    iterating,
)

Runs: TypeAlias = dict[str, list[dict[str, float]]]
Rates: TypeAlias = dict[str, list[float]]

_SIZE: Final = len(messages.update(messages.order_name(0), 0)) - 4  # without the frame's head

ABOUT: Final = """
The server pushes {count:,} updates of one order, of {size} bytes each, as fast as the client takes
them. The time is from the request that starts it to the last message in the user's loop, which
reads the order's status. The library decodes into types and has its default buffer of 1,024
messages; messages that it dropped don't count as delivered. `trio_broker.aio` is the same in an
asyncio program, with Trio as the guest of its loop.

Over TLS, the server fills records of 16 KiB. A broker that sends one message at a time gives each
a record of its own, and what that costs is in the third table.
"""

_RECORDS: Final = "TLS, a record a message"


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    count = 5_000 if bench.quick else 200_000
    ours = [iterating(one, batches=batches) for one in TRANSPORTS for batches in (False, True)]
    bridged = [bridged_iterating(FAST, batches=batches) for batches in (False, True)]
    peers = [*ours, *bridged, CALLBACK, BARE, AIOHTTP, PLAIN]

    with bench.server() as server:

        def measuring(link: Link, records: int = 0) -> dict[str, Callable[[], dict[str, float]]]:
            told = {"url": server.url(link, push=count, records=records), "count": count}
            return {peer.name: peer.measuring(bench, "pushes", told) for peer in peers}

        runs = bench.by_ways(
            {
                "plain": measuring("plain"),
                "TLS": measuring("TLS"),
                _RECORDS: measuring("TLS", records=1),
            }
        )
    rates = {way: {name: _rates(runs[way][name]) for name in runs[way]} for way in runs}
    return Report(
        "pushes",
        ABOUT.format(count=count, size=_SIZE),
        [_table(way, runs[way], rates[way]) for way in runs],
        _goals(rates),
        [_plot(rates)],
    )


def _rates(measured: list[dict[str, float]]) -> list[float]:
    return [one["delivered"] / one["wall"] for one in measured]


def _table(way: str, runs: Runs, rates: Rates) -> Table:
    bases = (CALLBACK, BARE, AIOHTTP)
    rows = []
    for name, measured in runs.items():
        dropped = statistics.median(one["dropped"] for one in measured)
        rows.append(
            (
                name,
                spread(rates[name], digits=0),
                spread([one["cpu"] / one["delivered"] for one in measured], 1e6, 2),
                *(f"{ratio(rates[name], rates[base.name]):.2f}" for base in bases),
                f"{dropped:,.0f}" if dropped else NONE,
            )
        )
    columns = (
        "", "messages/s", "CPU µs each", "to callback", "to bare", "to aiohttp", "dropped",
    )  # fmt: skip
    return Table(f"Pushes, flat out, {way}: median (least to most)", columns, rows)


def _goals(rates: dict[str, Rates]) -> list[Goal]:
    each, batches = (iterating(FAST, batches=batches).name for batches in (False, True))
    basic = iterating(BASIC, batches=False).name

    def goal(way: str, name: str, base: Peer, wanted: float) -> Goal:
        what = f"messages/s, {way}: {name}, to {base.name}"
        return at_least(what, wanted, ratio(rates[way][name], rates[way][base.name]))

    return [
        goal("plain", each, CALLBACK, 1.5),
        goal("plain", batches, CALLBACK, 2.0),
        goal("TLS", each, CALLBACK, 1.3),
        goal("TLS", batches, CALLBACK, 1.6),
        goal("plain", basic, BARE, 0.9),
        goal("plain", batches, AIOHTTP, 1.0),
    ]


def _plot(rates: dict[str, Rates]) -> Plot:
    shown = [name for name in rates["plain"] if name != PLAIN.name]
    return Plot(
        "pushes",
        "Messages a second, flat out (median)",
        "messages a second",
        tuple(shown),
        {way: [statistics.median(own[name]) for name in shown] for way, own in rates.items()},
        kind="dots",
    )
