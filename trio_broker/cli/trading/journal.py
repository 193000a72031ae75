"""The swap journal that a command uses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import click

from trio_broker import JournalError
from trio_broker.cli.account import find_setting
from trio_broker.cli.options import Command
from trio_broker.lockfile import lock_path

VARIABLE: Final = "BROKER_JOURNAL"


def default_journal() -> Path:
    """Return the user's journal, which commands use unless another one is named."""
    from platformdirs import user_state_path  # noqa: PLC0415 - `--help` doesn't need it

    return user_state_path("trio-broker") / "swaps.journal"


def configured_journal() -> Path | None:
    """Return the journal that the environment or the settings file names, if any."""
    env_file: Path | None = click.get_current_context().params.get("env_file")
    name = find_setting(VARIABLE, env_file=env_file)
    return Path(name) if name else None


def make_folder(journal: Path) -> None:
    """Create the folder of the default journal; the folders of other journals must exist.

    Raises:
        JournalError: The folder can't be created.
    """
    if journal != default_journal():
        return
    try:
        journal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(f"{journal.parent} can't be created: {error.strerror}") from error


def exists(journal: Path) -> bool:
    """Whether a journal exists, or its lock file shows that it did."""
    return journal.exists() or lock_path(journal.resolve()).exists()


def adopt_option(function: Command) -> Command:
    """Add ``--adopt``."""
    return click.option(
        "--adopt",
        is_flag=True,
        help="Use the journal although it was copied or moved. No other copy may be used.",
    )(function)


def journal_options(function: Command) -> Command:
    """Add options for the journal, passed as ``journal`` (a path, or None) and ``adopt``."""

    @click.option(
        "--journal",
        "file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Record swaps in this file instead of the user's journal.  [env: {VARIABLE}]",
    )
    @click.option(
        "--no-journal",
        is_flag=True,
        help="Don't record the swap. After a crash, it can't be reconciled.",
    )
    @adopt_option
    @functools.wraps(function)
    def command(*args: Any, file: Path | None, no_journal: bool, **kwargs: Any) -> Any:
        if no_journal and (file is not None or kwargs["adopt"]):
            other = "--adopt" if file is None else "--journal"
            raise click.UsageError(f"{other} and --no-journal can't be combined")
        journal = None
        if not no_journal:
            journal = (file or configured_journal() or default_journal()).absolute()
        return function(*args, journal=journal, **kwargs)

    return command
