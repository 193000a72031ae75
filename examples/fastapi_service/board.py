"""The board: the current state at the broker, for all browsers.

The service subscribes once and keeps the latest state of each *topic*: the connection, the account,
each order. A new browser gets all topics, and then each topic that changes. It is sent only current
states, never a list of events. So a slow browser skips outdated states, needs no buffer that could
overflow, and doesn't delay the others.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, Self

import trio
from pydantic import BaseModel

from examples.fastapi_service.broker import Broker
from examples.fastapi_service.models import (
    BalancesOut,
    LiveOrder,
    StatusOut,
    SwapIn,
    UnresolvedOut,
)
from trio_broker import (
    Balance,
    BrokerError,
    BrokerWSClient,
    Connected,
    ConnectionEvent,
    Disconnected,
    GaveUp,
    SwapCorrected,
    SwapFinding,
    SwapOutcome,
    SwapReceipt,
    SwapResolved,
    SwapUnresolved,
    UnresolvedSwap,
)

logger: Final = logging.getLogger("fastapi_service")

ORDERS_SHOWN: Final = 100
# Seconds without a change before a comment is sent, so that proxies keep the connection open.
HEARTBEAT: Final = 15.0
RESUBSCRIBE_AFTER: Final = 1.0
# Seconds between two lookups of the unresolved swaps.
ASK_AGAIN_AFTER: Final = 5.0


class Watch(AsyncIterator[str]):
    """One browser's view: an iterator over server-sent events, which ends with the service.

    It isn't a generator, because a response that is cut off would leave a suspended generator to
    the garbage collector.
    """

    def __init__(self, latest: dict[str, BaseModel]) -> None:
        self._latest = latest
        self._news = dict.fromkeys(latest)
        self._wake = trio.Event()
        self._ended = False

    def tell(self, topic: str) -> None:
        """Mark a topic as changed."""
        self._news[topic] = None
        self._wake.set()

    def forget(self, topic: str) -> None:
        """Drop a topic that isn't shown any more."""
        self._news.pop(topic, None)

    def end(self) -> None:
        """End the iteration after the pending changes."""
        self._ended = True
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        await trio.lowlevel.checkpoint()
        if not self._news and not self._ended:
            self._wake = trio.Event()
            with trio.move_on_after(HEARTBEAT):
                await self._wake.wait()
        if self._news:
            topic = next(iter(self._news))
            del self._news[topic]
            kind = topic.partition(" ")[0]
            # JSON on one line: `data:` needs no more.
            return f"event: {kind}\ndata: {self._latest[topic].model_dump_json()}\n\n"
        if self._ended:
            raise StopAsyncIteration
        return ": still here\n\n"


