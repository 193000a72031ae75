"""A sandbox broker in a thread of its own, for code that runs Trio in the main thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import pytest
import trio

from trio_broker.sandbox import SandboxOptions, ThreadedSandbox, open_threaded_sandbox
from trio_broker.sandbox.exchange import Exchange


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
        # For code that runs in the broker's thread, and for `soon`.
        self.sandbox = sandbox.do(lambda it: it)
        self._token = sandbox.do(lambda _: trio.lowlevel.current_trio_token())

    def soon(self, what: Callable[[], object]) -> None:
        """Call something in the broker's thread, after what it does now."""
        self._token.run_sync_soon(what)

    def received(self) -> list[str | None]:
        """The operations of all received messages."""
        return self.do(lambda it: [one.op for each in it.connections for one in each.received])


@contextmanager
def broker_in_thread(**options: Unpack[SandboxOptions]) -> Iterator[Broker]:
    with open_threaded_sandbox(**options) as sandbox:
        yield Broker(sandbox)


@contextmanager
def when_taken(what: Callable[[], object]) -> Iterator[None]:
    """Call something in the broker's thread when it accepts a swap."""
    take = Exchange.swap

    def swap(self: Exchange, *args: Any) -> Any:
        taken = take(self, *args)
        what()
        return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "swap", swap)
        yield
