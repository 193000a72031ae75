from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_broker.models import OrderStatus
from trio_broker.sandbox.exchange import Change, Exchange
from trio_broker.sandbox.ledger import Holding
from trio_broker.sandbox.market import ASSETS
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.orders import Order, Outcome, Terms
from trio_broker.sandbox.refusals import Refusal
from trio_broker.sandbox.rules import Rules

S = OrderStatus
OPENING = {
    "alice": {"ETH": Decimal(100), "USDT": Decimal(1000)},
    "bob": {"BTC": Decimal(1)},
}
TERMS = Terms(Decimal(10), "ETH", "USDT")
START = 1000.0


def opened(seed: int = 7, **rules: Any) -> Exchange:
    return Exchange(seed, START, OPENING, Rules(**{"order_id_prefix": "ord_", **rules}))


def moment(at: float = START) -> Moment:
    return Moment(at, 1_700_000_000.0 + at)


def swap(exchange: Exchange, terms: Terms = TERMS, *, at: float = START, key: str = "alice") -> str:
    return exchange.swap(key, terms, None, moment(at))[0].order_id


def live(exchange: Exchange) -> list[Change]:
    """Each step at its time, to the end of all orders."""
    changes = []
    while (deadline := exchange.next_deadline()) is not None:
        changes += exchange.advance(moment(deadline))
    return changes


def statuses(changes: Iterable[Change]) -> list[OrderStatus]:
    return [change.order.status for change in changes]


def test_a_swap_locks_what_is_sold_and_settles_when_filled() -> None:
    exchange = opened()
    exchange.forced.append(Outcome.FILLED)
    before = dict(exchange.ledger.sums())
    order, change = exchange.swap("alice", TERMS, None, moment())
    assert change == Change(order, ("ETH",))
    assert order.status is S.PENDING
    assert exchange.ledger.holding("alice", "ETH") == Holding(Decimal(100), Decimal(10))
    processing, filled = live(exchange)
    assert (processing.order.status, processing.assets) == (S.PROCESSING, ())
    assert (filled.order.status, filled.assets) == (S.FILLED, ("ETH", "USDT"))
    assert exchange.ledger.holding("alice", "ETH") == Holding(Decimal(90))
    bought = filled.order.filled_out
    assert exchange.ledger.holding("alice", "USDT") == Holding(1000 + bought)
    assert bought == pytest.approx(10 * order.rate, rel=Decimal("0.001"))
    assert filled.order.tx_hash is not None
    assert len(filled.order.tx_hash) == 66
    assert exchange.ledger.sums() == before


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
def test_an_order_that_comes_to_nothing_gives_everything_back(outcome: Outcome) -> None:
    exchange = opened()
    exchange.forced.append(outcome)
    swap(exchange)
    last = live(exchange)[-1]
    assert last.order.status == outcome.upper()
    assert last.order.reason is not None
    assert last.assets == ("ETH",)
    assert exchange.ledger.accounts["alice"] == {
        "ETH": Holding(Decimal(100)),
        "USDT": Holding(Decimal(1000)),
    }


def test_an_order_filled_in_parts_settles_each() -> None:
    exchange = opened()
    exchange.forced.append(Outcome.FILLED_IN_PARTS)
    swap(exchange)
    changes = live(exchange)
    assert statuses(changes)[:2] == [S.PROCESSING, S.PARTIAL]
    assert statuses(changes)[-1] is S.FILLED
    bought = [change.order.filled_out for change in changes[1:]]
    assert bought == sorted(set(bought))
    assert all(change.assets == ("ETH", "USDT") for change in changes[1:])
    assert exchange.ledger.holding("alice", "ETH") == Holding(Decimal(90))
    assert exchange.ledger.holding("alice", "USDT").total == 1000 + bought[-1]


def test_an_order_partly_filled_gives_the_rest_back() -> None:
    exchange = opened()
    exchange.forced.append(Outcome.PARTLY_FILLED)
    swap(exchange)
    last = live(exchange)[-1]
    assert last.order.status is S.CANCELLED
    assert 0 < last.order.filled_in < 10
    assert last.assets == ("ETH",)
    assert exchange.ledger.holding("alice", "ETH") == Holding(100 - last.order.filled_in)


def falling(seed: int, terms: Terms) -> float:
    """A time after which the rate gets worse for the seconds that an order takes."""
    exchange = opened(seed)
    rates = {at: exchange.quote(terms, START + at).rate for at in range(0, 2000, 10)}
    return START + next(at for at in range(0, 1900, 10) if rates[at] > rates[at + 10])


