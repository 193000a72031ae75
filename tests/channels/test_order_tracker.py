"""Tracked orders, with real channels and a real session: no socket, no task, no clock."""

from __future__ import annotations

import datetime as dt
import math
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings, strategies as st

from tests.channels.harness import (
    LOST,
    MS,
    ORDER_STATE_REQUEST,
    ChannelsHarness,
    Consumer,
    state_request,
)
from tests.engine_harness import TIMEOUT
from trio_broker._channels.order_tracker import FIRST_PAUSE
from trio_broker._engine import Engine
from trio_broker._protocol.requests import order_status
from trio_broker._redactor import Redactor
from trio_broker._streams.buffer import MessageBuffer
from trio_broker._streams.subscription import Subscription
from trio_broker.events import SnapshotUnavailable
from trio_broker.exceptions import OrderNotFoundError, ReplyTooLargeError, SubscriptionBrokenError
from trio_broker.models import Message, Order, OrderStatus

INTERVAL = 15.0


class TrackerHarness(ChannelsHarness):
    """Channels with tracked orders."""

    def __init__(
        self, limit: int = 100, messages_per_second: int = 100, poll_interval: float = INTERVAL
    ) -> None:
        self.poll_interval = poll_interval
        super().__init__(limit, messages_per_second)
        self.order_ids = self.engine.order_ids

    def make_engine(self, **options: Any) -> Engine:
        return Engine(Redactor(()), **{**options, "poll_interval": self.poll_interval})

    def track(self, order_id: str = "o1", *, buffer_size: int = 64, **options: Any) -> Consumer:
        consumer = Consumer(self)
        buffer: MessageBuffer[Any] = MessageBuffer(order_id, buffer_size, consumer)
        consumer.handle = Subscription(buffer)
        consumer.subscriber, effects = self.engine.track(
            order_id, buffer, self.now, **{"stop_at_partial": False, **options}
        )
        self.act(effects)
        return consumer

    def tracked(self, status: str = "PENDING", at: int | None = 1, **options: Any) -> Consumer:
        """An order whose channel is subscribed, and whose state was received."""
        subscriber = self.track(**options)
        self.answer("subscribe", "orders:o1")
        assert self.send_all() == [ORDER_STATE_REQUEST]
        self.reply_order(status, at=at)
        assert subscriber.states() == [("snapshot", status)]
        return subscriber

    @property
    def next_deadline(self) -> float:
        return self.engine.timers.next_deadline

    def pass_time(self, seconds: float) -> None:
        """Let the time pass, and do everything that becomes due."""
        end = self.now + seconds
        while True:
            self.now = max(self.now, min(end, self.next_deadline))
            super().pass_time(0)
            if self.now >= end and self.next_deadline > end:
                return

    def refuse(self) -> None:
        self.receive_json(op="order_status", error="Order not found")

    def is_clean(self) -> bool:
        return super().is_clean() and not len(self.engine.tracker)


# --- To the end ------------------------------------------------------------------------------


def test_order_is_followed_to_its_end() -> None:
    harness = TrackerHarness()
    progress = harness.tracked()
    assert len(harness.engine.tracker) == 1
    harness.push_order("PROCESSING", at=2)
    harness.push_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "PROCESSING"), ("push", "FILLED")]
    harness.answer("unsubscribe", "orders:o1")
    progress.handle.close()
    assert harness.is_clean()
    assert harness.send_all() == []


@pytest.mark.parametrize("status", ["FILLED", "FAILED", "CANCELLED"])
def test_final_order_ends_at_once(status: str) -> None:
    harness = TrackerHarness()
    progress = harness.track()
    harness.answer("subscribe", "orders:o1")
    harness.send_all()
    harness.reply_order(status)
    assert progress.states_to_the_end() == [("snapshot", status)]
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


@pytest.mark.parametrize("stop", [True, False])
def test_partial_fill_ends_the_stream_if_wanted(*, stop: bool) -> None:
    harness = TrackerHarness()
    progress = harness.tracked(stop_at_partial=stop)
    harness.push_order("PROCESSING", at=2)
    harness.push_order("PARTIAL", at=3)
    assert len(harness.engine.tracker) == (not stop)
    if stop:
        assert [status for _, status in progress.states_to_the_end()] == ["PROCESSING", "PARTIAL"]


