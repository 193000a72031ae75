"""The session with a broker that replies in any order, late, twice, without names or never.

The model broker marks every reply with the sent message that it answers. So the machine can check
that each reply resolved its own request. The broker never repeats a reply that no client could
distinguish from the next one.
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

from tests.engine_harness import GRACE, EngineHarness
from tests.protocol.session_harness import SessionEngine
from trio_broker._engine import Engine
from trio_broker._protocol import codec
from trio_broker._protocol.requests import Priority, Purpose, Request, Stage
from trio_broker._protocol.session import ALONE_DELAY
from trio_broker._redactor import Redactor
from trio_broker.exceptions import (
    ConnectionLostError,
    NotConnectedError,
    NotSentError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
)

# "o-c1" is the order with the client order ID "c1": lookups by both IDs are for the same order.
ORDERS: Final = ("o1", "o2", "o3", "o-c1")
CLIENTS: Final = ("c1", "c2")
CHANNELS: Final = ("balances", "orders:o1")
READS: Final = ("estimate", "balances", *ORDERS, *CLIENTS)


def decode_mark(message: codec.Inbound) -> str:
    """Decode only the mark."""
    text: str = json.loads(bytes(message.data))["status"]
    return text


@attrs.define(eq=False)
class Sending:
    """One message that reached the broker."""

    mark: str
    request: Request
    nonce: str
    reply: str = ""

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


class Harness(EngineHarness):
    """An engine whose ended requests are counted by the machine."""

    def make_engine(self, **options: Any) -> Engine:
        return SessionEngine(Redactor(()), **options)


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness()
        self.engine = self.harness.engine
        self.numbers = itertools.count(1)
        self.requests: list[Request] = []
        self.ended: Counter[Request] = Counter()
        self.sent: Counter[Request] = Counter()
        self.open: list[Sending] = []
        self.answered: list[Sending] = []
        self.crossed = False

    @property
    def now(self) -> float:
        return self.harness.now

    @property
    def is_replaced(self) -> bool:
        return bool(self.harness.replaced)

    def count_ends(self) -> None:
        for request in self.harness.ended:
            self.ended[request] += 1
            assert self.ended[request] == 1
        self.harness.ended.clear()

    # --- Users -------------------------------------------------------------------------------

    @initialize()
    def connect(self) -> None:
        auth = self.request("auth", Priority.AUTH, deadline=self.now + 1000)
        self.engine.connected(auth, self.now)
        assert not self.engine.session.is_authenticated
        self.write()
        assert [sending.request for sending in self.open] == [auth]
        self.send_reply(self.open[0], op=True)
        assert self.engine.session.is_authenticated

    def request(self, op: str, priority: Priority, deadline: float, **names: Any) -> Request:
        decode: Any = decode_mark
        if op == "swap":
            decode = partial(codec.decode_receipt, client_order_id=names["client_order_id"])
            names["purpose"] = Purpose.SWAP
        request = Request(op, priority, decode=decode, deadline=deadline, **names)
        self.requests.append(request)
        return request

    def submit(self, *requests: Request, writer_is_blocked: bool = False) -> None:
        for request in requests:
            self.harness.submit(request)
        self.finish_step(writer_is_blocked=writer_is_blocked)

    def finish_step(self, *, writer_is_blocked: bool = False) -> None:
        """What the connection does after every step, unless the writer is blocked."""
        if self.is_replaced:
            self.lose()
        elif not writer_is_blocked:
            self.wake_writer()

    def wake_writer(self) -> None:
        """Write if the engine says that there is something to write, as the driver does."""
        session = self.engine.session
        if session.may_send:
            session.may_send = False
            self.write()
        else:
            assert self.engine.next_to_send(self.now) is None

    @rule(
        what=st.lists(st.sampled_from(READS), min_size=1, max_size=4),
        background=st.booleans(),
        patience=st.sampled_from([0.2, 1.0, 10.0, 100.0]),
        writer_is_blocked=st.booleans(),
    )
    def read(
        self, what: list[str], background: bool, patience: float, writer_is_blocked: bool
    ) -> None:
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
        self.submit(*requests, writer_is_blocked=writer_is_blocked)

    @rule(channel=st.sampled_from(CHANNELS), op=st.sampled_from(["subscribe", "unsubscribe"]))
    def subscribe(self, channel: str, op: str) -> None:
        self.submit(self.request(op, Priority.SUBSCRIBE, self.now + 10, channel=channel))

    @rule(patience=st.sampled_from([0.1, 10.0, 100.0]))
    def swap(self, patience: float) -> None:
        name = f"swap-{next(self.numbers)}"
        self.submit(self.request("swap", Priority.SWAP, self.now + patience, client_order_id=name))

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.unfinished()))
        self.harness.give_up(request)
        self.count_ends()
        assert self.ended[request] == 1
        self.finish_step()

    def unfinished(self) -> list[Request]:
        return [request for request in self.requests if not self.ended[request]]

    # --- The connection ----------------------------------------------------------------------

    @rule()
    def write(self) -> None:
        while (request := self.engine.next_to_send(self.now)) is not None:
            self.check_may_be_sent(request)
            number = next(self.numbers)
            nonce = "" if request.channel else f"n{number}"
            self.engine.mark_sent(request, nonce, self.now)
            self.sent[request] += 1
            self.open.append(Sending(f"m{number}", request, nonce))

    def check_may_be_sent(self, request: Request) -> None:
        assert self.engine.session.is_authenticated or request.op == "auth"
        in_flight = self.owed()
        pending = [other for other in in_flight if not self.ended[other]]
        assert not any(other.op == "swap" for other in pending)
        if request.op == "swap":
            assert self.sent[request] == 0
            assert not any(other.op == "swap" for other in in_flight)
            assert not in_flight or self.now >= request.since + ALONE_DELAY
        elif self.sent[request]:
            assert self.sent[request] == 1
            assert self.now >= request.since + ALONE_DELAY or {*in_flight} <= {request}
        else:
            holders = [other for other in self.requests if other.stage is Stage.IN_FLIGHT]
            assert not any(other.lane == request.lane for other in holders)

    def owed(self) -> list[Request]:
        """The requests that the broker owes a reply."""
        return [one for one in self.requests if one.stage is Stage.IN_FLIGHT and one.owed]

    @rule(seconds=st.sampled_from([0.1, ALONE_DELAY, 1.0, 10.0, GRACE]))
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.engine.timers.next_deadline) < end and not self.is_replaced:
            self.harness.pass_time(deadline - self.now)
            self.count_ends()
            self.finish_step()
        self.harness.pass_time(max(0.0, end - self.now))
        self.count_ends()
        assert self.engine.timers.next_deadline > self.now
        for request in self.requests:
            assert self.ended[request] or request.deadline > self.now
        self.finish_step()

    @rule()
    def lose(self) -> None:
        swaps = [one for one in self.unfinished() if one.op == "swap"]
        kept = [
            one
            for one in self.unfinished()
            if one.priority is Priority.READ and one.stage is Stage.WAITING
        ]
        self.harness.lose(ConnectionLostError("lost"))
        self.count_ends()
        assert all(self.ended[swap] for swap in swaps)
        assert self.unfinished() == kept
        assert self.engine.session.in_flight == 0
        self.open.clear()
        self.answered.clear()
        self.harness.replaced.clear()
        self.connect()

    # --- The broker --------------------------------------------------------------------------

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
        self.send_reply(
            sending, op=refusal != "bare", refuse=bool(refusal), nonce=nonce, names=names
        )
        self.finish_step()

    def send_reply(
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
        sending.reply = json.dumps(message)
        self.open.remove(sending)
        self.answered.append(sending)
        self.client_receives(sending)

    def client_receives(self, sending: Sending) -> None:
        before = set(self.unfinished())
        self.harness.receive(sending.reply)
        self.count_ends()
        resolved = [request for request in before if self.ended[request]]
        for request in resolved:
            self.check_is_own(request, sending)

    def check_is_own(self, request: Request, sending: Sending) -> None:
        """Check that a reply answered its own request, or failed it as ambiguous."""
        if isinstance(request.error, ProtocolError):
            assert "can't be told apart" in str(request.error)
            return
        matching = [one for one in self.answered if one.reply == request.reply]
        assert len(matching) == 1, "every reply is different"
        meant = matching[0].request
        same_order = meant.op == request.op == "order_status" and (
            order_of(meant) == order_of(request)
        )
        assert meant is request or same_order, f"{sending.reply} resolved {request}"

    @precondition(lambda self: any(self.may_repeat(one) for one in self.answered))
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        sending = data.draw(st.sampled_from([o for o in self.answered if self.may_repeat(o)]))
        before = set(self.unfinished())
        self.harness.receive(sending.reply)
        self.count_ends()
        assert set(self.unfinished()) == before, f"{sending.reply}, repeated, resolved a request"
        self.finish_step()

    def may_repeat(self, sending: Sending) -> bool:
        """Whether a repeated reply can be distinguished from every pending one."""
        in_flight = [one for one in self.requests if one.stage is Stage.IN_FLIGHT]
        message = json.loads(sending.reply)
        if not in_flight:
            return True
        if sending.request in in_flight:
            return False  # It was sent again: a second reply is expected.
        if "nonce" in message:
            return True
        if "op" not in message:
            return False
        rivals = [one for one in in_flight if one.op == sending.op]
        if "ch" in message:
            rivals = [one for one in rivals if one.channel == message["ch"]]
        body = message.get("data", {})
        if sending.op == "swap" and "orderId" in body:
            return True
        if "orderId" in body:
            rivals = [one for one in rivals if order_of(one) == body["orderId"]]
        return not rivals

    @rule(text=st.sampled_from(['{"op":5}', "{", '{"error":"', '{"nonce":"n1"}', '{"op":"x"}']))
    def receive_garbage(self, text: str) -> None:
        before = self.unfinished()
        self.harness.receive(text)
        self.count_ends()
        assert self.unfinished() == before
        self.finish_step()

    # --- Invariants --------------------------------------------------------------------------

    @invariant()
    def every_request_ends_once(self) -> None:
        for request in self.requests:
            over = request.stage is Stage.ENDED or request.is_abandoned
            assert self.ended[request] == int(over)
            assert request.was_sent == (self.sent[request] > 0)
            if isinstance(request.error, NotSentError | NotConnectedError):
                assert not request.was_sent
            if isinstance(request.error, RequestTimeoutError | ServerError):
                assert request.was_sent

    @invariant()
    def lanes_have_one_request_and_one_swap_is_in_flight(self) -> None:
        in_flight = [one for one in self.requests if one.stage is Stage.IN_FLIGHT]
        assert len(self.owed()) == self.engine.session.in_flight
        assert len({one.lane for one in in_flight}) == len(in_flight)
        assert sum(one.op == "swap" for one in in_flight) <= 1
        waiting = [one for one in self.requests if one.stage is Stage.WAITING]
        assert len(waiting) == self.engine.session.waiting

    @invariant()
    def pending_replies_have_a_request(self) -> None:
        for sending in self.open:
            # Every pending reply is owed, unless the same order was looked up by both IDs.
            if not self.crossed:
                assert sending.request.owed, sending

    def teardown(self) -> None:
        """Check that nothing is left after all replies, and after the end of the connection."""
        for _ in range(1000):
            self.write()
            if not self.open and not self.unfinished():
                break
            while self.open:
                self.send_reply(self.open[0], op=True, names={"orderId", "clientOrderId"})
            self.harness.pass_time(ALONE_DELAY)
            self.count_ends()
            if self.is_replaced:
                self.lose()
        else:
            raise AssertionError("a request never ended")
        # An error on a tainted connection may be another's, so it pays no swap's debt. The same
        # goes for a receipt after a swap's error.
        trust = self.engine.session.trust
        is_tainted = trust.is_tainted or trust.had_swap_error
        assert (
            self.crossed
            or not self.owed()
            or (is_tainted and any(one.op == "swap" for one in self.owed()))
        )
        lost, closed = ConnectionLostError("lost"), NotConnectedError("closed")
        self.harness.act(self.engine.close(None, lost, closed, self.now))
        self.count_ends()
        assert self.harness.is_clean()
        assert self.engine.timers.next_deadline == math.inf
        assert all(self.ended[request] == 1 for request in self.requests)


SessionMachine.TestCase.settings = settings(max_examples=70, stateful_step_count=50, deadline=None)
TestSessionMachine = SessionMachine.TestCase
