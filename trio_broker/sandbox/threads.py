"""A sandbox in its own thread, for programs that don't run Trio.

A plain test, a test of an asyncio program, and a test that starts its program with `trio.run` have
no Trio run to open a sandbox in. So the sandbox gets a thread with its own Trio run. A sandbox must
not be used from another thread. Therefore each call is run in the sandbox's thread, between two
steps of Trio, and its result or error is returned. Trio guarantees that it runs every accepted
call, even if its run is about to end, so a caller never waits forever.

>>> with open_threaded_sandbox(seed=7) as sandbox:
...     trio.run(my_program, sandbox.url)
...     assert sandbox.balances()["BTC"].locked == 0
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

import trio

from trio_broker.models import Balance
from trio_broker.sandbox.accounts import Account
from trio_broker.sandbox.embedded import Sandbox, open_sandbox
from trio_broker.sandbox.events import SandboxEvent
from trio_broker.sandbox.orders import Order, Outcome
from trio_broker.sandbox.rules import Settings
from trio_broker.sandbox.state import StatePath

if TYPE_CHECKING:
    from trio_broker import BrokerWSClient

_T = TypeVar("_T")

# Seconds after its `close_timeout`, within which a sandbox ends unless it is blocked.
_STOP_TIMEOUT: Final = 30.0
# The same after an exception such as Ctrl-C: the thread ends with the process anyway.
_ABORT_TIMEOUT: Final = 2.0


class SandboxOptions(Settings, total=False):
    """All keyword arguments of `open_sandbox`, which documents them."""

    seed: int | None
    host: str
    port: int
    rest_port: int
    clock: Callable[[], float]
    accounts: Iterable[Account]
    state: StatePath | None
    on_event: Callable[[SandboxEvent], object] | None


class ThreadedSandbox:
    """A running sandbox in another thread; `open_threaded_sandbox` makes one.

    Its methods may be called in any thread, also in an event loop's. They block briefly, until the
    sandbox's thread has run the call. All raise RuntimeError once the sandbox has ended.

    Attributes:
        url: The URL of its WebSocket, for clients on this machine.
        rest_url: The base URL of its REST side.
        api_key: The API key of its first account, ``test_key_1``.
        secret_key: That account's secret key, ``test_secret_1``.
        accounts: All accounts: the two documented ones, then those that were added.
    """

    def __init__(self, sandbox: Sandbox, nursery: trio.Nursery) -> None:
        self.url: str = sandbox.url
        self.rest_url: str = sandbox.rest_url
        self.api_key: str = sandbox.api_key
        self.secret_key: str = sandbox.secret_key
        self.accounts: tuple[Account, ...] = sandbox.accounts
        self._sandbox = sandbox
        self._nursery = nursery
        self._thread = threading.current_thread()
        self._process = os.getpid()
        self._token = trio.lowlevel.current_trio_token()

    def do(self, what: Callable[[Sandbox], _T]) -> _T:
        """Call a function with the sandbox, in the sandbox's thread.

        >>> fault = sandbox.do(lambda sandbox: sandbox.faults.stop_pushing())
        >>> sandbox.do(lambda _: fault.lift())

        Args:
            what: The function. It must not block, because the sandbox stops meanwhile. From the
                sandbox's own thread, for example from `on_event`, it is called at once.

        Returns:
            The function's result. If it is a part of the sandbox, such as a `Fault`, it must still
            be used only in the sandbox's thread.

        Raises:
            RuntimeError: The sandbox has ended, or runs in another process.
            TypeError: `what` is asynchronous. For `revive`, use the method of this class.
            BaseException: The exception of `what`.
        """
        if os.getpid() != self._process:
            # A fork doesn't copy the thread, so the call would never return.
            raise RuntimeError("the sandbox runs in another process: this one was forked from it")
        if threading.current_thread() is self._thread:
            return self._done(what)
        done: Future[_T] = Future()

        def act() -> None:
            with _Carried(done):
                done.set_result(self._done(what))

        try:
            self._token.run_sync_soon(act)
        except trio.RunFinishedError:
            raise _ended() from None
        return done.result()

    def _done(self, what: Callable[[Sandbox], _T]) -> _T:
        result = what(self._sandbox)
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError(f"{result.__qualname__} is async, but it would not be awaited here")
        return result

    def client(self, account: int | str = 0, **options: Any) -> BrokerWSClient:
        """A client of this sandbox, not yet connected, for a Trio run of the test's own.

        Args:
            account: The account's position in `accounts`, or its API key.
            options: Options of `BrokerWSClient`. Clock, dialect and signing key are the sandbox's,
                unless they are given here.
        """
        return self.do(lambda sandbox: sandbox.client(account, **options))

    def balances(self, account: int | str = 0) -> dict[str, Balance]:
        """An account's balances now, by asset.

        Args:
            account: Its position in `accounts`, or its API key.
        """
        return self.do(lambda sandbox: sandbox.balances(account))

    def orders(self, account: int | str | None = None) -> tuple[Order, ...]:
        """The orders in the order of their acceptance, one for every accepted swap.

        Args:
            account: The account's position in `accounts`, or its API key; None for all.
        """
        return self.do(lambda sandbox: sandbox.orders(account))

    def order(self, order_id: str) -> Order:
        """An order as it is now.

        Args:
            order_id: Its id.

        Raises:
            KeyError: There is none.
        """
        return self.do(lambda sandbox: sandbox.order(order_id))

    def next_outcome(self, *outcomes: Outcome | str) -> None:
        """Set the outcomes of the next orders: the first for the next order, and so on.

        Args:
            outcomes: An `Outcome` or its text for each order.

        Raises:
            ValueError: There is no such outcome.
        """
        self.do(lambda sandbox: sandbox.next_outcome(*outcomes))

    def drop_connections(self, account: int | str | None = None) -> int:
        """Close clients' sockets at once, without a close frame.

        Args:
            account: Only of clients of this account; None for all.

        Returns:
            The number of closed connections.
        """
        return self.do(lambda sandbox: sandbox.drop_connections(account))

    def kill(self) -> None:
        """Stop listening and reset every connection: `Faults.kill`.

        Raises:
            RuntimeError: It is killed already.
        """
        self.do(lambda sandbox: sandbox.faults.kill())

    def revive(self) -> None:
        """Listen again, at the same address and port. Returns once clients can connect.

        Not for the sandbox's own thread, which would wait for itself.

        Raises:
            RuntimeError: It isn't killed; or it is the sandbox's own thread that asks.
            OSError: It can't listen there any more.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("in the sandbox's own thread, await sandbox.faults.revive()")
        done: Future[None] = Future()

        async def revive() -> None:
            with _Carried(done):
                await self._sandbox.faults.revive()
                done.set_result(None)

        self.do(lambda _: self._nursery.start_soon(revive))
        done.result()


