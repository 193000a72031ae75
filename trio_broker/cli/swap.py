"""``trio-broker swap``: a swap, from the estimate to its order's end."""

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
from trio_broker.cli.ending import CommandFailed, run, usage_errors
from trio_broker.cli.estimate import lines
from trio_broker.cli.following import follow, waiting
from trio_broker.cli.interrupt import ctrl_c_cancels
from trio_broker.cli.journals import NextCommands, counted, journal_options, make_folder
from trio_broker.cli.options import account_options, given_account_flags, output_options
from trio_broker.cli.order import show
from trio_broker.cli.output import (
    Output,
    console,
    fields,
    plain,
    print_json,
    printable,
    whether_read_or_not,
)
from trio_broker.cli.prompt import check_answerable
from trio_broker.cli.question import confirm_beside
from trio_broker.cli.swapend import find_end, judge, tell_end
from trio_broker.models import amount_text


def _amount(_context: click.Context, _option: click.Parameter, text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        return Decimal(amount_text(text, "it"))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@attrs.frozen(kw_only=True)
class Plan:
    """A swap as it was asked for.

    Attributes:
        amount: How much is sold.
        asset_in: Of which asset.
        asset_out: What it is sold for.
        min_out: What it must bring at least, None for whatever it is.
        slippage_bps: How much worse than expected it may become, None for the broker's own rule.
        sources: The sources of liquidity to keep to, none for all.
        wallet: The address of a wallet, None for none.
        client_order_id: The swap's name.
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
        """What is sold, and what for."""
        return self.amount, self.asset_in, self.asset_out

    @property
    def options(self) -> dict[str, Any]:
        """What goes with both the estimate and the swap."""
        return {"filter_sources": self.sources or None, "account": self.wallet}

    def question(self, estimate: SwapEstimate, account: Account) -> str:
        """What the user is asked before anything is sent.

        Args:
            estimate: What it would bring.
            account: Whose money it is.
        """
        terms = []
        if self.min_out is not None:
            terms.append(f"at least {plain(self.min_out)}")
        if self.slippage_bps is not None:
            terms.append(f"up to {plain(Decimal(self.slippage_bps) / 100)} % less")
        if self.sources:
            terms.append(f"only by {', '.join(self.sources)}")
        if self.wallet is not None:
            terms.append(f"wallet {self.wallet}")
        agreed = f" ({'; '.join(terms)})" if terms else ""
        return (
            f"Swap {self.amount} {self.asset_in} for about {plain(estimate.expected_out)} "
            f"{self.asset_out}{agreed} at {account.endpoint.netloc}, {account.label}?"
        )


@click.command()
@click.argument("amount")
@click.argument("asset_in", metavar="FROM")
@click.argument("asset_out", metavar="TO")
@click.option(
    "--slippage-bps",
    type=click.IntRange(0, 10_000),
    help="How much less than expected is acceptable, in basis points.",
)
@click.option(
    "--min-out",
    metavar="X",
    callback=_amount,
    help="Swap only if a fresh estimate brings this much of TO.",
)
@click.option(
    "--client-order-id",
    metavar="ID",
    help="A name for this swap that none had before, of 1 to 64 characters.",
)
@click.option(
    "--source", "sources", multiple=True, help="Only this source of liquidity; may be repeated."
)
@click.option("--wallet", metavar="ADDRESS", help="The address of a wallet.")
@journal_options
@click.option("--yes", is_flag=True, help="Swap without asking.")
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
    yes: bool,
    account: Account,
    output: Output,
) -> None:
    """Swap AMOUNT of the asset FROM into the asset TO, and follow the order to its end.

    What it would bring is shown, and nothing is sent unless you say yes. It is sent at most once.
    Prices move while you think, and afterwards: --min-out and --slippage-bps hold them.

    Ends with status 0 if the order was FILLED; 1 if it ended otherwise, or nothing was sent; 4 if
    the swap was taken and the connection was lost for good before its order's end; 6 if nobody
    knows what became of it: then don't repeat it, and do what is said. Ctrl-C takes nothing back
    that has left: what is known is told.

    With --json, which asks no question, each line has an event: "unresolved"
    (client_order_ids), if there are earlier swaps that aren't resolved; "estimate" (label,
    host, amount_in, asset_in, asset_out, price, expected_out, fee, expires_at, route); "swap"
    (client_order_id, amount_in, asset_in, asset_out, min_out, slippage_bps, sources, wallet),
    right before it is sent; "receipt" (order_id, status, client_order_id); "order" (order_id,
    status, filled_out, tx_hash, updated_at, client_order_id), for each of its states; and
    always "end" (status, the exit status; outcome, which is "confirmed", "refused", "not sent"
    or "unknown"; client_order_id, order_id, order_status, filled_out, error, and command, which
    goes on from there).
    """
    check_answerable(output, yes=yes)
    plan = Plan(
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
    story = _Story(plan, account, commands, output)
    run(lambda: _run(story, yes=yes), debug=output.debug)


async def _run(story: _Story, *, yes: bool) -> int:
    commands, plan = story.commands, story.plan
    journal = SwapJournal(commands.journal) if commands.journal is not None else None
    client = story.account.client(journal=journal)
    order: Order | None = None
    error: Exception | None = None
    try:
        if commands.journal is not None:
            make_folder(commands.journal)
        # The first Ctrl-C ends what is under way, and the client says goodbye; a second one ends
        # that too.
        with ctrl_c_cancels():
            async with client:
                with ctrl_c_cancels():
                    order = await _swap(client, story, yes=yes)
    except Exception as raised:  # noqa: BLE001 - whatever it is, the money comes first
        error = raised
    end = await find_end(client, plan.client_order_id, order, error, was_begun=story.swap_was_begun)
    if order is not None:
        story.filled(order)
    return tell_end(end, judge(end, commands), story.output)


async def _swap(client: BrokerWSClient, story: _Story, *, yes: bool) -> Order:
    plan = story.plan
    story.unresolved(client.unresolved_swaps())
    while not await _is_agreed(client, story, yes=yes):
        click.echo("That estimate has ended meanwhile; this is a fresh one.", err=True)
    story.swap()
    async with waiting(client, story.output, "swapping") as line:
        with usage_errors():
            receipt = await client.do_swap(
                *plan.trade,
                min_out=plan.min_out,
                slippage_bps=plan.slippage_bps,
                client_order_id=plan.client_order_id,
                **plan.options,
            )
        with line.aside():
            story.receipt(receipt)
        line.show(f"order {receipt.order_id} was taken")
        return await follow(client, receipt.order_id, line, story.order)


async def _is_agreed(client: BrokerWSClient, story: _Story, *, yes: bool) -> bool:
    """Show what it would bring, and ask; False if the estimate has ended before the yes."""
    plan = story.plan
    with usage_errors():
        estimate = await client.estimate_swap(*plan.trade, **plan.options)
    ends_at = _end_of(estimate)
    story.estimate(estimate, is_asked=not yes)
    if plan.min_out is not None and estimate.expected_out < plan.min_out:
        # It is checked once more, against a fresh estimate: why ask if it can't be.
        raise SlippageError(estimate.expected_out, plan.min_out)
    if yes:
        return True
    if not await confirm_beside(client, plan.question(estimate, story.account)):
        raise CommandFailed("you didn't say yes; nothing was sent")
    return trio.current_time() < ends_at


def _end_of(estimate: SwapEstimate) -> float:
    """When an estimate ends, by Trio's clock."""
    if estimate.expires_at is None:
        return math.inf
    lifetime = (estimate.expires_at - dt.datetime.now(dt.UTC)).total_seconds()
    # One that has ended before it came says that a clock is wrong, and nothing of its own end.
    return trio.current_time() + lifetime if lifetime > 0 else math.inf


