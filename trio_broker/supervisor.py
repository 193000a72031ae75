"""Connection after connection: when the next one is tried, state, events, the end.

One task runs it all, in a nursery of the user's or of the client's. It ends when the client is
closed, when its nursery is cancelled, or when the connection has failed for good; whatever way it
ends, every request, stream and waiting task is told, and no exception leaves it into that nursery.

**What goes on over an outage** is in the session and the channels: reads that wait, and streams.
Nothing else does. What was in flight fails with the connection, and a swap never waits for another.
The order in which a loss is told is fixed: state and requests first, then the event, so that who
hears of it finds the client as it says.

**Every exit is bounded**: `close_timeout` when leaving politely, half a second when cancelled.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker.backoff import Backoff
from trio_broker.blotter import Blotter
from trio_broker.channels import Channels
from trio_broker.connection import Bell, Connection
from trio_broker.exceptions import (
    BrokerError,
    ClientClosedError,
    ConnectionLostError,
    NotConnectedError,
    NotSentError,
    ReconnectFailedError,
    fresh,
)
from trio_broker.models import (
    ChannelRefused,
    Closed,
    Connected,
    ConnectionEvent,
    ConnectionState,
    Disconnected,
    GaveUp,
    OddMessage,
    Restored,
    SwapResolved,
    SwapUnresolved,
)
from trio_broker.session import Session
from trio_broker.settings import Settings
from trio_broker.signing import Signer
from trio_broker.taps import Taps
from trio_broker.tracking import Tracking
from trio_broker.transports import opener

GOODBYE_WHEN_CANCELLED: Final = 0.5
_LAST_MOMENT: Final = 0.1
_SHOWN: Final = 1000
_LEVELS: Final[dict[type[ConnectionEvent], int]] = {
    Disconnected: logging.WARNING,
    ChannelRefused: logging.WARNING,
    GaveUp: logging.ERROR,
    SwapUnresolved: logging.WARNING,
}


class Supervisor:
    """Runs the connection of one client.

    Args:
        settings: Everything that is configured.
        session: What is asked and answered.
        logger: Where the story is told.

    Attributes:
        backoff: When the next connection is tried.
        blotter: The client's swaps.
        channels: The client's channels.
        tracking: The orders that it tracks.
        events: Where events go.
        farewell: Awaited at the end, when everybody has been told; cut short when the time for an
            exit is up.
        messages: Where raw messages go.
        state: Where the client stands.
    """

    def __init__(self, settings: Settings, session: Session, logger: logging.Logger) -> None:
        self._settings = settings
        self._session = session
        self._logger = logger
        self._open_transport = opener(settings.transport)
        self._signer = Signer(settings.secret_key, settings.signing_key)
        self.events: Taps[ConnectionEvent] = Taps("events")
        self.messages: Taps[str | bytes] = Taps("messages")
        self.channels: Channels = Channels(
            session,
            max_subscriptions=settings.limits.max_subscriptions,
            request_timeout=settings.request_timeout,
            messages_per_second=settings.limits.messages_per_second,
            time=trio.current_time,
            wall_time=self.wall_time,
            on_event=self._tell,
            on_restored=self._restored,
        )
        self.blotter: Blotter = Blotter(
            session,
            request_timeout=settings.request_timeout,
            resolve_timeout=settings.resolve_timeout,
            time=trio.current_time,
            wall_time=self._some_wall_time,
            on_event=self._tell,
        )
        self.farewell: Callable[[], Awaitable[None]] | None = None
        self.tracking: Tracking = Tracking(
            self.channels,
            poll_interval=settings.poll_interval,
            time=trio.current_time,
            changed=self._look_again,
            known_order_id=self.blotter.order_id,
        )
        self._parts = (session, self.channels, self.tracking, self.blotter)
        # Only spreads clients over time: nobody gains by guessing it.
        self.backoff: Backoff = Backoff(settings.reconnect, random.Random())  # noqa: S311
        self.state: ConnectionState = ConnectionState.IDLE
        self._connection: Connection | None = None
        self._last_latency: float | None = None
        self._is_authenticated = False
        self._healthy_since = math.inf
        self._last_heard = -math.inf
        self._slept = 0.0
        self._process: int | None = None
        self._failure: BrokerError | None = None
        self._scope = trio.CancelScope()
        self._alarm = Bell()
        self._awake_at = -math.inf
        self._close_requested = trio.Event()
        self._close_by = math.inf
        self._connected = trio.Event()
        self._over = trio.Event()
        listener = session.listener
        listener.pushed = self.channels.pushed
        listener.odd = self._tell_odd
        listener.changed = self._look_again
        listener.broken = self._replace

    @property
    def latency(self) -> float | None:
        """The last heartbeat's round trip in seconds."""
        latency = self._connection.latency if self._connection is not None else None
        return latency if latency is not None else self._last_latency

    def wall_time(self) -> dt.datetime:
        """The time of day, by the client's clock."""
        return dt.datetime.fromtimestamp(self._settings.clock(), dt.UTC)

    def _some_wall_time(self) -> dt.datetime:
        """The same, or this machine's: swaps must be told of even where the clock has failed."""
        try:
            return self.wall_time()
        except Exception:  # noqa: BLE001 - it is the caller's
            return dt.datetime.now(dt.UTC)

    # --- What the client asks for ----------------------------------------------------------

    @enable_ki_protection
    async def run(self) -> None:
        """Live, from the first connection to the end. Cancelling closes, within half a second."""
        failure: BrokerError | None = None
        try:
            with self._scope:
                failure = await self._live()
        except BaseExceptionGroup as group:
            # A fault of this library, made into a group by its nurseries, and perhaps met by a
            # cancellation on its way: that alone goes on.
            faults, rest = group.split(Exception)
            if faults is not None:
                failure = self._internal_failure(faults)
            if rest is not None:
                raise rest from None
        finally:
            try:
                self._finish(failure)
                if self.farewell is not None:
                    with trio.move_on_at(self._exit_by(), shield=True):
                        await self.farewell()
            finally:
                self._over.set()

    def _exit_by(self) -> float:
        """When the farewell must be over: it shares the exit's time, but for a last moment."""
        now = trio.current_time()
        was_cancelled = self._scope.cancel_called or trio.current_effective_deadline() == -math.inf
        longest = GOODBYE_WHEN_CANCELLED if was_cancelled else self._settings.close_timeout
        return max(min(self._close_by, now + longest), now + _LAST_MOMENT)

    def _internal_failure(self, faults: ExceptionGroup[Exception]) -> BrokerError:
        """For a fault of this library: it mustn't end the user's nursery, nor be lost."""
        self._logger.error("the connection ended with an internal error", exc_info=faults)
        error: BaseException = faults
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        failure = BrokerError(f"internal error: {error!r}")
        failure.__cause__ = error
        return failure

    async def wait_connected(self) -> None:
        """Return once connected; raise once that can't happen any more.

        Raises:
            NotConnectedError: The client was never started, or is closed.
            BrokerError: What the connection failed with.
        """
        await trio.lowlevel.checkpoint()
        while not self.state.is_connected:
            self._raise_failure()
            self.check_usable()
            await self._connected.wait()

    async def wait_over(self) -> None:
        """Return after the end, whatever it was."""
        await self._over.wait()

    async def wait_closed(self) -> None:
        """Return after a close; raise what the connection failed with."""
        self._check_process()
        await self._over.wait()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise fresh(self._failure)

    def check_usable(self) -> None:
        """Raise at once where no connection is there or can come.

        Raises:
            NotConnectedError: The client was never started, is closed, or has failed; its cause
                is what it failed with. Or this process was forked from the one that it is in.
        """
        self._check_process()
        if self.state is ConnectionState.IDLE:
            raise NotConnectedError(
                "the client isn't connected: use it under 'async with', or connect(nursery)"
            )
        if self._failure is not None:
            raise _unsent(self._failure)
        if self.state.is_over:
            raise ClientClosedError("the client is closed")

    def _check_process(self) -> None:
        """Refuse to work in a child: it shares the socket, and would speak in between."""
        if self._process not in {None, os.getpid()}:
            raise NotConnectedError(
                "this process was forked from the one that the client is in: make a new client "
                "here, in a Trio run of its own"
            )

    @enable_ki_protection
    def start(self) -> None:
        """Note that `run` is about to run.

        Raises:
            RuntimeError: It did before: a client is used once.
        """
        if self.state is not ConnectionState.IDLE:
            raise RuntimeError("a client is used once: make a new one")
        self._process = os.getpid()
        self._become(ConnectionState.CONNECTING)

    @enable_ki_protection
    def request_close(self) -> None:
        """Close politely, as soon as may be."""
        self._check_process()
        if self.state is ConnectionState.IDLE:
            self._finish(None)
            self._over.set()
        elif not self.state.is_over:
            was_open = self.state.is_connected
            self._become(ConnectionState.CLOSING)
            self._close_by = trio.current_time() + self._settings.close_timeout
            self._end_all(None)
            self._close_requested.set()
            if not was_open:
                self._scope.cancel()  # There is nobody to say goodbye to yet.

    def abort(self) -> None:
        """Close at once."""
        self._scope.cancel()

    # --- One connection --------------------------------------------------------------------

    async def _live(self) -> BrokerError | None:
        failure: BrokerError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            try:
                failure = await self._keep_connected()
            finally:
                nursery.cancel_scope.cancel()
        return failure

    async def _keep_connected(self) -> BrokerError | None:
        """Open connection after connection.

        Returns:
            Why there is no further one; None after a close.
        """
        while True:
            error = await self._one_connection()
            if error is None or self.state.is_over:
                return None
            self._note_loss(error)
            failure = self._why_no_other(error)
            if failure is not None:
                return failure
            delay = self.backoff.next_delay(getattr(error, "retry_after", None))
            self._become(ConnectionState.WAITING)
            self._tell(Disconnected(at=self.wall_time(), error=error, retry_in=delay))
            await trio.sleep(delay)
            if not self.state.is_over:
                self._become(ConnectionState.CONNECTING)

    def _why_no_other(self, error: BrokerError) -> BrokerError | None:
        if not self.backoff.may_retry(error) or self.backoff.policy.max_attempts == 0:
            return error
        if self.backoff.is_exhausted:
            failure = ReconnectFailedError(self.backoff.attempts, str(error))
            failure.__cause__ = error
            return failure
        return None

    def _note_loss(self, error: BrokerError) -> None:
        """Tell whom it concerns: who waits for a reply, and every stream."""
        if self._is_authenticated:
            # Healthy is what has restored its channels, and as long as it was heard.
            self.backoff.lost(self._last_heard - self._healthy_since)
            self._is_authenticated, self._healthy_since = False, math.inf
            # Trio's clock stands still while the machine sleeps.
            silent = trio.current_time() - self._last_heard + self._slept
            self.channels.lost(self.wall_time() - dt.timedelta(seconds=silent))
        if self._connected.is_set():  # or whoever waits for it would wait for ever
            self._connected = trio.Event()
        self._session.lose(error)

    async def _one_connection(self) -> BrokerError | None:
        try:
            await self._connect_and_serve()
        except BrokerError as error:
            return error
        finally:
            self._connection = None
        return None

    async def _connect_and_serve(self) -> None:
        settings = self._settings
        async with self._open_transport(
            settings.endpoint,
            ssl_context=settings.ssl_context,
            connect_timeout=settings.connect_timeout,
            max_receive_size=settings.limits.max_receive_size,
        ) as transport:
            if not self.state.is_over:
                self._become(ConnectionState.AUTHENTICATING)
            self._connection = Connection(
                transport, self._session, settings, self._signer, self._show
            )
            try:
                await self._connection.run(self._authenticated, self._close_requested)
                with trio.move_on_at(self._close_by):
                    await transport.aclose()
            except BrokerError:
                raise
            except BaseException:
                # Cancelled; a nursery has made a group of it.
                self._close_by = min(self._close_by, trio.current_time() + GOODBYE_WHEN_CANCELLED)
                with trio.move_on_at(self._close_by, shield=True):
                    await transport.aclose()
                raise
            finally:
                self._last_heard = transport.last_heard
                self._slept = self._connection.slept
                self._last_latency = self.latency

    def _authenticated(self) -> None:
        if self.state is ConnectionState.AUTHENTICATING:
            self._is_authenticated = True
            is_first = self.backoff.connected()
            self._become(ConnectionState.RESTORING)
            to_restore = self.channels.restore()
            self._tell(Connected(at=self.wall_time()))
            self._connected.set()
            if is_first:
                self._become_healthy()
            elif not to_restore:
                self._restored(())

    def _restored(self, channels: tuple[str, ...]) -> None:
        self._become_healthy()
        self._tell(Restored(at=self.wall_time(), channels=channels))

    def _become_healthy(self) -> None:
        self._healthy_since = trio.current_time()
        self._become(ConnectionState.CONNECTED)

    @enable_ki_protection
    async def _keep_time(self) -> None:
        while True:
            self._awake_at = self._next_deadline()
            with trio.move_on_at(self._awake_at):
                await self._alarm.wait()
            now = trio.current_time()
            for part in self._parts:
                part.tick(now)

    def _next_deadline(self) -> float:
        return min(part.next_deadline for part in self._parts)

    def _look_again(self) -> None:
        if self._connection is not None:
            self._connection.wake_writer()
        if self._next_deadline() < self._awake_at:
            self._alarm.ring()

    def _replace(self, error: ConnectionLostError) -> None:
        if self._connection is not None:
            self._connection.lose(error)

    # --- The end ---------------------------------------------------------------------------

    def _finish(self, failure: BrokerError | None) -> None:
        if self.state is ConnectionState.CLOSING:
            failure = None  # It was to end anyway.
        self._failure = failure
        self._become(ConnectionState.CLOSED if failure is None else ConnectionState.FAILED)
        self._end_all(failure)
        try:
            self._tell_end(failure)
        except Exception:
            # The clock is the caller's, and may be what failed.
            self._logger.exception("the end couldn't be told to those who listen for events")
        self.events.end()
        self.messages.end()
        self._connection = None
        self._connected.set()

    def _tell_end(self, failure: BrokerError | None) -> None:
        if failure is None:
            self._tell(Closed(at=self.wall_time()))
        else:
            self._tell(Disconnected(at=self.wall_time(), error=failure, retry_in=None))
            self._tell(GaveUp(at=self.wall_time(), error=failure))

    def _end_all(self, failure: BrokerError | None) -> None:
        """Tell every request and stream that there will be no connection any more."""
        unsent: NotSentError
        if failure is None:
            lost: BrokerError = ConnectionLostError("the client was closed")
            unsent = ClientClosedError("the client was closed; nothing was sent")
        else:
            lost, unsent = failure, _unsent(failure)
        # The channels first, as they would ask for something else where a request has failed.
        self.channels.finish(failure, lost, unsent)
        self.blotter.finish(unsent)
        self.tracking.finish()
        self._session.shut(lost, unsent)

    # --- What is told ----------------------------------------------------------------------

    def _become(self, state: ConnectionState) -> None:
        self._logger.debug("%s -> %s", self.state.value, state.value)
        self.state = state

    def _tell(self, event: ConnectionEvent) -> None:
        text = self._session.erase(_described(event))
        self._logger.log(_LEVELS.get(type(event), logging.INFO), "%s", text)
        self.events.put(event)

    def _tell_odd(self, reason: str, text: str) -> None:
        if self.state.is_over:
            return  # Whom it was for has been told of the end already.
        self._tell(OddMessage(at=self.wall_time(), reason=reason, raw=text[:_SHOWN] or None))

    def _show(self, messages: Sequence[str | bytes]) -> None:
        if self.messages:
            for message in messages:
                self.messages.put(message)


def _unsent(failure: BrokerError) -> NotConnectedError:
    """For a call that finds the connection failed for good."""
    error = NotConnectedError(f"nothing was sent: {failure}")
    error.__cause__ = failure
    return error


def _described(event: ConnectionEvent) -> str:
    """An event for the log, in one line whatever the broker's text in it is."""
    text = type(event).__name__
    name = getattr(event, "channel", None) or getattr(event, "client_order_id", None)
    if name is not None:
        text += f" {name!r}"
    if isinstance(event, SwapResolved):
        text += f": {event.outcome}"
    if isinstance(event, Restored):
        text += f": {', '.join(map(repr, event.channels)) or 'none'}"
    reason = getattr(event, "reason", None) or getattr(event, "error", None)
    if reason is not None:
        text += f": {reason}"
    if isinstance(event, Disconnected) and event.retry_in is not None:
        text += f"; next try in {event.retry_in:.2f} s"
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
