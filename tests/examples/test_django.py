"""The Django Channels example: a real Daphne, WebSocket clients, and a sandbox within reach."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import product
from typing import Any

import attrs
import pytest
import trio
from trio_websocket import ConnectionClosed

from tests.examples.odd_input import BODIES, VALUES, with_value
from tests.examples.web_service import open_http
from tests.servers import (
    BIN,
    PATIENCE,
    ROOT,
    Server,
    environment,
    handshake,
    open_websocket,
    started,
    variables,
)
from trio_broker.sandbox import (
    Account,
    ClientAsked,
    ClientLeft,
    Sandbox,
    SandboxEvent,
    open_sandbox,
)

COMMAND = "daphne -b 127.0.0.1 -p 8000 examples.django_channels.asgi:application"
READY = r"Listening on TCP address (127\.0\.0\.1:\d+)"
QUICK: dict[str, Any] = {
    "seed": 7,
    "outcomes": {"filled": 1},
    "pending_delay": (0.01, 0.02),
    "processing_delay": (0.01, 0.02),
}
CONNECTED = {"type": "connection", "state": "connected", "problem": "", "next_try_in": None}
SWAP = {"type": "swap", "amount_in": "1.5", "asset_in": "ETH", "asset_out": "USDT"}


@attrs.frozen
class Tab:
    """What a browser's tab has of the site."""

    socket: Any

    async def next(self) -> Any:
        return json.loads(await self.socket.get_message())

    async def until(self, kind: str, **expected: Any) -> Any:
        """The first message of a kind that is as expected."""
        while True:
            message = await self.next()
            if message["type"] == kind and expected.items() <= message.items():
                return message

    async def send(self, content: Any) -> None:
        await self.socket.send_message(json.dumps(content))

    async def swap(self, key: str, **more: Any) -> None:
        await self.send({**SWAP, "key": key, **more})


@asynccontextmanager
async def open_tab(server: Server, user: str = "alice") -> AsyncIterator[Tab]:
    async with open_websocket(server, f"/ws/{user}/") as socket:
        yield Tab(socket)


def serving(**more: str) -> Any:
    return started(COMMAND.replace("8000", "0"), READY, **more)


def both_users(sandbox: Sandbox) -> dict[str, str]:
    second = sandbox.accounts[1]
    keys = {"BROKER_API_KEY_2": second.api_key, "BROKER_SECRET_KEY_2": second.secret_key}
    return {**variables(sandbox), **keys}


@attrs.frozen
class SandboxWatcher:
    """Waits for what clients of the sandbox do."""

    left: trio.Event = attrs.field(factory=trio.Event)
    unsubscribed: dict[str | None, trio.Event] = attrs.field(
        factory=lambda: defaultdict(trio.Event)
    )

    def on_event(self, event: SandboxEvent) -> None:
        match event:
            case ClientLeft():
                self.left.set()
            case ClientAsked(op="unsubscribe", channel=channel):
                self.unsubscribed[channel].set()


def test_the_command_is_the_pages() -> None:
    page = (ROOT / "examples" / "django_channels" / "README.md").read_text(encoding="utf-8")
    assert f".venv/bin/{COMMAND}\n" in page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_starts_a_sandbox_of_its_own_and_ends_when_told(number: signal.Signals) -> None:
    async with serving() as server:
        async with (
            open_tab(server) as one,
            open_tab(server) as other,
            open_tab(server, "bob") as bobs,
        ):
            assert await one.until("broker") == {
                "type": "broker",
                "broker": "SANDBOX",
                "host": "its own",
            }
            for tab in (one, other, bobs):
                await tab.until("balances")
            await one.swap("a_key")
            for tab in (one, other):
                order = await tab.until("order", status="FILLED")
                balances = (await tab.until("balances"))["balances"]
                held = {each["asset"]: each for each in balances}
                assert held["ETH"] == {"asset": "ETH", "available": "998.5", "locked": "0"}
                assert Decimal(held["USDT"]["available"]) == 100000 + Decimal(order["filled_out"])
            assert await server.stop(number) == 0
            with pytest.raises(ConnectionClosed):
                await one.until("never")
        # Both clients said goodbye, and the sandbox had the time to hear it.
        await server.read_until(r"(?s)(INFO +closed\n.*){2}")
        assert server.output.count(": closed\n") == 2


