"""Whose certificate it is that the other end shows, trusted or not."""

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
_SHOWN_NAMES: Final = 3
_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "organizationName": "O",
    "organizationalUnitName": "OU",
}
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name.
_NO_CHECK_TIME: Final = 0x200000


@attrs.frozen(kw_only=True)
class Certificate:
    """What there is to tell of a certificate.

    Attributes:
        subject: Whose it is, as its issuer says.
        issuer: Who says so.
        names: The hosts that it is for.
        ends_at: Until when it is good, in seconds since the epoch.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    ends_at: float

    def days_left(self, now: float) -> float:
        """For how many days it is good yet.

        Args:
            now: The time in seconds since the epoch.
        """
        return (self.ends_at - now) / _DAY

    def told(self, now: float) -> str:
        """It in words.

        Args:
            now: The time in seconds since the epoch.
        """
        shown = ", ".join(self.names[:_SHOWN_NAMES]) or "no host"
        if len(self.names) > _SHOWN_NAMES:
            shown += f" and {len(self.names) - _SHOWN_NAMES} more"
        days = math.floor(self.days_left(now))
        left = f"{days} days left" if days >= 0 else "it has ended"
        end = dt.datetime.fromtimestamp(self.ends_at, dt.UTC)
        return (
            f"certificate of {self.subject} for {shown}, issued by {self.issuer}, "
            f"good until {end:%Y-%m-%d} ({left})"
        )


def read(facts: Mapping[str, Any]) -> Certificate:
    """A certificate as the ssl module tells of it.

    Args:
        facts: What `ssl.SSLSocket.getpeercert` gives for one that was checked.
    """
    return Certificate(
        subject=_name(facts["subject"]),
        issuer=_name(facts["issuer"]),
        names=tuple(name for _, name in facts.get("subjectAltName", ())),
        ends_at=ssl.cert_time_to_seconds(facts["notAfter"]),
    )


def _name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A distinguished name in a line."""
    pairs = (pair for part in parts for pair in part)
    return ", ".join(f"{_SHORT.get(kind, kind)}={text}" for kind, text in pairs) or "nobody"


async def look_at_untrusted(
    dial: Callable[[], Awaitable[trio.abc.Stream]], host: str
) -> Certificate | None:
    """The certificate at the other end, though it isn't trusted. Nothing but TLS is spoken.

    Python takes a certificate apart only once it was checked. So it is fetched first, and then
    checked against nothing but itself.

    Args:
        dial: Opens a connection.
        host: The name that the other end is called by.

    Returns:
        It, or None if it can't be had.
    """
    with contextlib.suppress(OSError, trio.BrokenResourceError):
        encoded = await _handshake(dial, _trusting_anybody(), host, binary=True)
        return read(await _handshake(dial, _trusting_only(encoded), host, binary=False))
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


def _trusting_anybody() -> ssl.SSLContext:
    """Only ever for a look at a certificate: nothing is sent to whom it lets pass."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trusting_only(encoded: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=encoded)
    flags = context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    context.verify_flags = ssl.VerifyFlags(flags)
    return context
