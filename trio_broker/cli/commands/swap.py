"""``trio-broker swap``: swaps, and follows the order to its final state."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from trio_broker import (
    BrokerWSClient,
    DuplicateClientOrderIdError,
    Order,
    OrderStatus,
    SlippageError,
    SwapEstimate,
    SwapJournal,
    SwapOutcome,
    SwapReceipt,
    UnresolvedSwap,
    new_client_order_id,
)
from trio_broker.cli.account import Account
from trio_broker.cli.commands.estimate import estimate_lines
from trio_broker.cli.errors import CommandFailed, usage_errors
from trio_broker.cli.options import account_options, given_account_flags, output_options
from trio_broker.cli.runner import run
from trio_broker.cli.terminal.output import (
    Output,
    console,
    counted,
    fields,
    plain,
    print_json,
    printable,
)
from trio_broker.cli.terminal.progress import progress_line
from trio_broker.cli.terminal.prompt import check_can_confirm, confirm_while_connected
from trio_broker.cli.terminal.signals import cancel_on_signal
from trio_broker.cli.terminal.stdout import ignore_stdout_errors
from trio_broker.cli.trading.journal import journal_options, make_folder
from trio_broker.cli.trading.next_commands import NextCommands
from trio_broker.cli.trading.orders import follow_order, print_order
from trio_broker.cli.trading.swap_result import find_result, report, verdict_on
from trio_broker.models import amount_text


def _amount(_context: click.Context, _option: click.Parameter, text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        return Decimal(amount_text(text, "it"))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@attrs.frozen(kw_only=True)
class SwapPlan:
    """A swap that the user requested.

    Attributes:
        amount: How much to sell.
        asset_in: The asset to sell.
        asset_out: The asset to buy.
        min_out: The smallest acceptable result; None means any.
        slippage_bps: The largest acceptable slippage in basis points, or None.
        sources: The liquidity sources to use; empty means all.
        wallet: The wallet address, or None.
        client_order_id: The ID of the swap.
    """

    amount: str
    asset_in: str
    asset_out: str
    min_out: Decimal | None = None
    slippage_bps: int | None = None
    sources: Sequence[str] = ()
    wallet: str | None = None
    client_order_id: str = attrs.field(factory=new_client_order_id)

    @property
    def trade(self) -> tuple[str, str, str]:
        """The amount and the two assets."""
        return self.amount, self.asset_in, self.asset_out

    @property
    def options(self) -> dict[str, Any]:
        """The options that the estimate and the swap share."""
        return {"filter_sources": self.sources or None, "account": self.wallet}

    def question(self, estimate: SwapEstimate, account: Account) -> str:
        """Return the question that the user must confirm before the swap is sent."""
        terms = []
        if self.min_out is not None:
            terms.append(f"at least {plain(self.min_out)}")
        if self.slippage_bps is not None:
            terms.append(f"up to {plain(Decimal(self.slippage_bps) / 100)} % less")
        if self.sources:
            terms.append(f"only through {', '.join(self.sources)}")
        if self.wallet is not None:
            terms.append(f"wallet {self.wallet}")
        conditions = f" ({'; '.join(terms)})" if terms else ""
        return (
            f"Swap {self.amount} {self.asset_in} for about {plain(estimate.expected_out)} "
            f"{self.asset_out}{conditions} at {account.endpoint.netloc}, {account.label}?"
        )


@click.command()
@click.argument("amount")
@click.argument("asset_in", metavar="FROM")
@click.argument("asset_out", metavar="TO")
@click.option(
    "--slippage-bps",
    type=click.IntRange(0, 10_000),
    help="The largest acceptable slippage, in basis points.",
)
@click.option(
    "--min-out",
    metavar="X",
    callback=_amount,
    help="Swap only if a new estimate brings at least this amount of TO.",
)
@click.option(
    "--client-order-id",
    metavar="ID",
    help="A new, unique ID for this swap, of 1 to 64 characters.",
)
@click.option(
    "--source", "sources", multiple=True, help="Use only this liquidity source; can be repeated."
)
@click.option("--wallet", metavar="ADDRESS", help="The wallet address.")
@journal_options
@click.option("--yes", is_flag=True, help="Swap without asking for confirmation.")
@account_options
@output_options
def command(
    *,
    amount: str,
    asset_in: str,
    asset_out: str,
    slippage_bps: int | None,
    min_out: Decimal | None,
    client_order_id: str | None,
    sources: Sequence[str],
    wallet: str | None,
    journal: Path | None,
    adopt: bool,
    yes: bool,
    account: Account,
    output: Output,
) -> None:
    """Swap AMOUNT of the asset FROM into the asset TO, and follow the order until it is final.

    An estimate is shown first, and nothing is sent until you confirm it. The swap is sent at most
    once. Prices may move in the meantime: --min-out and --slippage-bps limit what you accept.

    The exit status is 0 if the order was FILLED; 1 if it ended otherwise, or nothing was sent; 4 if
    the swap was accepted but the connection was lost for good before the order was final; 5 if the
    broker refused it; 6 if the outcome is unknown; 7 if the broker reported a duplicate, or refused
    the swap, but has an order for it. With 6 and 7, don't repeat the swap, but run the command that
    is shown.
    Ctrl-C doesn't undo a swap that was sent; its state is shown.

    --json can't ask for confirmation, so it needs --yes. It prints one object per event:

    \b
    unresolved  client_order_ids
    estimate    label, host, amount_in, asset_in, asset_out, price,
                expected_out, fee, expires_at, route
    swap        client_order_id, amount_in, asset_in, asset_out, min_out,
                slippage_bps, sources, wallet
    receipt     order_id, status, client_order_id
    order       order_id, status, filled_out, tx_hash, updated_at,
                client_order_id
    end         status, outcome, client_order_id, order_id, order_status,
                filled_out, error, command

    "unresolved" is printed only if earlier swaps have an unknown outcome; "swap" right before the
    swap is sent; "order" for each state of the order; "end" always. The members of "end" include
    status, the exit status; outcome, which is "confirmed", "refused", "not sent" or "unknown"; and
    command, the command to run next.
    """  # noqa: D301 - click's mark for lines that are not wrapped
    check_can_confirm(output, yes=yes)
    plan = SwapPlan(
        amount=amount,
        asset_in=asset_in,
        asset_out=asset_out,
        min_out=min_out,
        slippage_bps=slippage_bps,
        sources=sources,
        wallet=wallet,
        client_order_id=client_order_id if client_order_id is not None else new_client_order_id(),
    )
    commands = NextCommands(journal, given_account_flags())
    reporter = SwapReporter(plan, account, commands, output)
    used = None if journal is None else SwapJournal(journal, adopt=adopt)
    run(lambda: _run(reporter, used, yes=yes), debug=output.debug)


async def _run(reporter: SwapReporter, journal: SwapJournal | None, *, yes: bool) -> int:
    commands, plan = reporter.commands, reporter.plan
    client = reporter.account.client(journal=journal)
    order: Order | None = None
    error: Exception | None = None
    try:
        if commands.journal is not None:
            make_folder(commands.journal)
        # The first Ctrl-C cancels the swap, and the client closes cleanly. The second Ctrl-C
        # cancels the closing.
        with cancel_on_signal():
            async with client:
                with cancel_on_signal():
                    order = await _swap(client, reporter, yes=yes)
    except Exception as raised:  # noqa: BLE001 - `report` raises it after the swap's outcome
        error = raised
    result = await find_result(
        client, plan.client_order_id, order, error, was_requested=reporter.swap_was_requested
    )
    if order is not None:
        reporter.filled(order)
    return report(result, verdict_on(result, commands), reporter.output)


async def _swap(client: BrokerWSClient, reporter: SwapReporter, *, yes: bool) -> Order:
    plan = reporter.plan
    reporter.unresolved(client.unresolved_swaps())
    while not await _confirm_estimate(client, reporter, yes=yes):
        click.echo("The estimate has expired; here is a new one.", err=True)
    reporter.swap()
    async with progress_line(client, reporter.output, "swapping") as line:
        with usage_errors():
            receipt = await client.do_swap(
                *plan.trade,
                min_out=plan.min_out,
                slippage_bps=plan.slippage_bps,
                client_order_id=plan.client_order_id,
                **plan.options,
            )
        with line.hidden():
            reporter.receipt(receipt)
        line.show(f"order {receipt.order_id} was accepted")
        return await follow_order(client, receipt.order_id, line, reporter.order)


async def _confirm_estimate(client: BrokerWSClient, reporter: SwapReporter, *, yes: bool) -> bool:
    """Show an estimate and ask for confirmation; False if the estimate expired meanwhile."""
    plan = reporter.plan
    with usage_errors():
        estimate = await client.estimate_swap(*plan.trade, **plan.options)
    expires_at = _expiry(estimate)
    reporter.estimate(estimate, needs_confirmation=not yes)
    if plan.min_out is not None and estimate.expected_out < plan.min_out:
        # `do_swap` would check this too, but only after the user has confirmed.
        raise SlippageError(estimate.expected_out, plan.min_out)
    if yes:
        return True
    question = plan.question(estimate, reporter.account)
    if not await confirm_while_connected(client, question):
        raise CommandFailed("not confirmed; nothing was sent")
    return trio.current_time() < expires_at


def _expiry(estimate: SwapEstimate) -> float:
    """Return the time at which an estimate expires, by Trio's clock."""
    if estimate.expires_at is None:
        return math.inf
    lifetime = (estimate.expires_at - dt.datetime.now(dt.UTC)).total_seconds()
    # If it expired before it arrived, one of the clocks is wrong, and the expiry is unknown.
    return trio.current_time() + lifetime if lifetime > 0 else math.inf


