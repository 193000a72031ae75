from __future__ import annotations

import random
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from trio_broker.models import OrderStatus
from trio_broker.sandbox.orders import NEXT, Order, Outcome, Step, Terms, plan_life

S = OrderStatus
D = Decimal


def order(*steps: Step, updated_at: int = 1000) -> Order:
    return Order(
        order_id="ord_00000001",
        api_key="test_key_1",
        terms=Terms(Decimal(10), "ETH", "USDT"),
        client_order_id=None,
        rate=Decimal(3000),
        updated_at=updated_at,
        steps=steps,
    )


def life(
    outcome: Outcome, amount: str = "10", decimals: int = 6, seed: int = 1
) -> tuple[Step, ...]:
    return plan_life(
        outcome,
        Decimal(amount),
        decimals,
        now=100.0,
        pending_delay=(1.0, 2.0),
        processing_delay=(3.0, 4.0),
        chance=random.Random(seed),
    )


def test_an_order_moves_and_the_earlier_one_stays() -> None:
    first = order(Step(1.0, S.PROCESSING), Step(2.0, S.FILLED, Decimal(10)))
    second = first.moved(S.PROCESSING, 1500)
    third = second.moved(S.FILLED, 2000, sold=Decimal(10), bought=Decimal(30000), tx_hash="0x1")
    assert (first.status, second.status, third.status) == (S.PENDING, S.PROCESSING, S.FILLED)
    assert (first.unfilled, second.unfilled, third.unfilled) == (D(10), D(10), D(0))
    assert second.steps == first.steps[1:]
    assert third.steps == ()
    assert (third.filled_out, third.tx_hash, third.updated_at) == (D(30000), "0x1", 2000)


def test_parts_add_up_and_keep_their_transaction() -> None:
    partial = order().moved(S.PROCESSING, 1001)
    for number in range(3):
        partial = partial.moved(
            S.PARTIAL, 1002, sold=Decimal(2), bought=Decimal(6), tx_hash=None if number else "0x1"
        )
    assert (partial.filled_in, partial.filled_out, partial.unfilled) == (D(6), D(18), D(4))
    assert partial.tx_hash == "0x1"


@pytest.mark.parametrize("status", S)
def test_an_order_goes_no_other_way_than_documented(status: OrderStatus) -> None:
    paths = {
        S.PENDING: [],
        S.PROCESSING: [S.PROCESSING],
        S.PARTIAL: [S.PROCESSING, S.PARTIAL],
    }
    before = order()
    for step in paths.get(status, [S.PROCESSING, status]):
        before = before.moved(step, 0)
    for target in S:
        if target in NEXT[status]:
            assert before.moved(target, 0).status is target
        else:
            with pytest.raises(ValueError, match=f"from {status} to {target}"):
                before.moved(target, 0)


def test_nothing_follows_a_final_status() -> None:
    assert {status for status, following in NEXT.items() if not following} == {
        status for status in S if status.is_final
    }


def test_every_change_is_later_than_the_one_before_unless_the_clock_is_set_back() -> None:
    before = order(updated_at=5000)
    stamps = [before.moved(S.PROCESSING, now_ms) for now_ms in (3999, 4000, 5000, 5007)]
    assert [moved.updated_at for moved in stamps] == [3999, 5001, 5001, 5007]


@pytest.mark.parametrize(
    ("outcome", "statuses"),
    [
        (Outcome.FILLED, [S.PROCESSING, S.FILLED]),
        (Outcome.FAILED, [S.PROCESSING, S.FAILED]),
        (Outcome.CANCELLED, [S.PROCESSING, S.CANCELLED]),
    ],
)
def test_a_plain_life_has_two_steps(outcome: Outcome, statuses: list[OrderStatus]) -> None:
    assert [step.status for step in life(outcome)] == statuses


@given(st.integers(), st.sampled_from(Outcome), st.integers(1, 10**30), st.integers(0, 18))
def test_any_life_is_possible_in_time_and_sells_no_more_than_there_is(
    seed: int, outcome: Outcome, units: int, decimals: int
) -> None:
    with localcontext(prec=80):
        amount = Decimal(units).scaleb(-decimals)
        steps = life(outcome, str(amount), decimals, seed)
        sold = sum((step.amount_in for step in steps), Decimal(0))
        for step in steps:
            scaled = step.amount_in.scaleb(decimals)
            assert scaled == scaled.to_integral_value()
    times = [step.at for step in steps]
    assert times == sorted(times)
    assert 101.0 <= times[0] <= 102.0
    assert times[0] + 3.0 <= times[-1] <= times[0] + 4.0
    statuses = [S.PENDING, *(step.status for step in steps)]
    assert all(after in NEXT[before] for before, after in pairwise(statuses))
    assert statuses[-1].is_final
    if outcome in {Outcome.FILLED, Outcome.FILLED_IN_PARTS}:
        assert sold == amount
    elif outcome is Outcome.PARTLY_FILLED:
        assert sold < amount
    else:
        assert sold == 0


@pytest.mark.parametrize("outcome", [Outcome.FILLED_IN_PARTS, Outcome.PARTLY_FILLED])
def test_an_order_is_filled_in_one_to_three_parts_before_its_end(outcome: Outcome) -> None:
    counts = {
        [step.status for step in life(outcome, seed=seed)].count(S.PARTIAL) for seed in range(50)
    }
    assert counts == {1, 2, 3}


def test_what_can_t_be_divided_is_not_filled_in_parts() -> None:
    steps = life(Outcome.FILLED_IN_PARTS, "0.000001")
    assert [(step.status, step.amount_in) for step in steps] == [
        (S.PROCESSING, 0),
        (S.FILLED, Decimal("0.000001")),
    ]


def test_no_key_shows_in_an_order() -> None:
    assert "test_key_1" not in repr(order())
