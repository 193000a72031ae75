"""The accounts of the sandbox, and the check of every signed message."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Final

import attrs

from trio_broker.exceptions import ConfigurationError
from trio_broker.sandbox.market import ASSETS
from trio_broker.sandbox.messages import Envelope
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.refusals import (
    INVALID_API_KEY,
    INVALID_SIGNATURE,
    NONCE_REUSED,
    TIMESTAMP_OUTSIDE_WINDOW,
    Refusal,
)
from trio_broker.settings import parse_url, stream_url
from trio_broker.signing import SigningKey, canonical_string, hmac_key

WINDOW_MS: Final = 30_000

# Enough for the examples of the broker's documentation, which sell 100 ETH.
DEFAULT_BALANCES: Final[Mapping[str, Decimal]] = MappingProxyType(
    {
        "USDT": Decimal(100_000),
        "USDC": Decimal(50_000),
        "BTC": Decimal(10),
        "ETH": Decimal(1_000),
        "BNB": Decimal(500),
        "SOL": Decimal(2_000),
        "TRX": Decimal(500_000),
        "XRP": Decimal(100_000),
        "ADA": Decimal(100_000),
        "DOGE": Decimal(500_000),
    }
)


def _amounts(balances: Mapping[str, str | int | Decimal]) -> dict[str, Decimal]:
    return {asset: Decimal(amount) for asset, amount in balances.items()}


@attrs.frozen
class Account:
    """An account of the sandbox.

    Attributes:
        api_key: Its API key.
        secret_key: Its secret key.
        balances: Its balances when the sandbox opens, by asset.
    """

    api_key: str = attrs.field(repr=False, validator=attrs.validators.min_len(1))
    secret_key: str = attrs.field(repr=False, validator=attrs.validators.min_len(1))
    balances: Mapping[str, Decimal] = attrs.field(default=DEFAULT_BALANCES, converter=_amounts)

    @balances.validator
    def _possible(self, _: object, balances: Mapping[str, Decimal]) -> None:
        for asset, amount in balances.items():
            if asset not in ASSETS:
                raise ConfigurationError(f"the sandbox has no asset {asset!r}")
            if not (amount.is_finite() and amount >= 0):
                raise ConfigurationError(f"an account can't have {amount} {asset}")


# The accounts that the broker's documentation names for development.
DOCUMENTED_ACCOUNTS: Final = (
    Account("test_key_1", "test_secret_1"),
    Account("test_key_2", "test_secret_2"),
)


class SignatureChecker:
    """Checks signed messages."""

    def __init__(self, accounts: Iterable[Account], *signing_keys: SigningKey) -> None:
        # Copying a prepared HMAC object costs a third of making one.
        self._prepared = {
            account.api_key: [
                hmac.new(hmac_key(account.secret_key, kind), digestmod=hashlib.sha256)
                for kind in signing_keys
            ]
            for account in accounts
        }
        self._nonces: dict[str, dict[str, int]] = {api_key: {} for api_key in self._prepared}

    def check(self, api_key: str, envelope: Envelope, moment: Moment) -> None:
        """Check a signed message, and use up its nonce.

        Raises:
            Refusal: See `check_text`; or something that must be signed is missing.
        """
        if api_key not in self._prepared:
            raise Refusal(INVALID_API_KEY)
        ts, nonce, sig = envelope.ts, envelope.nonce, envelope.sig
        if ts is None or not nonce or not sig or envelope.op is None:
            raise Refusal(INVALID_SIGNATURE)
        text = canonical_string(envelope.op, ts, nonce, envelope.body)
        self.check_text(api_key, text, sig, ts=ts, nonce=nonce, moment=moment)

    def check_text(
        self, api_key: str, text: str, sig: str, *, ts: int, nonce: str, moment: Moment
    ) -> None:
        """Check the signature of a canonical text, and use up its nonce.

        The order matters: without the secret, a client can't learn whether a timestamp or a nonce
        is valid, and can't use up a nonce.

        Raises:
            Refusal: The key is unknown, the signature is wrong, the timestamp is
                outside the window, or the account has used the nonce before.
        """
        prepared = self._prepared.get(api_key)
        if prepared is None:
            raise Refusal(INVALID_API_KEY)
        if not any(_signs(one.copy(), text, sig) for one in prepared):
            raise Refusal(INVALID_SIGNATURE)
        if abs(ts - moment.ms) > WINDOW_MS:
            raise Refusal(TIMESTAMP_OUTSIDE_WINDOW)
        self._use_up(self._nonces[api_key], nonce, moment.ms)

    def _use_up(self, used: dict[str, int], nonce: str, now: int) -> None:
        # A timestamp may be a window ahead, so its message could be repeated until two windows
        # from now. Older nonces are forgotten, so the memory is bounded by what an account can
        # send in two windows at the rate limit.
        while used and (oldest := next(iter(used.items())))[1] < now:
            del used[oldest[0]]
        if nonce in used:
            raise Refusal(NONCE_REUSED)
        used[nonce] = now + 2 * WINDOW_MS


def _signs(mac: hmac.HMAC, text: str, sig: str) -> bool:
    mac.update(text.encode())
    return hmac.compare_digest(mac.hexdigest().encode(), sig.encode())


def is_play_money(api_key: str, url: str) -> bool:
    """Whether an account is certainly a sandbox's: a documented key at an address of this machine.

    If it isn't certain, the account counts as real money, for example for an unreadable URL.

    Args:
        api_key: The API key.
        url: The broker's WebSocket URL, or its base URL.
    """
    url = url.strip()
    try:
        ws_url = stream_url(url) if url.startswith("http") else url
        is_here = parse_url(ws_url, allow_insecure=True).is_loopback
    except ConfigurationError:
        return False
    return is_here and api_key in {account.api_key for account in DOCUMENTED_ACCOUNTS}
