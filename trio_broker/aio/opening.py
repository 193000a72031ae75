"""Opening and closing a client in asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Unpack

import trio

from trio_broker._secret import Secret
from trio_broker.aio.client import AioBrokerClient, ClientOptions
from trio_broker.aio.guest import Guest, join
from trio_broker.client import BrokerWSClient


def open_broker(
    api_key: str, secret_key: str, ws_url: str, **options: Unpack[ClientOptions]
) -> AbstractAsyncContextManager[AioBrokerClient]:
    """Open a client of the broker for the length of an ``async with`` block, in asyncio.

    Args:
        api_key: The API key.
        secret_key: The secret key; it is never sent.
        ws_url: The WebSocket's URL, ``wss://…``; ``ws://`` only to this machine.
        **options: The keyword options of `BrokerWSClient`.

    Returns:
        A context manager, as from `open_client`.

    Raises:
        ConfigurationError: An option is invalid; the message names it.
    """
    keys_and_url = [Secret(api_key), Secret(secret_key), Secret(ws_url)]
    api_key = secret_key = ws_url = ""  # for tracebacks with locals
    return open_client(BrokerWSClient(*[one.reveal() for one in keys_and_url], **options))


@asynccontextmanager
async def open_client(client: BrokerWSClient) -> AsyncIterator[AioBrokerClient]:
    """Open a `BrokerWSClient` that wasn't used yet, in asyncio.

    For example, ``open_client(BrokerWSClient.from_env())`` takes the keys and the URL from the
    environment.

    Leaving the block closes the client, which takes at most its `close_timeout`. If the block is
    cancelled, it closes at once. An exception of the block is raised unchanged.

    Args:
        client: The client. Don't use it in any other way.

    Returns:
        A context manager that returns the client for asyncio.

    Raises:
        RuntimeError: The client was used before. Or Trio can't run here: there is no asyncio loop,
            the program is a Trio program, or another loop of this thread has clients open.
        OSError: The process has too many files open, when the block is entered.
        BrokerError: As `BrokerWSClient.connect`, when the block is entered.
    """
    async with AsyncExitStack() as stack:
        guest = await join()
        stack.push_async_callback(guest.leave)
        await guest.run(partial(guest.connect, client), unclaimed=lambda _: _close_at_once(client))
        stack.push_async_exit(partial(_close, client, guest))
        yield AioBrokerClient(client, guest)


async def _close(client: BrokerWSClient, guest: Guest, *raised: object) -> None:
    _, error, _ = raised
    if error is None or isinstance(error, Exception):
        await guest.run(client.aclose)
    else:
        await guest.run(partial(_close_at_once, client))


async def _close_at_once(client: BrokerWSClient) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.aclose()
