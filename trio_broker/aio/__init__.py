"""The client for programs that asyncio runs.

Everything in the house is Trio's, and stays so: Trio runs as a *guest* of the asyncio event loop,
in its thread (`trio.lowlevel.start_guest_run`). The two take turns: the loop calls the guest's next
step as it calls any callback, and while the guest has nothing to do, a thread of its own waits for
its sockets. So no lock is needed anywhere, and what is synchronous may be called from either side.

    async with open_broker(api_key, secret_key, ws_url) as client:
        print(await client.get_balances())

**One guest a loop**, shared by all of its clients, as Trio allows one run a thread. Whoever needs
it joins it, the first starts it, and the last who leaves ends it and waits for its end: a loop that
ended before its guest would leave Trio with a run that is never finished. A client that nobody
closed is closed with the loop: `asyncio.run` finishes all asynchronous generators at its end, and
`open_client` is one.

**A call** is a task of the guest's, in a cancel scope of its own; the asyncio task waits for its
end, whatever happens. When it is cancelled, it cancels that scope and goes on waiting: what the
library promises of a cancelled call (nothing is left behind, a swap that has left is still asked
for) is done by the Trio side on its way out. Then it raises `asyncio.CancelledError`, even if there
is a result by now: asyncio's timeouts and task groups count on it. A result that nobody takes so is
taken care of: a subscription or a connection is closed, and a swap is told to the log.

**A stream** needs no task of the guest's at all. Its buffer is looked at from here, and if there is
nothing, it calls back when there is. What is awaited here is that call and never the message, which
stays in the buffer until somebody takes it: no cancellation can lose it.

**If Trio breaks down**, by a fault of its own or of this library, whatever waits here is woken and
raises `RuntimeError`, from the cause. It never hangs.

The law that this room keeps: *asyncio waits for Trio, and Trio never for asyncio.*
"""

from trio_broker.aio.client import AioBrokerClient as AioBrokerClient
from trio_broker.aio.opening import (
    ClientOptions as ClientOptions,
    open_broker as open_broker,
    open_client as open_client,
)
from trio_broker.aio.streams import AioChannel as AioChannel, AioSubscription as AioSubscription
