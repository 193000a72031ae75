"""Asking for confirmation, and events before the answer."""

from __future__ import annotations

import io
import sys

import pytest
import trio

from tests.broker_thread import Broker
from tests.cli.harness import WITHOUT_RECONNECTING, Terminal
from tests.cli.terminal.stopping import stopped
from trio_broker.cli.terminal import prompt


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes\n", True), ("y\n", True), ("n\n", False), ("yy\n", False), ("", False)],
)
def test_answer_is_read_if_the_terminal_cannot_be_polled(
    answer: str,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def cannot(_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("not a socket")

    monkeypatch.setattr(trio.lowlevel, "wait_readable", cannot)
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert trio.run(prompt.confirm, "Really?\x1b[2J") is expected
    assert capsys.readouterr().err.startswith("Really?\\x1b[2J [y/N]: ")


def test_question_is_repeated_after_ctrl_z(broker: Broker) -> None:
    # In its own process group, because SIGTSTP has no effect in an orphaned group, as of a test run
    # in the background.
    with Terminal("swap", "1", "ETH", "USDT", process_group=0) as terminal:
        terminal.until("[y/N]: ")
        with stopped(terminal):
            pass
        terminal.until("SANDBOX? [y/N]: ")
        terminal.type("n\n")
        assert terminal.end() == 1
        assert "not confirmed; nothing was sent" in terminal.shown


@pytest.mark.parametrize("answer", ["y", "n"])
def test_outage_is_shown_before_the_answer(broker: Broker, answer: str) -> None:
    with Terminal("swap", "1", "ETH", "USDT", columns=200) as terminal:
        terminal.until("[y/N]: ")
        broker.soon(broker.sandbox.faults.kill)
        terminal.until("\r\nNo connection: ")
        terminal.until("Retrying in ")
        broker.revive()
        shown, _, terminal.shown = terminal.until("Connected again.\r\n").rpartition("again.\r\n")
        assert shown.count("No connection: ") == 1
        assert terminal.until("[y/N]: ").startswith("Swap 1 ETH for about ")
        terminal.type(f"{answer}\n")
        assert terminal.end() == (0 if answer == "y" else 1)


def test_final_loss_of_the_connection_is_shown_before_the_answer(broker: Broker) -> None:
    with Terminal(
        "swap", "1", "ETH", "USDT", columns=200, command=WITHOUT_RECONNECTING
    ) as terminal:
        terminal.until("[y/N]: ")
        broker.soon(broker.sandbox.faults.kill)
        _, _, terminal.shown = terminal.until("No connection: ").rpartition("No connection: ")
        terminal.until("SANDBOX? [y/N]: ")
        terminal.type("y\n")
        assert terminal.end() == 4
