"""Requests, and replies without request IDs."""

from __future__ import annotations

import json
import math
import weakref
from functools import partial
from typing import Any

import pytest

from tests.engine_harness import GRACE, EngineHarness
from tests.protocol.session_harness import AUTHENTICATED, SessionHarness
from trio_broker._protocol import codec, requests
from trio_broker._protocol.matching import AmbiguousReply
from trio_broker._protocol.requests import Priority, Request
from trio_broker._protocol.session import ALONE_DELAY, HOLD_TIME, MESSAGE_TOO_BIG
from trio_broker._protocol.trust import MALFORMED_IN_A_ROW, PATIENCE
from trio_broker.exceptions import (
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


def result_of(request: Request) -> Any:
    """The result of a request that succeeded."""
    assert request.error is None
    return request.result


def refusal_of(request: Request) -> str:
    assert isinstance(request.error, ServerError)
    return request.error.message


# --- Authentication --------------------------------------------------------------------------


def test_nothing_is_sent_before_the_authentication() -> None:
    harness = SessionHarness(authenticated=False)
    read = harness.queue("balances")
    harness.swap()
    assert harness.write() == [harness.auth]
    harness.pass_time(1)
    assert harness.write() == []
    harness.receive_json(op="auth", data=AUTHENTICATED)
    assert harness.session.is_authenticated
    assert harness.ended == [harness.auth]
    assert [request.op for request in harness.write()] == ["swap"]
    assert not read.was_sent


@pytest.mark.parametrize("named", [{}, {"op": "auth"}])
def test_refused_authentication_ends_the_auth_request(named: dict[str, str]) -> None:
    harness = SessionHarness(authenticated=False)
    read = harness.queue("balances")
    harness.write()
    harness.receive_json(error="Invalid signature", **named)
    assert isinstance(harness.auth.error, InvalidSignatureError)
    assert harness.ended == [harness.auth]
    assert not harness.session.is_authenticated
    assert harness.write() == []
    assert read not in harness.ended


def test_refused_authentication_does_not_replace_the_connection() -> None:
    harness = SessionHarness(authenticated=False)
    harness.write()
    harness.receive_json(op="auth", error="Not authenticated")
    assert isinstance(harness.auth.error, NotAuthenticatedError)
    assert harness.replaced == []


def test_unknown_auth_status_does_not_authenticate() -> None:
    harness = SessionHarness(authenticated=False)
    harness.write()
    harness.receive_json(op="auth", data={"status": "perhaps"})
    assert isinstance(harness.auth.error, ProtocolError)
    assert not harness.session.is_authenticated


def test_unanswered_authentication_times_out() -> None:
    harness = SessionHarness(authenticated=False)
    harness.write()
    harness.pass_time(10)
    assert isinstance(harness.auth.error, RequestTimeoutError)
    harness.receive_json(op="auth", data=AUTHENTICATED)
    assert not harness.session.is_authenticated
    assert harness.write() == []


def test_without_a_connection_nothing_is_sent() -> None:
    harness = EngineHarness()
    harness.submit(requests.balances(math.inf))
    assert harness.engine.next_to_send(harness.now) is None


def test_second_auth_reply_is_unexpected() -> None:
    harness = SessionHarness()
    harness.receive_json(op="auth", data=AUTHENTICATED)
    assert len(harness.unexpected) == 1


# --- The order of sending --------------------------------------------------------------------


def test_reads_are_sent_before_subscriptions_and_snapshots() -> None:
    harness = SessionHarness()
    snapshot = harness.queue("balances", priority=Priority.BACKGROUND)
    channel = harness.queue("subscribe", priority=Priority.SUBSCRIBE, channel="balances")
    read = harness.queue("estimate")
    assert harness.write() == [read, channel, snapshot]


def test_request_queued_while_another_is_signed_is_not_lost() -> None:
    harness = SessionHarness()
    snapshot = harness.queue("balances", priority=Priority.BACKGROUND)
    assert harness.engine.next_to_send(harness.now) is snapshot
    read = harness.queue("estimate")  # for example by the user's clock
    harness.engine.mark_sent(snapshot, "n-snapshot", harness.now)
    assert harness.write() == [read]


def test_read_overtakes_a_snapshot_in_its_lane() -> None:
    harness = SessionHarness()
    snapshot = harness.queue("balances", priority=Priority.BACKGROUND)
    read = harness.queue("balances")
    assert harness.write() == [read]
    harness.reply("balances", "1")
    assert harness.write() == [snapshot]
    harness.reply("balances", "2")
    assert (result_of(read), result_of(snapshot)) == ("1", "2")
    assert harness.is_clean()


def test_estimates_are_sent_one_after_another() -> None:
    harness = SessionHarness()
    first, second, third = (harness.queue("estimate") for _ in range(3))
    assert harness.write() == [first]
    assert (harness.session.in_flight, harness.session.waiting) == (1, 2)
    harness.reply("estimate", "1")
    assert harness.write() == [second]
    harness.give_up(third)
    harness.reply("estimate", "2")
    assert harness.write() == []
    assert (result_of(first), result_of(second), third.was_sent) == ("1", "2", False)
    assert harness.session.sent == 3  # auth too
    assert harness.engine.received == 3
    assert harness.is_clean()


def test_reply_has_its_text_and_whether_it_named_the_operation() -> None:
    harness = SessionHarness()
    request = harness.send("estimate")
    harness.reply("estimate", "1")
    assert json.loads(request.reply)["op"] == "estimate"
    assert request.names_op


def test_lookups_in_flight_together_are_matched_by_order_id() -> None:
    harness = SessionHarness()
    lookups = {name: harness.queue("order_status", order_id=name) for name in "abcd"}
    assert harness.write() == list(lookups.values())
    for name in "cadb":
        harness.reply_order(name, f"state of {name}")
    assert {name: result_of(one) for name, one in lookups.items()} == {
        name: f"state of {name}" for name in "abcd"
    }
    assert harness.unexpected == []
    assert harness.is_clean()


def test_lookups_of_one_order_are_sent_one_after_another() -> None:
    harness = SessionHarness()
    first = harness.send("order_status", order_id="a")
    second = harness.queue("order_status", order_id="a")
    assert harness.write() == []
    harness.reply_order("a", "1")
    assert harness.write() == [second]
    harness.reply_order("a", "2")
    assert (result_of(first), result_of(second)) == ("1", "2")


def test_reply_without_an_id_answers_the_only_lookup() -> None:
    harness = SessionHarness()
    lookup = harness.send("order_status", order_id="a")
    harness.reply("order_status", "FILLED")
    assert result_of(lookup) == "FILLED"


def test_lookup_is_matched_by_a_client_order_id_used_as_order_id() -> None:
    harness = SessionHarness()
    lookup = harness.send("order_status", order_id="c1")
    harness.reply("order_status", "FILLED", orderId="a", clientOrderId="c1")
    assert result_of(lookup) == "FILLED"


def test_refusal_that_names_an_order_refuses_no_other_lookup() -> None:
    harness = SessionHarness()
    first, second = (harness.queue("order_status", order_id=name) for name in "ab")
    harness.write()
    harness.receive_json(op="order_status", error="Order not found", data={"orderId": "b"})
    assert refusal_of(second) == "Order not found"
    assert harness.ended == [second]
    harness.receive_json(op="order_status", error="Order not found", data={"orderId": "x"})
    assert len(harness.unexpected) == 1
    harness.reply_order("a")
    assert result_of(first) == "FILLED"


def test_lookups_by_client_order_id_are_sent_one_after_another() -> None:
    harness = SessionHarness()
    first = harness.send("order_status", client_order_id="c1")
    second = harness.queue("order_status", client_order_id="c2")
    by_id = harness.queue("order_status", order_id="a")
    assert harness.write() == [by_id]
    harness.reply_order("a", "by id")
    harness.reply_order("o1", "first")
    assert result_of(first) == "first"
    assert harness.write() == [second]
    harness.reply_order("o1", "first, again")
    harness.reply_order("a", "by id, again")
    assert harness.ended == [by_id, first]
    harness.reply_order("o2", "second")
    assert result_of(second) == "second"


def test_reply_with_another_client_order_id_answers_no_lookup() -> None:
    harness = SessionHarness()
    lookup = harness.send("order_status", client_order_id="c1")
    harness.reply("order_status", "FILLED", clientOrderId="c2", orderId="o2")
    harness.reply("order_status", "FILLED", clientOrderId="c2")
    assert harness.ended == []
    assert len(harness.unexpected) == 2
    harness.reply("order_status", "FILLED", clientOrderId="c1")
    assert result_of(lookup) == "FILLED"


def test_order_with_both_ids_can_be_looked_up_by_either() -> None:
    harness = SessionHarness()
    harness.send("order_status", client_order_id="c1")
    harness.reply_order("o1")
    harness.send("order_status", order_id="o1")
    harness.reply_order("o1")
    again = harness.send("order_status", client_order_id="c1")
    harness.reply_order("o1", "FILLED again")
    assert result_of(again) == "FILLED again"


def test_memory_of_looked_up_orders_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_broker._protocol.order_ids._MAX_SEEN", 2)
    harness = SessionHarness()
    for name in "abc":
        harness.send("order_status", order_id=name)
        harness.reply_order(name)
    assert [name in harness.engine.order_ids for name in "abc"] == [False, True, True]


def test_lookup_reply_without_a_lookup_is_unexpected() -> None:
    harness = SessionHarness()
    harness.reply_order("a")
    assert len(harness.unexpected) == harness.session.unexpected == 1


def test_channel_requests_are_matched_by_channel() -> None:
    harness = SessionHarness()
    subscribe = partial(harness.queue, "subscribe", priority=Priority.SUBSCRIBE)
    first, second = subscribe(channel="balances"), subscribe(channel="orders:a")
    harness.write()
    harness.receive_json(op="subscribe", ch="orders:b", data={"status": "subscribed"})
    assert harness.ended == []
    harness.receive_json(op="subscribe", ch="orders:a", error="Invalid channel format")
    harness.receive_json(op="subscribe", ch="balances", data={"status": "subscribed"})
    assert refusal_of(second) == "Invalid channel format"
    assert result_of(first) == "subscribed"


def test_channel_has_one_request_in_flight() -> None:
    harness = SessionHarness()
    harness.send("subscribe", priority=Priority.SUBSCRIBE, channel="balances")
    leave = harness.queue("unsubscribe", priority=Priority.SUBSCRIBE, channel="balances")
    assert harness.write() == []
    harness.receive_json(op="subscribe", ch="balances", data={"status": "subscribed"})
    assert harness.write() == [leave]


# --- Replies that name no request ------------------------------------------------------------


def test_error_with_nothing_in_flight_is_unexpected() -> None:
    harness = SessionHarness()
    waiting = harness.queue("balances")
    harness.receive_json(error="Rate limit exceeded")
    assert len(harness.unexpected) == 1
    assert harness.write() == [waiting]


def test_error_with_one_request_in_flight_answers_it() -> None:
    harness = SessionHarness()
    request = harness.send("balances")
    harness.receive_json(error="Rate limit exceeded")
    assert refusal_of(request) == "Rate limit exceeded"
    assert not request.names_op
    assert harness.is_clean()


def send_three(harness: SessionHarness) -> tuple[Request, Request, Request]:
    requests = (
        harness.queue("balances"),
        harness.queue("estimate"),
        harness.queue("order_status", order_id="a"),
    )
    assert harness.write() == list(requests)
    return requests


def test_equal_errors_answer_all_requests_in_flight() -> None:
    harness = SessionHarness()
    requests = send_three(harness)
    for _ in range(2):
        harness.receive_json(error="Rate limit exceeded")
    assert harness.ended == []
    harness.receive_json(error="Rate limit exceeded")
    assert [refusal_of(request) for request in requests] == ["Rate limit exceeded"] * 3


def test_many_lookups_refused_in_the_same_words_cost_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = 0
    count: Any = vars(AmbiguousReply)["outstanding"].fget

    def outstanding(ambiguity: AmbiguousReply) -> int:
        nonlocal counted
        counted += 1
        return int(count(ambiguity))

    monkeypatch.setattr(AmbiguousReply, "outstanding", property(outstanding))
    harness = SessionHarness()
    lookups = [harness.queue("order_status", order_id=f"o{number}") for number in range(100)]
    harness.write()
    for _ in lookups:
        harness.receive_json(error="Rate limit exceeded")
    assert {refusal_of(request) for request in lookups} == {"Rate limit exceeded"}
    assert counted < 3 * len(lookups)  # Each count looks at all candidates.
    assert harness.unexpected == []
    assert harness.is_clean()


def test_three_candidates_are_sent_again_alone_once() -> None:
    harness = SessionHarness()
    balances, estimate, lookup = send_three(harness)
    for text in ("Rate limit exceeded", "No route", "Rate limit exceeded"):
        harness.receive_json(error=text)
    later = harness.queue("order_status", order_id="b")
    assert harness.ended == []
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [balances]
    harness.reply("balances", "5")
    assert harness.write() == [estimate]
    harness.receive_json(error="No route")
    assert harness.write() == [lookup]
    harness.reply_order("a")
    assert harness.write() == [later]
    harness.reply_order("b")
    assert (result_of(balances), refusal_of(estimate), result_of(lookup)) == (
        "5",
        "No route",
        "FILLED",
    )
    assert harness.is_clean()


def test_error_belongs_to_the_request_that_has_no_reply_of_its_own() -> None:
    harness = SessionHarness()
    balances, estimate, lookup = send_three(harness)
    harness.receive_json(error="Order not found")
    harness.reply("estimate", "1")
    assert harness.write() == []
    harness.reply("balances", "5")
    assert (result_of(balances), result_of(estimate)) == ("5", "1")
    assert refusal_of(lookup) == "Order not found"
    assert harness.write() == []
    assert harness.unexpected == []
    assert harness.is_clean()


def test_replies_of_other_requests_are_waited_for_as_long_as_they_come() -> None:
    harness = SessionHarness()
    requests = [harness.queue("order_status", order_id=f"x{number}") for number in range(4)]
    harness.write()
    harness.receive_json(error="Order not found")
    for number in range(3):
        harness.pass_time(HOLD_TIME - 0.1)
        harness.reply_order(f"x{number}")
    assert harness.write() == []
    assert refusal_of(requests[3]) == "Order not found"
    assert harness.is_clean()


def send_held(harness: SessionHarness, first: str, second: str) -> tuple[Request, Request]:
    """Send two reads, one of which gets an error; the first is then sent again."""
    pair = harness.queue(first), harness.queue(second)
    assert harness.write() == list(pair)
    harness.receive_json(error="No route")
    harness.pass_time(HOLD_TIME)
    assert harness.write() == []
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [pair[0]]
    return pair


def test_one_error_for_three_requests_repeats_each() -> None:
    harness = SessionHarness()
    requests = balances, estimate, lookup = send_three(harness)
    harness.receive_json(error="Rate limit exceeded")
    harness.pass_time(HOLD_TIME)
    assert harness.write() == []
    assert harness.unexpected == ["it could answer several requests"]
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [balances]
    harness.reply("balances", "5")
    assert harness.write() == [estimate]
    harness.reply("estimate", "1")
    assert harness.write() == [lookup]
    harness.reply_order("a")
    assert harness.ended == [balances, estimate, lookup]
    assert [result_of(request) for request in requests] == ["5", "1", "FILLED"]
    # Two of the first replies may still arrive. Their lanes are kept until then.
    following = harness.queue("balances"), harness.queue("estimate")
    assert harness.write() == []
    harness.reply("balances", "5, late")
    assert harness.write() == [following[0]]
    harness.reply("estimate", "1, late")
    assert harness.write() == [following[1]]
    harness.reply("balances", "6")
    harness.reply("estimate", "2")
    assert [result_of(request) for request in following] == ["6", "2"]
    assert harness.is_clean()


def test_late_error_does_not_answer_a_repeated_request() -> None:
    harness = SessionHarness()
    first, second = send_held(harness, "estimate", "balances")
    harness.receive_json(error="meant for the balances, late")
    assert harness.ended == []
    harness.pass_time(HOLD_TIME)
    assert harness.write() == [second]
    harness.reply("estimate", "1")
    harness.reply("balances", "5")
    assert (result_of(first), result_of(second)) == ("1", "5")
    assert harness.is_clean()


def test_request_refused_twice_in_the_same_words_is_refused() -> None:
    """The other request is owed one reply, so one of the two errors isn't its own."""
    harness = SessionHarness()
    abandoned = harness.send("estimate")
    harness.give_up(abandoned)
    read = harness.send("balances")
    harness.receive_json(error="Rate limit exceeded")
    harness.pass_time(HOLD_TIME)
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [read]
    harness.receive_json(error="Rate limit exceeded")
    assert refusal_of(read) == "Rate limit exceeded"
    harness.reply("estimate", "late")
    assert harness.is_clean()


def test_second_refusal_counts_once_the_other_request_is_answered() -> None:
    harness = SessionHarness()
    first, _ = send_held(harness, "estimate", "balances")
    harness.receive_json(error="twice")
    assert harness.ended == []
    harness.reply("balances", "5")
    assert refusal_of(first) == "No route"
    assert harness.is_clean()


def test_two_requests_refused_twice_fail_without_a_guess() -> None:
    harness = SessionHarness()
    pair = send_held(harness, "estimate", "balances")
    harness.receive_json(error="Rate limit exceeded")
    harness.pass_time(HOLD_TIME)
    assert harness.write() == [pair[1]]
    harness.receive_json(error="Rate limit exceeded")
    assert harness.ended == []
    harness.receive_json(error="No route")
    assert harness.ended == list(pair)
    assert all(isinstance(request.error, ProtocolError) for request in pair)
    assert harness.is_clean()


def test_lookups_with_replies_without_an_id_are_repeated_alone() -> None:
    harness = SessionHarness()
    first, second = (harness.queue("order_status", order_id=name) for name in "ab")
    harness.write()
    harness.reply("order_status", "1")
    harness.reply("order_status", "2")
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [first]
    harness.reply("order_status", "3")
    assert harness.write() == [second]
    harness.reply("order_status", "4")
    assert (result_of(first), result_of(second)) == ("3", "4")
    assert harness.is_clean()


def test_ambiguous_replies_with_a_common_candidate_are_merged() -> None:
    harness = SessionHarness()
    lookups = [harness.queue("order_status", order_id=name) for name in ("o7", "o8")]
    balances = harness.queue("balances")
    harness.write()
    harness.receive_json(op="order_status", error="Order not found")
    harness.receive_json(error="Rate limit exceeded")
    harness.reply_order("o7")
    # So the first error is the other lookup's, and the second is left for the balances.
    assert result_of(lookups[0]) == "FILLED"
    assert refusal_of(lookups[1]) == "Order not found"
    assert refusal_of(balances) == "Rate limit exceeded"
    assert harness.is_clean()


def test_repeated_request_expects_no_more_replies_than_possible() -> None:
    harness = SessionHarness()
    first, second = send_held(harness, "estimate", "balances")
    harness.reply("balances", "5")
    assert (refusal_of(first), result_of(second)) == ("No route", "5")
    harness.reply("estimate", "1")
    assert harness.ended == [second, first]
    assert harness.unexpected == ["it could answer several requests"]
    assert harness.is_clean()


def test_abandoned_repeated_request_keeps_its_lane_for_both_replies() -> None:
    harness = SessionHarness()
    first, second = send_held(harness, "estimate", "balances")
    harness.give_up(first)
    assert harness.write() == [second]
    third = harness.queue("estimate")
    harness.reply("estimate", "late")
    harness.reply("balances", "5")
    assert harness.write() == []
    harness.reply("estimate", "late again")
    assert harness.write() == [third]
    harness.reply("estimate", "own")
    assert (result_of(second), result_of(third)) == ("5", "own")
    assert harness.is_clean()


def test_later_ambiguous_reply_includes_earlier_candidates() -> None:
    harness = SessionHarness()
    balances, lookup = harness.queue("balances"), harness.queue("order_status", order_id="a")
    harness.write()
    harness.receive_json(error="of one of the two")
    for request in (balances, lookup):
        harness.give_up(request)
    later = harness.send("order_status", order_id="b")
    harness.receive_json(op="order_status", error="of one of the lookups")
    assert harness.session.in_flight == 3
    harness.reply("balances", "5")
    # The first error was the abandoned lookup's, so the second is the later one's.
    assert refusal_of(later) == "of one of the lookups"
    assert harness.is_clean()


def test_request_waiting_to_be_repeated_can_be_abandoned() -> None:
    harness = SessionHarness()
    balances, estimate, lookup = send_three(harness)
    harness.receive_json(error="Rate limit exceeded")
    harness.give_up(balances)
    harness.reply("estimate", "1")
    harness.reply_order("a")
    assert harness.ended == [balances, estimate, lookup]
    assert harness.is_clean()


def test_abandoned_request_with_a_certain_reply_is_forgotten() -> None:
    harness = SessionHarness()
    requests = send_three(harness)
    for _ in range(3):
        harness.receive_json(error="Rate limit exceeded")
    for request in requests:
        harness.give_up(request)
    assert harness.is_clean()


def test_error_that_may_be_a_late_reply_answers_nothing() -> None:
    harness = SessionHarness()
    late = harness.send("estimate")
    harness.give_up(late)
    read = harness.send("balances")
    harness.receive_json(error="No route")
    assert harness.ended == [late]
    harness.reply("balances", "5")
    assert result_of(read) == "5"
    assert harness.is_clean()


def test_held_replies_have_candidates_of_their_own() -> None:
    harness = SessionHarness()
    lookups = [harness.queue("order_status", order_id=name) for name in ("o7", "o8")]
    harness.write()
    harness.receive_json(op="order_status", error="Order not found")
    swap = harness.swap()
    harness.pass_time(ALONE_DELAY)
    harness.write()
    harness.receive_json(error="Insufficient balance")
    harness.reply_order("o7")
    # The first error names an operation, so it is the other lookup's. The second is the swap's.
    assert harness.ended == [lookups[0], lookups[1], swap]
    assert refusal_of(lookups[1]) == "Order not found"
    assert refusal_of(swap) == "Insufficient balance"
    assert swap.is_certain
    assert harness.is_clean()


# --- Abandoned requests ----------------------------------------------------------------------


def test_abandoned_unsent_request_ends_at_once() -> None:
    harness = SessionHarness()
    request = harness.queue("balances")
    error = NotSentError("the caller left")
    harness.give_up(request, error)
    harness.give_up(request)
    assert harness.ended == [request]
    assert request.error is error
    assert harness.is_clean()


def test_reply_to_an_abandoned_request_is_ignored() -> None:
    harness = SessionHarness()
    first = harness.send("estimate")
    harness.give_up(first)
    harness.give_up(first)
    second = harness.queue("estimate")
    other = harness.queue("balances")
    assert harness.write() == [other]
    harness.reply("estimate", "late")
    assert harness.write() == [second]
    harness.reply("estimate", "own")
    assert (first.result, result_of(second)) == (None, "own")
    assert harness.ended == [first, second]


def test_unsent_request_reports_the_missing_connection() -> None:
    harness = SessionHarness()
    harness.lose(ConnectionLostError("gone"))
    read = harness.queue("estimate", patience=5)
    harness.pass_time(5)
    assert isinstance(read.error, NotConnectedError)
    assert str(read.error) == "there was no connection in time for 'estimate'"


def test_timed_out_request_ends_and_keeps_its_lane() -> None:
    harness = SessionHarness()
    first = harness.send("estimate", patience=10)
    second = harness.queue("estimate", patience=5)
    third = harness.queue("estimate", patience=20)
    assert harness.engine.timers.next_deadline == harness.now + 5
    harness.pass_time(5)
    assert isinstance(second.error, NotSentError)
    harness.pass_time(5)
    assert isinstance(first.error, RequestTimeoutError)
    assert harness.write() == []
    harness.reply("estimate", "late")
    assert harness.write() == [third]
    assert harness.replaced == []


def test_request_waiting_for_a_lane_after_the_grace_replaces_the_connection() -> None:
    harness = SessionHarness()
    first = harness.send("estimate")
    harness.give_up(first)
    harness.queue("estimate")
    harness.pass_time(GRACE - 1)
    assert harness.replaced == []
    harness.pass_time(1)
    assert len(harness.replaced) == 1
    assert "'estimate'" in harness.replaced[0]


def test_request_that_needs_a_lane_after_the_grace_replaces_the_connection() -> None:
    harness = SessionHarness()
    first = harness.send("estimate")
    harness.give_up(first)
    harness.pass_time(GRACE)
    harness.send("balances")
    assert harness.replaced == []
    waiting = harness.queue("estimate")
    assert harness.replaced == []  # not before what has arrived was read
    assert harness.engine.timers.next_deadline <= harness.now
    harness.pass_time(0)
    assert len(harness.replaced) == 1
    harness.lose(ConnectionLostError("replaced"))
    assert harness.ended[-1].op == "balances"
    harness.open()
    assert [request.op for request in harness.write()] == ["auth"]
    harness.receive_json(op="auth", data=AUTHENTICATED)
    assert harness.write() == [waiting]


def test_abandoned_lookup_blocks_only_its_own_order() -> None:
    harness = SessionHarness()
    harness.give_up(harness.send("order_status", order_id="a"))
    other = harness.queue("order_status", order_id="b")
    harness.queue("order_status", order_id="a")
    assert harness.write() == [other]


# --- Swaps -----------------------------------------------------------------------------------


def test_swap_blocks_new_requests_until_all_are_answered() -> None:
    harness = SessionHarness()
    read = harness.send("balances")
    swap = harness.swap()
    harness.queue("estimate")
    assert harness.write() == []
    harness.reply("balances", "5")
    assert harness.write() == [swap]
    assert result_of(read) == "5"


def test_swap_waits_a_quarter_of_a_second_for_requests_in_flight() -> None:
    harness = SessionHarness()
    harness.send("balances")
    swap = harness.swap()
    assert harness.write() == []
    assert harness.engine.timers.next_deadline == harness.now + ALONE_DELAY
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [swap]


def test_swap_whose_lane_becomes_free_is_sent_when_its_time_has_come() -> None:
    harness = SessionHarness()
    harness.send("estimate")
    harness.swap(patience=0.1)
    second = harness.swap("c2")
    harness.write()
    harness.pass_time(0.1)
    for _ in range(3):
        harness.session.may_send = False
        harness.write()
        harness.pass_time(harness.engine.timers.next_deadline - harness.now)
        if harness.session.may_send and second in harness.write():
            break
    assert second.was_sent
    assert harness.now == pytest.approx(1000.1 + ALONE_DELAY)


def test_nothing_is_sent_while_a_swap_is_in_flight() -> None:
    harness = SessionHarness()
    swap = harness.swap()
    assert harness.write() == [swap]
    read, second = harness.queue("balances"), harness.swap("c2")
    harness.pass_time(1)
    assert harness.write() == []
    harness.reply("swap", "PENDING", orderId="o1")
    assert result_of(swap) == SwapReceipt("o1", codec._status("PENDING"), "c1")
    assert harness.write() == [second]
    harness.reply("swap", "PENDING", orderId="o2")
    assert harness.write() == [read]


def test_second_swap_waits_for_reads_in_flight() -> None:
    harness = SessionHarness()
    swap = harness.swap()
    harness.write()
    harness.give_up(swap)
    read = harness.send("balances")
    second = harness.swap("c2")
    assert harness.write() == []
    harness.reply("swap", "PENDING", orderId="o1")
    assert harness.engine.timers.next_deadline == harness.now + ALONE_DELAY
    assert harness.write() == []
    harness.reply("balances", "5")
    assert harness.write() == [second]
    assert result_of(read) == "5"


def test_abandoned_swap_blocks_only_the_next_swap() -> None:
    harness = SessionHarness()
    swap = harness.swap(patience=10)
    harness.write()
    harness.pass_time(10)
    assert isinstance(swap.error, RequestTimeoutError)
    second, read = harness.swap("c2"), harness.queue("balances")
    assert harness.write() == [read]
    harness.pass_time(5)
    assert not second.was_sent


def test_repeated_receipt_of_the_previous_swap_is_discarded() -> None:
    harness = SessionHarness()
    harness.swap()
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    second = harness.swap("c2")
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    assert len(harness.unexpected) == 1
    assert second not in harness.ended
    harness.reply("swap", "PENDING", orderId="o2")
    assert result_of(second).order_id == "o2"


def test_order_of_an_earlier_connection_belongs_to_its_swap() -> None:
    harness = SessionHarness()
    harness.swap()
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    harness.reconnect()
    second = harness.swap("c2")
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    assert second not in harness.ended


def send_swap_with_a_read(harness: SessionHarness) -> tuple[Request, Request]:
    read = harness.send("balances")
    swap = harness.swap()
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [swap]
    return read, swap


def test_bare_error_with_several_candidates_does_not_refuse_a_swap() -> None:
    harness = SessionHarness()
    read, swap = send_swap_with_a_read(harness)
    harness.receive_json(error="Insufficient balance")
    assert harness.ended == []
    harness.pass_time(HOLD_TIME)
    assert harness.ended == [swap]
    assert not swap.is_certain
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [read]
    harness.reply("balances", "5")
    assert result_of(read) == "5"
    assert harness.late == []
    assert harness.session.in_flight == 2


def test_bare_error_is_the_swaps_once_the_read_has_its_own_reply() -> None:
    harness = SessionHarness()
    read, swap = send_swap_with_a_read(harness)
    harness.receive_json(error="Insufficient balance")
    harness.reply("balances", "5")
    assert harness.ended == [read, swap]
    assert refusal_of(swap) == "Insufficient balance"
    assert swap.is_certain
    assert harness.is_clean()


def test_different_errors_for_a_swap_and_a_read_refuse_neither() -> None:
    harness = SessionHarness()
    read, swap = send_swap_with_a_read(harness)
    harness.receive_json(error="Insufficient balance")
    harness.receive_json(error="Rate limit exceeded")
    assert harness.ended == [swap]
    assert not swap.is_certain
    assert harness.write() == [read]


def test_bare_error_refuses_a_swap_alone_in_flight() -> None:
    harness = SessionHarness()
    swap = harness.swap()
    harness.write()
    harness.receive_json(error="Insufficient balance")
    assert refusal_of(swap) == "Insufficient balance"
    assert swap.is_certain
    assert not swap.names_op
    assert harness.is_clean()


def test_read_waiting_to_be_repeated_is_owed_nothing() -> None:
    harness = SessionHarness()
    first, _ = (harness.queue("order_status", order_id=name) for name in "ab")
    harness.write()
    harness.receive_json(error="1")
    harness.receive_json(error="2")
    swap = harness.swap()
    assert harness.write() == [swap]
    harness.receive_json(error="Invalid amount")
    assert refusal_of(swap) == "Invalid amount"
    assert swap.is_certain
    assert harness.write() == [first]


def test_late_reply_to_a_swap_replaces_its_error() -> None:
    harness = SessionHarness()
    swap = harness.swap(patience=10)
    harness.write()
    harness.pass_time(10)
    assert harness.ended == [swap]
    assert "in time" in str(swap.error)
    harness.reply("swap", "PENDING", orderId="o1")
    assert harness.late == [swap]
    assert harness.ended == [swap]
    assert swap.error is None
    assert swap.result.order_id == "o1"
    assert (swap.names_op, swap.is_certain) == (True, True)
    assert harness.is_clean()


def test_refusal_with_an_earlier_text_refuses_a_swap() -> None:
    harness = SessionHarness()
    harness.send("balances")
    harness.receive_json(op="balances", error="Invalid signature")
    for name in ("c1", "c2"):
        swap = harness.swap(name)
        harness.write()
        harness.receive_json(op="swap", error="Invalid signature")
        assert swap.names_op
        assert isinstance(swap.error, InvalidSignatureError)
        assert harness.is_clean()


def lookup(harness: SessionHarness, name: str) -> Request:
    request = harness.submit(requests.order_lookup(name, harness.now + 100))
    harness.write()
    return request


def test_order_found_by_a_swaps_id_belongs_to_that_swap() -> None:
    harness = SessionHarness()
    harness.swap()
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    other = lookup(harness, "c2")
    harness.reply_order("o1")
    harness.reply("order_status", "FILLED", orderId="o1", clientOrderId="c2")
    assert other not in harness.ended
    assert len(harness.unexpected) == 2
    harness.reply_order("o2")
    assert result_of(other).order_id == "o2"
    swap = harness.swap("c3")
    harness.write()
    harness.reply("swap", "PENDING", orderId="o2")
    assert swap not in harness.ended


def test_swaps_order_is_found_after_a_lookup_by_order_id() -> None:
    harness = SessionHarness()
    swap = harness.swap()
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    assert swap in harness.ended
    harness.send("order_status", order_id="o1")
    harness.reply_order("o1")
    own = lookup(harness, "c1")
    harness.reply_order("o1")
    assert result_of(own).order_id == "o1"


def test_lookup_by_order_id_returns_the_order_of_any_swap() -> None:
    harness = SessionHarness()
    harness.swap()
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    first = lookup(harness, "o1")
    harness.reply_order("o1")
    assert result_of(first).order_id == "o1"
    second = lookup(harness, "o2")
    harness.reply_order("o2")
    assert result_of(second).order_id == "o2"
    own = lookup(harness, "c2")
    harness.reply("order_status", "FILLED", orderId="o2", clientOrderId="c2")
    assert result_of(own).order_id == "o2"


def test_receipt_for_another_swaps_order_is_not_accepted() -> None:
    harness = SessionHarness()
    harness.swap()
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    other = harness.swap("o1")
    harness.write()
    harness.reply("swap", "PENDING", orderId="o1")
    assert other not in harness.ended


def test_order_that_two_lookups_may_mean_is_the_others_that_is_left() -> None:
    harness = SessionHarness()
    foreign = harness.send("order_status", order_id="mine")
    own = lookup(harness, "c1")
    harness.reply_order("o1")
    assert harness.ended == []
    harness.reply("order_status", "FILLED", orderId="mine", clientOrderId="c9")
    assert result_of(foreign) == "FILLED"
    assert result_of(own).order_id == "o1"
    assert harness.is_clean()


def test_order_that_may_be_the_other_lookups_is_requested_again() -> None:
    harness = SessionHarness()
    foreign = harness.send("order_status", order_id="mine")
    own = lookup(harness, "c1")
    harness.reply_order("o1")
    harness.reply_order("mine")  # It may be the order of c1.
    assert harness.ended == []
    assert harness.write() == [foreign]
    harness.reply_order("mine")
    assert harness.write() == [own]
    harness.reply_order("o1")
    assert result_of(foreign) == "FILLED"
    assert result_of(own).order_id == "o1"
    assert harness.is_clean()


def test_neither_of_two_possible_orders_is_accepted() -> None:
    harness = SessionHarness()
    foreign = harness.send("order_status", order_id="mine")
    own = lookup(harness, "c1")
    harness.reply_order("o1")
    harness.reply_order("o2")
    assert harness.ended == []
    for _ in range(2):
        harness.pass_time(ALONE_DELAY)
        (again,) = harness.write()
        if again is own:
            harness.reply("order_status", "FILLED", orderId="o2", clientOrderId="c1")
        else:
            harness.reply_order("mine")
    assert result_of(own).order_id == "o2"
    assert result_of(foreign) == "FILLED"
    assert harness.is_clean()


def test_reply_with_three_candidates_answers_none() -> None:
    harness = SessionHarness()
    for name in ("mine", "yours"):
        harness.send("order_status", order_id=name)
    own = lookup(harness, "c1")
    harness.reply_order("o1")
    harness.reply("order_status", "FILLED", orderId="mine", clientOrderId="c8")
    assert own not in harness.ended
    harness.give_up(own)
    assert own.result is None
    # By counting, the reply was the abandoned one's.
    harness.reply("order_status", "FILLED", orderId="yours", clientOrderId="c9")
    assert harness.session.in_flight == 0
    assert harness.is_clean()


def test_order_known_under_another_id_is_unexpected() -> None:
    harness = SessionHarness()
    harness.send("order_status", order_id="o1")
    harness.reply_order("o1")
    harness.send("order_status", order_id="mine")
    lookup(harness, "c1")
    harness.reply_order("o1")
    assert harness.unexpected == ["no request is waiting for this reply to 'order_status'"]


def test_ambiguous_reply_is_forgotten_on_the_next_connection() -> None:
    harness = SessionHarness()
    harness.send("order_status", order_id="mine")
    own = lookup(harness, "c1")
    harness.reply_order("o1")
    harness.reconnect()
    assert isinstance(own.error, ConnectionLostError)
    again = lookup(harness, "c1")
    harness.reply_order("o1")
    assert result_of(again).order_id == "o1"
    assert harness.is_clean()


def test_ambiguous_reply_answers_the_candidate_that_is_left() -> None:
    harness = SessionHarness()
    foreign = harness.send("order_status", order_id="mine")
    own = lookup(harness, "c1")
    harness.reply_order("o1")
    harness.reply("order_status", "FILLED", orderId="o2", clientOrderId="c1")
    assert result_of(own).order_id == "o2"
    assert result_of(foreign) == "FILLED"
    assert harness.is_clean()


def test_lookup_by_both_ids_is_a_candidate() -> None:
    """One lookup uses an ID as the order ID, and one as the client order ID."""
    harness = SessionHarness()
    own = lookup(harness, "c9")
    twin = harness.send("order_status", order_id="c9")
    other = harness.send("order_status", order_id="c2")
    for order in ("o9", "o9", "o2"):
        harness.reply_order(order)
    assert harness.ended == []
    for _ in range(3):
        harness.pass_time(ALONE_DELAY)
        (again,) = harness.write()
        name, number = ("c2", "o2") if again is other else ("c9", "o9")
        harness.reply("order_status", "FILLED", orderId=number, clientOrderId=name)
    assert result_of(own).order_id == "o9"
    assert result_of(twin) == result_of(other) == "FILLED"
    assert harness.is_clean()


def test_reply_to_one_of_two_lookups_of_an_order_is_held_beside_an_error() -> None:
    harness = SessionHarness()
    other = harness.send("order_status", order_id="b")
    by_order = harness.send("order_status", order_id="o1")
    harness.receive_json(op="order_status", error="Order not found")
    harness.engine.order_ids.add("c1", "o1")
    by_client = harness.send("order_status", order_id="c1")
    harness.reply_order("o1")  # It may be the reply to either.
    assert harness.ended == []
    harness.reply_order("b")
    # So the error is the reply to the lookup of o1, and the reply that names o1 is the other's.
    assert result_of(other) == "FILLED"
    assert refusal_of(by_order) == "Order not found"
    assert result_of(by_client) == "FILLED"
    assert harness.is_clean()


def test_order_without_an_id_answers_its_lookup() -> None:
    harness = SessionHarness()
    request = lookup(harness, "c1")
    harness.reply("order_status", "FILLED")
    assert result_of(request).order_id is None


def test_connections_are_counted() -> None:
    harness = SessionHarness()
    assert harness.session.connections == 1
    harness.lose(ConnectionLostError("gone"))
    assert harness.session.connections == 1
    harness.open()
    assert harness.session.connections == 2


# --- Lost connections ------------------------------------------------------------------------


def test_lost_connection_ends_everything_but_waiting_reads() -> None:
    harness = SessionHarness()
    sent = harness.send("balances")
    abandoned = harness.send("estimate")
    harness.give_up(abandoned)
    read = harness.queue("estimate")
    snapshot = harness.queue("order_status", priority=Priority.BACKGROUND, order_id="a")
    swap = harness.swap()
    channel = harness.queue("subscribe", priority=Priority.SUBSCRIBE, channel="balances")
    harness.ended.clear()
    lost = ConnectionLostError("gone")
    harness.lose(lost)
    assert harness.ended == [sent, swap, channel, snapshot]
    assert sent.error is lost
    assert all(isinstance(one.error, NotConnectedError) for one in (swap, channel, snapshot))
    assert (harness.session.in_flight, harness.session.waiting) == (0, 1)
    assert not harness.session.is_authenticated
    assert harness.write() == []
    harness.open()
    harness.write()
    harness.reply("estimate", "from the old connection")
    harness.receive_json(op="auth", data=AUTHENTICATED)
    assert harness.write() == [read]
    harness.reply("estimate", "1")
    assert result_of(read) == "1"
    assert harness.is_clean()


def test_read_that_times_out_without_a_connection_was_not_sent() -> None:
    harness = SessionHarness()
    harness.lose(ConnectionLostError("gone"))
    for _ in range(100):
        request = harness.queue("balances", patience=10)
        harness.pass_time(10)
        assert isinstance(request.error, NotSentError)
    assert harness.is_clean()


def test_candidate_fails_with_the_connection() -> None:
    harness = SessionHarness()
    requests = send_three(harness)
    harness.receive_json(error="Rate limit exceeded")
    harness.pass_time(ALONE_DELAY)
    harness.write()
    lost = ConnectionLostError("gone")
    harness.lose(lost)
    assert all(request.error is lost for request in requests)
    assert harness.is_clean()


def test_end_of_the_client_ends_every_request() -> None:
    harness = SessionHarness()
    sent = harness.send("balances")
    waiting = harness.queue("estimate")
    lost, closed = ConnectionLostError("gone"), NotConnectedError("closed")
    harness.act(harness.engine.close(None, lost, closed, harness.now))
    assert (sent.error, waiting.error) == (lost, closed)
    assert harness.ended == [sent, waiting]
    assert harness.is_clean()


# --- Unexpected messages ---------------------------------------------------------------------


def test_pushes_go_to_the_channel_registry() -> None:
    harness = SessionHarness()
    harness.receive_json(ch="balances", data=[])
    harness.receive_json(ch="orders:a", error="something")
    assert harness.pushed == ["balances", "orders:a"]


def test_message_without_op_and_channel_is_unexpected() -> None:
    harness = SessionHarness()
    harness.receive_json(data=1)
    harness.receive(b"binary")
    harness.receive_json(op="balances", data={"status": "no request"})
    assert len(harness.unexpected) == harness.session.unexpected == 3
    assert harness.unexpected[1] == "it is binary"


def test_malformed_messages_in_a_row_replace_the_connection() -> None:
    harness = SessionHarness()
    for _ in range(MALFORMED_IN_A_ROW - 1):
        harness.receive("{")
    harness.receive_json(ch="balances", data=[])
    for _ in range(MALFORMED_IN_A_ROW - 2):
        harness.receive_json(ch="balances", error="bad body")
    assert harness.replaced == []
    for _ in range(MALFORMED_IN_A_ROW):
        harness.receive("{")
    assert len(harness.replaced) == 1
    assert "malformed" in harness.replaced[0]


@pytest.mark.parametrize(
    "text",
    ["[]", "5", '{"op":5}', '{"data":' + "[" * 10_000 + "]" * 10_000 + "}"],
)
def test_unreadable_json_never_replaces_the_connection(text: str) -> None:
    harness = SessionHarness()
    for _ in range(3):
        for _ in range(MALFORMED_IN_A_ROW - 1):
            harness.receive("{")
        harness.receive(text)
    for _ in range(3 * MALFORMED_IN_A_ROW):
        harness.receive(text)
    assert harness.replaced == []
    assert len(harness.unexpected) == 6 * MALFORMED_IN_A_ROW


@pytest.mark.parametrize("error", [ProtocolError("bad"), ServerError("balances", "bad")])
def test_unreadable_reply_fails_its_own_request(error: BrokerError) -> None:
    def decode(_: codec.Inbound) -> None:
        raise error

    harness = SessionHarness()
    request = harness.queue("balances")
    request.decode = decode
    harness.write()
    harness.reply("balances", "5")
    assert request.error is error
    assert len(harness.unexpected) == isinstance(error, ProtocolError)
    assert harness.is_clean()


@pytest.mark.parametrize("flying", [0, 1, 3])
def test_not_authenticated_error_replaces_the_connection(flying: int) -> None:
    harness = SessionHarness()
    requests = [harness.send("order_status", order_id=str(number)) for number in range(flying)]
    harness.receive_json(error="Not authenticated")
    assert harness.replaced == ["the broker says 'Not authenticated'"]
    if flying == 1:
        assert isinstance(requests[0].error, NotAuthenticatedError)


@pytest.mark.parametrize(
    "message",
    [
        {"op": "auth", "error": "Session expired"},
        {"op": "auth", "error": "anything"},
        {"error": "Token expired"},
        {"error": "UNAUTHORIZED"},
        {"error": " unauthorized"},
        {"error": "Invalid API key"},
        {"error": "Invalid signature"},
        {"error": {"code": "UNAUTHORIZED", "message": "no"}},
        {"op": "error", "error": "session has expired"},
    ],
)
def test_session_ended_in_any_words_replaces_the_connection(message: dict[str, Any]) -> None:
    harness = SessionHarness()
    harness.receive_json(**message)
    assert len(harness.replaced) == 1
    assert "the broker says" in harness.replaced[0]


@pytest.mark.parametrize("names_op", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "Account not authorized to trade",
        "Unauthorized asset",
        "You are not authorized to trade ETH",
        "API key has no permission to trade",
    ],
)
def test_missing_permission_keeps_the_connection(text: str, names_op: bool) -> None:
    harness = SessionHarness()
    for op in ("balances", "estimate", "swap"):
        request = harness.swap() if op == "swap" else harness.queue(op)
        assert harness.write() == [request]
        harness.receive_json(error=text, **({"op": op} if names_op else {}))
        assert type(request.error) is ServerError
    assert harness.replaced == []


