"""WebSocket transports: one file a library, behind one small protocol.

A transport moves whole messages and knows nothing of the broker. Its file is the only place that
imports its library, and where that library's errors become this one's.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from trio_broker.exceptions import ConfigurationError
from trio_broker.settings import Endpoint, TransportName


class Transport(Protocol):
    """An open WebSocket. Whoever opened it closes its socket, whatever happens."""

    @property
    def last_heard(self) -> float:
        """When the last byte came from the peer, on Trio's clock."""
        ...

    async def receive(self) -> list[str | bytes]:
        """Wait for at least one message, and take what a read has brought, or some of it.

        Only one task may receive. Cancelling is safe. Pings are answered, and pongs are heard,
        only as far as somebody receives.

        Returns:
            Messages in their order, at least one: str for text, bytes for binary ones.

        Raises:
            ConnectionLostError: The connection is gone, and every message before has been taken.
        """
        ...

    def taken(self) -> list[str | bytes]:
        """What a `receive` had taken when it was cancelled, for who won't call it again."""
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


class OpenTransport(Protocol):
    """How each file here opens a transport."""

    def __call__(
        self,
        endpoint: Endpoint,
        *,
        ssl_context: ssl.SSLContext | None,
        connect_timeout: float,
        max_receive_size: int,
    ) -> AbstractAsyncContextManager[Transport]:
        """Open a WebSocket, and drop its socket at the end, whatever happens.

        Leaving the block doesn't say goodbye (`Transport.aclose` does) and doesn't wait for the
        network. What is raised in the block comes through as it is. Cancelling is safe anywhere.

        Args:
            endpoint: Where to. Its `Endpoint.secure` decides whether TLS is used.
            ssl_context: How TLS is done; None for Python's default, which checks certificates.
            connect_timeout: Seconds for DNS, TCP, TLS and the WebSocket handshake together.
            max_receive_size: The largest message that is accepted. A larger one is answered with
                close code 1009, and ends the connection.

        Returns:
            A context manager that gives the open `Transport`.

        Raises:
            ConnectFailedError: No WebSocket came about in time.
        """
        ...


def opener(name: TransportName) -> OpenTransport:
    """What opens a transport. Its library is imported here and now, and no other one.

    Args:
        name: The library's name.

    Raises:
        ConfigurationError: The library isn't installed.
    """
    # ruff: noqa: PLC0415 - nobody pays for a library that isn't used, or needs to have it
    if name == "trio-websocket":
        from trio_broker.transports.trio_websocket import open_transport
    else:
        try:
            from trio_broker.transports.websockets import open_transport
        except ImportError as error:
            raise ConfigurationError(
                "transport='websockets' needs the package websockets, at least 15: install "
                "trio-broker[speed], or leave the option out"
            ) from error
    return open_transport
