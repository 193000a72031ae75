"""``trio-broker sandbox``: a broker of play money for other processes."""

from __future__ import annotations

import signal
from pathlib import Path

import click
import trio

from trio_broker.cli.ending import Status, run
from trio_broker.sandbox import open_sandbox


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="The TCP port; 0 for any that is free.",
)
@click.option(
    "--seed",
    type=int,
    default=None,
    show_default="0, or the one of --state",
    help="What prices, and how orders go, depend on.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file for balances and orders; started with it again, the sandbox goes on from there.",
)
def command(*, host: str, port: int, seed: int | None, state: Path | None) -> None:
    """Serve a broker of play money until Ctrl-C.

    Its URL and the keys of its first account are printed as lines that a shell, or a .env file,
    takes as they are. There is no TLS: whoever reaches the address can read along.
    """
    run(lambda: _serve(host, port, seed, state))


async def _serve(host: str, port: int, seed: int | None, state: Path | None) -> int:
    async with open_sandbox(seed=seed, host=host, port=port, state=state) as sandbox:
        # Signals are received rather than raised, so that clients get a polite goodbye. Outside of
        # this block they are raised again: a second Ctrl-C ends the goodbye.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            click.echo(f"BROKER_WS_URL={sandbox.url}")
            click.echo(f"BROKER_API_KEY={sandbox.api_key}")
            click.echo(f"BROKER_SECRET_KEY={sandbox.secret_key}")
            click.echo("Serving play money until Ctrl-C.", err=True)
            received = await anext(aiter(signals))
    return Status.INTERRUPTED if received == signal.SIGINT else 0