def test_unknown_status_does_not_end_the_stream() -> None:
    harness = TrackerHarness()
    progress = harness.tracked()
    harness.push_order("FILLED_ALMOST", at=2)
    assert progress.states() == [("push", "FILLED_ALMOST")]
    assert len(harness.engine.tracker) == 1


def test_slow_reader_gets_the_last_state_and_the_end() -> None:
    harness = TrackerHarness()
    progress = harness.tracked(buffer_size=1)
    for number, status in enumerate(("PROCESSING", "PARTIAL", "FILLED"), 2):
        harness.push_order(status, at=number)
    message = progress.handle.receive_nowait()
    assert message.data.status is OrderStatus.FILLED
    assert message.gap is not None
    assert message.gap.dropped == 2
    assert progress.is_at_its_end()


def test_order_left_early_is_unsubscribed() -> None:
    harness = TrackerHarness()
    progress = harness.tracked()
    harness.pass_time(INTERVAL)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    progress.handle.close()
    harness.leave(progress.subscriber)
    harness.reply_order("PROCESSING", at=2)
    harness.answer("unsubscribe", "orders:o1")
    assert harness.unexpected == []
    assert harness.is_clean()


def test_two_trackers_of_one_order_get_every_state() -> None:
    harness = TrackerHarness()
    first = harness.tracked()
    second = harness.track(stop_at_partial=True)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING", at=1)
    harness.push_order("PARTIAL", at=2)
    harness.push_order("FILLED", at=3)
    assert first.states_to_the_end() == [("push", "PARTIAL"), ("push", "FILLED")]
    assert second.states_to_the_end() == [("snapshot", "PENDING"), ("push", "PARTIAL")]
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


# --- States without news ---------------------------------------------------------------------


def test_state_without_news_is_not_delivered() -> None:
    harness = TrackerHarness()
    progress = harness.tracked()
    harness.push_order("PENDING", at=1)
    harness.pass_time(INTERVAL)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING", at=1)
    assert progress.receive_all() == []


@pytest.mark.parametrize("news", [{"txHash": "0x1"}, {"filledOut": "1"}, {"updatedAt": MS + 2}])
def test_state_of_the_same_status_may_be_news(news: dict[str, Any]) -> None:
    harness = TrackerHarness()
    progress = harness.tracked("PARTIAL")
    harness.receive_json(ch="orders:o1", data={"status": "PARTIAL", "updatedAt": MS + 1, **news})
    assert progress.states() == [("push", "PARTIAL")]


def test_first_state_after_an_outage_has_the_gap() -> None:
    harness = TrackerHarness()
    progress = harness.tracked()
    lost_at = dt.datetime.fromtimestamp(harness.now, dt.UTC)
    harness.lose()
    harness.pass_time(3 * INTERVAL)
    assert harness.send_all() == []
    harness.connect()
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING", at=1)
    (message,) = progress.receive_all()
    assert message.gap is not None
    assert message.gap.since == lost_at
    assert message.gap.reasons == {"reconnected"}


def test_final_state_is_delivered_whatever_its_times() -> None:
    harness = TrackerHarness()
    progress = harness.tracked("PROCESSING", at=100)
    harness.push_order("FILLED", at=99)
    assert progress.states_to_the_end() == [("push", "FILLED")]


def test_tracked_order_goes_on_when_the_brokers_clock_is_set_back() -> None:
    harness = TrackerHarness()
    progress = harness.tracked("PENDING", at=120_000)
    states = [("PROCESSING", "0", 60_000), ("PARTIAL", "2", 50_000), ("PARTIAL", "3", 1)]
    for status, filled, at in states:
        data = {"status": status, "filledOut": filled, "updatedAt": MS + at}
        harness.receive_json(ch="orders:o1", data=data)
    # An older answer, by a machine whose clock is ahead.
    harness.push_order("PENDING", at=180_000)
    harness.push_order("FILLED", at=1)
    statuses = ["PROCESSING", "PARTIAL", "PARTIAL", "FILLED"]
    assert progress.states_to_the_end() == [("push", status) for status in statuses]
    assert harness.unexpected == []


