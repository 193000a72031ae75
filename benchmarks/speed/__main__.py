"""The command: measure what is asked for, print it, and write it where that is wanted."""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Final

from benchmarks.speed import machine, tables
from benchmarks.speed.figures import Report
from benchmarks.speed.processes import Bench, BrokenError

NAMES: Final = (
    "pushes", "delay", "roundtrip", "connecting", "restore", "scale", "memory", "signing",
    "startup",
)  # fmt: skip


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description="The library's speed, side by side."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (5)")
    parser.add_argument("--quick", action="store_true", help="small counts, for a try")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for figures.md and plots")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command.

    Returns:
        0 whatever the figures are; 1 if something couldn't be measured.
    """
    arguments = _parsed()
    bench = Bench(arguments.rounds, arguments.quick, _say)
    console = tables.console()
    try:
        head = machine.described(bench)
    except PackageNotFoundError as error:
        _say(f"{error.name} isn't installed: the extra `bench` brings all that is compared")
        return 1
    console.print("\n".join(head))
    reports: list[Report] = []
    broken = []
    for name in arguments.names or NAMES:
        try:
            report: Report = importlib.import_module(f"benchmarks.speed.{name}").run(bench)
        except BrokenError as error:
            broken.append(f"BROKEN: {name}: {error}")
            _say(broken[-1])
            continue
        tables.show(console, report)
        reports.append(report)
    if len(reports) > 1:
        console.rule("summary")
        goals = [goal for report in reports for goal in report.goals]
        tables.show_table(console, tables.summary(goals))
    if arguments.out:
        _write(arguments.out, head, reports)
    for line in broken:
        console.print(line)
    return 1 if broken else 0


def _write(folder: Path, head: list[str], reports: list[Report]) -> None:
    # Not before it is needed: it takes its time.
    from benchmarks.speed import plots  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.md").write_text(tables.markdown(head, reports), encoding="utf-8")
    for report in reports:
        for plot in report.plots:
            plots.draw(plot, folder)


if __name__ == "__main__":
    sys.exit(main())
