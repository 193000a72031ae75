"""The single steps of the swaps machine, and what must be true after each of them.

`test_swaps_machine` says what the machine is about. `impolite_broker` is its broker.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
from collections import Counter
from typing import ClassVar, Final

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.engine_harness import GRACE, TIMEOUT
from tests.swaps.harness import RESOLVE, SwapsHarness
from tests.swaps.impolite_broker import (
    AUTHENTICATION,
    BODIES,
    DOUBTS,
    DUPLICATES,
    ELSEWHERE,
    NOT_FOUND,
    REFUSALS,
    STRANGER,
    Asked,
    Broker,
    Link,
    Manners,
    Message,
    framed,
)
from trio_broker._protocol import codec, requests
from trio_broker._protocol.requests import Request
from trio_broker._protocol.session import ALONE_DELAY
from trio_broker._swaps.registry import Swap
from trio_broker.events import ConnectionEvent, SwapCorrected, SwapResolved
from trio_broker.exceptions import (
    ConnectionLostError,
    DuplicateClientOrderIdError,
    NotSentError,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.models import SwapOutcome, SwapReceipt

LOST: Final = ConnectionLostError("the line was cut")
TOO_LATE: Final = {"op": "swap", "error": "Request timestamp outside allowed window"}
READS: Final = ("balances", "estimate")
OPS: Final = ("swap", "order_status", *READS)
ALL: Final = 1_000_000

some_bytes = st.one_of(st.just(ALL), st.just(ALL), st.integers(1, 400))
some = st.sampled_from
mostly = some([True, True, False])
some_manners = st.builds(
    Manners,
    echoes=some([False, False, False, True]),
    names_op=some([False, False, None, True]),
    names_ids=some([False, False, None, True]),
    finds_by_client_id=some([True, True, True, False]),
    lies=st.booleans(),
    sends_strays=some([False, False, True]),
    has_takers=st.booleans(),
    wall_clock_steps=st.booleans(),
)


# --- The client ------------------------------------------------------------------------------


@attrs.define(eq=False)
class Call:
    """A call that swaps or looks a swap up. It is its own waiter."""

    machine: SwapsSteps = attrs.field(repr=False)
    name: str
    swap: Swap = attrs.field(repr=False)
    connection: int = 0
    request: Request | None = attrs.field(default=None, repr=False)
    is_over: bool = False

    def set(self) -> None:
        self.machine.check_result(self)


class ClientHarness(SwapsHarness):
    """A client's engine that passes its events to the machine."""

    def __init__(self, machine: SwapsSteps, now: float) -> None:
        super().__init__()
        self.machine = machine
        self.now = now
        self.clock_error = 0.0

    @property
    def at(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.now + self.clock_error, dt.UTC)

    def take_event(self, event: ConnectionEvent) -> None:
        self.machine.note_event(event)

    def give_up_waiting(self, call: Call) -> None:
        if call in call.swap.waiters:
            call.swap.waiters.remove(call)


