"""A file that one process at a time may use, on systems that have `fcntl`.

The lock is on a second file beside it, which is never removed. A lock on the file itself would be
lost when the file is replaced, and would interfere with SQLite's locks on a database. The system
releases the lock when the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a file for the length of a block.

    Args:
        path: The file. It needn't exist.

    Raises:
        BlockingIOError: It is locked already.
        OSError: The lock file can't be created.
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
