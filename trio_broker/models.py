"""The values that the client returns.

They are frozen attrs classes with Python names. A field that the broker may leave out can be None.
Amounts are `Decimal`, and times are aware datetimes in UTC.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
from decimal import Context, Decimal, Rounded
from typing import Final, Generic, Literal, TypeAlias, TypeVar

import attrs

T_co = TypeVar("T_co", covariant=True)

Origin: TypeAlias = Literal["push", "snapshot"]
GapReason: TypeAlias = Literal["reconnected", "overflow"]
Amount: TypeAlias = str | int | Decimal
Dialect: TypeAlias = Literal["clients", "docs"]

MAX_DIGITS: Final = 100
"""The digits that an amount may have on either side of the point. A uint256 has 78."""

_PLAIN: Final = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}(\.[0-9]{{1,{MAX_DIGITS}}})?", flags=re.ASCII)
_MAX_BITS: Final = 4 * MAX_DIGITS

_EXACT = Context(prec=400)
# Raises if an amount has more digits in all. `Decimal.as_tuple` makes an object for each digit.
_SHORT: Final = Context(prec=2 * MAX_DIGITS, traps=[Rounded])


@attrs.frozen
class Balance:
    """An account's balance of one asset.

    If the broker sent an amount that can't be read, the balance stays in the account, and reading
    that amount, or `available`, raises `UnreadableError`.

    Attributes:
        asset: The asset's symbol.
        total: The total amount, including `locked`.
        locked: The amount reserved by pending swaps, None if the broker doesn't report it.
    """

    asset: str
    total: Decimal
    locked: Decimal | None = None

    @property
    def is_readable(self) -> bool:
        """Whether `total` and `locked` can be read."""
        return True

    @property
    def available(self) -> Decimal:
        """The amount that can be spent: `total` minus `locked`."""
        # The default context of 28 digits would round a token with 18 decimals.
        return self.total if self.locked is None else _EXACT.subtract(self.total, self.locked)


@attrs.frozen
class RouteStep:
    """One trade in the route of an estimate."""

    from_asset: str | None = None
    to_asset: str | None = None
    amount_in: Decimal | None = None
    amount_out: Decimal | None = None
    pool: str | None = None
    exchange: str | None = None


@attrs.frozen
class SwapEstimate:
    """The expected result of a swap now, which the broker doesn't guarantee.

    Attributes:
        route: The trades of the swap, empty if the broker doesn't report them.
        price: Units of the bought asset per unit of the sold asset.
        expected_out: Units of the bought asset.
        fee: The fee; its unit is not documented.
        expires_at: When the estimate expires.
    """

    route: tuple[RouteStep, ...]
    price: Decimal
    expected_out: Decimal
    fee: Decimal | None = None
    expires_at: dt.datetime | None = None


class OrderStatus(enum.StrEnum):
    """The order statuses that the broker documents."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    PARTIAL = "PARTIAL"
    FILLED = "FILLED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """True for FILLED, FAILED and CANCELLED: the order has ended."""
        return self in FINAL_STATUSES


FINAL_STATUSES: Final = frozenset({OrderStatus.FILLED, OrderStatus.FAILED, OrderStatus.CANCELLED})

# How far an order is. A status that isn't documented is somewhere in the middle.
_PROGRESS: Final[dict[OrderStatus | str, int]] = {
    OrderStatus.PENDING: 0,
    OrderStatus.PROCESSING: 1,
    OrderStatus.PARTIAL: 1,
    **dict.fromkeys(FINAL_STATUSES, 2),
}
_UNKNOWN_PROGRESS: Final = 1


@attrs.frozen
class SwapReceipt:
    """The broker's confirmation that it accepted a swap.

    Attributes:
        order_id: The order's id at the broker.
        status: The order's first status, None if the broker doesn't report it.
        client_order_id: The swap's client order id.
    """

    order_id: str
    status: OrderStatus | str | None
    client_order_id: str


class SwapOutcome(enum.StrEnum):
    """The known outcome of a swap."""

    UNDER_WAY = "under way"
    """It is being sent, or waits for its reply."""
    NOT_SENT = "not sent"
    """Nothing was sent."""
    CONFIRMED = "confirmed"
    """The broker accepted it."""
    REFUSED = "refused"
    """The broker refused it and did not execute it."""
    UNKNOWN = "unknown"
    """It was possibly sent, and its outcome is unknown."""
    SETTLED = "settled"
    """Its outcome was unknown, and it was closed by hand."""


@attrs.frozen(kw_only=True)
class SwapIntent:
    """The details of a requested swap.

    Attributes:
        client_order_id: The swap's client order id.
        amount_in: The amount to sell.
        asset_in: The asset to sell.
        asset_out: The asset to buy.
        at: When it was requested, by this machine's clock.
    """

    client_order_id: str
    amount_in: Decimal
    asset_in: str
    asset_out: str
    at: dt.datetime


@attrs.frozen(kw_only=True)
class UnresolvedSwap(SwapIntent):
    """A swap that was possibly sent and whose outcome is unknown.

    Attributes:
        outcome: `SwapOutcome.UNDER_WAY` while the client waits for its reply, then
            `SwapOutcome.UNKNOWN`.
        reason: Why its outcome is unknown.
        may_still_execute: Whether the broker could still accept it. False once its signature has
            expired: if it wasn't executed by then, it never will be.
    """

    outcome: SwapOutcome
    reason: str
    may_still_execute: bool


@attrs.frozen(kw_only=True)
class SwapFinding:
    """The result of a lookup of an unresolved swap.

    Attributes:
        swap: The swap.
        outcome: `SwapOutcome.CONFIRMED` if it was found, `SwapOutcome.REFUSED` if its refusal
            arrived late, `SwapOutcome.SETTLED` if it was settled by hand meanwhile, otherwise
            `SwapOutcome.UNKNOWN`.
        receipt: The broker's receipt, if the swap is confirmed.
        reason: Why the swap isn't confirmed.
    """

    swap: UnresolvedSwap
    outcome: SwapOutcome
    receipt: SwapReceipt | None
    reason: str


@attrs.frozen(slots=False)  # a frozen class with slots takes a third longer to make
class Order:
    """The whole state of an order at one time.

    Attributes:
        order_id: The order's id at the broker, None if unknown.
        status: An `OrderStatus`, or the broker's text if it isn't a known status.
        filled_out: Units of the asset bought so far.
        tx_hash: The transaction's hash.
        updated_at: When the broker last changed the order.
        client_order_id: The swap's client order id, None if unknown.
    """

    order_id: str | None
    status: OrderStatus | str
    filled_out: Decimal | None = None
    tx_hash: str | None = None
    updated_at: dt.datetime | None = None
    client_order_id: str | None = None

    @property
    def is_final(self) -> bool:
        """True if the status is FILLED, FAILED or CANCELLED."""
        return isinstance(self.status, OrderStatus) and self.status.is_final

    def is_older_than(self, other: Order) -> bool:
        """Whether this state is certainly older than another state of the same order.

        States are compared by their progress: PENDING, then PROCESSING and PARTIAL, then the final
        statuses. If that is equal, the smaller `filled_out` is older, then the earlier
        `updated_at`. So a clock of the broker that is set back hides no progress.

        Args:
            other: The other state.

        Returns:
            True if it is older. False if nothing shows which of the two is, as with two different
            final statuses. A status that isn't documented is between PENDING and the final ones.
        """
        # This runs for each push of an order. An enum's hash takes long.
        if self.status is not other.status:
            mine = _PROGRESS.get(self.status, _UNKNOWN_PROGRESS)
            its = _PROGRESS.get(other.status, _UNKNOWN_PROGRESS)
            if mine != its:
                return mine < its
            if self.status != other.status and not (
                self.status in _COMPARABLE and other.status in _COMPARABLE
            ):
                return False
        if self.filled_out != other.filled_out and self.filled_out is not None:
            # A fill is news if the other state doesn't tell its own.
            return other.filled_out is not None and self.filled_out < other.filled_out
        if self.updated_at is None or other.updated_at is None:
            return False
        return self.updated_at < other.updated_at


# The statuses of one progress whose fills and times can be compared with each other's.
_COMPARABLE: Final = frozenset({OrderStatus.PROCESSING, OrderStatus.PARTIAL})


@attrs.frozen
class Gap:
    """Reports that updates before a message may be missing.

    Attributes:
        reasons: ``"overflow"`` if this consumer was too slow, ``"reconnected"`` if the connection
            was lost.
        dropped: The number of messages that an overflow dropped. Messages missed during an outage
            can't be counted.
        since: When the gap began.
    """

    reasons: frozenset[GapReason]
    dropped: int
    since: dt.datetime

    def merged(self, earlier: Gap | None) -> Gap:
        """Combine this gap with an earlier one.

        Args:
            earlier: The earlier gap, or None.
        """
        if earlier is None:
            return self
        return Gap(
            reasons=earlier.reasons | self.reasons,
            dropped=earlier.dropped + self.dropped,
            since=min(earlier.since, self.since),
        )


@attrs.frozen(slots=False)  # as an `Order`
class Message(Generic[T_co]):
    """One message of a stream.

    Attributes:
        channel: The channel's name.
        data: The body, typed for known channels: a tuple of `Balance`, or an `Order`.
        origin: ``"push"`` if the broker sent it by itself, ``"snapshot"`` if this library
            requested it.
        gap: None, or a report that messages before this one may be missing.
        received_at: When it was received, by this machine's clock.
        raw: The original text. The repr omits it, because a broker may echo a key.
    """

    channel: str
    data: T_co
    origin: Origin
    gap: Gap | None
    received_at: dt.datetime
    raw: str = attrs.field(repr=False)


class ConnectionState(enum.Enum):
    """The state of a client's connection."""

    IDLE = "idle"
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    RESTORING = "restoring"
    CONNECTED = "connected"
    WAITING = "waiting"
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """True if the client can't connect any more."""
        return self in {ConnectionState.CLOSING, ConnectionState.CLOSED, ConnectionState.FAILED}

    @property
    def is_connected(self) -> bool:
        """True if connected and authenticated, even while channels are still being restored."""
        return self in {ConnectionState.RESTORING, ConnectionState.CONNECTED}


