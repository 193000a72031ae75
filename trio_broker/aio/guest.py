"""The Trio run that is a guest of an asyncio event loop, and calls into it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from trio_broker.client import BrokerWSClient

if TYPE_CHECKING:
    from outcome import Outcome

T = TypeVar("T")

logger: Final = logging.getLogger("trio_broker.aio")


class _Here(threading.local):
    """What this thread has."""

    guest: Guest | None = None


_here: Final = _Here()


class _Call(Generic[T]):
    """A call from asyncio, carried out by a Trio task.

    Args:
        function: What is called there.
    """

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self.scope: Final = trio.CancelScope()
        self.over: Final = asyncio.Event()
        self.results: Final[list[T]] = []
        self.error: BaseException | None = None

    async def perform(self) -> None:
        """The Trio task."""
        try:
            with self.scope:
                self.results.append(await self._function())
        except trio.Cancelled:
            raise  # From outside of the scope: Trio breaks down, and `Guest` wakes who waits.
        except BaseException as error:  # noqa: BLE001 - it is raised again, on the other side
            self.error = error
        self.over.set()


class _HeldBack:
    """Holds the cancellations of an asyncio task back, while it waits for what must be waited for.

    Args:
        on_cancel: Called for each.

    Attributes:
        first: The first one.
    """

    def __init__(self, on_cancel: Callable[[], object]) -> None:
        self._on_cancel = on_cancel
        self.first: asyncio.CancelledError | KeyboardInterrupt | None = None

    def __enter__(self) -> None:
        """What it is around may be cancelled."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # A second Ctrl-C is raised wherever the program is: it waits likewise.
        if not isinstance(exc_value, asyncio.CancelledError | KeyboardInterrupt):
            return False
        self.first = self.first or exc_value
        self._on_cancel()
        return True


async def _outlast(
    over: asyncio.Event, on_cancel: Callable[[], object]
) -> asyncio.CancelledError | KeyboardInterrupt | None:
    """Wait for something that will come, however often this task is cancelled meanwhile.

    Args:
        over: What is waited for.
        on_cancel: Called for each cancellation.

    Returns:
        The first cancellation, to be raised when all is done.
    """
    held_back = _HeldBack(on_cancel)
    while not over.is_set():
        with held_back:
            await over.wait()
    return held_back.first


