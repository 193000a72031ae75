"""Whether and when a connection is retried."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_broker._connection.backoff import Backoff, Verdict, verdict
from trio_broker.exceptions import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    CertificateError,
    ClockSkewError,
    ConnectFailedError,
    ConnectionLostError,
    InvalidApiKeyError,
    InvalidSignatureError,
    NonceReusedError,
    ProtocolError,
    RateLimitedError,
)
from trio_broker.settings import ReconnectPolicy


def backoff(*, connected: bool = True, **policy: Any) -> Backoff:
    made = Backoff(ReconnectPolicy(**policy), random.Random(1))
    if connected:
        made.connected()
    return made


KEY = InvalidApiKeyError("auth", "Invalid API key")
SIGNATURE = InvalidSignatureError("auth", "Invalid signature")
SKEW = ClockSkewError("auth", "Request timestamp outside allowed window")
REFUSED = ConnectFailedError("refused")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (REFUSED, Verdict.RETRY),
        *((ConnectFailedError("", s), Verdict.RETRY) for s in (200, 408, 425, 429, 500, 503)),
        *(
            (ConnectFailedError("", s), Verdict.MISCONFIGURED)
            for s in (301, 307, 400, 401, 403, 404, 499)
        ),
        (CertificateError("expired"), Verdict.MISCONFIGURED),
        (KEY, Verdict.KEY_REFUSED),
        (SIGNATURE, Verdict.KEY_REFUSED),
        (AuthenticationError("auth", "Connection limit exceeded"), Verdict.RETRY),
        (AuthenticationError("auth", "RATE_LIMIT_EXCEEDED"), Verdict.RETRY),
        (RateLimitedError("auth", "Too many requests"), Verdict.RETRY),
        (AuthenticationError("auth", "Go away"), Verdict.RETRY_SLOWLY),
        (AuthenticationError("auth", "Not for unlimited accounts"), Verdict.RETRY_SLOWLY),
        (SKEW, Verdict.RETRY_SLOWLY),
        (NonceReusedError("auth", "Nonce has already been used"), Verdict.RETRY_SLOWLY),
        (AuthenticationTimeoutError("10 s"), Verdict.RETRY_SLOWLY),
        (ProtocolError("unreadable"), Verdict.ONCE_MORE),
        (ConnectionLostError("reset"), Verdict.RETRY),
        *(
            (ConnectionLostError("", code), Verdict.RETRY)
            for code in (1000, 1001, 1006, 1009, 1011, 1012, 1013, 4000)
        ),
        *((ConnectionLostError("", c), Verdict.ONCE_MORE) for c in (1002, 1003, 1007, 1008)),
        (BrokerError("internal"), Verdict.FINAL),
    ],
    ids=repr,
)
def test_every_end_of_a_connection_is_classified(error: BrokerError, expected: Verdict) -> None:
    assert verdict(error) is expected


MISCONFIGURED = [CertificateError("expired"), ConnectFailedError("", 404), KEY, SIGNATURE]
SLOW = [*MISCONFIGURED, SKEW, AuthenticationTimeoutError("10 s")]


@pytest.mark.parametrize("error", MISCONFIGURED, ids=repr)
def test_misconfiguration_is_final_at_the_first_connection(error: BrokerError) -> None:
    assert not backoff(connected=False, retry_first=True).may_retry(error)


@pytest.mark.parametrize("error", SLOW, ids=repr)
def test_misconfiguration_after_a_connection_is_retried_slowly(
    error: BrokerError,
) -> None:
    tries = backoff(initial_delay=0.01, max_delay=0.01)
    assert tries.may_retry(error)
    assert tries.next_delay() >= 30
    assert tries.may_retry(REFUSED)
    assert tries.next_delay() < 1


def test_clock_and_certificate_errors_are_retried_within_the_policy() -> None:
    tries = backoff(max_attempts=None)
    assert all(tries.may_retry(error) for error in [SKEW, CertificateError("expired")] * 100)


@pytest.mark.parametrize("refusals", [[KEY] * 3, [SIGNATURE] * 3, [KEY, SIGNATURE, KEY]])
def test_three_refusals_of_key_or_signature_in_a_row_are_final(
    refusals: list[BrokerError],
) -> None:
    tries = backoff(max_attempts=None)
    assert [tries.may_retry(error) for error in refusals] == [True, True, False]


@pytest.mark.parametrize("between", [SKEW, REFUSED, ConnectionLostError("reset")], ids=repr)
def test_refusals_of_the_key_count_only_in_a_row(between: BrokerError) -> None:
    tries = backoff(max_attempts=None)
    errors = [KEY, KEY, between, SIGNATURE, KEY]
    assert all(tries.may_retry(error) for error in errors)
    tries.connected()
    assert tries.may_retry(KEY)


def test_first_refused_timestamp_is_retried_with_retry_first() -> None:
    assert not backoff(connected=False).may_retry(SKEW)
    assert backoff(connected=False, retry_first=True).may_retry(SKEW)


def test_first_connection_is_retried_only_with_retry_first() -> None:
    error = ConnectFailedError("refused")
    assert not backoff(connected=False).may_retry(error)
    assert backoff(connected=False, retry_first=True).may_retry(error)
    assert backoff().may_retry(error)


def test_protocol_breach_is_retried_once_after_a_connection() -> None:
    error = ConnectionLostError("policy", 1008)
    assert not backoff(connected=False, retry_first=True).may_retry(error)
    tries = backoff()
    assert tries.may_retry(error)
    tries.lost(1.0, 10.9)
    assert not tries.may_retry(error)


def test_only_two_breaches_in_a_row_are_final() -> None:
    tries = backoff(max_attempts=None)
    for _ in range(3):
        assert tries.may_retry(ConnectionLostError("policy", 1008))
        assert tries.may_retry(ConnectFailedError("refused"))
    assert tries.may_retry(ProtocolError("unreadable"))
    assert not tries.may_retry(ConnectionLostError("policy", 1008))


def test_stable_connection_resets_the_backoff() -> None:
    tries = backoff(max_attempts=2)
    assert tries.may_retry(ConnectionLostError("policy", 1008))
    tries.next_delay()
    tries.next_delay()
    tries.lost(1.0, 10.9)
    assert tries.is_exhausted
    tries.lost(1.0, 11.0)
    assert (tries.attempts, tries.may_retry(ConnectFailedError("refused"))) == (0, True)
    assert tries.may_retry(ConnectionLostError("policy", 1008))


def test_unlimited_attempts_never_exhaust_or_overflow() -> None:
    tries = backoff(max_attempts=None)
    delays = [tries.next_delay() for _ in range(5000)]
    assert not tries.is_exhausted
    assert 16 <= min(delays[5:]) <= max(delays) <= 32


@given(seed=st.integers())
def test_each_delay_is_drawn_from_its_upper_half(seed: int) -> None:
    tries = Backoff(ReconnectPolicy(), random.Random(seed))
    for longest in (1, 2, 4, 8, 16, 32, 32, 32):
        assert longest / 2 <= tries.next_delay() <= longest


def test_clients_spread_over_half_of_the_first_delay() -> None:
    policy = ReconnectPolicy()
    delays = [Backoff(policy, random.Random(seed)).next_delay() for seed in range(200)]
    assert max(delays) - min(delays) > 0.45


def test_clients_reconnect_after_retry_after_and_spread_out() -> None:
    delays = [
        Backoff(ReconnectPolicy(), random.Random(seed)).next_delay(retry_after=7.0)
        for seed in range(100)
    ]
    assert 7.0 <= min(delays) < 7.1
    assert 7.4 < max(delays) <= 7.5


def test_initial_delay_above_max_delay_is_used() -> None:
    assert 30 <= backoff(initial_delay=60.0).next_delay() <= 60


def test_replaced_policy_is_used_from_then_on() -> None:
    tries = backoff()
    tries.next_delay()
    tries.policy = ReconnectPolicy(max_attempts=1)
    assert tries.is_exhausted
