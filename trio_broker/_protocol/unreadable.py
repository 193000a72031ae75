"""A balance of which the broker sent an amount that can't be read.

It stays in the account, and reading its amount raises an error, so no program takes it for zero.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from trio_broker.exceptions import UnreadableError
from trio_broker.models import Balance

_LONGEST_NAME: Final = 50


class UnreadableBalance(Balance):
    """A `Balance` whose unreadable amounts raise `UnreadableError`.

    Args:
        asset: The asset's symbol.
        amounts: The amounts that can be read, ``total`` and ``locked``.
    """

    __slots__ = ("_amounts",)

    _amounts: dict[str, Decimal | None]

    def __init__(self, asset: str, amounts: dict[str, Decimal | None]) -> None:
        # The base class is frozen.
        object.__setattr__(self, "asset", asset)
        object.__setattr__(self, "_amounts", amounts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.asset, self._amounts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnreadableBalance):
            return NotImplemented
        return (self.asset, self._amounts) == (other.asset, other._amounts)

    def __hash__(self) -> int:
        return hash((self.asset, *sorted(self._amounts)))

    def __repr__(self) -> str:
        total, locked = (
            repr(self._amounts[name]) if name in self._amounts else "<unreadable>"
            for name in ("total", "locked")
        )
        return f"Balance(asset={self.asset!r}, total={total}, locked={locked})"

    @property
    def is_readable(self) -> bool:
        """False."""
        return False

    @property
    def total(self) -> Decimal:
        """The total amount.

        Raises:
            UnreadableError: It can't be read.
        """
        total = self._amount("total")
        assert total is not None  # noqa: S101 - it is required
        return total

    @property
    def locked(self) -> Decimal | None:
        """The locked amount.

        Raises:
            UnreadableError: It can't be read.
        """
        return self._amount("locked")

    @property
    def available(self) -> Decimal:
        """The amount that can be spent.

        Raises:
            UnreadableError: `total` or `locked` can't be read.
        """
        return Balance(self.asset, self.total, self.locked).available

    def _amount(self, name: str) -> Decimal | None:
        if name not in self._amounts:
            asset = self.asset[:_LONGEST_NAME]
            raise UnreadableError(f"the {name} that the broker sent for {asset!r} can't be read")
        return self._amounts[name]
