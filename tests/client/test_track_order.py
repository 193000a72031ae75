"""`track_order` over real sockets: to the final state, within the broker's limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.client.test_client import CancelAfterSteps, is_untouched, wait_until_idle
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
from tests.swaps.harness import intent
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
    OrderNotFoundError,
    OrderStatus,
    ReconnectPolicy,
    SnapshotUnavailable,
    SubscriptionBrokenError,
    SwapJournal,
    SwapOutcome,
    new_client_order_id,
)
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.sandbox.broker import Received

LONG = 3600.0

# Orders that take long, so that a test can observe every state.
SLOW: dict[str, Any] = {"pending_delay": (10.0, 20.0), "processing_delay": (10.0, 20.0)}


async def statuses(client: BrokerWSClient, order_id: str, **options: Any) -> list[str]:
    """Track an order to its end, and return its statuses."""
    async with client.track_order(order_id, **options) as progress:
        return [str(message.data.status) async for message in progress]


async def make_order(client: BrokerWSClient, **options: Any) -> str:
    receipt = await client.do_swap("0.01", "ETH", "USDT", **options)
    return receipt.order_id


def received(sandbox: Sandbox) -> list[Received]:
    return list(sandbox.connections[-1].received)


# --- Tracking to the end ---------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["filled", "filled_in_parts", "failed", "cancelled"])
async def test_tracked_order_ends_and_leaves_nothing(
    outcome: str, autojump_clock: MockClock
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
            sandbox.next_outcome(outcome)
            order_id = await make_order(client)
            states = await statuses(client, order_id)
            assert states[0] == "PENDING"
            assert states[-1] == sandbox.order(order_id).status
            assert OrderStatus(states[-1]).is_final
            await wait_until_idle(client)
            assert is_untouched(client)
            assert sandbox.connections[-1].channels == {}
            assert await statuses(client, order_id) == states[-1:]


async def test_tracking_can_stop_at_a_partial_fill(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled_in_parts")
            order_id = await make_order(client)
            states = await statuses(client, order_id, stop_at_partial=True)
            assert states == ["PENDING", "PROCESSING", "PARTIAL"]


async def test_statistics_count_tracked_orders_and_subscriptions_separately(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            order_id = await make_order(client)
            async with client.track_order(order_id), client.track_order(order_id):
                statistics = client.statistics()
                assert statistics.tracked_orders == 2
                assert statistics.channels == statistics.subscriptions == 0
                async with await client.subscribe_order(order_id):
                    statistics = client.statistics()
                    assert statistics.channels == statistics.subscriptions == 1
            assert client.statistics().tracked_orders == 0


@pytest.mark.parametrize("made_here", [True, False])
async def test_order_is_tracked_by_its_client_order_id(
    made_here: bool,
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
            client_order_id = new_client_order_id() if made_here else "mine-1"
            sandbox.next_outcome("filled")
            async with trio.open_nursery() as nursery:
                # Before the broker has the order.
                states = start(nursery, statuses, client, client_order_id)
                await trio.sleep(2)
                order_id = await make_order(client, client_order_id=client_order_id)
                assert (await states.result())[-1] == "FILLED"
            asked_for = {one.channel for one in received(sandbox) if one.op == "subscribe"}
            own = f"orders:{order_id}"
            assert asked_for <= {own, "orders:mine-1"}
            await wait_until_idle(client)
            assert is_untouched(client)


async def test_channel_of_the_stream_has_the_order_id(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            order_id = await make_order(client, client_order_id="mine-1")
            async with client.track_order("mine-1") as progress:
                message = await progress.receive()
                assert message.channel == progress.channel == f"orders:{order_id}"
                await wait_all_tasks_blocked()
                await wait_until_idle(client)
                assert list(sandbox.connections[-1].channels) == [f"orders:{order_id}"]


async def test_order_that_the_broker_does_not_know_yet_is_tracked() -> None:
    async with scripted_client() as (client, line):
        with trio.fail_after(PATIENCE), client.events() as events:
            async with client.track_order("o1") as progress:
                await line.acknowledge()
                await line.receive("order_status")
                await line.send({"op": "order_status", "error": "Order not found"})
                assert isinstance(await events.receive(), SnapshotUnavailable)
                await line.send({"ch": "orders:o1", "data": order(status="FILLED")})
                assert [message.data.status async for message in progress] == ["FILLED"]


async def test_unknown_order_ends_with_an_error(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        began = trio.current_time()
        with pytest.raises(OrderNotFoundError, match="not found"):
            await statuses(client, "typo")
        assert trio.current_time() - began == pytest.approx(60, abs=1)
        with pytest.raises(OrderNotFoundError):
            await statuses(client, "typo", not_found_timeout=3)
        assert trio.current_time() - began == pytest.approx(63, abs=2)
        with trio.move_on_after(LONG) as scope:
            await statuses(client, "typo", not_found_timeout=math.inf)
        assert scope.cancelled_caught
        await wait_until_idle(client)
        assert is_untouched(client)


@pytest.mark.parametrize("named", ["orderId", "clientOrderId", "id"])
@pytest.mark.parametrize("op", ["order_status", None])
async def test_unknown_order_ends_also_if_the_refusals_name_it(
    op: str | None, named: str, autojump_clock: MockClock
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:

        async def refuse() -> None:
            await line.acknowledge()
            while True:
                await line.receive("order_status")
                members = {"op": op} if op else {}
                await line.send({**members, "error": "Order not found", "data": {named: "typo"}})

        nursery.start_soon(refuse)
        with trio.fail_after(LONG), pytest.raises(OrderNotFoundError):
            await statuses(client, "typo", not_found_timeout=5.0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("form", ["its own id", "client order id"])
async def test_order_of_an_own_swap_is_tracked_however_long_it_is_not_found(
    form: str, autojump_clock: MockClock
) -> None:
    with trio.fail_after(2 * LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await make_order(client, client_order_id="mine-1")
            name = order_id if form == "its own id" else "mine-1"
            with (
                sandbox.faults.stop_pushing(),
                sandbox.faults.refuse("Order not found", op="order_status"),
                trio.move_on_after(LONG) as scope,
            ):
                await statuses(client, name, not_found_timeout=5.0)
            assert scope.cancelled_caught
            assert (await statuses(client, name))[-1] == "FILLED"


@pytest.mark.parametrize("form", ["its own id", "client order id"])
async def test_order_of_the_journal_is_tracked_however_long_it_is_not_found(
    form: str, mock_clock: MockClock, tmp_path: Path
) -> None:
    async with open_sandbox(**SLOW) as sandbox:
        async with sandbox.client(
            journal=SwapJournal(tmp_path / "swaps", timeout=math.inf)
        ) as client:
            order_id = await make_order(client, client_order_id="mine-1")
        name = order_id if form == "its own id" else "mine-1"
        async with sandbox.client(
            journal=SwapJournal(tmp_path / "swaps", timeout=math.inf)
        ) as client:
            with (
                sandbox.faults.stop_pushing(),
                sandbox.faults.refuse("Order not found", op="order_status"),
                trio.move_on_after(LONG) as scope,
            ):
                mock_clock.autojump_threshold = 0  # Nothing waits for the journal's thread now.
                await statuses(client, name, not_found_timeout=5.0)
            assert scope.cancelled_caught
            mock_clock.autojump_threshold = math.inf


@pytest.mark.parametrize("outcome", [SwapOutcome.REFUSED, SwapOutcome.SETTLED])
async def test_order_of_a_resolved_swap_of_the_journal_is_tracked_however_long(
    outcome: SwapOutcome, mock_clock: MockClock, tmp_path: Path
) -> None:
    async with open_sandbox() as sandbox:
        journal = SwapJournal(tmp_path / "swaps", timeout=math.inf)
        await journal.open(sandbox.url.split("/")[2], sandbox.api_key)
        await journal.intend(intent("mine-1"), "1")
        journal.note("mine-1", "1", outcome, detail="why")
        await journal.aclose()
        async with sandbox.client(journal=journal) as client:
            with trio.move_on_after(LONG) as scope:
                mock_clock.autojump_threshold = 0  # Nothing waits for the journal's thread now.
                await statuses(client, "mine-1", not_found_timeout=5.0)
            assert scope.cancelled_caught
            mock_clock.autojump_threshold = math.inf


async def test_swap_and_wait_is_not_ended_by_not_found(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(**SLOW) as sandbox,
        sandbox.client() as client,
        trio.open_nursery() as nursery,
    ):
        sandbox.next_outcome("filled")
        with (
            sandbox.faults.stop_pushing(),
            sandbox.faults.refuse("Order not found", op="order_status"),
        ):
            swap = start(nursery, client.swap_and_wait, "0.01", "ETH", "USDT")
            await trio.sleep(600)
            assert not swap.done.is_set()
        assert (await swap.result()).status == "FILLED"


async def test_error_in_the_channel_of_a_tracked_order_is_not_raised() -> None:
    async with scripted_client() as (client, line):
        with trio.fail_after(PATIENCE):
            async with client.track_order("o1") as progress:
                await line.acknowledge()
                await line.receive("order_status")
                await line.send(order_status(), {"ch": "orders:o1", "error": "try later"})
                await line.send({"ch": "orders:o1", "data": order(status="FILLED", at=2)})
                assert [message.data.status async for message in progress] == ["PENDING", "FILLED"]
            assert client.statistics().unexpected_messages == 1


# --- Limits and subscriptions ----------------------------------------------------------------


async def test_subscription_at_the_limit_evicts_a_tracked_order(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_subscriptions=2)
    with trio.fail_after(LONG):
        async with (
            open_sandbox(max_subscriptions=2, **SLOW) as sandbox,
            sandbox.client(limits=limits) as client,
            trio.open_nursery() as nursery,
        ):
            order_ids = [await make_order(client) for _ in range(3)]
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
            await wait_until_idle(client)
            assert client.statistics().unexpected_messages == 0
            assert is_untouched(client)


async def test_unsubscribe_keeps_an_order_tracked(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await make_order(client)
            async with client.track_order(order_id) as progress:
                subscription = await client.subscribe_order(order_id)
                await client.unsubscribe(f"orders:{order_id}")
                assert [message async for message in subscription][1:] == []
                assert list(sandbox.connections[-1].channels) == [f"orders:{order_id}"]
                assert (await last_state(progress)).status == "FILLED"


async def last_state(progress: trio.abc.ReceiveChannel[Message[Order]]) -> Order:
    async for message in progress:
        order = message.data
    return order


async def test_hundreds_of_tracked_orders_stay_within_the_limits(
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
            order_ids = [await make_order(client) for _ in range(200)]
            for order_id in order_ids:
                nursery.start_soon(track, client, order_id)
            for _ in range(20):
                await trio.sleep(1.37)
                asked_at = trio.current_time()
                await client.do_swap("0.01", "ETH", "USDT")
                swap = next(one for one in reversed(received(sandbox)) if one.op == "swap")
                # It is alone in flight, and must not wait for the window too.
                assert swap.at - asked_at <= 0.25
            assert len(sandbox.connections[-1].channels) == 100
    assert ended == {order_id: str(sandbox.order(order_id).status) for order_id in order_ids}
    assert all(OrderStatus(status).is_final for status in ended.values())
    check_limits(received(sandbox))
    assert client.statistics().unexpected_messages == 0


def check_limits(messages: list[Received]) -> None:
    """Check the limits: 100 messages in any second, and 100 channels at any time."""
    for earlier, later in zip(messages, messages[100:], strict=False):
        assert later.at - earlier.at >= 1
    counts = {"subscribe": 1, "unsubscribe": -1}
    channels = list(itertools.accumulate(counts.get(one.op or "", 0) for one in messages))
    assert max(channels) == 100
    assert channels[-1] >= 0


# --- Faults ----------------------------------------------------------------------------------


async def test_tracking_goes_on_after_an_outage_and_reports_the_gap(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await make_order(client)
            async with client.track_order(order_id) as progress:
                assert (await progress.receive()).gap is None
                sandbox.drop_connections()
                messages = [message async for message in progress]
            assert messages[0].gap is not None
            assert messages[0].data.status == "PENDING"  # no news, but for the gap
            assert messages[-1].data.status == "FILLED"
            assert [message.gap for message in messages[1:]] == [None] * len(messages[1:])


async def test_tracking_started_during_an_outage_begins_after_it(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox() as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await make_order(client)
            with client.events() as events:
                sandbox.faults.kill()
                assert isinstance(await events.receive(), Disconnected)
            async with client.track_order(order_id) as progress:
                await sandbox.faults.revive()
                messages = [message async for message in progress]
            assert [message.data.status for message in messages] == ["FILLED"]
            assert messages[0].gap is None


async def test_order_with_a_refused_channel_is_polled(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            sandbox.next_outcome("filled")
            order_id = await make_order(client)
            with sandbox.faults.refuse_channel("orders:*"):
                assert (await statuses(client, order_id))[-1] == "FILLED"


async def test_poll_interval_can_be_set(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client(poll_interval=3.0) as client:
            order_id = await make_order(client)
            first = len(received(sandbox))
            with sandbox.faults.stop_pushing():
                async with client.track_order(order_id):
                    await trio.sleep(10)
            polled_at = [one.at for one in received(sandbox)[first:] if one.op == "order_status"]
            assert [later - earlier for earlier, later in itertools.pairwise(polled_at)] == (
                pytest.approx([3.0] * 3)
            )


# --- Endings ---------------------------------------------------------------------------------


async def test_closed_stream_ends_the_tracking(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            async with client.track_order(await make_order(client)) as progress:
                await progress.receive()
                await progress.aclose()
                assert client.statistics().tracked_orders == 0
                with pytest.raises(trio.ClosedResourceError):
                    await progress.receive()
            await wait_until_idle(client)
            assert is_untouched(client)


async def test_clones_end_with_the_block(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(**SLOW) as sandbox, sandbox.client() as client:
            async with client.track_order(await make_order(client)) as progress:
                clone = progress.clone()
            assert client.statistics().tracked_orders == 0
            assert len([message async for message in clone]) <= 1
            await wait_until_idle(client)
            assert is_untouched(client)


async def test_closed_client_ends_the_iteration_after_the_buffer() -> None:
    async with scripted_client() as (client, line):
        with trio.fail_after(PATIENCE):
            async with client.track_order("o1") as progress:
                await line.acknowledge()
                await line.send({"ch": "orders:o1", "data": order()})
                while not progress.statistics().current_buffer_used:
                    await wait_all_tasks_blocked()
                await client.aclose()
                assert client.statistics().tracked_orders == 0
                assert is_untouched(client)
                assert [message.data.status async for message in progress] == ["PENDING"]


async def test_final_failure_breaks_the_stream_with_its_cause() -> None:
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


async def test_track_order_is_refused_at_once_if_it_cannot_work() -> None:
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
            for wrong, kind in (
                (0, ValueError),
                (-1.0, ValueError),
                (math.nan, ValueError),
                (10**400, ValueError),
                (None, TypeError),
                ("60", TypeError),
                (True, TypeError),
            ):
                with pytest.raises(kind, match="not_found_timeout"):
                    client.track_order("o1", not_found_timeout=wrong)
            with pytest.raises(MessageTooLargeError):
                client.track_order("o" * 70_000)
            tracked = client.track_order("o1")
            async with tracked:
                with pytest.raises(RuntimeError, match="once"):
                    await tracked.__aenter__()
        with pytest.raises(ClientClosedError):
            await statuses(client, "o1")


async def test_track_order_after_a_final_failure_names_the_cause() -> None:
    async with scripted_client(reconnect=NEVER) as (client, line):
        line.hang_up()
        with pytest.raises(ConnectionLostError):
            await client.wait_closed()
        with pytest.raises(NotConnectedError) as caught:
            await statuses(client, "o1")
        assert isinstance(caught.value.__cause__, ConnectionLostError)


# --- Cancellation ----------------------------------------------------------------------------


async def enter_and_leave(client: BrokerWSClient, order_id: str) -> None:
    async with client.track_order(order_id):
        pass


async def first_state(client: BrokerWSClient, order_id: str) -> None:
    async with client.track_order(order_id) as progress:
        await progress.receive()


@pytest.mark.parametrize("use", [enter_and_leave, first_state, statuses])
async def test_cancelled_tracking_leaves_nothing_behind(
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
            order_id = await make_order(client, client_order_id=client_order_id)
            with trio.CancelScope() as scope:
                instrument = CancelAfterSteps(scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await use(client, client_order_id if step % 2 else order_id)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            cancelled = scope.cancelled_caught
            await wait_until_idle(client)
            assert is_untouched(client)
            assert count_tasks() == tasks
        assert step >= 2
        assert sandbox.connections[-1].channels == {}


async def test_tracking_in_a_cancelled_scope_sends_nothing() -> None:
    async with scripted_client() as (client, line):
        entered = False
        with trio.move_on_after(0) as scope:
            async with client.track_order("o1"):
                entered = True
        assert scope.cancelled_caught
        assert not entered
        assert is_untouched(client)
        assert line.nothing_came()


async def test_tracking_cancelled_in_an_outage_sends_nothing_afterwards(
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
