"""Which request's reply is too large."""

from __future__ import annotations

from trio_broker._protocol import requests
from trio_broker._protocol.oversized import OversizedReplies
from trio_broker._protocol.requests import Request, Trade


def balances() -> Request:
    return requests.balances(1.0)


def status(order_id: str) -> Request:
    return requests.order_status(order_id, 1.0)


def test_reply_alone_in_flight_twice_is_certainly_too_large() -> None:
    replies = OversizedReplies()
    replies.lost([balances()])
    assert replies.flies_alone(balances())
    assert not replies.is_certain(balances())
    replies.lost([balances()])
    assert replies.is_certain(balances())


def test_several_in_flight_are_not_certainly_too_large() -> None:
    replies = OversizedReplies()
    for _ in range(3):
        replies.lost([balances(), status("o1")])
    assert replies.flies_alone(status("o1"))
    assert not replies.is_certain(balances())
    assert not replies.is_certain(status("o1"))


def test_loss_with_nothing_in_flight_was_a_push() -> None:
    replies = OversizedReplies()
    replies.lost([])
    assert not replies.flies_alone(balances())


def test_subscriptions_and_swaps_are_never_candidates() -> None:
    replies = OversizedReplies()
    subscribe = requests.subscription("subscribe", "balances", 1.0)
    for _ in range(2):
        replies.lost([subscribe])
    assert not replies.flies_alone(subscribe)
    assert not replies.is_certain(subscribe)


def test_reply_clears_only_its_own_request() -> None:
    replies = OversizedReplies()
    for request in (balances(), status("o1"), balances(), status("o1")):
        replies.lost([request])
    replies.answered(balances())
    assert not replies.flies_alone(balances())
    assert not replies.is_certain(balances())
    assert replies.is_certain(status("o1"))


def test_estimates_of_other_pairs_are_other_requests() -> None:
    def estimate(amount: str) -> Request:
        return requests.estimate(Trade(amount, "ETH", "USDT"), None, 1.0)

    replies = OversizedReplies()
    replies.lost([estimate("1")])
    replies.lost([estimate("1")])
    assert replies.is_certain(estimate("1"))
    assert not replies.is_certain(estimate("2"))


def test_memory_of_suspected_requests_is_bounded() -> None:
    replies = OversizedReplies()
    for number in range(5000):
        replies.lost([status(f"o{number}")])
    assert len(replies.suspected) <= 1001
