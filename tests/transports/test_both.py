"""What every transport must do, over real sockets. Each test runs with each transport."""

from __future__ import annotations

import gc
import re
import socket
import ssl
import struct
import sys
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    suppress,
)
from pathlib import Path
from typing import get_args

import pytest
import trio
import trustme
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trio_broker
from tests.transports.raw_server import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Handler,
    PeerGoneError,
    accept_websocket,
    close_frame,
    frame,
    receive_frame,
    receive_request,
    reset,
    send,
    serve_raw,
    switching_protocols,
    wait_gone,
)
from trio_broker.exceptions import ConnectFailedError, ConnectionLostError
from trio_broker.settings import Endpoint, TransportName
from trio_broker.transports import Transport, opener
from trio_broker.transports.tls import ClientContext

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 20.0

# The tested transport, by its library.
library: TransportName = "trio-websocket"


@pytest.fixture(autouse=True, params=get_args(TransportName))
def each_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "library", request.param)


def opening(
    port: int,
    *,
    host: str = "127.0.0.1",
    resource: str = "/ws/v1/stream",
    ssl_context: ssl.SSLContext | ClientContext | None = None,
    secure: bool = False,
    connect_timeout: float = PATIENCE,
    max_receive_size: int = 1 << 20,
    redact: Callable[[str], str] = str,
) -> AbstractAsyncContextManager[Transport]:
    endpoint = Endpoint(secure or ssl_context is not None, host, port, resource)
    return opener(library)(
        endpoint,
        ssl_context=ssl_context,
        connect_timeout=connect_timeout,
        max_receive_size=max_receive_size,
        redact=redact,
    )


@asynccontextmanager
async def connected(
    handler: Handler, *, max_receive_size: int = 1 << 20
) -> AsyncIterator[Transport]:
    """A transport to a server that does the handshake and then runs the handler."""

    async def serve(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream)
        await handler(stream)

    with trio.fail_after(PATIENCE):
        async with (
            serve_raw(serve) as port,
            opening(port, max_receive_size=max_receive_size) as transport,
        ):
            yield transport


def sending(data: bytes) -> Handler:
    """A handler that sends bytes and waits until the client disconnects."""

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, data)
        await wait_gone(stream)

    return handler


def sending_then_hanging_up(data: bytes) -> Handler:
    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, data)

    return handler


async def echo(stream: trio.abc.Stream) -> None:
    """A WebSocket server that echoes every message."""
    while True:
        opcode, payload = await receive_frame(stream)
        await send(stream, frame(payload, PONG if opcode == PING else opcode))
        if opcode == CLOSE:
            return


async def failure_to_open(
    handler: Handler,
    *,
    server_context: ssl.SSLContext | None = None,
    ssl_context: ssl.SSLContext | None = None,
    secure: bool = False,
    connect_timeout: float = PATIENCE,
) -> ConnectFailedError:
    """Return the failure to open a WebSocket to a handler."""
    with trio.fail_after(PATIENCE):
        async with serve_raw(handler, ssl_context=server_context) as port:
            with pytest.raises(ConnectFailedError) as caught:
                async with opening(
                    port,
                    ssl_context=ssl_context,
                    secure=secure,
                    connect_timeout=connect_timeout,
                ):
                    pytest.fail("it opened")
            assert f"127.0.0.1:{port}" in str(caught.value)
    return caught.value


async def take(transport: Transport, count: int) -> list[str | bytes]:
    """Receive at least so many messages; a read may have more."""
    messages: list[str | bytes] = []
    while len(messages) < count:
        received = await transport.receive()
        assert received
        messages += received
    return messages


@asynccontextmanager
async def receiving_in_background(transport: Transport) -> AsyncIterator[None]:
    """Receive in another task: pongs are only processed while a task receives."""

    async def receive() -> None:
        with suppress(ConnectionLostError):
            while True:
                await transport.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        yield
        nursery.cancel_scope.cancel()


async def loss(transport: Transport) -> ConnectionLostError:
    with pytest.raises(ConnectionLostError) as caught:
        await transport.receive()
    return caught.value


def count_tasks() -> int:
    """The number of tasks in the whole run."""

    def below(task: trio.lowlevel.Task) -> int:
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return 1 + sum(map(below, children))

    root = trio.lowlevel.current_root_task()
    assert root is not None
    return below(root)


