"""``trio-broker swaps``: what a journal knows of each swap, and what becomes of those in doubt.

A listing asks nothing of the broker, and changes nothing: it may look while a client trades. To ask
for swaps, or to close one by hand, the journal is taken for a client: nobody else may have it then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

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
from trio_broker.cli.account import Account
from trio_broker.cli.ending import CommandFailed, Status, run, usage_errors
from trio_broker.cli.following import waiting
from trio_broker.cli.interrupt import ctrl_c_cancels
from trio_broker.cli.journals import NextCommands, counted, named_journal, usual_path
from trio_broker.cli.options import given_account_flags, lazy_account_options, output_options
from trio_broker.cli.output import (
    Output,
    console,
    fields,
    plain,
    print_json,
    print_table,
    printable,
)
from trio_broker.cli.prompt import check_answerable
from trio_broker.cli.question import confirm_beside

Swap = TypeVar("Swap", JournalRow, UnresolvedSwap)

_COLUMNS: Final = (
    "when (UTC)", "client order id", "swap", "outcome", "order id", "host", "key", "detail"
)  # fmt: skip


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--unresolved", is_flag=True, help="List only those of which the outcome is unknown.")
@click.option("--reconcile", is_flag=True, help="Ask the broker for each of those.")
@click.option("--settle", metavar="ID", help="Close the swap with this client order id by hand.")
@click.option("--note", metavar="TEXT", help="How you have found out what became of it.")
@click.option("--yes", is_flag=True, help="Close it without asking.")
@lazy_account_options
@output_options
def command(
    *,
    file: Path | None,
    unresolved: bool,
    reconcile: bool,
    settle: str | None,
    note: str | None,
    yes: bool,
    find: Callable[[], Account],
    output: Output,
) -> None:
    """List the swaps in a journal, and ask for those that aren't resolved.

    FILE is the journal; without it, it is BROKER_JOURNAL's, or the user's own. The oldest swap
    comes first. "unknown" means that a swap may have left, and that nobody knows what became of
    it: --reconcile asks the broker for each such swap of the account, by its client order id.
    The status is 0 if nothing of this account's stays unknown, and 6 otherwise. What the broker
    doesn't know in the end is to be looked up in another way, before you repeat it; and then
    --settle closes it.

    With --json, one object a swap. Listed: host, key_fingerprint, client_order_id, attempt,
    amount_in, asset_in, asset_out, at, outcome, order_id, detail, updated_at. With --reconcile:
    client_order_id, amount_in, asset_in, asset_out, at, outcome ("confirmed", "refused" or
    "unknown"), order_id, status (the order's), reason, may_still_execute. With --settle:
    client_order_id, outcome, note.
    """
    if (settle is None) != (note is None):
        raise click.UsageError("--settle and --note go together")
    chosen = [
        flag
        for flag, is_given in (
            ("--unresolved", unresolved),
            ("--reconcile", reconcile),
            ("--settle", settle is not None),
        )
        if is_given
    ]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} don't go together")
    if yes and settle is None:
        raise click.UsageError("--yes goes with --settle: nothing else asks")
    named = file or named_journal()
    place = _Place((named or usual_path()).absolute(), is_usual=named is None)
    if reconcile:
        account = find()
        commands = NextCommands(place.path, given_account_flags())
        run(lambda: _reconcile(place, account, commands, output), debug=output.debug)
    elif settle is not None and note is not None:
        check_answerable(output, yes=yes)
        closing, account = _Closing(settle, note, is_asked=not yes), find()
        run(lambda: _settle(place, account, closing, output), debug=output.debug)
    else:
        run(lambda: _list(place, output, unresolved=unresolved), debug=output.debug)


@attrs.frozen
class _Place:
    """Where a journal is.

    Attributes:
        path: Its file.
        is_usual: Whether it is the user's own, which needn't be there.
    """

    path: Path
    is_usual: bool

    async def rows(self) -> tuple[JournalRow, ...]:
        """Its swaps, the oldest first.

        Raises:
            JournalError: It can't be read, or isn't there and should be.
        """
        if self.is_usual and not self.path.exists():
            return ()
        return await SwapJournal(self.path).rows()

    async def unresolved(self, account: Account) -> list[JournalRow]:
        """Those whose outcome is unknown, of one account.

        Args:
            account: The account.
        """
        owner = (account.endpoint.netloc, key_fingerprint(account.api_key))
        return [row for row in await self.in_doubt() if (row.host, row.key_fingerprint) == owner]

    async def in_doubt(self) -> list[JournalRow]:
        """Those whose outcome is unknown, of whatever account."""
        return [row for row in await self.rows() if row.outcome is SwapOutcome.UNKNOWN]


# --- Listing --------------------------------------------------------------------------------


async def _list(place: _Place, output: Output, *, unresolved: bool) -> int:
    rows = [
        row for row in await place.rows() if not unresolved or row.outcome is SwapOutcome.UNKNOWN
    ]
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
    # The widest column is folded first: as long as that is the detail, ids stay in one piece.
    needed = sum(widths) + min(detail, max(widths)) + 2 * len(widths)
    if console().width >= needed:
        print_table(_COLUMNS, cells, styles=styles, folds=True)
        return
    from rich.text import Text  # noqa: PLC0415 - `--help` doesn't need it

    for row, style in zip(cells, styles, strict=True):
        for text in _record(row):
            console().print(Text(text, style=style))


def _record(cells: Sequence[str]) -> Iterable[str]:
    """A swap in lines of its own, for a screen on which columns would cut its id into pieces."""
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


# --- Asking ---------------------------------------------------------------------------------


async def _reconcile(
    place: _Place, account: Account, commands: NextCommands, output: Output
) -> int:
    # Looked at first: a client would make a journal that isn't there.
    rows = await place.unresolved(account)
    others = len(await place.in_doubt()) - len(rows)
    if others:
        # A new key, or another name for the host, mustn't make a doubt vanish.
        click.echo(
            f"Warning: {counted(others, 'swap')} of other accounts or hosts in this journal "
            f"{'is' if others == 1 else 'are'} unknown too; this lists them: {commands.in_doubt()}",
            err=True,
        )
    if not rows:
        output.note(f"No unresolved swaps of this account at {account.endpoint.netloc}.")
        return Status.OK
    status = Status.INTERRUPTED
    async with account.client(journal=SwapJournal(place.path)) as client:
        with ctrl_c_cancels():
            async with waiting(client, output, f"asking for {counted(len(rows), 'swap')}"):
                findings = await client.reconcile()
            status = _tell(findings, commands, output)
    return status


def _tell(findings: Iterable[SwapFinding], commands: NextCommands, output: Output) -> Status:
    status = Status.OK
    for finding in findings:
        if finding.outcome is SwapOutcome.UNKNOWN:
            status = Status.UNKNOWN
        if output.as_json:
            print_json(**_facts(finding))
        else:
            click.echo(line(finding, commands))
    return status


def _facts(finding: SwapFinding) -> dict[str, object]:
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


def line(finding: SwapFinding, commands: NextCommands) -> str:
    """What asking for a swap has brought, for people.

    Args:
        finding: It.
        commands: What can be done about it.
    """
    swap, receipt = finding.swap, finding.receipt
    facts = [swap.client_order_id, traded(swap), finding.outcome.value]
    if receipt is not None:
        facts.append(f"order {receipt.order_id}: {commands.follow(receipt.order_id)}")
    elif finding.outcome is not SwapOutcome.UNKNOWN:
        facts.append(f"{finding.reason}: nothing was executed")
    elif swap.may_still_execute:
        facts.append(
            f"{finding.reason}; it may be executed even now, so ask again in two minutes: "
            f"{commands.reconcile()}"
        )
    else:
        facts.append(
            f"{finding.reason}; look it up in another way before you repeat it, and then close "
            f"it: {commands.settle(swap.client_order_id)}"
        )
    return printable("  ".join(" ".join(fact.split()) for fact in facts))


def traded(swap: UnresolvedSwap) -> str:
    """What a swap was to do.

    Args:
        swap: The swap.
    """
    return f"{plain(swap.amount_in)} {swap.asset_in} -> {swap.asset_out}"


# --- Closing by hand ------------------------------------------------------------------------


@attrs.frozen
class _Closing:
    """A swap that is to be closed by hand.

    Attributes:
        client_order_id: Its client order id.
        note: How its owner has found out about it.
        is_asked: Whether the user is asked once more.
    """

    client_order_id: str
    note: str
    is_asked: bool


async def _settle(place: _Place, account: Account, closing: _Closing, output: Output) -> int:
    # Looked at first: a client would make a journal that isn't there.
    _named(closing.client_order_id, await place.unresolved(account))
    status = Status.INTERRUPTED
    async with account.client(journal=SwapJournal(place.path)) as client:
        with ctrl_c_cancels():
            swap = _named(closing.client_order_id, client.unresolved_swaps())
            question = _question(swap, account)
            if closing.is_asked and not await confirm_beside(client, question):
                raise CommandFailed("you didn't say yes; nothing was closed")
            with usage_errors():
                await client.settle_swap(closing.client_order_id, closing.note)
            _tell_closed(swap, closing.note, output)
            status = Status.OK
    return status


def _named(client_order_id: str, unresolved: Iterable[Swap]) -> Swap:
    for swap in unresolved:
        if swap.client_order_id == client_order_id:
            return swap
    raise click.UsageError(
        f"no unresolved swap of this account has the client order id {printable(client_order_id)}"
    )


def _question(swap: UnresolvedSwap, account: Account) -> str:
    doubt = "It may be executed even now. " if swap.may_still_execute else ""
    return (
        f"{doubt}Close {swap.client_order_id} ({traded(swap)}, asked for at "
        f"{swap.at:%Y-%m-%d %H:%M:%S} UTC) at {account.endpoint.netloc}, {account.label}, so that "
        "it is never asked for again?"
    )


def _tell_closed(swap: UnresolvedSwap, note: str, output: Output) -> None:
    if output.as_json:
        print_json(client_order_id=swap.client_order_id, outcome=SwapOutcome.SETTLED, note=note)
    else:
        name = printable(swap.client_order_id)
        click.echo(f"{name}  {printable(traded(swap))}  settled: {printable(note)}")
