"""`Redactor`: removes a client's keys from everything that the broker sends, before users see it.

A broker may echo what it was sent: in an error, a close reason, a push, a field of an order. In
texts, everything that looks like a signature is removed as well. In values only the keys are: the
transaction hashes of some chains look like signatures. Amounts, and the IDs that orders are looked
up by, aren't changed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar, cast

import attrs

from trio_broker._secret import Secret
from trio_broker.exceptions import BrokerError, ProtocolError
from trio_broker.models import Balance
from trio_broker.redaction import REMOVED, Redact, redactor

E = TypeVar("E", bound=BaseException)

LONGEST_ERROR: Final = 2000
IDS: Final = ("order_id", "client_order_id", "channel", "client")
_SIGNATURE_NAMES: Final = frozenset({"sig", "signature"})
_SIGNATURE: Final = re.compile(r"[0-9a-fA-F]{64}")
# A key of a few characters, as in tests, is also a part of ordinary words.
_LEAST: Final = 6


class Redactor:
    """Redacts texts, errors and values.

    Attributes:
        text: Redacts a text of the broker.
        name: Redacts a name, a URL or a text that was redacted before: removes keys only.
        hints: Texts. Every text that contains a key contains one of them.
    """

    __slots__ = ("_margin", "hints", "name", "text")

    def __init__(self, keys: Iterable[Secret]) -> None:
        texts = [key.reveal() for key in keys]
        self.text: Redact = redactor(texts, signatures=bool(texts))
        self.name: Redact = redactor(text for text in texts if len(text) >= _LEAST)
        # The length of the longest key: each of its characters may be written as several.
        self._margin = 16 * max(map(len, texts), default=0) + 128
        # An escaped key contains a backslash.
        self.hints: tuple[str, ...] = (*texts, "\\") if texts else ()

    def beginning(self, text: str, length: int) -> str:
        """The first characters of a text that may be long, redacted before it is cut."""
        if len(text) <= length + 2 * self._margin:
            return self.text(text)[:length]
        # There may be half a key at the end.
        start = self.text(text[: length + 2 * self._margin])
        return start[: max(0, min(length, len(start) - self._margin))]

    def error_text(self, text: str) -> str:
        """A text of the broker for an error, shortened if it is long."""
        short = self.beginning(text, LONGEST_ERROR)
        return short if len(text) <= LONGEST_ERROR else f"{short} […]"

    def may_hold(self, text: str) -> bool:
        """Whether a text can contain a key. This is quick."""
        return any(map(text.__contains__, self.hints))

    # --- Values --------------------------------------------------------------------------------

    def value(self, value: Any, name: str = "") -> Any:
        """A value without keys in its texts: JSON data, or one of `models`.

        Raises:
            ProtocolError: It is nested too deeply.
        """
        try:
            return self._value(value, name)
        except RecursionError:
            raise ProtocolError("its data is nested too deeply") from None

    def _value(self, value: Any, name: str = "") -> Any:
        if type(value) is str:
            if name.lower() in _SIGNATURE_NAMES and _SIGNATURE.fullmatch(value):
                return REMOVED
            return self.name(value)
        if isinstance(value, Mapping):
            return {self.name(str(key)): self._value(one, str(key)) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self._value, value))
        if attrs.has(type(value)):
            return self._instance(value)
        return value

    def _balance(self, value: Balance) -> Balance:
        """A balance, whose amounts perhaps can't be read, with its asset redacted."""
        asset = self.name(value.asset)
        if asset == value.asset:
            return value
        twin = copy.copy(value)
        object.__setattr__(twin, "asset", asset)  # It is frozen.
        return twin

    def _instance(self, value: Any) -> Any:
        if isinstance(value, Balance):
            return self._balance(value)
        fields = {
            field.name: getattr(value, field.name)
            for field in attrs.fields(type(value))
            if field.name not in IDS
        }
        redacted = {name: self._value(one, name) for name, one in fields.items()}
        changes = {name: one for name, one in redacted.items() if one != fields[name]}
        return attrs.evolve(value, **changes) if changes else value

    # --- Errors --------------------------------------------------------------------------------

    def error(self, error: E, *, frames: bool = True) -> E:
        """Remove keys from an error and its chain of causes; the same error if there are none.

        Without `frames`, the causes lose their tracebacks, whose frames hold messages as received.
        """
        return cast("E", self._error(error, frames, set()))

    def _error(self, error: BaseException, frames: bool, seen: set[int]) -> BaseException:
        seen.add(id(error))
        clean = self._without_chain(error, frames, seen)
        for link in ("__cause__", "__context__"):
            linked = getattr(error, link)
            if linked is None or id(linked) in seen:
                continue
            redacted = self._error(linked, frames, seen)
            if not frames and redacted.__traceback__ is not None:
                redacted = _without_frames(redacted)
            if redacted is not linked or clean is not error:
                suppressed = error.__suppress_context__
                setattr(clean, link, redacted)
                clean.__suppress_context__ = suppressed
        return clean

    def _without_chain(self, error: BaseException, frames: bool, seen: set[int]) -> BaseException:
        if isinstance(error, BaseExceptionGroup):
            inner = [self._error(one, frames, seen) for one in error.exceptions]
            if all(one is other for one, other in zip(inner, error.exceptions, strict=True)):
                return error
            return error.derive(inner).with_traceback(error.__traceback__)
        shown = f"{error} {error!r} {vars(error)}"
        if self.text(shown) == shown:
            return error
        if not isinstance(error, BrokerError):
            # It may keep the key anywhere, so only its text is used.
            told = BrokerError(self.text(f"{type(error).__name__}: {error}"))
            return told.with_traceback(error.__traceback__)
        ids = {getattr(error, name, None) for name in IDS}
        twin = copy.copy(error).with_traceback(error.__traceback__)

        def redacted(value: Any) -> Any:
            if isinstance(value, str):
                return value if value in ids else self.text(value)
            return [*map(redacted, value)] if isinstance(value, list) else value  # its notes

        twin.args = tuple(map(redacted, error.args))
        for name, value in vars(error).items():
            setattr(twin, name, redacted(value))
        return twin


def _without_frames(error: BaseException) -> BaseException:
    """Copy an error, without its traceback."""
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - not every exception can be copied
        twin = BrokerError(f"{type(error).__name__}: {error}")
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return twin.with_traceback(None)
