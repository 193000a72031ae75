from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_broker import wire
from trio_broker.exceptions import ProtocolError
from trio_broker.models import Balance, Order, OrderStatus, RouteStep, SwapEstimate, SwapReceipt

SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in '<>&"\\')


def message(data: Any) -> wire.Inbound:
    return wire.decode_message(json.dumps({"op": "x", "data": data}))


def raw(data: str) -> wire.Inbound:
    return wire.decode_message(f'{{"op":"x","data":{data}}}')


# --- Out -------------------------------------------------------------------------------------


def test_a_text_that_every_printer_prints_alike_can_be_sent() -> None:
    assert wire.check_text(SAFE, "it") == SAFE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it must not be empty"),
        ("ab<", r"U\+003C at 2"),
        (">", r"U\+003E at 0"),
        ("&", r"U\+0026"),
        ('"', r"U\+0022"),
        ("\\", r"U\+005C"),
        ("\n", r"U\+000A"),
        ("\x7f", r"U\+007F"),
        ("ü", r"U\+00FC"),
        ("\U0001f600", r"U\+1F600"),
        ("\ud800", r"U\+D800"),
    ],
)
def test_any_other_text_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        wire.check_text(text, "it")


def test_what_is_no_text_is_refused() -> None:
    text: Any = b"bytes"
    with pytest.raises(TypeError, match="it must be a str, not bytes"):
        wire.check_text(text, "it")


@given(
    st.dictionaries(
        st.text(SAFE, min_size=1),
        st.text(SAFE) | st.integers(-(2**53), 2**53) | st.lists(st.text(SAFE)),
    )
)
def test_a_body_is_compact_sorted_and_survives_another_printer(body: dict[str, Any]) -> None:
    text = wire.encode_body(body)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text) == body


def test_messages_look_as_documented() -> None:
    assert wire.channel_frame("subscribe", "balances") == '{"op":"subscribe","ch":"balances"}'
    assert wire.signed_frame("balances", "", 5, "n", "ab") == (
        '{"op":"balances","ts":5,"nonce":"n","sig":"ab"}'
    )
    assert wire.signed_frame("order_status", '{"id":"a"}', 5, "n", "ab") == (
        '{"op":"order_status","ts":5,"nonce":"n","sig":"ab","data":{"id":"a"}}'
    )
    assert json.loads(wire.auth_frame('k"é', 5, "n", "ab")) == {
        "op": "auth",
        "key": 'k"é',
        "ts": 5,
        "nonce": "n",
        "sig": "ab",
    }


def test_the_size_of_a_message_is_known_before_it_is_signed() -> None:
    frame = wire.signed_frame("swap", "{}", 1732526400000, "1" * 40, "f" * 64)
    assert wire.frame_size("swap", "{}", None) == len(frame)
    assert wire.frame_size("subscribe", "", "balances") == len(
        wire.channel_frame("subscribe", "balances")
    )


# --- Envelopes -------------------------------------------------------------------------------


