"""``trio-broker order``: an order as it is now, or followed to its end."""

from __future__ import annotations

from typing import Final

import click
import trio

from trio_broker import (
    BrokerWSClient,
    ConnectionLostError,
    NotSentError,
    Order,
    OrderStatus,
    RequestTimeoutError,
    ServerError,
)
from trio_broker.cli.account import Account
from trio_broker.cli.asking import ask
from trio_broker.cli.ending import CommandFailed, Status, run, status_of, told, usage_errors
from trio_broker.cli.following import follow, waiting
from trio_broker.cli.interrupt import ctrl_c_cancels
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.output import Output, fields, plain, print_json, printable

# Before an order is looked up again, about which nobody has answered.
_PAUSE: Final = 1.0
_IF_UNKNOWN: Final = "check the id; an order of a moment ago may not be known yet: try again"


@click.command()
@click.argument("order_id", metavar="ID")
@click.option("--follow", "follows", is_flag=True, help="Go on until the order has ended.")
@account_options
@output_options
def command(*, order_id: str, follows: bool, account: Account, output: Output) -> None:
    """Show an order, or follow it to its end.

    ID is the order's id, or the client order id of its swap. With --json, one object a state:
    order_id, status, filled_out, tx_hash, updated_at, client_order_id.

    With --follow, the status is 1 if the order ended FAILED or CANCELLED. Outages are waited for;
    an order that the broker doesn't know at the beginning isn't, and the status is 5. It may be too
    new: then try again.
    """
    shown = _follow if follows else _show
    run(lambda: shown(order_id, account, output), debug=output.debug)


async def _show(order_id: str, account: Account, output: Output) -> int:
    show(await ask(account, lambda client: client.get_order_status(order_id)), output)
    return Status.OK


async def _follow(order_id: str, account: Account, output: Output) -> int:
    status = Status.INTERRUPTED
    async with account.client() as client:
        with ctrl_c_cancels():
            async with waiting(client, output, f"order {order_id}") as line:
                await _look_up(client, order_id)
                order = await follow(client, order_id, line, lambda state: show(state, output))
            status = ended(order)
    return status


async def _look_up(client: BrokerWSClient, order_id: str) -> None:
    """End here if the broker doesn't know an order: whoever follows it would wait for ever.

    Raises:
        CommandFailed: The broker refuses to tell of it.
        click.UsageError: The id can't be sent.
        BrokerError: The client's end has come.
    """
    while True:
        try:
            with usage_errors():
                await client.get_order_status(order_id)
        except ServerError as error:
            raise CommandFailed(f"{told(error)}; {_IF_UNKNOWN}", status_of(error)) from error
        except (ConnectionLostError, NotSentError, RequestTimeoutError):
            # It says nothing of the order, and following goes on over outages.
            if client.state.is_over:
                raise
        else:
            return
        await trio.sleep(_PAUSE)


def ended(order: Order) -> Status:
    """The exit status that an order's end means.

    Args:
        order: The order.
    """
    return Status.OK if order.status is OrderStatus.FILLED else Status.FAILURE


def show(order: Order, output: Output) -> None:
    """Print a state of an order.

    Args:
        order: The state.
        output: How.
    """
    if output.as_json:
        print_json(**fields(order))
        return
    facts = [printable(order.order_id or ""), printable(str(order.status))]
    if order.filled_out:
        facts.append(f"filled {plain(order.filled_out)}")
    if order.tx_hash:
        facts.append(f"tx {printable(order.tx_hash)}")
    if order.updated_at:
        facts.append(f"at {order.updated_at:%Y-%m-%d %H:%M:%S} UTC")
    click.echo("  ".join(fact for fact in facts if fact))
