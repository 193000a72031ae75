"""Subscribe to the balances and to an order, each in its own task.

It swaps, so that there is an order and something changes; real money only with `--live`.

    python examples/channel_subscriptions.py
"""

from __future__ import annotations

import trio
from somewhere import open_client, run

from trio_broker import Balance, Order, Subscription

SHOWN = ("ETH", "USDT")


def shown(balance: Balance) -> str:
    """The broker may have sent an amount that can't be read: it isn't zero."""
    return f"{balance.available if balance.is_readable else 'unreadable'} {balance.asset}"


async def watch_balances(updates: Subscription[tuple[Balance, ...]]) -> None:
    """Keep the account up to date: a snapshot is all of it, a push replaces some assets."""
    account: dict[str, Balance] = {}
    async for message in updates:
        if message.origin == "snapshot":
            account.clear()
        account.update({balance.asset: balance for balance in message.data})
        # A push may arrive before the first snapshot. Then other assets aren't known yet.
        held = ", ".join(shown(account[asset]) for asset in SHOWN if asset in account)
        print(f"{message.channel} ({message.origin}): {held}")


async def watch_order(updates: Subscription[Order]) -> None:
    """Each message is the order's whole state, and none is older than the last."""
    async for message in updates:
        print(f"{message.channel} ({message.origin}): {message.data.status}")
        if message.data.is_final:
            break


async def main() -> None:
    """Subscribe first, then swap, so that no change is missed."""
    async with (
        open_client(trades=True) as client,
        client.subscribe_balances() as balances,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch_balances, balances)
        receipt = await client.do_swap("0.01", "ETH", "USDT")
        async with client.subscribe_order(receipt.order_id) as order:
            await watch_order(order)
        # After this reply, all earlier pushes have arrived.
        await client.get_balances()
        # This ends the iteration above, and so the task and the nursery.
        await client.unsubscribe("balances")


if __name__ == "__main__":
    run(main)
