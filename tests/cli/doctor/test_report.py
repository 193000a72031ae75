"""Printing the results of the doctor's steps."""

from __future__ import annotations

import io
from typing import Final

import pytest
import rich.console

from trio_broker.cli.doctor import report
from trio_broker.cli.doctor.steps import Finding, StepResult, failed, ok, skipped


def printed(result: StepResult, width: int) -> list[str]:
    screen = rich.console.Console(file=io.StringIO(), width=width, highlight=False)
    screen.print(report.row(result, is_narrow=width < 64))
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


LONG_RESULT: Final = StepResult(
    step="tcp", finding=failed("port 7 [red]is \x1b[2Jclosed " + "x" * 40, "open it"), seconds=0.25
)


def test_step_is_one_line_on_a_wide_screen() -> None:
    assert printed(LONG_RESULT, 1000) == [
        f"failed   tcp              250 ms  port 7 [red]is \\x1b[2Jclosed {'x' * 40}; open it"
    ]
    assert printed(StepResult(step="clock", finding=skipped("tcp failed")), 1000) == [
        "skipped  clock                    tcp failed"
    ]


@pytest.mark.parametrize("width", [80, 64, 63, 40])
def test_narrow_screen_shows_everything(width: int) -> None:
    lines = printed(LONG_RESULT, width)
    assert max(map(len, lines)) <= width
    shown = "".join("".join(lines).split())
    assert shown == "".join(printed(LONG_RESULT, 1000)[0].split())


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.0, "0 ms"), (0.25, "250 ms"), (2.26, "2.3 s")]
)
def test_duration_is_formatted(seconds: float | None, text: str) -> None:
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        ([ok("fine"), skipped("not there")], "Everything works."),
        ([ok("fine", ["fix it"]), ok("fine", ["and this"])], "It works, with warnings: 0, 1."),
        ([ok("", ["fix it"]), failed("no", None), failed("", None)], "Failed: 1, 2."),
    ],
)
def test_summary_names_failures_or_warnings(findings: list[Finding], text: str) -> None:
    results = [StepResult(step=str(n), finding=each) for n, each in enumerate(findings)]
    assert report.summary(results) == text
