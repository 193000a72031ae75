"""The sandbox as its users see it: a broker that runs as long as a block does."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Unpack

import trio

from trio_broker.exceptions import ConfigurationError
from trio_broker.models import Balance
from trio_broker.sandbox.accounts import DOCUMENTED_ACCOUNTS, Account
from trio_broker.sandbox.broker import Broker, Connection
from trio_broker.sandbox.events import SandboxEvent
from trio_broker.sandbox.faults import Faults
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.orders import Order, Outcome
from trio_broker.sandbox.rules import Rules, Settings
from trio_broker.sandbox.server import Server
from trio_broker.sandbox.state import StatePath, open_exchange

if TYPE_CHECKING:
    from trio_broker import BrokerWSClient

logger: Final = logging.getLogger("trio_broker.sandbox")

_PATH: Final = "/ws/v1/stream"
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class Sandbox:
    """A running sandbox; `open_sandbox` makes one.

    Attributes:
        url: The URL of its WebSocket, for clients on this machine.
        rest_url: The base URL of its REST side, which has a port of its own:
            ``http://127.0.0.1:41234``.
        api_key: The API key of its first account, ``test_key_1``.
        secret_key: That account's secret key, ``test_secret_1``.
        accounts: All accounts: the two documented ones, then those that were added.
        faults: Makes its broker misbehave.
    """

    def __init__(
        self,
        url: str,
        rest_url: str,
        accounts: tuple[Account, ...],
        server: Server,
        clock: Callable[[], float],
    ) -> None:
        self.url = url
        self.rest_url = rest_url
        self.accounts = accounts
        self.api_key: str = accounts[0].api_key
        self.secret_key: str = accounts[0].secret_key
        self.faults: Faults = Faults(server, self._api_key)
        self._server = server
        self._broker = server.broker
        self._exchange = server.broker.exchange
        self._clock = clock

    def client(self, account: int | str = 0, **options: Any) -> BrokerWSClient:
        """A client of this sandbox, not yet connected.

        Args:
            account: The account's position in `accounts`, or its API key.
            options: Options of `BrokerWSClient`. Clock, dialect and signing key are the sandbox's,
                unless they are given here.
        """
        # Imported here, so that a sandbox can serve clients of other kinds without this one.
        from trio_broker import BrokerWSClient  # noqa: PLC0415

        chosen = self._account(account)
        rules = self._server.rules
        options = {
            "clock": self._clock,
            "dialect": "clients" if rules.dialect == "both" else rules.dialect,
            "signing_key": rules.signing_key,
            **options,
        }
        return BrokerWSClient(chosen.api_key, chosen.secret_key, self.url, **options)

    def balances(self, account: int | str = 0) -> dict[str, Balance]:
        """An account's balances now, by asset.

        Args:
            account: Its position in `accounts`, or its API key.
        """
        holdings = self._exchange.ledger.accounts[self._account(account).api_key]
        return {
            asset: Balance(asset, holding.total, holding.locked)
            for asset, holding in holdings.items()
        }

    def orders(self, account: int | str | None = None) -> tuple[Order, ...]:
        """The orders in the order of their acceptance, one for every accepted swap.

        Args:
            account: The account's position in `accounts`, or its API key; None for all.
        """
        all_orders = tuple(self._exchange.orders.values())
        if account is None:
            return all_orders
        api_key = self._account(account).api_key
        return tuple(order for order in all_orders if order.api_key == api_key)

    def order(self, order_id: str) -> Order:
        """An order as it is now.

        Args:
            order_id: Its id.

        Raises:
            KeyError: There is none.
        """
        return self._exchange.orders[order_id]

    def next_outcome(self, *outcomes: Outcome | str) -> None:
        """Set the outcomes of the next orders: the first for the next order, and so on.

        Orders after that go as the seed has it.

        Args:
            outcomes: An `Outcome` or its text for each order.

        Raises:
            ValueError: There is no such outcome.
        """
        self._exchange.forced.extend([Outcome(outcome) for outcome in outcomes])

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The last connections, closed ones included, each with the messages that it brought."""
        return tuple(self._broker.connections)

    def push(self, text: str, account: int | str | None = None) -> int:
        """Send any text to clients, for example an unexpected message.

        Args:
            text: The text.
            account: Only to clients of this account; None for all.

        Returns:
            The number of clients.
        """
        return self._server.post(text, self._api_key(account))

    def drop_connections(self, account: int | str | None = None) -> int:
        """Close clients' sockets at once, without a close frame.

        Args:
            account: Only of clients of this account; None for all.

        Returns:
            The number of closed connections.
        """
        links = self._server.links(self._api_key(account))
        for link in links:
            link.drop()
        return len(links)

    def _api_key(self, account: int | str | None) -> str | None:
        return None if account is None else self._account(account).api_key

    def _account(self, account: int | str) -> Account:
        if isinstance(account, int):
            return self.accounts[account]
        for candidate in self.accounts:
            if candidate.api_key == account:
                return candidate
        raise LookupError("the sandbox has no account with this API key")


