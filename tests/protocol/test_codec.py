from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_broker._protocol import codec
from trio_broker.exceptions import MessageTooLargeError, ProtocolError, UnreadableError
from trio_broker.models import Balance, Order, OrderStatus, RouteStep, SwapEstimate, SwapReceipt

SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in '<>&"\\')


def message(data: Any) -> codec.Inbound:
    return codec.decode_message(json.dumps({"op": "x", "data": data}))


def raw(data: str) -> codec.Inbound:
    return codec.decode_message(f'{{"op":"x","data":{data}}}')


# --- Out -------------------------------------------------------------------------------------


def test_text_that_every_json_encoder_encodes_alike_is_accepted() -> None:
    assert codec.check_text(SAFE, "it") == SAFE


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
def test_other_texts_are_rejected_with_their_place(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        codec.check_text(text, "it")


def test_value_other_than_text_is_rejected() -> None:
    text: Any = b"bytes"
    with pytest.raises(TypeError, match="it must be a str, not bytes"):
        codec.check_text(text, "it")


@given(
    st.dictionaries(
        st.text(SAFE, min_size=1),
        st.text(SAFE) | st.integers(-(2**53), 2**53) | st.lists(st.text(SAFE)),
    )
)
def test_body_is_compact_and_sorted_json(body: dict[str, Any]) -> None:
    text = codec.encode_body(body)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text) == body


def test_messages_look_as_documented() -> None:
    assert codec.channel_frame("subscribe", "balances") == '{"op":"subscribe","ch":"balances"}'
    assert codec.signed_frame("balances", "", 5, "n", "ab") == (
        '{"op":"balances","ts":5,"nonce":"n","sig":"ab"}'
    )
    assert codec.signed_frame("order_status", '{"id":"a"}', 5, "n", "ab") == (
        '{"op":"order_status","ts":5,"nonce":"n","sig":"ab","data":{"id":"a"}}'
    )
    assert json.loads(codec.auth_frame('k"é', 5, "n", "ab")) == {
        "op": "auth",
        "key": 'k"é',
        "ts": 5,
        "nonce": "n",
        "sig": "ab",
    }


@pytest.mark.parametrize(
    ("op", "body", "channel"),
    [("swap", "{}", None), ("balances", "", None), ("subscribe", "", "balances")],
)
def test_size_of_a_message_is_known_before_it_is_signed(
    op: str, body: str, channel: str | None
) -> None:
    if channel is not None:
        frame = codec.channel_frame(op, channel)
    else:
        frame = codec.signed_frame(op, body, 1732526400000, "1" * 40, "f" * 64)
    codec.check_size(op, body, channel, len(frame))
    with pytest.raises(MessageTooLargeError) as caught:
        codec.check_size(op, body, channel, len(frame) - 1)
    assert (caught.value.size, caught.value.limit) == (len(frame), len(frame) - 1)


# --- Envelopes -------------------------------------------------------------------------------


