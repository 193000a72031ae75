"""Output of commands: texts, tables, JSON and the log.

Results go to standard output, everything else to standard error. With ``--json``, each line is a
JSON object in a stable form: names are those of the library's values, amounts are strings as
received, times are ISO 8601 in UTC, and unknown values are null.

Control characters in the broker's texts are escaped, because a terminal would interpret them. The
account's keys are removed from all output (`hide`).
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import json
import logging
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from trio_broker import Balance, UnreadableError
from trio_broker.redaction import redactor, without_signatures

if TYPE_CHECKING:
    from rich.console import Console

# Without a terminal, no line is wrapped.
_NO_TERMINAL_WIDTH: Final = 100_000

# A shorter secret could occur in an amount or in the name of an asset.
_SHORTEST_SECRET: Final = 6


@attrs.frozen(kw_only=True)
class Output:
    """The output options of a command.

    Attributes:
        as_json: Print one JSON object per line.
        quiet: Print only results and errors.
        verbose: The log on standard error: 0 none, 1 from INFO on, 2 from DEBUG on.
        debug: Print tracebacks of errors.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: int = 0
    debug: bool = False

    def note(self, text: str) -> None:
        """Print a human-readable text that isn't a result to standard error."""
        if not self.quiet and not self.as_json:
            click.echo(text, err=True)

    def start_log(self) -> None:
        """Send the library's log to standard error if ``verbose`` is set."""
        if self.verbose:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_LogFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
            logging.basicConfig(handlers=[handler])
            level = logging.DEBUG if self.verbose > 1 else logging.INFO
            logging.getLogger("trio_broker").setLevel(level)


# --- The broker's texts ---------------------------------------------------------------------


def hide(*secrets: str) -> None:
    """Remove secrets of at least six characters from all further output of this command."""
    context = click.get_current_context(silent=True)
    if context is not None:
        hidden: set[str] = context.meta.setdefault(__name__, set())
        hidden.update(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)


def _redact(text: str, *, signatures: bool = False) -> str:
    context = click.get_current_context(silent=True)
    secrets = frozenset[str]() if context is None else frozenset(context.meta.get(__name__, ()))
    return _redactor(secrets, signatures)(text) if secrets or signatures else text


_redactor: Final = functools.lru_cache(
    lambda secrets, signatures: redactor(secrets, signatures=signatures)
)


def printable(text: str) -> str:
    """Remove the account's keys from a text, and escape its control characters."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in _redact(text)
    )


def printable_lines(text: str) -> str:
    """Make a text of several lines printable, for example a traceback; remove signatures too."""
    redacted = without_signatures(_redact(text, signatures=True))
    return "\n".join(map(printable, redacted.splitlines()))


def one_line(text: str) -> str:
    """Make a text printable, and join its lines with spaces."""
    return printable(" ".join(text.split()))


def print_traceback(error: BaseException) -> None:
    """Print an error's traceback to standard error."""
    text = "".join(traceback.format_exception(error))
    click.echo(printable_lines(text), err=True)


class _LogFormatter(logging.Formatter):
    """Makes log records printable, because they may contain texts of the broker."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


# --- Values ---------------------------------------------------------------------------------


def plain(amount: Decimal | int | None, sign: str = "") -> str:
    """Format an amount without an exponent and trailing zeros; None is empty.

    The sign ``"+"`` shows the sign of positive amounts too.
    """
    if amount is None:
        return ""
    text = format(Decimal(amount), f"{sign}f")
    return text.rstrip("0").rstrip(".") if "." in text else text


UNREADABLE: Final = "unreadable"


def plain_balance(balance: Balance, name: str) -> str:
    """Format an amount of a balance, also one that can't be read."""
    amount = balance_amount(balance, name)
    return amount if isinstance(amount, str) else plain(amount)


def balance_amount(balance: Balance, name: str) -> Decimal | str | None:
    """Return an amount of a balance by its name, or ``"unreadable"``."""
    try:
        amount: Decimal | None = getattr(balance, name)
    except UnreadableError:
        return UNREADABLE
    return amount


def balance_fields(balance: Balance) -> dict[str, Any]:
    """Return the attributes of a balance and what is available, by name."""
    return {**fields(balance), "available": balance_amount(balance, "available")}


def counted(number: int, noun: str) -> str:
    """Return a number and a noun, with a plural "s" if necessary."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fields(value: Any) -> dict[str, Any]:
    """Return the attributes of a value of the library, by name.

    An amount of a balance that can't be read is ``"unreadable"``.
    """
    if isinstance(value, Balance):
        amounts = {name: balance_amount(value, name) for name in ("total", "locked")}
        return {"asset": value.asset, **amounts}
    return attrs.asdict(value, recurse=False)


def print_json(**members: object) -> None:
    """Print a JSON object in one line; members may be values of the library."""
    click.echo(json_text(members))


def json_text(members: Mapping[str, object]) -> str:
    """Return the JSON object that `print_json` prints."""
    return _redact(json.dumps(members, default=_as_json))


def _as_json(value: object) -> object:
    """Convert a value of a type that JSON doesn't have."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, frozenset | set):
        return sorted(map(str, value))
    if isinstance(value, enum.Enum):
        return value.value
    return fields(value) if attrs.has(type(value)) else str(value)


# --- Tables ---------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> Console:
    """Create a rich console, which detects whether it prints to a terminal."""
    # Imported here, because rich is slow to import and `--help` doesn't need it.
    from rich.console import Console  # noqa: PLC0415

    made = Console(highlight=False, stderr=stderr)
    if not made.is_terminal:
        made.width = _NO_TERMINAL_WIDTH
    return made


def has_screen() -> bool:
    """Whether standard output is a terminal that can be redrawn."""
    # FORCE_COLOR makes a pipe interactive for rich.
    return sys.stdout.isatty() and console().is_interactive


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    styles: Sequence[str] = (),
    wraps: bool = False,
) -> None:
    """Print a table to standard output; if it is too wide, print each row on several lines.

    Args:
        columns: The names of the columns. A column without a name continues the previous one.
        rows: The cells of each row; they are made printable.
        right: The columns that are aligned to the right.
        styles: The style of each row; empty for no styles.
        wraps: If the table is too wide, wrap its cells instead.
    """
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415

    screen = console()
    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    titles = [Text(name) for name in columns]
    widths = [max(cell.cell_len for cell in column) for column in zip(titles, *cells, strict=True)]
    if not wraps and sum(widths) + 2 * (len(widths) - 1) > screen.width:
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
    """Return a row as several lines, because a wrapped amount could be misread."""
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
