"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import click
from click.core import ParameterSource

from trio_broker.cli.account import find_account
from trio_broker.cli.terminal.output import Output
from trio_broker.models import Dialect
from trio_broker.settings import TransportName
from trio_broker.signing import SigningKey

Command: TypeAlias = Callable[..., Any]

_OUTPUT: Final = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line."),
    click.option("-q", "--quiet", is_flag=True, help="Print only results and errors."),
    click.option("-v", "--verbose", count=True, help="Show the log; -vv adds debug messages."),
    click.option("--debug", is_flag=True, help="Show the tracebacks of errors."),
)

_ACCOUNT: Final = (
    click.option(
        "--url",
        metavar="URL",
        help="The broker: wss://…, or a base URL https://…  [env: BROKER_WS_URL, BROKER_BASE_URL]",
    ),
    click.option(
        "--env-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Read the settings from this file or pipe instead of .env.",
    ),
    click.option(
        "--secret-key-stdin",
        is_flag=True,
        help="Read the secret key from the first line of standard input, or prompt for it.",
    ),
    click.option(
        "--dialect",
        type=click.Choice(get_args(Dialect)),
        help="The form of requests: as the official clients send them (the default), or as the "
        "broker's documentation shows them.  [env: BROKER_DIALECT]",
    ),
    click.option(
        "--signing-key",
        type=click.Choice(get_args(SigningKey)),
        help="Sign with a key derived from the secret key, as the official clients do, or with the "
        "secret key itself.  [default: as --dialect requires]",
    ),
    click.option(
        "--transport",
        type=click.Choice(get_args(TransportName)),
        default="trio-websocket",
        show_default=True,
        help="The WebSocket library.",
    ),
    click.option("--allow-insecure", is_flag=True, help="Allow ws:// to a remote host."),
)


def output_options(function: Command) -> Command:
    """Add ``--json``, ``--quiet``, ``--verbose`` and ``--debug``, passed as ``output``."""

    @functools.wraps(function)
    def command(
        *args: Any, as_json: bool, quiet: bool, verbose: int, debug: bool, **kwargs: Any
    ) -> Any:
        output = Output(as_json=as_json, quiet=quiet, verbose=verbose, debug=debug)
        output.start_log()
        return function(*args, output=output, **kwargs)

    return _with(_OUTPUT, command)


def account_options(function: Command) -> Command:
    """Add the flags for the account, which is found and passed as ``account``."""

    @account_flags
    @functools.wraps(function)
    def command(*args: Any, flags: dict[str, Any], **kwargs: Any) -> Any:
        return function(*args, account=find_account(**flags), **kwargs)

    return command


def account_flags(function: Command) -> Command:
    """Add the flags for the account, passed as ``flags``: the arguments of `find_account`."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in _ACCOUNT_NAMES}
        return function(*args, flags=flags, **kwargs)

    return _with(_ACCOUNT, command)


def given_account_flags() -> list[str]:
    """Return the account flags of this call, to be shown as part of a follow-up command.

    The query of the URL is omitted, because it may contain secrets.
    """
    context = click.get_current_context()
    words = []
    for option in context.command.params:
        name = option.name or ""
        if name not in _ACCOUNT_NAMES:
            continue
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        words.append(option.opts[0])
        if isinstance(value, Path):
            words.append(str(value.absolute()))
        elif isinstance(value, str):
            url, query, _ = value.partition("?")
            words.append(f"{url}?…" if query else url)
    return words


_ACCOUNT_NAMES: Final = (
    "url", "env_file", "secret_key_stdin", "dialect", "signing_key", "transport",
    "allow_insecure",
)  # fmt: skip


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
