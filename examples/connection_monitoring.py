"""Watch a connection: its state, its losses, and the gaps in its streams.

Its own sandbox is killed and comes back once, and then it ends. A broker that the environment names
is watched until Ctrl-C.

    python examples/connection_monitoring.py
"""

from __future__ import annotations

import trio
from somewhere import open_broker, run

from trio_broker import (
    Balance,
    BrokerWSClient,
    Connected,
    ConnectionEvent,
    Disconnected,
    GaveUp,
    ReconnectPolicy,
    Restored,
    Subscription,
)
from trio_broker.sandbox import Sandbox

# Never gives up, as in a service, and retries fast enough to watch it.
POLICY = ReconnectPolicy(max_attempts=None, initial_delay=0.2, max_delay=10.0)


def describe(event: ConnectionEvent) -> str:
    """An event as text."""
    match event:
        case Connected():
            return "connected"
        case Disconnected(error=error, retry_in=float(delay)):
            return f"lost: {error}; next attempt in {delay:.2f} s"
        case Restored(channels=channels):
            return f"restored: {', '.join(channels)}"
        case GaveUp(error=error):
            return f"gave up: {error}"
        case _:
            return type(event).__name__


async def watch_connection(client: BrokerWSClient) -> None:
    """Print each event as it happens; the iteration ends with the client."""
    async for event in client.events():
        print(f"{event.at:%H:%M:%S} {describe(event)}")


async def watch_figures(client: BrokerWSClient) -> None:
    """Print the statistics regularly, as for a dashboard."""
    while True:
        figures = client.statistics()
        print(
            f"state: {client.state.value}, latency: {client.latency}, "
            f"received: {figures.messages_received}, sent: {figures.messages_sent}"
        )
        await trio.sleep(10)


async def watch_balances(updates: Subscription[tuple[Balance, ...]], *, until_gap: bool) -> None:
    """Print the balances; after an outage the stream continues and reports the gap."""
    async for message in updates:
        gap = message.gap
        missing = f", anything since {gap.since:%H:%M:%S} may be missing" if gap else ""
        print(f"balances ({message.origin}){missing}")
        if gap is not None and until_gap:
            return


async def fail_once(client: BrokerWSClient, sandbox: Sandbox) -> None:
    """Kill the broker, wait for a failed attempt to reconnect, and restart the broker."""
    events = client.events()
    await trio.sleep(0.1)
    sandbox.faults.kill()
    losses = 0
    while losses < 2:
        losses += isinstance(await events.receive(), Disconnected)
    await sandbox.faults.revive()


async def main() -> None:
    """Run three watchers, and cause an outage of our own sandbox."""
    async with (
        open_broker() as broker,
        broker.client(reconnect=POLICY) as client,
        client.subscribe_balances() as updates,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch_connection, client)
        nursery.start_soon(watch_figures, client)
        if broker.sandbox is not None:
            nursery.start_soon(fail_once, client, broker.sandbox)
        await watch_balances(updates, until_gap=broker.sandbox is not None)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run(main)
