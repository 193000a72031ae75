"""A user's live account: one client for all of the user's browsers, and the swaps made here.

A client is opened for the first browser and closed after the last who needs it. Browsers need it,
and so does each swap until its order has ended: somebody who closes the page takes nothing back,
and what became of it is there for whoever opens the page again. A swap itself opens nothing, and
waits for no connection.

The client lives in a task of its own, and each swap in another, since a browser's task ends, by a
cancellation even, whenever that browser goes away. What a browser wants to see it subscribes to
by itself: the library shares one subscription at the broker among all of one client's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Literal

import attrs

from examples.django_channels.broker import Account
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    DuplicateClientOrderIdError,
    NotConnectedError,
    NotSentError,
    ServerError,
    SwapCorrected,
    SwapOutcomeUnknownError,
)
from trio_broker.aio import AioBrokerClient, open_client

logger: Final = logging.getLogger("django_channels")

# How many ended swaps of a user are kept. Swaps under way are always kept.
SWAPS_KEPT: Final = 100
# The accepted slippage of a swap, in basis points.
SLIPPAGE_BPS: Final = 100
ENDED: Final = {"taken", "refused", "not sent"}
# Seconds between two lookups of an unknown swap.
ASK_AGAIN_AFTER: Final = 5.0


@attrs.frozen
class Swap:
    """A swap that was requested here, and its known state.

    Attributes:
        key: The page's name for it, which is its client order id.
        amount_in: How much is sold.
        asset_in: What is sold.
        asset_out: What is bought.
        outcome: ``unknown`` is no end: it goes on being asked for.
        detail: Why, for people.
        order_id: The broker's name for it, once it is taken.
    """

    key: str
    amount_in: str
    asset_in: str
    asset_out: str
    outcome: Literal["under way", "taken", "refused", "not sent", "unknown"] = "under way"
    detail: str = ""
    order_id: str | None = None


class _Life:
    """A client from its opening to its end.

    Args:
        client: The client.

    Attributes:
        users: How many need it.
        opened: The client once it is connected, or why it never will be.
        task: What holds it open.
    """

    def __init__(self, client: BrokerWSClient) -> None:
        self.users = 0
        self.opened: asyncio.Future[AioBrokerClient] = asyncio.get_running_loop().create_future()
        self._unused = asyncio.Event()
        self.task = asyncio.create_task(self._run(client))
        # Not at the end of `_run`, which doesn't start if it is cancelled at once.
        self.task.add_done_callback(self._let_nobody_wait)

    async def _run(self, client: BrokerWSClient) -> None:
        try:
            async with open_client(client) as opened:
                self.opened.set_result(opened)
                await self._unused.wait()
        except Exception as error:
            if self.opened.done():
                raise
            self._refuse(error)

    def _let_nobody_wait(self, _: object) -> None:
        if not self.opened.done():
            self._refuse(NotConnectedError("the connection wasn't needed any more"))

    def _refuse(self, error: Exception) -> None:
        self.opened.set_exception(error)
        self.opened.exception()  # retrieve it, because asyncio warns about an unretrieved exception

    @property
    def is_over(self) -> bool:
        """Whether no browser can join any more."""
        return self.task.done() or self._unused.is_set()

    @property
    def is_connected(self) -> bool:
        """Whether its client is open and connected now."""
        return not self.is_over and self.opened.done() and self.opened.result().is_connected()

    def end(self) -> None:
        """Close the client, with a close frame if it is connected."""
        self._unused.set()
        if not self.opened.done():
            self.task.cancel()


class LiveAccount:
    """A user's account, for all browsers that show it.

    Args:
        account: The account.

    Attributes:
        account: The account.
        swaps: What is known of the swaps made here, by their keys.
    """

    def __init__(self, account: Account) -> None:
        self.account: Final = account
        self.swaps: Final[dict[str, Swap]] = {}
        self._watchers: Final[set[Callable[[Swap], None]]] = set()
        self._life: _Life | None = None
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._closed = False

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AioBrokerClient]:
        """Use the client during the block.

        Raises:
            BrokerError: It can't be opened.
        """
        if self._closed:
            raise NotConnectedError("the server is about to end")
        if self._life is None or self._life.is_over:
            self._life = _Life(self.account.make_client())
            self._hold(self._life.task)
            self._hold(asyncio.create_task(self._watch_corrections(self._life)))
        life = self._life
        life.users += 1
        try:
            # Unlike an `await` of the future, this doesn't cancel it for other tasks.
            await asyncio.wait([life.opened])
            yield life.opened.result()
        finally:
            life.users -= 1
            if not life.users:
                life.end()

    @contextmanager
    def watched(self, tell: Callable[[Swap], None]) -> Iterator[None]:
        """Get the changes of the swaps made here, during the block.

        Args:
            tell: Called with each that there is, and with each that changes.
        """
        for swap in self.swaps.values():
            tell(swap)
        self._watchers.add(tell)
        try:
            yield
        finally:
            self._watchers.remove(tell)

    def swap(self, asked: Swap) -> None:
        """Swap once per kept key, and report the progress to all browsers.

        They are kept in memory: what was under way when the process died can't be known here.

        Args:
            asked: The swap. If its key was used before, what became of that one is told.
        """
        if asked.key in self.swaps:
            self._tell(self.swaps[asked.key])
        else:
            self._tell(asked)
            self._hold(asyncio.create_task(self._perform(asked)))

    async def aclose(self) -> None:
        """Close everything, and log unknown swaps. Takes at most the client's `close_timeout`."""
        self._closed = True
        if self._life is not None:
            self._life.end()
            await asyncio.wait([self._life.task])
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for swap in self.swaps.values():
            if swap.outcome in {"under way", "unknown"}:
                logger.error("the outcome of swap %s is unknown", swap.key)

    def _tell(self, swap: Swap) -> None:
        self.swaps[swap.key] = swap
        for tell in self._watchers:
            tell(swap)
        ended = [each.key for each in self.swaps.values() if each.outcome in ENDED]
        for key in ended[: max(0, len(self.swaps) - SWAPS_KEPT)]:
            del self.swaps[key]

    def _hold(self, task: asyncio.Task[None]) -> None:
        # The event loop has only weak references to tasks.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- A swap, in its task -----------------------------------------------------------------

    async def _perform(self, asked: Swap) -> None:
        if self._life is None or not self._life.is_connected:
            # `client` might wait minutes for a connection, and then the swap would be made at a
            # price that the user has not seen.
            detail = "there is no connection to the broker"
            self._tell(attrs.evolve(asked, outcome="not sent", detail=detail))
            return
        async with self.client() as client:
            swap = await self._sent(client, asked)
            self._tell(swap)
            if swap.order_id is not None:
                await self._follow(client, swap.order_id)

    async def _sent(self, client: AioBrokerClient, asked: Swap) -> Swap:
        try:
            receipt = await client.do_swap(
                asked.amount_in,
                asked.asset_in,
                asked.asset_out,
                slippage_bps=SLIPPAGE_BPS,
                client_order_id=asked.key,
            )
        except (SwapOutcomeUnknownError, DuplicateClientOrderIdError) as error:
            # The broker may have reported a duplicate, and have an order: then this finds it.
            unknown = attrs.evolve(asked, outcome="unknown", detail=str(error))
            return await self._found_out(client, unknown)
        except ServerError as error:
            return attrs.evolve(asked, outcome="refused", detail=error.message)
        except (NotSentError, TypeError, ValueError) as error:
            return attrs.evolve(asked, outcome="not sent", detail=str(error))
        return attrs.evolve(asked, outcome="taken", order_id=receipt.order_id)

    async def _found_out(self, client: AioBrokerClient, unknown: Swap) -> Swap:
        while True:
            self._tell(unknown)
            try:
                receipt = await client.resolve_swap(unknown.key)
            except NotSentError as error:
                return attrs.evolve(unknown, outcome="not sent", detail=str(error))
            except ServerError as error:
                return attrs.evolve(unknown, outcome="refused", detail=error.message)
            except SwapOutcomeUnknownError:
                if client.state.is_over:
                    return unknown  # the client has failed, so it can't be looked up
                await asyncio.sleep(ASK_AGAIN_AFTER)
            else:
                return attrs.evolve(unknown, outcome="taken", detail="", order_id=receipt.order_id)

    async def _watch_corrections(self, life: _Life) -> None:
        """Report each swap that was refused, and may be or is executed after all."""
        await asyncio.wait([life.opened])
        if life.opened.exception() is not None:
            return
        with life.opened.result().events() as events:
            async for event in events:
                if isinstance(event, SwapCorrected) and event.client_order_id in self.swaps:
                    swap = self.swaps[event.client_order_id]
                    logger.error("swap %s wasn't refused: it is %s", swap.key, event.outcome)
                    self._hold(asyncio.create_task(self._correct(swap)))

    async def _correct(self, refused: Swap) -> None:
        detail = "the broker had refused it, but may have executed it"
        unknown = attrs.evolve(refused, outcome="unknown", detail=detail)
        self._tell(unknown)
        try:
            async with self.client() as client:
                swap = await self._found_out(client, unknown)
                self._tell(swap)
                if swap.order_id is not None:
                    await self._follow(client, swap.order_id)
        except BrokerError as error:
            logger.warning("swap %s can't be looked up: %s", refused.key, error)

    async def _follow(self, client: AioBrokerClient, order_id: str) -> None:
        """Keep the client open until an order has ended. The browsers show the order."""
        try:
            async with client.track_order(order_id) as progress:
                async for _ in progress:
                    pass
        except BrokerError as error:
            logger.warning("order %s isn't followed any more: %s", order_id, error)