def test_error_about_the_key_that_answers_a_read_replaces_nothing() -> None:
    harness = SessionHarness()
    read = harness.send("balances")
    harness.receive_json(error="Invalid signature")
    assert isinstance(read.error, InvalidSignatureError)
    assert harness.replaced == []


# --- Replies that nobody is owed -------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"error": "No route"},
        {"op": "balances", "data": {"status": "5"}},
        {"op": "estimate", "error": "No route"},
        {"op": "order_status", "data": {"orderId": "unheard-of", "status": "FILLED"}},
        {"op": "subscribe", "ch": "unheard-of", "data": {"status": "subscribed"}},
    ],
)
def test_reply_that_nobody_is_owed_replaces_the_connection(message: dict[str, Any]) -> None:
    harness = SessionHarness()
    harness.receive_json(**message)
    assert len(harness.unexpected) == 1
    assert len(harness.replaced) == 1
    assert not harness.replacements[0].is_attempt


def test_reply_that_names_something_known_is_only_reported() -> None:
    harness = SessionHarness()
    harness.send("subscribe", priority=Priority.SUBSCRIBE, channel="balances")
    harness.receive_json(op="subscribe", ch="balances", data={"status": "subscribed"})
    harness.send("order_status", order_id="a")
    harness.reply_order("a")
    harness.reply_order("a")
    harness.receive_json(op="subscribe", ch="balances", data={"status": "subscribed"})
    harness.receive_json(op="announcement", data={"status": "x"})
    assert len(harness.unexpected) == 3
    assert harness.replaced == []


