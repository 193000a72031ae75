"""Running a command in Trio until it returns, fails or is interrupted by a signal."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import trio

from trio_broker import BrokerError, BrokerWSClient
from trio_broker.cli.account import Account
from trio_broker.cli.background import background
from trio_broker.cli.errors import CommandFailed, Status, describe_error, status_of, usage_errors
from trio_broker.cli.terminal.output import print_traceback
from trio_broker.cli.terminal.signals import cancel_on_signal
from trio_broker.cli.terminal.stdout import discard_stdout_on_error

Reply = TypeVar("Reply")


def run(main: Callable[[], Awaitable[int]], *, debug: bool = False) -> None:
    """Run a command in Trio, and exit with the status that it returns.

    Args:
        main: The command.
        debug: Print the traceback of an error.

    Raises:
        click.exceptions.Exit: With the status.
        click.ClickException: The command failed; the message is one line.
    """
    status: int = Status.INTERRUPTED

    async def cancellable() -> int:
        # Ctrl-C cancels the command. A KeyboardInterrupt could be lost, for example in a `__del__`.
        result: int = Status.INTERRUPTED
        with cancel_on_signal():
            result = await main()
        return result  # noqa: RET504 - the block may have been cancelled

    try:
        try:
            status = trio.run(cancellable)
        except* KeyboardInterrupt:
            # `except*`, because a KeyboardInterrupt in any task is in a group.
            pass
    except BrokenPipeError:
        raise  # click exits without a message: the reader has closed the pipe
    except (BrokerError, OSError) as error:
        if debug:
            print_traceback(error)
        discard_stdout_on_error()
        raise CommandFailed(describe_error(error), status_of(error)) from error
    except (click.ClickException, click.Abort, click.exceptions.Exit):
        raise
    except Exception as error:
        # Printed here, because Python wouldn't escape the broker's texts in the traceback.
        print_traceback(error)
        discard_stdout_on_error()
        raise CommandFailed(
            "this is a bug in trio-broker; please report it with the lines above"
        ) from error
    raise click.exceptions.Exit(status)


async def request(account: Account, send: Callable[[BrokerWSClient], Awaitable[Reply]]) -> Reply:
    """Connect, send one request, and close the connection cleanly, also after Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed before the reply.
        click.UsageError: An argument of the request is invalid.
        BrokerError: The request failed.
    """
    async with account.client() as client:
        with cancel_on_signal(), usage_errors():
            return await send(client)
    raise KeyboardInterrupt


async def run_until_signal(main: Callable[[], Awaitable[None]]) -> int:
    """Run a function until it returns or SIGINT or SIGTERM cancels it; return the exit status.

    The signals are received and not raised, so that lines are written completely and the screen is
    restored.
    """
    status: int = Status.OK
    with (
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
        trio.CancelScope() as scope,
    ):

        async def cancel() -> None:
            nonlocal status
            if await anext(aiter(signals)) == signal.SIGINT:
                status = Status.INTERRUPTED
            scope.cancel()

        async with background(cancel):
            await main()
    return status
