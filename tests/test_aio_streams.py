"""Streams as asyncio reads them: nothing lost, nobody left asleep."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests.aiohost import PLAIN, Host, settle
from trio_broker import ChannelError, Message, SlowConsumerError, SubscriptionBrokenError
from trio_broker.aio import AioSubscription
from trio_broker.aio.guest import join
from trio_broker.subscription import Feed, Overflow, Subscription

NOW = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def message(number: int) -> Message[int]:
    return Message("balances", number, "push", None, NOW, str(number))


def put(feed: Feed[int], *numbers: int) -> None:
    for number in numbers:
        feed.put(message(number))


@asynccontextmanager
async def open_stream(
    buffer_size: int = 100, overflow: Overflow = "drop_oldest"
) -> AsyncIterator[tuple[Feed[int], AioSubscription[int]]]:
    guest = await join()
    feed: Feed[int] = Feed("balances", buffer_size, overflow=overflow)
    yield feed, AioSubscription(Subscription(feed), guest)
    assert guest.waking == set()
    assert feed._wakes == {}
    await guest.leave()


async def number(stream: AioSubscription[int]) -> int:
    return (await stream.receive()).data


@pytest.mark.parametrize("receive", [AioSubscription.receive, AioSubscription.__anext__])
def test_one_waits_and_is_woken(host: Host, receive: Callable[..., Any]) -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
            task = asyncio.create_task(receive(stream))
            await settle()
            put(feed, 1, 2)
            assert (await task).data == 1
            assert (await receive(stream)).data == 2

    host.run(main)


def test_what_is_there_is_taken_without_waiting() -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
            with pytest.raises(trio.WouldBlock):
                stream.receive_nowait()
            put(feed, 1, 2, 3)
            assert stream.receive_nowait().data == 1
            assert [one.data for one in stream.batch_nowait()] == [2, 3]
            assert stream.statistics().current_buffer_used == 0
            assert "balances" in repr(stream)

    PLAIN.run(main)


def test_a_receive_that_is_cancelled_loses_nothing(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
            waiting = asyncio.create_task(number(stream))
            await settle()
            put(feed, 1)
            waiting.cancel()  # woken already
            with pytest.raises(asyncio.CancelledError):
                await waiting
            put(feed, 2)
            eager = asyncio.create_task(number(stream))
            await asyncio.sleep(0)
            eager.cancel()  # before it took anything
            with pytest.raises(asyncio.CancelledError):
                await eager
            assert [await number(stream), await number(stream)] == [1, 2]

    host.run(main)


def test_a_message_wakes_another_if_the_first_is_cancelled() -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
            first, second = (asyncio.create_task(number(stream)) for _ in range(2))
            await settle()
            put(feed, 1)
            first.cancel()
            assert await second == 1
            assert first.cancelled()

    PLAIN.run(main)


def test_clones_compete(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
            other = stream.clone()
            tasks = [asyncio.create_task(number(one)) for one in (stream, other, stream, other)]
            await settle()
            put(feed, 1, 2)
            await settle()
            put(feed, 3, 4)
            assert sorted(await asyncio.gather(*tasks)) == [1, 2, 3, 4]
            assert stream.statistics().open_receive_channels == 2

    host.run(main)


def test_closing_wakes_who_waits_in_it(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
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
            put(feed, 1)
            assert await there == 1

    host.run(main)


def test_with_closes_it() -> None:
    async def main() -> None:
        async with open_stream() as (_, stream):
            with stream.clone() as one:
                assert one.statistics().open_receive_channels == 2
            async with stream.clone() as two:
                assert two.statistics().open_receive_channels == 2
            assert stream.statistics().open_receive_channels == 1

    PLAIN.run(main)


def test_ends_come_after_what_is_buffered(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
            put(feed, 1, 2)
            waits = stream.clone()
            feed.end()
            assert [one.data async for one in stream] == [1, 2]
            with pytest.raises(trio.EndOfChannel):
                await waits.receive()
            assert [batch async for batch in stream.batches()] == []

        async with open_stream() as (feed, stream):
            task = asyncio.create_task(number(stream))
            await settle()
            feed.fail(SubscriptionBrokenError("balances"))
            with pytest.raises(SubscriptionBrokenError):
                await task
            with pytest.raises(SubscriptionBrokenError):
                await anext(stream)

    host.run(main)


def test_the_slow_are_told() -> None:
    async def main() -> None:
        async with open_stream(2) as (feed, stream):
            put(feed, 1, 2, 3, 4)
            assert stream.dropped == 2
            first = await stream.receive()
            assert first.gap is not None
            assert (first.data, first.gap.dropped) == (3, 2)
        async with open_stream(1, "error") as (feed, stream):
            put(feed, 1, 2)
            assert await number(stream) == 1
            with pytest.raises(SlowConsumerError):
                await stream.receive()

    PLAIN.run(main)


def test_batches_take_all_and_go_on_after_an_error(host: Host) -> None:
    async def main() -> None:
        async with open_stream() as (feed, stream):
            put(feed, 1, 2)
            feed.put_error("no", NOW)
            put(feed, 3)
            batches = stream.batches()
            assert [one.data for one in await anext(batches)] == [1, 2]
            with pytest.raises(ChannelError):
                await anext(batches)
            assert [one.data for one in await anext(batches)] == [3]

            async def next_batch() -> list[int]:
                return [one.data for one in await anext(batches)]

            task = asyncio.create_task(next_batch())
            await settle()
            put(feed, 4, 5)
            assert await task == [4, 5]

    host.run(main)


def test_a_full_stream_leaves_the_others_their_turn() -> None:
    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with open_stream() as (feed, stream):
            put(feed, *range(100))
            feed.end()
            task = asyncio.create_task(other())
            assert [one.data async for one in stream] == list(range(100))
            assert turns >= 100 // 16
            task.cancel()

    PLAIN.run(main)


def test_who_waits_when_trio_breaks_down_is_told(host: Host) -> None:
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
