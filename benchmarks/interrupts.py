"""Send Ctrl-C at random moments, and check that each raises a bare `KeyboardInterrupt`.

    python -m benchmarks.interrupts --transport trio-websocket --count 500 --load --seed 1

Child processes swap in a loop against a sandbox in this process, and get SIGINT at a random
moment, while they connect or swap. Each child catches `KeyboardInterrupt`, reports how it was
raised, and starts again with another client, `PER_CHILD` times. With ``--load`` the sandbox also
pushes 15,000 updates of an order per second to a subscription of the child.

Half of the sessions catch it inside of ``trio.run``, and have a second task that consumes the
subscription and may be the interrupted one. The other half catch it outside.

A SIGINT has failed if no `KeyboardInterrupt` was raised within `PATIENCE` seconds, if it was in an
exception group, if another error was raised, or if a connection, a task or a socket stayed open.
The exit status is 0 only if none has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, get_args

import attrs
import trio

from benchmarks.speed import messages
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    ConnectionState,
    Limits,
    Order,
    ReconnectPolicy,
    Subscription,
)
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.settings import TransportName

PER_CHILD: Final = 25
PATIENCE: Final = 5.0  # seconds after which an interrupt counts as swallowed
LONGEST: Final = 0.12  # seconds from the start of a session to its SIGINT
START_PATIENCE: Final = 60.0  # seconds for a child to start

ORDER: Final = messages.order_name(0)
_RATE: Final = 15_000
_PUSH_INTERVAL: Final = 0.005

BARE: Final = "bare"
IN_CONSUMER: Final = "bare, in the consumer's task"
SWALLOWED: Final = "swallowed"


# --- The child --------------------------------------------------------------------------------


@attrs.define
class Session:
    """One client in the child, until it is interrupted."""

    client: BrokerWSClient
    load: bool
    how: str = ""

    async def trade(self) -> None:
        """Swap in a loop, and read the pushes in between."""
        _tell({"started": True})
        async with self.client:
            updates = await self._subscribe()
            while True:
                await self._swap()
                if updates is not None:
                    with suppress(trio.WouldBlock):
                        updates.batch_nowait()

    async def trade_beside_a_consumer(self) -> None:
        """Swap in a loop; another task reads the pushes."""
        async with trio.open_nursery() as nursery:
            try:
                _tell({"started": True})
                async with self.client:
                    updates = await self._subscribe()
                    if updates is not None:
                        nursery.start_soon(self._consume, updates, nursery)
                    while True:
                        await self._swap()
            except KeyboardInterrupt:
                self.how = BARE
                nursery.cancel_scope.cancel()

    async def _subscribe(self) -> Subscription[Order] | None:
        return await self.client.subscribe_order(ORDER) if self.load else None

    async def _swap(self) -> None:
        try:
            await self.client.do_swap("0.0001", "ETH", "USDT")
        except BrokerError:  # A program that carries on, as many do.
            await trio.sleep(0.001)

    async def _consume(self, updates: Subscription[Order], nursery: trio.Nursery) -> None:
        try:
            async with updates:
                async for _ in updates:
                    pass
        except KeyboardInterrupt:
            self.how = IN_CONSUMER
            nursery.cancel_scope.cancel()


async def _inside(session: Session) -> dict[str, Any]:
    """A session that catches it inside of Trio, and checks for leftover tasks."""
    before = trio.lowlevel.current_statistics().tasks_living, _count_sockets()
    await session.trade_beside_a_consumer()
    after = trio.lowlevel.current_statistics().tasks_living, _count_sockets()
    return {"left": [now - then for now, then in zip(after, before, strict=True)]}


def _count_sockets() -> int:
    links = Path("/proc/self/fd")
    if not links.exists():
        return 0
    return sum(_is_socket(link) for link in links.iterdir())


def _is_socket(link: Path) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except OSError:  # the directory's own
        return False


def child(url: str, api_key: str, secret_key: str, transport: TransportName, load: bool) -> None:
    """A session for each line of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        client = BrokerWSClient(
            api_key,
            secret_key,
            url,
            transport=transport,
            limits=Limits(messages_per_second=10_000),
            reconnect=ReconnectPolicy(max_attempts=None, initial_delay=0.01),
        )
        session = Session(client, load)
        left = [0, 0]
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if int(line) % 2:
                left = trio.run(_inside, session)["left"]
            else:
                trio.run(session.trade)
        except KeyboardInterrupt:
            session.how = BARE
        except BaseException as error:  # noqa: ASYNC103, BLE001 - the parent is told
            session.how = repr(error)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A client that hadn't begun yet has nothing to end.
        over = client.state.is_over or client.state is ConnectionState.IDLE
        _tell({"how": session.how, "over": over, "tasks": left[0], "sockets": left[1]})


def _tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


# --- The parent -------------------------------------------------------------------------------


