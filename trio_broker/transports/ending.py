"""How a connection ended, in the words of every transport."""

from __future__ import annotations

from typing import Final

import trio

from trio_broker.exceptions import ConnectionLostError

# What RFC 6455 (section 7.4.1) calls it when a close frame has no code.
NO_CODE: Final = 1005

HUNG_UP: Final = "the peer hung up"
DROPPED: Final = "this side dropped the connection"
CLOSED_HERE: Final = "this side closed the connection"


def how_it_broke(error: trio.BrokenResourceError) -> str:
    """What the system said when a read or a write failed.

    Args:
        error: What the stream raised.
    """
    return f"the connection broke ({error.__cause__ or error})"


def cut(how: str) -> ConnectionLostError:
    """The error for a connection that ended without a close frame.

    Args:
        how: How it ended.
    """
    return ConnectionLostError(f"{how}, without a close frame")


def closed(code: int, name: str, reason: str) -> ConnectionLostError:
    """The error for a connection that ended with a close frame, of either side.

    Args:
        code: Its code, `NO_CODE` for none.
        name: What the code is called.
        reason: Its reason, empty for none.
    """
    if code == NO_CODE:
        return ConnectionLostError("the peer closed the WebSocket and gave no code")
    text = f"the WebSocket was closed with code {code} ({name})"
    if reason:
        text += f": {reason!r}"
    return ConnectionLostError(text, code)
