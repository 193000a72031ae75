"""Subscribe to balances, estimate, swap, and follow the order to its end.

With BROKER_API_KEY in the environment this trades there: real money, if the broker is the real
one. Otherwise it starts a sandbox of its own, and trades play money.

    python examples/quickstart.py
"""

from __future__ import annotations

import os
import sys

import trio

from trio_broker import Balance, BrokerError, BrokerWSClient, Order, OrderStatus, Subscription
from trio_broker.sandbox import open_sandbox

AMOUNT, SOLD, BOUGHT = "0.01", "ETH", "USDT"


async def show_balances(updates: Subscription[tuple[Balance, ...]]) -> None:
    """Print the account as it changes: first the whole of it, then what is pushed."""
    async for message in updates:
        held = ", ".join(f"{balance.available} {balance.asset}" for balance in message.data)
        print(f"{message.channel} ({message.origin}): {held}")


async def swap(client: BrokerWSClient) -> Order:
    """Swap, and follow the order until nothing more will happen to it."""
    quote = await client.estimate_swap(AMOUNT, SOLD, BOUGHT)
    print(f"{AMOUNT} {SOLD} would bring {quote.expected_out} {BOUGHT}")
    receipt = await client.do_swap(AMOUNT, SOLD, BOUGHT, slippage_bps=100)
    async with client.track_order(receipt.order_id) as progress:
        async for message in progress:
            order = message.data
            print(f"{message.channel}: {order.status}, {order.filled_out} {BOUGHT}")
    return order


async def trade(client: BrokerWSClient) -> None:
    """The whole of it, with the balances in a task of their own."""
    async with (
        await client.subscribe_balances() as updates,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(show_balances, updates)
        order = await swap(client)
        nursery.cancel_scope.cancel()
    if order.status is not OrderStatus.FILLED:
        sys.exit(f"the order ended as {order.status}")
    print(f"sold {AMOUNT} {SOLD} for {order.filled_out} {BOUGHT}")


async def main() -> None:
    """Trade where the environment says, or in a sandbox."""
    if "BROKER_API_KEY" in os.environ:
        async with BrokerWSClient.from_env() as client:
            await trade(client)
    else:
        async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
            await trade(client)


if __name__ == "__main__":
    try:
        trio.run(main)
    except* BrokerError as group:
        # What a nursery lets out comes in a group, even if it is only one error.
        sys.exit("\n".join(str(error) for error in group.exceptions))
