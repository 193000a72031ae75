"""The client for asyncio programs.

The library runs on Trio. Here Trio runs as a *guest* of the asyncio event loop, in the same thread
(`trio.lowlevel.start_guest_run`). The loop calls each step of Trio as a callback, and a second
thread waits for Trio's sockets. So no locks are needed, and synchronous functions can be called
from either side.

    async with open_broker(api_key, secret_key, ws_url) as client:
        print(await client.get_balances())

**There is one guest per loop**, because Trio allows one run per thread. All clients of the loop
share it. The first one starts it, and the last one ends it and waits for its end: if the loop ended
first, the run of Trio would never finish. A client that was never closed is closed with the loop,
because `open_client` is an asynchronous generator, and `asyncio.run` closes those.

**A call** is a Trio task with its own cancel scope. The asyncio task always waits until it has
ended. When the asyncio task is cancelled, it cancels that scope and goes on waiting, so the Trio
side can do what it promises for a cancelled call (for example look up a swap that was sent). Then
it raises `asyncio.CancelledError`, even if there is a result: asyncio's timeouts and task groups
depend on it. A subscription or a connection that isn't returned for this reason is closed, and a
swap is logged.

**A stream** needs no Trio task. Items are taken from its buffer directly. If it is empty, the
asyncio task waits for a callback, and not for the item. The item stays in the buffer until it is
taken, so no cancellation can lose it.

**If Trio breaks down**, by a fault of Trio or of this library, all waiting tasks are woken and
raise `RuntimeError` from the cause. They never hang.

**The client is generated.** ``python -m tools.generate_aio`` writes `client.py` from
`BrokerWSClient`; a test fails if it isn't current. `_base.py` has the code that isn't generated.

*asyncio waits for Trio; Trio never waits for asyncio.*
"""

from trio_broker.aio.client import AioBrokerClient, ClientOptions
from trio_broker.aio.opening import open_broker, open_client
from trio_broker.aio.streams import AioChannel, AioSubscription

# fmt: off
__all__ = [
    "AioBrokerClient", "AioChannel", "AioSubscription", "ClientOptions", "open_broker",
    "open_client",
]
# fmt: on
