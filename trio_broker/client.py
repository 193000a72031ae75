"""`BrokerWSClient`: the documented methods. How anything is done is the other modules' matter."""

from __future__ import annotations

import itertools
import logging
import math
import os
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, overload

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker import operations, swaps, wire
from trio_broker.erasing import eraser
from trio_broker.exceptions import (
    BrokerError,
    NotSentError,
    OrderUnfinishedError,
    SubscriptionBrokenError,
    fresh,
)
from trio_broker.journal import SwapJournal
from trio_broker.membership import BALANCES, ORDERS, Member
from trio_broker.models import (
    Amount,
    Balance,
    ClientStatistics,
    ConnectionEvent,
    ConnectionState,
    Order,
    SwapEstimate,
    SwapFinding,
    SwapReceipt,
    UnresolvedSwap,
    amount_text,
)
from trio_broker.request import Request
from trio_broker.session import Session
from trio_broker.settings import (
    Limits,
    ReconnectPolicy,
    Settings,
    TransportName,
    from_environment,
    parse_url,
)
from trio_broker.signing import SigningKey
from trio_broker.subscription import BoundedReceiveChannel, Feed, Overflow, Subscription
from trio_broker.supervisor import Supervisor
from trio_broker.swapping import Swapping, check_quote, slippage_left
from trio_broker.tracking import Tracker

T = TypeVar("T")

_number: Final = itertools.count(1)
_root_logger: Final = logging.getLogger("trio_broker")
# Without it, warnings would go to the terminal of a program that has no logging set up.
_root_logger.addHandler(logging.NullHandler())


