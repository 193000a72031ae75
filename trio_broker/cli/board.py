"""What is known of an account that is watched: a live screen shows a board.

Pure: it is told what happens, and the time comes in as an argument or with what is told.
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
    Gap,
    GaveUp,
    Message,
    OddMessage,
    Order,
    Restored,
    SnapshotUnavailable,
)
from trio_broker.cli.output import plain, printable

MARKED_FOR: Final = dt.timedelta(seconds=5)
RATE_SECONDS: Final = 60
_LOG_SIZE: Final = 200

BALANCES: Final = "balances"
ORDERS: Final = "orders:"

_NOTHING: Final = Decimal(0)
# Under the default context of 28 digits, a token with 18 decimals would be rounded.
_EXACT: Final = Context(prec=400)

Mood: TypeAlias = Literal["good", "bad", "plain"]


@attrs.frozen(kw_only=True)
class Subscribed(ConnectionEvent):
    """The broker has acknowledged a channel for the first time.

    Attributes:
        channel: The channel's name.
    """

    channel: str


@attrs.frozen(kw_only=True)
class ChannelTrouble(ConnectionEvent):
    """The broker reports an error on a channel, or doesn't answer to it; it is still wanted.

    Attributes:
        channel: The channel's name.
        error: What the matter is.
    """

    channel: str
    error: Exception


@attrs.frozen(kw_only=True)
class Entry:
    """A line of the log.

    Attributes:
        at: When it happened, the last time.
        text: What.
        mood: Whether it is good news.
        times: How often in a row.
    """

    at: dt.datetime
    text: str
    mood: Mood = "plain"
    times: int = 1


@attrs.frozen
class Holding:
    """What the account holds of an asset, and what it held before the change that is marked.

    Attributes:
        balance: What it holds.
        before: What it held before.
        changed_at: When that changed, None if it didn't since it is watched.
    """

    balance: Balance
    before: Balance
    changed_at: dt.datetime | None = None

    def is_marked(self, now: dt.datetime) -> bool:
        """Whether it has just changed.

        Args:
            now: The time.
        """
        return self.changed_at is not None and now - self.changed_at < MARKED_FOR

    @property
    def change(self) -> Decimal:
        """By how much the total has changed."""
        return _EXACT.subtract(self.balance.total, self.before.total)

    @property
    def change_of_locked(self) -> Decimal:
        """By how much that has changed which is locked."""
        return _EXACT.subtract(self.balance.locked or _NOTHING, self.before.locked or _NOTHING)

    def changed(self, balance: Balance, at: dt.datetime) -> Holding:
        """It after a message. Changes that follow each other closely are shown as one.

        Args:
            balance: What the account holds now.
            at: When the message came.
        """
        if balance == self.balance:
            return self
        return Holding(balance, self.before if self.is_marked(at) else self.balance, at)


@attrs.frozen
class OrderSeen:
    """An order's newest state, and since when it is in it, as far as that is known."""

    order: Order
    at: dt.datetime


@attrs.frozen
class Latest:
    """The newest message of a channel that has no form of its own.

    Attributes:
        data: What it says.
        at: When it came.
        count: How many there were.
    """

    data: object
    at: dt.datetime
    count: int

    @property
    def text(self) -> str:
        """What it says as JSON; texts in it are as they came."""
        return json.dumps(self.data, default=str, ensure_ascii=False)


def as_it_is(text: str) -> str:
    """A text that needs nothing taken out."""
    return text


