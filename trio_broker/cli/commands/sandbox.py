"""``trio-broker sandbox``: runs a sandbox broker for other processes."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click
import trio

from trio_broker.cli.errors import Status
from trio_broker.cli.options import output_options
from trio_broker.cli.runner import run
from trio_broker.cli.sandbox.faults import FaultType, MillisecondsType, RequestedFault, help_rows
from trio_broker.cli.terminal.output import Output

_F = TypeVar("_F", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class _Options:
    """The options of the command."""

    host: str
    port: int
    rest_port: int
    seed: int | None
    state: Path | None
    settings: Mapping[str, Any]  # of the sandbox
    latency: float  # seconds
    faults: Sequence[RequestedFault]


class _Command(click.Command):
    """A command whose help lists the faults."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Faults"):
            formatter.write_dl(help_rows())


# The options that are settings of the sandbox. It checks them.
_SETTINGS: Final[Mapping[str, tuple[Any, str]]] = {
    "dialect": (
        click.Choice(["both", "clients", "docs"]),
        "Whose form of requests is required: the broker's clients' or its documentation's.",
    ),
    "signing-key": (
        click.Choice(["derived", "raw"]),
        "The required signing key, instead of the dialect's.",
    ),
    "error-form": (
        click.Choice(["documented", "named", "object"]),
        "The form of errors: a text alone; with op and ch; or an object with code and message.",
    ),
    "order-id-prefix": (
        str,
        "How order ids begin; by default, random for each new ledger.",
    ),
    "client-order-id-in-receipts/--no-client-order-id-in-receipts": (
        None,
        "Whether the reply to a swap has its client order id.",
    ),
    "client-order-id-in-lookups/--no-client-order-id-in-lookups": (
        None,
        "Whether the reply to order_status has the client order id.",
    ),
    "lookup-by-client-order-id/--no-lookup-by-client-order-id": (
        None,
        "Whether order_status finds orders by client order id.",
    ),
}


def _setting_options(function: _F) -> _F:
    """Add the options of `_SETTINGS` to a command; those that aren't given are None."""
    for name, (kind, text) in reversed(list(_SETTINGS.items())):
        metavar = "PREFIX" if kind is str else None
        function = click.option(f"--{name}", type=kind, default=None, metavar=metavar, help=text)(
            function
        )
    return function


def _checked_host(_: click.Context, __: click.Parameter, host: str) -> str:
    # Checked here, because a UnicodeError of the resolver would be reported as a bug.
    try:
        host.encode("idna")
    except UnicodeError:
        raise click.BadParameter(f"{host!r} is not a valid host name or address") from None
    return host


@click.command(cls=_Command)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    callback=_checked_host,
    help="The address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="The TCP port; 0 picks a free port.",
)
@click.option(
    "--rest-port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="The TCP port of the REST side; 0 picks a free port.",
)
@click.option(
    "--seed",
    type=int,
    default=None,
    show_default="0, or that of --state",
    help="The seed for prices and order outcomes.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep balances and orders in this file, and continue from it after a restart.",
)
@_setting_options
@click.option(
    "--latency",
    type=MillisecondsType(),
    default=0.0,
    metavar="MS",
    help="Delay all replies and pushes by this many milliseconds.",
)
@click.option(
    "--fault",
    "faults",
    type=FaultType(),
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Inject one of the faults below; can be repeated.",
)
@output_options
def command(*, output: Output, **options: Any) -> None:
    """Run a sandbox broker with play money until Ctrl-C.

    The URLs and the keys of the first account are printed in the format of a .env file, with the
    dialect if it is docs. The sandbox has no TLS: anyone who can reach the address can read the
    traffic.

    Standard error has a log of client activity, with times in UTC; --quiet disables it. With
    --json, the log has one object per event. Unknown values are null. Each object has "event",
    "at", and:

    \b
    connected    connection
    asked        connection, account, op, channel, order_id, error, handled
    rest         method, path, status
    order        account, order_id, status, asset_in, sold, asset_out, bought,
                 reason
    left         connection, account, code, reason, dropped
    turned_away
    fault        name, what, connections
    """  # noqa: D301 - click's mark for lines that are not wrapped
    names = [name.partition("/")[0].replace("-", "_") for name in _SETTINGS]
    settings = {name: options.pop(name) for name in names}
    given = {name: value for name, value in settings.items() if value is not None}
    run(lambda: _serve(_Options(settings=given, **options), output), debug=output.debug)


async def _serve(options: _Options, output: Output) -> int:
    # Imported here, because `--help` doesn't need it.
    from trio_broker.cli.sandbox.event_log import EventLog  # noqa: PLC0415
    from trio_broker.sandbox import open_sandbox  # noqa: PLC0415

    log = EventLog(output)
    async with open_sandbox(
        seed=options.seed,
        host=options.host,
        port=options.port,
        rest_port=options.rest_port,
        state=options.state,
        on_event=log.event,
        **options.settings,
    ) as sandbox:
        # Signals are received and not raised, so that connections are closed cleanly. After this
        # block they are raised again: a second Ctrl-C interrupts the closing.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            if options.latency:
                sandbox.faults.delay(options.latency)
            for fault in options.faults:
                if not fault.is_periodic:
                    fault.begin(sandbox.faults)
            variables = {
                "BROKER_WS_URL": sandbox.url,
                "BROKER_REST_URL": sandbox.rest_url,
                "BROKER_API_KEY": sandbox.api_key,
                "BROKER_SECRET_KEY": sandbox.secret_key,
                **({"BROKER_DIALECT": "docs"} if options.settings.get("dialect") == "docs" else {}),
            }
            click.echo("\n".join(f"{name}={value}" for name, value in variables.items()))
            output.note("The sandbox runs until Ctrl-C.")
            async with trio.open_nursery() as nursery:
                for fault in options.faults:
                    if fault.is_periodic:
                        report = functools.partial(log.fault, fault.name)
                        nursery.start_soon(fault.repeat, sandbox.faults, report)
                received = await anext(aiter(signals))
                nursery.cancel_scope.cancel()
    return Status.INTERRUPTED if received == signal.SIGINT else Status.OK
