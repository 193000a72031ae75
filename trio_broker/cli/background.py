"""Background tasks whose errors are raised without an exception group.

A command prints its error in one line, so it needs the error itself and not a group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio


@asynccontextmanager
async def background(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run tasks in the background of a block, and cancel them when the block ends.

    If the block raises an error while it is cancelled, the cancellation wins.
    """
    error: Exception | None = None
    with _without_group():
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
            try:
                yield
            except Exception as raised:  # noqa: BLE001 - raised again below
                error = raised
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error


@contextmanager
def _without_group() -> Iterator[None]:
    """Raise the first error of an exception group instead of the group."""
    error: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if error is not None:
        raise error
