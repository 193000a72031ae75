"""The sandbox's faults over real sockets, as a client that has to live with them sees them."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio_websocket
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.sandbox.test_server import UPGRADE, closed, dialled, open_raw, rest, upgraded
from tests.sandbox_client import RawClient, auth, swap_body
from trio_broker.sandbox import Fault, Faults, Outcome, open_sandbox
from trio_broker.sandbox.disturbance import Disturbances, FaultyStream

SUBSCRIBE = '{"op":"subscribe","ch":"%s"}'
NOT_AUTHENTICATED = {"op": "balances", "error": "Not authenticated"}


@pytest.fixture(autouse=True)
def _no_mistake_of_the_sandboxs(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert "mistake" not in caplog.text


async def receives_nothing(raw: RawClient, seconds: float = 60) -> bool:
    """Nothing comes in a time of Trio's clock."""
    with trio.move_on_after(seconds) as waiting:
        await raw.receive_json()
    return waiting.cancelled_caught


async def head(stream: trio.SocketStream) -> bytes:
    """An HTTP response's head."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await stream.receive_some(1)
    return data


async def is_reset(stream: trio.SocketStream) -> bool:
    try:
        await rest(stream)
    except trio.BrokenResourceError as error:
        return isinstance(error.__cause__, ConnectionResetError)
    return False


# ---- How long a fault lasts


async def test_a_fault_lasts_until_it_is_lifted() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        fault = sandbox.faults.replace("{}", op="balances")
        assert isinstance(sandbox.faults, Faults)
        assert isinstance(fault, Fault)
        assert [await raw.request("balances") for _ in range(3)] == [{}] * 3
        assert (fault.uses, fault.is_lifted) == (3, False)
        fault.lift()
        fault.lift()
        assert "data" in await raw.request("balances")
        assert (fault.uses, fault.is_lifted) == (3, True)


async def test_a_fault_ends_with_its_block() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        with sandbox.faults.replace("{}", op="balances") as fault:
            assert await raw.request("balances") == {}
        assert "data" in await raw.request("balances")
        assert fault.is_lifted


async def test_a_fault_ends_after_so_many_uses() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        fault = sandbox.faults.replace("{}", op="balances", times=2)
        assert "data" in await raw.request("estimate", swap_body())
        assert [await raw.request("balances") for _ in range(2)] == [{}] * 2
        assert "data" in await raw.request("balances")
        assert fault.is_lifted


async def test_all_faults_can_be_lifted_at_once() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        faults = [sandbox.faults.swallow(), sandbox.faults.ignore(), sandbox.faults.go_silent()]
        sandbox.faults.clear()
        assert all(fault.is_lifted for fault in faults)
        assert "data" in await raw.request("balances")


async def test_a_fault_strikes_at_least_once() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        with pytest.raises(ValueError, match="times must be at least 1, or None, not 0"):
            sandbox.faults.swallow(times=0)
        assert "data" in await raw.request("balances")


# ---- New connections


async def test_a_handshake_is_refused_with_a_status_and_headers() -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.refuse_connections(429, {"Retry-After": "5"}, times=1)
        async with await dialled(sandbox) as stream:
            await stream.send_all(UPGRADE)
            lines = (await rest(stream)).split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 429 Too Many Requests"
        assert b"Retry-After: 5" in lines
        assert sandbox.connections == ()
        async with open_raw(sandbox) as raw:
            assert "data" in await raw.request("balances")


async def test_a_client_library_reads_the_refusal() -> None:
    async with open_sandbox() as sandbox, await dialled(sandbox) as stream:
        sandbox.faults.refuse_connections(599)
        with pytest.RaisesGroup(trio_websocket.ConnectionRejected) as caught:
            async with trio.open_nursery() as nursery:
                await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/ws")
        rejected = caught.value.exceptions[0]
        assert isinstance(rejected, trio_websocket.ConnectionRejected)
        assert rejected.status_code == 599


async def test_new_connections_are_reset() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        with sandbox.faults.refuse_connections(None), trio.fail_after(5):
            async with await dialled(sandbox) as stream:
                assert await is_reset(stream)
        assert "data" in await raw.request("balances")


@pytest.mark.parametrize(
    ("status", "headers"),
    [(101, {}), (1000, {}), (503, {"X": "a\r\nb"}), (503, {"X": "é"}), (503, {"X\n": "a"})],
)
async def test_what_no_http_response_can_have_is_refused(
    status: int, headers: dict[str, str]
) -> None:
    async with open_sandbox() as sandbox:
        with pytest.raises(ValueError, match="HTTP"):
            sandbox.faults.refuse_connections(status, headers)


async def test_a_handshake_is_never_answered(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.stall_handshakes(times=1)
        async with await dialled(sandbox) as stream:
            await stream.send_all(UPGRADE)
            with trio.move_on_after(3600) as waiting:
                await stream.receive_some()
            assert waiting.cancelled_caught
            async with open_raw(sandbox) as raw:
                assert "data" in await raw.request("balances")


# ---- Requests


async def test_an_ignored_request_is_never_executed(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        sandbox.faults.ignore(op="swap", times=1)
        await raw.send("{")
        assert "Malformed" in (await raw.receive_json())["error"]
        await raw.send('{"op":"swap"}')
        assert await receives_nothing(raw)
        assert sandbox.orders() == ()
        assert [one.op for one in sandbox.connections[0].received] == ["auth", None, "swap"]
        assert (await raw.request("swap", swap_body()))["data"]["status"] == "PENDING"


async def test_everything_can_be_ignored_for_one_account(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        sandbox.faults.ignore(account="test_key_2")
        await other.send("garbage")
        await other.send('{"op":"balances"}')
        assert await receives_nothing(other)
        assert "data" in await mine.request("balances")


async def test_refused_authentication_leaves_the_connection_unauthenticated() -> None:
    async with open_sandbox(error_form="named") as sandbox, open_raw(sandbox, None) as raw:
        sandbox.faults.refuse_auth(times=1)
        sandbox.faults.refuse_auth("Invalid API key", times=1)
        refused = [await raw.request("auth", key="test_key_1") for _ in range(2)]
        assert [reply["error"] for reply in refused] == ["Invalid signature", "Invalid API key"]
        assert [reply["op"] for reply in refused] == ["auth"] * 2
        assert sandbox.connections[0].api_key is None
        assert await raw.request("balances") == NOT_AUTHENTICATED
        await raw.authenticate()


async def test_authentication_is_refused_to_one_account() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox, None) as raw:
        sandbox.faults.refuse_auth(account=1)
        await raw.send(auth(time.time(), 2))
        assert (await raw.receive_json())["error"] == "Invalid signature"
        await raw.authenticate()


async def test_a_refused_channel_is_not_subscribed() -> None:
    async with open_sandbox(error_form="named") as sandbox, open_raw(sandbox) as raw:
        sandbox.faults.refuse_channel("orders:*", "Not today")
        await raw.send(SUBSCRIBE % "orders:1")
        assert await raw.receive_json() == {
            "op": "subscribe",
            "ch": "orders:1",
            "error": "Not today",
        }
        await raw.subscribe("balances")
        assert list(sandbox.connections[0].channels) == ["balances"]
        sandbox.faults.refuse_channel("balances")
        await raw.send(SUBSCRIBE % "balances")
        assert (await raw.receive_json())["error"] == "Invalid channel format"
        await raw.send('{"op":"unsubscribe","ch":"balances"}')
        assert (await raw.receive_json())["data"] == {"status": "unsubscribed"}


# ---- Replies and pushes


async def test_a_swallowed_reply_is_of_a_request_that_was_executed(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        sandbox.faults.swallow(op="swap", times=1)
        await raw.send(SUBSCRIBE % "balances")
        assert "data" in await raw.receive_json()
        sandbox.next_outcome(Outcome.FILLED)
        push = await raw.request("swap", swap_body())
        assert push["ch"] == "balances"
        assert len(sandbox.orders()) == 1


async def test_replies_about_one_channel_are_swallowed(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        sandbox.faults.swallow(op="subscribe", channel="orders:1")
        for channel in ("orders:1", "orders:11", "balances"):
            await raw.send(SUBSCRIBE % channel)
        assert [(await raw.receive_json())["ch"] for _ in range(2)] == [
            "orders:11",
            "balances",
        ]
        assert await receives_nothing(raw)
        assert len(sandbox.connections[0].channels) == 3


async def test_pushes_to_some_channels_are_swallowed(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(outcomes={Outcome.FILLED: 1}, order_id_prefix="ord_") as sandbox,
        open_raw(sandbox) as raw,
    ):
        await raw.subscribe("balances")
        await raw.subscribe("orders:ord_00000001")
        with sandbox.faults.swallow(channel="orders:*") as fault:
            await raw.request("swap", swap_body())
            assert [(await raw.receive_json())["ch"] for _ in range(2)] == ["balances"] * 2
            assert await receives_nothing(raw)
            assert fault.uses >= 2
            await raw.send(SUBSCRIBE % "orders:2")
            assert (await raw.receive_json())["data"] == {"status": "subscribed"}


async def test_pushing_stops_though_requests_are_answered(autojump_clock: MockClock) -> None:
    async with open_sandbox(order_id_prefix="ord_") as sandbox, open_raw(sandbox) as raw:
        await raw.subscribe("balances")
        await raw.subscribe("orders:ord_00000001")
        sandbox.faults.stop_pushing()
        assert (await raw.request("swap", swap_body()))["op"] == "swap"
        assert await receives_nothing(raw)
        assert (await raw.request("balances"))["op"] == "balances"
        assert sandbox.push('{"ch":"balances","data":[]}') == 1
        assert await raw.receive_json() == {"ch": "balances", "data": []}


async def test_a_fault_can_be_for_one_account(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        sandbox.faults.swallow(account=1)
        assert "data" in await mine.request("balances")
        await other.send('{"op":"balances"}')
        assert await receives_nothing(other)
        with pytest.raises(LookupError):
            sandbox.faults.swallow(account="test_key_9")


async def test_a_delayed_reply_comes_later_and_holds_up_nothing(
    autojump_clock: MockClock,
) -> None:
    hour = (3600.0, 3600.0)  # An order that is due later holds up nothing either.
    async with open_sandbox(pending_delay=hour) as sandbox, open_raw(sandbox) as raw:
        await raw.request("swap", swap_body())
        start = trio.current_time()
        sandbox.faults.delay(5, op="subscribe", times=2)
        for channel in ("orders:1", "orders:2", "orders:3"):
            await raw.send(SUBSCRIBE % channel)
        assert (await raw.request("balances"))["ch"] == "orders:3"
        assert (await raw.receive_json())["op"] == "balances"
        assert trio.current_time() == start
        assert [(await raw.receive_json())["ch"] for _ in range(2)] == [
            "orders:1",
            "orders:2",
        ]
        assert trio.current_time() - start == pytest.approx(5)


async def test_what_is_delayed_is_lost_with_the_connection(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as other:
        sandbox.faults.delay(5, op="balances", times=1)
        async with open_raw(sandbox) as raw:
            await raw.send('{"op":"balances"}')
            await wait_all_tasks_blocked()
        await trio.sleep(10)
        assert "data" in await other.request("balances")


async def test_authentication_is_answered_later(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox, None) as raw:
        start = trio.current_time()
        sandbox.faults.delay_auth(30)
        await raw.authenticate()
        assert trio.current_time() - start == pytest.approx(30)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
async def test_a_time_is_not_negative(seconds: float) -> None:
    async with open_sandbox() as sandbox:
        for fault in (sandbox.faults.delay, sandbox.faults.delay_auth, sandbox.faults.drip):
            with pytest.raises(ValueError, match="0 seconds or more"):
                fault(seconds)


async def test_a_reply_comes_twice() -> None:
    async with open_sandbox(order_id_prefix="ord_") as sandbox, open_raw(sandbox) as raw:
        sandbox.faults.duplicate(op="swap", times=1)
        reply = await raw.request("swap", swap_body())
        assert reply["data"]["orderId"] == "ord_00000001"
        assert await raw.receive_json() == reply
        assert len(sandbox.orders()) == 1
        assert (await raw.request("swap", swap_body()))["data"]["orderId"] == "ord_00000002"


async def test_something_else_comes_in_place_of_a_reply() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        sandbox.faults.replace({"op": "balances", "data": {"balances": 5}}, op="balances", times=1)
        assert await raw.request("balances") == {"op": "balances", "data": {"balances": 5}}
        sandbox.faults.replace("]", op="balances", times=1)
        await raw.send('{"op":"balances"}')
        assert await raw.websocket.get_message() == "]"


async def test_faults_act_one_after_the_other(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        start = trio.current_time()
        sandbox.faults.replace("[]", op="balances")
        sandbox.faults.duplicate(op="balances")
        sandbox.faults.delay(1, op="balances")
        sandbox.faults.delay(2, op="balances")
        assert await raw.request("balances") == await raw.receive_json() == []
        assert trio.current_time() - start == pytest.approx(3)
        swallowing, late = sandbox.faults.swallow(op="balances"), sandbox.faults.duplicate()
        await raw.send('{"op":"balances"}')
        assert await receives_nothing(raw)
        assert (swallowing.uses, late.uses) == (1, 0)


# ---- The flow of bytes


async def test_a_server_that_stops_reading_goes_on_where_it_was(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        with sandbox.faults.stall_reading():
            await raw.send(SUBSCRIBE % "balances")
            with trio.move_on_after(1000) as pinging:
                await raw.websocket.ping()
            assert pinging.cancelled_caught
            assert len(sandbox.connections[0].received) == 1
            sandbox.push("{}")
            assert await raw.receive_json() == {}
        assert (await raw.receive_json())["ch"] == "balances"
        assert sandbox.connections[0].closed_at is None


async def test_who_could_not_be_heard_is_not_taken_for_late(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(auth_timeout=10) as sandbox,
        open_raw(sandbox, None) as raw,
    ):
        with sandbox.faults.stall_reading():
            await trio.sleep(60)
        await trio.sleep(9)
        await raw.authenticate()
    async with (
        open_sandbox(auth_timeout=10) as sandbox,
        open_raw(sandbox, None) as raw,
    ):
        with sandbox.faults.stall_reading():
            await trio.sleep(60)
        start = trio.current_time()
        assert await closed(raw) == 1008
        assert trio.current_time() - start == pytest.approx(10)


async def test_a_server_that_stops_reading_pushes_back(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        with sandbox.faults.stall_reading(), trio.move_on_after(60) as sending:
            await stream.send_all(bytes(64 * 1024 * 1024))
        assert sending.cancelled_caught


async def test_a_server_that_stops_writing_reads_on(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        with sandbox.faults.stall_writing():
            await raw.send(SUBSCRIBE % "balances")
            with trio.move_on_after(100) as pinging:
                await raw.websocket.ping()
            assert pinging.cancelled_caught
            assert await receives_nothing(raw, 100)
            assert len(sandbox.connections[0].received) == 2
        assert (await raw.receive_json())["ch"] == "balances"


async def test_a_silent_peer_is_silent_for_ever_but_new_connections_work(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        with sandbox.faults.go_silent():
            await raw.send(SUBSCRIBE % "balances")
            sandbox.push("{}")
            assert await receives_nothing(raw, 3600)
            assert len(sandbox.connections[0].received) == 1
            async with open_raw(sandbox) as new:
                assert "data" in await new.request("balances")
        assert {json.dumps(await raw.receive_json())[:6] for _ in range(2)} == {
            "{}",
            '{"op":',
        }


async def test_one_account_alone_goes_silent(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        with sandbox.faults.go_silent(account="test_key_2"):
            assert "data" in await mine.request("balances")
            await other.send('{"op":"balances"}')
            assert await receives_nothing(other)


async def test_leaving_a_silent_sandbox_takes_no_longer_than_a_close(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox(close_timeout=1) as sandbox:
        stream = await upgraded(sandbox)
        sandbox.faults.go_silent()
        start = trio.current_time()
    assert trio.current_time() - start <= 1
    await stream.aclose()


async def test_everything_drips_the_handshake_too(autojump_clock: MockClock) -> None:
    async with open_sandbox(auth_timeout=1000) as sandbox, await dialled(sandbox) as stream:
        start = trio.current_time()
        with sandbox.faults.drip(1):
            await stream.send_all(UPGRADE)
            assert await stream.receive_some() == b"H"
            response = b"H" + await head(stream)
            assert response.startswith(b"HTTP/1.1 101 ")
            assert trio.current_time() - start == pytest.approx(len(response) - 1)
            await trio.sleep(1.5)
            assert sandbox.push("0123456789") == 1
            data = [await stream.receive_some() for _ in range(12)]
            assert b"".join(data) == b"\x81\x0a0123456789"
            assert len(data) == 12
            sandbox.push("0123456789")
            assert await stream.receive_some() == b"\x81"
        assert await stream.receive_some() == b"\x0a0123456789"


async def test_a_client_can_live_with_single_bytes_and_one_account_drips_alone() -> None:
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        sandbox.faults.drip(account=1)
        assert "data" in await mine.request("balances")
        assert "data" in await other.request("balances")
    async with open_sandbox() as sandbox:
        sandbox.faults.drip()
        async with open_raw(sandbox) as raw:
            assert "data" in await raw.request("balances")


# ---- At once


async def test_connections_are_reset_at_once() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox, 2) as other:
        stream = await upgraded(sandbox)
        with trio.fail_after(5):
            assert sandbox.faults.reset("test_key_2") == 1
            assert await closed(other) == 1006
            assert sandbox.faults.reset() == 1
            assert sandbox.faults.reset() == 0
            assert await is_reset(stream)
        await stream.aclose()


async def test_connections_are_reset_in_the_middle_of_a_frame() -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        assert sandbox.faults.reset(mid_frame=True) == 1
        with trio.fail_after(5):
            data = await stream.receive_some()
            assert data[0] == 0x81
            assert 2 < len(data) < 2 + data[1]
            assert await is_reset(stream)
        await wait_all_tasks_blocked()
        assert sandbox.connections[0].closed_at is not None


async def test_a_broker_hangs_up_without_a_close_frame() -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        sandbox.push("{}")
        assert sandbox.faults.hang_up() == 1
        with trio.fail_after(5):
            assert await rest(stream) == b"\x81\x02{}"


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006, 1012, 4999, 0, 65535])
async def test_connections_are_closed_with_any_code(code: int) -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        assert sandbox.faults.close(code, "why") == 1
        with trio.fail_after(5):
            assert await rest(stream) == b"\x88\x05" + code.to_bytes(2, "big") + b"why"


async def test_a_client_library_reads_the_close() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        assert sandbox.faults.close(1013, "later", "test_key_2") == 0
        assert sandbox.faults.close(1013, "later", 0) == 1
        assert await closed(raw) == 1013


async def test_what_does_not_fit_into_a_close_frame_is_refused() -> None:
    async with open_sandbox() as sandbox:
        for code, reason in ((65536, ""), (-1, ""), (1000, "é" * 62)):
            with pytest.raises(ValueError, match="a close frame"):
                sandbox.faults.close(code, reason)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
async def test_texts_and_binary_messages_of_any_size_are_sent(size: int) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        assert sandbox.faults.send_text("x" * size) == 1
        assert await raw.websocket.get_message() == "x" * size
        assert sandbox.faults.send_binary(b"\xff" * size) == 1
        assert await raw.websocket.get_message() == b"\xff" * size


@pytest.mark.parametrize("fragments", [1, 2, 3, 50])
async def test_a_message_comes_in_fragments(fragments: int) -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        assert sandbox.faults.send_fragments("ééééé", fragments) == 1
        sandbox.faults.hang_up()
        data = await rest(stream)
        heads, payload = [], b""
        while data:
            heads.append(data[0])
            payload += data[2 : 2 + data[1]]
            data = data[2 + data[1] :]
        assert payload.decode() == "ééééé"
        assert len(heads) == fragments
        assert [byte & 0x0F for byte in heads] == [1] + [0] * (fragments - 1)
        assert [byte >> 7 for byte in heads] == [0] * (fragments - 1) + [1]


async def test_a_client_library_puts_fragments_together() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        sandbox.faults.send_fragments('{"a":"é"}', 3)
        assert await raw.receive_json() == {"a": "é"}
        with pytest.raises(ValueError, match="at least 1 fragment"):
            sandbox.faults.send_fragments("x", 0)


async def test_pings_are_sent() -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        assert sandbox.faults.send_pings(12) == 1
        sandbox.faults.hang_up()
        pings = [b"\x89" + bytes([len(str(n))]) + str(n).encode() for n in range(1, 13)]
        assert await rest(stream) == b"".join(pings)


async def test_many_pings_do_no_harm() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        assert sandbox.faults.send_pings(5000) == 1
        assert "data" in await raw.request("balances")


async def test_any_bytes_are_sent_between_frames() -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        sandbox.push("{}")
        assert sandbox.faults.send_raw(b"\x00garbage") == 1
        sandbox.push("[]")
        sandbox.faults.hang_up()
        assert await rest(stream) == b"\x81\x02{}\x00garbage\x81\x02[]"


async def test_who_does_not_read_the_bytes_is_dropped(autojump_clock: MockClock) -> None:
    async with open_sandbox(write_timeout=5) as sandbox:
        stream = await upgraded(sandbox, receive_buffer=2048)
        sandbox.faults.send_raw(bytes(64 * 1024 * 1024))
        await trio.sleep(4)
        assert sandbox.connections[0].closed_at is None
        await trio.sleep(2)
        assert sandbox.connections[0].closed_at == pytest.approx(trio.current_time() - 1)
        await stream.aclose()


# ---- The whole server


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_killed_server_is_gone_at_once_and_comes_back(host: str) -> None:
    async with open_sandbox(host=host) as sandbox:
        address = (host, urlsplit(sandbox.url).port)
        for number in range(1, 4):
            async with await upgraded(sandbox) as stream:
                assert len(sandbox.connections) == number
                sandbox.faults.kill()
                assert sandbox.faults.is_killed
                assert sandbox.push("{}") == 0
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(address)
                with trio.fail_after(5):
                    assert await is_reset(stream)
            await sandbox.faults.revive()
            assert not sandbox.faults.is_killed


async def test_a_server_comes_back_beside_another_at_the_port_of_the_other_family() -> None:
    for _ in range(20):
        async with open_sandbox(host="::") as sandbox:
            port = urlsplit(sandbox.url).port
            with socket.socket() as other:
                try:
                    other.bind(("127.0.0.1", port))
                except OSError:
                    continue  # Somebody on this machine has it just now.
                other.listen()
                sandbox.faults.kill()
                await sandbox.faults.revive()
                async with open_raw(sandbox) as raw:
                    assert "data" in await raw.request("balances")
                return
    pytest.fail("no port was free")


async def test_orders_live_on_while_the_server_is_killed(autojump_clock: MockClock) -> None:
    async with open_sandbox(outcomes={Outcome.FILLED: 1}, order_id_prefix="ord_") as sandbox:
        async with open_raw(sandbox) as raw:
            await raw.subscribe("balances")
            await raw.request("swap", swap_body())
            sandbox.faults.kill()
            assert await closed(raw) == 1006
        await trio.sleep(10)
        assert sandbox.orders()[0].status == "FILLED"
        await sandbox.faults.revive()
        async with open_raw(sandbox) as raw:
            data = (await raw.request("order_status", '{"id":"ord_00000001"}'))["data"]
            assert data["status"] == "FILLED"


async def test_sockets_in_the_handshake_are_reset_as_well() -> None:
    async with open_sandbox() as sandbox, await dialled(sandbox) as stream:
        await stream.send_all(UPGRADE[:20])
        await wait_all_tasks_blocked()
        sandbox.faults.kill()
        with trio.fail_after(5):
            assert await is_reset(stream)


async def test_a_server_is_killed_or_revived_not_twice() -> None:
    async with open_sandbox() as sandbox:
        with pytest.raises(RuntimeError, match="isn't killed"):
            await sandbox.faults.revive()
        sandbox.faults.kill()
        with pytest.raises(RuntimeError, match="killed already"):
            sandbox.faults.kill()
        await sandbox.faults.revive()
        sandbox.faults.kill()


async def test_a_killed_sandbox_can_be_left_and_its_port_is_free_then() -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.kill()
        port = urlsplit(sandbox.url).port
        assert port
    async with open_sandbox(port=port) as sandbox, open_raw(sandbox) as raw:
        assert "data" in await raw.request("balances")


# ---- The stream


async def test_the_stream_tells_when_its_socket_takes_bytes() -> None:
    ours, theirs = trio.socket.socketpair()
    with theirs:
        async with FaultyStream(trio.SocketStream(ours), Disturbances()) as stream:
            with trio.fail_after(5):
                await stream.wait_send_all_might_not_block()
