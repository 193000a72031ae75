"""Cuts at every 251st byte: all results are true, and the benchmark reports false ones."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, Final

import pytest
from trio.testing import MockClock

from trio_broker._protocol.requests import Request
from trio_broker._swaps.registry import Swap, SwapRegistry
from trio_broker.exceptions import BrokerError, ServerError
from trio_broker.models import SwapOutcome

CUTS: Final = Path(__file__).parents[2] / "benchmarks" / "cuts.py"
STRIDE: Final = 251


@pytest.fixture
def module() -> dict[str, Any]:
    return runpy.run_path(str(CUTS))


async def test_results_are_true_wherever_the_connection_is_cut(
    autojump_clock: MockClock, module: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cuts = await module["cut_everywhere"](STRIDE, 1)
    assert cuts.disagreements == []
    totals = {
        figure: sum(cuts.figures[kind, figure] for kind in module["KINDS"])
        for figure in module["FIGURES"]
    }
    assert totals.pop("disagreements") == 0
    assert all(totals.values()), totals  # each kind has occurred
    module["show"](cuts)
    assert "WRONG" not in capsys.readouterr().out


async def test_cuts_report_a_wrong_result(
    autojump_clock: MockClock, module: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, with a library that reports every outcome as a refusal."""

    def refuse(self: SwapRegistry, swap: Swap, _: Request, error: BrokerError, now: float) -> None:
        self._end(swap, SwapOutcome.REFUSED, now, error=error)

    monkeypatch.setattr(SwapRegistry, "_take_error", refuse)
    monkeypatch.setattr(
        "trio_broker._swaps.registry.fresh", lambda error: ServerError("swap", str(error))
    )
    cuts = await module["cut_everywhere"](2000, 1)
    assert any("told refused" in text for text in cuts.disagreements)
