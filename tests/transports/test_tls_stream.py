"""The TLS stream: records in, bytes out, whatever the socket's reads look like."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trustme
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from tests.transports.test_both import client_tls, server_tls
from trio_broker.transports.tls_stream import TLSStream

PATIENCE = 10.0
MESSAGES = [b"%03d" % number + b"x" * (number * 37 % 300) for number in range(64)]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@attrs.define
class Peer:
    """The server's end: TLS in memory, over a stream that a test can cut where it wants."""

    stream: trio.StapledStream[MemorySendStream, MemoryReceiveStream]
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    async def shake_hands(self, *, and_send: bytes = b"") -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.stream.send_all(self.outgoing.read())
                self.incoming.write(await self.stream.receive_some())
            else:
                break
        if and_send:
            self.tls.write(and_send)
        await self.stream.send_all(self.outgoing.read())

    def encrypted(self, *messages: bytes) -> bytes:
        """Each message in a record of its own."""
        for message in messages:
            self.tls.write(message)
        return self.outgoing.read()

    async def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                data += self.tls.read(size)
            except ssl.SSLWantReadError:
                self.incoming.write(await self.stream.receive_some())
        return data


@asynccontextmanager
async def connected(
    authority: trustme.CA, *, context: ssl.SSLContext | None = None, and_send: bytes = b""
) -> AsyncIterator[tuple[TLSStream, Peer]]:
    near, far = memory_stream_pair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server_tls(authority).wrap_bio(incoming, outgoing, server_side=True)
    peer = Peer(far, tls, incoming, outgoing)
    stream = TLSStream(near, context or client_tls(authority), "127.0.0.1")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.do_handshake)
            await peer.shake_hands(and_send=and_send)
        yield stream, peer


async def test_all_records_that_have_arrived_come_in_one_read(authority: trustme.CA) -> None:
    async with connected(authority) as (stream, peer):
        await peer.stream.send_all(peer.encrypted(*MESSAGES))
        assert await stream.receive_some() == b"".join(MESSAGES)


@pytest.mark.parametrize("seed", range(20))
async def test_bytes_are_the_same_however_they_are_cut(authority: trustme.CA, seed: int) -> None:
    chance = random.Random(seed)
    messages = [chance.randbytes(chance.choice((1, 200, 20_000))) for _ in range(20)]
    expected = b"".join(messages)
    async with connected(authority) as (stream, peer):
        sent = peer.encrypted(*messages)

        async def send_in_pieces() -> None:
            rest = sent
            while rest:
                size = chance.choice((1, 5, 100, 3_000, 40_000))
                await peer.stream.send_all(rest[:size])
                rest = rest[size:]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_pieces)
            received = b""
            while len(received) < len(expected):
                limit = chance.choice((None, 1, 100, 5_000, 50_000))
                data = await stream.receive_some(limit)
                assert 0 < len(data) <= (limit or len(expected))
                received += data
        assert received == expected


async def test_bytes_that_came_with_the_handshake_are_returned(authority: trustme.CA) -> None:
    async with connected(authority, and_send=b"early") as (stream, _):
        assert await stream.receive_some() == b"early"


@pytest.mark.parametrize("max_bytes", [1, None])
async def test_a_read_that_doesnt_wait_is_a_checkpoint(
    authority: trustme.CA, max_bytes: int | None
) -> None:
    async with connected(authority, and_send=b"early") as (stream, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive_some(max_bytes)
        assert scope.cancelled_caught
        assert await stream.receive_some() == b"early"


async def test_a_cancelled_read_loses_nothing(authority: trustme.CA) -> None:
    async with connected(authority) as (stream, peer):
        data = peer.encrypted(b"whole")
        await peer.stream.send_all(data[:10])
        with trio.move_on_after(0.01):
            await stream.receive_some()
        await peer.stream.send_all(data[10:])
        assert await stream.receive_some() == b"whole"


@pytest.mark.parametrize("is_polite", [True, False])
async def test_end_comes_after_what_was_received_and_stays(
    authority: trustme.CA, is_polite: bool
) -> None:
    async with connected(authority) as (stream, peer):
        data = peer.encrypted(b"last")
        if is_polite:
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.unwrap()
            data += peer.outgoing.read()
        await peer.stream.send_all(data)
        await peer.stream.send_stream.aclose()
        assert await stream.receive_some() == b"last"
        assert [await stream.receive_some() for _ in range(3)] == [b""] * 3


async def test_invalid_record_breaks_the_stream_after_the_valid_ones(
    authority: trustme.CA,
) -> None:
    async with connected(authority) as (stream, peer):
        data = bytearray(peer.encrypted(b"valid", b"damaged"))
        data[-1] ^= 1
        await peer.stream.send_all(bytes(data))
        assert await stream.receive_some() == b"valid"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert isinstance(caught.value.__cause__, ssl.SSLError)
            assert "decryption failed or bad record mac" in str(caught.value.__cause__).lower()


async def test_both_ends_send_at_once(authority: trustme.CA) -> None:
    async with connected(authority) as (stream, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.send_all, peer.encrypted(b"from the peer"))
            nursery.start_soon(stream.send_all, b"a" * 100_000)
            nursery.start_soon(stream.send_all, b"b" * 100_000)
            assert await stream.receive_some() == b"from the peer"
        received = await peer.receive(200_000)
        assert received in (b"a" * 100_000 + b"b" * 100_000, b"b" * 100_000 + b"a" * 100_000)


async def test_sending_nothing_is_no_end(authority: trustme.CA) -> None:
    async with connected(authority) as (stream, peer):
        await stream.send_all(b"")
        await stream.send_all(b"something")
        assert await peer.receive(9) == b"something"


class Answering(ssl.SSLObject):
    """Writes when it has read, as OpenSSL does when the peer asks for something."""

    def read(self, *args: Any) -> Any:
        data = super().read(*args)
        self.write(b"answer")
        return data


@pytest.fixture
def answering(authority: trustme.CA) -> ssl.SSLContext:
    context = client_tls(authority)
    context.sslobject_class = Answering
    return context


async def test_what_openssl_answers_is_sent_by_the_next_read(
    authority: trustme.CA, answering: ssl.SSLContext
) -> None:
    async with connected(authority, context=answering) as (stream, peer):
        await peer.stream.send_all(peer.encrypted(b"question"))
        assert await stream.receive_some() == b"question"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            assert await peer.receive(6) == b"answer"
            nursery.cancel_scope.cancel()


async def test_after_a_cancelled_send_nothing_is_sent_but_all_is_read(
    authority: trustme.CA, answering: ssl.SSLContext
) -> None:
    async with connected(authority, context=answering) as (stream, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(b"half")
        with pytest.raises(trio.BrokenResourceError, match="cut short"):
            await stream.send_all(b"more")
        for message in (b"first", b"second"):  # Each is answered, in vain.
            await peer.stream.send_all(peer.encrypted(message))
            assert await stream.receive_some() == message


class Unwilling(ssl.SSLObject):
    """Can't write now, as in a renegotiation."""

    def write(self, *_: Any) -> int:
        raise ssl.SSLWantReadError


async def test_write_that_openssl_refuses_breaks_the_stream(authority: trustme.CA) -> None:
    context = client_tls(authority)
    context.sslobject_class = Unwilling
    async with connected(authority, context=context) as (stream, _):
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"something")


async def test_waiting_and_closing_reach_the_stream_below(authority: trustme.CA) -> None:
    async with connected(authority) as (stream, peer):
        await stream.wait_send_all_might_not_block()
        await stream.aclose()
        assert await peer.stream.receive_some() == b""
