"""aiohttp's WebSocket client, and a dict of callbacks."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

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
)


def pushes(url: str, count: int) -> dict[str, float]:
    """Count messages as they come.

    Args:
        url: The server's.
        count: How many it pushes.
    """
    return asyncio.run(_pushes(url, count))


async def _pushes(url: str, count: int) -> dict[str, float]:
    tally, watch = Count(), Stopwatch()
    async with ClientSession() as session, session.ws_connect(url, compress=0) as socket:
        await greet(socket.send_str, socket.receive_str)
        watch.start()
        await socket.send_str(messages.status_text(messages.GO))
        await socket.receive_str()
        await _dispatch(socket, {CHANNEL: tally.take}, tally)
        watch.stop()
    return watch.result(count, tally.count)


async def _dispatch(
    socket: ClientWebSocketResponse[bool], handlers: Handlers, until: Count | Arrivals
) -> None:
    async for received in socket:
        message = json.loads(received.data)
        handlers[message["ch"]](message["data"])
        if until.is_complete:
            break


def arrivals(url: str, count: int) -> dict[str, Any]:
    """Note how long messages are on their way.

    Args:
        url: The server's.
        count: How many it pushes.
    """
    return asyncio.run(_arrivals(url, count))


async def _arrivals(url: str, count: int) -> dict[str, Any]:
    noted = Arrivals()
    async with ClientSession() as session, session.ws_connect(url, compress=0) as socket:
        await greet(socket.send_str, socket.receive_str)
        await socket.send_str(messages.status_text(messages.GO))
        await socket.receive_str()
        await _dispatch(socket, {CHANNEL: noted.take}, noted)
    check_all(count, len(noted.times))
    return {"delays": delays(noted.times), "dropped": 0}


def connects(url: str, warm_up: int, count: int) -> float:
    """Connect many times, one after the other.

    Args:
        url: The server's.
        warm_up: How many don't count.
        count: How many do.

    Returns:
        The median of the seconds until the reply to ``subscribe``.
    """
    return asyncio.run(_connects(url, warm_up, count))


async def _connects(url: str, warm_up: int, count: int) -> float:
    taken = []
    for _ in range(warm_up + count):
        began = time.perf_counter()
        async with ClientSession() as session, session.ws_connect(url, compress=0) as socket:
            await greet(socket.send_str, socket.receive_str)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken[warm_up:])
