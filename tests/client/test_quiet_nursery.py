"""The library's nurseries raise one bare exception, never a group."""

from __future__ import annotations

import gc
import signal
import weakref

import pytest
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._quiet_nursery import QuietNursery


async def fail(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def fail_when_cancelled(error: BaseException) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def test_block_waits_for_its_tasks() -> None:
    ended = False

    async def task() -> None:
        nonlocal ended
        await trio.lowlevel.checkpoint()
        ended = True

    async with QuietNursery() as nursery:
        nursery.start_soon(task)
    assert ended


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        ExceptionGroup("mine", [ValueError("one"), TypeError("two")]),
        BaseExceptionGroup("mine", [KeyboardInterrupt()]),
        KeyboardInterrupt(),
    ],
)
async def test_error_of_the_block_is_raised_unchanged(error: BaseException) -> None:
    async def use() -> None:
        async with QuietNursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error

    with pytest.raises(type(error)) as caught:
        await use()
    assert caught.value is error
    assert error.__context__ is error.__cause__ is None


async def test_error_of_a_task_is_raised_bare() -> None:
    error = ValueError("a task's")

    async def use() -> None:
        async with QuietNursery() as nursery:
            nursery.start_soon(fail, error)
            await trio.sleep_forever()

    with pytest.raises(ValueError, match="a task's") as caught:
        await use()
    assert caught.value is error
    assert error.__cause__ is None


async def test_error_of_a_task_has_the_blocks_error_as_its_context() -> None:
    async def use() -> None:
        async with QuietNursery() as nursery:
            nursery.start_soon(fail, TypeError("a task's"))
            await fail_when_cancelled(ValueError("the block's"))

    with pytest.raises(TypeError) as caught:
        await use()
    assert isinstance(caught.value.__context__, ValueError)


async def test_error_of_a_task_keeps_its_cause() -> None:
    async def fail_with_a_cause() -> None:
        await trio.lowlevel.checkpoint()
        raise TypeError("a task's") from KeyError("its cause")

    async def use() -> None:
        async with QuietNursery() as nursery:
            nursery.start_soon(fail_with_a_cause)

    with pytest.raises(TypeError) as caught:
        await use()
    assert isinstance(caught.value.__cause__, KeyError)


async def test_interrupt_of_a_task_precedes_an_error_of_another() -> None:
    async def use() -> None:
        async with QuietNursery() as nursery:
            nursery.start_soon(fail, ExceptionGroup("tasks'", [ValueError()]))
            nursery.start_soon(fail_when_cancelled, KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        await use()


async def test_cancelling_the_nursery_ends_the_block_and_its_tasks() -> None:
    async with QuietNursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()


async def test_cancelled_inner_nursery_ends_the_block() -> None:
    async with QuietNursery() as outer, trio.open_nursery() as inner:
        inner.start_soon(trio.sleep_forever)
        outer.cancel_scope.cancel()
        await trio.sleep_forever()


async def test_outer_cancellation_is_a_bare_cancelled() -> None:
    caught = False
    with trio.CancelScope() as scope:
        try:
            async with QuietNursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
                await trio.sleep_forever()
        except trio.Cancelled:
            caught = True
            raise
    assert caught
    assert scope.cancelled_caught


async def test_error_of_the_block_survives_an_outer_cancellation() -> None:
    async def use(scope: trio.CancelScope) -> None:
        async with QuietNursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            raise ValueError("the block's")

    with trio.CancelScope() as scope, pytest.raises(ValueError, match="the block's"):
        await use(scope)


async def test_block_finished_before_a_cancellation_is_not_cancelled() -> None:
    async def cancel(scope: trio.CancelScope) -> None:
        scope.cancel()
        await trio.sleep_forever()

    went_on = False
    with trio.CancelScope() as scope:
        async with QuietNursery() as nursery:
            nursery.start_soon(cancel, scope)
        went_on = True
    assert went_on


def test_ctrl_c_while_the_block_waits_for_its_tasks_is_bare() -> None:
    @enable_ki_protection
    async def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    async def main() -> None:
        async with QuietNursery() as nursery:
            nursery.start_soon(interrupt)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def test_error_of_the_block_is_freed_without_the_garbage_collector() -> None:
    class FreedError(Exception):
        pass

    def raise_freed() -> None:
        raise FreedError

    async def use() -> weakref.ref[FreedError]:
        try:
            async with QuietNursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise_freed()
        except FreedError as error:
            return weakref.ref(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        reference = await use()
        await (
            trio.lowlevel.checkpoint()
        )  # Trio keeps a reference to the last value sent to this task.
        assert reference() is None
    finally:
        gc.enable()
