"""`AioBrokerClient`: the documented methods, as asyncio calls them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Literal, TypeVar, overload

from trio_broker.aio.guest import Guest, join
from trio_broker.aio.streams import AioChannel, AioSubscription
from trio_broker.client import BrokerWSClient
from trio_broker.models import (
    Amount,
    Balance,
    ClientStatistics,
    ConnectionEvent,
    ConnectionState,
    Order,
    SwapEstimate,
    SwapFinding,
    SwapReceipt,
    UnresolvedSwap,
)
from trio_broker.subscription import Overflow, Subscription
from trio_broker.swaps import new_client_order_id

T = TypeVar("T")


class AioBrokerClient:
    """A connected client of the broker for asyncio, as `open_broker` and `open_client` give it.

    Each method does what its namesake of `BrokerWSClient` does, with the same arguments, results
    and errors. What is a coroutine there is one here. It is used by the tasks of its own event
    loop, by many at a time if need be.

    Cancelling any of them is safe: the task that is cancelled waits until the call has ended, which
    takes no longer than it must, and then raises `asyncio.CancelledError`. A swap that has left
    isn't taken back by it; see `do_swap`.
    """

    def __init__(self, client: BrokerWSClient, guest: Guest) -> None:
        self._client = client
        self._guest = guest

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._client!r}>"

    async def _call(
        self,
        function: Callable[[], Awaitable[T]],
        unclaimed: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        self._guest.check()
        # After the block, this isn't its guest any more: a closed client has its answers even so.
        async with AsyncExitStack() as stack:
            guest = await join()
            stack.push_async_callback(guest.leave)
            return await guest.run(function, unclaimed)

    # --- The connection --------------------------------------------------------------------

    @property
    def logger(self) -> logging.Logger:
        """This client's own logger, below `trio_broker`."""
        return self._client.logger

    @property
    def state(self) -> ConnectionState:
        """Where the client stands."""
        return self._client.state

    def is_connected(self) -> bool:
        """True while connected and authenticated."""
        return self._client.is_connected()

    @property
    def max_reconnect_attempts(self) -> int | None:
        """How many tries in a row may fail; None for ever. It may be set while running.

        Raises:
            ConfigurationError: Set to what can't be.
        """
        return self._client.max_reconnect_attempts

    @max_reconnect_attempts.setter
    def max_reconnect_attempts(self, value: int | None) -> None:
        self._client.max_reconnect_attempts = value

    @property
    def reconnect_delay(self) -> float:
        """Seconds before the first try to connect again. It may be set while running.

        Raises:
            ConfigurationError: Set to what can't be.
        """
        return self._client.reconnect_delay

    @reconnect_delay.setter
    def reconnect_delay(self, value: float) -> None:
        self._client.reconnect_delay = value

    @property
    def latency(self) -> float | None:
        """The last heartbeat's round trip in seconds, None before the first."""
        return self._client.latency

    async def wait_connected(self) -> None:
        """Wait until connected, over any outage. Errors are `BrokerWSClient.wait_connected`'s."""
        await self._call(self._client.wait_connected)

    async def wait_closed(self) -> None:
        """Wait until the client is closed. Errors are `BrokerWSClient.wait_closed`'s."""
        await self._call(self._client.wait_closed)

    async def aclose(self) -> None:
        """End the WebSocket politely, and every stream. Closing twice is fine.

        Takes at most `close_timeout`; cancelled, it closes at once. The end of the block does it.
        """
        await self._call(self._client.aclose)

    async def close(self) -> None:
        """`aclose` by its documented name."""
        await self.aclose()

    def events(self) -> AioChannel[ConnectionEvent]:
        """What happens to the connection from now on.

        Returns:
            A channel that ends with the client. It keeps the last 1,024 events for a slow reader.
        """
        return AioChannel(self._client.events(), self._guest)

    def messages(self) -> AioChannel[str | bytes]:
        """Every message from the broker from now on, as it came, for debugging.

        Returns:
            A channel that ends with the client. It keeps the last 1,024 messages for a slow reader.
        """
        return AioChannel(self._client.messages(), self._guest)

    def statistics(self) -> ClientStatistics:
        """Counters of what this client has done and does."""
        return self._client.statistics()

    # --- Channels --------------------------------------------------------------------------

    @overload
    async def subscribe(
        self,
        channel: Literal["balances"],
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> AioSubscription[tuple[Balance, ...]]: ...

    @overload
    async def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> AioSubscription[Any]: ...

    async def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> AioSubscription[Any]:
        """Subscribe to a channel. Arguments and errors are `BrokerWSClient.subscribe`'s.

        Returns:
            A channel of messages, once the broker has acknowledged.
        """
        return await self._subscribed(
            partial(
                self._client.subscribe,
                channel,
                buffer_size=buffer_size,
                overflow=overflow,
                snapshot=snapshot,
            )
        )

    async def subscribe_balances(
        self,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> AioSubscription[tuple[Balance, ...]]:
        """Subscribe to the account's balances.

        Arguments and errors are `BrokerWSClient.subscribe_balances`'s.
        """
        return await self._subscribed(
            partial(
                self._client.subscribe_balances,
                buffer_size=buffer_size,
                overflow=overflow,
                snapshot=snapshot,
            )
        )

    async def subscribe_order(
        self,
        order_id: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> AioSubscription[Order]:
        """Subscribe to an order. Arguments and errors are `BrokerWSClient.subscribe_order`'s."""
        return await self._subscribed(
            partial(
                self._client.subscribe_order,
                order_id,
                buffer_size=buffer_size,
                overflow=overflow,
                snapshot=snapshot,
            )
        )

    async def _subscribed(
        self, subscribe: Callable[[], Awaitable[Subscription[T]]]
    ) -> AioSubscription[T]:
        subscription = await self._call(subscribe, unclaimed=_aclose)
        return AioSubscription(subscription, self._guest)

    def track_order(
        self, order_id: str, *, stop_at_partial: bool = False, buffer_size: int = 64
    ) -> AbstractAsyncContextManager[AioSubscription[Order]]:
        """Follow an order to its final status, whatever happens to the connection meanwhile.

        Arguments and errors are `BrokerWSClient.track_order`'s.

        Returns:
            A context manager that gives a channel of the order's states, which ends by itself.
        """
        return self._tracking(
            self._client.track_order(
                order_id, stop_at_partial=stop_at_partial, buffer_size=buffer_size
            )
        )

    @asynccontextmanager
    async def _tracking(
        self, tracked: AbstractAsyncContextManager[Subscription[Order]]
    ) -> AsyncIterator[AioSubscription[Order]]:
        # Entered and left by different tasks of Trio's, which it allows: it holds no scope.
        async def leave(_: object = None) -> None:
            await tracked.__aexit__(None, None, None)

        progress = await self._call(tracked.__aenter__, unclaimed=leave)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._call, leave)
            yield AioSubscription(progress, self._guest)

    async def unsubscribe(self, channel: str) -> None:
        """End all subscriptions to a channel, here and at the broker.

        Arguments and errors are `BrokerWSClient.unsubscribe`'s.
        """
        await self._call(partial(self._client.unsubscribe, channel))

    # --- Operations ------------------------------------------------------------------------

    async def get_balances(self) -> tuple[Balance, ...]:
        """Ask for the account's balances. Errors are `BrokerWSClient.get_balances`'s."""
        return await self._call(self._client.get_balances)

    async def estimate_swap(
        self,
        amount_in: Amount,
        asset_in: str,
        asset_out: str,
        *,
        filter_sources: Iterable[str] | None = None,
        network: str | None = None,
        account: str | None = None,
    ) -> SwapEstimate:
        """Ask what a swap would bring now.

        Arguments and errors are `BrokerWSClient.estimate_swap`'s.
        """
        return await self._call(
            partial(
                self._client.estimate_swap,
                amount_in,
                asset_in,
                asset_out,
                filter_sources=filter_sources,
                network=network,
                account=account,
            )
        )

    async def do_swap(
        self,
        amount_in: Amount,
        asset_in: str,
        asset_out: str,
        *,
        min_out: Amount | None = None,
        slippage_bps: int | None = None,
        filter_sources: Iterable[str] | None = None,
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> SwapReceipt:
        """Swap. It is sent at most once. Arguments and errors are `BrokerWSClient.do_swap`'s.

        Cancelling doesn't take back what has left: pass a client order id of your own if you may
        be cancelled. The swap is in `unresolved_swaps` then until its outcome is known, which an
        event tells. If the outcome came at the very moment of the cancellation, `resolve_swap`
        gives it at once, and a log record of a receipt that nobody took has both of its ids.
        """
        return await self._call(
            partial(
                self._client.do_swap,
                amount_in,
                asset_in,
                asset_out,
                min_out=min_out,
                slippage_bps=slippage_bps,
                filter_sources=filter_sources,
                account=account,
                client_order_id=client_order_id,
            ),
            unclaimed=partial(self._tell_unclaimed, client_order_id),
        )

    async def swap_and_wait(
        self,
        amount_in: Amount,
        asset_in: str,
        asset_out: str,
        *,
        min_out: Amount | None = None,
        slippage_bps: int | None = None,
        filter_sources: Iterable[str] | None = None,
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> Order:
        """Swap, and follow the order to its end.

        Arguments and errors are `BrokerWSClient.swap_and_wait`'s. Cancelling takes nothing back, as
        with `do_swap`.
        """
        if client_order_id is None:
            client_order_id = new_client_order_id()  # An order needn't name it.
        return await self._call(
            partial(
                self._client.swap_and_wait,
                amount_in,
                asset_in,
                asset_out,
                min_out=min_out,
                slippage_bps=slippage_bps,
                filter_sources=filter_sources,
                account=account,
                client_order_id=client_order_id,
            ),
            unclaimed=partial(self._tell_unclaimed, client_order_id),
        )

    async def _tell_unclaimed(
        self, client_order_id: str | None, taken: SwapReceipt | Order
    ) -> None:
        self.logger.warning(
            "swap %s was taken as order %s (%s), and its caller was cancelled",
            client_order_id or taken.client_order_id,
            taken.order_id,
            taken.status,
        )

    def unresolved_swaps(self) -> tuple[UnresolvedSwap, ...]:
        """The swaps that may have left, and whose outcome isn't known now; oldest first.

        It may be called after the client's end as well.
        """
        return self._client.unresolved_swaps()

    async def resolve_swap(self, client_order_id: str) -> SwapReceipt:
        """Ask for a swap's outcome. Arguments and errors are `BrokerWSClient.resolve_swap`'s."""
        return await self._call(partial(self._client.resolve_swap, client_order_id))

    async def reconcile(self) -> tuple[SwapFinding, ...]:
        """Ask for every unresolved swap. Errors are `BrokerWSClient.reconcile`'s."""
        return await self._call(self._client.reconcile)

    async def settle_swap(self, client_order_id: str, note: str) -> None:
        """Close an unresolved swap by hand.

        Arguments and errors are `BrokerWSClient.settle_swap`'s.
        """
        await self._call(partial(self._client.settle_swap, client_order_id, note))

    async def get_order_status(self, order_id: str) -> Order:
        """Ask for an order's state.

        Arguments and errors are `BrokerWSClient.get_order_status`'s.
        """
        return await self._call(partial(self._client.get_order_status, order_id))


async def _aclose(subscription: Subscription[T]) -> None:
    await subscription.aclose()
