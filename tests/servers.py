"""A server as a process of its own, as its page starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from trio_broker.sandbox import Sandbox

ROOT: Final = Path(__file__).parents[1]
# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE: Final = 60.0
BIN: Final = Path(sys.executable).parent


@asynccontextmanager
async def open_websocket(
    server: Server, path: str, origin: str | None = None
) -> AsyncIterator[WebSocketConnection]:
    """A WebSocket to a server, as one of its own pages would open it, or another site's."""
    origin = f"http://{server.address}" if origin is None else origin
    host, _, port = server.address.partition(":")
    with trio.fail_after(PATIENCE):
        stream = await trio.open_tcp_stream(host, int(port))
        try:
            async with trio.open_nursery() as nursery:
                headers = [(b"Origin", origin.encode())]
                async with await wrap_client_stream(
                    nursery, stream, server.address, path, extra_headers=headers
                ) as socket:
                    yield socket
        finally:
            # Where the peer hangs up first, trio-websocket leaves the socket to us.
            await trio.aclose_forcefully(stream)


async def handshake(server: Server, path: str, origin: str | None) -> bytes:
    """What a request for a WebSocket is answered with: the first line."""
    host, _, port = server.address.partition(":")
    origin_line = "" if origin is None else f"Origin: {origin}\r\n"
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {server.address}\r\n{origin_line}"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(request.encode())
            return (await stream.receive_some()).partition(b"\r\n")[0]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return {**own, "PYTHONUNBUFFERED": "1", **variables}


def variables(sandbox: Sandbox, account: int = 0) -> dict[str, str]:
    """What names a sandbox's account as the broker to use."""
    chosen = sandbox.accounts[account]
    return {
        "BROKER_WS_URL": sandbox.url,
        "BROKER_API_KEY": chosen.api_key,
        "BROKER_SECRET_KEY": chosen.secret_key,
    }


@attrs.define
class Server:
    """A server that runs.

    Attributes:
        process: Its process.
        address: Where it listens: host and port.
        output: All that it has written.
    """

    process: trio.Process
    address: str = ""
    output: str = ""

    async def read_until(self, pattern: str) -> re.Match[str]:
        """Read on until it has said something."""
        output = self.process.stdout
        assert output is not None
        while not (found := re.search(pattern, self.output)):
            chunk = await output.receive_some()
            assert chunk, self.output
            self.output += chunk.decode()
        return found

    async def read_rest(self) -> None:
        """Read on to the end, or it would wait for us once the pipe is full."""
        output = self.process.stdout
        assert output is not None
        async for chunk in output:
            self.output += chunk.decode()

    async def stop(self, number: int) -> int:
        """Send it a signal, and give its exit status."""
        self.process.send_signal(number)
        with trio.fail_after(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def started(command: str, ready: str, **variables: str) -> AsyncIterator[Server]:
    """A server for as long as the block lasts.

    Args:
        command: As its page has it, with a port of 0.
        ready: A pattern, whose first group is its address.
        variables: Further variables of the environment.
    """
    program, *arguments = command.split()
    process = await trio.lowlevel.open_process(
        [str(BIN / program), *arguments],
        cwd=ROOT,
        env=environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    server = Server(process)
    try:
        with trio.fail_after(PATIENCE):
            server.address = (await server.read_until(ready))[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read_rest)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    assert "Traceback" not in server.output, server.output
