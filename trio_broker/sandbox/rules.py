"""The settings of a sandbox: its limits, timings and the outcomes of its orders."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypedDict, get_args

import attrs

from trio_broker.exceptions import ConfigurationError
from trio_broker.sandbox.messages import AcceptedDialect, ErrorForm
from trio_broker.sandbox.orders import Outcome
from trio_broker.signing import SigningKey

DEFAULT_ERROR_FORM: Final[ErrorForm] = "documented"

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

    dialect: AcceptedDialect
    signing_key: SigningKey | None
    error_form: ErrorForm
    echo_nonce: bool
    order_id_prefix: str | None
    client_order_id_in_receipts: bool
    client_order_id_in_lookups: bool
    lookup_by_client_order_id: bool
    max_subscriptions: int
    max_message_size: int
    messages_per_second: int
    rest_public_per_minute: int
    rest_private_per_minute: int
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


def _one_of(*choices: object) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise ConfigurationError(f"{attribute.name} must be one of {known}, not {value!r}")

    return check


def _prefix(_: object, attribute: attrs.Attribute[str | None], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ConfigurationError(
            f"{attribute.name} must have 1 to 64 letters, digits or any of '_.-', not {value!r}"
        )


def _weights(outcomes: Mapping[Outcome, float]) -> Mapping[Outcome, float]:
    return {Outcome(name): weight for name, weight in outcomes.items()}


@attrs.frozen(kw_only=True)
class Rules:
    """The settings of a sandbox, checked.

    Times are seconds of Trio's clock.

    Attributes:
        dialect: Whose form requests must have: ``"clients"``, as the broker's clients send them,
            with ``amountIn``, ``assetIn`` and ``assetOut``, and no ``data`` for ``balances``;
            ``"docs"``, as the broker's documentation has them, with ``amount``, ``from`` and
            ``to``, and ``{}``; or ``"both"``, for either.
        signing_key: ``"derived"`` or ``"raw"``: which HMAC key the signatures are checked with.
            None for the dialect's: derived for clients, raw for docs, either for both.
        error_form: The form of errors: ``"documented"``, ``{"error": text}``; ``"named"``, which
            has the request's ``op`` and ``ch`` too; ``"object"``, ``{"error": {"code": code,
            "message": text}}``, with the codes of the broker's REST side.
        echo_nonce: Whether a reply to a signed message repeats its nonce.
        order_id_prefix: How order ids begin; eight digits follow. None for a random prefix of a
            new ledger, so that a sandbox without `state` doesn't use the ids of an earlier one.
        client_order_id_in_receipts: Whether the reply to a swap has its client order id.
        client_order_id_in_lookups: Whether the reply to ``order_status`` has it.
        lookup_by_client_order_id: Whether ``order_status`` finds orders by client order id.
        max_subscriptions: Channels on one connection.
        max_message_size: The largest message that is accepted, in bytes; a larger one closes the
            connection with code 1009.
        messages_per_second: Messages on one connection in any second; more are refused.
        rest_public_per_minute: Public REST requests from one address in any minute; more are
            refused.
        rest_private_per_minute: Private REST requests with one key in any minute; more are refused.
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

    dialect: AcceptedDialect = attrs.field(
        default="both", validator=_one_of(*get_args(AcceptedDialect))
    )
    signing_key: SigningKey | None = attrs.field(
        default=None, validator=_one_of(None, *get_args(SigningKey))
    )
    error_form: ErrorForm = attrs.field(
        default=DEFAULT_ERROR_FORM, validator=_one_of(*get_args(ErrorForm))
    )
    echo_nonce: bool = False
    order_id_prefix: str | None = attrs.field(default=None, validator=_prefix)
    client_order_id_in_receipts: bool = False
    client_order_id_in_lookups: bool = True
    lookup_by_client_order_id: bool = True
    max_subscriptions: int = attrs.field(default=100, validator=_at_least(1))
    max_message_size: int = attrs.field(default=64 * 1024, validator=_at_least(1))
    messages_per_second: int = attrs.field(default=100, validator=_at_least(1))
    rest_public_per_minute: int = attrs.field(default=100, validator=_at_least(1))
    rest_private_per_minute: int = attrs.field(default=1000, validator=_at_least(1))
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

    @property
    def signing_keys(self) -> tuple[SigningKey, ...]:
        """The HMAC keys that are accepted, the clients' first."""
        if self.signing_key is not None:
            return (self.signing_key,)
        keys: dict[AcceptedDialect, tuple[SigningKey, ...]] = {
            "clients": ("derived",),
            "docs": ("raw",),
        }
        return keys.get(self.dialect, ("derived", "raw"))
