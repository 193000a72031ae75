"""A buffer and its handles: order, overflow, gaps, endings, cancellation, Ctrl-C."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import math
import signal
import sys
import traceback
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, get_args

import attrs
import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_broker._protocol.effects import ErrorItem
from trio_broker._streams import buffer as buffer_module, subscription as subscription_module
from trio_broker._streams.buffer import Buffer, MessageBuffer, Overflow
from trio_broker._streams.subscription import BoundedReceiveChannel, Subscription
from trio_broker.exceptions import (
    BrokerError,
    ChannelError,
    ConnectionLostError,
    InvalidChannelError,
    SlowConsumerError,
    SubscriptionBrokenError,
)
from trio_broker.models import Gap, GapReason, Message, Order

CHANNEL = "orders:ord_1"
START = dt.datetime(2025, 11, 25, 9, 0, tzinfo=dt.UTC)


def at(number: int) -> dt.datetime:
    return START + dt.timedelta(seconds=number)


def message(number: int, gap: Gap | None = None) -> Message[int]:
    return Message(CHANNEL, number, "push", gap, at(number), str(number))


def gap(dropped: int, since: int, *reasons: GapReason) -> Gap:
    return Gap(frozenset(reasons or ("overflow",)), dropped, at(since))


class RecordingOwner:
    """Records the calls of its buffer.

    Attributes:
        calls: The names of the calls.
        were_empty: For each call, whether the buffer was empty.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.were_empty: list[bool] = []

    def closed(self, buffer: Buffer[Any]) -> None:
        self._record("closed", buffer)

    def overflowed(self, buffer: Buffer[Any]) -> None:
        self._record("overflowed", buffer)

    def drained(self, buffer: Buffer[Any]) -> None:
        self._record("drained", buffer)

    def _record(self, call: str, buffer: Buffer[Any]) -> None:
        self.calls.append(call)
        self.were_empty.append(buffer.is_empty())


def open_subscription(
    buffer_size: int = 1024,
    owner: RecordingOwner | None = None,
    *,
    overflow: Overflow = "drop_oldest",
) -> tuple[MessageBuffer[int], Subscription[int]]:
    buffer: MessageBuffer[int] = MessageBuffer(CHANNEL, buffer_size, owner, overflow=overflow)
    return buffer, Subscription(buffer)


def put(buffer: MessageBuffer[int], *numbers: int) -> None:
    for number in numbers:
        buffer.put(message(number))


def put_error(buffer: MessageBuffer[int], text: str, received_at: dt.datetime) -> None:
    buffer.put(ErrorItem(ChannelError(CHANNEL, text), received_at))


def take(subscription: Subscription[int]) -> int:
    return subscription.receive_nowait().data


def take_all(subscription: Subscription[int]) -> list[int]:
    """Take everything in the buffer, without waiting."""
    numbers = []
    while True:
        try:
            numbers.append(take(subscription))
        except trio.WouldBlock:
            return numbers


# Three ways to receive. Each returns a list of messages, because a batch may have several.
Way = Callable[[Subscription[int]], Awaitable[list[Message[int]]]]


async def by_receive(subscription: Subscription[int]) -> list[Message[int]]:
    return [await subscription.receive()]


async def by_iteration(subscription: Subscription[int]) -> list[Message[int]]:
    return [await anext(subscription)]


async def by_batches(subscription: Subscription[int]) -> list[Message[int]]:
    return await anext(subscription.batches())


every_way = pytest.mark.parametrize("way", [by_receive, by_iteration, by_batches])


class Steps(trio.abc.Instrument):
    """Counts how often the scheduler ran a task."""

    def __init__(self) -> None:
        self.task = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


# Order


async def test_messages_come_in_order_with_every_receive_method() -> None:
    buffer, subscription = open_subscription()
    put(buffer, 1, 2, 3, 4, 5)
    assert (await subscription.receive()).data == 1
    assert subscription.receive_nowait().data == 2
    assert (await anext(subscription)).data == 3
    assert [m.data for m in await anext(subscription.batches())] == [4, 5]


async def test_messages_arrive_as_the_objects_that_were_put_in() -> None:
    buffer, subscription = open_subscription()
    original = message(1)
    buffer.put(original)
    assert await subscription.receive() is original


def test_receive_nowait_would_block_on_an_empty_buffer() -> None:
    buffer, subscription = open_subscription()
    with pytest.raises(trio.WouldBlock):
        subscription.receive_nowait()
    put(buffer, 1)
    assert take(subscription) == 1


@every_way
async def test_waiting_task_gets_the_next_message(way: Way) -> None:
    buffer, subscription = open_subscription()
    got: list[Message[int]] = []

    async def consume() -> None:
        got.extend(await way(subscription))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        assert subscription.statistics().tasks_waiting_receive == 1
        put(buffer, 1)
    assert got == [message(1)]


@given(
    st.lists(
        st.lists(st.integers(0, 9) | st.none(), min_size=1, max_size=6)
        | st.just("take")
        | st.just("close"),
        max_size=6,
    ),
    st.integers(1, 4),
    st.sampled_from(get_args(Overflow)),
    st.booleans(),
)
def test_messages_together_arrive_as_one_by_one(
    steps: list[list[int | None] | str], buffer_size: int, overflow: Overflow, in_batches: bool
) -> None:
    """Errors among them, and gaps before them."""
    results = []
    for together in True, False:
        owner = RecordingOwner()
        buffer, subscription = open_subscription(buffer_size, owner, overflow=overflow)
        found: list[object] = []
        wakes: list[bool] = []
        for step in steps:
            if step == "close":
                buffer.end()
            elif step == "take":
                found.append(outcome_of(subscription, in_batches=in_batches))
            else:
                buffer.when_ready(partial(wakes.append, True))
                items = [
                    ErrorItem(ChannelError(CHANNEL, "no"), START) if one is None else message(one)
                    for one in step
                    if not isinstance(one, str)
                ]
                if together:
                    buffer.put_all(items)
                else:
                    for item in items:
                        buffer.put(item)
        found += [outcome_of(subscription, in_batches=in_batches) for _ in range(30)]
        results.append((found, owner.calls, buffer.dropped, len(wakes)))
    assert results[0] == results[1]