def test_connection_is_replaced_once_a_minute_at_most() -> None:
    harness = SessionHarness()
    harness.receive_json(error="No route")
    assert len(harness.replaced) == 1
    harness.reconnect()
    harness.pass_time(10)
    harness.receive_json(error="No route")
    assert len(harness.replaced) == 1
    harness.pass_time(49)
    assert len(harness.replaced) == 1
    harness.pass_time(1)
    assert len(harness.replaced) == 2


def test_requests_in_flight_are_answered_before_the_replacement() -> None:
    harness = SessionHarness()
    read = harness.send("balances")
    harness.receive_json(op="estimate", data={"status": "5"})
    assert harness.replaced == []
    harness.pass_time(PATIENCE - 1)
    harness.reply("balances", "5")
    assert result_of(read) == "5"
    harness.pass_time(0)
    assert len(harness.replaced) == 1


def test_unanswered_read_delays_the_replacement_only_briefly() -> None:
    harness = SessionHarness()
    harness.send("balances")
    harness.receive_json(op="estimate", data={"status": "5"})
    harness.pass_time(PATIENCE)
    assert len(harness.replaced) == 1


def test_replacement_waits_for_a_swap() -> None:
    harness = SessionHarness()
    swap = harness.swap()
    harness.write()
    harness.receive_json(op="balances", data={"status": "5"})
    harness.pass_time(2 * PATIENCE - 1)
    second = harness.swap("c2")
    assert harness.replaced == []
    harness.reply("swap", "PENDING", orderId="o1")
    assert harness.write() == [second]
    assert harness.replaced == []
    harness.receive_json(op="swap", data={"orderId": "o2"})
    harness.pass_time(0)
    assert len(harness.replaced) == 1
    assert result_of(swap).order_id == "o1"


