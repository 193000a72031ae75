"""The command line's root: which commands there are."""

from __future__ import annotations

import click

from trio_broker import __version__
from trio_broker.cli import demo, sandbox, swaps


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="trio-broker %(version)s")
def app() -> None:
    """A client for TheOne Trading API, and a broker of play money to try it with."""


app.add_command(demo.command, "demo")
app.add_command(sandbox.command, "sandbox")
app.add_command(swaps.command, "swaps")
