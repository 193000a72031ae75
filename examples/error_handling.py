"""Handle the possible errors, and learn what each says about your money.

At a broker that the environment names, this example never swaps. In its own sandbox it
also swaps, and loses replies and the connection on purpose.

    python examples/error_handling.py
"""

from __future__ import annotations

import trio
from somewhere import open_broker, run

from trio_broker import (
    AuthenticationError,
    BrokerWSClient,
    ConnectionLostError,
    NotSentError,
    RequestTimeoutError,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.sandbox import Sandbox


async def wrong_arguments(client: BrokerWSClient) -> None:
    """The client refuses them before it sends anything."""
    for amount in ("0", "1,5", "1e5"):
        try:
            await client.estimate_swap(amount, "ETH", "USDT")
        except ValueError as error:
            print(f"wrong argument: {error}")


async def read(client: BrokerWSClient, order_id: str) -> None:
    """A read changes nothing, so it can be repeated after any error."""
    try:
        with trio.fail_after(10):
            order = await client.get_order_status(order_id)
    except ServerError as error:
        print(f"refused: {error.message}")
    except (NotSentError, ConnectionLostError, RequestTimeoutError, trio.TooSlowError) as error:
        print(f"no reply, so try again: {error}")
    else:
        print(f"reply: {order.status}")


async def swap(client: BrokerWSClient, amount: str) -> str | None:
    """A swap has one of four outcomes.

    Returns:
        The client order id, if the outcome is unknown.
    """
    try:
        receipt = await client.do_swap(amount, "ETH", "USDT")
    except NotSentError as error:
        print(f"not sent, so it may be repeated: {error}")
    except ServerError as error:
        print(f"refused, nothing was executed: {error.message}")
    except SwapOutcomeUnknownError as error:
        print(f"unknown, so it is NOT repeated but looked up: {error.reason}")
        return error.client_order_id
    else:
        print(f"accepted as {receipt.order_id}")
    return None


async def find_out(client: BrokerWSClient, client_order_id: str) -> None:
    """Look up a swap. This can be repeated at any time."""
    try:
        receipt = await client.resolve_swap(client_order_id)
        print(f"found: it was accepted as {receipt.order_id}")
    except SwapOutcomeUnknownError as error:
        print(f"still unknown: {error.reason}")


async def wrong_secret(sandbox: Sandbox) -> None:
    """Refused keys raise at once, and aren't retried."""
    try:
        async with BrokerWSClient(sandbox.api_key, "not the secret", sandbox.url):
            print("connected")
    except AuthenticationError as error:
        print(f"refused keys: {error.message}")


async def misfortunes(sandbox: Sandbox) -> None:
    """Errors that need a broker with faults."""
    async with sandbox.client(request_timeout=0.3, resolve_timeout=0.3) as client:
        await swap(client, "0.01")
        await swap(client, "1000000")
        with (
            sandbox.faults.swallow(op="swap"),
            sandbox.faults.replace({"op": "order_status", "error": "busy"}, op="order_status"),
        ):
            unknown = await swap(client, "0.01")
        if unknown is not None:
            await find_out(client, unknown)
        with sandbox.faults.ignore(op="order_status"):
            await read(client, "ord_00000001")
        # Without a connection, a swap fails at once: it never waits for the next one.
        events = client.events()
        sandbox.drop_connections()
        await events.receive()
        await swap(client, "0.01")
    print(f"the broker has accepted {len(sandbox.orders())} swaps")


async def main() -> None:
    """Run them one after another."""
    async with open_broker() as broker:
        async with broker.client() as client:
            await wrong_arguments(client)
            await read(client, "ord_that_never_was")
        if broker.sandbox is not None:
            await wrong_secret(broker.sandbox)
            await misfortunes(broker.sandbox)


if __name__ == "__main__":
    run(main)
