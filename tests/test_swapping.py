"""Swaps over real sockets: what their callers are told, and what the broker has seen."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import (
    BALANCES,
    SWAPPED,
    Body,
    Line,
    count_tasks,
    open_scripted,
    scripted_client,
    start,
)
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    ClientClosedError,
    ConnectionLostError,
    DuplicateClientOrderIdError,
    JournalError,
    NotConnectedError,
    NotSentError,
    OrderUnfinishedError,
    QuoteExpiredError,
    ReconnectPolicy,
    ServerError,
    SlippageError,
    SubscriptionBrokenError,
    SwapEstimate,
    SwapJournal,
    SwapOutcome,
    SwapOutcomeUnknownError,
    SwapResolved,
    SwapUnresolved,
)
from trio_broker.blotter import LONGEST_WAIT
from trio_broker.sandbox import open_sandbox
from trio_broker.swapping import check_quote, slippage_left

POLICY = ReconnectPolicy(max_attempts=None, initial_delay=0.1)
NOT_FOUND: Body = {"op": "order_status", "error": "Order not found"}


def found(name: str = "c1", order_id: str = "o1") -> Body:
    data = {"orderId": order_id, "clientOrderId": name, "status": "FILLED"}
    return {"op": "order_status", "data": data}


async def swap(client: BrokerWSClient, name: str | None = "c1") -> Any:
    return await client.do_swap("1", "ETH", "USDT", client_order_id=name)


# --- Resolution ------------------------------------------------------------------------------


async def test_a_swap_whose_connection_dies_is_found_on_the_next(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_scripted() as broker,
        broker.client(reconnect=POLICY) as client,
        trio.open_nursery() as nursery,
    ):
        line = await broker.line()
        call = start(nursery, swap, client)
        await line.receive("swap")
        line.hang_up()
        line = await broker.line()
        assert (await line.receive("order_status"))["data"] == {"id": "c1"}
        assert [one.outcome for one in client.unresolved_swaps()] == [SwapOutcome.UNKNOWN]
        await line.send(NOT_FOUND)
        await line.receive("order_status")
        await line.send(found())
        receipt = await call.result()
        assert (receipt.order_id, receipt.client_order_id) == ("o1", "c1")
        assert client.unresolved_swaps() == ()
        assert line.nothing_came()


async def test_a_swap_that_nobody_finds_is_unknown_and_can_be_resolved_later(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_scripted() as broker,
        broker.client(reconnect=POLICY, resolve_timeout=1.0) as client,
        trio.open_nursery() as nursery,
    ):
        events = client.events()
        line = await broker.line()
        call = start(nursery, swap, client)
        await line.receive("swap")
        line.hang_up()
        line = await broker.line()
        while not call.done.is_set():
            await line.receive("order_status")
            await line.send(NOT_FOUND)
            await wait_all_tasks_blocked()
            await trio.sleep(0.5)
        with pytest.raises(SwapOutcomeUnknownError, match="Order not found") as caught:
            await call.result()
        assert isinstance(caught.value.__cause__, ConnectionLostError)
        assert [one async for one in _until(events, SwapUnresolved)][-1].client_order_id == "c1"
        with pytest.raises(DuplicateClientOrderIdError) as refused:
            await swap(client)
        assert refused.value.outcome is SwapOutcome.UNKNOWN
        later = start(nursery, client.resolve_swap, "c1")
        await line.receive("order_status")
        await line.send(found())
        assert (await later.result()).order_id == "o1"
        assert [one async for one in _until(events, SwapResolved)][-1].receipt is not None
        assert client.unresolved_swaps() == ()
        assert (await client.resolve_swap("c1")).order_id == "o1"  # it is known now
        assert line.nothing_came()


async def _until(events: Any, kind: type) -> AsyncIterator[Any]:
    async for event in events:
        yield event
        if isinstance(event, kind):
            return


async def test_a_cancelled_swap_goes_on_and_an_event_tells_its_end() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        events = client.events()
        call = start(nursery, swap, client)
        await line.receive("swap")
        call.scope.cancel()
        await call.done.wait()
        (unresolved,) = client.unresolved_swaps()
        assert unresolved.client_order_id == "c1"
        assert unresolved.outcome is SwapOutcome.UNDER_WAY
        await line.send(SWAPPED)
        event = await events.receive()
        assert isinstance(event, SwapResolved)
        assert event.receipt is not None
        assert event.receipt.order_id == "o1"
        assert client.unresolved_swaps() == ()


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [(SWAPPED, SwapOutcome.CONFIRMED), ({"op": "swap", "error": "No"}, SwapOutcome.REFUSED)],
)
async def test_cancelled_in_the_moment_of_the_reply_an_event_tells_its_end(
    reply: Body, outcome: SwapOutcome
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        events = client.events()
        call = start(nursery, swap, client)
        await line.receive("swap")
        call.scope.cancel()
        client._session.receive([json.dumps(reply)], trio.current_time())
        await call.done.wait()
        event = events.receive_nowait()
        assert isinstance(event, SwapResolved)
        assert (event.client_order_id, event.outcome) == ("c1", outcome)
        assert client.unresolved_swaps() == ()


async def test_a_swap_cancelled_while_it_is_asked_for_goes_on(autojump_clock: MockClock) -> None:
    async with scripted_client(request_timeout=1) as (client, line), trio.open_nursery() as nursery:
        events = client.events()
        call = start(nursery, swap, client)
        await line.receive("swap")
        await line.receive("order_status")
        call.scope.cancel()
        await call.done.wait()
        await line.send(found())
        assert isinstance(await events.receive(), SwapResolved)


async def test_resolving_waits_for_a_swap_in_flight() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, swap, client)
        await line.receive("swap")
        resolving = start(nursery, client.resolve_swap, "c1")
        given_up = start(nursery, client.resolve_swap, "c1")
        await wait_all_tasks_blocked()
        given_up.scope.cancel()
        await line.send({"op": "swap", "error": "Insufficient balance"})
        for one in (call, resolving):
            with pytest.raises(ServerError, match="Insufficient"):
                await one.result()
        assert line.nothing_came()
        with pytest.raises(ServerError, match="Insufficient"):
            await client.resolve_swap("c1")


async def test_an_id_that_this_client_does_not_know_can_be_resolved(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        receipt = await swap(client, "mine")
        async with sandbox.client() as other:
            assert (await other.resolve_swap("mine")).order_id == receipt.order_id
            with pytest.raises(DuplicateClientOrderIdError):
                await swap(other, "mine")
            with pytest.raises(SwapOutcomeUnknownError, match="Order not found"):
                await other.resolve_swap("nobodys")


async def test_a_duplicate_is_refused_here(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        await swap(client)
        with pytest.raises(DuplicateClientOrderIdError) as caught:
            await swap(client)
        assert caught.value.outcome is SwapOutcome.CONFIRMED
        assert len(sandbox.orders()) == 1


async def test_an_id_of_which_nothing_was_sent_is_free_again(autojump_clock: MockClock) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        balances = start(nursery, client.get_balances)
        await line.receive("balances")
        first = start(nursery, swap, client)
        await wait_all_tasks_blocked()
        first.scope.cancel()
        await first.done.wait()
        second = start(nursery, swap, client)
        await line.send(BALANCES)
        await line.receive("swap")
        await line.send(SWAPPED)
        assert (await second.result()).order_id == "o1"
        await balances.result()


async def test_a_refusal_that_is_said_twice_does_not_refuse_the_next_swap() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        refusal = {"op": "swap", "error": "Insufficient balance"}
        first = start(nursery, swap, client, "c0")
        await line.receive("swap")
        await line.send(refusal)
        with pytest.raises(ServerError):
            await first.result()
        second = start(nursery, swap, client)
        await line.receive("swap")
        await line.send(refusal, SWAPPED)
        await line.receive("order_status")
        await line.send(found())
        assert (await second.result()).order_id == "o1"


# --- Ends ------------------------------------------------------------------------------------


async def test_closed_with_a_swap_in_flight_it_is_unknown_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        await client.connect(nursery)
        events = client.events()
        line = await broker.line()
        call = start(nursery, swap, client)
        await line.receive("swap")
        await client.aclose()
        with pytest.raises(SwapOutcomeUnknownError, match="closed"):
            await call.result()
        event = await events.receive()
        assert isinstance(event, SwapUnresolved)
        assert "SwapUnresolved 'c1': the client was closed" in caplog.text
        assert [one.client_order_id for one in client.unresolved_swaps()] == ["c1"]
        with pytest.raises(SwapOutcomeUnknownError, match="no connection to ask over") as asked:
            await client.resolve_swap("c1")
        assert isinstance(asked.value.__cause__, ClientClosedError)
        with pytest.raises(ClientClosedError):
            await swap(client, "c2")
        with pytest.raises(ClientClosedError):
            await client.reconcile()
        await client.settle_swap("c1", "the statement has it")
        assert client.unresolved_swaps() == ()


async def test_failed_for_good_a_swap_in_doubt_is_unknown(autojump_clock: MockClock) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, swap, client)
        await line.receive("swap")
        line.hang_up()
        with pytest.raises(SwapOutcomeUnknownError):
            await call.result()
        with pytest.raises(SwapOutcomeUnknownError, match="no connection to ask over"):
            await client.resolve_swap("c1")  # and no NotSentError: nobody may take it for one


async def test_wrong_ids_and_notes_are_refused() -> None:
    async with open_scripted() as broker:
        client = broker.client()
        with pytest.raises(ValueError, match="client_order_id must not be empty"):
            await client.resolve_swap("")
        with pytest.raises(TypeError, match="client_order_id must be a str"):
            await client.settle_swap(7, "note")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="note must be a str"):
            await client.settle_swap("c1", None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="note must not be empty"):
            await client.settle_swap("c1", " ")
        with pytest.raises(ValueError, match="no unresolved swap"):
            await client.settle_swap("c1", "note")
        with pytest.raises(NotConnectedError):
            await client.reconcile()
        assert client.unresolved_swaps() == ()


# --- The journal -----------------------------------------------------------------------------


class Disk(SwapJournal):
    """A journal whose disk does what the test says; no thread, so that clocks can be mocked."""

    def __init__(self, left: tuple[Any, ...] = ()) -> None:
        super().__init__("never-made")
        self.left = left
        self.story: list[Any] = []
        self.error: Exception | None = None
        self.hangs = False
        self.reached = trio.Event()
        self.release = trio.Event()
        self.closed = 0

    async def open(self, host: str, api_key: str) -> tuple[Any, ...]:
        self.story.append(("open", host, api_key))
        await self._work()
        return self.left

    async def intend(self, client_order_id: str, attempt: str, **values: Any) -> None:
        self.story.append(("intend", client_order_id, {"attempt": attempt, **values}))
        await self._work()

    def note(
        self,
        client_order_id: str,
        attempt: str,
        outcome: SwapOutcome,
        *,
        order_id: str | None = None,
        detail: str = "",
    ) -> None:
        assert (attempt, bool(detail)) == (attempt or "missing", order_id is None)
        self.story.append((outcome, client_order_id, order_id))

    async def flush(self) -> None:
        await self._work()

    async def aclose(self) -> None:
        self.closed += 1
        await self._work()

    async def _work(self) -> None:
        await trio.lowlevel.checkpoint()
        self.reached.set()
        if self.hangs:
            await self.release.wait()
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def journalled(disk: Disk, **options: Any) -> AsyncIterator[tuple[BrokerWSClient, Line]]:
    async with scripted_client(journal=disk, **options) as (client, line):
        disk.reached = trio.Event()
        yield client, line
        disk.hangs, disk.error = False, None


async def test_the_intent_is_durable_before_a_byte_leaves(autojump_clock: MockClock) -> None:
    disk = Disk()
    async with journalled(disk) as (client, line), trio.open_nursery() as nursery:
        disk.hangs = True
        call = start(nursery, swap, client)
        await disk.reached.wait()
        await trio.sleep(1)
        assert line.nothing_came()
        assert client.unresolved_swaps() == ()
        disk.release.set()
        await line.receive("swap")
        assert [one[0] for one in disk.story] == ["open", "intend"]
        await line.send(SWAPPED)
        await call.result()
    name, values = disk.story[1][1:]
    assert name == "c1"
    assert values["amount_in"] == Decimal(1)
    assert (values["asset_in"], values["asset_out"]) == ("ETH", "USDT")
    assert values["at"].tzinfo is dt.UTC
    assert disk.story[2:] == [(SwapOutcome.CONFIRMED, "c1", "o1")]
    assert disk.closed == 1


async def test_a_disk_that_fails_refuses_the_swap(autojump_clock: MockClock) -> None:
    disk = Disk()
    async with journalled(disk) as (client, line), trio.open_nursery() as nursery:
        disk.error = JournalError("the disk is full")
        with pytest.raises(JournalError, match="the disk is full"):
            await swap(client)
        assert line.nothing_came()
        assert disk.story[2:] == [(SwapOutcome.NOT_SENT, "c1", None)]
        disk.error = None
        call = start(nursery, swap, client)  # nothing was sent, so the id is free
        await line.receive("swap")
        await line.send(SWAPPED)
        await call.result()


async def test_an_id_that_only_the_journal_remembers_is_refused(autojump_clock: MockClock) -> None:
    disk = Disk()
    async with journalled(disk) as (client, line):
        disk.error = DuplicateClientOrderIdError("c1", SwapOutcome.REFUSED)
        with pytest.raises(DuplicateClientOrderIdError):
            await swap(client)
        assert line.nothing_came()


async def test_cancelled_while_the_intent_is_written_it_is_not_sent(
    autojump_clock: MockClock,
) -> None:
    disk = Disk()
    async with journalled(disk) as (client, line), trio.open_nursery() as nursery:
        disk.hangs = True
        call = start(nursery, swap, client)
        await disk.reached.wait()
        call.scope.cancel()
        await call.done.wait()
        assert line.nothing_came()
        assert disk.story[2:] == [(SwapOutcome.NOT_SENT, "c1", None)]


@pytest.mark.parametrize("comes_back", [False, True])
async def test_without_the_connection_of_the_beginning_it_does_not_leave(
    comes_back: bool, autojump_clock: MockClock
) -> None:
    disk = Disk()
    async with (
        open_scripted() as broker,
        broker.client(journal=disk, reconnect=POLICY) as client,
        trio.open_nursery() as nursery,
    ):
        line = await broker.line()
        disk.reached = trio.Event()
        disk.hangs = True
        call = start(nursery, swap, client)
        await disk.reached.wait()
        line.hang_up()
        await wait_all_tasks_blocked()
        if comes_back:
            line = await broker.line()
            await client.wait_connected()
        disk.hangs = False
        disk.release.set()
        with pytest.raises(NotConnectedError, match="nothing was sent"):
            await call.result()
        assert disk.story[2:] == [(SwapOutcome.NOT_SENT, "c1", None)]
        await client.wait_connected()
        assert all(one.nothing_came() for one in broker.lines)


async def test_no_exit_waits_for_a_disk_that_hangs(autojump_clock: MockClock) -> None:
    disk = Disk()
    async with open_scripted() as broker:
        tasks = count_tasks()
        async with broker.client(journal=disk, close_timeout=3.0) as client:
            began = trio.current_time()
            disk.hangs = True
        assert trio.current_time() - began == pytest.approx(3.0)
        disk.hangs = False
        with trio.CancelScope() as scope:
            async with broker.client(journal=disk, close_timeout=3.0) as client:
                began = trio.current_time()
                disk.hangs = True
                scope.cancel()
        assert trio.current_time() - began == pytest.approx(0.5)
        assert client.state.value == "closed"
        await trio.sleep(1)
        assert count_tasks() == tasks


async def test_a_journal_that_cannot_be_opened_fails_the_start(autojump_clock: MockClock) -> None:
    disk = Disk()
    disk.error = JournalError("damaged")
    async with open_scripted() as broker:
        with pytest.raises(JournalError, match="damaged"):
            async with broker.client(journal=disk):
                raise AssertionError
        assert broker.lines == []


async def test_closed_while_the_journal_is_opened_nothing_is_started() -> None:
    disk = Disk()
    disk.hangs = True
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client(journal=disk)
        call = start(nursery, client.connect, nursery)
        await disk.reached.wait()
        await client.aclose()
        disk.hangs = False
        disk.release.set()
        with pytest.raises(ClientClosedError):
            await call.result()
        assert disk.closed == 1
        assert broker.lines == []


async def test_a_nursery_that_is_closed_leaves_the_journal_free() -> None:
    disk = Disk()
    async with open_scripted() as broker:
        async with trio.open_nursery() as nursery:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            await broker.client(journal=disk).connect(nursery)
        with pytest.raises(RuntimeError, match="closed"):
            await broker.client().connect(nursery)
        assert disk.closed == 1


@pytest.mark.parametrize("slept", [59, 61])
async def test_a_swap_that_waited_through_the_machines_sleep_does_not_leave(slept: int) -> None:
    offset = 0.0
    async with (
        scripted_client(clock=lambda: time.time() + offset) as (client, line),
        trio.open_nursery() as nursery,
    ):
        balances = start(nursery, client.get_balances)
        await line.receive("balances")
        call = start(nursery, swap, client)
        await wait_all_tasks_blocked()
        offset = float(slept)  # Trio's clock stands still meanwhile
        await line.send(BALANCES)
        await balances.result()
        if slept < LONGEST_WAIT:
            await line.receive("swap")
            await line.send(SWAPPED)
            assert (await call.result()).order_id == "o1"
        else:
            with pytest.raises(NotSentError, match="too long ago"):
                await call.result()
            assert line.nothing_came()
            assert client.unresolved_swaps() == ()


async def test_a_clock_that_fails_keeps_nobody_waiting() -> None:
    works = True

    def clock() -> float:
        if works:
            return time.time()
        raise OSError("no clock")

    async with scripted_client(clock=clock) as (client, line):
        async with trio.open_nursery() as nursery:
            call = start(nursery, swap, client)
            await line.receive("swap")
            works = False
            line.hang_up()
            with pytest.raises(SwapOutcomeUnknownError):
                await call.result()
        with pytest.raises(BrokerError, match="no clock"):
            await client.wait_closed()


async def test_an_order_id_that_cannot_be_sent_is_no_word_that_nothing_was(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.swap_and_wait, "1", "ETH", "USDT")
        await line.receive("swap")
        await line.send({"op": "swap", "data": {"orderId": "a&b"}})
        with pytest.raises(OrderUnfinishedError) as caught:
            await call.result()
        assert caught.value.order_id == "a&b"


async def test_after_a_crash_what_was_left_is_asked_for_and_found(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    async with open_sandbox() as sandbox:
        journal = SwapJournal(path)
        host = sandbox.url.split("/")[2]
        async with sandbox.client() as client:
            await swap(client, "executed")
        await journal.open(host, sandbox.api_key)
        for name in ("executed", "never left", "lost"):
            await journal.intend(
                name,
                "1",
                amount_in=Decimal("0.5"),
                asset_in="ETH",
                asset_out="USDT",
                at=dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5),
            )
        journal.note("never left", "1", SwapOutcome.NOT_SENT)
        await journal.aclose()
        async with sandbox.client(journal=SwapJournal(path)) as client:
            left = client.unresolved_swaps()
            assert [one.client_order_id for one in left] == ["executed", "lost"]
            assert {(one.amount_in, one.asset_in, one.asset_out) for one in left} == {
                (Decimal("0.5"), "ETH", "USDT")
            }
            assert "wasn't written down" in left[0].reason
            assert not left[0].may_still_execute
            for name in ("executed", "lost"):
                with pytest.raises(DuplicateClientOrderIdError):
                    await swap(client, name)
            executed, lost = await client.reconcile()
            assert executed.swap == left[0]
            assert executed.outcome is SwapOutcome.CONFIRMED
            assert executed.receipt is not None
            assert executed.receipt.order_id == sandbox.orders()[0].order_id
            assert (executed.reason, lost.receipt) == ("", None)
            assert lost.outcome is SwapOutcome.UNKNOWN
            assert "Order not found" in lost.reason
            assert [one.client_order_id for one in client.unresolved_swaps()] == ["lost"]
            await client.settle_swap("lost", "the broker's support says: never seen")
            assert await client.reconcile() == ()
        rows = {row.client_order_id: row for row in await SwapJournal(path).rows()}
        assert {name: row.outcome.value for name, row in rows.items()} == {
            "executed": "confirmed",
            "never left": "not sent",
            "lost": "settled",
        }
        assert rows["executed"].order_id == sandbox.orders()[0].order_id
        assert rows["lost"].detail == "the broker's support says: never seen"
        async with sandbox.client(1, journal=SwapJournal(path)) as other:
            assert other.unresolved_swaps() == ()


async def test_a_swap_through_a_journal_is_written_down_whole(tmp_path: Path) -> None:
    journal = SwapJournal(tmp_path / "journal")
    async with open_sandbox() as sandbox, sandbox.client(journal=journal) as client:
        receipt = await swap(client)
        with pytest.raises(ServerError):
            await client.do_swap("1000000", "ETH", "USDT", client_order_id="c2")
        with pytest.raises(JournalError, match="open already"):
            async with sandbox.client(journal=journal):
                raise AssertionError
    first, second = await journal.rows()
    assert (first.client_order_id, first.outcome, first.order_id) == (
        "c1",
        SwapOutcome.CONFIRMED,
        receipt.order_id,
    )
    assert (second.client_order_id, second.outcome) == ("c2", SwapOutcome.REFUSED)
    assert "Insufficient balance" in second.detail


# --- From the estimate to the end ------------------------------------------------------------


def quote(expected_out: str, expires_at: dt.datetime | None = None) -> SwapEstimate:
    return SwapEstimate((), Decimal(2), Decimal(expected_out), None, expires_at)


@pytest.mark.parametrize(
    ("expected_out", "min_out", "left"),
    [
        ("100", "100", 0),
        ("100", "99.5", 50),
        ("100", "99.999", 0),
        ("100", "99.98", 2),
        ("3", "2", 3333),
        ("100", "0.000000000000000001", 9999),
    ],
)
def test_what_may_be_lost_is_what_is_more_than_enough(
    expected_out: str, min_out: str, left: int
) -> None:
    assert slippage_left(quote(expected_out), Decimal(min_out)) == left


def test_an_estimate_must_bring_enough_and_not_have_ended() -> None:
    now = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    check_quote(quote("10"), Decimal(10), now)
    check_quote(quote("10", now + dt.timedelta(milliseconds=1)), Decimal(10), now)
    with pytest.raises(QuoteExpiredError) as expired:
        check_quote(quote("10", now), Decimal(10), now)
    assert expired.value.expired_at == now
    with pytest.raises(SlippageError) as less:
        check_quote(quote("9.999"), Decimal(10), now)
    assert (less.value.expected_out, less.value.min_out) == (Decimal("9.999"), Decimal(10))


async def test_it_swaps_and_follows_the_order_to_its_end(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=3) as sandbox, sandbox.client() as client:
        for outcome in ("filled_in_parts", "partly_filled", "failed"):
            sandbox.next_outcome(outcome)
            order = await client.swap_and_wait("1", "ETH", "USDT")
            taken = sandbox.orders()[-1]
            assert (order.order_id, order.status, order.filled_out) == (
                taken.order_id,
                taken.status,
                taken.filled_out,
            )
            assert order.is_final
        assert len(sandbox.orders()) == 3
        assert client.statistics().channels == 0


async def test_cancelled_while_the_order_is_followed_it_leaves_its_names(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_sandbox(seed=3, pending_delay=(5, 5)) as sandbox,
        sandbox.client() as client,
    ):
        with trio.move_on_after(1):
            await client.swap_and_wait("1", "ETH", "USDT")
        (order,) = sandbox.orders()
    assert f"swap {order.client_order_id} was taken as order {order.order_id}" in caplog.text


async def test_with_a_guard_the_broker_is_told_what_may_be_lost(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox(seed=3) as sandbox, sandbox.client() as client:
        sources = (one for one in ("binance", "bybit"))
        estimate = await client.estimate_swap("1", "ETH", "USDT", filter_sources=["binance"])
        least = (estimate.expected_out * Decimal("0.9")).quantize(Decimal("0.01"))
        await client.do_swap("1", "ETH", "USDT", min_out=least, filter_sources=sources)
        await client.swap_and_wait("1", "ETH", "USDT", min_out=least, slippage_bps=20)
        await client.swap_and_wait("1", "ETH", "USDT", min_out=least, slippage_bps=10_000)
        await client.swap_and_wait("1", "ETH", "USDT", slippage_bps=30)
        first, *others = (order.terms for order in sandbox.orders())
        assert first.sources == ("binance", "bybit")
        told = [terms.slippage_bps or 0 for terms in (first, *others)]
        assert 800 < told[0] < 1100
        assert 800 < told[2] < 1100
        assert (told[1], told[3]) == (20, 30)


async def test_an_estimate_that_brings_less_sends_nothing(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=3) as sandbox, sandbox.client() as client:
        with pytest.raises(SlippageError):
            await client.swap_and_wait("1", "ETH", "USDT", min_out="1000000")
        with pytest.raises(SlippageError):
            await client.do_swap("1", "ETH", "USDT", min_out="1000000")
        assert sandbox.orders() == ()


async def test_an_estimate_that_has_ended_sends_nothing(autojump_clock: MockClock) -> None:
    async with open_sandbox(quote_lifetime=1.0) as sandbox:
        async with sandbox.client(clock=lambda: time.time() + 10) as client:
            with pytest.raises(QuoteExpiredError):
                await client.swap_and_wait("1", "ETH", "USDT", min_out="1")
        assert sandbox.orders() == ()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"min_out": 1.5}, TypeError),
        ({"min_out": "0"}, ValueError),
        ({"min_out": "1", "client_order_id": ""}, ValueError),
        ({"min_out": "1", "slippage_bps": -1}, ValueError),
        ({"min_out": "1", "filter_sources": "binance"}, TypeError),
    ],
)
async def test_wrong_arguments_are_refused_before_an_estimate_is_asked_for(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    async with scripted_client() as (client, line):
        with pytest.raises(error):
            await client.swap_and_wait("1", "ETH", "USDT", **wrong)
        assert line.nothing_came()


@pytest.mark.parametrize("closes", ["while following", "before", "fails"])
async def test_once_it_is_taken_no_end_of_the_client_says_that_nothing_was_sent(
    closes: str,
) -> None:
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        await client.connect(nursery)
        line = await broker.line()
        call = start(nursery, client.swap_and_wait, "1", "ETH", "USDT")
        client_order_id = (await line.receive("swap"))["data"]["clientOrderId"]
        if closes == "before":
            # The receipt has arrived, and its caller hasn't run since.
            client._session.receive([json.dumps(SWAPPED)], trio.current_time())
            client._supervisor.request_close()
        else:
            await line.send(SWAPPED)
            await line.acknowledge()
            await wait_all_tasks_blocked()
            if closes == "fails":
                line.hang_up()
            else:
                await client.aclose()
        with pytest.raises(OrderUnfinishedError) as caught:
            await call.result()
        assert (caught.value.order_id, caught.value.client_order_id) == ("o1", client_order_id)
        causes = {"fails": SubscriptionBrokenError, "before": ClientClosedError}
        assert type(caught.value.__cause__) is causes.get(closes, type(None))
        await client.aclose()
