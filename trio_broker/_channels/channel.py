"""The state of one channel and of its subscribers; `registry` decides what to do about it.

A channel has two kinds of subscribers: the *subscriptions* of users, and *trackers*, which are
tracked orders. A tracker can also poll its order, so a push is only the quicker way. It gives its
slot up when slots are scarce, and a refused ``subscribe`` doesn't end it.

A channel has one request to the broker in flight. When that has ended, the channel's *remote state*
says whether the broker has the subscription. It is unknown if no answer came.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final, TypeAlias

import attrs

from trio_broker._protocol import codec, requests
from trio_broker._protocol.effects import Delivery, Sink
from trio_broker._protocol.order_ids import Ids, default_ids
from trio_broker._protocol.requests import Priority, Purpose, Request, Waiter
from trio_broker.exceptions import BrokerError, OrderNotFoundError, ServerError
from trio_broker.models import Dialect, Gap, Message, Order

BALANCES: Final = "balances"
ORDERS: Final = "orders:"


def oddity(state: Order, newest: Order) -> str | None:
    """Why a state that follows another one of its order must be reported; None if it needn't."""
    if state.is_final and newest.is_final and state.status != newest.status:
        return f"a final order changes from {newest.status} to {state.status}"
    if state.filled_out is None or newest.filled_out is None or not state.is_older_than(newest):
        return None
    if state.filled_out < newest.filled_out:
        return "it is older than the order's last state, and has a smaller fill: it is left out"
    return None


class RemoteState(enum.Enum):
    """Whether the broker has the subscription to a channel."""

    UNSUBSCRIBED = enum.auto()
    SUBSCRIBED = enum.auto()
    UNKNOWN = enum.auto()
    """A ``subscribe`` was sent, and no answer came. It takes another request to be sure."""

    @classmethod
    def after(cls, request: Request) -> RemoteState:
        """The state after a ``subscribe`` or ``unsubscribe`` that was sent and has ended."""
        if request.op == "unsubscribe" or isinstance(request.error, ServerError):
            return cls.UNSUBSCRIBED  # A refused 'unsubscribe' means that there was no subscription.
        return cls.SUBSCRIBED if request.error is None else cls.UNKNOWN


@attrs.define(eq=False)
class Subscriber:
    """A user's subscription, or a tracked order.

    Attributes:
        sink: Where its messages go.
        wants_snapshot: Whether the channel's state must be requested for it.
        waiter: Woken when the broker has answered a user's ``subscribe``; None after that.
        error: Why the `subscribe` failed.
        newest: The newest state of an order that was delivered.
        gap: What was missed and hasn't been reported yet.
        has_begun: Whether messages can be missed: it was acknowledged, or has had a message.
        is_unavailable: For a tracked order: whether the last request for its state failed.
    """

    sink: Sink
    wants_snapshot: bool
    waiter: Waiter | None = None
    error: BrokerError | None = attrs.field(init=False, default=None)
    newest: Order | None = attrs.field(init=False, default=None)
    gap: Gap | None = attrs.field(init=False, default=None)
    has_begun: bool = attrs.field(init=False, default=False)
    is_unavailable: bool = attrs.field(init=False, default=False)

    @property
    def is_answered(self) -> bool:
        """Whether its ``subscribe`` has been answered or has failed."""
        return self.waiter is None

    def delivery(self, message: Message[Any]) -> Delivery:
        """A message for it, marked with what was missed before."""
        if isinstance(message.data, Order):
            self.newest = message.data
        if self.gap is not None:
            message, self.gap = attrs.evolve(message, gap=self.gap), None
        self.has_begun = True
        return self.sink, [message]

    def miss(self, gap: Gap) -> None:
        """Report a gap with the next message, and repair it by a snapshot."""
        self.gap = gap.merged(self.gap)
        self.wants_snapshot = True


# For a tracked order: a message, or None if a request for its state has failed, or the error if the
# broker has certainly said that it doesn't know the order.
Update: TypeAlias = Message[Any] | OrderNotFoundError | None
BackgroundUpdate: TypeAlias = tuple[Subscriber, Update]


