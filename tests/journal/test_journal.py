"""The journal of swaps: intents, facts, and a disk that hangs or fails.

`DiskHarness` stands in for the disk: it hangs or fails where the journal commits. All of it runs on
the real clock, since a thread's time isn't Trio's: nothing here waits for time to pass, but for
what it is to see.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_broker import (
    ConfigurationError,
    DuplicateClientOrderIdError,
    JournalError,
    SwapJournal,
    SwapOutcome,
    key_fingerprint,
)
from trio_broker._journal import journal as module, journal_db
from trio_broker.models import SwapIntent

ROOT = Path(__file__).parents[2]
HOST = "broker.example"
KEY = "alice-the-key"
AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
S = SwapOutcome

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0
# Shorter than any call takes.
AT_ONCE = 1e-9


class DiskHarness:
    """The journal's disk, which can hang and fail.

    Attributes:
        commits: The number of commits.
        failure: What a commit ends with, None if it doesn't fail.
        late: Whether it fails after all was written.
        commit_started: Set by each commit.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.failure: Exception | None = None
        self.late = False
        self.commit_started = threading.Event()
        self._awake = threading.Event()
        self._awake.set()

    def hang(self) -> None:
        self.commit_started.clear()
        self._awake.clear()

    def wake(self) -> None:
        self._awake.set()

    async def hanging(self) -> None:
        """Wait until a commit hangs."""
        assert await trio.to_thread.run_sync(self.commit_started.wait, PATIENCE)

    def commit(self, connection: sqlite3.Connection) -> None:
        self.commits += 1
        self.commit_started.set()
        assert self._awake.wait(PATIENCE)
        if self.failure is None or self.late:
            connection.execute("COMMIT")
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskHarness]:
    disk = DiskHarness()
    monkeypatch.setattr(journal_db, "_commit", disk.commit)
    yield disk
    disk.wake()
    join()


