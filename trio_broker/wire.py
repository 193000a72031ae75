"""JSON text to messages and values, and back: where a field's name on the wire is translated.

**Out.** A body is printed once, and that text is what is signed and what is sent. Whether the
broker hashes what it received or what it prints again is not known, so a body is printed as every
printer would print it: compact, keys sorted, and no text in it that some printers escape.

**In.** A message is decoded in two steps, each once: the envelope, whose ``data`` stays text, and
then the body, by the type that its operation or channel calls for. What may be missing is None,
what the broker adds is passed over, and what has the wrong type is a `ProtocolError` that names
its place and never its value. Amounts stay text until `_amount` has looked at them: the decoder's
own `Decimal` takes ``NaN``, ``Infinity``, ``1_000`` and digits of other scripts.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from trio_broker.exceptions import ProtocolError
from trio_broker.models import Balance, Order, OrderStatus, RouteStep, SwapEstimate, SwapReceipt

_T = TypeVar("_T")

BodyValue: TypeAlias = str | int | Sequence[str]

# JSON printers differ in how they print these: Go escapes <, > and &, and some escape what is not
# ASCII. The signature covers the printed text, so none of them may stand in what is signed.
_UNSAFE: Final = re.compile(r'[^ -~]|[<>&"\\]')


def check_text(text: str, place: str) -> str:
    r"""A text that survives any JSON printer unchanged.

    Args:
        text: The text.
        place: What it is, for the error.

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
    """The text of a ``data`` member: compact, its keys sorted.

    Args:
        body: The members, whose texts `check_text` has passed.
    """
    return _encoder.encode(body).decode()


def channel_frame(op: str, channel: str) -> str:
    """The text of a ``subscribe`` or ``unsubscribe`` message, which are not signed.

    Args:
        op: ``"subscribe"`` or ``"unsubscribe"``.
        channel: The channel's name, which `check_text` has passed.
    """
    return f'{{"op":"{op}","ch":"{channel}"}}'


def signed_frame(op: str, body: str, timestamp_ms: int, nonce: str, signature: str) -> str:
    """The text of a signed message, around the very text of the body that was signed.

    Args:
        op: The operation.
        body: The text of its ``data`` member, empty for none.
        timestamp_ms: Milliseconds since the epoch.
        nonce: The nonce.
        signature: The signature in hexadecimal.
    """
    data = f',"data":{body}' if body else ""
    return f'{{"op":"{op}","ts":{timestamp_ms},"nonce":"{nonce}","sig":"{signature}"{data}}}'


def auth_frame(api_key: str, timestamp_ms: int, nonce: str, signature: str) -> str:
    """The text of an ``auth`` message, the only one that carries the API key.

    Args:
        api_key: The API key.
        timestamp_ms: Milliseconds since the epoch.
        nonce: The nonce.
        signature: The signature in hexadecimal.
    """
    key = _encoder.encode(api_key).decode()
    return f'{{"op":"auth","key":{key},"ts":{timestamp_ms},"nonce":"{nonce}","sig":"{signature}"}}'


def frame_size(op: str, body: str, channel: str | None) -> int:
    """The size in bytes that a message will have; stamps and signatures have fixed lengths.

    Args:
        op: The operation.
        body: The text of its ``data`` member, empty for none.
        channel: The channel, of ``subscribe`` and ``unsubscribe``.
    """
    if channel is not None:
        return len(channel_frame(op, channel))
    return len(signed_frame(op, body, 10**12, "0" * 40, "0" * 64))


# The decoder has no union of raw text and null: a member that is missing is no text at all, and
# null stands as it came.
_NOTHING: Final = msgspec.Raw(b"")


def _is_missing(raw: msgspec.Raw) -> bool:
    return bytes(raw) in {b"", b"null"}


class Inbound(msgspec.Struct, frozen=True, gc=False):
    """The envelope of a message from the broker.

    Attributes:
        op: The operation that it answers.
        ch: The channel.
        nonce: Of any type: whether the broker echoes ours is not documented.
        error: What went wrong; empty means nothing did.
        data: The body's text.
    """

    op: str | None = None
    ch: str | None = None
    nonce: Any = None
    error: str | None = None
    data: msgspec.Raw = _NOTHING


_inbound = msgspec.json.Decoder(Inbound)


def decode_message(text: str) -> Inbound:
    """A message's envelope.

    Args:
        text: The message as it came.

    Raises:
        ProtocolError: It isn't a JSON object, or a member has the wrong type.
    """
    return _decode(_inbound, text, "the message")


