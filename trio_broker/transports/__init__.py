"""WebSocket transports: one file a library, behind one small protocol.

A transport moves whole messages and knows nothing of the broker. Its file is the only place that
imports its library, and where that library's errors become this one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Transport(Protocol):
    """An open WebSocket. Whoever opened it closes its socket, whatever happens."""

    @property
    def last_heard(self) -> float:
        """When the last byte came from the peer, on Trio's clock."""
        ...

    async def receive(self) -> list[str | bytes]:
        """Wait for at least one message, and take all that one read has brought.

        Only one task may receive. Cancelling is safe.

        Returns:
            Messages in their order, at least one: str for text, bytes for binary ones.

        Raises:
            ConnectionLostError: The connection is gone, and every message before has been taken.
        """
        ...

    async def send(self, messages: Sequence[str]) -> None:
        """Send text messages in their order.

        Only one task may send. Cancelling it may leave half a frame behind, so a connection
        on which a send was cancelled can only be closed.

        Raises:
            ConnectionLostError: The connection is gone.
        """
        ...

    async def ping(self) -> None:
        """Send a ping and wait for its pong. A ping that is cancelled dooms it like `send`.

        Raises:
            ConnectionLostError: The connection is gone.
        """
        ...

    async def aclose(self) -> None:
        """Say goodbye (close code 1000) and wait for the peer's; cancelled, leave at once."""
        ...
