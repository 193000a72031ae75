"""Tracked orders, with real channels and a real session: no socket, no task, no clock."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings, strategies as st

from tests.desk import ASKS_FOR_ORDER, CLOSED, LOST, TIMEOUT, Desk, Subscriber, asks_for
from trio_broker.exceptions import SubscriptionBrokenError
from trio_broker.models import Message, Order, OrderStatus, SnapshotUnavailable
from trio_broker.subscription import Feed, Subscription
from trio_broker.tracking import Tracker, Tracking

INTERVAL = 15.0


class Floor(Desk):
    """A desk with orders that are tracked."""

    def __init__(
        self, limit: int = 100, messages_per_second: int = 100, poll_interval: float = INTERVAL
    ) -> None:
        super().__init__(limit, messages_per_second)
        self.known: dict[str, str] = {}
        self.told: list[float] = []
        self.tracking = Tracking(
            self.channels,
            poll_interval=poll_interval,
            time=lambda: self.now,
            changed=lambda: self.told.append(self.tracking.next_deadline),
            known_order_id=self.known.get,
        )

    def track(
        self, order_id: str = "o1", *, stop_at_partial: bool = False, buffer_size: int = 64
    ) -> Subscriber:
        tracker: Tracker
        feed: Feed[Any] = Feed(order_id, buffer_size, on_close=lambda: self.tracking.leave(tracker))
        subscriber = Subscriber(Subscription(feed))
        tracker = self.tracking.track(order_id, feed, stop_at_partial=stop_at_partial)
        subscriber.member = tracker
        return subscriber

    def tracked(self, status: str = "PENDING", at: int | None = 1, **options: Any) -> Subscriber:
        """An order whose channel is held, and whose state has been told and taken."""
        subscriber = self.track(**options)
        self.answer("subscribe", "orders:o1")
        assert self.sent() == [ASKS_FOR_ORDER]
        self.reply_order(status, at=at)
        assert subscriber.states() == [("snapshot", status)]
        return subscriber

    @property
    def next_deadline(self) -> float:
        deadlines = (each.next_deadline for each in (self.session, self.channels, self.tracking))
        return min(deadlines)

    def pass_time(self, seconds: float) -> None:
        """Let the time pass, and everything happen that is due on the way."""
        end = self.now + seconds
        while True:
            self.now = max(self.now, min(end, self.next_deadline))
            super().pass_time(0)
            self.tracking.tick(self.now)
            if self.now >= end and self.next_deadline > end:
                return

    def refuse(self) -> None:
        self.say(op="order_status", error="Order not found")

    def is_clean(self) -> bool:
        return super().is_clean() and not self.tracking.orders and not self.tracking._alarms


# --- To the end ------------------------------------------------------------------------------


def test_an_order_is_followed_to_its_end_and_then_nothing_is_left() -> None:
    floor = Floor()
    progress = floor.tracked()
    assert floor.tracking.orders == 1
    floor.push_order("PROCESSING", at=2)
    floor.push_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "PROCESSING"), ("push", "FILLED")]
    floor.answer("unsubscribe", "orders:o1")
    progress.handle.close()
    assert floor.is_clean()
    assert floor.sent() == []


@pytest.mark.parametrize("status", ["FILLED", "FAILED", "CANCELLED"])
def test_what_is_over_already_ends_at_once(status: str) -> None:
    floor = Floor()
    progress = floor.track()
    floor.answer("subscribe", "orders:o1")
    floor.sent()
    floor.reply_order(status)
    assert progress.states_to_the_end() == [("snapshot", status)]
    floor.answer("unsubscribe", "orders:o1")
    assert floor.is_clean()


@pytest.mark.parametrize("stop", [True, False])
def test_a_partial_fill_is_an_end_where_it_is_to_be_one(*, stop: bool) -> None:
    floor = Floor()
    progress = floor.tracked(stop_at_partial=stop)
    floor.push_order("PROCESSING", at=2)
    floor.push_order("PARTIAL", at=3)
    assert floor.tracking.orders == (not stop)
    if stop:
        assert [status for _, status in progress.states_to_the_end()] == ["PROCESSING", "PARTIAL"]


def test_an_unknown_status_is_no_end() -> None:
    floor = Floor()
    progress = floor.tracked()
    floor.push_order("FILLED_ALMOST", at=2)
    assert progress.states() == [("push", "FILLED_ALMOST")]
    assert floor.tracking.orders == 1


def test_a_slow_reader_still_gets_the_last_state_and_the_end() -> None:
    floor = Floor()
    progress = floor.tracked(buffer_size=1)
    for number, status in enumerate(("PROCESSING", "PARTIAL", "FILLED"), 2):
        floor.push_order(status, at=number)
    message = progress.handle.receive_nowait()
    assert message.data.status is OrderStatus.FILLED
    assert message.gap is not None
    assert message.gap.dropped == 2
    assert progress.is_at_its_end()


def test_left_early_it_is_given_up_at_the_broker_with_all_that_was_under_way() -> None:
    floor = Floor()
    progress = floor.tracked()
    floor.pass_time(INTERVAL)
    assert floor.sent() == [ASKS_FOR_ORDER]
    progress.handle.close()
    assert isinstance(progress.member, Tracker)
    floor.tracking.leave(progress.member)
    floor.reply_order("PROCESSING", at=2)
    floor.answer("unsubscribe", "orders:o1")
    assert floor.odd == []
    assert floor.is_clean()


def test_two_who_track_one_order_each_get_all_of_it() -> None:
    floor = Floor()
    first = floor.tracked()
    second = floor.track(stop_at_partial=True)
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.reply_order("PENDING", at=1)
    floor.push_order("PARTIAL", at=2)
    floor.push_order("FILLED", at=3)
    assert first.states_to_the_end() == [("push", "PARTIAL"), ("push", "FILLED")]
    assert second.states_to_the_end() == [("snapshot", "PENDING"), ("push", "PARTIAL")]
    floor.answer("unsubscribe", "orders:o1")
    assert floor.is_clean()


# --- What says nothing new -------------------------------------------------------------------


def test_a_state_that_says_nothing_new_is_not_delivered() -> None:
    floor = Floor()
    progress = floor.tracked()
    floor.push_order("PENDING", at=1)
    floor.pass_time(INTERVAL)
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.reply_order("PENDING", at=1)
    assert progress.taken() == []


@pytest.mark.parametrize("news", [{"txHash": "0x1"}, {"filledOut": "1"}, {"updatedAt": 2}])
def test_a_state_of_the_same_status_may_say_something_new(news: dict[str, Any]) -> None:
    floor = Floor()
    progress = floor.tracked("PARTIAL")
    floor.say(ch="orders:o1", data={"status": "PARTIAL", "updatedAt": 1, **news})
    assert progress.states() == [("push", "PARTIAL")]


def test_after_an_outage_the_first_state_carries_the_gap_even_if_it_says_nothing_new() -> None:
    floor = Floor()
    progress = floor.tracked()
    lost_at = dt.datetime.fromtimestamp(floor.now, dt.UTC)
    floor.lose()
    floor.pass_time(3 * INTERVAL)
    assert floor.sent() == []
    floor.connect()
    floor.answer("subscribe", "orders:o1")
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.reply_order("PENDING", at=1)
    (message,) = progress.taken()
    assert message.gap is not None
    assert message.gap.since == lost_at
    assert message.gap.reasons == {"reconnected"}


def test_a_final_state_is_final_whatever_the_brokers_clocks_say() -> None:
    floor = Floor()
    progress = floor.tracked("PROCESSING", at=100)
    floor.push_order("FILLED", at=99)
    assert progress.states_to_the_end() == [("push", "FILLED")]


@pytest.mark.parametrize(
    ("earlier", "later", "is_delivered"),
    [
        ({"filledOut": "5"}, {"filledOut": "3"}, False),
        ({"filledOut": "5"}, {"filledOut": "7"}, True),
        ({"filledOut": "5"}, {}, True),
        ({}, {"filledOut": "5"}, True),
        ({"filledOut": "5", "updatedAt": 1}, {"filledOut": "3", "updatedAt": 1}, False),
        ({"filledOut": "5", "updatedAt": 1}, {"filledOut": "3", "updatedAt": 2}, True),
        ({"filledOut": "5", "updatedAt": 2}, {"filledOut": "7", "updatedAt": 1}, False),
    ],
)
def test_a_partial_fill_never_shrinks_without_a_later_time(
    earlier: dict[str, Any], later: dict[str, Any], *, is_delivered: bool
) -> None:
    floor = Floor()
    progress = floor.tracked(at=None)
    for body in (earlier, later):
        floor.say(ch="orders:o1", data={"status": "PARTIAL", **body})
    assert len(progress.taken()) == 1 + is_delivered


def test_an_unknown_status_with_less_filled_is_no_older() -> None:
    floor = Floor()
    progress = floor.tracked(at=None)
    floor.say(ch="orders:o1", data={"status": "PARTIAL", "filledOut": "5"})
    floor.say(ch="orders:o1", data={"status": "ODD", "filledOut": "3"})
    assert len(progress.taken()) == 2


# --- Silence ---------------------------------------------------------------------------------


def test_after_silence_it_is_asked_about_again_and_again() -> None:
    floor = Floor()
    progress = floor.tracked()
    for _ in range(3):
        floor.pass_time(INTERVAL - 0.1)
        assert floor.sent() == []
        floor.pass_time(0.1)
        assert floor.sent() == [ASKS_FOR_ORDER]
        floor.reply_order("PENDING", at=1)
    floor.pass_time(INTERVAL)
    floor.sent()
    floor.reply_order("FILLED", at=2)
    assert progress.states_to_the_end() == [("snapshot", "FILLED")]


def test_whatever_is_heard_of_it_ends_the_silence_and_sets_no_alarm() -> None:
    floor = Floor()
    floor.tracked()
    for number in range(100):
        floor.pass_time(0.1)
        floor.push_order("PROCESSING", at=number)
        assert len(floor.tracking._alarms) == 1
    floor.pass_time(INTERVAL - 0.1)
    assert floor.sent() == []
    floor.pass_time(0.1)
    assert floor.sent() == [ASKS_FOR_ORDER]


def test_without_an_interval_it_is_never_asked_about_by_itself() -> None:
    floor = Floor(poll_interval=math.inf)
    floor.tracked()
    floor.pass_time(1e6)
    assert floor.sent() == []
    assert floor.tracking.next_deadline == math.inf


def test_whoever_sleeps_until_the_next_deadline_is_told_of_an_earlier_one() -> None:
    floor = Floor()
    floor.lose()
    floor.track()
    assert floor.told == [floor.now + INTERVAL]
    floor.pass_time(5)
    floor.track("o2")
    assert floor.told == [floor.now + INTERVAL - 5]


def test_the_alarms_of_those_who_left_do_not_pile_up() -> None:
    floor = Floor()
    floor.lose()
    keeper = floor.track("o0")
    for number in range(1, 1000):
        floor.track(f"o{number}").handle.close()
        assert len(floor.tracking._alarms) <= 3
    floor.pass_time(INTERVAL)
    keeper.handle.close()
    assert floor.is_clean()


def test_an_alarm_of_one_who_left_asks_nothing() -> None:
    floor = Floor(limit=1)
    floor.held("balances")
    keeper, other = floor.track("o1"), floor.track("o2")
    floor.sent()
    floor.reply_order("PENDING")
    floor.reply_order("PENDING", "orders:o2")
    other.handle.close()
    assert len(floor.tracking._alarms) == 2
    floor.pass_time(INTERVAL)
    assert floor.sent() == [ASKS_FOR_ORDER]
    keeper.taken()


# --- In vain ---------------------------------------------------------------------------------


def test_not_found_is_told_once_in_a_row_and_asked_again_at_growing_distances() -> None:
    floor = Floor()
    progress = floor.track()
    floor.answer("subscribe", "orders:o1")
    waits, began = [], floor.now
    for _ in range(9):
        while floor.sent() != [ASKS_FOR_ORDER]:
            floor.pass_time(0.25)
        waits.append(floor.now - began)
        began = floor.now
        floor.refuse()
    assert waits[0] == 0
    # The first may wait, as no state is asked for twice in a second.
    assert waits[1:] == [1.0, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    (event,) = floor.events
    assert isinstance(event, SnapshotUnavailable)
    assert event.channel == "orders:o1"
    floor.pass_time(INTERVAL)
    floor.sent()
    floor.reply_order("PENDING")
    assert progress.states() == [("snapshot", "PENDING")]
    floor.pass_time(INTERVAL)
    floor.sent()
    floor.refuse()
    assert len(floor.events) == 2
    floor.push_order("FILLED")
    assert progress.states_to_the_end() == [("push", "FILLED")]


def test_once_the_order_is_known_a_failure_waits_for_the_whole_interval() -> None:
    floor = Floor()
    floor.tracked()
    floor.pass_time(INTERVAL)
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.refuse()
    floor.pass_time(INTERVAL - 0.1)
    assert floor.sent() == []
    floor.pass_time(0.1)
    assert floor.sent() == [ASKS_FOR_ORDER]


def test_a_mute_broker_is_asked_again_and_costs_the_connection_in_the_end() -> None:
    floor = Floor()
    broken: list[Exception] = []
    floor.session.listener.broken = broken.append
    progress = floor.tracked()
    while not broken:
        floor.pass_time(1.0)
        floor.sent()
        assert floor.now < 300
    assert len(floor.events) == 1
    floor.lose()
    floor.connect()
    floor.answer("subscribe", "orders:o1")
    floor.sent()
    floor.reply_order("FILLED")
    assert progress.states_to_the_end() == [("snapshot", "FILLED")]


def test_one_that_was_not_found_is_asked_about_as_soon_as_there_is_a_connection_again() -> None:
    floor = Floor(limit=1)
    floor.held("balances")
    floor.track()
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.refuse()
    floor.lose()
    floor.connect()
    assert floor.sent() == [("subscribe", "balances"), ASKS_FOR_ORDER]


def test_while_there_is_no_connection_nothing_is_asked_however_long_that_is() -> None:
    floor = Floor(limit=1)
    floor.held("balances")
    floor.track()
    floor.sent()
    floor.refuse()
    floor.lose()
    floor.pass_time(3 * INTERVAL)
    assert floor.session.waiting == 0  # or it would be failed with every try to connect
    assert len(floor.events) == 1


def test_alarms_that_an_earlier_one_has_overtaken_do_not_come_again() -> None:
    floor = Floor()
    floor.track()
    floor.answer("subscribe", "orders:o1")
    for _ in range(4):
        while not floor.sent():
            floor.pass_time(0.5)
        floor.refuse()
    floor.push_order("PENDING", at=1)
    floor.pass_time(2 * INTERVAL)
    assert len(floor.tracking._alarms) == 1


# --- Client order ids ------------------------------------------------------------------------


def moved(floor: Floor, progress: Subscriber, status: str = "PROCESSING") -> None:
    """See a tracker in the channel of its order's own id, from where it is asked about."""
    assert progress.handle.channel == "orders:o1"
    floor.answer("subscribe", "orders:o1")
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.reply_order(status, at=2)
    assert progress.states() == [("snapshot", status)]
    floor.push_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "FILLED")]


