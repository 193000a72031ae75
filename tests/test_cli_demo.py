"""The demo's screen: what it shows at each point of the story, and that it stays standing."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.pictures import make_pictures
from trio_broker import OrderStatus
from trio_broker.cli import demo, main
from trio_broker.cli.demo_screen import ASCII, STEPS, Scene, Signs, picture
from trio_broker.sandbox import Outcome, Sandbox

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "trio_broker.cli", "demo")
PATIENCE = 30.0
# What would tell it of another terminal than its own.
COLOURS = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"}

BEFORE = {"BTC": Decimal(10), "ETH": Decimal(1000), "USDT": Decimal(100_000)}
AFTER = {**BEFORE, "ETH": Decimal(998), "USDT": Decimal("106000.123456")}
BOUGHT = Decimal("6000.123456")

# The story as the demo tells it, each event with its time.
STORY: tuple[tuple[float, str, Mapping[str, Any]], ...] = (
    (0.0, "sandbox", {"url": "ws://x", "seed": 0}),
    (1.0, "connected", {}),
    (2.0, "balances", {"balances": BEFORE}),
    (3.0, "estimate", {"expected_out": Decimal(6000)}),
    (4.0, "swap", {"order_id": "ord_00000001", "status": OrderStatus.PENDING}),
    (4.5, "order", {"status": OrderStatus.PROCESSING, "filled_out": None}),
    (5.0, "order", {"status": OrderStatus.PARTIAL, "filled_out": Decimal(3000)}),
    (6.0, "order", {"status": OrderStatus.FILLED, "filled_out": BOUGHT}),
    (7.0, "lost", {"retry_in": 1.5}),
    (8.5, "connected", {}),
    (8.6, "restored", {"channels": ("balances",)}),
    (8.7, "gap", {"since": None, "origin": "snapshot"}),
    (9.0, "balances", {"balances": AFTER}),
    (9.1, "closed", {"state": "closed"}),
    (9.2, "end", {}),
)


def scene(until: float) -> Scene:
    """The scene at a time of the story."""
    shown = Scene(sold="ETH", bought="USDT")
    for at, event, facts in STORY:
        if at <= until:
            shown = shown.after(event, "It all happened.", at, facts)
    return shown


def drawn(shown: Scene, at: float, width: int = 80, signs: Signs | None = None) -> str:
    """A picture's lines, and none of them too long."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(picture(shown, at=at, width=width, signs=signs or Signs()))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


# --- Pictures --------------------------------------------------------------------------------


def test_at_first_all_is_to_come() -> None:
    text = drawn(scene(-1), 0.0)
    assert "⠋ Start a broker of play money" in text
    assert text.count("· ") == len(STEPS) - 1
    assert "not connected yet" in text
    assert "none yet" in text


def test_steps_are_ticked_off_one_after_the_other() -> None:
    for until, done in ((0, 1), (1, 2), (2, 3), (3, 4), (4.5, 5), (6, 6), (8.5, 6), (9.1, 8)):
        text = drawn(scene(until), until)
        assert text.count("✓ ") == done, text
        (under_way,) = re.findall(r"^[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] (.*?)(?:  |$)", text, re.MULTILINE)
        assert under_way == STEPS[done][1]


def test_the_order_grows() -> None:
    assert "━" not in drawn(scene(4.5), 4.5).split("ord_00000001")[2]
    text = drawn(scene(5), 5)
    assert re.search("─ +PARTIAL 3000 USDT\n", text)
    bar = next(line for line in text.splitlines() if line.startswith("ord_00000001"))
    assert bar.count("━") == bar.count("─") > 10
    text = drawn(scene(6), 6)
    bar = next(line for line in text.splitlines() if line.startswith("ord_00000001"))
    assert bar.count("━") > 20
    assert "─" not in bar
    assert "FILLED 6000.123456 USDT" in text


