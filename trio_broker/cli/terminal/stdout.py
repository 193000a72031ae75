"""Standard output: writing without blocking Trio, and handling of errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

_STDOUT: Final = 1
# These count only without a file name, which errors of other files have.
_STDOUT_ERRORS: Final = {errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}


class LineWriter:
    """Writes whole lines from several tasks to standard output, without buffering.

    A write to a full pipe blocks, so it runs in a thread. Meanwhile the connection stays alive, and
    streams may drop messages and report a gap.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def write(self, lines: Iterable[str]) -> None:
        """Write lines, which have no line ends.

        Raises:
            OSError: Standard output can't be written to, for example because the pipe is closed.
        """
        text = "".join(f"{line}\n" for line in lines)
        async with self._lock:
            # Not `sys.stdout`: the thread may be abandoned, and would hold its lock at exit.
            await trio.to_thread.run_sync(_write, text.encode(), abandon_on_cancel=True)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_STDOUT, data) :]


def stdout_error(error: OSError) -> str | None:
    """Describe an error of writing to standard output; None for any other error."""
    if error.filename is not None or error.errno not in _STDOUT_ERRORS:
        return None
    return f"can't write to standard output: {os.strerror(error.errno)}"


def discard_stdout_on_error() -> None:
    """Discard the buffered output if it can't be written.

    Otherwise Python would fail to flush it at exit, print a message and change the exit status.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())


@contextmanager
def ignore_stdout_errors() -> Iterator[None]:
    """Suppress errors of a block that writes to standard output.

    Used after a swap was sent: the command must still wait for the outcome, for its exit status.
    """
    try:
        yield
    except OSError:
        discard_stdout_on_error()