def _ended() -> RuntimeError:
    return RuntimeError("the sandbox has ended")


class _Carried:
    """Move an exception from the block to a future, and so to the thread that waits for it."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(error, trio.Cancelled):
            # Trio needs it. The sandbox ends, so the call can't be finished.
            self._future.set_exception(_ended())
            return False
        if error is not None:
            self._future.set_exception(error)
        return True


class _Run:
    """The sandbox's thread, and its state as seen from outside.

    Attributes:
        began: Done once clients can connect, or once they never will.
        ended: Done once the sandbox has ended.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self.began: Future[ThreadedSandbox] = Future()
        self.ended: Future[None] = Future()
        self._token: trio.lowlevel.TrioToken  # there is one once it began
        self._options = options
        self._leave = trio.Event()
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=self._main, name="trio_broker.sandbox", daemon=True)
        self._thread.start()

    def stop(self, *, politely: bool) -> None:
        """End the sandbox, and wait for its thread.

        Raises:
            RuntimeError: The thread is blocked in a call. If not `politely`, it is abandoned
                instead.
        """
        if self.began.exception() is not None:
            return
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._leave.set if politely else self._scope.cancel)
        timeout = (
            _STOP_TIMEOUT + self._options.get("close_timeout", 0) if politely else _ABORT_TIMEOUT
        )
        self._thread.join(timeout)
        if self._thread.is_alive() and politely:
            raise RuntimeError("the sandbox can't end: a call in its thread never returns")

    def _main(self) -> None:
        with _Carried(self.ended):
            trio.run(self._serve)
            self.ended.set_result(None)
        if not self.began.done():
            self.began.set_exception(self.ended.exception())

    async def _serve(self) -> None:
        with self._scope:
            async with open_sandbox(**self._options) as sandbox, trio.open_nursery() as nursery:
                self._token = trio.lowlevel.current_trio_token()
                self.began.set_result(ThreadedSandbox(sandbox, nursery))
                await self._leave.wait()
                nursery.cancel_scope.cancel()


@contextmanager
def open_threaded_sandbox(**options: Unpack[SandboxOptions]) -> Iterator[ThreadedSandbox]:
    """Run a sandbox broker in its own thread during the block.

    It is `open_sandbox` for code without Trio: plain tests, asyncio tests, and programs that call
    `trio.run` themselves. Entering it returns once clients can connect. Leaving it closes their
    connections with code 1001, or at once after an exception. Then the thread has ended.

    Its time is real: it can't use a `trio.testing.MockClock`. For fast orders, set
    `Rules.pending_delay` and `Rules.processing_delay`.

    Args:
        options: The keyword arguments of `open_sandbox`. `clock` and `on_event` are called in the
            sandbox's thread.

    Raises:
        ConfigurationError: A setting or an account is invalid; or the file of `state` is invalid,
            damaged, has another seed, or is in use by another sandbox.
        OSError: It can't listen there, or can't read or write the file. If it can't write a
            change, the sandbox ends, and this is raised from the end of the block.
        RuntimeError: At the end of the block: the thread can't end, because a call in it, for
            example by `ThreadedSandbox.do`, never returns.
    """
    run = _Run(options)
    try:
        yield run.began.result()
    except BaseException:
        run.stop(politely=False)  # the user's error has precedence over the sandbox's
        raise
    run.stop(politely=True)
    run.ended.result()
