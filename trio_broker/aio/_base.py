"""How `AioBrokerClient` forwards a call to the Trio client: its part that isn't generated."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from trio_broker._sealed import Sealed
from trio_broker._streams.opening import NotATracker, Opening
from trio_broker._streams.subscription import Subscription
from trio_broker._swap_executor import new_client_order_id
from trio_broker.aio.guest import Guest, join
from trio_broker.aio.streams import AioSubscription
from trio_broker.client import INSTEAD_OF_CALLBACKS, BrokerWSClient
from trio_broker.models import Order, SwapReceipt

T = TypeVar("T")
SwapResult = TypeVar("SwapResult", SwapReceipt, Order)


class ClientBase(Sealed):
    """The base of `AioBrokerClient`. The generated methods use the private ones of this class."""

    __slots__ = ("__dict__", "__weakref__", "_client", "_guest")

    _instead = INSTEAD_OF_CALLBACKS

    def __init__(self, client: BrokerWSClient, guest: Guest) -> None:
        self._client = client
        self._guest = guest

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._client!r}>"

    @property
    def logger(self) -> logging.Logger:
        """This client's own logger, below `trio_broker.client`."""
        return self._client.logger

    async def _call(
        self,
        function: Callable[[], Awaitable[T]],
        unclaimed: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """`Guest.run`, in the guest that runs now."""
        self._guest.check()
        # A closed client still answers some calls, but its guest may have ended.
        async with AsyncExitStack() as stack:
            guest = await join()
            stack.push_async_callback(guest.leave)
            return await guest.run(function, unclaimed)

    async def _call_swap(self, swap: partial[Coroutine[Any, Any, SwapResult]]) -> SwapResult:
        """`_call` for a swap: if the task is cancelled, the order's IDs are logged."""
        client_order_id = swap.keywords["client_order_id"]
        if client_order_id is None:
            client_order_id = new_client_order_id()  # `Order` may come without one
            swap = partial(swap, client_order_id=client_order_id)
        return await self._call(swap, partial(self._log_unclaimed, client_order_id))

    async def _log_unclaimed(self, client_order_id: str, result: SwapReceipt | Order) -> None:
        self._client._log.swap_unclaimed(  # noqa: SLF001 - both belong to one client
            client_order_id, str(result.order_id), "its caller was cancelled", str(result.status)
        )

    def _opening(
        self, subscribe: partial[Opening[Subscription[T]]], method: str
    ) -> Opening[AioSubscription[T]]:
        async def open_stream() -> AioSubscription[T]:
            subscription = await self._call(subscribe, Subscription.aclose)
            return AioSubscription(subscription, self._guest)

        return Opening(open_stream, method, subscribe.args)

    def _tracked(
        self, track: partial[AbstractAsyncContextManager[Subscription[Order]]]
    ) -> AbstractAsyncContextManager[AioSubscription[Order]]:
        tracked = track()

        async def leave(_: object = None) -> None:
            await tracked.__aexit__(None, None, None)

        async def enter() -> AioSubscription[Order]:
            # `leave` runs in another Trio task, which is allowed: there is no cancel scope inside.
            subscription = await self._call(tracked.__aenter__, leave)
            return AioSubscription(subscription, self._guest)

        return _Tracked(enter, partial(self._call, leave), *track.args)


class _Tracked(Sealed, NotATracker, AbstractAsyncContextManager[AioSubscription[Order]]):
    """What `AioBrokerClient.track_order` returns."""

    _instead = "read the order's states with 'async for'"

    _enter: Callable[[], Awaitable[AioSubscription[Order]]]
    _leave: Callable[[], Awaitable[object]]
    _order_id: str

    def __init__(
        self,
        enter: Callable[[], Awaitable[AioSubscription[Order]]],
        leave: Callable[[], Awaitable[object]],
        order_id: str,
    ) -> None:
        self._enter = enter
        self._leave = leave
        self._order_id = order_id

    async def __aenter__(self) -> AioSubscription[Order]:
        return await self._enter()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()  # noqa: ASYNC102 - it ends even if this task is cancelled
