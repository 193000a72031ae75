"""Asking the user, while a connection lives on."""

from __future__ import annotations

import sys
from contextlib import suppress

import click
import trio

from trio_broker.cli.output import Output, printable


def check_answerable(output: Output, *, yes: bool) -> None:
    """Refuse to begin what must be asked for where nobody would answer.

    Args:
        output: How the command prints.
        yes: Whether ``--yes`` answers.

    Raises:
        click.UsageError: Nobody would.
    """
    if yes:
        return
    if output.as_json:
        raise click.UsageError("--json asks no question: add --yes if you mean it")
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(
            "standard input is no terminal, so nobody can be asked: add --yes if you mean it"
        )


async def confirm(question: str) -> bool:
    """Ask on standard error, and read the answer from the terminal. Cancelling is safe.

    Args:
        question: The question.

    Returns:
        Whether the answer is yes; whatever else it is means no.
    """
    _forget_typed()
    click.echo(f"{printable(question)} [y/N]: ", nl=False, err=True)
    try:
        answer = await _line()
    except trio.Cancelled:
        click.echo(err=True)
        raise
    if not answer:  # Ctrl-D leaves the cursor where it is
        click.echo(err=True)
    return answer.strip().casefold() in {"y", "yes"}


def _forget_typed() -> None:
    """What was typed before there was a question answers none."""
    try:
        import termios  # noqa: PLC0415 - not every system has it
    except ImportError:  # pragma: no cover - such a system
        return
    with suppress(termios.error, OSError):
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


async def _line() -> str:
    try:
        # A terminal is readable once there is a whole line, so reading it holds nothing up.
        await trio.lowlevel.wait_readable(sys.stdin)
    except OSError:
        # Not every system can wait for a terminal. There a thread waits, and dies with the process.
        return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return sys.stdin.readline()
