"""The texts of the protocol, as a broker reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from trio_broker.sandbox.refusals import (
    BINARY_MESSAGE,
    INVALID_REQUEST,
    MALFORMED_MESSAGE,
    Refusal,
    error_code,
)

ErrorForm: TypeAlias = Literal["documented", "named", "object"]
AcceptedDialect: TypeAlias = Literal["both", "clients", "docs"]

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


class EstimateBody(msgspec.Struct, rename="camel", kw_only=True):
    """The body of an `estimate`. `network` is accepted and has no effect."""

    # Of any type: a wrong type is an invalid amount, like a wrong text.
    amount_in: Any
    asset_in: str
    asset_out: str
    network: str | None = None
    account: str | None = None
    filter: list[str] | None = None


class DocsEstimateBody(EstimateBody, kw_only=True):
    """The body of an `estimate` with the names of the broker's documentation."""

    amount_in: Any = msgspec.field(name="amount")
    asset_in: str = msgspec.field(name="from")
    asset_out: str = msgspec.field(name="to")


class SwapBody(msgspec.Struct, rename="camel", kw_only=True):
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


class DocsSwapBody(SwapBody, kw_only=True):
    """The body of a `swap` with the names of the broker's documentation."""

    amount_in: Any = msgspec.field(name="amount")
    asset_in: str = msgspec.field(name="from")
    asset_out: str = msgspec.field(name="to")


class StatusBody(msgspec.Struct):
    """The body of an `order_status`."""

    id: str


_DOCS_BODIES: Final[Mapping[type[msgspec.Struct], type[Any]]] = {
    EstimateBody: DocsEstimateBody,
    SwapBody: DocsSwapBody,
}
_NO_MEMBERS: Final[Mapping[str, object]] = MappingProxyType({})
_DOCS_NAMES: Final = frozenset({"amount", "from", "to"})

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


def parse_body(envelope: Envelope, kind: type[_Body], dialect: AcceptedDialect = "both") -> _Body:
    """The body of a message.

    Args:
        envelope: The message.
        kind: The kind of the body, with the clients' names.
        dialect: Whose names it may have.

    Raises:
        Refusal: It is missing, or isn't of that kind.
    """
    try:
        if kind in _DOCS_BODIES and (
            dialect == "docs" or (dialect == "both" and _has_docs_names(envelope.body))
        ):
            kind = _DOCS_BODIES[kind]
        return msgspec.json.decode(envelope.body, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Refusal(INVALID_REQUEST, str(error)) from None


def check_no_body(envelope: Envelope, dialect: AcceptedDialect) -> None:
    """Check the body of a request that has none, which is `{}` in the documentation.

    Raises:
        Refusal: The dialect has another form.
    """
    if dialect == "docs" and envelope.body.replace(" ", "") != "{}":
        raise Refusal(INVALID_REQUEST, "`data` must be {}")
    if dialect == "clients" and envelope.body:
        raise Refusal(INVALID_REQUEST, "there must be no `data`")


def _has_docs_names(body: str) -> bool:
    members = msgspec.json.decode(body)
    return isinstance(members, dict) and not _DOCS_NAMES.isdisjoint(members)


def print_error(
    form: ErrorForm,
    error: str | Mapping[str, object],
    *,
    op: str | None,
    ch: str | None,
    members: Mapping[str, object] = _NO_MEMBERS,
) -> str:
    """Encode a reply that is an error.

    Args:
        form: Its form.
        error: The text; or the object, which stays as it is in every form.
        op: The operation of the request.
        ch: The channel of the request.
        members: Further members of the message; they replace those of the form.
    """
    content: object = error
    if form == "object" and isinstance(error, str):
        content = {"code": error_code(error), "message": error}
    head = {"op": op, "ch": ch} if form == "named" else {}
    return print_message(**{**head, "error": content, **members})


def print_message(**members: object) -> str:
    """Encode a message; members that are None are left out."""
    present = {name: value for name, value in members.items() if value is not None}
    return msgspec.json.encode(present).decode()
