"""What a user configures, checked when it is given and not when it is first used."""

from __future__ import annotations

import ipaddress
import math
import os
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import SplitResult, urlsplit

import attrs

from trio_broker.exceptions import ConfigurationError
from trio_broker.signing import SigningKey

TransportName: TypeAlias = Literal["trio-websocket", "websockets"]

STREAM_PATH: Final = "/ws/v1/stream"
_SCHEMES: Final = {"https": "wss", "http": "ws"}


@attrs.frozen
class Endpoint:
    """Where a WebSocket is opened.

    Attributes:
        secure: Whether TLS is used.
        host: The host's name or address, without brackets.
        port: The TCP port.
        resource: The path and query of the handshake's request.
    """

    secure: bool
    host: str
    port: int
    resource: str

    @property
    def netloc(self) -> str:
        """Host and port as an URL and a ``Host`` header have them (RFC 6455, section 4.1)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without its query, which may hold what isn't for every eye."""
        path = self.resource.partition("?")[0]
        return f"{'wss' if self.secure else 'ws'}://{self.netloc}{path}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, by its literal name or address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_url(url: str, *, allow_insecure: bool = False) -> Endpoint:
    """The endpoint that a WebSocket URL names.

    Args:
        url: A ``wss://`` URL, or a ``ws://`` one.
        allow_insecure: Whether ``ws://`` may go to hosts other than this machine.

    Raises:
        ConfigurationError: The URL can't be used; the message says why.
    """
    parts, port = _split(url, "ws_url")
    if parts.scheme not in {"ws", "wss"}:
        raise ConfigurationError(
            f"ws_url must begin with wss:// (or ws://), not with {parts.scheme or 'nothing'!r}; "
            "a base URL goes into BROKER_BASE_URL"
        )
    secure = parts.scheme == "wss"
    endpoint = Endpoint(
        secure=secure,
        host=parts.hostname or "",
        port=port if port is not None else (443 if secure else 80),
        resource=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )
    if not (secure or allow_insecure or endpoint.is_loopback):
        raise ConfigurationError(
            f"ws_url goes to {endpoint.host!r} without TLS: use wss://, or pass "
            "allow_insecure=True if everyone on the way may read your account and trade on it"
        )
    return endpoint


def stream_url(base_url: str) -> str:
    """The WebSocket URL below a base URL, as the broker's documentation forms it.

    Args:
        base_url: ``https://…`` or ``http://…`` (``wss://`` and ``ws://`` are taken as well).

    Raises:
        ConfigurationError: The URL can't be used; the message says why.
    """
    parts, _ = _split(base_url, "the base URL")
    scheme = _SCHEMES.get(parts.scheme, parts.scheme)
    if scheme not in {"ws", "wss"}:
        raise ConfigurationError(
            f"the base URL must begin with https:// (or http://), not with {parts.scheme!r}"
        )
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{STREAM_PATH}"


def _split(url: str, name: str) -> tuple[SplitResult, int | None]:
    # No message here shows the URL: someone may have put a secret into it.
    if not isinstance(url, str):
        raise ConfigurationError(f"{name} must be a str, not {type(url).__name__}")
    if not url.isascii() or any(character <= " " for character in url):
        raise ConfigurationError(f"{name} has a space, a control or a non-ASCII character in it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError(f"{name} isn't a URL: its host or port can't be read") from None
    if not parts.hostname:
        raise ConfigurationError(f"{name} names no host")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"{name} must not hold a user name or password")
    if parts.fragment:
        raise ConfigurationError(f"{name} must not have a fragment (RFC 6455, section 3)")
    return parts, port


