"""Whose account a command works with: from its flags, then the environment, then a .env file.

The secret key is never a flag, as the list of processes shows those to everybody on the machine.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import click

from trio_broker import BrokerWSClient, ConfigurationError
from trio_broker.settings import (
    Endpoint,
    TransportName,
    from_environment,
    parse_url,
    stream_url,
)
from trio_broker.signing import SigningKey

ENV_FILE: Final = Path(".env")
HOW_TO_SET: Final = "set it in the environment or in a .env file (the URL by --url too)"

_API_KEY: Final = "BROKER_API_KEY"
_SECRET_KEY: Final = "BROKER_SECRET_KEY"  # noqa: S105 - the variable's name
_WS_URL: Final = "BROKER_WS_URL"
_BASE_URL: Final = "BROKER_BASE_URL"
_NAMES: Final = (_API_KEY, _SECRET_KEY, _WS_URL, _BASE_URL)


@attrs.frozen(kw_only=True)
class Account:
    """An account at a broker, and how it is reached.

    Attributes:
        api_key: The API key.
        secret_key: The secret key.
        ws_url: The WebSocket's URL, whose query isn't for every eye.
        endpoint: Where the broker is.
        signing_key: How messages are signed.
        transport: The library that speaks WebSocket.
        allow_insecure: Whether ``ws://`` may leave this machine.
    """

    api_key: str = attrs.field(repr=False)
    secret_key: str = attrs.field(repr=False)
    ws_url: str = attrs.field(repr=False)
    endpoint: Endpoint
    signing_key: SigningKey = "derived"
    transport: TransportName = "trio-websocket"
    allow_insecure: bool = False

    @property
    def is_sandbox(self) -> bool:
        """Whether it is play money: the documented keys, at an address of this machine."""
        # The sandbox isn't imported where it isn't needed.
        from trio_broker.sandbox import is_play_money  # noqa: PLC0415

        return is_play_money(self.api_key, self.ws_url)

    @property
    def label(self) -> str:
        """``SANDBOX`` or ``LIVE``: what isn't certainly play money is real."""
        return "SANDBOX" if self.is_sandbox else "LIVE"

    def client(self, **options: Any) -> BrokerWSClient:
        """A client of it, not yet connected.

        Args:
            options: Options of `BrokerWSClient`.
        """
        return BrokerWSClient(
            self.api_key,
            self.secret_key,
            self.ws_url,
            signing_key=self.signing_key,
            transport=self.transport,
            allow_insecure=self.allow_insecure,
            **options,
        )


@attrs.frozen(kw_only=True)
class Found:
    """What was found of an account, before anybody looks whether it can work.

    Attributes:
        values: The settings, by the names of their variables.
        sources: Where each was found: a flag, ``the environment``, or a file's name.
        secret_file: The file that holds a secret key, whether that one counts or not.
    """

    values: Mapping[str, str] = attrs.field(repr=False)
    sources: Mapping[str, str]
    secret_file: Path | None = None


def find_account(
    *,
    url: str | None = None,
    env_file: Path | None = None,
    secret_key_stdin: bool = False,
    environ: Mapping[str, str] = os.environ,
    **options: Any,
) -> Account:
    """Look an account up.

    Args:
        url: The flag: a WebSocket URL, or a base URL.
        env_file: The flag: a file with variables; None for ``.env``, if there is one.
        secret_key_stdin: Whether the secret key is the first line of standard input.
        environ: The environment.
        **options: The other attributes of the account.

    Raises:
        click.UsageError: Something is missing, or can't work; the message names it.
    """
    found = gather(url=url, env_file=env_file, secret_key_stdin=secret_key_stdin, environ=environ)
    try:
        return account_of(found, **options)
    except ConfigurationError as error:
        raise click.UsageError(f"{error}; {HOW_TO_SET}") from None