@attrs.define(eq=False)
class Channel:
    """One of the broker's channels, and its subscribers.

    Attributes:
        name: Its name.
        is_client_id: Whether the order's id seems to be a client order id.
        remote_state: Whether the broker has the subscription.
        subscriptions: The users' subscriptions, in their order.
        trackers: The tracked orders.
        request: The ``subscribe`` or ``unsubscribe`` that is under way.
        snapshot: The request for its state that is under way.
        overtaken: Whether a push has come since `snapshot` was sent.
        retries: How often in a row that has happened.
        next_snapshot: The next request for its state is sent no earlier.
        left_waiters: Woken when the broker has dropped the channel, or when it is wanted again.
        subscribe_failed: Whether a ``subscribe`` on this connection has failed. Trackers don't try
            again then.
        has_state: Whether any state of it has ever come.
        was_background: Whether it had trackers only when its last subscriber left.
        ids: The ids of the order that its name gives; None if it isn't an order's channel.
        decode: Decodes the body of a push; raises `ProtocolError` if it can't be read. For an order
            it takes the ids that the body may leave out.
    """

    name: str
    is_client_id: bool = False
    remote_state: RemoteState = RemoteState.UNSUBSCRIBED
    subscriptions: dict[Subscriber, None] = attrs.field(init=False, factory=dict)
    trackers: dict[Subscriber, None] = attrs.field(init=False, factory=dict)
    request: Request | None = attrs.field(init=False, default=None)
    snapshot: Request | None = attrs.field(init=False, default=None)
    overtaken: bool = attrs.field(init=False, default=False)
    retries: int = attrs.field(init=False, default=0)
    next_snapshot: float = attrs.field(init=False, default=-math.inf)
    left_waiters: list[Waiter] = attrs.field(init=False, factory=list)
    subscribe_failed: bool = attrs.field(init=False, default=False)
    has_state: bool = attrs.field(init=False, default=False)
    was_background: bool = attrs.field(init=False, default=False)
    ids: Ids | None = attrs.field(init=False, default=None)
    decode: codec.Decode = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.name == BALANCES:
            self.decode = codec.decode_balances_push
        elif self.name.startswith(ORDERS):
            self.decode = codec.decode_order
            self.ids = default_ids(self.name.removeprefix(ORDERS))
        else:
            self.decode = codec.decode_anything

    @property
    def subscribers(self) -> list[Subscriber]:
        """The subscriptions and the trackers."""
        return [*self.subscriptions, *self.trackers]

    def remove(self, subscriber: Subscriber) -> None:
        """Take a subscriber out, if it is still there."""
        self.was_background = self.is_background
        self.subscriptions.pop(subscriber, None)
        self.trackers.pop(subscriber, None)

    @property
    def is_background(self) -> bool:
        """Whether it has trackers only."""
        return bool(self.trackers) and not self.subscriptions

    @property
    def is_simple(self) -> bool:
        """Whether it has one subscription, and a push matters to nothing else."""
        if len(self.subscriptions) != 1 or self.trackers or self.snapshot is not None:
            return False
        (subscriber,) = self.subscriptions
        return subscriber.gap is None and self.request is None

    @property
    def is_subscribed(self) -> bool:
        """Whether the broker has the subscription, and no request is about to change that."""
        return self.remote_state is RemoteState.SUBSCRIBED and self.request is None

    @property
    def is_being_subscribed(self) -> bool:
        """Whether a ``subscribe`` is under way."""
        return self.request is not None and self.request.op == "subscribe"

    @property
    def wants_slot(self) -> bool:
        """Whether it has trackers only, and should be subscribed to as soon as there is room."""
        return (
            self.is_background
            and self.remote_state is RemoteState.UNSUBSCRIBED
            and self.request is None
            and not self.subscribe_failed
            and not self.is_client_id
        )

    def snapshot_request(self, deadline: float, dialect: Dialect = "clients") -> Request | None:
        """A request for its state; None if the broker has no operation for that."""
        order_id = self.name.removeprefix(ORDERS)
        if self.name == BALANCES:
            request = requests.balances(deadline, Priority.BACKGROUND, dialect)
        elif self.ids is None or not order_id:
            return None
        elif self.is_client_id:
            request = requests.order_lookup(order_id, deadline, Priority.BACKGROUND)
        else:
            request = requests.order_status(order_id, deadline, Priority.BACKGROUND)
        request.purpose, request.subject = Purpose.SNAPSHOT, self
        return request

    def forget(self) -> None:
        """Forget what belongs to a connection that is gone."""
        self.request = self.snapshot = None
        self.remote_state = RemoteState.UNSUBSCRIBED
        self.retries = 0
        self.next_snapshot = -math.inf
        self.subscribe_failed = False
