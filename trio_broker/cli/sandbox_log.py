"""What ``trio-broker sandbox`` tells of its clients, on standard error.

No secret and no signature is in what the sandbox tells, so none can be here. What a client sent is
escaped, and cut by the sandbox.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable
from typing import Final

import click

from trio_broker.cli.output import Output, console, plain, printable
from trio_broker.sandbox import (
    ClientAsked,
    ClientCame,
    ClientLeft,
    ClientTurnedAway,
    Order,
    OrderMoved,
    SandboxEvent,
)

_DEEDS: Final = {
    "auth": "authenticated as {account}",
    "subscribe": "subscribed to {channel}",
    "unsubscribe": "unsubscribed from {channel}",
    "balances": "asked for the balances",
    "estimate": "asked for an estimate",
    "swap": "swapped {terms}: {order}",
    "order_status": "asked for {order}",
}
_COLOURS: Final = {
    ClientCame: "green",
    ClientTurnedAway: "red",
    ClientLeft: "magenta",
    OrderMoved: "cyan",
}


class Log:
    """Prints a line for each thing that happens.

    Args:
        output: How it was asked to print.
        clock: What time it is.
    """

    def __init__(
        self,
        output: Output,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._as_json = output.as_json
        self._is_wanted = not output.quiet
        self._clock = clock
        # rich looks whether there is a terminal to be coloured, but doesn't print: where the reader
        # has gone it would end the process, and a sandbox goes on without one.
        terminal = console(stderr=True)
        self._is_coloured = terminal.color_system is not None and not terminal.no_color

    def event(self, event: SandboxEvent) -> None:
        """Print what happened at the sandbox.

        Args:
            event: It.
        """
        self._print(told(event), colour_of(event), facts(event))

    def fault(self, name: str, deed: str, count: int | None) -> None:
        """Print that a fault has struck.

        Args:
            name: Its name.
            deed: What it did.
            count: To how many connections; None if nobody counted.
        """
        text = f"   {name}: {deed}" + ("" if count is None else f" ({count})")
        values: dict[str, object] = {
            "event": "fault",
            "name": name,
            "what": deed,
            "connections": count,
        }
        self._print(text, "bright_red", values)

    def _print(self, text: str, colour: str | None, values: dict[str, object]) -> None:
        if not self._is_wanted:
            return
        now = self._clock()
        if self._as_json:
            line = json.dumps({"at": now.isoformat(timespec="milliseconds"), **values})
        else:
            line = f"{now:%H:%M:%S}.{now.microsecond // 1000:03d} {text}"
            if self._is_coloured:
                line = click.style(line, fg=colour)
        with contextlib.suppress(OSError):
            click.echo(line, err=True, color=self._is_coloured)


def colour_of(event: SandboxEvent) -> str | None:
    """Which colour a line has on a terminal; None for the terminal's own.

    Args:
        event: What it tells.
    """
    match event:
        case ClientAsked(error=None, was_handled=True):
            return None
        case ClientAsked() | ClientLeft(code=None):
            return "red"
        case _:
            return _COLOURS.get(type(event))


def told(event: SandboxEvent) -> str:
    """What happened, for people.

    Args:
        event: It.
    """
    match event:
        case ClientCame(connection=number):
            return f"#{number} connected"
        case ClientAsked(connection=number):
            return f"#{number} {_asked(event)}"
        case ClientLeft(connection=number):
            return f"#{number} {_left(event)}"
        case OrderMoved(order=order):
            return f"   {_moved(order)}"
        case _:
            return "   a connection was turned away by a fault"


def _asked(event: ClientAsked) -> str:
    what = printable(" ".join(filter(None, (event.op, event.channel)))) or "what can't be read"
    if not event.was_handled:
        return f"{what}: kept from the broker by a fault"
    if event.error is not None:
        return f"refused {what}: {printable(event.error)}"
    order = event.order
    return _DEEDS[event.op or ""].format(
        account=event.api_key,
        channel=printable(event.channel or ""),
        terms="" if order is None else _terms(order),
        order="" if order is None else f"{order.order_id} is {order.status}",
    )


def _terms(order: Order) -> str:
    terms = order.terms
    return f"{plain(terms.amount_in)} {terms.asset_in} for {terms.asset_out}"


def _moved(order: Order) -> str:
    text = f"{order.order_id} is {order.status}"
    if order.filled_in:
        sold, whole = plain(order.filled_in), plain(order.terms.amount_in)
        part = sold if sold == whole else f"{sold} of {whole}"
        bought = f"{plain(order.filled_out)} {order.terms.asset_out}"
        text += f": {part} {order.terms.asset_in} sold for {bought}"
    return f"{text} ({order.reason})" if order.reason else text


def _left(event: ClientLeft) -> str:
    if event.was_dropped:
        return "dropped by the sandbox"
    if event.code is None:
        return "lost, without a goodbye"
    reason = printable(event.reason)
    return f"closed with code {event.code}" + (f": {reason}" if reason else "")


def facts(event: SandboxEvent) -> dict[str, object]:
    """What happened, for programs: the members of a JSON object.

    Args:
        event: It.
    """
    match event:
        case ClientCame(connection=number):
            return {"event": "connected", "connection": number}
        case ClientAsked():
            return {
                "event": "asked",
                "connection": event.connection,
                "account": event.api_key,
                "op": event.op,
                "channel": event.channel,
                "order_id": None if event.order is None else event.order.order_id,
                "error": event.error,
                "handled": event.was_handled,
            }
        case OrderMoved(order=order):
            return {
                "event": "order",
                "account": order.api_key,
                "order_id": order.order_id,
                "status": order.status.value,
                "asset_in": order.terms.asset_in,
                "sold": plain(order.filled_in),
                "asset_out": order.terms.asset_out,
                "bought": plain(order.filled_out),
                "reason": order.reason,
            }
        case ClientLeft():
            return {
                "event": "left",
                "connection": event.connection,
                "account": event.api_key,
                "code": event.code,
                "reason": event.reason,
                "dropped": event.was_dropped,
            }
        case _:
            return {"event": "turned_away"}
