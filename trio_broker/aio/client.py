"""`AioBrokerClient`: the documented methods, as asyncio programs call them.

Generated from `trio_broker/client.py` by ``python -m tools.generate_aio``. Don't edit this file.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Literal, TypedDict, overload

from trio_broker._journal.journal import SwapJournal
from trio_broker._streams.buffer import Overflow
from trio_broker._streams.opening import Opening
from trio_broker.aio._base import ClientBase
from trio_broker.aio.streams import AioChannel, AioSubscription
from trio_broker.events import ConnectionEvent
from trio_broker.models import (
    Amount,
    Balance,
    ClientStatistics,
    ConnectionState,
    Dialect,
    Order,
    SwapEstimate,
    SwapFinding,
    SwapReceipt,
    UnresolvedSwap,
)
from trio_broker.settings import Limits, ReconnectPolicy, TransportName
from trio_broker.signing import SigningKey


class ClientOptions(TypedDict, total=False):
    """The keyword options of `BrokerWSClient`, which documents them and their defaults."""

    reconnect: ReconnectPolicy | None
    limits: Limits | None
    connect_timeout: float
    auth_timeout: float
    heartbeat_interval: float
    heartbeat_timeout: float
    write_timeout: float
    request_timeout: float
    reply_grace: float
    resolve_timeout: float
    poll_interval: float
    close_timeout: float
    transport: TransportName
    dialect: Dialect
    signing_key: SigningKey | None
    refusal_texts: Sequence[str]
    ssl_context: ssl.SSLContext | None
    allow_insecure: bool
    journal: SwapJournal | None
    clock: Callable[[], float]
    name: str | None


class AioBrokerClient(ClientBase):
    """A connected client of the broker for asyncio, as `open_broker` and `open_client` return it.

    It has the methods of `BrokerWSClient`, with the same arguments, results and errors. Any number
    of tasks may use it at a time, in the event loop that opened it.

    Cancelling any method is safe. The cancelled task waits until the call has ended, which is
    soon, and then raises `asyncio.CancelledError`. A swap that was sent isn't taken back by it;
    see `do_swap`.
    """

    async def aclose(self) -> None:
        """Close the WebSocket with a close frame, and end every stream. May be called twice.

        This takes at most `close_timeout`. If cancelled, it closes at once and raises
        `asyncio.CancelledError`.
        """
        await self._call(self._client.aclose)

    async def close(self) -> None:
        """The documented name of `aclose`."""
        await self._call(self._client.close)

    @property
    def state(self) -> ConnectionState:
        """The state of the connection."""
        return self._client.state

    def is_connected(self) -> bool:
        """True while connected and authenticated; False in a process forked from the client's."""
        return self._client.is_connected()

    @property
    def max_reconnect_attempts(self) -> int | None:
        """How many attempts in a row may fail; None for no limit. It can be set at any time.

        Raises:
            ConfigurationError: The new value is invalid.
        """
        return self._client.max_reconnect_attempts

    @max_reconnect_attempts.setter
    def max_reconnect_attempts(self, value: int | None) -> None:
        self._client.max_reconnect_attempts = value

    @property
    def reconnect_delay(self) -> float:
        """Seconds before the first attempt to reconnect. It can be set at any time.

        Raises:
            ConfigurationError: The new value is invalid.
        """
        return self._client.reconnect_delay

    @reconnect_delay.setter
    def reconnect_delay(self, value: float) -> None:
        self._client.reconnect_delay = value

    @property
    def latency(self) -> float | None:
        """The last heartbeat's round trip in seconds, None before the first."""
        return self._client.latency

    async def wait_connected(self) -> None:
        """Wait until connected, through any outage. Cancelling is safe.

        Raises:
            NotConnectedError: The client was never started, or is closed.
            BrokerError: The error with which the connection failed permanently.
        """
        await self._call(self._client.wait_connected)

    async def wait_closed(self) -> None:
        """Wait until the client is closed. Cancelling is safe.

        Raises:
            BrokerError: The error with which the connection failed permanently.
        """
        await self._call(self._client.wait_closed)

    async def reconnect(self) -> None:
        """Replace the connection now, and wait until connected again.

        The client reconnects at once, without the backoff's delay, and doesn't count this as an
        attempt. If it waits to retry, it retries now. Every stream reports the gap and requests its
        state. A read in flight raises `ConnectionLostError`. A swap in flight is looked up on the
        next connection, so wait for it first if you can. Cancelling is safe, but doesn't stop the
        replacement.

        Raises:
            NotConnectedError: The client was never started, or is closed.
            BrokerError: The error with which the connection failed permanently.
        """
        await self._call(self._client.reconnect)

    def events(self) -> AioChannel[ConnectionEvent]:
        """Open a channel of the client's events from now on.

        Returns:
            A receive channel that ends with the client. It buffers the last 1,024 events.

        Raises:
            NotConnectedError: This process was forked from the client's process.
        """
        return AioChannel(self._client.events(), self._guest)

    def messages(self) -> AioChannel[str | bytes]:
        """Open a channel of every message from the broker, unchanged, from now on, for debugging.

        Returns:
            A receive channel that ends with the client. It buffers the last 1,024 messages.

        Raises:
            NotConnectedError: This process was forked from the client's process.
        """
        return AioChannel(self._client.messages(), self._guest)

    def statistics(self) -> ClientStatistics:
        """The client's counters."""
        return self._client.statistics()

    @overload
    def subscribe(
        self,
        channel: Literal["balances"],
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> Opening[AioSubscription[tuple[Balance, ...]]]: ...

    @overload
    def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> Opening[AioSubscription[Any]]: ...

    def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Opening[AioSubscription[Any]]:
        """Subscribe to a channel: ``async with client.subscribe(…) as updates:``.

        ``updates = await client.subscribe(…)`` does the same without a block. Several
        subscriptions to one channel share one subscription at the broker. Cancelling is safe: the
        client unsubscribes again.

        Args:
            channel: ``balances``, or ``orders:<order id>``.
            buffer_size: The maximum number of buffered messages, at least 1.
            overflow: ``"drop_oldest"`` drops the oldest messages and reports a gap. ``"error"``
                ends the subscription with `SlowConsumerError`.
            snapshot: Whether to also request the state at subscription.

        Returns:
            An `Opening`. Await or enter it to get a receive channel of messages, after the broker's
            acknowledgement. Nothing is sent or raised before that.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range.
            SubscriptionLimitError: The connection has reached its channel limit.
            MessageTooLargeError: The channel's name is too long.
            NotSentError: It could not be sent in time, or there is no connection.
            ServerError: The broker refused.
            RequestTimeoutError: The broker didn't reply in time.
            ConnectionLostError: The connection was lost before the reply.
        """
        return self._opening(
            partial(
                self._client.subscribe,
                channel,
                buffer_size=buffer_size,
                overflow=overflow,
                snapshot=snapshot,
            ),
            "subscribe",
        )

    def subscribe_balances(
        self, *, buffer_size: int = 1024, overflow: Overflow = "drop_oldest", snapshot: bool = True
    ) -> Opening[AioSubscription[tuple[Balance, ...]]]:
        """Subscribe to the account's balances.

        A push contains only some assets; a snapshot is the whole account. The arguments, the errors
        and the `Opening` are those of `subscribe`.
        """
        return self._opening(
            partial(
                self._client.subscribe_balances,
                buffer_size=buffer_size,
                overflow=overflow,
                snapshot=snapshot,
            ),
            "subscribe_balances",
        )

    def subscribe_order(
        self,
        order_id: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Opening[AioSubscription[Order]]:
        """Subscribe to an order; each message is its whole state, and none is older than the last.

        The arguments, the errors and the `Opening` are those of `subscribe`, but with the order's
        id instead of the channel.
        """
        return self._opening(
            partial(
                self._client.subscribe_order,
                order_id,
                buffer_size=buffer_size,
                overflow=overflow,
                snapshot=snapshot,
            ),
            "subscribe_order",
        )

    def track_order(
        self,
        order_id: str,
        *,
        not_found_timeout: float = 60.0,
        stop_at_partial: bool = False,
        buffer_size: int = 64,
    ) -> AbstractAsyncContextManager[AioSubscription[Order]]:
        """Follow an order to its final status, through lost pushes and outages.

        ``async with`` returns a channel of the order's states from then on. No state is older than
        the last one or equal to it. The channel ends after a final status: FILLED, FAILED or
        CANCELLED. The client subscribes to the order and requests its state. It requests the state
        again after every reconnection, and after `poll_interval` seconds without an update. So a
        lost push or a silent broker can't block it. If the broker doesn't know the order, the
        client keeps asking for `not_found_timeout`. An order in a status that isn't documented and
        never changes is followed until you leave the block, for example because of a timeout.

        One client can track thousands of orders. Subscriptions have precedence for the
        connection's channels. Orders without a channel are polled in turn. Leaving the block ends
        the channel and its clones.

        Args:
            order_id: The order's id at the broker, or its client order id.
            not_found_timeout: Seconds for which the broker may say that it doesn't know an order of
                which nothing was ever heard; `math.inf` for no limit. Outages, missing replies and
                other errors don't count. It never ends an order of a swap of this client or its
                journal.
            stop_at_partial: Whether to end after a partial fill, too.
            buffer_size: The maximum number of buffered messages, at least 1; the oldest are
                dropped.

        Returns:
            A context manager. Entering it doesn't wait for the broker. It raises
            `NotConnectedError` if the client can't connect any more. An iteration ends
            after a final status, or when the client is closed. It raises `OrderNotFoundError`
            after `not_found_timeout`.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range.
            MessageTooLargeError: The id is too long.
        """
        return self._tracked(
            partial(
                self._client.track_order,
                order_id,
                not_found_timeout=not_found_timeout,
                stop_at_partial=stop_at_partial,
                buffer_size=buffer_size,
            )
        )

    async def unsubscribe(self, channel: str) -> None:
        """End all subscriptions to a channel, here and at the broker.

        They end at once, even if this call is cancelled. If there are none, nothing is sent. A
        tracked order continues to be tracked, and may keep its channel.

        Args:
            channel: The channel's name.

        Raises:
            TypeError: The name isn't a str.
            ValueError: The name is empty, or has a character that can't be sent.
            NotConnectedError: The client is not connected and can't connect any more.
        """
        await self._call(partial(self._client.unsubscribe, channel))

    async def get_balances(self) -> tuple[Balance, ...]:
        """Request the account's balances. Cancelling is safe.

        Replies have no request id, so one such request is in flight at a time, and the others wait
        for their turn.

        Returns:
            The balances. One that can't be read is among them, and reading its amount raises
            `UnreadableError`.

        Raises:
            NotSentError: It could not be sent in time, or there is no connection.
            ServerError: The broker refused.
            RequestTimeoutError: The broker didn't reply in time.
            ConnectionLostError: The connection was lost before the reply.
            ProtocolError: The reply can't be read.
        """
        return await self._call(self._client.get_balances)

    async def estimate_swap(
        self,
        amount_in: Amount,
        asset_in: str,
        asset_out: str,
        *,
        filter_sources: Iterable[str] | None = None,
        network: str | None = None,
        account: str | None = None,
    ) -> SwapEstimate:
        """Request an estimate of a swap. Cancelling is safe.

        Replies have no request id, so one estimate is in flight at a time, and the others wait for
        their turn.

        Args:
            amount_in: The amount to sell: a plain decimal text, an int or a `Decimal`, above 0.
            asset_in: The asset to sell.
            asset_out: The asset to buy.
            filter_sources: The allowed liquidity sources: ``binance``, ``bybit``, ``gate``.
            network: The network, if needed.
            account: A wallet's address, if needed.

        Raises:
            TypeError: An argument has the wrong type (floats are refused).
            ValueError: An argument is out of its range.
            NotSentError: It could not be sent in time, or there is no connection.
            ServerError: The broker refused.
            RequestTimeoutError: The broker didn't reply in time.
            ConnectionLostError: The connection was lost before the reply.
            ProtocolError: The reply can't be read.
        """
        return await self._call(
            partial(
                self._client.estimate_swap,
                amount_in,
                asset_in,
                asset_out,
                filter_sources=filter_sources,
                network=network,
                account=account,
            )
        )

    async def do_swap(
        self,
        amount_in: Amount,
        asset_in: str,
        asset_out: str,
        *,
        min_out: Amount | None = None,
        slippage_bps: int | None = None,
        filter_sources: Iterable[str] | None = None,
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> SwapReceipt:
        """Swap. The swap is sent at most once, and only over the current connection.

        One swap is in flight at a time, and nothing else is sent until its reply has arrived. Other
        swaps and reads wait for their turn.

        If its reply is missing, or is an error that leaves doubt, the client looks up the order by
        its client order id, on this connection or the next, for up to `resolve_timeout`. Errors
        that leave doubt are those that aren't certainly about this swap, and those that aren't a
        known refusal, for example a timeout or a duplicate. If it turns out later that a refused
        swap may be or is executed, the event `SwapCorrected` reports it.

        With `min_out`, the client requests an estimate first, and sends nothing if it is too low.
        The swap then also carries the accepted slippage, which the broker should enforce. The check
        alone guarantees nothing: the price may change before the broker receives the swap, and the
        broker measures the slippage from its own expectation.

        Cancelling doesn't undo a sent swap: pass your own client order id if you may be cancelled.
        The swap is in `unresolved_swaps` until its outcome is known. The event `SwapResolved` or
        `SwapUnresolved` reports it.

        If the receipt arrives just when the task is cancelled, `resolve_swap` returns it at once,
        and a warning in `logger` has both of its IDs.

        Args:
            amount_in: The amount to sell: a plain decimal text, an int or a `Decimal`, above 0.
            asset_in: The asset to sell.
            asset_out: The asset to buy.
            min_out: The minimum amount to buy, above 0.
            slippage_bps: The accepted slippage, 0 to 10,000 basis points. With `min_out`, the
                stricter of the two applies.
            filter_sources: The allowed liquidity sources: ``binance``, ``bybit``, ``gate``.
            account: A wallet's address, if needed.
            client_order_id: A unique id for this swap, 1 to 64 characters. By default the client
                makes one.

        Returns:
            The broker's receipt: it has accepted the swap.

        Raises:
            TypeError: An argument has the wrong type (floats are refused). Nothing was sent.
            ValueError: An argument is out of its range. Nothing was sent.
            NotSentError: Nothing was sent: repeating is safe.
            SlippageError: The estimate is below `min_out`. Nothing was sent.
            QuoteExpiredError: The estimate has expired. Nothing was sent.
            DuplicateClientOrderIdError: Another swap with this id was possibly sent. `outcome` is
                the outcome of the other swap. Nothing was sent for this one, unless `was_sent` is
                True: then the broker reported a duplicate and has this `order`, which this call or
                an earlier one made.
            ServerError: The broker refused: nothing was executed, as far as is known.
            BrokerError: With `min_out`, the errors of `estimate_swap`. Nothing was sent.
            SwapOutcomeUnknownError: It was possibly sent, and its outcome is unknown: don't repeat
                it, look it up with `resolve_swap`.
        """
        return await self._call_swap(
            partial(
                self._client.do_swap,
                amount_in,
                asset_in,
                asset_out,
                min_out=min_out,
                slippage_bps=slippage_bps,
                filter_sources=filter_sources,
                account=account,
                client_order_id=client_order_id,
            )
        )

    async def swap_and_wait(
        self,
        amount_in: Amount,
        asset_in: str,
        asset_out: str,
        *,
        min_out: Amount | None = None,
        slippage_bps: int | None = None,
        filter_sources: Iterable[str] | None = None,
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> Order:
        """Swap, and follow the order to its final status.

        Cancelling doesn't undo a sent swap. If you may be cancelled, pass your own client order id,
        and continue with `track_order` of that id. If cancelled after the receipt, both ids are in
        a log record.

        An order in a status that isn't documented and never changes is awaited until you cancel the
        call, for example with a timeout.

        Args:
            amount_in: The amount to sell: a plain decimal text, an int or a `Decimal`, above 0.
            asset_in: The asset to sell.
            asset_out: The asset to buy.
            min_out: The minimum amount to buy, above 0, as with `do_swap`.
            slippage_bps: The accepted slippage, 0 to 10,000 basis points. With `min_out`, the
                stricter of the two applies.
            filter_sources: The allowed liquidity sources: ``binance``, ``bybit``, ``gate``.
            account: A wallet's address, if needed.
            client_order_id: A unique id for this swap, 1 to 64 characters. By default the client
                makes one.

        Returns:
            The order in its final status. Check it, because FAILED and CANCELLED are final too.

        Raises:
            OrderUnfinishedError: The broker accepted the swap, and the client ended before the
                order did.
            BrokerError: The errors of `do_swap`.
        """
        return await self._call_swap(
            partial(
                self._client.swap_and_wait,
                amount_in,
                asset_in,
                asset_out,
                min_out=min_out,
                slippage_bps=slippage_bps,
                filter_sources=filter_sources,
                account=account,
                client_order_id=client_order_id,
            )
        )

    def unresolved_swaps(self) -> tuple[UnresolvedSwap, ...]:
        """The swaps that were possibly sent and whose outcome is unknown, oldest first.

        They include swaps in flight and, with a journal, unresolved swaps of earlier processes.
        This also works after the client was closed.
        """
        return self._client.unresolved_swaps()

    async def resolve_swap(self, client_order_id: str) -> SwapReceipt:
        """Look up a swap's outcome, for up to `resolve_timeout`. Cancelling is safe.

        One lookup by client order id is in flight at a time, and the others wait for their turn.

        Args:
            client_order_id: The swap's id. The client need not know it.

        Returns:
            The receipt: the broker accepted the swap. It returns at once if this is already known.

        Raises:
            TypeError: The id isn't a str.
            ValueError: The id is empty, too long, or has a character that can't be sent.
            NotSentError: The swap was waiting to be sent, and in the end nothing was sent.
            ServerError: The broker refused the swap: nothing was executed, as far as is known.
            SwapOutcomeUnknownError: The broker didn't reply, or doesn't know the order, or there is
                no connection. The swap may or may not have been executed.
        """
        return await self._call(partial(self._client.resolve_swap, client_order_id))

    async def reconcile(self) -> tuple[SwapFinding, ...]:
        """Look up every unresolved swap. Cancelling is safe: lookups that have begun go on.

        The lookups of up to 100 swaps begin together and take turns, so a broker that doesn't
        answer delays them for `resolve_timeout` once. If the broker doesn't know a swap that may
        still be executed, the lookup is repeated for `resolve_timeout`. If the swap's signature has
        expired, it is looked up once. In both cases it stays unresolved until `settle_swap` closes
        it.

        Returns:
            The results, one per swap, oldest first.

        Raises:
            NotConnectedError: The client is not connected and can't connect any more.
        """
        return await self._call(self._client.reconcile)

    async def settle_swap(self, client_order_id: str, note: str) -> None:
        """Close an unresolved swap by hand, after you have found its outcome in another way.

        Its id stays used. Cancelling is safe: the swap is closed, but may not be in the journal
        yet.

        Args:
            client_order_id: The swap's id.
            note: How you found the outcome, or why it doesn't matter; the journal keeps it.

        Raises:
            TypeError: An argument isn't a str.
            ValueError: No swap with this id is unresolved, it is being looked up now, or the note
                is empty.
            JournalError: The swap is closed for this client, but the journal could not be written.
                Unless a later write succeeds, the next client will find it unresolved again.
        """
        await self._call(partial(self._client.settle_swap, client_order_id, note))

    async def get_order_status(self, order_id: str) -> Order:
        """Request an order's state. Cancelling is safe.

        Requests for different orders are in flight together. Of several requests for one order, one
        is in flight at a time, and the others wait for their turn.

        Args:
            order_id: The order's id at the broker, or its client order id. The broker documents the
                lookup by client order id only for its REST API.

        Raises:
            TypeError: The id isn't a str.
            ValueError: The id is empty, or has a character that can't be sent.
            NotSentError: It could not be sent in time, or there is no connection.
            ServerError: The broker refused, for example because it doesn't know the order.
            RequestTimeoutError: The broker didn't reply in time.
            ConnectionLostError: The connection was lost before the reply.
            ProtocolError: The reply can't be read.
        """
        return await self._call(partial(self._client.get_order_status, order_id))
