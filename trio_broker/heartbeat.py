"""Is the peer alive? Pings at intervals, and an eye on our own clock.

A peer that goes without a word leaves a socket on which nothing ever happens. So it is pinged, and
silence after a ping means that it is gone. Any byte shows that it lives, not the pong alone: a peer
that is busy with a stream of data may be late with its pong.

**Silence counts only while we listen.** When this process was stopped, or its event loop was
blocked, the time to answer is over on the clock, though the peer may have answered long ago, or was
never asked. So the time is counted in slices, and a slice that took longer than it should counts as
one slice; and before the verdict, what has arrived is read.

**A machine that slept is another matter.** Its peer has not been answered for minutes or hours and
has very likely hung up, and no packet said so. The connection is replaced at once instead of being
asked first, so that whoever opens a laptop sees what is true a little later. Where there is a clock
that goes on during sleep (``CLOCK_BOOTTIME``), it runs ahead of the monotonic one then; where there
is none, the pings find out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker.exceptions import BrokerError, ConnectionLostError
from trio_broker.transports import Transport

_SLICE: Final = 1.0
_LOOK_INTERVAL: Final = 1.0
_SHORTEST_SLEEP: Final = 1.0
# A peer that talks but answers no ping has been asked often enough then, and would collect them.
_MOST_PINGS: Final = 3

_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def time_asleep() -> float:
    """The seconds for which this machine was suspended since it started.

    Returns:
        Seconds, and always 0 where the system doesn't tell.
    """
    if _BOOT_CLOCK is None:
        return 0.0
    return time.clock_gettime(_BOOT_CLOCK) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Heartbeat:
    """Watches over one connection.

    Args:
        transport: The WebSocket.
        interval: Seconds between two pings.
        timeout: Seconds of silence after a ping that make the peer dead.
        lose: Called with the reason when the connection is to be given up.

    Attributes:
        latency: The last ping's round trip in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        interval: float,
        timeout: float,
        lose: Callable[[BrokerError], None],
    ) -> None:
        self._transport = transport
        self._interval = interval
        self._timeout = timeout
        self._lose = lose
        self.latency: float | None = None
        self._awake_since = time_asleep()
        self._pings = 0

    @property
    def slept(self) -> float:
        """Seconds that the machine has slept since the last look, or that ended the connection."""
        return max(0.0, time_asleep() - self._awake_since)

    @enable_ki_protection
    async def run(self) -> None:
        """Watch until cancelled. It raises nothing: `lose` is told."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_for_sleep)
            await self._beat(nursery)

    @enable_ki_protection
    async def _watch_for_sleep(self) -> None:
        while (slept := self.slept) < _SHORTEST_SLEEP:
            self._awake_since += slept
            await trio.sleep(_LOOK_INTERVAL)
        self._lose(ConnectionLostError(f"this machine slept for {slept:.0f} s"))

    async def _beat(self, nursery: trio.Nursery) -> None:
        pinged = trio.current_time()
        while True:
            # From ping to ping, or a peer that spoke after one would have longer to be found dead.
            await trio.sleep_until(pinged + self._interval)
            pinged = trio.current_time()
            answered = trio.Event()
            if self._pings < _MOST_PINGS:
                self._pings += 1
                # In a task of its own: cancelling a ping may leave half a frame behind.
                nursery.start_soon(self._ping, answered)
            await self._wait(answered)
            # What came while this process didn't run is read before the verdict.
            await trio.lowlevel.checkpoint()
            if not answered.is_set() and self._transport.last_heard < pinged:
                self._lose(
                    ConnectionLostError(f"nothing came for {self._timeout:g} s after a ping")
                )

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
            await self._transport.ping()
        except BrokerError as error:
            self._lose(error)
        else:
            self.latency = trio.current_time() - began
            self._pings -= 1
            answered.set()
