"""A check-up: steps that give a finding each; one that fails skips those that build on it.

What a step looks at is its own matter (`checks`, `reach`), and how it is printed is the command's
(`doctor`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_broker import BrokerError, BrokerWSClient
from trio_broker.cli.account import Account
from trio_broker.cli.ending import Status, status_of
from trio_broker.cli.skew import Skew

Result: TypeAlias = Literal["ok", "slow", "skipped", "failed"]

# What `socket.getaddrinfo` gives: family, type, protocol, canonical name, address.
Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]


@attrs.frozen(kw_only=True)
class Finding:
    """What a step has found.

    Attributes:
        result: ``ok``; ``slow`` for what works and should be seen to; ``skipped``; ``failed``.
        detail: What was found, in words. It may hold texts of the broker's.
        advice: What to do about it, None for nothing.
        status: The exit status that it means.
        error: What was raised, for whoever wants to see its traceback.
    """

    result: Result = "ok"
    detail: str
    advice: str | None = None
    status: Status = Status.OK
    error: BaseException | None = None


@attrs.frozen(kw_only=True)
class Checked:
    """A step that was taken, or skipped.

    Attributes:
        step: Its name.
        finding: What it has found.
        seconds: How long it took, None if it was skipped.
    """

    step: str
    finding: Finding
    seconds: float | None = None


@attrs.define(kw_only=True)
class Visit:
    """What the steps of one check-up share.

    Attributes:
        flags: What the user says about the account: arguments of `find_account`.
        timeout: Seconds that a step may take.
        clock: The wall clock of this machine.
        stack: Closes at the end what steps have opened.
        account: Whose account it is, from ``configuration`` on.
        client: A client of it; connected from ``authentication`` on.
        addresses: Where the broker is, from ``dns`` on.
        address: Which of them has answered, from ``tcp`` on.
        stream: The connection, from ``tcp`` on; with TLS from ``tls`` on.
        skew: How far this machine's clock is off, if the handshake's answer has told.
        refusal: Why the broker has not authenticated the client, if it hasn't.
        is_authenticated: Whether it has.
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
    skew: Skew | None = attrs.field(init=False, default=None)
    refusal: BrokerError | None = attrs.field(init=False, default=None)
    is_authenticated: bool = attrs.field(init=False, default=False)


@attrs.frozen(kw_only=True)
class Step:
    """A step of a check-up.

    Attributes:
        name: Its name.
        check: Takes it.
        needs: The step without which it makes no sense, None for none.
        slow_above: Seconds above which it is slow.
        if_slow: What to do if it is, or doesn't end at all.
        keeps_time: Whether it ends in time by itself.
    """

    name: str
    check: Callable[[Visit], Awaitable[Finding]]
    needs: str | None = None
    slow_above: float = math.inf
    if_slow: str | None = None
    keeps_time: bool = False


async def examine(
    visit: Visit, steps: Iterable[Step], report: Callable[[Checked], None]
) -> list[Checked]:
    """Take steps in their order.

    Args:
        visit: What they share.
        steps: The steps.
        report: Told of each once it is taken.

    Returns:
        All of them.
    """
    taken: list[Checked] = []
    # By each step that failed, or was skipped because of one that did: the one that failed.
    spoiled: dict[str | None, str] = {}
    async with visit.stack:
        for step in steps:
            cause = spoiled.get(step.needs)
            if cause is not None:
                checked = Checked(step=step.name, finding=skipped(f"{cause} failed"))
            else:
                checked = await _take(step, visit)
                cause = step.name if checked.finding.result == "failed" else None
            if cause is not None:
                spoiled[step.name] = cause
            taken.append(checked)
            report(checked)
    return taken


async def _take(step: Step, visit: Visit) -> Checked:
    began = trio.current_time()
    if step.keeps_time:
        finding = await step.check(visit)
    else:
        finding = overdue(visit, advice=step.if_slow)
        with trio.move_on_after(visit.timeout):
            finding = await step.check(visit)
    if finding.result == "skipped":
        return Checked(step=step.name, finding=finding)
    seconds = trio.current_time() - began
    if finding.result == "ok" and seconds > step.slow_above:
        finding = attrs.evolve(finding, result="slow", advice=step.if_slow)
    return Checked(step=step.name, finding=finding, seconds=seconds)


def status(taken: Iterable[Checked]) -> Status:
    """The exit status that a check-up means: the first failure's.

    Args:
        taken: Its steps.
    """
    failures = (each.finding.status for each in taken if each.finding.result == "failed")
    return next(failures, Status.OK)


def ok(detail: str, warnings: Iterable[str] = ()) -> Finding:
    """All is well, but for some warnings perhaps.

    Args:
        detail: What was found.
        warnings: What should be seen to.
    """
    advice = "; ".join(warnings)
    return Finding(result="slow" if advice else "ok", detail=detail, advice=advice or None)


def skipped(detail: str) -> Finding:
    """It wasn't looked at.

    Args:
        detail: Why.
    """
    return Finding(result="skipped", detail=detail)


def failed(
    detail: str,
    advice: str | None,
    status: Status = Status.CONNECTION,
    error: BaseException | None = None,
) -> Finding:
    """It doesn't work.

    Args:
        detail: Why.
        advice: What to do.
        status: The exit status that it means.
        error: What was raised.
    """
    return Finding(result="failed", detail=detail, advice=advice, status=status, error=error)


def broken(error: BrokerError, advice: str | None) -> Finding:
    """The client has raised an error.

    Args:
        error: The error.
        advice: What to do.
    """
    return failed(one_line(error), advice, status_of(error), error)


def overdue(visit: Visit, what: str = "not done", advice: str | None = None) -> Finding:
    """It took too long.

    Args:
        visit: The check-up.
        what: What hasn't happened.
        advice: What to do.
    """
    return failed(f"{what} within {visit.timeout:g} s", advice)


def one_line(error: BaseException) -> str:
    """An error in one line.

    Args:
        error: The error.
    """
    return " ".join(str(error).split()) or type(error).__name__
