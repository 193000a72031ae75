"""Make the pictures of the command line: ``python docs/make_pictures.py [NAME ...]``.

Each is what the real command shows in a terminal of 80 columns, as an SVG in ``docs/pictures``.
The command runs in a process of its own, in a pseudo-terminal, and what it prints goes through a
small terminal here. A picture of a live screen is the last that was seen of it.

The same command makes the same picture every time. So there is a seeded broker of play money in the
command's own process; the clock begins on a fixed day and goes on only when nothing is left to do
(Trio's `MockClock`); and what is drawn by chance elsewhere is drawn from a seed. All of the rest is
the command itself.

Needs the extra ``cli``, and a system with pseudo-terminals. To add a picture, add a line to
`PICTURES`.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import io
import itertools
import operator
import os
import platform
import pty
import random
import re
import secrets
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.style import Style
from rich.text import Text

HERE: Final = Path(__file__).resolve().parent
FOLDER: Final = HERE / "pictures"

WIDTH: Final = 80
HEIGHT: Final = 30
PORT: Final = 8765  # of the broker; a picture may show it
SEED: Final = 7
LATENCY: Final = 0.042  # seconds, as of a broker that isn't on this machine
BEGINNING: Final = dt.datetime(2026, 1, 2, 12, 0, tzinfo=dt.UTC).timestamp()


@attrs.frozen
class Picture:
    """A picture.

    Attributes:
        name: Its file's name, without the suffix.
        args: What stands after ``trio-broker``.
        keys: What is typed.
        seconds: When the command is ended, if it doesn't end by itself.
    """

    name: str
    args: Sequence[str]
    keys: str = ""
    seconds: float | None = None


PICTURES: Final = (
    Picture("demo", ["demo"]),
    Picture("balances", ["balances"]),
    Picture("estimate", ["estimate", "2", "ETH", "USDT"]),
    Picture("swap", ["swap", "2", "ETH", "USDT", "--no-journal", "--yes"]),
    Picture("watch", ["watch"], seconds=6),
    Picture("doctor", ["doctor"]),
)


# ---- The command, in a terminal


def printed(picture: Picture, port: int = PORT) -> str:
    """All that the command of a picture prints on its terminal.

    Args:
        picture: The picture.
        port: Where its broker listens.

    Raises:
        RuntimeError: The command fails.
    """
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    seconds = "" if picture.seconds is None else str(picture.seconds)
    command = [sys.executable, str(Path(__file__).resolve()), "--perform", str(port), seconds]
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(HERE.parent),
        "PYTHONUTF8": "1",
        "TERM": "xterm-256color",
        "BROKER_API_KEY": "test_key_1",
        "BROKER_SECRET_KEY": "test_secret_1",
        "BROKER_WS_URL": f"ws://127.0.0.1:{port}/ws/v1/stream",
    }
    with subprocess.Popen(  # noqa: S603 - this very file
        [*command, *picture.args],
        cwd=FOLDER,  # where there is no .env
        env=environ,
        stdin=inside,
        stdout=inside,
        stderr=inside,
    ) as process:
        os.close(inside)
        os.write(terminal, picture.keys.encode())
        content = b"".join(_chunks(terminal))
        os.close(terminal)
        if process.wait() != 0:
            raise RuntimeError(f"{picture.name}: {content.decode(errors='replace')}")
    return content.decode()


def _chunks(terminal: int) -> Iterator[bytes]:
    try:
        while chunk := os.read(terminal, 65536):
            yield chunk
    except OSError:
        return  # how Linux says that the other end is closed


def perform(port: int, seconds: float | None, args: Sequence[str]) -> None:
    """Be the command, in a world that is always the same.

    Args:
        port: Where its broker listens.
        seconds: When it is ended; None if it ends by itself.
        args: Its arguments.
    """
    import trio  # noqa: PLC0415 - with the command, and not with the pictures
    import trio.testing  # noqa: PLC0415

    clock = trio.testing.MockClock(autojump_threshold=0.02)
    _settle(clock.current_time)
    # Only now, since it takes the clock as it finds it.
    from trio_broker.cli import main as command_line  # noqa: PLC0415
    from trio_broker.sandbox import Outcome, open_sandbox  # noqa: PLC0415

    run = trio.run

    async def with_broker(command: Callable[[], Awaitable[int]]) -> int:
        async with open_sandbox(seed=SEED, port=port, order_id_prefix="ord_") as sandbox:
            sandbox.next_outcome(*[Outcome.FILLED_IN_PARTS] * 10)
            sandbox.faults.delay(LATENCY)
            with trio.move_on_after(float("inf") if seconds is None else seconds):
                return await command()
            return 0

    # The commands come from `trio_broker.cli`, which runs them with this.
    trio.run = lambda command: run(with_broker, command, clock=clock)  # type: ignore[assignment,misc]
    command_line(args)


def _settle(now: Callable[[], float]) -> None:
    """Let this process have a time of its own, and no chance."""

    class Clocked(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return dt.datetime.fromtimestamp(BEGINNING + now(), tz)

    class Seeded(random.Random):
        def __init__(self, seed: object = SEED) -> None:
            super().__init__(str(seed))

    time.time = lambda: BEGINNING + now()
    time.time_ns = lambda: int(time.time() * 1e9)
    dt.datetime = Clocked  # type: ignore[misc]
    random.Random = Seeded  # type: ignore[assignment,misc]
    secrets.token_hex = lambda nbytes=None: "5eed" * ((nbytes or 32) // 2)
    # Nor is the machine anybody's.
    platform.release = lambda: "6.12"


# ---- A terminal

_ESCAPE: Final = re.compile(
    r"\x1b\[(?P<private>[?]?)(?P<args>[0-9;]*)(?P<final>[@-~])|\x1b\][^\x07]*\x07"
)
_MOVES: Final = {"A": (-1, 0), "B": (1, 0), "C": (0, 1), "D": (0, -1)}
_ALTERNATE: Final = 1049  # the screen that leaves no trace

Cell = tuple[str, Style]


class Terminal:
    """As much of a terminal as the commands use: it keeps all that has scrolled away, too.

    Attributes:
        rows: The rows, each with its cells.
    """

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.rows: list[list[Cell]] = [[]]
        self._width, self._height = width, height
        self._row = self._column = 0
        self._main: tuple[list[list[Cell]], int, int] | None = None
        self._left: list[list[Cell]] | None = None
        self._decoder = AnsiDecoder()

    def feed(self, text: str) -> None:
        """Print what a command prints.

        Args:
            text: It, with its escape sequences.
        """
        place = 0
        for found in _ESCAPE.finditer(text):
            self._write(text[place : found.start()])
            place = found.end()
            if found["final"]:
                self._obey(found)
        self._write(text[place:])

    def shown(self) -> list[list[Cell]]:
        """What is to be seen: the alternate screen as it was left, if there was one."""
        rows = self.rows if self._left is None else self._left
        last = max((number for number, row in enumerate(rows) if _is_written(row)), default=-1)
        return rows[: last + 1]

    def _write(self, text: str) -> None:
        for one in text:
            if one == "\n":
                self._go(self._row + 1, self._column)
            elif one == "\r":
                self._column = 0
            elif one.isprintable():
                if self._column == self._width:
                    self._go(self._row + 1, 0)
                row = self.rows[self._row]
                row += [(" ", Style.null())] * (self._column - len(row))
                row[self._column : self._column + 1] = [(one, self._decoder.style)]
                self._column += 1

    def _go(self, row: int, column: int) -> None:
        self._row, self._column = max(0, row), max(0, column)
        while len(self.rows) <= self._row:
            self.rows.append([])

    def _obey(self, found: re.Match[str]) -> None:
        args = [int(arg or 0) for arg in found["args"].split(";")]
        count = max(1, args[0])
        match found["private"] + found["final"]:
            case "m":
                self._decoder.decode_line(found[0])
            case "A" | "B" | "C" | "D" as move:
                down, right = _MOVES[move]
                self._go(self._row + down * count, self._column + right * count)
            case "G":
                self._go(self._row, count - 1)
            case "H":
                top = max(0, len(self.rows) - self._height)
                self._go(top + count - 1, max(1, (*args, 1)[1]) - 1)
            case "K":
                self._erase_line(args[0])
            case "J":
                self._erase(args[0])
            case "?h" | "?l" if args[0] == _ALTERNATE:
                self._change_screen(alternate=found["final"] == "h")

    def _change_screen(self, *, alternate: bool) -> None:
        if alternate:
            self._main = (self.rows, self._row, self._column)
            self.rows, self._row, self._column = [[]], 0, 0
        elif self._main is not None:
            self._left = self.rows
            self.rows, self._row, self._column = self._main

    def _erase_line(self, how: int) -> None:
        row = self.rows[self._row]
        if how == 2:
            row.clear()
        elif how == 0:
            del row[self._column :]

    def _erase(self, how: int) -> None:
        if how == 2:
            top = max(0, len(self.rows) - self._height)
            for row in self.rows[top:]:
                row.clear()
        elif how == 0:
            self._erase_line(0)
            del self.rows[self._row + 1 :]


def _is_written(row: Sequence[Cell]) -> bool:
    return any(one != " " or style.bgcolor for one, style in row)


# ---- The picture

# rich's own has fonts from another host in it, which a picture shouldn't ask for.
_SVG: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
    }}
    .{unique_id}-title {{
        font-size: 18px;
        font-weight: bold;
        font-family: system-ui, sans-serif;
    }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})"
       clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""


def svg(picture: Picture, output: str) -> str:
    """A picture of what was printed.

    Args:
        picture: Which.
        output: What was printed.
    """
    terminal = Terminal()
    terminal.feed(output)
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        legacy_windows=False,
    )
    console.print(Text.assemble(("$ ", "bold green"), " ".join(["trio-broker", *picture.args])))
    for row in terminal.shown():
        console.print(Text.assemble(*_runs(row)), no_wrap=True, overflow="crop", highlight=False)
    return console.export_svg(
        title=f"trio-broker {picture.args[0]}",
        code_format=_SVG,
        unique_id=f"picture-{picture.name}",
    )


def _runs(row: Sequence[Cell]) -> Iterator[Cell]:
    """A row's cells of one style as one text.

    A plain space takes the style before it, as some viewers drop spaces that a text begins with.
    """
    before = Style.null()
    kept = []
    for one, own in row:
        style = before if one == " " and not own.bgcolor and not before.bgcolor else own
        kept.append((one, style))
        before = style
    for style, cells in itertools.groupby(kept, key=operator.itemgetter(1)):
        yield "".join(one for one, _ in cells), style


def main(names: Sequence[str]) -> None:
    """Make pictures.

    Args:
        names: Which; all of them if there are none.
    """
    FOLDER.mkdir(exist_ok=True)
    unknown = set(names) - {picture.name for picture in PICTURES}
    if unknown:
        sys.exit(f"there is no picture {', '.join(sorted(unknown))}")
    for picture in PICTURES:
        if names and picture.name not in names:
            continue
        path = FOLDER / f"{picture.name}.svg"
        path.write_text(svg(picture, printed(picture)), encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(HERE.parent)}: {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--perform"]:
        port, seconds, *args = sys.argv[2:]
        perform(int(port), float(seconds) if seconds else None, args)
    else:
        main(sys.argv[1:])
