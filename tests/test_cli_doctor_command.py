"""``trio-broker doctor``: what it prints, and the command as a process."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
import rich.console
import trio

from tests.doctoring import KEY, NAMES, SECRET, VARIABLES, closed_port
from tests.rawserver import receive_request, serve_raw, wait_gone
from trio_broker.cli import doctor, main, reach
from trio_broker.cli.checkup import Checked, Finding, failed, ok, skipped
from trio_broker.sandbox import open_sandbox

ROOT: Final = Path(__file__).parents[1]
COMMAND: Final = (sys.executable, "-m", "trio_broker.cli")
# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE: Final = 30.0


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # where there is no .env


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_API_KEY", KEY)
    monkeypatch.setenv("BROKER_SECRET_KEY", SECRET)


# --- What is printed ------------------------------------------------------------------------


def printed(checked: Checked, width: int) -> list[str]:
    screen = rich.console.Console(file=io.StringIO(), width=width, highlight=False)
    screen.print(doctor.row(checked, is_narrow=width < 64))
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


LONG_STORY: Final = Checked(
    step="tcp", finding=failed("port 7 [red]is \x1b[2Jclosed " + "x" * 40, "open it"), seconds=0.25
)


def test_a_step_has_one_line() -> None:
    assert printed(LONG_STORY, 1000) == [
        f"failed   tcp              250 ms  port 7 [red]is \\x1b[2Jclosed {'x' * 40}; open it"
    ]
    assert printed(Checked(step="clock", finding=skipped("tcp failed")), 1000) == [
        "skipped  clock                    tcp failed"
    ]


@pytest.mark.parametrize("width", [80, 64, 63, 40])
def test_a_narrow_screen_loses_nothing(width: int) -> None:
    lines = printed(LONG_STORY, width)
    assert max(map(len, lines)) <= width
    shown = "".join("".join(lines).split())
    assert shown == "".join(printed(LONG_STORY, 1000)[0].split())


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.0, "0 ms"), (0.25, "250 ms"), (2.26, "2.3 s")]
)
def test_times_are_for_people(seconds: float | None, text: str) -> None:
    assert doctor.lasted(seconds) == text


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        ([ok("fine"), skipped("not there")], "All is well."),
        ([ok("fine", ["see to it"]), ok("fine", ["to it"])], "It works, but see to: 0, 1."),
        ([ok("", ["see to it"]), failed("no", None), failed("", None)], "Failed: 1, 2."),
    ],
)
def test_the_last_line_says_how_it_went(findings: list[Finding], text: str) -> None:
    taken = [Checked(step=str(n), finding=each) for n, each in enumerate(findings)]
    assert doctor.summary(taken) == text


# --- The command ----------------------------------------------------------------------------


def command_status(*args: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *args])
    return ended.value.code


def environment(**more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {
        **plain, "PYTHONPATH": str(ROOT), "BROKER_API_KEY": KEY, "BROKER_SECRET_KEY": SECRET,
        **more,
    }  # fmt: skip


async def run(*args: str, **environ: str) -> tuple[int, str, str]:
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [*COMMAND, "doctor", *args],
            env=environment(**environ),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    out, err = ended.stdout.decode(), ended.stderr.decode()
    assert SECRET not in out + err
    assert KEY not in out + err
    return ended.returncode, out, err


async def test_through_a_pipe_each_step_has_a_line() -> None:
    async with open_sandbox() as sandbox:
        code, out, err = await run("--url", sandbox.url)
    assert code == 0
    # A busy machine may be slow in earnest.
    assert re.fullmatch(r"(All is well|It works, but see to: .+)\.\n", err)
    assert "\x1b" not in out
    lines = [line.split()[:2] for line in out.splitlines()]
    assert [name for _, name in lines] == list(NAMES)
    assert {result for result, _ in lines} - {"slow"} == {"ok", "skipped"}


def test_json_has_an_object_a_step(keys: None, capsys: pytest.CaptureFixture[str]) -> None:
    port = closed_port()
    assert command_status("--json", "--url", f"ws://127.0.0.1:{port}") == 4
    shown = capsys.readouterr()
    assert shown.err == ""
    objects = [json.loads(line) for line in shown.out.splitlines()]
    assert [each["step"] for each in objects] == list(NAMES)
    for each in objects:
        assert list(each) == ["step", "result", "detail", "advice", "seconds"]
    by_step = {each.pop("step"): each for each in objects}
    assert by_step["dns"]["advice"] is None
    assert 0 < by_step["tcp"].pop("seconds") < PATIENCE
    assert by_step["tcp"] == {
        "result": "failed",
        "detail": f"port {port} at 127.0.0.1: Connection refused",
        "advice": reach._IS_IT_UP,
    }
    assert by_step["latency"] == {
        "result": "skipped",
        "detail": "tcp failed",
        "advice": None,
        "seconds": None,
    }


def test_without_settings_it_ends_with_2_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_status() == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("failed   configuration ")
    assert shown.err == "Failed: configuration.\n"


def test_other_commands_take_the_same_for_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["balances"])
    assert ended.value.code == 2
    assert "BROKER_API_KEY is not set; set it in" in " ".join(capsys.readouterr().err.split())


def test_only_debug_shows_a_traceback(keys: None, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"ws://user:{SECRET}@127.0.0.1"
    assert command_status("--url", url) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert command_status("--url", url, "--debug") == 2
    shown = capsys.readouterr()
    assert "Traceback" in shown.err
    assert SECRET not in shown.out + shown.err
    assert command_status("--url", f"ws://127.0.0.1:{closed_port()}", "--debug") == 4
    assert "ConnectionRefusedError" in capsys.readouterr().err


def test_quiet_leaves_the_last_line_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_status("--quiet") == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_none_is_refused(
    timeout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_status("--timeout", timeout) == 2
    assert "--timeout" in capsys.readouterr().err


def test_the_help_tells_of_every_step_and_of_what_is_slow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_status("--help") == 0
    shown = capsys.readouterr().out
    for step in doctor.STEPS:
        assert re.search(rf"^  {step.name} +\w", shown, re.MULTILINE)
    for text in ("14 days", "1 s", "0.5 s", "3 s", "5 s", "30 s"):
        assert text in " ".join(shown.split())


async def test_help_waits_for_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys\nfrom trio_broker.cli import main\n"
        "try: main(['doctor', '--help'])\n"
        "finally: assert not {'rich', 'h11', 'dotenv'} & set(sys.modules)"
    )
    ended = await trio.run_process(
        [sys.executable, "-c", code], env=environment(), capture_stdout=True
    )
    assert ended.returncode == 0


@asynccontextmanager
async def stalled(*args: str) -> AsyncIterator[trio.Process]:
    """The command in a process of its own, whose handshake isn't answered."""
    asked = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        asked.set()
        await wait_gone(stream)

    async with serve_raw(handler) as port:
        process = await trio.lowlevel.open_process(
            [*COMMAND, "doctor", "--timeout", "60", "--url", f"ws://127.0.0.1:{port}", *args],
            env=environment(PYTHONUNBUFFERED="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            with trio.fail_after(PATIENCE):
                await asked.wait()
                yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                await pipe.aclose()


async def test_ctrl_c_ends_it_without_a_traceback() -> None:
    async with stalled() as process:
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.receive_some()
        assert process.stdout is not None
        # What was found before was shown at once.
        assert b"127.0.0.1 answered" in await process.stdout.receive_some()


async def test_a_reader_that_has_read_enough_sees_no_traceback() -> None:
    async with open_sandbox() as sandbox:
        for args in ((), ("--json",)):
            process = await trio.lowlevel.open_process(
                [*COMMAND, "doctor", "--quiet", "--url", sandbox.url, *args],
                env=environment(PYTHONUNBUFFERED="1"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdout is not None
            assert process.stderr is not None
            with trio.fail_after(PATIENCE):
                await process.stdout.aclose()
                complaint = b""
                while chunk := await process.stderr.receive_some():
                    complaint += chunk
                assert complaint == b""
                assert await process.wait() == 1
            await process.stderr.aclose()


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}], ids=["coloured", "NO_COLOR"])
def test_on_a_terminal_results_are_coloured(environ: dict[str, str]) -> None:
    terminal, inside = pty.openpty()
    shown = b""
    url = f"ws://127.0.0.1:{closed_port()}"
    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, "doctor", "--url", url],
        env=environment(TERM="xterm-256color", **environ),
        stdout=inside,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(inside)
        with suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(terminal, 65536):
                shown += chunk
        assert process.wait(PATIENCE) == 4
    os.close(terminal)
    assert (b"\x1b[1;31mfailed" in shown) == (not environ)
    assert b"Connection" in shown
