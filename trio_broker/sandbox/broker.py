"""The broker's side of the protocol, without a socket, a clock or a task.

Texts go in with the connection that they came from and the time; texts come out with the
connection that they go to. So the whole protocol can be tested as plain synchronous code.
The server around it does what needs sockets: a connection's deadlines, and the size of a message.

Where the documentation of the broker is silent, this one does as follows. A refused `auth` may be
tried again. Subscribing twice and unsubscribing what isn't subscribed are acknowledged.
A channel may name an order that isn't there, or is another account's: then nothing is ever
pushed to it. Replies come in the order of the requests. A message over the rate limit is refused
and doesn't count against the limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from trio_broker.sandbox.accounts import Account, SignatureChecker
from trio_broker.sandbox.events import ClientAsked, OrderMoved, SandboxEvent
from trio_broker.sandbox.exchange import Change, Exchange, logger
from trio_broker.sandbox.market import known_asset
from trio_broker.sandbox.messages import (
    Envelope,
    EstimateBody,
    StatusBody,
    SwapBody,
    check_no_body,
    parse_body,
    parse_or_empty,
    print_error,
    print_message,
)
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.money import parse_amount, plain
from trio_broker.sandbox.orders import Order, Terms
from trio_broker.sandbox.refusals import (
    ALREADY_AUTHENTICATED,
    CONNECTION_LIMIT,
    INVALID_API_KEY,
    INVALID_CHANNEL,
    NOT_AUTHENTICATED,
    RATE_LIMIT,
    SUBSCRIPTION_LIMIT,
    UNKNOWN_OPERATION,
    Refusal,
    shortened,
)
from trio_broker.sandbox.rules import Rules

BALANCES: Final = "balances"
ORDERS: Final = "orders:"
_LONGEST_CHANNEL: Final = 256


@attrs.frozen
class Received:
    """A message that a client sent.

    Attributes:
        at: When it came, on Trio's clock.
        op: Its operation; None if it couldn't be read.
        channel: Its channel, if it named one.
    """

    at: float
    op: str | None
    channel: str | None


@attrs.define(eq=False)
class Connection:
    """The broker's state of a client's connection. Tests may read it, but not change it.

    Attributes:
        number: Its number, counted from 1.
        opened_at: The time of its handshake, on Trio's clock.
        closed_at: When it ended; None while it is open.
        api_key: The API key of its account, None until it is authenticated.
        channels: The subscribed channels, in the order of subscription.
        received: The last received messages, including refused ones.
    """

    number: int
    opened_at: float
    received: deque[Received] = attrs.field(repr=False)
    closed_at: float | None = None
    api_key: str | None = attrs.field(default=None, repr=False)
    channels: dict[str, None] = attrs.field(factory=dict)
    _paced: deque[float] = attrs.field(factory=deque, repr=False)

    def pace(self, at: float, limit: int) -> None:
        """Count a message against the limit of messages in a second.

        Args:
            at: The time on Trio's clock.
            limit: How many messages may come in any second.

        Raises:
            Refusal: It is one too many; it isn't counted then.
        """
        while self._paced and at - self._paced[0] >= 1:
            self._paced.popleft()
        if len(self._paced) >= limit:
            raise Refusal(RATE_LIMIT)
        self._paced.append(at)


@attrs.frozen
class Outgoing:
    """A text for a client.

    Attributes:
        connection: The recipient.
        text: The text.
        op: The operation of the request that it answers; None for a push.
        channel: The channel of that request or push. An error needn't name either.
        after: How much later it is sent, in seconds.
    """

    connection: Connection
    text: str
    op: str | None = None
    channel: str | None = None
    after: float = 0.0


class Broker:
    """Answers messages, and pushes what changes.

    Attributes:
        exchange: The exchange.
        connections: The last connections, closed ones included, in the order of opening.
        signatures: Checks signatures, and knows the nonces that were used.
    """

    def __init__(
        self,
        accounts: Iterable[Account],
        exchange: Exchange,
        rules: Rules,
        on_event: Callable[[SandboxEvent], object] | None = None,
    ) -> None:
        self.exchange = exchange
        self._on_event = on_event
        self.connections: deque[Connection] = deque(maxlen=rules.history_size)
        self._rules = rules
        self.signatures: SignatureChecker = SignatureChecker(accounts, *rules.signing_keys)
        self._opened = 0
        # Connections by API key: pushes go to those of one account alone.
        self._authenticated: dict[str, dict[Connection, None]] = {}
        self._operations: dict[str, Callable[[str, Envelope, Moment], _Answer]] = {
            "balances": self._balances,
            "estimate": self._estimate,
            "swap": self._swap,
            "order_status": self._order_status,
        }

    def open(self, at: float) -> Connection:
        """Begin a connection."""
        self._opened += 1
        received: deque[Received] = deque(maxlen=self._rules.history_size)
        connection = Connection(self._opened, at, received)
        self.connections.append(connection)
        logger.info("connection %d: opened", connection.number)
        return connection

    def close(self, connection: Connection, at: float) -> None:
        """End a connection."""
        connection.closed_at = at
        connection.channels.clear()
        # `api_key` stays, for tests and for the event of its end.
        if connection.api_key is not None:
            del self._authenticated[connection.api_key][connection]
        logger.info("connection %d: closed", connection.number)

    def receive(
        self, connection: Connection, message: str | bytes, moment: Moment
    ) -> list[Outgoing]:
        """Answer a message: the reply, and then the pushes that the message caused."""
        envelope, unreadable = parse_or_empty(message)
        op, channel = self._record(connection, envelope, moment.at)
        try:
            connection.pace(moment.at, self._rules.messages_per_second)
            if unreadable is not None:
                raise unreadable
            answer = self._answer(connection, envelope, moment)
        except Refusal as refusal:
            logger.info("connection %d: refused %r: %s", connection.number, op, refusal)
            self._report_request(connection, op, channel, error=str(refusal))
            text = print_error(self._rules.error_form, str(refusal), op=op, ch=channel)
            return [Outgoing(connection, text, op, channel)]
        logger.debug("connection %d: answered %r %s", connection.number, op, channel or "")
        self._report_request(connection, op, channel, order=answer.order)
        nonce = envelope.nonce if self._rules.echo_nonce else None
        text = print_message(op=op, ch=answer.channel, nonce=nonce, data=answer.data)
        return [Outgoing(connection, text, op, channel), *self._pushes(answer.change)]

    def record(self, connection: Connection, message: str | bytes, at: float) -> Outgoing:
        """Record a message that is never handled. Returns a reply to it without a text."""
        op, channel = self._record(connection, parse_or_empty(message)[0], at)
        self._report_request(connection, op, channel, was_handled=False)
        return Outgoing(connection, "", op, channel)

    def end_session(self, connection: Connection) -> None:
        """Forget a connection's authentication and subscriptions."""
        if connection.api_key is not None:
            del self._authenticated[connection.api_key][connection]
        connection.api_key = None
        connection.channels.clear()

    def report(self, event: SandboxEvent) -> None:
        """Report an event to `on_event`."""
        if self._on_event is not None:
            self._on_event(event)

    def next_deadline(self) -> float | None:
        """When `advance` is to be called next, on Trio's clock; None if nothing is to come."""
        return self.exchange.next_deadline()

    def advance(self, moment: Moment) -> list[Outgoing]:
        """Take every step that is due: the pushes that this caused."""
        changes = self.exchange.advance(moment)
        for change in changes:
            self.report(OrderMoved(order=change.order))
        return [push for change in changes for push in self._pushes(change)]

    def _record(
        self, connection: Connection, envelope: Envelope, at: float
    ) -> tuple[str | None, str | None]:
        """Remember a message: its operation and its channel, as an answer repeats them."""
        op = None if envelope.op is None else shortened(envelope.op)
        # A client can send a channel of any length, but the answer must stay short.
        channel = None if len(envelope.ch or "") > _LONGEST_CHANNEL else envelope.ch
        connection.received.append(Received(at, op, channel))
        return op, channel

    def _report_request(
        self,
        connection: Connection,
        op: str | None,
        channel: str | None,
        *,
        order: Order | None = None,
        error: str | None = None,
        was_handled: bool = True,
    ) -> None:
        event = ClientAsked(
            connection=connection.number,
            api_key=connection.api_key,
            op=op,
            channel=channel,
            order=order,
            error=error,
            was_handled=was_handled,
        )
        self.report(event)

    def _answer(self, connection: Connection, envelope: Envelope, moment: Moment) -> _Answer:
        match envelope.op:
            case "auth":
                return self._authenticate(connection, envelope, moment)
            case "subscribe" | "unsubscribe" as op:
                if connection.api_key is None:
                    raise Refusal(NOT_AUTHENTICATED)
                return self._subscription(connection, op, envelope.ch or "")
        operation = self._operations.get(envelope.op or "")
        if operation is None:
            raise Refusal(UNKNOWN_OPERATION, envelope.op or "")
        if connection.api_key is None:
            raise Refusal(NOT_AUTHENTICATED)
        self.signatures.check(connection.api_key, envelope, moment)
        return operation(connection.api_key, envelope, moment)

    def _authenticate(self, connection: Connection, envelope: Envelope, moment: Moment) -> _Answer:
        if envelope.key is None:
            raise Refusal(INVALID_API_KEY)
        self.signatures.check(envelope.key, envelope, moment)
        if connection.api_key not in {None, envelope.key}:
            raise Refusal(ALREADY_AUTHENTICATED)
        peers = self._authenticated.setdefault(envelope.key, {})
        if connection not in peers and len(peers) >= self._rules.max_connections:
            raise Refusal(CONNECTION_LIMIT)
        peers[connection] = None
        connection.api_key = envelope.key
        logger.info("connection %d: authenticated", connection.number)
        return _Answer({"status": "authenticated"})

    def _subscription(self, connection: Connection, op: str, channel: str) -> _Answer:
        order_id = channel.removeprefix(ORDERS) if channel.startswith(ORDERS) else ""
        if not (channel == BALANCES or order_id) or len(channel) > _LONGEST_CHANNEL:
            raise Refusal(INVALID_CHANNEL)
        channels = connection.channels
        if op == "unsubscribe":
            channels.pop(channel, None)
            return _Answer({"status": "unsubscribed"}, channel)
        if channel not in channels and len(channels) >= self._rules.max_subscriptions:
            raise Refusal(SUBSCRIPTION_LIMIT)
        channels[channel] = None
        return _Answer({"status": "subscribed"}, channel)

    def _balances(self, api_key: str, envelope: Envelope, _moment: Moment) -> _Answer:
        check_no_body(envelope, self._rules.dialect)
        held = self.exchange.ledger.accounts[api_key]
        return _Answer({"balances": self.holdings(api_key, held)})

    def _estimate(self, _api_key: str, envelope: Envelope, moment: Moment) -> _Answer:
        body = parse_body(envelope, EstimateBody, self._rules.dialect)
        quote = self.exchange.quote(_terms(body), moment.at)
        route = [
            {
                name: plain(value) if name.startswith("amount") else value
                for name, value in attrs.asdict(step).items()
            }
            for step in quote.route
        ]
        return _Answer(
            {
                "route": route,
                "price": plain(quote.price),
                "expectedOut": plain(quote.expected_out),
                "fee": plain(quote.fee),
                "expiresAt": moment.ms + round(self._rules.quote_lifetime * 1000),
            }
        )

    def _swap(self, api_key: str, envelope: Envelope, moment: Moment) -> _Answer:
        body = parse_body(envelope, SwapBody, self._rules.dialect)
        order, change = self.exchange.swap(api_key, _terms(body), body.client_order_id, moment)
        data: dict[str, object] = {"orderId": order.order_id, "status": order.status}
        if self._rules.client_order_id_in_receipts and order.client_order_id is not None:
            data["clientOrderId"] = order.client_order_id
        return _Answer(data, change=change, order=order)

    def _order_status(self, api_key: str, envelope: Envelope, _moment: Moment) -> _Answer:
        order = self.exchange.find(api_key, parse_body(envelope, StatusBody).id)
        data = order_data(order)
        if self._rules.client_order_id_in_lookups and order.client_order_id is not None:
            data["clientOrderId"] = order.client_order_id
        return _Answer(data, order=order)

    def holdings(self, api_key: str, assets: Iterable[str]) -> list[dict[str, str]]:
        """What an account has of some assets, as replies and pushes print it."""
        holdings = ((asset, self.exchange.ledger.holding(api_key, asset)) for asset in assets)
        return [
            {"asset": asset, "total": plain(holding.total), "locked": plain(holding.locked)}
            for asset, holding in holdings
        ]

    def _pushes(self, change: Change | None) -> list[Outgoing]:
        if change is None:
            return []
        api_key, channel = change.order.api_key, ORDERS + change.order.order_id
        bodies: dict[str, object] = {channel: order_data(change.order)}
        if change.assets:
            bodies[BALANCES] = self.holdings(api_key, change.assets)
        texts = [(name, print_message(ch=name, data=body)) for name, body in bodies.items()]
        return [
            Outgoing(connection, text, channel=name)
            for connection in self._authenticated.get(api_key, ())
            for name, text in texts
            if name in connection.channels
        ]


@attrs.frozen
class _Answer:
    """The reply to an accepted message: its body, the change, and the order."""

    data: dict[str, object]
    channel: str | None = None
    change: Change | None = None
    order: Order | None = None


def _terms(body: EstimateBody | SwapBody) -> Terms:
    return Terms(
        amount_in=parse_amount(body.amount_in, known_asset(body.asset_in).decimals),
        asset_in=body.asset_in,
        asset_out=body.asset_out,
        sources=tuple(sorted(set(body.filter or ()))),
        slippage_bps=body.slippage_bps if isinstance(body, SwapBody) else None,
        wallet=body.account,
    )


def order_data(order: Order) -> dict[str, object]:
    """The members of an order, as replies and pushes print them."""
    data: dict[str, object] = {
        "orderId": order.order_id,
        "status": order.status,
        "filledOut": plain(order.filled_out),
        "updatedAt": order.updated_at,
    }
    if order.tx_hash is not None:
        data["txHash"] = order.tx_hash
    return data
