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
_LOG_LEAST: Final = 4  # lines that the parts above it leave to the log
_PART_LEAST: Final = 4  # lines that a part leaves to each that follows
_DATA_MOST: Final = 4  # lines of a message that has no form of its own

# On a narrow screen these columns are left out.
_WIDE_ONLY: Final = frozenset({"progress", ">available", ">changed"})

_AMOUNTS: Final = frozenset({">total", ">locked", ">available"})

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


_UNICODE: Final = _Signs("●", " · ", "━", "╌", "▁▂▃▄▅▆▇█")
_ASCII: Final = _Signs("*", " - ", "=", ".", "_.:-=+*#@")


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
        drawing = _Drawing(self.board, self.now, options.max_width, signs, self._is_crowded())
        head = drawn(drawing.head())
        parts = [part for parts in drawing.parts() if (part := drawn(parts))]
        title = drawn(drawing.log_title())
        entries = (drawn([entry]) for entry in drawing.log())
        if self.height is None:
            log = _last(entries, _LOG_UNBOUNDED)
        else:
            room = self.height - len(head)
            if sum(map(len, parts)) + len(title) + _LOG_LEAST > room:
                # Without the empty lines above their titles.
                parts, title = [part[1:] for part in parts], title[1:]
            kept = len(title) + _LOG_LEAST if title else 0
            parts = _fitted(parts, room - kept, drawn([_MORE]))
            room -= sum(map(len, parts)) + len(title)
            log = _last(entries, room)
            if self.hint and room - len(log) > 1:
                log += drawn([Text(), Text(self.hint, style="dim", no_wrap=True, overflow="crop")])
        for line in itertools.chain(head, *parts, title, log):
            yield from line
            yield Segment.line()

    def _is_crowded(self) -> bool:
        """Whether there are more balances than there is certainly room for."""
        held = self.board.holdings
        return bool(held and self.height and len(held) > self.height // 2)


def _last(entries: Iterable[Lines], room: int) -> Lines:
    """The last entries that have so many lines together, or the beginning of the very last.

    Args:
        entries: The lines of each entry, the last one first.
        room: How many lines there are.
    """
    lines: Lines = []
    for entry in entries:
        if lines and len(lines) + len(entry) > room:
            break
        lines = [*entry, *lines]
    return lines[: max(room, 0)]


def _fitted(parts: Sequence[Lines], room: int, more: Lines) -> list[Lines]:
    """Parts that have so many lines together, those that are too long cut off.

    The first gets what the least of the others leaves to it, and so on.

    Args:
        parts: The parts.
        room: How many lines there are.
        more: What stands where one is cut off.
    """
    fitted = []
    for number, part in enumerate(parts, start=1):
        later = sum(min(len(other), _PART_LEAST) for other in parts[number:])
        share = max(room - later, _PART_LEAST)
        lines = part if len(part) <= share else [*part[: share - len(more)], *more]
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
    is_crowded: bool

    # --- The head --------------------------------------------------------------------------

    def head(self) -> Iterator[RenderableType]:
        """Whose account it is, how the connection is, and what is refused."""
        board = self.board
        label = Text.assemble((f" {board.label} ", _LABELS[board.label]), f" {board.host}")
        yield from self._at_two_ends(label, self._state())
        yield from map(Text, self._packed(self._facts()))
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

    def _packed(self, facts: Iterable[str]) -> list[str]:
        """Facts in as few lines as they take, none of them broken."""
        lines: list[str] = []
        for fact in facts:
            longer = f"{lines[-1]}{self.signs.between}{fact}" if lines else fact
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
        line = Text.assemble((title, "dim"), self._spark(counts[len(counts) - width :]))
        line.append(figures, style="dim")
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _spark(self, counts: Sequence[int]) -> Text:
        """A sparkline; the least that isn't nothing is seen."""
        heights = self.signs.heights
        steps, top = len(heights) - 1, max(counts, default=0)
        line = Text()
        for count in counts:
            height = -(-count * steps // top) if top else 0
            line.append(heights[height], style="cyan" if height else "dim")
        return line

    # --- The parts -------------------------------------------------------------------------

    def parts(self) -> Iterator[Iterator[RenderableType]]:
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
            yield self._table(columns, [self._order(name) for name in names])

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
        holdings = sorted(held.values(), key=self._rank)
        yield self._table(columns, [self._balance(holding) for holding in holdings])

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

    def _rank(self, holding: Holding) -> tuple[bool, bool, str]:
        """By asset; what is nothing comes last, and so does what never changed if it may be cut."""
        is_nothing = not holding.balance.total and not holding.is_marked(self.now)
        is_dull = self.is_crowded and holding.changed_at is None
        return is_nothing, is_dull, holding.balance.asset

    @property
    def is_narrow(self) -> bool:
        """Whether only what matters most has room."""
        return self.width < _NARROW

    def _table(self, columns: Sequence[str], rows: Sequence[Row]) -> Table:
        """A table; a column whose name begins with ``>`` is aligned to the right.

        Args:
            columns: Its columns.
            rows: Its rows; a cell that is missing is empty.
        """
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
                justify = "left"  # they have spaces at their ends, which must stay
            table.add_column(title, justify=justify, overflow="fold")
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        return table

    # --- The log ---------------------------------------------------------------------------

    def log_title(self) -> Iterator[RenderableType]:
        """The log's title, if there is anything below it."""
        if self.board.has_log and self.board.log:
            yield from self.title("EVENTS", "UTC")

    def log(self) -> Iterator[RenderableType]:
        """What happened, the newest first."""
        for entry in reversed(self.board.log if self.board.has_log else ()):
            row = Table.grid(padding=(0, 2, 0, 0))
            row.add_column(style="dim", no_wrap=True)
            row.add_column(overflow="fold")
            text = entry.text + (f" (x{entry.times})" if entry.times > 1 else "")
            row.add_row(f"{entry.at:%H:%M:%S}", Text(text, style=_MOODS[entry.mood]))
            yield row

    def _ago(self, at: dt.datetime) -> str:
        since = self.now - at
        return f"{span(since)} ago" if since >= dt.timedelta(seconds=1) else "now"


def _text(cell: Text | str) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _align_points(amounts: Sequence[Text], width: int) -> None:
    """Let the decimal points of amounts stand below each other.

    Args:
        amounts: The amounts.
        width: How wide they should be at least.
    """
    heads = [len(amount.plain.partition(".")[0]) for amount in amounts]
    tails = [len(amount) - head for amount, head in zip(amounts, heads, strict=True)]
    for amount, head, tail in zip(amounts, heads, tails, strict=True):
        amount.pad_left(max(*heads, width - max(tails)) - head)
        amount.pad_right(max(tails) - tail)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def _change(holding: Holding) -> Text:
    """By how much the total has changed, or else what is locked."""
    change = holding.change
    if change:
        return Text(plain(change, "+"), style="green" if change > 0 else "red")
    return Text(f"locked {plain(holding.change_of_locked, '+')}", style="yellow")
