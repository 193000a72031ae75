"""What commands print: amounts, times and the broker's texts, for people and for programs.

Results go to standard output, all else to standard error. For programs it is one JSON object a line
(``--json``), and its form is stable: names are those of the library's values, amounts are strings
as they came, times are ISO 8601 in UTC, and what isn't known is null. Texts of the broker's are
shown to people with their control characters escaped, as a terminal would obey them.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from trio_broker.cli.unwritable import give_up_output

if TYPE_CHECKING:
    from rich.console import Console

# Where there is no screen, each row has one line, however long.
_NO_SCREEN: Final = 100_000


@attrs.frozen(kw_only=True)
class Output:
    """How a command was asked to print.

    Attributes:
        as_json: One JSON object a line.
        quiet: Nothing but results and errors.
        verbose: How much of the log goes to standard error: 0 none, 1 what happens, 2 all.
        debug: Whether errors keep their traceback.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: int = 0
    debug: bool = False

    def note(self, text: str) -> None:
        """Tell people something that is no result.

        Args:
            text: It.
        """
        if not self.quiet and not self.as_json:
            click.echo(text, err=True)

    def start_log(self) -> None:
        """Send the library's log to standard error, as far as that is wanted."""
        if self.verbose:
            logging.basicConfig(
                stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
            )
            level = logging.DEBUG if self.verbose > 1 else logging.INFO
            logging.getLogger("trio_broker").setLevel(level)


@contextmanager
def whether_read_or_not() -> Iterator[None]:
    """Print in a block what may be lost: where it can't be, standard output is given up.

    What money has done goes on to be found out then, and the status tells it.
    """
    try:
        yield
    except OSError:
        give_up_output()


def printable(text: str) -> str:
    """A text whose control characters are escaped.

    Args:
        text: Any text.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def plain(amount: Decimal | int | None, sign: str = "") -> str:
    """An amount without an exponent and without zeros that say nothing, empty for none.

    Args:
        amount: The amount.
        sign: ``"+"`` to show a plus as well.
    """
    if amount is None:
        return ""
    text = format(Decimal(amount), f"{sign}f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def print_json(**facts: object) -> None:
    """Print one object in a line, at once.

    Args:
        **facts: Its members: the library's values, or lists, dicts and plain values of them.
    """
    click.echo(json_text(facts))


def json_text(facts: Mapping[str, object]) -> str:
    """An object as the text of its line.

    Args:
        facts: Its members, as `print_json` takes them.
    """
    return json.dumps(facts, default=_as_json)


def fields(value: Any) -> dict[str, Any]:
    """The attributes of one of the library's values, by name.

    Args:
        value: The value.
    """
    return attrs.asdict(value, recurse=False)


def _as_json(value: object) -> object:
    """What JSON has no value of its own for."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, frozenset | set):
        return sorted(map(str, value))
    if isinstance(value, enum.Enum):
        return value.value
    return fields(value) if attrs.has(type(value)) else str(value)


def console(*, stderr: bool = False) -> Console:
    """A console that looks itself whether there is a terminal to be coloured.

    Args:
        stderr: Whether it prints to standard error.
    """
    # Not at the top: rich is slow to import, and `--help` needs none of it.
    from rich.console import Console  # noqa: PLC0415

    made = Console(highlight=False, stderr=stderr)
    if not made.is_terminal:
        made.width = _NO_SCREEN
    return made


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    styles: Sequence[str] = (),
    folds: bool = False,
) -> None:
    """Print a table to standard output; each row in lines of its own where it has no room.

    Args:
        columns: The names of its columns. One without a name goes on with the column before it.
        rows: The cells of each row; their control characters are escaped.
        right: The columns that are aligned to the right.
        styles: The style of each row, none for the rest.
        folds: Whether it stays a table where there is no room, with cells broken in the middle.
    """
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415

    screen = console()
    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    titles = [Text(name) for name in columns]
    widths = [max(one.cell_len for one in column) for column in zip(titles, *cells, strict=True)]
    if not folds and sum(widths) + 2 * (len(widths) - 1) > screen.width:
        for row in cells:
            for line in _record(columns, [cell.plain for cell in row]):
                screen.print(Text(line), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    aligned = set(right)
    for name in columns:
        justify = "right" if name in aligned else "left"
        table.add_column(name, overflow="fold", justify=justify)  # type: ignore[arg-type]
    for index, row in enumerate(cells):
        table.add_row(*row, style=styles[index] if index < len(styles) else "")
    screen.print(table)


def _record(columns: Sequence[str], cells: Sequence[str]) -> Iterable[str]:
    """A row where columns would break its amounts in the middle, to be taken for others."""
    yield cells[0] or columns[0]
    line = ""
    for name, cell in zip(columns[1:], cells[1:], strict=True):
        if name.strip():
            if line:
                yield line
            line = f"  {name} {cell}" if cell else ""
        elif line and cell:
            line += f" {cell}"
    if line:
        yield line