class Resolver(trio.abc.HostnameResolver):
    """A resolver that runs a function, and then dials 127.0.0.1."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    async def getaddrinfo(  # type: ignore[override]  # the rest of its arguments doesn't matter
        self, _host: bytes, port: int, *_: int
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        await trio.lowlevel.checkpoint()
        self._function()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise AssertionError("nobody asks what an address is called")


def fail_with(error: Exception) -> Callable[[], object]:
    def function() -> None:
        raise error

    return function


# Opening


async def test_handshake_names_host_path_and_library() -> None:
    requests: list[bytes] = []

    async def handler(stream: trio.abc.Stream) -> None:
        requests.append(await accept_websocket(stream))
        await wait_gone(stream)

    async with (
        serve_raw(handler) as port,
        opening(port, resource="/ws/v1/stream?a=b"),
    ):
        pass
    lines = requests[0].split(b"\r\n")
    assert lines[0] == b"GET /ws/v1/stream?a=b HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}".encode() in lines
    assert f"User-Agent: trio-broker/{trio_broker.__version__}".encode() in lines
    assert not any(line.lower().startswith(b"sec-websocket-extensions") for line in lines)


async def test_refused_connection_fails_at_once() -> None:
    async with serve_raw(echo) as port:
        pass
    told = rf"127\.0\.0\.1:{port}: Connection refused$"
    with pytest.raises(ConnectFailedError, match=told) as caught:
        async with opening(port):
            pass
    assert caught.value.status is None
    assert isinstance(caught.value.__cause__, OSError)


async def test_error_shows_the_unresolvable_name() -> None:
    trio.socket.set_custom_hostname_resolver(
        Resolver(fail_with(socket.gaierror(socket.EAI_NONAME, "Name or service not known")))
    )
    with pytest.raises(ConnectFailedError, match=r"'broker\.example' can't be resolved.*not known"):
        async with opening(443, host="broker.example", secure=True):
            pass


async def test_failing_resolver_is_a_failed_connection() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(fail_with(OSError("too many open files"))))
    with pytest.raises(ConnectFailedError, match=r"broker\.example:8080: too many open files"):
        async with opening(8080, host="broker.example"):
            pass


async def test_slow_resolver_meets_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(Resolver):
        async def getaddrinfo(  # type: ignore[override]  # it never answers
            self, *_: object
        ) -> None:
            await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(Slow(list))
    tls = (
        ssl.create_default_context()
    )  # it is made in a thread, and a mock clock doesn't wait for threads
    with pytest.raises(ConnectFailedError, match=r"broker\.example: .* 3 s, .*resolving"):
        async with opening(443, host="broker.example", ssl_context=tls, connect_timeout=3):
            pass


@pytest.mark.parametrize(
    ("secure", "phase"), [(False, "the WebSocket handshake"), (True, "the TLS handshake")]
)
async def test_silent_server_meets_the_deadline(
    *, secure: bool, phase: str, autojump_clock: trio.testing.MockClock
) -> None:
    # It is made in a thread, and a mock clock doesn't wait for threads.
    tls = ssl.create_default_context() if secure else None
    error = await failure_to_open(wait_gone, secure=secure, ssl_context=tls, connect_timeout=0.5)
    assert "not done within 0.5 s" in str(error)
    assert phase in str(error)


async def test_dripped_handshake_meets_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, b"HTTP/1.1 101 Switching Protocols\r\nServer: ")
        while True:
            await send(stream, b"x")
            await trio.sleep(0.005)

    error = await failure_to_open(handler, connect_timeout=0.1)
    assert "waiting for the answer to the WebSocket handshake" in str(error)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(authority: trustme.CA, host: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    return context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def greet(stream: trio.abc.Stream) -> None:
    await accept_websocket(stream, and_send=frame("hello"))
    await echo(stream)


async def test_trusted_certificate_opens_with_the_users_context(authority: trustme.CA) -> None:
    async with (
        serve_raw(greet, ssl_context=server_tls(authority)) as port,
        opening(port, ssl_context=client_tls(authority)) as transport,
    ):
        assert await transport.receive() == ["hello"]
        await transport.send(["over TLS"])
        assert await transport.receive() == ["over TLS"]
        await transport.aclose()


async def test_end_of_tcp_without_an_end_of_tls_is_a_normal_end(authority: trustme.CA) -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream, and_send=frame("hello"))

    async with (
        serve_raw(handler, ssl_context=server_tls(authority)) as port,
        opening(port, ssl_context=client_tls(authority)) as transport,
    ):
        assert await transport.receive() == ["hello"]
        assert "the peer hung up" in str(await loss(transport))


async def test_trusted_certificate_opens_with_the_systems_authorities(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "authorities.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    async with (
        serve_raw(greet, ssl_context=server_tls(authority)) as port,
        opening(port, secure=True) as transport,
    ):
        assert await transport.receive() == ["hello"]


async def test_error_names_the_untrusted_certificate(authority: trustme.CA) -> None:
    error = await failure_to_open(wait_gone, server_context=server_tls(authority), secure=True)
    assert "its certificate isn't trusted" in str(error)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


async def test_error_names_the_certificate_of_another_host(authority: trustme.CA) -> None:
    error = await failure_to_open(
        wait_gone,
        server_context=server_tls(authority, "other.example"),
        ssl_context=client_tls(authority),
    )
    assert "its certificate isn't trusted" in str(error)
    assert "not valid for '127.0.0.1'" in str(error)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


async def test_server_without_tls_is_a_failed_tls_handshake() -> None:
    error = await failure_to_open(sending(b"HTTP/1.1 400 Bad Request\r\n\r\n"), secure=True)
    assert "the TLS handshake failed" in str(error)
    assert isinstance(error.__cause__, ssl.SSLError)


@pytest.mark.parametrize("leave", [reset, trio.aclose_forcefully])
async def test_server_that_hangs_up_during_tls_is_a_failed_tls_handshake(leave: Handler) -> None:
    error = await failure_to_open(leave, secure=True)
    assert "the TLS handshake failed" in str(error)


def answering(answer: bytes, *, hang_up: bool = False) -> Handler:
    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await send(stream, answer)
        if not hang_up:
            await wait_gone(stream)

    return handler


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize(
    ("rest", "hang_up"),
    [
        (b"Content-Length: 4\r\n\r\nbody", False),
        (b"Content-Length: 0\r\n\r\n", False),
        (b"\r\nbody until the end of the connection", True),
        (b"Content-Length: 1000\r\n\r\nnever finished", False),
        (b"\r\n", True),
        (b"Server: hangs up in its hea", True),
        (b"Server: has\nno carriage returns\n\n", False),
    ],
)
async def test_refusal_has_its_http_status(status: int, rest: bytes, *, hang_up: bool) -> None:
    answer = b"HTTP/1.1 %d No\r\n" % status + rest
    error = await failure_to_open(answering(answer, hang_up=hang_up))
    assert error.status == status
    assert error.retry_after is None
    assert f"HTTP status {status}" in str(error)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (b"7", 7, 7),
        (b" 120 ", 120, 120),
        (b"Fri, 31 Dec 2100 23:59:59 GMT", 3600, 1e10),
        (b"Fri Dec 31 23:59:59 2100", 3600, 1e10),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 0, 0),
    ],
)
async def test_retry_after_is_read_as_seconds_or_as_a_date(
    header: bytes, low: float, high: float
) -> None:
    error = await failure_to_open(
        answering(b"HTTP/1.1 503 Later\r\nRetry-After: %s\r\n\r\n" % header)
    )
    assert error.retry_after is not None
    assert low <= error.retry_after <= high


async def test_retry_after_date_without_a_zone_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "ELSEWHERE-12")
    time.tzset()
    try:
        error = await failure_to_open(
            answering(
                b"HTTP/1.1 503 Later\r\nRetry-After: %s\r\n\r\n"
                % time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(time.time() + 3600)).encode()
            )
        )
    finally:
        monkeypatch.undo()
        time.tzset()
    assert error.retry_after is not None
    assert error.retry_after > 0


@pytest.mark.parametrize(
    "header",
    [
        b"soon",
        b"-5",
        b"1e3",
        b"nan",
        b"inf",
        b"\xff",
        b"",
        b"Sun, 06 Nov 99999 08:49:37 GMT",
    ],
)
async def test_invalid_retry_after_is_none(header: bytes) -> None:
    error = await failure_to_open(
        answering(b"HTTP/1.1 429 Later\r\nRetry-After: %s\r\n\r\n" % header)
    )
    assert (error.status, error.retry_after) == (429, None)


async def test_redirect_is_refused_and_its_target_shown() -> None:
    error = await failure_to_open(
        answering(b"HTTP/1.1 302 Found\r\nLocation: wss://else.example/ws?token=abc\r\n\r\n")
    )
    assert error.status == 302
    assert "'wss://else.example/ws'" in str(error)
    assert "abc" not in str(error)


UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (UPGRADE + b"Sec-WebSocket-Accept: d3Jvbmc=\r\n\r\n", "(?i)accept"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "(?i)missing .*header"),
        (b"HTTP/1.1 abc\r\n\r\n", "status line|not enough values"),
        (b"HTTP/1.1 101 " + b"x" * 70_000, "wrong answer"),
        (UPGRADE + b"Sec-WebSocket-Protocol: \xff\r\n\r\n", "wrong answer"),
    ],
)
async def test_invalid_handshake_response_fails_at_once(answer: bytes, why: str) -> None:
    error = await failure_to_open(answering(answer))
    assert "wrong answer to the WebSocket handshake" in str(error)
    assert re.search(why, str(error))
    assert error.status is None
    assert error.__cause__ is not None


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/2 401\r\n\r\n", b"\x15\x03\x03\x00\x02\x02F", b"\0"],
)
async def test_peer_without_http_fails_at_once(answer: bytes) -> None:
    error = await failure_to_open(answering(answer))
    assert "the peer spoke something other than HTTP/1.1" in str(error)


async def test_unrequested_extension_is_refused() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        answer = switching_protocols(await receive_request(stream))
        await send(stream, answer[:-2] + b"Sec-WebSocket-Extensions: x-own\r\n\r\n")
        await wait_gone(stream)

    error = await failure_to_open(handler)
    assert "extension" in str(error)


@pytest.mark.parametrize("answer", [b"", UPGRADE, b"HTTP/1.1 40"])
async def test_close_during_the_handshake_fails_at_once(answer: bytes) -> None:
    error = await failure_to_open(answering(answer, hang_up=True))
    assert "the peer hung up in the WebSocket handshake" in str(error)


async def test_reset_during_the_handshake_fails_at_once() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await reset(stream)

    error = await failure_to_open(handler)
    assert "the connection broke (" in str(error)
    assert "in the WebSocket handshake" in str(error)


async def test_reset_before_the_handshake_fails_at_once() -> None:
    error = await failure_to_open(reset)
    assert "in the WebSocket handshake" in str(error)


async def test_failed_opening_leaves_no_task_and_no_socket() -> None:
    gone = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await send(stream, b"nonsense\r\n\r\n")
        await wait_gone(stream)
        gone.set()

    async with serve_raw(handler) as port:
        await wait_all_tasks_blocked()
        before = count_tasks()
        with pytest.raises(ConnectFailedError):
            async with opening(port):
                pass
        with trio.fail_after(PATIENCE):
            await gone.wait()
        await wait_all_tasks_blocked()
        assert count_tasks() == before


# Receiving


async def test_messages_are_received_in_order_as_text_or_bytes() -> None:
    data = frame("héllo ✓") + frame(b"\x00\xff", BINARY) + frame("") + frame("x" * 70_000)
    async with connected(sending(data)) as transport:
        assert await take(transport, 4) == ["héllo ✓", b"\x00\xff", "", "x" * 70_000]


async def test_message_sent_with_the_handshake_is_received() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream, and_send=frame("one") + frame("two") + close_frame(1001))

    async with serve_raw(handler) as port, opening(port) as transport:
        assert await take(transport, 2) == ["one", "two"]
        assert (await loss(transport)).code == 1001


async def test_three_fragments_are_one_message() -> None:
    euro = "€".encode()
    data = (
        frame(b"a" + euro[:1], TEXT, fin=False)
        + frame(b"in between", PING)
        + frame(euro[1:2], CONTINUATION, fin=False)
        + frame(euro[2:] + b"b", CONTINUATION)
    )
    async with connected(sending(data)) as transport:
        assert await transport.receive() == ["a€b"]


async def test_stream_cut_into_single_bytes_gives_the_same_messages() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        answer = switching_protocols(await receive_request(stream))
        for byte in answer + frame("first €") + frame(b"\xfe" * 200, BINARY) + close_frame(1000):
            await send(stream, bytes([byte]))
            # All tasks are blocked, so the client has read this byte.
            await wait_all_tasks_blocked()

    async with serve_raw(handler) as port, opening(port) as transport:
        assert await take(transport, 2) == ["first €", b"\xfe" * 200]
        assert (await loss(transport)).code == 1000


async def test_cancelled_receive_loses_nothing() -> None:
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        await send(stream, frame("kept"))
        await wait_gone(stream)

    async with connected(handler) as transport:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        proceed.set()
        assert await transport.receive() == ["kept"]


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1009, 1011, 1012, 1013, 3000, 4999])
async def test_close_by_the_peer_has_its_code_and_reason(code: int) -> None:
    answers: list[tuple[int, bytes]] = []

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("last words") + close_frame(code, "so\nlong"))
        answers.append(await receive_frame(stream))

    async with connected(handler) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == ["last words"]
        error = await loss(transport)
        assert error.code == code
        assert type(error.code) is int
        assert not error.is_local
        assert str(code) in str(error)
        assert "'so\\nlong'" in str(error)
        await wait_all_tasks_blocked(0.01)
    assert answers == [(CLOSE, struct.pack("!H", code) + b"so\nlong")]


async def test_close_without_a_code_differs_from_a_cut_connection() -> None:
    async with connected(sending(close_frame())) as transport:
        error = await loss(transport)
        assert error.code is None
        assert not error.is_local
        assert "the peer closed the WebSocket and gave no code" in str(error)


async def test_close_in_the_middle_of_a_message_is_the_peers() -> None:
    data = frame("begun", fin=False) + close_frame(1001)
    async with connected(sending(data)) as transport:
        error = await loss(transport)
        assert (error.code, error.is_local) == (1001, False)


async def test_close_after_the_peer_closed_is_the_peers() -> None:
    async with connected(sending(close_frame(1001))) as transport:
        await loss(transport)
        await transport.aclose()
        error = await loss(transport)
        assert (error.code, error.is_local) == (1001, False)


async def test_each_failing_call_raises_an_error_of_its_own() -> None:
    async with connected(sending(close_frame(1001))) as transport:
        errors = [await loss(transport) for _ in range(3)]
        with pytest.raises(ConnectionLostError) as caught:
            await transport.send(["too late"])
        errors.append(caught.value)
        with pytest.raises(ConnectionLostError) as caught:
            await transport.ping()
        errors.append(caught.value)
    assert [error.code for error in errors] == [1001] * 5
    assert len({id(error) for error in errors}) == 5


@pytest.mark.parametrize("data", [b"", frame("half a message")[:-3], b"\x81"])
async def test_end_without_a_close_frame_has_no_code(data: bytes) -> None:
    async with connected(sending_then_hanging_up(frame("whole") + data)) as transport:
        assert await transport.receive() == ["whole"]
        error = await loss(transport)
        assert error.code is None
        assert not error.is_local
        assert "the peer hung up, without a close frame" in str(error)


async def test_reset_has_no_code() -> None:
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("whole") + frame("half")[:-2])
        await proceed.wait()
        await reset(stream)

    async with connected(handler) as transport:
        assert await transport.receive() == ["whole"]
        proceed.set()
        error = await loss(transport)
        assert error.code is None
        assert "reset by peer" in str(error)


async def test_message_over_the_limit_is_refused_after_earlier_ones() -> None:
    refusals: list[tuple[int, bytes]] = []

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, frame("x" * 100) + frame("x" * 101) + frame("y" * 300))
        refusals.append(await receive_frame(stream))
        await wait_gone(stream)

    async with connected(handler, max_receive_size=100) as transport:
        # Even if no task receives at that time.
        await wait_all_tasks_blocked()
        assert await transport.receive() == ["x" * 100]
        error = await loss(transport)
        assert error.code == 1009
        assert error.is_local
        assert re.search(r"(maximum|limit) .*100", str(error))
        assert (await loss(transport)).code == 1009
    ((opcode, payload),) = refusals
    assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 1009))


@pytest.mark.parametrize(
    ("data", "code", "why"),
    [
        (frame(b"caf\xe9"), 1007, "decode|UTF-8"),
        (frame(b"caf\xe9" * 9, fin=False) + frame("", CONTINUATION), 1007, "decode|UTF-8"),
        (close_frame(1000)[:-2] + b"\x03\xe8"[:1], 1002, ""),
        (frame("masked", mask=True), 1002, "mask"),
        (frame("", 0x3), 1002, "opcode"),
        (frame("", CONTINUATION), 1002, "(?i)continuation"),
        (close_frame(1006), 1002, "local-only|status code"),
    ],
)
async def test_protocol_errors_have_their_close_codes(data: bytes, code: int, why: str) -> None:
    async with connected(sending(frame("before") + data + frame("after"))) as transport:
        await wait_all_tasks_blocked()
        assert await transport.receive() == ["before"]
        error = await loss(transport)
        assert error.code == code
        assert error.is_local
        assert re.search(why, str(error))


async def test_last_heard_changes_only_with_received_bytes(
    mock_clock: trio.testing.MockClock,
) -> None:
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        await send(stream, frame("a whole message")[:1])
        await wait_gone(stream)

    endpoint_opened = trio.current_time()
    async with connected(handler) as transport, receiving_in_background(transport):
        assert transport.last_heard == endpoint_opened
        mock_clock.jump(3)
        await wait_all_tasks_blocked(0.01)
        assert transport.last_heard == endpoint_opened
        proceed.set()
        while transport.last_heard == endpoint_opened:
            await wait_all_tasks_blocked()
        assert transport.last_heard == endpoint_opened + 3


# Sending, pinging


async def test_messages_are_sent_in_order() -> None:
    async with connected(echo) as transport:
        with assert_checkpoints():
            await transport.send(["one"])
        await transport.send(["two €", "x" * 70_000])
        assert await take(transport, 3) == ["one", "two €", "x" * 70_000]


async def test_ping_returns_with_its_pong() -> None:
    async with connected(echo) as transport, receiving_in_background(transport):
        await transport.ping()
        await transport.ping()


async def test_ping_of_a_silent_peer_waits_until_cancelled() -> None:
    async with connected(wait_gone) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(transport.ping)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("parting", [close_frame(1012), frame("", mask=True), b""])
async def test_ping_ends_with_the_connection(parting: bytes) -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        assert (await receive_frame(stream))[0] == PING
        await send(stream, parting)
        # A peer may send a close frame and keep its socket open.
        if parting:
            await wait_gone(stream)

    async with connected(handler) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(loss, transport)
        with pytest.raises(ConnectionLostError):
            await transport.ping()


async def test_ping_ends_with_the_stream() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        assert (await receive_frame(stream))[0] == PING

    async with connected(handler) as transport, receiving_in_background(transport):
        with pytest.raises(ConnectionLostError, match="hung up"):
            await transport.ping()


async def test_thousands_of_pings_are_answered_and_data_still_flows() -> None:
    rounds, pings = 5, 1000
    pong_size = len(frame("", PONG, mask=True))
    answered = trio.Event()

    async def count_pongs(stream: trio.abc.Stream) -> None:
        size = 0
        while size < rounds * pings * pong_size:
            size += len(await stream.receive_some(65536))
        answered.set()

    async def handler(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_pongs, stream)
            for number in range(rounds):
                await send(stream, frame("", PING) * pings + frame(str(number)))

    async with connected(handler) as transport:
        assert await take(transport, rounds) == [str(number) for number in range(rounds)]
        async with receiving_in_background(transport):
            await answered.wait()


async def test_send_to_a_disconnected_peer_fails() -> None:
    async with connected(sending_then_hanging_up(b"")) as transport:
        await loss(transport)
        for _ in range(2):
            with pytest.raises(ConnectionLostError, match="hung up"):
                await transport.send(["anybody there?"])


async def test_messages_before_a_failed_send_are_received() -> None:
    hung_up = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, b"".join(frame(str(number)) for number in range(10)))
        await trio.aclose_forcefully(stream)
        hung_up.set()

    async with connected(handler) as transport:
        await hung_up.wait()
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionLostError, match="the connection broke"):
            await transport.send(["anybody there?" * 1000] * 1_000)
        assert await take(transport, 10) == [str(number) for number in range(10)]
        error = await loss(transport)
        assert error.code is None
        assert "the connection broke" in str(error)


async def test_send_to_a_peer_that_does_not_read_can_be_cancelled() -> None:
    async def handler(_: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    # `connected` has a deadline, for leaving as well.
    async with connected(handler) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(transport.send, ["x" * 1_000_000] * 100)
        await wait_all_tasks_blocked(0.05)
        assert nursery.child_tasks
        nursery.cancel_scope.cancel()


async def test_reader_blocked_by_writing_pongs_can_be_cancelled() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        while True:
            await send(stream, frame(b"x" * 125, PING) * 100)

    async with connected(handler):
        await wait_all_tasks_blocked(0.05)


async def test_blocked_pong_does_not_delay_a_reply(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The peer doesn't read. It sends a reply, a ping, and a large incomplete frame."""
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await proceed.wait()
        await send(stream, frame("reply") + frame("", PING) + frame("x" * 5000)[:-1])
        await trio.sleep_forever()

    async with connected(handler) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(transport.send, ["x" * 1_000_000] * 20)
        await wait_all_tasks_blocked(0.01)
        proceed.set()
        began = trio.current_time()
        assert await transport.receive() == ["reply"]
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()


