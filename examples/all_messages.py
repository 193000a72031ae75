"""Print every message from the broker, unchanged, and every event, for debugging.

What the broker says is your account: mind where you write it.

    python examples/all_messages.py
"""

from __future__ import annotations

import trio
from somewhere import open_client, run

from trio_broker import BoundedReceiveChannel, BrokerWSClient, ConnectionEvent


async def show_messages(messages: BoundedReceiveChannel[str | bytes]) -> None:
    """Print every received message; the iteration ends with the client."""
    async for text in messages:
        print(f"message: {text!s:.100}")


async def show_events(events: BoundedReceiveChannel[ConnectionEvent]) -> None:
    """Print the client's events, which include unexpected messages."""
    async for event in events:
        print(f"event: {type(event).__name__}")


async def use(client: BrokerWSClient) -> None:
    """Cause messages: replies, an acknowledgement and a snapshot."""
    await client.get_balances()
    await client.estimate_swap("0.01", "ETH", "USDT")
    async with client.subscribe("balances") as updates:
        await updates.receive()


async def main() -> None:
    """Open both channels first, because they have only what happens afterwards."""
    async with open_client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(show_messages, client.messages())
        nursery.start_soon(show_events, client.events())
        await use(client)
        await client.aclose()  # both channels end after their buffered items, and so do the tasks


if __name__ == "__main__":
    run(main)
