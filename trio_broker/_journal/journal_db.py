"""A journal's file: how it is created, checked, read and written.

It is an SQLite database in WAL mode with ``synchronous=FULL``, and has one row per swap.

- When `JournalFile.write` returns, everything it was given is on the disk. When it raises, all or
  nothing is, and writing the same again is safe.
- A fact changes only a row that is "unknown" and has the same attempt. A late fact never changes
  the row of another swap with the same ID.
- A row is only removed if its swap wasn't sent and another swap with the same ID replaces it.
- Only SQLite opens the database's file. POSIX releases all locks of a process on a file when *any*
  descriptor of it is closed, so reading it in another way would allow two writers.
- A file that is damaged, isn't a journal, or has a later version is never changed. It is checked as
  a whole with a read-only connection before it is opened for writing.
- A new file is created under another name and then linked, so it is never there incomplete.
- One process at a time writes. The lock is on a second file, and the system releases it when the
  process ends. Others may read meanwhile.

``synchronous=FULL`` asks the disk to store each commit durably; no program can do more. Network
file systems may not obey, and can't share a WAL. So a journal must be on a local disk.

The file shows what the account trades, so only its owner may read it. It contains no key: a row has
the host and a fingerprint of the key, by which a client finds its own rows.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, TypeAlias

import attrs

from trio_broker import lockfile
from trio_broker.exceptions import BrokerError, DuplicateClientOrderIdError, JournalError
from trio_broker.models import SwapIntent, SwapOutcome

Account: TypeAlias = tuple[str, str]
"""A broker's host and a key's fingerprint."""

APPLICATION_ID: Final = 0x7472626A
VERSION: Final = 1

# Characters. A broker's refusal may be a page of HTML.
_LONGEST_TEXT: Final = 1_000
# Bytes. No database is smaller. SQLite deletes the WAL of an empty file even when only reading.
_SMALLEST: Final = 512
_FAILURES: Final = (sqlite3.Error, OSError, MemoryError)

_SCHEMA: Final = f"""
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    BEGIN;
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {VERSION};
    CREATE TABLE swaps (
        number INTEGER PRIMARY KEY,
        host TEXT NOT NULL,
        key_fingerprint TEXT NOT NULL,
        client_order_id TEXT NOT NULL,
        attempt TEXT NOT NULL,
        amount_in TEXT NOT NULL,
        asset_in TEXT NOT NULL,
        asset_out TEXT NOT NULL,
        at TEXT NOT NULL,
        outcome TEXT NOT NULL,
        order_id TEXT,
        detail TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        UNIQUE (host, key_fingerprint, client_order_id)
    );
    COMMIT;