def connection(text: str) -> str:
    found = re.search(r"^connection +([━x]*)", text, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_outage_shows_while_it_lasts_and_stays_in_the_line() -> None:
    text = drawn(scene(6), 6)
    assert set(connection(text)) == {"━"}
    assert "━  " in text
    assert text.count(" connected\n") == 1
    text = drawn(scene(7), 7.5)
    assert "lost: next try in 1.0 s" in text
    assert re.fullmatch("━+x+", connection(text))
    assert "lost: next try in 0.0 s" in drawn(scene(7), 9.0)
    text = drawn(scene(8.6), 8.6)
    assert re.fullmatch("━+x+━", connection(text))
    assert "connected again" in text
    text = drawn(scene(9.2), 9.2)
    assert re.fullmatch("━+x{8,9}━+", connection(text))
    assert "closed, with a goodbye" in text


def test_a_long_line_shows_its_end() -> None:
    line = connection(drawn(scene(8.6), 60.0))
    assert set(line) == {"━"}
    assert len(line) == 36


def test_a_connection_that_is_not_tried_again_says_no_time() -> None:
    shown = scene(6).after("lost", "", 7.0, {"retry_in": None})
    assert re.search(r"x +lost\n", drawn(shown, 7.0))


def test_balances_show_what_the_swap_changes() -> None:
    text = drawn(scene(2), 2)
    assert re.search(r"ETH +1000 +1000\n", text)
    assert "+ 1 more" in text
    text = drawn(scene(9.2), 9.2)
    assert re.search(r"ETH +1000 +998 +-2\n", text)
    assert re.search(r"USDT +100000 +106000\.123456 +\+6000\.123456\n", text)
    assert text.endswith("It all happened.")
    few = scene(-1).after("balances", "", 0.0, {"balances": {"ETH": Decimal(1)}})
    assert "more" not in drawn(few, 0.0)


def test_steps_say_what_they_brought_where_there_is_room() -> None:
    wide, narrow = (drawn(scene(9.2), 9.2, width) for width in (80, 40))
    for note in ("6000 USDT", "as ord_00000001", "it is FILLED", "1.6 s later, with balances"):
        assert note in wide
    assert "1.6 s later" not in narrow


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_on_small_terminals(width: int) -> None:
    for until in (-1, 2, 5, 7, 9.2):
        lines = drawn(scene(until), until, width).count("\n") + 1
        assert lines <= 22  # with the prompts before and after it, 24


def test_where_it_breaks_off_the_step_has_failed() -> None:
    shown = scene(5)
    text = drawn(Scene(sold="ETH", bought="USDT", done=shown.done, is_over=True), 5)
    assert "✗ Follow the order to its end" in text


def test_a_terminal_without_these_signs_gets_others() -> None:
    for until in (-1, 5, 7, 9.2):
        assert drawn(scene(until), until, signs=ASCII).isascii()


# --- The command -----------------------------------------------------------------------------


@contextmanager
def terminal(
    *args: str, width: int = 80, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[Any, int]]:
    """The demo on a terminal of its own: the process, and the terminal's other end."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in COLOURS}
    plain |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **(environ or {})}
    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, *args], env=plain, stdout=inside, stderr=inside
    ) as process:
        os.close(inside)
        try:
            yield process, outside
        finally:
            process.kill()
            os.close(outside)


def read(outside: int, until: bytes | None = None) -> str:
    """What is printed, up to a text or to the end."""
    printed = b""
    try:
        while until is None or until not in printed:
            chunk = os.read(outside, 65536)
            if not chunk:
                break
            printed += chunk
    except OSError:
        pass  # how Linux says that the other end is closed
    return printed.decode()


def seen(printed: str, width: int = 80) -> str:
    """What stands on the terminal in the end."""
    shown = make_pictures.Terminal(width)
    shown.feed(printed)
    return "\n".join("".join(one for one, _ in row).rstrip() for row in shown.shown())


@pytest.mark.parametrize("width", [80, 40])
def test_the_last_picture_is_left_standing(width: int) -> None:
    with terminal("--fast", width=width) as (process, outside):
        printed = read(outside)
        assert process.wait(PATIENCE) == 0
    text = seen(printed, width)
    assert text.count("✓") == len(STEPS)
    assert text.count("connection ") == 1
    assert re.search("━x+━", text)
    assert "FILLED" in text
    assert "It all happened: 2 ETH sold for" in " ".join(text.split())
    assert "\x1b[?1049h" not in printed
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l")  # the cursor is back


def test_no_colour_means_none() -> None:
    with terminal("--fast", environ={"NO_COLOR": "1"}) as (process, outside):
        printed = read(outside)
        assert process.wait(PATIENCE) == 0
    codes = set(";".join(re.findall(r"\x1b\[([0-9;]*)m", printed)).split(";"))
    assert codes <= {"", "0", "1", "2"}  # bold and dim are no colours
    assert "✓" in seen(printed)


@pytest.mark.parametrize("until", ["Start", "━"], ids=["at once", "once it is connected"])
def test_ctrl_c_leaves_a_usable_terminal(until: str) -> None:
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
def test_where_there_is_no_screen_of_its_own_it_prints_lines(
    args: tuple[str, ...], environ: dict[str, str]
) -> None:
    with terminal(*args, environ=environ) as (process, outside):
        printed = read(outside)
        assert process.wait(PATIENCE) == 0
    assert "Subscribed again to balances." in printed
    assert "\x1b[?25l" not in printed


def test_a_coloured_pipe_is_no_screen() -> None:
    ended = subprocess.run(  # noqa: S603 - our own command
        COMMAND,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "TERM": "xterm"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert "\x1b[1;32mIt all happened" in ended.stdout
    assert "\x1b[?25l" not in ended.stdout


def test_quiet_says_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--quiet"])
    assert ended.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("It all happened: 2 ETH sold for ")


def test_on_a_screen_too_a_failure_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    force = Sandbox.next_outcome
    monkeypatch.setattr(Sandbox, "next_outcome", lambda self, _: force(self, Outcome.FAILED))
    monkeypatch.setattr(demo, "_has_eyes", lambda _: True)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--fast"])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.err == "Error: the order should be FILLED, and is FAILED\n"
    assert "✗ Check the balances by the order" in printed.out


def test_on_a_screen_too_it_does_not_hang(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_has_eyes", lambda _: True)
    monkeypatch.setattr(demo, "_TIME_LIMIT", 0.0)
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Error: the demo wasn't over after 0 s\n"


def test_it_can_be_followed_and_is_over_in_nine_seconds() -> None:
    pace = demo._FOR_EYES
    pauses = 6 * pace.pause
    longest = pauses + max(pace.pending) + max(pace.processing) + pace.outage
    assert 5 < longest - pace.outage / 2 < longest < 8
