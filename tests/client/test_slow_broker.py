"""A broker that answers estimates late, or not all of them: no livelock, and no attempts used up.

`python -m tests.client.test_slow_broker` runs an hour of each, on a clock that jumps.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.scripted import open_scripted, order_status, start
from trio_broker import (
    BrokerWSClient,
    Disconnected,
    Limits,
    NotSentError,
    ReconnectPolicy,
    RequestTimeoutError,
)
from trio_broker.exceptions import ConnectionLostError
from trio_broker.sandbox import Sandbox, open_sandbox

SLOW: Final = 12.0
ONCE: Final = ReconnectPolicy(max_attempts=0)


@attrs.define
class Figures:
    """What has happened in one run."""

    answered: int = 0
    timed_out: int = 0
    not_sent: int = 0
    lost: int = 0
    reads: int = 0
    longest_read: float = 0.0
    reconnections: int = 0


async def _estimates(client: BrokerWSClient, figures: Figures) -> None:
    while True:
        try:
            await client.estimate_swap("1", "ETH", "USDT")
        except RequestTimeoutError:
            figures.timed_out += 1
        except NotSentError:
            figures.not_sent += 1
        except ConnectionLostError:
            figures.lost += 1
        else:
            figures.answered += 1
            await trio.sleep(1)


async def _reads(client: BrokerWSClient, figures: Figures) -> None:
    while True:
        began = trio.current_time()
        try:
            await client.get_balances()
        except ConnectionLostError:
            figures.lost += 1
        else:
            figures.longest_read = max(figures.longest_read, trio.current_time() - began)
            figures.reads += 1
        await trio.sleep(1)


async def run(disturb: Callable[[Sandbox], object], seconds: float) -> Figures:
    """Use a broker for some time. Any attempt to reconnect that counts ends the client."""
    figures = Figures()
    async with (
        open_sandbox() as sandbox,
        sandbox.client(reconnect=ONCE) as client,
        trio.open_nursery() as nursery,
    ):
        disturb(sandbox)
        events = client.events()
        nursery.start_soon(_estimates, client, figures)
        nursery.start_soon(_reads, client, figures)
        with trio.move_on_after(seconds):
            async for event in events:
                figures.reconnections += isinstance(event, Disconnected)
        assert client.is_connected()
        nursery.cancel_scope.cancel()
    return figures


def _answers_late(sandbox: Sandbox) -> None:
    sandbox.faults.delay(SLOW, op="estimate")


def _loses_one_in_ten(sandbox: Sandbox) -> None:
    sandbox.faults.swallow(op="estimate", every=10)


async def test_broker_that_takes_twelve_seconds_is_not_disconnected_for_ever(
    autojump_clock: MockClock,
) -> None:
    figures = await run(_answers_late, 300)
    assert figures.timed_out > 10
    assert figures.reads > 280
    assert figures.longest_read < 1
    assert figures.reconnections <= 2  # The grace grows until the late reply arrives within it.


async def test_reply_that_is_never_sent_delays_only_its_operation(
    autojump_clock: MockClock,
) -> None:
    figures = await run(_loses_one_in_ten, 300)
    assert figures.answered > 100
    assert figures.reads > 280
    assert figures.longest_read < 1
    assert 0 < figures.reconnections <= figures.timed_out


@pytest.mark.parametrize("patience", [3.0, 9.0])
async def test_impatient_callers_of_a_slow_broker_are_answered_in_the_end(
    patience: float, autojump_clock: MockClock
) -> None:
    """Each caller leaves after a while. The grace grows until a late reply frees the lane."""
    async with open_sandbox() as sandbox, sandbox.client(reconnect=ONCE) as client:
        sandbox.faults.delay(SLOW, op="estimate")
        events = client.events()
        for _ in range(20):
            with trio.move_on_after(patience):
                await client.estimate_swap("1", "ETH", "USDT")
        assert client.is_connected()
        assert 0 <= events.statistics().current_buffer_used <= 12


async def _hour(disturb: Callable[[Sandbox], object]) -> Figures:
    return await run(disturb, 3600)


@pytest.mark.parametrize("kind", ["subscribe_order", "track_order"])
async def test_lost_acknowledgement_does_not_keep_the_last_channel(
    kind: str, autojump_clock: MockClock
) -> None:
    limits, policy = Limits(max_subscriptions=1), ReconnectPolicy(initial_delay=0.01)
    async with (
        open_scripted() as broker,
        broker.client(limits=limits, reconnect=policy) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.cancel_scope.deadline = trio.current_time() + 60
        line = await broker.line()
        if kind == "subscribe_order":
            lost = start(nursery, client.subscribe_order, "o1")
            await line.receive("subscribe")
            with pytest.raises(RequestTimeoutError):
                await lost.result()
        else:
            nursery.start_soon(track_forever, client)
            await line.receive("subscribe")
            await line.receive("order_status")
            await line.send(order_status())
        began = trio.current_time()
        call = start(nursery, partial(client.subscribe, "balances", snapshot=False))
        line = await broker.line()
        await line.acknowledge()
        async with await call.result() as updates:
            assert trio.current_time() - began == pytest.approx(5, abs=0.5)
            await line.send({"ch": "balances", "data": []})
            assert (await updates.receive()).data == ()
        nursery.cancel_scope.cancel()


async def track_forever(client: BrokerWSClient) -> None:
    async with client.track_order("o1"):
        await trio.sleep_forever()


if __name__ == "__main__":
    for name, how in {"12 s each": _answers_late, "one in ten lost": _loses_one_in_ten}.items():
        main: Callable[..., Coroutine[Any, Any, Figures]] = _hour
        print(name, trio.run(main, how, clock=MockClock(autojump_threshold=0)))  # noqa: T201
