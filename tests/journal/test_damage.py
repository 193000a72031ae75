"""A damaged journal is refused, with what to do, or has lost nothing. It is never silently empty.

`check` states this law. Each test damages one of a journal's files in one way, while the journal is
closed, while it is open, or after a kill.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from trio_broker import JournalRow, SwapOutcome, key_fingerprint, lockfile
from trio_broker._journal import journal_db
from trio_broker._journal.entries import Account, Entry, Fact, Intent, new_fact, new_intent
from trio_broker._journal.journal_db import JournalFile, open_file, read_file
from trio_broker.exceptions import DuplicateClientOrderIdError, JournalError
from trio_broker.models import SwapIntent

ROOT = Path(__file__).parents[2]
AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
ACCOUNT: Account = ("broker.example", key_fingerprint("alice"))
BUSY = 10.0
S = SwapOutcome


def intent(name: str, attempt: str = "a1") -> Intent:
    swap = SwapIntent(
        client_order_id=name, amount_in=Decimal("1.5"), asset_in="ETH", asset_out="USDT", at=AT
    )
    return new_intent(swap, attempt)


def fact(name: str, outcome: SwapOutcome, order_id: str | None = None) -> Fact:
    return new_fact(name, "a1", outcome, order_id=order_id, detail="why", at=AT)


def write(path: Path, *entries: Intent | Fact) -> None:
    with open_file(path, ACCOUNT, BUSY) as file:
        assert file.write(entries) == [None] * len(entries)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with enough swaps for several pages."""
    path = tmp_path / "here" / "swaps.journal"
    path.parent.mkdir()
    names = [f"c{number}" for number in range(60)]
    write(path, *map(intent, names))
    write(path, *(fact(name, S.CONFIRMED, f"o{name}") for name in names[::2]))
    return path


def rows(path: Path) -> tuple[JournalRow, ...]:
    return read_file(path, BUSY)


def files(path: Path) -> dict[str, bytes]:
    return {
        one.name: one.read_bytes() for one in path.parent.iterdir() if not one.name.endswith("lock")
    }


def check(path: Path, expected: tuple[JournalRow, ...]) -> bool:
    """Check that a journal is refused and left unchanged, or has all rows; return which."""
    before = files(path)
    has_hot_journal = len(before) > 1
    for _ in range(2):
        with suppress(JournalError):
            found = rows(path)
            assert found == expected
    try:
        with open_file(path, ACCOUNT, BUSY) as file:
            (refusal,) = file.write([intent("c0", "again")])
            assert isinstance(refusal, DuplicateClientOrderIdError)
            assert file.write([intent("new")]) == [None]
    except JournalError:
        assert has_hot_journal or files(path) == before
        return True
    *former, new = rows(path)
    assert tuple(former) == expected
    assert new.client_order_id == "new"
    return False


def flip(file: Path, offset: int, bit: int | None = None) -> None:
    with file.open("rb+") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ (1 << (offset * 7 % 8 if bit is None else bit))]))


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def overwrite(file: Path, offset: int, data: bytes = b"\0" * 512) -> None:
    with file.open("rb+") as opened:
        opened.seek(offset)
        opened.write(data)


def offsets(file: Path, count: int, seed: int = 1) -> list[int]:
    """The header of a database, and random places."""
    size = file.stat().st_size
    return [*range(100), *random.Random(seed).sample(range(100, size), count)]


# --- While it is closed ---------------------------------------------------------------------------


def restored(path: Path, data: bytes) -> None:
    """Give a file its former contents, and the same number."""
    with path.open("rb+") as file:
        file.write(data)
        file.truncate()


def test_flipped_bit_is_refused_or_harmless(path: Path) -> None:
    expected, data = rows(path), path.read_bytes()
    refused = 0
    places = offsets(path, 300)
    for offset in places:
        flip(path, offset)
        refused += check(path, expected)
        restored(path, data)
    assert refused > len(places) / 2


def test_table_definitions_that_are_not_utf_8_are_refused(path: Path) -> None:
    expected, data = rows(path), path.read_bytes()
    start = data.index(b"CREATE INDEX")
    for offset in range(start, data.index(b"CREATE TABLE entries")):
        flip(path, offset, 7)
        assert check(path, expected)
        restored(path, data)


def test_overwritten_part_is_refused_or_harmless(path: Path) -> None:
    expected, data = rows(path), path.read_bytes()
    for offset in range(0, len(data), 512):
        for new in (b"\0" * 512, b"\xff" * 512, data[:512], data[-512:]):
            overwrite(path, offset, new)
            check(path, expected)
            restored(path, data)


