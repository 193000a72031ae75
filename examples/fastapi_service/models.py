"""What goes in and out as JSON.

Money is a decimal text in JSON and a `Decimal` here. A JSON number with a point is refused: most
programs have made a binary float of it by the time that it arrives, which isn't the number that
somebody wrote.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    StrictInt,
    WithJsonSchema,
)

from trio_broker import Balance, Order, SwapEstimate, SwapReceipt, UnresolvedSwap


def _exactly(value: object) -> object:
    if not isinstance(value, str | int | Decimal):
        raise ValueError('send the amount as a string: "0.1", not 0.1')  # noqa: TRY004 - pydantic's
    return value


Money = Annotated[
    Decimal,
    BeforeValidator(_exactly),
    PlainSerializer(lambda amount: f"{amount:f}", return_type=str),
    WithJsonSchema({"type": "string", "examples": ["0.1"]}),
]


def order_link(order_id: str) -> str:
    """Where an order is found."""
    return f"/orders/{quote(order_id, safe='')}"


def swap_link(client_order_id: str) -> str:
    """Where it is told what became of a swap."""
    return f"/swaps/{quote(client_order_id, safe='')}"


class _Model(BaseModel):
    model_config = ConfigDict(from_attributes=True, extra="ignore")


class _Asked(BaseModel):
    # A name that is misspelled must not be money that is swapped on other terms.
    model_config = ConfigDict(extra="forbid")

    amount_in: Money
    asset_in: str
    asset_out: str
    filter_sources: list[str] | None = None
    account: str | None = None


class EstimateIn(_Asked):
    """What an estimate is asked for."""

    network: str | None = None


class SwapIn(_Asked):
    """What is to be swapped."""

    slippage_bps: StrictInt | None = None  # or `true` would be a tolerance of 1


class StepOut(_Model):
    """One trade of a route."""

    from_asset: str | None
    to_asset: str | None
    amount_in: Money | None
    amount_out: Money | None
    pool: str | None
    exchange: str | None


class EstimateOut(_Model):
    """What a swap would bring now."""

    route: list[StepOut]
    price: Money
    expected_out: Money
    fee: Money | None
    expires_at: dt.datetime | None

    @classmethod
    def of(cls, estimate: SwapEstimate) -> Self:
        """The library's estimate as JSON."""
        return cls.model_validate(estimate)


class BalanceOut(_Model):
    """What the account holds of an asset."""

    asset: str
    total: Money
    locked: Money | None
    available: Money


class BalancesOut(_Model):
    """The whole account."""

    balances: list[BalanceOut]

    @classmethod
    def of(cls, balances: tuple[Balance, ...]) -> Self:
        """The library's balances as JSON."""
        return cls(balances=[BalanceOut.model_validate(balance) for balance in balances])


class OrderOut(_Model):
    """An order's state."""

    order_id: str | None
    status: str
    is_final: bool
    filled_out: Money | None
    tx_hash: str | None
    updated_at: dt.datetime | None
    client_order_id: str | None

    @classmethod
    def of(cls, order: Order) -> Self:
        """The library's order as JSON."""
        return cls.model_validate(order)


class LiveOrder(BaseModel):
    """An order of this service's, as it goes on."""

    order_id: str
    client_order_id: str
    status: str | None
    is_final: bool = False
    filled_out: Money | None = None
    updated_at: dt.datetime | None = None
    amount_in: Money | None = None
    asset_in: str | None = None
    asset_out: str | None = None

    @classmethod
    def taken(cls, receipt: SwapReceipt) -> Self:
        """An order that the broker has just taken."""
        return cls(
            order_id=receipt.order_id,
            client_order_id=receipt.client_order_id,
            status=None if receipt.status is None else str(receipt.status),
        )

    def moved(self, order: Order) -> Self:
        """The same after a message about the order."""
        return self.model_copy(
            update={
                "status": str(order.status),
                "is_final": order.is_final,
                "filled_out": order.filled_out,
                "updated_at": order.updated_at,
            }
        )


class SwapOut(BaseModel):
    """What is known of a swap; `success` is null where nobody knows."""

    success: bool | None
    outcome: Literal["confirmed", "refused", "not sent", "unknown"]
    client_order_id: str
    swap: str
    order_id: str | None = None
    order: str | None = None
    status: str | None = None
    detail: str | None = None

    @classmethod
    def confirmed(cls, receipt: SwapReceipt) -> Self:
        """The broker has taken it."""
        return cls(
            success=True,
            outcome="confirmed",
            client_order_id=receipt.client_order_id,
            swap=swap_link(receipt.client_order_id),
            order_id=receipt.order_id,
            order=order_link(receipt.order_id),
            status=None if receipt.status is None else str(receipt.status),
        )

    @classmethod
    def ended(
        cls, client_order_id: str, outcome: Literal["refused", "not sent"], detail: str
    ) -> Self:
        """Nothing was executed."""
        return cls(
            success=False,
            outcome=outcome,
            client_order_id=client_order_id,
            swap=swap_link(client_order_id),
            detail=detail,
        )

    @classmethod
    def unknown(cls, client_order_id: str, detail: str) -> Self:
        """It may have been executed, and nobody knows."""
        return cls(
            success=None,
            outcome="unknown",
            client_order_id=client_order_id,
            swap=swap_link(client_order_id),
            detail=detail,
        )


class UnresolvedOut(_Model):
    """A swap of which nobody knows what became of it."""

    client_order_id: str
    swap: str
    amount_in: Money
    asset_in: str
    asset_out: str
    reason: str
    may_still_execute: bool

    @classmethod
    def of(cls, swap: UnresolvedSwap) -> Self:
        """The library's unresolved swap as JSON."""
        return cls(
            client_order_id=swap.client_order_id,
            swap=swap_link(swap.client_order_id),
            amount_in=swap.amount_in,
            asset_in=swap.asset_in,
            asset_out=swap.asset_out,
            reason=swap.reason,
            may_still_execute=swap.may_still_execute,
        )


class StatusOut(BaseModel):
    """Where the service stands; `next_try_in` counts in seconds from when this was said."""

    websocket_connected: bool
    state: str
    broker: Literal["SANDBOX", "LIVE"]
    host: str
    problem: str | None = None
    next_try_in: float | None = None
    unresolved_swaps: list[UnresolvedOut] = []


class Problem(BaseModel):
    """Every error that this service answers with (RFC 9457); `success` is missing from a 500."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    success: Literal[False] | None = False
    error: str
    errors: list[dict[str, Any]] | None = None
    outcome: str | None = None
    swap: str | None = None
