"""Channels, with a real session and real buffers: no socket, no task, no clock."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from tests.channels.harness import (
    CLOSED,
    LOST,
    MS,
    ORDER_STATE_REQUEST,
    ChannelsHarness,
    state_request,
)
from tests.engine_harness import GRACE, TIMEOUT
from trio_broker._channels.channel import Channel
from trio_broker.events import ChannelRefused
from trio_broker.exceptions import (
    ChannelError,
    InvalidChannelError,
    NotSentError,
    RequestTimeoutError,
    ServerError,
    SlowConsumerError,
    SubscriptionBrokenError,
    SubscriptionLimitError,
)
from trio_broker.models import Gap, OrderStatus

# --- Opening and closing ---------------------------------------------------------------------


def test_last_subscriber_unsubscribes_the_channel() -> None:
    harness = ChannelsHarness()
    first = harness.subscribed("orders:o1")
    second = harness.subscribe("orders:o1")
    assert first.answers == second.answers == [None]
    assert (harness.channels.wanted, harness.channels.subscriptions) == (1, 2)
    first.handle.close()
    assert harness.send_all() == []
    second.handle.close()
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


def test_subscribers_share_a_channel_and_each_gets_every_message() -> None:
    harness = ChannelsHarness()
    first, second = harness.subscribe("orders:o1"), harness.subscribe("orders:o1")
    assert first.answers == []
    harness.answer("subscribe", "orders:o1")
    assert first.answers == second.answers == [None]
    harness.push_order("PENDING")
    assert first.states() == second.states() == [("push", "PENDING")]


def test_nothing_is_sent_if_closed_before_the_request_is_sent() -> None:
    harness = ChannelsHarness()
    harness.subscribe("orders:o1").handle.close()
    assert harness.send_all() == []
    assert harness.is_clean()


def test_closed_before_the_answer_it_is_unsubscribed_after_it() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribe("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    subscriber.handle.close()
    assert harness.send_all() == []
    harness.reply("subscribe", "orders:o1")
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()
    assert subscriber.answers == []


def test_reopened_before_the_answer_nothing_more_is_sent() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribe("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    subscriber.handle.close()
    again = harness.subscribe("orders:o1")
    harness.reply("subscribe", "orders:o1")
    assert again.answers == [None]
    assert harness.send_all() == []


def test_reopened_while_unsubscribing_it_is_subscribed_again() -> None:
    harness = ChannelsHarness()
    harness.subscribed("orders:o1").handle.close()
    assert harness.send_all() == [("unsubscribe", "orders:o1")]
    again = harness.subscribe("orders:o1")
    harness.push_order("PENDING")
    harness.reply("unsubscribe", "orders:o1")
    assert again.answers == []
    harness.answer("subscribe", "orders:o1")
    assert again.answers == [None]
    assert again.states() == []  # earlier pushes belong to the earlier subscription
    harness.push_order("FILLED")
    assert again.states() == [("push", "FILLED")]


def test_leaving_twice_counts_once() -> None:
    harness = ChannelsHarness()
    subscriber, other = harness.subscribed("orders:o1"), harness.subscribe("orders:o1")
    harness.leave(subscriber.subscriber)
    harness.leave(subscriber.subscriber)
    assert harness.channels.subscriptions == 1
    other.handle.close()
    harness.answer("unsubscribe", "orders:o1")
    harness.leave(subscriber.subscriber)
    assert harness.is_clean()


def test_refusal_is_raised_in_every_waiting_subscriber() -> None:
    harness = ChannelsHarness()
    first, second = harness.subscribe("nonsense"), harness.subscribe("nonsense")
    harness.answer("subscribe", "nonsense", "Invalid channel format")
    for subscriber in (first, second):
        assert isinstance(subscriber.answers[0], InvalidChannelError)
        subscriber.handle.close()
    assert harness.is_clean()


def test_unsent_unsubscribe_is_sent_later() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances")
    subscriber.handle.close()
    harness.pass_time(TIMEOUT + 1)  # it waited for its turn until its time was up
    harness.answer("unsubscribe", "balances")
    assert harness.is_clean()


def test_refused_unsubscribe_counts_as_unsubscribed() -> None:
    harness = ChannelsHarness()
    harness.subscribed("orders:o1").handle.close()
    harness.answer("unsubscribe", "orders:o1", "Not subscribed")
    assert harness.is_clean()


def test_channel_acknowledged_too_late_is_unsubscribed() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribe("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    harness.pass_time(TIMEOUT)
    assert isinstance(subscriber.answers[0], RequestTimeoutError)
    assert harness.send_all() == []  # the late reply must not resolve another request
    harness.reply("subscribe", "orders:o1")
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


def test_unanswered_subscribe_is_unsubscribed_on_the_same_connection() -> None:
    harness = ChannelsHarness()
    broken = harness.replaced
    harness.subscribe("orders:o1")
    harness.send_all()
    for _ in range(10):
        harness.pass_time(TIMEOUT)
        assert harness.send_all() == []  # the late reply could resolve it
    assert broken == []
    harness.reply("subscribe", "orders:o1")
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


def test_unanswered_subscribe_after_an_outage_replaces_the_connection() -> None:
    harness = ChannelsHarness()
    harness.subscribed("orders:o1")
    broken = harness.replaced
    harness.lose()
    harness.connect()
    harness.send_all()
    harness.pass_time(TIMEOUT + 1)
    harness.pass_time(GRACE - 2)
    assert broken == []
    harness.pass_time(2)
    assert broken


@pytest.mark.parametrize("limit", [1, 100])
def test_unanswered_channel_is_subscribed_to_again(limit: int) -> None:
    harness = ChannelsHarness(limit)
    harness.subscribe("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    harness.pass_time(TIMEOUT + 1)
    newcomer = harness.subscribe("orders:o1")
    harness.pass_time(TIMEOUT + 1)  # 'unsubscribe' had no turn
    assert newcomer.answers == []
    harness.reply("subscribe", "orders:o1", "Invalid channel format")  # the late reply to the first
    assert newcomer.answers == []
    harness.answer("subscribe", "orders:o1")
    assert newcomer.answers == [None]


def test_overdue_error_reports_whether_subscribe_was_sent() -> None:
    harness = ChannelsHarness(limit=1)
    first = harness.subscribe("orders:o1")
    assert isinstance(harness.channels.overdue(first.subscriber), NotSentError)
    harness.send_all()
    assert isinstance(harness.channels.overdue(first.subscriber), RequestTimeoutError)
    first.handle.close()
    waiting = harness.subscribe("orders:o2")
    assert isinstance(harness.channels.overdue(waiting.subscriber), NotSentError)
    harness.reply("subscribe", "orders:o1")
    assert harness.send_all() == [("unsubscribe", "orders:o1")]
    again = harness.channels._channels["orders:o1"].request
    assert again is not None
    assert again.op == "unsubscribe"
    assert isinstance(harness.channels.overdue(first.subscriber), NotSentError)


# --- The limit -------------------------------------------------------------------------------


def test_subscription_over_the_limit_is_refused_unsent() -> None:
    harness = ChannelsHarness(limit=2)
    harness.subscribed("orders:o1")
    harness.subscribed("orders:o2")
    with pytest.raises(SubscriptionLimitError) as caught:
        harness.subscribe("orders:o3")
    assert caught.value.limit == 2
    assert harness.send_all() == []
    assert harness.channels.subscriptions == 2
    assert harness.subscribe("orders:o1").answers == [None]


def test_at_the_limit_a_channel_waits_for_an_unsubscribe() -> None:
    harness = ChannelsHarness(limit=1)
    harness.subscribed("orders:o1").handle.close()
    new = harness.subscribe("orders:o2")
    harness.answer("unsubscribe", "orders:o1")
    assert new.answers == []
    harness.answer("subscribe", "orders:o2")
    assert new.answers == [None]


def test_at_the_limit_a_channel_waits_for_a_refusal() -> None:
    harness = ChannelsHarness(limit=1)
    old = harness.subscribe("nonsense")
    assert harness.send_all() == [("subscribe", "nonsense")]
    old.handle.close()
    new = harness.subscribe("orders:o2")
    assert harness.send_all() == []
    harness.reply("subscribe", "nonsense", "Invalid channel format")
    harness.answer("subscribe", "orders:o2")
    assert new.answers == [None]


def test_channel_that_waits_for_a_slot_may_be_closed() -> None:
    harness = ChannelsHarness(limit=1)
    harness.subscribed("orders:o1").handle.close()
    harness.subscribe("orders:o2").handle.close()
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


# --- Unsubscribing ---------------------------------------------------------------------------


def test_unsubscribe_ends_every_stream_of_the_channel() -> None:
    harness, notes = ChannelsHarness(), list[str]()
    first, second = harness.subscribed("orders:o1"), harness.subscribe("orders:o1")
    harness.push_order("PENDING")
    harness.unsubscribe("orders:o1", notes)
    assert first.handle.receive_nowait().data.status is OrderStatus.PENDING
    assert first.is_at_its_end()
    second.handle.receive_nowait()
    assert second.is_at_its_end()
    assert notes == []
    harness.answer("unsubscribe", "orders:o1")
    assert notes == ["left"]
    assert harness.is_clean()


def test_unsubscribe_from_an_unknown_channel_returns_at_once() -> None:
    harness, notes = ChannelsHarness(), list[str]()
    harness.unsubscribe("orders:o1", notes)
    assert notes == ["left"]
    assert harness.send_all() == []


def test_unsubscribe_before_the_answer_gives_an_ended_stream() -> None:
    harness, notes = ChannelsHarness(), list[str]()
    subscriber = harness.subscribe("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    harness.unsubscribe("orders:o1", notes)
    assert subscriber.answers == [None]
    assert subscriber.is_at_its_end()
    harness.reply("subscribe", "orders:o1")
    assert notes == []
    harness.answer("unsubscribe", "orders:o1")
    assert notes == ["left"]
    assert harness.is_clean()


def test_unsubscribe_returns_when_the_channel_is_wanted_again() -> None:
    harness, notes = ChannelsHarness(), list[str]()
    harness.subscribe("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    harness.unsubscribe("orders:o1", notes)
    harness.subscribe("orders:o1")
    harness.reply("subscribe", "orders:o1")
    assert notes == ["left"]
    assert harness.send_all() == []


# --- Pushes ----------------------------------------------------------------------------------


def test_push_to_an_unknown_channel_is_unexpected() -> None:
    harness = ChannelsHarness()
    harness.push_order("PENDING")
    assert harness.unexpected == ["it was pushed to a channel without subscribers"]


def test_push_during_unsubscribe_is_expected() -> None:
    harness = ChannelsHarness()
    harness.subscribed("orders:o1").handle.close()
    harness.push_order("PENDING")
    assert harness.unexpected == []


def test_pushed_error_is_raised_in_its_place() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.push_order("PENDING")
    harness.receive_json(ch="orders:o1", error="try later")
    harness.push_order("FILLED")
    assert subscriber.handle.receive_nowait().data.status is OrderStatus.PENDING
    with pytest.raises(ChannelError, match="try later") as caught:
        subscriber.handle.receive_nowait()
    assert caught.value.channel == "orders:o1"
    assert subscriber.states() == [("push", "FILLED")]
    assert harness.channels.wanted == 1


def order_body(status: str, filled: str | None = None, at: int = 0) -> dict[str, Any]:
    return {"orderId": "o1", "status": status, "filledOut": filled, "updatedAt": MS + at}


def test_push_that_names_another_order_is_not_delivered() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.engine.order_ids.add("c1", "o1")
    for names in (
        {"orderId": "o2"},
        {"orderId": "elsewhere"},
        {"orderId": "o2", "clientOrderId": "c1"},
        {"orderId": "o1", "clientOrderId": "c1"},
    ):
        harness.receive_json(ch="orders:o1", data={**order_body("FILLED"), **names})
    assert subscriber.states() == [("push", "FILLED")]
    assert harness.unexpected == ["it was pushed to another order's channel"] * 3


def test_push_of_an_order_that_a_client_order_id_may_mean_is_delivered() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:mine")
    harness.receive_json(ch="orders:mine", data=order_body("FILLED"))
    assert subscriber.states() == [("push", "FILLED")]


def test_order_goes_on_when_the_brokers_clock_is_set_back() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    states = [
        order_body("PENDING", at=60_000),
        order_body("PROCESSING", "0", at=1),
        order_body("PARTIAL", "2", at=0),
        order_body("PARTIAL", "3", at=-60_000),
        order_body("FILLED", "5", at=-120_000),
    ]
    for state in states:
        harness.receive_json(ch="orders:o1", data=state)
    statuses = ["PENDING", "PROCESSING", "PARTIAL", "PARTIAL", "FILLED"]
    assert subscriber.states() == [("push", status) for status in statuses]
    assert harness.unexpected == []


def test_snapshot_goes_on_when_the_brokers_clock_is_set_back() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.receive_json(ch="orders:o1", data=order_body("PARTIAL", "2", at=60_000))
    harness.lose()
    harness.connect()
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(op="order_status", data=order_body("FILLED", "5"))
    assert subscriber.states() == [("push", "PARTIAL"), ("snapshot", "FILLED")]


def test_older_state_with_a_smaller_fill_is_left_out_and_reported_once() -> None:
    harness = ChannelsHarness()
    consumers = [harness.subscribed("orders:o1"), harness.subscribe("orders:o1")]
    for body in (order_body("PARTIAL", "3"), order_body("PARTIAL", "2", at=5)):
        harness.receive_json(ch="orders:o1", data=body)
    for consumer in consumers:
        assert consumer.states() == [("push", "PARTIAL")]
    (reason,) = harness.unexpected
    assert "smaller fill" in reason
    # Older states that contradict nothing aren't reported.
    for body in (order_body("PENDING"), order_body("PARTIAL", "3", at=-1)):
        harness.receive_json(ch="orders:o1", data=body)
    assert len(harness.unexpected) == 1


def test_other_final_state_is_delivered_and_reported() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    for body in (order_body("FILLED", "3"), order_body("FILLED", "3"), order_body("FAILED", "0")):
        harness.receive_json(ch="orders:o1", data=body)
    assert [status for _, status in subscriber.states()] == ["FILLED", "FILLED", "FAILED"]
    assert harness.unexpected == ["a final order changes from FILLED to FAILED"]


def test_odd_snapshots_are_reported_too() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.receive_json(ch="orders:o1", data=order_body("FILLED", "3"))
    for body in (order_body("FILLED", "2"), order_body("CANCELLED")):
        harness.lose()
        harness.connect()
        harness.answer("subscribe", "orders:o1")
        assert harness.send_all() == [ORDER_STATE_REQUEST]
        harness.receive_json(op="order_status", data=body)
    assert subscriber.states() == [("push", "FILLED"), ("snapshot", "CANCELLED")]
    assert len(harness.unexpected) == 2


def test_restored_channel_that_is_not_acknowledged_as_subscribed_is_refused() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances")
    harness.lose()
    harness.connect()
    assert harness.send_all() == [("subscribe", "balances")]
    harness.receive_json(op="subscribe", ch="balances", data={"status": "rejected"})
    with pytest.raises(ServerError, match="rejected"):
        subscriber.handle.receive_nowait()
    (event,) = harness.events
    assert isinstance(event, ChannelRefused)
    assert event.channel == "balances"


def test_unreadable_push_is_skipped() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances")
    harness.receive_json(ch="balances", data={"asset": "USDT", "total": "1"})
    harness.push_balance("7")
    assert len(harness.unexpected) == 1
    assert [message.data[0].total for message in subscriber.receive_all()] == [7]


def test_unknown_kind_of_channel_gives_raw_data() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("trades:ETH")
    harness.receive_json(ch="trades:ETH", data={"n": 1})
    (message,) = subscriber.receive_all()
    assert (message.data, message.origin, message.channel) == ({"n": 1}, "push", "trades:ETH")
    assert message.raw == '{"ch": "trades:ETH", "data": {"n": 1}}'
    assert message.received_at == dt.datetime.fromtimestamp(100, dt.UTC)


def test_messages_received_together_have_one_time() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1", snapshot=True)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    push = {"ch": "orders:o1", "data": {"status": "PENDING", "updatedAt": MS + 2}}
    state = {"orderId": "o1", "status": "PENDING", "updatedAt": MS + 1}
    reply = {"op": "order_status", "data": state}
    error = {"ch": "orders:o1", "error": "try later"}
    harness.receive(*(json.dumps(one) for one in (reply, push, error, push)))
    first, second = subscriber.handle.receive_nowait(), subscriber.handle.receive_nowait()
    assert [first.origin, second.origin] == ["snapshot", "push"]
    assert first.received_at == second.received_at
    harness.now += 1
    harness.receive(json.dumps(push))
    with pytest.raises(ChannelError):
        subscriber.handle.receive_nowait()
    third, fourth = subscriber.handle.receive_nowait(), subscriber.handle.receive_nowait()
    assert third.received_at == first.received_at < fourth.received_at


def test_older_order_states_are_not_delivered() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.push_order("PROCESSING", at=20)
    harness.push_order("PENDING", at=10)
    harness.push_order("FILLED", at=30)
    harness.push_order("PROCESSING", at=30)
    assert subscriber.states() == [("push", "PROCESSING"), ("push", "FILLED")]


def test_overflow_as_error_unsubscribes() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", buffer_size=1, overflow="error")
    other = harness.subscribe("balances")
    harness.push_balance("1")
    harness.push_balance("2")
    assert harness.channels.subscriptions == 1
    subscriber.handle.receive_nowait()
    with pytest.raises(SlowConsumerError):
        subscriber.handle.receive_nowait()
    assert len(other.receive_all()) == 2
    other.handle.close()
    harness.answer("unsubscribe", "balances")
    assert harness.is_clean()


# --- The end ---------------------------------------------------------------------------------


def test_closed_client_ends_streams_after_the_buffer() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.push_order("PENDING")
    harness.close(None)
    subscriber.handle.receive_nowait()
    assert subscriber.is_at_its_end()
    subscriber.handle.close()
    assert harness.is_clean()


def test_failed_client_breaks_streams_after_the_buffer() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.push_order("PENDING")
    harness.close(LOST)
    subscriber.handle.receive_nowait()
    for _ in range(2):
        with pytest.raises(SubscriptionBrokenError) as caught:
            subscriber.handle.receive_nowait()
        assert caught.value.__cause__ is LOST


def test_close_reports_whether_subscribe_was_sent() -> None:
    harness, notes = ChannelsHarness(limit=2), list[str]()
    harness.subscribed("orders:o1").handle.close()
    sent = harness.subscribe("orders:o2")
    assert harness.send_all() == [("unsubscribe", "orders:o1"), ("subscribe", "orders:o2")]
    waits = harness.subscribe("orders:o3")
    harness.unsubscribe("orders:o1", notes)
    harness.close(None)
    assert sent.answers == [LOST]
    assert waits.answers == [CLOSED]
    assert notes == ["left"]
    assert sent.answers == [LOST]
    assert harness.is_clean()


def test_close_requests_nothing_more() -> None:
    harness = ChannelsHarness(limit=1)
    with_snapshot = harness.subscribed("orders:o1", snapshot=True)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.close(None)
    with_snapshot.handle.close()
    assert harness.events == []
    assert harness.is_clean()


# --- Trackers --------------------------------------------------------------------------------


def test_tracked_order_is_subscribed_to_and_then_polled() -> None:
    harness = ChannelsHarness()
    tracker = harness.track_acknowledged("orders:o1")
    harness.push_order("FILLED")
    assert tracker.states() == [("push", "FILLED")]
    assert harness.channels.wanted == harness.channels.subscriptions == 0
    tracker.handle.close()
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


def test_tracked_order_without_a_slot_is_polled() -> None:
    harness = ChannelsHarness(limit=1)
    harness.subscribed("orders:o1")
    tracker = harness.track_order("orders:o2")
    assert harness.send_all() == [state_request("orders:o2")]
    harness.reply_order("PENDING", "orders:o2")
    assert tracker.states() == [("snapshot", "PENDING")]
    assert harness.send_all() == []
    harness.pass_time(5)
    harness.request_state(tracker)
    assert harness.send_all() == [state_request("orders:o2")]
    harness.reply_order("FILLED", "orders:o2")
    assert tracker.states() == [("snapshot", "FILLED")]
    tracker.handle.close()
    harness.request_state(tracker)
    assert harness.send_all() == []


def test_subscription_evicts_a_tracked_order() -> None:
    harness = ChannelsHarness(limit=2)
    evicted, other = (
        harness.track_acknowledged("orders:o1"),
        harness.track_acknowledged("orders:o2"),
    )
    user = harness.subscribe("balances")
    assert harness.send_all() == [("unsubscribe", "orders:o1")]
    harness.push_order("PROCESSING")  # it was on its way
    assert evicted.states() == [("push", "PROCESSING")]
    harness.reply("unsubscribe", "orders:o1")
    harness.answer("subscribe", "balances")
    assert user.answers == [None]
    assert harness.send_all() == []
    harness.pass_time(5)
    harness.request_state(evicted)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("FILLED")
    assert evicted.states() == [("snapshot", "FILLED")]
    harness.push_order("FILLED", order_id="o2")
    assert other.states() == [("push", "FILLED")]


def test_evicted_tracked_order_still_gets_its_state() -> None:
    harness = ChannelsHarness(limit=1)
    tracker = harness.track_acknowledged("orders:o1")
    harness.pass_time(5)
    harness.request_state(tracker)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.subscribe("balances")
    assert harness.send_all() == [("unsubscribe", "orders:o1")]
    harness.reply_order("FILLED")
    assert tracker.states() == [("snapshot", "FILLED")]


def test_limit_counts_only_channels_of_users() -> None:
    harness = ChannelsHarness(limit=1)
    harness.track_acknowledged("orders:o1")
    harness.subscribe("balances")
    with pytest.raises(SubscriptionLimitError):
        harness.subscribe("orders:o1")


def test_tracked_order_is_evicted_once_its_subscribe_is_answered() -> None:
    harness = ChannelsHarness(limit=1)
    harness.track_order("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    user = harness.subscribe("balances")
    assert harness.send_all() == []
    harness.reply("subscribe", "orders:o1")
    assert ("unsubscribe", "orders:o1") in harness.send_all()
    harness.reply("unsubscribe", "orders:o1")
    assert harness.send_all() == [("subscribe", "balances")]
    harness.reply("subscribe", "balances")
    assert user.answers == [None]


def test_unsent_unsubscribe_of_an_evicted_channel_is_sent_later() -> None:
    harness = ChannelsHarness(limit=1)
    harness.track_acknowledged("orders:o1")
    user = harness.subscribe("balances")
    harness.pass_time(TIMEOUT + 1)
    assert harness.send_all() == [("unsubscribe", "orders:o1")]
    harness.reply("unsubscribe", "orders:o1")
    harness.answer("subscribe", "balances")
    assert user.answers == [None]


def test_free_slots_go_to_users_before_tracked_orders() -> None:
    harness = ChannelsHarness(limit=1)
    first = harness.subscribed("orders:o1")
    tracker = harness.track_order("orders:o2")
    assert harness.send_all() == [state_request("orders:o2")]
    harness.reply_order("PENDING", "orders:o2")
    first.handle.close()
    second = harness.subscribe("balances")
    harness.answer("unsubscribe", "orders:o1")
    harness.answer("subscribe", "balances")
    second.handle.close()
    harness.answer("unsubscribe", "balances")
    harness.pass_time(5)
    harness.answer("subscribe", "orders:o2")
    assert harness.send_all() == [state_request("orders:o2")]  # changes may have been missed
    harness.reply_order("FILLED", "orders:o2")
    assert tracker.states() == [("snapshot", "PENDING"), ("snapshot", "FILLED")]


def test_slot_freed_during_a_poll_is_used_after_the_reply() -> None:
    harness = ChannelsHarness(limit=1)
    user = harness.subscribed("balances")
    harness.track_order("orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    user.handle.close()
    harness.answer("unsubscribe", "balances")
    assert harness.send_all() == []
    harness.reply_order("PENDING")
    assert harness.send_all() == [("subscribe", "orders:o1")]


@pytest.mark.parametrize("error", ["Invalid channel format", "no"])
def test_refusal_does_not_end_a_tracked_order(error: str) -> None:
    harness = ChannelsHarness()
    tracker = harness.track_order("orders:o1")
    harness.answer("subscribe", "orders:o1", error)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING")
    assert tracker.states() == [("snapshot", "PENDING")]
    assert (tracker.answers, harness.events, harness.send_all()) == ([], [], [])
    harness.lose()
    harness.connect()
    harness.answer("subscribe", "orders:o1")
    harness.pass_time(5)
    assert harness.send_all() == [ORDER_STATE_REQUEST]


def test_channel_refused_to_a_tracker_is_tried_again_for_a_user() -> None:
    harness = ChannelsHarness()
    tracker = harness.track_order("orders:o1")
    harness.answer("subscribe", "orders:o1", "no")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING")
    tracker.receive_all()
    user = harness.subscribe("orders:o1")
    harness.answer("subscribe", "orders:o1", "no")
    assert isinstance(user.answers[0], ServerError)
    assert harness.channels.subscriptions == 0
    again = harness.subscribe("orders:o1")
    harness.answer("subscribe", "orders:o1")
    assert again.answers == [None]
    harness.push_order("FILLED")
    assert tracker.states() == again.states() == [("push", "FILLED")]


def test_tracker_tries_a_channel_again_after_a_user_had_it() -> None:
    harness = ChannelsHarness(limit=2)
    tracker = harness.track_order("orders:o1")
    harness.answer("subscribe", "orders:o1", "no")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING")
    harness.pass_time(5)
    user = harness.subscribe("orders:o1")
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING")
    assert len(tracker.receive_all()) == 2
    user.handle.close()
    other, third = harness.subscribed("orders:o2"), harness.subscribe("balances")
    harness.answer("unsubscribe", "orders:o1")
    harness.answer("subscribe", "balances")
    assert third.answers == [None]
    other.handle.close()
    harness.answer("unsubscribe", "orders:o2")
    assert harness.send_all() == [("subscribe", "orders:o1")]


def test_refusal_after_an_outage_ends_only_the_subscription() -> None:
    harness = ChannelsHarness()
    tracker = harness.track_acknowledged("orders:o1")
    user = harness.subscribe("orders:o1")
    harness.lose()
    harness.connect()
    harness.answer("subscribe", "orders:o1", "no")
    with pytest.raises(ServerError):
        user.handle.receive_nowait()
    assert [type(event) for event in harness.events] == [ChannelRefused]
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("FILLED")
    assert tracker.states() == [("snapshot", "FILLED")]


def test_unanswered_subscribe_of_a_tracker_has_no_consequence() -> None:
    harness = ChannelsHarness()
    broken = harness.replaced
    tracker = harness.track_order("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    harness.pass_time(TIMEOUT)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING")
    harness.push_order("PROCESSING")  # it may be subscribed after all
    assert tracker.states() == [("snapshot", "PENDING"), ("push", "PROCESSING")]
    harness.pass_time(2 * GRACE)
    assert broken == []
    tracker.handle.close()
    harness.reply("subscribe", "orders:o1")
    harness.answer("unsubscribe", "orders:o1")
    assert harness.is_clean()


def test_broker_with_fewer_slots_serves_users_first() -> None:
    harness = ChannelsHarness()
    harness.track_acknowledged("orders:o1")
    harness.track_acknowledged("orders:o2")
    user = harness.subscribe("balances")
    harness.answer("subscribe", "balances", "Subscription limit exceeded")
    assert user.answers == []
    harness.answer("unsubscribe", "orders:o1")
    harness.answer("subscribe", "balances", "Subscription limit exceeded")
    harness.answer("unsubscribe", "orders:o2")
    harness.answer("subscribe", "balances", "Subscription limit exceeded")
    assert isinstance(user.answers[0], ServerError)
    assert harness.send_all() == []
    harness.lose()
    harness.connect()
    assert harness.send_all() == [("subscribe", "orders:o1"), ("subscribe", "orders:o2")]


def test_tracked_order_over_the_brokers_limit_is_polled() -> None:
    harness = ChannelsHarness()
    harness.track_acknowledged("orders:o1")
    harness.track_order("orders:o2")
    harness.answer("subscribe", "orders:o2", "Subscription limit exceeded")
    assert harness.send_all() == [state_request("orders:o2")]
    harness.track_order("orders:o3")
    assert harness.send_all() == [state_request("orders:o3")]


def test_unsubscribe_keeps_the_channel_of_a_tracked_order() -> None:
    harness, notes = ChannelsHarness(), list[str]()
    tracker = harness.track_acknowledged("orders:o1")
    user = harness.subscribe("orders:o1")
    harness.unsubscribe("orders:o1", notes)
    assert notes == ["left"]
    assert user.is_at_its_end()
    assert harness.send_all() == []
    harness.push_order("FILLED")
    assert tracker.states() == [("push", "FILLED")]


def test_unsubscribe_from_a_polled_channel_returns_at_once() -> None:
    harness, notes = ChannelsHarness(limit=1), list[str]()
    harness.subscribed("balances")
    harness.track_order("orders:o1")
    harness.unsubscribe("orders:o1", notes)
    assert notes == ["left"]


def test_pushed_error_polls_a_tracked_order_at_once() -> None:
    harness = ChannelsHarness()
    tracker = harness.track_acknowledged("orders:o1")
    user = harness.subscribe("orders:o1")
    harness.pass_time(5)
    harness.receive_json(ch="orders:o1", error="try later")
    with pytest.raises(ChannelError, match="try later"):
        user.handle.receive_nowait()
    assert tracker.receive_all() == []
    assert harness.unexpected == ["an error was pushed about an order that is tracked"]
    assert harness.send_all() == [ORDER_STATE_REQUEST]


def test_pushed_error_for_a_subscription_is_expected() -> None:
    harness = ChannelsHarness()
    harness.subscribed("orders:o1")
    harness.receive_json(ch="orders:o1", error="try later")
    assert (harness.unexpected, harness.send_all()) == ([], [])


def test_tracked_orders_send_at_most_half_of_the_messages() -> None:
    harness = ChannelsHarness(limit=3, messages_per_second=10)
    trackers = [harness.track_order(f"orders:{number}") for number in range(20)]
    sent_at: list[float] = []
    while len(sent_at) < 23:
        sent = harness.send_all()
        sent_at += [harness.now] * len(sent)
        for op, what in sent:
            if op == "subscribe":
                harness.reply(op, what)
            else:
                harness.reply_order("PENDING", f"orders:{json.loads(what)['id']}")
        harness.pass_time(0.1)
    for moment in sent_at:
        assert sum(moment <= one < moment + 1.1 - 1e-6 for one in sent_at) <= 5
    assert all(tracker.states() == [("snapshot", "PENDING")] for tracker in trackers)
    assert harness.now < 100 + 7


def test_waiting_polls_do_not_delay_a_subscription() -> None:
    harness = ChannelsHarness(limit=3, messages_per_second=10)
    for number in range(20):
        harness.track_order(f"orders:{number}")
    assert len(harness.send_all()) == 3  # each of the five counts twice at first
    for number in range(3):
        harness.reply("subscribe", f"orders:{number}")
    harness.subscribe("balances", snapshot=True)
    assert harness.send_all() == [("unsubscribe", "orders:0")]
    harness.reply("unsubscribe", "orders:0")
    harness.answer("subscribe", "balances")
    assert harness.send_all() == [("balances", "")]


def test_state_for_a_tracked_order_waits_for_its_turn() -> None:
    harness = ChannelsHarness(messages_per_second=2)
    harness.subscribed("orders:o1")
    harness.track_order("orders:o2")
    assert harness.send_all() == [("subscribe", "orders:o2")]
    harness.track_order("orders:o1")
    harness.reply("subscribe", "orders:o2")
    assert harness.send_all() == []
    harness.pass_time(1.1)
    assert harness.send_all() == [ORDER_STATE_REQUEST]


def test_channel_that_was_left_has_no_turn() -> None:
    harness = ChannelsHarness(limit=1, messages_per_second=2)
    harness.subscribed("balances")
    harness.track_order("orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    waiting = harness.track_order("orders:o2")
    waiting.handle.close()
    harness.reply_order("PENDING")
    harness.pass_time(5)
    assert harness.send_all() == []
    assert "orders:o2" not in harness.channels._channels


def test_tracked_order_is_not_counted_as_restored() -> None:
    harness = ChannelsHarness()
    harness.track_acknowledged("orders:o1")
    harness.subscribed("balances")
    harness.lose()
    assert harness.connect() == 1
    # Users first.
    assert harness.send_all() == [("subscribe", "balances"), ("subscribe", "orders:o1")]
    harness.reply("subscribe", "balances")
    assert harness.restored == [("balances",)]


def test_channel_left_to_a_tracker_in_an_outage_is_not_restored() -> None:
    harness = ChannelsHarness(limit=1)
    user = harness.subscribed("orders:o1")
    harness.track_order("orders:o1")
    harness.send_all()
    harness.lose()
    harness.connect()
    user.handle.close()
    harness.answer("subscribe", "orders:o1")
    assert harness.restored == [("orders:o1",)]


def test_channel_left_before_its_turn_is_not_restored() -> None:
    harness = ChannelsHarness(limit=1)
    first, second = harness.subscribed("orders:o1"), harness.subscribe("orders:o1")
    harness.track_order("orders:o1")
    harness.send_all()
    harness.lose()
    harness.connect()
    first.handle.close()
    second.handle.close()
    harness.pass_time(TIMEOUT + 1)
    assert harness.restored == [()]


def test_tracked_order_reports_an_outage_and_is_polled() -> None:
    harness = ChannelsHarness(limit=1)
    harness.subscribed("balances")
    tracker = harness.track_order("orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.reply_order("PENDING")
    tracker.receive_all()
    late = harness.track_order("orders:o2")
    assert harness.send_all() == [state_request("orders:o2")]
    harness.lose()
    harness.connect()
    assert harness.send_all() == [
        ("subscribe", "balances"),
        state_request("orders:o1"),
        state_request("orders:o2"),
    ]
    harness.reply_order("FILLED")
    harness.reply_order("FILLED", "orders:o2")
    (message,) = tracker.receive_all()
    assert message.gap is not None
    (message,) = late.receive_all()
    assert message.gap is None  # it hadn't begun


def test_close_ends_tracked_orders_like_streams() -> None:
    for failure in (None, LOST):
        harness = ChannelsHarness()
        tracker = harness.track_order("orders:o1")
        harness.close(failure)
        assert tracker.answers == []
        if failure is None:
            assert tracker.is_at_its_end()
        else:
            with pytest.raises(SubscriptionBrokenError) as caught:
                tracker.handle.receive_nowait()
            assert caught.value.__cause__ is LOST
        assert harness.is_clean()


def test_no_answer_walks_through_a_thousand_tracked_orders() -> None:
    class Counted(dict[str, Channel]):
        walks = 0

        def values(self) -> Any:
            self.walks += 1
            return super().values()

    harness = ChannelsHarness(limit=10)
    channels = harness.channels._channels = Counted()
    for number in range(1000):
        harness.track_order(f"orders:{number}")
    user = harness.subscribe("balances")
    for _ in range(3):
        for op, what in harness.send_all():
            if op == "order_status":
                harness.reply_order("PENDING", f"orders:{json.loads(what)['id']}")
            else:
                harness.reply(op, what)
        harness.pass_time(1.1)
    assert user.answers == [None]
    assert channels.walks == 0


# --- Outages ---------------------------------------------------------------------------------


def test_outage_resubscribes_every_channel_and_marks_its_stream() -> None:
    harness = ChannelsHarness()
    order, balances = harness.subscribed("orders:o1"), harness.subscribed("balances")
    harness.lose()
    assert harness.send_all() == []
    lost_at = dt.datetime.fromtimestamp(harness.now, dt.UTC)
    harness.now += 5
    assert harness.connect() == 2
    assert harness.send_all() == [("subscribe", "orders:o1"), ("subscribe", "balances")]
    harness.reply("subscribe", "balances")
    assert harness.restored == []
    assert harness.send_all() == [("balances", "")]
    harness.reply("subscribe", "orders:o1")
    assert harness.restored == [("balances", "orders:o1")]
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.push_order("PROCESSING", 2)
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "status": "FILLED", "updatedAt": MS + 3}
    )
    assert harness.send_all() == [ORDER_STATE_REQUEST]  # a push overtook it
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "status": "FILLED", "updatedAt": MS + 3}
    )
    harness.reply_balances("7")
    first, second = order.receive_all()
    assert first.origin == "push"
    assert first.gap == Gap(frozenset({"reconnected"}), dropped=0, since=lost_at)
    assert (second.origin, second.gap, second.data.status) == ("snapshot", None, "FILLED")
    (whole,) = balances.receive_all()
    assert whole.origin == "snapshot"
    assert whole.gap is not None


def test_several_outages_are_one_gap_from_the_first() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    began = dt.datetime.fromtimestamp(harness.now, dt.UTC)
    for _ in range(3):
        harness.lose()
        harness.now += 5
        harness.connect()
        harness.send_all()
    harness.reply("subscribe", "orders:o1")
    harness.push_order("FILLED", 2)
    (message,) = subscriber.receive_all()
    assert message.gap is not None
    assert message.gap.since == began


def test_unanswered_subscription_waits_for_the_next_connection() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribe("balances", snapshot=True)
    assert harness.send_all() == [("subscribe", "balances")]
    harness.lose()
    late = harness.subscribe("orders:o1")
    assert harness.send_all() == []
    assert harness.connect() == 0  # neither had a subscription before
    assert harness.send_all() == [("subscribe", "balances"), ("subscribe", "orders:o1")]
    harness.reply("subscribe", "balances")
    harness.reply("subscribe", "orders:o1")
    assert subscriber.answers == late.answers == [None]
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("7")
    assert [message.gap for message in subscriber.receive_all()] == [None]
    assert harness.restored == []


def test_push_before_the_answer_can_be_followed_by_a_gap() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribe("orders:o1")
    assert harness.send_all() == [("subscribe", "orders:o1")]
    harness.push_order("PENDING", 1)
    harness.lose()
    harness.connect()
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "status": "FILLED", "updatedAt": MS + 2}
    )
    first, second = subscriber.receive_all()
    assert first.gap is None
    assert second.gap is not None


def test_push_before_an_unsubscribe_is_not_for_later_subscribers() -> None:
    harness = ChannelsHarness()
    harness.subscribed("balances").handle.close()
    assert harness.send_all() == [("unsubscribe", "balances")]
    newcomer = harness.subscribe("balances")
    harness.push_balance("1")  # then nothing is pushed until the new subscription
    harness.reply("unsubscribe", "balances")
    harness.answer("subscribe", "balances")
    assert newcomer.receive_all() == []
    harness.push_balance("3")
    assert len(newcomer.receive_all()) == 1


def test_channel_left_in_an_outage_is_not_resubscribed() -> None:
    harness = ChannelsHarness()
    subscriber, other = harness.subscribed("balances"), harness.subscribed("orders:o1")
    harness.lose()
    subscriber.handle.close()
    assert harness.channels.wanted == 1
    assert harness.connect() == 1
    assert harness.send_all() == [("subscribe", "orders:o1")]
    other.handle.close()
    harness.reply("subscribe", "orders:o1")
    harness.answer("unsubscribe", "orders:o1")
    assert harness.restored == [("orders:o1",)]
    assert harness.is_clean()


def test_channel_left_before_its_request_is_not_restored() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances")
    harness.lose()
    harness.connect()
    subscriber.handle.close()
    assert harness.send_all() == []
    assert harness.restored == [()]
    assert harness.is_clean()


@pytest.mark.parametrize("was_sent", [True, False])
def test_unsubscribe_is_done_when_the_connection_is_lost(*, was_sent: bool) -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances")
    left: list[str] = []
    harness.unsubscribe("balances", left)
    if was_sent:
        assert harness.send_all() == [("unsubscribe", "balances")]
    harness.lose()
    assert left == ["left"]
    assert subscriber.is_at_its_end()
    assert harness.connect() == 0
    assert harness.send_all() == []
    assert harness.is_clean()


def test_refusal_after_an_outage_ends_only_that_channel() -> None:
    harness = ChannelsHarness()
    refused, other = harness.subscribed("orders:o1"), harness.subscribed("balances")
    harness.lose()
    newcomer = harness.subscribe("orders:o1")
    harness.connect()
    harness.send_all()
    harness.reply("subscribe", "orders:o1", "Invalid channel format")
    harness.reply("subscribe", "balances")
    with pytest.raises(InvalidChannelError):
        refused.handle.receive_nowait()
    assert isinstance(newcomer.answers[0], InvalidChannelError)
    assert harness.restored == [("balances",)]
    (event,) = harness.events
    assert isinstance(event, ChannelRefused)
    assert event.channel == "orders:o1"
    harness.push_balance("7")
    assert len(other.receive_all()) == 1
    assert harness.channels.subscriptions == harness.channels.wanted == 1


def test_unanswered_channel_after_an_outage_is_tried_again() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances")
    harness.lose()
    harness.connect()
    assert harness.send_all() == [("subscribe", "balances")]
    harness.pass_time(TIMEOUT + 1)
    assert harness.send_all() == []  # its slot is kept for a late reply
    assert not harness.restored
    harness.reply("subscribe", "balances")
    harness.answer("subscribe", "balances")
    assert harness.restored == [("balances",)]
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("7")
    assert len(subscriber.receive_all()) == 1


def test_snapshot_of_the_old_connection_is_ignored() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.lose()
    assert harness.events == []
    harness.connect()
    harness.answer("subscribe", "balances")
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("7")
    assert len(subscriber.receive_all()) == 1


def test_older_state_after_an_outage_keeps_the_gap() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1")
    harness.push_order("PROCESSING", 5)
    subscriber.receive_all()
    harness.lose()
    harness.connect()
    harness.answer("subscribe", "orders:o1")
    harness.send_all()
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": MS + 1}
    )
    assert subscriber.receive_all() == []
    harness.push_order("FILLED", 6)
    (message,) = subscriber.receive_all()
    assert message.gap is not None


def left_tracked_orders(limit: int) -> ChannelsHarness:
    """The channels of three tracked orders that were left; two wait to be unsubscribed."""
    harness = ChannelsHarness(limit=limit, messages_per_second=2)
    trackers = [harness.track_order(f"orders:{number}") for number in range(3)]
    while (sent := harness.send_all()) or harness.now < 110:
        for op, what in sent:
            if op == "subscribe":
                harness.reply(op, what)
            else:
                harness.reply_order("PENDING", f"orders:{json.loads(what)['id']}")
        harness.pass_time(1.1)
    for tracker in trackers:
        tracker.handle.close()
    assert harness.send_all() == [("unsubscribe", "orders:0")]
    return harness


def test_channels_of_left_tracked_orders_are_unsubscribed_in_turn() -> None:
    harness = left_tracked_orders(limit=10)
    for number in range(3):
        harness.reply("unsubscribe", f"orders:{number}")
        assert harness.send_all() == []
        harness.pass_time(1.1)
        expected = [("unsubscribe", f"orders:{number + 1}")] if number < 2 else []
        assert harness.send_all() == expected
    assert harness.is_clean()


def test_user_waits_for_no_turn_of_a_tracked_order_that_was_left() -> None:
    harness = left_tracked_orders(limit=3)
    harness.subscribe("balances")
    harness.subscribe("orders:x")
    # One is leaving already, and another one leaves now.
    assert harness.send_all() == [("unsubscribe", "orders:1")]
    notes: list[str] = []
    harness.unsubscribe("orders:2", notes)
    assert harness.send_all() == [("unsubscribe", "orders:2")]
    harness.pass_time(5.0)
    assert harness.send_all() == []
    for number in range(3):
        harness.reply("unsubscribe", f"orders:{number}")
    assert harness.send_all() == [("subscribe", "balances"), ("subscribe", "orders:x")]
    assert notes == ["left"]


def test_tracked_order_that_was_left_may_be_wanted_again_before_its_turn() -> None:
    harness = left_tracked_orders(limit=10)
    again = harness.subscribe("orders:1")
    assert again.answers == [None]
    assert harness.send_all() == []
    harness.reply("unsubscribe", "orders:0")
    harness.pass_time(5.0)
    assert harness.send_all() == [("unsubscribe", "orders:2")]


# --- Lost replies at the limit of channels ---------------------------------------------------


def lost_subscribe(kind: str) -> ChannelsHarness:
    """A connection whose only slot is held by a channel, as the reply to ``subscribe`` is lost."""
    harness = ChannelsHarness(limit=1)
    if kind == "user":
        lost = harness.subscribe("orders:lost")
    else:
        harness.track_order("orders:lost")
    assert harness.send_all() == [("subscribe", "orders:lost")]
    harness.pass_time(TIMEOUT)
    if kind == "user":
        assert isinstance(lost.answers[0], RequestTimeoutError)
    else:
        assert harness.send_all() == [state_request("orders:lost")]
        harness.reply_order("PENDING", "orders:lost")
    assert harness.send_all() == []
    return harness


@pytest.mark.parametrize("kind", ["user", "tracked"])
@pytest.mark.parametrize("later", [0.0, GRACE - 1, GRACE, 10 * GRACE])
def test_slot_of_a_lost_subscribe_is_free_after_the_grace(kind: str, later: float) -> None:
    harness = lost_subscribe(kind)
    for _ in range(16):
        harness.pass_time(later / 16)
    assert harness.replaced == []
    waiting = harness.subscribe("balances")
    if later < GRACE:
        harness.pass_time(0)
        assert harness.replaced == []
        harness.pass_time(GRACE - later)
    harness.pass_time(0)
    assert len(harness.replaced) == 1
    assert not harness.replacements[0].is_attempt
    harness.lose()
    harness.connect()
    assert harness.send_all()[0] == ("subscribe", "balances")
    harness.reply("subscribe", "balances")
    assert waiting.answers == [None]
    harness.pass_time(10 * GRACE)
    assert len(harness.replaced) == 1


@pytest.mark.parametrize("kind", ["user", "tracked"])
def test_late_reply_to_a_lost_subscribe_frees_its_slot(kind: str) -> None:
    harness = lost_subscribe(kind)
    waiting = harness.subscribe("balances")
    harness.reply("subscribe", "orders:lost")
    harness.answer("unsubscribe", "orders:lost")
    harness.answer("subscribe", "balances")
    assert waiting.answers == [None]
    assert harness.replaced == []


@pytest.mark.parametrize("kind", ["user", "tracked"])
def test_connection_is_kept_if_nobody_wants_the_slot_of_a_lost_subscribe(kind: str) -> None:
    harness = lost_subscribe(kind)
    waiting = harness.subscribe("balances")
    waiting.handle.close()
    harness.track_order("orders:other")
    for _ in range(20):
        harness.pass_time(GRACE / 2)
        for op, what in harness.send_all():
            assert op == "order_status"
            harness.reply_order("PENDING", f"orders:{json.loads(what)['id']}")
    assert harness.replaced == []


def test_unanswered_eviction_ends_after_the_grace() -> None:
    harness = ChannelsHarness(limit=1)
    harness.session.trust.graces["unsubscribe"] = 5.0
    harness.track_acknowledged("orders:o1")
    waiting = harness.subscribe("balances")
    assert harness.send_all() == [("unsubscribe", "orders:o1")]
    harness.pass_time(4.9)
    assert harness.send_all() == []
    harness.pass_time(0.2)
    harness.answer("subscribe", "balances")
    assert waiting.answers == [None]
    assert harness.replaced == []
