"""``trio-broker sandbox``: a broker of play money for other processes."""

from __future__ import annotations

import functools
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from trio_broker.cli.ending import Status, run
from trio_broker.cli.options import output_options
from trio_broker.cli.output import Output
from trio_broker.cli.sandbox_faults import (
    AskedFault,
    FaultType,
    MillisecondsType,
    help_rows,
)


@attrs.frozen(kw_only=True)
class _Wishes:
    """What the sandbox is to be like."""

    host: str
    port: int
    seed: int | None
    state: Path | None
    latency: float  # seconds
    faults: Sequence[AskedFault]


class _Command(click.Command):
    """Has the faults in its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Faults"):
            formatter.write_dl(help_rows())


@click.command(cls=_Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="The TCP port; 0 for any that is free.",
)
@click.option(
    "--seed",
    type=int,
    default=None,
    show_default="0, or the one of --state",
    help="What prices, and how orders go, depend on.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file for balances and orders; started with it again, the sandbox goes on from there.",
)
@click.option(
    "--latency",
    type=MillisecondsType(),
    default=0.0,
    metavar="MS",
    help="Say everything so many milliseconds later.",
)
@click.option(
    "--fault",
    "faults",
    type=FaultType(),
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Misbehave: one of the faults below; may be repeated.",
)
@output_options
def command(*, output: Output, **wishes: Any) -> None:
    """Serve a broker of play money until Ctrl-C.

    Its URL and the keys of its first account are printed as lines that a shell, or a .env file,
    takes as they are. There is no TLS: whoever reaches the address can read along.

    What clients do is told on standard error, with the time in UTC; not with --quiet. With --json
    it is one object a line: at, event, and what belongs to the event: connected (connection), asked
    (connection, account, op, channel, order_id, error, handled), order (account, order_id, status,
    asset_in, sold, asset_out, bought, reason), left (connection, account, code, reason, dropped),
    turned_away, fault (name, what, connections). What isn't known is null.
    """
    run(lambda: _serve(_Wishes(**wishes), output), debug=output.debug)


async def _serve(wishes: _Wishes, output: Output) -> int:
    # Not at the top: `--help` needs no broker.
    from trio_broker.cli.sandbox_log import Log  # noqa: PLC0415
    from trio_broker.sandbox import open_sandbox  # noqa: PLC0415

    log = Log(output)
    async with open_sandbox(
        seed=wishes.seed,
        host=wishes.host,
        port=wishes.port,
        state=wishes.state,
        on_event=log.event,
    ) as sandbox:
        # Signals are received rather than raised, so that clients get a polite goodbye. Outside of
        # this block they are raised again: a second Ctrl-C ends the goodbye.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            if wishes.latency:
                sandbox.faults.delay(wishes.latency)
            for fault in wishes.faults:
                if not fault.is_periodic:
                    fault.begin(sandbox.faults)
            click.echo(f"BROKER_WS_URL={sandbox.url}")
            click.echo(f"BROKER_API_KEY={sandbox.api_key}")
            click.echo(f"BROKER_SECRET_KEY={sandbox.secret_key}")
            output.note("Serving play money until Ctrl-C.")
            async with trio.open_nursery() as nursery:
                for fault in wishes.faults:
                    if fault.is_periodic:
                        report = functools.partial(log.fault, fault.name)
                        nursery.start_soon(fault.repeat, sandbox.faults, report)
                received = await anext(aiter(signals))
                nursery.cancel_scope.cancel()
    return Status.INTERRUPTED if received == signal.SIGINT else Status.OK
