"""A journal's file: how it is created, checked, read and written.

It is an SQLite database with a rollback journal (``journal_mode=DELETE``, ``synchronous=EXTRA``).
All that is committed is in this one file.

- When `JournalFile.write` returns, everything it was given is on the disk. When it raises, all or
  nothing is, and writing the same again is safe.
- Entries are only appended. The header has their number and the last checksum, and is written in
  the same transaction. The state of a swap is the sum of its entries, as `entries` describes.
- The whole file is checked before it is used: by SQLite, and by the checksums. A file that is
  damaged, isn't a journal, or has a later version is never changed. Only the incomplete transaction
  of a killed process is rolled back before.
- If another program changes the file while it is open, the whole file is checked again.
- One process at a time writes. The lock is on a second file, and the system releases it when the
  process ends. Others may read meanwhile. They read in short transactions, because a long one would
  keep the writer waiting.
- The lock file also shows that the journal exists. A missing database beside it is an error. So
  that a process may be killed while it creates a journal, it marks that by a third file before.
- Only SQLite opens the database's file. POSIX releases all locks of a process on a file when *any*
  descriptor of it is closed. A program that does this interferes only with a transaction that is
  under way at that moment, because SQLite's locks are held only for transactions.

SQLite asks the disk to store each commit durably; no program can do more. Network file systems may
not obey, so a journal must be on a local disk.

The file shows what the account trades, so only its owner may read it. It contains no key: a row has
the host and a fingerprint of the key, by which a client finds its own rows.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from trio_broker import lockfile
from trio_broker._journal import version_1
from trio_broker._journal.entries import (
    Account,
    Damage,
    Entry,
    Fact,
    Intent,
    JournalRow,
    Place,
    all_rows,
    checksum,
    decode,
    encode,
    follow,
    number_of,
    swap_number,
)
from trio_broker.exceptions import BrokerError, DuplicateClientOrderIdError, JournalError
from trio_broker.models import SwapOutcome

OnCheck: TypeAlias = Callable[[], None]
APPLICATION_ID: Final = 0x7472626A
VERSION: Final = 2
# How many swaps of earlier processes are read.
MOST_KNOWN: Final = 10_000

# Bytes. No database is smaller. SQLite deletes the WAL of an empty file even when only reading.
_SMALLEST: Final = 512
_FAILURES: Final = (sqlite3.Error, OSError, MemoryError)
_SIDES: Final = ("-journal", "-wal", "-shm")
# Entries that are read in one transaction.
_CHUNK: Final = 1_000

_TABLES: Final = (
    """CREATE TABLE entries (
        number INTEGER PRIMARY KEY,
        swap INTEGER NOT NULL,
        body TEXT NOT NULL,
        checksum BLOB NOT NULL
    )""",
    "CREATE INDEX entries_by_swap ON entries (swap)",
    """CREATE TABLE header (
        only INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        checksum BLOB NOT NULL
    )""",
)
_FIRST_HEADER: Final = "INSERT INTO header VALUES (1, 0, x'')"
_HEADER: Final = (
    "SELECT count, checksum, (SELECT max(number) FROM entries), "
    "(SELECT checksum FROM entries WHERE number = count) FROM header"
)
_ENTRIES: Final = "SELECT number, swap, body, checksum FROM entries "
_OF_SWAP: Final = (
    "SELECT number, swap, body, checksum, "
    "(SELECT checksum FROM entries AS before WHERE before.number = entries.number - 1) "
    "FROM entries WHERE swap = ? ORDER BY number"
)


# --- A file that is open for writing ------------------------------------------------------------


class JournalFile:
    """A file that is open for writing, for one account.

    Attributes:
        unresolved: The account's rows whose outcome was unknown when it was opened, oldest first.
        elsewhere: Such rows of the same key at other hosts.
        resolved: The account's last rows that were confirmed, refused or settled, oldest first.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, account: Account, survey: _Survey
    ) -> None:
        self._path = path
        self._connection = connection
        self._account = account
        self._stamp = _stamp(path)
        self.resolved = tuple(filter(_is_resolved, survey.rows()))
        self.unresolved, self.elsewhere = self._sort(survey)

    def _sort(self, survey: _Survey) -> tuple[tuple[JournalRow, ...], tuple[JournalRow, ...]]:
        found = [self._swap((host, self._account[1]), name) for host, name in survey.open]
        rows = [
            row
            for _, row in sorted(found, key=lambda one: one[0])
            if row is not None and row.outcome is SwapOutcome.UNKNOWN
        ]
        own = tuple(row for row in rows if row.host == self._account[0])
        return own, tuple(row for row in rows if row.host != self._account[0])

    def write(self, entries: Sequence[Intent | Fact]) -> list[BrokerError | None]:
        """Write entries in order, in one transaction.

        Returns:
            For each entry None, or why this intent was refused. The others are written.

        Raises:
            JournalError: The disk may have all of them, or none.
        """
        with _journal_errors(self._path):
            with _transaction(self._connection):
                self._check_unchanged()
                with _appending(self._connection) as tail:
                    refusals = [self._apply(tail, entry) for entry in entries]
                _commit(self._connection)
            self._stamp = _stamp(self._path)
            return refusals

    def _check_unchanged(self) -> None:
        """Refuse to write to a file that was removed, replaced or damaged while it is open."""
        found = _stamp(self._path) if self._path.exists() else None
        if found is None or found[:2] != self._stamp[:2]:  # SQLite wouldn't notice.
            raise JournalError(
                f"{self._path} was removed or replaced while it was in use: put it back; until "
                "then, nothing can be written to it, and swaps are refused"
            )
        if found != self._stamp:
            # By a new connection, because this one may have the former pages in its cache.
            with closing(_connect(self._path, "ro", 0.0)) as reader:
                if reader.execute("PRAGMA journal_mode").fetchone() != (b"delete",):
                    raise OSError("another program has changed its journal mode: open it again")
                _survey(self._path, reader, self._account)

    def _apply(self, tail: _Tail, entry: Intent | Fact) -> BrokerError | None:
        host, key = self._account
        entry = msgspec.structs.replace(entry, host=host, key_fingerprint=key)
        _, row = self._swap(self._account, entry.client_order_id)
        if isinstance(entry, Fact):
            # A late fact never changes another swap with the same ID.
            if row is not None and row.attempt == entry.attempt:
                tail.append(entry)
        elif row is None or row.outcome is SwapOutcome.NOT_SENT:
            tail.append(entry)
        else:
            return DuplicateClientOrderIdError(entry.client_order_id, row.outcome.value)
        return None

    def _swap(self, account: Account, name: str) -> tuple[int, JournalRow | None]:
        """The number of a swap's last intent, and its row."""
        number, row = 0, None
        number_of_swap = number_of(account, name)
        for *values, before in self._connection.execute(_OF_SWAP, [number_of_swap]).fetchall():
            entry = _entry(before or b"", values)
            if isinstance(entry, Place) or entry.client_order_id != name:
                raise Damage(f"entry {values[0]} belongs to another swap")
            row = follow(row, entry)
            number = values[0] if isinstance(entry, Intent) else number
        return number, row


