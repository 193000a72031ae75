"""The steps besides those on the way to the broker (`reach`): the settings, the client, the clock.

Those that need a connection use the client's, and do with it what any program would.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import shlex
import ssl
import stat
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import trio

import trio_broker
from trio_broker import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    ClockSkewError,
    ConfigurationError,
    InvalidApiKeyError,
    InvalidSignatureError,
    ReconnectPolicy,
    key_fingerprint,
)
from trio_broker.cli.account import HOW_TO_SET, Account, Found, account_of, gather
from trio_broker.cli.checkup import Finding, Visit, broken, failed, ok, overdue, skipped
from trio_broker.cli.ending import Status
from trio_broker.cli.skew import BROKERS_WINDOW

OFF: Final = 5.0
"""Seconds by which this machine's clock may be off before that is worth a warning."""

CALLS: Final = 5
"""How many calls the latency is taken from."""

SLOW_CALL: Final = 0.5
"""Seconds above which a call is slow."""

_LONGEST_GOODBYE: Final = 5.0
_READABLE_BY_OTHERS: Final = 0o044
_LOOKED_UP: Final = ("url", "env_file", "secret_key_stdin")
_SET_THE_CLOCK: Final = "synchronize this machine's clock, with NTP say"
_TRY_AGAIN: Final = "the connection worked a moment ago: try again"
_BROKERS_TURN: Final = "the broker takes connections and doesn't answer on them: try later"

_AUTH_ADVICE: Final[tuple[tuple[type[BrokerError], str], ...]] = (
    (InvalidApiKeyError, "check BROKER_API_KEY, and whether the URL is of the broker it is for"),
    (InvalidSignatureError, "check BROKER_SECRET_KEY; if it is right, try another --signing-key"),
    (AuthenticationError, "check BROKER_API_KEY, BROKER_SECRET_KEY and --signing-key"),
    (ClockSkewError, _SET_THE_CLOCK),
    (AuthenticationTimeoutError, _BROKERS_TURN),
)


# --- The configuration --------------------------------------------------------------------


async def configure(visit: Visit) -> Finding:
    """Look the account up, and make a client of it.

    Args:
        visit: The check-up.
    """
    await trio.lowlevel.checkpoint()
    wanted = {name: value for name, value in visit.flags.items() if name in _LOOKED_UP}
    options = {name: value for name, value in visit.flags.items() if name not in _LOOKED_UP}
    try:
        found = gather(**wanted)
    except click.UsageError as error:
        return failed(error.message, "mend the flag, or the file", Status.USAGE, error)
    try:
        visit.account = account_of(found, **options)
        visit.client = _client(visit)
    except ConfigurationError as error:
        origins = "; ".join(_origins(found.sources)) or "nothing was found"
        return failed(f"{error} ({origins})", HOW_TO_SET, Status.USAGE, error)
    if importlib.util.find_spec(_module(visit.account.transport)) is None:
        return failed(
            f"--transport {visit.account.transport}: the package isn't installed",
            "pip install 'trio-broker[speed]', or leave the flag out",
            Status.USAGE,
        )
    return ok(_configuration(visit.account, found), _exposures(visit.account, found.secret_file))


def _client(visit: Visit) -> trio_broker.BrokerWSClient:
    """A client that gives up at once, and leaves the time for each call to the steps."""
    return visit.account.client(
        reconnect=ReconnectPolicy(max_attempts=0),
        connect_timeout=visit.timeout,
        auth_timeout=visit.timeout,
        request_timeout=math.inf,
        close_timeout=min(visit.timeout, _LONGEST_GOODBYE),
        clock=visit.clock,
    )


def _configuration(account: Account, found: Found) -> str:
    fingerprint = key_fingerprint(account.api_key)
    return "; ".join(
        [
            f"{account.label} account {fingerprint} at {account.endpoint.url}",
            *_origins(found.sources),
        ]
    )


def _origins(sources: Mapping[str, str]) -> Iterator[str]:
    for source in dict.fromkeys(sources.values()):
        names = (name for name, origin in sources.items() if origin == source)
        yield f"{', '.join(names)} from {source}"


def _exposures(account: Account, secret_file: Path | None) -> Iterator[str]:
    if secret_file is not None and is_open_to_others(secret_file):
        yield f"others can read the secret key: chmod 600 {shlex.quote(str(secret_file))}"
    if not (account.endpoint.secure or account.endpoint.is_loopback):
        yield "everyone on the way can read along: use wss://"


