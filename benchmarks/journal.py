"""Measure the cost of a journal: the time of `do_swap` with one and without.

    python benchmarks/journal.py --count 500

A sandbox in its own process replies at once over loopback, so a swap without a journal is as fast
as possible. With a remote broker the ratio is closer to 1, because the journal adds only its
commit. Two clients, one with a journal and one without, swap in turn:

- *alone*: one by one; the journal has written the last outcome before the next swap begins;
- *in a row*: ten, one right after another, so that an intent may wait for the last outcome's write;
- *eight tasks*: eight at a time, whose intents may share a commit; each caller's time counts.

Each is measured in the directory for temporary files and in memory (``/dev/shm``), where a commit
needs no disk. The time of one fsync in each is printed too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from trio_broker import BrokerWSClient, Limits, SwapJournal
from trio_broker.sandbox import open_sandbox

AT_ONCE: Final = 1_000_000  # messages per second, so that pacing doesn't count
ROW: Final = 10
TASKS: Final = 8
WARM_UP: Final = 10
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - it is asked for as a place in memory


@attrs.define
class Times:
    """How long swaps took, in seconds.

    Attributes:
        without: Without a journal.
        with_it: With one.
    """

    without: list[float] = attrs.field(factory=list)
    with_it: list[float] = attrs.field(factory=list)

    def line(self, name: str) -> str:
        """A line of the table.

        Args:
            name: What was measured.
        """
        cells = [f"  {name:<12}"]
        for measure in (statistics.median, percentile_95):
            without, with_it = measure(self.without), measure(self.with_it)
            cells.append(
                f"{without * 1e3:9.2f} {with_it * 1e3:9.2f} {with_it / without:7.2f}      "
            )
        return "".join(cells).rstrip()


def percentile_95(times: list[float]) -> float:
    """The 95th percentile of the times.

    Args:
        times: The times, at least two.
    """
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


async def serve() -> None:
    """Run the sandbox: print its URL, and serve until standard input ends."""
    async with open_sandbox(seed=0, messages_per_second=AT_ONCE) as sandbox:
        print(sandbox.url, sandbox.api_key, sandbox.secret_key, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


@asynccontextmanager
async def open_broker() -> AsyncIterator[tuple[str, str, str]]:
    """A sandbox in a process of its own: its URL and its first account's keys."""
    process = await trio.lowlevel.open_process(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None  # noqa: S101 - they were opened
    assert process.stdout is not None  # noqa: S101
    try:
        printed = b""
        while not printed.endswith(b"\n"):
            chunk = await process.stdout.receive_some()
            if not chunk:
                raise RuntimeError("the sandbox has ended")
            printed += chunk
        url, api_key, secret_key = printed.decode().split()
        yield url, api_key, secret_key
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()


@attrs.define(eq=False)
class Comparison:
    """Two clients that swap in turns.

    Attributes:
        without: The one without a journal.
        with_it: The one with one.
        journal: The journal.
    """

    without: BrokerWSClient
    with_it: BrokerWSClient
    journal: SwapJournal

    async def alone(self, times: Times) -> None:
        """A swap of each.

        Args:
            times: Takes how long they took.
        """
        times.without.append(await swap(self.without))
        times.with_it.append(await swap(self.with_it))
        await self.journal.flush()

    async def in_a_row(self, times: Times) -> None:
        """Ten swaps of each, one right after the other.

        Args:
            times: Takes how long they took.
        """
        times.without += [await swap(self.without) for _ in range(ROW)]
        times.with_it += [await swap(self.with_it) for _ in range(ROW)]
        await self.journal.flush()

    async def at_a_time(self, times: Times) -> None:
        """Eight swaps of each at a time.

        Args:
            times: Takes how long they took.
        """
        for client, taken in ((self.without, times.without), (self.with_it, times.with_it)):
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(_swap_into, client, taken)
            await self.journal.flush()


async def _swap_into(client: BrokerWSClient, taken: list[float]) -> None:
    taken.append(await swap(client))


async def swap(client: BrokerWSClient) -> float:
    """Swap.

    Args:
        client: By whom.

    Returns:
        How long it took, in seconds.
    """
    began = time.perf_counter()
    await client.do_swap("0.001", "ETH", "USDT")
    return time.perf_counter() - began


def fsync_time(folder: Path, count: int = 50) -> float:
    """The time of a write of 4 KiB with an fsync, in seconds.

    Args:
        folder: Where.
        count: How often it is measured; the median counts.
    """
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def file_system(folder: Path) -> str:
    """The kind of a directory's file system, as far as it can be detected.

    Args:
        folder: The directory.
    """
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    fields = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    places = {field[1]: field[2] for field in fields}
    resolved = folder.resolve()
    return next(
        places[str(one)] for one in (resolved, *resolved.parents, Path("/")) if str(one) in places
    )


async def compare(place: Path, broker: tuple[str, str, str], count: int) -> None:
    """Measure with a journal in one place, and print it.

    Args:
        place: The directory.
        broker: The sandbox's URL and keys.
        count: How many swaps of each client, about.
    """
    url, api_key, secret_key = broker
    limits = Limits(messages_per_second=AT_ONCE)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        journal = SwapJournal(Path(folder) / "journal")
        async with (
            BrokerWSClient(api_key, secret_key, url, limits=limits) as without,
            BrokerWSClient(api_key, secret_key, url, limits=limits, journal=journal) as with_it,
        ):
            comparison = Comparison(without, with_it, journal)
            for _ in range(WARM_UP):
                await comparison.alone(Times())
            print(
                f"\nthe journal is in {place} ({file_system(place)}), where an fsync takes "
                f"{fsync_time(place) * 1e3:.2f} ms\n"
                f"  {'':<12}{'median, ms':>19} {'ratio':>7}      {'p95, ms':>19} {'ratio':>7}\n"
                f"  {'':<12}{'without':>9} {'with':>9} {'':>13}{'without':>9} {'with':>9}"
            )
            for name, measure, share in (
                ("alone", comparison.alone, 1),
                ("in a row", comparison.in_a_row, ROW),
                ("eight tasks", comparison.at_a_time, TASKS),
            ):
                times = Times()
                for _ in range(max(2, count // share)):
                    await measure(times)
                print(times.line(name), flush=True)


async def run(arguments: argparse.Namespace) -> None:
    """Measure in every place."""
    places = [arguments.path] if arguments.path else [Path(tempfile.gettempdir()), MEMORY]
    async with open_broker() as broker:
        for place in places:
            if place.is_dir():
                await compare(place, broker, arguments.count)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Swaps with a journal, against swaps without.")
    parser.add_argument("--count", type=int, default=500, help="swaps of each kind")
    parser.add_argument("--path", type=Path, help="the directory for the journal")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
    else:
        trio.run(run, arguments)


if __name__ == "__main__":
    main()
