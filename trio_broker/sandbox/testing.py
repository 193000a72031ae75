"""What a test may wish for, and the clients that it opens: the pytest plugin's half of Trio.

Nothing here knows pytest, and the plugin itself knows neither Trio nor the sandbox until a test
asks for one of its fixtures.
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
from trio_broker.sandbox.rules import Rules, Settings
from trio_broker.sandbox.threads import SandboxOptions

if TYPE_CHECKING:
    from trio_broker import BrokerWSClient

# Those that last and have an effect on connections to come: before a test begins, there are none
# that could be reset, stalled or silenced.
LASTING_FAULTS: Final = (
    "delay",
    "delay_auth",
    "drip",
    "duplicate",
    "ignore",
    "refuse_auth",
    "refuse_channel",
    "refuse_connections",
    "replace",
    "stall_handshakes",
    "stop_pushing",
    "swallow",
)

_OPTIONS: Final = frozenset(SandboxOptions.__optional_keys__)
_SETTINGS: Final = frozenset(Settings.__optional_keys__)
# What else there is has to be of a kind, or would fail deep inside, in words of the system's.
_KINDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "seed": ("an int", lambda value: value is None or isinstance(value, int)),
    "host": ("a str", lambda value: isinstance(value, str)),
    "port": ("an int", lambda value: isinstance(value, int)),
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
        """Open a client. It is closed after the test.

        Cancelled, it leaves nothing behind.

        Args:
            account: Whose: its position in `Sandbox.accounts`, or its API key.
            options: Options of `BrokerWSClient`.

        Returns:
            The client, connected and authenticated.

        Raises:
            LookupError: There is no such account.
            BrokerError: What `BrokerWSClient.connect` raises.
        """
        ...


@asynccontextmanager
async def open_clients(sandbox: Sandbox) -> AsyncIterator[BrokerClients]:
    """A block in which clients can be opened, by any task; at its end all are closed.

    Args:
        sandbox: Whose clients.
    """
    clients: list[BrokerWSClient] = []

    async def open_client(account: int | str = 0, **options: Any) -> BrokerWSClient:
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
class _WishedFault:
    """A fault by its name.

    Attributes:
        name: A method of `Faults`.
        arguments: Its keyword arguments.
    """

    name: str
    arguments: Mapping[str, Any]

    def begin(self, faults: Faults) -> None:
        try:
            getattr(faults, self.name)(**self.arguments)
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigurationError(f"the fault {self.name!r} can't be: {error}") from error


@attrs.frozen
class Wishes:
    """What a test wants its sandbox to be like.

    Attributes:
        options: The keyword arguments of `open_sandbox`.
    """

    options: SandboxOptions
    _faults: tuple[_WishedFault, ...] = ()

    @classmethod
    def read(cls, wishes: Mapping[str, Any]) -> Wishes:
        """Check what a test wishes for.

        Args:
            wishes: The keyword arguments of `open_sandbox`; and ``faults``, a list of names in
                `LASTING_FAULTS`, or of pairs of such a name and its keyword arguments.

        Raises:
            ConfigurationError: There is no such thing, or it can't be.
        """
        options = {name: value for name, value in wishes.items() if name != "faults"}
        if unknown := sorted(options.keys() - _OPTIONS):
            there_are = ", ".join(["faults", *sorted(_OPTIONS)])
            raise ConfigurationError(f"there is no setting {unknown[0]!r}; there are {there_are}")
        for name, (kind, fits) in _KINDS.items():
            if name in options and not fits(options[name]):
                raise ConfigurationError(f"{name} must be {kind}, not {options[name]!r}")
        try:
            Rules(**{name: value for name, value in options.items() if name in _SETTINGS})
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"a setting can't be: {error}") from error
        faults = wishes.get("faults", ())
        if not isinstance(faults, list | tuple):
            raise ConfigurationError(f"faults are a list, not {faults!r}")
        return cls(cast("SandboxOptions", options), tuple(map(_read_fault, faults)))

    def begin_faults(self, sandbox: Sandbox) -> None:
        """Begin the faults.

        Args:
            sandbox: The test's sandbox.

        Raises:
            ConfigurationError: One has an argument that can't be.
        """
        for fault in self._faults:
            fault.begin(sandbox.faults)


def _read_fault(wish: object) -> _WishedFault:
    match wish:
        case str(name):
            arguments: Mapping[str, Any] = {}
        case (str(name), Mapping() as arguments):
            pass
        case _:
            raise ConfigurationError(
                f"a fault is a name, or a pair (name, {{argument: value}}), not {wish!r}"
            )
    if name not in LASTING_FAULTS:
        there_are = ", ".join(LASTING_FAULTS)
        raise ConfigurationError(f"there is no fault {name!r} to begin with; there are {there_are}")
    signature = inspect.signature(getattr(Faults, name))
    try:
        signature.bind(None, **arguments)
    except TypeError as error:
        takes = ", ".join(f"{one}" for one in list(signature.parameters.values())[1:])
        raise ConfigurationError(f"the fault {name!r} takes ({takes}): {error}") from error
    return _WishedFault(name, arguments)
