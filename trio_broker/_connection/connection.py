"""One open connection: authentication, then the reader, the writer and the heartbeat.

**One task writes.** Users queue requests and wait. The writer limits the rate, stamps, signs and
sends. So no user's cancel scope reaches a send: a send that is cancelled may leave half a frame,
which would swallow the next message. The writer has a deadline, because a peer that doesn't read
would block it for ever.

**The reader never waits for a consumer.** It handles each message synchronously.

**The first error ends the connection.** A task that fails notes its error and cancels the others.
So no exception group arises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._client_log import ClientLog
from trio_broker._connection.driver import Driver
from trio_broker._connection.heartbeat import Heartbeat
from trio_broker._connection.link import Link
from trio_broker._protocol import codec, requests
from trio_broker._protocol.rate_limit import RateLimit
from trio_broker._protocol.requests import Priority, Request
from trio_broker._quiet_nursery import QuietNursery
from trio_broker._streams.buffer import Buffer
from trio_broker._streams.subscription import MAX_RUN
from trio_broker.exceptions import ConnectionLostError, NotSentError, fresh
from trio_broker.settings import Settings
from trio_broker.signing import Signer, new_nonce

# At most this many runs of messages are handled before other tasks run.
_MOST_RUNS: Final = 4

# The buffers of a run are looked at only if they are so few, as it takes time.
_MOST_LOOKED_AT: Final = 4

# At most this many messages share one write and its deadline, even if the limit allows more.
_MOST_AT_ONCE: Final = 100


class Connection:
    """Runs the engine over an open WebSocket.

    Args:
        link: The WebSocket.
        driver: Drives the engine.
        settings: Keys, limits and timeouts.
        signer: Makes the signatures.
        log: Logs faults.
        close_requested: When this is set, the writer ends after its current send, and `run`
            returns. The WebSocket is still open then.
    """

    def __init__(
        self,
        link: Link,
        driver: Driver,
        settings: Settings,
        signer: Signer,
        *,
        log: ClientLog,
        close_requested: trio.Event,
    ) -> None:
        self._link = link
        self._driver = driver
        self._engine = driver.engine
        self._settings = settings
        self._signer = signer
        self._log = log
        self._rate_limit = RateLimit(settings.limits.messages_per_second)
        self._close_requested = close_requested
        self._written = trio.Event()
        self.heartbeat: Heartbeat = Heartbeat(
            link,
            settings.heartbeat_interval,
            settings.heartbeat_timeout,
            settings.reconnect.stable_after,
        )

    @enable_ki_protection
    async def run(self, on_authenticated: Callable[[], None]) -> None:
        """Authenticate, and serve until the connection is lost or shall be closed.

        Raises:
            AuthenticationError: The broker rejected the key or the signature.
            AuthenticationTimeoutError: The broker didn't answer.
            ServerError: The broker rejected the timestamp or the nonce, for example.
            ConnectionLostError: The connection is lost, or had to be replaced.
        """
        with self._link.scope:
            async with QuietNursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                nursery.start_soon(self._serve, on_authenticated)
                await self._close_requested.wait()
                self._link.writer.wake()
                with trio.move_on_after(self._settings.close_timeout):
                    await self._written.wait()
                nursery.cancel_scope.cancel()
        if self._link.error is not None:
            raise fresh(self._link.error)

    def _note(self, error: Exception) -> None:
        """End the connection because a task has failed."""
        if not isinstance(error, ConnectionLostError):
            self._log.fault("the connection is lost to an internal error", error)
            fault, error = error, ConnectionLostError(f"internal error: {error!r}")
            error.__cause__ = fault
        self._link.fail(error)

    @enable_ki_protection
    async def _serve(self, on_authenticated: Callable[[], None]) -> None:
        try:
            now = trio.current_time()
            auth = requests.authentication(now + self._settings.auth_timeout)
            auth.waiter = answered = trio.Event()
            self._engine.connected(auth, now)
            self._driver.act(())
            await answered.wait()
            await trio.lowlevel.checkpoint_if_cancelled()  # by an error
            on_authenticated()
            await self.heartbeat.run()
        except Exception as error:  # noqa: BLE001 - memory may be short, for example
            self._note(error)

    @enable_ki_protection
    async def _read(self) -> None:
        # The engine gets a run of messages, as many as `async for` takes in one turn of the
        # scheduler, and further runs only if the buffers of the last one have room for them. So
        # neither a large read nor a steady stream overflows a fast consumer's buffer.
        transport, driver = self._link.transport, self._driver
        arrived: list[str | bytes] = []
        try:
            while True:
                arrived += await transport.receive()
                # Tasks run in any order within a turn. After two turns, every task that waited for
                # a run has taken it. `receive` takes a turn too.
                while len(arrived) > MAX_RUN:
                    buffers = driver.receive_run(_taken_from(arrived, MAX_RUN))
                    turns = 2
                    while len(arrived) > MAX_RUN and turns <= _MOST_RUNS and _have_room(buffers):
                        buffers = driver.receive_run(_taken_from(arrived, MAX_RUN))
                        turns += 1
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                        if _are_empty(buffers):
                            break
                messages, arrived = arrived, []
                driver.receive(messages)
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            # Messages that arrived before the cancellation still count: one may be a reply.
            try:
                driver.receive(arrived + transport.taken())
            except Exception as error:  # noqa: BLE001 - as below
                self._note(error)
            raise
        except Exception as error:  # noqa: BLE001 - memory may be short, for example
            self._note(error)

    @enable_ki_protection
    async def _write(self) -> None:
        link, rate_limit = self._link, self._rate_limit
        try:
            while not self._close_requested.is_set():
                # One scope, whose deadline is moved, for many writes: making a scope takes longer
                # than signing. If the deadline passes while this process is stopped, the write may
                # be done already. Then the scope ends without harm, and the next one is made.
                with trio.CancelScope() as scope:
                    while True:
                        now = trio.current_time()
                        count = min(rate_limit.available(now), _MOST_AT_ONCE)
                        messages = self._take_messages(count, now)
                        if self._engine.timers.has_changed:
                            self._driver.act(())  # which wakes the task that waits for deadlines
                        if messages:
                            scope.deadline = now + self._settings.write_timeout
                            await link.transport.send(messages)
                            scope.deadline = math.inf
                            rate_limit.record(trio.current_time(), len(messages))
                        if self._close_requested.is_set() or scope.cancel_called:
                            break
                        if len(messages) < count:  # Nothing more can be sent before a wake-up.
                            await link.writer.wait()
                        elif not count:
                            with trio.move_on_at(rate_limit.ready_at(now)):
                                await link.writer.wait()
                if scope.cancelled_caught:
                    seconds = self._settings.write_timeout
                    self._note(ConnectionLostError(f"the broker hasn't read for {seconds:g} s"))
                    return
            self._written.set()
        except Exception as error:  # noqa: BLE001 - memory may be short, for example
            self._note(error)

    def _take_messages(self, count: int, now: float) -> list[str]:
        """At most `count` messages that may be sent now, stamped and signed."""
        messages: list[str] = []
        for _ in range(count):
            request = self._engine.next_to_send(now)
            if request is None:
                break
            if self._is_overdue(request, now):
                self._driver.give_up(request, _too_late(request))
            else:
                messages.append(self._stamped(request, now))
        return messages

    def _is_overdue(self, request: Request, now: float) -> bool:
        """Whether a request must not be sent any more.

        Its deadline may have passed while the event loop was blocked. And Trio's clock may stop
        while the machine is suspended: then only the wall clock shows how old a swap is.
        """
        if min(request.deadline, request.send_by) <= now:
            return request.priority is not Priority.AUTH
        return request.sign_by < math.inf and self._settings.clock() > request.sign_by

    def _stamped(self, request: Request, now: float) -> str:
        """The message of a request, with a new timestamp, nonce and signature."""
        op, body, nonce, signature = request.op, request.body, "", ""
        if request.channel is None:
            wall_time = self._settings.clock()
            nonce, timestamp = new_nonce(wall_time), int(wall_time * 1000)
            signature = self._signer.sign(op, timestamp, nonce, body)
        self._engine.mark_sent(request, nonce, now)
        self._log.sent(request, now)
        if request.channel is not None:
            return codec.channel_frame(op, request.channel)
        if op == "auth":
            # In no local variable, which a traceback may show.
            api_key = self._settings.api_key
            return codec.auth_frame(api_key.reveal(), timestamp, nonce, signature)
        return codec.signed_frame(op, body, timestamp, nonce, signature)


def _have_room(buffers: list[Buffer[Any]]) -> bool:
    """Whether each of the buffers has room for another run."""
    if len(buffers) > _MOST_LOOKED_AT:
        return False
    for buffer in buffers:  # noqa: SIM110 - a generator would have more frames
        if not buffer.has_room(MAX_RUN):
            return False
    return True


def _are_empty(buffers: list[Buffer[Any]]) -> bool:
    """Whether all that was put into the buffers has been taken."""
    if len(buffers) > _MOST_LOOKED_AT:
        return False
    for buffer in buffers:  # noqa: SIM110 - as above
        if not buffer.is_empty():
            return False
    return True


def _taken_from(messages: list[str | bytes], count: int) -> list[str | bytes]:
    """Remove and return the first messages of a list."""
    taken = messages[:count]
    del messages[:count]
    return taken


def _too_late(request: Request) -> NotSentError:
    return NotSentError(f"{request.op!r} was requested too long ago; it wasn't sent")
