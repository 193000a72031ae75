"""The journal's file: atomic creation and writes, and checks of existing files."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.journal import version_1
from trio_broker import lockfile
from trio_broker._journal import entries, journal_db
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
from trio_broker.exceptions import BrokerError, DuplicateClientOrderIdError, JournalError
from trio_broker.models import SwapIntent, SwapOutcome

AT = dt.datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=dt.UTC)
LATER = AT + dt.timedelta(seconds=1)
ACCOUNT: Account = ("broker.example", key_fingerprint("alice"))
BUSY = 10.0
S = SwapOutcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "swaps.journal"


def intent(client_order_id: str = "c1", attempt: str = "a1", **changes: Any) -> Intent:
    values = {
        "client_order_id": client_order_id,
        "amount_in": Decimal("1.50"),
        "asset_in": "ETH",
        "asset_out": "USDT",
        "at": AT,
        **changes,
    }
    return new_intent(SwapIntent(**values), attempt)


def fact(
    outcome: SwapOutcome,
    client_order_id: str = "c1",
    attempt: str = "a1",
    order_id: str | None = None,
    detail: str = "",
) -> Fact:
    return new_fact(client_order_id, attempt, outcome, order_id=order_id, detail=detail, at=LATER)


def opened(path: Path, account: Account = ACCOUNT) -> Any:
    return open_file(path, account, BUSY)


def write(path: Path, *entries: Intent | Fact, account: Account = ACCOUNT) -> None:
    with opened(path, account) as file:
        assert file.write(entries) == [None] * len(entries)


def recorded(path: Path) -> list[tuple[str, str, str]]:
    return [(row.client_order_id, row.attempt, row.outcome.value) for row in read_file(path, BUSY)]


def execute(path: Path, *statements: str) -> None:
    with database(path) as connection:
        for sql in statements:
            connection.execute(sql)


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of the files that SQLite must not change."""
    names = (f"{path.name}{end}" for end in ("", "-journal", "-wal"))
    files = (path.with_name(name) for name in names)
    return {one.name: one.read_bytes() for one in files if one.is_file()}


def leftover_files(path: Path) -> list[Path]:
    return list(path.parent.glob(".*"))


# ---- Rows


def test_row_has_all_that_was_written(path: Path) -> None:
    at = AT.astimezone(dt.timezone(dt.timedelta(hours=5)))
    write(path, intent(amount_in=Decimal("1E+3"), at=at))
    write(path, fact(S.CONFIRMED, order_id="o1", detail="it's “done”"))
    assert read_file(path, BUSY) == (
        JournalRow(
            host="broker.example",
            key_fingerprint=key_fingerprint("alice"),
            client_order_id="c1",
            attempt="a1",
            amount_in=Decimal(1000),
            asset_in="ETH",
            asset_out="USDT",
            at=AT,
            outcome=S.CONFIRMED,
            order_id="o1",
            detail="it's “done”",
            updated_at=LATER,
        ),
    )
    assert read_file(path, BUSY)[0].at.tzinfo is dt.UTC


@pytest.mark.parametrize("amount", ["0.1", "1.50", "1E-18", "1E+30", "9" * 60 + "." + "1" * 60])
def test_amount_is_read_as_it_was_written(path: Path, amount: str) -> None:
    write(path, intent(amount_in=Decimal(amount)))
    assert str(read_file(path, BUSY)[0].amount_in) == amount


def test_intent_alone_is_unknown_since_its_time(path: Path) -> None:
    write(path, intent())
    (row,) = read_file(path, BUSY)
    assert (row.outcome, row.order_id, row.detail, row.updated_at) == (S.UNKNOWN, None, "", AT)


