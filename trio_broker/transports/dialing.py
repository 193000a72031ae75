"""Connecting to the broker for any WebSocket library: CA certificates, DNS, TCP and TLS.

One timeout covers all of it, the CA certificates and the WebSocket handshake included, so that a
peer that answers byte by byte gets no more time than a silent one. Every error becomes a
`ConnectFailedError` that names the host and the step that failed.

Trio's own `trio.open_tcp_stream` isn't used. It resolves names in Trio's default threads, all of
which the program may be using. And it connects in tasks that Ctrl-C may interrupt: the
`KeyboardInterrupt` would be raised in an exception group.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeAlias

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._quiet_nursery import QuietNursery
from trio_broker.exceptions import CertificateError, ConnectFailedError
from trio_broker.redaction import Redact
from trio_broker.settings import Endpoint
from trio_broker.transports.handshake import AnswerError
from trio_broker.transports.threads import ThreadLimit
from trio_broker.transports.tls import ClientContext, NoCertificatesError
from trio_broker.transports.tls_stream import TLSStream

# As `socket.getaddrinfo` has it: family, kind, protocol, canonical name, address.
_Target: TypeAlias = tuple[int, int, int, str, Any]

# The timeout is slept in this many parts. A part that took too long still counts as one part: while
# the event loop was blocked, no answer could be read.
_PARTS: Final = 10

# When the time is over, what has arrived is read first. Each turn of Trio reads the socket once.
_LAST_TURNS: Final = 20

# Seconds after which the next address is tried as well, as RFC 8305 recommends.
_STAGGER: Final = 0.25

_lookups: Final = ThreadLimit("DNS")


@attrs.define
class Attempt:
    """One try to connect: its time, its socket and its errors.

    Attributes:
        endpoint: What to connect to.
        timeout: Seconds for all steps together.
        redact: Removes keys and signatures from a text. Some errors quote the broker.
        doing: The current step, for the error when the time is over.
        tcp: The TCP connection, once there is one.
    """

    endpoint: Endpoint
    timeout: float
    redact: Redact = str
    doing: str = attrs.field(init=False, default="")
    tcp: trio.SocketStream | None = attrs.field(init=False, default=None)

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """Cancel the block when the time is over.

        Raises:
            ConnectFailedError: The time is over.
        """
        is_done = False
        async with QuietNursery() as nursery:
            nursery.start_soon(self._run_down, nursery.cancel_scope)
            yield
            is_done = True
            nursery.cancel_scope.cancel()
        if not is_done:
            why = f"not done within {self.timeout:g} s, and still {self.doing}"
            raise self.failed(why) from None

    @enable_ki_protection
    async def _run_down(self, block: trio.CancelScope) -> None:
        for _ in range(_PARTS):
            await trio.sleep(self.timeout / _PARTS)
        for _ in range(_LAST_TURNS):
            await trio.lowlevel.checkpoint()
        block.cancel()

    @contextmanager
    def handshake(self) -> Iterator[None]:
        """Turn the errors of a WebSocket handshake, the block, into a `ConnectFailedError`."""
        self.doing = "waiting for the answer to the WebSocket handshake"
        try:
            yield
        except AnswerError as answer:
            failed = self.failed(answer.message)
            raise ConnectFailedError(failed.message, answer.status, answer.retry_after) from answer
        except Exception as error:
            raise self.failed(f"the WebSocket handshake failed ({error!r})") from error

    def failed(self, why: str) -> ConnectFailedError:
        """The error that names the host and the reason."""
        return ConnectFailedError(f"no WebSocket to {self.endpoint.netloc}: {self.redact(why)}")

    def close(self) -> None:
        """Close the socket, if there is one."""
        if self.tcp is not None:
            with suppress(OSError):  # The program may have closed the descriptor.
                self.tcp.socket.close()


async def connect(attempt: Attempt, tls: ssl.SSLContext | ClientContext | None) -> trio.abc.Stream:
    """A stream to the endpoint, with TLS where it is wanted. `Attempt.close` closes its socket.

    Raises:
        ConnectFailedError: It can't be reached. `CertificateError`: It can't be trusted.
    """
    if not attempt.endpoint.secure:
        return await _connected(attempt)
    client_context = tls if isinstance(tls, ClientContext) else ClientContext(tls)
    context = await _ssl_context(attempt, client_context)
    tcp = await _connected(attempt)
    try:
        return await _secured(tcp, attempt, context)
    except CertificateError:
        client_context.distrusted()
        raise


# --- DNS and TCP ----------------------------------------------------------------------------


async def _connected(attempt: Attempt) -> trio.SocketStream:
    host = attempt.endpoint.host
    try:
        attempt.doing = "resolving the host name"
        targets = await _resolve(attempt.endpoint)
        attempt.doing = "connecting"
        attempt.tcp = await _first_to_connect(targets)
    except socket.gaierror as error:
        raise attempt.failed(f"{host!r} can't be resolved ({error.strerror})") from error
    except UnicodeError as error:
        raise attempt.failed(f"{host!r} isn't a valid host name") from error
    except _AllFailedError as error:
        raise attempt.failed(str(error)) from error.reasons[0]
    except Exception as error:
        # For example too many open files, no more threads, or the program's resolver has failed.
        raise attempt.failed(_in_words(error)) from error
    return attempt.tcp


async def _resolve(endpoint: Endpoint) -> Sequence[_Target]:
    """The addresses of a host, the first two of different families if there are several."""
    host, port = endpoint.host, endpoint.port
    if _is_address(host):
        flags = socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    # Trio has no other way to read it.
    custom = trio.socket.set_custom_hostname_resolver(None)
    trio.socket.set_custom_hostname_resolver(custom)
    if custom is not None:
        return _alternated(await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    limiter = _lookups.limiter()
    return _alternated(
        await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=limiter)
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _alternated(targets: Iterable[_Target]) -> list[_Target]:
    """The same addresses, the second of another family than the first (RFC 6555)."""
    ordered = list(targets)
    for place, target in enumerate(ordered):
        if target[0] != ordered[0][0]:
            ordered.insert(1, ordered.pop(place))
            break
    return ordered


class _AllFailedError(Exception):
    """No address has accepted a connection."""

    def __init__(self, reasons: Sequence[Exception]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return "; ".join(dict.fromkeys(map(_in_words, self.reasons)))


async def _first_to_connect(targets: Sequence[_Target]) -> trio.SocketStream:
    """Connect to the first address that answers ("happy eyeballs", RFC 6555).

    The addresses are tried in their order. The next one is tried when the last one has failed, or
    hasn't answered for a while. An attempt that is slow goes on meanwhile.
    """
    winners: list[trio.SocketStream] = []
    reasons: list[Exception] = []
    try:
        async with trio.open_nursery() as nursery:

            @enable_ki_protection
            async def dial(target: _Target, failed: trio.Event) -> None:
                try:
                    winners.append(await _dial(target))
                except Exception as error:  # noqa: BLE001 - the next address may work
                    reasons.append(error)
                    failed.set()
                else:
                    nursery.cancel_scope.cancel()

            for target in targets:
                failed = trio.Event()
                nursery.start_soon(dial, target, failed)
                with trio.move_on_after(_STAGGER):
                    await failed.wait()
    except BaseException:
        for winner in winners:
            winner.socket.close()
        raise
    for late in winners[1:]:
        late.socket.close()
    if not winners:
        raise _AllFailedError(reasons or [OSError("its name has no address")])
    return winners[0]


async def _dial(target: _Target) -> trio.SocketStream:
    family, kind, protocol, _, address = target
    connecting = trio.socket.socket(family, kind, protocol)
    try:
        await connecting.connect(address)
        return trio.SocketStream(connecting)
    except BaseException:
        connecting.close()
        raise


def _in_words(error: BaseException) -> str:
    # Trio's own text repeats the address as a tuple.
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return os.strerror(number)
    return str(error) or repr(error) if isinstance(error, OSError) else repr(error)


# --- TLS ------------------------------------------------------------------------------------


async def _ssl_context(attempt: Attempt, client_context: ClientContext) -> ssl.SSLContext:
    """The TLS context."""
    attempt.doing = "reading the CA certificates"
    try:
        return await client_context.get()
    except NoCertificatesError as error:
        raise CertificateError(attempt.failed(str(error)).message) from error
    except Exception as error:
        # For example too many open files.
        raise attempt.failed(f"the CA certificates can't be read ({_in_words(error)})") from error


async def _secured(tcp: trio.SocketStream, attempt: Attempt, context: ssl.SSLContext) -> TLSStream:
    """TLS over a stream, its certificate checked."""
    attempt.doing = "in the TLS handshake"
    try:
        stream = TLSStream(tcp, context, attempt.endpoint.host)
        await stream.do_handshake()
    except Exception as error:  # noqa: BLE001 - raised below
        cause = error.__cause__ or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            failed = attempt.failed(f"its certificate isn't trusted ({cause.verify_message})")
            raise CertificateError(failed.message) from cause
        raise attempt.failed(f"the TLS handshake failed ({cause})") from cause
    return stream
