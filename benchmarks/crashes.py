"""Kill a process that swaps with a journal, again and again, and check that no swap is lost.

    python benchmarks/crashes.py --kills 100 --seed 1

A child swaps as fast as it can in several tasks, cancels some calls, and reports the outcome of
each swap. The sandbox delays and loses some replies and connections. The child is killed with
SIGKILL, at a random time or by itself at a critical moment: a step of the journal's opening, a
commit, or a send. Then a client opens the journal and reconciles, in this process or in another
one, which may be killed too. The journal, the child's reports and `reconcile` must match the
sandbox's ledger:

- every swap in the ledger is in the journal, and none was sent twice;
- a confirmed swap is in the ledger as that order; a refused or unsent swap isn't;
- unresolved swaps are in `unresolved_swaps`, and the id of a possibly sent swap is refused;
- `reconcile` finds exactly the swaps in the ledger. The others are settled by hand.

With ``--damage 5``, the journal's files are damaged five times after each kill: flipped bits,
lost parts and lost files. Each time, opening the journal must raise `JournalError`, or nothing is
lost. Then the files are restored.

The exit status is 1 if anything disagrees. The operating system keeps what a killed process has
written, even if it never reaches the disk. So SIGKILL tests the order of the writes, but not
whether the disk keeps them.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import msgspec
import trio

from trio_broker import (
    BrokerError,
    BrokerWSClient,
    DuplicateClientOrderIdError,
    JournalError,
    JournalRow,
    Limits,
    NotConnectedError,
    NotSentError,
    ReconnectPolicy,
    ServerError,
    SwapJournal,
    SwapOutcome,
    SwapOutcomeUnknownError,
    SwapResolved,
)
from trio_broker.sandbox import Fault, Order, Sandbox, open_sandbox

Told: TypeAlias = tuple[str, ...]
"""A child's report: a word, and usually a swap's id and its order's id."""

TASKS: Final = 4
AT_ONCE: Final = 100_000  # messages per second, so that the rate limit never delays
SOLD: Final = "0.001"
TOO_MUCH: Final = "1000000"
REQUEST_TIMEOUT: Final = 0.2  # short, because some replies are lost
LATER: Final = 120.0  # seconds in which every signature has expired
PATIENCE: Final = 60.0
# Where a child kills itself, and how often it may have been there before.
STRIKES: Final = {
    "at a step of the journal": 60,
    "just before a commit": 40,
    "just after a commit": 40,
    "just before a send": 40,
    "just after a send": 40,
}
OPENING: Final = {"while it opens", "at a step of the journal"}
AIMS: Final = {
    "while it starts": 3,
    "while it opens": 7,
    "while it swaps": 35,
    **dict.fromkeys(STRIKES, 11),
}
SAID: Final = ("confirmed", "refused", "not sent", "unknown", "cancelled")
COUNTED: Final = (
    "kills",
    *(f"  {aim}" for aim in AIMS),
    "kills with unresolved rows",
    "rows unresolved after kills",
    "swaps asked",
    *(f"  told: {word}" for word in SAID),
    "executed",
    "restarts in a new process",
    "restarts before all was read",
    "restarts killed",
    "found by reconcile",
    "settled by hand",
    "ids that can't be used again",
    "second clients refused",
    "damaged journals refused",
    "damaged journals complete",
)
_POLICY: Final = ReconnectPolicy(
    max_attempts=None, initial_delay=0.01, max_delay=0.05, retry_first=True
)
_LIMITS: Final = Limits(messages_per_second=AT_ONCE)


