"""Swaps as their callers make them: the tasks around the engine and the journal.

A swap is sent at most once, over the connection that is open when it is called. The steps:

1. It is entered into the swap registry, which rejects an id whose earlier swap may have been sent.
2. With a journal, the intent is made durable before any byte can be sent. That takes a while, so
   the connection is checked again: it must still be the same one.
3. The session sends it when its turn has come.
4. The caller waits until the outcome is known, or isn't looked up any more.

If the caller is cancelled or an error is raised, a swap that wasn't sent is withdrawn. One that was
sent goes on, and an event reports its outcome. The outcome is passed to the journal at once, but
not awaited there. If a crash prevents the write, the swap is looked up again.
"""

from __future__ import annotations

import secrets
import time
from decimal import Decimal
from typing import Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._client_log import ClientLog
from trio_broker._connection.driver import Driver
from trio_broker._connection.supervisor import Supervisor
from trio_broker._journal.entries import JournalRow
from trio_broker._journal.journal import SwapJournal
from trio_broker._protocol.order_ids import CLIENT_ORDER_ID_PREFIX
from trio_broker._protocol.requests import Request, Trade
from trio_broker._swaps.registry import Swap
from trio_broker.exceptions import (
    BrokerError,
    ClientClosedError,
    NotConnectedError,
    NotSentError,
    SwapOutcomeUnknownError,
    fresh,
    server_error,
)
from trio_broker.models import (
    ConnectionState,
    SwapFinding,
    SwapIntent,
    SwapOutcome,
    SwapReceipt,
    UnresolvedSwap,
)
from trio_broker.settings import Settings

# The journal has the whole text of a `ServerError`.
_REFUSED: Final = "the broker refused swap: "
# Swaps that `reconcile` looks up together. Lookups by client order ID take turns, and each of these
# should have one within `resolve_timeout`.
_MOST_AT_ONCE: Final = 100


def new_client_order_id() -> str:
    """Make a new client order id, as `do_swap` does if none is given.

    Returns:
        ``tb-<milliseconds since the epoch>-<80 random bits>``: ids sort by the time they were
        made. The bits come from the operating system, so no process, fork or restart repeats
        them.
    """
    return f"{CLIENT_ORDER_ID_PREFIX}{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(10)}"


