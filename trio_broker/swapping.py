"""Swaps as their callers make them: the tasks around the blotter and the journal.

A swap is sent at most once, over the connection that is there when it is asked for. In this order:

1. It is entered into the blotter, which refuses an id whose earlier use may have left.
2. With a journal, the intent is made durable, before any byte can leave. That takes a while, so
   then the connection is looked at again: it must be the very one of the beginning.
3. The session sends it when its turn has come.
4. The caller waits until the blotter knows the outcome, or doesn't ask for it any more.

A caller that is cancelled, or that meets an error on the way, takes back what hasn't left; what has
left goes on without it, and the blotter reports its end. Every end is noted in the journal at the
moment when it is known, and nobody waits for the disk then: what isn't written down by a crash is
asked for again.
"""

from __future__ import annotations

import datetime as dt
import logging
from decimal import Decimal
from fractions import Fraction
from functools import partial

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker import operations
from trio_broker.blotter import Entry
from trio_broker.exceptions import (
    BrokerError,
    ClientClosedError,
    NotConnectedError,
    NotSentError,
    QuoteExpiredError,
    SlippageError,
    SwapOutcomeUnknownError,
)
from trio_broker.journal import SwapJournal
from trio_broker.journalfile import JournalRow
from trio_broker.models import (
    ConnectionState,
    SwapEstimate,
    SwapFinding,
    SwapOutcome,
    SwapReceipt,
    UnresolvedSwap,
)
from trio_broker.request import Request
from trio_broker.session import Session
from trio_broker.settings import Settings
from trio_broker.supervisor import Supervisor


