"""Running commands in tests: in this process, in subprocesses, and on terminals."""

from __future__ import annotations

import math
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import trio

from tests.broker_thread import Broker
from trio_broker import BrokerWSClient
from trio_broker.cli import main

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "trio_broker.cli")

# The same command, with a client that doesn't reconnect.
WITHOUT_RECONNECTING = (
    sys.executable,
    "-c",
    (
        "from trio_broker import BrokerWSClient, ReconnectPolicy\n"
        "from trio_broker.cli import main\n"
        "options = BrokerWSClient.__init__.__kwdefaults__\n"
        "options['reconnect'] = ReconnectPolicy(max_attempts=0)\n"
        "main()"
    ),
)

PATIENCE = 30.0  # seconds after which a test that hangs fails

# Prefixes of variables that change the behaviour of commands.
USER_VARIABLES = (
    "BROKER_", "NO_COLOR", "FORCE_COLOR", "TTY_", "COLUMNS", "LINES", "SSL_CERT_FILE",
)  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command in a subprocess."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith(USER_VARIABLES)}
    return {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


def set_default(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Change the defaults of client options that the command line doesn't have."""
    defaults = BrokerWSClient.__init__.__kwdefaults__
    assert defaults is not None
    for name, value in options.items():
        monkeypatch.setitem(defaults, name, value)


def record_closings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record for each closed client whether it had time to close cleanly."""
    close = BrokerWSClient.aclose
    had_time = []

    async def aclose(self: BrokerWSClient) -> None:
        had_time.append(trio.current_effective_deadline() > -math.inf)
        await close(self)

    monkeypatch.setattr(BrokerWSClient, "aclose", aclose)
    return had_time


def status(*args: object) -> object:
    """Run a command in this process, and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a subprocess with pipes and further variables."""
    return subprocess.run(  # noqa: S603 - our own command
        command,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def swap_once(broker: Broker, client_order_id: str = "mine") -> str:
    """Swap with a client, and return the order ID."""

    async def once() -> str:
        async with BrokerWSClient.from_env(broker.variables) as client:
            receipt = await client.do_swap("1", "ETH", "USDT", client_order_id=client_order_id)
            return receipt.order_id

    return trio.run(once)


@asynccontextmanager
async def serving(
    *args: str, command: Sequence[str] = COMMAND
) -> AsyncIterator[tuple[trio.Process, dict[str, str]]]:
    """Run a sandbox in a subprocess, and yield the variables that it prints."""
    process = await trio.lowlevel.open_process(
        [*command, "sandbox", *args], env=environment(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process, await read_variables(process.stdout)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def read_variables(stdout: trio.abc.ReceiveStream) -> dict[str, str]:
    """Read the three variables that a sandbox prints."""
    printed = b""
    with trio.fail_after(PATIENCE):
        while printed.count(b"\n") < 3:
            chunk = await stdout.receive_some()
            assert chunk, "the sandbox has exited"
            printed += chunk
    return dict(line.split("=", 1) for line in printed.decode().splitlines())


class Terminal:
    """A process with a terminal as its standard input and, by default, its outputs."""

    def __init__(
        self, *args: str, columns: int = 80, command: Sequence[str] = COMMAND, **streams: Any
    ) -> None:
        self._master, inside = pty.openpty()
        streams = {"stdout": inside, "stderr": inside, **streams}
        self.shown = ""
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, *args],
            stdin=inside,
            env={**os.environ, "COLUMNS": str(columns)},
            **streams,
        )
        os.close(inside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        os.close(self._master)

    def until(self, text: str) -> str:
        """Read until a text is shown."""
        while text not in self.shown:
            assert self._read(), f"{text!r} wasn't shown: {self.shown!r}"
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read the rest, and return the exit status."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
        assert ready, f"no more output: {self.shown!r}"
        try:
            chunk = os.read(self._master, 65536)
        except OSError:
            return False  # Linux raises it when the other end is closed
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)