@pytest.mark.parametrize(
    ("earlier", "later", "is_delivered"),
    [
        ({"filledOut": "5"}, {"filledOut": "3"}, False),
        ({"filledOut": "5"}, {"filledOut": "7"}, True),
        ({"filledOut": "5"}, {}, True),
        ({}, {"filledOut": "5"}, True),
        ({"filledOut": "5", "updatedAt": MS + 1}, {"filledOut": "3", "updatedAt": MS + 1}, False),
        ({"filledOut": "5", "updatedAt": MS + 1}, {"filledOut": "3", "updatedAt": MS + 2}, False),
        ({"filledOut": "5", "updatedAt": MS + 2}, {"filledOut": "7", "updatedAt": MS + 1}, True),
    ],
)
def test_partial_fill_never_shrinks(
    earlier: dict[str, Any], later: dict[str, Any], *, is_delivered: bool
) -> None:
    harness = TrackerHarness()
    progress = harness.tracked(at=None)
    for body in (earlier, later):
        harness.receive_json(ch="orders:o1", data={"status": "PARTIAL", **body})
    assert len(progress.receive_all()) == 1 + is_delivered
    assert len(harness.unexpected) == (not is_delivered)


def test_unknown_status_with_less_filled_is_not_older() -> None:
    harness = TrackerHarness()
    progress = harness.tracked(at=None)
    harness.receive_json(ch="orders:o1", data={"status": "PARTIAL", "filledOut": "5"})
    harness.receive_json(ch="orders:o1", data={"status": "ODD", "filledOut": "3"})
    assert len(progress.receive_all()) == 2


# --- Orders that the broker doesn't know -----------------------------------------------------


def times_of_polls(harness: TrackerHarness, seconds: float, reply: Any) -> list[float]:
    """Answer the polls of some time, and return when they came."""
    began, times = harness.now, []
    while harness.now < began + seconds:
        for op, what in harness.send_all():
            if op == "order_status":
                times.append(harness.now - began)
                reply()
            else:
                harness.reply(op, what)
        harness.pass_time(0.25)
        if harness.session.trust.is_over:
            harness.lose()
            harness.connect()
    return times


def unknown_order(
    order_id: str = "o1", timeout: float = 60.0, **options: Any
) -> tuple[TrackerHarness, Consumer]:
    """A tracked order whose channel is subscribed, and of which nothing is known."""
    harness = TrackerHarness(**options)
    progress = harness.track(order_id, not_found_timeout=timeout)
    harness.answer("subscribe", f"orders:{order_id}")
    return harness, progress


def has_failed(progress: Consumer) -> bool:
    """Whether the stream has ended because the order is unknown. It has nothing else."""
    try:
        progress.handle.receive_nowait()
    except OrderNotFoundError:
        return True
    except trio.WouldBlock:
        return False
    raise AssertionError("there was a message")


@pytest.mark.parametrize("interval", [3.0, INTERVAL, 100.0, math.inf])
@pytest.mark.parametrize("timeout", [0.001, 5.0, 60.0])
@pytest.mark.parametrize("text", ["Order not found", "NOT_FOUND", "The order does not exist"])
def test_unknown_order_ends_after_its_time(interval: float, timeout: float, text: str) -> None:
    harness, progress = unknown_order(timeout=timeout, poll_interval=interval)

    def refuse() -> None:
        harness.receive_json(error=text)

    times_of_polls(harness, timeout - 0.5, refuse)
    assert not has_failed(progress)
    times_of_polls(harness, 2.0, refuse)
    assert has_failed(progress)
    assert harness.is_clean()


def test_unknown_order_without_a_limit_never_ends() -> None:
    harness, progress = unknown_order(timeout=math.inf)
    assert len(times_of_polls(harness, 3600.0, harness.refuse)) > 3600 / INTERVAL - 5
    assert not has_failed(progress)


@pytest.mark.parametrize(
    "other",
    [
        {"op": "order_status", "error": "Internal server error"},
        {"op": "order_status", "error": "Rate limit exceeded"},
        {"op": "order_status", "error": "No liquidity"},
        {"op": "order_status", "data": {"status": 5}},
        None,
    ],
)
def test_only_not_found_counts(other: dict[str, Any] | None) -> None:
    harness, progress = unknown_order(timeout=60.0)
    count = 0

    def reply() -> None:
        nonlocal count
        count += 1
        if count % 2:
            harness.refuse()
        elif other is not None:
            harness.receive_json(**other)

    times_of_polls(harness, 600.0, reply)
    assert not has_failed(progress)
    times_of_polls(harness, 200.0, harness.refuse)
    assert has_failed(progress)