@attrs.define
class _Tail:
    """The end of the entries, within a transaction."""

    _connection: sqlite3.Connection
    count: int
    checksum: bytes

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> _Tail:
        """Read the header.

        Raises:
            Damage: It doesn't match the last entry.
        """
        found = connection.execute(_HEADER).fetchall()
        if len(found) != 1:
            raise Damage(f"it has {len(found)} headers")
        count, sealed, last, last_checksum = found[0]
        if (count, sealed) != (last or 0, last_checksum or b""):
            raise Damage(f"its header is that of entry {count!a}, and its last entry is {last!a}")
        return cls(connection, count, sealed)

    def append(self, entry: Entry) -> None:
        """Append an entry."""
        self.count += 1
        swap, body = swap_number(entry), encode(entry)
        self.checksum = checksum(self.checksum, self.count, swap, body)
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?)",
            (self.count, swap, body.decode(), self.checksum),
        )

    def write(self) -> None:
        """Write the header."""
        self._connection.execute(
            "UPDATE header SET count = ?, checksum = ?", (self.count, self.checksum)
        )


@contextmanager
def _appending(connection: sqlite3.Connection) -> Iterator[_Tail]:
    """Append entries, within a transaction."""
    tail = _Tail.read(connection)
    count = tail.count
    yield tail
    if tail.count != count:
        tail.write()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        if connection.in_transaction:
            connection.execute("COMMIT")
    except BaseException:
        # After a failed commit, the transaction may be open or not.
        with suppress(sqlite3.Error):
            connection.rollback()
        raise


