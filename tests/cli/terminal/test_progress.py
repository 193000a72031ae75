"""The progress line, and notices about the connection."""

from __future__ import annotations

import datetime as dt
import io
import signal

import pytest
import rich.console

from tests.broker_thread import Broker
from tests.cli.harness import Terminal, status, swap_once
from trio_broker import (
    Closed,
    Connected,
    ConnectionEvent,
    Disconnected,
    SnapshotUnavailable,
    SwapCorrected,
    SwapOutcome,
    SwapReceipt,
)
from trio_broker.cli.terminal import progress
from trio_broker.cli.terminal.output import Output

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def test_terminal_shows_the_progress_line(slow_broker: Broker) -> None:
    order_id = swap_once(slow_broker)
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
def test_options_disable_the_progress_line(
    broker: Broker, options: list[str], is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    terminal = rich.console.Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "console", lambda *, stderr: terminal if stderr else None)
    order_id = swap_once(broker)
    assert status("order", order_id, "--follow", *options) == 0
    assert (f"order {order_id}" in screen.getvalue()) is is_shown
    assert bool(screen.getvalue()) is is_shown


def test_coloured_pipe_has_no_progress_line(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert status("order", swap_once(broker), "--follow") == 0
    assert capsys.readouterr().err == ""


def test_notes_ignore_a_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Output, __: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Output, "note", fail)
    with progress.make_progress_line(Output(), "order 1") as line:
        line.note("not printed")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            Disconnected(at=AT, error=OSError("gone"), retry_in=1.26),
            "No connection: gone. Retrying in 1.3 s.",
        ),
        (Disconnected(at=AT, error=OSError("gone"), retry_in=None), "No connection: gone."),
        (Connected(at=AT), "Connected again."),
        (
            SnapshotUnavailable(at=AT, channel="orders:1", error=OSError("no")),
            "The order's state is unknown: no. It will be requested again.",
        ),
        (
            SwapCorrected(
                at=AT,
                client_order_id="mine",
                before=SwapOutcome.REFUSED,
                outcome=SwapOutcome.CONFIRMED,
                receipt=SwapReceipt("ord_1", None, "mine"),
            ),
            "The broker had refused the swap; its outcome is confirmed now.",
        ),
        (Closed(at=AT), None),
    ],
)
def test_notice_describes_the_event(event: ConnectionEvent, text: str | None) -> None:
    assert progress.connection_notice(event) == text