def test_a_client_order_id_whose_order_is_known_is_that_order() -> None:
    floor = Floor()
    floor.known["c1"] = "o1"
    moved(floor, floor.track("c1"))


def test_an_id_that_was_made_here_is_asked_about_as_what_it_is() -> None:
    floor = Floor()
    progress = floor.track("tb-1")
    assert floor.sent() == [asks_for("orders:tb-1")]
    # Named by the order's own id alone: as a reply to anything else it would be odd.
    floor.say(op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": 1})
    (message,) = progress.taken()
    assert (message.data.order_id, message.channel) == ("o1", "orders:o1")
    moved(floor, progress)
    assert floor.odd == []


def test_found_by_its_client_order_id_when_it_is_over_nothing_more_is_asked() -> None:
    floor = Floor()
    progress = floor.track("tb-1")
    floor.sent()
    floor.say(op="order_status", data={"orderId": "o1", "status": "FILLED"})
    assert progress.states_to_the_end() == [("snapshot", "FILLED")]
    assert floor.sent() == []
    assert floor.is_clean()


def test_what_comes_to_be_known_meanwhile_needs_no_reply() -> None:
    floor = Floor()
    progress = floor.track("tb-1")
    floor.sent()
    floor.refuse()
    floor.known["tb-1"] = "o1"
    floor.pass_time(0.5)
    moved(floor, progress)


def test_a_reply_may_name_the_order_of_an_id_that_looked_like_its_own() -> None:
    floor = Floor()
    progress = floor.track("c1")
    floor.answer("subscribe", "orders:c1")
    assert floor.sent() == [asks_for("orders:c1")]
    floor.say(
        op="order_status",
        data={"orderId": "o1", "clientOrderId": "c1", "status": "PENDING", "updatedAt": 1},
    )
    assert [message.channel for message in progress.taken()] == ["orders:o1"]
    assert floor.sent() == [("unsubscribe", "orders:c1"), ("subscribe", "orders:o1")]
    floor.reply("unsubscribe", "orders:c1")
    floor.reply("subscribe", "orders:o1")
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.reply_order("PENDING", at=1)  # it keeps what it has had
    assert progress.taken() == []
    floor.push_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "FILLED")]


