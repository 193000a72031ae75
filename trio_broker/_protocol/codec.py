"""Encodes and decodes the JSON of the wire, where fields have other names than in `models`.

**Encoding.** A body is encoded once; that text is signed and sent. It isn't known whether the
broker hashes the text that it received or encodes the body again. So a body is encoded in the form
that every JSON encoder would make: compact, sorted keys, no characters that some of them escape.

**Decoding.** A message is decoded in two steps: first the envelope, whose ``data`` stays text, then
the body, by the type for its operation or channel. A missing optional field is None. Unknown fields
are ignored. A wrong type is a `ProtocolError` that names the field and never its value. Amounts
stay text until `_amount` checks them: the decoder's own `Decimal` accepts ``NaN``, ``Infinity``,
``1_000`` and digits of other scripts.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from trio_broker.exceptions import MessageTooLargeError, ProtocolError
from trio_broker.models import Balance, Order, OrderStatus, RouteStep, SwapEstimate, SwapReceipt

_T = TypeVar("_T")

BodyValue: TypeAlias = str | int | Sequence[str]
# Makes a value from a message. Raises a `ProtocolError` if it can't.
Decode: TypeAlias = Callable[..., Any]

# JSON encoders differ in these characters: Go escapes <, > and &, and some escape all that is not
# ASCII. The signature covers the encoded text, so they are not allowed in it.
_UNSAFE: Final = re.compile(r'[^ -~]|[<>&"\\]')


def check_text(text: str, place: str) -> str:
    r"""Check that any JSON encoder leaves a text unchanged.

    Returns:
        The text.

    Raises:
        TypeError: It isn't a str.
        ValueError: It is empty, or a character of it is not printable ASCII, or one of
            ``< > & " \\``.
    """
    if not isinstance(text, str):
        raise TypeError(f"{place} must be a str, not {type(text).__name__}")
    if not text:
        raise ValueError(f"{place} must not be empty")
    unsafe = _UNSAFE.search(text)
    if unsafe:
        raise ValueError(
            f"{place} has the character U+{ord(unsafe[0]):04X} at {unsafe.start()}: the broker "
            'takes printable ASCII without < > & " and \\ there'
        )
    return text


_encoder = msgspec.json.Encoder(order="sorted")


def encode_body(body: Mapping[str, BodyValue]) -> str:
    """The text of a ``data`` member: compact, its keys sorted."""
    return _encoder.encode(body).decode()


def channel_frame(op: str, channel: str) -> str:
    """The text of a ``subscribe`` or ``unsubscribe`` message, which are not signed."""
    return f'{{"op":"{op}","ch":"{channel}"}}'


def signed_frame(op: str, body: str, timestamp_ms: int, nonce: str, signature: str) -> str:
    """The text of a signed message, with the body's text exactly as it was signed."""
    data = f',"data":{body}' if body else ""
    return f'{{"op":"{op}","ts":{timestamp_ms},"nonce":"{nonce}","sig":"{signature}"{data}}}'


def auth_frame(api_key: str, timestamp_ms: int, nonce: str, signature: str) -> str:
    """The text of an ``auth`` message, the only one that carries the API key."""
    key = _encoder.encode(api_key).decode()
    return f'{{"op":"auth","key":{key},"ts":{timestamp_ms},"nonce":"{nonce}","sig":"{signature}"}}'


def check_size(op: str, body: str, channel: str | None, limit: int) -> None:
    """Refuse a message that is too large. Timestamps and signatures have fixed lengths.

    Raises:
        MessageTooLargeError: It has more bytes than the limit.
    """
    if channel is not None:
        size = _CHANNEL_OVERHEAD + len(op) + len(channel)
    else:
        size = _SIGNED_OVERHEAD + len(op) + (len(body) + len(_DATA) if body else 0)
    if size > limit:
        raise MessageTooLargeError(size, limit)


_DATA: Final = ',"data":'
_CHANNEL_OVERHEAD: Final = len(channel_frame("", ""))
_SIGNED_OVERHEAD: Final = len(signed_frame("", "", 10**12, "0" * 40, "0" * 64))

# The decoder has no union of raw text and null. So a missing member is empty text, and null is the
# text "null".
_NOTHING: Final = msgspec.Raw(b"")
_MISSING: Final = frozenset({b"", b"null"})


def _is_missing(raw: msgspec.Raw) -> bool:
    return bytes(raw) in _MISSING


class Inbound(msgspec.Struct, frozen=True, gc=False):
    """The envelope of a message from the broker.

    Attributes:
        op: The operation of the request.
        ch: The channel.
        nonce: The request's nonce, of any type. It isn't documented whether the broker echoes it.
        error: The broker's error message; an empty one is none.
        data: The text of the body.
    """

    op: str | None = None
    ch: str | None = None
    nonce: Any = None
    error: str | None = None
    data: msgspec.Raw = _NOTHING


_inbound = msgspec.json.Decoder(Inbound)


