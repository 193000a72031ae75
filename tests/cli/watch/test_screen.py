"""The watch's screen: the board, and the frame that draws it."""

from __future__ import annotations

import datetime as dt
import io
import re
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from trio_broker import (
    Balance,
    ChannelRefused,
    Closed,
    Connected,
    ConnectionEvent,
    ConnectionState,
    Disconnected,
    Gap,
    GaveUp,
    Message,
    Order,
    OrderStatus,
    Restored,
    ServerError,
    SnapshotUnavailable,
    UnexpectedMessage,
)
from trio_broker._protocol.unreadable import UnreadableBalance
from trio_broker.cli.watch.board import HIGHLIGHT_TIME, RATE_SECONDS, Board
from trio_broker.cli.watch.events import (
    ChannelFailed,
    Subscribed,
    describe_duration,
    describe_event,
)
from trio_broker.cli.watch.screen import Frame
from trio_broker.models import Origin

START = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
LOST = ConnectionError("the peer hung up")


def at(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def make_board(*channels: str, **options: Any) -> Board:
    options = {"label": "SANDBOX", "host": "127.0.0.1:8765", **options}
    return Board(channels=channels or ("balances",), **options)


def balances(
    seconds: float, origin: Origin = "push", gap: Gap | None = None, /, **totals: str
) -> Message[tuple[Balance, ...]]:
    """A message of balances; a total may be followed by a slash and the locked part."""
    data = []
    for asset, text in totals.items():
        total, _, locked = text.partition("/")
        data.append(Balance(asset, Decimal(total), Decimal(locked) if locked else None))
    return message("balances", tuple(data), seconds, origin=origin, gap=gap)


def order(seconds: float, status: OrderStatus | str, **more: Any) -> Message[Order]:
    return message("orders:ord_1", Order("ord_1", status, **more), seconds)


def message(
    channel: str, data: Any, seconds: float, *, origin: Origin = "push", gap: Gap | None = None
) -> Message[Any]:
    return Message(channel, data, origin, gap, at(seconds), "")


def drawn(
    shown: Board, seconds: float, width: int = 80, height: int | None = None, hint: str = ""
) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Frame(shown, at(seconds), height, hint))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert height is None or text.count("\n") <= height
    return text


def row(frame: str, name: str) -> list[str]:
    """The cells of the table's row that begins with a name."""
    (found,) = re.findall(rf"^{re.escape(name)}\b.*$", frame, re.MULTILINE)
    return str(found).split()


def test_unreadable_balance_is_drawn_as_unreadable() -> None:
    shown = make_board()
    unreadable = UnreadableBalance("BTC", {"locked": Decimal(1)})
    shown.add_messages([balances(1, "snapshot", BTC="10", ETH="5")])
    shown.add_messages([message("balances", (unreadable,), 2)])
    frame = drawn(shown, 2)
    assert row(frame, "BTC") == ["BTC", "unreadable", "1", "unreadable"]
    assert row(frame, "ETH") == ["ETH", "5", "5"]
    # It is not counted among the empty ones, which come last.
    later = drawn(shown, 1000)
    assert later.index("BTC") < later.index("ETH")
    shown.add_messages([balances(1001, BTC="11/1")])
    assert row(drawn(shown, 1001), "BTC") == ["BTC", "11", "1", "10"]


def busy() -> Board:
    """A board with content in every section."""
    shown = make_board("balances", "orders:ord_1", "orders:ord_2", "news", "secret")
    shown.add_event(Connected(at=at(0)))
    for channel in ("balances", "orders:ord_1"):
        shown.add_event(Subscribed(at=at(0), channel=channel))
    refusal = ServerError("subscribe", "Invalid channel format")
    shown.add_event(ChannelRefused(at=at(0), channel="secret", error=refusal))
    shown.add_messages([balances(1, "snapshot", BTC="10", ETH="1000", USDT="100000", ADA="0")])
    shown.add_messages([order(2, OrderStatus.PENDING)])
    shown.add_messages([balances(2, ETH="1000/2")])
    shown.add_messages([order(3, OrderStatus.PARTIAL, filled_out=Decimal("3110.50"))])
    shown.add_messages([balances(3, ETH="999/1", USDT="103110.50")])
    shown.add_messages([message("news", {"headline": "up"}, 3)])
    for second in range(4):
        shown.update(ConnectionState.CONNECTED, 0.0012, (second + 1) ** 2, at(second))
    return shown


