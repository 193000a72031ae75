"""TLS over a TCP stream, for many small records.

A broker that sends one message at a time gives each a TLS record of its own. Each read of Trio's
`SSLStream` returns one record and runs the scheduler once, which costs several times what the
record itself does. A read of this stream returns all records that have arrived.

OpenSSL works in memory here: what the socket receives is put into `_incoming`, and what is to be
sent is taken out of `_outgoing`. The peer may hang up without the end of TLS, as many do, and
closing doesn't send one: a WebSocket has an end of its own.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Final

import trio

# Bytes of a read of the socket. They may hold 700 records, which take a millisecond.
_RECEIVE_SIZE: Final = 16 * 1024


class TLSStream(trio.abc.Stream):
    """The client's end of TLS over another stream.

    One task may receive while others send. A peer that renegotiates (TLS 1.2) while something is
    sent breaks the stream.
    """

    def __init__(self, tcp: trio.abc.Stream, context: ssl.SSLContext, host: str) -> None:
        self._tcp = tcp
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=host.encode("ascii")
        )
        # Whether nothing can be decrypted before more is received.
        self._is_drained = False
        self._failure: ssl.SSLError | None = None
        self._sending = trio.Lock()
        self._is_half_sent = False

    async def do_handshake(self) -> None:
        """Shake hands, and check the certificate.

        Raises:
            ssl.SSLError: It has failed, or the peer hung up.
            trio.BrokenResourceError: The connection is lost.
        """
        is_done = False
        while not is_done:
            try:
                self._tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                pass
            await self._flush()
            if not is_done:
                await self._fill()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes, and return all that have arrived up to so many; b"" is the end.

        Raises:
            trio.BrokenResourceError: The connection is lost, or its bytes aren't valid TLS.
        """
        size = max_bytes or _RECEIVE_SIZE
        data = b""
        if not self._is_drained:
            await trio.lowlevel.checkpoint()
            data = self._decrypted(size)
        while not data and self._is_drained:
            if self._outgoing.pending:  # OpenSSL answers the peer, for example with a new key.
                with suppress(trio.BrokenResourceError):  # What has arrived can still be read.
                    await self._flush()
            await self._fill()
            data = self._decrypted(size)
        if not data and self._failure is not None:
            raise trio.BrokenResourceError from self._failure
        return data

    async def _fill(self) -> None:
        data = await self._tcp.receive_some(_RECEIVE_SIZE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypted(self, size: int) -> bytes:
        """What has arrived, up to a size; nothing at the end, or if no record is complete."""
        records: list[bytes] = []
        self._is_drained = False
        while size > 0 and not self._is_drained:
            try:
                record = self._tls.read(size)
            except ssl.SSLWantReadError:
                self._is_drained = True
                break
            except ssl.SSLEOFError:
                break
            except ssl.SSLError as error:
                self._failure = self._failure or error
                break
            if not record:
                break
            records.append(record)
            size -= len(record)
            self._is_drained = not (self._incoming.pending or self._tls.pending())
        return b"".join(records)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. If this is cancelled, nothing more can be sent.

        Raises:
            trio.BrokenResourceError: The connection is lost.
        """
        if data:  # OpenSSL takes an empty text for the end.
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
        await self._flush()

    async def _flush(self) -> None:
        """Send what OpenSSL has written. It is taken under the lock, so its order is kept."""
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            if self._is_half_sent:  # What follows would be taken for the rest of a record.
                raise trio.BrokenResourceError("an earlier write was cut short")
            self._is_half_sent = True
            await self._tcp.send_all(self._outgoing.read())
            self._is_half_sent = False
        finally:
            self._sending.release()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the stream below may take more."""
        await self._tcp.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream below."""
        await self._tcp.aclose()
