"""A file that one process at a time may use, on every system.

The lock is on a second file beside it, which stays there. A lock on the file itself would be lost
when the file is replaced, and would interfere with SQLite's locks on a database. The system
releases the lock when the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def lock_path(path: Path) -> Path:
    """The lock file of a file.

    Args:
        path: The file, with links resolved.

    Returns:
        The file beside it whose name ends with ``.lock``. It exists if the file was ever locked.
    """
    return path.with_name(f"{path.name}.lock")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a file for the length of a block.

    Args:
        path: The file. It needn't exist; its directory must.

    Raises:
        BlockingIOError: It is locked already.
        OSError: The lock file can't be created.
    """
    file = lock_path(path)
    lock = FileLock(file, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"{path} is locked") from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            file.touch(0o600)  # On Windows, filelock removes it.