@pytest.mark.parametrize(
    ("outcome", "last"), [(Outcome.FILLED, S.FAILED), (Outcome.FILLED_IN_PARTS, S.CANCELLED)]
)
def test_an_order_ends_when_the_rate_gets_worse_than_its_slippage(
    outcome: Outcome, last: OrderStatus
) -> None:
    terms = attrs.evolve(TERMS, slippage_bps=0)
    ends = []
    for seed in range(30):
        exchange = opened(seed, pending_delay=(0, 0), processing_delay=(10, 10))
        exchange.forced.append(outcome)
        at = falling(seed, terms)
        swap(exchange, terms, at=at)
        ends.append(live(exchange)[-1].order)
        assert exchange.ledger.holding("alice", "ETH") == Holding(100 - ends[-1].filled_in)
    assert {order.status for order in ends} <= {S.FAILED, S.CANCELLED}
    assert {order.reason for order in ends} == {"slippage exceeded"}
    assert last in {order.status for order in ends}


def test_without_a_slippage_any_rate_is_taken() -> None:
    exchange = opened(1, pending_delay=(0, 0), processing_delay=(10, 10))
    exchange.forced.append(Outcome.FILLED)
    swap(exchange, at=falling(1, TERMS))
    assert live(exchange)[-1].order.status is S.FILLED


def test_a_refused_swap_changes_nothing() -> None:
    exchange = opened()
    for terms in (
        attrs.evolve(TERMS, amount_in=Decimal(101)),
        attrs.evolve(TERMS, asset_in="DOGE"),
        attrs.evolve(TERMS, asset_out="XYZ"),
    ):
        with pytest.raises(Refusal):
            exchange.swap("alice", terms, "mine", moment())
    assert exchange.orders == {}
    assert exchange.next_deadline() is None
    assert exchange.ledger.accounts["alice"]["ETH"] == Holding(Decimal(100))
    exchange.swap("alice", TERMS, "mine", moment())  # The id isn't used up.


def test_an_amount_that_brings_nothing_is_invalid() -> None:
    with pytest.raises(Refusal, match="Invalid amount"):
        opened().quote(Terms(Decimal("1E-18"), "ETH", "BTC"), START)


def test_the_same_client_order_id_gives_the_same_order_once() -> None:
    exchange = opened()
    exchange.forced.append(Outcome.FILLED)
    order, _ = exchange.swap("alice", TERMS, "mine", moment())
    assert exchange.swap("alice", TERMS, "mine", moment()) == (order, None)
    live(exchange)
    again, change = exchange.swap("alice", TERMS, "mine", moment(START + 60))
    assert (again.order_id, again.status, change) == (order.order_id, S.FILLED, None)
    assert len(exchange.orders) == 1
    assert exchange.ledger.holding("alice", "ETH").total == 90


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_in": Decimal(11)},
        {"asset_out": "BTC"},
        {"sources": ("gate",)},
        {"slippage_bps": 30},
        {"wallet": "0x1"},
    ],
)
def test_the_same_client_order_id_with_other_terms_is_refused(changes: dict[str, Any]) -> None:
    exchange = opened()
    exchange.swap("alice", TERMS, "mine", moment())
    with pytest.raises(Refusal, match=r"^Duplicate client order id$"):
        exchange.swap("alice", attrs.evolve(TERMS, **changes), "mine", moment())
    assert len(exchange.orders) == 1


def test_accounts_may_use_the_same_client_order_id() -> None:
    exchange = opened()
    exchange.swap("alice", TERMS, "mine", moment())
    bobs, _ = exchange.swap("bob", Terms(Decimal("0.1"), "BTC", "ETH"), "mine", moment())
    assert exchange.find("bob", "mine") == bobs


def test_an_order_is_found_by_either_id_by_its_owner_alone() -> None:
    exchange = opened()
    order, _ = exchange.swap("alice", TERMS, "mine", moment())
    assert exchange.find("alice", order.order_id) == exchange.find("alice", "mine") == order
    for key, order_id in [("bob", order.order_id), ("bob", "mine"), ("alice", "ord_00000002")]:
        with pytest.raises(Refusal, match=r"^Order not found$"):
            exchange.find(key, order_id)


def test_a_late_timer_takes_the_same_steps_at_the_same_prices() -> None:
    prompt, late = opened(), opened()
    for exchange in (prompt, late):
        exchange.forced.extend([Outcome.FILLED_IN_PARTS, Outcome.FILLED])
        swap(exchange)
        swap(exchange, Terms(Decimal("0.1"), "BTC", "ETH"), key="bob")
    live(prompt)
    late.advance(moment(START + 3600))
    assert late.next_deadline() is None
    assert late.ledger.accounts == prompt.ledger.accounts


