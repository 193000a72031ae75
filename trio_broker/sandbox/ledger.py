"""The ledger: the balances of all accounts.

The law of this file: for each asset, the sum of the accounts, the market's book and the fees never
changes. A trade only moves amounts between them. A balance is never negative, and never less than
its locked part. The book is the other side of every trade. It starts empty, and its amounts may be
negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import attrs

from trio_broker.sandbox.money import CONTEXT, ZERO
from trio_broker.sandbox.refusals import INSUFFICIENT_BALANCE, Refusal


@attrs.frozen
class Holding:
    """An account's balance of one asset.

    Attributes:
        total: The total amount, including `locked`.
        locked: What swaps that are under way have set aside.
    """

    total: Decimal = ZERO
    locked: Decimal = ZERO

    def __attrs_post_init__(self) -> None:
        """Raise for impossible values, so that a bug in the sandbox is noticed."""
        if not ZERO <= self.locked <= self.total:
            raise ArithmeticError(f"the ledger doesn't add up: {self}")

    @property
    def available(self) -> Decimal:
        """The amount that isn't locked."""
        return CONTEXT.subtract(self.total, self.locked)

    def changed(self, *, total: Decimal = ZERO, locked: Decimal = ZERO) -> Holding:
        """This holding after a change. Both amounts are added, and may be negative."""
        return Holding(CONTEXT.add(self.total, total), CONTEXT.add(self.locked, locked))


class Ledger:
    """The holdings of all accounts, the book's and the fees. Plain data throughout.

    Attributes:
        accounts: Each account's holdings by asset.
        book: What the market has taken in and given out, by asset.
        fees: What was taken in fees, by asset.
    """

    def __init__(self, opening: Mapping[str, Mapping[str, Decimal]]) -> None:
        self.accounts: dict[str, dict[str, Holding]] = {
            account: {asset: Holding(total) for asset, total in holdings.items()}
            for account, holdings in opening.items()
        }
        self.book: dict[str, Decimal] = {}
        self.fees: dict[str, Decimal] = {}

    def holding(self, account: str, asset: str) -> Holding:
        """An account's balance of an asset."""
        return self.accounts[account].get(asset, Holding())

    def lock(self, account: str, asset: str, amount: Decimal) -> None:
        """Set an amount aside.

        Raises:
            Refusal: Not so much is available.
        """
        holding = self.holding(account, asset)
        if holding.available < amount:
            raise Refusal(INSUFFICIENT_BALANCE)
        self.accounts[account][asset] = holding.changed(locked=amount)

    def release(self, account: str, asset: str, amount: Decimal) -> None:
        """Release a locked amount."""
        holding = self.holding(account, asset)
        self.accounts[account][asset] = holding.changed(locked=amount.copy_negate())

    def settle(
        self, account: str, gives: tuple[str, Decimal], gets: tuple[str, Decimal], fee: Decimal
    ) -> None:
        """Trade a locked amount with the market's book.

        The account gives an amount of an asset, which it has locked, and gets an amount of another
        one. The book also pays the fee, in the asset that the account gets.
        """
        (asset_in, amount_in), (asset_out, amount_out) = gives, gets
        spent = amount_in.copy_negate()  # Unlike a minus sign, it never rounds.
        given = self.holding(account, asset_in).changed(total=spent, locked=spent)
        got = self.holding(account, asset_out).changed(total=amount_out)
        self.accounts[account] |= {asset_in: given, asset_out: got}
        _add(self.book, asset_in, amount_in)
        _add(self.book, asset_out, CONTEXT.add(amount_out, fee).copy_negate())
        _add(self.fees, asset_out, fee)

    def sums(self) -> Mapping[str, Decimal]:
        """The sums of accounts, book and fees by asset, which never change."""
        sums: dict[str, Decimal] = {}
        for holdings in self.accounts.values():
            for asset, holding in holdings.items():
                _add(sums, asset, holding.total)
        for amounts in (self.book, self.fees):
            for asset, amount in amounts.items():
                _add(sums, asset, amount)
        return sums


def _add(amounts: dict[str, Decimal], asset: str, amount: Decimal) -> None:
    amounts[asset] = CONTEXT.add(amounts.get(asset, ZERO), amount)
