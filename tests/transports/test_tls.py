"""TLS: one context for each client, made outside of the event loop, with certificates."""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock

from tests.scripted import API_KEY, AUTHENTICATED, PATIENCE, SECRET_KEY, ScriptedConnection
from tests.transports.raw_server import accept_websocket, serve_raw
from tests.transports.test_both import greet, opening, server_tls
from trio_broker import BrokerWSClient, CertificateError, ConnectFailedError, ReconnectPolicy
from trio_broker.events import Connected
from trio_broker.transports import threads
from trio_broker.transports.tls import ClientContext

pytestmark = pytest.mark.usefixtures("each_transport")

QUICK = ReconnectPolicy(initial_delay=0.01, max_delay=0.01, max_attempts=None)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the system's CA certificates by a file, without a directory."""
    path = tmp_path / "authorities.pem"
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "certs"))
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.Thread]]:
    """The thread of each context that is made."""
    makers: list[threading.Thread] = []
    make = ssl.create_default_context

    def note(*arguments: Any, **options: Any) -> ssl.SSLContext:
        makers.append(threading.current_thread())
        return make(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ssl, "create_default_context", note)
        yield makers


class TLSBroker:
    """A broker over TLS that authenticates every client."""

    def __init__(self) -> None:
        self.url = ""
        self.lines: list[ScriptedConnection] = []

    def client(self, **options: Any) -> BrokerWSClient:
        return BrokerWSClient(API_KEY, SECRET_KEY, self.url, **{"reconnect": QUICK, **options})

    def hang_up(self) -> None:
        for line in self.lines:
            line.hang_up()


@asynccontextmanager
async def tls_broker(authority: trustme.CA) -> AsyncIterator[TLSBroker]:
    broker = TLSBroker()

    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream)
        line = ScriptedConnection(stream, AUTHENTICATED, pongs=True)
        broker.lines.append(line)
        await line.serve()

    with trio.fail_after(PATIENCE):
        async with serve_raw(handler, ssl_context=server_tls(authority)) as port:
            broker.url = f"wss://127.0.0.1:{port}/ws/v1/stream"
            yield broker


async def reconnected(client: BrokerWSClient, broker: TLSBroker) -> None:
    """Close the connection, and wait until the client has reconnected."""
    with client.events() as events:
        broker.hang_up()
        async for event in events:
            if isinstance(event, Connected):
                return
    pytest.fail("it gave up")


async def test_client_makes_one_context_for_all_its_connections(
    authority: trustme.CA, bundle: Path, made: list[threading.Thread]
) -> None:
    async with tls_broker(authority) as broker:
        made.clear()
        async with broker.client() as client:
            for _ in range(3):
                await reconnected(client, broker)
    assert len(made) == 1


async def test_ten_clients_make_no_context_on_the_event_loop(
    authority: trustme.CA, bundle: Path, made: list[threading.Thread]
) -> None:
    async with tls_broker(authority) as broker:
        made.clear()
        async with trio.open_nursery() as nursery:
            clients = [broker.client() for _ in range(10)]
            for client in clients:
                await client.connect(nursery)
            assert len(made) == 10
            async with trio.open_nursery() as reconnecting:
                for client in clients:
                    reconnecting.start_soon(reconnected, client, broker)
            for client in clients:
                await client.aclose()
    assert len(made) == 10
    assert threading.current_thread() not in made


