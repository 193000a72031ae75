"""Connect, print the account, and close.

python examples/simple_connection.py
"""

from __future__ import annotations

from somewhere import open_client, run


async def main() -> None:
    """The client is connected during the block."""
    async with open_client() as client:  # a BrokerWSClient(api_key, secret_key, ws_url)
        print("connected:", client.is_connected())
        for balance in await client.get_balances():
            # The broker may have sent an amount that can't be read, which would raise an error.
            available = balance.available if balance.is_readable else "unreadable"
            print(f"{available} {balance.asset}")
    print("connected:", client.is_connected())


if __name__ == "__main__":
    run(main)
