"""Encodes and decodes the JSON of the wire, where fields have other names than in `models`.

**Encoding.** A body is encoded once; that text is signed and sent. It isn't known whether the
broker hashes the text that it received or encodes the body again. So a body is encoded in the form
that every JSON encoder would make: compact, sorted keys, no characters that some of them escape.

**Decoding.** A message is decoded in two steps: first the envelope, whose ``data`` stays text, then
the body, by the type for its operation or channel. Amounts stay text until they are checked: the
decoder's own `Decimal` accepts ``NaN``, ``Infinity``, ``1_000`` and digits of other scripts.

**What can't be read costs as little as possible.** A message of another shape than documented is
decoded once more, member by member (`tolerant`). An unreadable optional field is None, an
unreadable entry of a list is left out, and the places go into `Inbound.unreadable`. Only a required
field makes the message a `ProtocolError`, which names the field and never its value. So the usual
messages pay nothing for this.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from trio_broker._protocol import values
from trio_broker._protocol.unreadable import UnreadableBalance
from trio_broker._protocol.values import (
    AMOUNT,
    AMOUNT_TEXT,
    EARLIEST,
    EMPTY,
    EXACT_AS_FLOAT,
    MISSING,
    NOTHING,
    DecodeErrors,
    Members,
    code_text,
    is_missing,
)
from trio_broker.exceptions import MessageTooLargeError, ProtocolError
from trio_broker.models import (
    Balance,
    Order,
    OrderStatus,
    RouteStep,
    SwapEstimate,
    SwapReceipt,
)

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
        The text, as a plain str.

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
    return str.__str__(text)  # without its subclass, such as an enum's


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


class MalformedError(Exception):
    """A message is no JSON at all. It never reaches users."""


class Inbound(msgspec.Struct, gc=False):
    """The envelope of a message from the broker.

    Attributes:
        op: The operation of the request. None for ``"error"``, which names nothing.
        ch: The channel.
        nonce: The request's nonce, of any type. It isn't documented whether the broker echoes it.
        error: The broker's error message; an empty one is none.
        code: The machine code of the error, or None.
        data: The text of the body. If an error that is an object has no body, that object: it may
            name an order.
        unreadable: The places in the message that could not be read.
    """

    op: str | None = None
    ch: str | None = None
    nonce: Any = None
    error: str | None = None
    code: Any = None
    data: msgspec.Raw = NOTHING
    unreadable: tuple[str, ...] = msgspec.field(default=(), name="<unreadable>")


class _Body(msgspec.Struct, frozen=True):
    pass


class _Order(_Body, frozen=True, rename="camel"):
    status: str
    order_id: str | None = None
    filled_out: str | None = None
    tx_hash: str | None = None
    updated_at: int | None = None
    client_order_id: str | None = None


class UsualOrder(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """The body of a usual push of an order."""

    status: OrderStatus
    order_id: str | None = None
    filled_out: str | None = None
    tx_hash: str | None = None
    updated_at: Annotated[int, msgspec.Meta(ge=EARLIEST, le=EXACT_AS_FLOAT)] | None = None
    client_order_id: str | None = None


class OrderPush(msgspec.Struct, gc=False):
    """The usual push of an order, whose body is decoded together with the envelope.

    Attributes:
        ch: The channel.
        data: The body.
        op: None, as `error`: it is a push.
    """

    ch: str
    data: UsualOrder
    op: None = None
    error: None = None


_inbound = msgspec.json.Decoder(Inbound)
_order_push = msgspec.json.Decoder(OrderPush)
_from_timestamp, _UTC = dt.datetime.fromtimestamp, dt.UTC
_is_amount = AMOUNT_TEXT.fullmatch
BEGINS_ORDER_PUSH: Final = '{"ch":"orders:'
# Decodes the usual push of an order. Raises one of `DecodeErrors` for any other message.
decode_order_push: Final = _order_push.decode
_any_json = msgspec.json.Decoder(msgspec.Raw)

# The body of the usual acknowledgement, and the status that every acknowledgement must have.
_ACKNOWLEDGED: Final = {
    "subscribe": (b'{"status":"subscribed"}', "subscribed"),
    "unsubscribe": (b'{"status":"unsubscribed"}', "unsubscribed"),
}
_MOST_PLACES: Final = 20


def decode_message(text: str) -> Inbound:
    """A message's envelope.

    Raises:
        MalformedError: It isn't JSON.
        ProtocolError: It isn't a JSON object, or is nested too deeply.
    """
    # This runs for each push that isn't a usual one of an order.
    try:
        message = _inbound.decode(text)
    except msgspec.ValidationError:
        message = _unusual_message(text)
    except DecodeErrors as failure:
        raise _unreadable_message(failure) from None
    if message.op is not None:
        if message.op.lower() == "error":
            message = _unusual_message(text)
        elif message.op in _ACKNOWLEDGED and not message.error:
            usual, status = _ACKNOWLEDGED[message.op]
            if bytes(message.data) != usual:
                _check_acknowledgement(message, status)
    if message.code is not None:
        message.code = code_text(message.code)
    return message


def _unusual_message(text: str) -> Inbound:
    """An envelope of another shape than documented, or with an error that isn't a text."""
    unreadable: list[str] = []
    members = Members.of(text.encode(), unreadable)
    if members is None:
        try:
            _any_json.decode(text)
        except DecodeErrors as failure:
            raise _unreadable_message(failure) from None
        raise ProtocolError("the message has another shape than documented: it is no object")
    op = members.read("op", values.text)
    is_error = op is not None and op.lower() == "error"
    message = Inbound(
        op=None if is_error else op,
        ch=members.read("ch", values.identifier),
        nonce=members.read("nonce", values.anything),
        code=members.read("code", values.anything),
        data=members.values.get("data", NOTHING),
    )
    error = members.read("error", values.anything)
    found, code = values.error_text(error)
    if error is True or (is_error and not found):
        # The text is elsewhere: {"error": true, "message": …}.
        rest = {name: members.read(name, values.anything) for name in ("message", "msg", "data")}
        elsewhere, inner = values.error_text([one for one in rest.values() if one])
        found, code = elsewhere or found, code or inner
    if "error" in unreadable:
        found = "an error that can't be read"
    message.error = found or ("an error without a text" if is_error else None)
    message.code = code or message.code
    if isinstance(error, Mapping) and is_missing(message.data):
        message.data = members.values["error"]
    message.unreadable = tuple(unreadable)
    return message


