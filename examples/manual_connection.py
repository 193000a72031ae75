"""Connect and close by hand, with the background tasks in a nursery of your own.

Use this if the client lives longer than one block. The nursery limits its lifetime.

    python examples/manual_connection.py
"""

from __future__ import annotations

import trio
from somewhere import open_broker, run


async def main() -> None:
    """The background tasks run until the client is closed or the nursery is cancelled."""
    async with open_broker() as broker, trio.open_nursery() as nursery:
        client = broker.client()  # a BrokerWSClient(api_key, secret_key, ws_url)
        print(client.state.value)
        await client.connect(nursery)  # if it raises, no task is left running
        print(client.state.value)
        try:
            async with client.subscribe("balances") as updates:
                message = await updates.receive()
                print(f"{message.channel}: {len(message.data)} assets")
        finally:
            await client.aclose()
        print(client.state.value)
    print("every task has ended")


if __name__ == "__main__":
    run(main)
