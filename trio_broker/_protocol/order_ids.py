"""The two ids of an order: the broker's order id, and the client order id of its swap.

The broker may leave out either. `OrderIds` keeps the ids of the client's own swaps, those of
earlier processes included, and the ids that replies to lookups have named. Orders are completed
with them before users see them. And a reply that names an order is compared with them: it isn't
the reply to a request for another order.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict
from typing import Final, TypeAlias, TypeVar

import attrs

from trio_broker._protocol.codec import check_text
from trio_broker.models import Order

_V = TypeVar("_V")
Ids: TypeAlias = tuple[str | None, str | None]

MAX_CLIENT_ORDER_ID: Final = 64
# Client order ids that this library makes begin with this. No order id of the broker does.
CLIENT_ORDER_ID_PREFIX: Final = "tb-"
_MAX_SEEN: Final = 10_000
_DIGITS: Final = re.compile(r"[0-9]+")


class Relation(enum.Enum):
    """Whether a reply is about the order that was asked for."""

    SAME = enum.auto()
    OTHER = enum.auto()
    UNKNOWN = enum.auto()


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
        # What replies have named: orders with their client order ids, and on this connection also
        # orders without.
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._heard_of: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self.by_name or name in self._owners or name in self._seen

    def reconnected(self) -> None:
        """Forget the orders without a client order id: no late reply can name them any more."""
        self._seen.clear()

    def add(self, client_order_id: str, order_id: str | None = None) -> None:
        """Add a swap, with its order id once that is known."""
        if order_id is None and self.order_id(client_order_id) is not None:
            return  # An earlier swap with this id has an order.
        ids = (order_id, client_order_id)
        if order_id != client_order_id:  # else it was looked up by an id of unknown kind
            self.by_name[client_order_id] = ids
            if order_id is not None:
                self.by_name[order_id] = ids

    def forget(self, client_order_id: str) -> None:
        """Remove a swap that has no order, or that is too old."""
        for name in (self.order_id(client_order_id), client_order_id):
            # Its id may also be the order id of another swap.
            if name is not None and self.by_name.get(name, (None, None))[1] == client_order_id:
                del self.by_name[name]

    def order_id(self, client_order_id: str) -> str | None:
        """The order id for a client order id, None if it isn't known."""
        order_id, own = self.by_name.get(client_order_id, (None, None))
        return order_id if own == client_order_id else None

    def is_order_id(self, name: str) -> bool:
        """Whether an id is known as the order id of an order."""
        return (
            name in self._owners or name in self._seen or self.by_name.get(name, ("",))[0] == name
        )

    def is_heard_of(self, name: str) -> bool:
        """Whether an id is of one of the client's swaps, or of an order that a reply has named."""
        return name in self.by_name or name in self._heard_of

    def note(self, order_id: str, client_order_id: str | None) -> None:
        """Remember an order that a reply has named."""
        for name in filter(None, (order_id, client_order_id)):
            _remember(self._heard_of, name, None)
        if client_order_id is not None:
            _remember(self._owners, order_id, client_order_id)
        else:
            _remember(self._seen, order_id, None)

    def owner(self, order_id: str) -> str | None:
        """The client order id of an order, None if it isn't known."""
        own, client_order_id = self.by_name.get(order_id, (None, None))
        return client_order_id if own == order_id else self._owners.get(order_id)

    def may_be_swap(self, client_order_id: str, names: Ids) -> bool:
        """Whether a reply that names these ids can be about the swap with this id."""
        order_id, named = names
        if named and named != client_order_id:
            return False
        if not order_id:
            return True
        own = self.order_id(client_order_id)
        if own is not None and own != order_id:
            return False
        owner = self.owner(order_id)
        if owner is None:
            # If it is known already, it is the order of something else.
            return named is not None or order_id not in self._seen
        return owner == client_order_id

    def relation(self, asked: str, names: Ids) -> Relation:
        """Whether a reply that names these ids is about the order that was asked for.

        What was asked for may be either of its ids. Order ids of one broker have one form: if an
        id that differs from the one asked for in its digits only is named, it is another order.
        """
        if asked in names:
            return Relation.SAME
        if self.by_name.get(asked, (None, None))[1] == asked:
            if not self.may_be_swap(asked, names):
                return Relation.OTHER
            is_same = bool(names[0]) and self.owner(str(names[0])) == asked
            return Relation.SAME if is_same else Relation.UNKNOWN
        # Its order id, or an id of unknown kind.
        order_id, client_order_id = names
        if order_id:
            owner = self.owner(order_id)
            is_other = client_order_id or asked in self or _form(asked) == _form(order_id)
            known = asked if owner == asked else order_id if owner or is_other else None
        else:
            known = self.order_id(client_order_id or "")
        if known is None:
            return Relation.UNKNOWN
        return Relation.SAME if known == asked else Relation.OTHER

    def complete(self, order: Order, asked: str) -> Order:
        """Add the ids that the broker left out, if they are known."""
        order_id, client_order_id = self.by_name.get(asked) or default_ids(asked)
        if order.order_id and order.order_id != order_id:
            # The order was looked up by its client order id, or it is another order.
            known = self.by_name.get(order.order_id)
            _, client_order_id = known or (None, None if order_id else client_order_id)
        return with_ids(order, order.order_id or order_id, order.client_order_id or client_order_id)


def _remember(memory: OrderedDict[str, _V], key: str, value: _V) -> None:
    memory[key] = value
    if len(memory) > _MAX_SEEN:
        memory.popitem(last=False)


def _form(name: str) -> str:
    return _DIGITS.sub("0", name)


def with_ids(order: Order, order_id: str | None, client_order_id: str | None) -> Order:
    """An order with these ids; the same object if it has them already."""
    if (order.order_id, order.client_order_id) == (order_id, client_order_id):
        return order
    return attrs.evolve(order, order_id=order_id, client_order_id=client_order_id)
