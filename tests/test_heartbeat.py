"""Pings, silence, and the machine's own sleep."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import open_scripted, scripted_client
from trio_broker import ConnectionLostError, heartbeat

pytestmark = pytest.mark.usefixtures("each_transport")


async def test_a_machine_that_slept_replaces_its_connection_at_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asleep = 5000.0
    monkeypatch.setattr(heartbeat, "time_asleep", lambda: asleep)
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


def test_time_asleep_is_never_less_than_nothing_and_doesnt_go_on_by_itself() -> None:
    assert heartbeat.time_asleep() >= -0.001
    assert abs(heartbeat.time_asleep() - heartbeat.time_asleep()) < 0.5


def test_where_the_system_does_not_tell_the_machine_never_slept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "_BOOT_CLOCK", None)
    assert heartbeat.time_asleep() == 0.0


def test_sleep_is_what_the_clocks_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BOOT_CLOCK", 7)
    clocks = {7: 150.0, time.CLOCK_MONOTONIC: 30.0}
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)
    assert heartbeat.time_asleep() == 120.0


async def test_time_for_which_the_loop_was_blocked_does_not_count_as_silence(
    mock_clock: MockClock,
) -> None:
    async with open_scripted(pongs=False) as broker, broker.client() as client:
        line = await broker.line()
        await wait_all_tasks_blocked(0.001)
        mock_clock.jump(30)
        while not line.pings:
            await wait_all_tasks_blocked(0.001)
        mock_clock.jump(500)  # nobody runs meanwhile
        await wait_all_tasks_blocked(0.001)
        assert client.is_connected()
        for _ in range(10):
            mock_clock.jump(1)
            await wait_all_tasks_blocked(0.001)
        assert not client.is_connected()


async def test_a_peer_that_goes_after_it_spoke_is_found_as_soon_as_one_that_never_did(
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
        assert line.pings == 2


async def test_two_clocks_that_are_read_apart_are_no_sleep(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    readings = iter([0.0, 0.0, -5.0])
    monkeypatch.setattr(heartbeat, "time_asleep", lambda: next(readings, 0.0))
    async with scripted_client() as (client, _):
        await trio.sleep(10)
        assert client.is_connected()
