"""From nothing to a connection that is authenticated and subscribed."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.speed.figures import Report, Table, ratio, spread
from benchmarks.speed.processes import LINKS, Bench, Link
from benchmarks.speed.roster import AIOHTTP, BARE, CALLBACK, TRANSPORTS, library

ABOUT = """
{count} connections a round, one after the other, after {warm_up}. The time is from the call that
connects until the reply to `subscribe`, which comes after that to `auth`. Each client is made new,
so over TLS each but aiohttp's reads the system's CA certificates: aiohttp does that when it is
imported. Each connection is a full handshake.
"""


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    warm_up, count = (1, 5) if bench.quick else (3, 30)
    peers = [*map(library, TRANSPORTS), CALLBACK, BARE, AIOHTTP]
    with bench.server() as server:

        def measuring(link: Link) -> dict[str, Callable[[], float]]:
            told = {"url": server.url(link), "warm_up": warm_up, "count": count}
            return {peer.name: peer.measuring(bench, "connects", told) for peer in peers}

        runs = bench.by_ways({link: measuring(link) for link in LINKS})
    return Report(
        "connecting",
        ABOUT.format(count=count, warm_up=warm_up),
        [_table(link, runs[link]) for link in LINKS],
    )


def _table(link: Link, runs: dict[str, list[float]]) -> Table:
    rows = [
        (name, spread(values, 1e3, 2), f"{ratio(values, runs[CALLBACK.name]):.2f}")
        for name, values in runs.items()
    ]
    title = f"Connecting, {link}, median of a round: median (least to most)"
    return Table(title, ("", "ms", "to callback"), rows)