@attrs.define
class SwapReporter:
    """Prints each step of a swap."""

    plan: SwapPlan
    account: Account
    commands: NextCommands
    output: Output
    swap_was_requested: bool = False

    def unresolved(self, swaps: Sequence[UnresolvedSwap]) -> None:
        """Warn about earlier swaps whose outcome is unknown."""
        ids = [swap.client_order_id for swap in swaps]
        if self.plan.client_order_id in ids:
            raise DuplicateClientOrderIdError(self.plan.client_order_id, SwapOutcome.UNKNOWN)
        if not ids:
            return
        if self.output.as_json:
            print_json(event="unresolved", client_order_ids=ids)
        click.echo(
            f"Warning: the outcome of {counted(len(ids), 'earlier swap')} of this account is "
            f"unknown; to find out, run: {self.commands.reconcile()}",
            err=True,
        )

    def estimate(self, estimate: SwapEstimate, *, needs_confirmation: bool) -> None:
        """Print the estimate; --quiet omits it unless the user has to confirm it."""
        if self.output.as_json:
            print_json(
                event="estimate",
                label=self.account.label,
                host=self.account.endpoint.netloc,
                **self._trade(),
                **fields(estimate),
            )
        elif needs_confirmation or not self.output.quiet:
            print_banner(self.account)
            for text in estimate_lines(estimate, *self.plan.trade):
                click.echo(text)

    def swap(self) -> None:
        """Print the ID of the swap before the swap is sent, in case this process is killed."""
        self.swap_was_requested = True
        plan = self.plan
        if self.output.as_json:
            print_json(
                event="swap",
                client_order_id=plan.client_order_id,
                **self._trade(),
                min_out=plan.min_out,
                slippage_bps=plan.slippage_bps,
                sources=plan.sources,
                wallet=plan.wallet,
            )
        self.output.note(f"Swapping, with the client order id {printable(plan.client_order_id)}")

    def receipt(self, receipt: SwapReceipt) -> None:
        """Print the receipt of the swap."""
        with ignore_stdout_errors():
            if self.output.as_json:
                print_json(event="receipt", **fields(receipt))
            else:
                click.echo(f"Accepted as order {printable(receipt.order_id)}")

    def order(self, order: Order) -> None:
        """Print a state of the order."""
        with ignore_stdout_errors():
            if self.output.as_json:
                print_json(event="order", **fields(order))
            else:
                print_order(order, self.output)

    def filled(self, order: Order) -> None:
        """Print what was bought, if the order was filled."""
        if order.status is OrderStatus.FILLED and not self.output.as_json:
            sold, bought = (printable(text) for text in self.plan.trade[1:])
            brought = f" for {plain(order.filled_out)} {bought}" if order.filled_out else ""
            with ignore_stdout_errors():
                click.echo(f"Swapped {printable(self.plan.amount)} {sold}{brought}")

    def _trade(self) -> dict[str, str]:
        return dict(zip(("amount_in", "asset_in", "asset_out"), self.plan.trade, strict=True))


def print_banner(account: Account) -> None:
    """Print whether the account has real money, and the broker's URL."""
    from rich.text import Text  # noqa: PLC0415 - `--help` doesn't need it

    style, what = ("bold green", "play money") if account.is_sandbox else ("bold red", "real money")
    text = Text(f"{account.label}: {what} at {account.endpoint.url}", style=style)
    console(stderr=True).print(text)