def _check_acknowledgement(message: Inbound, wanted: str) -> None:
    """Make an acknowledgement with another status than the documented one an error."""
    body = values.anything(bytes(message.data) or b"null")
    members = body if isinstance(body, Mapping) else {"status": body}
    status = members.get("status")
    if status is None:
        return  # It is acknowledged, without a status.
    text = status if isinstance(status, str) else "the acknowledgement has an unknown status"
    words = re.findall(r"[a-z]+", text.casefold())
    if wanted in words and "not" not in words:
        return
    details = {name: one for name, one in members.items() if isinstance(one, str | int)}
    message.error, code = values.error_text({"message": text, **details})
    message.code = code or message.code


def _note(message: Inbound, places: list[str]) -> None:
    """Add the places that could not be read."""
    message.unreadable += tuple(places[:_MOST_PLACES])


def _decode(decoder: msgspec.json.Decoder[_T], text: msgspec.Raw, place: str) -> _T:
    try:
        return decoder.decode(text)
    except DecodeErrors as error:
        raise _unreadable(error, text, place) from None


def _members(raw: msgspec.Raw, unreadable: list[str], place: str) -> Members:
    """The members of a body.

    Raises:
        ProtocolError: It isn't an object.
    """
    members = Members.of(bytes(raw), unreadable)
    if members is None:
        if is_missing(raw):
            raise ProtocolError(f"{place} has no data")
        raise ProtocolError(f"{place} has another shape than documented: it is no object")
    return members


def _unreadable(error: Exception, text: msgspec.Raw, place: str) -> ProtocolError:
    """The reason why a body can't be decoded, without its text."""
    if is_missing(text):
        return ProtocolError(f"{place} has no data")
    if isinstance(error, msgspec.ValidationError):
        return ProtocolError(f"{place} has another shape than documented: {error}")
    if isinstance(error, RecursionError):
        return ProtocolError(f"{place} is nested too deeply")
    if isinstance(error, ArithmeticError):
        return ProtocolError(f"{place} has a number that can't be read")
    return ProtocolError(f"{place} is malformed: {type(error).__name__}")