def test_an_envelope_is_read_and_its_body_kept_as_text() -> None:
    found = wire.decode_message(
        '{"op":"x","ch":"c","nonce":["any"],"error":"e","data": {"a": 1.50} ,"new":{"b":[]}}'
    )
    assert (found.op, found.ch, found.nonce, found.error) == ("x", "c", ["any"], "e")
    assert bytes(found.data) == b'{"a": 1.50}'
    nothing = wire.decode_message('{"op":null,"ch":null,"error":null}')
    assert (nothing.op, nothing.ch, nothing.error, bytes(nothing.data)) == (None, None, None, b"")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "malformed"),
        ("{", "malformed"),
        ("hush", "malformed"),
        ('{"op":"x"} hush', "malformed"),
        ('{"data":NaN}', "malformed"),
        ('{"op":"\\ud800"}', "malformed"),
        ('{"op":"\ud800"}', "malformed"),
        ("[]", "another shape"),
        ("null", "another shape"),
        ('{"op":5}', r"another shape.*\$\.op"),
        ('{"error":{"hush":1}}', r"another shape.*\$\.error"),
        ('{"ch":["hush"]}', r"another shape.*\$\.ch"),
        ('{"data":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"nonce":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused_without_its_text(text: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason) as caught:
        wire.decode_message(text)
    assert "hush" not in str(caught.value)


@given(st.text(max_size=40) | st.text('{}[]":,0123456789.eopch\\u', max_size=40))
def test_any_text_is_a_message_or_a_protocol_error(text: str) -> None:
    for decode in (wire.decode_message, lambda text: wire.decode_anything(raw(text))):
        try:
            decode(text)
        except ProtocolError:
            continue


# --- Bodies ----------------------------------------------------------------------------------


def test_balances_are_read_from_a_reply_and_from_a_push() -> None:
    body = [
        {"asset": "USDT", "total": "101.230", "locked": "0"},
        {"asset": "ETH", "total": 5, "new": True},
        {"asset": "BTC", "total": "1", "locked": None},
    ]
    balances = (
        Balance("USDT", Decimal("101.230"), Decimal(0)),
        Balance("ETH", Decimal(5)),
        Balance("BTC", Decimal(1)),
    )
    assert wire.decode_balances(message({"balances": body})) == balances
    assert wire.decode_balances_push(message(body)) == balances
    assert str(balances[0].total) == "101.230"


def test_an_estimate_is_read_with_steps_of_either_spelling() -> None:
    estimate = wire.decode_estimate(
        message(
            {
                "route": [
                    {
                        "from_asset": "ETH",
                        "to_asset": "USDC",
                        "amount_in": "1",
                        "amount_out": 2,
                        "pool": "p",
                        "exchange": "x",
                    },
                    {"fromAsset": "USDC", "toAsset": "USDT", "amountIn": "3", "amountOut": "4"},
                    {"amount_in": None},
                ],
                "price": "2.50",
                "expectedOut": "250",
                "fee": "0.1",
                "expiresAt": 1732526402001,
            }
        )
    )
    assert estimate == SwapEstimate(
        route=(
            RouteStep("ETH", "USDC", Decimal(1), Decimal(2), "p", "x"),
            RouteStep("USDC", "USDT", Decimal(3), Decimal(4)),
            RouteStep(),
        ),
        price=Decimal("2.50"),
        expected_out=Decimal(250),
        fee=Decimal("0.1"),
        expires_at=dt.datetime(2024, 11, 25, 9, 20, 2, 1000, tzinfo=dt.UTC),
    )
    bare = SwapEstimate((), Decimal(1), Decimal(2))
    assert wire.decode_estimate(message({"price": 1, "expectedOut": 2})) == bare
    nulls = {"price": 1, "expectedOut": 2, "route": None, "fee": None, "expiresAt": None}
    assert wire.decode_estimate(message(nulls)) == bare


def test_a_receipt_is_read() -> None:
    full = wire.decode_receipt(message({"orderId": "o1", "status": "PENDING"}), "c1")
    assert full == SwapReceipt("o1", OrderStatus.PENDING, "c1")
    assert wire.decode_receipt(message({"orderId": "o1"}), "c1") == SwapReceipt("o1", None, "c1")
    with pytest.raises(ProtocolError, match="orderId is empty"):
        wire.decode_receipt(message({"orderId": ""}), "c1")


def test_an_order_is_read() -> None:
    full = {
        "orderId": "o1",
        "status": "FILLED",
        "filledOut": "3245.67",
        "txHash": "0xabc",
        "updatedAt": 1732526402000,
        "clientOrderId": "c1",
    }
    at = dt.datetime(2024, 11, 25, 9, 20, 2, tzinfo=dt.UTC)
    assert wire.decode_order(message(full)) == Order(
        "o1", OrderStatus.FILLED, Decimal("3245.67"), "0xabc", at, "c1"
    )
    assert wire.decode_order(message({"status": "odd"})) == Order(None, "odd")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        *[(status.value, status) for status in OrderStatus],
        ("filled", OrderStatus.FILLED),
        ("Canceled", OrderStatus.CANCELLED),
        ("PARTIAL_FILLED", OrderStatus.PARTIAL),
        ("Waiting for Godot", "Waiting for Godot"),
    ],
)
def test_a_status_is_known_without_regard_to_case(text: str, status: str) -> None:
    found = wire.decode_order(message({"status": text})).status
    assert found == status
    assert type(found) is type(status)


def test_authentication_is_one_word() -> None:
    wire.decode_authenticated(message({"status": "authenticated"}))
    for other in ({"status": "pending"}, {}, {"status": None}):
        with pytest.raises(ProtocolError, match="neither a refusal nor"):
            wire.decode_authenticated(message(other))


def test_a_push_to_an_unknown_channel_keeps_its_numbers_exact() -> None:
    assert wire.decode_anything(raw('{"a":[1,1.10,"x",null,true]}')) == {
        "a": [1, Decimal("1.10"), "x", None, True]
    }
    assert wire.decode_anything(raw("null")) is None
    assert wire.decode_anything(wire.decode_message("{}")) is None


