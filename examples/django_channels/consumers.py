"""The WebSocket to a browser: it sends the user's account and receives swaps.

Each connection has subscriptions of its own, so a browser that is slow misses what it misses by
itself, and gets the whole state after that. All that is done for a browser is done within
`__call__`, in task groups: when the browser goes away, or Daphne ends and cancels it, nothing is
left behind, no subscription either.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, TypeAlias

import attrs
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from examples.django_channels.accounts import LIVE
from examples.django_channels.live import LiveAccount, Swap
from trio_broker import (
    Balance,
    BrokerError,
    Connected,
    ConnectionEvent,
    Disconnected,
    Order,
    SnapshotUnavailable,
    UnreadableError,
)
from trio_broker.aio import AioBrokerClient, AioChannel

Json: TypeAlias = dict[str, Any]

# After this close code the page doesn't reconnect, because a person must fix the problem.
FAILED: Final = 4000
FOLLOWED_AT_MOST: Final = 100


class AccountConsumer(AsyncJsonWebsocketConsumer):  # type: ignore[misc]  # it has no types
    """A browser that shows an account."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.live: LiveAccount
        self.tasks: Final = asyncio.TaskGroup()
        self.watching: asyncio.Task[None] | None = None
        # The next thing to send: a swap, an order by its id, or (None) the connection's state.
        self.news: Final[asyncio.Queue[Swap | str | None]] = asyncio.Queue()
        self.followed: Final[set[str]] = set()

    async def __call__(self, *asgi: Any) -> None:
        """Run the connection from its first message to its end."""
        async with self.tasks:
            try:
                await super().__call__(*asgi)
            finally:
                if self.watching is not None:
                    self.watching.cancel()

    # --- From the browser ----------------------------------------------------------------------

    async def connect(self) -> None:
        """Accept the connection if the user exists.

        A real site takes the user from ``self.scope["user"]``, with `channels.auth`, and never from
        what the browser says: here, everybody who reaches the port is whoever they like to be.
        """
        user = self.scope["url_route"]["kwargs"]["user"]
        if user not in LIVE:
            await self.close()
            return
        self.live = LIVE[user]
        await self.accept()
        self.watching = self.tasks.create_task(self._watch())

    async def receive(self, text_data: str | None = None, **kwargs: Any) -> None:
        """Decode a message. Invalid JSON doesn't end the connection."""
        try:
            content = json.loads(text_data or "")
        except (ValueError, RecursionError):
            content = None
        await self.receive_json(content, **kwargs)

    async def receive_json(self, content: Any, **_: Any) -> None:
        """Handle a request of the page."""
        match content:
            case {
                "type": "swap",
                "key": str(key),
                "amount_in": str(amount_in),
                "asset_in": str(asset_in),
                "asset_out": str(asset_out),
            }:
                if self.live.account.is_play_money:
                    self.live.swap(Swap(key, amount_in, asset_in, asset_out))
                else:
                    await self._refuse("this is real money: nothing is swapped from here")
            case {"type": "follow", "order_id": str(order_id)}:
                if len(self.followed) < FOLLOWED_AT_MOST:
                    self.news.put_nowait(order_id)
                else:
                    await self._refuse("no more orders can be followed: load the page again")
            case {"type": "swap"}:
                await self._refuse("a swap has key, amount_in, asset_in and asset_out, all texts")
            case {"type": "follow"}:
                await self._refuse("an order is followed by its order_id, a text")
            case _:
                await self._refuse("this can't be understood")

    async def _refuse(self, detail: str) -> None:
        await self.send_json({"type": "refused", "detail": detail})

    # --- To the browser ------------------------------------------------------------------------

    async def _watch(self) -> None:
        account = self.live.account
        broker = "SANDBOX" if account.is_play_money else "LIVE"
        await self.send_json({"type": "broker", "broker": broker, "host": account.host})
        await self._send_connection("connecting")
        try:
            async with self.live.client() as client:
                await self._show(client)
        except* BrokerError as group:
            await self._send_connection("failed", str(_first(group)))
            await self.close(FAILED)

    async def _show(self, client: AioBrokerClient) -> None:
        with self.live.watched(self.news.put_nowait), client.events() as events:
            # The connection's state is sent after all known swaps. If the page misses a swap among
            # them, its outcome is unknown.
            self.news.put_nowait(None)
            async with asyncio.TaskGroup() as streams:
                streams.create_task(self._show_balances(client))
                while True:
                    news = await self.news.get()
                    if isinstance(news, Swap):
                        await self.send_json({"type": "swap", **attrs.asdict(news)})
                        self._follow(client, news.order_id, streams)
                    elif news is None:
                        streams.create_task(self._show_connection(client, events))
                    else:
                        self._follow(client, news, streams)

    def _follow(
        self, client: AioBrokerClient, order_id: str | None, streams: asyncio.TaskGroup
    ) -> None:
        if order_id is not None and order_id not in self.followed:
            self.followed.add(order_id)
            streams.create_task(self._show_order(client, order_id))

    async def _show_connection(
        self, client: AioBrokerClient, events: AioChannel[ConnectionEvent]
    ) -> None:
        await self._send_connection("connected" if client.is_connected() else "reconnecting")
        async for event in events:
            match event:
                case Connected():
                    await self._send_connection("connected")
                case Disconnected(error=error, retry_in=delay):
                    await self._send_connection("reconnecting", str(error), delay)
                case SnapshotUnavailable(channel=channel, error=error):
                    # The broker doesn't know the order, perhaps not yet; the client asks again.
                    order_id = channel.removeprefix("orders:")
                    if order_id in self.followed:
                        await self._send_order(order_id, detail=str(error))
        await client.wait_closed()  # raises the error if the client failed

    async def _send_connection(
        self, state: str, problem: str = "", next_try_in: float | None = None
    ) -> None:
        await self.send_json(
            {"type": "connection", "state": state, "problem": problem, "next_try_in": next_try_in}
        )

    async def _show_balances(self, client: AioBrokerClient) -> None:
        account: dict[str, Balance] = {}
        async with client.subscribe_balances() as updates:
            async for batch in updates.batches():
                for message in batch:
                    if message.origin == "snapshot":
                        account.clear()
                    account |= {balance.asset: balance for balance in message.data}
                balances = [_balance(each) for each in account.values()]
                await self.send_json({"type": "balances", "balances": balances})

    async def _show_order(self, client: AioBrokerClient, order_id: str) -> None:
        try:
            async with client.track_order(order_id) as progress:
                async for message in progress:
                    await self._send_order(order_id, **_order(message.data))
        except ValueError as error:
            await self._send_order(order_id, detail=str(error))

    async def _send_order(self, order_id: str, *, detail: str = "", **state: Any) -> None:
        message = {"type": "order", "order_id": order_id, "detail": detail, **state}
        await self.send_json(message)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


# Amounts are sent as text, because browsers read JSON numbers as binary floats.


def _balance(balance: Balance) -> Json:
    return {
        "asset": balance.asset,
        "available": _amount(balance, "available"),
        "locked": _amount(balance, "locked"),
    }


def _amount(balance: Balance, name: str) -> str | None:
    """An amount of a balance. The broker may have sent one that can't be read: that isn't zero."""
    try:
        amount = getattr(balance, name)
    except UnreadableError:
        return "unreadable"
    return None if amount is None else f"{amount:f}"


def _order(order: Order) -> Json:
    return {
        "status": order.status,
        "is_final": order.is_final,
        "filled_out": None if order.filled_out is None else f"{order.filled_out:f}",
        "tx_hash": order.tx_hash,
        "updated_at": None if order.updated_at is None else order.updated_at.isoformat(),
    }
