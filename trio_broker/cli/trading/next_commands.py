"""The follow-up commands that are shown to the user, for example after an unknown outcome."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import attrs

from trio_broker.cli.terminal.output import printable
from trio_broker.cli.trading.journal import configured_journal, default_journal


@attrs.frozen
class NextCommands:
    """Commands that can be pasted into a shell.

    The query of a URL is omitted and control characters are escaped, so users must edit these.

    Attributes:
        journal: The journal file, or None.
        flags: The account flags of the current command.
    """

    journal: Path | None
    flags: Sequence[str] = ()

    def resolve(self, client_order_id: str) -> str:
        """Return the command that finds the outcome of a swap."""
        if self.journal is None:
            return self._command("order", client_order_id)
        return self.reconcile()

    def reconcile(self) -> str:
        """Return the command that reconciles all unresolved swaps of the account."""
        return self._command("swaps", self._file(), "--reconcile")

    def list_unresolved(self) -> str:
        """Return the command that lists the unresolved swaps of all accounts."""
        return printable(
            shlex.join(["trio-broker", "swaps", *filter(None, [self._file()]), "--unresolved"])
        )

    def follow(self, order_id: str) -> str:
        """Return the command that follows an order."""
        return self._command("order", order_id, "--follow")

    def settle(self, client_order_id: str) -> str:
        """Return the command that settles a swap."""
        name = f"--settle={client_order_id}"  # one argument, as the ID may begin with "-"
        return self._command("swaps", self._file(), name, "--note", "HOW YOU KNOW")

    def _file(self) -> str:
        # If BROKER_JOURNAL is set, name the file: the value may differ in another terminal.
        is_default = self.journal == default_journal() and configured_journal() is None
        return "" if is_default else str(self.journal)

    def _command(self, name: str, argument: str, *options: str) -> str:
        words = ["trio-broker", name]
        if argument.startswith("-"):
            words += [*options, *self.flags, "--", argument]
        else:
            words += [*filter(None, [argument]), *options, *self.flags]
        return printable(shlex.join(words))
