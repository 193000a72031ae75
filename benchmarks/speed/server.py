"""A broker that costs next to nothing, so that the clients are what is measured.

    python -m benchmarks.speed.server --certificate FILE [--core N] [--round-trip SECONDS]

Blocking sockets and threads, and no library: it answers with what it has ready, checks no
signature, and keeps no state but who is subscribed. It prints its port and that for TLS, and with
``--round-trip`` two more that lead to these over a slow link; it serves until standard input ends.

What it pushes is told by the query of the URL, ``ws://127.0.0.1:PORT/ws/v1/stream?push=…``:

- ``push``: so many messages, made ready before they are asked for;
- ``channels``: to the first so many channels that were subscribed to, by turns (1);
- ``rate``: so many a second, each with the time when it was sent in it; 0 is flat out (0);
- ``records``: 1 over TLS gives each message a record of its own, as a broker does that sends one
  message at a time; 0 fills records of 16 KiB (0);
- ``parts``: in so many parts (1). Each begins when somebody asks for the status of the order
  ``go``, and takes no channel for it. Who asks for that of the order ``drop`` is hung up on.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

from benchmarks.speed import messages
from benchmarks.speed.relay import relay
from benchmarks.speed.secured import SecuredSocket

Pieces: TypeAlias = Sequence[bytes]
"""What is sent at once. Over TLS, each piece begins a record."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_STAMP: Final = 20  # digits
_BUFFER: Final = 65536

_AUTHENTICATED: Final = messages.frame(b'{"op":"auth","data":{"status":"authenticated"}}')
_BALANCES: Final = messages.frame(
    b'{"op":"balances","data":{"balances":[{"asset":"ETH","total":"10","locked":"0"},'
    b'{"asset":"USDT","total":"50000","locked":"100"}]}}'
)
_ESTIMATE: Final = messages.frame(
    b'{"op":"estimate","data":{"route":['
    b'{"from_asset":"ETH","to_asset":"USDC","amount_in":"100","amount_out":"324500.12",'
    b'"pool":"0x88e6a0c2ddd26feeb64f039a2c41296fcb3f5640","exchange":"binance"},'
    b'{"from_asset":"USDC","to_asset":"USDT","amount_in":"324500.12","amount_out":"324567.01",'
    b'"pool":"0x3416cf6c708da44db2624d63ea0aaef7113527c6","exchange":"bybit"}],'
    b'"price":"3245.6701","expectedOut":"324567.01","fee":"32.45","expiresAt":1764540000000}}'
)


@lru_cache(maxsize=4)
def _ready(orders: tuple[str, ...], count: int, *, apart: bool) -> list[Pieces]:
    blocks = messages.blocks(orders, count)
    return list(blocks) if apart else [[b"".join(block)] for block in blocks]


class Pushes:
    """What one client is pushed.

    Args:
        query: The query of its URL.
    """

    def __init__(self, query: str) -> None:
        wanted = {name: int(value) for name, value in parse_qsl(query)}
        self._count = wanted.get("push", 0)
        self._channels = wanted.get("channels", 1)
        self._rate = wanted.get("rate", 0)
        self._apart = bool(wanted.get("records", 0))
        self._parts = wanted.get("parts", 1)
        self._orders: list[str] = []
        self._sent = 0

    def subscribed(self, order: str) -> None:
        """Somebody has subscribed: get all ready once there are enough channels.

        Args:
            order: The order's id.
        """
        if len(self._orders) < self._channels:
            self._orders.append(order)
            if len(self._orders) == self._channels:
                self._prepare()

    def _prepare(self) -> None:
        if self._rate:
            self._frames = [bytearray(one) for one in messages.updates(self._orders, self._count)]
        elif self._parts == 1:
            _ready(tuple(self._orders), self._count, apart=self._apart)

    def push(self, send: Callable[[Pieces], None]) -> None:
        """Push what comes next.

        Args:
            send: Sends bytes.
        """
        if self._rate:
            self._push_in_time(send)
            return
        if self._parts == 1:
            blocks: Iterable[Pieces] = _ready(tuple(self._orders), self._count, apart=self._apart)
        else:  # Not more of it at a time than fits into memory; speed isn't what is looked at.
            part = self._count // self._parts
            blocks = list(messages.blocks(self._orders, part, self._sent, self._count))
            self._sent += part
        for block in blocks:
            send(block)

    def _push_in_time(self, send: Callable[[Pieces], None]) -> None:
        began = time.monotonic()
        for number, frame in enumerate(self._frames):
            place = frame.index(b'"0x') + len(b'"0x')
            pause = began + number / self._rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            frame[place : place + _STAMP] = b"%020d" % time.monotonic_ns()
            send([bytes(frame)])


