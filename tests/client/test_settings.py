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


def make_settings(**changes: Any) -> Settings:
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
def test_url_is_shown_without_its_query(url: str, endpoint: Endpoint, shown: str) -> None:
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
        ("wss://a.example:65536/", "can't be read"),
        ("wss://a.example:-1/", "can't be read"),
        ("wss://a.example:8_0/", "can't be read"),
        ("wss://a.example:0/", "port 0"),
        ("wss://[::1]:0/", "port 0"),
        ("wss://::1/", "IPv6 address in brackets"),
        ("wss://[:::]/", "can't be read"),
        ("wss://[127.0.0.1]/", "can't be read"),
        ("wss://[v1.a]/", "only an IPv6 address"),
        ("wss://[::1]x/", "follows the brackets"),
        ("wss://[::1]x:80/", "follows the brackets"),
        ("wss://[fe80::1%eth0]/", "can't have a zone"),
        ("wss://[fe80::1%25eth0]:80/", "can't have a zone"),
        ("wss://a..b/", "nothing before a dot"),
        ("wss://.a/", "nothing before a dot"),
        ("wss://./", "nothing before a dot"),
        ("wss://a../", "nothing before a dot"),
        ("wss://../ws", "nothing before a dot"),
        (f"wss://{'a' * 64}.example/", "63 characters"),
        (f"wss://{'.'.join(['a' * 49] * 6)}/", "253 characters"),
        ("wss://*/", "letters, digits"),
        ("wss://a%2eb/", "letters, digits"),
        ("wss://a,b/", "letters, digits"),
        ("wss://a\\b/", "letters, digits"),
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
def test_invalid_url_is_refused_and_not_shown(url: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        parse_url(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["a.", "-a.b-", "a_b", "a" * 63, ".".join(["a" * 49] * 5) + ".aaa.", "10.0.0.1", "[::]"]
)
def test_host_that_can_be_resolved_is_accepted(host: str) -> None:
    endpoint = parse_url(f"wss://{host}/")
    endpoint.host.encode("idna")
    assert endpoint.url == f"wss://{host}/"


@pytest.mark.parametrize("variable", ["BROKER_WS_URL", "BROKER_BASE_URL"])
@pytest.mark.parametrize("url", ["wss://a..b/", "wss://a:0", "ftp://a.example", "wss://[::1", "a"])
def test_error_about_a_url_names_its_environment_variable(variable: str, url: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable} "):
        from_environment({**KEYS, variable: url})


def test_plaintext_is_allowed_only_to_this_machine_by_default() -> None:
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
def test_stream_url_is_below_the_base_url(base: str, url: str) -> None:
    assert stream_url(base) == url


@pytest.mark.parametrize("base", ["ftp://a.example", "a.example", "//a.example", "https://"])
def test_invalid_base_url_is_refused(base: str) -> None:
    with pytest.raises(ConfigurationError, match="the base URL"):
        stream_url(base)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Limits)])
def test_limit_must_be_a_positive_int(name: str) -> None:
    options: dict[str, Any] = {name: 1}
    assert getattr(Limits(**options), name) == 1
    for wrong in (0, -1, 1.5, True, "5", None):
        options = {name: wrong}
        with pytest.raises(ConfigurationError, match=f"{name} must be an int of at least 1"):
            Limits(**options)


SECONDS = [name for name in OPTIONS if name.endswith(("_timeout", "_interval", "_grace"))]


@pytest.mark.parametrize("name", SECONDS)
def test_timeouts_must_be_positive(name: str) -> None:
    for right in (1, 0.5, float("inf")):
        assert getattr(make_settings(**{name: right}), name) == right
    for wrong in (0, -1, 0.0, float("nan")):
        with pytest.raises(ConfigurationError, match=f"{name} must be more than 0 seconds"):
            make_settings(**{name: wrong})
    for odd in (True, "5", None):
        with pytest.raises(ConfigurationError, match=f"{name} must be a number of seconds"):
            make_settings(**{name: odd})


@pytest.mark.parametrize("name", ["api_key", "secret_key"])
def test_key_must_be_text_without_surrounding_white_space(name: str) -> None:
    for wrong in ("", "  ", None, b"key"):
        with pytest.raises(ConfigurationError, match=f"{name} is empty or not a str"):
            make_settings(**{name: wrong})
    for wrong in ("hush\n", " hush", "hu\x00sh"):
        with pytest.raises(ConfigurationError, match=f"{name} has white space") as caught:
            make_settings(**{name: wrong})
        assert "hush" not in str(caught.value)


