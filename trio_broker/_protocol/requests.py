"""Requests to the broker: the message of each operation, and how its reply is decoded.

All arguments of users are checked here, before anything is queued. The session moves a request
from stage to stage. The part of the engine that made the request then reads its result.
"""

from __future__ import annotations

import datetime as dt
import enum
import math
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import attrs

from trio_broker._protocol import codec
from trio_broker._protocol.order_ids import Ids, check_client_order_id
from trio_broker.exceptions import BrokerError
from trio_broker.models import Amount, Dialect, SwapEstimate, amount_text, brief

MAX_SLIPPAGE_BPS: Final = 10_000

Lane: TypeAlias = tuple[str, str | None]
CHANNEL: Final = "channel"


class Priority(enum.IntEnum):
    """The order in which requests are sent."""

    AUTH = 0
    SWAP = 1
    VERIFICATION = 2
    READ = 3
    SUBSCRIBE = 4
    BACKGROUND = 5


class Purpose(enum.Enum):
    """Which part of the engine has made a request and handles its end."""

    AUTHENTICATION = enum.auto()
    USER = enum.auto()
    SUBSCRIPTION = enum.auto()
    SNAPSHOT = enum.auto()
    SWAP = enum.auto()
    LOOKUP = enum.auto()
    RECEIPT = enum.auto()


class Stage(enum.Enum):
    """The stage of a request."""

    WAITING = enum.auto()
    IN_FLIGHT = enum.auto()
    ENDED = enum.auto()


class Waiter(Protocol):
    """Something that a task waits for, such as a `trio.Event`."""

    def set(self) -> object:
        """Wake the task."""
        ...


@attrs.define(eq=False)
class Request:
    """One message to the broker, and its result.

    Attributes:
        op: The operation.
        priority: Its place in the order of sending.
        purpose: Which part of the engine handles its end.
        decode: Makes the result from the reply. A `ProtocolError` that it raises becomes `error`.
        deadline: When it is abandoned.
        body: The text of its ``data`` member.
        channel: The channel, of ``subscribe`` and ``unsubscribe``.
        order_id: The order id that ``order_status`` asks for.
        client_order_id: The client order id that ``order_status`` asks for, or that a swap has.
        sign_by: The latest time at which it may be signed, in seconds of the wall clock.
        send_by: The same by the clock of deadlines.
        trade: What an estimate was requested for.
        subject: The channel or the swap that it was made for.
        waiter: Woken at its end.
        lane: Requests whose replies could be confused have the same lane. Set by the session.
        result: The decoded reply.
        reply: The text of the reply, unless it is a large error.
        replied_at: When the reply arrived, by the wall clock.
        error: Why there is no result.
        names: The order id and the client order id that the reply names.
        refusal: The whole text and the machine code of a swap's error.
        names_op: Whether the reply names the operation.
        is_certain: Whether the reply can be to no other request.
        is_late: Whether the reply arrived after the request was abandoned.
        was_sent: Whether any byte of it may have been sent.
        is_abandoned: Whether it has ended for its caller, while one more reply may arrive.
        is_unresolved: Whether it is a swap that was sent and whose outcome may still be found.
    """

    op: str
    priority: Priority
    purpose: Purpose = Purpose.USER
    decode: codec.Decode = attrs.field(kw_only=True, default=lambda _: None)
    deadline: float = attrs.field(kw_only=True, default=math.inf)
    body: str = attrs.field(kw_only=True, default="")
    channel: str | None = attrs.field(kw_only=True, default=None)
    order_id: str | None = attrs.field(kw_only=True, default=None)
    client_order_id: str | None = attrs.field(kw_only=True, default=None)
    sign_by: float = attrs.field(kw_only=True, default=math.inf)
    send_by: float = attrs.field(kw_only=True, default=math.inf)
    trade: Trade | None = attrs.field(kw_only=True, default=None)
    subject: Any = attrs.field(kw_only=True, default=None, repr=False)
    waiter: Waiter | None = attrs.field(kw_only=True, default=None, repr=False)
    lane: Lane = attrs.field(init=False, default=("", None))

    # Not in the repr, which a traceback with locals shows: the broker may echo keys.
    result: Any = attrs.field(init=False, default=None, repr=False)
    reply: str = attrs.field(init=False, default="", repr=False)
    replied_at: dt.datetime | None = attrs.field(init=False, default=None)
    error: BrokerError | None = attrs.field(init=False, default=None)
    names: Ids = attrs.field(init=False, default=(None, None), repr=False)
    refusal: tuple[str, str] = attrs.field(init=False, default=("", ""), repr=False)
    names_op: bool = attrs.field(init=False, default=False)
    is_certain: bool = attrs.field(init=False, default=True)
    is_late: bool = attrs.field(init=False, default=False)
    was_sent: bool = attrs.field(init=False, default=False)

    # For the session. `nonces` has one for each time it was sent; `owed` is how many replies the
    # broker owes it.
    stage: Stage = attrs.field(init=False, default=Stage.WAITING)
    since: float = attrs.field(init=False, default=0.0)
    nonces: list[str] = attrs.field(init=False, factory=list)
    owed: int = attrs.field(init=False, default=0)
    is_abandoned: bool = attrs.field(init=False, default=False)
    is_unresolved: bool = attrs.field(init=False, default=False)
    grace_ends: float = attrs.field(init=False, default=math.inf)
    ambiguity: Any = attrs.field(init=False, default=None, repr=False)


# The broker's own clients and its documentation have different names for these.
_TRADE_NAMES: Final[dict[Dialect, tuple[str, str, str]]] = {
    "clients": ("amountIn", "assetIn", "assetOut"),
    "docs": ("amount", "from", "to"),
}


