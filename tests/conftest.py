"""What the test modules share."""

from __future__ import annotations

from typing import get_args

import pytest

from trio_broker import BrokerWSClient
from trio_broker.settings import TransportName


@pytest.fixture(params=get_args(TransportName))
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test once with each transport, for clients that don't name one."""
    defaults = BrokerWSClient.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "transport", request.param)
