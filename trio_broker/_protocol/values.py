"""Reads single values of the wire, and objects whose shape differs from the documented one.

A reader takes a value's JSON text. It returns None if that isn't a usable value. Nothing is ever
guessed: a number of unclear meaning can't be read.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, Self, TypeAlias, TypeVar

import attrs
import msgspec

from trio_broker.exceptions import ProtocolError
from trio_broker.models import MAX_DIGITS

_T = TypeVar("_T")
Reader: TypeAlias = Callable[[bytes], "_T | None"]

# The decoder has no union of raw text and null. So a missing member is empty text, and null is the
# text "null".
NOTHING: Final = msgspec.Raw(b"")
MISSING: Final = frozenset({b"", b"null"})
EMPTY: Final = b'""'

# Arithmetic with a thousand digits, or with an exponent of 999999999, would take all memory.
AMOUNT: Final = re.compile(
    rb"-?[0-9]{1,%d}(?:\.[0-9]{1,%d})?" % (MAX_DIGITS, MAX_DIGITS), flags=re.ASCII
)
AMOUNT_TEXT: Final = re.compile(AMOUNT.pattern.decode(), flags=re.ASCII)
_WITH_EXPONENT: Final = re.compile(AMOUNT.pattern + rb"[eE][+-]?[0-9]{1,3}", flags=re.ASCII)
_INTEGER: Final = re.compile(rb"-?[0-9]{1,100}", flags=re.ASCII)
_TIME: Final = re.compile(rb"[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE]\+?[0-9]{1,2})?", flags=re.ASCII)

# Milliseconds from 1973 to 5138. Seconds and microseconds of our time are outside.
EARLIEST: Final = 10**11
LATEST: Final = 10**14
# Up to here, seconds as a float are exact to half a microsecond, and rounding restores the
# milliseconds. This takes a third of the time of the sum.
EXACT_AS_FLOAT: Final = 4 * 10**12
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_anything: Final = msgspec.json.Decoder(float_hook=Decimal)
_text: Final = msgspec.json.Decoder(str)
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])

# `Decimal` refuses exponents of 19 digits with an `ArithmeticError`.
DecodeErrors: Final = (msgspec.DecodeError, UnicodeError, RecursionError, ArithmeticError)


def is_missing(raw: msgspec.Raw) -> bool:
    """Whether a member is absent or null."""
    return bytes(raw) in MISSING


def anything(raw: bytes) -> Any:
    """Any value; None if it is nested too deeply."""
    try:
        return _anything.decode(raw)
    except DecodeErrors:
        return None


def text(raw: bytes) -> str | None:
    """A text."""
    try:
        return _text.decode(raw)
    except DecodeErrors:
        return None


def identifier(raw: bytes) -> str | None:
    """An id: a text that isn't empty, or the digits of an integer."""
    return raw.decode() if _INTEGER.fullmatch(raw) else text(raw) or None


def amount(raw: bytes) -> Decimal | None:
    """A finite decimal of at most 100 digits on either side, as a number or as a text."""
    digits = raw.strip(b'"')  # A quote inside would have a backslash, which the pattern refuses.
    if AMOUNT.fullmatch(digits):
        return Decimal(digits.decode())
    if not _WITH_EXPONENT.fullmatch(digits):
        return None
    value = Decimal(digits.decode())
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)  # noqa: S101 - it is finite
    return value if exponent >= -MAX_DIGITS and value.adjusted() < MAX_DIGITS else None


def time(raw: bytes) -> dt.datetime | None:
    """A time in milliseconds, as an integer, a number with a fraction or a text."""
    digits = raw.strip(b'"')
    if not _TIME.fullmatch(digits):
        return None
    milliseconds = Decimal(digits.decode())
    if not EARLIEST <= milliseconds <= LATEST:
        return None
    return _EPOCH + dt.timedelta(microseconds=int(milliseconds * 1000))


def entries(raw: bytes) -> list[msgspec.Raw] | None:
    """The entries of a list."""
    try:
        return _list.decode(raw)
    except DecodeErrors:
        return None


@attrs.frozen
class Members:
    """The members of an object, which are read one by one.

    Attributes:
        values: The members.
        unreadable: The places of those that couldn't be read.
        place: The object's place in the message, for `unreadable`.
    """

    values: Mapping[str, msgspec.Raw]
    unreadable: list[str]
    place: str = ""

    @classmethod
    def of(cls, raw: bytes, unreadable: list[str], place: str = "") -> Self | None:
        """The members of an object; None if it isn't one."""
        try:
            return cls(_object.decode(raw), unreadable, place)
        except DecodeErrors:
            return None

    def read(self, names: str | Iterable[str], reader: Reader[_T]) -> _T | None:
        """A member by one of its names; None if it is missing or can't be read."""
        for name in (names,) if isinstance(names, str) else names:
            raw = bytes(self.values.get(name, NOTHING))
            if raw not in MISSING:
                value = reader(raw)
                if value is None:
                    self.unreadable.append(f"{self.place}{name}")
                return value
        return None

    def identifier(self, name: str) -> str | None:
        """An optional id. An empty text is none."""
        return None if self._is_empty(name) else self.read(name, identifier)

    def require(self, name: str, reader: Reader[_T], what: str) -> _T:
        """A member that must be there.

        Raises:
            ProtocolError: It is missing, or can't be read.
        """
        value = self.read(name, reader)
        if value is None or value == "":
            raise ProtocolError(f"{name} of {what} is missing, or can't be read")
        return value

    def _is_empty(self, name: str) -> bool:
        return bytes(self.values.get(name, NOTHING)) == EMPTY


# --- Errors ------------------------------------------------------------------------------------

_TEXT_NAMES: Final = ("message", "msg", "error", "text", "detail", "description", "reason")
_LONGEST_CODE: Final = 200


def error_text(value: Any) -> tuple[str, str | None]:
    """The text and the code of an error in any form. An empty text means that there is none."""
    try:
        return _error_text(value)
    except RecursionError:
        return "an error that is nested too deeply", None


def _error_text(value: Any) -> tuple[str, str | None]:
    if isinstance(value, str):
        return value, None
    if isinstance(value, Mapping):
        return _object_text(value)
    if isinstance(value, list):
        found = [_error_text(one) for one in value]
        code = next((code for _, code in found if code), None)
        return "; ".join(text for text, _ in found if text), code
    if not value:
        return "", None
    return ("true" if value is True else str(value)), None


def _object_text(value: Mapping[str, Any]) -> tuple[str, str | None]:
    members = {name.casefold(): one for name, one in value.items()}
    code = code_text(members.get("code"))
    for name in _TEXT_NAMES:
        text, inner = _error_text(members.get(name))
        if text:
            return text, code or inner
    if code or not value:
        return code or "", code
    return msgspec.json.encode(value).decode(), None


def code_text(code: Any) -> str | None:
    """A machine code as text; None if there is none."""
    if isinstance(code, bool) or not isinstance(code, str | int):
        return None
    if isinstance(code, int) and abs(code) >= 10**_LONGEST_CODE:
        return None  # Python refuses to format a huge number.
    return str(code) or None
