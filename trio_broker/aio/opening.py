"""Opening a client from asyncio, and closing it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypedDict, Unpack

import trio

from trio_broker.aio.client import AioBrokerClient
from trio_broker.aio.guest import Guest, join
from trio_broker.client import BrokerWSClient
from trio_broker.journal import SwapJournal
from trio_broker.settings import Limits, ReconnectPolicy, TransportName
from trio_broker.signing import SigningKey


class ClientOptions(TypedDict, total=False):
    """The keyword options of `BrokerWSClient`, which says what each means, and its default."""

    reconnect: ReconnectPolicy | None
    limits: Limits | None
    connect_timeout: float
    auth_timeout: float
    heartbeat_interval: float
    heartbeat_timeout: float
    write_timeout: float
    request_timeout: float
    reply_grace: float
    resolve_timeout: float
    poll_interval: float
    close_timeout: float
    transport: TransportName
    signing_key: SigningKey
    ssl_context: ssl.SSLContext | None
    allow_insecure: bool
    journal: SwapJournal | None
    clock: Callable[[], float]


def open_broker(
    api_key: str, secret_key: str, ws_url: str, **options: Unpack[ClientOptions]
) -> AbstractAsyncContextManager[AioBrokerClient]:
    """A client of the broker, for as long as an ``async with`` block lasts; for asyncio.

    Args:
        api_key: The API key.
        secret_key: The secret key; it is never sent.
        ws_url: The WebSocket's URL, ``wss://…``; ``ws://`` only to this machine.
        **options: The keyword options of `BrokerWSClient`.

    Returns:
        What `open_client` gives for such a client.

    Raises:
        ConfigurationError: An option can't work; the message names it.
    """
    return open_client(BrokerWSClient(api_key, secret_key, ws_url, **options))


@asynccontextmanager
async def open_client(client: BrokerWSClient) -> AsyncIterator[AioBrokerClient]:
    """The same for a client that was made already, and not used yet.

    ``open_client(BrokerWSClient.from_env())`` takes keys and URL from the environment.

    Leaving the block closes the client, and takes its `close_timeout` at most; left by a
    cancellation, it closes at once. An exception of the block's comes through as it was raised.

    Args:
        client: The client. It mustn't be used in any other way.

    Returns:
        A context manager, whose block is given the client as asyncio uses it.

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