# --- Balances -------------------------------------------------------------------------------


def test_first_balances_do_not_count_as_a_change() -> None:
    shown = make_board()
    assert "no message yet" in drawn(shown, 0)
    # A push may be received before the requested snapshot.
    shown.add_messages([balances(0, ETH="5")])
    shown.add_messages([balances(0, "snapshot", ETH="5", USDT="7")])
    frame = drawn(shown, 0)
    assert row(frame, "ETH") == ["ETH", "5", "5"]
    assert row(frame, "USDT") == ["USDT", "7", "7"]


def test_change_is_highlighted_for_some_seconds() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", ETH="5", USDT="7")])
    shown.add_messages([balances(10, ETH="3", USDT="7.50")])
    assert row(drawn(shown, 10), "ETH") == ["ETH", "3", "3", "-2"]
    last = 10 + HIGHLIGHT_TIME.total_seconds()
    assert row(drawn(shown, last - 0.1), "USDT") == ["USDT", "7.5", "7.5", "+0.5"]
    assert row(drawn(shown, last), "ETH") == ["ETH", "3", "3"]


def test_changes_in_quick_succession_are_shown_as_one() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", ETH="5")])
    shown.add_messages([balances(10, ETH="4"), balances(14, ETH="2.5")])
    assert row(drawn(shown, 18), "ETH")[-1] == "-2.5"
    shown.add_messages([balances(20, ETH="2")])
    assert row(drawn(shown, 20), "ETH")[-1] == "-0.5"


def test_repeated_balance_does_not_count_as_a_change() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", ETH="5")])
    shown.add_messages([balances(1, ETH="5")])
    assert row(drawn(shown, 1), "ETH") == ["ETH", "5", "5"]


def test_changed_locked_part_is_shown() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", ETH="5")])
    shown.add_messages([balances(1, ETH="5/2")])
    assert row(drawn(shown, 1), "ETH") == ["ETH", "5", "2", "3", "locked", "+2"]
    shown.add_messages([balances(10, ETH="5/0")])
    assert row(drawn(shown, 10), "ETH") == ["ETH", "5", "5", "locked", "-2"]


def test_changes_are_computed_exactly() -> None:
    shown = make_board()
    large = "123456789012345678901234567890"
    shown.add_messages([balances(0, "snapshot", PEPE=f"{large}.000000000000000001")])
    shown.add_messages([balances(1, PEPE=large)])
    assert "-0.000000000000000001" in drawn(shown, 1, width=160)


def test_snapshot_replaces_all_balances() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", ETH="5", USDT="7")])
    shown.add_messages([balances(20, "snapshot", USDT="7", BTC="1")])
    frame = drawn(shown, 20)
    assert "ETH" not in frame
    # After a snapshot, a new asset counts as a change.
    assert row(frame, "BTC")[-1] == "+1"


def test_decimal_points_are_aligned() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", A="1", B="12.5/0.25", C="100.125/2")])
    rows = drawn(shown, 0).splitlines()[-3:]
    assert [line.rstrip() for line in rows] == [
        "A         1                    1",
        "B        12.5       0.25      12.25",
        "C       100.125     2         98.125",
    ]


def test_zero_balances_come_last() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", ADA="0", BTC="1", ETH="2")])
    frame = drawn(shown, 0)
    assert frame.index("BTC") < frame.index("ETH") < frame.index("ADA")


