"""The account of debts, and how ambiguous replies are counted."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from trio_broker._protocol import codec
from trio_broker._protocol.matching import AmbiguousReply, Debts, Reply
from trio_broker._protocol.order_ids import OrderIds, Relation
from trio_broker._protocol.requests import CHANNEL, Priority, Request, Stage

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def reply(**message: Any) -> Reply:
    text = json.dumps(message)
    return Reply.of(codec.decode_message(text), text, AT)


REFUSAL = reply(error="No")


def sent(op: str, times: int = 1, **names: Any) -> Request:
    request = Request(op, Priority.READ, **names)
    request.stage = Stage.IN_FLIGHT
    request.nonces = [f"{op}-{names}-{number}" for number in range(times)]
    request.owed = times
    channel = request.channel
    request.lane = (op, request.order_id) if channel is None else (CHANNEL, channel)
    return request


def debts_of(*requests: Request) -> Debts:
    debts = Debts(OrderIds())
    for request in requests:
        add(debts, request)
    return debts


def add(debts: Debts, request: Request) -> None:
    request.owed -= 1
    debts.add(request)


def test_one_reply_for_three_requests_leaves_two_pending() -> None:
    candidates = [sent("estimate"), sent("balances"), sent("order_status")]
    ambiguity = AmbiguousReply.merged(candidates, REFUSAL)
    assert ambiguity.outstanding == 2
    assert all(request.ambiguity is ambiguity and request.owed for request in candidates)
    assert ambiguity.certainly_answered() == []
    assert ambiguity.dissolve() == candidates
    assert all(request.ambiguity is None for request in candidates)


def test_replies_with_a_common_candidate_are_merged() -> None:
    first, second, third = sent("estimate"), sent("balances"), sent("order_status")
    AmbiguousReply.merged([first, second], REFUSAL)
    merged = AmbiguousReply.merged([second, third], reply(error="Never"))
    assert list(merged.candidates) == [second, third, first]
    assert merged.outstanding == 1
    assert not merged.is_one_text


def test_more_replies_than_others_are_owed_are_for_the_request_itself() -> None:
    abandoned, repeated = sent("estimate"), sent("balances", 2)
    ambiguity = AmbiguousReply.merged([abandoned, repeated], REFUSAL)
    assert ambiguity.certainly_answered() == []
    ambiguity = AmbiguousReply.merged([abandoned, repeated], reply(error="No"))
    assert ambiguity.certainly_answered() == [repeated]


def test_debt_stays_when_the_lane_is_freed() -> None:
    first = sent("swap", client_order_id="c1")
    debts = debts_of(first)
    debts.free_lane(first)
    second = sent("swap", client_order_id="c2")
    add(debts, second)
    assert debts.in_flight == 1
    assert debts.candidates(reply(op="swap", error="No route")) == [first, second]
    assert debts.candidates(reply(error="No route")) == [first, second]
    debts.pay(first)
    assert debts.candidates(reply(op="swap", error="No route")) == [second]


def test_new_connection_clears_all_debts() -> None:
    first, second = sent("swap", client_order_id="c1"), sent("balances")
    debts = debts_of(first, second)
    debts.free_lane(first)
    debts.reconnected()
    assert (debts.in_flight, debts.candidates(reply(error="No"))) == (0, [])


def test_reply_that_names_another_order_is_not_a_swaps() -> None:
    swap = sent("swap", client_order_id="c2")
    debts = debts_of(swap)
    debts._order_ids.add("c1", "o1")
    for names in (
        {"orderId": "o1"},
        {"clientOrderId": "c1"},
        {"orderId": "o1", "clientOrderId": "c2"},
        {"orderId": "o9", "clientOrderId": "c9"},
    ):
        assert debts.candidates(reply(op="swap", data=names)) == []
        assert debts.candidates(reply(op="swap", error="No route", data=names)) == []
        assert debts.candidates(reply(error="No route", data=names)) == []
    assert debts.candidates(reply(op="swap", data={"orderId": "o2"})) == [swap]
    assert debts.candidates(reply(error="No route", data={"clientOrderId": "c2"})) == [swap]


def test_error_that_names_an_unknown_order_is_nobodys() -> None:
    swap, lookup = sent("swap", client_order_id="c2"), sent("order_status", order_id="a")
    debts = debts_of(swap, lookup)
    assert debts.candidates(reply(error="No route", data={"orderId": "o7"})) == []
    assert debts.candidates(reply(op="order_status", error="No", data={"orderId": "o7"})) == []
    assert debts.candidates(reply(error="No", data={"orderId": "a"})) == [lookup]


def test_error_that_names_an_order_is_no_other_operations() -> None:
    debts = debts_of(sent("balances"), sent("estimate"))
    assert debts.candidates(reply(error="No", data={"orderId": "o7"})) == []


def test_relation_of_a_client_order_id_alone() -> None:
    ids = OrderIds()
    ids.add("c1", "o1")
    assert ids.relation("o1", (None, "c1")) is Relation.SAME
    assert ids.relation("o2", (None, "c1")) is Relation.OTHER
    assert ids.relation("o2", (None, "c2")) is Relation.UNKNOWN
    assert ids.relation("c1", (None, "c2")) is Relation.OTHER
    assert ids.relation("c1", ("o1", None)) is Relation.SAME
    assert ids.relation("c1", ("o2", None)) is Relation.OTHER
    ids.note("o3", "c3")
    assert ids.relation("c3", ("o3", None)) is Relation.SAME
    assert ids.relation("c4", ("o3", None)) is Relation.OTHER


def test_echoed_nonce_does_not_make_another_order_its_own() -> None:
    lookup = sent("order_status", order_id="ord_1")
    debts = debts_of(lookup)
    other = reply(op="order_status", nonce=lookup.nonces[0], data={"orderId": "ord_2"})
    assert debts.candidates(other) == []
    own = reply(op="order_status", nonce=lookup.nonces[0], data={"orderId": "ord_1"})
    assert debts.candidates(own) == [lookup]


def test_error_about_another_unknown_operation_is_not_a_swaps() -> None:
    swap, estimate = sent("swap", client_order_id="c1"), sent("estimate")
    error = reply(error="Unknown operation: estimate")
    assert debts_of(swap).candidates(error) == []
    assert debts_of(swap, estimate).candidates(error) == [estimate]
    assert debts_of(swap).candidates(reply(error="unknown operation 'swap'")) == [swap]


def test_error_for_a_channel_is_its_requests() -> None:
    subscribe = sent("subscribe", channel="orders:a")
    other = sent("subscribe", channel="orders:b")
    debts = debts_of(subscribe, other)
    assert debts.candidates(reply(ch="orders:a", error="No")) == [subscribe]
    assert debts.is_lane_owed((CHANNEL, "orders:a"))
    assert not debts.is_lane_owed((CHANNEL, "orders:c"))


def test_error_that_names_an_order_may_be_for_its_channel() -> None:
    of_one, of_two = (sent("subscribe", channel=f"orders:o{number}") for number in (1, 2))
    debts = debts_of(of_one, of_two)
    for code in (None, "ORDER_NOT_FOUND"):
        error = reply(error="Order not found", code=code, data={"orderId": "o2"})
        assert debts.candidates(error) == [of_two]
    assert debts.candidates(reply(error="Order not found", data={"orderId": "o3"})) == []


@pytest.mark.parametrize("other", ["o2", "zz", "32588"])
def test_order_is_no_answer_for_another_known_order(other: str) -> None:
    # After a lost reply, an order is looked up as if its id were a client order id.
    lookup = sent("order_status", client_order_id="o1")
    debts = debts_of(lookup)
    state = reply(op="order_status", data={"orderId": other, "status": "FILLED"})
    assert debts.candidates(state) == [lookup]
    debts._order_ids.add("c1", "o1")
    assert debts.candidates(state) == []
    own = reply(op="order_status", data={"orderId": "o1", "status": "FILLED"})
    assert debts.candidates(own) == [lookup]


def test_known_names_of_an_unowed_reply() -> None:
    debts = debts_of(sent("subscribe", channel="orders:ord_5"))
    debts._order_ids.add("c1", "o1")
    assert debts.is_known(reply(op="swap", data={"orderId": "o1"}))
    assert debts.is_known(reply(op="swap", error="No", data={"clientOrderId": "c1"}))
    assert debts.is_known(reply(op="subscribe", ch="orders:ord_5"))
    assert debts.is_known(reply(error="No", data={"orderId": "ord_5"}))
    assert not debts.is_known(reply(op="swap", data={"orderId": "o2"}))
    assert not debts.is_known(reply(error="No"))


def test_repr_of_a_reply_shows_nothing_that_the_broker_has_sent() -> None:
    error = reply(op="swap", error="bad key k-123", data={"orderId": "k-123"})
    assert "k-123" not in repr(error)
    assert "swap" in repr(error)
