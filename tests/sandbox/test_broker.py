from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.sandbox_client import auth, signed, swap_body
from trio_broker.sandbox.accounts import DOCUMENTED_ACCOUNTS
from trio_broker.sandbox.broker import Broker, Connection, Outgoing
from trio_broker.sandbox.exchange import Exchange
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.orders import Outcome
from trio_broker.sandbox.rules import Rules

WALL = 1_732_526_400.0
AUTHENTICATED = {"op": "auth", "data": {"status": "authenticated"}}


class House:
    """A broker, the time, and what its clients hear."""

    def __init__(self, **rules: Any) -> None:
        self.at = 50.0
        opening = {account.api_key: account.balances for account in DOCUMENTED_ACCOUNTS}
        checked = Rules(**{"error_form": "named", "order_id_prefix": "ord_", **rules})
        exchange = Exchange(7, self.at, opening, checked)
        self.broker = Broker(DOCUMENTED_ACCOUNTS, exchange, checked)
        self.heard: dict[Connection, list[Any]] = {}

    @property
    def moment(self) -> Moment:
        return Moment(self.at, WALL + self.at)

    def connect(self, number: int | None = 1) -> Connection:
        connection = self.broker.open(self.at)
        self.heard[connection] = []
        if number is not None:
            assert self.send(connection, auth(self.moment.wall, number)) == AUTHENTICATED
        return connection

    def send(self, connection: Connection, message: str | bytes) -> Any:
        """Its answer; what else was said is in `heard`."""
        answer, *pushes = self.broker.receive(connection, message, self.moment)
        assert answer.connection is connection
        self._deliver(pushes)
        return json.loads(answer.text)

    def request(
        self, connection: Connection, op: str, body: str = "", number: int = 1, **options: Any
    ) -> Any:
        secret = f"test_secret_{number}"
        return self.send(
            connection, signed(op, body, at=self.moment.wall, secret=secret, **options)
        )

    def subscribe(self, connection: Connection, channel: str, op: str = "subscribe") -> Any:
        return self.send(connection, json.dumps({"ch": channel, "op": op}))

    def force(self, *outcomes: Outcome) -> None:
        self.broker.exchange.forced.extend(outcomes)

    def live(self) -> None:
        while (deadline := self.broker.next_deadline()) is not None:
            self.at = max(self.at, deadline)
            self._deliver(self.broker.advance(self.moment))

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        for message in outgoing:
            self.heard[message.connection].append(json.loads(message.text))


@pytest.fixture
def house() -> House:
    return House()


# ---- Authentication


@pytest.mark.parametrize("op", ["balances", "estimate", "swap", "order_status"])
def test_nothing_is_answered_before_authentication(house: House, op: str) -> None:
    connection = house.connect(None)
    assert house.request(connection, op) == {"op": op, "error": "Not authenticated"}
    assert house.subscribe(connection, "balances") == {
        "op": "subscribe",
        "ch": "balances",
        "error": "Not authenticated",
    }


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"key": "nobody"}, "Invalid API key"),
        ({"key": None}, "Invalid API key"),
        ({"sig": "0" * 64}, "Invalid signature"),
        ({"sig": None}, "Invalid signature"),
    ],
)
def test_a_refused_authentication_can_be_tried_again(
    house: House, changes: dict[str, Any], error: str
) -> None:
    connection = house.connect(None)
    message = json.loads(auth(house.moment.wall)) | changes
    assert house.send(connection, json.dumps(message)) == {"op": "auth", "error": error}
    assert connection.api_key is None
    assert house.send(connection, auth(house.moment.wall)) == AUTHENTICATED


def test_a_wrong_clock_is_named(house: House) -> None:
    connection = house.connect(None)
    late = house.send(connection, auth(house.moment.wall - 31))
    assert late == {"op": "auth", "error": "Request timestamp outside allowed window"}


def test_a_nonce_is_good_once_on_all_connections(house: House) -> None:
    first, second = house.connect(), house.connect()
    assert "data" in house.request(first, "balances", nonce="n")
    error = {"op": "balances", "error": "Nonce has already been used or is expired"}
    assert house.request(first, "balances", nonce="n") == error
    assert house.request(second, "balances", nonce="n") == error


