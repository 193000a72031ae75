"""Makes every public async function a checkpoint, also when it raises at once.

A program may repeat a call in a loop, for example ``do_swap`` while it raises `NotSentError`. If
the call raised before its first checkpoint, no other task would run again, not even the one that
reconnects.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

P = ParamSpec("P")
T = TypeVar("T")

AsyncFunction: TypeAlias = Callable[P, Coroutine[Any, Any, T]]


def always_checkpoint(function: AsyncFunction[P, T]) -> AsyncFunction[P, T]:
    """Make an async function a checkpoint when it raises.

    It begins with a cancel point. After it has raised, other tasks run, but no `Cancelled` replaces
    the error, which may be the outcome of a swap. If it returns, it must have executed a checkpoint
    itself.
    """

    @wraps(function)
    @enable_ki_protection
    async def checkpointed(*args: P.args, **kwargs: P.kwargs) -> T:
        if not trio.lowlevel.in_trio_task():
            return await function(*args, **kwargs)  # It raises the right error.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            return await function(*args, **kwargs)
        except Exception:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise

    return checkpointed


def checkpoint_after(function: AsyncFunction[P, T]) -> AsyncFunction[P, T]:
    """Like `always_checkpoint`, for what must act even in a cancelled scope, such as closing.

    If it raises, `Cancelled` may replace the error.
    """

    @wraps(function)
    @enable_ki_protection
    async def checkpointed(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except Exception:
            if trio.lowlevel.in_trio_task():
                await trio.lowlevel.checkpoint()  # noqa: ASYNC120 - as the docstring says
            raise

    return checkpointed
