"""The output of the demo: lines, JSON or a live screen."""

from __future__ import annotations

from typing import Final, Protocol

import attrs
import click
import trio

from trio_broker.cli.terminal.output import console, print_json
from trio_broker.cli.terminal.signals import release_terminal_on_stop

_STYLES: Final = {
    "lost": "bold red",
    "restored": "green",
    "sandbox": "dim",
    "swap": "bold",
    "order": "cyan",
    "end": "bold green",
}
_FRAME_INTERVAL: Final = 0.1  # seconds


class Reporter(Protocol):
    """A function that shows an event of the demo."""

    def __call__(self, event: str, text: str, **values: object) -> None:
        """Show an event: its name, a description for users, and its values for programs."""


def report_json(event: str, text: str, **values: object) -> None:  # noqa: ARG001 - the protocol's signature
    """Print an event as JSON."""
    print_json(event=event, **values)


def report_end(event: str, text: str, **values: object) -> None:  # noqa: ARG001 - as above
    """Print only the last event."""
    if event == "end":
        click.echo(text)


def line_reporter() -> Reporter:
    """Return a reporter that prints lines, with colours on a terminal."""
    lines = console()

    def report(event: str, text: str, **_: object) -> None:
        lines.print(text, style=_STYLES.get(event), markup=False, soft_wrap=True)

    return report


class ScreenReporter:
    """Shows the demo in a part of the terminal that is redrawn regularly."""

    def __init__(self, sold: str, bought: str) -> None:
        # Imported here, because rich is slow to import and `--help` doesn't need it.
        from rich.live import Live  # noqa: PLC0415

        from trio_broker.cli.demo.scene import Scene  # noqa: PLC0415
        from trio_broker.cli.demo.screen import ASCII, Symbols  # noqa: PLC0415

        self._console = console()
        self._symbols = ASCII if self._console.options.ascii_only else Symbols()
        self._scene = Scene(sold=sold, bought=bought)
        # Our own task draws, not a thread of rich.
        self._live = Live(console=self._console, auto_refresh=False)

    def open(self) -> None:
        """Draw the first frame. Call `close` even if this raises KeyboardInterrupt."""
        self._live.start()
        self._draw()

    def close(self) -> None:
        """Leave the last frame on the terminal, and restore the cursor."""
        # If the demo ended early, this draws the current step as failed.
        self._scene = attrs.evolve(self._scene, is_over=True)
        self._draw()
        self._live.stop()

    def __call__(self, event: str, text: str, **values: object) -> None:
        """Show an event."""
        self._scene = self._scene.after(event, text, trio.current_time(), values)
        self._draw()

    async def animate(self) -> None:
        """Redraw regularly until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(release_terminal_on_stop, self._live.stop, self._live.start)
            while True:
                await trio.sleep(_FRAME_INTERVAL)
                self._draw()

    def _draw(self) -> None:
        from trio_broker.cli.demo.screen import draw  # noqa: PLC0415 - as above

        frame = draw(
            self._scene, at=trio.current_time(), width=self._console.width, symbols=self._symbols
        )
        self._live.update(frame, refresh=True)