async def test_batch_after_an_overflow_ends_before_an_error() -> None:
    buffer, subscription = open_subscription(3)
    put(buffer, 0, 1, 2)
    put_error(buffer, "no", START)
    put(buffer, 3)
    batch = await anext(subscription.batches())
    assert [one.data for one in batch] == [2]
    with pytest.raises(ChannelError):
        await anext(subscription.batches())
    assert [one.data for one in await anext(subscription.batches())] == [3]


def outcome_of(subscription: Subscription[int], *, in_batches: bool) -> object:
    """What a consumer gets, or the text of the error that it gets."""
    try:
        return subscription.batch_nowait() if in_batches else subscription.receive_nowait()
    except (BrokerError, trio.WouldBlock, trio.EndOfChannel) as error:
        return repr(error)


async def test_messages_together_reach_tasks_that_wait() -> None:
    buffer, subscription = open_subscription(1)
    found: list[int] = []

    async def consume() -> None:
        found.append((await subscription.receive()).data)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        buffer.put_all([message(number) for number in range(3)])
    assert sorted([*found, *take_all(subscription)]) == [0, 1, 2]
    assert buffer.dropped == 0


def test_clones_compete_for_messages() -> None:
    buffer, subscription = open_subscription()
    twin = subscription.clone()
    put(buffer, 1, 2, 3)
    assert [take(subscription), take(twin), take(subscription)] == [1, 2, 3]
    assert isinstance(twin, Subscription)
    assert twin.channel == CHANNEL


def test_subscription_is_a_typed_receive_channel() -> None:
    def as_channel(orders: Subscription[Order]) -> trio.abc.ReceiveChannel[Message[Order]]:
        wider: Subscription[object] = orders
        assert wider is orders
        return orders

    buffer: MessageBuffer[Order] = MessageBuffer(CHANNEL)
    assert isinstance(as_channel(Subscription(buffer)), trio.abc.ReceiveChannel)


async def test_channel_takes_any_items_and_ends_with_its_buffer() -> None:
    buffer: Buffer[str] = Buffer("events", 8)
    channel = BoundedReceiveChannel(buffer)
    buffer.put("one")
    buffer.put("two")
    buffer.end()
    assert [event async for event in channel] == ["one", "two"]


def test_subscription_keeps_1024_messages_by_default() -> None:
    buffer: MessageBuffer[int] = MessageBuffer(CHANNEL)
    assert Subscription(buffer).statistics().max_buffer_size == 1024


# Wrong arguments


@pytest.mark.parametrize("buffer_size", [math.inf, 1.0, "8", None, True])
def test_buffer_size_must_be_an_int(buffer_size: Any) -> None:
    with pytest.raises(TypeError, match=r"buffer_size must be an int"):
        MessageBuffer(CHANNEL, buffer_size)
    with pytest.raises(TypeError, match=r"buffer_size must be an int"):
        Buffer("events", buffer_size)


@pytest.mark.parametrize("buffer_size", [0, -1])
def test_buffer_size_must_be_at_least_one(buffer_size: int) -> None:
    with pytest.raises(ValueError, match=rf"buffer_size must be at least 1, not {buffer_size}"):
        MessageBuffer(CHANNEL, buffer_size)


def test_huge_buffer_size_is_refused_without_being_printed() -> None:
    with pytest.raises(ValueError, match="buffer_size is too large"):
        MessageBuffer(CHANNEL, 10**2_000_000)
    with pytest.raises(ValueError, match="at least 1, not a huge number"):
        MessageBuffer(CHANNEL, -(10**2_000_000))


@pytest.mark.parametrize("overflow", ["drop_newest", "", None, ["error"]])
def test_unknown_overflow_is_rejected(overflow: Any) -> None:
    with pytest.raises(ValueError, match=r"overflow must be 'drop_oldest' or 'error', not "):
        MessageBuffer(CHANNEL, 8, overflow=overflow)


# Overflow drops the oldest


def test_full_buffer_drops_the_oldest_and_marks_the_next() -> None:
    buffer, subscription = open_subscription(2)
    put(buffer, 1, 2, 3, 4, 5)
    assert subscription.dropped == 3
    assert subscription.receive_nowait() == message(4, gap(3, since=1))
    assert subscription.receive_nowait() == message(5)


def test_buffer_that_is_just_full_drops_nothing() -> None:
    buffer, subscription = open_subscription(2)
    put(buffer, 1, 2)
    assert [subscription.receive_nowait(), subscription.receive_nowait()] == [
        message(1),
        message(2),
    ]
    assert subscription.dropped == 0


def test_each_gap_has_its_mark_and_dropped_is_the_sum() -> None:
    buffer, subscription = open_subscription(2)
    put(buffer, 1, 2, 3)
    assert subscription.receive_nowait() == message(2, gap(1, since=1))
    put(buffer, 4, 5, 6)
    assert subscription.receive_nowait() == message(5, gap(2, since=3))
    assert subscription.receive_nowait() == message(6)
    assert subscription.dropped == 3


def test_next_receive_of_any_clone_gets_the_mark_once() -> None:
    buffer, subscription = open_subscription(2)
    twin = subscription.clone()
    put(buffer, 1, 2, 3)
    assert twin.receive_nowait() == message(2, gap(1, since=1))
    assert subscription.receive_nowait() == message(3)
    assert twin.dropped == subscription.dropped == 1


