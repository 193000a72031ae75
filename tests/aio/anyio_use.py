"""The client as anyio's users have it: tests for anyio's own pytest plugin.

This suite runs async tests by pytest-trio, so `test_anyio` gives these a process of their own.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from trio_broker import Balance, BrokerWSClient, ServerError, Subscription
from trio_broker.sandbox import Outcome, Sandbox, open_sandbox

pytestmark = pytest.mark.anyio

Updates = Subscription[tuple[Balance, ...]]

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with open_sandbox(seed=7, outcomes={Outcome.FILLED: 1}) as sandbox:
        yield sandbox


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[BrokerWSClient]:
    """A client that lives from a fixture's task to the test's end."""
    async with sandbox.client() as client:
        yield client


async def test_calls_go_together_in_a_task_group(client: BrokerWSClient) -> None:
    outs: list[Decimal] = []

    async def ask(amount: int) -> None:
        outs.append((await client.estimate_swap(amount, "BTC", "USDT")).expected_out)

    async with anyio.create_task_group() as group:
        for amount in (1, 2, 3):
            group.start_soon(ask, amount)
    assert len(set(outs)) == 3


async def test_client_lives_in_a_nursery_beside_a_task_group(sandbox: Sandbox) -> None:
    async with trio.open_nursery() as nursery, anyio.create_task_group() as group:
        client = sandbox.client()
        await client.connect(nursery)
        group.start_soon(client.wait_closed)
        await client.aclose()


async def test_orders_are_followed_in_a_task_group(client: BrokerWSClient) -> None:
    async def follow(order_id: str) -> None:
        async with client.track_order(order_id) as progress:
            ends[order_id] = [message.data.status async for message in progress][-1]

    ends: dict[str, str] = {}
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(follow, (await client.do_swap("1", "BTC", "USDT")).order_id)
    assert list(ends.values()) == ["FILLED"] * 5


# --- Cancellation ---------------------------------------------------------------------------


async def test_deadline_cancels_a_call_and_the_next_gets_its_own_answer(
    client: BrokerWSClient, sandbox: Sandbox
) -> None:
    with sandbox.faults.delay(0.3, op="estimate", times=1):
        with anyio.move_on_after(0.05) as scope:
            await client.estimate_swap("1", "BTC", "USDT")
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.05):
                await client.estimate_swap("1", "BTC", "USDT")
    one = (await client.estimate_swap("1", "BTC", "USDT")).expected_out
    assert 0 < one < (await client.estimate_swap("2", "BTC", "USDT")).expected_out


async def test_cancelled_group_leaves_no_subscription(client: BrokerWSClient) -> None:
    async def consume() -> None:
        async with await client.subscribe_balances() as updates:
            async for _ in updates:
                seen.set()

    seen = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await seen.wait()
        group.cancel_scope.cancel()
    assert client.statistics().subscriptions == 0


async def test_client_closes_within_a_cancelled_scope(sandbox: Sandbox) -> None:
    with anyio.move_on_after(math.inf) as scope:
        async with sandbox.client() as client:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not client.is_connected()


async def test_shielded_swap_gets_its_receipt(client: BrokerWSClient) -> None:
    with anyio.CancelScope() as outer:
        outer.cancel()
        with anyio.CancelScope(shield=True):
            receipt = await client.do_swap("1", "BTC", "USDT")
        await checkpoint()
    assert receipt.order_id


# --- Errors ---------------------------------------------------------------------------------


async def test_errors_come_out_of_a_task_group_as_a_group(client: BrokerWSClient) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ServerError, match="not found")):
        async with anyio.create_task_group() as group:
            group.start_soon(client.wait_closed)
            group.start_soon(client.get_order_status, "ord_that_never_was")


async def test_error_of_the_body_isnt_wrapped_by_the_client(sandbox: Sandbox) -> None:
    with pytest.raises(ServerError, match="not found"):
        async with sandbox.client() as client:
            await client.get_order_status("ord_that_never_was")


# --- Streams --------------------------------------------------------------------------------


async def test_clones_share_a_stream_among_tasks(client: BrokerWSClient, sandbox: Sandbox) -> None:
    async def work(share: Updates) -> None:
        async with share:
            got.extend([message.raw async for message in share])

    got: list[str] = []
    texts = [
        f'{{"ch":"balances","data":[{{"asset":"BTC","total":"{number}"}}]}}' for number in range(9)
    ]
    async with (
        await client.subscribe_balances(snapshot=False) as updates,
        anyio.create_task_group() as group,
    ):
        for _ in range(3):
            group.start_soon(work, updates.clone())
        for text in texts:
            sandbox.push(text)
        await client.get_balances()  # what was pushed before has come before
        await client.unsubscribe("balances")
    assert sorted(got) == texts


async def test_stream_ends_as_trios_do(client: BrokerWSClient) -> None:
    updates = await client.subscribe_balances(snapshot=False)
    await client.unsubscribe("balances")
    assert [message async for message in updates] == []
    with pytest.raises(trio.EndOfChannel):
        await updates.receive()
    with pytest.raises(trio.WouldBlock):
        (await client.subscribe_balances(snapshot=False)).receive_nowait()
    await updates.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await updates.receive()
    # anyio's are others, and none of them catches these.
    for ours, theirs in (
        (trio.EndOfChannel, anyio.EndOfStream),
        (trio.WouldBlock, anyio.WouldBlock),
        (trio.ClosedResourceError, anyio.ClosedResourceError),
        (trio.BrokenResourceError, anyio.BrokenResourceError),
    ):
        assert not issubclass(ours, theirs)


async def test_stream_goes_on_in_one_of_anyios(client: BrokerWSClient) -> None:
    async def forward(updates: Updates) -> None:
        async with updates, send:
            async for message in updates:
                await send.send(message)

    send, receive = anyio.create_memory_object_stream[Any]()
    async with anyio.create_task_group() as group, receive:
        group.start_soon(forward, await client.subscribe_balances())
        assert (await receive.receive()).origin == "snapshot"
        await client.unsubscribe("balances")
        with pytest.raises(anyio.EndOfStream):
            await receive.receive()