@attrs.define
class _Story:
    """Tells what happens, in the order in which it does."""

    plan: Plan
    account: Account
    commands: NextCommands
    output: Output
    swap_was_begun: bool = False

    def unresolved(self, swaps: Sequence[UnresolvedSwap]) -> None:
        names = [swap.client_order_id for swap in swaps]
        if self.plan.client_order_id in names:
            raise DuplicateClientOrderIdError(self.plan.client_order_id, SwapOutcome.UNKNOWN)
        if not names:
            return
        if self.output.as_json:
            print_json(event="unresolved", client_order_ids=names)
        click.echo(
            f"Warning: nobody knows yet what became of {counted(len(names), 'earlier swap')} of "
            f"this account; this asks: {self.commands.reconcile()}",
            err=True,
        )

    def estimate(self, estimate: SwapEstimate, *, is_asked: bool) -> None:
        plan, account = self.plan, self.account
        if self.output.as_json:
            print_json(
                event="estimate",
                label=account.label,
                host=account.endpoint.netloc,
                **self._trade(),
                **fields(estimate),
            )
            return
        if is_asked or not self.output.quiet:
            _print_banner(account)
            for text in lines(estimate, *plan.trade):
                click.echo(text)

    def swap(self) -> None:
        """It is about to be sent: what becomes of this process, its name has been told."""
        self.swap_was_begun = True
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
        with whether_read_or_not():
            if self.output.as_json:
                print_json(event="receipt", **fields(receipt))
            else:
                click.echo(f"Taken as order {printable(receipt.order_id)}")

    def order(self, order: Order) -> None:
        with whether_read_or_not():
            if self.output.as_json:
                print_json(event="order", **fields(order))
            else:
                show(order, self.output)

    def filled(self, order: Order) -> None:
        if order.status is OrderStatus.FILLED and not self.output.as_json:
            sold, bought = (printable(text) for text in self.plan.trade[1:])
            brought = f" for {plain(order.filled_out)} {bought}" if order.filled_out else ""
            with whether_read_or_not():
                click.echo(f"Swapped {printable(self.plan.amount)} {sold}{brought}")

    def _trade(self) -> dict[str, str]:
        return dict(zip(("amount_in", "asset_in", "asset_out"), self.plan.trade, strict=True))


def _print_banner(account: Account) -> None:
    from rich.text import Text  # noqa: PLC0415 - `--help` doesn't need it

    style, what = ("bold green", "play money") if account.is_sandbox else ("bold red", "real money")
    text = Text(f"{account.label}: {what} at {account.endpoint.url}", style=style)
    console(stderr=True).print(text)
