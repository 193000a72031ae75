"""Events that only the watch has, and descriptions of all events."""

from __future__ import annotations

import datetime as dt

import attrs

from trio_broker import (
    ChannelRefused,
    ConnectionEvent,
    Disconnected,
    Gap,
    GaveUp,
    Restored,
    SnapshotUnavailable,
    UnexpectedMessage,
)


@attrs.frozen(kw_only=True)
class Subscribed(ConnectionEvent):
    """The broker acknowledged a channel for the first time.

    Attributes:
        channel: The channel's name.
    """

    channel: str


@attrs.frozen(kw_only=True)
class ChannelFailed(ConnectionEvent):
    """The broker reported an error on a channel, or didn't reply; the watch tries again.

    Attributes:
        channel: The channel's name.
        error: The error.
    """

    channel: str
    error: Exception


def describe_event(event: ConnectionEvent) -> str:
    """Describe an event in one line. Texts of the broker aren't escaped."""
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
        case ChannelFailed(channel=channel, error=error):
            text = f"{channel}: {error_text(error)}"
        case SnapshotUnavailable(channel=channel, error=error):
            text = f"{channel}: no snapshot: {error_text(error)}"
        case UnexpectedMessage(reason=reason):
            text = f"unexpected message: {reason}"
        case _:
            text = type(event).__name__.lower()
    return text.strip()


def error_text(error: Exception) -> str:
    """Return the text of an error, or its class if it has none."""
    return str(error) or type(error).__name__


def describe_gap(gap: Gap) -> str:
    """Describe the messages that may be missing."""
    missing = []
    if gap.dropped:
        missing.append(f"{gap.dropped} messages were dropped")
    if "reconnected" in gap.reasons:
        missing.append("updates may be missing")
    return f"since {gap.since:%H:%M:%S} {' and '.join(missing)}"


def describe_duration(length: dt.timedelta) -> str:
    """Format a duration; a negative one, which a clock change can cause, is 0 s."""
    seconds = max(0, int(length.total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
