"""What an import takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from typing import Final

import attrs

from benchmarks.speed.figures import Report, Table, at_most, ratio, spread
from benchmarks.speed.processes import ROOT, Bench, cores

ABOUT: Final = """
Each import in a fresh process, in turn, {count} times, from compiled modules. *Import* is the time
of that statement, *process* that from the start of Python to its end, as whoever started it sees
it. A transport's library is imported when the first client is made.
"""

NOTHING: Final = "pass"
NEEDED: Final = "import trio, trio_websocket, msgspec"
OURS: Final = "import trio_broker"
USED: Final = f"{OURS}; trio_broker.BrokerWSClient('k', 's', 'wss://broker.example')"

_CODE: Final = """
import os, time
if {core} is not None:
    os.sched_setaffinity(0, {{{core}}})
began = time.perf_counter()
{statement}
print(time.perf_counter() - began)
"""


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    count = 5 if bench.quick else max(20, bench.rounds)
    statements = (NOTHING, NEEDED, OURS, USED)
    for statement in statements:
        _run(statement)  # so that everything is compiled, and in the system's cache
    runs = attrs.evolve(bench, rounds=count).in_turn(
        {statement: partial(_run, statement) for statement in statements}
    )
    imports = {name: [one for one, _ in measured] for name, measured in runs.items()}
    wholes = {name: [one for _, one in measured] for name, measured in runs.items()}
    rows = [
        (
            name,
            spread(imports[name], 1e3),
            spread(wholes[name], 1e3),
            f"{ratio(imports[name], imports[NEEDED]):.2f}",
            f"{ratio(wholes[name], wholes[NEEDED]):.2f}",
        )
        for name in statements
    ]
    columns = ("", "import, ms", "process, ms", "import to the needed", "process")
    table = Table("Imports: median (least to most)", columns, rows)
    goal = at_most(f"`{OURS}`, to `{NEEDED}`", 1.3, ratio(imports[OURS], imports[NEEDED]))
    return Report("startup", ABOUT.format(count=count), [table], [goal])


def _run(statement: str) -> tuple[float, float]:
    """The seconds of an import, and of the whole process with it."""
    _, core = cores()
    code = _CODE.format(core=core, statement=statement)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    return float(ended.stdout), time.perf_counter() - began
