"""Open the service's broker: the one that the environment names, or a sandbox.

A web service may start before its network and outlive any connection, so its client retries
without limit, also for the first connection. Each HTTP request waits for the client, so the
client has shorter timeouts than by default.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from trio_broker import BrokerWSClient, ConfigurationError, ReconnectPolicy, SwapJournal
from trio_broker.sandbox import is_play_money, open_sandbox

logger: Final = logging.getLogger("fastapi_service")

FOR_A_SERVICE: Final[Mapping[str, Any]] = {
    "reconnect": ReconnectPolicy(max_attempts=None, max_delay=15.0, retry_first=True),
    "request_timeout": 5.0,
    # If the outcome is unknown by then, the response is a 202 with a link.
    "resolve_timeout": 10.0,
}


@attrs.frozen(kw_only=True)
class Broker:
    """A broker and its permissions.

    Attributes:
        client: A client that isn't connected yet.
        host: The broker's host, for display.
        is_sandbox: Whether the account certainly has play money.
        swap_token: The token for real-money swaps; None if they are disabled.
    """

    client: BrokerWSClient
    host: str
    is_sandbox: bool
    swap_token: str | None = attrs.field(default=None, repr=False)


@asynccontextmanager
async def open_broker(environ: Mapping[str, str] = os.environ) -> AsyncIterator[Broker]:
    """Open the broker that the environment names, or a sandbox, during the block.

    Args:
        environ: The environment.

    Raises:
        ConfigurationError: As `named_broker`.
    """
    if is_named(environ):
        broker = named_broker(environ)
        if not environ.get("BROKER_JOURNAL"):
            logger.warning("no BROKER_JOURNAL: used keys are forgotten when the service ends")
        yield broker
        return
    # Slow enough for people to watch an order.
    pace: dict[str, Any] = {"pending_delay": (0.3, 0.6), "processing_delay": (0.6, 1.2)}
    async with open_sandbox(**pace) as sandbox:
        client = sandbox.client(**FOR_A_SERVICE)
        yield Broker(client=client, host="its own", is_sandbox=True)


def is_named(environ: Mapping[str, str]) -> bool:
    """Whether the environment names a broker."""
    return "BROKER_API_KEY" in environ


def named_broker(environ: Mapping[str, str]) -> Broker:
    """The broker that the environment names.

    Args:
        environ: The environment.

    Raises:
        ConfigurationError: A variable is missing or invalid; the message names it.
    """
    journal = environ.get("BROKER_JOURNAL")
    token = environ.get("SERVICE_SWAP_TOKEN") or None
    # First, because its errors describe invalid variables.
    client = BrokerWSClient.from_env(
        environ, journal=SwapJournal(journal) if journal else None, **FOR_A_SERVICE
    )
    address = environ.get("BROKER_WS_URL") or environ.get("BROKER_BASE_URL", "")
    url = urlsplit(address)
    is_sandbox = is_play_money(environ["BROKER_API_KEY"], address)
    if token is not None and not is_sandbox and not journal:
        raise ConfigurationError(
            "SERVICE_SWAP_TOKEN allows swaps of real money: set BROKER_JOURNAL to a file too, so "
            "that a crash takes the knowledge of none along"
        )
    host = url.netloc.rpartition("@")[2]
    return Broker(client=client, host=host, is_sandbox=is_sandbox, swap_token=token)