@attrs.define(eq=False, kw_only=True)
class Board:
    """All that a live screen shows.

    Attributes:
        label: ``LIVE`` or ``SANDBOX``.
        host: Where the broker is.
        channels: What is watched.
        has_log: Whether the log is shown.
        erase: Takes secrets out of a text of the broker's.
        state: Where the client stands.
        latency: The last heartbeat's round trip in seconds.
        connected_at: Since when there is a connection; None while there is none.
        lost_at: Since when there is none, None before the first one.
        retry_at: When the next try to connect comes.
        reason: Why there is no connection.
        outages: How many connections were lost.
        received: How many messages the broker has sent.
        last_message_at: When the last one came.
        holdings: The balances by asset, None before the first message.
        is_whole: Whether they are all: before that, an asset that is new here is no change.
        orders: The orders by their channels' names.
        others: Other channels by their names.
        refused: Why a channel is refused, by its name.
        log: What happened.
        changes: Grows with every change of what is to be shown.
    """

    label: str
    host: str
    channels: Sequence[str]
    has_log: bool = True
    erase: Callable[[str], str] = as_it_is
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
    is_whole: bool = False
    orders: dict[str, OrderSeen] = attrs.field(factory=dict)
    others: dict[str, Latest] = attrs.field(factory=dict)
    refused: dict[str, str] = attrs.field(factory=dict)
    log: deque[Entry] = attrs.field(factory=lambda: deque(maxlen=_LOG_SIZE))
    changes: int = 0
    _counts: dict[int, int] = attrs.field(factory=dict)

    # --- What is looked at from time to time -----------------------------------------------

    def look(
        self, state: ConnectionState, latency: float | None, received: int, now: dt.datetime
    ) -> None:
        """Take what the client tells when it is asked.

        Args:
            state: Where it stands.
            latency: The last heartbeat's round trip in seconds.
            received: How many messages came so far.
            now: The time.
        """
        if (state, latency, received) != (self.state, self.latency, self.received):
            self.changes += 1
        self.state, self.latency = state, latency
        new, self.received = received - self.received, received
        if new:
            second = int(now.timestamp())
            self.last_message_at = now
            self._counts[second] = self._counts.get(second, 0) + new
            for old in [one for one in self._counts if one <= second - RATE_SECONDS]:
                del self._counts[old]

    def rate(self, now: dt.datetime) -> list[int]:
        """How many messages came in each of the last seconds, the one that runs apart.

        Args:
            now: The time.
        """
        second = int(now.timestamp())
        return [self._counts.get(one, 0) for one in range(second - RATE_SECONDS, second)]

    # --- What is told when it happens ------------------------------------------------------

    def tell(self, event: ConnectionEvent) -> None:
        """Take an event.

        Args:
            event: The event.
        """
        self.changes += 1
        match event:
            case Connected():
                self._connected(event.at)
            case Disconnected():
                self._disconnected(event)
            case GaveUp():
                self._note(event, "bad")
            case Restored():
                self._note(event, "good")
            case ChannelRefused(channel=channel, error=error):
                self.refused[channel] = self.shown(error_text(error))
                self._note(event, "bad")
            case ChannelTrouble() | OddMessage() | SnapshotUnavailable():
                self._note(event, "bad")
            case _:
                self._note(event)

    def _connected(self, at: dt.datetime) -> None:
        text = "connected"
        if self.lost_at is not None:
            text += f" again after {span(at - self.lost_at)}"
        self.connected_at, self.lost_at, self.retry_at, self.reason = at, None, None, ""
        self._write(text, at, "good")

    def _disconnected(self, event: Disconnected) -> None:
        if self.connected_at is not None:
            self.connected_at, self.lost_at = None, event.at
            self.outages += 1
        self.reason = self.shown(error_text(event.error))
        self.retry_at = None
        if event.retry_in is not None:
            self.retry_at = event.at + dt.timedelta(seconds=event.retry_in)
            self._note(event, "bad")

    def take(self, messages: Iterable[Message[Any]]) -> None:
        """Take what a channel has brought.

        Args:
            messages: The messages, the oldest first.
        """
        self.changes += 1
        for message in messages:
            if message.gap is not None:
                self._write(f"{printable(message.channel)}: {gap_in_words(message.gap)}",
                            message.received_at, "bad")  # fmt: skip
            if message.channel == BALANCES:
                self._take_balances(message)
            elif isinstance(message.data, Order):
                self._take_order(message)
            else:
                self._take_other(message)

    def _take_balances(self, message: Message[tuple[Balance, ...]]) -> None:
        # A snapshot is the whole account; a push tells of the assets that it names.
        is_whole = message.origin == "snapshot"
        known = self.holdings or {}
        held = {} if is_whole else dict(known)
        for balance in message.data:
            nothing = Balance(balance.asset, _NOTHING) if self.is_whole else balance
            holding = known.get(balance.asset, Holding(nothing, nothing))
            held[balance.asset] = holding.changed(balance, message.received_at)
        self.holdings = held
        self.is_whole = self.is_whole or is_whole

    def _take_order(self, message: Message[Order]) -> None:
        order = message.data
        seen = self.orders.get(message.channel)
        self.orders[message.channel] = OrderSeen(order, order.updated_at or message.received_at)
        if seen is None or seen.order.status != order.status:
            name = message.channel.removeprefix(ORDERS)
            facts = [f"order {printable(name)} is {self.shown(order.status)}"]
            if order.filled_out:
                facts.append(f"filled {plain(order.filled_out)}")
            if order.tx_hash:
                facts.append(f"tx {self.shown(order.tx_hash)}")
            self._write(", ".join(facts), message.received_at)

    def _take_other(self, message: Message[Any]) -> None:
        seen = self.others.get(message.channel)
        count = 1 if seen is None else seen.count + 1
        self.others[message.channel] = Latest(message.data, message.received_at, count)

    def shown(self, text: str) -> str:
        """A text of the broker's in one line, without secrets and control characters.

        Args:
            text: The text.
        """
        return printable(self.erase(" ".join(text.split())))

    def _note(self, event: ConnectionEvent, mood: Mood = "plain") -> None:
        self._write(self.shown(in_words(event)), event.at, mood)

    def _write(self, text: str, at: dt.datetime, mood: Mood = "plain") -> None:
        times = 1
        if self.log and self.log[-1].text == text:
            # An outage may last for hours, and every try fails alike.
            times += self.log.pop().times
        self.log.append(Entry(at=at, text=text, mood=mood, times=times))


