"""What a sandbox tells somebody who looks on."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.sandbox.test_server import UPGRADE, closed, dialled, open_raw, upgraded
from tests.sandbox_client import auth, swap_body
from trio_broker.sandbox import (
    ClientAsked,
    ClientCame,
    ClientLeft,
    ClientTurnedAway,
    OrderMoved,
    Outcome,
    SandboxEvent,
    open_sandbox,
)


def asked(**changes: object) -> ClientAsked:
    return ClientAsked(
        **{"connection": 1, "api_key": "test_key_1", "op": None, "channel": None, **changes}  # type: ignore[arg-type]
    )


async def test_a_clients_whole_visit_is_told(autojump_clock: MockClock) -> None:
    events: list[SandboxEvent] = []
    async with open_sandbox(on_event=events.append) as sandbox:
        sandbox.next_outcome(Outcome.FILLED)
        async with open_raw(sandbox) as raw:
            await raw.subscribe("balances")
            await raw.request("balances")
            await trio.sleep(1)
            order_id = (await raw.request("swap", swap_body()))["data"]["orderId"]
            taken = sandbox.order(order_id)
            for _ in range(2):
                await raw.receive_json()  # what the swap has locked, and what it has brought
            await trio.sleep(5)
            await raw.request("order_status", json.dumps({"id": order_id}))
    filled = sandbox.order(order_id)
    moves = [event.order for event in events if isinstance(event, OrderMoved)]
    assert [order.status for order in moves] == ["PROCESSING", "FILLED"]
    assert moves[-1] == filled
    assert [event for event in events if not isinstance(event, OrderMoved)] == [
        ClientCame(connection=1),
        asked(op="auth"),
        asked(op="subscribe", channel="balances"),
        asked(op="balances"),
        asked(op="swap", order=taken),
        asked(op="order_status", order=filled),
        ClientLeft(connection=1, api_key="test_key_1", code=1000),
    ]


async def test_refusals_are_told_with_their_reason() -> None:
    events: list[SandboxEvent] = []
    async with (
        open_sandbox(on_event=events.append) as sandbox,
        open_raw(sandbox, None) as raw,
    ):
        await raw.request("balances")
        await raw.send("{")
        await raw.receive_json()
    _, early, unreadable, *_ = events
    assert early == asked(api_key=None, op="balances", error="Not authenticated")
    assert isinstance(unreadable, ClientAsked)
    assert (unreadable.op, (unreadable.error or "")[:9]) == (None, "Malformed")


async def test_faults_that_come_between_are_told() -> None:
    events: list[SandboxEvent] = []
    async with open_sandbox(on_event=events.append) as sandbox:
        async with open_raw(sandbox) as raw:
            with sandbox.faults.ignore(op="balances", times=1):
                await raw.send(json.dumps({"op": "balances"}))
                await raw.request("estimate", swap_body())
        with sandbox.faults.refuse_connections(times=1):
            async with await dialled(sandbox) as stream:
                await stream.send_all(UPGRADE)
                assert await stream.receive_some()
    assert asked(op="balances", was_handled=False) in events
    assert events[-1] == ClientTurnedAway()


@pytest.mark.parametrize("fault", ["reset", "hang_up", "close", "kill"])
async def test_a_connection_that_a_fault_has_ended_was_dropped(fault: str) -> None:
    events: list[SandboxEvent] = []
    async with open_sandbox(on_event=events.append) as sandbox:
        async with open_raw(sandbox) as raw:
            getattr(sandbox.faults, fault)(*[1012][: fault == "close"])
            await closed(raw)
            await wait_all_tasks_blocked()
        left = ClientLeft(connection=1, api_key="test_key_1", code=None, was_dropped=True)
        assert events[-1] == left


async def test_who_vanishes_is_lost() -> None:
    events: list[SandboxEvent] = []
    left = trio.Event()

    def look(event: SandboxEvent) -> None:
        events.append(event)
        if isinstance(event, ClientLeft):
            left.set()

    async with open_sandbox(on_event=look) as sandbox:
        async with await upgraded(sandbox):
            pass
        await left.wait()
    assert events == [ClientCame(connection=1), ClientLeft(connection=1, api_key=None, code=None)]


async def test_the_sandboxs_own_goodbye_is_told_with_its_reason() -> None:
    events: list[SandboxEvent] = []
    async with (
        open_sandbox(on_event=events.append) as sandbox,
        open_raw(sandbox) as raw,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(closed, raw)
        await wait_all_tasks_blocked()
        await sandbox._server.close_connections()
    left = ClientLeft(connection=1, api_key="test_key_1", code=1001, reason="the sandbox closes")
    assert events[-1] == left


async def test_no_secret_is_in_any_event() -> None:
    events: list[SandboxEvent] = []
    async with (
        open_sandbox(on_event=events.append) as sandbox,
        open_raw(sandbox, None) as raw,
    ):
        message = auth(0.0, 1)
        await raw.send(message)
        await raw.receive_json()
        await raw.authenticate()
        await raw.request("swap", swap_body())
    shown = "".join(map(repr, events))
    assert "_00000001" in shown
    for secret in ("test_key", "test_secret", json.loads(message)["sig"]):
        assert secret not in shown
