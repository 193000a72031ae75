"""Finds out that the peer is dead: pings at intervals, and a watch on this machine's clocks.

If a peer disappears without closing, its socket just stays silent. So the peer is pinged, and
silence after a ping means that it is dead. Any byte shows that it is alive: a peer that sends a
stream of data may be late with its pong.

**Silence counts only while this process runs.** The process may have been stopped, or its event
loop blocked. The time to answer is then over by the clock, but the answer may be waiting in the
socket. So the time is counted in slices, and a slice that took too long counts as one. Before the
connection is given up, everything that has arrived is read.

**After a suspend** the peer has very likely hung up, and nothing reports that. So the connection is
replaced at once, without a ping. ``CLOCK_BOOTTIME`` shows a suspend, because it then runs ahead of
the monotonic clock. Without that clock, the pings find out.
"""

from __future__ import annotations

import time
from typing import Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._connection.link import Link
from trio_broker._quiet_nursery import QuietNursery
from trio_broker.exceptions import BrokerError, ConnectionLostError

_SLICE: Final = 1.0
_LOOK_INTERVAL: Final = 1.0
_MIN_SLEEP: Final = 1.0
# A peer that sends data but answers no ping gets no more of them.
_MAX_PINGS: Final = 3

_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def time_suspended() -> float:
    """The seconds for which this machine was suspended since it started; 0 if that is unknown."""
    if _BOOT_CLOCK is None:
        return 0.0
    return time.clock_gettime(_BOOT_CLOCK) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Heartbeat:
    """Watches one connection."""

    def __init__(self, link: Link, interval: float, timeout: float, stable_after: float) -> None:
        self._link = link
        self._interval = interval
        self._timeout = timeout
        self._stable_after = stable_after
        self._awake_since = time_suspended()
        self._pings = 0
        self._is_stable = False

    @property
    def slept(self) -> float:
        """The seconds of a suspend that is unnoticed, or that has ended the connection."""
        return max(0.0, time_suspended() - self._awake_since)

    @enable_ki_protection
    async def run(self) -> None:
        """Watch until cancelled. A dead connection is given up; nothing is raised."""
        async with QuietNursery() as nursery:
            nursery.start_soon(self._watch_clocks, nursery)
            await self._beat(nursery)

    @enable_ki_protection
    async def _watch_clocks(self, nursery: trio.Nursery) -> None:
        """Notice a suspend of the machine, and show stability meanwhile."""
        while (slept := self.slept) < _MIN_SLEEP:
            self._awake_since += slept
            with trio.move_on_after(_LOOK_INTERVAL):
                await self._show_stability(nursery)
                await trio.sleep_forever()
        self._link.fail(ConnectionLostError(f"this machine slept for {slept:.0f} s"))

    async def _show_stability(self, nursery: trio.Nursery) -> None:
        """Ping once the connection is stable, if nothing else shows that it is.

        Its health lasts until the peer was last heard. On a quiet connection, the next regular ping
        may be a long time away. It may be cancelled and called again.
        """
        if self._is_stable:
            return
        await self._link.restored.wait()
        stable_at = self._link.healthy_since + self._stable_after
        await trio.sleep_until(stable_at)
        self._is_stable = True
        if self._link.transport.last_heard < stable_at:
            self._start_ping(nursery, trio.Event())

    async def _beat(self, nursery: trio.Nursery) -> None:
        pinged = trio.current_time()
        while True:
            # From ping to ping: data that came since doesn't delay the next one.
            await trio.sleep_until(pinged + self._interval)
            pinged = trio.current_time()
            answered = trio.Event()
            self._start_ping(nursery, answered)
            await self._wait(answered)
            # What came while this process didn't run is read first.
            await trio.lowlevel.checkpoint()
            if not answered.is_set() and self._link.transport.last_heard < pinged:
                self._link.fail(
                    ConnectionLostError(f"nothing came for {self._timeout:g} s after a ping")
                )

    def _start_ping(self, nursery: trio.Nursery, answered: trio.Event) -> None:
        if self._pings < _MAX_PINGS:
            self._pings += 1
            # In a task of its own, because a cancelled ping may leave half a frame behind.
            nursery.start_soon(self._ping, answered)

    async def _wait(self, answered: trio.Event) -> None:
        """Wait for an answer, for `timeout` seconds in which this process runs."""
        left = self._timeout
        while left > 0 and not answered.is_set():
            piece = min(left, _SLICE)
            with trio.move_on_after(piece):
                await answered.wait()
            left -= piece

    @enable_ki_protection
    async def _ping(self, answered: trio.Event) -> None:
        began = trio.current_time()
        try:
            await self._link.transport.ping()
        except BrokerError as error:
            self._link.fail(error)
        else:
            self._link.latency = trio.current_time() - began
            self._pings -= 1
            answered.set()
