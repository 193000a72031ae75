"""The cuts, at every so manyth byte: that everybody is told the truth, and that it can fail."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, Final

import pytest
from trio.testing import MockClock

from trio_broker import swaps
from trio_broker.exceptions import BrokerError, ServerError
from trio_broker.request import Request

CUTS: Final = Path(__file__).parents[1] / "benchmarks" / "cuts.py"
STRIDE: Final = 127


@pytest.fixture
def module() -> dict[str, Any]:
    return runpy.run_path(str(CUTS))


async def test_wherever_the_line_is_cut_everybody_is_told_the_truth(
    autojump_clock: MockClock, module: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cuts = await module["cut_everywhere"](STRIDE, 1)
    assert cuts.disagreements == []
    totals = {
        figure: sum(cuts.figures[kind, figure] for kind in module["KINDS"])
        for figure in module["FIGURES"]
    }
    assert totals.pop("disagreements") == 0
    assert all(totals.values()), totals  # so each of them was put to the test
    module["show"](cuts)
    assert "WRONG" not in capsys.readouterr().out


async def test_it_notices_who_is_told_what_is_not_so(
    autojump_clock: MockClock, module: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, with a library that takes every end of a swap for a refusal."""

    def anything(_: Request, error: BrokerError) -> bool:
        return True

    monkeypatch.setattr(swaps, "is_refusal", anything)
    monkeypatch.setattr("trio_broker.blotter.fresh", lambda error: ServerError("swap", str(error)))
    cuts = await module["cut_everywhere"](1000, 1)
    assert any("told refused" in text for text in cuts.disagreements)
