"""The sandbox's REST side over real sockets, with an HTTP client and without one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.sandbox.test_server import open_raw
from tests.sandbox_client import signed, swap_body
from trio_broker.sandbox import (
    Account,
    Outcome,
    RestAsked,
    Sandbox,
    SandboxEvent,
    open_sandbox,
    open_threaded_sandbox,
)
from trio_broker.sandbox.rest import RestBroker

BALANCES = "/api/v1/balances"
TIME = "/api/v1/time"
START = 1_732_526_400.0
_nonces = itertools.count(1)


def headers_for(
    target: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    at: float | None = None,
    number: int = 1,
    nonce: str | None = None,
    raw: bool = False,
) -> dict[str, str]:
    """The headers of a private request, as the broker's documentation has them."""
    ts = str(int((time.time() if at is None else at) * 1000))
    nonce = nonce or f"rest-{next(_nonces)}"
    secret = f"test_secret_{number}"
    digest = hashlib.sha256(body).hexdigest()
    canonical = f"{method}\n{target}\n{ts}\n{nonce}\n{digest}"
    derived = base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest())
    key = secret.encode() if raw else derived
    return {
        "X-API-KEY": f"test_key_{number}",
        "X-API-TIMESTAMP": ts,
        "X-API-NONCE": nonce,
        "X-API-SIGN": hmac.new(key, canonical.encode(), "sha256").hexdigest(),
        "Content-Type": "application/json",
    }


