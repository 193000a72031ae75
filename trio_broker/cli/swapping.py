"""A client whose swaps may have a least that they must bring, and that gives their receipt at once.

The library has that check in `swap_and_wait`: it asks for a fresh estimate at the moment of
swapping, refuses if it brings less or has ended, and sends along how much worse it may become. That
is not done again here. But `swap_and_wait` returns when the order has ended, and whoever waits for
money wants to see the receipt, and the order on its way. So it is left as soon as the receipt is
there: as cancelling it takes nothing back, the order is followed from there by its id.

To follow the order beside it, by the client order id, would do harm: its questions would be in
flight together with the swap, and an error that names no operation would refuse nothing any more.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import trio

from trio_broker import BrokerWSClient, SwapReceipt


class SwappingClient(BrokerWSClient):
    """A client with `swap`, for one swap."""

    _following: trio.CancelScope | None = None
    _receipt: SwapReceipt

    async def do_swap(self, *args: Any, **options: Any) -> SwapReceipt:
        """As ever; a `swap_and_wait` that `swap` has begun ends with it."""
        self._receipt = await super().do_swap(*args, **options)
        if self._following is not None:
            self._following.cancel()
        return self._receipt

    async def swap(self, *args: Any, min_out: Decimal | None, **options: Any) -> SwapReceipt:
        """Swap, as `do_swap` does, and with `min_out` after the check of `swap_and_wait`.

        Args:
            *args: Amount and assets.
            min_out: How much must be bought at least, None for whatever it is.
            **options: The options of `do_swap`.

        Raises:
            SlippageError: A fresh estimate brings less than `min_out`. Nothing was sent.
            QuoteExpiredError: The estimate has ended. Nothing was sent.
            BrokerError: As `estimate_swap`, with `min_out`: nothing was sent. Then as `do_swap`.
        """
        if min_out is None:
            return await self.do_swap(*args, **options)
        with trio.CancelScope() as self._following:
            await self.swap_and_wait(*args, min_out=min_out, **options)
        return self._receipt
