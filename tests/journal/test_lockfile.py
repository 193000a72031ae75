from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trio_broker.lockfile import held


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


def test_system_without_locks_excludes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with held(tmp_path / "file"), held(tmp_path / "file"):
        pass