def test_unfinished_new_file_of_a_killed_process_is_removed(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        path.with_name(f".{path.name}.new{end}").write_bytes(b"half of it")
    write(path, intent("c1"))
    assert recorded(path) == [("c1", "a1", "unknown")]
    assert {one.name for one in path.parent.iterdir() if ".new" in one.name} == set()


def test_rows_come_in_the_order_of_their_intents(path: Path) -> None:
    # The clock doesn't matter.
    write(path, intent("z", at=LATER), intent("a"), intent("m"))
    assert [row[0] for row in recorded(path)] == ["z", "a", "m"]


def test_fact_changes_only_the_unknown_row_of_its_attempt(path: Path) -> None:
    write(path, intent("c1"), intent("c2"))
    write(path, fact(S.UNKNOWN, "c1", detail="no reply", order_id="o1"))
    (row, _) = read_file(path, BUSY)
    assert (row.outcome, row.detail, row.order_id) == (S.UNKNOWN, "no reply", "o1")
    write(path, fact(S.CONFIRMED, "c1"), fact(S.NOT_SENT, "c2", "another attempt"))
    assert recorded(path) == [("c1", "a1", "confirmed"), ("c2", "a1", "unknown")]
    (row, _) = read_file(path, BUSY)
    assert (row.detail, row.order_id) == ("", "o1")
    write(path, fact(S.NOT_SENT, "c1"), fact(S.SETTLED, "c1"), fact(S.UNKNOWN, "c3"))
    assert recorded(path) == [("c1", "a1", "confirmed"), ("c2", "a1", "unknown")]


def test_settled_swap_is_corrected_only_by_a_receipt(path: Path) -> None:
    write(path, intent("c1"), fact(S.SETTLED, "c1", detail="it never arrived"))
    write(path, fact(S.REFUSED, "c1"), fact(S.NOT_SENT, "c1"), fact(S.UNKNOWN, "c1"))
    assert recorded(path) == [("c1", "a1", "settled")]
    write(path, fact(S.CONFIRMED, "c1", order_id="o1", detail="closed by hand before"))
    assert recorded(path) == [("c1", "a1", "confirmed")]


def test_fact_is_written_whatever_characters_it_has(path: Path) -> None:
    write(path, intent(), fact(S.REFUSED, order_id="\udcff", detail="\0\ud800" + "x" * 5000))
    (row,) = read_file(path, BUSY)
    assert (row.order_id, row.detail) == ("\\udcff", "\0\\ud800" + "x" * 998)


@pytest.mark.parametrize(
    "change",
    [
        {"amount_in": Decimal(0)},
        {"amount_in": Decimal(-1)},
        {"amount_in": Decimal("NaN")},
        {"amount_in": Decimal("Infinity")},
        {"asset_in": "\ud800"},
        {"attempt": None},
        {"at": AT.replace(tzinfo=None)},
    ],
    ids=str,
)
def test_intent_that_could_not_be_read_again_is_rejected(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        intent(**change)


@pytest.mark.parametrize("outcome", [S.UNKNOWN, S.CONFIRMED, S.REFUSED, S.SETTLED])
def test_id_is_used_once(path: Path, outcome: SwapOutcome) -> None:
    with opened(path) as file:
        file.write([intent(), fact(outcome)])
        other, again = file.write([intent("c2"), intent(attempt="a2")])
        assert other is None
        assert isinstance(again, DuplicateClientOrderIdError)
        assert (again.client_order_id, again.outcome) == ("c1", outcome.value)
    assert recorded(path) == [("c1", "a1", outcome.value), ("c2", "a1", "unknown")]


def test_id_is_used_once_within_one_write_too(path: Path) -> None:
    with opened(path) as file:
        first, second = file.write([intent(), intent(attempt="a2")])
    assert first is None
    assert isinstance(second, DuplicateClientOrderIdError)


def test_unsent_swap_can_be_attempted_again(path: Path) -> None:
    write(path, intent(), intent("c2"), fact(S.NOT_SENT), intent(attempt="a2"))
    # A late fact of the first attempt.
    write(path, fact(S.NOT_SENT))
    assert recorded(path) == [("c2", "a1", "unknown"), ("c1", "a2", "unknown")]


@pytest.mark.parametrize(
    "account", [("sandbox:1", ACCOUNT[1]), (ACCOUNT[0], key_fingerprint("bob"))]
)
def test_accounts_have_rows_of_their_own(path: Path, account: Account) -> None:
    write(path, intent())
    with opened(path, account) as file:
        assert file.unresolved == ()
        assert file.write([intent(), fact(S.CONFIRMED)]) == [None, None]
    with opened(path) as file:
        assert [row.outcome for row in file.unresolved] == [S.UNKNOWN]
    assert len(recorded(path)) == 2


def test_unresolved_rows_are_the_unknown_ones(path: Path) -> None:
    outcomes = [one for one in S if one is not S.UNDER_WAY]
    for number, outcome in enumerate(outcomes):
        write(path, intent(f"c{number}"), fact(outcome, f"c{number}"))
    write(path, intent("bare"))
    with opened(path) as file:
        assert [row.client_order_id for row in file.unresolved] == [
            f"c{outcomes.index(S.UNKNOWN)}",
            "bare",
        ]


def test_last_resolved_rows_are_known(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_db, "MOST_KNOWN", 6)
    for number in range(5):
        name = f"c{number}"
        write(path, intent(name), fact(S.CONFIRMED, name, order_id=f"o{number}"))
    write(path, intent("refused"), fact(S.REFUSED, "refused", detail="no"))
    write(path, intent("not sent"), fact(S.NOT_SENT, "not sent"))
    write(path, intent("settled"), fact(S.UNKNOWN, "settled"), fact(S.SETTLED, "settled"))
    other = ("another.example", ACCOUNT[1])
    write(path, intent("c9"), fact(S.CONFIRMED, "c9", order_id="o9"), account=other)
    with opened(path) as file:
        assert [
            (row.client_order_id, row.outcome, row.order_id, row.detail) for row in file.resolved
        ] == [
            ("c2", S.CONFIRMED, "o2", ""),
            ("c3", S.CONFIRMED, "o3", ""),
            ("c4", S.CONFIRMED, "o4", ""),
            ("refused", S.REFUSED, None, "no"),
            ("settled", S.SETTLED, None, ""),
        ]


def test_row_that_is_resolved_late_may_be_too_old_to_be_known(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_db, "MOST_KNOWN", 1)
    write(path, intent("c1"))
    write(path, intent("c2"), fact(S.REFUSED, "c2"))
    write(path, fact(S.SETTLED, "c1"))
    with opened(path) as file:
        assert file.resolved == ()
    write(path, intent("c3"), fact(S.REFUSED, "c3"))
    with opened(path) as file:
        assert [row.client_order_id for row in file.resolved] == ["c3"]


def test_resolved_row_is_that_of_the_last_intent(path: Path) -> None:
    write(path, intent("c1"), fact(S.NOT_SENT, "c1"))
    write(path, intent("c2"), fact(S.REFUSED, "c2"))
    again = intent("c1", attempt="a2")
    write(path, again, fact(S.CONFIRMED, "c1", attempt="a2", order_id="o1"))
    write(path, fact(S.REFUSED, "c1", attempt="a1"))
    with opened(path) as file:
        assert [(row.client_order_id, row.attempt, row.order_id) for row in file.resolved] == [
            ("c2", "a1", None),
            ("c1", "a2", "o1"),
        ]


def test_ids_with_the_same_number_are_not_confused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (entries, journal_db):
        monkeypatch.setattr(module, "number_of", lambda *_: 7)
    write(path, intent())
    with opened(path) as file, pytest.raises(JournalError, match="belongs to another swap"):
        file.write([intent("c2")])


def test_fingerprint_is_a_digest_of_the_key() -> None:
    # Rows of earlier versions must still be found.
    assert key_fingerprint("alice") == "88279aa65e8ebd88"
    assert key_fingerprint("alice") != key_fingerprint("bob")


def test_no_key_is_in_the_file(path: Path) -> None:
    write(path, intent(), account=("broker.example", key_fingerprint("alice-the-key")))
    assert b"alice" not in path.read_bytes()


# ---- Atomic writes


def test_write_is_made_as_a_whole_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    write(path, intent("before"))
    with opened(path) as file:
        with monkeypatch.context() as patch:
            patch.setattr(journal_db, "_commit", fail)
            with pytest.raises(JournalError, match="disk I/O error"):
                file.write([fact(S.CONFIRMED, "before"), intent()])
        assert recorded(path) == [("before", "a1", "unknown")]
        file.write([intent()])
    assert recorded(path) == [("before", "a1", "unknown"), ("c1", "a1", "unknown")]


def test_failed_commit_can_be_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")
        raise OSError("I/O error")

    entries = [fact(S.UNKNOWN, detail="no reply"), fact(S.CONFIRMED, order_id="o1")]
    with opened(path) as file:
        file.write([intent()])
        with monkeypatch.context() as patch:
            patch.setattr(journal_db, "_commit", fail)
            with pytest.raises(JournalError, match="I/O error"):
                file.write(entries)
        once = read_file(path, BUSY)
        file.write(entries)
    assert read_file(path, BUSY) == once
    assert (once[0].outcome, once[0].order_id) == (S.CONFIRMED, "o1")


def test_other_exceptions_pass_through_and_write_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        raise KeyboardInterrupt

    with opened(path) as file:
        with monkeypatch.context() as patch:
            patch.setattr(journal_db, "_commit", fail)
            with pytest.raises(KeyboardInterrupt):
                file.write([intent()])
        assert file.write([intent(attempt="a2")]) == [None]
    assert recorded(path) == [("c1", "a2", "unknown")]


def test_each_commit_is_forced_to_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[object] = []

    def commit(connection: sqlite3.Connection) -> None:
        for name in ("journal_mode", "synchronous", "fullfsync", "busy_timeout"):
            settings.extend(connection.execute(f"PRAGMA {name}").fetchone())
        connection.execute("COMMIT")

    monkeypatch.setattr(journal_db, "_commit", commit)
    write(path, intent())
    assert settings == [b"delete", 3, 1, BUSY * 1000]


def test_database_without_a_rollback_journal_is_rejected() -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(OSError, match="uses it"),
    ):
        journal_db._make_durable(connection)


def test_full_disk_rejects_a_write_and_keeps_the_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = JournalFile.write

    def limited(file: JournalFile, entries: Any) -> list[BrokerError | None]:
        file._connection.execute(f"PRAGMA max_page_count = {next(limits)}")
        return real(file, entries)

    many = [intent(f"c{number}") for number in range(100)]
    write(path, intent())
    with opened(path) as file:
        pages = file._connection.execute("PRAGMA page_count").fetchone()[0]
        limits = iter([pages, 1_000_000])
        monkeypatch.setattr(JournalFile, "write", limited)
        with pytest.raises(JournalError, match="disk is full"):
            file.write([fact(S.CONFIRMED), *many])
        assert recorded(path) == [("c1", "a1", "unknown")]
        file.write([fact(S.CONFIRMED)])
    assert recorded(path) == [("c1", "a1", "confirmed")]


def test_locked_file_is_waited_for_and_then_rejected(path: Path) -> None:
    with open_file(path, ACCOUNT, 0.01) as file:
        file.write([intent()])
        with database(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalError, match="locked"):
                file.write([fact(S.CONFIRMED)])
        file.write([fact(S.CONFIRMED)])
    assert recorded(path) == [("c1", "a1", "confirmed")]


@pytest.mark.parametrize("replaced", [False, True])
def test_file_that_lost_its_name_is_not_written_to(path: Path, replaced: bool) -> None:
    with opened(path) as file:
        file.write([intent()])
        path.rename(path.with_name("away"))
        if replaced:
            path.write_bytes(b"another one")
        with pytest.raises(JournalError, match="was removed or replaced"):
            file.write([intent("c2")])
        path.with_name("away").rename(path)
        assert file.write([intent("c3")]) == [None]
    assert [row[0] for row in recorded(path)] == ["c1", "c3"]


# ---- Creating a file


def test_new_file_is_empty_and_readable_by_its_owner_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def commit(connection: sqlite3.Connection) -> None:
        seen.extend(sorted(one.name for one in path.parent.iterdir()))
        assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}
        connection.execute("COMMIT")

    monkeypatch.setattr(journal_db, "_commit", commit)
    with opened(path) as file:
        assert file.unresolved == ()
        file.write([intent()])
    assert seen == [path.name, f"{path.name}-journal", f"{path.name}.lock"]
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]
    with database(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0x7472626A,)
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("name", ["a b?c#d%e&mode=memory", "ü", ":memory:"])
def test_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, intent())
    assert (tmp_path / name).stat().st_size
    assert len(recorded(tmp_path / name)) == 1


