"""The steps for the settings, the client, the clock and the versions.

Steps that need a connection use a client, like any other program.
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
from trio_broker.cli.account import (
    HOW_TO_SET,
    Account,
    FoundSettings,
    find_settings,
    make_account,
)
from trio_broker.cli.doctor.steps import (
    CheckContext,
    Finding,
    failed,
    failed_with,
    ok,
    skipped,
    timed_out,
)
from trio_broker.cli.errors import Status
from trio_broker.cli.terminal.output import counted

_ACCEPTED_SKEW: Final = 30.0  # seconds; the broker refuses timestamps that are off by more
_SKEW_WARNING: Final = 5.0  # seconds

_LATENCY_CALLS: Final = 5
_SLOW_CALL: Final = 0.5  # seconds

_CLOSE_TIMEOUT: Final = 5.0  # seconds
_READABLE_BY_OTHERS: Final = 0o044
_SOURCE_FLAGS: Final = ("url", "env_file", "secret_key_stdin")
_SET_THE_CLOCK: Final = "synchronize this machine's clock, for example with NTP"
_TRY_AGAIN: Final = "the connection worked a moment ago: try again"
_NO_REPLY: Final = "the broker accepts connections but doesn't reply: try again later"

_AUTH_ADVICE: Final[tuple[tuple[type[BrokerError], str], ...]] = (
    (InvalidApiKeyError, "check BROKER_API_KEY, and that the URL belongs to the same broker"),
    (InvalidSignatureError, "check BROKER_SECRET_KEY; if it is correct, try another --dialect"),
    (AuthenticationError, "check BROKER_API_KEY, BROKER_SECRET_KEY, --dialect and --signing-key"),
    (ClockSkewError, _SET_THE_CLOCK),
    (AuthenticationTimeoutError, _NO_REPLY),
)


# --- The configuration ----------------------------------------------------------------------


async def configure(context: CheckContext) -> Finding:
    """Find the account's settings, and create the client for the next steps."""
    await trio.lowlevel.checkpoint()
    source_flags = {name: value for name, value in context.flags.items() if name in _SOURCE_FLAGS}
    options = {name: value for name, value in context.flags.items() if name not in _SOURCE_FLAGS}
    try:
        found = find_settings(**source_flags)
    except click.UsageError as error:
        return failed(error.message, "correct the flag or the file", Status.USAGE, error)
    try:
        context.account = make_account(found, **options)
        context.client = _client(context)
    except ConfigurationError as error:
        origins = "; ".join(_origins(found.sources)) or "nothing was found"
        return failed(f"{error} ({origins})", HOW_TO_SET, Status.USAGE, error)
    if importlib.util.find_spec(_module(context.account.transport)) is None:
        return failed(
            f"--transport {context.account.transport}: the package isn't installed",
            "pip install 'trio-broker[speed]', or omit the flag",
            Status.USAGE,
        )
    return ok(_configuration(context.account, found), _exposures(context.account, found))


def _client(context: CheckContext) -> trio_broker.BrokerWSClient:
    """Create a client that doesn't reconnect. The steps limit the time of its requests."""
    return context.account.client(
        reconnect=ReconnectPolicy(max_attempts=0),
        connect_timeout=context.timeout,
        auth_timeout=context.timeout,
        request_timeout=math.inf,
        close_timeout=min(context.timeout, _CLOSE_TIMEOUT),
        clock=context.clock,
    )


def _configuration(account: Account, found: FoundSettings) -> str:
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


def _exposures(account: Account, found: FoundSettings) -> Iterator[str]:
    """Return warnings about secrets that others can read."""
    file = found.secret_file
    if file is not None and is_readable_by_others(file):
        yield f"others can read the secret key: chmod 600 {shlex.quote(str(file))}"
    if not (account.endpoint.secure or account.endpoint.is_loopback):
        yield "the connection isn't encrypted: use wss://"


