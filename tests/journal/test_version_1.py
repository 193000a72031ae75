"""Journals of the first version are converted; damaged ones are refused and left unchanged."""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

from tests.journal import version_1
from tests.journal.version_1 import HOST, KEY, execute, execute_and_die, insert
from trio_broker import JournalRow, SwapOutcome, key_fingerprint, lockfile
from trio_broker._journal import version_1 as first_version
from trio_broker._journal.entries import Account, new_intent
from trio_broker._journal.journal_db import open_file, read_file
from trio_broker.exceptions import DuplicateClientOrderIdError, JournalError
from trio_broker.models import SwapIntent

ACCOUNT: Account = (HOST, key_fingerprint(KEY))
BUSY = 10.0
AT = dt.datetime.fromisoformat(version_1.AT)
LATER = dt.datetime.fromisoformat(version_1.LATER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with three swaps in its file, and no others."""
    path = tmp_path / "swaps.journal"
    version_1.create(path)
    execute(
        path,
        insert("done", "confirmed", "o1"),
        insert("left"),
        insert("unsent", "not sent"),
    )
    return path


@pytest.fixture
def killed(path: Path) -> Path:
    """The same journal with more swaps in its ``-wal`` file."""
    execute_and_die(path, *(insert(f"wal {number}") for number in range(4)))
    return path


NAMES = ["done", "left", "unsent", *(f"wal {number}" for number in range(4))]


def names(path: Path) -> list[str]:
    return [row.client_order_id for row in read_file(path, BUSY)]


def files(path: Path) -> dict[str, bytes]:
    """All files that have something in them, except SQLite's index, which readers renew."""
    return {
        one.name: one.read_bytes()
        for one in path.parent.iterdir()
        if one.name not in {f"{path.name}-shm", f"{path.name}.lock"} and one.stat().st_size
    }


def opens(path: Path) -> None:
    with open_file(path, ACCOUNT, BUSY):
        pass


def test_rows_are_converted(path: Path) -> None:
    before = read_file(path, BUSY)
    assert before[0] == JournalRow(
        host=HOST,
        key_fingerprint=key_fingerprint(KEY),
        client_order_id="done",
        attempt="a1",
        amount_in=Decimal("1.50"),
        asset_in="ETH",
        asset_out="USDT",
        at=AT,
        outcome=SwapOutcome.CONFIRMED,
        order_id="o1",
        detail="why",
        updated_at=LATER,
    )
    with open_file(path, ACCOUNT, BUSY) as file:
        assert [row.client_order_id for row in file.unresolved] == ["left"]
        assert [(row.client_order_id, row.order_id) for row in file.resolved] == [("done", "o1")]
        again = SwapIntent(
            client_order_id="done", amount_in=Decimal(1), asset_in="A", asset_out="B", at=AT
        )
        (refusal,) = file.write([new_intent(again, "a2")])
        assert isinstance(refusal, DuplicateClientOrderIdError)
    assert read_file(path, BUSY) == before
    assert {one.name for one in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}
    opens(path)


def test_swaps_in_the_wal_are_converted(killed: Path) -> None:
    before = files(killed)
    assert names(killed) == NAMES
    assert files(killed) == before  # reading changes nothing
    with open_file(killed, ACCOUNT, BUSY) as file:
        assert [row.client_order_id for row in file.unresolved] == ["left", *NAMES[3:]]
    assert names(killed) == NAMES
    assert set(files(killed)) == {killed.name}


def test_empty_journal_is_converted(tmp_path: Path) -> None:
    version_1.create(tmp_path / "journal")
    opens(tmp_path / "journal")
    assert names(tmp_path / "journal") == []


def test_conversion_is_made_as_a_whole_or_not_at_all(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> list[object]:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(first_version, "entries", fail)
        with pytest.raises(JournalError, match="No space left"):
            opens(killed)
    assert names(killed) == NAMES
    opens(killed)
    assert names(killed) == NAMES


def test_file_in_use_by_the_first_version_is_read(killed: Path) -> None:
    with lockfile.held(killed):
        assert names(killed) == NAMES
        with pytest.raises(JournalError, match="in use"):
            opens(killed)


def test_wal_of_an_earlier_use_is_no_damage(path: Path) -> None:
    # After a checkpoint, SQLite overwrites the WAL from its beginning.
    checkpoint = "PRAGMA wal_checkpoint(RESTART)"
    many = [insert(f"more {number}") for number in range(20)]
    execute_and_die(path, *many, checkpoint, insert("last"))
    assert names(path) == ["done", "left", "unsent", *(f"more {n}" for n in range(20)), "last"]
    opens(path)
    assert len(names(path)) == 24


def test_uncommitted_rest_of_a_killed_process_is_no_damage(killed: Path) -> None:
    wal = killed.with_name(f"{killed.name}-wal")
    with wal.open("ab") as file:
        # Its process was killed between two calls: the frame isn't complete.
        file.write(wal.read_bytes()[32:100])
    assert names(killed) == NAMES
    opens(killed)
    assert names(killed) == NAMES


# --- Damage ---------------------------------------------------------------------------------------


def refused_or_complete(path: Path) -> bool:
    """Whether a journal is refused. Otherwise it must have all swaps."""
    before = files(path)
    refused = 0
    with suppress(JournalError):
        opens(path)
        assert names(path) == NAMES
        return False
    assert files(path) == before
    with suppress(JournalError):
        assert names(path) == NAMES
        refused += 1
    return True


def test_flipped_bit_of_the_wal_loses_nothing(killed: Path, tmp_path: Path) -> None:
    size = killed.with_name(f"{killed.name}-wal").stat().st_size
    chance = random.Random(1)
    refused = 0
    for offset in [*range(56), *chance.sample(range(size), 150)]:
        copy = damaged_copy(killed, "-wal", partial(flip, offset=offset))
        refused += refused_or_complete(copy)
    assert refused > 150


@pytest.mark.parametrize("has_index", [True, False])
def test_lost_end_of_the_wal_loses_nothing(killed: Path, has_index: bool) -> None:
    size = killed.with_name(f"{killed.name}-wal").stat().st_size
    for end in (0, 1, 31, 32, 33, 60, size // 2, size - 4120, size - 1):
        copy = damaged_copy(killed, "-wal", partial(os.truncate, length=end))
        if not has_index:
            copy.with_name(f"{copy.name}-shm").unlink()
            if end not in {1, 31}:
                continue  # Nothing shows that there was more: documented.
        assert refused_or_complete(copy)


def test_lost_wal_is_noticed(killed: Path) -> None:
    assert refused_or_complete(damaged_copy(killed, "-wal", Path.unlink))


@pytest.mark.parametrize("change", [Path.unlink, partial(os.truncate, length=100)])
def test_lost_index_of_the_wal_loses_nothing(killed: Path, change: Callable[[Path], None]) -> None:
    assert not refused_or_complete(damaged_copy(killed, "-shm", change))


def test_flipped_bit_of_the_database_loses_nothing(killed: Path) -> None:
    # The WAL has newer copies of most pages.
    for offset in random.Random(2).sample(range(killed.stat().st_size), 60):
        refused_or_complete(damaged_copy(killed, "", partial(flip, offset=offset)))


def damaged_copy(path: Path, end: str, damage: Callable[[Path], object]) -> Path:
    copy = path.parent / "copy" / path.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.parent.mkdir()
    for side in ("", "-wal", "-shm", ".lock"):
        shutil.copy(f"{path}{side}", f"{copy}{side}")
    damage(copy.with_name(f"{copy.name}{end}"))
    return copy


def flip(file: Path, offset: int) -> None:
    with file.open("rb+") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ (1 << offset % 8)]))


