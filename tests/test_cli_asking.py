"""One question, and a goodbye whatever happens."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from tests.clibroker import Broker, closings, status
from trio_broker import BrokerWSClient


@pytest.mark.parametrize(
    "asked",
    [
        ("get_balances", ["balances"], signal.SIGINT),
        ("estimate_swap", ["estimate", "1", "ETH", "USDT"], signal.SIGTERM),
        ("get_order_status", ["order", "ord_1"], signal.SIGHUP),
    ],
)
def test_ctrl_c_says_goodbye(
    broker: Broker,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, list[str], int],
) -> None:
    method, arguments, number = asked

    async def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    monkeypatch.setattr(BrokerWSClient, method, interrupted)
    politely = closings(monkeypatch)
    assert status(*arguments) == 130
    assert politely == [True]
    assert broker.received() == ["auth"]
    assert capsys.readouterr() == ("", "")


def test_a_key_that_the_broker_repeats_is_not_shown(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    key = broker.sandbox.api_key
    text = f'{{"op":"balances","error":"no such thing for {key}"}}'
    broker.do(lambda sandbox: sandbox.faults.replace(text, op="balances"))
    assert status("balances") == 5
    told = "Error: the broker refused balances: no such thing for <removed>\n"
    assert capsys.readouterr() == ("", told)
