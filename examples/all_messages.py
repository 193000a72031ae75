"""Every message from the broker, as it came, and every event: for debugging.

What the broker says is your account: mind where you write it.

    python examples/all_messages.py
"""

from __future__ import annotations

import trio
from somewhere import open_client, run

from trio_broker import BoundedReceiveChannel, BrokerWSClient, ConnectionEvent


async def show_messages(messages: BoundedReceiveChannel[str | bytes]) -> None:
    """Print what comes over the wire; the iteration ends with the client."""
    async for text in messages:
        print(f"message: {text!s:.100}")


async def show_events(events: BoundedReceiveChannel[ConnectionEvent]) -> None:
    """Print what happens to the connection, odd messages among it."""
    async for event in events:
        print(f"event: {type(event).__name__}")


async def use(client: BrokerWSClient) -> None:
    """Let there be messages: answers, an acknowledgement and a snapshot."""
    await client.get_balances()
    await client.estimate_swap("0.01", "ETH", "USDT")
    async with await client.subscribe("balances") as updates:
        await updates.receive()


async def main() -> None:
    """Both channels have everything from their opening on, so they are opened first."""
    async with open_client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(show_messages, client.messages())
        nursery.start_soon(show_events, client.events())
        await use(client)
        await client.aclose()  # both channels end, after what is in them, and their tasks with them


if __name__ == "__main__":
    run(main)
