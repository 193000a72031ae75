"""Certificates of servers, trusted or not."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import attrs
import trio

_DAY: Final = 86_400.0
_SHOWN_HOSTS: Final = 3
_SHORT_NAMES: Final = {
    "commonName": "CN",
    "countryName": "C",
    "organizationName": "O",
    "organizationalUnitName": "OU",
}
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python doesn't name.
_NO_CHECK_TIME: Final = 0x200000


@attrs.frozen(kw_only=True)
class Certificate:
    """The parts of a certificate that are shown to the user.

    Attributes:
        subject: The owner's distinguished name.
        issuer: The issuer's distinguished name.
        hosts: The hosts that it is valid for.
        expires_at: The time of its expiry, in seconds since the epoch.
    """

    subject: str
    issuer: str
    hosts: tuple[str, ...]
    expires_at: float

    def days_left(self, now: float) -> float:
        """Return the days until the expiry; `now` is in seconds since the epoch."""
        return (self.expires_at - now) / _DAY

    def describe(self, now: float) -> str:
        """Describe the certificate in one line; `now` is in seconds since the epoch."""
        hosts = ", ".join(self.hosts[:_SHOWN_HOSTS]) or "no host"
        if len(self.hosts) > _SHOWN_HOSTS:
            hosts += f" and {len(self.hosts) - _SHOWN_HOSTS} more"
        days = math.floor(self.days_left(now))
        left = f"{days} days left" if days >= 0 else "expired"
        end = dt.datetime.fromtimestamp(self.expires_at, dt.UTC)
        return (
            f"certificate of {self.subject} for {hosts}, issued by {self.issuer}, "
            f"valid until {end:%Y-%m-%d} ({left})"
        )


def parse(facts: Mapping[str, Any]) -> Certificate:
    """Parse what `ssl.SSLSocket.getpeercert` returns for a verified certificate."""
    return Certificate(
        subject=_distinguished_name(facts["subject"]),
        issuer=_distinguished_name(facts["issuer"]),
        hosts=tuple(name for _, name in facts.get("subjectAltName", ())),
        expires_at=ssl.cert_time_to_seconds(facts["notAfter"]),
    )


def _distinguished_name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    pairs = (pair for part in parts for pair in part)
    return ", ".join(f"{_SHORT_NAMES.get(kind, kind)}={text}" for kind, text in pairs) or "no name"


async def fetch_untrusted(
    dial: Callable[[], Awaitable[trio.abc.Stream]], host: str
) -> Certificate | None:
    """Fetch a certificate that isn't trusted; None if that fails.

    Python only parses certificates that it has verified. So this connects twice: first to fetch the
    certificate, then to verify it against itself. Nothing is sent after the TLS handshakes.
    """
    with contextlib.suppress(OSError, trio.BrokenResourceError):
        encoded = await _handshake(dial, _trust_anything(), host, binary=True)
        return parse(await _handshake(dial, _trust_only(encoded), host, binary=False))
    return None


async def _handshake(
    dial: Callable[[], Awaitable[trio.abc.Stream]],
    context: ssl.SSLContext,
    host: str,
    *,
    binary: bool,
) -> Any:
    stream = trio.SSLStream(await dial(), context, server_hostname=host, https_compatible=True)
    try:
        await stream.do_handshake()
        return stream.getpeercert(binary)
    finally:
        await trio.aclose_forcefully(stream)


def _trust_anything() -> ssl.SSLContext:
    """Create a context without verification, only for reading a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trust_only(encoded: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=encoded)
    flags = context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    context.verify_flags = ssl.VerifyFlags(flags)
    return context
