"""A broker whose texts contain terminal escapes and the account's own keys."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.broker_thread import Broker, broker_in_thread
from tests.cli.harness import COMMAND, run, set_default, status
from trio_broker.sandbox import ClientAsked, Sandbox, SandboxEvent

SIGNATURE = "0123456789abcdef" * 4


def hostile_text(broker: Broker) -> str:
    key, secret = broker.variables["BROKER_API_KEY"], broker.variables["BROKER_SECRET_KEY"]
    return f"no\x1b[2J\x1b]0;x\x07\x9b5m\u202e\x7f\r\v\b {key}, {secret}"


def check(output: Sequence[str], broker: Broker) -> None:
    for text in output:
        # Without colours, which the command adds.
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        escapes = [char for char in plain if not char.isprintable() and char != "\n"]
        assert not escapes, text
        assert broker.variables["BROKER_API_KEY"] not in text
        assert broker.variables["BROKER_SECRET_KEY"] not in text
        assert SIGNATURE not in text


OUTPUTS = [[], ["--json"], ["--debug"], ["-vv", "--debug"], ["--json", "--debug"], ["-q"]]
SWAP = ["swap", "1", "ETH", "USDT", "--yes", "--no-journal"]
COMMANDS = {
    "balances": ["balances"],
    "estimate": ["estimate", "1", "ETH", "USDT"],
    "order_status": ["order", "ord_00000001"],
    "swap": SWAP,
    "auth": ["balances"],
}


@pytest.mark.parametrize("flags", OUTPUTS, ids=" ".join)
@pytest.mark.parametrize("op", COMMANDS)
def test_error_is_shown_escaped_and_without_keys(
    op: str, flags: list[str], broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    # Only a text of a refusal refuses a swap.
    error = f"No route: {hostile_text(broker)} {SIGNATURE}"
    broker.do(lambda it: it.faults.replace({"op": op, "error": error}, op=op))
    assert status(*COMMANDS[op], *flags) in {3, 5, 6}
    output = capsys.readouterr()
    check(output, broker)
    assert r"no\x1b[2J" in output.err
    broker.do(lambda it: it.faults.clear())


def test_log_shows_no_key_and_no_escape(broker: Broker) -> None:
    error = f"{hostile_text(broker)} {SIGNATURE}"
    broker.do(lambda it: it.faults.refuse_auth(error))
    # In a subprocess, because pytest has its own handlers for logs.
    ended = run(*COMMAND, "balances", "-vv", **broker.variables)
    check([ended.stdout, ended.stderr], broker)
    assert ended.returncode == 3
    assert re.search(r"^[-0-9]+ [:,0-9]+ DEBUG +trio_broker", ended.stderr, re.MULTILINE)
    assert r"no\x1b[2J" in ended.stderr


ORDER = {"orderId": "{}", "status": "{}", "txHash": "{}", "filledOut": "1", "updatedAt": 1}
STEP = {"from": "{}", "to": "{}", "amountIn": "1", "amountOut": "1", "pool": "{}", "exchange": "{}"}
DATA: dict[str, tuple[list[str], dict[str, Any]]] = {
    "balances": (["balances"], {"balances": [{"asset": "{}", "total": "1"}]}),
    "estimate": (
        ["estimate", "1", "ETH", "USDT"],
        {"route": [STEP], "price": "1", "expectedOut": "1"},
    ),
    "order_status": (["order", "ord_00000001"], ORDER),
    "swap": (SWAP, {"orderId": "{}", "status": "{}"}),
}


def filled_in(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {name: filled_in(one, text) for name, one in value.items()}
    if isinstance(value, list):
        return [filled_in(one, text) for one in value]
    return text if value == "{}" else value


@pytest.mark.parametrize("flags", OUTPUTS, ids=" ".join)
@pytest.mark.parametrize("op", DATA)
def test_data_is_shown_escaped_and_without_keys(
    op: str,
    flags: list[str],
    broker: Broker,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_default(monkeypatch, request_timeout=0.5, resolve_timeout=0.5)
    command, data = DATA[op]
    answer = {"op": op, "data": filled_in(data, hostile_text(broker))}
    broker.do(lambda it: it.faults.replace(answer, op=op))
    status(*command, *flags)
    output = capsys.readouterr()
    check(output, broker)
    assert output.out or output.err
    broker.do(lambda it: it.faults.clear())


@pytest.mark.parametrize("flags", OUTPUTS, ids=" ".join)
@pytest.mark.parametrize("op", ["auth", "balances", "subscribe"])
def test_doctor_shows_no_key_and_no_escape(
    op: str, flags: list[str], broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    channel = {"ch": "balances"} if op == "subscribe" else {}
    error = {"op": op, **channel, "error": f"{hostile_text(broker)} {SIGNATURE}"}
    broker.do(lambda it: it.faults.replace(error, op=op))
    assert status("doctor", *flags)
    output = capsys.readouterr()
    check(output, broker)
    assert re.search(r"no\\(x1b|u001b)\[2J", output.out)
    broker.do(lambda it: it.faults.clear())


@pytest.mark.parametrize(
    "flags", [[], ["--json", "-vv", "--debug"], ["-q"], ["--raw"]], ids=" ".join
)
def test_watch_shows_no_key_and_no_escape(
    flags: list[str],
    place: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listen(event: SandboxEvent) -> None:
        if isinstance(event, ClientAsked) and event.op == "balances":
            broker.soon(end)

    def end() -> None:
        faults = broker.sandbox.faults
        broker.sandbox.push(json.dumps({"ch": "balances", "data": [{"asset": text, "total": "1"}]}))
        broker.sandbox.push(json.dumps({"ch": "balances", "error": text}))
        broker.sandbox.push(json.dumps({"text": text, "sig": SIGNATURE}))
        faults.close(1008, text[:60])  # the second one in a row is final

    with broker_in_thread(on_event=listen) as broker:
        for name, value in broker.variables.items():
            monkeypatch.setenv(name, value)
        text = hostile_text(broker)
        balances = {"balances": [{"asset": text, "total": "1"}]}

        def prepare(it: Sandbox) -> None:
            it.faults.replace({"op": "balances", "data": balances}, op="balances")
            it.faults.refuse_channel("orders:ord_1", f"{text} {SIGNATURE}")

        broker.do(prepare)
        assert status("watch", "orders:ord_1", "balances", *flags) == 4
        output = capfd.readouterr()
        check(output, broker)
        assert re.search(r"no\\(x1b|u001b)\[2J", output.out)