def test_outage_does_not_count_as_not_found() -> None:
    harness, progress = unknown_order(timeout=60.0)
    times_of_polls(harness, 40.0, harness.refuse)
    for _ in range(3):
        harness.lose()
        harness.pass_time(100.0)
        harness.connect()
        harness.answer("subscribe", "orders:o1")
        assert harness.send_all() == [ORDER_STATE_REQUEST]
        harness.refuse()
        assert not has_failed(progress)
    times_of_polls(harness, 42.0, harness.refuse)
    assert has_failed(progress)


def test_reply_that_may_be_anothers_does_not_count() -> None:
    harness, progress = unknown_order(timeout=60.0)

    def refuse() -> None:
        harness.receive_json(op="estimate", error="late")  # Now a bare error is uncertain.
        harness.receive_json(error="Order not found")

    assert len(times_of_polls(harness, 600.0, refuse)) > 30
    assert not has_failed(progress)


@pytest.mark.parametrize("channel", ["orders:o1", "orders:c1"])
def test_order_that_was_ever_heard_of_does_not_end(channel: str) -> None:
    harness, progress = unknown_order(channel.removeprefix("orders:"), timeout=5.0)
    harness.receive_json(ch=channel, data={"orderId": "o1", "status": "PENDING"})
    assert progress.states() == [("push", "PENDING")]
    times_of_polls(harness, 600.0, harness.refuse)
    assert not has_failed(progress)


def test_order_that_another_stream_has_heard_of_does_not_end() -> None:
    harness = TrackerHarness()
    others = harness.subscribed("orders:o1")
    harness.push_order("PENDING")
    assert len(others.receive_all()) == 1
    progress = harness.track(not_found_timeout=5.0)
    times_of_polls(harness, 600.0, harness.refuse)
    assert not has_failed(progress)


@pytest.mark.parametrize("name", ["o1", "c1"])
def test_order_that_a_lookup_has_found_does_not_end(name: str) -> None:
    harness = TrackerHarness()
    harness.submit(order_status("o1", math.inf))
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    data = {"orderId": "o1", "clientOrderId": "c1", "status": "PENDING"}
    harness.receive_json(op="order_status", data=data)
    harness.lose()
    harness.connect()
    progress = harness.track(name, not_found_timeout=5.0)
    harness.answer("subscribe", f"orders:{name}")
    times_of_polls(harness, 600.0, harness.refuse)
    assert not has_failed(progress)


