"""The answer to the request of a WebSocket handshake, checked before a library sees it.

WebSocket libraries accept different answers. Some reject an answer without a reason phrase, or with
more than 16 KB of headers, or wait for the end of a refusal's body, which may never come. So the
head of the answer is parsed here, by RFC 9110, 9112 and 6455. The library is given a minimal valid
answer, or nothing.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import hashlib
import itertools
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TypeAlias

from trio_broker.redaction import Redact

# Names in lower case, with the values of all headers of a name.
_Headers: TypeAlias = dict[str, list[str]]

_HTTP: Final = b"HTTP/1."
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

_MINIMAL_HEAD: Final = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: {}\r\n\r\n"
)

# Keys are found in what the peer wrote only if it is read as they were written.
_AS_WRITTEN: Final = ("utf-8", "replace")

# For all headers together, those of interim answers included.
_LARGEST_HEAD: Final = 64 * 1024

# How many characters an error quotes.
_LONGEST_LINE: Final = 80
_LONGEST_LOCATION: Final = 200

_SWITCHING: Final = 101
_FINAL: Final = 200  # this status and greater ones; the others are interim
_LONGEST_RETRY_AFTER: Final = 3600.0
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]*)?")
# A list has one element, or a few. A date has a comma, and counts as two.
_MOST_ELEMENTS: Final = 50


class AnswerError(Exception):
    """The answer doesn't open a WebSocket.

    Attributes:
        status: The HTTP status of a refusal, None for a wrong answer.
        retry_after: The seconds that the broker asked to wait, None if it didn't ask.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, status, retry_after)
        self.message = message
        self.status = status
        self.retry_after = retry_after


def key_of(request: bytes | bytearray | memoryview) -> str:
    """The ``Sec-WebSocket-Key`` of a request, empty if it has none."""
    match = re.search(rb"(?im)^sec-websocket-key:[ \t]*(\S+)", bytes(request))
    return match[1].decode() if match else ""