class Rest:
    """An HTTP client of a sandbox."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def get(self, target: str, headers: dict[str, str] | None = None) -> httpx2.Response:
        return await self.http.get(target, headers=headers)

    async def private(self, target: str, **options: Any) -> httpx2.Response:
        return await self.http.get(target, headers=headers_for(target, **options))


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[tuple[Sandbox, Rest]]:
    async with (
        open_sandbox(**settings) as sandbox,
        httpx2.AsyncClient(base_url=sandbox.rest_url, trust_env=False, timeout=None) as http,
    ):
        yield sandbox, Rest(http)


def error_of(response: httpx2.Response) -> tuple[int, str]:
    body = response.json()
    assert body.keys() == {"code", "message", "request_id"}
    assert all(body.values())
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    return response.status_code, body["code"]


@pytest.fixture(autouse=True)
def _no_mistake_of_the_sandboxs(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Any:
    yield
    if "mistake" not in request.node.name:
        assert "mistake" not in caplog.text


# ---- What it answers


async def test_what_is_public_needs_no_key() -> None:
    async with opened(clock=lambda: START) as (_, rest):
        ms = int(START * 1000)
        assert (await rest.get("/healthz")).json() == {"status": "ok", "time": ms}
        assert (await rest.get("/version")).json() == {"version": "sandbox"}
        response = await rest.get(TIME)
        assert response.json() == {"serverTime": ms}
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"


async def test_balances_are_those_of_the_account() -> None:
    accounts = [Account("third", "secret", {"BTC": 1})]
    async with opened(accounts=accounts) as (sandbox, rest):
        (held,) = [
            each
            for each in (await rest.private(BALANCES)).json()["balances"]
            if each["asset"] == "BTC"
        ]
        assert held == {"asset": "BTC", "total": "10", "locked": "0"}
        assert sandbox.rest_url != sandbox.url.replace("ws:", "http:").partition("/ws")[0]


@pytest.mark.parametrize("lookup_by_client_order_id", [True, False])
async def test_an_order_is_found_by_both_ids_and_in_both_forms(
    lookup_by_client_order_id: bool,
) -> None:
    settings: dict[str, Any] = {"lookup_by_client_order_id": lookup_by_client_order_id}
    outcomes = {Outcome.FILLED: 1}
    async with opened(outcomes=outcomes, **settings) as (sandbox, rest), open_raw(sandbox) as raw:
        receipt = await raw.request("swap", swap_body(clientOrderId="mine 1/é"))
        order_id = receipt["data"]["orderId"]
        for target in (
            f"/api/v1/orders/{order_id}/status",
            "/api/v1/orders/mine%201%2F%C3%A9/status",
            "/api/v1/orders/status?clientOrderId=mine+1%2F%C3%A9",
            f"/api/v1/orders/{order_id}/status?clientOrderId=mine%201%2F%C3%A9",
            "/api/v1/orders/another/status?clientOrderId=mine%201%2F%C3%A9",
        ):
            data = (await rest.private(target)).json()
            assert data["orderId"] == order_id
            assert data["clientOrderId"] == "mine 1/é"
            assert data.keys() >= {"status", "filledOut", "updatedAt"}
        for target in (
            f"/api/v1/orders/{order_id}/status?clientOrderId=another",
            f"/api/v1/orders/status?clientOrderId={order_id}",
            "/api/v1/orders/another/status",
        ):
            assert error_of(await rest.private(target)) == (404, "NOT_FOUND")
        # Another account's.
        target = f"/api/v1/orders/{order_id}/status"
        assert error_of(await rest.private(target, number=2)) == (404, "NOT_FOUND")
        assert error_of(await rest.private("/api/v1/orders/status")) == (400, "INVALID_REQUEST")


async def test_an_order_without_client_order_id_has_none_over_rest() -> None:
    async with opened() as (sandbox, rest), open_raw(sandbox) as raw:
        receipt = await raw.request("swap", swap_body())
        order_id = receipt["data"]["orderId"]
        data = (await rest.private(f"/api/v1/orders/{order_id}/status")).json()
        assert "clientOrderId" not in data


async def test_nothing_is_swapped_or_estimated_over_rest() -> None:
    async with opened() as (sandbox, rest):
        for target in ("/api/v1/swap", "/api/v1/estimate"):
            headers = headers_for(target, method="POST", body=b"{}")
            response = await rest.http.post(target, headers=headers, content=b"{}")
            assert error_of(response) == (404, "NOT_FOUND")
        assert not sandbox.orders()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("target", ["/healthz", BALANCES, "/api/v1/orders/x/status"])
async def test_every_other_method_is_refused(method: str, target: str) -> None:
    async with opened() as (_, rest):
        response = await rest.http.request(method, target)
        assert error_of(response) == (405, "INVALID_REQUEST")
        assert response.headers["allow"] == "GET"
        # The connection can still be used.
        assert (await rest.get(TIME)).status_code == 200


async def test_head_gets_the_head_alone() -> None:
    async with opened() as (_, rest):
        response = await rest.http.head(TIME)
        assert (response.status_code, response.content) == (405, b"")
        assert int(response.headers["content-length"]) > 0
        assert (await rest.get(TIME)).status_code == 200


@pytest.mark.parametrize(
    "target", ["/", "/ws/v1/stream", "/api/v1/time/", "/healthz2", "/api/v1/orders/a/b/status"]
)
async def test_an_unknown_path_is_not_found(target: str) -> None:
    async with opened() as (_, rest):
        assert error_of(await rest.get(target)) == (404, "NOT_FOUND")


# ---- Signatures, window, nonces


@pytest.mark.parametrize(
    ("settings", "derived", "raw"),
    [
        ({}, 200, 200),
        ({"signing_key": "derived"}, 200, 401),
        ({"signing_key": "raw"}, 401, 200),
        ({"dialect": "docs"}, 401, 200),
        ({"dialect": "clients"}, 200, 401),
    ],
)
async def test_signatures_are_checked_with_the_sandboxs_key(
    settings: dict[str, Any], derived: int, raw: int
) -> None:
    async with opened(**settings) as (_, rest):
        assert (await rest.private(BALANCES)).status_code == derived
        assert (await rest.private(BALANCES, raw=True)).status_code == raw


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"X-API-KEY": None}, (401, "MISSING_API_KEY")),
        ({"X-API-KEY": ""}, (401, "MISSING_API_KEY")),
        ({"X-API-KEY": "nobody"}, (401, "UNAUTHORIZED")),
        ({"X-API-KEY": "test_key_2"}, (401, "INVALID_SIGNATURE")),
        ({"X-API-SIGN": None}, (401, "INVALID_SIGNATURE")),
        ({"X-API-SIGN": "0" * 64}, (401, "INVALID_SIGNATURE")),
        ({"X-API-SIGN": "\xff"}, (401, "INVALID_SIGNATURE")),
        ({"X-API-NONCE": None}, (401, "INVALID_SIGNATURE")),
        ({"X-API-NONCE": "another"}, (401, "INVALID_SIGNATURE")),
        ({"X-API-NONCE": "n" * 129}, (400, "INVALID_REQUEST")),
        ({"X-API-TIMESTAMP": None}, (401, "INVALID_SIGNATURE")),
        ({"X-API-TIMESTAMP": "1"}, (401, "INVALID_SIGNATURE")),
        ({"X-API-TIMESTAMP": "soon"}, (400, "INVALID_REQUEST")),
        ({"X-API-TIMESTAMP": "-1"}, (400, "INVALID_REQUEST")),
        ({"X-API-TIMESTAMP": "9" * 5000}, (400, "INVALID_REQUEST")),
    ],
)
async def test_a_private_request_must_be_signed(
    changes: dict[str, str | None], error: tuple[int, str]
) -> None:
    async with opened() as (_, rest):
        headers: dict[str, str | None] = {**headers_for(BALANCES), **changes}
        given = [
            (name.encode(), value.encode("latin-1"))
            for name, value in headers.items()
            if value is not None
        ]
        assert error_of(await rest.http.get(BALANCES, headers=given)) == error


async def test_the_query_and_the_body_are_signed() -> None:
    async with opened() as (_, rest):
        refused = (401, "INVALID_SIGNATURE")
        assert error_of(await rest.get(BALANCES + "?a=1", headers_for(BALANCES))) == refused
        assert (await rest.private(BALANCES + "?a=1")).status_code == 200
        for signed_body, status in ((b"", 401), (b"{}", 200)):
            headers = headers_for(BALANCES, body=signed_body)
            response = await rest.http.request("GET", BALANCES, headers=headers, content=b"{}")
            assert response.status_code == status


@pytest.mark.parametrize(("off", "status"), [(-30, 200), (30, 200), (-30.1, 401), (30.1, 401)])
async def test_a_timestamp_may_be_thirty_seconds_off(off: float, status: int) -> None:
    async with opened(clock=lambda: START) as (_, rest):
        response = await rest.private(BALANCES, at=START + off)
        assert response.status_code == status
        if status == 401:
            assert error_of(response) == (401, "EXPIRED_REQUEST")


async def test_a_nonce_is_good_once_over_both_sides() -> None:
    async with opened() as (sandbox, rest), open_raw(sandbox) as raw:
        used = (401, "INVALID_NONCE")
        assert (await rest.private(BALANCES, nonce="a")).status_code == 200
        assert error_of(await rest.private(BALANCES, nonce="a")) == used
        # Accounts have nonces of their own.
        assert (await rest.private(BALANCES, nonce="a", number=2)).status_code == 200
        await raw.send(signed("balances", at=time.time(), nonce="a"))
        assert (await raw.receive_json())["error"] == "Nonce has already been used or is expired"
        await raw.send(signed("balances", at=time.time(), nonce="b"))
        assert "data" in await raw.receive_json()
        assert error_of(await rest.private(BALANCES, nonce="b")) == used
        # A refused signature doesn't use one up.
        wrong = {**headers_for(BALANCES, nonce="c"), "X-API-SIGN": "0"}
        assert error_of(await rest.get(BALANCES, wrong)) == (401, "INVALID_SIGNATURE")
        assert (await rest.private(BALANCES, nonce="c")).status_code == 200


# ---- Limits


async def test_public_and_private_requests_have_limits_a_minute(
    autojump_clock: MockClock,
) -> None:
    async with opened() as (_, rest):
        for _ in range(100):
            assert (await rest.get(TIME)).status_code == 200
        await trio.sleep(20)
        response = await rest.get("/healthz")
        assert error_of(response) == (429, "RATE_LIMIT")
        wait = int(response.headers["retry-after"])
        assert 39 <= wait <= 41
        assert (await rest.private(BALANCES)).status_code == 200
        await trio.sleep(wait)
        assert (await rest.get(TIME)).status_code == 200


async def test_the_private_limit_is_each_keys() -> None:
    async with opened(rest_private_per_minute=2) as (_, rest):
        # Whoever doesn't have the secret can't use up the limit.
        for _ in range(3):
            await rest.get(BALANCES, {**headers_for(BALANCES), "X-API-SIGN": "0"})
        statuses = [(await rest.private(BALANCES)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await rest.private(BALANCES, number=2)).status_code == 200


# ---- HTTP


async def dialled(sandbox: Sandbox) -> trio.SocketStream:
    parts = urlsplit(sandbox.rest_url)
    assert parts.hostname
    assert parts.port
    return await trio.open_tcp_stream(parts.hostname, parts.port)


async def all_of(stream: trio.SocketStream) -> bytes:
    return b"".join([part async for part in stream])


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with opened() as (sandbox, rest):
        for _ in range(3):
            assert (await rest.get(TIME)).status_code == 200
        async with await dialled(sandbox) as stream:
            one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
            # Two at once, and the second is the last.
            await stream.send_all(one + one.replace(b"Host", b"Connection: close\r\nHost"))
            assert (await all_of(stream)).count(b'{"version":"sandbox"}') == 2


async def test_http_1_0_ends_the_connection() -> None:
    async with open_sandbox() as sandbox, await dialled(sandbox) as stream:
        await stream.send_all(b"GET /version HTTP/1.0\r\n\r\n")
        assert (await all_of(stream)).endswith(b'{"version":"sandbox"}')


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000, 413),
        (b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\n", 400),  # and the end
    ],
)
async def test_what_is_no_request_gets_an_error_and_the_end(sent: bytes, status: int) -> None:
    async with opened() as (sandbox, rest):
        async with await dialled(sandbox) as stream:
            await stream.send_all(sent)
            await stream.send_eof()
            reply = await all_of(stream)
        assert reply.startswith(b"HTTP/1.1 %d " % status)
        assert b'"code":"INVALID_REQUEST"' in reply
        assert (await rest.get(TIME)).status_code == 200


async def test_a_body_is_asked_for() -> None:
    async with open_sandbox() as sandbox, await dialled(sandbox) as stream:
        head = b"POST /version HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n"
        await stream.send_all(head + b"Connection: close\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"{}")
        assert (await all_of(stream)).startswith(b"HTTP/1.1 405 ")


async def test_clients_that_vanish_harm_nobody() -> None:
    async with opened() as (sandbox, rest):
        for sent in (b"", b"GET /he", b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"):
            async with await dialled(sandbox) as stream:
                await stream.send_all(sent)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert (await rest.get(TIME)).status_code == 200


async def test_an_idle_connection_is_ended(autojump_clock: MockClock) -> None:
    async with open_sandbox(idle_timeout=60) as sandbox, await dialled(sandbox) as stream:
        start = trio.current_time()
        assert await all_of(stream) == b""
        assert trio.current_time() - start == pytest.approx(60)


async def test_a_client_that_does_not_read_is_dropped(autojump_clock: MockClock) -> None:
    async with open_sandbox(write_timeout=5) as sandbox, await dialled(sandbox) as stream:
        sandbox.faults.pad_rest(1 << 30)
        await stream.send_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(10)
        assert len(await all_of(stream)) < 1 << 30


async def test_a_mistake_of_the_sandbox_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with opened() as (_, rest):
        with monkeypatch.context() as patch:
            patch.setattr(RestBroker, "answer", fail)
            with pytest.raises(httpx2.RemoteProtocolError):
                await rest.get(TIME)
        assert (await rest.get(TIME)).status_code == 200
    assert [each.levelno for each in caplog.records if "mistake" in each.message] == [logging.ERROR]


# ---- Faults


async def test_rest_down_and_up_again() -> None:
    async with opened() as (sandbox, rest), open_raw(sandbox) as raw:
        with sandbox.faults.start("rest_down") as fault:
            for _ in range(2):
                with pytest.raises(httpx2.TransportError):
                    await rest.get(TIME)
            assert fault.uses == 2
            assert "data" in await raw.request("balances")
        assert (await rest.get(TIME)).status_code == 200


async def test_rest_silent_until_the_client_goes(autojump_clock: MockClock) -> None:
    async with opened() as (sandbox, rest):
        sandbox.faults.start("rest_silent", times=1)
        with trio.move_on_after(1000) as waiting:
            await rest.get(TIME)
        assert waiting.cancelled_caught
        assert (await rest.get(TIME)).status_code == 200


async def test_a_silenced_connection_ends_with_the_client() -> None:
    async with open_sandbox() as sandbox, await dialled(sandbox) as stream:
        sandbox.faults.stop_rest("silence")
        await stream.send_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        await wait_all_tasks_blocked()
        await stream.send_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        assert await all_of(stream) == b""


async def test_rest_slow(autojump_clock: MockClock) -> None:
    async with opened() as (sandbox, rest):
        sandbox.faults.start("rest_slow", path=TIME)
        sandbox.faults.delay_rest(3)
        for target, expected in ((TIME, 15), ("/version", 3)):
            start = trio.current_time()
            assert (await rest.get(target)).status_code == 200
            assert trio.current_time() - start == pytest.approx(expected)


async def test_rest_limited_failing_and_redirecting() -> None:
    async with opened() as (sandbox, rest):
        with sandbox.faults.start("rest_limited"):
            response = await rest.private(BALANCES)
            assert error_of(response) == (429, "RATE_LIMIT")
            assert response.headers["retry-after"] == "7"
        with sandbox.faults.start("rest_failing", times=1) as fault:
            assert error_of(await rest.get(TIME)) == (500, "INTERNAL_ERROR")
            assert fault.is_lifted
            assert (await rest.get(TIME)).status_code == 200
        with sandbox.faults.start("rest_redirect"):
            response = await rest.get(TIME)
            assert response.status_code == 307
            assert response.headers["location"] == "https://broker.example/"
        sandbox.faults.clear()
        assert (await rest.get(TIME)).status_code == 200


async def test_rest_garbage() -> None:
    async with opened() as (sandbox, rest):
        with sandbox.faults.start("rest_garbage"):
            response = await rest.get(TIME)
            assert (response.status_code, response.text) == (200, "<html>Bad Gateway</html>")
        with sandbox.faults.start("rest_wrong_types"):
            assert (await rest.get(TIME)).json() == [None]
        headers = {"content-TYPE": "text/html"}
        with sandbox.faults.replace_rest(b"\xff", 502, headers, path="/api/*"):
            response = await rest.get(TIME)
            assert (response.status_code, response.content) == (502, b"\xff")
            assert response.headers.get_list("content-type") == ["text/html"]
            assert (await rest.get("/version")).status_code == 200


async def test_rest_replies_of_any_size() -> None:
    async with opened() as (sandbox, rest):
        with sandbox.faults.start("rest_too_large", size=200_000):
            response = await rest.get("/version")
            assert len(response.content) == 200_000 + len(b'{"version":"sandbox"}')
            assert response.json() == {"version": "sandbox"}


async def test_orders_are_hidden_for_a_while(autojump_clock: MockClock) -> None:
    async with opened() as (sandbox, rest), open_raw(sandbox) as raw:
        await raw.request("swap", swap_body(clientOrderId="mine"))
        target = "/api/v1/orders/mine/status"
        sandbox.faults.start("rest_orders_hidden")
        assert error_of(await rest.private(target)) == (404, "NOT_FOUND")
        # What is wrong otherwise stays so.
        wrong = {**headers_for(target), "X-API-SIGN": "0"}
        assert error_of(await rest.get(target, wrong)) == (401, "INVALID_SIGNATURE")
        assert (await rest.private(BALANCES)).status_code == 200
        await trio.sleep(12)
        assert (await rest.private(target)).status_code == 200
        with sandbox.faults.hide_orders_from_rest():
            await trio.sleep(10_000)
            assert (await rest.private(target)).status_code == 404
        assert (await rest.private(target)).status_code == 200


async def test_another_order_is_told_over_rest() -> None:
    async with opened() as (sandbox, rest), open_raw(sandbox) as raw:
        await raw.request("swap", swap_body(clientOrderId="mine"))
        sandbox.faults.start("rest_order_of_another", times=1)
        told = [(await rest.private("/api/v1/orders/mine/status")).json() for _ in range(2)]
        assert [each["clientOrderId"] for each in told] == ["another", "mine"]
        assert told[0]["orderId"] == "ord_another"


async def test_members_of_rest_replies_are_changed() -> None:
    async with opened() as (sandbox, rest):
        with sandbox.faults.change_rest({"serverTime": "now"}, without=["status"]):
            assert (await rest.get(TIME)).json() == {"serverTime": "now"}
            assert (await rest.get("/healthz")).json().keys() == {"time"}


async def test_the_clock_of_rest_alone_and_of_both_sides() -> None:
    async with opened(clock=lambda: START) as (sandbox, rest):
        ms = int(START * 1000)
        with sandbox.faults.start("rest_clock_ahead"):
            assert (await rest.get(TIME)).json() == {"serverTime": ms + 3_600_000}
            assert (await rest.get("/healthz")).json()["time"] == ms + 3_600_000
            assert (await rest.private(BALANCES, at=START)).status_code == 200
            with sandbox.faults.change_rest({"serverTime": None}):
                assert (await rest.get(TIME)).json() == {"serverTime": None}
        with sandbox.faults.change_rest({"serverTime": None}):
            sandbox.faults.shift_rest_clock(1)
            assert (await rest.get(TIME)).json() == {"serverTime": None}
        sandbox.faults.clear()
        with sandbox.faults.shift_clock(3600):
            assert (await rest.get(TIME)).json() == {"serverTime": ms + 3_600_000}
            response = await rest.private(BALANCES, at=START)
            assert error_of(response) == (401, "EXPIRED_REQUEST")


@pytest.mark.parametrize(
    "start",
    [
        lambda faults: faults.stop_rest("slowly"),
        lambda faults: faults.delay_rest(-1),
        lambda faults: faults.delay_rest(float("nan")),
        lambda faults: faults.hide_orders_from_rest(-1),
        lambda faults: faults.pad_rest(-1),
        lambda faults: faults.refuse_rest(199),
        lambda faults: faults.refuse_rest(204),
        lambda faults: faults.refuse_rest(headers={"a b": "c"}),
        lambda faults: faults.refuse_rest(headers={"": "c"}),
        lambda faults: faults.refuse_rest(headers={"a": "c\r\nd: e"}),
        lambda faults: faults.refuse_rest(headers={"Content-Length": "1"}),
        lambda faults: faults.delay_rest(1, times=0),
    ],
)
async def test_impossible_rest_faults_are_refused(start: Callable[[Any], object]) -> None:
    async with open_sandbox() as sandbox:
        with pytest.raises(ValueError, match=r"must|has|can't|is printable"):
            start(sandbox.faults)


# ---- With the whole sandbox


async def test_requests_are_told_with_the_status_of_their_reply() -> None:
    events: list[SandboxEvent] = []
    async with opened(on_event=events.append) as (sandbox, rest):
        await rest.get(TIME + "?a=1")
        await rest.http.post("/" + "x" * 100)
        with sandbox.faults.stop_rest(), pytest.raises(httpx2.TransportError):
            await rest.get(BALANCES)
    assert events == [
        RestAsked(method="GET", path=TIME, status=200),
        RestAsked(method="POST", path="/" + "x" * 63 + "…", status=404),
        RestAsked(method="GET", path=BALANCES, status=None),
    ]


async def test_killing_the_sandbox_kills_both_sides() -> None:
    async with opened() as (sandbox, rest):
        assert (await rest.get(TIME)).status_code == 200
        async with await dialled(sandbox) as stream:
            await wait_all_tasks_blocked()
            sandbox.faults.kill()
            with pytest.raises(httpx2.TransportError):
                await rest.get(TIME)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await sandbox.faults.revive()
        assert (await rest.get(TIME)).status_code == 200


async def test_both_ports_can_be_chosen() -> None:
    async with open_sandbox() as first:
        port, rest_port = urlsplit(first.url).port, urlsplit(first.rest_url).port
        assert port
        assert rest_port
        with pytest.raises(OSError, match=f"port {rest_port}"):
            async with open_sandbox(rest_port=rest_port):
                pytest.fail("two sandboxes have the same port")
    async with open_sandbox(port=port, rest_port=rest_port) as second:
        assert (second.url, second.rest_url) == (first.url, first.rest_url)


async def test_the_address_of_rest_is_of_ipv6_too() -> None:
    async with opened(host="::1") as (sandbox, rest):
        assert sandbox.rest_url.startswith("http://[::1]:")
        assert (await rest.get(TIME)).status_code == 200


def test_a_sandbox_in_a_thread_serves_rest() -> None:
    with (
        open_threaded_sandbox() as sandbox,
        httpx2.Client(base_url=sandbox.rest_url, trust_env=False) as http,
    ):
        assert http.get("/healthz").json()["status"] == "ok"
        headers = headers_for(BALANCES)
        assert http.get(BALANCES, headers=headers).status_code == 200
