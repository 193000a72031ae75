"""Signals: Ctrl-C, and Ctrl-Z while a command draws on the terminal."""

from __future__ import annotations

import os
import signal

import pytest
import trio
import trio.testing

from tests.broker_thread import Broker
from tests.cli.harness import Terminal, swap_once
from tests.cli.terminal.stopping import stopped
from trio_broker.cli.terminal.signals import cancel_on_signal

SHOWN = "\x1b[?25h"
HIDDEN = "\x1b[?25l"


def test_ctrl_z_shows_the_cursor_while_an_order_is_followed(slow_broker: Broker) -> None:
    order_id = swap_once(slow_broker)
    with Terminal("order", order_id, "--follow") as terminal:
        terminal.until(f"order {order_id} is PENDING")
        with stopped(terminal):
            assert HIDDEN not in terminal.until(SHOWN)
        terminal.until(HIDDEN)
        terminal.until(f"order {order_id} is PENDING")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert terminal.shown.rfind(SHOWN) > terminal.shown.rfind(HIDDEN)


@pytest.mark.usefixtures("place")
def test_ctrl_z_shows_the_cursor_in_the_demo() -> None:
    with Terminal("demo") as terminal:
        terminal.until("━")
        with stopped(terminal):
            assert HIDDEN not in terminal.until(SHOWN)
        terminal.until(HIDDEN)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130


def test_ignored_signal_stays_ignored() -> None:
    async def run() -> bool:
        with cancel_on_signal() as scope:
            os.kill(os.getpid(), signal.SIGINT)
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.checkpoint()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return scope.cancelled_caught

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert trio.run(run) is False
    finally:
        signal.signal(signal.SIGINT, before)