@pytest.mark.parametrize("name", ["o1", "c1"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_order_of_an_own_swap_does_not_end(name: str, when: str) -> None:
    harness = TrackerHarness()
    if when == "before":
        harness.order_ids.add("c1", "o1")
    progress = harness.track(name, not_found_timeout=5.0)
    times_of_polls(harness, 3.0, harness.refuse)
    harness.order_ids.add("c1", "o1")
    times_of_polls(harness, 600.0, harness.refuse)
    assert not has_failed(progress)


def test_swap_whose_order_is_unknown_does_not_end() -> None:
    harness = TrackerHarness()
    harness.order_ids.add("c1")
    progress = harness.track("c1", not_found_timeout=5.0)
    harness.answer("subscribe", "orders:c1")
    times_of_polls(harness, 600.0, harness.refuse)
    assert not has_failed(progress)


def test_order_in_an_undocumented_status_is_followed_forever() -> None:
    harness = TrackerHarness()
    progress = harness.tracked("SETTLING_SLOWLY")
    times_of_polls(harness, 3600.0, partial(harness.reply_order, "SETTLING_SLOWLY", at=1))
    assert not has_failed(progress)


# --- Silence ---------------------------------------------------------------------------------


def test_silent_order_is_polled_again_and_again() -> None:
    harness = TrackerHarness()
    progress = harness.tracked()
    for _ in range(3):
        harness.pass_time(INTERVAL - 0.1)
        assert harness.send_all() == []
        harness.pass_time(0.1)
        assert harness.send_all() == [ORDER_STATE_REQUEST]
        harness.reply_order("PENDING", at=1)
    harness.pass_time(INTERVAL)
    harness.send_all()
    harness.reply_order("FILLED", at=2)
    assert progress.states_to_the_end() == [("snapshot", "FILLED")]


def test_push_postpones_the_poll_without_a_new_timer() -> None:
    harness = TrackerHarness()
    harness.tracked()
    for number in range(100):
        harness.pass_time(0.1)
        harness.push_order("PROCESSING", at=number)
        assert len(harness.engine.timers) == 1
    harness.pass_time(INTERVAL - 0.1)
    assert harness.send_all() == []
    harness.pass_time(0.1)
    assert harness.send_all() == [ORDER_STATE_REQUEST]


def test_infinite_interval_never_polls() -> None:
    harness = TrackerHarness(poll_interval=math.inf)
    harness.tracked()
    harness.pass_time(1e6)
    assert harness.send_all() == []
    assert harness.next_deadline == math.inf


def test_next_deadline_is_of_the_longest_silent_order() -> None:
    harness = TrackerHarness()
    harness.lose()
    first = harness.track()
    assert harness.next_deadline == harness.now + INTERVAL
    harness.pass_time(5)
    harness.track("o2")
    assert harness.next_deadline == harness.now + INTERVAL - 5
    first.handle.close()
    assert harness.next_deadline == harness.now + INTERVAL


def test_timers_of_left_orders_do_not_pile_up() -> None:
    harness = TrackerHarness()
    harness.lose()
    keeper = harness.track("o0")
    for number in range(1, 1000):
        harness.track(f"o{number}").handle.close()
        assert len(harness.engine.timers) == 1
        assert len(harness.engine.timers._heap) < 250
    harness.pass_time(INTERVAL)
    keeper.handle.close()
    assert harness.is_clean()


def test_timer_of_a_left_order_polls_nothing() -> None:
    harness = TrackerHarness(limit=1)
    harness.subscribed("balances")
    keeper, other = harness.track("o1"), harness.track("o2")
    harness.send_all()
    harness.reply_order("PENDING")
    harness.reply_order("PENDING", "orders:o2")
    other.handle.close()
    assert len(harness.engine.timers) == 1
    harness.pass_time(INTERVAL)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    keeper.receive_all()


# --- Failed polls ----------------------------------------------------------------------------


def test_not_found_is_one_event_and_polled_with_growing_delays() -> None:
    harness = TrackerHarness()
    progress = harness.track()
    harness.answer("subscribe", "orders:o1")
    waits, began = [], harness.now
    for _ in range(9):
        while harness.send_all() != [ORDER_STATE_REQUEST]:
            harness.pass_time(0.25)
        waits.append(harness.now - began)
        began = harness.now
        harness.refuse()
    assert waits[0] == 0
    # The first may wait, because no state is requested twice in a second.
    assert waits[1:] == [1.0, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    (event,) = harness.events
    assert isinstance(event, SnapshotUnavailable)
    assert event.channel == "orders:o1"
    harness.pass_time(INTERVAL)
    harness.send_all()
    harness.reply_order("PENDING")
    assert progress.states() == [("snapshot", "PENDING")]
    harness.pass_time(INTERVAL)
    harness.send_all()
    harness.refuse()
    assert len(harness.events) == 2
    harness.push_order("FILLED")
    assert progress.states_to_the_end() == [("push", "FILLED")]


def test_failed_poll_of_a_known_order_waits_for_the_interval() -> None:
    harness = TrackerHarness()
    harness.tracked()
    harness.pass_time(INTERVAL)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.refuse()
    harness.pass_time(INTERVAL - 0.1)
    assert harness.send_all() == []
    harness.pass_time(0.1)
    assert harness.send_all() == [ORDER_STATE_REQUEST]


def test_unanswered_polls_replace_the_connection() -> None:
    harness = TrackerHarness()
    broken = harness.replaced
    progress = harness.tracked()
    while not broken:
        harness.pass_time(1.0)
        harness.send_all()
        assert harness.now < 300
    assert len(harness.events) == 1
    harness.lose()
    harness.connect()
    harness.answer("subscribe", "orders:o1")
    harness.send_all()
    harness.reply_order("FILLED")
    assert progress.states_to_the_end() == [("snapshot", "FILLED")]


def test_order_not_found_is_polled_after_a_reconnection() -> None:
    harness = TrackerHarness(limit=1)
    harness.subscribed("balances")
    harness.track()
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.refuse()
    harness.lose()
    harness.connect()
    assert harness.send_all() == [("subscribe", "balances"), ORDER_STATE_REQUEST]


def test_nothing_is_polled_during_an_outage() -> None:
    harness = TrackerHarness(limit=1)
    harness.subscribed("balances")
    harness.track()
    harness.send_all()
    harness.refuse()
    harness.lose()
    harness.pass_time(3 * INTERVAL)
    assert harness.session.waiting == 0  # It would fail with every attempt to connect.
    assert len(harness.events) == 1


def test_replaced_timers_do_not_fire() -> None:
    harness = TrackerHarness()
    harness.track()
    harness.answer("subscribe", "orders:o1")
    for _ in range(4):
        while not harness.send_all():
            harness.pass_time(0.5)
        harness.refuse()
    harness.push_order("PENDING", at=1)
    harness.pass_time(2 * INTERVAL)
    assert len(harness.engine.timers) == 1


def test_unknown_order_with_too_large_state_is_polled_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = TrackerHarness(limit=1)
    harness.subscribed("balances")
    error = ReplyTooLargeError("order_status", 10)
    monkeypatch.setattr(harness.session, "too_large", lambda _: error)
    harness.track("o1")
    assert harness.send_all() == []
    assert [type(event) for event in harness.events] == [SnapshotUnavailable]
    assert harness.next_deadline == harness.now + FIRST_PAUSE


# --- Client order ids ------------------------------------------------------------------------


def moved(harness: TrackerHarness, progress: Consumer, status: str = "PROCESSING") -> None:
    """Check that a tracker is in the channel of its order's own id, and is polled."""
    assert progress.handle.channel == "orders:o1"
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order(status, at=2)
    assert progress.states() == [("snapshot", status)]
    harness.push_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "FILLED")]


def test_known_client_order_id_tracks_its_order() -> None:
    harness = TrackerHarness()
    harness.order_ids.add("c1", "o1")
    moved(harness, harness.track("c1"))


def test_id_made_here_is_looked_up_as_client_order_id() -> None:
    harness = TrackerHarness()
    progress = harness.track("tb-1")
    assert harness.send_all() == [state_request("orders:tb-1")]
    # It names the order's own id only, so as another reply it would be unexpected.
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": MS + 1}
    )
    (message,) = progress.receive_all()
    assert (message.data.order_id, message.channel) == ("o1", "orders:o1")
    moved(harness, progress)
    assert harness.unexpected == []


