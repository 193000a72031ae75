"""The account of a command: from the flags, the environment or a .env file, in this order.

The secret key is never a flag, because every user of the machine can list the flags of processes.
"""

from __future__ import annotations

import getpass
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import click

from trio_broker import BrokerWSClient, ConfigurationError
from trio_broker.cli.terminal.output import hide
from trio_broker.models import Dialect
from trio_broker.settings import (
    DIALECT_VARIABLE,
    Endpoint,
    TransportName,
    from_environment,
    parse_dialect,
    parse_url,
    stream_url,
)
from trio_broker.signing import SigningKey

ENV_FILE: Final = Path(".env")
_LARGEST_FILE: Final = 1_000_000  # characters
HOW_TO_SET: Final = "set it in the environment or in a .env file (--url sets the URL too)"

_API_KEY: Final = "BROKER_API_KEY"
_SECRET_KEY: Final = "BROKER_SECRET_KEY"  # noqa: S105 - the variable's name
_WS_URL: Final = "BROKER_WS_URL"
_BASE_URL: Final = "BROKER_BASE_URL"
_NAMES: Final = (_API_KEY, _SECRET_KEY, _WS_URL, _BASE_URL, DIALECT_VARIABLE)


@attrs.frozen(kw_only=True)
class Account:
    """An account at a broker, and how to connect to it.

    Attributes:
        api_key: The API key.
        secret_key: The secret key.
        ws_url: The WebSocket URL; its query may contain secrets.
        endpoint: The parts of the URL that may be shown.
        dialect: The form of requests.
        signing_key: The key that messages are signed with; None follows the dialect.
        transport: The WebSocket library.
        allow_insecure: Allow plaintext connections to remote hosts.
    """

    api_key: str = attrs.field(repr=False)
    secret_key: str = attrs.field(repr=False)
    ws_url: str = attrs.field(repr=False)
    endpoint: Endpoint
    dialect: Dialect = "clients"
    signing_key: SigningKey | None = None
    transport: TransportName = "trio-websocket"
    allow_insecure: bool = False

    @property
    def is_sandbox(self) -> bool:
        """Whether the account has play money: a documented sandbox key at a local address."""
        # Imported here, because few commands need it.
        from trio_broker.sandbox import is_play_money  # noqa: PLC0415

        return is_play_money(self.api_key, self.ws_url)

    @property
    def label(self) -> str:
        """``SANDBOX`` if the account certainly has play money, otherwise ``LIVE``."""
        return "SANDBOX" if self.is_sandbox else "LIVE"

    def client(self, **options: Any) -> BrokerWSClient:
        """Create a client, not yet connected, with further options of `BrokerWSClient`."""
        return BrokerWSClient(
            self.api_key,
            self.secret_key,
            self.ws_url,
            dialect=self.dialect,
            signing_key=self.signing_key,
            transport=self.transport,
            allow_insecure=self.allow_insecure,
            **options,
        )


@attrs.frozen(kw_only=True)
class FoundSettings:
    """The settings of an account, not yet checked.

    Attributes:
        values: The settings, by variable name.
        sources: The source of each setting: a flag, ``the environment``, or a file name.
        secret_file: The file that contains a secret key, even if a different key is used.
    """

    values: Mapping[str, str] = attrs.field(repr=False)
    sources: Mapping[str, str]
    secret_file: Path | None = None


