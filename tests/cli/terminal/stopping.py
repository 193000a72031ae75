"""Stopping a process like Ctrl-Z."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.harness import Terminal


@contextmanager
def stopped(terminal: Terminal) -> Iterator[None]:
    """Stop a process like Ctrl-Z, and continue it after the block like `fg`."""
    terminal.shown = ""
    terminal.process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
    yield
    terminal.shown = ""
    terminal.process.send_signal(signal.SIGCONT)
