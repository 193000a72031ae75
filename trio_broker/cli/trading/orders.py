"""Printing an order, and following it until it is final."""

from __future__ import annotations

from collections.abc import Callable

import click

from trio_broker import BrokerWSClient, Order
from trio_broker.cli.errors import usage_errors
from trio_broker.cli.terminal.output import Output, fields, plain, print_json, printable
from trio_broker.cli.terminal.progress import ProgressLine


def print_order(order: Order, output: Output) -> None:
    """Print the state of an order."""
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


async def follow_order(
    client: BrokerWSClient, order_id: str, line: ProgressLine, show: Callable[[Order], None]
) -> Order:
    """Follow an order, call `show` with each state, and return the final one.

    The order ID may also be the client order ID of the swap.
    """
    with usage_errors():
        tracked = client.track_order(order_id)
    async with tracked as updates:
        async for message in updates:
            order = message.data
            with line.hidden():
                show(order)
            line.show(f"order {order.order_id or order_id} is {order.status}")
    return order