def test_final_order_found_by_client_order_id_is_not_polled() -> None:
    harness = TrackerHarness()
    progress = harness.track("tb-1")
    harness.send_all()
    harness.receive_json(op="order_status", data={"orderId": "o1", "status": "FILLED"})
    assert progress.states_to_the_end() == [("snapshot", "FILLED")]
    assert harness.send_all() == []
    assert harness.is_clean()


def test_order_id_learned_meanwhile_moves_the_order() -> None:
    harness = TrackerHarness()
    progress = harness.track("tb-1")
    harness.send_all()
    harness.refuse()
    harness.order_ids.add("tb-1", "o1")
    harness.pass_time(0.5)
    moved(harness, progress)


def test_reply_may_show_that_an_id_is_the_clients() -> None:
    harness = TrackerHarness()
    progress = harness.track("c1")
    harness.answer("subscribe", "orders:c1")
    assert harness.send_all() == [state_request("orders:c1")]
    harness.receive_json(
        op="order_status",
        data={"orderId": "o1", "clientOrderId": "c1", "status": "PENDING", "updatedAt": MS + 1},
    )
    assert [message.channel for message in progress.receive_all()] == ["orders:o1"]
    assert harness.send_all() == [("unsubscribe", "orders:c1"), ("subscribe", "orders:o1")]
    harness.reply("unsubscribe", "orders:c1")
    harness.reply("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING", at=1)  # an older state
    assert progress.receive_all() == []
    harness.push_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "FILLED")]