class SwapsSteps(RuleBasedStateMachine):
    figures: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.broker = Broker()
        self.link: Link | None = None
        self.links: list[Link] = []
        self.client = ClientHarness(self, 0.0)
        self.is_over = False
        self.is_calm = self.may_finish = False
        self.is_slow = False
        self.receives_batches = False
        self.calls: list[Call] = []
        self.reads: list[Request] = []
        self.sent: dict[str, Request] = {}
        self.sent_at: dict[str, float] = {}
        # The swaps whose receipt the client has got, or a lookup that names them.
        self.delivered: set[str] = set()
        # What callers and events have reported of swaps.
        self.confirmed: dict[str, str] = {}
        self.refused: set[str] = set()
        self.not_sent: list[Request] = []
        self.settled: set[str] = set()
        self.figures["histories"] += 1

    @property
    def now(self) -> float:
        return self.client.now

    @property
    def manners(self) -> Manners:
        return self.broker.manners

    @initialize(
        manners=some_manners,
        is_calm=mostly,
        may_finish=some([False, False, False, True]),
        together=st.booleans(),
    )
    def begin(self, manners: Manners, is_calm: bool, may_finish: bool, together: bool) -> None:
        self.broker.manners = manners
        self.is_calm, self.may_finish = is_calm, may_finish
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
        elif isinstance(event, SwapCorrected):
            self.figures[f"corrected: {event.outcome.value}"] += 1
            name = event.client_order_id
            assert event.before is SwapOutcome.REFUSED
            assert name in self.refused
            self.refused.remove(name)
            if event.receipt is not None:
                self.check_receipt(name, event.receipt)
            else:
                assert event.outcome is SwapOutcome.UNKNOWN

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
            self.check_duplicate(call, receipt)

    def check_duplicate(self, call: Call, receipt: SwapReceipt) -> None:
        """A caller whose own reply was about a duplicate is told so, with the true order."""
        error = call.swap.duplicate
        if error is not None:
            self.figures["duplicate"] += 1
            assert error.order is not None
            assert (error.order.order_id, error.was_sent) == (receipt.order_id, True)
        elif call.request is not None and isinstance(call.request.error, ServerError):
            is_own = call.request.is_certain and not call.request.is_late
            is_duplicate = call.request.error.message.strip() in map(str.strip, DUPLICATES)
            assert not (is_own and is_duplicate) or call.name in self.broker.confirmed

    @invariant()
    def ledger_has_each_id_once(self) -> None:
        names = [name for name, _ in self.broker.orders]
        assert len(names) == len(set(names))

    @invariant()
    def reported_outcomes_are_true(self) -> None:
        for name, order in self.confirmed.items():
            assert self.broker.orders_of(name) == [order]
        for name in self.refused - self.broker.lies:
            assert self.broker.orders_of(name) == [], f"{name} was refused, and is executed"
        assert not self.refused & self.confirmed.keys()
        for request in self.not_sent:
            assert request not in self.sent.values()
            assert not request.was_sent

    @invariant()
    def journal_says_what_was_reported(self) -> None:
        # An id of which nothing was sent may be used again, also by another process.
        ends = [
            ended for ended in self.client.swaps_ended if ended.outcome is not SwapOutcome.NOT_SENT
        ]
        last = {ended.intent.client_order_id: ended for ended in ends}
        for name, ended in last.items():
            if name in self.confirmed:
                assert (ended.outcome, ended.order_id) == ("confirmed", self.confirmed[name])
            elif name in self.refused:
                assert ended.outcome is SwapOutcome.REFUSED
            elif name in self.settled:
                assert ended.outcome is SwapOutcome.SETTLED
            else:
                assert ended.outcome is SwapOutcome.UNKNOWN
        confirmed = [ended for ended in ends if ended.order_id is not None]
        assert len(confirmed) == len({one.intent.client_order_id for one in confirmed})

    @invariant()
    def unreported_swaps_are_unresolved(self) -> None:
        unresolved = self.client.unresolved()
        assert len(unresolved) == len(set(unresolved))
        reported = self.confirmed.keys() | self.refused | self.settled
        assert {name for name in self.sent if name not in reported} == {*unresolved} - self.settled
        assert not self.settled & {*unresolved}

    @invariant()
    def swaps_that_may_execute_are_waited_for(self) -> None:
        """Whatever the wall clock says."""
        unresolved = {*self.client.unresolved()}
        for asked in self.executable():
            if asked.name in unresolved:
                swap = self.found(asked.name)
                assert swap.describe(self.now, self.client.at).may_still_execute
                is_early = self.now < self.sent_at[asked.name] + RESOLVE and not self.is_over
                assert swap.is_pending or not is_early

    # --- Callers -----------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self.client.session.is_authenticated and not self.is_over

    @property
    def may_swap(self) -> bool:
        """Whether a swap would be sent soon."""
        holders = self.client.session._debts.holders
        return self.is_connected and ("swap", None) not in holders

    def new_name(self, *, is_taken: bool = False) -> str:
        name = f"c{next(self.numbers)}"
        if is_taken and self.manners.has_takers:
            self.broker.take(name)
        return name

    @precondition(lambda self: self.is_connected)
    @rule(data=st.data(), is_new=mostly, stays=st.booleans(), is_taken=st.booleans())
    def enter(self, data: st.DataObject, is_new: bool, stays: bool, is_taken: bool) -> None:
        """A task swaps. The journal may be slow to write its intent."""
        names = [call.name for call in self.calls]
        if is_new or not names:
            names = [self.new_name(is_taken=is_taken)]
        name = data.draw(some(names))
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

    @precondition(lambda self: self.may_swap)
    @rule(data=st.data(), is_taken=some([False, False, True]), is_answered=mostly)
    def swap(self, data: st.DataObject, is_taken: bool, is_answered: bool) -> None:
        """Make and send a swap at once. Without this rule, few states would be reached."""
        name = self.new_name(is_taken=is_taken)
        self.make_swap(name)
        if is_answered and name in [asked.name for asked in self.open("swap")]:
            self.draw_answer(data, self.open("swap")[-1], at_once=True)

    def make_swap(self, name: str) -> None:
        call = Call(self, name, self.client.enter(name), self.client.session.connections)
        self.calls.append(call)
        self.submit(call, writer_is_blocked=False)
        if self.client.session.in_flight:
            self.pass_time(ALONE_DELAY)

    @precondition(lambda self: self.entered())
    @rule(data=st.data(), writer_is_blocked=st.booleans())
    def submit_later(self, data: st.DataObject, writer_is_blocked: bool) -> None:
        self.submit(data.draw(some(self.entered())), writer_is_blocked=writer_is_blocked)

    def submit(self, call: Call, *, writer_is_blocked: bool) -> None:
        if not self.is_connected or self.client.session.connections != call.connection:
            self.client.abandon(call.swap, "the connection was lost meanwhile")
            self.check_result(call)
            return
        call.request = self.client.submit_swap(call.swap)
        self.client.wait_for(call.swap, call)
        self.finish_step(writer_is_blocked=writer_is_blocked)

    def unfinished(self) -> list[Call]:
        return [call for call in self.calls if not call.is_over]

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.cancel_one(data.draw(some(self.unfinished())))

    def cancel_one(self, call: Call) -> None:
        call.is_over = True
        self.client.give_up_waiting(call)
        self.client.abandon(call.swap)
        self.figures["cancelled"] += 1
        self.finish_step()

    @rule(data=st.data(), is_own=some([True, True, True, False]))
    def resolve(self, data: st.DataObject, is_own: bool) -> None:
        """A task looks up a swap that may not exist."""
        names = [*self.sent] if is_own and self.sent else ["unknown"]
        name = data.draw(some(names))
        swap = self.client.swaps.find(name)
        if swap is None or swap.outcome is SwapOutcome.UNKNOWN:
            if self.is_over:
                return
            swap = self.client.look_up(name)
        if swap.outcome is SwapOutcome.UNDER_WAY:
            return  # It would get the same result as the swap's caller.
        self.client.wait_for(swap, Call(self, name, swap, request=swap.request))
        self.finish_step()

    def settleable(self) -> list[str]:
        return [name for name in self.client.unresolved() if not self.found(name).is_pending]

    @precondition(lambda self: self.settleable())
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        name = data.draw(some(self.settleable()))
        self.client.settle(name, "by hand")
        self.settled.add(name)
        self.figures["settled"] += 1

    def found(self, name: str) -> Swap:
        swap = self.client.swaps.find(name)
        assert swap is not None
        return swap

    @precondition(lambda self: self.is_connected)
    @rule(what=some([*READS, "order"]), writer_is_blocked=st.booleans())
    def read(self, what: str, writer_is_blocked: bool) -> None:
        deadline = self.now + TIMEOUT
        if what == "balances":
            request = requests.balances(deadline)
        elif what == "estimate":
            request = requests.estimate(requests.Trade(1, "ETH", "USDT"), None, deadline)
        else:
            orders = [ELSEWHERE, *self.confirmed.values()]
            request = requests.order_status(orders[len(orders) // 3], deadline)
        self.reads.append(self.client.submit(request))
        self.finish_step(writer_is_blocked=writer_is_blocked)

    @precondition(lambda self: self.reads)
    @rule(data=st.data())
    def abandon_read(self, data: st.DataObject) -> None:
        request = data.draw(some(self.reads))
        self.reads.remove(request)
        self.client.give_up(request)
        self.finish_step()

    @precondition(lambda self: self.manners.wall_clock_steps)
    @rule(seconds=some([-600.0, -20.0, 20.0, 600.0, 0.0, 0.0]))
    def set_wall_clock(self, seconds: float) -> None:
        self.client.clock_error = seconds

    @precondition(lambda self: self.may_finish and not self.is_over and self.sent)
    @rule()
    def finish(self) -> None:
        """Close the client, in some of the histories."""
        self.is_over = True
        self.client.close()
        self.link = None
        # Calls that weren't submitted yet fail because the client is closed.
        for call in self.entered():
            self.submit(call, writer_is_blocked=True)
        assert self.unfinished() == []
        assert self.client.next_deadline == math.inf

    # --- The connection ----------------------------------------------------------------------

    @precondition(lambda self: self.link is None and not self.is_over)
    @rule(at_once=mostly)
    def connect(self, at_once: bool) -> None:
        self.link = Link()
        self.links.append(self.link)
        self.client.engine.connected(requests.authentication(self.now + 1000), self.now)
        self.write()
        if at_once:
            self.broker.receive(self.link, ALL)
            self.client_receives(ALL)

    @precondition(lambda self: self.link is not None and not self.is_calm)
    @rule(back=mostly)
    def lose(self, back: bool) -> None:
        """The client loses the connection. Sent messages may still reach the broker."""
        self.link = None
        self.client.replaced.clear()
        self.client.lose(LOST)
        if back:
            self.connect(at_once=True)

    @precondition(lambda self: self.client.engine.next_to_send(self.now) is not None)
    @rule()
    def write(self) -> None:
        if self.link is None:
            return
        engine = self.client.engine
        wall_time = self.client.at.timestamp()
        while (request := engine.next_to_send(self.now)) is not None:
            if request.send_by <= self.now or request.sign_by < wall_time:
                self.client.give_up(request, NotSentError("it is too late"))
                continue
            nonce = f"n{next(self.numbers)}"
            engine.mark_sent(request, nonce, self.now)
            ts = int(wall_time * 1000)
            if request.op == "swap":
                self.figures["swaps sent"] += 1
                name = str(request.client_order_id)
                assert name not in self.sent, f"{name} is sent twice"
                self.sent[name] = request
                self.sent_at[name] = self.now
            if request.op == "auth":
                text = codec.auth_frame("key", ts, nonce, "sig")
            else:
                text = codec.signed_frame(request.op, request.body, ts, nonce, "sig")
            self.link.up += framed(text)
        if not self.is_slow:
            self.broker.receive(self.link, ALL)

    @precondition(lambda self: not self.is_calm)
    @rule(slow=some([False, False, True]))
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
        if link is None:
            return
        texts = link.at_client_next(count)
        for batch in [texts] if self.receives_batches and texts else [[text] for text in texts]:
            if self.link is link:
                self.client.receive(*batch)
                if not self.client.session.trust.is_over:
                    self.note_receipts(batch)
                self.finish_step()

    def note_receipts(self, texts: list[str]) -> None:
        for message in map(json.loads, texts):
            data = message.get("data", {})
            name = self.broker.names.get(data.get("orderId"), "")
            if message.get("op") == "swap" or data.get("clientOrderId") == name:
                self.delivered.add(name)

    @rule(seconds=some([0.1, *[ALONE_DELAY] * 3, *[1.0] * 3, TIMEOUT, GRACE]))
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.client.next_deadline) <= end:
            self.client.pass_time(max(0.0, due - self.now))
            self.finish_step()
        self.client.now = end
        self.finish_step()

    # --- The broker --------------------------------------------------------------------------

    def executable(self) -> list[Asked]:
        return [one for one in self.broker.asked if self.broker.may_execute(one, self.now)]

    def open(self, *ops: str) -> list[Asked]:
        return [
            one
            for one in self.broker.asked
            if one.link is self.link and not one.answered and one.op in ops
        ]

    def owed(self) -> dict[str, Request]:
        """What the client is owed, by operation; the last one of each."""
        return {request.op: request for request in self.client.session._debts.owed}

    @precondition(lambda self: self.executable())
    @rule(data=st.data())
    def execute(self, data: st.DataObject) -> None:
        """Execute a swap, to be answered later or never."""
        self.execute_one(data.draw(some(self.executable())))

    def execute_one(self, asked: Asked) -> None:
        self.broker.execute(asked)
        self.figures["executed"] += 1

    @precondition(lambda self: self.open("swap"))
    @rule(data=st.data(), at_once=mostly)
    def answer_swap(self, data: st.DataObject, at_once: bool) -> None:
        self.draw_answer(data, data.draw(some(self.open("swap"))), at_once=at_once)

    def draw_answer(self, data: st.DataObject, asked: Asked, *, at_once: bool) -> None:
        how = data.draw(
            some(["receipt"] * 2 + ["refusal"] * 2 + ["lie", "doubt", "duplicate", "malformed"])
        )
        names_id = data.draw(some([False, False, False, True]))
        if how in {"receipt", "malformed"}:
            if self.broker.may_execute(asked, self.now):
                self.execute_one(asked)
            if not asked.executed:
                how = "refusal"
        may_lie = self.manners.lies or asked.name in self.confirmed
        if how == "lie" and not may_lie:
            how = "refusal"
        if how == "refusal" and asked.executed:
            how = "lie" if may_lie else "doubt"
        if how in {"refusal", "lie"} and asked.name in self.broker.taken:
            how = "duplicate"
        if how in {"receipt", "malformed"}:
            message = self.broker.receipt(asked.name, names_id=names_id)
            if how == "malformed":
                message["data"]["status"] = 5
            self.send_reply(asked, message, at_once=at_once)
        else:
            self.send_error(data, asked, how, names_id=names_id, at_once=at_once)

    def send_error(
        self, data: st.DataObject, asked: Asked, how: str, *, names_id: bool, at_once: bool
    ) -> None:
        texts = {"doubt": DOUBTS, "duplicate": DUPLICATES}.get(how, REFUSALS)
        if how == "refusal":
            asked.refused = True
            texts += AUTHENTICATION
        elif how == "lie":
            self.broker.lies.add(asked.name)
            if data.draw(st.booleans()) and self.broker.may_execute(asked, self.now):
                self.execute_one(asked)
        text = data.draw(some(texts))
        message = self.broker.error("swap", text, names_op=data.draw(st.booleans()))
        if names_id:
            message["data"] = {"clientOrderId": asked.name}
        if at_once and text in REFUSALS:
            self.send_refusal(asked, message)
        else:
            self.send_reply(asked, message, at_once=at_once)

    def send_refusal(self, asked: Asked, message: Message) -> None:
        """It refuses a swap at once, whatever form it has and however often it was sent before."""
        self.client_receives(ALL)
        is_alone = [*self.owed().values()] == [self.sent[asked.name]]
        self.send_reply(asked, message, at_once=True)
        if is_alone and asked.link is self.link and not asked.link.is_tainted:
            is_ended = self.found(asked.name).outcome is not SwapOutcome.UNKNOWN
            assert is_ended or self.sent[asked.name].is_abandoned

    @precondition(lambda self: self.link is not None and self.receipts_to_come())
    @rule(data=st.data(), names_id=st.booleans(), at_once=mostly)
    def send_receipt_after_an_error(
        self, data: st.DataObject, names_id: bool, at_once: bool
    ) -> None:
        """The broker has executed a swap after its error, and sends the receipt even so."""
        asked = data.draw(some(self.receipts_to_come()))
        asked.was_in_error = False
        self.figures["receipt after an error"] += 1
        self.send_reply(asked, self.broker.receipt(asked.name, names_id=names_id), at_once=at_once)

    def receipts_to_come(self) -> list[Asked]:
        return [
            one
            for one in self.broker.asked
            if one.link is self.link
            and one.executed
            and one.was_in_error
            and not self.sent[one.name].owed  # the client has attributed the error
        ]

    @precondition(lambda self: self.open("order_status"))
    @rule(
        data=st.data(),
        how=some(["truth", "truth", "truth", "not found", "bare", "error", "nothing"]),
        named=st.booleans(),
        at_once=mostly,
    )
    def answer_lookup(self, data: st.DataObject, how: str, named: bool, at_once: bool) -> None:
        asked = data.draw(some(self.open("order_status")))
        message = {
            "truth": self.broker.state(asked, names_id=named),
            "not found": {"op": "order_status", "error": NOT_FOUND},
            "bare": {"error": NOT_FOUND},
            "error": {"op": "order_status", "error": "Rate limit exceeded"},
            "nothing": {"op": "order_status", "data": {"status": "FILLED"}},
        }[how]
        self.send_reply(asked, message, at_once=at_once)

    @precondition(lambda self: self.open(*READS))
    @rule(data=st.data(), is_good=st.booleans(), is_named=st.booleans())
    def answer_read(self, data: st.DataObject, is_good: bool, is_named: bool) -> None:
        asked = data.draw(some(self.open(*READS)))
        message: Message = {"op": asked.op, "data": BODIES[asked.op]}
        if not is_good:
            text = data.draw(some(REFUSALS + AUTHENTICATION))
            message = self.broker.error(asked.op, text, names_op=is_named)
        self.send_reply(asked, message, at_once=True)

    def send_reply(self, asked: Asked, message: Message, *, at_once: bool) -> None:
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
                if asked.executed:
                    message = self.broker.receipt(asked.name, names_id=named)
                elif asked.name in self.broker.taken:
                    message = {"op": "swap", "error": DUPLICATES[0]}
                else:
                    asked.refused, message = True, TOO_LATE
            elif asked.op == "order_status":
                message = self.broker.state(asked, names_id=named)
            else:
                message = {"op": asked.op, "data": BODIES[asked.op]}
            self.broker.send_reply(asked, message)
        self.client_receives(ALL)

    # --- Messages that are no replies --------------------------------------------------------

    @precondition(lambda self: self.repeatable())
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The broker sends a message twice that names a known order."""
        self.client_receives(ALL)
        if self.link is not None and self.repeatable():
            self.link.send(data.draw(some(self.repeatable())))
            self.figures["repeated"] += 1
            self.client_receives(ALL)

    def repeatable(self) -> list[Message]:
        said = self.link.said if self.link is not None else []
        named = [message for message in said if "orderId" in message.get("data", {})]
        return [
            message
            for message in named
            if "clientOrderId" in message["data"]
            or message["data"]["orderId"] in self.client.engine.order_ids
            if not self.owed_names() & {*message["data"].values()}
        ]

    def owed_names(self) -> set[str | None]:
        """The ids of the orders about which the client is owed a reply."""
        return {
            request.client_order_id or request.order_id
            for request in self.client.session._debts.owed
        }

    @precondition(lambda self: self.is_connected and self.manners.sends_strays)
    @rule(
        data=st.data(),
        op=some(OPS),
        kinds=some([["bare"], ["error"], ["good"], ["error", "bare"], ["good", "bare"]]),
    )
    def send_strays(self, data: st.DataObject, op: str, kinds: list[str]) -> None:
        """The broker sends replies that nobody is owed and that name no order."""
        for kind in kinds:
            self.send_stray(data, op, kind)

    def send_stray(self, data: st.DataObject, op: str, kind: str) -> None:
        self.client_receives(ALL)
        link, owed = self.link, self.owed()
        if link is None or (op in owed and kind != "bare"):
            return
        if kind == "bare" and not owed.keys() <= ({"swap"} if link.is_tainted else set()):
            return
        text = data.draw(some(REFUSALS + AUTHENTICATION + DOUBTS))
        body = BODIES.get(op) or {"orderId": STRANGER[0], "status": "PENDING"}
        link.send(
            {
                "bare": {"error": text},
                "error": {"op": op, "error": text},
                "good": {"op": op, "data": body},
            }[kind]
        )
        self.figures["strays"] += 1
        link.is_tainted = link.is_tainted or not (kind == "good" and op == "swap")
        self.client_receives(ALL)

    @precondition(lambda self: self.is_connected and self.manners.sends_strays)
    @rule(data=st.data(), op=some(["swap", "order_status", ""]), is_error=st.booleans())
    def name_another_order(self, data: st.DataObject, op: str, is_error: bool) -> None:
        """The broker sends a reply about an order that no request in flight asked for."""
        self.client_receives(ALL)
        link = self.link
        if link is None:
            return
        owed = self.owed_names()
        others = [{"orderId": STRANGER[0], "clientOrderId": STRANGER[1]}]
        others += [
            {key: value}
            for name, order in self.confirmed.items()
            if not owed & {name, order}
            for key, value in (("orderId", order), ("clientOrderId", name))
        ]
        names = data.draw(some(others))
        if is_error or not op or "orderId" not in names:
            message = {"error": data.draw(some(REFUSALS)), "data": names}
        else:
            message = {"data": {**names, "status": "FILLED"}}
        link.send({"op": op, **message} if op else message)
        link.is_tainted = link.is_tainted or STRANGER[0] in names.values()
        self.figures["named others"] += 1
        self.client_receives(ALL)

    # --- The end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        """With a correct broker, lookups find every executed swap."""
        if not self.links:
            return
        while self.executable():
            self.execute_one(self.executable()[0])
        self.broker.manners = attrs.evolve(self.manners, finds_by_client_id=True)
        self.client.clock_error = 0.0
        for call in self.entered():
            self.cancel_one(call)
        if self.is_over:
            self.receipts_corrected_refusals()
            # Another process that knows only the IDs.
            self.client = ClientHarness(self, self.now)
            self.is_over = False
            self.settled |= self.sent.keys()
        if self.link is not None:
            self.lose(back=False)
        self.connect(at_once=True)
        self.run_correctly(RESOLVE)
        self.receipts_corrected_refusals()
        for name, _ in self.broker.orders:
            if name not in self.settled | self.refused:
                swap = self.client.look_up(name)
                self.run_correctly(RESOLVE)
                self.check_receipt(name, swap.result())
        self.reported_outcomes_are_true()
        self.journal_says_what_was_reported()
        self.unreported_swaps_are_unresolved()
        assert self.unfinished() == []

    def receipts_corrected_refusals(self) -> None:
        assert not self.refused & self.delivered, "its receipt came, and nothing corrected it"

    def run_correctly(self, seconds: float) -> None:
        """The broker answers everything correctly and at once, without a lost connection."""
        self.is_slow = False
        end = self.now + seconds
        while self.now < end:
            self.answer_everything(named=self.manners.echoes)
            self.pass_time(ALONE_DELAY)
