"""Counts the Python frames of the library that a message passes: `python -m benchmarks.journeys`.

A *journey* is what happens between two moments of a program: from a push in the socket to the
user's loop, or from a call to its result. The interpreter's profile hook sees each frame that is
entered or resumed. Only the library's own frames count, and not those of the sandbox, which runs in
another thread. The numbers depend on the code, and a little on when bytes arrive.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self, TypeAlias, get_args

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

import trio_broker
from trio_broker import BrokerWSClient, ReconnectPolicy, Subscription
from trio_broker.sandbox.threads import ThreadedSandbox, open_threaded_sandbox
from trio_broker.settings import TransportName

PACKAGE: Final = Path(trio_broker.__file__).parent
BURST: Final = 64
_NOT_COUNTED: Final = ("sandbox", "cli")
# The event loop turns until nothing of the client's runs any more, before and after a journey.
_QUIET: Final = 0.02


@attrs.frozen
class Journey:
    """What was counted.

    Attributes:
        name: What happened.
        frames: How many frames of the library were entered or resumed, for each message.
        places: File and function of each, with its count, in the order of the first entry.
    """

    name: str
    frames: float
    places: dict[str, int]

    @property
    def files(self) -> list[str]:
        """The files that were entered, in their order."""
        return list(dict.fromkeys(place.partition(":")[0] for place in self.places))


class FrameCounter:
    """Counts the library's frames while it is open."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()

    def __enter__(self) -> Self:
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            place = path.relative_to(PACKAGE)
            if place.parts[0] not in _NOT_COUNTED:
                self.places[f"{place}:{frame.f_code.co_qualname}"] += 1


Wanted: TypeAlias = Callable[[], Awaitable[object]]


async def _counted(name: str, act: Wanted, count: int = 1) -> Journey:
    await wait_all_tasks_blocked(_QUIET)
    with FrameCounter() as counter:
        await act()
        await wait_all_tasks_blocked(_QUIET)
    return Journey(name, sum(counter.places.values()) / count, dict(counter.places))


class Reader:
    """Reads a stream in a task of its own, as a program does."""

    def __init__(self, updates: Subscription[Any]) -> None:
        self._updates = updates
        self._wanted = 0
        self._read = trio.Event()

    async def run(self) -> None:
        """Read for ever."""
        async for message in self._updates:
            self._wanted -= 1
            if self._wanted == 0 or message.gap is not None:
                self._read.set()

    async def expect(self, count: int, send: Callable[[], object]) -> None:
        """Have messages sent, and wait until so many have been read, or one with a gap."""
        self._wanted, self._read = count, trio.Event()
        send()
        await self._read.wait()


def _push(number: int) -> bytes:
    state = {
        "orderId": "o1",
        "status": "PROCESSING",
        "filledOut": str(number),
        "updatedAt": 1732526400000 + number,
    }
    text = json.dumps({"ch": "orders:o1", "data": state}, separators=(",", ":")).encode()
    return b"\x81" + (bytes([len(text)]) if len(text) < 126 else b"\x7e\x00%c" % len(text)) + text


@asynccontextmanager
async def _subscribed(
    sandbox: ThreadedSandbox, transport: TransportName
) -> AsyncIterator[tuple[BrokerWSClient, Reader]]:
    policy = ReconnectPolicy(initial_delay=0.001)
    async with (
        sandbox.client(transport=transport, reconnect=policy) as client,
        client.subscribe_order("o1", snapshot=False) as updates,
        trio.open_nursery() as nursery,
    ):
        reader = Reader(updates)
        nursery.start_soon(reader.run)
        yield client, reader
        nursery.cancel_scope.cancel()


async def _loss(sandbox: ThreadedSandbox, transport: TransportName) -> Journey:
    policy = ReconnectPolicy(initial_delay=0.001)
    async with (
        sandbox.client(transport=transport, reconnect=policy) as client,
        client.subscribe_balances() as updates,
        trio.open_nursery() as nursery,
    ):
        reader = Reader(updates)
        nursery.start_soon(reader.run)

        async def lose() -> None:
            await reader.expect(1, sandbox.drop_connections)

        await lose()
        journey = await _counted("a lost connection to the restored stream", lose)
        nursery.cancel_scope.cancel()
    return journey


async def measure(transport: TransportName) -> list[Journey]:
    """Go on each journey once, after a first time that isn't counted.

    Args:
        transport: The library that speaks WebSocket.
    """
    with open_threaded_sandbox() as sandbox:
        async with _subscribed(sandbox, transport) as (client, reader):
            journeys = await _journeys(sandbox, client, reader)
        return [*journeys, await _loss(sandbox, transport)]


async def _journeys(
    sandbox: ThreadedSandbox, client: BrokerWSClient, reader: Reader
) -> list[Journey]:
    numbers = iter(range(1, 10_000))

    def send(count: int) -> None:
        data = b"".join(_push(next(numbers)) for _ in range(count))
        sandbox.do(lambda sandbox: sandbox.faults.send_raw(data))

    async def swap() -> object:
        return await client.do_swap("0.01", "ETH", "USDT")

    # The first time, code is run that is run once.
    await reader.expect(1, lambda: send(1))
    await client.get_balances()
    await swap()
    return [
        await _counted("one push", lambda: reader.expect(1, lambda: send(1))),
        await _counted(
            f"one push of a burst of {BURST}",
            lambda: reader.expect(BURST, lambda: send(BURST)),
            BURST,
        ),
        await _counted("one read", client.get_balances),
        await _counted("one swap with its receipt", swap),
    ]


def main() -> None:
    """Print the journeys over each transport, or over one."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.journeys")
    names = get_args(TransportName)
    parser.add_argument("--transport", choices=names, action="append", help="only over this one")
    parser.add_argument("--places", action="store_true", help="print each function with its count")
    arguments = parser.parse_args()
    for transport in arguments.transport or names:
        print(f"over {transport}:")
        for journey in trio.run(measure, transport):
            print(f"  {journey.name}: {journey.frames:.1f} frames in {len(journey.files)} files")
            if arguments.places:
                for place, count in journey.places.items():
                    print(f"    {count:4} {place}")


if __name__ == "__main__":
    main()
