"""What is sent for each operation, and the lane that a request has."""

from __future__ import annotations

import json
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.engine_harness import EngineHarness
from trio_broker._protocol import codec, requests
from trio_broker._protocol.codec import Inbound, decode_message
from trio_broker._protocol.requests import Lane, Priority, Request, Trade
from trio_broker.exceptions import MessageTooLargeError


def estimate(
    amount: Any = "100",
    asset_in: str = "ETH",
    asset_out: str = "USDT",
    network: str | None = None,
    **options: Any,
) -> Request:
    return requests.estimate(Trade(amount, asset_in, asset_out, **options), network, 5.0)


def swap(
    amount: Any = "100",
    asset_in: str = "ETH",
    asset_out: str = "USDT",
    client_order_id: str = "c1",
    slippage_bps: Any = None,
    **options: Any,
) -> Request:
    trade = Trade(amount, asset_in, asset_out, **options)
    return requests.swap(trade, client_order_id, slippage_bps, 5.0)


def lane_of(request: Request) -> Lane:
    return EngineHarness().submit(request).lane


def body(request: Request) -> Any:
    return json.loads(request.body)


def test_estimate_request_has_only_the_given_members() -> None:
    request = estimate()
    assert request.body == '{"amountIn":"100","assetIn":"ETH","assetOut":"USDT"}'
    assert (request.op, request.priority, request.deadline) == ("estimate", Priority.READ, 5.0)
    full = estimate(filter_sources=("gate", "binance"), network="base", account="0xabc")
    assert full.body == (
        '{"account":"0xabc","amountIn":"100","assetIn":"ETH","assetOut":"USDT",'
        '"filter":["gate","binance"],"network":"base"}'
    )


def test_order_lookup_asks_by_client_order_id() -> None:
    request = requests.order_lookup("c1", 5.0, Priority.BACKGROUND)
    assert (request.op, request.body, request.deadline) == ("order_status", '{"id":"c1"}', 5.0)
    assert (request.client_order_id, request.order_id) == ("c1", None)
    assert request.priority is Priority.BACKGROUND
    assert requests.order_lookup("c1", 5.0).priority is Priority.READ
    for wrong in ("", "c<1", "é"):
        with pytest.raises(ValueError, match="client_order_id"):
            requests.order_lookup(wrong, 5.0)


def test_swap_always_has_its_client_order_id() -> None:
    request = swap()
    assert request.body == (
        '{"amountIn":"100","assetIn":"ETH","assetOut":"USDT","clientOrderId":"c1"}'
    )
    assert (request.op, request.priority, request.deadline) == ("swap", Priority.SWAP, 5.0)
    assert request.client_order_id == "c1"
    assert lane_of(request) == ("swap", None)
    full = swap(slippage_bps=0, filter_sources=["gate"], account="0xabc")
    assert body(full) == {
        **body(request),
        "slippage_bps": 0,
        "filter": ["gate"],
        "account": "0xabc",
    }
    receipt = request.decode(decode_message('{"op":"swap","data":{"orderId":"o1"}}'))
    assert (receipt.order_id, receipt.client_order_id) == ("o1", "c1")


def test_other_requests_have_their_members() -> None:
    auth = requests.authentication(5.0)
    assert (auth.op, auth.priority, auth.body) == ("auth", Priority.AUTH, "")
    balances = requests.balances(5.0)
    assert (balances.op, balances.priority, balances.body) == ("balances", Priority.READ, "")
    assert requests.balances(5.0, Priority.BACKGROUND).priority is Priority.BACKGROUND
    lookup = requests.order_status("o1", 5.0, Priority.BACKGROUND)
    assert (lookup.body, lookup.order_id) == ('{"id":"o1"}', "o1")
    assert (lane_of(lookup), lookup.priority) == (("order_status", "o1"), Priority.BACKGROUND)
    channel = requests.subscription("unsubscribe", "balances", 5.0)
    assert (channel.op, lane_of(channel)) == ("unsubscribe", ("channel", "balances"))
    assert channel.priority is Priority.SUBSCRIBE
    assert all(one.deadline == 5.0 for one in (auth, balances, lookup, channel))
    channel.decode(Inbound())


