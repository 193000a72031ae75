"""What the sandbox's faults do to texts and handshakes, as functions of text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import attrs

HandshakeKind: TypeAlias = Literal[
    "no_reason",
    "http_1_0",
    "long_headers",
    "interim",
    "extension",
    "subprotocol",
    "wrong_accept",
    "truncated",
    "not_http",
]

_FIRST_LINE: Final = re.compile(rb"^HTTP/1\.1 101[^\r]*")
_ACCEPT: Final = re.compile(rb"(?i)(sec-websocket-accept:)[^\r]*")


def _with_headers(lines: bytes) -> Callable[[bytes], bytes]:
    return lambda response: response.removesuffix(b"\r\n") + lines + b"\r\n"


# Each changes the bytes of the response to a handshake.
HANDSHAKES: Final[Mapping[HandshakeKind, Callable[[bytes], bytes]]] = {
    "no_reason": lambda response: _FIRST_LINE.sub(b"HTTP/1.1 101", response),
    "http_1_0": lambda response: _FIRST_LINE.sub(b"HTTP/1.0 101 Switching Protocols", response),
    "long_headers": _with_headers(
        b"".join(b"X-Long-%d: %s\r\n" % (number, b"x" * 1000) for number in range(12))
    ),
    "interim": lambda response: (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + response
    ),
    "extension": _with_headers(b"Sec-WebSocket-Extensions: x-unwanted\r\n"),
    "subprotocol": _with_headers(b"Sec-WebSocket-Protocol: unwanted\r\n"),
    "wrong_accept": lambda response: _ACCEPT.sub(rb"\1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=", response),
    "truncated": lambda response: response[: len(response) // 2],
    "not_http": lambda _: b"SSH-2.0-OpenSSH_9.2p1\r\n",
}


@attrs.frozen
class MemberChange:
    """A change of a message's members: `Faults.change`, which documents it."""

    members: Mapping[str, object]
    without: frozenset[str]
    add: Mapping[str, object]
    asset: str | None

    def apply(self, text: str) -> str:
        """The changed message. A text that isn't JSON stays as it is."""
        message = _parsed(text)
        changed = self._changed(message)
        data = changed.get("data") if isinstance(changed, dict) else None
        if isinstance(data, dict):
            data.update(self.add)
        # Compared, so that a text without these members stays as it is.
        new = _printed(changed)
        return text if new == _printed(message) else new

    def _changed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._changed(each) for each in value]
        if not isinstance(value, dict):
            return value
        changed = {name: self._changed(each) for name, each in value.items()}
        if self.asset in {None, changed.get("asset")}:
            for name, new in self.members.items():
                if name in changed:
                    changed[name] = new(changed[name]) if callable(new) else new
            for name in self.without:
                changed.pop(name, None)
        return changed


def padded(text: str, size: int) -> str:
    """A message with a further member, so that it has at least so many bytes."""
    message = _parsed(text)
    missing = size - len(text.encode())
    if not isinstance(message, dict) or missing <= 0:
        return text
    return _printed({**message, "padding": "x" * missing})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _printed(message: object) -> str:
    # Unlike msgspec, json prints NaN and integers of any size.
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