def test_authenticating_again_is_fine_but_not_as_somebody_else(house: House) -> None:
    connection = house.connect()
    assert house.send(connection, auth(house.moment.wall)) == AUTHENTICATED
    refused = house.send(connection, auth(house.moment.wall, 2))
    assert refused == {"op": "auth", "error": "Already authenticated with another key"}
    assert connection.api_key == "test_key_1"


def test_a_key_has_so_many_connections_at_a_time() -> None:
    house = House(max_connections=2)
    first, _ = house.connect(), house.connect()
    third = house.connect(None)
    refused = house.send(third, auth(house.moment.wall))
    assert refused == {"op": "auth", "error": "Connection limit exceeded"}
    # It has its place already.
    assert house.send(first, auth(house.moment.wall)) == AUTHENTICATED
    house.connect(2)  # Another account has places of its own.
    house.broker.close(first, house.at)
    assert house.send(third, auth(house.moment.wall)) == AUTHENTICATED


def test_a_raw_signing_key_can_be_set() -> None:
    house = House(signing_key="raw")
    connection = house.connect(None)
    assert house.send(connection, auth(house.moment.wall, raw=True)) == AUTHENTICATED
    assert house.send(connection, auth(house.moment.wall))["error"] == "Invalid signature"


# ---- Odd messages


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("", "Malformed message: "),
        ("[]", "Malformed message: "),
        ('{"op":7}', "Malformed message: "),
        (b"\x00", "Binary messages are not supported"),
    ],
)
def test_a_message_that_can_t_be_read_gets_an_error_and_the_connection_lives(
    house: House, message: str | bytes, error: str
) -> None:
    connection = house.connect()
    refused = house.send(connection, message)
    assert list(refused) == ["error"]
    assert refused["error"].startswith(error)
    assert "data" in house.request(connection, "balances")


@pytest.mark.parametrize("number", [None, 1])
def test_an_unknown_operation_is_named(house: House, number: int | None) -> None:
    connection = house.connect(number)
    refused = {"op": "withdraw", "error": "Unknown operation: withdraw"}
    assert house.request(connection, "withdraw") == refused
    assert house.send(connection, "{}") == {"error": "Unknown operation: "}


def test_a_long_operation_or_channel_makes_no_long_answer(house: House) -> None:
    connection = house.connect()
    assert len(str(house.send(connection, json.dumps({"op": "x" * 60_000})))) < 300
    assert len(str(house.subscribe(connection, "x" * 60_000))) < 400


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "auth",
                    "subscribe",
                    "unsubscribe",
                    "balances",
                    "estimate",
                    "swap",
                    "order_status",
                    "x",
                ]
            ),
            st.dictionaries(
                st.sampled_from(
                    [
                        "amountIn",
                        "assetIn",
                        "assetOut",
                        "slippage_bps",
                        "filter",
                        "id",
                        "clientOrderId",
                    ]
                ),
                st.sampled_from(["1", "ETH", "USDT", "ord_00000001", 5, ["gate"], [], None, {}]),
            ),
            st.sampled_from([None, "balances", "orders:ord_00000001", "orders:", ""]),
        ),
        max_size=15,
    )
)
def test_any_message_is_answered_or_refused(
    messages: list[tuple[str, dict[str, Any], str | None]],
) -> None:
    house = House()
    connection = house.connect()
    for op, body, channel in messages:
        options: dict[str, Any] = {"key": "test_key_1", "ch": channel}
        reply = house.request(connection, op, json.dumps(body), **options)
        assert reply["op"] == op
        assert ("data" in reply) != ("error" in reply)
    house.live()


# ---- The form of errors


def refusals(house: House) -> list[Any]:
    """The errors of an operation, a channel and an unreadable message."""
    connection = house.connect()
    return [
        house.request(connection, "swap", swap_body(amountIn="9999999")),
        house.subscribe(connection, "prices"),
        house.send(connection, b"?"),
    ]


def test_documented_errors_name_neither_operation_nor_channel() -> None:
    assert refusals(House(error_form="documented")) == [
        {"error": "Insufficient balance"},
        {"error": "Invalid channel format"},
        {"error": "Binary messages are not supported"},
    ]


def test_named_errors_name_operation_and_channel() -> None:
    assert refusals(House(error_form="named")) == [
        {"op": "swap", "error": "Insufficient balance"},
        {"op": "subscribe", "ch": "prices", "error": "Invalid channel format"},
        {"error": "Binary messages are not supported"},
    ]


