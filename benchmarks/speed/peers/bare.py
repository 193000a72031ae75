"""trio-websocket as it is, with big buffers, and a dict of callbacks."""

from __future__ import annotations

import gc
import json
import statistics
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from benchmarks.speed import messages
from benchmarks.speed.peers.counting import (
    CHANNEL,
    Arrivals,
    Count,
    Handlers,
    Stopwatch,
    check_all,
    delays,
    greet,
    resident,
)

_QUEUE: Final = 1_024  # messages
_BUFFER: Final = 64 * 1024  # bytes a read


def _connect(url: str) -> AbstractAsyncContextManager[WebSocketConnection]:
    return open_websocket_url(url, message_queue_size=_QUEUE, receive_buffer_size=_BUFFER)


def pushes(url: str, count: int) -> dict[str, float]:
    """Count messages as they come.

    Args:
        url: The server's.
        count: How many it pushes.
    """
    return trio.run(_pushes, url, count)


async def _pushes(url: str, count: int) -> dict[str, float]:
    tally, watch = Count(), Stopwatch()
    async with _connect(url) as socket:
        await greet(socket.send_message, socket.get_message)
        watch.start()
        await socket.send_message(messages.status_text(messages.GO))
        await socket.get_message()
        await _dispatch(socket, {CHANNEL: tally.take}, tally)
        watch.stop()
    return watch.result(count, tally.count)


async def _dispatch(
    socket: WebSocketConnection, handlers: Handlers, until: Count | Arrivals
) -> None:
    while not until.is_complete:
        message = json.loads(await socket.get_message())
        handlers[message["ch"]](message["data"])


def arrivals(url: str, count: int) -> dict[str, Any]:
    """Note how long messages are on their way.

    Args:
        url: The server's.
        count: How many it pushes.
    """
    return trio.run(_arrivals, url, count)


async def _arrivals(url: str, count: int) -> dict[str, Any]:
    noted = Arrivals()
    async with _connect(url) as socket:
        await greet(socket.send_message, socket.get_message)
        await socket.send_message(messages.status_text(messages.GO))
        await socket.get_message()
        await _dispatch(socket, {CHANNEL: noted.take}, noted)
    check_all(count, len(noted.times))
    return {"delays": delays(noted.times), "dropped": 0}


def idle(url: str, warm_up: int, count: int) -> dict[str, float]:
    """Open many clients that do nothing.

    Args:
        url: The server's.
        warm_up: How many are opened before the memory is looked at.
        count: How many are opened then.

    Returns:
        Bytes a client, and bytes of a process with one client.
    """
    return trio.run(_idle, url, warm_up, count)


async def _idle(url: str, warm_up: int, count: int) -> dict[str, float]:
    sizes = []
    async with trio.open_nursery() as nursery:
        for number in (1, warm_up, count):
            for _ in range(number):
                held = trio.Event()
                nursery.start_soon(_hold, url, held)
                await held.wait()
            await trio.sleep(0.1)
            gc.collect()
            sizes.append(resident())
        nursery.cancel_scope.cancel()
    return {"each": (sizes[2] - sizes[1]) / count, "process": sizes[0]}


async def _hold(url: str, held: trio.Event) -> None:
    async with _connect(url) as socket:
        await greet(socket.send_message, socket.get_message)
        held.set()
        await socket.get_message()


def connects(url: str, warm_up: int, count: int) -> float:
    """Connect many times, one after the other.

    Args:
        url: The server's.
        warm_up: How many don't count.
        count: How many do.

    Returns:
        The median of the seconds until the reply to ``subscribe``.
    """
    return trio.run(_connects, url, warm_up, count)


async def _connects(url: str, warm_up: int, count: int) -> float:
    taken = []
    for _ in range(warm_up + count):
        began = time.perf_counter()
        async with _connect(url) as socket:
            await greet(socket.send_message, socket.get_message)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken[warm_up:])
