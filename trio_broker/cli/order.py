"""``trio-broker order``: an order as it is now, or followed to its end."""

from __future__ import annotations

import click

from trio_broker import Order, OrderStatus
from trio_broker.cli.account import Account
from trio_broker.cli.asking import ask
from trio_broker.cli.ending import Status, run
from trio_broker.cli.following import follow, waiting
from trio_broker.cli.interrupt import ctrl_c_cancels
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.output import Output, fields, plain, print_json, printable


@click.command()
@click.argument("order_id", metavar="ID")
@click.option("--follow", "follows", is_flag=True, help="Go on until the order has ended.")
@account_options
@output_options
def command(*, order_id: str, follows: bool, account: Account, output: Output) -> None:
    """Show an order, or follow it to its end.

    ID is the order's id, or the client order id of its swap. With --json, one object a state:
    order_id, status, filled_out, tx_hash, updated_at, client_order_id. With --follow, the status is
    1 if the order ended FAILED or CANCELLED.
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
                order = await follow(client, order_id, line, lambda state: show(state, output))
            status = ended(order)
    return status


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