@every_way
async def test_every_receive_method_delivers_the_mark(way: Way) -> None:
    buffer, subscription = open_subscription(1)
    put(buffer, 1, 2)
    assert await way(subscription) == [message(2, gap(1, since=1))]


def test_gap_of_a_dropped_message_is_kept() -> None:
    buffer, subscription = open_subscription(1)
    buffer.put(message(5, gap(0, 2, "reconnected")))
    put(buffer, 6)
    assert subscription.receive_nowait() == message(6, gap(1, 2, "overflow", "reconnected"))


def test_gap_of_the_marked_message_is_kept() -> None:
    buffer, subscription = open_subscription(1)
    put(buffer, 5)
    buffer.put(message(6, gap(0, 7, "reconnected")))
    assert subscription.receive_nowait() == message(6, gap(1, 5, "overflow", "reconnected"))


def test_dropped_error_counts() -> None:
    buffer, subscription = open_subscription(1)
    put_error(buffer, "Order not found", at(1))
    put(buffer, 2)
    assert subscription.dropped == 1
    assert subscription.receive_nowait() == message(2, gap(1, since=1))


def test_mark_waits_for_a_message_while_errors_come() -> None:
    buffer, subscription = open_subscription(1)
    put(buffer, 1)
    put_error(buffer, "Order not found", at(2))
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    put(buffer, 3)
    assert subscription.receive_nowait() == message(3, gap(1, since=1))
    put(buffer, 4)
    assert subscription.receive_nowait() == message(4)


def test_mark_stays_through_errors_after_an_empty_buffer() -> None:
    buffer, subscription = open_subscription(2)
    put(buffer, 1, 2)
    put_error(buffer, "Order not found", at(3))
    put_error(buffer, "Order not found", at(4))
    for _ in range(2):
        with pytest.raises(ChannelError):
            subscription.receive_nowait()
    put_error(buffer, "Order not found", at(5))
    put(buffer, 6)
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    assert subscription.receive_nowait() == message(6, gap(2, since=1))