class HandshakeAnswer:
    """The answer, while it arrives.

    Args:
        key: The request's ``Sec-WebSocket-Key``.
        redact: Removes keys and signatures from a text. What an error quotes is redacted before
            it is shortened: half a key can't be found.
    """

    def __init__(self, key: str, redact: Redact = str) -> None:
        self._key = key.encode()
        self._redact = redact
        self._text = bytearray()
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they arrive, until this returns some.

        Returns:
            What the library is to read: nothing until the head of the answer is complete, then a
            minimal head and what came after it.

        Raises:
            AnswerError: The answer doesn't open a WebSocket.
        """
        self._text += data
        while (head := self._next_head()) is not None:
            status = self._status(head)
            if status >= _FINAL:
                raise self._refusal(head, status)
            if status == _SWITCHING:
                accept = self._checked(head)
                return _MINIMAL_HEAD.format(accept).encode() + bytes(self._text)
        return b""

    def _next_head(self) -> bytes | None:
        """Take the next head out of what has arrived, if it is complete."""
        if not _HTTP.startswith(self._text[: len(_HTTP)]):
            # Many protocols have no blank line to wait for.
            raise AnswerError("the peer spoke something other than HTTP/1.1")
        match = _END_OF_HEAD.search(self._text)
        end = len(self._text) if match is None else match.end()
        if self._size + end > _LARGEST_HEAD:
            raise _wrong(f"more than {_LARGEST_HEAD} bytes of headers")
        if match is None:
            return None
        head = bytes(self._text[:end])
        del self._text[:end]
        self._size += end
        return head

    def cut(self, how: str) -> AnswerError:
        """The error for a stream that ended before the answer did."""
        match = _STATUS_LINE.match(self._text)
        if match is None or int(match[2]) < _FINAL:
            return AnswerError(f"{how} in the WebSocket handshake")
        # The last line may be cut.
        return self._refusal(bytes(self._text[: self._text.rfind(b"\n") + 1]), int(match[2]))

    def _checked(self, head: bytes) -> str:
        """The accepted key of a 101.

        Raises:
            AnswerError: RFC 6455, section 4.1, doesn't allow the answer.
        """
        if head.startswith(b"HTTP/1.0"):
            raise _wrong("HTTP/1.0, which has no WebSockets")
        headers: _Headers = {}
        _read_headers(head, headers)
        if _listed(headers, "upgrade") != {"websocket"}:
            raise _wrong("a missing or wrong Upgrade header")
        if "upgrade" not in _listed(headers, "connection"):
            raise _wrong("a missing or wrong Connection header")
        digest = hashlib.sha1(self._key + _GUID).digest()  # noqa: S324 - as RFC 6455 has it
        accept = base64.b64encode(digest).decode()
        if headers.get("sec-websocket-accept") != [accept]:
            raise _wrong("a missing or wrong Sec-WebSocket-Accept header")
        if _listed(headers, "sec-websocket-extensions"):
            raise _wrong("an extension that was not asked for")
        if _listed(headers, "sec-websocket-protocol"):
            raise _wrong("a subprotocol that was not asked for")
        return accept

    def _status(self, head: bytes) -> int:
        match = _STATUS_LINE.match(head)
        if match is None:
            line = head.partition(b"\n")[0].rstrip(b"\r").decode(*_AS_WRITTEN)
            quoted = self._redact(line)[:_LONGEST_LINE]
            raise _wrong(f"{quoted!r}, which isn't a status line")
        return int(match[2])

    def _refusal(self, head: bytes, status: int) -> AnswerError:
        """The error for an HTTP answer that isn't 101; its head may be incomplete."""
        headers: _Headers = {}
        with suppress(AnswerError):  # The status counts, whatever else is wrong.
            _read_headers(head, headers)
        message = f"refused with HTTP status {status}"
        if location := next(filter(None, headers.get("location", ())), None):
            # Its query may repeat ours, which may be secret. Redacted first: a key may have a "?".
            where = self._redact(location).partition("?")[0][:_LONGEST_LOCATION]
            message = f"redirected to {where!r} ({status}), which isn't followed"
        retry_after = seconds_to_wait(headers.get("retry-after", ()))
        return AnswerError(message, status, retry_after)


def _wrong(what: str) -> AnswerError:
    return AnswerError(
        f"a wrong answer to the WebSocket handshake: the broker answered with {what}"
    )


def _read_headers(head: bytes, headers: _Headers) -> None:
    """Add the headers of a head. If a line is wrong, those before it are added.

    Raises:
        AnswerError: A line isn't a header.
    """
    for line in _FOLD.sub(b" ", head.partition(b"\n")[2]).split(b"\n"):
        text = line.removesuffix(b"\r")
        if not text:
            continue
        # One pattern for the whole line would try each blank in it as the end of the value.
        name, colon, value = text.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or b"\0" in value or b"\r" in value:
            raise _wrong("a line that isn't a header")
        values = headers.setdefault(name.decode("ascii").lower(), [])
        values.append(value.strip(b" \t").decode(*_AS_WRITTEN))


def _listed(headers: _Headers, name: str) -> set[str]:
    """The elements of a header that is a list, in lower case."""
    elements = ",".join(headers.get(name, ())).lower().split(",")
    return set(map(str.strip, elements)) - {""}


def seconds_to_wait(values: Iterable[str]) -> float | None:
    """The seconds that ``Retry-After`` headers mean (RFC 9110, section 10.2.3), an hour at most.

    The longest counts if there are several; what can't be read is ignored.

    Returns:
        None if nothing can be read.
    """
    parts = (part.strip() for value in values for part in value.split(","))
    looked_at = itertools.islice(parts, _MOST_ELEMENTS)
    read = [seconds for part in looked_at if (seconds := _seconds(part)) is not None]
    return min(max(read), _LONGEST_RETRY_AFTER) if read else None


def _seconds(text: str) -> float | None:
    """The seconds that a number or a date means. A date's day of the week is left out."""
    if _SECONDS.fullmatch(text):
        return float(text)  # Infinite if there are very many digits.
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
