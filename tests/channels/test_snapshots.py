"""Snapshots of channels, with a real session and real buffers."""

from __future__ import annotations

import itertools
import math

import pytest

from tests.channels.harness import ORDER_STATE_REQUEST, ChannelsHarness, state_request
from tests.engine_harness import TIMEOUT
from trio_broker._protocol import requests
from trio_broker.events import SnapshotUnavailable


def test_state_is_requested_after_the_answer() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribe("orders:o1", snapshot=True)
    harness.answer("subscribe", "orders:o1")
    assert subscriber.answers == [None]
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert subscriber.states() == [("snapshot", "PENDING")]
    assert harness.send_all() == []


def test_state_goes_only_to_subscribers_that_want_it() -> None:
    harness = ChannelsHarness()
    without = harness.subscribed("balances")
    with_it = harness.subscribe("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("5")
    assert [message.origin for message in with_it.receive_all()] == ["snapshot"]
    assert without.receive_all() == []


def test_state_overtaken_by_a_push_is_requested_again() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.push_balance("2")
    harness.reply_balances("1")
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("2")
    totals = [(message.origin, message.data[0].total) for message in subscriber.receive_all()]
    assert totals == [("push", 2), ("snapshot", 2)]


def test_push_before_the_request_does_not_overtake() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", snapshot=True)
    harness.push_balance("2")
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("2")
    assert [message.origin for message in subscriber.receive_all()] == ["push", "snapshot"]


def test_overtaken_state_is_requested_with_growing_delays() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", snapshot=True)
    waits = []
    for _ in range(8):
        began = harness.now
        while harness.send_all() != [("balances", "")]:
            assert harness.engine.timers.next_deadline < math.inf
            harness.pass_time(harness.engine.timers.next_deadline - harness.now)
        waits.append(round(harness.now - began, 3))
        harness.push_balance("2")
        harness.reply_balances("1")
    assert waits == [0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    harness.pass_time(1.0)
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("2")
    assert subscriber.receive_all()[-1].origin == "snapshot"


def test_old_state_is_not_delivered_after_a_newer_push() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1", snapshot=True)
    harness.push_order("FILLED", at=9)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(
        op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": 1}
    )
    assert subscriber.states() == [("push", "FILLED")]
    assert harness.send_all() == []


def test_refused_state_is_an_event() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1", snapshot=True)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(op="order_status", error="Order not found")
    (event,) = harness.events
    assert isinstance(event, SnapshotUnavailable)
    assert (event.channel, "Order not found" in str(event.error)) == ("orders:o1", True)
    assert harness.send_all() == []
    harness.push_order("PENDING")
    assert subscriber.states() == [("push", "PENDING")]


@pytest.mark.parametrize("name", ["trades:ETH", "orders:"])
def test_channel_without_a_state_is_an_event(name: str) -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed(name, snapshot=True)
    assert harness.send_all() == []
    assert [type(event) for event in harness.events] == [SnapshotUnavailable]
    harness.receive_json(ch=name, data={"status": "PENDING"})
    assert len(subscriber.receive_all()) == 1


def test_missing_state_is_an_event_and_requested_again() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1", snapshot=True)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.pass_time(TIMEOUT)
    assert [type(event) for event in harness.events] == [SnapshotUnavailable]
    harness.receive_json(op="order_status", data={"orderId": "o1", "status": "PENDING"})  # too late
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(op="order_status", data={"orderId": "o1", "status": "FILLED"})
    assert subscriber.states() == [("snapshot", "FILLED")]


def test_unreadable_state_is_requested_again_after_a_second() -> None:
    harness = ChannelsHarness()
    harness.subscribed("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.receive_json(op="balances", data={"balances": {"USDT": "5"}})
    assert harness.send_all() == []
    assert harness.engine.timers.next_deadline == harness.now + 1
    harness.pass_time(1)
    assert harness.send_all() == [("balances", "")]


def test_one_request_serves_later_subscribers_too() -> None:
    harness = ChannelsHarness()
    first = harness.subscribed("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    second = harness.subscribe("balances", snapshot=True)
    harness.reply_balances("5")
    assert len(first.receive_all()) == len(second.receive_all()) == 1
    assert harness.send_all() == []


def test_snapshot_after_unsubscribe_is_ignored() -> None:
    harness = ChannelsHarness()
    harness.subscribed("orders:o1", snapshot=True).handle.close()
    assert harness.send_all() == [("unsubscribe", "orders:o1")]
    again = harness.subscribe("orders:o1", snapshot=True)
    harness.reply("unsubscribe", "orders:o1")
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert again.states() == [("snapshot", "PENDING")]


def test_first_state_of_a_second_subscriber_does_not_wait() -> None:
    harness = ChannelsHarness()
    harness.subscribed("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("5")
    second = harness.subscribe("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("5")
    assert [message.origin for message in second.receive_all()] == ["snapshot"]


def test_no_state_is_requested_before_the_answer() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.receive_json(op="balances", data={"balances": [{"asset": "USDT", "total": "NaN"}]})
    subscriber.handle.close()
    assert harness.send_all() == [("unsubscribe", "balances")]
    harness.subscribe("balances", snapshot=True)
    harness.pass_time(1)  # the state would be requested again now
    assert harness.send_all() == []
    harness.reply("unsubscribe", "balances")
    harness.answer("subscribe", "balances")
    assert harness.send_all() == [("balances", "")]


def test_reply_after_the_channel_was_left_is_ignored() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1", snapshot=True)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    subscriber.handle.close()
    harness.answer("unsubscribe", "orders:o1")
    harness.receive_json(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert harness.unexpected == []
    assert harness.events == []
    assert harness.is_clean()


def test_slow_consumer_of_balances_gets_the_gap_and_a_snapshot() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", buffer_size=2)
    for total in ("1", "2", "3", "4"):
        harness.push_balance(total)
    messages = subscriber.receive_all()
    assert [message.data[0].total for message in messages] == [3, 4]
    gap = messages[0].gap
    assert gap is not None
    assert (set(gap.reasons), gap.dropped) == ({"overflow"}, 2)
    assert messages[1].gap is None
    assert harness.send_all() == [("balances", "")]
    harness.reply_balances("4")
    assert [message.origin for message in subscriber.receive_all()] == ["snapshot"]


def test_overflows_request_one_snapshot_a_second() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", buffer_size=1)
    sent_at = []
    for _ in range(30):
        harness.push_balance("1")
        harness.push_balance("2")
        subscriber.receive_all()
        harness.pass_time(0.1)
        if harness.send_all():
            sent_at.append(harness.now)
            harness.reply_balances("2")
            subscriber.receive_all()
    assert len(sent_at) == 3
    assert all(later - earlier >= 0.999 for earlier, later in itertools.pairwise(sent_at))


def test_overflowed_order_needs_no_snapshot() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("orders:o1", buffer_size=1)
    harness.push_order("PENDING", at=1)
    harness.push_order("FILLED", at=2)
    assert subscriber.states() == [("push", "FILLED")]
    assert harness.send_all() == []


def test_delayed_snapshot_of_a_closed_channel_is_not_sent() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", snapshot=True)
    assert harness.send_all() == [("balances", "")]
    harness.receive_json(op="balances", data={"balances": [{"asset": "USDT", "total": "NaN"}]})
    subscriber.handle.close()
    harness.answer("unsubscribe", "balances")
    harness.pass_time(1)
    assert harness.send_all() == []
    assert harness.engine.timers.next_deadline == math.inf
    assert harness.is_clean()


def test_delayed_snapshot_without_takers_is_not_sent() -> None:
    harness = ChannelsHarness()
    wants_it = harness.subscribed("balances", snapshot=True)
    harness.subscribe("balances")
    assert harness.send_all() == [("balances", "")]
    harness.receive_json(op="balances", data={"balances": [{"asset": "USDT", "total": "NaN"}]})
    wants_it.handle.close()
    harness.pass_time(1)
    assert harness.send_all() == []


def test_overdue_snapshot_without_subscribers_is_no_event() -> None:
    harness = ChannelsHarness()
    subscriber = harness.subscribed("balances", snapshot=True)
    # A user's request is in the lane, so the snapshot waits.
    harness.submit(requests.balances(math.inf))
    subscriber.handle.close()
    assert ("unsubscribe", "balances") in harness.send_all()
    assert harness.events == []


# --- Tracked orders --------------------------------------------------------------------------


def test_kinds_of_lookup_alternate_without_a_reply() -> None:
    harness = ChannelsHarness()
    tracker = harness.track_order("orders:c1")
    lanes = []
    for _ in range(3):
        sent = harness.send_all()
        if sent == [("subscribe", "orders:c1")]:  # the broker can't know this id
            harness.reply("subscribe", "orders:c1")
            sent = harness.send_all()
        assert sent == [state_request("orders:c1")]
        request = harness.channels._channels["orders:c1"].snapshot
        assert request is not None
        lanes.append((request.order_id, request.client_order_id))
        harness.pass_time(TIMEOUT + 1)
        assert not tracker.subscriber.wants_snapshot  # its order tracker decides when to poll again
        harness.lose()
        harness.connect()
    assert lanes == [("c1", None), (None, "c1"), ("c1", None)]


@pytest.mark.parametrize("source", ["push", "snapshot", "user"])
def test_kind_of_lookup_stays_after_a_state(source: str) -> None:
    harness = ChannelsHarness()
    tracker = harness.track_order("orders:o1")
    if source == "user":  # a user's subscription
        harness.subscribe("orders:o1")
    harness.answer("subscribe", "orders:o1")
    if source == "snapshot":
        assert harness.send_all() == [ORDER_STATE_REQUEST]
        harness.reply_order("PENDING")
        harness.pass_time(5)
        harness.request_state(tracker)
    if source == "push":
        harness.push_order("PENDING")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.pass_time(TIMEOUT)
    assert not harness.channels._channels["orders:o1"].is_client_id


def test_client_order_id_is_not_subscribed_to() -> None:
    harness = ChannelsHarness()
    tracker = harness.track_order("orders:c1", is_client_id=True)
    assert harness.send_all() == [state_request("orders:c1")]
    harness.receive_json(op="order_status", data={"status": "PENDING", "clientOrderId": "c1"})
    assert tracker.states() == [("snapshot", "PENDING")]
    assert harness.send_all() == []


def test_repeated_failure_is_an_event_for_users_only() -> None:
    harness = ChannelsHarness()
    harness.track_order("orders:o1").subscriber.is_unavailable = True  # which was reported
    harness.answer("subscribe", "orders:o1")
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(op="order_status", error="Order not found")
    assert harness.events == []
    harness.pass_time(5)
    harness.subscribe("orders:o1", snapshot=True)
    assert harness.send_all() == [ORDER_STATE_REQUEST]
    harness.receive_json(op="order_status", error="Order not found")
    assert [type(event) for event in harness.events] == [SnapshotUnavailable]