def _unreadable_message(error: Exception) -> ProtocolError | MalformedError:
    if isinstance(error, RecursionError):
        return ProtocolError("the message is nested too deeply")
    return MalformedError(f"the message is malformed: {type(error).__name__}")


class _Balance(_Body, frozen=True):
    asset: str
    total: msgspec.Raw
    locked: msgspec.Raw = NOTHING


class _Balances(_Body, frozen=True):
    balances: list[_Balance]


class _Receipt(_Body, frozen=True, rename="camel"):
    order_id: str
    status: str | None = None


class _Step(_Body, frozen=True):
    from_asset: str
    to_asset: str
    amount_in: msgspec.Raw
    amount_out: msgspec.Raw
    pool: str | None = None
    exchange: str | None = None


class _Estimate(_Body, frozen=True, rename="camel"):
    price: msgspec.Raw
    expected_out: msgspec.Raw
    fee: msgspec.Raw = NOTHING
    expires_at: int | None = None
    route: list[_Step] | None = None


class _State(_Body, frozen=True):
    status: str | None = None


class _Names(_Body, frozen=True, rename="camel"):
    order_id: str | None = None
    client_order_id: str | None = None


_balances = msgspec.json.Decoder(_Balances)
_balance_list = msgspec.json.Decoder(list[_Balance])
_receipt = msgspec.json.Decoder(_Receipt)
_order = msgspec.json.Decoder(_Order)
_estimate = msgspec.json.Decoder(_Estimate)
_state = msgspec.json.Decoder(_State)
_names = msgspec.json.Decoder(_Names)
_anything = msgspec.json.Decoder(float_hook=Decimal)


def decode_balances(message: Inbound) -> tuple[Balance, ...]:
    """The body of a reply to ``balances``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    try:
        body = _balances.decode(message.data)
    except msgspec.ValidationError:
        members = _members(message.data, [], "the balances")
        return _unusual_balances(message, members.values.get("balances", NOTHING))
    except DecodeErrors as error:
        raise _unreadable(error, message.data, "the balances") from None
    found = _to_balances(body.balances)
    if found is None:
        members = _members(message.data, [], "the balances")
        return _unusual_balances(message, members.values["balances"])
    return found


def decode_balances_push(message: Inbound) -> tuple[Balance, ...]:
    """The body of a push to ``balances``: the list without a member around it.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    try:
        body = _balance_list.decode(message.data)
    except msgspec.ValidationError:
        return _unusual_balances(message, message.data)
    except DecodeErrors as error:
        raise _unreadable(error, message.data, "the balances") from None
    found = _to_balances(body)
    return found if found is not None else _unusual_balances(message, message.data)


def _to_balances(balances: list[_Balance]) -> tuple[Balance, ...] | None:
    """The balances; None if one can't be read."""
    # Accounts have hundreds of assets: amounts are decoded here without a call.
    result = []
    for balance in balances:
        total, locked = bytes(balance.total).strip(b'"'), bytes(balance.locked).strip(b'"')
        is_known = locked not in MISSING
        if not AMOUNT.fullmatch(total) or (is_known and not AMOUNT.fullmatch(locked)):
            return None
        result.append(
            Balance(
                balance.asset,
                Decimal(total.decode()),
                Decimal(locked.decode()) if is_known else None,
            )
        )
    return tuple(result)


def _unusual_balances(message: Inbound, raw: msgspec.Raw) -> tuple[Balance, ...]:
    """Balances of which some can't be read. One whose asset is unknown is left out."""
    entries = values.entries(bytes(raw))
    if entries is None:
        if is_missing(raw):
            raise ProtocolError("the balances has no data")
        raise ProtocolError("the balances has another shape than documented: it is no list")
    places: list[str] = []
    balances = []
    for index, entry in enumerate(entries):
        members = Members.of(bytes(entry), places, f"balances[{index}].")
        asset = members.identifier("asset") if members is not None else None
        if members is None or asset is None:
            places.append(f"balances[{index}]")
        else:
            balances.append(_unusual_balance(asset, members))
    _note(message, places)
    return tuple(balances)


