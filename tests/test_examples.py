"""The examples, each run whole, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import trio

from trio_broker.sandbox import Sandbox, open_sandbox

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "examples" / "quickstart.py"


async def run(script: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return await trio.run_process(
        [sys.executable, str(script)],
        env={**environ, "PYTHONPATH": str(ROOT), **variables},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


def variables(sandbox: Sandbox) -> Mapping[str, str]:
    return {
        "BROKER_WS_URL": sandbox.url,
        "BROKER_API_KEY": sandbox.api_key,
        "BROKER_SECRET_KEY": sandbox.secret_key,
    }


async def test_quickstart_needs_no_broker() -> None:
    ended = await run(QUICKSTART)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"orders:ord_00000001: FILLED" in ended.stdout
    assert b"balances (snapshot)" in ended.stdout
    assert b"balances (push)" in ended.stdout


async def test_quickstart_trades_where_the_environment_says() -> None:
    async with open_sandbox() as sandbox:
        sandbox.next_outcome("filled_in_parts")
        ended = await run(QUICKSTART, **variables(sandbox))
        (order,) = sandbox.orders()
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert f"sold 0.01 ETH for {order.filled_out.normalize():f} USDT" in ended.stdout.decode()


async def test_quickstart_says_that_its_order_failed() -> None:
    async with open_sandbox() as sandbox:
        sandbox.next_outcome("failed")
        ended = await run(QUICKSTART, **variables(sandbox))
    assert (ended.returncode, ended.stderr) == (1, b"the order ended as FAILED\n")


async def test_quickstart_tells_an_error_in_a_line() -> None:
    async with open_sandbox() as sandbox:
        wrong = {**variables(sandbox), "BROKER_SECRET_KEY": "wrong"}
        ended = await run(QUICKSTART, **wrong)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
    assert b"Invalid signature" in ended.stderr
