"""Printing the results of the doctor's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from trio_broker.cli.doctor.checklist import STEPS
from trio_broker.cli.doctor.steps import Outcome, StepResult
from trio_broker.cli.terminal.output import (
    Output,
    console,
    print_json,
    print_traceback,
    printable,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES: Final[Mapping[Outcome, str]] = {
    "ok": "green",
    "slow": "yellow",
    "skipped": "dim",
    "failed": "bold red",
}
_RESULT_WIDTH: Final = max(map(len, _STYLES))
_NAME_WIDTH: Final = max(len(step.name) for step in STEPS)
_NARROW: Final = 64  # columns


def printer(output: Output) -> Callable[[StepResult], None]:
    """Return a function that prints the result of a step."""
    screen = None if output.as_json else console()

    def show(result: StepResult) -> None:
        if screen is None:
            print_json(**_members(result))
        else:
            screen.print(row(result, is_narrow=screen.width < _NARROW))
        if output.debug and result.finding.error is not None:
            print_traceback(result.finding.error)

    return show


def summary(results: Sequence[StepResult]) -> str:
    """Summarize all results in one line."""
    failures = [each.step for each in results if each.finding.result == "failed"]
    warnings = [each.step for each in results if each.finding.result == "slow"]
    if failures:
        return f"Failed: {', '.join(failures)}."
    return f"It works, with warnings: {', '.join(warnings)}." if warnings else "Everything works."


def _members(result: StepResult) -> dict[str, object]:
    seconds = result.seconds
    return {
        "step": result.step,
        "result": result.finding.result,
        "detail": result.finding.detail,
        "advice": result.finding.advice,
        "seconds": None if seconds is None else round(seconds, 6),
    }


def row(result: StepResult, *, is_narrow: bool) -> RenderableType:
    """Return a result as a row; on a narrow screen, the text is below the other columns."""
    from rich.console import Group  # noqa: PLC0415 - `--help` doesn't need it
    from rich.padding import Padding  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    finding = result.finding
    text = Text(printable(finding.detail))
    if finding.advice:
        text.append(f"; {printable(finding.advice)}", style="bold")
    head = (
        Text(finding.result, style=_STYLES[finding.result]),
        Text(result.step),
        Text(duration(result.seconds)),
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=_RESULT_WIDTH, no_wrap=True)
    grid.add_column(width=_NAME_WIDTH, no_wrap=True)
    grid.add_column(width=7, no_wrap=True, justify="right")
    if is_narrow:
        grid.add_row(*head)
        return Group(grid, Padding(text, (0, 0, 0, 2)))
    grid.add_column(overflow="fold")
    grid.add_row(*head, text)
    return grid


def duration(seconds: float | None) -> str:
    """Format a duration; None is empty."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