def test_reply_that_names_an_id_of_the_same_form_is_another_orders() -> None:
    harness = TrackerHarness()
    progress = harness.track("o7")
    harness.answer("subscribe", "orders:o7")
    for _ in range(2):  # It is looked up by both kinds of ids.
        assert harness.send_all() == [state_request("orders:o7")]
        harness.receive_json(op="order_status", data={"orderId": "o1", "status": "FILLED"})
        harness.session.trust.reconnected()  # Otherwise the connection would be replaced.
        harness.pass_time(TIMEOUT + 0.5)
    assert progress.receive_all() == []


def test_reply_to_a_swaps_client_order_id_may_name_an_id_of_the_same_form() -> None:
    harness = TrackerHarness()
    harness.engine.order_ids.add("o7")
    progress = harness.track("o7")
    harness.answer("subscribe", "orders:o7")
    harness.send_all()
    harness.receive_json(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert [message.channel for message in progress.receive_all()] == ["orders:o1"]


def test_late_push_shows_the_kind_of_the_id() -> None:
    harness = TrackerHarness(limit=1)
    harness.subscribed("balances")
    progress = harness.track()
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.pass_time(TIMEOUT)  # it may be a client order id
    harness.push_order("PROCESSING", at=2)
    harness.reply_order("PENDING", at=1)  # too late
    harness.pass_time(INTERVAL)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "PROCESSING"), ("snapshot", "FILLED")]


def test_push_may_show_that_an_id_is_the_clients() -> None:
    harness = TrackerHarness()
    progress = harness.track("c1")
    harness.answer("subscribe", "orders:c1")
    harness.send_all()
    harness.receive_json(
        ch="orders:c1", data={"orderId": "o1", "status": "PENDING", "updatedAt": MS + 1}
    )
    assert [message.channel for message in progress.receive_all()] == ["orders:o1"]
    assert ("subscribe", "orders:o1") in harness.send_all()


def test_order_moved_to_a_subscribed_channel_is_polled_there() -> None:
    harness = TrackerHarness()
    harness.subscribed("orders:o1")
    progress = harness.track("tb-1")
    assert harness.send_all() == [state_request("orders:tb-1")]
    # It may be older than what was pushed to the user's subscription meanwhile.
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": MS + 1}
    )
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("FILLED", at=2)
    assert progress.states_to_the_end() == [("snapshot", "PENDING"), ("snapshot", "FILLED")]


def test_order_never_named_is_polled_by_the_given_id() -> None:
    harness = TrackerHarness()
    progress = harness.track("tb-1")
    for status in ("PENDING", "PROCESSING", "FILLED"):
        while not (sent := harness.send_all()):
            harness.pass_time(0.5)
        assert sent == [state_request("orders:tb-1")]
        harness.receive_json(op="order_status", data={"status": status})
    assert [status for _, status in progress.states_to_the_end()] == [
        "PENDING",
        "PROCESSING",
        "FILLED",
    ]


def test_push_shows_that_an_id_is_the_orders_own() -> None:
    harness = TrackerHarness()
    harness.track()
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.push_order("PENDING", at=1)
    harness.refuse()
    harness.pass_time(INTERVAL - 0.1)
    assert harness.send_all() == []


# --- The end ---------------------------------------------------------------------------------


def test_close_ends_a_tracked_order_after_the_buffer() -> None:
    for failure in (None, LOST):
        harness = TrackerHarness()
        progress = harness.tracked()
        harness.push_order("PROCESSING", at=2)
        harness.close(failure)
        assert progress.handle.receive_nowait().data.status is OrderStatus.PROCESSING
        if failure is None:
            assert progress.is_at_its_end()
        else:
            with pytest.raises(SubscriptionBrokenError) as caught:
                progress.handle.receive_nowait()
            assert caught.value.__cause__ is LOST
        progress.handle.close()
        assert harness.is_clean()
        assert harness.next_deadline == math.inf


# --- Random sequences ------------------------------------------------------------------------

STATUSES = ("PENDING", "PROCESSING", "PARTIAL", "FILLED")


