"""The client's documented calls, with the sandbox and with a scripted broker."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import (
    API_KEY,
    BALANCES,
    ESTIMATE,
    NEVER,
    PATIENCE,
    SECRET_KEY,
    SWAPPED,
    Body,
    ScriptedConnection,
    acknowledgement,
    count_tasks,
    open_scripted,
    order,
    order_status,
    scripted_client,
    start,
)
from tests.transports.raw_server import close_frame
from trio_broker import (
    Balance,
    BrokerWSClient,
    ChannelError,
    ClientClosedError,
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    Disconnected,
    InsufficientBalanceError,
    InvalidAmountError,
    InvalidApiKeyError,
    InvalidChannelError,
    InvalidSignatureError,
    Limits,
    MessageTooLargeError,
    NonceReusedError,
    NotConnectedError,
    NotSentError,
    OrderNotFoundError,
    OrderStatus,
    ReconnectPolicy,
    RequestTimeoutError,
    ServerError,
    SlowConsumerError,
    SnapshotUnavailable,
    Subscription,
    SubscriptionBrokenError,
    SubscriptionLimitError,
    SwapOutcomeUnknownError,
    UnknownOperationError,
    new_client_order_id,
)
from trio_broker.sandbox import Sandbox, open_sandbox

pytestmark = pytest.mark.usefixtures("each_transport")

Use: TypeAlias = Callable[[BrokerWSClient], Awaitable[object]]


async def subscribe_and_close(client: BrokerWSClient) -> None:
    async with await client.subscribe("orders:o1", snapshot=False):
        pass


async def wait_connected(client: BrokerWSClient) -> None:
    await client.wait_connected()


# Every call that sends a request.
USES: dict[str, Use] = {
    "get_balances": lambda client: client.get_balances(),
    "estimate_swap": lambda client: client.estimate_swap("1", "ETH", "USDT"),
    "get_order_status": lambda client: client.get_order_status("o1"),
    "do_swap": lambda client: client.do_swap("1", "ETH", "USDT"),
    "subscribe": subscribe_and_close,
    "subscribe_balances": lambda client: client.subscribe_balances(),
    "subscribe_order": lambda client: client.subscribe_order("o1"),
    "unsubscribe": lambda client: client.unsubscribe("balances"),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


async def wait_until_idle(client: BrokerWSClient) -> None:
    """Wait until no request is waiting or in flight."""
    while True:
        statistics = client.statistics()
        if statistics.requests_in_flight == statistics.requests_waiting == 0:
            return
        await wait_all_tasks_blocked(0.001)


def is_untouched(client: BrokerWSClient) -> bool:
    """Whether the client has no request and no channel."""
    statistics = client.statistics()
    return (
        statistics.requests_in_flight == statistics.requests_waiting == 0
        and statistics.channels == statistics.subscriptions == statistics.tracked_orders == 0
        and len(client._engine.timers) == 0
    )


class CancelAfterSteps(trio.abc.Instrument):
    """Cancels a scope after so many steps of all tasks, wherever its own task is."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - Trio passes it
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


# --- From connect to close -------------------------------------------------------------------