def test_lookups_by_client_order_id_share_a_lane() -> None:
    lookup = requests.order_lookup("c1", 5.0)
    assert (lookup.op, lookup.body, lookup.deadline) == ("order_status", '{"id":"c1"}', 5.0)
    assert (lane_of(lookup), lookup.priority) == (("order_status", None), Priority.READ)
    assert lookup.client_order_id == "c1"


class Lots(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("100", "100"),
        ("1.50", "1.50"),
        ("0.00000001", "0.00000001"),
        ("007", "007"),
        (100, "100"),
        (Lots.ONE, "1"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E-18"), "0.000000000000000001"),
        (Decimal("1E+3"), "1000"),
        ("9" * 60 + "." + "9" * 60, "9" * 60 + "." + "9" * 60),
    ],
)
def test_amount_is_sent_as_it_was_written(amount: Any, text: str) -> None:
    assert body(estimate(amount))["amountIn"] == body(swap(amount))["amountIn"] == text


@pytest.mark.parametrize(
    "amount",
    [
        *["", " 1", "1 ", "1\n", "+1", "-1", "1.", ".5", "1e3", "NaN", "Infinity", "1,5", "1_000"],
        *["٣", "0x1", "0", "0.000", "9" * 101, "0." + "0" * 100 + "1", "1.2.3"],
        *[0, -1, 10**101],
        *[Decimal(0), Decimal(-1), Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity")],
        *[Decimal("1E+999999"), Decimal("1E-999999"), Decimal("0E+100")],
    ],
)
def test_any_other_amount_is_rejected(amount: Any) -> None:
    for operation in (estimate, swap):
        with pytest.raises(ValueError, match="amount_in must be"):
            operation(amount)


def test_int_that_python_would_not_print_is_rejected() -> None:
    with pytest.raises(ValueError, match="amount_in must be a finite amount of at most 100 digits"):
        estimate(10**5000)


@pytest.mark.parametrize("amount", [1.5, 1.0, True, None, b"1", ["1"], 1j])
def test_inexact_number_is_rejected_as_an_amount(amount: Any) -> None:
    for operation in (estimate, swap):
        with pytest.raises(TypeError, match="amount_in must be a str, an int or a Decimal"):
            operation(amount)


@given(st.decimals(min_value=Decimal("1E-18"), max_value=10**30, places=18))
def test_decimal_keeps_its_value(amount: Decimal) -> None:
    assert Decimal(body(estimate(amount))["amountIn"]) == amount


TEXTS: dict[str, Any] = {
    "asset_in": lambda text: estimate("1", text, "USDT"),
    "asset_out": lambda text: swap("1", "ETH", text),
    "network": lambda text: estimate(network=text),
    "account": lambda text: swap(account=text),
    "client_order_id": lambda text: swap(client_order_id=text),
    r"filter_sources\[1\]": lambda text: estimate(filter_sources=["gate", text]),
    "order_id": lambda text: requests.order_status(text, 5.0),
}


@pytest.mark.parametrize("place", TEXTS)
def test_text_that_cannot_be_sent_is_rejected_by_its_name(place: str) -> None:
    for wrong in ("", "ü", 'a"b', "a\\b", "<", ">", "&", "a\n"):
        with pytest.raises(ValueError, match=place):
            TEXTS[place](wrong)
    for wrong_type in (5, b"text"):
        with pytest.raises(TypeError, match=place):
            TEXTS[place](wrong_type)


def test_filter_sources_are_a_list_of_names() -> None:
    assert body(estimate(filter_sources=iter(["gate"])))["filter"] == ["gate"]
    with pytest.raises(TypeError, match="not one str"):
        estimate(filter_sources="gate")
    with pytest.raises(TypeError):
        estimate(filter_sources=5)
    with pytest.raises(ValueError, match="filter_sources is empty"):
        estimate(filter_sources=[])


def test_slippage_is_in_basis_points() -> None:
    for right in (0, 30, 10_000):
        assert body(swap(slippage_bps=right))["slippage_bps"] == right
    for wrong in (-1, 10_001):
        with pytest.raises(ValueError, match=f"from 0 to 10000, not {wrong}"):
            swap(slippage_bps=wrong)
    for wrong_type in (True, 0.5, "30", Decimal(30)):
        with pytest.raises(TypeError, match="slippage_bps must be an int"):
            swap(slippage_bps=wrong_type)


def check_size(request: Request, limit: int) -> None:
    codec.check_size(request.op, request.body, request.channel, limit)


def test_message_over_the_limit_is_rejected_to_the_byte() -> None:
    request = estimate(account="0" * 1000)
    with pytest.raises(MessageTooLargeError) as caught:
        check_size(request, 1000)
    size = caught.value.size
    assert caught.value.limit == 1000
    check_size(request, size)
    with pytest.raises(MessageTooLargeError):
        check_size(request, size - 1)
    channel = requests.subscription("subscribe", "orders:o1", 5.0)
    check_size(channel, len('{"op":"subscribe","ch":"orders:o1"}'))


# --- Lanes and priorities -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "confusable"),
    [
        (Request("estimate", Priority.READ), Request("estimate", Priority.READ), True),
        (Request("estimate", Priority.READ), Request("balances", Priority.READ), False),
        (
            Request("subscribe", Priority.SUBSCRIBE, channel="balances"),
            Request("unsubscribe", Priority.SUBSCRIBE, channel="balances"),
            True,
        ),
        (
            Request("order_status", Priority.READ, order_id="o1"),
            Request("order_status", Priority.BACKGROUND, order_id="o2"),
            False,
        ),
        (
            Request("order_status", Priority.READ, client_order_id="c1"),
            Request("order_status", Priority.READ, client_order_id="c2"),
            True,
        ),
    ],
)
def test_requests_whose_replies_could_be_confused_share_a_lane(
    one: Request, other: Request, confusable: bool
) -> None:
    assert (lane_of(one) == lane_of(other)) is confusable


