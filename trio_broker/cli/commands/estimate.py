"""``trio-broker estimate``: what a swap would bring."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence

import click

from trio_broker import BrokerWSClient, SwapEstimate
from trio_broker.cli.account import Account
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.runner import request, run
from trio_broker.cli.terminal.output import (
    Output,
    fields,
    plain,
    print_json,
    print_table,
    printable,
)


@click.command()
@click.argument("amount")
@click.argument("asset_in", metavar="FROM")
@click.argument("asset_out", metavar="TO")
@click.option(
    "--source", "sources", multiple=True, help="Use only this liquidity source; can be repeated."
)
@click.option("--network", help="The network.")
@click.option("--wallet", help="The wallet address.")
@account_options
@output_options
def command(
    *,
    amount: str,
    asset_in: str,
    asset_out: str,
    sources: Sequence[str],
    network: str | None,
    wallet: str | None,
    account: Account,
    output: Output,
) -> None:
    """Estimate what a swap of AMOUNT of the asset FROM into the asset TO would bring.

    The result is not guaranteed, because prices move. --json prints one object: amount_in,
    asset_in, asset_out, price, expected_out, fee, expires_at and route.
    """

    def send(client: BrokerWSClient) -> Awaitable[SwapEstimate]:
        return client.estimate_swap(
            amount,
            asset_in,
            asset_out,
            filter_sources=sources or None,
            network=network,
            account=wallet,
        )

    async def main() -> int:
        _print(await request(account, send), amount, asset_in, asset_out, output)
        return 0

    run(main, debug=output.debug)


def _print(
    estimate: SwapEstimate, amount: str, asset_in: str, asset_out: str, output: Output
) -> None:
    if output.as_json:
        trade = {"amount_in": amount, "asset_in": asset_in, "asset_out": asset_out}
        print_json(**trade, **fields(estimate))
        return
    for line in estimate_lines(estimate, amount, asset_in, asset_out):
        click.echo(line)
    if estimate.route and not output.quiet:
        click.echo()
        columns = ("exchange", "pool", "sells", "", "buys", " ")
        print_table(columns, _route_rows(estimate), right=("sells", "buys"))


def estimate_lines(
    estimate: SwapEstimate, amount: str, asset_in: str, asset_out: str
) -> Iterable[str]:
    """Return the lines that describe an estimate."""
    expected = plain(estimate.expected_out)
    yield f"{printable(amount)} {printable(asset_in)} would bring {expected} {printable(asset_out)}"
    facts = [f"price {plain(estimate.price)}"]
    if estimate.fee is not None:
        facts.append(f"fee {plain(estimate.fee)}")
    if estimate.expires_at is not None:
        facts.append(f"valid until {estimate.expires_at:%H:%M:%S} UTC")
    yield ", ".join(facts)


def _route_rows(estimate: SwapEstimate) -> Iterable[tuple[str, ...]]:
    for step in estimate.route:
        yield (
            step.exchange or "",
            step.pool or "",
            plain(step.amount_in),
            step.from_asset or "",
            plain(step.amount_out),
            step.to_asset or "",
        )
