"""Swaps over real sockets: the results of calls, and the messages at the broker."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import (
    API_KEY,
    BALANCES,
    SECRET_KEY,
    SWAPPED,
    Body,
    ScriptedConnection,
    count_tasks,
    open_scripted,
    scripted_client,
    start,
)
from tests.swaps.harness import intent
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    ClientClosedError,
    ConnectionLostError,
    DuplicateClientOrderIdError,
    InsufficientBalanceError,
    JournalError,
    JournalRow,
    NotConnectedError,
    NotSentError,
    OrderUnfinishedError,
    QuoteExpiredError,
    ReconnectPolicy,
    ServerError,
    SlippageError,
    SubscriptionBrokenError,
    SwapCorrected,
    SwapIntent,
    SwapJournal,
    SwapOutcome,
    SwapOutcomeUnknownError,
    SwapResolved,
    SwapUnresolved,
    UnexpectedMessage,
)
from trio_broker._swaps.registry import MAX_WAIT
from trio_broker.sandbox import Sandbox, open_sandbox

POLICY = ReconnectPolicy(max_attempts=None, initial_delay=0.1)
NOT_FOUND: Body = {"op": "order_status", "error": "Order not found"}


def found(name: str = "c1", order_id: str = "o1") -> Body:
    data = {"orderId": order_id, "clientOrderId": name, "status": "FILLED"}
    return {"op": "order_status", "data": data}


async def swap(client: BrokerWSClient, name: str | None = "c1") -> Any:
    return await client.do_swap("1", "ETH", "USDT", client_order_id=name)


# --- Resolution ------------------------------------------------------------------------------


async def test_swap_whose_connection_is_lost_is_found_on_the_next(
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


async def test_swap_that_is_not_found_is_unknown_and_resolved_later(
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


async def test_cancelled_swap_goes_on_and_an_event_reports_its_end() -> None:
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
    [(SWAPPED, SwapOutcome.CONFIRMED), ({"op": "swap", "error": "No route"}, SwapOutcome.REFUSED)],
)
async def test_event_reports_the_end_of_a_swap_cancelled_with_its_reply(
    reply: Body, outcome: SwapOutcome
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        events = client.events()
        call = start(nursery, swap, client)
        await line.receive("swap")
        call.scope.cancel()
        client._driver.receive([json.dumps(reply)])
        await call.done.wait()
        event = events.receive_nowait()
        assert isinstance(event, SwapResolved)
        assert (event.client_order_id, event.outcome) == ("c1", outcome)
        assert client.unresolved_swaps() == ()


async def test_swap_cancelled_while_it_is_looked_up_goes_on(autojump_clock: MockClock) -> None:
    async with scripted_client(request_timeout=1) as (client, line), trio.open_nursery() as nursery:
        events = client.events()
        call = start(nursery, swap, client)
        await line.receive("swap")
        await line.receive("order_status")
        call.scope.cancel()
        await call.done.wait()
        await line.send(found())
        assert isinstance(await events.receive(), SwapResolved)


async def test_resolve_swap_waits_for_a_swap_in_flight() -> None:
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


async def test_id_of_another_client_can_be_resolved(
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


async def test_duplicate_id_is_rejected_by_the_client(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        await swap(client)
        with pytest.raises(DuplicateClientOrderIdError) as caught:
            await swap(client)
        assert caught.value.outcome is SwapOutcome.CONFIRMED
        assert len(sandbox.orders()) == 1


@pytest.mark.parametrize("error", ["Duplicate client order id", "DUPLICATE_REQUEST", " duplicate"])
async def test_duplicate_of_another_process_names_its_order(
    error: str, autojump_clock: MockClock
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, swap, client)
        await line.receive("swap")
        await line.send({"error": error})
        await line.receive("order_status")
        await line.send(found())
        with pytest.raises(DuplicateClientOrderIdError) as caught:
            await call.result()
        assert caught.value.was_sent
        assert caught.value.order is not None
        assert caught.value.order.order_id == "o1"
        assert not caught.value.is_retryable
        receipt = await client.resolve_swap("c1")
        assert receipt.order_id == "o1"


async def test_late_receipt_corrects_what_the_caller_was_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        events = client.events()
        call = start(nursery, swap, client)
        await line.receive("swap")
        await line.send({"error": "Insufficient balance"})
        with pytest.raises(InsufficientBalanceError):
            await call.result()
        await line.send(SWAPPED)
        asked = await line.receive("order_status")
        assert asked["data"] == {"id": "o1"}
        await line.send({"op": "order_status", "data": {"orderId": "o1", "status": "PENDING"}})
        unexpected, doubted = await events.receive(), await events.receive()
        assert isinstance(unexpected, UnexpectedMessage)
        assert isinstance(doubted, SwapCorrected)
        assert (doubted.client_order_id, doubted.outcome) == ("c1", SwapOutcome.UNKNOWN)
        assert [one.client_order_id for one in client.unresolved_swaps()] == ["c1"]
        await line.receive("order_status")
        await line.send(found())
        resolved = await events.receive()
        assert isinstance(resolved, SwapResolved)
        assert resolved.outcome is SwapOutcome.CONFIRMED
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "reported as refused, but is " in record.getMessage()


async def test_order_of_the_journal_is_no_other_swaps_receipt(tmp_path: Path) -> None:
    path = tmp_path / "swaps.journal"
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        for name in ("c1", "c2"):
            async with BrokerWSClient(
                API_KEY, SECRET_KEY, broker.url, journal=SwapJournal(path)
            ) as client:
                line = await broker.line()
                call = start(nursery, partial(swap, client, name))
                await line.receive("swap")
                await line.send(SWAPPED)  # the same order for both
                if name == "c2":
                    await line.send({"op": "swap", "data": {"orderId": "o2"}})
                assert (await call.result()).order_id == {"c1": "o1", "c2": "o2"}[name]


async def test_id_of_an_unsent_swap_can_be_reused(autojump_clock: MockClock) -> None:
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


async def test_refusal_with_an_earlier_text_refuses_at_once() -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        for name in ("c0", "c1"):
            call = start(nursery, swap, client, name)
            await line.receive("swap")
            await line.send({"op": "swap", "error": "Insufficient balance"})
            with pytest.raises(ServerError, match="Insufficient balance"):
                await call.result()
        assert client.unresolved_swaps() == ()
        assert line.nothing_came()  # nothing was looked up


# --- Ends ------------------------------------------------------------------------------------


async def test_close_reports_a_swap_in_flight_as_unknown(
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
        assert "swap c1 unresolved: the client was closed" in caplog.text
        assert [one.client_order_id for one in client.unresolved_swaps()] == ["c1"]
        with pytest.raises(SwapOutcomeUnknownError, match="no connection to ask over") as caught:
            await client.resolve_swap("c1")
        assert isinstance(caught.value.__cause__, ClientClosedError)
        with pytest.raises(ClientClosedError):
            await swap(client, "c2")
        with pytest.raises(ClientClosedError):
            await client.reconcile()
        await client.settle_swap("c1", "the statement has it")
        assert client.unresolved_swaps() == ()


async def test_swap_is_unknown_if_the_client_fails_for_good(autojump_clock: MockClock) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, swap, client)
        await line.receive("swap")
        line.hang_up()
        with pytest.raises(SwapOutcomeUnknownError):
            await call.result()
        # No NotSentError, which would allow a second swap.
        with pytest.raises(SwapOutcomeUnknownError, match="no connection to ask over"):
            await client.resolve_swap("c1")


async def test_invalid_ids_and_notes_are_rejected() -> None:
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


class JournalHarness(SwapJournal):
    """A journal with a fake disk. It has no thread, so clocks can be mocked."""

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

    async def intend(self, intent: SwapIntent, attempt: str) -> None:
        self.story.append(("intend", intent, attempt))
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


def left_over(name: str) -> JournalRow:
    """The row of a swap that an earlier process left unresolved."""
    at = dt.datetime.now(dt.UTC)
    return JournalRow(
        client_order_id=name,
        amount_in=Decimal(1),
        asset_in="ETH",
        asset_out="USDT",
        at=at,
        host="h",
        key_fingerprint="k",
        attempt="1",
        outcome=SwapOutcome.UNKNOWN,
        order_id=None,
        detail="",
        updated_at=at,
    )


@asynccontextmanager
async def journalled(
    disk: JournalHarness, **options: Any
) -> AsyncIterator[tuple[BrokerWSClient, ScriptedConnection]]:
    async with scripted_client(journal=disk, **options) as (client, line):
        disk.reached = trio.Event()
        yield client, line
        disk.hangs, disk.error = False, None


async def test_intent_is_durable_before_any_byte_is_sent(autojump_clock: MockClock) -> None:
    disk = JournalHarness()
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
    intent = disk.story[1][1]
    assert intent.client_order_id == "c1"
    assert intent.amount_in == Decimal(1)
    assert (intent.asset_in, intent.asset_out) == ("ETH", "USDT")
    assert intent.at.tzinfo is dt.UTC
    assert disk.story[2:] == [(SwapOutcome.CONFIRMED, "c1", "o1")]
    assert disk.closed == 1


async def test_swap_fails_unsent_if_the_disk_fails(autojump_clock: MockClock) -> None:
    disk = JournalHarness()
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


async def test_id_rejected_by_the_journal_keeps_its_order(tmp_path: Path) -> None:
    async with open_sandbox() as sandbox:
        async with sandbox.client(journal=SwapJournal(tmp_path / "j")) as client:
            receipt = await client.do_swap("1", "ETH", "USDT", client_order_id="c1")
        async with sandbox.client(journal=SwapJournal(tmp_path / "j")) as client:
            with pytest.raises(DuplicateClientOrderIdError):
                await client.do_swap("1", "ETH", "USDT", client_order_id="c1")
            async with client.track_order("c1") as progress:
                assert progress.channel == f"orders:{receipt.order_id}"


async def with_resolved_swaps(path: Path, sandbox: Sandbox) -> str:
    """Leave a journal with one swap of each outcome, and return the confirmed one's order id."""
    journal = SwapJournal(path)
    async with sandbox.client(journal=journal) as client:
        receipt = await swap(client, "confirmed")
        with pytest.raises(InsufficientBalanceError):
            await client.do_swap("1000000", "ETH", "USDT", client_order_id="refused")
    await journal.open(sandbox.url.split("/")[2], sandbox.api_key)
    for name in ("settled", "not sent"):
        await journal.intend(intent(name, dt.datetime.now(dt.UTC)), "1")
    journal.note("settled", "1", SwapOutcome.SETTLED, detail="the support says: never seen")
    journal.note("not sent", "1", SwapOutcome.NOT_SENT)
    await journal.aclose()
    return str(receipt.order_id)