def test_exchanged_pages_are_refused_or_harmless(path: Path) -> None:
    expected, data = rows(path), path.read_bytes()
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    for first in range(1, len(pages)):
        for second in range(first + 1, len(pages)):
            overwrite(path, first * 4096, pages[second])
            overwrite(path, second * 4096, pages[first])
            assert check(path, expected)
            restored(path, data)


def test_cut_file_is_refused(path: Path) -> None:
    expected, data = rows(path), path.read_bytes()
    sizes = [0, 1, 100, 511, 512, 1024, 4095, *range(4096, len(data), 4096), len(data) - 1]
    for size in sizes:
        cut(path, size)
        assert check(path, expected)
        restored(path, data)


def test_deleted_file_is_refused_as_long_as_another_remains(path: Path) -> None:
    path.unlink()
    for _ in range(2):
        with pytest.raises(JournalError, match="put the journal back"):
            write(path)
        with pytest.raises(JournalError, match="put the journal back"):
            rows(path)
    assert [one.name for one in path.parent.iterdir()] == [f"{path.name}.lock"]
    lock = path.with_name(f"{path.name}.lock")
    for side in ("-journal", "-wal", "-shm"):
        lock.unlink(missing_ok=True)
        path.with_name(f"{path.name}{side}").write_bytes(b"its rest")
        with pytest.raises(JournalError, match=f"{side}.* shows that it existed"):
            write(path)
        path.with_name(f"{path.name}{side}").unlink()
    lock.unlink()
    write(path)  # all are removed, as the error says
    assert rows(path) == ()


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda lock: lock.write_bytes(b"something"), partial(os.chmod, mode=0)]
)
def test_lock_file_is_only_a_mark(path: Path, change: Callable[[Path], object]) -> None:
    expected = rows(path)
    change(path.with_name(f"{path.name}.lock"))
    assert not check(path, expected)


def test_foreign_rollback_journal_does_no_harm(path: Path) -> None:
    expected = rows(path)
    path.with_name(f"{path.name}-journal").write_bytes(b"not SQLite's" * 1000)
    assert not check(path, expected)


# --- While it is open -----------------------------------------------------------------------------


def check_open(path: Path, damage: Callable[[Path], object]) -> bool:
    """Damage a file while it is open; return whether writing was refused."""
    expected = rows(path)
    with open_file(path, ACCOUNT, BUSY) as file:
        assert file.write([fact("c1", S.REFUSED)]) == [None]
        expected = rows(path)
        damage(path)
        refused = is_refused(file)
    with suppress(JournalError):
        found = rows(path)
        assert found[: len(expected)] == expected
    return refused


def is_refused(file: JournalFile) -> bool:
    for entry in (intent("c0", "again"), intent("c1", "again"), intent("new")):
        with suppress(JournalError):
            (refusal,) = file.write([entry])
            assert (
                isinstance(refusal, DuplicateClientOrderIdError) or entry.client_order_id == "new"
            )
            continue
        return True
    return False


def test_flipped_bit_in_an_open_file_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    refused = 0
    places = offsets(path, 100, seed=2)
    for offset in places:
        refused += check_open(path, partial(flip, offset=offset))
        restored(path, data)
    assert refused > len(places) / 2


def test_cut_open_file_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    for size in (0, 100, 4096, 8192, len(data) - 1):
        assert check_open(path, partial(cut, size=size))
        restored(path, data)


def test_deleted_open_file_is_noticed(path: Path) -> None:
    assert check_open(path, Path.unlink)
    with pytest.raises(JournalError, match="put the journal back"):
        write(path)


def test_open_file_that_was_replaced_by_a_copy_is_noticed(path: Path) -> None:
    def replace(file: Path) -> None:
        shutil.copy(file, file.with_name("copy"))
        file.with_name("copy").replace(file)

    assert check_open(path, replace)
    with pytest.raises(JournalError, match="is a copy"):
        write(path)


def test_open_file_that_was_only_touched_is_used(path: Path) -> None:
    assert not check_open(path, partial(os.utime, times=(1, 1)))


def test_journal_mode_that_another_program_changed_is_noticed(path: Path) -> None:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    assert check_open(path, change)
    write(path, intent("new"))
    assert not path.with_name(f"{path.name}-wal").exists()


