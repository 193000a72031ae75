"""Drawing a board: a pure function of the board, the time and the size of the terminal.

>>> console.print(Frame(board, now))

This module imports rich, which is slow to import, so other modules import it in functions.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

import attrs
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from trio_broker import ConnectionState, OrderStatus
from trio_broker.cli.terminal.output import (
    balance_amount,
    counted,
    plain,
    plain_balance,
    printable,
)
from trio_broker.cli.watch.board import BALANCES, ORDERS, Board, Holding
from trio_broker.cli.watch.events import describe_duration

Lines: TypeAlias = list[list[Segment]]
Row: TypeAlias = dict[str, Text | str]

_NARROW: Final = 60  # columns; below that, only the most important columns are shown
_LOG_LINES: Final = 12  # lines of the log if the height is unlimited
_MIN_LOG_LINES: Final = 4  # lines that are reserved for the log
_MIN_SECTION_LINES: Final = 4  # lines that are reserved for each section
_MAX_DATA_LINES: Final = 4  # lines for a message of another channel

# Columns that a narrow screen omits.
_WIDE_ONLY: Final = frozenset({"progress", ">available", ">changed"})

_AMOUNTS: Final = frozenset({">total", ">locked", ">available"})

_LABELS: Final = {"LIVE": "bold reverse red", "SANDBOX": "bold reverse blue"}
_KIND_STYLES: Final = {"good": "green", "bad": "red", "neutral": ""}
_STATES: Final = {
    ConnectionState.CONNECTED: "green",
    ConnectionState.WAITING: "bold red",
    ConnectionState.FAILED: "bold red",
}

_TRUNCATED: Final = Text("more than fits", style="dim")

_STEPS: Final = {OrderStatus.PENDING: 1, OrderStatus.PROCESSING: 2, OrderStatus.PARTIAL: 3}
_LAST_STEP: Final = 4
_STEP_WIDTH: Final = 3
_FINAL_STYLES: Final = {
    OrderStatus.FILLED: "bold green",
    OrderStatus.FAILED: "bold red",
    OrderStatus.CANCELLED: "bold red",
}


@attrs.frozen
class _Symbols:
    """The characters that depend on the terminal."""

    dot: str
    separator: str
    done: str
    to_do: str
    heights: str


_UNICODE: Final = _Symbols("●", " · ", "━", "╌", "▁▂▃▄▅▆▇█")
_ASCII: Final = _Symbols("*", " - ", "=", ".", "_.:-=+*#@")


@attrs.frozen
class Frame:
    """A drawing of a board, which rich can print.

    Attributes:
        board: The board.
        now: The time.
        height: The maximum number of lines, or None.
        hint: The last line, if there is room for it.
    """

    board: Board
    now: dt.datetime
    height: int | None = None
    hint: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.reset_height()

        def drawn(parts: Iterable[RenderableType]) -> Lines:
            return [
                line for part in parts for line in console.render_lines(part, options, pad=False)
            ]

        symbols = _ASCII if options.ascii_only else _UNICODE
        content = _Content(self.board, self.now, options.max_width, symbols, self._is_crowded())
        head = drawn(content.head())
        sections = [lines for parts in content.sections() if (lines := drawn(parts))]
        title = drawn(content.log_title())
        entries = (drawn([entry]) for entry in content.log())
        if self.height is None:
            log = _last_lines(entries, _LOG_LINES)
        else:
            room = self.height - len(head)
            if sum(map(len, sections)) + len(title) + _MIN_LOG_LINES > room:
                # Save the empty lines above the titles.
                sections, title = [section[1:] for section in sections], title[1:]
            kept = len(title) + _MIN_LOG_LINES if title else 0
            sections = _truncated(sections, room - kept, drawn([_TRUNCATED]))
            room -= sum(map(len, sections)) + len(title)
            log = _last_lines(entries, room)
            if self.hint and room - len(log) > 1:
                log += drawn([Text(), Text(self.hint, style="dim", no_wrap=True, overflow="crop")])
        for line in itertools.chain(head, *sections, title, log):
            yield from line
            yield Segment.line()

    def _is_crowded(self) -> bool:
        """Whether there may be more balances than fit."""
        held = self.board.holdings
        return bool(held and self.height and len(held) > self.height // 2)


def _last_lines(entries: Iterable[Lines], room: int) -> Lines:
    """Return the entries that fit, or the beginning of one. They come with the newest first."""
    lines: Lines = []
    for entry in entries:
        if lines and len(lines) + len(entry) > room:
            break
        lines = [*entry, *lines]
    return lines[: max(room, 0)]


def _truncated(sections: Sequence[Lines], room: int, mark: Lines) -> list[Lines]:
    """Truncate sections to fit into `room` lines, with a minimum for each of the later ones.

    A truncated section ends with `mark`.
    """
    truncated = []
    for number, section in enumerate(sections, start=1):
        later = sum(min(len(other), _MIN_SECTION_LINES) for other in sections[number:])
        share = max(room - later, _MIN_SECTION_LINES)
        lines = section if len(section) <= share else [*section[: share - len(mark)], *mark]
        truncated.append(lines)
        room -= len(lines)
    return truncated


@attrs.frozen
class _Content:
    """The content of a frame, section by section."""

    board: Board
    now: dt.datetime
    width: int
    symbols: _Symbols
    is_crowded: bool

    # --- The head --------------------------------------------------------------------------

    def head(self) -> Iterator[RenderableType]:
        """Yield the account, the state of the connection, and the refused channels."""
        board = self.board
        label = Text.assemble((f" {board.label} ", _LABELS[board.label]), f" {board.host}")
        yield from self._justified(label, self._state())
        yield from map(Text, self._joined(self._facts()))
        if board.reason:
            yield Text(board.reason, style="red")
        yield self._rate()
        for channel, why in board.refused.items():
            yield Text(f"{printable(channel)} is refused: {why}", style="red")

    def _justified(self, left: Text, right: Text) -> Iterator[Text]:
        """Yield two texts at the ends of one line, or two lines if they don't fit."""
        space = self.width - left.cell_len - right.cell_len
        if space > 1:
            yield left.append(" " * space).append_text(right)
        else:
            yield from (left, right)

    def _joined(self, facts: Iterable[str]) -> list[str]:
        """Join facts to as few lines as possible without wrapping one."""
        lines: list[str] = []
        for fact in facts:
            longer = f"{lines[-1]}{self.symbols.separator}{fact}" if lines else fact
            if lines and len(longer) <= self.width:
                lines[-1] = longer
            else:
                lines.append(fact)
        return lines

    def _state(self) -> Text:
        board = self.board
        text = board.state.value
        if board.state is ConnectionState.WAITING:
            text = "no connection"
            if board.retry_at is not None:
                text += f", retrying in {describe_duration(board.retry_at - self.now)}"
        return Text(f"{self.symbols.dot} {text}", style=_STATES.get(board.state, "yellow"))

    def _facts(self) -> Iterator[str]:
        board = self.board
        if board.lost_at is not None:
            yield f"down for {describe_duration(self.now - board.lost_at)}"
        if board.connected_at is not None:
            yield f"up {describe_duration(self.now - board.connected_at)}"
            if board.latency is not None:
                yield f"latency {_milliseconds(board.latency)}"
        if board.outages:
            yield counted(board.outages, "outage")
        if board.last_message_at is None:
            yield "no message yet"
        else:
            yield f"last message {self._ago(board.last_message_at)}"

    def _rate(self) -> Text:
        counts = self.board.rate(self.now)
        most = max(counts)
        figures = f" {counts[-1]} now, {most} max"
        title = "messages/s "
        width = max(0, min(len(counts), self.width - len(title) - len(figures)))
        line = Text.assemble((title, "dim"), self._spark(counts[len(counts) - width :]))
        line.append(figures, style="dim")
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _spark(self, counts: Sequence[int]) -> Text:
        """Return a sparkline on which every count above 0 is visible."""
        heights = self.symbols.heights
        steps, top = len(heights) - 1, max(counts, default=0)
        line = Text()
        for count in counts:
            height = -(-count * steps // top) if top else 0
            line.append(heights[height], style="cyan" if height else "dim")
        return line

    # --- The sections ----------------------------------------------------------------------

    def sections(self) -> Iterator[Iterator[RenderableType]]:
        """Yield orders, other channels and balances: the most important first."""
        watched = [name for name in self.board.channels if name not in self.board.refused]
        orders = [name for name in watched if name.startswith(ORDERS)]
        others = [name for name in watched if name != BALANCES and name not in orders]
        yield self._orders(self._with_refused(orders, self.board.orders))
        yield self._others(self._with_refused(others, self.board.others))
        yield self._balances(is_wanted=BALANCES in watched)

    def _with_refused(self, watched: Sequence[str], seen: Iterable[str]) -> list[str]:
        """Add channels that were refused later, because their last state stays visible."""
        return [*watched, *(name for name in seen if name not in watched)]

    def title(self, name: str, more: str = "") -> Iterator[RenderableType]:
        """Yield the title of a section, below an empty line."""
        yield Text()
        text = Text.assemble((name, "bold"), (f" {more}" if more else "", "dim"))
        yield Rule(text, align="left", style="dim", characters="─")

    def _orders(self, names: Sequence[str]) -> Iterator[RenderableType]:
        if names:
            yield from self.title("ORDERS")
            columns = ("order", "progress", "status", ">filled", ">changed")
            yield self._table(columns, [self._order(name) for name in names])

    def _order(self, name: str) -> Row:
        order_id = printable(name.removeprefix(ORDERS))
        seen = self.board.orders.get(name)
        if seen is None:
            return {"order": order_id, "status": Text("no message yet", style="dim")}
        status, filled = seen.order.status, seen.order.filled_out
        style = _FINAL_STYLES.get(status, "cyan")  # type: ignore[call-overload]
        return {
            "order": order_id,
            "progress": Text(self._progress(status), style=style),
            "status": Text(self.board.shown(status), style=style),
            ">filled": plain(filled) if filled else "",
            ">changed": Text(self._ago(seen.at), style="dim"),
        }

    def _progress(self, status: str) -> str:
        is_final = status in _FINAL_STYLES
        done = _LAST_STEP if is_final else _STEPS.get(status, 0)  # type: ignore[call-overload]
        to_do = _LAST_STEP - done
        return self.symbols.done * (done * _STEP_WIDTH) + self.symbols.to_do * (to_do * _STEP_WIDTH)

    def _others(self, names: Sequence[str]) -> Iterator[RenderableType]:
        for name in names:
            seen = self.board.others.get(name)
            about = "no message yet"
            if seen is not None:
                about = f"{counted(seen.count, 'message')}, {self._ago(seen.at)}"
            yield from self.title(printable(name), about)
            if seen is not None:
                text, most = self.board.shown(seen.text), self.width * _MAX_DATA_LINES
                yield Text(text if len(text) <= most else text[: most - 3] + "...", overflow="fold")

    def _balances(self, *, is_wanted: bool) -> Iterator[RenderableType]:
        held = self.board.holdings
        if held is None:
            if is_wanted:
                yield from self.title("BALANCES", "no message yet")
            return
        yield from self.title("BALANCES")
        columns = ("asset", ">total", ">locked", ">available", ">change")
        holdings = sorted(held.values(), key=self._rank)
        yield self._table(columns, [self._balance(holding) for holding in holdings])

    def _balance(self, holding: Holding) -> Row:
        balance = holding.balance
        style = "bold" if holding.is_highlighted(self.now) else ""
        has_locked = bool(balance_amount(balance, "locked"))
        return {
            "asset": Text(printable(balance.asset), style=style),
            ">total": Text(plain_balance(balance, "total"), style=style),
            ">locked": plain_balance(balance, "locked") if has_locked else "",
            ">available": plain_balance(balance, "available"),
            ">change": _change(holding) if style else "",
        }

    def _rank(self, holding: Holding) -> tuple[bool, bool, str]:
        """Return the sort key: by asset, with zero balances last.

        On a crowded screen, balances that never changed come after those that did.
        """
        has_any = balance_amount(holding.balance, "total") or holding.is_highlighted(self.now)
        is_unchanged = self.is_crowded and holding.changed_at is None
        return not has_any, is_unchanged, holding.balance.asset

    @property
    def is_narrow(self) -> bool:
        """Whether only the most important columns fit."""
        return self.width < _NARROW

    def _table(self, columns: Sequence[str], rows: Sequence[Row]) -> Table:
        """Return a table. Columns whose names begin with ``>`` are right-aligned."""
        gap = 3
        if self.is_narrow:
            columns = [name for name in columns if name not in _WIDE_ONLY]
            gap = 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
        cells = [[_text(row.get(name, "")) for row in rows] for name in columns]
        for name, column in zip(columns, cells, strict=True):
            justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
            title = Text(name.removeprefix(">"), justify=justify)
            if name in _AMOUNTS and not self.is_narrow:
                _align_points(column, len(title))
                justify = "left"  # padded by `_align_points`
            table.add_column(title, justify=justify, overflow="fold")
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        return table

    # --- The log ---------------------------------------------------------------------------

    def log_title(self) -> Iterator[RenderableType]:
        """Yield the title of the log, if the log is shown and not empty."""
        if self.board.has_log and self.board.log:
            yield from self.title("EVENTS", "UTC")

    def log(self) -> Iterator[RenderableType]:
        """Yield the entries of the log, the newest first."""
        for entry in reversed(self.board.log if self.board.has_log else ()):
            row = Table.grid(padding=(0, 2, 0, 0))
            row.add_column(style="dim", no_wrap=True)
            row.add_column(overflow="fold")
            text = entry.text + (f" (x{entry.times})" if entry.times > 1 else "")
            row.add_row(f"{entry.at:%H:%M:%S}", Text(text, style=_KIND_STYLES[entry.kind]))
            yield row

    def _ago(self, at: dt.datetime) -> str:
        since = self.now - at
        return f"{describe_duration(since)} ago" if since >= dt.timedelta(seconds=1) else "now"


def _text(cell: Text | str) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _align_points(amounts: Sequence[Text], width: int) -> None:
    """Pad amounts to align their decimal points, and to a minimum width."""
    heads = [len(amount.plain.partition(".")[0]) for amount in amounts]
    tails = [len(amount) - head for amount, head in zip(amounts, heads, strict=True)]
    for amount, head, tail in zip(amounts, heads, tails, strict=True):
        amount.pad_left(max(*heads, width - max(tails)) - head)
        amount.pad_right(max(tails) - tail)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def _change(holding: Holding) -> Text:
    """Return the change of the total or, if there is none, of the locked part."""
    if not (holding.balance.is_readable and holding.before.is_readable):
        return Text()
    change = holding.change
    if change:
        return Text(plain(change, "+"), style="green" if change > 0 else "red")
    return Text(f"locked {plain(holding.change_of_locked, '+')}", style="yellow")
