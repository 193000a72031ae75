"""Tasks beside a block, for commands whose errors are told in one line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def beside(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run tasks beside a block, and cancel them at its end.

    What the block raises comes out as it was raised, and not in a group.

    Args:
        tasks: The tasks.
    """
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield
        except Exception as raised:  # noqa: BLE001 - kept back: the nursery would wrap it
            error = raised
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