async def test_one_client_is_shared_opened_first_and_closed_last() -> None:
    watcher = SandboxWatcher()
    async with (
        open_sandbox(**QUICK, on_event=watcher.on_event) as sandbox,
        serving(**variables(sandbox)) as server,
    ):
        assert not sandbox.connections
        async with open_tab(server) as one:
            await one.until("balances")
            async with open_tab(server) as other:
                await other.until("balances")
                await other.send({"type": "follow", "order_id": "ord_77777777"})
                await other.until("order", order_id="ord_77777777")
            with trio.fail_after(PATIENCE):
                await watcher.unsubscribed["orders:ord_77777777"].wait()
            await one.swap("a_key")
            await one.until("order", status="FILLED")
            (connection,) = sandbox.connections
            assert connection.closed_at is None
        with trio.fail_after(PATIENCE):
            await watcher.left.wait()
        async with open_tab(server) as again:
            await again.until("swap", key="a_key", outcome="taken")
            await again.until("order", status="FILLED")
        assert len(sandbox.connections) == 2


async def test_a_user_sees_the_own_account_alone() -> None:
    async with open_sandbox(**QUICK) as sandbox, serving(**both_users(sandbox)) as server:
        async with open_tab(server, "alice") as alices, open_tab(server, "bob") as bobs:
            await alices.until("balances")
            await bobs.until("balances")
            await bobs.swap("a_key", amount_in="2")
            await bobs.until("order", status="FILLED")
            await alices.send({"type": "follow", "order_id": "ord_00000001"})
            found = await alices.until("order")
        assert found == {
            "type": "order",
            "order_id": "ord_00000001",
            "detail": "the broker refused order_status: Order not found",
        }
        assert len(sandbox.orders("test_key_2")) == 1
        assert sandbox.orders("test_key_1") == ()


async def test_an_outage_is_told_and_what_was_missed_is_there() -> None:
    async with open_sandbox(**QUICK) as sandbox, serving(**variables(sandbox)) as server:
        async with open_tab(server) as tab:
            await tab.until("balances")
            await tab.swap("a_key")
            await tab.until("swap", outcome="taken")
            sandbox.faults.kill()
            outage = await tab.until("connection", state="reconnecting")
            assert "without a close frame" in outage["problem"]
            assert outage["next_try_in"] > 0
            await tab.swap("another_key")
            refused = await tab.until("swap", key="another_key", outcome="not sent")
            assert refused["detail"]
            await sandbox.faults.revive()
            await tab.until("connection", state="connected")
            # It was filled meanwhile, and nobody was told.
            await tab.until("order", status="FILLED")
        assert len(sandbox.orders()) == 1


async def test_a_swap_goes_on_without_its_browser() -> None:
    watcher = SandboxWatcher()
    async with (
        open_sandbox(**QUICK, on_event=watcher.on_event) as sandbox,
        serving(**variables(sandbox)) as server,
    ):
        with sandbox.faults.delay(0.3, op="swap"):
            async with open_tab(server) as tab:
                await tab.until("balances")
                await tab.swap("a_key")
                await tab.until("swap", outcome="under way")
            with trio.fail_after(PATIENCE):
                await watcher.left.wait()  # the client, once it wasn't needed any more
        (order,) = sandbox.orders()
        assert order.status == "FILLED"
        async with open_tab(server) as tab:
            await tab.swap("a_key")  # whatever the page thinks: it isn't swapped again
            told = await tab.until("swap", key="a_key")
            assert (told["outcome"], told["order_id"]) == ("taken", order.order_id)
            await tab.until("order", status="FILLED")
        assert len(sandbox.orders()) == 1


async def test_only_the_sites_own_pages_get_in() -> None:
    async with open_sandbox(**QUICK) as sandbox, serving(**variables(sandbox)) as server:
        for user, origin in [
            ("alice", "https://evil.example"),
            ("alice", "http://127.0.0.1:1"),  # another server on this machine
            ("alice", f"http://localhost:{server.address.partition(':')[2]}"),
            ("alice", "null"),
            ("alice", f"evil://{server.address}"),
            ("alice", None),
            ("bob", f"http://{server.address}"),  # the environment doesn't have this one's keys
        ]:
            assert await handshake(server, f"/ws/{user}/", origin) == b"HTTP/1.1 403 Access denied"
        assert b" 101 " in await handshake(server, "/ws/alice/", f"http://{server.address}")
        async with open_http(f"http://{server.address}") as http:
            assert (await http.get("/")).headers["location"] == "/alice/"
            page = await http.get("/alice/")
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert (await http.get("/bob/")).status_code == 404


async def test_it_tells_of_every_swap_before_it_says_connected() -> None:
    async with open_sandbox(**QUICK) as sandbox, serving(**variables(sandbox)) as server:
        async with open_tab(server) as tab:
            await tab.until("connection", state="connected")
            keys = [f"key_{number}" for number in range(20)]
            for key in keys:
                await tab.swap(key, amount_in="0")
                await tab.until("swap", key=key, outcome="not sent")
            async with open_tab(server) as other:
                told = []
                while (message := await other.next()) != CONNECTED:
                    told.append(message)
        assert [message["key"] for message in told if message["type"] == "swap"] == keys


