"""What is known of each swap of a client, and the lookups of what isn't known.

A swap is entered before any of it can be sent, and stays here until its outcome is known:

    enter ──► under way ──┬── a reply ─────────────────────────────► confirmed, or refused
                          ├── nothing was sent ────────────────────► not sent: its id is free again
                          └── no reply, or an ambiguous one ───────► unknown
                                                                       │ looked up by its id
       confirmed ◄── the order was found, or the reply came late ──────┤
       refused ◄──── the refusal came late ────────────────────────────┤
       settled ◄──── closed by hand ───────────────────────────────────┘
          └────────► confirmed, if the reply comes even then

**Found means confirmed; not found means nothing.** The broker may not have processed the swap yet,
or may not find orders by that id. So the swap is looked up again until `resolve_timeout` has
passed, and its outcome then stays unknown. One clear answer ends the lookups earlier, if the
swap's signature has expired and the broker can't accept it any more. No swap is signed later than
`MAX_WAIT` after its call, so the same is known of the swaps of an earlier process.

**No two swaps have one id.** A swap is rejected when it is entered if an earlier swap with its id
may have been sent. All unresolved swaps are remembered, and the last `REMEMBERED` resolved ones.
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
from trio_broker._protocol.order_ids import OrderIds
from trio_broker._protocol.requests import Priority, Purpose, Request, Waiter
from trio_broker._protocol.session import Session
from trio_broker._protocol.timers import Timers
from trio_broker._swaps import refusals
from trio_broker.events import SwapResolved, SwapUnresolved
from trio_broker.exceptions import (
    BrokerError,
    DuplicateClientOrderIdError,
    NotSentError,
    ReplyTooLargeError,
    RequestTimeoutError,
    SwapOutcomeUnknownError,
    fresh,
)
from trio_broker.models import Order, SwapIntent, SwapOutcome, SwapReceipt, UnresolvedSwap

# The broker accepts timestamps that are up to 30 s off, and this machine's clock may be 30 s ahead.
SIGNATURE_LIFETIME: Final = 60.0
# By the wall clock. A process that finds a swap in a journal must know when it was signed at last.
MAX_WAIT: Final = 60.0
REMEMBERED: Final = 10_000
_FIRST_DELAY: Final = 0.25
_MAX_DELAY: Final = 4.0


@attrs.define(eq=False)
class Swap:
    """A swap, and what is known of it.

    Attributes:
        intent: What the user wanted.
        attempt: Tells this use of the id from an earlier one of which nothing was sent.
        is_own: Whether it was entered as a swap, and not only looked up by its id.
        outcome: What is known.
        receipt: The broker's receipt, if it is confirmed.
        error: The refusal, or why nothing was sent, or why the outcome is unknown.
        cause: The same as text; the note of one that was settled by hand.
        last_answer: What the last lookup has brought, as text.
        request: Its message, until its outcome is known.
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
    outcome: SwapOutcome = SwapOutcome.UNDER_WAY
    receipt: SwapReceipt | None = None
    error: BrokerError | None = None
    cause: str = ""
    last_answer: str = attrs.field(init=False, default="")
    request: Request | None = attrs.field(init=False, default=None)
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

    def may_still_execute(self, at: dt.datetime) -> bool:
        """Whether the broker could still accept it at this time of the wall clock."""
        lifetime = dt.timedelta(seconds=MAX_WAIT + SIGNATURE_LIFETIME)
        return at < self.intent.at + lifetime

    def describe(self, at: dt.datetime) -> UnresolvedSwap:
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
            may_still_execute=self.may_still_execute(at),
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
    ) -> None:
        self._effects = effects
        self._session = session
        self._timers = timers
        self._order_ids = order_ids
        self._request_timeout = request_timeout
        self._resolve_timeout = resolve_timeout
        self._open: dict[str, Swap] = {}
        self._ended: OrderedDict[str, Swap] = OrderedDict()
        self._looked_up: dict[Swap, None] = {}
        self._is_over = False

    # --- Sending a swap --------------------------------------------------------------------

    def enter(self, intent: SwapIntent, attempt: str) -> Swap:
        """Enter a swap; nothing is sent yet.

        Raises:
            DuplicateClientOrderIdError: An earlier swap with this id may have been sent.
        """
        earlier = self.find(intent.client_order_id)
        if earlier is not None:
            raise DuplicateClientOrderIdError(intent.client_order_id, earlier.outcome)
        swap = Swap(intent, attempt)
        self._open[intent.client_order_id] = swap
        self._order_ids.add(intent.client_order_id)
        return swap

    def submit(self, swap: Swap, request: Request, now: float) -> None:
        """Queue a swap's message."""
        swap.request = request
        request.subject = swap
        request.sign_by = swap.intent.at.timestamp() + MAX_WAIT
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
            self._end(swap, SwapOutcome.NOT_SENT, error=why)
        elif request.was_sent:
            swap.is_abandoned = True
        else:
            self._session.give_up(request, now, NotSentError(str(why)))

    def swap_ended(self, request: Request, now: float) -> None:
        """A swap's message has its reply, perhaps late, or won't have one."""
        swap: Swap = request.subject
        error = request.error
        if not request.was_sent:
            self._end(swap, SwapOutcome.NOT_SENT, error=error)
        elif error is None:
            self._end(swap, SwapOutcome.CONFIRMED, receipt=request.result)
        elif refusals.is_refusal(request, error):
            # A late refusal tells nothing new about a swap that is confirmed or settled.
            if not request.is_late or swap.outcome is SwapOutcome.UNKNOWN:
                self._end(swap, SwapOutcome.REFUSED, error=error)
        elif not request.is_late:
            swap.outcome, swap.error, swap.cause = SwapOutcome.UNKNOWN, error, str(error)
            self._start_lookups(swap, now)

    # --- Unresolved swaps ------------------------------------------------------------------

    def load(self, swaps: Iterable[Swap]) -> None:
        """Add swaps of an earlier process whose outcome is unknown."""
        for swap in swaps:
            swap.outcome, swap.is_reported = SwapOutcome.UNKNOWN, True
            self._open[swap.client_order_id] = swap
            self._order_ids.add(swap.client_order_id)

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
            swap = Swap(_unknown_intent(client_order_id, at), is_own=False)
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

    def settle(self, client_order_id: str, note: str) -> None:
        """Close a swap by hand.

        Raises:
            ValueError: No swap with this id is unresolved, or it is being looked up now.
        """
        swap = self._open.get(client_order_id)
        if swap is None or not swap.may_have_been_sent:
            raise ValueError(f"no unresolved swap has the client order id {client_order_id}")
        if swap.is_pending:
            raise ValueError(f"swap {client_order_id} is being looked up: wait for its end")
        self._end(swap, SwapOutcome.SETTLED, note=note)

    def finish(self, unsent: NotSentError) -> None:
        """There will be no connection any more. The session ends all requests after this."""
        self._is_over = True
        for swap in tuple(self._looked_up):
            if swap.lookup is None:
                self._stop_lookups(swap)
        for swap in tuple(self._open.values()):
            if swap.outcome is SwapOutcome.UNDER_WAY and swap.request is None:
                # Now, because the journal is closed when its caller goes on.
                self._end(swap, SwapOutcome.NOT_SENT, error=unsent)

    # --- Lookups ---------------------------------------------------------------------------

    def _start_lookups(self, swap: Swap, now: float) -> None:
        swap.lookups_end = now + self._resolve_timeout
        swap.tries = 0
        swap.by_order_id = False
        self._looked_up[swap] = None
        if self._is_over:
            self._stop_lookups(swap)
        elif swap.lookup is None:
            self._send_lookup(swap, now)

    def _send_lookup(self, swap: Swap, now: float) -> None:
        deadline = min(now + self._request_timeout, swap.lookups_end)
        if swap.by_order_id:
            # In the background: it fails with the connection, and the next one begins anew.
            request = requests.order_status(swap.client_order_id, deadline, Priority.BACKGROUND)
            request.client_order_id = swap.client_order_id
        else:
            request = requests.order_lookup(swap.client_order_id, deadline)
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
                self._stop_lookups(swap)

    def lookup_ended(self, request: Request, now: float) -> None:
        """A lookup has its reply, perhaps late, or won't have one."""
        swap: Swap = request.subject
        if request.is_late:
            if swap.outcome in {SwapOutcome.UNKNOWN, SwapOutcome.SETTLED}:
                self._found(swap, request)
            return
        swap.lookup = None
        if swap.outcome is not SwapOutcome.UNKNOWN or self._found(swap, request):
            return
        # A lost reply blocks its lane for long. The two kinds of lookup have different lanes, so
        # the other kind is sent next. A new connection has lost no reply, and begins anew.
        was_answered = not isinstance(request.error, NotSentError | RequestTimeoutError)
        swap.by_order_id ^= not was_answered
        swap.by_order_id &= self._session.is_authenticated
        if was_answered or not swap.last_answer:
            swap.last_answer = str(request.error or "the reply names no order")
        is_useless = isinstance(request.error, ReplyTooLargeError)
        if self._is_over or now >= swap.lookups_end or is_useless or _is_conclusive(swap, request):
            self._stop_lookups(swap)
            return
        delay = min(_FIRST_DELAY * 2.0 ** min(swap.tries - 1, 10), _MAX_DELAY)
        self._timers.set(swap, min(now + delay, swap.lookups_end))

    def _found(self, swap: Swap, request: Request) -> bool:
        """Whether a lookup's reply names the order, which confirms the swap."""
        order = request.result
        name = swap.client_order_id
        if not isinstance(order, Order) or not order.order_id:
            return False
        if order.client_order_id not in {None, name}:
            return False
        if order.client_order_id is None and order.order_id == name and swap.is_own:
            return False  # It is another order, whose id happens to be the same.
        receipt = SwapReceipt(order.order_id, order.status, name)
        self._end(swap, SwapOutcome.CONFIRMED, receipt=receipt)
        return True

    def _stop_lookups(self, swap: Swap) -> None:
        self._not_pending(swap)
        if swap.is_own and not swap.is_reported:
            swap.is_reported = True
            name, reason = swap.client_order_id, swap.reason
            event = partial(SwapUnresolved, client_order_id=name, reason=reason)
            self._effects.append(Emit(event))

    def _not_pending(self, swap: Swap) -> None:
        """A swap isn't looked up any more: wake the tasks that wait for it."""
        swap.lookups_end = -math.inf
        self._looked_up.pop(swap, None)
        self._timers.cancel(swap)
        self._effects += map(Wake, swap.waiters)
        swap.waiters.clear()

    # --- Ends ------------------------------------------------------------------------------

    def _end(
        self,
        swap: Swap,
        outcome: SwapOutcome,
        *,
        receipt: SwapReceipt | None = None,
        error: BrokerError | None = None,
        note: str = "",
    ) -> None:
        """Record the outcome of a swap."""
        if swap.outcome is SwapOutcome.SETTLED:
            note = f"closed by hand before: {swap.cause}"
        was_in_doubt = swap.outcome is not SwapOutcome.UNDER_WAY or swap.is_abandoned
        swap.outcome, swap.receipt, swap.error = outcome, receipt, error
        swap.cause, swap.last_answer = note or str(error or ""), ""
        request, swap.request = swap.request, None
        if request is not None and request.is_abandoned and outcome is not SwapOutcome.SETTLED:
            # Its order is known, or it has none, so a late reply can't be taken for another's.
            self._session.release(request)
        self._remember(swap)
        if swap.is_own:
            order_id = receipt.order_id if receipt is not None else None
            ended = SwapEnded(swap.intent, swap.attempt, outcome, order_id, swap.cause)
            self._effects.append(ended)
        self._not_pending(swap)
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
            # The journal may have refused it because an earlier swap with this id has an order.
            if self._order_ids.order_id(name) is None:
                self._order_ids.forget(name)
            return
        self._ended[name] = swap
        if len(self._ended) > REMEMBERED:
            oldest, _ = self._ended.popitem(last=False)
            self._order_ids.forget(oldest)

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


def _is_conclusive(swap: Swap, request: Request) -> bool:
    """Whether the broker doesn't know a swap that it can't accept any more."""
    if request.replied_at is None or not refusals.says_not_found(request.error):
        return False
    return not swap.may_still_execute(request.replied_at)


def _unknown_intent(client_order_id: str, at: dt.datetime) -> SwapIntent:
    """For a swap of which only the id is known."""
    return SwapIntent(
        client_order_id=client_order_id, amount_in=Decimal(0), asset_in="", asset_out="", at=at
    )
