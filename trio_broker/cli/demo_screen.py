"""The demo's screen: what it knows of the story (`Scene`), and how that looks (`picture`).

Nothing here knows of time, tasks or the terminal: a scene follows from the one before and an event,
and a picture from a scene and a width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import attrs
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trio_broker import OrderStatus
from trio_broker.cli.output import plain

# Each step, and the event that ends it. They are short enough for 40 columns.
STEPS: Final = (
    ("sandbox", "Start a broker of play money"),
    ("connected", "Connect and authenticate"),
    ("balances", "Ask what the account holds"),
    ("estimate", "Ask what a swap would bring"),
    ("swap", "Swap, which is sent at most once"),
    ("order", "Follow the order to its end"),
    ("restored", "Lose the connection, get it back"),
    ("gap", "Be told what may be missing"),
    ("end", "Check the balances by the order"),
)
_ENDING: Final = {event: number for number, (event, _) in enumerate(STEPS, 1)}

_FINAL: Final = [status for status in OrderStatus if status.is_final]

_NARROW: Final = 80  # columns, below which steps have no notes and balances no history
_CELL: Final = 0.2  # seconds of the connection's line
_CELLS: Final = 36  # of a line, where there is room
_LABEL: Final = 14  # columns; an order's id fits
_FRAMES: Final = 10  # of the sign that something is under way, in a second


@attrs.frozen(kw_only=True)
class Signs:
    """What a picture is drawn with."""

    done: str = "✓"
    failed: str = "✗"
    waiting: str = "·"
    under_way: str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    line: str = "━"
    no_line: str = "x"
    empty: str = "─"


# For terminals that have nothing else.
ASCII: Final = Signs(
    done="+", failed="!", waiting=".", under_way="|/-\\", line="=", no_line="x", empty="."
)


@attrs.frozen(kw_only=True)
class Scene:
    """The story so far.

    Attributes:
        sold: The asset that is sold.
        bought: The asset that is bought.
        done: How many of `STEPS` are done.
        notes: What they brought, by event.
        line: The connection's line: each change's time, and whether it was connected from then on.
        retry_at: When the next try to connect comes.
        is_closed: Whether the client has closed.
        before: What the account held at first, by asset.
        now: What it holds now.
        expected: What the swap was estimated to bring.
        order_id: The order's id.
        status: Its status.
        filled: What it has brought so far.
        verdict: How it all ended; empty until then.
        is_over: Whether nothing more will come.
    """

    sold: str
    bought: str
    done: int = 0
    notes: Mapping[str, str] = attrs.field(factory=dict)
    line: tuple[tuple[float, bool], ...] = ()
    retry_at: float | None = None
    is_closed: bool = False
    before: Mapping[str, Decimal] = attrs.field(factory=dict)
    now: Mapping[str, Decimal] = attrs.field(factory=dict)
    expected: Decimal | None = None
    order_id: str = ""
    status: str = ""
    filled: Decimal = Decimal(0)
    verdict: str = ""
    is_over: bool = False

    def after(self, event: str, text: str, at: float, facts: Mapping[str, Any]) -> Scene:
        """The scene after an event.

        Args:
            event: Its name.
            text: It in words.
            at: When it happened.
            facts: It in values.
        """
        change = _CHANGES.get(event)
        scene = self if change is None else change(self, text, at, facts)
        if event == "order" and facts["status"] not in _FINAL:
            return scene
        return attrs.evolve(scene, done=max(self.done, _ENDING.get(event, 0)))

    def noted(self, event: str, note: str) -> Scene:
        """The scene with a note at a step.

        Args:
            event: The event that ends the step.
            note: The note.
        """
        return attrs.evolve(self, notes={**self.notes, event: note})

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return bool(self.line) and self.line[-1][1] and not self.is_closed


# ---- What each event changes

_Facts = Mapping[str, Any]


def _connected(scene: Scene, _text: str, at: float, _facts: _Facts) -> Scene:
    return attrs.evolve(scene, line=(*scene.line, (at, True)), retry_at=None)


def _lost(scene: Scene, _text: str, at: float, facts: _Facts) -> Scene:
    delay = facts["retry_in"]
    retry_at = None if delay is None else at + delay
    return attrs.evolve(scene, line=(*scene.line, (at, False)), retry_at=retry_at)


def _restored(scene: Scene, _text: str, at: float, facts: _Facts) -> Scene:
    lost_at = next((since for since, connected in reversed(scene.line) if not connected), at)
    channels = ", ".join(facts["channels"])
    return scene.noted("restored", f"{at - lost_at:.1f} s later, with {channels}")


def _balances(scene: Scene, _text: str, _at: float, facts: _Facts) -> Scene:
    return attrs.evolve(scene, before=scene.before or facts["balances"], now=facts["balances"])


def _estimate(scene: Scene, _text: str, _at: float, facts: _Facts) -> Scene:
    note = f"{plain(facts['expected_out'])} {scene.bought}"
    return attrs.evolve(scene.noted("estimate", note), expected=facts["expected_out"])


def _swapped(scene: Scene, _text: str, _at: float, facts: _Facts) -> Scene:
    scene = scene.noted("swap", f"the broker took it as {facts['order_id']}")
    return attrs.evolve(scene, order_id=facts["order_id"], status=str(facts["status"] or ""))


def _moved(scene: Scene, _text: str, _at: float, facts: _Facts) -> Scene:
    filled, status = facts["filled_out"] or Decimal(0), facts["status"]
    scene = attrs.evolve(scene, status=str(status), filled=filled)
    return scene.noted("order", f"it is {status}")


def _missing(scene: Scene, _text: str, _at: float, facts: _Facts) -> Scene:
    return scene.noted("gap", f"the stream says so, and has a {facts['origin']}")


def _closed(scene: Scene, _text: str, _at: float, _facts: _Facts) -> Scene:
    return attrs.evolve(scene, is_closed=True)


def _ended(scene: Scene, text: str, _at: float, _facts: _Facts) -> Scene:
    return attrs.evolve(scene, verdict=text, is_over=True)


_CHANGES: Final[dict[str, Callable[[Scene, str, float, _Facts], Scene]]] = {
    "connected": _connected,
    "lost": _lost,
    "restored": _restored,
    "balances": _balances,
    "estimate": _estimate,
    "swap": _swapped,
    "order": _moved,
    "gap": _missing,
    "closed": _closed,
    "end": _ended,
}


# ---- How it looks


def picture(scene: Scene, *, at: float, width: int, signs: Signs) -> RenderableType:
    """What a screen shows.

    Args:
        scene: The story so far.
        at: The time.
        width: The screen's columns.
        signs: What to draw with.
    """
    narrow = width < _NARROW
    cells = min(_CELLS, width - _LABEL - 1)
    # The lines of a terminal are few.
    title = [] if narrow else [Text("Play money over a real WebSocket", style="bold"), Text()]
    lines = [
        *title,
        *_steps(scene, at, signs, narrow=narrow),
        Text(),
        *_labelled("connection", _line(scene, at, cells, signs), _state(scene, at), narrow=narrow),
        *_labelled(
            scene.order_id or "order", _bar(scene, cells, signs), _order(scene), narrow=narrow
        ),
        Text(),
    ]
    verdict = [Text(), Text(scene.verdict, style="bold green")] if scene.verdict else []
    return Group(*lines, _holdings(scene, narrow=narrow), *verdict)


def _labelled(label: str, line: Text, words: Text, *, narrow: bool) -> Iterator[Text]:
    """A line, and what it means: after it, or below where it would be too long."""
    first = Text(label.ljust(_LABEL)).append_text(line)
    if narrow:
        yield first
        yield Text(" " * _LABEL).append_text(words)
    else:
        first.append(" " * (_CELLS - len(line) + 2))
        yield first.append_text(words)


def _steps(scene: Scene, at: float, signs: Signs, *, narrow: bool) -> Iterator[Text]:
    longest = max(len(title) for _, title in STEPS)
    for number, (event, title) in enumerate(STEPS):
        line = Text()
        if number < scene.done:
            line.append(f"{signs.done} ", style="green").append(title)
        elif number > scene.done:
            line.append(f"{signs.waiting} {title}", style="dim")
        elif scene.is_over:
            line.append(f"{signs.failed} {title}", style="bold red")
        else:
            sign = signs.under_way[int(at * _FRAMES) % len(signs.under_way)]
            line.append(f"{sign} {title}", style="bold yellow")
        note = scene.notes.get(event, "")
        if note and not narrow:
            line.append(" " * (longest - len(title) + 2))
            line.append(note, style="dim")
        yield line


def _line(scene: Scene, at: float, cells: int, signs: Signs) -> Text:
    """The connection's line: a sign for each bit of time, the last ones if they are too many."""
    line = Text()
    if not scene.line:
        return line
    count = int((at - scene.line[0][0]) / _CELL) + 1
    for number in range(max(0, count - cells), count):
        # A bit in which it was lost at all shows it, but the last one shows how things are.
        begin = scene.line[0][0] + number * _CELL
        is_last = number == count - 1
        if not scene.line[-1][1] if is_last else _was_lost(scene.line, begin, begin + _CELL):
            line.append(signs.no_line, style="bold red")
        else:
            line.append(signs.line, style="green")
    return line


