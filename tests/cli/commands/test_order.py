"""``trio-broker order``: showing and following an order."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from tests.broker_thread import Broker
from tests.cli.harness import record_closings, set_default, status, swap_once
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    ConnectionLostError,
    Order,
    ReconnectPolicy,
)
from trio_broker.cli.commands import order as order_command
from trio_broker.cli.terminal.output import Output
from trio_broker.cli.trading.orders import print_order


def on_first_state(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Call a function after the first state is printed."""
    shown: list[Order] = []

    def show_and_do(order: Order, output: Output) -> None:
        print_order(order, output)
        if not shown:
            what()
        shown.append(order)

    monkeypatch.setattr(order_command, "print_order", show_and_do)


@pytest.mark.parametrize("form", ["its own id", "client order id"])
def test_order_is_shown(slow_broker: Broker, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    order_id = swap_once(slow_broker)
    name = order_id if form == "its own id" else "mine"
    assert status("order", name) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{order_id}  PENDING  at 20")
    assert printed.err == ""
    assert status("order", name, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == [
        "order_id", "status", "filled_out", "tx_hash", "updated_at", "client_order_id",
    ]  # fmt: skip
    assert (shown["order_id"], shown["client_order_id"]) == (order_id, "mine")


def test_unknown_order_exits_with_5(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("order", "none") == 5
    assert capsys.readouterr().err == "Error: the broker refused order_status: Order not found\n"
    assert status("order", "") == 2
    assert status("order", "", "--follow") == 2


@pytest.mark.parametrize(
    ("outcome", "expected", "last"),
    [("filled_in_parts", 0, "FILLED"), ("failed", 1, "FAILED"), ("cancelled", 1, "CANCELLED")],
)
def test_order_is_followed_until_it_is_final(
    broker: Broker, outcome: str, expected: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.do(lambda sandbox: sandbox.next_outcome(outcome))
    swap_once(broker)
    assert status("order", "mine", "--follow", "--json") == expected
    states = [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]
    assert states[-1] == last


def test_order_is_followed_through_an_outage(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_default(monkeypatch, reconnect=ReconnectPolicy(initial_delay=0.01))
    order_id = swap_once(slow_broker)
    faults = slow_broker.sandbox.faults

    def cut_and_end() -> None:
        # From now on, the broker replies that the order was filled.
        data = {"orderId": order_id, "status": "FILLED", "filledOut": "2500"}
        reply = {"op": "order_status", "data": data}
        slow_broker.soon(lambda: faults.replace(reply, op="order_status"))
        slow_broker.soon(faults.reset)

    on_first_state(monkeypatch, cut_and_end)
    assert status("order", order_id, "--follow") == 0
    printed = capsys.readouterr()
    assert [line.split("  ")[1] for line in printed.out.splitlines()] == ["PENDING", "FILLED"]
    assert "No connection: " in printed.err
    assert printed.err.endswith("Connected again.\n")


@pytest.mark.usefixtures("no_patience")
def test_final_loss_of_the_connection_exits_with_4(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swap_once(slow_broker)
    on_first_state(monkeypatch, partial(slow_broker.soon, slow_broker.sandbox.faults.kill))
    assert status("order", "mine", "--follow") == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: the subscription to ")


def test_ctrl_c_closes_the_connection_cleanly(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_once(slow_broker)
    had_time = record_closings(monkeypatch)
    on_first_state(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert status("order", "mine", "--follow") == 130
    assert had_time == [True]


@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet"]], ids=str)
def test_unknown_order_is_not_followed(
    broker: Broker, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("order", "nope", "--follow", *options) == 5
    printed = capsys.readouterr()
    assert printed.err == (
        "Error: the broker refused order_status: Order not found; check the id; the broker may "
        "not know a new order yet: try again\n"
    )
    assert printed.out == ""


def test_lookup_is_repeated_after_an_outage(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = BrokerWSClient.get_order_status
    asked: list[str] = []

    async def in_vain(self: BrokerWSClient, order_id: str) -> Order:
        asked.append(order_id)
        if len(asked) == 1:
            raise ConnectionLostError("gone")
        return await ask(self, order_id)

    monkeypatch.setattr(BrokerWSClient, "get_order_status", in_vain)
    monkeypatch.setattr(order_command, "_RETRY_DELAY", 0)
    order_id = swap_once(broker)
    assert status("order", order_id, "--follow") == 0
    assert asked == [order_id, order_id]
    assert f"{order_id}  FILLED" in capsys.readouterr().out


@pytest.mark.usefixtures("no_patience")
def test_lookup_ends_when_the_client_fails(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = BrokerWSClient.get_order_status

    async def cut_and_ask(self: BrokerWSClient, order_id: str) -> Order:
        broker.soon(broker.sandbox.faults.kill)
        with suppress(BrokerError):
            await self.wait_closed()
        return await ask(self, order_id)

    monkeypatch.setattr(BrokerWSClient, "get_order_status", cut_and_ask)
    assert status("order", "mine", "--follow") == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: ")