# Closing


async def test_close_sends_1000_and_waits_for_the_peers_close() -> None:
    frames: list[tuple[int, bytes]] = []
    proceed = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        frames.append(await receive_frame(stream))
        await proceed.wait()
        await send(stream, frame("crossing") + close_frame(1000))
        await wait_gone(stream)

    async with connected(handler) as transport:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.aclose)
            while not frames:
                await wait_all_tasks_blocked()
            assert nursery.child_tasks
            proceed.set()
        await transport.aclose()
        with pytest.raises(ConnectionLostError):
            await transport.send(["too late"])
        error = await loss(transport)
    assert frames == [(CLOSE, struct.pack("!H", 1000))]
    assert (error.code, error.is_local) == (1000, True)


async def test_close_waits_while_another_task_receives() -> None:
    closing, proceed, closed = trio.Event(), trio.Event(), trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        assert (await receive_frame(stream))[0] == CLOSE
        closing.set()
        await proceed.wait()
        await send(stream, close_frame(1000))
        await wait_gone(stream)

    async def close(transport: Transport) -> None:
        await transport.aclose()
        closed.set()

    async with connected(handler) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(loss, transport)
        await wait_all_tasks_blocked()
        nursery.start_soon(close, transport)
        await closing.wait()
        await wait_all_tasks_blocked()
        assert not closed.is_set()
        proceed.set()


