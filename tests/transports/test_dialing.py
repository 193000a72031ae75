"""Connecting to the broker: names, addresses and timeouts."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, get_args

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.transports.raw_server import (
    accept_websocket,
    frame,
    serve_raw,
    switching_protocols,
    wait_gone,
)
from tests.transports.test_both import PATIENCE, client_tls, opening, server_tls
from trio_broker.exceptions import ConnectFailedError
from trio_broker.settings import TransportName
from trio_broker.transports import dialing

Target = tuple[int, int, int, str, Any]


@pytest.fixture(autouse=True, params=get_args(TransportName))
def each_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tests.transports.test_both"], "library", request.param)


async def greet(stream: trio.abc.Stream) -> None:
    await accept_websocket(stream, and_send=frame("hello"))
    await wait_gone(stream)


async def failure(**options: Any) -> ConnectFailedError:
    with trio.fail_after(PATIENCE), pytest.raises(ConnectFailedError) as caught:
        async with opening(**options):
            pytest.fail("it opened")
    return caught.value


def tcp(address: str, port: int) -> Target:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, 0, "", (address, port)


class Addresses(trio.abc.HostnameResolver):
    """A resolver with the same result for every name."""

    def __init__(self, *targets: Target) -> None:
        self.targets = list(targets)

    async def getaddrinfo(  # type: ignore[override]  # its arguments don't matter
        self, *_: object
    ) -> list[Target]:
        await trio.lowlevel.checkpoint()
        return self.targets

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise AssertionError("nobody asks what an address is called")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that ignores connection attempts, because its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port: int = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        yield port
        for one in waiting:
            one.close()


# --- Names -----------------------------------------------------------------------------------


async def test_names_resolve_while_the_program_uses_all_threads() -> None:
    limiter = trio.to_thread.current_default_thread_limiter()
    for _ in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(object())
    with trio.fail_after(PATIENCE):
        async with serve_raw(greet) as port, opening(port, host="localhost") as transport:
            assert await transport.receive() == ["hello"]


async def test_error_shows_the_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def look_up(host: str, *_: object, **options: object) -> list[Target]:
        threads.append(threading.current_thread())
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    error = await failure(port=443, host="broker.example", secure=False)
    assert "'broker.example' can't be resolved (Name or service not known)" in str(error)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example", "."])
async def test_invalid_host_name_is_refused(host: str) -> None:
    error = await failure(port=1, host=host)
    assert f"{host!r} isn't a valid host name" in str(error) or "can't be resolved" in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_address_is_not_looked_up(host: str) -> None:
    trio.socket.set_custom_hostname_resolver(Addresses())
    error = await failure(port=closed_port(), host=host)
    assert "refused" in str(error) or "available" in str(error) or "unreachable" in str(error)


async def test_custom_resolver_is_used_and_kept() -> None:
    async with serve_raw(greet) as port:
        resolver = Addresses(tcp("127.0.0.1", port))
        trio.socket.set_custom_hostname_resolver(resolver)
        async with opening(1, host="broker.example") as transport:
            assert await transport.receive() == ["hello"]
        assert trio.socket.set_custom_hostname_resolver(None) is resolver


@pytest.mark.parametrize("error", [OSError(24, ""), RuntimeError("no thread"), KeyError("x")])
async def test_failed_lookup_is_a_temporary_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object, **options: object) -> list[Target]:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    failed = await failure(port=443, host="broker.example")
    assert failed.status is None
    assert "Too many open files" in str(failed) or repr(error) in str(failed)


# --- Addresses -------------------------------------------------------------------------------


async def test_next_address_is_tried_when_one_does_not_answer(autojump_clock: MockClock) -> None:
    with silent_port() as silent:
        async with serve_raw(greet) as port:
            trio.socket.set_custom_hostname_resolver(
                Addresses(tcp("127.0.0.1", silent), tcp("127.0.0.1", port))
            )
            began = trio.current_time()
            async with opening(1, host="broker.example") as transport:
                assert await transport.receive() == ["hello"]
                assert 0.25 <= trio.current_time() - began < 1


async def test_next_address_is_tried_at_once_when_one_refuses(mock_clock: MockClock) -> None:
    async with serve_raw(greet) as port:
        refused = [tcp("127.0.0.1", closed_port()) for _ in range(3)]
        trio.socket.set_custom_hostname_resolver(Addresses(*refused, tcp("127.0.0.1", port)))
        async with opening(1, host="broker.example") as transport:
            assert await transport.receive() == ["hello"]
    assert trio.current_time() == 0


async def test_second_attempt_uses_another_address_family() -> None:
    tried: list[int] = []
    name = "trio._socket._SocketType.connect"
    connect = trio._socket._SocketType.connect
    async with serve_raw(greet) as port:
        targets = [tcp("127.0.0.1", closed_port()), tcp("127.0.0.1", port), tcp("::1", 9)]
        trio.socket.set_custom_hostname_resolver(Addresses(*targets))
        with pytest.MonkeyPatch.context() as patch:

            async def note(self: Any, address: Any) -> None:
                tried.append(self.family)
                await connect(self, address)

            patch.setattr(name, note)
            async with opening(1, host="broker.example"):
                pass
    assert tried[:2] == [socket.AF_INET, socket.AF_INET6]


async def test_error_has_the_reasons_of_all_addresses() -> None:
    refused = tcp("127.0.0.1", closed_port())
    bad = (9999, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))
    trio.socket.set_custom_hostname_resolver(Addresses(refused, bad, refused))
    error = await failure(port=1, host="broker.example")
    assert "broker.example:1: Connection refused; Address family not supported" in str(error)


async def test_name_without_addresses_is_a_failed_connection() -> None:
    trio.socket.set_custom_hostname_resolver(Addresses())
    assert "its name has no address" in str(await failure(port=1, host="broker.example"))


async def test_second_of_two_simultaneous_connections_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, both = trio.Event(), trio.Event()
    connected: list[trio.SocketStream] = []
    dial = dialing._dial

    async def dial_together(target: Target) -> trio.SocketStream:
        connected.append(await dial(target))
        if len(connected) == 2:
            both.set()
        with trio.CancelScope(shield=True):
            await both.wait()
        return connected.pop()

    monkeypatch.setattr(dialing, "_STAGGER", 0)
    monkeypatch.setattr(dialing, "_dial", dial_together)

    async def handler(stream: trio.abc.Stream) -> None:
        try:
            await greet(stream)
        finally:
            gone.set()

    async with serve_raw(handler) as port, serve_raw(handler) as other:
        trio.socket.set_custom_hostname_resolver(
            Addresses(tcp("127.0.0.1", port), tcp("127.0.0.1", other))
        )
        with trio.fail_after(PATIENCE):
            async with opening(1, host="broker.example") as transport:
                assert await transport.receive() == ["hello"]
                await gone.wait()


# --- A blocked event loop --------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Peer:
    """A server in a thread, which answers while the event loop is blocked."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.asked, self.proceed, self.answered = (threading.Event() for _ in range(3))
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def block_until_answered(self) -> None:
        assert self.asked.wait(PATIENCE)
        self.proceed.set()
        assert self.answered.wait(PATIENCE)

    def close(self) -> None:
        self.proceed.set()
        self._thread.join(PATIENCE)
        self.listener.close()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE)
        with connection:
            if self._context is None:
                self._talk(connection.recv, connection.sendall, hold=True)
            else:
                self._talk_tls(connection)

    def _talk(
        self, receive: Callable[[int], bytes], send: Callable[[bytes], object], *, hold: bool
    ) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += receive(4096)
        if hold:
            self._hold()
        send(switching_protocols(request) + frame("hello"))
        self.answered.set()
        receive(4096)

    def _talk_tls(self, connection: socket.socket) -> None:
        assert self._context is not None
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(connection.recv(65536))
        self._hold()
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                self.answered.set()
                incoming.write(connection.recv(65536))

        def receive(size: int) -> bytes:
            while True:
                try:
                    return tls.read(size)
                except ssl.SSLWantReadError:
                    data = connection.recv(65536)
                    if not data:
                        return b""
                    incoming.write(data)

        def send(data: bytes) -> None:
            tls.write(data)
            connection.sendall(outgoing.read())

        self._talk(receive, send, hold=False)

    def _hold(self) -> None:
        self.asked.set()
        assert self.proceed.wait(PATIENCE)


