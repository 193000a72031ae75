"""What the test modules share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.aio_host import HOSTS, Host
from tests.broker_thread import Broker, broker_in_thread
from tests.cli.harness import ROOT, set_default
from trio_broker import BrokerWSClient, ReconnectPolicy
from trio_broker.sandbox import Outcome
from trio_broker.settings import TransportName

# pytester is for tests of the plugin.
pytest_plugins = ["pytester", "tests.signals", "tests.timeouts"]

gc.disable()  # while tests are collected: little of what that makes is garbage


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave what was imported out of all later garbage collections: many tests ask for one."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(params=get_args(TransportName))
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test once with each transport, for clients that don't name one."""
    defaults = BrokerWSClient.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "transport", request.param)


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest) -> Host:
    """Run a test once with each event loop of asyncio's kind."""
    return HOSTS[request.param]


# --- For the commands -----------------------------------------------------------------------

_SCREEN = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory without any settings, and without what a real user has."""
    for name in list(os.environ):
        if name in _SCREEN or name.startswith("BROKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def broker(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A broker that the environment names, and whose orders are filled."""
    quick = (0.01, 0.02)
    with broker_in_thread(
        outcomes={Outcome.FILLED: 1}, pending_delay=quick, processing_delay=quick
    ) as broker:
        for name, text in broker.variables.items():
            monkeypatch.setenv(name, text)
        yield broker


@pytest.fixture
def slow_broker(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """The same, whose orders take longer than any test has patience."""
    with broker_in_thread(outcomes={Outcome.FILLED: 1}, pending_delay=(1e6, 1e6)) as broker:
        for name, text in broker.variables.items():
            monkeypatch.setenv(name, text)
        yield broker


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients give a lost connection up at once."""
    set_default(monkeypatch, reconnect=ReconnectPolicy(max_attempts=0))
