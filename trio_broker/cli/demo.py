"""``trio-broker demo``: the whole story, against a sandbox of its own.

The demo believes nothing that it tells: it adds up what the order says that was sold and bought,
and what the account holds in the end must be just that. Otherwise it ends with status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import attrs
import click
import trio

from trio_broker import (
    Balance,
    BrokerError,
    BrokerWSClient,
    ConnectionEvent,
    Disconnected,
    Order,
    OrderStatus,
    ReconnectPolicy,
    Restored,
    SwapReceipt,
)
from trio_broker.cli.demo_telling import Screen, Teller, in_lines, tell_end, tell_json
from trio_broker.cli.ending import Status, run
from trio_broker.cli.options import output_options
from trio_broker.cli.output import Output, console, plain

if TYPE_CHECKING:
    from trio_broker.sandbox import Sandbox

_AMOUNT: Final = Decimal(2)
_SOLD: Final = "ETH"
_BOUGHT: Final = "USDT"

_TIME_LIMIT: Final = 20.0  # seconds; it takes one, or eight where somebody looks on


@attrs.frozen(kw_only=True)
class _Pace:
    """How fast the story goes. It is the broker that is slow, and not the telling.

    Attributes:
        pause: Seconds between two steps.
        pending: For how long the order is PENDING, in seconds.
        processing: From then to its end.
        outage: Up to how long it is until the next try to connect; at least half of it.
    """

    pause: float
    pending: tuple[float, float]
    processing: tuple[float, float]
    outage: float


_QUICK: Final = _Pace(pause=0, pending=(0.05, 0.15), processing=(0.05, 0.35), outage=0.5)
_FOR_EYES: Final = _Pace(pause=0.5, pending=(0.5, 0.5), processing=(2, 2), outage=2)


@click.command()
@click.option(
    "--seed", type=int, default=0, show_default=True, help="What the market's prices depend on."
)
@click.option("--fast", is_flag=True, help="Don't wait for eyes to follow.")
@output_options
def command(*, seed: int, fast: bool, output: Output) -> None:
    """Show the whole story against a broker of play money.

    Connect, swap, follow the order, lose the connection and get it back, check the balances: all of
    it over a real WebSocket, against a broker that runs inside this process. It takes some eight
    seconds on a terminal, and one elsewhere or with --fast. Ends with status 0 only if everything
    that it tells has really happened.

    With --json, one object an event, which "event" names: sandbox (url, seed), connected, balances
    (balances), estimate (price, expected_out, fee), swap (order_id, status, client_order_id), order
    (order_id, status, filled_out, origin), lost (retry_in), restored (channels), gap (since,
    origin), closed (state), and at last end (ok, sold, bought).
    """
    run(lambda: _demo(seed, output, fast=fast), debug=output.debug)


async def _demo(seed: int, output: Output, *, fast: bool) -> int:
    try:
        with trio.fail_after(_TIME_LIMIT):
            if _has_eyes(output):
                await _on_screen(seed, _QUICK if fast else _FOR_EYES)
            else:
                await _story(seed, _QUICK, _teller(output))
    except trio.TooSlowError:
        raise click.ClickException(f"the demo wasn't over after {_TIME_LIMIT:g} s") from None
    return Status.OK


def _has_eyes(output: Output) -> bool:
    """Whether there is a screen that is ours alone. FORCE_COLOR colours a pipe, but makes none."""
    if output.as_json or output.quiet or output.verbose:
        return False
    return sys.stdout.isatty() and console().is_interactive


def _teller(output: Output) -> Teller:
    if output.as_json:
        return tell_json
    return tell_end if output.quiet else in_lines()


async def _on_screen(seed: int, pace: _Pace) -> None:
    failure: Exception | None = None
    with closing(Screen(_SOLD, _BOUGHT)) as screen:
        screen.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(screen.animate)
            try:
                await _story(seed, pace, screen.tell)
            except (click.ClickException, BrokerError, OSError) as error:
                failure = error  # kept back, as the nursery would wrap it into a group
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _story(seed: int, pace: _Pace, tell: Teller) -> None:
    # Not at the top: `--help` needs no broker.
    from trio_broker.sandbox import Outcome, open_sandbox  # noqa: PLC0415

    async with open_sandbox(
        seed=seed, pending_delay=pace.pending, processing_delay=pace.processing
    ) as sandbox:
        # However the seed would have it: a demo of a swap that fails is no use.
        sandbox.next_outcome(Outcome.FILLED_IN_PARTS)
        tell(
            "sandbox",
            f"A broker of play money listens at {sandbox.url} (seed {seed}).",
            url=sandbox.url,
            seed=seed,
        )
        await trio.sleep(pace.pause)
        async with sandbox.client(reconnect=ReconnectPolicy(initial_delay=pace.outage)) as client:
            tell("connected", "Connected and authenticated.")
            before, after, order = await _business(sandbox, client, pace, tell)
        tell("closed", "Said goodbye.", state=client.state.value)
    _check(before, after, order)
    tell(
        "end",
        f"It all happened: {plain(_AMOUNT)} {_SOLD} sold for {plain(order.filled_out)} "
        f"{_BOUGHT}, and the balances say the same.",
        ok=True,
        sold=_AMOUNT,
        bought=order.filled_out,
    )


async def _business(
    sandbox: Sandbox, client: BrokerWSClient, pace: _Pace, tell: Teller
) -> tuple[dict[str, Balance], dict[str, Balance], Order]:
    """What happens while the client is there: the balances before and after, and the order."""
    await trio.sleep(pace.pause)
    before = await _balances(client, tell)
    await trio.sleep(pace.pause)
    await _estimate(client, tell)
    await trio.sleep(pace.pause)
    receipt = await _swap(client, tell)
    order = await _follow(client, receipt.order_id, tell)
    await trio.sleep(pace.pause)
    await _outage(sandbox, client, tell)
    await trio.sleep(pace.pause)
    after = await _balances(client, tell, before)
    return before, after, order


async def _balances(
    client: BrokerWSClient, tell: Teller, before: Mapping[str, Balance] | None = None
) -> dict[str, Balance]:
    account = {balance.asset: balance for balance in await client.get_balances()}
    tell(
        "balances",
        "\n".join(_rows(account, before)),
        balances={asset: balance.total for asset, balance in account.items()},
    )
    return account


def _rows(account: Mapping[str, Balance], before: Mapping[str, Balance] | None) -> Iterable[str]:
    yield "The account holds" if before is None else "The account holds now"
    for asset, balance in account.items():
        row = f"    {asset:<5} {plain(balance.total):>16}"
        change = Decimal(0) if before is None else balance.total - before[asset].total
        yield f"{row}   {plain(change, '+')}" if change else row


async def _estimate(client: BrokerWSClient, tell: Teller) -> None:
    estimate = await client.estimate_swap(_AMOUNT, _SOLD, _BOUGHT)
    tell(
        "estimate",
        f"{plain(_AMOUNT)} {_SOLD} would bring {plain(estimate.expected_out)} {_BOUGHT}.",
        price=estimate.price,
        expected_out=estimate.expected_out,
        fee=estimate.fee,
    )


async def _swap(client: BrokerWSClient, tell: Teller) -> SwapReceipt:
    receipt = await client.do_swap(_AMOUNT, _SOLD, _BOUGHT)
    tell(
        "swap",
        f"Swapped: the broker took it as {receipt.order_id}.",
        order_id=receipt.order_id,
        status=receipt.status,
        client_order_id=receipt.client_order_id,
    )
    return receipt


async def _follow(client: BrokerWSClient, order_id: str, tell: Teller) -> Order:
    """The order's final state, every state on the way there told."""
    async with client.track_order(order_id) as progress:
        async for message in progress:
            order = message.data
            filled = f"   {plain(order.filled_out)} {_BOUGHT}" if order.filled_out else ""
            tell(
                "order",
                f"    {order_id} is {order.status}{filled}",
                order_id=order_id,
                status=order.status,
                filled_out=order.filled_out,
                origin=message.origin,
            )
    return order