@attrs.frozen(kw_only=True)
class ClientStatistics:
    """Counters of one client since its start.

    Attributes:
        messages_sent: Messages sent, without pings.
        messages_received: Messages received.
        unexpected_messages: Received messages that were not expected.
        requests_waiting: Requests that wait to be sent now.
        requests_in_flight: Requests that were sent and wait for a reply now.
        channels: Channels with open subscriptions now, without tracked orders.
        subscriptions: Subscriptions that are open now.
        tracked_orders: Orders that are tracked now. An order that is tracked twice counts twice.
    """

    messages_sent: int
    messages_received: int
    unexpected_messages: int
    requests_waiting: int
    requests_in_flight: int
    channels: int
    subscriptions: int
    tracked_orders: int


def amount_text(value: Amount, place: str) -> str:
    """Check an amount and return its text; a str is returned unchanged, with its zeros.

    Args:
        value: The amount.
        place: The argument's name, for the error.

    Raises:
        TypeError: It isn't a str, int or Decimal.
        ValueError: It isn't a plain decimal above 0 with at most 100 digits on either side.
    """
    if isinstance(value, bool | float) or not isinstance(value, str | int | Decimal):
        raise TypeError(
            f"{place} must be a str, an int or a Decimal, not {type(value).__name__}: "
            "a float may differ from the number that was written"
        )
    # An enum's or another subclass's own text may differ from the one that it contains.
    text = str.__str__(value) if isinstance(value, str) else _number_text(value)
    if text is None:
        raise ValueError(f"{place} must be a finite amount of at most {MAX_DIGITS} digits")
    if not _PLAIN.fullmatch(text):
        raise ValueError(
            f"{place} must be a plain positive decimal like '0.25', of at most {MAX_DIGITS} digits "
            "on either side of the point"
        )
    if not text.strip("0."):
        raise ValueError(f"{place} must be more than 0")
    return text


def brief(value: object) -> str:
    """A wrong value for an error. A huge number isn't printed, which takes seconds or fails."""
    if isinstance(value, int) and int.bit_length(value) > _MAX_BITS:
        return "a huge number"
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str) and len(value) <= _LONGEST_SHOWN:
        return repr(value)
    return f"a {type(value).__name__}"


_LONGEST_SHOWN: Final = 50


def _number_text(value: int | Decimal) -> str | None:
    """The text of a number, None if it isn't finite or is much too long.

    The size is checked first: a huge number takes seconds and gigabytes as text.
    """
    if isinstance(value, int):
        return int.__repr__(value) if int.bit_length(value) <= _MAX_BITS else None
    if not value.is_finite() or abs(value.adjusted()) > MAX_DIGITS:
        return None
    try:
        return format(_SHORT.plus(Decimal(value)), "f")
    except Rounded:
        return None
