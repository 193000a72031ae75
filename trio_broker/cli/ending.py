"""How a command ends: with a status that says what kind of failure it was, and with one line."""

from __future__ import annotations

import enum
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
import trio

from trio_broker import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    CertificateError,
    ChannelError,
    ClockSkewError,
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    JournalError,
    NotConnectedError,
    OrderUnfinishedError,
    ReconnectFailedError,
    RequestTimeoutError,
    ServerError,
    SubscriptionBrokenError,
    SwapOutcomeUnknownError,
)
from trio_broker.cli.interrupt import ctrl_c_cancels
from trio_broker.cli.output import printable
from trio_broker.cli.unwritable import give_up_output, output_trouble


class Status(enum.IntEnum):
    """The exit statuses; every command's are of these."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    AUTHENTICATION = 3
    CONNECTION = 4
    REFUSED = 5
    UNKNOWN = 6
    INTERRUPTED = 130


# The first that fits counts.
_STATUSES: Final[tuple[tuple[type[BaseException], Status], ...]] = (
    (SwapOutcomeUnknownError, Status.UNKNOWN),
    (ConfigurationError, Status.USAGE),
    (AuthenticationError, Status.AUTHENTICATION),
    (ServerError, Status.REFUSED),
    (ChannelError, Status.REFUSED),
    (AuthenticationTimeoutError, Status.CONNECTION),
    (ConnectFailedError, Status.CONNECTION),
    (ConnectionLostError, Status.CONNECTION),
    (NotConnectedError, Status.CONNECTION),
    (OrderUnfinishedError, Status.CONNECTION),
    (ReconnectFailedError, Status.CONNECTION),
    (RequestTimeoutError, Status.CONNECTION),
    (SubscriptionBrokenError, Status.CONNECTION),
)

_ADVICE: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        SwapOutcomeUnknownError,
        "don't repeat it: 'trio-broker swaps --reconcile' asks what became of it",
    ),
    (OrderUnfinishedError, "don't repeat it: 'trio-broker order ID --follow' goes on"),
    (AuthenticationError, "check BROKER_API_KEY, BROKER_SECRET_KEY and --signing-key"),
    (ClockSkewError, "set this machine's clock: 'trio-broker doctor' says how far it is off"),
    (CertificateError, "check the URL; 'trio-broker doctor' shows whose certificate it is"),
    (ConnectFailedError, "'trio-broker doctor' looks at each step of connecting"),
    (SubscriptionBrokenError, "'trio-broker doctor' looks at each step of connecting"),
    (JournalError, "see to it, wait for who has it, or name another journal"),
)


class CommandFailed(click.ClickException):
    """A failure that is told in one line, with the status that belongs to it."""

    def __init__(self, message: str, status: Status = Status.FAILURE) -> None:
        super().__init__(message)
        self.exit_code: int = status  # type: ignore[misc]  # click looks at the instance too


def run(main: Callable[[], Awaitable[int]], *, debug: bool = False) -> None:
    """Run a command under Trio, and end the process with its status.

    Args:
        main: The command. It returns the exit status.
        debug: Whether an error's traceback is shown before its line.

    Raises:
        click.exceptions.Exit: With the status.
        click.ClickException: The command failed; its message is one line.
    """
    status: int = Status.INTERRUPTED

    async def until_told() -> int:
        # An exception may be lost that a signal raises wherever the program is, in an import say.
        ended: int = Status.INTERRUPTED
        with ctrl_c_cancels():
            ended = await main()
        return ended  # noqa: RET504 - the block may have been cancelled

    try:
        try:
            status = trio.run(until_told)
        except* KeyboardInterrupt:
            # It may come out of any task, so also in a group.
            pass
    except BrokenPipeError:
        raise  # click ends quietly: who read our output has read enough
    except (BrokerError, OSError) as error:
        if debug:
            traceback.print_exception(error)
        give_up_output()
        raise CommandFailed(told(error), status_of(error)) from error
    raise click.exceptions.Exit(status)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Take the library's complaint about an argument for what it is: the user's to mend.

    Raises:
        click.UsageError: Something in the block raised a TypeError or a ValueError of its own.
    """
    try:
        yield
    except BrokerError:
        raise
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def status_of(error: BaseException) -> Status:
    """The exit status that an error means.

    Args:
        error: The error.
    """
    if isinstance(error, ServerError) and error.op == "auth":
        return Status.AUTHENTICATION
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return Status.FAILURE


def told(error: BaseException) -> str:
    """An error in one line, whatever the broker's text in it is, and what to do about it.

    Args:
        error: The error.
    """
    words = _in_words(error) if isinstance(error, OSError) else str(error)
    text = printable(" ".join(words.split())) or type(error).__name__
    advice = next((advice for kind, advice in _ADVICE if isinstance(error, kind)), None)
    return f"{text}; {advice}" if advice else text


def _in_words(error: OSError) -> str:
    """A system's error without its number, which says nothing to people."""
    if error.strerror is None:
        return str(error)
    if trouble := output_trouble(error):
        return trouble
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