def _commit(connection: sqlite3.Connection) -> None:
    """Commit. The tests replace this to simulate a failing disk."""
    connection.execute("COMMIT")


# --- Opening ------------------------------------------------------------------------------------


@attrs.define
class _Survey:
    """What one pass over all entries finds out for an account.

    Attributes:
        account: The account.
        place: Where the file was used last.
        open: Host and client order ID of swaps of its key that may be unresolved.
        last: The entries of its last swaps, by client order ID.
    """

    account: Account
    place: Place | None = None
    open: dict[tuple[str, str], None] = attrs.field(factory=dict)
    last: dict[str, list[Intent | Fact]] = attrs.field(factory=dict)

    def add(self, entry: Entry) -> None:
        """Take the next entry into account."""
        if isinstance(entry, Place):
            self.place = entry
            return
        if entry.key_fingerprint != self.account[1]:
            return
        if entry.host == self.account[0]:
            self._keep(entry)
        if isinstance(entry, Intent) or entry.outcome is SwapOutcome.UNKNOWN:
            self.open[entry.host, entry.client_order_id] = None
        else:
            self.open.pop((entry.host, entry.client_order_id), None)

    def _keep(self, entry: Intent | Fact) -> None:
        if isinstance(entry, Intent):
            self.last.pop(entry.client_order_id, None)
        self.last.setdefault(entry.client_order_id, []).append(entry)
        if len(self.last) > MOST_KNOWN:
            del self.last[next(iter(self.last))]

    def rows(self) -> Iterator[JournalRow]:
        """The rows of its last swaps, the oldest first."""
        for entries in self.last.values():
            row: JournalRow | None = None
            for entry in entries:
                row = follow(row, entry)
            if row is not None:
                yield row


def _is_resolved(row: JournalRow) -> bool:
    if row.outcome is SwapOutcome.CONFIRMED:
        return row.order_id is not None
    return row.outcome in {SwapOutcome.REFUSED, SwapOutcome.SETTLED}


@contextmanager
def open_file(
    path: Path,
    account: Account,
    busy: float,
    *,
    adopt: bool = False,
    on_check: OnCheck = lambda: None,
) -> Iterator[JournalFile]:
    """Open a journal's file for writing; it is created if it doesn't exist.

    ``on_check`` is called before the file is checked, which takes long if it is large.
    """
    path = Path(os.path.realpath(path))
    with ExitStack() as stack:
        with _journal_errors(path):
            stack.enter_context(_locked(path))
            version_1.check_wal(path)
            _roll_back(path, busy)
            on_check()
            _convert(path, busy)
            with closing(_connect(path, "ro", busy)) as reader:
                survey = _survey(path, reader, account)
            connection = stack.enter_context(closing(_connect(path, "rw", busy)))
            _take_place(path, connection, survey.place, adopt=adopt)
            file = JournalFile(path, connection, account, survey)
        yield file


