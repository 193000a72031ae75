"""Asking for confirmation at the terminal, while the connection stays alive."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import suppress
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
from trio_broker.cli.background import background
from trio_broker.cli.terminal.output import Output, printable
from trio_broker.cli.terminal.progress import connection_notice
from trio_broker.cli.terminal.signals import continue_signals


def check_can_confirm(output: Output, *, yes: bool) -> None:
    """Check before a command starts that the user can be asked, or has passed ``--yes``.

    Raises:
        click.UsageError: The command can't ask for confirmation.
    """
    if yes:
        return
    if output.as_json:
        raise click.UsageError("--json can't ask for confirmation; pass --yes to confirm")
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(
            "can't ask for confirmation: standard input is not a terminal; pass --yes to confirm"
        )


async def confirm(question: str) -> bool:
    """Ask on standard error, and return whether the answer on standard input is yes."""
    _discard_typed_text()
    click.echo(f"{printable(question)} [y/N]: ", nl=False, err=True)
    try:
        answer = await _read_line()
    except trio.Cancelled:
        click.echo(err=True)
        raise
    if not answer:  # Ctrl-D doesn't move the cursor to the next line
        click.echo(err=True)
    return answer.strip().casefold() in {"y", "yes"}


def _discard_typed_text() -> None:
    """Discard text that was typed before the question."""
    try:
        import termios  # noqa: PLC0415 - not on all systems
    except ImportError:  # pragma: no cover - not on Linux
        return
    with suppress(termios.error, OSError):
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


async def _read_line() -> str:
    try:
        # A terminal is readable when a line is complete, so `readline` doesn't block.
        await trio.lowlevel.wait_readable(sys.stdin)
    except OSError:
        # Some systems can't poll a terminal. There, a thread waits; it ends with the process.
        return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return sys.stdin.readline()


# --- With a connection ----------------------------------------------------------------------


async def confirm_while_connected(client: BrokerWSClient, question: str) -> bool:
    """Like `confirm`, but also print when the client's connection is lost or restored.

    The question is repeated after such a message, and after the process was stopped and continued:
    other text would be between the question and the answer.
    """
    # Opened before the question, so that no event and no signal is missed.
    with client.events() as events, continue_signals() as continued:
        notices = _ConnectionNotices(events)
        while True:
            with trio.CancelScope() as scope:
                waits = [partial(_cancel_on_next, signals, scope) for signals in continued]
                async with background(partial(notices.cancel_on_next, scope), *waits):
                    return await confirm(question)
            notices.print()


async def _cancel_on_next(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


class _ConnectionNotices:
    """Prints when a connection is lost or restored, but not when a retry fails."""

    def __init__(self, events: BoundedReceiveChannel[ConnectionEvent]) -> None:
        self._events = events
        self._is_lost = False
        self._text = ""

    async def cancel_on_next(self, scope: trio.CancelScope) -> None:
        """Cancel a scope when there is a notice to print."""
        async for event in self._events:
            match event:
                case Disconnected(retry_in=delay):
                    is_new = not self._is_lost or delay is None
                    self._is_lost = True
                case Connected():
                    is_new, self._is_lost = True, False
                case _:
                    is_new = False
            if is_new:
                self._text = connection_notice(event) or ""
                scope.cancel()
                return

    def print(self) -> None:
        """Print the notice, if there is one."""
        if self._text:
            click.echo(printable(self._text), err=True)
        self._text = ""
