"""The queue of requests: when each is sent, and how long the session waits for its reply.

Requests whose replies could be confused share a *lane*. A lane has one request in flight; the
others wait. The operations ``estimate``, ``balances`` and ``swap`` have one lane each. So has every
channel, and every order id that is looked up. Lookups by client order id share one lane.
`matching` decides which request a reply belongs to.

**An abandoned request keeps its lane** until its reply arrives. If another request wants the lane
after `reply_grace`, the session asks for a new connection.

**A swap is alone in flight as far as possible.** A waiting swap holds new requests back, gives the
requests in flight `ALONE_DELAY` seconds, and is then sent. Nothing else is sent until it is
answered or abandoned. Nothing is ever sent twice, except a read whose reply was ambiguous.

Results go into `ended` and into the engine's effects. Nothing here calls its owner.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
from collections import deque
from functools import partial
from typing import Any, Final

from trio_broker._protocol.codec import Inbound
from trio_broker._protocol.effects import Effect, Emit, ReplaceConnection
from trio_broker._protocol.matching import AmbiguousReply, PendingReplies
from trio_broker._protocol.oversized import OversizedReplies
from trio_broker._protocol.requests import (
    CHANNEL,
    Lane,
    Priority,
    Purpose,
    Request,
    Stage,
)
from trio_broker._protocol.timers import Timers
from trio_broker._redactor import Redactor
from trio_broker.events import UnexpectedMessage
from trio_broker.exceptions import (
    BrokerError,
    ConnectionLostError,
    NonceReusedError,
    NotAuthenticatedError,
    NotConnectedError,
    NotSentError,
    ProtocolError,
    ReplyTooLargeError,
    RequestTimeoutError,
    ServerError,
    server_error,
)

ALONE_DELAY: Final = 0.25
MALFORMED_IN_A_ROW: Final = 5
MESSAGE_TOO_BIG: Final = 1009  # RFC 6455, section 7.4.1
_MAX_REASON: Final = 300
_MAX_RAW: Final = 1000
# Their late replies still show the outcome of a swap.
_WANTED_LATE: Final = frozenset({Purpose.SWAP, Purpose.LOOKUP})


class Session:
    """Requests and replies, over one connection after another.

    Attributes:
        is_authenticated: Whether the broker has authenticated this client on this connection.
        connections: Connections so far.
        sent: Messages sent.
        unexpected: Unexpected messages received.
        ended: Requests that have ended and that the engine has not handled yet.
        is_distrusted: Whether the connection is about to be replaced.
        malformed: Messages in a row that are no JSON.
        may_send: Whether `next_to_send` may return another request than when the caller last
            cleared this.
        waiting: Requests that have not been sent yet.
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers[Any],
        redactor: Redactor,
        *,
        reply_grace: float,
        max_receive_size: int = 1024 * 1024,
    ) -> None:
        self.is_authenticated: bool = False
        self.connections: int = 0
        self.sent: int = 0
        self.unexpected: int = 0
        self.ended: deque[Request] = deque()
        self.is_distrusted: bool = False
        self.may_send: bool = False
        self._effects = effects
        self._timers = timers
        self._redactor = redactor
        self._reply_grace = reply_grace
        self._max_receive_size = max_receive_size
        self._oversized = OversizedReplies()
        self._count = itertools.count()
        self._pending = PendingReplies()
        self._waiting: dict[Lane, list[tuple[Priority, int, Request]]] = {}
        self._ready: list[tuple[Priority, int, Request]] = []
        self._again: deque[Request] = deque()
        self._alone: dict[Request, None] = {}
        self._auth: Request | None = None
        self.malformed = 0
        self.waiting: int = 0

    @property
    def in_flight(self) -> int:
        """The number of requests that are owed a reply, abandoned ones included."""
        return len(self._pending.in_flight)

    # --- Requests --------------------------------------------------------------------------

    def open(self, auth: Request, now: float) -> None:
        """Authenticate on a new connection, then send the waiting requests."""
        self._auth = auth
        self.connections += 1
        self.submit(auth, now)

    def submit(self, request: Request, now: float) -> None:
        """Queue a request; it is sent when its lane and the connection are free."""
        entry = (request.priority, next(self._count), request)
        request.since = now
        channel = request.channel
        request.lane = (request.op, request.order_id) if channel is None else (CHANNEL, channel)
        self.waiting += 1
        heapq.heappush(self._waiting.setdefault(request.lane, []), entry)
        self._timers.set(request, request.deadline)
        holder = self._pending.holders.get(request.lane)
        if holder is None:
            self._make_ready(entry)
        else:
            # Not at once: its reply may have arrived while the event loop was blocked.
            self._timers.set(holder, holder.grace_ends)

    def give_up(self, request: Request, now: float, error: BrokerError | None = None) -> None:
        """Abandon a request. If it was sent, it keeps its lane."""
        if request.stage is Stage.ENDED or request.is_abandoned:
            return
        request.error = error
        if request.stage is Stage.IN_FLIGHT and request.is_owed:
            self._keep_lane(request, now)
        else:
            self._end(request)
        self.ended.append(request)

    def too_large(self, request: Request) -> ReplyTooLargeError | None:
        """The error for a request whose reply is known to be too large, otherwise None."""
        if self._oversized.is_certain(request):
            return ReplyTooLargeError(request.op, self._max_receive_size)
        return None

    def release(self, request: Request) -> None:
        """Free the lane of an abandoned request: its reply can't be taken for another's."""
        if request.stage is Stage.IN_FLIGHT:
            self._end(request)

    def next_to_send(self, now: float) -> Request | None:
        """The request that may be sent now. It stays queued until `mark_sent`."""
        if not self.is_authenticated:
            auth = self._auth
            return auth if auth is not None and auth.stage is Stage.WAITING else None
        head = self._ready[0][2] if self._ready else None
        if head is not None and (
            head.stage is not Stage.WAITING or head.lane in self._pending.holders
        ):
            head = self._ready_head()
        is_swap = head is not None and head.priority is Priority.SWAP
        if self._alone and not is_swap:
            return None
        if head is not None and (
            is_swap or (self._oversized.suspected and self._flies_alone(head))
        ):
            settled = not self._pending.in_flight or now >= head.since + ALONE_DELAY
            return head if settled else None
        if self._again:
            again = min(self._again, key=_priority)
            if head is None or again.priority <= head.priority:
                cleared = again.ambiguity is None and self.in_flight == 1
                return again if cleared or now >= again.since + ALONE_DELAY else None
        return head

    def mark_sent(self, request: Request, nonce: str, now: float) -> None:
        """Note that a request is about to be sent: from now on the broker may have received it."""
        if request.stage is Stage.IN_FLIGHT:
            self._again.remove(request)
            self._alone[request] = None
        else:
            request.stage = Stage.IN_FLIGHT
            self.waiting -= 1
            if self._ready and self._ready[0][2] is request:
                heapq.heappop(self._ready)
            self._pending.add(request)
            if self._flies_alone(request):
                self._alone[request] = None
            if self._oversized.suspected and (head := self._ready_head()) is not None:
                self._give_time(head)  # It became ready before this one was in flight.
        request.was_sent = True
        request.nonces.append(nonce)
        request.since = now
        self.sent += 1

    def due(self, request: Request, now: float) -> None:
        """Handle a deadline: abandon the request, or replace a connection that owes its reply."""
        self.may_send = True  # The request may have waited for those in flight.
        if request.is_abandoned:
            if request.grace_ends <= now:
                self._check_grace(request)
            else:
                self._timers.set(request, request.grace_ends)
        elif request.deadline <= now:
            self.give_up(request, now, self._overdue(request))
        else:
            self._timers.set(request, request.deadline)

    def lose(self, error: BrokerError) -> None:
        """Fail all requests in flight. Waiting reads go on waiting for the next connection.

        A waiting swap fails too: its caller wanted it on this connection, not at some later time.
        """
        if isinstance(error, ConnectionLostError) and _is_too_big(error):
            in_flight = [*self._pending.in_flight]
            self._oversized.lost(in_flight)
            for request in filter(self._oversized.is_certain, in_flight):
                self._fail(request, ReplyTooLargeError(request.op, self._max_receive_size))
        self._drop(error, NotConnectedError(f"nothing was sent: {error}"), keep=Priority.READ)

    def shut(self, error: BrokerError, unsent: NotSentError) -> None:
        """Fail all requests: no connection will follow."""
        self._drop(error, unsent, keep=None)

    # --- Messages --------------------------------------------------------------------------

    def take_reply(self, message: Inbound, text: str, now: float, at: dt.datetime) -> None:
        """Handle a message that is not a push.

        Raises:
            ProtocolError: It is the reply to a request, and it can't be read.
        """
        candidates = self._pending.candidates(message)
        if len(candidates) > 1:
            self._ask_again(candidates, message, text, now, at)
        elif candidates:
            self._resolve(candidates[0], message, text, now, at)
        else:
            what = message.op or "anything"
            self.report_unexpected(f"no request is waiting for this reply to {what!r}", text)

    def check_authentication(self, op: str | None, text: str, code: str | None = None) -> None:
        """Replace the connection if an error shows that the broker no longer knows the client."""
        error = server_error(op, text, self._redactor.error_text, code)
        if self.is_authenticated and isinstance(error, NotAuthenticatedError):
            self._distrust(ConnectionLostError(f"the broker says {error.message!r}"))

    def take_malformed(self, error: Exception, text: str) -> None:
        """Report a message that is no JSON. Several in a row replace the connection."""
        self.malformed += 1
        self.report_unexpected(str(error), text)
        if self.malformed == MALFORMED_IN_A_ROW:
            self._distrust(
                ConnectionLostError(f"{MALFORMED_IN_A_ROW} malformed messages came in a row")
            )

    def report_unexpected(self, reason: str, text: str) -> None:
        """Count an unexpected message and emit an event for it."""
        self.unexpected += 1
        reason = self._redactor.beginning(reason, _MAX_REASON)
        raw = self._redactor.beginning(text, _MAX_RAW) or None
        self._effects.append(Emit(partial(UnexpectedMessage, reason=reason, raw=raw)))

    def _distrust(self, why: ConnectionLostError) -> None:
        """Ignore everything more from this connection, and have it replaced."""
        self.is_distrusted = True
        self._effects.append(ReplaceConnection(why))

    # --- The queue -------------------------------------------------------------------------

    def _ready_head(self) -> Request | None:
        while self._ready:
            request = self._ready[0][2]
            if request.stage is Stage.WAITING and request.lane not in self._pending.holders:
                return request
            heapq.heappop(self._ready)
        return None

    def _keep_lane(self, request: Request, now: float) -> None:
        """Abandon a request that is owed a reply, so that the next request can't get this reply."""
        self.may_send = request.is_abandoned = True
        request.grace_ends = now + self._reply_grace
        self._timers.set(request, request.grace_ends)
        self._stop_blocking(request)
        if (head := self._ready_head()) is not None:
            self._give_time(head)

    def _check_grace(self, holder: Request) -> None:
        if self.is_distrusted:
            return
        # Not for an 'unsubscribe': a new connection would do the same, and cost more.
        if any(
            request.stage is Stage.WAITING and request.op != "unsubscribe"
            for _, _, request in self._waiting.get(holder.lane, ())
        ):
            self._distrust(
                ConnectionLostError(
                    f"the reply to an abandoned {holder.op!r} has not arrived: it could pass for "
                    "the reply to the next one"
                )
            )

    def _stop_blocking(self, request: Request) -> None:
        self._alone.pop(request, None)
        if request in self._again:
            self._again.remove(request)

    def _end(self, request: Request) -> None:
        if request.stage is Stage.IN_FLIGHT:
            self._pending.clear(request)
            if self._alone or self._again:
                self._stop_blocking(request)
        else:
            self.waiting -= 1
        request.stage = Stage.ENDED
        self._timers.cancel(request)
        lane = self._waiting[request.lane]
        while lane and lane[0][2].stage is not Stage.WAITING:
            heapq.heappop(lane)
        if request.lane not in self._pending.holders:
            if lane:
                self._make_ready(lane[0])
            else:
                del self._waiting[request.lane]
        # While nothing can be sent, requests that have ended would pile up there.
        if self._ready and self._ready[0][2].stage is Stage.ENDED:
            self._ready_head()
        if self._ready or self._again:
            self.may_send = True

    def _make_ready(self, entry: tuple[Priority, int, Request]) -> None:
        self.may_send = True
        heapq.heappush(self._ready, entry)
        self._give_time(entry[2])

    def _give_time(self, request: Request) -> None:
        """Set the time at which a request that flies alone stops waiting for those in flight."""
        if self._pending.in_flight and self._flies_alone(request):
            self._timers.set(request, request.since + ALONE_DELAY)

    def _flies_alone(self, request: Request) -> bool:
        if request.priority is Priority.SWAP:
            return True
        return bool(self._oversized.suspected) and self._oversized.flies_alone(request)

    def _drop(self, error: BrokerError, unsent: NotSentError, keep: Priority | None) -> None:
        self.is_authenticated = False
        self._auth = None
        self.is_distrusted = False
        self.malformed = 0
        self._pending.reconnected()
        waiting = sorted(
            entry
            for lane in self._waiting.values()
            for entry in lane
            if entry[2].stage is Stage.WAITING
        )
        for request in [*self._pending.in_flight]:
            self._fail(request, error)
        for _, _, request in waiting:
            if request.priority is not keep:
                self._fail(request, unsent)

    def _fail(self, request: Request, error: BrokerError) -> None:
        request.ambiguity = None
        self._end(request)
        if not request.is_abandoned:
            request.error = error
            self.ended.append(request)

    # --- Replies ---------------------------------------------------------------------------

    def _resolve(
        self, request: Request, message: Inbound, text: str, now: float, at: dt.datetime
    ) -> None:
        """Give a reply to its request."""
        result, error = self._answer(request, message)
        if not self._pending.take_order(request, message, result):
            self.report_unexpected("it names the order of another swap", text)
            return
        if self._oversized.suspected:
            self._oversized.answered(request)
        request.is_late = request.is_abandoned
        if not request.is_late or request.purpose in _WANTED_LATE:
            request.result, request.error, request.reply = result, error, text
            request.replied_at = at
            request.names_op = bool(message.op)
            request.was_alone = len(self._pending.in_flight) == 1
        if request is self._auth and not request.is_late:
            self.is_authenticated = self.is_authenticated or error is None
        if request.priority is not Priority.SWAP or not _is_vague(error, names_op=bool(message.op)):
            self._account(request, now, at)
        elif not request.is_late:
            # It may be the error of an earlier swap: the own reply may still arrive.
            self._keep_lane(request, now)
        self.ended.append(request)
        if isinstance(error, ProtocolError):
            raise error

    def _ask_again(
        self, candidates: list[Request], message: Inbound, text: str, now: float, at: dt.datetime
    ) -> None:
        """Send each read among the candidates of a reply again, once."""
        self.report_unexpected(
            "it could answer several requests; each is sent again by itself", text
        )
        self.may_send = True
        ambiguity = AmbiguousReply.merged(candidates, message, text)
        for request in candidates:
            is_swap = request.priority is Priority.SWAP
            if is_swap or request.is_abandoned or request in self._again:
                continue
            if len(request.nonces) == 1:
                request.since = now
                self._again.append(request)
                self._timers.set(request, now + ALONE_DELAY)
            else:
                # It was sent again already. Its answer may be this one: don't hold others up.
                self._alone.pop(request, None)
        self._resolve_ambiguity(ambiguity, at)

    def _account(self, request: Request, now: float, at: dt.datetime) -> None:
        """Count a reply to a request, and end the request unless one more may arrive."""
        request.replies += 1
        ambiguity: AmbiguousReply | None = request.ambiguity
        if request.replies < len(request.nonces):
            if not request.is_abandoned:
                self._keep_lane(request, now)
        else:
            request.ambiguity = None
            self._end(request)
            if ambiguity is not None:
                del ambiguity.candidates[request]
        if ambiguity is not None:
            self._resolve_ambiguity(ambiguity, at)

    def _resolve_ambiguity(self, ambiguity: AmbiguousReply, at: dt.datetime) -> None:
        """End the candidates whose replies have certainly all arrived."""
        for request in ambiguity.dissolve():
            if request.stage is Stage.ENDED or request.is_owed or request in self._again:
                continue
            self._end(request)
            self._oversized.answered(request)
            if not request.is_abandoned:
                request.replied_at = at
                request.result, request.error = self._ambiguous_answer(request, ambiguity)
                self.ended.append(request)

    def _ambiguous_answer(
        self, request: Request, ambiguity: AmbiguousReply
    ) -> tuple[Any, BrokerError | None]:
        answer = ambiguity.answer()
        if answer is not None:
            message, request.reply = answer
            result, error = self._answer(request, message)
            if self._pending.take_order(request, message, result):
                return result, error
        return None, ProtocolError(
            f"the replies to {request.op!r} and to others name nothing and can't be told apart"
        )

    def _answer(self, request: Request, message: Inbound) -> tuple[Any, BrokerError | None]:
        if message.error:
            redact = self._redactor.error_text
            return None, server_error(request.op, message.error, redact, message.code)
        try:
            result = request.decode(message)
            if self._redactor.may_hold(bytes(message.data).decode()):
                result = self._redactor.value(result)
        except (ProtocolError, ServerError) as error:
            return None, error
        return result, None

    def _overdue(self, request: Request) -> BrokerError:
        if request.was_sent:
            return RequestTimeoutError(f"the broker didn't answer {request.op!r} in time")
        if not self.is_authenticated and request is not self._auth:
            return NotConnectedError(f"there was no connection in time for {request.op!r}")
        return NotSentError(
            f"{request.op!r} waited for its turn until its time was up; it wasn't sent"
        )


def _is_too_big(error: ConnectionLostError) -> bool:
    return error.is_local and error.code == MESSAGE_TOO_BIG


def _priority(request: Request) -> Priority:
    return request.priority


def _is_vague(error: BrokerError | None, *, names_op: bool) -> bool:
    """Whether an answer to a swap may be the reply to an earlier swap."""
    if error is None:
        return False
    is_refusal = isinstance(error, ServerError) and names_op
    return not is_refusal or isinstance(error, NonceReusedError)
