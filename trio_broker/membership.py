"""One channel and its subscribers: what is known of them. Who decides is `channels`.

A *member* is one subscriber. It is told once whether the broker has acknowledged, and from then on
gets messages. What it must be spared is decided here, where they reach it: of an order's messages,
each of which is a whole state, the older one never comes after the newer one, and a hole in the
stream is marked on the first message that follows it.

A member that *yields* asks for less: an order that is tracked, for which pushes are the quicker way
to know, and asking is as good. It gives way where the broker's channels are few, it isn't ended by
a refusal, and no user is told of it.

A *channel* is what several members share. It has one request to the broker under way, and what
that leaves behind is its *standing*: a subscription that was asked for and never answered is
neither there nor not there, and has to be treated as both.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any, Final

import attrs

from trio_broker import operations, wire
from trio_broker.exceptions import BrokerError, ServerError
from trio_broker.models import Gap, Message, Order
from trio_broker.request import Priority, Request, ignore
from trio_broker.subscription import Feed
from trio_broker.wire import Inbound

BALANCES: Final = "balances"
ORDERS: Final = "orders:"


class Standing(enum.Enum):
    """Whether the broker holds a channel, as far as that is known."""

    ABSENT = enum.auto()
    HELD = enum.auto()
    DOUBTFUL = enum.auto()
    """It was asked for, and no answer came: to be had it must be asked for again, and to be rid of
    it must be given up."""

    @classmethod
    def after(cls, request: Request) -> Standing:
        """What a ``subscribe`` or ``unsubscribe`` that was sent, and has ended, leaves behind.

        Args:
            request: The request.
        """
        if request.op == "unsubscribe" or isinstance(request.error, ServerError):
            return cls.ABSENT  # Refusing to give up means that there was nothing to give up.
        return cls.HELD if request.error is None else cls.DOUBTFUL


@attrs.define(eq=False)
class Member:
    """One subscriber of a channel.

    Attributes:
        feed: Where its messages go.
        on_ready: Called once: with None when the broker has acknowledged, or with the error.
        is_ready: Whether the broker has acknowledged.
        wants_snapshot: Whether the channel's state is to be asked for.
        yields: Whether it is an order that is tracked, and no subscription of a user's.
        newest: The newest state of an order that was delivered to it.
        gap: What it has missed and wasn't told of yet.
        has_begun: Whether there can be a gap: it was acknowledged, or something was delivered.
    """

    feed: Feed[Any]
    on_ready: Callable[[BrokerError | None], None]
    wants_snapshot: bool
    yields: bool = False
    is_ready: bool = False
    newest: Order | None = None
    gap: Gap | None = None
    has_begun: bool = False

    def offer(self, message: Message[Any]) -> None:
        """Deliver a message, unless a newer state was delivered before.

        Args:
            message: The message.
        """
        state, newest = message.data, self.newest
        if newest is None or not isinstance(state, Order) or not state.is_older_than(newest):
            self.deliver(message)

    def deliver(self, message: Message[Any]) -> None:
        """Deliver a message, marked with what is missing before it.

        Args:
            message: The message.
        """
        if isinstance(message.data, Order):
            self.newest = message.data
        if self.gap is not None:
            message, self.gap = attrs.evolve(message, gap=self.gap), None
        self.has_begun = True
        self.feed.put(message)

    def miss(self, gap: Gap) -> None:
        """Something may be missing before the next message.

        Args:
            gap: What.
        """
        self.gap = gap.merged(self.gap)
        self.wants_snapshot = True

    def unavailable(self, error: BrokerError) -> bool:  # noqa: ARG002 - others look at it
        """Its channel's state was asked for in vain.

        Args:
            error: Why.

        Returns:
            Whether the user should know.
        """
        return True


@attrs.define(eq=False)
class Channel:
    """One of the broker's channels, and its members.

    Attributes:
        name: Its name.
        members: Its subscribers, in their order. Use `add` and `remove`.
        users: How many of them don't yield.
        standing: Whether the broker holds it.
        request: The ``subscribe`` or ``unsubscribe`` that is under way.
        snapshot: The request for its state that is under way.
        overtaken: Whether a push has come since `snapshot` was sent.
        retries: How often in a row that has happened.
        next_snapshot: Before when its state isn't asked for again.
        on_left: Called when the broker doesn't hold it any more, or it is wanted anew.
        is_declined: Whether a subscription on this connection has brought nothing: those who
            yield don't ask for another.
        is_answered: Whether anything was ever heard of the order.
        by_client: Whether the order's id is a client order id, as far as anybody can tell.
        decode: The body of a push; raises `ProtocolError` if it isn't as documented.
    """

    name: str
    members: dict[Member, None] = attrs.field(factory=dict)
    users: int = 0
    standing: Standing = Standing.ABSENT
    request: Request | None = None
    snapshot: Request | None = None
    overtaken: bool = False
    retries: int = 0
    next_snapshot: float = -math.inf
    on_left: list[Callable[[], None]] = attrs.field(factory=list)
    is_declined: bool = False
    is_answered: bool = False
    by_client: bool = False
    decode: Callable[[Inbound], Any] = attrs.field(init=False)

    @decode.default
    def _decoder(self) -> Callable[[Inbound], Any]:
        if self.name == BALANCES:
            return wire.decode_balances_push
        return wire.decode_order if self.name.startswith(ORDERS) else wire.decode_anything

    def add(self, member: Member) -> None:
        """Add a member.

        Args:
            member: The member.
        """
        self.members[member] = None
        self.users += not member.yields

    def remove(self, member: Member) -> bool:
        """Take a member out.

        Args:
            member: The member.

        Returns:
            Whether it was one.
        """
        was_one = member in self.members
        if was_one:
            del self.members[member]
            self.users -= not member.yields
        return was_one

    @property
    def yields(self) -> bool:
        """Whether it is for orders that are tracked alone."""
        return bool(self.members) and not self.users

    @property
    def is_held(self) -> bool:
        """Whether the broker holds it, and isn't asked to change that."""
        return self.standing is Standing.HELD and self.request is None

    @property
    def is_being_given_up(self) -> bool:
        """Whether what still comes is from before a hole: who is a member now came after it."""
        return self.request is not None and self.request.op == "unsubscribe"

    def snapshot_request(self, deadline: float) -> Request | None:
        """A request for its state, None if there is no such thing.

        Args:
            deadline: When its reply isn't waited for any more.
        """
        if self.name == BALANCES:
            return operations.balances(deadline, Priority.BACKGROUND)
        order_id = self.name.removeprefix(ORDERS)
        if self.by_client:
            return operations.order_lookup(order_id, deadline, Priority.BACKGROUND)
        if order_id and order_id != self.name:
            return operations.order_status(order_id, deadline, Priority.BACKGROUND)
        return None

    def forget(self) -> None:
        """Forget what was on its way over a connection that is gone."""
        for request in (self.request, self.snapshot):
            if request is not None:
                request.on_end = ignore
        self.request = self.snapshot = None
        self.standing = Standing.ABSENT
        self.retries = 0
        self.next_snapshot = -math.inf
        self.is_declined = False

    def wanting(self) -> list[Member]:
        """Those who want its state."""
        return [member for member in self.members if member.wants_snapshot]

    def subscriptions(self) -> list[Member]:
        """Those of its members that don't yield."""
        return [member for member in self.members if not member.yields]

    def tell_left(self) -> None:
        """Tell those who wait until it is given up."""
        callbacks, self.on_left = self.on_left, []
        for on_left in callbacks:
            on_left()