def test_symbolic_link_is_followed(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    write(path, intent())
    assert path.is_symlink()
    assert recorded(path) == recorded(path.with_name("elsewhere")) == [("c1", "a1", "unknown")]
    # The lock is the same under the other name.
    with (
        opened(path),
        pytest.raises(JournalError, match="in use"),
        opened(path.with_name("elsewhere")),
    ):
        pass


@pytest.mark.parametrize(
    "where",
    ["os.truncate", "pathlib.Path.unlink", "os.fsync", "sqlite3.connect", "pathlib.Path.rename"],
)
def test_new_file_appears_as_a_whole_or_not_at_all(
    path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(where, die)
        with pytest.raises(JournalError, match="killed"), opened(path):
            pass
    assert not path.exists()
    assert path.with_name(f".{path.name}.new").exists()
    with pytest.raises(JournalError, match="doesn't exist"):
        read_file(path, BUSY)
    # The lock file alone would mean that the journal is lost.
    write(path, intent())
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_file_that_exists_by_now_is_not_created_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lockfile.held

    @contextmanager
    def held(file: Path) -> Iterator[None]:
        monkeypatch.setattr(lockfile, "held", real)
        write(path, intent())  # another process is faster
        with real(file):
            yield

    monkeypatch.setattr(lockfile, "held", held)
    with opened(path) as file:
        assert [row.client_order_id for row in file.unresolved] == ["c1"]
    assert leftover_files(path) == []


def test_names_of_a_new_file_are_forced_to_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[list[str]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        assert os.readlink(f"/proc/self/fd/{descriptor}") == str(path.parent)
        forced.append(sorted(one.name for one in path.parent.iterdir()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(path, intent())
    assert forced == [[f".{path.name}.new"], [path.name, f"{path.name}.lock"]]


def test_directory_that_cannot_be_opened_is_not_forced_to_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECTORY")
    write(path, intent())
    assert len(recorded(path)) == 1


def test_error_names_a_path_that_cannot_be_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JournalError, match="no such directory"), opened(path / "a" / "b"):
        pass
    path.mkdir()
    with pytest.raises(JournalError, match="isn't a file"), opened(path):
        pass
    with pytest.raises(JournalError, match="isn't a file"):
        read_file(path, BUSY)
    assert list(path.parent.iterdir()) == [path]
    assert list(path.iterdir()) == []

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(JournalError, match="Permission denied") as caught,
        opened(path / "new"),
    ):
        pass
    assert str(path / "new") in str(caught.value)


# ---- Concurrent use


def test_second_writer_is_rejected_until_the_first_has_closed(path: Path) -> None:
    with opened(path) as file:
        with pytest.raises(JournalError, match="in use"), opened(path):
            pass
        file.write([intent()])
        # Reading needs no lock.
        assert len(recorded(path)) == 1
        file.write([intent("c2")])
        with pytest.raises(JournalError, match="in use"), opened(path):
            pass
    with opened(path) as file:
        assert len(file.unresolved) == 2


def test_without_locks_two_writers_are_safe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = JournalFile._apply

    def apply(file: JournalFile, tail: Any, entry: Intent | Fact) -> BrokerError | None:
        if file is one:
            # Between its read and its write.
            with pytest.raises(JournalError, match="locked"):
                other.write([intent(attempt="a2")])
        return real(file, tail, entry)

    monkeypatch.setattr(lockfile, "held", lambda _: nullcontext())
    monkeypatch.setattr(JournalFile, "_apply", apply)
    with opened(path) as one, open_file(path, ACCOUNT, 0.01) as other:
        assert one.write([intent()]) == [None]
        (refusal,) = other.write([intent(attempt="a2")])
        assert isinstance(refusal, DuplicateClientOrderIdError)
        assert other.write([intent("c2")]) == [None]
    assert recorded(path) == [("c1", "a1", "unknown"), ("c2", "a1", "unknown")]


def test_reading_creates_no_file(path: Path) -> None:
    with pytest.raises(JournalError, match="doesn't exist"):
        read_file(path, BUSY)
    assert list(path.parent.iterdir()) == []


# ---- Invalid files aren't changed


def header(path: Path) -> None:
    change(path, 0, b"SQLite format 4")


def page_size(path: Path) -> None:
    change(path, 16, b"\xff\xff")


def page(path: Path) -> None:
    change(path, 4096, b"\xff" * 4096)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def cut_in_a_page(path: Path) -> None:
    os.truncate(path, 5000)


def cut_in_the_header(path: Path) -> None:
    os.truncate(path, 60)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def foreign(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE swaps (host)")


def foreign_with_a_wal(path: Path) -> None:
    foreign(path)
    with database(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    version_1.execute_and_die(path, "INSERT INTO swaps VALUES (1)")


def text(path: Path) -> None:
    path.write_text("dear diary, " * 1000)


def newer(path: Path) -> None:
    execute(path, "PRAGMA user_version = 3")


def without_its_table(path: Path) -> None:
    execute(path, "ALTER TABLE entries RENAME TO trades")


def without_a_column(path: Path) -> None:
    execute(path, "ALTER TABLE header DROP COLUMN checksum")


def without_its_header(path: Path) -> None:
    execute(path, "DELETE FROM header")


def another_count(path: Path) -> None:
    execute(path, "UPDATE header SET count = count - 1")


def another_last_checksum(path: Path) -> None:
    execute(path, "UPDATE header SET checksum = x'00'")


def without_the_last_entry(path: Path) -> None:
    execute(path, "DELETE FROM entries WHERE number = 51")


def without_an_entry(path: Path) -> None:
    execute(path, "DELETE FROM entries WHERE number = 7")


def without_the_first_entry(path: Path) -> None:
    execute(path, "DELETE FROM entries WHERE number = 1")


def exchanged_entries(path: Path) -> None:
    execute(
        path,
        "UPDATE entries SET number = 1000 WHERE number = 7",
        "UPDATE entries SET number = 7 WHERE number = 8",
        "UPDATE entries SET number = 8 WHERE number = 1000",
    )


def changed_body(path: Path) -> None:
    execute(path, "UPDATE entries SET body = replace(body, 'c7', 'c8')")


def changed_swap(path: Path) -> None:
    execute(path, "UPDATE entries SET swap = swap + 1 WHERE number = 7")


def body_of_another_type(path: Path) -> None:
    execute(path, "UPDATE entries SET body = 5 WHERE number = 7")


def swap_of_another_type(path: Path) -> None:
    execute(path, "UPDATE entries SET swap = 'seven' WHERE number = 7")


def valid_checksum_of_no_entry(path: Path) -> None:
    with closing(journal_db._connect(path, "rw", BUSY)) as connection:
        tail = journal_db._Tail.read(connection)
        number, body = tail.count + 1, b'{"kind":"poem"}'
        seal = entries.checksum(tail.checksum, number, 0, body)
        connection.execute("INSERT INTO entries VALUES (?, 0, ?, ?)", (number, body.decode(), seal))
        connection.execute("UPDATE header SET count = ?, checksum = ?", (number, seal))


def index_that_lost_a_row(path: Path) -> None:
    """The index from before the row was inserted."""
    with database(path) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE type = 'index'")
    other = path.with_name("other")
    write(other)
    with other.open("rb") as file:
        file.seek((root - 1) * 4096)
        empty = file.read(4096)
    change(path, (root - 1) * 4096, empty)
    with database(path) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]


def change(path: Path, offset: int, new: bytes) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(new)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (header, "damaged"),
        (page_size, "damaged"),
        (page, "damaged"),
        (cut_off, "damaged"),
        (cut_in_a_page, "damaged"),
        (cut_in_the_header, "60 bytes"),
        (emptied, "0 bytes"),
        (text, "damaged, or isn't a journal"),
        (foreign, "but not a journal of swaps"),
        (foreign_with_a_wal, "but not a journal of swaps"),
        (newer, "version 3; this library supports versions 1 to 2"),
        (without_its_table, "no such table"),
        (without_a_column, "no such column"),
        (without_its_header, "0 headers"),
        (another_count, "that of entry 50, and its last entry is 51"),
        (another_last_checksum, "damaged"),
        (without_the_last_entry, "that of entry 51, and its last entry is 50"),
        (without_an_entry, "entry 7 is missing"),
        (without_the_first_entry, "entry 1 is missing"),
        (exchanged_entries, "entry 7 has another checksum"),
        (changed_body, "entry 9 has another checksum"),
        (changed_swap, "entry 7 has another checksum"),
        (body_of_another_type, "entry 7"),
        (swap_of_another_type, "entry 7"),
        (valid_checksum_of_no_entry, "Invalid value 'poem'"),
    ],
)
def test_file_that_is_no_journal_is_rejected_and_left_unchanged(
    path: Path, damage: Callable[[Path], None], words: str
) -> None:
    write(path, *(intent(f"c{number}") for number in range(50)))
    damage(path)
    before = contents(path)
    for _ in range(2):
        with pytest.raises(JournalError) as error, opened(path):
            pass
        assert str(path) in str(error.value)
        with pytest.raises(JournalError, match=words):
            read_file(path, BUSY)
    assert contents(path) == before


def test_index_that_lost_a_row_is_rejected_before_a_write(path: Path) -> None:
    write(path, intent())
    index_that_lost_a_row(path)
    before = contents(path)
    with pytest.raises(JournalError, match="missing from index"), opened(path):
        pass
    assert contents(path) == before
    # All rows can be read without it.
    assert recorded(path) == [("c1", "a1", "unknown")]


def test_changed_tables_are_rejected(path: Path) -> None:
    write(path, intent())
    execute(path, "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END")
    with pytest.raises(JournalError, match="its tables were changed"), opened(path):
        pass


def test_error_names_a_file_that_cannot_be_opened(path: Path) -> None:
    write(path)
    shutil.rmtree(path.parent)
    with pytest.raises(JournalError, match="doesn't exist"):
        read_file(path, BUSY)
