"""``trio-broker doctor``: its output and exit status."""

from __future__ import annotations

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

import pytest
import trio

from tests.cli import harness
from tests.cli.doctor.harness import KEY, NAMES, SECRET, closed_port
from tests.cli.harness import COMMAND, PATIENCE
from tests.transports.raw_server import receive_request, serve_raw, wait_gone
from trio_broker.cli.doctor.checklist import STEPS
from trio_broker.cli.doctor.probe import UNREACHABLE_ADVICE
from trio_broker.sandbox import open_sandbox


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # without a .env file


def status(*args: str) -> object:
    return harness.status("doctor", *args)


def environment(**more: str) -> dict[str, str]:
    return harness.environment(BROKER_API_KEY=KEY, BROKER_SECRET_KEY=SECRET, **more)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_API_KEY", KEY)
    monkeypatch.setenv("BROKER_SECRET_KEY", SECRET)


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


async def test_each_step_has_a_line_in_a_pipe() -> None:
    async with open_sandbox() as sandbox:
        code, out, err = await run("--url", sandbox.url)
    assert code == 0
    # On a busy machine, steps may be slow.
    assert re.fullmatch(r"(Everything works|It works, with warnings: .+)\.\n", err)
    assert "\x1b" not in out
    lines = [line.split()[:2] for line in out.splitlines()]
    assert [name for _, name in lines] == list(NAMES)
    assert {result for result, _ in lines} - {"slow"} == {"ok", "skipped"}


def test_json_has_an_object_for_each_step(keys: None, capsys: pytest.CaptureFixture[str]) -> None:
    port = closed_port()
    assert status("--json", "--url", f"ws://127.0.0.1:{port}") == 4
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
        "advice": UNREACHABLE_ADVICE,
    }
    assert by_step["latency"] == {
        "result": "skipped",
        "detail": "tcp failed",
        "advice": None,
        "seconds": None,
    }


def test_missing_settings_exit_with_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status() == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("failed   configuration ")
    assert shown.err == "Failed: configuration.\n"


def test_missing_settings_are_usage_errors_of_other_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert harness.status("balances") == 2
    assert "BROKER_API_KEY is not set; set it in" in " ".join(capsys.readouterr().err.split())


def test_only_debug_shows_a_traceback(keys: None, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"ws://user:{SECRET}@127.0.0.1"
    assert status("--url", url) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert status("--url", url, "--debug") == 2
    shown = capsys.readouterr()
    assert "Traceback" in shown.err
    assert SECRET not in shown.out + shown.err
    assert status("--url", f"ws://127.0.0.1:{closed_port()}", "--debug") == 4
    assert "ConnectionRefusedError" in capsys.readouterr().err


def test_quiet_omits_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--quiet") == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_invalid_timeout_is_refused(timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--timeout", timeout) == 2
    assert "--timeout" in capsys.readouterr().err


def test_help_lists_every_step_and_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("--help") == 0
    shown = capsys.readouterr().out
    for step in STEPS:
        assert re.search(rf"^  {step.name} +\w", shown, re.MULTILINE)
    for text in ("14 days", "1 s", "0.5 s", "3 s", "5 s", "30 s"):
        assert text in " ".join(shown.split())


async def test_help_imports_nothing_slow() -> None:
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
    """Run the command in a subprocess with a server that doesn't answer the handshake."""
    requested = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        requested.set()
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
                await requested.wait()
                yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                await pipe.aclose()


async def test_ctrl_c_shows_no_traceback() -> None:
    async with stalled() as process:
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.receive_some()
        assert process.stdout is not None
        # The results of earlier steps were printed immediately.
        assert b"127.0.0.1 answered" in await process.stdout.receive_some()


async def test_closed_pipe_shows_no_traceback() -> None:
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
                errors = b""
                while chunk := await process.stderr.receive_some():
                    errors += chunk
                assert errors == b""
                assert await process.wait() == 1
            await process.stderr.aclose()


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}], ids=["coloured", "NO_COLOR"])
def test_results_are_coloured_on_a_terminal(environ: dict[str, str]) -> None:
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
        with suppress(OSError):  # Linux raises it when the other end is closed
            while chunk := os.read(terminal, 65536):
                shown += chunk
        assert process.wait(PATIENCE) == 4
    os.close(terminal)
    assert (b"\x1b[1;31mfailed" in shown) == (not environ)
    assert b"Connection" in shown
