"""The FastAPI example over HTTP: a real server, a real client, and a sandbox that misbehaves."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_broker
from examples.fastapi_service import app as service_app, board as service_board
from examples.fastapi_service.broker import named_broker, open_broker
from examples.fastapi_service.errors import _broker_problem, status_of
from examples.fastapi_service.models import BalancesOut
from tests.examples.odd_input import GOOD, VALUES, bad_bodies, with_value
from tests.examples.web_service import (
    Response,
    Service,
    broker_of,
    open_events,
    open_http,
    serving,
    until,
)
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    ConfigurationError,
    ConnectionState,
    DuplicateClientOrderIdError,
    Order,
    OrderStatus,
    ReconnectPolicy,
    SwapJournal,
)
from trio_broker._protocol import codec
from trio_broker.exceptions import server_error
from trio_broker.sandbox import Sandbox, open_sandbox

ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {
    "seed": 7,
    "order_id_prefix": "ord_",
    "outcomes": {"filled": 1},
    "pending_delay": (0.01, 0.02),
    "processing_delay": (0.01, 0.02),
}
HASTY: dict[str, Any] = {"request_timeout": 0.1, "resolve_timeout": 0.1, "reply_grace": 0.1}


@attrs.frozen
class Both:
    sandbox: Sandbox
    service: Service


@asynccontextmanager
async def both(*, rules: Mapping[str, Any] = QUICK, **options: Any) -> AsyncIterator[Both]:
    async with (
        open_sandbox(**rules) as sandbox,
        serving(broker_of(sandbox, **options)) as service,
    ):
        await service.connected()
        yield Both(sandbox, service)


def problem_of(response: Response) -> Any:
    """What an answer says went wrong, in the form that all of them have."""
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == response.status_code
    assert told.get("success") is (None if response.status_code == 500 else False)
    assert told["title"]
    assert told["detail"]
    assert told["error"]
    return told


# --- What works -----------------------------------------------------------------------------


async def test_status_tells_of_the_connection() -> None:
    async with both() as it:
        response = await it.service.http.get("/status")
    assert response.status_code == 200
    assert response.json() == {
        "websocket_connected": True,
        "state": "connected",
        "broker": "SANDBOX",
        "host": "the sandbox",
        "problem": None,
        "next_try_in": None,
        "unresolved_swaps": [],
    }


async def test_balances_are_texts() -> None:
    async with both() as it:
        response = await it.service.http.get("/balances")
        held = it.sandbox.balances()
    assert response.status_code == 200
    told = {balance["asset"]: balance for balance in response.json()["balances"]}
    assert told.keys() == held.keys()
    assert told["ETH"] == {"asset": "ETH", "total": "1000", "locked": "0", "available": "1000"}


async def test_an_estimate() -> None:
    asked = {"amount_in": "2", "asset_in": "ETH", "asset_out": "USDT"}
    async with both() as it:
        response = await it.service.http.post("/estimate", json=asked)
    assert response.status_code == 200
    told = response.json()
    assert Decimal(told["expected_out"]) > 1000
    assert told["route"][0]["from_asset"] == "ETH"
    assert told["expires_at"].endswith("Z")


async def test_a_swap_under_a_key_and_its_order() -> None:
    async with both() as it:
        response = await it.service.swap("0.10", "key-1", slippage_bps=50)
        (order,) = it.sandbox.orders()
        found = await it.service.http.get(response.headers["location"])
        resolved = await it.service.http.get(response.json()["swap"])
    assert response.status_code == 201
    told = response.json()
    assert told["success"] is True
    assert (told["order_id"], told["client_order_id"]) == (order.order_id, "key-1")
    assert (order.client_order_id, order.terms.amount_in) == ("key-1", Decimal("0.10"))
    assert found.status_code == 200
    assert found.json()["order_id"] == order.order_id
    assert resolved.status_code == 200
    assert resolved.json()["order_id"] == order.order_id


async def test_a_whole_number_is_an_amount_too() -> None:
    async with both() as it:
        asked = {"amount_in": 2, "asset_in": "ETH", "asset_out": "USDT"}
        assert (await it.service.http.post("/swap", json=asked)).status_code == 201


async def test_without_a_key_one_is_made() -> None:
    async with both() as it:
        first, second = await it.service.swap(), await it.service.swap()
        orders = it.sandbox.orders()
    keys = [response.json()["client_order_id"] for response in (first, second)]
    assert [order.client_order_id for order in orders] == keys
    assert len(set(keys)) == 2


async def test_the_page_runs_only_its_own_script() -> None:
    async with both() as it:
        response = await it.service.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "://" not in response.text  # nothing is loaded from elsewhere


async def test_the_schema_names_every_route() -> None:
    async with both() as it:
        schema = (await it.service.http.get("/openapi.json")).json()
    assert {"/status", "/balances", "/estimate", "/swap", "/events"} <= schema["paths"].keys()
    assert schema["components"]["schemas"]["SwapIn"]["properties"]["amount_in"]["type"] == "string"


# --- One key, one swap ----------------------------------------------------------------------


async def test_a_key_swaps_once() -> None:
    async with both() as it:
        first = await it.service.swap(key="once")
        again = await it.service.swap(key="once")
        found = await it.service.http.get(again.headers["location"])
        assert len(it.sandbox.orders()) == 1
    assert first.status_code == 201
    assert again.status_code == 409
    told = problem_of(again)
    assert (told["error"], told["outcome"]) == ("DuplicateClientOrderIdError", "confirmed")
    assert told["swap"] == again.headers["location"] == "/swaps/once"
    assert found.json()["order_id"] == first.json()["order_id"]


async def test_a_duplicate_that_the_broker_reports_names_the_order() -> None:
    async with both() as it:
        it.sandbox.faults.refuse("Duplicate client order id", executed=True, op="swap")
        swapped = await it.service.swap(key="known")
        (order,) = it.sandbox.orders()
        followed = await it.service.http.get(problem_of(swapped)["order"])
    assert swapped.status_code == 409
    told = problem_of(swapped)
    assert (told["error"], told["outcome"]) == ("DuplicateClientOrderIdError", "confirmed")
    assert told["swap"] == swapped.headers["location"] == "/swaps/known"
    assert order.order_id in told["detail"]
    assert "nothing was sent" not in told["detail"]
    assert followed.json()["order_id"] == order.order_id


async def test_a_refused_swap_that_was_executed_is_corrected() -> None:
    async with both() as it, it.service.events() as stream:
        it.sandbox.faults.refuse("Insufficient balance", executed=True, reply_after=0.2, op="swap")
        refused = await it.service.swap(key="both")
        shown = await stream.until("order", status="FILLED")
        found = await it.service.http.get("/swaps/both")
        (order,) = it.sandbox.orders()
    assert refused.status_code == 422
    assert shown["order_id"] == order.order_id
    assert (found.status_code, found.json()["outcome"]) == (200, "confirmed")
    assert found.json()["order_id"] == order.order_id


async def test_a_refused_swap_that_may_be_executed_is_shown_with_its_terms() -> None:
    async with both() as it, it.service.events() as stream:
        # Two refused swaps, and a receipt that may be of either.
        it.sandbox.faults.refuse("Insufficient balance", op="swap", times=1)
        assert (await it.service.swap(key="one")).status_code == 422
        it.sandbox.faults.refuse("Invalid amount", executed=True, reply_after=0.2, op="swap")
        with it.sandbox.faults.swallow(op="order_status", times=1):
            assert (await it.service.swap(key="two")).status_code == 422
            shown = await stream.until("order", status="FILLED", client_order_id="two")
        (order,) = it.sandbox.orders()
    assert (shown["order_id"], shown["amount_in"]) == (order.order_id, "0.1")


async def test_two_requests_at_once_with_one_key_swap_once() -> None:
    answers: list[int] = []

    async def swap(service: Service) -> None:
        answers.append((await service.swap(key="twice")).status_code)

    async with both() as it, trio.open_nursery() as nursery:
        nursery.start_soon(swap, it.service)
        nursery.start_soon(swap, it.service)
        await until(lambda: len(answers) == 2)
        assert len(it.sandbox.orders()) == 1
    assert sorted(answers) == [201, 409]


async def test_an_unknown_outcome_is_202_and_a_link_that_asks_again() -> None:
    async with both(**HASTY) as it, it.service.events() as stream:
        with it.sandbox.faults.swallow(op="swap"), it.sandbox.faults.swallow(op="order_status"):
            swapped = await it.service.swap(key="lost")
            assert swapped.status_code == 202
            told = await stream.until("status", websocket_connected=True)
            while not told["unresolved_swaps"]:
                told = await stream.until("status", websocket_connected=True)
            still = await it.service.http.get(swapped.headers["location"])
        (order,) = it.sandbox.orders()
        # The client may be without a connection for a moment.
        while (found := await it.service.http.get(swapped.headers["location"])).status_code == 202:
            pass
        while (await stream.until("status"))["unresolved_swaps"]:
            pass
        shown = await stream.until("order", status="FILLED", amount_in="0.1")
    assert (swapped.json()["success"], swapped.json()["outcome"]) == (None, "unknown")
    (unresolved,) = told["unresolved_swaps"]
    assert (unresolved["client_order_id"], unresolved["amount_in"]) == ("lost", "0.1")
    assert (still.status_code, still.json()["outcome"]) == (202, "unknown")
    assert (found.status_code, found.json()["success"]) == (200, True)
    assert found.json()["order_id"] == shown["order_id"] == order.order_id


async def test_a_doubt_is_cleared_without_anybody_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_board, "ASK_AGAIN_AFTER", 0.01)
    async with both(**HASTY) as it, it.service.events() as stream:
        with it.sandbox.faults.swallow(op="swap"), it.sandbox.faults.swallow(op="order_status"):
            assert (await it.service.swap(key="lost")).status_code == 202
            while not (await stream.until("status"))["unresolved_swaps"]:
                pass
            it.sandbox.drop_connections()
            await stream.until("status", websocket_connected=False)
        while (await stream.until("status"))["unresolved_swaps"]:
            pass
        shown = await stream.until("order", status="FILLED", amount_in="0.1")
    assert shown["client_order_id"] == "lost"


async def test_whoever_asks_for_an_outcome_waits_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_app, "PATIENCE", 0.05)
    timeouts: dict[str, Any] = {"request_timeout": 0.5, "resolve_timeout": 0.1}
    async with both(**timeouts) as it, trio.open_nursery() as nursery:
        faults = it.sandbox.faults
        with faults.delay(60, op="swap"), faults.swallow(op="order_status"):
            nursery.start_soon(it.service.swap, "0.1", "slow")
            await until(it.sandbox.orders)
            asked = await it.service.http.get("/swaps/slow")
        nursery.cancel_scope.cancel()
    assert (asked.status_code, asked.json()["outcome"]) == (202, "unknown")


async def test_a_refused_swap_says_so_under_its_key() -> None:
    async with both() as it:
        refused = await it.service.swap("1000000", "rich")
        asked = await it.service.http.get("/swaps/rich")
        assert it.sandbox.orders() == ()
    assert refused.status_code == 422
    assert "Insufficient balance" in problem_of(refused)["detail"]
    assert asked.status_code == 200
    assert (asked.json()["success"], asked.json()["outcome"]) == (False, "refused")
    assert asked.json()["detail"] == "Insufficient balance"


async def test_a_swap_that_never_left_says_so() -> None:
    answers: dict[str, Response] = {}

    async def swap(service: Service, key: str) -> None:
        answers[key] = await service.swap(key=key)

    async def ask(service: Service, key: str) -> None:
        answers[f"about {key}"] = await service.http.get(f"/swaps/{key}")

    # The first one has no reply, and the second can't leave before.
    async with both(request_timeout=0.2, resolve_timeout=0.2, reply_grace=5.0) as it:
        with it.sandbox.faults.ignore(op="swap"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swap, it.service, "first")
                await until(it.service.client.unresolved_swaps)
                nursery.start_soon(swap, it.service, "second")
                await until(lambda: it.service.client.statistics().requests_waiting)
                nursery.start_soon(ask, it.service, "second")
    assert (answers["second"].status_code, answers["first"].status_code) == (503, 202)
    assert answers["second"].json()["error"] == "NotSentError"
    about = answers["about second"]
    assert (about.status_code, about.json()["outcome"]) == (200, "not sent")
    assert about.json()["success"] is False


async def test_a_caller_that_hangs_up_loses_nothing() -> None:
    async with both() as it:
        with it.sandbox.faults.delay(0.2, op="swap"), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.service.swap, "0.1", "gone")
                await until(it.sandbox.orders)
                scope.cancel()
        (order,) = it.sandbox.orders()
        asked = await it.service.http.get("/swaps/gone")
        async with it.service.events() as stream:
            await stream.until("order", order_id=order.order_id, amount_in="0.1", status="FILLED")
    assert asked.json()["order_id"] == order.order_id


async def test_a_journal_tells_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "swaps.journal"
    async with open_sandbox(**QUICK) as sandbox:
        async with serving(broker_of(sandbox, journal=SwapJournal(file), **HASTY)) as service:
            await service.connected()
            with sandbox.faults.swallow(op="swap"), sandbox.faults.swallow(op="order_status"):
                assert (await service.swap(key="left")).status_code == 202
        async with (
            serving(broker_of(sandbox, journal=SwapJournal(file))) as service,
            service.events() as stream,
        ):
            shown = await stream.until("order", status="FILLED")
            assert (await service.swap(key="left")).status_code == 409
        assert len(sandbox.orders()) == 1
    assert (shown["client_order_id"], shown["asset_in"]) == ("left", "ETH")


# --- What is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.1, True, "0", "-1", "NaN", "much", None, "1e400"])
async def test_what_is_no_amount_sends_nothing(amount: object) -> None:
    asked = {"amount_in": amount, "asset_in": "ETH", "asset_out": "USDT"}
    async with both() as it:
        for path in ("/swap", "/estimate"):
            response = await it.service.http.post(path, json=asked)
            assert response.status_code == 422
            problem_of(response)
        ops = {message.op for each in it.sandbox.connections for message in each.received}
        assert not ops & {"swap", "estimate"}
    if amount == 0.1:
        assert 'send the amount as a string: "0.1"' in response.json()["detail"]


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"asset_in": ""}, "key"),
        ({"asset_in": "ÜTH"}, "key"),
        ({"slippage_bps": 10_001}, "key"),
        ({"slippage_bps": True}, "key"),
        ({"slippage_bps": "50"}, "key"),
        ({"slippage_bps": 50.0}, "key"),
        ({"slipage_bps": 5}, "key"),
        ({"filter_sources": "binance"}, "key"),
        ({}, "k" * 65),
        ({}, 'quo"ted'),
        ({}, ""),
    ],
)
async def test_what_cannot_be_swapped_sends_nothing(asked: dict[str, Any], key: str) -> None:
    async with both() as it:
        response = await it.service.swap("0.1", key, **asked)
        assert response.status_code == 422
        problem_of(response)
        assert it.sandbox.orders() == ()


@pytest.mark.parametrize("path", ["/swap", "/estimate"])
async def test_what_cannot_be_used_is_refused_with_a_message(path: str) -> None:
    optional = {"/swap": ("slippage_bps",), "/estimate": ("network",)}[path]
    headers = {"Content-Type": "application/json"}
    async with both() as it:

        async def code(body: bytes) -> int:
            response = await it.service.http.post(path, content=body, headers=headers)
            if response.status_code != 200:
                problem_of(response)
            return response.status_code

        for body in bad_bodies("amount_in", "asset_in", "asset_out"):
            assert 400 <= await code(body) < 500, body[:100]
        for field in ("filter_sources", "account", *optional):
            for value in VALUES:
                wrong = await code(with_value(field, value, amount_in="1000000000"))
                # The broker knows no account and no network, and takes any text for one.
                assert wrong == 200 or 400 <= wrong < 500, (field, value)
        for key in (b"\xff", "ü".encode(), b"a" * 65, b"\x1b[2J"):
            wrong_key = {b"Idempotency-Key": key}
            response = await it.service.http.post("/swap", json=GOOD, headers=wrong_key)
            assert response.status_code == 422, key
        for name in ("%ED%A0%80", "%00", "%C3%BC", "9" * 400):
            for place in ("/swaps", "/orders"):
                response = await it.service.http.get(f"{place}/{name}")
                # A name that can't be an order's, or that the broker doesn't know.
                assert response.status_code in {404, 422}, (place, name)
        assert it.sandbox.orders() == ()


async def test_what_the_broker_does_not_know() -> None:
    async with both() as it:
        order = await it.service.http.get("/orders/ord_nowhere")
        asset = await it.service.swap(asset_in="PEAR")
        empty = await it.service.http.get("/orders/")
        path = await it.service.http.get("/nowhere")
        method = await it.service.http.get("/swap")
    assert (order.status_code, problem_of(order)["error"]) == (404, "OrderNotFoundError")
    assert (asset.status_code, problem_of(asset)["error"]) == (422, "UnknownAssetError")
    assert "PEAR" in asset.json()["detail"]
    assert (empty.status_code, path.status_code, method.status_code) == (422, 404, 405)
    for response in (empty, path, method):
        problem_of(response)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Invalid signature", 502),
        ("Request timestamp outside allowed window", 502),
        ("Unknown operation: balances", 502),
        ("Rate limit exceeded", 503),
        ("INSUFFICIENT_BALANCE", 422),
    ],
)
async def test_a_refusal_of_the_brokers(text: str, status: int) -> None:
    async with both() as it:
        it.sandbox.faults.replace({"op": "balances", "error": text}, op="balances")
        response = await it.service.http.get("/balances")
    assert response.status_code == status
    assert text in problem_of(response)["detail"]
    assert ("retry-after" in response.headers) == (status == 503)


STATUSES = {
    "BrokerError": 502,
    "DuplicateClientOrderIdError": 409,
    "SlippageError": 409,
    "QuoteExpiredError": 409,
    "MessageTooLargeError": 413,
    "NotSentError": 503,
    "NotConnectedError": 503,
    "ClientClosedError": 503,
    "JournalError": 503,
    "ConnectionLostError": 503,
    "ConnectFailedError": 503,
    "CertificateError": 503,
    "ReconnectFailedError": 503,
    "SubscriptionBrokenError": 503,
    "RequestTimeoutError": 504,
    "AuthenticationTimeoutError": 504,
    "SwapOutcomeUnknownError": 202,
    "OrderUnfinishedError": 202,
    "AuthenticationError": 502,
    "InvalidApiKeyError": 502,
    "InvalidSignatureError": 502,
    "ClockSkewError": 502,
    "NonceReusedError": 502,
    "NotAuthenticatedError": 502,
    "UnknownOperationError": 502,
    "OrderNotFoundError": 404,
    "RateLimitedError": 503,
    "InternalServerError": 502,
    "ReplyTooLargeError": 502,
    "ProtocolError": 502,
    # None of them comes out of a route.
    "ConfigurationError": 502,
    "ChannelError": 502,
    "SlowConsumerError": 502,
    "SubscriptionLimitError": 502,
    "UnreadableError": 502,
}
# For these, the broker's code decides.
REFUSALS = {
    "ServerError",
    "InvalidChannelError",
    "InsufficientBalanceError",
    "InvalidAmountError",
    "UnknownAssetError",
    "InvalidRequestError",
}


def test_every_error_has_a_status() -> None:
    kinds = {
        name: kind
        for name, kind in vars(trio_broker).items()
        if isinstance(kind, type) and issubclass(kind, BrokerError) and name not in REFUSALS
    }
    assert {name: status_of(kind.__new__(kind)) for name, kind in kinds.items()} == STATUSES


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Order not found", 404),
        ("ORDER_NOT_FOUND", 404),
        ("Duplicate client order id", 409),
        ("DUPLICATE_REQUEST", 409),
        ("RATE_LIMIT_EXCEEDED", 503),
        ("Invalid channel format", 422),
        ("SWAP_ERROR", 422),
        ("Insufficient balance", 422),
        ("Something that speaks of a duplicate, not found, rate limit", 422),
    ],
)
def test_refusal_has_a_status_by_its_class_and_code(text: str, status: int) -> None:
    assert status_of(server_error("swap", text)) == status


def test_reported_duplicate_names_the_order() -> None:
    order = Order("ord_5", OrderStatus.FILLED)
    error = DuplicateClientOrderIdError("mine", "unknown", was_sent=True, order=order)
    board: Any = None
    response = _broker_problem(board, error)
    body = json.loads(bytes(response.body))
    assert response.status_code == 409
    assert (body["swap"], body["order"]) == ("/swaps/mine", "/orders/ord_5")
    assert "nothing was sent" not in body["detail"]


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ({"total": "NaN", "locked": "1"}, ("unreadable", "1", "unreadable")),
        ({"total": "5", "locked": {}}, ("5", "unreadable", "unreadable")),
        ({"total": "5", "locked": ""}, ("5", None, "5")),
    ],
)
def test_unreadable_balance_is_shown_as_unreadable(
    entry: dict[str, Any], shown: tuple[str | None, ...]
) -> None:
    push = codec.decode_message(json.dumps({"ch": "x", "data": [{"asset": "BTC", **entry}]}))
    (balance,) = BalancesOut.of(codec.decode_balances_push(push)).balances
    found = json.loads(balance.model_dump_json())
    assert tuple(found[name] for name in ("total", "locked", "available")) == shown


async def test_a_mistake_of_ours_is_not_told_to_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: BrokerWSClient) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(BrokerWSClient, "get_balances", broken)
    async with both() as it:
        response = await it.service.http.get("/balances")
        assert (await it.service.http.get("/status")).status_code == 200
    assert response.status_code == 500
    assert "secret" not in response.text
    problem_of(response)


async def test_a_mistake_of_ours_does_not_deny_the_swap_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service_board.Board, "follow", broken)
    async with both() as it:
        response = await it.service.swap(key="taken")
        again = await it.service.swap(key="taken")
        assert len(it.sandbox.orders()) == 1
    assert response.status_code == 500
    assert "success" not in problem_of(response)
    assert problem_of(again)["outcome"] == "confirmed"


# --- Without a connection -------------------------------------------------------------------


async def test_a_service_starts_before_its_broker() -> None:
    async with open_sandbox(**QUICK) as sandbox:
        sandbox.faults.kill()
        async with serving(
            broker_of(sandbox, request_timeout=0.05, resolve_timeout=0.05)
        ) as service:
            status = await service.http.get("/status")
            swap = await service.swap(key="early")
            balances = await service.http.get("/balances")
            outcome = await service.http.get("/swaps/early")
            await sandbox.faults.revive()
            await service.connected()
            assert (await service.swap(key="early")).status_code == 201
            assert (await service.http.get("/status")).json()["websocket_connected"]
    assert status.status_code == 200
    assert status.json()["websocket_connected"] is False
    assert status.json()["problem"]
    assert (swap.status_code, problem_of(swap)["error"]) == (503, "NotConnectedError")
    assert (balances.status_code, problem_of(balances)["error"]) == (503, "NotConnectedError")
    assert int(swap.headers["retry-after"]) >= 1
    assert (outcome.status_code, outcome.json()["outcome"]) == (202, "unknown")


async def test_retry_after_is_the_next_try() -> None:
    patient = ReconnectPolicy(max_attempts=None, initial_delay=1000.0, max_delay=1000.0)
    async with both(reconnect=patient) as it, it.service.events() as stream:
        it.sandbox.faults.kill()
        told = await stream.until("status", websocket_connected=False)
        swap = await it.service.swap()
    assert 400 < told["next_try_in"] <= 1000
    assert 400 < int(swap.headers["retry-after"]) <= 1000


async def test_a_read_that_is_not_answered_is_504() -> None:
    async with both(request_timeout=0.05) as it:
        async with it.service.events() as stream:
            await stream.until("balances")
        it.sandbox.faults.swallow(op="balances")
        response = await it.service.http.get("/balances")
    assert (response.status_code, problem_of(response)["error"]) == (504, "RequestTimeoutError")


async def test_refused_keys_leave_a_service_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with open_sandbox(**QUICK) as sandbox:
        sandbox.faults.refuse_auth()
        async with serving(broker_of(sandbox)) as service:
            with pytest.raises(BrokerError):
                await service.client.wait_closed()
            await wait_all_tasks_blocked()
            async with service.events() as stream:
                told = await stream.until("status")
            answers = [await service.http.get(path) for path in ("/status", "/balances", "/")]
            answers += [await service.swap(), await service.http.get("/swaps/any")]
    assert told == answers[0].json()
    assert (told["state"], told["websocket_connected"]) == ("failed", False)
    assert "Invalid signature" in told["problem"]
    assert [answer.status_code for answer in answers] == [200, 502, 200, 502, 202]
    # To try again would go on for ever.
    assert not any("retry-after" in answer.headers for answer in answers)
    assert sandbox.secret_key not in "".join(answer.text for answer in answers)
    assert "the connection failed permanently" in caplog.text


async def test_a_service_that_is_stopped_before_it_was_connected() -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.kill()
        async with serving(broker_of(sandbox)) as service:
            pass
        assert service.client.state is ConnectionState.CLOSED


# --- The stream -----------------------------------------------------------------------------


async def test_a_stream_begins_with_how_things_stand() -> None:
    async with both() as it:
        swapped = (await it.service.swap()).json()
        async with it.service.events() as first:
            while not (header := (await first.line()).lower()).startswith("content-type"):
                pass
            await first.until("order", order_id=swapped["order_id"], status="FILLED")
        async with it.service.events() as stream:
            kinds = [(await stream.next()).kind for _ in range(3)]
    assert "text/event-stream" in header
    assert kinds == ["status", "balances", "order"]


async def test_a_stream_tells_what_changes_over_an_outage() -> None:
    async with both() as it, it.service.events() as stream:
        await stream.until("balances")
        it.sandbox.faults.kill()
        lost = await stream.until("status", websocket_connected=False)
        await it.sandbox.faults.revive()
        await stream.until("status", websocket_connected=True)
        swapped = (await it.service.swap("0.5")).json()
        seen: list[str] = []
        held: dict[str, Decimal] = {}
        # The last state of the order and the last balances come in either order.
        while seen[-1:] != ["FILLED"] or held.get("USDT", 0) <= 100_000:
            event = await stream.next()
            if event.kind == "order":
                order = event.data
                seen.append(order["status"])
            elif event.kind == "balances":
                told = event.data["balances"]
                held = {each["asset"]: Decimal(each["available"]) for each in told}
        assert held == {
            asset: balance.available for asset, balance in it.sandbox.balances().items()
        }
    assert lost["problem"]
    assert order["order_id"] == swapped["order_id"]
    assert Decimal(order["filled_out"]) > 0
    assert seen[:-1] == sorted(seen[:-1])  # PENDING, then PROCESSING; some may be skipped


async def test_what_is_gone_after_an_outage_is_not_shown_any_more() -> None:
    def assets(told: Any) -> set[str]:
        return {balance["asset"] for balance in told["balances"]}

    async with both() as it, it.service.events() as stream:
        await stream.until("balances")
        it.sandbox.push('{"ch":"balances","data":[{"asset":"PEAR","total":"1"}]}')
        while "PEAR" not in assets(await stream.until("balances")):
            pass
        it.sandbox.drop_connections()
        while "PEAR" in assets(await stream.until("balances")):
            pass


async def test_browsers_share_one_subscription_and_leave_nothing() -> None:
    async with both() as it:
        async with it.service.events() as one, it.service.events() as two:
            await one.until("balances")
            await two.until("balances")
            assert it.service.client.statistics().subscriptions == 1
            assert len(it.service.board.watches) == 2
        await until(lambda: not it.service.board.watches)


async def test_a_browser_that_reads_slowly_skips_what_is_out_of_date() -> None:
    async with both() as it, it.service.events() as stream:
        with it.service.board.watch() as slow:
            for _ in range(5):
                await it.service.swap()
            for number in range(1, 6):
                await stream.until("order", order_id=f"ord_{number:08d}", status="FILLED")
            events = [await anext(slow) for _ in range(7)]
    assert sorted(event.split()[1] for event in events) == ["balances", *["order"] * 5, "status"]
    assert sum('"status":"FILLED"' in event for event in events) == 5


async def test_a_quiet_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_board, "HEARTBEAT", 0.01)
    async with both() as it, it.service.events() as stream:
        while await stream.line() != ": still here":
            pass


async def test_old_orders_make_room_once_they_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_board, "ORDERS_SHOWN", 2)
    async with both() as it, it.service.events() as stream:
        with it.service.board.watch() as slow:
            for number in range(1, 5):
                await it.service.swap()
                await stream.until("order", order_id=f"ord_{number:08d}", status="FILLED")
            events = [await anext(slow) for _ in range(4)]
    assert "ord_00000001" not in "".join(events)
    assert "ord_00000004" in "".join(events)


async def test_refused_balances_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_board, "RESUBSCRIBE_AFTER", 0.01)
    async with open_sandbox(**QUICK) as sandbox:
        sandbox.faults.refuse_channel("balances", times=2)
        async with serving(broker_of(sandbox)) as service, service.events() as stream:
            await stream.until("balances")
    assert caplog.text.count("no balances for now") == 2


async def test_streams_end_when_the_service_stops() -> None:
    async with both() as it, it.service.events() as one, it.service.events() as two:
        await one.until("balances")
        await two.until("balances")
        it.service.stop.set()
        assert await one.ends()
        assert await two.ends()
    assert it.service.client.state is ConnectionState.CLOSED


# --- Who may ask ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": ""}, 403),
        ({"Host": "evil.example:abc"}, 403),
        ({"Host": "a@evil.example"}, 403),
        ({"Host": "127.0.0.1@evil.example"}, 403),
        ({"Host": "evil.example/127.0.0.1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "LocalHost:8000", "Origin": "http://localhost:8000"}, 201),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, 201),
        ({"Host": "localhost", "Origin": "https://localhost"}, 201),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8001"}, 403),
        ({"Content-Type": "text/plain"}, 422),
        ({}, 201),
    ],
)
async def test_another_sites_page_swaps_nothing(headers: dict[str, str], status: int) -> None:
    asked = b'{"amount_in": "0.1", "asset_in": "ETH", "asset_out": "USDT"}'
    headers = {"Content-Type": "application/json", **headers}
    async with both() as it:
        response = await it.service.http.post("/swap", content=asked, headers=headers)
        assert len(it.sandbox.orders()) == (status == 201)
    assert response.status_code == status
    if status != 201:
        problem_of(response)


async def test_the_own_page_and_a_name_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_HOSTS", "other.example, Desk.example ,")
    async with both() as it:
        own = await it.service.http.get("/status", headers={"Origin": it.service.url})
        named = await it.service.http.get("/status", headers={"Host": "desk.example"})
        stranger = await it.service.http.get("/status", headers={"Host": "evil.example"})
    assert [each.status_code for each in (own, named, stranger)] == [200, 200, 403]


@pytest.mark.parametrize(
    ("token", "shown", "status"),
    [
        (None, "Bearer anything", 403),
        ("right", None, 401),
        ("right", "Bearer wrong", 401),
        ("right", "Bearer ärger", 401),
        ("right", "Bearer right", 201),
    ],
)
async def test_real_money_wants_a_token(token: str | None, shown: str | None, status: int) -> None:
    asked = {"amount_in": "0.1", "asset_in": "ETH", "asset_out": "USDT"}
    headers = {} if shown is None else {b"Authorization": shown.encode()}
    async with open_sandbox(**QUICK) as sandbox:
        live = attrs.evolve(broker_of(sandbox), is_sandbox=False, swap_token=token)
        async with serving(live) as service:
            await service.connected()
            told = (await service.http.get("/status")).json()
            response = await service.http.post("/swap", json=asked, headers=headers)
        assert len(sandbox.orders()) == (status == 201)
    assert told["broker"] == "LIVE"
    assert response.status_code == status
    assert ("www-authenticate" in response.headers) == (status == 401)


# --- Which broker ---------------------------------------------------------------------------

PLAY = {"BROKER_API_KEY": "test_key_1", "BROKER_SECRET_KEY": "test_secret_1"}
REAL = {"BROKER_API_KEY": "a_key", "BROKER_SECRET_KEY": "a_secret"}
SOMEWHERE = {"BROKER_BASE_URL": "https://broker.example"}
HERE = {"BROKER_WS_URL": "ws://127.0.0.1:8765/ws/v1/stream"}


@pytest.mark.parametrize(
    ("environ", "is_sandbox"),
    [
        ({**PLAY, **HERE}, True),
        ({**REAL, **HERE}, False),
        ({**PLAY, **SOMEWHERE}, False),
        ({**REAL, **SOMEWHERE}, False),
    ],
)
def test_what_is_not_certainly_play_money_is_real(
    environ: dict[str, str], *, is_sandbox: bool
) -> None:
    broker = named_broker(environ)
    assert broker.is_sandbox is is_sandbox
    assert broker.swap_token is None
    assert "secret" not in repr(broker)


def test_real_swaps_want_a_journal_besides_the_token(tmp_path: Path) -> None:
    environ = {**REAL, **SOMEWHERE, "SERVICE_SWAP_TOKEN": "hush"}
    with pytest.raises(ConfigurationError, match="BROKER_JOURNAL"):
        named_broker(environ)
    broker = named_broker({**environ, "BROKER_JOURNAL": str(tmp_path / "journal")})
    assert (broker.swap_token, broker.host) == ("hush", "broker.example")
    assert "hush" not in repr(broker)


@pytest.mark.parametrize("journal", [None, "swaps.journal"])
async def test_a_service_that_forgets_its_keys_says_so(
    journal: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = {} if journal is None else {"BROKER_JOURNAL": str(tmp_path / journal)}
    async with open_broker({**REAL, **SOMEWHERE, **kept}):
        pass
    assert ("no BROKER_JOURNAL" in caplog.text) == (journal is None)


async def test_the_named_broker_is_opened() -> None:
    async with open_broker({**PLAY, **HERE}) as broker:
        assert broker.host == "127.0.0.1:8765"


# --- As a process ---------------------------------------------------------------------------

COMMAND = "python -m examples.fastapi_service"


def environment(**variables: str) -> dict[str, str]:
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BROKER_", "SERVICE_"))
    }
    return {**own, **variables}


async def run(*args: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *COMMAND.split()[1:], *args]
    return await trio.run_process(
        command,
        cwd=ROOT,
        env=environment(**variables),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


def test_the_command_is_the_pages() -> None:
    page = (ROOT / "examples" / "fastapi_service" / "README.md").read_text(encoding="utf-8")
    assert f".venv/bin/{COMMAND}\n" in page


@asynccontextmanager
async def started(*args: str) -> AsyncIterator[tuple[trio.Process, str]]:
    """A process that serves, and where."""
    process = await trio.lowlevel.open_process(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = process.stdout
    assert output is not None
    said = b""

    async def hear() -> None:
        nonlocal said
        async for chunk in output:
            said += chunk

    async with output, trio.open_nursery() as nursery:
        try:
            with trio.fail_after(60):
                while not (found := re.search(rb"Running on (http://\S+)", said)):
                    chunk = await output.receive_some()
                    assert chunk, said
                    said += chunk
            nursery.start_soon(hear)  # or it would wait for us once the pipe is full
            yield process, found[1].decode()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    assert b"Traceback" not in said, said.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_serves_until_it_is_told(number: signal.Signals) -> None:
    async with started(*COMMAND.split()[1:], "--bind", "127.0.0.1:0") as (process, url):
        async with open_http(url) as http, open_events(url) as stream:
            await stream.until("balances")
            status = (await http.get("/status")).json()
            process.send_signal(number)
            assert await stream.ends()
        assert await process.wait() == 0
    assert (status["broker"], status["websocket_connected"]) == ("SANDBOX", True)


async def test_the_command_says_what_is_wrong_in_a_line() -> None:
    missing = await run(BROKER_API_KEY="a_key")
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)
    assert b"BROKER_SECRET_KEY" in missing.stderr
    where = {"BROKER_SECRET_KEY": "a_secret", "BROKER_WS_URL": "http://[::1"}
    unreadable = await run(BROKER_API_KEY="a_key", **where)
    assert (unreadable.returncode, unreadable.stderr.count(b"\n")) == (1, 1)
    assert b"BROKER_WS_URL isn't a URL" in unreadable.stderr
    (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{taken.socket.getsockname()[1]}"
    busy = await run("--bind", address)
    await taken.aclose()
    assert busy.returncode == 1
    told = busy.stderr.decode().splitlines()[-1]
    assert told.startswith(f"can't listen at {address}: ")
    assert os.strerror(errno.EADDRINUSE) in told
    assert b"Traceback" not in busy.stderr


async def test_hypercorns_own_command_serves_it_too() -> None:
    command = "--worker-class trio --bind 127.0.0.1:0 examples.fastapi_service.app:app"
    async with started("-m", "hypercorn", *command.split()) as (process, url):
        async with open_http(url) as http:
            assert (await http.get("/status")).status_code == 200
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
