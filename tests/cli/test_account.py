"""Finding the account: flags, environment, files, pipes and terminals."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from tests.broker_thread import Broker
from tests.cli.harness import Terminal, status
from trio_broker.cli.account import find_account, find_settings

pytestmark = pytest.mark.usefixtures("place")


def found_in(text: str) -> dict[str, str]:
    file = Path("keys.env")
    file.write_text(text, encoding="utf-8")
    return dict(find_settings(env_file=file, environ={}).values)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_API_KEY", "alice")
    monkeypatch.setenv("BROKER_SECRET_KEY", "of alice")


# --- Precedence -----------------------------------------------------------------------------


def test_dialect_is_found_like_the_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_API_KEY", "alice")
    monkeypatch.setenv("BROKER_SECRET_KEY", "of alice")
    url = "wss://broker.example"
    assert find_account(url=url).dialect == "clients"
    Path(".env").write_text("BROKER_DIALECT=docs")
    assert find_account(url=url).dialect == "docs"
    assert find_account(url=url, dialect="clients").dialect == "clients"
    monkeypatch.setenv("BROKER_DIALECT", "clients")
    assert find_account(url=url).dialect == "clients"
    assert find_account(url=url, dialect="docs").dialect == "docs"
    monkeypatch.setenv("BROKER_DIALECT", "dutch")
    with pytest.raises(click.UsageError, match="BROKER_DIALECT must be clients or docs"):
        find_account(url=url)


def test_flags_override_the_environment_which_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ("BROKER_API_KEY=file", "BROKER_SECRET_KEY=file", "BROKER_WS_URL=wss://file.example")
    Path(".env").write_text("\n".join(lines))
    environ = {"BROKER_API_KEY": "environ", "BROKER_SECRET_KEY": " ", "PATH": "/bin"}
    found = find_settings(environ=environ)
    assert found.values == {
        "BROKER_API_KEY": "environ",
        "BROKER_SECRET_KEY": "file",
        "BROKER_WS_URL": "wss://file.example",
    }
    assert found.sources == {
        "BROKER_API_KEY": "the environment",
        "BROKER_SECRET_KEY": ".env",
        "BROKER_WS_URL": ".env",
    }
    assert found.secret_file == Path(".env")
    monkeypatch.setattr(sys, "stdin", io.StringIO("stdin\n"))
    found = find_settings(url="wss://flag.example", secret_key_stdin=True, environ=environ)
    assert found.values["BROKER_WS_URL"] == "wss://flag.example"
    assert found.values["BROKER_SECRET_KEY"] == "stdin"
    assert found.sources["BROKER_WS_URL"] == "--url"
    assert found.sources["BROKER_SECRET_KEY"] == "--secret-key-stdin"
    # The file contains a key, although a different key is used.
    assert found.secret_file == Path(".env")


def test_base_url_overrides_a_websocket_url_of_lower_priority() -> None:
    Path(".env").write_text("BROKER_WS_URL=wss://file.example\n")
    found = find_settings(environ={"BROKER_BASE_URL": "https://environ.example"})
    assert found.values == {"BROKER_BASE_URL": "https://environ.example"}
    assert found.secret_file is None


def test_base_url_flag_becomes_a_websocket_url(keys: None) -> None:
    assert find_account(url="https://broker.example/v2").endpoint.url == (
        "wss://broker.example/v2/ws/v1/stream"
    )


def test_missing_or_unreadable_settings_are_usage_errors(keys: None) -> None:
    with pytest.raises(click.UsageError, match="BROKER_BASE_URL is set; set it in"):
        find_account()
    Path(".env").write_bytes(b"BROKER_WS_URL=\xff")
    with pytest.raises(click.UsageError, match=r"'\.env' can't be read"):
        find_account()


# --- The secret from the terminal -----------------------------------------------------------


def test_typed_secret_is_not_shown(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BROKER_SECRET_KEY")
    # In its own session, so that it doesn't prompt on the terminal that runs the tests.
    with Terminal("balances", "--secret-key-stdin", start_new_session=True) as terminal:
        terminal.until("Secret key: ")
        terminal.type(f"{broker.sandbox.secret_key}\n")
        assert terminal.end() == 0
    assert "USDT" in terminal.shown
    assert broker.sandbox.secret_key not in terminal.shown


def test_empty_secret_is_an_error_that_names_the_flag(broker: Broker) -> None:
    with Terminal("balances", "--secret-key-stdin", start_new_session=True) as terminal:
        terminal.until("Secret key: ")
        terminal.type("\x04")
        assert terminal.end() == 2
    assert "--secret-key-stdin: the first line of standard input is empty" in terminal.shown


# --- Files ----------------------------------------------------------------------------------


@contextmanager
def piped(text: str) -> Iterator[Path]:
    """Create a pipe with a text in it, like ``<(…)`` in a shell."""
    path = Path("pipe")
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(text,), daemon=True)
    writer.start()
    yield path
    writer.join()


def test_pipe_is_read_like_a_file(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BROKER_SECRET_KEY")
    with piped(f"BROKER_SECRET_KEY={broker.sandbox.secret_key}\n") as pipe:
        assert status("balances", "--env-file", pipe) == 0


def test_pipe_is_read_once_per_command() -> None:
    with piped("BROKER_API_KEY=mine\n") as pipe, click.Context(click.Command("any")):
        assert [dict(find_settings(env_file=pipe, environ={}).values) for _ in range(2)] == [
            {"BROKER_API_KEY": "mine"}
        ] * 2


def test_folder_is_not_a_settings_file() -> None:
    Path(".env").mkdir()
    assert find_settings(environ={}).values == {}
    with pytest.raises(click.UsageError, match=r"there is no file '\.env'"):
        find_settings(env_file=Path(".env"), environ={})


@pytest.mark.parametrize("name", ["/dev/zero", "x" * 5000, "a\0b"])
def test_unreadable_file_is_a_usage_error(name: str) -> None:
    with pytest.raises(click.UsageError, match=r"can't be read|too large|no file"):
        find_settings(env_file=Path(name), environ={})


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("name", ["BROKER_API_KEY", "BROKER_SECRET_KEY"])
def test_key_that_is_not_utf_8_is_a_usage_error(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "abcdef\udcff")
    assert status("balances") == 2
    assert "abcdef" not in capsys.readouterr().err


def test_variables_in_a_secret_are_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "other")
    assert found_in('BROKER_SECRET_KEY="a${OTHER}b"\n') == {"BROKER_SECRET_KEY": "a${OTHER}b"}


@pytest.mark.parametrize(
    "text", ['BROKER_SECRET_KEY="hush\n', "export BROKER_SECRET_KEY = 'hush\nOTHER=1\n"]
)
def test_missing_quote_is_an_error_that_names_the_line(
    text: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(".env").write_text(f"# mine\n{text}")
    assert status("balances") == 2
    error = capsys.readouterr().err
    assert error.endswith("Error: line 2 of '.env' can't be read: is a quote missing?\n")
    assert "hush" not in error
    assert not caplog.records


def test_invalid_lines_of_other_programs_are_ignored() -> None:
    assert found_in("OTHER='\nBROKER_API_KEY=mine\n") == {"BROKER_API_KEY": "mine"}


# --- URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["wss://a..b/", "https://a:0", "wss://[fe80::1%eth0]/", "wss://*/"])
@pytest.mark.parametrize("name", ["--url", "BROKER_WS_URL", "BROKER_BASE_URL"])
def test_invalid_url_is_a_usage_error_that_names_its_source(
    url: str,
    name: str,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--url", url] if name == "--url" else []
    if not flags:
        monkeypatch.delenv("BROKER_WS_URL")
        monkeypatch.setenv(name, url)
    for command in (["balances"], ["watch"], ["order", "ord_1"], ["doctor"]):
        assert status(*command, *flags) == 2
        output = capsys.readouterr()
        assert f"{name} has " in output.out + output.err
    assert broker.received() == []


@pytest.mark.parametrize("name", ["--url", "BROKER_WS_URL", "BROKER_BASE_URL"])
def test_remote_url_without_tls_is_a_usage_error_that_names_its_source(
    name: str,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--url", "ws://a.example"] if name == "--url" else []
    if not flags:
        monkeypatch.delenv("BROKER_WS_URL")
        monkeypatch.setenv(name, "ws://a.example")
    assert status("balances", *flags) == 2
    error = capsys.readouterr().err
    assert f"{name} connects to 'a.example' without TLS" in error
    assert "--allow-insecure" in error
    assert broker.received() == []
