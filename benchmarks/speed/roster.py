"""Who is compared with whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs

from benchmarks.speed.processes import Bench

BASIC: Final = "trio-websocket"
FAST: Final = "websockets"
TRANSPORTS: Final = (BASIC, FAST)


@attrs.frozen
class Peer:
    """One who is measured.

    Attributes:
        name: What it is called in the tables.
        module: The module with its code.
        arguments: What its functions are told besides.
    """

    name: str
    module: str
    arguments: dict[str, Any] = attrs.field(factory=dict)

    def measuring(
        self,
        bench: Bench,
        function: str,
        told: Mapping[str, object],
        *,
        watch_sends: bool = False,
    ) -> Callable[[], Any]:
        """What measures it once, in a fresh process.

        Args:
            bench: How.
            function: The function in its module.
            told: What every peer is told.
            watch_sends: Whether that process notes when it sends.
        """
        name, arguments = f"{self.module}:{function}", {**told, **self.arguments}
        return partial(bench.measure, name, arguments, watch_sends=watch_sends)


CALLBACK: Final = Peer("callback client (websockets, asyncio)", "peers.callback")
BARE: Final = Peer("bare trio-websocket", "peers.bare")
AIOHTTP: Final = Peer("aiohttp (parser in C)", "peers.with_aiohttp")
PLAIN: Final = Peer("bare Trio stream", "peers.plain")


def library(transport: str) -> Peer:
    """This library.

    Args:
        transport: The transport's name.
    """
    return Peer(f"trio-broker over {transport}", "peers.library", {"transport": transport})


def bridged(transport: str) -> Peer:
    """This library from asyncio.

    Args:
        transport: The transport's name.
    """
    arguments = {"transport": transport}
    return Peer(f"trio_broker.aio over {transport}", "peers.bridge", arguments)


def bridged_iterating(transport: str, *, batches: bool) -> Peer:
    """This library from asyncio, and how its messages are taken.

    Args:
        transport: The transport's name.
        batches: Whether with ``batches()``, or with ``async for`` alone.
    """
    way = "batches()" if batches else "async for"
    arguments = {"transport": transport, "batches": batches}
    return Peer(f"trio_broker.aio over {transport}, {way}", "peers.bridge", arguments)


def iterating(transport: str, *, batches: bool) -> Peer:
    """This library, and how its messages are taken.

    Args:
        transport: The transport's name.
        batches: Whether with ``batches()``, or with ``async for`` alone.
    """
    way = "batches()" if batches else "async for"
    arguments = {"transport": transport, "batches": batches}
    return Peer(f"trio-broker over {transport}, {way}", "peers.library", arguments)
