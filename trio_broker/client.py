"""`BrokerWSClient`: the documented methods. Other modules implement them."""

from __future__ import annotations

import itertools
import logging
import math
import os
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._channels.channel import ORDERS
from trio_broker._checkpoints import always_checkpoint, checkpoint_after
from trio_broker._client_log import ClientLog, client_logger
from trio_broker._connection.driver import Driver
from trio_broker._connection.supervisor import Supervisor
from trio_broker._engine import Engine
from trio_broker._journal.journal import SwapJournal
from trio_broker._live_streams import LiveStreams
from trio_broker._protocol import codec, requests
from trio_broker._protocol.order_ids import check_client_order_id
from trio_broker._protocol.requests import Request, Trade
from trio_broker._quiet_nursery import QuietNursery
from trio_broker._redactor import Redactor
from trio_broker._sealed import Sealed
from trio_broker._secret import Secret, Variables
from trio_broker._streams.buffer import Overflow
from trio_broker._streams.opening import Opening
from trio_broker._streams.subscription import BoundedReceiveChannel, Subscription
from trio_broker._swap_executor import SwapExecutor, new_client_order_id
from trio_broker._swaps.quotes import check_quote, slippage_left
from trio_broker.events import ConnectionEvent
from trio_broker.exceptions import (
    ConfigurationError,
    fresh,
)
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
    amount_text,
)
from trio_broker.settings import (
    DIALECT_VARIABLE,
    Limits,
    ReconnectPolicy,
    TransportName,
    make_settings,
    parse_dialect,
    read_variables,
)
from trio_broker.signing import SigningKey, hmac_key

INSTEAD_OF_CALLBACKS: Final = (
    "read a stream: 'async with client.subscribe(…) as updates:', client.events() or "
    "client.messages()"
)

_number: Final = itertools.count(1)