# --- Orders and other channels --------------------------------------------------------------


def test_each_state_of_an_order_is_shown() -> None:
    shown = make_board("orders:ord_1")
    assert "no message yet" in drawn(shown, 0)
    bars = []
    for seconds, status in enumerate(
        ("NEW", OrderStatus.PENDING, OrderStatus.PROCESSING, OrderStatus.PARTIAL)
    ):
        shown.add_messages([order(seconds, status)])
        name, bar, *rest = row(drawn(shown, seconds), "ord_1")
        bars.append(bar.count("━"))
        assert (name, rest) == ("ord_1", [str(status), "now"])
    final = order(9, OrderStatus.FILLED, filled_out=Decimal("12.50"), tx_hash="0xfeed")
    shown.add_messages([final, final])
    _, bar, *rest = row(drawn(shown, 3600), "ord_1")
    bars.append(bar.count("━"))
    assert bars == sorted(set(bars))
    assert rest == ["FILLED", "12.5", "59", "min", "51", "s", "ago"]
    assert [entry.text for entry in shown.log][-1] == (
        "order ord_1 is FILLED, filled 12.50, tx 0xfeed".replace("12.50", "12.5")
    )


def test_repeated_status_is_not_logged() -> None:
    shown = make_board("orders:ord_1")
    shown.add_messages([order(0, OrderStatus.PARTIAL, filled_out=Decimal(1))])
    shown.add_messages([order(1, OrderStatus.PARTIAL, filled_out=Decimal(2))])
    assert len(shown.log) == 1
    assert "2" in row(drawn(shown, 1), "ord_1")


@pytest.mark.parametrize("status", [OrderStatus.FAILED, OrderStatus.CANCELLED])
def test_failed_order_is_red(status: OrderStatus) -> None:
    shown = make_board("orders:ord_1")
    shown.add_messages([order(0, status)])
    console = Console(
        width=80, file=io.StringIO(), force_terminal=True, color_system="standard", record=True
    )
    console.print(Frame(shown, at(0)))
    assert f"\x1b[1;31m{status}" in console.export_text(styles=True)


def test_messages_of_other_channels_are_shown_unchanged() -> None:
    shown = make_board("news")
    assert "no message yet" in drawn(shown, 0)
    shown.add_messages([message("news", {"text": "[red]up\x1b[2J"}, 0)])
    assert '{"text": "[red]up\\u001b[2J"}' in drawn(shown, 0)
    shown.add_messages([message("news", ["x" * 1000], 1)])
    frame = drawn(shown, 2)
    assert "2 messages, 1 s ago" in frame
    assert 240 < frame.count("x") < 320  # truncated


def test_refused_channel_keeps_its_last_state() -> None:
    shown = make_board("orders:ord_1", "balances", "news")
    shown.add_messages([order(0, OrderStatus.PARTIAL), message("news", 1, 0)])
    for channel in shown.channels:
        error = ServerError("subscribe", "no\nmore")
        shown.add_event(ChannelRefused(at=at(1), channel=channel, error=error))
    frame = drawn(shown, 1)
    assert "orders:ord_1 is refused: the broker refused subscribe: no more" in frame
    assert "PARTIAL" in row(frame, "ord_1")
    assert "BALANCES" not in frame


# --- The connection -------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["LIVE", "SANDBOX"])
@pytest.mark.parametrize("width", [40, 80])
def test_frame_begins_with_the_label(label: str, width: int) -> None:
    frame = drawn(make_board(label=label), 0, width)
    assert frame.startswith(f" {label}  127.0.0.1:8765 ")


