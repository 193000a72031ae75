"""One socket's life after its opening: authenticate, then reader, writer and heartbeat.

**One task writes.** Users queue what they want and wait; the writer paces, stamps, signs and
sends. So no user's cancel scope ever reaches a send: one that is cancelled half-way would leave
half a frame, in which the next message disappears. The writer has a deadline, as a peer that
doesn't read would hold it for ever.

**The reader never waits for a consumer.** What it does with a message is synchronous.

**The first error ends the connection.** A task that fails notes why and cancels the others, so
that no exception group is ever made of it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker import operations, wire
from trio_broker.exceptions import (
    AuthenticationTimeoutError,
    BrokerError,
    ConnectionLostError,
    NotSentError,
    RequestTimeoutError,
    fresh,
)
from trio_broker.heartbeat import Heartbeat
from trio_broker.pacing import Pacer
from trio_broker.request import Request
from trio_broker.session import Session
from trio_broker.settings import Settings
from trio_broker.signing import Signer, new_nonce
from trio_broker.subscription import MAX_RUN
from trio_broker.transports import Transport

# The deadline of a write is for so many messages, and not for ten thousand that some limit allows.
_MOST_AT_ONCE: Final = 100


class Bell:
    """Wakes the one task that waits for it; a ring while nobody waits is not lost."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake the task."""
        self._rung.set()

    async def wait(self) -> None:
        """Wait for a ring since the last return. Cancelling is safe."""
        await self._rung.wait()
        self._rung = trio.Event()


