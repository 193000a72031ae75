"""Decides whether and when the next connection is tried. No clock, no I/O; randomness is passed in.

**Errors that may pass are retried.** Every way in which a connection can end has a `Verdict`. At
the first connection, a wrong key, a bad certificate or a 404 is a mistake in the configuration, and
final. On a client that was connected before, something is more likely being repaired: a clock, a CA
file, a proxy, or a broker that restarts. So the same error is retried, at least `SLOW_DELAY` apart.
Three refusals of the key or the signature in a row are final: the key was revoked. After a breach
of the protocol, one more try is made; a second breach in a row is final.

**Clients must not come back all at once.** Each delay has a fixed half, so that no client retries
in a tight loop, and a random half, so that clients spread. A longer ``Retry-After`` replaces the
fixed half.

**The number of attempts is reset only by a stable connection.** Otherwise a broker that
authenticates and hangs up would be retried at the shortest delay for ever.
"""

from __future__ import annotations

import enum
import random
from typing import Final

from trio_broker.exceptions import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    ConnectFailedError,
    ConnectionLostError,
    InvalidApiKeyError,
    InvalidSignatureError,
    ProtocolError,
    RateLimitedError,
    ServerError,
)
from trio_broker.settings import ReconnectPolicy

# RFC 6455, section 7.4.1: protocol error, unsupported data, invalid UTF-8, policy violation.
_SUSPICIOUS_CODES: Final = frozenset({1002, 1003, 1007, 1008})
_MAX_EXPONENT: Final = 64  # beyond that, any delay is at its maximum

SLOW_DELAY: Final = 30.0
MAX_KEY_REFUSALS: Final = 3


class Verdict(enum.Enum):
    """What the end of a connection means for the next one."""

    RETRY = enum.auto()
    """It is temporary: retry."""
    RETRY_SLOWLY = enum.auto()
    """It may be temporary: retry, at least `SLOW_DELAY` apart."""
    ONCE_MORE = enum.auto()
    """Retry once on a client that was connected before. A second one in a row is final."""
    MISCONFIGURED = enum.auto()
    """Final at the first connection. On a client that was connected before, retry slowly."""
    KEY_REFUSED = enum.auto()
    """As `MISCONFIGURED`, and final when it happens `MAX_KEY_REFUSALS` times in a row."""
    FINAL = enum.auto()
    """A retry can't help."""


def verdict(error: BrokerError) -> Verdict:
    """What an error means for the next connection."""
    match error:
        case InvalidApiKeyError() | InvalidSignatureError():
            result = Verdict.KEY_REFUSED
        case ConnectFailedError(is_retryable=is_retryable):
            result = Verdict.RETRY if is_retryable else Verdict.MISCONFIGURED
        case ConnectionLostError(code=code):
            result = Verdict.ONCE_MORE if code in _SUSPICIOUS_CODES else Verdict.RETRY
        case RateLimitedError():
            result = Verdict.RETRY
        case AuthenticationError(message=message) if _is_about_a_limit(message):
            # Too many connections or messages. The broker may still count dead connections.
            result = Verdict.RETRY
        case ServerError() | AuthenticationTimeoutError():
            result = Verdict.RETRY_SLOWLY
        case ProtocolError():
            result = Verdict.ONCE_MORE
        case _:
            result = Verdict.FINAL
    return result


def _is_about_a_limit(message: str) -> bool:
    text = message.casefold()
    return "limit exceeded" in text or "rate_limit" in text


class Backoff:
    """Counts the attempts of one client.

    Attributes:
        policy: The user's policy.
        attempts: How many attempts were made since the last stable connection.
    """

    def __init__(self, policy: ReconnectPolicy, rng: random.Random) -> None:
        self.policy: ReconnectPolicy = policy
        self.attempts: int = 0
        self._rng = rng
        self._was_connected = False
        self._is_suspect = False
        self._key_refusals = 0
        self._min_delay = 0.0

    def connected(self) -> bool:
        """Note an authenticated connection. Return whether it is the first one."""
        is_first = not self._was_connected
        self._was_connected = True
        self._key_refusals = 0
        return is_first

    def lost(self, healthy_since: float, last_heard: float) -> None:
        """Note the end of a connection, and when it was healthy."""
        # The same sum as in the heartbeat: a difference might be rounded to another result.
        if last_heard >= healthy_since + self.policy.stable_after:
            self.attempts = 0
            self._is_suspect = False

    @property
    def is_exhausted(self) -> bool:
        """Whether all attempts that the policy allows were made."""
        maximum = self.policy.max_attempts
        return maximum is not None and self.attempts >= maximum

    def may_retry(self, error: BrokerError) -> bool:
        """Whether another attempt makes sense, however many are left. Call it once for an error."""
        result = verdict(error)
        was_suspect, self._is_suspect = self._is_suspect, result is Verdict.ONCE_MORE
        self._key_refusals = self._key_refusals + 1 if result is Verdict.KEY_REFUSED else 0
        is_quick = result in {Verdict.RETRY, Verdict.ONCE_MORE}
        self._min_delay = 0.0 if is_quick else SLOW_DELAY
        if not self._was_connected:
            may_pass = result in {Verdict.RETRY, Verdict.RETRY_SLOWLY}
            return may_pass and self.policy.retry_first
        if result is Verdict.ONCE_MORE:
            return not was_suspect
        return result is not Verdict.FINAL and self._key_refusals < MAX_KEY_REFUSALS

    def next_delay(self, retry_after: float | None = None) -> float:
        """Count one more attempt, and draw the seconds until it."""
        policy = self.policy
        max_delay = max(policy.initial_delay, policy.max_delay)
        delay = policy.initial_delay * 2.0 ** min(self.attempts, _MAX_EXPONENT)
        half = min(delay, max_delay) / 2
        self.attempts += 1
        return max(half, retry_after or 0.0, self._min_delay) + self._rng.uniform(0.0, half)