def decode_receipt(found: wire.Inbound) -> Any:
    return wire.decode_receipt(found, "c1")


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (wire.decode_balances, {}),
        (wire.decode_balances, {"balances": [{"asset": "A"}]}),
        (wire.decode_balances, {"balances": [{"total": "1"}]}),
        (wire.decode_balances, {"balances": [{"asset": 1, "total": "1"}]}),
        (wire.decode_balances_push, {"asset": "A"}),
        (wire.decode_estimate, {"price": "1"}),
        (wire.decode_estimate, {"expectedOut": "1"}),
        (wire.decode_estimate, {"price": "1", "expectedOut": "1", "expiresAt": "soon"}),
        (wire.decode_estimate, {"price": "1", "expectedOut": "1", "route": {}}),
        (decode_receipt, {"status": "PENDING"}),
        (decode_receipt, []),
        (wire.decode_order, {"orderId": "o1"}),
        (wire.decode_order, {"status": 5}),
        (wire.decode_order, "text"),
        (wire.decode_authenticated, True),
    ],
)
def test_a_body_of_another_shape_is_refused_by_its_place(
    decode: Callable[[wire.Inbound], Any], body: Any
) -> None:
    with pytest.raises(ProtocolError, match="another shape than documented"):
        decode(message(body))


@pytest.mark.parametrize(
    "decode",
    [
        wire.decode_balances,
        wire.decode_balances_push,
        wire.decode_estimate,
        decode_receipt,
        wire.decode_order,
        wire.decode_authenticated,
    ],
)
def test_a_body_that_is_missing_is_refused(decode: Callable[[wire.Inbound], Any]) -> None:
    for text in ('{"op":"x"}', '{"op":"x","data":null}'):
        with pytest.raises(ProtocolError, match="has no data"):
            decode(wire.decode_message(text))


def total(text: str) -> Decimal:
    (balance,) = wire.decode_balances_push(raw(f'[{{"asset":"A","total":{text}}}]'))
    return balance.total


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("5", "5"),
        ('"5.10"', "5.10"),
        ("0.1", "0.1"),
        ("-1", "-1"),
        ("1e3", "1E+3"),
        ('"1E-18"', "1E-18"),
        ('"' + "9" * 60 + '"', "9" * 60),
        ("123456789012345678901234567890.123456789", "123456789012345678901234567890.123456789"),
    ],
)
def test_an_amount_is_taken_at_its_text(text: str, amount: str) -> None:
    assert str(total(text)) == amount


@pytest.mark.parametrize(
    "text",
    [
        *['"NaN"', '"Infinity"', '"-Infinity"', '"sNaN"', "1e999999999", '"1e-999"', '"1_000"'],
        *['""', '" 1"', '"1 "', '"1."', '".5"', '"+1"', '"0x1"', '"٣"', '"\\u0031"'],
        *["9" * 61, '"0.' + "0" * 60 + '1"', '"1' + "0" * 1000 + '"', "true", "null", "[1]", "{}"],
    ],
)
def test_what_is_no_finite_decimal_of_sane_length_is_no_amount(text: str) -> None:
    with pytest.raises(ProtocolError, match="total isn't a finite decimal of sane length"):
        total(text)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=18, max_value=10**30))
def test_an_amount_comes_back_as_it_went(amount: Decimal) -> None:
    if abs(amount) < 10**30:
        assert total(f'"{amount:f}"') == total(f"{amount:f}") == amount


@pytest.mark.parametrize("milliseconds", [10**18, -(10**18), 253402300800000])
def test_a_time_beyond_all_calendars_is_refused(milliseconds: int) -> None:
    with pytest.raises(ProtocolError, match="updatedAt isn't a time in milliseconds"):
        wire.decode_order(message({"status": "FILLED", "updatedAt": milliseconds}))


def test_a_reply_says_which_order_it_speaks_of_where_it_does() -> None:
    both = {"orderId": "o1", "clientOrderId": "c1"}
    assert wire.order_names(message(both)) == ("o1", "c1")
    assert wire.order_names(message({"orderId": "o1", "clientOrderId": ""})) == ("o1", None)
    bodies: list[Any] = [{}, {"orderId": None}, {"orderId": ""}, {"orderId": 5}, [], "text", None]
    for nameless in bodies:
        assert wire.order_names(message(nameless)) == (None, None)
    assert wire.order_names(wire.decode_message("{}")) == (None, None)


@given(st.integers(min_value=-(10**13), max_value=10**14))
def test_times_are_exact_to_the_millisecond(milliseconds: int) -> None:
    text = json.dumps({"ch": "orders:1", "data": {"status": "X", "updatedAt": milliseconds}})
    expected = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=milliseconds)
    assert wire.decode_order(wire.decode_message(text)).updated_at == expected
