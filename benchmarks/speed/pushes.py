"""Messages a second, flat out."""

from __future__ import annotations

import statistics
from typing import Final, TypeAlias

from benchmarks.speed import messages
from benchmarks.speed.figures import NONE, Goal, Plot, Report, Table, at_least, ratio, spread
from benchmarks.speed.processes import Bench
from benchmarks.speed.roster import (
    AIOHTTP,
    BARE,
    BASIC,
    CALLBACK,
    FAST,
    PLAIN,
    TRANSPORTS,
    bridged_iterating,
    iterating,
)

Runs: TypeAlias = dict[str, list[dict[str, float]]]

_SIZE: Final = len(messages.update(messages.order_name(0), 0)) - 4  # without the frame's head

ABOUT: Final = """
The server pushes {count:,} updates of one order, of {size} bytes each, as fast as the client takes
them. The time goes from the request that starts it to the last message in the user's loop, which
looks at the order's status. The library decodes into types and has its default buffer of 1,024
messages; what it drops is no delivered message. `trio_broker.aio` is the same in an asyncio
program, with Trio as the guest of its loop.
"""


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
        told = {"url": server.url(push=count), "count": count}
        runs: Runs = bench.in_turn(
            {peer.name: peer.measuring(bench, "pushes", told) for peer in peers}
        )
    rates = {
        name: [one["delivered"] / one["wall"] for one in measured]
        for name, measured in runs.items()
    }
    return Report(
        "pushes",
        ABOUT.format(count=count, size=_SIZE),
        [_table(runs, rates)],
        _goals(rates),
        [_plot(rates)],
    )


def _table(runs: Runs, rates: dict[str, list[float]]) -> Table:
    rows = []
    for name, measured in runs.items():
        dropped = statistics.median(one["dropped"] for one in measured)
        rows.append(
            (
                name,
                spread(rates[name], digits=0),
                spread([one["cpu"] / one["delivered"] for one in measured], 1e6, 2),
                f"{ratio(rates[name], rates[CALLBACK.name]):.2f}",
                f"{ratio(rates[name], rates[BARE.name]):.2f}",
                f"{dropped:,.0f}" if dropped else NONE,
            )
        )
    columns = ("", "messages/s", "CPU µs each", "to callback", "to bare", "dropped")
    return Table("Pushes, flat out: median (least to most)", columns, rows)


def _goals(rates: dict[str, list[float]]) -> list[Goal]:
    def against(name: str, base: str) -> float | None:
        return ratio(rates[name], rates[base]) if name in rates else None

    each, batches = (iterating(FAST, batches=batches).name for batches in (False, True))
    basic = iterating(BASIC, batches=False).name
    return [
        at_least(f"messages/s: {each}, to the callback client", 1.5, against(each, CALLBACK.name)),
        at_least(f"messages/s: {batches}, to the same", 2.0, against(batches, CALLBACK.name)),
        at_least(f"messages/s: {basic}, to bare trio-websocket", 0.9, against(basic, BARE.name)),
    ]


def _plot(rates: dict[str, list[float]]) -> Plot:
    shown = [name for name in rates if name != PLAIN.name]
    return Plot(
        "pushes",
        "Messages a second, flat out (median)",
        "messages a second",
        tuple(shown),
        {"": [statistics.median(rates[name]) for name in shown]},
    )
