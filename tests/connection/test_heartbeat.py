"""Pings, silence, and suspends of the machine."""

from __future__ import annotations

import math
import time

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import open_scripted, scripted_client
from trio_broker import ConnectionLostError
from trio_broker._connection import heartbeat
from trio_broker._connection.link import Link

pytestmark = pytest.mark.usefixtures("each_transport")


async def test_suspend_replaces_the_connection_at_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asleep = 5000.0
    monkeypatch.setattr(heartbeat, "time_suspended", lambda: asleep)
    async with scripted_client() as (client, _):
        await trio.sleep(5)
        asleep += 0.9  # the two clocks aren't read at the same moment
        await trio.sleep(5)
        assert client.is_connected()
        began = trio.current_time()
        asleep += 3600
        with pytest.raises(ConnectionLostError, match="slept for 3600 s"):
            await client.wait_closed()
        assert trio.current_time() - began <= 1


def test_time_suspended_is_not_negative_and_stands_still() -> None:
    assert heartbeat.time_suspended() >= -0.001
    assert abs(heartbeat.time_suspended() - heartbeat.time_suspended()) < 0.5


def test_time_suspended_is_zero_without_a_boot_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "_BOOT_CLOCK", None)
    assert heartbeat.time_suspended() == 0.0


def test_time_suspended_is_the_difference_of_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BOOT_CLOCK", 7)
    clocks = {7: 150.0, time.CLOCK_MONOTONIC: 30.0}
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)
    assert heartbeat.time_suspended() == 120.0


async def test_blocked_loop_does_not_count_as_silence(
    mock_clock: MockClock,
) -> None:
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        line = await broker.line()
        await wait_all_tasks_blocked(0.001)
        mock_clock.jump(30)
        while not line.pings:
            await wait_all_tasks_blocked(0.001)
        mock_clock.jump(500)  # no task runs meanwhile
        await wait_all_tasks_blocked(0.001)
        assert client.is_connected()
        for _ in range(10):
            mock_clock.jump(1)
            await wait_all_tasks_blocked(0.001)
        assert not client.is_connected()


async def test_peer_that_dies_after_a_message_is_found_in_time(
    autojump_clock: MockClock,
) -> None:
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        line = await broker.line()
        await trio.sleep(31)  # just after a ping
        await line.send({"ch": "nobody"})
        spoke = trio.current_time()
        with pytest.raises(ConnectionLostError, match="after a ping"):
            await client.wait_closed()
        assert trio.current_time() - spoke <= 40
        assert line.pings == 3  # after `stable_after`, and two regular ones


async def test_delay_between_clock_reads_is_no_suspend(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    readings = iter([0.0, 0.0, -5.0])
    monkeypatch.setattr(heartbeat, "time_suspended", lambda: next(readings, 0.0))
    async with scripted_client() as (client, _):
        await trio.sleep(10)
        assert client.is_connected()


class Talkative:
    """A transport whose peer sends all the time."""

    last_heard = math.inf
    pings = 0

    async def ping(self) -> None:
        self.pings += 1


async def test_peer_that_sends_data_gets_no_stability_ping(
    autojump_clock: MockClock,
) -> None:
    transport = Talkative()
    link = Link(transport)  # type: ignore[arg-type]
    beat = heartbeat.Heartbeat(link, 1000, 10, 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat.run)
        link.mark_healthy()
        await trio.sleep(900)
        nursery.cancel_scope.cancel()
    assert (transport.pings, link.error) == (0, None)


class Quiet(Talkative):
    """A transport on which nothing arrives, and that notes when it is pinged."""

    def __init__(self) -> None:
        self.last_heard = trio.current_time()
        self.pinged: list[float] = []

    async def ping(self) -> None:
        self.pinged.append(trio.current_time())


async def test_stability_is_shown_on_time_if_the_restoration_takes_long(
    autojump_clock: MockClock,
) -> None:
    transport = Quiet()
    link = Link(transport)  # type: ignore[arg-type]
    beat = heartbeat.Heartbeat(link, 1000, 10, 0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat.run)
        await trio.sleep(0.3)
        link.mark_healthy()
        stable_at = trio.current_time() + 0.5
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert transport.pinged == [stable_at]