def test_bare_error_on_a_tainted_connection_refuses_no_swap() -> None:
    harness = SessionHarness()
    swap = harness.swap()
    harness.write()
    harness.receive_json(op="balances", data={"status": "5"})
    harness.receive_json(error="Insufficient balance")
    assert [one.is_certain for one in harness.ended] == [False]
    harness.receive_json(op="swap", error="Insufficient balance")
    assert harness.late == [swap]
    assert [one.is_certain for one in harness.late] == [True]


# --- Estimates -------------------------------------------------------------------------------


def estimate_route(**step: Any) -> dict[str, Any]:
    return {"price": "2", "expectedOut": "4", "route": [step]}


@pytest.mark.parametrize(
    ("step", "reports"),
    [
        ({"from_asset": "eth", "to_asset": "USDT", "amount_in": "2.00"}, 0),
        ({"from_asset": "ETH"}, 0),
        ({"from_asset": "BTC", "to_asset": "USDT"}, 1),
        ({"from_asset": "ETH", "to_asset": "EUR"}, 1),
        ({"from_asset": "ETH", "to_asset": "USDT", "amount_in": "3"}, 1),
    ],
)
def test_estimate_with_a_foreign_route_is_reported(step: dict[str, Any], reports: int) -> None:
    harness = SessionHarness()
    trade = requests.Trade("2", "ETH", "USDT")
    request = harness.submit(requests.estimate(trade, None, harness.now + 10))
    harness.write()
    harness.receive_json(op="estimate", data=estimate_route(**step))
    assert result_of(request).expected_out == 4
    assert len(harness.unexpected) == reports