def test_connected_time_latency_and_last_message_are_shown() -> None:
    shown = make_board()
    assert "no message yet" in drawn(shown, 0)
    shown.add_event(Connected(at=at(0)))
    shown.update(ConnectionState.CONNECTED, 0.0012, 3, at(2))
    head = drawn(shown, 65).splitlines()[:2]
    assert head[0].endswith("● connected")
    assert head[1] == "up 1 min 5 s · latency 1.2 ms · last message 1 min 3 s ago"
    shown.update(ConnectionState.CONNECTED, 0.25, 4, at(65))
    assert "latency 250 ms · last message now" in drawn(shown, 65)


def test_outage_is_shown_during_and_afterwards() -> None:
    shown = make_board()
    shown.add_event(Connected(at=at(0)))
    shown.add_event(Disconnected(at=at(10), error=LOST, retry_in=1.5))
    shown.update(ConnectionState.WAITING, None, 0, at(10))
    frame = drawn(shown, 10)
    assert "● no connection, retrying in 1 s" in frame
    assert "down for 0 s · 1 outage" in frame
    for tried in (12, 15, 21):
        shown.add_event(Disconnected(at=at(tried), error=ConnectionError(), retry_in=8.0))
    frame = drawn(shown, 22)
    assert "retrying in 7 s" in frame
    assert "\nConnectionError\n" in frame
    assert "down for 12 s" in frame
    assert "no connection: ConnectionError (x3)" in frame  # in one line
    shown.add_event(Connected(at=at(30)))
    shown.add_event(Restored(at=at(30), channels=("balances", "orders:1")))
    shown.update(ConnectionState.CONNECTED, None, 0, at(30))
    frame = drawn(shown, 30)
    assert "up 0 s · 1 outage" in frame
    assert "03:04:35  connected again after 20 s" in frame
    assert "03:04:35  restored balances, orders:1" in frame
    shown.add_event(Disconnected(at=at(40), error=LOST, retry_in=1.0))
    assert "2 outages" in drawn(shown, 40)


def test_final_failure_is_shown_once() -> None:
    shown = make_board()
    shown.add_event(Connected(at=at(0)))
    shown.add_event(Disconnected(at=at(5), error=LOST, retry_in=None))
    shown.update(ConnectionState.WAITING, None, 0, at(5))
    assert "● no connection\n" in drawn(shown, 5)
    shown.add_event(GaveUp(at=at(5), error=LOST))
    shown.update(ConnectionState.FAILED, None, 0, at(5))
    frame = drawn(shown, 5)
    assert "● failed" in frame
    assert "\nthe peer hung up" in frame
    assert "03:04:10  gave up: the peer hung up" in frame
    assert "no connection:" not in frame  # not logged twice


def test_gaps_are_logged() -> None:
    shown = make_board()
    reasons = frozenset({"overflow", "reconnected"})
    gaps = (
        Gap(frozenset({"overflow"}), 3, START),
        Gap(frozenset({"reconnected"}), 0, START),
        Gap(reasons, 2, START),  # type: ignore[arg-type]
    )
    shown.add_messages([balances(0, "push", gap) for gap in gaps])
    assert [entry.text for entry in shown.log] == [
        "balances: since 03:04:05 3 messages were dropped",
        "balances: since 03:04:05 updates may be missing",
        "balances: since 03:04:05 2 messages were dropped and updates may be missing",
    ]


EVENTS = [
    (Subscribed(at=START, channel="news"), "subscribed to news"),
    (ChannelFailed(at=START, channel="news", error=LOST), "news: the peer hung up"),
    (
        SnapshotUnavailable(at=START, channel="orders:1", error=LOST),
        "orders:1: no snapshot: the peer hung up",
    ),
    (UnexpectedMessage(at=START, reason="no JSON", raw="x"), "unexpected message: no JSON"),
    (Restored(at=START, channels=()), "restored"),
    (Closed(at=START), "closed"),
]


@pytest.mark.parametrize(("event", "text"), EVENTS, ids=[text for _, text in EVENTS])
def test_each_event_has_a_line(event: ConnectionEvent, text: str) -> None:
    assert describe_event(event) == text
    shown = make_board()
    before = shown.changes
    shown.add_event(event)
    assert shown.changes > before
    assert f"03:04:05  {text}\n" in drawn(shown, 0)


