"""The demo's screen after each event of the demo."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from trio_broker import OrderStatus
from trio_broker.cli.demo.scene import STEPS, Scene
from trio_broker.cli.demo.screen import ASCII, Symbols, draw

BEFORE = {"BTC": Decimal(10), "ETH": Decimal(1000), "USDT": Decimal(100_000)}
AFTER = {**BEFORE, "ETH": Decimal(998), "USDT": Decimal("106000.123456")}
BOUGHT = Decimal("6000.123456")


# The events of the demo with their times.
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
    """Return the scene at a time."""
    shown = Scene(sold="ETH", bought="USDT")
    for at, event, facts in STORY:
        if at <= until:
            shown = shown.after(event, "All done.", at, facts)
    return shown


def drawn(shown: Scene, at: float, width: int = 80, symbols: Symbols | None = None) -> str:
    """Draw a frame, and check the length of its lines."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(draw(shown, at=at, width=width, symbols=symbols or Symbols()))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


def test_all_steps_are_waiting_at_first() -> None:
    text = drawn(scene(-1), 0.0)
    assert "⠋ Start a sandbox broker" in text
    assert text.count("· ") == len(STEPS) - 1
    assert "not connected yet" in text
    assert "none yet" in text


def test_steps_are_completed_one_after_the_other() -> None:
    for until, done in ((0, 1), (1, 2), (2, 3), (3, 4), (4.5, 5), (6, 6), (8.5, 6), (9.1, 8)):
        text = drawn(scene(until), until)
        assert text.count("✓ ") == done, text
        (under_way,) = re.findall(r"^[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] (.*?)(?:  |$)", text, re.MULTILINE)
        assert under_way == STEPS[done][1]


def test_bar_shows_the_progress_of_the_order() -> None:
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


def test_outage_stays_on_the_timeline() -> None:
    text = drawn(scene(6), 6)
    assert set(connection(text)) == {"━"}
    assert "━  " in text
    assert text.count(" connected\n") == 1
    text = drawn(scene(7), 7.5)
    assert "lost: retrying in 1.0 s" in text
    assert re.fullmatch("━+x+", connection(text))
    assert "lost: retrying in 0.0 s" in drawn(scene(7), 9.0)
    text = drawn(scene(8.6), 8.6)
    assert re.fullmatch("━+x+━", connection(text))
    assert "connected again" in text
    text = drawn(scene(9.2), 9.2)
    assert re.fullmatch("━+x{8,9}━+", connection(text))
    assert " closed\n" in text


def test_long_timeline_shows_its_last_cells() -> None:
    line = connection(drawn(scene(8.6), 60.0))
    assert set(line) == {"━"}
    assert len(line) == 36


def test_final_loss_of_the_connection_shows_no_retry() -> None:
    shown = scene(6).after("lost", "", 7.0, {"retry_in": None})
    assert re.search(r"x +lost\n", drawn(shown, 7.0))


def test_balances_show_what_the_swap_changes() -> None:
    text = drawn(scene(2), 2)
    assert re.search(r"ETH +1000 +1000\n", text)
    assert "+ 1 more" in text
    text = drawn(scene(9.2), 9.2)
    assert re.search(r"ETH +1000 +998 +-2\n", text)
    assert re.search(r"USDT +100000 +106000\.123456 +\+6000\.123456\n", text)
    assert text.endswith("All done.")
    few = scene(-1).after("balances", "", 0.0, {"balances": {"ETH": Decimal(1)}})
    assert "more" not in drawn(few, 0.0)


def test_only_wide_screens_show_notes() -> None:
    wide, narrow = (drawn(scene(9.2), 9.2, width) for width in (80, 40))
    for note in (
        "6000 USDT",
        "accepted as ord_00000001",
        "it is FILLED",
        "1.6 s later, with balances",
    ):
        assert note in wide
    assert "1.6 s later" not in narrow


@pytest.mark.parametrize("width", [40, 80, 200])
def test_frame_fits_on_small_terminals(width: int) -> None:
    for until in (-1, 2, 5, 7, 9.2):
        lines = drawn(scene(until), until, width).count("\n") + 1
        assert lines <= 22  # 24 with the prompts before and after it


def test_current_step_fails_if_the_demo_ends_early() -> None:
    shown = scene(5)
    text = drawn(Scene(sold="ETH", bought="USDT", done=shown.done, is_over=True), 5)
    assert "✗ Follow the order until it is final" in text


def test_terminal_without_unicode_gets_ascii() -> None:
    for until in (-1, 5, 7, 9.2):
        assert drawn(scene(until), until, symbols=ASCII).isascii()
