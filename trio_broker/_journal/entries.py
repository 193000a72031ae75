"""What a journal records: entries, which are only appended, and the rows that they add up to.

An entry is stored as JSON. Its checksum covers everything in it and the checksum of the entry
before it, so a changed, missing or inserted entry is noticed. A later version may add members,
which this one ignores.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Final, TypeAlias

import attrs
import msgspec

from trio_broker.models import SwapIntent, SwapOutcome

Account: TypeAlias = tuple[str, str]
"""A broker's host and a key's fingerprint."""

# Characters. A broker's refusal may be a page of HTML.
_LONGEST_TEXT: Final = 1_000

S: Final = SwapOutcome
# The outcomes that may follow an outcome. A receipt is final: nothing replaces a confirmed swap. It
# also corrects a swap that was settled by hand. A refusal may turn out to be wrong.
_MAY_FOLLOW: Final = {
    S.UNKNOWN: {S.UNKNOWN, S.NOT_SENT, S.CONFIRMED, S.REFUSED, S.SETTLED},
    S.REFUSED: {S.UNKNOWN, S.CONFIRMED, S.REFUSED, S.SETTLED},
    S.NOT_SENT: {S.UNKNOWN, S.CONFIRMED, S.REFUSED, S.SETTLED},
    S.SETTLED: {S.CONFIRMED},
    S.CONFIRMED: set[SwapOutcome](),
}


class Damage(Exception):  # noqa: N818 - it is a reason, for the text of a `JournalError`
    """Why a file isn't a journal, or is damaged."""


@attrs.frozen(kw_only=True)
class JournalRow(SwapIntent):
    """One swap in a journal.

    Attributes:
        host: The broker's host, with the port if it isn't the default.
        key_fingerprint: Identifies the API key: 16 hexadecimal digits of a digest.
        attempt: Identifies this use of the client order ID.
        outcome: The outcome that was noted last. It is `SwapOutcome.UNKNOWN` also if nothing was
            noted after the intent: the swap was possibly sent.
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


# --- Entries ------------------------------------------------------------------------------------


class Place(msgspec.Struct, frozen=True, tag_field="kind", tag="place"):
    """Where the file is. The last such entry counts: a copy isn't used by mistake."""

    path: str
    inode: str  # a text, because it may have 128 bits


class Intent(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="intent"):
    """A swap that is about to be sent. It is made by `new_intent`."""

    host: str = ""
    key_fingerprint: str = ""
    client_order_id: str
    attempt: str
    amount_in: Decimal
    asset_in: str
    asset_out: str
    at: dt.datetime


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="fact"):
    """The outcome of a swap. It is made by `new_fact`."""

    host: str = ""
    key_fingerprint: str = ""
    client_order_id: str
    attempt: str
    outcome: SwapOutcome
    order_id: str | None
    detail: str
    at: dt.datetime

    def __str__(self) -> str:
        return f"swap {self.client_order_id} is {self.outcome}"


Entry: TypeAlias = Place | Intent | Fact

_decoder: Final = msgspec.json.Decoder(Entry)
encode: Final = msgspec.json.Encoder().encode


def decode(body: bytes) -> Entry:
    """Read an entry.

    Raises:
        ValueError: It isn't one.
    """
    entry: Entry = _decoder.decode(body)
    return entry


def new_intent(intent: SwapIntent, attempt: str) -> Intent:
    """Make the entry for a swap that is about to be sent.

    Raises:
        ValueError: A value can't be written.
    """
    for text in (intent.client_order_id, attempt, intent.asset_in, intent.asset_out):
        if not isinstance(text, str):
            raise ValueError(f"{text!a} isn't a text")  # noqa: TRY004 - as for all bad values
        text.encode()  # lone surrogates can't be written
    if not (intent.amount_in.is_finite() and intent.amount_in > 0):
        raise ValueError(f"amount_in must be more than 0, and is {intent.amount_in}")
    return Intent(
        client_order_id=intent.client_order_id,
        attempt=attempt,
        amount_in=intent.amount_in,
        asset_in=intent.asset_in,
        asset_out=intent.asset_out,
        at=utc(intent.at),
    )


def new_fact(
    client_order_id: str,
    attempt: str,
    outcome: SwapOutcome,
    *,
    order_id: str | None,
    detail: str,
    at: dt.datetime,
) -> Fact:
    """Make the entry for a swap's outcome. Any text is accepted: a fact must not fail."""
    return Fact(
        client_order_id=_storable(client_order_id),
        attempt=_storable(attempt),
        outcome=outcome,
        order_id=None if order_id is None else _storable(order_id),
        detail=_storable(detail),
        at=utc(at),
    )


def _storable(text: str) -> str:
    return text[:_LONGEST_TEXT].encode(errors="backslashreplace").decode()


def utc(at: dt.datetime) -> dt.datetime:
    """Convert a time to UTC.

    Raises:
        ValueError: It has no time zone.
    """
    if at.utcoffset() is None:
        raise ValueError(f"{at} has no time zone")
    return at.astimezone(dt.UTC)


# --- Checksums ----------------------------------------------------------------------------------


def checksum(previous: bytes, number: int, swap: int, body: bytes) -> bytes:
    """The checksum of an entry, which covers all of it and the entry before it."""
    return hashlib.sha256(b"%b%d %d %b" % (previous, number, swap, body)).digest()[:16]


def swap_number(entry: Entry) -> int:
    """A number for a swap, by which all its entries are found. It has 63 bits; others have 0."""
    if isinstance(entry, Place):
        return 0
    return number_of((entry.host, entry.key_fingerprint), entry.client_order_id)


def number_of(account: Account, client_order_id: str) -> int:
    """The number of a swap."""
    host, key = account
    text = f"{len(host)} {len(key)} {host}{key}{client_order_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


# --- Rows ---------------------------------------------------------------------------------------


def follow(row: JournalRow | None, entry: Intent | Fact) -> JournalRow | None:
    """The row of a swap after its next entry."""
    if isinstance(entry, Intent):
        return JournalRow(
            host=entry.host,
            key_fingerprint=entry.key_fingerprint,
            client_order_id=entry.client_order_id,
            attempt=entry.attempt,
            amount_in=entry.amount_in,
            asset_in=entry.asset_in,
            asset_out=entry.asset_out,
            at=entry.at,
            outcome=SwapOutcome.UNKNOWN,
            order_id=None,
            detail="",
            updated_at=entry.at,
        )
    if row is None or row.attempt != entry.attempt or entry.outcome not in _MAY_FOLLOW[row.outcome]:
        return row
    return attrs.evolve(
        row,
        outcome=entry.outcome,
        order_id=row.order_id if entry.order_id is None else entry.order_id,
        detail=entry.detail,
        updated_at=entry.at,
    )


def all_rows(entries: Iterable[Entry]) -> tuple[JournalRow, ...]:
    """The rows of all swaps, in the order of their last intents."""
    rows: dict[tuple[str, str, str], JournalRow | None] = {}
    for entry in entries:
        if isinstance(entry, Place):
            continue
        place = (entry.host, entry.key_fingerprint, entry.client_order_id)
        row = rows.pop(place, None) if isinstance(entry, Intent) else rows.get(place)
        rows[place] = follow(row, entry)
    return tuple(row for row in rows.values() if row is not None)