def in_words(event: ConnectionEvent) -> str:
    """An event for people; the broker's texts in it are as they came.

    Args:
        event: The event.
    """
    match event:
        case Disconnected(error=error):
            text = f"no connection: {error_text(error)}"
        case GaveUp(error=error):
            text = f"gave up: {error_text(error)}"
        case Restored(channels=channels):
            text = f"restored {', '.join(channels)}"
        case Subscribed(channel=channel):
            text = f"subscribed to {channel}"
        case ChannelRefused(channel=channel, error=error):
            text = f"{channel} is refused: {error_text(error)}"
        case ChannelTrouble(channel=channel, error=error):
            text = f"{channel}: {error_text(error)}"
        case SnapshotUnavailable(channel=channel, error=error):
            text = f"{channel}: its state can't be asked for: {error_text(error)}"
        case OddMessage(reason=reason):
            text = f"an odd message: {reason}"
        case _:
            text = type(event).__name__.lower()
    return text.strip()


def error_text(error: Exception) -> str:
    """What an error says, or else what it is.

    Args:
        error: The error.
    """
    return str(error) or type(error).__name__


def gap_in_words(gap: Gap) -> str:
    """What may be missing, for people.

    Args:
        gap: It.
    """
    missing = []
    if gap.dropped:
        missing.append(f"{gap.dropped} messages were dropped")
    if "reconnected" in gap.reasons:
        missing.append("updates may be missing")
    return f"since {gap.since:%H:%M:%S} {' and '.join(missing)}"


def span(length: dt.timedelta) -> str:
    """A length of time, as exact as anybody wants to know it.

    Args:
        length: It; what is negative, as a clock was set, is none.
    """
    seconds = max(0, int(length.total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
