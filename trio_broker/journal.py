"""`SwapJournal`: what is known of each swap, kept so that a crash doesn't take it along.

A swap is sent at most once, and it is this process's memory that knows what became of it. If the
process dies, a swap may have left of which nobody knows. So its *intent* is on the disk before its
first byte can leave, and each later *fact* is written after it happened. The file never says more
than is true: an intent alone stands as "unknown", it may have left; the last facts may be missing,
and then the next process asks the broker for a swap once more than was needed.

How it works. While a client has the journal open, a thread of its own has the file, and takes what
is queued for it in its order: so a fact can't overtake its intent, and what came together is forced
to the disk together. Those who need an answer wait for it in Trio.

The laws of this file:

- The call for an intent returns once the disk has it; otherwise the swap isn't sent. What a call
  that gave up had asked for may still be written, and its caller's "not sent" is written after it.
- Nobody waits for a disk longer than `timeout` seconds. One that hangs hangs that thread alone,
  which is a daemon, so that the interpreter's end doesn't wait for it either.
- A fact is kept until it is written, and logged if it never is.
- Once an exit was waited for, the file is free for the next client.

What is in the file, and what makes it safe, is `journalfile`'s matter.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import queue
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from decimal import Decimal
from pathlib import Path
from typing import Final, Generic, TypeVar, cast

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker.exceptions import BrokerError, ConfigurationError, JournalError, fresh
from trio_broker.journalfile import (
    Account,
    Fact,
    Intent,
    JournalFile,
    JournalRow,
    key_fingerprint,
    open_file,
    read_file,
)
from trio_broker.models import SwapOutcome
from trio_broker.settings import check_seconds

T = TypeVar("T")

logger: Final = logging.getLogger("trio_broker.journal")

# Seconds for which SQLite itself waits, so that an endless `timeout` doesn't stop the thread.
_LONGEST_BUSY: Final = 5.0
# Entries that wait for the disk. Whoever tries a refused swap again and again adds some each time.
_MOST_WAITING: Final = 1_000


class SwapJournal:
    """A file that knows of each swap, whatever becomes of the process.

    Give it to a client as ``journal=``, which opens and closes it; then only `rows` is for you. It
    serves one client at a time, and after that another one. Cancelling any of its methods is safe.

    Args:
        path: The file, on a local disk; it is made if it isn't there. Beside it SQLite has its own
            ``-wal`` and ``-shm``, and the journal a ``.lock`` that stays.
        timeout: Seconds for which a swap, or an exit, waits for the disk; more than 0.

    Raises:
        ConfigurationError: An argument can't work.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        check_seconds("timeout", timeout)
        # Now, for the program may go to another directory; links are followed when it is opened.
        self._path = Path(_file_name(path)).absolute()
        self._timeout = timeout
        self._writer: _Writer | None = None
        self._last: _Writer | None = None
        self._refused: set[str] = set()

    @enable_ki_protection
    async def open(self, host: str, api_key: str) -> tuple[JournalRow, ...]:
        """Take the file for a client.

        Args:
            host: The broker's host, as rows are to have it.
            api_key: The API key; the file gets its fingerprint.

        Returns:
            This account's rows whose outcome is unknown, the oldest first.

        Raises:
            JournalError: It is open already, or in use by another process; it can't be made, read
                or written within `timeout`; it isn't a journal, or is damaged: then it is left as
                it is.
        """
        if self._writer is not None:
            raise JournalError(f"{self._path} is open already: a journal serves one client a time")
        opened = _Answer[tuple[JournalRow, ...]](self._path, self._timeout)
        account = (host, key_fingerprint(api_key))
        writer = _Writer(self._path, _busy(self._timeout), account, opened, self._last)
        writer.start()
        self._writer = writer
        try:
            return await opened.wait()
        except BaseException:
            self._leave(writer, None)
            raise

    @enable_ki_protection
    async def intend(
        self,
        client_order_id: str,
        attempt: str,
        *,
        amount_in: Decimal,
        asset_in: str,
        asset_out: str,
        at: dt.datetime,
    ) -> None:
        """Write that a swap is about to be sent; the disk has it when this returns.

        If this raises anything but `DuplicateClientOrderIdError`, be it that it was cancelled, it
        may have been written or may yet be: note `SwapOutcome.NOT_SENT` then.

        Args:
            client_order_id: The id that will go along with the swap.
            attempt: Which use of the id this is; no other has the same.
            amount_in: How much is to be sold, more than 0.
            asset_in: The asset that is to be sold.
            asset_out: The asset that is to be bought.
            at: When it was asked for; an aware datetime.

        Raises:
            DuplicateClientOrderIdError: The account has a swap under this id that may have left.
            JournalError: It couldn't be written within `timeout`, too much waits for the disk
                already, or the journal isn't open.
            ValueError: A value can't be written.
        """
        intent = Intent(
            client_order_id=client_order_id,
            attempt=attempt,
            amount_in=amount_in,
            asset_in=asset_in,
            asset_out=asset_out,
            at=at,
        )
        writer = self._opened()
        if writer.waiting >= _MOST_WAITING:
            self._refused.add(attempt)
            writer.try_again()
            raise JournalError(f"{self._path}: {writer.waiting} entries wait for the disk already")
        done = _Answer[None](self._path, self._timeout)
        writer.put(_Item(intent, done))
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
        """Have a fact written, after all that was noted or intended before.

        It never waits, and never fails because of the disk: a fact that can't be written is logged,
        kept, and tried again with the next write, the next `flush` and the end. It changes the row
        of that attempt while its outcome is unknown, and no other. On a journal that isn't open it
        is logged and dropped, and the row stays "unknown", which is true of it.

        Args:
            client_order_id: The id that went along with the swap.
            attempt: Which use of the id it was.
            outcome: What is known now.
            order_id: The order's id at the broker, if it is known; one that is written stays.
            detail: Why, in words; the first 1,000 characters are kept.

        Raises:
            ValueError: The outcome is `SwapOutcome.UNDER_WAY`, which no file can know.
        """
        if outcome is SwapOutcome.UNDER_WAY:
            raise ValueError("a swap that is under way is written as an intent")
        if attempt in self._refused:
            self._refused.remove(attempt)  # Nothing of it was ever to be written.
            return
        if self._writer is None:
            logger.warning(
                "%s isn't open, so it doesn't learn that swap %s is %s",
                self._path, client_order_id, outcome.value,
            )  # fmt: skip
            return
        fact = Fact(
            client_order_id=client_order_id,
            attempt=attempt,
            outcome=outcome,
            order_id=order_id,
            detail=detail,
            at=dt.datetime.now(dt.UTC),
        )
        self._writer.put(_Item(fact))

    async def flush(self) -> None:
        """Wait until the disk has all that was noted so far.

        Raises:
            JournalError: It couldn't be written within `timeout`, or the journal isn't open.
        """
        done = _Answer[None](self._path, self._timeout)
        self._opened().put(_Item(done=done))
        await done.wait()

    @enable_ki_protection
    async def aclose(self) -> None:
        """Write what was noted, and let go of the file; nothing to do if it isn't open.

        It never raises because of the disk, and waits for it for `timeout` seconds at most. What
        the disk doesn't take by then is logged; if it does later, the file is let go of later. A
        cancelled call waits no more, and the same goes on without it.
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
            logger.warning("closed without knowing that all is written: %s", error)

    async def rows(self) -> tuple[JournalRow, ...]:
        """All swaps in the file, of every account, the oldest first; nothing is changed.

        It can be asked for at any time, whoever has the journal open. What was noted a moment ago
        is in it after a `flush`. Where nobody has it open, SQLite may leave an empty ``-wal`` and
        its ``-shm`` beside it, which the next opening takes away.

        Raises:
            JournalError: There is no such file, it can't be read within `timeout`, it isn't a
                journal, or it is damaged.
        """
        with trio.move_on_after(self._timeout):
            return await trio.to_thread.run_sync(
                read_file,
                self._path,
                _busy(self._timeout),
                abandon_on_cancel=True,
                # A disk that hangs must not use up the threads that others wait for.
                limiter=trio.CapacityLimiter(1),
            )
        raise _late(self._path, self._timeout)

    def _opened(self) -> _Writer:
        if self._writer is None:
            raise JournalError(f"{self._path} isn't open")
        return self._writer

    def _leave(self, writer: _Writer, ended: _Answer[None] | None) -> None:
        writer.put(_Item(done=ended, ends=True))
        self._writer, self._last = None, writer


class _Answer(Generic[T]):
    """What a task waits for, and the thread gives."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()
        self._value: T | None = None
        self._error: BrokerError | None = None

    async def wait(self) -> T:
        with trio.move_on_after(self._timeout):
            await self._event.wait()
        if not self._event.is_set():
            raise _late(self._path, self._timeout)
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def give(self, value: T) -> None:
        self._hand_over(value, None)

    def fail(self, error: BrokerError) -> None:
        self._hand_over(None, error)

    def _hand_over(self, value: T | None, error: BrokerError | None) -> None:
        # Nobody waits any more once Trio's run is over.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._take, value, error)

    def _take(self, value: T | None, error: BrokerError | None) -> None:
        self._value, self._error = value, error
        self._event.set()


