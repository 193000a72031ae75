"""`subscribe` is awaited or entered; a forgotten `await` gives a warning."""

from __future__ import annotations

import asyncio
import copy
import gc
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import trio
from trio.testing import assert_checkpoints

from tests.aio_host import Host
from tests.scripted import BALANCES, open_scripted, order_status, scripted_client
from trio_broker import BrokerWSClient, NotConnectedError, Opening
from trio_broker.aio import AioBrokerClient, open_client
from trio_broker.sandbox import open_sandbox, open_threaded_sandbox

Call: TypeAlias = Callable[[Any], Any]

CALLS: dict[str, Call] = {
    "subscribe('balances')": lambda client: client.subscribe("balances"),
    "subscribe_balances()": lambda client: client.subscribe_balances(),
    "subscribe_order('o1')": lambda client: client.subscribe_order("o1"),
}
each_call = pytest.mark.parametrize(("call", "make"), CALLS.items(), ids=CALLS)
TRACK = "async with client.track_order('o1') as progress:"


def unused() -> BrokerWSClient:
    return BrokerWSClient("key", "secret", "wss://broker.example/ws")


def unused_aio() -> AioBrokerClient:
    return AioBrokerClient(unused(), None)  # type: ignore[arg-type]  # nothing is called


async def entered(manager: Any) -> None:
    async with manager:
        raise AssertionError


async def iterated(iterable: Any) -> None:
    async for _ in iterable:
        raise AssertionError


clients = pytest.mark.parametrize("client", [unused(), unused_aio()], ids=["trio", "asyncio"])


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()


@each_call
async def test_subscription_is_awaited(call: str, make: Call) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        if "o1" in call:
            receipt = await client.do_swap("1", "ETH", "USDT")
            updates = await client.subscribe_order(receipt.order_id)
        else:
            updates = await make(client)
        async with updates:
            assert (await updates.receive()).origin == "snapshot"
        assert client.statistics().subscriptions == 0


@each_call
async def test_subscription_is_entered_and_closed_after_the_block(call: str, make: Call) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        nursery.start_soon(line.acknowledge)
        async with make(client) as updates:
            reply = order_status() if "order" in call else BALANCES
            await line.receive(str(reply["op"]))
            await line.send(reply)
            assert (await updates.receive()).data
            assert client.statistics().subscriptions == 1
        assert client.statistics().subscriptions == 0
        with pytest.raises(trio.ClosedResourceError):
            updates.receive_nowait()


async def test_exception_of_the_block_closes_and_is_raised() -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with pytest.raises(ZeroDivisionError):
            async with client.subscribe("balances"):
                raise ZeroDivisionError
        assert client.statistics().subscriptions == 0


async def test_nothing_is_sent_before_it_is_awaited() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        opening = client.subscribe("balances", snapshot=False)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert line.nothing_came()
        nursery.start_soon(line.acknowledge)
        await (await opening).aclose()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda client: client.subscribe(5), TypeError, "channel must be a str"),
        (lambda client: client.subscribe(None), TypeError, "channel must be a str"),
        (lambda client: client.subscribe(""), ValueError, "channel must not be empty"),
        (lambda client: client.subscribe_order(None), TypeError, "order_id must be a str"),
        (lambda client: client.subscribe("x", buffer_size=0), ValueError, "buffer_size"),
        (lambda client: client.subscribe("x", overflow="wait"), ValueError, "overflow"),
        (lambda client: client.subscribe("balances"), NotConnectedError, "isn't connected"),
    ],
)
@pytest.mark.parametrize("enter", [False, True])
async def test_errors_are_raised_by_await_after_a_checkpoint(
    make: Call, error: type[Exception], text: str, *, enter: bool
) -> None:
    opening = make(unused())
    with assert_checkpoints(), pytest.raises(error, match=text):
        await (entered(opening) if enter else opening)


@each_call
@clients
def test_dropped_opening_gives_a_warning(call: str, make: Call, client: Any) -> None:
    with pytest.warns(ResourceWarning, match=re.escape(call)) as caught:
        make(client)
    (warning,) = caught
    assert f"async with client.{call} as updates:" in str(warning.message)
    assert f"updates = await client.{call}" in str(warning.message)
    assert warning.filename == __file__


