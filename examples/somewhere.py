"""Open the broker for an example: its own sandbox, or the broker that the environment names.

With BROKER_API_KEY in the environment, the example uses that account. If the account doesn't
certainly have play money, an example that trades requires `--live`, and prints the broker's host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import attrs
import trio

from trio_broker import BrokerError, BrokerWSClient
from trio_broker.sandbox import Sandbox, is_play_money, open_sandbox

# All clients, whose unresolved swaps are reported at the end.
clients: list[BrokerWSClient] = []


@attrs.frozen
class Broker:
    """A broker to connect to.

    Attributes:
        sandbox: The example's own sandbox; None if the environment names a broker.
    """

    sandbox: Sandbox | None

    def client(self, number: int = 1, **options: Any) -> BrokerWSClient:
        """A client that isn't connected yet.

        Args:
            number: Whose. In the environment, the second account's keys are BROKER_API_KEY_2 and
                BROKER_SECRET_KEY_2; without them the first account has both clients.
            options: Options of `BrokerWSClient`.
        """
        if self.sandbox is not None:
            client = self.sandbox.client(number - 1, **options)
        else:
            environ = dict(os.environ)
            for name in ("BROKER_API_KEY", "BROKER_SECRET_KEY"):
                environ[name] = os.environ.get(f"{name}_{number}", os.environ.get(name, ""))
            client = BrokerWSClient.from_env(environ, **options)
        clients.append(client)
        return client


@asynccontextmanager
async def open_broker(*, trades: bool = False, **settings: Any) -> AsyncIterator[Broker]:
    """Find a broker, and start it if it is a sandbox.

    Args:
        trades: Whether the example swaps, which requires `--live` for real money.
        settings: Settings of the sandbox.
    """
    if "BROKER_API_KEY" not in os.environ:
        async with open_sandbox(**{"seed": 7, **settings}) as sandbox:
            yield Broker(sandbox)
        return
    if trades and not is_played():
        if "--live" not in sys.argv:
            sys.exit(
                f"nothing was sent: this swaps REAL MONEY at {host()}; to allow it, pass --live"
            )
        print(f"LIVE: this swaps real money at {host()}", file=sys.stderr)
    yield Broker(None)


@asynccontextmanager
async def open_client(*, trades: bool = False, **options: Any) -> AsyncIterator[BrokerWSClient]:
    """Find a broker, and connect to it.

    Args:
        trades: As in `open_broker`.
        options: Options of `BrokerWSClient`.
    """
    async with open_broker(trades=trades) as broker, broker.client(**options) as client:
        yield client


def host() -> str:
    """The host of the broker that the environment names."""
    urls = [os.environ.get(name, "").strip() for name in ("BROKER_WS_URL", "BROKER_BASE_URL")]
    try:
        return urlsplit(urls[0] or urls[1]).hostname or "nowhere"
    except ValueError:
        return "nowhere"  # the client's own error describes the problem


def is_played() -> bool:
    """Whether the environment certainly names a sandbox."""
    urls = [os.environ.get(name, "").strip() for name in ("BROKER_WS_URL", "BROKER_BASE_URL")]
    return is_play_money(os.environ["BROKER_API_KEY"], urls[0] or urls[1])


def arguments() -> list[str]:
    """The arguments of the command, without the flag."""
    return [argument for argument in sys.argv[1:] if argument != "--live"]


def run(
    main: Callable[[], Awaitable[None]],
    loop: Callable[[Callable[[], Awaitable[None]]], object] = trio.run,
) -> None:
    """Run an example. Print an error in one line, and the unresolved swaps after Ctrl-C too.

    Args:
        main: The example.
        loop: What runs it.
    """
    try:
        loop(main)
        tell_doubts()
    except* (BrokerError, KeyboardInterrupt) as group:
        # A nursery raises a group, even for one error.
        tell_doubts()
        told = [str(error) for error in leaves(group) if isinstance(error, BrokerError)]
        sys.exit("\n".join(told) or 130)


def tell_doubts() -> None:
    """Print the swaps that were possibly sent and whose outcome is unknown."""
    for client in clients:
        for swap in client.unresolved_swaps():
            print(
                f"the outcome of swap {swap.client_order_id} ({swap.amount_in} {swap.asset_in} for "
                f"{swap.asset_out}) is unknown: don't repeat it, look it up with resolve_swap",
                file=sys.stderr,
            )


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group, and in the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
