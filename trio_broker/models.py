"""The values that users see.

They are frozen attrs classes with Python names. What the broker may leave out is None here;
money is `Decimal`, and times are aware datetimes in UTC.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
from decimal import Context, Decimal
from typing import Generic, Literal, TypeAlias, TypeVar

import attrs

T_co = TypeVar("T_co", covariant=True)

Origin: TypeAlias = Literal["push", "snapshot"]
GapReason: TypeAlias = Literal["reconnected", "overflow"]
Amount: TypeAlias = str | int | Decimal

_PLAIN = re.compile(r"[0-9]{1,60}(\.[0-9]{1,60})?", flags=re.ASCII)

_EXACT = Context(prec=400)


@attrs.frozen
class Balance:
    """What an account holds of one asset.

    Attributes:
        asset: The asset's symbol.
        total: All of it, what is locked included.
        locked: What pending swaps have set aside; None where the broker doesn't say.
    """

    asset: str
    total: Decimal
    locked: Decimal | None = None

    @property
    def available(self) -> Decimal:
        """What can be spent: `total` less `locked`, where anything is locked."""
        # Under the default context of 28 digits, a token with 18 decimals would be rounded.
        return self.total if self.locked is None else _EXACT.subtract(self.total, self.locked)


@attrs.frozen
class RouteStep:
    """One trade of the route that an estimate takes."""

    from_asset: str | None = None
    to_asset: str | None = None
    amount_in: Decimal | None = None
    amount_out: Decimal | None = None
    pool: str | None = None
    exchange: str | None = None


@attrs.frozen
class SwapEstimate:
    """What a swap would bring now; no promise of the broker's.

    Attributes:
        route: The trades that it would take, empty where the broker doesn't say.
        price: Units of the asset bought for one of the asset sold.
        expected_out: Units of the asset bought.
        fee: The fee; its unit is not documented.
        expires_at: When the estimate ends.
    """

    route: tuple[RouteStep, ...]
    price: Decimal
    expected_out: Decimal
    fee: Decimal | None = None
    expires_at: dt.datetime | None = None


class OrderStatus(enum.StrEnum):
    """How far an order is, as far as the broker's documents name it."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    PARTIAL = "PARTIAL"
    FILLED = "FILLED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """True for FILLED, FAILED and CANCELLED: nothing follows them."""
        return self in _FINAL


_FINAL = frozenset({OrderStatus.FILLED, OrderStatus.FAILED, OrderStatus.CANCELLED})
_PROGRESS = {OrderStatus.PENDING: 0, OrderStatus.PROCESSING: 1, OrderStatus.PARTIAL: 2}
_FINAL_PROGRESS = 3


@attrs.frozen
class SwapReceipt:
    """The broker's word that it took a swap.

    Attributes:
        order_id: The order's id at the broker.
        status: Its first status, None where the broker doesn't say.
        client_order_id: The id that was sent along.
    """

    order_id: str
    status: OrderStatus | str | None
    client_order_id: str


class SwapOutcome(enum.StrEnum):
    """What is known of a swap."""

    UNDER_WAY = "under way"
    """Nobody knows yet: it is being sent, or its reply is waited for."""
    NOT_SENT = "not sent"
    """Nothing of it has left."""
    CONFIRMED = "confirmed"
    """The broker has taken it."""
    REFUSED = "refused"
    """The broker has refused it, and not executed it."""
    UNKNOWN = "unknown"
    """It may have left, and nobody can tell what became of it."""
    SETTLED = "settled"
    """Nobody could tell, and it was closed by hand."""


@attrs.frozen(kw_only=True)
class UnresolvedSwap:
    """A swap that may have left, and of which it isn't known whether the broker has taken it.

    Attributes:
        client_order_id: The id that went along with it.
        amount_in: How much was to be sold.
        asset_in: The asset that was to be sold.
        asset_out: The asset that was to be bought.
        at: When it was asked for, by this machine's clock.
        outcome: `SwapOutcome.UNDER_WAY` while its reply is waited for, `SwapOutcome.UNKNOWN` then.
        reason: Why its outcome isn't known.
        may_still_execute: Whether the broker could take it even now. Once its signature has
            expired it can't: if it wasn't executed by then, it never will be.
    """

    client_order_id: str
    amount_in: Decimal
    asset_in: str
    asset_out: str
    at: dt.datetime
    outcome: SwapOutcome
    reason: str
    may_still_execute: bool


@attrs.frozen(kw_only=True)
class SwapFinding:
    """What asking for an unresolved swap has brought.

    Attributes:
        swap: The swap.
        outcome: `SwapOutcome.CONFIRMED` if it was found, `SwapOutcome.REFUSED` if its refusal came
            after all, otherwise `SwapOutcome.UNKNOWN`.
        receipt: The broker's receipt, if it is confirmed.
        reason: Why it isn't.
    """

    swap: UnresolvedSwap
    outcome: SwapOutcome
    receipt: SwapReceipt | None
    reason: str


@attrs.frozen(slots=False)  # a frozen class with slots takes a third longer to make
class Order:
    """The whole state of an order at one time.

    Attributes:
        order_id: The order's id, None where the broker doesn't repeat it.
        status: An `OrderStatus`, or the broker's text where it isn't a known one.
        filled_out: Units of the asset bought so far.
        tx_hash: The transaction's hash.
        updated_at: When the broker last changed it.
        client_order_id: The id that was sent along with the swap.
    """

    order_id: str | None
    status: OrderStatus | str
    filled_out: Decimal | None = None
    tx_hash: str | None = None
    updated_at: dt.datetime | None = None
    client_order_id: str | None = None

    @property
    def is_final(self) -> bool:
        """True once nothing more will happen to it."""
        return isinstance(self.status, OrderStatus) and self.status.is_final

    def is_older_than(self, other: Order) -> bool:
        """Whether this state certainly came before another one of the same order.

        Args:
            other: The other state.

        Returns:
            True if it was updated earlier or, where the times are the same or not known, if its
            status is less far. An unknown status is neither.
        """
        if self.updated_at and other.updated_at and self.updated_at != other.updated_at:
            return self.updated_at < other.updated_at
        mine, its = _progress(self.status), _progress(other.status)
        return mine is not None and its is not None and mine < its


def _progress(status: OrderStatus | str) -> int | None:
    if isinstance(status, OrderStatus):
        return _PROGRESS.get(status, _FINAL_PROGRESS)
    return None


@attrs.frozen
class Gap:
    """Says that updates before a message may be missing.

    Attributes:
        reasons: ``"overflow"``: this consumer was too slow; ``"reconnected"``: nobody was
            connected for a while.
        dropped: How many messages were dropped here (what was missed while nobody was connected
            can't be counted).
        since: When it began.
    """

    reasons: frozenset[GapReason]
    dropped: int
    since: dt.datetime

    def merged(self, earlier: Gap | None) -> Gap:
        """This gap and an earlier one as one.

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
        data: The body, typed where the channel is known: a tuple of `Balance`, or an `Order`.
        origin: ``"push"``: the broker sent it by itself; ``"snapshot"``: this library asked.
        gap: None, or what may be missing before this message.
        received_at: When it came, by this machine's clock.
        raw: The text as it came.
    """

    channel: str
    data: T_co
    origin: Origin
    gap: Gap | None
    received_at: dt.datetime
    raw: str


class ConnectionState(enum.Enum):
    """Where a client stands."""

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
        """True once the client can't be connected any more."""
        return self in {ConnectionState.CLOSING, ConnectionState.CLOSED, ConnectionState.FAILED}

    @property
    def is_connected(self) -> bool:
        """True while connected and authenticated, be it that channels are still being restored."""
        return self in {ConnectionState.RESTORING, ConnectionState.CONNECTED}


@attrs.frozen(kw_only=True)
class ConnectionEvent:
    """Something that happened to a client's connection, or to a swap of its.

    Attributes:
        at: When, by this machine's clock.
    """

    at: dt.datetime


@attrs.frozen(kw_only=True)
class Connected(ConnectionEvent):
    """The client is connected and authenticated.

    After an outage, `Restored` follows once the channels are there again.
    """


@attrs.frozen(kw_only=True)
class Disconnected(ConnectionEvent):
    """A connection is gone, or a try to connect has failed.

    Attributes:
        error: Why.
        retry_in: Seconds until the next try, None if there is none.
    """

    error: Exception
    retry_in: float | None


@attrs.frozen(kw_only=True)
class Restored(ConnectionEvent):
    """After an outage, the broker holds the channels again that were subscribed to before.

    Each stream's first message after it carries the gap, and its state is asked for. Orders that
    are tracked don't count: they are asked about, whatever becomes of their channels.

    Attributes:
        channels: The channels' names. One that was refused has a `ChannelRefused` of its own.
    """

    channels: tuple[str, ...]


@attrs.frozen(kw_only=True)
class ChannelRefused(ConnectionEvent):
    """After an outage, the broker refused a channel; its subscriptions ended with the error.

    Attributes:
        channel: The channel's name.
        error: Why.
    """

    channel: str
    error: Exception


@attrs.frozen(kw_only=True)
class GaveUp(ConnectionEvent):
    """The connection failed for good.

    Attributes:
        error: Why.
    """

    error: Exception


@attrs.frozen(kw_only=True)
class Closed(ConnectionEvent):
    """The client was closed by its owner."""


@attrs.frozen(kw_only=True)
class OddMessage(ConnectionEvent):
    """The broker sent something that was not expected; the connection lives on.

    Attributes:
        reason: What was odd about it.
        raw: The message's first 1,000 characters, or None for a binary one.
    """

    reason: str
    raw: str | None


@attrs.frozen(kw_only=True)
class SnapshotUnavailable(ConnectionEvent):
    """A channel's state couldn't be asked for; its stream goes on with pushes.

    For an order that is tracked it is told once in a row, and the order is asked about again.

    Attributes:
        channel: The channel's name.
        error: Why.
    """

    channel: str
    error: Exception


@attrs.frozen(kw_only=True)
class SwapResolved(ConnectionEvent):
    """What became of a swap has been found out after all.

    Attributes:
        client_order_id: The id that went along with it.
        outcome: `SwapOutcome.CONFIRMED` or `SwapOutcome.REFUSED`.
        receipt: The broker's receipt, if it is confirmed.
        error: The broker's refusal, if it is refused.
    """

    client_order_id: str
    outcome: SwapOutcome
    receipt: SwapReceipt | None
    error: Exception | None


@attrs.frozen(kw_only=True)
class SwapUnresolved(ConnectionEvent):
    """A swap has left, what became of it isn't known, and nobody asks for it any more.

    Attributes:
        client_order_id: The id that went along with it, to ask for it with.
        reason: Why its outcome isn't known.
    """

    client_order_id: str
    reason: str


@attrs.frozen(kw_only=True)
class ClientStatistics:
    """Counters of one client, from its start.

    Attributes:
        messages_sent: Messages that left, pings apart.
        messages_received: Messages that came.
        odd_messages: Those of them that were not expected.
        requests_waiting: Requests that wait for their turn now.
        requests_in_flight: Requests that were sent and not answered yet.
        channels: Channels that subscriptions want now; what is tracked doesn't count.
        subscriptions: Subscriptions that are open now.
        tracked_orders: Orders that are tracked now, each as often as it is.
    """

    messages_sent: int
    messages_received: int
    odd_messages: int
    requests_waiting: int
    requests_in_flight: int
    channels: int
    subscriptions: int
    tracked_orders: int


def amount_text(value: Amount, place: str) -> str:
    """An amount's text: a text as it was given, so that its zeros stay.

    Args:
        value: The amount.
        place: What it is, for the error.

    Raises:
        TypeError: It is no str, int or Decimal.
        ValueError: It isn't a plain decimal above 0, of at most 60 digits on either side.
    """
    if isinstance(value, bool | float) or not isinstance(value, str | int | Decimal):
        raise TypeError(
            f"{place} must be a str, an int or a Decimal, not {type(value).__name__}: "
            "a float isn't the number that was written"
        )
    if not isinstance(value, str):
        # A huge exponent would print a gigabyte of zeros, and Python prints no huge int.
        value = Decimal(value)
        if not value.is_finite() or abs(value.adjusted()) > 60:
            raise ValueError(f"{place} must be a finite amount of sane size")
        value = format(value, "f")
    if not _PLAIN.fullmatch(value):
        raise ValueError(
            f"{place} must be a plain positive decimal like '0.25', of at most 60 digits on "
            "either side of the point"
        )
    if not value.strip("0."):
        raise ValueError(f"{place} must be more than 0")
    return value
