"""The README: its blocks of code run, and its tables and its picture are those of the code."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_broker
from tests.blocks import ROOT, blocks_of, run_block
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    Limits,
    ReconnectPolicy,
    Subscription,
    SwapJournal,
)
from trio_broker.sandbox import open_sandbox

README = (ROOT / "README.md").read_text()
BLOCKS = blocks_of("README.md")
PYTHON = [body for language, body in BLOCKS if language == "python"]
SHELL = [body.strip() for language, body in BLOCKS if language == "sh"]
TEXT = [body for language, body in BLOCKS if language == "text"]

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0


def test_every_block_has_its_test() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh", "text"}
    assert (len(SHELL), len(TEXT)) == (6, 2)


# --- Python ---------------------------------------------------------------------------------


@pytest.mark.parametrize("body", PYTHON, ids=range(1, len(PYTHON) + 1))
async def test_python_block_runs(
    body: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
        mains: list[Callable[[], Awaitable[object]]] = []
        monkeypatch.setattr(trio, "run", mains.append)
        monkeypatch.setenv("BROKER_WS_URL", sandbox.url)
        monkeypatch.setenv("BROKER_API_KEY", sandbox.api_key)
        monkeypatch.setenv("BROKER_SECRET_KEY", sandbox.secret_key)

        async def cut_the_line() -> None:
            await trio.lowlevel.checkpoint()
            sandbox.drop_connections()

        sandbox.next_outcome("filled")
        names: dict[str, Any] = {
            "trio": trio,
            "api_key": sandbox.api_key,
            "secret_key": sandbox.secret_key,
            "ws_url": sandbox.url,
            "client": client,
            "cut_the_line": cut_the_line,
            "order_id": (await client.do_swap("1", "ETH", "USDT")).order_id,
        }
        sandbox.next_outcome("filled")
        with trio.fail_after(PATIENCE):
            await run_block(body, names, "README.md", mains)
    printed = capsys.readouterr().out
    assert bool(printed) == ("print(" in body)
    assert not re.search("refused|nothing was sent|find out|once more", printed)
    assert body is not PYTHON[0] or "FILLED" in printed


# --- Shell ----------------------------------------------------------------------------------


def as_here(command: str) -> str:
    """A command of the README with this interpreter in place of the environment's."""
    python = shlex.quote(sys.executable)
    programs = {"python": python, "trio-broker": f"{python} -m trio_broker.cli"}
    return re.sub(r"\.venv/bin/(\S+)", lambda found: programs[found[1]], command)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_ci_runs_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert [line for line in script.splitlines() if "bash -euo" in line.strip()[:9]] == [
        'bash -euo pipefail -c "$(readme_block 1)"',
        '    bash -euo pipefail -c "$(readme_block 2)"',
    ]
    for command, extra, end in zip(
        SHELL[:2], ("cli", "test"), ("trio-broker demo", "pytest"), strict=True
    ):
        assert command.split(" && ") == [
            "python3 -m venv .venv",
            f".venv/bin/pip install -e '.[{extra}]'",
            f".venv/bin/{end}",
        ]
    assert (ROOT / SHELL[5]).stat().st_mode & 0o111


async def test_first_command_tells_the_demo() -> None:
    demo = as_here(SHELL[0].split(" && ")[-1])
    ended = await trio.run_process(
        ["sh", "-c", demo], cwd=ROOT, env=environment(), capture_stdout=True
    )
    assert b"is FILLED" in ended.stdout
    assert b"All done" in ended.stdout


