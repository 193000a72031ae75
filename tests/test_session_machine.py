"""The session against a broker that answers in any order, late, twice, namelessly or never.

The model broker marks every reply with the sending that it answers, so whoever is resolved by a
reply can be asked whether it was meant. It keeps to what the session's essay leaves open: it
doesn't repeat a reply that nobody could tell from the next one.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from functools import partial
from typing import Any, Final

import attrs
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_broker import wire
from trio_broker.exceptions import (
    ConnectionLostError,
    NotConnectedError,
    NotSentError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
)
from trio_broker.request import Priority, Request, Stage
from trio_broker.session import SETTLE, Session

GRACE: Final = 30.0

# "o-c1" is the order that was made with the client order id "c1": who asks by both ids asks the
# same question twice.
ORDERS: Final = ("o1", "o2", "o3", "o-c1")
CLIENTS: Final = ("c1", "c2")
CHANNELS: Final = ("balances", "orders:o1")
READS: Final = ("estimate", "balances", *ORDERS, *CLIENTS)


def marked(message: wire.Inbound) -> str:
    """Decode no more than the mark."""
    text: str = json.loads(bytes(message.data))["status"]
    return text


@attrs.define(eq=False)
class Sending:
    """One message that reached the broker."""

    mark: str
    request: Request
    nonce: str
    told: str = ""

    @property
    def op(self) -> str:
        return self.request.op

    @property
    def order(self) -> str | None:
        if self.op != "order_status":
            return None
        return order_of(self.request)


def order_of(request: Request) -> str:
    return request.order_id or f"o-{request.client_order_id}"


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.session = Session(reply_grace=GRACE)
        self.session.listener.broken = self.note_broken
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.requests: list[Request] = []
        self.ended: Counter[Request] = Counter()
        self.sent: Counter[Request] = Counter()
        self.open: list[Sending] = []
        self.answered: list[Sending] = []
        self.broken = False
        self.crossed = False

    def note_broken(self, _: ConnectionLostError) -> None:
        self.broken = True

    # --- What users do ---------------------------------------------------------------------

    @initialize()
    def connect(self) -> None:
        auth = self.request("auth", Priority.AUTH, deadline=self.now + 1000)
        self.session.open(auth, self.now)
        assert not self.session.authenticated
        self.write()
        assert [sending.request for sending in self.open] == [auth]
        self.say(self.open[0], op=True)
        assert self.session.authenticated

    def request(self, op: str, priority: Priority, deadline: float, **names: Any) -> Request:
        decode: Any = marked
        if op == "swap":
            decode = partial(wire.decode_receipt, client_order_id=names["client_order_id"])
        request = Request(op, priority, decode, deadline, on_end=self.on_end, **names)
        self.requests.append(request)
        return request

    def submit(self, *requests: Request, held_up: bool = False) -> None:
        for request in requests:
            self.session.submit(request, self.now)
        self.go_on(held_up=held_up)

    def go_on(self, *, held_up: bool = False) -> None:
        """What the connection does after anything has happened, unless the writer is held up."""
        if self.broken:
            self.lose()
        elif not held_up:
            self.write()

    @rule(
        what=st.lists(st.sampled_from(READS), min_size=1, max_size=4),
        background=st.booleans(),
        patience=st.sampled_from([0.2, 1.0, 10.0, 100.0]),
        held_up=st.booleans(),
    )
    def read(self, what: list[str], background: bool, patience: float, held_up: bool) -> None:
        priority = Priority.BACKGROUND if background else Priority.READ
        make = partial(self.request, priority=priority, deadline=self.now + patience)
        requests = []
        for one in what:
            if one in ORDERS:
                self.crossed = self.crossed or one == "o-c1"
                requests.append(make("order_status", order_id=one))
            elif one in CLIENTS:
                requests.append(make("order_status", client_order_id=one))
            else:
                requests.append(make(one))
        self.submit(*requests, held_up=held_up)

    @rule(channel=st.sampled_from(CHANNELS), op=st.sampled_from(["subscribe", "unsubscribe"]))
    def subscribe(self, channel: str, op: str) -> None:
        self.submit(self.request(op, Priority.SUBSCRIBE, self.now + 10, channel=channel))

    @rule(patience=st.sampled_from([0.1, 10.0, 100.0]))
    def swap(self, patience: float) -> None:
        name = f"swap-{next(self.numbers)}"
        self.submit(self.request("swap", Priority.SWAP, self.now + patience, client_order_id=name))

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.living()))
        self.session.give_up(request, self.now)
        assert self.ended[request] == 1
        self.go_on()

    def living(self) -> list[Request]:
        return [request for request in self.requests if not self.ended[request]]

    # --- What the connection does ----------------------------------------------------------

    @rule()
    def write(self) -> None:
        while (request := self.session.next_to_send(self.now)) is not None:
            self.check_may_leave(request)
            number = next(self.numbers)
            nonce = "" if request.channel else f"n{number}"
            self.session.mark_sent(request, nonce, self.now)
            self.sent[request] += 1
            self.open.append(Sending(f"m{number}", request, nonce))

    def check_may_leave(self, request: Request) -> None:
        assert self.session.authenticated or request.op == "auth"
        flying = [other for other in self.requests if other.stage is Stage.IN_FLIGHT]
        waited_for = [other for other in flying if not self.ended[other]]
        assert not any(other.op == "swap" for other in waited_for)
        if request.op == "swap":
            assert self.sent[request] == 0
            assert not any(other.op == "swap" for other in flying)
            assert not flying or self.now >= request.since + SETTLE
        elif self.sent[request]:
            assert self.sent[request] == 1
            assert self.now >= request.since + SETTLE or flying == [request]
        else:
            assert not any(other.lane == request.lane for other in flying)

    @rule(seconds=st.sampled_from([0.1, SETTLE, 1.0, 10.0, GRACE]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)
        assert self.session.next_deadline > self.now
        for request in self.requests:
            assert self.ended[request] or request.deadline > self.now
        self.go_on()

    @rule()
    def lose(self) -> None:
        swaps = [one for one in self.living() if one.op == "swap"]
        kept = [
            one
            for one in self.living()
            if one.priority is Priority.READ and one.stage is Stage.WAITING
        ]
        self.session.lose(ConnectionLostError("lost"))
        assert all(self.ended[swap] for swap in swaps)
        assert self.living() == kept
        assert self.session.in_flight == 0
        self.open.clear()
        self.answered.clear()
        self.broken = False
        self.connect()

    # --- What the broker does --------------------------------------------------------------

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        refusal=st.sampled_from(["", "named", "bare", "bare"]),
        nonce=st.sampled_from([False, False, True]),
    )
    def answer(self, data: st.DataObject, refusal: str, nonce: bool) -> None:
        sending = data.draw(st.sampled_from(self.open))
        names = data.draw(st.sets(st.sampled_from(["orderId", "clientOrderId"])))
        if sending.request.order_id:
            names &= {"orderId"}  # An order by id may have no client order id.
        self.say(sending, op=refusal != "bare", refuse=bool(refusal), nonce=nonce, names=names)
        self.go_on()

    def say(
        self,
        sending: Sending,
        *,
        op: bool,
        refuse: bool = False,
        nonce: bool = False,
        names: set[str] | None = None,
    ) -> None:
        body: dict[str, Any] = {"status": sending.mark}
        if sending.op == "auth":
            body = {"status": "authenticated"}
        elif sending.op == "swap":
            body |= {"orderId": f"order-of-{sending.request.client_order_id}"}
        elif sending.op == "order_status":
            known = {"orderId": sending.order, "clientOrderId": sending.request.client_order_id}
            body |= {name: known[name] for name in names or ()}
        message: dict[str, Any] = {"data": body}
        if refuse:
            message = {"error": f"refused {sending.mark}"}
        if op:
            message["op"] = sending.op
            if sending.request.channel:
                message["ch"] = sending.request.channel
        if nonce and sending.nonce:
            message["nonce"] = sending.nonce
        sending.told = json.dumps(message)
        self.open.remove(sending)
        self.answered.append(sending)
        self.hear(sending)

    def hear(self, sending: Sending) -> None:
        before = set(self.living())
        self.session.receive([sending.told], self.now)
        resolved = [request for request in before if self.ended[request]]
        for request in resolved:
            self.check_is_own(request, sending)

    def check_is_own(self, request: Request, sending: Sending) -> None:
        """What resolved a request was an answer to it, or says that nobody can tell."""
        if isinstance(request.error, ProtocolError):
            assert "can't be told apart" in str(request.error)
            return
        told = [one for one in self.answered if one.told == request.reply]
        assert len(told) == 1, "every reply is different"
        meant = told[0].request
        same_order = meant.op == request.op == "order_status" and (
            order_of(meant) == order_of(request)
        )
        assert meant is request or same_order, f"{sending.told} resolved {request}"

    @precondition(lambda self: any(self.may_repeat(one) for one in self.answered))
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        sending = data.draw(st.sampled_from([o for o in self.answered if self.may_repeat(o)]))
        before = set(self.living())
        self.session.receive([sending.told], self.now)
        assert set(self.living()) == before, f"{sending.told}, told again, resolved somebody"
        self.go_on()

    def may_repeat(self, sending: Sending) -> bool:
        """Whether what was told can be told from a reply to anything in flight."""
        flying = [one for one in self.requests if one.stage is Stage.IN_FLIGHT]
        message = json.loads(sending.told)
        if not flying:
            return True
        if sending.request in flying:
            return False  # It was asked again: the second reply is due anyway.
        if "nonce" in message:
            return True
        if "op" not in message:
            return False
        rivals = [one for one in flying if one.op == sending.op]
        if "ch" in message:
            rivals = [one for one in rivals if one.channel == message["ch"]]
        body = message.get("data", {})
        if sending.op == "swap" and "orderId" in body:
            return True
        if "orderId" in body:
            rivals = [one for one in rivals if order_of(one) == body["orderId"]]
        return not rivals

    @rule(text=st.sampled_from(['{"op":5}', "{", '{"error":"', '{"nonce":"n1"}', '{"op":"x"}']))
    def babble(self, text: str) -> None:
        before = self.living()
        self.session.receive([text], self.now)
        assert self.living() == before
        self.go_on()

    # --- What must hold --------------------------------------------------------------------

    def on_end(self, request: Request) -> None:
        self.ended[request] += 1
        assert self.ended[request] == 1

    @invariant()
    def ends_are_told_once(self) -> None:
        for request in self.requests:
            over = request.stage is Stage.ENDED or request.unheard
            assert self.ended[request] == int(over)
            assert request.was_sent == (self.sent[request] > 0)
            if isinstance(request.error, NotSentError | NotConnectedError):
                assert not request.was_sent
            if isinstance(request.error, RequestTimeoutError | ServerError):
                assert request.was_sent

    @invariant()
    def one_holds_a_lane_and_one_swap_flies(self) -> None:
        flying = [one for one in self.requests if one.stage is Stage.IN_FLIGHT]
        assert len(flying) == self.session.in_flight
        assert len({one.lane for one in flying}) == len(flying)
        assert sum(one.op == "swap" for one in flying) <= 1
        waiting = [one for one in self.requests if one.stage is Stage.WAITING]
        assert len(waiting) == self.session.waiting

    @invariant()
    def nothing_is_owed_to_who_has_ended(self) -> None:
        for sending in self.open:
            # Somebody keeps the place for every reply that is still to come, but where the same
            # order was asked for under two names, or the outcome of a swap was doubtful.
            if not self.crossed:
                assert sending.request.stage is Stage.IN_FLIGHT, sending

    def teardown(self) -> None:
        """When all is answered, nothing is left; when the connection goes, nothing at all."""
        for _ in range(1000):
            self.write()
            if not self.open and not self.living():
                break
            while self.open:
                self.say(self.open[0], op=True, names={"orderId", "clientOrderId"})
            self.now += SETTLE
            self.session.tick(self.now)
            if self.broken:
                self.lose()
        else:
            raise AssertionError("somebody waits for ever")
        left = [one for one in self.requests if one.stage is Stage.IN_FLIGHT]
        assert all(map(self.may_be_left, left)) or self.crossed
        self.session.shut(ConnectionLostError("lost"), NotConnectedError("closed"))
        session = self.session
        assert session.waiting == session.in_flight == 0
        assert session.next_deadline == math.inf
        kept = (session._lanes, session._ready, session._alarms)
        assert not any(kept)
        assert not any((session._in_flight, session._again, session._alone))
        assert all(self.ended[request] == 1 for request in self.requests)

    def may_be_left(self, request: Request) -> bool:
        """A swap is never told by counting: that keeps its place, and that of its rivals."""
        rivals = request.doubt.suspects if request.doubt is not None else [request]
        return request.unheard and any(one.op == "swap" for one in rivals)


SessionMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestSessionMachine = SessionMachine.TestCase
