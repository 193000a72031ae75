"""The two ids of an order: the broker's order id, and the client order id of its swap.

The broker may leave out either. `OrderIds` keeps the ids of the client's own swaps. Orders are
completed with them before users see them. They are never used to match a reply.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import attrs

from trio_broker._protocol.codec import check_text
from trio_broker.models import Order

Ids: TypeAlias = tuple[str | None, str | None]

MAX_CLIENT_ORDER_ID: Final = 64
# Client order ids that this library makes begin with this. No order id of the broker does.
CLIENT_ORDER_ID_PREFIX: Final = "tb-"


def check_client_order_id(client_order_id: str) -> str:
    """Check a client order id.

    Returns:
        The id, as a plain str.

    Raises:
        TypeError: It isn't a str.
        ValueError: It is empty, too long, or has a character that can't be sent.
    """
    client_order_id = check_text(client_order_id, "client_order_id")
    if len(client_order_id) > MAX_CLIENT_ORDER_ID:
        raise ValueError(
            f"client_order_id has {len(client_order_id)} characters, and may have "
            f"{MAX_CLIENT_ORDER_ID}"
        )
    return client_order_id


def default_ids(name: str) -> Ids:
    """Order id and client order id of an id: only its prefix shows which of the two it is."""
    return (None, name) if name.startswith(CLIENT_ORDER_ID_PREFIX) else (name, None)


class OrderIds:
    """The known pairs of order id and client order id.

    Attributes:
        by_name: Each pair, by each of its two ids.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Ids] = {}

    def add(self, client_order_id: str, order_id: str | None = None) -> None:
        """Add a swap, with its order id once that is known."""
        if order_id is None and self.order_id(client_order_id) is not None:
            return  # An earlier swap with this id has an order.
        ids = (order_id, client_order_id)
        if order_id != client_order_id:  # else it was looked up by an id of unknown kind
            self.by_name[client_order_id] = ids
            if order_id is not None:
                self.by_name[order_id] = ids

    def add_all(self, ids: Iterable[tuple[str, str]]) -> None:
        """Add swaps of earlier processes: pairs of client order id and order id."""
        for client_order_id, order_id in ids:
            self.add(client_order_id, order_id)

    def forget(self, client_order_id: str) -> None:
        """Remove a swap that has no order, or that is too old."""
        order_id, _ = self.by_name.pop(client_order_id, (None, None))
        if order_id is not None:
            self.by_name.pop(order_id, None)

    def order_id(self, client_order_id: str) -> str | None:
        """The order id for a client order id, None if it isn't known."""
        order_id, own = self.by_name.get(client_order_id, (None, None))
        return order_id if own == client_order_id else None

    def complete(self, order: Order, asked: str) -> Order:
        """Add the ids that the broker left out, if they are known."""
        order_id, client_order_id = self.by_name.get(asked) or default_ids(asked)
        if order.order_id and order.order_id != order_id:
            # The order was looked up by its client order id, or it is another order.
            known = self.by_name.get(order.order_id)
            _, client_order_id = known or (None, None if order_id else client_order_id)
        return with_ids(order, order.order_id or order_id, order.client_order_id or client_order_id)


def with_ids(order: Order, order_id: str | None, client_order_id: str | None) -> Order:
    """An order with these ids; the same object if it has them already."""
    if (order.order_id, order.client_order_id) == (order_id, client_order_id):
        return order
    return attrs.evolve(order, order_id=order_id, client_order_id=client_order_id)
