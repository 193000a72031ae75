"""A progress line at the bottom of the terminal, which shows what a command waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs

from trio_broker import (
    BoundedReceiveChannel,
    BrokerWSClient,
    Connected,
    ConnectionEvent,
    Disconnected,
    SnapshotUnavailable,
    SwapCorrected,
)
from trio_broker.cli.background import background
from trio_broker.cli.terminal.output import Output, console, printable
from trio_broker.cli.terminal.signals import release_terminal_on_stop

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@attrs.frozen
class ProgressLine:
    """A line with a text and the elapsed time; without a terminal, it isn't shown."""

    _progress: Progress
    _task: TaskID
    _output: Output

    def show(self, text: str) -> None:
        """Change the text."""
        self._progress.update(self._task, description=printable(text))

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the line during a block that may print to the same terminal."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    async def hide_on_stop(self) -> None:
        """Hide the line whenever Ctrl-Z stops this process, until cancelled."""
        if not self._progress.disable:
            await release_terminal_on_stop(self._progress.stop, self._progress.start)

    def note(self, text: str) -> None:
        """Print a text that isn't a result; output errors are ignored."""
        with suppress(OSError), self.hidden():
            self._output.note(text)


@asynccontextmanager
async def progress_line(
    client: BrokerWSClient, output: Output, text: str
) -> AsyncIterator[ProgressLine]:
    """Show a progress line during a block, and print notices about the connection."""
    with make_progress_line(output, text) as line, client.events() as events:
        async with background(partial(_print_events, events, line), line.hide_on_stop):
            yield line


@contextmanager
def make_progress_line(output: Output, text: str) -> Iterator[ProgressLine]:
    """Show a progress line during a block."""
    # Imported here, because rich is slow to import and `--help` doesn't need it.
    from rich.progress import (  # noqa: PLC0415
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    screen = console(stderr=True)
    # Log lines would break the progress line. FORCE_COLOR makes a pipe interactive for rich, so
    # `isatty` is needed too.
    is_wanted = (
        not (output.quiet or output.as_json or output.verbose)
        and screen.is_interactive
        and screen.file.isatty()
    )
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        # Results go to standard output, not to this line's console.
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not is_wanted,
    )
    line = ProgressLine(progress, progress.add_task(printable(text), total=None), output)
    with progress:
        yield line


async def _print_events(events: BoundedReceiveChannel[ConnectionEvent], line: ProgressLine) -> None:
    async for event in events:
        text = connection_notice(event)
        if text is not None:
            line.note(printable(text))


def connection_notice(event: ConnectionEvent) -> str | None:
    """Describe an event of the connection; None if the event isn't shown to users."""
    match event:
        case Disconnected(error=error, retry_in=None):
            return f"No connection: {error}."
        case Disconnected(error=error, retry_in=delay):
            return f"No connection: {error}. Retrying in {delay:.1f} s."
        case Connected():
            return "Connected again."
        case SnapshotUnavailable(error=error):
            return f"The order's state is unknown: {error}. It will be requested again."
        case SwapCorrected(outcome=outcome):
            return f"The broker had refused the swap; its outcome is {outcome} now."
        case _:
            return None
