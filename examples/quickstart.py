"""Subscribe to balances, request an estimate, swap, and follow the order until it is final.

It starts its own sandbox and trades play money. With BROKER_API_KEY in the environment, it trades
with that account; real money only with `--live`.

    python examples/quickstart.py
"""

from __future__ import annotations

import sys

import trio
from somewhere import open_client, run

from trio_broker import Balance, BrokerWSClient, Order, OrderStatus, Subscription

AMOUNT, SOLD, BOUGHT = "0.01", "ETH", "USDT"


async def show_balances(updates: Subscription[tuple[Balance, ...]]) -> None:
    """Print the whole account first, and then its changes."""
    async for message in updates:
        held = ", ".join(
            f"{balance.available if balance.is_readable else 'unreadable'} {balance.asset}"
            for balance in message.data
        )
        print(f"{message.channel} ({message.origin}): {held}")


async def swap(client: BrokerWSClient) -> Order:
    """Swap, and follow the order until it is final."""
    quote = await client.estimate_swap(AMOUNT, SOLD, BOUGHT)
    print(f"estimate: {AMOUNT} {SOLD} for {quote.expected_out} {BOUGHT}")
    receipt = await client.do_swap(AMOUNT, SOLD, BOUGHT, slippage_bps=100)
    async with client.track_order(receipt.order_id) as progress:
        async for message in progress:
            order = message.data
            print(f"{message.channel}: {order.status}, {order.filled_out} {BOUGHT}")
    return order


async def main() -> None:
    """Run everything, with the balances in their own task."""
    async with (
        open_client(trades=True) as client,  # a BrokerWSClient(api_key, secret_key, ws_url)
        client.subscribe_balances() as updates,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(show_balances, updates)
        order = await swap(client)
        nursery.cancel_scope.cancel()
    if order.status is not OrderStatus.FILLED:
        sys.exit(f"the order ended as {order.status}")
    print(f"sold {AMOUNT} {SOLD} for {order.filled_out} {BOUGHT}")


if __name__ == "__main__":
    run(main)
