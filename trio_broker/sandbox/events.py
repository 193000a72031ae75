"""The events of a sandbox, with which `open_sandbox` calls `on_event`.

They are plain values from the time of the event. They contain no secret and no signature.
"""

from __future__ import annotations

import attrs

from trio_broker.sandbox.orders import Order


@attrs.frozen(kw_only=True)
class SandboxEvent:
    """Base class of a sandbox's events."""


@attrs.frozen(kw_only=True)
class ClientTurnedAway(SandboxEvent):
    """A fault refused a connection: there was no handshake."""


@attrs.frozen(kw_only=True)
class ClientCame(SandboxEvent):
    """A client's handshake is done.

    Attributes:
        connection: Its `Connection.number`.
    """

    connection: int


@attrs.frozen(kw_only=True)
class ClientAsked(SandboxEvent):
    """A client sent a message, and its reply is decided. Faults may still lose the reply.

    Attributes:
        connection: The client's `Connection.number`.
        api_key: The API key of its account, None if it isn't authenticated.
        op: The operation, cut if it is long; None if the message couldn't be read.
        channel: The channel, if it named one.
        order: The order of the swap, or the requested order.
        error: The error that refused it, None if it wasn't refused.
        was_handled: Whether the broker handled it; False if a fault dropped it.
    """

    connection: int
    api_key: str | None = attrs.field(repr=False)
    op: str | None
    channel: str | None
    order: Order | None = None
    error: str | None = None
    was_handled: bool = True


@attrs.frozen(kw_only=True)
class RestAsked(SandboxEvent):
    """A client sent a REST request, and its reply is decided.

    Attributes:
        method: The HTTP method, cut if it is long.
        path: The path without the query, cut if it is long.
        status: The HTTP status of the reply; None if a fault loses the reply.
    """

    method: str
    path: str
    status: int | None


@attrs.frozen(kw_only=True)
class OrderMoved(SandboxEvent):
    """An order's state changed.

    Attributes:
        order: The order as it is now.
    """

    order: Order


@attrs.frozen(kw_only=True)
class ClientLeft(SandboxEvent):
    """A client's connection ended.

    Attributes:
        connection: Its `Connection.number`.
        api_key: The API key of its account, None if it wasn't authenticated.
        code: The close code of either side, None without a close frame.
        reason: The text of the close frame.
        was_dropped: Whether the sandbox ended it without a close frame, because of a fault or
            because the client didn't read.
    """

    connection: int
    api_key: str | None = attrs.field(repr=False)
    code: int | None
    reason: str = ""
    was_dropped: bool = False
