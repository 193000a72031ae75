"""The JSON requests and responses.

Money is a decimal text in JSON and a `Decimal` here. A JSON number with a point is refused: most
programs have made a binary float of it by the time that it arrives, which isn't the number that
somebody wrote.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    StrictInt,
    WithJsonSchema,
)

from trio_broker import (
    Balance,
    Order,
    SwapEstimate,
    SwapReceipt,
    UnreadableError,
    UnresolvedSwap,
)

# `Decimal` takes more: exponents, underscores, and digits of all scripts.
_PLAIN: Final = re.compile(r"-?[0-9]*\.?[0-9]+")


def _exactly(value: object) -> object:
    if not isinstance(value, str | int | Decimal):
        raise ValueError('send the amount as a string: "0.1", not 0.1')  # noqa: TRY004 - pydantic's
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        raise ValueError('an amount has digits and at most one point: "0.1"')
    return value


Money = Annotated[
    Decimal,
    BeforeValidator(_exactly),
    PlainSerializer(lambda amount: f"{amount:f}", return_type=str),
    WithJsonSchema({"type": "string", "examples": ["0.1"]}),
]


Unreadable = Literal["unreadable"]


def order_link(order_id: str) -> str:
    """The path of an order."""
    return f"/orders/{quote(order_id, safe='')}"


def swap_link(client_order_id: str) -> str:
    """The path of a swap's outcome."""
    return f"/swaps/{quote(client_order_id, safe='')}"


class _Model(BaseModel):
    model_config = ConfigDict(from_attributes=True, extra="ignore")


class _Asked(BaseModel):
    # A misspelled name must not change the terms of a swap.
    model_config = ConfigDict(extra="forbid")

    amount_in: Money
    asset_in: str
    asset_out: str
    filter_sources: list[str] | None = None
    account: str | None = None


class EstimateIn(_Asked):
    """The terms of an estimate."""

    network: str | None = None


class SwapIn(_Asked):
    """The terms of a swap."""

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
    """The estimate of a swap."""

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
    """The account's balance of an asset."""

    asset: str
    total: Money | Unreadable
    locked: Money | Unreadable | None
    available: Money | Unreadable

    @classmethod
    def of(cls, balance: Balance) -> Self:
        """The library's balance as JSON."""
        names = ("total", "locked", "available")
        return cls(asset=balance.asset, **{name: _amount(balance, name) for name in names})


def _amount(balance: Balance, name: str) -> Any:
    """An amount of a balance. The broker may have sent one that can't be read: that isn't zero."""
    try:
        return getattr(balance, name)
    except UnreadableError:
        return "unreadable"


class BalancesOut(_Model):
    """The whole account."""

    balances: list[BalanceOut]

    @classmethod
    def of(cls, balances: tuple[Balance, ...]) -> Self:
        """The library's balances as JSON."""
        return cls(balances=[BalanceOut.of(balance) for balance in balances])


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
    """An order of this service and its progress."""

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
        """Make it for a newly accepted order."""
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
    """The outcome of a swap; `success` is null if it is unknown."""

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
        """The broker accepted it."""
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
        """Its outcome is unknown: it may have been executed."""
        return cls(
            success=None,
            outcome="unknown",
            client_order_id=client_order_id,
            swap=swap_link(client_order_id),
            detail=detail,
        )


class UnresolvedOut(_Model):
    """A swap whose outcome is unknown."""

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
    """The service's status; `next_try_in` is in seconds from the time of the response."""

    websocket_connected: bool
    state: str
    broker: Literal["SANDBOX", "LIVE"]
    host: str
    problem: str | None = None
    next_try_in: float | None = None
    unresolved_swaps: list[UnresolvedOut] = []


class Problem(BaseModel):
    """Every error response of this service (RFC 9457); `success` is missing from a 500."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    success: Literal[False] | None = False
    error: str
    errors: list[dict[str, Any]] | None = None
    outcome: str | None = None
    swap: str | None = None
    order: str | None = None
