"""The crash test with a few kills: it runs, and it reports failures. The cost of a journal.

Both run in processes of their own, which start others. What a test breaks is broken in all of them,
by a `sitecustomize`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0

# Swaps are sent without an intent in the journal.
NO_INTENT = """
import trio
from trio_broker import SwapJournal

async def intend(self, intent, attempt):
    await trio.lowlevel.checkpoint()

SwapJournal.intend = intend
"""
# A swap that is about to be sent is recorded as not sent, and nothing else.
NOT_SENT = """
from trio_broker import SwapJournal, SwapOutcome

really_intend, really_note = SwapJournal.intend, SwapJournal.note

async def intend(self, intent, attempt):
    await really_intend(self, intent, attempt)
    really_note(self, intent.client_order_id, attempt, SwapOutcome.NOT_SENT)

SwapJournal.intend = intend
SwapJournal.note = lambda *_, **__: None
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


def test_swaps_of_a_killed_process_agree_with_the_ledger(
    tmp_path: Path,
) -> None:
    ended = run(
        "benchmarks/crashes.py", "--kills=2", "--damage=3", "--seed=51", f"--path={tmp_path}"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "everybody agrees with the ledger" in ended.stdout
    assert ended.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [(NO_INTENT, "the journal doesn't have it"), (NOT_SENT, "not sent as None, the ledger ord_")],
    ids=["no intent", "not sent"],
)
def test_disagreement_with_the_ledger_is_reported(tmp_path: Path, broken: str, said: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(broken, encoding="utf-8")
    ended = run("benchmarks/crashes.py", "--kills=1", "--seed=51", path=tmp_path)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert said in ended.stdout


def test_cost_of_a_journal_is_printed_as_a_ratio(tmp_path: Path) -> None:
    ended = run("benchmarks/journal.py", "--count=2", f"--path={tmp_path}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"the journal is in {tmp_path} (" in ended.stdout
    for name in ("alone", "in a row", "eight tasks"):
        (line,) = (line for line in ended.stdout.splitlines() if line.strip().startswith(name))
        without, with_it, ratio = map(float, line.removeprefix(f"  {name}").split()[:3])
        assert min(without, with_it, ratio) > 0
    assert list(tmp_path.iterdir()) == []
