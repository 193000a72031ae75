"""An engine for tests of swaps, with callers that swap, wait, look up, settle and cancel."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal

from tests.engine_harness import TIMEOUT, EngineHarness
from trio_broker._protocol import requests
from trio_broker._protocol.requests import Request, Waiter
from trio_broker._swaps.registry import Swap
from trio_broker.exceptions import ConnectionLostError, NotConnectedError, NotSentError
from trio_broker.models import SwapIntent

RESOLVE = 30.0
START = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def intent(client_order_id: str, at: dt.datetime = START) -> SwapIntent:
    return SwapIntent(
        client_order_id=client_order_id,
        amount_in=Decimal(1),
        asset_in="ETH",
        asset_out="USDT",
        at=at,
    )


class Caller:
    """A waiter that does nothing when it is woken."""

    def set(self) -> None:
        pass


class SwapsHarness(EngineHarness):
    """The swaps of an engine; the time begins at 0, which is `START` by the wall clock."""

    def __init__(self, *, resolve_timeout: float = RESOLVE) -> None:
        super().__init__(resolve_timeout=resolve_timeout)
        self.now = 0.0
        self.swaps = self.engine.swaps
        self.attempts = itertools.count()

    @property
    def next_deadline(self) -> float:
        return self.engine.timers.next_deadline

    def close(self) -> None:
        lost, unsent = ConnectionLostError("the client was closed"), NotConnectedError("closed")
        self.act(self.engine.close(None, lost, unsent, self.now))

    def enter(self, client_order_id: str = "c1") -> Swap:
        attempt = f"a{next(self.attempts)}"
        return self.engine.enter_swap(intent(client_order_id, self.at), attempt, self.now)

    def submit_swap(self, swap: Swap) -> Request:
        trade = requests.Trade(1, "ETH", "USDT")
        request = requests.swap(trade, swap.client_order_id, None, self.now + TIMEOUT)
        self.act(self.engine.submit_swap(swap, request, Caller(), self.now))
        return request

    def wait_for(self, swap: Swap, waiter: Waiter) -> None:
        self.act(self.engine.wait_for_swap(swap, waiter, self.now))

    def abandon(self, swap: Swap, why: str = "the caller has given it up") -> None:
        self.act(self.engine.abandon_swap(swap, NotSentError(why), self.now))

    def look_up(self, client_order_id: str) -> Swap:
        swap, effects = self.engine.look_up_swap(client_order_id, self.now, self.at)
        self.act(effects)
        return swap

    def settle(self, client_order_id: str, note: str) -> None:
        self.act(self.engine.settle_swap(client_order_id, note, self.now))

    def unresolved(self) -> list[str]:
        return [swap.client_order_id for swap in self.swaps.unresolved()]
