"""The FastAPI example in the test's own Trio run: real sockets, and the sandbox within reach."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, cast

import attrs
import httpx2 as httpx
import trio
from fastapi import FastAPI
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIFramework
from trio.testing import wait_all_tasks_blocked

from examples.fastapi_service.app import create_app
from examples.fastapi_service.board import Board
from examples.fastapi_service.broker import FOR_A_SERVICE, Broker
from trio_broker import BrokerWSClient, ReconnectPolicy
from trio_broker.sandbox import Sandbox

EAGER = ReconnectPolicy(max_attempts=None, initial_delay=0.02, max_delay=0.05, retry_first=True)


Response = httpx.Response


def open_http(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=30.0)


async def until(is_so: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    while not is_so():
        await wait_all_tasks_blocked(0.001)


@attrs.frozen
class Event:
    kind: str
    data: Any


class Stream:
    """The server-sent events of a response.

    Read off the socket: httpx iterates in generators within generators, and leaves the inner ones
    to the garbage collector, which Trio warns of. Between events there are the chunks' sizes.
    """

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket
        self._read = b""

    async def line(self) -> str:
        """The next line; the end of the stream is `trio.EndOfChannel`."""
        while b"\n" not in self._read:
            more = await self._socket.receive_some()
            if not more:
                raise trio.EndOfChannel
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode().rstrip("\r")

    async def next(self) -> Event:
        kind = ""
        while not (line := await self.line()).startswith("data: "):
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
        return Event(kind, json.loads(line.removeprefix("data: ")))

    async def until(self, kind: str, **expected: Any) -> Any:
        """The first event of a kind whose data is as expected."""
        while True:
            event = await self.next()
            if event.kind == kind and expected.items() <= event.data.items():
                return event.data

    async def ends(self) -> bool:
        """Read to the end: whether it was the response's own, and no cut."""
        last = ""
        try:
            while True:
                last = await self.line() or last
        except trio.EndOfChannel:
            return last == "0"  # the last chunk's size


@asynccontextmanager
async def open_events(url: str) -> AsyncIterator[Stream]:
    address = url.removeprefix("http://")
    host, _, port = address.partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as socket:
        await socket.send_all(f"GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        stream = Stream(socket)
        assert " 200 " in await stream.line()
        yield stream


@attrs.frozen
class Service:
    app: FastAPI
    url: str
    http: httpx.AsyncClient
    stop: trio.Event

    @property
    def board(self) -> Board:
        board: Board = self.app.state.board
        return board

    @property
    def client(self) -> BrokerWSClient:
        return self.board.client

    async def swap(self, amount: str = "0.1", key: str | None = None, **more: Any) -> Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        asked = {"amount_in": amount, "asset_in": "ETH", "asset_out": "USDT", **more}
        return await self.http.post("/swap", json=asked, headers=headers)

    async def connected(self) -> None:
        """Wait until the client is connected: it isn't even begun at once, with a journal."""
        async with self.events() as stream:
            await stream.until("status", websocket_connected=True)

    def events(self) -> AbstractAsyncContextManager[Stream]:
        return open_events(self.url)


@asynccontextmanager
async def serving(broker: Broker, *, bind: str = "127.0.0.1:0") -> AsyncIterator[Service]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield broker

    app = create_app(opened)
    stop = trio.Event()

    async def until_told() -> None:
        await stop.wait()
        app.state.board.end_streams()

    config = Config()
    config.bind = [bind]
    config.errorlog = None
    config.graceful_timeout = 60.0  # what doesn't end by itself is to fail the test
    run = partial(serve, cast("ASGIFramework", app), config, shutdown_trigger=until_told)
    # Long enough never to matter: a service that never ends fails its test.
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (url,) = await nursery.start(run)
            async with open_http(url) as http:
                yield Service(app, url, http, stop)
            stop.set()


def broker_of(sandbox: Sandbox, **options: Any) -> Broker:
    options = {**FOR_A_SERVICE, "reconnect": EAGER, **options}
    return Broker(client=sandbox.client(**options), host="the sandbox", is_sandbox=True)
