"""Trio as the guest of an asyncio loop: start, end, and calls into it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import queue
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Literal

import pytest
import sniffio
import trio
import trio.lowlevel

from tests.aio_host import PATIENCE, PLAIN, Host, settle
from trio_broker._log_fields import fields
from trio_broker.aio import guest as guests
from trio_broker.aio.guest import Guest, join


async def returned(value: object) -> object:
    await trio.lowlevel.checkpoint()
    return value


async def raised(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


class Work:
    """A call that ends when it is released, and may ignore cancellation."""

    def __init__(self, *, deaf: bool = False, error: BaseException | None = None) -> None:
        self.began = asyncio.Event()
        self.release = trio.Event()
        self.ended = asyncio.Event()
        self.ends: list[str] = []
        self._deaf = deaf
        self._error = error

    async def __call__(self) -> str:
        self.began.set()
        try:
            with trio.CancelScope(shield=self._deaf):
                await self.release.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.ends.append("cancelled")
            raise
        self.ends.append("done")
        self.ended.set()
        if self._error is not None:
            raise self._error
        return "result"


# --- Calls ----------------------------------------------------------------------------------


def test_results_and_exceptions_are_passed_on(host: Host) -> None:
    error = ExceptionGroup("a user's own", [ValueError("no")])

    async def main() -> None:
        guest = await join()
        assert await guest.run(partial(returned, 7)) == 7
        with pytest.RaisesGroup(ValueError) as caught:
            await guest.run(partial(raised, error))
        assert caught.value is error
        await guest.leave()

    host.run(main)


def test_cancelled_call_waits_for_the_end_of_the_function(host: Host) -> None:
    async def main() -> None:
        guest = await join()
        work = Work()
        task = asyncio.create_task(guest.run(work))
        await work.began.wait()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.ends == ["cancelled"]
        assert guest.waking == set()
        await guest.leave()

    host.run(main)


def test_call_cancelled_repeatedly_still_waits(host: Host) -> None:
    async def main() -> None:
        guest = await join()
        work = Work(deaf=True)
        task = asyncio.create_task(guest.run(work))
        await work.began.wait()
        for _ in range(3):
            task.cancel()
            await settle()
        assert not task.done()
        work.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.ends == ["done"]
        await guest.leave()

    host.run(main)


def test_call_cancelled_before_its_start_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        guest = await join()
        done = []

        async def act() -> None:
            await trio.lowlevel.checkpoint_if_cancelled()
            done.append("act")

        with monkeypatch.context() as patch:
            late: list[Callable[[], object]] = []
            spawn = trio.lowlevel.spawn_system_task
            patch.setattr(
                trio.lowlevel,
                "spawn_system_task",
                lambda *args, **options: late.append(partial(spawn, *args, **options)),
            )
            task = asyncio.create_task(guest.run(act))
            await settle()
            task.cancel()
            await settle()
        late[0]()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == []
        await guest.leave()

    PLAIN.run(main)


@pytest.mark.parametrize("late", [False, True])
def test_result_of_a_cancelled_call_is_passed_to_unclaimed(late: bool) -> None:
    async def main() -> None:
        guest = await join()
        work = Work(deaf=True)
        unclaimed = []

        async def tidy(result: str) -> None:
            await trio.lowlevel.checkpoint()
            unclaimed.append(result)

        task = asyncio.create_task(guest.run(work, tidy))
        await work.began.wait()
        if late:  # cancelled when the result is there, and the task hasn't run yet
            work.release.set()
            await work.ended.wait()
            task.cancel()
        else:
            task.cancel()
            await settle()
            work.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert unclaimed == ["result"]
        await guest.leave()

    PLAIN.run(main)


def test_error_of_a_cancelled_call_is_the_cause() -> None:
    error = ValueError("no")

    async def main() -> None:
        guest = await join()
        work = Work(deaf=True, error=error)
        task = asyncio.create_task(guest.run(work))
        await work.began.wait()
        task.cancel()
        await settle()
        work.release.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        cancelled = caught.value
        while cancelled.__cause__ is None:  # asyncio makes a new one for each task that it passes
            assert isinstance(cancelled.__context__, asyncio.CancelledError)
            cancelled = cancelled.__context__
        assert cancelled.__cause__ is error
        await guest.leave()

    PLAIN.run(main)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("cancelled", [False, True])
def test_exit_exceptions_in_trio_are_raised_in_asyncio(
    kind: type[BaseException], cancelled: bool
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            guest = await join()
            stack.push_async_callback(guest.leave)
            work = Work(deaf=True, error=kind())
            task = asyncio.current_task()
            assert task is not None
            if cancelled:
                asyncio.get_running_loop().call_soon(task.cancel)
            work.release.set()
            await guest.run(work)

    with pytest.raises(kind):
        PLAIN.run(main)


def test_timeouts_and_task_groups_work(host: Host) -> None:
    async def main() -> None:
        guest = await join()
        work = Work()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await guest.run(work)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        other = Work()

        async def together() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(guest.run(other))
                await other.began.wait()
                raise ValueError("no")

        with pytest.RaisesGroup(ValueError):
            await together()
        assert [work.ends, other.ends] == [["cancelled"], ["cancelled"]]
        await guest.leave()

    host.run(main)


def test_call_runs_in_the_context_of_its_caller(host: Host) -> None:
    class Value:
        """A value of a context variable."""

    variable: contextvars.ContextVar[Value | None] = contextvars.ContextVar("user", default=None)

    async def seen() -> Value | None:
        await trio.lowlevel.checkpoint()
        return variable.get()

    async def request(guest: Guest) -> weakref.ref[Value]:
        value = Value()
        variable.set(value)
        assert await guest.run(seen) is value
        return weakref.ref(value)

    async def first() -> tuple[Guest, weakref.ref[Value]]:
        value = Value()
        variable.set(value)
        return await join(), weakref.ref(value)

    async def main() -> None:
        guest, gone = await asyncio.create_task(first())
        also_gone = await asyncio.create_task(request(guest))
        assert await guest.run(seen) is None
        gc.collect()
        assert (gone(), also_gone()) == (None, None)
        await guest.leave()

    host.run(main)


def test_sniffio_detects_the_library_on_each_side(host: Host) -> None:
    async def library() -> str:
        await sleep[sniffio.current_async_library()](0)
        return sniffio.current_async_library()

    sleep: dict[str, Callable[[float], Awaitable[None]]]
    sleep = {"asyncio": asyncio.sleep, "trio": trio.sleep}

    async def main() -> None:
        guest = await join()
        assert await guest.run(library) == "trio"
        assert await library() == "asyncio"
        await guest.leave()

    host.run(main)


# --- Beginning and end ----------------------------------------------------------------------


def test_guest_lives_until_its_last_user_leaves(host: Host) -> None:
    async def main() -> None:
        first = await join()
        assert await join() is first
        await first.leave()
        assert await first.run(partial(returned, 7)) == 7
        await first.leave()
        assert first.ended.is_set()
        assert not trio.lowlevel.in_trio_run()
        second = await join()
        assert second is not first
        await second.leave()

    host.run(main)


def test_join_while_a_guest_ends_starts_another(host: Host) -> None:
    async def main() -> None:
        first = await join()
        leaving = asyncio.create_task(first.leave())
        await asyncio.sleep(0)
        assert first.users == 0
        others = await asyncio.gather(join(), join())
        assert leaving.done()
        assert others[0] is others[1] is not first
        for other in others:
            await other.leave()

    host.run(main)


def test_cancelled_last_leave_waits_for_the_end(host: Host) -> None:
    async def main() -> None:
        guest = await join()
        leaving = asyncio.create_task(guest.leave())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert guest.ended.is_set()

    host.run(main)


def test_tasks_join_and_leave_concurrently(host: Host) -> None:
    async def visit(number: int) -> None:
        for turn in range(10):
            guest = await join()
            assert await guest.run(partial(returned, turn)) == turn
            await settle((number + turn) % 3)
            await guest.leave()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(visit(number))

    host.run(main)


async def stay(together: threading.Barrier) -> None:
    guest = await join()
    together.wait(PATIENCE)  # both have begun
    assert await guest.run(partial(returned, 7)) == 7
    together.wait(PATIENCE)  # neither has ended
    await guest.leave()


def test_loops_in_two_threads_have_two_guests(host: Host) -> None:
    together = threading.Barrier(2)
    failures: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def program() -> None:
        try:
            host.run(partial(stay, together))
        except Exception as error:  # noqa: BLE001 - the test raises it
            failures.put(error)
        else:
            failures.put(None)

    threads = [threading.Thread(target=program) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        if (failure := failures.get(timeout=PATIENCE)) is not None:
            raise failure
    for thread in threads:
        thread.join(PATIENCE)


def test_guest_survives_a_pause_of_its_loop(host: Host) -> None:
    with asyncio.Runner(loop_factory=host.loop_factory) as runner:
        guest = runner.run(join())
        for value in range(3):
            assert runner.run(guest.run(partial(returned, value))) == value
        runner.run(guest.leave())
    assert not trio.lowlevel.in_trio_run()


# --- Where it can't be ----------------------------------------------------------------------


async def test_join_in_a_trio_program_raises() -> None:
    with pytest.raises(RuntimeError, match="this is a Trio program"):
        await join()


def test_join_without_an_event_loop_raises() -> None:
    joining = join()
    with pytest.raises(RuntimeError, match="needs a running asyncio event loop"):
        joining.send(None)


def test_join_beside_another_guest_run_raises() -> None:
    async def main() -> None:
        loop, ended, stop = asyncio.get_running_loop(), asyncio.Event(), trio.Event()
        trio.lowlevel.start_guest_run(
            stop.wait,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda _: ended.set(),
            host_uses_signal_set_wakeup_fd=True,
        )
        with pytest.raises(RuntimeError, match="another Trio run is a guest of this thread"):
            await join()
        stop.set()
        await ended.wait()

    PLAIN.run(main)


def test_join_while_another_loop_has_a_guest_raises() -> None:
    with asyncio.Runner() as one, asyncio.Runner() as other:
        guest = one.run(join())
        with pytest.raises(RuntimeError, match="another event loop in this thread was never"):
            other.run(join())
        one.run(guest.leave())
        other.run(other.run(join()).leave())


def test_join_in_a_forked_process_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        guest = await join()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: guest.process + 1)
            with pytest.raises(RuntimeError, match="forked from one with clients open"):
                await join()
        await guest.leave()

    PLAIN.run(main)


def test_join_after_a_loop_was_closed_too_early_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = asyncio.new_event_loop()
    left_behind = Guest(gone)
    left_behind.users = 1
    gone.close()
    monkeypatch.setattr(guests._here, "guest", left_behind)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="was closed while clients of it were open"):
            await join()

    asyncio.run(main())


# --- Ctrl-C ---------------------------------------------------------------------------------


def test_ctrl_c_while_waiting_for_trio_is_raised_later(host: Host) -> None:
    class Interrupted(asyncio.Event):
        """An event whose first `wait` is interrupted by a second Ctrl-C."""

        is_first = True

        async def wait(self) -> Literal[True]:
            if self.is_first:
                self.is_first = False
                raise KeyboardInterrupt
            return await super().wait()

    async def main() -> None:
        over, calls = Interrupted(), []

        def on_cancel() -> None:
            calls.append("cancelled")
            asyncio.get_running_loop().call_soon(over.set)

        assert isinstance(await guests._outlast(over, on_cancel), KeyboardInterrupt)
        assert calls == ["cancelled"]

    host.run(main)


def test_ctrl_c_that_ends_trio_is_not_a_breakdown(caplog: pytest.LogCaptureFixture) -> None:
    async def interrupted() -> None:
        await trio.lowlevel.checkpoint()
        raise BaseExceptionGroup("of a nursery", [KeyboardInterrupt()])

    async def main() -> None:
        guest = await join()
        trio.lowlevel.spawn_system_task(interrupted)
        await guest.run(Work())

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
    finally:
        loop.close()
    assert not trio.lowlevel.in_trio_run()
    assert "broken down" not in caplog.text


@pytest.mark.parametrize("error", [None, ValueError(), BaseExceptionGroup("", [ValueError()])])
def test_only_ctrl_c_counts_as_an_interrupt(error: BaseException | None) -> None:
    assert not guests._is_interrupt(error)
    both = [KeyboardInterrupt(), *filter(None, [error])]
    assert guests._is_interrupt(BaseExceptionGroup("", both)) is (error is None)


def test_ctrl_c_is_handled_by_asyncio_run(host: Host) -> None:
    ended: list[bool] = []

    async def main() -> None:
        async with AsyncExitStack() as stack:
            guest = await join()
            stack.callback(lambda: ended.append(guest.ended.is_set()))
            stack.push_async_callback(guest.leave)
            signal.raise_signal(signal.SIGINT)
            await guest.run(trio.sleep_forever)

    with pytest.raises(KeyboardInterrupt):
        host.run(main)
    assert ended == [True]


def interrupted(loop: asyncio.AbstractEventLoop, act: Callable[[], object]) -> None:
    loop.call_soon(act)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()


def test_ctrl_c_without_asyncio_run_is_raised_in_the_loop() -> None:
    loop = asyncio.new_event_loop()
    try:
        guest = loop.run_until_complete(join())
        loop.run_until_complete(guest.run(partial(returned, 7)))
        interrupted(loop, partial(signal.raise_signal, signal.SIGINT))
        # It goes on where it was.
        assert loop.run_until_complete(guest.run(partial(returned, 7))) == 7
        loop.run_until_complete(guest.leave())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        loop.close()


def test_ctrl_c_in_a_task_of_a_client_does_not_end_it() -> None:
    """Otherwise it would end the guest, and all clients of the loop."""
    loop = asyncio.new_event_loop()
    story = []

    async def background() -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.lowlevel.checkpoint()
        story.append("went on")

    try:
        guest = loop.run_until_complete(join())
        loop.run_until_complete(guest.run(partial(returned, 7)))
        interrupted(loop, partial(guest._nursery.start_soon, background))
        assert loop.run_until_complete(guest.run(partial(returned, 7))) == 7
        loop.run_until_complete(guest.leave())
        assert story == ["went on"]
    finally:
        loop.close()


def test_ctrl_c_while_the_guest_ends_is_not_lost() -> None:
    loop = asyncio.new_event_loop()

    async def main() -> None:
        guest = await join()
        await guest.run(partial(returned, 7))
        leaving = asyncio.create_task(guest.leave())
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)
        await leaving
        await asyncio.sleep(PATIENCE)

    task = loop.create_task(main())
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        assert not trio.lowlevel.in_trio_run()
    finally:
        loop.close()


def test_other_signals_are_handled_by_the_loop(host: Host) -> None:
    async def main() -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, came.set)
        guest = await join()
        assert await guest.run(partial(returned, 7)) == 7
        signal.raise_signal(signal.SIGUSR1)
        await came.wait()
        came.clear()
        await guest.leave()
        signal.raise_signal(signal.SIGUSR1)
        await came.wait()
        loop.remove_signal_handler(signal.SIGUSR1)

    host.run(main)


# --- Breakdown ------------------------------------------------------------------------------


async def boom() -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("boom")


def test_waiting_tasks_raise_when_trio_breaks_down(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        guest = await join()
        work = Work()
        task = asyncio.create_task(guest.run(work))
        await work.began.wait()
        trio.lowlevel.spawn_system_task(boom)
        with pytest.raises(RuntimeError, match="Trio has broken down") as caught:
            await task
        assert isinstance(caught.value.__cause__, trio.TrioInternalError)
        with pytest.raises(RuntimeError, match="Trio has broken down"):
            await guest.run(work)
        await guest.leave()
        again = await join()
        assert await again.run(partial(returned, 7)) == 7
        await again.leave()

    host.run(main)
    (record,) = [one for one in caplog.records if one.name == "trio_broker.aio"]
    assert record.getMessage() == "Trio has broken down"
    assert vars(record).keys() >= set(fields())


# --- Asynchronous generators ----------------------------------------------------------------


async def numbers(closed: list[bool]) -> AsyncIterator[int]:
    await asyncio.sleep(0)
    try:
        yield 1
        yield 2
    finally:
        closed.append(asyncio.current_task() is not None)


def test_async_generators_are_closed_by_asyncio(host: Host) -> None:
    async def main() -> None:
        closed: list[bool] = []
        guest = await join()
        left = numbers(closed)
        assert await anext(left) == 1
        del left
        gc.collect()
        await settle()
        assert closed == [True]
        outlives = numbers(closed)
        assert await anext(outlives) == 1
        await guest.leave()
        del outlives
        gc.collect()
        await settle()
        assert closed == [True, True]

    host.run(main)


def test_remaining_async_generators_are_closed_with_the_loop(host: Host) -> None:
    closed: list[bool] = []
    kept: list[Any] = []

    async def main() -> None:
        guest = await join()
        kept.append(numbers(closed))
        assert await anext(kept[0]) == 1
        await guest.leave()

    host.run(main)
    assert closed == [True]