def test_errors_can_be_objects_with_codes() -> None:
    assert refusals(House(error_form="object")) == [
        {"error": {"code": "INSUFFICIENT_BALANCE", "message": "Insufficient balance"}},
        {"error": {"code": "INVALID_REQUEST", "message": "Invalid channel format"}},
        {"error": {"code": "INVALID_REQUEST", "message": "Binary messages are not supported"}},
    ]


# ---- Dialects

DOCS_SWAP = swap_body(
    amountIn=None, assetIn=None, assetOut=None, amount="1.5", to="USDT", **{"from": "ETH"}
)
DOCS = {"swap": DOCS_SWAP, "estimate": DOCS_SWAP, "balances": "{}"}
CLIENTS = {"swap": swap_body(), "estimate": swap_body(), "balances": ""}


@pytest.mark.parametrize("op", DOCS)
@pytest.mark.parametrize(
    ("dialect", "takes"),
    [("both", [True, True]), ("clients", [True, False]), ("docs", [False, True])],
)
def test_requests_are_taken_in_the_forms_of_the_dialect(
    op: str, dialect: str, takes: list[bool]
) -> None:
    house = House(dialect=dialect)
    connection = house.connect(None)
    house.send(connection, auth(house.moment.wall, raw=dialect == "docs"))
    replies = [
        house.request(connection, op, body[op], raw=dialect == "docs") for body in (CLIENTS, DOCS)
    ]
    assert ["data" in reply for reply in replies] == takes
    for reply in replies:
        assert "data" in reply or reply["error"].startswith("Invalid request: ")


def test_both_dialects_mean_the_same_terms(house: House) -> None:
    connection = house.connect()
    more = {"slippage_bps": 30, "filter": ["gate"], "account": "0x1"}
    docs = json.dumps(json.loads(DOCS_SWAP) | more)
    house.request(connection, "swap", swap_body(**more))
    house.request(connection, "swap", docs)
    first, second = house.broker.exchange.orders.values()
    assert first.terms == second.terms


@pytest.mark.parametrize("dialect", ["both", "docs"])
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"amount":"1","from":"ETH"}', "Invalid request: Object missing required field `to`"),
        ('{"amount":1,"from":"ETH","to":"USDT"}', "Invalid amount"),
        ('{"amount":"1","assetIn":"ETH","assetOut":"USDT"}', "Invalid request: Object missing"),
    ],
)
def test_a_wrong_member_is_told_by_the_docs_name(dialect: str, body: str, error: str) -> None:
    house = House(dialect=dialect, signing_key="derived")
    refused = house.request(house.connect(), "swap", body)
    assert refused["error"].startswith(error)


@pytest.mark.parametrize(
    ("dialect", "derived", "raw"),
    [("both", True, True), ("clients", True, False), ("docs", False, True)],
)
def test_signatures_are_taken_with_the_key_of_the_dialect(
    dialect: str, derived: bool, raw: bool
) -> None:
    house = House(dialect=dialect)
    connection = house.connect(None)
    replies = [house.send(connection, auth(house.moment.wall, raw=one)) for one in (False, True)]
    assert ["data" in reply for reply in replies] == [derived, raw]


# ---- Order ids and client order ids


def test_two_ledgers_have_no_order_id_in_common() -> None:
    ids = set()
    for _ in range(10):
        house = House(order_id_prefix=None)
        reply = house.request(house.connect(), "swap", swap_body())
        ids.add(reply["data"]["orderId"])
    assert len(ids) == 10
    assert all(one.startswith("ord_") for one in ids)


@pytest.mark.parametrize("in_receipts", [False, True])
@pytest.mark.parametrize("in_lookups", [False, True])
@pytest.mark.parametrize("found", [False, True])
def test_client_order_ids_are_named_and_found_as_set(
    in_receipts: bool, in_lookups: bool, found: bool
) -> None:
    house = House(
        client_order_id_in_receipts=in_receipts,
        client_order_id_in_lookups=in_lookups,
        lookup_by_client_order_id=found,
    )
    connection = house.connect()
    receipt = house.request(connection, "swap", swap_body(clientOrderId="mine"))["data"]
    assert ("clientOrderId" in receipt) == in_receipts
    by_id = house.request(connection, "order_status", json.dumps({"id": receipt["orderId"]}))
    assert ("clientOrderId" in by_id["data"]) == in_lookups
    by_name = house.request(connection, "order_status", '{"id":"mine"}')
    assert by_name == (by_id if found else {"op": "order_status", "error": "Order not found"})
    anonymous = house.request(connection, "swap", swap_body())["data"]
    assert "clientOrderId" not in anonymous


