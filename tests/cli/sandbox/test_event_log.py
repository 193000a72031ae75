"""The log of the sandbox, as lines and as JSON."""

from __future__ import annotations

import datetime as dt
import io
import json
import sys
from decimal import Decimal
from typing import Any

import attrs
import pytest

from trio_broker import OrderStatus
from trio_broker.cli.sandbox.event_log import EventLog, colour_of, describe
from trio_broker.cli.terminal.output import Output
from trio_broker.sandbox import (
    ClientAsked,
    ClientCame,
    ClientLeft,
    ClientTurnedAway,
    Order,
    OrderMoved,
    RestAsked,
    SandboxEvent,
    Terms,
)

ORDER = Order(
    order_id="ord_00000001",
    api_key="test_key_1",
    terms=Terms(Decimal("2.50"), "ETH", "USDT"),
    client_order_id="mine",
    rate=Decimal(3000),
    updated_at=0,
    steps=(),
)


PART = attrs.evolve(
    ORDER, status=OrderStatus.PARTIAL, filled_in=Decimal(1), filled_out=Decimal("3000.5")
)


FILLED = attrs.evolve(PART, status=OrderStatus.FILLED, filled_in=Decimal("2.50"))
FAILED = attrs.evolve(ORDER, status=OrderStatus.FAILED, reason="the market failed it")


def asked(op: str | None, channel: str | None = None, **more: Any) -> ClientAsked:
    return ClientAsked(connection=3, api_key="test_key_1", op=op, channel=channel, **more)


def left(code: int | None = None, **more: Any) -> ClientLeft:
    return ClientLeft(connection=3, api_key=None, code=code, **more)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (ClientCame(connection=3), "#3 connected"),
        (ClientTurnedAway(), "   a connection was refused by a fault"),
        (asked("auth"), "#3 authenticated as test_key_1"),
        (asked("subscribe", "balances"), "#3 subscribed to balances"),
        (asked("unsubscribe", "orders:\x1b[2J"), "#3 unsubscribed from orders:\\x1b[2J"),
        (asked("balances"), "#3 requested the balances"),
        (asked("estimate"), "#3 requested an estimate"),
        (
            asked("swap", order=ORDER),
            "#3 swapped 2.5 ETH for USDT: ord_00000001 is PENDING",
        ),
        (asked("order_status", order=FAILED), "#3 requested an order: ord_00000001 is FAILED"),
        (asked("b\x07m", error="Unknown operation: b\x07m"),
         "#3 refused b\\x07m: Unknown operation: b\\x07m"),
        (asked(None, error="Malformed message: x"),
         "#3 refused an unreadable message: Malformed message: x"),
        (asked("swap", was_handled=False), "#3 swap: dropped by a fault"),
        (RestAsked(method="GET", path="/a\x07", status=404), "   REST: GET /a\\x07: 404"),
        (RestAsked(method="GET", path="/a", status=None), "   REST: GET /a: dropped by a fault"),
        (OrderMoved(order=PART),
         "   ord_00000001 is PARTIAL: 1 of 2.5 ETH sold for 3000.5 USDT"),
        (OrderMoved(order=FILLED), "   ord_00000001 is FILLED: 2.5 ETH sold for 3000.5 USDT"),
        (OrderMoved(order=FAILED), "   ord_00000001 is FAILED (the market failed it)"),
        (left(1000), "#3 closed with code 1000"),
        (left(4000, reason="bye\n"), "#3 closed with code 4000: bye\\n"),
        (left(), "#3 lost without a close frame"),
        (left(was_dropped=True), "#3 dropped by the sandbox"),
    ],
)  # fmt: skip
def test_each_event_is_described_in_a_line(event: SandboxEvent, line: str) -> None:
    assert describe(event) == line


@pytest.mark.parametrize(
    ("event", "colour"),
    [
        (asked("swap", order=ORDER), None),
        (asked("swap", error="no"), "red"),
        (asked("swap", was_handled=False), "red"),
        (left(), "red"),
        (RestAsked(method="GET", path="/", status=None), "red"),
        (RestAsked(method="GET", path="/", status=400), "red"),
        (RestAsked(method="GET", path="/", status=200), None),
        (left(1000), "magenta"),
        (ClientCame(connection=1), "green"),
    ],
)
def test_colour_of_a_line_depends_on_the_event(event: SandboxEvent, colour: str | None) -> None:
    assert colour_of(event) == colour


AT = dt.datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        (ClientCame(connection=3), {"event": "connected", "connection": 3}),
        (ClientTurnedAway(), {"event": "turned_away"}),
        (
            RestAsked(method="GET", path="/", status=200),
            {"event": "rest", "method": "GET", "path": "/", "status": 200},
        ),
        (
            asked("swap", order=ORDER),
            {
                "event": "asked",
                "connection": 3,
                "account": "test_key_1",
                "op": "swap",
                "channel": None,
                "order_id": "ord_00000001",
                "error": None,
                "handled": True,
            },
        ),
        (
            OrderMoved(order=PART),
            {
                "event": "order",
                "account": "test_key_1",
                "order_id": "ord_00000001",
                "status": "PARTIAL",
                "asset_in": "ETH",
                "sold": "1",
                "asset_out": "USDT",
                "bought": "3000.5",
                "reason": None,
            },
        ),
        (
            left(1001, reason="idle"),
            {
                "event": "left",
                "connection": 3,
                "account": None,
                "code": 1001,
                "reason": "idle",
                "dropped": False,
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_event_is_a_json_object(
    event: SandboxEvent, facts: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(Output(as_json=True), clock=lambda: AT)
    log.event(event)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err) == {"at": "2026-01-02T03:04:05.678+00:00", **facts}


def test_lines_have_a_time_and_no_colour_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = EventLog(Output(), clock=lambda: AT)
    log.event(asked("swap", "[red]" + "x" * 200, error="no"))
    log.fault("reset-every", "reset", 2)
    log.fault("kill-every", "killed", None)
    assert capsys.readouterr().err.splitlines() == [
        f"03:04:05.678 #3 refused swap [red]{'x' * 200}: no",
        "03:04:05.678    reset-every: reset (2)",
        "03:04:05.678    kill-every: killed",
    ]


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({"FORCE_COLOR": "1"}, "\x1b[31m03:04:05"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "03:04:05"),
    ],
    ids=["colour", "NO_COLOR"],
)
def test_no_color_disables_colours(
    variables: dict[str, str],
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    EventLog(Output(), clock=lambda: AT).event(left())
    assert capsys.readouterr().err.startswith(start)


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    EventLog(Output(quiet=True)).event(ClientCame(connection=1))
    assert capsys.readouterr() == ("", "")


def test_closed_pipe_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    class ClosedPipe(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", ClosedPipe())
    for output in (Output(), Output(as_json=True)):
        EventLog(output).event(ClientCame(connection=1))
