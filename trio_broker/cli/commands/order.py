"""``trio-broker order``: shows the current state of an order, or follows it."""

from __future__ import annotations

from typing import Final

import click
import trio

from trio_broker import (
    BrokerWSClient,
    ConnectionLostError,
    NotSentError,
    OrderStatus,
    RequestTimeoutError,
    ServerError,
)
from trio_broker.cli.account import Account
from trio_broker.cli.errors import CommandFailed, Status, describe_error, status_of, usage_errors
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.runner import request, run
from trio_broker.cli.terminal.output import Output
from trio_broker.cli.terminal.progress import progress_line
from trio_broker.cli.terminal.signals import cancel_on_signal
from trio_broker.cli.trading.orders import follow_order, print_order

_RETRY_DELAY: Final = 1.0  # seconds before a lookup without a reply is repeated
_IF_UNKNOWN: Final = "check the id; the broker may not know a new order yet: try again"


@click.command()
@click.argument("order_id", metavar="ID")
@click.option("--follow", "follows", is_flag=True, help="Continue until the order is final.")
@account_options
@output_options
def command(*, order_id: str, follows: bool, account: Account, output: Output) -> None:
    """Show an order, or follow it until it is final.

    ID is the order ID, or the client order ID of its swap. --json prints one object per state:
    order_id, status, filled_out, tx_hash, updated_at, client_order_id.

    With --follow, the exit status is 1 if the order ended FAILED or CANCELLED. The command keeps
    waiting during outages. If the broker doesn't know the order, the exit status is 5. The broker
    may not know a new order yet: try again.
    """
    show = _follow if follows else _show
    run(lambda: show(order_id, account, output), debug=output.debug)


async def _show(order_id: str, account: Account, output: Output) -> int:
    order = await request(account, lambda client: client.get_order_status(order_id))
    print_order(order, output)
    return Status.OK


async def _follow(order_id: str, account: Account, output: Output) -> int:
    status = Status.INTERRUPTED
    async with account.client() as client:
        with cancel_on_signal():
            async with progress_line(client, output, f"order {order_id}") as line:
                await _look_up(client, order_id)
                order = await follow_order(
                    client, order_id, line, lambda state: print_order(state, output)
                )
            status = Status.OK if order.status is OrderStatus.FILLED else Status.FAILURE
    return status


async def _look_up(client: BrokerWSClient, order_id: str) -> None:
    """Check that the broker knows an order; following a misspelled one would take a minute.

    Raises:
        CommandFailed: The broker doesn't know the order, or refuses to show it.
        click.UsageError: The ID can't be sent.
        BrokerError: The client has failed or is closed.
    """
    while True:
        try:
            with usage_errors():
                await client.get_order_status(order_id)
        except ServerError as error:
            text = f"{describe_error(error)}; {_IF_UNKNOWN}"
            raise CommandFailed(text, status_of(error)) from error
        except (ConnectionLostError, NotSentError, RequestTimeoutError):
            # The order may exist, and the client may reconnect.
            if client.state.is_over:
                raise
        else:
            return
        await trio.sleep(_RETRY_DELAY)
