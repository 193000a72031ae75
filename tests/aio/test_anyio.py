"""The client inside anyio: on its trio backend all works, on its asyncio backend nothing hangs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest
import trio

from trio_broker import BrokerWSClient

ROOT = Path(__file__).parents[2]

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 60.0


async def test_client_works_under_anyios_own_pytest_plugin(tmp_path: Path) -> None:
    # Not this suite's settings: as for a user who has anyio's plugin, and pytest-trio in no mode.
    settings = tmp_path / "pytest.ini"
    settings.write_text(
        "[pytest]\n"
        "addopts = --strict-markers -p no:randomly -p no:asyncio -p no:cacheprovider\n"
        "filterwarnings = error\n"
    )
    # Nor what this run was asked for, its coverage say.
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [sys.executable, "-m", "pytest", "-q", "-c", str(settings), "tests/aio/anyio_use.py"],
            cwd=ROOT,
            env=environ,
            capture_stdout=True,
            check=False,
        )
    told = ended.stdout.decode()
    assert ended.returncode == 0, told
    tests = (ROOT / "tests" / "aio" / "anyio_use.py").read_text().count("\nasync def test_")
    assert f"\n{tests} passed in " in told


def test_client_cant_live_on_anyios_asyncio_backend() -> None:
    async def main() -> None:
        with anyio.fail_after(PATIENCE):
            async with BrokerWSClient("key", "secret", "ws://127.0.0.1:1/ws"):
                pass

    with pytest.raises(RuntimeError, match=r"a client needs Trio: .* use trio_broker\.aio"):
        anyio.run(main, backend="asyncio")
