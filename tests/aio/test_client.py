"""The client for asyncio, against a sandbox in another thread."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import trio

import trio_broker.client
from tests.aio_host import PATIENCE, PLAIN, Host, settle
from tests.broker_thread import Broker, broker_in_thread, when_taken
from trio_broker import (
    BrokerWSClient,
    ClientClosedError,
    ConfigurationError,
    Connected,
    ConnectionLostError,
    ConnectionState,
    Disconnected,
    InvalidApiKeyError,
    NotConnectedError,
    ReconnectPolicy,
    SubscriptionBrokenError,
    SwapJournal,
    SwapReceipt,
    SwapResolved,
    new_client_order_id,
)
from trio_broker.aio import (
    AioBrokerClient,
    ClientOptions,
    open_broker,
    open_client,
)
from trio_broker.aio.guest import join
from trio_broker.sandbox import Outcome


@pytest.fixture(scope="module")
def long_lived() -> Iterator[Broker]:
    quick = (0.01, 0.02)
    with broker_in_thread(
        outcomes={Outcome.FILLED: 1}, pending_delay=quick, processing_delay=quick
    ) as broker:
        yield broker


@pytest.fixture
def broker(long_lived: Broker) -> Iterator[Broker]:
    yield long_lived
    long_lived.do(lambda sandbox: sandbox.faults.clear())


def client_of(broker: Broker, **options: Any) -> BrokerWSClient:
    return broker.sandbox.client(**options)


# --- What it offers -------------------------------------------------------------------------


def public_names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_client_has_all_public_names_except_constructors() -> None:
    own, there = public_names(AioBrokerClient), public_names(BrokerWSClient)
    assert there - own == {"connect", "from_env"}
    assert own - there == {"logger"}  # an attribute there


@pytest.mark.parametrize("name", sorted(public_names(AioBrokerClient) - {"logger"}))
def test_methods_have_the_signatures_of_the_trio_client(name: str) -> None:
    own, there = (inspect.getattr_static(kind, name) for kind in (AioBrokerClient, BrokerWSClient))
    if isinstance(there, property):
        assert isinstance(own, property)
        assert (own.fset is None) == (there.fset is None)
        own, there = own.fget, there.fget
    assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(there)
    ours, theirs = inspect.signature(own), inspect.signature(there)
    assert ours.parameters == theirs.parameters
    returned = str(theirs.return_annotation)
    returned = returned.replace("BoundedReceiveChannel", "AioChannel")
    assert ours.return_annotation == returned.replace("Subscription", "AioSubscription")


def test_options_are_those_of_the_trio_client() -> None:
    theirs = {
        one.name: one.annotation
        for one in inspect.signature(BrokerWSClient).parameters.values()
        if one.kind is one.KEYWORD_ONLY
    }
    hints = get_type_hints(ClientOptions)
    namespace = {**vars(typing), **vars(trio_broker.client)}
    expected = {name: eval(text, namespace) for name, text in theirs.items()}  # noqa: S307
    assert hints == expected


# --- Using it -------------------------------------------------------------------------------


def test_session_from_opening_to_closing(broker: Broker, host: Host) -> None:
    async def main() -> None:
        sandbox = broker.sandbox
        async with open_broker(
            sandbox.api_key, sandbox.secret_key, broker.url, request_timeout=PATIENCE
        ) as client:
            assert client.is_connected()
            async with await client.subscribe("balances") as updates:
                estimate = await client.estimate_swap("2", "ETH", "USDT")
                receipt = await client.do_swap("1", "ETH", "USDT")
                assert estimate.expected_out > 0
                async with client.track_order(receipt.order_id) as progress:
                    states = [message.data.status async for message in progress]
                assert states[-1] == "FILLED"
                origins = set()
                async for message in updates:
                    origins.add(message.origin)
                    if origins == {"snapshot", "push"}:
                        break
            assert (await client.get_order_status(receipt.order_id)).status == "FILLED"
            name = new_client_order_id()
            order = await client.swap_and_wait("1", "ETH", "USDT", client_order_id=name)
            assert order.is_final
            assert (await client.resolve_swap(name)).order_id == order.order_id
            assert {one.asset for one in await client.get_balances()} >= {"ETH", "USDT"}

    host.run(main)


def test_properties_and_synchronous_methods_are_forwarded(broker: Broker) -> None:
    async def main() -> None:
        inner = client_of(broker)
        async with open_client(inner) as client:
            assert repr(client) == f"<AioBrokerClient of {inner!r}>"
            assert client.state.is_connected
            assert client.logger is inner.logger
            assert client.latency is None
            assert client.statistics() == inner.statistics()
            assert client.unresolved_swaps() == ()
            client.max_reconnect_attempts = 7
            client.reconnect_delay = 0.5
            assert (inner.max_reconnect_attempts, inner.reconnect_delay) == (7, 0.5)
            assert (client.max_reconnect_attempts, client.reconnect_delay) == (7, 0.5)
            with pytest.raises(ConfigurationError):
                client.reconnect_delay = -1
        assert client.state is ConnectionState.CLOSED

    PLAIN.run(main)


def test_channels_are_subscribed_and_unsubscribed(broker: Broker) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)) as client:
            await client.wait_connected()
            messages = client.messages()
            balances = await client.subscribe_balances(snapshot=False)
            order = await client.subscribe_order("o1", buffer_size=5)
            assert (balances.channel, order.channel) == ("balances", "orders:o1")
            assert order.statistics().max_buffer_size == 5
            assert client.statistics().subscriptions == 2
            await client.unsubscribe("balances")
            assert [message async for message in balances] == []
            assert '"subscribe"' in str(await anext(messages))
            await order.aclose()
            assert client.statistics().subscriptions == 0

    PLAIN.run(main)


def test_reconnect_replaces_the_connection(broker: Broker) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)) as client, client.events() as events:
            await client.reconnect()
            assert client.is_connected()
            assert isinstance(await events.receive(), Disconnected)

    PLAIN.run(main)


def test_events_are_received(broker: Broker, host: Host) -> None:
    async def main() -> None:
        policy = ReconnectPolicy(initial_delay=0.001)
        async with open_client(client_of(broker, reconnect=policy)) as client:
            events = client.events()
            broker.soon(broker.sandbox.drop_connections)
            assert isinstance(await events.receive(), Disconnected)
            assert isinstance(await anext(events), Connected)

    host.run(main)


def test_errors_are_those_of_the_trio_client(broker: Broker) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)) as client:
            with pytest.raises(TypeError, match="float"):
                await client.do_swap(0.1, "ETH", "USDT")  # type: ignore[arg-type]  # it is refused
            with pytest.raises(ValueError, match="order_id"):
                client.track_order("")
            with pytest.raises(ValueError, match="no unresolved swap"):
                await client.settle_swap("c1", "note")
            assert await client.reconcile() == ()

    PLAIN.run(main)


# --- Opening and closing --------------------------------------------------------------------


def test_failed_opening_leaves_no_guest(broker: Broker, host: Host) -> None:
    async def main() -> None:
        with pytest.raises(InvalidApiKeyError):
            await open_broker("wrong", "keys", broker.url).__aenter__()
        assert not trio.lowlevel.in_trio_run()

    host.run(main)


def test_invalid_options_raise_at_the_call() -> None:
    with pytest.raises(ConfigurationError, match="api_key"):
        open_broker("", "secret", "wss://host/ws")


@pytest.mark.parametrize(
    "error", [ValueError("no"), ExceptionGroup("mine", [ValueError("no")]), StopAsyncIteration()]
)
def test_exception_of_the_block_is_raised_unchanged(
    broker: Broker, host: Host, error: Exception
) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)):
            raise error

    with pytest.raises(type(error)) as caught:
        host.run(main)
    assert caught.value is error


def test_client_can_be_opened_only_once(broker: Broker) -> None:
    async def main() -> None:
        inner = client_of(broker)
        async with open_client(inner) as client:
            with pytest.raises(RuntimeError, match="used once"):
                await open_client(inner).__aenter__()
            assert client.is_connected()
            assert await client.get_balances()

    PLAIN.run(main)


def test_clients_of_a_loop_share_one_guest(broker: Broker, host: Host) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)) as first:
            async with open_client(client_of(broker, account=1)) as second:
                both = await asyncio.gather(first.get_balances(), second.get_balances())
                assert all(both)
            assert await first.get_balances()
            with pytest.raises(ClientClosedError):
                await second.get_balances()
        assert not trio.lowlevel.in_trio_run()

    host.run(main)


def test_many_clients_open_and_close_concurrently(broker: Broker, host: Host) -> None:
    async def visit() -> None:
        for _ in range(3):
            async with open_client(client_of(broker)) as client:
                assert await client.get_balances()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(visit())

    host.run(main)


def test_client_can_be_closed_by_another_task(broker: Broker, host: Host) -> None:
    async def main() -> None:
        opening = open_client(client_of(broker))

        async def close() -> None:
            await opening.__aexit__(None, None, None)

        async def begin() -> AioBrokerClient:
            return await opening.__aenter__()

        beginning = asyncio.create_task(begin())
        client = await beginning
        assert await client.get_balances()
        closing = asyncio.create_task(close())
        await closing
        assert client.state is ConnectionState.CLOSED

    host.run(main)


def test_closed_client_still_answers_some_calls(broker: Broker, host: Host, tmp_path: Path) -> None:
    async def main() -> None:
        journal = SwapJournal(tmp_path / "swaps.journal")
        async with open_client(client_of(broker, journal=journal)) as client:
            receipt = await client.do_swap("1", "ETH", "USDT", client_order_id="c1")
            updates = await client.subscribe_balances()
        await client.aclose()
        await client.close()
        await client.wait_closed()
        assert await client.resolve_swap("c1") == receipt
        with pytest.raises(ClientClosedError):
            await client.get_balances()
        with pytest.raises(ClientClosedError):
            await client.track_order("o1").__aenter__()
        assert [event async for event in client.events()] == []
        assert all([message.data async for message in updates])
        with pytest.raises(trio.EndOfChannel):
            await updates.receive()
        await updates.aclose()
        assert not trio.lowlevel.in_trio_run()

    host.run(main)


def test_client_can_be_closed_inside_the_block(broker: Broker) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)) as client:
            waiting = asyncio.create_task(client.wait_closed())
            await settle()
            await client.close()
            await waiting

    PLAIN.run(main)


def test_final_failure_is_raised_by_every_later_call(broker: Broker, host: Host) -> None:
    async def main() -> None:
        policy = ReconnectPolicy(max_attempts=0)
        async with open_client(client_of(broker, reconnect=policy)) as client:
            updates = await client.subscribe_balances(snapshot=False)
            broker.soon(broker.sandbox.drop_connections)
            with pytest.raises(SubscriptionBrokenError):
                await anext(updates)
            with pytest.raises(ConnectionLostError):
                await client.wait_closed()
            with pytest.raises(NotConnectedError):
                await client.get_balances()

    host.run(main)


@pytest.mark.parametrize("dropped", [False, True])
def test_client_that_was_never_closed_is_closed_with_the_loop(
    broker: Broker, host: Host, dropped: bool
) -> None:
    kept: list[Any] = []

    async def main() -> None:
        async with AsyncExitStack() as stack:
            opening = open_client(client_of(broker))
            kept.append(await stack.enter_async_context(opening))
            stack.pop_all()
            if not dropped:
                kept.append(opening)
            del opening
        gc.collect()

    host.run(main)
    assert kept[0].state is ConnectionState.CLOSED


def test_client_of_a_leftover_task_is_closed_with_the_loop(broker: Broker, host: Host) -> None:
    opened: list[AioBrokerClient] = []

    async def use(ready: asyncio.Event) -> None:
        async with open_client(client_of(broker)) as client:
            opened.append(client)
            ready.set()
            await asyncio.Event().wait()

    async def main() -> None:
        ready = asyncio.Event()
        opened.append(asyncio.create_task(use(ready)))  # type: ignore[arg-type]  # kept alive by it
        await ready.wait()

    host.run(main)
    assert opened[1].state is ConnectionState.CLOSED


def test_client_refuses_another_loop(broker: Broker) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)) as client:
            failures = []

            def elsewhere() -> None:
                with pytest.raises(RuntimeError, match="another event loop") as caught:
                    asyncio.run(client.get_balances())
                failures.append(caught.value)

            await asyncio.to_thread(elsewhere)
            assert len(failures) == 1

    PLAIN.run(main)


def test_stream_refuses_another_loop(broker: Broker) -> None:
    async def main() -> None:
        async with (
            open_client(client_of(broker)) as client,
            await client.subscribe("orders:x", snapshot=False) as updates,
        ):
            failures = []

            def elsewhere() -> None:
                with pytest.raises(RuntimeError, match="another event loop") as caught:
                    asyncio.run(updates.receive())
                failures.append(caught.value)

            await asyncio.to_thread(elsewhere)
            assert len(failures) == 1
            assert client.is_connected()

    PLAIN.run(main)


def test_last_leave_closes_connected_clients(broker: Broker, host: Host) -> None:
    async def main() -> None:
        client, guest = client_of(broker), await join()
        await guest.run(partial(guest.connect, client))
        await guest.leave()
        assert client.state is ConnectionState.CLOSED

    host.run(main)


# --- Cancelling -----------------------------------------------------------------------------


def test_timeout_leaves_the_client_usable(broker: Broker, host: Host) -> None:
    async def main() -> None:
        async with open_client(client_of(broker)) as client:
            broker.do(lambda sandbox: sandbox.faults.swallow(op="balances", times=1))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.get_balances()
            receipt = await client.do_swap("1", "ETH", "USDT")
            assert (await client.get_order_status(receipt.order_id)).order_id == receipt.order_id

    host.run(main)


def test_opening_can_be_cancelled(broker: Broker, host: Host) -> None:
    async def main() -> None:
        broker.do(lambda sandbox: sandbox.faults.stall_handshakes(times=1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), open_client(client_of(broker)):
                pytest.fail("it can't be open")
        assert not trio.lowlevel.in_trio_run()

    host.run(main)


def test_cancelled_block_closes_at_once(broker: Broker) -> None:
    async def main() -> None:
        inner = client_of(broker, close_timeout=10 * PATIENCE)

        async def use() -> None:
            async with open_client(inner) as client:
                # Nobody would answer a polite goodbye.
                broker.do(lambda sandbox: sandbox.faults.go_silent())
                began.set()
                await client.wait_closed()

        began = asyncio.Event()
        task = asyncio.create_task(use())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inner.state is ConnectionState.CLOSED

    PLAIN.run(main)


def test_cancelled_swap_is_resolved(
    broker: Broker, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        policy = ReconnectPolicy(initial_delay=0.001)
        async with open_client(client_of(broker, reconnect=policy)) as client:
            events = client.events()
            name, loop, taken = new_client_order_id(), asyncio.get_running_loop(), asyncio.Event()
            lost = broker.do(lambda sandbox: sandbox.faults.swallow(op="swap"))
            mute = broker.do(lambda sandbox: sandbox.faults.swallow(op="order_status"))
            with when_taken(partial(loop.call_soon_threadsafe, taken.set)):
                swap = asyncio.create_task(client.do_swap("1", "ETH", "USDT", client_order_id=name))
                await taken.wait()
            swap.cancel()
            with pytest.raises(asyncio.CancelledError):
                await swap
            unresolved = client.unresolved_swaps()
            assert [one.client_order_id for one in unresolved] == [name]
            broker.soon(lost.lift)
            broker.soon(mute.lift)
            broker.soon(broker.sandbox.drop_connections)
            async for event in events:
                if isinstance(event, SwapResolved):
                    break
            receipt = await client.resolve_swap(name)
            assert receipt.order_id in {order.order_id for order in broker.orders()}

    host.run(main)
    assert "was given up: outcome unknown" in caplog.text


class Deaf:
    """Shields an async function of Trio from cancellation."""

    def __init__(self, function: Callable[..., Awaitable[Any]], began: asyncio.Event) -> None:
        self._function = function
        self._began = began

    async def __call__(self, *args: Any, **options: Any) -> Any:
        self._began.set()
        with trio.CancelScope(shield=True):
            return await self._function(*args, **options)


async def cancelled_too_late(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], Awaitable[Any]]
) -> None:
    """Cancel a call whose method already has its result."""
    began = asyncio.Event()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, Deaf(getattr(owner, name), began))
        task = asyncio.ensure_future(act())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_receipt_of_a_cancelled_swap_is_logged(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> SwapReceipt:
        inner = client_of(broker)
        async with open_client(inner) as client:
            swap = partial(client.do_swap, "1", "ETH", "USDT", client_order_id="late 1")
            await cancelled_too_late(monkeypatch, inner, "do_swap", swap)
            receipt = await client.resolve_swap("late 1")
            other = partial(client.swap_and_wait, "1", "ETH", "USDT")
            await cancelled_too_late(monkeypatch, inner, "swap_and_wait", other)
            assert client.unresolved_swaps() == ()
            told = re.search(r"swap (\S+) was accepted as order (\S+) \(FILLED\)", caplog.text)
            assert told is not None
            assert (await client.resolve_swap(told[1])).order_id == told[2]
            return receipt

    receipt = PLAIN.run(main)
    assert f"swap late 1 was accepted as order {receipt.order_id} ({receipt.status})" in caplog.text


def test_subscription_of_a_cancelled_call_is_closed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        inner = client_of(broker)
        async with open_client(inner) as client:
            subscribe = partial(client.subscribe, "balances")
            await cancelled_too_late(monkeypatch, inner, "subscribe", subscribe)
            assert client.statistics().subscriptions == 0
            tracked = inner.track_order("o1")
            monkeypatch.setattr(inner, "track_order", lambda *_, **__: tracked)
            track = client.track_order("o1").__aenter__
            await cancelled_too_late(monkeypatch, tracked, "__aenter__", track)
            assert client.statistics().tracked_orders == 0

    PLAIN.run(main)


def test_connection_of_a_cancelled_opening_is_closed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        inner = client_of(broker)
        opening = open_client(inner)
        await cancelled_too_late(monkeypatch, inner, "connect", opening.__aenter__)
        assert inner.state is ConnectionState.CLOSED
        assert not trio.lowlevel.in_trio_run()

    PLAIN.run(main)
