"""Ctrl-Z: a command that draws leaves the terminal to the shell as it was, cursor and all."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import trio

# Where there are such things.
_STOPPED: Final = tuple(one for one in signal.Signals if one.name == "SIGTSTP")
_CONTINUED: Final = tuple(one for one in signal.Signals if one.name == "SIGCONT")


async def give_way(leave: Callable[[], object], take: Callable[[], object]) -> None:
    """Let Ctrl-Z stop this process with its terminal left, until cancelled.

    Args:
        leave: Leaves the terminal as it was before.
        take: Takes it again, once the process goes on.
    """
    async with trio.open_nursery() as nursery:
        for number in _STOPPED:
            nursery.start_soon(_give_way, number, leave, take)


# A Ctrl-C in the middle would leave the terminal half taken.
@trio.lowlevel.enable_ki_protection
async def _give_way(
    number: signal.Signals, leave: Callable[[], object], take: Callable[[], object]
) -> None:
    with trio.open_signal_receiver(number) as signals:
        async for _ in signals:
            leave()
            signal.raise_signal(signal.SIGSTOP)
            take()


@contextmanager
def returns() -> Iterator[Sequence[AsyncIterator[int]]]:
    """Hear, from now on, that this process goes on after it was stopped.

    Yields:
        What brings an item then; nothing where no process can be stopped.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(trio.open_signal_receiver(number)) for number in _CONTINUED]
