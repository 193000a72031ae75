"""Every public async function is a checkpoint, also when it raises at once."""

from __future__ import annotations

import datetime as dt
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

import attrs
import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

import trio_broker
import trio_broker.sandbox
from tests.scripted import open_scripted, scripted_client, wait_until
from trio_broker import (
    BoundedReceiveChannel,
    BrokerError,
    BrokerWSClient,
    DuplicateClientOrderIdError,
    NotConnectedError,
    NotSentError,
    ReconnectPolicy,
    Subscription,
    SwapIntent,
    SwapJournal,
    SwapOutcomeUnknownError,
)
from trio_broker._checkpoints import always_checkpoint
from trio_broker._swaps.registry import Swap
from trio_broker.sandbox import BrokerClients, Sandbox, open_sandbox
from trio_broker.sandbox.testing import open_clients

Call: TypeAlias = Callable[[BrokerWSClient], Awaitable[object]]


async def connect(client: BrokerWSClient) -> None:
    async with trio.open_nursery() as nursery:
        await client.connect(nursery)
        nursery.cancel_scope.cancel()


# Calls of each public async method, with valid and with invalid arguments.
CALLS: Final[dict[str, list[Call]]] = {
    "connect": [connect],
    "__aenter__": [lambda client: client.__aenter__()],
    "aclose": [lambda client: client.aclose()],
    "close": [lambda client: client.close()],
    "wait_connected": [lambda client: client.wait_connected()],
    "wait_closed": [lambda client: client.wait_closed()],
    "reconnect": [lambda client: client.reconnect()],
    "subscribe": [
        lambda client: client.subscribe("balances"),
        lambda client: client.subscribe(""),
        lambda client: client.subscribe("balances", buffer_size=0),
        lambda client: client.subscribe("x" * 100_000),
    ],
    "subscribe_balances": [
        lambda client: client.subscribe_balances(),
        lambda client: client.subscribe_balances(overflow="block"),  # type: ignore[arg-type]
    ],
    "subscribe_order": [
        lambda client: client.subscribe_order("o1"),
        lambda client: client.subscribe_order(1),  # type: ignore[arg-type]
    ],
    "unsubscribe": [
        lambda client: client.unsubscribe("balances"),
        lambda client: client.unsubscribe("<"),
    ],
    "get_balances": [lambda client: client.get_balances()],
    "estimate_swap": [
        lambda client: client.estimate_swap("1", "ETH", "USDT"),
        lambda client: client.estimate_swap(1.5, "ETH", "USDT"),  # type: ignore[arg-type]
        lambda client: client.estimate_swap("-1", "ETH", "USDT"),
    ],
    "do_swap": [
        lambda client: client.do_swap("1", "ETH", "USDT"),
        lambda client: client.do_swap("1", "ETH", "USDT", min_out="1"),
        lambda client: client.do_swap("1", "ETH", "USDT", slippage_bps=-1),
        lambda client: client.do_swap("0", "ETH", "USDT"),
        lambda client: client.do_swap("1", "ETH", "USDT", client_order_id=""),
        lambda client: client.do_swap("1", "ETH", "USDT", account="x" * 100_000),
    ],
    "swap_and_wait": [
        lambda client: client.swap_and_wait("1", "ETH", "USDT"),
        lambda client: client.swap_and_wait("1", "", "USDT"),
    ],
    "resolve_swap": [
        lambda client: client.resolve_swap("c1"),
        lambda client: client.resolve_swap(""),
    ],
    "reconcile": [lambda client: client.reconcile()],
    "settle_swap": [
        lambda client: client.settle_swap("c1", "by hand"),
        lambda client: client.settle_swap("c1", ""),
        lambda client: client.settle_swap("c1", None),  # type: ignore[arg-type]
    ],
    "get_order_status": [
        lambda client: client.get_order_status("o1"),
        lambda client: client.get_order_status('"'),
    ],
}
every_call = pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=f"{name}-{number}")
        for name, calls in CALLS.items()
        for number, call in enumerate(calls)
    ],
)


@asynccontextmanager
async def unused() -> AsyncIterator[BrokerWSClient]:
    async with open_scripted() as broker:
        yield broker.client()


