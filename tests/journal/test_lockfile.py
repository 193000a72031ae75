from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from filelock import FileLock

from trio_broker.lockfile import held, lock_path


def test_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with held(path), pytest.raises(BlockingIOError), held(path):
        raise AssertionError
    with held(path), held(tmp_path / "another"):
        pass
    assert not path.exists()


def test_exception_in_the_block_passes_through_and_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "file"):
        raise KeyError
    with held(tmp_path / "file"):
        pass


def test_lock_file_stays_although_the_system_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    release = FileLock.release

    def release_as_on_windows(lock: FileLock, *, force: bool = False) -> None:
        was_locked = lock.is_locked
        release(lock, force=force)
        if was_locked:
            Path(lock.lock_file).unlink()

    monkeypatch.setattr(FileLock, "release", release_as_on_windows)
    with held(path):
        pass
    assert lock_path(path).read_bytes() == b""
    assert lock_path(path).stat().st_mode & 0o777 == 0o600


def test_lock_of_another_process_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = "import sys, pathlib, trio_broker.lockfile as l\n"
    code += "with l.held(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as process:  # noqa: S603 - our own
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BlockingIOError), held(path):
            raise AssertionError
        process.kill()
    # The system has released it.
    with held(path):
        pass
