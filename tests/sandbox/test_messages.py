from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from trio_broker.sandbox.messages import (
    EstimateBody,
    StatusBody,
    SwapBody,
    parse,
    parse_body,
    print_message,
)
from trio_broker.sandbox.refusals import Refusal


def test_members_come_in_any_order_and_others_are_passed_over() -> None:
    envelope = parse('{"new":[{}],"data": [1, 2] ,"ts":5,"op":"x","ch":"c","key":"k","sig":"s"}')
    assert (envelope.op, envelope.ch, envelope.ts, envelope.key) == ("x", "c", 5, "k")
    assert envelope.body == "[1, 2]"
    assert envelope.nonce is None


@pytest.mark.parametrize(
    "text", ['{"op":"x"}', '{"op":"x","data":null}', '{"data": null ,"ch":null}']
)
def test_a_missing_member_and_null_are_the_same(text: str) -> None:
    envelope = parse(text)
    assert (envelope.body, envelope.ch) == ("", None)


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "{", "[]", "null", "1", '"op"', "{}x", '{"op":1}', '{"op":["x"]}', '{"ch":{}}'],
        *['{"ts":"1"}', '{"ts":1.5}', '{"ts":true}', '{"ts":1e999}', '{"nonce":1}', '{"sig":1}'],
        *['{"data":}', '{"data":NaN}', '{"op":"\\ud800"}', '{"op":"x\\'],
        '{"data":' + "[" * 100_000 + "]" * 100_000 + "}",
        "[" * 100_000,
        '{"nonce":"' + "n" * 129 + '"}',
        "\ud800",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_can_t_be_read_is_refused_shortly(text: str) -> None:
    with pytest.raises(Refusal, match=r"^Malformed message: ") as caught:
        parse(text)
    assert len(str(caught.value)) < 100


def test_a_binary_message_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^Binary messages are not supported$"):
        parse(b'{"op":"balances"}')


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["op", "ch", "ts", "nonce", "sig", "key", "data", "x"]), inner
            )
        ),
    ).map(json.dumps)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        envelope = parse(text)
    except Refusal:
        return
    for kind in (EstimateBody, SwapBody, StatusBody):
        with suppress(Refusal):
            parse_body(envelope, kind)


def test_bodies_have_the_documented_names() -> None:
    swap = parse_body(
        parse(
            '{"data":{"amountIn":"1","assetIn":"ETH","assetOut":"USDT","account":"0x",'
            '"slippage_bps":30,"clientOrderId":"mine","filter":["gate"],"network":"mainnet"}}'
        ),
        SwapBody,
    )
    assert (swap.amount_in, swap.asset_in, swap.asset_out) == ("1", "ETH", "USDT")
    assert (swap.account, swap.slippage_bps, swap.filter) == ("0x", 30, ["gate"])
    assert swap.client_order_id == "mine"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("slippage_bps", -1),
        ("slippage_bps", 10_001),
        ("slippage_bps", 1.5),
        ("slippage_bps", "30"),
        ("slippage_bps", True),
        ("clientOrderId", ""),
        ("clientOrderId", "x" * 129),
        ("clientOrderId", 1),
        ("filter", "gate"),
        ("filter", [1]),
        ("assetIn", None),
        ("account", 1),
    ],
)
def test_a_body_with_a_wrong_member_is_refused_by_its_name(member: str, value: object) -> None:
    body = {"amountIn": "1", "assetIn": "ETH", "assetOut": "USDT", member: value}
    with pytest.raises(Refusal, match=rf"^Invalid request: .*{member}"):
        parse_body(parse(json.dumps({"data": body})), SwapBody)


def test_a_missing_body_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^Invalid request: "):
        parse_body(parse('{"op":"order_status","data":null}'), StatusBody)


def test_members_that_are_none_are_not_printed() -> None:
    assert print_message(op="x", ch=None, data={"a": "é"}) == '{"op":"x","data":{"a":"é"}}'