# --- The process that is killed -------------------------------------------------------------


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """The task of a child process with a journal.

    Attributes:
        restarts: Whether it takes up what an earlier one has left; otherwise it swaps.
        url: Where the sandbox is.
        api_key: The account's key.
        secret_key: The account's secret.
        path: The journal.
        ahead: How much its clock is ahead, in seconds: as much as the sandbox's.
        name: What its ids begin with.
        seed: What it does depends on it.
        strike: Where it kills itself, if anywhere: one of `STRIKES`.
        countdown: At which time that it is there.
        used: Ids that may not be used again.
        resolve_timeout: For how long it asks for a swap.
        settles: Whether it closes what it doesn't find.
    """

    restarts: bool = False
    url: str
    api_key: str
    secret_key: str
    path: str
    ahead: float
    name: str
    seed: int
    strike: str = ""
    countdown: int = 0
    used: tuple[str, ...] = ()
    resolve_timeout: float = 0.4
    settles: bool = True

    def client(self) -> BrokerWSClient:
        """A client of the sandbox with the journal, not yet connected."""
        return BrokerWSClient(
            self.api_key,
            self.secret_key,
            self.url,
            reconnect=_POLICY,
            limits=_LIMITS,
            request_timeout=REQUEST_TIMEOUT,
            reply_grace=REQUEST_TIMEOUT,
            resolve_timeout=self.resolve_timeout,
            journal=SwapJournal(self.path),
            clock=lambda: time.time() + self.ahead,
        )


Tell: TypeAlias = Callable[..., None]


def _tell_parent(*words: str) -> None:
    # In one write, so that a report is complete even if the process is killed next.
    os.write(1, ("\t".join(words) + "\n").encode())


async def swap_away(errand: Errand, tell: Tell) -> None:
    """Swap as fast as possible, until the process is killed.

    Args:
        errand: How.
        tell: Takes what the callers are told.
    """
    chance = random.Random(errand.seed)  # noqa: S311 - repeatable is the point
    tell("opening")
    async with errand.client() as client, trio.open_nursery() as nursery:
        tell("open")
        nursery.start_soon(_tell_late, client, tell)
        for number in range(TASKS):
            nursery.start_soon(_swap_on, client, f"{errand.name}-{number}", chance, tell)


async def _tell_late(client: BrokerWSClient, tell: Tell) -> None:
    async for event in client.events():
        if isinstance(event, SwapResolved):
            if event.receipt is not None:
                tell("confirmed", event.client_order_id, event.receipt.order_id)
            else:
                tell("refused", event.client_order_id)


async def _swap_on(client: BrokerWSClient, name: str, chance: random.Random, tell: Tell) -> None:
    number = 0
    while True:
        await client.wait_connected()
        number += 1
        client_order_id = f"{name}-{number}"
        amount = TOO_MUCH if chance.random() < 0.08 else SOLD
        if not await _swap(client, client_order_id, amount, chance, tell):
            # A swap that was certainly not sent is repeated under its id.
            await client.wait_connected()
            await _swap(client, client_order_id, amount, chance, tell)


async def _swap(
    client: BrokerWSClient, client_order_id: str, amount: str, chance: random.Random, tell: Tell
) -> bool:
    """Swap and report the outcome; return whether this report is final."""
    patience = chance.uniform(0.0, 0.03) if chance.random() < 0.25 else math.inf
    tell("asked", client_order_id)
    with trio.move_on_after(patience):
        try:
            receipt = await client.do_swap(amount, "ETH", "USDT", client_order_id=client_order_id)
        except DuplicateClientOrderIdError as error:
            tell("duplicate", client_order_id, error.outcome)
        except NotSentError:
            tell("not sent", client_order_id)
            return False
        except ServerError:
            tell("refused", client_order_id)
        except SwapOutcomeUnknownError:
            tell("unknown", client_order_id)
        else:
            tell("confirmed", client_order_id, receipt.order_id)
        return True
    tell("cancelled", client_order_id)
    return False


async def restart(errand: Errand, tell: Tell) -> None:
    """Open the journal and reconcile, like the next process.

    Args:
        errand: How.
        tell: Takes what is found.
    """
    async with errand.client() as client:
        for swap in client.unresolved_swaps():
            tell("left", swap.client_order_id)
        for client_order_id in errand.used:
            tell(
                "id refused" if await _is_refused(client, client_order_id) else "id taken",
                client_order_id,
            )
        tell("asking")
        for finding in await client.reconcile():
            client_order_id = finding.swap.client_order_id
            if finding.receipt is not None:
                tell("found", client_order_id, finding.receipt.order_id)
            else:
                tell("not found", client_order_id, finding.outcome)
                if errand.settles and finding.outcome is SwapOutcome.UNKNOWN:
                    await client.settle_swap(client_order_id, "the ledger doesn't have it")
                    tell("settled", client_order_id)
    tell("done")


