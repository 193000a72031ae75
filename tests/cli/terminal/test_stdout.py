"""Standard output that is closed or can't be written to."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from tests.broker_thread import Broker
from tests.cli.harness import COMMAND, run, status
from trio_broker.cli.terminal import stdout

FULL = Path("/dev/full")


def run_redirected(args: Sequence[str], redirection: str, **more: str) -> tuple[int, str]:
    """Return the exit status and standard error of a command with a shell redirection."""
    words = ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, *args]
    ended = run(*words, **more)
    return ended.returncode, ended.stderr


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("args", "buffers"),
    [
        (["--help"], ""),
        (["balances", "--help"], "1"),
        (["balances"], ""),
        (["balances"], "1"),
        (["watch"], ""),
        (["watch"], "1"),
    ],
)
def test_full_disk_is_an_error_in_one_line(broker: Broker, args: list[str], buffers: str) -> None:
    variables = {**broker.variables, "PYTHONUNBUFFERED": buffers}
    why = f"can't write to standard output: {os.strerror(errno.ENOSPC)}"
    assert run_redirected(args, ">/dev/full", **variables) == (1, f"Error: {why}\n")


@pytest.mark.parametrize("args", [["--help"], ["balances"], ["swap", "1", "ETH", "USDT", "--yes"]])
def test_nothing_is_sent_if_standard_output_is_closed(broker: Broker, args: list[str]) -> None:
    assert run_redirected(args, ">&-", **broker.variables) == (
        1,
        "Error: standard output is closed\n",
    )
    assert broker.received() == []


def test_closed_standard_output_is_detected_after_its_descriptor_is_reused(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)
    assert status("watch") == 1
    assert capsys.readouterr() == ("", "Error: standard output is closed\n")
    assert broker.received() == []


def test_other_os_errors_are_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr("click.Group.main", fail)
    with pytest.raises(PermissionError):
        status("--help")


def test_working_standard_output_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    stdout.discard_stdout_on_error()
    click.echo("still here")
    assert capsys.readouterr().out == "still here\n"
