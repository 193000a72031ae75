"""Which journal of swaps a command uses, and which commands ask for what is in doubt."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click

from trio_broker import JournalError
from trio_broker.cli.account import setting
from trio_broker.cli.options import Command
from trio_broker.cli.output import printable

VARIABLE: Final = "BROKER_JOURNAL"


def usual_path() -> Path:
    """The user's journal, where no other is named."""
    from platformdirs import user_state_path  # noqa: PLC0415 - `--help` doesn't need it

    return user_state_path("trio-broker") / "swaps.journal"


def named_journal() -> Path | None:
    """The journal that the environment names, or the file with this command's settings."""
    env_file: Path | None = click.get_current_context().params.get("env_file")
    name = setting(VARIABLE, env_file=env_file)
    return Path(name) if name else None


def make_folder(journal: Path) -> None:
    """Make the folder of the user's own journal; whoever names another has one for it.

    Args:
        journal: The journal that is to be used.

    Raises:
        JournalError: It can't be made.
    """
    if journal != usual_path():
        return
    try:
        journal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(f"{journal.parent} can't be made: {error.strerror}") from error


def journal_options(function: Command) -> Command:
    """Give a command ``--journal`` and ``--no-journal``.

    Args:
        function: The command, which takes ``journal``: the file's path, or None for none.
    """

    @click.option(
        "--journal",
        "file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Where swaps are written down, instead of the user's journal.  [env: {VARIABLE}]",
    )
    @click.option(
        "--no-journal",
        is_flag=True,
        help="Write nothing down: after a crash, nothing here knows of the swap.",
    )
    @functools.wraps(function)
    def command(*args: Any, file: Path | None, no_journal: bool, **kwargs: Any) -> Any:
        if no_journal and file is not None:
            raise click.UsageError("--journal and --no-journal can't go together")
        journal = None if no_journal else (file or named_journal() or usual_path()).absolute()
        return function(*args, journal=journal, **kwargs)

    return command


@attrs.frozen
class NextCommands:
    """The commands that are shown to whoever is left in doubt.

    They can be pasted as they are, but for what isn't shown: a URL's query, control characters.

    Attributes:
        journal: The journal's file, None for none.
        flags: The flags that say whose account it is, as they were given.
    """

    journal: Path | None
    flags: Sequence[str] = ()

    def ask(self, client_order_id: str) -> str:
        """What asks what became of a swap.

        Args:
            client_order_id: Its client order id.
        """
        if self.journal is None:
            return self._words("order", client_order_id)
        return self.reconcile()

    def reconcile(self) -> str:
        """What asks for all that isn't resolved."""
        return self._words("swaps", self._file(), "--reconcile")

    def in_doubt(self) -> str:
        """What lists all that isn't resolved, of whatever account."""
        return printable(
            shlex.join(["trio-broker", "swaps", *filter(None, [self._file()]), "--unresolved"])
        )

    def follow(self, order_id: str) -> str:
        """What follows an order to its end.

        Args:
            order_id: The order's id.
        """
        return self._words("order", order_id, "--follow")

    def settle(self, client_order_id: str) -> str:
        """What closes a swap by hand.

        Args:
            client_order_id: Its client order id.
        """
        name = f"--settle={client_order_id}"  # so that one that begins with "-" is no flag
        return self._words("swaps", self._file(), name, "--note", "HOW YOU KNOW")

    def _file(self) -> str:
        # With the variable set, another terminal may have it set otherwise.
        is_usual = self.journal == usual_path() and named_journal() is None
        return "" if is_usual else str(self.journal)

    def _words(self, name: str, argument: str, *options: str) -> str:
        words = ["trio-broker", name]
        if argument.startswith("-"):
            words += [*options, *self.flags, "--", argument]
        else:
            words += [*filter(None, [argument]), *options, *self.flags]
        return printable(shlex.join(words))


def counted(number: int, thing: str) -> str:
    """A number of things.

    Args:
        number: How many.
        thing: What one is called.
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
