"""``trio-broker watch``: shows the connection, balances and orders on a live screen."""

from __future__ import annotations

from collections.abc import Sequence

import click

from trio_broker.cli.account import Account
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.runner import run
from trio_broker.cli.terminal.output import Output
from trio_broker.cli.watch.board import BALANCES
from trio_broker.cli.watch.following import watch_channels


@click.command()
@click.argument("channels", nargs=-1, metavar="[CHANNEL]...")
@click.option("--raw", is_flag=True, help="Print the broker's messages, one per line.")
@account_options
@output_options
def command(*, channels: Sequence[str], raw: bool, account: Account, output: Output) -> None:
    """Watch the connection, the balances and orders on a live screen.

    CHANNEL is a channel of the broker: "balances" (the default), "orders:ID" for an order, or any
    other channel, whose messages are shown unchanged. The command reconnects after outages, and
    runs until Ctrl-C. If the broker refuses a channel, the refusal is shown and the other channels
    continue; if no channel is left, the exit status is 5.

    In a pipe, or with --json, each line is one object, with "event", "at", and:

    \b
    message               channel, origin, gap, data
    connected
    subscribed            channel
    disconnected          error, retry_in (seconds, or null)
    restored              channels
    channel_refused       channel, error
    channel_error         channel, error
    snapshot_unavailable  channel, error
    odd                   reason, raw
    gave_up               error
    closed

    The origin is "push" or "snapshot"; gap is null, or has reasons, dropped and since. The data of
    balances is a list with asset, total, locked and available; that of an order has order_id,
    status, filled_out, tx_hash, updated_at and client_order_id.

    --quiet omits all events except for messages; on a screen, it omits the list of events. --raw
    prints the broker's messages unchanged, except for keys, signatures and control characters.
    """  # noqa: D301 - click's mark for lines that are not wrapped
    if raw and output.as_json:
        raise click.UsageError("--raw and --json can't be combined")
    names = channels or (BALANCES,)
    run(lambda: watch_channels(names, account, output, raw=raw), debug=output.debug)