def _unusual_balance(asset: str, members: Members) -> Balance:
    amounts: dict[str, Decimal | None] = {}
    total = members.read("total", values.amount)
    if total is not None:
        amounts["total"] = total
    elif not members.unreadable or members.unreadable[-1] != f"{members.place}total":
        members.unreadable.append(f"{members.place}total")  # It is missing.
    locked = bytes(members.values.get("locked", NOTHING))
    if locked in MISSING or locked == EMPTY:
        amounts["locked"] = None
    elif (amount := members.read("locked", values.amount)) is not None:
        amounts["locked"] = amount
    if total is not None and "locked" in amounts:
        return Balance(asset, total, amounts["locked"])
    return UnreadableBalance(asset, amounts)


def decode_estimate(message: Inbound) -> SwapEstimate:
    """The body of a reply to ``estimate``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    try:
        body = _estimate.decode(message.data)
    except DecodeErrors:
        return _unusual_estimate(message)
    route = body.route or ()
    raws = [body.price, body.expected_out]
    for step in route:
        raws += step.amount_in, step.amount_out
    has_fee = bytes(body.fee) not in MISSING
    amounts = _to_amounts([*raws, body.fee] if has_fee else raws)
    milliseconds = body.expires_at
    is_usual = milliseconds is None or EARLIEST <= milliseconds <= EXACT_AS_FLOAT
    if amounts is None or not is_usual:
        return _unusual_estimate(message)
    fee = amounts.pop() if has_fee else None
    price, expected_out, *of_steps = amounts
    steps = (
        RouteStep(step.from_asset, step.to_asset, *two, step.pool or None, step.exchange or None)
        for step, two in zip(route, zip(of_steps[::2], of_steps[1::2], strict=True), strict=True)
    )
    at = None if milliseconds is None else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    return SwapEstimate(tuple(steps), price, expected_out, fee, at)


def _to_amounts(raws: list[msgspec.Raw]) -> list[Decimal] | None:
    """The amounts; None if one of them is missing or unusual."""
    amounts = []
    for raw in raws:
        digits = bytes(raw).strip(b'"')
        if not AMOUNT.fullmatch(digits):
            return None
        amounts.append(Decimal(digits.decode()))
    return amounts


def _unusual_estimate(message: Inbound) -> SwapEstimate:
    places: list[str] = []
    members = _members(message.data, places, "the estimate")
    estimate = SwapEstimate(
        route=_route(members),
        price=members.require("price", values.amount, "the estimate"),
        expected_out=members.require("expectedOut", values.amount, "the estimate"),
        fee=members.read("fee", values.amount),
        expires_at=members.read("expiresAt", values.time),
    )
    _note(message, places)
    return estimate


def _route(members: Members) -> tuple[RouteStep, ...]:
    steps = []
    for index, raw in enumerate(members.read("route", values.entries) or ()):
        step = Members.of(bytes(raw), members.unreadable, f"route[{index}].")
        if step is None:
            members.unreadable.append(f"route[{index}]")
        else:
            steps.append(_to_step(step))
    return tuple(steps)


def _to_step(step: Members) -> RouteStep:
    # One of the broker's documents has the names in camel case.
    return RouteStep(
        from_asset=step.read(("from_asset", "fromAsset"), values.text),
        to_asset=step.read(("to_asset", "toAsset"), values.text),
        amount_in=step.read(("amount_in", "amountIn"), values.amount),
        amount_out=step.read(("amount_out", "amountOut"), values.amount),
        pool=step.read("pool", values.identifier),
        exchange=step.read("exchange", values.identifier),
    )


def decode_receipt(message: Inbound, client_order_id: str) -> SwapReceipt:
    """The body of a reply to ``swap``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    try:
        body = _receipt.decode(message.data)
    except msgspec.ValidationError:
        return _unusual_receipt(message, client_order_id)
    except DecodeErrors as error:
        raise _unreadable(error, message.data, "the swap's receipt") from None
    if not body.order_id:
        raise ProtocolError("orderId of the swap's receipt is empty")
    return SwapReceipt(
        order_id=body.order_id,
        status=_status(body.status) if body.status else None,
        client_order_id=client_order_id,
    )


def _unusual_receipt(message: Inbound, client_order_id: str) -> SwapReceipt:
    places: list[str] = []
    members = _members(message.data, places, "the swap's receipt")
    order_id = members.require("orderId", values.identifier, "the swap's receipt")
    status = members.read("status", values.text)
    _note(message, places)
    return SwapReceipt(order_id, _status(status) if status else None, client_order_id)


