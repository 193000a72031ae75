"""Fixtures for the tests of the command line."""

from __future__ import annotations

import os

import pytest

from tests.cli.harness import USER_VARIABLES


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables that a user may have set."""
    for name in tuple(os.environ):
        if name.startswith(USER_VARIABLES):
            monkeypatch.delenv(name)