def _take_place(
    path: Path, connection: sqlite3.Connection, place: Place | None, *, adopt: bool
) -> None:
    """Refuse a file that was copied or moved, unless it is adopted."""
    here = _place(path, path)
    if place is not None and place != here and not adopt:
        raise JournalError(
            f"{path} (file number {here.inode}) is a copy, or was moved: it was used last as "
            f"{place.path} (file number {place.inode}). Use that one, if it has later swaps. If "
            "no other copy is used any more, adopt this one: SwapJournal(path, adopt=True), or "
            "the option --adopt"
        )
    _make_durable(connection)
    if place != here:
        with _transaction(connection), _appending(connection) as tail:
            tail.append(here)
    # This fails now, and not only at the first swap, if the file or its directory is read-only.
    for sql in ("BEGIN IMMEDIATE", "UPDATE header SET count = count + 1", "ROLLBACK"):
        connection.execute(sql)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file that exists, or create it."""
    if not path.parent.is_dir():
        raise JournalError(f"{path} can't be created: there is no such directory")
    if path.is_symlink():
        raise JournalError(f"{path} is in a loop of symbolic links")
    made = _unfinished(path)
    if path.exists():
        _check_file(path)
    elif not _traces(path):
        # Before the lock file, which shows that there was a journal.
        made.touch(0o600)
        _sync_directory(path.parent)
    with lockfile.held(path):
        if not path.exists():
            if not made.exists():
                raise _missing(path)
            _create(path, made)
        made.unlink(missing_ok=True)
        _remove_sides(made)
        yield


def _unfinished(path: Path) -> Path:
    """The file that a journal is created in. While it is there, the journal has no swaps."""
    return path.with_name(f".{path.name}.new")


def _traces(path: Path) -> list[str]:
    """The names of the files beside a missing journal that show that it existed."""
    if _unfinished(path).exists():
        return []
    sides = (path.with_name(f"{path.name}{end}") for end in _SIDES)
    return [one.name for one in (lockfile.lock_path(path), *sides) if one.exists()]


def _create(path: Path, made: Path) -> None:
    """Create an empty journal under another name, and rename it, so that it is never incomplete."""
    # A killed process may have left a part. The file stays, as the mark of an unfinished creation.
    os.truncate(made, 0)
    _remove_sides(made)
    with closing(_connect(made, "rw", 0.0)) as connection:
        _make_durable(connection)
        with _transaction(connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _create_tables(connection)
            with _appending(connection) as tail:
                tail.append(_place(made, path))  # A renamed file keeps its number.
    made.rename(path)
    _sync_directory(path.parent)


def _create_tables(connection: sqlite3.Connection) -> None:
    for sql in (*_TABLES, _FIRST_HEADER, f"PRAGMA user_version = {VERSION}"):
        connection.execute(sql)


def _convert(path: Path, busy: float) -> None:
    """Convert a journal of the first version in place, in one transaction."""
    with closing(_connect(path, "ro", busy)) as reader:
        if _version(path, reader) != 1:
            return
        _check_database(reader)
        for _ in version_1.rows(reader):
            pass  # They are checked before anything is changed.
    with closing(_connect(path, "rw", busy)) as connection:
        _make_durable(connection)  # This also merges the -wal file.
        with _transaction(connection):
            _create_tables(connection)
            with _appending(connection) as tail:
                tail.append(_place(path, path))
                for row in version_1.rows(connection):
                    for entry in version_1.entries(row):
                        tail.append(entry)
            connection.execute("DROP TABLE swaps")


def _roll_back(path: Path, busy: float) -> None:
    """Roll back the incomplete transaction of a killed process, if there is one."""
    if path.with_name(f"{path.name}-journal").exists():
        with closing(_connect(path, "rw", busy)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()


def _connect(path: Path, mode: str, busy: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=busy, isolation_level=None
    )
    connection.text_factory = bytes  # the checksums are of bytes
    return connection


def _make_durable(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    if mode != b"delete":
        raise OSError("another program uses it")
    # This also stores the removal of the rollback journal: a commit is durable when it returns.
    connection.execute("PRAGMA synchronous = EXTRA")
    # On macOS a plain fsync may leave data in the cache of the disk.
    connection.execute("PRAGMA fullfsync = ON")


# --- Reading and checking -----------------------------------------------------------------------


def read_file(path: Path, busy: float, on_check: OnCheck = lambda: None) -> tuple[JournalRow, ...]:
    """Read all rows of a file, of every account, the oldest first."""
    path = Path(os.path.realpath(path))
    with _journal_errors(path):
        if not path.exists():
            raise _missing(path) if _traces(path) else JournalError(f"{path} doesn't exist")
        _check_file(path)
        on_check()
        try:
            return _read(path, busy)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "") != "SQLITE_READONLY_ROLLBACK":
                raise
        with lockfile.held(path):
            _roll_back(path, busy)
        return _read(path, busy)


def _read(path: Path, busy: float) -> tuple[JournalRow, ...]:
    if any(path.with_name(f"{path.name}{end}").exists() for end in ("-wal", "-shm")):
        # If it is in use, by the first version of this library, SQLite reads all of its WAL.
        with suppress(BlockingIOError), lockfile.held(path):
            version_1.check_wal(path)
    with closing(_connect(path, "ro", busy)) as reader:
        if _version(path, reader) == 1:
            return tuple(version_1.rows(reader))
        return all_rows(_entries(reader))


def _survey(path: Path, reader: sqlite3.Connection, account: Account) -> _Survey:
    """Check the whole file, and return what it has for an account."""
    _version(path, reader)
    tables = reader.execute("SELECT sql FROM sqlite_master").fetchall()
    if tables != [(sql.encode(),) for sql in _TABLES]:
        raise Damage("its tables were changed")
    _check_database(reader)
    survey = _Survey(account)
    for entry in _entries(reader):
        survey.add(entry)
    return survey


def _check_database(reader: sqlite3.Connection) -> None:
    """Check what no checksum covers: indexes, and free space."""
    (found,) = reader.execute("PRAGMA integrity_check(1)").fetchone()
    if found != b"ok":
        raise Damage(found.decode(errors="replace"))


def _version(path: Path, reader: sqlite3.Connection) -> int:
    (application,) = reader.execute("PRAGMA application_id").fetchone()
    version: int = reader.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise JournalError(f"{path} is a database, but not a journal of swaps")
    if not 1 <= version <= VERSION:
        raise JournalError(
            f"{path} has version {version}; this library supports versions 1 to {VERSION}"
        )
    return version


def _entries(reader: sqlite3.Connection) -> Iterator[Entry]:
    """Read all entries that are there now, and check them."""
    end = _Tail.read(reader)
    number, previous = 0, b""
    while number < end.count:
        # All at once, so that no lock is held meanwhile.
        chunk = reader.execute(
            f"{_ENTRIES} WHERE number > ? AND number <= ? ORDER BY number LIMIT {_CHUNK}",
            (number, end.count),
        ).fetchall()
        if not chunk:
            break
        for values in chunk:
            number += 1
            if values[0] != number:
                raise Damage(f"entry {number} is missing")
            yield _entry(previous, values)
            previous = values[3]
    if (number, previous) != (end.count, end.checksum):
        raise Damage(f"it has {number} of {end.count} entries")


def _entry(previous: bytes, values: Sequence[Any]) -> Entry:
    """Check and read an entry."""
    number, swap, body, stored = values
    try:
        if checksum(previous, number, swap, body) == stored:
            return decode(body)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise Damage(f"entry {number!a}: {error}") from error
    raise Damage(f"entry {number!a} has another checksum")


def _check_file(path: Path) -> None:
    """Refuse a file that SQLite must not even open."""
    # Not by reading it: that would release SQLite's locks on it.
    found = path.stat()
    if not path.is_file():
        raise JournalError(f"{path} isn't a file")
    if found.st_nlink > 1:
        raise JournalError(
            f"{path} has {found.st_nlink} names (hard links): it could be used twice at a time. "
            "Remove the others, or copy the file and adopt the copy"
        )
    if found.st_size < _SMALLEST:
        raise Damage(f"it has {found.st_size} bytes")


# --- Files --------------------------------------------------------------------------------------


def _stamp(path: Path) -> tuple[int, int, int, int]:
    """What shows that a file was replaced (two numbers), or changed by another program."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _place(file: Path, path: Path) -> Place:
    name = str(path).encode(errors="backslashreplace").decode()
    return Place(name, str(file.stat().st_ino))


