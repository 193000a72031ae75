"""Journals of the first version: one row per swap, in SQLite's WAL mode.

Its last commits may be only in the ``-wal`` file. SQLite silently ignores everything after the
first invalid byte there, so the file is checked before SQLite reads it.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Final

from msgspec.structs import replace

from trio_broker._journal.entries import Damage, Fact, Intent, JournalRow, new_fact, new_intent, utc
from trio_broker.models import SwapOutcome

_SELECT: Final = (
    "SELECT host, key_fingerprint, client_order_id, attempt, amount_in, asset_in, asset_out, at, "
    "outcome, order_id, detail, updated_at FROM swaps ORDER BY number"
)
# https://www.sqlite.org/fileformat2.html#the_write_ahead_log
_WAL_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
_WAL_HEADER: Final = struct.Struct(">8I")
_FRAME_HEADER: Final = struct.Struct(">6I")
# https://www.sqlite.org/walformat.html#wal_index_format: the version, whether it is initialized,
# and the number of valid frames.
_SHM_HEADER: Final = struct.Struct("=I8xB3xI")
_SHM_VERSION: Final = 3007000


def rows(connection: sqlite3.Connection) -> Iterator[JournalRow]:
    """Read the rows, in the order of their intents.

    Raises:
        Damage: A value is impossible.
    """
    for values in connection.execute(_SELECT):
        try:
            # Texts are read as bytes, as blobs are.
            yield _row([str(b"" if one is None else one, "utf-8") for one in values])
        except (ValueError, OverflowError) as error:
            raise Damage(f"swap {values[2]!a}: {error}") from error


def entries(row: JournalRow) -> tuple[Intent, Fact]:
    """The entries that add up to a row."""
    host, key = row.host, row.key_fingerprint
    fact = new_fact(
        row.client_order_id,
        row.attempt,
        row.outcome,
        order_id=row.order_id,
        detail=row.detail,
        at=row.updated_at,
    )
    return (
        replace(new_intent(row, row.attempt), host=host, key_fingerprint=key),
        replace(fact, host=host, key_fingerprint=key),
    )


def _row(values: Sequence[str]) -> JournalRow:
    host, key, name, attempt, amount, sold, bought, at, outcome, order, detail, updated = values
    if outcome == SwapOutcome.UNDER_WAY:
        raise ValueError(f"the outcome {outcome!r} is never stored")
    try:
        amount_in = Decimal(amount)
    except InvalidOperation:
        raise ValueError(f"{amount!a} isn't a number") from None
    if not (amount_in.is_finite() and amount_in > 0):
        raise ValueError(f"amount_in must be more than 0, and is {amount_in}")
    return JournalRow(
        host=host,
        key_fingerprint=key,
        client_order_id=name,
        attempt=attempt,
        amount_in=amount_in,
        asset_in=sold,
        asset_out=bought,
        at=utc(dt.datetime.fromisoformat(at)),
        outcome=SwapOutcome(outcome),
        order_id=order or None,
        detail=detail,
        updated_at=utc(dt.datetime.fromisoformat(updated)),
    )


# --- The -wal file ------------------------------------------------------------------------------


def check_wal(path: Path) -> None:
    """Check that SQLite will read everything that was written to a database's ``-wal`` file.

    Args:
        path: The database. Nothing has it open.

    Raises:
        Damage: A part is missing or damaged.
    """
    wal, shm = (path.with_name(f"{path.name}{end}") for end in ("-wal", "-shm"))
    valid = 0
    if wal.exists() and wal.stat().st_size:
        with wal.open("rb") as file:
            valid = _valid_frames(file)
    # A killed process leaves this index, which has the number of frames.
    start = shm.read_bytes()[: _SHM_HEADER.size] if shm.exists() else b""
    if len(start) == _SHM_HEADER.size:
        version, is_made, frames = _SHM_HEADER.unpack(start)
        if version == _SHM_VERSION and is_made and frames > valid:
            raise Damage(f"{wal.name} has {valid} of {frames} frames")


def _valid_frames(file: IO[bytes]) -> int:
    """The number of frames before the first invalid one, which must be a remnant."""
    head = file.read(_WAL_HEADER.size)
    if len(head) < _WAL_HEADER.size:
        raise Damage("the header of its -wal file is cut off")
    magic, version, page_size, _, *salt, _, _ = _WAL_HEADER.unpack(head)
    order = _WAL_MAGIC.get(magic)
    if order is None or version != _SHM_VERSION:
        raise Damage("the header of its -wal file is damaged")
    sums = _sums(order, (0, 0), head[:24])
    if sums != _WAL_HEADER.unpack(head)[6:]:
        raise Damage("the header of its -wal file is damaged")
    valid = 0
    is_past_end = False
    # A killed process may leave an incomplete frame at the end.
    while len(frame := file.read(_FRAME_HEADER.size + page_size)) == _FRAME_HEADER.size + page_size:
        _, _, salt_1, salt_2, *expected = _FRAME_HEADER.unpack(frame[: _FRAME_HEADER.size])
        if salt_1 != salt[0] and salt_2 != salt[1]:
            is_past_end = True  # of an earlier use of the file
            continue
        sums = _sums(order, sums, frame[:8] + frame[_FRAME_HEADER.size :])
        if is_past_end or [salt_1, salt_2] != salt or list(sums) != expected:
            raise Damage(f"frame {valid + 1} of its -wal file is damaged")
        valid += 1
    return valid


def _sums(order: str, sums: tuple[int, int], data: bytes) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
