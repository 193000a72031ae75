"""``trio-broker doctor``: where it goes wrong, step by step."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from trio_broker.cli import checks, reach
from trio_broker.cli.checkup import Checked, Result, Step, Visit, examine, status
from trio_broker.cli.ending import run
from trio_broker.cli.options import account_flags, output_options
from trio_broker.cli.output import Output, console, print_json, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

# The help tells of these.
_SLOW: Final = 1.0
_SLOW_AUTHENTICATION: Final = 3.0

_NETWORK: Final = "look at the network between here and the broker"

STEPS: Final = (
    Step(name="configuration", check=checks.configure),
    Step(
        name="dns", check=reach.resolve, needs="configuration",
        slow_above=_SLOW, if_slow="look at the resolver that this machine uses",
    ),
    Step(
        name="tcp", check=reach.connect, needs="dns", slow_above=_SLOW, if_slow=_NETWORK,
        keeps_time=True,
    ),
    Step(name="tls", check=reach.secure, needs="tcp", slow_above=_SLOW, if_slow=_NETWORK),
    Step(
        name="handshake", check=reach.shake_hands, needs="tls",
        slow_above=_SLOW, if_slow="the broker, or what stands in front of it, is slow: try later",
    ),
    Step(
        name="authentication", check=checks.authenticate, needs="handshake",
        slow_above=_SLOW_AUTHENTICATION, if_slow="the broker is slow: try later", keeps_time=True,
    ),
    # A broker that refuses the timestamp is just the one whose time is wanted.
    Step(name="clock", check=checks.compare_clocks, needs="tls"),
    Step(name="latency", check=checks.measure, needs="authentication", keeps_time=True),
    Step(
        name="subscription", check=checks.subscribe, needs="latency",
        slow_above=_SLOW, if_slow="the broker is slow: try later", keeps_time=True,
    ),
    Step(name="versions", check=checks.list_versions),
)  # fmt: skip

_STYLES: Final[Mapping[Result, str]] = {
    "ok": "green",
    "slow": "yellow",
    "skipped": "dim",
    "failed": "bold red",
}
_WIDEST_RESULT: Final = max(map(len, _STYLES))
_WIDEST_NAME: Final = max(len(step.name) for step in STEPS)
_NARROW: Final = 64


def _seconds(_: click.Context, __: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter("it must be more than 0, and finite")
    return value


@click.command()
@click.option(
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    callback=_seconds,
    metavar="SECONDS",
    help="How long a step may take; authentication twice as long, as it connects anew.",
)
@account_flags
@output_options
def command(*, timeout: float, flags: dict[str, Any], output: Output) -> None:
    """Check each step from the configuration to a subscription.

    A step is ok, slow, skipped or failed, and each tells what to do. One that fails skips those
    that build on it. Nothing is changed: the broker is asked for the balances, and no more.

    \b
    configuration   which settings there are, and where each is from
    dns             which addresses the broker's name has
    tcp             which of them answers
    tls             whose certificate it is, and until when it is good
    handshake       whether there is a WebSocket
    authentication  whether the broker takes the keys
    clock           how far this machine's clock is off
    latency         how long 5 calls take
    subscription    whether the balances' snapshot comes
    versions        what runs here

    What is slow works, but should be seen to: a step of more than 1 s (authentication: 3 s), a
    median call of more than 0.5 s, a certificate with less than 14 days left, a clock that is off
    by more than 5 s (from 30 s on it has failed, as the broker refuses the timestamps), a file
    with the secret key that others can read, and ws:// to another machine.

    With --json, one object a step: step, result, detail, advice, seconds (advice and seconds may
    be null). The exit status is 0 if nothing failed, otherwise the first failure's: 2
    configuration, 3 authentication, 4 connection, 5 refused by the broker, 1 anything else.
    """  # noqa: D301 - click wants the character, not the backslash
    visit = Visit(flags=flags, timeout=timeout)
    run(lambda: _examine(visit, output), debug=output.debug)


async def _examine(visit: Visit, output: Output) -> int:
    taken = await examine(visit, STEPS, _printer(output))
    output.note(summary(taken))
    return status(taken)


def summary(taken: Sequence[Checked]) -> str:
    """How a check-up went, in a line.

    Args:
        taken: Its steps.
    """
    failures = [each.step for each in taken if each.finding.result == "failed"]
    warnings = [each.step for each in taken if each.finding.result == "slow"]
    if failures:
        return f"Failed: {', '.join(failures)}."
    return f"It works, but see to: {', '.join(warnings)}." if warnings else "All is well."


def _printer(output: Output) -> Callable[[Checked], None]:
    """What prints a step once it is taken."""
    screen = None if output.as_json else console()

    def show(checked: Checked) -> None:
        if screen is None:
            print_json(**facts(checked))
        else:
            screen.print(row(checked, is_narrow=screen.width < _NARROW))
        if output.debug and checked.finding.error is not None:
            traceback.print_exception(checked.finding.error, file=sys.stderr)

    return show


def facts(checked: Checked) -> dict[str, object]:
    """A step for programs.

    Args:
        checked: The step.
    """
    seconds = checked.seconds
    return {
        "step": checked.step,
        "result": checked.finding.result,
        "detail": checked.finding.detail,
        "advice": checked.finding.advice,
        "seconds": None if seconds is None else round(seconds, 6),
    }


def row(checked: Checked, *, is_narrow: bool) -> RenderableType:
    """A step for people: one line, which is wrapped within its column.

    Args:
        checked: The step.
        is_narrow: Whether there is no room for a column, and the words go below.
    """
    from rich.console import Group  # noqa: PLC0415 - `--help` doesn't need it
    from rich.padding import Padding  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    finding = checked.finding
    words = Text(printable(finding.detail))
    if finding.advice:
        words.append(f"; {printable(finding.advice)}", style="bold")
    head = (
        Text(finding.result, style=_STYLES[finding.result]),
        Text(checked.step),
        Text(lasted(checked.seconds)),
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=_WIDEST_RESULT, no_wrap=True)
    grid.add_column(width=_WIDEST_NAME, no_wrap=True)
    grid.add_column(width=7, no_wrap=True, justify="right")
    if is_narrow:
        grid.add_row(*head)
        return Group(grid, Padding(words, (0, 0, 0, 2)))
    grid.add_column(overflow="fold")
    grid.add_row(*head, words)
    return grid


def lasted(seconds: float | None) -> str:
    """A time for people.

    Args:
        seconds: It, None for none.
    """
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
