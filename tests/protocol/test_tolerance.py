"""What is kept of a message with parts that can't be read."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from trio_broker._protocol import codec, values
from trio_broker._redactor import Redactor
from trio_broker._secret import Secret
from trio_broker.exceptions import ProtocolError, UnreadableError
from trio_broker.models import Balance, Order, OrderStatus, RouteStep, SwapReceipt

AT = dt.datetime(2024, 11, 25, 9, 20, 2, tzinfo=dt.UTC)
MILLISECONDS = 1732526402000


def raw(data: str) -> codec.Inbound:
    return codec.decode_message(f'{{"op":"x","data":{data}}}')


def message(data: Any) -> codec.Inbound:
    return raw(json.dumps(data))


# --- Envelopes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "error", "code"),
    [
        ('"error":"no"', "no", None),
        ('"error":"no","code":"A_B"', "no", "A_B"),
        ('"error":"no","code":404', "no", "404"),
        ('"error":"no","code":[]', "no", None),
        ('"error":"no","code":true', "no", None),
        ('"error":"no","code":' + "9" * 5000, "no", None),
        ('"error":{"code":"A_B","message":"no"}', "no", "A_B"),
        ('"error":{"Code":"A_B","Message":"no"}', "no", "A_B"),
        ('"error":{"code":-32000,"message":"no"}', "no", "-32000"),
        ('"error":{"code":"A_B"}', "A_B", "A_B"),
        ('"error":{"code":"A_B","message":null}', "A_B", "A_B"),
        ('"error":{"message":"no"}', "no", None),
        ('"error":{"msg":"no"}', "no", None),
        ('"error":{"error":{"message":"no","code":"A"}}', "no", "A"),
        ('"error":{"code":"A_B","message":{"reason":"no"}}', "no", "A_B"),
        ('"error":{"why":[1,2]}', '{"why":[1,2]}', None),
        ('"error":["no","way"]', "no; way", None),
        ('"error":[{"code":"A","message":"no"},"way"]', "no; way", "A"),
        ('"error":500', "500", None),
        ('"error":1.5', "1.5", None),
        ('"error":true', "true", None),
        ('"error":true,"message":"no","code":"A"', "no", "A"),
        ('"error":true,"data":{"code":"A","message":"no"}', "no", "A"),
        ('"op":"error","error":"no"', "no", None),
        ('"op":"ERROR","error":"no"', "no", None),
        ('"op":"error","message":"no","code":"A"', "no", "A"),
        ('"op":"error","data":"no"', "no", None),
        ('"op":"error","data":{"code":"A","message":"no"}', "no", "A"),
        ('"op":"error"', "an error without a text", None),
        ('"op":["x"],"error":"no"', "no", None),
        ('"op":5,"error":"no"', "no", None),
        ('"error":' + "9" * 5000, "an error that can't be read", None),
        *((f'"error":{nothing}', None, None) for nothing in ("{}", "[]", "false", "0", "null")),
    ],
)
def test_error_in_any_form_has_text_and_code(
    members: str, error: str | None, code: str | None
) -> None:
    found = codec.decode_message(f"{{{members}}}")
    assert (found.op, found.error, found.code) == (None, error, code)


def test_error_object_names_its_order() -> None:
    found = codec.decode_message('{"error":{"message":"no","orderId":7,"clientOrderId":"c1"}}')
    assert codec.order_names(found) == ("7", "c1")
    both = codec.decode_message('{"error":{"orderId":"a"},"data":{"orderId":"b"}}')
    assert codec.order_names(both) == ("b", None)
    assert codec.order_names(codec.decode_message('{"error":{"message":"no"},"data":null}')) == (
        None,
        None,
    )


def test_odd_member_does_not_lose_the_rest() -> None:
    odd = '{"op":5,"ch":[],"nonce":{"a":1},"error":"no","data":{"a":1}}'
    found = codec.decode_message(odd)
    assert (found.op, found.ch, found.nonce, found.error) == (None, None, {"a": 1}, "no")
    assert bytes(found.data) == b'{"a":1}'
    assert found.unreadable == ("op", "ch")
    assert codec.decode_message('{"op":"swap","ch":5}').ch == "5"
    strange = codec.decode_message('{"op":{},"nonce":' + "9" * 5000 + "}")
    assert strange.nonce is None
    assert strange.unreadable == ("op", "nonce")


@pytest.mark.parametrize(
    ("op", "data", "error", "code"),
    [
        ("subscribe", {"status": "subscribed"}, None, None),
        ("subscribe", {"status": "Subscribed", "since": 5}, None, None),
        ("subscribe", {"status": "already_subscribed"}, None, None),
        ("subscribe", {"status": None}, None, None),
        ("subscribe", {}, None, None),
        ("subscribe", None, None, None),
        ("subscribe", "subscribed", None, None),
        ("unsubscribe", {"status": "unsubscribed"}, None, None),
        ("subscribe", {"status": "rejected"}, "rejected", None),
        ("subscribe", {"status": "error"}, "error", None),
        ("subscribe", {"status": "limit"}, "limit", None),
        ("subscribe", {"status": "unsubscribed"}, "unsubscribed", None),
        ("subscribe", {"status": "not subscribed"}, "not subscribed", None),
        ("subscribe", {"status": "error", "message": "no", "code": "A"}, "no", "A"),
        ("subscribe", {"status": 5}, "the acknowledgement has an unknown status", None),
        ("subscribe", False, "the acknowledgement has an unknown status", None),
        ("unsubscribe", {"status": "limit"}, "limit", None),
        ("balances", {"status": "limit"}, None, None),
    ],
)
def test_acknowledgement_with_another_status_is_an_error(
    op: str, data: Any, error: str | None, code: str | None
) -> None:
    found = codec.decode_message(json.dumps({"op": op, "ch": "c", "data": data}))
    assert (found.op, found.ch, found.error, found.code) == (op, "c", error, code)


# --- Orders, receipts, estimates -------------------------------------------------------------


@pytest.mark.parametrize("digits", ["32588", "0", "-5", str(2**53 + 1), str(2**200)])
def test_number_as_an_id_becomes_its_exact_text(digits: str) -> None:
    body = f'{{"orderId":{digits},"clientOrderId":{digits},"status":"FILLED"}}'
    assert codec.decode_order(raw(body)) == Order(
        digits, OrderStatus.FILLED, client_order_id=digits
    )
    assert codec.decode_receipt(raw(body), "c1") == SwapReceipt(digits, OrderStatus.FILLED, "c1")
    assert codec.order_names(raw(body)) == (digits, digits)


def _each(name: str, *values: Any) -> list[tuple[str, Any]]:
    return [(name, value) for value in values]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *_each("filledOut", "", "NaN", "1_0", {}, [], True, "9" * 101),
        *_each("txHash", 5, {}, [], False),
        *_each("updatedAt", "", "soon", {}, True, -1, 0, 10**30, 10**18, -(10**18)),
        *_each("updatedAt", 1732526402, 1732526402000000, "2024-11-25T09:20:02Z"),
        *_each("orderId", {}, [], True, 1.5),
        *_each("clientOrderId", {}, [], True),
    ],
)
def test_unreadable_optional_field_of_an_order_is_none(name: str, value: Any) -> None:
    full = {
        "orderId": "o1",
        "status": "FILLED",
        "filledOut": "2.5",
        "txHash": "0xabc",
        "updatedAt": MILLISECONDS,
        "clientOrderId": "c1",
    }
    attributes = {
        "orderId": "order_id",
        "filledOut": "filled_out",
        "txHash": "tx_hash",
        "updatedAt": "updated_at",
        "clientOrderId": "client_order_id",
    }
    found = message({**full, name: value})
    order = codec.decode_order(found)
    assert found.unreadable == (name,)
    assert getattr(order, attributes.pop(name)) is None
    rest = {one: getattr(order, one) for one in attributes.values()}
    readable = Order("o1", OrderStatus.FILLED, Decimal("2.5"), "0xabc", AT, "c1")
    assert rest == {one: getattr(readable, one) for one in attributes.values()}
    assert order.status is OrderStatus.FILLED


@pytest.mark.parametrize(
    "text",
    [
        str(MILLISECONDS),
        f'"{MILLISECONDS}"',
        f"{MILLISECONDS}.0",
        f'"{MILLISECONDS}.0"',
        "1.732526402e12",
    ],
)
def test_time_in_milliseconds_is_read_in_every_form(text: str) -> None:
    found = raw(f'{{"status":"FILLED","updatedAt":{text}}}')
    assert codec.decode_order(found).updated_at == AT
    assert found.unreadable == ()


def test_missing_ids_of_an_odd_order_are_completed() -> None:
    odd = message({"status": "FILLED", "txHash": 5, "clientOrderId": ""})
    assert codec.decode_order(odd, "o1", "c1") == Order(
        "o1", OrderStatus.FILLED, client_order_id="c1"
    )
    foreign = message({"status": "FILLED", "txHash": 5, "orderId": "o2"})
    assert codec.decode_order(foreign, "o1", "c1") == Order("o2", OrderStatus.FILLED)


def test_unreadable_status_of_a_receipt_is_none() -> None:
    found = message({"orderId": "o1", "status": {}})
    assert codec.decode_receipt(found, "c1") == SwapReceipt("o1", None, "c1")
    assert found.unreadable == ("status",)


def test_unreadable_parts_of_an_estimate_are_left_out() -> None:
    found = message(
        {
            "price": 2,
            "expectedOut": "200",
            "fee": "free",
            "expiresAt": "soon",
            "route": [5, {"from_asset": "ETH", "to_asset": {}, "amount_in": "x", "pool": 7}],
        }
    )
    estimate = codec.decode_estimate(found)
    assert (estimate.price, estimate.expected_out) == (Decimal(2), Decimal(200))
    assert (estimate.fee, estimate.expires_at) == (None, None)
    assert estimate.route == (RouteStep(from_asset="ETH", pool="7"),)
    assert found.unreadable == (
        *("route[0]", "route[1].to_asset", "route[1].amount_in", "fee", "expiresAt"),
    )
    listless = message({"price": 1, "expectedOut": 1, "route": {}})
    assert codec.decode_estimate(listless).route == ()
    assert listless.unreadable == ("route",)


# --- Balances --------------------------------------------------------------------------------


def balances(*entries: str) -> tuple[tuple[Balance, ...], tuple[str, ...]]:
    """The balances of a push and of a reply, which are the same, and what was unreadable."""
    body = f"[{','.join(entries)}]"
    push, reply = raw(body), raw(f'{{"balances":{body}}}')
    found = codec.decode_balances_push(push)
    assert codec.decode_balances(reply) == found
    assert reply.unreadable == push.unreadable
    return found, push.unreadable


GOOD = '{"asset":"USDT","total":"5","locked":"1"}'


@pytest.mark.parametrize("amount", ['"NaN"', '""', "{}", "[1]", "true", "null", "1" * 200])
def test_balance_with_an_unreadable_total_stays_in_the_account(amount: str) -> None:
    (first, bad, last), places = balances(
        GOOD, f'{{"asset":"BTC","total":{amount},"locked":"1"}}', GOOD
    )
    assert first == last == Balance("USDT", Decimal(5), Decimal(1))
    assert first.is_readable
    assert bad.asset == "BTC"
    assert not bad.is_readable
    assert bad.locked == 1
    for name in ("total", "available"):
        with pytest.raises(UnreadableError, match="the total that the broker sent for 'BTC'"):
            getattr(bad, name)
    assert places == ("balances[1].total",)


@pytest.mark.parametrize("amount", ['"Infinity"', "{}", "false", "1" * 200])
def test_balance_with_an_unreadable_locked_amount_has_no_available_amount(amount: str) -> None:
    (bad,), places = balances(f'{{"asset":"BTC","total":"5","locked":{amount}}}')
    assert bad.total == 5
    assert not bad.is_readable
    for name in ("locked", "available"):
        with pytest.raises(UnreadableError, match="the locked that the broker sent for 'BTC'"):
            getattr(bad, name)
    assert places == ("balances[0].locked",)


def test_empty_locked_amount_is_none() -> None:
    (good,), places = balances('{"asset":"BTC","total":"5","locked":""}')
    assert good == Balance("BTC", Decimal(5))
    assert places == ()
    found, _ = balances('{"asset":"BTC","total":"5","locked":""}', "5")
    assert found == (good,)


@pytest.mark.parametrize("entry", ["5", "null", "[]", '"BTC"', "{}", '{"asset":{},"total":"1"}'])
def test_entry_without_an_asset_is_left_out(entry: str) -> None:
    found, places = balances(GOOD, entry)
    assert found == (Balance("USDT", Decimal(5), Decimal(1)),)
    assert places[-1] == "balances[1]"


def test_missing_total_is_unreadable_and_a_numeric_asset_is_text() -> None:
    (bad, good), places = balances('{"asset":"BTC"}', '{"asset":5,"total":"1"}')
    assert not bad.is_readable
    assert bad.locked is None
    assert good == Balance("5", Decimal(1))
    assert places == ("balances[0].total",)


def test_places_of_a_wholly_unreadable_account_are_limited() -> None:
    found, places = balances(*["5"] * 1000)
    assert found == ()
    assert len(places) == 20


def test_unreadable_balance_is_a_value() -> None:
    (bad, twin, other, none), _ = balances(
        *['{"asset":"BTC","total":"x","locked":"1"}'] * 2,
        '{"asset":"BTC","total":"1","locked":"x"}',
        '{"asset":"BTC","total":"x","locked":"x"}',
    )
    assert bad == twin
    assert hash(bad) == hash(twin)
    assert len({bad, other, none}) == 3
    assert bad != Balance("BTC", Decimal(0), Decimal(1))
    other_type: object = "BTC"
    assert bad != other_type
    for same in (copy.copy(bad), copy.deepcopy(bad), pickle.loads(pickle.dumps(bad))):  # noqa: S301
        assert same == bad
        assert repr(same) == repr(bad)
    assert repr(bad) == "Balance(asset='BTC', total=<unreadable>, locked=Decimal('1'))"
    assert repr(none) == "Balance(asset='BTC', total=<unreadable>, locked=<unreadable>)"
    assert isinstance(bad, Balance)


def test_error_of_an_unreadable_balance_has_a_short_name() -> None:
    (bad,), _ = balances(json.dumps({"asset": "A" * 10_000}))
    with pytest.raises(UnreadableError) as caught:
        _ = bad.total
    assert len(str(caught.value)) < 200


def test_malformed_json_differs_from_another_shape() -> None:
    with pytest.raises(codec.MalformedError):
        codec.decode_message("[1,")
    with pytest.raises(ProtocolError) as caught:
        codec.decode_message("[1]")
    assert type(caught.value) is ProtocolError


def test_huge_exponent_loses_its_message_alone() -> None:
    found = raw("[1e99999999999999999999]")
    with pytest.raises(ProtocolError, match="a number that can't be read"):
        codec.decode_anything(found)
    assert codec.decode_message('{"error":[1e99999999999999999999]}').error


def test_key_in_the_asset_of_an_unreadable_balance_is_removed() -> None:
    redactor = Redactor([Secret("hidden-key")])
    (bad, good), _ = balances('{"asset":"hidden-key"}', '{"asset":"USDT","total":"1"}')
    (clean, same) = redactor.value((bad, good))
    assert clean.asset == "<removed>"
    assert not clean.is_readable
    assert bad.asset == "hidden-key"
    assert same is good


def test_body_that_no_decoder_takes_is_a_protocol_error() -> None:
    deep = codec.Inbound(data=msgspec.Raw(b"[" * 100_000 + b"]" * 100_000))
    with pytest.raises(ProtocolError, match="nested too deeply"):
        codec.decode_anything(deep)
    cut = codec.Inbound(data=msgspec.Raw(b"{"))
    with pytest.raises(ProtocolError, match="malformed"):
        codec.decode_anything(cut)
    assert codec.order_names(cut) == (None, None)


def test_error_nested_too_deeply_still_has_a_text() -> None:
    nested: Any = "no"
    for _ in range(5000):
        nested = [nested]
    assert values.error_text(nested) == ("an error that is nested too deeply", None)
    assert values.code_text(10**250) is None