async def test_two_processes_trade_in_the_words_of_the_readme() -> None:
    # Both at once, so that they differ.
    with (
        socket.create_server(("127.0.0.1", 0)) as probe,
        socket.create_server(("127.0.0.1", 0)) as rest_probe,
    ):
        ports = str(probe.getsockname()[1]), str(rest_probe.getsockname()[1])

    def with_ports(text: str) -> str:
        return text.replace("8765", ports[0]).replace("8766", ports[1])

    serve, trade = (with_ports(as_here(command)) for command in SHELL[2:4])
    expected = with_ports(TEXT[0]).encode()
    async with trio.open_nursery() as nursery:
        server = await trio.lowlevel.open_process(
            ["sh", "-c", f"exec {serve}"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            printed = b""
            with trio.fail_after(PATIENCE):
                while len(printed) < len(expected):
                    chunk = await server.stdout.receive_some()
                    assert chunk, "the sandbox has ended"
                    printed += chunk
            assert printed == expected
            ended = await trio.run_process(
                ["sh", "-c", trade], cwd=ROOT, env=environment(), capture_stdout=True
            )
            assert re.search(rb"^orders:ord_\w+: FILLED", ended.stdout, re.MULTILINE)
        finally:
            server.terminate()
            with trio.CancelScope(shield=True):
                await server.wait()
                assert server.stdout is not None
                assert server.stderr is not None
                await server.stdout.aclose()
                await server.stderr.aclose()
        nursery.cancel_scope.cancel()
    assert server.returncode == 0


async def test_journal_is_listed_in_the_words_of_the_readme(tmp_path: Path) -> None:
    async with open_sandbox() as sandbox:
        journal = SwapJournal(tmp_path / "swaps.journal")
        async with sandbox.client(journal=journal) as client:
            receipt = await client.do_swap("1", "ETH", "USDT", client_order_id="c1")
    ended = await trio.run_process(
        ["sh", "-c", as_here(SHELL[4])],
        cwd=tmp_path,
        env={**environment(), "COLUMNS": "300"},
        capture_stdout=True,
    )
    row = next(line for line in ended.stdout.decode().splitlines() if "c1" in line)
    assert receipt.order_id in row
    assert "confirmed" in row


# --- Tables ---------------------------------------------------------------------------------


def section(title: str) -> str:
    return re.split(r"^#+ ", README.partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, its head left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def public_names(kind: type) -> set[str]:
    inherited = set(dir(trio.abc.AsyncResource)) if kind is BrokerWSClient else set()
    return {name for name in dir(kind) if not name.startswith("_")} - (inherited - {"aclose"})


def test_table_of_methods_has_all() -> None:
    told = set(
        re.findall(r"(?:client|Client)\.(\w+)", " ".join(row[0] for row in rows("The client")))
    )
    assert told == public_names(BrokerWSClient) | {"logger"}


def test_parameters_in_the_table_are_the_methods() -> None:
    calls = re.findall(r"client\.(\w+)\(([^)]*)\)", " ".join(row[0] for row in rows("The client")))
    assert calls
    for name, arguments in calls:
        parameters = inspect.signature(getattr(BrokerWSClient, name)).parameters.values()
        needed = [one.name for one in parameters if one.default is one.empty][1:]
        assert [one for one in arguments.split(", ") if one] == needed, name


def test_table_of_options_has_their_defaults() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in rows("Options")}
    parameters = inspect.signature(BrokerWSClient).parameters.values()
    options = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert list(told) == list(options)
    # What None stands for.
    options["limits"] = Limits()
    options["reconnect"] = ReconnectPolicy()
    names = {"Limits": Limits, "ReconnectPolicy": ReconnectPolicy, "time": time}
    assert {name: eval(text, names) for name, text in told.items()} == options  # noqa: S307


def test_table_of_errors_has_all() -> None:
    exported = {
        name
        for name, value in vars(trio_broker).items()
        if isinstance(value, type) and issubclass(value, BrokerError) and value is not BrokerError
    }
    told = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows("Errors")))
    assert sorted(told) == sorted(exported)


def test_streams_are_told_whole() -> None:
    own = public_names(Subscription)
    rest = {"close"}
    assert own - set(re.findall(r"`(\w+)(?:\(\))?`", section("Streams"))) <= rest
