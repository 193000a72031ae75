"""``trio-broker demo``: the whole story, against a sandbox of its own.

The demo believes nothing that it tells: it adds up what the order says that was sold and bought,
and what the account holds in the end must be just that. Otherwise it ends with status 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final, Protocol

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
from trio_broker.cli.ending import run
from trio_broker.sandbox import Outcome, Sandbox, open_sandbox

_AMOUNT: Final = Decimal(2)
_SOLD: Final = "ETH"
_BOUGHT: Final = "USDT"

_TIME_LIMIT: Final = 9.0  # seconds; it takes one
# Quicker than the default, so that nobody has to wait for the story to go on.
_POLICY: Final = ReconnectPolicy(initial_delay=0.5)
_STYLES: Final = {
    "lost": "bold red",
    "restored": "green",
    "sandbox": "dim",
    "swap": "bold",
    "order": "cyan",
    "end": "bold green",
}


class Teller(Protocol):
    """Tells one event of the story."""

    def __call__(self, event: str, text: str, **facts: object) -> None:
        """Tell it.

        Args:
            event: Its name.
            text: It in words, for people.
            **facts: It in values, for programs.
        """


@click.command()
@click.option(
    "--seed", type=int, default=0, show_default=True, help="What the market's prices depend on."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(*, seed: int, as_json: bool) -> None:
    """Connect, swap, follow the order, lose the connection and get it back, check the balances.

    All of it over a real WebSocket, against a broker of play money that runs inside this process.
    Ends with status 0 only if everything that it tells has really happened.
    """
    tell = _tell_json if as_json else _console_teller()
    run(lambda: _demo(seed, tell))


async def _demo(seed: int, tell: Teller) -> int:
    try:
        with trio.fail_after(_TIME_LIMIT):
            await _story(seed, tell)
    except trio.TooSlowError:
        raise click.ClickException(f"the demo wasn't over after {_TIME_LIMIT:g} s") from None
    return 0


async def _story(seed: int, tell: Teller) -> None:
    async with open_sandbox(seed=seed) as sandbox:
        # However the seed would have it: a demo of a swap that fails is no use.
        sandbox.next_outcome(Outcome.FILLED_IN_PARTS)
        tell(
            "sandbox",
            f"A broker of play money listens at {sandbox.url} (seed {seed}).",
            url=sandbox.url,
            seed=seed,
        )
        async with sandbox.client(reconnect=_POLICY) as client:
            tell("connected", "Connected and authenticated.", state=client.state.value)
            before = await _balances(client, tell)
            receipt = await _swap(client, tell)
            order = await _follow(client, receipt.order_id, tell)
            await _outage(sandbox, client, tell)
            after = await _balances(client, tell, before)
        tell("closed", "Said goodbye.", state=client.state.value)
    _check(before, after, order)
    tell(
        "end",
        f"It all happened: {_plain(_AMOUNT)} {_SOLD} sold for {_plain(order.filled_out or 0)} "
        f"{_BOUGHT}, and the balances say the same.",
        ok=True,
        sold=_AMOUNT,
        bought=order.filled_out,
    )


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
        row = f"    {asset:<5} {_plain(balance.total):>16}"
        change = Decimal(0) if before is None else balance.total - before[asset].total
        yield f"{row}   {_plain(change, '+')}" if change else row


async def _swap(client: BrokerWSClient, tell: Teller) -> SwapReceipt:
    estimate = await client.estimate_swap(_AMOUNT, _SOLD, _BOUGHT)
    tell(
        "estimate",
        f"{_plain(_AMOUNT)} {_SOLD} would bring {_plain(estimate.expected_out)} {_BOUGHT}.",
        price=estimate.price,
        expected_out=estimate.expected_out,
        fee=estimate.fee,
    )
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
            filled = f"   {_plain(order.filled_out)} {_BOUGHT}" if order.filled_out else ""
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
        tell("connected", "Connected again.", at=event.at)


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


def _plain(amount: Decimal | int, sign: str = "") -> str:
    """An amount without an exponent and without zeros that say nothing."""
    text = format(Decimal(amount), f"{sign}f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _tell_json(event: str, text: str, **facts: object) -> None:  # noqa: ARG001 - text is for people
    click.echo(json.dumps({"event": event, **facts}, default=_json_value))


def _json_value(value: object) -> str:
    return _plain(value) if isinstance(value, Decimal) else str(value)


def _console_teller() -> Teller:
    # Not at the top: rich is slow to import, and `--help` needs none of it.
    from rich.console import Console  # noqa: PLC0415

    # It looks itself whether there is a terminal to be coloured.
    console = Console(highlight=False, soft_wrap=True)

    def tell(event: str, text: str, **_: object) -> None:
        console.print(text, style=_STYLES.get(event), markup=False)

    return tell
