"""The queue of requests: when each is sent, and how long the session waits for its reply.

Requests whose replies could be confused share a *lane*. A lane has one request in flight; the
others wait. The operations ``estimate``, ``balances`` and ``swap`` have one lane each. So has every
channel, and every order id that is looked up. Lookups by client order id share one lane.
`matching` decides which request a reply belongs to.

**An abandoned request keeps its lane** until its reply arrives. If another request wants the lane
after `reply_grace`, the connection is replaced, but not while a swap is unresolved. An
``unsubscribe`` is worth that only if a user's channel waits for the slot. The lane of a
swap that was found by a lookup is free at once; its reply stays owed.

**A swap is alone in flight as far as possible.** A waiting swap holds new requests back, gives the
requests in flight `ALONE_DELAY` seconds, and is then sent. Nothing else is sent until it is
answered or abandoned. The lookup that verifies its receipt is sent at once, and is alone as well:
until then the swap is owed a reply, and an error that names nothing could be that one. But after
`HOLD_TIME` seconds, the lookup holds other requests up no longer. Nothing is ever sent twice,
except a read, `subscribe` or `unsubscribe` whose reply was ambiguous.

Results go into `ended`, `unowed_receipts` and the engine's effects. Nothing here calls its owner.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import math
from collections import deque
from functools import partial
from typing import Any, Final

from trio_broker._protocol.codec import Inbound
from trio_broker._protocol.effects import Effect, Emit
from trio_broker._protocol.matching import (
    NO_NAMES,
    OPERATIONS,
    AmbiguousReply,
    Debts,
    Reply,
    note_order,
)
from trio_broker._protocol.order_ids import OrderIds
from trio_broker._protocol.oversized import OversizedReplies
from trio_broker._protocol.requests import CHANNEL, Lane, Priority, Purpose, Request, Stage
from trio_broker._protocol.timers import Timers
from trio_broker._protocol.trust import Trust
from trio_broker._redactor import Redactor
from trio_broker.events import UnexpectedMessage
from trio_broker.exceptions import (
    AuthenticationError,
    BrokerError,
    ConnectionLostError,
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
HOLD_TIME: Final = 1.0
MESSAGE_TOO_BIG: Final = 1009  # RFC 6455, section 7.4.1
_MAX_REASON: Final = 300
_MAX_RAW: Final = 1000
_MAX_ENDED: Final = 100
_SWAP_LANE: Final[Lane] = ("swap", None)
# A swap, and the first lookups that verify a receipt.
_ALONE: Final = frozenset({Priority.SWAP, Priority.VERIFICATION})
# They wait for the next connection.
_KEPT: Final = frozenset({Priority.VERIFICATION, Priority.READ})
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
        unowed_receipts: Receipts of swaps that no request was waiting for, likewise.
        trust: How far replies can be trusted.
        may_send: Whether `next_to_send` may return another request than when the caller last
            cleared this.
        waiting: Requests that have not been sent yet.
    """

    def __init__(
        self,
        effects: list[Effect],
        timers: Timers[Any],
        order_ids: OrderIds,
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
        self.unowed_receipts: list[Reply] = []
        self.trust: Trust = Trust(effects, reply_grace)
        self.may_send: bool = False
        self.waiting: int = 0
        self._effects = effects
        self._timers = timers
        self._order_ids = order_ids
        self._redactor = redactor
        self._max_receive_size = max_receive_size
        self._oversized = OversizedReplies()
        self._count = itertools.count()
        self._debts = Debts(order_ids)
        self._waiting: dict[Lane, list[tuple[Priority, int, Request]]] = {}
        self._ready: list[tuple[Priority, int, Request]] = []
        self._again: list[Request] = []
        self._alone: dict[Request, None] = {}
        self._auth: Request | None = None
        self._wants_slots = False

    @property
    def in_flight(self) -> int:
        """The number of requests that are owed a reply, abandoned ones included."""
        return len(self._debts.owed)

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
        holder = self._debts.holders.get(request.lane)
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
        if request.stage is Stage.IN_FLIGHT and request.owed:
            self._keep_lane(request, now)
        else:
            self._end(request, now)
        self.ended.append(request)

    def too_large(self, request: Request) -> ReplyTooLargeError | None:
        """The error for a request whose reply is known to be too large, otherwise None."""
        if self._oversized.is_certain(request):
            return ReplyTooLargeError(request.op, self._max_receive_size)
        return None

    def resolved(self, request: Request, now: float, *, is_found: bool) -> None:
        """A swap isn't looked up any more. If its order was found, its lane is free."""
        request.is_unresolved = False
        if is_found and request.stage is Stage.IN_FLIGHT:
            request.is_abandoned = True
            self._end(request, now)
        self._check_graces_again()  # They had to wait for the swap.
        self.make_fresh(now)

    def want_slots(self, *, wanted: bool) -> None:
        """Note whether users' channels wait for a slot that an ``unsubscribe`` would free."""
        if wanted and not self._wants_slots:
            self._check_graces_again()
        self._wants_slots = wanted

    def _check_graces_again(self) -> None:
        for holder in self._debts.holders.values():
            if holder.is_abandoned:
                self._timers.set(holder, holder.grace_ends)

    def next_to_send(self, now: float) -> Request | None:
        """The request that may be sent now. It stays queued until `mark_sent`."""
        if not self.is_authenticated:
            auth = self._auth
            return auth if auth is not None and auth.stage is Stage.WAITING else None
        head = self._ready[0][2] if self._ready else None
        if head is not None and (
            head.stage is not Stage.WAITING or head.lane in self._debts.holders
        ):
            head = self._ready_head()
        is_urgent = head is not None and head.priority in _ALONE
        if self._alone and not is_urgent:
            return None
        if head is not None and (
            is_urgent or (self._oversized.suspected and self._flies_alone(head))
        ):
            is_verification = head.priority is Priority.VERIFICATION
            cleared = not self._debts.in_flight or now >= head.since + ALONE_DELAY
            return head if cleared or is_verification else None
        if self._again:
            again = min(self._again, key=_priority)
            if head is None or again.priority <= head.priority:
                cleared = self._debts.in_flight == (again.owed > 0)
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
            if self._flies_alone(request):
                self._alone[request] = None
        request.nonces.append(nonce)
        self._debts.add(request)
        if self._oversized.suspected and (head := self._ready_head()) is not None:
            self._give_time(head)  # It became ready before this one was in flight.
        request.was_sent = True
        request.is_unresolved = request.priority is Priority.SWAP
        request.since = now
        if request.priority is Priority.VERIFICATION:
            self._hold_up(request, now)
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
            if request.stage is Stage.WAITING and now < request.since + ALONE_DELAY:
                self._give_time(request)  # It got more time when its lane became free.
            elif request.priority is Priority.VERIFICATION:
                self._hold_up(request, now)

    def _hold_up(self, verification: Request, now: float) -> None:
        """Let a lookup that verifies a receipt be alone in flight for some time."""
        if now < verification.since + HOLD_TIME:
            self._timers.set(verification, verification.since + HOLD_TIME)
        else:
            self._alone.pop(verification, None)

    def lose(self, error: BrokerError) -> None:
        """Fail all requests in flight. Waiting reads go on waiting for the next connection.

        A waiting swap fails too: its caller wanted it on this connection, not at some later time.
        """
        if isinstance(error, ConnectionLostError) and _is_too_big(error):
            in_flight = [*self._debts.owed]
            self._oversized.lost(in_flight)
            for request in filter(self._oversized.is_certain, in_flight):
                self._fail(request, ReplyTooLargeError(request.op, self._max_receive_size))
        self._drop(error, NotConnectedError(f"nothing was sent: {error}"), keep=_KEPT)

    def shut(self, error: BrokerError, unsent: NotSentError) -> None:
        """Fail all requests: no connection will follow."""
        self._drop(error, unsent, keep=frozenset())

    # --- Messages --------------------------------------------------------------------------

    def owes_channel(self, channel: str) -> bool:
        """Whether a ``subscribe`` or ``unsubscribe`` of a channel is owed a reply."""
        return self._debts.is_lane_owed((CHANNEL, channel))

    def take_reply(self, message: Inbound, text: str, now: float, at: dt.datetime) -> None:
        """Handle a message that is not a push.

        Raises:
            ProtocolError: It is the reply to a request, and it can't be read.
        """
        reply = Reply.of(message, text, at)
        candidates = self._debts.candidates(reply)
        if message.error:
            self._check_authentication(message, is_owed=bool(candidates))
        if len(candidates) > 1:
            self._hold(candidates, reply, now)
        elif candidates:
            self._resolve(candidates[0], reply, now)
        else:
            self._take_unowed(reply, now)

    def _check_authentication(self, message: Inbound, *, is_owed: bool) -> None:
        """Replace the connection if an error shows that the broker no longer knows the client."""
        error = self._error(message.op, message)
        unknown = NotAuthenticatedError if is_owed else (NotAuthenticatedError, AuthenticationError)
        if self.is_authenticated and isinstance(error, unknown):
            self.trust.end(f"the broker says {error.message!r}", is_attempt=True)

    def _error(self, op: str | None, message: Inbound) -> ServerError:
        return server_error(op, str(message.error), self._redactor.error_text, message.code)

    def _take_unowed(self, reply: Reply, now: float) -> None:
        """Handle a reply that nobody is owed."""
        message = reply.message
        to = f" to {message.op!r}" if message.op else ""
        self.report_unexpected(f"no request is waiting for this reply{to}", reply.text)
        if message.op == "swap" and not message.error and reply.names[0]:
            self.unowed_receipts.append(reply)
        else:
            self.taint_if_foreign(reply, now)

    def taint_if_foreign(self, reply: Reply, now: float) -> None:
        """Handle a reply that nobody is owed and that may belong to nothing known."""
        op = reply.message.op
        if not self._debts.is_known(reply) and (not op or op in OPERATIONS):
            self.taint(now)

    def taint(self, now: float) -> None:
        """A reply came that belongs to nothing known: errors without ``op`` are uncertain now."""
        if self.is_authenticated:
            self.trust.taint(now)
            self.make_fresh(now)

    def make_fresh(self, now: float) -> None:
        """Replace a stale connection, if no swap is in flight."""
        if self.trust.stale_since == math.inf or self.trust.is_over or self._has_swap():
            return
        # The own reply of a swap that isn't unresolved any more may still come.
        is_busy = any(
            not holder.is_abandoned or holder.priority is Priority.SWAP
            for holder in self._debts.holders.values()
        )
        fresh_at = self.trust.fresh_at(is_busy=is_busy)
        if now >= fresh_at:
            self.trust.make_fresh(now)
        else:
            self._timers.set(self, fresh_at)

    def _has_swap(self) -> bool:
        """Whether a swap waits, or its outcome may still come over this connection."""
        holder = self._debts.holders.get(_SWAP_LANE)
        if holder is not None and holder.is_unresolved:
            return True
        return any(one.stage is Stage.WAITING for _, _, one in self._waiting.get(_SWAP_LANE, ()))

    def take_malformed(self, error: Exception, text: str) -> None:
        """Report a message that is no JSON. Several in a row replace the connection."""
        self.report_unexpected(str(error), text)
        self.trust.take_malformed()

    def report_unexpected(self, reason: str, text: str) -> None:
        """Count an unexpected message and emit an event for it."""
        self.unexpected += 1
        reason = self._redactor.beginning(reason, _MAX_REASON)
        raw = self._redactor.beginning(text, _MAX_RAW) or None
        self._effects.append(Emit(partial(UnexpectedMessage, reason=reason, raw=raw)))

    # --- The queue -------------------------------------------------------------------------

    def _ready_head(self) -> Request | None:
        while self._ready:
            request = self._ready[0][2]
            if request.stage is Stage.WAITING and request.lane not in self._debts.holders:
                return request
            heapq.heappop(self._ready)
        return None

    def _keep_lane(self, request: Request, now: float) -> None:
        """Abandon a request that is owed a reply, so that the next request can't get this reply."""
        self.may_send = request.is_abandoned = True
        request.grace_ends = now + self.trust.grace(request.op)
        self._timers.set(request, request.grace_ends)
        self._stop_blocking(request)
        if (head := self._ready_head()) is not None:
            self._give_time(head)

    def _check_grace(self, holder: Request) -> None:
        """Replace the connection if the lane of an abandoned request is wanted."""
        swap = self._debts.holders.get(_SWAP_LANE)
        if self.trust.is_over or (swap is not None and swap.is_unresolved):
            return
        # Not for an 'unsubscribe' alone: a new connection would do the same, and cost more.
        if any(
            request.stage is Stage.WAITING and (request.op != "unsubscribe" or self._wants_slots)
            for _, _, request in self._waiting.get(holder.lane, ())
        ):
            self.trust.grace_is_over(holder.op)

    def _stop_blocking(self, request: Request) -> None:
        self._alone.pop(request, None)
        if request in self._again:
            self._again.remove(request)

    def _end(self, request: Request, now: float = -math.inf) -> None:
        """End a request for its caller, and free its lane. What it is owed stays owed."""
        if request.stage is Stage.IN_FLIGHT:
            self._debts.free_lane(request)
            if self._alone or self._again:
                self._stop_blocking(request)
        else:
            self.waiting -= 1
        request.stage = Stage.ENDED
        self._timers.cancel(request)
        lane = self._waiting[request.lane]
        while lane and lane[0][2].stage is not Stage.WAITING:
            heapq.heappop(lane)
        if request.lane not in self._debts.holders:
            if lane:
                # What was sent while it waited for its lane gets time to be answered as well.
                lane[0][2].since = max(lane[0][2].since, now)
                self._make_ready(lane[0])
            else:
                del self._waiting[request.lane]
        # While nothing can be sent, requests that have ended would pile up there.
        if self._ready and self._ready[0][2].stage is Stage.ENDED:
            self._ready_head()
        if max(len(lane), len(self._ready)) > 2 * self.waiting + _MAX_ENDED:
            self._remove_ended(lane)
        if self._ready or self._again:
            self.may_send = True
        if self.trust.stale_since < math.inf:
            self._timers.set(self, self.trust.stale_since)

    def _remove_ended(self, lane: list[tuple[Priority, int, Request]]) -> None:
        """Remove requests that have ended behind one that waits for long."""
        for heap in (lane, self._ready):
            heap[:] = sorted({entry for entry in heap if entry[2].stage is Stage.WAITING})

    def _make_ready(self, entry: tuple[Priority, int, Request]) -> None:
        self.may_send = True
        heapq.heappush(self._ready, entry)
        self._give_time(entry[2])

    def _give_time(self, request: Request) -> None:
        """Set the time at which a request that flies alone stops waiting for those in flight."""
        if self._debts.in_flight and self._flies_alone(request):
            self._timers.set(request, request.since + ALONE_DELAY)

    def _flies_alone(self, request: Request) -> bool:
        if request.priority in _ALONE:
            return True
        return bool(self._oversized.suspected) and self._oversized.flies_alone(request)

    def _drop(self, error: BrokerError, unsent: NotSentError, keep: frozenset[Priority]) -> None:
        self.is_authenticated = False
        self._auth = None
        self.trust.reconnected()
        waiting = sorted(
            entry
            for lane in self._waiting.values()
            for entry in lane
            if entry[2].stage is Stage.WAITING
        )
        in_flight = [*self._debts.holders.values()]
        for request in self._debts.owed:
            self._timers.cancel(request.ambiguity)
            request.ambiguity = None
        self._timers.cancel(self)
        self._debts.reconnected()
        for request in in_flight:
            self._fail(request, error)
        for _, _, request in waiting:
            if request.priority not in keep:
                self._fail(request, unsent)

    def _fail(self, request: Request, error: BrokerError) -> None:
        request.owed = 0
        self._end(request)
        if not request.is_abandoned:
            request.error = error
            self.ended.append(request)

    # --- Replies ---------------------------------------------------------------------------

    def _resolve(self, request: Request, reply: Reply, now: float) -> None:
        """Give a reply to its request.

        Raises:
            ProtocolError: It can't be read.
        """
        is_doubtful = self.trust.is_tainted or self.trust.had_swap_error
        request.is_certain = not (is_doubtful and self._may_be_stray(request, reply))
        self._answer(request, reply)
        if self._oversized.suspected:
            self._oversized.answered(request)
        error = request.error
        if request is self._auth and not request.is_late:
            self.is_authenticated = self.is_authenticated or error is None
        if self.trust.graces and not request.is_late:
            self.trust.answered_in_time(request.op)
        self.ended.append(request)
        if request.is_certain or request.priority is not Priority.SWAP:
            self._account(request, now)
        elif not request.is_late:
            self._keep_lane(request, now)  # Its own reply may still arrive.
        if isinstance(error, ProtocolError):
            raise error

    def _may_be_stray(self, request: Request, reply: Reply) -> bool:
        """Whether a reply may belong to nothing that is owed one."""
        if reply.message.error:
            return self.trust.is_tainted and not reply.message.op
        # The broker may execute a swap after its error, and send the receipt even so.
        is_receipt = request.priority is Priority.SWAP
        return is_receipt and self.trust.had_swap_error and reply.names[1] is None

    def accept(self, request: Request, now: float) -> None:
        """The last reply, which was uncertain, is the request's own after all."""
        if not request.is_certain and request.owed:
            request.is_certain = True
            self._account(request, now)

    def _answer(self, request: Request, reply: Reply) -> None:
        """Decode a reply for its request."""
        message = reply.message
        result: Any = None
        error: BrokerError | None = None
        if message.error:
            error = self._error(request.op, message)
        else:
            try:
                result = request.decode(message)
                if self._redactor.may_hold(bytes(message.data).decode()):
                    result = self._redactor.value(result)
            except (ProtocolError, ServerError) as failure:
                error = failure
        if reply.names != NO_NAMES and not message.error:
            note_order(self._order_ids, request, reply.names)
        if request.trade is not None and result is not None and not request.trade.fits(result):
            self.report_unexpected("the estimate's route is for another trade", reply.text)
        request.is_late = request.is_abandoned
        if not request.is_late or request.purpose in _WANTED_LATE:
            request.result, request.error = result, error
            request.replied_at, request.names = reply.at, reply.names
            request.names_op = bool(message.op)
            # A request may be kept for a while, and the text of an error may be large.
            is_large = error is not None and len(reply.text) > _MAX_RAW
            request.reply = "" if is_large else reply.text
            if request.purpose is Purpose.SWAP:
                request.refusal = (message.error or "", message.code or "")

    def _account(self, request: Request, now: float) -> None:
        """Count a reply to a request, and end the request unless one more may arrive."""
        self._debts.pay(request)
        ambiguity: AmbiguousReply | None = request.ambiguity
        if request.owed:
            if not request.is_abandoned and request.stage is Stage.IN_FLIGHT:
                self._keep_lane(request, now)
        else:
            if request.stage is Stage.IN_FLIGHT:
                self._end(request, now)
            if ambiguity is not None:
                ambiguity.remove(request)
        if ambiguity is not None:
            self._decide(ambiguity, now)

    # --- Ambiguous replies -----------------------------------------------------------------

    def _hold(self, candidates: list[Request], reply: Reply, now: float) -> None:
        """Keep a reply until it is known which of several requests it belongs to."""
        for request in candidates:
            self._timers.cancel(request.ambiguity)
        self._decide(AmbiguousReply.merged(candidates, reply), now)

    def _decide(self, ambiguity: AmbiguousReply, now: float) -> None:
        """Give held replies to their requests, as far as that is certain."""
        while (certain := ambiguity.take_certain()) is not None:
            request, reply = certain
            self._take_held(request, reply, 1, now)
            if not request.owed:
                ambiguity.remove(request)
        if ambiguity.replies and ambiguity.outstanding > 0:
            for request in ambiguity.certainly_answered() if ambiguity.is_one_text else ():
                self._end_by(request, ambiguity.last)
                self._keep_lane(request, now)
            ambiguity.held_until = now + HOLD_TIME
            self._timers.set(ambiguity, ambiguity.held_until)
            return
        self._timers.cancel(ambiguity)
        if not ambiguity.replies:
            ambiguity.dissolve()
        elif ambiguity.is_one_text:
            for request in ambiguity.dissolve():
                self._take_held(request, ambiguity.last, request.owed, now)
        else:
            self._split(ambiguity, now)
            for request in ambiguity.dissolve():
                self._debts.pay(request, request.owed)
                if request not in self._again and request.stage is Stage.IN_FLIGHT:
                    self._end(request, now)

    def hold_is_over(self, ambiguity: AmbiguousReply, now: float) -> None:
        """Other replies had time to decide whose a held reply is."""
        if now < ambiguity.held_until:
            self._timers.set(ambiguity, ambiguity.held_until)
        else:
            self._split(ambiguity, now)

    def _split(self, ambiguity: AmbiguousReply, now: float) -> None:
        """Nothing decides whose the replies are: send the reads again, and look a swap up."""
        if not ambiguity.was_split:
            ambiguity.was_split = True
            self.report_unexpected("it could answer several requests", ambiguity.last.text)
        self.may_send = True
        for request in ambiguity.candidates:
            if request.stage is not Stage.IN_FLIGHT:
                continue
            if request.priority is Priority.SWAP:
                self._split_swap(request, ambiguity, now)
            elif request.is_abandoned or request in self._again:
                continue
            elif request.priority is not Priority.BACKGROUND and len(request.nonces) == 1:
                request.since = now
                self._alone.pop(request, None)
                self._again.append(request)
                self._timers.set(request, now + ALONE_DELAY)
            elif request.priority is Priority.BACKGROUND or ambiguity.outstanding <= 0:
                # A poll is repeated by its owner, at a time that does no harm to others.
                self._fail_undecided(request, now)
            else:
                # It was sent again already. Its answer may be held: don't hold others up.
                self._alone.pop(request, None)

    def _fail_undecided(self, request: Request, now: float) -> None:
        request.error = ProtocolError(
            f"the replies to {request.op!r} and to others name nothing and can't be told apart"
        )
        self.ended.append(request)
        self._keep_lane(request, now)

    def _split_swap(self, request: Request, ambiguity: AmbiguousReply, now: float) -> None:
        """A held reply may be a swap's. Even a late one shows that it may have had an error."""
        reply = ambiguity.reply_to(request)
        is_over = request.is_abandoned and ambiguity.outstanding > 0
        if reply is not None and not is_over:
            request.is_certain = False
            self._end_by(request, reply)
            if not request.is_abandoned:
                self._keep_lane(request, now)
            self.trust.make_stale(now)

    def _take_held(self, request: Request, reply: Reply, replies: int, now: float) -> None:
        """Give a request a held reply, which is certainly its own."""
        self._debts.pay(request, replies)
        request.is_certain = not self._may_be_stray(request, reply)
        if request in self._again:
            self._again.remove(request)
        if not request.is_abandoned or request.purpose in _WANTED_LATE:
            self._end_by(request, reply)
        if request.stage is Stage.IN_FLIGHT and not request.owed:
            self._end(request, now)
        elif request.owed and not request.is_abandoned:
            self._keep_lane(request, now)

    def _end_by(self, request: Request, reply: Reply) -> None:
        """End a request with a held reply."""
        self._answer(request, reply)
        self._oversized.answered(request)
        self.ended.append(request)

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