@each_call
@clients
async def test_iterating_over_an_opening_raises_with_a_hint(
    call: str, make: Call, client: Any
) -> None:
    hint = re.escape(f"async with client.{call} as updates:")
    with pytest.raises(TypeError, match=hint):
        await iterated(make(client))
    with pytest.raises(TypeError, match=hint), make(client):
        raise AssertionError


@each_call
@clients
@pytest.mark.parametrize("name", ["receive", "batches", "clone", "dropped", "aclose", "nothing"])
def test_attribute_of_an_opening_raises_with_a_hint(
    call: str, make: Call, client: Any, name: str
) -> None:
    with pytest.raises(AttributeError, match=re.escape(f"updates = await client.{call}")):
        getattr(make(client), name)


async def test_nursery_accepts_an_opening_as_a_coroutine() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        nursery.start_soon(client.subscribe, "balances")
        await line.acknowledge()
        await line.receive("balances")
        assert client.statistics().subscriptions == 1


def test_asyncio_accepts_an_opening_as_a_coroutine() -> None:
    async def main() -> None:
        opening = unused_aio().subscribe("balances")
        task = asyncio.create_task(opening)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        other = asyncio.create_task(unused_aio().subscribe("balances"))
        with pytest.raises(AttributeError):  # there is no guest
            await other

    asyncio.run(main())


def test_opening_can_be_closed_unused() -> None:
    unused().subscribe("balances").close()
    opening = unused().subscribe("balances")
    with pytest.raises(ZeroDivisionError):
        opening.throw(ZeroDivisionError())
    opening.close()


async def test_opening_can_be_used_once() -> None:
    opening = unused().subscribe("balances")
    with pytest.raises(NotConnectedError):
        await opening
    with assert_checkpoints(), pytest.raises(RuntimeError, match=r"'balances'\).*call it again"):
        await opening
    with pytest.raises(RuntimeError, match="call it again"):
        await entered(opening)


def test_repr_of_an_opening_names_its_call() -> None:
    opening = unused().subscribe("balances")
    assert repr(opening) == "<Opening of client.subscribe('balances')>"
    with pytest.raises(AttributeError):
        opening.on_message = print  # type: ignore[attr-defined]
    with pytest.warns(ResourceWarning):
        del opening


def test_incomplete_opening_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError):
            Opening()  # type: ignore[call-arg]
        empty = Opening.__new__(Opening)
        assert not hasattr(empty, "_method")
        del empty
        gc.collect()


@clients
async def test_track_order_can_only_be_entered(client: Any) -> None:
    def tracked() -> Any:
        return client.track_order("o1")

    with pytest.raises(TypeError, match=re.escape(TRACK)):
        await tracked()
    with pytest.raises(TypeError, match=re.escape(TRACK)):
        await iterated(tracked())
    with pytest.raises(TypeError, match=re.escape(TRACK)), tracked():
        raise AssertionError
    with pytest.raises(AttributeError, match=re.escape(TRACK)):
        tracked().receive()
    copy.copy(tracked())


def test_asyncio_program_enters_and_awaits(host: Host) -> None:
    async def main() -> None:
        with open_threaded_sandbox() as sandbox:
            async with open_client(sandbox.client()) as client:
                async with client.subscribe("balances") as updates:
                    assert (await updates.receive()).origin == "snapshot"
                    again = await client.subscribe_balances()
                    assert client.statistics().subscriptions == 2
                    again.close()
                assert client.statistics().subscriptions == 0
                opening = client.subscribe_order("")
                with pytest.raises(ValueError, match="order_id must not be empty"):
                    await opening
                with pytest.raises(RuntimeError, match="call it again"):
                    await opening

    host.run(main)


async def test_cancelled_block_closes_and_raises_cancelled() -> None:
    async with open_scripted() as broker, broker.client() as client:
        line = await broker.line()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.acknowledge)
            with trio.CancelScope() as scope:
                async with client.subscribe("balances", snapshot=False):
                    scope.cancel()
                    await trio.sleep_forever()
        assert scope.cancelled_caught
        assert client.statistics().subscriptions == 0


@clients
def test_opening_dropped_in_a_cycle_gives_one_warning(client: Any) -> None:
    cycle: list[Any] = [client.subscribe("balances")]
    cycle.append(cycle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del cycle
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]


async def test_used_opening_run_as_a_coroutine_raises_with_a_hint() -> None:
    opening = unused().subscribe("balances")
    with pytest.raises(NotConnectedError):
        await opening
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="call it again")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(lambda: opening)