async def test_close_wakes_a_task_that_receives() -> None:
    async with connected(echo) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(loss, transport)
        await wait_all_tasks_blocked()
        await transport.aclose()


async def test_close_ends_although_the_peer_sends_pings() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        assert (await receive_frame(stream))[0] == CLOSE
        await send(stream, frame("", PING) + close_frame(1000))
        await wait_gone(stream)

    async with connected(handler) as transport:
        await transport.aclose()


@pytest.mark.parametrize("parting", [close_frame(1001), b""])
async def test_close_after_the_peer_disconnected_succeeds(parting: bytes) -> None:
    async with connected(sending_then_hanging_up(parting)) as transport:
        await loss(transport)
        await transport.aclose()
        await transport.aclose()


async def test_unanswered_close_ends_at_the_callers_deadline() -> None:
    gone = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await wait_gone(stream)
        gone.set()

    async with serve_raw_websocket(handler) as port:
        async with opening(port) as transport:
            with trio.move_on_after(0.05) as scope:
                await transport.aclose()
            assert scope.cancelled_caught
        with trio.fail_after(PATIENCE):
            await gone.wait()


async def test_cancelled_task_can_close_in_a_shielded_scope() -> None:
    steps: list[str] = []

    async def handler(stream: trio.abc.Stream) -> None:
        assert (await receive_frame(stream))[0] == CLOSE
        # A close that doesn't wait has returned by now.
        await wait_all_tasks_blocked()
        steps.append("the peer answers")
        await send(stream, close_frame(1000))
        await wait_gone(stream)

    async with serve_raw_websocket(handler) as port:
        with trio.move_on_after(PATIENCE) as outer:
            async with opening(port) as transport:
                outer.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.move_on_after(PATIENCE, shield=True) as goodbye:
                        await transport.aclose()
                        steps.append("the goodbye is over")
        assert not goodbye.cancelled_caught
        assert outer.cancelled_caught
    assert steps == ["the peer answers", "the goodbye is over"]


