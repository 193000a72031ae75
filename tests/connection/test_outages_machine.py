"""Random outages, subscriptions and changes of the broker's state.

The model broker keeps its state over all connections. It answers one message at a time, so a
connection can be lost between any two, and sometimes so late that the answer is outdated. Once a
connection exists and everything was sent, every open stream must add up to the broker's state. A
stream that missed a push during an outage must report the gap before its next message. A tracked
order never goes backwards, and ends exactly with its final status, for any number of free slots.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import attrs
import trio
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.engine_harness import EngineHarness
from trio_broker._channels.channel import Subscriber
from trio_broker._connection.backoff import Backoff
from trio_broker._protocol import requests
from trio_broker._protocol.effects import Effect
from trio_broker._protocol.requests import Request
from trio_broker._streams.buffer import Buffer, MessageBuffer
from trio_broker._streams.subscription import Subscription
from trio_broker.exceptions import (
    BrokerError,
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    NotConnectedError,
)
from trio_broker.models import Order
from trio_broker.settings import ReconnectPolicy

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
        return {
            "orderId": order_id,
            "status": STATUSES[progress],
            "updatedAt": 1732526400000 + progress,
        }

    def account(self) -> list[dict[str, str]]:
        return [{"asset": asset, "total": str(total)} for asset, total in self.balances.items()]

    def answer(self, *, late: bool = False) -> None:
        request = self.inbox.popleft()
        queue = self.late if late else self.outbox
        reply: dict[str, Any] = {"op": request.op}
        if request.channel is not None:
            reply["ch"] = request.channel
            if request.op == "subscribe" and request.channel in self.refused:
                # After a refusal there is no subscription, even if there was one before.
                self.subscribed.discard(request.channel)
                queue.append(json.dumps({**reply, "error": "Invalid channel format"}))
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
        queue.append(json.dumps(reply))


class OutagesHarness(EngineHarness):
    """An engine that counts restorations.

    Attributes:
        restorations: How many `ChannelsRestored` there may have been by now.
    """

    restorations = 0

    def act(self, effects: Sequence[Effect]) -> None:
        super().act(effects)
        assert len(self.restored) <= self.restorations, "a restoration was reported twice"


class Owner:
    """Removes a subscriber when its stream is closed."""

    subscriber: Subscriber

    def __init__(self, harness: EngineHarness) -> None:
        self.harness = harness

    def closed(self, _: Buffer[Any]) -> None:
        self.harness.act(self.harness.engine.leave(self.subscriber, self.harness.now))

    def overflowed(self, buffer: Buffer[Any]) -> None:
        raise AssertionError(buffer)

    def drained(self, buffer: Buffer[Any]) -> None:
        raise AssertionError(buffer)


@attrs.define(eq=False)
class Stream:
    """A subscription that is consumed as documented."""

    handle: Subscription[Any]
    name: str
    subscriber: Subscriber
    sum: dict[str, Any] = attrs.field(factory=dict)
    missed: bool = False
    over: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it was not closed, ended or refused."""
        return self.handle.statistics().open_send_channels > 0 and self.subscriber.error is None

    @property
    def is_ready(self) -> bool:
        subscriber = self.subscriber
        return subscriber.is_answered and subscriber.error is None and not self.over

    def read(self) -> None:
        while True:
            try:
                message = self.handle.receive_nowait()
            except (trio.WouldBlock, trio.ClosedResourceError):
                return
            except (trio.EndOfChannel, BrokerError):
                self.over = True
                return
            assert message.gap is not None or not self.missed, "it didn't report the gap"
            self.missed = False
            if isinstance(message.data, Order):
                self.sum["status"] = str(message.data.status)
                continue
            if message.origin == "snapshot":
                self.sum.clear()
            self.sum |= {balance.asset: int(balance.total) for balance in message.data}


@attrs.define(eq=False)
class Track:
    """A tracked order."""

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
            assert progress > self.seen or message.gap is not None, "the state is not new"
            assert progress >= self.seen, "it went backwards"
            self.seen = progress


class OutagesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.streams: list[Stream] = []
        self.tracks: list[Track] = []
        self.is_open = False
        self.authenticated = False
        self.was_connected = False
        self.harness = OutagesHarness(max_subscriptions=LIMIT)
        self.engine = self.harness.engine
        self.backoff = Backoff(ReconnectPolicy(max_attempts=None), random.Random(0))

    # --- The user ----------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), snapshot=st.sampled_from([True, True, False]))
    def subscribe(self, name: str, snapshot: bool) -> None:
        if sum(not stream.over for stream in self.streams) > 6:
            return
        owner = Owner(self.harness)
        buffer: MessageBuffer[Any] = MessageBuffer(name, owner=owner)
        owner.subscriber = Subscriber(buffer, wants_snapshot=snapshot, waiter=trio.Event())
        self.streams.append(Stream(Subscription(buffer), name, owner.subscriber))
        self.harness.act(self.engine.subscribe(owner.subscriber, self.harness.now))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        stream.handle.close()
        stream.over = True

    @rule(name=st.sampled_from(NAMES))
    def unsubscribe(self, name: str) -> None:
        self.harness.act(self.engine.unsubscribe(name, trio.Event(), self.harness.now))
        for stream in self.streams:
            if stream.name == name:
                stream.read()
                stream.over = True

    @rule(order_id=st.sampled_from(ORDERS))
    def track(self, order_id: str) -> None:
        if sum(not track.over for track in self.tracks) > 6:
            return
        owner = Owner(self.harness)
        buffer: MessageBuffer[Any] = MessageBuffer(order_id, owner=owner)
        self.tracks.append(Track(Subscription(buffer), order_id))
        owner.subscriber, effects = self.engine.track(
            order_id, buffer, self.harness.now, stop_at_partial=False
        )
        self.harness.act(effects)

    @precondition(lambda self: self.tracks)
    @rule(data=st.data())
    def close_a_tracked_order(self, data: st.DataObject) -> None:
        track = data.draw(st.sampled_from(self.tracks))
        track.handle.close()
        self.tracks.remove(track)

    # --- The broker --------------------------------------------------------------------------

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
    def toggle_refusal(self, name: str) -> None:
        self.broker.refused ^= {name}

    @precondition(lambda self: self.is_open)
    @rule(count=st.integers(1, 6))
    def write(self, count: int) -> None:
        for _ in range(count):
            request = self.engine.next_to_send(self.harness.now)
            if request is not None:
                self.engine.mark_sent(request, "", self.harness.now)
                self.broker.inbox.append(request)

    @precondition(lambda self: self.broker.inbox)
    @rule(late=st.booleans())
    def answer(self, late: bool) -> None:
        self.broker.answer(late=late)

    @precondition(lambda self: self.broker.late)
    @rule()
    def send_late_reply(self) -> None:
        self.broker.outbox.append(self.broker.late.popleft())

    @precondition(lambda self: self.broker.outbox)
    @rule(count=st.integers(1, 4))
    def client_receives(self, count: int) -> None:
        for _ in range(min(count, len(self.broker.outbox))):
            self.harness.receive(self.broker.outbox.popleft())
            if self.engine.session.is_authenticated and not self.authenticated:
                self.authenticated = self.was_connected = True
                self.backoff.connected()
                to_restore, effects = self.engine.restore(self.harness.now)
                self.harness.restorations += to_restore > 0
                self.harness.act(effects)
        for stream in self.streams:
            stream.read()
        for track in self.tracks:
            track.read()

    @precondition(lambda self: self.is_open)
    @rule(rounds=st.integers(1, 3), late=st.booleans())
    def exchange_messages(self, rounds: int, late: bool = False) -> None:
        """Send and answer some messages. Without this rule, few states would be reached."""
        for _ in range(rounds):
            self.write(50)
            while self.broker.inbox:
                self.answer(late=late)
            if not late:
                self.broker.outbox.extend(self.broker.late)
                self.broker.late.clear()
            while self.broker.outbox:
                self.client_receives(4)

    # --- The connection ----------------------------------------------------------------------

    @precondition(lambda self: not self.is_open)
    @rule(at_once=st.booleans())
    def connect(self, at_once: bool) -> None:
        self.is_open = True
        now = self.harness.now
        self.engine.connected(requests.authentication(now + 1000), now)
        if at_once:
            self.exchange_messages(1)

    @precondition(lambda self: self.is_open)
    @rule()
    def lose(self) -> None:
        self.is_open = False
        error = ConnectionLostError("lost")
        self.broker.hang_up()
        self.harness.replaced.clear()
        for stream in self.streams:
            # Messages on their way are lost with the connection.
            stream.missed = stream.missed or stream.is_ready
        if self.authenticated:
            assert self.backoff.may_retry(error)
        self.authenticated = False
        self.harness.restorations = len(self.harness.restored)
        self.harness.lose(error)

    @precondition(lambda self: not self.is_open and self.was_connected)
    @rule()
    def fail_an_attempt(self) -> None:
        error = ConnectFailedError("refused")
        assert self.backoff.may_retry(error)
        self.harness.now += self.backoff.next_delay()
        self.harness.lose(error)
        self.pass_time(0.1)

    @rule(seconds=st.sampled_from([0.01, 1.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.harness.pass_time(seconds)
        if self.harness.replaced and self.is_open:
            self.lose()

    # --- Invariants --------------------------------------------------------------------------

    @invariant()
    def broker_has_no_more_subscriptions_than_the_limit(self) -> None:
        assert len(self.broker.subscribed) <= LIMIT

    @invariant()
    def subscriptions_are_counted(self) -> None:
        open_ones = [stream for stream in self.streams if stream.is_open]
        assert self.engine.channels.subscriptions == len(open_ones)

    @invariant()
    def tracked_orders_are_counted(self) -> None:
        assert len(self.engine.tracker) == sum(not track.over for track in self.tracks)

    @invariant()
    def outage_refuses_no_subscription(self) -> None:
        for stream in self.streams:
            error = stream.subscriber.error
            assert not isinstance(error, ConnectionLostError | NotConnectedError)

    def teardown(self) -> None:
        """Check every stream with a connection, after all messages were sent."""
        self.broker.refused.clear()
        for _ in range(100):
            if not self.is_open:
                self.connect(at_once=False)
            self.exchange_messages(3)
            self.pass_time(1.0)
        assert len(self.harness.restored) == self.harness.restorations
        open_streams = [stream for stream in self.streams if stream.is_open]
        for stream in open_streams:
            assert stream.is_ready, stream
            stream.read()
            if stream.sum or stream.missed:
                self.check(stream)
        wanted = {stream.name for stream in open_streams}
        tracked = {f"orders:{track.order_id}" for track in self.tracks if not track.over}
        assert wanted <= self.broker.subscribed <= wanted | tracked
        for track in self.tracks:
            assert track.seen == self.broker.orders[track.order_id]
            assert track.over == (track.seen == len(STATUSES) - 1)
        lost, unsent = ConnectionLostError("closed"), ClientClosedError("closed")
        self.harness.act(self.engine.close(None, lost, unsent, self.harness.now))
        assert self.engine.channels.subscriptions == self.engine.session.waiting == 0
        assert len(self.engine.timers) == 0

    def check(self, stream: Stream) -> None:
        assert not stream.missed, "it never reported the gap"
        if stream.name == "balances":
            totals = self.broker.balances
            assert {a: n for a, n in stream.sum.items() if totals[a] != n} == {}
        else:
            order_id = stream.name.removeprefix("orders:")
            assert stream.sum["status"] == STATUSES[self.broker.orders[order_id]]


OutagesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestOutagesMachine = OutagesMachine.TestCase
