"""`SwapJournal`: records each swap on the disk, so that a crash doesn't lose it.

A swap is sent at most once. Without a journal, only the memory of the process knows its outcome. So
its *intent* is on the disk before its first byte is sent, and each later *fact* is written after it
happened. The file never claims more than is true. An intent without a fact means "unknown": the
swap was possibly sent. If the last facts are missing, the next process asks the broker again.

While a client has the journal open, one thread uses the file. It writes what is queued in order, so
a fact can't overtake its intent, and all that is queued is written in one transaction. Tasks that
need an answer wait for it in Trio.

- The call for an intent returns when the disk has it. Otherwise the swap isn't sent. If the call
  gives up, the intent may still be written; the fact "not sent" is then written after it.
- No task waits for the disk longer than `timeout` seconds, except while the file is checked. A disk
  that hangs blocks only the thread, which is a daemon, so the interpreter can exit.
- A fact is kept until it is written. If it never is, it is logged.
- After an awaited close, the next client can open the file.

The format of the file, and its safety, is in `journal_db`.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import os
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, TypeVar, cast

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._checkpoints import always_checkpoint
from trio_broker._journal.entries import (
    Account,
    Fact,
    Intent,
    JournalRow,
    key_fingerprint,
    new_fact,
    new_intent,
)
from trio_broker._journal.journal_db import JournalFile, open_file, read_file
from trio_broker._log_fields import fields
from trio_broker.exceptions import BrokerError, ConfigurationError, JournalError, fresh
from trio_broker.models import SwapIntent, SwapOutcome
from trio_broker.settings import check_seconds

T = TypeVar("T")

logger: Final = logging.getLogger("trio_broker.journal")

# Seconds for which SQLite waits for a lock, so that an endless `timeout` doesn't block the thread.
_LONGEST_BUSY: Final = 5.0
# Entries that wait for the disk. A program that repeats a failed swap adds some each time.
_MOST_WAITING: Final = 1_000


class SwapJournal:
    """A file that records each swap and survives a crash.

    Pass it to a client as ``journal=``. The client opens and closes it, and you call only `rows`.
    One client at a time can use it. Cancelling any of its methods is safe.

    A journal that was copied or moved is refused, because it may not be the only one with its
    swaps. A file with hard links is refused.

    Args:
        path: The file, on a local disk. It is created if it doesn't exist. A ``.lock`` file beside
            it is never removed: without its journal, it is an error. During a commit there is a
            ``-journal`` file too, which SQLite needs after a crash.
        timeout: Seconds for which a swap, or closing, waits for the disk; more than 0. Checking the
            file, when it is opened or read, isn't limited: it takes some seconds per million
            swaps.
        adopt: Use the file although it was copied or moved. Make sure that no other copy is used.

    Attributes:
        client: The name of the client that opens it, for log records.

    Raises:
        ConfigurationError: An argument is invalid.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = 5.0, adopt: bool = False
    ) -> None:
        check_seconds("timeout", timeout)
        # Now, because the program may change its directory. Links are resolved when it is opened.
        self._path = Path(_file_name(path)).absolute()
        self._timeout = timeout
        self._adopt = adopt
        self._writer: _Writer | None = None
        self._last_thread: threading.Thread | None = None
        self._refused: set[str] = set()
        self.client: str | None = None

    @enable_ki_protection
    async def open(self, host: str, api_key: str) -> tuple[JournalRow, ...]:
        """Open the file for a client.

        Args:
            host: The broker's host, as in the rows.
            api_key: The API key. Only its fingerprint is stored.

        Returns:
            This account's rows whose outcome is unknown, the oldest first.

        Raises:
            JournalError: It is open already, or another process uses it; it can't be created, read
                or written within `timeout`; it is missing, was copied or moved, or has hard links;
                or it is damaged or isn't a journal, and wasn't changed.
        """
        account = (host, key_fingerprint(api_key))
        api_key = ""  # for tracebacks with locals
        if self._writer is not None:
            # Not by a decorator: its frame would hold the key, for a traceback with locals.
            await trio.lowlevel.checkpoint()
            raise JournalError(f"{self._path} is open already: one client at a time can use it")
        opened = _Answer[tuple[JournalRow, ...]](self._path, self._timeout)
        self._writer = writer = _Writer(
            self._path,
            self._busy,
            account,
            opened,
            self._last_thread,
            adopt=self._adopt,
            client=self.client,
        )
        try:
            return await opened.wait()
        except BaseException:
            self._leave(writer, None)
            raise

    @always_checkpoint
    async def intend(self, intent: SwapIntent, attempt: str) -> None:
        """Write that a swap is about to be sent. The disk has it when this returns.

        If this is cancelled, or raises anything but `DuplicateClientOrderIdError`, the intent may
        be written now or later. In this case, note `SwapOutcome.NOT_SENT`.

        Args:
            intent: The swap. Its amount is more than 0, and its time is an aware datetime.
            attempt: A unique text for this use of the client order ID.

        Raises:
            DuplicateClientOrderIdError: The account has a swap with this ID that was possibly sent.
            JournalError: It couldn't be written within `timeout`, too many entries wait for the
                disk, or the journal isn't open.
            ValueError: A value can't be written.
        """
        entry = new_intent(intent, attempt)
        writer = self._opened()
        if writer.waiting >= _MOST_WAITING:
            self._refused.add(attempt)
            writer.try_again()
            raise JournalError(f"{self._path}: {writer.waiting} entries wait for the disk already")
        done = _Answer[None](self._path, self._timeout)
        writer.queue.put(_Item(entry, done))
        await done.wait()

    @enable_ki_protection
    def note(
        self,
        client_order_id: str,
        attempt: str,
        outcome: SwapOutcome,
        *,
        order_id: str | None = None,
        detail: str = "",
    ) -> None:
        """Queue a fact to be written after all earlier facts and intents.

        This never waits, and never fails because of the disk. A fact that can't be written is
        logged and kept, and tried again with the next write, the next `flush` and at the end. It
        changes only the row of this attempt. A later fact replaces an earlier one: a refusal may
        become "unknown" or "confirmed". Nothing replaces "confirmed", and only "confirmed" replaces
        "settled". If the journal isn't open, the fact is logged and dropped, and the row stays as
        it is.

        Args:
            client_order_id: The client order ID of the swap.
            attempt: The same text as in `intend`.
            outcome: The outcome.
            order_id: The broker's order ID, or None to keep the one that is stored.
            detail: The reason. The first 1,000 characters are stored.

        Raises:
            ValueError: The outcome is `SwapOutcome.UNDER_WAY`, which isn't stored.
        """
        if outcome is SwapOutcome.UNDER_WAY:
            raise ValueError("a swap that is under way is written as an intent")
        if attempt in self._refused:
            self._refused.remove(attempt)  # Its intent was never queued.
            return
        if self._writer is None:
            logger.warning(
                "%s isn't open, so it doesn't record that swap %s is %s",
                self._path, client_order_id, outcome.value,
                extra=fields(
                    client=self.client, client_order_id=client_order_id, order_id=order_id
                ),
            )  # fmt: skip
            return
        at = dt.datetime.now(dt.UTC)
        fact = new_fact(client_order_id, attempt, outcome, order_id=order_id, detail=detail, at=at)
        self._writer.queue.put(_Item(fact))

    @always_checkpoint
    async def flush(self) -> None:
        """Wait until the disk has everything that was noted so far.

        Raises:
            JournalError: It couldn't be written within `timeout`, or the journal isn't open.
        """
        done = _Answer[None](self._path, self._timeout)
        self._opened().queue.put(_Item(done=done))
        await done.wait()

    @enable_ki_protection
    async def aclose(self) -> None:
        """Write everything that was noted, and close the file. Does nothing if it isn't open.

        It never raises because of the disk, and waits for at most `timeout` seconds. If the disk
        takes longer, this is logged, and the file is closed later. If the call is cancelled, the
        thread goes on writing and closing.
        """
        writer = self._writer
        if writer is None:
            await trio.lowlevel.checkpoint()
            return
        ended = _Answer[None](self._path, self._timeout)
        self._leave(writer, ended)
        try:
            await ended.wait()
        except JournalError as error:
            writer.is_overdue = True
            logger.warning(
                "closed before everything was written: %s",
                error,
                extra=fields(client=self.client),
            )

    @always_checkpoint
    async def rows(self) -> tuple[JournalRow, ...]:
        """Read all swaps in the file, of every account, the oldest first. Nothing is changed.

        This works at any time, also while another process has the journal open, and for copies.
        Call `flush` first to include the latest facts. Only the incomplete commit of a killed
        process is rolled back before.

        Raises:
            JournalError: The file doesn't exist, can't be read within `timeout`, has hard links, is
                damaged, or isn't a journal.
        """
        limit = _TimeLimit(self._timeout)
        with limit.scope:
            return await trio.to_thread.run_sync(
                read_file,
                self._path,
                self._busy,
                limit.lift,
                abandon_on_cancel=True,
                # A disk that hangs must not use up Trio's threads.
                limiter=trio.CapacityLimiter(1),
            )
        raise _late(self._path, self._timeout)

    @property
    def resolved(self) -> tuple[JournalRow, ...]:
        """The account's last confirmed, refused and settled rows at the opening, oldest first.

        Empty if the journal isn't open.
        """
        return self._writer.resolved if self._writer is not None else ()

    @property
    def unresolved_elsewhere(self) -> tuple[JournalRow, ...]:
        """The key's rows at other hosts whose outcome was unknown at the opening, oldest first.

        A host may be another spelling of the client's own, for example with a port. The client
        doesn't look these swaps up. They are also logged at WARNING. To look them up, open a client
        with their host. Empty if the journal isn't open.
        """
        return self._writer.elsewhere if self._writer is not None else ()

    @property
    def _busy(self) -> float:
        """Seconds for which SQLite waits for a lock."""
        return min(self._timeout, _LONGEST_BUSY)

    def _opened(self) -> _Writer:
        if self._writer is None:
            raise JournalError(f"{self._path} isn't open")
        return self._writer

    def _leave(self, writer: _Writer, ended: _Answer[None] | None) -> None:
        writer.queue.put(_Item(done=ended, ends=True))
        self._writer, self._last_thread = None, writer.thread


