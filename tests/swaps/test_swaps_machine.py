"""Swaps with an impolite broker, over a connection that is cut at any byte.

The connection is a stream of bytes in both directions. The broker receives a frame once it is
complete, and keeps a ledger. It does everything that the protocol lets a broker do:

- It executes a swap and says nothing, or says so late, or sends an error with words of doubt.
- It sends the error of a swap that a lookup has found while the next swap is in flight.
- It calls a swap a duplicate, whether there is an order with its id or not.
- It refuses a swap with a listed text and executes it even so, and may send the receipt later.
- Its errors may leave out the operation, and its receipts and orders the client order id.
- Its lookups may find nothing by a client order id.
- It sends replies that nobody asked for, and replies that name other orders.

Callers may be cancelled, and the client's wall clock may be set. How impolite the broker is differs
between histories, so that long sequences without a lost connection are reached as well.

The ledger must have each client order id at most once, and every outcome that a caller, an event or
the journal got must be true and stay true. A refusal by a broker that executes the swap even so
must be corrected once its receipt has arrived.

**What no client can tell apart, the broker doesn't do:**

- Send an error twice, or an error that nobody is owed, if it names nothing else than an operation
  of which a reply is owed. The same goes for errors without ``op`` while any reply is owed. But
  after a reply that nobody was owed, it sends them while a swap is owed its reply.
- Send a receipt or a state twice while a reply about the same order is owed. The second one looks
  like that reply, and the reply itself then looks like another's.
- Send the receipt or the state of an unknown order without a client order id that nobody asked for
  while a swap, or a lookup, is owed a reply.
- Send an error *and* a receipt for one swap if the client couldn't attribute the error, because
  another swap was owed a reply as well. The two look like the replies to both.

`python -m tests.machines swaps 5000` runs more histories, and prints what happened in them.
`python -m tests.swaps.mutations` shows that each rule of the client is needed.
"""

from __future__ import annotations

from hypothesis import settings, strategies as st
from hypothesis.stateful import precondition, rule

from tests.engine_harness import TIMEOUT
from tests.swaps.impolite_broker import ELSEWHERE, REFUSALS
from tests.swaps.swaps_steps import ALL, READS, SwapsSteps, mostly, some
from trio_broker._protocol import requests


class SwapsMachine(SwapsSteps):
    """Adds sequences of steps that single steps reach too rarely."""

    @precondition(lambda self: self.may_swap)
    @rule(data=st.data(), is_taken=some([False, False, True]), is_followed=mostly)
    def find_by_lookup(self, data: st.DataObject, is_taken: bool, is_followed: bool) -> None:
        """A lookup finds a swap. Its own reply may come while the next one is in flight."""
        name = self.new_name(is_taken=is_taken)
        self.slow_down(False)
        self.make_swap(name)
        for asked in self.executable():
            if asked.name == name:
                self.execute_one(asked)
        self.pass_time(TIMEOUT)
        if self.repeatable():
            self.repeat(data)
        for asked in self.open("swap"):
            if asked.name == name and asked.executed and data.draw(st.booleans()):
                how = "lie" if self.manners.lies else "doubt"
                self.send_error(data, asked, how, names_id=False, at_once=True)
        for asked in self.open("order_status"):
            self.send_reply(asked, self.broker.state(asked, names_id=True), at_once=True)
        if is_followed and self.is_connected:
            self.make_swap(self.new_name())
            for asked in self.open("swap"):
                if asked.name == name and name in self.confirmed:
                    how = data.draw(some(["lie", "lie", "doubt", "duplicate"]))
                    self.send_error(data, asked, how, names_id=False, at_once=True)

    @precondition(lambda self: self.may_swap)
    @rule(data=st.data(), how=some(["doubt", "doubt", "duplicate"]))
    def execute_with_an_error(self, data: st.DataObject, how: str) -> None:
        """A swap is executed, and its error doesn't say so."""
        name = self.new_name()
        self.slow_down(False)
        self.make_swap(name)
        for asked in self.open("swap"):
            if asked.name == name and self.broker.may_execute(asked, self.now):
                self.execute_one(asked)
                self.send_error(data, asked, how, names_id=False, at_once=True)

    @precondition(lambda self: self.may_swap)
    @rule(data=st.data())
    def refuse_twice(self, data: st.DataObject) -> None:
        """Two swaps are refused in the same words."""
        text = data.draw(some(REFUSALS))
        self.slow_down(False)
        for _ in range(2):
            name = self.new_name()
            if self.is_connected:
                self.make_swap(name)
            for asked in self.open("swap"):
                if asked.name == name and not asked.executed:
                    asked.refused = True
                    self.send_refusal(asked, self.broker.error("swap", text, names_op=False))

    @precondition(lambda self: self.may_swap)
    @rule(data=st.data(), what=some(READS))
    def refuse_read_beside_a_swap(self, data: st.DataObject, what: str) -> None:
        self.slow_down(False)
        self.read(what, writer_is_blocked=False)
        self.make_swap(self.new_name())
        if self.open(what):
            self.answer_read(data, is_good=False, is_named=False)

    @precondition(lambda self: self.may_swap and self.manners.sends_strays)
    @rule(data=st.data(), op=some(READS))
    def send_strays_beside_a_swap(self, data: st.DataObject, op: str) -> None:
        self.slow_down(False)
        self.make_swap(self.new_name())
        self.send_stray(data, op, "error")
        self.send_stray(data, op, "bare")

    @precondition(lambda self: self.may_swap)
    @rule()
    def repeat_an_order_beside_a_lookup(self) -> None:
        """A lookup of the user is answered, and again while a swap is looked up."""
        self.slow_down(False)
        link = self.link
        lookup = requests.order_status(ELSEWHERE, self.now + TIMEOUT)
        self.client.submit(lookup)
        self.finish_step()
        for asked in self.open("order_status"):
            self.send_reply(asked, self.broker.state(asked, names_id=False), at_once=True)
        self.make_swap(self.new_name())
        self.pass_time(TIMEOUT)
        is_seen = lookup.result is not None and ELSEWHERE not in self.owed_names()
        if link is not None and link is self.link and is_seen:
            link.send({"op": "order_status", "data": {"orderId": ELSEWHERE, "status": "X"}})
            self.client_receives(ALL)

    @precondition(lambda self: self.may_swap and self.manners.lies)
    @rule(data=st.data(), is_beside=st.booleans())
    def execute_after_a_refusal(self, data: st.DataObject, is_beside: bool) -> None:
        """The receipt of a refused swap comes, perhaps while the next one is in flight."""
        name = self.new_name()
        self.slow_down(False)
        self.make_swap(name)
        for asked in self.open("swap"):
            if asked.name == name and self.broker.may_execute(asked, self.now):
                self.send_error(data, asked, "lie", names_id=False, at_once=True)
                if not asked.executed:
                    self.execute_one(asked)
        if is_beside and self.is_connected:
            self.make_swap(self.new_name())
        if self.receipts_to_come():
            self.send_receipt_after_an_error(data, names_id=False, at_once=True)


SwapsMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
TestSwapsMachine = SwapsMachine.TestCase
