"""Ctrl-C while a client works: a bare `KeyboardInterrupt` is raised, and no task is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import pytest
import trio

from tests.transports.raw_server import wait_gone
from tests.transports.test_both import opening, serve_raw_websocket
from trio_broker import BrokerWSClient, ReconnectPolicy, SwapJournal
from trio_broker.sandbox.threads import ThreadedSandbox, open_threaded_sandbox
from trio_broker.settings import TransportName

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds; a run needs a few


@pytest.mark.parametrize("transport", get_args(TransportName))
@pytest.mark.parametrize("load", [[], ["--load"]], ids=["quiet", "load"])
def test_ctrl_c_at_random_moments_is_never_lost(transport: str, load: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.interrupts", "--transport", transport]
    ended = subprocess.run(  # noqa: S603 - our own command
        [*command, "--count=5", "--seed=7", *load],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 failed" in ended.stdout


async def use_everything(client: BrokerWSClient, sandbox: ThreadedSandbox) -> None:
    """Use every task of a client, with an outage and a heartbeat."""
    async with client:
        updates = await client.subscribe("balances")
        await updates.receive()
        await client.get_balances()
        receipt = await client.do_swap("0.001", "ETH", "USDT")
        async with client.track_order(receipt.order_id) as progress:
            await progress.receive()
            sandbox.drop_connections()
            with trio.fail_after(PATIENCE):
                while (await updates.receive()).gap is None:
                    pass
        await trio.sleep(0.05)


@pytest.mark.parametrize("transport", get_args(TransportName))
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_background_task_can_be_interrupted(
    transport: TransportName, host: str, tmp_path: Path
) -> None:
    """Trio raises `KeyboardInterrupt` in an unprotected task, which may lose it, or group it."""
    unprotected: set[str] = set()
    watched: set[str] = set()
    main_task: trio.lowlevel.Task

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not trio.lowlevel.in_trio_task():
            return
        task = trio.lowlevel.current_task()
        if task is not main_task:
            watched.add(task.name)
            if not trio.lowlevel.currently_ki_protected():
                unprotected.add(f"{task.name}: {frame.f_code.co_qualname}")

    async def main(sandbox: ThreadedSandbox) -> None:
        nonlocal main_task
        main_task = trio.lowlevel.current_task()
        client = sandbox.client(
            transport=transport,
            heartbeat_interval=0.01,
            poll_interval=0.01,
            journal=SwapJournal(tmp_path / "swaps.db"),
            reconnect=ReconnectPolicy(initial_delay=0.01),
        )
        sys.setprofile(look)
        try:
            await use_everything(client, sandbox)
        finally:
            sys.setprofile(None)

    with open_threaded_sandbox(host=host) as sandbox:
        trio.run(main, sandbox)
    assert unprotected == set()
    assert any("Connection._write" in name for name in watched)
    assert any("dial" in name for name in watched)


@pytest.mark.parametrize("transport", get_args(TransportName))
def test_ctrl_c_while_a_transport_is_dropped_is_bare(
    transport: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.transports.test_both.library", transport)

    @trio.lowlevel.enable_ki_protection
    def interrupt_later() -> None:
        signal.raise_signal(signal.SIGINT)  # Trio keeps it until the next checkpoint

    async def main() -> None:
        async with serve_raw_websocket(wait_gone) as port:
            try:
                async with opening(port):
                    interrupt_later()
                await trio.lowlevel.checkpoint()
            except KeyboardInterrupt:
                caught.append("bare")

    caught: list[str] = []
    trio.run(main)
    assert caught == ["bare"]