def _remove_sides(database: Path) -> None:
    for end in _SIDES:
        database.with_name(f"{database.name}{end}").unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Have the disk store the names in a directory."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such call, and doesn't need it.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Errors -------------------------------------------------------------------------------------


@contextmanager
def _journal_errors(path: Path) -> Iterator[None]:
    """Raise a `JournalError` for everything that is wrong with a file."""
    try:
        yield
    except BlockingIOError:
        raise JournalError(f"{path} is in use by another client or process") from None
    except (Damage, UnicodeDecodeError) as error:
        # The `sqlite3` module can't raise errors about names that aren't UTF-8.
        raise _damaged(path, str(error)) from error
    except _FAILURES as error:
        # SQLite raises these classes for a damaged file, and for tables that aren't ours.
        is_damage = type(error) in {sqlite3.DatabaseError, sqlite3.IntegrityError}
        if is_damage or getattr(error, "sqlite_errorname", "") == "SQLITE_ERROR":
            raise _damaged(path, str(error)) from error
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise JournalError(f"{path} can't be used: {reason}") from error


def _damaged(path: Path, reason: str) -> JournalError:
    return JournalError(
        f"{path} is damaged, or isn't a journal of swaps ({reason}); it wasn't changed. Keep it, "
        f"with all files whose names begin with {path.name}, to look up its swaps, and use a new "
        "journal with another name"
    )


def _missing(path: Path) -> JournalError:
    names = ", ".join(_traces(path))
    return JournalError(
        f"{path} is missing, and {names} shows that it existed: put the journal back. Only if all "
        f"of its swaps are known, remove {names}, and a new journal is created"
    )
