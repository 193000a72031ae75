"""``trio-broker watch``: its output in pipes and on terminals, and its exit status."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.harness import COMMAND, PATIENCE, environment, run, status
from trio_broker.sandbox import Sandbox, open_sandbox


def variables(sandbox: Sandbox, **more: str) -> dict[str, str]:
    """Return the environment of a command that connects to a sandbox."""
    return environment(
        **{
            "BROKER_WS_URL": sandbox.url,
            "BROKER_API_KEY": sandbox.api_key,
            "BROKER_SECRET_KEY": sandbox.secret_key,
            **more,
        }
    )


class Watcher:
    """A process of the watch, and its output so far."""

    def __init__(self, process: trio.Process, output: trio.abc.ReceiveStream) -> None:
        self.process = process
        self.printed = b""
        self._output = output

    async def until(self, is_there: Callable[[str], object]) -> str:
        """Read until the output meets a condition, and return the output."""
        with trio.fail_after(PATIENCE):
            while not is_there(self.text):
                assert await self._more(), f"the output ended early: {self.text}"
        return self.text

    async def ended(self) -> int:
        """Read the rest, and return the exit status."""
        with trio.fail_after(PATIENCE):
            while await self._more():
                pass
            return await self.process.wait()

    async def _more(self) -> bool:
        try:
            chunk = await self._output.receive_some()
        except trio.BrokenResourceError:
            chunk = b""  # Linux raises it when the other end is closed
        self.printed += chunk
        return bool(chunk)

    @property
    def text(self) -> str:
        return self.printed.decode(errors="replace")

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines(keepends=True) if "\n" in line]

    async def until_event(self, name: str, **members: object) -> dict[str, Any]:
        """Read until an event has this name and these members, and return it."""

        def found(_: str = "") -> list[dict[str, Any]]:
            wanted = {"event": name, **members}
            return [one for one in self.objects if {**one, **wanted} == one]

        await self.until(found)
        return found()[0]


@asynccontextmanager
async def watch(
    *args: str, environ: Mapping[str, str], command: Sequence[str] = ("watch",)
) -> AsyncIterator[Watcher]:
    """Run a command whose output is a pipe."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *command, *args], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with _ending(process):
        assert process.stdout is not None
        yield Watcher(process, process.stdout)


