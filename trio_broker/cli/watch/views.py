"""The views of the watch: a live screen, JSON lines, or the broker's raw messages."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
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
    Order,
    UnexpectedMessage,
)
from trio_broker.cli.terminal.output import (
    Output,
    balance_fields,
    console,
    fields,
    json_text,
    printable,
)
from trio_broker.cli.terminal.signals import release_terminal_on_stop
from trio_broker.cli.terminal.stdout import LineWriter
from trio_broker.cli.watch.board import Board, Redact
from trio_broker.cli.watch.events import ChannelFailed, describe_event, error_text
from trio_broker.redaction import redactor, without_signatures

if TYPE_CHECKING:
    from rich.live import Live

    from trio_broker.cli.watch.screen import Frame

_FRAME_INTERVAL: Final = 0.25  # seconds
_HINT: Final = "Ctrl-C exits"
_MAX_BATCH: Final = 256


class View(Protocol):
    """Shows events and messages."""

    async def run(self, client: BrokerWSClient) -> None:
        """Run until the client is closed or has failed."""

    async def show_event(self, event: ConnectionEvent) -> None:
        """Show an event."""

    async def show_messages(self, messages: Sequence[Message[Any]]) -> None:
        """Show messages of a channel, the oldest first."""


class ScreenView:
    """A live screen, drawn a few times per second."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._drawn: object = None

    async def run(self, client: BrokerWSClient) -> None:
        """Draw the board regularly; leave the last frame on the terminal."""
        # Imported here, because rich is slow to import and `--help` doesn't need it.
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
                    resume = partial(self._resume, live)
                    nursery.start_soon(release_terminal_on_stop, live.stop, resume)
                    while not client.state.is_over:
                        self._draw(client, live)
                        await trio.sleep(_FRAME_INTERVAL)
                    nursery.cancel_scope.cancel()
        finally:
            # rich has restored the terminal; print the last frame below the earlier content.
            live.console.print(_frame(self._board, self._update(client)))

    def _draw(self, client: BrokerWSClient, live: Live) -> None:
        now, size = self._update(client), live.console.size
        content = (self._board.changes, size, int(now.timestamp()))
        if content != self._drawn:
            live.update(_frame(self._board, now, size.height, _HINT), refresh=True)
            self._drawn = content

    def _resume(self, live: Live) -> None:
        live.start()
        self._drawn = None

    def _update(self, client: BrokerWSClient) -> dt.datetime:
        """Update the board with the client's state; return the time."""
        now = dt.datetime.now(dt.UTC)
        received = client.statistics().messages_received
        self._board.update(client.state, client.latency, received, now)
        return now

    async def show_event(self, event: ConnectionEvent) -> None:
        """Add an event to the board."""
        self._board.add_event(event)

    async def show_messages(self, messages: Sequence[Message[Any]]) -> None:
        """Add messages to the board."""
        self._board.add_messages(messages)


def _frame(board: Board, now: dt.datetime, height: int | None = None, hint: str = "") -> Frame:
    from trio_broker.cli.watch.screen import Frame  # noqa: PLC0415 - as above

    return Frame(board, now, height, hint)


class JsonView:
    """Prints one JSON object per line."""

    def __init__(self, output: Output, redact: Redact) -> None:
        self._output = output
        self._redact = redact
        self._stdout = LineWriter()

    async def run(self, client: BrokerWSClient) -> None:
        """Do nothing: `show_event` and `show_messages` print."""

    async def show_event(self, event: ConnectionEvent) -> None:
        """Print an event; with --quiet, print only refusals, to standard error."""
        if not self._output.quiet:
            await self._print([event_members(event)])
        elif isinstance(event, ChannelRefused):
            click.echo(f"Error: {printable(self._redact(describe_event(event)))}", err=True)

    async def show_messages(self, messages: Sequence[Message[Any]]) -> None:
        """Print messages."""
        await self._print([message_members(message) for message in messages])

    async def _print(self, objects: Sequence[Mapping[str, object]]) -> None:
        await self._stdout.write([self._redact(json_text(members)) for members in objects])


class RawView:
    """Prints the broker's messages, one per line, without keys and signatures."""

    def __init__(
        self, output: Output, redact: Redact, messages: BoundedReceiveChannel[str | bytes]
    ) -> None:
        self._output = output
        self._redact = redact
        self._messages = messages
        self._stdout = LineWriter()

    async def run(self, client: BrokerWSClient) -> None:  # noqa: ARG002 - the protocol's signature
        """Print the broker's messages."""
        reported = 0
        async for message in self._messages:
            messages = [message]
            try:
                while len(messages) < _MAX_BATCH:
                    messages.append(self._messages.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                pass
            dropped = self._messages.dropped
            if dropped > reported:
                self._output.note(
                    f"{dropped - reported} messages were dropped: the reader is too slow"
                )
                reported = dropped
            await self._stdout.write([raw_line(each, self._redact) for each in messages])

    async def show_event(self, event: ConnectionEvent) -> None:
        """Print an event to standard error."""
        self._output.note(printable(self._redact(describe_event(event))))

    async def show_messages(self, messages: Sequence[Message[Any]]) -> None:
        """Do nothing: the raw messages are printed."""


_without_any_signature: Final = redactor((), signatures=True)


def raw_line(message: str | bytes, redact: Redact) -> str:
    """Return a message in one line, without secrets and otherwise unchanged."""
    text = message if isinstance(message, str) else message.decode(errors="backslashreplace")
    if '"error"' in text:
        # Not in other messages, where a text that looks like a signature may be a transaction hash.
        text = _without_any_signature(text)
    return printable(without_signatures(redact(text)))


# --- JSON -----------------------------------------------------------------------------------

_EVENT_NAMES: Final[Mapping[type[ConnectionEvent], str]] = {
    ChannelFailed: "channel_error",
    UnexpectedMessage: "odd",
}


def event_members(event: ConnectionEvent) -> dict[str, object]:
    """Return the JSON members of an event."""
    kind = type(event)
    name = _EVENT_NAMES.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
    members: dict[str, object] = {"event": name, "at": event.at}
    for member, value in fields(event).items():
        if member == "client":
            continue  # the command has only one client
        if isinstance(value, Exception):
            members[member] = error_text(value)
        elif member == "raw" and value is not None:
            members[member] = without_signatures(value)
        else:
            members[member] = value
    return members


def message_members(message: Message[Any]) -> dict[str, object]:
    """Return the JSON members of a message."""
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
        return [_data(item) for item in data]
    if isinstance(data, Balance):
        return balance_fields(data)
    return fields(data) if isinstance(data, Order) else data
