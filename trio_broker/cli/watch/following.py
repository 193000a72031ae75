"""The tasks of the watch, which follow channels until a signal or a failure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final

import trio

from trio_broker import (
    BoundedReceiveChannel,
    BrokerError,
    BrokerWSClient,
    ChannelError,
    ChannelRefused,
    ConnectionEvent,
    ConnectionLostError,
    NotSentError,
    ReconnectPolicy,
    RequestTimeoutError,
    ServerError,
    Subscription,
    SubscriptionBrokenError,
    SubscriptionLimitError,
)
from trio_broker.cli.account import Account
from trio_broker.cli.errors import CommandFailed, Status, describe_error, usage_errors
from trio_broker.cli.runner import run_until_signal
from trio_broker.cli.terminal.output import Output, has_screen
from trio_broker.cli.watch.board import Board
from trio_broker.cli.watch.events import ChannelFailed, Subscribed
from trio_broker.cli.watch.views import JsonView, RawView, ScreenView, View
from trio_broker.redaction import redactor

_POLICY: Final = ReconnectPolicy(max_attempts=None)
# Shorter than the default, so that the latency on the screen is recent.
_HEARTBEAT_INTERVAL: Final = 5.0
_RETRY_DELAY: Final = 1.0  # seconds before an unanswered subscription is requested again


async def watch_channels(
    channels: Sequence[str], account: Account, output: Output, *, raw: bool = False
) -> int:
    """Show channels until a signal ends the watch; return the exit status.

    If `raw` is set, print the broker's messages instead.
    """
    names = tuple(dict.fromkeys(channels))
    return await run_until_signal(lambda: _watch(names, account, output, raw=raw))


async def _watch(channels: Sequence[str], account: Account, output: Output, *, raw: bool) -> None:
    client = account.client(reconnect=_POLICY, heartbeat_interval=_HEARTBEAT_INTERVAL)
    redact = redactor((account.api_key, account.secret_key))
    view: View
    # Opened before the client connects, so that the first connection is shown too.
    with ExitStack() as stack:
        events = stack.enter_context(client.events())
        if raw:
            view = RawView(output, redact, stack.enter_context(client.messages()))
        elif output.as_json or not has_screen():
            view = JsonView(output, redact)
        else:
            output.note(f"Connecting to {account.endpoint.netloc}.")
            view = ScreenView(
                Board(
                    label=account.label,
                    host=account.endpoint.netloc,
                    channels=channels,
                    has_log=not output.quiet,
                    redact=redact,
                )
            )
        async with client:
            await follow(client, events, channels, view)


async def follow(
    client: BrokerWSClient,
    events: BoundedReceiveChannel[ConnectionEvent],
    channels: Sequence[str],
    view: View,
) -> None:
    """Show the events of a connected client and the messages of channels until it is closed.

    Raises:
        BrokerError: The connection has failed for good.
        CommandFailed: The broker refused all channels.
        click.UsageError: A channel's name can't be sent.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run, client)
        nursery.start_soon(_show_events, events, view)
        refusals = await _follow_channels(client, channels, view)
        if len(refusals) == len(channels):
            await client.aclose()  # this also ends the other tasks
    await client.wait_closed()
    if len(refusals) == len(channels):
        raise CommandFailed(f"no channel is left: {describe_error(refusals[-1])}", Status.REFUSED)


async def _show_events(events: BoundedReceiveChannel[ConnectionEvent], view: View) -> None:
    async for event in events:
        # `_follow_channels` shows refusals.
        if not isinstance(event, ChannelRefused):
            await view.show_event(event)


async def _follow_channels(
    client: BrokerWSClient, channels: Sequence[str], view: View
) -> list[BrokerError]:
    """Follow channels until none is left; return the errors of the refused ones."""
    refusals: list[BrokerError] = []

    async def follow_one(channel: str) -> None:
        try:
            await _follow_channel(client, channel, view)
        except (ServerError, SubscriptionLimitError) as error:
            refusals.append(error)
            await view.show_event(ChannelRefused(at=_now(), channel=channel, error=error))

    async with trio.open_nursery() as nursery:
        for channel in channels:
            nursery.start_soon(follow_one, channel)
    return refusals


async def _follow_channel(client: BrokerWSClient, channel: str, view: View) -> None:
    subscription = await _subscribe(client, channel, view)
    if subscription is None:
        return
    async with subscription:
        await view.show_event(Subscribed(at=_now(), channel=channel))
        with suppress(SubscriptionBrokenError):  # `wait_closed` raises the reason
            while not client.state.is_over:
                try:
                    async for batch in subscription.batches():
                        await view.show_messages(batch)
                except ChannelError as error:
                    await view.show_event(ChannelFailed(at=_now(), channel=channel, error=error))


async def _subscribe(client: BrokerWSClient, channel: str, view: View) -> Subscription[Any] | None:
    """Subscribe, and retry until the broker replies; None if the client is closed first."""
    while True:
        try:
            with usage_errors():
                return await client.subscribe(channel)
        except (ConnectionLostError, NotSentError, RequestTimeoutError) as error:
            if client.state.is_over:
                return None
            await view.show_event(ChannelFailed(at=_now(), channel=channel, error=error))
        await trio.sleep(_RETRY_DELAY)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
