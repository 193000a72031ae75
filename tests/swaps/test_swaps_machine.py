"""Swaps with a broker that may not execute or not answer, over a connection cut at any byte.

The connection is a stream of bytes in both directions. The broker receives a frame once it is
complete, and keeps a ledger. It may lose, delay or repeat replies, callers may be cancelled, and
the connection may be cut at any byte. The ledger must have each client order ID at most once, and
every outcome that a caller got must be true and stay true.

The broker never repeats a reply that names no order: no client could distinguish it from the reply
to the next request.

`python -m tests.machines swaps 5000` runs more histories, and prints what happened in them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
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
)

from tests.engine_harness import GRACE, TIMEOUT
from tests.swaps.harness import RESOLVE, SwapsHarness
from trio_broker._protocol import codec, requests
from trio_broker._protocol.requests import Request
from trio_broker._protocol.session import ALONE_DELAY
from trio_broker._swaps.registry import Swap
from trio_broker.events import ConnectionEvent, SwapResolved
from trio_broker.exceptions import (
    ConnectionLostError,
    DuplicateClientOrderIdError,
    NotSentError,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.models import SwapOutcome, SwapReceipt

WINDOW: Final = 30.0  # the broker accepts a message for so many seconds after its signature
LOST: Final = ConnectionLostError("the line was cut")

NOT_ACCEPTED: Final = (
    "Request timestamp outside allowed window",
    "Invalid signature",
    "Unknown operation: swap",
)
# The first show that a swap isn't executed, the second don't.
REFUSALS: Final[tuple[dict[str, Any], ...]] = (
    *({"op": "swap", "error": text} for text in ("Insufficient balance", "Rate limit exceeded")),
    *({"error": text} for text in ("Insufficient balance", "Unknown operation: swap")),
)
VAGUE: Final[tuple[dict[str, Any], ...]] = (
    {"op": "swap", "error": "Nonce has already been used or is expired"},
    {"error": "Internal error"},
    *({"error": text} for text in NOT_ACCEPTED[:2]),
)
TOO_LATE: Final = {"op": "swap", "error": "Request timestamp outside allowed window"}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "balances": {"balances": []},
    "estimate": {"price": "1", "expectedOut": "1"},
}
OPS: Final = ("swap", "order_status", *BODIES)
ELSEWHERE: Final = "x1"  # an order of another client, without a client order id
ALL: Final = 1_000_000

some_bytes = st.one_of(st.just(ALL), st.just(ALL), st.integers(1, 400))


def framed(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "big") + data


def take_frames(buffer: bytearray) -> list[str]:
    """Remove the complete frames."""
    texts = []
    while len(buffer) >= 4 and len(buffer) >= 4 + (size := int.from_bytes(buffer[:4], "big")):
        texts.append(bytes(buffer[4 : 4 + size]).decode())
        del buffer[: 4 + size]
    return texts


def move(count: int, source: bytearray, target: bytearray) -> None:
    target += source[:count]
    del source[:count]


# --- The broker ------------------------------------------------------------------------------


@attrs.define(eq=False)
class Link:
    """One connection, with the bytes on their way in both directions."""

    up: bytearray = attrs.field(factory=bytearray)
    at_broker: bytearray = attrs.field(factory=bytearray)
    down: bytearray = attrs.field(factory=bytearray)
    at_client: bytearray = attrs.field(factory=bytearray)
    said: list[Said] = attrs.field(factory=list)


@attrs.define(eq=False)
class Asked:
    """A complete message that the broker has received."""

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
    """A message that the broker has sent."""

    asked: Asked
    message: dict[str, Any]

    @property
    def names_its_order(self) -> bool:
        return "orderId" in self.message.get("data", {})


@attrs.define(eq=False)
class Broker:
    """The broker with its ledger. It does nothing by itself."""

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
            assert asked.op != "swap" or not same, f"{name} arrived twice"
            self.asked.append(asked)
            if asked.op == "auth":
                self.send_reply(asked, {"op": "auth", "data": {"status": "authenticated"}})

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
        """The orders with a client order ID or order ID."""
        return [order for client_id, order in self.orders if name in {client_id, order}]

    def send_reply(self, asked: Asked, message: dict[str, Any]) -> Said:
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
        """The true state of a requested order."""
        orders = [ELSEWHERE] if asked.name == ELSEWHERE else self.orders_of(asked.name)
        if not orders:
            return {"op": "order_status", "error": "Order not found"}
        data = {"orderId": orders[0], "status": "FILLED"}
        if named:
            data |= {"clientOrderId": self.names[orders[0]]} if orders[0] in self.names else {}
        return {"op": "order_status", "data": data}


# --- The client ------------------------------------------------------------------------------


@attrs.define(eq=False)
class Call:
    """A call that swaps or looks a swap up. It is its own waiter."""

    machine: SwapsMachine = attrs.field(repr=False)
    name: str
    swap: Swap = attrs.field(repr=False)
    connection: int = 0
    request: Request | None = attrs.field(default=None, repr=False)
    is_over: bool = False

    def set(self) -> None:
        self.machine.check_result(self)


class ClientHarness(SwapsHarness):
    """A client's engine that passes its events to the machine."""

    def __init__(self, machine: SwapsMachine, now: float) -> None:
        super().__init__()
        self.machine = machine
        self.now = now

    def take_event(self, event: ConnectionEvent) -> None:
        self.machine.note_event(event)

    def give_up_waiting(self, call: Call) -> None:
        if call in call.swap.waiters:
            call.swap.waiters.remove(call)


