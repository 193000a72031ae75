"""Hundreds of tracked orders that the broker doesn't know, beside what users do."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.scripted import (
    AUTHENTICATED,
    BALANCES,
    ESTIMATE,
    Body,
    ScriptedConnection,
    acknowledgement,
    order_status as state,
)
from tests.transports.raw_server import accept_websocket, serve_raw
from trio_broker import BrokerWSClient, OrderNotFoundError

ROUND_TRIP = 0.02
KNOWN = "order150"
BACKGROUND = {"subscribe", "unsubscribe", "order_status"}


class RefusingConnection(ScriptedConnection):
    """Knows one of the tracked orders only. Replies take `ROUND_TRIP`, and keep their order.

    Attributes:
        background: When the requests for tracked orders came.
    """

    def __init__(self, stream: trio.abc.Stream, refusal: Body, subscribing: str) -> None:
        super().__init__(stream, AUTHENTICATED, pongs=True)
        self.background: list[float] = []
        self._refusal = refusal
        self._subscribing = subscribing
        self._delayed, self._to_send = trio.open_memory_channel[tuple[float, Body]](math.inf)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_delayed)
            await self.serve()
            nursery.cancel_scope.cancel()

    async def _send_delayed(self) -> None:
        async for due, reply in self._to_send:
            await trio.sleep_until(due)
            await self.send(reply)

    async def _take(self, message: Body) -> None:
        if message["op"] == "auth":
            await super()._take(message)
            return
        if message["op"] in BACKGROUND and "mine" not in str(message):
            self.background.append(trio.current_time())
        self._delayed.send_nowait((trio.current_time() + ROUND_TRIP, self._reply(message)))

    def _reply(self, message: Body) -> Body:
        op = message["op"]
        if op == "order_status":
            name = message["data"]["id"]
            if name in {KNOWN, "mine"}:
                return state(name, "FILLED" if trio.current_time() > 5 else "PENDING")
            return {**self._refusal, "error": "Order not found"}
        if op == "subscribe" and self._subscribing != "accepted":
            named = {"op": op, "ch": message["ch"]} if self._subscribing == "named" else {}
            return {**named, "error": "Invalid channel format"}
        if op in BACKGROUND:
            return acknowledgement(message)
        swap = {"op": "swap", "data": {"orderId": f"mine-{trio.current_time()}"}}
        return {"balances": BALANCES, "estimate": ESTIMATE, "swap": swap}[op]


async def use(client: BrokerWSClient) -> float:
    """Do what users do, and return how long the slowest of it took."""
    slowest = 0.0
    for call in (
        client.get_balances,
        lambda: client.get_order_status("mine"),
        lambda: client.estimate_swap("1", "ETH", "USDT"),
    ):
        began = trio.current_time()
        await call()
        slowest = max(slowest, trio.current_time() - began)
    return slowest


@pytest.mark.parametrize("refusal", [{}, {"op": "order_status"}], ids=["bare", "named"])
@pytest.mark.parametrize("subscribing", ["accepted", "named", "bare"])
async def test_unknown_tracked_orders_leave_half_of_the_messages_and_delay_nobody(
    refusal: dict[str, Any], subscribing: str, autojump_clock: MockClock
) -> None:
    lines: list[RefusingConnection] = []
    ended: dict[str, float] = {}

    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream)
        lines.append(RefusingConnection(stream, refusal, subscribing))
        await lines[-1].run()

    async def track(name: str) -> None:
        with suppress(OrderNotFoundError):
            async with client.track_order(name) as progress:
                async for message in progress:
                    assert (message.data.order_id, name) == (KNOWN, KNOWN)
        ended[name] = trio.current_time()

    with trio.fail_after(3600):
        async with (
            serve_raw(handler) as port,
            BrokerWSClient("key", "secret", f"ws://127.0.0.1:{port}/ws") as client,
            trio.open_nursery() as nursery,
        ):
            for number in range(300):
                nursery.start_soon(track, f"order{number}")
            while len(ended) < 300:
                assert await use(client) <= 3 * ROUND_TRIP
                began = trio.current_time()
                await client.do_swap("1", "ETH", "USDT")
                assert trio.current_time() - began <= 3 * ROUND_TRIP
                await trio.sleep(1)
    assert len(lines) == 1
    # Its last poll is at most a poll interval and a round of all orders later.
    assert ended.pop(KNOWN) < 5 + 15 + 300 / 50
    assert 60 < min(ended.values()) <= max(ended.values()) < 150
    background = lines[0].background
    for first, last in zip(background, background[50:], strict=False):
        assert last - first >= 1.0 - ROUND_TRIP