def test_nothing_happens_before_its_time() -> None:
    exchange = opened()
    swap(exchange)
    deadline = exchange.next_deadline()
    assert deadline is not None
    assert exchange.advance(moment(deadline - 0.001)) == []
    assert statuses(exchange.advance(moment(deadline))) == [S.PROCESSING]


def test_how_an_order_goes_depends_on_seed_and_number_alone() -> None:
    def lives(seed: int, gap: float) -> list[tuple[str, list[OrderStatus]]]:
        exchange = opened(seed)
        small = attrs.evolve(TERMS, amount_in=Decimal(1))
        ids = [swap(exchange, small, at=START + gap * number) for number in range(40)]
        changes = live(exchange)
        return [(i, statuses(c for c in changes if c.order.order_id == i)) for i in ids]

    assert lives(1, 0.0) == lives(1, 100.0)
    assert lives(1, 0.0) != lives(2, 0.0)


def test_most_orders_are_filled_and_some_are_not() -> None:
    exchange = opened()
    for _ in range(400):
        swap(exchange, attrs.evolve(TERMS, amount_in=Decimal("0.1")))
    live(exchange)
    ends = [order.status for order in exchange.orders.values()]
    assert ends.count(S.FILLED) > 340
    assert set(ends) == {S.FILLED, S.FAILED, S.CANCELLED}


def test_settable_weights_decide_how_orders_go() -> None:
    exchange = opened(outcomes={Outcome.FAILED: 1})
    for _ in range(5):
        swap(exchange)
    live(exchange)
    assert {order.status for order in exchange.orders.values()} == {S.FAILED}


class Trading(RuleBasedStateMachine):
    """Whatever is asked of it, the exchange neither makes nor loses money."""

    @initialize(seed=st.integers(0, 1000))
    def open(self, seed: int) -> None:
        self.exchange = opened(seed, pending_delay=(0, 20), processing_delay=(0, 60))
        self.sums = {asset: Decimal(0) for asset in ASSETS} | dict(self.exchange.ledger.sums())
        self.at = START
        self.seen: dict[str, Order] = {}

    @rule(
        key=st.sampled_from(["alice", "bob"]),
        pair=st.permutations(sorted(ASSETS)),
        share=st.sampled_from(["0.000001", "0.1", "0.5", "1", "1.000001"]),
        outcome=st.sampled_from(Outcome) | st.none(),
        slippage=st.sampled_from([None, 0, 1, 10_000]),
        client_order_id=st.sampled_from([None, "a", "b", "c"]),
    )
    def swap(  # noqa: PLR0917 - Hypothesis names them
        self,
        key: str,
        pair: list[str],
        share: str,
        outcome: Outcome | None,
        slippage: int | None,
        client_order_id: str | None,
    ) -> None:
        held = self.exchange.ledger.accounts[key]
        asset_in = next((asset for asset in pair if asset in held), pair[0])
        asset_out = next(asset for asset in pair if asset != asset_in)
        amount = held[asset_in].available * Decimal(share)
        amount = amount.quantize(Decimal(1).scaleb(-ASSETS[asset_in].decimals))
        terms = Terms(amount or Decimal(1), asset_in, asset_out, (), slippage)
        self.exchange.forced.clear()
        if outcome is not None:
            self.exchange.forced.append(outcome)
        before = dict(held)
        try:
            self.exchange.swap(key, terms, client_order_id, moment(self.at))
        except Refusal:
            assert held == before

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        self.at += seconds
        self.exchange.advance(moment(self.at))

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "exchange"):
            return
        sums = {asset: Decimal(0) for asset in ASSETS} | dict(self.exchange.ledger.sums())
        assert sums == self.sums

    @invariant()
    def what_is_locked_is_what_open_orders_still_sell(self) -> None:
        if not hasattr(self, "exchange"):
            return
        for key, holdings in self.exchange.ledger.accounts.items():
            for asset, holding in holdings.items():
                assert 0 <= holding.locked <= holding.total
                assert holding.locked == sum(
                    order.unfilled
                    for order in self.exchange.orders.values()
                    if (order.api_key, order.terms.asset_in) == (key, asset)
                    and not order.status.is_final
                )

    @invariant()
    def final_orders_never_change(self) -> None:
        if not hasattr(self, "exchange"):
            return
        for order_id, order in self.exchange.orders.items():
            seen = self.seen.get(order_id, order)
            assert order.filled_out >= seen.filled_out
            assert order == seen or not seen.status.is_final
        self.seen = dict(self.exchange.orders)


TestTrading = Trading.TestCase
TestTrading.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
