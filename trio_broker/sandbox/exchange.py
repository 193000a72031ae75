"""The exchange behind the protocol: accepts swaps, and executes their orders step by step.

It knows nothing of messages or connections. Time comes in as a `Moment`. Randomness depends only
on the seed and the number of an order, so the same swaps at the same times have the same results.
Only the prefix of the order ids is another one in each ledger, unless it is set.

Internal times are seconds since the exchange was opened. Only the public methods use Trio's clock,
which starts anywhere. So the state of an exchange means the same in another process.
"""

from __future__ import annotations

import heapq
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from hashlib import sha256
from typing import Final

import attrs

from trio_broker.models import OrderStatus
from trio_broker.sandbox.ledger import Ledger
from trio_broker.sandbox.market import Market, Quote, known_asset
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.money import CONTEXT, plain
from trio_broker.sandbox.orders import Order, Outcome, Step, Terms, plan_life
from trio_broker.sandbox.refusals import (
    DUPLICATE_CLIENT_ORDER_ID,
    INVALID_AMOUNT,
    ORDER_NOT_FOUND,
    Refusal,
)
from trio_broker.sandbox.rules import Rules

logger: Final = logging.getLogger("trio_broker.sandbox")

_REASONS: Final = {
    OrderStatus.FAILED: "the market failed it",
    OrderStatus.CANCELLED: "the market cancelled it",
}


def numbered_id(prefix: str, number: int) -> str:
    """The id of a ledger's order, by the prefix of the ledger's ids and the order's number."""
    return f"{prefix}{number:08d}"


@attrs.frozen
class Change:
    """The change by an order's step or by a new order.

    Attributes:
        order: The order as it is now.
        assets: The assets of which its account holds, or has locked, another amount now.
    """

    order: Order
    assets: tuple[str, ...]


