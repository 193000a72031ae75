"""``trio-broker demo``: its output in pipes and on terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import attrs
import pytest
import trio

from tests.cli import harness
from tests.cli.harness import COMMAND, PATIENCE, environment, status
from tests.pictures import make_pictures
from trio_broker import Balance, BrokerWSClient, Message, Subscription
from trio_broker.cli.demo.scene import STEPS
from trio_broker.sandbox import Outcome, Sandbox

# --- Lines and JSON -------------------------------------------------------------------------


def test_each_event_is_printed_as_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("demo") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    story = [
        "A sandbox broker listens at ws://127.0.0.1:",
        "Connected and authenticated.",
        "Balances:\n",
        "2 ETH would bring ",
        "ord_00000001",
        "is FILLED",
        "The connection is lost: ",
        "Retrying in 0.",
        "Connected again.",
        "Subscribed again to balances.",
        "may be missing. A snapshot of the account follows.",
        "Balances now:\n",
        "998   -2\n",
        "Closed the connection.",
        "All done: 2 ETH sold for ",
    ]
    places = [printed.index(text) for text in story]
    assert places == sorted(places)


# If the demo didn't set the outcome, the order would fail with seed 53 and be cancelled with 45.
@pytest.mark.parametrize("seed", [45, 53, -1, 2**70])
def test_every_seed_fills_the_order(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("demo", "--json", "--seed", str(seed)) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["seed"] == seed
    assert events[-1] == {
        "event": "end",
        "ok": True,
        "sold": "2",
        "bought": [event for event in events if event["event"] == "order"][-1]["filled_out"],
    }
    events_in_order = list(dict.fromkeys(event["event"] for event in events))
    assert events_in_order == [
        "sandbox", "connected", "balances", "estimate", "swap", "order",
        "lost", "restored", "gap", "closed", "end",
    ]  # fmt: skip
    (swap,) = (event for event in events if event["event"] == "swap")
    ids = {event["client_order_id"] for event in events if event["event"] == "order"}
    assert ids == {swap["client_order_id"]}
    before, after = (event["balances"] for event in events if event["event"] == "balances")
    gained = Decimal(after["USDT"]) - Decimal(before["USDT"])
    assert gained == Decimal(events[-1]["bought"]) > 0
    assert [event["status"] for event in events if event["event"] == "order"][-1] == "FILLED"


def test_quiet_prints_only_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("demo", "--quiet") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("All done: 2 ETH sold for ")


def test_stream_without_a_gap_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receive = Subscription.receive

    async def silent(self: Subscription[Any]) -> Message[Any]:
        return attrs.evolve(await receive(self), gap=None)

    monkeypatch.setattr(Subscription, "receive", silent)
    assert status("demo") == 1
    assert "the stream should have reported a gap" in capsys.readouterr().err


def test_failed_order_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    force = Sandbox.next_outcome
    monkeypatch.setattr(Sandbox, "next_outcome", lambda self, _: force(self, Outcome.FAILED))
    assert status("demo") == 1
    ended = capsys.readouterr()
    assert ended.err == "Error: the order should be FILLED, but is FAILED\n"
    assert "All done" not in ended.out


def test_unchanged_balances_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forever(_: BrokerWSClient) -> tuple[Balance, ...]:
        await trio.lowlevel.checkpoint()
        return (Balance("ETH", Decimal(5)), Balance("USDT", Decimal(5)))

    monkeypatch.setattr(BrokerWSClient, "get_balances", forever)
    assert status("demo") == 1
    assert "the balances don't match the order" in capsys.readouterr().err


# --- On a terminal --------------------------------------------------------------------------


@contextmanager
def terminal(*args: str, width: int = 80, **more: str) -> Iterator[tuple[Any, int]]:
    """Run the demo on its own terminal; yield the process and the other end of the terminal."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, "demo", *args], env=environment(**more), stdout=inside, stderr=inside
    ) as process:
        os.close(inside)
        try:
            yield process, outside
        finally:
            process.kill()
            os.close(outside)


def read(outside: int, until: bytes | None = None) -> str:
    """Read until a text is printed, or to the end."""
    printed = b""
    try:
        while until is None or until not in printed:
            chunk = os.read(outside, 65536)
            if not chunk:
                break
            printed += chunk
    except OSError:
        pass  # Linux raises it when the other end is closed
    return printed.decode()


def seen(printed: str, width: int = 80) -> str:
    """Return the final content of the terminal."""
    shown = make_pictures.Terminal(width)
    shown.feed(printed)
    return "\n".join("".join(one for one, _ in row).rstrip() for row in shown.shown())


def test_end_is_coloured_on_a_terminal() -> None:
    terminal, inside = pty.openpty()
    printed = b""
    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, "demo", "--fast"], env=environment(), stdout=inside
    ) as process:
        os.close(inside)
        try:
            while chunk := os.read(terminal, 65536):
                printed += chunk
        except OSError:
            pass  # Linux raises it when the other end is closed
        assert process.wait(PATIENCE) == 0
    os.close(terminal)
    assert b"\x1b[1;32mAll done" in printed


@pytest.mark.parametrize("width", [80, 40])
def test_last_frame_stays_on_the_terminal(width: int) -> None:
    with terminal("--fast", width=width) as (process, outside):
        printed = read(outside)
        assert process.wait(PATIENCE) == 0
    text = seen(printed, width)
    assert text.count("✓") == len(STEPS)
    assert text.count("connection ") == 1
    assert re.search("━x+━", text)
    assert "FILLED" in text
    assert "All done: 2 ETH sold for" in " ".join(text.split())
    assert "\x1b[?1049h" not in printed
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l")  # the cursor is back


def test_no_color_disables_colours() -> None:
    with terminal("--fast", NO_COLOR="1") as (process, outside):
        printed = read(outside)
        assert process.wait(PATIENCE) == 0
    codes = set(";".join(re.findall(r"\x1b\[([0-9;]*)m", printed)).split(";"))
    assert codes <= {"", "0", "1", "2"}  # bold and dim are no colours
    assert "✓" in seen(printed)


@pytest.mark.parametrize("until", ["Start", "━"], ids=["at once", "once it is connected"])
def test_ctrl_c_restores_the_terminal(until: str) -> None:
    with terminal() as (process, outside):
        printed = read(outside, until=until.encode())
        process.send_signal(signal.SIGINT)
        printed += read(outside)
        assert process.wait(PATIENCE) == 130
    text = seen(printed)
    assert "✗" in text
    assert "Traceback" not in text
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l")


@pytest.mark.parametrize(
    ("args", "environ"), [((), {"TERM": "dumb"}), (("-v",), {})], ids=["dumb", "with a log"]
)
def test_dumb_terminal_or_log_disables_the_screen(
    args: tuple[str, ...], environ: dict[str, Any]
) -> None:
    with terminal(*args, **environ) as (process, outside):
        printed = read(outside)
        assert process.wait(PATIENCE) == 0
    assert "Subscribed again to balances." in printed
    assert "\x1b[?25l" not in printed


def test_coloured_pipe_has_no_screen() -> None:
    ended = harness.run(*COMMAND, "demo", FORCE_COLOR="1")
    assert ended.returncode == 0
    assert "\x1b[1;32mAll done" in ended.stdout
    assert "\x1b[?25l" not in ended.stdout
