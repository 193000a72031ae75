"""The state that the live screen of the watch draws.

It does no I/O and reads no clock: times are arguments, or attributes of messages and events.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Context, Decimal
from typing import Any, Final, Literal, TypeAlias

import attrs

from trio_broker import (
    Balance,
    ChannelRefused,
    Connected,
    ConnectionEvent,
    ConnectionState,
    Disconnected,
    GaveUp,
    Message,
    Order,
    Restored,
    SnapshotUnavailable,
    UnexpectedMessage,
)
from trio_broker.cli.terminal.output import plain, printable
from trio_broker.cli.watch.events import (
    ChannelFailed,
    describe_duration,
    describe_event,
    describe_gap,
    error_text,
)

HIGHLIGHT_TIME: Final = dt.timedelta(seconds=5)
RATE_SECONDS: Final = 60
_LOG_SIZE: Final = 200  # entries

BALANCES: Final = "balances"
ORDERS: Final = "orders:"

_ZERO: Final = Decimal(0)
# With the default precision of 28 digits, amounts of a token with 18 decimals could be rounded.
_EXACT: Final = Context(prec=400)

EntryKind: TypeAlias = Literal["good", "bad", "neutral"]
Redact: TypeAlias = Callable[[str], str]


@attrs.frozen(kw_only=True)
class LogEntry:
    """An entry of the log.

    Attributes:
        at: The time; the last one, if it happened several times in a row.
        text: A description.
        kind: Good, bad or neutral news.
        times: How many times in a row it happened.
    """

    at: dt.datetime
    text: str
    kind: EntryKind = "neutral"
    times: int = 1


@attrs.frozen
class Holding:
    """The balance of an asset, and its last change.

    Attributes:
        balance: The balance.
        before: The balance before the last change.
        changed_at: The time of the last change; None if there was none.
    """

    balance: Balance
    before: Balance
    changed_at: dt.datetime | None = None

    def is_highlighted(self, now: dt.datetime) -> bool:
        """Whether the balance changed a moment ago."""
        return self.changed_at is not None and now - self.changed_at < HIGHLIGHT_TIME

    @property
    def change(self) -> Decimal:
        """The change of the total, if both balances are readable."""
        return _EXACT.subtract(self.balance.total, self.before.total)

    @property
    def change_of_locked(self) -> Decimal:
        """The change of the locked part, if both balances are readable."""
        return _EXACT.subtract(self.balance.locked or _ZERO, self.before.locked or _ZERO)

    def updated(self, balance: Balance, at: dt.datetime) -> Holding:
        """Return the holding after a message; changes in quick succession count as one."""
        if balance == self.balance:
            return self
        return Holding(balance, self.before if self.is_highlighted(at) else self.balance, at)


@attrs.frozen
class OrderState:
    """The last state of an order, and its time."""

    order: Order
    at: dt.datetime


@attrs.frozen
class LastMessage:
    """The last message of a channel other than balances and orders.

    Attributes:
        data: Its data.
        at: When it was received.
        count: The number of messages so far.
    """

    data: object
    at: dt.datetime
    count: int

    @property
    def text(self) -> str:
        """The data as JSON, not escaped for a terminal."""
        return json.dumps(self.data, default=str, ensure_ascii=False)


def unredacted(text: str) -> str:
    """Return the text unchanged."""
    return text


@attrs.define(eq=False, kw_only=True)
class Board:
    """The data that the live screen shows.

    Attributes:
        label: ``LIVE`` or ``SANDBOX``.
        host: The broker's host.
        channels: The watched channels.
        has_log: Whether the log is shown.
        redact: Removes secrets from a text of the broker.
        state: The state of the client.
        latency: The round trip of the last heartbeat in seconds.
        connected_at: When the client connected; None while it isn't connected.
        lost_at: When it lost the connection; None while it is connected, and before that.
        retry_at: When it reconnects.
        reason: Why it isn't connected.
        outages: The number of lost connections.
        received: The number of received messages.
        last_message_at: When the last message was received.
        holdings: The balances by asset; None before the first message.
        is_complete: Whether a snapshot was received, after which a new asset is a change.
        orders: The orders by channel.
        others: The last messages of other channels.
        refused: The errors of refused channels, by channel.
        log: The events.
        changes: A counter of changes that require a redraw.
        received_in: The number of messages received in each of the last seconds.
    """

    label: str
    host: str
    channels: Sequence[str]
    has_log: bool = True
    redact: Redact = unredacted
    state: ConnectionState = ConnectionState.CONNECTING
    latency: float | None = None
    connected_at: dt.datetime | None = None
    lost_at: dt.datetime | None = None
    retry_at: dt.datetime | None = None
    reason: str = ""
    outages: int = 0
    received: int = 0
    last_message_at: dt.datetime | None = None
    holdings: dict[str, Holding] | None = None
    is_complete: bool = False
    orders: dict[str, OrderState] = attrs.field(factory=dict)
    others: dict[str, LastMessage] = attrs.field(factory=dict)
    refused: dict[str, str] = attrs.field(factory=dict)
    log: deque[LogEntry] = attrs.field(factory=lambda: deque(maxlen=_LOG_SIZE))
    changes: int = 0
    received_in: dict[int, int] = attrs.field(factory=dict)

    # --- The client's state, read from time to time ----------------------------------------

    def update(
        self, state: ConnectionState, latency: float | None, received: int, now: dt.datetime
    ) -> None:
        """Set the client's state, its latency and the number of received messages."""
        if (state, latency, received) != (self.state, self.latency, self.received):
            self.changes += 1
        self.state, self.latency = state, latency
        new, self.received = received - self.received, received
        if new:
            second = int(now.timestamp())
            self.last_message_at = now
            self.received_in[second] = self.received_in.get(second, 0) + new
            for old in [past for past in self.received_in if past <= second - RATE_SECONDS]:
                del self.received_in[old]

    def rate(self, now: dt.datetime) -> list[int]:
        """Return the number of messages in each of the last seconds, without the current one."""
        second = int(now.timestamp())
        return [self.received_in.get(past, 0) for past in range(second - RATE_SECONDS, second)]

    # --- Events and messages ---------------------------------------------------------------

    def add_event(self, event: ConnectionEvent) -> None:
        """Add an event."""
        self.changes += 1
        match event:
            case Connected():
                self._connected(event.at)
            case Disconnected():
                self._disconnected(event)
            case GaveUp():
                self._log_event(event, "bad")
            case Restored():
                self._log_event(event, "good")
            case ChannelRefused(channel=channel, error=error):
                self.refused[channel] = self.shown(error_text(error))
                self._log_event(event, "bad")
            case ChannelFailed() | UnexpectedMessage() | SnapshotUnavailable():
                self._log_event(event, "bad")
            case _:
                self._log_event(event)

    def _connected(self, at: dt.datetime) -> None:
        text = "connected"
        if self.lost_at is not None:
            text += f" again after {describe_duration(at - self.lost_at)}"
        self.connected_at, self.lost_at, self.retry_at, self.reason = at, None, None, ""
        self._add_to_log(text, at, "good")

    def _disconnected(self, event: Disconnected) -> None:
        if self.connected_at is not None:
            self.connected_at, self.lost_at = None, event.at
            self.outages += 1
        self.reason = self.shown(error_text(event.error))
        self.retry_at = None
        if event.retry_in is not None:
            self.retry_at = event.at + dt.timedelta(seconds=event.retry_in)
            self._log_event(event, "bad")

    def add_messages(self, messages: Iterable[Message[Any]]) -> None:
        """Add messages of a channel, the oldest first."""
        self.changes += 1
        for message in messages:
            if message.gap is not None:
                self._add_to_log(f"{printable(message.channel)}: {describe_gap(message.gap)}",
                                 message.received_at, "bad")  # fmt: skip
            if message.channel == BALANCES:
                self._add_balances(message)
            elif isinstance(message.data, Order):
                self._add_order(message)
            else:
                self._add_other(message)

    def _add_balances(self, message: Message[tuple[Balance, ...]]) -> None:
        # A snapshot contains the whole account, a push only the assets that have changed.
        is_snapshot = message.origin == "snapshot"
        known = self.holdings or {}
        held = {} if is_snapshot else dict(known)
        for balance in message.data:
            first = Balance(balance.asset, _ZERO) if self.is_complete else balance
            holding = known.get(balance.asset, Holding(first, first))
            held[balance.asset] = holding.updated(balance, message.received_at)
        self.holdings = held
        self.is_complete = self.is_complete or is_snapshot

    def _add_order(self, message: Message[Order]) -> None:
        order = message.data
        seen = self.orders.get(message.channel)
        self.orders[message.channel] = OrderState(order, order.updated_at or message.received_at)
        if seen is None or seen.order.status != order.status:
            name = message.channel.removeprefix(ORDERS)
            facts = [f"order {printable(name)} is {self.shown(order.status)}"]
            if order.filled_out:
                facts.append(f"filled {plain(order.filled_out)}")
            if order.tx_hash:
                facts.append(f"tx {self.shown(order.tx_hash)}")
            self._add_to_log(", ".join(facts), message.received_at)

    def _add_other(self, message: Message[Any]) -> None:
        seen = self.others.get(message.channel)
        count = 1 if seen is None else seen.count + 1
        self.others[message.channel] = LastMessage(message.data, message.received_at, count)

    def shown(self, text: str) -> str:
        """Return a text of the broker in one line, without secrets and control characters."""
        return printable(self.redact(" ".join(text.split())))

    def _log_event(self, event: ConnectionEvent, kind: EntryKind = "neutral") -> None:
        self._add_to_log(self.shown(describe_event(event)), event.at, kind)

    def _add_to_log(self, text: str, at: dt.datetime, kind: EntryKind = "neutral") -> None:
        times = 1
        if self.log and self.log[-1].text == text:
            # For example failed retries during a long outage.
            times += self.log.pop().times
        self.log.append(LogEntry(at=at, text=text, kind=kind, times=times))