async def test_context_of_the_user_is_used_unchanged(
    authority: trustme.CA, made: list[threading.Thread]
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with tls_broker(authority) as broker:
        made.clear()
        async with broker.client(ssl_context=context) as client:
            await reconnected(client, broker)
    assert made == []


async def test_missing_certificates_do_not_prevent_a_reconnection(
    authority: trustme.CA, bundle: Path
) -> None:
    async with tls_broker(authority) as broker, broker.client() as client:
        os.rename(bundle, bundle.with_suffix(".away"))
        await reconnected(client, broker)
        await reconnected(client, broker)


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff\0", "directory"])
async def test_error_without_certificates_names_the_searched_places(
    authority: trustme.CA, bundle: Path, content: bytes | str | None
) -> None:
    os.unlink(bundle)
    if content == "directory":
        os.mkdir(bundle)
    elif isinstance(content, bytes):
        await trio.Path(bundle).write_bytes(content)
    async with tls_broker(authority) as broker:
        with pytest.raises(CertificateError) as caught:
            async with broker.client():
                pytest.fail("it connected")
    assert str(bundle) in str(caught.value)
    assert str(bundle.with_name("certs")) in str(caught.value)
    assert "SSL_CERT_FILE" in str(caught.value)


async def test_directory_of_certificates_is_read_at_once(
    authority: trustme.CA, bundle: Path
) -> None:
    directory = trio.Path(bundle.with_name("certs"))
    await directory.mkdir()
    await trio.Path(bundle).rename(directory / "0123abcd.0")
    await (directory / "0123abcd.1").symlink_to(directory / "nowhere")
    await (directory / "0123abcd.2").mkdir()
    await (directory / "0123abcd.3").write_bytes(b"\xff\xfe")
    await (directory / "0123abcd.4").write_text("no certificate")
    await (directory / "README").write_text("no certificate")
    async with tls_broker(authority) as broker, broker.client() as client:
        await directory.rename(directory.with_name("away"))
        await reconnected(client, broker)


async def test_several_directories_of_certificates_are_read(
    authority: trustme.CA, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = bundle.with_name("second")
    os.mkdir(second)
    os.rename(bundle, second / "0123abcd.0")
    monkeypatch.setenv("SSL_CERT_DIR", f"{bundle.with_name('certs')}{os.pathsep}{second}")
    async with tls_broker(authority) as broker, broker.client() as client:
        await reconnected(client, broker)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO])
