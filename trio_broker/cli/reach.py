"""The steps on the way to the broker: DNS, TCP, TLS, and the WebSocket's handshake.

They go a way of their own, without the client, which tells the first thing that is wrong and no
more. No key is sent on it.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import hashlib
import os
import secrets
import socket
import ssl
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import attrs
import trio

from trio_broker import __version__
from trio_broker.cli import certificate
from trio_broker.cli.checkup import Address, Finding, Visit, failed, ok, overdue, skipped
from trio_broker.cli.skew import Skew
from trio_broker.settings import Endpoint

if TYPE_CHECKING:
    import h11

SOON: Final = 14.0
"""Days before its end from which on a certificate is worth a warning."""

# As Trio's own happy eyeballs, which the client connects with.
_HEAD_START: Final = 0.25
_IS_IT_UP: Final = "is the broker up, is it the right port, and does a firewall let you through?"

# Of the time that the step has: whatever becomes of the look, the verdict must be told.
_SHARE_OF_A_LOOK: Final = 0.25

# What OpenSSL's verdicts on a certificate mean (X509_V_ERR_…), where there is something to do.
_TRUST_ADVICE: Final[Mapping[int, str]] = {
    9: "it isn't good yet: is this machine's clock right?",
    10: "it has ended: the broker has to renew it, unless this machine's clock is wrong",
    62: "it is another host's: check the host in the URL",
    64: "it is another host's: use the broker's name in the URL, and not its address",
}
_NOT_TRUSTED: Final = (
    "somebody else may be listening, so send no key there; for an authority of your own, set "
    "SSL_CERT_FILE to its certificate"
)

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
# An empty close frame, masked with zeros: the broker needn't wait for us to authenticate.
_GOODBYE: Final = b"\x88\x80\0\0\0\0"
_HTTP: Final = b"HTTP/1."
_RECEIVE_SIZE: Final = 16_384
_STATUS_ADVICE: Final[Mapping[int, str]] = {
    200: "something else than the broker's API has answered: check the URL",
    401: "does the broker let this machine in? Its address may have to be allowed there",
    403: "does the broker let this machine in? Its address may have to be allowed there",
    404: "check the path of the URL; BROKER_BASE_URL gets the documented one",
    407: "a proxy on the way wants to be asked first",
    429: "too many connections: wait a while",
}


# --- DNS and TCP --------------------------------------------------------------------------


async def resolve(visit: Visit) -> Finding:
    """Look the host up.

    Args:
        visit: The check-up.
    """
    host, port = visit.account.endpoint.host, visit.account.endpoint.port
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return failed(
            f"{host} can't be resolved ({error.strerror or error})",
            "check the host in the URL, and this machine's network and DNS",
            error=error,
        )
    visit.addresses = list(found)
    names = list(dict.fromkeys(_shown(address) for address in visit.addresses))
    if names == [host]:
        return ok(f"{host} is an address already")
    return ok(f"{host} is {', '.join(names)}")


async def connect(visit: Visit) -> Finding:
    """Connect to the first address that answers, each with a small head start on the next.

    Args:
        visit: The check-up.
    """
    outcomes: dict[str, OSError | None] = {}
    reached: list[tuple[Address, trio.SocketStream]] = []

    async def attempt(address: Address, over: trio.Event) -> None:
        outcomes[_shown(address)] = None
        try:
            reached.append((address, await _open(address)))
        except OSError as error:
            outcomes[_shown(address)] = error
            over.set()
        else:
            nursery.cancel_scope.cancel()

    with trio.move_on_after(visit.timeout):
        async with trio.open_nursery() as nursery:
            for address in visit.addresses:
                over = trio.Event()
                nursery.start_soon(attempt, address, over)
                with trio.move_on_after(_HEAD_START):
                    await over.wait()
    # Two may have answered at once.
    for _, stream in reached:
        visit.stack.push_async_callback(trio.aclose_forcefully, stream)
    if not reached:
        return _unreached(visit, outcomes)
    visit.address, visit.stream = reached[0]
    answered = _shown(visit.address)
    return ok("; ".join([f"{answered} answered", *_others(outcomes, answered)]))


def _unreached(visit: Visit, outcomes: Mapping[str, OSError | None]) -> Finding:
    port = visit.account.endpoint.port
    reasons = "; ".join(_others(outcomes))
    errors = [error for error in outcomes.values() if error is not None]
    if len(errors) < len(outcomes):
        return overdue(visit, f"{reasons} at port {port}", _IS_IT_UP)
    group = ExceptionGroup("no address has answered", errors)
    return failed(f"port {port} at {reasons}", _IS_IT_UP, error=group)


def _others(outcomes: Mapping[str, OSError | None], answered: str = "") -> Iterable[str]:
    return (f"{name}: {_reason(error)}" for name, error in outcomes.items() if name != answered)


def _shown(address: Address) -> str:
    return str(address[4][0])


def _reason(error: OSError | None) -> str:
    if error is None:
        return "no answer"
    # Trio's own text repeats the address.
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


# --- TLS ----------------------------------------------------------------------------------


async def secure(visit: Visit) -> Finding:
    """Begin TLS, and look at the certificate.

    Args:
        visit: The check-up.
    """
    endpoint = visit.account.endpoint
    if not endpoint.secure:
        return skipped("ws:// has no TLS")
    stream = trio.SSLStream(
        visit.stream,
        ssl.create_default_context(),
        server_hostname=endpoint.host,
        https_compatible=True,
    )
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        return await _not_secured(visit, error.__cause__ or error)
    visit.stream = stream
    shown = certificate.read(stream.getpeercert())
    warnings = []
    if shown.days_left(visit.clock()) < SOON:
        warnings.append("the certificate ends soon: the broker has to renew it")
    return ok(f"{stream.version()}, {shown.told(visit.clock())}", warnings)


async def _not_secured(visit: Visit, cause: BaseException) -> Finding:
    if not isinstance(cause, ssl.SSLCertVerificationError):
        advice = "does this port speak TLS? wss:// and https:// need it"
        # OpenSSL's own word for it, without the place in its sources.
        reason = str(getattr(cause, "reason", None) or cause).replace("_", " ").lower()
        return failed(f"the TLS handshake failed ({reason})", advice, error=cause)
    detail = f"the certificate isn't trusted: {cause.verify_message.rstrip('.')}"
    dial = partial(_open, visit.address)
    shown = None
    with trio.move_on_after(visit.timeout * _SHARE_OF_A_LOOK):
        shown = await certificate.look_at_untrusted(dial, visit.account.endpoint.host)
    if shown is not None:
        detail += f"; {shown.told(visit.clock())}"
    return failed(detail, _TRUST_ADVICE.get(cause.verify_code, _NOT_TRUSTED), error=cause)


# --- The WebSocket's handshake ------------------------------------------------------------


async def shake_hands(visit: Visit) -> Finding:
    """Ask for a WebSocket, and look at the answer's head. What was opened is closed again.

    Args:
        visit: The check-up.
    """
    # Not at the top, as `--help` doesn't need it.
    import h11  # noqa: PLC0415

    key = base64.b64encode(secrets.token_bytes(16))
    asked_at = visit.clock()
    try:
        head = await _ask(visit.stream, visit.account.endpoint, key)
        answered_at = visit.clock()
        if head.status_code == 101:
            await visit.stream.send_all(_GOODBYE)
    except (_HungUpError, trio.BrokenResourceError) as error:
        reason = error.__cause__ or error
        return failed(f"the connection broke ({reason})", "try again later", error=error)
    except (_NoHTTPError, h11.RemoteProtocolError) as error:
        return failed(
            f"the peer doesn't speak HTTP/1.1 ({error})",
            "check the port in the URL, and whether it wants wss:// or ws://",
            error=error,
        )
    finally:
        await trio.aclose_forcefully(visit.stream)
    answer = Answer.from_head(head)
    if answer.date is not None:
        visit.skew = Skew.from_date(answer.date, asked_at, answered_at)
    return judge(answer, key)


class _HungUpError(Exception):
    """The peer hung up instead of answering."""


class _NoHTTPError(Exception):
    """The peer speaks another protocol."""


@attrs.frozen(kw_only=True)
class Answer:
    """What the head of an answer to the handshake says, as far as it matters.

    Attributes:
        status: The HTTP status.
        accept: The key that proves that the handshake was understood.
        location: Where a redirection goes.
        retry_after: When to try again.
        date: Its date, in seconds since the epoch.
    """

    status: int
    accept: str = ""
    location: str = ""
    retry_after: str = ""
    date: float | None = None

    @classmethod
    def from_head(cls, head: h11.Response | h11.InformationalResponse) -> Self:
        """Read it.

        Args:
            head: The answer's head.
        """
        headers = {name.decode(): text.decode("latin-1") for name, text in head.headers}
        return cls(
            status=head.status_code,
            accept=headers.get("sec-websocket-accept", ""),
            location=headers.get("location", ""),
            retry_after=headers.get("retry-after", ""),
            date=_moment(headers.get("date", "")),
        )


def _moment(date: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    # It is in UTC, whatever it says (RFC 9110, section 5.6.7).
    return moment.replace(tzinfo=dt.UTC).timestamp()


async def _ask(
    stream: trio.abc.Stream, endpoint: Endpoint, key: bytes
) -> h11.Response | h11.InformationalResponse:
    """Ask for a WebSocket; the head of the answer that counts."""
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
                raise _HungUpError("the peer hung up before it answered")
            beginning += data[: len(_HTTP)]
            if not _HTTP.startswith(beginning[: len(_HTTP)]):
                # h11 would wait for a blank line, and many protocols have none.
                raise _NoHTTPError(f"it begins with {beginning[: len(_HTTP)]!r}")
            connection.receive_data(data)
        # Other heads may come before the one that counts: 103, say.
        elif isinstance(event, h11.Response) or (
            isinstance(event, h11.InformationalResponse) and event.status_code == 101
        ):
            return event


def judge(answer: Answer, key: bytes) -> Finding:
    """What an answer to a handshake means.

    Args:
        answer: The answer.
        key: The handshake's key.
    """
    status = answer.status
    if status == 101:
        digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
        if answer.accept.strip() != base64.b64encode(digest).decode():
            return failed(
                "a wrong answer to the handshake: its key doesn't fit",
                "something on the way answers in the broker's place: a proxy, a cache",
            )
        return ok("HTTP status 101: a WebSocket")
    if answer.location:
        # Its query may repeat ours, which isn't for every eye.
        where = answer.location.partition("?")[0][:200]
        return failed(
            f"redirected to {where} (HTTP status {status}), which isn't followed",
            "if that is the broker's, set it as the URL",
        )
    detail = f"refused with HTTP status {status}"
    if answer.retry_after:
        detail += f", to be tried again after {answer.retry_after}"
    otherwise = (
        "the broker, or what stands in front of it, is in trouble: try later"
        if status >= 500
        else "check the URL"
    )
    return failed(detail, _STATUS_ADVICE.get(status, otherwise))