# ---- Channels


def test_subscribing_is_acknowledged_every_time_and_pushed_once(house: House) -> None:
    connection = house.connect()
    acknowledged = {"op": "subscribe", "ch": "balances", "data": {"status": "subscribed"}}
    assert house.subscribe(connection, "balances") == acknowledged
    assert house.subscribe(connection, "balances") == acknowledged
    assert house.heard[connection] == []
    house.request(connection, "swap", swap_body())
    assert house.heard[connection] == [
        {"ch": "balances", "data": [{"asset": "ETH", "total": "1000", "locked": "1.5"}]}
    ]


def test_after_unsubscribing_nothing_is_pushed(house: House) -> None:
    connection = house.connect()
    acknowledged = {"op": "unsubscribe", "ch": "balances", "data": {"status": "unsubscribed"}}
    house.subscribe(connection, "balances")
    assert house.subscribe(connection, "balances", "unsubscribe") == acknowledged
    assert house.subscribe(connection, "balances", "unsubscribe") == acknowledged
    house.request(connection, "swap", swap_body())
    house.live()
    assert house.heard[connection] == []


@pytest.mark.parametrize("op", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize("channel", ["", "Balances", "balances:", "orders", "orders:", "prices"])
def test_an_odd_channel_is_refused(house: House, op: str, channel: str) -> None:
    refused = {"op": op, "ch": channel, "error": "Invalid channel format"}
    assert house.subscribe(house.connect(), channel, op) == refused


def test_a_channel_that_is_too_long_is_refused_and_not_repeated(house: House) -> None:
    refused = {"op": "subscribe", "error": "Invalid channel format"}
    assert house.subscribe(house.connect(), "orders:" + "x" * 250) == refused


def test_a_missing_channel_is_refused(house: House) -> None:
    refused = house.send(house.connect(), '{"op":"subscribe"}')
    assert refused == {"op": "subscribe", "error": "Invalid channel format"}


@pytest.mark.parametrize("order_id", ["32588", "ord_00000001", "a b:c", "é", "x" * 249])
def test_any_order_can_be_subscribed_to(house: House, order_id: str) -> None:
    assert "data" in house.subscribe(house.connect(), f"orders:{order_id}")


def test_a_connection_has_so_many_subscriptions() -> None:
    house = House(max_subscriptions=3)
    connection = house.connect()
    for number in range(3):
        assert "data" in house.subscribe(connection, f"orders:{number}")
    refused = {"op": "subscribe", "ch": "balances", "error": "Subscription limit exceeded"}
    assert house.subscribe(connection, "balances") == refused
    assert "data" in house.subscribe(connection, "orders:1")  # It has its place already.
    house.subscribe(connection, "orders:1", "unsubscribe")
    assert "data" in house.subscribe(connection, "balances")


# ---- The rate limit


def test_more_messages_than_allowed_in_any_second_are_refused(house: House) -> None:
    connection, start = house.connect(), house.at
    house.at = start + 2.0
    replies = []
    for number in range(150):
        house.at = start + 2.0 + number * 0.001
        replies.append(house.request(connection, "balances"))
    assert all("data" in reply for reply in replies[:100])
    refused = {"op": "balances", "error": "Rate limit exceeded"}
    assert replies[100:] == [refused] * 50
    house.at = start + 2.999
    assert house.request(connection, "balances") == refused
    house.at = start + 3.0
    assert "data" in house.request(connection, "balances")
    assert house.request(connection, "balances") == refused


def test_the_limit_is_the_connections_own(house: House) -> None:
    first, second = house.connect(), house.connect()
    for _ in range(120):
        house.send(first, "{")
    assert house.send(first, "{") == {"error": "Rate limit exceeded"}
    assert "data" in house.request(second, "balances")


def test_a_message_over_the_limit_does_nothing() -> None:
    house = House(messages_per_second=2)
    connection = house.connect()
    house.subscribe(connection, "balances")
    assert "error" in house.request(connection, "swap", swap_body())
    assert house.broker.exchange.orders == {}


# ---- Operations


def test_balances_are_the_whole_account(house: House) -> None:
    reply = house.request(house.connect(), "balances")
    assert reply["op"] == "balances"
    balances = reply["data"]["balances"]
    assert {"asset": "ETH", "total": "1000", "locked": "0"} in balances
    assert len(balances) == 10


def test_an_estimate_has_the_documented_members(house: House) -> None:
    body = swap_body(network="mainnet", account="0x742d", filter=["gate"], amountIn="100")
    data = house.request(house.connect(), "estimate", body)["data"]
    assert set(data) == {"route", "price", "expectedOut", "fee", "expiresAt"}
    (step,) = data["route"]
    assert step == {
        "from_asset": "ETH",
        "to_asset": "USDT",
        "amount_in": "100",
        "amount_out": str(Decimal(data["expectedOut"]) + Decimal(data["fee"])),
        "pool": "ETH/USDT",
        "exchange": "gate",
    }
    assert Decimal(data["price"]) * 100 == Decimal(data["expectedOut"])
    assert data["expiresAt"] == house.moment.ms + 30_000


@pytest.mark.parametrize("op", ["estimate", "swap"])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"amountIn": "0"}, "Invalid amount"),
        ({"amountIn": "-1"}, "Invalid amount"),
        ({"amountIn": "NaN"}, "Invalid amount"),
        ({"amountIn": "1e2"}, "Invalid amount"),
        ({"amountIn": 1}, "Invalid amount"),
        ({"amountIn": "9" * 1000}, "Invalid amount"),
        ({"assetIn": "XYZ"}, "Unknown asset: XYZ"),
        ({"assetOut": "XYZ"}, "Unknown asset: XYZ"),
        ({"assetOut": "ETH"}, "An asset can't be swapped for itself"),
        ({"filter": ["binance", "kraken"]}, "Unknown liquidity source: kraken"),
        (
            {"filter": "binance"},
            "Invalid request: Expected `array | null`, got `str` - at `$.filter`",
        ),
        ({"assetIn": None}, "Invalid request: Object missing required field `assetIn`"),
    ],
)
def test_what_can_t_be_swapped_is_refused(
    house: House, op: str, changes: dict[str, Any], error: str
) -> None:
    assert house.request(house.connect(), op, swap_body(**changes)) == {"op": op, "error": error}
    assert house.broker.exchange.orders == {}