@attrs.frozen(eq=False)
class _Item:
    """Something for the thread: an entry, or a place in the queue at which all before is written.

    Attributes:
        entry: What is to be written, None for nothing.
        done: Who waits for it, None for nobody.
        ends: Whether it is the last, which is answered once the file is let go of.
    """

    entry: Intent | Fact | None = None
    done: _Answer[None] | None = None
    ends: bool = False

    def tell(self, error: BrokerError | None) -> None:
        if self.done is not None:
            if error is None:
                self.done.give(None)
            else:
                self.done.fail(fresh(error))


class _Writer:
    """The thread that has the file, from an opening to its close."""

    def __init__(
        self,
        path: Path,
        busy: float,
        account: Account,
        opened: _Answer[tuple[JournalRow, ...]],
        before: _Writer | None,
    ) -> None:
        self._path = path
        self._busy = busy
        self._account = account
        self._answer = opened
        self._before = before
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._kept: list[_Item] = []
        self._thread = threading.Thread(target=self._run, name=f"journal {path}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._queue.qsize() + len(self._kept)

    def try_again(self) -> None:
        """Have what is kept written, if the disk takes it by now."""
        if self._queue.empty():
            self._queue.put(_Item())

    def put(self, item: _Item) -> None:
        self._queue.put(item)

    def _run(self) -> None:
        if self._before is not None:
            # A client that was closed under a cancelled scope didn't wait for it to let go.
            self._before._thread.join()  # noqa: SLF001 - one of its own kind
            self._before = None
        try:
            with ExitStack() as stack:
                file = stack.enter_context(open_file(self._path, self._account, self._busy))
                self._answer.give(file.unresolved())
                end = self._serve(file)
        except JournalError as error:
            self._answer.fail(error)
        else:
            end.tell(None)

    def _serve(self, file: JournalFile) -> _Item:
        while True:
            items = [self._queue.get()]
            with suppress(queue.Empty):
                while True:
                    items.append(self._queue.get_nowait())
            self._write(file, items)
            if items[-1].ends:
                for item in self._kept:
                    logger.error("%s never learnt that %s", self._path, item.entry)
                return items[-1]

    def _write(self, file: JournalFile, items: Sequence[_Item]) -> None:
        """Write it all at once, what is kept before it, and tell those who wait."""
        work: dict[_Item, Intent | Fact] = {}
        for item in (*self._kept, *items):
            if item.entry is not None:
                work[item] = item.entry
        marks = [item for item in items if item.entry is None and not item.ends]
        try:
            refusals = file.write(list(work.values())) if work else []
        except JournalError as error:
            self._kept = [item for item, entry in work.items() if isinstance(entry, Fact)]
            if self._kept:
                logger.error(  # noqa: TRY400 - it is the disk's, and not ours
                    "%d facts are kept for the next write: %s", len(self._kept), error
                )
            for item in (*work, *marks):
                item.tell(error)
        else:
            self._kept = []
            for item, refusal in zip(work, refusals, strict=True):
                item.tell(refusal)
            for item in marks:
                item.tell(None)


def _file_name(path: object) -> str:
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigurationError(f"path must name a file, not {path!r}")
    return name


def _busy(timeout: float) -> float:
    """Seconds for which SQLite waits for somebody else's lock."""
    return min(timeout, _LONGEST_BUSY)


def _late(path: Path, timeout: float) -> JournalError:
    return JournalError(f"{path}: the disk didn't answer within {timeout:g} s")
