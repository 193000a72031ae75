"""The steps of the demo: its checks, its pace and its time limit."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import attrs
import click
import pytest
import trio

from trio_broker import Balance, Disconnected, Order, OrderStatus
from trio_broker.cli.demo import story
from trio_broker.cli.terminal.output import Output
from trio_broker.sandbox import Outcome, Sandbox

FILLED = Order("1", OrderStatus.FILLED, filled_out=Decimal("7.5"))
BEFORE = {"ETH": Balance("ETH", Decimal(3)), "USDT": Balance("USDT", Decimal(1))}
AFTER = {"ETH": Balance("ETH", Decimal(1)), "USDT": Balance("USDT", Decimal("8.5"))}


def test_matching_balances_pass_the_check() -> None:
    story.check_result(BEFORE, AFTER, FILLED)


@pytest.mark.parametrize(
    ("after", "order"),
    [
        (AFTER, attrs.evolve(FILLED, status=OrderStatus.CANCELLED)),
        (AFTER, attrs.evolve(FILLED, filled_out=None)),
        (AFTER, attrs.evolve(FILLED, filled_out=Decimal(0))),
        (AFTER, attrs.evolve(FILLED, filled_out=Decimal(7))),
        ({**AFTER, "ETH": Balance("ETH", Decimal(2))}, FILLED),
        ({**AFTER, "BTC": Balance("BTC", Decimal(2))}, FILLED),
        ({**AFTER, "ETH": Balance("ETH", Decimal(1), Decimal(1))}, FILLED),
    ],
)
def test_other_balances_fail_the_check(after: dict[str, Balance], order: Order) -> None:
    with pytest.raises(click.ClickException):
        story.check_result(BEFORE, after, order)


def test_final_loss_of_the_connection_is_reported() -> None:
    reported: list[str] = []

    def report(event: str, text: str, **_: object) -> None:
        reported.append(f"{event}: {text}")

    lost = Disconnected(at=dt.datetime.now(dt.UTC), error=ConnectionError("gone"), retry_in=None)
    story.report_reconnection(lost, report)
    assert reported == ["lost: The connection is lost: gone."]


@pytest.mark.parametrize("draws", [False, True])
def test_demo_fails_at_its_time_limit(draws: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> int:
        return await story.run_demo(0, Output(), fast=False, draws=draws, time_limit=0.0)

    with pytest.raises(click.ClickException) as failed:
        trio.run(run)
    assert failed.value.exit_code == 1
    assert failed.value.message == "the demo didn't finish within 0 s"
    assert "All done" not in capsys.readouterr().out


def test_failure_is_drawn_on_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    force = Sandbox.next_outcome
    monkeypatch.setattr(Sandbox, "next_outcome", lambda self, _: force(self, Outcome.FAILED))

    async def run() -> int:
        return await story.run_demo(0, Output(), fast=True, draws=True)

    with pytest.raises(click.ClickException) as failed:
        trio.run(run)
    assert failed.value.exit_code == 1
    assert failed.value.message == "the order should be FILLED, but is FAILED"
    assert "✗ Check the balances" in capsys.readouterr().out


def test_slow_pace_takes_about_eight_seconds() -> None:
    pace = story.SLOW
    pauses = 6 * pace.pause
    longest = pauses + max(pace.pending) + max(pace.processing) + pace.outage
    assert 5 < longest - pace.outage / 2 < longest < 8
