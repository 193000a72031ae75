"""The Trio run that is a guest of an asyncio event loop, and calls into Trio."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from trio_broker._log_fields import fields
from trio_broker.client import BrokerWSClient

if TYPE_CHECKING:
    from outcome import Outcome

T = TypeVar("T")

logger: Final = logging.getLogger("trio_broker.aio")


class _Here(threading.local):
    """The guest of this thread."""

    guest: Guest | None = None


_here: Final = _Here()


async def _outlast(
    over: asyncio.Event, on_cancel: Callable[[], object]
) -> asyncio.CancelledError | KeyboardInterrupt | None:
    """Wait for an event, however often this task is cancelled.

    `on_cancel` is called for each cancellation, and the first one is returned, to be raised later.
    """
    first: asyncio.CancelledError | KeyboardInterrupt | None = None
    while not over.is_set():
        try:
            await over.wait()
        except (asyncio.CancelledError, KeyboardInterrupt) as error:  # noqa: ASYNC103 - returned
            first = first or error
            on_cancel()
    return first


class Guest:
    """The Trio run of one event loop. Each `join` needs a `leave`.

    Attributes:
        loop: The event loop.
        process: The ID of the process that it runs in. It can't run in a forked process.
        users: How often it was joined and not left. It ends when the last user leaves.
        ended: Set when the run has ended.
        waking: Functions that are called if the run breaks down, to wake tasks that wait for it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self.waking: Final[set[Callable[[], object]]] = set()
        self.users: int = 0
        self.process: Final[int] = os.getpid()
        self.ended: Final = asyncio.Event()
        self._failure: BaseException | None = None
        self._nursery: trio.Nursery
        self._has_nursery = trio.Event()
        self._unused = trio.Event()

    def start(self) -> None:
        """Start the run, in an empty context: it must not keep the caller's variables alive."""
        contextvars.Context().run(
            partial(
                trio.lowlevel.start_guest_run,
                self._main,
                run_sync_soon_threadsafe=self.loop.call_soon_threadsafe,
                run_sync_soon_not_threadsafe=self.loop.call_soon,
                done_callback=self._end,
                # Asyncio sets it on Unix for its signal handlers, and on Windows always.
                host_uses_signal_set_wakeup_fd=True,
                # Only `_main` gets Ctrl-C. In a client's task, it would end the whole run.
                restrict_keyboard_interrupt_to_checkpoints=True,
            )
        )
        _here.guest = self

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._has_nursery.set()
            while not self._unused.is_set():
                try:
                    await self._unused.wait()
                except KeyboardInterrupt:
                    # Without `asyncio.run`, Trio handles Ctrl-C. It belongs to the loop.
                    self.loop.call_soon(_interrupt)
            # No task of a client may delay the end.
            nursery.cancel_scope.cancel()

    def _end(self, outcome: Outcome[None]) -> None:
        _here.guest = None
        error: BaseException | None = getattr(outcome, "error", None)
        self._failure = error
        if error is not None and _is_interrupt(error):
            self.loop.call_soon(_interrupt)
        elif error is not None:
            logger.critical("Trio has broken down", exc_info=error, extra=fields())
        self.ended.set()
        for wake in tuple(self.waking):
            wake()

    def check(self) -> None:
        """Raise an error after a breakdown of Trio, or in another event loop."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(
                "this belongs to a client of another event loop: open a client in this one"
            )
        if self._failure is not None:
            if _is_interrupt(self._failure):
                raise KeyboardInterrupt from self._failure
            raise RuntimeError(
                "Trio has broken down, and this client with it: calls under way may have been "
                "completed or not"
            ) from self._failure

    async def run(
        self,
        function: Callable[[], Awaitable[T]],
        unclaimed: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Call an async function in a Trio task, and wait until it has ended.

        The function is cancelled when this task is cancelled. If it returns a result nevertheless,
        `unclaimed` is called with it, also in a Trio task.

        Raises:
            asyncio.CancelledError: This task was cancelled, and the function has ended.
            BaseException: Whatever the function raised.
            RuntimeError: Trio has broken down.
        """
        self.check()
        scope, over = trio.CancelScope(), asyncio.Event()
        results: list[T] = []
        errors: list[BaseException | None] = [None]

        async def perform() -> None:
            try:
                with scope:
                    results.append(await function())
            except trio.Cancelled:
                raise  # From outside the scope: Trio breaks down, and `_end` wakes this task.
            except BaseException as error:  # noqa: BLE001 - it is raised again in this task
                errors.append(error)
            over.set()

        self.waking.add(over.set)
        trio.lowlevel.spawn_system_task(perform, name=function, context=contextvars.copy_context())
        try:
            cancelled = await _outlast(over, scope.cancel)
        finally:
            self.waking.discard(over.set)
        error = errors.pop()  # its traceback holds the list
        try:
            if cancelled is not None and (error is None or isinstance(error, Exception)):
                if results and unclaimed is not None:
                    await self.run(partial(unclaimed, results[0]))
                raise cancelled from error
            if error is not None:
                raise error
            self.check()
            return results[0]
        finally:
            del error, cancelled

    async def connect(self, client: BrokerWSClient) -> None:
        """Connect a client, in a Trio task. Its own tasks run in this guest's nursery."""
        await self._has_nursery.wait()
        await client.connect(self._nursery)

    async def leave(self) -> None:
        """Leave. The last user ends the run, and waits until it has ended."""
        if self.users == 1:
            self._unused.set()  # first, because a Ctrl-C between the two must not skip it
        self.users -= 1
        if self.users == 0 and not self.ended.is_set():
            cancelled = await _outlast(self.ended, lambda: None)
            if cancelled is not None:
                raise cancelled


async def join() -> Guest:
    """Join the guest of the running loop. It is started if there is none.

    Raises:
        RuntimeError: Trio can't run here; the message says why.
    """
    if trio.lowlevel.in_trio_task():
        raise RuntimeError("this is a Trio program: use BrokerWSClient without trio_broker.aio")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("trio_broker.aio needs a running asyncio event loop") from None
    while (guest := _here.guest) is not None and guest.loop is loop and not guest.users:
        await guest.ended.wait()
    if guest is None:
        if trio.lowlevel.in_trio_run():
            raise RuntimeError(
                "another Trio run is a guest of this thread already: use BrokerWSClient in it"
            )
        guest = Guest(loop)
        guest.start()
    elif guest.process != os.getpid():
        raise RuntimeError(
            "this process was forked from one with clients open, and Trio can't run in it: use "
            "the start method 'spawn'"
        )
    elif guest.loop.is_closed():
        raise RuntimeError(
            "an event loop of this thread was closed while clients of it were open, and Trio can't "
            "run in this thread any more: use another thread"
        )
    elif guest.loop is not loop:
        raise RuntimeError(
            "a client of another event loop in this thread was never closed: close it in its loop "
            "first"
        )
    guest.users += 1
    return guest


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is a Ctrl-C, or was caused only by one."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_interrupt, error.exceptions))
    if isinstance(error, trio.TrioInternalError):
        return _is_interrupt(error.__cause__)
    return isinstance(error, KeyboardInterrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt
