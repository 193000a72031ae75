"""How ambiguous replies are counted. What the session makes of them is tested with it."""

from __future__ import annotations

from trio_broker._protocol.codec import Inbound
from trio_broker._protocol.matching import AmbiguousReply
from trio_broker._protocol.requests import Priority, Request, Stage

REFUSAL = (Inbound(error="No"), '{"error":"No"}')


def sent(op: str, times: int = 1, priority: Priority = Priority.READ) -> Request:
    request = Request(op, priority)
    request.stage = Stage.IN_FLIGHT
    request.nonces = [f"{op}-{number}" for number in range(times)]
    return request


def test_one_reply_for_three_requests_leaves_two_pending() -> None:
    candidates = [sent("estimate"), sent("balances"), sent("order_status")]
    ambiguity = AmbiguousReply.merged(candidates, *REFUSAL)
    assert ambiguity.outstanding == 2
    assert ambiguity.dissolve() == []
    assert all(request.ambiguity is ambiguity and request.is_owed for request in candidates)


def test_last_candidate_gets_the_reply() -> None:
    first, last = sent("estimate"), sent("balances")
    ambiguity = AmbiguousReply.merged([first, last], *REFUSAL)
    first.replies = 1
    del ambiguity.candidates[first]
    assert ambiguity.dissolve() == [last]
    assert (last.replies, last.is_owed, last.ambiguity) == (1, False, None)
    assert ambiguity.answer() == REFUSAL


def test_different_replies_to_several_requests_answer_none() -> None:
    candidates = [sent("estimate", 2), sent("balances", 2)]
    ambiguity = AmbiguousReply.merged(candidates, *REFUSAL)
    ambiguity = AmbiguousReply.merged(candidates, Inbound(error="Never"), '{"error":"Never"}')
    assert len(ambiguity.replies) == 2
    assert ambiguity.answer() is None


def test_swap_is_never_answered_by_counting() -> None:
    swap = sent("swap", priority=Priority.SWAP)
    ambiguity = AmbiguousReply.merged([swap], *REFUSAL)
    assert ambiguity.dissolve() == [swap]
    assert (swap.replies, swap.is_owed) == (0, True)
