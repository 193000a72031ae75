"""The sandbox's server over real sockets, with clients that behave and clients that don't."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio_websocket
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.sandbox_client import RawClient, auth, signed, swap_body
from trio_broker.sandbox import Outcome, Sandbox, open_sandbox
from trio_broker.sandbox.broker import Broker

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.fixture(autouse=True)
def _no_mistake_of_the_sandboxs(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Any:
    yield
    if "mistake" not in request.node.name:
        assert "mistake" not in caplog.text


@asynccontextmanager
async def open_raw(
    sandbox: Sandbox, number: int | None = 1, clock: Callable[[], float] = time.time
) -> AsyncIterator[RawClient]:
    """A client, authenticated unless `number` is None."""
    # trio-websocket leaves a socket open that the peer closed first, so it is opened here.
    async with await dialled(sandbox) as stream, trio.open_nursery() as nursery:
        websocket = await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/ws")
        raw = RawClient(websocket, clock, number or 1)
        if number is not None:
            await raw.authenticate()
        yield raw
        with trio.move_on_after(1):
            await websocket.aclose()
        nursery.cancel_scope.cancel()


async def dialled(sandbox: Sandbox, receive_buffer: int | None = None) -> trio.SocketStream:
    """A plain socket."""
    parts = urlsplit(sandbox.url)
    assert parts.hostname
    assert parts.port
    plain = trio.socket.socket(socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET)
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await plain.connect((parts.hostname, parts.port))
    except OSError:
        plain.close()
        raise
    return trio.SocketStream(plain)


async def upgraded(sandbox: Sandbox, receive_buffer: int | None = None) -> trio.SocketStream:
    """A plain socket after the WebSocket handshake."""
    stream = await dialled(sandbox, receive_buffer)
    await stream.send_all(UPGRADE)
    response = b""
    while not response.endswith(b"\r\n\r\n"):
        response += await stream.receive_some(1)
    assert response.startswith(b"HTTP/1.1 101 ")
    return stream


def frame(text: str | bytes, opcode: int = 1) -> bytes:
    """A client's frame, masked with zeros, so that it can be read."""
    payload = text if isinstance(text, bytes) else text.encode()
    length = len(payload)
    head = bytes([0x80 | opcode])
    if length < 126:
        return head + bytes([0x80 | length]) + bytes(4) + payload
    return head + b"\xfe" + struct.pack("!H", length) + bytes(4) + payload


async def rest(stream: trio.SocketStream) -> bytes:
    """All that comes until the server closes."""
    data = b""
    while some := await stream.receive_some():
        data += some
    return data


async def closed(raw: RawClient) -> int:
    """The code that the server closes with; what comes before is passed over."""
    with suppress(trio_websocket.ConnectionClosed), trio.fail_after(1000):
        while True:
            await raw.websocket.get_message()
    assert raw.websocket.closed is not None
    return int(raw.websocket.closed.code)


# ---- The protocol, as a client in another language has it


async def test_a_swap_from_quote_to_balances_over_a_socket() -> None:
    async with (
        open_sandbox(seed=7, outcomes={Outcome.FILLED: 1}, order_id_prefix="ord_") as sandbox,
        open_raw(sandbox) as raw,
    ):
        await raw.subscribe("balances")
        quote = await raw.request("estimate", swap_body())
        assert Decimal(quote["data"]["expectedOut"]) > 0
        reply = await raw.request("swap", swap_body())
        assert reply == {"op": "swap", "data": {"orderId": "ord_00000001", "status": "PENDING"}}
        assert (await raw.receive_json())["data"][0]["locked"] == "1.5"
        assert [change["asset"] for change in (await raw.receive_json())["data"]] == [
            "ETH",
            "USDT",
        ]
        status = await raw.request("order_status", '{"id":"ord_00000001"}')
        assert status["data"]["status"] == "FILLED"
        # As the broker's JavaScript client sends it: null, and the hash of nothing.
        await raw.send(signed("balances", at=time.time())[:-1] + ',"data":null}')
        assert "data" in await raw.receive_json()


