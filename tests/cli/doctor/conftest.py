"""Fixtures of the doctor's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.cli.doctor.harness import KEY, SECRET


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set the keys of a sandbox, and use a folder without a .env file."""
    monkeypatch.setenv("BROKER_API_KEY", KEY)
    monkeypatch.setenv("BROKER_SECRET_KEY", SECRET)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BROKER_API_KEY")
    monkeypatch.delenv("BROKER_SECRET_KEY")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
