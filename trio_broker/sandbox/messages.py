"""The texts of the protocol, as a broker reads and writes them."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec

from trio_broker.sandbox.refusals import (
    BINARY_MESSAGE,
    INVALID_REQUEST,
    MALFORMED_MESSAGE,
    Refusal,
)

_Body = TypeVar("_Body", bound=msgspec.Struct)

_LONGEST_NONCE: Final = 128


class Envelope(msgspec.Struct, frozen=True):
    """A client's message. A null member counts as missing."""

    op: str | None = None
    ch: str | None = None
    key: str | None = None
    ts: int | None = None
    nonce: str | None = None
    sig: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")

    @property
    def body(self) -> str:
        """The exact text of `data`: what is signed. Empty if it is missing or null."""
        raw = bytes(self.data)
        return "" if raw == b"null" else raw.decode()


class EstimateBody(msgspec.Struct, rename="camel"):
    """The body of an `estimate`. `network` is accepted and has no effect."""

    # Of any type: a wrong type is an invalid amount, like a wrong text.
    amount_in: Any
    asset_in: str
    asset_out: str
    network: str | None = None
    account: str | None = None
    filter: list[str] | None = None


class SwapBody(msgspec.Struct, rename="camel"):
    """The body of a `swap`."""

    amount_in: Any
    asset_in: str
    asset_out: str
    account: str | None = None
    # This member alone has underscores on the wire.
    slippage_bps: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = msgspec.field(
        default=None, name="slippage_bps"
    )
    client_order_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    filter: list[str] | None = None


class StatusBody(msgspec.Struct):
    """The body of an `order_status`."""

    id: str


_envelopes = msgspec.json.Decoder(Envelope)


def parse(message: str | bytes) -> Envelope:
    """The parts of a client's message.

    Raises:
        Refusal: It isn't a JSON object in a text message, or a member has the wrong type.
    """
    if isinstance(message, bytes):
        raise Refusal(BINARY_MESSAGE)
    try:
        envelope = _envelopes.decode(message)
        # `data` may have bytes that aren't UTF-8.
        envelope.body  # noqa: B018 - read here so that it can be read from now on
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise Refusal(MALFORMED_MESSAGE, str(error)) from None
    if envelope.nonce is not None and len(envelope.nonce) > _LONGEST_NONCE:
        raise Refusal(MALFORMED_MESSAGE, f"a nonce has at most {_LONGEST_NONCE} characters")
    return envelope


def parse_or_empty(message: str | bytes) -> tuple[Envelope, Refusal | None]:
    """Parse a message: the envelope, which is empty for an unreadable message, and the error."""
    try:
        return parse(message), None
    except Refusal as refusal:
        return Envelope(), refusal


def parse_body(envelope: Envelope, kind: type[_Body]) -> _Body:
    """The body of a message.

    Raises:
        Refusal: It is missing, or isn't of that kind.
    """
    try:
        return msgspec.json.decode(envelope.body, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Refusal(INVALID_REQUEST, str(error)) from None


def print_message(**members: object) -> str:
    """Encode a message; members that are None are left out."""
    present = {name: value for name, value in members.items() if value is not None}
    return msgspec.json.encode(present).decode()