@asynccontextmanager
async def serve_raw_websocket(handler: Handler) -> AsyncIterator[int]:
    async def serve(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream)
        await handler(stream)

    async with serve_raw(serve) as port:
        yield port


# Leaving


async def test_block_without_a_close_drops_the_connection() -> None:
    frames: list[tuple[int, bytes]] = []
    gone = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        try:
            frames.append(await receive_frame(stream))
        except PeerGoneError:
            gone.set()

    async with serve_raw_websocket(handler) as port:
        async with opening(port) as transport:
            pass
        with trio.fail_after(PATIENCE):
            await gone.wait()
        error = await loss(transport)
        assert "this side dropped the connection" in str(error)
        with pytest.raises(ConnectionLostError):
            await transport.send(["too late"])
        with pytest.raises(ConnectionLostError):
            await transport.ping()
        await transport.aclose()
    assert frames == []


async def test_use_after_the_block_raises() -> None:
    told: list[str] = []

    async def use(call: Callable[..., Awaitable[object]], *arguments: object) -> None:
        with pytest.raises(ConnectionLostError) as caught:
            await call(*arguments)
        told.append(str(caught.value))

    async def never_read(_: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    with trio.fail_after(PATIENCE):
        async with (
            serve_raw_websocket(never_read) as port,
            trio.open_nursery() as nursery,
            opening(port) as transport,
        ):
            receive, send_all = transport.receive, transport.send
            nursery.start_soon(use, receive)
            nursery.start_soon(use, send_all, ["x" * 1_000_000] * 20)
            await wait_all_tasks_blocked(0.05)
    assert len(told) == 2
    assert all("this side dropped the connection" in text for text in told)


async def test_socket_is_closed_if_the_peer_closed_first() -> None:
    gone = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await send(stream, close_frame(1000))
        await wait_gone(stream)
        gone.set()

    async with serve_raw_websocket(handler) as port:
        async with opening(port) as transport:
            await loss(transport)
            assert not gone.is_set()
        with trio.fail_after(PATIENCE):
            await gone.wait()


async def test_end_of_the_connection_does_not_disturb_the_block() -> None:
    async with connected(sending_then_hanging_up(b"\x00 nonsense")):
        await wait_all_tasks_blocked(0.01)
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the user's"),
        ExceptionGroup("the user's", [ValueError("one"), TypeError("two")]),
        ExceptionGroup("the user's", [ValueError("alone")]),
        BaseExceptionGroup("the user's", [KeyboardInterrupt()]),
        KeyboardInterrupt(),
        StopAsyncIteration(),
    ],
)
@pytest.mark.parametrize("handler", [echo, sending_then_hanging_up(b"")])
async def test_exception_of_the_block_is_raised_unchanged(
    error: BaseException, handler: Handler
) -> None:
    def user_code() -> None:
        raise error

    async def use(port: int) -> None:
        async with opening(port):
            await wait_all_tasks_blocked()
            user_code()

    async with serve_raw_websocket(handler) as port:
        with pytest.raises(type(error)) as caught:
            await use(port)
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None


