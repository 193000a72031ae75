"""What a subscriber sees of its buffer: order, overflow, gaps, endings, cancelling, Ctrl-C."""

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
from types import FrameType
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_broker import subscription as module
from trio_broker.exceptions import (
    ChannelError,
    ConnectionLostError,
    InvalidChannelError,
    SlowConsumerError,
    SubscriptionBrokenError,
)
from trio_broker.models import Gap, GapReason, Message, Order
from trio_broker.subscription import BoundedReceiveChannel, Feed, Mailbox, Overflow, Subscription

CHANNEL = "orders:ord_1"
START = dt.datetime(2025, 11, 25, 9, 0, tzinfo=dt.UTC)


def at(number: int) -> dt.datetime:
    return START + dt.timedelta(seconds=number)


def message(number: int, gap: Gap | None = None) -> Message[int]:
    return Message(CHANNEL, number, "push", gap, at(number), str(number))


def gap(dropped: int, since: int, *reasons: GapReason) -> Gap:
    return Gap(frozenset(reasons or ("overflow",)), dropped, at(since))


def open_subscription(
    buffer_size: int = 1024,
    *,
    overflow: Overflow = "drop_oldest",
    on_close: Callable[[], object] = lambda: None,
    on_drained: Callable[[], object] = lambda: None,
) -> tuple[Feed[int], Subscription[int]]:
    feed: Feed[int] = Feed(
        CHANNEL, buffer_size, overflow=overflow, on_close=on_close, on_drained=on_drained
    )
    return feed, Subscription(feed)


def put(feed: Feed[int], *numbers: int) -> None:
    for number in numbers:
        feed.put(message(number))


def take(subscription: Subscription[int]) -> int:
    return subscription.receive_nowait().data


def take_all(subscription: Subscription[int]) -> list[int]:
    """What is left in the buffer, without waiting."""
    numbers = []
    while True:
        try:
            numbers.append(take(subscription))
        except trio.WouldBlock:
            return numbers


# Three ways to wait for something. Each gives a list of messages, for a batch may be longer than 1.
Way = Callable[[Subscription[int]], Awaitable[list[Message[int]]]]


async def by_receive(subscription: Subscription[int]) -> list[Message[int]]:
    return [await subscription.receive()]


async def by_iteration(subscription: Subscription[int]) -> list[Message[int]]:
    return [await anext(subscription)]


async def by_batches(subscription: Subscription[int]) -> list[Message[int]]:
    return await anext(subscription.batches())


every_way = pytest.mark.parametrize("way", [by_receive, by_iteration, by_batches])


class Steps(trio.abc.Instrument):
    """Counts how often the scheduler gave a task its turn."""

    def __init__(self) -> None:
        self.task = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


# What comes out, and in which order


async def test_messages_come_in_order_by_every_way_of_receiving() -> None:
    feed, subscription = open_subscription()
    put(feed, 1, 2, 3, 4, 5)
    assert (await subscription.receive()).data == 1
    assert subscription.receive_nowait().data == 2
    assert (await anext(subscription)).data == 3
    assert [m.data for m in await anext(subscription.batches())] == [4, 5]


async def test_messages_arrive_as_the_objects_that_were_put_in() -> None:
    feed, subscription = open_subscription()
    original = message(1)
    feed.put(original)
    assert await subscription.receive() is original


def test_receive_nowait_would_block_while_nothing_is_there() -> None:
    feed, subscription = open_subscription()
    with pytest.raises(trio.WouldBlock):
        subscription.receive_nowait()
    put(feed, 1)
    assert take(subscription) == 1


@every_way
async def test_a_task_that_waits_gets_the_message_that_comes(way: Way) -> None:
    feed, subscription = open_subscription()
    got: list[Message[int]] = []

    async def consume() -> None:
        got.extend(await way(subscription))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        assert subscription.statistics().tasks_waiting_receive == 1
        put(feed, 1)
    assert got == [message(1)]


def test_clones_compete_for_messages() -> None:
    feed, subscription = open_subscription()
    twin = subscription.clone()
    put(feed, 1, 2, 3)
    assert [take(subscription), take(twin), take(subscription)] == [1, 2, 3]
    assert isinstance(twin, Subscription)
    assert twin.channel == CHANNEL


def test_a_subscription_is_a_receive_channel_of_typed_messages() -> None:
    def as_channel(orders: Subscription[Order]) -> trio.abc.ReceiveChannel[Message[Order]]:
        wider: Subscription[object] = orders
        assert wider is orders
        return orders

    feed: Feed[Order] = Feed(CHANNEL)
    assert isinstance(as_channel(Subscription(feed)), trio.abc.ReceiveChannel)


