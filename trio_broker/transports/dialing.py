"""Reaching the broker, whatever library then speaks WebSocket: DNS, TCP, TLS, HTTP refusals.

One deadline holds for all of it, the WebSocket handshake included, so that a peer that drips its
answers byte by byte gets no more time than one that is silent. Every error of the system's becomes
a `ConnectFailedError` that names the host and what was being done.
"""

from __future__ import annotations

import datetime as dt
import email.parser
import email.utils
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import attrs
import trio

from trio_broker.exceptions import CertificateError, ConnectFailedError
from trio_broker.settings import Endpoint

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b[^\n]*\n")
_HTTP: Final = b"HTTP/1."
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")


@attrs.frozen
class Attempt:
    """One try to connect: where to, and until when for all its phases together."""

    endpoint: Endpoint
    timeout: float
    deadline: float = attrs.field(init=False)

    @deadline.default
    def _from_now(self) -> float:
        return trio.current_time() + self.timeout

    @contextmanager
    def phase(self, doing: str) -> Iterator[None]:
        """Keep the deadline, and say what was being done when it passed."""
        with trio.move_on_at(self.deadline) as scope:
            yield
        if scope.cancelled_caught:
            raise self.failed(f"not done within {self.timeout:g} s, and still {doing}")

    def failed(self, why: str) -> ConnectFailedError:
        """The error that says where to, and why not."""
        return ConnectFailedError(f"no WebSocket to {self.endpoint.netloc}: {why}")

    def refused(self, answer: bytes) -> ConnectFailedError | None:
        """The error for an HTTP answer that isn't 101; None if it is, or isn't HTTP at all."""
        status = http_status(answer)
        if status in {None, 101}:
            return None
        head = answer[answer.index(b"\n") + 1 :]
        headers = email.parser.BytesHeaderParser().parsebytes(head)
        error = self.failed(f"refused with HTTP status {status}")
        if location := headers.get("Location"):
            # Its query may repeat ours, which isn't for every eye.
            where = str(location).partition("?")[0][:200]
            error = self.failed(f"redirected to {where!r} ({status}), which isn't followed")
        return ConnectFailedError(error.message, status, _seconds_to_wait(headers["Retry-After"]))

    def misunderstood(self, error: BaseException) -> ConnectFailedError:
        """The error for an answer of which the WebSocket library could make nothing."""
        while (earlier := error.__cause__ or error.__context__) is not None:
            error = earlier  # Its own goes out while it handles the real one.
        return self.failed(f"a wrong answer to the WebSocket handshake ({error})")


class HandshakeAnswer:
    """The answer to a WebSocket handshake as it comes, looked at before a library does.

    Libraries wait for the end of a refusal's body, which may never come, and forget what was
    answered when the peer hangs up instead, as HTTP allows.

    Attributes:
        text: What came up to the end of the answer's head, or a bit more.
    """

    def __init__(self) -> None:
        self.text: bytes = b""
        self._is_whole = False

    def feed(self, data: bytes | bytearray) -> str | None:
        """Take what has come.

        Args:
            data: Some bytes.

        Returns:
            Why there can't be a WebSocket any more, None while there can.
        """
        if self._is_whole:
            return None
        self.text += data
        if not _HTTP.startswith(self.text[: len(_HTTP)]):
            # A library would wait for a blank line, and many protocols have none.
            return "the peer spoke something other than HTTP/1.1"
        self._is_whole = _END_OF_HEAD.search(self.text) is not None
        if self._is_whole and http_status(self.text) not in {None, 101}:
            return "the peer refused"
        return None


@asynccontextmanager
async def open_stream(
    attempt: Attempt, ssl_context: ssl.SSLContext | None
) -> AsyncIterator[trio.abc.Stream]:
    """A stream to the endpoint, with TLS where it is wanted; its socket is closed at the end."""
    host, port = attempt.endpoint.host, attempt.endpoint.port
    try:
        with attempt.phase("resolving the host name or connecting"):
            tcp = await trio.open_tcp_stream(host, port)
    except socket.gaierror as error:
        raise attempt.failed(f"{host!r} can't be resolved ({error.strerror})") from error
    except OSError as error:
        raise attempt.failed(_each_reason(error)) from error
    try:
        yield await _secured(tcp, attempt, ssl_context) if attempt.endpoint.secure else tcp
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(tcp)


async def _secured(
    tcp: trio.SocketStream, attempt: Attempt, ssl_context: ssl.SSLContext | None
) -> trio.SSLStream[trio.SocketStream]:
    """TLS over a stream, its certificate checked."""
    # https_compatible: a WebSocket has an end of its own, and many peers leave TLS's out.
    stream = trio.SSLStream(
        tcp,
        ssl_context or ssl.create_default_context(),
        server_hostname=attempt.endpoint.host,
        https_compatible=True,
    )
    try:
        with attempt.phase("in the TLS handshake"):
            await stream.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__ or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            failed = attempt.failed(f"its certificate isn't trusted ({cause.verify_message})")
            raise CertificateError(failed.message) from cause
        raise attempt.failed(f"the TLS handshake failed ({cause})") from cause
    return stream


def _each_reason(error: OSError) -> str:
    """What went wrong, in the system's words: once, however many addresses Trio tried."""
    group = error.__cause__
    reasons = group.exceptions if isinstance(group, ExceptionGroup) else [error]
    return "; ".join(dict.fromkeys(_in_words(reason) for reason in reasons))


def _in_words(error: BaseException) -> str:
    # Trio repeats the address, as a tuple, between a number and the words.
    number = getattr(error, "errno", None)
    return str(error) if number is None else os.strerror(number)


def http_status(answer: bytes) -> int | None:
    """The status of an HTTP/1 answer, None where it isn't one or its first line isn't whole."""
    match = _STATUS_LINE.match(answer)
    return int(match[1]) if match else None


def _seconds_to_wait(retry_after: object) -> float | None:
    """The seconds that a ``Retry-After`` header means (RFC 9110, section 10.2.3), if any."""
    text = str(retry_after).strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return max(0.0, moment.timestamp() - time.time())
