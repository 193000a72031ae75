"""When this process handed its last bytes to the kernel, whichever library did it.

asyncio's transports call `socket.socket.send`, and so does Trio, which looks the method up when it
is imported: what stands in its place before that notes the time for both of them in the same way.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any


class _LastSend:
    """When the last send has returned, in nanoseconds of the monotonic clock."""

    at = 0


last = _LastSend()


def watch() -> None:
    """Note the time of every send from now on; to be called before Trio is imported."""
    for name in ("send", "sendmsg"):
        setattr(socket.socket, name, _noting(getattr(socket.socket, name)))


def _noting(send: Callable[..., int]) -> Callable[..., int]:
    def noting(self: socket.socket, *args: Any) -> int:
        sent = send(self, *args)
        last.at = time.monotonic_ns()
        return sent

    return noting
