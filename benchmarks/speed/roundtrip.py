"""One call and its reply."""

from __future__ import annotations

from typing import Final, TypeAlias

from benchmarks.speed.figures import Goal, Report, Table, at_most, percentile, ratio, spread
from benchmarks.speed.processes import Bench
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
        told = {"url": server.url(), "warm_up": warm_up, "count": count}
        runs: dict[str, list[dict[str, list[int]]]] = bench.in_turn(
            {peer.name: peer.measuring(bench, "calls", told, watch_sends=True) for peer in peers}
        )
    times = {
        name: {
            f"{figure} {label}": [percentile(one[key], share) for one in measured]
            for figure, key in _FIGURES.items()
            for label, share in (("p50", 0.5), ("p99", 0.99))
        }
        for name, measured in runs.items()
    }
    about = ABOUT.format(count=count, warm_up=warm_up)
    return Report("roundtrip", about, [_table(times)], [_goal(times)])


def _table(times: Times) -> Table:
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
    return Table("estimate_swap: median (least to most)", columns, rows)


def _goal(times: Times) -> Goal:
    own, base = times.get(library(FAST).name), times[CALLBACK.name]
    return at_most(
        f"estimate_swap to its reply, p50: {library(FAST).name}, to the callback client",
        1.0,
        ratio(own["reply p50"], base["reply p50"]) if own else None,
    )