def join() -> None:
    """Wait until every journal thread has ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("journal "):
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "swaps.journal"


@asynccontextmanager
async def opened(path: Path, host: str = HOST, key: str = KEY) -> AsyncIterator[SwapJournal]:
    journal = SwapJournal(path, timeout=PATIENCE)
    await journal.open(host, key)
    try:
        yield journal
    finally:
        set_timeout(journal, PATIENCE)
        with trio.CancelScope(shield=True):
            await journal.aclose()


def set_timeout(journal: SwapJournal, seconds: float) -> None:
    """Change the timeout of later calls."""
    journal._timeout = seconds


async def intend(
    journal: SwapJournal,
    client_order_id: str = "c1",
    attempt: str = "a1",
    *,
    amount_in: Decimal = Decimal("1.5"),
    at: dt.datetime = AT,
) -> None:
    intent = SwapIntent(
        client_order_id=client_order_id,
        amount_in=amount_in,
        asset_in="ETH",
        asset_out="USDT",
        at=at,
    )
    await journal.intend(intent, attempt)


async def recorded(path: Path) -> list[tuple[str, str, str]]:
    return [
        (row.client_order_id, row.attempt, row.outcome.value)
        for row in await SwapJournal(path, timeout=PATIENCE).rows()
    ]


# ---- Arguments


@pytest.mark.parametrize("path", ["", 1, None, b"swaps", "a\0b"])
def test_path_must_name_a_file(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="path"):
        SwapJournal(path)


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, "5", True, None, 10**400])
def test_timeout_must_be_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        SwapJournal("swaps", timeout=timeout)


async def test_timeout_may_be_endless(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []

    def commit(connection: sqlite3.Connection) -> None:
        waits.extend(connection.execute("PRAGMA busy_timeout").fetchone())
        connection.execute("COMMIT")

    monkeypatch.setattr(journal_db, "_commit", commit)
    journal = SwapJournal(path, timeout=math.inf)
    await journal.open(HOST, KEY)
    await intend(journal)
    await journal.aclose()
    assert len(await journal.rows()) == 1
    assert waits == [5000]


async def test_relative_path_keeps_its_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    journal = SwapJournal(path.name)
    monkeypatch.chdir("/")
    await journal.open(HOST, KEY)
    await journal.aclose()
    assert await trio.Path(path).exists()


# ---- Intents and facts


async def test_intent_is_on_the_disk_when_its_call_returns(path: Path) -> None:
    async with opened(path) as journal:
        at = AT.astimezone(dt.timezone(dt.timedelta(hours=-3)))
        await intend(journal, amount_in=Decimal("0.10"), at=at)
        (row,) = await SwapJournal(path).rows()
    assert row.host == HOST
    assert row.key_fingerprint == key_fingerprint(KEY)
    assert (row.client_order_id, row.attempt) == ("c1", "a1")
    assert (str(row.amount_in), row.asset_in, row.asset_out) == ("0.10", "ETH", "USDT")
    assert (row.at, row.at.tzinfo, row.updated_at) == (AT, dt.UTC, AT)
    assert (row.outcome, row.order_id, row.detail) == (S.UNKNOWN, None, "")


async def test_facts_are_written_in_their_order(path: Path) -> None:
    before = dt.datetime.now(dt.UTC)
    async with opened(path) as journal:
        await intend(journal)
        journal.note("c1", "a1", S.UNKNOWN, detail="no reply")
        journal.note("c1", "a1", S.CONFIRMED, order_id="o1", detail="found")
        journal.note("c1", "a1", S.REFUSED, order_id="o2")
        await journal.flush()
        (row,) = await journal.rows()
    assert (row.outcome, row.order_id, row.detail) == (S.CONFIRMED, "o1", "found")
    assert before <= row.updated_at <= dt.datetime.now(dt.UTC)


async def test_close_writes_the_recorded_facts(path: Path, disk: DiskHarness) -> None:
    async with opened(path) as journal:
        await intend(journal)
        journal.note("c1", "a1", S.CONFIRMED)
    assert await recorded(path) == [("c1", "a1", "confirmed")]


async def test_simultaneous_entries_share_a_commit(path: Path, disk: DiskHarness) -> None:
    async with opened(path) as journal, trio.open_nursery() as nursery:
        disk.hang()
        nursery.start_soon(intend, journal, "first")
        await disk.hanging()
        for number in range(5):
            nursery.start_soon(intend, journal, f"c{number}")
        nursery.start_soon(refused, journal, "first", "unknown")
        await trio.testing.wait_all_tasks_blocked()
        journal.note("c3", "a1", S.CONFIRMED)
        nursery.start_soon(journal.flush)
        await trio.testing.wait_all_tasks_blocked()
        disk.wake()
    assert disk.commits == 2
    found = await recorded(path)
    assert found[0] == ("first", "a1", "unknown")
    assert sorted(found[1:]) == [
        (f"c{number}", "a1", "confirmed" if number == 3 else "unknown") for number in range(5)
    ]


async def refused(journal: SwapJournal, client_order_id: str, outcome: str) -> None:
    with pytest.raises(DuplicateClientOrderIdError) as caught:
        await intend(journal, client_order_id, "another")
    assert (caught.value.client_order_id, caught.value.outcome) == (client_order_id, outcome)


@pytest.mark.parametrize("outcome", [S.UNKNOWN, S.CONFIRMED, S.REFUSED, S.SETTLED])
async def test_id_is_used_once_whatever_became_of_it(path: Path, outcome: SwapOutcome) -> None:
    async with opened(path) as journal:
        await intend(journal)
        journal.note("c1", "a1", outcome)
        await refused(journal, "c1", outcome.value)
    async with opened(path) as journal:
        await refused(journal, "c1", outcome.value)
    assert await recorded(path) == [("c1", "a1", outcome.value)]


async def test_unsent_swap_can_be_attempted_again(path: Path) -> None:
    async with opened(path) as journal:
        await intend(journal)
        journal.note("c1", "a1", S.NOT_SENT, detail="the line was cut")
        await intend(journal, attempt="a2")
        journal.note("c1", "a1", S.NOT_SENT)
    assert await recorded(path) == [("c1", "a2", "unknown")]


async def test_values_that_cannot_be_written_are_rejected_by_the_call(path: Path) -> None:
    async with opened(path) as journal:
        with pytest.raises(ValueError, match="amount_in"):
            await intend(journal, amount_in=Decimal("NaN"))
        with pytest.raises(ValueError, match="under way"):
            journal.note("c1", "a1", S.UNDER_WAY)
    assert await recorded(path) == []


async def test_open_returns_only_unknown_swaps_of_the_account(path: Path) -> None:
    async with opened(path) as journal:
        await intend(journal, "older")
        await intend(journal, "done")
        await intend(journal, "newer")
        journal.note("done", "a1", S.CONFIRMED)
    for host, key in (("127.0.0.1:8765", KEY), (HOST, "bob-the-key")):
        journal = SwapJournal(path)
        assert await journal.open(host, key) == ()
        await journal.aclose()
    journal = SwapJournal(path)
    assert [row.client_order_id for row in await journal.open(HOST, KEY)] == ["older", "newer"]
    await journal.aclose()


async def test_refusal_is_corrected_by_later_facts(path: Path) -> None:
    async with opened(path) as journal:
        await intend(journal)
        journal.note("c1", "a1", S.REFUSED, detail="no")
        journal.note("c1", "a1", S.UNKNOWN, detail="another swap's refusal")
    journal = SwapJournal(path)
    assert [row.client_order_id for row in await journal.open(HOST, KEY)] == ["c1"]
    await refused(journal, "c1", "unknown")
    journal.note("c1", "a1", S.CONFIRMED, order_id="o1")
    journal.note("c1", "a1", S.REFUSED, detail="late")
    await journal.aclose()
    last = (await journal.rows())[0]
    assert (last.outcome, last.order_id, last.detail) == (S.CONFIRMED, "o1", "")
    async with opened(path) as journal:
        assert [(row.client_order_id, row.order_id) for row in journal.resolved] == [("c1", "o1")]
        await refused(journal, "c1", "confirmed")


@pytest.mark.parametrize(
    "host", ["broker.example:443", "BROKER.example", "broker.example.", "http://broker.example"]
)
async def test_unresolved_swaps_at_another_spelling_of_the_host_are_reported(
    path: Path, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path, host=host) as journal:
        await intend(journal, "left")
        await intend(journal, "left too")
        await intend(journal, "done")
        journal.note("done", "a1", S.CONFIRMED)
        assert not journal.unresolved_elsewhere
    async with opened(path, key="bob-the-key") as journal:
        await intend(journal, "bob's")
    assert caplog.records == []
    journal = SwapJournal(path)
    assert not journal.unresolved_elsewhere
    journal.client = "desk"
    assert await journal.open(HOST, KEY) == ()
    elsewhere = [(row.host, row.client_order_id) for row in journal.unresolved_elsewhere]
    assert elsewhere == [(host, "left"), (host, "left too")]
    await journal.aclose()
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "trio_broker.journal")
    assert vars(record)["client"] == "desk"
    assert f"2 unresolved swaps of this API key at other hosts ({host})" in record.getMessage()
    assert "open a client with that host" in record.getMessage()


# ---- A disk that hangs


async def test_intent_that_timed_out_is_written_as_not_sent(path: Path, disk: DiskHarness) -> None:
    async with opened(path) as journal:
        disk.hang()
        set_timeout(journal, AT_ONCE)
        with pytest.raises(JournalError, match="didn't answer within 1e-09 s"):
            await intend(journal)
        journal.note("c1", "a1", S.NOT_SENT)
        await disk.hanging()
        assert await recorded(path) == []
        disk.wake()
        set_timeout(journal, PATIENCE)
        await journal.flush()
        assert await recorded(path) == [("c1", "a1", "not sent")]


async def test_late_fact_leaves_the_next_attempt_alone(path: Path, disk: DiskHarness) -> None:
    async with opened(path) as journal:
        disk.hang()
        set_timeout(journal, AT_ONCE)
        for attempt in ("a1", "a2"):
            with pytest.raises(JournalError):
                await intend(journal, attempt=attempt)
            journal.note("c1", attempt, S.NOT_SENT)
        set_timeout(journal, PATIENCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intend, journal, "c1", "a3")
            await trio.testing.wait_all_tasks_blocked()
            journal.note("c1", "a1", S.NOT_SENT)
            disk.wake()
    assert await recorded(path) == [("c1", "a3", "unknown")]


async def test_cancelled_intent_is_written_with_its_recorded_outcome(
    path: Path, disk: DiskHarness
) -> None:
    async with opened(path) as journal:
        disk.hang()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intend, journal)
            await disk.hanging()
            nursery.cancel_scope.cancel()
        journal.note("c1", "a1", S.NOT_SENT)
        disk.wake()
    assert await recorded(path) == [("c1", "a1", "not sent")]


async def test_close_waits_no_longer_than_the_timeout(
    path: Path, disk: DiskHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as journal:
        await intend(journal)
        disk.hang()
        journal.note("c1", "a1", S.CONFIRMED)
        await disk.hanging()
        set_timeout(journal, AT_ONCE)
        await journal.aclose()
        assert "closed before everything was written" in caplog.text
        # The file stays locked until the thread has ended.
        with pytest.raises(JournalError, match="in use"):
            await SwapJournal(path, timeout=PATIENCE).open(HOST, KEY)
        assert await recorded(path) == [("c1", "a1", "unknown")]
        disk.wake()
        join()
        assert await recorded(path) == [("c1", "a1", "confirmed")]
    after_all = caplog.records[-1]
    assert after_all.levelno == caplog.records[0].levelno
    assert "everything is written now" in after_all.getMessage()


async def test_cancelled_close_goes_on_in_the_background(path: Path, disk: DiskHarness) -> None:
    journal = SwapJournal(path, timeout=PATIENCE)
    await journal.open(HOST, KEY)
    await intend(journal)
    disk.hang()
    journal.note("c1", "a1", S.CONFIRMED)
    await disk.hanging()
    with trio.CancelScope() as scope:
        scope.cancel()
        await journal.aclose()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        # The next client waits until it is unlocked.
        nursery.start_soon(journal.open, HOST, KEY)
        await trio.testing.wait_all_tasks_blocked()
        disk.wake()
    await intend(journal, "c2")
    await journal.aclose()
    assert await recorded(path) == [("c1", "a1", "confirmed"), ("c2", "a1", "unknown")]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_open_gives_up_a_disk_that_hangs(
    path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    awake, commit_started = threading.Event(), threading.Event()
    real = journal_db._create

    def create(path: Path, made: Path) -> None:
        commit_started.set()
        assert awake.wait(PATIENCE)
        real(path, made)

    monkeypatch.setattr(journal_db, "_create", create)
    journal = SwapJournal(path, timeout=PATIENCE if cancelled else AT_ONCE)
    if cancelled:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.open, HOST, KEY)
            assert await trio.to_thread.run_sync(commit_started.wait, PATIENCE)
            nursery.cancel_scope.cancel()
    else:
        with pytest.raises(JournalError, match="didn't answer"):
            await journal.open(HOST, KEY)
    with pytest.raises(JournalError, match="isn't open"):
        await intend(journal)
    awake.set()
    set_timeout(journal, PATIENCE)
    assert await journal.open(HOST, KEY) == ()
    await intend(journal)
    await journal.aclose()
    assert await recorded(path) == [("c1", "a1", "unknown")]


@pytest.mark.parametrize("call", ["open", "rows"])
async def test_check_of_a_large_file_may_take_longer_than_the_timeout(
    path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, call: str
) -> None:
    async with opened(path) as journal:
        await intend(journal)
    started, proceed = threading.Event(), threading.Event()
    real = journal_db._entries

    def entries(reader: sqlite3.Connection) -> Iterator[Any]:
        started.set()
        assert proceed.wait(PATIENCE)
        return real(reader)

    monkeypatch.setattr(journal_db, "_entries", entries)
    journal, found = SwapJournal(path, timeout=5), list[Any]()

    async def read() -> None:
        found.extend(await (journal.open(HOST, KEY) if call == "open" else journal.rows()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        assert await trio.to_thread.run_sync(started.wait, PATIENCE)
        mock_clock.jump(3600)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        proceed.set()
    assert [row.client_order_id for row in found] == ["c1"]
    await journal.aclose()


async def test_open_does_not_wait_for_a_thread_that_failed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(journal_db, "_entries", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    journal = SwapJournal(path, timeout=math.inf)
    with pytest.raises(JournalError, match="internal error: ZeroDivisionError"):
        await journal.open(HOST, KEY)
    join()


async def test_rows_gives_up_a_disk_that_hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awake = threading.Event()

    def hang(*_: object) -> tuple[()]:
        assert awake.wait(PATIENCE)
        return ()

    monkeypatch.setattr(module, "read_file", hang)
    with pytest.raises(JournalError, match="didn't answer"):
        await SwapJournal(path, timeout=0.01).rows()
    awake.set()


def test_disk_may_answer_after_the_end_of_the_trio_run(path: Path, disk: DiskHarness) -> None:
    async def main() -> None:
        journal = SwapJournal(path, timeout=PATIENCE)
        await journal.open(HOST, KEY)
        disk.hang()
        set_timeout(journal, AT_ONCE)
        with pytest.raises(JournalError):
            await intend(journal)
        await disk.hanging()
        await journal.aclose()

    trio.run(main)
    disk.wake()
    join()
    assert trio.run(recorded, path) == [("c1", "a1", "unknown")]


HANGS = """
import sys, threading
from tests.journal.test_journal import HOST, KEY, AT_ONCE, PATIENCE, SwapJournal
from tests.journal.test_journal import intend, journal_db, set_timeout, trio