class Swapping:
    """The swaps of one client.

    Args:
        settings: Everything that is configured.
        session: Where swaps leave.
        supervisor: The connection, and the blotter.
        journal: Where swaps are written down, if anywhere.
        logger: Where the story is told.
    """

    def __init__(
        self,
        settings: Settings,
        session: Session,
        supervisor: Supervisor,
        journal: SwapJournal | None,
        logger: logging.Logger,
    ) -> None:
        self._settings = settings
        self._session = session
        self._supervisor = supervisor
        self._blotter = supervisor.blotter
        self._journal = journal
        self._logger = logger
        if journal is not None:
            self._blotter.on_fact = partial(_note, journal)
            supervisor.farewell = journal.aclose

    @enable_ki_protection
    async def open(self) -> None:
        """Take up what the journal holds of this account.

        Raises:
            JournalError: It can't be read.
            ClientClosedError: The client was closed meanwhile.
        """
        if self._journal is None:
            return
        rows = await self._journal.open(self._settings.endpoint.netloc, self._settings.api_key)
        if self._supervisor.state is not ConnectionState.IDLE:
            await self._journal.aclose()
            raise ClientClosedError("the client was closed; nothing was sent")
        self._blotter.load(map(_entry, rows))

    async def close(self) -> None:
        """Let go of the journal, where nothing was started."""
        if self._journal is not None:
            await self._journal.aclose()

    # --- One swap --------------------------------------------------------------------------

    @enable_ki_protection
    async def swap(
        self, request: Request, amount_in: Decimal, assets: tuple[str, str]
    ) -> SwapReceipt:
        """Send a swap, and find out what becomes of it.

        Args:
            request: The message; it carries the client order id.
            amount_in: How much is sold.
            assets: What is sold, and what is bought.

        Raises:
            NotSentError: Nothing was sent.
            DuplicateClientOrderIdError: An earlier swap with this id may have left.
            ServerError: It is refused.
            SwapOutcomeUnknownError: It left, and nobody knows.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        connection = self._current_connection()
        entry = self._blotter.enter(str(request.client_order_id), amount_in, *assets)
        try:
            if self._journal is not None:
                await self._journal.intend(
                    entry.client_order_id,
                    entry.attempt,
                    amount_in=entry.amount_in,
                    asset_in=entry.asset_in,
                    asset_out=entry.asset_out,
                    at=entry.at,
                )
                self._look_again(connection)
            self._blotter.submit(entry, request)
            await self._wait(entry)
        except BrokerError as error:
            self._blotter.abandon(entry, error)
            raise
        except BaseException:
            self._blotter.abandon(entry, NotSentError("the caller has given it up"))
            if entry.may_have_left:
                name = entry.client_order_id
                self._logger.warning("swap %s was given up: outcome unknown", name)
            raise
        return self._blotter.told(entry)

    def _current_connection(self) -> int:
        self._supervisor.check_usable()
        if not self._session.authenticated:
            raise NotConnectedError("there is no connection now; nothing was sent")
        return self._session.connections

    def _look_again(self, connection: int) -> None:
        if self._current_connection() != connection:
            raise NotConnectedError("the connection was lost before it was sent; nothing was sent")

    async def _wait(self, entry: Entry) -> None:
        ended = trio.Event()
        self._blotter.when_told(entry, ended.set)
        try:
            await ended.wait()
        finally:
            self._blotter.forget_waiter(entry, ended.set)

    # --- What isn't resolved ---------------------------------------------------------------

    @enable_ki_protection
    async def resolve(self, client_order_id: str) -> SwapReceipt:
        """Ask for a swap's outcome.

        Args:
            client_order_id: Its id.

        Raises:
            ServerError: It was refused.
            SwapOutcomeUnknownError: Nobody knows, or there is nobody to be asked.
        """
        await trio.lowlevel.checkpoint()
        entry = self._blotter.find(client_order_id)
        if entry is None or entry.outcome is SwapOutcome.UNKNOWN:
            try:
                self._supervisor.check_usable()
            except NotConnectedError as error:
                # As it is it would say that nothing was sent, and a second swap safe.
                reason = "there is no connection to ask over"
                raise SwapOutcomeUnknownError(client_order_id, reason) from error
            entry = self._blotter.ask(client_order_id)
        await self._wait(entry)
        return self._blotter.told(entry)

    @enable_ki_protection
    async def reconcile(self) -> tuple[SwapFinding, ...]:
        """Ask for every swap whose outcome isn't known.

        Raises:
            NotConnectedError: The client isn't connected, and won't be.
        """
        await trio.lowlevel.checkpoint()
        self._supervisor.check_usable()
        findings = []
        for swap in self._blotter.unresolved():
            entry = self._blotter.ask(swap.client_order_id)
            await self._wait(entry)
            findings.append(self._finding(swap, entry))
        return tuple(findings)

    def _finding(self, swap: UnresolvedSwap, entry: Entry) -> SwapFinding:
        return SwapFinding(
            swap=self._blotter.describe(entry) if entry.may_have_left else swap,
            outcome=entry.outcome,
            receipt=entry.receipt,
            reason="" if entry.receipt is not None else entry.reason,
        )

    @enable_ki_protection
    async def settle(self, client_order_id: str, note: str) -> None:
        """Close a swap by hand.

        Args:
            client_order_id: Its id.
            note: How its owner found out.

        Raises:
            ValueError: No such swap is unresolved, or it is being asked for.
            JournalError: It is closed here, and couldn't be written down (yet).
        """
        await trio.lowlevel.checkpoint()
        self._blotter.settle(client_order_id, note)
        if self._journal is not None:
            await self._journal.flush()


def check_quote(estimate: SwapEstimate, min_out: Decimal, now: dt.datetime) -> None:
    """Refuse to swap on the strength of an estimate that doesn't bring enough, or has ended.

    Args:
        estimate: The estimate.
        min_out: What it must bring.
        now: The time.

    Raises:
        SlippageError: It brings less.
        QuoteExpiredError: It has ended.
    """
    if estimate.expected_out < min_out:
        raise SlippageError(estimate.expected_out, min_out)
    if estimate.expires_at is not None and estimate.expires_at <= now:
        raise QuoteExpiredError(estimate.expires_at)


def slippage_left(estimate: SwapEstimate, min_out: Decimal) -> int:
    """How much worse than an estimate a swap may be and still bring enough.

    Args:
        estimate: An estimate that brings enough.
        min_out: What the swap must bring.

    Returns:
        Basis points, rounded down: as long as the price is the estimate's, a broker that holds to
        them brings at least `min_out`.
    """
    expected = Fraction(estimate.expected_out)
    return int((expected - Fraction(min_out)) / expected * operations.MAX_SLIPPAGE_BPS)


def _note(journal: SwapJournal, entry: Entry) -> None:
    journal.note(
        entry.client_order_id,
        entry.attempt,
        entry.outcome,
        order_id=entry.receipt.order_id if entry.receipt is not None else None,
        detail=entry.cause,
    )


def _entry(row: JournalRow) -> Entry:
    return Entry(
        row.client_order_id,
        row.at,
        row.amount_in,
        row.asset_in,
        row.asset_out,
        attempt=row.attempt,
        cause=row.detail or "its outcome wasn't written down",
    )
