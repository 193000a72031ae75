"""WebSocket transports: one file for each library, behind one small protocol.

A transport sends and receives whole messages and knows nothing about the broker. Only its file
imports its library, and it turns that library's errors into those of this package.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from trio_broker.exceptions import ConfigurationError
from trio_broker.redaction import Redact
from trio_broker.settings import Endpoint, TransportName
from trio_broker.transports.tls import ClientContext


class Transport(Protocol):
    """An open WebSocket. The context manager that gave it closes its socket."""

    @property
    def last_heard(self) -> float:
        """When the last byte was received, on Trio's clock."""
        ...

    @property
    def progress(self) -> int:
        """A number that grows with each read and each message, and never falls."""
        ...

    async def receive(self) -> list[str | bytes]:
        """Wait for at least one message, and return all or some of what one read has brought.

        Only one task may receive. Cancelling is safe. Pings are answered and pongs are noticed
        only while a task receives.

        Returns:
            Messages in their order, at least one: str for text, bytes for binary ones.

        Raises:
            ConnectionLostError: The connection is lost, and every earlier message was returned.
        """
        ...

    def taken(self) -> list[str | bytes]:
        """Return what was read but not returned when `receive` was cancelled, as far as possible.

        This is called when the connection is given up. `receive` isn't called after it.
        """
        ...

    async def send(self, messages: Sequence[str]) -> None:
        """Send text messages in their order.

        Only one task may send. A cancelled send may have sent half a frame: after it, the
        connection can only be closed.

        Raises:
            ConnectionLostError: The connection is lost.
        """
        ...

    async def ping(self) -> None:
        """Send a ping and wait for its pong. Cancelling it is as bad as cancelling `send`.

        Raises:
            ConnectionLostError: The connection is lost.
        """
        ...

    async def aclose(self) -> None:
        """Send a close frame (code 1000) and wait for the peer's. If cancelled, stop waiting."""
        ...


class OpenTransport(Protocol):
    """The function with which each file here opens a transport."""

    def __call__(
        self,
        endpoint: Endpoint,
        *,
        ssl_context: ssl.SSLContext | ClientContext | None,
        connect_timeout: float,
        max_receive_size: int,
        redact: Redact = str,
    ) -> AbstractAsyncContextManager[Transport]:
        """Open a WebSocket, and close its socket at the end, whatever happens.

        Leaving the block sends no close frame (`Transport.aclose` does) and doesn't wait for the
        network. An exception of the block comes out as it was raised. Cancelling is always safe.

        Args:
            endpoint: What to connect to. `Endpoint.secure` decides whether TLS is used.
            ssl_context: The TLS context; None for Python's default, which checks certificates. A
                client passes a `ClientContext`, so that the default is made once.
            connect_timeout: Seconds for reading CA certificates, DNS, TCP, TLS and the WebSocket
                handshake together.
            max_receive_size: The largest message that is accepted. After a larger one the
                connection is closed with code 1009.
            redact: Removes keys and signatures from a text. Errors and log records may quote the
                broker.

        Returns:
            A context manager that gives the open `Transport`.

        Raises:
            ConnectFailedError: No WebSocket could be opened in time.
        """
        ...


def opener(name: TransportName) -> OpenTransport:
    """Return the function that opens a transport. Only now its library is imported.

    Raises:
        ConfigurationError: The library isn't installed.
    """
    # ruff: noqa: PLC0415 - a library that isn't used need not be installed
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
