"""Where the commands find an account: in files and pipes, and at a terminal."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from tests.clibroker import Broker, Terminal, status
from trio_broker.cli.account import gather
from trio_broker.cli.checks import is_open_to_others

pytestmark = pytest.mark.usefixtures("place")


def gathered(text: str) -> dict[str, str]:
    file = Path("keys.env")
    file.write_text(text, encoding="utf-8")
    return dict(gather(env_file=file, environ={}).values)


# --- The secret from the terminal -----------------------------------------------------------


def test_a_secret_that_is_typed_is_asked_for_and_not_shown(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BROKER_SECRET_KEY")
    # Of a session of its own, so that it doesn't ask at the terminal of whoever runs the tests.
    with Terminal("balances", "--secret-key-stdin", start_new_session=True) as terminal:
        terminal.until("Secret key: ")
        terminal.type(f"{broker.sandbox.secret_key}\n")
        assert terminal.end() == 0
    assert "USDT" in terminal.shown
    assert broker.sandbox.secret_key not in terminal.shown


def test_no_secret_is_an_error_that_names_the_flag(broker: Broker) -> None:
    with Terminal("balances", "--secret-key-stdin", start_new_session=True) as terminal:
        terminal.until("Secret key: ")
        terminal.type("\x04")
        assert terminal.end() == 2
    assert "--secret-key-stdin: the first line of standard input is empty" in terminal.shown


# --- Files ----------------------------------------------------------------------------------


@contextmanager
def piped(text: str) -> Iterator[Path]:
    """A pipe with a text in it, as a shell's ``<(…)`` makes it."""
    path = Path("pipe")
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(text,), daemon=True)
    writer.start()
    yield path
    writer.join()


def test_a_pipe_is_as_good_as_a_file(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BROKER_SECRET_KEY")
    with piped(f"BROKER_SECRET_KEY={broker.sandbox.secret_key}\n") as pipe:
        assert status("balances", "--env-file", pipe) == 0


def test_a_pipe_is_read_once_a_command() -> None:
    with piped("BROKER_API_KEY=mine\n") as pipe, click.Context(click.Command("any")):
        assert [dict(gather(env_file=pipe, environ={}).values) for _ in range(2)] == [
            {"BROKER_API_KEY": "mine"}
        ] * 2


def test_nobody_is_warned_of_a_pipe() -> None:
    with piped("") as pipe:
        pipe.chmod(0o644)
        assert not is_open_to_others(pipe)
        pipe.read_text()


def test_a_folder_is_no_file() -> None:
    Path(".env").mkdir()
    assert gather(environ={}).values == {}
    with pytest.raises(click.UsageError, match=r"there is no file '\.env'"):
        gather(env_file=Path(".env"), environ={})


def test_a_secret_is_taken_as_it_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "other")
    assert gathered('BROKER_SECRET_KEY="a${OTHER}b"\n') == {"BROKER_SECRET_KEY": "a${OTHER}b"}


@pytest.mark.parametrize(
    "text", ['BROKER_SECRET_KEY="hush\n', "export BROKER_SECRET_KEY = 'hush\nOTHER=1\n"]
)
def test_a_quote_that_is_not_closed_is_one_error(
    text: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(".env").write_text(f"# mine\n{text}")
    assert status("balances") == 2
    error = capsys.readouterr().err
    assert error.endswith("Error: line 2 of '.env' can't be read: is a quote not closed?\n")
    assert "hush" not in error
    assert not caplog.records


def test_what_is_wrong_with_another_programs_line_is_no_matter() -> None:
    assert gathered("OTHER='\nBROKER_API_KEY=mine\n") == {"BROKER_API_KEY": "mine"}