def _at_least_one(_: object, attribute: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{attribute.name} must be an int of at least 1, not {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """The broker's limits, as this client keeps them.

    Attributes:
        max_subscriptions: Channels on one connection (the broker's documents say 100, or 50).
        max_message_size: The largest message that is sent, in bytes.
        max_receive_size: The largest message that is accepted, in bytes.
        messages_per_second: How many messages leave in any rolling 1.1 seconds.
    """

    max_subscriptions: int = attrs.field(default=100, validator=_at_least_one)
    max_message_size: int = attrs.field(default=64 * 1024, validator=_at_least_one)
    max_receive_size: int = attrs.field(default=1024 * 1024, validator=_at_least_one)
    messages_per_second: int = attrs.field(default=100, validator=_at_least_one)


def _flag(_: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{attribute.name} must be True or False, not {value!r}")


def _attempts(_: object, attribute: attrs.Attribute[int], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(
            f"{attribute.name} must be an int of at least 0, or None for ever, not {value!r}"
        )


def check_seconds(name: str, value: object) -> None:
    """Refuse what is no time to wait for.

    Args:
        name: The option, for the error.
        value: Seconds, more than 0; `math.inf` for no limit.

    Raises:
        ConfigurationError: It isn't that.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not value > 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds, not {value!r}")
    if isinstance(value, int) and value > sys.maxsize:
        raise ConfigurationError(f"{name} is too large; use math.inf for no limit")


def _seconds(_: object, attribute: attrs.Attribute[float], value: object) -> None:
    check_seconds(attribute.name, value)


def _finite_seconds(_: object, attribute: attrs.Attribute[float], value: object) -> None:
    _seconds(_, attribute, value)
    if value == math.inf:
        raise ConfigurationError(f"{attribute.name} must be finite")


@attrs.frozen(kw_only=True)
class ReconnectPolicy:
    """How a lost connection is replaced.

    Attributes:
        max_attempts: How many tries in a row may fail, or end before `stable_after`; None for
            ever, 0 for no reconnection at all.
        initial_delay: Seconds before the first try; doubled for each further one. Each delay is
            drawn from its upper half.
        max_delay: The longest such delay in seconds. A broker's ``Retry-After`` may be longer.
        stable_after: Seconds of health after which a connection counts as stable, and earlier
            tries are forgotten.
        retry_first: Whether the first connection is retried too, for a service that may start
            before its network.
    """

    max_attempts: int | None = attrs.field(default=5, validator=_attempts)
    initial_delay: float = attrs.field(default=1.0, validator=_finite_seconds)
    max_delay: float = attrs.field(default=32.0, validator=_finite_seconds)
    stable_after: float = attrs.field(default=10.0, validator=_seconds)
    retry_first: bool = attrs.field(default=False, validator=_flag)


def _key(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(
            f"{attribute.name} is empty or not a str: the broker gives you one"
        )
    if value != value.strip() or not value.isprintable():
        raise ConfigurationError(
            f"{attribute.name} has white space around it or a control character in it"
        )


@attrs.frozen(kw_only=True)
class Settings:
    """All options of one client, checked. They are the constructor's, and documented there."""

    api_key: str = attrs.field(validator=_key, repr=False)
    secret_key: str = attrs.field(validator=_key, repr=False)
    endpoint: Endpoint
    reconnect: ReconnectPolicy = attrs.field(
        validator=attrs.validators.instance_of(ReconnectPolicy)
    )
    limits: Limits = attrs.field(validator=attrs.validators.instance_of(Limits))
    connect_timeout: float = attrs.field(validator=_seconds)
    auth_timeout: float = attrs.field(validator=_seconds)
    heartbeat_interval: float = attrs.field(validator=_seconds)
    heartbeat_timeout: float = attrs.field(validator=_seconds)
    write_timeout: float = attrs.field(validator=_seconds)
    request_timeout: float = attrs.field(validator=_seconds)
    reply_grace: float = attrs.field(validator=_seconds)
    resolve_timeout: float = attrs.field(validator=_seconds)
    poll_interval: float = attrs.field(validator=_seconds)
    close_timeout: float = attrs.field(validator=_seconds)
    transport: TransportName = attrs.field()
    signing_key: SigningKey = attrs.field()
    ssl_context: ssl.SSLContext | None = None
    clock: Callable[[], float] = time.time

    @transport.validator
    def _known_transport(self, _: object, value: str) -> None:
        names = get_args(TransportName)
        if value not in names:
            raise ConfigurationError(f"transport must be {' or '.join(map(repr, names))}")

    @signing_key.validator
    def _known_signing_key(self, _: object, value: str) -> None:
        if value not in {"derived", "raw"}:
            raise ConfigurationError(f"signing_key must be 'derived' or 'raw', not {value!r}")

    def __attrs_post_init__(self) -> None:
        """Check what several options say together."""
        if self.ssl_context is not None and not self.endpoint.secure:
            raise ConfigurationError("ssl_context is given, but ws_url doesn't use TLS (wss://)")


def from_environment(environ: Mapping[str, str] = os.environ) -> tuple[str, str, str]:
    """API key, secret key and WebSocket URL from the documented environment variables.

    Args:
        environ: The variables.

    Raises:
        ConfigurationError: One is missing or empty; the message names it.
    """

    def required(name: str) -> str:
        value = environ.get(name, "").strip()
        if not value:
            raise ConfigurationError(f"the environment variable {name} is not set")
        return value

    api_key, secret_key = required("BROKER_API_KEY"), required("BROKER_SECRET_KEY")
    ws_url = environ.get("BROKER_WS_URL", "").strip()
    if ws_url:
        return api_key, secret_key, ws_url
    base_url = environ.get("BROKER_BASE_URL", "").strip()
    if not base_url:
        raise ConfigurationError(
            "neither of the environment variables BROKER_WS_URL and BROKER_BASE_URL is set"
        )
    return api_key, secret_key, stream_url(base_url)
