"""The four operations: balances, an estimate, a swap, and an order's status.

It swaps twice; real money only with `--live`.

    python examples/trading_operations.py
"""

from __future__ import annotations

from decimal import Decimal

from somewhere import open_client, run

from trio_broker import new_client_order_id

AMOUNT = Decimal("0.01")  # a str or an int would do; a float is refused


async def main() -> None:
    """Request, swap and request again."""
    async with open_client(trades=True) as client:
        for balance in await client.get_balances():
            if balance.asset in {"ETH", "USDT"}:
                # This raises if the broker sent an amount that can't be read.
                print(f"balance: {balance.available} {balance.asset}")

        estimate = await client.estimate_swap(AMOUNT, "ETH", "USDT", filter_sources=["binance"])
        print(f"estimate: {AMOUNT} ETH for {estimate.expected_out} USDT")
        for step in estimate.route:
            print(f"  {step.from_asset} -> {step.to_asset} at {step.exchange}")

        # Our own id, known before the swap is sent, so that it can always be looked up.
        receipt = await client.do_swap(
            AMOUNT, "ETH", "USDT", slippage_bps=100, client_order_id=new_client_order_id()
        )
        print(f"swap: accepted as {receipt.order_id}, {receipt.status}")

        order = await client.get_order_status(receipt.order_id)
        print(f"order: {order.status}")

        # All of it in one call. If an estimate is below `min_out`, nothing is sent.
        least = estimate.expected_out * Decimal("0.99")
        order = await client.swap_and_wait(AMOUNT, "ETH", "USDT", min_out=f"{least:.6f}")
        print(f"swap and wait: {order.status}, {order.filled_out} USDT")


if __name__ == "__main__":
    run(main)
