"""Subscribe to the balances and to an order, each in a task of its own.

It swaps, so that there is an order and something changes; real money only with `--live`.

    python examples/channel_subscriptions.py
"""

from __future__ import annotations

from decimal import Decimal

import trio
from somewhere import open_client, run

from trio_broker import Balance, Order, Subscription

SHOWN = ("ETH", "USDT")


async def watch_balances(updates: Subscription[tuple[Balance, ...]]) -> None:
    """Keep the account: a snapshot is the whole of it, a push replaces what it names."""
    account: dict[str, Decimal] = {}
    async for message in updates:
        if message.origin == "snapshot":
            account.clear()
        account.update({balance.asset: balance.available for balance in message.data})
        # A push may overtake the first snapshot: what it doesn't name isn't known yet.
        held = ", ".join(f"{account[asset]} {asset}" for asset in SHOWN if asset in account)
        print(f"{message.channel} ({message.origin}): {held}")


async def watch_order(updates: Subscription[Order]) -> None:
    """Each message is the order's whole state, and none is older than the last."""
    async for message in updates:
        print(f"{message.channel} ({message.origin}): {message.data.status}")
        if message.data.is_final:
            break


async def main() -> None:
    """Subscribe first, then swap: nothing that happens in between can be missed."""
    async with (
        open_client(trades=True) as client,
        await client.subscribe_balances() as balances,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch_balances, balances)
        receipt = await client.do_swap("0.01", "ETH", "USDT")
        async with await client.subscribe_order(receipt.order_id) as order:
            await watch_order(order)
        # What the broker pushed before it answered this has arrived by then.
        await client.get_balances()
        # Ends the iteration above, here and at the broker, and with it the task and the nursery.
        await client.unsubscribe("balances")


if __name__ == "__main__":
    run(main)