def gather(
    *,
    url: str | None = None,
    env_file: Path | None = None,
    secret_key_stdin: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Found:
    """Find the settings of an account, each where it counts most.

    Args:
        url: As in `find_account`, and so the others.
        env_file: The file.
        secret_key_stdin: Whether the secret key is read from standard input.
        environ: The environment.

    Raises:
        click.UsageError: A flag names what isn't there, or can't be read.
    """
    path = env_file if env_file is not None else ENV_FILE
    in_file = _named(_from_file(path, is_wanted=env_file is not None))
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for source, settings in (
        (str(path), in_file),
        ("the environment", _named(environ)),
        ("--url", {} if url is None else {_WS_URL: url}),
        ("--secret-key-stdin", {_SECRET_KEY: _first_line()} if secret_key_stdin else {}),
    ):
        if settings.keys() & {_WS_URL, _BASE_URL}:
            # One place's base URL mustn't lose to another's WebSocket URL, which counts less.
            for name in (_WS_URL, _BASE_URL):
                values.pop(name, None)
                sources.pop(name, None)
        values.update(settings)
        sources.update(dict.fromkeys(settings, source))
    return Found(
        values=values, sources=sources, secret_file=path if _SECRET_KEY in in_file else None
    )


def setting(
    name: str, *, env_file: Path | None = None, environ: Mapping[str, str] = os.environ
) -> str:
    """A setting that isn't an account's, from the environment or else from the file; or empty.

    Args:
        name: The variable's name.
        env_file: As in `find_account`.
        environ: The environment.

    Raises:
        click.UsageError: The file can't be read.
    """
    value = environ.get(name, "").strip()
    if value:
        return value
    path = env_file if env_file is not None else ENV_FILE
    return (_from_file(path, is_wanted=env_file is not None).get(name) or "").strip()


def account_of(found: Found, **options: Any) -> Account:
    """The account that settings make.

    Args:
        found: The settings.
        **options: The other attributes of the account.

    Raises:
        ConfigurationError: Something is missing, or can't work; the message names it.
    """
    values = dict(found.values)
    if values.get(_WS_URL, "").startswith(("https://", "http://")):
        values[_WS_URL] = stream_url(values[_WS_URL])
    api_key, secret_key, ws_url = from_environment(values)
    endpoint = parse_url(ws_url, allow_insecure=options.get("allow_insecure", False))
    return Account(
        api_key=api_key, secret_key=secret_key, ws_url=ws_url, endpoint=endpoint, **options
    )


def _named(variables: Mapping[str, str | None]) -> dict[str, str]:
    """Those of the variables that are an account's, and set."""
    texts = {name: (variables.get(name) or "").strip() for name in _NAMES}
    return {name: text for name, text in texts.items() if text}


def _first_line() -> str:
    # A terminal would show it, and keep it in its scrollback.
    is_typed = sys.stdin.isatty()
    try:
        line = (getpass.getpass("Secret key: ") if is_typed else sys.stdin.readline()).strip()
    except EOFError:
        line = ""
    if not line:
        raise click.UsageError("--secret-key-stdin: the first line of standard input is empty")
    return line


def _from_file(path: Path, *, is_wanted: bool) -> Mapping[str, str | None]:
    """The variables in a file, which is read once a command: a pipe is empty the second time."""
    context = click.get_current_context(silent=True)
    files = {} if context is None else context.meta.setdefault(__name__, {})
    if path not in files:
        files[path] = _read(path, is_wanted=is_wanted)
    variables: Mapping[str, str | None] = files[path]
    return variables


def _read(path: Path, *, is_wanted: bool) -> Mapping[str, str | None]:
    # Not dotenv's own `dotenv_values`: it takes a `$` in a secret for a variable, and logs a line
    # that it can't read, and goes on without it.
    from dotenv.parser import parse_stream  # noqa: PLC0415 - `--help` doesn't need it

    # It may be a pipe, as a shell makes for a password manager's output.
    if path.is_dir() or not path.exists():
        if is_wanted:
            raise click.UsageError(f"--env-file: there is no file {str(path)!r}")
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(parse_stream(file))
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"{str(path)!r} can't be read: {error}") from None
    for line in lines:
        # Other programs' lines may be in it, and are theirs.
        if line.error and any(name in line.original.string for name in _NAMES):
            raise click.UsageError(
                f"line {line.original.line} of {str(path)!r} can't be read: is a quote not closed?"
            )
    return {line.key: line.value for line in lines if line.key is not None}
