"""The speed benchmarks' server and this library's part of them: that what they count is all."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.speed.figures import percentile
from benchmarks.speed.processes import Bench, BrokenError
from benchmarks.speed.restore import Case

COUNT = 500


def counted(pushed: int, peer: str = "library") -> Any:
    bench = Bench(rounds=1, quick=True, say=print)
    with bench.server() as server:
        told = {"url": server.url(push=pushed), "count": COUNT}
        ours = {"transport": "trio-websocket", "batches": False}
        return bench.measure(f"peers.{peer}:pushes", {**told, **ours})


@pytest.mark.parametrize("peer", ["library", "bridge"])
def test_all_that_is_pushed_comes(peer: str) -> None:
    result = counted(COUNT, peer)
    assert (result["delivered"], result["dropped"]) == (COUNT, 0)
    assert result["wall"] > 0


def test_a_message_that_is_missing_breaks_a_benchmark() -> None:
    with pytest.raises(BrokenError):
        counted(COUNT - 1)


@pytest.mark.parametrize(
    ("subscriptions", "limited", "floor"),
    [(1, True, 0.55), (49, True, 0.55), (50, True, 1.45), (100, False, 0.55), (100, True, 2.55)],
)
def test_nothing_is_restored_faster_than_the_protocol(
    subscriptions: int, limited: bool, floor: float
) -> None:
    assert Case(subscriptions, 0.1, limited).floor == pytest.approx(floor)


def test_a_percentile_is_one_of_the_values() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.5, 0.99, 0.999)] == [50, 99, 100]