def test_checksums_of_either_byte_order_are_accepted(killed: Path) -> None:
    wal = killed.with_name(f"{killed.name}-wal")
    data = bytearray(wal.read_bytes())
    magic, *rest = struct.unpack(">6I", data[:24])
    assert magic == 0x377F0682
    data[:24] = struct.pack(">6I", 0x377F0683, *rest)
    sums = (0, 0)
    for at, size in ((0, 24), *((at, 4096 + 24) for at in range(32, len(data), 4096 + 24))):
        part = data[at : at + size]
        sealed = part if at == 0 else part[:8] + part[24:]
        sums = big_endian_sums(sums, bytes(sealed))
        place = at + 24 if at == 0 else at + 16
        data[place : place + 8] = struct.pack(">2I", *sums)
    wal.write_bytes(data)
    killed.with_name(f"{killed.name}-shm").unlink()
    opens(killed)
    assert names(killed) == NAMES


def big_endian_sums(sums: tuple[int, int], data: bytes) -> tuple[int, int]:
    first, second = sums
    for even, odd in struct.iter_unpack(">2I", data):
        first = (first + even + second) % 2**32
        second = (second + odd + first) % 2**32
    return first, second


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("amount_in", "'a lot'"),
        ("amount_in", "'NaN'"),
        ("amount_in", "'-1'"),
        ("amount_in", "''"),
        ("asset_in", "x'ff'"),
        ("detail", "CAST(x'ff' AS TEXT)"),
        ("at", "'yesterday'"),
        ("at", "'2026-01-02T03:04:05'"),
        ("at", "'0001-01-01T00:00:00+14:00'"),
        ("updated_at", "'soon'"),
        ("outcome", "'perhaps'"),
        ("outcome", "'under way'"),
        ("order_id", "x'ff'"),
    ],
)
def test_error_names_the_row_with_an_impossible_value(path: Path, column: str, value: str) -> None:
    execute(path, insert("bad"), f"UPDATE swaps SET {column} = {value} WHERE number = 4")  # noqa: S608
    before = files(path)
    with pytest.raises(JournalError, match="'bad'"):
        read_file(path, BUSY)
    with pytest.raises(JournalError, match="'bad'"):
        opens(path)
    assert files(path) == before


def test_index_that_lost_a_row_is_rejected(path: Path) -> None:
    execute(
        path,
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA writable_schema = ON",
        "DELETE FROM sqlite_schema WHERE name LIKE 'sqlite_autoindex%'",
    )
    before = files(path)
    with pytest.raises(JournalError, match="damaged"):
        opens(path)
    assert files(path) == before


def test_journal_that_another_program_set_to_wal_is_used(path: Path) -> None:
    opens(path)
    execute(path, "PRAGMA journal_mode = WAL")
    more, fewer = "UPDATE header SET count = count + 1", "UPDATE header SET count = count - 1"
    execute_and_die(path, more, fewer)
    opens(path)
    assert names(path) == NAMES[:3]
    assert set(files(path)) == {path.name}