def test_secrets_and_control_characters_are_not_shown() -> None:
    shown = make_board(redact=lambda text: text.replace("my key", "<removed>"))
    error = ServerError("subscribe", "my key\x1b[2J\n[bold]no")
    shown.add_event(ChannelFailed(at=START, channel="news", error=error))
    assert r"the broker refused subscribe: <removed>\x1b[2J [bold]no" in drawn(shown, 0)


# --- Messages per second --------------------------------------------------------------------


def test_sparkline_shows_the_last_minute() -> None:
    shown = make_board()
    received = 0
    for second, count in enumerate([1, 0, 8, 4, 5]):
        received += count
        shown.update(ConnectionState.CONNECTED, None, received, at(second + 0.4))
        shown.update(ConnectionState.CONNECTED, None, received, at(second + 0.9))
    assert shown.rate(at(5))[-6:] == [0, 1, 0, 8, 4, 5]
    assert re.search(r"messages/s ▁+▂▁█▅▆ 5 now, 8 max", drawn(shown, 5))
    # The current second isn't included.
    shown.update(ConnectionState.CONNECTED, None, received + 2, at(5))
    assert shown.rate(at(5))[-1] == 5
    assert len(shown.rate(at(5))) == RATE_SECONDS
    assert shown.rate(at(6 + RATE_SECONDS)) == [0] * RATE_SECONDS
    shown.update(ConnectionState.CONNECTED, None, received + 3, at(6 + RATE_SECONDS))
    assert len(shown.received_in) == 1  # old seconds are removed


def test_only_new_values_require_a_redraw() -> None:
    shown = make_board()
    shown.update(ConnectionState.CONNECTED, None, 1, at(0))
    before = shown.changes
    shown.update(ConnectionState.CONNECTED, None, 1, at(1))
    assert shown.changes == before
    shown.update(ConnectionState.CONNECTED, 0.1, 1, at(1))
    assert shown.changes > before


# --- Sizes and terminals --------------------------------------------------------------------


def plain_lines(frame: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in frame.splitlines())


WIDE = """\
 SANDBOX  127.0.0.1:8765                                             ● connected
up 4 s · latency 1.2 ms · last message 1 s ago
messages/s ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▂▄▆█ 7 now, 7 max
secret is refused: the broker refused subscribe: Invalid channel format

ORDERS ─────────────────────────────────────────────────────────────────────────
order   progress       status           filled   changed
ord_1   ━━━━━━━━━╌╌╌   PARTIAL          3110.5   1 s ago
ord_2                  no message yet

news 1 message, 1 s ago ────────────────────────────────────────────────────────
{"headline": "up"}

BALANCES ───────────────────────────────────────────────────────────────────────
asset      total   locked   available    change
BTC         10                   10
ETH        999          1       998          -1
USDT    103110.5             103110.5   +3110.5
ADA          0                    0

EVENTS UTC ─────────────────────────────────────────────────────────────────────
03:04:05  connected
03:04:05  subscribed to balances
03:04:05  subscribed to orders:ord_1
03:04:05  secret is refused: the broker refused subscribe: Invalid channel
          format
03:04:07  order ord_1 is PENDING
03:04:08  order ord_1 is PARTIAL, filled 3110.5
"""


