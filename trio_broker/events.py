"""The events that `BrokerWSClient.events` returns."""

from __future__ import annotations

import datetime as dt

import attrs

from trio_broker.models import SwapOutcome, SwapReceipt


@attrs.frozen(kw_only=True)
class ConnectionEvent:
    """Base class of the events about a client's connection and its swaps.

    Attributes:
        at: When it happened, by this machine's clock.
        client: The client's name.
    """

    at: dt.datetime
    client: str = ""


@attrs.frozen(kw_only=True)
class Connected(ConnectionEvent):
    """The client is connected and authenticated.

    After an outage, `Restored` follows once the channels are subscribed to again.
    """


@attrs.frozen(kw_only=True)
class Disconnected(ConnectionEvent):
    """A connection was lost, or an attempt to connect failed.

    Attributes:
        error: Why.
        retry_in: Seconds until the next attempt, None if there is none.
    """

    error: Exception
    retry_in: float | None


@attrs.frozen(kw_only=True)
class Restored(ConnectionEvent):
    """After an outage, the client has subscribed to its channels again.

    Each stream's next message has a gap, and its state is requested. Tracked orders aren't listed:
    the client polls them, with or without a channel.

    Attributes:
        channels: The channels' names. A refused channel has its own `ChannelRefused` event.
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
    """The connection failed permanently.

    Attributes:
        error: Why.
    """

    error: Exception


@attrs.frozen(kw_only=True)
class Closed(ConnectionEvent):
    """The client was closed by its owner."""


@attrs.frozen(kw_only=True)
class UnexpectedMessage(ConnectionEvent):
    """The broker sent an unexpected message; the connection stays open.

    Attributes:
        reason: Why it was not expected.
        raw: The message's first 1,000 characters without keys and signatures, None for a binary
            message.
    """

    reason: str
    raw: str | None


@attrs.frozen(kw_only=True)
class SnapshotUnavailable(ConnectionEvent):
    """A channel's state could not be requested; its stream continues with pushes.

    For a tracked order, repeated failures cause only one event, and the order is polled again.

    Attributes:
        channel: The channel's name.
        error: Why.
    """

    channel: str
    error: Exception


@attrs.frozen(kw_only=True)
class SwapResolved(ConnectionEvent):
    """The outcome of a swap became known later.

    Attributes:
        client_order_id: The swap's client order id.
        outcome: `SwapOutcome.CONFIRMED` or `SwapOutcome.REFUSED`.
        receipt: The broker's receipt, if it is confirmed.
        error: The broker's refusal, if it is refused.
    """

    client_order_id: str
    outcome: SwapOutcome
    receipt: SwapReceipt | None
    error: Exception | None


@attrs.frozen(kw_only=True)
class SwapCorrected(ConnectionEvent):
    """A swap was reported as refused, and may be or is executed after all.

    A swap that was reported as confirmed is never corrected.

    Attributes:
        client_order_id: The swap's client order id.
        before: The reported outcome, `SwapOutcome.REFUSED`.
        outcome: `SwapOutcome.CONFIRMED`, or `SwapOutcome.UNKNOWN` if it is looked up now. Then
            `SwapResolved` or `SwapUnresolved` follows.
        receipt: The broker's receipt, if it is confirmed.
    """

    client_order_id: str
    before: SwapOutcome
    outcome: SwapOutcome
    receipt: SwapReceipt | None


@attrs.frozen(kw_only=True)
class SwapUnresolved(ConnectionEvent):
    """A swap was possibly sent, its outcome is unknown, and it isn't looked up any more.

    Attributes:
        client_order_id: The swap's client order id, for later lookups.
        reason: Why its outcome is unknown.
    """

    client_order_id: str
    reason: str
