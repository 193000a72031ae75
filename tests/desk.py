"""A session, channels and feeds, and the broker's side of them as texts: no socket, no task.

desk = Desk()
subscriber = desk.join("orders:o1")
desk.answer("subscribe", "orders:o1")
desk.push_order("PENDING")
assert subscriber.states() == [("push", "PENDING")]
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sized
from typing import Any

import attrs
import trio

from trio_broker.channels import Channels
from trio_broker.exceptions import BrokerError, ClientClosedError, ConnectionLostError
from trio_broker.membership import Member
from trio_broker.models import ConnectionEvent, Message
from trio_broker.session import Session
from trio_broker.subscription import Feed, Overflow, Subscription

TIMEOUT = 10.0
GRACE = 30.0

CLOSED = ClientClosedError("closed")
LOST = ConnectionLostError("lost")


@attrs.define(eq=False)
class Subscriber:
    """One who subscribes, and what they are told."""

    handle: Subscription[Any]
    answers: list[BrokerError | None] = attrs.field(factory=list)
    member: Member | None = None
    ahead: list[Message[Any]] = attrs.field(factory=list)

    def taken(self) -> list[Message[Any]]:
        messages = []
        while True:
            try:
                messages.append(self.handle.receive_nowait())
            except trio.WouldBlock:
                return messages

    def states(self) -> list[tuple[str, str]]:
        return [(message.origin, str(message.data.status)) for message in self.taken()]

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


class Desk:
    """A session and its channels, and the broker's side of them as texts."""

    def __init__(self, limit: int = 100, messages_per_second: int = 100) -> None:
        self.now = 100.0
        self.events: list[ConnectionEvent] = []
        self.odd: list[str] = []
        self.restored: list[tuple[str, ...]] = []
        self.session = Session(reply_grace=GRACE)
        self.session.authenticated = True
        self.channels = Channels(
            self.session,
            max_subscriptions=limit,
            request_timeout=TIMEOUT,
            messages_per_second=messages_per_second,
            time=lambda: self.now,
            wall_time=lambda: dt.datetime.fromtimestamp(self.now, dt.UTC),
            on_event=self.events.append,
            on_restored=self.restored.append,
        )
        self.channels.restore()
        self.session.listener.pushed = self.channels.pushed
        self.session.listener.odd = lambda reason, _: self.odd.append(reason)

    def join(
        self,
        name: str,
        *,
        snapshot: bool = False,
        buffer_size: int = 100,
        overflow: Overflow = "drop_oldest",
    ) -> Subscriber:
        feed: Feed[Any] = Feed(
            name,
            buffer_size,
            overflow=overflow,
            on_close=lambda: self.channels.leave(member),
            on_drained=lambda: self.channels.drained(member),
        )
        subscriber = Subscriber(Subscription(feed))
        member = self.channels.join(feed, subscriber.answers.append, snapshot=snapshot)
        subscriber.member = member
        return subscriber

    def watch(self, name: str, *, by_client: bool = False) -> Subscriber:
        """A member that yields, as an order is that is tracked."""
        feed: Feed[Any] = Feed(name, on_close=lambda: self.channels.leave(member))
        subscriber = Subscriber(Subscription(feed))
        member = Member(feed, subscriber.answers.append, wants_snapshot=True, yields=True)
        subscriber.member = member
        self.channels.admit(member, by_client=by_client)
        return subscriber

    def watched(self, name: str) -> Subscriber:
        """The same, with its channel held and its state told."""
        subscriber = self.watch(name)
        self.answer("subscribe", name)
        assert self.sent() == [asks_for(name)]
        self.reply_order("PENDING", name)
        assert subscriber.states() == [("snapshot", "PENDING")]
        return subscriber

    def held(self, name: str, **options: Any) -> Subscriber:
        """Somebody whose channel the broker has acknowledged; nothing else is under way."""
        subscriber = self.join(name, **options)
        self.answer("subscribe", name)
        return subscriber

    def sent(self) -> list[tuple[str, str]]:
        """What leaves now: operations, each with its channel or body."""
        messages = []
        while (request := self.session.next_to_send(self.now)) is not None:
            messages.append((request.op, request.channel or request.body))
            self.session.mark_sent(request, "", self.now)
        return messages

    def say(self, **message: Any) -> None:
        self.session.receive([json.dumps(message)], self.now)

    def answer(self, op: str, channel: str, error: str = "") -> None:
        """See one message leave, and answer it."""
        assert self.sent() == [(op, channel)]
        self.reply(op, channel, error)

    def reply(self, op: str, channel: str, error: str = "") -> None:
        if error:
            self.say(op=op, ch=channel, error=error)
        else:
            self.say(op=op, ch=channel, data={"status": f"{op}d"})

    def push_order(self, status: str, at: int | None = None, order_id: str = "o1") -> None:
        self.say(ch=f"orders:{order_id}", data={"status": status, "updatedAt": at})

    def reply_order(self, status: str, name: str = "orders:o1", at: int | None = None) -> None:
        order_id = name.removeprefix("orders:")
        self.say(op="order_status", data={"orderId": order_id, "status": status, "updatedAt": at})

    def push_balance(self, total: str) -> None:
        self.say(ch="balances", data=[{"asset": "USDT", "total": total}])

    def reply_balances(self, total: str) -> None:
        self.say(op="balances", data={"balances": [{"asset": "USDT", "total": total}]})

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)
        self.channels.tick(self.now)

    def lose(self) -> None:
        self.channels.lost(dt.datetime.fromtimestamp(self.now, dt.UTC))
        self.session.lose(LOST)

    def connect(self) -> int:
        self.session.authenticated = True
        return self.channels.restore()

    def is_clean(self) -> bool:
        session, channels = self.session, self.channels
        return (
            not channels._channels
            and channels.subscriptions == channels.wanted == 0
            and session.waiting == session.in_flight == 0
            and not session._lanes
            and all(not shelf for shelf in shelves(channels))
            and not channels._turns._waiting
            and not channels._turns._under_way
        )


def shelves(channels: Channels) -> list[Sized]:
    return [shelf for shelf in vars(channels._places).values() if isinstance(shelf, Sized)]


def asks_for(name: str) -> tuple[str, str]:
    """What an order is asked about with."""
    return ("order_status", json.dumps({"id": name.removeprefix("orders:")}, separators=(",", ":")))


ASKS_FOR_ORDER = asks_for("orders:o1")
