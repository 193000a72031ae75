"""The steps of the demo, which runs against its own sandbox.

The demo checks its result: the change of the balances must be what the order sold and bought.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import attrs
import click
import trio

from trio_broker import (
    Balance,
    BrokerWSClient,
    ConnectionEvent,
    Disconnected,
    Order,
    OrderStatus,
    ReconnectPolicy,
    Restored,
    SwapReceipt,
)
from trio_broker.cli.background import background
from trio_broker.cli.demo.reporters import (
    Reporter,
    ScreenReporter,
    line_reporter,
    report_end,
    report_json,
)
from trio_broker.cli.errors import Status
from trio_broker.cli.terminal.output import Output, plain

if TYPE_CHECKING:
    from trio_broker.sandbox import Sandbox

_AMOUNT: Final = Decimal(2)
_SOLD: Final = "ETH"
_BOUGHT: Final = "USDT"

_TIME_LIMIT: Final = 20.0  # seconds; the demo normally takes one or eight


@attrs.frozen(kw_only=True)
class Pace:
    """The durations of the demo's parts, in seconds.

    Attributes:
        pause: The pause between two steps.
        pending: The minimum and maximum time for which the order is PENDING.
        processing: The minimum and maximum time from then until it is final.
        outage: The maximum time until the client reconnects; the minimum is half of it.
    """

    pause: float
    pending: tuple[float, float]
    processing: tuple[float, float]
    outage: float


QUICK: Final = Pace(pause=0, pending=(0.05, 0.15), processing=(0.05, 0.35), outage=0.5)
SLOW: Final = Pace(pause=0.5, pending=(0.5, 0.5), processing=(2, 2), outage=2)
"""Slow enough to follow on a screen."""


async def run_demo(
    seed: int, output: Output, *, fast: bool, draws: bool, time_limit: float = _TIME_LIMIT
) -> int:
    """Run the demo, and return the exit status.

    `draws` selects a live screen, which has a slow pace unless `fast` is set.

    Raises:
        click.ClickException: A check failed, or the time limit in seconds was exceeded.
    """
    try:
        with trio.fail_after(time_limit):
            if draws:
                await _run_on_screen(seed, QUICK if fast else SLOW)
            else:
                await _run_story(seed, QUICK, _reporter(output))
    except trio.TooSlowError:
        raise click.ClickException(f"the demo didn't finish within {time_limit:g} s") from None
    return Status.OK


def _reporter(output: Output) -> Reporter:
    if output.as_json:
        return report_json
    return report_end if output.quiet else line_reporter()


async def _run_on_screen(seed: int, pace: Pace) -> None:
    with closing(ScreenReporter(_SOLD, _BOUGHT)) as screen:
        screen.open()
        async with background(screen.animate):
            await _run_story(seed, pace, screen)


async def _run_story(seed: int, pace: Pace, report: Reporter) -> None:
    # Imported here, because `--help` doesn't need it.
    from trio_broker.sandbox import Outcome, open_sandbox  # noqa: PLC0415

    async with open_sandbox(
        seed=seed,
        order_id_prefix="ord_",  # short, as in the broker's documentation
        pending_delay=pace.pending,
        processing_delay=pace.processing,
    ) as sandbox:
        # With some seeds, the order would fail.
        sandbox.next_outcome(Outcome.FILLED_IN_PARTS)
        report(
            "sandbox",
            f"A sandbox broker listens at {sandbox.url} (seed {seed}).",
            url=sandbox.url,
            seed=seed,
        )
        await trio.sleep(pace.pause)
        async with sandbox.client(reconnect=ReconnectPolicy(initial_delay=pace.outage)) as client:
            report("connected", "Connected and authenticated.")
            before, after, order = await _trade(sandbox, client, pace, report)
        report("closed", "Closed the connection.", state=client.state.value)
    check_result(before, after, order)
    report(
        "end",
        f"All done: {plain(_AMOUNT)} {_SOLD} sold for {plain(order.filled_out)} {_BOUGHT}, "
        "and the balances match.",
        ok=True,
        sold=_AMOUNT,
        bought=order.filled_out,
    )


async def _trade(
    sandbox: Sandbox, client: BrokerWSClient, pace: Pace, report: Reporter
) -> tuple[dict[str, Balance], dict[str, Balance], Order]:
    """Run the part with a connected client; return both balances and the final order."""
    await trio.sleep(pace.pause)
    before = await _balances(client, report)
    await trio.sleep(pace.pause)
    await _estimate(client, report)
    await trio.sleep(pace.pause)
    receipt = await _swap(client, report)
    order = await _follow(client, receipt.order_id, report)
    await trio.sleep(pace.pause)
    await _outage(sandbox, client, report)
    await trio.sleep(pace.pause)
    after = await _balances(client, report, before)
    return before, after, order


async def _balances(
    client: BrokerWSClient, report: Reporter, before: Mapping[str, Balance] | None = None
) -> dict[str, Balance]:
    account = {balance.asset: balance for balance in await client.get_balances()}
    report(
        "balances",
        "\n".join(_balance_lines(account, before)),
        balances={asset: balance.total for asset, balance in account.items()},
    )
    return account


def _balance_lines(
    account: Mapping[str, Balance], before: Mapping[str, Balance] | None
) -> Iterable[str]:
    yield "Balances:" if before is None else "Balances now:"
    for asset, balance in account.items():
        row = f"    {asset:<5} {plain(balance.total):>16}"
        change = Decimal(0) if before is None else balance.total - before[asset].total
        yield f"{row}   {plain(change, '+')}" if change else row


async def _estimate(client: BrokerWSClient, report: Reporter) -> None:
    estimate = await client.estimate_swap(_AMOUNT, _SOLD, _BOUGHT)
    report(
        "estimate",
        f"{plain(_AMOUNT)} {_SOLD} would bring {plain(estimate.expected_out)} {_BOUGHT}.",
        price=estimate.price,
        expected_out=estimate.expected_out,
        fee=estimate.fee,
    )


async def _swap(client: BrokerWSClient, report: Reporter) -> SwapReceipt:
    receipt = await client.do_swap(_AMOUNT, _SOLD, _BOUGHT)
    report(
        "swap",
        f"Swapped: accepted as order {receipt.order_id}.",
        order_id=receipt.order_id,
        status=receipt.status,
        client_order_id=receipt.client_order_id,
    )
    return receipt


async def _follow(client: BrokerWSClient, order_id: str, report: Reporter) -> Order:
    """Follow the order, report each state, and return the final one."""
    async with client.track_order(order_id) as updates:
        async for message in updates:
            order = message.data
            filled = f"   {plain(order.filled_out)} {_BOUGHT}" if order.filled_out else ""
            report(
                "order",
                f"    {order_id} is {order.status}{filled}",
                order_id=order_id,
                client_order_id=order.client_order_id,
                status=order.status,
                filled_out=order.filled_out,
                origin=message.origin,
            )
    return order


async def _outage(sandbox: Sandbox, client: BrokerWSClient, report: Reporter) -> None:
    """Reset the connection while a stream is open, and report how both recover.

    Raises:
        click.ClickException: The stream reported no gap.
    """
    with client.events() as events:
        async with client.subscribe_balances() as updates:
            await updates.receive()
            sandbox.faults.reset()
            while not isinstance(event := await events.receive(), Restored):
                report_reconnection(event, report)
            names = ", ".join(event.channels)
            report("restored", f"Subscribed again to {names}.", channels=event.channels)
            message = await updates.receive()
    if message.gap is None:
        raise click.ClickException("the stream should have reported a gap")
    report(
        "gap",
        f"The stream reports a gap: updates since {message.gap.since:%H:%M:%S} may be missing. "
        f"A {message.origin} of the account follows.",
        since=message.gap.since,
        origin=message.origin,
    )


def report_reconnection(event: ConnectionEvent, report: Reporter) -> None:
    """Report an event between a lost connection and its replacement."""
    if isinstance(event, Disconnected):
        text = f"The connection is lost: {event.error}."
        if event.retry_in is not None:
            text += f" Retrying in {event.retry_in:.2f} s."
        report("lost", text, retry_in=event.retry_in)
    else:
        report("connected", "Connected again.")


def check_result(before: Mapping[str, Balance], after: Mapping[str, Balance], order: Order) -> None:
    """Check that the order was filled and that the balances match it.

    Raises:
        click.ClickException: The check failed.
    """
    if order.status is not OrderStatus.FILLED or not order.filled_out:
        raise click.ClickException(f"the order should be FILLED, but is {order.status}")
    expected = {asset: balance.total for asset, balance in before.items()}
    expected[_SOLD] -= _AMOUNT
    expected[_BOUGHT] += order.filled_out
    held = {asset: balance.total for asset, balance in after.items()}
    if held != expected:
        raise click.ClickException("the balances don't match the order")
    if any(balance.locked for balance in after.values()):
        raise click.ClickException("the order is FILLED, but a part of a balance is still locked")