def is_readable_by_others(path: Path) -> bool:
    """Whether the mode of a file lets other users read it; False for a pipe."""
    mode = path.stat().st_mode
    return os.name == "posix" and stat.S_ISREG(mode) and bool(mode & _READABLE_BY_OTHERS)


# --- The client -----------------------------------------------------------------------------


async def authenticate(context: CheckContext) -> Finding:
    """Connect the client, which stays connected until the end."""
    try:
        # Without a cancel scope, because the client's tasks outlive this step.
        await context.stack.enter_async_context(context.client)
    except BrokerError as error:
        context.refusal = error
        advice = (text for kind, text in _AUTH_ADVICE if isinstance(error, kind))
        return failed_with(error, next(advice, _TRY_AGAIN))
    context.is_authenticated = True
    return ok("the broker accepts the key and the signature")


async def measure_latency(context: CheckContext) -> Finding:
    """Measure the round trips of a few requests for the balances."""
    seconds: list[float] = []
    try:
        with trio.move_on_after(context.timeout):
            while len(seconds) < _LATENCY_CALLS:
                began = trio.current_time()
                await context.client.get_balances()
                seconds.append(trio.current_time() - began)
    except BrokerError as error:
        return failed_with(error, _TRY_AGAIN)
    return evaluate_latency(seconds) if seconds else timed_out(context, "no reply", _NO_REPLY)


def evaluate_latency(seconds: Sequence[float]) -> Finding:
    """Return the finding for the durations of some requests."""
    median = statistics.median(seconds)
    warnings = []
    if median > _SLOW_CALL:
        warnings.append("the broker is far away or busy: prices may move during a request")
    return ok(
        f"{counted(len(seconds), 'call')} of get_balances: minimum {min(seconds) * 1000:.1f} ms, "
        f"median {median * 1000:.1f} ms",
        warnings,
    )


async def subscribe(context: CheckContext) -> Finding:
    """Subscribe to the balances, and wait for their snapshot."""
    missing = "not acknowledged"
    try:
        with trio.move_on_after(context.timeout):
            async with context.client.subscribe_balances() as updates:
                missing = "acknowledged, but no snapshot received"
                message = await updates.receive()
                while message.origin != "snapshot":
                    message = await updates.receive()
                return ok(f"acknowledged, with a snapshot of {len(message.data)} assets")
    except BrokerError as error:
        return failed_with(error, "check whether this key may subscribe")
    return timed_out(context, missing, _NO_REPLY)


# --- The clock, and the versions ------------------------------------------------------------


async def compare_clocks(context: CheckContext) -> Finding:
    """Estimate how far this machine's clock is off, from the broker's responses."""
    await trio.lowlevel.checkpoint()
    is_refused = isinstance(context.refusal, ClockSkewError)
    if context.skew is None:
        return _skew_without_date(context, is_refused=is_refused)
    detail = f"off by {context.skew} (+ is ahead), by the Date header of the broker's response"
    if is_refused:
        # If this contradicts the Date header, a proxy has set the header.
        detail += "; the broker refused the timestamp"
    if is_refused or context.skew.certain >= _ACCEPTED_SKEW:
        return failed(detail, _SET_THE_CLOCK, Status.FAILURE)
    return ok(detail, [_SET_THE_CLOCK] if context.skew.certain > _SKEW_WARNING else [])


def _skew_without_date(context: CheckContext, *, is_refused: bool) -> Finding:
    if is_refused:
        why = f"off by {_ACCEPTED_SKEW:g} s or more: the broker refused the timestamp"
        return failed(why, _SET_THE_CLOCK, Status.FAILURE)
    if context.is_authenticated:
        return ok(
            f"off by less than {_ACCEPTED_SKEW:g} s: the broker accepted the timestamp "
            "(its responses have no Date header for a better estimate)"
        )
    return skipped("no response contained the broker's time")


async def list_versions(context: CheckContext) -> Finding:
    """List the versions of the relevant software."""
    await trio.lowlevel.checkpoint()
    transport: Any = context.flags["transport"]
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