async def test_swap_from_connect_to_filled(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox:
        sandbox.next_outcome("filled")
        async with sandbox.client() as client:
            assert client.is_connected()
            async with await client.subscribe("balances") as updates:
                assert {b.asset: b for b in await client.get_balances()} == sandbox.balances()
                quote = await client.estimate_swap("1", "ETH", "USDT")
                assert quote.expected_out > 0
                receipt = await client.do_swap("1", "ETH", "USDT", slippage_bps=500)
                assert receipt.status is OrderStatus.PENDING
                async with await client.subscribe_order(receipt.order_id) as progress:
                    async for message in progress:
                        if message.data.is_final:
                            break
                assert message.data.status is OrderStatus.FILLED
                filled = await client.get_order_status(receipt.order_id)
                assert filled.filled_out == message.data.filled_out
                assert filled.client_order_id == receipt.client_order_id
                held: dict[str, Balance] = {}
                with trio.move_on_after(1):
                    async for update in updates:
                        held |= {balance.asset: balance for balance in update.data}
                assert held == sandbox.balances()
                assert held["ETH"].available == 999
        assert [order.client_order_id for order in sandbox.orders()] == [receipt.client_order_id]


async def test_typed_subscriptions_equal_the_plain_ones(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        async with await client.subscribe_balances() as balances:
            assert balances.channel == "balances"
            assert (await balances.receive()).data[0].asset == "USDT"
        async with await client.subscribe_order("o1", snapshot=False) as progress:
            assert progress.channel == "orders:o1"


async def test_optional_arguments_are_sent() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: client.estimate_swap(
                Decimal("1.50"), "ETH", "USDT", filter_sources=["gate"], network="n", account="a"
            )
        )
        assert (await line.receive("estimate"))["data"] == {
            "amountIn": "1.50",
            "assetIn": "ETH",
            "assetOut": "USDT",
            "filter": ["gate"],
            "network": "n",
            "account": "a",
        }
        await line.send(ESTIMATE)


# --- Rejected calls --------------------------------------------------------------------------


async def test_wrong_key_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        began = trio.current_time()
        with pytest.raises(InvalidApiKeyError):
            async with BrokerWSClient("wrong", sandbox.secret_key, sandbox.url):
                pytest.fail("it connected")
        assert trio.current_time() == began


async def test_wrong_secret_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        began = trio.current_time()
        with pytest.raises(InvalidSignatureError):
            async with BrokerWSClient(sandbox.api_key, "wrong", sandbox.url):
                pytest.fail("it connected")
        assert trio.current_time() == began


async def test_url_without_a_server_fails_at_once() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with trio.fail_after(PATIENCE), pytest.raises(ConnectFailedError, match=str(port)):
        async with BrokerWSClient("key", "secret", f"ws://127.0.0.1:{port}/ws"):
            pytest.fail("it connected")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ws://broker.example/ws", "without TLS"),
        ("https://broker.example/ws", "BROKER_BASE_URL"),
        ("", "no host"),
    ],
)
def test_invalid_url_is_refused_by_the_constructor(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        BrokerWSClient("key", "secret", url)


def test_insecure_url_can_be_allowed() -> None:
    client = BrokerWSClient("key", "secret", "ws://broker.example/ws", allow_insecure=True)
    assert "ws://broker.example" in repr(client)


async def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    async with scripted_client() as (client, line):
        before = client.statistics()
        with pytest.raises(TypeError, match="float"):
            await client.estimate_swap(0.1, "ETH", "USDT")  # type: ignore[arg-type] # the point
        with pytest.raises(TypeError, match="float"):
            await client.do_swap(0.1, "ETH", "USDT")  # type: ignore[arg-type] # the point
        with pytest.raises(ValueError, match="more than 0"):
            await client.do_swap("0", "ETH", "USDT")
        with pytest.raises(ValueError, match="asset_in"):
            await client.do_swap("1", "", "USDT")
        with pytest.raises(ValueError, match="order_id"):
            await client.get_order_status('a"b')
        with pytest.raises(ValueError, match="order_id"):
            await client.subscribe_order("")
        with pytest.raises(TypeError, match="channel"):
            await client.subscribe(7)  # type: ignore[call-overload] # the point
        with pytest.raises(ValueError, match="channel"):
            await client.unsubscribe("")
        with pytest.raises(ValueError, match="buffer_size"):
            await client.subscribe("balances", buffer_size=0)
        assert client.statistics() == before
        assert line.nothing_came()


async def test_broker_refuses_an_unknown_asset(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        for call in (client.estimate_swap, client.do_swap):
            with pytest.raises(ServerError, match="Unknown asset: NONE") as caught:
                await call("1", "NONE", "USDT")
            assert caught.value.message == "Unknown asset: NONE"
        assert sandbox.orders() == ()
        assert await client.get_balances()


async def test_broker_refuses_an_unknown_channel(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with pytest.raises(InvalidChannelError):
            await client.subscribe("nonsense")
        assert is_untouched(client)
        assert await client.get_balances()


async def test_client_refuses_the_101st_subscription(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        for number in range(100):
            await client.subscribe(f"orders:{number}", snapshot=False)
        sent = client.statistics().messages_sent
        with pytest.raises(SubscriptionLimitError, match="100"):
            await client.subscribe("orders:100")
        assert client.statistics().messages_sent == sent
        assert client.statistics().channels == 100
        await client.unsubscribe("orders:0")
        await client.subscribe("orders:100", snapshot=False)


async def test_client_refuses_a_message_over_the_limit(autojump_clock: MockClock) -> None:
    frame = len('{"op":"subscribe","ch":""}')
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with pytest.raises(MessageTooLargeError) as caught:
            await client.subscribe("x" * (65_537 - frame))
        assert (caught.value.size, caught.value.limit) == (65_537, 65_536)
        with pytest.raises(MessageTooLargeError):
            await client.get_order_status("x" * 65_536)
        with pytest.raises(InvalidChannelError):
            await client.subscribe("x" * (65_536 - frame))
        assert await client.get_balances()


async def test_every_call_fails_at_once_after_a_final_failure() -> None:
    with trio.fail_after(PATIENCE):
        async with open_sandbox() as sandbox, sandbox.client(reconnect=NEVER) as client:
            sandbox.drop_connections()
            with pytest.raises(ConnectionLostError):
                await client.wait_closed()
            for use in USES.values():
                with pytest.raises(NotConnectedError) as caught:
                    await use(client)
                assert isinstance(caught.value.__cause__, ConnectionLostError)


# --- Each call gets its own reply ------------------------------------------------------------


async def test_concurrent_calls_get_their_own_replies(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        receipts = [await client.do_swap("0.1", "ETH", "USDT") for _ in range(5)]
        async with trio.open_nursery() as nursery:
            balances = [start(nursery, client.get_balances) for _ in range(5)]
            orders = [
                (receipt, start(nursery, client.get_order_status, receipt.order_id))
                for receipt in receipts
            ]
            quotes = [start(nursery, client.estimate_swap, "1", a, "USDT") for a in ("ETH", "BTC")]
        assert all([len(await call.result()) == 10 for call in balances])
        for receipt, call in orders:
            assert (await call.result()).client_order_id == receipt.client_order_id
        ether, bitcoin = [await call.result() for call in quotes]
        assert bitcoin.price > 2 * ether.price


async def test_bare_error_fails_its_own_request_of_two(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        estimate = start(nursery, client.estimate_swap, "1", "ETH", "USDT")
        first = await line.receive("estimate")
        balances = start(nursery, client.get_balances)
        second = await line.receive("balances")
        await line.send({"error": "Insufficient balance"}, ESTIMATE)
        with pytest.raises(ServerError, match="Insufficient balance") as caught:
            await balances.result()
        assert caught.value.op == "balances"
        assert (await estimate.result()).expected_out == 20
        assert first["nonce"] != second["nonce"]
        await wait_until_idle(client)
        assert line.nothing_came()


# --- Cancelled calls and late replies --------------------------------------------------------


@every_use
async def test_call_in_a_cancelled_scope_sends_nothing(use: Use) -> None:
    async with scripted_client() as (client, line):
        before = client.statistics()
        with trio.move_on_after(0) as scope:
            await use(client)
        assert scope.cancelled_caught
        assert client.statistics() == before
        assert is_untouched(client)
        assert line.nothing_came()


@pytest.mark.parametrize("name", ["wait_connected", "wait_closed", "aclose", "close"])
async def test_other_calls_in_a_cancelled_scope_are_cancelled(name: str) -> None:
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        with trio.move_on_after(0) as scope:
            await client.connect(nursery)
        assert scope.cancelled_caught
        assert client.state.value == "idle"
        await client.connect(nursery)
        with trio.move_on_after(0) as scope:
            await getattr(client, name)()
        assert scope.cancelled_caught
        await client.aclose()


async def cancel_after_sending(
    client: BrokerWSClient, line: ScriptedConnection, use: Use, op: str
) -> Body:
    """Make a call, wait until it is sent, and cancel it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, client)
        message = await line.receive(op)
        nursery.cancel_scope.cancel()
    return message


READS = {
    "balances": (USES["get_balances"], BALANCES),
    "estimate": (USES["estimate_swap"], ESTIMATE),
    "order_status": (USES["get_order_status"], order_status()),
}
every_read = pytest.mark.parametrize("op", READS)


@every_read
async def test_reply_to_a_cancelled_read_does_not_answer_the_next(op: str) -> None:
    use, reply = READS[op]
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        await cancel_after_sending(client, line, use, op)
        call = start(nursery, use, client)
        await wait_all_tasks_blocked()
        assert line.nothing_came()
        await line.send({"op": op, "error": "this is the first one's"})
        await line.receive(op)
        await line.send(reply)
        assert not isinstance(await call.result(), Exception)
        assert is_untouched(client)


@every_read
async def test_unanswered_read_times_out(op: str, autojump_clock: MockClock) -> None:
    use, reply = READS[op]
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        began = trio.current_time()
        first = start(nursery, use, client)
        await line.receive(op)
        second = start(nursery, use, client)
        with pytest.raises(RequestTimeoutError):
            await first.result()
        with pytest.raises(NotSentError):
            await second.result()
        assert trio.current_time() - began == pytest.approx(10)
        third = start(nursery, use, client)
        await wait_all_tasks_blocked()
        await line.send({"op": op, "error": "too late"})
        await line.receive(op)
        await line.send(reply)
        await third.result()
        assert is_untouched(client)


async def test_missing_reply_replaces_the_connection_after_the_grace(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=0)
    async with (
        open_scripted() as broker,
        broker.client(reconnect=policy) as client,
        trio.open_nursery() as nursery,
    ):
        line = await broker.line()
        events = client.events()
        await cancel_after_sending(client, line, USES["get_balances"], "balances")
        began = trio.current_time()
        call = start(nursery, client.get_balances)
        line = await broker.line()
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)
        lost = await events.receive()
        assert isinstance(lost, Disconnected)
        assert "has not arrived" in str(lost.error)
        await line.receive("balances")
        await line.send(BALANCES)
        assert await call.result()


async def test_subscription_cancelled_before_its_acknowledgement_is_unsubscribed() -> None:
    async with scripted_client() as (client, line):
        request = await cancel_after_sending(client, line, subscribe_and_close, "subscribe")
        assert client.statistics().subscriptions == 0
        await line.send(acknowledgement(request))
        await line.acknowledge("unsubscribe")
        await wait_until_idle(client)
        assert is_untouched(client)


async def test_unacknowledged_subscription_times_out(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.subscribe, "orders:o1")
        request = await line.receive("subscribe")
        with pytest.raises(RequestTimeoutError):
            await call.result()
        await line.send(acknowledgement(request))  # too late: the caller is cancelled
        await line.acknowledge("unsubscribe")
        await wait_until_idle(client)
        assert is_untouched(client)
        again = start(nursery, client.subscribe, "orders:o1")
        await line.acknowledge()
        async with await again.result():
            pass
        await line.receive("order_status")
        await line.acknowledge("unsubscribe")


@pytest.mark.parametrize("repetition", range(8))
async def test_of_two_alarms_for_one_moment_either_may_ring_first(
    repetition: int, autojump_clock: MockClock
) -> None:
    # Trio runs tasks that wake together in any order.
    async with scripted_client() as (client, line):
        with pytest.raises(RequestTimeoutError):
            await client.subscribe("orders:o1")
        await line.receive("subscribe")


async def test_subscription_without_a_slot_in_time_was_not_sent(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client(limits=Limits(max_subscriptions=1)) as (client, line):
        async with trio.open_nursery() as nursery:
            call = start(nursery, client.subscribe, "orders:o1")
            await line.acknowledge()
            old = await call.result()
            await line.receive("order_status")
        await line.send(order_status())
        await old.aclose()
        await line.receive("unsubscribe")  # never acknowledged
        with pytest.raises(NotSentError):
            await client.subscribe("orders:o2")


async def test_unacknowledged_unsubscribe_returns_in_time(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, lambda: client.subscribe("orders:o1", snapshot=False))
        await line.acknowledge()
        subscription = await call.result()
        began = trio.current_time()
        await client.unsubscribe("orders:o1")
        assert trio.current_time() - began == pytest.approx(10)
        assert [message async for message in subscription] == []
        assert client.statistics().channels == 0


async def test_hundreds_of_subscriptions_leave_nothing_behind(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
        await wait_all_tasks_blocked()
        tasks = count_tasks()
        for number in range(200):
            async with await client.subscribe(f"orders:{number}", snapshot=number % 10 == 0):
                pass
        await wait_until_idle(client)
        assert is_untouched(client)
        assert count_tasks() == tasks
        assert sandbox.connections[-1].channels == {}
        await trio.sleep(60)
        assert is_untouched(client)


CANCELLED: dict[str, Use] = {
    **USES,
    "subscribe_balances": subscribe_and_close,
    "subscribe_order": subscribe_and_close,
    "messages": lambda client: client.wait_connected(),
}


@pytest.mark.parametrize("use", CANCELLED.values(), ids=CANCELLED)
async def test_cancelled_call_leaves_nothing_behind(use: Use, autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=3) as sandbox, sandbox.client() as client:
        await wait_all_tasks_blocked()
        tasks, step, cancelled = count_tasks(), 0, True
        while cancelled:
            step += 1
            orders = len(sandbox.orders())
            with trio.CancelScope() as scope:
                instrument = CancelAfterSteps(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await use(client)
                except ServerError as error:
                    assert "not found" in error.message  # noqa: PT017 - it is no order of ours
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            cancelled = scope.cancelled_caught
            assert len(await client.get_balances()) == 10
            await wait_until_idle(client)
            assert is_untouched(client)
            assert count_tasks() == tasks
            assert len(sandbox.orders()) - orders <= 1
        assert step >= 2
        assert sandbox.connections[-1].channels == {}


async def test_cancelled_client_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async def connect_use_and_close(sandbox: Sandbox) -> None:
        async with sandbox.client() as client:
            await client.get_balances()
            await client.subscribe("balances")
            await client.aclose()

    async with open_sandbox() as sandbox:
        await wait_all_tasks_blocked()
        tasks, step, cancelled = count_tasks(), 0, True
        while cancelled:
            step += 1
            began = trio.current_time()
            with trio.CancelScope() as scope:
                instrument = CancelAfterSteps(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await connect_use_and_close(sandbox)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            cancelled = scope.cancelled_caught
            assert trio.current_time() - began <= 0.5
            await trio.sleep(30)  # the sandbox needs time to close such connections
            assert count_tasks() == tasks
        assert step > 6


async def test_client_cancelled_in_an_outage_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(retry_first=True)

    async def an_outage(sandbox: Sandbox) -> None:
        sandbox.faults.refuse_connections(times=1)
        async with sandbox.client(reconnect=policy) as client:
            async with await client.subscribe("balances") as updates:
                await updates.receive()
                sandbox.drop_connections()
                events = client.events()
                await events.receive()
                await client.get_balances()
                async with await client.subscribe("orders:o1"):
                    await client.wait_connected()
                    await updates.receive()
                await client.unsubscribe("balances")
            await client.aclose()

    async with open_sandbox() as sandbox:
        await wait_all_tasks_blocked()
        tasks, step, cancelled = count_tasks(), 0, True
        while cancelled:
            step += 3  # Trio shuffles the tasks, so that each run of this meets other steps
            sandbox.faults.clear()
            with trio.CancelScope() as scope:
                instrument = CancelAfterSteps(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await an_outage(sandbox)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            cancelled = scope.cancelled_caught
            await trio.sleep(30)  # the sandbox needs time to close such connections
            assert count_tasks() == tasks
            assert all(one.closed_at is not None for one in sandbox.connections)
        assert step > 12


# --- Swaps -----------------------------------------------------------------------------------


async def test_every_swap_has_its_own_client_order_id() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        ids = []
        for number in range(3):
            call = start(nursery, client.do_swap, "1", "ETH", "USDT")
            ids.append((await line.receive("swap"))["data"]["clientOrderId"])
            await line.send({"op": "swap", "data": {"orderId": f"o{number}"}})
            receipt = await call.result()
            assert receipt.client_order_id == ids[-1]
            assert receipt.status is None
        assert len(set(ids)) == 3
        assert len({*ids, new_client_order_id()}) == 4
        call = start(
            nursery, lambda: client.do_swap("1", "ETH", "USDT", client_order_id="mine", account="a")
        )
        assert (await line.receive("swap"))["data"]["clientOrderId"] == "mine"
        await line.send({"op": "swap", "data": {"orderId": "o9"}})
        assert (await call.result()).client_order_id == "mine"


async def test_swap_is_alone_in_flight(autojump_clock: MockClock) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        balances = start(nursery, client.get_balances)
        await line.receive("balances")
        swaps = [start(nursery, client.do_swap, "1", "ETH", "USDT") for _ in range(2)]
        await wait_all_tasks_blocked()
        late = start(nursery, client.estimate_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        assert line.nothing_came()
        await line.send(BALANCES)
        await balances.result()
        for number in range(2):
            await line.receive("swap")
            await wait_all_tasks_blocked()
            assert line.nothing_came()
            await line.send({"op": "swap", "data": {"orderId": f"o{number}"}})
        assert {(await swap.result()).order_id for swap in swaps} == {"o0", "o1"}
        await line.receive("estimate")
        await line.send(ESTIMATE)
        await late.result()


async def test_swap_waits_a_quarter_of_a_second_for_other_replies(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        balances = start(nursery, client.get_balances)
        await line.receive("balances")
        began = trio.current_time()
        swap = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await line.receive("swap")
        assert trio.current_time() - began == pytest.approx(0.25)
        await line.send(SWAPPED, BALANCES)
        assert (await swap.result()).order_id == "o1"
        await balances.result()


async def test_refused_swap_raises_the_refusal(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with pytest.raises(ServerError, match="Insufficient balance"):
            await client.do_swap("1000000", "ETH", "USDT")
        assert sandbox.orders() == ()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ({"op": "swap", "error": "No route"}, ServerError),
        ({"op": "swap", "error": "Invalid signature"}, InvalidSignatureError),
        ({"error": "Insufficient balance"}, InsufficientBalanceError),
        ({"error": {"code": "INVALID_AMOUNT", "message": "no"}}, InvalidAmountError),
        ({"error": "Invalid signature"}, SwapOutcomeUnknownError),
        ({"op": "swap", "error": "No"}, SwapOutcomeUnknownError),
        ({"error": "Something broke"}, SwapOutcomeUnknownError),
        ({"op": "swap", "error": "Nonce has already been used"}, SwapOutcomeUnknownError),
        ({"op": "swap", "data": {}}, SwapOutcomeUnknownError),
    ],
)
async def test_swap_is_refused_only_if_that_is_certain(
    reply: Body, error: type[Exception], autojump_clock: MockClock
) -> None:
    async with (
        scripted_client(resolve_timeout=0.1) as (client, line),
        trio.open_nursery() as nursery,
    ):
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        client_order_id = (await line.receive("swap"))["data"]["clientOrderId"]
        await line.send(reply)
        with pytest.raises(error) as caught:
            await call.result()
        if isinstance(caught.value, SwapOutcomeUnknownError):
            assert caught.value.client_order_id == client_order_id
            lookup = await line.receive("order_status")
            assert lookup["data"] == {"id": client_order_id}
            assert not isinstance(caught.value, NonceReusedError)
        balances = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        await balances.result()


async def test_unanswered_swap_is_unknown(autojump_clock: MockClock) -> None:
    async with (
        scripted_client(resolve_timeout=0.1) as (client, line),
        trio.open_nursery() as nursery,
    ):
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        client_order_id = (await line.receive("swap"))["data"]["clientOrderId"]
        with pytest.raises(SwapOutcomeUnknownError) as caught:
            await call.result()
        assert caught.value.client_order_id == client_order_id
        assert isinstance(caught.value.__cause__, RequestTimeoutError)
        await line.receive("order_status")
        # Its reply doesn't resolve the next swap.
        second = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        await line.send(SWAPPED)
        await line.receive("swap")
        await line.send(SWAPPED, {"op": "swap", "data": {"orderId": "o2"}})
        assert (await second.result()).order_id == "o2"


async def test_swap_is_unknown_after_a_lost_connection() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        message = await line.receive("swap")
        waits = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        line.hang_up()
        with pytest.raises(SwapOutcomeUnknownError) as caught:
            await call.result()
        assert caught.value.client_order_id == message["data"]["clientOrderId"]
        assert isinstance(caught.value.__cause__, ConnectionLostError)
        with pytest.raises(NotConnectedError):
            await waits.result()


async def test_cancelled_swap_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_client() as (client, line):
        message = await cancel_after_sending(client, line, USES["do_swap"], "swap")
    assert message["data"]["clientOrderId"] in caplog.text
    assert "outcome unknown" in caplog.text


async def test_unsent_swap_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted_client() as (client, line):
        async with trio.open_nursery() as nursery:
            balances = start(nursery, client.get_balances)
            await line.receive("balances")
            swap = start(nursery, client.do_swap, "1", "ETH", "USDT")
            await wait_all_tasks_blocked()
            swap.scope.cancel()
            await line.send(BALANCES)
            await balances.result()
        assert line.nothing_came()
    assert "outcome unknown" not in caplog.text


async def test_swap_without_a_connection_is_not_queued() -> None:
    async with open_scripted(auth=None) as broker, trio.open_nursery() as nursery:
        client = broker.client()
        connecting = start(nursery, client.connect, nursery)
        line = await broker.line()
        await wait_all_tasks_blocked()
        with pytest.raises(NotConnectedError):
            await client.do_swap("1", "ETH", "USDT")
        read = start(nursery, client.get_balances)
        await wait_all_tasks_blocked()
        await line.send({"op": "auth", "data": {"status": "authenticated"}})
        await connecting.result()
        await line.receive("balances")  # reads wait for the connection
        await line.send(BALANCES)
        await read.result()
        assert line.nothing_came()
        await client.aclose()


# --- Pacing ----------------------------------------------------------------------------------


async def test_client_never_exceeds_the_rate_limit(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client(request_timeout=60) as client:
        async with trio.open_nursery() as nursery:
            calls = [start(nursery, client.get_order_status, f"o{n}") for n in range(350)]
        for call in calls:
            with pytest.raises(ServerError, match="Order not found"):
                await call.result()
        times = [received.at for received in sandbox.connections[-1].received]
        assert len(times) > 350
        assert all(later - earlier > 1 for earlier, later in zip(times, times[100:], strict=False))


async def test_request_that_waits_too_long_was_not_sent(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(messages_per_second=1)
    async with (
        open_sandbox() as sandbox,
        sandbox.client(limits=limits, request_timeout=3) as client,
    ):
        async with trio.open_nursery() as nursery:
            calls = [start(nursery, client.get_order_status, f"o{n}") for n in range(5)]
        errors: list[type[Exception]] = []
        for call in calls:
            with pytest.raises((ServerError, NotSentError)) as caught:
                await call.result()
            errors.append(type(caught.value))
        assert (errors.count(OrderNotFoundError), errors.count(NotSentError)) == (2, 3)


# --- Streams ---------------------------------------------------------------------------------


async def test_subscriptions_of_a_channel_share_one_at_the_broker(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        first = await client.subscribe("balances")
        async with await client.subscribe("balances") as second:
            await client.do_swap("1", "ETH", "USDT")
            for subscription in (first, second):
                origins = {(await subscription.receive()).origin for _ in range(2)}
                assert "push" in origins
        ops = [received.op for received in sandbox.connections[-1].received]
        assert ops.count("subscribe") == 1
        await first.aclose()
        await wait_until_idle(client)
        assert sandbox.connections[-1].channels == {}


async def test_unsubscribe_ends_the_iteration_and_the_channel(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        first = await client.subscribe("balances", snapshot=False)
        second = await client.subscribe("balances", snapshot=False)
        await client.unsubscribe("balances")
        assert sandbox.connections[-1].channels == {}
        assert [message async for message in first] == []
        assert [message async for message in second] == []
        sent = client.statistics().messages_sent
        await client.unsubscribe("balances")
        assert client.statistics().messages_sent == sent


async def test_unsubscribe_ends_a_pending_subscription() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        subscribing = start(nursery, client.subscribe, "orders:o1")
        request = await line.receive("subscribe")
        unsubscribing = start(nursery, client.unsubscribe, "orders:o1")
        assert [message async for message in await subscribing.result()] == []
        await line.send(acknowledgement(request))
        await line.acknowledge("unsubscribe")
        await unsubscribing.result()
        assert is_untouched(client)


async def test_error_in_a_channel_is_raised_and_the_stream_goes_on() -> None:
    async with (
        open_sandbox() as sandbox,
        sandbox.client() as client,
        await client.subscribe("orders:o1", snapshot=False) as progress,
    ):
        sandbox.push('{"ch":"orders:o1","error":"try later"}')
        with pytest.raises(ChannelError, match="try later"):
            await progress.receive()
        sandbox.push('{"ch":"orders:o1","data":{"status":"FILLED"}}')
        assert (await progress.receive()).data.status is OrderStatus.FILLED


async def test_unknown_order_has_no_snapshot_but_pushes() -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with client.events() as events:
            async with await client.subscribe_order("o1") as progress:
                event = await events.receive()
                assert isinstance(event, SnapshotUnavailable)
                assert event.channel == "orders:o1"
                sandbox.push('{"ch":"orders:o1","data":{"status":"FILLED"}}')
                assert (await progress.receive()).origin == "push"


async def test_snapshot_overtaken_by_a_push_is_requested_again() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.subscribe_balances)
        await line.acknowledge()
        await line.receive("balances")
        await line.send({"ch": "balances", "data": [{"asset": "USDT", "total": "7"}]}, BALANCES)
        await line.receive("balances")
        await line.send({**BALANCES, "data": {"balances": [{"asset": "USDT", "total": "7"}]}})
        async with await call.result() as updates:
            messages = [await updates.receive() for _ in range(2)]
        assert [message.origin for message in messages] == ["push", "snapshot"]
        assert {message.data[0].total for message in messages} == {7}
        await line.acknowledge("unsubscribe")


async def test_slow_consumer_delays_no_other_and_converges(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, lambda: client.subscribe("balances", buffer_size=2, snapshot=False))
        await line.acknowledge()
        async with await call.result() as updates:
            pushes: list[Body] = [
                {"ch": "balances", "data": [{"asset": f"A{n}", "total": "1"}]} for n in range(50)
            ]
            await line.send(*pushes)
            balances = start(nursery, client.get_balances)
            await line.receive("balances")
            await line.send(BALANCES)
            await balances.result()
            first, second = await updates.receive(), await updates.receive()
            assert first.gap is not None
            assert (updates.dropped, first.gap.dropped, second.gap) == (48, 48, None)
            await line.receive("balances")
            await line.send(BALANCES)
            assert (await updates.receive()).origin == "snapshot"
        await line.acknowledge("unsubscribe")


async def test_older_states_of_an_order_are_dropped() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, lambda: client.subscribe("orders:o1", snapshot=False))
        await line.acknowledge()
        async with await call.result() as progress:
            for status, at in (("PROCESSING", 2), ("PENDING", 1), ("FILLED", 3)):
                await line.send({"ch": "orders:o1", "data": order("o1", status, at)})
            states = [(await progress.receive()).data.status for _ in range(2)]
            assert states == [OrderStatus.PROCESSING, OrderStatus.FILLED]
        await line.acknowledge("unsubscribe")


# --- Attributes and statistics ---------------------------------------------------------------


def test_client_can_be_made_before_trio_runs() -> None:
    client = BrokerWSClient("key", "secret", "wss://broker.example/ws")
    assert client.state.value == "idle"
    assert client.latency is None

    async def main() -> None:
        async with open_scripted() as broker:
            early.append(broker.client())
            async with early[0] as connected:
                assert connected.is_connected()

    early: list[BrokerWSClient] = []
    trio.run(main)


def test_from_env_reads_keys_and_url() -> None:
    environ = {
        "BROKER_API_KEY": "key",
        "BROKER_SECRET_KEY": "secret",
        "BROKER_BASE_URL": "https://broker.example",
    }
    client = BrokerWSClient.from_env(environ, name="desk-of-the-environment")
    assert "'desk-of-the-environment' wss://broker.example/ws/v1/stream" in repr(client)
    with pytest.raises(ConfigurationError, match="BROKER_API_KEY"):
        BrokerWSClient.from_env({})


async def test_statistics_count_messages_and_subscriptions(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        start_of_all = client.statistics()
        assert (start_of_all.messages_sent, start_of_all.messages_received) == (1, 1)
        await client.get_balances()
        await client.subscribe("balances", snapshot=False)
        await client.subscribe("balances", snapshot=False)
        sandbox.push('{"op":"something"}')
        await wait_all_tasks_blocked()
        statistics = client.statistics()
        assert attrs.asdict(statistics) == {
            "messages_sent": 3,
            "messages_received": 4,
            "unexpected_messages": 1,
            "requests_waiting": 0,
            "requests_in_flight": 0,
            "channels": 1,
            "subscriptions": 2,
            "tracked_orders": 0,
        }


async def test_messages_returns_every_message_unchanged() -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        with client.messages() as messages:
            sandbox.push('{"ch" : "nobody"}')
            assert await messages.receive() == '{"ch" : "nobody"}'
        late = client.messages()
    assert [message async for message in late] == []


def test_each_client_has_its_own_logger() -> None:
    one, other = (BrokerWSClient("key", "secret", "wss://broker.example/ws") for _ in range(2))
    one.logger.setLevel(logging.DEBUG)
    other.logger.setLevel(logging.ERROR)
    assert one.logger.isEnabledFor(logging.DEBUG)
    assert not other.logger.isEnabledFor(logging.WARNING)
    assert one.logger.name.startswith("trio_broker.")
    assert one.logger.name != other.logger.name
    assert one.logger.name not in logging.root.manager.loggerDict


def test_client_logger_inherits_the_level_of_the_library() -> None:
    root, client = logging.getLogger("trio_broker"), BrokerWSClient("k", "s", "wss://b.example/ws")
    before = root.level
    try:
        for level in (logging.ERROR, logging.DEBUG):
            root.setLevel(level)
            assert client.logger.isEnabledFor(logging.WARNING) == (level == logging.DEBUG)
        logging.disable(logging.CRITICAL)
        assert not client.logger.isEnabledFor(logging.CRITICAL)
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(before)


async def test_no_secret_is_in_any_log_repr_or_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[Any] = []
    async with open_scripted() as broker:
        client = broker.client()
        client.logger.setLevel(logging.DEBUG)
        events = client.events()
        async with client, trio.open_nursery() as nursery:
            line = await broker.line()
            shown += [client, client.statistics(), client.events(), client.logger]
            call = start(nursery, client.do_swap, "1", "ETH", "USDT")
            swap = await line.receive("swap")
            line.hang_up()
            with pytest.raises(SwapOutcomeUnknownError) as unknown:
                await call.result()
            with pytest.raises(ConnectionLostError) as lost:
                await client.wait_closed()
        shown += [lost.value, unknown.value, client, client._settings, client._engine]
        shown += [event async for event in events]
    text = caplog.text + "".join(f"{one!r} {one}" for one in shown)
    assert "connected" in caplog.text
    signatures = [line.auth["sig"], swap["sig"]]
    assert all(re.fullmatch("[0-9a-f]{64}", signature) for signature in signatures)
    for secret in (API_KEY, SECRET_KEY, *signatures):
        assert secret not in text


async def test_timestamps_use_the_given_clock_and_nonces_never_repeat() -> None:
    async with scripted_client(clock=lambda: 1_700_000_000.5) as (client, line):
        nonces = [line.auth["nonce"]]
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                call = start(nursery, client.get_balances)
                message = await line.receive("balances")
                await line.send(BALANCES)
                await call.result()
                assert message["ts"] == 1_700_000_000_500
                nonces.append(message["nonce"])
        assert line.auth["ts"] == 1_700_000_000_500
        assert len(set(nonces)) == 4


async def test_before_and_after_every_call_fails_at_once() -> None:
    async with open_scripted() as broker:
        client = broker.client()
        for use in (*USES.values(), wait_connected):
            with pytest.raises(NotConnectedError, match="async with"):
                await use(client)
        async with client:
            pass
        for use in (*USES.values(), wait_connected):
            with pytest.raises(ClientClosedError):
                await use(client)
        with pytest.raises(trio.ClosedResourceError):
            await client.get_balances()
        await client.wait_closed()


async def test_close_ends_pending_calls_at_once() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        sent = start(nursery, client.get_balances)
        await line.receive("balances")
        waits = start(nursery, client.get_balances)
        subscribing = start(nursery, client.subscribe, "orders:o1")
        await line.receive("subscribe")
        await client.aclose()
        for call in (sent, subscribing):
            with pytest.raises(ConnectionLostError, match="closed"):
                await call.result()
        with pytest.raises(ClientClosedError):
            await waits.result()


async def test_error_shows_no_key_that_the_broker_repeats(autojump_clock: MockClock) -> None:
    text_with_keys = f"no {API_KEY}, no {SECRET_KEY}"
    policy = ReconnectPolicy(max_attempts=0)
    async with (
        scripted_client(reconnect=policy) as (client, line),
        trio.open_nursery() as nursery,
    ):
        call = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send({"error": f"Unknown operation: {text_with_keys}"})
        with pytest.raises(UnknownOperationError) as refused:
            await call.result()
        opening = start(nursery, partial(client.subscribe, "news", snapshot=False))
        await line.acknowledge()
        news = await opening.result()
        await line.send({"ch": "news", "error": text_with_keys})
        with pytest.raises(ChannelError) as pushed:
            await news.receive()
        await line.send_bytes(close_frame(1008, text_with_keys))
        with pytest.raises(SubscriptionBrokenError) as broken:
            await news.receive()
    erased = "no <removed>, no <removed>"
    assert refused.value.message == f"Unknown operation: {erased}"
    assert pushed.value.message == erased
    assert erased in str(broken.value.__cause__)
    assert isinstance(broken.value.__cause__, ConnectionLostError)
    assert broken.value.__cause__.code == 1008


# --- A buffer that overflows before the acknowledgement --------------------------------------


@pytest.mark.parametrize("channel", ["balances", "orders:o1", "other"])
@pytest.mark.parametrize("is_acknowledged", [True, False])
async def test_overflow_before_the_acknowledgement_is_raised_at_once(
    channel: str, *, is_acknowledged: bool, autojump_clock: MockClock
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:

        async def subscribe() -> Subscription[Any]:
            return await client.subscribe(channel, buffer_size=2, overflow="error", snapshot=False)

        call = start(nursery, subscribe)
        request = await line.receive("subscribe")
        data: Any = order()
        if channel == "balances":
            data = BALANCES["data"]["balances"]
        pushes = [{"ch": channel, "data": data}] * 3
        began = trio.current_time()
        await line.send(*pushes, *([acknowledgement(request)] if is_acknowledged else []))
        with pytest.raises(SlowConsumerError, match=channel):
            await call.result()
        assert trio.current_time() - began < 1
        assert client.statistics().subscriptions == 0


async def test_overflow_after_the_acknowledgement_is_raised_after_the_buffer() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:

        async def subscribe() -> Subscription[Any]:
            return await client.subscribe(
                "orders:o1", buffer_size=2, overflow="error", snapshot=False
            )

        call = start(nursery, subscribe)
        request = await line.receive("subscribe")
        statuses = ["PENDING", "PROCESSING", "FILLED"]
        pushes = [{"ch": "orders:o1", "data": order(status=status)} for status in statuses]
        await line.send(acknowledgement(request), *pushes)
        updates = await call.result()
        await wait_all_tasks_blocked()
        assert [(await updates.receive()).data.status for _ in range(2)] == statuses[:2]
        with pytest.raises(SlowConsumerError, match="orders:o1"):
            await updates.receive()
        assert client.statistics().subscriptions == 0


async def test_overflow_while_waiting_for_a_slot_is_raised_at_once(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        first = start(nursery, lambda: client.subscribe("orders:o1", snapshot=False))
        await line.acknowledge()
        await (await first.result()).aclose()
        await line.receive("unsubscribe")

        async def subscribe() -> Subscription[Any]:
            return await client.subscribe(
                "orders:o1", buffer_size=1, overflow="error", snapshot=False
            )

        call = start(nursery, subscribe)
        await wait_all_tasks_blocked()
        await line.send(
            {"op": "unsubscribe", "ch": "orders:o1", "data": {"status": "unsubscribed"}}
        )
        await line.receive("subscribe")
        began = trio.current_time()
        states = [order(at=number) for number in range(1, 4)]
        await line.send(*[{"ch": "orders:o1", "data": state} for state in states])
        with pytest.raises(SlowConsumerError):
            await call.result()
        assert trio.current_time() - began < 1