@attrs.define(eq=False)
class Story:
    """An order whose messages arrive in any order, or not at all."""

    harness: TrackerHarness
    progress: Consumer
    state: int = 0
    newest_sent: int = -1
    seen: list[int] = attrs.field(factory=list)
    pushes: list[int] = attrs.field(factory=list)
    replies: list[tuple[str, str, int]] = attrs.field(factory=list)
    is_online: bool = True
    over: bool = False
    broken: list[str] = attrs.field(factory=list)

    def replace_what_is_broken(self) -> None:
        if self.broken:
            self.broken.clear()
            self.lose()

    def proceed(self) -> None:
        self.state = min(self.state + 1, len(STATUSES) - 1)
        self.pushes.append(self.state)

    def send(self) -> None:
        for op, what in self.harness.send_all() if self.is_online else ():
            self.replies.append((op, what, self.state))

    def reply(self, index: int) -> None:
        # Each lane has one reply at a time; any lane may be next.
        if self.replies and self.is_online:
            op, what, state = self.replies.pop(index % len(self.replies))
            if op == "order_status":
                is_answer, odd = self.is_answer(), len(self.harness.unexpected)
                self.harness.reply_order(STATUSES[state], at=state)
                if is_answer and len(self.harness.unexpected) == odd:
                    self.note_delivery(state)
            elif op == "balances":  # the snapshot of the other channel, once that was restored
                self.harness.reply_balances("1")
            else:
                self.harness.reply(op, what)

    def is_answer(self) -> bool:
        """Whether a reply now belongs to a request that no push overtook."""
        debts, channel = (
            self.harness.session._debts,
            self.harness.channels._channels.get("orders:o1"),
        )
        request = debts.holders.get(("order_status", "o1")) or debts.holders.get(
            ("order_status", None)
        )
        if request is None or request.is_abandoned or channel is None:
            return False
        return channel.snapshot is request and not channel.overtaken

    def push(self, index: int) -> None:
        if self.pushes and self.is_online:
            state = self.pushes.pop(index % len(self.pushes))
            if "orders:o1" in self.harness.channels._channels:
                self.harness.push_order(STATUSES[state], at=state)
                self.note_delivery(state)

    def lose(self) -> None:
        if self.is_online:
            self.is_online = False
            self.replies.clear()
            self.pushes.clear()
            self.harness.lose()

    def connect(self) -> None:
        if not self.is_online:
            self.is_online = True
            self.harness.connect()

    def note_delivery(self, state: int) -> None:
        if not self.over:
            self.newest_sent = max(self.newest_sent, state)
        while not self.over:
            try:
                message: Message[Order] = self.progress.handle.receive_nowait()
            except trio.WouldBlock:
                break
            except trio.EndOfChannel:
                self.over = True
                break
            self.seen.append(STATUSES.index(str(message.data.status)))
        assert self.seen == sorted(self.seen), "it went backwards"
        assert self.seen[-1:] == [self.newest_sent], "the newest state is missing"
        assert self.over == (self.newest_sent == len(STATUSES) - 1)
        assert len(self.harness.engine.tracker) == (not self.over)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["proceed", "send", "lose", "connect"])),
        st.tuples(st.sampled_from(["reply", "push"]), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.3, 2.0, INTERVAL])),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, limit=st.integers(0, 1), user_comes_at=st.integers(0, 60))
def test_states_never_go_backwards_and_end_with_the_final_one(
    steps: list[tuple[Any, ...]], limit: int, user_comes_at: int
) -> None:
    harness = TrackerHarness(limit=1)
    if not limit:
        harness.subscribed("balances")
    story = Story(harness, harness.track())
    story.broken = harness.replaced
    for number, (name, *arguments) in enumerate(steps):
        if number == user_comes_at and limit:
            harness.subscribe("balances")
        if name == "wait":
            harness.pass_time(*arguments)
        else:
            getattr(story, name)(*arguments)
        story.replace_what_is_broken()
    # From now on the broker works, but pushes nothing: polling alone must end it.
    story.state = len(STATUSES) - 1
    story.pushes.clear()
    for _ in range(60):
        story.connect()
        story.send()
        while story.replies:
            story.reply(0)
        harness.pass_time(2.0)
        story.replace_what_is_broken()
    assert story.over
    assert story.seen[-1] == len(STATUSES) - 1
