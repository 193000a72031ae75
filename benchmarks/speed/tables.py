"""Reports on the terminal, and as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import rich.table
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.speed.figures import Goal, Report, Table

_WIDTH: Final = 150  # where there is no terminal
_REACHED: Final = {True: "yes", False: "no", None: "not measured"}


def console() -> Console:
    """Where reports are printed."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


def show(to: Console, report: Report) -> None:
    """Print a report.

    Args:
        to: Where.
        report: The report.
    """
    to.rule(report.name)
    to.print(Markdown(report.about))
    for table in [*report.tables, *_goals_tables(report.goals)]:
        show_table(to, table)


def show_table(to: Console, table: Table) -> None:
    """Print a table.

    Args:
        to: Where.
        table: The table.
    """
    drawn = rich.table.Table(title=table.title, title_justify="left", title_style="bold")
    for name in table.columns:
        drawn.add_column(name, justify="right" if name else "left")
    for row in table.rows:
        drawn.add_row(*row)
    to.print()
    to.print(drawn)


def summary(goals: Sequence[Goal]) -> Table:
    """All goals in one table.

    Args:
        goals: The goals.
    """
    rows = [(goal.what, goal.wanted, goal.measured, _REACHED[goal.reached]) for goal in goals]
    return Table("What is wanted", ("", "wanted", "measured", "reached"), rows)


def _goals_tables(goals: Sequence[Goal]) -> list[Table]:
    return [summary(goals)] if goals else []


def markdown(head: Sequence[str], reports: Sequence[Report]) -> str:
    """A document with all figures.

    Args:
        head: What tells of the machine.
        reports: What was found.
    """
    parts = ["# Figures", "\n".join(f"- {line}" for line in head)]
    goals = [goal for report in reports for goal in report.goals]
    parts += [_markdown_table(table) for table in _goals_tables(goals)]
    for report in reports:
        parts += [f"## {report.name}", report.about.strip()]
        parts += [f"![{plot.title}]({plot.name}.svg)" for plot in report.plots]
        parts += [_markdown_table(table) for table in report.tables]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rules = ["---" if not name else "---:" for name in table.columns]
    lines = [" | ".join(cells) for cells in (table.columns, rules, *table.rows)]
    return "\n".join([f"**{table.title}**", "", *(f"| {line} |" for line in lines)])
