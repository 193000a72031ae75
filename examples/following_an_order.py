"""Follow an order until it is final, through an outage.

With an order id, it follows that order and doesn't swap. Otherwise it swaps; real money only with
`--live`. Its own sandbox drops the connection in the middle.

    python examples/following_an_order.py [ORDER_ID]
"""

from __future__ import annotations

import sys

from somewhere import arguments, open_broker, run

from trio_broker import OrderStatus, ReconnectPolicy

POLICY = ReconnectPolicy(max_attempts=None, initial_delay=0.1)


async def main() -> None:
    """The iteration ends with the order, even if the connection is lost meanwhile."""
    wanted = arguments()
    async with (
        open_broker(trades=not wanted, pending_delay=(0.3, 0.3)) as broker,
        broker.client(reconnect=POLICY) as client,
    ):
        order_id = wanted[0] if wanted else (await client.do_swap("0.01", "ETH", "USDT")).order_id
        try:
            tracked = client.track_order(order_id)
        except ValueError as error:
            sys.exit(str(error))
        async with tracked as progress:
            async for message in progress:
                order = message.data
                missed = "" if message.gap is None else " (after an outage)"
                print(f"{order_id}: {order.status}, {order.filled_out}{missed}")
                if broker.sandbox is not None and order.status is OrderStatus.PENDING:
                    broker.sandbox.drop_connections()
    if order.status is not OrderStatus.FILLED:
        sys.exit(f"the order ended as {order.status}")


if __name__ == "__main__":
    run(main)