class SwapsMachine(RuleBasedStateMachine):
    figures: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.broker = Broker()
        self.link: Link | None = None
        self.links: list[Link] = []
        self.client = ClientHarness(self, 0.0)
        self.is_over = False
        self.is_slow = False
        self.receives_batches = False
        self.calls: list[Call] = []
        # What callers and events have reported of swaps.
        self.sent: dict[str, Request] = {}
        self.confirmed: dict[str, str] = {}
        self.refused: set[str] = set()
        self.not_sent: list[Request] = []
        self.settled: set[str] = set()
        self.figures["histories"] += 1

    @property
    def now(self) -> float:
        return self.client.now

    @initialize(echoes=st.sampled_from([False, False, True]), together=st.booleans())
    def begin(self, echoes: bool, together: bool) -> None:
        self.broker.echoes = echoes
        self.receives_batches = together
        self.connect(at_once=True)

    # --- Whether reported outcomes are true --------------------------------------------------

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

    def check_result(self, call: Call) -> None:
        """Check the result that a caller gets."""
        assert not call.is_over
        call.is_over = True
        try:
            receipt = call.swap.result()
        except NotSentError:
            self.figures["not sent"] += 1
            if call.request is not None:  # it was submitted
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
    def ledger_has_each_id_once(self) -> None:
        names = [name for name, _ in self.broker.orders]
        assert len(names) == len(set(names))

    @invariant()
    def reported_outcomes_are_true(self) -> None:
        for name, order in self.confirmed.items():
            assert self.broker.orders_of(name) == [order]
        for name in self.refused:
            assert self.broker.orders_of(name) == [], f"{name} was refused, and is executed"
        assert not self.refused & self.confirmed.keys()
        for request in self.not_sent:
            assert request not in self.sent.values()
            assert not request.was_sent

    @invariant()
    def journaled_outcomes_are_true(self) -> None:
        for ended in self.client.swaps_ended:
            orders = self.broker.orders_of(ended.intent.client_order_id)
            if ended.outcome is SwapOutcome.CONFIRMED:
                assert orders == [ended.order_id]
            elif ended.outcome is SwapOutcome.REFUSED:
                assert orders == []

    @invariant()
    def unreported_swaps_are_unresolved(self) -> None:
        unresolved = self.client.unresolved()
        assert len(unresolved) == len(set(unresolved))
        reported = self.confirmed.keys() | self.refused | self.settled
        assert {name for name in self.sent if name not in reported} == {*unresolved} - self.settled
        assert not self.settled & {*unresolved}

    # --- Callers -----------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self.client.session.is_authenticated and not self.is_over

    @precondition(lambda self: self.is_connected)
    @rule(data=st.data(), is_new=st.sampled_from([True, True, True, False]), stays=st.booleans())
    def enter(self, data: st.DataObject, is_new: bool, stays: bool) -> None:
        """A task swaps. The journal may be slow to write its intent."""
        names = [f"c{next(self.numbers)}"]
        if self.calls and not is_new:
            names = [call.name for call in self.calls]
        name = data.draw(st.sampled_from(names))
        is_under_way = any(
            call.name == name and call.swap.outcome is SwapOutcome.UNDER_WAY for call in self.calls
        )
        try:
            swap = self.client.enter(name)
        except DuplicateClientOrderIdError:
            # Each rejected id was used before.
            assert name in self.sent or is_under_way
            return
        assert name not in self.sent
        assert not is_under_way
        call = Call(self, name, swap, self.client.session.connections)
        self.calls.append(call)
        if not stays:
            self.submit(call, writer_is_blocked=False)

    def entered(self) -> list[Call]:
        return [call for call in self.calls if call.request is None and not call.is_over]

    @precondition(lambda self: self.is_connected)
    @rule()
    def swap(self) -> None:
        """Make and send a swap at once. Without this rule, few states would be reached."""
        name = f"c{next(self.numbers)}"
        call = Call(self, name, self.client.enter(name), self.client.session.connections)
        self.calls.append(call)
        self.submit(call, writer_is_blocked=False)
        if self.client.session.in_flight:
            self.pass_time(ALONE_DELAY)

    @precondition(lambda self: self.entered())
    @rule(data=st.data(), writer_is_blocked=st.booleans())
    def submit_later(self, data: st.DataObject, writer_is_blocked: bool) -> None:
        self.submit(data.draw(st.sampled_from(self.entered())), writer_is_blocked=writer_is_blocked)

    def submit(self, call: Call, *, writer_is_blocked: bool) -> None:
        if not self.is_connected or self.client.session.connections != call.connection:
            self.client.abandon(call.swap, "the connection was lost meanwhile")
            self.check_result(call)
            return
        call.request = self.client.submit_swap(call.swap)
        self.client.wait_for(call.swap, call)
        self.finish_step(writer_is_blocked=writer_is_blocked)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        unfinished = [call for call in self.calls if not call.is_over]
        if not unfinished:
            return
        call = data.draw(st.sampled_from(unfinished))
        call.is_over = True
        self.client.give_up_waiting(call)
        self.client.abandon(call.swap)
        self.figures["cancelled"] += 1
        self.finish_step()

    @rule(data=st.data(), is_own=st.sampled_from([True, True, True, False]))
    def resolve(self, data: st.DataObject, is_own: bool) -> None:
        """A task looks up a swap that may not exist."""
        names = [*self.sent] if is_own and self.sent else ["unknown"]
        name = data.draw(st.sampled_from(names))
        swap = self.client.swaps.find(name)
        if swap is None or swap.outcome is SwapOutcome.UNKNOWN:
            if self.is_over:
                return
            swap = self.client.look_up(name)
        if swap.outcome is SwapOutcome.UNDER_WAY:
            return  # It would get the same result as the swap's caller.
        self.client.wait_for(swap, Call(self, name, swap, request=swap.request))
        self.finish_step()

    @precondition(lambda self: self.client.unresolved())
    @rule(data=st.data(), often=st.integers(0, 3))
    def settle(self, data: st.DataObject, often: int) -> None:
        """Settle a swap, in some of the histories."""
        if often:
            return
        name = data.draw(st.sampled_from(self.client.unresolved()))
        swap = self.client.swaps.find(name)
        assert swap is not None
        if swap.is_pending:
            with pytest.raises(ValueError, match="being looked up"):
                self.client.settle(name, "by hand")
            return
        self.client.settle(name, "by hand")
        self.settled.add(name)

    @precondition(lambda self: self.is_connected)
    @rule(what=st.sampled_from(["balances", "estimate", "order"]), writer_is_blocked=st.booleans())
    def read(self, what: str, writer_is_blocked: bool) -> None:
        deadline = self.now + TIMEOUT
        if what == "balances":
            request = requests.balances(deadline)
        elif what == "estimate":
            request = requests.estimate(requests.Trade(1, "ETH", "USDT"), None, deadline)
        else:
            order_id = next(iter(self.confirmed.values()), ELSEWHERE)
            request = requests.order_status(order_id, deadline)
        self.client.submit(request)
        self.finish_step(writer_is_blocked=writer_is_blocked)

    @precondition(lambda self: not self.is_over and self.sent)
    @rule(often=st.integers(0, 5))
    def finish(self, often: int) -> None:
        """Close the client, in some of the histories."""
        if often:
            return
        self.is_over = True
        self.client.close()
        self.link = None
        # Calls that weren't submitted yet fail because the client is closed.
        for call in self.entered():
            self.submit(call, writer_is_blocked=True)
        assert all(call.is_over for call in self.calls)
        assert self.client.next_deadline == math.inf

    # --- The connection ----------------------------------------------------------------------

    @precondition(lambda self: self.link is None and not self.is_over)
    @rule(at_once=st.sampled_from([True, True, False]))
    def connect(self, at_once: bool) -> None:
        self.link = Link()
        self.links.append(self.link)
        self.client.engine.connected(requests.authentication(self.now + 1000), self.now)
        self.write()
        if at_once:
            self.broker.receive(self.link, ALL)
            self.client_receives(ALL)

    @precondition(lambda self: self.link is not None)
    @rule(back=st.sampled_from([True, True, False]))
    def lose(self, back: bool) -> None:
        """The client loses the connection. Sent messages may still reach the broker."""
        self.link = None
        self.client.replaced.clear()
        self.client.lose(LOST)
        if back:
            self.connect(at_once=True)

    @rule()
    def write(self) -> None:
        if self.link is None:
            return
        engine = self.client.engine
        while (request := engine.next_to_send(self.now)) is not None:
            nonce = f"n{next(self.numbers)}"
            engine.mark_sent(request, nonce, self.now)
            ts = int(self.now * 1000)
            if request.op == "swap":
                self.figures["swaps sent"] += 1
                name = str(request.client_order_id)
                assert name not in self.sent, f"{name} is sent twice"
                self.sent[name] = request
            if request.op == "auth":
                text = codec.auth_frame("key", ts, nonce, "sig")
            else:
                text = codec.signed_frame(request.op, request.body, ts, nonce, "sig")
            self.link.up += framed(text)
        if not self.is_slow:
            self.broker.receive(self.link, ALL)

    @rule(slow=st.booleans())
    def slow_down(self, slow: bool) -> None:
        """Make later writes arrive late, or at once."""
        self.is_slow = slow
        self.write()

    def finish_step(self, *, writer_is_blocked: bool = False) -> None:
        """Send what may be sent, unless the writer is blocked."""
        if self.client.replaced and self.link is not None:
            self.lose(back=True)
        elif not writer_is_blocked:
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
    def client_receives(self, count: int) -> None:
        link = self.link
        assert link is not None
        move(count, link.down, link.at_client)
        texts = take_frames(link.at_client)
        for batch in [texts] if self.receives_batches and texts else [[text] for text in texts]:
            if self.link is link:
                self.client.receive(*batch)
                self.finish_step()

    @rule(
        seconds=st.sampled_from(
            [0.1, ALONE_DELAY, ALONE_DELAY, ALONE_DELAY, 1.0, 1.0, 1.0, TIMEOUT, GRACE]
        )
    )
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.client.next_deadline) <= end:
            self.client.pass_time(max(0.0, due - self.now))
            self.finish_step()
        self.client.now = end
        self.finish_step()

    # --- The broker --------------------------------------------------------------------------

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
        """Execute a swap, to be answered later or never."""
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
        self.send_reply(asked, message, at_once=at_once)

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
        self.send_reply(asked, message, at_once=at_once)

    @precondition(lambda self: self.open("balances", "estimate"))
    @rule(data=st.data(), how=st.sampled_from(["good", "named", "bare"]), text=st.integers(0, 2))
    def answer_read(self, data: st.DataObject, how: str, text: int) -> None:
        asked = self.draw_asked(data, self.open("balances", "estimate"))
        message: dict[str, Any] = {"op": asked.op, "data": BODIES[asked.op]}
        if how != "good":
            message = {"error": NOT_ACCEPTED[text]}
        if how == "named":
            message["op"] = asked.op
        self.send_reply(asked, message, at_once=True)

    def send_reply(self, asked: Asked, message: dict[str, Any], *, at_once: bool) -> None:
        self.broker.send_reply(asked, message)
        if at_once:
            self.client_receives(ALL)

    @precondition(lambda self: self.is_connected and self.open(*OPS))
    @rule(named=st.booleans())
    def answer_everything(self, named: bool) -> None:
        """Answer everything correctly. Without this rule, few states would be reached."""
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
            self.broker.send_reply(asked, message)
        self.client_receives(ALL)

    @precondition(lambda self: self.repeatable())
    @rule(data=st.data(), at_once=st.booleans())
    def repeat(self, data: st.DataObject, at_once: bool) -> None:
        """The broker sends a message twice."""
        said = data.draw(st.sampled_from(self.repeatable()))
        said.asked.link.down += framed(json.dumps(said.message))
        self.figures["repeated"] += 1
        if at_once:
            self.client_receives(ALL)

    def repeatable(self) -> list[Said]:
        said = self.link.said if self.link is not None else []
        return [one for one in said if one.names_its_order]

    # --- The end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        """With a correct broker, lookups find every executed swap."""
        if not self.links:
            return
        while self.executable():
            self.execute_one(self.executable()[0])
        if self.is_over:
            # Another process that knows only the IDs.
            self.client = ClientHarness(self, self.now)
            self.is_over = False
            self.settled |= self.sent.keys()
        if self.link is not None:
            self.lose(back=False)
        self.connect(at_once=True)
        self.run_correctly(RESOLVE)
        for name, _ in self.broker.orders:
            if name not in self.settled:
                swap = self.client.look_up(name)
                self.run_correctly(RESOLVE)
                self.check_receipt(name, swap.result())
        self.reported_outcomes_are_true()
        self.journaled_outcomes_are_true()
        self.unreported_swaps_are_unresolved()
        assert all(call.is_over for call in self.calls if call.request is not None)

    def run_correctly(self, seconds: float) -> None:
        """The broker answers everything correctly and at once, without a lost connection."""
        self.is_slow = False
        end = self.now + seconds
        while self.now < end:
            self.answer_everything(named=self.broker.echoes)
            self.pass_time(ALONE_DELAY)


SwapsMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
TestSwapsMachine = SwapsMachine.TestCase
