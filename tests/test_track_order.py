"""`track_order` over real sockets: to the end, whatever happens, within the broker's limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import (
    NEVER,
    PATIENCE,
    count_tasks,
    open_scripted,
    order,
    order_status,
    scripted_client,
    start,
)
from tests.test_client import CancelAfterSteps, is_untouched, settled
from trio_broker import (
    BrokerWSClient,
    ClientClosedError,
    ConnectionLostError,
    Disconnected,
    Limits,
    Message,
    MessageTooLargeError,
    NotConnectedError,
    Order,
    OrderStatus,
    ReconnectPolicy,
    SnapshotUnavailable,
    SubscriptionBrokenError,
    new_client_order_id,
)
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.sandbox.broker import Received

LONG = 3600.0

# Lives that last, of which nothing is over before a test has looked.
SLOW: dict[str, Any] = {"pending_delay": (10.0, 20.0), "processing_delay": (10.0, 20.0)}


async def statuses(client: BrokerWSClient, order_id: str, **options: Any) -> list[str]:
    """What tracking an order brings, to its end."""
    async with client.track_order(order_id, **options) as progress:
        return [str(message.data.status) async for message in progress]


async def traded(client: BrokerWSClient, **options: Any) -> str:
    receipt = await client.do_swap("0.01", "ETH", "USDT", **options)
    return receipt.order_id


def received(sandbox: Sandbox) -> list[Received]:
    return list(sandbox.connections[-1].received)


# --- To the end ------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["filled", "filled_in_parts", "failed", "cancelled"])
async def test_an_order_is_tracked_to_its_end_and_nothing_is_left(
    outcome: str, autojump_clock: MockClock
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
            sandbox.next_outcome(outcome)
            order_id = await traded(client)
            told = await statuses(client, order_id)
            assert told[0] == "PENDING"
            assert told[-1] == sandbox.order(order_id).status
            assert OrderStatus(told[-1]).is_final
            await settled(client)
            assert is_untouched(client)
            assert sandbox.connections[-1].channels == {}
            assert await statuses(client, order_id) == told[-1:]


async def test_a_partial_fill_can_be_the_end(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled_in_parts")
            order_id = await traded(client)
            told = await statuses(client, order_id, stop_at_partial=True)
            assert told == ["PENDING", "PROCESSING", "PARTIAL"]


async def test_the_statistics_count_what_is_tracked_apart_from_subscriptions(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            order_id = await traded(client)
            async with client.track_order(order_id), client.track_order(order_id):
                statistics = client.statistics()
                assert statistics.tracked_orders == 2
                assert statistics.channels == statistics.subscriptions == 0
                async with await client.subscribe_order(order_id):
                    statistics = client.statistics()
                    assert statistics.channels == statistics.subscriptions == 1
            assert client.statistics().tracked_orders == 0


@pytest.mark.parametrize("made_here", [True, False])
async def test_a_client_order_id_does_as_well(
    made_here: bool,
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
            client_order_id = new_client_order_id() if made_here else "mine-1"
            sandbox.next_outcome("filled")
            async with trio.open_nursery() as nursery:
                # Before the broker knows of it.
                told = start(nursery, statuses, client, client_order_id)
                await trio.sleep(2)
                order_id = await traded(client, client_order_id=client_order_id)
                assert (await told.result())[-1] == "FILLED"
            asked_for = {one.channel for one in received(sandbox) if one.op == "subscribe"}
            own = f"orders:{order_id}"
            assert asked_for <= {own, "orders:mine-1"}
            await settled(client)
            assert is_untouched(client)


async def test_the_streams_channel_is_that_of_the_orders_own_id(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            order_id = await traded(client, client_order_id="mine-1")
            async with client.track_order("mine-1") as progress:
                message = await progress.receive()
                assert message.channel == progress.channel == f"orders:{order_id}"
                await wait_all_tasks_blocked()
                await settled(client)
                assert list(sandbox.connections[-1].channels) == [f"orders:{order_id}"]


async def test_an_order_that_the_broker_does_not_know_yet_is_waited_for() -> None:
    async with scripted_client() as (client, line):
        with trio.fail_after(PATIENCE), client.events() as events:
            async with client.track_order("o1") as progress:
                await line.acknowledge()
                await line.receive("order_status")
                await line.send({"op": "order_status", "error": "Order not found"})
                assert isinstance(await events.receive(), SnapshotUnavailable)
                await line.send({"ch": "orders:o1", "data": order(status="FILLED")})
                assert [message.data.status async for message in progress] == ["FILLED"]


async def test_an_error_in_its_channel_is_told_and_not_raised() -> None:
    async with scripted_client() as (client, line):
        with trio.fail_after(PATIENCE):
            async with client.track_order("o1") as progress:
                await line.acknowledge()
                await line.receive("order_status")
                await line.send(order_status(), {"ch": "orders:o1", "error": "try later"})
                await line.send({"ch": "orders:o1", "data": order(status="FILLED", at=2)})
                assert [message.data.status async for message in progress] == ["PENDING", "FILLED"]
            assert client.statistics().odd_messages == 1


# --- With others -----------------------------------------------------------------------------


async def test_at_the_limit_a_subscription_takes_a_tracked_orders_place(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_subscriptions=2)
    with trio.fail_after(LONG):
        async with (
            open_sandbox(max_subscriptions=2, **SLOW) as sandbox,
            sandbox.client(limits=limits) as client,
            trio.open_nursery() as nursery,
        ):
            order_ids = [await traded(client) for _ in range(3)]
            calls = [start(nursery, statuses, client, order_id) for order_id in order_ids]
            await wait_all_tasks_blocked(0.01)
            assert len(sandbox.connections[-1].channels) == 2
            async with await client.subscribe_balances() as updates:
                await updates.receive()
                assert "balances" in sandbox.connections[-1].channels
                async with await client.subscribe("orders:other", snapshot=False):
                    assert set(sandbox.connections[-1].channels) == {"balances", "orders:other"}
                    for call in calls:
                        assert OrderStatus((await call.result())[-1]).is_final
            await settled(client)
            assert client.statistics().odd_messages == 0
            assert is_untouched(client)


async def test_unsubscribing_leaves_an_order_tracked(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await traded(client)
            async with client.track_order(order_id) as progress:
                subscription = await client.subscribe_order(order_id)
                await client.unsubscribe(f"orders:{order_id}")
                assert [message async for message in subscription][1:] == []
                assert list(sandbox.connections[-1].channels) == [f"orders:{order_id}"]
                assert (await last(progress)).status == "FILLED"


async def last(progress: trio.abc.ReceiveChannel[Message[Order]]) -> Order:
    async for message in progress:
        order = message.data
    return order


async def test_a_thousand_orders_are_tracked_within_the_limits_and_a_swap_passes_them(
    autojump_clock: MockClock,
) -> None:
    ended: dict[str, str] = {}

    async def track(client: BrokerWSClient, order_id: str) -> None:
        ended[order_id] = (await statuses(client, order_id))[-1]

    rules: dict[str, Any] = {
        "pending_delay": (60.0, 90.0),
        "processing_delay": (1.0, 60.0),
        "history_size": 100_000,
    }
    with trio.fail_after(LONG):
        async with (
            open_sandbox(seed=1, **rules) as sandbox,
            sandbox.client() as client,
            trio.open_nursery() as nursery,
        ):
            order_ids = [await traded(client) for _ in range(1000)]
            for order_id in order_ids:
                nursery.start_soon(track, client, order_id)
            for _ in range(20):
                await trio.sleep(1.37)
                asked_at = trio.current_time()
                await client.do_swap("0.01", "ETH", "USDT")
                swap = next(one for one in reversed(received(sandbox)) if one.op == "swap")
                # It is alone in flight, and isn't to wait for the window as well.
                assert swap.at - asked_at <= 0.25
            assert len(sandbox.connections[-1].channels) == 100
    assert ended == {order_id: str(sandbox.order(order_id).status) for order_id in order_ids}
    assert all(OrderStatus(status).is_final for status in ended.values())
    check_limits(received(sandbox))
    assert client.statistics().odd_messages == 0


def check_limits(messages: list[Received]) -> None:
    """No second has more than a hundred messages, and no moment more than a hundred channels."""
    for earlier, later in zip(messages, messages[100:], strict=False):
        assert later.at - earlier.at >= 1
    counts = {"subscribe": 1, "unsubscribe": -1}
    channels = list(itertools.accumulate(counts.get(one.op or "", 0) for one in messages))
    assert max(channels) == 100
    assert channels[-1] >= 0


# --- Faults ----------------------------------------------------------------------------------


async def test_over_an_outage_it_goes_on_and_says_so(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await traded(client)
            async with client.track_order(order_id) as progress:
                assert (await progress.receive()).gap is None
                sandbox.drop_connections()
                messages = [message async for message in progress]
            assert messages[0].gap is not None
            assert messages[0].data.status == "PENDING"  # no news, but for the gap
            assert messages[-1].data.status == "FILLED"
            assert [message.gap for message in messages[1:]] == [None] * len(messages[1:])


async def test_entered_during_an_outage_it_goes_on_with_the_next_connection(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox() as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await traded(client)
            with client.events() as events:
                sandbox.faults.kill()
                assert isinstance(await events.receive(), Disconnected)
            async with client.track_order(order_id) as progress:
                await sandbox.faults.revive()
                messages = [message async for message in progress]
            assert [message.data.status for message in messages] == ["FILLED"]
            assert messages[0].gap is None


async def test_a_channel_that_the_broker_refuses_is_asked_about(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await traded(client)
            with sandbox.faults.refuse_channel("orders:*"):
                assert (await statuses(client, order_id))[-1] == "FILLED"


async def test_the_interval_is_the_users(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client(poll_interval=3.0) as client:
            order_id = await traded(client)
            asked_from = len(received(sandbox))
            with sandbox.faults.stop_pushing():
                async with client.track_order(order_id):
                    await trio.sleep(10)
            asked = [one.at for one in received(sandbox)[asked_from:] if one.op == "order_status"]
            assert [later - earlier for earlier, later in itertools.pairwise(asked)] == (
                pytest.approx([3.0] * 3)
            )


# --- Endings ---------------------------------------------------------------------------------


async def test_closed_by_its_owner_it_is_closed(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            async with client.track_order(await traded(client)) as progress:
                await progress.receive()
                await progress.aclose()
                assert client.statistics().tracked_orders == 0
                with pytest.raises(trio.ClosedResourceError):
                    await progress.receive()
            await settled(client)
            assert is_untouched(client)


async def test_the_block_left_its_clones_end(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            async with client.track_order(await traded(client)) as progress:
                clone = progress.clone()
            assert client.statistics().tracked_orders == 0
            assert len([message async for message in clone]) <= 1
            await settled(client)
            assert is_untouched(client)


async def test_with_the_client_the_iteration_ends_after_what_is_buffered() -> None:
    async with scripted_client() as (client, line):
        with trio.fail_after(PATIENCE):
            async with client.track_order("o1") as progress:
                await line.acknowledge()
                await line.send({"ch": "orders:o1", "data": order()})
                while not progress.statistics().current_buffer_used:
                    await wait_all_tasks_blocked()
                await client.aclose()
                assert client.statistics().tracked_orders == 0
                assert client._supervisor.tracking.next_deadline == math.inf
                assert [message.data.status async for message in progress] == ["PENDING"]


async def test_with_the_connection_failed_for_good_it_breaks_from_the_cause() -> None:
    async with scripted_client(reconnect=NEVER) as (client, line):
        with trio.fail_after(PATIENCE):
            async with client.track_order("o1") as progress:
                await line.acknowledge()
                await line.send({"ch": "orders:o1", "data": order()})
                while not progress.statistics().current_buffer_used:
                    await wait_all_tasks_blocked()
                line.hang_up()
                assert (await progress.receive()).data.status == "PENDING"
                with pytest.raises(SubscriptionBrokenError) as caught:
                    await progress.receive()
                assert isinstance(caught.value.__cause__, ConnectionLostError)


async def test_before_after_and_with_wrong_arguments_it_is_refused_at_once() -> None:
    async with open_scripted() as broker:
        client = broker.client()
        with pytest.raises(NotConnectedError, match="async with"):
            await statuses(client, "o1")
        async with client:
            wrong: Any
            for wrong, kind in ((7, TypeError), ("", ValueError), ("o<1", ValueError)):
                with pytest.raises(kind, match="order_id"):
                    client.track_order(wrong)
            for wrong, kind in ((0, ValueError), (1.5, TypeError)):
                with pytest.raises(kind, match="buffer_size"):
                    client.track_order("o1", buffer_size=wrong)
            with pytest.raises(MessageTooLargeError):
                client.track_order("o" * 70_000)
            tracked = client.track_order("o1")
            async with tracked:
                with pytest.raises(RuntimeError, match="once"):
                    await tracked.__aenter__()
        with pytest.raises(ClientClosedError):
            await statuses(client, "o1")


async def test_once_the_connection_has_failed_it_is_refused_from_the_cause() -> None:
    async with scripted_client(reconnect=NEVER) as (client, line):
        line.hang_up()
        with pytest.raises(ConnectionLostError):
            await client.wait_closed()
        with pytest.raises(NotConnectedError) as caught:
            await statuses(client, "o1")
        assert isinstance(caught.value.__cause__, ConnectionLostError)


# --- Cancelled -------------------------------------------------------------------------------


async def enter_and_leave(client: BrokerWSClient, order_id: str) -> None:
    async with client.track_order(order_id):
        pass


async def first_state(client: BrokerWSClient, order_id: str) -> None:
    async with client.track_order(order_id) as progress:
        await progress.receive()


@pytest.mark.parametrize("use", [enter_and_leave, first_state, statuses])
async def test_cancelled_at_any_checkpoint_nothing_is_left_behind(
    use: Callable[[BrokerWSClient, str], Awaitable[object]], autojump_clock: MockClock
) -> None:
    many = 100_000  # or the limit would be met, as no time passes
    async with (
        open_sandbox(seed=3, messages_per_second=many) as sandbox,
        sandbox.client(limits=Limits(messages_per_second=many)) as client,
    ):
        await wait_all_tasks_blocked()
        tasks, step, cancelled = count_tasks(), 0, True
        while cancelled:
            step += 1
            client_order_id = f"mine-{step}"
            order_id = await traded(client, client_order_id=client_order_id)
            with trio.CancelScope() as scope:
                instrument = CancelAfterSteps(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await use(client, client_order_id if step % 2 else order_id)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            cancelled = scope.cancelled_caught
            await settled(client)
            assert is_untouched(client)
            assert client._supervisor.tracking.next_deadline == math.inf
            assert count_tasks() == tasks
        assert step >= 2
        assert sandbox.connections[-1].channels == {}


async def test_without_any_time_nothing_is_sent_and_nothing_is_acquired() -> None:
    async with scripted_client() as (client, line):
        entered = False
        with trio.move_on_after(0) as scope:
            async with client.track_order("o1"):
                entered = True
        assert scope.cancelled_caught
        assert not entered
        assert is_untouched(client)
        assert line.nothing_came()


async def test_cancelled_in_an_outage_nothing_is_asked_for_afterwards(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=None, max_delay=1.0)
    with trio.fail_after(LONG):
        async with open_sandbox() as sandbox, sandbox.client(reconnect=policy) as client:
            sandbox.faults.kill()
            with trio.move_on_after(5):
                await statuses(client, "o1")
            await sandbox.faults.revive()
            await client.wait_connected()
            await trio.sleep(60)
            assert is_untouched(client)
            assert [one.op for one in received(sandbox)] == ["auth"]
