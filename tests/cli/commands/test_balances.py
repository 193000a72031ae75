"""``trio-broker balances``: its output and exit status."""

from __future__ import annotations

import json

import pytest
import trio

from tests.broker_thread import Broker
from tests.cli.harness import status
from trio_broker import Balance, BrokerWSClient
from trio_broker._protocol import codec


def test_table_has_a_row_for_each_asset_with_aligned_amounts(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("balances") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["asset", "total", "locked", "available"]
    held = broker.do(lambda sandbox: sandbox.balances())
    assert [row.split()[0] for row in rows] == sorted(held)
    for row in rows:
        asset, total, locked, available = row.split()
        assert (total, locked, available) == (
            f"{held[asset].total.normalize():f}",
            f"{held[asset].locked or 0:f}".rstrip("0").rstrip(".") or "0",
            f"{held[asset].available.normalize():f}",
        )
    assert len({len(row.rstrip()) for row in rows}) == 1


def test_json_has_an_object_for_each_asset_with_exact_amounts(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("balances", "--json") == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    held = broker.do(lambda sandbox: sandbox.balances())
    assert {one["asset"] for one in objects} == set(held)
    for one in objects:
        balance = held[one["asset"]]
        assert list(one) == ["asset", "total", "locked", "available"]
        assert one["total"] == f"{balance.total:f}"
        assert one["available"] == f"{balance.available:f}"


async def unreadable_balances(_: BrokerWSClient) -> tuple[Balance, ...]:
    await trio.lowlevel.checkpoint()
    data = '[{"asset":"BTC","total":"NaN","locked":"1"},{"asset":"ETH","total":"5","locked":{}}]'
    return codec.decode_balances_push(codec.decode_message(f'{{"ch":"balances","data":{data}}}'))


def test_unreadable_amount_is_shown_as_unreadable(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert broker.url
    monkeypatch.setattr(BrokerWSClient, "get_balances", unreadable_balances)
    assert status("balances") == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["BTC", "unreadable", "1", "unreadable"], ["ETH", "5", *["unreadable"] * 2]]
    assert status("balances", "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(first.values()) == ["BTC", "unreadable", "1", "unreadable"]
    assert list(second.values()) == ["ETH", "5", "unreadable", "unreadable"]


@pytest.mark.usefixtures("place")
def test_missing_setting_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("balances") == 2
    assert "BROKER_API_KEY" in capsys.readouterr().err


def test_wrong_key_exits_with_3(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKER_API_KEY", "nobody")
    assert broker.url
    assert status("balances") == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Error: ")
    assert "check BROKER_API_KEY" in printed.err


def test_broker_that_is_down_exits_with_4(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.do(lambda sandbox: sandbox.faults.kill())
    assert status("balances") == 4
    assert "trio-broker doctor" in capsys.readouterr().err