"""
_FOUND: Final = (
    "SELECT host, key_fingerprint, client_order_id, attempt, amount_in, asset_in, asset_out, at, "
    "outcome, order_id, detail, updated_at FROM swaps"
)
# How many order IDs of earlier processes are read.
MOST_KNOWN: Final = 10_000
_OPEN: Final = SwapOutcome.UNKNOWN.value
# The query excludes these, and so finds invalid outcomes too: a damaged row isn't ignored.
_CLOSED: Final = tuple(
    one.value for one in SwapOutcome if one not in {SwapOutcome.UNKNOWN, SwapOutcome.UNDER_WAY}
)


@attrs.frozen(kw_only=True)
class JournalRow(SwapIntent):
    """One swap in a journal.

    Attributes:
        host: The broker's host, with the port if it isn't the default.
        key_fingerprint: Identifies the API key: 16 hexadecimal digits of a digest.
        attempt: Identifies this use of the client order ID.
        outcome: The outcome. It is `SwapOutcome.UNKNOWN` also if nothing was noted after the
            intent: the swap was possibly sent.
        order_id: The broker's order ID, None if it is unknown.
        detail: The reason for the outcome. For a settled swap, the note of `settle_swap`.
        updated_at: When the outcome was noted, by the clock of that machine.
    """

    host: str
    key_fingerprint: str
    attempt: str
    outcome: SwapOutcome
    order_id: str | None
    detail: str
    updated_at: dt.datetime


def key_fingerprint(api_key: str) -> str:
    """The fingerprint that identifies an API key in a journal.

    Args:
        api_key: The API key.

    Returns:
        16 hexadecimal digits. They differ between keys, and don't reveal the key.
    """
    return hashlib.sha256(b"trio_broker journal key\0" + api_key.encode()).hexdigest()[:16]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!a} isn't a text")  # noqa: TRY004 - as for all bad values
    value.encode()  # Bytes that aren't UTF-8 were decoded as lone surrogates.
    return value


def _storable(text: str) -> str:
    """Make any text storable: a fact must not fail because of its text."""
    return text[:_LONGEST_TEXT].encode(errors="backslashreplace").decode()


def _positive(amount: Decimal) -> Decimal:
    if not (amount.is_finite() and amount > 0):
        raise ValueError(f"amount_in must be more than 0, and is {amount}")
    return amount


def _utc(at: dt.datetime) -> dt.datetime:
    if at.utcoffset() is None:
        raise ValueError(f"{at} has no time zone")
    return at.astimezone(dt.UTC)


@attrs.frozen(kw_only=True)
class Intent(SwapIntent):
    """A swap that is about to be sent.

    Raises:
        ValueError: A value can't be written.
    """

    attempt: str

    def __attrs_post_init__(self) -> None:
        """Check that every value can be written."""
        for text in (self.client_order_id, self.attempt, self.asset_in, self.asset_out):
            _text(text)
        _positive(self.amount_in)
        _utc(self.at)


@attrs.frozen(kw_only=True)
class Fact:
    """The outcome of a swap, as `SwapJournal.note` documents it."""

    client_order_id: str = attrs.field(converter=_storable)
    attempt: str = attrs.field(converter=_storable)
    outcome: SwapOutcome
    order_id: str | None = attrs.field(converter=attrs.converters.optional(_storable))
    detail: str = attrs.field(converter=_storable)
    at: dt.datetime = attrs.field(converter=_utc)

    def __str__(self) -> str:
        return f"swap {self.client_order_id} is {self.outcome}"


class JournalFile:
    """A file that is open for writing, for one account."""

    def __init__(self, path: Path, connection: sqlite3.Connection, account: Account) -> None:
        self._path = path
        self._connection = connection
        self._account = account
        self._identity = _identity(path)

    def unresolved(self) -> tuple[JournalRow, ...]:
        """The account's rows whose outcome is unknown, the oldest first."""
        with _journal_errors(self._path):
            found = self._connection.execute(
                f"{_FOUND} WHERE host = ? AND key_fingerprint = ? "
                f"AND outcome NOT IN ({', '.join('?' * len(_CLOSED))}) ORDER BY number",
                (*self._account, *_CLOSED),
            )
            return tuple(_row(self._path, values) for values in found)

    def known_orders(self) -> tuple[tuple[str, str], ...]:
        """Client order IDs and order IDs of the account's last confirmed swaps."""
        with _journal_errors(self._path):
            found = self._connection.execute(
                "SELECT client_order_id, order_id FROM swaps WHERE host = ? "
                "AND key_fingerprint = ? AND typeof(client_order_id) = 'text' "
                "AND typeof(order_id) = 'text' ORDER BY number DESC LIMIT ?",
                (*self._account, MOST_KNOWN),
            )
            return tuple((name, order_id) for name, order_id in found)

    def write(self, entries: Sequence[Intent | Fact]) -> list[BrokerError | None]:
        """Write entries in order, in one transaction.

        Returns:
            For each entry None, or why this intent was refused. The others are written.

        Raises:
            JournalError: The disk may have all of them, or none.
        """
        with _journal_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                refusals = [self._apply(entry) for entry in entries]
                self._check_identity()
                _commit(self._connection)
            except BaseException:
                # After a failed commit, the transaction may be open or not.
                with suppress(sqlite3.Error):
                    self._connection.rollback()
                raise
            return refusals

    def _apply(self, entry: Intent | Fact) -> BrokerError | None:
        if isinstance(entry, Intent):
            return self._insert(entry)
        self._change(entry)
        return None

    def _check_identity(self) -> None:
        """Refuse to write after the file was removed or replaced: SQLite wouldn't notice."""
        if _identity(self._path) != self._identity:
            raise OSError("another file has its name now")

    def _change(self, fact: Fact) -> None:
        # The broker's receipt also corrects a swap that was settled by hand.
        also = SwapOutcome.SETTLED.value if fact.outcome is SwapOutcome.CONFIRMED else _OPEN
        self._connection.execute(
            "UPDATE swaps SET outcome = ?, order_id = coalesce(?, order_id), detail = ?, "
            "updated_at = ? WHERE host = ? AND key_fingerprint = ? AND client_order_id = ? "
            "AND attempt = ? AND outcome IN (?, ?)",
            (
                fact.outcome.value, fact.order_id, fact.detail, fact.at.isoformat(),
                *self._account, fact.client_order_id, fact.attempt, _OPEN, also,
            ),
        )  # fmt: skip

    def _insert(self, intent: Intent) -> BrokerError | None:
        """Write an intent, or return why it is refused."""
        place = (*self._account, intent.client_order_id)
        which = "host = ? AND key_fingerprint = ? AND client_order_id = ?"
        for values in self._connection.execute(f"{_FOUND} WHERE {which}", place).fetchall():
            try:
                earlier = _row(self._path, values).outcome
            except JournalError as error:
                return error
            if earlier is not SwapOutcome.NOT_SENT:
                return DuplicateClientOrderIdError(intent.client_order_id, earlier.value)
            self._connection.execute(f"DELETE FROM swaps WHERE {which}", place)  # noqa: S608 - our own text
        at = _utc(intent.at).isoformat()
        self._connection.execute(
            "INSERT INTO swaps (host, key_fingerprint, client_order_id, attempt, amount_in, "
            "asset_in, asset_out, at, outcome, detail, updated_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?)",
            (
                *place, intent.attempt, str(intent.amount_in), intent.asset_in, intent.asset_out,
                at, _OPEN, at,
            ),
        )  # fmt: skip
        return None


