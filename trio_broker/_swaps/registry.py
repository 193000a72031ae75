"""What is known of each swap of a client, and the lookups of what isn't known.

A swap is entered before any of it can be sent, and stays here until its outcome is known:

    enter ──► under way ──┬── a receipt ───────────────────────────► confirmed
                          ├── an error in the table of refusals ───► refused
                          ├── nothing was sent ────────────────────► not sent: its id is free again
                          └── everything else ─────────────────────► unknown
                                                                       │ looked up by its id
       confirmed ◄── the order was found, or the receipt came late ────┤
       refused ◄──── the refusal came late ────────────────────────────┤
       settled ◄──── closed by hand ───────────────────────────────────┘
          └────────► confirmed, if the receipt comes even then

**Found means confirmed; not found means nothing.** The broker may not have processed the swap yet,
or may not find orders by that id. So the swap is looked up again until `resolve_timeout` has
passed, and its outcome then stays unknown. One clear answer ends the lookups earlier, if the
swap's signature has expired and the broker can't accept it any more. No swap is signed later than
`MAX_WAIT` after its call, so the same is known of the swaps of an earlier process.

**What comes later corrects what was told.** An error may have been another's, or a broker may
execute what it refused. So after an error on a connection, a receipt that doesn't name the client
order id is verified by a lookup first, and pays no debt until then. A receipt that nobody was owed
is attributed in the same way. If that doesn't tell whose it is, every swap refused on this
connection becomes unknown again and is looked up. Each such change is a `SwapCorrected` event. A
confirmation is never corrected.

**No two swaps have one id.** A swap is rejected when it is entered if an earlier swap with its id
may have been sent. All unresolved swaps are remembered, and the last `REMEMBERED` resolved ones,
those of earlier processes included.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import OrderedDict
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from typing import Any, Final

import attrs

from trio_broker._protocol import requests
from trio_broker._protocol.effects import Effect, Emit, SwapEnded, Wake
from trio_broker._protocol.matching import Reply
from trio_broker._protocol.order_ids import OrderIds
from trio_broker._protocol.requests import Priority, Purpose, Request, Waiter
from trio_broker._protocol.session import Session
from trio_broker._protocol.timers import Timers
from trio_broker._swaps.refusals import RefusalTable, Verdict, says_not_found
from trio_broker.events import SwapCorrected, SwapResolved, SwapUnresolved
from trio_broker.exceptions import (
    BrokerError,
    DuplicateClientOrderIdError,
    NotSentError,
    ReplyTooLargeError,
    RequestTimeoutError,
    ServerError,
    SwapOutcomeUnknownError,
    fresh,
)
from trio_broker.models import Order, SwapIntent, SwapOutcome, SwapReceipt, UnresolvedSwap

# The broker accepts timestamps that are up to 30 s off, and this machine's clock may be 30 s ahead.
SIGNATURE_LIFETIME: Final = 60.0
# By the wall clock. A process that finds a swap in a journal must know when it was signed at last.
MAX_WAIT: Final = 60.0
REMEMBERED: Final = 10_000
_URGENT_TRIES: Final = 2  # by the receipt's order id, and by the client order id
_FIRST_DELAY: Final = 0.25
_MAX_DELAY: Final = 4.0


@attrs.define(eq=False)
class Swap:
    """A swap, and what is known of it.

    Attributes:
        intent: What the user wanted.
        attempt: Tells this use of the id from an earlier one of which nothing was sent.
        is_own: Whether it was entered as a swap, and not only looked up by its id.
        entered: When it was entered, by the clock of deadlines; None for an earlier process's swap.
        outcome: What is known.
        receipt: The broker's receipt, if it is confirmed.
        error: The refusal, or why nothing was sent, or why the outcome is unknown.
        cause: The same as text; the note of one that was settled by hand.
        last_answer: What the last lookup has brought, as text.
        connection: The number of the connection over which it was sent.
        request: Its message, until its outcome is known.
        unverified: A receipt that may be its own, or an earlier swap's.
        rivals: The earlier swaps that this receipt may belong to.
        says_duplicate: Whether the broker has said that there is a swap with its id.
        duplicate: The error for the caller if there is one.
        lookup: The lookup that is under way.
        lookups_end: When the lookups end.
        tries: How many lookups there were.
        by_order_id: Whether the next lookup takes its id for the broker's order id.
        is_reported: Whether a `SwapUnresolved` event was made.
        is_announced: Whether a `SwapResolved` event was made.
        is_abandoned: Whether its caller stopped waiting before its outcome was known.
        waiters: Woken when its outcome is known, or isn't looked up any more.
    """

    intent: SwapIntent
    attempt: str = ""
    is_own: bool = True
    entered: float | None = None
    outcome: SwapOutcome = SwapOutcome.UNDER_WAY
    receipt: SwapReceipt | None = None
    error: BrokerError | None = None
    cause: str = ""
    last_answer: str = attrs.field(init=False, default="")
    connection: int = attrs.field(init=False, default=0)
    request: Request | None = attrs.field(init=False, default=None)
    unverified: SwapReceipt | None = attrs.field(init=False, default=None)
    rivals: list[Swap] = attrs.field(init=False, factory=list)
    says_duplicate: bool = attrs.field(init=False, default=False)
    duplicate: DuplicateClientOrderIdError | None = attrs.field(init=False, default=None)
    lookup: Request | None = attrs.field(init=False, default=None)
    lookups_end: float = attrs.field(init=False, default=-math.inf)
    tries: int = attrs.field(init=False, default=0)
    by_order_id: bool = attrs.field(init=False, default=False)
    is_reported: bool = attrs.field(init=False, default=False)
    is_announced: bool = attrs.field(init=False, default=False)
    is_abandoned: bool = attrs.field(init=False, default=False)
    waiters: list[Waiter] = attrs.field(init=False, factory=list)

    @property
    def client_order_id(self) -> str:
        """The id that the client gave it."""
        return self.intent.client_order_id

    @property
    def may_have_been_sent(self) -> bool:
        """Whether it isn't resolved, and any byte of it may have been sent."""
        if self.outcome is SwapOutcome.UNDER_WAY:
            return self.request is not None and self.request.was_sent
        return self.outcome is SwapOutcome.UNKNOWN

    @property
    def reason(self) -> str:
        """Why its outcome is unknown, or why it isn't confirmed."""
        looked_up = f"lookup by its id: {self.last_answer}" if self.last_answer else ""
        return "; ".join(filter(None, (self.cause, looked_up))) or "its reply hasn't come"

    @property
    def is_pending(self) -> bool:
        """Whether its outcome may still come: it is under way, or looked up."""
        return self.outcome is SwapOutcome.UNDER_WAY or self.lookups_end > -math.inf

    def may_still_execute(self, now: float | None, at: dt.datetime) -> bool:
        """Whether the broker could still accept it.

        The wall clock may be set, so it decides only about swaps of earlier processes.
        """
        lifetime = MAX_WAIT + SIGNATURE_LIFETIME
        if self.entered is not None and now is not None:
            return now < self.entered + lifetime
        return at < self.intent.at + dt.timedelta(seconds=lifetime)

    def describe(self, now: float | None, at: dt.datetime) -> UnresolvedSwap:
        """The swap as users see it."""
        intent = self.intent
        return UnresolvedSwap(
            client_order_id=intent.client_order_id,
            amount_in=intent.amount_in,
            asset_in=intent.asset_in,
            asset_out=intent.asset_out,
            at=intent.at,
            outcome=self.outcome,
            reason=self.reason,
            may_still_execute=self.may_still_execute(now, at),
        )

    def result(self) -> SwapReceipt:
        """The result of the call that made or looked up the swap.

        Raises:
            NotSentError: Nothing was sent.
            ServerError: It is refused.
            SwapOutcomeUnknownError: Its outcome isn't known.
        """
        if self.receipt is not None:
            return self.receipt
        if self.outcome in {SwapOutcome.NOT_SENT, SwapOutcome.REFUSED} and self.error:
            raise fresh(self.error)
        raise SwapOutcomeUnknownError(self.client_order_id, self.reason) from self.error


