"""A session whose broker is the test."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from tests.engine_harness import EngineHarness
from trio_broker._engine import Engine
from trio_broker._protocol import codec, requests
from trio_broker._protocol.effects import RequestEnded
from trio_broker._protocol.requests import Priority, Request
from trio_broker._redactor import Redactor
from trio_broker.exceptions import ConnectionLostError, ProtocolError

AUTHENTICATED: Final = {"status": "authenticated"}


def status_of(message: codec.Inbound) -> Any:
    body = json.loads(bytes(message.data))
    if "status" not in body:
        raise ProtocolError("it has no status")
    return body["status"]


class SessionEngine(Engine):
    """An engine that passes ended requests to the test instead of its own parts."""

    def _request_ended(self, request: Request, now: float) -> None:  # noqa: ARG002
        if request.op == "swap" and request.result is not None:
            self.order_ids.add(str(request.client_order_id), request.result.order_id)
        self._effects.append(RequestEnded(request))


class SessionHarness(EngineHarness):
    """A session whose broker is the test."""

    def __init__(self, *, authenticated: bool = True) -> None:
        super().__init__()
        self.numbers = iter(range(10**6))
        self.pushed: list[str] = []
        self.engine.channels.take_push = self.take_push  # type: ignore[method-assign, assignment]
        self.auth = self.open()
        if authenticated:
            self.write()
            self.receive_json(op="auth", data=AUTHENTICATED)
            self.ended.clear()

    def make_engine(self, **options: Any) -> Engine:
        return SessionEngine(Redactor(()), **options)

    def take_push(self, message: codec.Inbound, *_: object) -> None:
        if message.error == "bad body":
            raise ProtocolError("bad body")
        self.pushed.append(str(message.ch))

    def open(self) -> Request:
        auth = requests.authentication(self.now + 10)
        self.engine.connected(auth, self.now)
        return auth

    def reconnect(self) -> None:
        """Lose the connection, and authenticate on the next one."""
        self.lose(ConnectionLostError("gone"))
        self.open()
        self.write()
        self.receive_json(op="auth", data=AUTHENTICATED)

    def queue(
        self, op: str, *, priority: Priority = Priority.READ, patience: float = 100.0, **names: Any
    ) -> Request:
        deadline = self.now + patience
        request = Request(op, priority, decode=status_of, deadline=deadline, **names)
        return self.submit(request)

    def send(self, op: str, **options: Any) -> Request:
        """Queue a request, and send it."""
        request = self.queue(op, **options)
        assert self.write() == [request]
        return request

    def swap(self, client_order_id: str = "c1", patience: float = 10.0) -> Request:
        trade = requests.Trade("1", "ETH", "USDT")
        return self.submit(requests.swap(trade, client_order_id, None, self.now + patience))

    def write(self, limit: float = math.inf) -> list[Request]:
        """Send every request that may be sent now, up to a limit."""
        written: list[Request] = []
        while len(written) < limit:
            request = self.engine.next_to_send(self.now)
            if request is None:
                break
            nonce = "" if request.channel else f"n{next(self.numbers)}"
            self.engine.mark_sent(request, nonce, self.now)
            written.append(request)
        return written

    def reply(self, op: str, status: str, **names: Any) -> None:
        self.receive_json(op=op, data={"status": status, **names})

    def reply_order(self, order_id: str, status: str = "FILLED") -> None:
        self.reply("order_status", status, orderId=order_id)

    def is_clean(self) -> bool:
        assert self.engine.timers.next_deadline == math.inf
        return super().is_clean()
