"""``trio-broker demo``: a complete example against a built-in sandbox broker."""

from __future__ import annotations

import click

from trio_broker.cli.demo.story import run_demo
from trio_broker.cli.options import output_options
from trio_broker.cli.runner import run
from trio_broker.cli.terminal.output import Output, has_screen


@click.command()
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The seed for the market prices."
)
@click.option("--fast", is_flag=True, help="Don't pause between the steps.")
@output_options
def command(*, seed: int, fast: bool, output: Output) -> None:
    """Run a complete example against a built-in sandbox broker.

    It connects, swaps, follows the order, loses the connection, reconnects and checks the balances,
    over a real WebSocket and with play money. It takes about eight seconds on a terminal, and one
    second elsewhere or with --fast. The exit status is 0 only if every step succeeded.

    --json prints one object per event:

    \b
    sandbox    url, seed
    connected
    balances   balances
    estimate   price, expected_out, fee
    swap       order_id, status, client_order_id
    order      order_id, client_order_id, status, filled_out, origin
    lost       retry_in
    restored   channels
    gap        since, origin
    closed     state
    end        ok, sold, bought
    """  # noqa: D301 - click's mark for lines that are not wrapped
    draws = not (output.as_json or output.quiet or output.verbose) and has_screen()
    run(lambda: run_demo(seed, output, fast=fast, draws=draws), debug=output.debug)
