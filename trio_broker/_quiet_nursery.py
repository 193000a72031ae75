"""A nursery that makes no exception groups.

`trio.open_nursery` wraps every exception of its block and its tasks in a group. Users must not meet
the library's own nurseries: an error of a user's block comes out as it was raised, and an error of
the library comes out bare, so that ``except`` finds it.
"""

from __future__ import annotations

from types import TracebackType

import trio
from trio.lowlevel import enable_ki_protection


class QuietNursery:
    """A nursery that raises one exception, and never a group of its own.

    - If a task fails, its error is raised. An error of the block becomes its context.
    - Otherwise an exception of the block is raised unchanged.
    - If only tasks were cancelled, nothing is raised: the block may have opened a socket that must
      not be lost. The next checkpoint raises the cancellation anyway.
    """

    @enable_ki_protection
    async def __aenter__(self) -> trio.Nursery:
        self._manager = trio.open_nursery(strict_exception_groups=True)
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # Only the nursery knows whether it was cancelled itself, or a scope around it. Other
        # exceptions aren't passed to it, because it would wrap them in a group.
        is_cancelled = exc_value is not None and _most_serious(exc_value) is None
        if exc_value is not None:
            self._nursery.cancel_scope.cancel()
        fault: BaseException | None = None
        passed = exc_value if is_cancelled else None
        try:
            # Like every nursery, it waits for its tasks.
            await self._manager.__aexit__(exc_type, passed, traceback)  # noqa: ASYNC102
        except BaseExceptionGroup as group:
            fault = _most_serious(group)
            if fault is None:
                return False
        if fault is None:
            return is_cancelled
        try:
            raise fault  # Out here, where the group doesn't become its context.
        finally:
            del fault  # It would keep this frame alive.


def _most_serious(error: BaseException) -> BaseException | None:
    """The exception to raise for a group: Ctrl-C before errors; None if all are cancellations."""
    if not isinstance(error, BaseExceptionGroup):
        return None if isinstance(error, trio.Cancelled) else error
    _, errors = error.split(trio.Cancelled)
    if errors is None:
        return None
    _, interrupts = errors.split(Exception)
    chosen: BaseException = interrupts if interrupts is not None else errors
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    return chosen
