"""Channels, with a real session and real feeds: no socket, no task, no clock but the test's."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.desk import ASKS_FOR_ORDER, CLOSED, GRACE, LOST, TIMEOUT, Desk, asks_for
from trio_broker.exceptions import (
    ChannelError,
    ConnectionLostError,
    InvalidChannelError,
    NotSentError,
    RequestTimeoutError,
    ServerError,
    SlowConsumerError,
    SubscriptionBrokenError,
    SubscriptionLimitError,
)
from trio_broker.membership import Channel
from trio_broker.models import ChannelRefused, Gap, OrderStatus

# --- Coming and going ------------------------------------------------------------------------


def test_the_last_one_to_leave_ends_the_channel_at_the_broker() -> None:
    desk = Desk()
    first = desk.held("orders:o1")
    second = desk.join("orders:o1")
    assert first.answers == second.answers == [None]
    assert (desk.channels.wanted, desk.channels.subscriptions) == (1, 2)
    first.handle.close()
    assert desk.sent() == []
    second.handle.close()
    desk.answer("unsubscribe", "orders:o1")
    assert desk.is_clean()


def test_several_share_one_subscription_and_each_gets_every_message() -> None:
    desk = Desk()
    first, second = desk.join("orders:o1"), desk.join("orders:o1")
    assert first.answers == []
    desk.answer("subscribe", "orders:o1")
    assert first.answers == second.answers == [None]
    desk.push_order("PENDING")
    assert first.states() == second.states() == [("push", "PENDING")]


def test_left_before_its_request_is_sent_nothing_is_sent() -> None:
    desk = Desk()
    desk.join("orders:o1").handle.close()
    assert desk.sent() == []
    assert desk.is_clean()


def test_left_during_the_acknowledgement_it_is_given_up_after_it() -> None:
    desk = Desk()
    subscriber = desk.join("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    subscriber.handle.close()
    assert desk.sent() == []
    desk.reply("subscribe", "orders:o1")
    desk.answer("unsubscribe", "orders:o1")
    assert desk.is_clean()
    assert subscriber.answers == []


def test_come_back_during_the_acknowledgement_the_broker_is_not_troubled() -> None:
    desk = Desk()
    subscriber = desk.join("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    subscriber.handle.close()
    again = desk.join("orders:o1")
    desk.reply("subscribe", "orders:o1")
    assert again.answers == [None]
    assert desk.sent() == []


def test_come_back_while_it_is_given_up_it_is_subscribed_anew() -> None:
    desk = Desk()
    desk.held("orders:o1").handle.close()
    assert desk.sent() == [("unsubscribe", "orders:o1")]
    again = desk.join("orders:o1")
    desk.push_order("PENDING")
    desk.reply("unsubscribe", "orders:o1")
    assert again.answers == []
    desk.answer("subscribe", "orders:o1")
    assert again.answers == [None]
    assert again.states() == []  # what was pushed before belongs to the subscription that is gone
    desk.push_order("FILLED")
    assert again.states() == [("push", "FILLED")]


def test_leaving_twice_counts_once() -> None:
    desk = Desk()
    subscriber, other = desk.held("orders:o1"), desk.join("orders:o1")
    assert subscriber.member is not None
    desk.channels.leave(subscriber.member)
    desk.channels.leave(subscriber.member)
    assert desk.channels.subscriptions == 1
    other.handle.close()
    desk.answer("unsubscribe", "orders:o1")
    desk.channels.leave(subscriber.member)
    assert desk.is_clean()


def test_a_refused_channel_tells_everybody_who_waits_and_is_gone() -> None:
    desk = Desk()
    first, second = desk.join("nonsense"), desk.join("nonsense")
    desk.answer("subscribe", "nonsense", "Invalid channel format")
    for subscriber in (first, second):
        assert isinstance(subscriber.answers[0], InvalidChannelError)
        subscriber.handle.close()
    assert desk.is_clean()


def test_a_goodbye_that_never_left_is_said_after_all() -> None:
    desk = Desk()
    subscriber = desk.held("balances")
    subscriber.handle.close()
    desk.pass_time(TIMEOUT + 1)  # it waited for its turn until its time was up
    desk.answer("unsubscribe", "balances")
    assert desk.is_clean()


def test_a_refused_goodbye_is_a_goodbye() -> None:
    desk = Desk()
    desk.held("orders:o1").handle.close()
    desk.answer("unsubscribe", "orders:o1", "Not subscribed")
    assert desk.is_clean()


def test_acknowledged_too_late_it_is_given_up_at_the_broker() -> None:
    desk = Desk()
    subscriber = desk.join("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    desk.pass_time(TIMEOUT)
    assert isinstance(subscriber.answers[0], RequestTimeoutError)
    assert desk.sent() == []  # its reply may still come, and must not pass for another's
    desk.reply("subscribe", "orders:o1")
    desk.answer("unsubscribe", "orders:o1")
    assert desk.is_clean()


def test_never_acknowledged_it_is_given_up_in_the_end_but_costs_no_connection() -> None:
    desk = Desk()
    broken: list[ConnectionLostError] = []
    desk.session.listener.broken = broken.append
    desk.join("orders:o1")
    desk.sent()
    for _ in range(10):
        desk.pass_time(TIMEOUT)
        assert desk.sent() == []  # a goodbye now might be answered by the late acknowledgement
    assert broken == []
    desk.reply("subscribe", "orders:o1")
    desk.answer("unsubscribe", "orders:o1")
    assert desk.is_clean()


def test_never_acknowledged_after_an_outage_it_costs_the_connection_in_the_end() -> None:
    desk = Desk()
    desk.held("orders:o1")
    broken: list[ConnectionLostError] = []
    desk.session.listener.broken = broken.append
    desk.lose()
    desk.connect()
    desk.sent()
    desk.pass_time(TIMEOUT + 1)
    desk.pass_time(GRACE - 2)
    assert broken == []
    desk.pass_time(2)
    assert broken


@pytest.mark.parametrize("limit", [1, 100])
def test_what_was_never_acknowledged_is_asked_for_again_and_not_taken_for_held(limit: int) -> None:
    desk = Desk(limit)
    desk.join("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    desk.pass_time(TIMEOUT + 1)
    newcomer = desk.join("orders:o1")
    desk.pass_time(TIMEOUT + 1)  # the goodbye had no turn
    assert newcomer.answers == []
    desk.reply("subscribe", "orders:o1", "Invalid channel format")  # to the first, at last
    assert newcomer.answers == []
    desk.answer("subscribe", "orders:o1")
    assert newcomer.answers == [None]


def test_what_is_overdue_says_whether_it_was_sent() -> None:
    desk = Desk(limit=1)
    first = desk.join("orders:o1")
    assert first.member is not None
    assert isinstance(desk.channels.overdue(first.member), NotSentError)
    desk.sent()
    assert isinstance(desk.channels.overdue(first.member), RequestTimeoutError)
    first.handle.close()
    waiting = desk.join("orders:o2")
    assert waiting.member is not None
    assert isinstance(desk.channels.overdue(waiting.member), NotSentError)
    desk.reply("subscribe", "orders:o1")
    assert desk.sent() == [("unsubscribe", "orders:o1")]
    again = desk.channels._channels["orders:o1"].request
    assert again is not None
    assert again.op == "unsubscribe"
    assert isinstance(desk.channels.overdue(first.member), NotSentError)


# --- The limit -------------------------------------------------------------------------------


def test_one_over_the_limit_is_refused_and_nothing_is_sent() -> None:
    desk = Desk(limit=2)
    desk.held("orders:o1")
    desk.held("orders:o2")
    with pytest.raises(SubscriptionLimitError) as caught:
        desk.join("orders:o3")
    assert caught.value.limit == 2
    assert desk.sent() == []
    assert desk.channels.subscriptions == 2
    assert desk.join("orders:o1").answers == [None]


def test_at_the_limit_a_new_one_waits_until_an_old_one_is_given_up() -> None:
    desk = Desk(limit=1)
    desk.held("orders:o1").handle.close()
    new = desk.join("orders:o2")
    desk.answer("unsubscribe", "orders:o1")
    assert new.answers == []
    desk.answer("subscribe", "orders:o2")
    assert new.answers == [None]


def test_at_the_limit_a_new_one_waits_until_an_old_one_is_refused() -> None:
    desk = Desk(limit=1)
    old = desk.join("nonsense")
    assert desk.sent() == [("subscribe", "nonsense")]
    old.handle.close()
    new = desk.join("orders:o2")
    assert desk.sent() == []
    desk.reply("subscribe", "nonsense", "Invalid channel format")
    desk.answer("subscribe", "orders:o2")
    assert new.answers == [None]


def test_one_that_waits_for_room_may_leave() -> None:
    desk = Desk(limit=1)
    desk.held("orders:o1").handle.close()
    desk.join("orders:o2").handle.close()
    desk.answer("unsubscribe", "orders:o1")
    assert desk.is_clean()


# --- Dropping a channel ----------------------------------------------------------------------


def noting(notes: list[str], note: str = "left") -> Callable[[], None]:
    return lambda: notes.append(note)


def test_dropped_it_ends_for_everybody_and_at_the_broker() -> None:
    desk, notes = Desk(), list[str]()
    first, second = desk.held("orders:o1"), desk.join("orders:o1")
    desk.push_order("PENDING")
    desk.channels.drop("orders:o1", noting(notes))
    assert first.handle.receive_nowait().data.status is OrderStatus.PENDING
    assert first.is_at_its_end()
    second.handle.receive_nowait()
    assert second.is_at_its_end()
    assert notes == []
    desk.answer("unsubscribe", "orders:o1")
    assert notes == ["left"]
    assert desk.is_clean()


def test_dropping_what_nobody_has_is_done_at_once() -> None:
    desk, notes = Desk(), list[str]()
    desk.channels.drop("orders:o1", noting(notes))
    assert notes == ["left"]
    assert desk.sent() == []


def test_dropped_during_the_acknowledgement_whoever_waits_gets_an_ended_stream() -> None:
    desk, notes = Desk(), list[str]()
    subscriber = desk.join("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    desk.channels.drop("orders:o1", noting(notes))
    assert subscriber.answers == [None]
    assert subscriber.is_at_its_end()
    desk.reply("subscribe", "orders:o1")
    assert notes == []
    desk.answer("unsubscribe", "orders:o1")
    assert notes == ["left"]
    assert desk.is_clean()


def test_dropped_and_wanted_anew_the_one_who_dropped_it_need_not_wait() -> None:
    desk, notes = Desk(), list[str]()
    desk.join("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    desk.channels.drop("orders:o1", noting(notes))
    desk.join("orders:o1")
    desk.reply("subscribe", "orders:o1")
    assert notes == ["left"]
    assert desk.sent() == []


# --- Pushes ----------------------------------------------------------------------------------


def test_a_push_to_a_channel_that_nobody_has_is_odd() -> None:
    desk = Desk()
    desk.push_order("PENDING")
    assert desk.odd == ["it was pushed to a channel that nobody has"]


def test_a_push_that_comes_while_it_is_given_up_is_not_odd() -> None:
    desk = Desk()
    desk.held("orders:o1").handle.close()
    desk.push_order("PENDING")
    assert desk.odd == []


def test_a_push_with_an_error_is_raised_in_its_place_and_the_stream_goes_on() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1")
    desk.push_order("PENDING")
    desk.say(ch="orders:o1", error="try later")
    desk.push_order("FILLED")
    assert subscriber.handle.receive_nowait().data.status is OrderStatus.PENDING
    with pytest.raises(ChannelError, match="try later") as caught:
        subscriber.handle.receive_nowait()
    assert caught.value.channel == "orders:o1"
    assert subscriber.states() == [("push", "FILLED")]
    assert desk.channels.wanted == 1


def test_a_push_that_cannot_be_read_is_lost_alone() -> None:
    desk = Desk()
    subscriber = desk.held("balances")
    desk.say(ch="balances", data=[{"asset": "USDT", "total": "NaN"}])
    desk.push_balance("7")
    assert len(desk.odd) == 1
    assert [message.data[0].total for message in subscriber.taken()] == [7]


def test_a_channel_that_this_library_does_not_know_gives_what_came() -> None:
    desk = Desk()
    subscriber = desk.held("trades:ETH")
    desk.say(ch="trades:ETH", data={"n": 1})
    (message,) = subscriber.taken()
    assert (message.data, message.origin, message.channel) == ({"n": 1}, "push", "trades:ETH")
    assert message.raw == '{"ch": "trades:ETH", "data": {"n": 1}}'
    assert message.received_at == dt.datetime.fromtimestamp(100, dt.UTC)


def test_what_came_together_has_one_time() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1", snapshot=True)
    assert desk.sent() == [ASKS_FOR_ORDER]
    times = (dt.datetime.fromtimestamp(second, dt.UTC) for second in itertools.count())
    desk.channels._wall_time = lambda: next(times)
    push = {"ch": "orders:o1", "data": {"status": "PENDING", "updatedAt": 2}}
    reply = {"op": "order_status", "data": {"orderId": "o1", "status": "PENDING", "updatedAt": 1}}
    error = {"ch": "orders:o1", "error": "try later"}
    desk.session.receive([json.dumps(one) for one in (reply, push, error, push)], desk.now)
    first, second = subscriber.handle.receive_nowait(), subscriber.handle.receive_nowait()
    assert [first.origin, second.origin] == ["snapshot", "push"]
    assert first.received_at == second.received_at
    desk.session.receive([json.dumps(push)], desk.now)
    with pytest.raises(ChannelError):
        subscriber.handle.receive_nowait()
    third, fourth = subscriber.handle.receive_nowait(), subscriber.handle.receive_nowait()
    assert third.received_at == first.received_at < fourth.received_at


def test_older_states_of_an_order_never_come_after_newer_ones() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1")
    desk.push_order("PROCESSING", at=20)
    desk.push_order("PENDING", at=10)
    desk.push_order("FILLED", at=30)
    desk.push_order("PROCESSING", at=30)
    assert subscriber.states() == [("push", "PROCESSING"), ("push", "FILLED")]


def test_an_overflow_that_is_an_error_gives_the_channel_up() -> None:
    desk = Desk()
    subscriber = desk.held("balances", buffer_size=1, overflow="error")
    other = desk.join("balances")
    desk.push_balance("1")
    desk.push_balance("2")
    assert desk.channels.subscriptions == 1
    subscriber.handle.receive_nowait()
    with pytest.raises(SlowConsumerError):
        subscriber.handle.receive_nowait()
    assert len(other.taken()) == 2
    other.handle.close()
    desk.answer("unsubscribe", "balances")
    assert desk.is_clean()


# --- The end ---------------------------------------------------------------------------------


def test_closed_every_stream_ends_after_what_is_buffered() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1")
    desk.push_order("PENDING")
    desk.channels.finish(None, LOST, CLOSED)
    subscriber.handle.receive_nowait()
    assert subscriber.is_at_its_end()
    subscriber.handle.close()
    assert desk.is_clean()


def test_failed_every_stream_breaks_from_the_cause_after_what_is_buffered() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1")
    desk.push_order("PENDING")
    desk.channels.finish(LOST, LOST, CLOSED)
    subscriber.handle.receive_nowait()
    for _ in range(2):
        with pytest.raises(SubscriptionBrokenError) as caught:
            subscriber.handle.receive_nowait()
        assert caught.value.__cause__ is LOST


def test_at_the_end_everybody_who_waits_is_told_whether_their_request_was_sent() -> None:
    desk, notes = Desk(limit=2), list[str]()
    desk.held("orders:o1").handle.close()
    sent = desk.join("orders:o2")
    assert desk.sent() == [("unsubscribe", "orders:o1"), ("subscribe", "orders:o2")]
    waits = desk.join("orders:o3")
    desk.channels.drop("orders:o1", noting(notes))
    desk.channels.finish(None, LOST, CLOSED)
    assert sent.answers == [LOST]
    assert waits.answers == [CLOSED]
    assert notes == ["left"]
    desk.session.shut(LOST, CLOSED)
    assert sent.answers == [LOST]
    assert desk.is_clean()


def test_at_the_end_nothing_more_is_asked_for() -> None:
    desk = Desk(limit=1)
    with_snapshot = desk.held("orders:o1", snapshot=True)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.channels.finish(None, LOST, CLOSED)
    desk.session.shut(LOST, CLOSED)
    with_snapshot.handle.close()
    assert desk.events == []
    assert desk.is_clean()


# --- Members that yield ------------------------------------------------------------------------


def test_a_tracked_order_is_subscribed_to_and_then_asked_about() -> None:
    desk = Desk()
    tracker = desk.watched("orders:o1")
    desk.push_order("FILLED")
    assert tracker.states() == [("push", "FILLED")]
    assert desk.channels.wanted == desk.channels.subscriptions == 0
    tracker.handle.close()
    desk.answer("unsubscribe", "orders:o1")
    assert desk.is_clean()


def test_without_a_place_it_is_asked_about_all_the_same() -> None:
    desk = Desk(limit=1)
    desk.held("orders:o1")
    tracker = desk.watch("orders:o2")
    assert desk.sent() == [asks_for("orders:o2")]
    desk.reply_order("PENDING", "orders:o2")
    assert tracker.states() == [("snapshot", "PENDING")]
    assert desk.sent() == []
    assert tracker.member is not None
    desk.pass_time(5)
    desk.channels.ask(tracker.member)
    assert desk.sent() == [asks_for("orders:o2")]
    desk.reply_order("FILLED", "orders:o2")
    assert tracker.states() == [("snapshot", "FILLED")]
    tracker.handle.close()
    desk.channels.ask(tracker.member)
    assert desk.sent() == []


def test_at_the_limit_a_users_subscription_evicts_a_tracked_order() -> None:
    desk = Desk(limit=2)
    evicted, other = desk.watched("orders:o1"), desk.watched("orders:o2")
    user = desk.join("balances")
    assert desk.sent() == [("unsubscribe", "orders:o1")]
    desk.push_order("PROCESSING")  # it was on its way
    assert evicted.states() == [("push", "PROCESSING")]
    desk.reply("unsubscribe", "orders:o1")
    desk.answer("subscribe", "balances")
    assert user.answers == [None]
    assert desk.sent() == []
    assert evicted.member is not None
    desk.pass_time(5)
    desk.channels.ask(evicted.member)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("FILLED")
    assert evicted.states() == [("snapshot", "FILLED")]
    desk.push_order("FILLED", order_id="o2")
    assert other.states() == [("push", "FILLED")]


def test_an_evicted_one_is_still_told_what_it_was_just_asked_about() -> None:
    desk = Desk(limit=1)
    tracker = desk.watched("orders:o1")
    assert tracker.member is not None
    desk.pass_time(5)
    desk.channels.ask(tracker.member)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.join("balances")
    assert desk.sent() == [("unsubscribe", "orders:o1")]
    desk.reply_order("FILLED")
    assert tracker.states() == [("snapshot", "FILLED")]


def test_the_limit_counts_users_channels_only() -> None:
    desk = Desk(limit=1)
    desk.watched("orders:o1")
    desk.join("balances")
    with pytest.raises(SubscriptionLimitError):
        desk.join("orders:o1")


def test_one_that_is_being_asked_for_is_evicted_as_soon_as_it_is_there() -> None:
    desk = Desk(limit=1)
    desk.watch("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    user = desk.join("balances")
    assert desk.sent() == []
    desk.reply("subscribe", "orders:o1")
    assert ("unsubscribe", "orders:o1") in desk.sent()
    desk.reply("unsubscribe", "orders:o1")
    assert desk.sent() == [("subscribe", "balances")]
    desk.reply("subscribe", "balances")
    assert user.answers == [None]


def test_a_goodbye_to_an_evicted_one_that_never_left_is_said_again() -> None:
    desk = Desk(limit=1)
    desk.watched("orders:o1")
    user = desk.join("balances")
    desk.pass_time(TIMEOUT + 1)
    assert desk.sent() == [("unsubscribe", "orders:o1")]
    desk.reply("unsubscribe", "orders:o1")
    desk.answer("subscribe", "balances")
    assert user.answers == [None]


def test_when_room_comes_users_are_first_and_then_tracked_orders() -> None:
    desk = Desk(limit=1)
    first = desk.held("orders:o1")
    tracker = desk.watch("orders:o2")
    assert desk.sent() == [asks_for("orders:o2")]
    desk.reply_order("PENDING", "orders:o2")
    first.handle.close()
    second = desk.join("balances")
    desk.answer("unsubscribe", "orders:o1")
    desk.answer("subscribe", "balances")
    second.handle.close()
    desk.answer("unsubscribe", "balances")
    desk.pass_time(5)
    desk.answer("subscribe", "orders:o2")
    assert desk.sent() == [asks_for("orders:o2")]  # while it wasn't held, anything may have been
    desk.reply_order("FILLED", "orders:o2")
    assert tracker.states() == [("snapshot", "PENDING"), ("snapshot", "FILLED")]


def test_room_that_comes_during_a_question_is_taken_after_the_answer() -> None:
    desk = Desk(limit=1)
    user = desk.held("balances")
    desk.watch("orders:o1")
    assert desk.sent() == [ASKS_FOR_ORDER]
    user.handle.close()
    desk.answer("unsubscribe", "balances")
    assert desk.sent() == []
    desk.reply_order("PENDING")
    assert desk.sent() == [("subscribe", "orders:o1")]


@pytest.mark.parametrize("error", ["Invalid channel format", "no"])
def test_a_refusal_does_not_end_a_tracked_order(error: str) -> None:
    desk = Desk()
    tracker = desk.watch("orders:o1")
    desk.answer("subscribe", "orders:o1", error)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("PENDING")
    assert tracker.states() == [("snapshot", "PENDING")]
    assert (tracker.answers, desk.events, desk.sent()) == ([], [], [])
    desk.lose()
    desk.connect()
    desk.answer("subscribe", "orders:o1")
    desk.pass_time(5)
    assert desk.sent() == [ASKS_FOR_ORDER]


def test_a_refused_channel_of_a_tracked_order_is_asked_for_again_for_a_user() -> None:
    desk = Desk()
    tracker = desk.watch("orders:o1")
    desk.answer("subscribe", "orders:o1", "no")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("PENDING")
    tracker.taken()
    user = desk.join("orders:o1")
    desk.answer("subscribe", "orders:o1", "no")
    assert isinstance(user.answers[0], ServerError)
    assert desk.channels.subscriptions == 0
    again = desk.join("orders:o1")
    desk.answer("subscribe", "orders:o1")
    assert again.answers == [None]
    desk.push_order("FILLED")
    assert tracker.states() == again.states() == [("push", "FILLED")]


def test_a_channel_that_a_user_had_after_a_refusal_is_asked_for_again_without_one() -> None:
    desk = Desk(limit=2)
    tracker = desk.watch("orders:o1")
    desk.answer("subscribe", "orders:o1", "no")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("PENDING")
    desk.pass_time(5)
    user = desk.join("orders:o1")
    desk.answer("subscribe", "orders:o1")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("PENDING")
    assert len(tracker.taken()) == 2
    user.handle.close()
    other, third = desk.held("orders:o2"), desk.join("balances")
    desk.answer("unsubscribe", "orders:o1")
    desk.answer("subscribe", "balances")
    assert third.answers == [None]
    other.handle.close()
    desk.answer("unsubscribe", "orders:o2")
    assert desk.sent() == [("subscribe", "orders:o1")]


def test_a_refusal_after_an_outage_ends_the_user_and_not_the_tracked_order() -> None:
    desk = Desk()
    tracker = desk.watched("orders:o1")
    user = desk.join("orders:o1")
    desk.lose()
    desk.connect()
    desk.answer("subscribe", "orders:o1", "no")
    with pytest.raises(ServerError):
        user.handle.receive_nowait()
    assert [type(event) for event in desk.events] == [ChannelRefused]
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("FILLED")
    assert tracker.states() == [("snapshot", "FILLED")]


def test_what_is_not_acknowledged_does_not_end_a_tracked_order_nor_cost_the_connection() -> None:
    desk = Desk()
    broken: list[ConnectionLostError] = []
    desk.session.listener.broken = broken.append
    tracker = desk.watch("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    desk.pass_time(TIMEOUT)
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("PENDING")
    desk.push_order("PROCESSING")  # it may be held after all
    assert tracker.states() == [("snapshot", "PENDING"), ("push", "PROCESSING")]
    desk.pass_time(2 * GRACE)
    assert broken == []
    tracker.handle.close()
    desk.reply("subscribe", "orders:o1")
    desk.answer("unsubscribe", "orders:o1")
    assert desk.is_clean()


def test_a_broker_with_fewer_places_than_configured_takes_users_first() -> None:
    desk = Desk()
    desk.watched("orders:o1")
    desk.watched("orders:o2")
    user = desk.join("balances")
    desk.answer("subscribe", "balances", "Subscription limit exceeded")
    assert user.answers == []
    desk.answer("unsubscribe", "orders:o1")
    desk.answer("subscribe", "balances", "Subscription limit exceeded")
    desk.answer("unsubscribe", "orders:o2")
    desk.answer("subscribe", "balances", "Subscription limit exceeded")
    assert isinstance(user.answers[0], ServerError)
    assert desk.sent() == []
    desk.lose()
    desk.connect()
    assert desk.sent() == [("subscribe", "orders:o1"), ("subscribe", "orders:o2")]


def test_a_tracked_order_that_is_one_too_many_for_the_broker_is_asked_about() -> None:
    desk = Desk()
    desk.watched("orders:o1")
    desk.watch("orders:o2")
    desk.answer("subscribe", "orders:o2", "Subscription limit exceeded")
    assert desk.sent() == [asks_for("orders:o2")]
    desk.watch("orders:o3")
    assert desk.sent() == [asks_for("orders:o3")]


def test_dropped_by_the_user_a_channel_stays_for_the_order_that_is_tracked() -> None:
    desk, notes = Desk(), list[str]()
    tracker = desk.watched("orders:o1")
    user = desk.join("orders:o1")
    desk.channels.drop("orders:o1", noting(notes))
    assert notes == ["left"]
    assert user.is_at_its_end()
    assert desk.sent() == []
    desk.push_order("FILLED")
    assert tracker.states() == [("push", "FILLED")]


def test_dropped_where_it_is_only_asked_about_there_is_nothing_to_wait_for() -> None:
    desk, notes = Desk(limit=1), list[str]()
    desk.held("balances")
    desk.watch("orders:o1")
    desk.channels.drop("orders:o1", noting(notes))
    assert notes == ["left"]


def test_an_error_in_its_channel_makes_a_tracked_order_be_asked_about_at_once() -> None:
    desk = Desk()
    tracker = desk.watched("orders:o1")
    user = desk.join("orders:o1")
    desk.pass_time(5)
    desk.say(ch="orders:o1", error="try later")
    with pytest.raises(ChannelError, match="try later"):
        user.handle.receive_nowait()
    assert tracker.taken() == []
    assert desk.odd == ["an error was pushed about an order that is tracked"]
    assert desk.sent() == [ASKS_FOR_ORDER]


def test_an_error_in_a_users_own_channel_is_not_odd() -> None:
    desk = Desk()
    desk.held("orders:o1")
    desk.say(ch="orders:o1", error="try later")
    assert (desk.odd, desk.sent()) == ([], [])


def test_tracked_orders_leave_room_for_half_of_the_messages() -> None:
    desk = Desk(limit=3, messages_per_second=10)
    trackers = [desk.watch(f"orders:{number}") for number in range(20)]
    asked: list[float] = []
    while len(asked) < 23:
        sent = desk.sent()
        asked += [desk.now] * len(sent)
        for op, what in sent:
            if op == "subscribe":
                desk.reply(op, what)
            else:
                desk.reply_order("PENDING", f"orders:{json.loads(what)['id']}")
        desk.pass_time(0.1)
    for moment in asked:
        assert sum(moment <= one < moment + 1.1 - 1e-6 for one in asked) <= 5
    assert all(tracker.states() == [("snapshot", "PENDING")] for tracker in trackers)
    assert desk.now < 100 + 7


def test_what_waits_for_its_turn_does_not_hold_up_a_user() -> None:
    desk = Desk(limit=3, messages_per_second=10)
    for number in range(20):
        desk.watch(f"orders:{number}")
    assert len(desk.sent()) == 5
    for number in range(3):
        desk.reply("subscribe", f"orders:{number}")
    desk.join("balances", snapshot=True)
    assert desk.sent() == [("unsubscribe", "orders:0")]
    desk.reply("unsubscribe", "orders:0")
    desk.answer("subscribe", "balances")
    assert desk.sent() == [("balances", "")]


def test_a_state_that_nobody_but_a_tracked_order_wants_waits_for_its_turn() -> None:
    desk = Desk(messages_per_second=2)
    desk.held("orders:o1")
    desk.watch("orders:o2")
    assert desk.sent() == [("subscribe", "orders:o2")]
    desk.watch("orders:o1")
    desk.reply("subscribe", "orders:o2")
    assert desk.sent() == []
    desk.pass_time(1.1)
    assert desk.sent() == [ASKS_FOR_ORDER]


def test_who_has_left_has_no_turn() -> None:
    desk = Desk(limit=1, messages_per_second=2)
    desk.held("balances")
    desk.watch("orders:o1")
    assert desk.sent() == [ASKS_FOR_ORDER]
    waiting = desk.watch("orders:o2")
    waiting.handle.close()
    desk.reply_order("PENDING")
    desk.pass_time(5)
    assert desk.sent() == []
    assert "orders:o2" not in desk.channels._channels


def test_a_tracked_order_is_no_part_of_what_is_restored() -> None:
    desk = Desk()
    desk.watched("orders:o1")
    desk.held("balances")
    desk.lose()
    assert desk.connect() == 1
    # Users first, whoever was there before.
    assert desk.sent() == [("subscribe", "balances"), ("subscribe", "orders:o1")]
    desk.reply("subscribe", "balances")
    assert desk.restored == [("balances",)]


def test_a_users_channel_left_to_a_tracked_order_during_an_outage_is_not_awaited() -> None:
    desk = Desk(limit=1)
    user = desk.held("orders:o1")
    desk.watch("orders:o1")
    desk.sent()
    desk.lose()
    desk.connect()
    user.handle.close()
    desk.answer("subscribe", "orders:o1")
    assert desk.restored == [("orders:o1",)]


def test_left_by_its_users_before_its_turn_a_channel_is_not_awaited() -> None:
    desk = Desk(limit=1)
    first, second = desk.held("orders:o1"), desk.join("orders:o1")
    desk.watch("orders:o1")
    desk.sent()
    desk.lose()
    desk.connect()
    first.handle.close()
    second.handle.close()
    desk.pass_time(TIMEOUT + 1)
    assert desk.restored == [()]


def test_over_an_outage_a_tracked_order_is_marked_as_a_stream_is_and_asked_about() -> None:
    desk = Desk(limit=1)
    desk.held("balances")
    tracker = desk.watch("orders:o1")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.reply_order("PENDING")
    tracker.taken()
    late = desk.watch("orders:o2")
    assert desk.sent() == [asks_for("orders:o2")]
    desk.lose()
    desk.connect()
    assert desk.sent() == [("subscribe", "balances"), asks_for("orders:o1"), asks_for("orders:o2")]
    desk.reply_order("FILLED")
    desk.reply_order("FILLED", "orders:o2")
    (message,) = tracker.taken()
    assert message.gap is not None
    (message,) = late.taken()
    assert message.gap is None  # it hadn't begun


def test_at_the_end_a_tracked_order_ends_as_a_stream_does_acknowledged_or_not() -> None:
    for failure in (None, LOST):
        desk = Desk()
        tracker = desk.watch("orders:o1")
        desk.channels.finish(failure, LOST, CLOSED)
        assert tracker.answers == []
        if failure is None:
            assert tracker.is_at_its_end()
        else:
            with pytest.raises(SubscriptionBrokenError) as caught:
                tracker.handle.receive_nowait()
            assert caught.value.__cause__ is LOST
        desk.session.shut(LOST, CLOSED)
        assert desk.is_clean()


def test_a_thousand_tracked_orders_cost_each_answer_no_walk_through_all() -> None:
    class Counted(dict[str, Channel]):
        walks = 0

        def values(self) -> Any:
            self.walks += 1
            return super().values()

    desk = Desk(limit=10)
    channels = desk.channels._channels = Counted()
    for number in range(1000):
        desk.watch(f"orders:{number}")
    user = desk.join("balances")
    for _ in range(3):
        for op, what in desk.sent():
            if op == "order_status":
                desk.reply_order("PENDING", f"orders:{json.loads(what)['id']}")
            else:
                desk.reply(op, what)
        desk.pass_time(1.1)
    assert user.answers == [None]
    assert channels.walks == 0


# --- Outages ---------------------------------------------------------------------------------


def test_after_an_outage_every_channel_is_asked_for_again_and_its_stream_is_marked() -> None:
    desk = Desk()
    order, balances = desk.held("orders:o1"), desk.held("balances")
    desk.lose()
    assert desk.sent() == []
    lost_at = dt.datetime.fromtimestamp(desk.now, dt.UTC)
    desk.now += 5
    assert desk.connect() == 2
    assert desk.sent() == [("subscribe", "orders:o1"), ("subscribe", "balances")]
    desk.reply("subscribe", "balances")
    assert desk.restored == []
    assert desk.sent() == [("balances", "")]
    desk.reply("subscribe", "orders:o1")
    assert desk.restored == [("balances", "orders:o1")]
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.push_order("PROCESSING", 2)
    desk.say(op="order_status", data={"orderId": "o1", "status": "FILLED", "updatedAt": 3})
    assert desk.sent() == [ASKS_FOR_ORDER]  # a push overtook it
    desk.say(op="order_status", data={"orderId": "o1", "status": "FILLED", "updatedAt": 3})
    desk.reply_balances("7")
    first, second = order.taken()
    assert first.origin == "push"
    assert first.gap == Gap(frozenset({"reconnected"}), dropped=0, since=lost_at)
    assert (second.origin, second.gap, second.data.status) == ("snapshot", None, "FILLED")
    (whole,) = balances.taken()
    assert whole.origin == "snapshot"
    assert whole.gap is not None


def test_several_outages_before_a_message_are_one_gap_from_the_first_on() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1")
    began = dt.datetime.fromtimestamp(desk.now, dt.UTC)
    for _ in range(3):
        desk.lose()
        desk.now += 5
        desk.connect()
        desk.sent()
    desk.reply("subscribe", "orders:o1")
    desk.push_order("FILLED", 2)
    (message,) = subscriber.taken()
    assert message.gap is not None
    assert message.gap.since == began


def test_who_waits_for_an_acknowledgement_waits_for_the_next_connection() -> None:
    desk = Desk()
    subscriber = desk.join("balances", snapshot=True)
    assert desk.sent() == [("subscribe", "balances")]
    desk.lose()
    late = desk.join("orders:o1")
    assert desk.sent() == []
    assert desk.connect() == 0  # neither of them had anything to be restored
    assert desk.sent() == [("subscribe", "balances"), ("subscribe", "orders:o1")]
    desk.reply("subscribe", "balances")
    desk.reply("subscribe", "orders:o1")
    assert subscriber.answers == late.answers == [None]
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("7")
    assert [message.gap for message in subscriber.taken()] == [None]
    assert desk.restored == []


def test_what_came_before_the_acknowledgement_can_have_a_gap_after_it() -> None:
    desk = Desk()
    subscriber = desk.join("orders:o1")
    assert desk.sent() == [("subscribe", "orders:o1")]
    desk.push_order("PENDING", 1)
    desk.lose()
    desk.connect()
    desk.answer("subscribe", "orders:o1")
    assert desk.sent() == [ASKS_FOR_ORDER]
    desk.say(op="order_status", data={"orderId": "o1", "status": "FILLED", "updatedAt": 2})
    first, second = subscriber.taken()
    assert first.gap is None
    assert second.gap is not None


def test_a_push_from_before_a_goodbye_is_nothing_to_who_came_after_it() -> None:
    desk = Desk()
    desk.held("balances").handle.close()
    assert desk.sent() == [("unsubscribe", "balances")]
    newcomer = desk.join("balances")
    desk.push_balance("1")  # what follows it before the new subscription is never pushed
    desk.reply("unsubscribe", "balances")
    desk.answer("subscribe", "balances")
    assert newcomer.taken() == []
    desk.push_balance("3")
    assert len(newcomer.taken()) == 1


def test_who_leaves_during_an_outage_is_not_asked_for_again() -> None:
    desk = Desk()
    subscriber, other = desk.held("balances"), desk.held("orders:o1")
    desk.lose()
    subscriber.handle.close()
    assert desk.channels.wanted == 1
    assert desk.connect() == 1
    assert desk.sent() == [("subscribe", "orders:o1")]
    other.handle.close()
    desk.reply("subscribe", "orders:o1")
    desk.answer("unsubscribe", "orders:o1")
    assert desk.restored == [("orders:o1",)]
    assert desk.is_clean()


def test_left_before_its_request_is_sent_a_channel_is_not_restored() -> None:
    desk = Desk()
    subscriber = desk.held("balances")
    desk.lose()
    desk.connect()
    subscriber.handle.close()
    assert desk.sent() == []
    assert desk.restored == [()]
    assert desk.is_clean()


@pytest.mark.parametrize("was_sent", [True, False])
def test_what_was_being_given_up_when_the_connection_went_is_given_up(*, was_sent: bool) -> None:
    desk = Desk()
    subscriber = desk.held("balances")
    left: list[bool] = []
    desk.channels.drop("balances", lambda: left.append(True))
    if was_sent:
        assert desk.sent() == [("unsubscribe", "balances")]
    desk.lose()
    assert left == [True]
    assert subscriber.is_at_its_end()
    assert desk.connect() == 0
    assert desk.sent() == []
    assert desk.is_clean()


def test_a_channel_that_is_refused_after_an_outage_ends_alone() -> None:
    desk = Desk()
    refused, other = desk.held("orders:o1"), desk.held("balances")
    desk.lose()
    newcomer = desk.join("orders:o1")
    desk.connect()
    desk.sent()
    desk.reply("subscribe", "orders:o1", "Invalid channel format")
    desk.reply("subscribe", "balances")
    with pytest.raises(InvalidChannelError):
        refused.handle.receive_nowait()
    assert isinstance(newcomer.answers[0], InvalidChannelError)
    assert desk.restored == [("balances",)]
    (event,) = desk.events
    assert isinstance(event, ChannelRefused)
    assert event.channel == "orders:o1"
    desk.push_balance("7")
    assert len(other.taken()) == 1
    assert desk.channels.subscriptions == desk.channels.wanted == 1


def test_a_channel_that_is_not_acknowledged_after_an_outage_is_asked_for_again() -> None:
    desk = Desk()
    subscriber = desk.held("balances")
    desk.lose()
    desk.connect()
    assert desk.sent() == [("subscribe", "balances")]
    desk.pass_time(TIMEOUT + 1)
    assert desk.sent() == []  # its place is kept for the reply that may come
    assert not desk.restored
    desk.reply("subscribe", "balances")
    desk.answer("subscribe", "balances")
    assert desk.restored == [("balances",)]
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("7")
    assert len(subscriber.taken()) == 1


def test_a_snapshot_of_the_old_connection_is_nothing_to_the_new_one() -> None:
    desk = Desk()
    subscriber = desk.held("balances", snapshot=True)
    assert desk.sent() == [("balances", "")]
    desk.lose()
    assert desk.events == []
    desk.connect()
    desk.answer("subscribe", "balances")
    assert desk.sent() == [("balances", "")]
    desk.reply_balances("7")
    assert len(subscriber.taken()) == 1


def test_an_older_state_after_an_outage_is_not_delivered_and_the_gap_stays() -> None:
    desk = Desk()
    subscriber = desk.held("orders:o1")
    desk.push_order("PROCESSING", 5)
    subscriber.taken()
    desk.lose()
    desk.connect()
    desk.answer("subscribe", "orders:o1")
    desk.sent()
    desk.say(op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": 1})
    assert subscriber.taken() == []
    desk.push_order("FILLED", 6)
    (message,) = subscriber.taken()
    assert message.gap is not None
