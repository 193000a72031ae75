"""Whose account a command works with: from its flags, then the environment, then a .env file.

The secret key is never a flag, as the list of processes shows those to everybody on the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

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

Client = TypeVar("Client", bound=BrokerWSClient)

ENV_FILE: Final = Path(".env")


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
        from trio_broker.sandbox.accounts import DOCUMENTED_ACCOUNTS  # noqa: PLC0415

        keys = {account.api_key for account in DOCUMENTED_ACCOUNTS}
        return self.endpoint.is_loopback and self.api_key in keys

    @property
    def label(self) -> str:
        """``SANDBOX`` or ``LIVE``: what isn't certainly play money is real."""
        return "SANDBOX" if self.is_sandbox else "LIVE"

    def client(self, **options: Any) -> BrokerWSClient:
        """A client of it, not yet connected.

        Args:
            options: Options of `BrokerWSClient`.
        """
        return self.client_of(BrokerWSClient, **options)

    def client_of(self, kind: type[Client], **options: Any) -> Client:
        """A client of a kind of its own, not yet connected.

        Args:
            kind: Its class.
            options: Options of `BrokerWSClient`.
        """
        return kind(
            self.api_key,
            self.secret_key,
            self.ws_url,
            signing_key=self.signing_key,
            transport=self.transport,
            allow_insecure=self.allow_insecure,
            **options,
        )


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
    found = {**_from_file(env_file), **{name: text for name, text in environ.items() if text}}
    if url is not None:
        found["BROKER_WS_URL"] = url
    if secret_key_stdin:
        found["BROKER_SECRET_KEY"] = sys.stdin.readline().strip()
        if not found["BROKER_SECRET_KEY"]:
            raise click.UsageError("--secret-key-stdin: the first line of standard input is empty")
    try:
        if found.get("BROKER_WS_URL", "").startswith(("https://", "http://")):
            found["BROKER_WS_URL"] = stream_url(found["BROKER_WS_URL"])
        api_key, secret_key, ws_url = from_environment(found)
        endpoint = parse_url(ws_url, allow_insecure=options.get("allow_insecure", False))
    except ConfigurationError as error:
        raise click.UsageError(
            f"{error}; set it in the environment or in a .env file (the URL by --url too)"
        ) from None
    return Account(
        api_key=api_key, secret_key=secret_key, ws_url=ws_url, endpoint=endpoint, **options
    )


def _from_file(env_file: Path | None) -> dict[str, str]:
    from dotenv import dotenv_values  # noqa: PLC0415 - `--help` doesn't need it

    path = env_file if env_file is not None else ENV_FILE
    if not path.is_file():
        if env_file is not None:
            raise click.UsageError(f"--env-file: there is no file {str(env_file)!r}")
        return {}
    try:
        return {name: text for name, text in dotenv_values(path).items() if text}
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"{str(path)!r} can't be read: {error}") from None
