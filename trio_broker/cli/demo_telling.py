"""How the demo tells its story: in lines, in JSON, or on a live screen."""

from __future__ import annotations

from typing import Final, Protocol

import attrs
import click
import trio

from trio_broker.cli.output import console, print_json
from trio_broker.cli.suspending import give_way

_STYLES: Final = {
    "lost": "bold red",
    "restored": "green",
    "sandbox": "dim",
    "swap": "bold",
    "order": "cyan",
    "end": "bold green",
}
_FRAME: Final = 0.1  # seconds


class Teller(Protocol):
    """Tells one event of the story."""

    def __call__(self, event: str, text: str, **facts: object) -> None:
        """Tell it.

        Args:
            event: Its name.
            text: It in words, for people.
            **facts: It in values, for programs.
        """


def tell_json(event: str, text: str, **facts: object) -> None:  # noqa: ARG001 - text is for people
    """Tell it in a line of JSON.

    Args:
        event: Its name.
        text: It in words.
        **facts: It in values.
    """
    print_json(event=event, **facts)


def tell_end(event: str, text: str, **facts: object) -> None:  # noqa: ARG001 - as above
    """Tell the end alone.

    Args:
        event: Its name.
        text: It in words.
        **facts: It in values.
    """
    if event == "end":
        click.echo(text)


def in_lines() -> Teller:
    """A teller that prints what happens, coloured if there is a terminal."""
    lines = console()

    def tell(event: str, text: str, **_: object) -> None:
        lines.print(text, style=_STYLES.get(event), markup=False, soft_wrap=True)

    return tell


class Screen:
    """Tells it on a part of the terminal that is drawn again and again.

    Args:
        sold: The asset that is sold.
        bought: The asset that is bought.
    """

    def __init__(self, sold: str, bought: str) -> None:
        # Not at the top: rich is slow to import, and `--help` needs none of it.
        from rich.live import Live  # noqa: PLC0415

        from trio_broker.cli.demo_screen import ASCII, Scene, Signs  # noqa: PLC0415

        self._console = console()
        self._signs = ASCII if self._console.options.ascii_only else Signs()
        self._scene = Scene(sold=sold, bought=bought)
        # Drawn by a task of ours, and not by a thread of rich's.
        self._live = Live(console=self._console, auto_refresh=False)

    def open(self) -> None:
        """Begin to draw. It must be closed, even if Ctrl-C comes while this runs."""
        self._live.start()
        self._draw()

    def close(self) -> None:
        """Leave the last picture standing, and the terminal as it was."""
        # Where it broke off, the step that was under way has failed.
        self._scene = attrs.evolve(self._scene, is_over=True)
        self._draw()
        self._live.stop()

    def tell(self, event: str, text: str, **facts: object) -> None:
        """Tell an event.

        Args:
            event: Its name.
            text: It in words.
            **facts: It in values.
        """
        self._scene = self._scene.after(event, text, trio.current_time(), facts)
        self._draw()

    async def animate(self) -> None:
        """Draw again and again, as time goes on, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_way, self._live.stop, self._live.start)
            while True:
                await trio.sleep(_FRAME)
                self._draw()

    def _draw(self) -> None:
        from trio_broker.cli.demo_screen import picture  # noqa: PLC0415 - as above

        shown = picture(
            self._scene, at=trio.current_time(), width=self._console.width, signs=self._signs
        )
        self._live.update(shown, refresh=True)
