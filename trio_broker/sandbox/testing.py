"""The part of the pytest plugin that needs Trio: the marker's options, and clients for tests.

This module doesn't import pytest. The plugin imports this module only when a test uses one of its
fixtures.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import attrs
import trio

from trio_broker.exceptions import ConfigurationError
from trio_broker.sandbox.accounts import Account
from trio_broker.sandbox.embedded import Sandbox
from trio_broker.sandbox.faults import Faults
from trio_broker.sandbox.named_faults import NAMED_FAULTS
from trio_broker.sandbox.rules import Rules, Settings
from trio_broker.sandbox.threads import SandboxOptions

if TYPE_CHECKING:
    from trio_broker import BrokerWSClient

# The faults that last and also affect later connections. Before a test begins, there are no
# connections that could be reset or stalled.
LASTING_FAULTS: Final = (
    "alter_handshakes",
    "change",
    "change_rest",
    "delay",
    "delay_auth",
    "delay_rest",
    "disconnect",
    "drip",
    "duplicate",
    "hide_orders_from_rest",
    "ignore",
    "pad",
    "pad_rest",
    "refuse",
    "refuse_auth",
    "refuse_channel",
    "refuse_connections",
    "refuse_rest",
    "replace",
    "replace_rest",
    "shift_clock",
    "shift_rest_clock",
    "stall_handshakes",
    "stop_pushing",
    "stop_rest",
    "swallow",
)

_OPTIONS: Final = frozenset(SandboxOptions.__optional_keys__)
_SETTINGS: Final = frozenset(Settings.__optional_keys__)
# `Rules` checks the other options. These would fail later, with an error of the system.
_KINDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "seed": ("an int", lambda value: value is None or isinstance(value, int)),
    "host": ("a str", lambda value: isinstance(value, str)),
    "port": ("an int", lambda value: isinstance(value, int)),
    "rest_port": ("an int", lambda value: isinstance(value, int)),
    "accounts": (
        "a list of Account",
        lambda value: (
            isinstance(value, list | tuple) and all(isinstance(x, Account) for x in value)
        ),
    ),
    "on_event": ("a function", lambda value: value is None or callable(value)),
}


class BrokerClients(Protocol):
    """Opens clients of a test's sandbox: the fixture ``broker_clients``."""

    async def __call__(self, account: int | str = 0, **options: Any) -> BrokerWSClient:
        """Open a client. It is closed after the test. Cancelling is safe.

        Args:
            account: The account's position in `Sandbox.accounts`, or its API key.
            options: Options of `BrokerWSClient`.

        Returns:
            The client, connected and authenticated.

        Raises:
            LookupError: There is no such account.
            BrokerError: The errors of `BrokerWSClient.connect`.
        """
        ...


@asynccontextmanager
async def open_clients(sandbox: Sandbox) -> AsyncIterator[BrokerClients]:
    """Run a block in which any task can open clients; all are closed at its end."""
    clients: list[BrokerWSClient] = []

    async def open_client(account: int | str = 0, **options: Any) -> BrokerWSClient:
        await trio.lowlevel.checkpoint()
        client = sandbox.client(account, **options)
        await client.connect(nursery)
        clients.append(client)
        return client

    async with trio.open_nursery() as nursery:
        try:
            yield open_client
        finally:
            for client in clients:
                nursery.start_soon(client.aclose)


@attrs.frozen
class _InitialFault:
    """A named fault or a method of `Faults`, with its keyword arguments."""

    name: str
    arguments: Mapping[str, Any]

    def start(self, faults: Faults) -> None:
        try:
            if self.name in NAMED_FAULTS:
                faults.start(self.name, **self.arguments)
            else:
                getattr(faults, self.name)(**self.arguments)
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigurationError(f"the fault {self.name!r} is invalid: {error}") from error


@attrs.frozen
class MarkerOptions:
    """The options of a test's `broker` marker.

    Attributes:
        options: The keyword arguments of `open_sandbox`.
    """

    options: SandboxOptions
    _faults: tuple[_InitialFault, ...] = ()

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> MarkerOptions:
        """Check a marker's keyword arguments.

        Args:
            given: The keyword arguments of `open_sandbox`; and ``faults``, a list of names in
                `NAMED_FAULTS` or `LASTING_FAULTS`, or of pairs of such a name and its keyword
                arguments.

        Raises:
            ConfigurationError: An option is unknown or invalid.
        """
        options = {name: value for name, value in given.items() if name != "faults"}
        if unknown := sorted(options.keys() - _OPTIONS):
            known = ", ".join(["faults", *sorted(_OPTIONS)])
            raise ConfigurationError(f"unknown setting {unknown[0]!r}; the settings are {known}")
        for name, (kind, fits) in _KINDS.items():
            if name in options and not fits(options[name]):
                raise ConfigurationError(f"{name} must be {kind}, not {options[name]!r}")
        try:
            Rules(**{name: value for name, value in options.items() if name in _SETTINGS})
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"a setting is invalid: {error}") from error
        faults = given.get("faults", ())
        if not isinstance(faults, list | tuple):
            raise ConfigurationError(f"faults must be a list, not {faults!r}")
        return cls(cast("SandboxOptions", options), tuple(map(_read_fault, faults)))

    def start_faults(self, sandbox: Sandbox) -> None:
        """Start the marker's faults.

        Raises:
            ConfigurationError: An argument of a fault is invalid.
        """
        for fault in self._faults:
            fault.start(sandbox.faults)


def _read_fault(given: object) -> _InitialFault:
    match given:
        case str(name):
            arguments: Mapping[str, Any] = {}
        case (str(name), Mapping() as arguments):
            pass
        case _:
            raise ConfigurationError(
                f"a fault must be a name, or a pair (name, {{argument: value}}), not {given!r}"
            )
    named = NAMED_FAULTS.get(name)
    if named is None and name not in LASTING_FAULTS:
        known = ", ".join([*LASTING_FAULTS, *NAMED_FAULTS])
        raise ConfigurationError(f"unknown fault {name!r}; the initial faults are {known}")
    signature = inspect.signature(getattr(Faults, name if named is None else named.method))
    own: Mapping[str, Any] = {} if named is None else named.arguments
    try:
        signature.bind(None, **{**own, **arguments})
    except TypeError as error:
        takes = ", ".join(f"{one}" for one in list(signature.parameters.values())[1:])
        raise ConfigurationError(f"the fault {name!r} takes ({takes}): {error}") from error
    return _InitialFault(name, arguments)
