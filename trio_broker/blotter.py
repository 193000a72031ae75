"""The blotter: what is known of each swap of a client, and asking for what isn't.

No I/O; time comes in as an argument. A swap is entered before anything of it can leave, and stays
until its outcome is known:

    enter ──► under way ──┬── a reply ─────────────────────────► confirmed, or refused
                          ├── nothing has left ────────────────► not sent: its id is free again
                          └── no reply, or one that says nothing ──► unknown
                                                                       │ asked for by its id
       confirmed ◄── the order was found, or the reply came late ──────┤
       refused ◄──── the refusal came late ────────────────────────────┤
       settled ◄──── its owner has closed it by hand ──────────────────┘
          └────────► confirmed, if the reply comes even then

**Found means confirmed; not found means nothing.** The broker may not have taken it up yet, or may
not find orders by that id. So what isn't found is asked for again until `resolve_timeout` has
passed, and stays unknown then. Only where the broker can't take it any more, as its signature has
expired, one clear answer ends the asking; it stays unknown even so. So that this is known of swaps
of an earlier process too, none is signed later than `LONGEST_WAIT` after it was asked for.

**No two swaps have one id.** One whose earlier use may have left is refused when it is entered.
The last 10,000 ends are remembered, and every swap that isn't resolved.

**A refusal in words that came before** on the same connection may be an earlier one once more,
while this swap is being executed. So its own reply is still waited for, and the broker is asked for
its order; only if that isn't found, the refusal counts. If nobody answers, the swap is unknown.

Whoever waits for an outcome is told by a callback; where the caller has gone, or the outcome was
unknown, an event tells it.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Final

import attrs

from trio_broker import operations, swaps
from trio_broker.exceptions import (
    BrokerError,
    DuplicateClientOrderIdError,
    NotSentError,
    RequestTimeoutError,
    SwapOutcomeUnknownError,
    fresh,
)
from trio_broker.models import (
    ConnectionEvent,
    Order,
    SwapOutcome,
    SwapReceipt,
    SwapResolved,
    SwapUnresolved,
    UnresolvedSwap,
)
from trio_broker.request import Priority, Request, ignore
from trio_broker.session import Session

# The broker takes timestamps that are up to 30 s off, and this machine's clock may be as much ahead
# of the broker's.
SIGNATURE_LIFETIME: Final = 60.0
# By the wall clock: whoever finds a swap in a journal must know until when it may have been signed.
LONGEST_WAIT: Final = 60.0
REMEMBERED: Final = 10_000
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 4.0
_ENDS: Final = frozenset({SwapOutcome.CONFIRMED, SwapOutcome.REFUSED})


@attrs.define(eq=False)
class Entry:
    """A swap, and what is known of it.

    Attributes:
        client_order_id: The id that goes along with it.
        at: When it was asked for.
        amount_in: How much is sold.
        asset_in: The asset that is sold.
        asset_out: The asset that is bought.
        attempt: Tells this use of the id from an earlier one of which nothing had left.
        is_own: Whether it was entered as a swap, and not just asked for by its id.
        outcome: What is known.
        receipt: The broker's receipt, if it is confirmed.
        error: Why it isn't: the refusal, why nothing was sent, or why the outcome isn't known.
        cause: The same in words; the note of one that was closed by hand.
        answer: What asking for it has brought last, in words.
        request: The message, from when it is handed to the session until its end is known.
    """

    client_order_id: str
    at: dt.datetime
    amount_in: Decimal = Decimal(0)
    asset_in: str = ""
    asset_out: str = ""
    attempt: str = attrs.field(factory=lambda: secrets.token_hex(8))
    is_own: bool = True
    outcome: SwapOutcome = SwapOutcome.UNDER_WAY
    receipt: SwapReceipt | None = None
    error: BrokerError | None = None
    cause: str = ""
    answer: str = ""
    request: Request | None = None

    # The blotter's notes. `refusal`: one that may have been meant for an earlier swap.
    # `is_reported`: those who listen know that it isn't resolved; `is_announced`: how it ended;
    # `is_given_up`: its caller has gone.
    refusal: BrokerError | None = attrs.field(init=False, default=None)
    lookup: Request | None = attrs.field(init=False, default=None)
    ask_until: float = attrs.field(init=False, default=-math.inf)
    tries: int = attrs.field(init=False, default=0)
    asks_by_name: bool = attrs.field(init=False, default=False)
    is_reported: bool = attrs.field(init=False, default=False)
    is_announced: bool = attrs.field(init=False, default=False)
    is_given_up: bool = attrs.field(init=False, default=False)
    waiting: list[Callable[[], None]] = attrs.field(init=False, factory=list)

    @property
    def may_have_left(self) -> bool:
        """Whether it isn't resolved, and any byte of it may have left."""
        if self.outcome is SwapOutcome.UNDER_WAY:
            return self.request is not None and self.request.was_sent
        return self.outcome is SwapOutcome.UNKNOWN

    @property
    def reason(self) -> str:
        """Why its outcome isn't known, or isn't what was wanted, in words."""
        asked = f"asked for by its id: {self.answer}" if self.answer else ""
        return "; ".join(filter(None, (self.cause, asked))) or "its reply hasn't come"

    @property
    def is_asked_for(self) -> bool:
        """Whether its outcome is on its way, or being asked for."""
        return self.outcome is SwapOutcome.UNDER_WAY or self.ask_until > -math.inf


