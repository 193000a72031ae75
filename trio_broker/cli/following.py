"""Following an order to its end, and showing that something is waited for meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
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
    Order,
    SnapshotUnavailable,
)
from trio_broker.cli.beside import beside
from trio_broker.cli.ending import usage_errors
from trio_broker.cli.output import Output, console, printable
from trio_broker.cli.suspending import give_way

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@attrs.frozen
class Waiting:
    """The last line of a terminal, which shows what is waited for, and for how long.

    Where there is no terminal, there is no such line.
    """

    _progress: Progress
    _task: TaskID
    _output: Output

    def show(self, text: str) -> None:
        """Change what it says.

        Args:
            text: What is waited for.
        """
        self._progress.update(self._task, description=printable(text))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take it away for as long as something is printed, which may go to the same terminal."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    async def give_way(self) -> None:
        """Take it away for as long as Ctrl-Z stops this process, until cancelled."""
        if not self._progress.disable:
            await give_way(self._progress.stop, self._progress.start)

    def note(self, text: str) -> None:
        """Print something that is no result; if nobody can read it any more, it is lost.

        Args:
            text: It.
        """
        with suppress(OSError), self.aside():
            self._output.note(text)


@asynccontextmanager
async def waiting(client: BrokerWSClient, output: Output, text: str) -> AsyncIterator[Waiting]:
    """Show that something is waited for, and tell what happens to the connection meanwhile.

    Args:
        client: Whose connection.
        output: How to print.
        text: What is waited for.
    """
    with _line(output, text) as line, client.events() as events:
        async with beside(partial(_tell, events, line), line.give_way):
            yield line


@contextmanager
def _line(output: Output, text: str) -> Iterator[Waiting]:
    # Not at the top: rich is slow to import, and `--help` needs none of it.
    from rich.progress import (  # noqa: PLC0415
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    screen = console(stderr=True)
    # The log's lines would tear it. FORCE_COLOR colours a pipe, but makes no terminal of it.
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
        # Results go to standard output, and not to where this line is.
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not is_wanted,
    )
    line = Waiting(progress, progress.add_task(printable(text), total=None), output)
    with progress:
        yield line


async def _tell(events: BoundedReceiveChannel[ConnectionEvent], line: Waiting) -> None:
    async for event in events:
        text = told(event)
        if text is not None:
            line.note(printable(text))


def told(event: ConnectionEvent) -> str | None:
    """What happens to a connection, for people; None for what they needn't know.

    Args:
        event: What happens.
    """
    match event:
        case Disconnected(error=error, retry_in=None):
            return f"No connection: {error}."
        case Disconnected(error=error, retry_in=delay):
            return f"No connection: {error}. The next try is in {delay:.1f} s."
        case Connected():
            return "Connected again."
        case SnapshotUnavailable(error=error):
            return f"No word on the order: {error}. It will be asked about again."
        case _:
            return None


async def follow(
    client: BrokerWSClient, order_id: str, line: Waiting, tell: Callable[[Order], None]
) -> Order:
    """Follow an order to its end.

    Args:
        client: By which client.
        order_id: The order's id, or the client order id of its swap.
        line: What shows that it is waited for.
        tell: Told of each of its states.

    Returns:
        The last state.
    """
    with usage_errors():
        tracked = client.track_order(order_id)
    async with tracked as progress:
        async for message in progress:
            order = message.data
            with line.aside():
                tell(order)
            line.show(f"order {order.order_id or order_id} is {order.status}")
    return order
