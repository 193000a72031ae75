"""Who holds how much.

The law of this file: what the accounts, the market's book and the fees hold together never
changes, asset by asset. A trade moves amounts between them, and nothing is made or lost. An
account never holds less than nothing, and never has more locked than it holds. The book takes
the other side of every trade: it begins with nothing, and its amounts may well be negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import attrs

from trio_broker.sandbox.money import CONTEXT, ZERO
from trio_broker.sandbox.refusals import INSUFFICIENT_BALANCE, Refusal


@attrs.frozen
class Holding:
    """What an account holds of one asset.

    Attributes:
        total: All of it, what is locked included.
        locked: What swaps that are under way have set aside.
    """

    total: Decimal = ZERO
    locked: Decimal = ZERO

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be: a mistake of the sandbox must not go on unseen."""
        if not ZERO <= self.locked <= self.total:
            raise ArithmeticError(f"the ledger doesn't add up: {self}")

    @property
    def available(self) -> Decimal:
        """What isn't locked."""
        return CONTEXT.subtract(self.total, self.locked)

    def changed(self, *, total: Decimal = ZERO, locked: Decimal = ZERO) -> Holding:
        """This holding after a change.

        Args:
            total: What is added to the total; may be negative.
            locked: What is added to the locked part; may be negative.
        """
        return Holding(CONTEXT.add(self.total, total), CONTEXT.add(self.locked, locked))


class Ledger:
    """The holdings of all accounts, the book's and the fees. Plain data throughout.

    Args:
        opening: What each account begins with, by asset.

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
        """What an account holds of an asset.

        Args:
            account: The account.
            asset: The asset.
        """
        return self.accounts[account].get(asset, Holding())

    def lock(self, account: str, asset: str, amount: Decimal) -> None:
        """Set an amount aside.

        Args:
            account: The account.
            asset: The asset.
            amount: How much.

        Raises:
            Refusal: Not so much is available.
        """
        holding = self.holding(account, asset)
        if holding.available < amount:
            raise Refusal(INSUFFICIENT_BALANCE)
        self.accounts[account][asset] = holding.changed(locked=amount)

    def release(self, account: str, asset: str, amount: Decimal) -> None:
        """Give back what was locked.

        Args:
            account: The account.
            asset: The asset.
            amount: How much.
        """
        holding = self.holding(account, asset)
        self.accounts[account][asset] = holding.changed(locked=amount.copy_negate())

    def settle(
        self, account: str, gives: tuple[str, Decimal], gets: tuple[str, Decimal], fee: Decimal
    ) -> None:
        """Trade what was locked with the market's book.

        Args:
            account: The account.
            gives: An asset and how much of it the account gives, out of what it has locked.
            gets: Another asset and how much of it the account gets.
            fee: What the book pays in fees on top, in the asset that the account gets.
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
        """What accounts, book and fees hold together, by asset: always the same."""
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
