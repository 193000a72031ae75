"""The options of a client. They are checked when they are given, not when they are first used."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, cast, get_args
from urllib.parse import SplitResult, urlsplit

import attrs

from trio_broker._secret import Secret, Variables, hide
from trio_broker.exceptions import ConfigurationError, fresh
from trio_broker.models import Dialect, brief
from trio_broker.signing import SigningKey

TransportName: TypeAlias = Literal["trio-websocket", "websockets"]

STREAM_PATH: Final = "/ws/v1/stream"
_SCHEMES: Final = {"https": "wss", "http": "ws"}
_KNOWN_SCHEMES: Final = frozenset({"nothing", "http", "https", "ftp", "file"})
_KEYS: Final = ("BROKER_API_KEY", "BROKER_SECRET_KEY")
_WS_URL: Final = "BROKER_WS_URL"
_BASE_URL: Final = "BROKER_BASE_URL"
DIALECT_VARIABLE: Final = "BROKER_DIALECT"


@attrs.frozen
class Endpoint:
    """The address of a WebSocket.

    Attributes:
        secure: Whether TLS is used.
        host: The host's name or address, without brackets.
        port: The TCP port.
        resource: The path and query of the handshake's request.
    """

    secure: bool
    host: str
    port: int
    resource: str = attrs.field(repr=False)  # the query may contain a key

    @property
    def netloc(self) -> str:
        """Host and port as in a URL and in the ``Host`` header (RFC 6455, section 4.1)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without its query, which may contain a key."""
        path = self.resource.partition("?")[0]
        return f"{'wss' if self.secure else 'ws'}://{self.netloc}{path}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, by its literal name or address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_url(url: str, *, allow_insecure: bool = False, name: str = "ws_url") -> Endpoint:
    """Parse a WebSocket URL.

    Args:
        url: A ``wss://`` or ``ws://`` URL.
        allow_insecure: Allow ``ws://`` for hosts other than this machine.
        name: The option or environment variable that has the URL, for errors.

    Raises:
        ConfigurationError: The URL is invalid; the message says why.
    """
    parts, port = _split(url, name)
    if parts.scheme not in {"ws", "wss"}:
        raise ConfigurationError(
            f"{name} must begin with wss:// (or ws://){_other_scheme(parts)}; "
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
            f"{name} connects to {endpoint.host!r} without TLS: use wss://, or allow it "
            "(allow_insecure=True, --allow-insecure) if everyone on the network path may read your "
            "account and trade on it"
        )
    return endpoint


def stream_url(base_url: str, *, name: str = "the base URL") -> str:
    """Make the WebSocket URL from a base URL, as in the broker's documentation.

    Args:
        base_url: ``https://…`` or ``http://…``; ``wss://`` and ``ws://`` are accepted too.
        name: The option or environment variable that has the URL, for errors.

    Raises:
        ConfigurationError: The URL is invalid; the message says why.
    """
    parts, _ = _split(base_url, name)
    scheme = _SCHEMES.get(parts.scheme, parts.scheme)
    if scheme not in {"ws", "wss"}:
        raise ConfigurationError(
            f"{name} must begin with https:// (or http://){_other_scheme(parts)}"
        )
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{STREAM_PATH}"


def _other_scheme(parts: SplitResult) -> str:
    """The wrong scheme, for an error. An unknown one isn't shown: it may be a misplaced key."""
    scheme = parts.scheme or "nothing"
    return f", not with {scheme!r}" if scheme in _KNOWN_SCHEMES else ""


def _split(url: str, name: str) -> tuple[SplitResult, int | None]:
    # No message shows the URL, because it may contain a key.
    if not isinstance(url, str):
        raise ConfigurationError(f"{name} must be a str, not {type(url).__name__}")
    if not url.isascii() or any(character <= " " for character in url):
        raise ConfigurationError(f"{name} contains a space, a control or a non-ASCII character")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError(
            f"{name} isn't a URL: its host or port can't be read; it looks like "
            "wss://broker.example:443/path, with an IPv6 address in brackets"
        ) from None
    if not parts.hostname:
        raise ConfigurationError(f"{name} names no host")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"{name} must not contain a user name or password")
    if port == 0:
        raise ConfigurationError(f"{name} has port 0, which is invalid: leave it out, or fix it")
    problem = _host_problem(parts.netloc, parts.hostname)
    if problem:
        raise ConfigurationError(f"{name} has an invalid host: {problem}; fix its spelling")
    if parts.fragment:
        raise ConfigurationError(f"{name} must not have a fragment (RFC 6455, section 3)")
    return parts, port


