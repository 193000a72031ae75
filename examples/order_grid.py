"""Place a grid of orders at once, track them all at once, and add up the results.

Five assets are bought for 1, 2, 3 and 4 USDT each: twenty orders, 50 USDT. Real money only with
`--live`.

    python examples/order_grid.py
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from itertools import product

import trio
from somewhere import open_client, run

from trio_broker import (
    BrokerError,
    BrokerWSClient,
    Order,
    SwapOutcomeUnknownError,
    new_client_order_id,
)

ASSETS = ("BTC", "ETH", "BNB", "SOL", "XRP")
AMOUNTS = (1, 2, 3, 4)

Place = tuple[str, int]


async def place(client: BrokerWSClient, at: Place, grid: dict[Place, Order]) -> None:
    """Place and follow one order. Its errors are printed here, so that the others continue."""
    asset, amount = at
    name = new_client_order_id()
    try:
        grid[at] = await client.swap_and_wait(amount, "USDT", asset, client_order_id=name)
    except SwapOutcomeUnknownError as error:
        print(f"{amount} USDT for {asset}: DON'T REPEAT it, look up {name}: {error.reason}")
    except BrokerError as error:
        print(f"{amount} USDT for {asset}: {error}")


async def holdings(client: BrokerWSClient) -> Mapping[str, Decimal]:
    """The totals of the assets that are traded. An unreadable one raises an error."""
    traded = {*ASSETS, "USDT"}
    balances = [one for one in await client.get_balances() if one.asset in traded]
    return defaultdict(Decimal, {balance.asset: balance.total for balance in balances})


async def main() -> None:
    """Run one task per order. The nursery ends with the last order."""
    grid: dict[Place, Order] = {}
    async with open_client(trades=True) as client:
        before = await holdings(client)
        async with trio.open_nursery() as nursery:
            for at in product(ASSETS, AMOUNTS):
                nursery.start_soon(place, client, at, grid)
        after = await holdings(client)
    wrong = []
    for asset in ASSETS:
        row = [grid[asset, amount] for amount in AMOUNTS if (asset, amount) in grid]
        bought = sum((order.filled_out or Decimal(0) for order in row), Decimal(0))
        print(f"{asset}: {', '.join(order.status for order in row)}: {bought} {asset}")
        if bought != after[asset] - before[asset]:
            wrong.append(f"{asset} grew by {after[asset] - before[asset]}, not by {bought}")
    print(f"{len(grid)} orders, paid with {before['USDT'] - after['USDT']} USDT")
    if wrong:
        sys.exit("; ".join(wrong))
    print("the balances match the orders exactly")


if __name__ == "__main__":
    run(main)
