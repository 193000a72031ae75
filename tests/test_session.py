"""Requests and replies without ids, by example."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any, Final

import pytest

from trio_broker import operations, wire
from trio_broker.exceptions import (
    AuthenticationError,
    BrokerError,
    ConnectionLostError,
    InvalidSignatureError,
    NotAuthenticatedError,
    NotConnectedError,
    NotSentError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
)
from trio_broker.models import SwapReceipt
from trio_broker.request import Priority, Request
from trio_broker.session import MALFORMED_IN_A_ROW, SETTLE, Session

GRACE: Final = 30.0
AUTHENTICATED: Final = {"status": "authenticated"}


def status_of(message: wire.Inbound) -> Any:
    body = json.loads(bytes(message.data))
    if "status" not in body:
        raise ProtocolError("it has no status")
    return body["status"]


class Line:
    """A session on a connection that the test plays."""

    def __init__(self, *, authenticated: bool = True) -> None:
        self.session = Session(reply_grace=GRACE)
        self.now = 1000.0
        self.numbers = iter(range(10**6))
        self.ended: list[Request] = []
        self.odd: list[str] = []
        self.broken: list[str] = []
        self.pushed: list[str] = []
        self.changes = 0
        listener = self.session.listener
        listener.odd = lambda reason, _: self.odd.append(reason)
        listener.broken = lambda error: self.broken.append(str(error))
        listener.pushed = self.take_push
        listener.changed = self.count_change
        self.auth = self.open()
        if authenticated:
            self.write()
            self.say(op="auth", data=AUTHENTICATED)
            self.ended.clear()

    def take_push(self, message: wire.Inbound, _: str) -> None:
        if message.error == "bad body":
            raise ProtocolError("bad body")
        self.pushed.append(str(message.ch))

    def count_change(self) -> None:
        self.changes += 1

    def open(self) -> Request:
        auth = Request("auth", Priority.AUTH, wire.decode_authenticated, self.now + 10)
        auth.on_end = self.ended.append
        self.session.open(auth, self.now)
        return auth

    def reconnect(self) -> None:
        """Lose the connection, and authenticate on the next one."""
        self.session.lose(ConnectionLostError("gone"))
        self.open()
        self.write()
        self.say(op="auth", data=AUTHENTICATED)

    def submit(
        self, op: str, *, priority: Priority = Priority.READ, patience: float = 100.0, **names: Any
    ) -> Request:
        request = Request(op, priority, status_of, self.now + patience, **names)
        request.on_end = self.ended.append
        self.session.submit(request, self.now)
        return request

    def ask(self, op: str, **options: Any) -> Request:
        """Submit and write."""
        request = self.submit(op, **options)
        assert self.write() == [request]
        return request

    def swap(self, client_order_id: str = "c1", patience: float = 10.0) -> Request:
        decode = partial(wire.decode_receipt, client_order_id=client_order_id)
        request = Request("swap", Priority.SWAP, decode, self.now + patience)
        request.client_order_id = client_order_id
        request.on_end = self.ended.append
        self.session.submit(request, self.now)
        return request

    def write(self, limit: float = math.inf) -> list[Request]:
        """All that may leave now, at most so much."""
        written: list[Request] = []
        while len(written) < limit:
            request = self.session.next_to_send(self.now)
            if request is None:
                break
            nonce = "" if request.channel else f"n{next(self.numbers)}"
            self.session.mark_sent(request, nonce, self.now)
            written.append(request)
        return written

    def say(self, **message: Any) -> None:
        self.session.receive([json.dumps(message)], self.now)

    def answer(self, op: str, status: str, **names: Any) -> None:
        self.say(op=op, data={"status": status, **names})

    def order(self, order_id: str, status: str = "FILLED") -> None:
        self.answer("order_status", status, orderId=order_id)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)

    def is_clean(self) -> bool:
        session = self.session
        assert session.next_deadline == math.inf
        kept = (session._lanes, session._ready, session._alarms, session._in_flight)
        return not any(kept) and not (session._again or session._alone or session.waiting)


def taken(request: Request) -> Any:
    """What a request was answered with."""
    assert request.error is None
    return request.result


def refused(request: Request) -> str:
    assert isinstance(request.error, ServerError)
    return request.error.message


# --- Authentication ------------------------------------------------------------------------


def test_nothing_leaves_before_the_broker_has_authenticated() -> None:
    line = Line(authenticated=False)
    read = line.submit("balances")
    line.swap()
    assert line.write() == [line.auth]
    line.pass_time(1)
    assert line.write() == []
    line.say(op="auth", data=AUTHENTICATED)
    assert line.session.authenticated
    assert line.ended == [line.auth]
    assert [request.op for request in line.write()] == ["swap"]
    assert not read.was_sent


@pytest.mark.parametrize("named", [{}, {"op": "auth"}])
def test_a_refused_authentication_is_its_answer(named: dict[str, str]) -> None:
    line = Line(authenticated=False)
    read = line.submit("balances")
    line.write()
    line.say(error="Invalid signature", **named)
    assert isinstance(line.auth.error, InvalidSignatureError)
    assert line.ended == [line.auth]
    assert not line.session.authenticated
    assert line.write() == []
    assert read not in line.ended


def test_a_refused_authentication_is_no_fault_of_a_session() -> None:
    line = Line(authenticated=False)
    line.write()
    line.say(op="auth", error="Not authenticated")
    assert isinstance(line.auth.error, NotAuthenticatedError)
    assert line.broken == []


def test_an_unknown_word_for_authenticated_is_not_taken_for_it() -> None:
    line = Line(authenticated=False)
    line.write()
    line.say(op="auth", data={"status": "perhaps"})
    assert isinstance(line.auth.error, ProtocolError)
    assert not line.session.authenticated


def test_an_authentication_that_is_not_answered_times_out() -> None:
    line = Line(authenticated=False)
    line.write()
    line.pass_time(10)
    assert isinstance(line.auth.error, RequestTimeoutError)
    line.say(op="auth", data=AUTHENTICATED)
    assert not line.session.authenticated
    assert line.write() == []


def test_without_a_connection_nothing_leaves() -> None:
    session = Session(reply_grace=GRACE)
    session.submit(Request("balances", Priority.READ), 0.0)
    assert session.next_to_send(0.0) is None


def test_a_second_word_of_authentication_is_odd() -> None:
    line = Line()
    line.say(op="auth", data=AUTHENTICATED)
    assert len(line.odd) == 1


# --- Turns -----------------------------------------------------------------------------------


def test_reads_leave_before_subscriptions_and_those_before_snapshots() -> None:
    line = Line()
    snapshot = line.submit("balances", priority=Priority.BACKGROUND)
    channel = line.submit("subscribe", priority=Priority.SUBSCRIBE, channel="balances")
    read = line.submit("estimate")
    assert line.write() == [read, channel, snapshot]


def test_a_read_overtakes_a_snapshot_in_its_lane() -> None:
    line = Line()
    snapshot = line.submit("balances", priority=Priority.BACKGROUND)
    read = line.submit("balances")
    assert line.write() == [read]
    line.answer("balances", "1")
    assert line.write() == [snapshot]
    line.answer("balances", "2")
    assert (taken(read), taken(snapshot)) == ("1", "2")
    assert line.is_clean()


def test_one_estimate_is_in_flight_and_the_rest_follow_in_turn() -> None:
    line = Line()
    first, second, third = (line.submit("estimate") for _ in range(3))
    assert line.write() == [first]
    assert (line.session.in_flight, line.session.waiting) == (1, 2)
    line.answer("estimate", "1")
    assert line.write() == [second]
    line.session.give_up(third, line.now)
    line.answer("estimate", "2")
    assert line.write() == []
    assert (taken(first), taken(second), third.was_sent) == ("1", "2", False)
    assert line.session.sent == 3  # auth too
    assert line.session.received == 3
    assert line.is_clean()


def test_a_reply_carries_its_text_and_whether_it_named_the_operation() -> None:
    line = Line()
    request = line.ask("estimate")
    line.answer("estimate", "1")
    assert json.loads(request.reply)["op"] == "estimate"
    assert request.named
    assert request.alone


def test_many_lookups_fly_together_and_are_told_apart_by_order_id() -> None:
    line = Line()
    lookups = {name: line.submit("order_status", order_id=name) for name in "abcd"}
    assert line.write() == list(lookups.values())
    for name in "cadb":
        line.order(name, f"state of {name}")
    assert {name: taken(one) for name, one in lookups.items()} == {
        name: f"state of {name}" for name in "abcd"
    }
    assert line.odd == []
    assert line.is_clean()


def test_two_lookups_of_one_order_take_turns() -> None:
    line = Line()
    first = line.ask("order_status", order_id="a")
    second = line.submit("order_status", order_id="a")
    assert line.write() == []
    line.order("a", "1")
    assert line.write() == [second]
    line.order("a", "2")
    assert (taken(first), taken(second)) == ("1", "2")


def test_a_lookup_whose_reply_names_nothing_is_answered_when_it_is_the_only_one() -> None:
    line = Line()
    lookup = line.ask("order_status", order_id="a")
    line.answer("order_status", "FILLED")
    assert taken(lookup) == "FILLED"


def test_a_lookup_is_found_by_the_client_order_id_if_that_was_asked_for_as_an_order_id() -> None:
    line = Line()
    lookup = line.ask("order_status", order_id="c1")
    line.answer("order_status", "FILLED", orderId="a", clientOrderId="c1")
    assert taken(lookup) == "FILLED"


def test_a_refusal_that_names_an_order_refuses_no_other_lookup() -> None:
    line = Line()
    first, second = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.say(op="order_status", error="Order not found", data={"orderId": "b"})
    assert refused(second) == "Order not found"
    assert line.ended == [second]
    line.say(op="order_status", error="Order not found", data={"orderId": "x"})
    assert len(line.odd) == 1
    line.order("a")
    assert taken(first) == "FILLED"


def test_lookups_by_client_order_id_take_turns() -> None:
    line = Line()
    first = line.ask("order_status", client_order_id="c1")
    second = line.submit("order_status", client_order_id="c2")
    by_id = line.submit("order_status", order_id="a")
    assert line.write() == [by_id]
    line.order("a", "by id")
    line.order("o1", "first")
    assert taken(first) == "first"
    assert line.write() == [second]
    line.order("o1", "first, again")
    line.order("a", "by id, again")
    assert line.ended == [by_id, first]
    line.order("o2", "second")
    assert taken(second) == "second"


def test_a_lookup_by_client_order_id_is_not_answered_by_another_name() -> None:
    line = Line()
    lookup = line.ask("order_status", client_order_id="c1")
    line.answer("order_status", "FILLED", clientOrderId="c2", orderId="o2")
    line.answer("order_status", "FILLED", clientOrderId="c2")
    assert line.ended == []
    assert len(line.odd) == 2
    line.answer("order_status", "FILLED", clientOrderId="c1")
    assert taken(lookup) == "FILLED"


def test_an_order_known_by_both_ids_can_be_looked_up_by_either_again() -> None:
    line = Line()
    line.ask("order_status", client_order_id="c1")
    line.order("o1")
    line.ask("order_status", order_id="o1")
    line.order("o1")
    again = line.ask("order_status", client_order_id="c1")
    line.order("o1", "FILLED again")
    assert taken(again) == "FILLED again"


def test_what_was_looked_up_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_broker.session._REMEMBERED", 2)
    line = Line()
    for name in "abc":
        line.ask("order_status", order_id=name)
        line.order(name)
    assert list(line.session._looked_up) == ["b", "c"]


def test_a_lookups_reply_finds_nobody_when_nobody_asked() -> None:
    line = Line()
    line.order("a")
    assert len(line.odd) == line.session.odd == 1


def test_channels_are_told_apart_by_name() -> None:
    line = Line()
    subscribe = partial(line.submit, "subscribe", priority=Priority.SUBSCRIBE)
    first, second = subscribe(channel="balances"), subscribe(channel="orders:a")
    line.write()
    line.say(op="subscribe", ch="orders:b", data={"status": "subscribed"})
    assert line.ended == []
    line.say(op="subscribe", ch="orders:a", error="Invalid channel format")
    line.say(op="subscribe", ch="balances", data={"status": "subscribed"})
    assert refused(second) == "Invalid channel format"
    assert taken(first) == "subscribed"


def test_a_channel_has_one_request_under_way() -> None:
    line = Line()
    line.ask("subscribe", priority=Priority.SUBSCRIBE, channel="balances")
    leave = line.submit("unsubscribe", priority=Priority.SUBSCRIBE, channel="balances")
    assert line.write() == []
    line.say(op="subscribe", ch="balances", data={"status": "subscribed"})
    assert line.write() == [leave]


# --- Refusals that name nothing --------------------------------------------------------------


def test_an_error_with_nothing_in_flight_is_odd() -> None:
    line = Line()
    waiting = line.submit("balances")
    line.say(error="Rate limit exceeded")
    assert len(line.odd) == 1
    assert line.write() == [waiting]


def test_an_error_with_one_in_flight_is_its_answer() -> None:
    line = Line()
    request = line.ask("balances")
    line.say(error="Rate limit exceeded")
    assert refused(request) == "Rate limit exceeded"
    assert not request.named
    assert request.alone
    assert line.is_clean()


def three(line: Line) -> tuple[Request, Request, Request]:
    requests = (
        line.submit("balances"),
        line.submit("estimate"),
        line.submit("order_status", order_id="a"),
    )
    assert line.write() == list(requests)
    return requests


def test_each_of_three_is_asked_again_alone_once_and_gets_its_own_answer() -> None:
    line = Line()
    balances, estimate, lookup = three(line)
    for _ in range(3):
        line.say(error="Rate limit exceeded")
    later = line.submit("order_status", order_id="b")
    assert line.ended == line.write() == []
    line.pass_time(SETTLE)
    assert line.write() == [balances]
    line.answer("balances", "5")
    assert line.write() == [estimate]
    line.say(error="No route")
    assert line.write() == [lookup]
    line.order("a")
    assert line.write() == [later]
    line.order("b")
    assert (taken(balances), refused(estimate), taken(lookup)) == ("5", "No route", "FILLED")
    assert line.is_clean()


def test_the_one_that_is_left_when_the_others_were_answered_is_asked_again_at_once() -> None:
    line = Line()
    balances, estimate, lookup = three(line)
    line.say(error="Order not found")
    line.answer("estimate", "1")
    line.answer("balances", "5")
    assert line.write() == [lookup]
    line.say(error="Order not found")
    assert (taken(balances), taken(estimate)) == ("5", "1")
    assert refused(lookup) == "Order not found"
    assert line.is_clean()


def test_one_error_for_three_and_silence_otherwise_has_each_asked_again() -> None:
    line = Line()
    requests = balances, estimate, lookup = three(line)
    line.say(error="Rate limit exceeded")
    assert line.write() == []
    line.pass_time(SETTLE)
    assert line.write() == [balances]
    line.answer("balances", "5")
    assert line.write() == [estimate]
    line.answer("estimate", "1")
    assert line.write() == [lookup]
    line.order("a")
    assert line.ended == [balances, estimate, lookup]
    assert [taken(request) for request in requests] == ["5", "1", "FILLED"]
    # Two of the first replies may still come: until they have, their lanes are kept.
    following = line.submit("balances"), line.submit("estimate")
    assert line.write() == []
    line.answer("balances", "5, late")
    assert line.write() == [following[0]]
    line.answer("estimate", "1, late")
    assert line.write() == [following[1]]
    line.answer("balances", "6")
    line.answer("estimate", "2")
    assert [taken(request) for request in following] == ["6", "2"]
    assert line.is_clean()


def test_a_late_error_is_not_taken_for_the_answer_to_who_was_asked_again() -> None:
    line = Line()
    first, second = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.say(error="meant for a")
    line.pass_time(SETTLE)
    assert line.write() == [first]
    line.say(error="meant for b, late")
    assert line.ended == []
    assert line.write() == [second]
    line.order("a")
    line.order("b")
    assert (taken(first), taken(second)) == ("FILLED", "FILLED")
    assert line.is_clean()


def test_one_refused_twice_has_its_own_refusal_once_the_other_is_answered() -> None:
    line = Line()
    first, _ = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.say(error="once")
    line.pass_time(SETTLE)
    assert line.write() == [first]
    line.say(error="twice")
    assert line.ended == []
    line.order("b")
    assert refused(first) == "twice"
    assert line.is_clean()


@pytest.mark.parametrize("last", ["Order not found", "Rate limit exceeded"])
def test_two_refused_twice_are_told_so_but_never_by_a_guess(last: str) -> None:
    line = Line()
    first, second = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.say(error="Order not found")
    line.pass_time(SETTLE)
    assert line.write() == [first]
    line.say(error="Order not found")
    assert line.write() == [second]
    line.say(error="Order not found")
    assert line.ended == []
    line.say(error=last)
    assert line.ended == [first, second]
    for request in (first, second):
        if last == "Order not found":
            assert refused(request) == last
        else:
            assert isinstance(request.error, ProtocolError)
    assert line.is_clean()


def test_lookups_whose_replies_name_nothing_are_asked_again_alone() -> None:
    line = Line()
    first, second = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.answer("order_status", "1")
    line.answer("order_status", "2")
    line.pass_time(SETTLE)
    assert line.write() == [first]
    line.answer("order_status", "3")
    assert line.write() == [second]
    line.answer("order_status", "4")
    assert (taken(first), taken(second)) == ("3", "4")
    assert line.is_clean()


def test_doubts_that_share_a_suspect_become_one() -> None:
    line = Line()
    lookups = [line.submit("order_status", order_id=name) for name in "ab"]
    balances = line.submit("balances")
    line.write()
    line.say(op="order_status", error="Order not found")
    line.say(error="Rate limit exceeded")
    line.order("a")
    # Two of the three replies came without a name, and the third was a's own.
    line.pass_time(SETTLE)
    assert line.write() == [lookups[1]]
    line.order("b")
    assert line.write() == [balances]
    line.answer("balances", "5")
    assert [taken(one) for one in (*lookups, balances)] == ["FILLED", "FILLED", "5"]
    assert line.is_clean()


def test_of_one_asked_again_no_more_replies_are_expected_than_can_come() -> None:
    line = Line()
    first, second = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.say(error="meant for a")
    line.pass_time(SETTLE)
    assert line.write() == [first]
    line.order("b")
    line.order("a")
    assert (taken(first), taken(second)) == ("FILLED", "FILLED")
    assert line.is_clean()


def test_one_given_up_after_it_was_asked_again_keeps_its_lane_for_both_replies() -> None:
    line = Line()
    first, second = (line.submit("estimate"), line.submit("balances"))
    line.write()
    line.say(error="meant for the balances")
    line.pass_time(SETTLE)
    assert line.write() == [first]
    line.session.give_up(first, line.now)
    assert line.write() == [second]
    third = line.submit("estimate")
    line.answer("estimate", "late")
    line.answer("balances", "5")
    assert line.write() == []
    line.answer("estimate", "late again")
    assert line.write() == [third]
    line.answer("estimate", "own")
    assert (taken(second), taken(third)) == ("5", "own")
    assert line.is_clean()


def test_a_later_doubt_takes_in_the_suspects_of_an_earlier_one() -> None:
    line = Line()
    balances, lookup = line.submit("balances"), line.submit("order_status", order_id="a")
    line.write()
    line.say(error="of one of the two")
    for request in (balances, lookup):
        line.session.give_up(request, line.now)
    later = line.ask("order_status", order_id="b")
    line.say(op="order_status", error="of one of the lookups")
    assert line.session.in_flight == 3
    line.answer("balances", "5")
    assert line.write() == [later]
    line.order("b")
    assert taken(later) == "FILLED"
    assert line.is_clean()


def test_one_that_waits_to_be_asked_again_can_be_given_up() -> None:
    line = Line()
    balances, estimate, lookup = three(line)
    line.say(error="Rate limit exceeded")
    line.session.give_up(balances, line.now)
    line.answer("estimate", "1")
    line.order("a")
    assert line.ended == [balances, estimate, lookup]
    assert line.is_clean()


def test_one_whose_reply_certainly_came_leaves_no_trace_when_it_is_given_up() -> None:
    line = Line()
    requests = three(line)
    for _ in range(3):
        line.say(error="Rate limit exceeded")
    for request in requests:
        line.session.give_up(request, line.now)
    assert line.is_clean()


def test_a_callback_may_give_up_another_one_that_ends_with_it() -> None:
    line = Line()
    first, second = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    first.on_end = lambda _: line.session.give_up(second, line.now)
    line.say(error="1")
    line.pass_time(SETTLE)
    line.write()
    line.say(error="2")
    line.write()
    line.say(error="3")
    line.say(error="4")
    assert line.ended == [second]
    assert isinstance(first.error, ProtocolError)
    assert line.is_clean()


def test_an_error_is_not_taken_for_the_answer_to_what_may_still_be_late() -> None:
    line = Line()
    late = line.ask("estimate")
    line.session.give_up(late, line.now)
    read = line.ask("balances")
    line.say(error="No route")
    assert line.ended == [late]
    line.answer("balances", "5")
    assert taken(read) == "5"
    assert line.is_clean()


# --- Given up --------------------------------------------------------------------------------


def test_one_that_waits_leaves_at_once_when_it_is_given_up() -> None:
    line = Line()
    request = line.submit("balances")
    error = NotSentError("the caller left")
    line.session.give_up(request, line.now, error)
    line.session.give_up(request, line.now)
    assert line.ended == [request]
    assert request.error is error
    assert line.is_clean()


def test_a_given_up_requests_reply_reaches_nobody() -> None:
    line = Line()
    first = line.ask("estimate")
    line.session.give_up(first, line.now)
    line.session.give_up(first, line.now)
    second = line.submit("estimate")
    other = line.submit("balances")
    assert line.write() == [other]
    line.answer("estimate", "late")
    assert line.write() == [second]
    line.answer("estimate", "own")
    assert (first.result, taken(second)) == (None, "own")
    assert line.ended == [first, second]


def test_without_a_connection_that_is_why_it_was_not_sent() -> None:
    line = Line()
    line.session.lose(ConnectionLostError("gone"))
    read = line.submit("estimate", patience=5)
    line.pass_time(5)
    assert isinstance(read.error, NotConnectedError)
    assert str(read.error) == "there was no connection in time for 'estimate'"


def test_one_whose_time_is_up_waits_for_nobody_but_keeps_its_lane() -> None:
    line = Line()
    first = line.ask("estimate", patience=10)
    second = line.submit("estimate", patience=5)
    third = line.submit("estimate", patience=20)
    assert line.session.next_deadline == line.now + 5
    line.pass_time(5)
    assert isinstance(second.error, NotSentError)
    line.pass_time(5)
    assert isinstance(first.error, RequestTimeoutError)
    assert line.write() == []
    line.answer("estimate", "late")
    assert line.write() == [third]
    assert line.broken == []


def test_after_the_grace_whoever_waits_for_the_lane_costs_the_connection() -> None:
    line = Line()
    first = line.ask("estimate")
    line.session.give_up(first, line.now)
    line.submit("estimate")
    line.pass_time(GRACE - 1)
    assert line.broken == []
    line.pass_time(1)
    assert len(line.broken) == 1
    assert "'estimate'" in line.broken[0]


def test_after_the_grace_the_first_to_want_the_lane_costs_the_connection() -> None:
    line = Line()
    first = line.ask("estimate")
    line.session.give_up(first, line.now)
    line.pass_time(GRACE)
    line.ask("balances")
    assert line.broken == []
    waiting = line.submit("estimate")
    assert len(line.broken) == 1
    line.session.lose(ConnectionLostError("replaced"))
    assert line.ended[-1].op == "balances"
    line.open()
    assert [request.op for request in line.write()] == ["auth"]
    line.say(op="auth", data=AUTHENTICATED)
    assert line.write() == [waiting]


def test_a_lookup_that_was_given_up_holds_up_its_own_order_alone() -> None:
    line = Line()
    line.session.give_up(line.ask("order_status", order_id="a"), line.now)
    other = line.submit("order_status", order_id="b")
    line.submit("order_status", order_id="a")
    assert line.write() == [other]


# --- Swaps -----------------------------------------------------------------------------------


def test_a_swap_bars_new_requests_and_goes_when_all_is_answered() -> None:
    line = Line()
    read = line.ask("balances")
    swap = line.swap()
    line.submit("estimate")
    assert line.write() == []
    line.answer("balances", "5")
    assert line.write() == [swap]
    assert taken(read) == "5"


def test_a_swap_gives_those_in_flight_a_quarter_of_a_second() -> None:
    line = Line()
    line.ask("balances")
    swap = line.swap()
    assert line.session.next_deadline == line.now + SETTLE
    changes = line.changes
    line.pass_time(SETTLE)
    assert line.changes > changes
    assert line.write() == [swap]


def test_nothing_leaves_while_a_swap_is_waited_for() -> None:
    line = Line()
    swap = line.swap()
    assert line.write() == [swap]
    read, second = line.submit("balances"), line.swap("c2")
    line.pass_time(1)
    assert line.write() == []
    line.answer("swap", "PENDING", orderId="o1")
    assert taken(swap) == SwapReceipt("o1", wire._status("PENDING"), "c1")
    assert line.write() == [second]
    line.answer("swap", "PENDING", orderId="o2")
    assert line.write() == [read]


def test_a_second_swap_after_the_first_gives_reads_in_flight_their_time() -> None:
    line = Line()
    swap = line.swap()
    line.write()
    line.session.give_up(swap, line.now)
    read = line.ask("balances")
    second = line.swap("c2")
    assert line.write() == []
    line.answer("swap", "PENDING", orderId="o1")
    assert line.session.next_deadline == line.now + SETTLE
    assert line.write() == []
    line.answer("balances", "5")
    assert line.write() == [second]
    assert taken(read) == "5"


def test_a_swap_that_was_given_up_bars_reads_no_more_but_the_next_swap() -> None:
    line = Line()
    swap = line.swap(patience=10)
    line.write()
    line.pass_time(10)
    assert isinstance(swap.error, RequestTimeoutError)
    second, read = line.swap("c2"), line.submit("balances")
    assert line.write() == [read]
    line.pass_time(5)
    assert not second.was_sent


def test_the_previous_swaps_reply_again_is_discarded_by_its_order_id() -> None:
    line = Line()
    line.swap()
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    second = line.swap("c2")
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    assert len(line.odd) == 1
    assert second not in line.ended
    line.answer("swap", "PENDING", orderId="o2")
    assert taken(second).order_id == "o2"


def test_an_order_seen_on_an_earlier_connection_is_still_another_swaps() -> None:
    line = Line()
    line.swap()
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    line.reconnect()
    second = line.swap("c2")
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    assert second not in line.ended


def test_a_swap_is_not_told_by_a_nameless_error_that_could_be_anothers() -> None:
    line = Line()
    read = line.ask("balances")
    swap = line.swap()
    line.pass_time(SETTLE)
    line.write()
    line.say(error="Invalid signature")
    assert line.ended == []
    line.say(error="Invalid signature")
    assert line.write() == []
    line.pass_time(10)
    assert line.ended == [swap]
    assert isinstance(swap.error, RequestTimeoutError)
    assert line.write() == [read]
    line.answer("balances", "5")
    assert taken(read) == "5"


def test_a_swap_alone_in_flight_is_refused_by_a_nameless_error() -> None:
    line = Line()
    swap = line.swap()
    line.write()
    line.say(error="Invalid signature")
    assert isinstance(swap.error, InvalidSignatureError)
    assert swap.alone
    assert not swap.named


def test_a_swap_is_not_alone_with_a_read_that_waits_to_be_asked_again() -> None:
    line = Line()
    first, _ = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.say(error="1")
    line.say(error="2")
    swap = line.swap()
    line.pass_time(SETTLE)
    assert line.write() == [swap]
    line.say(error="Invalid signature")
    assert isinstance(swap.error, AuthenticationError)
    assert not swap.alone
    assert line.write() == [first]


def test_a_late_reply_reaches_whoever_asked_for_late_ones() -> None:
    line = Line()
    late: list[Request] = []
    swap = line.swap(patience=10)
    swap.on_late = late.append
    line.write()
    line.pass_time(10)
    assert line.ended == [swap]
    line.answer("swap", "PENDING", orderId="o1")
    assert late == [swap]
    assert line.ended == [swap]
    assert swap.error is None
    assert swap.result.order_id == "o1"
    assert (swap.named, swap.alone) == (True, True)
    assert line.is_clean()


def test_an_error_in_words_that_came_before_is_marked() -> None:
    line = Line()
    read = line.ask("balances")
    line.say(op="balances", error="Invalid signature")
    assert not read.echoed
    first = line.swap()
    line.write()
    line.say(op="swap", error="Invalid signature")
    assert first.echoed
    second = line.swap("c1b")
    assert line.write() == []  # its own reply may still come
    line.session.release(first)
    line.session.give_up(second, line.now)
    line.session.release(second)
    second = line.swap("c2")
    line.write()
    line.say(op="swap", error="No")
    assert not second.echoed
    line.say(error="Nobody waits for this")
    third = line.swap("c3")
    line.write()
    line.say(op="swap", error="Nobody waits for this")
    assert third.echoed
    line.say(op="swap", data={"orderId": "o3", "status": "PENDING"})
    line.reconnect()
    fourth = line.swap("c4")
    line.write()
    line.say(op="swap", error="No")
    assert not fourth.echoed


def lookup(line: Line, name: str) -> Request:
    request = operations.order_lookup(name, line.now + 100)
    request.on_end = line.ended.append
    line.session.submit(request, line.now)
    line.write()
    return request


def test_an_order_that_was_found_by_a_swaps_id_is_that_swaps() -> None:
    line = Line()
    line.swap()
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    other = lookup(line, "c2")
    line.order("o1")
    line.answer("order_status", "FILLED", orderId="o1", clientOrderId="c2")
    assert other not in line.ended
    assert line.odd == ["it names the order of another swap"] * 2
    line.order("o2")
    assert taken(other).order_id == "o2"
    swap = line.swap("c3")
    line.write()
    line.answer("swap", "PENDING", orderId="o2")
    assert swap not in line.ended


def test_a_swaps_own_order_is_found_by_its_id_after_it_was_looked_up_without() -> None:
    line = Line()
    swap = line.swap()
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    assert swap in line.ended
    line.ask("order_status", order_id="o1")
    line.order("o1")
    mine = lookup(line, "c1")
    line.order("o1")
    assert taken(mine).order_id == "o1"


def test_an_order_that_is_asked_for_by_its_own_id_is_its_own_whosever_swap_it_was() -> None:
    line = Line()
    line.swap()
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    first = lookup(line, "o1")
    line.order("o1")
    assert taken(first).order_id == "o1"
    second = lookup(line, "o2")
    line.order("o2")
    assert taken(second).order_id == "o2"
    mine = lookup(line, "c2")
    line.answer("order_status", "FILLED", orderId="o2", clientOrderId="c2")
    assert taken(mine).order_id == "o2"


def test_a_receipt_for_anothers_order_is_not_taken_for_its_id_is_the_same() -> None:
    line = Line()
    line.swap()
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    other = line.swap("o1")
    line.write()
    line.answer("swap", "PENDING", orderId="o1")
    assert other not in line.ended


def test_an_order_that_two_may_have_asked_for_waits_for_the_reply_that_names_one() -> None:
    line = Line()
    stranger = line.ask("order_status", order_id="o7")
    mine = lookup(line, "c1")
    line.order("o1")
    assert mine not in line.ended
    assert line.odd == []
    line.order("o7")
    assert taken(stranger) == "FILLED"
    assert taken(mine).order_id == "o1"
    assert line.is_clean()


def test_of_two_orders_that_may_be_ones_own_neither_is() -> None:
    line = Line()
    line.ask("order_status", order_id="o7")
    mine = lookup(line, "c1")
    line.order("o1")
    line.order("o2")
    line.order("o7")
    assert mine not in line.ended
    line.answer("order_status", "FILLED", orderId="o2", clientOrderId="c1")
    assert taken(mine).order_id == "o2"


def test_a_reply_that_names_none_of_two_strangers_is_nobodys_as_long_as_one_is_left() -> None:
    line = Line()
    for name in ("o7", "o8"):
        line.ask("order_status", order_id=name)
    mine = lookup(line, "c1")
    line.order("o1")
    line.order("o7")
    assert mine not in line.ended
    line.session.give_up(mine, line.now)
    line.order("o8")  # The one that it was kept for is given up, and gets it all the same.
    assert line.session.in_flight == 0


def test_an_order_that_is_known_as_anothers_is_not_set_aside() -> None:
    line = Line()
    line.ask("order_status", order_id="o1")
    line.order("o1")
    line.ask("order_status", order_id="o7")
    lookup(line, "c1")
    line.order("o1")
    assert line.odd == ["nobody waits for this reply to 'order_status'"]


def test_what_was_set_aside_goes_with_its_connection() -> None:
    line = Line()
    line.ask("order_status", order_id="o7")
    lookup(line, "c1")
    line.order("o1")
    line.reconnect()
    assert not line.session._aside


def test_what_was_set_aside_for_one_that_has_ended_is_nobodys() -> None:
    line = Line()
    line.ask("order_status", order_id="o7")
    mine = lookup(line, "c1")
    line.order("o1")
    line.answer("order_status", "FILLED", orderId="o2", clientOrderId="c1")
    assert taken(mine).order_id == "o2"
    line.order("o7")
    assert line.is_clean()


def test_an_order_without_its_id_is_nobodys_in_particular() -> None:
    line = Line()
    request = lookup(line, "c1")
    line.answer("order_status", "FILLED")
    assert taken(request).order_id is None


def test_connections_are_counted() -> None:
    line = Line()
    assert line.session.connections == 1
    line.session.lose(ConnectionLostError("gone"))
    assert line.session.connections == 1
    line.open()
    assert line.session.connections == 2


# --- Connections come and go -----------------------------------------------------------------


def test_when_the_connection_is_lost_reads_wait_and_all_else_ends() -> None:
    line = Line()
    sent = line.ask("balances")
    given_up = line.ask("estimate")
    line.session.give_up(given_up, line.now)
    read = line.submit("estimate")
    snapshot = line.submit("order_status", priority=Priority.BACKGROUND, order_id="a")
    swap = line.swap()
    channel = line.submit("subscribe", priority=Priority.SUBSCRIBE, channel="balances")
    line.ended.clear()
    lost = ConnectionLostError("gone")
    line.session.lose(lost)
    assert line.ended == [sent, swap, channel, snapshot]
    assert sent.error is lost
    assert all(isinstance(one.error, NotConnectedError) for one in (swap, channel, snapshot))
    assert (line.session.in_flight, line.session.waiting) == (0, 1)
    assert not line.session.authenticated
    assert line.write() == []
    line.open()
    line.write()
    line.answer("estimate", "from the old connection")
    line.say(op="auth", data=AUTHENTICATED)
    assert line.write() == [read]
    line.answer("estimate", "1")
    assert taken(read) == "1"
    assert line.is_clean()


def test_a_read_that_waits_for_a_connection_too_long_was_not_sent() -> None:
    line = Line()
    line.session.lose(ConnectionLostError("gone"))
    for _ in range(100):
        request = line.submit("balances", patience=10)
        line.pass_time(10)
        assert isinstance(request.error, NotSentError)
    assert line.is_clean()


def test_one_that_was_in_doubt_fails_with_the_connection() -> None:
    line = Line()
    requests = three(line)
    line.say(error="Rate limit exceeded")
    line.pass_time(SETTLE)
    line.write()
    lost = ConnectionLostError("gone")
    line.session.lose(lost)
    assert all(request.error is lost for request in requests)
    assert line.is_clean()


def test_a_callback_may_give_up_another_one_that_is_lost_with_it() -> None:
    line = Line()
    first, second = line.submit("balances"), line.submit("estimate")
    first.on_end = lambda _: line.session.give_up(second, line.now)
    line.session.shut(ConnectionLostError("gone"), NotConnectedError("closed"))
    assert line.ended == [second]
    assert line.is_clean()


def test_when_all_is_over_everything_ends() -> None:
    line = Line()
    sent = line.ask("balances")
    waiting = line.submit("estimate")
    lost, closed = ConnectionLostError("gone"), NotConnectedError("closed")
    line.session.shut(lost, closed)
    assert (sent.error, waiting.error) == (lost, closed)
    assert line.ended == [sent, waiting]
    assert line.is_clean()


# --- What is odd -----------------------------------------------------------------------------


def test_pushes_go_to_the_owner() -> None:
    line = Line()
    line.say(ch="balances", data=[])
    line.say(ch="orders:a", error="something")
    assert line.pushed == ["balances", "orders:a"]


def test_a_message_of_no_kind_is_odd() -> None:
    line = Line()
    line.say(data=1)
    line.say(op="balances", data={"status": "nobody asked"})
    line.session.report_odd("it is binary", "")
    assert len(line.odd) == line.session.odd == 3


def test_malformed_messages_in_a_row_cost_the_connection_its_trust() -> None:
    line = Line()
    for _ in range(MALFORMED_IN_A_ROW - 1):
        line.session.receive(["{"], line.now)
    line.say(ch="balances", data=[])
    for _ in range(MALFORMED_IN_A_ROW - 2):
        line.say(ch="balances", error="bad body")
    assert line.broken == []
    line.ask("balances")
    line.say(op="balances", data={})
    line.session.receive(["{"], line.now)
    line.session.receive(["{"], line.now)
    assert len(line.broken) == 1
    assert "malformed" in line.broken[0]


@pytest.mark.parametrize("error", [ProtocolError("bad"), ServerError("balances", "bad")])
def test_a_reply_that_cannot_be_read_fails_its_own_request(error: BrokerError) -> None:
    def decode(_: wire.Inbound) -> None:
        raise error

    line = Line()
    request = line.submit("balances")
    request.decode = decode
    line.write()
    line.answer("balances", "5")
    assert request.error is error
    assert len(line.odd) == isinstance(error, ProtocolError)
    assert line.is_clean()


@pytest.mark.parametrize("flying", [0, 1, 3])
def test_a_broker_that_takes_us_for_a_stranger_costs_the_connection(flying: int) -> None:
    line = Line()
    requests = [line.ask("order_status", order_id=str(number)) for number in range(flying)]
    line.say(error="Not authenticated")
    assert line.broken == ["the broker says 'Not authenticated'"]
    if flying == 1:
        assert isinstance(requests[0].error, NotAuthenticatedError)


# --- Nonces ----------------------------------------------------------------------------------


def test_what_came_along_with_a_breach_is_not_believed() -> None:
    line = Line()
    line.ask("balances")
    reply = json.dumps({"op": "balances", "data": {"status": "5"}})
    line.session.receive([*["{"] * MALFORMED_IN_A_ROW, reply], line.now)
    assert len(line.broken) == 1
    assert line.ended == []
    line.reconnect()
    request = line.ask("balances")
    line.session.receive([reply], line.now)
    assert request.result == "5"


def test_a_reply_that_echoes_a_nonce_answers_that_request_alone() -> None:
    line = Line()
    first, second = (line.submit("order_status", order_id=name) for name in "ab")
    line.write()
    line.say(error="Order not found", nonce=second.nonces[0])
    assert refused(second) == "Order not found"
    line.answer("order_status", "nameless")
    assert taken(first) == "nameless"
    assert line.odd == []


def test_where_nonces_are_echoed_an_unknown_one_answers_nobody() -> None:
    line = Line()
    first = line.ask("estimate")
    nonce = first.nonces[0]
    line.say(op="estimate", nonce=nonce, data={"status": "1"})
    second = line.ask("estimate")
    line.say(op="estimate", nonce=nonce, data={"status": "1"})
    line.say(error="of something else", nonce=nonce)
    assert line.ended == [first]
    assert len(line.odd) == 2
    line.say(op="balances", nonce=second.nonces[0], data={"status": "2"})
    assert line.ended == [first]
    line.say(op="estimate", nonce=second.nonces[0], data={"status": "2"})
    assert taken(second) == "2"


def test_a_nonce_that_was_never_ours_says_nothing() -> None:
    line = Line()
    request = line.ask("estimate")
    line.say(op="estimate", nonce=5, data={"status": "1"})
    assert taken(request) == "1"


def test_a_listener_need_not_listen() -> None:
    session = Session(reply_grace=GRACE)
    session.receive(['{"ch":"balances"}'], 0.0)
    for _ in range(MALFORMED_IN_A_ROW):
        session.receive(["{"], 0.0)
    assert session.odd == MALFORMED_IN_A_ROW
    request = Request("balances", Priority.READ)
    session.submit(request, 0.0)
    session.give_up(request, 0.0)
    assert request.result is None