def test_requests_are_sent_by_priority() -> None:
    names = [priority.name for priority in sorted(Priority)]
    assert names == ["AUTH", "SWAP", "VERIFICATION", "READ", "SUBSCRIBE", "BACKGROUND"]


# --- Subclasses and huge numbers -------------------------------------------------------------


class Asset(StrEnum):
    ETH = "ETH"
    USDT = "USDT"


class Shouting(str):
    """A str that prints as another text."""

    __slots__ = ()

    def __str__(self) -> str:
        return "WRONG"


class Cents(Decimal):
    """A Decimal that prints as another text."""

    def __str__(self) -> str:
        return "WRONG"


class Bps(IntEnum):
    MORE = 50


@pytest.mark.parametrize("amount", [Shouting("1.5"), Cents("1.5")])
def test_subclasses_go_out_as_plain_text(amount: str | Decimal) -> None:
    trade = requests.Trade(amount, Asset.ETH, Shouting("USDT"), [Shouting("gate")], Shouting("0x1"))
    request = requests.swap(trade, Shouting("c1"), Bps.MORE, 5.0)
    assert json.loads(request.body) == {
        "amountIn": "1.5",
        "assetIn": "ETH",
        "assetOut": "USDT",
        "account": "0x1",
        "filter": ["gate"],
        "clientOrderId": "c1",
        "slippage_bps": 50,
    }
    texts = [request.client_order_id]
    texts += [requests.order_status(Shouting("o1"), 5.0).order_id]
    texts += [requests.order_lookup(Shouting("c1"), 5.0).client_order_id]
    assert [type(text) for text in texts] == [str] * 3


HUGE = 10**2_000_000


@pytest.mark.parametrize(
    "amount",
    [HUGE, -HUGE, Decimal(f"1E+{10**6 - 1}"), Decimal("0." + "3" * 300), Decimal("3" * 300)],
    ids=lambda amount: type(amount).__name__,
)
def test_huge_amount_is_refused_without_being_printed(amount: int | Decimal) -> None:
    with pytest.raises(ValueError, match="amount_in must be a finite amount of at most 100 digits"):
        estimate(amount)


def test_decimal_with_a_million_digits_is_refused_quickly() -> None:
    # `as_tuple` would make an object for each digit.
    long = Decimal("0." + "3" * 1_000_000)
    with pytest.raises(ValueError, match="at most 100 digits"):
        estimate(long)


@pytest.mark.parametrize("slippage", [HUGE, -HUGE], ids=["positive", "negative"])
def test_huge_slippage_is_refused_without_being_printed(slippage: int) -> None:
    with pytest.raises(ValueError, match="slippage_bps must be from 0 to 10000, not a huge number"):
        swap(slippage_bps=slippage)
