"""Prices and quotes.

A price is a pure function of seed, asset and time, so a run can be repeated exactly, at any time,
in any order, and nothing has to be remembered. It is the sum of waves of random heights. Each wave
is four times as long as the one before and twice as high, as a random walk gets twice as far in
four times the time. Unlike a random walk, it is bounded: after a year, BTC is still within some
percent of its base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import attrs

from trio_broker.models import RouteStep
from trio_broker.sandbox.money import CONTEXT, round_down, round_up
from trio_broker.sandbox.refusals import SAME_ASSET, UNKNOWN_ASSET, UNKNOWN_SOURCE, Refusal

SOURCES: Final = ("binance", "bybit", "gate")

_HUB: Final = "USDT"
_OCTAVES: Final = 9  # The longest wave takes 4**8 seconds, 18 hours.
_WIDEST_SPREAD: Final = 1_000  # parts per million
_SPREAD_PERIOD: Final = 10.0  # seconds for which a source's spread stays the same


@attrs.frozen
class Asset:
    """Something that can be swapped.

    Attributes:
        symbol: Its symbol.
        decimals: How many decimals its amounts have.
        base: The price in USDT around which it wanders.
        volatility: How widely it wanders: 1 is up to 5 %, mostly far less; 0 is not at all.
    """

    symbol: str
    decimals: int
    base: Decimal
    volatility: float


ASSETS: Final = {
    asset.symbol: asset
    for asset in (
        Asset("USDT", 6, Decimal(1), 0.0),
        Asset("USDC", 6, Decimal("0.9998"), 0.01),
        Asset("BTC", 8, Decimal(64250), 1.0),
        Asset("ETH", 18, Decimal("3245.67"), 1.2),
        Asset("BNB", 18, Decimal("585.4"), 1.1),
        Asset("SOL", 9, Decimal("148.25"), 1.6),
        Asset("TRX", 6, Decimal("0.1632"), 1.0),
        Asset("XRP", 6, Decimal("0.5871"), 1.4),
        Asset("ADA", 6, Decimal("0.3945"), 1.5),
        Asset("DOGE", 8, Decimal("0.1217"), 2.0),
    )
}


@attrs.frozen
class Quote:
    """The result of a swap at one time.

    Attributes:
        route: The trades that it takes: one, or two by way of USDT. The amounts are before the
            fee, so the last step's `amount_out` is `expected_out` and `fee` together.
        rate: Units bought for one sold, after the fee, not rounded to the asset's decimals.
        price: `expected_out` divided by the amount sold.
        expected_out: The bought amount, after the fee.
        fee: The fee, in the asset that is bought.
    """

    route: tuple[RouteStep, ...]
    rate: Decimal
    price: Decimal
    expected_out: Decimal
    fee: Decimal


def known_asset(symbol: str) -> Asset:
    """The asset of a symbol.

    Raises:
        Refusal: There is none.
    """
    try:
        return ASSETS[symbol]
    except KeyError:
        raise Refusal(UNKNOWN_ASSET, symbol) from None


class Market:
    """Prices the sandbox's swaps.

    `fee_bps` is the fee in hundredths of a percent of what is bought.
    """

    def __init__(self, seed: int, fee_bps: int) -> None:
        self._seed = seed
        self._fee_bps = fee_bps

    def price(self, symbol: str, at: float) -> Decimal:
        """An asset's price in USDT, to six digits after its base's.

        The time is in seconds since the sandbox was opened.
        """
        asset = ASSETS[symbol]
        # Whole parts per million, since floats differ in their last digits between machines.
        millionths = round(self._wander(symbol, at) * asset.volatility * 100)
        return CONTEXT.multiply(asset.base, Decimal(1_000_000 + millionths).scaleb(-6, CONTEXT))

    def quote(
        self,
        amount_in: Decimal,
        asset_in: str,
        asset_out: str,
        *,
        at: float,
        sources: Sequence[str] = (),
    ) -> Quote:
        """Quote a swap, with each of its trades at the best of the sources.

        The time is in seconds since the sandbox was opened. Without `sources`, all may be used.

        Raises:
            Refusal: An asset or a source is unknown, or the assets are the same.
        """
        decimals = known_asset(asset_in).decimals, known_asset(asset_out).decimals
        if asset_in == asset_out:
            raise Refusal(SAME_ASSET)
        for source in sources:
            if source not in SOURCES:
                raise Refusal(UNKNOWN_SOURCE, source)
        hub = [] if _HUB in {asset_in, asset_out} else [_HUB]
        stops = [asset_in, *hub, asset_out]
        with localcontext(CONTEXT):
            route: list[RouteStep] = []
            gross = Decimal(1)
            amount = round_down(amount_in, decimals[0])
            for here, there in pairwise(stops):
                spread, exchange = self._best(here, there, at, sources or SOURCES)
                gross = gross * self.price(here, at) / self.price(there, at) * (1 - spread)
                bought = round_down(amount_in * gross, ASSETS[there].decimals)
                route.append(RouteStep(here, there, amount, bought, f"{here}/{there}", exchange))
                amount = bought
            fee = round_up(amount * self._fee_bps / 10_000, decimals[1])
            expected_out = amount - fee
            return Quote(
                route=tuple(route),
                rate=gross * (10_000 - self._fee_bps) / 10_000,
                price=round_down(expected_out / amount_in, 18),
                expected_out=expected_out,
                fee=fee,
            )

    def _best(
        self, here: str, there: str, at: float, sources: Sequence[str]
    ) -> tuple[Decimal, str]:
        period = math.floor(at / _SPREAD_PERIOD)
        parts, source = min(
            (round(abs(self._chance(f"{source}/{here}/{there}", period)) * _WIDEST_SPREAD), source)
            for source in sources
        )
        return Decimal(parts).scaleb(-6, CONTEXT), source

    def _wander(self, symbol: str, at: float) -> float:
        """How far a price is from its base: within ±511, and within ±1 or so after a second."""
        distance = 0.0
        for octave in range(_OCTAVES):
            position = at / 4**octave
            left = math.floor(position)
            share = position - left
            name = f"{symbol}/{octave}"
            height = self._chance(name, left) * (1 - share) + self._chance(name, left + 1) * share
            distance += 2**octave * height
        return distance

    def _chance(self, name: str, index: int) -> float:
        """A number from -1 up to 1 that depends on seed, name and index alone."""
        digest = blake2b(f"{self._seed}/{name}/{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**63 - 1