async def test_failure_is_freed_without_the_garbage_collector() -> None:
    async def fail_to_open(port: int) -> weakref.ref[ConnectFailedError]:
        try:
            async with opening(port):
                pytest.fail("it opened")
        except ConnectFailedError as error:
            return weakref.ref(error)

    async with serve_raw(reset) as port:
        gc.collect()
        gc.disable()
        try:
            reference = await fail_to_open(port)
            await (
                trio.lowlevel.checkpoint()
            )  # Trio keeps a reference to the last value sent to this task
            assert reference() is None
        finally:
            gc.enable()


async def test_cancellation_of_the_block_is_a_bare_cancelled() -> None:
    async with serve_raw_websocket(echo) as port:
        with trio.CancelScope() as scope:
            try:
                async with opening(port) as transport:
                    scope.cancel()
                    await transport.receive()
            except trio.Cancelled:
                caught = True
                raise
        assert scope.cancelled_caught
        assert caught


# Cancelled at every checkpoint


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the k-th step of its task."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def connect_use_and_close(port: int, ssl_context: ssl.SSLContext | None) -> None:
    async with opening(port, ssl_context=ssl_context) as transport:
        assert await transport.receive() == ["hello"]
        await transport.send(["one", "two"])
        assert await take(transport, 2) == ["one", "two"]
        async with receiving_in_background(transport):
            await transport.ping()
        await transport.aclose()


@pytest.mark.parametrize("secure", [False, True])
async def test_cancelled_at_any_checkpoint_nothing_is_left(
    authority: trustme.CA, *, secure: bool
) -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        with suppress(PeerGoneError):
            await greet(stream)
        await wait_gone(stream)

    client_context = client_tls(authority) if secure else None
    server_context = server_tls(authority) if secure else None
    async with serve_raw(handler, ssl_context=server_context) as port:
        await wait_all_tasks_blocked()
        before = count_tasks()
        step, cancelled = 0, True
        while cancelled:
            step += 1
            with trio.fail_after(PATIENCE):
                with trio.CancelScope() as scope:
                    instrument = CancelAtStep(scope, step)
                    trio.lowlevel.add_instrument(instrument)
                    try:
                        await connect_use_and_close(port, client_context)
                    finally:
                        trio.lowlevel.remove_instrument(instrument)
                cancelled = scope.cancelled_caught
                # The server's handlers end only with the client's end of the connection.
                while count_tasks() > before:
                    await wait_all_tasks_blocked()
    assert step > 10
