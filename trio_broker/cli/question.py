"""A question that waits beside a connection, and is asked again after whatever comes between.

What happens to the connection is told, as the answer may have nowhere to go. It would stand between
the question and its answer, and so does what a shell prints when the process was stopped: then the
question is asked anew.
"""

from __future__ import annotations

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
from trio_broker.cli.suspending import on_return


async def confirm_beside(client: BrokerWSClient, question: str) -> bool:
    """Ask as `confirm` does, and tell meanwhile that the connection is lost, or back.

    Args:
        client: Whose connection.
        question: The question.

    Returns:
        Whether the answer is yes.
    """
    with client.events() as events:
        news = _News(events)
        while True:
            with trio.CancelScope() as scope:
                async with beside(partial(news.come, scope), partial(on_return, scope.cancel)):
                    return await confirm(question)
            news.tell()


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