async def test_id_of_a_resolved_swap_of_an_earlier_process_is_rejected(tmp_path: Path) -> None:
    async with open_sandbox() as sandbox:
        await with_resolved_swaps(tmp_path / "j", sandbox)
        async with sandbox.client(journal=SwapJournal(tmp_path / "j")) as client:
            sent = client.statistics().messages_sent
            for name in ("confirmed", "refused", "settled"):
                with pytest.raises(DuplicateClientOrderIdError, match="nothing was sent") as caught:
                    await swap(client, name)
                assert (caught.value.outcome, caught.value.was_sent) == (name, False)
            assert client.statistics().messages_sent == sent
            await swap(client, "not sent")
        assert len(sandbox.orders()) == 2


async def test_resolved_swap_of_an_earlier_process_needs_no_lookup(tmp_path: Path) -> None:
    async with open_sandbox() as sandbox:
        order_id = await with_resolved_swaps(tmp_path / "j", sandbox)
        async with sandbox.client(journal=SwapJournal(tmp_path / "j")) as client:
            sent = client.statistics().messages_sent
            receipt = await client.resolve_swap("confirmed")
            assert (receipt.order_id, receipt.client_order_id) == (order_id, "confirmed")
            with pytest.raises(InsufficientBalanceError) as refused:
                await client.resolve_swap("refused")
            assert str(refused.value) == "the broker refused swap: Insufficient balance"
            with pytest.raises(SwapOutcomeUnknownError, match="the support says: never seen"):
                await client.resolve_swap("settled")
            assert client.statistics().messages_sent == sent
            assert await client.reconcile() == ()
            state = await client.get_order_status("confirmed")
            assert (state.order_id, state.client_order_id) == (order_id, "confirmed")


