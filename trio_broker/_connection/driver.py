"""Drives the engine: passes messages, requests and the time to it, and carries out its effects.

Everything goes through here, in one order: the engine decides and returns effects, and `act`
carries them out. The client's state changes before the event is sent, so that a listener sees the
state that the event reports.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from typing import Any, Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._client_log import ClientLog
from trio_broker._connection.link import Link, Wakeup
from trio_broker._engine import Engine
from trio_broker._journal.journal import SwapJournal
from trio_broker._protocol.effects import (
    ChannelsRestored,
    Effect,
    Emit,
    ReplaceConnection,
    RequestEnded,
    StreamEnded,
    SwapEnded,
    Wake,
)
from trio_broker._protocol.requests import Purpose, Request
from trio_broker._streams.broadcast import Broadcast
from trio_broker.events import ConnectionEvent, Restored, UnexpectedMessage
from trio_broker.exceptions import (
    AuthenticationTimeoutError,
    BrokerError,
    RequestTimeoutError,
)
from trio_broker.models import ConnectionState
from trio_broker.settings import Settings

# How late a timer is when the event loop must have been blocked, in seconds.
_LATE: Final = 0.01
# A message needs fewer turns of the scheduler from the socket to the session.
_QUIET_TURNS: Final = 10
_SHORTEST_CATCH_UP: Final = 1.0
# Reading the messages of one second takes at most this many seconds for a client that keeps up.
_CATCH_UP_FACTOR: Final = 3.0


class Driver:
    """The engine of one client, with everything that its effects act on.

    Attributes:
        engine: The engine.
        state: The client's state.
        link: The connection, if there is one.
        events: Broadcasts events.
        messages: Broadcasts raw messages.
    """

    def __init__(
        self, settings: Settings, engine: Engine, log: ClientLog, journal: SwapJournal | None
    ) -> None:
        self.engine: Engine = engine
        self.state: ConnectionState = ConnectionState.IDLE
        self.link: Link | None = None
        self.events: Broadcast[ConnectionEvent] = Broadcast("events")
        self.messages: Broadcast[str | bytes] = Broadcast("messages")
        self._settings = settings
        self._log = log
        self._journal = journal
        self._alarm = Wakeup()
        self._awake_at = -math.inf
        self._is_acting = False
        self._later: list[Effect] = []

    def wall_time(self) -> dt.datetime:
        """The time of day, by the client's clock, or by the machine's clock if that fails.

        The client's clock is the user's. If it fails, events are still reported.
        """
        try:
            return dt.datetime.fromtimestamp(self._settings.clock(), dt.UTC)
        except Exception:  # noqa: BLE001 - the user's code may raise anything
            return dt.datetime.now(dt.UTC)

    # --- Effects ---------------------------------------------------------------------------

    @enable_ki_protection
    def act(self, effects: Sequence[Effect]) -> None:  # noqa: C901 - no call more than needed
        """Carry out effects of the engine, then wake the tasks that have work to do.

        An effect may end a stream, and the engine then returns more effects. They are carried out
        afterwards.
        """
        if self._is_acting:
            self._later += effects
            return
        self._is_acting = True
        try:
            while effects:
                for effect in effects:
                    if type(effect) is tuple:
                        effect[0].put_all(effect[1])
                    elif type(effect) is RequestEnded:
                        self._request_ended(effect.request)
                    elif type(effect) is Wake:
                        effect.waiter.set()
                    else:
                        self._act(effect)
                effects, self._later = self._later, []
        finally:
            self._is_acting = False
        session, timers = self.engine.session, self.engine.timers
        if session.may_send:
            session.may_send = False
            if self.link is not None:
                self.link.writer.wake()
        if timers.has_changed:
            timers.has_changed = False
            if timers.next_deadline < self._awake_at:
                self._alarm.wake()

    def _act(self, effect: Any) -> None:
        if isinstance(effect, StreamEnded):
            if effect.error is None:
                effect.sink.end()
            else:
                effect.sink.fail(effect.error, effect.cause)
        elif isinstance(effect, Emit):
            event = effect.event(at=self.wall_time())
            # After the end, unexpected messages are not reported.
            if not (self.state.is_over and isinstance(event, UnexpectedMessage)):
                self.emit(event)
        elif isinstance(effect, ReplaceConnection):
            self.replace(effect.error, is_attempt=effect.is_attempt)
        elif isinstance(effect, ChannelsRestored):
            self.mark_healthy()
            self.emit(Restored(at=self.wall_time(), channels=effect.channels))
        else:
            self._swap_ended(effect)

    def _request_ended(self, request: Request) -> None:
        self._log.ended(request, trio.current_time())
        if request.purpose is Purpose.AUTHENTICATION and request.error is not None:
            # At once: the same message may replace the connection, and the first error counts.
            self.replace(self._why_not_authenticated(request.error))
        if request.waiter is not None:
            request.waiter.set()

    def _why_not_authenticated(self, error: BrokerError) -> BrokerError:
        if isinstance(error, RequestTimeoutError):
            seconds = self._settings.auth_timeout
            return AuthenticationTimeoutError(f"the broker didn't answer auth within {seconds:g} s")
        return error

    def _swap_ended(self, ended: SwapEnded) -> None:
        self._log.swap_ended(ended, trio.current_time())
        if self._journal is not None:
            self._journal.note(
                ended.intent.client_order_id,
                ended.attempt,
                ended.outcome,
                order_id=ended.order_id,
                detail=ended.detail,
            )

    def replace(self, error: BrokerError, *, is_attempt: bool = True) -> None:
        """End the connection, if there is one."""
        if self.link is not None:
            self.link.fail(error, is_attempt=is_attempt)

    def become(self, state: ConnectionState) -> None:
        """Change the client's state."""
        self._log.state(self.state, state)
        self.state = state

    def mark_healthy(self) -> None:
        """The connection's channels are restored."""
        assert self.link is not None  # noqa: S101 - its channels are what was restored
        self.link.mark_healthy()
        self.become(ConnectionState.CONNECTED)

    def emit(self, event: ConnectionEvent) -> None:
        """Log an event and send it to all listeners."""
        event = self._log.completed(event)
        self._log.event(event)
        self.events.put(event)

    # --- Messages and requests -------------------------------------------------------------

    def receive(self, messages: Sequence[str | bytes]) -> list[Effect]:
        """Handle messages that arrived together. Returns the effects, which are carried out."""
        if self.messages.buffers:
            for message in messages:
                self.messages.put(message)
        effects = self.engine.receive(messages, trio.current_time(), self.wall_time())
        self.act(effects)
        return effects

    def receive_run(self, messages: Sequence[str | bytes]) -> list[Any]:
        """Handle a part of the messages that arrived together.

        Returns:
            The buffers that may have got something.
        """
        effects = self.receive(messages)
        fed = {effect[0] for effect in effects if type(effect) is tuple}
        return [*fed, *self.messages.buffers, *self.events.buffers]

    def give_up(self, request: Request, error: BrokerError | None = None) -> None:
        """Abandon a request."""
        self.act(self.engine.give_up(request, trio.current_time(), error))

    # --- The time --------------------------------------------------------------------------

    @enable_ki_protection
    async def keep_time(self) -> None:
        """Call the engine at its deadlines, until cancelled."""
        while True:
            self._awake_at = self.engine.timers.next_deadline
            with trio.move_on_at(self._awake_at):
                await self._alarm.wait()
            # A deadline may have been set and have passed since this task began to wait.
            deadline = min(self._awake_at, self.engine.timers.next_deadline)
            late = trio.current_time() - deadline
            if late > _LATE:
                await self.catch_up(late)
            self.act(self.engine.tick(trio.current_time()))

    async def catch_up(self, late: float) -> None:
        """Let the reader handle all arrived messages before a deadline that has passed counts.

        A reply may have arrived in time while the event loop was blocked. The reader needs a few
        turns of the scheduler to reach it, or many if pushes arrived before it. A stream that never
        pauses can't delay deadlines for long.
        """
        stop_at = trio.current_time() + max(_SHORTEST_CATCH_UP, _CATCH_UP_FACTOR * late)
        progress: tuple[int, int] | None = None
        quiet_turns = 0
        while quiet_turns < _QUIET_TURNS and trio.current_time() < stop_at:
            await trio.lowlevel.checkpoint()
            before, progress = progress, self._progress()
            quiet_turns = quiet_turns + 1 if progress == before else 0

    def _progress(self) -> tuple[int, int]:
        """A value that changes whenever something was read from the socket or the transport."""
        read = self.link.transport.progress if self.link is not None else 0
        return read, self.engine.arrivals
