"""A file that one process at a time may use, where the system has locks.

The lock is a file of its own beside it, which stays. The file itself may be replaced, and its lock
with it; and SQLite has locks of its own on a database, which would be dropped with ours. The system
frees the locks of the dead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep others off a file for as long as the block lasts.

    Args:
        path: The file; it need not be there.

    Raises:
        BlockingIOError: Somebody else has it.
        OSError: The lock's file can't be made.
    """
    with path.with_name(f"{path.name}.lock").open("ab") as file:
        _lock(file)
        yield


def _lock(file: IO[bytes]) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not every system has it
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