@pytest.mark.parametrize("name", ["refused", "settled"])
async def test_late_receipt_corrects_a_swap_of_an_earlier_process(
    name: str, tmp_path: Path
) -> None:
    async with open_sandbox() as sandbox:
        await with_resolved_swaps(tmp_path / "j", sandbox)
        journal = SwapJournal(tmp_path / "j")
        late = {"op": "swap", "data": {"orderId": "late", "clientOrderId": name}}
        async with sandbox.client(journal=journal) as client, client.events() as events:
            sandbox.faults.send_text(json.dumps(late))
            with trio.fail_after(5):
                async for event in events:
                    if isinstance(event, SwapCorrected | SwapResolved):
                        break
            assert isinstance(event, SwapCorrected | SwapResolved)
            assert (event.client_order_id, event.outcome) == (name, SwapOutcome.CONFIRMED)
            assert (await client.resolve_swap(name)).order_id == "late"
        rows = {row.client_order_id: row for row in await journal.rows()}
        assert (rows[name].outcome, rows[name].order_id) == (SwapOutcome.CONFIRMED, "late")


async def test_id_that_only_the_journal_remembers_is_rejected(autojump_clock: MockClock) -> None:
    disk = JournalHarness()
    async with journalled(disk) as (client, line):
        disk.error = DuplicateClientOrderIdError("c1", SwapOutcome.REFUSED)
        with pytest.raises(DuplicateClientOrderIdError):
            await swap(client)
        assert line.nothing_came()


