"""Connections come and go, channels are wanted and not, and the broker's state changes meanwhile.

The model broker keeps its state over all connections and answers a message at a time, now and then
so late that what it says is no longer true, so that a connection can be lost between any two.
Whatever happened: once a connection is there and all is said, every stream that is open adds up to
the broker's state, and a stream that missed a push while nobody was connected has said so before
anything that it delivered afterwards. An order that is tracked never goes backwards, and ends just
when its end was told, however many channels the broker has left for it.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import random
from collections import deque
from typing import Any, Final

import attrs
import trio
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_broker import operations
from trio_broker.backoff import Backoff
from trio_broker.channels import Channels
from trio_broker.exceptions import (
    BrokerError,
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    NotConnectedError,
)
from trio_broker.membership import Member
from trio_broker.models import ConnectionEvent, Order
from trio_broker.request import Request
from trio_broker.session import Session
from trio_broker.settings import ReconnectPolicy
from trio_broker.subscription import Feed, Subscription
from trio_broker.tracking import Tracking

STATUSES: Final = ("PENDING", "PROCESSING", "PARTIAL", "FILLED")
ASSETS: Final = ("USDT", "ETH")
NAMES: Final = ("balances", "orders:o1", "orders:o2")
ORDERS: Final = ("o1", "o2", "o3", "o4")
LIMIT: Final = 3


@attrs.define(eq=False)
class Broker:
    """The broker's state, and the one connection that it may have."""

    balances: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(ASSETS, 0))
    orders: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(ORDERS, 0))
    refused: set[str] = attrs.field(factory=set)
    subscribed: set[str] = attrs.field(factory=set)
    inbox: deque[Request] = attrs.field(factory=deque)
    outbox: deque[str] = attrs.field(factory=deque)
    late: deque[str] = attrs.field(factory=deque)

    def hang_up(self) -> None:
        self.subscribed.clear()
        self.inbox.clear()
        self.outbox.clear()
        self.late.clear()

    def push(self, channel: str, data: Any) -> bool:
        if channel in self.subscribed:
            self.outbox.append(json.dumps({"ch": channel, "data": data}))
        return channel in self.subscribed

    def order(self, order_id: str) -> dict[str, Any]:
        progress = self.orders[order_id]
        return {"orderId": order_id, "status": STATUSES[progress], "updatedAt": progress}

    def account(self) -> list[dict[str, str]]:
        return [{"asset": asset, "total": str(total)} for asset, total in self.balances.items()]

    def answer(self, *, late: bool = False) -> None:
        request = self.inbox.popleft()
        way = self.late if late else self.outbox
        reply: dict[str, Any] = {"op": request.op}
        if request.channel is not None:
            reply["ch"] = request.channel
            if request.op == "subscribe" and request.channel in self.refused:
                way.append(json.dumps({**reply, "error": "Invalid channel format"}))
                return
            change = self.subscribed.add if request.op == "subscribe" else self.subscribed.discard
            change(request.channel)
            reply["data"] = {"status": f"{request.op}d"}
        elif request.op == "auth":
            reply["data"] = {"status": "authenticated"}
        elif request.op == "balances":
            reply["data"] = {"balances": self.account()}
        else:
            reply["data"] = self.order(request.order_id or request.client_order_id or "")
        way.append(json.dumps(reply))


@attrs.define(eq=False)
class Stream:
    """One who subscribes and adds up, as the documentation says."""

    handle: Subscription[Any]
    name: str
    member: Member | None = None
    answers: list[BrokerError | None] = attrs.field(factory=list)
    sum: dict[str, Any] = attrs.field(factory=dict)
    missed: bool = False
    over: bool = False

    @property
    def is_ready(self) -> bool:
        return self.answers == [None] and not self.over

    def read(self) -> None:
        while True:
            try:
                message = self.handle.receive_nowait()
            except (trio.WouldBlock, trio.ClosedResourceError):
                return
            except (trio.EndOfChannel, BrokerError):
                self.over = True
                return
            assert message.gap is not None or not self.missed, "it didn't own up"
            self.missed = False
            if isinstance(message.data, Order):
                self.sum["status"] = str(message.data.status)
                continue
            if message.origin == "snapshot":
                self.sum.clear()
            self.sum |= {balance.asset: int(balance.total) for balance in message.data}


@attrs.define(eq=False)
class Track:
    """One who follows an order to its end."""

    handle: Subscription[Order]
    order_id: str
    seen: int = -1
    over: bool = False

    def read(self) -> None:
        while not self.over:
            try:
                message = self.handle.receive_nowait()
            except trio.WouldBlock:
                return
            except trio.EndOfChannel:
                assert self.seen == len(STATUSES) - 1, "it ended before its order did"
                self.over = True
                return
            progress = STATUSES.index(str(message.data.status))
            assert progress > self.seen or message.gap is not None, "that was no news"
            assert progress >= self.seen, "it went backwards"
            self.seen = progress


class OutagesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.broker = Broker()
        self.streams: list[Stream] = []
        self.events: list[ConnectionEvent] = []
        self.is_open = False
        self.authenticated = False
        self.session = Session(reply_grace=30.0)
        self.broken: list[ConnectionLostError] = []
        self.session.listener.broken = self.broken.append
        self.channels = Channels(
            self.session,
            max_subscriptions=LIMIT,
            request_timeout=10.0,
            messages_per_second=100,
            time=lambda: self.now,
            wall_time=self.wall_time,
            on_event=self.events.append,
            on_restored=self.note_restored,
        )
        self.session.listener.pushed = self.channels.pushed
        self.tracks: list[Track] = []
        self.tracking = Tracking(
            self.channels,
            poll_interval=15.0,
            time=lambda: self.now,
            changed=lambda: None,
            known_order_id=lambda _: None,
        )
        self.backoff = Backoff(ReconnectPolicy(max_attempts=None), random.Random(0))
        self.restored = True

    def wall_time(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.now, dt.UTC)

    def note_restored(self, _: tuple[str, ...]) -> None:
        assert not self.restored, "it was told twice"
        self.restored = True

    # --- The user --------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), snapshot=st.sampled_from([True, True, False]))
    def subscribe(self, name: str, snapshot: bool) -> None:
        if sum(not stream.over for stream in self.streams) > 6:
            return
        feed: Feed[Any] = Feed(name, on_close=lambda: self.channels.leave(member))
        stream = Stream(Subscription(feed), name)
        member = self.channels.join(feed, stream.answers.append, snapshot=snapshot)
        stream.member = member
        self.streams.append(stream)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        stream.handle.close()
        stream.over = True

    @rule(name=st.sampled_from(NAMES))
    def unsubscribe(self, name: str) -> None:
        self.channels.drop(name, lambda: None)
        for stream in self.streams:
            if stream.name == name:
                stream.read()
                stream.over = True

    @rule(order_id=st.sampled_from(ORDERS))
    def track(self, order_id: str) -> None:
        if sum(not track.over for track in self.tracks) > 6:
            return
        feed: Feed[Any] = Feed(order_id, on_close=lambda: self.tracking.leave(tracker))
        self.tracks.append(Track(Subscription(feed), order_id))
        tracker = self.tracking.track(order_id, feed, stop_at_partial=False)

    @precondition(lambda self: self.tracks)
    @rule(data=st.data())
    def leave_a_track(self, data: st.DataObject) -> None:
        track = data.draw(st.sampled_from(self.tracks))
        track.handle.close()
        self.tracks.remove(track)

    # --- The broker ------------------------------------------------------------------------

    @rule(asset=st.sampled_from(ASSETS))
    def trade(self, asset: str) -> None:
        self.broker.balances[asset] += 1
        total = str(self.broker.balances[asset])
        self.note_push("balances", [{"asset": asset, "total": total}])

    @rule(order_id=st.sampled_from(ORDERS))
    def step(self, order_id: str) -> None:
        if self.broker.orders[order_id] < len(STATUSES) - 1:
            self.broker.orders[order_id] += 1
            self.note_push(f"orders:{order_id}", self.broker.order(order_id))

    def note_push(self, channel: str, data: Any) -> None:
        if not self.broker.push(channel, data):
            for stream in self.streams:
                if stream.name == channel and stream.is_ready:
                    stream.missed = True

    @rule(name=st.sampled_from((*NAMES, "orders:o3")))
    def refuse_from_now_on(self, name: str) -> None:
        self.broker.refused ^= {name}

    @precondition(lambda self: self.is_open)
    @rule(count=st.integers(1, 6))
    def write(self, count: int) -> None:
        for _ in range(count):
            request = self.session.next_to_send(self.now)
            if request is not None:
                self.session.mark_sent(request, "", self.now)
                self.broker.inbox.append(request)

    @precondition(lambda self: self.broker.inbox)
    @rule(late=st.booleans())
    def answer(self, late: bool) -> None:
        self.broker.answer(late=late)

    @precondition(lambda self: self.broker.late)
    @rule()
    def say_at_last(self) -> None:
        self.broker.outbox.append(self.broker.late.popleft())

    @precondition(lambda self: self.broker.outbox)
    @rule(count=st.integers(1, 4))
    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.broker.outbox))):
            self.session.receive([self.broker.outbox.popleft()], self.now)
            if self.session.authenticated and not self.authenticated:
                self.authenticated = True
                self.restored = False
                self.backoff.connected()
                if not self.channels.restore():
                    self.restored = True
        for stream in self.streams:
            stream.read()
        for track in self.tracks:
            track.read()

    @precondition(lambda self: self.is_open)
    @rule(rounds=st.integers(1, 3), late=st.booleans())
    def go_on(self, rounds: int, late: bool = False) -> None:
        """Let some of the conversation happen, without which little would be reached."""
        for _ in range(rounds):
            self.write(50)
            while self.broker.inbox:
                self.answer(late=late)
            if not late:
                self.broker.outbox.extend(self.broker.late)
                self.broker.late.clear()
            while self.broker.outbox:
                self.hear(4)

    # --- The line --------------------------------------------------------------------------

    @precondition(lambda self: not self.is_open)
    @rule(at_once=st.booleans())
    def connect(self, at_once: bool) -> None:
        self.is_open = True
        self.session.open(operations.authentication(self.now + 1000), self.now)
        if at_once:
            self.go_on(1)

    @precondition(lambda self: self.is_open)
    @rule()
    def lose(self) -> None:
        self.is_open = False
        error = ConnectionLostError("lost")
        self.broker.hang_up()
        self.broken.clear()
        for stream in self.streams:
            # What was on its way is gone with the line.
            stream.missed = stream.missed or stream.is_ready
        if self.authenticated:
            assert self.backoff.may_retry(error)
            self.channels.lost(self.wall_time())
        self.authenticated = False
        self.session.lose(error)
        self.restored = True

    @precondition(lambda self: not self.is_open and self.backoff._was_connected)
    @rule()
    def try_in_vain(self) -> None:
        error = ConnectFailedError("refused")
        assert self.backoff.may_retry(error)
        self.now += self.backoff.next_delay()
        self.session.lose(error)
        self.pass_time(0.1)

    @rule(seconds=st.sampled_from([0.01, 1.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)
        self.channels.tick(self.now)
        self.tracking.tick(self.now)
        if self.broken and self.is_open:
            self.lose()

    # --- What must hold --------------------------------------------------------------------

    @invariant()
    def the_broker_holds_no_more_than_the_limit(self) -> None:
        assert len(self.broker.subscribed) <= LIMIT

    @invariant()
    def subscriptions_are_counted(self) -> None:
        open_ones = [stream for stream in self.streams if self.is_member(stream)]
        assert self.channels.subscriptions == len(open_ones)

    @invariant()
    def tracks_are_counted(self) -> None:
        assert self.tracking.orders == sum(not track.over for track in self.tracks)

    @invariant()
    def an_outage_alone_refuses_nobody(self) -> None:
        for stream in self.streams:
            for answer in stream.answers:
                assert not isinstance(answer, ConnectionLostError | NotConnectedError)

    def is_member(self, stream: Stream) -> bool:
        channel = self.channels._channels.get(stream.name)
        return channel is not None and stream.member in channel.members

    def teardown(self) -> None:
        """Once a connection is there and all is said, every stream is right."""
        self.broker.refused.clear()
        for _ in range(100):
            if not self.is_open:
                self.connect(at_once=False)
            self.go_on(3)
            self.pass_time(1.0)
        assert self.restored
        living = [stream for stream in self.streams if self.is_member(stream)]
        for stream in living:
            assert stream.is_ready, stream
            stream.read()
            if stream.sum or stream.member is None or stream.missed:
                self.check(stream)
        wanted = {stream.name for stream in living}
        tracked = {f"orders:{track.order_id}" for track in self.tracks if not track.over}
        assert wanted <= self.broker.subscribed <= wanted | tracked
        for track in self.tracks:
            assert track.seen == self.broker.orders[track.order_id]
            assert track.over == (track.seen == len(STATUSES) - 1)
        self.channels.finish(None, ConnectionLostError("closed"), ClientClosedError("closed"))
        self.tracking.finish()
        self.session.shut(ConnectionLostError("closed"), ClientClosedError("closed"))
        assert self.channels.subscriptions == self.session.waiting == 0
        assert self.channels.next_deadline == self.tracking.next_deadline == math.inf

    def check(self, stream: Stream) -> None:
        assert not stream.missed, "it never owned up"
        if stream.name == "balances":
            totals = self.broker.balances
            assert {a: n for a, n in stream.sum.items() if totals[a] != n} == {}
        else:
            order_id = stream.name.removeprefix("orders:")
            assert stream.sum["status"] == STATUSES[self.broker.orders[order_id]]


OutagesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestOutagesMachine = OutagesMachine.TestCase
