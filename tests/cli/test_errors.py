"""Exit statuses and descriptions of errors."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tests.cli.harness import status
from trio_broker import (
    ConfigurationError,
    InvalidSignatureError,
    ServerError,
    SwapOutcomeUnknownError,
)
from trio_broker.cli import errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SwapOutcomeUnknownError("id", "no reply"), 6),
        (ConfigurationError("no"), 2),
        (InvalidSignatureError("auth", "Invalid signature"), 3),
        (ServerError("auth", "no"), 3),
        (ServerError("swap", "no"), 5),
        (OSError("disk"), 1),
    ],
)
def test_each_error_has_its_exit_status(error: Exception, status: int) -> None:
    assert errors.status_of(error) == status


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "full", "file"), "file: full"),
        (OSError(errno.ENOENT, "No such file"), "No such file"),
        (OSError("odd"), "odd"),
    ],
)
def test_os_errors_are_described_without_their_numbers(error: OSError, text: str) -> None:
    assert errors.describe_error(error) == text


@pytest.mark.usefixtures("broker")
def test_refused_connection_has_the_text_of_the_system(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert status("balances", "--url", f"ws://127.0.0.1:{port}") == 4
    refused = f"no WebSocket to 127.0.0.1:{port}: {os.strerror(errno.ECONNREFUSED)}; "
    assert capsys.readouterr().err.startswith(f"Error: {refused}")
