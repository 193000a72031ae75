"""Which request a reply belongs to. No I/O, no clock.

The broker's messages carry no request id. The broker owes each request one reply for each time it
was sent. A reply is matched by what it names: a nonce, an operation, a channel or an order. **A
reply resolves its own request or none.** A reply that fits no request is reported as unexpected.

**A reply that names nothing** belongs to one of the requests that are owed a reply. These are its
*candidates*; together with the reply they form an `AmbiguousReply`. Each read among them is sent
again alone, once, and gets the reply to that. The number of replies shows which ones may still
arrive. Until they have, their requests keep their lanes, so that the next request can't get one.

**A reply that the broker sends twice** can't be recognized if it names no nonce, order or channel.
The second copy is then taken for the reply to the next request that it fits. So a refusal without
names that is sent twice also refuses the next swap. TCP duplicates nothing, and the broker is
assumed to send one reply to each request.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import attrs

from trio_broker._protocol import codec
from trio_broker._protocol.codec import Inbound
from trio_broker._protocol.requests import CHANNEL, Lane, Priority, Request
from trio_broker.models import Order, SwapReceipt

_MAX_REMEMBERED: Final = 10_000
_CHANNEL_OPS: Final = frozenset({"subscribe", "unsubscribe"})
_ONE_IN_FLIGHT: Final = frozenset({"auth", "balances", "estimate", "swap"})
_BY_CLIENT_ORDER_ID: Final[Lane] = ("order_status", None)


@attrs.define(eq=False)
class AmbiguousReply:
    """Replies that name no request, and the requests that they may belong to.

    Attributes:
        candidates: The requests.
        replies: The replies, each with its text.
    """

    candidates: dict[Request, None]
    replies: list[tuple[Inbound, str]]

    @classmethod
    def merged(cls, candidates: list[Request], message: Inbound, text: str) -> AmbiguousReply:
        """Merge a new reply with the ambiguous replies that its candidates already have."""
        earlier: dict[AmbiguousReply, None] = dict.fromkeys(
            request.ambiguity for request in candidates if request.ambiguity is not None
        )
        merged = cls(dict.fromkeys(candidates), [])
        for one in earlier:
            merged.candidates |= one.candidates
            merged.replies += one.replies
        merged.replies.append((message, text))
        for request in merged.candidates:
            request.ambiguity = merged
        return merged

    @property
    def outstanding(self) -> int:
        """The number of replies that the candidates are still owed."""
        owed = sum(len(request.nonces) - request.replies for request in self.candidates)
        return owed - len(self.replies)

    def dissolve(self) -> list[Request]:
        """Count the replies for the candidates, once it is certain which is whose.

        It is certain if every reply has arrived, or if one candidate is left. They are not counted
        for a swap: an error that the broker sent twice would give a wrong outcome.

        Returns:
            The candidates, or nothing if it isn't certain yet.
        """
        all_came = self.outstanding <= 0
        if len(self.candidates) > 1 and not all_came:
            return []
        for request in self.candidates:
            request.ambiguity = None
            if request.priority is not Priority.SWAP:
                sent = len(request.nonces)
                request.replies = sent if all_came else request.replies + len(self.replies)
        return list(self.candidates)

    def answer(self) -> tuple[Inbound, str] | None:
        """The reply that is right for every candidate, if there is one."""
        if len(self.candidates) == 1 or len({text for _, text in self.replies}) == 1:
            return self.replies[-1]
        return None


class PendingReplies:
    """The requests that were sent and are owed a reply.

    Attributes:
        in_flight: The requests, in the order of sending.
        holders: The request in flight in each lane.
    """

    def __init__(self) -> None:
        self.in_flight: dict[Request, None] = {}
        self.holders: dict[Lane, Request] = {}
        self._echoes_nonces = False
        # By order id: the client order id of its swap, or of the lookup that found it.
        self._swapped: OrderedDict[str, str | None] = OrderedDict()
        self._looked_up: OrderedDict[str, str | None] = OrderedDict()

    def add(self, request: Request) -> None:
        """Add a request that is sent."""
        self.in_flight[request] = None
        self.holders[request.lane] = request

    def clear(self, request: Request) -> None:
        """Remove a request."""
        del self.in_flight[request]
        del self.holders[request.lane]

    def reconnected(self) -> None:
        """Forget what was learned about the broker on the last connection."""
        self._echoes_nonces = False
        self._looked_up.clear()

    def candidates(self, message: Inbound) -> list[Request]:
        """The requests that a reply can belong to, by what it names."""
        if message.nonce:
            named = next((one for one in self.in_flight if message.nonce in one.nonces), None)
            if named is not None:
                self._echoes_nonces = True
                return [named] if message.op in {named.op, None, ""} else []
            if self._echoes_nonces:
                return []  # It is the reply to a request that has ended.
        if message.op in _CHANNEL_OPS and message.ch:
            # A thousand may be in flight together: find it by its lane.
            holder = self.holders.get((CHANNEL, message.ch))
            is_meant = holder is not None and holder.op == message.op and holder.is_owed
            return [holder] if holder is not None and is_meant else []
        if message.op in _ONE_IN_FLIGHT:
            holder = self.holders.get((message.op or "", None))
            is_meant = holder is not None and holder.is_owed and not message.ch
            return [holder] if holder is not None and is_meant else []
        if message.op == "order_status":
            order_id, client_order_id = codec.order_names(message)
            if order_id or client_order_id:
                return self._lookups(order_id, client_order_id)
        return [
            request
            for request in self.in_flight
            if request.is_owed
            and (not message.op or request.op == message.op)
            and (not message.op or not message.ch or request.channel == message.ch)
        ]

    def _lookups(self, order_id: str | None, client_order_id: str | None) -> list[Request]:
        """The lookups that a reply can belong to, by the order that it names."""
        for name in (order_id, client_order_id):
            named = self.holders.get(("order_status", name)) if name else None
            if named is not None and named.is_owed:
                return [named]
        # No lookup in flight asks for the named order by that id.
        by_client = self.holders.get(_BY_CLIENT_ORDER_ID)
        if by_client is None or not by_client.is_owed:
            return []
        known = client_order_id or self._looked_up.get(order_id or "", by_client.client_order_id)
        if known != by_client.client_order_id:
            return []  # It is another order.
        if client_order_id:
            return [by_client]
        # Lookups of the same id ask the same question: the reply is right for each of them.
        unverified = self._unverified_lookups()
        if all(one.order_id == by_client.client_order_id for one in unverified):
            return [by_client]
        return [by_client, *unverified]

    def _unverified_lookups(self) -> list[Request]:
        """The lookups by an order id that may in fact be a client order id.

        The broker accepts a client order id there too. Its reply then names another id than was
        asked for.
        """
        return [
            request
            for request in self.in_flight
            if request.order_id is not None
            and request.order_id not in self._swapped
            and request.order_id not in self._looked_up
            and request.is_owed
        ]

    def take_order(self, request: Request, message: Inbound, result: Any) -> bool:
        """Note the order that a reply names.

        Returns:
            False if it can't be the reply to this request, because the order is another swap's.
        """
        if request.client_order_id is not None and not self._is_own(request, result):
            return False
        if request.op == "order_status":
            order_id, client_order_id = codec.order_names(message)
            if order_id:
                known = client_order_id or request.client_order_id or self._swapped.get(order_id)
                _remember(self._looked_up, order_id, known or self._looked_up.get(order_id))
        return True

    def _is_own(self, request: Request, result: Any) -> bool:
        name = request.client_order_id
        if name is None or not isinstance(result, SwapReceipt | Order) or not result.order_id:
            return True
        if isinstance(result, Order) and name == result.order_id:
            return True  # The id of the lookup may be either of the order's ids.
        if self._swapped.get(result.order_id, name) != name:
            return False
        _remember(self._swapped, result.order_id, name)
        return True


def _remember(memory: OrderedDict[str, str | None], key: str, value: str | None) -> None:
    memory[key] = value
    if len(memory) > _MAX_REMEMBERED:
        memory.popitem(last=False)
