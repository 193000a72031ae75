"""A question that waits beside a connection, and is asked again after whatever comes between.

What happens to the connection is told, as the answer may have nowhere to go. It would stand between
the question and its answer, and so does what a shell prints when the process was stopped: then the
question is asked anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import click
import trio

from trio_broker import (
    BoundedReceiveChannel,
    BrokerWSClient,
    Connected,
    ConnectionEvent,
    Disconnected,
)
from trio_broker.cli.beside import beside
from trio_broker.cli.following import told
from trio_broker.cli.output import printable
from trio_broker.cli.prompt import confirm
from trio_broker.cli.suspending import returns


async def confirm_beside(client: BrokerWSClient, question: str) -> bool:
    """Ask as `confirm` does, and tell meanwhile that the connection is lost, or back.

    Args:
        client: Whose connection.
        question: The question.

    Returns:
        Whether the answer is yes.
    """
    # Both from before the question is seen: who stops the process then is heard too.
    with client.events() as events, returns() as returned:
        news = _News(events)
        while True:
            with trio.CancelScope() as scope:
                comings = [partial(_come, signals, scope) for signals in returned]
                async with beside(partial(news.come, scope), *comings):
                    return await confirm(question)
            news.tell()


async def _come(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


class _News:
    """What has happened to a connection, each outage once: its tries would fill the screen.

    Args:
        events: Its events.
    """

    def __init__(self, events: BoundedReceiveChannel[ConnectionEvent]) -> None:
        self._events = events
        self._is_lost = False
        self._text = ""

    async def come(self, scope: trio.CancelScope) -> None:
        """Cancel a scope when there are any."""
        async for event in self._events:
            match event:
                case Disconnected(retry_in=delay):
                    is_news = not self._is_lost or delay is None
                    self._is_lost = True
                case Connected():
                    is_news, self._is_lost = True, False
                case _:
                    is_news = False
            if is_news:
                self._text = told(event) or ""
                scope.cancel()
                return

    def tell(self) -> None:
        """Print them, if there are any."""
        if self._text:
            click.echo(printable(self._text), err=True)
        self._text = ""
