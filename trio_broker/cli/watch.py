"""``trio-broker watch``: the connection, the balances and orders on a live screen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import click

from trio_broker import ReconnectPolicy
from trio_broker.cli.account import Account
from trio_broker.cli.board import BALANCES, Board
from trio_broker.cli.ending import run
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.output import Output, console
from trio_broker.cli.views import Lines, Raw, Screen, View
from trio_broker.cli.watching import follow, until_told
from trio_broker.erasing import eraser

_STDOUT: Final = 1
# For ever: whoever watches wants to see how it comes back.
_POLICY: Final = ReconnectPolicy(max_attempts=None)
# Shorter than the default, so that the latency that is shown is one of now.
_HEARTBEAT_INTERVAL: Final = 5.0


@click.command()
@click.argument("channels", nargs=-1, metavar="[CHANNEL]...")
@click.option("--raw", is_flag=True, help="Print what the broker sends, one message a line.")
@account_options
@output_options
def command(*, channels: Sequence[str], raw: bool, account: Account, output: Output) -> None:
    """Watch the connection, the balances and orders on a live screen.

    CHANNEL is a channel as the broker has it: "balances" (which is watched if none is given),
    "orders:ID" for an order, or any other, whose messages are shown as they come. It goes on over
    outages, until Ctrl-C. A channel that the broker refuses is told, and the others go on; if none
    is left, the status is 5.

    In a pipe, or with --json, each line is one object: event, at, and more. A message has the event
    "message" and channel, origin ("push" or "snapshot"), gap (null, or reasons, dropped and since),
    and data: a list of asset, total, locked and available for the balances, and order_id, status,
    filled_out, tx_hash, updated_at and client_order_id for an order. The other events are

    \b
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

    With --quiet they are left out; on a screen the list of events is. With --raw, the broker's
    messages are printed as they came, but for keys, signatures and control characters.
    """  # noqa: D301 - click takes a backspace for "leave these lines as they are"
    if raw and output.as_json:
        raise click.UsageError("--raw prints the broker's texts: it doesn't go with --json")
    watch(channels or (BALANCES,), account, output, raw=raw)


def watch(channels: Sequence[str], account: Account, output: Output, *, raw: bool = False) -> None:
    """Show channels until somebody ends it, and end the process with its status.

    Args:
        channels: Their names.
        account: Whose.
        output: How.
        raw: Whether the broker's messages are shown as they come.
    """
    names = tuple(dict.fromkeys(channels))
    run(lambda: until_told(lambda: _watch(names, account, output, raw=raw)), debug=output.debug)


async def _watch(
    channels: Sequence[str], account: Account, output: Output, *, raw: bool = False
) -> None:
    client = account.client(reconnect=_POLICY, heartbeat_interval=_HEARTBEAT_INTERVAL)
    erase = eraser((account.api_key, account.secret_key))
    view: View
    # From the beginning, so that the first connection is told too.
    with ExitStack() as taps:
        events = taps.enter_context(client.events())
        if raw:
            view = Raw(output, erase, taps.enter_context(client.messages()))
        elif output.as_json or not _has_screen():
            view = Lines(output, erase)
        else:
            output.note(f"Connecting to {account.endpoint.netloc}.")
            view = Screen(
                Board(
                    label=account.label,
                    host=account.endpoint.netloc,
                    channels=channels,
                    has_log=not output.quiet,
                    erase=erase,
                )
            )
        async with client:
            await follow(client, events, channels, view)


def _has_screen() -> bool:
    """Whether there is a terminal that can be drawn on."""
    return os.isatty(_STDOUT) and console().is_interactive
