"""How long a message is on its way to the user's loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs

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
from benchmarks.speed.processes import LINKS, Bench, Link
from benchmarks.speed.roster import AIOHTTP, BARE, CALLBACK, FAST, TRANSPORTS, library

ABOUT: Final = """
The server sends updates evenly, with the time in each, which it takes from the clock that all
processes share right before it sends. The user's loop takes the time first of all, and the
difference is the delay, the server's sending and loopback included. The library with `async for`.
Each round lasts {seconds:g} s a rate, its first tenth left out, and has percentiles of its own; of
a round at 100 a second the 99.9th is the worst message. Over TLS each message is a record.
"""

RATES: Final = (100, 1_000, 5_000)
_AIM: Final = 1_000  # the rate that the goals are for
_SHARES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

Delays: TypeAlias = dict[str, dict[str, list[float]]]
"""By the peer, and by the percentile: nanoseconds, one value a round."""


@attrs.frozen
class Found:
    """What was found at one rate over one link.

    Attributes:
        delays: How long messages took.
        dropped: How many of a round were dropped, by the peer.
    """

    delays: Delays
    dropped: dict[str, float]


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    seconds = 0.5 if bench.quick else 4.0
    by_rate = {rate: _measured(bench, rate, int(rate * seconds)) for rate in RATES}
    return Report(
        "delay",
        ABOUT.format(seconds=seconds),
        [_table(rate, link, by_rate[rate][link]) for rate in RATES for link in LINKS],
        [_goal(link, by_rate[_AIM][link].delays) for link in LINKS],
        [_plot(link, {rate: by_rate[rate][link].delays for rate in RATES}) for link in LINKS],
    )


def _measured(bench: Bench, rate: int, count: int) -> dict[Link, Found]:
    peers = [*map(library, TRANSPORTS), CALLBACK, BARE, AIOHTTP]
    with bench.server() as server:

        def measuring(link: Link) -> dict[str, Callable[[], dict[str, Any]]]:
            told = {"url": server.url(link, push=count, rate=rate), "count": count}
            return {peer.name: peer.measuring(bench, "arrivals", told) for peer in peers}

        runs = bench.by_ways({link: measuring(link) for link in LINKS})
    return {link: _found(runs[link]) for link in LINKS}


def _found(runs: dict[str, list[dict[str, Any]]]) -> Found:
    delays = {
        name: {
            label: [percentile(one["delays"], share) for one in measured]
            for label, share in _SHARES.items()
        }
        for name, measured in runs.items()
    }
    return Found(
        delays,
        {
            name: statistics.median(one["dropped"] for one in measured)
            for name, measured in runs.items()
        },
    )


def _table(rate: int, link: Link, found: Found) -> Table:
    delays, dropped = found.delays, found.dropped
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
    title = f"Delay at {rate:,} messages a second, {link}: median (least to most)"
    return Table(title, columns, rows)


def _goal(link: Link, delays: Delays) -> Goal:
    own, base = delays[library(FAST).name], delays[CALLBACK.name]
    return at_most(
        f"p50 delay at {_AIM:,}/s, {link}: {library(FAST).name}, to {CALLBACK.name}",
        1.1,
        ratio(own["p50"], base["p50"]),
    )


def _plot(link: Link, by_rate: dict[int, Delays]) -> Plot:
    def drawn(label: str) -> dict[str, list[float]]:
        return {
            name: [statistics.median(by_rate[rate][name][label]) / 1e3 for rate in RATES]
            for name in by_rate[_AIM]
        }

    return Plot(
        "delay" if link == "plain" else "delay-tls",
        f"Delay from the server to the user's loop, {link}: p50, and a line to p99 (medians)",
        "µs",
        tuple(f"{rate:,} a second" for rate in RATES),
        drawn("p50"),
        kind="dots",
        tips=drawn("p99"),
    )
