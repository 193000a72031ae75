"""Streams in asyncio: no message is lost, and no task sleeps for ever."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests.aio_host import PLAIN, Host, settle
from trio_broker import ChannelError, Message, SlowConsumerError, SubscriptionBrokenError
from trio_broker._protocol.effects import ErrorItem
from trio_broker._streams.buffer import MessageBuffer, Overflow
from trio_broker._streams.subscription import Subscription
from trio_broker.aio import AioSubscription
from trio_broker.aio.guest import join

NOW = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def message(number: int) -> Message[int]:
    return Message("balances", number, "push", None, NOW, str(number))


def put(buffer: MessageBuffer[int], *numbers: int) -> None:
    for number in numbers:
        buffer.put(message(number))


@asynccontextmanager
async def open_stream(
    buffer_size: int = 100, overflow: Overflow = "drop_oldest"
) -> AsyncIterator[tuple[MessageBuffer[int], AioSubscription[int]]]:
    guest = await join()
    buffer: MessageBuffer[int] = MessageBuffer("balances", buffer_size, overflow=overflow)
    yield buffer, AioSubscription(Subscription(buffer), guest)
    assert guest.waking == set()
    assert buffer._wakes == {}
    await guest.leave()


async def number(stream: AioSubscription[int]) -> int:
    return (await stream.receive()).data


@pytest.mark.parametrize("receive", [AioSubscription.receive, AioSubscription.__anext__])
def test_waiting_receive_is_woken_by_a_message(host: Host, receive: Callable[..., Any]) -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            task = asyncio.create_task(receive(stream))
            await settle()
            put(buffer, 1, 2)
            assert (await task).data == 1
            assert (await receive(stream)).data == 2

    host.run(main)


def test_buffered_message_is_received_without_waiting() -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            with pytest.raises(trio.WouldBlock):
                stream.receive_nowait()
            put(buffer, 1, 2, 3)
            assert stream.receive_nowait().data == 1
            assert [one.data for one in stream.batch_nowait()] == [2, 3]
            assert stream.statistics().current_buffer_used == 0
            assert "balances" in repr(stream)

    PLAIN.run(main)


def test_cancelled_receive_loses_no_message(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            waiting = asyncio.create_task(number(stream))
            await settle()
            put(buffer, 1)
            waiting.cancel()  # woken already
            with pytest.raises(asyncio.CancelledError):
                await waiting
            put(buffer, 2)
            eager = asyncio.create_task(number(stream))
            await asyncio.sleep(0)
            eager.cancel()  # before it took anything
            with pytest.raises(asyncio.CancelledError):
                await eager
            assert [await number(stream), await number(stream)] == [1, 2]

    host.run(main)


def test_message_wakes_another_task_if_the_first_is_cancelled() -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            first, second = (asyncio.create_task(number(stream)) for _ in range(2))
            await settle()
            put(buffer, 1)
            first.cancel()
            assert await second == 1
            assert first.cancelled()

    PLAIN.run(main)


def test_each_message_goes_to_one_clone(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            other = stream.clone()
            tasks = [asyncio.create_task(number(one)) for one in (stream, other, stream, other)]
            await settle()
            put(buffer, 1, 2)
            await settle()
            put(buffer, 3, 4)
            assert sorted(await asyncio.gather(*tasks)) == [1, 2, 3, 4]
            assert stream.statistics().open_receive_channels == 2

    host.run(main)


def test_closing_a_handle_wakes_its_waiting_tasks(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            other = stream.clone()
            here, there = (asyncio.create_task(number(one)) for one in (stream, other))
            await settle()
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await here
            for act in (stream.receive_nowait, stream.clone, stream.batch_nowait):
                with pytest.raises(trio.ClosedResourceError):
                    act()
            put(buffer, 1)
            assert await there == 1

    host.run(main)


def test_with_block_closes_the_handle() -> None:
    async def main() -> None:
        async with open_stream() as (_, stream):
            with stream.clone() as one:
                assert one.statistics().open_receive_channels == 2
            async with stream.clone() as two:
                assert two.statistics().open_receive_channels == 2
            assert stream.statistics().open_receive_channels == 1

    PLAIN.run(main)


def test_end_comes_after_buffered_messages(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            put(buffer, 1, 2)
            waits = stream.clone()
            buffer.end()
            assert [one.data async for one in stream] == [1, 2]
            with pytest.raises(trio.EndOfChannel):
                await waits.receive()
            assert [batch async for batch in stream.batches()] == []

        async with open_stream() as (buffer, stream):
            task = asyncio.create_task(number(stream))
            await settle()
            buffer.fail(SubscriptionBrokenError("balances"))
            with pytest.raises(SubscriptionBrokenError):
                await task
            with pytest.raises(SubscriptionBrokenError):
                await anext(stream)

    host.run(main)


def test_slow_consumer_gets_a_gap_or_an_error() -> None:
    async def main() -> None:
        async with open_stream(2) as (buffer, stream):
            put(buffer, 1, 2, 3, 4)
            assert stream.dropped == 2
            first = await stream.receive()
            assert first.gap is not None
            assert (first.data, first.gap.dropped) == (3, 2)
        async with open_stream(1, "error") as (buffer, stream):
            put(buffer, 1, 2)
            assert await number(stream) == 1
            with pytest.raises(SlowConsumerError):
                await stream.receive()

    PLAIN.run(main)


def test_batches_take_all_and_go_on_after_an_error(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (buffer, stream):
            put(buffer, 1, 2)
            buffer.put(ErrorItem(ChannelError("balances", "no"), NOW))
            put(buffer, 3)
            batches = stream.batches()
            assert [one.data for one in await anext(batches)] == [1, 2]
            with pytest.raises(ChannelError):
                await anext(batches)
            assert [one.data for one in await anext(batches)] == [3]

            async def next_batch() -> list[int]:
                return [one.data for one in await anext(batches)]

            task = asyncio.create_task(next_batch())
            await settle()
            put(buffer, 4, 5)
            assert await task == [4, 5]

    host.run(main)


def test_iteration_over_a_full_buffer_lets_other_tasks_run() -> None:
    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with open_stream() as (buffer, stream):
            put(buffer, *range(100))
            buffer.end()
            task = asyncio.create_task(other())
            assert [one.data async for one in stream] == list(range(100))
            assert turns >= 100 // 16
            task.cancel()

    PLAIN.run(main)


def test_waiting_tasks_raise_when_trio_breaks_down(host: Host) -> None:
    async def boom() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("boom")

    async def main() -> None:
        async with open_stream() as (_, stream):
            task = asyncio.create_task(number(stream))
            await settle()
            trio.lowlevel.spawn_system_task(boom)
            with pytest.raises(RuntimeError, match="Trio has broken down"):
                await task
            with pytest.raises(RuntimeError, match="Trio has broken down"):
                await stream.receive()

    host.run(main)
