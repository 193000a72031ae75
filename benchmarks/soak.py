"""Run clients against a broker with random faults, and check that every stream converges.

    python benchmarks/soak.py --clients 20 --subscriptions 20 --seconds 600 --seed 1

A sandbox on this machine has random faults, chosen by a seed: it is killed and revived, and its
connections are reset, closed, dropped, silenced and slowed down. Each client watches the balances
and orders, and processes them as documented. Every `ROUND` seconds the faults pause and the orders
end. Then every stream must equal the ledger. The exit status is 1 if one doesn't, or if memory,
tasks or open files grow.

The sandbox's own memory grows with every order. So the rounds have few swaps, and `MEMORY_FLOOR`
allows for them.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, get_args

import attrs
import trio

from trio_broker import (
    Balance,
    BrokerWSClient,
    Disconnected,
    Message,
    Order,
    ReconnectPolicy,
    Subscription,
    SwapOutcomeUnknownError,
)
from trio_broker.exceptions import BrokerError
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.settings import TransportName

ROUND: Final = 10.0  # seconds of faults between two pauses
PATIENCE: Final = 60.0  # seconds in a pause until every stream must equal the ledger
MEMORY_SHARE: Final = 0.10
MEMORY_FLOOR: Final = 8 * 1024 * 1024
_POLICY: Final = ReconnectPolicy(
    max_attempts=None, initial_delay=0.2, max_delay=2.0, stable_after=3.0
)
# Seconds until a sandbox has dropped a client that disconnected, and until a connection is stable:
# a task of each client waits for that.
LINGER: Final = _POLICY.stable_after + 0.5


@attrs.define(eq=False)
class Watcher:
    """One stream, added up as documented."""

    name: str
    counts: Counter[str]
    balances: dict[str, Balance] = attrs.field(factory=dict)
    order: Order | None = None

    async def follow(self, updates: Subscription[Any]) -> None:
        """Add up until the stream ends."""
        async with updates:
            async for message in updates:
                self.take(message)

    def take(self, message: Message[Any]) -> None:
        """Add one message."""
        self.counts["messages"] += 1
        self.counts["snapshots"] += message.origin == "snapshot"
        self.counts["gaps"] += message.gap is not None
        if isinstance(message.data, Order):
            self.order = message.data
            return
        if message.origin == "snapshot":
            self.balances.clear()
        self.balances |= {balance.asset: balance for balance in message.data}


@attrs.define(eq=False)
class Soak:
    """The run: its sandbox, its clients, what was counted and measured."""

    sandbox: Sandbox
    clients: list[BrokerWSClient]
    chance: random.Random
    subscriptions: int
    counts: Counter[str] = attrs.field(factory=Counter)
    apart: list[str] = attrs.field(factory=list)
    samples: list[tuple[int, int, int]] = attrs.field(factory=list)

    async def run(self, seconds: float) -> None:
        """Run rounds of faults and pauses until the time is up."""
        async with trio.open_nursery() as nursery:
            for client in self.clients:
                nursery.start_soon(self._count_outages, client)
            end = trio.current_time() + seconds
            while trio.current_time() < end and not self.apart:
                await self._round(min(ROUND, max(1.0, end - trio.current_time())))
            nursery.cancel_scope.cancel()

    async def _count_outages(self, client: BrokerWSClient) -> None:
        async for event in client.events():
            self.counts["outages"] += isinstance(event, Disconnected)

    async def _round(self, seconds: float) -> None:
        orders = [await self._swap(number) for number in range(self.subscriptions - 1)]
        watchers: list[Watcher] = []
        async with trio.open_nursery() as nursery:
            for client in self.clients:
                for channel in ("balances", *(f"orders:{order}" for order in orders)):
                    watcher = Watcher(channel, self.counts)
                    watchers.append(watcher)
                    nursery.start_soon(watcher.follow, await client.subscribe(channel))
            with trio.move_on_after(seconds):
                await self._make_trouble()
            await self._truce(watchers)
            nursery.cancel_scope.cancel()
        await self._settle()

    async def _swap(self, number: int) -> str:
        client = self.clients[number % len(self.clients)]
        # Between two rounds nothing disturbs the broker, but this one may still be on its way back.
        await client.wait_connected()
        receipt = await client.do_swap("0.001", "BTC", "USDT")
        self.counts["swaps"] += 1
        return receipt.order_id

    async def _make_trouble(self) -> None:
        trouble = (
            self._kill, self._reset, self._close, self._hang_up, self._silence, self._slow_down,
        )  # fmt: skip
        while True:
            await self.chance.choice(trouble)()
            # More swaps, so that the balances change during the outage.
            client = self.chance.choice(self.clients)
            try:
                await client.do_swap("0.001", "ETH", "USDT")
            except (SwapOutcomeUnknownError, BrokerError):
                self.counts["swaps cut off"] += 1
            else:
                self.counts["swaps"] += 1
            await trio.sleep(self.chance.uniform(0.1, 1.0))

    async def _kill(self) -> None:
        self.counts["kills"] += 1
        self.sandbox.faults.kill()
        try:
            await trio.sleep(self.chance.uniform(0.0, 1.0))
        finally:
            with trio.CancelScope(shield=True):
                await self.sandbox.faults.revive()

    async def _reset(self) -> None:
        self.counts["resets"] += self.sandbox.faults.reset(mid_frame=self.chance.random() < 0.5)

    async def _close(self) -> None:
        self.counts["closes"] += self.sandbox.faults.close(self.chance.choice([1001, 1011, 1012]))

    async def _hang_up(self) -> None:
        self.counts["hang-ups"] += self.sandbox.faults.hang_up()

    async def _silence(self) -> None:
        self.counts["stalls"] += 1
        with self.sandbox.faults.go_silent():
            await trio.sleep(self.chance.uniform(0.5, 2.5))

    async def _slow_down(self) -> None:
        self.counts["delays"] += 1
        # Orders alone: a later push may overtake one that is held back, and nothing in a push of
        # balances says which is newer, so that no client could put it right.
        with self.sandbox.faults.delay(self.chance.uniform(0.01, 0.3), channel="orders:*"):
            await trio.sleep(self.chance.uniform(0.1, 1.0))

    async def _truce(self, watchers: list[Watcher]) -> None:
        """Wait until every stream equals the ledger; record those that don't in time."""
        self.sandbox.faults.clear()
        deadline = trio.current_time() + PATIENCE
        while apart := self._apart(watchers):
            if trio.current_time() > deadline:
                self.apart = apart
                return
            await trio.sleep(0.1)
        self.counts["converged"] += len(watchers)

    def _apart(self, watchers: list[Watcher]) -> list[str]:
        ledger = self.sandbox.balances()
        running = [one.order_id for one in self.sandbox.orders() if not one.status.is_final]
        apart = [f"order {order_id} is still running" for order_id in running]
        for watcher in watchers:
            if watcher.name == "balances":
                if watcher.balances != ledger:
                    apart.append(f"balances: {watcher.balances}, the ledger says {ledger}")
                continue
            order = self.sandbox.order(watcher.name.removeprefix("orders:"))
            mine = watcher.order
            if mine is None or (mine.status, mine.filled_out) != (order.status, order.filled_out):
                apart.append(f"{watcher.name}: {mine}, the ledger says {order.status}")
        return apart

    async def _settle(self) -> None:
        """Wait until the round has ended completely, and measure memory, tasks and files."""
        while any(client.statistics().channels for client in self.clients):  # noqa: ASYNC110 - no event
            await trio.sleep(0.05)
        for client in self.clients:
            await client.wait_connected()
        connections, expected = self.sandbox.connections, len(self.clients)
        while sum(one.closed_at is None for one in connections) > expected:  # noqa: ASYNC110 - no event
            await trio.sleep(0.05)
        await trio.sleep(LINGER)
        gc.collect()
        tasks = await self._tasks()
        files = len(os.listdir("/proc/self/fd"))
        self.samples.append((resident(), tasks, files))
        print(
            f"round {len(self.samples):3}: {self.counts['messages']:8} messages, "
            f"{self.counts['outages']:5} outages, {self.counts['gaps']:6} gaps, "
            f"{resident() / 1e6:6.1f} MB, {tasks} tasks, {files} files",
            flush=True,
        )

    async def _tasks(self) -> int:
        """The fewest tasks of a moment: a heartbeat on its way is a task too."""
        counts = []
        for _ in range(10):
            counts.append(trio.lowlevel.current_statistics().tasks_living)
            await trio.sleep(0.02)
        return min(counts)

    def growth(self) -> list[str]:
        """The measurements that have grown too much, without the first fifth as a warm-up."""
        samples = self.samples[len(self.samples) // 5 :]
        third = len(samples) // 3
        if not third:
            return []
        first, last = samples[:third], samples[-third:]
        grown = []
        before, after = (statistics.median(one[0] for one in part) for part in (first, last))
        if after > before * (1 + MEMORY_SHARE) + MEMORY_FLOOR:
            grown.append(f"memory grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB")
        for index, what in ((1, "tasks"), (2, "open files")):
            before, after = (min(one[index] for one in part) for part in (first, last))
            if after > before:
                grown.append(f"{what} grew from {before:g} to {after:g}")
        return grown


def resident() -> int:
    """This process's resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def soak(arguments: argparse.Namespace) -> int:
    """Run it, print the table, and return the exit status."""
    async with open_sandbox(seed=arguments.seed, history_size=100) as sandbox:
        clients = [
            sandbox.client(
                reconnect=_POLICY,
                heartbeat_interval=1.0,
                heartbeat_timeout=1.0,
                transport=arguments.transport,
            )
            for _ in range(arguments.clients)
        ]
        async with trio.open_nursery() as nursery:
            for client in clients:
                await client.connect(nursery)
            run = Soak(
                sandbox,
                clients,
                random.Random(arguments.seed),  # noqa: S311 - repeatable is the point
                arguments.subscriptions,
            )
            began = time.monotonic()
            await run.run(arguments.seconds)
            for client in clients:
                await client.aclose()
    bad = run.apart[:10] + run.growth()
    print(
        f"\n{arguments.clients} clients with {arguments.subscriptions} subscriptions each, ", end=""
    )
    print(f"seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    for name, count in sorted(run.counts.items()):
        print(f"  {name:<14} {count:>10}")
    print(
        f"  {'memory':<14} {run.samples[0][0] / 1e6:.1f} MB, at the end {resident() / 1e6:.1f} MB"
    )
    for line in bad:
        print("WRONG:", line)
    print("every stream ended as the ledger" if not bad else "failed")
    return 1 if bad else 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Clients under a broker that fails at random.")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--subscriptions", type=int, default=20, help="of each client")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transport", choices=get_args(TransportName), default="trio-websocket")
    sys.exit(trio.run(soak, parser.parse_args()))


if __name__ == "__main__":
    main()
