from __future__ import annotations

import ssl
from typing import Any

import attrs
import pytest

from trio_broker.exceptions import ConfigurationError
from trio_broker.settings import (
    Endpoint,
    Limits,
    ReconnectPolicy,
    Settings,
    from_environment,
    parse_url,
    stream_url,
)

OPTIONS: dict[str, Any] = {
    "api_key": "key-of-mine",
    "secret_key": "secret-of-mine",
    "endpoint": parse_url("wss://broker.example/ws"),
    "reconnect": ReconnectPolicy(),
    "limits": Limits(),
    "connect_timeout": 10.0,
    "auth_timeout": 10.0,
    "heartbeat_interval": 30.0,
    "heartbeat_timeout": 10.0,
    "write_timeout": 10.0,
    "request_timeout": 10.0,
    "reply_grace": 30.0,
    "resolve_timeout": 30.0,
    "poll_interval": 15.0,
    "close_timeout": 5.0,
    "transport": "trio-websocket",
    "signing_key": "derived",
}


def made(**changes: Any) -> Settings:
    # An option that another part of the library adds later needs no change here.
    return Settings(**{**OPTIONS, **changes})


@pytest.mark.parametrize(
    ("url", "endpoint", "shown"),
    [
        ("wss://a.example/ws", Endpoint(True, "a.example", 443, "/ws"), "wss://a.example/ws"),
        ("wss://A.Example", Endpoint(True, "a.example", 443, "/"), "wss://a.example/"),
        (
            "wss://a.example:8443/ws/v1?x=1",
            Endpoint(True, "a.example", 8443, "/ws/v1?x=1"),
            "wss://a.example:8443/ws/v1",
        ),
        ("ws://127.0.0.1/ws", Endpoint(False, "127.0.0.1", 80, "/ws"), "ws://127.0.0.1/ws"),
        ("ws://[::1]:9/ws", Endpoint(False, "::1", 9, "/ws"), "ws://[::1]:9/ws"),
        ("ws://localhost:443/", Endpoint(False, "localhost", 443, "/"), "ws://localhost:443/"),
    ],
)
def test_a_url_names_an_endpoint_and_is_shown_without_its_query(
    url: str, endpoint: Endpoint, shown: str
) -> None:
    assert parse_url(url) == endpoint
    assert endpoint.url == shown


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (b"wss://a.example", "must be a str, not bytes"),
        (None, "must be a str"),
        ("https://a.example", r"wss:// .*not with 'https'"),
        ("//a.example", "not with 'nothing'"),
        ("a.example/ws", "names no host"),
        ("wss:///ws", "names no host"),
        ("", "names no host"),
        ("wss://a.example:port/", "can't be read"),
        ("wss://a.example:99999/", "can't be read"),
        ("wss://[::1/", "can't be read"),
        ("wss://a.example/ ws", "a space, a control or a non-ASCII"),
        ("wss://a.example/\n", "a space, a control or a non-ASCII"),
        ("wss://bücher.example/", "a space, a control or a non-ASCII"),
        ("wss://me:hush@a.example/", "user name or password"),
        ("wss://me@a.example/", "user name or password"),
        ("wss://a.example/#hush", "fragment"),
        ("ws://a.example/", "without TLS"),
        ("ws://127.0.0.1.example/", "without TLS"),
        ("ws://192.168.0.1/", "without TLS"),
    ],
)
def test_a_url_that_cannot_work_is_refused_and_not_repeated(url: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        parse_url(url)
    assert "hush" not in str(caught.value)


def test_without_tls_a_client_goes_to_this_machine_unless_it_is_told_otherwise() -> None:
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "[::1]"):
        assert parse_url(f"ws://{host}/").is_loopback
    assert not parse_url("ws://a.example/", allow_insecure=True).is_loopback


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://a.example", "wss://a.example/ws/v1/stream"),
        ("https://a.example/", "wss://a.example/ws/v1/stream"),
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/ws/v1/stream"),
        ("https://a.example/broker/", "wss://a.example/broker/ws/v1/stream"),
        ("wss://a.example", "wss://a.example/ws/v1/stream"),
        ("ws://localhost", "ws://localhost/ws/v1/stream"),
    ],
)
def test_the_stream_is_below_the_base_url(base: str, url: str) -> None:
    assert stream_url(base) == url


@pytest.mark.parametrize("base", ["ftp://a.example", "a.example", "//a.example", "https://"])
def test_a_base_url_that_cannot_work_is_refused(base: str) -> None:
    with pytest.raises(ConfigurationError, match="the base URL"):
        stream_url(base)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Limits)])
