"""Where an example runs: in a sandbox of its own, or at the broker that the environment names.

With BROKER_API_KEY in the environment it is the latter, and what isn't certainly play money is
real: an example that trades wants `--live` then, and says where the money is.
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

# All that were made: what became of their swaps is asked at the end.
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
        trades: Whether the example swaps. It must say so to be let near real money.
        settings: Settings of the sandbox.
    """
    if "BROKER_API_KEY" not in os.environ:
        async with open_sandbox(**{"seed": 7, **settings}) as sandbox:
            yield Broker(sandbox)
        return
    if trades and not is_played():
        if "--live" not in sys.argv:
            sys.exit(
                f"nothing was sent: this swaps REAL MONEY at {host()}; --live says that it may"
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
        return "nowhere"  # the client says what is wrong with it


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
    """Run an example: an error is told in one line, and Ctrl-C is quiet, but for swaps in doubt.

    Args:
        main: The example.
        loop: What runs it.
    """
    try:
        loop(main)
        tell_doubts()
    except* (BrokerError, KeyboardInterrupt) as group:
        # What a nursery lets out comes in a group, even if it is only one error.
        tell_doubts()
        told = [str(error) for error in leaves(group) if isinstance(error, BrokerError)]
        sys.exit("\n".join(told) or 130)


def tell_doubts() -> None:
    """Name the swaps that left, and of which nobody knows what became."""
    for client in clients:
        for swap in client.unresolved_swaps():
            print(
                f"nobody knows what became of swap {swap.client_order_id} ({swap.amount_in} "
                f"{swap.asset_in} for {swap.asset_out}): don't repeat it, ask with resolve_swap",
                file=sys.stderr,
            )


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group, and in the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
