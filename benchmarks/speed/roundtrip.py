"""One call and its reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from benchmarks.speed.figures import Goal, Report, Table, at_most, percentile, ratio, spread
from benchmarks.speed.processes import LINKS, Bench, Link
from benchmarks.speed.roster import CALLBACK, FAST, TRANSPORTS, bridged, library

ABOUT: Final = """
`estimate_swap` one at a time, {count:,} calls a round after {warm_up}, with no limit of messages a
second. The callback client signs with what the standard library has, and a task of its own
resolves the future that the caller waits for; it returns a dict as it came, the library checked
types with decimals. *Reply* is the time from the call to its return. *Sent* is the time from the
call to the return of the system call that handed its last byte to the kernel, noted for all by
the same function around `socket.socket.send`. The ratios are of p50. `trio_broker.aio` is the
library's client in an asyncio program, with Trio as the guest of its loop.
"""

_FIGURES: Final = {"reply": "taken", "sent": "sent"}

Run: TypeAlias = dict[str, list[int]]
Times: TypeAlias = dict[str, dict[str, list[float]]]
"""By the peer, and by what was timed: nanoseconds, one value a round."""


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    warm_up, count = (20, 100) if bench.quick else (200, 2_000)
    peers = [*map(library, TRANSPORTS), *map(bridged, TRANSPORTS), CALLBACK]
    with bench.server() as server:

        def measuring(link: Link) -> dict[str, Callable[[], Run]]:
            told = {"url": server.url(link), "warm_up": warm_up, "count": count}
            return {
                peer.name: peer.measuring(bench, "calls", told, watch_sends=True) for peer in peers
            }

        runs = bench.by_ways({link: measuring(link) for link in LINKS})
    times = {link: _times(runs[link]) for link in LINKS}
    return Report(
        "roundtrip",
        ABOUT.format(count=count, warm_up=warm_up),
        [_table(link, times[link]) for link in LINKS],
        [_goal(link, times[link]) for link in LINKS],
    )


def _times(runs: dict[str, list[Run]]) -> Times:
    return {
        name: {
            f"{figure} {label}": [percentile(one[key], share) for one in measured]
            for figure, key in _FIGURES.items()
            for label, share in (("p50", 0.5), ("p99", 0.99))
        }
        for name, measured in runs.items()
    }


def _table(link: Link, times: Times) -> Table:
    base = times[CALLBACK.name]
    rows = [
        (
            name,
            *(spread(values, 1e-3, 0) for values in own.values()),
            f"{ratio(own['reply p50'], base['reply p50']):.2f}",
            f"{ratio(own['sent p50'], base['sent p50']):.2f}",
        )
        for name, own in times.items()
    ]
    labels = (f"{label}, µs" for label in base)
    columns = ("", *labels, "reply to callback", "sent to callback")
    return Table(f"estimate_swap, {link}: median (least to most)", columns, rows)


def _goal(link: Link, times: Times) -> Goal:
    own, base = times[library(FAST).name], times[CALLBACK.name]
    return at_most(
        f"estimate_swap to its reply, p50, {link}: {library(FAST).name}, to {CALLBACK.name}",
        1.15,
        ratio(own["reply p50"], base["reply p50"]),
    )