def test_a_limit_is_a_whole_number_of_at_least_one(name: str) -> None:
    options: dict[str, Any] = {name: 1}
    assert getattr(Limits(**options), name) == 1
    for wrong in (0, -1, 1.5, True, "5", None):
        options = {name: wrong}
        with pytest.raises(ConfigurationError, match=f"{name} must be an int of at least 1"):
            Limits(**options)


SECONDS = [name for name in OPTIONS if name.endswith(("_timeout", "_interval", "_grace"))]


@pytest.mark.parametrize("name", SECONDS)
def test_a_time_is_more_than_no_seconds(name: str) -> None:
    for right in (1, 0.5, float("inf")):
        assert getattr(made(**{name: right}), name) == right
    for wrong in (0, -1, 0.0, float("nan")):
        with pytest.raises(ConfigurationError, match=f"{name} must be more than 0 seconds"):
            made(**{name: wrong})
    for odd in (True, "5", None):
        with pytest.raises(ConfigurationError, match=f"{name} must be a number of seconds"):
            made(**{name: odd})


@pytest.mark.parametrize("name", ["api_key", "secret_key"])
def test_a_key_is_a_text_without_white_space_around_it(name: str) -> None:
    for wrong in ("", "  ", None, b"key"):
        with pytest.raises(ConfigurationError, match=f"{name} is empty or not a str"):
            made(**{name: wrong})
    for wrong in ("hush\n", " hush", "hu\x00sh"):
        with pytest.raises(ConfigurationError, match=f"{name} has white space") as caught:
            made(**{name: wrong})
        assert "hush" not in str(caught.value)


def test_the_way_of_signing_is_one_of_two() -> None:
    assert made(signing_key="raw").signing_key == "raw"
    with pytest.raises(ConfigurationError, match="'derived' or 'raw'"):
        made(signing_key="cooked")


def test_a_tls_context_needs_tls() -> None:
    context = ssl.create_default_context()
    assert made(ssl_context=context).ssl_context is context
    with pytest.raises(ConfigurationError, match="ssl_context"):
        made(ssl_context=context, endpoint=parse_url("ws://localhost/"))


def test_limits_are_limits() -> None:
    with pytest.raises(TypeError):
        made(limits={"max_subscriptions": 5})


def test_settings_show_no_key() -> None:
    assert "of-mine" not in repr(made())


KEYS = {"BROKER_API_KEY": " key ", "BROKER_SECRET_KEY": "secret"}


def test_the_environment_names_keys_and_url() -> None:
    url = {"BROKER_WS_URL": "wss://a.example/ws", "BROKER_BASE_URL": "https://b.example"}
    assert from_environment({**KEYS, **url}) == ("key", "secret", "wss://a.example/ws")
    base = {"BROKER_WS_URL": " ", "BROKER_BASE_URL": "https://b.example"}
    assert from_environment({**KEYS, **base})[2] == "wss://b.example/ws/v1/stream"


def test_the_process_environment_is_read_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**KEYS, "BROKER_WS_URL": "wss://a.example/ws"}.items():
        monkeypatch.setenv(name, value)
    assert from_environment() == ("key", "secret", "wss://a.example/ws")


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, "BROKER_API_KEY is not set"),
        ({"BROKER_API_KEY": "key", "BROKER_SECRET_KEY": " "}, "BROKER_SECRET_KEY is not set"),
        (KEYS, "BROKER_WS_URL and BROKER_BASE_URL"),
    ],
)
def test_what_the_environment_lacks_is_named(environ: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        from_environment(environ)


@pytest.mark.parametrize("value", [-1, 2.0, True, "5"])
def test_attempts_are_a_number_of_tries_or_none(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_attempts"):
        ReconnectPolicy(max_attempts=value)
    assert ReconnectPolicy(max_attempts=None).max_attempts is None


@pytest.mark.parametrize("name", ["initial_delay", "max_delay"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "1", True])
def test_a_delay_is_a_finite_number_of_seconds(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        ReconnectPolicy(**{name: value})


def test_whether_the_first_is_retried_is_yes_or_no() -> None:
    wrong: Any = 1
    with pytest.raises(ConfigurationError, match="retry_first"):
        ReconnectPolicy(retry_first=wrong)


def test_a_policy_is_a_policy() -> None:
    with pytest.raises(TypeError):
        made(reconnect=5)


@pytest.mark.parametrize("name", ["request_timeout", "connect_timeout"])
def test_a_number_that_no_float_holds_is_no_number_of_seconds(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is too large"):
        made(**{name: 10**400})
