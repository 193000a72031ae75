"""A request's lane, and the counting that ends a doubt. What the session does is its own tests'."""

from __future__ import annotations

import pytest

from trio_broker.request import Doubt, Priority, Request, Stage, ignore
from trio_broker.wire import Inbound

REFUSAL = (Inbound(error="No"), '{"error":"No"}')


def asked(op: str, times: int = 1, priority: Priority = Priority.READ) -> Request:
    request = Request(op, priority)
    request.stage = Stage.IN_FLIGHT
    request.nonces = [f"{op}-{number}" for number in range(times)]
    return request


@pytest.mark.parametrize(
    ("one", "other", "confusable"),
    [
        (Request("estimate", Priority.READ), Request("estimate", Priority.READ), True),
        (Request("estimate", Priority.READ), Request("balances", Priority.READ), False),
        (
            Request("subscribe", Priority.SUBSCRIBE, channel="balances"),
            Request("unsubscribe", Priority.SUBSCRIBE, channel="balances"),
            True,
        ),
        (
            Request("order_status", Priority.READ, order_id="o1"),
            Request("order_status", Priority.BACKGROUND, order_id="o2"),
            False,
        ),
        (
            Request("order_status", Priority.READ, client_order_id="c1"),
            Request("order_status", Priority.READ, client_order_id="c2"),
            True,
        ),
    ],
)
def test_what_could_be_confused_shares_a_lane(
    one: Request, other: Request, confusable: bool
) -> None:
    assert (one.lane == other.lane) is confusable


def test_requests_leave_in_the_order_of_their_priorities() -> None:
    names = [priority.name for priority in sorted(Priority)]
    assert names == ["AUTH", "SWAP", "READ", "SUBSCRIBE", "BACKGROUND"]


def test_who_gives_no_callback_may_be_told_anything() -> None:
    Request("balances", Priority.READ).on_end(asked("balances"))
    ignore(None)


def test_one_answer_for_three_leaves_two_replies_to_come() -> None:
    suspects = [asked("estimate"), asked("balances"), asked("order_status")]
    doubt = Doubt.merged(suspects, *REFUSAL)
    assert doubt.outstanding == 2
    assert doubt.dissolve() == []
    assert all(request.doubt is doubt and request.is_owed for request in suspects)


def test_the_last_suspect_is_the_one_that_was_answered() -> None:
    first, last = asked("estimate"), asked("balances")
    doubt = Doubt.merged([first, last], *REFUSAL)
    first.replies = 1
    del doubt.suspects[first]
    assert doubt.dissolve() == [last]
    assert (last.replies, last.is_owed, last.doubt) == (1, False, None)
    assert doubt.answer() == REFUSAL


def test_different_answers_to_several_belong_to_nobody_in_particular() -> None:
    suspects = [asked("estimate", 2), asked("balances", 2)]
    doubt = Doubt.merged(suspects, *REFUSAL)
    doubt = Doubt.merged(suspects, Inbound(error="Never"), '{"error":"Never"}')
    assert len(doubt.answers) == 2
    assert doubt.answer() is None


def test_a_swap_is_never_told_by_counting() -> None:
    swap = asked("swap", priority=Priority.SWAP)
    doubt = Doubt.merged([swap], *REFUSAL)
    assert doubt.dissolve() == [swap]
    assert (swap.replies, swap.is_owed) == (0, True)
