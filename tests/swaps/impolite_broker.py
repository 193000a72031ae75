"""A model of a broker that does everything that the protocol allows, however impolite.

It receives frames over a stream of bytes, and keeps a ledger of orders with at most one order for
each client order id. It does nothing by itself: the machine chooses what it executes, what it sends
and when. Its replies have the forms that its `Manners` allow.
"""

from __future__ import annotations

import json
from typing import Any, Final

import attrs

Message = dict[str, Any]

WINDOW: Final = 30.0  # a message is accepted for so many seconds after its timestamp, and before
ELSEWHERE: Final = "x1"  # an order of another client, without a client order id
STRANGER: Final = ("x2", "stranger")  # an order of another client

# They show that this swap isn't executed, unless the broker lies.
REFUSALS: Final = (
    "Insufficient balance",
    "Insufficient balance",
    "Invalid amount",
    "Unsupported asset: ETH",
    "No route",
    "Slippage too high",
    "INSUFFICIENT_BALANCE",
)
# They show the same if they name the operation.
AUTHENTICATION: Final = (
    "Request timestamp outside allowed window",
    "Invalid signature",
    "Rate limit exceeded",
)
# They show nothing: the swap may be executed.
DOUBTS: Final = (
    "Internal error",
    "INTERNAL_ERROR",
    "Internal server error",
    "Timeout waiting for execution",
    "SWAP_ERROR: venue timed out",
    "504 Gateway Timeout",
    "Nonce has already been used or is expired",
    "NONCE_ALREADY_USED",
    "Service temporarily unavailable",
    "Insufficient liquidity, the venue timed out",
    "Invalid response from upstream",
    "something went wrong",
)
DUPLICATES: Final = (
    "Duplicate client order id",
    "  duplicate client order id",
    "DUPLICATE_REQUEST",
    "Invalid client order id: already used",
    "Order exists",
)
NOT_FOUND: Final = "Order not found"
BODIES: Final[dict[str, Message]] = {
    "balances": {"balances": []},
    "estimate": {"price": "1", "expectedOut": "1"},
}


def framed(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "big") + data


def take_frames(buffer: bytearray) -> list[str]:
    """Remove the complete frames."""
    texts = []
    while len(buffer) >= 4 and len(buffer) >= 4 + (size := int.from_bytes(buffer[:4], "big")):
        texts.append(bytes(buffer[4 : 4 + size]).decode())
        del buffer[: 4 + size]
    return texts


def move(count: int, source: bytearray, target: bytearray) -> None:
    target += source[:count]
    del source[:count]


@attrs.frozen
class Manners:
    """How impolite the broker of one history is.

    Attributes:
        echoes: Whether replies repeat the nonce of their request.
        names_op: Whether errors name the operation; None if some do.
        names_ids: Whether receipts and lookups have the client order id; None if some do.
        finds_by_client_id: Whether lookups by client order id find anything.
        lies: Whether it executes swaps that it has refused.
        sends_strays: Whether it sends replies that nobody asked for.
        has_takers: Whether other processes use the client's ids.
        wall_clock_steps: Whether the client's wall clock is set.
    """

    echoes: bool = False
    names_op: bool | None = None
    names_ids: bool | None = None
    finds_by_client_id: bool = True
    lies: bool = False
    sends_strays: bool = False
    has_takers: bool = False
    wall_clock_steps: bool = False


@attrs.define(eq=False)
class Link:
    """One connection, with the bytes on their way in both directions.

    Attributes:
        said: The replies that the broker has sent.
        is_tainted: Whether a reply was sent that named nothing while nothing was owed.
    """

    up: bytearray = attrs.field(factory=bytearray)
    at_broker: bytearray = attrs.field(factory=bytearray)
    down: bytearray = attrs.field(factory=bytearray)
    at_client: bytearray = attrs.field(factory=bytearray)
    said: list[Message] = attrs.field(factory=list)
    is_tainted: bool = False

    def send(self, message: Message) -> None:
        self.said.append(message)
        self.down += framed(json.dumps(message))

    def at_client_next(self, count: int) -> list[str]:
        """Bring bytes to the client. Returns the complete messages."""
        move(count, self.down, self.at_client)
        return take_frames(self.at_client)


