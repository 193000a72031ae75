"""The example of FastAPI on uvicorn: a real uvicorn, over HTTP and WebSockets."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any

import attrs
import pytest
import trio
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection

from examples.fastapi_on_uvicorn import app
from tests.examples.odd_input import VALUES, bad_bodies, with_value
from tests.examples.web_service import open_http
from tests.servers import PATIENCE, ROOT, Server, handshake, open_websocket, started, variables
from trio_broker._protocol.unreadable import UnreadableBalance
from trio_broker.sandbox import Account, open_sandbox

COMMAND = "uvicorn examples.fastapi_on_uvicorn.app:app"
READY = r"Uvicorn running on http://(127\.0\.0\.1:\d+)"
QUICK: dict[str, Any] = {
    "seed": 7,
    "outcomes": {"filled": 1},
    "pending_delay": (0.01, 0.02),
    "processing_delay": (0.01, 0.02),
}
SWAP = {"amount_in": "1.5", "asset_in": "ETH", "asset_out": "USDT"}


async def to_the_end(stream: WebSocketConnection) -> tuple[list[Any], CloseReason]:
    """All that a stream still brings, and why it ends."""
    messages = []
    with suppress(ConnectionClosed):
        while True:
            messages.append(json.loads(await stream.get_message()))
    assert stream.closed is not None
    return messages, stream.closed


@attrs.frozen
class Service:
    http: Any
    server: Server

    async def get(self, path: str) -> Any:
        return (await self.http.get(path)).json()

    async def swap(self, key: str, **more: Any) -> tuple[int, Any]:
        headers = {"Idempotency-Key": key}
        response = await self.http.post("/swap", json={**SWAP, **more}, headers=headers)
        return response.status_code, response.json()


@asynccontextmanager
async def service(*more: str, command: str = COMMAND, **variables: str) -> AsyncIterator[Service]:
    line = " ".join([command, "--port 0", *more])
    async with (
        started(line, READY, **variables) as server,
        open_http(f"http://{server.address}") as http,
    ):
        yield Service(http, server)


def test_the_commands_are_the_pages() -> None:
    page = (ROOT / "examples" / "fastapi_on_uvicorn" / "README.md").read_text(encoding="utf-8")
    assert f".venv/bin/{COMMAND}\n" in page
    assert "--loop asyncio" in page


@pytest.mark.parametrize(
    ("under", "number"),
    [("--loop asyncio --ws wsproto", signal.SIGINT), ("--loop uvloop", signal.SIGTERM)],
)
async def test_it_starts_a_sandbox_of_its_own_and_ends_when_told(
    under: str, number: signal.Signals
) -> None:
    async with service(under) as it, open_websocket(it.server, "/balances") as stream:
        first = json.loads(await stream.get_message())
        assert (len(first["balances"]), first["missed"]) == (10, False)
        code, taken = await it.swap("a_key")
        assert (code, taken["outcome"]) == (201, "taken")
        async with open_websocket(it.server, f"/orders/{taken['order_id']}") as states:
            (*_, order), reason = await to_the_end(states)
        assert (order["status"], order["is_final"], reason.code) == ("FILLED", True, 1000)
        held = {each["asset"]: each for each in (await it.get("/balances"))["balances"]}
        assert held["ETH"]["available"] == "998.5"
        # Once all is done, uvicorn lets SIGTERM end it, as if it hadn't been caught.
        assert await it.server.stop(number) in {0, -number}
        _, reason = await to_the_end(stream)
        assert reason.code == 1012  # the service restarts, or so uvicorn says
        await it.server.read_until("Application shutdown complete")


async def test_a_stream_goes_on_over_an_outage() -> None:
    async with (
        open_sandbox(**QUICK) as sandbox,
        service(**variables(sandbox)) as it,
        open_websocket(it.server, "/balances") as stream,
    ):
        await stream.get_message()
        sandbox.faults.kill()
        with trio.fail_after(PATIENCE):
            while (status := await it.get("/status"))["websocket_connected"]:
                pass
        assert status["state"] in {"waiting", "connecting"}
        code, refused = await it.swap("a_key")
        assert (code, refused["error"]) == (503, "NotConnectedError")
        await sandbox.faults.revive()
        after = json.loads(await stream.get_message())
        assert after["missed"]
        code, _ = await it.swap("a_key")  # nothing was sent before, so it may be repeated
        assert code == 201
        assert (await it.get("/status"))["broker"] == "SANDBOX"


async def test_a_key_swaps_once_and_finds_its_swap() -> None:
    async with open_sandbox(**QUICK) as sandbox, service(**variables(sandbox)) as it:
        _, taken = await it.swap("a/key #1")
        (order,) = sandbox.orders()
        code, again = await it.swap("a/key #1", amount_in="2")
        assert (code, again["error"]) == (409, "DuplicateClientOrderIdError")
        assert await it.get(again["swap"]) == taken
        assert taken["order_id"] == order.order_id
        assert len(sandbox.orders()) == 1
        code, refused = await it.swap("too_much", amount_in="1000000")
        assert (code, refused["detail"]) == (422, "the broker refused swap: Insufficient balance")
        assert (await it.get("/swaps/too_much"))["outcome"] == "refused"
        sandbox.faults.refuse("Duplicate client order id", executed=True, op="swap")
        code, told = await it.swap("known")
        _, order = sandbox.orders()
        assert (code, told["swap"], told["order_id"]) == (409, "/swaps/known", order.order_id)


HASTY = COMMAND.replace("examples.fastapi_on_uvicorn.app", "tests.examples.hasty_uvicorn")


async def test_what_is_not_known_is_not_said() -> None:
    async with open_sandbox(**QUICK) as sandbox, service(command=HASTY, **variables(sandbox)) as it:
        with sandbox.faults.swallow(op="swap"), sandbox.faults.swallow(op="order_status"):
            code, unknown = await it.swap("a_key")
            assert (code, unknown["error"]) == (202, "SwapOutcomeUnknownError")
            assert (await it.get("/status"))["unresolved_swaps"] == ["a_key"]
            code, again = await it.swap("a_key")
            assert (code, again["swap"]) == (409, "/swaps/a_key")
        with trio.fail_after(PATIENCE):
            while "outcome" not in (found := await it.get("/swaps/a_key")):
                assert found["error"] == "SwapOutcomeUnknownError"
        assert found["outcome"] == "taken"
        assert len(sandbox.orders()) == 1


async def test_what_is_not_known_at_the_end_is_logged() -> None:
    async with open_sandbox(**QUICK) as sandbox, service(command=HASTY, **variables(sandbox)) as it:
        sandbox.faults.swallow(op="swap")
        sandbox.faults.swallow(op="order_status")
        await it.swap("a_key")
        await it.server.stop(signal.SIGINT)
        await it.server.read_until("the outcome of swap a_key is unknown")


async def test_what_cannot_be_sent_is_refused() -> None:
    async with open_sandbox(**QUICK) as sandbox, service(**variables(sandbox)) as it:
        wrongs: list[dict[str, Any]] = [
            {"amount_in": 0.1},
            {"amount_in": "-1"},
            {"asset_in": ""},
            {"slipage_bps": 50},  # a slip of the pen must not lift the limit
            {"slippage_bps": True},
            {"slippage_bps": "50"},
            {"slippage_bps": 50.0},
            {"slippage_bps": -1},
        ]
        for number, wrong in enumerate(wrongs):
            code, told = await it.swap(f"key_{number}", **wrong)
            assert code == 422, wrong
            assert told["detail"]
        assert (await it.http.post("/swap", json=SWAP)).status_code == 422  # it has no key
        assert (await it.http.get("/status", headers={"Host": "evil.example"})).status_code == 400
        async with open_websocket(it.server, "/orders/%3Cb%3E") as stream:
            messages, reason = await to_the_end(stream)
        assert (messages, reason.code) == ([], 1011)
        assert "order_id" in (reason.reason or "")
        assert sandbox.orders() == ()


async def test_what_cannot_be_used_is_refused_with_a_message() -> None:
    headers = {"Idempotency-Key": "a_key", "Content-Type": "application/json"}
    async with open_sandbox(**QUICK) as sandbox, service(**variables(sandbox)) as it:
        for body in bad_bodies("amount_in", "asset_in", "asset_out"):
            response = await it.http.post("/swap", content=body, headers=headers)
            assert 400 <= response.status_code < 500, body[:100]
            assert response.json()["detail"], body[:100]
        for value in VALUES:
            body = with_value("slippage_bps", value)
            response = await it.http.post("/swap", content=body, headers=headers)
            assert response.status_code in {400, 422}, value
        for key in (b"\xff", "ü".encode(), b"a" * 65, b"", b"\x1b[2J"):
            wrong = {**headers, "Idempotency-Key": key}
            response = await it.http.post("/swap", json=SWAP, headers=wrong)
            assert response.status_code == 422, key
        for path in ("/swaps/%ED%A0%80", "/swaps/%00", "/swaps/%C3%BC", "/swaps/" + "9" * 400):
            response = await it.http.get(path)
            assert response.status_code == 422, path
        assert sandbox.orders() == ()


OTHERS = ("https://evil.example", "http://127.0.0.1:1", "http://[", "null", "", "\xff")


async def test_other_sites_pages_are_refused() -> None:
    async with open_sandbox(**QUICK) as sandbox, service(**variables(sandbox)) as it:
        for origin in (*OTHERS, f"evil://{it.server.address}"):
            headers = {"Idempotency-Key": "a_key", "Origin": origin.encode("latin-1")}
            response = await it.http.post("/swap", json=SWAP, headers=headers)
            assert response.status_code == 403, origin
            assert "site" in response.json()["detail"], origin
            response = await it.http.get("/balances", headers=headers)
            assert response.status_code == 403, origin
            for path in ("/balances", "/orders/ord_1"):
                assert b" 403 " in await handshake(it.server, path, origin), origin
        assert sandbox.orders() == ()
        own = {"Idempotency-Key": "own", "Origin": f"http://{it.server.address}"}
        assert (await it.http.post("/swap", json=SWAP, headers=own)).status_code == 201


async def test_real_money_is_not_swapped() -> None:
    mine = Account("my_key", "my_secret")
    async with open_sandbox(**QUICK, accounts=[mine]) as sandbox:
        async with service(**variables(sandbox, 2)) as it:
            assert (await it.get("/status"))["broker"] == "LIVE"
            code, told = await it.swap("a_key")
            assert (code, "real money" in told["detail"]) == (403, True)
        assert sandbox.orders() == ()


def test_unreadable_balance_is_sent_as_unreadable() -> None:
    unreadable = UnreadableBalance("BTC", {"locked": Decimal("1.50")})
    assert json.loads(app.Asset.of(unreadable).model_dump_json()) == {
        "asset": "BTC",
        "total": "unreadable",
        "locked": "1.50",
        "available": "unreadable",
    }