def _commit(connection: sqlite3.Connection) -> None:
    """Commit. The tests replace this to simulate a failing disk."""
    connection.execute("COMMIT")


# --- The file -------------------------------------------------------------------------------


@contextmanager
def open_file(path: Path, account: Account, busy: float) -> Iterator[JournalFile]:
    """Open a journal's file for writing; it is created if it doesn't exist."""
    with ExitStack() as stack:
        with _journal_errors(path):
            path = path.resolve()
            if not path.parent.is_dir():
                raise JournalError(f"{path} can't be created: there is no such directory")
            if path.exists():
                _check_file(path)
            stack.enter_context(lockfile.held(path))
            if not path.exists():
                _create(path)
            with _reader(path, busy):
                pass
            connection = stack.enter_context(closing(_connect(path, "rw", busy)))
            connection.execute("PRAGMA synchronous = FULL")
            # On macOS a plain fsync may leave data in the cache of the disk.
            connection.execute("PRAGMA fullfsync = ON")
            file = JournalFile(path, connection, account)
        yield file


def read_file(path: Path, busy: float) -> tuple[JournalRow, ...]:
    """Read all rows of a file, of every account, the oldest first."""
    with _journal_errors(path):
        path = path.resolve()
        if not path.exists():
            raise JournalError(f"{path} doesn't exist")
        with _reader(path, busy) as connection:
            found = connection.execute(f"{_FOUND} ORDER BY number")
            return tuple(_row(path, values) for values in found)