def is_open_to_others(path: Path) -> bool:
    """Whether others on this machine may read a file, as far as its mode says.

    Args:
        path: The file; a pipe isn't one, as its secret is gone once it is read.
    """
    mode = path.stat().st_mode
    return os.name == "posix" and stat.S_ISREG(mode) and bool(mode & _READABLE_BY_OTHERS)


# --- The client ---------------------------------------------------------------------------


async def authenticate(visit: Visit) -> Finding:
    """Connect the client, which stays so for the steps to come.

    Args:
        visit: The check-up.
    """
    try:
        # No scope of ours may be around it: the client's tasks stay.
        await visit.stack.enter_async_context(visit.client)
    except BrokerError as error:
        visit.refusal = error
        advice = (text for kind, text in _AUTH_ADVICE if isinstance(error, kind))
        return broken(error, next(advice, _TRY_AGAIN))
    visit.is_authenticated = True
    return ok("the broker takes the key and the signature")


async def measure(visit: Visit) -> Finding:
    """Ask for the balances a few times.

    Args:
        visit: The check-up.
    """
    seconds: list[float] = []
    try:
        with trio.move_on_after(visit.timeout):
            while len(seconds) < CALLS:
                began = trio.current_time()
                await visit.client.get_balances()
                seconds.append(trio.current_time() - began)
    except BrokerError as error:
        return broken(error, _TRY_AGAIN)
    return latency(seconds) if seconds else overdue(visit, "no reply", _BROKERS_TURN)


def latency(seconds: Sequence[float]) -> Finding:
    """What some round trips mean.

    Args:
        seconds: How long they took, one at least.
    """
    middle = statistics.median(seconds)
    calls = "1 call" if len(seconds) == 1 else f"{len(seconds)} calls"
    warnings = []
    if middle > SLOW_CALL:
        warnings.append("the broker is far away or busy: prices move meanwhile")
    return ok(
        f"{calls} of get_balances: {min(seconds) * 1000:.1f} ms at least, "
        f"{middle * 1000:.1f} ms in the median",
        warnings,
    )


async def subscribe(visit: Visit) -> Finding:
    """Subscribe to the balances, and wait for their snapshot.

    Args:
        visit: The check-up.
    """
    missing = "not acknowledged"
    try:
        with trio.move_on_after(visit.timeout):
            async with await visit.client.subscribe_balances() as updates:
                missing = "acknowledged, but no snapshot came"
                message = await updates.receive()
                while message.origin != "snapshot":
                    message = await updates.receive()
                return ok(f"acknowledged, and a snapshot of {len(message.data)} assets came")
    except BrokerError as error:
        return broken(error, "does the broker let this key subscribe?")
    return overdue(visit, missing, _BROKERS_TURN)


# --- The clock, and the versions ----------------------------------------------------------


async def compare_clocks(visit: Visit) -> Finding:
    """Say how far this machine's clock is off, as far as the broker's answers tell.

    Args:
        visit: The check-up.
    """
    await trio.lowlevel.checkpoint()
    is_refused = isinstance(visit.refusal, ClockSkewError)
    if visit.skew is None:
        if is_refused:
            why = f"off by {BROKERS_WINDOW:g} s or more: the broker refused the timestamp"
            return failed(why, _SET_THE_CLOCK, Status.FAILURE)
        if visit.is_authenticated:
            return ok(
                f"off by less than {BROKERS_WINDOW:g} s, as the broker took the timestamp "
                "(its answers have no Date, which would tell more)"
            )
        return skipped("nothing has told the broker's time")
    detail = f"off by {visit.skew} (+ is ahead), by the Date of the broker's answer"
    if is_refused:
        # Where the two disagree, the Date is of something in front of the broker.
        detail += "; the broker refused the timestamp"
    if is_refused or visit.skew.certain >= BROKERS_WINDOW:
        return failed(detail, _SET_THE_CLOCK, Status.FAILURE)
    return ok(detail, [_SET_THE_CLOCK] if visit.skew.certain > OFF else [])


async def list_versions(visit: Visit) -> Finding:
    """Say what runs here.

    Args:
        visit: The check-up.
    """
    await trio.lowlevel.checkpoint()
    transport: Any = visit.flags["transport"]
    return ok(
        ", ".join(
            [
                f"trio-broker {trio_broker.__version__}",
                f"Python {platform.python_version()}",
                f"trio {trio.__version__}",
                f"{transport} {_version(transport)}",
                ssl.OPENSSL_VERSION,
                f"{platform.system()} {platform.release()}",
            ]
        )
    )


def _module(transport: str) -> str:
    return transport.replace("-", "_")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
