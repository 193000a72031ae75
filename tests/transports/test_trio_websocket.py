"""Only for trio-websocket: the library has a reader task, which can crash."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.transports.raw_server import close_frame, frame, send, wait_gone
from tests.transports.test_both import (
    PATIENCE,
    CancelAtStep,
    Resolver,
    connected,
    echo,
    loss,
    opening,
    sending,
    sending_then_hanging_up,
    serve_raw_websocket,
    take,
)
from trio_broker.exceptions import ConnectionLostError


async def test_messages_of_a_large_read_are_received_together() -> None:
    texts = [f"{number:0100}" for number in range(100)]
    batches: list[list[str | bytes]] = []
    async with connected(sending(b"".join(map(frame, texts)))) as transport:
        while sum(map(len, batches)) < len(texts):
            batches.append(await transport.receive())
    assert [text for batch in batches for text in batch] == texts
    assert len(batches) < 10


async def test_messages_of_the_last_read_are_received() -> None:
    texts = [f"{number:0100}" for number in range(100)]
    data = b"".join(map(frame, texts)) + close_frame(1001)
    async with connected(sending(data)) as transport:
        assert await take(transport, len(texts)) == texts
        assert (await loss(transport)).code == 1001


async def test_messages_of_a_cancelled_receive_are_received_next() -> None:
    texts = [f"{number:0100}" for number in range(100)]
    received: list[str | bytes] = []
    async with connected(sending(b"".join(map(frame, texts)))) as transport:
        for step in itertools.count(1):
            with trio.CancelScope() as scope:
                instrument = CancelAtStep(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    received += await transport.receive()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            if len(received) >= len(texts):
                break
    assert received == texts


@contextmanager
def crashing_reader(error: BaseException, when: str) -> Iterator[None]:
    """Make trio-websocket's reader raise when it logs a line that contains a text."""

    def crash(record: logging.LogRecord) -> bool:
        if when in record.getMessage():
            raise error
        return False

    logger = logging.getLogger("trio-websocket")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(crash)
    try:
        yield
    finally:
        logger.removeFilter(crash)
        logger.setLevel(level)


async def test_crash_of_the_librarys_reader_is_a_lost_connection() -> None:
    async with connected(echo) as transport:
        with crashing_reader(RuntimeError("a bug"), "received"):
            with pytest.raises(ConnectionLostError):
                await transport.ping()
            error = await loss(transport)
        assert error.code is None
        assert "trio-websocket failed (RuntimeError('a bug'))" in str(error)
        assert isinstance(error.__cause__, RuntimeError)
        with pytest.raises(ConnectionLostError, match="a bug"):
            await transport.send(["too late"])
        await transport.aclose()


async def test_crash_of_the_librarys_reader_is_raised_by_receive() -> None:
    # It depends on Trio's order of tasks whether the reader is stopped before the error arrives.
    for _ in range(30):
        async with server_that_waits() as (port, proceed), opening(port) as transport:
            with crashing_reader(RuntimeError("a bug"), "received"):
                proceed.set()
                assert "trio-websocket failed (RuntimeError('a bug'))" in str(await loss(transport))


async def test_keyboard_interrupt_in_the_reader_ends_the_block_bare() -> None:
    cancelled = trio.Event()

    async def user_code(proceed: trio.Event) -> None:
        with crashing_reader(KeyboardInterrupt(), "received"):
            proceed.set()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

    with trio.fail_after(PATIENCE):
        async with server_that_waits() as (port, proceed):
            with pytest.raises(KeyboardInterrupt):
                async with opening(port):
                    await user_code(proceed)
            assert cancelled.is_set()


async def test_keyboard_interrupt_in_the_reader_has_the_users_error_as_context() -> None:
    async def user_code(proceed: trio.Event) -> None:
        with crashing_reader(KeyboardInterrupt(), "received"):
            proceed.set()
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("the user's")

    with trio.fail_after(PATIENCE):
        async with server_that_waits() as (port, proceed):
            with pytest.raises(KeyboardInterrupt) as caught:
                async with opening(port):
                    await user_code(proceed)
            assert isinstance(caught.value.__context__, ValueError)


@asynccontextmanager
async def server_that_waits() -> AsyncIterator[tuple[int, trio.Event]]:
    """Run a server that sends a message on request: its port, and the event to set for it."""
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        await send(stream, frame("x"))
        await wait_gone(stream)

    async with serve_raw_websocket(handler) as port:
        yield port, proceed


async def test_keyboard_interrupt_waits_for_a_safe_place_while_opening() -> None:
    protected: list[bool] = []
    trio.socket.set_custom_hostname_resolver(
        Resolver(lambda: protected.append(trio.lowlevel.currently_ki_protected()))
    )
    async with serve_raw_websocket(echo) as port, opening(port, host="broker.example"):
        assert not trio.lowlevel.currently_ki_protected()
    assert protected == [True]


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_message_held_by_the_reader_is_received(before: int) -> None:
    texts = [str(number) for number in range(before)]
    async with connected(sending(b"".join(map(frame, [*texts, "receipt"])))) as transport:
        assert await take(transport, before) == texts
        await wait_all_tasks_blocked()
        assert transport.taken() == ["receipt"]
        assert transport.taken() == []


@pytest.mark.parametrize("end", [close_frame(1001), b"\x8f\0", b""])
async def test_nothing_is_received_from_an_ended_connection(end: bytes) -> None:
    async with connected(sending_then_hanging_up(end)) as transport:
        await loss(transport)
        assert transport.taken() == []
        await transport.aclose()
        assert transport.taken() == []


async def test_progress_never_decreases() -> None:
    texts = [f"{number:0100}" for number in range(100)]
    seen: list[int] = []
    async with connected(sending(b"".join(map(frame, texts)))) as transport:
        instrument = EachStep(lambda: seen.append(transport.progress))
        trio.lowlevel.add_instrument(instrument)
        try:
            received = await take(transport, 60)
        finally:
            trio.lowlevel.remove_instrument(instrument)
        seen.append(transport.progress)
        await wait_all_tasks_blocked()
        received += transport.taken()
        seen.append(transport.progress)
    assert received == texts[: len(received)]
    assert seen == sorted(seen)
    assert seen[-1] >= seen[0] + 61


class EachStep(trio.abc.Instrument):
    """Calls a function after each step of any task."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def after_task_step(self, _: trio.lowlevel.Task) -> None:
        self._function()
