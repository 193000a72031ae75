"""Opens subscriptions and tracked orders: connects a stream's buffer with the engine."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_broker._channels.channel import BALANCES, ORDERS, Subscriber
from trio_broker._checkpoints import always_checkpoint
from trio_broker._client_log import ClientLog, SlowConsumer
from trio_broker._connection.driver import Driver
from trio_broker._connection.supervisor import Supervisor
from trio_broker._protocol import codec
from trio_broker._sealed import Sealed
from trio_broker._streams.buffer import Buffer, MessageBuffer, Overflow
from trio_broker._streams.opening import NotATracker, Opening
from trio_broker._streams.subscription import Subscription
from trio_broker.exceptions import (
    NotSentError,
    OrderUnfinishedError,
    SubscriptionBrokenError,
    fresh,
)
from trio_broker.models import Order, SwapReceipt, brief
from trio_broker.settings import Settings

# How many states of an order are kept for `final_state`, which takes each at once.
_KEPT_STATES: Final = 64


class _Owner:
    """Tells the engine what the consumer of a tracked order does.

    The newest state of an order is its whole state, so an overflow needs no action.

    Attributes:
        subscriber: The stream's subscriber in the engine.
    """

    subscriber: Subscriber

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def closed(self, _: Buffer[Any]) -> None:
        """The stream has ended: leave its channel."""
        self._driver.act(self._driver.engine.leave(self.subscriber, trio.current_time()))

    def overflowed(self, buffer: Buffer[Any]) -> None:
        """The consumer is too slow."""

    def drained(self, buffer: Buffer[Any]) -> None:
        """The consumer has caught up."""


class _SubscriptionOwner(_Owner):
    """Tells the engine and the log what the consumer of a subscription does.

    Attributes:
        answered: Set when the broker has answered, and when the stream has ended.
        has_failed: Whether the stream has ended before that answer.
    """

    def __init__(self, driver: Driver, slow: SlowConsumer) -> None:
        super().__init__(driver)
        self.answered: trio.Event = trio.Event()
        self.has_failed: bool = False
        self._slow = slow

    def closed(self, buffer: Buffer[Any]) -> None:
        """The stream has ended: leave its channel."""
        super().closed(buffer)
        # Messages that come together with the broker's answer may overflow the buffer before it.
        self.has_failed = not self.answered.is_set()
        self.answered.set()

    def overflowed(self, buffer: Buffer[Any]) -> None:  # noqa: ARG002 - as the engine's others
        """The consumer is too slow."""
        self._slow.overflowed(trio.current_time())

    def drained(self, buffer: Buffer[Any]) -> None:
        """The consumer has caught up: balances need their whole state again."""
        self._slow.drained(buffer.dropped)
        self._driver.act(self._driver.engine.drained(self.subscriber, trio.current_time()))


class LiveStreams:
    """Opens the subscriptions and tracked orders of one client."""

    def __init__(
        self, settings: Settings, driver: Driver, supervisor: Supervisor, log: ClientLog
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._supervisor = supervisor
        self._log = log

    def subscribe(
        self, method: str, *names: str, prefix: str = "", **options: Any
    ) -> Opening[Subscription[Any]]:
        """What `BrokerWSClient.subscribe` and similar methods return."""
        name = names[0] if names else BALANCES
        place = "order_id" if prefix else "channel"
        return Opening(partial(self._subscribe, name, prefix, place, **options), method, names)

    @enable_ki_protection
    async def _subscribe(
        self,
        name: str,
        prefix: str,
        place: str,
        *,
        buffer_size: int,
        overflow: Overflow,
        snapshot: bool,
    ) -> Subscription[Any]:
        await trio.lowlevel.checkpoint()
        channel = prefix + codec.check_text(name, place)
        codec.check_size("subscribe", "", channel, self._settings.limits.max_message_size)
        driver = self._driver
        owner = _SubscriptionOwner(driver, SlowConsumer(self._log, channel))
        buffer: MessageBuffer[Any] = MessageBuffer(channel, buffer_size, owner, overflow=overflow)
        self._supervisor.check_usable()
        subscription = Subscription(buffer)
        subscriber = Subscriber(buffer, wants_snapshot=snapshot, waiter=owner.answered)
        owner.subscriber = subscriber
        now = trio.current_time()
        driver.act(driver.engine.subscribe(subscriber, now))
        deadline = now + self._settings.request_timeout
        try:
            # A request has a deadline of its own. This one is for a channel that waits for a slot.
            with trio.move_on_at(deadline):
                await owner.answered.wait()
            if not owner.answered.is_set():
                overdue = driver.engine.channels.overdue(subscriber)
                await driver.catch_up(trio.current_time() - deadline)
        except BaseException:
            subscription.close()
            raise
        if not owner.answered.is_set():
            subscription.close()
            raise overdue
        if owner.has_failed:
            buffer.raise_failure()
        if subscriber.error is not None:
            raise fresh(subscriber.error)
        return subscription

    def track(
        self, order_id: str, buffer_size: int, *, stop_at_partial: bool, not_found_timeout: float
    ) -> AbstractAsyncContextManager[Subscription[Order]]:
        """What `BrokerWSClient.track_order` returns."""
        order_id = codec.check_text(order_id, "order_id")
        body = codec.encode_body({"id": order_id})
        codec.check_size("order_status", body, None, self._settings.limits.max_message_size)
        return _Tracking(
            self._supervisor,
            self._driver,
            order_id,
            buffer_size,
            stop_at_partial=stop_at_partial,
            not_found_timeout=_check_timeout(not_found_timeout),
        )

    async def final_state(self, receipt: SwapReceipt) -> Order:
        """The order of a receipt, once it is final; the end of `BrokerWSClient.swap_and_wait`."""
        unfinished = OrderUnfinishedError(receipt.order_id, receipt.client_order_id)
        try:
            tracking = self.track(
                receipt.order_id, _KEPT_STATES, stop_at_partial=False, not_found_timeout=math.inf
            )
            async with tracking as progress:
                async for message in progress:
                    if message.data.is_final:
                        return message.data
        except (NotSentError, SubscriptionBrokenError, ValueError) as error:
            # These errors would wrongly say that nothing was sent, or lack the order id.
            raise unfinished from error
        except BaseException:
            # The outcome is known, so no event reports it, and the caller may not know the id.
            self._log.swap_unclaimed(
                receipt.client_order_id,
                receipt.order_id,
                "the caller that waited for its end was cancelled",
            )
            raise
        raise unfinished


def _check_timeout(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(
            "not_found_timeout must be a number of seconds, or math.inf for no limit, not "
            f"{type(seconds).__name__}"
        )
    if not seconds > 0:
        raise ValueError(f"not_found_timeout must be more than 0 seconds, not {brief(seconds)}")
    if isinstance(seconds, int) and seconds > sys.maxsize:
        raise ValueError("not_found_timeout is too large; use math.inf for no limit")
    return seconds


class _Tracking(Sealed, NotATracker, AbstractAsyncContextManager[Subscription[Order]]):
    """What `BrokerWSClient.track_order` returns: tracks an order within its block."""

    _instead = "read the order's states with 'async for'"

    _supervisor: Supervisor
    _driver: Driver
    _order_id: str
    _stop_at_partial: bool
    _not_found_timeout: float
    _owner: _Owner
    _buffer: MessageBuffer[Order]
    _is_entered: bool
    _subscription: Subscription[Order]

    def __init__(
        self,
        supervisor: Supervisor,
        driver: Driver,
        order_id: str,
        buffer_size: int,
        *,
        stop_at_partial: bool,
        not_found_timeout: float,
    ) -> None:
        self._supervisor = supervisor
        self._driver = driver
        self._order_id = order_id
        self._stop_at_partial = stop_at_partial
        self._not_found_timeout = not_found_timeout
        self._is_entered = False
        self._owner = _Owner(driver)
        self._buffer = MessageBuffer(ORDERS + order_id, buffer_size, self._owner)

    @always_checkpoint
    async def __aenter__(self) -> Subscription[Order]:
        await trio.lowlevel.checkpoint()
        self._supervisor.check_usable()
        if self._is_entered:
            raise RuntimeError("a tracker can be entered once: call track_order again")
        self._is_entered = True
        self._subscription = Subscription(self._buffer)
        self._owner.subscriber, effects = self._driver.engine.track(
            self._order_id,
            self._buffer,
            trio.current_time(),
            stop_at_partial=self._stop_at_partial,
            not_found_timeout=self._not_found_timeout,
        )
        self._driver.act(effects)
        return self._subscription

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._buffer.end()  # Clones may outlive the block.
        self._owner.closed(self._buffer)
        # It doesn't block, and shields its checkpoint if an exception was raised.
        await self._subscription.__aexit__(exc_type, exc_value, traceback)  # noqa: ASYNC102
