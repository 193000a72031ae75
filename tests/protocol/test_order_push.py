"""The step that decodes a usual push of an order gives what the general steps give."""

from __future__ import annotations

import datetime as dt
import re
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from trio_broker._protocol import codec
from trio_broker.exceptions import ProtocolError
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


def outcome(message: codec.Inbound | codec.OrderPush, ids: tuple[str | None, str | None]) -> object:
    """The order that a push brings and what can't be read, or why there is none."""
    try:
        order = codec.decode_order(message, *ids)
    except ProtocolError as error:
        return str(error)
    return order, message.unreadable


def check_same(text: str) -> None:
    for ids in ("o1", None), ("o1", "c9"), (None, "c9"):
        try:
            general = codec.decode_message(text)
        except (ProtocolError, codec.MalformedError) as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                codec.decode_order_push(text)
            return
        one_step = codec.decode_order_push(text)
        if isinstance(one_step, codec.OrderPush):
            assert (general.ch, general.op, general.error or None) == (one_step.ch, None, None)
            assert outcome(one_step, ids) == outcome(general, ids)
        else:
            assert one_step == general


def test_usual_push_is_decoded_in_one_step() -> None:
    push = codec.decode_order_push(USUAL)
    assert isinstance(push, codec.OrderPush)
    assert outcome(push, ("o1", None)) == (FILLED, ())
    check_same(USUAL)


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
        '{"ch":"orders:o1"}',
        '{"ch":"orders:o1","data":' + "[" * 5000 + "]" * 5000 + "}",
        '{"ch":"orders:o1","ch":"balances","data":{"status":"FILLED"}}',
        '{"ch":"orders:\ud800","data":{"status":"FILLED"}}',
    ],
)
def test_other_texts_are_left_to_the_general_steps(text: str) -> None:
    assert text.startswith(codec.BEGINS_ORDER_PUSH)
    check_same(text)
    with suppress(ProtocolError, codec.MalformedError):
        assert not isinstance(codec.decode_order_push(text), codec.OrderPush)
