"""Drawing a scene of the demo: a pure function of the scene, the time and the width."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final

import attrs
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trio_broker.cli.demo.scene import STEPS, Scene
from trio_broker.cli.terminal.output import plain

_NARROW: Final = 80  # columns, below which steps have no notes and balances no history
_CELL: Final = 0.2  # seconds that one cell of the timeline represents
_CELLS: Final = 36  # cells of a bar, if there is room
_LABEL_WIDTH: Final = 14  # columns; an order ID fits
_SPINNER_RATE: Final = 10  # frames per second


@attrs.frozen(kw_only=True)
class Symbols:
    """The characters to draw with."""

    done: str = "✓"
    failed: str = "✗"
    waiting: str = "·"
    spinner: str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    bar: str = "━"
    outage: str = "x"
    empty: str = "─"


# For terminals without Unicode.
ASCII: Final = Symbols(
    done="+", failed="!", waiting=".", spinner="|/-\\", bar="=", outage="x", empty="."
)


def draw(scene: Scene, *, at: float, width: int, symbols: Symbols) -> RenderableType:
    """Draw a scene at a time, for a terminal of some width."""
    narrow = width < _NARROW
    cells = min(_CELLS, width - _LABEL_WIDTH - 1)
    # A narrow frame needs more lines, so it has no title.
    title = [] if narrow else [Text("Play money over a real WebSocket", style="bold"), Text()]
    timeline = _timeline(scene, at, cells, symbols)
    progress = _progress_bar(scene, cells, symbols)
    lines = [
        *title,
        *_steps(scene, at, symbols, narrow=narrow),
        Text(),
        *_labelled("connection", timeline, _state(scene, at), narrow=narrow),
        *_labelled(scene.order_id or "order", progress, _order(scene), narrow=narrow),
        Text(),
    ]
    result = [Text(), Text(scene.result, style="bold green")] if scene.result else []
    return Group(*lines, _balances(scene, narrow=narrow), *result)


def _labelled(label: str, bar: Text, text: Text, *, narrow: bool) -> Iterator[Text]:
    """Return a bar with a label before it, and a text after it or below it."""
    first = Text(label.ljust(_LABEL_WIDTH)).append_text(bar)
    if narrow:
        yield first
        yield Text(" " * _LABEL_WIDTH).append_text(text)
    else:
        first.append(" " * (_CELLS - len(bar) + 2))
        yield first.append_text(text)


def _steps(scene: Scene, at: float, symbols: Symbols, *, narrow: bool) -> Iterator[Text]:
    longest = max(len(title) for _, title in STEPS)
    for number, (event, title) in enumerate(STEPS):
        line = Text()
        if number < scene.done:
            line.append(f"{symbols.done} ", style="green").append(title)
        elif number > scene.done:
            line.append(f"{symbols.waiting} {title}", style="dim")
        elif scene.is_over:
            line.append(f"{symbols.failed} {title}", style="bold red")
        else:
            symbol = symbols.spinner[int(at * _SPINNER_RATE) % len(symbols.spinner)]
            line.append(f"{symbol} {title}", style="bold yellow")
        note = scene.notes.get(event, "")
        if note and not narrow:
            line.append(" " * (longest - len(title) + 2))
            line.append(note, style="dim")
        yield line


def _timeline(scene: Scene, at: float, cells: int, symbols: Symbols) -> Text:
    """Return the last cells of the connection's timeline."""
    line = Text()
    if not scene.connection:
        return line
    start = scene.connection[0][0]
    count = int((at - start) / _CELL) + 1
    for number in range(max(0, count - cells), count):
        # A cell shows any outage in its time; the last cell shows the current state.
        begin = start + number * _CELL
        if number == count - 1:
            is_lost = not scene.connection[-1][1]
        else:
            is_lost = _was_lost(scene.connection, begin, begin + _CELL)
        if is_lost:
            line.append(symbols.outage, style="bold red")
        else:
            line.append(symbols.bar, style="green")
    return line


def _was_lost(connection: tuple[tuple[float, bool], ...], begin: float, end: float) -> bool:
    ends = [since for since, _ in connection[1:]] + [float("inf")]
    return any(
        not connected and since < end and until > begin
        for (since, connected), until in zip(connection, ends, strict=True)
    )


def _state(scene: Scene, at: float) -> Text:
    if scene.is_closed:
        return Text("closed", style="dim")
    if scene.is_connected:
        again = len(scene.connection) > 1
        return Text("connected again" if again else "connected", style="green")
    if not scene.connection:
        return Text("not connected yet", style="dim")
    text = Text().append("lost", style="bold red")
    if scene.retry_at is not None:
        text.append(f": retrying in {max(0.0, scene.retry_at - at):.1f} s")
    return text


def _progress_bar(scene: Scene, cells: int, symbols: Symbols) -> Text:
    part = Decimal(0)
    if scene.status == "FILLED":
        part = Decimal(1)
    elif scene.expected:
        part = min(Decimal(1), scene.filled / scene.expected)
    full = int(part * cells)
    bar = Text(symbols.bar * full, style="cyan")
    return bar.append(symbols.empty * (cells - full), style="dim")


def _order(scene: Scene) -> Text:
    if not scene.order_id:
        return Text("none yet", style="dim")
    text = Text().append(scene.status, style="bold cyan")
    if scene.filled:
        text.append(f" {plain(scene.filled)} {scene.bought}")
    return text


def _balances(scene: Scene, *, narrow: bool) -> Table:
    """Return the balances of the two assets, and the number of other assets."""
    table = Table.grid(padding=(0, 2, 0, 0))
    columns = ("asset", "now", "change") if narrow else ("asset", "before", "now", "change")
    for name in columns:
        table.add_column(justify="left" if name == "asset" else "right", no_wrap=True)
    table.add_row(*columns, style="dim")
    for asset in (scene.sold, scene.bought):
        before, now = scene.before.get(asset), scene.now.get(asset)
        change = (now or Decimal(0)) - (before or Decimal(0))
        cells = [asset, plain(before), plain(now), plain(change, "+") if change else ""]
        if narrow:
            del cells[1]
        table.add_row(*cells, style="bold" if change else "")
    others = len(scene.now) - 2
    if others > 0:
        table.add_row(f"+ {others} more", style="dim")
    return table