async def _is_refused(client: BrokerWSClient, client_order_id: str) -> bool:
    """Whether an id can't be used again."""
    while True:
        await client.wait_connected()
        try:
            await client.do_swap(SOLD, "ETH", "USDT", client_order_id=client_order_id)
        except DuplicateClientOrderIdError:
            return True
        except NotConnectedError:
            continue
        return False


@attrs.define
class Strike:
    """Kills this process at the given moment.

    Attributes:
        where: One of `STRIKES`.
        countdown: How often it still has to be there.
    """

    where: str
    countdown: int

    def reach(self, where: str) -> None:
        """Reach a moment at which this process may be killed.

        Args:
            where: One of `STRIKES`.
        """
        if where == self.where:
            self.countdown -= 1
            if self.countdown == 0:
                if threading.current_thread() is not threading.main_thread():
                    # Like a slow disk. Other tasks continue meanwhile.
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        """Make this process report the moments that it reaches."""
        strike = self

        class Database(sqlite3.Connection):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self.set_trace_callback(lambda _sql: strike.reach("at a step of the journal"))

            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                if sql != "COMMIT":
                    return super().execute(sql, *arguments)
                strike.reach("just before a commit")
                cursor = super().execute(sql, *arguments)
                strike.reach("just after a commit")
                return cursor

        connect, send_all = sqlite3.connect, trio.SocketStream.send_all

        def connect_mortally(*arguments: Any, **options: Any) -> sqlite3.Connection:
            return connect(*arguments, factory=Database, **options)

        async def send_mortally(
            stream: trio.SocketStream, data: bytes | bytearray | memoryview
        ) -> None:
            strike.reach("just before a send")
            await send_all(stream, data)
            strike.reach("just after a send")

        sqlite3.connect = connect_mortally  # type: ignore[assignment]
        trio.SocketStream.send_all = send_mortally  # type: ignore[assignment, method-assign]
        # Whatever its thread asks the system for is a step, and so is each line of SQL above: the
        # first thirty open a new one, the next are those of its transactions.
        sys.addaudithook(lambda _event, _arguments: strike.step())

    def step(self) -> None:
        """Have asked the system for something."""
        if threading.current_thread() is not threading.main_thread():
            self.reach("at a step of the journal")


def be_child(errand: Errand) -> None:
    """Run a task in a process that will be killed, perhaps by itself.

    Args:
        errand: The errand.
    """
    if errand.strike:
        Strike(errand.strike, errand.countdown).arm()
    trio.run(restart if errand.restarts else swap_away, errand, _tell_parent)


# --- The process that kills it --------------------------------------------------------------


@attrs.define(eq=False)
class Child:
    """A process with an errand.

    Attributes:
        process: The process.
        told: What it has said so far.
        over: Set once it won't say anything more.
    """

    process: trio.Process
    told: list[Told] = attrs.field(factory=list)
    over: trio.Event = attrs.field(factory=trio.Event)
    _said: defaultdict[str, trio.Event] = attrs.field(factory=lambda: defaultdict(trio.Event))

    async def listen(self) -> None:
        """Read its reports until its end."""
        assert self.process.stdout is not None  # noqa: S101 - it was opened with one
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                told = tuple(line.decode().split("\t"))
                self.told.append(told)
                if len(told) == 1:
                    self._said[told[0]].set()
        self.over.set()
        for event in self._said.values():
            event.set()

    async def wait_for(self, word: str) -> None:
        """Wait until it has reported a moment, or is dead.

        Args:
            word: What it says.
        """
        if not self.over.is_set():
            await self._said[word].wait()


