"""What only the transport over trio-websocket has: a reader of the library's, which can crash."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from tests.rawserver import close_frame, frame, send, wait_gone
from tests.test_transport import (
    PATIENCE,
    CancelAtStep,
    Resolver,
    connected,
    echo,
    loss,
    opening,
    sending,
    serve_raw_websocket,
    take,
)
from trio_broker.exceptions import ConnectionLostError


async def test_messages_of_a_large_read_come_several_at_once() -> None:
    texts = [f"{number:0100}" for number in range(100)]
    batches: list[list[str | bytes]] = []
    async with connected(sending(b"".join(map(frame, texts)))) as transport:
        while sum(map(len, batches)) < len(texts):
            batches.append(await transport.receive())
    assert [text for batch in batches for text in batch] == texts
    assert len(batches) < 10


async def test_messages_of_a_large_read_are_taken_though_the_connection_ends_with_it() -> None:
    texts = [f"{number:0100}" for number in range(100)]
    data = b"".join(map(frame, texts)) + close_frame(1001)
    async with connected(sending(data)) as transport:
        assert await take(transport, len(texts)) == texts
        assert (await loss(transport)).code == 1001


async def test_what_a_cancelled_receive_has_taken_comes_with_the_next() -> None:
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


async def test_keyboard_interrupt_in_the_reader_names_the_users_error_as_its_cause() -> None:
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
            assert isinstance(caught.value.__cause__, ValueError)


@asynccontextmanager
async def server_that_waits() -> AsyncIterator[tuple[int, trio.Event]]:
    """A server that sends a message when it is told to: its port, and how to tell it."""
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