class _TimeLimit:
    """A limit for a thread's work, which the thread can lift."""

    def __init__(self, timeout: float) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + timeout)
        self._token = trio.lowlevel.current_trio_token()

    def lift(self) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(setattr, self.scope, "deadline", math.inf)


class _Answer(Generic[T]):
    """A value or an error that the thread gives to a waiting task."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self.limit = _TimeLimit(timeout)
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()
        self._value: T | None = None
        self._error: BrokerError | None = None

    async def wait(self) -> T:
        with self.limit.scope:
            await self._event.wait()
        if not self._event.is_set():
            # The thread may have answered in time while the event loop was blocked.
            await trio.lowlevel.cancel_shielded_checkpoint()
        if not self._event.is_set():
            raise _late(self._path, self._timeout)
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def give(self, value: T | None, error: BrokerError | None = None) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._take, value, error)

    def _take(self, value: T | None, error: BrokerError | None) -> None:
        self._value, self._error = value, error
        self._event.set()


@attrs.frozen
class _Item:
    """What the thread gets: an entry, or a mark in the queue.

    Attributes:
        entry: What to write.
        done: Gets an answer when this and everything before it is written.
        ends: Whether this is the last item, which is answered when the file is closed.
    """

    entry: Intent | Fact | None = None
    done: _Answer[None] | None = None
    ends: bool = False

    def answer(self, error: BrokerError | None) -> None:
        if self.done is not None:
            self.done.give(None, error and fresh(error))


class _Writer:
    """The thread that uses the file, from opening to closing."""

    def __init__(
        self,
        path: Path,
        busy: float,
        account: Account,
        opened: _Answer[tuple[JournalRow, ...]],
        last_thread: threading.Thread | None,
        *,
        adopt: bool,
        client: str | None,
    ) -> None:
        self._path = path
        self._busy = busy
        self._account = account
        self._opened = opened
        self._last_thread = last_thread
        self._adopt = adopt
        self._extra = fields(client=client)
        self._has_failed = False
        self.is_overdue = False  # `aclose` has returned before the end
        self.queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._kept: list[Fact] = []
        self.resolved: tuple[JournalRow, ...] = ()
        self.elsewhere: tuple[JournalRow, ...] = ()
        self.thread = threading.Thread(target=self._run, name=f"journal {path}", daemon=True)
        self.thread.start()

    @property
    def waiting(self) -> int:
        return self.queue.qsize() + len(self._kept)

    def try_again(self) -> None:
        """Try to write the facts that are kept."""
        if self.queue.empty():
            self.queue.put(_Item())

    def _run(self) -> None:
        if self._last_thread is not None:
            # A cancelled `aclose` didn't wait for it.
            self._last_thread.join()
        try:
            with open_file(
                self._path,
                self._account,
                self._busy,
                adopt=self._adopt,
                on_check=self._opened.limit.lift,
            ) as file:
                self.resolved, self.elsewhere = file.resolved, file.elsewhere
                self._report_elsewhere()
                self._opened.give(file.unresolved)
                end = self._serve(file)
        except JournalError as error:
            self._opened.give(None, error)
        except Exception as fault:
            self._opened.give(None, JournalError(f"{self._path}: internal error: {fault!r}"))
            raise
        else:
            if self.is_overdue and not self._kept:
                logger.warning("%s: everything is written now", self._path, extra=self._extra)
            end.answer(None)

    def _report_elsewhere(self) -> None:
        if self.elsewhere:
            logger.warning(
                "%s has %d unresolved swaps of this API key at other hosts (%s), which the client "
                "of %s doesn't look up. If such a host is another spelling of its own, open a "
                "client with that host, and reconcile them",
                self._path,
                len(self.elsewhere),
                ", ".join(sorted({row.host for row in self.elsewhere})),
                self._account[0],
                extra=self._extra,
            )

    def _serve(self, file: JournalFile) -> _Item:
        """Write what is queued until the last item, and return that."""
        while True:
            items = [self.queue.get()]
            with suppress(queue.Empty):
                while True:
                    items.append(self.queue.get_nowait())
            end = items.pop() if items[-1].ends else None
            self._write(file, items)
            if end is not None:
                for fact in self._kept:
                    ids = {"client_order_id": fact.client_order_id, "order_id": fact.order_id}
                    logger.error(
                        "%s never recorded that %s", self._path, fact, extra=self._extra | ids
                    )
                return end

    def _write(self, file: JournalFile, items: Sequence[_Item]) -> None:
        """Write kept facts and new entries in one transaction, and answer the waiting tasks."""
        kept = len(self._kept)
        entries = [*self._kept, *(item.entry for item in items if item.entry is not None)]
        try:
            refusals = file.write(entries) if entries else []
        except JournalError as error:
            self._kept = [entry for entry in entries if isinstance(entry, Fact)]
            if self._kept:
                self._has_failed = True
                logger.error(  # noqa: TRY400 - the traceback tells nothing
                    "%d facts are kept for the next write: %s",
                    len(self._kept),
                    error,
                    extra=self._extra,
                )
            for item in items:
                item.answer(error)
            return
        if self._has_failed and entries:
            self._has_failed = False
            # At the level of the failure, so that a reader of that sees this too.
            logger.error("%s can be written again", self._path, extra=self._extra)
        self._kept = []
        answers = iter(refusals[kept:])
        for item in items:
            item.answer(None if item.entry is None else next(answers))


def _file_name(path: object) -> str:
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigurationError(f"path must be the path of a file, not {path!r}")
    return name


def _late(path: Path, timeout: float) -> JournalError:
    return JournalError(f"{path}: the disk didn't answer within {timeout:g} s")