@attrs.frozen
class Trade:
    """The parameters that an estimate and a swap share."""

    amount_in: Amount
    asset_in: str
    asset_out: str
    filter_sources: Iterable[str] | None = None
    account: str | None = None

    def body(self, dialect: Dialect) -> dict[str, codec.BodyValue]:
        """The members of the message's body, with the names of the dialect.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of its range.
        """
        amount_in, asset_in, asset_out = _TRADE_NAMES[dialect]
        body: dict[str, codec.BodyValue] = {
            amount_in: amount_text(self.amount_in, "amount_in"),
            asset_in: codec.check_text(self.asset_in, "asset_in"),
            asset_out: codec.check_text(self.asset_out, "asset_out"),
        }
        if self.account is not None:
            body["account"] = codec.check_text(self.account, "account")
        if self.filter_sources is not None:
            body["filter"] = _sources(self.filter_sources)
        return body

    def fits(self, estimate: SwapEstimate) -> bool:
        """Whether the route of an estimate can be the route of this trade."""
        route = estimate.route
        if not route:
            return True
        first, last = route[0], route[-1]
        amount = first.amount_in if len(route) == 1 else None
        return (
            (first.from_asset or self.asset_in).casefold() == self.asset_in.casefold()
            and (last.to_asset or self.asset_out).casefold() == self.asset_out.casefold()
            and (amount is None or amount == Decimal(self.amount_in))
        )


def authentication(deadline: float) -> Request:
    """The ``auth`` message."""
    return Request(
        "auth",
        Priority.AUTH,
        Purpose.AUTHENTICATION,
        decode=codec.decode_authenticated,
        deadline=deadline,
    )


def balances(
    deadline: float, priority: Priority = Priority.READ, dialect: Dialect = "clients"
) -> Request:
    """The ``balances`` operation, which has no body, or an empty one."""
    return Request(
        "balances",
        priority,
        decode=codec.decode_balances,
        deadline=deadline,
        body="{}" if dialect == "docs" else "",
    )


def is_sendable(order_id: str) -> bool:
    """Whether the broker can be asked for an order id that it has sent, which may be any text."""
    try:
        codec.check_text(order_id, "order_id")
    except ValueError:
        return False
    return True


def order_status(order_id: str, deadline: float, priority: Priority = Priority.READ) -> Request:
    """The ``order_status`` operation, by the order's id at the broker.

    Raises:
        TypeError: The id isn't a str.
        ValueError: The id is empty, or has a character that can't be sent.
    """
    order_id = codec.check_text(order_id, "order_id")
    body = codec.encode_body({"id": order_id})
    return Request(
        "order_status",
        priority,
        decode=codec.decode_order,
        deadline=deadline,
        body=body,
        order_id=order_id,
    )


def order_lookup(
    client_order_id: str, deadline: float, priority: Priority = Priority.READ
) -> Request:
    """The ``order_status`` operation, by the id that the client gave the order.

    The broker's reply may not repeat that id, so such lookups take turns.

    Raises:
        TypeError: The id isn't a str.
        ValueError: The id is empty, or has a character that can't be sent.
    """
    client_order_id = codec.check_text(client_order_id, "client_order_id")
    body = codec.encode_body({"id": client_order_id})
    return Request(
        "order_status",
        priority,
        decode=codec.decode_order,
        deadline=deadline,
        body=body,
        client_order_id=client_order_id,
    )


def estimate(
    trade: Trade, network: str | None, deadline: float, dialect: Dialect = "clients"
) -> Request:
    """The ``estimate`` operation.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of its range.
    """
    body = trade.body(dialect)
    if network is not None:
        body["network"] = codec.check_text(network, "network")
    return Request(
        "estimate",
        Priority.READ,
        decode=codec.decode_estimate,
        deadline=deadline,
        body=codec.encode_body(body),
        trade=trade,
    )


def swap(
    trade: Trade,
    client_order_id: str,
    slippage_bps: int | None,
    deadline: float,
    dialect: Dialect = "clients",
) -> Request:
    """The ``swap`` operation.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of its range.
    """
    body = trade.body(dialect)
    client_order_id = check_client_order_id(client_order_id)
    body["clientOrderId"] = client_order_id
    if slippage_bps is not None:
        body["slippage_bps"] = _basis_points(slippage_bps)
    return Request(
        "swap",
        Priority.SWAP,
        Purpose.SWAP,
        decode=partial(codec.decode_receipt, client_order_id=client_order_id),
        deadline=deadline,
        body=codec.encode_body(body),
        client_order_id=client_order_id,
    )


def subscription(op: str, channel: str, deadline: float) -> Request:
    """A ``subscribe`` or ``unsubscribe`` message."""
    return Request(op, Priority.SUBSCRIBE, Purpose.SUBSCRIPTION, deadline=deadline, channel=channel)


def _sources(filter_sources: Iterable[str]) -> list[str]:
    if isinstance(filter_sources, str):
        raise TypeError("filter_sources must be a list of names, not one str")
    sources = list(filter_sources)
    if not sources:
        raise ValueError("filter_sources is empty: leave it out for all sources")
    return [
        codec.check_text(source, f"filter_sources[{index}]") for index, source in enumerate(sources)
    ]


def _basis_points(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"slippage_bps must be an int, not {type(value).__name__}")
    if not 0 <= value <= MAX_SLIPPAGE_BPS:
        raise ValueError(f"slippage_bps must be from 0 to {MAX_SLIPPAGE_BPS}, not {brief(value)}")
    return int.__int__(value)  # not an enum, which JSON encoders write in their own ways
