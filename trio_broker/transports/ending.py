"""The errors for a connection that ended, in the same words for every transport."""

from __future__ import annotations

from typing import Final

import trio

from trio_broker.exceptions import ConnectionLostError

# What RFC 6455 (section 7.4.1) calls it when a close frame has no code.
NO_CODE: Final = 1005

HUNG_UP: Final = "the peer hung up"
DROPPED: Final = "this side dropped the connection"
CLOSED_HERE: Final = "this side closed the connection"


def how_it_broke(error: Exception) -> str:
    """The words for a read or a write that failed."""
    if isinstance(error, trio.BrokenResourceError):
        return f"the connection broke ({error.__cause__ or error})"
    return f"the connection broke ({error!r})"


def cut(how: str) -> ConnectionLostError:
    """The error for a connection that ended without a close frame."""
    return ConnectionLostError(f"{how}, without a close frame")


def failed(error: Exception) -> ConnectionLostError:
    """The error for a connection in which something unexpected was raised."""
    lost = cut(how_it_broke(error))
    lost.__cause__ = error
    return lost


def closed(code: int, name: str, reason: str, *, is_local: bool) -> ConnectionLostError:
    """The error for a connection that ended with a close frame."""
    side = "this side" if is_local else "the peer"
    if code == NO_CODE:
        return ConnectionLostError(f"{side} closed the WebSocket and gave no code", None, is_local)
    text = f"{side} closed the WebSocket with code {code} ({name})"
    if reason:
        text += f": {reason!r}"
    return ConnectionLostError(text, code, is_local)
