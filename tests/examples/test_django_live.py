"""What the Django Channels example keeps of an account: one client, and each swap's fate."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import attrs
import pytest

from examples.django_channels import live
from examples.django_channels.broker import Account
from examples.django_channels.live import LiveAccount, Swap
from tests.aio_host import PLAIN
from trio_broker import (
    BrokerError,
    Disconnected,
    InvalidSignatureError,
    NotConnectedError,
    ReconnectPolicy,
)
from trio_broker.sandbox import Sandbox, ThreadedSandbox, open_threaded_sandbox

QUICK: dict[str, Any] = {
    "seed": 7,
    "outcomes": {"filled": 1},
    "pending_delay": (0.01, 0.02),
    "processing_delay": (0.01, 0.02),
}
HASTY: dict[str, Any] = {"request_timeout": 0.1, "resolve_timeout": 0.1, "reply_grace": 0.1}
SWAP = Swap("a_key", "1.5", "ETH", "USDT")


@attrs.frozen
class Watched:
    """A live account, and what it tells."""

    sandbox: ThreadedSandbox
    live: LiveAccount
    told: asyncio.Queue[Swap] = attrs.field(factory=asyncio.Queue)

    async def until(self, outcome: str) -> Swap:
        while (swap := await self.told.get()).outcome != outcome:
            pass
        return swap


def run(play: Any, **options: Any) -> None:
    """Run a play with an account that is watched."""

    async def main(sandbox: ThreadedSandbox) -> None:
        account = Account(partial(sandbox.client, **options), "here", is_play_money=True)
        it = Watched(sandbox, LiveAccount(account))
        with it.live.watched(it.told.put_nowait):
            await play(it)
            await it.live.aclose()

    with open_threaded_sandbox(**QUICK, signing_key="derived") as sandbox:
        PLAIN.run(partial(main, sandbox))


def test_an_outcome_that_is_not_known_is_asked_for_until_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "ASK_AGAIN_AFTER", 0.01)

    async def play(it: Watched) -> None:
        it.sandbox.do(lambda sandbox: sandbox.faults.swallow(op="swap"))
        it.sandbox.do(lambda sandbox: sandbox.faults.swallow(op="order_status"))
        async with it.live.client():
            it.live.swap(SWAP)
            assert (await it.until("unknown")).detail
        await it.until("unknown")  # asked once more
        it.sandbox.do(lambda sandbox: sandbox.faults.clear())
        swap = await it.until("taken")
        (order,) = it.sandbox.orders()
        assert (swap.order_id, swap.detail) == (order.order_id, "")

    run(play, **HASTY)


def test_what_is_not_known_at_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def play(it: Watched) -> None:
        it.sandbox.do(lambda sandbox: sandbox.faults.swallow(op="swap"))
        it.sandbox.do(lambda sandbox: sandbox.faults.swallow(op="order_status"))
        async with it.live.client():
            it.live.swap(SWAP)
            await it.until("unknown")
            await it.live.aclose()
        assert it.live.swaps["a_key"].outcome == "unknown"

    run(play, **HASTY)
    (record,) = {
        record.getMessage() for record in caplog.records if record.name == live.logger.name
    }
    assert record == "the outcome of swap a_key is unknown"


def test_a_duplicate_that_the_broker_reports_is_taken_as_its_order() -> None:
    async def play(it: Watched) -> None:
        refuse = partial(_refuse, error="Duplicate client order id")
        it.sandbox.do(refuse)
        async with it.live.client():
            it.live.swap(SWAP)
            swap = await it.until("taken")
        (order,) = it.sandbox.orders()
        assert swap.order_id == order.order_id

    run(play)


def test_a_refused_swap_that_was_executed_is_corrected(caplog: pytest.LogCaptureFixture) -> None:
    async def play(it: Watched) -> None:
        it.sandbox.do(partial(_refuse, error="Insufficient balance", reply_after=0.2))
        async with it.live.client():
            it.live.swap(SWAP)
            await it.until("refused")
            assert "refused" in (await it.until("unknown")).detail
            swap = await it.until("taken")
        (order,) = it.sandbox.orders()
        assert swap.order_id == order.order_id

    run(play)
    told = [record.getMessage() for record in caplog.records if record.name == live.logger.name]
    assert told[0] == "swap a_key wasn't refused: it is confirmed"


def test_a_correction_that_cannot_be_followed_stays_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(it: Watched) -> None:
        async def found_out(*_: object) -> Swap:
            await asyncio.sleep(0)
            raise NotConnectedError("it was closed")

        monkeypatch.setattr(it.live, "_found_out", found_out)
        it.sandbox.do(partial(_refuse, error="Insufficient balance", reply_after=0.2))
        async with it.live.client():
            it.live.swap(SWAP)
            await it.until("unknown")
            await asyncio.sleep(0)
        assert it.live.swaps["a_key"].outcome == "unknown"

    run(play)
    assert "swap a_key can't be looked up: it was closed" in caplog.text


def _refuse(sandbox: Sandbox, error: str, reply_after: float | None = None) -> None:
    sandbox.faults.refuse(error, executed=True, reply_after=reply_after, op="swap")


def test_a_client_that_fails_takes_no_knowledge_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "ASK_AGAIN_AFTER", 0.01)

    async def play(it: Watched) -> None:
        it.sandbox.do(lambda sandbox: sandbox.faults.swallow(op="swap"))
        it.sandbox.do(lambda sandbox: sandbox.faults.swallow(op="order_status"))
        async with it.live.client() as client:
            it.live.swap(SWAP)
            await it.until("under way")
            await it.until("unknown")
            it.sandbox.do(lambda sandbox: sandbox.faults.kill())
            # It can't be asked for any more, which is no word on whether it was executed.
            with pytest.raises(BrokerError):
                await client.wait_closed()
        await asyncio.wait(it.live._tasks)
        assert it.live.swaps["a_key"].outcome == "unknown"

    run(play, **HASTY, reconnect=ReconnectPolicy(max_attempts=0))


def test_an_account_that_cannot_be_opened_swaps_nothing() -> None:
    async def play(it: Watched) -> None:
        with pytest.raises(InvalidSignatureError):
            async with it.live.client():
                pass
        it.live.swap(SWAP)
        assert "no connection" in (await it.until("not sent")).detail
        assert it.sandbox.orders() == ()

    run(play, signing_key="raw")


def test_a_swap_does_not_wait_for_the_first_connection() -> None:
    async def play(it: Watched) -> None:
        it.sandbox.kill()

        async def come() -> None:
            async with it.live.client() as client:
                await client.get_balances()

        coming = asyncio.create_task(come())
        await asyncio.sleep(0)
        it.live.swap(SWAP)
        async with asyncio.timeout(5):
            assert "no connection" in (await it.until("not sent")).detail
        it.sandbox.revive()
        await coming
        assert it.sandbox.orders() == ()

    patient = ReconnectPolicy(max_attempts=None, retry_first=True, initial_delay=0.01)
    run(play, reconnect=patient)


def test_a_swap_does_not_wait_for_a_connection_that_was_lost() -> None:
    async def play(it: Watched) -> None:
        async with it.live.client() as client:
            with client.events() as events:
                it.sandbox.kill()
                while not isinstance(await anext(events), Disconnected):
                    pass
            it.live.swap(SWAP)
            assert "no connection" in (await it.until("not sent")).detail
            it.sandbox.revive()
            await client.wait_connected()
        assert it.sandbox.orders() == ()

    run(play, reconnect=ReconnectPolicy(max_attempts=None, initial_delay=0.01))


def test_who_goes_first_takes_nothing_from_the_others() -> None:
    async def play(it: Watched) -> None:
        is_in, may_go = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with it.live.client():
                raise AssertionError("it was cancelled before")

        async def second() -> None:
            async with it.live.client() as client:
                is_in.set()
                await may_go.wait()
                assert await client.get_balances()

        one, other = asyncio.create_task(first()), asyncio.create_task(second())
        await asyncio.sleep(0)
        one.cancel()
        await is_in.wait()
        may_go.set()
        await other
        assert one.cancelled()

    run(play)


def test_nobody_waits_for_a_client_that_nobody_needs() -> None:
    async def play(it: Watched) -> None:
        it.sandbox.kill()

        async def come() -> None:
            async with it.live.client():
                raise AssertionError("there is no broker")

        waiting = asyncio.create_task(come())
        await asyncio.sleep(0)
        await it.live.aclose()
        with pytest.raises(NotConnectedError):
            await waiting
        with pytest.raises(NotConnectedError):
            await come()
        it.sandbox.revive()

    run(play, reconnect=ReconnectPolicy(max_attempts=None, retry_first=True))


def test_the_last_swaps_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SWAPS_KEPT", 2)

    async def play(it: Watched) -> None:
        async with it.live.client():
            for key in ("one", "two", "three"):
                it.live.swap(attrs.evolve(SWAP, key=key, amount_in="wrong"))
                await it.until("not sent")
        assert list(it.live.swaps) == ["two", "three"]

    run(play)
