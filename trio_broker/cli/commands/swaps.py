"""``trio-broker swaps``: lists, reconciles and settles the swaps in a journal.

Listing only reads the journal, so it works while another process uses it. Reconciling and settling
open the journal with a client, which fails while another process uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click

from trio_broker import (
    JournalRow,
    SwapFinding,
    SwapJournal,
    SwapOutcome,
    UnresolvedSwap,
    key_fingerprint,
)
from trio_broker.cli.account import Account, find_account
from trio_broker.cli.errors import CommandFailed, Status, usage_errors
from trio_broker.cli.options import account_flags, given_account_flags, output_options
from trio_broker.cli.runner import run
from trio_broker.cli.terminal.output import (
    Output,
    console,
    counted,
    fields,
    one_line,
    plain,
    print_json,
    print_table,
    printable,
)
from trio_broker.cli.terminal.progress import progress_line
from trio_broker.cli.terminal.prompt import check_can_confirm, confirm_while_connected
from trio_broker.cli.terminal.signals import cancel_on_signal
from trio_broker.cli.trading.journal import (
    adopt_option,
    configured_journal,
    default_journal,
    exists,
)
from trio_broker.cli.trading.next_commands import NextCommands

Swap = TypeVar("Swap", JournalRow, UnresolvedSwap)

_COLUMNS: Final = (
    "when (UTC)", "client order id", "swap", "outcome", "order id", "host", "key", "detail"
)  # fmt: skip


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--unresolved", is_flag=True, help="List only swaps whose outcome is unknown.")
@click.option(
    "--reconcile", is_flag=True, help="Ask the broker for the outcome of each unresolved swap."
)
@click.option("--settle", metavar="ID", help="Settle the swap with this client order ID by hand.")
@click.option("--note", metavar="TEXT", help="With --settle: how you found out the outcome.")
@click.option("--yes", is_flag=True, help="With --settle: don't ask for confirmation.")
@adopt_option
@account_flags
@output_options
def command(
    *,
    file: Path | None,
    unresolved: bool,
    reconcile: bool,
    settle: str | None,
    note: str | None,
    yes: bool,
    adopt: bool,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """List the swaps in a journal, and reconcile unresolved ones.

    FILE is the journal; the default is BROKER_JOURNAL or else the user's journal. The oldest swap
    comes first. The outcome "unknown" means that the swap was possibly sent: --reconcile asks the
    broker about each such swap of the account, by its client order ID. The exit status is 6 if the
    outcome of one of them is still unknown, and otherwise 0. If the broker doesn't know a swap,
    find out its outcome in another way before you repeat it; then use --settle to close it.

    --json prints one object per swap:

    \b
    list         host, key_fingerprint, client_order_id, attempt, amount_in,
                 asset_in, asset_out, at, outcome, order_id, detail, updated_at
    --reconcile  client_order_id, amount_in, asset_in, asset_out, at, outcome,
                 order_id, status, reason, may_still_execute
    --settle     client_order_id, outcome, note

    With --reconcile, the outcome is "confirmed", "refused" or "unknown", and status is the status
    of the order.
    """  # noqa: D301 - click's mark for lines that are not wrapped
    _check_flags(unresolved=unresolved, reconcile=reconcile, settle=settle, note=note, yes=yes)
    if adopt and not (reconcile or settle is not None):
        raise click.UsageError("--adopt can only be used with --reconcile or --settle")
    named = file or configured_journal()
    path = (named or default_journal()).absolute()
    journal = _Journal(path, is_default=named is None, adopt=adopt)
    if reconcile:
        account = find_account(**flags)
        commands = NextCommands(journal.path, given_account_flags())
        run(lambda: _reconcile(journal, account, commands, output), debug=output.debug)
    elif settle is not None and note is not None:
        check_can_confirm(output, yes=yes)
        settlement = _Settlement(settle, note, needs_confirmation=not yes)
        account = find_account(**flags)
        run(lambda: _settle(journal, account, settlement, output), debug=output.debug)
    else:
        run(lambda: _list(journal, output, unresolved=unresolved), debug=output.debug)


def _check_flags(
    *, unresolved: bool, reconcile: bool, settle: str | None, note: str | None, yes: bool
) -> None:
    if (settle is None) != (note is None):
        raise click.UsageError("--settle and --note must be used together")
    given = {
        "--unresolved": unresolved, "--reconcile": reconcile, "--settle": settle is not None
    }  # fmt: skip
    chosen = [flag for flag, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} can't be combined")
    if yes and settle is None:
        raise click.UsageError("--yes can only be used with --settle")


@attrs.frozen
class _Journal:
    """A journal file.

    Attributes:
        path: Its path.
        is_default: Whether it is the default journal, which needn't exist.
        adopt: Whether a client may use it although it was copied or moved.
    """

    path: Path
    is_default: bool
    adopt: bool

    async def rows(self) -> tuple[JournalRow, ...]:
        """Return the swaps, the oldest first.

        Raises:
            JournalError: It can't be read, or was named but doesn't exist.
        """
        if self.is_default and not exists(self.path):
            return ()
        return await SwapJournal(self.path).rows()

    def opened(self) -> SwapJournal:
        """Return the journal for a client."""
        return SwapJournal(self.path, adopt=self.adopt)

    async def unresolved(self) -> list[JournalRow]:
        """Return the unresolved swaps of all accounts."""
        return [row for row in await self.rows() if row.outcome is SwapOutcome.UNKNOWN]

    async def unresolved_of(self, account: Account) -> list[JournalRow]:
        """Return the unresolved swaps of one account."""
        owner = (account.endpoint.netloc, key_fingerprint(account.api_key))
        return [row for row in await self.unresolved() if (row.host, row.key_fingerprint) == owner]


# --- List -----------------------------------------------------------------------------------


async def _list(journal: _Journal, output: Output, *, unresolved: bool) -> int:
    rows = await journal.unresolved() if unresolved else await journal.rows()
    if output.as_json:
        for row in rows:
            print_json(**fields(row))
    elif rows:
        _print_rows(rows)
    else:
        click.echo("No swaps.")
    return Status.OK


def _print_rows(rows: Sequence[JournalRow]) -> None:
    cells = [[printable(cell) for cell in _cells(row)] for row in rows]
    styles = ["bold red" if row.outcome is SwapOutcome.UNKNOWN else "" for row in rows]
    *widths, detail = (max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True))
    # rich wraps the widest column first, so IDs aren't wrapped while the detail is wider.
    needed = sum(widths) + min(detail, max(widths)) + 2 * len(widths)
    if console().width >= needed:
        print_table(_COLUMNS, cells, styles=styles, wraps=True)
        return
    from rich.text import Text  # noqa: PLC0415 - `--help` doesn't need it

    for row, style in zip(cells, styles, strict=True):
        for text in _record(row):
            console().print(Text(text, style=style))


def _record(cells: Sequence[str]) -> Iterable[str]:
    """Return a swap as several lines, for screens where a table would wrap its ID."""
    when, name, trade, outcome, order_id, host, key, detail = cells
    yield name
    yield f"  {when}  {trade}"
    yield f"  {outcome}  {order_id}".rstrip()
    yield f"  {host}  {key}"
    if detail:
        yield f"  {detail}"


def _cells(row: JournalRow) -> tuple[str, ...]:
    return (
        f"{row.at:%Y-%m-%d %H:%M:%S}",
        row.client_order_id,
        f"{row.amount_in:f} {row.asset_in} -> {row.asset_out}",
        row.outcome.value,
        row.order_id or "",
        row.host,
        row.key_fingerprint,
        row.detail,
    )


# --- Reconcile ------------------------------------------------------------------------------


async def _reconcile(
    journal: _Journal, account: Account, commands: NextCommands, output: Output
) -> int:
    # Read before a client is made, which would create a journal that doesn't exist.
    rows = await journal.unresolved_of(account)
    others = len(await journal.unresolved()) - len(rows)
    if others:
        # They may be of this user too, with an old key or another host name.
        click.echo(
            f"Warning: the outcome of {counted(others, 'swap')} of other accounts or hosts in this "
            f"journal is unknown too; to list them, run: {commands.list_unresolved()}",
            err=True,
        )
    if not rows:
        output.note(f"No unresolved swaps of this account at {account.endpoint.netloc}.")
        return Status.OK
    status = Status.INTERRUPTED
    async with account.client(journal=journal.opened()) as client:
        with cancel_on_signal():
            async with progress_line(client, output, f"reconciling {counted(len(rows), 'swap')}"):
                findings = await client.reconcile()
            status = _print_findings(findings, commands, output)
    return status


def _print_findings(
    findings: Iterable[SwapFinding], commands: NextCommands, output: Output
) -> Status:
    status = Status.OK
    for finding in findings:
        if finding.outcome is SwapOutcome.UNKNOWN:
            status = Status.UNKNOWN
        if output.as_json:
            print_json(**_members(finding))
        else:
            click.echo(finding_line(finding, commands))
    return status


def _members(finding: SwapFinding) -> dict[str, object]:
    swap, receipt = finding.swap, finding.receipt
    return {
        "client_order_id": swap.client_order_id,
        "amount_in": swap.amount_in,
        "asset_in": swap.asset_in,
        "asset_out": swap.asset_out,
        "at": swap.at,
        "outcome": finding.outcome,
        "order_id": receipt.order_id if receipt is not None else None,
        "status": receipt.status if receipt is not None else None,
        "reason": finding.reason,
        "may_still_execute": finding.outcome is SwapOutcome.UNKNOWN and swap.may_still_execute,
    }


def finding_line(finding: SwapFinding, commands: NextCommands) -> str:
    """Describe the finding about a swap in one line, with the command to run next."""
    swap, receipt = finding.swap, finding.receipt
    facts = [swap.client_order_id, _trade(swap), finding.outcome.value]
    if receipt is not None:
        facts.append(f"order {receipt.order_id}: {commands.follow(receipt.order_id)}")
    elif finding.outcome is not SwapOutcome.UNKNOWN:
        facts.append(f"{finding.reason}: nothing was executed")
    elif swap.may_still_execute:
        facts.append(
            f"{finding.reason}; it may still be executed, so check again in two minutes: "
            f"{commands.reconcile()}"
        )
    else:
        facts.append(
            f"{finding.reason}; find out its outcome in another way before you repeat it, then "
            f"settle it: {commands.settle(swap.client_order_id)}"
        )
    return "  ".join(map(one_line, facts))


def _trade(swap: UnresolvedSwap) -> str:
    return f"{plain(swap.amount_in)} {swap.asset_in} -> {swap.asset_out}"


# --- Settle ---------------------------------------------------------------------------------


@attrs.frozen
class _Settlement:
    """A request to settle a swap by hand.

    Attributes:
        client_order_id: The client order ID of the swap.
        note: How the user found out the outcome.
        needs_confirmation: Whether to ask for confirmation.
    """

    client_order_id: str
    note: str
    needs_confirmation: bool


async def _settle(
    journal: _Journal, account: Account, settlement: _Settlement, output: Output
) -> int:
    # Read before a client is made, which would create a journal that doesn't exist.
    _find(settlement.client_order_id, await journal.unresolved_of(account))
    status = Status.INTERRUPTED
    async with account.client(journal=journal.opened()) as client:
        with cancel_on_signal():
            swap = _find(settlement.client_order_id, client.unresolved_swaps())
            question = _question(swap, account)
            if settlement.needs_confirmation and not await confirm_while_connected(
                client, question
            ):
                raise CommandFailed("not confirmed; nothing was settled")
            with usage_errors():
                await client.settle_swap(settlement.client_order_id, settlement.note)
            _print_settled(swap, settlement.note, output)
            status = Status.OK
    return status


def _find(client_order_id: str, unresolved: Iterable[Swap]) -> Swap:
    for swap in unresolved:
        if swap.client_order_id == client_order_id:
            return swap
    raise click.UsageError(
        f"no unresolved swap of this account has the client order id {printable(client_order_id)}"
    )


def _question(swap: UnresolvedSwap, account: Account) -> str:
    warning = "It may still be executed. " if swap.may_still_execute else ""
    return (
        f"{warning}Settle {swap.client_order_id} ({_trade(swap)}, requested at "
        f"{swap.at:%Y-%m-%d %H:%M:%S} UTC) at {account.endpoint.netloc}, {account.label}, so that "
        "it is never looked up again?"
    )


def _print_settled(swap: UnresolvedSwap, note: str, output: Output) -> None:
    if output.as_json:
        print_json(client_order_id=swap.client_order_id, outcome=SwapOutcome.SETTLED, note=note)
    else:
        click.echo(f"{printable(swap.client_order_id)}  {printable(_trade(swap))}  "
                   f"settled: {printable(note)}")  # fmt: skip
