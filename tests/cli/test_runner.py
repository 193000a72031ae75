"""Running commands, and their exit statuses."""

from __future__ import annotations

import os
import signal

import click
import pytest
import trio

from tests.broker_thread import Broker
from tests.cli.harness import PATIENCE, record_closings, status
from trio_broker import BrokerWSClient, ServerError
from trio_broker.cli import runner
from trio_broker.cli.errors import CommandFailed

# --- Exit statuses --------------------------------------------------------------------------


def test_returned_status_is_the_exit_status() -> None:
    async def command() -> int:
        await trio.lowlevel.checkpoint()
        return 3

    with pytest.raises(click.exceptions.Exit) as ended:
        runner.run(command)
    assert ended.value.exit_code == 3


async def interrupted_in_a_task() -> int:
    async def task() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await trio.sleep_forever()


async def interrupted() -> int:
    await trio.lowlevel.checkpoint()
    raise KeyboardInterrupt


def test_keyboard_interrupt_in_any_task_exits_with_130() -> None:
    for command in (interrupted, interrupted_in_a_task):
        with pytest.raises(click.exceptions.Exit) as ended:
            runner.run(command)
        assert ended.value.exit_code == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_signals_are_handled_like_ctrl_c(number: int) -> None:
    async def command() -> int:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    with pytest.raises(click.exceptions.Exit) as ended:
        runner.run(command)
    assert ended.value.exit_code == 130
    assert signal.getsignal(number) is signal.SIG_DFL


def test_ctrl_c_in_a_finalizer_is_not_lost() -> None:
    class Interrupting:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    async def command() -> int:
        Interrupting()
        with trio.move_on_after(PATIENCE):
            await trio.sleep_forever()
        return 0

    with pytest.raises(click.exceptions.Exit) as ended:
        runner.run(command)
    assert ended.value.exit_code == 130


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ServerError("swap", "no\n  luck"), 5, "the broker refused swap: no luck"),
        (OSError(), 1, "OSError"),
    ],
    ids=["of several lines", "without a text"],
)
def test_error_is_printed_in_one_line(
    error: Exception,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fail(_: BrokerWSClient) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(BrokerWSClient, "get_balances", fail)
    assert status("demo") == code
    assert capsys.readouterr().err == f"Error: {line}\n"


def test_debug_shows_a_traceback_and_keeps_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> int:
        await trio.lowlevel.checkpoint()
        raise ServerError("swap", "no")

    with pytest.raises(CommandFailed) as failed:
        runner.run(fail, debug=True)
    assert failed.value.exit_code == 5
    assert failed.value.message == "the broker refused swap: no"
    assert "Traceback" in capsys.readouterr().err


def test_bug_is_shown_escaped_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> int:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("odd\x1b[2J")

    with pytest.raises(CommandFailed, match="a bug in trio-broker") as failed:
        runner.run(fail)
    assert failed.value.exit_code == 1
    assert capsys.readouterr().err.endswith("RuntimeError: odd\\x1b[2J\n")


# --- One request ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        ("get_balances", ["balances"], signal.SIGINT),
        ("estimate_swap", ["estimate", "1", "ETH", "USDT"], signal.SIGTERM),
        ("get_order_status", ["order", "ord_1"], signal.SIGHUP),
    ],
)
def test_ctrl_c_closes_the_connection_cleanly(
    broker: Broker,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    call: tuple[str, list[str], int],
) -> None:
    method, arguments, number = call

    async def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    monkeypatch.setattr(BrokerWSClient, method, interrupted)
    had_time = record_closings(monkeypatch)
    assert status(*arguments) == 130
    assert had_time == [True]
    assert broker.received() == ["auth"]
    assert capsys.readouterr() == ("", "")


def test_key_in_a_reply_is_not_shown(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    key = broker.sandbox.api_key
    text = f'{{"op":"balances","error":"no such thing for {key}"}}'
    broker.do(lambda sandbox: sandbox.faults.replace(text, op="balances"))
    assert status("balances") == 5
    line = "Error: the broker refused balances: no such thing for <removed>\n"
    assert capsys.readouterr() == ("", line)


# --- Until a signal -------------------------------------------------------------------------


async def test_failure_is_raised_without_an_exception_group() -> None:
    async def fail() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise CommandFailed("no luck")

    with pytest.raises(CommandFailed, match="no luck"):
        await runner.run_until_signal(fail)


async def test_normal_return_has_status_0() -> None:
    assert await runner.run_until_signal(trio.lowlevel.checkpoint) == 0