def test_envelope_is_decoded_and_its_body_stays_text() -> None:
    found = codec.decode_message(
        '{"op":"x","ch":"c","nonce":["any"],"error":"e","data": {"a": 1.50} ,"new":{"b":[]}}'
    )
    assert (found.op, found.ch, found.nonce, found.error) == ("x", "c", ["any"], "e")
    assert bytes(found.data) == b'{"a": 1.50}'
    nothing = codec.decode_message('{"op":null,"ch":null,"error":null}')
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
        ('"hush"', "another shape"),
        ('{"op":5,"hush}', "malformed"),
        ('{"data":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"nonce":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_error_of_an_unreadable_message_does_not_quote_it(text: str, reason: str) -> None:
    with pytest.raises((ProtocolError, codec.MalformedError), match=reason) as caught:
        codec.decode_message(text)
    assert "hush" not in str(caught.value)


@given(st.text(max_size=40) | st.text('{}[]":,0123456789.eopch\\u', max_size=40))
def test_every_text_is_a_message_or_a_protocol_error(text: str) -> None:
    for decode in (codec.decode_message, lambda text: codec.decode_anything(raw(text))):
        try:
            decode(text)
        except (ProtocolError, codec.MalformedError):
            continue


# --- Bodies ----------------------------------------------------------------------------------


def test_balances_are_decoded_from_replies_and_pushes() -> None:
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
    assert codec.decode_balances(message({"balances": body})) == balances
    assert codec.decode_balances_push(message(body)) == balances
    assert str(balances[0].total) == "101.230"


def test_estimate_is_decoded_with_both_spellings_of_steps() -> None:
    estimate = codec.decode_estimate(
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
    assert codec.decode_estimate(message({"price": 1, "expectedOut": 2})) == bare
    nulls = {"price": 1, "expectedOut": 2, "route": None, "fee": None, "expiresAt": None}
    assert codec.decode_estimate(message(nulls)) == bare


_amounts: st.SearchStrategy[Any] = st.sampled_from(
    ["1", 2, "2.50", "-3", None, "", "NaN", "1e3", 1.5, "9" * 101, {}, True]
)
_texts: st.SearchStrategy[Any] = st.sampled_from(["ETH", "", None, 5, []])
_steps = st.fixed_dictionaries(
    {},
    optional={
        "from_asset": _texts, "fromAsset": _texts, "to_asset": _texts, "toAsset": _texts,
        "amount_in": _amounts, "amountIn": _amounts, "amount_out": _amounts,
        "pool": _texts, "exchange": _texts,
    },
)  # fmt: skip
_usual_step = st.fixed_dictionaries(
    {name: st.just("ETH") for name in ("from_asset", "to_asset", "pool", "exchange")}
    | {name: st.sampled_from(["1", 2, "2.50"]) for name in ("amount_in", "amount_out")}
)


@given(
    data=st.fixed_dictionaries(
        {"price": st.just("2.50") | _amounts, "expectedOut": st.just("5") | _amounts},
        optional={
            "fee": _amounts,
            "route": st.lists(_usual_step | _steps | st.none(), max_size=3) | st.none(),
            "expiresAt": st.sampled_from([1732526402001, 4 * 10**12 + 1, "1732526402001", 5, None]),
        },
    )
)
def test_usual_estimates_are_decoded_as_unusual_ones(data: dict[str, Any]) -> None:
    results: list[object] = []
    for decode in (codec.decode_estimate, codec._unusual_estimate):
        envelope = message(data)
        try:
            results.append((decode(envelope), envelope.unreadable))
        except ProtocolError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_receipt_is_decoded() -> None:
    full = codec.decode_receipt(message({"orderId": "o1", "status": "PENDING"}), "c1")
    assert full == SwapReceipt("o1", OrderStatus.PENDING, "c1")
    assert codec.decode_receipt(message({"orderId": "o1"}), "c1") == SwapReceipt("o1", None, "c1")
    for empty in ({"orderId": ""}, {"orderId": "", "status": 5}):
        with pytest.raises(ProtocolError, match="orderId of the swap's receipt is"):
            codec.decode_receipt(message(empty), "c1")


def test_order_is_decoded() -> None:
    full = {
        "orderId": "o1",
        "status": "FILLED",
        "filledOut": "3245.67",
        "txHash": "0xabc",
        "updatedAt": 1732526402000,
        "clientOrderId": "c1",
    }
    at = dt.datetime(2024, 11, 25, 9, 20, 2, tzinfo=dt.UTC)
    assert codec.decode_order(message(full)) == Order(
        "o1", OrderStatus.FILLED, Decimal("3245.67"), "0xabc", at, "c1"
    )
    assert codec.decode_order(message({"status": "odd"})) == Order(None, "odd")


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
def test_status_is_case_insensitive(text: str, status: str) -> None:
    found = codec.decode_order(message({"status": text})).status
    assert found == status
    assert type(found) is type(status)


def test_only_one_status_authenticates() -> None:
    codec.decode_authenticated(message({"status": "authenticated"}))
    for other in ({"status": "pending"}, {}, {"status": None}):
        with pytest.raises(ProtocolError, match="neither a refusal nor"):
            codec.decode_authenticated(message(other))


def test_push_to_an_unknown_channel_has_exact_numbers() -> None:
    assert codec.decode_anything(raw('{"a":[1,1.10,"x",null,true]}')) == {
        "a": [1, Decimal("1.10"), "x", None, True]
    }
    assert codec.decode_anything(raw("null")) is None
    assert codec.decode_anything(codec.decode_message("{}")) is None


def decode_receipt(found: codec.Inbound) -> Any:
    return codec.decode_receipt(found, "c1")


ESTIMATE: dict[str, Any] = {"price": "1", "expectedOut": "1"}


@pytest.mark.parametrize(
    ("decode", "body", "reason"),
    [
        (codec.decode_balances, {}, "no data"),
        (codec.decode_balances, {"balances": None}, "no data"),
        (codec.decode_balances, {"balances": {}}, "another shape"),
        (codec.decode_balances, [], "another shape"),
        (codec.decode_balances_push, {"asset": "A"}, "another shape"),
        (codec.decode_estimate, {"price": "1"}, "expectedOut of the estimate"),
        (codec.decode_estimate, {"expectedOut": "1"}, "price of the estimate"),
        (codec.decode_estimate, {**ESTIMATE, "price": "NaN"}, "price of the estimate"),
        (codec.decode_estimate, {**ESTIMATE, "expectedOut": {}}, "expectedOut of the estimate"),
        (codec.decode_estimate, [], "another shape"),
        (decode_receipt, {"status": "PENDING"}, "orderId of the swap's receipt"),
        (decode_receipt, {"orderId": {}}, "orderId of the swap's receipt"),
        (decode_receipt, {"orderId": 1.5}, "orderId of the swap's receipt"),
        (decode_receipt, [], "another shape"),
        (codec.decode_order, {"orderId": "o1"}, "status of the order"),
        (codec.decode_order, {"status": 5}, "status of the order"),
        (codec.decode_order, {"status": ""}, "status of the order"),
        (codec.decode_order, {"status": "", "filledOut": []}, "status of the order"),
        (codec.decode_order, {"status": None}, "status of the order"),
        (codec.decode_order, "text", "another shape"),
        (codec.decode_authenticated, True, "another shape"),
    ],
)
def test_error_of_a_wrong_body_names_the_place(
    decode: Callable[[codec.Inbound], Any], body: Any, reason: str
) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode(message(body))


@pytest.mark.parametrize(
    "decode",
    [
        codec.decode_balances,
        codec.decode_balances_push,
        codec.decode_estimate,
        decode_receipt,
        codec.decode_order,
        codec.decode_authenticated,
    ],
)
def test_missing_body_is_rejected(decode: Callable[[codec.Inbound], Any]) -> None:
    for text in ('{"op":"x"}', '{"op":"x","data":null}'):
        with pytest.raises(ProtocolError, match="has no data"):
            decode(codec.decode_message(text))


def total(text: str) -> Decimal:
    (balance,) = codec.decode_balances_push(raw(f'[{{"asset":"A","total":{text}}}]'))
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
        ('"' + "9" * 100 + '"', "9" * 100),
        (str(2**256 - 1), str(2**256 - 1)),
        ('"0.' + "0" * 99 + '1"', "1E-100"),
        ("1e99", "1E+99"),
        ("123456789012345678901234567890.123456789", "123456789012345678901234567890.123456789"),
    ],
)
def test_amount_is_exactly_its_text(text: str, amount: str) -> None:
    assert str(total(text)) == amount