@asynccontextmanager
async def closed() -> AsyncIterator[BrokerWSClient]:
    async with open_scripted() as broker:
        async with broker.client() as client:
            pass
        yield client


@asynccontextmanager
async def failed() -> AsyncIterator[BrokerWSClient]:
    async with scripted_client() as (client, line):
        line.hang_up()
        with suppress(Exception):
            await client.wait_closed()
        yield client


@asynccontextmanager
async def waiting_to_retry() -> AsyncIterator[BrokerWSClient]:
    policy = ReconnectPolicy(initial_delay=5, max_attempts=1)
    async with open_scripted() as broker, broker.client(reconnect=policy) as client:
        (await broker.line()).hang_up()
        await wait_until(lambda: not client.is_connected())
        yield client


@asynccontextmanager
async def at_work() -> AsyncIterator[BrokerWSClient]:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        yield client


@pytest.mark.parametrize("state", [unused, closed, failed, waiting_to_retry, at_work])
@every_call
async def test_call_is_a_checkpoint_in_every_state(
    state: Callable[[], Any], call: Call, autojump_clock: MockClock
) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(state())
        with assert_checkpoints(), suppress(Exception), trio.move_on_after(60):
            await call(client)
        await client.aclose()
        around = getattr(client, "_around", None)
        if around is not None:
            await around.aclose()


@pytest.mark.parametrize("state", [unused, closed, failed, waiting_to_retry])
@pytest.mark.parametrize(
    "call",
    [calls[-1] for name, calls in CALLS.items() if name not in {"__aenter__", "connect"}],
    ids=[name for name in CALLS if name not in {"__aenter__", "connect"}],
)
async def test_call_in_a_loop_can_be_cancelled(
    state: Callable[[], Any], call: Call, autojump_clock: MockClock
) -> None:
    async with state() as client:
        turns = 0
        # The clock jumps and cancels a call that would wait forever.
        with trio.move_on_after(60) as scope:
            while True:
                turns += 1
                if turns == 20:
                    scope.cancel()
                with suppress(Exception):
                    await call(client)
        assert turns <= 20


async def test_loop_of_failing_swaps_lets_the_client_reconnect() -> None:
    policy = ReconnectPolicy(initial_delay=0.001, max_attempts=None)
    async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
        sandbox.drop_connections()
        await wait_until(lambda: not client.is_connected())
        refusals, receipt = 0, None
        while receipt is None:
            try:
                receipt = await client.do_swap("1", "ETH", "USDT")
            except NotSentError:
                refusals += 1
        assert refusals


async def test_loop_of_rejected_swaps_lets_other_tasks_run() -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        await client.do_swap("1", "ETH", "USDT", client_order_id="c1")
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                await trio.lowlevel.checkpoint()
                others += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(50):
                with suppress(DuplicateClientOrderIdError):
                    await client.do_swap("1", "ETH", "USDT", client_order_id="c1")
            nursery.cancel_scope.cancel()
        assert others >= 40


async def test_error_about_a_sent_swap_is_not_replaced_by_a_cancellation(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"request_timeout": 1, "resolve_timeout": 1}
    async with scripted_client(**options) as (client, _):
        result = Swap.result
        with trio.CancelScope() as scope:

            def cancel_and_tell(swap: Swap) -> Any:
                scope.cancel()
                return result(swap)

            monkeypatch.setattr(Swap, "result", cancel_and_tell)
            with pytest.raises(SwapOutcomeUnknownError):
                await client.do_swap("1", "ETH", "USDT")


