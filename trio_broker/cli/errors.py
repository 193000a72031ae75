"""Exit statuses, and one-line descriptions of errors."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

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
    ReplyTooLargeError,
    RequestTimeoutError,
    ServerError,
    SubscriptionBrokenError,
    SwapOutcomeUnknownError,
)
from trio_broker.cli.terminal.output import one_line
from trio_broker.cli.terminal.stdout import stdout_error


class Status(enum.IntEnum):
    """The exit statuses of all commands."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    AUTHENTICATION = 3
    CONNECTION = 4
    REFUSED = 5
    UNKNOWN = 6
    HAS_ORDER = 7
    INTERRUPTED = 130


# The first match is used.
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
    (ReplyTooLargeError, Status.CONNECTION),
    (RequestTimeoutError, Status.CONNECTION),
    (SubscriptionBrokenError, Status.CONNECTION),
)

_ADVICE: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        SwapOutcomeUnknownError,
        "don't repeat it; 'trio-broker swaps --reconcile' asks the broker for its outcome",
    ),
    (OrderUnfinishedError, "don't repeat it; 'trio-broker order ID --follow' follows the order"),
    (AuthenticationError, "check BROKER_API_KEY, BROKER_SECRET_KEY, --dialect and --signing-key"),
    (ClockSkewError, "correct this machine's clock; 'trio-broker doctor' shows how far it is off"),
    (CertificateError, "check the URL; 'trio-broker doctor' shows the certificate"),
    (ConnectFailedError, "'trio-broker doctor' checks each step of connecting"),
    (SubscriptionBrokenError, "'trio-broker doctor' checks each step of connecting"),
    (
        JournalError,
        "fix the journal, stop the process that uses it, or pass --journal FILE or --adopt",
    ),
)


class CommandFailed(click.ClickException):
    """A failure with an exit status; its message is printed in one line."""

    def __init__(self, message: str, status: Status = Status.FAILURE) -> None:
        super().__init__(message)
        self.exit_code: int = status  # type: ignore[misc]  # click also reads it from instances


@contextmanager
def usage_errors() -> Iterator[None]:
    """Convert the library's errors about arguments into usage errors.

    Raises:
        click.UsageError: The block raised a TypeError or ValueError that isn't a BrokerError.
    """
    try:
        yield
    except BrokerError:
        raise
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def status_of(error: BaseException) -> Status:
    """Return the exit status for an error."""
    if isinstance(error, ServerError) and error.op == "auth":
        return Status.AUTHENTICATION
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return Status.FAILURE


def describe_error(error: BaseException) -> str:
    """Describe an error in one line, with advice. Texts of the broker are escaped."""
    message = _os_error_text(error) if isinstance(error, OSError) else str(error)
    text = one_line(message) or type(error).__name__
    advice = next((advice for kind, advice in _ADVICE if isinstance(error, kind)), None)
    return f"{text}; {advice}" if advice else text


def _os_error_text(error: OSError) -> str:
    """Return the text of an error without its number."""
    if error.strerror is None:
        return str(error)
    if text := stdout_error(error):
        return text
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