@asynccontextmanager
async def peer(context: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    one = Peer(context)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.parametrize("parts_before", [0, 5, 9])
@pytest.mark.parametrize("secure", [False, True])
async def test_response_received_while_the_loop_was_blocked_counts(
    authority: trustme.CA, mock_clock: MockClock, parts_before: int, *, secure: bool
) -> None:
    timeout = 10.0
    server = server_tls(authority) if secure else None
    async with peer(server) as one, trio.open_nursery() as nursery:

        async def use() -> None:
            context = client_tls(authority) if secure else None
            async with opening(one.port, ssl_context=context, connect_timeout=timeout) as it:
                assert await it.receive() == ["hello"]

        nursery.start_soon(use)
        await wait_all_tasks_blocked(0.01)
        for _ in range(parts_before):
            mock_clock.jump(timeout / 10)
            await wait_all_tasks_blocked()
        one.block_until_answered()
        # TLS needs one more round trip, which must not exceed the timeout.
        mock_clock.jump(3600 if parts_before < 9 or not secure else timeout / 20)


async def test_name_resolved_while_the_loop_was_blocked_counts(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, proceed, answered = (threading.Event() for _ in range(3))
    async with serve_raw(greet) as port, trio.open_nursery() as nursery:

        def look_up(host: str, *_: object, **options: object) -> list[Target]:
            asked.set()
            assert proceed.wait(PATIENCE)
            answered.set()
            return [tcp("127.0.0.1", port)]

        async def use() -> None:
            async with opening(1, host="broker.example", connect_timeout=1) as transport:
                assert await transport.receive() == ["hello"]

        with monkeypatch.context() as patch:
            patch.setattr("trio_broker.transports.dialing.socket.getaddrinfo", look_up)
            nursery.start_soon(use)
            await wait_all_tasks_blocked(0.01)
            assert asked.wait(PATIENCE)
            proceed.set()
            assert answered.wait(PATIENCE)
        mock_clock.jump(3600)


@pytest.mark.parametrize("secure", [False, True])
async def test_silent_peer_has_the_whole_timeout_and_no_more(
    autojump_clock: MockClock, *, secure: bool, authority: trustme.CA
) -> None:
    async with serve_raw(wait_gone) as port:
        began = trio.current_time()
        context = client_tls(authority) if secure else None
        await failure(port=port, ssl_context=context, connect_timeout=7)
        assert trio.current_time() - began == pytest.approx(7)


async def test_phases_share_one_timeout(autojump_clock: MockClock, authority: trustme.CA) -> None:
    async def slow(stream: trio.abc.Stream) -> None:
        await trio.sleep(6)
        await wait_gone(stream)  # TLS begins here

    async with serve_raw(slow, ssl_context=server_tls(authority)) as port:
        began = trio.current_time()
        error = await failure(port=port, ssl_context=client_tls(authority), connect_timeout=7)
        assert trio.current_time() - began == pytest.approx(7)
        assert "the answer to the WebSocket handshake" in str(error)