def _was_lost(line: tuple[tuple[float, bool], ...], begin: float, end: float) -> bool:
    ends = [since for since, _ in line[1:]] + [float("inf")]
    return any(
        not connected and since < end and until > begin
        for (since, connected), until in zip(line, ends, strict=True)
    )


def _state(scene: Scene, at: float) -> Text:
    if scene.is_closed:
        return Text("closed, with a goodbye", style="dim")
    if scene.is_connected:
        again = len(scene.line) > 1
        return Text("connected again" if again else "connected", style="green")
    if not scene.line:
        return Text("not connected yet", style="dim")
    text = Text().append("lost", style="bold red")
    if scene.retry_at is not None:
        text.append(f": next try in {max(0.0, scene.retry_at - at):.1f} s")
    return text


def _bar(scene: Scene, cells: int, signs: Signs) -> Text:
    part = Decimal(0)
    if scene.status == "FILLED":
        part = Decimal(1)
    elif scene.expected:
        part = min(Decimal(1), scene.filled / scene.expected)
    full = int(part * cells)
    return Text(signs.line * full, style="cyan").append(signs.empty * (cells - full), style="dim")


def _order(scene: Scene) -> Text:
    if not scene.order_id:
        return Text("none yet", style="dim")
    text = Text().append(scene.status, style="bold cyan")
    if scene.filled:
        text.append(f" {plain(scene.filled)} {scene.bought}")
    return text


def _holdings(scene: Scene, *, narrow: bool) -> Table:
    """The balances that the swap changes; all of them would be a long table."""
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