NARROW = """\
 SANDBOX  127.0.0.1:8765     ● connected
up 4 s · latency 1.2 ms
last message 1 s ago
messages/s ▁▁▁▁▁▁▁▁▁▁▁▁▂▄▆█ 7 now, 7 max
secret is refused: the broker refused
subscribe: Invalid channel format

ORDERS ─────────────────────────────────
order status         filled
ord_1 PARTIAL        3110.5
ord_2 no message yet

news 1 message, 1 s ago ────────────────
{"headline": "up"}

BALANCES ───────────────────────────────
asset    total locked  change
BTC         10
ETH        999      1      -1
USDT  103110.5        +3110.5
ADA          0

EVENTS UTC ─────────────────────────────
03:04:05  connected
03:04:05  subscribed to balances
03:04:05  subscribed to orders:ord_1
03:04:05  secret is refused: the broker
          refused subscribe: Invalid
          channel format
03:04:07  order ord_1 is PENDING
03:04:08  order ord_1 is PARTIAL, filled
          3110.5
"""


def test_wide_screen_shows_everything() -> None:
    assert plain_lines(drawn(busy(), 4, 80)) == WIDE


def test_narrow_screen_shows_the_most_important_columns() -> None:
    assert plain_lines(drawn(busy(), 4, 40)) == NARROW


@pytest.mark.parametrize("width", [1, 8, 20, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    drawn(busy(), 4, width)


@pytest.mark.parametrize("height", range(1, 40))
def test_low_screen_shows_the_most_important_lines(height: int) -> None:
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Frame(busy(), at(4), height, "Ctrl-C exits"))
    lines = console.export_text().splitlines()
    assert lines[0].endswith("● connected")
    if height < 21:
        return  # the top, which is visible, has the most important lines
    assert len(lines) <= height
    shown = "\n".join(lines)
    for text in ("ord_1", "headline", "USDT", "order ord_1 is PARTIAL"):
        assert text in shown
    assert "more than fits" not in shown
    assert (shown.count("\n\n") > 0) == (height >= 25)
    assert (lines[-1] == "Ctrl-C exits") == (height >= 30)


def test_changed_balances_come_first_if_not_all_fit() -> None:
    names = [f"COIN{number}" for number in range(40)]
    shown = make_board()
    shown.add_messages([balances(0, "snapshot", **dict.fromkeys(names, "1"))])
    shown.add_messages([balances(1, COIN39="2")])
    assert row(drawn(shown, 1, height=12), "COIN39")[-1] == "+1"
    assert "more than fits" in drawn(shown, 60, height=12)
    whole = drawn(shown, 60, height=100)
    assert whole.index("COIN0") < whole.index("COIN39")


def test_log_can_be_disabled() -> None:
    shown = make_board(has_log=False)
    shown.add_event(Connected(at=at(0)))
    assert "EVENTS" not in drawn(shown, 0)


def test_long_log_shows_its_end() -> None:
    shown = make_board()
    for number in range(300):
        shown.add_event(Subscribed(at=at(number), channel=f"orders:{number}"))
    frame = drawn(shown, 300)
    assert "orders:299" in frame
    assert frame.count("subscribed") == 12
    assert drawn(shown, 300, height=50).count("subscribed") > 30


def test_long_entry_shows_its_beginning() -> None:
    shown = make_board()
    shown.add_event(UnexpectedMessage(at=at(0), reason="x" * 1000, raw=None))
    frame = plain_lines(drawn(shown, 0, 40, height=12))
    assert "03:04:05  unexpected message:\n          xxx" in frame
    assert frame.count("\n") == 12


def test_empty_account_has_a_balances_section() -> None:
    shown = make_board()
    shown.add_messages([balances(0, "snapshot")])
    assert "BALANCES ──" in drawn(shown, 0)


def test_terminal_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(width=80, file=file).print(Frame(busy(), at(4)))
    file.flush()
    assert b"* connected" in raw.getvalue()
    assert b"=========..." in raw.getvalue()


def test_durations_are_formatted() -> None:
    lengths = [
        describe_duration(dt.timedelta(seconds=seconds))
        for seconds in (-5, 0.9, 59, 60, 3599, 90000)
    ]
    assert lengths == ["0 s", "0 s", "59 s", "1 min 0 s", "59 min 59 s", "25 h 0 min"]