async def test_swap_cancelled_while_its_intent_is_written_is_not_sent(
    autojump_clock: MockClock,
) -> None:
    disk = JournalHarness()
    async with journalled(disk) as (client, line), trio.open_nursery() as nursery:
        disk.hangs = True
        call = start(nursery, swap, client)
        await disk.reached.wait()
        call.scope.cancel()
        await call.done.wait()
        assert line.nothing_came()
        assert disk.story[2:] == [(SwapOutcome.NOT_SENT, "c1", None)]


@pytest.mark.parametrize("comes_back", [False, True])
async def test_swap_is_not_sent_over_a_later_connection(
    comes_back: bool, autojump_clock: MockClock
) -> None:
    disk = JournalHarness()
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


async def test_exit_does_not_wait_for_a_disk_that_hangs(autojump_clock: MockClock) -> None:
    disk = JournalHarness()
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


async def test_start_fails_if_the_journal_cannot_be_opened(autojump_clock: MockClock) -> None:
    disk = JournalHarness()
    disk.error = JournalError("damaged")
    async with open_scripted() as broker:
        with pytest.raises(JournalError, match="damaged"):
            async with broker.client(journal=disk):
                raise AssertionError
        assert broker.lines == []


async def test_close_while_the_journal_is_opened_starts_nothing() -> None:
    disk = JournalHarness()
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