@asynccontextmanager
async def open_child(errand: Errand) -> AsyncIterator[Child]:
    """Run a child process; after the block it is dead, and all its reports are read.

    Args:
        errand: The errand.
    """
    argument = msgspec.json.encode(errand).decode()
    process = await trio.lowlevel.open_process(
        [sys.executable, __file__, "--child", argument],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    child = Child(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.listen)
            yield child
            process.kill()
            await child.over.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdout is not None  # noqa: S101 - it was opened with one
            await process.stdout.aclose()


class Files:
    """The files of a journal that isn't open: what they have now, to restore it."""

    def __init__(self, path: Path) -> None:
        names = (f"{path.name}{end}" for end in ("", "-journal", ".lock"))
        self._contents = {
            file: file.read_bytes() if file.exists() else None
            for file in map(path.with_name, names)
        }
        self._path = path

    @property
    def has_rollback(self) -> bool:
        """Whether the process was killed in a transaction."""
        return self._contents[self._path.with_name(f"{self._path.name}-journal")] is not None

    def restore(self) -> None:
        """Restore them. The database stays the same file, because a copy would be refused."""
        away = self._path.with_name("away")
        if away.exists():
            away.rename(self._path)
        for file, data in self._contents.items():
            if data is None:
                file.unlink(missing_ok=True)
            else:
                with file.open("rb+" if file.exists() else "wb") as opened:
                    opened.write(data)
                    opened.truncate()

    def damage(self, chance: random.Random) -> str:
        """Damage one of them, and return how.

        Args:
            chance: Which, and how.
        """
        file, data = chance.choice([(f, data) for f, data in self._contents.items() if data])
        how = chance.choice(["a flipped bit", "a lost sector", "a lost end", "a lost file"])
        at = chance.randrange(len(data))
        if how == "a lost file":
            file.rename(file.with_name("away")) if file == self._path else file.unlink()
        elif how == "a lost end":
            os.truncate(file, at)
        else:
            with file.open("rb+") as opened:
                is_bit = how == "a flipped bit"
                opened.seek(at if is_bit else at // 512 * 512)
                opened.write(bytes([data[at] ^ 1 << chance.randrange(8)]) if is_bit else bytes(512))
        return f"{how} of {file.name} at {at}"


@attrs.define(eq=False)
class Crashes:
    """The run: the sandbox, the journals, the counters and the disagreements.

    Attributes:
        sandbox: The broker.
        folder: Where the journals are.
        seed: What is planned depends on it. What happens depends on the time as well.
        ahead: How much the sandbox's clock is ahead, and whose it talks to.
        damages: How often the files are damaged after each kill.
        counts: What was counted.
        wrong: What disagrees.
    """

    sandbox: Sandbox
    folder: Path
    seed: int
    ahead: list[float]
    damages: int = 0
    counts: Counter[str] = attrs.field(factory=Counter)
    wrong: list[str] = attrs.field(factory=list)
    _path: Path = Path()
    _round: int = 0
    _chance: random.Random = attrs.field(factory=random.Random)

    async def run(self, kills: int) -> None:
        """Kill, restart and compare.

        Args:
            kills: How often.
        """
        for self._round in range(1, kills + 1):
            # Each kill has its own generator, independent of the draws before.
            self._chance = random.Random(f"{self.seed} {self._round}")  # noqa: S311 - repeatable
            await self._one_round()
            if self._round % 10 == 0:
                print(f"{self._round:5} kills, {len(self.wrong)} disagreements", flush=True)
        await self._check_everything()

    async def _one_round(self) -> None:
        try:
            await self._kill_and_restart()
        except* BrokerError as errors:
            self._note(f"no client can go on with it: {errors.exceptions}")
            self.sandbox.faults.clear()
            self._path = Path()

    async def _kill_and_restart(self) -> None:
        aim = self._chance.choices(list(AIMS), list(AIMS.values()))[0]
        if self._path == Path() or self._chance.random() < (0.7 if aim in OPENING else 0.15):
            self._path = self.folder / f"j{self._round}"
        mark = len(self.sandbox.connections)
        is_early = aim not in OPENING and self._chance.random() < 0.15
        if is_early:
            aim = "while it swaps"
        told, ignored = await self._kill(aim, is_early=is_early)
        if not is_early:
            await self._wait_for_the_end_of(mark)
        killed = Files(self._path)
        rows = await self._rows()
        for _ in range(self.damages if rows else 0):
            await self._damage(killed, rows)
        self._count(aim, told, rows)
        self._check_rows(rows)
        self._check_told(told, rows)
        if is_early:
            # The broker hasn't read everything yet, and does so during the next lookups.
            await self._restart_early()
            await self._wait_for_the_end_of(mark)
            self.sandbox.faults.clear()
        self.ahead[0] += LATER
        if self._chance.random() < 0.2:
            await self._kill_a_restart()
        await self._restart()
        self._check_sent(mark, ignored, await self._rows())

    # --- Processes ---------------------------------------------------------------------------

    def _errand(self, **options: Any) -> Errand:
        return Errand(
            url=self.sandbox.url,
            api_key=self.sandbox.api_key,
            secret_key=self.sandbox.secret_key,
            path=str(self._path),
            ahead=self.ahead[0],
            name=f"{self._path.name}-{self._round}",
            seed=self._chance.randrange(1 << 32),
            **options,
        )

    async def _kill(self, aim: str, *, is_early: bool) -> tuple[list[Told], int]:
        """Run and kill a child; return its reports and the number of ignored swaps."""
        strike = aim if aim in STRIKES else ""
        countdown = self._chance.randint(1, STRIKES.get(aim, 1))
        ignored: list[Fault] = []
        errand = self._errand(strike=strike, countdown=countdown)
        async with open_child(errand) as child, trio.open_nursery() as nursery:
            if self._chance.random() < 0.5:
                self.sandbox.faults.delay(self._chance.uniform(0.001, 0.02), op="swap")
            nursery.start_soon(self._disturb, ignored)
            if strike:
                await child.wait_for("open")
                # A countdown may be longer than the way.
                with trio.move_on_after(2.0):
                    await child.over.wait()
            elif aim == "while it starts":
                await trio.sleep(self._chance.uniform(0.0, 0.5))
            elif aim == "while it opens":
                await child.wait_for("opening")
                await trio.sleep(self._chance.uniform(0.0, 0.04))
            else:
                await child.wait_for("open")
                await trio.sleep(self._chance.uniform(0.0, 0.4))
                if self._chance.random() < 0.3:
                    await self._try_to_share()
                if is_early:
                    self.sandbox.faults.stall_reading()
                    await trio.sleep(self._chance.uniform(0.0, 0.05))
            child.process.kill()
            nursery.cancel_scope.cancel()
        self._check_status(child, -signal.SIGKILL)
        if not is_early:
            self.sandbox.faults.clear()
        return child.told, sum(fault.uses for fault in ignored)

    async def _disturb(self, ignored: list[Fault]) -> None:
        faults = self.sandbox.faults
        while True:
            await trio.sleep(self._chance.uniform(0.05, 0.5))
            trouble = self._chance.randrange(8)
            if trouble == 0:
                faults.swallow(op="swap", times=1)
            elif trouble == 1:
                ignored.append(faults.ignore(op="swap", times=1))
            elif trouble == 2:
                faults.swallow(op="order_status", times=1)
            elif trouble == 3:
                faults.reset()
            elif trouble == 4:
                faults.hang_up()
            elif trouble == 5:
                faults.close(1012)
            else:
                faults.delay(self._chance.uniform(0.005, 0.1), op="swap", times=5)

    async def _try_to_share(self) -> None:
        """Check that the journal of a running process can't be opened."""
        second = SwapJournal(self._path)
        try:
            await second.open(self.sandbox.url.split("/")[2], self.sandbox.api_key)
        except JournalError as error:
            self.counts["second clients refused"] += 1
            if "in use" not in str(error):
                self._note(f"a second client isn't told that the journal is in use: {error}")
        else:
            self._note("a second client has opened the journal")
            await second.aclose()

    async def _damage(self, killed: Files, rows: Sequence[JournalRow]) -> None:
        """Damage the files that a killed process left, and check that nothing is lost silently."""
        intact = Files(self._path)
        killed.restore()
        what = killed.damage(self._chance)
        journal = SwapJournal(self._path)
        try:
            await journal.open(self.sandbox.url.split("/")[2], self.sandbox.api_key)
            await journal.aclose()
            found = {row.client_order_id: row for row in await journal.rows()}
        except JournalError:
            self.counts["damaged journals refused"] += 1
        else:
            self.counts["damaged journals complete"] += 1
            for row in rows:
                # Without its rollback journal, the last transaction counts, if it is complete.
                may_differ = killed.has_rollback and row.outcome is SwapOutcome.UNKNOWN
                now = found.get(row.client_order_id)
                if now is None or (now != row and not may_differ):
                    self._note(f"after {what}, {row} is {now}")
        intact.restore()

    async def _wait_for_the_end_of(self, mark: int) -> None:
        """Wait until the broker has read everything that dead processes have sent."""
        with trio.fail_after(PATIENCE):
            while any(one.closed_at is None for one in self.sandbox.connections[mark:]):  # noqa: ASYNC110 - no event
                await trio.sleep(0.002)

    async def _restart_early(self) -> None:
        self.counts["restarts before all was read"] += 1
        errand = self._errand(restarts=True, settles=False, resolve_timeout=0.5)
        before = await self._rows()
        told: list[Told] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._let_read, self._chance.uniform(0.0, 0.3))
            await restart(errand, lambda *words: told.append(words))
        rows = await self._rows()
        self._check_rows(rows)
        self._check_findings(errand, told, before, rows)

    async def _let_read(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.sandbox.faults.clear()

    async def _kill_a_restart(self) -> None:
        where = self._chance.choice(["", "just before a commit", "just after a commit"])
        errand = self._errand(
            restarts=True,
            strike=where,
            countdown=self._chance.randint(1, 5),
            resolve_timeout=PATIENCE,
        )
        before = await self._rows()
        with self.sandbox.faults.delay(self._chance.uniform(0.0, 0.03), op="order_status"):
            async with open_child(errand) as child:
                if where:
                    await child.over.wait()  # It finishes, or is killed before.
                else:
                    await child.wait_for("asking")
                    await trio.sleep(self._chance.uniform(0.0, 0.2))
        if child.process.returncode:
            self.counts["restarts killed"] += 1
            self._check_status(child, -signal.SIGKILL)
        rows = await self._rows()
        self._check_rows(rows)
        is_whole = not child.process.returncode
        self._check_findings(errand, child.told, before, rows, is_whole=is_whole)

    async def _restart(self) -> None:
        """Open the journal, and resolve or settle everything in it."""
        before = await self._rows()
        errand = self._errand(
            restarts=True,
            used=self._some_used(before),
            # A swap that isn't found is settled, so only a clear reply may end its lookup.
            resolve_timeout=PATIENCE,
        )
        faults, chance = self.sandbox.faults, self._chance
        if chance.random() < 0.2:
            faults.delay(chance.uniform(0.0, 0.03), op="order_status")
        if chance.random() < 0.2:
            faults.swallow(op="order_status", times=1)
        told: Sequence[Told]
        if chance.random() < 0.3:
            self.counts["restarts in a new process"] += 1
            async with open_child(errand) as child:
                await child.over.wait()
                await child.process.wait()
            self._check_status(child, 0)
            told = child.told
        else:
            heard: list[Told] = []
            async with trio.open_nursery() as nursery:
                if chance.random() < 0.2:
                    nursery.start_soon(self._cut_once, chance.uniform(0.0, 0.05))
                await restart(errand, lambda *words: heard.append(words))
                nursery.cancel_scope.cancel()
            told = heard
        faults.clear()
        rows = await self._rows()
        self._check_rows(rows)
        self._check_findings(errand, told, before, rows)
        for row in rows:
            if row.outcome is SwapOutcome.UNKNOWN:
                self._note(f"{row.client_order_id} is unknown after all")

    async def _cut_once(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.sandbox.faults.reset()

    def _some_used(self, rows: Iterable[JournalRow]) -> tuple[str, ...]:
        """One id of each kind that must not be used again."""
        kinds: defaultdict[SwapOutcome, list[str]] = defaultdict(list)
        for row in rows:
            if row.outcome is not SwapOutcome.NOT_SENT:
                kinds[row.outcome].append(row.client_order_id)
        return tuple(self._chance.choice(names) for names in kinds.values())

    # --- What is compared ---------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self.wrong.append(f"kill {self._round}, {self._path.name}: {text}")
        print("WRONG:", self.wrong[-1], flush=True)

    async def _rows(self) -> tuple[JournalRow, ...]:
        # A process that was killed early hasn't made it.
        return await SwapJournal(self._path).rows() if self._path.exists() else ()

    def _ledger(self) -> dict[str, Order]:
        """This journal's orders, by the ids that their swaps had."""
        orders = [
            order
            for order in self.sandbox.orders()
            if (order.client_order_id or "").startswith(f"{self._path.name}-")
        ]
        ledger = {order.client_order_id or "": order for order in orders}
        if len(ledger) < len(orders):
            self._note(f"{len(orders) - len(ledger)} swaps were executed twice")
        return ledger

    def _check_status(self, child: Child, expected: int) -> None:
        if child.process.returncode != expected:
            self._note(f"a process ended by itself with status {child.process.returncode}")

    def _count(self, aim: str, told: Iterable[Told], rows: Iterable[JournalRow]) -> None:
        unknown = sum(row.outcome is SwapOutcome.UNKNOWN for row in rows)
        self.counts["kills"] += 1
        self.counts[f"  {aim}"] += 1
        self.counts["kills with unresolved rows"] += unknown > 0
        self.counts["rows unresolved after kills"] += unknown
        for word in ("asked", *SAID):
            names = {one[1] for one in told if one[0] == word}
            self.counts["swaps asked" if word == "asked" else f"  told: {word}"] += len(names)

    def _check_rows(self, rows: Iterable[JournalRow]) -> None:
        """Compare the journal with the ledger."""
        ledger = self._ledger()
        missing = ledger.keys() - {row.client_order_id for row in rows}
        for client_order_id in sorted(missing):
            self._note(f"{client_order_id} was executed, and the journal doesn't have it")
        for row in rows:
            order = ledger.get(row.client_order_id)
            order_id = None if order is None else order.order_id
            if row.outcome is SwapOutcome.CONFIRMED:
                agrees = order_id is not None and order_id == row.order_id
            else:
                agrees = order_id is None or row.outcome is SwapOutcome.UNKNOWN
            if not agrees:
                said = f"{row.outcome} as {row.order_id}"
                self._note(f"the journal has {row.client_order_id} {said}, the ledger {order_id}")
            if order is not None and order.terms.amount_in != row.amount_in:
                self._note(f"the journal has {row.client_order_id} with another amount")

    def _check_told(self, told: Iterable[Told], rows: Iterable[JournalRow]) -> None:
        """Compare the reported outcomes with the ledger and the journal."""
        ledger = self._ledger()
        outcomes = {row.client_order_id: row.outcome for row in rows}
        asked_again: set[str] = set()
        for word, *rest in reversed(list(told)):
            client_order_id = rest[0] if rest else ""
            if word == "asked":
                asked_again.add(client_order_id)
            written = outcomes.get(client_order_id)
            order = ledger.get(client_order_id)
            may_be: set[SwapOutcome | None]
            if word == "confirmed":
                agrees = order is not None and order.order_id == rest[1]
                may_be = {SwapOutcome.UNKNOWN, SwapOutcome.CONFIRMED}
            elif word == "refused":
                agrees = order is None
                may_be = {SwapOutcome.UNKNOWN, SwapOutcome.REFUSED}
            elif word == "not sent" and client_order_id not in asked_again:
                agrees = order is None
                may_be = {None, SwapOutcome.UNKNOWN, SwapOutcome.NOT_SENT}
            elif word == "unknown":
                agrees = True
                may_be = {SwapOutcome.UNKNOWN, SwapOutcome.CONFIRMED, SwapOutcome.REFUSED}
            else:
                continue
            if not agrees or written not in may_be:
                has = "no order" if order is None else order.order_id
                self._note(f"told {word} of {rest}: the ledger has {has}, the journal {written}")

    def _check_findings(
        self,
        errand: Errand,
        told: Iterable[Told],
        before: Iterable[JournalRow],
        after: Iterable[JournalRow],
        *,
        is_whole: bool = True,
    ) -> None:
        """Compare the findings of the next process with the journal and the ledger."""
        ledger = self._ledger()
        names: defaultdict[str, set[str]] = defaultdict(set)
        for word, *rest in told:
            names[word].update(rest[:1])
            if rest:
                self._check_finding(errand, word, rest, ledger.get(rest[0]))
        self.counts["settled by hand"] += len(names["settled"])
        self.counts["ids that can't be used again"] += len(names["id refused"])
        settled = {row.client_order_id for row in after if row.outcome is SwapOutcome.SETTLED}
        if not names["settled"] <= settled:
            self._note(f"settled, but not in the journal: {names['settled'] - settled}")
        unknown = {row.client_order_id for row in before if row.outcome is SwapOutcome.UNKNOWN}
        if not is_whole:
            return
        if names["left"] != unknown:
            self._note(f"unresolved are {names['left']}, the journal has {unknown}")
        if names["found"] | names["not found"] != names["left"]:
            self._note(f"reconcile doesn't tell of {names['left']} alone, or not of all")

    def _check_finding(
        self, errand: Errand, word: str, rest: Sequence[str], order: Order | None
    ) -> None:
        if word == "found":
            self.counts["found by reconcile"] += 1
            if order is None or order.order_id != rest[1]:
                self._note(f"reconcile found {rest}, the ledger has {order}")
        elif word == "not found" and rest[1] != SwapOutcome.UNKNOWN:
            self._note(f"reconcile says {rest}, which it can't know")
        elif word == "not found" and errand.settles and order is not None:
            self._note(f"reconcile didn't find {rest[0]}, which is {order.order_id}")
        elif word == "id taken":
            self._note(f"{rest[0]} could be used again")

    def _check_sent(self, mark: int, ignored: int, rows: Iterable[JournalRow]) -> None:
        """Check by the number of received swaps that each was sent once."""
        got = -ignored
        for connection in self.sandbox.connections[mark:]:
            got += sum(message.op == "swap" for message in connection.received)
        name = f"{self._path.name}-{self._round}-"
        ours = [row for row in rows if row.client_order_id.startswith(name)]
        outcomes = Counter(row.outcome for row in ours)
        least = outcomes[SwapOutcome.CONFIRMED] + outcomes[SwapOutcome.REFUSED]
        # For these it is unknown whether the refusal or the swap was lost.
        unsure = sum(
            row.outcome is SwapOutcome.SETTLED and str(row.amount_in) == TOO_MUCH for row in ours
        )
        self.counts["executed"] += outcomes[SwapOutcome.CONFIRMED]
        if not least <= got <= least + unsure:
            self._note(f"the broker got {got} swaps, and there were {least} to {least + unsure}")

    async def _check_everything(self) -> None:
        """Check that all journals together match the ledger exactly."""
        confirmed = 0
        for path in sorted(self.folder.glob("j*[0-9]")):
            self._path = path
            try:
                rows = await self._rows()
            except JournalError as error:
                self._note(f"it can't be read: {error}")
                continue
            self._check_rows(rows)
            confirmed += sum(row.outcome is SwapOutcome.CONFIRMED for row in rows)
        executed = len(self.sandbox.orders())
        if confirmed != executed:
            self._note(f"the journals have {confirmed} confirmed swaps, the ledger {executed}")


async def crash(arguments: argparse.Namespace) -> int:
    """Run it, print the table, and return the exit status."""
    ahead = [0.0]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.path) as folder:
        async with open_sandbox(
            seed=arguments.seed,
            clock=lambda: time.time() + ahead[0],
            messages_per_second=AT_ONCE,
            history_size=AT_ONCE,
        ) as sandbox:
            run = Crashes(
                sandbox,
                Path(folder),
                arguments.seed,
                ahead,
                arguments.damage,
            )
            await run.run(arguments.kills)
    print(f"\n{arguments.kills} kills, seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    for name in COUNTED:
        print(f"  {name:<32} {run.counts[name]:>8}")
    print(f"  {'disagreements':<32} {len(run.wrong):>8}")
    for line in run.wrong[:20]:
        print("WRONG:", line)
    print("everybody agrees with the ledger" if not run.wrong else "failed")
    return 1 if run.wrong else 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Kills of a process that swaps with a journal.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damage", type=int, default=0, help="damages after each kill")
    parser.add_argument("--path", type=Path, help="where to have the journals; or a temporary one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        be_child(msgspec.json.decode(arguments.child, type=Errand))
    else:
        sys.exit(trio.run(crash, arguments))


if __name__ == "__main__":
    main()
