"""What the commands have in common: how they run, and how they end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import click
import trio

from trio_broker import BrokerError

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as shells have it: 128 and the signal's number."""


def run(main: Callable[[], Awaitable[int]]) -> None:
    """Run a command under Trio, and end the process with its status.

    Args:
        main: The command. It returns the exit status.

    Raises:
        click.exceptions.Exit: With the status.
        click.ClickException: The command failed; its message is one line.
    """
    status = INTERRUPTED
    try:
        try:
            status = trio.run(main)
        except* KeyboardInterrupt:
            # It may come out of any task, so also in a group.
            pass
    except BrokenPipeError:
        raise  # click ends quietly: who read our output has read enough
    except (BrokerError, OSError) as error:
        raise click.ClickException(_one_line(error)) from error
    raise click.exceptions.Exit(status)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