async def test_closed_nursery_leaves_the_journal_free() -> None:
    disk = JournalHarness()
    async with open_scripted() as broker:
        async with trio.open_nursery() as nursery:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            await broker.client(journal=disk).connect(nursery)
        with pytest.raises(RuntimeError, match="closed"):
            await broker.client().connect(nursery)
        assert disk.closed == 1


@pytest.mark.parametrize("slept", [59, 61])
async def test_swap_that_waited_while_the_machine_slept_is_not_sent(slept: int) -> None:
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
        if slept < MAX_WAIT:
            await line.receive("swap")
            await line.send(SWAPPED)
            assert (await call.result()).order_id == "o1"
        else:
            with pytest.raises(NotSentError, match="requested too long ago"):
                await call.result()
            assert line.nothing_came()
            assert client.unresolved_swaps() == ()


async def test_swap_ends_although_the_clock_fails() -> None:
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
        with pytest.raises(BrokerError):
            await client.wait_closed()


async def test_receipt_confirms_although_the_clock_fails() -> None:
    works = True

    def clock() -> float:
        if works:
            return time.time()
        raise OSError("no clock")

    async with scripted_client(clock=clock) as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, swap, client)
        await line.receive("swap")
        works = False
        await line.send({"op": "swap", "data": {"orderId": "o1"}})
        assert (await call.result()).order_id == "o1"


async def test_order_id_that_cannot_be_sent_is_no_unsent_swap(
    autojump_clock: MockClock,
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.swap_and_wait, "1", "ETH", "USDT")
        await line.receive("swap")
        await line.send({"op": "swap", "data": {"orderId": "a&b"}})
        with pytest.raises(OrderUnfinishedError) as caught:
            await call.result()
        assert caught.value.order_id == "a&b"


async def test_reconcile_looks_up_the_swaps_that_a_crash_left(
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
            intent = SwapIntent(
                client_order_id=name,
                amount_in=Decimal("0.5"),
                asset_in="ETH",
                asset_out="USDT",
                at=dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5),
            )
            await journal.intend(intent, "1")
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


@pytest.mark.parametrize(("swaps", "rounds"), [(20, 1), (101, 2)])
async def test_reconcile_looks_up_unresolved_swaps_together(
    swaps: int, rounds: int, autojump_clock: MockClock
) -> None:
    left = tuple(left_over(f"c{number}") for number in range(swaps))
    async with journalled(JournalHarness(left), resolve_timeout=30.0) as (client, _):
        began = trio.current_time()
        findings = await client.reconcile()
        assert trio.current_time() - began == pytest.approx(30.0 * rounds, abs=1)
        assert [one.swap.client_order_id for one in findings] == [
            one.client_order_id for one in left
        ]
        assert {one.outcome for one in findings} == {SwapOutcome.UNKNOWN}
        assert len(client.unresolved_swaps()) == swaps


async def test_reconcile_asks_for_one_client_order_id_at_a_time(autojump_clock: MockClock) -> None:
    left = tuple(left_over(f"c{number}") for number in range(5))
    async with journalled(JournalHarness(left)) as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.reconcile)
        for number in range(5):
            assert (await line.receive("order_status"))["data"] == {"id": f"c{number}"}
            await wait_all_tasks_blocked()
            assert line.nothing_came()
            await line.send(found(f"c{number}", f"o{number}"))
        findings = await call.result()
        order_ids = [one.receipt and one.receipt.order_id for one in findings]
        assert order_ids == [f"o{number}" for number in range(5)]
        assert client.unresolved_swaps() == ()


async def test_journal_has_every_known_fact_of_a_swap(tmp_path: Path) -> None:
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


