"""Running the doctor's steps.

Each step returns a finding. If a step fails, the steps that need it are skipped. The steps are in
`checks`, `handshake` and `probe`, and `checklist` lists them in order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Literal, Self, TypeAlias

import attrs
import trio

from trio_broker import BrokerError, BrokerWSClient
from trio_broker.cli.account import Account
from trio_broker.cli.errors import Status, status_of

Outcome: TypeAlias = Literal["ok", "slow", "skipped", "failed"]

# An item of `socket.getaddrinfo`: family, type, protocol, canonical name, address.
Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]

# Seconds. The Date header is truncated, so the true time is up to one second later.
_DATE_RESOLUTION: Final = 1.0


@attrs.frozen(kw_only=True)
class Finding:
    """The finding of a step.

    Attributes:
        result: ``slow`` means that it works, but with a warning.
        detail: A description; it may contain texts of the broker.
        advice: What the user can do, or None.
        status: The exit status if the step failed.
        error: The error whose traceback ``--debug`` shows.
    """

    result: Outcome = "ok"
    detail: str
    advice: str | None = None
    status: Status = Status.OK
    error: BaseException | None = None


@attrs.frozen(kw_only=True)
class StepResult:
    """The result of a step that was run or skipped.

    Attributes:
        step: The name of the step.
        finding: Its finding.
        seconds: Its duration; None if it was skipped.
    """

    step: str
    finding: Finding
    seconds: float | None = None


@attrs.frozen
class ClockSkew:
    """Bounds of the seconds by which this machine's clock is ahead of the broker's.

    Attributes:
        least: The lower bound; negative if the clock may be behind.
        most: The upper bound.
    """

    least: float
    most: float

    @classmethod
    def from_date(cls, date: float, sent_at: float, received_at: float) -> Self:
        """Compute the bounds from the Date header of a response, in seconds since the epoch.

        The response was written between the other two times, which are of this machine's clock.
        """
        return cls(sent_at - date - _DATE_RESOLUTION, received_at - date)

    @property
    def certain(self) -> float:
        """The number of seconds by which the clock is certainly off, in either direction."""
        return max(self.least, -self.most, 0.0)

    def __str__(self) -> str:
        return f"between {self.least:+.1f} and {self.most:+.1f} s"


@attrs.define(kw_only=True)
class CheckContext:
    """The state that the steps share.

    Attributes:
        flags: The account flags: the arguments of `find_account`.
        timeout: The time limit of a step, in seconds.
        clock: This machine's wall clock.
        stack: Closes at the end what the steps have opened.
        account: The account, from ``configuration`` on.
        client: A client, from ``configuration`` on; connected from ``authentication`` on.
        addresses: The addresses of the broker, from ``dns`` on.
        address: The one that answered, from ``tcp`` on.
        stream: The connection, from ``tcp`` on; with TLS from ``tls`` on.
        skew: The skew of this machine's clock, if the handshake had a Date header.
        refusal: The error of a failed authentication.
        is_authenticated: Whether the client is authenticated.
    """

    flags: Mapping[str, Any]
    timeout: float = 10.0
    clock: Callable[[], float] = time.time
    stack: AsyncExitStack = attrs.field(init=False, factory=AsyncExitStack)
    account: Account = attrs.field(init=False)
    client: BrokerWSClient = attrs.field(init=False)
    addresses: list[Address] = attrs.field(init=False)
    address: Address = attrs.field(init=False)
    stream: trio.abc.Stream = attrs.field(init=False)
    skew: ClockSkew | None = attrs.field(init=False, default=None)
    refusal: BrokerError | None = attrs.field(init=False, default=None)
    is_authenticated: bool = attrs.field(init=False, default=False)


@attrs.frozen(kw_only=True)
class Step:
    """A step.

    Attributes:
        name: Its name.
        check: The function that runs it.
        needs: The step whose failure skips it, or None.
        slow_above: The duration in seconds above which it is slow.
        if_slow: The advice if it is slow or times out.
        has_own_timeout: Whether `check` applies the time limit itself.
    """

    name: str
    check: Callable[[CheckContext], Awaitable[Finding]]
    needs: str | None = None
    slow_above: float = math.inf
    if_slow: str | None = None
    has_own_timeout: bool = False


async def run_steps(
    context: CheckContext, steps: Iterable[Step], report: Callable[[StepResult], None]
) -> list[StepResult]:
    """Run steps in order, and call `report` immediately with each result."""
    results: list[StepResult] = []
    # For each step that failed or was skipped: the step that caused it.
    failures: dict[str | None, str] = {}
    async with context.stack:
        for step in steps:
            failure = failures.get(step.needs)
            if failure is not None:
                result = StepResult(step=step.name, finding=skipped(f"{failure} failed"))
            else:
                result = await _run_step(step, context)
                failure = step.name if result.finding.result == "failed" else None
            if failure is not None:
                failures[step.name] = failure
            results.append(result)
            report(result)
    return results


async def _run_step(step: Step, context: CheckContext) -> StepResult:
    began = trio.current_time()
    if step.has_own_timeout:
        finding = await step.check(context)
    else:
        finding = timed_out(context, advice=step.if_slow)
        with trio.move_on_after(context.timeout):
            finding = await step.check(context)
    if finding.result == "skipped":
        return StepResult(step=step.name, finding=finding)
    seconds = trio.current_time() - began
    if finding.result == "ok" and seconds > step.slow_above:
        finding = attrs.evolve(finding, result="slow", advice=step.if_slow)
    return StepResult(step=step.name, finding=finding, seconds=seconds)


def exit_status(results: Iterable[StepResult]) -> Status:
    """Return the exit status of the command, which is that of the first failure."""
    failures = (each.finding.status for each in results if each.finding.result == "failed")
    return next(failures, Status.OK)


# --- Findings -------------------------------------------------------------------------------


def ok(detail: str, warnings: Iterable[str] = ()) -> Finding:
    """Return a finding of success; with warnings, the result is ``slow``."""
    advice = "; ".join(warnings)
    return Finding(result="slow" if advice else "ok", detail=detail, advice=advice or None)


def skipped(detail: str) -> Finding:
    """Return a finding for a step that doesn't apply or can't be run."""
    return Finding(result="skipped", detail=detail)


def failed(
    detail: str,
    advice: str | None,
    status: Status = Status.CONNECTION,
    error: BaseException | None = None,
) -> Finding:
    """Return a finding of failure."""
    return Finding(result="failed", detail=detail, advice=advice, status=status, error=error)


def failed_with(error: BrokerError, advice: str | None) -> Finding:
    """Return a finding of failure for an error of the client."""
    text = " ".join(str(error).split()) or type(error).__name__
    return failed(text, advice, status_of(error), error)


def timed_out(
    context: CheckContext, what: str = "not finished", advice: str | None = None
) -> Finding:
    """Return a finding of failure because of the time limit."""
    return failed(f"{what} within {context.timeout:g} s", advice)