def test_a_swap_without_the_funds_is_refused(house: House) -> None:
    refused = {"op": "swap", "error": "Insufficient balance"}
    assert house.request(house.connect(), "swap", swap_body(amountIn="1000.1")) == refused


def test_a_swap_is_followed_to_its_end_by_pushes(house: House) -> None:
    connection = house.connect()
    house.force(Outcome.FILLED)
    house.subscribe(connection, "orders:ord_00000001")
    house.subscribe(connection, "balances")
    reply = house.request(connection, "swap", swap_body(slippage_bps=100, clientOrderId="mine"))
    assert reply == {"op": "swap", "data": {"orderId": "ord_00000001", "status": "PENDING"}}
    house.live()
    pushes = house.heard[connection]
    orders = [push["data"] for push in pushes if push["ch"] == "orders:ord_00000001"]
    assert [order["status"] for order in orders] == ["PENDING", "PROCESSING", "FILLED"]
    assert set(orders[0]) == {"orderId", "status", "filledOut", "updatedAt"}
    assert set(orders[2]) == {"orderId", "status", "filledOut", "updatedAt", "txHash"}
    balances = [push["data"] for push in pushes if push["ch"] == "balances"]
    assert balances == [
        [{"asset": "ETH", "total": "1000", "locked": "1.5"}],
        [
            {"asset": "ETH", "total": "998.5", "locked": "0"},
            {
                "asset": "USDT",
                "total": str(100_000 + Decimal(orders[2]["filledOut"])),
                "locked": "0",
            },
        ],
    ]
    for order_id in ("ord_00000001", "mine"):
        status = house.request(connection, "order_status", json.dumps({"id": order_id}))
        assert status == {"op": "order_status", "data": orders[2] | {"clientOrderId": "mine"}}


def test_an_order_without_a_client_order_id_has_none(house: House) -> None:
    connection = house.connect()
    house.request(connection, "swap", swap_body())
    status = house.request(connection, "order_status", '{"id":"ord_00000001"}')["data"]
    assert set(status) == {"orderId", "status", "filledOut", "updatedAt"}
    assert status["filledOut"] == "0"


