"""Snapshots, as channels ask for them, with a real session and real feeds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from tests.desk import ASKS_FOR_ORDER, TIMEOUT, Desk, asks_for
from trio_broker import operations
from trio_broker.exceptions import BrokerError
from trio_broker.membership import Member
from trio_broker.models import SnapshotUnavailable
from trio_broker.request import ignore
from trio_broker.subscription import Feed


def test_the_state_is_asked_for_after_the_acknowledgement() -> None:
    desk = Desk()
    subscriber = desk.join("orders:o1", snapshot=True)
    desk.answer("subscribe", "orders:o1")
    assert subscriber.answers == [None]
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert subscriber.states() == [("snapshot", "PENDING")]
    assert desk.sent() == []


def test_only_those_who_want_it_get_the_state() -> None:
    desk = Desk()
    without = desk.held("balances")
    with_it = desk.join("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("5")
    assert [message.origin for message in with_it.taken()] == ["snapshot"]
    assert without.taken() == []


def test_a_state_that_a_push_overtook_is_asked_for_again() -> None:
    desk = Desk()
    subscriber = desk.held("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.push_balance("2")
    desk.reply_balances("1")
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("2")
    totals = [(message.origin, message.data[0].total) for message in subscriber.taken()]
    assert totals == [("push", 2), ("snapshot", 2)]


def test_a_push_before_the_state_was_asked_for_overtakes_nothing() -> None:
    desk = Desk()
    subscriber = desk.held("balances", snapshot=True)
    desk.push_balance("2")
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("2")
    assert [message.origin for message in subscriber.taken()] == ["push", "snapshot"]


def test_overtaken_again_and_again_it_is_asked_for_at_growing_distances() -> None:
    desk = Desk()
    subscriber = desk.held("balances", snapshot=True)
    waits = []
    for _ in range(8):
        began = desk.now
        while desk.sent() != [("balances", "")]:
            assert desk.channels.next_deadline < math.inf
            desk.pass_time(desk.channels.next_deadline - desk.now)
        waits.append(round(desk.now - began, 3))
        desk.push_balance("2")
        desk.reply_balances("1")
    assert waits == [0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    desk.pass_time(1.0)
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("2")
    assert subscriber.taken()[-1].origin == "snapshot"


def test_an_old_state_of_an_order_is_not_delivered_after_a_newer_push() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1", snapshot=True)
    desk.push_order("FILLED", at=9)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": 1})
    assert subscriber.states() == [("push", "FILLED")]
    assert desk.sent() == []


def test_a_refused_state_is_an_event_and_the_pushes_go_on() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1", snapshot=True)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", error="Order not found")
    (event,) = desk.events
    assert isinstance(event, SnapshotUnavailable)
    assert (event.channel, "Order not found" in str(event.error)) == ("orders:o1", True)
    assert desk.sent() == []
    desk.push_order("PENDING")
    assert subscriber.states() == [("push", "PENDING")]


@pytest.mark.parametrize("name", ["trades:ETH", "orders:"])
def test_a_channel_without_a_state_says_so_and_the_pushes_go_on(name: str) -> None:
    desk = Desk()
    subscriber = desk.held(name, snapshot=True)
    assert desk.sent() == []
    assert [type(event) for event in desk.events] == [SnapshotUnavailable]
    desk.say(ch=name, data={"status": "PENDING"})
    assert len(subscriber.taken()) == 1


def test_a_state_that_never_comes_is_told_and_asked_for_again() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1", snapshot=True)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.pass_time(TIMEOUT)
    assert [type(event) for event in desk.events] == [SnapshotUnavailable]
    desk.say(op="order_status", data={"orderId": "o1", "status": "PENDING"})  # too late
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", data={"orderId": "o1", "status": "FILLED"})
    assert subscriber.states() == [("snapshot", "FILLED")]


def test_a_state_that_cannot_be_read_is_asked_for_again_a_second_later() -> None:
    desk = Desk()
    desk.held("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.say(op="balances", data={"balances": [{"asset": "USDT", "total": "NaN"}]})
    assert desk.sent() == []
    assert desk.channels.next_deadline == desk.now + 1
    desk.pass_time(1)
    assert desk.sent() == [("balances", "")]


def test_one_under_way_serves_those_who_come_meanwhile() -> None:
    desk = Desk()
    first = desk.held("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    second = desk.join("balances", snapshot=True)
    desk.reply_balances("5")
    assert len(first.taken()) == len(second.taken()) == 1
    assert desk.sent() == []


def test_given_up_during_the_snapshot_its_reply_goes_to_nobody() -> None:
    desk = Desk()
    desk.held("orders:o1", snapshot=True).handle.close()
    assert desk.sent() == [("unsubscribe", "orders:o1")]
    again = desk.join("orders:o1", snapshot=True)
    desk.reply("unsubscribe", "orders:o1")
    desk.answer("subscribe", "orders:o1")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert again.states() == [("snapshot", "PENDING")]


def test_a_second_subscribers_first_state_does_not_wait() -> None:
    desk = Desk()
    desk.held("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("5")
    second = desk.join("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("5")
    assert [message.origin for message in second.taken()] == ["snapshot"]


def test_no_state_is_asked_for_before_the_acknowledgement_of_a_new_subscription() -> None:
    desk = Desk()
    subscriber = desk.held("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.say(op="balances", data={"balances": [{"asset": "USDT", "total": "NaN"}]})
    subscriber.handle.close()
    assert desk.sent() == [("unsubscribe", "balances")]
    desk.join("balances", snapshot=True)
    desk.pass_time(1)  # when the state would have been asked for again
    assert desk.sent() == []
    desk.reply("unsubscribe", "balances")
    desk.answer("subscribe", "balances")
    assert desk.sent() == [("balances", "")]


def test_a_reply_after_the_channel_was_given_up_is_nobodys_state() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1", snapshot=True)
    assert desk.sent() == [ASKS_FOR_ORDER]
    subscriber.handle.close()
    desk.answer("unsubscribe", "orders:o1")
    desk.say(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert desk.odd == []
    assert desk.events == []
    assert desk.is_clean()


def test_a_slow_consumer_of_balances_gets_the_gap_and_then_the_whole_state() -> None:
    desk = Desk()
    subscriber = desk.held("balances", buffer_size=2)
    for total in ("1", "2", "3", "4"):
        desk.push_balance(total)
    messages = subscriber.taken()
    assert [message.data[0].total for message in messages] == [3, 4]
    gap = messages[0].gap
    assert gap is not None
    assert (set(gap.reasons), gap.dropped) == ({"overflow"}, 2)
    assert messages[1].gap is None
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("4")
    assert [message.origin for message in subscriber.taken()] == ["snapshot"]


def test_after_overflows_the_whole_state_comes_at_most_once_a_second() -> None:
    desk = Desk()
    subscriber = desk.held("balances", buffer_size=1)
    asked = []
    for _ in range(30):
        desk.push_balance("1")
        desk.push_balance("2")
        subscriber.taken()
        desk.pass_time(0.1)
        if desk.sent():
            asked.append(desk.now)
            desk.reply_balances("2")
            subscriber.taken()
    assert len(asked) == 3
    assert all(later - earlier >= 0.999 for earlier, later in itertools.pairwise(asked))


def test_an_order_that_overflowed_needs_no_snapshot_as_its_newest_state_is_there() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1", buffer_size=1)
    desk.push_order("PENDING", at=1)
    desk.push_order("FILLED", at=2)
    assert subscriber.states() == [("push", "FILLED")]
    assert desk.sent() == []


def test_a_delayed_snapshot_of_a_channel_that_is_gone_is_not_asked_for() -> None:
    desk = Desk()
    subscriber = desk.held("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.say(op="balances", data={"balances": [{"asset": "USDT", "total": "NaN"}]})
    subscriber.handle.close()
    desk.answer("unsubscribe", "balances")
    desk.pass_time(1)
    assert desk.sent() == []
    assert desk.channels.next_deadline == math.inf
    assert desk.is_clean()


def test_a_delayed_snapshot_that_nobody_wants_any_more_is_not_asked_for() -> None:
    desk = Desk()
    wants_it = desk.held("balances", snapshot=True)
    desk.join("balances")
    assert desk.sent() == [("balances", "")]
    desk.say(op="balances", data={"balances": [{"asset": "USDT", "total": "NaN"}]})
    wants_it.handle.close()
    desk.pass_time(1)
    assert desk.sent() == []


def test_a_snapshot_nobody_heard_of_in_time_is_no_event_when_everybody_has_left() -> None:
    desk = Desk()
    subscriber = desk.held("balances", snapshot=True)
    # A user's own question holds the lane, so the snapshot waits for its turn.
    desk.session.submit(operations.balances(math.inf), desk.now)
    subscriber.handle.close()
    assert ("unsubscribe", "balances") in desk.sent()
    assert desk.events == []


# --- Tracked orders --------------------------------------------------------------------------


def test_while_nothing_is_heard_both_ways_of_asking_take_turns() -> None:
    desk = Desk()
    member = desk.watch("orders:c1").member
    assert member is not None
    lanes = []
    for _ in range(3):
        sent = desk.sent()
        if sent == [("subscribe", "orders:c1")]:  # not by an id that the broker can't know
            desk.reply("subscribe", "orders:c1")
            sent = desk.sent()
        assert sent == [asks_for("orders:c1")]
        request = desk.channels._channels["orders:c1"].snapshot
        assert request is not None
        lanes.append((request.order_id, request.client_order_id))
        desk.pass_time(TIMEOUT + 1)
        assert not member.wants_snapshot  # it knows by itself when to ask again
        desk.lose()
        desk.connect()
    assert lanes == [("c1", None), (None, "c1"), ("c1", None)]


@pytest.mark.parametrize("heard", ["push", "snapshot", "user"])
def test_once_anything_was_heard_the_way_of_asking_stays(heard: str) -> None:
    desk = Desk()
    member = desk.watch("orders:o1").member
    assert member is not None
    if heard == "user":  # for whom asking differs in no way from before
        desk.join("orders:o1")
    desk.answer("subscribe", "orders:o1")
    if heard == "snapshot":
        assert desk.sent() == [ASKS_FOR_ORDER]
        desk.reply_order("PENDING")
        desk.pass_time(5)
        desk.channels.ask(member)
    if heard == "push":
        desk.push_order("PENDING")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.pass_time(TIMEOUT)
    assert not desk.channels._channels["orders:o1"].by_client


def test_by_client_order_id_nothing_is_subscribed_to() -> None:
    desk = Desk()
    tracker = desk.watch("orders:c1", by_client=True)
    assert desk.sent() == [asks_for("orders:c1")]
    desk.say(op="order_status", data={"status": "PENDING", "clientOrderId": "c1"})
    assert tracker.states() == [("snapshot", "PENDING")]
    assert desk.sent() == []


def test_a_users_failed_snapshot_is_told_and_a_tracked_orders_need_not_be() -> None:
    class Quiet(Member):
        def unavailable(self, error: BrokerError) -> bool:  # noqa: ARG002 - as it is called
            return False

    desk = Desk()
    feed: Feed[Any] = Feed("orders:o1")
    desk.channels.admit(Quiet(feed, ignore, wants_snapshot=True, yields=True))
    desk.answer("subscribe", "orders:o1")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", error="Order not found")
    assert desk.events == []
    desk.pass_time(5)
    desk.join("orders:o1", snapshot=True)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", error="Order not found")
    assert [type(event) for event in desk.events] == [SnapshotUnavailable]
