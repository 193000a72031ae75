"""TLS for a server with threads."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence
from io import RawIOBase

_RECEIVE_SIZE = 65536


class SecuredSocket(RawIOBase):
    """TLS over a socket, of which one thread reads while another sends.

    OpenSSL's objects can't be used by two threads at once, and a thread that waits in
    `ssl.SSLSocket.recv` can't let another send. So the bytes go through memory under a lock, and
    only the socket itself is waited for.

    Args:
        raw: The socket.
        context: The server's.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()

    def do_handshake(self) -> None:
        """Shake hands.

        Raises:
            EOFError: The client has hung up.
            OSError: It has failed.
        """
        is_done = False
        while not is_done:
            try:
                self._tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                pass
            finally:
                self._raw.sendall(self._outgoing.read())
            if not is_done and not self._receive():
                raise EOFError

    def readable(self) -> bool:
        """It is, for `io.BufferedReader`."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Wait for bytes.

        Args:
            buffer: Where they go.

        Returns:
            How many there are, 0 at the end.
        """
        while True:
            with self._lock:
                try:
                    return self._tls.read(len(buffer), buffer)  # type: ignore[return-value]
                except ssl.SSLWantReadError:
                    pass
            if not self._receive():
                return 0

    def _receive(self) -> bool:
        data = self._raw.recv(_RECEIVE_SIZE)
        with self._lock:
            self._incoming.write(data)
        return bool(data)

    def sendall(self, pieces: Sequence[bytes]) -> None:
        """Send bytes, for one thread at a time.

        Args:
            pieces: The bytes. Each piece begins a record.
        """
        with self._lock:
            for piece in pieces:
                self._tls.write(piece)
            data = self._outgoing.read()
        self._raw.sendall(data)
