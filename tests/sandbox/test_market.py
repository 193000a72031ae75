from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given, strategies as st

from trio_broker.sandbox.market import ASSETS, SOURCES, Market, Quote
from trio_broker.sandbox.refusals import Refusal

# Printed by this code when it was written.
PRICES = ["63705.995250", "63637.826000"]
YEAR = 365 * 24 * 3600.0


def quote(market: Market, amount: str = "2", pair: str = "ETH/USDT", **options: object) -> Quote:
    asset_in, asset_out = pair.split("/")
    at = options.pop("at", 0.0)
    assert isinstance(at, float)
    sources = options.pop("sources", ())
    assert isinstance(sources, tuple)
    return market.quote(Decimal(amount), asset_in, asset_out, at=at, sources=sources)


def test_the_same_seed_and_time_give_the_same_price_in_any_order() -> None:
    times = [0.0, 0.25, 17.5, 3600.0, YEAR]
    forwards = [Market(7, 10).price("ETH", at) for at in times]
    market = Market(7, 10)
    backwards = [market.price("ETH", at) for at in reversed(times)]
    assert forwards == backwards[::-1]


def test_these_prices_stay_the_same_on_every_machine_and_version() -> None:
    assert [str(Market(7, 10).price("BTC", at)) for at in (0.0, 60.0)] == PRICES


def test_another_seed_gives_other_prices() -> None:
    assert Market(1, 10).price("BTC", 5.0) != Market(2, 10).price("BTC", 5.0)


def test_prices_move_a_little_in_a_second_and_more_in_an_hour() -> None:
    market = Market(0, 10)

    def moves(seconds: float) -> Decimal:
        starts = [1000.0 * number for number in range(50)]
        prices = [(market.price("BTC", at), market.price("BTC", at + seconds)) for at in starts]
        return sum((abs(after / before - 1) for before, after in prices), Decimal(0)) / 50

    assert 0 < moves(1) < Decimal("0.0005")
    assert moves(3600) > 10 * moves(1)


@given(st.sampled_from(sorted(ASSETS)), st.floats(0, YEAR))
def test_a_price_never_gets_far_from_its_base(symbol: str, at: float) -> None:
    base = ASSETS[symbol].base
    assert abs(Market(3, 10).price(symbol, at) / base - 1) < Decimal("0.11")


def test_usdt_is_worth_one_usdt() -> None:
    assert Market(3, 10).price("USDT", 1234.5) == 1


def test_a_quote_adds_up() -> None:
    market = Market(7, 10)
    quoted = quote(market)
    (step,) = quoted.route
    assert (step.from_asset, step.to_asset, step.pool) == ("ETH", "USDT", "ETH/USDT")
    assert step.amount_in == 2
    assert step.amount_out == quoted.expected_out + quoted.fee
    assert step.exchange in SOURCES
    assert quoted.price == quoted.expected_out / 2
    ideal = 2 * market.price("ETH", 0.0)
    assert ideal * Decimal("0.998") < quoted.expected_out < ideal * Decimal("0.999")


def test_two_coins_are_swapped_by_way_of_usdt() -> None:
    first, second = quote(Market(7, 10), pair="BTC/TRX").route
    assert (first.from_asset, first.to_asset) == ("BTC", "USDT")
    assert (second.from_asset, second.to_asset) == ("USDT", "TRX")
    assert second.amount_in == first.amount_out


def test_the_fee_is_a_share_of_what_is_bought() -> None:
    free, dear = quote(Market(7, 0)), quote(Market(7, 100))
    assert free.fee == 0
    assert dear.expected_out + dear.fee == free.expected_out
    assert dear.fee == pytest.approx(free.expected_out / 100, abs=Decimal("0.000001"))


def test_the_best_of_the_wanted_sources_is_taken() -> None:
    market = Market(7, 10)
    alone = {source: quote(market, sources=(source,)) for source in SOURCES}
    for source, quoted in alone.items():
        assert quoted.route[0].exchange == source
    assert quote(market).expected_out == max(quoted.expected_out for quoted in alone.values())
    assert {quote(market, at=at * 10.0).route[0].exchange for at in range(50)} == set(SOURCES)


@pytest.mark.parametrize(
    ("pair", "sources", "text"),
    [
        ("XYZ/USDT", (), "Unknown asset: XYZ"),
        ("USDT/usdt", (), "Unknown asset: usdt"),
        ("ETH/ETH", (), "An asset can't be swapped for itself"),
        ("ETH/USDT", ("gate", "kraken"), "Unknown liquidity source: kraken"),
    ],
)
def test_what_can_t_be_quoted_is_refused(pair: str, sources: tuple[str, ...], text: str) -> None:
    with pytest.raises(Refusal) as caught:
        quote(Market(7, 10), pair=pair, sources=sources)
    assert str(caught.value) == text


@given(
    st.decimals("0.000001", 10**18 - 1, places=6),
    st.permutations(sorted(ASSETS)),
    st.floats(0, YEAR),
)
def test_any_quote_fits_its_assets_decimals(amount: Decimal, order: list[str], at: float) -> None:
    asset_in, asset_out = order[:2]
    quoted = Market(1, 10).quote(amount, asset_in, asset_out, at=at)
    assert quoted.expected_out >= 0
    assert quoted.fee >= 0
    with localcontext(prec=80):
        scaled = quoted.expected_out.scaleb(ASSETS[asset_out].decimals)
        assert scaled == scaled.to_integral_value()
        assert quoted.rate * amount >= quoted.expected_out