class Connection:
    """Runs a session over an open WebSocket.

    Args:
        transport: The WebSocket.
        session: What is asked and answered.
        settings: Keys, limits and timeouts.
        signer: Makes the signatures.
        on_arrival: Takes messages as they came, before the session does.
    """

    def __init__(
        self,
        transport: Transport,
        session: Session,
        settings: Settings,
        signer: Signer,
        on_arrival: Callable[[Sequence[str | bytes]], None],
    ) -> None:
        self._transport = transport
        self._session = session
        self._settings = settings
        self._signer = signer
        self._on_arrival = on_arrival
        self._pacer = Pacer(settings.limits.messages_per_second)
        self._bell = Bell()
        self._arrived: list[str | bytes] = []
        self._closing = False
        self._written = trio.Event()
        self._error: BrokerError | None = None
        self._scope = trio.CancelScope()
        self._heartbeat = Heartbeat(
            transport, settings.heartbeat_interval, settings.heartbeat_timeout, self.lose
        )

    @property
    def latency(self) -> float | None:
        """The last heartbeat's round trip in seconds."""
        return self._heartbeat.latency

    @property
    def slept(self) -> float:
        """Seconds that the machine has slept, and that nobody has taken notice of before."""
        return self._heartbeat.slept

    def wake_writer(self) -> None:
        """See to what may leave now, if anything may."""
        if self._session.next_to_send(trio.current_time()) is not None:
            self._bell.ring()

    def lose(self, error: BrokerError) -> None:
        """End the connection; the first error counts.

        Args:
            error: Why.
        """
        self._error = self._error or error
        self._scope.cancel()

    @enable_ki_protection
    async def run(self, on_authenticated: Callable[[], None], close_requested: trio.Event) -> None:
        """Authenticate, and serve the session until the connection is lost or to be closed.

        Args:
            on_authenticated: Called when the broker has authenticated this client.
            close_requested: When this is set, the writer ends after what it is sending, and all
                returns; the WebSocket is still open then.

        Raises:
            AuthenticationError: The broker refused.
            AuthenticationTimeoutError: The broker didn't answer.
            ServerError: The broker refused, for the timestamp or the nonce.
            ConnectionLostError: The connection is gone, or can't be trusted any more.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._noting_errors, self._read)
                nursery.start_soon(self._noting_errors, self._write)
                nursery.start_soon(self._serve, on_authenticated)
                await close_requested.wait()
                self._closing = True
                self._bell.ring()
                with trio.move_on_after(self._settings.close_timeout):
                    await self._written.wait()
                nursery.cancel_scope.cancel()
        if self._error is not None:
            raise fresh(self._error)

    @enable_ki_protection
    async def _noting_errors(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except ConnectionLostError as error:
            # A close frame's reason is the broker's text too, and may repeat a key.
            erased = ConnectionLostError(self._session.erase(str(error)), error.code)
            erased.__cause__ = error.__cause__
            self.lose(erased)

    @enable_ki_protection
    async def _serve(self, on_authenticated: Callable[[], None]) -> None:
        answered = trio.Event()
        now = trio.current_time()
        auth = operations.authentication(now + self._settings.auth_timeout)

        def on_end(auth: Request) -> None:
            # Noted at once: the session may find fault with the connection for the same message,
            # and the first error counts.
            if auth.error is not None:
                self.lose(self._why_not_authenticated(auth.error))
            answered.set()

        auth.on_end = on_end
        self._session.open(auth, now)
        await answered.wait()  # `lose` cancels this
        on_authenticated()
        await self._heartbeat.run()

    def _why_not_authenticated(self, error: BrokerError) -> BrokerError:
        if isinstance(error, RequestTimeoutError):
            seconds = self._settings.auth_timeout
            return AuthenticationTimeoutError(f"the broker didn't answer auth within {seconds:g} s")
        return error

    @enable_ki_protection
    async def _read(self) -> None:
        try:
            while True:
                self._arrived += await self._transport.receive()
                while self._arrived:
                    self._take_arrived(MAX_RUN)
                    # Tasks run in any order in a turn of Trio's: after two, everybody has run who
                    # waited for these, and before this task looks for more.
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            # What came before the connection was given up has come: it may be an answer.
            self._arrived += self._transport.taken()
            self._take_arrived(len(self._arrived))
            raise

    def _take_arrived(self, count: int) -> None:
        """Give the session so many messages.

        As many as an iteration takes in a turn of Trio's, so that neither what one read brings nor
        a steady stream outruns a consumer that keeps up.
        """
        messages = self._arrived[:count]
        del self._arrived[:count]
        self._on_arrival(messages)
        self._session.receive(messages, trio.current_time())

    @enable_ki_protection
    async def _write(self) -> None:
        # One scope for many writes, whose deadline is moved: making one takes longer than signing.
        # A deadline that passes while this process stands still may find its write done: then the
        # scope is left without harm, and the next one is made.
        while not self._closing:
            with trio.CancelScope() as scope:
                await self._write_within(scope)
            if scope.cancelled_caught:
                seconds = self._settings.write_timeout
                raise ConnectionLostError(f"the broker hasn't read for {seconds:g} s")
        self._written.set()

    async def _write_within(self, scope: trio.CancelScope) -> None:
        while not (self._closing or scope.cancel_called):
            messages = self._take_what_may_leave()
            if messages:
                scope.deadline = trio.current_time() + self._settings.write_timeout
                await self._transport.send(messages)
                scope.deadline = math.inf
                self._pacer.note(trio.current_time(), len(messages))
            else:
                await self._wait_for_more()

    async def _wait_for_more(self) -> None:
        """Wait until something may leave, or until the pacer has room for what could."""
        if self._session.next_to_send(trio.current_time()) is None:
            await self._bell.wait()
            return
        with trio.move_on_at(self._pacer.ready_at(trio.current_time())):
            await self._bell.wait()

    def _take_what_may_leave(self) -> list[str]:
        now = trio.current_time()
        messages: list[str] = []
        for _ in range(min(self._pacer.room(now), _MOST_AT_ONCE)):
            request = self._session.next_to_send(now)
            if request is None:
                break
            if request.leave_by < math.inf and self._settings.clock() > request.leave_by:
                self._session.give_up(request, now, _too_late(request))
                continue
            messages.append(self._stamped(request, now))
        return messages

    def _stamped(self, request: Request, now: float) -> str:
        """The message as it leaves: its timestamp and nonce are made at this moment."""
        if request.channel is not None:
            self._session.mark_sent(request, "", now)
            return wire.channel_frame(request.op, request.channel)
        wall_time = self._settings.clock()
        nonce, timestamp = new_nonce(wall_time), int(wall_time * 1000)
        signature = self._signer.sign(request.op, timestamp, nonce, request.body)
        self._session.mark_sent(request, nonce, now)
        if request.op == "auth":
            return wire.auth_frame(self._settings.api_key, timestamp, nonce, signature)
        return wire.signed_frame(request.op, request.body, timestamp, nonce, signature)


def _too_late(request: Request) -> NotSentError:
    """For what Trio's clock, which stands still while the machine sleeps, wouldn't hold back."""
    return NotSentError(f"{request.op!r} was asked for too long ago to leave now; it wasn't sent")