async def test_streams_and_trackers_are_checkpoints_in_every_way(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        updates: Subscription[Any] = await client.subscribe("balances")
        with assert_checkpoints():
            await updates.receive()
        with assert_checkpoints():
            await updates.aclose()
        with assert_checkpoints(), suppress(trio.ClosedResourceError):
            await updates.receive()
        with assert_checkpoints(), suppress(trio.ClosedResourceError):
            await anext(updates.batches())
        tracked = client.track_order("o1")
        with assert_checkpoints():
            await tracked.__aenter__()
        with assert_checkpoints(), suppress(RuntimeError):
            await tracked.__aenter__()
        with assert_checkpoints():
            await tracked.__aexit__(None, None, None)
    with assert_checkpoints(), suppress(NotConnectedError):
        await client.track_order("o1").__aenter__()


# --- The whole public surface ----------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Setting:
    """The objects to call: open ones and closed ones."""

    sandbox: Sandbox
    client: BrokerWSClient
    clients: BrokerClients
    journal: SwapJournal
    not_open: SwapJournal

    async def channel(self, kind: type, state: str) -> Any:
        """A channel with an item, a closed one, or an ended one."""
        client = self.client if state != "ended" else await self.clients()
        if kind is Subscription:
            channel: Any = await client.subscribe("balances")
        else:
            channel = client.events()
        if state == "closed":
            channel.close()
        elif state == "ended":
            await client.aclose()
        elif kind is not Subscription:
            await client.reconnect()
        return channel


Act: TypeAlias = Callable[[Setting], Awaitable[object]]
Errors: TypeAlias = tuple[type[Exception], ...]

# What the calls here raise, without AssertionError.
OF_CHANNELS: Final[Errors] = (trio.ClosedResourceError, trio.EndOfChannel, StopAsyncIteration)
REFUSALS: Final[Errors] = (BrokerError, LookupError, RuntimeError, ValueError, *OF_CHANNELS)


def on_channel(kind: type, call: Callable[[Any], Awaitable[object]]) -> list[Act]:
    """A call of a channel's method, in each state that a channel can be in."""

    async def act(it: Setting, state: str) -> None:
        channel = await it.channel(kind, state)
        with assert_checkpoints(), suppress(*OF_CHANNELS):
            await call(channel)

    return [partial(act, state=state) for state in ("works", "closed", "ended")]


def stepping(kind: type) -> list[Act]:
    """``async for``: a cancel point for each item, and 16 steps at the most until others run."""

    async def step_cancelled(it: Setting) -> None:
        channel = await it.channel(kind, "works")
        with trio.CancelScope() as scope:
            scope.cancel()
            await channel.__anext__()
        assert scope.cancelled_caught

    async def step(it: Setting, state: str) -> None:
        channel = await it.channel(kind, state)
        with assert_checkpoints():
            for _ in range(16):
                with suppress(*OF_CHANNELS):
                    await channel.__anext__()

    return [step_cancelled, *(partial(step, state=state) for state in ("closed", "ended"))]


async def enter_opening(it: Setting) -> None:
    opening = it.client.subscribe("balances")
    for _ in range(2):
        with assert_checkpoints(), suppress(RuntimeError):
            await opening.__aenter__()


async def leave_opening(it: Setting) -> None:
    opening = it.client.subscribe("balances")
    await opening.__aenter__()
    for _ in range(2):
        with assert_checkpoints():
            await opening.__aexit__(None, None, None)


async def track(it: Setting) -> None:
    tracker = it.client.track_order("o1")
    for _ in range(2):
        with assert_checkpoints(), suppress(RuntimeError):
            await tracker.__aenter__()
    with assert_checkpoints():
        await tracker.__aexit__(None, None, None)


async def leave_client(it: Setting) -> None:
    client = it.sandbox.client()
    await client.__aenter__()
    with assert_checkpoints():
        await client.__aexit__(None, None, None)


async def revive(it: Setting) -> None:
    it.sandbox.faults.kill()
    await it.sandbox.faults.revive()


def intend(journal: SwapJournal, client_order_id: str, amount: int = 1) -> Awaitable[None]:
    intent = SwapIntent(
        client_order_id=client_order_id,
        amount_in=Decimal(amount),
        asset_in="ETH",
        asset_out="USDT",
        at=dt.datetime.now(dt.UTC),
    )
    return journal.intend(intent, "1")


async def intend_twice(it: Setting) -> None:
    for _ in range(2):
        with assert_checkpoints(), suppress(DuplicateClientOrderIdError):
            await intend(it.journal, "c2")


CHANNELS: Final = (BoundedReceiveChannel, Subscription)

# The same for all other public classes. A method that isn't here fails the test below.
OTHER_CALLS: Final[dict[str, list[Act]]] = {
    "BrokerWSClient.__aexit__": [leave_client],
    "BrokerWSClient.track_order": [track],
    "Opening.__aenter__": [enter_opening],
    "Opening.__aexit__": [leave_opening],
    **{
        f"{kind.__name__}.{name}": on_channel(kind, call)
        for kind in CHANNELS
        for name, call in {
            "receive": lambda channel: channel.receive(),
            "aclose": lambda channel: channel.aclose(),
            "__aexit__": lambda channel: channel.__aexit__(None, None, None),
        }.items()
    },
    **{f"{kind.__name__}.__anext__": stepping(kind) for kind in CHANNELS},
    "Subscription.batches": on_channel(Subscription, lambda channel: anext(channel.batches())),
    "SwapJournal.open": [
        lambda it: it.not_open.open("host", "key"),
        lambda it: it.journal.open("host", "key"),
        lambda it: SwapJournal(it.sandbox.url).open("host", "key"),  # no such directory
    ],
    "SwapJournal.intend": [
        lambda it: intend(it.journal, "c1"),
        lambda it: intend(it.not_open, "c1"),
        lambda it: intend(it.journal, "c1", amount=0),
        intend_twice,
    ],
    "SwapJournal.flush": [lambda it: it.journal.flush(), lambda it: it.not_open.flush()],
    "SwapJournal.rows": [lambda it: it.journal.rows(), lambda it: it.not_open.rows()],
    "SwapJournal.aclose": [lambda it: it.journal.aclose(), lambda it: it.not_open.aclose()],
    "Faults.revive": [revive, lambda it: it.sandbox.faults.revive()],
    "BrokerClients.__call__": [lambda it: it.clients(), lambda it: it.clients("nobody")],
}

# A method without ``async`` may return an object to await, enter or iterate over.
ASYNC_RESULTS: Final = re.compile(
    "(Opening|Awaitable|Coroutine|AsyncIterator|AsyncGenerator|AbstractAsyncContextManager)\\b"
)


def is_async(member: Any) -> bool:
    function = inspect.unwrap(member) if callable(member) else member
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    result = getattr(function, "__annotations__", {}).get("return", "")
    return ASYNC_RESULTS.match(str(result)) is not None


def public_async_methods(modules: Iterable[ModuleType]) -> set[str]:
    """The public async methods of this package, without those of Trio and Python."""
    return {
        f"{kind.__name__}.{name}"
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        for name, member in inspect.getmembers(kind)
        if (not name.startswith("_") or name.startswith("__a") or name == "__call__")
        and str(getattr(member, "__module__", "")).startswith("trio_broker")
        and is_async(member)
    }


def test_every_public_async_method_is_called_here() -> None:
    called = {f"BrokerWSClient.{name}" for name in CALLS} | OTHER_CALLS.keys()
    assert public_async_methods([trio_broker, trio_broker.sandbox]) == called


def test_new_async_methods_of_every_kind_are_found() -> None:
    class New:
        async def one(self) -> None: ...
        async def two(self) -> AsyncIterator[None]:
            yield

        def three(self) -> AsyncIterator[None]: ...  # type: ignore[empty-body]
        @always_checkpoint
        async def four(self) -> None: ...
        async def __aenter__(self) -> None: ...
        async def _private(self) -> None: ...
        def plain(self) -> None: ...

    for member in vars(New).values():
        if callable(member):
            member.__module__ = "trio_broker.new"
    module = ModuleType("new")
    module.New = New  # type: ignore[attr-defined]
    expected = {f"New.{name}" for name in ("one", "two", "three", "four", "__aenter__")}
    assert public_async_methods([module]) == expected


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(act, id=f"{name}-{number}")
        for name, acts in OTHER_CALLS.items()
        for number, act in enumerate(acts)
    ],
)
async def test_every_other_call_is_a_checkpoint(act: Act, tmp_path: Path) -> None:
    journal = SwapJournal(tmp_path / "swaps")
    async with (
        open_sandbox() as sandbox,
        open_clients(sandbox) as clients,
        sandbox.client(journal=journal) as client,
    ):
        it = Setting(
            sandbox=sandbox,
            client=client,
            clients=clients,
            journal=journal,
            not_open=SwapJournal(tmp_path / "others"),
        )
        with assert_checkpoints(), suppress(*REFUSALS), trio.fail_after(60):
            await act(it)
        await it.not_open.aclose()