async def test_orders_go_on_in_their_own_time_whoever_is_connected(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox(
        pending_delay=(60, 60),
        processing_delay=(3600, 3600),
        outcomes={"filled": 1},  # type: ignore[dict-item]  # texts will do
    ) as sandbox:
        async with open_raw(sandbox) as raw:
            await raw.request("swap", swap_body())
            await trio.sleep(30)
            await raw.request("swap", swap_body())
        first, second = sandbox.orders()
        await trio.sleep(61)
        assert [order.status for order in sandbox.orders()] == ["PROCESSING", "PROCESSING"]
        await trio.sleep(3584)
        assert [order.status for order in sandbox.orders()] == ["FILLED", "PROCESSING"]
        await trio.sleep(30)
        assert sandbox.order(second.order_id).status == "FILLED"
        assert first.status == "PENDING"


async def test_an_order_that_is_due_sooner_does_not_wait_for_an_earlier_one(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_sandbox(pending_delay=(0, 1000)) as sandbox,
        open_raw(sandbox) as raw,
    ):
        dues = []
        for _ in range(10):
            await raw.request("swap", swap_body(amountIn="0.1"))
            order = sandbox.orders()[-1]
            dues.append((order.steps[0].at, order.order_id))
        assert dues != sorted(dues)
        for due, order_id in sorted(dues):
            await trio.sleep_until(due + 0.001)
            assert sandbox.order(order_id).status == "PROCESSING"


async def test_pushes_go_to_the_account_alone() -> None:
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        await other.subscribe("balances")
        await mine.subscribe("balances")
        await mine.request("swap", swap_body())
        assert (await mine.receive_json())["ch"] == "balances"
        assert (await other.request("balances"))["op"] == "balances"


# ---- Deadlines and limits


async def test_who_does_not_authenticate_in_time_is_hung_up_on(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(auth_timeout=10) as sandbox,
        open_raw(sandbox, None) as raw,
    ):
        start = trio.current_time()
        assert await closed(raw) == 1008
        assert trio.current_time() - start == pytest.approx(10)


async def test_a_refused_authentication_does_not_buy_time(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(auth_timeout=10) as sandbox,
        open_raw(sandbox, None) as raw,
    ):
        start = trio.current_time()
        await trio.sleep(6)
        await raw.send(auth(0.0))
        assert "error" in await raw.receive_json()
        assert await closed(raw) == 1008
        assert trio.current_time() - start == pytest.approx(10)


async def test_who_is_idle_is_hung_up_on(autojump_clock: MockClock) -> None:
    async with open_sandbox(idle_timeout=300) as sandbox, open_raw(sandbox) as raw:
        await trio.sleep(200)
        await raw.request("balances")
        start = trio.current_time()
        assert await closed(raw) == 1001
        assert trio.current_time() - start == pytest.approx(300)


async def test_pings_count_as_life(autojump_clock: MockClock) -> None:
    async with open_sandbox(idle_timeout=300) as sandbox, open_raw(sandbox) as raw:
        for _ in range(10):
            await trio.sleep(200)
            await raw.websocket.ping()
        assert "data" in await raw.request("balances")


@pytest.mark.parametrize("text", ["x" * 65537, "é" * 32769, "x" * 1_000_000, b"x" * 65537])
async def test_a_message_that_is_too_large_closes_with_1009(text: str | bytes) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        await raw.send(text)
        assert await closed(raw) == 1009


async def test_a_message_of_64_kib_is_read() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        await raw.send('{"op":"' + "x" * (65536 - 9) + '"}')
        assert (await raw.receive_json())["error"].startswith("Unknown operation: xxx")


async def test_messages_over_the_rate_are_refused_and_the_connection_lives(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        for _ in range(120):
            await raw.send('{"op":"subscribe","ch":"balances"}')
        replies = [await raw.receive_json() for _ in range(120)]
        assert ["error" in reply for reply in replies] == [False] * 99 + [True] * 21
        await trio.sleep(1)
        assert "data" in await raw.request("balances")


# ---- Clients that misbehave


async def _garbage(sandbox: Sandbox) -> trio.SocketStream:
    stream = await dialled(sandbox)
    await stream.send_all(b"\x16\x03\x01\x00\xa5\x01\r\n\r\n")
    return stream


async def _plain_http(sandbox: Sandbox) -> trio.SocketStream:
    stream = await dialled(sandbox)
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return stream


async def _half_a_handshake(sandbox: Sandbox) -> trio.SocketStream:
    stream = await dialled(sandbox)
    await stream.send_all(UPGRADE[:40])
    return stream


async def _gone_without_a_word(sandbox: Sandbox) -> trio.SocketStream:
    stream = await dialled(sandbox)
    await stream.send_eof()
    return stream


async def _reset(sandbox: Sandbox) -> trio.SocketStream:
    stream = await upgraded(sandbox)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.send_all(frame("{")[:3])
    await trio.aclose_forcefully(stream)
    return stream


async def _reset_in_the_handshake(sandbox: Sandbox) -> trio.SocketStream:
    stream = await dialled(sandbox)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.send_all(UPGRADE)
    await trio.aclose_forcefully(stream)
    return stream


async def _half_a_frame(sandbox: Sandbox) -> trio.SocketStream:
    stream = await upgraded(sandbox)
    await stream.send_all(frame("{" * 100)[:50])
    await stream.send_eof()
    return stream


async def _pings_and_never_reads(sandbox: Sandbox) -> trio.SocketStream:
    stream = await upgraded(sandbox, receive_buffer=2048)
    with trio.move_on_after(1):
        while True:
            await stream.send_all(frame(b"x" * 120, opcode=9) * 1000)
    return stream


def _sends(data: bytes) -> Callable[[Sandbox], Awaitable[trio.SocketStream]]:
    async def misbehave(sandbox: Sandbox) -> trio.SocketStream:
        stream = await upgraded(sandbox)
        await stream.send_all(data)
        return stream

    misbehave.__name__ = f"_sends_{data!r}"
    return misbehave


MISBEHAVIOURS = [
    _sends(frame(b"\xff\xff")),  # not UTF-8
    _sends(b"\x81\x02{}"),  # not masked
    _sends(b"\xf1\x80" + bytes(4)),  # reserved bits
    _sends(frame(b"x", opcode=3)),
    _sends(frame(b"\x00", opcode=8)),  # half a close code
    _sends(frame(b"\x03\xed", opcode=8)),  # 1005, which may not be sent
    _sends(frame("{}") + frame(b"\x03\xe8", opcode=8) + frame("{}")),  # more after its close
    _garbage,
    _plain_http,
    _half_a_handshake,
    _gone_without_a_word,
    _reset,
    _reset_in_the_handshake,
    _half_a_frame,
    _pings_and_never_reads,
]


@pytest.mark.parametrize("misbehave", MISBEHAVIOURS, ids=lambda function: function.__name__)
async def test_a_client_that_misbehaves_harms_nobody_and_is_gone_in_the_end(
    autojump_clock: MockClock, misbehave: Callable[[Sandbox], Awaitable[trio.SocketStream]]
) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        stream = await misbehave(sandbox)
        assert "data" in await raw.request("balances")
        await trio.sleep(200)
        assert "data" in await raw.request("balances")
        await trio.sleep(200)
        assert sandbox.connections[0].closed_at is None
        assert all(connection.closed_at is not None for connection in sandbox.connections[1:])
        with trio.fail_after(10):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await rest(stream)
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("misbehave", MISBEHAVIOURS, ids=lambda function: function.__name__)
async def test_leaving_ends_whatever_clients_are_doing(
    autojump_clock: MockClock, misbehave: Callable[[Sandbox], Awaitable[trio.SocketStream]]
) -> None:
    async with open_sandbox() as sandbox:
        stream = await misbehave(sandbox)
        await wait_all_tasks_blocked()
        start = trio.current_time()
    assert trio.current_time() - start <= 1
    assert all(connection.closed_at is not None for connection in sandbox.connections)
    await trio.aclose_forcefully(stream)


async def test_a_handshake_that_takes_too_long_is_ended(autojump_clock: MockClock) -> None:
    async with open_sandbox(handshake_timeout=10) as sandbox:
        stream = await dialled(sandbox)
        start = trio.current_time()
        with trio.move_on_after(9):
            for byte in UPGRADE:
                await stream.send_all(bytes([byte]))
                await trio.sleep(1)
        assert await rest(stream) == b""
        assert trio.current_time() - start == pytest.approx(10)
        assert sandbox.connections == ()
        await stream.aclose()


async def test_who_stops_reading_is_dropped_and_holds_up_nobody(autojump_clock: MockClock) -> None:
    async with open_sandbox(messages_per_second=10**6, write_timeout=5) as sandbox:
        lazy = await upgraded(sandbox, receive_buffer=2048)
        await lazy.send_all(frame(auth(time.time())) + frame('{"op":"subscribe","ch":"balances"}'))
        async with open_raw(sandbox) as raw:
            while len(sandbox.connections[0].channels) == 0:
                await raw.request("balances")
            sent, start = 0, trio.current_time()
            while sandbox.connections[0].closed_at is None:
                assert sandbox.push(json.dumps("x" * 10_000)) == 2
                await raw.receive_json()
                sent += 1
                await trio.sleep(0.01)
            assert sent < 1500
            assert trio.current_time() - start < 10
        await trio.aclose_forcefully(lazy)


async def test_a_client_with_too_much_waiting_for_it_is_dropped() -> None:
    async with open_sandbox(outbox_size=4) as sandbox, open_raw(sandbox) as raw:
        for _ in range(6):  # The writer has the first; then all are there before it has a turn.
            sandbox.push("{}")
        assert await closed(raw) == 1006
        assert sandbox.connections[0].closed_at is not None
        sandbox.push("{}")  # Nobody is there to hear it.


async def test_a_client_that_does_not_answer_a_close_is_dropped(autojump_clock: MockClock) -> None:
    async with open_sandbox(auth_timeout=10, close_timeout=2) as sandbox:
        stream = await upgraded(sandbox)
        start = trio.current_time()
        heard = await rest(stream)
        assert heard[0] == 0x88
        assert trio.current_time() - start == pytest.approx(12)
        await stream.aclose()


async def test_a_mistake_of_the_sandbox_costs_one_connection_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receive = Broker.receive

    def fragile(self: Broker, connection: Any, message: Any, moment: Any) -> Any:
        if message == "break":
            raise ZeroDivisionError
        return receive(self, connection, message, moment)

    monkeypatch.setattr(Broker, "receive", fragile)
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as victim,
        open_raw(sandbox) as other,
    ):
        await victim.send("break")
        assert await closed(victim) == 1006
        assert "data" in await other.request("balances")
    assert "mistake in the sandbox" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# ---- The end


async def test_leaving_says_goodbye_with_1001() -> None:
    codes, sandboxes = [], []
    here, there = trio.open_memory_channel[None](3)
    leave = trio.Event()

    async def stay(sandbox: Sandbox) -> None:
        async with open_raw(sandbox) as raw:
            await here.send(None)
            codes.append(await closed(raw))

    async def serve(*, task_status: trio.TaskStatus[Sandbox]) -> None:
        async with open_sandbox() as sandbox:
            task_status.started(sandbox)
            await leave.wait()
        sandboxes.append(sandbox)

    async with trio.open_nursery() as nursery:
        sandbox = await nursery.start(serve)
        for _ in range(3):
            nursery.start_soon(stay, sandbox)
        for _ in range(3):
            await there.receive()
        leave.set()
    assert codes == [1001] * 3
    assert sandboxes == [sandbox]
    assert all(connection.closed_at is not None for connection in sandbox.connections)


async def test_nobody_listens_once_it_is_left() -> None:
    async with open_sandbox() as sandbox:
        pass
    with pytest.raises(ConnectionRefusedError):
        await dialled(sandbox)


async def test_a_sandbox_can_come_back_at_the_same_port_at_once() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        port = urlsplit(sandbox.url).port
        assert port
        await raw.request("balances")
    async with open_sandbox(port=port) as sandbox, open_raw(sandbox) as raw:
        assert "data" in await raw.request("balances")
