from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import attrs
import pytest

from trio_broker import blotter, operations
from trio_broker.blotter import LONGEST_WAIT, SIGNATURE_LIFETIME, Blotter, Entry
from trio_broker.exceptions import (
    ConnectionLostError,
    DuplicateClientOrderIdError,
    NotConnectedError,
    NotSentError,
    RequestTimeoutError,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.models import (
    ConnectionEvent,
    SwapOutcome,
    SwapReceipt,
    SwapResolved,
    SwapUnresolved,
)
from trio_broker.request import Request
from trio_broker.session import Session

GRACE = 30.0
TIMEOUT = 10.0
RESOLVE = 30.0
START = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
LOST = ConnectionLostError("the line was cut")
SWAPPED = {"op": "swap", "data": {"orderId": "o1", "status": "PENDING"}}
FOUND = {"op": "order_status", "data": {"orderId": "o1", "status": "FILLED"}}
NOT_FOUND = {"op": "order_status", "error": "Order not found"}


@attrs.define
class Desk:
    """A blotter and its session, with a broker that says what the test says."""

    resolve: float = RESOLVE
    now: float = 0.0
    sent: list[Request] = attrs.field(factory=list)
    facts: list[tuple[str, SwapOutcome, str | None, str]] = attrs.field(factory=list)
    events: list[ConnectionEvent] = attrs.field(factory=list)
    told: list[str] = attrs.field(factory=list)
    session: Session = attrs.field(factory=lambda: Session(reply_grace=GRACE))
    blotter: Blotter = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.blotter = Blotter(
            self.session,
            request_timeout=TIMEOUT,
            resolve_timeout=self.resolve,
            time=lambda: self.now,
            wall_time=lambda: START + dt.timedelta(seconds=self.now),
            on_event=self.events.append,
        )
        self.blotter.on_fact = self.note
        self.connect()

    def note(self, entry: Entry) -> None:
        order_id = entry.receipt.order_id if entry.receipt else None
        self.facts.append((entry.client_order_id, entry.outcome, order_id, entry.cause))

    def connect(self) -> None:
        self.session.open(operations.authentication(self.now + TIMEOUT), self.now)
        self.pump()
        self.reply({"op": "auth", "data": {"status": "authenticated"}})
        self.sent.clear()

    def pump(self) -> list[str]:
        """Let leave what may leave; returns the operations."""
        left = []
        while (request := self.session.next_to_send(self.now)) is not None:
            self.session.mark_sent(request, "", self.now)
            self.sent.append(request)
            left.append(request.op)
        return left

    def reply(self, message: dict[str, Any]) -> None:
        self.session.receive([json.dumps(message)], self.now)

    def until(self, now: float) -> None:
        """Let the time pass, and what may leave, leave."""
        while True:
            due = min(self.session.next_deadline, self.blotter.next_deadline)
            if due > now:
                break
            self.now = max(self.now, due)
            self.session.tick(self.now)
            self.blotter.tick(self.now)
            self.pump()
        self.now = now
        self.pump()

    def swap(self, name: str = "c1", *, wait: bool = True) -> Entry:
        entry = self.blotter.enter(name, Decimal(1), "ETH", "USDT")
        request = operations.swap(
            1,
            "ETH",
            "USDT",
            slippage_bps=None,
            filter_sources=None,
            account=None,
            client_order_id=name,
            deadline=self.now + TIMEOUT,
        )
        self.blotter.submit(entry, request)
        if wait:
            self.blotter.when_told(entry, lambda: self.told.append(name))
        return entry

    def in_doubt(self, name: str = "c1", *, wait: bool = True) -> Entry:
        """A swap whose connection was lost, and that is asked for on the next one."""
        entry = self.swap(name, wait=wait)
        assert self.pump() == ["swap"]
        self.session.lose(LOST)
        self.connect()
        assert self.pump() == ["order_status"]
        return entry

    def unresolved(self) -> list[str]:
        return [swap.client_order_id for swap in self.blotter.unresolved()]


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- The four ends --------------------------------------------------------------------------


def test_a_reply_confirms(desk: Desk) -> None:
    entry = desk.swap()
    assert desk.unresolved() == []
    desk.pump()
    assert desk.unresolved() == ["c1"]
    assert desk.told == []
    desk.reply(SWAPPED)
    assert desk.told == ["c1"]
    assert desk.blotter.told(entry) == SwapReceipt("o1", entry.receipt.status, "c1")  # type: ignore[union-attr]
    assert desk.facts == [("c1", SwapOutcome.CONFIRMED, "o1", "")]
    assert desk.unresolved() == []
    assert desk.events == []  # its caller is told
    assert desk.blotter.order_id("c1") == "o1"


def test_an_error_that_names_the_operation_refuses(desk: Desk) -> None:
    entry = desk.swap()
    desk.pump()
    desk.reply({"op": "swap", "error": "Insufficient balance"})
    assert desk.told == ["c1"]
    for _ in range(2):
        with pytest.raises(ServerError, match="Insufficient balance") as caught:
            desk.blotter.told(entry)
        assert caught.value is not entry.error
    cause = "the broker refused swap: Insufficient balance"
    assert desk.facts == [("c1", SwapOutcome.REFUSED, None, cause)]
    assert desk.unresolved() == []
    assert desk.blotter.order_id("c1") is None


def test_what_does_not_leave_in_time_is_not_sent(desk: Desk) -> None:
    entry = desk.swap()
    desk.session.tick(TIMEOUT)
    assert desk.told == ["c1"]
    with pytest.raises(NotSentError):
        desk.blotter.told(entry)
    assert [(name, outcome) for name, outcome, *_ in desk.facts] == [("c1", SwapOutcome.NOT_SENT)]
    assert desk.blotter.find("c1") is None
    desk.swap()  # its id is free


def test_what_waits_when_the_connection_is_lost_is_not_sent(desk: Desk) -> None:
    entry = desk.swap()
    desk.session.lose(LOST)
    with pytest.raises(NotConnectedError):
        desk.blotter.told(entry)


def test_what_nobody_knows_is_unknown(desk: Desk) -> None:
    entry = desk.in_doubt()
    desk.until(RESOLVE - 0.1)
    assert desk.told == []
    assert desk.unresolved() == ["c1"]
    desk.until(RESOLVE)
    assert desk.told == ["c1"]
    with pytest.raises(SwapOutcomeUnknownError, match="the line was cut; asked for by") as caught:
        desk.blotter.told(entry)
    assert caught.value.client_order_id == "c1"
    assert caught.value.__cause__ is LOST
    assert desk.unresolved() == ["c1"]
    assert desk.facts == []
    (event,) = desk.events
    assert isinstance(event, SwapUnresolved)
    assert event.client_order_id == "c1"
    assert event.reason == caught.value.reason
    assert event.at == START + dt.timedelta(seconds=RESOLVE)


@pytest.mark.parametrize(
    "reply",
    [
        {"op": "swap", "error": "Nonce has already been used or is expired"},
        {"error": "Insufficient balance"},
        {"op": "swap", "data": {}},
    ],
)
def test_a_reply_that_says_nothing_certain_is_asked_about(
    reply: dict[str, Any], desk: Desk
) -> None:
    entry = desk.swap()
    desk.pump()
    desk.reply(reply)
    assert desk.told == []
    assert desk.pump() == ["order_status"]
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"


# --- Asking ---------------------------------------------------------------------------------


def test_it_is_asked_for_by_its_id_until_it_is_found(desk: Desk) -> None:
    entry = desk.in_doubt()
    assert json.loads(desk.sent[-1].body) == {"id": "c1"}
    delays = []
    for _ in range(7):
        asked = desk.now
        desk.reply(NOT_FOUND)
        assert desk.pump() == []
        desk.until(desk.blotter.next_deadline)
        assert desk.sent[-1].op == "order_status"
        delays.append(desk.now - asked)
    assert delays == [0.25, 0.5, 1, 2, 4, 4, 4]
    assert desk.told == []
    desk.reply(FOUND)
    assert desk.told == ["c1"]
    receipt = desk.blotter.told(entry)
    assert (receipt.order_id, receipt.status, receipt.client_order_id) == ("o1", "FILLED", "c1")
    assert desk.facts == [("c1", SwapOutcome.CONFIRMED, "o1", "")]
    assert desk.unresolved() == []
    (event,) = desk.events
    assert isinstance(event, SwapResolved)
    assert (event.client_order_id, event.outcome, event.receipt, event.error) == (
        "c1",
        SwapOutcome.CONFIRMED,
        receipt,
        None,
    )


def test_not_found_is_never_refused(desk: Desk) -> None:
    entry = desk.in_doubt()
    while desk.told == []:
        desk.reply(NOT_FOUND)
        desk.until(min(RESOLVE, desk.blotter.next_deadline))
    with pytest.raises(SwapOutcomeUnknownError, match=r"asked for by its id: .*Order not found"):
        desk.blotter.told(entry)
    assert desk.facts == []
    assert desk.unresolved() == ["c1"]


def test_a_lookup_that_is_not_answered_is_asked_again_in_the_other_way(desk: Desk) -> None:
    entry = desk.in_doubt()
    desk.until(TIMEOUT + 0.25)
    assert [request.op for request in desk.sent] == ["order_status"] * 2
    assert [request.order_id for request in desk.sent] == [None, "c1"]
    desk.reply(
        {
            "op": "order_status",
            "data": {"orderId": "o1", "clientOrderId": "c1", "status": "PENDING"},
        }
    )
    assert desk.blotter.told(entry).order_id == "o1"


def test_a_lookup_that_is_answered_late_is_believed(desk: Desk) -> None:
    entry = desk.in_doubt()
    desk.until(TIMEOUT + 0.1)
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"
    desk.until(3 * RESOLVE)
    assert len(desk.sent) == 1


def test_a_late_answer_after_the_end_changes_nothing(desk: Desk) -> None:
    entry = desk.in_doubt()
    desk.until(TIMEOUT + 0.25)
    first, _ = desk.sent
    named = {"orderId": "o1", "clientOrderId": "c1", "status": "PENDING"}
    desk.reply({"op": "order_status", "data": named})
    facts = list(desk.facts)
    desk.reply(FOUND)
    assert first.result is not None
    assert desk.facts == facts
    assert desk.blotter.told(entry).status == "PENDING"


def test_a_reply_that_names_no_order_confirms_nothing(desk: Desk) -> None:
    entry = desk.in_doubt()
    desk.reply({"op": "order_status", "data": {"status": "FILLED"}})
    assert desk.told == []
    assert "names no order" in entry.reason


def test_the_order_of_another_swap_confirms_nothing(desk: Desk) -> None:
    desk.swap("c0")
    desk.pump()
    desk.reply(SWAPPED)
    entry = desk.in_doubt()
    desk.reply(FOUND)
    assert desk.told == ["c0"]
    assert desk.session.odd == 1
    desk.reply({"op": "order_status", "data": {"orderId": "o2", "status": "FILLED"}})
    assert desk.blotter.told(entry).order_id == "o2"


def test_an_outage_while_asking_is_bridged(desk: Desk) -> None:
    entry = desk.in_doubt()
    desk.session.lose(LOST)
    desk.until(1.0)
    desk.connect()
    desk.pump()
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"


def test_once_the_broker_cannot_take_it_any_more_one_answer_ends_the_asking(desk: Desk) -> None:
    entry = desk.in_doubt()
    desk.until(RESOLVE)
    assert entry.may_have_left
    desk.now = LONGEST_WAIT + SIGNATURE_LIFETIME - 0.1
    assert desk.blotter.unresolved()[0].may_still_execute
    desk.now = LONGEST_WAIT + SIGNATURE_LIFETIME
    assert not desk.blotter.unresolved()[0].may_still_execute
    desk.session.lose(LOST)
    desk.connect()
    desk.told.clear()
    assert desk.blotter.ask("c1") is entry
    desk.blotter.when_told(entry, lambda: desk.told.append("asked"))
    desk.pump()
    desk.reply({"op": "order_status", "error": "Rate limit exceeded"})
    assert desk.told == []  # that is no answer
    desk.until(desk.blotter.next_deadline)
    desk.reply({"op": "order_status", "error": "ORDER_NOT_FOUND"})
    assert desk.told == ["asked"]
    assert desk.unresolved() == ["c1"]
    assert len([one for one in desk.events if isinstance(one, SwapUnresolved)]) == 1


def test_an_id_that_is_not_known_is_asked_for_too(desk: Desk) -> None:
    entry = desk.blotter.ask("from-elsewhere")
    assert desk.unresolved() == []
    desk.pump()
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"
    assert desk.facts == []
    assert desk.events == []
    with pytest.raises(DuplicateClientOrderIdError):
        desk.swap("from-elsewhere")


def test_an_id_that_is_not_known_and_not_found_leaves_nothing(desk: Desk) -> None:
    entry = desk.blotter.ask("from-elsewhere")
    desk.blotter.when_told(entry, lambda: desk.told.append("asked"))
    desk.pump()
    desk.until(4 * RESOLVE)
    assert desk.told == ["asked"]
    with pytest.raises(SwapOutcomeUnknownError, match=r"\(asked for by its id: the broker didn't"):
        desk.blotter.told(entry)
    assert desk.events == []
    assert desk.unresolved() == []
    assert desk.blotter.find("from-elsewhere") is None


def test_a_swap_under_an_id_that_is_being_asked_for_keeps_its_entry(desk: Desk) -> None:
    asked = desk.blotter.ask("c1")
    desk.pump()
    entry = desk.swap()
    desk.reply(FOUND)
    assert asked.outcome is SwapOutcome.CONFIRMED
    desk.pump()
    assert desk.unresolved() == ["c1"]
    desk.reply(SWAPPED)
    assert desk.blotter.told(entry).order_id == "o1"


def test_asking_twice_asks_once(desk: Desk) -> None:
    desk.in_doubt()
    desk.blotter.ask("c1")
    assert desk.pump() == []
    desk.reply(NOT_FOUND)
    desk.blotter.ask("c1")
    assert desk.pump() == ["order_status"]
    desk.until(desk.blotter.next_deadline)
    assert len(desk.sent) == 2


def test_what_ended_is_not_asked_for(desk: Desk) -> None:
    entry = desk.swap()
    assert desk.blotter.ask("c1") is entry  # under way: its reply will tell
    desk.pump()
    desk.reply(SWAPPED)
    assert desk.blotter.ask("c1") is entry
    assert desk.pump() == []
    desk.blotter.when_told(entry, lambda: desk.told.append("at once"))
    assert desk.told == ["c1", "at once"]


def test_who_has_stopped_waiting_is_not_told(desk: Desk) -> None:
    entry = desk.swap(wait=False)
    desk.blotter.when_told(entry, desk.told.clear)
    desk.told.append("untouched")
    desk.blotter.forget_waiter(entry, desk.told.clear)
    desk.blotter.forget_waiter(entry, desk.told.clear)
    desk.pump()
    desk.reply(SWAPPED)
    assert desk.told == ["untouched"]


# --- Late replies ---------------------------------------------------------------------------


def timed_out(desk: Desk) -> Entry:
    entry = desk.swap()
    desk.pump()
    desk.until(TIMEOUT)
    assert isinstance(entry.error, RequestTimeoutError)
    assert [request.op for request in desk.sent] == ["swap", "order_status"]
    return entry


def test_a_late_receipt_confirms(desk: Desk) -> None:
    entry = timed_out(desk)
    desk.reply(SWAPPED)
    assert desk.blotter.told(entry).order_id == "o1"
    assert isinstance(desk.events[0], SwapResolved)
    desk.reply(NOT_FOUND)  # the lookup, by now about nothing
    assert desk.facts == [("c1", SwapOutcome.CONFIRMED, "o1", "")]
    assert desk.blotter.next_deadline == float("inf")


def test_a_late_refusal_refuses(desk: Desk) -> None:
    entry = timed_out(desk)
    desk.reply({"op": "swap", "error": "Insufficient balance"})
    with pytest.raises(ServerError, match="Insufficient"):
        desk.blotter.told(entry)
    (event,) = desk.events
    assert isinstance(event, SwapResolved)
    assert event.outcome is SwapOutcome.REFUSED
    assert event.error is entry.error
    assert event.receipt is None


def test_a_late_error_that_says_nothing_certain_changes_nothing(desk: Desk) -> None:
    entry = timed_out(desk)
    desk.reply({"op": "swap", "error": "Nonce has already been used or is expired"})
    assert entry.outcome is SwapOutcome.UNKNOWN
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"


def test_a_late_refusal_of_what_was_found_changes_nothing(desk: Desk) -> None:
    entry = timed_out(desk)
    desk.reply(FOUND)
    desk.reply({"op": "swap", "error": "Insufficient balance"})
    assert desk.blotter.told(entry).order_id == "o1"


# --- Refusals that may be another's ---------------------------------------------------------

REFUSED = {"op": "swap", "error": "Insufficient balance"}


def refused_twice(desk: Desk) -> Entry:
    desk.swap("c0")
    desk.pump()
    desk.reply(REFUSED)
    entry = desk.swap()
    desk.pump()
    desk.reply(REFUSED)  # its own, or the first one's again
    assert desk.told == ["c0"]
    assert desk.pump() == ["order_status"]
    return entry


def test_a_refusal_that_came_twice_does_not_refuse_what_is_executed(desk: Desk) -> None:
    entry = refused_twice(desk)
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"


def test_a_refusal_in_the_same_words_counts_if_the_order_is_not_found(desk: Desk) -> None:
    entry = refused_twice(desk)
    desk.reply(NOT_FOUND)
    assert desk.told == ["c0", "c1"]
    with pytest.raises(ServerError, match="Insufficient"):
        desk.blotter.told(entry)
    assert desk.facts[-1][:2] == ("c1", SwapOutcome.REFUSED)


def test_a_refusal_in_the_same_words_says_nothing_if_nobody_answers(desk: Desk) -> None:
    entry = refused_twice(desk)
    desk.until(RESOLVE)
    with pytest.raises(SwapOutcomeUnknownError):
        desk.blotter.told(entry)
    assert [type(event) for event in desk.events] == [SwapUnresolved]


def test_a_refusal_in_the_same_words_says_nothing_if_the_client_ends(desk: Desk) -> None:
    entry = refused_twice(desk)
    end(desk)
    with pytest.raises(SwapOutcomeUnknownError):
        desk.blotter.told(entry)
    assert desk.facts[1:] == []


def test_a_swaps_own_receipt_after_anothers_refusal_confirms_it(desk: Desk) -> None:
    entry = refused_twice(desk)
    desk.reply(SWAPPED)
    desk.reply(NOT_FOUND)
    assert desk.blotter.told(entry).order_id == "o1"


def test_after_a_refusal_that_counts_the_next_swap_may_leave(desk: Desk) -> None:
    refused_twice(desk)
    desk.reply(NOT_FOUND)
    desk.swap("c2")
    assert desk.pump() == ["swap"]


def test_an_order_that_names_another_swap_confirms_nothing(desk: Desk) -> None:
    entry = desk.in_doubt("12345")
    desk.until(TIMEOUT + 0.25)
    data = {"orderId": "12345", "clientOrderId": "somebody-else", "status": "FILLED"}
    desk.reply({"op": "order_status", "data": data})
    assert entry.outcome is SwapOutcome.UNKNOWN
    del data["clientOrderId"]
    desk.until(TIMEOUT + 1)
    desk.reply({"op": "order_status", "data": data})
    assert entry.outcome is SwapOutcome.UNKNOWN


def test_an_id_of_somebody_elses_may_be_an_orders_own(desk: Desk) -> None:
    entry = desk.blotter.ask("o7")
    desk.pump()
    desk.reply({"op": "order_status", "data": {"orderId": "o7", "status": "FILLED"}})
    assert desk.blotter.told(entry).order_id == "o7"


def test_it_may_be_asked_for_thousands_of_times() -> None:
    desk = Desk(resolve=float("inf"))
    entry = desk.in_doubt()
    for _ in range(1100):
        desk.reply({"op": "order_status", "error": "Internal error"})
        desk.until(desk.blotter.next_deadline)
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"


def test_who_has_gone_is_told_by_an_event_even_if_another_waits(desk: Desk) -> None:
    entry = desk.swap()
    desk.pump()
    desk.blotter.abandon(entry, NotSentError("given up"))
    desk.reply(SWAPPED)
    assert desk.told == ["c1"]
    assert [type(event) for event in desk.events] == [SwapResolved]


def test_at_the_end_whoever_asks_for_an_unknown_id_is_told(desk: Desk) -> None:
    entry = desk.blotter.ask("nobodys")
    desk.blotter.when_told(entry, lambda: desk.told.append("asked"))
    desk.pump()
    desk.reply(NOT_FOUND)
    end(desk)
    assert desk.told == ["asked"]


def test_at_the_end_what_was_not_submitted_is_not_sent(desk: Desk) -> None:
    desk.blotter.enter("c1", Decimal(1), "ETH", "USDT")
    end(desk)
    assert desk.facts == [("c1", SwapOutcome.NOT_SENT, None, "closed")]


def test_on_another_connection_the_same_words_are_new(desk: Desk) -> None:
    desk.swap("c0")
    desk.pump()
    desk.reply(REFUSED)
    desk.session.lose(LOST)
    desk.connect()
    desk.swap()
    desk.pump()
    desk.reply(REFUSED)
    assert desk.told == ["c0", "c1"]


def test_a_late_refusal_in_the_same_words_says_nothing(desk: Desk) -> None:
    desk.swap("c0")
    desk.pump()
    desk.reply(REFUSED)
    desk.told.clear()
    entry = desk.swap()
    desk.pump()
    desk.until(TIMEOUT)
    desk.reply(REFUSED)
    assert entry.outcome is SwapOutcome.UNKNOWN


def test_what_says_nothing_leaves_the_lane_to_the_swaps_own_reply(desk: Desk) -> None:
    malformed = {"op": "swap", "data": {"orderId": "o1", "status": 5}}
    desk.swap("c0")
    desk.pump()
    desk.reply(malformed)
    desk.pump()
    desk.reply(FOUND)
    entry = desk.swap()
    assert desk.pump() == ["swap"]  # its order is known, so nothing can pass for another's
    desk.reply(malformed)  # the first one's again
    desk.reply(malformed)  # and again
    third = desk.swap("c2")
    assert desk.pump() == ["order_status"]
    desk.reply(REFUSED)  # the second one's own
    with pytest.raises(ServerError, match="Insufficient"):
        desk.blotter.told(entry)
    assert desk.pump() == []
    desk.reply(NOT_FOUND)
    assert desk.pump() == ["swap"]
    desk.reply({"op": "swap", "data": {"orderId": "o2"}})
    assert desk.blotter.told(third).order_id == "o2"


# --- Callers who go -------------------------------------------------------------------------


def test_what_has_not_left_when_its_caller_goes_never_leaves(desk: Desk) -> None:
    entry = desk.swap()
    desk.blotter.abandon(entry, NotSentError("given up"))
    assert desk.pump() == []
    assert desk.facts == [("c1", SwapOutcome.NOT_SENT, None, "given up")]
    desk.swap()


def test_what_was_not_even_submitted_is_not_sent_either(desk: Desk) -> None:
    entry = desk.blotter.enter("c1", Decimal(1), "ETH", "USDT")
    with pytest.raises(DuplicateClientOrderIdError) as caught:
        desk.swap()
    assert caught.value.outcome is SwapOutcome.UNDER_WAY
    assert desk.unresolved() == []
    desk.blotter.abandon(entry, NotSentError("the disk is full"))
    desk.blotter.abandon(entry, NotSentError("twice"))
    assert desk.facts == [("c1", SwapOutcome.NOT_SENT, None, "the disk is full")]
    desk.swap()


def test_what_has_left_goes_on_and_an_event_tells_its_end(desk: Desk) -> None:
    entry = desk.swap(wait=False)
    desk.pump()
    desk.blotter.abandon(entry, NotSentError("given up"))
    (swap,) = desk.blotter.unresolved()
    assert (swap.client_order_id, swap.amount_in, swap.asset_in, swap.asset_out, swap.at) == (
        "c1",
        Decimal(1),
        "ETH",
        "USDT",
        START,
    )
    assert (swap.outcome, swap.may_still_execute) == (SwapOutcome.UNDER_WAY, True)
    assert swap.reason == "its reply hasn't come"
    desk.reply(SWAPPED)
    (event,) = desk.events
    assert isinstance(event, SwapResolved)
    assert event.receipt == desk.blotter.told(entry)
    assert desk.unresolved() == []


# --- Ids ------------------------------------------------------------------------------------


def test_an_id_whose_use_may_have_left_is_refused_with_what_is_known(desk: Desk) -> None:
    outcomes = []

    def again() -> None:
        with pytest.raises(DuplicateClientOrderIdError) as caught:
            desk.swap()
        outcomes.append(caught.value.outcome)

    desk.in_doubt()
    again()
    desk.until(RESOLVE)
    desk.session.lose(LOST)
    desk.connect()
    desk.blotter.settle("c1", "the statement has it")
    again()
    assert outcomes == [SwapOutcome.UNKNOWN, SwapOutcome.SETTLED]
    desk.swap("c2")
    desk.pump()
    desk.reply(REFUSED)
    with pytest.raises(DuplicateClientOrderIdError, match="refused"):
        desk.swap("c2")


def test_what_is_remembered_is_bounded_but_what_is_unresolved_is_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blotter.REMEMBERED == 10_000
    monkeypatch.setattr(blotter, "REMEMBERED", 100)
    desk.in_doubt("doubt")
    desk.until(RESOLVE)
    desk.session.lose(LOST)
    desk.connect()
    for number in range(101):
        desk.swap(f"c{number}", wait=False)
        desk.pump()
        desk.reply({"op": "swap", "data": {"orderId": f"order{number}"}})
    assert desk.blotter.find("c0") is None
    assert desk.blotter.find("c1") is not None
    assert desk.unresolved() == ["doubt"]


# --- By hand, and after a crash -------------------------------------------------------------


def test_settled_it_is_resolved_and_noted(desk: Desk) -> None:
    entry = desk.in_doubt()
    with pytest.raises(ValueError, match="c1 is being asked for"):
        desk.blotter.settle("c1", "?")
    desk.until(RESOLVE)
    desk.blotter.settle("c1", "the statement has it")
    assert desk.facts == [("c1", SwapOutcome.SETTLED, None, "the statement has it")]
    assert desk.unresolved() == []
    with pytest.raises(SwapOutcomeUnknownError, match="the statement has it"):
        desk.blotter.told(entry)
    with pytest.raises(ValueError, match="no unresolved swap has the client order id c1"):
        desk.blotter.settle("c1", "again")


@pytest.mark.parametrize("late", [SWAPPED, FOUND])
def test_a_receipt_that_comes_after_all_corrects_its_owner(late: dict[str, Any]) -> None:
    desk = Desk(resolve=1.0)
    entry = timed_out(desk)
    desk.until(TIMEOUT + 1)
    desk.blotter.settle("c1", "it never arrived")
    desk.reply({"op": "swap", "error": "Nope"} if late is FOUND else NOT_FOUND)
    assert entry.outcome is SwapOutcome.SETTLED
    desk.reply(late)
    assert desk.blotter.told(entry).order_id == "o1"
    assert isinstance(desk.events[-1], SwapResolved)
    assert desk.facts == [
        ("c1", SwapOutcome.SETTLED, None, "it never arrived"),
        ("c1", SwapOutcome.CONFIRMED, "o1", "closed by hand before: it never arrived"),
    ]
    assert desk.unresolved() == []


def test_what_has_not_left_cannot_be_settled(desk: Desk) -> None:
    desk.swap()
    with pytest.raises(ValueError, match="no unresolved swap"):
        desk.blotter.settle("c1", "?")


def test_what_an_earlier_process_left_is_unresolved_until_it_is_asked_for(desk: Desk) -> None:
    early = START - dt.timedelta(days=1)
    desk.blotter.load([Entry("c0", early, Decimal(1), "BTC", "USDT", cause="the process ended")])
    (swap,) = desk.blotter.unresolved()
    assert (swap.client_order_id, swap.outcome) == ("c0", SwapOutcome.UNKNOWN)
    assert (swap.reason, swap.may_still_execute) == ("the process ended", False)
    assert desk.pump() == []
    with pytest.raises(DuplicateClientOrderIdError):
        desk.swap("c0")
    entry = desk.blotter.ask("c0")
    desk.pump()
    desk.reply(FOUND)
    assert desk.blotter.told(entry).order_id == "o1"
    assert desk.facts == [("c0", SwapOutcome.CONFIRMED, "o1", "")]


# --- The end of the client ------------------------------------------------------------------


def end(desk: Desk) -> None:
    desk.blotter.finish(NotConnectedError("closed"))
    desk.session.shut(ConnectionLostError("the client was closed"), NotConnectedError("closed"))


@pytest.mark.parametrize("sent", [False, True])
def test_at_the_end_a_swap_under_way_is_told(sent: bool, desk: Desk) -> None:
    entry = desk.swap()
    if sent:
        desk.pump()
    end(desk)
    assert desk.told == ["c1"]
    with pytest.raises(SwapOutcomeUnknownError if sent else NotConnectedError):
        desk.blotter.told(entry)
    assert [type(event) for event in desk.events] == [SwapUnresolved] * sent
    assert desk.unresolved() == ["c1"] * sent


@pytest.mark.parametrize("between", [False, True])
def test_at_the_end_what_is_being_asked_for_is_told(between: bool, desk: Desk) -> None:
    desk.in_doubt()
    if between:
        desk.reply(NOT_FOUND)
    end(desk)
    assert desk.told == ["c1"]
    assert [type(event) for event in desk.events] == [SwapUnresolved]
    assert desk.unresolved() == ["c1"]
    assert desk.blotter.next_deadline == float("inf")
    entry = desk.blotter.ask("c1")  # nobody can be asked any more
    desk.blotter.when_told(entry, lambda: desk.told.append("asked"))
    assert desk.told == ["c1", "asked"]


def test_at_the_end_what_was_reported_is_not_reported_again(desk: Desk) -> None:
    desk.in_doubt()
    desk.until(RESOLVE)
    desk.blotter.load([Entry("c0", START, cause="the process ended")])
    end(desk)
    assert [type(event) for event in desk.events] == [SwapUnresolved]