class SwapExecutor:
    """The swaps of one client."""

    def __init__(
        self,
        settings: Settings,
        driver: Driver,
        supervisor: Supervisor,
        journal: SwapJournal | None,
        log: ClientLog,
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._engine = driver.engine
        self._supervisor = supervisor
        self._journal = journal
        self._log = log

    @enable_ki_protection
    async def open(self) -> None:
        """Load the swaps of this account from the journal: the unresolved and the last others.

        Raises:
            JournalError: It can't be read.
            ClientClosedError: The client was closed meanwhile.
        """
        if self._journal is None:
            return
        self._journal.client = self._log.client
        rows = await self._journal.open(
            self._settings.endpoint.netloc, self._settings.api_key.reveal()
        )
        if self._driver.state is not ConnectionState.IDLE:
            await self._journal.aclose()
            raise ClientClosedError("the client was closed; nothing was sent")
        self._engine.load_swaps(map(_swap, (*self._journal.resolved, *rows)))
        for swap in self._engine.swaps.unresolved():
            self._log.swap_left_over(swap.client_order_id, swap.reason)

    async def close(self) -> None:
        """Close the journal of a client that was never started."""
        if self._journal is not None:
            await self._journal.aclose()

    # --- One swap --------------------------------------------------------------------------

    @enable_ki_protection
    async def swap(self, request: Request, trade: Trade) -> SwapReceipt:
        """Send a swap, and wait for its outcome.

        Raises:
            NotSentError: Nothing was sent.
            DuplicateClientOrderIdError: An earlier swap with this id may have been sent.
            ServerError: It is refused.
            SwapOutcomeUnknownError: It was sent, and its outcome isn't known.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        connection = self._current_connection()
        intent = SwapIntent(
            client_order_id=str(request.client_order_id),
            amount_in=Decimal(trade.amount_in),
            asset_in=str.__str__(trade.asset_in),
            asset_out=str.__str__(trade.asset_out),
            at=self._driver.wall_time(),
        )
        swap = self._engine.enter_swap(intent, secrets.token_hex(8), trio.current_time())
        ended = trio.Event()
        try:
            if self._journal is not None:
                await self._journal.intend(intent, swap.attempt)
                self._check_same(connection)
            now = trio.current_time()
            self._driver.act(self._engine.submit_swap(swap, request, ended, now))
            await ended.wait()
        except BrokerError as error:
            self._abandon(swap, error)
            raise
        except BaseException:
            self._abandon(swap, NotSentError("the caller has given it up"))
            if swap.may_have_been_sent:
                self._log.swap_given_up(intent.client_order_id)
            raise
        if swap.duplicate is not None:
            raise fresh(swap.duplicate)
        return swap.result()

    def _abandon(self, swap: Swap, why: BrokerError) -> None:
        self._driver.act(self._engine.abandon_swap(swap, why, trio.current_time()))

    def _current_connection(self) -> int:
        self._supervisor.check_usable()
        if not self._engine.session.is_authenticated:
            raise NotConnectedError("there is no connection now; nothing was sent")
        return self._engine.session.connections

    def _check_same(self, connection: int) -> None:
        if self._current_connection() != connection:
            raise NotConnectedError("the connection was lost before it was sent; nothing was sent")

    async def _wait(self, swap: Swap) -> None:
        ended = trio.Event()
        self._driver.act(self._engine.wait_for_swap(swap, ended, trio.current_time()))
        try:
            await ended.wait()
        finally:
            self._engine.stop_waiting(swap, ended)

    # --- Unresolved swaps ------------------------------------------------------------------

    def unresolved(self) -> tuple[UnresolvedSwap, ...]:
        """The swaps whose outcome is unknown, oldest first."""
        # Programs call this after the run, too: then only the wall clock is left.
        now = trio.current_time() if trio.lowlevel.in_trio_run() else None
        at = self._driver.wall_time()
        return tuple(swap.describe(now, at) for swap in self._engine.swaps.unresolved())

    @enable_ki_protection
    async def resolve(self, client_order_id: str) -> SwapReceipt:
        """Look a swap's outcome up.

        Raises:
            ServerError: It was refused.
            SwapOutcomeUnknownError: It isn't known, or there is no connection to ask over.
        """
        await trio.lowlevel.checkpoint()
        swap = self._engine.swaps.find(client_order_id)
        if swap is None or swap.outcome is SwapOutcome.UNKNOWN:
            try:
                self._supervisor.check_usable()
            except NotConnectedError as error:
                # A `NotConnectedError` would say that nothing was sent, and that a retry is safe.
                reason = "there is no connection to ask over"
                raise SwapOutcomeUnknownError(client_order_id, reason) from error
            swap = self._look_up(client_order_id)
        await self._wait(swap)
        return swap.result()

    def _look_up(self, client_order_id: str) -> Swap:
        swap, effects = self._engine.look_up_swap(
            client_order_id, trio.current_time(), self._driver.wall_time()
        )
        self._driver.act(effects)
        return swap

    @enable_ki_protection
    async def reconcile(self) -> tuple[SwapFinding, ...]:
        """Look up every swap whose outcome is unknown.

        Raises:
            NotConnectedError: The client isn't connected, and won't be.
        """
        await trio.lowlevel.checkpoint()
        self._supervisor.check_usable()
        left = self.unresolved()
        findings: list[SwapFinding] = []
        for start in range(0, len(left), _MOST_AT_ONCE):
            part = left[start : start + _MOST_AT_ONCE]
            # All begin before the first is awaited: a broker that doesn't answer costs time once.
            swaps = [self._look_up(unresolved.client_order_id) for unresolved in part]
            for unresolved, swap in zip(part, swaps, strict=True):
                await self._wait(swap)
                findings.append(self._finding(unresolved, swap))
        return tuple(findings)

    def _finding(self, unresolved: UnresolvedSwap, swap: Swap) -> SwapFinding:
        if swap.may_have_been_sent:
            unresolved = swap.describe(trio.current_time(), self._driver.wall_time())
        return SwapFinding(
            swap=unresolved,
            outcome=swap.outcome,
            receipt=swap.receipt,
            reason="" if swap.receipt is not None else swap.reason,
        )

    @enable_ki_protection
    async def settle(self, client_order_id: str, note: str) -> None:
        """Close a swap by hand.

        Raises:
            ValueError: No such swap is unresolved, or it is being looked up.
            JournalError: It is closed here, and couldn't be written yet.
        """
        now = trio.current_time()
        self._driver.act(self._engine.settle_swap(client_order_id, note, now))
        if self._journal is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._journal.flush()


def _swap(row: JournalRow) -> Swap:
    """A swap of an earlier process."""
    receipt, error = None, None
    cause = row.detail or "its outcome wasn't written down"
    if row.outcome is SwapOutcome.CONFIRMED:
        receipt = SwapReceipt(str(row.order_id), None, row.client_order_id)
    elif row.outcome is SwapOutcome.REFUSED:
        error = server_error("swap", cause.removeprefix(_REFUSED))
    return Swap(
        row, attempt=row.attempt, outcome=row.outcome, receipt=receipt, error=error, cause=cause
    )
