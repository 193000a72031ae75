"""``trio-broker estimate``: what a swap would bring."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence

import click

from trio_broker import BrokerWSClient, SwapEstimate
from trio_broker.cli.account import Account
from trio_broker.cli.asking import ask
from trio_broker.cli.ending import run
from trio_broker.cli.options import account_options, output_options
from trio_broker.cli.output import Output, fields, plain, print_json, print_table, printable


@click.command()
@click.argument("amount")
@click.argument("asset_in", metavar="FROM")
@click.argument("asset_out", metavar="TO")
@click.option(
    "--source", "sources", multiple=True, help="Only this source of liquidity; may be repeated."
)
@click.option("--network", help="The network.")
@click.option("--wallet", help="The address of a wallet.")
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
    """Ask what a swap of AMOUNT of the asset FROM into the asset TO would bring.

    It is no promise: prices move. With --json, one object: amount_in, asset_in, asset_out, price,
    expected_out, fee, expires_at and route.
    """

    def question(client: BrokerWSClient) -> Awaitable[SwapEstimate]:
        return client.estimate_swap(
            amount,
            asset_in,
            asset_out,
            filter_sources=sources or None,
            network=network,
            account=wallet,
        )

    async def main() -> int:
        _print(await ask(account, question), amount, asset_in, asset_out, output)
        return 0

    run(main, debug=output.debug)


def _print(
    estimate: SwapEstimate, amount: str, asset_in: str, asset_out: str, output: Output
) -> None:
    if output.as_json:
        asked = {"amount_in": amount, "asset_in": asset_in, "asset_out": asset_out}
        print_json(**asked, **fields(estimate))
        return
    for line in lines(estimate, amount, asset_in, asset_out):
        click.echo(line)
    if estimate.route and not output.quiet:
        click.echo()
        columns = ("exchange", "pool", "sells", "", "buys", " ")
        print_table(columns, _steps(estimate), right=("sells", "buys"))


def lines(estimate: SwapEstimate, amount: str, asset_in: str, asset_out: str) -> Iterable[str]:
    """An estimate for people.

    Args:
        estimate: The estimate.
        amount: How much is sold.
        asset_in: Of which asset.
        asset_out: What it is sold for.
    """
    expected = plain(estimate.expected_out)
    yield f"{printable(amount)} {printable(asset_in)} would bring {expected} {printable(asset_out)}"
    facts = [f"price {plain(estimate.price)}"]
    if estimate.fee is not None:
        facts.append(f"fee {plain(estimate.fee)}")
    if estimate.expires_at is not None:
        facts.append(f"good until {estimate.expires_at:%H:%M:%S} UTC")
    yield ", ".join(facts)


def _steps(estimate: SwapEstimate) -> Iterable[tuple[str, ...]]:
    for step in estimate.route:
        yield (
            step.exchange or "",
            step.pool or "",
            plain(step.amount_in),
            step.from_asset or "",
            plain(step.amount_out),
            step.to_asset or "",
        )