@attrs.define(eq=False)
class Asked:
    """A complete message that the broker has received.

    Attributes:
        executed: Whether this swap has made an order.
        refused: Whether this swap will never be executed.
        was_in_error: Whether its reply was an error.
    """

    op: str
    name: str
    nonce: str
    at: float
    link: Link = attrs.field(repr=False)
    executed: bool = False
    refused: bool = False
    answered: bool = False
    was_in_error: bool = False


@attrs.define(eq=False)
class Broker:
    """The broker with its ledger.

    Attributes:
        orders: The client order id and the order id of each order.
        taken: The client order ids that another process has used.
        confirmed: The client order ids for which a receipt was made.
        lies: The swaps that were refused and that are executed, or may be.
    """

    manners: Manners = Manners()
    orders: list[tuple[str, str]] = attrs.field(factory=list)
    asked: list[Asked] = attrs.field(factory=list)
    taken: set[str] = attrs.field(factory=set)
    confirmed: set[str] = attrs.field(factory=set)
    lies: set[str] = attrs.field(factory=set)

    def receive(self, link: Link, count: int) -> None:
        move(count, link.up, link.at_broker)
        for text in take_frames(link.at_broker):
            message = json.loads(text)
            data = message.get("data", {})
            name = data.get("clientOrderId") or data.get("id") or ""
            asked = Asked(message["op"], name, message["nonce"], message["ts"] / 1000, link)
            same = [one for one in self.asked if (one.op, one.name) == ("swap", name)]
            assert asked.op != "swap" or not same, f"{name} arrived twice"
            self.asked.append(asked)
            if asked.op == "auth":
                self.send_reply(asked, {"op": "auth", "data": {"status": "authenticated"}})

    # --- The ledger --------------------------------------------------------------------------

    def may_execute(self, asked: Asked, now: float) -> bool:
        is_fresh = abs(now - asked.at) <= WINDOW
        is_open = not (asked.executed or asked.refused or asked.name in self.taken)
        return asked.op == "swap" and is_fresh and is_open

    def execute(self, asked: Asked) -> None:
        asked.executed = True
        self.add_order(asked.name)

    def take(self, name: str) -> None:
        """Another process swaps under this id."""
        self.taken.add(name)
        self.add_order(name)

    def add_order(self, name: str) -> None:
        assert not self.orders_of(name)
        self.orders.append((name, f"o{len(self.orders) + 1}"))

    @property
    def names(self) -> dict[str, str]:
        """The client order id of each order."""
        return {order: name for name, order in self.orders}

    def orders_of(self, name: str) -> list[str]:
        """The orders with a client order ID or order ID."""
        return [order for client_id, order in self.orders if name in {client_id, order}]

    # --- Replies -----------------------------------------------------------------------------

    def send_reply(self, asked: Asked, message: Message) -> None:
        asked.answered = True
        asked.was_in_error = "error" in message
        if self.manners.echoes:
            message = {**message, "nonce": asked.nonce}
        asked.link.send(message)

    def error(self, op: str, text: str, *, names_op: bool) -> Message:
        if self.manners.names_op is not None:
            names_op = self.manners.names_op
        return {"op": op, "error": text} if names_op else {"error": text}

    def receipt(self, name: str, *, names_id: bool) -> Message:
        (order,) = self.orders_of(name)
        data = {"orderId": order, "status": "PENDING"}
        self.confirmed.add(name)
        return {"op": "swap", "data": self._with_id(data, name, names_id)}

    def state(self, asked: Asked, *, names_id: bool, finds: bool | None = None) -> Message:
        """The state of an order that was asked for."""
        if finds is None:
            finds = self.manners.finds_by_client_id
        orders = [ELSEWHERE] if asked.name == ELSEWHERE else self.orders_of(asked.name)
        if not orders or not (finds or asked.name in orders):
            return {"op": "order_status", "error": NOT_FOUND}
        data = {"orderId": orders[0], "status": "FILLED"}
        name = self.names.get(orders[0])
        if name is not None:
            data = self._with_id(data, name, names_id)
        return {"op": "order_status", "data": data}

    def _with_id(self, data: Message, name: str, names_id: bool) -> Message:
        if self.manners.names_ids is not None:
            names_id = self.manners.names_ids
        return {**data, "clientOrderId": name} if names_id else data
