"""What a live screen shows: the board that is told what happens, and the picture of it."""

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
    OddMessage,
    Order,
    OrderStatus,
    Restored,
    ServerError,
    SnapshotUnavailable,
)
from trio_broker.cli.board import (
    MARKED_FOR,
    RATE_SECONDS,
    Board,
    ChannelTrouble,
    Subscribed,
    in_words,
    span,
)
from trio_broker.cli.screen import Picture
from trio_broker.models import Origin

START = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
LOST = ConnectionError("the peer hung up")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def at(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def board(*channels: str, **options: Any) -> Board:
    options = {"label": "SANDBOX", "host": "127.0.0.1:8765", **options}
    return Board(channels=channels or ("balances",), **options)


def balances(
    seconds: float, origin: Origin = "push", gap: Gap | None = None, /, **totals: str
) -> Message[tuple[Balance, ...]]:
    """A message of balances; a total may have what is locked after a slash."""
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
    console.print(Picture(shown, at(seconds), height, hint))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert height is None or text.count("\n") <= height
    return text


def row(picture: str, name: str) -> list[str]:
    """The cells of the table's row that begins with a name."""
    (found,) = re.findall(rf"^{re.escape(name)}\b.*$", picture, re.MULTILINE)
    return str(found).split()


def busy() -> Board:
    """A board with something of everything on it."""
    shown = board("balances", "orders:ord_1", "orders:ord_2", "news", "secret")
    shown.tell(Connected(at=at(0)))
    for channel in ("balances", "orders:ord_1"):
        shown.tell(Subscribed(at=at(0), channel=channel))
    refusal = ServerError("subscribe", "Invalid channel format")
    shown.tell(ChannelRefused(at=at(0), channel="secret", error=refusal))
    shown.take([balances(1, "snapshot", BTC="10", ETH="1000", USDT="100000", ADA="0")])
    shown.take([order(2, OrderStatus.PENDING)])
    shown.take([balances(2, ETH="1000/2")])
    shown.take([order(3, OrderStatus.PARTIAL, filled_out=Decimal("3110.50"))])
    shown.take([balances(3, ETH="999/1", USDT="103110.50")])
    shown.take([message("news", {"headline": "up"}, 3)])
    for second in range(4):
        shown.look(ConnectionState.CONNECTED, 0.0012, (second + 1) ** 2, at(second))
    return shown


# --- Balances -------------------------------------------------------------------------------


def test_what_the_account_holds_at_first_is_no_change() -> None:
    shown = board()
    assert "no message yet" in drawn(shown, 0)
    # A push may come before the snapshot that was asked for.
    shown.take([balances(0, ETH="5")])
    shown.take([balances(0, "snapshot", ETH="5", USDT="7")])
    picture = drawn(shown, 0)
    assert row(picture, "ETH") == ["ETH", "5", "5"]
    assert row(picture, "USDT") == ["USDT", "7", "7"]


def test_a_change_is_marked_for_some_seconds() -> None:
    shown = board()
    shown.take([balances(0, "snapshot", ETH="5", USDT="7")])
    shown.take([balances(10, ETH="3", USDT="7.50")])
    assert row(drawn(shown, 10), "ETH") == ["ETH", "3", "3", "-2"]
    last = 10 + MARKED_FOR.total_seconds()
    assert row(drawn(shown, last - 0.1), "USDT") == ["USDT", "7.5", "7.5", "+0.5"]
    assert row(drawn(shown, last), "ETH") == ["ETH", "3", "3"]


def test_changes_in_a_row_are_shown_as_one() -> None:
    shown = board()
    shown.take([balances(0, "snapshot", ETH="5")])
    shown.take([balances(10, ETH="4"), balances(14, ETH="2.5")])
    assert row(drawn(shown, 18), "ETH")[-1] == "-2.5"
    shown.take([balances(20, ETH="2")])
    assert row(drawn(shown, 20), "ETH")[-1] == "-0.5"


def test_what_is_told_again_is_no_change() -> None:
    shown = board()
    shown.take([balances(0, "snapshot", ETH="5")])
    shown.take([balances(1, ETH="5")])
    assert row(drawn(shown, 1), "ETH") == ["ETH", "5", "5"]


def test_what_gets_locked_is_a_change_too() -> None:
    shown = board()
    shown.take([balances(0, "snapshot", ETH="5")])
    shown.take([balances(1, ETH="5/2")])
    assert row(drawn(shown, 1), "ETH") == ["ETH", "5", "2", "3", "locked", "+2"]
    shown.take([balances(10, ETH="5/0")])
    assert row(drawn(shown, 10), "ETH") == ["ETH", "5", "5", "locked", "-2"]


def test_changes_are_exact() -> None:
    shown = board()
    large = "123456789012345678901234567890"
    shown.take([balances(0, "snapshot", PEPE=f"{large}.000000000000000001")])
    shown.take([balances(1, PEPE=large)])
    assert "-0.000000000000000001" in drawn(shown, 1, width=160)


def test_a_snapshot_is_the_whole_account() -> None:
    shown = board()
    shown.take([balances(0, "snapshot", ETH="5", USDT="7")])
    shown.take([balances(20, "snapshot", USDT="7", BTC="1")])
    picture = drawn(shown, 20)
    assert "ETH" not in picture
    # By now the account is known, so what is new in it is a change.
    assert row(picture, "BTC")[-1] == "+1"


def test_decimal_points_stand_below_each_other() -> None:
    shown = board()
    shown.take([balances(0, "snapshot", A="1", B="12.5/0.25", C="100.125/2")])
    rows = drawn(shown, 0).splitlines()[-3:]
    assert [line.rstrip() for line in rows] == [
        "A         1                    1",
        "B        12.5       0.25      12.25",
        "C       100.125     2         98.125",
    ]


def test_what_is_nothing_comes_last() -> None:
    shown = board()
    shown.take([balances(0, "snapshot", ADA="0", BTC="1", ETH="2")])
    picture = drawn(shown, 0)
    assert picture.index("BTC") < picture.index("ETH") < picture.index("ADA")


# --- Orders and other channels --------------------------------------------------------------


def test_an_order_is_shown_from_its_first_state_to_its_last() -> None:
    shown = board("orders:ord_1")
    assert "no message yet" in drawn(shown, 0)
    bars = []
    for seconds, status in enumerate(
        ("NEW", OrderStatus.PENDING, OrderStatus.PROCESSING, OrderStatus.PARTIAL)
    ):
        shown.take([order(seconds, status)])
        name, bar, *rest = row(drawn(shown, seconds), "ord_1")
        bars.append(bar.count("━"))
        assert (name, rest) == ("ord_1", [str(status), "now"])
    final = order(9, OrderStatus.FILLED, filled_out=Decimal("12.50"), tx_hash="0xfeed")
    shown.take([final, final])
    _, bar, *rest = row(drawn(shown, 3600), "ord_1")
    bars.append(bar.count("━"))
    assert bars == sorted(set(bars))
    assert rest == ["FILLED", "12.5", "59", "min", "51", "s", "ago"]
    assert [entry.text for entry in shown.log][-1] == (
        "order ord_1 is FILLED, filled 12.50, tx 0xfeed".replace("12.50", "12.5")
    )


def test_what_only_repeats_a_status_is_no_entry_of_the_log() -> None:
    shown = board("orders:ord_1")
    shown.take([order(0, OrderStatus.PARTIAL, filled_out=Decimal(1))])
    shown.take([order(1, OrderStatus.PARTIAL, filled_out=Decimal(2))])
    assert len(shown.log) == 1
    assert "2" in row(drawn(shown, 1), "ord_1")


@pytest.mark.parametrize("status", [OrderStatus.FAILED, OrderStatus.CANCELLED])
def test_an_order_that_came_to_nothing_is_red(status: OrderStatus) -> None:
    shown = board("orders:ord_1")
    shown.take([order(0, status)])
    console = Console(
        width=80, file=io.StringIO(), force_terminal=True, color_system="standard", record=True
    )
    console.print(Picture(shown, at(0)))
    assert f"\x1b[1;31m{status}" in console.export_text(styles=True)


def test_a_channel_of_another_kind_is_shown_as_it_comes() -> None:
    shown = board("news")
    assert "no message yet" in drawn(shown, 0)
    shown.take([message("news", {"text": "[red]up\x1b[2J"}, 0)])
    assert '{"text": "[red]up\\u001b[2J"}' in drawn(shown, 0)
    shown.take([message("news", ["x" * 1000], 1)])
    picture = drawn(shown, 2)
    assert "2 messages, 1 s ago" in picture
    assert 240 < picture.count("x") < 320  # what is longer is cut off


def test_a_channel_that_is_refused_keeps_its_last_state() -> None:
    shown = board("orders:ord_1", "balances", "news")
    shown.take([order(0, OrderStatus.PARTIAL), message("news", 1, 0)])
    for channel in shown.channels:
        error = ServerError("subscribe", "no\nmore")
        shown.tell(ChannelRefused(at=at(1), channel=channel, error=error))
    picture = drawn(shown, 1)
    assert "orders:ord_1 is refused: the broker refused subscribe: no more" in picture
    assert "PARTIAL" in row(picture, "ord_1")
    assert "BALANCES" not in picture


# --- The connection -------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["LIVE", "SANDBOX"])
@pytest.mark.parametrize("width", [40, 80])
def test_whose_money_it_is_stands_first(label: str, width: int) -> None:
    picture = drawn(board(label=label), 0, width)
    assert picture.startswith(f" {label}  127.0.0.1:8765 ")


def test_a_connection_that_is_well_shows_its_figures() -> None:
    shown = board()
    assert "no message yet" in drawn(shown, 0)
    shown.tell(Connected(at=at(0)))
    shown.look(ConnectionState.CONNECTED, 0.0012, 3, at(2))
    head = drawn(shown, 65).splitlines()[:2]
    assert head[0].endswith("● connected")
    assert head[1] == "up 1 min 5 s · latency 1.2 ms · last message 1 min 3 s ago"
    shown.look(ConnectionState.CONNECTED, 0.25, 4, at(65))
    assert "latency 250 ms · last message now" in drawn(shown, 65)


def test_an_outage_is_told_while_it_lasts_and_afterwards() -> None:
    shown = board()
    shown.tell(Connected(at=at(0)))
    shown.tell(Disconnected(at=at(10), error=LOST, retry_in=1.5))
    shown.look(ConnectionState.WAITING, None, 0, at(10))
    picture = drawn(shown, 10)
    assert "● no connection, next try in 1 s" in picture
    assert "down for 0 s · 1 outage" in picture
    for tried in (12, 15, 21):
        shown.tell(Disconnected(at=at(tried), error=ConnectionError(), retry_in=8.0))
    picture = drawn(shown, 22)
    assert "next try in 7 s" in picture
    assert "\nConnectionError\n" in picture
    assert "down for 12 s" in picture
    assert "no connection: ConnectionError (x3)" in picture  # not one line for each
    shown.tell(Connected(at=at(30)))
    shown.tell(Restored(at=at(30), channels=("balances", "orders:1")))
    shown.look(ConnectionState.CONNECTED, None, 0, at(30))
    picture = drawn(shown, 30)
    assert "up 0 s · 1 outage" in picture
    assert "03:04:35  connected again after 20 s" in picture
    assert "03:04:35  restored balances, orders:1" in picture
    shown.tell(Disconnected(at=at(40), error=LOST, retry_in=1.0))
    assert "2 outages" in drawn(shown, 40)


def test_a_connection_that_failed_for_good_says_so() -> None:
    shown = board()
    shown.tell(Connected(at=at(0)))
    shown.tell(Disconnected(at=at(5), error=LOST, retry_in=None))
    shown.look(ConnectionState.WAITING, None, 0, at(5))
    assert "● no connection\n" in drawn(shown, 5)
    shown.tell(GaveUp(at=at(5), error=LOST))
    shown.look(ConnectionState.FAILED, None, 0, at(5))
    picture = drawn(shown, 5)
    assert "● failed" in picture
    assert "\nthe peer hung up" in picture
    assert "03:04:10  gave up: the peer hung up" in picture
    assert "no connection:" not in picture  # once is enough


def test_what_is_missed_is_told() -> None:
    shown = board()
    reasons = frozenset({"overflow", "reconnected"})
    gaps = (
        Gap(frozenset({"overflow"}), 3, START),
        Gap(frozenset({"reconnected"}), 0, START),
        Gap(reasons, 2, START),  # type: ignore[arg-type]
    )
    shown.take([balances(0, "push", gap) for gap in gaps])
    assert [entry.text for entry in shown.log] == [
        "balances: since 03:04:05 3 messages were dropped",
        "balances: since 03:04:05 updates may be missing",
        "balances: since 03:04:05 2 messages were dropped and updates may be missing",
    ]


EVENTS = [
    (Subscribed(at=START, channel="news"), "subscribed to news"),
    (ChannelTrouble(at=START, channel="news", error=LOST), "news: the peer hung up"),
    (
        SnapshotUnavailable(at=START, channel="orders:1", error=LOST),
        "orders:1: its state can't be asked for: the peer hung up",
    ),
    (OddMessage(at=START, reason="no JSON", raw="x"), "an odd message: no JSON"),
    (Restored(at=START, channels=()), "restored"),
    (Closed(at=START), "closed"),
]


@pytest.mark.parametrize(("event", "text"), EVENTS, ids=[text for _, text in EVENTS])
def test_each_event_has_a_line(event: ConnectionEvent, text: str) -> None:
    assert in_words(event) == text
    shown = board()
    before = shown.changes
    shown.tell(event)
    assert shown.changes > before
    assert f"03:04:05  {text}\n" in drawn(shown, 0)


def test_secrets_and_control_characters_are_not_shown() -> None:
    shown = board(erase=lambda text: text.replace("my key", "<removed>"))
    error = ServerError("subscribe", "my key\x1b[2J\n[bold]no")
    shown.tell(ChannelTrouble(at=START, channel="news", error=error))
    assert r"the broker refused subscribe: <removed>\x1b[2J [bold]no" in drawn(shown, 0)


# --- Messages a second ----------------------------------------------------------------------


def test_the_sparkline_is_of_the_last_minute() -> None:
    shown = board()
    received = 0
    for second, count in enumerate([1, 0, 8, 4, 5]):
        received += count
        shown.look(ConnectionState.CONNECTED, None, received, at(second + 0.4))
        shown.look(ConnectionState.CONNECTED, None, received, at(second + 0.9))
    assert shown.rate(at(5))[-6:] == [0, 1, 0, 8, 4, 5]
    assert re.search(r"messages/s ▁+▂▁█▅▆ 5 now, 8 most", drawn(shown, 5))
    # The second that runs isn't over yet.
    shown.look(ConnectionState.CONNECTED, None, received + 2, at(5))
    assert shown.rate(at(5))[-1] == 5
    assert len(shown.rate(at(5))) == RATE_SECONDS
    assert shown.rate(at(6 + RATE_SECONDS)) == [0] * RATE_SECONDS
    shown.look(ConnectionState.CONNECTED, None, received + 3, at(6 + RATE_SECONDS))
    assert len(shown._counts) == 1  # nothing is kept for ever


def test_only_what_is_new_is_a_change() -> None:
    shown = board()
    shown.look(ConnectionState.CONNECTED, None, 1, at(0))
    before = shown.changes
    shown.look(ConnectionState.CONNECTED, None, 1, at(1))
    assert shown.changes == before
    shown.look(ConnectionState.CONNECTED, 0.1, 1, at(1))
    assert shown.changes > before


# --- Sizes and terminals --------------------------------------------------------------------


def plain_lines(picture: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in picture.splitlines())


WIDE = """\
 SANDBOX  127.0.0.1:8765                                             ● connected
up 4 s · latency 1.2 ms · last message 1 s ago
messages/s ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▂▄▆█ 7 now, 7 most
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
messages/s ▁▁▁▁▁▁▁▁▁▁▁▂▄▆█ 7 now, 7 most
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


def test_a_wide_screen_shows_all() -> None:
    assert plain_lines(drawn(busy(), 4, 80)) == WIDE


def test_a_narrow_screen_shows_what_matters_most() -> None:
    assert plain_lines(drawn(busy(), 4, 40)) == NARROW


@pytest.mark.parametrize("width", [1, 8, 20, 200])
def test_any_width_will_do(width: int) -> None:
    drawn(busy(), 4, width)


@pytest.mark.parametrize("height", range(1, 40))
def test_a_low_screen_is_filled_with_what_matters_most(height: int) -> None:
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Picture(busy(), at(4), height, "Ctrl-C ends"))
    lines = console.export_text().splitlines()
    assert lines[0].endswith("● connected")
    if height < 21:
        return  # what is below that isn't seen, and the most important is above
    assert len(lines) <= height
    shown = "\n".join(lines)
    for text in ("ord_1", "headline", "USDT", "order ord_1 is PARTIAL"):
        assert text in shown
    assert "more than fits" not in shown
    assert (shown.count("\n\n") > 0) == (height >= 25)
    assert (lines[-1] == "Ctrl-C ends") == (height >= 30)


def test_where_not_all_fits_the_changed_balances_come_first() -> None:
    names = [f"COIN{number}" for number in range(40)]
    shown = board()
    shown.take([balances(0, "snapshot", **dict.fromkeys(names, "1"))])
    shown.take([balances(1, COIN39="2")])
    assert row(drawn(shown, 1, height=12), "COIN39")[-1] == "+1"
    assert "more than fits" in drawn(shown, 60, height=12)
    whole = drawn(shown, 60, height=100)
    assert whole.index("COIN0") < whole.index("COIN39")


def test_without_a_log_there_is_none() -> None:
    shown = board(has_log=False)
    shown.tell(Connected(at=at(0)))
    assert "EVENTS" not in drawn(shown, 0)


def test_a_long_log_shows_its_end() -> None:
    shown = board()
    for number in range(300):
        shown.tell(Subscribed(at=at(number), channel=f"orders:{number}"))
    picture = drawn(shown, 300)
    assert "orders:299" in picture
    assert picture.count("subscribed") == 12
    assert drawn(shown, 300, height=50).count("subscribed") > 30


def test_of_a_long_entry_at_least_the_beginning_is_shown() -> None:
    shown = board()
    shown.tell(OddMessage(at=at(0), reason="x" * 1000, raw=None))
    picture = plain_lines(drawn(shown, 0, 40, height=12))
    assert "03:04:05  an odd message:\n          xxx" in picture
    assert picture.count("\n") == 12


def test_an_account_may_hold_nothing() -> None:
    shown = board()
    shown.take([balances(0, "snapshot")])
    assert "BALANCES ──" in drawn(shown, 0)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(width=80, file=file).print(Picture(busy(), at(4)))
    file.flush()
    assert b"* connected" in raw.getvalue()
    assert b"=========..." in raw.getvalue()


def test_lengths_of_time() -> None:
    lengths = [span(dt.timedelta(seconds=seconds)) for seconds in (-5, 0.9, 59, 60, 3599, 90000)]
    assert lengths == ["0 s", "0 s", "59 s", "1 min 0 s", "59 min 59 s", "25 h 0 min"]