class Guest:
    """The Trio run of one event loop. `join` makes it; who has joined it has to leave it.

    Args:
        loop: The event loop.

    Attributes:
        loop: The event loop.
        process: The process that it runs in; one that is forked from it has but a picture of it.
        waking: Called if the run breaks down, for those who wait for something of it.
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

    @property
    def is_ending(self) -> bool:
        """Whether the last user has left."""
        return self.users == 0

    def start(self) -> None:
        """Begin, in a context that is empty: nobody's context variables are to live that long."""
        contextvars.Context().run(
            partial(
                trio.lowlevel.start_guest_run,
                self._main,
                run_sync_soon_threadsafe=self.loop.call_soon_threadsafe,
                run_sync_soon_not_threadsafe=self.loop.call_soon,
                done_callback=self._end,
                # Asyncio does on Unix for its signal handlers, and on Windows always.
                host_uses_signal_set_wakeup_fd=True,
                # Ctrl-C comes to `_main` alone: in a task of a client it would end them all.
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
                    # Where the program hasn't `asyncio.run` see to Ctrl-C, Trio does, and gives it
                    # to this task. It is the loop's.
                    self.loop.call_soon(_interrupt)
            # Whatever ended them, no client's task may keep from its end who waits for this.
            nursery.cancel_scope.cancel()

    def _end(self, outcome: Outcome[None]) -> None:
        _here.guest = None
        error: BaseException | None = getattr(outcome, "error", None)
        self._failure = error
        if error is not None and _is_interrupt(error):
            self.loop.call_soon(_interrupt)
        elif error is not None:
            logger.critical("Trio has broken down", exc_info=error)
        self.ended.set()
        for wake in tuple(self.waking):
            wake()

    def check(self) -> None:
        """Refuse to go on after a breakdown, or in another event loop.

        Raises:
            RuntimeError: Trio has broken down, or this is another loop.
            KeyboardInterrupt: It was a Ctrl-C that broke it.
        """
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("this belongs to a client of another event loop: open one in this")
        if self._failure is not None:
            if _is_interrupt(self._failure):
                raise KeyboardInterrupt from self._failure
            raise RuntimeError(
                "Trio has broken down, and with it this client: what was under way may have been "
                "done, or not"
            ) from self._failure

    async def run(
        self,
        function: Callable[[], Awaitable[T]],
        unclaimed: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Have an asynchronous function called in a Trio task, and wait for its end.

        Args:
            function: The function. It runs in a copy of this task's context. Cancelled when this
                task is cancelled.
            unclaimed: Called in a Trio task with a result that came in spite of that.

        Returns:
            What it returned.

        Raises:
            asyncio.CancelledError: This task was cancelled; the function has ended.
            BaseException: What the function has raised.
            RuntimeError: Trio has broken down.
        """
        self.check()
        call = _Call(function)
        self.waking.add(call.over.set)
        trio.lowlevel.spawn_system_task(
            call.perform, name=function, context=contextvars.copy_context()
        )
        try:
            cancelled = await _outlast(call.over, call.scope.cancel)
        finally:
            self.waking.discard(call.over.set)
        error, call.error = call.error, None  # which would hold this frame, by its traceback
        try:
            if cancelled is not None and (error is None or isinstance(error, Exception)):
                if call.results and unclaimed is not None:
                    await self.run(partial(unclaimed, call.results[0]))
                raise cancelled from error
            if error is not None:
                raise error
            self.check()
            return call.results[0]
        finally:
            del error, cancelled

    async def connect(self, client: BrokerWSClient) -> None:
        """In a Trio task: connect a client, whose own tasks are the guest's until it is closed.

        Args:
            client: The client.
        """
        await self._has_nursery.wait()
        await client.connect(self._nursery)

    async def leave(self) -> None:
        """Need it no longer. The last one ends it, and waits for its end."""
        if self.users == 1:
            self._unused.set()  # first: a Ctrl-C between the two may not leave it without an end
        self.users -= 1
        if self.is_ending and not self.ended.is_set():
            cancelled = await _outlast(self.ended, _do_nothing)
            if cancelled is not None:
                raise cancelled


async def join() -> Guest:
    """The guest of the loop that runs, for whoever leaves it again; started if there is none.

    Raises:
        RuntimeError: There can't be one here; the message says why.
    """
    if trio.lowlevel.in_trio_task():
        raise RuntimeError("this is a Trio program: use BrokerWSClient without trio_broker.aio")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("trio_broker.aio needs a running asyncio event loop") from None
    while (guest := _here.guest) is not None and guest.loop is loop and guest.is_ending:
        await guest.ended.wait()
    if guest is None:
        if trio.lowlevel.in_trio_run():
            raise RuntimeError(
                "another Trio run is a guest of this thread already: use BrokerWSClient within it"
            )
        guest = Guest(loop)
        guest.start()
    elif guest.process != os.getpid():
        raise RuntimeError(
            "this process was forked from one with clients open, and Trio can't run in it: start "
            "it by spawn"
        )
    elif guest.loop.is_closed():
        raise RuntimeError(
            "an event loop of this thread was closed while clients of it were open, and Trio can't "
            "run in this thread any more: use another one"
        )
    elif guest.loop is not loop:
        raise RuntimeError(
            "a client of another event loop in this thread was never closed, and Trio can't be "
            "the guest of two: close it in its loop first"
        )
    guest.users += 1
    return guest


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether there is nothing but Ctrl-C at the bottom of an error."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_interrupt, error.exceptions))
    if isinstance(error, trio.TrioInternalError):
        return _is_interrupt(error.__cause__)
    return isinstance(error, KeyboardInterrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _do_nothing() -> None:
    """There is nothing to be done about a cancellation."""
