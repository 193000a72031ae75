"""The settings of a sandbox: its limits, timings and the outcomes of its orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypedDict

import attrs

from trio_broker.exceptions import ConfigurationError
from trio_broker.sandbox.orders import Outcome
from trio_broker.signing import SigningKey

DEFAULT_OUTCOMES: Final[Mapping[Outcome, float]] = MappingProxyType(
    {
        Outcome.FILLED: 0.80,
        Outcome.FILLED_IN_PARTS: 0.14,
        Outcome.PARTLY_FILLED: 0.02,
        Outcome.FAILED: 0.02,
        Outcome.CANCELLED: 0.02,
    }
)


class Settings(TypedDict, total=False):
    """The keyword settings of `open_sandbox`. `Rules` documents them."""

    signing_key: SigningKey
    echo_nonce: bool
    max_subscriptions: int
    max_message_size: int
    messages_per_second: int
    max_connections: int
    handshake_timeout: float
    auth_timeout: float
    idle_timeout: float
    write_timeout: float
    close_timeout: float
    outbox_size: int
    history_size: int
    fee_bps: int
    quote_lifetime: float
    pending_delay: tuple[float, float]
    processing_delay: tuple[float, float]
    outcomes: Mapping[Outcome, float]


def _at_least(least: int) -> Callable[[object, attrs.Attribute[Any], float], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not value >= least:
            raise ConfigurationError(f"{attribute.name} must be at least {least}, not {value!r}")

    return check


def _range(_: object, attribute: attrs.Attribute[tuple[float, float]], value: object) -> None:
    match value:
        case (float() | int() as low, float() | int() as high) if 0 <= low <= high < math.inf:
            return
    raise ConfigurationError(
        f"{attribute.name} must be a shortest and a longest time in seconds, not {value!r}"
    )


def _weights(outcomes: Mapping[Outcome, float]) -> Mapping[Outcome, float]:
    return {Outcome(name): weight for name, weight in outcomes.items()}


@attrs.frozen(kw_only=True)
class Rules:
    """The settings of a sandbox, checked.

    Times are seconds of Trio's clock.

    Attributes:
        signing_key: ``"derived"`` or ``"raw"``: which HMAC key the signatures are checked with.
        echo_nonce: Whether a reply to a signed message repeats its nonce.
        max_subscriptions: Channels on one connection.
        max_message_size: The largest message that is accepted, in bytes; a larger one closes the
            connection with code 1009.
        messages_per_second: Messages on one connection in any second; more are refused.
        max_connections: Authenticated connections with one key at a time.
        handshake_timeout: For the WebSocket handshake, after which the socket is closed.
        auth_timeout: From the handshake until the client is authenticated; after that the
            connection is closed with code 1008.
        idle_timeout: Without a byte from the client; after that the connection is closed with
            code 1001. Pings and pongs count as life.
        write_timeout: For one message to the client; after that the connection is dropped.
        close_timeout: For a client to answer a close.
        outbox_size: Messages that wait for a client that reads too slowly; with one more its
            connection is dropped.
        history_size: How many connections, and messages of each, `Sandbox.connections` remembers.
        fee_bps: The fee of a swap, in hundredths of a percent of what is bought.
        quote_lifetime: From an estimate to its ``expiresAt``.
        pending_delay: The shortest and the longest time that an order stays PENDING.
        processing_delay: The shortest and the longest time from PROCESSING to an order's end.
        outcomes: How an order ends, each with its weight; the seed and the number of the order
            choose.
    """

    signing_key: SigningKey = attrs.field(
        default="derived", validator=attrs.validators.in_(("derived", "raw"))
    )
    echo_nonce: bool = False
    max_subscriptions: int = attrs.field(default=100, validator=_at_least(1))
    max_message_size: int = attrs.field(default=64 * 1024, validator=_at_least(1))
    messages_per_second: int = attrs.field(default=100, validator=_at_least(1))
    max_connections: int = attrs.field(default=100, validator=_at_least(1))
    handshake_timeout: float = attrs.field(default=10.0, validator=_at_least(0))
    auth_timeout: float = attrs.field(default=10.0, validator=_at_least(0))
    idle_timeout: float = attrs.field(default=300.0, validator=_at_least(0))
    write_timeout: float = attrs.field(default=5.0, validator=_at_least(0))
    close_timeout: float = attrs.field(default=1.0, validator=_at_least(0))
    outbox_size: int = attrs.field(default=1024, validator=_at_least(1))
    history_size: int = attrs.field(default=1000, validator=_at_least(1))
    fee_bps: int = attrs.field(default=10, validator=_at_least(0))
    quote_lifetime: float = attrs.field(default=30.0, validator=_at_least(0))
    pending_delay: tuple[float, float] = attrs.field(default=(0.05, 0.15), validator=_range)
    processing_delay: tuple[float, float] = attrs.field(default=(0.05, 0.35), validator=_range)
    outcomes: Mapping[Outcome, float] = attrs.field(
        default=DEFAULT_OUTCOMES,
        converter=_weights,
    )

    @outcomes.validator
    def _some_outcome(self, _: object, value: Mapping[Outcome, float]) -> None:
        weights = value.values()
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ConfigurationError("outcomes must have weights of 0 or more, and one over 0")