@asynccontextmanager
async def open_sandbox(
    *,
    seed: int | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    rest_port: int = 0,
    clock: Callable[[], float] = time.time,
    accounts: Iterable[Account] = (),
    state: StatePath | None = None,
    on_event: Callable[[SandboxEvent], object] | None = None,
    **settings: Unpack[Settings],
) -> AsyncIterator[Sandbox]:
    """Run a sandbox broker during the block.

    It implements the broker's whole protocol on a real socket, and trades play money. Lookups of
    orders, balances and the clock are served over REST too, on another port. Entering it
    returns once clients can connect. Leaving it closes their connections with code 1001. After an
    exception or a cancellation, it closes them at once. No action of a client raises here.

    Timers use Trio's clock, so that hours take no real time under `trio.testing.MockClock`. The
    messages' timestamps use `clock`.

    Args:
        seed: The seed of the prices and of the orders' outcomes. The same seed and the same swaps
            at the same times give the same prices and orders, but for the order ids
            (`Rules.order_id_prefix`). None for the seed of `state`, or 0.
        host: The address to listen on. There is no TLS: everyone who can reach it can read the
            traffic.
        port: The TCP port, 0 for any free port.
        rest_port: The TCP port of the REST side, 0 for any free port.
        clock: The wall clock, in seconds since the epoch.
        accounts: Further accounts, in addition to the two that the broker's documentation names.
        state: A file for balances, orders with their future steps, and the start of the prices. A
            later sandbox with this file continues from there, even if the earlier one was killed.
            Steps that were due in between happen at once. None for a sandbox that isn't saved. If
            the file has one of `accounts`, the file's balances count. It also keeps other accounts.
        on_event: Called with every event, for a log or a screen. It is called in the sandbox's own
            tasks, so it must return quickly and must not raise.
        settings: Limits and timings: the attributes of `Rules`.

    Raises:
        ConfigurationError: A setting or an account is invalid; or the file of `state` is invalid,
            damaged, has another seed, or is in use by another sandbox.
        OSError: It can't listen there, or can't read or write the file. If it can't write a
            change, the block is cancelled, and this is raised from its end.
    """
    rules = Rules(**settings)
    all_accounts = (*DOCUMENTED_ACCOUNTS, *accounts)
    opening = {account.api_key: account.balances for account in all_accounts}
    if len(opening) != len(all_accounts):
        raise ConfigurationError("two accounts of the sandbox have the same API key")
    scope = trio.CancelScope()
    moment = Moment(trio.current_time(), clock())
    with open_exchange(state, seed, opening, rules, moment, stop=scope.cancel) as exchange, scope:
        broker = Broker(all_accounts, exchange, rules, on_event)
        async with _serving(broker, all_accounts, rules, clock, (host, port, rest_port)) as sandbox:
            yield sandbox


@asynccontextmanager
async def _serving(
    broker: Broker,
    all_accounts: tuple[Account, ...],
    rules: Rules,
    clock: Callable[[], float],
    address: tuple[str, int, int],
) -> AsyncIterator[Sandbox]:
    host, port, rest_port = address
    server = Server(broker, rules, clock)
    listeners = await _listeners(host, port)
    try:
        rest_listeners = await _listeners(host, rest_port)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    url = f"ws://{_address(host, listeners)}{_PATH}"
    rest_url = f"http://{_address(host, rest_listeners)}"
    logger.info("listening at %s and %s", url, rest_url)
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners, rest_listeners)
            try:
                yield Sandbox(url, rest_url, all_accounts, server, clock)
            except (Exception, KeyboardInterrupt, SystemExit) as raised:  # noqa: BLE001 - see below
                # Kept back until the nursery is done, which would wrap it into a group.
                error = raised
            else:
                await server.close_connections()
            nursery.cancel_scope.cancel()
    finally:
        if error is not None:
            raise error


async def _listeners(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as failure:
        # The system's error doesn't name the address.
        raise type(failure)(failure.errno, failure.strerror, f"{host}, port {port}") from failure


def _address(host: str, listeners: list[trio.SocketListener]) -> str:
    """The host and the port of a URL at which clients on this machine reach listeners."""
    host = _ANY_ADDRESS.get(host, host)
    port = listeners[0].socket.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
