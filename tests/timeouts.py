"""What ends a test that hangs: it fails with its stacks, and the run goes on.

pytest-timeout's method "signal" raises an exception wherever the main thread is. In Trio's own code
that breaks the run, and sometimes pytest with it. Its method "thread" ends the whole process. So
here SIGALRM first cancels the Trio run, if there is one. What doesn't heed that after `_GRACE`
seconds gets the exception if its own code runs, and otherwise the process ends: pytest-xdist
reports the test as failed and replaces the worker.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import pytest
import trio

_GRACE: Final = 5.0
_FRAMES: Final = 25  # of a thread; what is further out is pytest's
_HUNG: Final = pytest.StashKey[str]()


@pytest.hookimpl
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Take the place of pytest-timeout's own timer for its method "signal"."""
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None
    plugin: Any = item.config.pluginmanager.getplugin("timeout")

    def on_alarm(_: int, frame: FrameType | None) -> None:
        if plugin.is_debugging() and not settings.disable_debugger_detection:
            return
        is_first = _HUNG not in item.stash
        if is_first:
            item.stash[_HUNG] = f"Timeout (>{settings.timeout}s)\n{_stacks(frame)}"
        if not _in_trio():
            pytest.fail(item.stash[_HUNG], pytrace=False)
        if is_first:
            signal.setitimer(signal.ITIMER_REAL, _GRACE)
            trio.lowlevel.current_trio_token().run_sync_soon(_cancel_everything)
        elif _in_task():
            pytest.fail(item.stash[_HUNG], pytrace=False)
        else:
            capture: Any = item.config.pluginmanager.getplugin("capturemanager")
            capture.suspend(in_=True)
            sys.stderr.write(f"{item.nodeid} {item.stash[_HUNG]}\n")
            sys.stderr.flush()
            os._exit(1)

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> None:
    """End the timer; it does no harm where there is none."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that was cancelled, however it took that."""
    try:
        return (yield)
    finally:
        if (stacks := item.stash.get(_HUNG, None)) is not None:
            pytest.fail(stacks, pytrace=False)


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_root_task()
    except RuntimeError:
        return False
    return True


def _in_task() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def _cancel_everything() -> None:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    for nursery in root.child_nurseries:
        nursery.cancel_scope.cancel()


def _stacks(frame: FrameType | None) -> str:
    """The stacks of all threads and of all tasks of a Trio run in the main thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {**sys._current_frames(), threading.get_ident(): frame}
    parts = [
        f"~~~ thread {names.get(ident)}\n{''.join(traceback.format_stack(one, _FRAMES))}"
        for ident, one in frames.items()
    ]
    if _in_trio():
        root = trio.lowlevel.current_root_task()
        assert root is not None
        parts += [
            f"~~~ task {task.name}\n"
            + "".join(traceback.StackSummary.extract(task.iter_await_frames()).format())
            for task in _tasks(root)
        ]
    return "\n".join(parts)


def _tasks(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tasks(child)
