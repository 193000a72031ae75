"""``trio-broker doctor``: checks each step from the configuration to a subscription."""

from __future__ import annotations

import math
from typing import Any

import click

from trio_broker.cli.doctor.checklist import STEPS
from trio_broker.cli.doctor.report import printer, summary
from trio_broker.cli.doctor.steps import CheckContext, exit_status, run_steps
from trio_broker.cli.options import account_flags, output_options
from trio_broker.cli.runner import run
from trio_broker.cli.terminal.output import Output


def _seconds(_: click.Context, __: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter("it must be positive and finite")
    return value


@click.command()
@click.option(
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    callback=_seconds,
    metavar="SECONDS",
    help="The time limit of a step. Authentication also connects, so it may take twice as long.",
)
@account_flags
@output_options
def command(*, timeout: float, flags: dict[str, Any], output: Output) -> None:
    """Check each step from the configuration to a subscription.

    The result of a step is ok, slow, skipped or failed, with advice. If a step fails, the steps
    that need it are skipped. Nothing is changed: the only requests are for the balances.

    \b
    configuration   the settings, and where each was found
    dns             the addresses of the broker's host
    tcp             the address that accepts connections
    tls             the certificate, and how long it is valid
    handshake       whether the server speaks WebSocket
    authentication  whether the broker accepts the keys
    clock           how far this machine's clock is off
    latency         the duration of 5 requests
    subscription    whether a snapshot of the balances arrives
    versions        the versions of this software

    The result "slow" means that the step works but needs attention. The causes are: a step of more
    than 1 s (authentication: 3 s); a median latency of more than 0.5 s; a certificate that expires
    in less than 14 days; a clock that is off by more than 5 s (30 s or more is a failure, because
    the broker refuses the timestamps); a file with the secret key that other users can read; ws://
    to a remote host.

    --json prints one object per step: step, result, detail, advice, seconds (advice and seconds may
    be null). The exit status is 0 if nothing failed, otherwise that of the first failure: 2
    configuration, 3 authentication, 4 connection, 5 refused by the broker, 1 anything else.
    """  # noqa: D301 - click wants the character, not the backslash
    context = CheckContext(flags=flags, timeout=timeout)
    run(lambda: _run(context, output), debug=output.debug)


async def _run(context: CheckContext, output: Output) -> int:
    results = await run_steps(context, STEPS, printer(output))
    output.note(summary(results))
    return exit_status(results)