async def test_what_cannot_be_understood_is_refused_and_no_more() -> None:
    async with open_sandbox(**QUICK) as sandbox, serving(**variables(sandbox)) as server:
        async with open_tab(server) as tab:
            await tab.until("balances")
            for odd in ("{", "[" * 100_000, "1", '{"type": "swaps"}', b"\x00"):
                await tab.socket.send_message(odd)
                assert (await tab.until("refused"))["detail"] == "this can't be understood"
            for name, wrong in [("amount_in", "-1"), ("amount_in", "NaN"), ("asset_in", "")]:
                await tab.swap(f"{name}_{wrong}", **{name: wrong})
                assert (await tab.until("swap", outcome="not sent"))["detail"]
            await tab.swap("too_much", amount_in="1000000")
            refused = await tab.until("swap", outcome="refused")
            assert refused["detail"] == "Insufficient balance"
            await tab.send({"type": "follow", "order_id": "<&>"})
            assert (await tab.until("order", order_id="<&>"))["detail"]
            for number in range(100):
                await tab.send({"type": "follow", "order_id": f"ord_{number}"})
            assert "no more orders" in (await tab.until("refused"))["detail"]
        assert sandbox.orders() == ()


async def test_what_cannot_be_used_is_refused_with_a_message() -> None:
    cases = [
        *product(("amount_in", "asset_in", "asset_out"), (*VALUES, "null")),
        # Most plain texts can be keys.
        *(("key", value) for value in (*VALUES, "null") if not value.startswith('"')),
        *product(["key"], ('""', '"ü"', '"\\ud800"', '"\\u0000"')),
    ]
    async with open_sandbox(**QUICK) as sandbox, serving(**variables(sandbox)) as server:
        async with open_tab(server) as tab:
            await tab.until("connection", state="connected")
            for number, (field, value) in enumerate(cases):
                body = with_value(
                    field, value, **{"type": "swap", "key": f"key_{number}", field: ""}
                )
                await tab.socket.send_message(body.decode())
                while (told := await tab.next())["type"] not in {"refused", "swap"} or (
                    told.get("outcome") == "under way"
                ):
                    pass
                assert told["detail"], (field, value)
                assert told.get("outcome", "refused") in {"refused", "not sent"}, (field, value)
            for value in (*VALUES, "null"):
                await tab.socket.send_message(f'{{"type": "follow", "order_id": {value}}}')
                while (told := await tab.next())["type"] not in {"refused", "order"}:
                    pass
                assert told["detail"], value
            for body in BODIES:
                await tab.socket.send_message(body)
                assert (await tab.until("refused"))["detail"]
        assert sandbox.orders() == ()


async def test_real_money_is_shown_and_not_swapped() -> None:
    mine = Account("my_key", "my_secret")
    async with open_sandbox(**QUICK, accounts=[mine]) as sandbox:
        async with sandbox.client("my_key") as client:
            order_id = (await client.do_swap("1", "ETH", "USDT")).order_id
        async with serving(**variables(sandbox, 2)) as server, open_tab(server) as tab:
            assert (await tab.until("broker"))["broker"] == "LIVE"
            await tab.until("balances")
            await tab.swap("a_key")
            assert "real money" in (await tab.until("refused"))["detail"]
            await tab.send({"type": "follow", "order_id": order_id})
            await tab.until("order", order_id=order_id, status="FILLED")
        assert len(sandbox.orders()) == 1


async def test_refused_keys_are_told_once() -> None:
    async with open_sandbox(**QUICK) as sandbox:
        wrong = {**variables(sandbox), "BROKER_SECRET_KEY": "wrong"}
        async with serving(**wrong) as server, open_tab(server) as tab:
            failed = await tab.until("connection", state="failed")
            assert "Invalid signature" in failed["problem"]
            with pytest.raises(ConnectionClosed) as closed:
                await tab.next()
            reason = closed.value.reason
            assert reason is not None
            assert reason.code == 4000


async def test_settings_that_cannot_work_are_told_at_the_start() -> None:
    ended = await trio.run_process(
        [str(BIN / "daphne"), *COMMAND.split()[1:]],
        cwd=ROOT,
        env=environment({"BROKER_API_KEY": "my_key"}),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert ended.returncode != 0
    assert b"BROKER_SECRET_KEY" in ended.stderr.splitlines()[-1]
