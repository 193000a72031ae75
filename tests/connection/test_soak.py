"""The soak test for a few seconds: it runs, and it reports failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@pytest.mark.parametrize("broken", [False, True])
def test_soak_reports_whether_every_stream_converged(*, broken: bool) -> None:
    code = "import runpy;"
    if broken:
        # No stream gets a push or a snapshot any more.
        code += "from trio_broker._streams.buffer import MessageBuffer as Buffer;"
        code += "Buffer.put = Buffer.put_all = lambda *_: None;"
        code += "m = runpy.run_path('benchmarks/soak.py');"
        code += "m['main'].__globals__['PATIENCE'] = 1.0; m['main']()"
    else:
        code += "runpy.run_path('benchmarks/soak.py', run_name='__main__')"
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code, "--clients=2", "--subscriptions=2", "--seconds=2", "--seed=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if broken:
        assert (ended.returncode, "WRONG: " in ended.stdout) == (1, True), ended.stderr
    else:
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "every stream ended as the ledger" in ended.stdout