async def test_waiting_task_gets_no_mark_of_a_later_gap() -> None:
    buffer, subscription = open_subscription(1)
    got: list[Message[int]] = []

    async def consume() -> None:
        got.append(await subscription.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        put(buffer, 1, 2, 3)  # 1 goes straight to the task, which hasn't run yet when 2 is dropped
    assert got == [message(1)]
    assert subscription.receive_nowait() == message(3, gap(1, since=2))


async def test_waiting_task_gets_only_the_mark_of_an_earlier_gap() -> None:
    buffer, subscription = open_subscription(1)
    put(buffer, 1)
    put_error(buffer, "Order not found", at(2))
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    got: list[Message[int]] = []

    async def consume() -> None:
        got.append(await subscription.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        put(buffer, 3, 4, 5)
    assert got == [message(3, gap(1, since=1))]
    assert subscription.receive_nowait() == message(5, gap(1, since=4))


def test_unread_channel_drops_the_oldest_and_counts() -> None:
    buffer: Buffer[int] = Buffer("events", 2)
    channel = BoundedReceiveChannel(buffer)
    for number in range(5):
        buffer.put(number)
    assert channel.dropped == 3
    assert [channel.receive_nowait(), channel.receive_nowait()] == [3, 4]


def test_unread_subscription_has_bounded_memory() -> None:
    buffer, subscription = open_subscription(10)
    alive: weakref.WeakSet[Message[int]] = weakref.WeakSet()

    def put_many() -> None:
        for number in range(1000):
            received = message(number)
            alive.add(received)
            buffer.put(received)

    put_many()
    gc.collect()
    assert len(alive) == subscription.statistics().current_buffer_used == 10
    assert subscription.dropped == 990


# Drained after an overflow


def test_owner_is_called_once_when_an_overflow_is_drained() -> None:
    owner = RecordingOwner()
    buffer, subscription = open_subscription(2, owner)
    put(buffer, 1, 2)
    assert take_all(subscription) == [1, 2]
    assert owner.calls == []  # there was no overflow
    for _ in range(2):
        owner.calls.clear()
        put(buffer, 1, 2, 3, 4)
        take(subscription)
        assert owner.calls == ["overflowed"]
        take(subscription)
        assert owner.calls == ["overflowed", "drained"]
        assert owner.were_empty[-1]
        put(buffer, 5)
        take(subscription)
        assert owner.calls == ["overflowed", "drained"]


@every_way
async def test_receive_that_empties_the_buffer_calls_the_owner(way: Way) -> None:
    owner = RecordingOwner()
    buffer, subscription = open_subscription(1, owner)
    put(buffer, 1, 2)
    await way(subscription)
    assert owner.calls == ["overflowed", "drained"]


def test_error_received_last_empties_the_buffer() -> None:
    owner = RecordingOwner()
    buffer, subscription = open_subscription(1, owner)
    put(buffer, 1)
    put_error(buffer, "Order not found", at(2))
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    assert owner.calls == ["overflowed", "drained"]


def test_owner_is_not_called_for_draining_after_the_end() -> None:
    owner = RecordingOwner()
    buffer, subscription = open_subscription(1, owner)
    put(buffer, 1, 2)
    buffer.end()
    assert subscription.receive_nowait() == message(2, gap(1, since=1))
    assert owner.calls == ["overflowed"]


def test_buffer_without_an_owner_overflows_and_closes() -> None:
    buffer, subscription = open_subscription(1)
    put(buffer, 1, 2)
    assert subscription.receive_nowait() == message(2, gap(1, since=1))
    subscription.close()
    assert buffer.handles == 0


# Overflow ends the subscription


def test_overflow_error_ends_the_subscription_after_the_buffer() -> None:
    owner = RecordingOwner()
    buffer, subscription = open_subscription(2, owner, overflow="error")
    put(buffer, 1, 2)
    assert owner.calls == []
    put(buffer, 3)
    assert owner.calls == ["closed"]  # at once, so that the channel is unsubscribed
    assert subscription.dropped == 1
    put(buffer, 4)
    assert [subscription.receive_nowait(), subscription.receive_nowait()] == [
        message(1),
        message(2),
    ]
    for _ in range(2):
        with pytest.raises(SlowConsumerError) as caught:
            subscription.receive_nowait()
        assert (caught.value.channel, caught.value.buffer_size) == (CHANNEL, 2)
    subscription.close()
    assert owner.calls == ["closed"]
    assert subscription.dropped == 1


def test_overflow_error_counts_a_pushed_error() -> None:
    buffer, subscription = open_subscription(1, overflow="error")
    put(buffer, 1)
    put_error(buffer, "Order not found", at(2))
    assert take(subscription) == 1
    with pytest.raises(SlowConsumerError):
        subscription.receive_nowait()


# Errors that the broker pushes


async def test_pushed_error_is_raised_in_its_place() -> None:
    buffer, subscription = open_subscription()
    put(buffer, 1)
    put_error(buffer, "Order not found", at(2))
    put(buffer, 3)
    got: list[object] = []
    for _ in range(3):
        try:
            got.append((await subscription.receive()).data)
        except ChannelError as error:
            got.append((error.channel, error.message))
    assert got == [1, (CHANNEL, "Order not found"), 3]


@every_way
async def test_waiting_task_gets_a_pushed_error_and_can_go_on(way: Way) -> None:
    buffer, subscription = open_subscription()
    got: list[object] = []

    async def consume() -> None:
        with pytest.raises(ChannelError, match="Order not found"):
            await way(subscription)
        got.extend(await way(subscription))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        put_error(buffer, "Order not found", at(1))
        await trio.testing.wait_all_tasks_blocked()
        put(buffer, 2)
    assert got == [message(2)]


# Endings


async def test_iteration_ends_after_the_buffer() -> None:
    buffer, subscription = open_subscription()
    put(buffer, 1, 2)
    buffer.end()
    buffer.end()
    put(buffer, 3)
    put_error(buffer, "Order not found", at(4))
    assert [m.data async for m in subscription] == [1, 2]
    with pytest.raises(trio.EndOfChannel):
        await subscription.receive()
    with pytest.raises(trio.EndOfChannel):
        subscription.receive_nowait()
    assert [batch async for batch in subscription.batches()] == []


@pytest.mark.parametrize(
    ("way", "ending"),
    [
        (by_receive, trio.EndOfChannel),
        (by_iteration, StopAsyncIteration),
        (by_batches, StopAsyncIteration),
    ],
)
async def test_waiting_task_is_woken_by_the_end(way: Way, ending: type[BaseException]) -> None:
    buffer, subscription = open_subscription()

    async def consume() -> None:
        with pytest.raises(ending):
            await way(subscription)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        buffer.end()


@every_way
@pytest.mark.parametrize("waits", [False, True])
async def test_failure_is_raised_from_its_cause_in_every_receive(way: Way, waits: bool) -> None:
    buffer, subscription = open_subscription()
    cause = ConnectionLostError("the broker hung up", 1011)
    errors: list[SubscriptionBrokenError] = []

    async def consume() -> None:
        for _ in range(2):
            with pytest.raises(SubscriptionBrokenError) as caught:
                await way(subscription)
            errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        if waits:
            nursery.start_soon(consume)
            await trio.testing.wait_all_tasks_blocked()
            buffer.fail(SubscriptionBrokenError(CHANNEL), cause)
        else:
            put(buffer, 1)
            buffer.fail(SubscriptionBrokenError(CHANNEL), cause)
            assert await way(subscription) == [message(1)]
            nursery.start_soon(consume)
    assert errors[0] is not errors[1]
    for error in errors:
        assert error.channel == CHANNEL
        assert error.__cause__ is cause
        assert isinstance(error, trio.BrokenResourceError)


def test_failure_raised_a_hundred_times_does_not_grow() -> None:
    buffer, subscription = open_subscription()
    buffer.fail(SubscriptionBrokenError(CHANNEL), ConnectionLostError("gone"))
    lengths = set()
    for _ in range(100):
        with pytest.raises(SubscriptionBrokenError) as caught:
            subscription.receive_nowait()
        lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(lengths) == 1


def test_failure_keeps_its_cause() -> None:
    buffer, subscription = open_subscription()
    refusal = InvalidChannelError("subscribe", "Invalid channel format")
    refusal.__cause__ = ConnectionLostError("gone")
    buffer.fail(refusal)
    with pytest.raises(InvalidChannelError, match="Invalid channel format") as caught:
        subscription.receive_nowait()
    assert caught.value.__cause__ is refusal.__cause__


def test_first_ending_counts() -> None:
    buffer, subscription = open_subscription()
    buffer.end()
    buffer.fail(SubscriptionBrokenError(CHANNEL))
    with pytest.raises(trio.EndOfChannel):
        subscription.receive_nowait()

    buffer, subscription = open_subscription()
    buffer.fail(SubscriptionBrokenError(CHANNEL))
    buffer.fail(SlowConsumerError(CHANNEL, 1))
    buffer.end()
    with pytest.raises(SubscriptionBrokenError):
        subscription.receive_nowait()


def test_clone_made_after_the_end_reads_the_buffer() -> None:
    buffer, subscription = open_subscription()
    put(buffer, 1)
    buffer.end()
    twin = subscription.clone()
    subscription.close()
    assert take(twin) == 1
    with pytest.raises(trio.EndOfChannel):
        twin.receive_nowait()


# Closing


@every_way
async def test_every_method_of_a_closed_handle_raises(way: Way) -> None:
    buffer, subscription = open_subscription()
    twin = subscription.clone()
    put(buffer, 1)
    subscription.close()
    with pytest.raises(trio.ClosedResourceError):
        await way(subscription)
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()
    with pytest.raises(trio.ClosedResourceError):
        subscription.clone()
    assert take(twin) == 1


@every_way
async def test_closing_wakes_waiting_tasks_of_that_handle_only(way: Way) -> None:
    buffer, subscription = open_subscription()
    twin = subscription.clone()
    got: list[Message[int]] = []

    async def wait_for_nothing() -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await way(subscription)
        assert caught.value.__context__ is None  # no WouldBlock in the traceback

    async def wait_on() -> None:
        got.extend(await way(twin))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_nothing)
        nursery.start_soon(wait_on)
        await trio.testing.wait_all_tasks_blocked()
        subscription.close()
        await trio.testing.wait_all_tasks_blocked()
        put(buffer, 1)
    assert got == [message(1)]


async def test_closing_in_one_task_while_another_iterates() -> None:
    async def read(subscription: Subscription[int], got: list[int]) -> None:
        async for received in subscription:
            got.append(received.data)  # noqa: PERF401  # an error must not lose them

    async def read_until_closed(subscription: Subscription[int], got: list[int]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await read(subscription, got)

    for ticks in range(8):
        buffer, subscription = open_subscription()
        put(buffer, *range(40))
        got: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_until_closed, subscription, got)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            await subscription.aclose()
        assert got == list(range(len(got)))


def test_closing_the_last_handle_calls_the_owner_once() -> None:
    owner = RecordingOwner()
    buffer, subscription = open_subscription(1024, owner)
    twin = subscription.clone()
    put(buffer, 1)
    twin.close()
    twin.close()
    assert owner.calls == []
    subscription.close()
    assert owner.calls == ["closed"]
    assert owner.were_empty == [True]  # the items have been freed
    subscription.close()
    twin.close()
    put(buffer, 2)
    put_error(buffer, "Order not found", at(3))
    buffer.end()
    buffer.fail(SubscriptionBrokenError(CHANNEL))
    assert owner.calls == ["closed"]
    assert subscription.statistics().current_buffer_used == 0
    assert subscription.dropped == 0
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()


@pytest.mark.parametrize("how", ["end", "fail"])
def test_closing_an_ended_stream_frees_the_buffer(how: str) -> None:
    owner = RecordingOwner()
    buffer, subscription = open_subscription(1024, owner)
    put(buffer, 1)
    if how == "end":
        buffer.end()
    else:
        buffer.fail(SubscriptionBrokenError(CHANNEL))
    assert subscription.statistics().current_buffer_used == 1
    subscription.close()
    assert subscription.statistics().current_buffer_used == 0
    assert owner.calls == []


async def test_aclose_is_a_checkpoint_every_time_and_closes() -> None:
    _, subscription = open_subscription()
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            await subscription.aclose()
        with pytest.raises(trio.ClosedResourceError):
            subscription.receive_nowait()


async def test_aclose_closes_even_if_it_is_cancelled() -> None:
    _, subscription = open_subscription()
    with trio.CancelScope() as scope:
        scope.cancel()
        await subscription.aclose()
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()


async def test_both_kinds_of_with_close_the_handle() -> None:
    owner = RecordingOwner()
    _, subscription = open_subscription(1024, owner)
    async with subscription as entered:
        assert entered is subscription
        with subscription.clone() as twin:
            assert isinstance(twin, Subscription)
        with pytest.raises(trio.ClosedResourceError):
            twin.receive_nowait()
        assert owner.calls == []
    assert owner.calls == ["closed"]


def test_open_handle_can_be_garbage_collected() -> None:
    buffer, subscription = open_subscription(2)
    gone = weakref.ref(subscription)
    del subscription
    gc.collect()
    assert gone() is None
    put(buffer, 1, 2, 3)
    assert buffer.dropped == 1


# Checkpoints and cancelling


@every_way
async def test_cancelled_receive_takes_nothing(way: Way) -> None:
    buffer, subscription = open_subscription()
    put(buffer, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await way(subscription)
    assert scope.cancelled_caught
    assert take(subscription) == 1


@pytest.mark.parametrize("way", [by_receive, by_batches])
async def test_receive_and_batches_always_schedule_other_tasks(way: Way) -> None:
    buffer, subscription = open_subscription()
    put(buffer, 1)
    with trio.testing.assert_checkpoints():
        assert await way(subscription) == [message(1)]
    put_error(buffer, "Order not found", at(2))
    with trio.testing.assert_checkpoints(), pytest.raises(ChannelError):
        await way(subscription)


async def test_iteration_schedules_other_tasks_every_sixteen_messages() -> None:
    buffer, subscription = open_subscription()
    put(buffer, *range(100))
    buffer.end()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    turns: list[int] = [steps.count async for _ in subscription]
    trio.lowlevel.remove_instrument(steps)
    runs = [turns.count(turn) for turn in sorted(set(turns))]
    assert sum(runs) == 100
    assert max(runs) == 16
    assert runs[1:-1] == [16] * len(runs[1:-1])


async def test_wait_counts_as_a_scheduling_point() -> None:
    buffer, subscription = open_subscription()
    put(buffer, *range(10))
    for _ in range(10):
        await anext(subscription)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def later() -> None:
            await trio.testing.wait_all_tasks_blocked()
            put(buffer, *range(16))

        await anext(subscription)
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    for _ in range(15):
        await anext(subscription)
    trio.lowlevel.remove_instrument(steps)
    assert steps.count == 0


async def test_every_message_of_an_iteration_is_a_cancel_point() -> None:
    buffer, subscription = open_subscription()
    put(buffer, *range(10))
    got: list[int] = []
    with trio.CancelScope() as scope:
        async for received in subscription:
            got.append(received.data)
            if received.data == 4:
                scope.cancel()
    assert scope.cancelled_caught
    assert got + take_all(subscription) == list(range(10))
    assert got == [0, 1, 2, 3, 4]


@every_way
@pytest.mark.parametrize("cancel_first", [False, True])
@pytest.mark.parametrize("buffered", [0, 1, 17])
async def test_cancelling_at_any_moment_loses_no_message(
    way: Way, cancel_first: bool, buffered: int
) -> None:
    async def consume(
        subscription: Subscription[int], scope: trio.CancelScope, got: list[int]
    ) -> None:
        with scope:
            while True:
                got.extend(m.data for m in await way(subscription))

    # Twice, because the scheduler's order of tasks is random.
    for ticks in [*range(6), *range(6)]:
        buffer, subscription = open_subscription()
        put(buffer, *range(buffered))
        scope = trio.CancelScope()
        got: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, subscription, scope, got)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            if cancel_first:
                scope.cancel()
            put(buffer, buffered)
            scope.cancel()
        assert scope.cancelled_caught
        assert got + take_all(subscription) == list(range(buffered + 1))


# Batches


async def numbers(batches: AsyncIterator[list[Message[int]]]) -> list[int]:
    return [received.data for received in await anext(batches)]


async def test_batch_has_everything_that_has_arrived() -> None:
    buffer, subscription = open_subscription(100)
    batches = subscription.batches()
    assert aiter(batches) is batches
    put(buffer, *range(50))
    assert await numbers(batches) == list(range(50))
    put(buffer, 50)
    buffer.end()
    assert [len(batch) async for batch in batches] == [1]


async def test_batch_waits_for_a_message_and_takes_all_available() -> None:
    buffer, subscription = open_subscription()
    got: list[int] = []

    async def consume() -> None:
        got.extend(await numbers(subscription.batches()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        put(buffer, 1, 2, 3)
    assert got == [1, 2, 3]


async def test_batch_ends_before_a_pushed_error() -> None:
    buffer, subscription = open_subscription()
    batches = subscription.batches()
    put(buffer, 1, 2)
    put_error(buffer, "first", at(3))
    put_error(buffer, "second", at(4))
    put(buffer, 5)
    buffer.end()
    assert await numbers(batches) == [1, 2]
    with pytest.raises(ChannelError, match="first"):
        await anext(batches)
    with pytest.raises(ChannelError, match="second"):
        await anext(batches)
    assert await numbers(batches) == [5]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_batch_keeps_the_mark_of_a_gap() -> None:
    buffer, subscription = open_subscription(2)
    put(buffer, 1, 2, 3)
    assert await anext(subscription.batches()) == [message(2, gap(1, since=1)), message(3)]


async def test_error_behind_a_batch_outlives_the_iterator() -> None:
    buffer, subscription = open_subscription()
    twin = subscription.clone()
    put(buffer, 1)
    put_error(buffer, "Order not found", at(2))
    put(buffer, 3)
    assert await numbers(subscription.batches()) == [1]
    subscription.close()
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()
    with pytest.raises(ChannelError, match="Order not found"):
        await twin.receive()
    assert take(twin) == 3


async def test_cancelled_step_keeps_the_error_behind_a_batch() -> None:
    buffer, subscription = open_subscription()
    batches = subscription.batches()
    put(buffer, 1)
    put_error(buffer, "Order not found", at(2))
    assert await numbers(batches) == [1]
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(batches)
    assert scope.cancelled_caught
    with pytest.raises(ChannelError, match="Order not found"):
        await anext(batches)


async def test_batch_comes_before_a_failure() -> None:
    buffer, subscription = open_subscription()
    batches = subscription.batches()
    put(buffer, 1, 2)
    buffer.fail(SubscriptionBrokenError(CHANNEL), ConnectionLostError("gone"))
    assert await numbers(batches) == [1, 2]
    with pytest.raises(SubscriptionBrokenError):
        await anext(batches)


# Statistics and repr


def test_statistics_count_only_the_users_handles() -> None:
    buffer, subscription = open_subscription(8)
    twin = subscription.clone()
    put(buffer, 1, 2, 3)
    take(subscription)
    statistics = subscription.statistics()
    assert isinstance(statistics, trio.MemoryChannelStatistics)
    counted = attrs.asdict(statistics)
    counted.pop("peak_buffer_used", None)  # older versions of Trio don't have it
    assert counted == {
        "current_buffer_used": 2,
        "max_buffer_size": 8,
        "open_send_channels": 1,
        "open_receive_channels": 2,
        "tasks_waiting_send": 0,
        "tasks_waiting_receive": 0,
    }
    twin.close()
    assert twin.statistics().open_receive_channels == 1
    subscription.close()
    assert subscription.statistics().open_receive_channels == 0
    assert subscription.statistics().open_send_channels == 0


def test_repr_names_the_channel_and_counts() -> None:
    buffer, subscription = open_subscription(3)
    put(buffer, 1, 2, 3, 4)
    assert repr(subscription) == "<Subscription 'orders:ord_1' buffered=3 dropped=1>"
    subscription.close()
    assert repr(subscription) == "<Subscription 'orders:ord_1' closed dropped=1>"
    channel: BoundedReceiveChannel[int] = BoundedReceiveChannel(Buffer("events", 3))
    assert repr(channel) == "<BoundedReceiveChannel 'events' buffered=0 dropped=0>"


def test_handle_refuses_misspelt_attributes() -> None:
    _, subscription = open_subscription()
    with pytest.raises(AttributeError, match="did you mean 'dropped'"):
        subscription.droped = 1  # type: ignore[attr-defined]


# Ctrl-C

INTERRUPTED = {buffer_module.__file__, subscription_module.__file__}


class CtrlC:
    """Sends SIGINT after so many bytecodes of the modules under test."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in INTERRUPTED:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.count

    def count(self, _frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)  # nothing is left to count, and tracing is slow
                signal.raise_signal(signal.SIGINT)
        return self.count


@contextlib.contextmanager
def no_interruption(problems: list[str], what: str) -> Iterator[None]:
    """Run calls without a checkpoint; Ctrl-C is raised after them."""
    try:
        yield
    except KeyboardInterrupt:
        problems.append(f"broken off: {what}")
        raise


async def use_it_all(problems: list[str]) -> None:
    """A user's task with every call that changes shared state."""
    owner = RecordingOwner()
    buffer: MessageBuffer[int] = MessageBuffer(CHANNEL, 2, owner)
    events: Buffer[int] = Buffer("events", 1)
    broken: Buffer[int] = Buffer("messages", 1)
    delivered: list[Message[int]] = []
    with no_interruption(problems, "open, overflow and drain"):
        subscription, channel = Subscription(buffer), BoundedReceiveChannel(events)
        twin = subscription.clone()
        put(buffer, 1, 2, 3, 4)
        delivered.append(twin.receive_nowait())
        delivered.append(subscription.receive_nowait())
        put(buffer, 5)
        put_error(buffer, "Order not found", at(6))
        for number in range(3):
            events.put(number)
        events.end()
    assert (channel.dropped, channel.receive_nowait()) == (2, 2)
    try:
        # These are checkpoints, where Ctrl-C may be raised.
        delivered.extend(await anext(subscription.batches()))
        with pytest.raises(ChannelError):
            await anext(subscription)
        put(buffer, 7)
        delivered.append(await anext(twin))
        put(buffer, 8)
        delivered.append(await subscription.receive())
    finally:
        with no_interruption(problems, "drain"), contextlib.suppress(trio.WouldBlock):
            while True:
                with contextlib.suppress(ChannelError):
                    delivered.append(subscription.receive_nowait())
        arrived = [m.data for m in delivered]
        if arrived != [3, 4, 5, 7, 8][: len(arrived)] or len(arrived) < 3:
            problems.append(f"received {arrived}")
        if buffer.dropped != 2 or delivered[0].gap != gap(2, since=1):
            problems.append(f"lost a mark: {delivered[0]}")
        if buffer.handles != 2:
            problems.append(f"{buffer.handles} handles")
        try:
            await twin.aclose()
        finally:
            if buffer.handles != 1:
                problems.append("not closed")
            with no_interruption(problems, "close"):
                subscription.close()
            if owner.calls != ["overflowed", "drained", "closed"]:
                problems.append(f"called {owner.calls}")
            with no_interruption(problems, "fail"):
                broken.fail(SubscriptionBrokenError(CHANNEL))


def test_ctrl_c_at_any_bytecode_loses_nothing() -> None:
    handler, tracer = signal.getsignal(signal.SIGINT), sys.gettrace()
    # A test run in the background may have been started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    problems: list[str] = []
    after, interrupted = 0, True
    # Python 3.12 checks, when a tracer is set, whether any frame was ever traced by bytecodes.
    sys._getframe().f_trace_opcodes = True
    try:
        while interrupted:
            after += 1
            ctrl_c = CtrlC(after)
            interrupted = False
            sys.settrace(ctrl_c)
            try:
                trio.run(use_it_all, problems)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(tracer)
            assert problems == [], f"Ctrl-C after {after} bytecodes"
            assert interrupted == (ctrl_c.left <= 0)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert after > 500


# Random calls, against a model


@attrs.define
class Put:
    """The model's record of an item."""

    number: int
    is_error: bool
    own_gap: Gap | None


class Streams(RuleBasedStateMachine):
    """Calls in any order: every lost item is counted, and every gap is marked in its place.

    The model is a plain queue of what is buffered. It knows by counting which items were skipped
    between two that were delivered: the mark must have that gap.
    """

    handles = Bundle("handles")

    @initialize(
        target=handles,
        buffer_size=st.integers(1, 4),
        overflow=st.sampled_from(["drop_oldest", "drop_oldest", "error"]),
    )
    def open(self, buffer_size: int, overflow: Overflow) -> Subscription[int]:
        self.buffer_size, self.overflow = buffer_size, overflow
        self.owner = RecordingOwner()
        self.buffer, subscription = open_subscription(buffer_size, self.owner, overflow=overflow)
        self.number = 0
        self.open_handles = {id(subscription)}
        self.queue: deque[Put] = deque()
        self.held: Put | None = None  # an error behind a batch
        self.skipped: list[Put] = []  # dropped, and not reported yet
        self.dropped = self.reported = self.delivered = self.discarded = 0
        self.full = False
        self.ending: type[Exception] | None = None
        self.expected_calls: list[str] = []
        return subscription

    def put_in(self, item: Put) -> None:
        if self.ending is not None or not self.open_handles:
            self.discarded += 1
        elif len(self.queue) < self.buffer_size:
            self.queue.append(item)
        elif self.overflow == "drop_oldest":
            self.skipped.append(self.queue.popleft())
            self.dropped += 1
            if not self.full:
                self.full = True
                self.expected_calls.append("overflowed")
            self.queue.append(item)
        else:
            self.dropped += 1
            self.ending = SlowConsumerError
            self.expected_calls.append("closed")

    @rule(own_gap=st.sampled_from([None, None, None, -100]))
    def put(self, own_gap: int | None) -> None:
        self.number += 1
        since = None if own_gap is None else gap(0, self.number + own_gap, "reconnected")
        self.buffer.put(message(self.number, since))
        self.put_in(Put(self.number, is_error=False, own_gap=since))

    @rule()
    def put_error(self) -> None:
        self.number += 1
        put_error(self.buffer, str(self.number), at(self.number))
        self.put_in(Put(self.number, is_error=True, own_gap=None))

    def expected_gap(self, own: Gap | None) -> Gap | None:
        """The expected mark for everything skipped before a message."""
        parts = [gap(1, item.number) for item in self.skipped]
        parts += [item.own_gap for item in self.skipped if item.own_gap is not None]
        parts += [own] if own is not None else []
        self.skipped.clear()
        if not parts:
            return None
        return Gap(
            frozenset(reason for part in parts for reason in part.reasons),
            sum(part.dropped for part in parts),
            min(part.since for part in parts),
        )

    def pop(self) -> Put:
        if self.held is not None:
            item, self.held = self.held, None
            return item
        item = self.queue.popleft()
        if self.full and not self.queue:
            self.full = False
            if self.ending is None:
                self.expected_calls.append("drained")
        return item

    def check_message(self, received: Message[int], item: Put) -> None:
        assert received.data == item.number
        assert received.gap == self.expected_gap(item.own_gap)
        self.reported += received.gap.dropped if received.gap else 0
        self.delivered += 1

    @rule(handle=handles)
    def receive(self, handle: Subscription[int]) -> None:
        if id(handle) not in self.open_handles:
            with pytest.raises(trio.ClosedResourceError):
                handle.receive_nowait()
        elif self.held is None and not self.queue:
            with pytest.raises(self.ending or trio.WouldBlock):
                handle.receive_nowait()
        elif (item := self.pop()).is_error:
            with pytest.raises(ChannelError, match=rf": {item.number}$"):
                handle.receive_nowait()
            self.delivered += 1
        else:
            self.check_message(handle.receive_nowait(), item)

    @precondition(lambda self: self.held is None and self.queue and not self.queue[0].is_error)
    @rule(handle=handles)
    def receive_a_batch(self, handle: Subscription[int]) -> None:
        if id(handle) not in self.open_handles:
            return
        batch = trio.run(handle.batches().__anext__)
        for received in batch:
            self.check_message(received, self.pop())
        if self.queue:
            self.held = self.pop()
            assert self.held.is_error

    @rule(target=handles, handle=handles)
    def clone(self, handle: Subscription[int]) -> Any:
        if id(handle) not in self.open_handles:
            with pytest.raises(trio.ClosedResourceError):
                handle.clone()
            return handle
        twin = handle.clone()
        self.open_handles.add(id(twin))
        return twin

    @rule(handle=handles)
    def close(self, handle: Subscription[int]) -> None:
        handle.close()
        if self.open_handles == {id(handle)}:
            self.discarded += len(self.queue) + (self.held is not None)
            self.queue.clear()
            self.held = None
            if self.ending is None:
                self.expected_calls.append("closed")
                self.ending = trio.EndOfChannel
        self.open_handles.discard(id(handle))

    @rule()
    def end(self) -> None:
        self.buffer.end()
        self.ending = self.ending or trio.EndOfChannel

    @rule()
    def fail(self) -> None:
        self.buffer.fail(SubscriptionBrokenError(CHANNEL))
        self.ending = self.ending or SubscriptionBrokenError

    @invariant()
    def everything_is_delivered_or_counted(self) -> None:
        assert self.buffer.dropped == self.dropped
        assert self.buffer.handles == len(self.open_handles)
        assert self.owner.calls == self.expected_calls
        waiting = len(self.queue) + (self.held is not None)
        assert self.delivered + self.dropped + self.discarded + waiting == self.number
        if self.overflow == "drop_oldest":
            assert self.reported + len(self.skipped) == self.dropped


Streams.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestStreams = Streams.TestCase


async def test_iteration_raises_a_buffered_error_and_can_go_on() -> None:
    buffer: MessageBuffer[int] = MessageBuffer("orders:1", 8)
    subscription = Subscription(buffer)
    buffer.put(message(1))
    put_error(buffer, "Order not found", at(2))
    buffer.put(message(3))
    assert (await anext(subscription)).data == 1
    with pytest.raises(ChannelError, match="Order not found"):
        await anext(subscription)
    assert (await anext(subscription)).data == 3


# --- For other event loops -------------------------------------------------------------------


def test_callback_takes_the_message_from_the_buffer() -> None:
    buffer, subscription = open_subscription()
    calls: list[str] = []
    subscription.when_ready(lambda: calls.append("first"))
    subscription.when_ready(lambda: calls.append("second"))
    assert calls == []
    buffer.put(message(1))
    buffer.put(message(2))
    assert calls == ["first", "second"]  # once
    assert [one.data for one in subscription.batch_nowait()] == [1, 2]


def test_failing_callback_does_not_disturb_others(caplog: pytest.LogCaptureFixture) -> None:
    buffer, subscription = open_subscription()
    calls: list[str] = []

    def fail() -> None:
        raise ValueError("foreign")

    subscription.when_ready(fail)
    subscription.when_ready(lambda: calls.append("called"))
    buffer.put(message(1))
    assert calls == ["called"]
    assert "foreign" in caplog.text
    assert subscription.receive_nowait().data == 1


def test_callback_can_be_cancelled() -> None:
    buffer, subscription = open_subscription()
    calls: list[str] = []
    forget = subscription.when_ready(lambda: calls.append("gone"))
    forget()
    buffer.put(message(1))
    forget()
    assert calls == []


@pytest.mark.parametrize("how", ["end", "fail", "close"])
def test_end_runs_callbacks(how: str) -> None:
    buffer, subscription = open_subscription()
    calls: list[str] = []
    subscription.when_ready(lambda: calls.append(how))
    if how == "end":
        buffer.end()
    elif how == "fail":
        buffer.fail(ValueError("no"))
    else:
        subscription.close()
        with pytest.raises(trio.ClosedResourceError):
            subscription.when_ready(lambda: None)
    assert calls == [how]
