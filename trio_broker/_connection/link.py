"""The state that the driver and the tasks of one connection share."""

from __future__ import annotations

import math

import trio

from trio_broker.exceptions import BrokerError
from trio_broker.transports import Transport


class Wakeup:
    """Wakes one waiting task. A wake-up while no task waits is not lost."""

    def __init__(self) -> None:
        self._woken = trio.Event()

    def wake(self) -> None:
        """Wake the task."""
        self._woken.set()

    async def wait(self) -> None:
        """Wait until `wake` is called; a call since the last wait counts. Cancelling is safe."""
        await self._woken.wait()
        self._woken = trio.Event()


class Link:
    """One open connection.

    Attributes:
        transport: The WebSocket.
        writer: Wakes the task that sends.
        scope: The cancel scope of the connection's tasks.
        error: Why it has ended or is being replaced.
        is_replaced: Whether the client itself wants another connection, which is no attempt.
        restored: Set when its channels are restored.
        healthy_since: When that was, or infinity.
        latency: The round trip of the last heartbeat, in seconds.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport: Transport = transport
        self.writer: Wakeup = Wakeup()
        self.scope: trio.CancelScope = trio.CancelScope()
        self.error: BrokerError | None = None
        self.is_replaced: bool = False
        self.restored: trio.Event = trio.Event()
        self.healthy_since: float = math.inf
        self.latency: float | None = None

    def mark_healthy(self) -> None:
        """Note that its channels are restored."""
        self.healthy_since = trio.current_time()
        self.restored.set()

    def fail(self, error: BrokerError, *, is_attempt: bool = True) -> None:
        """End the connection; the first error counts."""
        if self.error is None:
            self.error, self.is_replaced = error, not is_attempt
        self.scope.cancel()
