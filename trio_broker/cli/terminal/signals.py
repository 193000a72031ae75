"""Signals: Ctrl-C cancels a block, and Ctrl-Z restores the terminal before the process stops."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final

import trio


def _available(*names: str) -> tuple[signal.Signals, ...]:
    """Return the signals that exist on this system."""
    return tuple(each for each in signal.Signals if each.name in names)


# Sent by Ctrl-C, by a service manager or `timeout`, and when a terminal is closed.
_TERMINATION: Final = _available("SIGINT", "SIGTERM", "SIGHUP")
_STOP: Final = _available("SIGTSTP")
_CONTINUE: Final = _available("SIGCONT")


@contextmanager
def cancel_on_signal() -> Iterator[trio.CancelScope]:
    """Cancel the block on the first SIGINT, SIGTERM or SIGHUP, then restore the handlers.

    Blocks can be nested: the first Ctrl-C cancels the inner block, the second the outer one. A
    signal that is ignored, for example by ``nohup``, stays ignored.

    Yields:
        The block's cancel scope.
    """
    token = trio.lowlevel.current_trio_token()
    before = {
        number: handler
        for number in _TERMINATION
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(_number: int, _frame: FrameType | None) -> None:
        restore()
        # A handler can run in the middle of Trio's code, so it can't cancel the scope itself.
        token.run_sync_soon(scope.cancel)

    with trio.CancelScope() as scope:
        for number in before:
            signal.signal(number, handle)
        try:
            yield scope
        finally:
            restore()


async def release_terminal_on_stop(
    release: Callable[[], object], acquire: Callable[[], object]
) -> None:
    """Until cancelled, call `release` before Ctrl-Z stops the process and `acquire` afterwards."""
    async with trio.open_nursery() as nursery:
        for number in _STOP:
            nursery.start_soon(_release_on, number, release, acquire)


# A KeyboardInterrupt in the middle would leave the terminal in an inconsistent state.
@trio.lowlevel.enable_ki_protection
async def _release_on(
    number: signal.Signals, release: Callable[[], object], acquire: Callable[[], object]
) -> None:
    with trio.open_signal_receiver(number) as signals:
        async for _ in signals:
            release()
            signal.raise_signal(signal.SIGSTOP)
            acquire()


@contextmanager
def continue_signals() -> Iterator[Sequence[AsyncIterator[int]]]:
    """Receive SIGCONT, which this process gets when it continues after a stop.

    Yields:
        One receiver, or none on a system without SIGCONT.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(trio.open_signal_receiver(number)) for number in _CONTINUE]
