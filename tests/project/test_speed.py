"""The speed benchmarks' server and this library's part of them: that what they count is all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from benchmarks.speed.figures import percentile
from benchmarks.speed.processes import Bench, BrokenError, Link
from benchmarks.speed.restore import Case

COUNT = 500


def counted(pushed: int, peer: str = "library", link: Link = "plain", records: int = 0) -> Any:
    bench = Bench(rounds=1, quick=True, say=print)
    with bench.server() as server:
        told = {"url": server.url(link, push=pushed, records=records), "count": COUNT}
        ours = {"transport": "trio-websocket", "batches": False}
        return bench.measure(f"peers.{peer}:pushes", {**told, **ours})


@pytest.mark.parametrize("peer", ["library", "bridge"])
def test_all_that_is_pushed_comes(peer: str) -> None:
    result = counted(COUNT, peer)
    assert (result["delivered"], result["dropped"]) == (COUNT, 0)
    assert result["wall"] > 0


@pytest.mark.parametrize("records", [0, 1])
def test_all_that_is_pushed_over_tls_comes(records: int) -> None:
    result = counted(COUNT, link="TLS", records=records)
    assert (result["delivered"], result["dropped"]) == (COUNT, 0)


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


def test_tls_takes_one_more_round_trip_of_the_protocol() -> None:
    assert Case(1, 0.1, limited=True, link="TLS").floor == pytest.approx(0.65)


def test_peers_are_measured_in_turn_by_ways() -> None:
    order: list[str] = []

    def measuring(way: str) -> dict[str, Callable[[], int]]:
        def measure(name: str) -> int:
            order.append(f"{name}, {way}")
            return len(order)

        return {name: partial(measure, name) for name in ("a", "b")}

    bench = Bench(rounds=2, quick=True, say=print)
    runs = bench.by_ways({way: measuring(way) for way in ("plain", "TLS")})
    assert order == ["a, plain", "a, TLS", "b, plain", "b, TLS"] * 2
    assert runs == {"plain": {"a": [1, 5], "b": [3, 7]}, "TLS": {"a": [2, 6], "b": [4, 8]}}


def test_a_percentile_is_one_of_the_values() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.5, 0.99, 0.999)] == [50, 99, 100]
