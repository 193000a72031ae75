"""An engine on a connection that the test plays: no socket, no task, no clock but the test's.

harness = EngineHarness()
harness.receive_json(op="auth", data={"status": "authenticated"})
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from trio_broker._engine import Engine
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
from trio_broker._protocol.requests import Request
from trio_broker._redactor import Redactor
from trio_broker.events import ConnectionEvent, UnexpectedMessage
from trio_broker.exceptions import BrokerError

TIMEOUT = 10.0
GRACE = 30.0


class EngineHarness:
    """An engine, the time, and what has come of its effects."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.events: list[ConnectionEvent] = []
        self.unexpected: list[str] = []
        self.replaced: list[str] = []
        self.replacements: list[ReplaceConnection] = []
        self.restored: list[tuple[str, ...]] = []
        self.ended: list[Request] = []
        self.late: list[Request] = []
        self.swaps_ended: list[SwapEnded] = []
        self.engine = self.make_engine(
            **{
                "max_subscriptions": 100,
                "messages_per_second": 100,
                "max_receive_size": 1024 * 1024,
                "request_timeout": TIMEOUT,
                "reply_grace": GRACE,
                "resolve_timeout": 30.0,
                "poll_interval": 15.0,
                **options,
            }
        )
        self.session = self.engine.session

    def make_engine(self, **options: Any) -> Engine:
        return Engine(Redactor(()), **options)

    @property
    def at(self) -> dt.datetime:
        """The wall clock's time."""
        return dt.datetime.fromtimestamp(self.now, dt.UTC)

    def act(self, effects: Sequence[Effect]) -> None:
        """What a client does by the engine's effects."""
        for effect in effects:
            match effect:
                case (sink, items):
                    sink.put_all(items)
                case StreamEnded():
                    self.end_stream(effect)
                case Wake(waiter):
                    waiter.set()
                case RequestEnded(request):
                    self.take_answered(request)
                case Emit(event):
                    self.take_event(event(at=self.at))
                case ReplaceConnection(error):
                    self.replaced.append(str(error))
                    self.replacements.append(effect)
                case ChannelsRestored(channels):
                    self.restored.append(channels)
                case SwapEnded():
                    self.swaps_ended.append(effect)

    def end_stream(self, ended: StreamEnded) -> None:
        if ended.error is None:
            ended.sink.end()
        else:
            ended.sink.fail(ended.error, ended.cause)

    def take_answered(self, request: Request) -> None:
        (self.late if request.is_late else self.ended).append(request)
        if request.waiter is not None:
            request.waiter.set()

    def take_event(self, event: ConnectionEvent) -> None:
        if isinstance(event, UnexpectedMessage):
            self.unexpected.append(event.reason)
        else:
            self.events.append(event)

    def receive(self, *messages: str | bytes) -> None:
        self.act(self.engine.receive(messages, self.now, self.at))

    def receive_json(self, **message: Any) -> None:
        self.receive(json.dumps(message))

    def submit(self, request: Request) -> Request:
        self.act(self.engine.submit(request, self.now))
        return request

    def give_up(self, request: Request, error: BrokerError | None = None) -> None:
        self.act(self.engine.give_up(request, self.now, error))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.act(self.engine.tick(self.now))

    def lose(self, error: BrokerError) -> None:
        self.act(self.engine.lost(error, self.at, self.now))

    def is_clean(self) -> bool:
        """Whether nothing is left of any request."""
        session = self.session
        kept = (session._waiting, session._ready, session._again, session._alone)
        return not any(kept) and session.waiting == session.in_flight == 0
