"""What a watcher sees: a live screen, lines for programs, or the broker's own messages."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import click
import trio

from trio_broker import (
    Balance,
    BoundedReceiveChannel,
    BrokerWSClient,
    ChannelRefused,
    ConnectionEvent,
    Message,
    OddMessage,
    Order,
)
from trio_broker.cli.board import Board, ChannelTrouble, error_text, in_words
from trio_broker.cli.output import Output, console, fields, json_text, printable
from trio_broker.cli.pipe import Pipe
from trio_broker.cli.suspending import give_way
from trio_broker.erasing import without_signatures

if TYPE_CHECKING:
    from rich.live import Live

    from trio_broker.cli.screen import Picture

# Often enough for the eye: a stream of thousands of messages costs no more than a few frames.
_FRAME: Final = 0.25
_HINT: Final = "Ctrl-C ends"
_MOST_AT_ONCE: Final = 256

Erase = Callable[[str], str]


class View(Protocol):
    """Shows what is watched."""

    async def run(self, client: BrokerWSClient) -> None:
        """Show, until the client's end or a cancellation.

        Args:
            client: The client, which is connected.
        """

    async def tell(self, event: ConnectionEvent) -> None:
        """Something has happened.

        Args:
            event: What.
        """

    async def take(self, messages: Sequence[Message[Any]]) -> None:
        """A channel has brought something.

        Args:
            messages: What, the oldest first.
        """


class Screen:
    """A live screen: tells and takes cost little, and a task draws a few times a second.

    Args:
        board: What is drawn.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._drawn: object = None

    async def run(self, client: BrokerWSClient) -> None:
        """Draw, until the client's end or a cancellation; the last picture stays.

        Args:
            client: The client, which is connected.
        """
        # Not at the top: rich is slow to import, and `--help` needs none of it.
        from rich.live import Live  # noqa: PLC0415

        live = Live(
            console=console(),
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with live:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(give_way, live.stop, partial(self._take_again, live))
                    while not client.state.is_over:
                        self._draw(client, live)
                        await trio.sleep(_FRAME)
                    nursery.cancel_scope.cancel()
        finally:
            # The screen is as it was before by now, and what was seen last comes below that.
            live.console.print(_picture(self._board, self._look(client)))

    def _draw(self, client: BrokerWSClient, live: Live) -> None:
        now, size = self._look(client), live.console.size
        seen = (self._board.changes, size, int(now.timestamp()))
        if seen != self._drawn:
            live.update(_picture(self._board, now, size.height, _HINT), refresh=True)
            self._drawn = seen

    def _take_again(self, live: Live) -> None:
        live.start()
        self._drawn = None

    def _look(self, client: BrokerWSClient) -> dt.datetime:
        now = dt.datetime.now(dt.UTC)
        received = client.statistics().messages_received
        self._board.look(client.state, client.latency, received, now)
        return now

    async def tell(self, event: ConnectionEvent) -> None:
        """Something has happened.

        Args:
            event: What.
        """
        self._board.tell(event)

    async def take(self, messages: Sequence[Message[Any]]) -> None:
        """A channel has brought something.

        Args:
            messages: What, the oldest first.
        """
        self._board.take(messages)


def _picture(board: Board, now: dt.datetime, height: int | None = None, hint: str = "") -> Picture:
    from trio_broker.cli.screen import Picture  # noqa: PLC0415 - as above

    return Picture(board, now, height, hint)


class Lines:
    """One JSON object a line.

    Args:
        output: How the command was asked to print.
        erase: Takes secrets out of a text.
    """

    def __init__(self, output: Output, erase: Erase) -> None:
        self._output = output
        self._erase = erase
        self._pipe = Pipe()

    async def run(self, client: BrokerWSClient) -> None:
        """Nothing: a line is printed when something happens.

        Args:
            client: The client, which is connected.
        """

    async def tell(self, event: ConnectionEvent) -> None:
        """Print an event, unless messages alone are wanted.

        Args:
            event: The event.
        """
        if not self._output.quiet:
            await self._print([event_facts(event)])
        elif isinstance(event, ChannelRefused):
            click.echo(f"Error: {printable(self._erase(in_words(event)))}", err=True)

    async def take(self, messages: Sequence[Message[Any]]) -> None:
        """Print messages.

        Args:
            messages: The messages.
        """
        await self._print([message_facts(message) for message in messages])

    async def _print(self, objects: Sequence[Mapping[str, object]]) -> None:
        await self._pipe.write([self._erase(json_text(facts)) for facts in objects])


class Raw:
    """What the broker sends, one message a line, without keys and signatures.

    Args:
        output: How the command was asked to print.
        erase: Takes secrets out of a text.
        messages: The broker's messages.
    """

    def __init__(
        self, output: Output, erase: Erase, messages: BoundedReceiveChannel[str | bytes]
    ) -> None:
        self._output = output
        self._erase = erase
        self._messages = messages
        self._pipe = Pipe()

    async def run(self, client: BrokerWSClient) -> None:  # noqa: ARG002 - as views have it
        """Print, until the client's end or a cancellation.

        Args:
            client: The client, which is connected.
        """
        told = 0
        async for message in self._messages:
            messages = [message]
            try:
                while len(messages) < _MOST_AT_ONCE:
                    messages.append(self._messages.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                pass
            dropped = self._messages.dropped
            if dropped > told:
                self._output.note(f"{dropped - told} messages are left out: nobody read them")
                told = dropped
            await self._pipe.write([raw_line(one, self._erase) for one in messages])

    async def tell(self, event: ConnectionEvent) -> None:
        """Tell people of an event.

        Args:
            event: The event.
        """
        self._output.note(printable(self._erase(in_words(event))))

    async def take(self, messages: Sequence[Message[Any]]) -> None:
        """Nothing: what messages are made of is printed.

        Args:
            messages: The messages.
        """


def raw_line(message: str | bytes, erase: Erase) -> str:
    """A message as it came, in a line and without secrets.

    Args:
        message: The message.
        erase: Takes secrets out of a text.
    """
    text = message if isinstance(message, str) else message.decode(errors="backslashreplace")
    return printable(without_signatures(erase(text)))


_NAMES: Final[Mapping[type[ConnectionEvent], str]] = {
    ChannelTrouble: "channel_error",
    OddMessage: "odd",
}


def event_facts(event: ConnectionEvent) -> dict[str, object]:
    """An event as the members of an object.

    Args:
        event: The event.
    """
    kind = type(event)
    name = _NAMES.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
    facts: dict[str, object] = {"event": name, "at": event.at}
    for member, value in fields(event).items():
        if isinstance(value, Exception):
            facts[member] = error_text(value)
        elif member == "raw" and value is not None:
            facts[member] = without_signatures(value)
        else:
            facts[member] = value
    return facts


def message_facts(message: Message[Any]) -> dict[str, object]:
    """A message as the members of an object.

    Args:
        message: The message.
    """
    return {
        "event": "message",
        "at": message.received_at,
        "channel": message.channel,
        "origin": message.origin,
        "gap": message.gap,
        "data": _data(message.data),
    }


def _data(data: object) -> object:
    if isinstance(data, tuple):
        return [_data(one) for one in data]
    if isinstance(data, Balance):
        return {**fields(data), "available": data.available}
    return fields(data) if isinstance(data, Order) else data
