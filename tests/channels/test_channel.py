"""The state of one channel and of its subscribers."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest

from trio_broker._channels.channel import Channel, RemoteState, Subscriber
from trio_broker._protocol import requests
from trio_broker._protocol.requests import Priority
from trio_broker._streams.buffer import MessageBuffer
from trio_broker.exceptions import BrokerError, InvalidChannelError, RequestTimeoutError
from trio_broker.models import Gap, Message, Order, OrderStatus

NOW = dt.datetime(2024, 11, 25, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(seconds=1)


def message(data: Any) -> Message[Any]:
    return Message("orders:o1", data, "push", None, NOW, "")


def made() -> Subscriber:
    buffer: MessageBuffer[Any] = MessageBuffer("orders:o1")
    return Subscriber(buffer, wants_snapshot=False)


@pytest.mark.parametrize(
    ("op", "error", "remote_state"),
    [
        ("subscribe", None, RemoteState.SUBSCRIBED),
        ("subscribe", InvalidChannelError("subscribe", "no"), RemoteState.UNSUBSCRIBED),
        ("subscribe", RequestTimeoutError("late"), RemoteState.UNKNOWN),
        ("unsubscribe", None, RemoteState.UNSUBSCRIBED),
        ("unsubscribe", InvalidChannelError("unsubscribe", "no"), RemoteState.UNSUBSCRIBED),
        ("unsubscribe", RequestTimeoutError("late"), RemoteState.UNSUBSCRIBED),
    ],
)
def test_remote_state_after_a_request(
    op: str, error: BrokerError | None, remote_state: RemoteState
) -> None:
    request = requests.subscription(op, "orders:o1", 0)
    request.error = error
    assert RemoteState.after(request) is remote_state


def test_gap_is_marked_once_on_the_next_delivery() -> None:
    subscriber = made()
    gaps = [*subscriber.delivery(message(Order("o1", OrderStatus.PARTIAL)))[1]]
    subscriber.miss(Gap(frozenset({"reconnected"}), 0, LATER))
    subscriber.miss(Gap(frozenset({"reconnected"}), 0, NOW))
    assert subscriber.wants_snapshot
    for _ in range(2):
        gaps += subscriber.delivery(message(Order("o1", OrderStatus.FILLED)))[1]
    marks = [one.gap for one in gaps if isinstance(one, Message)]
    assert [mark and mark.since for mark in marks] == [None, NOW, None]


def test_stream_has_begun_with_its_first_delivery() -> None:
    subscriber = made()
    assert not subscriber.has_begun
    subscriber.delivery(message({"n": 1}))
    assert subscriber.has_begun


def test_channel_is_background_while_it_has_trackers_only() -> None:
    channel = Channel("orders:o1")
    user, tracker = made(), made()
    seen = [channel.is_background]
    channel.trackers[tracker] = None
    seen.append(channel.is_background)
    channel.subscriptions[user] = None
    seen.append(channel.is_background)
    assert channel.subscribers == [user, tracker]
    for subscriber in (user, user, tracker):
        channel.remove(subscriber)
        seen.append(channel.is_background)
    assert seen == [False, True, False, True, True, False]


def test_state_is_looked_up_by_client_order_id() -> None:
    request = Channel("orders:c1", is_client_id=True).snapshot_request(7.0)
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
def test_request_for_the_state_of_each_kind_of_channel(
    name: str, op: str | None, body: str
) -> None:
    request = Channel(name).snapshot_request(7.0)
    if op is None:
        assert request is None
    else:
        assert request is not None
        assert (request.op, request.body, request.deadline) == (op, body, 7.0)
        assert request.priority is Priority.BACKGROUND


def test_channel_is_as_new_after_a_lost_connection() -> None:
    channel = Channel("balances", remote_state=RemoteState.SUBSCRIBED)
    channel.retries, channel.next_snapshot, channel.subscribe_failed = 3, 9.0, True
    channel.snapshot = requests.balances(math.inf)
    channel.request = requests.subscription("unsubscribe", "balances", math.inf)
    channel.forget()
    assert vars_of(channel) == vars_of(Channel("balances"))


def vars_of(channel: Channel) -> dict[str, Any]:
    return {name: getattr(channel, name) for name in Channel.__slots__ if name != "__weakref__"}
