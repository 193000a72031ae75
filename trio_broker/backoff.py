"""Whether, and when, the next connection is tried. No clock, no I/O; randomness comes in.

**Retry what can pass, not what can't.** Every way in which a connection can end has a `Verdict`. A
wrong key stays wrong however often it is shown, and a broker that is asked again and again by
thousands of misconfigured clients has a problem more. A network comes back. In between is what a
single accident may explain and a second one in a row doesn't: a close for a breach of the protocol,
a refused timestamp. It is tried once more, on a client that was connected before.

**A thousand clients don't come back at once.** Each delay is drawn from its upper half: from the
half, so that they spread; from the upper, so that no draw makes a storm. A ``Retry-After`` is a
lower bound, and the spread is added to it.

**Backoff forgets only after a stable while.** A broker that accepts, authenticates and hangs up
would otherwise be asked for ever at the shortest delay, as each connection counts as a success.
"""

from __future__ import annotations

import enum
import random
from typing import Final

from trio_broker.exceptions import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    CertificateError,
    ConnectFailedError,
    ConnectionLostError,
    InvalidApiKeyError,
    InvalidSignatureError,
    ProtocolError,
    ServerError,
)
from trio_broker.settings import ReconnectPolicy

# RFC 6455, section 7.4.1: a breach of the protocol, data that isn't accepted, bad UTF-8, a policy.
_SUSPICIOUS_CODES: Final = frozenset({1002, 1003, 1007, 1008})
# RFC 9110: Request Timeout, Too Early and Too Many Requests pass; other 4xx are about the request.
_PASSING_4XX: Final = frozenset({408, 425, 429})
_LARGEST_EXPONENT: Final = 64  # beyond it any delay is at its maximum


class Verdict(enum.Enum):
    """What the end of a connection says about the next one."""

    RETRY = enum.auto()
    ONCE_MORE = enum.auto()
    FINAL = enum.auto()


def verdict(error: BrokerError) -> Verdict:
    """What an error says about the next try.

    Args:
        error: What a connection, or a try to connect, ended with.
    """
    match error:
        case CertificateError() | InvalidApiKeyError() | InvalidSignatureError():
            return Verdict.FINAL
        case ConnectFailedError(status=status):
            return _verdict_of_status(status)
        case ConnectionLostError(code=code):
            return Verdict.ONCE_MORE if code in _SUSPICIOUS_CODES else Verdict.RETRY
        case AuthenticationError(message=message) if _is_about_a_limit(message):
            # Too many connections, or messages: the broker may count some that are dead by now.
            return Verdict.RETRY
        case ServerError() | AuthenticationTimeoutError() | ProtocolError():
            return Verdict.ONCE_MORE
    return Verdict.FINAL


def _is_about_a_limit(message: str) -> bool:
    text = message.casefold()
    return "limit exceeded" in text or "rate_limit" in text


def _verdict_of_status(status: int | None) -> Verdict:
    if status is None or status in _PASSING_4XX or not 300 <= status < 500:
        return Verdict.RETRY
    return Verdict.FINAL


class Backoff:
    """The tries of one client.

    Args:
        policy: What the user wants; may be replaced at any time.
        chance: Where the jitter comes from.

    Attributes:
        policy: As given.
        attempts: How many tries were made since the last stable connection.
    """

    def __init__(self, policy: ReconnectPolicy, chance: random.Random) -> None:
        self.policy: ReconnectPolicy = policy
        self.attempts: int = 0
        self._chance = chance
        self._was_connected = False
        self._is_suspect = False

    def connected(self) -> bool:
        """A connection is there and authenticated.

        Returns:
            Whether it is the first one.
        """
        is_first = not self._was_connected
        self._was_connected = True
        return is_first

    def lost(self, lived: float) -> None:
        """That connection is gone.

        Args:
            lived: For how many seconds it was healthy.
        """
        if lived >= self.policy.stable_after:
            self.attempts = 0
            self._is_suspect = False

    @property
    def is_exhausted(self) -> bool:
        """Whether all tries that the policy allows were made."""
        maximum = self.policy.max_attempts
        return maximum is not None and self.attempts >= maximum

    def may_retry(self, error: BrokerError) -> bool:
        """Whether there is any sense in a next try, however many are left.

        An error that allows one more try is noted: the second in a row is final.

        Args:
            error: What the connection, or the last try, ended with.
        """
        said = verdict(error)
        if said is Verdict.ONCE_MORE:
            said = Verdict.FINAL if self._is_suspect or not self._was_connected else Verdict.RETRY
            self._is_suspect = True
        elif said is Verdict.RETRY:
            self._is_suspect = False
        return said is Verdict.RETRY and (self._was_connected or self.policy.retry_first)

    def next_delay(self, retry_after: float | None = None) -> float:
        """Count one more try, and draw the seconds until it.

        Args:
            retry_after: The seconds that the broker asked for, if it did.
        """
        policy = self.policy
        longest = max(policy.initial_delay, policy.max_delay)
        delay = policy.initial_delay * 2.0 ** min(self.attempts, _LARGEST_EXPONENT)
        half = min(delay, longest) / 2
        self.attempts += 1
        return max(half, retry_after or 0.0) + self._chance.uniform(0.0, half)