async def test_journal_that_is_damaged_while_it_is_used_stops_swaps(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    async with open_sandbox() as sandbox:
        async with sandbox.client(journal=(journal := SwapJournal(path))) as client:
            await swap(client, "before")
            await journal.flush()
            data = bytearray(path.read_bytes())
            data[data.index(b"before") + 2] ^= 1
            with path.open("rb+") as file:
                file.write(data)
            for name in ("before", "after"):
                with pytest.raises((JournalError, DuplicateClientOrderIdError)):
                    await swap(client, name)
            await client.get_balances()
            with pytest.raises(JournalError, match="damaged"):
                await swap(client, "last")
        with pytest.raises(JournalError, match="look up its swaps"):
            async with sandbox.client(journal=SwapJournal(path)):
                raise AssertionError
        assert len(sandbox.orders()) == 1


async def test_later_receipt_corrects_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    async with open_sandbox() as sandbox:
        journal = SwapJournal(path)
        await journal.open(sandbox.url.split("/")[2], sandbox.api_key)
        intent = SwapIntent(
            client_order_id="c1",
            amount_in=Decimal(1),
            asset_in="ETH",
            asset_out="USDT",
            at=dt.datetime.now(dt.UTC),
        )
        await journal.intend(intent, "1")
        journal.note("c1", "1", SwapOutcome.REFUSED, detail="perhaps another swap's refusal")
        journal.note("c1", "1", SwapOutcome.UNKNOWN, detail="a receipt came that nobody is owed")
        await journal.aclose()
        async with sandbox.client() as client:
            receipt = await swap(client)
        async with sandbox.client(journal=SwapJournal(path)) as client:
            (finding,) = await client.reconcile()
            assert finding.outcome is SwapOutcome.CONFIRMED
        (row,) = await journal.rows()
        assert (row.outcome, row.order_id) == (SwapOutcome.CONFIRMED, receipt.order_id)


# --- From the estimate to the end ------------------------------------------------------------


async def test_swap_and_wait_follows_the_order_to_its_end(autojump_clock: MockClock) -> None:
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


async def test_swap_and_wait_logs_the_ids_when_it_is_cancelled(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_sandbox(seed=3, pending_delay=(5, 5)) as sandbox,
        sandbox.client() as client,
    ):
        with trio.move_on_after(1):
            await client.swap_and_wait("1", "ETH", "USDT")
        (order,) = sandbox.orders()
    assert f"swap {order.client_order_id} was accepted as order {order.order_id}" in caplog.text


async def test_min_out_becomes_the_slippage_that_is_sent(
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
        slippages = [terms.slippage_bps or 0 for terms in (first, *others)]
        assert 800 < slippages[0] < 1100
        assert 800 < slippages[2] < 1100
        assert (slippages[1], slippages[3]) == (20, 30)


async def test_nothing_is_sent_if_the_estimate_brings_too_little(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=3) as sandbox, sandbox.client() as client:
        with pytest.raises(SlippageError):
            await client.swap_and_wait("1", "ETH", "USDT", min_out="1000000")
        with pytest.raises(SlippageError):
            await client.do_swap("1", "ETH", "USDT", min_out="1000000")
        assert sandbox.orders() == ()


async def test_nothing_is_sent_if_the_estimate_has_expired(autojump_clock: MockClock) -> None:
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
async def test_wrong_arguments_are_rejected_before_an_estimate_is_requested(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    async with scripted_client() as (client, line):
        with pytest.raises(error):
            await client.swap_and_wait("1", "ETH", "USDT", **wrong)
        assert line.nothing_came()


@pytest.mark.parametrize("closes", ["while following", "before", "fails"])
async def test_swap_and_wait_never_ends_as_not_sent_after_the_receipt(
    closes: str,
) -> None:
    async with open_scripted() as broker, trio.open_nursery() as nursery:
        client = broker.client()
        await client.connect(nursery)
        line = await broker.line()
        call = start(nursery, client.swap_and_wait, "1", "ETH", "USDT")
        client_order_id = (await line.receive("swap"))["data"]["clientOrderId"]
        if closes == "before":
            # The receipt has arrived, but its caller hasn't run since.
            client._driver.receive([json.dumps(SWAPPED)])
            await client.aclose()
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
