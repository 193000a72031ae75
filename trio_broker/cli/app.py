"""The command line's root: which commands there are. None is imported before it is needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from trio_broker import __version__
from trio_broker.cli.unwritable import give_up_output, output_trouble

# The lines of `--help`, here so that it needs no command's module.
_COMMANDS: Final = {
    "balances": "Show what the account holds.",
    "watch": "Watch the connection, the balances and orders on a live screen.",
    "estimate": "Ask what a swap would bring.",
    "swap": "Swap, and follow the order to its end.",
    "order": "Show an order, or follow it to its end.",
    "swaps": "List the swaps in a journal, and ask for those that aren't resolved.",
    "doctor": "Check each step from the configuration to a subscription.",
    "demo": "Show the whole story against a broker of play money.",
    "sandbox": "Serve a broker of play money until Ctrl-C.",
    "completion": "Print the script that makes a shell complete this command.",
}


@contextmanager
def _ctrl_c_is_a_status() -> Iterator[None]:
    """Click says "Aborted!" and ends with 1 where a Ctrl-C reaches it."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


class _Commands(click.Group):
    """Imports a command's module when the command is run, or its help is asked for."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, as click does; what it says of standard output is one line.

        Args:
            args: As click has them.
            kwargs: As click has them.
        """
        trouble: str | None
        if sys.__stdout__ is None:
            # A result would be lost without a word, or go to some other file that has got its
            # number by now, a socket even.
            trouble = "standard output is closed"
        else:
            try:
                return super().main(*args, **kwargs)
            except OSError as error:  # of `--help` and the like, which end before a command runs
                trouble = output_trouble(error)
                if trouble is None:
                    raise
                give_up_output()
        click.echo(f"Error: {trouble}", err=True)
        sys.exit(1)

    @_ctrl_c_is_a_status()
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        return super().make_context(*args, **kwargs)

    @_ctrl_c_is_a_status()
    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"trio_broker.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        commands = [
            CompletionItem(name, help=_COMMANDS[name])
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        # Past click.Group's own, which would import every command for its help.
        return commands + super(click.Group, self).shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="trio-broker %(version)s")
def app() -> None:
    """A client for TheOne Trading API, and a broker of play money to try it with.

    Keys and URL come from BROKER_API_KEY, BROKER_SECRET_KEY and BROKER_WS_URL (or
    BROKER_BASE_URL), in the environment or in a .env file.

    Exit statuses: 0 all went well; 1 failure; 2 usage; 3 authentication; 4 connection; 5 refused
    by the broker; 6 a swap's outcome is unknown; 130 Ctrl-C.
    """