async def _outage(sandbox: Sandbox, client: BrokerWSClient, tell: Teller) -> None:
    """Cut the line under a stream that is open, and tell how both come back.

    Raises:
        click.ClickException: The stream doesn't say what it missed.
    """
    with client.events() as events:
        async with await client.subscribe_balances() as updates:
            await updates.receive()
            sandbox.faults.reset()
            while not isinstance(event := await events.receive(), Restored):
                _tell_on_the_way(event, tell)
            names = ", ".join(event.channels)
            tell("restored", f"Subscribed again to {names}.", channels=event.channels)
            message = await updates.receive()
    if message.gap is None:
        raise click.ClickException("the stream should have said that something may be missing")
    tell(
        "gap",
        f"The stream says so: since {message.gap.since:%H:%M:%S} something may be missing, "
        f"and here is the account as a {message.origin}.",
        since=message.gap.since,
        origin=message.origin,
    )


def _tell_on_the_way(event: ConnectionEvent, tell: Teller) -> None:
    if isinstance(event, Disconnected):
        text = f"The line is cut: {event.error}."
        if event.retry_in is not None:
            text += f" The next try is in {event.retry_in:.2f} s."
        tell("lost", text, retry_in=event.retry_in)
    else:
        tell("connected", "Connected again.")


def _check(before: Mapping[str, Balance], after: Mapping[str, Balance], order: Order) -> None:
    """Hold what the account holds against what the order says.

    Raises:
        click.ClickException: They differ.
    """
    if order.status is not OrderStatus.FILLED or not order.filled_out:
        raise click.ClickException(f"the order should be FILLED, and is {order.status}")
    expected = {asset: balance.total for asset, balance in before.items()}
    expected[_SOLD] -= _AMOUNT
    expected[_BOUGHT] += order.filled_out
    held = {asset: balance.total for asset, balance in after.items()}
    if held != expected:
        raise click.ClickException("the balances didn't change by what the order says")
    if any(balance.locked for balance in after.values()):
        raise click.ClickException("something is still locked, and the order is FILLED")