@attrs.define
class Result:
    """The results of all SIGINTs."""

    came: Counter[str] = attrs.field(factory=Counter)
    left: Counter[str] = attrs.field(factory=Counter)
    seconds: list[float] = attrs.field(factory=list)
    pushed: int = 0
    swaps: int = 0
    took: float = 0.0

    @property
    def failures(self) -> int:
        """The number of failed SIGINTs."""
        good = self.came[BARE] + self.came[IN_CONSUMER]
        return self.came.total() - good + self.left.total()


class Child:
    """A child process, and the lines that it writes."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._text = b""

    async def ask(self, number: int) -> None:
        """Begin a session; return when it has begun."""
        assert self._process.stdin is not None  # noqa: S101 - it has pipes
        await self._process.stdin.send_all(b"%d\n" % number)
        with trio.fail_after(START_PATIENCE):
            await self.read()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    async def read(self) -> dict[str, Any]:
        """The next line."""
        assert self._process.stdout is not None  # noqa: S101 - it has pipes
        while b"\n" not in self._text:
            chunk = await self._process.stdout.receive_some()
            if not chunk:
                raise RuntimeError("a child has ended by itself")
            self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told


@asynccontextmanager
async def started(command: Sequence[str]) -> AsyncIterator[Child]:
    """A child process for as long as the block lasts."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Child(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def push(sandbox: Sandbox, result: Result) -> None:
    """Push updates of the order to all of its subscribers in a loop."""
    sent, began, number = 0, trio.current_time(), 0
    while True:
        await trio.sleep(_PUSH_INTERVAL)
        due = int((trio.current_time() - began) * _RATE)
        count = min(due - sent, 2 * int(_RATE * _PUSH_INTERVAL))
        sent = due
        if any(one.channels for one in sandbox.connections if one.closed_at is None):
            frames = (messages.update(ORDER, number + i) for i in range(count))
            sandbox.faults.send_raw(b"".join(frames))
            number += count
            result.pushed += count


async def interrupt(child: Child, sandbox: Sandbox, number: int, delay: float) -> tuple[str, float]:
    """Send one SIGINT; return how it was raised, and after how many seconds."""
    await child.ask(number)
    await trio.sleep(delay)
    child.interrupt()
    began = trio.current_time()
    with trio.move_on_after(PATIENCE):
        told = await child.read()
        seconds = trio.current_time() - began
        while any(one.closed_at is None for one in sandbox.connections):  # noqa: ASYNC110
            await trio.sleep(0.002)
        if not told["over"] or told["tasks"] or told["sockets"]:
            return f"left something: {told}", seconds
        return str(told["how"]), seconds
    return SWALLOWED, PATIENCE


async def run(transport: TransportName, count: int, load: bool, seed: int) -> Result:
    """So many SIGINTs.

    Args:
        transport: The clients' transport.
        count: How many.
        load: Whether there are pushes meanwhile.
        seed: Chooses the moments.
    """
    chance = random.Random(seed)  # noqa: S311 - it chooses moments
    result = Result()
    began = time.monotonic()
    async with (
        open_sandbox(messages_per_second=100_000, outbox_size=100_000) as sandbox,
        trio.open_nursery() as nursery,
    ):
        if load:
            nursery.start_soon(push, sandbox, result)
        account = sandbox.accounts[0]
        command = [
            *(sys.executable, "-m", "benchmarks.interrupts", "--transport", transport),
            *("--child", sandbox.url, account.api_key, account.secret_key),
            *(["--load"] if load else []),
        ]
        number = 0
        while number < count:
            async with started(command) as child:
                for _ in range(min(PER_CHILD, count - number)):
                    number += 1
                    delay = chance.uniform(0, LONGEST)
                    how, seconds = await interrupt(child, sandbox, number, delay)
                    result.came[how] += 1
                    result.seconds.append(seconds)
                    if how not in {BARE, IN_CONSUMER}:
                        break  # It may still trade: only a kill ends it.
        result.swaps = len(sandbox.orders())
        nursery.cancel_scope.cancel()
    result.took = time.monotonic() - began
    return result


def shown(result: Result) -> str:
    """The figures, for people."""
    lines = [f"{count:6,}  {how}" for how, count in sorted(result.came.items())]
    lines += [f"{result.swaps:6,}  swaps", f"{result.pushed:6,}  updates pushed"]
    median, most = statistics.median(result.seconds), max(result.seconds)
    lines.append(
        f"{1000 * median:.0f} ms from SIGINT to the end, median; {1000 * most:.0f} at most"
    )
    lines.append(f"{result.failures} failed; {result.took:.0f} s in all")
    return "\n".join(lines)


def main() -> int:
    """The command.

    Returns:
        0 if every SIGINT came as it should.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--transport", choices=get_args(TransportName), default="trio-websocket")
    parser.add_argument("--count", type=int, default=500, help="SIGINTs (500)")
    parser.add_argument("--load", action="store_true", help="with 15,000 pushes a second")
    parser.add_argument("--seed", type=int, default=1, help="chooses the moments")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        url, api_key, secret_key = arguments.child
        child(url, api_key, secret_key, arguments.transport, arguments.load)
        return 0
    result = trio.run(run, arguments.transport, arguments.count, arguments.load, arguments.seed)
    print(shown(result))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
