"""The life of an order.

    PENDING ──► PROCESSING ──┬──────────────────────────► FILLED
       │            │        ├──► PARTIAL (again) ──┬───► FILLED
       │            │        │                      └───► CANCELLED
       └────────────┴────────┴──────────────────────────► FAILED or CANCELLED

The steps are planned when the order is accepted, each with its time. So an order is plain data that
can be saved and loaded, and the next step depends only on the time. An order is immutable: each
step makes a new one.
"""

from __future__ import annotations

import enum
import random
from decimal import Decimal
from typing import Final

import attrs

from trio_broker.models import OrderStatus
from trio_broker.sandbox.money import CONTEXT, ZERO, round_down


class Outcome(enum.StrEnum):
    """The outcome of an order."""

    FILLED = "filled"
    FILLED_IN_PARTS = "filled_in_parts"
    PARTLY_FILLED = "partly_filled"
    """Filled in parts; then the rest is cancelled."""
    FAILED = "failed"
    CANCELLED = "cancelled"


NEXT: Final = {
    OrderStatus.PENDING: {OrderStatus.PROCESSING, OrderStatus.FAILED, OrderStatus.CANCELLED},
    OrderStatus.PROCESSING: {
        OrderStatus.PARTIAL,
        OrderStatus.FILLED,
        OrderStatus.FAILED,
        OrderStatus.CANCELLED,
    },
    OrderStatus.PARTIAL: {OrderStatus.PARTIAL, OrderStatus.FILLED, OrderStatus.CANCELLED},
    OrderStatus.FILLED: set[OrderStatus](),
    OrderStatus.FAILED: set[OrderStatus](),
    OrderStatus.CANCELLED: set[OrderStatus](),
}


# More than a clock that stands still falls behind the states of an order.
_SET_BACK_MS: Final = 1000


@attrs.frozen
class Terms:
    """The terms of a swap. Two requests with equal terms are the same request.

    Attributes:
        amount_in: The amount that is sold.
        asset_in: The asset that is sold.
        asset_out: The asset that is bought.
        sources: The liquidity sources that may be used, sorted; all of them if empty.
        slippage_bps: By how much the rate may get worse until a trade, in hundredths of a
            percent; None if by any.
        wallet: The wallet address that the client named.
    """

    amount_in: Decimal
    asset_in: str
    asset_out: str
    sources: tuple[str, ...] = ()
    slippage_bps: int | None = None
    wallet: str | None = None


@attrs.frozen
class Step:
    """A step of an order's life.

    Attributes:
        at: When, in seconds since the exchange was opened.
        status: The status that it leads to.
        amount_in: How much is traded with it.
    """

    at: float
    status: OrderStatus
    amount_in: Decimal = ZERO


@attrs.frozen(kw_only=True)
class Order:
    """An order at one time.

    Attributes:
        order_id: Its id.
        api_key: The key of the account that it belongs to.
        terms: The terms of the swap.
        client_order_id: The id that the client gave it, if it did.
        rate: Units bought for one sold, after the fee, when it was taken.
        updated_at: When it last changed, in milliseconds since the epoch. It grows with every
            change, even if the clock stands still, unless the clock was set back.
        steps: Its future steps.
        status: Its status.
        filled_in: How much was sold so far.
        filled_out: How much was bought so far.
        tx_hash: The transaction's hash, once anything was traded.
        reason: Why it failed or was cancelled.
    """

    order_id: str
    api_key: str = attrs.field(repr=False)
    terms: Terms
    client_order_id: str | None
    rate: Decimal
    updated_at: int
    steps: tuple[Step, ...]
    status: OrderStatus = OrderStatus.PENDING
    filled_in: Decimal = ZERO
    filled_out: Decimal = ZERO
    tx_hash: str | None = None
    reason: str | None = None

    @property
    def unfilled(self) -> Decimal:
        """How much was not sold yet; it is locked until the order is final."""
        return CONTEXT.subtract(self.terms.amount_in, self.filled_in)

    def moved(
        self,
        status: OrderStatus,
        now_ms: int,
        *,
        sold: Decimal = ZERO,
        bought: Decimal = ZERO,
        tx_hash: str | None = None,
        reason: str | None = None,
    ) -> Order:
        """The order after a step.

        Args:
            status: Its status from now on.
            now_ms: The time, in milliseconds since the epoch.
            sold: What was sold with this step.
            bought: What was bought with it.
            tx_hash: The transaction's hash, if there is one now.
            reason: Why it failed or was cancelled.

        Raises:
            ValueError: No order gets there from its status.
        """
        if status not in NEXT[self.status]:
            raise ValueError(f"{self.order_id} can't go from {self.status} to {status}")
        was_set_back = self.updated_at - now_ms > _SET_BACK_MS
        return attrs.evolve(
            self,
            status=status,
            updated_at=now_ms if was_set_back else max(now_ms, self.updated_at + 1),
            steps=() if status.is_final else self.steps[1:],
            filled_in=CONTEXT.add(self.filled_in, sold),
            filled_out=CONTEXT.add(self.filled_out, bought),
            tx_hash=tx_hash or self.tx_hash,
            reason=reason,
        )


def plan_life(
    outcome: Outcome,
    amount_in: Decimal,
    decimals: int,
    *,
    now: float,
    pending_delay: tuple[float, float],
    processing_delay: tuple[float, float],
    chance: random.Random,
) -> tuple[Step, ...]:
    """The steps that an order will take.

    Args:
        outcome: Its outcome.
        amount_in: The amount that is sold.
        decimals: How many decimals the amounts of the asset sold have.
        now: The time, in seconds since the exchange was opened.
        pending_delay: The shortest and the longest time until it is PROCESSING, in seconds.
        processing_delay: The shortest and the longest time from then to its end, in seconds.
        chance: Where delays and parts are drawn from.

    Returns:
        At least two steps, of which the last is final.
    """
    started = now + chance.uniform(*pending_delay)
    ended = started + chance.uniform(*processing_delay)
    processing = Step(started, OrderStatus.PROCESSING)
    if outcome is Outcome.FILLED:
        return processing, Step(ended, OrderStatus.FILLED, amount_in)
    if outcome is Outcome.FAILED:
        return processing, Step(ended, OrderStatus.FAILED)
    if outcome is Outcome.CANCELLED:
        return processing, Step(ended, OrderStatus.CANCELLED)
    count = chance.randint(2, 4)
    part = round_down(CONTEXT.divide(amount_in, Decimal(count)), decimals)
    parts = [
        Step(started + (ended - started) * number / count, OrderStatus.PARTIAL, part)
        for number in range(1, count)
        if part
    ]
    if outcome is Outcome.PARTLY_FILLED:
        return processing, *parts, Step(ended, OrderStatus.CANCELLED)
    rest = CONTEXT.subtract(amount_in, CONTEXT.multiply(part, Decimal(len(parts))))
    return processing, *parts, Step(ended, OrderStatus.FILLED, rest)
