"""What is known of one channel and its subscribers, as it is."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest

from trio_broker import operations
from trio_broker.exceptions import BrokerError, InvalidChannelError, RequestTimeoutError
from trio_broker.membership import Channel, Member, Standing
from trio_broker.models import Gap, Message, Order, OrderStatus
from trio_broker.request import Priority, ignore
from trio_broker.subscription import Feed, Subscription

NOW = dt.datetime(2024, 11, 25, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(seconds=1)


def message(data: Any) -> Message[Any]:
    return Message("orders:o1", data, "push", None, NOW, "")


def made(*, wants_snapshot: bool = False) -> tuple[Member, Subscription[Any]]:
    feed: Feed[Any] = Feed("orders:o1")
    return Member(feed, ignore, wants_snapshot), Subscription(feed)


@pytest.mark.parametrize(
    ("op", "error", "standing"),
    [
        ("subscribe", None, Standing.HELD),
        ("subscribe", InvalidChannelError("subscribe", "no"), Standing.ABSENT),
        ("subscribe", RequestTimeoutError("late"), Standing.DOUBTFUL),
        ("unsubscribe", None, Standing.ABSENT),
        ("unsubscribe", InvalidChannelError("unsubscribe", "no"), Standing.ABSENT),
        ("unsubscribe", RequestTimeoutError("late"), Standing.ABSENT),
    ],
)
def test_what_a_request_leaves_behind(
    op: str, error: BrokerError | None, standing: Standing
) -> None:
    request = operations.subscription(op, "orders:o1", 0)
    request.error = error
    assert Standing.after(request) is standing


def test_an_older_state_is_not_delivered() -> None:
    member, handle = made()
    member.offer(message(Order("o1", OrderStatus.PARTIAL)))
    member.offer(message(Order("o1", OrderStatus.PENDING)))
    assert handle.receive_nowait().data.status is OrderStatus.PARTIAL
    assert handle.statistics().current_buffer_used == 0


def test_what_was_missed_is_marked_once_on_the_next_message_that_is_delivered() -> None:
    member, handle = made()
    member.offer(message(Order("o1", OrderStatus.PARTIAL)))
    member.miss(Gap(frozenset({"reconnected"}), 0, LATER))
    member.miss(Gap(frozenset({"reconnected"}), 0, NOW))
    assert member.wants_snapshot
    member.offer(message(Order("o1", OrderStatus.PENDING)))
    member.offer(message(Order("o1", OrderStatus.FILLED)))
    member.offer(message(Order("o1", OrderStatus.FILLED)))
    gaps = [handle.receive_nowait().gap for _ in range(3)]
    assert [gap and gap.since for gap in gaps] == [None, NOW, None]


def test_a_stream_has_begun_with_its_first_message() -> None:
    member, _ = made()
    assert not member.has_begun
    member.offer(message({"n": 1}))
    assert member.has_begun


def test_users_are_counted_and_those_who_yield_are_not() -> None:
    channel = Channel("orders:o1")
    user, tracker = made()[0], Member(Feed("orders:o1"), ignore, True, yields=True)
    seen = [(channel.users, channel.yields)]
    for member in (tracker, user):
        channel.add(member)
        seen.append((channel.users, channel.yields))
    assert channel.subscriptions() == [user]
    for member in (user, user, tracker):
        channel.remove(member)
        seen.append((channel.users, channel.yields))
    assert seen == [(0, False), (0, True), (1, False), (0, True), (0, True), (0, False)]


def test_asked_by_client_order_id_a_reply_need_not_name_the_order() -> None:
    request = Channel("orders:c1", by_client=True).snapshot_request(7.0)
    assert request is not None
    assert (request.order_id, request.client_order_id) == (None, "c1")
    assert (request.priority, request.deadline) == (Priority.BACKGROUND, 7.0)


@pytest.mark.parametrize(
    ("name", "op", "body"),
    [
        ("balances", "balances", ""),
        ("orders:o1", "order_status", '{"id":"o1"}'),
        ("orders:", None, ""),
        ("trades:ETH", None, ""),
    ],
)
def test_what_a_channels_state_is_asked_for_with(name: str, op: str | None, body: str) -> None:
    request = Channel(name).snapshot_request(7.0)
    if op is None:
        assert request is None
    else:
        assert request is not None
        assert (request.op, request.body, request.deadline) == (op, body, 7.0)
        assert request.priority is Priority.BACKGROUND


def test_what_a_lost_connection_had_under_way_tells_nobody_any_more() -> None:
    told: list[object] = []
    channel = Channel("balances", standing=Standing.HELD, retries=3, next_snapshot=9.0)
    channel.is_declined = True
    channel.snapshot = operations.balances(math.inf)
    channel.request = operations.subscription("unsubscribe", "balances", math.inf)
    requests = (channel.snapshot, channel.request)
    for request in requests:
        request.on_end = told.append
    channel.forget()
    for request in requests:
        request.on_end(request)
    assert told == []
    assert vars_of(channel) == vars_of(Channel("balances"))


def vars_of(channel: Channel) -> dict[str, Any]:
    return {name: getattr(channel, name) for name in Channel.__slots__ if name != "__weakref__"}


def test_who_waits_for_a_goodbye_is_told_once() -> None:
    told: list[int] = []
    channel = Channel("balances", on_left=[lambda: told.append(1), lambda: told.append(2)])
    channel.tell_left()
    channel.tell_left()
    assert told == [1, 2]
