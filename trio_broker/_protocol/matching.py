"""Which request a reply belongs to: the account of what the broker owes. No I/O, no clock.

The broker's messages carry no request id. But it sends one reply to each message, and TCP repeats
nothing. So each message that was sent is a *debt* of one reply. **Only a reply or a new connection
clears a debt.** A timeout, a cancellation or an answer that was found elsewhere doesn't.

**A reply resolves its own request or none.** It is matched by what it names: a nonce, an operation,
a channel or an order. One that names something else than a request isn't the reply to it.

**A reply that fits several debts** is held; these are its *candidates*. Together with other replies
that have candidates in common it forms an `AmbiguousReply`. While candidates get replies of their
own, fewer are left, and the last one gets the reply. If as many replies are held as are owed, and
all are the same text, each candidate gets it. Everything else can't be decided: `session` then
sends each read among them again alone, once, and a swap is looked up.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

import attrs

from trio_broker._protocol import codec
from trio_broker._protocol.codec import Inbound
from trio_broker._protocol.order_ids import Ids, OrderIds, Relation
from trio_broker._protocol.requests import CHANNEL, Lane, Purpose, Request

_CHANNEL_OPS: Final[frozenset[str | None]] = frozenset({"subscribe", "unsubscribe"})
_ONE_IN_FLIGHT: Final[frozenset[str | None]] = frozenset({"auth", "balances", "estimate"})
# The text is documented. The operation stands at its end.
_UNKNOWN_OPERATION: Final = re.compile(r"\W*unknown[ _]operation\W+(\w+)\W*$", re.IGNORECASE)
OPERATIONS: Final = _ONE_IN_FLIGHT | _CHANNEL_OPS | {"swap", "order_status"}
# What they look up by an order id is a receipt's, so it is no client order id.
_OF_RECEIPTS: Final = frozenset({Purpose.LOOKUP, Purpose.RECEIPT})
_ORDERS: Final = "orders:"
NO_NAMES: Final[Ids] = (None, None)


@attrs.frozen(eq=False)
class Reply:
    """A message that is a reply, and when it arrived.

    Attributes:
        message: Its envelope.
        text: Its text.
        at: When it arrived, by the wall clock.
        op: The operation that it names, in its text at least.
        names: The order id and the client order id that it names.
    """

    # Not in the repr, which a traceback with locals shows: the broker may echo keys.
    message: Inbound = attrs.field(repr=False)
    text: str = attrs.field(repr=False)
    at: dt.datetime
    op: str | None
    names: Ids = attrs.field(repr=False)

    @classmethod
    def of(cls, message: Inbound, text: str, at: dt.datetime) -> Reply:
        """Make one."""
        op = message.op or _operation_in(message.error or "")
        has_names = op in {"swap", "order_status", None}
        return cls(
            message, text, at, op, codec.order_names(message, text) if has_names else NO_NAMES
        )


def _operation_in(error: str) -> str | None:
    named = _UNKNOWN_OPERATION.match(error)
    return named[1].lower() if named and named[1].lower() in OPERATIONS else None


@attrs.define(eq=False)
class AmbiguousReply:
    """Replies, and the requests that they may belong to.

    Attributes:
        candidates: All the requests.
        replies: The replies, each with those of the requests that it may belong to.
        held_until: When waiting for other replies to decide it ends.
        was_split: Whether its reads were sent again.
    """

    candidates: dict[Request, None]
    replies: dict[Reply, set[Request]]
    held_until: float = 0.0
    was_split: bool = False

    @classmethod
    def merged(cls, candidates: list[Request], reply: Reply) -> AmbiguousReply:
        """Merge a new reply with the ambiguous replies that its candidates already have."""
        earlier: dict[AmbiguousReply, None] = dict.fromkeys(
            request.ambiguity for request in candidates if request.ambiguity is not None
        )
        merged = cls(dict.fromkeys(candidates), {})
        for one in earlier:
            merged.candidates |= one.candidates
            merged.replies |= one.replies
            merged.was_split |= one.was_split
        merged.replies[reply] = set(candidates)
        for request in merged.candidates:
            request.ambiguity = merged
        return merged

    @property
    def outstanding(self) -> int:
        """How many replies the candidates are still owed."""
        return sum(request.owed for request in self.candidates) - len(self.replies)

    @property
    def last(self) -> Reply:
        """The newest reply."""
        return next(reversed(self.replies))

    @property
    def is_one_text(self) -> bool:
        """Whether all replies say the same."""
        return len({reply.text for reply in self.replies}) == 1

    def certainly_answered(self) -> list[Request]:
        """The requests that certainly have one of the replies, as the others are owed fewer.

        Abandoned ones are left out.
        """
        outstanding = self.outstanding  # Once: hundreds of lookups may be in flight.
        return [
            request
            for request in self.candidates
            if request.owed > outstanding and not request.is_abandoned
        ]

    def reply_to(self, request: Request) -> Reply | None:
        """The newest reply that may belong to a request."""
        fitting = (one for one in reversed(self.replies) if request in self.replies[one])
        return next(fitting, None)

    def take_certain(self) -> tuple[Request, Reply] | None:
        """Remove and return a reply that only one request is left for, with that request.

        No reply is ever left without a request: no more replies are held than are owed.
        """
        for reply, requests in self.replies.items():
            if len(requests) == 1:
                del self.replies[reply]
                return requests.pop(), reply
        return None

    def remove(self, request: Request) -> None:
        """A request has got all replies that it was owed."""
        request.ambiguity = None
        del self.candidates[request]
        for requests in self.replies.values():
            requests.discard(request)

    def dissolve(self) -> list[Request]:
        """End the ambiguity. Returns the candidates."""
        for request in self.candidates:
            request.ambiguity = None
        return list(self.candidates)


class Debts:
    """The requests that are owed a reply on this connection.

    Attributes:
        owed: The requests that are owed a reply, in the order of sending.
        holders: The request that has each lane.
    """

    def __init__(self, order_ids: OrderIds) -> None:
        self.owed: dict[Request, None] = {}
        self.holders: dict[Lane, Request] = {}
        self._order_ids = order_ids
        self._released: dict[Request, None] = {}
        self._channels: set[str] = set()
        self._echoes_nonces = False

    def add(self, request: Request) -> None:
        """Add a request that is sent, perhaps again."""
        request.owed += 1
        self.owed[request] = None
        self.holders[request.lane] = request
        if request.channel is not None:
            self._channels.add(request.channel)

    def pay(self, request: Request, replies: int = 1) -> None:
        """Count replies that are certainly to a request."""
        request.owed -= replies
        if not request.owed:
            self.owed.pop(request, None)
            self._released.pop(request, None)

    def free_lane(self, request: Request) -> None:
        """Let another request have the lane. The debt stays, which only a swap may have then."""
        del self.holders[request.lane]
        if request.owed:
            self._released[request] = None

    def reconnected(self) -> None:
        """Forget the last connection: it can bring no reply any more."""
        self.owed.clear()
        self._order_ids.reconnected()
        self._released.clear()
        self._channels.clear()
        self._echoes_nonces = False

    @property
    def in_flight(self) -> int:
        """How many requests are owed a reply and have their lane."""
        return len(self.owed) - len(self._released)

    def is_lane_owed(self, lane: Lane) -> bool:
        """Whether the request that has a lane is owed a reply."""
        holder = self.holders.get(lane)
        return holder is not None and holder.owed > 0

    # --- Matching --------------------------------------------------------------------------

    def candidates(self, reply: Reply) -> list[Request]:
        """The requests that a reply can belong to, by what it names."""
        message, op = reply.message, reply.op
        if message.nonce:
            named = next((one for one in self.owed if message.nonce in one.nonces), None)
            if named is not None:
                self._echoes_nonces = True
                fits = op in {named.op, None} and self._may_answer(named, reply)
                return [named] if fits else []
            if self._echoes_nonces:
                return []  # It is the reply to a request that has ended.
        if op in _CHANNEL_OPS and message.ch:
            return self._in_lane((CHANNEL, message.ch), op)
        if op in _ONE_IN_FLIGHT:
            return [] if message.ch else self._in_lane((str(op), None), op)
        if op == "order_status" and any(reply.names):
            return self._lookups(reply)
        return [
            request
            for request in self.owed
            if (op is None or request.op == op)
            and (not message.ch or request.channel == message.ch)
            and self._may_answer(request, reply)
        ]

    def _in_lane(self, lane: Lane, op: str | None) -> list[Request]:
        """The request that has a lane, if a reply to this operation can be to it."""
        # A thousand may be in flight together: don't look at all of them.
        holder = self.holders.get(lane)
        return [holder] if holder is not None and holder.owed and holder.op == op else []

    def _may_answer(self, request: Request, reply: Reply) -> bool:
        """Whether a reply can be to a request, by the order that it names."""
        return not any(reply.names) or self._relation(request, reply) is not Relation.OTHER

    def _relation(self, request: Request, reply: Reply) -> Relation:
        """Whether the order that a reply names is the one that a request is about."""
        order_id, client_order_id = reply.names
        own = request.client_order_id
        asked = request.order_id
        if request.channel is not None and request.channel.startswith(_ORDERS):
            asked = request.channel.removeprefix(_ORDERS)
        if own is not None and order_id == own and request.op == "order_status":
            relation = Relation.SAME  # It may be either of the order's ids.
        elif own is not None and self._may_be_order_id(request, own):
            relation = self._order_ids.relation(own, reply.names)
        elif own is not None:  # a swap, or a lookup of one
            is_own = own in {client_order_id, self._order_ids.owner(order_id or "")}
            relation = Relation.SAME if is_own else Relation.UNKNOWN
            if not self._order_ids.may_be_swap(own, reply.names):
                relation = Relation.OTHER
        elif asked is None:
            relation = Relation.OTHER
        elif order_id and request.purpose in _OF_RECEIPTS:
            relation = Relation.SAME if order_id == asked else Relation.OTHER
        else:
            relation = self._order_ids.relation(asked, reply.names)
        # An error names what was asked for.
        is_vague = relation is Relation.UNKNOWN and reply.message.error
        return Relation.OTHER if is_vague else relation

    def _may_be_order_id(self, request: Request, own: str) -> bool:
        """Whether an order is looked up by its order id as if that were a client order id."""
        if request.op != "order_status":
            return False
        return request.purpose is Purpose.SNAPSHOT or self._order_ids.is_order_id(own)

    def _lookups(self, reply: Reply) -> list[Request]:
        """The lookups that a reply can belong to, by the order that it names."""
        named = [self.holders.get(("order_status", name)) for name in reply.names if name]
        holders = [holder for holder in named if holder is not None and holder.owed]
        if holders and holders[0].ambiguity is None:
            # It is right for any lookup of this order, so it needn't be decided whose it is.
            return holders[:1]
        relations = {
            request: self._relation(request, reply)
            for request in self.owed
            if request.op == "order_status"
        }
        if holders:
            return [one for one, relation in relations.items() if relation is not Relation.OTHER]
        same = [one for one, relation in relations.items() if relation is Relation.SAME]
        if same or (len(self.owed) > 1 and self._is_known(reply.names)):
            return same
        return [one for one, relation in relations.items() if relation is Relation.UNKNOWN]

    def _is_known(self, names: Ids) -> bool:
        return any(name in self._order_ids for name in names if name)

    def is_known(self, reply: Reply) -> bool:
        """Whether a reply that nobody is owed names an order, a channel or a nonce that is known.

        Then it is certain that it belongs to nothing that is in flight.
        """
        message = reply.message
        if message.nonce and self._echoes_nonces:
            return True
        if message.ch and message.ch in self._channels:
            return True
        return self._is_known(reply.names) or any(
            f"{_ORDERS}{name}" in self._channels for name in reply.names if name
        )


def note_order(order_ids: OrderIds, request: Request, names: Ids) -> None:
    """Remember the order that a lookup has found.

    If the reply leaves the client order id out, the order belongs to the id that was looked up. If
    that is its own order id, the order is noted without one, unless a swap is looked up by the
    order of a receipt: that asks whose it is, and must not make it another's. A receipt itself
    isn't noted, because `SwapRegistry` decides whose it is. Nor is an error, which may name an
    order that doesn't exist.
    """
    order_id, client_order_id = names
    if not order_id or request.op != "order_status":
        return
    if client_order_id is not None:
        order_ids.note(order_id, client_order_id)
    elif order_ids.owner(order_id) is None:
        asked = request.client_order_id or request.order_id
        if asked != order_id:
            order_ids.note(order_id, asked)
        elif request.purpose not in {Purpose.LOOKUP, Purpose.RECEIPT}:
            order_ids.note(order_id, None)
