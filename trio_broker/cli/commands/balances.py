"""``trio-broker balances``: the balances of the account."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click

from trio_broker import Balance, BrokerWSClient
from trio_broker.cli.account import Account
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.runner import request, run
from trio_broker.cli.terminal.output import (
    Output,
    balance_fields,
    plain_balance,
    print_json,
    print_table,
)
from trio_broker.cli.watch.board import BALANCES
from trio_broker.cli.watch.following import watch_channels

_COLUMNS: Final = ("asset", "total", "locked", "available")


@click.command()
@click.option("--watch", "live", is_flag=True, help="Keep the table up to date until Ctrl-C.")
@account_options
@output_options
def command(*, live: bool, account: Account, output: Output) -> None:
    """Show the balances of the account.

    --json prints one object per asset: asset, total, locked, available. An amount of the broker
    that can't be read is "unreadable". --watch does the same as
    "trio-broker watch balances": in a pipe, or with --json, it prints one object per event.
    """
    if live:
        run(lambda: watch_channels((BALANCES,), account, output), debug=output.debug)
    else:
        run(lambda: _show(account, output), debug=output.debug)


async def _show(account: Account, output: Output) -> int:
    balances = await request(account, BrokerWSClient.get_balances)
    if output.as_json:
        for balance in balances:
            print_json(**balance_fields(balance))
    else:
        print_table(_COLUMNS, _rows(balances), right=_COLUMNS[1:])
    return 0


def _rows(balances: Iterable[Balance]) -> Iterable[tuple[str, ...]]:
    for balance in sorted(balances, key=lambda balance: balance.asset):
        yield (balance.asset, *(plain_balance(balance, name) for name in _COLUMNS[1:]))