@pytest.mark.parametrize(
    "text",
    [
        *['"NaN"', '"Infinity"', '"-Infinity"', '"sNaN"', "1e999999999", '"1e-999"', '"1_000"'],
        *['""', '" 1"', '"1 "', '"1."', '".5"', '"+1"', '"0x1"', '"٣"', '"\\u0031"'],
        *[
            "9" * 101,
            '"0.' + "0" * 100 + '1"',
            '"1' + "0" * 1000 + '"',
            "1e100",
            "0e999",
            "1.1e-100",
        ],
        *["true", "null", "[1]", "{}"],
    ],
)
def test_amount_must_be_a_finite_decimal_of_limited_length(text: str) -> None:
    with pytest.raises(UnreadableError, match="the total that the broker sent for 'A'"):
        total(text)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=18, max_value=10**30))
def test_amount_survives_a_round_trip(amount: Decimal) -> None:
    if abs(amount) < 10**30:
        assert total(f'"{amount:f}"') == total(f"{amount:f}") == amount


def test_reply_has_the_order_id_that_it_names() -> None:
    both = {"orderId": "o1", "clientOrderId": "c1"}
    assert codec.order_names(message(both)) == ("o1", "c1")
    assert codec.order_names(message({"orderId": "o1", "clientOrderId": ""})) == ("o1", None)
    assert codec.order_names(message({"orderId": 5, "clientOrderId": {}})) == ("5", None)
    bodies: list[Any] = [{}, {"orderId": None}, {"orderId": ""}, {"orderId": []}, [], "text", None]
    for nameless in bodies:
        assert codec.order_names(message(nameless)) == (None, None)
    assert codec.order_names(codec.decode_message("{}")) == (None, None)


@given(st.integers(min_value=10**11, max_value=10**14))
def test_times_are_exact_to_the_millisecond(milliseconds: int) -> None:
    text = json.dumps({"ch": "orders:1", "data": {"status": "X", "updatedAt": milliseconds}})
    expected = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=milliseconds)
    assert codec.decode_order(codec.decode_message(text)).updated_at == expected
