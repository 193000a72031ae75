"""The tasks behind what watches: channels are followed, over outages, until somebody ends it."""

from __future__ import annotations

import datetime as dt
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    RequestTimeoutError,
    ServerError,
    Subscription,
    SubscriptionBrokenError,
    SubscriptionLimitError,
)
from trio_broker.cli.board import ChannelTrouble, Subscribed
from trio_broker.cli.ending import CommandFailed, Status, told, usage_errors
from trio_broker.cli.views import View

# Before a channel is asked for again, for which nobody has answered.
_PAUSE: Final = 1.0


async def until_told(main: Callable[[], Awaitable[None]]) -> int:
    """Run something until it ends, or until a signal asks for the end.

    Signals are received rather than raised, so that a line is whole and a screen left as it was.

    Args:
        main: What is run; it is cancelled by a signal.

    Returns:
        The exit status.
    """
    status: int = Status.OK
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, _ungrouped():
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                nonlocal status
                if await anext(aiter(signals)) == signal.SIGINT:
                    status = Status.INTERRUPTED
                nursery.cancel_scope.cancel()

            nursery.start_soon(obey)
            await main()
            nursery.cancel_scope.cancel()
    return status


@contextmanager
def _ungrouped() -> Iterator[None]:
    """Raise what has happened as it is, without the groups that nurseries make of it."""
    error: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if error is not None:
        raise error


async def follow(
    client: BrokerWSClient,
    events: BoundedReceiveChannel[ConnectionEvent],
    channels: Sequence[str],
    view: View,
) -> None:
    """Show what happens to a client and to channels, until the client's end.

    Args:
        client: The client, which is connected.
        events: Its events.
        channels: The names of the channels.
        view: Where it is shown.

    Raises:
        BrokerError: The connection has failed for good.
        CommandFailed: The broker refuses every channel.
        click.UsageError: A channel's name can't be sent.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run, client)
        nursery.start_soon(_tell_events, events, view)
        refusals = await _follow_channels(client, channels, view)
        if len(refusals) == len(channels):
            await client.aclose()  # with it the other tasks end
    await client.wait_closed()
    if len(refusals) == len(channels):
        raise CommandFailed(f"no channel is left: {told(refusals[-1])}", Status.REFUSED)


async def _tell_events(events: BoundedReceiveChannel[ConnectionEvent], view: View) -> None:
    async for event in events:
        # Who follows the channel tells that it is refused.
        if not isinstance(event, ChannelRefused):
            await view.tell(event)


async def _follow_channels(
    client: BrokerWSClient, channels: Sequence[str], view: View
) -> list[BrokerError]:
    """Follow channels until none is left; the refusals."""
    refusals: list[BrokerError] = []

    async def follow_one(channel: str) -> None:
        try:
            await _follow_channel(client, channel, view)
        except (ServerError, SubscriptionLimitError) as error:
            refusals.append(error)
            await view.tell(ChannelRefused(at=_now(), channel=channel, error=error))

    async with trio.open_nursery() as nursery:
        for channel in channels:
            nursery.start_soon(follow_one, channel)
    return refusals


async def _follow_channel(client: BrokerWSClient, channel: str, view: View) -> None:
    subscription = await _subscribe(client, channel, view)
    if subscription is None:
        return
    async with subscription:
        await view.tell(Subscribed(at=_now(), channel=channel))
        with suppress(SubscriptionBrokenError):  # `wait_closed` says why
            while not client.state.is_over:
                try:
                    async for batch in subscription.batches():
                        await view.take(batch)
                except ChannelError as error:
                    await view.tell(ChannelTrouble(at=_now(), channel=channel, error=error))


async def _subscribe(client: BrokerWSClient, channel: str, view: View) -> Subscription[Any] | None:
    """A subscription, however long the broker lets one wait; None after the client's end."""
    while True:
        try:
            with usage_errors():
                return await client.subscribe(channel)
        except (ConnectionLostError, NotSentError, RequestTimeoutError) as error:
            if client.state.is_over:
                return None
            await view.tell(ChannelTrouble(at=_now(), channel=channel, error=error))
        await trio.sleep(_PAUSE)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
