"""A test that hangs fails with its stacks, and the run goes on; SIGINT works in tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.harness import ROOT

HANGING = """
import asyncio
import time

import pytest
import trio


async def in_a_task():
    await trio.sleep_forever()


async def test_in_a_child():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_a_task)


async def test_for_ever_on_a_mock_clock(autojump_clock):
    await trio.Event().wait()


async def test_without_rest():
    while True:
        await trio.sleep(0)


async def test_with_what_raises_at_a_cancellation():
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError


async def test_that_passes_when_it_is_cancelled():
    with trio.CancelScope() as scope:
        try:
            await trio.sleep_forever()
        finally:
            scope.cancel()


async def test_blocking_trio():
    time.sleep(60)


async def test_shielded():
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


def test_without_a_loop():
    time.sleep(60)


def test_on_asyncio():
    asyncio.run(asyncio.sleep(60))


def test_with_a_run_of_its_own():
    trio.run(trio.sleep_forever)


@pytest.mark.timeout(60)
async def test_good():
    await trio.sleep(0)
"""


def load_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes of pytest load only the plugins that they name: it costs seconds."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)  # it may have options of other plugins


def test_hung_tests_fail_with_their_stacks_and_the_run_goes_on(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_no_plugins(monkeypatch)
    pytester.makeini("[pytest]\ntrio_mode = true\ntimeout = 0.5\nfilterwarnings = error")
    pytester.makeconftest("import tests.timeouts\ntests.timeouts._GRACE = 0.5")
    pytester.makepyfile(HANGING)

    result = pytester.runpytest_subprocess(
        *("-n1", "-p", "xdist", "-p", "timeout", "-p", "trio", "-p", "tests.timeouts")
    )

    result.assert_outcomes(passed=1, failed=10)
    # The task's stack, and that of the process which had to be ended.
    result.stdout.fnmatch_lines(
        ["*~~~ task *in_a_task*", "*in in_a_task", "*~~~ thread MainThread*"]
    )
    result.stderr.fnmatch_lines(["*::test_shielded Timeout (>0.5s)*", "*in test_shielded"])


def test_sigint_works_in_a_run_that_was_started_with_it_ignored(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_no_plugins(monkeypatch)
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        """
        import signal, subprocess, sys
        import pytest

        def test_here():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

        def test_in_a_child():
            code = "import signal; signal.raise_signal(signal.SIGINT)"
            child = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE)
            assert child.returncode == -signal.SIGINT
        """
    )
    command = (sys.executable, "-m", "pytest", "-p", "xdist", "-p", "tests.signals")

    for ignoring, workers in (('trap "" INT; exec "$@"', "-n1"), ('"$@" & wait $!', "-n0")):
        ended = subprocess.run(  # noqa: S603 - our own command
            ["sh", "-c", ignoring, "sh", *command, workers],  # noqa: S607 - whichever there is
            cwd=pytester.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "2 passed" in ended.stdout
