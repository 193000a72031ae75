"""Ctrl-C as a cancellation, for commands that have to tell what they leave behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import trio

# What ends a program politely: Ctrl-C, a service manager or `timeout`, a terminal that is closed.
# Not every system has the last one.
_POLITE: Final = tuple(one for one in signal.Signals if one.name in {"SIGINT", "SIGTERM", "SIGHUP"})


@contextmanager
def ctrl_c_cancels() -> Iterator[trio.CancelScope]:
    """Cancel the block by the first Ctrl-C or the like, and leave the next to whoever had it.

    So a block in a block makes the first Ctrl-C end the inner one and the second one the outer one.
    A signal that is ignored, as in the background of a shell, stays so.

    Yields:
        The block's scope; its ``cancelled_caught`` tells afterwards whether it was ended.
    """
    token = trio.lowlevel.current_trio_token()
    before = {
        number: handler
        for number in _POLITE
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        restore()
        # A signal lands between any two instructions: the scope is cancelled by Trio's own loop.
        token.run_sync_soon(scope.cancel)

    with trio.CancelScope() as scope:
        for number in before:
            signal.signal(number, interrupted)
        try:
            yield scope
        finally:
            restore()
