"""Swaps against a broker that executes or not and answers or not, over a line cut at any byte.

The wire is a stream of bytes in both directions, and the broker sees a frame once all of it has
come. It keeps a ledger. Whatever it says, loses, delays or says twice, whoever is cancelled, and
wherever the line is cut: the ledger has each client order id at most once, and what anybody was
told of a swap is true, then and later.

It keeps to what cannot be told apart by anybody (the session's essay): it doesn't say a reply
twice that names nothing, but for refusals of swaps, see `SwapsMachine.repeat`.

    python -m tests.test_swaps_machine 5000

runs as many histories and prints what happened in them.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, ClassVar, Final

import attrs
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trio_broker import operations, wire
from trio_broker.blotter import Blotter, Entry
from trio_broker.exceptions import (
    ClientClosedError,
    ConnectionLostError,
    DuplicateClientOrderIdError,
    NotConnectedError,
    NotSentError,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.models import ConnectionEvent, SwapOutcome, SwapReceipt, SwapResolved
from trio_broker.request import Request
from trio_broker.session import SETTLE, Session

GRACE: Final = 30.0
TIMEOUT: Final = 10.0
RESOLVE: Final = 30.0
WINDOW: Final = 30.0  # seconds after its signature in which the broker takes a message
START: Final = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
LOST: Final = ConnectionLostError("the line was cut")

NOT_ACCEPTED: Final = (
    "Request timestamp outside allowed window",
    "Invalid signature",
    "Unknown operation: swap",
)
# These say that a swap isn't executed, and these say nothing of the kind.
REFUSALS: Final[tuple[dict[str, Any], ...]] = (
    *({"op": "swap", "error": text} for text in ("Insufficient balance", "Rate limit exceeded")),
    *({"error": text} for text in NOT_ACCEPTED),
)
VAGUE: Final[tuple[dict[str, Any], ...]] = (
    {"op": "swap", "error": "Nonce has already been used or is expired"},
    {"error": "Internal error"},
    {"error": "Insufficient balance"},
)
TOO_LATE: Final = {"op": "swap", "error": "Request timestamp outside allowed window"}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "balances": {"balances": []},
    "estimate": {"price": "1", "expectedOut": "1"},
}
OPS: Final = ("swap", "order_status", *BODIES)
ELSEWHERE: Final = "x1"  # an order that somebody else has made, without a client order id
ALL: Final = 1_000_000

some_bytes = st.one_of(st.just(ALL), st.just(ALL), st.integers(1, 400))


def framed(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "big") + data


def take_frames(buffer: bytearray) -> list[str]:
    """Take the frames that are complete."""
    texts = []
    while len(buffer) >= 4 and len(buffer) >= 4 + (size := int.from_bytes(buffer[:4], "big")):
        texts.append(bytes(buffer[4 : 4 + size]).decode())
        del buffer[: 4 + size]
    return texts


def move(count: int, source: bytearray, target: bytearray) -> None:
    target += source[:count]
    del source[:count]


# --- The broker -----------------------------------------------------------------------------


@attrs.define(eq=False)
class Link:
    """One connection: what is on its way in either direction, and what has come."""

    up: bytearray = attrs.field(factory=bytearray)
    at_broker: bytearray = attrs.field(factory=bytearray)
    down: bytearray = attrs.field(factory=bytearray)
    at_client: bytearray = attrs.field(factory=bytearray)
    said: list[Said] = attrs.field(factory=list)


@attrs.define(eq=False)
class Asked:
    """A message that has come whole."""

    op: str
    name: str
    nonce: str
    at: float
    link: Link = attrs.field(repr=False)
    executed: bool = False
    refused: bool = False
    answered: bool = False


@attrs.define(eq=False)
class Said:
    """What the broker has said on a connection."""

    asked: Asked
    message: dict[str, Any]

    @property
    def names_its_order(self) -> bool:
        return "orderId" in self.message.get("data", {})

    @property
    def is_refusal_of_a_swap(self) -> bool:
        return self.message.get("op") == "swap" and "error" in self.message


@attrs.define(eq=False)
class Broker:
    """Who has the ledger. It does nothing by itself."""

    echoes: bool = False
    orders: list[tuple[str, str]] = attrs.field(factory=list)
    asked: list[Asked] = attrs.field(factory=list)

    def receive(self, link: Link, count: int) -> None:
        move(count, link.up, link.at_broker)
        for text in take_frames(link.at_broker):
            message = json.loads(text)
            data = message.get("data", {})
            name = data.get("clientOrderId") or data.get("id") or ""
            asked = Asked(message["op"], name, message["nonce"], message["ts"] / 1000, link)
            same = [one for one in self.asked if (one.op, one.name) == ("swap", name)]
            assert asked.op != "swap" or not same, f"{name} came twice"
            self.asked.append(asked)
            if asked.op == "auth":
                self.say(asked, {"op": "auth", "data": {"status": "authenticated"}})

    def may_execute(self, asked: Asked, now: float) -> bool:
        is_fresh = now - asked.at <= WINDOW
        return asked.op == "swap" and is_fresh and not (asked.executed or asked.refused)

    def execute(self, asked: Asked) -> None:
        asked.executed = True
        self.orders.append((asked.name, f"o{len(self.orders) + 1}"))

    @property
    def names(self) -> dict[str, str]:
        """The client order id of each order."""
        return {order: name for name, order in self.orders}

    def orders_of(self, name: str) -> list[str]:
        """By client order id, or by the broker's own."""
        return [order for client_id, order in self.orders if name in {client_id, order}]

    def say(self, asked: Asked, message: dict[str, Any]) -> Said:
        asked.answered = True
        if self.echoes:
            message = {**message, "nonce": asked.nonce}
        said = Said(asked, message)
        asked.link.said.append(said)
        asked.link.down += framed(json.dumps(message))
        return said

    def receipt(self, asked: Asked) -> dict[str, Any]:
        (order,) = self.orders_of(asked.name)
        return {"op": "swap", "data": {"orderId": order, "status": "PENDING"}}

    def state(self, asked: Asked, *, named: bool) -> dict[str, Any]:
        """What is true of an order that was asked for."""
        orders = [ELSEWHERE] if asked.name == ELSEWHERE else self.orders_of(asked.name)
        if not orders:
            return {"op": "order_status", "error": "Order not found"}
        data = {"orderId": orders[0], "status": "FILLED"}
        if named:
            data |= {"clientOrderId": self.names[orders[0]]} if orders[0] in self.names else {}
        return {"op": "order_status", "data": data}


