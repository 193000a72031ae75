"""A service that other code starts, stops and calls, without callbacks.

`WebSocketService` is the class to reuse. The rest uses it: a consumer and two tasks that request
estimates continue through an outage of the example's own sandbox.

    python examples/service.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import trio
from somewhere import Broker, open_broker, run

from trio_broker import (
    Balance,
    BrokerWSClient,
    ConnectionLostError,
    Order,
    ReconnectPolicy,
    Subscription,
    SwapEstimate,
    SwapReceipt,
)
from trio_broker.sandbox import Sandbox


class WebSocketService:
    """The broker, for tasks that don't manage the connection.

    Any number of tasks may use it concurrently. While it reconnects, reads wait, and a swap
    fails at once with `NotConnectedError`: nothing was sent. After a stop, it can be started
    anew.

    Args:
        make_client: Makes a client that isn't connected, such as `BrokerWSClient.from_env`. Each
            start needs a new client, because a client can be used only once.
    """

    def __init__(self, make_client: Callable[[], BrokerWSClient]) -> None:
        self._make_client = make_client
        self._started: BrokerWSClient | None = None

    # --- Start and stop

    async def start(self, nursery: trio.Nursery) -> None:
        """Connect. The background tasks run in the nursery until `stop`, or its cancellation.

        Args:
            nursery: The nursery for the background tasks.

        Raises:
            RuntimeError: It is started already.
            BrokerError: As `BrokerWSClient.connect`; it isn't started then.
        """
        if self._started is not None:
            raise RuntimeError("the service is started already")
        self._started = client = self._make_client()
        try:
            await client.connect(nursery)
        except BaseException:
            if self._started is client:  # another one may have been started after a stop
                self._started = None
            raise

    async def stop(self) -> None:
        """Close, and end every subscription's iteration. May be called twice."""
        client, self._started = self._started, None
        if client is not None:
            await client.aclose()
        await trio.lowlevel.checkpoint()

    def is_connected(self) -> bool:
        """Whether it is connected and authenticated now."""
        return self._started is not None and self._started.is_connected()

    @property
    def client(self) -> BrokerWSClient:
        """The current client, for everything that the service doesn't have.

        Raises:
            RuntimeError: The service isn't started.
        """
        if self._started is None:
            raise RuntimeError("the service isn't started")
        return self._started

    # --- Channels

    async def add_subscription(self, channel: str) -> Subscription[Any]:
        """Subscribe, and return the stream, which replaces a handler.

        Adding a channel twice returns two streams, each with every message.
        """
        return await self.client.subscribe(channel)

    async def remove_subscription(self, channel: str) -> None:
        """End the channel's streams, here and at the broker; their iterations end."""
        await self.client.unsubscribe(channel)

    # --- Operations

    async def get_balances(self) -> tuple[Balance, ...]:
        """Request the account's balances."""
        return await self.client.get_balances()

    async def estimate_swap(
        self,
        amount_in: str,
        asset_in: str,
        asset_out: str,
        filter_sources: Iterable[str] | None = None,
    ) -> SwapEstimate:
        """Request an estimate of a swap."""
        return await self.client.estimate_swap(
            amount_in, asset_in, asset_out, filter_sources=filter_sources
        )

    async def do_swap(
        self,
        amount_in: str,
        asset_in: str,
        asset_out: str,
        slippage_bps: int | None = None,
        client_order_id: str | None = None,
    ) -> SwapReceipt:
        """Swap, at most once, and only over the current connection."""
        return await self.client.do_swap(
            amount_in,
            asset_in,
            asset_out,
            slippage_bps=slippage_bps,
            client_order_id=client_order_id,
        )

    execute_swap = do_swap  # its name in the documented service

    async def get_order_status(self, order_id: str) -> Order:
        """Request an order's state."""
        return await self.client.get_order_status(order_id)


# --- Using it

# A service never gives up.
POLICY = ReconnectPolicy(max_attempts=None, initial_delay=0.2)


async def consume(updates: Subscription[Any]) -> None:
    """Handle the messages in a task, instead of in a handler."""
    async for message in updates:
        print("balances after an outage:" if message.gap else "balances:", len(message.data))
    print("the subscription has ended")


async def ask(service: WebSocketService, name: str) -> None:
    """Request estimates in a task, which only has to handle a lost reply."""
    for amount in ("1", "2", "3"):
        estimate = None
        while estimate is None:
            with suppress(ConnectionLostError):  # a read changes nothing, so repeat it
                estimate = await service.estimate_swap(amount, "ETH", "USDT")
        print(f"{name}: estimate: {amount} ETH for {estimate.expected_out} USDT")
        await trio.sleep(0.2)


async def be_away(sandbox: Sandbox) -> None:
    """Kill the broker, and restart it."""
    await trio.sleep(0.1)
    print("the broker is killed")
    sandbox.faults.kill()
    await trio.sleep(0.3)
    await sandbox.faults.revive()
    print("the broker is restarted")


async def work(service: WebSocketService, broker: Broker) -> None:
    """Request from two tasks at once, while the broker is killed and restarted."""
    async with trio.open_nursery() as nursery:
        if broker.sandbox is not None:
            nursery.start_soon(be_away, broker.sandbox)
        nursery.start_soon(ask, service, "one")
        nursery.start_soon(ask, service, "another")


async def main() -> None:
    """Start, use and stop the service. The nursery owns its background tasks."""
    async with open_broker() as broker, trio.open_nursery() as nursery:
        service = WebSocketService(lambda: broker.client(reconnect=POLICY))
        await service.start(nursery)
        nursery.start_soon(consume, await service.add_subscription("balances"))
        await work(service, broker)
        await service.remove_subscription("balances")
        await service.stop()


if __name__ == "__main__":
    run(main)
