"""Standard output that is closed, or can't be written; and errors in words of people."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from tests.clibroker import COMMAND, PATIENCE, Broker, status
from trio_broker.cli import ending, unwritable

FULL = Path("/dev/full")


def ended(args: Sequence[str], stdout: str) -> tuple[int, str]:
    """How a command ends in a shell that redirects its output, and what it says."""
    words = ["sh", "-c", f'"$@" {stdout}', "sh", *COMMAND, *args]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)  # noqa: S603 - our own command
    return done.returncode, done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize("buffers", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("args", [["--help"], ["balances", "--help"], ["balances"], ["watch"]])
def test_a_full_disk_is_told_in_a_line(
    broker: Broker, args: list[str], buffers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", buffers)
    why = f"standard output can't be written: {os.strerror(errno.ENOSPC)}"
    assert ended(args, ">/dev/full") == (1, f"Error: {why}\n")


@pytest.mark.parametrize("args", [["--help"], ["balances"], ["swap", "1", "ETH", "USDT", "--yes"]])
def test_nothing_is_done_for_an_output_that_is_closed(broker: Broker, args: list[str]) -> None:
    assert ended(args, ">&-") == (1, "Error: standard output is closed\n")
    assert broker.received() == []


def test_other_errors_of_the_systems_are_not_taken_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr("click.Group.main", fail)
    with pytest.raises(PermissionError):
        status("--help")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "full", "file"), "file: full"),
        (OSError(errno.ENOENT, "No such file"), "No such file"),
        (OSError("odd"), "odd"),
    ],
)
def test_errors_of_the_systems_are_told_without_their_numbers(error: OSError, told: str) -> None:
    assert ending.told(error) == told


def test_what_can_be_written_stays_so(capsys: pytest.CaptureFixture[str]) -> None:
    unwritable.give_up_output()
    click.echo("still here")
    assert capsys.readouterr().out == "still here\n"


@pytest.mark.usefixtures("place")
def test_a_sandbox_says_where_it_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert status("sandbox", "--port", port) == 1
    in_use = os.strerror(errno.EADDRINUSE)
    assert capsys.readouterr().err == f"Error: 127.0.0.1, port {port}: {in_use}\n"
    assert status("sandbox", "--host", "300.1.1.1") == 1
    assert capsys.readouterr().err.startswith("Error: 300.1.1.1, port 0: ")
    assert status("sandbox", "--state", "missing/state") == 1
    missing = Path.cwd() / "missing"
    assert capsys.readouterr().err == f"Error: {missing}: {os.strerror(errno.ENOENT)}\n"


@pytest.mark.usefixtures("broker")
def test_a_broker_that_is_down_is_told_in_the_systems_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert status("balances", "--url", f"ws://127.0.0.1:{port}") == 4
    refused = f"no WebSocket to 127.0.0.1:{port}: {os.strerror(errno.ECONNREFUSED)}; "
    assert capsys.readouterr().err.startswith(f"Error: {refused}")