class Exchange:
    """Accounts' holdings, their orders, and a market.

    Args:
        seed: The seed of prices and orders.
        opened_at: When it was opened, on Trio's clock: prices begin there. A
            resumed exchange may have been opened before that clock began.
        opening: The opening balances of each account, by API key and asset.
        rules: The sandbox's settings.

    Attributes:
        seed: The seed of prices and orders.
        opened_at: When it was opened, on Trio's clock.
        order_id_prefix: How its order ids begin.
        market: Where prices come from.
        ledger: The balances.
        orders: All orders by id, in the order of their acceptance.
        forced: The outcomes of the next orders, one each, before the rules' `outcomes` apply.
        on_change: Called with every new or changed order, after the ledger has changed and before
            anything is sent. Its exception is raised by `swap` or `advance`, and then the exchange
            can no longer be used.
    """

    def __init__(
        self,
        seed: int,
        opened_at: float,
        opening: Mapping[str, Mapping[str, Decimal]],
        rules: Rules,
    ) -> None:
        self.seed: int = seed
        self.opened_at: float = opened_at
        # Not of the seed, so that a restarted sandbox doesn't repeat the ids of an earlier ledger.
        self.order_id_prefix: str = rules.order_id_prefix or f"ord_{secrets.token_hex(4)}_"
        self.market: Market = Market(seed, rules.fee_bps)
        self.ledger: Ledger = Ledger(opening)
        self.orders: dict[str, Order] = {}
        self.forced: deque[Outcome] = deque()
        self.on_change: Callable[[Order, Moment], None] | None = None
        self._rules = rules
        self._by_client_order_id: dict[tuple[str, str], str] = {}
        self._due: list[tuple[float, str]] = []

    def resume(self, orders: Iterable[Order]) -> None:
        """Resume orders of an earlier exchange with the same seed.

        The ledger doesn't change: the amounts that they lock must be locked already.
        """
        for order in orders:
            self._remember(order)

    def quote(self, terms: Terms, at: float) -> Quote:
        """Quote a swap at a time on Trio's clock.

        Raises:
            Refusal: An asset or a source can't be used, or the amount is too little.
        """
        quote = self._quote(terms, terms.amount_in, at - self.opened_at)
        if not quote.expected_out:
            raise Refusal(INVALID_AMOUNT)  # nothing is left after rounding
        return quote

    def swap(
        self, api_key: str, terms: Terms, client_order_id: str | None, moment: Moment
    ) -> tuple[Order, Change | None]:
        """Accept a swap.

        A client order id that the account used before gives that order again if the terms are
        the same. This is the sandbox's choice, since the broker's documentation doesn't say.

        Returns the order, and what changed: None for an earlier order.

        Raises:
            Refusal: The swap isn't accepted, and nothing has changed.
        """
        quote = self.quote(terms, moment.at)
        if client_order_id is not None:
            earlier = self._by_client_order_id.get((api_key, client_order_id))
            if earlier is not None:
                if self.orders[earlier].terms != terms:
                    raise Refusal(DUPLICATE_CLIENT_ORDER_ID)
                return self.orders[earlier], None
        self.ledger.lock(api_key, terms.asset_in, terms.amount_in)
        order = Order(
            order_id=numbered_id(self.order_id_prefix, len(self.orders) + 1),
            api_key=api_key,
            terms=terms,
            client_order_id=client_order_id,
            rate=quote.rate,
            updated_at=moment.ms,
            steps=self._plan(terms, moment.at - self.opened_at),
        )
        self._store(order, moment)
        return order, Change(order, (terms.asset_in,))

    def find(self, api_key: str, order_id: str) -> Order:
        """An order of an account, by its id, or by its client order id if the rules allow that.

        Raises:
            Refusal: The account has no such order.
        """
        if self._rules.lookup_by_client_order_id:
            return self.find_by_either_id(api_key, order_id)
        return self._owned(api_key, order_id)

    def find_by_either_id(self, api_key: str, some_id: str) -> Order:
        """An order of an account, by its client order id or its id.

        Raises:
            Refusal: The account has no such order.
        """
        return self._owned(api_key, self._by_client_order_id.get((api_key, some_id), some_id))

    def find_by_client_order_id(self, api_key: str, client_order_id: str) -> Order:
        """An order of an account, by its client order id alone.

        Raises:
            Refusal: The account has no such order.
        """
        return self._owned(api_key, self._by_client_order_id.get((api_key, client_order_id), ""))

    def _owned(self, api_key: str, order_id: str) -> Order:
        order = self.orders.get(order_id)
        if order is None or order.api_key != api_key:
            raise Refusal(ORDER_NOT_FOUND)
        return order

    def next_deadline(self) -> float | None:
        """When the next step of any order is due, on Trio's clock; None if there is none."""
        return self.opened_at + self._due[0][0] if self._due else None

    def advance(self, moment: Moment) -> list[Change]:
        """Take every step that is due: what changed, in that order."""
        changes = []
        # The same sum as in `next_deadline`. With another rounding, a step could stay due forever.
        while (deadline := self.next_deadline()) is not None and deadline <= moment.at:
            _, order_id = heapq.heappop(self._due)
            changes.append(self._step(self.orders[order_id], moment))
        return changes

    def _quote(self, terms: Terms, amount_in: Decimal, at: float) -> Quote:
        return self.market.quote(
            amount_in,
            terms.asset_in,
            terms.asset_out,
            at=at,
            sources=terms.sources,
        )

    def _remember(self, order: Order) -> None:
        self.orders[order.order_id] = order
        if order.client_order_id is not None:
            self._by_client_order_id[order.api_key, order.client_order_id] = order.order_id
        if order.steps:
            heapq.heappush(self._due, (order.steps[0].at, order.order_id))

    def _store(self, order: Order, moment: Moment) -> None:
        self._remember(order)
        if self.on_change is not None:
            self.on_change(order, moment)
        logger.info(
            "%s is %s: %s of %s %s sold for %s %s%s",
            order.order_id,
            order.status,
            plain(order.filled_in),
            plain(order.terms.amount_in),
            order.terms.asset_in,
            plain(order.filled_out),
            order.terms.asset_out,
            f" ({order.reason})" if order.reason else "",
        )

    def _plan(self, terms: Terms, now: float) -> tuple[Step, ...]:
        # A generator for each order, so that other orders don't change its outcome.
        chance = random.Random(f"{self.seed}/{len(self.orders)}")  # noqa: S311 - it is a game
        outcomes = self._rules.outcomes
        (outcome,) = chance.choices(list(outcomes), list(outcomes.values()))
        return plan_life(
            self.forced.popleft() if self.forced else outcome,
            terms.amount_in,
            known_asset(terms.asset_in).decimals,
            now=now,
            pending_delay=self._rules.pending_delay,
            processing_delay=self._rules.processing_delay,
            chance=chance,
        )

    def _step(self, order: Order, moment: Moment) -> Change:
        step, terms = order.steps[0], order.terms
        if step.amount_in:
            changed = self._trade(order, step, moment)
        else:
            changed = order.moved(step.status, moment.ms, reason=_REASONS.get(step.status))
        assets: tuple[str, ...] = ()
        if changed.filled_in != order.filled_in:
            assets = (terms.asset_in, terms.asset_out)
        if changed.status.is_final and changed.unfilled:
            self.ledger.release(order.api_key, terms.asset_in, changed.unfilled)
            assets = (terms.asset_in,)
        self._store(changed, moment)
        return Change(changed, assets)

    def _trade(self, order: Order, step: Step, moment: Moment) -> Order:
        """Trade with the market, or end the order if its rate is too bad."""
        terms = order.terms
        # The step's own time, not the moment's, so that a late timer doesn't change a price.
        quote = self._quote(terms, step.amount_in, step.at)
        kept = Decimal(10_000 - (10_000 if terms.slippage_bps is None else terms.slippage_bps))
        worst = CONTEXT.multiply(order.rate, kept.scaleb(-4, CONTEXT))
        if quote.rate < worst or not quote.expected_out:
            # What was traded before stays traded, and an order that traded hasn't failed.
            traded = order.status is OrderStatus.PARTIAL
            status = OrderStatus.CANCELLED if traded else OrderStatus.FAILED
            return order.moved(status, moment.ms, reason="slippage exceeded")
        self.ledger.settle(
            order.api_key,
            (terms.asset_in, step.amount_in),
            (terms.asset_out, quote.expected_out),
            fee=quote.fee,
        )
        return order.moved(
            step.status,
            moment.ms,
            sold=step.amount_in,
            bought=quote.expected_out,
            tx_hash="0x" + sha256(f"{self.seed}/{order.order_id}".encode()).hexdigest(),
        )