def find_account(
    *,
    url: str | None = None,
    env_file: Path | None = None,
    secret_key_stdin: bool = False,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> Account:
    """Find the settings of an account, and check them.

    Args:
        url: A WebSocket URL or a base URL.
        env_file: A file with variables; None means ``.env``, if it exists.
        secret_key_stdin: Read the secret key from the first line of standard input.
        environ: The environment; None means `os.environ`.
        **options: Further attributes of `Account`.

    Raises:
        click.UsageError: A setting is missing or invalid; the message names it.
    """
    found = find_settings(
        url=url, env_file=env_file, secret_key_stdin=secret_key_stdin, environ=environ
    )
    try:
        return make_account(found, **options)
    except ConfigurationError as error:
        raise click.UsageError(f"{error}; {HOW_TO_SET}") from None


def find_settings(
    *,
    url: str | None = None,
    env_file: Path | None = None,
    secret_key_stdin: bool = False,
    environ: Mapping[str, str] | None = None,
) -> FoundSettings:
    """Find the settings of an account without checking them; see `find_account`.

    Raises:
        click.UsageError: A file is missing or can't be read, or no secret key was entered.
    """
    path = env_file if env_file is not None else ENV_FILE
    in_file = _account_settings(_variables_of(path, is_required=env_file is not None))
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for source, settings in (
        (str(path), in_file),
        ("the environment", _account_settings(os.environ if environ is None else environ)),
        ("--url", {} if url is None else {_WS_URL: url}),
        ("--secret-key-stdin", {_SECRET_KEY: _read_secret()} if secret_key_stdin else {}),
    ):
        hide(*(settings[name] for name in (_API_KEY, _SECRET_KEY) if name in settings))
        if settings.keys() & {_WS_URL, _BASE_URL}:
            # A URL replaces one of lower priority, even if only one of them is a base URL.
            for name in (_WS_URL, _BASE_URL):
                values.pop(name, None)
                sources.pop(name, None)
        values.update(settings)
        sources.update(dict.fromkeys(settings, source))
    return FoundSettings(
        values=values, sources=sources, secret_file=path if _SECRET_KEY in in_file else None
    )


def find_setting(name: str, *, env_file: Path | None = None) -> str:
    """Return any setting, from the environment or the file; empty if it isn't set.

    Raises:
        click.UsageError: The file can't be read.
    """
    value = os.environ.get(name, "").strip()
    if value:
        return value
    path = env_file if env_file is not None else ENV_FILE
    return (_variables_of(path, is_required=env_file is not None).get(name) or "").strip()


def make_account(found: FoundSettings, **options: Any) -> Account:
    """Check settings, and create an account with further attributes.

    Raises:
        ConfigurationError: A setting is missing or invalid; the message names it.
    """
    values = dict(found.values)
    name = "--url" if found.sources.get(_WS_URL) == "--url" else _WS_URL
    if values.get(_WS_URL, "").startswith(("https://", "http://")):
        values[_WS_URL] = stream_url(values[_WS_URL], name=name)
    if name == "--url":
        # Checked before `from_environment`, whose errors name the variable instead of the flag.
        parse_url(values[_WS_URL], allow_insecure=True, name=name)
    api_key, secret_key, ws_url = from_environment(values)
    if _WS_URL not in values:
        name = _BASE_URL
    allow_insecure = options.get("allow_insecure", False)
    endpoint = parse_url(ws_url, allow_insecure=allow_insecure, name=name)
    if options.get("dialect") is None:
        options["dialect"] = parse_dialect(values.get(DIALECT_VARIABLE, "")) or "clients"
    return Account(
        api_key=api_key, secret_key=secret_key, ws_url=ws_url, endpoint=endpoint, **options
    )


def _account_settings(variables: Mapping[str, str | None]) -> dict[str, str]:
    """Select the variables that belong to an account and aren't empty."""
    texts = {name: (variables.get(name) or "").strip() for name in _NAMES}
    return {name: text for name, text in texts.items() if text}


def _read_secret() -> str:
    """Read the secret key from standard input, without echo on a terminal."""
    is_typed = sys.stdin.isatty()
    try:
        line = (getpass.getpass("Secret key: ") if is_typed else sys.stdin.readline()).strip()
    except EOFError:
        line = ""
    if not line:
        raise click.UsageError("--secret-key-stdin: the first line of standard input is empty")
    return line


def _variables_of(path: Path, *, is_required: bool) -> Mapping[str, str | None]:
    """Read the variables in a file, once per command: a pipe can't be read twice."""
    context = click.get_current_context(silent=True)
    files = {} if context is None else context.meta.setdefault(__name__, {})
    if path not in files:
        files[path] = _read_variables(path, is_required=is_required)
    variables: Mapping[str, str | None] = files[path]
    return variables


def _read_variables(path: Path, *, is_required: bool) -> Mapping[str, str | None]:
    # Not `dotenv_values`, which expands a `$` in a secret and only logs invalid lines.
    from dotenv.parser import parse_stream  # noqa: PLC0415 - `--help` doesn't need it

    try:
        # Not `is_file`: the path may be a pipe, for example from a password manager.
        if path.is_dir() or not path.exists():
            if is_required:
                raise click.UsageError(f"--env-file: there is no file {str(path)!r}")
            return {}
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
    # ValueError: the name contains a NUL, or the text isn't UTF-8.
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{str(path)!r} can't be read: {error}") from None
    if len(text) > _LARGEST_FILE:
        # For example /dev/zero, which never ends.
        raise click.UsageError(f"{str(path)!r} is too large for a settings file")
    lines = list(parse_stream(io.StringIO(text)))
    for line in lines:
        # Invalid lines of other programs are ignored.
        if line.error and any(name in line.original.string for name in _NAMES):
            raise click.UsageError(
                f"line {line.original.line} of {str(path)!r} can't be read: is a quote missing?"
            )
    return {line.key: line.value for line in lines if line.key is not None}
