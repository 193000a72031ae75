"""Ctrl-Z, and what comes between a question and its answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.clibroker import IMPATIENT, Broker, Terminal
from tests.test_cli_order import swapped

SHOWN = "\x1b[?25h"
HIDDEN = "\x1b[?25l"


@contextmanager
def stopped(terminal: Terminal) -> Iterator[None]:
    """A process that Ctrl-Z has stopped, until `fg`."""
    terminal.shown = ""
    terminal.process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
    yield
    terminal.shown = ""
    terminal.process.send_signal(signal.SIGCONT)


def test_ctrl_z_gives_the_cursor_back_while_an_order_is_followed(slow_broker: Broker) -> None:
    order_id = swapped(slow_broker)
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
def test_ctrl_z_gives_the_cursor_back_in_the_demo() -> None:
    with Terminal("demo") as terminal:
        terminal.until("━")
        with stopped(terminal):
            assert HIDDEN not in terminal.until(SHOWN)
        terminal.until(HIDDEN)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130


def test_a_question_is_asked_again_after_ctrl_z(broker: Broker) -> None:
    with Terminal("swap", "1", "ETH", "USDT") as terminal:
        terminal.until("[y/N]: ")
        with stopped(terminal):
            pass
        terminal.until("SANDBOX? [y/N]: ")
        terminal.type("n\n")
        assert terminal.end() == 1
        assert "you didn't say yes; nothing was sent" in terminal.shown


@pytest.mark.parametrize("answer", ["y", "n"])
def test_what_happens_to_the_connection_is_told_before_the_answer(
    broker: Broker, answer: str
) -> None:
    with Terminal("swap", "1", "ETH", "USDT", columns=200) as terminal:
        terminal.until("[y/N]: ")
        broker.soon(broker.sandbox.faults.kill)
        terminal.until("\r\nNo connection: ")
        terminal.until("The next try is in ")
        broker.revive()
        told, _, terminal.shown = terminal.until("Connected again.\r\n").rpartition("again.\r\n")
        assert told.count("No connection: ") == 1
        assert terminal.until("[y/N]: ").startswith("Swap 1 ETH for about ")
        terminal.type(f"{answer}\n")
        assert terminal.end() == (0 if answer == "y" else 1)


def test_the_end_of_the_connection_is_told_before_the_answer(broker: Broker) -> None:
    with Terminal("swap", "1", "ETH", "USDT", columns=200, command=IMPATIENT) as terminal:
        terminal.until("[y/N]: ")
        broker.soon(broker.sandbox.faults.kill)
        _, _, terminal.shown = terminal.until("No connection: ").rpartition("No connection: ")
        terminal.until("SANDBOX? [y/N]: ")
        terminal.type("y\n")
        assert terminal.end() == 4