def test_signing_key_follows_the_dialect_unless_it_is_set() -> None:
    keys = {
        (dialect, key): make_settings(dialect=dialect, signing_key=key).effective_signing_key
        for dialect in ("clients", "docs")
        for key in (None, "derived", "raw")
    }
    assert {pair: key for pair, key in keys.items() if key == "raw"} == dict.fromkeys(
        [("clients", "raw"), ("docs", None), ("docs", "raw")], "raw"
    )


def test_refusal_texts_are_texts() -> None:
    assert make_settings().refusal_texts == ()
    assert make_settings(refusal_texts=["No pool", "Paused"]).refusal_texts == ("No pool", "Paused")
    assert make_settings(refusal_texts=iter(["No pool"])).refusal_texts == ("No pool",)
    for wrong in ("No pool", b"No pool", 5, None, [""], ["  "], [b"No pool"], [None]):
        with pytest.raises(ConfigurationError, match="refusal_texts must"):
            make_settings(refusal_texts=wrong)


def test_signing_key_is_derived_or_raw() -> None:
    assert make_settings(signing_key="raw").signing_key == "raw"
    with pytest.raises(ConfigurationError, match="'derived' or 'raw'"):
        make_settings(signing_key="cooked")


def test_tls_context_needs_a_tls_url() -> None:
    context = ssl.create_default_context()
    assert make_settings(ssl_context=context).ssl_context is context
    with pytest.raises(ConfigurationError, match="ssl_context"):
        make_settings(ssl_context=context, endpoint=parse_url("ws://localhost/"))


def test_limits_must_be_a_limits_object() -> None:
    with pytest.raises(TypeError):
        make_settings(limits={"max_subscriptions": 5})


def test_settings_show_no_key() -> None:
    assert "of-mine" not in repr(make_settings())


KEYS = {"BROKER_API_KEY": " key ", "BROKER_SECRET_KEY": "secret"}


def test_environment_has_the_keys_and_one_of_two_urls() -> None:
    url = {"BROKER_WS_URL": "wss://a.example/ws", "BROKER_BASE_URL": "https://b.example"}
    assert from_environment({**KEYS, **url}) == ("key", "secret", "wss://a.example/ws")
    base = {"BROKER_WS_URL": " ", "BROKER_BASE_URL": "https://b.example"}
    assert from_environment({**KEYS, **base})[2] == "wss://b.example/ws/v1/stream"


def test_process_environment_is_read_by_the_call(
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
def test_missing_environment_variable_is_named(environ: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        from_environment(environ)


@pytest.mark.parametrize("value", [-1, 2.0, True, "5"])
def test_max_attempts_must_be_an_int_or_none(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_attempts"):
        ReconnectPolicy(max_attempts=value)
    assert ReconnectPolicy(max_attempts=None).max_attempts is None


@pytest.mark.parametrize("name", ["initial_delay", "max_delay"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "1", True])
def test_delay_must_be_a_positive_finite_number(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        ReconnectPolicy(**{name: value})


def test_retry_first_must_be_a_bool() -> None:
    wrong: Any = 1
    with pytest.raises(ConfigurationError, match="retry_first"):
        ReconnectPolicy(retry_first=wrong)


def test_reconnect_must_be_a_reconnect_policy() -> None:
    with pytest.raises(TypeError):
        make_settings(reconnect=5)


HUGE = 10**2_000_000


@pytest.mark.parametrize("value", [HUGE, -HUGE], ids=["positive", "negative"])
def test_huge_number_is_refused_without_being_printed(value: int) -> None:
    # Python refuses to print it, and would take seconds if it didn't.
    with pytest.raises(ConfigurationError, match="request_timeout"):
        make_settings(request_timeout=value)
    with pytest.raises(ConfigurationError, match="max_subscriptions"):
        Limits(max_subscriptions=value)
    with pytest.raises(ConfigurationError, match="initial_delay"):
        ReconnectPolicy(initial_delay=value)
    if value < 0:
        with pytest.raises(ConfigurationError, match="max_attempts"):
            ReconnectPolicy(max_attempts=value)
    flag: Any = value
    with pytest.raises(ConfigurationError, match="retry_first must be True or False"):
        ReconnectPolicy(retry_first=flag)


@pytest.mark.parametrize("name", ["request_timeout", "connect_timeout"])
def test_number_too_large_for_a_float_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is too large"):
        make_settings(**{name: 10**400})
