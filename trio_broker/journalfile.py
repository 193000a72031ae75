"""A journal's file: what is in it, and how it is made, looked at, read and written.

It is an SQLite database in WAL mode under ``synchronous=FULL``, with one row a swap. The laws of
this file:

- What `JournalFile.write` is given is on the disk as a whole when it returns; when it raises, the
  disk may have it or not, and giving it again changes nothing twice.
- A fact applies to a row that is "unknown" and of the same attempt, or not at all: what comes late
  changes nothing that another swap under the same id has written.
- Nothing is ever removed but a swap that wasn't sent, by another one under its id.
- Nobody but SQLite opens the database's file: POSIX frees all of a process's locks on a file once
  *any* descriptor of it is closed, so a look into it would let two processes write at once.
- A file that isn't a journal, is damaged, or is a later version's is left as it is. All of it is
  looked at, through a connection that can't write, before one that can is opened.
- A new file is made under another name and then linked to its own, so that it is there as a whole
  or not at all.
- One process at a time writes. The lock is a file of its own, as in the sandbox's state; it is the
  system's, so it goes with its process. Anybody may read meanwhile.

That a killed process leaves what it had written shows the order of the writes. It doesn't show that
a disk keeps what it said it keeps: ``synchronous=FULL`` asks for that at each commit, and nobody
can do more than ask. A file system over a network may say so without doing it, and can't share a
WAL: a journal belongs on a local disk.

The file tells what the account trades, so only its owner may read it. No key is in it: a row has
the host and a fingerprint of the key, by which a client knows the rows that are its own.
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
from trio_broker.models import SwapOutcome

Account: TypeAlias = tuple[str, str]
"""A broker's host and a key's fingerprint."""

APPLICATION_ID: Final = 0x7472626A
VERSION: Final = 1

# Characters. A broker's refusal may be a page of HTML.
_LONGEST_TEXT: Final = 1_000
# Bytes. No database is smaller; and SQLite deletes the WAL of an empty one, even if told to read.
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
_OPEN: Final = SwapOutcome.UNKNOWN.value
# What no swap ends with is asked for too, so that a damaged row is told and not passed over.
_CLOSED: Final = tuple(
    one.value for one in SwapOutcome if one not in {SwapOutcome.UNKNOWN, SwapOutcome.UNDER_WAY}
)


@attrs.frozen(kw_only=True)
class JournalRow:
    """What a journal says of one swap.

    Attributes:
        host: The broker's host, with its port where it isn't the usual one.
        key_fingerprint: Which API key it was asked for with: 16 hexadecimal digits of a digest.
        client_order_id: The id that went along with it.
        attempt: Which use of the id it was.
        amount_in: How much was to be sold.
        asset_in: The asset that was to be sold.
        asset_out: The asset that was to be bought.
        at: When it was asked for, by that machine's clock.
        outcome: What is known; `SwapOutcome.UNKNOWN` also where nothing was noted after the
            intent: it may have left.
        order_id: The order's id at the broker, None where it isn't known.
        detail: Why the outcome is what it is, in words; for a settled one what its closer wrote.
        updated_at: When that was noted, by that machine's clock.
    """

    host: str
    key_fingerprint: str
    client_order_id: str
    attempt: str
    amount_in: Decimal
    asset_in: str
    asset_out: str
    at: dt.datetime
    outcome: SwapOutcome
    order_id: str | None
    detail: str
    updated_at: dt.datetime


def key_fingerprint(api_key: str) -> str:
    """What stands for an API key in a journal.

    Args:
        api_key: The API key.

    Returns:
        16 hexadecimal digits: two keys have different ones, and none leads back to its key.
    """
    return hashlib.sha256(b"trio_broker journal key\0" + api_key.encode()).hexdigest()[:16]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!a} isn't a text")  # noqa: TRY004 - it is the file's
    value.encode()  # What wasn't UTF-8 has become lone surrogates.
    return value


def _storable(text: str) -> str:
    """A text that can be written, whatever is in it: a fact must not fail because of its words."""
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
class Intent:
    """A swap that is about to be sent; the constructor's `ValueError` says what can't be written.

    Attributes:
        client_order_id: The id that will go along with it.
        attempt: Which use of the id it is.
        amount_in: How much is to be sold, more than 0.
        asset_in: The asset that is to be sold.
        asset_out: The asset that is to be bought.
        at: When it was asked for; an aware datetime.
    """

    client_order_id: str = attrs.field(converter=_text)
    attempt: str = attrs.field(converter=_text)
    amount_in: Decimal = attrs.field(converter=_positive)
    asset_in: str = attrs.field(converter=_text)
    asset_out: str = attrs.field(converter=_text)
    at: dt.datetime = attrs.field(converter=_utc)


@attrs.frozen(kw_only=True)
class Fact:
    """What has become known of a swap.

    Attributes:
        client_order_id: The id that went along with it.
        attempt: Which use of the id it was.
        outcome: What is known.
        order_id: The order's id at the broker, None to leave the one that is written.
        detail: Why, in words; the first 1,000 characters.
        at: When it was noted; an aware datetime.
    """

    client_order_id: str = attrs.field(converter=_storable)
    attempt: str = attrs.field(converter=_storable)
    outcome: SwapOutcome
    order_id: str | None = attrs.field(converter=attrs.converters.optional(_storable))
    detail: str = attrs.field(converter=_storable)
    at: dt.datetime = attrs.field(converter=_utc)

    def __str__(self) -> str:
        return f"swap {self.client_order_id} is {self.outcome}"


class JournalFile:
    """A file that is open for writing, for one account.

    Args:
        path: Where it is.
        connection: The connection to it.
        account: The account.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, account: Account) -> None:
        self._path = path
        self._connection = connection
        self._account = account
        self._identity = _identity(path)

    def unresolved(self) -> tuple[JournalRow, ...]:
        """The account's rows whose outcome is unknown, the oldest first.

        Raises:
            JournalError: They can't be read, or a value in one of them can't be one.
        """
        with _told(self._path):
            found = self._connection.execute(
                f"{_FOUND} WHERE host = ? AND key_fingerprint = ? "
                f"AND outcome NOT IN ({', '.join('?' * len(_CLOSED))}) ORDER BY number",
                (*self._account, *_CLOSED),
            )
            return tuple(_row(self._path, values) for values in found)

    def write(self, entries: Sequence[Intent | Fact]) -> list[BrokerError | None]:
        """Have the disk take entries, in their order: all of them, or none.

        Args:
            entries: Intents and facts.

        Returns:
            For each entry None, or why an intent was refused, which leaves the others be.

        Raises:
            JournalError: They couldn't be written, as far as is known.
        """
        with _told(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                refusals = [self._apply(entry) for entry in entries]
                self._check_identity()
                _commit(self._connection)
            except BaseException:
                # A commit that failed may have left it open, or ended it.
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
        """Refuse to write into a file that nobody would find: SQLite goes on without its name."""
        if _identity(self._path) != self._identity:
            raise OSError("another file has its name now")

    def _change(self, fact: Fact) -> None:
        # Whoever has closed it by hand was wrong if the broker's receipt comes after all.
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
        """Write an intent, or say why it mustn't be."""
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
        self._connection.execute(
            "INSERT INTO swaps (host, key_fingerprint, client_order_id, attempt, amount_in, "
            "asset_in, asset_out, at, outcome, detail, updated_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?)",
            (
                *place, intent.attempt, str(intent.amount_in), intent.asset_in, intent.asset_out,
                intent.at.isoformat(), _OPEN, intent.at.isoformat(),
            ),
        )  # fmt: skip
        return None


def _commit(connection: sqlite3.Connection) -> None:
    """Have the disk take what the transaction has written."""
    connection.execute("COMMIT")


# --- As a whole -----------------------------------------------------------------------------


@contextmanager
def open_file(path: Path, account: Account, busy: float) -> Iterator[JournalFile]:
    """A journal's file for as long as the block lasts; it is made if it isn't there.

    Args:
        path: The file.
        account: Whose swaps are written.
        busy: Seconds to wait for whoever has it locked, by SQLite's means.

    Raises:
        JournalError: It can't be made, read or written, it is in use, it isn't a journal, or it
            is damaged.
    """
    with ExitStack() as stack:
        with _told(path):
            path = path.resolve()
            if not path.parent.is_dir():
                raise JournalError(f"{path} can't be made: it has no directory to be in")
            if path.exists():
                _check_file(path)
            stack.enter_context(_held(path))
            if not path.exists():
                _create(path)
            with _reader(path, busy):
                pass
            connection = stack.enter_context(closing(_connect(path, "rw", busy)))
            connection.execute("PRAGMA synchronous = FULL")
            # On macOS a plain fsync leaves things in the disk's own memory.
            connection.execute("PRAGMA fullfsync = ON")
            file = JournalFile(path, connection, account)
        yield file


def read_file(path: Path, busy: float) -> tuple[JournalRow, ...]:
    """All rows of a file, of every account, the oldest first.

    Args:
        path: The file.
        busy: Seconds to wait for whoever has it locked, by SQLite's means.

    Raises:
        JournalError: It isn't there, can't be read, isn't a journal, or is damaged.
    """
    with _told(path):
        path = path.resolve()
        if not path.exists():
            raise JournalError(f"{path} isn't there")
        with _reader(path, busy) as connection:
            found = connection.execute(f"{_FOUND} ORDER BY number")
            return tuple(_row(path, values) for values in found)


def _connect(path: Path, mode: str, busy: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=busy, isolation_level=None
    )
    # So that a text that isn't one is found in its row, which can be named.
    connection.text_factory = _text_of
    return connection


def _text_of(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _check_file(path: Path) -> None:
    """Refuse what SQLite must not even open.

    Raises:
        JournalError: It isn't a file, or is too short.
        OSError: It isn't there.
    """
    # Not by reading its beginning: that would free the locks that SQLite has on it.
    size = path.stat().st_size
    if not path.is_file():
        raise JournalError(f"{path} isn't a file")
    if size < _SMALLEST:
        raise _refusal(path, f"it has {size} bytes")


@contextmanager
def _reader(path: Path, busy: float) -> Iterator[sqlite3.Connection]:
    """A connection that can't write, to a journal that is whole."""
    _check_file(path)
    with closing(_connect(path, "ro", busy)) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise JournalError(f"{path} is a database, and not a journal of swaps")
        if version != VERSION:
            raise JournalError(
                f"{path} is of version {version}; this library takes up version {VERSION}"
            )
        # The whole check: the quick one passes over an index that has lost a row, and with it a
        # swap that must not be sent again.
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise _refusal(path, str(found))
        yield connection


def _create(path: Path) -> None:
    """Make an empty journal; a file that is there by now is left as it is."""
    # Always the same name, so that what a killed process has left of it is found here.
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
            # Not every file system has links. On those the lock alone keeps another journal off.
            made.rename(path)
    finally:
        _remove(made)
    _sync_directory(path.parent)


def _remove(database: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        database.with_name(f"{database.name}{end}").unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Have the disk take a name: a file whose name is lost is lost."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such call; there the name is the file system's own care.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lockfile.held(path))
        except BlockingIOError:
            raise JournalError(f"{path} is in use by another client or process") from None
        yield


# --- Its values, and its errors -------------------------------------------------------------


def _row(path: Path, values: Sequence[object]) -> JournalRow:
    """A row of the file.

    Raises:
        JournalError: A value can't be one.
    """
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
        raise ValueError(f"no file can know that a swap is {text}")
    return outcome


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file is a `JournalError`."""
    try:
        yield
    except _FAILURES as error:
        # What SQLite says of a damaged file has no class of its own: it has the others' base.
        if type(error) is sqlite3.DatabaseError:
            raise _refusal(path, str(error)) from error
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise JournalError(f"{path} can't be used: {reason}") from error


def _refusal(path: Path, reason: str) -> JournalError:
    return JournalError(
        f"{path} is damaged, or isn't a journal of swaps ({reason}); it is left as it is. Keep it, "
        f"with its {path.name}-wal if there is one, to look up what it knows, and begin another "
        "journal under another name"
    )