def decode_message(text: str) -> Inbound:
    """A message's envelope.

    Raises:
        ProtocolError: It isn't a JSON object, or a member has the wrong type.
    """
    try:
        return _inbound.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _unreadable(error, text, "the message") from None


def _decode(decoder: msgspec.json.Decoder[_T], text: msgspec.Raw, place: str) -> _T:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _unreadable(error, text, place) from None


def _unreadable(error: Exception, text: str | msgspec.Raw, place: str) -> ProtocolError:
    """The reason why a text can't be decoded, without the text itself."""
    if isinstance(text, msgspec.Raw) and _is_missing(text):
        return ProtocolError(f"{place} has no data")
    if isinstance(error, msgspec.ValidationError):
        return ProtocolError(f"{place} has another shape than documented: {error}")
    if isinstance(error, RecursionError):
        return ProtocolError(f"{place} is nested too deeply")
    return ProtocolError(f"{place} is malformed: {type(error).__name__}")


class _Body(msgspec.Struct, frozen=True):
    pass


class _Balance(_Body, frozen=True):
    asset: str
    total: msgspec.Raw
    locked: msgspec.Raw = _NOTHING


class _Balances(_Body, frozen=True):
    balances: list[_Balance]


class _RouteStep(_Body, frozen=True):
    # One of the broker's documents has these two in camel case.
    from_asset: str | None = None
    fromAsset: str | None = None  # noqa: N815 - the name on the wire
    to_asset: str | None = None
    toAsset: str | None = None  # noqa: N815 - the name on the wire
    amount_in: msgspec.Raw = _NOTHING
    amountIn: msgspec.Raw = _NOTHING  # noqa: N815 - the name on the wire
    amount_out: msgspec.Raw = _NOTHING
    amountOut: msgspec.Raw = _NOTHING  # noqa: N815 - the name on the wire
    pool: str | None = None
    exchange: str | None = None


class _Estimate(_Body, frozen=True, rename="camel"):
    price: msgspec.Raw
    expected_out: msgspec.Raw
    route: list[_RouteStep] | None = None
    fee: msgspec.Raw = _NOTHING
    expires_at: int | None = None


class _Receipt(_Body, frozen=True, rename="camel"):
    order_id: str
    status: str | None = None


class _Order(_Body, frozen=True, rename="camel"):
    status: str
    order_id: str | None = None
    filled_out: msgspec.Raw = _NOTHING
    tx_hash: str | None = None
    updated_at: int | None = None
    client_order_id: str | None = None


class _State(_Body, frozen=True):
    status: str | None = None


class _Names(_Body, frozen=True, rename="camel"):
    order_id: str | None = None
    client_order_id: str | None = None


_balances = msgspec.json.Decoder(_Balances)
_balance_list = msgspec.json.Decoder(list[_Balance])
_estimate = msgspec.json.Decoder(_Estimate)
_receipt = msgspec.json.Decoder(_Receipt)
_order = msgspec.json.Decoder(_Order)
_state = msgspec.json.Decoder(_State)
_names = msgspec.json.Decoder(_Names)
_anything = msgspec.json.Decoder(float_hook=Decimal)


def decode_balances(message: Inbound) -> tuple[Balance, ...]:
    """The body of a reply to ``balances``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    return _to_balances(_decode(_balances, message.data, "the balances").balances)


def decode_balances_push(message: Inbound) -> tuple[Balance, ...]:
    """The body of a push to ``balances``: the list without a member around it.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    return _to_balances(_decode(_balance_list, message.data, "the balances"))


# No token needs sixty digits before or after the point. Arithmetic with a thousand digits, or with
# an exponent of 999999999, would take all memory.
_AMOUNT: Final = re.compile(
    rb"-?[0-9]{1,60}(?:\.[0-9]{1,60})?(?:[eE][+-]?[0-9]{1,2})?", flags=re.ASCII
)


def _to_balances(balances: list[_Balance]) -> tuple[Balance, ...]:
    # Accounts have hundreds of assets: amounts are decoded here without a call.
    result = []
    for balance in balances:
        total, locked = bytes(balance.total).strip(b'"'), bytes(balance.locked).strip(b'"')
        is_known = locked not in _MISSING
        if not _AMOUNT.fullmatch(total):
            raise _not_an_amount("total")
        if is_known and not _AMOUNT.fullmatch(locked):
            raise _not_an_amount("locked")
        result.append(
            Balance(
                balance.asset,
                Decimal(total.decode()),
                Decimal(locked.decode()) if is_known else None,
            )
        )
    return tuple(result)


