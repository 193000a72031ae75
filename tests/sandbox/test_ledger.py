from __future__ import annotations

import decimal
from collections.abc import Callable
from decimal import Decimal

import pytest

from trio_broker.sandbox.ledger import Holding, Ledger
from trio_broker.sandbox.refusals import Refusal


def opened() -> Ledger:
    return Ledger({"alice": {"ETH": Decimal(10)}, "bob": {"USDT": Decimal(500)}})


def test_a_trade_moves_amounts_and_makes_none() -> None:
    ledger = opened()
    before = dict(ledger.sums())
    ledger.lock("alice", "ETH", Decimal(4))
    assert ledger.holding("alice", "ETH") == Holding(Decimal(10), Decimal(4))
    ledger.settle("alice", ("ETH", Decimal(3)), ("USDT", Decimal(9000)), fee=Decimal(9))
    assert ledger.holding("alice", "ETH") == Holding(Decimal(7), Decimal(1))
    assert ledger.holding("alice", "USDT") == Holding(Decimal(9000))
    assert ledger.book == {"ETH": 3, "USDT": -9009}
    assert ledger.fees == {"USDT": 9}
    assert ledger.sums() == before


def test_what_is_locked_can_t_be_locked_again() -> None:
    ledger = opened()
    ledger.lock("alice", "ETH", Decimal(6))
    with pytest.raises(Refusal, match=r"^Insufficient balance$"):
        ledger.lock("alice", "ETH", Decimal("4.000000000000000001"))
    ledger.lock("alice", "ETH", Decimal(4))
    assert ledger.holding("alice", "ETH").available == 0


def test_what_was_released_can_be_locked_again() -> None:
    ledger = opened()
    ledger.lock("alice", "ETH", Decimal(10))
    ledger.release("alice", "ETH", Decimal(10))
    ledger.lock("alice", "ETH", Decimal(10))
    assert ledger.holding("alice", "ETH") == Holding(Decimal(10), Decimal(10))


def test_an_asset_that_an_account_never_had_is_none_of_it() -> None:
    ledger = opened()
    assert ledger.holding("bob", "ETH") == Holding()
    with pytest.raises(Refusal, match="Insufficient balance"):
        ledger.lock("bob", "ETH", Decimal(1))
    assert "ETH" not in ledger.accounts["bob"]


@pytest.mark.parametrize("excess", ["release", "settle"])
def test_a_mistake_of_the_sandbox_does_not_go_on_unseen(excess: str) -> None:
    ledger = opened()
    ledger.lock("alice", "ETH", Decimal(1))
    before = ledger.accounts["alice"]["ETH"]
    mistakes: dict[str, Callable[[], None]] = {
        "release": lambda: ledger.release("alice", "ETH", Decimal(2)),
        "settle": lambda: ledger.settle(
            "alice", ("ETH", Decimal(2)), ("USDT", Decimal(1)), fee=Decimal(0)
        ),
    }
    with pytest.raises(ArithmeticError, match="doesn't add up"):
        mistakes[excess]()
    assert ledger.accounts["alice"] == {"ETH": before}


def test_sums_are_exact_whatever_the_context() -> None:
    large, small = Decimal(10**18), Decimal("0.000000000000000001")
    ledger = Ledger({"alice": {"ETH": large}})
    with decimal.localcontext(prec=3):
        ledger.lock("alice", "ETH", small)
        ledger.settle("alice", ("ETH", small), ("BNB", small), fee=small)
    left = ledger.holding("alice", "ETH").total
    assert str(left) == "999999999999999999.999999999999999999"
    assert ledger.sums()["ETH"] == large
    assert ledger.sums()["BNB"] == 0