@asynccontextmanager
async def watch_on_screen(
    *args: str,
    environ: Mapping[str, str],
    size: tuple[int, int] = (80, 30),
    command: Sequence[str] = ("watch",),
) -> AsyncIterator[tuple[Watcher, Callable[[int, int], None]]]:
    """Run a command on its own terminal; yield it and a function that resizes the terminal."""
    terminal, inside = pty.openpty()

    def resize(width: int, height: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    resize(*size)
    process = await trio.lowlevel.open_process(
        [*COMMAND, *command, *args],
        env=environ,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    async with trio.lowlevel.FdStream(terminal) as stream, _ending(process):
        yield Watcher(process, stream), resize


@asynccontextmanager
async def _ending(process: trio.Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


async def errors_of(watcher: Watcher) -> str:
    """Return the complete standard error."""
    assert watcher.process.stderr is not None
    printed = b""
    with trio.fail_after(PATIENCE):
        async for chunk in watcher.process.stderr:
            printed += chunk
    return printed.decode()


# --- In a pipe ------------------------------------------------------------------------------


async def test_each_line_in_a_pipe_is_an_object() -> None:
    async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
        sandbox.next_outcome("filled")
        async with watch(environ=variables(sandbox)) as watcher:
            first = await watcher.until_event("message")
            assert [one["event"] for one in watcher.objects] == [
                "connected", "subscribed", "message",
            ]  # fmt: skip
            assert (first["channel"], first["origin"], first["gap"]) == (
                "balances", "snapshot", None,
            )  # fmt: skip
            ether = {"asset": "ETH", "total": "1000", "locked": "0", "available": "1000"}
            assert ether in first["data"]

            await client.do_swap("2", "ETH", "USDT")
            pushed = await watcher.until_event("message", origin="push")
            ether = {"asset": "ETH", "total": "1000", "locked": "2", "available": "998"}
            assert ether in pushed["data"]

            watcher.process.send_signal(signal.SIGINT)
            assert await watcher.ended() == 130
            assert await errors_of(watcher) == ""
            assert watcher.text.endswith("}\n")


async def test_closed_pipe_shows_no_traceback() -> None:
    async with open_sandbox(seed=7) as sandbox, watch(environ=variables(sandbox)) as watcher:
        await watcher.until_event("message")
        assert watcher.process.stdout is not None
        await watcher.process.stdout.aclose()
        sandbox.faults.reset()
        with trio.fail_after(PATIENCE):
            assert await watcher.process.wait() == 1
        assert await errors_of(watcher) == ""


class Authentications(logging.Handler):
    """Sets an event when a client of a sandbox in this process is authenticated."""

    def __init__(self) -> None:
        super().__init__()
        self.happened = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "authenticated" in record.getMessage():
            self.happened.set()


async def test_full_pipe_blocks_neither_the_connection_nor_the_exit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_broker.sandbox")
    authentications = Authentications()
    async with open_sandbox(seed=7) as sandbox, watch(environ=variables(sandbox)) as watcher:
        await watcher.until_event("message")
        logging.getLogger("trio_broker.sandbox").addHandler(authentications)
        for _ in range(20):  # far more than a pipe holds
            push = {"ch": "balances", "data": [{"asset": "A" * 50_000, "total": "1"}]}
            sandbox.push(json.dumps(push))
        sandbox.faults.close(1012)
        with trio.fail_after(PATIENCE):
            await authentications.happened.wait()  # the client still reads and writes
            watcher.process.send_signal(signal.SIGINT)
            assert await watcher.process.wait() == 130
        logging.getLogger("trio_broker.sandbox").removeHandler(authentications)
        assert await errors_of(watcher) == ""


async def test_balances_with_watch_prints_the_same() -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        watch("--watch", environ=variables(sandbox), command=("balances",)) as watcher,
    ):
        message = await watcher.until_event("message")
        assert message["channel"] == "balances"
        watcher.process.send_signal(signal.SIGINT)
        assert await watcher.ended() == 130


async def test_raw_prints_the_messages_without_secrets() -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        watch("--raw", environ=variables(sandbox)) as watcher,
    ):
        await watcher.until(lambda text: '"asset":"ETH"' in text)
        odd = '{"key":"alice","sig":"abc","text":"test_key_1 test_secret_1","x":"\x1b[2J\n"}'
        sandbox.push(odd)
        expected = (
            '{"key":"<removed>","sig":"<removed>","text":"<removed> <removed>","x":"\\x1b[2J\\n"}\n'
        )
        await watcher.until(lambda text: text.endswith(expected))
        assert "authenticated" in watcher.text.splitlines()[0]
        watcher.process.send_signal(signal.SIGINT)
        assert await watcher.ended() == 130
        errors = (await errors_of(watcher)).splitlines()
        assert errors[:2] == ["connected", "subscribed to balances"]
        assert errors[2].startswith("unexpected message: ")


# --- Failures at the start ------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set the account of a broker that doesn't exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROKER_API_KEY", "alice")
    monkeypatch.setenv("BROKER_SECRET_KEY", "of alice")
    monkeypatch.setenv("BROKER_WS_URL", "ws://127.0.0.1:1/")


@pytest.mark.usefixtures("nowhere")
def test_unreachable_broker_exits_with_4(capfd: pytest.CaptureFixture[str]) -> None:
    assert status("watch") == 4
    ended = capfd.readouterr()
    assert ended.out == ""
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1


@pytest.mark.usefixtures("nowhere")
def test_missing_setting_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BROKER_API_KEY")
    assert status("watch") == 2
    assert "BROKER_API_KEY is not set" in capsys.readouterr().err


@pytest.mark.usefixtures("nowhere")
def test_raw_and_json_cannot_be_combined(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("watch", "--raw", "--json") == 2
    assert "can't be combined" in capsys.readouterr().err


async def test_wrong_key_exits_with_3() -> None:
    async with open_sandbox(seed=7) as sandbox:
        environ = variables(sandbox, BROKER_SECRET_KEY="another")
        async with watch(environ=environ) as watcher:
            assert await watcher.ended() == 3
            assert watcher.text == ""
            assert (await errors_of(watcher)).count("\n") == 1


def test_help_does_not_import_rich() -> None:
    code = (
        "import sys\nfrom trio_broker.cli import main\n"
        "try: main(['watch', '--help'])\nfinally: assert 'rich' not in sys.modules"
    )
    ended = run(sys.executable, "-c", code)
    assert ended.returncode == 0, ended.stderr
    assert "\n  disconnected          error, retry_in (seconds, or null)\n" in ended.stdout


# --- On a screen ----------------------------------------------------------------------------


ENTER, LEAVE, SHOW_CURSOR, HOME = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h", "\x1b[H"


COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def last_frame(printed: str) -> str:
    """Return the last complete frame, without colours."""
    frames = printed.split(HOME)
    return COLOURS.sub("", frames[-2] if len(frames) > 2 else "")


def final_content(printed: str) -> str:
    """Return the content of the terminal after the end, without colours."""
    assert printed.count(ENTER) == printed.count(LEAVE) == 1
    after = printed[printed.index(LEAVE) :]
    assert SHOW_CURSOR in printed[printed.rindex(HOME) :]
    return COLOURS.sub("", after.removeprefix(LEAVE))


async def test_screen_is_updated_and_restored() -> None:
    async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
        sandbox.next_outcome("filled")
        receipt = await client.do_swap("2", "ETH", "USDT")
        channel = f"orders:{receipt.order_id}"
        async with watch_on_screen("balances", channel, environ=variables(sandbox)) as (
            watcher, resize,
        ):  # fmt: skip
            await watcher.until(lambda text: "FILLED" in last_frame(text))
            await watcher.until(lambda text: re.search(r"USDT +1\d+", last_frame(text)))
            frame = last_frame(watcher.text)
            assert " SANDBOX  127.0.0.1:" in frame
            assert "● connected" in frame
            assert "available" in frame

            resize(40, 20)
            narrow = await watcher.until(lambda text: "available" not in last_frame(text))
            lines = last_frame(narrow).split("\r\n")
            assert max(map(len, lines)) <= 40
            assert len(lines) <= 20

            sandbox.faults.kill()
            await watcher.until(lambda text: "retrying in" in last_frame(text))
            await sandbox.faults.revive()
            await watcher.until(lambda text: "1 outage" in last_frame(text))
            await watcher.until(lambda text: "● connected" in last_frame(text))

            watcher.process.send_signal(signal.SIGINT)
            assert await watcher.ended() == 130
            stays = final_content(watcher.text)
            assert receipt.order_id in stays
            assert "FILLED" in stays
            assert "Ctrl-C" not in stays


async def test_screen_is_restored_after_sigterm_and_a_final_error() -> None:
    async with open_sandbox(seed=7) as sandbox:
        async with watch_on_screen(environ=variables(sandbox)) as (watcher, _):
            await watcher.until(lambda text: "USDT" in last_frame(text))
            watcher.process.send_signal(signal.SIGTERM)
            assert await watcher.ended() == 0
            assert "USDT" in final_content(watcher.text)
        async with watch_on_screen("--quiet", environ=variables(sandbox)) as (watcher, _):
            await watcher.until(lambda text: "USDT" in last_frame(text))
            assert "EVENTS" not in last_frame(watcher.text)
            sandbox.faults.close(1008, "not allowed")
            await watcher.until(lambda text: "retrying in" in last_frame(text))
            await watcher.until(lambda text: "● connected" in last_frame(text))
            sandbox.faults.close(1008, "not allowed")
            assert await watcher.ended() == 4
            stays = final_content(watcher.text)
            assert "● failed" in stays
            assert "1008" in stays.splitlines()[-1]
            assert stays.splitlines()[-1].startswith("Error: ")


async def test_ctrl_z_restores_the_screen_until_the_process_continues() -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        watch_on_screen(environ=variables(sandbox)) as (watcher, _),
    ):
        await watcher.until(lambda text: "USDT" in last_frame(text))
        watcher.process.send_signal(signal.SIGTSTP)
        await watcher.until(lambda text: LEAVE in text)
        with trio.fail_after(PATIENCE):
            is_stopped = partial(os.waitid, os.P_PID, watcher.process.pid)
            await trio.to_thread.run_sync(is_stopped, os.WSTOPPED | os.WNOWAIT)
        watcher.process.send_signal(signal.SIGCONT)
        again = await watcher.until(lambda text: text.count(ENTER) == 2)
        await watcher.until(lambda text: "USDT" in last_frame(text[len(again) :]))
        watcher.process.send_signal(signal.SIGINT)
        assert await watcher.ended() == 130
        assert watcher.text.count(LEAVE) == 2


async def test_dumb_terminal_gets_json_lines() -> None:
    async with open_sandbox(seed=7) as sandbox:
        environ = variables(sandbox, TERM="dumb")
        async with watch_on_screen(environ=environ) as (watcher, _):
            await watcher.until(lambda text: text.count("\n") == 3)
            assert [one["event"] for one in watcher.objects] == [
                "connected", "subscribed", "message",
            ]  # fmt: skip
