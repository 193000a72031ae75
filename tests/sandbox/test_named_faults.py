"""The named faults of the sandbox, as any client sees them on its socket."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio_websocket
from trio.testing import MockClock

from tests.sandbox.test_faults import is_reset, receives_nothing
from tests.sandbox.test_server import UPGRADE, dialled, frame, open_raw, rest, upgraded
from tests.sandbox_client import RawClient, signed, swap_body
from trio_broker.models import OrderStatus
from trio_broker.sandbox import Faults, Outcome, Sandbox, open_sandbox
from trio_broker.sandbox.named_faults import DOUBTFUL_TEXTS, DUPLICATE_TEXTS, NAMED_FAULTS

PAGE: Final = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
FORMS: Final = ["documented", "named", "object"]
START: Final = 1_732_526_400.0


@asynccontextmanager
async def opened(*faults: str, **settings: Any) -> AsyncIterator[tuple[Sandbox, RawClient]]:
    """A sandbox and a client; the faults start after its authentication."""
    settings = {"outcomes": {Outcome.FILLED: 1}, "order_id_prefix": "ord_", **settings}
    async with open_sandbox(**settings) as sandbox:
        clock = settings.get("clock")
        opening = open_raw(sandbox) if clock is None else open_raw(sandbox, clock=clock)
        async with opening as raw:
            for name in faults:
                sandbox.faults.start(name)
            yield sandbox, raw


def message_of(reply: dict[str, Any]) -> str:
    """The text of an error, in any form."""
    error = reply["error"]
    return str(error["message"] if isinstance(error, dict) else error)


# ---- The table


def test_every_named_fault_is_listed_on_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", PAGE, flags=re.MULTILINE)
    listed = {name: what for name, what in rows if name in NAMED_FAULTS}
    assert listed == {name: named.what for name, named in NAMED_FAULTS.items()}


@pytest.mark.parametrize("name", NAMED_FAULTS)
async def test_every_named_fault_can_be_started_once(name: str) -> None:
    async with open_sandbox() as sandbox:
        fault = sandbox.faults.start(name)
        assert not fault.is_lifted
        fault.lift()


async def test_arguments_of_a_named_fault_can_be_changed() -> None:
    async with opened() as (sandbox, raw):
        sandbox.faults.start("swap_refused", error="Invalid amount", times=1)
        assert message_of(await raw.request("swap", swap_body())) == "Invalid amount"
        assert "data" in await raw.request("swap", swap_body())
        with pytest.raises(KeyError):
            sandbox.faults.start("nonsense")
        with pytest.raises(TypeError):
            sandbox.faults.start("swap_refused", speed=1)
        with pytest.raises(LookupError):
            sandbox.faults.start("swap_refused", account=9)


# ---- Handshakes


async def response(sandbox: Sandbox) -> bytes:
    """The response to a handshake, with what follows it at once."""
    async with await dialled(sandbox) as stream:
        await stream.send_all(UPGRADE)
        data = b""
        with trio.move_on_after(1):
            while some := await stream.receive_some():
                data += some
        return data


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("handshake_no_reason", rb"HTTP/1\.1 101\r\n(.|\r\n)*\r\n\r\n"),
        ("handshake_http_1_0", rb"HTTP/1\.0 101 Switching Protocols\r\n(.|\r\n)*\r\n\r\n"),
        ("handshake_long_headers", rb"HTTP/1\.1 101 [^\r]*\r\n(.|\r\n){12000,}\r\n\r\n"),
        ("handshake_interim", rb"HTTP/1\.1 100 (.|\r\n)*HTTP/1\.1 103 (.|\r\n)*HTTP/1\.1 101 "),
        ("handshake_extension", rb"HTTP/1\.1 101 (.|\r\n)*\r\nSec-WebSocket-Extensions: x-"),
        ("handshake_subprotocol", rb"HTTP/1\.1 101 (.|\r\n)*\r\nSec-WebSocket-Protocol: un"),
        ("handshake_wrong_accept", rb"HTTP/1\.1 101 (.|\r\n)*\r\n(?i:sec-websocket-accept): AAAA"),
        ("handshake_truncated", rb"HTTP/1\.1 101 (?!(.|\r\n)*\r\n\r\n)"),
        ("handshake_not_http", rb"SSH-2\.0-\S+\r\n$"),
    ],
)
async def test_the_response_to_a_handshake_is_changed(
    name: str, pattern: bytes, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.start(name, times=1)
        assert re.match(pattern, await response(sandbox))
        async with open_raw(sandbox) as raw:
            assert "data" in await raw.request("balances")


@pytest.mark.parametrize("name", ["handshake_no_reason", "handshake_long_headers"])
async def test_a_changed_handshake_is_followed_by_a_session(name: str) -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.start(name)
        async with open_raw(sandbox) as raw:
            assert "data" in await raw.request("balances")


async def test_only_broken_handshakes_count_as_turned_away(autojump_clock: MockClock) -> None:
    events: list[str] = []
    async with open_sandbox(on_event=lambda event: events.append(type(event).__name__)) as sandbox:
        for name in ("handshake_truncated", "handshake_interim"):
            sandbox.faults.start(name, times=1)
            await response(sandbox)
    assert events[:2] == ["ClientTurnedAway", "ClientCame"]


async def test_an_unknown_handshake_is_refused() -> None:
    async with open_sandbox() as sandbox:
        with pytest.raises(ValueError, match=r"how must be one of no_reason, .*, not 'odd'"):
            sandbox.faults.alter_handshakes("odd")  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(
    ("name", "line"),
    [("busy", b"Retry-After: 1.939"), ("redirect", b"Location: wss://broker.example/ws")],
)
async def test_a_connection_is_refused_with_a_header(name: str, line: bytes) -> None:
    async with open_sandbox() as sandbox, await dialled(sandbox) as stream:
        sandbox.faults.start(name)
        await stream.send_all(UPGRADE)
        assert line in (await rest(stream)).split(b"\r\n")


async def test_connections_end_after_their_authentication() -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.start("hang_up_after_auth")
        for _ in range(3):
            async with open_raw(sandbox) as raw:
                with pytest.raises(trio_websocket.ConnectionClosed):
                    await raw.receive_json()


# ---- Sessions and clocks


@pytest.mark.parametrize("form", FORMS)
async def test_sessions_end_with_an_error_that_nobody_asked_for(form: Any) -> None:
    async with opened(error_form=form) as (sandbox, raw):
        await raw.subscribe("balances")
        assert sandbox.faults.end_sessions("Token expired") == 1
        expected = {
            "documented": {"error": "Token expired"},
            "named": {"op": "auth", "error": "Token expired"},
            "object": {"error": {"code": "INVALID_REQUEST", "message": "Token expired"}},
        }
        assert await raw.receive_json() == expected[form]
        assert message_of(await raw.request("balances")) == "Not authenticated"
        assert sandbox.connections[0].channels == {}
        await raw.authenticate()
        assert "data" in await raw.request("balances")


async def test_sessions_of_one_account_end() -> None:
    async with opened() as (sandbox, raw), open_raw(sandbox, 2) as other:
        assert sandbox.faults.end_sessions(account=1, form="named") == 1
        assert await other.receive_json() == {"op": "auth", "error": "Session expired"}
        assert "data" in await raw.request("balances")


async def test_a_connection_that_was_never_authenticated_has_no_session_to_end() -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox, None) as raw:
        assert sandbox.faults.end_sessions({"code": "UNAUTHORIZED"}, form="documented") == 1
        assert await raw.receive_json() == {"error": {"code": "UNAUTHORIZED"}}
        await raw.authenticate()


async def test_errors_about_the_session_answer_requests() -> None:
    async with opened(error_form="documented") as (sandbox, raw):
        with sandbox.faults.start("session_forgotten"):
            assert await raw.request("balances") == {"error": "Not authenticated"}
        with sandbox.faults.start("session_expired"):
            reply = await raw.request("balances")
        assert reply == {"op": "auth", "error": "Session expired"}


async def test_the_clock_is_set_back_between_two_states(autojump_clock: MockClock) -> None:
    start = trio.current_time()

    def clock() -> float:
        return START + trio.current_time() - start

    slow = {"pending_delay": (1.0, 1.0), "processing_delay": (1.0, 1.0)}
    async with opened(clock=clock, **slow) as (sandbox, raw):
        await raw.subscribe("orders:ord_00000001")
        await raw.request("swap", swap_body())
        first = (await raw.receive_json())["data"]
        assert first["updatedAt"] == START * 1000
        with sandbox.faults.start("clock_behind"):
            second = (await raw.receive_json())["data"]
            assert second["status"] == OrderStatus.PROCESSING
            assert second["updatedAt"] == START * 1000 + 1000 - 60_000
            refused = await raw.request("balances")
            assert message_of(refused) == "Request timestamp outside allowed window"
        third = (await raw.receive_json())["data"]
        assert third["updatedAt"] == START * 1000 + 2000


# ---- Swaps


async def test_a_swap_without_a_reply_is_executed(autojump_clock: MockClock) -> None:
    async with opened("swap_reply_lost") as (sandbox, raw):
        await raw.send(signed("swap", swap_body(), at=raw._clock()))
        assert await receives_nothing(raw)
        assert len(sandbox.orders()) == 1


@pytest.mark.parametrize(
    ("name", "op", "after"),
    [("swap_reply_late", "swap", 12.0), ("estimate_late", "estimate", 12.0)],
)
async def test_a_reply_is_late(name: str, op: str, after: float, autojump_clock: MockClock) -> None:
    async with opened(name) as (_, raw):
        start = trio.current_time()
        assert "data" in await raw.request(op, swap_body())
        assert trio.current_time() - start == pytest.approx(after)


async def test_a_receipt_comes_again(autojump_clock: MockClock) -> None:
    async with opened("swap_reply_twice") as (_, raw):
        first = await raw.request("swap", swap_body())
        start = trio.current_time()
        assert await raw.receive_json() == first
        assert trio.current_time() - start == pytest.approx(1)


@pytest.mark.parametrize("after", [-1.0, float("nan")])
async def test_a_second_reply_or_an_error_is_not_before_the_first(after: float) -> None:
    async with open_sandbox() as sandbox:
        faults = sandbox.faults
        with pytest.raises(ValueError, match="0 seconds or more"):
            faults.duplicate(after=after)
        with pytest.raises(ValueError, match="0 seconds or more"):
            faults.refuse("x", after=after)
        with pytest.raises(ValueError, match="0 seconds or more"):
            faults.refuse("x", executed=True, reply_after=after)


async def test_the_connection_dies_between_a_swap_and_its_reply() -> None:
    async with opened("swap_connection_lost") as (sandbox, raw):
        await raw.send(signed("swap", swap_body(), at=raw._clock()))
        with pytest.raises(trio_websocket.ConnectionClosed):
            await raw.receive_json()
        assert len(sandbox.orders()) == 1


async def test_a_connection_is_reset_and_not_only_ended() -> None:
    async with open_sandbox() as sandbox, await upgraded(sandbox) as stream:
        sandbox.faults.disconnect()
        await stream.send_all(frame("{}"))
        assert await is_reset(stream)


@pytest.mark.parametrize("form", FORMS)
async def test_the_same_refusal_comes_again_and_again(form: Any) -> None:
    async with opened("swap_refused", error_form=form) as (sandbox, raw):
        replies = [await raw.request("swap", swap_body()) for _ in range(3)]
        assert [message_of(reply) for reply in replies] == ["Insufficient balance"] * 3
        assert all(("op" in reply) == (form == "named") for reply in replies)
        assert sandbox.orders() == ()


@pytest.mark.parametrize(
    ("name", "texts"),
    [("swap_error_doubtful", DOUBTFUL_TEXTS), ("swap_error_duplicate", DUPLICATE_TEXTS)],
)
async def test_errors_in_varying_words_come_though_the_swaps_are_executed(
    name: str, texts: tuple[str, ...]
) -> None:
    async with opened(name, error_form="documented") as (sandbox, raw):
        count = len(texts) + 1
        replies = [await raw.request("swap", swap_body()) for _ in range(count)]
        assert [reply["error"] for reply in replies] == [*texts, texts[0]]
        assert len(sandbox.orders()) == count


async def test_an_error_comes_late_though_a_lookup_finds_the_order(
    autojump_clock: MockClock,
) -> None:
    async with opened("swap_error_late") as (_, raw):
        await raw.send(signed("swap", swap_body(clientOrderId="a"), at=raw._clock()))
        await trio.sleep(5)
        found = await raw.request("order_status", '{"id":"a"}')
        assert found["data"]["orderId"] == "ord_00000001"
        start = trio.current_time()
        assert message_of(await raw.receive_json()) == "SWAP_ERROR: venue timed out"
        assert trio.current_time() - start == pytest.approx(7)


async def test_a_receipt_comes_after_a_refusal(autojump_clock: MockClock) -> None:
    async with opened("swap_error_then_receipt") as (_, raw):
        assert message_of(await raw.request("swap", swap_body())) == "Insufficient balance"
        assert (await raw.receive_json())["data"]["orderId"] == "ord_00000001"


@pytest.mark.parametrize("error", ["", [], {}])
async def test_a_refusal_without_an_error_is_refused(error: Any) -> None:
    async with open_sandbox() as sandbox:
        with pytest.raises(ValueError, match="there must be an error"):
            sandbox.faults.refuse(error)


async def test_a_connection_that_is_ended_is_not_ended_twice(autojump_clock: MockClock) -> None:
    async with opened() as (sandbox, raw):
        sandbox.faults.disconnect(op="balances", reply=True)
        sandbox.faults.duplicate(op="balances")
        first = await raw.request("balances")
        assert await raw.receive_json() == first
        with pytest.raises(trio_websocket.ConnectionClosed):
            await raw.receive_json()


async def test_what_is_not_executed_has_no_reply_of_its_own() -> None:
    async with open_sandbox() as sandbox:
        with pytest.raises(ValueError, match="executed=True"):
            sandbox.faults.refuse("x", reply_after=1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("swap_error_of_another", {"clientOrderId": "another"}),
        ("swap_error_of_another_order", {"orderId": "ord_another"}),
    ],
)
@pytest.mark.parametrize("form", FORMS)
async def test_an_error_names_another_swap(name: str, data: Any, form: Any) -> None:
    async with opened(name, error_form=form) as (sandbox, raw):
        reply = await raw.request("swap", swap_body())
        assert (message_of(reply), reply["data"]) == ("Insufficient balance", data)
        assert len(sandbox.orders()) == 1


async def test_a_receipt_names_another_client_order_id() -> None:
    async with opened("swap_receipt_of_another") as (_, raw):
        data = (await raw.request("swap", swap_body(clientOrderId="mine")))["data"]
        assert (data["orderId"], data["clientOrderId"]) == ("ord_00000001", "another")


async def test_receipts_name_one_order_again_and_again() -> None:
    async with opened("swap_receipt_of_another_order") as (sandbox, raw):
        replies = [await raw.request("swap", swap_body()) for _ in range(2)]
        assert [reply["data"]["orderId"] for reply in replies] == ["ord_another"] * 2
        assert len(sandbox.orders()) == 2


async def test_a_receipt_names_no_order() -> None:
    async with opened("swap_receipt_incomplete") as (_, raw):
        assert (await raw.request("swap", swap_body()))["data"] == {"status": "PENDING"}


# ---- Orders


async def order_of(raw: RawClient) -> Any:
    """A filled order, as a lookup has it."""
    await raw.request("swap", swap_body())
    await trio.sleep(60)
    return (await raw.request("order_status", '{"id":"ord_00000001"}'))["data"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lookup_of_another_order", {"orderId": lambda _: "ord_another"}),
        ("order_fields_odd", {"filledOut": lambda _: "", "txHash": lambda _: 5}),
        ("order_times_as_text", {"updatedAt": str}),
        ("order_times_as_float", {"updatedAt": lambda ms: ms + 0.25}),
        ("order_times_set_back", {"updatedAt": lambda ms: ms - 60_000}),
        ("order_times_in_seconds", {"updatedAt": lambda ms: ms // 1000}),
        ("order_times_in_microseconds", {"updatedAt": lambda ms: ms * 1000}),
        ("amounts_large", {"filledOut": lambda _: str(2**256 - 1)}),
        ("unknown_members", {"unexpected": lambda _: [None]}),
    ],
)
async def test_a_lookup_has_odd_members(
    name: str, changes: dict[str, Callable[[Any], object]], autojump_clock: MockClock
) -> None:
    async with opened() as (sandbox, raw):
        right = await order_of(raw)
        sandbox.faults.start(name)
        odd = (await raw.request("order_status", '{"id":"ord_00000001"}'))["data"]
        assert odd == {**right, **{key: make(right.get(key)) for key, make in changes.items()}}


async def test_an_order_has_no_status(autojump_clock: MockClock) -> None:
    async with opened() as (sandbox, raw):
        right = await order_of(raw)
        sandbox.faults.start("order_status_missing")
        del right["status"]
        odd = await raw.request("order_status", '{"id":"ord_00000001"}')
        assert odd["data"] == right


async def test_a_push_names_another_order() -> None:
    async with opened("push_of_another_order") as (_, raw):
        await raw.subscribe("orders:ord_00000001")
        assert (await raw.request("swap", swap_body()))["data"]["orderId"] == "ord_00000001"
        push = await raw.receive_json()
        assert (push["ch"], push["data"]["orderId"]) == ("orders:ord_00000001", "ord_another")


async def test_a_lookup_is_too_large(autojump_clock: MockClock) -> None:
    async with opened() as (sandbox, raw):
        right = await order_of(raw)
        sandbox.faults.start("lookup_too_large", size=500_000)
        await raw.send(signed("order_status", '{"id":"ord_00000001"}', at=raw._clock()))
        text = await raw.websocket.get_message()
        assert len(text) >= 500_000
        assert json.loads(text)["data"] == right


async def test_a_large_reply_is_not_padded() -> None:
    async with opened() as (sandbox, raw):
        sandbox.faults.pad(10)
        assert set(await raw.request("balances")) == {"op", "data"}
        sandbox.faults.replace("[]", op="balances")
        sandbox.faults.pad(1000)
        assert await raw.request("balances") == []


@pytest.mark.parametrize("prefix", ["325", "9007199254740993"])
async def test_order_ids_are_numbers_everywhere(prefix: str, autojump_clock: MockClock) -> None:
    async with opened("numeric_ids", order_id_prefix=prefix) as (_, raw):
        order_id = int(f"{prefix}00000001")
        await raw.subscribe(f"orders:{order_id}")
        assert (await raw.request("swap", swap_body()))["data"]["orderId"] == order_id
        assert (await raw.receive_json())["data"]["orderId"] == order_id
        await trio.sleep(0.01)
        raw_reply = await raw.request("order_status", json.dumps({"id": str(order_id)}))
        assert raw_reply["data"]["orderId"] == order_id


@pytest.mark.parametrize("prefix", ["ord_", "0"])
async def test_an_id_that_is_no_number_stays_a_text(prefix: str) -> None:
    async with opened("numeric_ids", order_id_prefix=prefix) as (_, raw):
        assert (await raw.request("swap", swap_body()))["data"]["orderId"] == f"{prefix}00000001"


# ---- Balances, estimates and channels


def of_btc(balances: list[Any]) -> Any:
    return next(each for each in balances if isinstance(each, dict) and each["asset"] == "BTC")


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("balance_unreadable", "NaN"),
        ("balance_no_number", {}),
        ("balance_too_long", "9" * 200),
    ],
)
async def test_one_balance_is_odd_in_replies_and_pushes(name: str, total: object) -> None:
    async with opened() as (sandbox, raw):
        right = (await raw.request("balances"))["data"]["balances"]
        sandbox.faults.start(name)
        odd = (await raw.request("balances"))["data"]["balances"]
        assert of_btc(odd)["total"] == total
        assert [each for each in odd if each["asset"] != "BTC"] == [
            each for each in right if each["asset"] != "BTC"
        ]
        await raw.subscribe("balances")
        await raw.request("swap", swap_body(assetIn="BTC", amountIn="1"))
        assert of_btc((await raw.receive_json())["data"])["total"] == total


async def test_one_balance_is_no_object() -> None:
    async with opened("balance_no_object") as (_, raw):
        first, *others = (await raw.request("balances"))["data"]["balances"]
        assert (first, len(others)) == (5, 10)


async def test_locked_amounts_are_empty() -> None:
    async with opened("balance_locked_empty") as (_, raw):
        balances = (await raw.request("balances"))["data"]["balances"]
        assert {balance["locked"] for balance in balances} == {""}


async def test_a_value_may_be_one_that_json_has_not() -> None:
    async with opened() as (sandbox, raw):
        sandbox.faults.change({"total": float("nan")}, asset="BTC", op="balances")
        await raw.send(signed("balances", at=raw._clock()))
        assert '{"asset":"BTC","total":NaN,' in await raw.websocket.get_message()


async def test_a_changed_value_of_another_type_counts_as_changed() -> None:
    async with opened() as (sandbox, raw):
        sandbox.faults.change({"expiresAt": float}, op="estimate")
        await raw.send(signed("estimate", swap_body(), at=raw._clock()))
        text = str(await raw.websocket.get_message())
        assert re.search(r'"expiresAt":\d+\.0', text)


async def test_a_message_without_the_member_and_a_text_that_is_no_json_stay_as_they_are() -> None:
    async with opened() as (sandbox, raw):
        right = await raw.request("balances")
        sandbox.faults.change({"price": "5"}, add={"new": 1}, channel="orders:*")
        sandbox.faults.change({"price": "5"})
        assert await raw.request("balances") == right
        sandbox.faults.replace("{", op="balances")
        sandbox.faults.change({"price": "5"}, add={"new": 1})
        await raw.send(signed("balances", at=raw._clock()))
        assert await raw.websocket.get_message() == "{"


async def test_large_amounts_are_sent_with_all_digits() -> None:
    async with opened("amounts_large") as (_, raw):
        estimate = (await raw.request("estimate", swap_body()))["data"]
        assert len(estimate["expectedOut"]) == 78
        balances = (await raw.request("balances"))["data"]["balances"]
        assert {len(balance["total"]) for balance in balances} == {78}


async def test_every_tenth_estimate_gets_no_reply(autojump_clock: MockClock) -> None:
    async with opened("estimate_lost") as (_, raw):
        for _ in range(2):
            for _ in range(9):
                assert "data" in await raw.request("estimate", swap_body())
            await raw.send(signed("estimate", swap_body(), at=raw._clock()))
            assert await receives_nothing(raw)


@pytest.mark.parametrize("method", ["ignore", "refuse", "delay", "swallow"])
async def test_every_other_request_is_affected(method: str, autojump_clock: MockClock) -> None:
    needed: dict[str, dict[str, Any]] = {"refuse": {"error": "x"}, "delay": {"seconds": 30}}
    arguments = needed.get(method, {})
    async with opened() as (sandbox, raw):
        fault = getattr(sandbox.faults, method)(**arguments, op="balances", every=2, times=2)
        for _ in range(2):
            assert "data" in await raw.request("balances")
            await raw.send(signed("balances", at=raw._clock()))
            with trio.move_on_after(60):
                assert ("error" in await raw.receive_json()) == (method == "refuse")
        assert (fault.uses, fault.is_lifted) == (2, True)
        with pytest.raises(ValueError, match="every must be at least 1, not 0"):
            getattr(sandbox.faults, method)(**arguments, every=0)


async def test_an_estimate_has_no_price() -> None:
    async with opened("estimate_no_price") as (_, raw):
        data = (await raw.request("estimate", swap_body()))["data"]
        assert "price" not in data
        assert "expectedOut" in data


async def test_a_reply_is_no_json() -> None:
    async with opened("balances_malformed") as (_, raw):
        await raw.send(signed("balances", at=raw._clock()))
        assert await raw.websocket.get_message() == '{"op":"balances","data":'


async def test_a_subscription_is_acknowledged_with_another_status() -> None:
    async with opened("subscription_rejected") as (_, raw):
        await raw.send('{"op":"subscribe","ch":"balances"}')
        assert (await raw.receive_json())["data"] == {"status": "rejected"}


# ---- Errors


@pytest.mark.parametrize("form", FORMS)
async def test_an_error_has_an_operation_that_is_none(form: Any) -> None:
    async with opened("errors_with_op_error", error_form=form) as (_, raw):
        reply = await raw.request("swap", swap_body())
        assert (reply["op"], message_of(reply)) == ("error", "Insufficient balance")


async def test_an_error_repeats_the_signature() -> None:
    async with opened("errors_echo_keys", error_form="documented") as (_, raw):
        request = signed("estimate", swap_body(), at=raw._clock())
        await raw.send(request)
        assert await raw.receive_json() == {"error": f"Invalid request: {request}"}


async def test_an_error_is_huge() -> None:
    async with opened("errors_huge") as (_, raw):
        assert len(message_of(await raw.request("estimate", swap_body()))) == 900_000


async def test_an_error_object_is_sent_as_it_is_in_every_form() -> None:
    for form in FORMS:
        async with opened(error_form=form) as (sandbox, raw):
            error = {"code": "INSUFFICIENT_BALANCE", "message": "x", "request_id": "r"}
            sandbox.faults.refuse(error, op="swap", form="documented")
            assert await raw.request("swap", swap_body()) == {"error": error}


async def test_faults_select_errors_by_their_requests_in_every_form(
    autojump_clock: MockClock,
) -> None:
    for form in FORMS:
        async with opened(error_form=form) as (sandbox, raw):
            sandbox.faults.swallow(op="subscribe", channel="prices")
            await raw.send('{"op":"subscribe","ch":"prices"}')
            assert await receives_nothing(raw)
            await raw.send('{"op":"subscribe","ch":"other"}')
            assert message_of(await raw.receive_json()) == "Invalid channel format"


# ---- What a server can do wrong, and the faults that do it. The numbers are those of the table in
# tests/client/test_faults.py. Names in brackets are settings.

ROWS: Final[dict[int, tuple[str, ...]]] = {
    1: ("kill",),
    3: ("stall_handshakes", "drip"),
    5: ("refuse_connections",),
    6: ("busy",),
    7: ("redirect",),
    8: ("handshake_truncated", "handshake_wrong_accept", "handshake_not_http"),
    9: ("refuse_auth",),
    10: ("ignore", "delay_auth"),
    11: ("reset",),
    12: ("hang_up",),
    13: ("close",),
    14: ("close",),
    15: ("close",),
    16: ("hang_up_after_auth",),
    17: ("go_silent",),
    18: ("stall_reading",),
    21: ("send_pings",),
    22: ("send_fragments", "drip"),
    23: ("send_text", "pad"),
    24: ("send_binary", "send_text", "unknown_members"),
    25: ("send_raw",),
    26: (
        "balances_malformed", "order_status_missing", "estimate_no_price",
        "swap_receipt_incomplete",
    ),
    27: ("balance_unreadable", "change"),
    28: ("send_text",),
    29: ("(error_form)", "refuse"),
    30: ("(error_form)", "refuse"),
    31: ("delay", "swap_reply_late"),
    32: ("duplicate", "swap_reply_twice", "send_text"),
    33: ("swap_connection_lost",),
    36: ("clock_behind",),
    37: ("kill",),
    38: ("stop_pushing",),
    41: ("refuse_channel",),
    46: ("send_text", "refuse_channel"),
    47: ("session_forgotten", "end_sessions"),
    48: ("delay",),
    49: ("kill",),
    50: ("numeric_ids",),
    51: (
        "balance_unreadable", "balance_no_number", "balance_too_long", "balance_no_object",
        "balance_locked_empty",
    ),
    52: ("amounts_large",),
    53: (
        "order_fields_odd", "order_times_as_text", "order_times_as_float",
        "order_times_in_seconds", "order_times_in_microseconds",
    ),
    54: ("clock_behind", "order_times_set_back"),
    55: ("session_expired", "end_sessions"),
    56: ("subscription_rejected",),
    57: ("(error_form)", "errors_with_op_error"),
    58: ("(error_form)",),
    59: ("estimate_late", "estimate_lost", "swallow", "delay"),
    60: ("shift_clock",),
    61: ("busy",),
    62: (
        "handshake_no_reason", "handshake_http_1_0", "handshake_long_headers", "handshake_interim",
        "handshake_extension", "handshake_subprotocol",
    ),
    63: ("lookup_too_large",),
    66: ("swap_error_late",),
    67: ("swap_error_duplicate",),
    68: ("swap_error_doubtful",),
    69: ("swap_refused",),
    70: (
        "swap_error_of_another", "swap_error_of_another_order", "swap_receipt_of_another",
        "swap_receipt_of_another_order", "lookup_of_another_order", "push_of_another_order",
    ),
    71: ("swap_error_then_receipt",),
    73: ("swap_receipt_of_another_order",),
    76: ("errors_huge",),
    80: ("(error_form)",),
    84: ("errors_echo_keys", "close", "send_text"),
}  # fmt: skip


def test_every_row_that_a_server_can_cause_has_its_faults() -> None:
    used = {name for names in ROWS.values() for name in names if not name.startswith("(")}
    methods = {name for name in vars(Faults) if not name.startswith("_")}
    assert used <= methods | NAMED_FAULTS.keys()
    # The rows are about the WebSocket. These lose a reply to a swap, a case of several rows.
    others = {name for name in NAMED_FAULTS.keys() - used if not name.startswith("rest_")}
    assert others == {"swap_reply_lost"}