def _connect(path: Path, mode: str, busy: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=busy, isolation_level=None
    )
    # Bytes that aren't UTF-8 are found later by `_text`, so that the error can name the row.
    connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    return connection


def _check_file(path: Path) -> None:
    """Refuse a file that SQLite must not even open."""
    # Not by reading it: that would release SQLite's locks on it.
    size = path.stat().st_size
    if not path.is_file():
        raise JournalError(f"{path} isn't a file")
    if size < _SMALLEST:
        raise _refusal(path, f"it has {size} bytes")


@contextmanager
def _reader(path: Path, busy: float) -> Iterator[sqlite3.Connection]:
    """Open a read-only connection, and check the whole file."""
    _check_file(path)
    with closing(_connect(path, "ro", busy)) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise JournalError(f"{path} is a database, but not a journal of swaps")
        if version != VERSION:
            raise JournalError(
                f"{path} has version {version}; this library supports version {VERSION}"
            )
        # The quick check would not find that an index has lost a row, and with it a swap that must
        # not be sent again.
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise _refusal(path, str(found))
        yield connection


def _create(path: Path) -> None:
    """Create an empty journal, unless the file exists by now."""
    # The name is always the same, so that the rest of a killed process is removed here.
    made = path.with_name(f".{path.name}.new")
    _remove(made)
    os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(sqlite3.connect(made, isolation_level=None)) as connection:
            connection.executescript(_SCHEMA)
        with made.open("rb+") as file:
            os.fsync(file.fileno())
        try:
            path.hardlink_to(made)
        except FileExistsError:
            pass
        except OSError:
            # Not every file system has links. Without them, only the lock prevents a second file.
            made.rename(path)
    finally:
        _remove(made)
    _sync_directory(path.parent)


def _remove(database: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
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


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


# --- Values and errors ----------------------------------------------------------------------


def _row(path: Path, values: Sequence[object]) -> JournalRow:
    host, key, name, attempt, amount, sold, bought, at, outcome, order, detail, updated = values
    try:
        return JournalRow(
            host=_text(host),
            key_fingerprint=_text(key),
            client_order_id=_text(name),
            attempt=_text(attempt),
            amount_in=_amount(_text(amount)),
            asset_in=_text(sold),
            asset_out=_text(bought),
            at=_utc(dt.datetime.fromisoformat(_text(at))),
            outcome=_outcome(_text(outcome)),
            order_id=None if order is None else _text(order),
            detail=_text(detail),
            updated_at=_utc(dt.datetime.fromisoformat(_text(updated))),
        )
    except (ValueError, OverflowError) as error:
        raise _refusal(path, f"swap {name!a}: {error}") from error


def _amount(text: str) -> Decimal:
    try:
        return _positive(Decimal(text))
    except InvalidOperation:
        raise ValueError(f"{text!a} isn't a number") from None


def _outcome(text: str) -> SwapOutcome:
    outcome = SwapOutcome(text)
    if outcome is SwapOutcome.UNDER_WAY:
        raise ValueError(f"the outcome {text!r} is never stored")
    return outcome


@contextmanager
def _journal_errors(path: Path) -> Iterator[None]:
    """Raise a `JournalError` for everything that is wrong with a file."""
    try:
        yield
    except BlockingIOError:
        raise JournalError(f"{path} is in use by another client or process") from None
    except _FAILURES as error:
        # For a damaged file, SQLite raises the base class of its errors.
        if type(error) is sqlite3.DatabaseError:
            raise _refusal(path, str(error)) from error
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise JournalError(f"{path} can't be used: {reason}") from error


def _refusal(path: Path, reason: str) -> JournalError:
    return JournalError(
        f"{path} is damaged, or isn't a journal of swaps ({reason}); it wasn't changed. Keep it, "
        f"with {path.name}-wal if it exists, to look up its swaps, and use a new journal with "
        "another name"
    )