async def test_a_tap_takes_items_of_any_kind_and_ends_with_its_mailbox() -> None:
    mailbox: Mailbox[str] = Mailbox("events", 8)
    tap = BoundedReceiveChannel(mailbox)
    mailbox.put("one")
    mailbox.put("two")
    mailbox.end()
    assert [event async for event in tap] == ["one", "two"]


def test_a_subscription_keeps_1024_messages_if_not_told_otherwise() -> None:
    feed: Feed[int] = Feed(CHANNEL)
    assert Subscription(feed).statistics().max_buffer_size == 1024


# What is refused


@pytest.mark.parametrize("buffer_size", [math.inf, 1.0, "8", None, True])
def test_a_buffer_size_that_is_no_int_is_refused(buffer_size: Any) -> None:
    with pytest.raises(TypeError, match=r"buffer_size must be an int"):
        Feed(CHANNEL, buffer_size)
    with pytest.raises(TypeError, match=r"buffer_size must be an int"):
        Mailbox("events", buffer_size)


@pytest.mark.parametrize("buffer_size", [0, -1])
def test_a_buffer_size_below_one_is_refused(buffer_size: int) -> None:
    with pytest.raises(ValueError, match=rf"buffer_size must be at least 1, not {buffer_size}"):
        Feed(CHANNEL, buffer_size)


@pytest.mark.parametrize("overflow", ["drop_newest", "", None, ["error"]])
def test_an_unknown_overflow_is_refused(overflow: Any) -> None:
    with pytest.raises(ValueError, match=r"overflow must be 'drop_oldest' or 'error', not "):
        Feed(CHANNEL, 8, overflow=overflow)


# A consumer that is too slow: the oldest goes


def test_a_full_buffer_drops_the_oldest_and_the_next_message_says_so() -> None:
    feed, subscription = open_subscription(2)
    put(feed, 1, 2, 3, 4, 5)
    assert subscription.dropped == 3
    assert subscription.receive_nowait() == message(4, gap(3, since=1))
    assert subscription.receive_nowait() == message(5)


def test_a_buffer_that_is_just_full_drops_nothing() -> None:
    feed, subscription = open_subscription(2)
    put(feed, 1, 2)
    assert [subscription.receive_nowait(), subscription.receive_nowait()] == [
        message(1),
        message(2),
    ]
    assert subscription.dropped == 0


def test_each_hole_is_marked_on_its_own_and_dropped_is_their_sum() -> None:
    feed, subscription = open_subscription(2)
    put(feed, 1, 2, 3)
    assert subscription.receive_nowait() == message(2, gap(1, since=1))
    put(feed, 4, 5, 6)
    assert subscription.receive_nowait() == message(5, gap(2, since=3))
    assert subscription.receive_nowait() == message(6)
    assert subscription.dropped == 3


def test_the_mark_is_put_on_once_in_whichever_clone_receives_next() -> None:
    feed, subscription = open_subscription(2)
    twin = subscription.clone()
    put(feed, 1, 2, 3)
    assert twin.receive_nowait() == message(2, gap(1, since=1))
    assert subscription.receive_nowait() == message(3)
    assert twin.dropped == subscription.dropped == 1


@every_way
async def test_the_mark_comes_by_every_way_of_receiving(way: Way) -> None:
    feed, subscription = open_subscription(1)
    put(feed, 1, 2)
    assert await way(subscription) == [message(2, gap(1, since=1))]


def test_a_gap_that_a_dropped_message_carried_is_not_forgotten() -> None:
    feed, subscription = open_subscription(1)
    feed.put(message(5, gap(0, 2, "reconnected")))
    put(feed, 6)
    assert subscription.receive_nowait() == message(6, gap(1, 2, "overflow", "reconnected"))


def test_a_gap_that_the_marked_message_carries_itself_is_kept() -> None:
    feed, subscription = open_subscription(1)
    put(feed, 5)
    feed.put(message(6, gap(0, 7, "reconnected")))
    assert subscription.receive_nowait() == message(6, gap(1, 5, "overflow", "reconnected"))


def test_an_error_that_is_dropped_counts_too() -> None:
    feed, subscription = open_subscription(1)
    feed.put_error("Order not found", at(1))
    put(feed, 2)
    assert subscription.dropped == 1
    assert subscription.receive_nowait() == message(2, gap(1, since=1))


