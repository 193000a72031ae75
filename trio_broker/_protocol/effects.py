"""What the engine returns: effects, which its caller carries out in their order.

The most frequent effect is messages for a stream. It is a plain pair, because one is made for
almost every push. The engine never looks into a buffer or a waiter: it only passes them on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import attrs

from trio_broker._protocol.requests import Request, Waiter
from trio_broker.events import ConnectionEvent
from trio_broker.exceptions import BrokerError, ChannelError
from trio_broker.models import Message, SwapIntent, SwapOutcome


@attrs.frozen
class ErrorItem:
    """An error in a stream, in its place among the messages."""

    error: ChannelError
    received_at: dt.datetime


class Sink(Protocol):
    """The buffer of a stream.

    Attributes:
        name: The channel's name.
    """

    name: str

    def put(self, item: Any) -> None:
        """Add a message, or an `ErrorItem`."""
        ...

    def put_all(self, items: Sequence[Any]) -> None:
        """Add several in their order."""
        ...

    def end(self) -> None:
        """End the stream after the buffered messages."""
        ...

    def fail(self, error: Exception, cause: BaseException | None = None) -> None:
        """End the stream with an error after the buffered messages."""
        ...


@attrs.frozen
class StreamEnded:
    """A stream ends after its buffered messages: with an error, or as the channel ends."""

    sink: Sink
    error: BrokerError | None = None
    cause: BaseException | None = None


@attrs.frozen
class Wake:
    """A task can go on."""

    waiter: Waiter


@attrs.frozen
class RequestEnded:
    """A request has been answered, has failed or was abandoned.

    The request shows its state at the end of the engine's step, not at this effect's place in it.
    """

    request: Request


@attrs.frozen
class Emit:
    """An event for the listeners; it lacks the time and the client's name."""

    event: Callable[..., ConnectionEvent]


@attrs.frozen
class ReplaceConnection:
    """The connection must be replaced.

    Attributes:
        error: Why.
        is_attempt: Whether the next connection counts as an attempt to reconnect.
    """

    error: BrokerError
    is_attempt: bool


@attrs.frozen
class ChannelsRestored:
    """After an outage, the client is subscribed to these channels again."""

    channels: tuple[str, ...]


@attrs.frozen
class SwapEnded:
    """The outcome of a swap is known, or the swap was settled by hand.

    Attributes:
        intent: The swap.
        attempt: Which use of its client order id it was.
        outcome: The outcome.
        order_id: The order's id, if the swap is confirmed.
        detail: The reason, if it is not confirmed.
    """

    intent: SwapIntent
    attempt: str
    outcome: SwapOutcome
    order_id: str | None
    detail: str


Delivery: TypeAlias = tuple[Sink, "list[Message[Any] | ErrorItem]"]
Effect: TypeAlias = (
    Delivery
    | StreamEnded
    | Wake
    | RequestEnded
    | Emit
    | ReplaceConnection
    | ChannelsRestored
    | SwapEnded
)
