"""What goes over the wire: the same messages for every peer, and their frames.

An order's update has a fixed size, and room in its ``txHash`` for the time when it was sent. Its
fill grows, because a state with a smaller fill than the last one isn't delivered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

TEXT: Final = 0x1
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

GO: Final = "go"
"""The order whose status is asked for when the pushes are to begin."""
DROP: Final = "drop"
"""The order whose status is asked for when the server is to hang up."""

LAST: Final = "FILLED"
"""The status in the last message to a channel; it is ``PROCESSING`` before."""

_BLOCK: Final = 1_000  # frames that are sent at once
_FIRST_TIME: Final = 1_732_526_402_000


def order_name(number: int) -> str:
    """The id of an order, always of the same length.

    Args:
        number: Which one.
    """
    return f"ord_{number:07d}"


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A frame as a server sends it.

    Args:
        payload: What is in it, less than 64 KiB.
        opcode: What it is.
    """
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + payload


def client_frame(text: str) -> bytes:
    """A text frame as a client sends it, with a mask of zeros.

    Args:
        text: The text.
    """
    plain = frame(text.encode())
    head = len(plain) - len(text)
    return bytes([plain[0], plain[1] | 0x80]) + plain[2:head] + bytes(4) + plain[head:]


def update(order: str, number: int, status: str = "PROCESSING") -> bytes:
    """The frame of an order's update.

    Args:
        order: The order's id.
        number: Which update it is: later ones have later times.
        status: The order's status.
    """
    return frame(
        f'{{"ch":"orders:{order}","data":{{"orderId":"{order}","status":"{status}",'
        f'"filledOut":"1000.{number:08d}","txHash":"0x{number:064d}",'
        f'"updatedAt":{_FIRST_TIME + number}}}}}'.encode()
    )


def updates(orders: Sequence[str], count: int, first: int = 0, total: int = 0) -> Iterator[bytes]:
    """The frames of updates to orders by turns, the last one to each of them in its last status.

    Args:
        orders: The orders' ids.
        count: How many updates.
        first: The number of the first one.
        total: How many there are with those of later calls.
    """
    last = max(total, first + count) - len(orders)
    for number in range(first, first + count):
        status = LAST if number >= last else "PROCESSING"
        yield update(orders[number % len(orders)], number, status)


def blocks(
    orders: Sequence[str], count: int, first: int = 0, total: int = 0
) -> Iterator[list[bytes]]:
    """The same, many frames to a list.

    Args:
        orders: The orders' ids.
        count: How many updates.
        first: The number of the first one.
        total: How many there are with those of later calls.
    """
    frames = updates(orders, count, first, total)
    while block := list(islice(frames, _BLOCK)):
        yield block


def auth_text() -> str:
    """A client's ``auth``, which this server doesn't check."""
    return json.dumps({"op": "auth", "key": "key", "ts": 0, "nonce": "0", "sig": "0" * 64})


def subscribe_text(order: str) -> str:
    """A client's ``subscribe``.

    Args:
        order: The order's id.
    """
    return json.dumps({"op": "subscribe", "ch": f"orders:{order}"})


def status_text(order: str) -> str:
    """A client's ``order_status``, which this server takes without a signature.

    Args:
        order: The order's id.
    """
    data = {"id": order}
    return json.dumps({"op": "order_status", "ts": 0, "nonce": "0", "sig": "0" * 64, "data": data})
