"""The session: which request awaits which reply. No I/O, no clock; time comes in as an argument.

The broker's messages carry no request id, so a reply is matched by what it names, and what it
can't name must not be ambiguous. Hence *lanes*: requests whose replies could be taken for one
another share a lane, and a lane has one request in flight; the rest wait their turn. ``estimate``,
``balances`` and ``swap`` have a lane each, every channel has one, and so has every order id that
is looked up. Lookups by client order id share one, as their replies may not name it.

**A reply resolves its own request or none.** What fits no request in flight is reported as odd.
An answer that names nothing, with several in flight, belongs to one of them (the *suspects* of a
`Doubt`): each read among them is asked again by itself, once, and what that brings is its
answer. Every sending brings one reply, so counting tells which replies may still come; as long as
one may, it keeps its lane, so that it can't pass for the next one's.

**What nobody could tell apart** is a reply that the broker sends twice, where it names neither a
nonce, an order nor a channel: one to ``estimate`` or ``balances``, a refusal, an order's state
without its id. The second passes for the reply to the next request that it fits. A refusal in
words that came before on the connection is marked as such (`Request.echoed`), for whom it matters.

**A request that was given up keeps its lane** until its reply has come. After `reply_grace` it
won't be believed any more: whoever wants the lane then makes the session ask for a new connection.

**A swap flies alone as far as it can.** One that waits bars new requests, gives those in flight
`SETTLE` seconds, and goes. While it is waited for, nothing else leaves. Nothing is ever sent
twice, but for the reads above.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs

from trio_broker import wire
from trio_broker.exceptions import (
    BrokerError,
    ConnectionLostError,
    NonceReusedError,
    NotAuthenticatedError,
    NotConnectedError,
    NotSentError,
    ProtocolError,
    RequestTimeoutError,
    ServerError,
    server_error,
)
from trio_broker.models import Order, SwapReceipt
from trio_broker.request import CHANNEL, Doubt, Lane, Priority, Request, Stage, ignore
from trio_broker.wire import Inbound

SETTLE: Final = 0.25
MALFORMED_IN_A_ROW: Final = 5
_REMEMBERED: Final = 10_000
_SET_ASIDE: Final = 16
_OF_CHANNELS: Final = frozenset({"subscribe", "unsubscribe"})


@attrs.define(eq=False)
class _Lane:
    holder: Request | None = None
    waiting: list[tuple[Priority, int, Request]] = attrs.field(factory=list)


@attrs.define(eq=False)
class SessionListener:
    """What a session tells its owner; all of it is called synchronously.

    Attributes:
        pushed: A push came: envelope and text. May raise `ProtocolError`.
        odd: Something unexpected came: why, and the text.
        changed: A request may be ready to leave, or the next deadline is another.
        broken: The connection can't be trusted any more and must be replaced.
    """

    pushed: Callable[[Inbound, str], None] = lambda *_: None
    odd: Callable[[str, str], None] = lambda *_: None
    changed: Callable[[], None] = lambda: None
    broken: Callable[[ConnectionLostError], None] = ignore


class Session:
    """Requests and replies, over one connection after another.

    Args:
        reply_grace: Seconds for which the reply to a given-up request is waited for.
        erase: Takes keys out of the broker's texts before they become errors: it may repeat them.
    """

    def __init__(self, *, reply_grace: float, erase: Callable[[str], str] = str) -> None:
        self.erase: Callable[[str], str] = erase
        self.listener: SessionListener = SessionListener()
        self.authenticated: bool = False
        self.connections: int = 0
        self.arrivals: int = 0
        self.received: int = 0
        self.sent: int = 0
        self.odd: int = 0
        self._reply_grace = reply_grace
        self._count = itertools.count()
        self._lanes: dict[Lane, _Lane] = {}
        self._ready: list[tuple[Priority, int, Request]] = []
        self._alarms: list[tuple[float, int, Request]] = []
        self._waiting = 0
        self._in_flight: dict[Request, None] = {}
        self._again: deque[Request] = deque()
        self._alone: dict[Request, None] = {}
        self._auth: Request | None = None
        self._is_distrusted = False
        self._echoes = False
        self._malformed = 0
        self._swapped: OrderedDict[str, str | None] = OrderedDict()
        self._looked_up: OrderedDict[str, str | None] = OrderedDict()
        self._refusals: OrderedDict[str, str | None] = OrderedDict()
        self._aside: deque[tuple[Request, set[Request], Inbound, str]] = deque(maxlen=_SET_ASIDE)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._waiting

    @property
    def in_flight(self) -> int:
        """How many requests were sent and not answered, those included that were given up."""
        return len(self._in_flight)

    # --- What the owner does ---------------------------------------------------------------

    def open(self, auth: Request, now: float) -> None:
        """A connection is there: authenticate on it, then send what waits.

        Args:
            auth: The request that authenticates.
            now: The time.
        """
        self._auth = auth
        self.connections += 1
        self.submit(auth, now)

    def submit(self, request: Request, now: float) -> None:
        """Queue a request; it leaves when its lane and the connection are free for it.

        Args:
            request: A new request.
            now: The time.
        """
        entry = (request.priority, next(self._count), request)
        request.since = now
        self._waiting += 1
        lane = self._lanes.setdefault(request.lane, _Lane())
        heapq.heappush(lane.waiting, entry)
        self._alarm(request.deadline, request)
        if lane.holder is None:
            heapq.heappush(self._ready, entry)
            if request.priority is Priority.SWAP:
                self._alarm(now + SETTLE, request)
        else:
            self._check_grace(lane.holder, now)
        self.listener.changed()

    def give_up(self, request: Request, now: float, error: BrokerError | None = None) -> None:
        """Nobody waits for a request any more; one that was sent keeps its lane.

        Args:
            request: The request; one that has its answer is left alone.
            now: The time.
            error: Why, for the record.
        """
        if request.stage is Stage.ENDED or request.unheard:
            return
        request.error = error
        if request.stage is Stage.IN_FLIGHT and request.is_owed:
            self._keep_lane(request, now)
        else:
            self._end(request)
        request.on_end(request)
        self.listener.changed()

    def release(self, request: Request) -> None:
        """Wait no longer for a reply to a request that was given up: it could mislead nobody.

        Args:
            request: The request; one that has ended is left alone.
        """
        if request.stage is Stage.IN_FLIGHT and request.unheard:
            self._end(request)
            self.listener.changed()

    def next_to_send(self, now: float) -> Request | None:
        """The request that may leave now; it stays where it is until `mark_sent`.

        Args:
            now: The time.
        """
        if not self.authenticated:
            auth = self._auth
            return auth if auth is not None and auth.stage is Stage.WAITING else None
        head = self._ready_head()
        if head is not None and head.priority is Priority.SWAP:
            settled = not self._in_flight or now >= head.since + SETTLE
            return head if settled else None
        if self._alone:
            return None
        if self._again:
            again = self._again[0]
            cleared = again.doubt is None and len(self._in_flight) == 1
            return again if cleared or now >= again.since + SETTLE else None
        return head

    def mark_sent(self, request: Request, nonce: str, now: float) -> None:
        """A request's bytes are about to leave: from here on it may have arrived.

        Args:
            request: What `next_to_send` gave.
            nonce: The nonce that it was signed with, empty for none.
            now: The time.
        """
        if request.stage is Stage.IN_FLIGHT:
            self._again.remove(request)
            self._alone[request] = None
        else:
            request.stage = Stage.IN_FLIGHT
            self._waiting -= 1
            self._in_flight[request] = None
            self._lanes[request.lane].holder = request
            if request.priority is Priority.SWAP:
                self._alone[request] = None
        request.was_sent = True
        request.nonces.append(nonce)
        request.since = now
        self.sent += 1

    def receive(self, messages: Iterable[str | bytes], now: float) -> None:
        """Take messages from the broker that came together.

        Args:
            messages: The messages, in their order; those that are bytes came as binary ones.
            now: The time.
        """
        self.arrivals += 1
        for message in messages:
            if self._is_distrusted:
                return
            if isinstance(message, str):
                self._take(message, now)
            else:
                self.report_odd("it is binary", "")

    def _take(self, text: str, now: float) -> None:
        self.received += 1
        try:
            message = wire.decode_message(text)
            if message.ch and not message.op:
                self.listener.pushed(message, text)
            elif message.op or message.error:
                self._take_reply(message, text, now)
            else:
                self.report_odd("it has neither op, ch nor error", text)
        except ProtocolError as error:
            self.take_malformed(error, text)
        else:
            self._malformed = 0
            if message.error:
                self._check_standing(message.op, message.error)

    def _distrust(self, why: ConnectionLostError) -> None:
        """Nothing of this connection is believed any more, however much has come already."""
        self._is_distrusted = True
        self.listener.broken(why)

    def take_malformed(self, error: ProtocolError, text: str) -> None:
        """A message can't be read; several in a row cost the connection its trust.

        Args:
            error: Why.
            text: The message.
        """
        self._malformed += 1
        self.report_odd(str(error), text)
        if self._malformed == MALFORMED_IN_A_ROW:
            self._distrust(
                ConnectionLostError(f"{MALFORMED_IN_A_ROW} malformed messages came in a row")
            )

    def report_odd(self, reason: str, text: str) -> None:
        """Count a message that was not expected, and tell the owner.

        Args:
            reason: What is odd about it.
            text: The message.
        """
        self.odd += 1
        self.listener.odd(reason, text)

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do, infinity for never."""
        while self._alarms and self._alarms[0][2].stage is Stage.ENDED:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else math.inf

    def tick(self, now: float) -> None:
        """Let the time pass: end what is overdue.

        Args:
            now: The time.
        """
        passed = False
        while self.next_deadline <= now:
            _, _, request = heapq.heappop(self._alarms)
            passed = True
            if request.unheard:
                self._check_grace(request, now)
            elif request.deadline <= now:
                self.give_up(request, now, self._overdue(request))
        if passed:
            self.listener.changed()

    def lose(self, error: BrokerError) -> None:
        """The connection is gone: what was in flight fails, reads that wait go on waiting.

        A swap that waits fails too: it was asked for on a connection, not for some later time.

        Args:
            error: Why; what was in flight fails with it.
        """
        self._drop(error, NotConnectedError(f"nothing was sent: {error}"), keep=Priority.READ)

    def shut(self, error: BrokerError, unsent: NotSentError) -> None:
        """There will be no connection any more: everything fails.

        Args:
            error: Why; what was in flight fails with it.
            unsent: What fails that still waits.
        """
        self._drop(error, unsent, keep=None)

    # --- Turns and ends --------------------------------------------------------------------

    def _ready_head(self) -> Request | None:
        while self._ready:
            request = self._ready[0][2]
            if request.stage is Stage.WAITING and self._lanes[request.lane].holder is None:
                return request
            heapq.heappop(self._ready)
        return None

    def _alarm(self, at: float, request: Request) -> None:
        if at != math.inf:
            heapq.heappush(self._alarms, (at, next(self._count), request))

    def _keep_lane(self, request: Request, now: float) -> None:
        """A reply to a request may still come, for nobody: it must not meet the next one."""
        request.unheard = True
        request.grace_ends = now + self._reply_grace
        self._alarm(request.grace_ends, request)
        self._stop_barring(request)

    def _check_grace(self, holder: Request, now: float) -> None:
        if holder.grace_ends > now:
            return
        lane = self._lanes[holder.lane]
        # A goodbye isn't worth a connection: the next one holds nothing that isn't wanted.
        wanted = (request for _, _, request in lane.waiting if request.op != "unsubscribe")
        if any(request.stage is Stage.WAITING for request in wanted):
            self._distrust(
                ConnectionLostError(
                    f"a reply to {holder.op!r} that nobody waits for any more has not come: the "
                    "connection can't be trusted with the next one"
                )
            )

    def _stop_barring(self, request: Request) -> None:
        self._alone.pop(request, None)
        if request in self._again:
            self._again.remove(request)

    def _end(self, request: Request) -> None:
        if request.stage is Stage.IN_FLIGHT:
            del self._in_flight[request]
            self._stop_barring(request)
        else:
            self._waiting -= 1
        request.stage = Stage.ENDED
        lane = self._lanes[request.lane]
        if lane.holder is request:
            lane.holder = None
        while lane.waiting and lane.waiting[0][2].stage is not Stage.WAITING:
            heapq.heappop(lane.waiting)
        if lane.holder is None and lane.waiting:
            self._make_ready(lane.waiting[0])
        elif lane.holder is None:
            del self._lanes[request.lane]
        self._ready_head()  # While nothing can leave, what has ended would pile up there.

    def _make_ready(self, entry: tuple[Priority, int, Request]) -> None:
        heapq.heappush(self._ready, entry)
        request = entry[2]
        if request.priority is Priority.SWAP:
            self._alarm(request.since + SETTLE, request)

    def _drop(self, error: BrokerError, unsent: NotSentError, keep: Priority | None) -> None:
        self.authenticated = False
        self._auth = None
        self._is_distrusted = False
        self._echoes = False
        self._malformed = 0
        self._looked_up.clear()
        self._refusals.clear()
        self._aside.clear()
        waiting = sorted(
            entry
            for lane in self._lanes.values()
            for entry in lane.waiting
            if entry[2].stage is Stage.WAITING
        )
        for request in list(self._in_flight):
            self._fail(request, error)
        for _, _, request in waiting:
            if request.priority is not keep:
                self._fail(request, unsent)
        self.listener.changed()

    def _fail(self, request: Request, error: BrokerError) -> None:
        if request.stage is Stage.ENDED:
            return  # Somebody who was told of an end has given this one up.
        request.doubt = None
        self._end(request)
        if not request.unheard:
            request.error = error
            request.on_end(request)

    # --- Replies ---------------------------------------------------------------------------

    def _take_reply(self, message: Inbound, text: str, now: float) -> None:
        echoed = message.error in self._refusals
        if message.error:
            _remember(self._refusals, message.error, None)
        candidates = self._candidates(message)
        if len(candidates) > 1:
            self._doubt(candidates, message, text, now)
        elif candidates:
            self._resolve(candidates[0], message, text, now, echoed=echoed)
        elif not self._set_aside(message, text):
            self.report_odd(f"nobody waits for this reply to {message.op or 'anything'!r}", text)

    def _candidates(self, message: Inbound) -> list[Request]:
        """The requests in flight that a reply can belong to, by all that it names."""
        by_nonce = self._by_nonce(message)
        if by_nonce is not None:
            return [by_nonce] if message.op in {by_nonce.op, None, ""} else []
        if message.nonce and self._echoes:
            return []  # It answers something that has ended.
        if message.op in _OF_CHANNELS and message.ch:
            # A thousand may fly together, and each has a lane of its own.
            holder = self._holder((CHANNEL, message.ch))
            is_meant = holder is not None and holder.op == message.op and holder.is_owed
            return [holder] if holder is not None and is_meant else []
        owed = [request for request in self._in_flight if request.is_owed]
        if not message.op:
            return owed
        if message.op == "order_status" and any(wire.order_names(message)):
            return self._lookups_named(message)
        return [
            request
            for request in owed
            if request.op == message.op and (not message.ch or request.channel == message.ch)
        ]

    def _by_nonce(self, message: Inbound) -> Request | None:
        for request in self._in_flight if message.nonce else ():
            if message.nonce in request.nonces:
                self._echoes = True
                return request
        return None

    def _lookups_named(self, message: Inbound) -> list[Request]:
        order_id, client_order_id = wire.order_names(message)
        for name in (order_id, client_order_id):
            named = self._holder(("order_status", name)) if name else None
            if named is not None:
                return [named]
        by_client = self._holder(("order_status", None))
        if by_client is None or not (client_order_id or not self._strangers(by_client)):
            return []
        # It names an order that nobody asked for by that name: either what was asked for by
        # client order id, or another lookup's reply once more.
        name = client_order_id or self._looked_up.get(order_id or "", by_client.client_order_id)
        return [by_client] if name == by_client.client_order_id else []

    def _strangers(self, by_client: Request) -> set[Request]:
        """The lookups that may be meant too by a reply with an order that nobody asked for.

        The broker may take a client order id for an order's id. Its reply then names an order of
        which only this connection's earlier replies could tell that it is another one's.
        """
        return {
            request
            for request in self._in_flight
            if request.order_id not in {None, by_client.client_order_id}
            and request.order_id not in self._swapped
            and request.order_id not in self._looked_up
        }

    def _set_aside(self, message: Inbound, text: str) -> bool:
        """Keep a reply that one asked by client order id may be meant by, or strangers.

        Should each of those get a reply that names it, it was none of theirs.
        """
        by_client = self._holder(("order_status", None))
        order_id, client_order_id = wire.order_names(message)
        if message.op != "order_status" or by_client is None or not order_id or client_order_id:
            return False
        if order_id in self._looked_up or not self._strangers(by_client):
            return False
        self._aside.append((by_client, self._strangers(by_client), message, text))
        return True

    def _decide(self, named: Request, now: float) -> None:
        """A lookup has got the reply that names it: what was set aside may be told apart now."""
        by_client = self._holder(("order_status", None))
        own = [entry for entry in self._aside if entry[0] is by_client]
        for _, strangers, _, _ in own:
            strangers.discard(named)
        # Of two that may be meant for it one isn't, and nothing ever says which: both stay.
        if by_client is not None and len(own) == 1 and not own[0][1]:
            _, _, message, text = own[0]
            self._aside.clear()
            self._resolve(by_client, message, text, now, echoed=False)

    def _holder(self, lane: Lane) -> Request | None:
        found = self._lanes.get(lane)
        return found.holder if found is not None else None

    def _resolve(
        self, request: Request, message: Inbound, text: str, now: float, *, echoed: bool
    ) -> None:
        result, error = self._answer(request, message)
        if not self._is_own(request, result):
            self.report_odd("it names the order of another swap", text)
            return
        if request.op == "order_status":
            self._remember_lookup(request, message)
        tell = request.on_late if request.unheard else request.on_end
        if not request.unheard or tell is not ignore:
            request.result, request.error, request.reply = result, error, text
            request.named = bool(message.op)
            request.alone = len(self._in_flight) == 1
            request.echoed = echoed
        if request is self._auth and not request.unheard:
            self.authenticated = self.authenticated or error is None
        is_vague = error is not None and not _refuses(error, named=bool(message.op), echoed=echoed)
        if request.priority is not Priority.SWAP or not is_vague:
            self._account(request, now)
        elif not request.unheard:
            self._keep_lane(request, now)  # That may have been another's: its own may still come.
        tell(request)
        self.listener.changed()
        if request.order_id is not None and request.order_id in wire.order_names(message):
            self._decide(request, now)
        if isinstance(error, ProtocolError):
            raise error

    def _check_standing(self, op: str | None, text: str) -> None:
        """Whoever was meant: a broker that takes us for a stranger will do so again."""
        error = server_error(op, text, self.erase)
        if self.authenticated and isinstance(error, NotAuthenticatedError):
            self._distrust(ConnectionLostError(f"the broker says {error.message!r}"))

    def _is_own(self, request: Request, result: Any) -> bool:
        """Whether a swap's order, or what was found by a swap's id, was never another swap's."""
        name = request.client_order_id
        if name is None or not isinstance(result, SwapReceipt | Order) or not result.order_id:
            return True
        if isinstance(result, Order) and name == result.order_id:
            return True  # It was asked for as what may be either of its ids.
        if self._swapped.get(result.order_id, name) != name:
            return False
        _remember(self._swapped, result.order_id, name)
        return True

    def _remember_lookup(self, request: Request, message: Inbound) -> None:
        order_id, client_order_id = wire.order_names(message)
        if order_id:
            known = client_order_id or request.client_order_id or self._swapped.get(order_id)
            known = known or self._looked_up.get(order_id)
            _remember(self._looked_up, order_id, known)

    # --- Doubt -----------------------------------------------------------------------------

    def _doubt(self, suspects: list[Request], message: Inbound, text: str, now: float) -> None:
        """An answer names none of several: ask each read among them again, by itself, once."""
        self.report_odd("it could answer several requests; each is asked again by itself", text)
        doubt = Doubt.merged(suspects, message, text)
        for request in suspects:
            if request.priority is Priority.SWAP or request.unheard or request in self._again:
                continue
            if len(request.nonces) == 1:
                request.since = now
                self._again.append(request)
                self._alarm(now + SETTLE, request)
            else:
                # That may have been its answer, and the others can't wait for a better one.
                self._alone.pop(request, None)
        self._settle(doubt)
        self.listener.changed()

    def _account(self, request: Request, now: float) -> None:
        """One reply to a request has come: it ends, unless one more may come."""
        request.replies += 1
        doubt = request.doubt
        if request.replies < len(request.nonces):
            if not request.unheard:
                self._keep_lane(request, now)
        else:
            request.doubt = None
            self._end(request)
            if doubt is not None:
                del doubt.suspects[request]
        if doubt is not None:
            self._settle(doubt)

    def _settle(self, doubt: Doubt) -> None:
        """End those of a doubt's suspects of whom it is certain by now that all replies came."""
        for request in doubt.dissolve():
            if request.stage is Stage.ENDED or request.is_owed or request in self._again:
                continue
            self._end(request)
            if not request.unheard:
                request.result, request.error = self._nameless_answer(request, doubt)
                request.on_end(request)

    def _nameless_answer(self, request: Request, doubt: Doubt) -> tuple[Any, BrokerError | None]:
        answer = doubt.answer()
        if answer is None:
            text = f"replies to {request.op!r} and to others name nothing and can't be told apart"
            return None, ProtocolError(text)
        message, request.reply = answer
        return self._answer(request, message)

    def _answer(self, request: Request, message: Inbound) -> tuple[Any, BrokerError | None]:
        if message.error:
            return None, server_error(request.op, message.error, self.erase)
        try:
            return request.decode(message), None
        except (ProtocolError, ServerError) as error:
            return None, error

    def _overdue(self, request: Request) -> BrokerError:
        if request.was_sent:
            return RequestTimeoutError(f"the broker didn't answer {request.op!r} in time")
        if not self.authenticated and request is not self._auth:
            return NotConnectedError(f"there was no connection in time for {request.op!r}")
        return NotSentError(
            f"{request.op!r} waited for its turn until its time was up; it wasn't sent"
        )


def _refuses(error: BrokerError, *, named: bool, echoed: bool) -> bool:
    """Whether what came for a swap is certainly its own refusal, and no word on another one."""
    is_refusal = isinstance(error, ServerError) and named and not echoed
    return is_refusal and not isinstance(error, NonceReusedError)


def _remember(memory: OrderedDict[str, str | None], key: str, value: str | None) -> None:
    memory[key] = value
    if len(memory) > _REMEMBERED:
        memory.popitem(last=False)