def test_a_repeated_swap_gives_the_same_order_and_other_terms_an_error(house: House) -> None:
    connection = house.connect()
    house.force(Outcome.FILLED)
    body = swap_body(clientOrderId="mine", filter=["gate", "bybit"])
    first = house.request(connection, "swap", body)
    house.live()
    # Amounts are compared by their value, sources without regard to their order.
    body = swap_body(clientOrderId="mine", filter=["bybit", "gate"], amountIn="1.50")
    again = house.request(connection, "swap", body)
    assert again["data"] == first["data"] | {"status": "FILLED"}
    refused = house.request(connection, "swap", swap_body(clientOrderId="mine"))
    assert refused == {"op": "swap", "error": "Duplicate client order id"}
    assert len(house.broker.exchange.orders) == 1


def test_accounts_see_nothing_of_each_other(house: House) -> None:
    mine, other = house.connect(1), house.connect(2)
    for channel in ("balances", "orders:ord_00000001"):
        house.subscribe(other, channel)
    house.request(mine, "swap", swap_body(clientOrderId="mine"))
    house.live()
    assert house.heard[other] == []
    for order_id in ("ord_00000001", "mine"):
        body = json.dumps({"id": order_id})
        refused = house.request(other, "order_status", body, number=2)
        assert refused == {"op": "order_status", "error": "Order not found"}


def test_every_connection_of_an_account_hears_of_it(house: House) -> None:
    first, second = house.connect(), house.connect()
    house.subscribe(second, "balances")
    house.request(first, "swap", swap_body())
    assert house.heard[first] == []
    assert len(house.heard[second]) == 1


def test_a_closed_connection_receives_nothing(house: House) -> None:
    first, second = house.connect(), house.connect()
    house.subscribe(second, "balances")
    house.at += 1
    house.broker.close(second, house.at)
    house.broker.close(house.connect(None), house.at)
    house.request(first, "swap", swap_body())
    house.live()
    assert house.heard[second] == []
    assert (second.closed_at, first.closed_at) == (51.0, None)


def test_replies_repeat_the_nonce_if_wanted() -> None:
    house = House(echo_nonce=True)
    connection = house.connect(None)
    assert house.send(connection, auth(house.moment.wall, nonce="a"))["nonce"] == "a"
    assert house.request(connection, "balances", nonce="b")["nonce"] == "b"


# ---- What a test can see


def test_connections_tell_what_clients_sent_and_when(house: House) -> None:
    connection = house.connect()
    house.at += 1.5
    house.subscribe(connection, "balances")
    house.send(connection, b"?")
    assert [(r.at, r.op, r.channel) for r in connection.received] == [
        (50.0, "auth", None),
        (51.5, "subscribe", "balances"),
        (51.5, None, None),
    ]
    assert list(house.broker.connections) == [connection]
    assert list(connection.channels) == ["balances"]
    assert "test_key_1" not in repr(connection)


def test_memory_of_connections_and_messages_is_bounded() -> None:
    house = House(history_size=5)
    connection = house.connect()
    for _ in range(20):
        house.send(connection, "{}")
    assert len(connection.received) == 5
    for _ in range(20):
        house.broker.close(house.connect(None), house.at)
    assert [connection.number for connection in house.broker.connections] == [17, 18, 19, 20, 21]


def test_no_secret_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    connection = house.connect()
    house.request(connection, "swap", swap_body(clientOrderId="mine"))
    house.send(connection, auth(house.moment.wall, secret="test_secret_2"))
    house.live()
    assert "refused 'auth': Invalid signature" in caplog.text
    assert "FILLED" in caplog.text
    assert "test_" not in caplog.text


def test_hours_of_trading_end_with_every_client_knowing_what_it_has(house: House) -> None:
    connection = house.connect()
    house.subscribe(connection, "balances")
    known = {
        balance["asset"]: balance
        for balance in house.request(connection, "balances")["data"]["balances"]
    }
    for number in range(300):
        house.at += 60
        asset_in, asset_out = ("ETH", "USDT") if number % 2 else ("USDT", "ETH")
        house.request(connection, "swap", swap_body(assetIn=asset_in, assetOut=asset_out))
    house.live()
    for push in house.heard[connection]:
        known |= {balance["asset"]: balance for balance in push["data"]}
    balances = house.request(connection, "balances")["data"]["balances"]
    assert known == {balance["asset"]: balance for balance in balances}
    assert {balance["locked"] for balance in balances} == {"0"}
