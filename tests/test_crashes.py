"""The crash test, for a few kills: that it runs, and that it can fail. And what a journal costs.

Both run in processes of their own, which start others. What a test breaks is broken in all of them,
by a `sitecustomize`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE = 120.0

# Swaps leave that aren't written down.
NO_INTENT = """
import trio
from trio_broker import SwapJournal

async def intend(self, *arguments, **values):
    await trio.lowlevel.checkpoint()

SwapJournal.intend = intend
"""
# What may leave now is said not to have.
NOT_SENT = """
from trio_broker import SwapJournal, SwapOutcome

really_intend = SwapJournal.intend

async def intend(self, client_order_id, attempt, **values):
    await really_intend(self, client_order_id, attempt, **values)
    self.note(client_order_id, attempt, SwapOutcome.NOT_SENT)

SwapJournal.intend = intend
"""


def run(*command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if path is None else {"PYTHONPATH": str(path)})}
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_whatever_moment_a_process_is_killed_at_its_swaps_agree_with_the_ledger(
    tmp_path: Path,
) -> None:
    ended = run("benchmarks/crashes.py", "--kills=3", "--seed=51", f"--path={tmp_path}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "everybody agrees with the ledger" in ended.stdout
    assert ended.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [(NO_INTENT, "the journal doesn't have it"), (NOT_SENT, "not sent as None, the ledger ord_")],
    ids=["no intent", "not sent"],
)
def test_it_tells_when_anything_disagrees(tmp_path: Path, broken: str, said: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(broken, encoding="utf-8")
    ended = run("benchmarks/crashes.py", "--kills=2", "--seed=51", path=tmp_path)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert said in ended.stdout


def test_the_cost_of_a_journal_is_told_as_a_ratio(tmp_path: Path) -> None:
    ended = run("benchmarks/journal.py", "--count=2", f"--path={tmp_path}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"the journal is in {tmp_path} (" in ended.stdout
    for name in ("alone", "in a row", "eight tasks"):
        (line,) = (line for line in ended.stdout.splitlines() if line.strip().startswith(name))
        without, with_it, ratio = map(float, line.removeprefix(f"  {name}").split()[:3])
        assert min(without, with_it, ratio) > 0
    assert list(tmp_path.iterdir()) == []
