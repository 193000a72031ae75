"""How long a message is on its way to the user's loop."""

from __future__ import annotations

import statistics
from typing import Any, Final, TypeAlias

from benchmarks.speed.figures import (
    NONE,
    Goal,
    Plot,
    Report,
    Table,
    at_most,
    percentile,
    ratio,
    spread,
)
from benchmarks.speed.processes import Bench
from benchmarks.speed.roster import AIOHTTP, BARE, CALLBACK, FAST, TRANSPORTS, library

ABOUT: Final = """
The server sends updates evenly, with the time in each, which it takes from the clock that all
processes share right before it sends. The user's loop takes the time first of all, and the
difference is the delay, the server's sending and loopback included. The library with `async for`.
Each round lasts {seconds:g} s a rate, its first tenth left out, and has percentiles of its own; of
a round at 100 a second the 99.9th is the worst message.
"""

RATES: Final = (100, 1_000, 5_000)
_AIM: Final = 1_000  # the rate that the goals are for
_SHARES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

Delays: TypeAlias = dict[str, dict[str, list[float]]]
"""By the peer, and by the percentile: nanoseconds, one value a round."""


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    seconds = 0.5 if bench.quick else 4.0
    by_rate = {}
    dropped = {}
    for rate in RATES:
        by_rate[rate], dropped[rate] = _measured(bench, rate, int(rate * seconds))
    return Report(
        "delay",
        ABOUT.format(seconds=seconds),
        [_table(rate, by_rate[rate], dropped[rate]) for rate in RATES],
        _goals(by_rate[_AIM]),
        [_plot(by_rate)],
    )


def _measured(bench: Bench, rate: int, count: int) -> tuple[Delays, dict[str, float]]:
    peers = [*map(library, TRANSPORTS), CALLBACK, BARE, AIOHTTP]
    with bench.server() as server:
        told = {"url": server.url(push=count, rate=rate), "count": count}
        runs: dict[str, list[dict[str, Any]]] = bench.in_turn(
            {peer.name: peer.measuring(bench, "arrivals", told) for peer in peers}
        )
    delays = {
        name: {
            label: [percentile(one["delays"], share) for one in measured]
            for label, share in _SHARES.items()
        }
        for name, measured in runs.items()
    }
    return delays, {
        name: statistics.median(one["dropped"] for one in measured)
        for name, measured in runs.items()
    }


def _table(rate: int, delays: Delays, dropped: dict[str, float]) -> Table:
    base = delays[CALLBACK.name]
    rows = [
        (
            name,
            *(spread(own[label], 1e-3, 0) for label in _SHARES),
            f"{ratio(own['p50'], base['p50']):.2f}",
            f"{ratio(own['p99'], base['p99']):.2f}",
            f"{dropped[name]:,.0f}" if dropped[name] else NONE,
        )
        for name, own in delays.items()
    ]
    columns = (
        "",
        *(f"{label}, µs" for label in _SHARES),
        "p50 to callback",
        "p99 to callback",
        "dropped",
    )
    return Table(f"Delay at {rate:,} messages a second: median (least to most)", columns, rows)


def _goals(delays: Delays) -> list[Goal]:
    own, base = delays.get(library(FAST).name), delays[CALLBACK.name]
    return [
        at_most(
            f"{label} delay at {_AIM:,}/s: {library(FAST).name}, to the callback client",
            1.0,
            ratio(own[label], base[label]) if own else None,
        )
        for label in ("p50", "p99")
    ]


def _plot(by_rate: dict[int, Delays]) -> Plot:
    def drawn(label: str) -> dict[str, list[float]]:
        return {
            name: [statistics.median(by_rate[rate][name][label]) / 1e3 for rate in RATES]
            for name in by_rate[_AIM]
        }

    return Plot(
        "delay",
        "Delay from the server to the user's loop: p50 as a dot, and a line to p99 (medians)",
        "µs",
        tuple(f"{rate:,} a second" for rate in RATES),
        drawn("p50"),
        kind="dots",
        tips=drawn("p99"),
    )
