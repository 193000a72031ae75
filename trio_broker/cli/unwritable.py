"""Standard output that can't be written, as a disk is full say: told in one line."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

# What else the commands write names its file in its errors.
_OF_OUTPUT: Final = {errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}


def output_trouble(error: OSError) -> str | None:
    """An error in words if standard output couldn't be written, None if it is about anything else.

    Args:
        error: The error.
    """
    if error.filename is not None or error.errno not in _OF_OUTPUT:
        return None
    return f"standard output can't be written: {os.strerror(error.errno)}"


def give_up_output() -> None:
    """Let go of what is still buffered, if it can't be written.

    It would fail once more when Python ends, which says so in its own words and with its own
    status.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
