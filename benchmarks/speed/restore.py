"""From a lost connection to streams that are fresh again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

import attrs
import trio

from benchmarks.speed import messages
from benchmarks.speed.figures import Plot, Report, Table, spread
from benchmarks.speed.peers.library import UNLIMITED, open_client
from benchmarks.speed.processes import LINKS, Bench, Link, Server
from benchmarks.speed.roster import TRANSPORTS, library
from trio_broker import ConnectionLostError, Limits, Order, ReconnectPolicy, Subscription
from trio_broker.settings import TransportName

ABOUT: Final = """
The server hangs up, and notes when. The time goes from there until each stream has delivered a
message after the loss, marked with its gap: the state that the library asks for by itself. Before
the first try it waits for 1 ms at most, so that its backoff isn't what is measured. *The floor* is
what the protocol takes if nothing else takes any time: half a round trip for the news, and one
each for TCP, TLS, the WebSocket's handshake, auth, subscribe and order_status, of which there are
one a channel; with the limit, 100 messages in any 1.1 s. There is nobody to compare with: no peer
does this by itself.
"""

LOSSES: Final = (1, 10, 100)
"""How many subscriptions there are."""
ROUND_TRIPS: Final = (0.0, 0.05)
_PATIENCE: Final = 30.0
_WINDOW: Final = 1.1
_DEFAULT: Final = Limits()
_POLICY: Final = ReconnectPolicy(initial_delay=0.001, max_delay=0.001, max_attempts=None)


@attrs.frozen
class Case:
    """What is restored.

    Attributes:
        subscriptions: How many.
        round_trip: Of the link, in seconds.
        limited: Whether the default limit of messages a second holds.
        link: How the server is reached.
    """

    subscriptions: int
    round_trip: float
    limited: bool
    link: Link = "plain"

    @property
    def limit(self) -> str:
        """The limit in words."""
        return f"{_DEFAULT.messages_per_second}/s" if self.limited else "none"

    @property
    def words(self) -> str:
        """All of it in words."""
        streams = "1 stream" if self.subscriptions == 1 else f"{self.subscriptions} streams"
        return f"{streams}, {self.link}, {self.round_trip * 1e3:.0f} ms, limit: {self.limit}"

    @property
    def floor(self) -> float:
        """Seconds that the protocol takes."""
        auth = (2.5 if self.link == "plain" else 3.5) * self.round_trip
        left = [auth]
        for number in range(2 * self.subscriptions):
            is_subscribe = number < self.subscriptions
            cause = auth if is_subscribe else left[1 + number - self.subscriptions]
            earliest = max(cause + self.round_trip, left[-1])
            before = len(left) - _DEFAULT.messages_per_second
            if self.limited and before >= 0:
                earliest = max(earliest, left[before] + _WINDOW)
            left.append(earliest)
        return left[-1] + self.round_trip


Times: TypeAlias = dict[Case, dict[str, list[float]]]


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    times: Times = {}
    for round_trip in ROUND_TRIPS:
        with bench.server(round_trip or None) as server:
            for limited in (False, True):
                for subscriptions in LOSSES:
                    cases = [Case(subscriptions, round_trip, limited, link) for link in LINKS]
                    times |= _measured(bench, server, cases)
    return Report("restore", ABOUT, [_table(times)], plots=[_plot(times)])


def _measured(bench: Bench, server: Server, cases: Sequence[Case]) -> Times:
    def measuring(case: Case) -> dict[str, Callable[[], float]]:
        url = server.url(case.link, slow=case.round_trip > 0)
        told = {"url": url, "subscriptions": case.subscriptions, "limited": case.limited}
        return {
            library(one).name: partial(
                bench.measure, "restore:restored", {**told, "transport": one}
            )
            for one in TRANSPORTS
        }

    runs = bench.by_ways({case.words: measuring(case) for case in cases})
    return {case: runs[case.words] for case in cases}


def _table(times: Times) -> Table:
    rows = []
    for case, by_peer in times.items():
        for name, values in by_peer.items():
            middle, floor = statistics.median(values), case.floor
            rows.append(
                (
                    f"{case.subscriptions}",
                    case.link,
                    f"{case.round_trip * 1e3:.0f}",
                    case.limit,
                    name,
                    spread(values, 1e3),
                    f"{floor * 1e3:.0f}",
                    f"{(middle - floor) * 1e3:.1f}",
                    f"{middle / floor:.2f}" if floor else "",
                )
            )
    columns = (
        "subscriptions",
        "link",
        "round trip, ms",
        "limit",
        "",
        "restored after, ms",
        "floor, ms",
        "above it, ms",
        "to the floor",
    )
    return Table("From a lost connection to fresh streams: median (least to most)", columns, rows)


def _plot(times: Times) -> Plot:
    series: dict[str, list[float]] = {"the floor": [case.floor * 1e3 for case in times]}
    for transport in TRANSPORTS:
        name = library(transport).name
        series[name] = [statistics.median(by_peer[name]) * 1e3 for by_peer in times.values()]
    return Plot(
        "restore",
        "From a lost connection to fresh streams (median)",
        "ms",
        tuple(case.words for case in times),
        series,
        kind="dots",
    )


# --- In the client's process ----------------------------------------------------------------


def restored(url: str, transport: TransportName, subscriptions: int, *, limited: bool) -> float:
    """Lose a connection, and wait until all is well again.

    Args:
        url: The server's.
        transport: The transport's name.
        subscriptions: How many there are.
        limited: Whether the default limit of messages a second holds.

    Returns:
        Seconds from the server's hanging up.
    """
    limits = _DEFAULT if limited else UNLIMITED
    options: dict[str, Any] = {"limits": limits, "reconnect": _POLICY}
    return trio.run(partial(_restored, url, transport, subscriptions, **options))


async def _restored(
    url: str, transport: TransportName, subscriptions: int, **options: Any
) -> float:
    lost_at: list[int] = []

    async def wait_fresh(updates: Subscription[Order]) -> None:
        message = await updates.receive()
        if message.gap is None:
            raise RuntimeError("the first message after a loss has no gap")
        lost_at.append(int((message.data.tx_hash or "")[2:]))

    with trio.fail_after(_PATIENCE):
        async with open_client(url, transport, **options) as client:
            async with trio.open_nursery() as nursery:
                for number in range(subscriptions):
                    name = messages.order_name(number)
                    updates = await client.subscribe_order(name, snapshot=False)
                    nursery.start_soon(wait_fresh, updates)
                with suppress(ConnectionLostError):
                    await client.get_order_status(messages.DROP)
            now = time.monotonic_ns()
    return (now - min(lost_at)) / 1e9
