"""The step that decodes a usual push of an order gives what the general steps give."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from trio_broker._protocol import codec
from trio_broker._protocol.values import DecodeErrors
from trio_broker.models import Order, OrderStatus

USUAL = (
    '{"ch":"orders:o1","data":{"orderId":"o1","status":"FILLED","filledOut":"1.50",'
    '"txHash":"0x1","updatedAt":1732526402000,"clientOrderId":"c1"}}'
)
FILLED = Order(
    "o1",
    OrderStatus.FILLED,
    Decimal("1.50"),
    "0x1",
    dt.datetime(2024, 11, 25, 9, 20, 2, tzinfo=dt.UTC),
    "c1",
)

# Documented members, and members of other shapes.
MEMBERS = {
    "orderId": ['"o1"', '"o2"', '""', "7", "null", "[]"],
    "status": ['"FILLED"', '" filled "', '"ODD"', '""', "5", "null"],
    "filledOut": [
        *['"0"', '"-1.5"', '"1e3"', "1.5", "1e400", '"\\u0031"', '""', "null"],
        *['"NaN"', '"Infinity"', '"1_000"', '"\u0663"', '" 1"', f'"{"9" * 101}"', "{}", "true"],
    ],
    "txHash": ['"0x1"', "5", "null"],
    "updatedAt": ["1732526402123", '"1732526402123"', "1732526402", "1e12", "null", "9" * 40],
    "clientOrderId": ['"c1"', '""', "7", "null"],
    "other": ['{"deep":[[[]]]}'],
}
AROUND = {
    "op": ["null", '"subscribe"', '"error"', "5"],
    "error": ["null", '""', '"no"', '{"message":"no"}'],
    "ch": ['"orders:o2"', '"balances"', "null", "5"],
    "code": ['"A"', "5"],
    "nonce": ['"n"'],
    "data": ["null", "[]", '{"status":"FAILED"}'],
}


def objects(members: dict[str, list[str]]) -> st.SearchStrategy[list[str]]:
    pairs = [f'"{name}":{value}' for name, found in members.items() for value in found]
    return st.lists(st.sampled_from(pairs), max_size=8)


def check_same(text: str) -> None:
    """The one step gives the same order as the general steps, or leaves the message to them."""
    try:
        push = codec.decode_order_push(text)
    except DecodeErrors:
        return
    for ids in ("o1", None), ("o1", "c9"), (None, "c9"):
        order = codec.usual_order(push.data, *ids)
        if order is not None:
            general = codec.decode_message(text)
            assert (general.ch, general.op, general.error or None) == (push.ch, None, None)
            assert codec.decode_order(general, *ids) == order
            assert not general.unreadable


def is_usual(text: str) -> bool:
    try:
        return codec.usual_order(codec.decode_order_push(text).data, "o1", None) is not None
    except DecodeErrors:
        return False


def test_usual_push_is_decoded_in_one_step() -> None:
    push = codec.decode_order_push(USUAL)
    assert push.ch == "orders:o1"
    assert codec.usual_order(push.data, "o1", None) == FILLED
    check_same(USUAL)


@pytest.mark.parametrize("name", ["orderId", "filledOut", "txHash", "updatedAt", "clientOrderId"])
def test_push_without_an_optional_member_is_usual(name: str) -> None:
    message = json.loads(USUAL)
    message["data"][name] = None
    assert is_usual(json.dumps(message))
    del message["data"][name]
    assert is_usual(json.dumps(message))


@given(objects(MEMBERS), objects(AROUND) | st.just([]), st.booleans())
def test_any_push_gives_the_same_order_in_one_step(
    body: list[str], around: list[str], has_status: bool
) -> None:
    data = ",".join((['"status":"PARTIAL"'] if has_status else []) + body)
    check_same("{" + ",".join(['"ch":"orders:o1"', f'"data":{{{data}}}', *around]) + "}")


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, found in MEMBERS.items() for value in found]
)
def test_each_member_gives_the_same_order_in_one_step(name: str, value: str) -> None:
    for status in '"status":"PARTIAL",', "":
        check_same(f'{{"ch":"orders:o1","data":{{{status}"{name}":{value}}}}}')


@pytest.mark.parametrize(
    "text",
    [
        USUAL[:-1],
        USUAL + "x",
        USUAL.replace('"orderId":"o1"', '"orderId":"o2"'),
        USUAL.replace("FILLED", " filled "),
        USUAL.replace("FILLED", "ODD"),
        USUAL.replace("1.50", "NaN"),
        USUAL.replace("1.50", "1_0"),
        USUAL.replace("1732526402000", "1732526402"),
        USUAL.replace("1732526402000", str(10**40)),
        '{"ch":"orders:o1"}',
        '{"ch":"orders:o1","data":' + "[" * 5000 + "]" * 5000 + "}",
        '{"ch":"orders:\ud800","data":{"status":"FILLED"}}',
    ],
)
def test_other_texts_are_left_to_the_general_steps(text: str) -> None:
    assert text.startswith(codec.BEGINS_ORDER_PUSH)
    assert not is_usual(text)