def test_a_reply_that_names_nothing_it_asked_by_comes_by_the_other_way() -> None:
    floor = Floor()
    progress = floor.track("c1")
    floor.answer("subscribe", "orders:c1")
    assert floor.sent() == [asks_for("orders:c1")]
    # An answer that the session can't take for this question's: it is odd, and the time is up.
    floor.say(op="order_status", data={"orderId": "o1", "status": "PENDING"})
    assert len(floor.odd) == 1
    floor.pass_time(TIMEOUT + 0.5)
    assert floor.sent() == [asks_for("orders:c1")]
    floor.say(op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": 1})
    assert [message.channel for message in progress.taken()] == ["orders:o1"]


def test_a_push_that_comes_after_all_shows_what_the_id_is() -> None:
    floor = Floor(limit=1)
    floor.held("balances")
    progress = floor.track()
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.pass_time(TIMEOUT)  # perhaps it is a client order id
    floor.push_order("PROCESSING", at=2)
    floor.reply_order("PENDING", at=1)  # too late
    floor.pass_time(INTERVAL)
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.reply_order("FILLED", at=3)
    assert progress.states_to_the_end() == [("push", "PROCESSING"), ("snapshot", "FILLED")]


def test_a_push_may_name_the_order_of_an_id_that_looked_like_its_own() -> None:
    floor = Floor()
    progress = floor.track("c1")
    floor.answer("subscribe", "orders:c1")
    floor.sent()
    floor.say(ch="orders:c1", data={"orderId": "o1", "status": "PENDING", "updatedAt": 1})
    assert [message.channel for message in progress.taken()] == ["orders:o1"]
    assert ("subscribe", "orders:o1") in floor.sent()


def test_moved_to_a_channel_that_is_held_already_it_is_asked_about_there() -> None:
    floor = Floor()
    floor.held("orders:o1")
    progress = floor.track("tb-1")
    assert floor.sent() == [asks_for("orders:tb-1")]
    # What it says may be older than what the user's subscription was pushed meanwhile.
    floor.say(op="order_status", data={"orderId": "o1", "status": "PENDING", "updatedAt": 1})
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.reply_order("FILLED", at=2)
    assert progress.states_to_the_end() == [("snapshot", "PENDING"), ("snapshot", "FILLED")]


def test_a_broker_that_never_names_the_order_is_asked_by_what_there_is() -> None:
    floor = Floor()
    progress = floor.track("tb-1")
    for status in ("PENDING", "PROCESSING", "FILLED"):
        while not (sent := floor.sent()):
            floor.pass_time(0.5)
        assert sent == [asks_for("orders:tb-1")]
        floor.say(op="order_status", data={"status": status})
    assert [status for _, status in progress.states_to_the_end()] == [
        "PENDING",
        "PROCESSING",
        "FILLED",
    ]


def test_a_push_shows_that_an_id_is_the_orders_own() -> None:
    floor = Floor()
    floor.track()
    floor.answer("subscribe", "orders:o1")
    assert floor.sent() == [ASKS_FOR_ORDER]
    floor.push_order("PENDING", at=1)
    floor.refuse()
    floor.pass_time(INTERVAL - 0.1)
    assert floor.sent() == []


# --- The end ---------------------------------------------------------------------------------


def test_at_the_end_of_the_client_it_ends_after_what_is_buffered() -> None:
    for failure in (None, LOST):
        floor = Floor()
        progress = floor.tracked()
        floor.push_order("PROCESSING", at=2)
        floor.channels.finish(failure, LOST, CLOSED)
        floor.tracking.finish()
        assert progress.handle.receive_nowait().data.status is OrderStatus.PROCESSING
        if failure is None:
            assert progress.is_at_its_end()
        else:
            with pytest.raises(SubscriptionBrokenError) as caught:
                progress.handle.receive_nowait()
            assert caught.value.__cause__ is LOST
        floor.session.shut(LOST, CLOSED)
        progress.handle.close()
        assert floor.is_clean()
        assert floor.next_deadline == math.inf


# --- Whatever happens ------------------------------------------------------------------------

STATUSES = ("PENDING", "PROCESSING", "PARTIAL", "FILLED")


@attrs.define(eq=False)
class Story:
    """An order at a broker whose words arrive in any order, or not at all."""

    floor: Floor
    progress: Subscriber
    state: int = 0
    heard: int = -1
    seen: list[int] = attrs.field(factory=list)
    pushes: list[int] = attrs.field(factory=list)
    replies: list[tuple[str, str, int]] = attrs.field(factory=list)
    is_online: bool = True
    over: bool = False
    broken: list[Exception] = attrs.field(factory=list)

    def replace_what_is_broken(self) -> None:
        if self.broken:
            self.broken.clear()
            self.lose()

    def proceed(self) -> None:
        self.state = min(self.state + 1, len(STATUSES) - 1)
        self.pushes.append(self.state)

    def send(self) -> None:
        for op, what in self.floor.sent() if self.is_online else ():
            self.replies.append((op, what, self.state))

    def reply(self, index: int) -> None:
        # On one connection replies to one lane come one by one: any of them may be the next.
        if self.replies and self.is_online:
            op, what, state = self.replies.pop(index % len(self.replies))
            if op == "order_status":
                is_answer, odd = self.is_answer(), len(self.floor.odd)
                self.floor.reply_order(STATUSES[state], at=state)
                if is_answer and len(self.floor.odd) == odd:
                    self.hear(state)
            else:
                self.floor.reply(op, what)

    def is_answer(self) -> bool:
        """Whether a reply that comes now is the answer to a question, and no push overtook it."""
        session, channel = self.floor.session, self.floor.channels._channels.get("orders:o1")
        asked = session._holder(("order_status", "o1")) or session._holder(("order_status", None))
        if asked is None or asked.unheard or channel is None:
            return False
        return channel.snapshot is asked and not channel.overtaken

    def push(self, index: int) -> None:
        if self.pushes and self.is_online:
            state = self.pushes.pop(index % len(self.pushes))
            if "orders:o1" in self.floor.channels._channels:
                self.floor.push_order(STATUSES[state], at=state)
                self.hear(state)

    def lose(self) -> None:
        if self.is_online:
            self.is_online = False
            self.replies.clear()
            self.pushes.clear()
            self.floor.lose()

    def connect(self) -> None:
        if not self.is_online:
            self.is_online = True
            self.floor.connect()

    def hear(self, state: int) -> None:
        if not self.over:
            self.heard = max(self.heard, state)
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
        assert self.seen[-1:] == [self.heard], "the newest that was heard isn't there"
        assert self.over == (self.heard == len(STATUSES) - 1)
        assert self.floor.tracking.orders == (not self.over)


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
def test_whatever_happens_it_never_goes_backwards_and_ends_with_the_final_state(
    steps: list[tuple[Any, ...]], limit: int, user_comes_at: int
) -> None:
    floor = Floor(limit=1)
    if not limit:
        floor.held("balances")
    story = Story(floor, floor.track())
    floor.session.listener.broken = story.broken.append
    for number, (name, *arguments) in enumerate(steps):
        if number == user_comes_at and limit:
            floor.join("balances")
        if name == "wait":
            floor.pass_time(*arguments)
        else:
            getattr(story, name)(*arguments)
        story.replace_what_is_broken()
    # From now on the broker is well, and no push comes: asking alone must end it.
    story.state = len(STATUSES) - 1
    story.pushes.clear()
    for _ in range(60):
        story.connect()
        story.send()
        while story.replies:
            story.reply(0)
        floor.pass_time(2.0)
        story.replace_what_is_broken()
    assert story.over
    assert story.seen[-1] == len(STATUSES) - 1
