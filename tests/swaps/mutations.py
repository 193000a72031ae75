"""Shows that the swaps machine finds each rule's absence: `python -m tests.swaps.mutations 1500`.

Each mutation takes one rule out of the client at run time. The machine then runs until it fails, or
until it has run as many histories as the command line says. A mutation that survives is a rule that
the machine doesn't test.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import attrs
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.swaps.test_swaps_machine import SwapsMachine
from trio_broker._protocol import session
from trio_broker._protocol.matching import Debts, Reply
from trio_broker._protocol.order_ids import OrderIds
from trio_broker._protocol.requests import Request
from trio_broker._protocol.session import Session
from trio_broker._protocol.trust import Trust
from trio_broker._swaps import refusals, registry
from trio_broker._swaps.refusals import RefusalTable, Verdict
from trio_broker._swaps.registry import Swap, SwapRegistry
from trio_broker.exceptions import BrokerError, ServerError
from trio_broker.models import SwapOutcome

Patch: TypeAlias = pytest.MonkeyPatch
Mutation: TypeAlias = Callable[[Patch], None]

MUTATIONS: Final[dict[str, Mutation]] = {}


def mutation(name: str) -> Callable[[Mutation], Mutation]:
    """Add a mutation to the table."""

    def add(mutate: Mutation) -> Mutation:
        MUTATIONS[name] = mutate
        return mutate

    return add


# --- Which request a reply belongs to --------------------------------------------------------


@mutation("a debt is cleared when its lane is free")
def _(patch: Patch) -> None:
    def free_lane(self: Debts, request: Request) -> None:
        del self.holders[request.lane]
        self.pay(request, request.owed)

    patch.setattr(Debts, "free_lane", free_lane)


@mutation("a reply that names another order is taken")
def _(patch: Patch) -> None:
    patch.setattr(Debts, "_may_answer", lambda *_: True)


@mutation("the reply to a lookup may name another order")
def _(patch: Patch) -> None:
    def lookups(self: Debts, _: Reply) -> list[Request]:
        return [request for request in self.owed if request.op == "order_status"]

    patch.setattr(Debts, "_lookups", lookups)
    patch.setattr(OrderIds, "may_be_swap", lambda *_: True)


@mutation("the order of another swap is accepted")
def _(patch: Patch) -> None:
    def may_be_swap(_: OrderIds, own: str, names: tuple[str | None, str | None]) -> bool:
        return names[1] in {None, own}

    patch.setattr(OrderIds, "may_be_swap", may_be_swap)


@mutation("an order that another lookup has named is accepted")
def _(patch: Patch) -> None:
    patch.setattr(session, "note_order", lambda *_: None)


@mutation("a reply that fits several requests is given to the swap at once")
def _(patch: Patch) -> None:
    original = Debts.candidates

    def candidates(self: Debts, reply: Reply) -> list[Request]:
        found = original(self, reply)
        swaps = [request for request in found if request.op == "swap"]
        return swaps[-1:] if len(found) > 1 and swaps else found

    patch.setattr(Debts, "candidates", candidates)


@mutation("a reply that nobody was owed changes nothing")
def _(patch: Patch) -> None:
    patch.setattr(Trust, "taint", lambda *_: None)


# --- What an error says ----------------------------------------------------------------------


def always_refuses(patch: Patch, pattern: str) -> None:
    """Take errors whose text has a pattern for refusals."""
    original = RefusalTable.judge

    def judge(self: RefusalTable, text: str, code: str, *, names_op: bool) -> Verdict:
        if re.search(pattern, text, re.IGNORECASE):
            return Verdict.REFUSED
        return original(self, text, code, names_op=names_op)

    patch.setattr(RefusalTable, "judge", judge)


@mutation("every error refuses")
def _(patch: Patch) -> None:
    always_refuses(patch, "")


@mutation("a duplicate refuses")
def _(patch: Patch) -> None:
    always_refuses(patch, "duplicate|already|exists")


@mutation("an internal error refuses")
def _(patch: Patch) -> None:
    always_refuses(patch, "internal")


@mutation("a timeout refuses")
def _(patch: Patch) -> None:
    always_refuses(patch, "time|504")


@mutation("a used nonce refuses")
def _(patch: Patch) -> None:
    always_refuses(patch, "nonce")


@mutation("a refusal wins over a word of doubt")
def _(patch: Patch) -> None:
    patch.setattr(refusals, "_IS_DOUBT", re.compile("(?!)"))


@mutation("an error without an operation doesn't refuse")
def _(patch: Patch) -> None:
    original = RefusalTable.judge

    def judge(self: RefusalTable, text: str, code: str, *, names_op: bool) -> Verdict:
        return original(self, text, code, names_op=True) if names_op else Verdict.UNKNOWN

    patch.setattr(RefusalTable, "judge", judge)


@mutation("a refusal in the words of an earlier one is looked up")
def _(patch: Patch) -> None:
    original = SwapRegistry._take_error
    known: set[tuple[int, str]] = set()

    def take_error(
        self: SwapRegistry, swap: Swap, request: Request, error: BrokerError, now: float
    ) -> None:
        words = id(self), str(error)
        request.is_certain &= words not in known
        known.add(words)
        original(self, swap, request, error, now)

    patch.setattr(SwapRegistry, "_take_error", take_error)


@mutation("an uncertain error refuses")
def _(patch: Patch) -> None:
    patch.setattr(Request, "is_certain", property(lambda _: True, lambda *_: None))


@mutation("a duplicate is confirmed without an error")
def _(patch: Patch) -> None:
    patch.setattr(Swap, "says_duplicate", property(lambda _: False, lambda *_: None))


# --- What comes later ------------------------------------------------------------------------


@mutation("a receipt after a refusal is taken without a lookup")
def _(patch: Patch) -> None:
    patch.setattr(SwapRegistry, "_doubtful_now", lambda _: [])


@mutation("an unverified receipt pays the debt")
def _(patch: Patch) -> None:
    original = Session._may_be_stray

    def may_be_stray(self: Session, request: Request, reply: Reply) -> bool:
        return bool(reply.message.error) and original(self, request, reply)

    patch.setattr(Session, "_may_be_stray", may_be_stray)


@mutation("a receipt that nobody was owed is dropped")
def _(patch: Patch) -> None:
    patch.setattr(SwapRegistry, "take_unowed_receipt", lambda *_: None)


@mutation("an unverified receipt is forgotten")
def _(patch: Patch) -> None:
    patch.setattr(SwapRegistry, "_ask_whose", lambda *_: None)


@mutation("a receipt that can't be attributed corrects nothing")
def _(patch: Patch) -> None:
    patch.setattr(SwapRegistry, "_doubt_all", lambda *_: None)


@mutation("a correction isn't reported")
def _(patch: Patch) -> None:
    patch.setattr(SwapRegistry, "_corrected", lambda *_: None)


@mutation("a lookup that finds a refused swap corrects nothing")
def _(patch: Patch) -> None:
    original = SwapRegistry._found

    def found(self: SwapRegistry, swap: Swap, request: Request, now: float) -> bool:
        is_refused = swap.outcome is SwapOutcome.REFUSED
        return not is_refused and original(self, swap, request, now)

    patch.setattr(SwapRegistry, "_found", found)


@mutation("a late error undoes a confirmation")
def _(patch: Patch) -> None:
    original = SwapRegistry.swap_ended

    def swap_ended(self: SwapRegistry, request: Request, now: float) -> None:
        if request.subject.outcome is SwapOutcome.CONFIRMED and request.error is not None:
            self._take_error(request.subject, request, request.error, now)
            request.subject.outcome = SwapOutcome.UNKNOWN
        else:
            original(self, request, now)

    patch.setattr(SwapRegistry, "swap_ended", swap_ended)


# --- Unknown swaps ---------------------------------------------------------------------------


@mutation("the wall clock decides about own swaps")
def _(patch: Patch) -> None:
    original = Swap.may_still_execute

    def may_still_execute(self: Swap, now: float, at: Any) -> bool:
        return original(attrs.evolve(self, entered=None), now, at)

    patch.setattr(Swap, "may_still_execute", may_still_execute)


@mutation("one answer ends the lookups of a swap that may execute")
def _(patch: Patch) -> None:
    patch.setattr(registry, "_is_conclusive", lambda *_: True)


@mutation("an order that isn't found refuses")
def _(patch: Patch) -> None:
    original = SwapRegistry._stop_lookups

    def stop_lookups(self: SwapRegistry, swap: Swap, now: float) -> None:
        if swap.is_own and swap.outcome is SwapOutcome.UNKNOWN:
            error = ServerError("swap", "not found")
            self._end(swap, SwapOutcome.REFUSED, now, error=error)
        else:
            original(self, swap, now)

    patch.setattr(SwapRegistry, "_stop_lookups", stop_lookups)


@mutation("the id of an unknown swap may be used again")
def _(patch: Patch) -> None:
    original = SwapRegistry.find

    def find(self: SwapRegistry, client_order_id: str) -> Swap | None:
        swap = original(self, client_order_id)
        is_entering = sys._getframe(1).f_code.co_name == "enter"
        is_unknown = swap is not None and swap.outcome is SwapOutcome.UNKNOWN
        return None if is_entering and is_unknown else swap

    patch.setattr(SwapRegistry, "find", find)


# --- The table -------------------------------------------------------------------------------


def histories_until_failure(name: str, histories: int) -> int | None:
    """Run the machine with a mutation. Returns None if it survives.

    The machine ends at its first failure. Hypothesis then runs that history again.
    """
    SwapsMachine.figures.clear()
    options: Any = {
        "max_examples": histories,
        "phases": [Phase.generate],
        "database": None,
        "report_multiple_bugs": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        MUTATIONS[name](patch)
        try:
            usual = SwapsMachine.TestCase.settings
            run_state_machine_as_test(SwapsMachine, settings=settings(usual, **options))
        except Exception:  # noqa: BLE001 - any error is a failure
            return SwapsMachine.figures["histories"]
    return None


def main(arguments: Iterable[str] | None = None) -> int:
    """Print the table. Returns how many mutations survive."""
    parser = argparse.ArgumentParser(prog="python -m tests.swaps.mutations")
    parser.add_argument("histories", type=int, nargs="?", default=1500)
    parser.add_argument("--only", default="", help="a part of the name of a mutation")
    options = parser.parse_args(None if arguments is None else list(arguments))
    survivors = 0
    for name in MUTATIONS:
        if options.only in name:
            count = histories_until_failure(name, options.histories)
            survivors += count is None
            result = "SURVIVES" if count is None else f"fails after {count} histories"
            print(f"{name:<70} {result}", flush=True)  # noqa: T201
    return survivors


if __name__ == "__main__":
    sys.exit(main())
