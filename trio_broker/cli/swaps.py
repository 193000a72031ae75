"""``trio-broker swaps``: what a journal knows of each swap, for people or for programs.

Nothing is asked of the broker, and nothing is changed: it may look while a client trades. Texts of
the broker's are shown with their control characters escaped, as a terminal would obey them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import click

from trio_broker import JournalRow, SwapJournal, SwapOutcome
from trio_broker.cli.ending import run

_NO_SCREEN: Final = 100_000


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--unresolved", is_flag=True, help="Only those of which the outcome is unknown.")
def command(*, file: Path, as_json: bool, unresolved: bool) -> None:
    """List the swaps in a journal, the oldest first.

    "unknown" means that a swap may have left, and that nobody knows what became of it: look it up
    at the broker, by its client order id, before you repeat it.
    """
    run(lambda: _list(SwapJournal(file), as_json=as_json, unresolved=unresolved))


async def _list(journal: SwapJournal, *, as_json: bool, unresolved: bool) -> int:
    rows = [
        row for row in await journal.rows() if not unresolved or row.outcome is SwapOutcome.UNKNOWN
    ]
    if as_json:
        for row in rows:
            click.echo(json.dumps({**attrs.asdict(row), **_json_values(row)}))
    elif rows:
        _print_table(rows)
    else:
        click.echo("No swaps.")
    return 0


def _json_values(row: JournalRow) -> dict[str, str]:
    """What JSON has no value of its own for."""
    return {
        "amount_in": f"{row.amount_in:f}",
        "at": row.at.isoformat(),
        "outcome": row.outcome.value,
        "updated_at": row.updated_at.isoformat(),
    }


def _print_table(rows: Sequence[JournalRow]) -> None:
    # Not at the top: rich is slow to import, and `--help` needs none of it.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for name in (
        "when (UTC)", "client order id", "swap", "outcome", "order id", "host", "key", "detail"
    ):  # fmt: skip
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = (
            f"{row.at:%Y-%m-%d %H:%M:%S}",
            row.client_order_id,
            f"{row.amount_in:f} {row.asset_in} -> {row.asset_out}",
            row.outcome.value,
            row.order_id or "",
            row.host,
            row.key_fingerprint,
            row.detail,
        )
        style = "bold red" if row.outcome is SwapOutcome.UNKNOWN else ""
        table.add_row(*(Text(_printable(cell)) for cell in cells), style=style)
    console = Console(highlight=False)
    if not console.is_terminal:
        # Where there is no screen, each swap has one line, however long.
        console.width = _NO_SCREEN
    console.print(table)


def _printable(text: str) -> str:
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