class _ClientLogger(logging.Logger):
    """A logger below `trio_broker` that goes when its client goes.

    The logging module keeps every logger that it hands out for ever, so a service that makes a
    client per request would grow; and as it doesn't know this one, it can't clear its cache of
    levels when another logger's level changes, so there is none.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name that logging calls
        return self.manager.disable < level >= self.getEffectiveLevel()


class _Tracked(AbstractAsyncContextManager[Subscription[Order]]):
    """What `BrokerWSClient.track_order` gives: tracks an order for as long as its block lasts."""

    def __init__(
        self, supervisor: Supervisor, order_id: str, buffer_size: int, *, stop_at_partial: bool
    ) -> None:
        self._supervisor = supervisor
        self._order_id = order_id
        self._stop_at_partial = stop_at_partial
        self._feed: Feed[Order] = Feed(ORDERS + order_id, buffer_size, on_close=self._leave)
        self._is_entered = False
        self._tracker: Tracker

    @enable_ki_protection
    async def __aenter__(self) -> Subscription[Order]:
        await trio.lowlevel.checkpoint()
        self._supervisor.check_usable()
        if self._is_entered:
            raise RuntimeError("what track_order gives is entered once: call it again")
        self._is_entered = True
        self._subscription = Subscription(self._feed)
        self._tracker = self._supervisor.tracking.track(
            self._order_id, self._feed, stop_at_partial=self._stop_at_partial
        )
        return self._subscription

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._feed.end()  # for clones, which may outlive the block
        self._leave()
        await self._subscription.aclose()

    def _leave(self) -> None:
        self._supervisor.tracking.leave(self._tracker)


class BrokerWSClient(trio.abc.AsyncResource):
    """A client of TheOne Trading API over one authenticated WebSocket.

    Use it once, under ``async with``, or with `connect` in a nursery of your own. Its methods may
    be called by many tasks at a time. Cancelling any of them is safe: nothing is left behind, and
    a later call gets its own answer.
    """

    @enable_ki_protection
    def __init__(
        self,
        api_key: str,
        secret_key: str,
        ws_url: str,
        *,
        reconnect: ReconnectPolicy | None = None,
        limits: Limits | None = None,
        connect_timeout: float = 10.0,
        auth_timeout: float = 10.0,
        heartbeat_interval: float = 30.0,
        heartbeat_timeout: float = 10.0,
        write_timeout: float = 10.0,
        request_timeout: float = 10.0,
        reply_grace: float = 30.0,
        resolve_timeout: float = 30.0,
        poll_interval: float = 15.0,
        close_timeout: float = 5.0,
        transport: TransportName = "trio-websocket",
        signing_key: SigningKey = "derived",
        ssl_context: ssl.SSLContext | None = None,
        allow_insecure: bool = False,
        journal: SwapJournal | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a client; nothing is opened yet.

        Args:
            api_key: The API key.
            secret_key: The secret key; it is never sent.
            ws_url: The WebSocket's URL, ``wss://…``; ``ws://`` only to this machine.
            reconnect: How a lost connection is replaced, where not as `ReconnectPolicy()` says.
            limits: The broker's limits, where they differ from the documented ones.
            connect_timeout: Seconds for DNS, TCP, TLS and the WebSocket handshake together.
            auth_timeout: Seconds that the broker has to authenticate this client.
            heartbeat_interval: Seconds between two pings.
            heartbeat_timeout: Seconds of silence after a ping that make the peer dead.
            write_timeout: Seconds without reading that make the peer dead.
            request_timeout: Seconds from a call to its reply, waiting for a turn included.
            reply_grace: Seconds for which the reply to a given-up request is still waited for.
            resolve_timeout: Seconds for which the outcome of a swap is asked for, when its reply
                hasn't come or says nothing.
            poll_interval: Seconds of silence, after which a tracked order is asked about.
            close_timeout: Seconds for a polite goodbye.
            transport: The library that speaks WebSocket. ``"websockets"`` is faster, and needs the
                extra ``speed``.
            signing_key: ``"derived"`` signs as the broker's own clients do, ``"raw"`` with the
                secret itself, as its documentation shows.
            ssl_context: For ``wss://``, where the default context isn't what you need.
            allow_insecure: Whether ``ws://`` may leave this machine.
            journal: Where swaps are written down before they leave, so that a crash loses none.
            clock: The wall clock in seconds since the epoch, for timestamps.

        Raises:
            ConfigurationError: An option can't work; the message names it.
        """
        self._settings = Settings(
            api_key=api_key,
            secret_key=secret_key,
            endpoint=parse_url(ws_url, allow_insecure=allow_insecure),
            reconnect=reconnect if reconnect is not None else ReconnectPolicy(),
            limits=limits if limits is not None else Limits(),
            connect_timeout=connect_timeout,
            auth_timeout=auth_timeout,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            write_timeout=write_timeout,
            request_timeout=request_timeout,
            reply_grace=reply_grace,
            resolve_timeout=resolve_timeout,
            poll_interval=poll_interval,
            close_timeout=close_timeout,
            transport=transport,
            signing_key=signing_key,
            ssl_context=ssl_context,
            clock=clock,
        )
        self.logger: logging.Logger = _ClientLogger(f"trio_broker.client.{next(_number)}")
        self.logger.parent = _root_logger
        erase = eraser((api_key, secret_key), signatures=True)
        self._session = Session(reply_grace=reply_grace, erase=erase)
        self._supervisor = Supervisor(self._settings, self._session, self.logger)
        self._swapping = Swapping(
            self._settings, self._session, self._supervisor, journal, self.logger
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **options: Any) -> Self:
        """Make a client from the documented environment variables.

        Args:
            environ: Where ``BROKER_API_KEY``, ``BROKER_SECRET_KEY`` and ``BROKER_WS_URL`` or
                ``BROKER_BASE_URL`` are looked up.
            **options: The constructor's keyword options.

        Raises:
            ConfigurationError: A variable is missing, or can't work; the message names it.
        """
        api_key, secret_key, ws_url = from_environment(environ)
        return cls(api_key, secret_key, ws_url, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.endpoint.url} {self.state.value}>"

    # --- Opening and closing ---------------------------------------------------------------

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Connect and authenticate.

        Raises:
            RuntimeError: The client was used before, or this isn't a Trio task.
            BrokerError: As `connect`.
        """
        self._check_unused()
        # Made here, as a client may be made before Trio runs.
        self._around = AsyncExitStack()
        self._nursery = await self._around.enter_async_context(trio.open_nursery())
        try:
            await self.connect(self._nursery)
        except BaseException:
            self._keep_nursery_quiet()
            await self._around.aclose()
            raise
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; an exception of the block's own comes through as it was raised."""
        cancelled = trio.current_effective_deadline() == -math.inf
        try:
            # No `Cancelled` may replace an exception that is on its way.
            with trio.CancelScope(shield=exc_value is not None):
                if exc_value is not None and (cancelled or not isinstance(exc_value, Exception)):
                    self._supervisor.abort()
                await self.aclose()
        finally:
            self._keep_nursery_quiet()
            await self._around.aclose()

    def _keep_nursery_quiet(self) -> None:
        """Let the client's own nursery, in which no task runs any more, raise nothing.

        It isn't told of an exception that is on its way, as it would wrap it into a group. The
        background task may have ended with a `Cancelled` from around the client: shielded, the
        nursery keeps that to itself, as it would replace the exception otherwise.
        """
        self._nursery.cancel_scope.shield = True

    @enable_ki_protection
    async def connect(self, nursery: trio.Nursery) -> None:
        """Connect and authenticate, with the background tasks in a nursery of the caller's.

        The nursery stays busy until `aclose` or its cancellation. No later failure is raised into
        it. Cancelled, this leaves no task.

        Args:
            nursery: The nursery.

        Raises:
            RuntimeError: The client was used before, or this isn't a Trio task.
            JournalError: The journal of swaps can't be read, or another client uses it.
            ConnectFailedError: No WebSocket could be opened.
            ReconnectFailedError: With `ReconnectPolicy.retry_first`: no try has worked.
            AuthenticationError: The broker refused the keys.
            AuthenticationTimeoutError: The broker didn't answer.
            ServerError: The broker refused, for the timestamp say.
            ProtocolError: The broker's answer can't be read.
            ConnectionLostError: The connection was lost meanwhile.
            ClientClosedError: The client was closed meanwhile.
        """
        self._check_unused()
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._swapping.open()
        try:
            nursery.start_soon(self._supervisor.run, name=f"{self!r}")
        except BaseException:  # a nursery that is closed, say
            with trio.move_on_after(self._settings.close_timeout, shield=True):
                await self._swapping.close()
            raise
        self._supervisor.start()
        try:
            await self._supervisor.wait_connected()
        except BaseException:
            self._supervisor.abort()
            with trio.CancelScope(shield=True):
                await self._supervisor.wait_over()
            raise

    @enable_ki_protection
    async def aclose(self) -> None:
        """End the WebSocket politely, and every stream. Closing twice is fine.

        Takes at most `close_timeout`; cancelled, it closes at once and raises `Cancelled`.
        """
        self._supervisor.request_close()
        try:
            await self._supervisor.wait_over()
        except BaseException:
            self._supervisor.abort()
            with trio.CancelScope(shield=True):
                await self._supervisor.wait_over()
            raise

    async def close(self) -> None:
        """`aclose` by its documented name."""
        await self.aclose()

    def _check_unused(self) -> None:
        if not trio.lowlevel.in_trio_task():
            # Trio's own words would be about its innards.
            raise RuntimeError(
                "a client needs Trio: trio.run, or anyio's trio backend; asyncio programs use "
                "trio_broker.aio"
            )
        if self.state is not ConnectionState.IDLE:
            raise RuntimeError("a client is used once: make a new one")

    # --- The connection --------------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """Where the client stands."""
        return self._supervisor.state

    def is_connected(self) -> bool:
        """True while connected and authenticated."""
        return self.state.is_connected

    @property
    def max_reconnect_attempts(self) -> int | None:
        """How many tries in a row may fail; None for ever. It may be set while running.

        Raises:
            ConfigurationError: Set to what can't be.
        """
        return self._supervisor.backoff.policy.max_attempts

    @max_reconnect_attempts.setter
    def max_reconnect_attempts(self, value: int | None) -> None:
        backoff = self._supervisor.backoff
        backoff.policy = attrs.evolve(backoff.policy, max_attempts=value)

    @property
    def reconnect_delay(self) -> float:
        """Seconds before the first try to connect again. It may be set while running.

        Raises:
            ConfigurationError: Set to what can't be.
        """
        return self._supervisor.backoff.policy.initial_delay

    @reconnect_delay.setter
    def reconnect_delay(self, value: float) -> None:
        backoff = self._supervisor.backoff
        backoff.policy = attrs.evolve(backoff.policy, initial_delay=value)

    @property
    def latency(self) -> float | None:
        """The last heartbeat's round trip in seconds, None before the first."""
        return self._supervisor.latency

    async def wait_connected(self) -> None:
        """Wait until connected, over any outage. Cancelling is safe.

        Raises:
            NotConnectedError: The client was never started, or is closed.
            BrokerError: What the connection failed with for good.
        """
        await self._supervisor.wait_connected()

    async def wait_closed(self) -> None:
        """Wait until the client is closed. Cancelling is safe.

        Raises:
            BrokerError: What the connection failed with for good.
        """
        await self._supervisor.wait_closed()

    def events(self) -> BoundedReceiveChannel[ConnectionEvent]:
        """What happens to the connection from now on.

        Returns:
            A receive channel that ends with the client. It keeps the last 1,024 events for a slow
            reader.
        """
        return self._supervisor.events.open()

    def messages(self) -> BoundedReceiveChannel[str | bytes]:
        """Every message from the broker from now on, as it came, for debugging.

        Returns:
            A receive channel that ends with the client. It keeps the last 1,024 messages for a
            slow reader.
        """
        return self._supervisor.messages.open()

    def statistics(self) -> ClientStatistics:
        """Counters of what this client has done and does."""
        session, channels = self._session, self._supervisor.channels
        return ClientStatistics(
            messages_sent=session.sent,
            messages_received=session.received,
            odd_messages=session.odd,
            requests_waiting=session.waiting,
            requests_in_flight=session.in_flight,
            channels=channels.wanted,
            subscriptions=channels.subscriptions,
            tracked_orders=self._supervisor.tracking.orders,
        )

    # --- Channels --------------------------------------------------------------------------

    @overload
    async def subscribe(
        self,
        channel: Literal["balances"],
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> Subscription[tuple[Balance, ...]]: ...

    @overload
    async def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> Subscription[Any]: ...

    @enable_ki_protection
    async def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Subscription[Any]:
        """Subscribe to a channel.

        Several subscriptions to one channel share it at the broker. Cancelling is safe: the
        channel is given up again.

        Args:
            channel: ``balances``, or ``orders:<order id>``.
            buffer_size: How many messages are kept for a slow reader, at least 1.
            overflow: ``"drop_oldest"`` drops, counts and marks the gap; ``"error"`` ends the
                subscription with `SlowConsumerError`.
            snapshot: Whether the state at subscription comes too.

        Returns:
            A receive channel of messages, once the broker has acknowledged.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range.
            SubscriptionLimitError: There are as many channels as there may be.
            MessageTooLargeError: The channel's name is too long.
            NotSentError: It couldn't be sent in time, or there is no connection.
            ServerError: The broker refused.
            RequestTimeoutError: The broker didn't answer in time.
            ConnectionLostError: The connection was lost meanwhile.
        """
        wire.check_text(channel, "channel")
        request = operations.subscription("subscribe", channel, 0)
        operations.check_size(request, self._settings.limits.max_message_size)
        channels = self._supervisor.channels
        member: Member
        feed: Feed[Any] = Feed(
            channel,
            buffer_size=buffer_size,
            overflow=overflow,
            on_close=lambda: channels.leave(member),
            on_drained=lambda: channels.drained(member),
        )
        await trio.lowlevel.checkpoint_if_cancelled()
        self._supervisor.check_usable()
        answer: list[BrokerError | None] = []
        answered = trio.Event()

        def on_ready(error: BrokerError | None) -> None:
            answer.append(error)
            answered.set()

        subscription = Subscription(feed)
        member = channels.join(feed, on_ready, snapshot=snapshot)
        try:
            # The request has a deadline of its own; this one is for a channel that waits for room.
            with trio.move_on_after(self._settings.request_timeout):
                await answered.wait()
        except BaseException:
            subscription.close()
            raise
        if not answer:
            overdue = channels.overdue(member)
            subscription.close()
            raise overdue
        if answer[0] is not None:
            raise fresh(answer[0])
        return subscription

    async def subscribe_balances(
        self,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Subscription[tuple[Balance, ...]]:
        """Subscribe to the account's balances.

        A push replaces the assets that it names; a snapshot is the whole account. Arguments and
        errors are `subscribe`'s.
        """
        return await self.subscribe(
            BALANCES, buffer_size=buffer_size, overflow=overflow, snapshot=snapshot
        )

    async def subscribe_order(
        self,
        order_id: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Subscription[Order]:
        """Subscribe to an order; each message is its whole state, and none is older than the last.

        Arguments and errors are `subscribe`'s, with the order's id for the channel.
        """
        wire.check_text(order_id, "order_id")
        return await self.subscribe(
            ORDERS + order_id, buffer_size=buffer_size, overflow=overflow, snapshot=snapshot
        )

    def track_order(
        self, order_id: str, *, stop_at_partial: bool = False, buffer_size: int = 64
    ) -> AbstractAsyncContextManager[Subscription[Order]]:
        """Follow an order to its final status, whatever happens to the connection meanwhile.

        Entered under ``async with``, it gives a channel of the order's states from then on. None is
        older than the last, and none says the same. It ends by itself after a final status: FILLED,
        FAILED or CANCELLED. The order is subscribed to, and asked about after that, after
        every reconnection and after `poll_interval` of silence: neither a lost push nor a mute
        broker holds it for ever. A broker that doesn't know the order doesn't end it either.

        Thousands may be tracked. Those that find no place among the connection's channels, which
        subscriptions need first, are asked about by turns. Leaving the block ends it, for its
        clones as well.

        Args:
            order_id: The order's id at the broker, or its client order id.
            stop_at_partial: Whether a partial fill is an end too.
            buffer_size: How many messages are kept for a slow reader, at least 1; the oldest go.

        Returns:
            A context manager. Entering it raises `NotConnectedError` if there is no connection,
            and none can come; it doesn't wait for the broker. An iteration ends after a final
            status, or once the client is closed.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range.
            MessageTooLargeError: The id is too long.
        """
        operations.check_size(
            operations.order_status(order_id, math.inf), self._settings.limits.max_message_size
        )
        return _Tracked(self._supervisor, order_id, buffer_size, stop_at_partial=stop_at_partial)

    @enable_ki_protection
    async def unsubscribe(self, channel: str) -> None:
        """End all subscriptions to a channel, here and at the broker.

        Here they end at once, even if this is cancelled. Where there are none, nothing is sent. An
        order that is tracked goes on being tracked, and its channel may stay for that.

        Args:
            channel: The channel's name.

        Raises:
            TypeError: The name isn't a str.
            ValueError: The name is empty, or has a character that can't be sent.
            NotConnectedError: There is no connection, and none can come.
        """
        wire.check_text(channel, "channel")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._supervisor.check_usable()
        left = trio.Event()
        self._supervisor.channels.drop(channel, left.set)
        with trio.move_on_after(self._settings.request_timeout):
            await left.wait()

    # --- Operations ------------------------------------------------------------------------

    async def get_balances(self) -> tuple[Balance, ...]:
        """Ask for the account's balances. Cancelling is safe.

        Raises:
            NotSentError: It couldn't be sent in time, or there is no connection.
            ServerError: The broker refused.
            RequestTimeoutError: The broker didn't answer in time.
            ConnectionLostError: The connection was lost meanwhile.
            ProtocolError: The reply can't be read.
        """
        balances: tuple[Balance, ...] = await self._ask(operations.balances(self._deadline()))
        return balances

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
        """Ask what a swap would bring now. Cancelling is safe.

        Args:
            amount_in: How much is sold: a plain decimal text, an int or a `Decimal`, above 0.
            asset_in: The asset that is sold.
            asset_out: The asset that is bought.
            filter_sources: Liquidity sources to keep to: ``binance``, ``bybit``, ``gate``.
            network: The network, where it matters.
            account: A wallet's address, where it matters.

        Raises:
            TypeError: An argument has the wrong type (a float is no amount).
            ValueError: An argument is out of its range.
            NotSentError: It couldn't be sent in time, or there is no connection.
            ServerError: The broker refused.
            RequestTimeoutError: The broker didn't answer in time.
            ConnectionLostError: The connection was lost meanwhile.
            ProtocolError: The reply can't be read.
        """
        request = operations.estimate(
            amount_in,
            asset_in,
            asset_out,
            filter_sources=filter_sources,
            network=network,
            account=account,
            deadline=self._deadline(),
        )
        estimate: SwapEstimate = await self._ask(request)
        return estimate

    @enable_ki_protection
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
        """Swap. It is sent at most once, and only over a connection that is there now.

        If no reply comes, the broker is asked for the order by its client order id, on this
        connection or the next, for up to `resolve_timeout`.

        With `min_out`, an estimate is asked for first, and nothing is sent unless it brings that
        much. The swap then carries how much worse than expected it may become, so that the broker
        holds to it too. The check alone promises nothing, as the price may move before the broker
        has the swap; what it expects by then is its own affair.

        Cancelling doesn't take back what has left: pass a client order id of your own if you may
        be cancelled. The swap is in `unresolved_swaps` then until its outcome is known, which an
        event tells, `SwapResolved` or `SwapUnresolved`.

        Args:
            amount_in: How much is sold: a plain decimal text, an int or a `Decimal`, above 0.
            asset_in: The asset that is sold.
            asset_out: The asset that is bought.
            min_out: How much must be bought at least, above 0.
            slippage_bps: How much less than expected is acceptable, 0 to 10,000 basis points; with
                `min_out` it is the stricter of the two that counts.
            filter_sources: Liquidity sources to keep to: ``binance``, ``bybit``, ``gate``.
            account: A wallet's address, where it matters.
            client_order_id: A name for this swap that none had before, of 1 to 64 characters; made
                where none is given.

        Returns:
            The broker's receipt: it has taken the swap.

        Raises:
            TypeError: An argument has the wrong type (a float is no amount). Nothing was sent.
            ValueError: An argument is out of its range. Nothing was sent.
            NotSentError: Nothing was sent: repeating is safe.
            SlippageError: The estimate brings less than `min_out`. Nothing was sent.
            QuoteExpiredError: The estimate has ended. Nothing was sent.
            DuplicateClientOrderIdError: Another swap with this id may have left; nothing was sent
                for this one. Its `outcome` tells what is known of the other one.
            ServerError: The broker refused: nothing was executed.
            BrokerError: With `min_out`, as `estimate_swap`: nothing was sent.
            SwapOutcomeUnknownError: It left, and what became of it isn't known: don't repeat it,
                ask for it with `resolve_swap`.
        """
        if filter_sources is not None and not isinstance(filter_sources, str):
            filter_sources = list(filter_sources)  # it goes out twice
        optional: dict[str, Any] = {"filter_sources": filter_sources, "account": account}

        def request(slippage_bps: int | None) -> Request:
            return self._swap_request(
                amount_in,
                asset_in,
                asset_out,
                slippage_bps=slippage_bps,
                client_order_id=client_order_id,
                **optional,
            )

        # What can't be sent is refused before an estimate is asked for.
        swap = request(slippage_bps)
        if min_out is not None:
            least = Decimal(amount_text(min_out, "min_out"))
            estimate = await self.estimate_swap(amount_in, asset_in, asset_out, **optional)
            check_quote(estimate, least, self._supervisor.wall_time())
            left = slippage_left(estimate, least)
            swap = request(left if slippage_bps is None else min(left, slippage_bps))
        return await self._swapping.swap(swap, Decimal(amount_in), (asset_in, asset_out))

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
        """Swap, and follow the order to its end.

        Cancelling takes nothing back, as with `do_swap`: pass a client order id of your own if you
        may be cancelled, and go on with `track_order` of that id. Cancelled after the receipt, it
        tells `logger` both ids.

        Args:
            amount_in: How much is sold: a plain decimal text, an int or a `Decimal`, above 0.
            asset_in: The asset that is sold.
            asset_out: The asset that is bought.
            min_out: How much must be bought at least, above 0, as with `do_swap`.
            slippage_bps: How much less than expected is acceptable, 0 to 10,000 basis points; with
                `min_out` it is the stricter of the two that counts.
            filter_sources: Liquidity sources to keep to: ``binance``, ``bybit``, ``gate``.
            account: A wallet's address, where it matters.
            client_order_id: A name for this swap that none had before, of 1 to 64 characters; made
                where none is given.

        Returns:
            The order in its final status: look at it, since FAILED and CANCELLED are final too.

        Raises:
            OrderUnfinishedError: The broker has taken the swap, and the client ended before the
                order did.
            BrokerError: As `do_swap`.
        """
        receipt = await self.do_swap(
            amount_in,
            asset_in,
            asset_out,
            min_out=min_out,
            slippage_bps=slippage_bps,
            filter_sources=filter_sources,
            account=account,
            client_order_id=client_order_id,
        )
        return await self._final_state(receipt)

    async def _final_state(self, receipt: SwapReceipt) -> Order:
        unfinished = OrderUnfinishedError(receipt.order_id, receipt.client_order_id)
        try:
            async with self.track_order(receipt.order_id) as progress:
                async for message in progress:
                    if message.data.is_final:
                        return message.data
        except (NotSentError, SubscriptionBrokenError, ValueError) as error:
            # As they are they would say that nothing was sent, or not which order it is.
            raise unfinished from error
        except BaseException:
            # The swap's outcome is known, so no event tells it, and the caller may have no name.
            self.logger.warning(
                "swap %s was taken as order %s, and whoever waited for its end has gone",
                receipt.client_order_id,
                receipt.order_id,
            )
            raise
        raise unfinished

    def _swap_request(
        self,
        amount_in: Amount,
        asset_in: str,
        asset_out: str,
        *,
        slippage_bps: int | None,
        filter_sources: Iterable[str] | None,
        account: str | None,
        client_order_id: str | None,
    ) -> Request:
        if client_order_id is None:
            client_order_id = swaps.new_client_order_id()
        request = operations.swap(
            amount_in,
            asset_in,
            asset_out,
            slippage_bps=slippage_bps,
            filter_sources=filter_sources,
            account=account,
            client_order_id=client_order_id,
            deadline=self._deadline(),
        )
        operations.check_size(request, self._settings.limits.max_message_size)
        return request

    def unresolved_swaps(self) -> tuple[UnresolvedSwap, ...]:
        """The swaps that may have left, and whose outcome isn't known now; oldest first.

        One that is in flight at this moment is among them, and so is, with a journal, what an
        earlier process has left. It may be called after the client's end as well.
        """
        return self._supervisor.blotter.unresolved()

    async def resolve_swap(self, client_order_id: str) -> SwapReceipt:
        """Ask for a swap's outcome, for up to `resolve_timeout`. Cancelling is safe.

        Args:
            client_order_id: Its id; any one, be it that this client knows nothing of it.

        Returns:
            The receipt: the broker has taken it. At once, where that is known already.

        Raises:
            TypeError: The id isn't a str.
            ValueError: The id is empty, too long, or has a character that can't be sent.
            NotSentError: It was under way, and in the end nothing was sent.
            ServerError: The broker has refused the swap: nothing was executed.
            SwapOutcomeUnknownError: The broker didn't answer, or doesn't know the order, or there
                is no connection to ask over: that is no word on whether it was executed.
        """
        swaps.check_client_order_id(client_order_id)
        return await self._swapping.resolve(client_order_id)

    async def reconcile(self) -> tuple[SwapFinding, ...]:
        """Ask for every unresolved swap, one after another. Cancelling is safe.

        A swap that the broker doesn't know is asked for until `resolve_timeout` has passed as long
        as it may still be executed, and once if its signature has expired. It stays unresolved
        even then, until `settle_swap` closes it.

        Returns:
            What was found, swap by swap, oldest first.

        Raises:
            NotConnectedError: There is no connection, nor will there be one.
        """
        return await self._swapping.reconcile()

    async def settle_swap(self, client_order_id: str, note: str) -> None:
        """Close an unresolved swap by hand, once you have found out about it in another way.

        Its id stays used. Cancelling is safe: it is closed, and perhaps not written down yet.

        Args:
            client_order_id: Its id.
            note: How you have found out, or why it doesn't matter; the journal keeps it.

        Raises:
            TypeError: An argument isn't a str.
            ValueError: No swap with this id is unresolved, it is being asked for now, or the note
                is empty.
            JournalError: The swap is closed for this client, but that couldn't be written down:
                unless that works later, the next client will take it for unresolved again.
        """
        swaps.check_client_order_id(client_order_id)
        if not isinstance(note, str):
            raise TypeError(f"note must be a str, not {type(note).__name__}")
        if not note.strip():
            raise ValueError("note must not be empty: it is all that will be known of this swap")
        await self._swapping.settle(client_order_id, note)

    async def get_order_status(self, order_id: str) -> Order:
        """Ask for an order's state. Cancelling is safe.

        Args:
            order_id: The order's id at the broker.

        Raises:
            TypeError: The id isn't a str.
            ValueError: The id is empty, or has a character that can't be sent.
            NotSentError: It couldn't be sent in time, or there is no connection.
            ServerError: The broker refused, as it doesn't know the order say.
            RequestTimeoutError: The broker didn't answer in time.
            ConnectionLostError: The connection was lost meanwhile.
            ProtocolError: The reply can't be read.
        """
        order: Order = await self._ask(operations.order_status(order_id, self._deadline()))
        return order

    def _deadline(self) -> float:
        # Outside of a Trio run, the call fails for its arguments or for its first checkpoint.
        return trio.current_time() + self._settings.request_timeout

    async def _ask(self, request: Request) -> Any:
        await self._run(request)
        if request.error is not None:
            raise fresh(request.error)
        return request.result

    @enable_ki_protection
    async def _run(self, request: Request) -> None:
        operations.check_size(request, self._settings.limits.max_message_size)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._supervisor.check_usable()
        ended = trio.Event()
        request.on_end = lambda _: ended.set()
        self._session.submit(request, trio.current_time())
        try:
            await ended.wait()
        except BaseException:
            self._session.give_up(request, trio.current_time())
            raise
