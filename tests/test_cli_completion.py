"""``trio-broker completion``: the scripts, and what they make a shell offer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from trio_broker.cli import main

ROOT = Path(__file__).parents[1]
PATIENCE = 30.0


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    assert ended.value.code == 0
    return capsys.readouterr().out


def run(code: str, **environ: str) -> str:
    """What a command prints that runs as a shell's completion does."""
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def offered(shell: str, *words: str) -> str:
    """What is offered for the last word; every word before it is typed."""
    typed: Mapping[str, str] = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        typed = {"COMP_WORDS": " ".join(words), "COMP_CWORD": words[-1]}
    code = "from trio_broker.cli import main; main()"
    return run(code, _TRIO_BROKER_COMPLETE=f"{shell}_complete", **typed)


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
    # What the program looks for when it begins; without it, the script would call it in vain.
    assert f"_TRIO_BROKER_COMPLETE={shell}_complete" in printed


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_commands_name_is_completed(shell: str) -> None:
    lines = offered(shell, "trio-broker", "ba").split()
    assert "balances" in " ".join(lines)
    assert "sandbox" not in " ".join(lines)


def test_all_names_are_offered_at_first_and_none_is_imported() -> None:
    code = (
        "import sys\nfrom trio_broker.cli import main\n"
        "try: main()\nfinally: assert 'trio_broker.cli.balances' not in sys.modules"
    )
    environ = {"COMP_WORDS": "trio-broker ", "COMP_CWORD": "1"}
    printed = run(code, _TRIO_BROKER_COMPLETE="bash_complete", **environ)
    for name in ("balances", "order", "demo", "sandbox", "completion"):
        assert f"plain,{name}\n" in printed


def test_options_and_their_values_are_completed() -> None:
    assert "plain,--version" in offered("bash", "trio-broker", "--v")
    assert "plain,--latency" in offered("bash", "trio-broker", "sandbox", "--la")
    assert offered("bash", "trio-broker", "sandbox", "--fault", "refuse-c").split() == [
        "plain,refuse-connections",
        "plain,refuse-channel=",
    ]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        ["bash", "--norc", "-c", "\n".join(lines)],  # noqa: S607 - whichever there is
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    # Outside of a completion, bash says that `compopt` is for one; that isn't looked at.
    assert ended.stdout == "estimate\n"
