"""A board as it is drawn: a pure function of the board, the time and the size.

>>> console.print(Picture(board, now))

It imports rich, which is slow to import: whoever needs it imports this inside of a function.
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
from trio_broker.cli.board import BALANCES, ORDERS, Board, Holding, span
from trio_broker.cli.output import plain, printable

Lines: TypeAlias = list[list[Segment]]
Row: TypeAlias = dict[str, Text | str]

_NARROW: Final = 60  # columns: with fewer, only what matters most is shown
_LOG_UNBOUNDED: Final = 12  # lines of the log, where the height sets no limit
_LOG_LEAST: Final = 4  # lines that tables leave to the log
_TABLE_LEAST: Final = 4  # lines that a table leaves to each that follows
_DATA_MOST: Final = 4  # lines of a message that has no form of its own

# On a narrow screen these columns are left out.
_WIDE_ONLY: Final = frozenset({"progress", ">available", ">changed"})

_LABELS: Final = {"LIVE": "bold reverse red", "SANDBOX": "bold reverse blue"}
_MOODS: Final = {"good": "green", "bad": "red", "plain": ""}
_STATES: Final = {
    ConnectionState.CONNECTED: "green",
    ConnectionState.WAITING: "bold red",
    ConnectionState.FAILED: "bold red",
}

_MORE: Final = Text("more than fits", style="dim")

_STEPS: Final = {OrderStatus.PENDING: 1, OrderStatus.PROCESSING: 2, OrderStatus.PARTIAL: 3}
_LAST_STEP: Final = 4
_STEP_WIDTH: Final = 3
_ENDS: Final = {
    OrderStatus.FILLED: "bold green",
    OrderStatus.FAILED: "bold red",
    OrderStatus.CANCELLED: "bold red",
}


@attrs.frozen
class _Signs:
    """The characters that not every terminal has."""

    dot: str
    between: str
    done: str
    to_do: str
    heights: str


_UNICODE: Final = _Signs("●", " · ", "━", "╌", " ▁▂▃▄▅▆▇█")
_ASCII: Final = _Signs("*", " - ", "=", ".", " .:-=+*#@")


@attrs.frozen
class Picture:
    """Draws a board.

    Attributes:
        board: The board.
        now: The time.
        height: How many lines there are; None for as many as it takes.
        hint: The last line, where there is room for it.
    """

    board: Board
    now: dt.datetime
    height: int | None = None
    hint: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its lines, from the top."""
        options = options.reset_height()

        def drawn(parts: Iterable[RenderableType]) -> Lines:
            return [
                line for part in parts for line in console.render_lines(part, options, pad=False)
            ]

        signs = _ASCII if options.ascii_only else _UNICODE
        drawing = _Drawing(self.board, self.now, options.max_width, signs)
        head, log = drawn(drawing.head()), drawn(drawing.log(self.height or _LOG_UNBOUNDED))
        tables = [table for parts in drawing.tables() if (table := drawn(parts))]
        title = drawn(drawing.title("EVENTS", "UTC")) if log else []
        room = _LOG_UNBOUNDED
        if self.height is not None:
            room = self.height - len(head) - len(title)
            kept = min(len(log), _LOG_LEAST)
            tables = _fitted(tables, room - kept, drawn([_MORE]))
            room -= sum(map(len, tables))
        log = log[max(0, len(log) - room) :] if room > 0 else []
        hint = Text(self.hint, style="dim", no_wrap=True, overflow="crop")
        end = drawn([Text(), hint]) if self.hint and room - len(log) > 1 else []
        for line in itertools.chain(head, *tables, title, log, end):
            yield from line
            yield Segment.line()


def _fitted(tables: Sequence[Lines], room: int, more: Lines) -> list[Lines]:
    """Tables that have so many lines together, those that are too long cut off.

    The first gets what the least of the others leaves to it, and so on.

    Args:
        tables: The tables.
        room: How many lines there are.
        more: What stands where one is cut off.
    """
    fitted = []
    for number, table in enumerate(tables, start=1):
        later = sum(min(len(other), _TABLE_LEAST) for other in tables[number:])
        share = max(room - later, _TABLE_LEAST)
        lines = table if len(table) <= share else [*table[: share - len(more)], *more]
        fitted.append(lines)
        room -= len(lines)
    return fitted