class Server:
    """What all connections have in common.

    Attributes:
        dropped_at: When a client was hung up on last, for the next one to tell.
    """

    def __init__(self) -> None:
        self.dropped_at = 0

    def accept(self, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Serve every connection that comes, for ever.

        Args:
            listener: Where they come.
            context: For TLS.
        """
        while True:
            connection, _ = listener.accept()
            line = Line(self, connection, context)
            threading.Thread(target=line.serve, daemon=True).start()


class Line:
    """One client's connection.

    Args:
        server: Whose it is.
        connection: Its socket.
        context: For TLS.
    """

    def __init__(
        self, server: Server, connection: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        self._server = server
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._tls = SecuredSocket(connection, context) if context else None
        self._file = (
            BufferedReader(self._tls, _BUFFER)
            if self._tls
            else connection.makefile("rb", buffering=_BUFFER)
        )
        self._lock = threading.Lock()  # What is pushed and what is answered must not mix.
        self._pushes = Pushes("")

    def serve(self) -> None:
        """Serve it until either side hangs up."""
        with self._socket, self._file, suppress(OSError, EOFError):
            if self._tls:
                self._tls.do_handshake()
            self._shake_hands()
            while self._take(*self._receive()):
                pass
            self._socket.shutdown(socket.SHUT_RDWR)

    def _shake_hands(self) -> None:
        target = self._file.readline().decode().split(" ")[1]
        key = b""
        while line := self._file.readline().strip():
            if found := re.fullmatch(rb"(?i)sec-websocket-key:\s*(\S+)", line):
                key = found[1]
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455
        self._pushes = Pushes(target.partition("?")[2])
        self._send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def _send(self, data: bytes) -> None:
        self._send_pieces([data])

    def _send_pieces(self, pieces: Pieces) -> None:
        with self._lock:
            if self._tls:
                self._tls.sendall(pieces)
            else:
                self._socket.sendall(b"".join(pieces))

    def _receive(self) -> tuple[int, bytes]:
        first, size = self._exactly(2)
        size &= 0x7F
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
        mask, payload = self._exactly(4), self._exactly(size)
        key = (mask * (size // 4 + 1))[:size]
        plain = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
        return first & 0x0F, plain.to_bytes(size, "big")

    def _exactly(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _take(self, opcode: int, payload: bytes) -> bool:
        """Do what a frame asks for.

        Returns:
            Whether the line stays open.
        """
        if opcode == messages.PING:
            self._send(messages.frame(payload, messages.PONG))
        elif opcode == messages.CLOSE:
            self._send(messages.frame(payload, messages.CLOSE))
            return False
        elif opcode == messages.TEXT:
            return self._answer(json.loads(payload))
        return True

    def _answer(self, message: dict[str, Any]) -> bool:
        op = message["op"]
        if op == "auth":
            self._send(_AUTHENTICATED)
        elif op == "estimate":
            self._send(_ESTIMATE)
        elif op == "balances":
            self._send(_BALANCES)
        elif op == "order_status":
            return self._tell_status(message["data"]["id"])
        else:
            channel: str = message["ch"]
            if op == "subscribe":
                self._pushes.subscribed(channel.removeprefix("orders:"))
            data = {"status": f"{op}d"}
            self._send(_text_frame({"op": op, "ch": channel, "data": data}))
        return True

    def _tell_status(self, order: str) -> bool:
        if order == messages.DROP:
            self._server.dropped_at = time.monotonic_ns()
            return False
        data = {
            "orderId": order,
            "status": "PROCESSING",
            "filledOut": "1.5",
            "txHash": f"0x{self._server.dropped_at:064d}",
            "updatedAt": 1764540000000,
        }
        self._send(_text_frame({"op": "order_status", "data": data}))
        if order == messages.GO:
            threading.Thread(target=self._push, daemon=True).start()
        return True

    def _push(self) -> None:
        with suppress(OSError):
            self._pushes.push(self._send_pieces)


def _text_frame(message: dict[str, Any]) -> bytes:
    return messages.frame(json.dumps(message, separators=(",", ":")).encode())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A broker that costs next to nothing.")
    parser.add_argument("--certificate", type=Path, required=True, help="with its key, for TLS")
    parser.add_argument("--core", type=int, help="the only core to run on")
    parser.add_argument("--round-trip", type=float, help="seconds, of a link to a second port")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(arguments.certificate)
    server = Server()
    ports = [_listen(server.accept), _listen(server.accept, context)]
    if arguments.round_trip is not None:
        ports += [_listen(relay, port, arguments.round_trip) for port in ports]
    print(*ports, flush=True)
    sys.stdin.read()


def _listen(serve: Callable[..., None], *args: object) -> int:
    """Serve connections in a thread, and return their port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    threading.Thread(target=serve, args=[listener, *args], daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
