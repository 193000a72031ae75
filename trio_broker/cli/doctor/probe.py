"""The network steps before the handshake: DNS, TCP and TLS.

They don't use the client, which reports less detail. No key is sent.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

import trio

from trio_broker.cli.doctor import certificate
from trio_broker.cli.doctor.steps import (
    Address,
    CheckContext,
    Finding,
    failed,
    ok,
    skipped,
    timed_out,
)

_EXPIRY_WARNING: Final = 14.0  # days

# Seconds before the next address is tried too, as in Trio's `open_tcp_stream`.
_HEAD_START: Final = 0.25
UNREACHABLE_ADVICE: Final = (
    "check that the broker is up, that the port is right, and that no firewall blocks it"
)

# The step must not time out while it fetches an untrusted certificate for its report.
_CERTIFICATE_SHARE: Final = 0.25  # of the step's time

# The keys are OpenSSL's verification errors (X509_V_ERR_…).
_TRUST_ADVICE: Final[Mapping[int, str]] = {
    9: "it isn't valid yet: check this machine's clock",
    10: "it has expired: the broker must renew it, or this machine's clock is wrong",
    62: "it is for another host: check the host in the URL",
    64: "it is for another host: use the broker's name in the URL, not its address",
}
_NOT_TRUSTED: Final = (
    "the connection may be intercepted: don't send keys; for a private certificate authority, "
    "set SSL_CERT_FILE to its certificate"
)


# --- DNS and TCP ----------------------------------------------------------------------------


async def resolve(context: CheckContext) -> Finding:
    """Resolve the broker's host."""
    host, port = context.account.endpoint.host, context.account.endpoint.port
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return failed(
            f"{host} can't be resolved ({error.strerror or error})",
            "check the host in the URL, and this machine's network and DNS",
            error=error,
        )
    context.addresses = list(found)
    names = list(dict.fromkeys(_ip(address) for address in context.addresses))
    if names == [host]:
        return ok(f"{host} is already an address")
    return ok(f"{host} is {', '.join(names)}")


async def connect(context: CheckContext) -> Finding:
    """Try the addresses, each with a head start over the next; the first connection is used."""
    outcomes: dict[str, OSError | None] = {}
    connected: list[tuple[Address, trio.SocketStream]] = []

    async def attempt(address: Address, has_failed: trio.Event) -> None:
        outcomes[_ip(address)] = None
        try:
            connected.append((address, await _open(address)))
        except OSError as error:
            outcomes[_ip(address)] = error
            has_failed.set()
        else:
            nursery.cancel_scope.cancel()

    with trio.move_on_after(context.timeout):
        async with trio.open_nursery() as nursery:
            for address in context.addresses:
                has_failed = trio.Event()
                nursery.start_soon(attempt, address, has_failed)
                with trio.move_on_after(_HEAD_START):
                    await has_failed.wait()
    # Several may have connected at the same time.
    for _, stream in connected:
        context.stack.push_async_callback(trio.aclose_forcefully, stream)
    if not connected:
        return _unreachable(context, outcomes)
    context.address, context.stream = connected[0]
    answered = _ip(context.address)
    return ok("; ".join([f"{answered} answered", *_others(outcomes, answered)]))


def _unreachable(context: CheckContext, outcomes: Mapping[str, OSError | None]) -> Finding:
    port = context.account.endpoint.port
    reasons = "; ".join(_others(outcomes))
    errors = [error for error in outcomes.values() if error is not None]
    if len(errors) < len(outcomes):
        return timed_out(context, f"{reasons} at port {port}", UNREACHABLE_ADVICE)
    group = ExceptionGroup("no address has answered", errors)
    return failed(f"port {port} at {reasons}", UNREACHABLE_ADVICE, error=group)


def _others(outcomes: Mapping[str, OSError | None], answered: str = "") -> Iterable[str]:
    """Describe the result of each address except for the one that answered."""
    return (f"{ip}: {_reason(error)}" for ip, error in outcomes.items() if ip != answered)


def _ip(address: Address) -> str:
    return str(address[4][0])


def _reason(error: OSError | None) -> str:
    if error is None:
        return "no answer"
    # Without Trio's text, which repeats the address.
    return str(error) if error.errno is None else os.strerror(error.errno)


async def _open(address: Address) -> trio.SocketStream:
    family, kind, protocol, _, where = address
    opened = trio.socket.socket(family, kind, protocol)
    try:
        await opened.connect(where)
    except BaseException:
        opened.close()
        raise
    return trio.SocketStream(opened)


# --- TLS ------------------------------------------------------------------------------------


async def start_tls(context: CheckContext) -> Finding:
    """Do the TLS handshake, and check the certificate."""
    endpoint = context.account.endpoint
    if not endpoint.secure:
        return skipped("ws:// has no TLS")
    stream = trio.SSLStream(
        context.stream,
        ssl.create_default_context(),
        server_hostname=endpoint.host,
        https_compatible=True,
    )
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        return await _tls_failed(context, error.__cause__ or error)
    context.stream = stream
    shown = certificate.parse(stream.getpeercert())
    warnings = []
    if shown.days_left(context.clock()) < _EXPIRY_WARNING:
        warnings.append("the certificate expires soon: the broker must renew it")
    return ok(f"{stream.version()}, {shown.describe(context.clock())}", warnings)


async def _tls_failed(context: CheckContext, cause: BaseException) -> Finding:
    if not isinstance(cause, ssl.SSLCertVerificationError):
        advice = "check that this port speaks TLS, which wss:// and https:// need"
        # OpenSSL's reason, without the position in its source code.
        reason = str(getattr(cause, "reason", None) or cause).replace("_", " ").lower()
        return failed(f"the TLS handshake failed ({reason})", advice, error=cause)
    detail = f"the certificate isn't trusted: {cause.verify_message.rstrip('.')}"
    dial = partial(_open, context.address)
    shown = None
    with trio.move_on_after(context.timeout * _CERTIFICATE_SHARE):
        shown = await certificate.fetch_untrusted(dial, context.account.endpoint.host)
    if shown is not None:
        detail += f"; {shown.describe(context.clock())}"
    return failed(detail, _TRUST_ADVICE.get(cause.verify_code, _NOT_TRUSTED), error=cause)
