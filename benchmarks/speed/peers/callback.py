"""A client of callbacks over the library websockets and asyncio: the least that one would write."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import hmac
import json
import secrets
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.speed import messages, sends
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


def _connect(url: str) -> connect:
    return connect(url, compression=None, proxy=None)


def pushes(url: str, count: int) -> dict[str, float]:
    """Count messages as they come.

    Args:
        url: The server's.
        count: How many it pushes.
    """
    return asyncio.run(_pushes(url, count))


async def _pushes(url: str, count: int) -> dict[str, float]:
    tally, watch = Count(), Stopwatch()
    async with _connect(url) as socket:
        await greet(socket.send, socket.recv)
        watch.start()
        await socket.send(messages.status_text(messages.GO))
        await socket.recv()
        await _dispatch(socket, {CHANNEL: tally.take}, tally)
        watch.stop()
    return watch.result(count, tally.count)


async def _dispatch(socket: ClientConnection, handlers: Handlers, until: Count | Arrivals) -> None:
    async for text in socket:
        message = json.loads(text)
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
    async with _connect(url) as socket:
        await greet(socket.send, socket.recv)
        await socket.send(messages.status_text(messages.GO))
        await socket.recv()
        await _dispatch(socket, {CHANNEL: noted.take}, noted)
    check_all(count, len(noted.times))
    return {"delays": delays(noted.times), "dropped": 0}


class Caller:
    """Calls an operation and waits for its reply, which a task of its own reads.

    Args:
        socket: The WebSocket.
        secret: The secret key.
    """

    def __init__(self, socket: ClientConnection, secret: str) -> None:
        self._socket = socket
        self._key = base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest())
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def read(self) -> None:
        """Read replies for as long as there are any."""
        async for text in self._socket:
            message = json.loads(text)
            self._replies.pop(message["op"]).set_result(message["data"])

    async def call(self, op: str, data: dict[str, Any]) -> dict[str, Any]:
        """Call an operation.

        Args:
            op: Its name.
            data: What it is given.
        """
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[op] = reply
        await self._socket.send(signed(self._key, op, data))
        return await reply


def signed(key: bytes, op: str, data: dict[str, Any]) -> str:
    """The text of a signed message.

    Args:
        key: The key.
        op: The operation.
        data: What it is given.
    """
    timestamp, nonce = int(time.time() * 1000), secrets.token_hex(16)
    body = json.dumps(data, separators=(",", ":"), sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    canonical = f"WS\n/ws/v1/{op}\n{timestamp}\n{nonce}\n{digest}"
    signature = hmac.new(key, canonical.encode(), hashlib.sha256).hexdigest()
    message = {"op": op, "ts": timestamp, "nonce": nonce, "sig": signature, "data": data}
    return json.dumps(message, separators=(",", ":"))


def calls(url: str, warm_up: int, count: int) -> dict[str, list[int]]:
    """Ask for estimates, one after the other.

    Args:
        url: The server's.
        warm_up: How many don't count.
        count: How many do.
    """
    return asyncio.run(_calls(url, warm_up, count))


async def _calls(url: str, warm_up: int, count: int) -> dict[str, list[int]]:
    wanted = {"amountIn": "100", "assetIn": "ETH", "assetOut": "USDT"}
    taken, sent = [], []
    async with _connect(url) as socket:
        await greet(socket.send, socket.recv)
        caller = Caller(socket, "secret")
        reading = asyncio.create_task(caller.read())
        for _ in range(warm_up + count):
            began = time.monotonic_ns()
            await caller.call("estimate", wanted)
            taken.append(time.monotonic_ns() - began)
            sent.append(sends.last.at - began)
        reading.cancel()
    return {"taken": taken[warm_up:], "sent": sent[warm_up:]}


def idle(url: str, warm_up: int, count: int) -> dict[str, float]:
    """Open many clients that do nothing.

    Args:
        url: The server's.
        warm_up: How many are opened before the memory is looked at.
        count: How many are opened then.

    Returns:
        Bytes a client, and bytes of a process with one client.
    """
    return asyncio.run(_idle(url, warm_up, count))


async def _idle(url: str, warm_up: int, count: int) -> dict[str, float]:
    sizes = []
    readers = []
    async with AsyncExitStack() as stack:
        for number in (1, warm_up, count):
            for _ in range(number):
                socket = await stack.enter_async_context(_connect(url))
                await greet(socket.send, socket.recv)
                readers.append(asyncio.create_task(Caller(socket, "secret").read()))
            await asyncio.sleep(0.1)
            gc.collect()
            sizes.append(resident())
        for reader in readers:
            reader.cancel()
    return {"each": (sizes[2] - sizes[1]) / count, "process": sizes[0]}


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
        async with _connect(url) as socket:
            await greet(socket.send, socket.recv)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken[warm_up:])