# --- The client -----------------------------------------------------------------------------


@attrs.define(eq=False)
class Call:
    """A call of somebody who swaps, or who asks for a swap."""

    name: str
    entry: Entry
    connection: int = 0
    request: Request | None = None
    is_over: bool = False
    waiter: Callable[[], None] = lambda: None


@attrs.define(eq=False)
class Client:
    """The session and the blotter, wired to each other as in a client."""

    machine: SwapsMachine
    session: Session = attrs.field(factory=lambda: Session(reply_grace=GRACE))
    blotter: Blotter = attrs.field(init=False)
    is_broken: bool = False

    def __attrs_post_init__(self) -> None:
        machine = self.machine
        self.session.listener.broken = self.note_broken
        self.blotter = Blotter(
            self.session,
            request_timeout=TIMEOUT,
            resolve_timeout=RESOLVE,
            time=lambda: machine.now,
            wall_time=lambda: START + dt.timedelta(seconds=machine.now),
            on_event=machine.note_event,
        )

    def note_broken(self, _: ConnectionLostError) -> None:
        self.is_broken = True


class SwapsMachine(RuleBasedStateMachine):
    figures: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.broker = Broker()
        self.link: Link | None = None
        self.links: list[Link] = []
        self.client = Client(self)
        self.is_over = False
        self.is_slow = False
        self.calls: list[Call] = []
        # What was said of swaps, to their callers or by events; `left`: of which any byte has.
        self.left: dict[str, Request] = {}
        self.confirmed: dict[str, str] = {}
        self.refused: set[str] = set()
        self.not_sent: list[Request] = []
        self.settled: set[str] = set()
        self.figures["histories"] += 1

    @initialize(echoes=st.sampled_from([False, False, True]))
    def begin(self, echoes: bool) -> None:
        self.broker.echoes = echoes
        self.connect(at_once=True)

    # --- What is told, and whether it is true ----------------------------------------------

    def note_event(self, event: ConnectionEvent) -> None:
        if isinstance(event, SwapResolved):
            self.figures["resolved by an event"] += 1
            if event.receipt is not None:
                assert event.outcome is SwapOutcome.CONFIRMED
                self.check_receipt(event.client_order_id, event.receipt)
            else:
                assert event.outcome is SwapOutcome.REFUSED
                assert isinstance(event.error, ServerError)
                self.refused.add(event.client_order_id)

    def check_receipt(self, name: str, receipt: SwapReceipt) -> None:
        assert receipt.client_order_id == name
        assert self.broker.orders_of(name) == [receipt.order_id], f"{name}: {receipt}"
        self.confirmed[name] = receipt.order_id

    def tell(self, call: Call) -> None:
        """A caller is told what became of its call."""
        assert not call.is_over
        call.is_over = True
        try:
            receipt = self.client.blotter.told(call.entry)
        except NotSentError:
            self.figures["not sent"] += 1
            assert call.request is not None
            self.not_sent.append(call.request)
        except ServerError:
            self.figures["refused"] += 1
            self.refused.add(call.name)
        except SwapOutcomeUnknownError:
            self.figures["unknown"] += 1
        else:
            self.figures["confirmed"] += 1
            self.check_receipt(call.name, receipt)

    @invariant()
    def the_ledger_has_each_once(self) -> None:
        names = [name for name, _ in self.broker.orders]
        assert len(names) == len(set(names))

    @invariant()
    def what_was_told_is_true_and_stays_so(self) -> None:
        for name, order in self.confirmed.items():
            assert self.broker.orders_of(name) == [order]
        for name in self.refused:
            assert self.broker.orders_of(name) == [], f"{name} was refused, and is executed"
        assert not self.refused & self.confirmed.keys()
        for request in self.not_sent:
            assert request not in self.left.values()
            assert not request.was_sent

    @invariant()
    def what_was_not_told_is_unresolved(self) -> None:
        unresolved = [swap.client_order_id for swap in self.client.blotter.unresolved()]
        assert len(unresolved) == len(set(unresolved))
        told = self.confirmed.keys() | self.refused | self.settled
        assert {name for name in self.left if name not in told} == {*unresolved} - self.settled
        assert not self.settled & {*unresolved}

    # --- Callers ---------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self.client.session.authenticated and not self.is_over

    @precondition(lambda self: self.is_connected)
    @rule(data=st.data(), is_new=st.sampled_from([True, True, True, False]), stays=st.booleans())
    def enter(self, data: st.DataObject, is_new: bool, stays: bool) -> None:
        """Somebody swaps; the intent isn't written down at once, perhaps."""
        names = [f"c{next(self.numbers)}"]
        if self.calls and not is_new:
            names = [call.name for call in self.calls]
        name = data.draw(st.sampled_from(names))
        is_under_way = any(
            call.name == name and call.entry.outcome is SwapOutcome.UNDER_WAY for call in self.calls
        )
        try:
            entry = self.client.blotter.enter(name, Decimal(1), "ETH", "USDT")
        except DuplicateClientOrderIdError:
            # A broker that knows an id has it from somebody who used it.
            assert name in self.left or is_under_way
            return
        assert name not in self.left
        assert not is_under_way
        call = Call(name, entry, self.client.session.connections)
        self.calls.append(call)
        if not stays:
            self.submit(call, held_up=False)

    def entered(self) -> list[Call]:
        return [call for call in self.calls if call.request is None and not call.is_over]

    @precondition(lambda self: self.is_connected)
    @rule()
    def swap(self) -> None:
        """The plain case, without which little would be reached."""
        name = f"c{next(self.numbers)}"
        entry = self.client.blotter.enter(name, Decimal(1), "ETH", "USDT")
        call = Call(name, entry, self.client.session.connections)
        self.calls.append(call)
        self.submit(call, held_up=False)
        if self.client.session.in_flight:
            self.pass_time(SETTLE)

    @precondition(lambda self: self.entered())
    @rule(data=st.data(), held_up=st.booleans())
    def go(self, data: st.DataObject, held_up: bool) -> None:
        self.submit(data.draw(st.sampled_from(self.entered())), held_up=held_up)

    def submit(self, call: Call, *, held_up: bool) -> None:
        request = operations.swap(
            1,
            "ETH",
            "USDT",
            slippage_bps=None,
            filter_sources=None,
            account=None,
            client_order_id=call.name,
            deadline=self.now + TIMEOUT,
        )
        call.request = request
        if not self.is_connected or self.client.session.connections != call.connection:
            self.client.blotter.abandon(call.entry, NotConnectedError("lost meanwhile"))
            self.tell(call)
            return
        self.client.blotter.submit(call.entry, request)
        self.wait(call)
        self.go_on(held_up=held_up)

    def wait(self, call: Call) -> None:
        call.waiter = lambda: self.tell(call)
        self.client.blotter.when_told(call.entry, call.waiter)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        living = [call for call in self.calls if not call.is_over]
        if not living:
            return
        call = data.draw(st.sampled_from(living))
        call.is_over = True
        self.client.blotter.forget_waiter(call.entry, call.waiter)
        if call.entry.is_own and call in self.calls:
            self.client.blotter.abandon(call.entry, NotSentError("the caller has given it up"))
        self.figures["cancelled"] += 1
        self.go_on()

    @rule(data=st.data(), is_own=st.sampled_from([True, True, True, False]))
    def resolve(self, data: st.DataObject, is_own: bool) -> None:
        """Somebody asks for a swap, be it one that nobody has made."""
        names = [*self.left] if is_own and self.left else ["nobodys"]
        name = data.draw(st.sampled_from(names))
        entry = self.client.blotter.find(name)
        if entry is None or entry.outcome is SwapOutcome.UNKNOWN:
            if self.is_over:
                return
            entry = self.client.blotter.ask(name)
        if entry.outcome is SwapOutcome.UNDER_WAY:
            return  # It would be told as the caller of the swap is.
        self.wait(Call(name, entry, request=entry.request))
        self.go_on()

    @precondition(lambda self: self.client.blotter.unresolved())
    @rule(data=st.data(), often=st.integers(0, 3))
    def settle(self, data: st.DataObject, often: int) -> None:
        """Somebody closes a swap by hand; not in every history."""
        if often:
            return
        swaps = self.client.blotter.unresolved()
        name = data.draw(st.sampled_from(swaps)).client_order_id
        entry = self.client.blotter.find(name)
        assert entry is not None
        if entry.is_asked_for:
            with pytest.raises(ValueError, match="being asked for"):
                self.client.blotter.settle(name, "by hand")
            return
        self.client.blotter.settle(name, "by hand")
        self.settled.add(name)

    @precondition(lambda self: self.is_connected)
    @rule(what=st.sampled_from(["balances", "estimate", "order"]), held_up=st.booleans())
    def read(self, what: str, held_up: bool) -> None:
        deadline = self.now + TIMEOUT
        if what == "balances":
            request = operations.balances(deadline)
        elif what == "estimate":
            request = operations.estimate(
                1,
                "ETH",
                "USDT",
                filter_sources=None,
                network=None,
                account=None,
                deadline=deadline,
            )
        else:
            order_id = next(iter(self.confirmed.values()), ELSEWHERE)
            request = operations.order_status(order_id, deadline)
        self.client.session.submit(request, self.now)
        self.go_on(held_up=held_up)

    @precondition(lambda self: not self.is_over and self.left)
    @rule(often=st.integers(0, 5))
    def finish(self, often: int) -> None:
        """The client is closed; not in every history."""
        if often:
            return
        self.is_over = True
        self.client.blotter.finish(NotConnectedError("closed"))
        self.client.session.shut(LOST, ClientClosedError("closed"))
        self.link = None
        # Who hasn't come to its turn yet finds the client closed.
        for call in self.entered():
            self.submit(call, held_up=True)
        assert all(call.is_over for call in self.calls)
        assert self.client.blotter.next_deadline == math.inf

    # --- The line --------------------------------------------------------------------------

    @precondition(lambda self: self.link is None and not self.is_over)
    @rule(at_once=st.sampled_from([True, True, False]))
    def connect(self, at_once: bool) -> None:
        self.link = Link()
        self.links.append(self.link)
        self.client.session.open(operations.authentication(self.now + 1000), self.now)
        self.write()
        if at_once:
            self.broker.receive(self.link, ALL)
            self.hear(ALL)

    @precondition(lambda self: self.link is not None)
    @rule(back=st.sampled_from([True, True, False]))
    def lose(self, back: bool) -> None:
        """The client loses it. What is on its way to the broker may arrive all the same."""
        self.link = None
        self.client.is_broken = False
        self.client.session.lose(LOST)
        if back:
            self.connect(at_once=True)

    @rule()
    def write(self) -> None:
        if self.link is None:
            return
        session = self.client.session
        while (request := session.next_to_send(self.now)) is not None:
            nonce = f"n{next(self.numbers)}"
            session.mark_sent(request, nonce, self.now)
            ts = int(self.now * 1000)
            if request.op == "swap":
                self.figures["swaps that left"] += 1
                name = str(request.client_order_id)
                assert name not in self.left, f"{name} leaves twice"
                self.left[name] = request
            if request.op == "auth":
                text = wire.auth_frame("key", ts, nonce, "sig")
            else:
                text = wire.signed_frame(request.op, request.body, ts, nonce, "sig")
            self.link.up += framed(text)
        if not self.is_slow:
            self.broker.receive(self.link, ALL)

    @rule(slow=st.booleans())
    def slow_down(self, slow: bool) -> None:
        """From now on, what is written takes its time to arrive, or doesn't."""
        self.is_slow = slow
        self.write()

    def go_on(self, *, held_up: bool = False) -> None:
        """What the connection does after anything has happened, unless its writer is held up."""
        if self.client.is_broken and self.link is not None:
            self.lose(back=True)
        elif not held_up:
            self.write()

    @precondition(lambda self: self.link is not None and self.link.up)
    @rule(count=some_bytes)
    def deliver(self, count: int) -> None:
        assert self.link is not None
        self.broker.receive(self.link, count)

    @precondition(lambda self: any(link.up for link in self.links if link is not self.link))
    @rule(count=some_bytes)
    def deliver_after_the_loss(self, count: int) -> None:
        link = next(link for link in self.links if link.up and link is not self.link)
        self.broker.receive(link, count)

    @precondition(lambda self: self.link is not None and self.link.down)
    @rule(count=some_bytes)
    def hear(self, count: int) -> None:
        link = self.link
        assert link is not None
        move(count, link.down, link.at_client)
        for text in take_frames(link.at_client):
            if self.link is link:
                self.client.session.receive([text], self.now)
                self.go_on()

    @rule(seconds=st.sampled_from([0.1, SETTLE, SETTLE, SETTLE, 1.0, 1.0, 1.0, TIMEOUT, GRACE]))
    def pass_time(self, seconds: float) -> None:
        client, end = self.client, self.now + seconds
        while (due := min(client.session.next_deadline, client.blotter.next_deadline)) <= end:
            self.now = max(self.now, due)
            client.session.tick(self.now)
            client.blotter.tick(self.now)
            self.go_on()
        self.now = end
        self.go_on()

    # --- What the broker does --------------------------------------------------------------

    def draw_asked(self, data: st.DataObject, asked: list[Asked]) -> Asked:
        return data.draw(st.sampled_from(asked))

    def executable(self) -> list[Asked]:
        return [one for one in self.broker.asked if self.broker.may_execute(one, self.now)]

    def open(self, *ops: str) -> list[Asked]:
        return [
            one
            for one in self.broker.asked
            if one.link is self.link and not one.answered and one.op in ops
        ]

    @precondition(lambda self: self.executable())
    @rule(data=st.data())
    def execute(self, data: st.DataObject) -> None:
        """It says so later, or never."""
        self.execute_one(self.draw_asked(data, self.executable()))

    def execute_one(self, asked: Asked) -> None:
        self.broker.execute(asked)
        self.figures["executed"] += 1

    @precondition(lambda self: self.open("swap"))
    @rule(
        data=st.data(),
        how=st.sampled_from(["receipt", "receipt", "refusal", "refusal", "vague", "malformed"]),
        at_once=st.sampled_from([True, True, False]),
    )
    def answer_swap(self, data: st.DataObject, how: str, at_once: bool) -> None:
        asked = self.draw_asked(data, self.open("swap"))
        if how == "receipt" and self.broker.may_execute(asked, self.now):
            self.execute_one(asked)
        message: dict[str, Any]
        if how in {"receipt", "refusal"}:
            # It is executed and confirmed, or it is refused and never will be.
            asked.refused = not asked.executed
            message = data.draw(st.sampled_from(REFUSALS))
            if asked.executed:
                message = self.broker.receipt(asked)
        elif how == "malformed":
            message = self.broker.receipt(asked) if asked.executed else {"op": "swap", "data": {}}
            message["data"]["status"] = 5
        else:
            message = data.draw(st.sampled_from(VAGUE))
        self.say(asked, message, at_once=at_once)

    @precondition(lambda self: self.open("order_status"))
    @rule(
        data=st.data(),
        how=st.sampled_from(["truth", "truth", "truth", "not found", "bare", "error", "nothing"]),
        named=st.booleans(),
        at_once=st.sampled_from([True, True, False]),
    )
    def answer_lookup(self, data: st.DataObject, how: str, named: bool, at_once: bool) -> None:
        asked = self.draw_asked(data, self.open("order_status"))
        message = {
            "truth": self.broker.state(asked, named=named),
            "not found": {"op": "order_status", "error": "Order not found"},
            "bare": {"error": "Order not found"},
            "error": {"op": "order_status", "error": "Rate limit exceeded"},
            "nothing": {"op": "order_status", "data": {"status": "FILLED"}},
        }[how]
        self.say(asked, message, at_once=at_once)

    @precondition(lambda self: self.open("balances", "estimate"))
    @rule(data=st.data(), how=st.sampled_from(["good", "named", "bare"]), text=st.integers(0, 2))
    def answer_read(self, data: st.DataObject, how: str, text: int) -> None:
        asked = self.draw_asked(data, self.open("balances", "estimate"))
        message: dict[str, Any] = {"op": asked.op, "data": BODIES[asked.op]}
        if how != "good":
            message = {"error": NOT_ACCEPTED[text]}
        if how == "named":
            message["op"] = asked.op
        self.say(asked, message, at_once=True)

    def say(self, asked: Asked, message: dict[str, Any], *, at_once: bool) -> None:
        self.broker.say(asked, message)
        if at_once:
            self.hear(ALL)

    @precondition(lambda self: self.is_connected and self.open(*OPS))
    @rule(named=st.booleans())
    def converse(self, named: bool) -> None:
        """It answers all that has come as it should, without which little would be reached."""
        for asked in self.open(*OPS):
            if asked.op == "swap":
                if self.broker.may_execute(asked, self.now):
                    self.execute_one(asked)
                asked.refused = not asked.executed
                message = self.broker.receipt(asked) if asked.executed else TOO_LATE
            elif asked.op == "order_status":
                message = self.broker.state(asked, named=named)
            else:
                message = {"op": asked.op, "data": BODIES[asked.op]}
            self.broker.say(asked, message)
        self.hear(ALL)

    @precondition(lambda self: self.repeatable())
    @rule(data=st.data(), at_once=st.booleans())
    def repeat(self, data: st.DataObject, at_once: bool) -> None:
        """The broker says something twice."""
        said = data.draw(st.sampled_from(self.repeatable()))
        said.asked.link.down += framed(json.dumps(said.message))
        self.figures["said twice"] += 1
        if at_once:
            self.hear(ALL)

    def repeatable(self) -> list[Said]:
        said = self.link.said if self.link is not None else []
        return [one for one in said if one.names_its_order]

    # --- The end ---------------------------------------------------------------------------

    def teardown(self) -> None:
        """With a broker that behaves, whoever asks finds every swap that was executed."""
        if not self.links:
            return
        while self.executable():
            self.execute_one(self.executable()[0])
        if self.is_over:
            # Another process, that knows nothing but the names.
            self.client = Client(self)
            self.is_over = False
            self.settled |= self.left.keys()
        if self.link is not None:
            self.lose(back=False)
        self.connect(at_once=True)
        self.behave(RESOLVE)
        for name, _ in self.broker.orders:
            if name not in self.settled:
                entry = self.client.blotter.ask(name)
                self.behave(RESOLVE)
                self.check_receipt(name, self.client.blotter.told(entry))
        self.what_was_told_is_true_and_stays_so()
        self.what_was_not_told_is_unresolved()
        assert all(call.is_over for call in self.calls if call.request is not None)

    def behave(self, seconds: float) -> None:
        """The broker answers everything, truthfully and at once, and the line holds."""
        self.is_slow = False
        end = self.now + seconds
        while self.now < end:
            self.converse(named=self.broker.echoes)
            self.pass_time(SETTLE)


SwapsMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestSwapsMachine = SwapsMachine.TestCase


def main() -> None:
    """Run as many histories as the command line says."""
    examples = int(sys.argv[1])
    run_state_machine_as_test(
        SwapsMachine,
        settings=settings(SwapsMachine.TestCase.settings, max_examples=examples, print_blob=True),
    )
    for name, count in sorted(SwapsMachine.figures.items()):
        print(f"{name:<22} {count:>8}")  # noqa: T201 - it is what was asked for


if __name__ == "__main__":
    main()
