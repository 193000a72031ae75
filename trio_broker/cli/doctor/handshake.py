"""The step for the WebSocket handshake. The request contains no keys."""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import hashlib
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Self

import attrs
import trio

from trio_broker import __version__
from trio_broker.cli.doctor.steps import CheckContext, ClockSkew, Finding, failed, ok
from trio_broker.settings import Endpoint

if TYPE_CHECKING:
    import h11

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
# An empty close frame with a zero mask. It is sent so that the broker doesn't wait for a login.
_CLOSE_FRAME: Final = b"\x88\x80\0\0\0\0"
_HTTP: Final = b"HTTP/1."
_RECEIVE_SIZE: Final = 16_384
_CHECK_ACCESS: Final = "check whether the broker allows connections from this machine's address"
_STATUS_ADVICE: Final[Mapping[int, str]] = {
    200: "the response isn't from the broker's API: check the URL",
    401: _CHECK_ACCESS,
    403: _CHECK_ACCESS,
    404: "check the path of the URL; BROKER_BASE_URL adds the documented path",
    407: "a proxy requires authentication",
    429: "too many connections: wait before you try again",
}


async def check_handshake(context: CheckContext) -> Finding:
    """Send a handshake, evaluate the head of the response, and close the connection."""
    # Imported here, because `--help` doesn't need it.
    import h11  # noqa: PLC0415

    key = base64.b64encode(secrets.token_bytes(16))
    sent_at = context.clock()
    try:
        head = await _request(context.stream, context.account.endpoint, key)
        received_at = context.clock()
        if head.status_code == 101:
            await context.stream.send_all(_CLOSE_FRAME)
    except (_ClosedByPeerError, trio.BrokenResourceError) as error:
        reason = error.__cause__ or error
        return failed(f"the connection failed ({reason})", "try again later", error=error)
    except (_NotHTTPError, h11.RemoteProtocolError) as error:
        return failed(
            f"the peer doesn't speak HTTP/1.1 ({error})",
            "check the port in the URL, and whether it needs wss:// or ws://",
            error=error,
        )
    finally:
        await trio.aclose_forcefully(context.stream)
    response = Response.from_head(head)
    if response.date is not None:
        context.skew = ClockSkew.from_date(response.date, sent_at, received_at)
    return evaluate_response(response, key)


class _ClosedByPeerError(Exception):
    """The peer closed the connection instead of responding."""


class _NotHTTPError(Exception):
    """The peer speaks another protocol."""


@attrs.frozen(kw_only=True)
class Response:
    """The relevant parts of the response to a handshake.

    Attributes:
        status: The HTTP status.
        accept: The header Sec-WebSocket-Accept.
        location: The target of a redirect.
        retry_after: The header Retry-After.
        date: The header Date, in seconds since the epoch.
    """

    status: int
    accept: str = ""
    location: str = ""
    retry_after: str = ""
    date: float | None = None

    @classmethod
    def from_head(cls, head: h11.Response | h11.InformationalResponse) -> Self:
        """Read the relevant headers."""
        headers = {name.decode(): text.decode("latin-1") for name, text in head.headers}
        return cls(
            status=head.status_code,
            accept=headers.get("sec-websocket-accept", ""),
            location=headers.get("location", ""),
            retry_after=headers.get("retry-after", ""),
            date=_parse_date(headers.get("date", "")),
        )


def _parse_date(text: str) -> float | None:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # Always in UTC, even if the header names another zone (RFC 9110, section 5.6.7).
    return date.replace(tzinfo=dt.UTC).timestamp()


async def _request(
    stream: trio.abc.Stream, endpoint: Endpoint, key: bytes
) -> h11.Response | h11.InformationalResponse:
    """Send a handshake, and receive the head of the final response."""
    import h11  # noqa: PLC0415 - as above

    connection = h11.Connection(h11.CLIENT)
    beginning = b""
    request = h11.Request(
        method="GET",
        target=endpoint.resource,
        headers=[
            ("Host", endpoint.netloc),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", key.decode()),
            ("Sec-WebSocket-Version", "13"),
            ("User-Agent", f"trio-broker/{__version__}"),
        ],
    )
    await stream.send_all(connection.send(request) + connection.send(h11.EndOfMessage()))
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(_RECEIVE_SIZE))
            if not data:
                raise _ClosedByPeerError("closed by the peer before it responded")
            beginning += data[: len(_HTTP)]
            if not _HTTP.startswith(beginning[: len(_HTTP)]):
                # h11 would wait for an empty line, which may never arrive.
                raise _NotHTTPError(f"its data begins with {beginning[: len(_HTTP)]!r}")
            connection.receive_data(data)
        # Informational responses such as 103 may precede the final response.
        elif isinstance(event, h11.Response) or (
            isinstance(event, h11.InformationalResponse) and event.status_code == 101
        ):
            return event


def evaluate_response(response: Response, key: bytes) -> Finding:
    """Return the finding for the response to a handshake with this key."""
    status = response.status
    if status == 101:
        digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
        if response.accept.strip() != base64.b64encode(digest).decode():
            return failed(
                "the response doesn't match the handshake: Sec-WebSocket-Accept is wrong",
                "a proxy or a cache probably responds instead of the broker: check the network",
            )
        return ok("HTTP status 101: a WebSocket")
    if response.location:
        # Without the query, which may repeat secrets of our URL.
        where = response.location.partition("?")[0][:200]
        return failed(
            f"redirected to {where} (HTTP status {status}); redirects aren't followed",
            "if that is the broker, set it as the URL",
        )
    detail = f"refused with HTTP status {status}"
    if response.retry_after:
        detail += f", Retry-After: {response.retry_after}"
    default = (
        "the broker, or a proxy in front of it, has a problem: try again later"
        if status >= 500
        else "check the URL"
    )
    return failed(detail, _STATUS_ADVICE.get(status, default))
