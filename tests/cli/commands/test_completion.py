"""``trio-broker completion``: the scripts and their completions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.harness import PATIENCE, environment, run, status

Offered = Callable[..., str]


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert status("completion", shell) == 0
    return capsys.readouterr().out


def output_of(code: str, **variables: str) -> str:
    """Run Python code, and return its output."""
    ended = run(sys.executable, "-c", code, **variables)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Offered:
    """A function that returns the completions of the last of some words."""

    def offered(shell: str, *words: str) -> str:
        typed = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        if shell == "fish":
            typed["COMP_CWORD"] = words[-1]
        monkeypatch.setenv("_TRIO_BROKER_COMPLETE", f"{shell}_complete")
        for name, text in typed.items():
            monkeypatch.setenv(name, text)
        assert status() == 0
        printed, errors = capsys.readouterr()
        assert errors == ""
        return printed

    return offered


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "complete -o nosort -F _trio_broker_completion trio-broker"),
        ("zsh", "#compdef trio-broker"),
        ("fish", "complete --no-files --command trio-broker"),
    ],
)
def test_each_shell_has_a_script(shell: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = script(shell, capsys)
    assert line in printed
    # The program checks this variable; without it, the script would have no effect.
    assert f"_TRIO_BROKER_COMPLETE={shell}_complete" in printed


def test_other_shells_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("completion", "tcsh") == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_name_of_a_command_is_completed(shell: str, offered: Offered) -> None:
    lines = offered(shell, "trio-broker", "ba").split()
    assert "balances" in " ".join(lines)
    assert "sandbox" not in " ".join(lines)


def test_all_names_are_offered_and_no_command_is_imported() -> None:
    code = (
        "import sys\nfrom trio_broker.cli import main\n"
        "try: main()\nfinally: assert 'trio_broker.cli.commands.balances' not in sys.modules"
    )
    environ = {"COMP_WORDS": "trio-broker ", "COMP_CWORD": "1"}
    printed = output_of(code, _TRIO_BROKER_COMPLETE="bash_complete", **environ)
    for name in ("balances", "order", "demo", "sandbox", "completion"):
        assert f"plain,{name}\n" in printed


def test_options_and_their_values_are_completed(offered: Offered) -> None:
    assert "plain,--version" in offered("bash", "trio-broker", "--v")
    assert "plain,--latency" in offered("bash", "trio-broker", "sandbox", "--la")
    assert offered("bash", "trio-broker", "sandbox", "--fault", "refuse-c").split() == [
        "plain,refuse-connections",
        "plain,refuse-channel=",
    ]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash isn't installed")
def test_script_completes_commands_in_bash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = tmp_path / "trio-broker"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trio_broker.cli "$@"\n')
    command.chmod(0o755)
    lines = (
        script("bash", capsys),
        "COMP_WORDS=(trio-broker est) COMP_CWORD=1",
        "_trio_broker_completion trio-broker",
        'echo "${COMPREPLY[@]}"',
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(  # noqa: S603 - our own script
        ["bash", "--norc", "-c", "\n".join(lines)],  # noqa: S607 - any bash
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    # The error of `compopt`, which fails outside of a completion, is ignored.
    assert ended.stdout == "estimate\n"