def test_a_mark_waits_for_a_message_while_only_errors_come() -> None:
    feed, subscription = open_subscription(1)
    put(feed, 1)
    feed.put_error("Order not found", at(2))
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    put(feed, 3)
    assert subscription.receive_nowait() == message(3, gap(1, since=1))
    put(feed, 4)
    assert subscription.receive_nowait() == message(4)


def test_a_mark_outlasts_errors_that_come_after_the_buffer_was_empty() -> None:
    feed, subscription = open_subscription(2)
    put(feed, 1, 2)
    feed.put_error("Order not found", at(3))
    feed.put_error("Order not found", at(4))
    for _ in range(2):
        with pytest.raises(ChannelError):
            subscription.receive_nowait()
    feed.put_error("Order not found", at(5))
    put(feed, 6)
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    assert subscription.receive_nowait() == message(6, gap(2, since=1))


async def test_a_task_that_waited_is_not_told_of_a_hole_after_its_message() -> None:
    feed, subscription = open_subscription(1)
    got: list[Message[int]] = []

    async def consume() -> None:
        got.append(await subscription.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        put(feed, 1, 2, 3)  # 1 goes straight to the task, which hasn't run yet when 2 is dropped
    assert got == [message(1)]
    assert subscription.receive_nowait() == message(3, gap(1, since=2))


async def test_a_task_that_waited_is_told_of_the_hole_before_its_message_alone() -> None:
    feed, subscription = open_subscription(1)
    put(feed, 1)
    feed.put_error("Order not found", at(2))
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    got: list[Message[int]] = []

    async def consume() -> None:
        got.append(await subscription.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        put(feed, 3, 4, 5)
    assert got == [message(3, gap(1, since=1))]
    assert subscription.receive_nowait() == message(5, gap(1, since=4))


def test_a_tap_that_nobody_reads_drops_the_oldest_and_counts() -> None:
    mailbox: Mailbox[int] = Mailbox("events", 2)
    tap = BoundedReceiveChannel(mailbox)
    for number in range(5):
        mailbox.put(number)
    assert tap.dropped == 3
    assert [tap.receive_nowait(), tap.receive_nowait()] == [3, 4]


def test_a_subscription_that_nobody_reads_costs_bounded_memory() -> None:
    feed, subscription = open_subscription(10)
    alive: weakref.WeakSet[Message[int]] = weakref.WeakSet()

    def put_many() -> None:
        for number in range(1000):
            received = message(number)
            alive.add(received)
            feed.put(received)

    put_many()
    gc.collect()
    assert len(alive) == subscription.statistics().current_buffer_used == 10
    assert subscription.dropped == 990


# Emptied after an overflow


def test_emptying_the_buffer_after_an_overflow_is_told_once_for_each_overflow() -> None:
    drained: list[int] = []
    feed, subscription = open_subscription(
        2, on_drained=lambda: drained.append(subscription.statistics().current_buffer_used)
    )
    put(feed, 1, 2)
    assert take_all(subscription) == [1, 2]
    assert drained == []  # no overflow, no news
    for _ in range(2):
        drained.clear()
        put(feed, 1, 2, 3, 4)
        take(subscription)
        assert drained == []
        take(subscription)
        assert drained == [0]
        put(feed, 5)
        take(subscription)
        assert drained == [0]


@every_way
async def test_the_receive_that_empties_the_buffer_tells(way: Way) -> None:
    drained: list[str] = []
    feed, subscription = open_subscription(1, on_drained=lambda: drained.append("drained"))
    put(feed, 1, 2)
    await way(subscription)
    assert drained == ["drained"]


def test_an_error_that_is_received_last_empties_the_buffer_too() -> None:
    drained: list[str] = []
    feed, subscription = open_subscription(1, on_drained=lambda: drained.append("drained"))
    put(feed, 1)
    feed.put_error("Order not found", at(2))
    with pytest.raises(ChannelError):
        subscription.receive_nowait()
    assert drained == ["drained"]


def test_after_the_end_nobody_is_told_that_the_buffer_is_empty() -> None:
    drained: list[str] = []
    feed, subscription = open_subscription(1, on_drained=lambda: drained.append("drained"))
    put(feed, 1, 2)
    feed.end()
    assert subscription.receive_nowait() == message(2, gap(1, since=1))
    assert drained == []


# A consumer that is too slow: the subscription ends


def test_overflow_error_ends_the_subscription_after_what_is_buffered() -> None:
    closed: list[str] = []
    feed, subscription = open_subscription(
        2, overflow="error", on_close=lambda: closed.append("closed")
    )
    put(feed, 1, 2)
    assert closed == []
    put(feed, 3)
    assert closed == ["closed"]  # at once: the broker is to stop sending
    assert subscription.dropped == 1
    put(feed, 4)
    assert [subscription.receive_nowait(), subscription.receive_nowait()] == [
        message(1),
        message(2),
    ]
    for _ in range(2):
        with pytest.raises(SlowConsumerError) as caught:
            subscription.receive_nowait()
        assert (caught.value.channel, caught.value.buffer_size) == (CHANNEL, 2)
    subscription.close()
    assert closed == ["closed"]
    assert subscription.dropped == 1


def test_overflow_error_counts_a_pushed_error_as_well() -> None:
    feed, subscription = open_subscription(1, overflow="error")
    put(feed, 1)
    feed.put_error("Order not found", at(2))
    assert take(subscription) == 1
    with pytest.raises(SlowConsumerError):
        subscription.receive_nowait()


# Errors that the broker pushes


async def test_a_pushed_error_is_raised_in_its_place_and_the_subscription_goes_on() -> None:
    feed, subscription = open_subscription()
    put(feed, 1)
    feed.put_error("Order not found", at(2))
    put(feed, 3)
    got: list[object] = []
    for _ in range(3):
        try:
            got.append((await subscription.receive()).data)
        except ChannelError as error:
            got.append((error.channel, error.message))
    assert got == [1, (CHANNEL, "Order not found"), 3]


@every_way
async def test_a_task_that_waits_gets_a_pushed_error_and_can_go_on(way: Way) -> None:
    feed, subscription = open_subscription()
    got: list[object] = []

    async def consume() -> None:
        with pytest.raises(ChannelError, match="Order not found"):
            await way(subscription)
        got.extend(await way(subscription))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        feed.put_error("Order not found", at(1))
        await trio.testing.wait_all_tasks_blocked()
        put(feed, 2)
    assert got == [message(2)]


# Endings


async def test_the_iteration_ends_after_what_is_buffered() -> None:
    feed, subscription = open_subscription()
    put(feed, 1, 2)
    feed.end()
    feed.end()
    put(feed, 3)
    feed.put_error("Order not found", at(4))
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
async def test_a_task_that_waits_learns_of_the_end(way: Way, ending: type[BaseException]) -> None:
    feed, subscription = open_subscription()

    async def consume() -> None:
        with pytest.raises(ending):
            await way(subscription)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        feed.end()


@every_way
@pytest.mark.parametrize("waits", [False, True])
async def test_a_failure_is_raised_from_its_cause_in_every_receive(way: Way, waits: bool) -> None:
    feed, subscription = open_subscription()
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
            feed.fail(SubscriptionBrokenError(CHANNEL), cause)
        else:
            put(feed, 1)
            feed.fail(SubscriptionBrokenError(CHANNEL), cause)
            assert await way(subscription) == [message(1)]
            nursery.start_soon(consume)
    assert errors[0] is not errors[1]
    for error in errors:
        assert error.channel == CHANNEL
        assert error.__cause__ is cause
        assert isinstance(error, trio.BrokenResourceError)


def test_a_failure_that_is_raised_a_hundred_times_does_not_grow() -> None:
    feed, subscription = open_subscription()
    feed.fail(SubscriptionBrokenError(CHANNEL), ConnectionLostError("gone"))
    lengths = set()
    for _ in range(100):
        with pytest.raises(SubscriptionBrokenError) as caught:
            subscription.receive_nowait()
        lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(lengths) == 1


def test_a_failure_keeps_the_cause_that_it_has() -> None:
    feed, subscription = open_subscription()
    refusal = InvalidChannelError("subscribe", "Invalid channel format")
    refusal.__cause__ = ConnectionLostError("gone")
    feed.fail(refusal)
    with pytest.raises(InvalidChannelError, match="Invalid channel format") as caught:
        subscription.receive_nowait()
    assert caught.value.__cause__ is refusal.__cause__


def test_the_first_ending_counts() -> None:
    feed, subscription = open_subscription()
    feed.end()
    feed.fail(SubscriptionBrokenError(CHANNEL))
    with pytest.raises(trio.EndOfChannel):
        subscription.receive_nowait()

    feed, subscription = open_subscription()
    feed.fail(SubscriptionBrokenError(CHANNEL))
    feed.fail(SlowConsumerError(CHANNEL, 1))
    feed.end()
    with pytest.raises(SubscriptionBrokenError):
        subscription.receive_nowait()


def test_a_clone_that_is_made_after_the_end_reads_what_is_buffered() -> None:
    feed, subscription = open_subscription()
    put(feed, 1)
    feed.end()
    twin = subscription.clone()
    subscription.close()
    assert take(twin) == 1
    with pytest.raises(trio.EndOfChannel):
        twin.receive_nowait()


# Closing


@every_way
async def test_a_closed_handle_raises_whatever_is_done_with_it(way: Way) -> None:
    feed, subscription = open_subscription()
    twin = subscription.clone()
    put(feed, 1)
    subscription.close()
    with pytest.raises(trio.ClosedResourceError):
        await way(subscription)
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()
    with pytest.raises(trio.ClosedResourceError):
        subscription.clone()
    assert take(twin) == 1


@every_way
async def test_closing_wakes_a_task_that_waits_and_leaves_clones_alone(way: Way) -> None:
    feed, subscription = open_subscription()
    twin = subscription.clone()
    got: list[Message[int]] = []

    async def wait_in_vain() -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await way(subscription)
        assert caught.value.__context__ is None  # no WouldBlock in the traceback

    async def wait_on() -> None:
        got.extend(await way(twin))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_in_vain)
        nursery.start_soon(wait_on)
        await trio.testing.wait_all_tasks_blocked()
        subscription.close()
        await trio.testing.wait_all_tasks_blocked()
        put(feed, 1)
    assert got == [message(1)]


async def test_closing_in_one_task_while_another_iterates() -> None:
    async def read(subscription: Subscription[int], got: list[int]) -> None:
        async for received in subscription:
            got.append(received.data)  # noqa: PERF401  # an error must not lose them

    async def read_until_closed(subscription: Subscription[int], got: list[int]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await read(subscription, got)

    for ticks in range(8):
        feed, subscription = open_subscription()
        put(feed, *range(40))
        got: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_until_closed, subscription, got)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            await subscription.aclose()
        assert got == list(range(len(got)))


def test_the_last_handle_that_closes_gives_the_subscription_up_once() -> None:
    closed: list[int] = []
    feed, subscription = open_subscription(
        on_close=lambda: closed.append(subscription.statistics().current_buffer_used)
    )
    twin = subscription.clone()
    put(feed, 1)
    twin.close()
    twin.close()
    assert closed == []
    subscription.close()
    assert closed == [0]  # what was buffered is gone by then
    subscription.close()
    twin.close()
    put(feed, 2)
    feed.put_error("Order not found", at(3))
    feed.end()
    feed.fail(SubscriptionBrokenError(CHANNEL))
    assert closed == [0]
    assert subscription.statistics().current_buffer_used == 0
    assert subscription.dropped == 0
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()


@pytest.mark.parametrize("how", ["end", "fail"])
def test_closing_what_has_ended_tells_nobody_and_frees_the_buffer(how: str) -> None:
    closed: list[str] = []
    feed, subscription = open_subscription(on_close=lambda: closed.append("closed"))
    put(feed, 1)
    if how == "end":
        feed.end()
    else:
        feed.fail(SubscriptionBrokenError(CHANNEL))
    assert subscription.statistics().current_buffer_used == 1
    subscription.close()
    assert subscription.statistics().current_buffer_used == 0
    assert closed == []


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
    closed: list[str] = []
    _, subscription = open_subscription(on_close=lambda: closed.append("closed"))
    async with subscription as entered:
        assert entered is subscription
        with subscription.clone() as twin:
            assert isinstance(twin, Subscription)
        with pytest.raises(trio.ClosedResourceError):
            twin.receive_nowait()
        assert closed == []
    assert closed == ["closed"]


def test_a_handle_that_is_garbage_while_open_harms_nobody() -> None:
    feed, subscription = open_subscription(2)
    gone = weakref.ref(subscription)
    del subscription
    gc.collect()
    assert gone() is None
    put(feed, 1, 2, 3)
    assert feed.dropped == 1


# Checkpoints and cancelling


@every_way
async def test_a_cancelled_receive_leaves_what_is_buffered(way: Way) -> None:
    feed, subscription = open_subscription()
    put(feed, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await way(subscription)
    assert scope.cancelled_caught
    assert take(subscription) == 1


@pytest.mark.parametrize("way", [by_receive, by_batches])
async def test_receive_and_batches_let_others_run_even_if_something_is_there(way: Way) -> None:
    feed, subscription = open_subscription()
    put(feed, 1)
    with trio.testing.assert_checkpoints():
        assert await way(subscription) == [message(1)]
    feed.put_error("Order not found", at(2))
    with trio.testing.assert_checkpoints(), pytest.raises(ChannelError):
        await way(subscription)


async def test_an_iteration_lets_others_run_after_sixteen_messages_at_the_latest() -> None:
    feed, subscription = open_subscription()
    put(feed, *range(100))
    feed.end()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    turns: list[int] = [steps.count async for _ in subscription]
    trio.lowlevel.remove_instrument(steps)
    runs = [turns.count(turn) for turn in sorted(set(turns))]
    assert sum(runs) == 100
    assert max(runs) == 16
    assert runs[1:-1] == [16] * len(runs[1:-1])


async def test_a_wait_counts_as_letting_others_run() -> None:
    feed, subscription = open_subscription()
    put(feed, *range(10))
    for _ in range(10):
        await anext(subscription)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def later() -> None:
            await trio.testing.wait_all_tasks_blocked()
            put(feed, *range(16))

        await anext(subscription)
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    for _ in range(15):
        await anext(subscription)
    trio.lowlevel.remove_instrument(steps)
    assert steps.count == 0


async def test_every_message_of_an_iteration_is_a_cancel_point() -> None:
    feed, subscription = open_subscription()
    put(feed, *range(10))
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

    # Twice, as the scheduler draws the order of tasks within a tick.
    for ticks in [*range(6), *range(6)]:
        feed, subscription = open_subscription()
        put(feed, *range(buffered))
        scope = trio.CancelScope()
        got: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, subscription, scope, got)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            if cancel_first:
                scope.cancel()
            put(feed, buffered)
            scope.cancel()
        assert scope.cancelled_caught
        assert got + take_all(subscription) == list(range(buffered + 1))


# Batches


async def numbers(batches: AsyncIterator[list[Message[int]]]) -> list[int]:
    return [received.data for received in await anext(batches)]


async def test_a_batch_is_everything_that_has_arrived() -> None:
    feed, subscription = open_subscription(100)
    batches = subscription.batches()
    assert aiter(batches) is batches
    put(feed, *range(50))
    assert await numbers(batches) == list(range(50))
    put(feed, 50)
    feed.end()
    assert [len(batch) async for batch in batches] == [1]


async def test_a_batch_waits_for_a_message_and_takes_those_that_follow_at_once() -> None:
    feed, subscription = open_subscription()
    got: list[int] = []

    async def consume() -> None:
        got.extend(await numbers(subscription.batches()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        put(feed, 1, 2, 3)
    assert got == [1, 2, 3]


async def test_a_batch_ends_before_a_pushed_error_and_the_next_step_raises_it() -> None:
    feed, subscription = open_subscription()
    batches = subscription.batches()
    put(feed, 1, 2)
    feed.put_error("first", at(3))
    feed.put_error("second", at(4))
    put(feed, 5)
    feed.end()
    assert await numbers(batches) == [1, 2]
    with pytest.raises(ChannelError, match="first"):
        await anext(batches)
    with pytest.raises(ChannelError, match="second"):
        await anext(batches)
    assert await numbers(batches) == [5]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_batch_keeps_the_mark_of_a_hole() -> None:
    feed, subscription = open_subscription(2)
    put(feed, 1, 2, 3)
    assert await anext(subscription.batches()) == [message(2, gap(1, since=1)), message(3)]


async def test_an_error_behind_a_batch_is_not_lost_with_the_iterator() -> None:
    feed, subscription = open_subscription()
    twin = subscription.clone()
    put(feed, 1)
    feed.put_error("Order not found", at(2))
    put(feed, 3)
    assert await numbers(subscription.batches()) == [1]
    subscription.close()
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()
    with pytest.raises(ChannelError, match="Order not found"):
        await twin.receive()
    assert take(twin) == 3


async def test_a_cancelled_step_leaves_the_error_behind_a_batch() -> None:
    feed, subscription = open_subscription()
    batches = subscription.batches()
    put(feed, 1)
    feed.put_error("Order not found", at(2))
    assert await numbers(batches) == [1]
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(batches)
    assert scope.cancelled_caught
    with pytest.raises(ChannelError, match="Order not found"):
        await anext(batches)


async def test_a_batch_comes_before_a_failure() -> None:
    feed, subscription = open_subscription()
    batches = subscription.batches()
    put(feed, 1, 2)
    feed.fail(SubscriptionBrokenError(CHANNEL), ConnectionLostError("gone"))
    assert await numbers(batches) == [1, 2]
    with pytest.raises(SubscriptionBrokenError):
        await anext(batches)


# What it says of itself


def test_statistics_count_what_users_hold_and_nothing_hidden() -> None:
    feed, subscription = open_subscription(8)
    twin = subscription.clone()
    put(feed, 1, 2, 3)
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
    feed, subscription = open_subscription(3)
    put(feed, 1, 2, 3, 4)
    assert repr(subscription) == "<Subscription 'orders:ord_1' buffered=3 dropped=1>"
    subscription.close()
    assert repr(subscription) == "<Subscription 'orders:ord_1' closed dropped=1>"
    tap: BoundedReceiveChannel[int] = BoundedReceiveChannel(Mailbox("events", 3))
    assert repr(tap) == "<BoundedReceiveChannel 'events' buffered=0 dropped=0>"


def test_a_handle_has_no_room_for_misspelt_attributes() -> None:
    _, subscription = open_subscription()
    assert not hasattr(subscription, "__dict__")


# Ctrl-C


class CtrlC:
    """Sends SIGINT when the module under test has run so many bytecodes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, frame: FrameType, event: str, _arg: object) -> CtrlC | None:
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


@contextlib.contextmanager
def no_interruption(problems: list[str], what: str) -> Iterator[None]:
    """For calls without a checkpoint: Ctrl-C has to wait until they are over."""
    try:
        yield
    except KeyboardInterrupt:
        problems.append(f"broken off: {what}")
        raise


async def use_it_all(problems: list[str]) -> None:
    """A user's task that does whatever changes what the owners share."""
    calls: list[str] = []
    feed: Feed[int] = Feed(
        CHANNEL,
        2,
        on_close=lambda: calls.append("closed"),
        on_drained=lambda: calls.append("drained"),
    )
    mailbox: Mailbox[int] = Mailbox("events", 1)
    broken: Mailbox[int] = Mailbox("messages", 1)
    delivered: list[Message[int]] = []
    with no_interruption(problems, "open, overflow and drain"):
        subscription, tap = Subscription(feed), BoundedReceiveChannel(mailbox)
        twin = subscription.clone()
        put(feed, 1, 2, 3, 4)
        delivered.append(twin.receive_nowait())
        delivered.append(subscription.receive_nowait())
        put(feed, 5)
        feed.put_error("Order not found", at(6))
        for number in range(3):
            mailbox.put(number)
        mailbox.end()
    assert (tap.dropped, tap.receive_nowait()) == (2, 2)
    try:
        # Here are checkpoints, where Ctrl-C may come through.
        delivered.extend(await anext(subscription.batches()))
        with pytest.raises(ChannelError):
            await anext(subscription)
        put(feed, 7)
        delivered.append(await anext(twin))
        put(feed, 8)
        delivered.append(await subscription.receive())
    finally:
        with no_interruption(problems, "drain"), contextlib.suppress(trio.WouldBlock):
            while True:
                with contextlib.suppress(ChannelError):
                    delivered.append(subscription.receive_nowait())
        arrived = [m.data for m in delivered]
        if arrived != [3, 4, 5, 7, 8][: len(arrived)] or len(arrived) < 3:
            problems.append(f"received {arrived}")
        if feed.dropped != 2 or delivered[0].gap != gap(2, since=1):
            problems.append(f"lost a mark: {delivered[0]}")
        if feed.owners != 2:
            problems.append(f"{feed.owners} owners")
        try:
            await twin.aclose()
        finally:
            if feed.owners != 1:
                problems.append("not closed")
            with no_interruption(problems, "close"):
                subscription.close()
            if calls != ["drained", "closed"]:
                problems.append(f"called {calls}")
            with no_interruption(problems, "fail"):
                broken.fail(SubscriptionBrokenError(CHANNEL))


def test_ctrl_c_at_any_bytecode_loses_no_message_no_mark_and_no_count() -> None:
    handler, tracer = signal.getsignal(signal.SIGINT), sys.gettrace()
    # A test run in the background may have been started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    problems: list[str] = []
    after, interrupted = 0, True
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


# Everything at once, against a model


@attrs.define
class Put:
    """What the model remembers of an item that was put in."""

    number: int
    is_error: bool
    own_gap: Gap | None


class Streams(RuleBasedStateMachine):
    """Any order of calls: nothing is lost uncounted, and every hole is told where it is.

    The model is a plain queue of what is buffered. It knows by counting which items were skipped
    between two that were delivered: that is what the mark must say.
    """

    handles = Bundle("handles")

    @initialize(
        target=handles,
        buffer_size=st.integers(1, 4),
        overflow=st.sampled_from(["drop_oldest", "drop_oldest", "error"]),
    )
    def open(self, buffer_size: int, overflow: Overflow) -> Subscription[int]:
        self.buffer_size, self.overflow = buffer_size, overflow
        self.calls: list[str] = []
        self.feed, subscription = open_subscription(
            buffer_size,
            overflow=overflow,
            on_close=lambda: self.calls.append("closed"),
            on_drained=lambda: self.calls.append("drained"),
        )
        self.number = 0
        self.open_handles = {id(subscription)}
        self.queue: deque[Put] = deque()
        self.held: Put | None = None  # an error behind a batch
        self.skipped: list[Put] = []  # dropped, and not told yet
        self.dropped = self.told = self.delivered = self.discarded = 0
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
            self.full = True
            self.queue.append(item)
        else:
            self.dropped += 1
            self.ending = SlowConsumerError
            self.expected_calls.append("closed")

    @rule(own_gap=st.sampled_from([None, None, None, -100]))
    def put(self, own_gap: int | None) -> None:
        self.number += 1
        since = None if own_gap is None else gap(0, self.number + own_gap, "reconnected")
        self.feed.put(message(self.number, since))
        self.put_in(Put(self.number, is_error=False, own_gap=since))

    @rule()
    def put_error(self) -> None:
        self.number += 1
        self.feed.put_error(str(self.number), at(self.number))
        self.put_in(Put(self.number, is_error=True, own_gap=None))

    def expected_gap(self, own: Gap | None) -> Gap | None:
        """One mark for all that was skipped before a message."""
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
        self.told += received.gap.dropped if received.gap else 0
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
        self.feed.end()
        self.ending = self.ending or trio.EndOfChannel

    @rule()
    def fail(self) -> None:
        self.feed.fail(SubscriptionBrokenError(CHANNEL))
        self.ending = self.ending or SubscriptionBrokenError

    @invariant()
    def everything_is_delivered_or_counted(self) -> None:
        assert self.feed.dropped == self.dropped
        assert self.feed.owners == len(self.open_handles)
        assert self.calls == self.expected_calls
        waiting = len(self.queue) + (self.held is not None)
        assert self.delivered + self.dropped + self.discarded + waiting == self.number
        if self.overflow == "drop_oldest":
            assert self.told + len(self.skipped) == self.dropped


Streams.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStreams = Streams.TestCase


async def test_an_error_that_is_buffered_is_raised_by_an_iteration_which_goes_on() -> None:
    feed: Feed[int] = Feed("orders:1", 8)
    subscription = Subscription(feed)
    feed.put(message(1))
    feed.put_error("Order not found", at(2))
    feed.put(message(3))
    assert (await anext(subscription)).data == 1
    with pytest.raises(ChannelError, match="Order not found"):
        await anext(subscription)
    assert (await anext(subscription)).data == 3


# --- For other event loops -------------------------------------------------------------------


def test_whoever_is_called_takes_it_off_the_buffer() -> None:
    feed, subscription = open_subscription()
    calls: list[str] = []
    subscription.when_ready(lambda: calls.append("first"))
    subscription.when_ready(lambda: calls.append("second"))
    assert calls == []
    feed.put(message(1))
    feed.put(message(2))
    assert calls == ["first", "second"]  # once
    assert [one.data for one in subscription.batch_nowait()] == [1, 2]


def test_what_is_called_may_fail_and_nobody_suffers(caplog: pytest.LogCaptureFixture) -> None:
    feed, subscription = open_subscription()
    calls: list[str] = []

    def fail() -> None:
        raise ValueError("foreign")

    subscription.when_ready(fail)
    subscription.when_ready(lambda: calls.append("called"))
    feed.put(message(1))
    assert calls == ["called"]
    assert "foreign" in caplog.text
    assert subscription.receive_nowait().data == 1


def test_a_call_can_be_taken_back() -> None:
    feed, subscription = open_subscription()
    calls: list[str] = []
    forget = subscription.when_ready(lambda: calls.append("gone"))
    forget()
    feed.put(message(1))
    forget()
    assert calls == []


@pytest.mark.parametrize("how", ["end", "fail", "close"])
def test_an_end_calls_too(how: str) -> None:
    feed, subscription = open_subscription()
    calls: list[str] = []
    subscription.when_ready(lambda: calls.append(how))
    if how == "end":
        feed.end()
    elif how == "fail":
        feed.fail(ValueError("no"))
    else:
        subscription.close()
        with pytest.raises(trio.ClosedResourceError):
            subscription.when_ready(lambda: None)
    assert calls == [how]