def _decode(decoder: msgspec.json.Decoder[_T], text: str | msgspec.Raw, place: str) -> _T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        if isinstance(text, msgspec.Raw) and _is_missing(text):
            raise ProtocolError(f"{place} has no data") from None
        raise ProtocolError(f"{place} has another shape than documented: {error}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        if text == _NOTHING:
            raise ProtocolError(f"{place} has no data") from None
        raise ProtocolError(f"{place} is malformed: {type(error).__name__}") from None
    except RecursionError:
        raise ProtocolError(f"{place} is nested too deeply") from None


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

    Args:
        message: The reply.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    return _to_balances(_decode(_balances, message.data, "the balances").balances)


def decode_balances_push(message: Inbound) -> tuple[Balance, ...]:
    """The body of a push to ``balances``: the list without a member around it.

    Args:
        message: The push.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    return _to_balances(_decode(_balance_list, message.data, "the balances"))


def _to_balances(balances: list[_Balance]) -> tuple[Balance, ...]:
    return tuple(
        Balance(
            asset=balance.asset,
            total=_amount(balance.total, "total"),
            locked=_optional_amount(balance.locked, "locked"),
        )
        for balance in balances
    )


def decode_estimate(message: Inbound) -> SwapEstimate:
    """The body of a reply to ``estimate``.

    Args:
        message: The reply.

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

    Args:
        message: The reply.
        client_order_id: The id that was sent along with the swap.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    body = _decode(_receipt, message.data, "the swap's receipt")
    return SwapReceipt(
        order_id=_identifier(body.order_id, "orderId"),
        status=None if body.status is None else _status(body.status),
        client_order_id=client_order_id,
    )


def decode_order(message: Inbound) -> Order:
    """The body of a reply to ``order_status``, or of a push to ``orders:<id>``.

    Args:
        message: The reply or push.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    body = _decode(_order, message.data, "the order")
    return Order(  # By position, which takes two thirds of the time.
        body.order_id,
        _status(body.status),
        _optional_amount(body.filled_out, "filledOut"),
        body.tx_hash,
        _optional_time(body.updated_at, "updatedAt"),
        body.client_order_id,
    )


def decode_authenticated(message: Inbound) -> None:
    """The body of a reply to ``auth``, which must say that the client is authenticated.

    Args:
        message: The reply.

    Raises:
        ProtocolError: It says something else.
    """
    if _decode(_state, message.data, "the reply to auth").status != "authenticated":
        raise ProtocolError("the reply to auth is neither a refusal nor 'authenticated'")


def decode_anything(message: Inbound) -> Any:
    """The body of a push to a channel that this library doesn't know.

    Args:
        message: The push.

    Returns:
        Dicts, lists, str, int, bool and None, and `Decimal` for numbers with a fraction.

    Raises:
        ProtocolError: The body is nested too deeply.
    """
    return None if _is_missing(message.data) else _decode(_anything, message.data, "the push")


def order_names(message: Inbound) -> tuple[str | None, str | None]:
    """Which order a reply speaks of, where it says so.

    Args:
        message: The reply.

    Returns:
        Its order id and its client order id, None where it names none.
    """
    if _is_missing(message.data):
        return None, None
    try:
        names = _decode(_names, message.data, "the reply")
    except ProtocolError:
        return None, None
    return names.order_id or None, names.client_order_id or None


# Sixty digits on either side of the point are more than any token's smallest unit needs; a
# thousand of them, or an exponent of 999999999, would cost whoever adds them up all memory.
_AMOUNT: Final = re.compile(
    rb"-?[0-9]{1,60}(?:\.[0-9]{1,60})?(?:[eE][+-]?[0-9]{1,2})?", flags=re.ASCII
)


def _amount(raw: msgspec.Raw, place: str) -> Decimal:
    return _to_decimal(bytes(raw), place)


def _to_decimal(text: bytes, place: str) -> Decimal:
    text = text.strip(b'"')  # In JSON a text has none inside without a backslash before it.
    if not _AMOUNT.fullmatch(text):
        raise ProtocolError(f"{place} isn't a finite decimal of sane length")
    return Decimal(text.decode())


def _optional_amount(raw: msgspec.Raw, place: str) -> Decimal | None:
    text = bytes(raw)
    return _to_decimal(text, place) if text and text != b"null" else None


def _optional_time(milliseconds: int | None, place: str) -> dt.datetime | None:
    if milliseconds is None:
        return None
    if 0 <= milliseconds <= _EXACT_AS_FLOAT:
        return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    try:
        return _EPOCH + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        raise ProtocolError(f"{place} isn't a time in milliseconds") from None


# So many milliseconds are seconds in a float to within half a microsecond, so that the rounding to
# microseconds restores them; it takes a third of the time of the sum.
_EXACT_AS_FLOAT: Final = 4 * 10**12

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _identifier(text: str, place: str) -> str:
    if not text:
        raise ProtocolError(f"{place} is empty")
    return text


# The broker's documents and its clients' READMEs spell some statuses differently.
_STATUSES: Final[Mapping[str, OrderStatus]] = {
    **{status.value: status for status in OrderStatus},
    "CANCELED": OrderStatus.CANCELLED,
    "PARTIAL_FILLED": OrderStatus.PARTIAL,
}


def _status(text: str) -> OrderStatus | str:
    return _STATUSES.get(text.upper(), text)
