"""What can go wrong, and what each error says about your money.

At a broker that the environment names, only what moves no money is tried. In its own sandbox it
swaps as well, and loses replies and the connection on purpose.

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
    """They are refused here, before anything is sent."""
    for amount in ("0", "1,5", "1e5"):
        try:
            await client.estimate_swap(amount, "ETH", "USDT")
        except ValueError as error:
            print(f"wrong argument: {error}")


async def read(client: BrokerWSClient, order_id: str) -> None:
    """A read changes nothing: whatever became of it, it may be asked again."""
    try:
        with trio.fail_after(10):
            order = await client.get_order_status(order_id)
    except ServerError as error:
        print(f"refused: {error.message}")
    except (NotSentError, ConnectionLostError, RequestTimeoutError, trio.TooSlowError) as error:
        print(f"no answer, so ask again: {error}")
    else:
        print(f"answered: {order.status}")


async def swap(client: BrokerWSClient, amount: str) -> str | None:
    """A swap ends in one of four ways, none of them a guess.

    Returns:
        The id to ask for, if nobody knows what became of it.
    """
    try:
        receipt = await client.do_swap(amount, "ETH", "USDT")
    except NotSentError as error:
        print(f"not sent, so it may be repeated: {error}")
    except ServerError as error:
        print(f"refused, nothing was executed: {error.message}")
    except SwapOutcomeUnknownError as error:
        print(f"unknown, so it is NOT repeated but asked for: {error.reason}")
        return error.client_order_id
    else:
        print(f"taken as {receipt.order_id}")
    return None


async def find_out(client: BrokerWSClient, client_order_id: str) -> None:
    """Ask for a swap again, as often and as late as you like."""
    try:
        receipt = await client.resolve_swap(client_order_id)
        print(f"found out: it was taken as {receipt.order_id}")
    except SwapOutcomeUnknownError as error:
        print(f"still unknown: {error.reason}")


async def wrong_secret(sandbox: Sandbox) -> None:
    """Refused keys are told at once, and never tried again."""
    try:
        async with BrokerWSClient(sandbox.api_key, "not the secret", sandbox.url):
            print("connected")
    except AuthenticationError as error:
        print(f"refused keys: {error.message}")


async def misfortunes(sandbox: Sandbox) -> None:
    """What needs a broker that misbehaves."""
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
        # Once the loss is noticed a swap fails at once: it never waits for another connection.
        events = client.events()
        sandbox.drop_connections()
        await events.receive()
        await swap(client, "0.01")
    print(f"the broker has taken {len(sandbox.orders())} swaps")


async def main() -> None:
    """One after the other."""
    async with open_broker() as broker:
        async with broker.client() as client:
            await wrong_arguments(client)
            await read(client, "ord_that_never_was")
        if broker.sandbox is not None:
            await wrong_secret(broker.sandbox)
            await misfortunes(broker.sandbox)


if __name__ == "__main__":
    run(main)