def test_journal_mode_that_another_program_needs_is_no_harm(path: Path) -> None:
    expected = rows(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("SELECT * FROM header").fetchall()
        with pytest.raises(JournalError, match="locked"):
            write(path)
        assert rows(path) == expected
    assert not check(path, expected)


def test_second_client_after_the_lock_file_was_deleted_repeats_no_swap(path: Path) -> None:
    with open_file(path, ACCOUNT, BUSY) as first:
        path.with_name(f"{path.name}.lock").unlink()
        with open_file(path, ACCOUNT, BUSY) as second:
            for one, other in ((first, second), (second, first)):
                name = f"of {id(one)}"
                assert one.write([intent(name)]) == [None]
                (refusal,) = other.write([intent(name, "a2")])
                assert isinstance(refusal, DuplicateClientOrderIdError)
    write(path, intent("later"))
    assert len(rows(path)) == 63
    assert path.with_name(f"{path.name}.lock").exists()


# --- Other programs -------------------------------------------------------------------------------


OPENS = """
import sys
from pathlib import Path
from tests.journal.test_damage import ACCOUNT, BUSY, JournalError, open_file
try:
    with open_file(Path(sys.argv[1]), ACCOUNT, BUSY):
        print("opened")
except JournalError as error:
    print(error)
"""


def told_to_another_process(path: Path) -> str:
    command = [sys.executable, "-c", OPENS, str(path)]
    return subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def read_plainly(path: Path) -> None:
    for side in ("", ".lock"):
        path.with_name(f"{path.name}{side}").read_bytes()


def read_as_a_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone()[0] > 60


def back_up(path: Path) -> None:
    with (
        closing(sqlite3.connect(path)) as connection,
        closing(sqlite3.connect(path.parent.parent / "backup")) as copy,
    ):
        connection.backup(copy)


@pytest.mark.parametrize("use", [read_plainly, read_as_a_database, back_up, rows])
def test_other_reader_in_the_process_frees_no_lock(
    path: Path, use: Callable[[Path], object]
) -> None:
    with open_file(path, ACCOUNT, BUSY) as file:
        for number in range(3):
            use(path)
            assert file.write([intent(f"new {number}")]) == [None]
            use(path)
            if number < 2:
                assert told_to_another_process(path).endswith("in use by another client or process")
    assert told_to_another_process(path) == "opened"
    assert len(rows(path)) == 63


def test_long_transaction_of_another_program_delays_only_commits(path: Path) -> None:
    with (
        open_file(path, ACCOUNT, 0.01) as file,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM entries").fetchall()
        with pytest.raises(JournalError, match="locked"):
            file.write([intent("new")])
        other.execute("COMMIT")
        assert file.write([intent("new")]) == [None]


def test_reading_does_not_delay_commits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, real, written = rows(path), journal_db._entry, list[str]()

    def entry(previous: bytes, values: Any) -> Entry:
        if len(written) < 60:
            written.append(f"meanwhile {len(written)}")
            assert file.write([intent(written[-1])]) == [None]
        return real(previous, values)

    with open_file(path, ACCOUNT, 0.01) as file, monkeypatch.context() as patch:
        patch.setattr(journal_db, "_CHUNK", 10)
        patch.setattr(journal_db, "_entry", entry)
        assert rows(path) == expected  # as of its beginning
    assert [row.client_order_id for row in rows(path)][60:] == written


# --- Names and places -----------------------------------------------------------------------------


def test_hard_link_is_refused_under_both_names(path: Path) -> None:
    expected = rows(path)
    other = path.with_name("other")
    other.hardlink_to(path)
    for name in (path, other):
        with pytest.raises(JournalError, match=r"has 2 names \(hard links\).* Remove the other"):
            write(name)
        with pytest.raises(JournalError, match="has 2 names"):
            rows(name)
    assert {one.name for one in path.parent.iterdir()} == {path.name, f"{path.name}.lock", "other"}
    other.unlink()
    assert not check(path, expected)


def test_hard_link_to_an_open_file_is_refused(path: Path) -> None:
    with open_file(path, ACCOUNT, BUSY) as file:
        path.with_name("other").hardlink_to(path)
        with pytest.raises(JournalError, match="has 2 names"):
            write(path.with_name("other"))
        assert file.write([intent("new")]) == [None]


@pytest.mark.parametrize("move", [shutil.copy, shutil.move, os.rename, shutil.copytree])
def test_copied_or_moved_file_must_be_adopted(
    path: Path, move: Callable[[Path, Path], object]
) -> None:
    expected = rows(path)
    there = path.parent.parent / "there" / path.name
    if move is shutil.copytree:
        move(path.parent, there.parent)
    else:
        there.parent.mkdir()
        move(path, there)
    before = there.read_bytes()
    for _ in range(2):
        with pytest.raises(JournalError, match=r"used last as .*SwapJournal\(path, adopt=True\)"):
            write(there)
    assert there.read_bytes() == before
    assert rows(there) == expected  # it can be listed
    with open_file(there, ACCOUNT, BUSY, adopt=True) as file:
        (refusal,) = file.write([intent("c0", "again")])
        assert isinstance(refusal, DuplicateClientOrderIdError)
    assert not check(there, expected)
    if path.exists():
        assert not check(path, expected)


def test_moved_folder_must_be_adopted(path: Path) -> None:
    there = path.parent.with_name("there")
    path.parent.rename(there)
    with pytest.raises(JournalError, match="was moved"):
        write(there / path.name)


def test_copy_that_came_back_must_be_adopted(path: Path) -> None:
    backup = path.parent / "backup"
    shutil.copy(path, backup)
    path.unlink()
    backup.rename(path)
    with pytest.raises(JournalError, match="is a copy, or was moved"):
        write(path)


def test_adopting_what_was_not_moved_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    with open_file(path, ACCOUNT, BUSY, adopt=True):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("relative", [True, False])
def test_symbolic_link_is_the_same_journal(path: Path, relative: bool) -> None:
    link = path.parent.parent / "link"
    folder = path.parent.parent / "folder"
    folder.symlink_to(path.parent)
    link.symlink_to(Path("here") / path.name if relative else path)
    expected = rows(path)
    for name in (link, folder / path.name):
        assert rows(name) == expected
        with (
            open_file(name, ACCOUNT, BUSY),
            pytest.raises(JournalError, match="in use"),
            open_file(path, ACCOUNT, BUSY),
        ):
            pass
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(JournalError, match="symbolic link"):
        write(link)


# --- A disk that is full or read-only -------------------------------------------------------------


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.journal.test_damage import *
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_file(path, ACCOUNT, BUSY) as file:
    file.write([intent("before")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4096, resource.RLIM_INFINITY))
    for number in range(10):
        try:
            file.write([intent(f"{number} {each}") for each in range(50)])
        except JournalError as error:
            print("refused", number, str(error))
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert file.write([intent("after")]) == [None]
"""


def test_full_disk_refuses_swaps_and_loses_none(path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(path)]
    ended = subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("refused")
    found = [row.client_order_id for row in rows(path)]
    assert (found[60], found[-1]) == ("before", "after")
    assert len(found) % 50 == 12
    write(path, intent("again"))


def test_read_only_file_is_refused_when_it_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may write to every file.
    real = journal_db._connect
    monkeypatch.setattr(journal_db, "_connect", lambda file, _, busy: real(file, "ro", busy))
    with pytest.raises(JournalError, match="readonly"):
        write(path)
    assert len(rows(path)) == 60


def test_directory_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(JournalError, match=f"{tmp_path}.*: Permission denied"):
        write(tmp_path / "journal")


# --- A process that was killed --------------------------------------------------------------------


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.journal.test_damage import *
with open_file(Path(sys.argv[1]), ACCOUNT, BUSY) as file:
    file._connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
    from trio_broker._journal import journal_db
    journal_db._commit = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    file.write([intent(f"{number}") for number in range(400)])
"""


@pytest.fixture
def hot(path: Path) -> Path:
    """A journal whose process was killed in the middle of a commit."""
    before = path.read_bytes()
    command = [sys.executable, "-c", KILLED, str(path)]
    ended = subprocess.run(command, cwd=ROOT, check=False)  # noqa: S603 - our own command
    assert ended.returncode == -signal.SIGKILL
    assert path.with_name(f"{path.name}-journal").stat().st_size
    assert path.read_bytes() != before
    return path


def named(path: Path) -> list[str]:
    return [row.client_order_id for row in rows(path)]


OLD = [f"c{number}" for number in range(60)]


def test_incomplete_commit_is_rolled_back_when_it_is_opened(hot: Path) -> None:
    write(hot, intent("new"))
    assert named(hot) == [*OLD, "new"]
    assert not hot.with_name(f"{hot.name}-journal").exists()


def test_incomplete_commit_is_rolled_back_when_it_is_read(hot: Path) -> None:
    assert named(hot) == OLD
    assert named(hot) == OLD
    write(hot, intent("new"))


def test_commit_of_a_living_process_is_not_rolled_back(hot: Path) -> None:
    before = files(hot)
    with lockfile.held(hot):
        for use in (rows, write):
            with pytest.raises(JournalError, match="in use"):
                use(hot)
    assert files(hot) == before


@pytest.mark.parametrize("kind", ["flip", "cut", "delete"])
def test_damaged_rollback_journal_is_refused_or_harmless(hot: Path, kind: str) -> None:
    expected = tuple(row for row in rows_of_a_copy(hot) if row.client_order_id in OLD)
    journal = hot.with_name(f"{hot.name}-journal")
    kept = hot.read_bytes(), journal.read_bytes()
    size = len(kept[1])
    places = {
        "flip": [*range(32), *random.Random(3).sample(range(size), 60)],
        "cut": [0, 8, 28, 511, 512, 600, 4096, size // 2, size - 4000, size - 1],
        "delete": [0],
    }[kind]
    damages: dict[str, Callable[[int], object]] = {
        "flip": lambda at: flip(journal, at),
        "cut": lambda at: cut(journal, at),
        "delete": lambda _: journal.unlink(),
    }
    for place in places:
        restored(hot, kept[0])
        journal.write_bytes(kept[1])
        damages[kind](place)
        check_after_kill(hot, expected)


def rows_of_a_copy(path: Path) -> tuple[JournalRow, ...]:
    copy = path.parent.parent / "copy" / path.name
    shutil.copytree(path.parent, copy.parent)
    return rows(copy)


def check_after_kill(path: Path, expected: tuple[JournalRow, ...]) -> None:
    """All committed rows are there. The incomplete commit is there as a whole, or not at all."""
    with suppress(JournalError):
        found = rows(path)
        assert found[:60] == expected
        assert len(found) in {60, 460}
    with suppress(JournalError):
        write(path, intent("new"))
        found = rows(path)
        assert found[:60] == expected
        assert len(found) in {61, 461}


# --- Random histories -----------------------------------------------------------------------------


class Journals(RuleBasedStateMachine):
    """A journal against a model: the rows that were written, with random damage between."""

    names = st.sampled_from(["a", "b", "c", "d"])
    attempts = st.sampled_from(["1", "2"])
    outcomes = st.sampled_from([one for one in S if one is not S.UNDER_WAY])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal"
        self.model: dict[str, tuple[str, SwapOutcome]] = {}
        self.batch: list[Intent | Fact] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize()
    def create(self) -> None:
        write(self.path)

    @rule(name=names, attempt=attempts)
    def intend(self, name: str, attempt: str) -> None:
        with open_file(self.path, ACCOUNT, BUSY) as file:
            (refusal,) = file.write([intent(name, attempt)])
        is_free = name not in self.model or self.model[name][1] is S.NOT_SENT
        assert (refusal is None) == is_free
        if is_free:
            self.model.pop(name, None)
            self.model[name] = (attempt, S.UNKNOWN)

    @rule(name=names, attempt=attempts, outcome=outcomes)
    def note(self, name: str, attempt: str, outcome: SwapOutcome) -> None:
        entry = new_fact(name, attempt, outcome, order_id=None, detail="", at=AT)
        with open_file(self.path, ACCOUNT, BUSY) as file:
            assert file.write([entry]) == [None]
            assert file.write([entry]) == [None]  # writing it again is harmless
        known, last = self.model.get(name, ("", S.UNKNOWN))
        is_final = last is S.CONFIRMED or (last is S.SETTLED and outcome is not S.CONFIRMED)
        was_sent = outcome is not S.NOT_SENT or last in {S.UNKNOWN, S.NOT_SENT}
        if known == attempt and not is_final and was_sent:
            self.model[name] = (attempt, outcome)

    @precondition(lambda self: self.model)
    @rule(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage(self, place: float, bit: int) -> None:
        data = self.path.read_bytes()
        changed = bytearray(data)
        changed[int(place * len(data))] ^= 1 << bit
        restored(self.path, bytes(changed))
        with suppress(JournalError):
            self.check_rows()
        with suppress(JournalError), open_file(self.path, ACCOUNT, BUSY) as file:
            unknown = [name for name, (_, last) in self.model.items() if last is S.UNKNOWN]
            assert [row.client_order_id for row in file.unresolved] == unknown
            self.check_rows()
        restored(self.path, data)

    @rule()
    def check_rows(self) -> None:
        found = {row.client_order_id: (row.attempt, row.outcome) for row in rows(self.path)}
        assert list(found.items()) == list(self.model.items())


TestJournals = Journals.TestCase
TestJournals.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
