"""The watch's views: JSON lines and the broker's raw messages."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import pytest
from trio.testing import MockClock

from trio_broker import (
    ChannelRefused,
    Disconnected,
    Gap,
    Message,
    Order,
    OrderStatus,
    ServerError,
    UnexpectedMessage,
)
from trio_broker.cli.terminal.output import Output, json_text
from trio_broker.cli.watch.views import JsonView, RawView, event_members, message_members, raw_line
from trio_broker.sandbox import open_sandbox


async def test_json_has_no_secrets(capfd: pytest.CaptureFixture[str]) -> None:
    lines = JsonView(Output(as_json=True), lambda text: text.replace("alice", "<removed>"))
    error = ServerError("subscribe", "alice may not")
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    await lines.show_event(ChannelRefused(at=when, channel="news", error=error))
    await lines.show_event(
        UnexpectedMessage(at=when, reason="odd", raw='{"sig":"abc","x":"alice"}')
    )
    await lines.show_event(UnexpectedMessage(at=when, reason="binary", raw=None))
    refused, odd, binary = map(json.loads, capfd.readouterr().out.splitlines())
    assert refused == {
        "event": "channel_refused", "at": "2026-01-02T03:04:05+00:00", "channel": "news",
        "error": "the broker refused subscribe: <removed> may not",
    }  # fmt: skip
    assert (odd["event"], odd["raw"]) == ("odd", '{"sig":"<removed>","x":"<removed>"}')
    assert binary["raw"] is None


def test_messages_and_events_have_stable_json_members() -> None:
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    gap = Gap(frozenset({"overflow"}), 3, when)
    order = Order("1", OrderStatus.FILLED, Decimal("1.50"), "0xfeed", when, "mine")
    members = message_members(Message("orders:1", order, "push", gap, when, "raw"))
    at = "2026-01-02T03:04:05+00:00"
    assert json.loads(json_text(members)) == {
        "event": "message",
        "at": at,
        "channel": "orders:1",
        "origin": "push",
        "gap": {"reasons": ["overflow"], "dropped": 3, "since": at},
        "data": {
            "order_id": "1",
            "status": "FILLED",
            "filled_out": "1.50",
            "tx_hash": "0xfeed",
            "updated_at": at,
            "client_order_id": "mine",
        },
    }
    other = message_members(Message("news", {"up": [1, None]}, "push", None, when, "raw"))
    assert (other["data"], other["gap"]) == ({"up": [1, None]}, None)
    lost = Disconnected(at=when, error=ConnectionError(), retry_in=None)
    assert event_members(lost)["error"] == "ConnectionError"


def test_binary_message_is_escaped() -> None:
    assert raw_line(b"\xff secret\n", lambda text: text.replace("secret", "-")) == r"\xff -\n"


async def test_number_of_dropped_raw_messages_is_printed(
    capfd: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
        view = RawView(Output(), str, client.messages())
        with client.messages() as received:
            for number in range(2000):
                sandbox.push(f'{{"ch":"news","data":{number}}}')
                await received.receive()
        await client.aclose()
        await view.run(client)
    ended = capfd.readouterr()
    numbers = [json.loads(line)["data"] for line in ended.out.splitlines()]
    assert numbers == list(range(976, 2000))
    assert ended.err == "976 messages were dropped: the reader is too slow\n"
