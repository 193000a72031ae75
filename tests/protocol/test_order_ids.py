"""New client order ids, and orders with both of their ids wherever the client knows them."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st

from tests.scripted import (
    API_KEY,
    SECRET_KEY,
    SWAPPED,
    Body,
    Scripted,
    ScriptedConnection,
    acknowledgement,
    open_scripted,
    scripted_client,
    start,
)
from trio_broker import BrokerWSClient, Order, OrderStatus, SwapJournal, new_client_order_id
from trio_broker._protocol.order_ids import (
    OrderIds,
    check_client_order_id,
)

BARE: Body = {"op": "order_status", "data": {"status": "PENDING"}}
FILLED: Body = {"status": "FILLED"}


# --- New ids --------------------------------------------------------------------------------


def test_new_ids_are_unique_and_sort_by_time() -> None:
    before = time.time_ns() // 1_000_000
    made = [new_client_order_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 1000
    assert {len(one) for one in made} == {37}
    moments = [one.split("-")[1] for one in made]
    assert moments == sorted(moments)
    assert all(before <= int(moment) <= after for moment in moments)
    assert all(check_client_order_id(one) == one for one in made)


def test_client_order_id_has_up_to_64_characters() -> None:
    assert check_client_order_id("x" * 64) == "x" * 64
    with pytest.raises(ValueError, match="65 characters, and may have 64"):
        check_client_order_id("x" * 65)
    with pytest.raises(ValueError, match="client_order_id must not be empty"):
        check_client_order_id("")


# --- Both ids -------------------------------------------------------------------------------


def ids(order: Order) -> tuple[str | None, str | None]:
    return order.order_id, order.client_order_id


async def swap(client: BrokerWSClient, line: ScriptedConnection, name: str | None = "c1") -> str:
    """Swap, as order o1; the client order id."""
    async with trio.open_nursery() as nursery:
        call = start(nursery, partial(client.do_swap, "1", "ETH", "USDT", client_order_id=name))
        request = await line.receive("swap")
        await line.send(SWAPPED)
        await call.result()
    name = request["data"]["clientOrderId"]
    assert isinstance(name, str)
    return name


async def serve(line: ScriptedConnection, status: Body = BARE, push: Body | None = None) -> None:
    """Acknowledge, answer and push, until cancelled."""
    while True:
        message = await line.receive()
        if message["op"] in {"subscribe", "unsubscribe"}:
            await line.send(acknowledgement(message))
            if push is not None and message["op"] == "subscribe":
                await line.send({"ch": message["ch"], "data": push})
        else:
            await line.send(status)


@pytest.mark.parametrize("given_id", ["o1", "c1"])
async def test_order_status_has_both_ids(given_id: str) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        await swap(client, line)
        nursery.start_soon(serve, line)
        assert ids(await client.get_order_status(given_id)) == ("o1", "c1")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("given_id", "expected"),
    [("o9", ("o9", None)), ("tb-0000000000001-aa", (None, "tb-0000000000001-aa"))],
)
async def test_foreign_order_has_the_requested_id(
    given_id: str, expected: tuple[str | None, str | None]
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        nursery.start_soon(serve, line)
        assert ids(await client.get_order_status(given_id)) == expected
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "push", [FILLED, {**FILLED, "orderId": "o1"}, {**FILLED, "orderId": "o1", "clientOrderId": ""}]
)
@pytest.mark.parametrize("name", ["c1", None])
async def test_pushes_and_snapshots_have_both_ids(push: Body, name: str | None) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        own = await swap(client, line, name)
        nursery.start_soon(serve, line, BARE, push)
        async with client.subscribe_order("o1") as updates:
            seen = [await updates.receive() for _ in range(1)]
        assert [ids(message.data) for message in seen] == [("o1", own)]
        async with client.subscribe_order("o1", snapshot=True) as updates:
            message = await updates.receive()
        assert ids(message.data) == ("o1", own)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("given_id", ["o1", "c1"])
@pytest.mark.parametrize("push", [None, FILLED])
async def test_tracked_order_has_both_ids(given_id: str, push: Body | None) -> None:
    final = {"op": "order_status", "data": FILLED}
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        await swap(client, line)
        nursery.start_soon(serve, line, final, push)
        async with client.track_order(given_id) as progress:
            seen = [message async for message in progress]
        assert seen[-1].data.status is OrderStatus.FILLED
        assert {ids(message.data) for message in seen} == {("o1", "c1")}
        nursery.cancel_scope.cancel()


async def test_foreign_order_found_by_its_client_order_id_has_both_ids() -> None:
    reply = {"op": "order_status", "data": {**FILLED, "orderId": "o7"}}
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        nursery.start_soon(serve, line, reply)
        async with client.track_order("tb-0000000000001-aa") as progress:
            message = await progress.receive()
        assert ids(message.data) == ("o7", "tb-0000000000001-aa")
        nursery.cancel_scope.cancel()


async def test_order_of_swap_and_wait_has_both_ids() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.swap_and_wait, "1", "ETH", "USDT")
        name = (await line.receive("swap"))["data"]["clientOrderId"]
        await line.send(SWAPPED)
        nursery.start_soon(serve, line, {"op": "order_status", "data": FILLED})
        assert ids(await call.result()) == ("o1", name)
        nursery.cancel_scope.cancel()


async def test_ids_from_the_broker_are_never_replaced() -> None:
    state = {**FILLED, "orderId": "o1", "clientOrderId": "other"}
    reply: Body = {"op": "order_status", "data": state}
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        await swap(client, line)
        nursery.start_soon(serve, line, reply, state)
        assert ids(await client.get_order_status("o1")) == ("o1", "other")
        async with client.subscribe_order("o1", snapshot=False) as updates:
            assert ids((await updates.receive()).data) == ("o1", "other")
        nursery.cancel_scope.cancel()


def journalled(broker: Scripted, path: Path) -> BrokerWSClient:
    return BrokerWSClient(API_KEY, SECRET_KEY, broker.url, journal=SwapJournal(path))


@pytest.mark.parametrize("given_id", ["o1", "c1"])
async def test_swaps_of_an_earlier_process_are_known_from_the_journal(
    given_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "swaps.journal"
    async with open_scripted() as broker:
        async with journalled(broker, path) as client:
            await swap(client, await broker.line())
        async with journalled(broker, path) as client, trio.open_nursery() as nursery:
            nursery.start_soon(serve, await broker.line(), BARE, FILLED)
            assert ids(await client.get_order_status(given_id)) == ("o1", "c1")
            async with client.track_order(given_id) as progress:
                seen = [message async for message in progress]
            assert {ids(message.data) for message in seen} == {("o1", "c1")}
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("order", "given_id", "expected"),
    [
        ((None, None), "o1", ("o1", "c1")),
        ((None, None), "c1", ("o1", "c1")),
        ((None, None), "c2", (None, "c2")),
        (("o3", None), "c2", ("o3", "c2")),
        (("o1", None), "o9", ("o1", "c1")),
        (("o8", None), "o9", ("o8", None)),
        (("o1", "c7"), "o1", ("o1", "c7")),
        (("", ""), "o1", ("o1", "c1")),
        ((None, None), "o9", ("o9", None)),
        ((None, "c5"), "o9", ("o9", "c5")),
    ],
)
def test_order_is_completed_with_known_ids(
    order: tuple[Any, Any], given_id: str, expected: tuple[str | None, str | None]
) -> None:
    known = OrderIds()
    known.add("c1", "o1")
    known.add("c2")
    state = Order(order[0], OrderStatus.PENDING, client_order_id=order[1])
    assert ids(known.complete(state, given_id)) == expected


def test_forgotten_ids_are_not_known() -> None:
    known = OrderIds()
    known.add("c1", "o1")
    known.add("x", "x")
    assert known.order_id("c1") == "o1"
    assert known.order_id("o1") is None
    known.forget("c1")
    known.forget("x")
    assert known.by_name == {}


NAMES = st.sampled_from("abcd")


@given(
    st.lists(st.tuples(NAMES, st.none() | NAMES), unique_by=lambda pair: pair[0]), st.lists(NAMES)
)
def test_forgetting_a_swap_leaves_all_others(
    added: list[tuple[str, str | None]], forgotten: list[str]
) -> None:
    known = OrderIds()
    for client_order_id, order_id in added:
        known.add(client_order_id, order_id)
    for one in forgotten:
        others = {name: ids for name, ids in known.by_name.items() if ids[1] != one}
        known.forget(one)
        assert others.items() <= known.by_name.items()
        assert known.order_id(one) is None


def test_swap_with_an_order_keeps_it_if_its_id_is_added_again() -> None:
    known = OrderIds()
    known.add("c1", "o1")
    known.add("c1")
    assert (known.order_id("c1"), known.owner("o1")) == ("o1", "c1")
