"""``trio-broker order``: an order shown, and followed to its end."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import partial

import pytest
import rich.console
import trio

from tests.clibroker import Broker, Terminal, closings, set_default, status
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    Closed,
    Connected,
    ConnectionEvent,
    ConnectionLostError,
    Disconnected,
    Order,
    OrderStatus,
    ReconnectPolicy,
    SnapshotUnavailable,
)
from trio_broker.cli import following, order as order_command
from trio_broker.cli.output import Output

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def swapped(broker: Broker, client_order_id: str = "mine") -> str:
    """The order of a swap that the broker has taken."""

    async def once() -> str:
        async with BrokerWSClient.from_env(broker.variables) as client:
            receipt = await client.do_swap("1", "ETH", "USDT", client_order_id=client_order_id)
            return receipt.order_id

    return trio.run(once)


def on_first_state(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Have something done once the first state is shown."""
    show = order_command.show
    shown: list[Order] = []

    def show_and_do(order: Order, output: Output) -> None:
        show(order, output)
        if not shown:
            what()
        shown.append(order)

    monkeypatch.setattr(order_command, "show", show_and_do)


@pytest.mark.parametrize("form", ["its own id", "client order id"])
def test_an_order_is_shown(
    slow_broker: Broker, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    order_id = swapped(slow_broker)
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


def test_an_order_that_is_not_there_is_told(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("order", "none") == 5
    assert capsys.readouterr().err == "Error: the broker refused order_status: Order not found\n"
    assert status("order", "") == 2
    assert status("order", "", "--follow") == 2


def test_states_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order("o\x1b1", "ODD\n", Decimal("2.50"), "0xab", AT, "mine")
    order_command.show(order, Output())
    assert capsys.readouterr().out == (
        "o\\x1b1  ODD\\n  filled 2.5  tx 0xab  at 2026-01-02 03:04:05 UTC\n"
    )
    order_command.show(Order(None, OrderStatus.PENDING), Output())
    assert capsys.readouterr().out == "PENDING\n"


@pytest.mark.parametrize(
    ("outcome", "expected", "last"),
    [("filled_in_parts", 0, "FILLED"), ("failed", 1, "FAILED"), ("cancelled", 1, "CANCELLED")],
)
def test_an_order_is_followed_to_its_end(
    broker: Broker, outcome: str, expected: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.do(lambda sandbox: sandbox.next_outcome(outcome))
    swapped(broker)
    assert status("order", "mine", "--follow", "--json") == expected
    states = [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]
    assert states[-1] == last


def test_an_order_is_followed_over_an_outage(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_default(monkeypatch, reconnect=ReconnectPolicy(initial_delay=0.01))
    order_id = swapped(slow_broker)
    faults = slow_broker.sandbox.faults

    def cut_and_end() -> None:
        # What the broker says of it from now on: it was filled meanwhile.
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
def test_a_connection_that_is_lost_for_good_is_told(
    slow_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped(slow_broker)
    on_first_state(monkeypatch, partial(slow_broker.soon, slow_broker.sandbox.faults.kill))
    assert status("order", "mine", "--follow") == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: the subscription to ")


def test_ctrl_c_says_goodbye(slow_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped(slow_broker)
    politely = closings(monkeypatch)
    on_first_state(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert status("order", "mine", "--follow") == 130
    assert politely == [True]


@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet"]], ids=str)
def test_an_order_that_nobody_knows_is_not_waited_for(
    broker: Broker, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("order", "nope", "--follow", *options) == 5
    printed = capsys.readouterr()
    assert printed.err == (
        "Error: the broker refused order_status: Order not found; check the id; an order of a "
        "moment ago may not be known yet: try again\n"
    )
    assert printed.out == ""


def test_an_outage_says_nothing_of_an_order(
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
    monkeypatch.setattr(order_command, "_PAUSE", 0)
    order_id = swapped(broker)
    assert status("order", order_id, "--follow") == 0
    assert asked == [order_id, order_id]
    assert f"{order_id}  FILLED" in capsys.readouterr().out


@pytest.mark.usefixtures("no_patience")
def test_the_end_of_the_connection_ends_the_looking_up(
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


def test_a_terminal_shows_what_is_waited_for(slow_broker: Broker) -> None:
    order_id = swapped(slow_broker)
    with Terminal("order", order_id, "--follow", columns=40) as terminal:
        shown = terminal.until(f"order {order_id} is PENDING")
        assert f"{order_id}  PENDING" in shown
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert terminal.shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


@pytest.mark.parametrize(
    ("options", "is_shown"),
    [([], True), (["--quiet"], False), (["--json"], False), (["--verbose"], False)],
    ids=str,
)
def test_a_terminal_shows_no_more_than_is_wanted(
    broker: Broker, options: list[str], is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    terminal = rich.console.Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(following, "console", lambda *, stderr: terminal if stderr else None)
    order_id = swapped(broker)
    assert status("order", order_id, "--follow", *options) == 0
    assert (f"order {order_id}" in screen.getvalue()) is is_shown
    assert bool(screen.getvalue()) is is_shown


def test_a_pipe_that_is_to_be_coloured_is_no_terminal(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert status("order", swapped(broker), "--follow") == 0
    assert capsys.readouterr().err == ""


def test_notes_do_not_mind_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Output, __: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Output, "note", fail)
    with following._line(Output(), "order 1") as line:
        line.note("unheard")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            Disconnected(at=AT, error=OSError("gone"), retry_in=1.26),
            "No connection: gone. The next try is in 1.3 s.",
        ),
        (Disconnected(at=AT, error=OSError("gone"), retry_in=None), "No connection: gone."),
        (Connected(at=AT), "Connected again."),
        (
            SnapshotUnavailable(at=AT, channel="orders:1", error=OSError("no")),
            "No word on the order: no. It will be asked about again.",
        ),
        (Closed(at=AT), None),
    ],
)
def test_what_happens_to_the_connection_is_told(event: ConnectionEvent, text: str | None) -> None:
    assert following.told(event) == text