class BrokerWSClient(Sealed, trio.abc.AsyncResource):
    """A client of TheOne Trading API over one authenticated WebSocket.

    Use it once, under ``async with``, or with `connect` in your own nursery. Many tasks may call
    its methods concurrently. Cancelling any call is safe: it leaves nothing behind, and a later
    call gets its own reply.

    Unknown attributes can't be set, because there are no callbacks. A subclass must declare its
    attributes.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_around",
        "_driver",
        "_engine",
        "_log",
        "_name",
        "_settings",
        "_streams",
        "_supervisor",
        "_swap_executor",
        "_url",
    )

    logger: logging.Logger

    _instead = INSTEAD_OF_CALLBACKS

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
        reply_grace: float = 5.0,
        resolve_timeout: float = 30.0,
        poll_interval: float = 15.0,
        close_timeout: float = 5.0,
        transport: TransportName = "trio-websocket",
        dialect: Dialect = "clients",
        signing_key: SigningKey | None = None,
        refusal_texts: Sequence[str] = (),
        ssl_context: ssl.SSLContext | None = None,
        allow_insecure: bool = False,
        journal: SwapJournal | None = None,
        clock: Callable[[], float] = time.time,
        name: str | None = None,
    ) -> None:
        """Make a client; it doesn't connect yet.

        Args:
            api_key: The API key.
            secret_key: The secret key; it is never sent.
            ws_url: The WebSocket's URL, ``wss://…``; ``ws://`` only to this machine.
            reconnect: When to reconnect; by default `ReconnectPolicy()`.
            limits: The broker's limits; by default the documented ones, `Limits()`.
            connect_timeout: Seconds for reading CA certificates, DNS, TCP, TLS and the WebSocket
                handshake together.
            auth_timeout: Seconds to wait for the authentication reply.
            heartbeat_interval: Seconds between two pings.
            heartbeat_timeout: Seconds to wait for a pong before the connection counts as dead.
            write_timeout: Seconds that a write may take before the connection counts as dead.
            request_timeout: Seconds from a call to its reply, including the time in the queue.
            reply_grace: Seconds to wait for the reply to an abandoned request, before the next
                request of its operation gets a new connection. It doubles for an operation whose
                replies keep missing it, up to 60.
            resolve_timeout: Seconds to look up a swap whose reply is missing or leaves doubt.
            poll_interval: Seconds without an update before a tracked order is polled.
            close_timeout: Seconds for the closing handshake.
            transport: The WebSocket library. ``"websockets"`` is faster and needs the extra
                ``speed``.
            dialect: The form of requests: ``"clients"`` as the broker's own clients send them,
                ``"docs"`` as its documentation shows them.
            signing_key: ``"derived"`` signs as the broker's own clients do, ``"raw"`` with the
                secret itself, as its documentation shows. By default as `dialect` requires.
            refusal_texts: Parts of the broker's error texts, without regard to case. An error of a
                swap that contains one counts as a refusal: nothing was executed. A word of doubt,
                such as "timeout" or "duplicate", still wins.
            ssl_context: The TLS context for ``wss://``, if Python's default doesn't fit.
            allow_insecure: Allow plaintext connections (``ws://``) to remote hosts.
            journal: Records swaps on disk before they are sent, so that they survive a crash.
            clock: The wall clock in seconds since the epoch, for timestamps.
            name: The client's name in its repr, log records and events: a printable str without
                dots. By default ``client-1``, ``client-2``, … With a name, `logger` is
                ``logging.getLogger(f"trio_broker.client.{name}")``.

        Raises:
            ConfigurationError: An option is invalid; the message names it.
        """
        # From here on, no frame holds a key, because a traceback with locals would show it.
        keys = Secret(api_key), Secret(secret_key)
        url = Secret(ws_url)
        api_key = secret_key = ws_url = ""  # not `del`, which confuses some tools
        options: dict[str, Any] = {
            "reconnect": reconnect if reconnect is not None else ReconnectPolicy(),
            "limits": limits if limits is not None else Limits(),
            "connect_timeout": connect_timeout,
            "auth_timeout": auth_timeout,
            "heartbeat_interval": heartbeat_interval,
            "heartbeat_timeout": heartbeat_timeout,
            "write_timeout": write_timeout,
            "request_timeout": request_timeout,
            "reply_grace": reply_grace,
            "resolve_timeout": resolve_timeout,
            "poll_interval": poll_interval,
            "close_timeout": close_timeout,
            "transport": transport,
            "dialect": dialect,
            "signing_key": signing_key,
            "refusal_texts": refusal_texts,
            "ssl_context": ssl_context,
            "clock": clock,
            "name": name,
        }
        self._settings = make_settings(*keys, url, allow_insecure=allow_insecure, **options)
        self._name = name if name is not None else f"client-{next(_number)}"
        self.logger = client_logger(self._name, is_registered=name is not None)
        redactor = Redactor([*keys, Secret(hmac_key(keys[1]).decode())])
        self._url = redactor.name(self._settings.endpoint.url)
        self._log = ClientLog(self.logger, self._name, self._url, redactor)
        limits = self._settings.limits
        self._engine = Engine(
            redactor,
            max_subscriptions=limits.max_subscriptions,
            messages_per_second=limits.messages_per_second,
            max_receive_size=limits.max_receive_size,
            request_timeout=request_timeout,
            reply_grace=reply_grace,
            resolve_timeout=resolve_timeout,
            poll_interval=poll_interval,
            dialect=dialect,
            refusal_texts=self._settings.refusal_texts,
        )
        self._driver = Driver(self._settings, self._engine, self._log, journal)
        self._supervisor = Supervisor(self._settings, self._driver, self._log, redactor, journal)
        self._streams = LiveStreams(self._settings, self._driver, self._supervisor, self._log)
        self._swap_executor = SwapExecutor(
            self._settings, self._driver, self._supervisor, journal, self._log
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Self:
        """Make a client from the documented environment variables.

        Args:
            environ: The mapping with ``BROKER_API_KEY``, ``BROKER_SECRET_KEY`` and
                ``BROKER_WS_URL`` or ``BROKER_BASE_URL``, and perhaps ``BROKER_DIALECT``; by default
                the process's environment.
            **options: The constructor's keyword options. They replace those of the environment.

        Raises:
            ConfigurationError: A variable is missing or invalid; the message names it.
        """
        variables = Variables(os.environ if environ is None else environ)
        environ = None  # for tracebacks with locals
        try:
            dialect = parse_dialect(variables.get(DIALECT_VARIABLE))
            if dialect is not None:
                options.setdefault("dialect", dialect)
            return cls(*read_variables(variables), **options)
        except ConfigurationError as error:
            failure = fresh(error)
        raise failure

    def __repr__(self) -> str:
        if not hasattr(self, "_driver"):  # in a traceback of the constructor
            return f"<{type(self).__name__}>"
        return f"<{type(self).__name__} {self._name!r} {self._url} {self.state.value}>"

    # --- Opening and closing ---------------------------------------------------------------

    @always_checkpoint
    async def __aenter__(self) -> Self:
        """Connect and authenticate.

        Raises:
            RuntimeError: The client was used before, or this isn't a Trio task.
            BrokerError: As `connect`.
        """
        self._check_unused()
        # Made here, because a client may be made before Trio runs.
        self._around = AsyncExitStack()
        nursery = await self._around.enter_async_context(QuietNursery())
        try:
            await self.connect(nursery)
        except BaseException:
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
        """Close the client; an exception from the block is re-raised unchanged."""
        cancelled = trio.current_effective_deadline() == -math.inf
        try:
            # No `Cancelled` may replace an exception from the block.
            with trio.CancelScope(shield=exc_value is not None):
                if exc_value is not None and (cancelled or not isinstance(exc_value, Exception)):
                    self._supervisor.abort()
                await self.aclose()
        finally:
            await self._around.aclose()

    @always_checkpoint
    async def connect(self, nursery: trio.Nursery) -> None:
        """Connect and authenticate, with the background tasks in the caller's nursery.

        The tasks run until `aclose` or until the nursery is cancelled. Later failures aren't raised
        into the nursery. Cancelling is safe: no task is left running.

        Args:
            nursery: The nursery for the background tasks.

        Raises:
            RuntimeError: The client was used before, or this isn't a Trio task.
            JournalError: The journal of swaps can't be read, or another client uses it.
            ConnectFailedError: No WebSocket could be opened.
            ReconnectFailedError: With `ReconnectPolicy.retry_first`: every attempt failed.
            AuthenticationError: The broker refused the keys.
            AuthenticationTimeoutError: The broker didn't reply.
            ServerError: The broker refused, for example because of the timestamp.
            ProtocolError: The broker's reply can't be read.
            ConnectionLostError: The connection was lost before the reply.
            ClientClosedError: The client was closed meanwhile.
        """
        self._check_unused()
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._swap_executor.open()
        try:
            nursery.start_soon(self._supervisor.run, name=f"{self!r}")
        except BaseException:  # for example, the nursery is closed
            with trio.move_on_after(self._settings.close_timeout, shield=True):
                await self._swap_executor.close()
            raise
        self._supervisor.start()
        try:
            await self._supervisor.wait_connected()
        except BaseException:
            self._supervisor.abort()
            with trio.CancelScope(shield=True):
                await self._supervisor.wait_over()
            raise

    @checkpoint_after
    async def aclose(self) -> None:
        """Close the WebSocket with a close frame, and end every stream. May be called twice.

        This takes at most `close_timeout`. If cancelled, it closes at once and raises `Cancelled`.
        """
        self._supervisor.request_close()
        try:
            await self._supervisor.wait_over()
        except BaseException:
            self._supervisor.abort()
            with trio.CancelScope(shield=True):
                await self._supervisor.wait_over()
            raise

    @checkpoint_after
    async def close(self) -> None:
        """The documented name of `aclose`."""
        await self.aclose()

    def _check_unused(self) -> None:
        if not trio.lowlevel.in_trio_task():
            # Trio's own message describes its internals.
            raise RuntimeError(
                "a client needs Trio: trio.run, or anyio's trio backend; asyncio programs use "
                "trio_broker.aio"
            )
        if self.state is not ConnectionState.IDLE:
            raise RuntimeError("a client is used once: make a new one")

    # --- The connection --------------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """The state of the connection."""
        return self._driver.state

    def is_connected(self) -> bool:
        """True while connected and authenticated; False in a process forked from the client's."""
        return self.state.is_connected and not self._supervisor.is_forked

    @property
    def max_reconnect_attempts(self) -> int | None:
        """How many attempts in a row may fail; None for no limit. It can be set at any time.

        Raises:
            ConfigurationError: The new value is invalid.
        """
        return self._supervisor.backoff.policy.max_attempts

    @max_reconnect_attempts.setter
    def max_reconnect_attempts(self, value: int | None) -> None:
        backoff = self._supervisor.backoff
        backoff.policy = attrs.evolve(backoff.policy, max_attempts=value)

    @property
    def reconnect_delay(self) -> float:
        """Seconds before the first attempt to reconnect. It can be set at any time.

        Raises:
            ConfigurationError: The new value is invalid.
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

    @always_checkpoint
    async def wait_connected(self) -> None:
        """Wait until connected, through any outage. Cancelling is safe.

        Raises:
            NotConnectedError: The client was never started, or is closed.
            BrokerError: The error with which the connection failed permanently.
        """
        await self._supervisor.wait_connected()

    @always_checkpoint
    async def wait_closed(self) -> None:
        """Wait until the client is closed. Cancelling is safe.

        Raises:
            BrokerError: The error with which the connection failed permanently.
        """
        await self._supervisor.wait_closed()

    @always_checkpoint
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
        await self._supervisor.reconnect()

    def events(self) -> BoundedReceiveChannel[ConnectionEvent]:
        """Open a channel of the client's events from now on.

        Returns:
            A receive channel that ends with the client. It buffers the last 1,024 events.

        Raises:
            NotConnectedError: This process was forked from the client's process.
        """
        self._supervisor.check_process()
        return self._driver.events.open()

    def messages(self) -> BoundedReceiveChannel[str | bytes]:
        """Open a channel of every message from the broker, unchanged, from now on, for debugging.

        Returns:
            A receive channel that ends with the client. It buffers the last 1,024 messages.

        Raises:
            NotConnectedError: This process was forked from the client's process.
        """
        self._supervisor.check_process()
        return self._driver.messages.open()

    def statistics(self) -> ClientStatistics:
        """The client's counters."""
        engine = self._engine
        session, channels = engine.session, engine.channels
        return ClientStatistics(
            messages_sent=session.sent,
            messages_received=engine.received,
            unexpected_messages=session.unexpected,
            requests_waiting=session.waiting,
            requests_in_flight=session.in_flight,
            channels=channels.wanted,
            subscriptions=channels.subscriptions,
            tracked_orders=len(engine.tracker),
        )

    # --- Channels --------------------------------------------------------------------------

    @overload
    def subscribe(
        self,
        channel: Literal["balances"],
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> Opening[Subscription[tuple[Balance, ...]]]: ...

    @overload
    def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = ...,
        overflow: Overflow = ...,
        snapshot: bool = ...,
    ) -> Opening[Subscription[Any]]: ...

    def subscribe(
        self,
        channel: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Opening[Subscription[Any]]:
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
        return self._streams.subscribe(
            "subscribe", channel, buffer_size=buffer_size, overflow=overflow, snapshot=snapshot
        )

    def subscribe_balances(
        self,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Opening[Subscription[tuple[Balance, ...]]]:
        """Subscribe to the account's balances.

        A push contains only some assets; a snapshot is the whole account. The arguments, the errors
        and the `Opening` are those of `subscribe`.
        """
        return self._streams.subscribe(
            "subscribe_balances", buffer_size=buffer_size, overflow=overflow, snapshot=snapshot
        )

    def subscribe_order(
        self,
        order_id: str,
        *,
        buffer_size: int = 1024,
        overflow: Overflow = "drop_oldest",
        snapshot: bool = True,
    ) -> Opening[Subscription[Order]]:
        """Subscribe to an order; each message is its whole state, and none is older than the last.

        The arguments, the errors and the `Opening` are those of `subscribe`, but with the order's
        id instead of the channel.
        """
        return self._streams.subscribe(
            "subscribe_order",
            order_id,
            prefix=ORDERS,
            buffer_size=buffer_size,
            overflow=overflow,
            snapshot=snapshot,
        )

    def track_order(
        self,
        order_id: str,
        *,
        not_found_timeout: float = 60.0,
        stop_at_partial: bool = False,
        buffer_size: int = 64,
    ) -> AbstractAsyncContextManager[Subscription[Order]]:
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
        return self._streams.track(
            order_id,
            buffer_size,
            stop_at_partial=stop_at_partial,
            not_found_timeout=not_found_timeout,
        )

    @checkpoint_after
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
        channel = codec.check_text(channel, "channel")
        self._supervisor.check_usable()
        left = trio.Event()
        self._driver.act(self._engine.unsubscribe(channel, left, trio.current_time()))
        with trio.move_on_after(self._settings.request_timeout):
            await left.wait()

    # --- Operations ------------------------------------------------------------------------

    @always_checkpoint
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
        balances: tuple[Balance, ...] = await self._ask(
            requests.balances(self._deadline(), dialect=self._settings.dialect)
        )
        return balances

    @always_checkpoint
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
        trade = Trade(amount_in, asset_in, asset_out, filter_sources, account)
        request = requests.estimate(trade, network, self._deadline(), self._settings.dialect)
        estimate: SwapEstimate = await self._ask(request)
        return estimate

    @always_checkpoint
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
        if filter_sources is not None and not isinstance(filter_sources, str):
            filter_sources = list(filter_sources)  # The estimate and the swap both use it.
        trade = Trade(amount_in, asset_in, asset_out, filter_sources, account)
        # An invalid swap is refused before the estimate is requested.
        request = self._swap_request(trade, client_order_id, slippage_bps)
        if min_out is not None:
            least = Decimal(amount_text(min_out, "min_out"))
            estimate = await self.estimate_swap(
                amount_in, asset_in, asset_out, filter_sources=filter_sources, account=account
            )
            check_quote(estimate, least, self._driver.wall_time())
            left = slippage_left(estimate, least)
            slippage_bps = left if slippage_bps is None else min(left, slippage_bps)
            request = self._swap_request(trade, client_order_id, slippage_bps)
        return await self._swap_executor.swap(request, trade)

    @always_checkpoint
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
        return await self._streams.final_state(receipt)

    def _swap_request(
        self, trade: Trade, client_order_id: str | None, slippage_bps: int | None
    ) -> Request:
        if client_order_id is None:
            client_order_id = new_client_order_id()
        request = requests.swap(
            trade, client_order_id, slippage_bps, self._deadline(), self._settings.dialect
        )
        codec.check_size(
            request.op, request.body, request.channel, self._settings.limits.max_message_size
        )
        return request

    def unresolved_swaps(self) -> tuple[UnresolvedSwap, ...]:
        """The swaps that were possibly sent and whose outcome is unknown, oldest first.

        They include swaps in flight and, with a journal, unresolved swaps of earlier processes.
        This also works after the client was closed.
        """
        return self._swap_executor.unresolved()

    @always_checkpoint
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
        client_order_id = check_client_order_id(client_order_id)
        return await self._swap_executor.resolve(client_order_id)

    @always_checkpoint
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
        return await self._swap_executor.reconcile()

    @checkpoint_after
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
        client_order_id = check_client_order_id(client_order_id)
        if not isinstance(note, str):
            raise TypeError(f"note must be a str, not {type(note).__name__}")
        if not note.strip():
            raise ValueError("note must not be empty: it is the only record of this swap's outcome")
        self._supervisor.check_process()
        await self._swap_executor.settle(client_order_id, str.__str__(note))

    @always_checkpoint
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
        order_id = codec.check_text(order_id, "order_id")
        order: Order = await self._ask(requests.order_status(order_id, self._deadline()))
        return self._engine.order_ids.complete(order, order_id)

    def _deadline(self) -> float:
        # Outside of a Trio run, the call fails because of its arguments or its first checkpoint.
        return trio.current_time() + self._settings.request_timeout

    @enable_ki_protection
    async def _ask(self, request: Request) -> Any:
        codec.check_size(
            request.op, request.body, request.channel, self._settings.limits.max_message_size
        )
        await trio.lowlevel.checkpoint_if_cancelled()
        self._supervisor.check_usable()
        request.waiter = ended = trio.Event()
        self._driver.act(self._engine.submit(request, trio.current_time()))
        try:
            await ended.wait()
        except BaseException:
            self._driver.give_up(request)
            raise
        if request.error is not None:
            raise fresh(request.error)
        return request.result