class Blotter:
    """The swaps of one client.

    Args:
        session: Where requests go.
        request_timeout: Seconds that the broker has to answer a question.
        resolve_timeout: Seconds for which an outcome is asked for.
        time: Trio's clock.
        wall_time: The time for entries and events.
        on_event: Takes what a user should know.

    Attributes:
        on_fact: Told of every end of an own swap, to write it down.
    """

    def __init__(
        self,
        session: Session,
        *,
        request_timeout: float,
        resolve_timeout: float,
        time: Callable[[], float],
        wall_time: Callable[[], dt.datetime],
        on_event: Callable[[ConnectionEvent], None],
    ) -> None:
        self.on_fact: Callable[[Entry], None] = ignore
        self._session = session
        self._request_timeout = request_timeout
        self._resolve_timeout = resolve_timeout
        self._time = time
        self._wall_time = wall_time
        self._on_event = on_event
        self._open: dict[str, Entry] = {}
        self._ended: OrderedDict[str, Entry] = OrderedDict()
        self._alarms: list[tuple[float, int, Entry]] = []
        self._count = itertools.count()
        self._over = False

    # --- A swap's way ----------------------------------------------------------------------

    def enter(
        self, client_order_id: str, amount_in: Decimal, asset_in: str, asset_out: str
    ) -> Entry:
        """Enter a swap; nothing leaves yet.

        Args:
            client_order_id: The id that will go along with it.
            amount_in: How much is sold.
            asset_in: The asset that is sold.
            asset_out: The asset that is bought.

        Raises:
            DuplicateClientOrderIdError: An earlier swap with this id may have left.
        """
        earlier = self.find(client_order_id)
        if earlier is not None:
            raise DuplicateClientOrderIdError(client_order_id, earlier.outcome)
        entry = Entry(client_order_id, self._wall_time(), amount_in, asset_in, asset_out)
        self._open[client_order_id] = entry
        return entry

    def submit(self, entry: Entry, request: Request) -> None:
        """Let a swap leave when its turn has come.

        Args:
            entry: What `enter` gave.
            request: The message.
        """
        entry.request = request
        request.leave_by = entry.at.timestamp() + LONGEST_WAIT
        request.on_end = lambda request: self._replied(entry, request)
        request.on_late = lambda request: self._replied_late(entry, request)
        self._session.submit(request, self._time())

    def abandon(self, entry: Entry, why: BrokerError) -> None:
        """The caller is gone: what hasn't left won't, and what has goes on without it.

        Args:
            entry: What `enter` gave. If its end is known already, its caller won't hear of it any
                more, so an event tells it.
            why: What to note if it hasn't left.
        """
        request = entry.request
        if entry.outcome is not SwapOutcome.UNDER_WAY:
            self._announce(entry)
        elif request is None:
            self._end(entry, SwapOutcome.NOT_SENT, error=why)
        elif request.was_sent:
            entry.is_given_up = True
        else:
            self._session.give_up(request, self._time(), NotSentError(str(why)))

    def when_told(self, entry: Entry, callback: Callable[[], None]) -> None:
        """Have a callback called once, when there is nothing more to wait for.

        Args:
            entry: The swap.
            callback: The callback; called at once if its end is known, or nobody asks for it.
        """
        if entry.is_asked_for:
            entry.waiting.append(callback)
        else:
            callback()

    def forget_waiter(self, entry: Entry, callback: Callable[[], None]) -> None:
        """Nobody waits with this callback any more.

        Args:
            entry: The swap.
            callback: What `when_told` was given.
        """
        if callback in entry.waiting:
            entry.waiting.remove(callback)

    def told(self, entry: Entry) -> SwapReceipt:
        """What became of a swap, for whoever has waited.

        Args:
            entry: The swap.

        Raises:
            NotSentError: Nothing was sent.
            ServerError: It is refused.
            SwapOutcomeUnknownError: Nobody knows.
        """
        if entry.receipt is not None:
            return entry.receipt
        if entry.outcome in {SwapOutcome.NOT_SENT, SwapOutcome.REFUSED} and entry.error:
            raise fresh(entry.error)
        raise SwapOutcomeUnknownError(entry.client_order_id, entry.reason) from entry.error

    # --- What isn't resolved ---------------------------------------------------------------

    def load(self, entries: Iterable[Entry]) -> None:
        """Take up swaps of an earlier process whose outcome isn't known.

        Args:
            entries: The swaps.
        """
        for entry in entries:
            entry.outcome, entry.is_reported = SwapOutcome.UNKNOWN, True
            self._open[entry.client_order_id] = entry

    def unresolved(self) -> tuple[UnresolvedSwap, ...]:
        """The swaps that may have left and whose outcome isn't known, oldest first."""
        return tuple(self.describe(entry) for entry in self._open.values() if entry.may_have_left)

    def describe(self, entry: Entry) -> UnresolvedSwap:
        """A swap as its owner sees it.

        Args:
            entry: The swap.
        """
        return UnresolvedSwap(
            client_order_id=entry.client_order_id,
            amount_in=entry.amount_in,
            asset_in=entry.asset_in,
            asset_out=entry.asset_out,
            at=entry.at,
            outcome=entry.outcome,
            reason=entry.reason,
            may_still_execute=self._may_still_execute(entry),
        )

    def find(self, client_order_id: str) -> Entry | None:
        """The swap with this id, as far as it is remembered.

        Args:
            client_order_id: The id.
        """
        return self._open.get(client_order_id) or self._ended.get(client_order_id)

    def order_id(self, client_order_id: str) -> str | None:
        """The broker's id of a swap's order, as far as it is known.

        Args:
            client_order_id: The swap's id.
        """
        entry = self._ended.get(client_order_id)
        return entry.receipt.order_id if entry is not None and entry.receipt is not None else None

    def ask(self, client_order_id: str) -> Entry:
        """Ask for a swap by its id, for `resolve_timeout` from now.

        Args:
            client_order_id: Its id; one that isn't remembered is asked for all the same.

        Returns:
            The swap. One whose end is known, or whose reply is waited for, isn't asked for.
        """
        entry = self.find(client_order_id)
        if entry is None:
            entry = Entry(client_order_id, self._wall_time(), is_own=False)
            entry.outcome = SwapOutcome.UNKNOWN
        if entry.outcome is SwapOutcome.UNKNOWN:
            self._start_asking(entry)
        return entry

    def settle(self, client_order_id: str, note: str) -> None:
        """Close a swap by hand.

        Args:
            client_order_id: Its id.
            note: How its owner found out, or why it doesn't matter.

        Raises:
            ValueError: No swap with this id is unresolved, or it is being asked for now.
        """
        entry = self._open.get(client_order_id)
        if entry is None or not entry.may_have_left:
            raise ValueError(f"no unresolved swap has the client order id {client_order_id}")
        if entry.is_asked_for:
            raise ValueError(f"swap {client_order_id} is being asked for: wait until that ends")
        self._end(entry, SwapOutcome.SETTLED, note=note)

    def finish(self, unsent: NotSentError) -> None:
        """There will be no connection any more. To be called before the session is shut.

        Whoever waits is told by then, or when the session ends the requests.

        Args:
            unsent: What swaps end with that weren't even submitted.
        """
        self._over = True
        asked = dict.fromkeys(entry for _, _, entry in self._alarms)
        self._alarms.clear()
        for entry in dict.fromkeys((*self._open.values(), *asked)):
            if entry.outcome is SwapOutcome.UNKNOWN and entry.lookup is None:
                self._stop_asking(entry)
            elif entry.outcome is SwapOutcome.UNDER_WAY and entry.request is None:
                # Now, as later there is no journal to note it in.
                self._end(entry, SwapOutcome.NOT_SENT, error=unsent)

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do, infinity for never."""
        return self._alarms[0][0] if self._alarms else math.inf

    def tick(self, now: float) -> None:
        """Ask again for what is due.

        Args:
            now: The time.
        """
        while self._alarms and self._alarms[0][0] <= now:
            entry = heapq.heappop(self._alarms)[2]
            if entry.lookup is not None or entry.ask_until == -math.inf:
                continue
            if now < entry.ask_until:
                self._look_up(entry)
            else:
                self._stop_asking(entry)

    # --- Replies ---------------------------------------------------------------------------

    def _replied(self, entry: Entry, request: Request) -> None:
        entry.error = request.error
        if not request.was_sent:
            self._end(entry, SwapOutcome.NOT_SENT, error=request.error)
        elif request.error is None:
            self._end(entry, SwapOutcome.CONFIRMED, receipt=request.result)
        elif not swaps.is_refusal(request, request.error):
            self._doubt(entry, request.error)
        elif request.echoed:
            entry.refusal = request.error
            self._doubt(entry, request.error)
        else:
            self._end(entry, SwapOutcome.REFUSED, error=request.error)

    def _replied_late(self, entry: Entry, request: Request) -> None:
        # Of one that is confirmed or refused no reply is waited for any more.
        if request.error is None:
            self._end(entry, SwapOutcome.CONFIRMED, receipt=request.result)
        elif (
            entry.outcome is SwapOutcome.UNKNOWN
            and swaps.is_refusal(request, request.error)
            and not request.echoed
        ):
            self._end(entry, SwapOutcome.REFUSED, error=request.error)

    def _doubt(self, entry: Entry, error: BrokerError) -> None:
        entry.outcome, entry.cause = SwapOutcome.UNKNOWN, str(error)
        self._start_asking(entry)

    # --- Asking ----------------------------------------------------------------------------

    def _start_asking(self, entry: Entry) -> None:
        entry.ask_until = self._time() + self._resolve_timeout
        entry.tries = 0
        entry.asks_by_name = False
        if self._over:
            self._stop_asking(entry)
        elif entry.lookup is None:
            self._look_up(entry)

    def _look_up(self, entry: Entry) -> None:
        now = self._time()
        deadline = min(now + self._request_timeout, entry.ask_until)
        if entry.asks_by_name:
            # For this connection only: the next one has lost no reply yet.
            request = operations.order_status(entry.client_order_id, deadline, Priority.BACKGROUND)
        else:
            request = operations.order_lookup(entry.client_order_id, deadline)
        request.client_order_id = entry.client_order_id
        request.on_end = lambda request: self._looked_up(entry, request)
        request.on_late = lambda request: self._looked_up_late(entry, request)
        entry.tries += 1
        entry.lookup = request
        self._session.submit(request, now)

    def _looked_up(self, entry: Entry, request: Request) -> None:
        entry.lookup = None
        if entry.outcome is not SwapOutcome.UNKNOWN or self._found(entry, request):
            return
        # A reply that was lost keeps its lane for long. The two ways to ask have lanes of their
        # own; the second one needs a reply that names the order by this id.
        was_answered = not isinstance(request.error, NotSentError | RequestTimeoutError)
        entry.asks_by_name ^= not was_answered
        entry.asks_by_name &= self._session.authenticated
        if was_answered or not entry.answer:
            entry.answer = str(request.error or "the reply names no order")
        not_found = swaps.says_not_found(request.error)
        if entry.refusal is not None and not_found:
            self._end(entry, SwapOutcome.REFUSED, error=entry.refusal)
            return
        now = self._time()
        is_past = not_found and not self._may_still_execute(entry)
        if self._over or is_past or now >= entry.ask_until:
            self._stop_asking(entry)
            return
        delay = min(_FIRST_DELAY * 2.0 ** min(entry.tries - 1, 10), _LONGEST_DELAY)
        heapq.heappush(self._alarms, (min(now + delay, entry.ask_until), next(self._count), entry))
        self._session.listener.changed()

    def _looked_up_late(self, entry: Entry, request: Request) -> None:
        if entry.outcome in {SwapOutcome.UNKNOWN, SwapOutcome.SETTLED}:
            self._found(entry, request)

    def _found(self, entry: Entry, request: Request) -> bool:
        """Whether a lookup's reply names the order, which confirms the swap."""
        order = request.result
        if not isinstance(order, Order) or not order.order_id:
            return False
        if order.client_order_id not in {None, entry.client_order_id}:
            return False
        is_order_id = order.client_order_id is None and order.order_id == entry.client_order_id
        if is_order_id and entry.is_own:
            return False  # The id of another order, that is the same by chance.
        receipt = SwapReceipt(order.order_id, order.status, entry.client_order_id)
        self._end(entry, SwapOutcome.CONFIRMED, receipt=receipt)
        return True

    def _may_still_execute(self, entry: Entry) -> bool:
        lifetime = dt.timedelta(seconds=LONGEST_WAIT + SIGNATURE_LIFETIME)
        return self._wall_time() < entry.at + lifetime

    def _stop_asking(self, entry: Entry) -> None:
        entry.ask_until = -math.inf
        self._tell(entry)
        if entry.is_own and not entry.is_reported:
            entry.is_reported = True
            self._on_event(
                SwapUnresolved(
                    at=self._wall_time(),
                    client_order_id=entry.client_order_id,
                    reason=entry.reason,
                )
            )

    # --- Ends ------------------------------------------------------------------------------

    def _end(
        self,
        entry: Entry,
        outcome: SwapOutcome,
        *,
        receipt: SwapReceipt | None = None,
        error: BrokerError | None = None,
        note: str = "",
    ) -> None:
        if entry.outcome is SwapOutcome.SETTLED:
            note = f"closed by hand before: {entry.cause}"
        was_in_doubt = entry.outcome is not SwapOutcome.UNDER_WAY or entry.is_given_up
        entry.outcome, entry.receipt, entry.error = outcome, receipt, error
        entry.cause, entry.answer = note or str(error or ""), ""
        if entry.request is not None and outcome is not SwapOutcome.SETTLED:
            # Its order is known by now, or it has none: no reply could pass for another's.
            self._session.release(entry.request)
        entry.ask_until, entry.request = -math.inf, None
        if self._open.get(entry.client_order_id) is entry:
            del self._open[entry.client_order_id]
        if outcome is not SwapOutcome.NOT_SENT:
            self._ended[entry.client_order_id] = entry
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
        if entry.is_own:
            self.on_fact(entry)
        self._tell(entry)
        if was_in_doubt:
            self._announce(entry)

    def _announce(self, entry: Entry) -> None:
        """Tell those who listen how a swap has ended, once."""
        if entry.is_announced or not entry.is_own or entry.outcome not in _ENDS:
            return
        entry.is_announced = True
        self._on_event(
            SwapResolved(
                at=self._wall_time(),
                client_order_id=entry.client_order_id,
                outcome=entry.outcome,
                receipt=entry.receipt,
                error=entry.error,
            )
        )

    def _tell(self, entry: Entry) -> None:
        waiting, entry.waiting = entry.waiting, []
        for callback in waiting:
            callback()
