"""Use two accounts at once, each with its own client, and print their total.

In the environment, the second account's keys are BROKER_API_KEY_2 and BROKER_SECRET_KEY_2.

    python examples/several_clients.py
"""

from __future__ import annotations

from decimal import Decimal

import trio
from somewhere import Broker, open_broker, run


async def ask(broker: Broker, number: int, held: dict[int, dict[str, Decimal]]) -> None:
    """Open a client for an account, and request its balances."""
    async with broker.client(number) as client:
        balances = await client.get_balances()
    # The total of another asset may be unreadable, which would raise an error.
    held[number] = {one.asset: one.total for one in balances if one.asset == "USDT"}
    print(f"account {number} holds {held[number].get('USDT', 0)} USDT")


async def main() -> None:
    """All clients connect at the same time; the nursery ends when all have their replies."""
    held: dict[int, dict[str, Decimal]] = {}
    async with open_broker() as broker, trio.open_nursery() as nursery:
        for number in (1, 2):
            nursery.start_soon(ask, broker, number, held)
    total = sum(account.get("USDT", Decimal(0)) for account in held.values())
    print(f"together {total} USDT")


if __name__ == "__main__":
    run(main)