def _host_problem(netloc: str, host: str) -> str | None:
    """Why a host name or address is invalid, None if it is valid."""
    if netloc.startswith("["):
        return _address_problem(netloc, host)
    # The limits of the `idna` codec, which Python uses before it resolves a name. A name may end
    # with a dot.
    name = host.removesuffix(".")
    labels = name.split(".")
    problems = (
        # "*" resolves to this machine, and "%" would be sent in the handshake's headers.
        (not re.fullmatch(r"[0-9a-z._-]+", host), "names have letters, digits, hyphens and dots"),
        ("" in labels, "there is nothing before a dot"),
        (max(map(len, labels)) > 63, "a part of it has more than 63 characters"),
        (len(name) > 253, "it has more than 253 characters"),
    )
    return next((problem for applies, problem in problems if applies), None)


def _address_problem(netloc: str, host: str) -> str | None:
    # `urlsplit` accepts "[::1]x".
    if not re.fullmatch(r"\[[^\]]*\](:[0-9]*)?", netloc):
        return "something other than a port follows the brackets"
    if "%" in host:
        return "an address in a URL can't have a zone (%…)"
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return "only an IPv6 address may be in brackets"
    return None


def _at_least_one(_: object, attribute: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        text = brief(value)
        raise ConfigurationError(f"{attribute.name} must be an int of at least 1, not {text}")
    if value > sys.maxsize:
        raise ConfigurationError(f"{attribute.name} is too large")


@attrs.frozen(kw_only=True)
class Limits:
    """The limits that this client obeys.

    Attributes:
        max_subscriptions: Channels per connection (the broker's documentation says 100, or 50).
        max_message_size: The largest message to send, in bytes.
        max_receive_size: The largest message to accept, in bytes.
        messages_per_second: How many messages to send in any rolling 1.1 seconds.
    """

    max_subscriptions: int = attrs.field(default=100, validator=_at_least_one)
    max_message_size: int = attrs.field(default=64 * 1024, validator=_at_least_one)
    max_receive_size: int = attrs.field(default=1024 * 1024, validator=_at_least_one)
    messages_per_second: int = attrs.field(default=100, validator=_at_least_one)


def _flag(_: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{attribute.name} must be True or False, not {brief(value)}")


def _attempts(_: object, attribute: attrs.Attribute[int], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(
            f"{attribute.name} must be an int of at least 0, or None for no limit, not "
            f"{brief(value)}"
        )


def check_seconds(name: str, value: object) -> None:
    """Check a number of seconds, more than 0; `math.inf` for no limit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not value > 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds, not {brief(value)}")
    if isinstance(value, int) and value > sys.maxsize:
        raise ConfigurationError(f"{name} is too large; use math.inf for no limit")


def _seconds(_: object, attribute: attrs.Attribute[float], value: object) -> None:
    check_seconds(attribute.name, value)


def _finite_seconds(_: object, attribute: attrs.Attribute[float], value: object) -> None:
    check_seconds(attribute.name, value)
    if value == math.inf:
        raise ConfigurationError(f"{attribute.name} must be finite")


@attrs.frozen(kw_only=True)
class ReconnectPolicy:
    """How a lost connection is replaced.

    Attributes:
        max_attempts: How many attempts in a row may fail, or end before `stable_after`. None for no
            limit, 0 for no reconnection.
        initial_delay: Seconds before the first attempt. It is doubled for each further one, and
            each delay is a random number from the upper half of this time.
        max_delay: The longest such delay in seconds. The broker's ``Retry-After`` may be longer, up
            to an hour.
        stable_after: Seconds of health after which a connection counts as stable, and earlier
            attempts are forgotten.
        retry_first: Retry the first connection too, for a service that may start before its
            network.
    """

    max_attempts: int | None = attrs.field(default=5, validator=_attempts)
    initial_delay: float = attrs.field(default=1.0, validator=_finite_seconds)
    max_delay: float = attrs.field(default=32.0, validator=_finite_seconds)
    stable_after: float = attrs.field(default=10.0, validator=_seconds)
    retry_first: bool = attrs.field(default=False, validator=_flag)


def _key(_: object, attribute: attrs.Attribute[Secret], value: Secret) -> None:
    if not value.is_text:
        raise ConfigurationError(
            f"{attribute.name} is empty or not a str: use the one from the broker"
        )
    if not value.is_clean:
        raise ConfigurationError(
            f"{attribute.name} has white space around it, or contains a control character"
        )


def _texts(value: object) -> object:
    """A list of texts as a tuple. Anything else is left to the validator."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value
    return tuple(str.__str__(one) if isinstance(one, str) else one for one in value)


def _refusal_texts(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple):
        raise ConfigurationError(f"{attribute.name} must be a list of texts")
    for one in value:
        if not isinstance(one, str) or not one.strip():
            raise ConfigurationError(
                f"{attribute.name} must have texts only, and no empty one, which is in every error"
            )


def _name(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    # A logger whose name has a dot would be the child of another client's logger.
    if not isinstance(value, str) or not value.isprintable() or value != value.strip():
        raise ConfigurationError(
            f"{attribute.name} must be a printable str without white space around it"
        )
    if not value or "." in value:
        raise ConfigurationError(f"{attribute.name} must not be empty or contain a dot")


def _one_of(*names: str) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in names:
            # Without the value, which may be a misplaced key.
            raise ConfigurationError(f"{attribute.name} must be {' or '.join(map(repr, names))}")

    return check


@attrs.frozen(kw_only=True)
class Settings:
    """The options of one client. The constructor of `BrokerWSClient` documents them."""

    api_key: Secret = attrs.field(converter=hide, validator=_key)
    secret_key: Secret = attrs.field(converter=hide, validator=_key)
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
    transport: TransportName = attrs.field(validator=_one_of(*get_args(TransportName)))
    signing_key: SigningKey | None = attrs.field(
        validator=attrs.validators.optional(_one_of(*get_args(SigningKey)))
    )
    dialect: Dialect = attrs.field(default="clients", validator=_one_of(*get_args(Dialect)))
    refusal_texts: tuple[str, ...] = attrs.field(
        default=(), converter=_texts, validator=_refusal_texts
    )
    ssl_context: ssl.SSLContext | None = None
    clock: Callable[[], float] = time.time
    name: str | None = attrs.field(default=None, validator=attrs.validators.optional(_name))

    @property
    def effective_signing_key(self) -> SigningKey:
        """The signing key that was chosen, otherwise that of the dialect."""
        return self.signing_key or ("raw" if self.dialect == "docs" else "derived")

    def __attrs_post_init__(self) -> None:
        """Check combinations of options."""
        if self.ssl_context is not None and not self.endpoint.secure:
            raise ConfigurationError("ssl_context is given, but ws_url doesn't use TLS (wss://)")


def from_environment(environ: Mapping[str, str] | None = None) -> tuple[str, str, str]:
    """API key, secret key and WebSocket URL from the documented environment variables.

    Args:
        environ: The variables; None for those of this process.

    Raises:
        ConfigurationError: One is missing or invalid; the message names it.
    """
    # A traceback with locals would show the environment.
    variables = Variables(os.environ if environ is None else environ)
    environ = None
    return read_variables(variables)


def read_variables(variables: Variables) -> tuple[str, str, str]:
    """`from_environment` of hidden variables. No frame holds a key when this raises."""
    for name in _KEYS:
        if not variables.get(name):
            raise ConfigurationError(f"the environment variable {name} is not set")
    if not (variables.get(_WS_URL) or variables.get(_BASE_URL)):
        raise ConfigurationError(
            f"neither of the environment variables {_WS_URL} and {_BASE_URL} is set"
        )
    ws_url = variables.get(_WS_URL)
    if ws_url:
        parse_url(ws_url, allow_insecure=True, name=_WS_URL)
    else:
        ws_url = stream_url(variables.get(_BASE_URL), name=_BASE_URL)
    return variables.get(_KEYS[0]), variables.get(_KEYS[1]), ws_url


def parse_dialect(text: str) -> Dialect | None:
    """The dialect in the value of ``BROKER_DIALECT``; None if it is empty.

    Raises:
        ConfigurationError: It is unknown.
    """
    name = text.strip().lower()
    if name and name not in get_args(Dialect):
        # Without the value, which may be a misplaced key.
        raise ConfigurationError(f"{DIALECT_VARIABLE} must be {' or '.join(get_args(Dialect))}")
    return cast("Dialect", name) if name else None


def make_settings(
    api_key: Secret, secret_key: Secret, ws_url: Secret, *, allow_insecure: bool, **options: Any
) -> Settings:
    """Make the settings from the constructor's arguments.

    An error is raised here again because the frames of `parse_url` hold the URL, which may contain
    a key, or be a misplaced one.
    """
    try:
        endpoint = parse_url(ws_url.reveal(), allow_insecure=allow_insecure)
    except ConfigurationError as error:
        failure = fresh(error)
    else:
        return Settings(api_key=api_key, secret_key=secret_key, endpoint=endpoint, **options)
    raise failure