def decode_estimate(message: Inbound) -> SwapEstimate:
    """The body of a reply to ``estimate``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    body = _decode(_estimate, message.data, "the estimate")
    return SwapEstimate(
        route=tuple(_to_step(step) for step in body.route or ()),
        price=_amount(body.price, "price"),
        expected_out=_amount(body.expected_out, "expectedOut"),
        fee=_optional_amount(body.fee, "fee"),
        expires_at=_optional_time(body.expires_at, "expiresAt"),
    )


def _to_step(step: _RouteStep) -> RouteStep:
    return RouteStep(
        from_asset=step.from_asset if step.from_asset is not None else step.fromAsset,
        to_asset=step.to_asset if step.to_asset is not None else step.toAsset,
        amount_in=_optional_amount(_either(step.amount_in, step.amountIn), "amount_in"),
        amount_out=_optional_amount(_either(step.amount_out, step.amountOut), "amount_out"),
        pool=step.pool,
        exchange=step.exchange,
    )


def _either(raw: msgspec.Raw, other: msgspec.Raw) -> msgspec.Raw:
    return other if _is_missing(raw) else raw


def decode_receipt(message: Inbound, client_order_id: str) -> SwapReceipt:
    """The body of a reply to ``swap``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    body = _decode(_receipt, message.data, "the swap's receipt")
    return SwapReceipt(
        order_id=_identifier(body.order_id, "orderId"),
        status=None if body.status is None else _status(body.status),
        client_order_id=client_order_id,
    )


def decode_order(
    message: Inbound, order_id: str | None = None, client_order_id: str | None = None
) -> Order:
    """The body of a reply to ``order_status``, or of a push to ``orders:<id>``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    # This runs for each push: short helpers are written out.
    try:
        body = _order.decode(message.data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _unreadable(error, message.data, "the order") from None
    if not body.order_id:
        named = order_id
    else:
        named = body.order_id
        if order_id is not None and named != order_id:
            client_order_id = None
    updated_at = body.updated_at
    is_exact = updated_at is not None and 0 <= updated_at <= _EXACT_AS_FLOAT
    filled = bytes(body.filled_out)
    status = body.status
    return Order(  # By position: it takes two thirds of the time.
        named,
        _STATUSES.get(status) or _STATUSES.get(status.upper()) or status,
        None if filled in _MISSING else _to_decimal(filled, "filledOut"),
        body.tx_hash,
        dt.datetime.fromtimestamp(updated_at / 1000, dt.UTC)  # type: ignore[operator]
        if is_exact
        else _optional_time(updated_at, "updatedAt"),
        body.client_order_id or client_order_id,
    )


def decode_authenticated(message: Inbound) -> None:
    """The body of a reply to ``auth``, which must say that the client is authenticated.

    Raises:
        ProtocolError: It says something else.
    """
    if _decode(_state, message.data, "the reply to auth").status != "authenticated":
        raise ProtocolError("the reply to auth is neither a refusal nor 'authenticated'")


def decode_anything(message: Inbound) -> Any:
    """The body of a push to a channel that this library doesn't know.

    Returns:
        Dicts, lists, str, int, bool, None, and `Decimal` for numbers with a fraction.

    Raises:
        ProtocolError: The body is nested too deeply.
    """
    return None if _is_missing(message.data) else _decode(_anything, message.data, "the push")


def order_names(message: Inbound) -> tuple[str | None, str | None]:
    """The ids of the order that a reply names.

    Returns:
        Its order id and its client order id, each None if it isn't named.
    """
    if _is_missing(message.data):
        return None, None
    try:
        names = _decode(_names, message.data, "the reply")
    except ProtocolError:
        return None, None
    return names.order_id or None, names.client_order_id or None


def _amount(raw: msgspec.Raw, place: str) -> Decimal:
    return _to_decimal(bytes(raw), place)


def _to_decimal(text: bytes, place: str) -> Decimal:
    text = text.strip(b'"')  # A quote inside would have a backslash, which the pattern refuses.
    if not _AMOUNT.fullmatch(text):
        raise _not_an_amount(place)
    return Decimal(text.decode())


def _not_an_amount(place: str) -> ProtocolError:
    return ProtocolError(f"{place} isn't a finite decimal number of at most 60 digits")


def _optional_amount(raw: msgspec.Raw, place: str) -> Decimal | None:
    text = bytes(raw)
    return None if text in _MISSING else _to_decimal(text, place)


def _optional_time(milliseconds: int | None, place: str) -> dt.datetime | None:
    if milliseconds is None:
        return None
    if 0 <= milliseconds <= _EXACT_AS_FLOAT:
        return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    try:
        return _EPOCH + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        raise ProtocolError(f"{place} isn't a time in milliseconds") from None


# Up to here, seconds as a float are exact to half a microsecond, and rounding restores the
# milliseconds. This takes a third of the time of the sum.
_EXACT_AS_FLOAT: Final = 4 * 10**12

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _identifier(text: str, place: str) -> str:
    if not text:
        raise ProtocolError(f"{place} is empty")
    return text


# The broker's documents and other clients spell some statuses differently.
_STATUSES: Final[Mapping[str, OrderStatus]] = {
    **{status.value: status for status in OrderStatus},
    "CANCELED": OrderStatus.CANCELLED,
    "PARTIAL_FILLED": OrderStatus.PARTIAL,
}


def _status(text: str) -> OrderStatus | str:
    return _STATUSES.get(text.upper(), text)
