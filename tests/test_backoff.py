"""Whether, and when, the next connection is tried."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_broker.backoff import Backoff, Verdict, verdict
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
)
from trio_broker.settings import ReconnectPolicy


def backoff(*, connected: bool = True, **policy: Any) -> Backoff:
    made = Backoff(ReconnectPolicy(**policy), random.Random(1))
    if connected:
        made.connected()
    return made


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectFailedError("refused"), Verdict.RETRY),
        *((ConnectFailedError("", s), Verdict.RETRY) for s in (200, 408, 425, 429, 500, 503)),
        *((ConnectFailedError("", s), Verdict.FINAL) for s in (301, 307, 400, 401, 403, 404, 499)),
        (CertificateError("expired"), Verdict.FINAL),
        (InvalidApiKeyError("auth", "Invalid API key"), Verdict.FINAL),
        (InvalidSignatureError("auth", "Invalid signature"), Verdict.FINAL),
        (AuthenticationError("auth", "Connection limit exceeded"), Verdict.RETRY),
        (AuthenticationError("auth", "RATE_LIMIT_EXCEEDED"), Verdict.RETRY),
        (AuthenticationError("auth", "Go away"), Verdict.ONCE_MORE),
        (AuthenticationError("auth", "Not for unlimited accounts"), Verdict.ONCE_MORE),
        (ClockSkewError("auth", "Request timestamp outside allowed window"), Verdict.ONCE_MORE),
        (NonceReusedError("auth", "Nonce has already been used"), Verdict.ONCE_MORE),
        (AuthenticationTimeoutError("10 s"), Verdict.ONCE_MORE),
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
def test_what_can_pass_is_retried_and_what_cannot_is_not(
    error: BrokerError, expected: Verdict
) -> None:
    assert verdict(error) is expected


def test_the_first_connection_is_retried_only_where_that_is_wanted() -> None:
    error = ConnectFailedError("refused")
    assert not backoff(connected=False).may_retry(error)
    assert backoff(connected=False, retry_first=True).may_retry(error)
    assert backoff().may_retry(error)


def test_a_suspicious_end_is_tried_once_more_on_a_client_that_was_connected() -> None:
    error = ConnectionLostError("policy", 1008)
    assert not backoff(connected=False, retry_first=True).may_retry(error)
    tries = backoff()
    assert tries.may_retry(error)
    tries.lost(9.9)
    assert not tries.may_retry(error)


def test_only_two_in_a_row_are_too_many() -> None:
    tries = backoff(max_attempts=None)
    for _ in range(3):
        assert tries.may_retry(ConnectionLostError("policy", 1008))
        assert tries.may_retry(ConnectFailedError("refused"))
    assert tries.may_retry(AuthenticationTimeoutError("10 s"))
    assert not tries.may_retry(ConnectionLostError("policy", 1008))


def test_after_a_stable_while_all_is_forgotten() -> None:
    tries = backoff(max_attempts=2)
    assert tries.may_retry(ConnectionLostError("policy", 1008))
    tries.next_delay()
    tries.next_delay()
    tries.lost(9.9)
    assert tries.is_exhausted
    tries.lost(10.0)
    assert (tries.attempts, tries.may_retry(ConnectFailedError("refused"))) == (0, True)
    assert tries.may_retry(ConnectionLostError("policy", 1008))


def test_for_ever_is_never_exhausted_and_never_overflows() -> None:
    tries = backoff(max_attempts=None)
    delays = [tries.next_delay() for _ in range(5000)]
    assert not tries.is_exhausted
    assert 16 <= min(delays[5:]) <= max(delays) <= 32


@given(seed=st.integers())
def test_each_delay_is_drawn_from_its_upper_half(seed: int) -> None:
    tries = Backoff(ReconnectPolicy(), random.Random(seed))
    for longest in (1, 2, 4, 8, 16, 32, 32, 32):
        assert longest / 2 <= tries.next_delay() <= longest


def test_many_clients_are_spread_over_at_least_half_of_the_first_delay() -> None:
    policy = ReconnectPolicy()
    delays = [Backoff(policy, random.Random(seed)).next_delay() for seed in range(200)]
    assert max(delays) - min(delays) > 0.45


def test_nobody_comes_before_the_broker_asked_them_to_nor_all_at_once() -> None:
    delays = [
        Backoff(ReconnectPolicy(), random.Random(seed)).next_delay(retry_after=7.0)
        for seed in range(100)
    ]
    assert 7.0 <= min(delays) < 7.1
    assert 7.4 < max(delays) <= 7.5


def test_a_first_delay_over_the_longest_is_taken_at_its_word() -> None:
    assert 30 <= backoff(initial_delay=60.0).next_delay() <= 60


def test_a_policy_that_is_replaced_holds_from_then_on() -> None:
    tries = backoff()
    tries.next_delay()
    tries.policy = ReconnectPolicy(max_attempts=1)
    assert tries.is_exhausted