def hang(connection):
    print("hangs", flush=True)
    threading.Event().wait()

journal_db._commit = hang

async def main():
    journal = SwapJournal(sys.argv[1], timeout=PATIENCE)
    await journal.open(HOST, KEY)
    set_timeout(journal, AT_ONCE)
    try:
        await intend(journal)
    except Exception as error:
        print(type(error).__name__, flush=True)
    await journal.aclose()

trio.run(main)
"""


async def test_program_exits_although_the_disk_hangs(path: Path) -> None:
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [sys.executable, "-c", HANGS, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_stdout=True,
        )
    assert b"JournalError" in ended.stdout
    assert await recorded(path) == []


# ---- A disk that fails


@pytest.mark.parametrize("late", [False, True], ids=["not written", "written all the same"])
async def test_failed_intent_is_not_written_again_by_itself(
    path: Path, disk: DiskHarness, late: bool
) -> None:
    async with opened(path) as journal:
        disk.failure, disk.late = sqlite3.OperationalError("disk I/O error"), late
        with pytest.raises(JournalError, match="disk I/O error") as caught:
            await intend(journal)
        assert caught.value.__cause__ is disk.failure
        journal.note("c1", "a1", S.NOT_SENT)
        disk.failure = None
        await intend(journal, attempt="a2")
    assert await recorded(path) == [("c1", "a2", "unknown")]


async def test_facts_that_failed_are_kept_in_their_order(
    path: Path, disk: DiskHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as journal:
        await intend(journal)
        await intend(journal, "c2")
        disk.failure = OSError(28, "No space left on device")
        journal.note("c1", "a1", S.UNKNOWN, detail="no reply")
        for _ in range(2):
            with pytest.raises(JournalError, match="No space left"):
                await journal.flush()
        journal.note("c1", "a1", S.CONFIRMED, order_id="o1")
        with pytest.raises(JournalError, match="No space left"):
            await intend(journal, "c3")
        assert await recorded(path) == [("c1", "a1", "unknown"), ("c2", "a1", "unknown")]
        assert "2 facts are kept for the next write" in caplog.text
        disk.failure = None
        journal.note("c1", "a1", S.SETTLED)  # Too late, since those before it aren't lost.
        journal.note("c2", "a1", S.REFUSED)
        await journal.flush()
        assert await recorded(path) == [("c1", "a1", "confirmed"), ("c2", "a1", "refused")]
    assert "never recorded" not in caplog.text
    assert KEY not in caplog.text
    kept, *_, again = caplog.records
    assert "can be written again" in again.getMessage()
    assert again.levelno == kept.levelno
    assert sum("again" in one.getMessage() for one in caplog.records) == 1
    assert all({"client", "duration"} <= vars(one).keys() for one in caplog.records)


async def test_queue_for_a_disk_that_fails_is_bounded(
    path: Path,
    disk: DiskHarness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    async with opened(path) as journal:
        await intend(journal)
        disk.failure = OSError(28, "No space left on device")
        for number in range(20):
            with pytest.raises(JournalError):
                await intend(journal, "c2", f"a{number}")
            journal.note("c2", f"a{number}", S.NOT_SENT)
            # Then the thread has tried to write it.
            with pytest.raises(JournalError, match="No space left"):
                await journal.flush()
        kept = [int(text.split()[0]) for text in caplog.messages if "facts are kept" in text]
        assert max(kept) == 3
        disk.failure = None
        with pytest.raises(JournalError, match="entries wait for the disk already"):
            await intend(journal, "c2", "a20")
        journal.note("c2", "a20", S.NOT_SENT)
        await journal.flush()
        await intend(journal, "c2", "a21")
    assert await recorded(path) == [("c1", "a1", "unknown"), ("c2", "a21", "unknown")]


async def test_queue_for_a_disk_that_hangs_is_bounded(
    path: Path, disk: DiskHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    async with opened(path) as journal, trio.open_nursery() as nursery:
        disk.hang()
        nursery.start_soon(intend, journal)
        await disk.hanging()
        for number in range(3):
            journal.note("c1", f"other{number}", S.UNKNOWN)
        for number in range(20):
            with pytest.raises(JournalError, match="3 entries wait for the disk already"):
                await intend(journal, "c2", f"a{number}")
            journal.note("c2", f"a{number}", S.NOT_SENT)
        disk.wake()
    assert await recorded(path) == [("c1", "a1", "unknown")]


async def test_close_logs_the_facts_that_were_not_written(
    path: Path, disk: DiskHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as journal:
        await intend(journal)
        disk.failure = OSError(5, "Input/output error")
        journal.note("c1", "a1", S.CONFIRMED)
        await journal.aclose()
        assert "never recorded that swap c1 is confirmed" in caplog.text
        assert vars(caplog.records[-1])["client_order_id"] == "c1"
        disk.failure = None
    assert await recorded(path) == [("c1", "a1", "unknown")]


async def test_flush_without_entries_makes_no_commit(path: Path, disk: DiskHarness) -> None:
    async with opened(path) as journal:
        disk.failure = OSError(5, "Input/output error")
        await journal.flush()
    assert disk.commits == 0


# ---- Concurrent use


async def test_journal_serves_one_client_at_a_time(path: Path) -> None:
    async with opened(path) as journal:
        with pytest.raises(JournalError, match="open already"):
            await journal.open(HOST, KEY)
        with pytest.raises(JournalError, match="in use"):
            await SwapJournal(path).open(HOST, KEY)
        await intend(journal)
    async with opened(path) as journal:
        await refused(journal, "c1", "unknown")


async def test_journal_that_could_not_be_opened_can_be_opened_later(path: Path) -> None:
    journal = SwapJournal(path, timeout=PATIENCE)
    await trio.Path(path).mkdir()
    with pytest.raises(JournalError, match="isn't a file"):
        await journal.open(HOST, KEY)
    await trio.Path(path).rmdir()
    await journal.open(HOST, KEY)
    await intend(journal)
    await journal.aclose()
    assert len(await journal.rows()) == 1


async def test_damage_fails_the_opening_and_frees_the_file(path: Path) -> None:
    async with opened(path) as journal:
        await intend(journal)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE entries SET body = replace(body, 'ETH', 'BTC')")
    connection.close()
    for key in (KEY, KEY, "bob-the-key"):
        with pytest.raises(JournalError, match="entry 2 has another checksum"):
            await SwapJournal(path).open(HOST, key)


async def test_journal_that_is_not_open_writes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = SwapJournal(path)
    with trio.testing.assert_checkpoints():
        await journal.aclose()
    for _ in range(2):
        with pytest.raises(JournalError, match="isn't open"):
            await intend(journal)
        with pytest.raises(JournalError, match="isn't open"):
            await journal.flush()
        caplog.clear()
        journal.note("c1", "a1", S.CONFIRMED)
        assert "doesn't record that swap c1 is confirmed" in caplog.text
        with caplog.at_level(logging.CRITICAL):
            await journal.open(HOST, KEY)
            await journal.aclose()
    assert await recorded(path) == []


async def test_rows_can_be_read_while_another_process_uses_the_file(path: Path) -> None:
    journal = SwapJournal(path)
    with pytest.raises(JournalError, match="doesn't exist"):
        await journal.rows()
    assert not await trio.Path(path).exists()
    async with opened(path) as other:
        await intend(other)
        assert await journal.rows() == await other.rows()
        # Reading didn't take the writer's lock.
        await intend(other, "c2")
        with pytest.raises(JournalError, match="in use"):
            await journal.open(HOST, KEY)
        assert len(await other.rows()) == 2


KILLED = """
import sys
from tests.journal.test_journal import HOST, KEY, PATIENCE, S, SwapJournal, intend, trio

async def main():
    journal = SwapJournal(sys.argv[1], timeout=PATIENCE)
    await journal.open(HOST, KEY)
    await intend(journal, "noted")
    journal.note("noted", "a1", S.CONFIRMED, order_id="o1")
    await journal.flush()
    await intend(journal, "left")
    print("left", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


async def test_killed_process_leaves_its_unknown_swaps(path: Path) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(PATIENCE):
            printed = b""
            while not printed.endswith(b"\n"):
                chunk = await process.stdout.receive_some()
                assert chunk, "it ended too early"
                printed += chunk
        journal = SwapJournal(path, timeout=PATIENCE)
        with pytest.raises(JournalError, match="in use"):
            await journal.open(HOST, KEY)
        assert len(await journal.rows()) == 2
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
    assert process.returncode == -signal.SIGKILL
    expected = [("noted", "a1", "confirmed"), ("left", "a1", "unknown")]
    assert await recorded(path) == expected
    assert [row.client_order_id for row in await journal.open(HOST, KEY)] == ["left"]
    await refused(journal, "noted", "confirmed")
    journal.note("left", "a1", S.SETTLED, detail="seen in the account")
    await journal.aclose()
    assert [row.detail for row in await journal.rows()] == ["", "seen in the account"]
