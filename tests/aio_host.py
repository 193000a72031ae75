"""Event loops for the tests, which check that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import attrs
import trio
import uvloop

from trio_broker.aio import guest as guests

T = TypeVar("T")

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE: Final = 30.0


@attrs.frozen
class Host:
    """How a program is run: with which loop, and whether in debug mode."""

    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    debug: bool = False

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a program like `asyncio.run`. An unhandled exception fails the test."""
        unhandled: list[dict[str, Any]] = []

        async def watched() -> T:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: unhandled.append(context))
            async with AsyncExitStack() as stack:
                stack.push_async_exit(end_guest)
                async with asyncio.timeout(PATIENCE) as limit:
                    result = await main()
                # A test that expects a cancellation may have taken this one for it.
                assert not limit.expired()
                return result

        hooks = sys.get_asyncgen_hooks()
        try:
            with asyncio.Runner(loop_factory=self.loop_factory, debug=self.debug) as runner:
                return runner.run(watched())
        finally:
            gc.collect()
            assert not trio.lowlevel.in_trio_run()
            assert sys.get_asyncgen_hooks() == hooks
            assert unhandled == []


PLAIN: Final = Host(asyncio.new_event_loop)
HOSTS: Final = {
    "asyncio": PLAIN,
    "debug": Host(asyncio.new_event_loop, debug=True),
    "uvloop": Host(uvloop.new_event_loop),
}


async def end_guest(failed: type[BaseException] | None, *_: object) -> None:
    """End the guest of a failed test, which would disturb the next tests."""
    if failed is not None and (guest := guests._here.guest) is not None:
        guest._nursery.cancel_scope.cancel()
        guest.users = 1
        await guest.leave()


async def settle(times: int = 20) -> None:
    """Let everything run that can, including Trio's steps, which are callbacks of the loop."""
    for _ in range(times):
        await asyncio.sleep(0)