async def test_unreadable_certificates_may_be_read_later(
    authority: trustme.CA, bundle: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreadable(ssl.SSLContext):
        def load_verify_locations(self, *_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

    def make() -> ssl.SSLContext:
        monkeypatch.undo()
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        return Unreadable(ssl.PROTOCOL_TLS_CLIENT)

    async with tls_broker(authority) as broker:
        monkeypatch.setattr(ssl, "create_default_context", make)
        client = broker.client()
        with pytest.raises(ConnectFailedError) as caught:
            async with client:
                pytest.fail("it connected")
        assert not isinstance(caught.value, CertificateError)
        assert os.strerror(number) in str(caught.value)
        async with broker.client():
            pass


async def test_certificates_are_read_again_after_one_was_not_trusted(
    authority: trustme.CA, bundle: Path
) -> None:
    """A client may outlive the certificates that the system had when it was made."""
    other, tls = trustme.CA(), ClientContext()

    async def connect(port: int) -> None:
        async with opening(port, ssl_context=tls):
            pass

    async with (
        serve_raw(greet, ssl_context=server_tls(authority)) as port,
        serve_raw(greet, ssl_context=server_tls(other)) as other_port,
    ):
        await connect(port)
        with pytest.raises(CertificateError):
            await connect(other_port)
        os.unlink(bundle)
        await connect(port)  # The old ones are better than none.
        other.cert_pem.write_to_path(bundle)
        await connect(other_port)


@contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Make a file block each thread that opens it, until the block ends."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    try:
        yield
    finally:
        # Opening it for writing unblocks all threads that wait for it.
        other_end = os.open(path, os.O_RDWR)
        path.unlink()
        os.close(other_end)


async def failure_within(seconds: float, tls: ClientContext | None = None) -> ConnectFailedError:
    """Return the failure of an attempt, which must use up its timeout."""
    began = trio.current_time()
    with trio.fail_after(3600), pytest.raises(ConnectFailedError) as caught:
        async with opening(1, secure=True, ssl_context=tls, connect_timeout=seconds):
            pytest.fail("it opened")
    assert trio.current_time() - began == pytest.approx(seconds)
    return caught.value


@pytest.mark.parametrize("seconds", [0.5, 10, 600])
async def test_hanging_certificate_file_meets_the_deadline(
    bundle: Path, autojump_clock: MockClock, seconds: float
) -> None:
    with hanging(bundle):
        error = await failure_within(seconds)
    assert f"not done within {seconds:g} s, and still reading the CA certificates" in str(error)
    assert not isinstance(error, CertificateError)


async def test_hanging_certificate_directory_meets_the_deadline(
    bundle: Path, autojump_clock: MockClock
) -> None:
    os.unlink(bundle)
    directory = bundle.with_name("certs")
    os.mkdir(directory)
    with hanging(directory / "0123abcd.0"):
        assert "reading the CA certificates" in str(await failure_within(5))


async def test_cancelled_attempt_does_not_wait_for_certificates(bundle: Path) -> None:
    with trio.fail_after(PATIENCE), hanging(bundle):
        with trio.move_on_after(0) as scope:
            async with opening(1, secure=True):
                pytest.fail("it opened")
        assert scope.cancelled_caught


async def test_old_context_is_used_after_reading_hung(
    authority: trustme.CA, bundle: Path, mock_clock: MockClock
) -> None:
    tls = ClientContext()
    async with serve_raw(greet, ssl_context=server_tls(authority)) as port:
        async with opening(port, ssl_context=tls):
            pass
        tls.distrusted()
        with hanging(bundle):
            mock_clock.autojump_threshold = 0
            await failure_within(5, tls)
            mock_clock.autojump_threshold = math.inf
            async with opening(port, ssl_context=tls):
                pass


async def test_certificates_are_read_while_lookups_hang(
    authority: trustme.CA, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proceed, asked = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def look_up(*_: object, **__: object) -> list[Any]:
        token.run_sync_soon(asked.set)
        assert proceed.wait(PATIENCE)
        return []

    async def abandon_a_lookup() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def resolve() -> None:
                    async with opening(1, host="broker.example"):
                        pytest.fail("it opened")

                nursery.start_soon(resolve)
                await asked.wait()
                scope.cancel()

    monkeypatch.setattr(threads, "_MAX_THREADS", 1)
    async with tls_broker(authority) as broker:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", look_up)
            await abandon_a_lookup()
        try:
            async with broker.client() as client:
                await reconnected(client, broker)
        finally:
            proceed.set()


CHILD = """
import os, resource, sys, trio
from trio_broker import BrokerWSClient, Disconnected, ReconnectPolicy, Connected

def limit(count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))

async def main(url, left):
    policy = ReconnectPolicy(initial_delay=0.01, max_delay=0.01, max_attempts=None)
    before = [number for number in range(1000) if os.path.exists(f"/proc/self/fd/{number}")]
    async with BrokerWSClient("key", "secret", url, reconnect=policy) as client:
        with client.events() as events:
            used = [number for number in range(1000) if os.path.exists(f"/proc/self/fd/{number}")]
            mine = [number for number in used if number not in before]
            limit(max(mine) + left)
            print("connected", flush=True)
            async for event in events:
                if isinstance(event, Disconnected) and "Too many open files" in str(event.error):
                    limit(most)
                    print("none left", flush=True)
                if isinstance(event, Connected):
                    print("back", flush=True)
                    return

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
trio.run(main, sys.argv[1], int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("left", "expected"), [(0, "connected none left back"), (1, "connected back")]
)
async def test_client_reconnects_after_running_out_of_descriptors(
    authority: trustme.CA, bundle: Path, left: int, expected: str
) -> None:
    """With one descriptor left, a socket can be opened, but no certificate file."""
    async with tls_broker(authority) as broker, trio.open_nursery() as nursery:
        command = [sys.executable, "-c", CHILD, broker.url, str(left)]
        # Coverage has to open files too.
        env = {name: text for name, text in os.environ.items() if not name.startswith("COV")}
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, env=env)
        assert process.stdout is not None
        said = b""
        async for chunk in process.stdout:
            said += chunk
            if said == b"connected\n":
                nursery.start_soon(hang_up_soon, broker)
        await process.wait()
    assert said.decode().split() == expected.split()


async def hang_up_soon(broker: TLSBroker) -> None:
    await trio.lowlevel.checkpoint()
    broker.hang_up()
