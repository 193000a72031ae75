"""Connect and close by hand, with the background tasks in a nursery of your own.

For a program whose client lives longer than one block: the nursery says for how long at most.

    python examples/manual_connection.py
"""

from __future__ import annotations

import trio
from somewhere import open_broker, run


async def main() -> None:
    """The nursery stays busy until the client is closed, or until it is cancelled."""
    async with open_broker() as broker, trio.open_nursery() as nursery:
        client = broker.client()  # a BrokerWSClient(api_key, secret_key, ws_url)
        print(client.state.value)
        await client.connect(nursery)  # raises what makes it fail; then no task is left
        print(client.state.value)
        try:
            async with await client.subscribe("balances") as updates:
                message = await updates.receive()
                print(f"{message.channel}: {len(message.data)} assets")
        finally:
            await client.aclose()
        print(client.state.value)
    print("every task has ended")


if __name__ == "__main__":
    run(main)
