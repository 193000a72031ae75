"""What happens at a sandbox, for somebody who looks on: what `open_sandbox`'s `on_event` gets.

They are plain values, as things were at that moment. No secret and no signature is in any.
"""

from __future__ import annotations

import attrs

from trio_broker.sandbox.orders import Order


@attrs.frozen(kw_only=True)
class SandboxEvent:
    """Something that happened at a sandbox."""


@attrs.frozen(kw_only=True)
class ClientTurnedAway(SandboxEvent):
    """A fault kept somebody from connecting: there was no handshake."""


@attrs.frozen(kw_only=True)
class ClientCame(SandboxEvent):
    """A client's handshake is done.

    Attributes:
        connection: Its `Connection.number`.
    """

    connection: int


@attrs.frozen(kw_only=True)
class ClientAsked(SandboxEvent):
    """A client sent a message, and its answer is decided: faults may lose it yet.

    Attributes:
        connection: The client's `Connection.number`.
        api_key: Whom it is authenticated as, with this message perhaps; None if it isn't.
        op: The operation, cut if it is long; None if the message couldn't be read.
        channel: The channel, if it named one.
        order: The order that a swap has become, or that it asked for.
        error: What it was refused with; None if it wasn't.
        was_handled: Whether the broker got to see it; False if a fault came between.
    """

    connection: int
    api_key: str | None = attrs.field(repr=False)
    op: str | None
    channel: str | None
    order: Order | None = None
    error: str | None = None
    was_handled: bool = True


@attrs.frozen(kw_only=True)
class OrderMoved(SandboxEvent):
    """An order went a step on in its life.

    Attributes:
        order: The order as it is now.
    """

    order: Order


@attrs.frozen(kw_only=True)
class ClientLeft(SandboxEvent):
    """A client's connection ended.

    Attributes:
        connection: Its `Connection.number`.
        api_key: Whom it was authenticated as; None if it wasn't.
        code: The close code, whichever side began; None if there was no goodbye.
        reason: What was said with it.
        was_dropped: Whether it was the sandbox that ended it without a goodbye: for a fault, or
            since the client didn't read.
    """

    connection: int
    api_key: str | None = attrs.field(repr=False)
    code: int | None
    reason: str = ""
    was_dropped: bool = False
