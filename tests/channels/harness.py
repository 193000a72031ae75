"""The channels of an engine, and the broker's messages as text: no socket, no task.

harness = ChannelsHarness()
consumer = harness.subscribe("orders:o1")
harness.answer("subscribe", "orders:o1")
harness.push_order("PENDING")
assert consumer.states() == [("push", "PENDING")]
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import trio

from tests.engine_harness import EngineHarness
from trio_broker._channels.channel import Subscriber, Update
from trio_broker._engine import Engine
from trio_broker._redactor import Redactor
from trio_broker._streams.buffer import Buffer, MessageBuffer, Overflow
from trio_broker._streams.subscription import Subscription
from trio_broker.exceptions import BrokerError, ClientClosedError, ConnectionLostError
from trio_broker.models import Message, Order

CLOSED = ClientClosedError("closed")
LOST = ConnectionLostError("lost")
# Times of orders are this one and some milliseconds: the client reads no time before 1973.
MS = 1732526400000


class ChannelsEngine(Engine):
    """An engine that delivers to trackers directly, without an order tracker."""

    def _update_tracker(
        self,
        order: Subscriber,
        message: Update,
        now: float,  # noqa: ARG002
    ) -> None:
        order.is_unavailable = False
        if isinstance(message, Message):
            state, newest = message.data, order.newest
            if newest is None or not isinstance(state, Order) or not state.is_older_than(newest):
                self._effects.append(order.delivery(message))


@attrs.define(eq=False)
class Note:
    """A waiter that records that it was woken."""

    notes: list[str]
    text: str = "left"

    def set(self) -> None:
        self.notes.append(self.text)


@attrs.define(eq=False)
class Consumer:
    """A consumer of a channel, and the results of its subscribe."""

    harness: ChannelsHarness
    answers: list[BrokerError | None] = attrs.field(factory=list)
    ahead: list[Message[Any]] = attrs.field(factory=list)
    handle: Subscription[Any] = attrs.field(init=False)
    subscriber: Subscriber = attrs.field(init=False)

    def set(self) -> None:
        self.answers.append(self.subscriber.error)

    def closed(self, _: Buffer[Any]) -> None:
        self.harness.leave(self.subscriber)

    def overflowed(self, _: Buffer[Any]) -> None:
        pass

    def drained(self, _: Buffer[Any]) -> None:
        harness = self.harness
        harness.act(harness.engine.drained(self.subscriber, harness.now))

    def receive_all(self) -> list[Message[Any]]:
        messages = []
        while True:
            try:
                messages.append(self.handle.receive_nowait())
            except trio.WouldBlock:
                return messages

    def states(self) -> list[tuple[str, str]]:
        return [(message.origin, str(message.data.status)) for message in self.receive_all()]

    def states_to_the_end(self) -> list[tuple[str, str]]:
        states: list[tuple[str, str]] = []
        while not self.is_at_its_end():
            states += [(message.origin, str(message.data.status)) for message in self.ahead]
            self.ahead.clear()
        return states

    def is_at_its_end(self) -> bool:
        try:
            self.ahead.append(self.handle.receive_nowait())
        except trio.EndOfChannel:
            return True
        return False


class ChannelsHarness(EngineHarness):
    """The channels of a connected engine, and the broker's messages as text."""

    def __init__(self, limit: int = 100, messages_per_second: int = 100) -> None:
        super().__init__(max_subscriptions=limit, messages_per_second=messages_per_second)
        self.now = 100.0
        self.channels = self.engine.channels
        self.connect()

    def make_engine(self, **options: Any) -> Engine:
        return ChannelsEngine(Redactor(()), **options)

    def subscribe(
        self,
        name: str,
        *,
        snapshot: bool = False,
        buffer_size: int = 100,
        overflow: Overflow = "drop_oldest",
    ) -> Consumer:
        consumer = Consumer(self)
        buffer: MessageBuffer[Any]
        buffer = MessageBuffer(name, buffer_size, consumer, overflow=overflow)
        consumer.handle = Subscription(buffer)
        consumer.subscriber = Subscriber(buffer, wants_snapshot=snapshot, waiter=consumer)
        self.act(self.engine.subscribe(consumer.subscriber, self.now))
        return consumer

    def track_order(self, name: str, *, is_client_id: bool = False) -> Consumer:
        """Track an order."""
        consumer = Consumer(self)
        buffer: MessageBuffer[Any] = MessageBuffer(name, owner=consumer)
        consumer.handle = Subscription(buffer)
        consumer.subscriber = Subscriber(buffer, wants_snapshot=True)
        self.channels.track(consumer.subscriber, self.now, is_client_id=is_client_id)
        self.finish_step()
        return consumer

    def track_acknowledged(self, name: str) -> Consumer:
        """Track an order, and deliver the acknowledgement and the first state."""
        consumer = self.track_order(name)
        self.answer("subscribe", name)
        assert self.send_all() == [state_request(name)]
        self.reply_order("PENDING", name)
        assert consumer.states() == [("snapshot", "PENDING")]
        return consumer

    def subscribed(self, name: str, **options: Any) -> Consumer:
        """Subscribe, and deliver the acknowledgement."""
        consumer = self.subscribe(name, **options)
        self.answer("subscribe", name)
        return consumer

    def finish_step(self) -> None:
        """Act on the effects of a call of one of the engine's parts."""
        self.act(self.engine._finish_step(self.now))

    def request_state(self, consumer: Consumer) -> None:
        self.channels.ask(consumer.subscriber, self.now)
        self.finish_step()

    def leave(self, subscriber: Subscriber) -> None:
        self.act(self.engine.leave(subscriber, self.now))

    def unsubscribe(self, name: str, notes: list[str]) -> None:
        self.act(self.engine.unsubscribe(name, Note(notes), self.now))

    def send_all(self) -> list[tuple[str, str]]:
        """Send everything: the operation of each message, with its channel or body."""
        messages = []
        while (request := self.engine.next_to_send(self.now)) is not None:
            messages.append((request.op, request.channel or request.body))
            self.engine.mark_sent(request, "", self.now)
        return messages

    def answer(self, op: str, channel: str, error: str = "") -> None:
        """Send one expected message, and deliver the reply."""
        assert self.send_all() == [(op, channel)]
        self.reply(op, channel, error)

    def reply(self, op: str, channel: str, error: str = "") -> None:
        if error:
            self.receive_json(op=op, ch=channel, error=error)
        else:
            self.receive_json(op=op, ch=channel, data={"status": f"{op}d"})

    def push_order(self, status: str, at: int | None = None, order_id: str = "o1") -> None:
        data = {"status": status, "updatedAt": at and MS + at}
        self.receive_json(ch=f"orders:{order_id}", data=data)

    def reply_order(self, status: str, name: str = "orders:o1", at: int | None = None) -> None:
        order_id = name.removeprefix("orders:")
        data = {"orderId": order_id, "status": status, "updatedAt": at and MS + at}
        self.receive_json(op="order_status", data=data)

    def push_balance(self, total: str) -> None:
        self.receive_json(ch="balances", data=[{"asset": "USDT", "total": total}])

    def reply_balances(self, total: str) -> None:
        self.receive_json(op="balances", data={"balances": [{"asset": "USDT", "total": total}]})

    def lose(self, error: BrokerError = LOST) -> None:
        super().lose(error)

    def connect(self) -> int:
        self.session.is_authenticated = True
        count, effects = self.engine.restore(self.now)
        self.act(effects)
        return count

    def close(self, failure: BrokerError | None) -> None:
        self.act(self.engine.close(failure, LOST, CLOSED, self.now))

    def is_clean(self) -> bool:
        channels = self.channels
        return (
            super().is_clean()
            and not channels._channels
            and channels.subscriptions == channels.wanted == 0
            and not any(one for one in vars(channels._slots).values() if isinstance(one, dict))
            and not channels._queue._waiting
            and not channels._queue._in_flight
            and len(self.engine.timers) == 0
        )


def state_request(name: str) -> tuple[str, str]:
    """The request for an order's state, as `send_all` returns it."""
    return ("order_status", json.dumps({"id": name.removeprefix("orders:")}, separators=(",", ":")))


ORDER_STATE_REQUEST = state_request("orders:o1")