# --- The grace -------------------------------------------------------------------------------


def abandon(harness: SessionHarness) -> float:
    """Abandon an estimate and want another; returns how long the lane is kept."""
    harness.give_up(harness.send("estimate"))
    waiting = harness.queue("estimate")
    began, before = harness.now, len(harness.replaced)
    while len(harness.replaced) == before:
        harness.pass_time(harness.engine.timers.next_deadline - harness.now)
    assert not harness.replacements[-1].is_attempt
    harness.reconnect()
    harness.give_up(waiting)
    return harness.now - began


def test_grace_doubles_until_the_broker_answers_in_time() -> None:
    harness = SessionHarness()
    assert [abandon(harness) for _ in range(3)] == [GRACE, 2 * GRACE, 2 * GRACE]
    harness.send("estimate")
    harness.reply("estimate", "1")
    assert abandon(harness) == GRACE


def test_lane_is_not_wanted_while_a_swap_is_unresolved() -> None:
    harness = SessionHarness()
    swap = harness.swap(patience=1)
    harness.write()
    harness.pass_time(1)
    harness.give_up(harness.send("estimate"))
    harness.queue("estimate")
    harness.pass_time(2 * GRACE)
    assert harness.replaced == []
    harness.session.resolved(swap, harness.now, is_found=False)
    harness.pass_time(0)
    assert len(harness.replaced) == 1


