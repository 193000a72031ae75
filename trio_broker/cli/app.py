"""The root command and the list of its subcommands, which are imported when they are needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from trio_broker import __version__
from trio_broker.cli.terminal.stdout import discard_stdout_on_error, stdout_error

COMMANDS: Final = {
    "balances": "Show the balances of the account.",
    "watch": "Watch the connection, the balances and orders on a live screen.",
    "estimate": "Estimate what a swap would bring.",
    "swap": "Swap, and follow the order until it is final.",
    "order": "Show an order, or follow it until it is final.",
    "swaps": "List the swaps in a journal, and reconcile unresolved ones.",
    "doctor": "Check each step from the configuration to a subscription.",
    "demo": "Run a complete example against a built-in sandbox broker.",
    "sandbox": "Run a sandbox broker with play money until Ctrl-C.",
    "completion": "Print the completion script for a shell.",
}
"""The commands and their help texts. They are here so that `--help` imports no command."""


@contextmanager
def _ctrl_c_exits_with_130() -> Iterator[None]:
    """Exit with 130 on Ctrl-C; click would print "Aborted!" and exit with 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


class _Commands(click.Group):
    """A group that imports a command's module only when the command or its help is called."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run like click, but report an error of standard output in one line."""
        problem: str | None
        if sys.__stdout__ is None:
            # The result would be lost, or written to another file that has descriptor 1.
            problem = "standard output is closed"
        else:
            try:
                return super().main(*args, **kwargs)
            except OSError as error:  # for example of `--help`, which runs no command
                problem = stdout_error(error)
                if problem is None:
                    raise
                discard_stdout_on_error()
        click.echo(f"Error: {problem}", err=True)
        sys.exit(1)

    @_ctrl_c_exits_with_130()
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        return super().make_context(*args, **kwargs)

    @_ctrl_c_exits_with_130()
    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"trio_broker.cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        commands = [
            CompletionItem(name, help=COMMANDS[name])
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        # Not click.Group's method, which would import every command for its help.
        return commands + super(click.Group, self).shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="trio-broker %(version)s")
def app() -> None:
    """A client for TheOne Trading API, and a sandbox broker with play money.

    Keys and URL come from BROKER_API_KEY, BROKER_SECRET_KEY and BROKER_WS_URL (or
    BROKER_BASE_URL), in the environment or in a .env file.

    Exit statuses: 0 success; 1 failure; 2 usage; 3 authentication; 4 connection; 5 refused by the
    broker; 6 a swap's outcome is unknown; 130 Ctrl-C.
    """
