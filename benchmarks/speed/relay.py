"""A slow link: what goes in comes out later, in both directions.

Both directions take half of the round trip. The kernel opens a TCP connection to this relay at
once, where a real link would take one round trip for it: so the first bytes wait for so long.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from queue import SimpleQueue


def relay(listener: socket.socket, port: int, round_trip: float) -> None:
    """Lead every connection to a port of this machine, for ever.

    Args:
        listener: Where the connections come.
        port: Where they lead.
        round_trip: Seconds there and back.
    """
    while True:
        near, _ = listener.accept()
        threading.Thread(target=_link, args=[near, port, round_trip], daemon=True).start()


def _link(near: socket.socket, port: int, round_trip: float) -> None:
    time.sleep(round_trip)
    far = socket.create_connection(("127.0.0.1", port))
    for source, target in ((near, far), (far, near)):
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        on_its_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        for run, args in (
            (_take_in, [source, on_its_way, round_trip / 2]),
            (_let_out, [target, on_its_way]),
        ):
            threading.Thread(target=run, args=args, daemon=True).start()


def _take_in(
    source: socket.socket, on_its_way: SimpleQueue[tuple[float, bytes]], delay: float
) -> None:
    data = b"begin"
    while data:
        try:
            data = source.recv(65536)
        except OSError:
            data = b""  # A reset is passed on as an end.
        on_its_way.put((time.monotonic() + delay, data))


def _let_out(target: socket.socket, on_its_way: SimpleQueue[tuple[float, bytes]]) -> None:
    with suppress(OSError):
        while True:
            due, data = on_its_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                break
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
