"""The doctor's steps for the settings, the client, the clock and the versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from trio.testing import MockClock

import trio_broker
from tests.cli.doctor.harness import (
    KEY,
    SECRET,
    all_ok,
    exit_status,
    failing,
    in_front_of,
    resolve_to,
    results,
    run_doctor,
    text_of,
)
from trio_broker import key_fingerprint
from trio_broker.cli.doctor import checks
from trio_broker.cli.doctor.steps import ClockSkew, Outcome
from trio_broker.sandbox import open_sandbox

# --- Success --------------------------------------------------------------------------------


async def test_working_broker_passes_all_steps(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        found = await run_doctor(sandbox.url + "?token=hidden")
        assert sandbox.orders() == ()
    assert results(found) == all_ok()
    assert exit_status(found) == 0
    port = urlsplit(sandbox.url).port
    configuration = text_of(found, "configuration")
    assert configuration == (
        f"ok: SANDBOX account {key_fingerprint(KEY)} at {sandbox.url}; "
        "BROKER_API_KEY, BROKER_SECRET_KEY from the environment; BROKER_WS_URL from --url; None"
    )
    assert text_of(found, "dns") == "ok: 127.0.0.1 is already an address; None"
    assert text_of(found, "tcp") == "ok: 127.0.0.1 answered; None"
    assert port is not None
    assert "ws:// has no TLS" in text_of(found, "tls")
    assert "HTTP status 101" in text_of(found, "handshake")
    assert "less than 30 s" in text_of(found, "clock")
    assert "5 calls of get_balances" in text_of(found, "latency")
    assert "a snapshot of 10 assets" in text_of(found, "subscription")
    for text in (f"trio-broker {trio_broker.__version__}", f"trio {trio.__version__}",
                 "trio-websocket ", "Python 3.", "OpenSSL"):  # fmt: skip
        assert text in text_of(found, "versions")


async def test_each_transport_works(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        found = await run_doctor(sandbox.url, transport="websockets")
    assert results(found) == all_ok()
    assert "websockets 1" in text_of(found, "versions")


# --- Configuration --------------------------------------------------------------------------


def write(text: str, name: str = ".env", mode: int = 0o600) -> Path:
    file = Path(name)
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.usefixtures("no_keys")
async def test_missing_settings_are_named(autojump_clock: MockClock) -> None:
    found = await run_doctor(None)
    assert results(found) == failing("configuration")
    assert text_of(found, "configuration").startswith(
        "failed: the environment variable BROKER_API_KEY is not set (nothing was found); set it in"
    )
    assert exit_status(found) == 2
    assert text_of(found, "subscription") == "skipped: configuration failed; None"


@pytest.mark.usefixtures("no_keys")
async def test_found_settings_are_named_with_the_missing_one(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    write(f"BROKER_API_KEY={KEY}\n")
    monkeypatch.setenv("BROKER_BASE_URL", "https://broker.example")
    found = await run_doctor(None)
    for text in ("BROKER_SECRET_KEY is not set", "BROKER_API_KEY from .env",
                 "BROKER_BASE_URL from the environment"):  # fmt: skip
        assert text in text_of(found, "configuration")


@pytest.mark.parametrize(
    ("url", "flags", "message"),
    [
        ("ftp://broker.example", {}, "must begin with wss://"),
        ("ws://broker.example", {}, "without TLS"),
        ("wss://127.0.0.1:1", {"env_file": Path("none")}, "there is no file 'none'"),
        ("wss://127.0.0.1:1", {"secret_key_stdin": True}, "standard input is empty"),
    ],
)
async def test_invalid_settings_fail(
    url: str,
    flags: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    found = await run_doctor(url, **flags)
    assert results(found) == failing("configuration")
    assert message in text_of(found, "configuration")
    assert found["configuration"].finding.advice
    assert exit_status(found) == 2


async def test_transport_that_is_not_installed_fails(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    def not_found(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    found = await run_doctor("wss://127.0.0.1:1", transport="websockets")
    assert results(found) == failing("configuration")
    assert "pip install 'trio-broker[speed]'" in text_of(found, "configuration")
    assert "websockets (not installed)" in text_of(found, "versions")


@pytest.mark.parametrize(
    ("mode", "result"), [(0o600, "ok"), (0o640, "slow"), (0o604, "slow"), (0o622, "ok")]
)
async def test_secret_readable_by_others_is_a_warning(
    mode: int, result: str, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        settings = f"BROKER_API_KEY={KEY}\nBROKER_SECRET_KEY={SECRET}\n"
        file = write(settings + f"BROKER_WS_URL={sandbox.url}\n", "my keys.env", mode)
        found = await run_doctor(None, env_file=file)
    assert results(found) == {**all_ok(), "configuration": result}
    assert exit_status(found) == 0
    assert "BROKER_WS_URL from my keys.env" in text_of(found, "configuration")
    assert ("chmod 600 'my keys.env'" in text_of(found, "configuration")) == (result == "slow")


def test_pipe_is_not_readable_by_others() -> None:
    os.mkfifo("pipe", 0o644)
    assert not checks.is_readable_by_others(Path("pipe"))


async def test_remote_host_without_tls_is_slow(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        resolve_to("127.0.0.1")
        port = urlsplit(sandbox.url).port
        url = f"ws://broker.example:{port}/ws/v1/stream"
        found = await run_doctor(url, allow_insecure=True)
    assert results(found) == all_ok(configuration="slow")
    assert "LIVE account" in text_of(found, "configuration")
    assert "use wss://" in text_of(found, "configuration")


# --- Authentication -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advice"),
    [("BROKER_API_KEY", "check BROKER_API_KEY"), ("BROKER_SECRET_KEY", "check BROKER_SECRET_KEY")],
)
async def test_wrong_keys_fail(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setenv(name, "wrong-indeed")
    async with open_sandbox() as sandbox:
        found = await run_doctor(sandbox.url)
    assert results(found) == failing("authentication", tls="skipped")
    assert advice in text_of(found, "authentication")
    assert "wrong-indeed" not in str(found)
    assert exit_status(found) == 3


async def test_authentication_without_a_reply_fails(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.ignore(op="auth"):
            found = await run_doctor(sandbox.url, limit=2)
    assert results(found) == failing("authentication", tls="skipped")
    assert "accepts connections but doesn't reply" in text_of(found, "authentication")
    assert exit_status(found) == 4


async def test_lost_connection_fails_with_the_advice_to_retry(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        faults = sandbox.faults
        found = await run_doctor(sandbox.url, after={"handshake": faults.kill})
    assert results(found) == failing("authentication", tls="skipped")
    assert "worked a moment ago: try again" in text_of(found, "authentication")
    assert exit_status(found) == 4


# --- The clock ------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [60.0, -60.0])
async def test_refused_timestamp_fails_the_clock(offset: float, autojump_clock: MockClock) -> None:
    async with open_sandbox(clock=lambda: time.time() + offset) as sandbox:
        found = await run_doctor(sandbox.url)
    assert results(found) == failing("authentication", tls="skipped", clock="failed")
    assert "synchronize this machine's clock" in text_of(found, "authentication")
    assert "off by 30 s or more" in text_of(found, "clock")
    assert exit_status(found) == 3


async def test_refused_timestamp_is_measured_by_the_date_header(
    autojump_clock: MockClock,
) -> None:
    def clock() -> float:
        return time.time() + 60

    async with (
        open_sandbox(clock=clock) as sandbox,
        in_front_of(sandbox, date=clock) as url,
    ):
        found = await run_doctor(url)
    low, high = re.findall(r"[+-]\d+\.\d", text_of(found, "clock"))
    assert -62.5 < float(low) <= -60 <= float(high) < -50
    assert "the broker refused the timestamp" in text_of(found, "clock")


@pytest.mark.parametrize(
    ("offset", "result"), [(0, "ok"), (4.9, "ok"), (-10, "slow"), (10, "slow"), (-40, "failed")]
)
async def test_clock_is_compared_with_the_date_header(
    offset: float, result: Outcome, autojump_clock: MockClock
) -> None:
    now = float(int(time.time()))
    async with (
        open_sandbox(clock=lambda: now) as sandbox,
        in_front_of(sandbox, date=lambda: now - offset) as url,
    ):
        found = await run_doctor(url, clock=lambda: now)
    # No other step is skipped.
    assert results(found) == all_ok(clock=result)
    assert exit_status(found) == (1 if result == "failed" else 0)
    assert ("synchronize" in text_of(found, "clock")) == (result != "ok")


def test_round_trip_limits_the_precision_of_the_skew() -> None:
    # This machine's clock is correct, and the response was written in second 100.
    skew = ClockSkew.from_date(100.0, 100.4, 100.5)
    assert str(skew) == "between -0.6 and +0.5 s"
    assert skew.certain == 0
    assert ClockSkew(7.0, 8.0).certain == 7
    assert ClockSkew(-8.0, -7.0).certain == 7


# --- Latency and subscription ---------------------------------------------------------------


def test_latency_is_the_minimum_and_the_median() -> None:
    found = checks.evaluate_latency([0.4, 0.6, 0.5])
    assert (found.result, found.advice) == ("ok", None)
    assert "3 calls" in found.detail
    assert "minimum 400.0 ms, median 500.0 ms" in found.detail
    found = checks.evaluate_latency([0.6])
    assert found.result == "slow"
    assert "1 call of" in found.detail


async def test_slow_calls_stop_at_the_timeout(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.delay(0.9, op="balances"):
            found = await run_doctor(sandbox.url, limit=2)
    assert found["latency"].finding.result == "slow"
    assert "2 calls of get_balances: minimum 9" in text_of(found, "latency")
    assert "far away or busy" in text_of(found, "latency")


@pytest.mark.parametrize(
    ("inject", "text", "expected"),
    [
        (lambda faults: faults.swallow(op="balances"), "no reply within 2 s", 4),
        (lambda faults: faults.kill(), "try again", 4),
        (lambda faults: faults.replace({"op": "balances", "error": "no \x1b[2J"},
                                       op="balances"), "no \x1b[2J", 5),
    ],
    ids=["mute", "killed", "refused"],
)  # fmt: skip
async def test_failed_calls_fail_the_latency(
    inject: Callable[[Any], object], text: str, expected: int, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        then = partial(inject, sandbox.faults)
        found = await run_doctor(sandbox.url, limit=2, after={"authentication": then})
    assert results(found) == failing("latency", tls="skipped", clock="ok")
    assert text in text_of(found, "latency")
    assert exit_status(found) == expected


async def test_refused_channel_fails_the_subscription(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.refuse_channel("balances", "not for you"):
            found = await run_doctor(sandbox.url)
    assert results(found) == failing("subscription", tls="skipped")
    assert "not for you" in text_of(found, "subscription")
    assert exit_status(found) == 5


@pytest.mark.parametrize(
    ("op", "text"),
    [("subscribe", "not acknowledged within 2 s"), ("balances", "no snapshot received within 2 s")],
)
async def test_silent_subscription_fails(op: str, text: str, autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        then = partial(sandbox.faults.swallow, op=op)
        found = await run_doctor(sandbox.url, limit=2, after={"latency": then})
    assert results(found) == failing("subscription", tls="skipped")
    assert text in text_of(found, "subscription")
    assert exit_status(found) == 4


async def test_push_does_not_count_as_the_snapshot(autojump_clock: MockClock) -> None:
    push = json.dumps({"ch": "balances", "data": []})
    async with open_sandbox() as sandbox:

        def then() -> None:
            sandbox.faults.delay(0.5, op="balances")
            nursery.start_soon(push_later)

        async def push_later() -> None:
            await trio.sleep(0.25)
            sandbox.push(push)

        async with trio.open_nursery() as nursery:
            found = await run_doctor(sandbox.url, after={"latency": then})
    assert "a snapshot of 10 assets" in text_of(found, "subscription")
