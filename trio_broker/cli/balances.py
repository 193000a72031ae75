"""``trio-broker balances``: what the account holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click

from trio_broker import Balance, BrokerWSClient
from trio_broker.cli.account import Account
from trio_broker.cli.asking import ask
from trio_broker.cli.board import BALANCES
from trio_broker.cli.ending import run
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.output import Output, plain, print_json, print_table
from trio_broker.cli.watch import watch

_COLUMNS: Final = ("asset", "total", "locked", "available")


@click.command()
@click.option("--watch", "live", is_flag=True, help="Keep the table live, until Ctrl-C.")
@account_options
@output_options
def command(*, live: bool, account: Account, output: Output) -> None:
    """Show what the account holds.

    With --json, one object an asset: asset, total, locked, available. With --watch, it is what
    "trio-broker watch balances" shows and prints: one object an event in a pipe, or with --json.
    """
    if live:
        watch((BALANCES,), account, output)
    else:
        run(lambda: _show(account, output), debug=output.debug)


async def _show(account: Account, output: Output) -> int:
    balances = await ask(account, BrokerWSClient.get_balances)
    if output.as_json:
        for balance in balances:
            print_json(
                asset=balance.asset,
                total=balance.total,
                locked=balance.locked,
                available=balance.available,
            )
    else:
        print_table(_COLUMNS, rows(balances), right=_COLUMNS[1:])
    return 0


def rows(balances: Iterable[Balance]) -> Iterable[tuple[str, ...]]:
    """A table's rows, by asset.

    Args:
        balances: What the account holds.
    """
    for balance in sorted(balances, key=lambda balance: balance.asset):
        yield (
            balance.asset,
            plain(balance.total),
            plain(balance.locked),
            plain(balance.available),
        )
