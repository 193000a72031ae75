"""What every peer does, whatever library it is written with."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.speed import messages

ORDER = messages.order_name(0)
CHANNEL = f"orders:{ORDER}"

Handlers: TypeAlias = dict[str, Callable[[dict[str, Any]], None]]


class Stopwatch:
    """The time and the processor's time from `start` to `stop`."""

    def start(self) -> None:
        """Begin."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """End."""
        self._wall = time.perf_counter() - self._wall
        self._cpu = time.process_time() - self._cpu

    def result(self, expected: int, delivered: int, dropped: int = 0) -> dict[str, float]:
        """What was measured.

        Args:
            expected: How many messages were pushed.
            delivered: How many the user's loop has seen.
            dropped: How many the client says that it dropped.

        Raises:
            RuntimeError: Some are missing.
        """
        check_all(expected, delivered, dropped)
        return {"wall": self._wall, "cpu": self._cpu, "delivered": delivered, "dropped": dropped}


def check_all(expected: int, delivered: int, dropped: int = 0) -> None:
    """Nothing may be lost without a word.

    Args:
        expected: How many messages were pushed.
        delivered: How many the user's loop has seen.
        dropped: How many the client says that it dropped.

    Raises:
        RuntimeError: Some are missing.
    """
    if delivered + dropped != expected:
        raise RuntimeError(f"{expected} were pushed, {delivered} came and {dropped} were dropped")


class Count:
    """A callback that counts messages."""

    def __init__(self) -> None:
        self.count = 0
        self.is_complete = False

    def take(self, data: dict[str, Any]) -> None:
        """Take a message.

        Args:
            data: The message's body.
        """
        self.count += 1
        if data["status"] == messages.LAST:
            self.is_complete = True


class Arrivals:
    """A callback that notes when messages came."""

    def __init__(self) -> None:
        self.times: list[tuple[int, str]] = []
        self.is_complete = False

    def take(self, data: dict[str, Any]) -> None:
        """Take a message.

        Args:
            data: The message's body.
        """
        self.times.append((time.monotonic_ns(), data["txHash"]))
        if data["status"] == messages.LAST:
            self.is_complete = True


def delays(times: list[tuple[int, str | None]] | list[tuple[int, str]]) -> list[int]:
    """How long each message was on its way, in nanoseconds, the first tenth left out.

    Args:
        times: When each came, and its ``txHash``, which says when it was sent.
    """
    return [came - int((sent or "")[2:22]) for came, sent in times[len(times) // 10 :]]


async def greet(
    send: Callable[[str], Awaitable[object]], receive: Callable[[], Awaitable[object]]
) -> None:
    """Authenticate and subscribe, each time waiting for the answer.

    Args:
        send: Sends a text.
        receive: Waits for a message.
    """
    for text in (messages.auth_text(), messages.subscribe_text(ORDER)):
        await send(text)
        await receive()


def resident() -> int:
    """This process's resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
