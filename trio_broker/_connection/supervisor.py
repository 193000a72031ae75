"""Opens one connection after another: when the next one is tried, and how the client ends.

One task runs all of this, in the user's nursery or the client's. It ends when the client is closed,
when its nursery is cancelled, or when the connection has failed for good. In each case all
requests, streams and waiting tasks are ended, and no exception reaches the nursery.

**Over an outage,** the engine keeps the streams and the reads that wait. Requests in flight fail
with the connection, and a swap never waits for another one.

**Every exit is bounded:** by `close_timeout`, or by half a second when cancelled.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import random
from typing import Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._client_log import ClientLog
from trio_broker._connection.backoff import Backoff
from trio_broker._connection.connection import Connection
from trio_broker._connection.driver import Driver
from trio_broker._connection.link import Link
from trio_broker._journal.journal import SwapJournal
from trio_broker._quiet_nursery import QuietNursery
from trio_broker._redactor import Redactor
from trio_broker.events import Closed, Connected, Disconnected, GaveUp, Restored
from trio_broker.exceptions import (
    BrokerError,
    ClientClosedError,
    ConnectionLostError,
    NotConnectedError,
    NotSentError,
    ReconnectFailedError,
    fresh,
)
from trio_broker.models import ConnectionState
from trio_broker.settings import Settings
from trio_broker.signing import Signer
from trio_broker.transports import opener
from trio_broker.transports.tls import ClientContext

CLOSE_TIMEOUT_WHEN_CANCELLED: Final = 0.5
_LAST_MOMENT: Final = 0.1

# One for all clients, because each of the other kind takes 2.5 kB. It has no state, so the delays
# in forked processes differ.
_CHANCE: Final = random.SystemRandom()


class Supervisor:
    """Keeps one client connected.

    Attributes:
        backoff: Decides when the next connection is tried.
    """

    def __init__(
        self,
        settings: Settings,
        driver: Driver,
        log: ClientLog,
        redactor: Redactor,
        journal: SwapJournal | None,
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._log = log
        self._redactor = redactor
        self._journal = journal
        self._open_transport = opener(settings.transport)
        self._tls = ClientContext(settings.ssl_context)
        self._signer = Signer(settings.secret_key, settings.effective_signing_key)
        self.backoff: Backoff = Backoff(settings.reconnect, _CHANCE)
        self._last_latency: float | None = None
        self._last_heard = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._process: int | None = None
        self._failure: BrokerError | None = None
        self._scope = trio.CancelScope()
        self._close_requested = trio.Event()
        self._close_by = math.inf
        self._connected = trio.Event()
        self._must_reconnect = False
        self._retry_now = trio.Event()
        self._over = trio.Event()

    @property
    def latency(self) -> float | None:
        """The round trip of the last heartbeat, in seconds."""
        link = self._driver.link
        latency = link.latency if link is not None else None
        return latency if latency is not None else self._last_latency

    # --- For the client --------------------------------------------------------------------

    @enable_ki_protection
    async def run(self) -> None:
        """Run from the first connection to the end. Cancelling closes within half a second."""
        failure: BrokerError | None = None
        try:
            with self._scope:
                async with QuietNursery() as nursery:
                    nursery.start_soon(self._driver.keep_time)
                    failure = await self._keep_connected()
                    nursery.cancel_scope.cancel()
        except Exception as fault:  # noqa: BLE001 - a fault must not end the user's nursery
            failure = self._internal_failure(fault)
        finally:
            try:
                self._finish(failure)
                if self._journal is not None:
                    with trio.move_on_at(self._exit_by(), shield=True):
                        await self._journal.aclose()
            finally:
                self._over.set()

    def _exit_by(self) -> float:
        """The deadline for closing the journal: that of the exit, but not at once."""
        now = trio.current_time()
        was_cancelled = self._scope.cancel_called or trio.current_effective_deadline() == -math.inf
        longest = CLOSE_TIMEOUT_WHEN_CANCELLED if was_cancelled else self._settings.close_timeout
        return max(min(self._close_by, now + longest), now + _LAST_MOMENT)

    def _internal_failure(self, fault: Exception) -> BrokerError:
        """The failure for a fault of this library."""
        self._log.fault("the connection ended with an internal error", fault)
        failure = BrokerError(self._redactor.text(f"internal error: {fault!r}"))
        failure.__cause__ = self._redactor.error(fault)
        return failure

    async def wait_connected(self) -> None:
        """Return once connected; raise if that can't happen any more.

        Raises:
            NotConnectedError: The client was never started, or is closed.
            BrokerError: The connection has failed for good.
        """
        await trio.lowlevel.checkpoint()
        self.check_process()
        while not self._driver.state.is_connected:
            self._raise_failure()
            self.check_usable()
            await self._connected.wait()

    @enable_ki_protection
    async def reconnect(self) -> None:
        """Replace the connection now, or retry now, and return once connected again.

        Raises:
            NotConnectedError: There is no connection, and there will be none.
            BrokerError: The connection has failed for good.
        """
        self.check_usable()
        if self._driver.state.is_connected and not self._must_reconnect:
            self._connected = trio.Event()
            error = ConnectionLostError("it was replaced, as 'reconnect' was called")
            self._driver.replace(error)
        if self._driver.state is ConnectionState.WAITING:
            self._retry_now.set()
        else:
            self._must_reconnect = True  # without a delay, even if the current attempt fails
        await self._connected.wait()
        await self.wait_connected()

    async def wait_over(self) -> None:
        """Return after the end, however the client has ended."""
        await self._over.wait()

    async def wait_closed(self) -> None:
        """Return after a close; raise if the connection has failed for good."""
        self.check_process()
        await self._over.wait()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise fresh(self._failure)

    def check_usable(self) -> None:
        """Raise if there is no connection and there will be none.

        Raises:
            NotConnectedError: The client was never started, is closed, or has failed; then the
                failure is the cause. Or this process was forked from the client's.
        """
        if self._process == os.getpid() and self._driver.state is ConnectionState.CONNECTED:
            return
        self.check_process()
        if self._driver.state is ConnectionState.IDLE:
            raise NotConnectedError(
                "the client isn't connected: use it under 'async with', or connect(nursery)"
            )
        if self._failure is not None:
            raise _unsent(self._failure)
        if self._driver.state.is_over:
            raise ClientClosedError("the client is closed")

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the client's."""
        return self._process not in {None, os.getpid()}

    def check_process(self) -> None:
        """Raise in a forked process: it shares the socket, and must not write to it."""
        if self.is_forked:
            raise NotConnectedError(
                "this process was forked from the one that the client is in: make a new client "
                "here, in a Trio run of its own",
                is_final=True,
            )

    @enable_ki_protection
    def start(self) -> None:
        """Note that `run` is about to be called.

        Raises:
            RuntimeError: It was called before: a client is used once.
        """
        if self._driver.state is not ConnectionState.IDLE:
            raise RuntimeError("a client is used once: make a new one")
        self._process = os.getpid()
        self._driver.become(ConnectionState.CONNECTING)

    @enable_ki_protection
    def request_close(self) -> None:
        """Close with a close handshake, as soon as possible."""
        self.check_process()
        if self._driver.state is ConnectionState.IDLE:
            self._finish(None)
            self._over.set()
        elif not self._driver.state.is_over:
            was_open = self._driver.state.is_connected
            self._driver.become(ConnectionState.CLOSING)
            self._close_by = trio.current_time() + self._settings.close_timeout
            self._end_all(None)
            self._close_requested.set()
            if not was_open:
                self._scope.cancel()  # There is no WebSocket to close.

    def abort(self) -> None:
        """Close at once."""
        self._scope.cancel()

    # --- One connection --------------------------------------------------------------------

    async def _keep_connected(self) -> BrokerError | None:
        """Open one connection after another.

        Returns:
            The failure that ends the client; None after a close.
        """
        driver = self._driver
        while True:
            error = await self._one_connection()
            if error is None or driver.state.is_over:
                return None
            was_replaced = self._must_reconnect and driver.engine.channels.is_online
            if self._connected.is_set():
                self._connected = trio.Event()  # for tasks that wait from now on
            driver.act(driver.engine.lost(error, self._last_heard, trio.current_time()))
            delay = 0.0
            if not was_replaced:
                failure = self._final_failure(error)
                if failure is not None:
                    return failure
                delay = self.backoff.next_delay(getattr(error, "retry_after", None))
            if self._must_reconnect:
                delay, self._must_reconnect = 0.0, False
            self._retry_now = trio.Event()
            driver.become(ConnectionState.WAITING)
            driver.emit(Disconnected(at=driver.wall_time(), error=error, retry_in=delay))
            with trio.move_on_after(delay):
                await self._retry_now.wait()
            if not driver.state.is_over:
                driver.become(ConnectionState.CONNECTING)

    def _final_failure(self, error: BrokerError) -> BrokerError | None:
        """The failure that ends the client, if the policy allows no other connection."""
        if not self.backoff.may_retry(error) or self.backoff.policy.max_attempts == 0:
            return error
        if self.backoff.is_exhausted:
            failure = ReconnectFailedError(self.backoff.attempts, str(error))
            failure.__cause__ = error
            return failure
        return None

    async def _one_connection(self) -> BrokerError | None:
        """Open a connection, and serve until it is lost or closed.

        Returns:
            Why it was lost; None after a close.
        """
        settings, driver = self._settings, self._driver
        try:
            async with self._open_transport(
                settings.endpoint,
                ssl_context=self._tls,
                connect_timeout=settings.connect_timeout,
                max_receive_size=settings.limits.max_receive_size,
                redact=self._redactor.text,
            ) as transport:
                if not driver.state.is_over:
                    driver.become(ConnectionState.AUTHENTICATING)
                driver.link = Link(transport)
                await self._serve(driver.link)
        except BrokerError as error:
            # It may quote the broker, for example the reason of a close frame.
            return self._redactor.error(error, frames=False)
        finally:
            driver.link = None
        return None

    async def _serve(self, link: Link) -> None:
        connection = Connection(
            link,
            self._driver,
            self._settings,
            self._signer,
            log=self._log,
            close_requested=self._close_requested,
        )
        try:
            await connection.run(self._authenticated)
            with trio.move_on_at(self._close_by):
                await link.transport.aclose()
        except BrokerError:
            raise
        except BaseException:
            # It was cancelled, perhaps as part of a group.
            longest = trio.current_time() + CLOSE_TIMEOUT_WHEN_CANCELLED
            self._close_by = min(self._close_by, longest)
            with trio.move_on_at(self._close_by, shield=True):
                await link.transport.aclose()
            raise
        finally:
            last_heard = link.transport.last_heard
            # Trio's clock stands still while the machine is suspended.
            silence = trio.current_time() - last_heard + connection.heartbeat.slept
            self._last_heard = self._driver.wall_time() - dt.timedelta(seconds=silence)
            self._last_latency = self.latency
            self._must_reconnect = self._must_reconnect or link.is_replaced
            self.backoff.lost(link.healthy_since, last_heard)

    def _authenticated(self) -> None:
        driver = self._driver
        if driver.state is ConnectionState.AUTHENTICATING:
            self._must_reconnect = False
            is_first = self.backoff.connected()
            driver.become(ConnectionState.RESTORING)
            to_restore, effects = driver.engine.restore(trio.current_time())
            driver.act(effects)
            driver.emit(Connected(at=driver.wall_time()))
            self._connected.set()
            if not to_restore:
                driver.mark_healthy()
                if not is_first:
                    driver.emit(Restored(at=driver.wall_time(), channels=()))

    # --- The end ---------------------------------------------------------------------------

    def _finish(self, failure: BrokerError | None) -> None:
        driver = self._driver
        if self._driver.state is ConnectionState.CLOSING:
            failure = None  # It was closing anyway.
        self._failure = failure
        driver.become(ConnectionState.CLOSED if failure is None else ConnectionState.FAILED)
        self._end_all(failure)
        at = driver.wall_time()
        if failure is None:
            driver.emit(Closed(at=at))
        else:
            driver.emit(Disconnected(at=at, error=failure, retry_in=None))
            driver.emit(GaveUp(at=at, error=failure))
        driver.events.end()
        driver.messages.end()
        driver.link = None
        self._connected.set()

    def _end_all(self, failure: BrokerError | None) -> None:
        """End all requests and streams: there will be no connection any more."""
        unsent: NotSentError
        if failure is None:
            lost: BrokerError = ConnectionLostError("the client was closed")
            unsent = ClientClosedError("the client was closed; nothing was sent")
        else:
            lost, unsent = failure, _unsent(failure)
        driver = self._driver
        # A client that was never started may be closed outside a Trio run.
        now = trio.current_time() if self._process is not None else 0.0
        driver.act(driver.engine.close(failure, lost, unsent, now))


def _unsent(failure: BrokerError) -> NotConnectedError:
    """The error for a call after the connection has failed for good."""
    error = NotConnectedError(f"nothing was sent: {failure}", is_final=True)
    error.__cause__ = failure
    return error
