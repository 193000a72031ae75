"""The root command: its subcommands, its help, and closed pipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import click
import pytest

import trio_broker
from tests.cli.harness import COMMAND, PATIENCE, ROOT, environment, run, status
from trio_broker.cli import main
from trio_broker.cli.app import COMMANDS, app


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    assert re.findall(r"^  (\w+)  +\w", capsys.readouterr().out, re.MULTILINE) == list(COMMANDS)


def test_version_option_prints_the_package_version() -> None:
    ended = run(*COMMAND, "--version")
    assert ended.stdout == f"trio-broker {trio_broker.__version__}\n"


def test_console_script_is_the_main_function() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"trio-broker": f"{main.__module__}:{main.__name__}"}


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_extra_is_an_error_with_the_install_command(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from trio_broker.cli import main; main()"
    ended = run(sys.executable, "-c", code)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "pip install 'trio-broker[cli]'" in ended.stderr


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom trio_broker.cli import main\n"
        "slow = {'rich', 'trio_websocket', 'wsproto', 'websockets'}\n"
        f"for args in [], *([name] for name in {[*COMMANDS]}):\n"
        "    try: main([*args, '--help'])\n"
        "    except SystemExit as ended: print(args, ended.code, slow & {*sys.modules})\n"
    )
    ended = run(sys.executable, "-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
    for args in ([], *([name] for name in COMMANDS)):
        assert f"{args} 0 set()\n" in ended.stdout


@pytest.mark.parametrize("name", ["demo", "sandbox", "completion"])
def test_help_of_a_command_contains_its_listed_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(name, "--help") == 0
    assert COMMANDS[name] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "args", [["nonsense"], ["demo", "--seed", "x"], ["sandbox", "--port", "-1"]]
)
def test_invalid_arguments_exit_with_2(args: list[str]) -> None:
    assert status(*args) == 2


def test_listed_commands_exist_and_others_do_not() -> None:
    context = click.Context(app)
    names = app.list_commands(context)
    assert {"balances", "watch", "estimate", "swap", "order", "swaps", "doctor"} <= set(names)
    assert all(app.get_command(context, name) for name in names)
    assert app.get_command(context, "nonsense") is None


@pytest.mark.parametrize("where", ["make_context", "invoke"])
def test_ctrl_c_before_a_command_runs_exits_with_130(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, where, interrupted)
    assert status("balances") == 130
    assert capsys.readouterr() == ("", "")


def test_pipe_closed_during_output_shows_no_traceback() -> None:
    for args in (("demo",), ("demo", "--json")):
        with subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, *args],
            env=environment(PYTHONUNBUFFERED="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(PATIENCE) == 1


@pytest.mark.parametrize(
    "args",
    [["--help"], ["demo"], ["demo", "--json"], ["sandbox"], ["completion", "fish"]],
    ids=" ".join,
)
def test_pipe_closed_before_output_shows_no_traceback(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        ended = subprocess.run(  # noqa: S603 - our own command
            [*COMMAND, *args],
            env=environment(),
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )
    assert (ended.returncode, ended.stderr) == (1, b"")
