"""A broker for the tests of commands, and terminals to run them in.

A command runs Trio in the main thread, where signals go. So the broker has a thread of its own.
"""

from __future__ import annotations

import math
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, Unpack

import pytest
import trio

from trio_broker import BrokerWSClient
from trio_broker.cli import main
from trio_broker.sandbox import SandboxOptions, ThreadedSandbox, open_threaded_sandbox
from trio_broker.sandbox.exchange import Exchange

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "trio_broker.cli")

# The same, with a client that gives a lost connection up at once.
IMPATIENT = (
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

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0


class Broker:
    """A sandbox in another thread."""

    def __init__(self, sandbox: ThreadedSandbox) -> None:
        self.url = sandbox.url
        self.host = self.url.split("/")[2]
        self.variables = {
            "BROKER_WS_URL": self.url,
            "BROKER_API_KEY": sandbox.api_key,
            "BROKER_SECRET_KEY": sandbox.secret_key,
        }
        self.do = sandbox.do
        self.orders = sandbox.orders
        self.revive = sandbox.revive
        # For what is done in the broker's thread already, and for `soon`.
        self.sandbox = sandbox.do(lambda it: it)
        self._token = sandbox.do(lambda _: trio.lowlevel.current_trio_token())

    def soon(self, what: Callable[[], object]) -> None:
        """Have something done in the broker's thread, after what it does now."""
        self._token.run_sync_soon(what)

    def received(self) -> list[str | None]:
        """The operations of all messages that came."""
        return self.do(lambda it: [one.op for each in it.connections for one in each.received])


@contextmanager
def broker_in_thread(**options: Unpack[SandboxOptions]) -> Iterator[Broker]:
    with open_threaded_sandbox(**options) as sandbox:
        yield Broker(sandbox)


@contextmanager
def when_taken(what: Callable[[], object]) -> Iterator[None]:
    """Have something done, in the broker's thread, at the moment when it takes a swap."""
    take = Exchange.swap

    def swap(self: Exchange, *args: Any) -> Any:
        taken = take(self, *args)
        what()
        return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "swap", swap)
        yield


def set_default(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Change defaults of the client's options, which the command line doesn't have."""
    defaults = BrokerWSClient.__init__.__kwdefaults__
    assert defaults is not None
    for name, value in options.items():
        monkeypatch.setitem(defaults, name, value)


def closings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each closing of a client, whether it was given the time to say goodbye."""
    close = BrokerWSClient.aclose
    politely = []

    async def aclose(self: BrokerWSClient) -> None:
        politely.append(trio.current_effective_deadline() > -math.inf)
        await close(self)

    monkeypatch.setattr(BrokerWSClient, "aclose", aclose)
    return politely


def status(*args: object) -> object:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code


class Terminal:
    """A process whose standard input, and by default all of its output, is a terminal."""

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
        """Read until a text is on the screen."""
        while text not in self.shown:
            assert self._read(), f"{text!r} never came: {self.shown!r}"
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read the rest, and wait for the end."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
        assert ready, f"nothing more came: {self.shown!r}"
        try:
            chunk = os.read(self._master, 65536)
        except OSError:
            return False  # how Linux says that the other end is closed
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)