# --- Calls that act even if they are cancelled -----------------------------------------------


async def test_unsubscribe_in_a_cancelled_scope_ends_the_streams(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        updates = await client.subscribe("balances", snapshot=False)
        orders = await client.subscribe("orders:o1", snapshot=False)
        for channel, stream in (("balances", updates), ("orders:o1", orders)):
            with trio.move_on_after(0) as scope:
                await client.unsubscribe(channel)
            assert scope.cancelled_caught
            with trio.fail_after(1):
                assert [message async for message in stream] == []
        await trio.sleep(1)
        assert sandbox.connections[-1].channels == {}


async def test_cancelled_unsubscribe_ends_the_streams(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        updates = await client.subscribe("balances", snapshot=False)
        sandbox.faults.swallow(op="unsubscribe")
        with trio.move_on_after(1) as scope:
            await client.unsubscribe("balances")
        assert scope.cancelled_caught
        assert [message async for message in updates] == []


async def test_settle_in_a_cancelled_scope_closes_the_swap(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"request_timeout": 0.05, "resolve_timeout": 0.05}
    journal = SwapJournal(tmp_path / "swaps")
    async with scripted_client(journal=journal, **options) as (client, _):
        with pytest.raises(SwapOutcomeUnknownError):
            await client.do_swap("1", "ETH", "USDT", client_order_id="c1")
        with trio.move_on_after(0) as scope:
            await client.settle_swap("c1", "by hand")
        assert scope.cancelled_caught
        assert client.unresolved_swaps() == ()
    assert [row.outcome for row in await journal.rows()] == ["settled"]


@pytest.mark.parametrize("name", ["aclose", "close"])
async def test_close_in_a_cancelled_scope_closes(name: str, autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with trio.move_on_after(0):
            await getattr(client, name)()
        assert client.state.is_over


# --- Exceptions that leave a block in a cancelled scope --------------------------------------


async def subscription(client: BrokerWSClient) -> Any:
    return await client.subscribe("balances")


async def clone(client: BrokerWSClient) -> Any:
    return (await client.subscribe("balances")).clone()


async def events(client: BrokerWSClient) -> Any:
    await trio.lowlevel.checkpoint()
    return client.events()


async def messages(client: BrokerWSClient) -> Any:
    await trio.lowlevel.checkpoint()
    return client.messages()


async def tracked(client: BrokerWSClient) -> Any:
    await trio.lowlevel.checkpoint()
    return client.track_order("o1")


RESOURCES: Final = (subscription, clone, events, messages, tracked)


async def leave(resource: Any, scope: trio.CancelScope, error: Exception) -> None:
    async with resource:
        scope.cancel()
        raise error


@pytest.mark.parametrize("make", RESOURCES)
@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [KeyError()])])
async def test_exception_of_a_block_in_a_cancelled_scope_is_raised(
    make: Callable[[BrokerWSClient], Awaitable[Any]], error: Exception, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        resource = await make(client)
        with trio.CancelScope() as scope, pytest.raises(type(error)) as caught:
            await leave(resource, scope, error)
        assert caught.value is error
        await trio.sleep(1)
        assert client.statistics().tracked_orders == 0
        assert client.statistics().subscriptions == (1 if make is clone else 0)


@pytest.mark.parametrize("make", RESOURCES)
async def test_block_that_ends_in_a_cancelled_scope_is_cancelled(
    make: Callable[[BrokerWSClient], Awaitable[Any]], autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        resource = await make(client)
        with trio.CancelScope() as scope:
            async with resource:
                scope.cancel()
        assert scope.cancelled_caught


def test_argument_is_checked_outside_of_trio_too() -> None:
    client = BrokerWSClient("key", "secret", "ws://127.0.0.1:1/ws")
    with pytest.raises(ValueError, match="channel"):
        client.unsubscribe("").send(None)