# --- Nonces ----------------------------------------------------------------------------------


def test_message_after_a_protocol_breach_is_ignored() -> None:
    harness = SessionHarness()
    harness.send("balances")
    reply = json.dumps({"op": "balances", "data": {"status": "5"}})
    harness.receive(*["{"] * MALFORMED_IN_A_ROW, reply)
    assert len(harness.replaced) == 1
    assert harness.ended == []
    harness.reconnect()
    request = harness.send("balances")
    harness.receive(reply)
    assert request.result == "5"


def test_reply_with_a_nonce_answers_that_request_only() -> None:
    harness = SessionHarness()
    first, second = (harness.queue("order_status", order_id=name) for name in "ab")
    harness.write()
    harness.receive_json(error="Order not found", nonce=second.nonces[0])
    assert refusal_of(second) == "Order not found"
    harness.reply("order_status", "nameless")
    assert result_of(first) == "nameless"
    assert harness.unexpected == []


def test_unknown_nonce_answers_nothing_if_nonces_are_echoed() -> None:
    harness = SessionHarness()
    first = harness.send("estimate")
    nonce = first.nonces[0]
    harness.receive_json(op="estimate", nonce=nonce, data={"status": "1"})
    second = harness.send("estimate")
    harness.receive_json(op="estimate", nonce=nonce, data={"status": "1"})
    harness.receive_json(error="of something else", nonce=nonce)
    assert harness.ended == [first]
    assert len(harness.unexpected) == 2
    harness.receive_json(op="balances", nonce=second.nonces[0], data={"status": "2"})
    assert harness.ended == [first]
    harness.receive_json(op="estimate", nonce=second.nonces[0], data={"status": "2"})
    assert result_of(second) == "2"