class SwapRegistry:
    """The swaps of one client."""

    def __init__(
        self,
        effects: list[Effect],
        session: Session,
        timers: Timers[Any],
        order_ids: OrderIds,
        *,
        request_timeout: float,
        resolve_timeout: float,
        refusal_texts: Iterable[str] = (),
    ) -> None:
        self._effects = effects
        self._session = session
        self._timers = timers
        self._order_ids = order_ids
        self._request_timeout = request_timeout
        self._resolve_timeout = resolve_timeout
        self._refusals = RefusalTable(refusal_texts)
        self._open: dict[str, Swap] = {}
        self._ended: OrderedDict[str, Swap] = OrderedDict()
        self._looked_up: dict[Swap, None] = {}
        # The swaps of the last connection that had an error as their reply.
        self._doubtful: dict[Swap, None] = {}
        self._is_over = False

    # --- Sending a swap --------------------------------------------------------------------

    def enter(self, intent: SwapIntent, attempt: str, now: float) -> Swap:
        """Enter a swap; nothing is sent yet.

        Raises:
            DuplicateClientOrderIdError: An earlier swap with this id may have been sent.
        """
        earlier = self.find(intent.client_order_id)
        if earlier is not None:
            raise DuplicateClientOrderIdError(intent.client_order_id, earlier.outcome)
        swap = Swap(intent, attempt, entered=now)
        self._open[intent.client_order_id] = swap
        self._order_ids.add(intent.client_order_id)
        return swap

    def submit(self, swap: Swap, request: Request, now: float) -> None:
        """Queue a swap's message."""
        swap.request = request
        request.subject = swap
        swap.connection = self._session.connections
        request.sign_by = swap.intent.at.timestamp() + MAX_WAIT
        request.send_by = (now if swap.entered is None else swap.entered) + MAX_WAIT
        self._session.submit(request, now)

    def abandon(self, swap: Swap, why: BrokerError, now: float) -> None:
        """Note that the caller stopped waiting. An unsent swap is withdrawn; a sent one goes on.

        If the outcome is known already, an event reports it, because the caller has left. `why` is
        the reason to record if the swap wasn't sent.
        """
        request = swap.request
        if swap.outcome is not SwapOutcome.UNDER_WAY:
            self._announce(swap)
        elif request is None:
            self._end(swap, SwapOutcome.NOT_SENT, now, error=why)
        elif request.was_sent:
            swap.is_abandoned = True
        else:
            self._session.give_up(request, now, NotSentError(str(why)))

    def swap_ended(self, request: Request, now: float) -> None:
        """A swap's message has its reply, perhaps late, or won't have one."""
        swap: Swap = request.subject
        error = request.error
        if not request.was_sent:
            self._end(swap, SwapOutcome.NOT_SENT, now, error=error)
        elif swap.outcome is SwapOutcome.CONFIRMED:
            return  # A lookup has found its order before.
        elif error is None:
            self._take_receipt(swap, request, now)
        else:
            self._take_error(swap, request, error, now)

    def _take_receipt(self, swap: Swap, request: Request, now: float) -> None:
        """Take a receipt, unless it may be the receipt of a swap that had an error."""
        receipt: SwapReceipt = request.result
        doubtful = self._doubtful_now() if self._doubtful else ()
        others = [one for one in doubtful if one is not swap]
        if swap.unverified is not None:
            self._forget_receipt(swap, swap.unverified, receipt.order_id, now)
        if request.names[1] or not others:
            if not request.is_certain:
                self._session.accept(request, now)
            self._end(swap, SwapOutcome.CONFIRMED, now, receipt=receipt)
        elif swap.outcome is SwapOutcome.SETTLED:
            self._ask_whose(receipt.order_id, others, now)
        else:
            swap.unverified, swap.rivals = receipt, others
            self._become_unknown(swap, f"order {receipt.order_id} may be another swap's", now)

    def _forget_receipt(
        self, swap: Swap, unverified: SwapReceipt, order_id: str | None, now: float
    ) -> None:
        """A swap's order is known. If its unverified receipt is for another one, ask for whose."""
        rivals, swap.rivals = swap.rivals, []
        swap.unverified = None
        if unverified.order_id == order_id and swap.request is not None:
            self._session.trust.can_verify = True
            self._session.accept(swap.request, now)
        elif rivals:
            self._ask_whose(unverified.order_id, rivals, now)

    def _take_error(self, swap: Swap, request: Request, error: BrokerError, now: float) -> None:
        verdict = Verdict.UNKNOWN
        if isinstance(error, ServerError):
            self._doubtful[swap] = None
            if request.is_certain:
                verdict = self._refusals.judge(*request.refusal, names_op=request.names_op)
            self._session.trust.take_swap_error(now)
        request.refusal = ("", "")
        swap.says_duplicate = swap.says_duplicate or verdict is Verdict.DUPLICATE
        if verdict is Verdict.REFUSED:
            # A late refusal tells nothing new about a swap that is settled.
            if not request.is_late or swap.outcome is SwapOutcome.UNKNOWN:
                self._end(swap, SwapOutcome.REFUSED, now, error=error)
        elif not request.is_late:
            swap.error = error
            self._become_unknown(swap, str(error), now)

    def _become_unknown(self, swap: Swap, cause: str, now: float) -> None:
        swap.outcome, swap.cause = SwapOutcome.UNKNOWN, cause
        self._start_lookups(swap, now)

    # --- Receipts that nobody was owed -----------------------------------------------------

    def _doubtful_now(self) -> list[Swap]:
        """The swaps of this connection that had an error, and are not confirmed."""
        for swap in [*self._doubtful]:
            is_old = swap.connection != self._session.connections
            if is_old or swap.outcome is SwapOutcome.CONFIRMED:
                del self._doubtful[swap]
        return [*self._doubtful]

    def take_unowed_receipt(self, reply: Reply, now: float) -> None:
        """Find out whose a receipt is that no request was waiting for."""
        order_id = str(reply.names[0])
        owner = reply.names[1] or self._order_ids.owner(order_id)
        if owner is not None and self.find(owner) is not None:
            self._correct(owner, order_id, now)
        elif owner is None and order_id not in self._order_ids and (rivals := self._doubtful_now()):
            self._ask_whose(order_id, rivals, now)
        else:
            self._session.taint_if_foreign(reply, now)

    def _ask_whose(self, order_id: str, swaps: list[Swap], now: float) -> None:
        """Look up whose an order is that one of these swaps may have made."""
        if not requests.is_sendable(order_id):
            self._doubt_all(swaps, order_id, now)
            return
        request = requests.order_status(order_id, now + self._request_timeout)
        request.purpose, request.subject = Purpose.RECEIPT, swaps
        self._session.submit(request, now)

    def receipt_looked_up(self, request: Request, now: float) -> None:
        """The order of a receipt was looked up, or couldn't be."""
        owner = request.names[1] or self._order_ids.owner(str(request.order_id))
        if owner is not None:
            self._correct(owner, str(request.order_id), now)
            return
        if request.is_late:
            return
        self._doubt_all(request.subject, str(request.order_id), now)

    def take_order(self, request: Request, now: float) -> None:
        """A reply about an order may show that a swap was executed that had an error."""
        order_id, owner = request.names
        # `session` has noted the order of a lookup by client order id.
        owner = owner or self._order_ids.owner(order_id or "")
        if order_id and owner:
            self._correct(owner, order_id, now)

    def _doubt_all(self, swaps: list[Swap], order_id: str, now: float) -> None:
        """One of these swaps may have made an order, and nothing tells which."""
        for swap in swaps:
            if swap.outcome is SwapOutcome.REFUSED:
                self._doubt(swap, f"order {order_id} may be its own", now)
            elif swap.outcome is SwapOutcome.UNKNOWN:
                self._start_lookups(swap, now)

    def _correct(self, client_order_id: str, order_id: str, now: float) -> None:
        """An order is certainly the order of the swap with this id."""
        swap = self.find(client_order_id)
        if swap is None or not self._order_ids.may_be_swap(client_order_id, (order_id, None)):
            return
        if swap.outcome not in {SwapOutcome.CONFIRMED, SwapOutcome.NOT_SENT}:
            receipt = SwapReceipt(order_id, None, client_order_id)
            self._end(swap, SwapOutcome.CONFIRMED, now, receipt=receipt)

    def _doubt(self, swap: Swap, cause: str, now: float) -> None:
        """A refused swap may have been executed after all."""
        self._ended.pop(swap.client_order_id, None)
        self._open[swap.client_order_id] = swap
        swap.is_announced = swap.is_reported = False
        self._corrected(swap, SwapOutcome.UNKNOWN)
        self._effects.append(SwapEnded(swap.intent, swap.attempt, SwapOutcome.UNKNOWN, None, cause))
        self._become_unknown(swap, cause, now)

    def _corrected(self, swap: Swap, outcome: SwapOutcome) -> None:
        event = partial(
            SwapCorrected,
            client_order_id=swap.client_order_id,
            before=swap.outcome,
            outcome=outcome,
            receipt=swap.receipt,
        )
        self._effects.append(Emit(event))

    # --- Unresolved swaps ------------------------------------------------------------------

    def load(self, swaps: Iterable[Swap]) -> None:
        """Add swaps of an earlier process."""
        for swap in swaps:
            self._order_ids.add(swap.client_order_id)
            if swap.outcome is SwapOutcome.UNKNOWN:
                swap.is_reported = True
                self._open[swap.client_order_id] = swap
            else:
                self._remember(swap)

    def unresolved(self) -> list[Swap]:
        """The swaps that may have been sent and whose outcome is unknown, oldest first."""
        return [swap for swap in self._open.values() if swap.may_have_been_sent]

    def find(self, client_order_id: str) -> Swap | None:
        """The swap with this id, if it is remembered."""
        return self._open.get(client_order_id) or self._ended.get(client_order_id)

    def look_up(self, client_order_id: str, now: float, at: dt.datetime) -> Swap:
        """Look a swap up by its id, for `resolve_timeout` from now, if its outcome is unknown."""
        swap = self.find(client_order_id)
        if swap is None:
            swap = Swap(_unknown_intent(client_order_id, at), is_own=False, entered=now)
            swap.outcome = SwapOutcome.UNKNOWN
        if swap.outcome is SwapOutcome.UNKNOWN:
            self._start_lookups(swap, now)
        return swap

    def wait(self, swap: Swap, waiter: Waiter) -> None:
        """Wake a waiter once the swap isn't pending."""
        if swap.is_pending:
            swap.waiters.append(waiter)
        else:
            self._effects.append(Wake(waiter))

    def settle(self, client_order_id: str, note: str, now: float) -> None:
        """Close a swap by hand.

        Raises:
            ValueError: No swap with this id is unresolved, or it is being looked up now.
        """
        swap = self._open.get(client_order_id)
        if swap is None or not swap.may_have_been_sent:
            raise ValueError(f"no unresolved swap has the client order id {client_order_id}")
        if swap.is_pending:
            raise ValueError(f"swap {client_order_id} is being looked up: wait for its end")
        self._end(swap, SwapOutcome.SETTLED, now, note=note)

    def finish(self, unsent: NotSentError, now: float) -> None:
        """There will be no connection any more. The session ends all requests after this."""
        self._is_over = True
        for swap in tuple(self._looked_up):
            if swap.lookup is None:
                self._stop_lookups(swap, now)
        for swap in tuple(self._open.values()):
            if swap.outcome is SwapOutcome.UNDER_WAY and swap.request is None:
                # Now, because the journal is closed when its caller goes on.
                self._end(swap, SwapOutcome.NOT_SENT, now, error=unsent)

    # --- Lookups ---------------------------------------------------------------------------

    def _start_lookups(self, swap: Swap, now: float) -> None:
        swap.lookups_end = now + self._resolve_timeout
        swap.tries = 0
        swap.by_order_id = False
        self._looked_up[swap] = None
        if self._is_over:
            self._stop_lookups(swap, now)
        elif swap.lookup is None:
            self._send_lookup(swap, now)

    def _send_lookup(self, swap: Swap, now: float) -> None:
        deadline = min(now + self._request_timeout, swap.lookups_end)
        # The first ones that verify a receipt hold other requests up, and the rest doesn't.
        unverified = swap.unverified
        is_urgent = unverified is not None and swap.tries < _URGENT_TRIES
        priority = Priority.VERIFICATION if is_urgent else Priority.READ
        if unverified is not None and not swap.tries and requests.is_sendable(unverified.order_id):
            request = requests.order_status(unverified.order_id, deadline, priority)
        elif swap.by_order_id:
            # In the background: it fails with the connection, and the next one begins anew.
            request = requests.order_status(swap.client_order_id, deadline, Priority.BACKGROUND)
            request.client_order_id = swap.client_order_id
        else:
            request = requests.order_lookup(swap.client_order_id, deadline, priority)
        request.purpose, request.subject = Purpose.LOOKUP, swap
        swap.tries += 1
        swap.lookup = request
        self._session.submit(request, now)

    def due(self, swap: Swap, now: float) -> None:
        """The time has come to look a swap up again, or to stop."""
        if swap.lookup is None:
            if now < swap.lookups_end:
                self._send_lookup(swap, now)
            else:
                self._stop_lookups(swap, now)

    def lookup_ended(self, request: Request, now: float) -> None:
        """A lookup has its reply, perhaps late, or won't have one."""
        swap: Swap = request.subject
        if request.is_late:
            if swap.outcome is not SwapOutcome.CONFIRMED:
                self._found(swap, request, now)
            return
        swap.lookup = None
        if swap.outcome is SwapOutcome.CONFIRMED or self._found(swap, request, now):
            return
        if swap.outcome is not SwapOutcome.UNKNOWN:
            return
        if swap.unverified is not None and request.order_id == swap.unverified.order_id:
            self._not_verified(swap, request, now)
            return
        # A lost reply blocks its lane for long. The two kinds of lookup have different lanes, so
        # the other kind is sent next. A new connection has lost no reply, and begins anew.
        was_answered = not isinstance(request.error, NotSentError | RequestTimeoutError)
        swap.by_order_id ^= not was_answered
        swap.by_order_id &= self._session.is_authenticated
        if was_answered or not swap.last_answer:
            swap.last_answer = str(request.error or "the reply names no order")
        is_useless = isinstance(request.error, ReplyTooLargeError)
        if (
            self._is_over
            or now >= swap.lookups_end
            or is_useless
            or _is_conclusive(swap, request, now)
        ):
            self._stop_lookups(swap, now)
            return
        if swap.unverified is not None and swap.tries == _URGENT_TRIES:
            self._give_up_verifying(swap, now)
        delay = min(_FIRST_DELAY * 2.0 ** min(swap.tries - 1, 10), _MAX_DELAY)
        self._timers.set(swap, min(now + delay, swap.lookups_end))

    def _found(self, swap: Swap, request: Request, now: float) -> bool:
        """Whether a lookup's reply names the order, which confirms the swap."""
        order = request.result
        name = swap.client_order_id
        if not isinstance(order, Order) or not order.order_id:
            return False
        if not self._order_ids.may_be_swap(name, (order.order_id, order.client_order_id)):
            return False
        if order.client_order_id is None and (
            (order.order_id == name and swap.is_own)  # another order, whose id is the same
            or request.order_id not in {None, name}  # a receipt's order, which may be another's
        ):
            return False
        if swap.says_duplicate:
            swap.duplicate = DuplicateClientOrderIdError(
                name, SwapOutcome.CONFIRMED, was_sent=True, order=order
            )
        receipt = SwapReceipt(order.order_id, order.status, name)
        self._end(swap, SwapOutcome.CONFIRMED, now, receipt=receipt)
        return True

    def _not_verified(self, swap: Swap, request: Request, now: float) -> None:
        """The order of a receipt has no client order id, or another one, or wasn't found."""
        owner = request.names[1]
        if owner is not None:
            swap.unverified = None
            self._correct(owner, str(request.order_id), now)
        if self._is_over:
            self._stop_lookups(swap, now)
        else:
            self._send_lookup(swap, now)

    def _give_up_verifying(self, swap: Swap, now: float) -> None:
        """The first lookups of a receipt have found nothing.

        The swap's own reply may still come. Until then, no error without ``op`` is certain, so this
        connection isn't kept for long.
        """
        self._session.trust.verification_failed(now)
        self._resolve_request(swap, now)

    def _stop_lookups(self, swap: Swap, now: float) -> None:
        if swap.unverified is not None and not self._is_over:
            self._session.trust.verification_failed(now)
        self._not_pending(swap, now)
        if swap.unverified is not None:
            rivals, swap.rivals = swap.rivals, []
            self._doubt_all(rivals, swap.unverified.order_id, now)
        if swap.is_own and not swap.is_reported:
            swap.is_reported = True
            name, reason = swap.client_order_id, swap.reason
            event = partial(SwapUnresolved, client_order_id=name, reason=reason)
            self._effects.append(Emit(event))

    def _not_pending(self, swap: Swap, now: float) -> None:
        """A swap isn't looked up any more: wake the tasks that wait for it."""
        self._resolve_request(swap, now)
        swap.lookups_end = -math.inf
        self._looked_up.pop(swap, None)
        self._timers.cancel(swap)
        self._effects += map(Wake, swap.waiters)
        swap.waiters.clear()

    def _resolve_request(self, swap: Swap, now: float) -> None:
        """The connection needn't be kept for this swap's reply."""
        if swap.request is not None:
            is_found = swap.outcome is SwapOutcome.CONFIRMED
            self._session.resolved(swap.request, now, is_found=is_found)

    # --- Ends ------------------------------------------------------------------------------

    def _end(
        self,
        swap: Swap,
        outcome: SwapOutcome,
        now: float,
        *,
        receipt: SwapReceipt | None = None,
        error: BrokerError | None = None,
        note: str = "",
    ) -> None:
        """Record the outcome of a swap."""
        before = swap.outcome
        if before is SwapOutcome.SETTLED:
            note = f"closed by hand before: {swap.cause}"
        was_in_doubt = before is not SwapOutcome.UNDER_WAY or swap.is_abandoned
        swap.receipt = receipt
        if before is SwapOutcome.REFUSED:
            self._corrected(swap, outcome)
            swap.is_announced = True
        swap.outcome, swap.error = outcome, error
        swap.cause, swap.last_answer = note or str(error or ""), ""
        order_id = receipt.order_id if receipt is not None else None
        if swap.unverified is not None:
            self._forget_receipt(swap, swap.unverified, order_id, now)
        self._not_pending(swap, now)
        swap.request = None
        self._remember(swap)
        if swap.is_own:
            ended = SwapEnded(swap.intent, swap.attempt, outcome, order_id, swap.cause)
            self._effects.append(ended)
        if was_in_doubt:
            self._announce(swap)

    def _remember(self, swap: Swap) -> None:
        """Keep an ended swap under its id, and the id of its order."""
        name = swap.client_order_id
        if self._open.get(name) is swap:
            del self._open[name]
        if swap.receipt is not None:
            self._order_ids.add(name, swap.receipt.order_id)
        if swap.outcome is SwapOutcome.NOT_SENT:
            self._order_ids.forget(name)
            return
        self._ended[name] = swap
        if len(self._ended) > REMEMBERED:
            oldest, forgotten = self._ended.popitem(last=False)
            self._order_ids.forget(oldest)
            self._doubtful.pop(forgotten, None)

    def _announce(self, swap: Swap) -> None:
        """Make an event of a swap's outcome, once."""
        is_resolved = swap.outcome in {SwapOutcome.CONFIRMED, SwapOutcome.REFUSED}
        if not is_resolved or not swap.is_own or swap.is_announced:
            return
        swap.is_announced = True
        event = partial(
            SwapResolved,
            client_order_id=swap.client_order_id,
            outcome=swap.outcome,
            receipt=swap.receipt,
            error=swap.error,
        )
        self._effects.append(Emit(event))


def _is_conclusive(swap: Swap, request: Request, now: float) -> bool:
    """Whether the broker doesn't know a swap that it can't accept any more."""
    if request.replied_at is None or not says_not_found(request.error):
        return False
    return not swap.may_still_execute(now, request.replied_at)


def _unknown_intent(client_order_id: str, at: dt.datetime) -> SwapIntent:
    """For a swap of which only the id is known."""
    return SwapIntent(
        client_order_id=client_order_id, amount_in=Decimal(0), asset_in="", asset_out="", at=at
    )
