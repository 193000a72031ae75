"""The log of client activity that ``trio-broker sandbox`` prints to standard error.

The sandbox's events contain no secrets and no signatures, and long texts of clients are truncated.
The log escapes these texts.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Mapping
from typing import Final

import click

from trio_broker.cli.terminal.output import Output, console, plain, printable
from trio_broker.sandbox import (
    ClientAsked,
    ClientCame,
    ClientLeft,
    ClientTurnedAway,
    Order,
    OrderMoved,
    RestAsked,
    SandboxEvent,
)

_REQUESTS: Final = {
    "auth": "authenticated as {account}",
    "subscribe": "subscribed to {channel}",
    "unsubscribe": "unsubscribed from {channel}",
    "balances": "requested the balances",
    "estimate": "requested an estimate",
    "swap": "swapped {terms}: {order}",
    "order_status": "requested an order: {order}",
}
_COLOURS: Final = {
    ClientCame: "green",
    ClientTurnedAway: "red",
    ClientLeft: "magenta",
    OrderMoved: "cyan",
}


class EventLog:
    """Prints a line for each event."""

    def __init__(
        self,
        output: Output,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._as_json = output.as_json
        self._is_enabled = not output.quiet
        self._clock = clock
        # rich only detects whether the terminal has colours. It isn't used to print, because it
        # would exit the process if the reader of standard error is gone.
        terminal = console(stderr=True)
        self._is_coloured = terminal.color_system is not None and not terminal.no_color

    def event(self, event: SandboxEvent) -> None:
        """Print an event of the sandbox."""
        self._print(describe(event), colour_of(event), _members(event))

    def fault(self, name: str, what: str, count: int | None) -> None:
        """Print the action of a periodic fault, and the number of connections if it is known."""
        text = f"   {name}: {what}" + ("" if count is None else f" ({count})")
        members = {"event": "fault", "name": name, "what": what, "connections": count}
        self._print(text, "bright_red", members)

    def _print(self, text: str, colour: str | None, members: Mapping[str, object]) -> None:
        if not self._is_enabled:
            return
        now = self._clock()
        if self._as_json:
            line = json.dumps({"at": now.isoformat(timespec="milliseconds"), **members})
        else:
            line = f"{now:%H:%M:%S}.{now.microsecond // 1000:03d} {text}"
            if self._is_coloured:
                line = click.style(line, fg=colour)
        with contextlib.suppress(OSError):
            click.echo(line, err=True, color=self._is_coloured)


def colour_of(event: SandboxEvent) -> str | None:
    """Return the colour of an event's line; None for the default."""
    match event:
        case ClientAsked(error=None, was_handled=True):
            return None
        case RestAsked(status=int(status)) if status < 400:
            return None
        case ClientAsked() | ClientLeft(code=None) | RestAsked():
            return "red"
        case _:
            return _COLOURS.get(type(event))


def describe(event: SandboxEvent) -> str:
    """Describe an event in one line."""
    match event:
        case ClientCame(connection=number):
            return f"#{number} connected"
        case ClientAsked(connection=number):
            return f"#{number} {_describe_request(event)}"
        case RestAsked():
            reply = "dropped by a fault" if event.status is None else event.status
            return f"   REST: {printable(f'{event.method} {event.path}')}: {reply}"
        case ClientLeft(connection=number):
            return f"#{number} {_describe_close(event)}"
        case OrderMoved(order=order):
            return f"   {_describe_order(order)}"
        case _:
            return "   a connection was refused by a fault"


def _describe_request(event: ClientAsked) -> str:
    what = printable(" ".join(filter(None, (event.op, event.channel)))) or "an unreadable message"
    if not event.was_handled:
        return f"{what}: dropped by a fault"
    if event.error is not None:
        return f"refused {what}: {printable(event.error)}"
    order = event.order
    return _REQUESTS[event.op or ""].format(
        account=event.api_key,
        channel=printable(event.channel or ""),
        terms="" if order is None else _terms(order),
        order="" if order is None else f"{order.order_id} is {order.status}",
    )


def _terms(order: Order) -> str:
    terms = order.terms
    return f"{plain(terms.amount_in)} {terms.asset_in} for {terms.asset_out}"


def _describe_order(order: Order) -> str:
    text = f"{order.order_id} is {order.status}"
    if order.filled_in:
        sold, whole = plain(order.filled_in), plain(order.terms.amount_in)
        part = sold if sold == whole else f"{sold} of {whole}"
        bought = f"{plain(order.filled_out)} {order.terms.asset_out}"
        text += f": {part} {order.terms.asset_in} sold for {bought}"
    return f"{text} ({order.reason})" if order.reason else text


def _describe_close(event: ClientLeft) -> str:
    if event.was_dropped:
        return "dropped by the sandbox"
    if event.code is None:
        return "lost without a close frame"
    reason = printable(event.reason)
    return f"closed with code {event.code}" + (f": {reason}" if reason else "")


def _members(event: SandboxEvent) -> dict[str, object]:
    """Return the JSON members of an event."""
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
        case RestAsked():
            return {
                "event": "rest",
                "method": event.method,
                "path": event.path,
                "status": event.status,
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