def test_foreign_nonce_is_ignored() -> None:
    harness = SessionHarness()
    request = harness.send("estimate")
    harness.receive_json(op="estimate", nonce=5, data={"status": "1"})
    assert result_of(request) == "1"


def test_earlier_read_is_sent_before_a_repeated_snapshot() -> None:
    harness = SessionHarness()
    snapshot = harness.queue("balances", priority=Priority.BACKGROUND)
    other = harness.queue("order_status", priority=Priority.BACKGROUND, order_id="a")
    assert harness.write() == [snapshot, other]
    harness.receive_json(error="Rate limit exceeded")
    read = harness.queue("estimate")
    harness.pass_time(ALONE_DELAY)
    assert harness.write(1) == [read]


def test_read_is_sent_before_a_repeated_subscribe() -> None:
    harness = SessionHarness()
    for name in ("a", "b"):
        harness.queue("subscribe", priority=Priority.SUBSCRIBE, channel=name)
    harness.write()
    for text in ("1", "2"):
        harness.receive_json(error=text)
    read = harness.queue("estimate")
    assert harness.write(1) == [read]


def test_read_with_a_possibly_oversized_reply_waits_only_briefly() -> None:
    harness = SessionHarness()
    harness.send("balances")
    harness.lose(ConnectionLostError("too large", MESSAGE_TOO_BIG, is_local=True))
    harness.open()
    harness.write()
    harness.receive_json(op="auth", data=AUTHENTICATED)
    suspected = harness.queue("balances")
    other = harness.queue("order_status", order_id="a", priority=Priority.AUTH)
    assert harness.write() == [other]
    assert harness.engine.timers.next_deadline <= harness.now + ALONE_DELAY
    harness.pass_time(ALONE_DELAY)
    assert harness.write() == [suspected]


def test_requests_that_end_in_an_outage_need_no_memory() -> None:
    harness = SessionHarness(authenticated=False)
    patient = [harness.queue(op, patience=10_000) for op in ("estimate", "balances")]
    ended = []
    for op in ["estimate", "balances"] * 500:
        ended.append(weakref.ref(harness.queue(op, patience=1)))
        harness.pass_time(1)
        harness.ended.clear()
    assert sum(one() is not None for one in ended) < 500
    harness.reconnect()
    assert harness.write() == patient
