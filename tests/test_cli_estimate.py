"""``trio-broker estimate``: what it prints, and how it ends."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import pytest

from tests.clibroker import Broker, status
from trio_broker import SwapEstimate
from trio_broker.cli import estimate

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def lines(**facts: object) -> list[str]:
    made = {"route": (), "price": Decimal("2.50"), "expected_out": Decimal("5.0"), **facts}
    return list(estimate.lines(SwapEstimate(**made), "2", "ETH", "U\x1bSDT"))  # type: ignore[arg-type]


def test_it_says_what_the_broker_has_said_and_no_more() -> None:
    assert lines() == ["2 ETH would bring 5 U\\x1bSDT", "price 2.5"]
    assert lines(fee=Decimal("0.10"), expires_at=AT)[1] == (
        "price 2.5, fee 0.1, good until 03:04:05 UTC"
    )


def test_the_route_is_a_table(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.url
    assert status("estimate", "2", "ETH", "USDT") == 0
    first, second, _, head, *steps = capsys.readouterr().out.splitlines()
    assert first.startswith("2 ETH would bring ")
    assert second.startswith("price ")
    assert head.split() == ["exchange", "pool", "sells", "buys"]
    assert steps
    assert "ETH" in steps[0]


def test_quiet_leaves_the_route_out(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.url
    assert status("estimate", "2", "ETH", "USDT", "--quiet") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_json_is_one_object(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.url
    arguments = ["2", "ETH", "USDT", "--source", "binance", "--network", "x", "--wallet", "w"]
    assert status("estimate", *arguments, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [
        "amount_in", "asset_in", "asset_out", "route", "price", "expected_out", "fee", "expires_at",
    ]  # fmt: skip
    assert (told["amount_in"], told["asset_in"], told["asset_out"]) == ("2", "ETH", "USDT")
    assert Decimal(told["expected_out"]) > 0
    assert told["route"][0]["exchange"] == "binance"


@pytest.mark.parametrize("arguments", [["-1", "ETH", "USDT"], ["1", "", "USDT"]])
def test_what_can_not_be_asked_is_a_usage_error(
    arguments: list[str], broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert broker.url
    assert status("estimate", "--", *arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_what_the_broker_refuses_ends_with_5(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert broker.url
    assert status("estimate", "1", "NOPE", "USDT") == 5
    assert "NOPE" in capsys.readouterr().err