class Board:
    """The current state at the broker.

    Args:
        broker: The broker; its client is connected by `run`.
        nursery: The nursery for the tasks that follow orders.

    Attributes:
        watches: The views of the connected browsers.
    """

    def __init__(self, broker: Broker, nursery: trio.Nursery) -> None:
        self.broker = broker
        self._nursery = nursery
        self._problem: str | None = "not connected yet"
        self._next_try: float | None = None
        self._latest: dict[str, BaseModel] = {}
        self.watches: set[Watch] = set()
        self._doubtful: dict[str, UnresolvedSwap] = {}
        self._ended = False
        self._post("status", self.status())

    @property
    def client(self) -> BrokerWSClient:
        """The broker's client."""
        return self.broker.client

    # --- For browsers ----------------------------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Watch the board during the block."""
        watch = Watch(self._latest)
        # The stored status has an outdated number of seconds until the next attempt.
        self._post("status", self.status())
        self.watches.add(watch)
        if self._ended:
            watch.end()
        try:
            yield watch
        finally:
            self.watches.remove(watch)

    def end_streams(self) -> None:
        """End every stream, because a stopping server waits for them."""
        self._ended = True
        for watch in self.watches:
            watch.end()

    def status(self) -> StatusOut:
        """The service's current status."""
        left = None if self._next_try is None else max(0.0, self._next_try - trio.current_time())
        return StatusOut(
            websocket_connected=self.client.is_connected(),
            state=self.client.state.value,
            broker="SANDBOX" if self.broker.is_sandbox else "LIVE",
            host=self.broker.host,
            problem=None if self.client.is_connected() else self._problem,
            next_try_in=left,
            unresolved_swaps=[UnresolvedOut.of(swap) for swap in self.client.unresolved_swaps()],
        )

    def _post(self, topic: str, state: BaseModel) -> None:
        self._latest[topic] = state
        for watch in self.watches:
            watch.tell(topic)

    # --- From the broker -------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and keep the board up to date until the client is closed, or has failed."""
        self._nursery.start_soon(self._follow_connection, self.client.events())
        try:
            await self.client.connect(self._nursery)
        except BrokerError as error:
            # The service stays up, so that its status reports the error.
            self._failed(error)
            return
        self._nursery.start_soon(self._settle_doubts)
        await self._follow_balances()

    async def _follow_connection(self, events: trio.abc.ReceiveChannel[ConnectionEvent]) -> None:
        async for event in events:
            match event:
                case Connected():
                    self._problem = self._next_try = None
                case Disconnected(error=error, retry_in=delay):
                    logger.warning("not connected: %s", error)
                    self._gone_wrong(error, delay)
                case GaveUp(error=error):
                    self._failed(error)
                case SwapResolved(client_order_id=key, receipt=receipt):
                    self._resolved(key, receipt)
                case SwapCorrected(client_order_id=key, outcome=outcome, receipt=receipt):
                    # Whoever has swapped was told that it was refused.
                    logger.error("swap %s wasn't refused: it is %s", key, outcome)
                    self._keep_terms()
                    if receipt is not None:
                        self._resolved(key, receipt)
                case SwapUnresolved():
                    self._keep_terms()
            self._post("status", self.status())

    def _keep_terms(self) -> None:
        # The client drops them once the swap is resolved.
        unresolved = self.client.unresolved_swaps()
        self._doubtful |= {swap.client_order_id: swap for swap in unresolved}

    def _resolved(self, key: str, receipt: SwapReceipt | None) -> None:
        swap = self._doubtful.pop(key, None)
        if receipt is not None:
            self.follow(receipt, swap)

    def _failed(self, error: Exception) -> None:
        logger.error("the connection failed permanently: %s", error)
        self._gone_wrong(error, None)

    def _gone_wrong(self, error: Exception, retry_in: float | None) -> None:
        self._problem = str(error)
        self._next_try = None if retry_in is None else trio.current_time() + retry_in
        self._post("status", self.status())

    async def _follow_balances(self) -> None:
        while True:
            try:
                await self.client.wait_connected()
                await self._add_up_balances()
            except BrokerError as error:
                if self.client.state.is_over:
                    return
                logger.warning("no balances for now: %s", error)
            await trio.sleep(RESUBSCRIBE_AFTER)

    async def _add_up_balances(self) -> None:
        account: dict[str, Balance] = {}
        async with self.client.subscribe_balances() as updates:
            async for batch in updates.batches():
                for message in batch:
                    if message.origin == "snapshot":
                        account.clear()
                    account.update({balance.asset: balance for balance in message.data})
                self._post("balances", BalancesOut.of(tuple(account.values())))

    async def _settle_doubts(self) -> None:
        """Look up unresolved swaps, also of earlier processes, until they are resolved."""
        while not self.client.state.is_over:
            try:
                await self.client.wait_connected()
                for finding in await self.client.reconcile():
                    self._found(finding)
            except BrokerError as error:
                logger.warning("unresolved swaps can't be looked up: %s", error)
            await trio.sleep(ASK_AGAIN_AFTER)

    def _found(self, finding: SwapFinding) -> None:
        if finding.outcome is not SwapOutcome.UNKNOWN:  # don't log this for every lookup
            logger.warning("swap %s is %s", finding.swap.client_order_id, finding.outcome)
        if finding.receipt is not None:
            self.follow(finding.receipt, finding.swap)
        self._post("status", self.status())

    # --- Orders ----------------------------------------------------------------------------

    def follow(self, receipt: SwapReceipt, swap: SwapIn | UnresolvedSwap | None) -> None:
        """Show an order on the board until it is final.

        Args:
            receipt: The broker's receipt.
            swap: The swap's terms, if known.
        """
        topic = _topic(receipt.order_id)
        is_new = topic not in self._latest
        order = LiveOrder.taken(receipt) if is_new else self._order(topic)
        if swap is not None:
            terms = {name: getattr(swap, name) for name in ("amount_in", "asset_in", "asset_out")}
            order = order.model_copy(update=terms)
        if is_new:
            self._make_room()
            self._nursery.start_soon(self._follow_order, receipt.order_id)
        self._post(topic, order)

    async def _follow_order(self, order_id: str) -> None:
        topic = _topic(order_id)
        try:
            async with self.client.track_order(order_id) as progress:
                async for message in progress:
                    self._post(topic, self._order(topic).moved(message.data))
        except (BrokerError, ValueError) as error:
            logger.warning("order %s isn't followed any more: %s", order_id, error)

    def _order(self, topic: str) -> LiveOrder:
        order = self._latest[topic]
        assert isinstance(order, LiveOrder)  # noqa: S101 - the topic says so
        return order

    def _make_room(self) -> None:
        orders = [each for each in self._latest.values() if isinstance(each, LiveOrder)]
        ended = [order for order in orders if order.is_final]
        for order in ended[: max(0, len(orders) - ORDERS_SHOWN + 1)]:
            topic = _topic(order.order_id)
            del self._latest[topic]
            for watch in self.watches:
                watch.forget(topic)


def _topic(order_id: str) -> str:
    return f"order {order_id}"
