"""``trio-broker estimate``: its output and exit status."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import pytest

from tests.broker_thread import Broker
from tests.cli.harness import status
from trio_broker import SwapEstimate
from trio_broker.cli.commands.estimate import estimate_lines

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def lines(**facts: object) -> list[str]:
    made = {"route": (), "price": Decimal("2.50"), "expected_out": Decimal("5.0"), **facts}
    return list(estimate_lines(SwapEstimate(**made), "2", "ETH", "U\x1bSDT"))  # type: ignore[arg-type]


def test_missing_fields_are_omitted() -> None:
    assert lines() == ["2 ETH would bring 5 U\\x1bSDT", "price 2.5"]
    assert lines(fee=Decimal("0.10"), expires_at=AT)[1] == (
        "price 2.5, fee 0.1, valid until 03:04:05 UTC"
    )


def test_route_is_a_table(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.url
    assert status("estimate", "2", "ETH", "USDT") == 0
    first, second, _, head, *steps = capsys.readouterr().out.splitlines()
    assert first.startswith("2 ETH would bring ")
    assert second.startswith("price ")
    assert head.split() == ["exchange", "pool", "sells", "buys"]
    assert steps
    assert "ETH" in steps[0]


def test_quiet_omits_the_route(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.url
    assert status("estimate", "2", "ETH", "USDT", "--quiet") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_json_is_one_object(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.url
    arguments = ["2", "ETH", "USDT", "--source", "binance", "--network", "x", "--wallet", "w"]
    assert status("estimate", *arguments, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == [
        "amount_in", "asset_in", "asset_out", "route", "price", "expected_out", "fee", "expires_at",
    ]  # fmt: skip
    assert (printed["amount_in"], printed["asset_in"], printed["asset_out"]) == ("2", "ETH", "USDT")
    assert Decimal(printed["expected_out"]) > 0
    assert printed["route"][0]["exchange"] == "binance"


@pytest.mark.parametrize("arguments", [["-1", "ETH", "USDT"], ["1", "", "USDT"]])
def test_invalid_arguments_are_usage_errors(
    arguments: list[str], broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert broker.url
    assert status("estimate", "--", *arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_refused_estimate_exits_with_5(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.url
    assert status("estimate", "1", "NOPE", "USDT") == 5
    assert "NOPE" in capsys.readouterr().err
