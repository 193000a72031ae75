"""A program whose broker is killed and restarted, without code for outages."""

from __future__ import annotations

import socket
from pathlib import Path

import attrs
import pytest
import trio

from tests.cli.harness import PATIENCE, serving
from trio_broker import Balance, BrokerWSClient, Gap, Order, Subscription

pytestmark = pytest.mark.usefixtures("each_transport")


@attrs.define
class Account:
    """Consume balances, and return the totals."""

    held: dict[str, Balance] = attrs.field(factory=dict)
    gaps: list[Gap] = attrs.field(factory=list)
    snapshots_after_a_gap: int = 0

    async def follow(self, updates: Subscription[tuple[Balance, ...]]) -> None:
        async for message in updates:
            if message.gap is not None:
                self.gaps.append(message.gap)
            if message.origin == "snapshot":
                self.held.clear()
                self.snapshots_after_a_gap += bool(self.gaps)
            self.held.update({balance.asset: balance for balance in message.data})


async def last_state(orders: Subscription[Order]) -> Order:
    async for message in orders:
        if message.data.is_final:
            return message.data
    raise AssertionError("the stream ended before its order did")


async def test_streams_match_the_ledger_after_the_broker_is_killed(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    where = ("--port", port, "--state", str(tmp_path / "state"))
    account, ended = Account(), dict[str, Order]()

    async def follow(order_id: str, orders: Subscription[Order]) -> None:
        ended[order_id] = await last_state(orders)

    async with trio.open_nursery() as program:
        with trio.fail_after(PATIENCE):
            async with serving(*where) as (broker, variables):
                client = BrokerWSClient.from_env(variables)
                await client.connect(program)
                program.start_soon(account.follow, await client.subscribe_balances())
                async with trio.open_nursery() as followers:
                    for _ in range(3):
                        receipt = await client.do_swap("1", "ETH", "USDT")
                        orders = await client.subscribe_order(receipt.order_id)
                        followers.start_soon(follow, receipt.order_id, orders)
                    broker.kill()
                    await broker.wait()
                    async with serving(*where):
                        while len(ended) < 3:
                            await trio.testing.wait_all_tasks_blocked(0.01)
                        async with BrokerWSClient.from_env(variables) as witness:
                            ledger = {one.asset: one for one in await witness.get_balances()}
                            for order_id, order in ended.items():
                                current = await witness.get_order_status(order_id)
                                assert (order.status, order.filled_out) == (
                                    current.status,
                                    current.filled_out,
                                )
                        while account.held != ledger:
                            await trio.testing.wait_all_tasks_blocked(0.01)
                        await client.aclose()
    assert [gap.reasons for gap in account.gaps] == [{"reconnected"}]
    assert account.snapshots_after_a_gap >= 1