@attrs.frozen
class _Drawing:
    """A board at a time and of a width; its methods give the parts of the picture."""

    board: Board
    now: dt.datetime
    width: int
    signs: _Signs

    # --- The head --------------------------------------------------------------------------

    def head(self) -> Iterator[RenderableType]:
        """Whose account it is, how the connection is, and what is refused."""
        board = self.board
        label = Text.assemble((f" {board.label} ", _LABELS[board.label]), f" {board.host}")
        yield from self._at_two_ends(label, self._state())
        yield Text(self.signs.between.join(self._facts()))
        if board.reason:
            yield Text(board.reason, style="red")
        yield self._rate()
        for channel, why in board.refused.items():
            yield Text(f"{printable(channel)} is refused: {why}", style="red")

    def _at_two_ends(self, left: Text, right: Text) -> Iterator[Text]:
        """Two texts at the ends of one line, or else in two lines."""
        space = self.width - left.cell_len - right.cell_len
        if space > 1:
            yield left.append(" " * space).append_text(right)
        else:
            yield from (left, right)

    def _state(self) -> Text:
        board = self.board
        text = board.state.value
        if board.state is ConnectionState.WAITING:
            text = "no connection"
            if board.retry_at is not None:
                text += f", next try in {span(board.retry_at - self.now)}"
        return Text(f"{self.signs.dot} {text}", style=_STATES.get(board.state, "yellow"))

    def _facts(self) -> Iterator[str]:
        board = self.board
        if board.lost_at is not None:
            yield f"down for {span(self.now - board.lost_at)}"
        if board.connected_at is not None:
            yield f"up {span(self.now - board.connected_at)}"
            if board.latency is not None:
                yield f"latency {_milliseconds(board.latency)}"
        if board.outages:
            yield f"{board.outages} outage{'s' * (board.outages > 1)}"
        if board.last_message_at is None:
            yield "no message yet"
        else:
            yield f"last message {self._ago(board.last_message_at)}"

    def _rate(self) -> Text:
        counts = self.board.rate(self.now)
        most = max(counts)
        figures = f" {counts[-1]} now, {most} most"
        title = "messages/s "
        width = max(0, min(len(counts), self.width - len(title) - len(figures)))
        shown = counts[len(counts) - width :]
        line = Text.assemble((title, "dim"), (self._spark(shown), "cyan"), (figures, "dim"))
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _spark(self, counts: Sequence[int]) -> str:
        """A sparkline; the least that isn't nothing is seen."""
        heights = self.signs.heights
        top = max(counts, default=0)
        steps = len(heights) - 1
        return "".join(heights[-(-count * steps // top) if top else 0] for count in counts)

    # --- The tables ------------------------------------------------------------------------

    def tables(self) -> Iterator[Iterator[RenderableType]]:
        """Orders, other channels, balances: what one looks at first comes first."""
        watched = [name for name in self.board.channels if name not in self.board.refused]
        orders = [name for name in watched if name.startswith(ORDERS)]
        others = [name for name in watched if name != BALANCES and name not in orders]
        yield self._orders(self._and_past(orders, self.board.orders))
        yield self._others(self._and_past(others, self.board.others))
        yield self._balances(is_wanted=BALANCES in watched)

    def _and_past(self, watched: Sequence[str], seen: Iterable[str]) -> list[str]:
        """What is watched, and what was and is refused now: its last state stays."""
        return [*watched, *(name for name in seen if name not in watched)]

    def title(self, name: str, more: str = "") -> Iterator[RenderableType]:
        """A title between two parts, with an empty line above."""
        yield Text()
        text = Text.assemble((name, "bold"), (f" {more}" if more else "", "dim"))
        yield Rule(text, align="left", style="dim", characters="─")

    def _orders(self, names: Sequence[str]) -> Iterator[RenderableType]:
        if names:
            yield from self.title("ORDERS")
            columns = ("order", "progress", "status", ">filled", ">changed")
            yield self._table(columns, map(self._order, names))

    def _order(self, name: str) -> Row:
        order_id = printable(name.removeprefix(ORDERS))
        seen = self.board.orders.get(name)
        if seen is None:
            return {"order": order_id, "status": Text("no message yet", style="dim")}
        status, filled = seen.order.status, seen.order.filled_out
        style = _ENDS.get(status, "cyan")  # type: ignore[call-overload]
        return {
            "order": order_id,
            "progress": Text(self._progress(status), style=style),
            "status": Text(self.board.shown(status), style=style),
            ">filled": plain(filled) if filled else "",
            ">changed": Text(self._ago(seen.at), style="dim"),
        }

    def _progress(self, status: str) -> str:
        at_end = status in _ENDS
        done = _LAST_STEP if at_end else _STEPS.get(status, 0)  # type: ignore[call-overload]
        to_do = _LAST_STEP - done
        return self.signs.done * (done * _STEP_WIDTH) + self.signs.to_do * (to_do * _STEP_WIDTH)

    def _others(self, names: Sequence[str]) -> Iterator[RenderableType]:
        for name in names:
            seen = self.board.others.get(name)
            about = "no message yet"
            if seen is not None:
                about = f"{seen.count} message{'s' * (seen.count > 1)}, {self._ago(seen.at)}"
            yield from self.title(printable(name), about)
            if seen is not None:
                text, most = self.board.shown(seen.text), self.width * _DATA_MOST
                yield Text(text if len(text) <= most else text[: most - 3] + "...", overflow="fold")

    def _balances(self, *, is_wanted: bool) -> Iterator[RenderableType]:
        held = self.board.holdings
        if held is None:
            if is_wanted:
                yield from self.title("BALANCES", "no message yet")
            return
        yield from self.title("BALANCES")
        columns = ("asset", ">total", ">locked", ">available", ">change")
        # What is nothing comes last, where it may be cut off.
        yield self._table(columns, map(self._balance, sorted(held.values(), key=self._rank)))

    def _balance(self, holding: Holding) -> Row:
        balance = holding.balance
        style = "bold" if holding.is_marked(self.now) else ""
        return {
            "asset": Text(printable(balance.asset), style=style),
            ">total": Text(plain(balance.total), style=style),
            ">locked": plain(balance.locked) if balance.locked else "",
            ">available": plain(balance.available),
            ">change": _change(holding) if style else "",
        }

    def _rank(self, holding: Holding) -> tuple[bool, str]:
        is_nothing = not holding.balance.total and not holding.is_marked(self.now)
        return is_nothing, holding.balance.asset

    def _table(self, columns: Sequence[str], rows: Iterable[Row]) -> Table:
        """A table; a column whose name begins with ``>`` is aligned to the right.

        Args:
            columns: Its columns.
            rows: Its rows; a cell that is missing is empty.
        """
        gap = 3
        if self.width < _NARROW:
            columns = [name for name in columns if name not in _WIDE_ONLY]
            gap = 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
        for name in columns:
            justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
            table.add_column(name.removeprefix(">"), justify=justify, overflow="fold")
        for row in rows:
            cells = (row.get(name, "") for name in columns)
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
        return table

    # --- The log ---------------------------------------------------------------------------

    def log(self, most: int) -> Iterator[RenderableType]:
        """What happened, the newest last.

        Args:
            most: How many entries are enough.
        """
        if not self.board.has_log or not self.board.log:
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for entry in list(self.board.log)[-most:]:
            text = entry.text + (f" (x{entry.times})" if entry.times > 1 else "")
            table.add_row(f"{entry.at:%H:%M:%S}", Text(text, style=_MOODS[entry.mood]))
        yield table

    def _ago(self, at: dt.datetime) -> str:
        since = self.now - at
        return f"{span(since)} ago" if since >= dt.timedelta(seconds=1) else "now"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def _change(holding: Holding) -> Text:
    """By how much the total has changed, or else what is locked."""
    change = holding.change
    if change:
        return Text(plain(change, "+"), style="green" if change > 0 else "red")
    return Text(f"locked {plain(holding.change_of_locked, '+')}", style="yellow")
