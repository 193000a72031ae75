"""Standard output for a command that runs for long: whole lines, each at once.

Whoever reads them may be slow, and a write to a pipe that is full blocks. So it is done in a
thread: the connection lives on meanwhile, and a stream that falls behind says so in its gaps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import trio

_STDOUT: Final = 1


class Pipe:
    """Standard output, shared by tasks: each line is one's own."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def write(self, lines: Iterable[str]) -> None:
        """Write lines.

        Args:
            lines: The lines, without their ends.

        Raises:
            BrokenPipeError: Nobody reads any more.
            OSError: It can't be written.
        """
        text = "".join(f"{line}\n" for line in lines)
        async with self._lock:
            # What is cancelled while nobody reads needn't be written to the end. The file object
            # isn't used: a thread that is left behind would hold its lock when Python ends.
            await trio.to_thread.run_sync(_write, text.encode(), abandon_on_cancel=True)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_STDOUT, data) :]