def usual_order(
    body: UsualOrder, order_id: str | None, client_order_id: str | None
) -> Order | None:
    """The order of a usual push, as `decode_order` makes it. None if that must decide.

    The ids are those that the body may leave out. It must not name another order.
    """
    # This runs for each push.
    amount, filled = None, body.filled_out
    if filled is not None:
        if not _is_amount(filled):
            return None
        amount = Decimal(filled)
    if body.order_id and body.order_id != order_id:
        return None
    milliseconds = body.updated_at
    return Order(  # By position: it takes two thirds of the time.
        order_id,
        body.status,
        amount,
        body.tx_hash,
        None if milliseconds is None else _from_timestamp(milliseconds / 1000, _UTC),
        body.client_order_id or client_order_id,
    )


def decode_order(
    message: Inbound, order_id: str | None = None, client_order_id: str | None = None
) -> Order:
    """The body of a reply to ``order_status``, or of a push to ``orders:<id>``.

    Raises:
        ProtocolError: The body isn't as documented.
    """
    try:
        body = _order.decode(message.data)
    except msgspec.ValidationError:
        return _unusual_order(message, order_id, client_order_id)
    except DecodeErrors as error:
        raise _unreadable(error, message.data, "the order") from None
    named, status = body.order_id or order_id, body.status
    if order_id is not None and named != order_id:
        client_order_id = None
    amount, filled = None, body.filled_out
    if filled is not None:
        if not _is_amount(filled):
            return _unusual_order(message, order_id, client_order_id)
        amount = Decimal(filled)
    at, milliseconds = None, body.updated_at
    if milliseconds is not None:
        if not EARLIEST <= milliseconds <= EXACT_AS_FLOAT:
            return _unusual_order(message, order_id, client_order_id)
        at = _from_timestamp(milliseconds / 1000, _UTC)
    if not status:
        raise ProtocolError("status of the order is empty")
    return Order(
        order_id=named,
        status=_status(status),
        filled_out=amount,
        tx_hash=body.tx_hash,
        updated_at=at,
        client_order_id=body.client_order_id or client_order_id,
    )


def _unusual_order(message: Inbound, order_id: str | None, client_order_id: str | None) -> Order:
    places: list[str] = []
    members = _members(message.data, places, "the order")
    status = members.require("status", values.text, "the order")
    named = members.identifier("orderId") or order_id
    if order_id is not None and named != order_id:
        client_order_id = None
    order = Order(
        order_id=named,
        status=_status(status),
        filled_out=members.read("filledOut", values.amount),
        tx_hash=members.read("txHash", values.text),
        updated_at=members.read("updatedAt", values.time),
        client_order_id=members.identifier("clientOrderId") or client_order_id,
    )
    _note(message, places)
    return order


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
    return None if is_missing(message.data) else _decode(_anything, message.data, "the push")


def order_names(message: Inbound, text: str = "") -> tuple[str | None, str | None]:
    """The ids of the order that a reply names, in its body, or beside it in the message's text.

    Returns:
        Its order id and its client order id, each None if it isn't named.
    """
    order_id, client_order_id = _order_names(message.data)
    if order_id is None or client_order_id is None:
        beside = _order_names(text.encode())
        return order_id or beside[0], client_order_id or beside[1]
    return order_id, client_order_id


def _order_names(raw: msgspec.Raw | bytes) -> tuple[str | None, str | None]:
    try:
        names = _names.decode(raw)
    except msgspec.ValidationError:
        members = Members.of(bytes(raw), [])
        if members is None:
            return None, None
        return members.identifier("orderId"), members.identifier("clientOrderId")
    except DecodeErrors:
        return None, None
    return names.order_id or None, names.client_order_id or None


# The broker's documents and other clients spell some statuses differently.
_STATUSES: Final[Mapping[str, OrderStatus]] = {
    **{status.value: status for status in OrderStatus},
    "CANCELED": OrderStatus.CANCELLED,
    "PARTIAL_FILLED": OrderStatus.PARTIAL,
}


def _status(text: str) -> OrderStatus | str:
    return _STATUSES.get(text.strip().upper(), text)
