"""The public names as a user writes them: a test of types, which mypy and pyright check.

Nothing here runs. An ignored error is one that must be there: both tell of an ignore that ignores
nothing.
"""

from __future__ import annotations

import datetime as dt
import logging
import ssl
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, assert_never, assert_type

import trio

from trio_broker import (
    AuthenticationError,
    AuthenticationTimeoutError,
    Balance,
    BoundedReceiveChannel,
    BrokerError,
    BrokerWSClient,
    CertificateError,
    ChannelError,
    ChannelRefused,
    ClientClosedError,
    ClientStatistics,
    ClockSkewError,
    Closed,
    ConfigurationError,
    Connected,
    ConnectFailedError,
    ConnectionEvent,
    ConnectionLostError,
    ConnectionState,
    Disconnected,
    DuplicateClientOrderIdError,
    Gap,
    GaveUp,
    InsufficientBalanceError,
    InternalServerError,
    InvalidAmountError,
    InvalidApiKeyError,
    InvalidChannelError,
    InvalidRequestError,
    InvalidSignatureError,
    JournalError,
    JournalRow,
    Limits,
    Message,
    MessageTooLargeError,
    NonceReusedError,
    NotAuthenticatedError,
    NotConnectedError,
    NotSentError,
    Opening,
    Order,
    OrderNotFoundError,
    OrderStatus,
    OrderUnfinishedError,
    ProtocolError,
    QuoteExpiredError,
    RateLimitedError,
    ReconnectFailedError,
    ReconnectPolicy,
    ReplyTooLargeError,
    RequestTimeoutError,
    Restored,
    RouteStep,
    ServerError,
    SlippageError,
    SlowConsumerError,
    SnapshotUnavailable,
    Subscription,
    SubscriptionBrokenError,
    SubscriptionLimitError,
    SwapCorrected,
    SwapEstimate,
    SwapFinding,
    SwapIntent,
    SwapJournal,
    SwapOutcome,
    SwapOutcomeUnknownError,
    SwapReceipt,
    SwapResolved,
    SwapUnresolved,
    UnexpectedMessage,
    UnknownAssetError,
    UnknownOperationError,
    UnreadableError,
    UnresolvedSwap,
    key_fingerprint,
    new_client_order_id,
)
from trio_broker.sandbox import (
    Account,
    BrokerClients,
    ClientAsked,
    ClientCame,
    ClientLeft,
    ClientTurnedAway,
    Connection,
    Fault,
    Faults,
    NamedFault,
    Order as SandboxOrder,
    OrderMoved,
    Outcome,
    Received,
    RestAsked,
    Rules,
    Sandbox,
    SandboxEvent,
    SandboxOptions,
    Settings,
    Terms,
    ThreadedSandbox,
    is_play_money,
    open_sandbox,
    open_threaded_sandbox,
)

# --- The client -----------------------------------------------------------------------------


def options(context: ssl.SSLContext) -> BrokerWSClient:
    policy = ReconnectPolicy(
        max_attempts=None, initial_delay=1, max_delay=32.0, stable_after=10, retry_first=True
    )
    limits = Limits(max_subscriptions=50, max_message_size=1 << 20, messages_per_second=10)
    assert_type(policy.max_attempts, int | None)
    assert_type(limits.max_receive_size, int)
    BrokerWSClient("key", "secret", "wss://host/ws", transport="curl")  # type: ignore[arg-type]
    BrokerWSClient("key", "secret", "wss://host/ws", policy)  # type: ignore[call-arg]  # by its name
    BrokerWSClient("key", "secret")  # type: ignore[call-arg]  # no URL
    return BrokerWSClient(
        "key",
        "secret",
        "wss://host/ws",
        reconnect=policy,
        limits=limits,
        connect_timeout=5,
        auth_timeout=5,
        heartbeat_interval=30,
        heartbeat_timeout=10,
        write_timeout=10,
        request_timeout=10,
        reply_grace=30,
        resolve_timeout=30,
        poll_interval=15,
        close_timeout=5,
        transport="websockets",
        signing_key="raw",
        ssl_context=context,
        allow_insecure=False,
        journal=SwapJournal(Path("swaps.journal")),
        clock=lambda: 0.0,
        name="desk",
    )


async def life(nursery: trio.Nursery, environ: Mapping[str, str]) -> None:
    client = BrokerWSClient("key", "secret", "wss://host/ws")
    assert_type(BrokerWSClient.from_env(), BrokerWSClient)
    assert_type(BrokerWSClient.from_env(environ, request_timeout=5), BrokerWSClient)
    await client.connect(nursery)
    nursery.start_soon(client.connect, nursery)
    await client.wait_connected()
    await client.reconnect()
    assert_type(client.is_connected(), bool)
    assert_type(client.state, ConnectionState)
    assert_type(client.state.is_connected, bool)
    assert_type(client.latency, float | None)
    assert_type(client.logger, logging.Logger)
    assert_type(client.max_reconnect_attempts, int | None)
    client.max_reconnect_attempts = None
    client.reconnect_delay = 0.5
    client.latency = 0.5  # type: ignore[misc]  # it is measured
    figures = client.statistics()
    assert_type(figures, ClientStatistics)
    assert_type(figures.tracked_orders, int)
    resource: trio.abc.AsyncResource = client
    await resource.aclose()
    await client.close()
    await client.wait_closed()


class Desk(BrokerWSClient):
    """A user's own client."""


async def own_client() -> None:
    assert_type(Desk.from_env(), Desk)
    async with Desk("key", "secret", "wss://host/ws") as desk:
        assert_type(desk, Desk)


# --- Streams --------------------------------------------------------------------------------


async def streams(client: BrokerWSClient, name: str) -> None:
    assert_type(await client.subscribe("balances"), Subscription[tuple[Balance, ...]])
    assert_type(await client.subscribe(name), Subscription[Any])
    assert_type(await client.subscribe_order("1", overflow="error"), Subscription[Order])
    await client.subscribe_order("1", overflow="wait")  # type: ignore[arg-type]  # no such policy
    await client.subscribe("balances", print)  # type: ignore[call-overload]  # no callbacks
    opening = client.subscribe_order("1")
    assert_type(opening, Opening[Subscription[Order]])
    assert_type(client.subscribe_balances(), Opening[Subscription[tuple[Balance, ...]]])
    opening.receive()  # type: ignore[attr-defined]  # not awaited
    async for _ in opening:  # type: ignore[attr-defined]  # not entered
        pass
    async with opening as progress:
        assert_type(progress, Subscription[Order])
    async with client.subscribe(name) as anything:
        assert_type(anything, Subscription[Any])
    async with client.subscribe("balances") as typed:
        assert_type(typed, Subscription[tuple[Balance, ...]])
    async with client.subscribe_balances(buffer_size=10, snapshot=False) as updates:
        async for message in updates:
            assert_type(message, Message[tuple[Balance, ...]])
        async for batch in updates.batches():
            assert_type(batch, list[Message[tuple[Balance, ...]]])
        assert_type(updates.clone(), Subscription[tuple[Balance, ...]])
        assert_type(await updates.receive(), Message[tuple[Balance, ...]])
        assert_type(updates.receive_nowait().data, tuple[Balance, ...])
        assert_type(updates.batch_nowait(), list[Message[tuple[Balance, ...]]])
        assert_type(updates.when_ready(print), Callable[[], None])
        assert_type(updates.channel, str)
        assert_type(updates.dropped, int)
        assert_type(updates.statistics(), trio.MemoryChannelStatistics)
        updates.close()
        channel: trio.abc.ReceiveChannel[Message[tuple[Balance, ...]]] = updates
        await channel.aclose()
    async with client.track_order(
        "1", stop_at_partial=True, buffer_size=5, not_found_timeout=5
    ) as progress:
        assert_type(progress, Subscription[Order])
    client.track_order("1", True)  # type: ignore[call-arg]  # by its name alone
    await client.unsubscribe("balances")


def guarding() -> None:
    assert_type(is_play_money("key", "wss://host/ws"), bool)


def values(message: Message[Order], balance: Balance, step: RouteStep) -> None:
    assert_type(balance.is_readable, bool)
    assert_type(message.channel, str)
    assert_type(message.raw, str)
    assert_type(message.received_at, dt.datetime)
    assert_type(message.gap, Gap | None)
    if message.gap is not None:
        assert_type(message.gap.dropped, int)
        assert_type(message.gap.since, dt.datetime)
        assert "overflow" in message.gap.reasons
    if message.origin != "push":
        assert_type(message.origin, Literal["snapshot"])
    order = message.data
    assert_type(order.order_id, str | None)
    assert_type(order.status, OrderStatus | str)
    assert_type(order.filled_out, Decimal | None)
    assert_type(order.tx_hash, str | None)
    assert_type(order.updated_at, dt.datetime | None)
    assert_type(order.client_order_id, str | None)
    assert_type(order.is_final, bool)
    order.status = "FILLED"  # type: ignore[misc]  # values are frozen
    assert_type(balance.total, Decimal)
    assert_type(balance.locked, Decimal | None)
    assert_type(balance.available, Decimal)
    assert_type(step.amount_out, Decimal | None)


async def taps(client: BrokerWSClient) -> None:
    assert_type(client.events(), BoundedReceiveChannel[ConnectionEvent])
    async for event in client.events():
        assert_type(event.at, dt.datetime)
    async for message in client.messages():
        assert_type(message, str | bytes)


def of_the_connection(event: ConnectionEvent) -> None:
    match event:
        case Connected() | Closed():
            pass
        case Disconnected(error=error, retry_in=delay):
            assert_type(error, Exception)
            assert_type(delay, float | None)
        case GaveUp(error=error):
            assert_type(error, Exception)
        case Restored(channels=channels):
            assert_type(channels, tuple[str, ...])
        case _:
            assert_type(event, ConnectionEvent)


def of_channels_and_swaps(event: ConnectionEvent) -> None:
    match event:
        case ChannelRefused(channel=channel) | SnapshotUnavailable(channel=channel):
            assert_type(channel, str)
        case UnexpectedMessage(reason=reason, raw=raw):
            assert_type(reason, str)
            assert_type(raw, str | None)
        case SwapResolved(outcome=outcome, receipt=receipt, error=error):
            assert_type(outcome, SwapOutcome)
            assert_type(receipt, SwapReceipt | None)
            assert_type(error, Exception | None)
        case SwapCorrected(before=before, outcome=outcome, receipt=receipt):
            assert_type(before, SwapOutcome)
            assert_type(outcome, SwapOutcome)
            assert_type(receipt, SwapReceipt | None)
        case SwapUnresolved(client_order_id=name):
            assert_type(name, str)
        case _:
            pass


# --- Operations -----------------------------------------------------------------------------


async def operations(client: BrokerWSClient) -> None:
    assert_type(await client.get_balances(), tuple[Balance, ...])
    estimate = await client.estimate_swap(
        1, "ETH", "USDT", filter_sources=("gate",), network="ethereum", account="0x1"
    )
    assert_type(estimate, SwapEstimate)
    assert_type(estimate.route, tuple[RouteStep, ...])
    assert_type(estimate.expected_out, Decimal)
    assert_type(estimate.expires_at, dt.datetime | None)
    receipt = await client.do_swap(
        Decimal(1),
        "ETH",
        "USDT",
        min_out=3000,
        slippage_bps=5,
        client_order_id=new_client_order_id(),
    )
    assert_type(receipt, SwapReceipt)
    assert_type(receipt.order_id, str)
    assert_type(receipt.client_order_id, str)
    assert_type(await client.get_order_status(receipt.order_id), Order)
    assert_type(await client.swap_and_wait("1", "ETH", "USDT", min_out="3000"), Order)
    await client.do_swap(0.1, "ETH", "USDT")  # type: ignore[arg-type]  # a float is no amount
    await client.do_swap("1", "ETH", "USDT", 5)  # type: ignore[call-arg]  # by its name alone
    with trio.fail_after(5):
        await client.estimate_swap("1", "ETH", "USDT")


async def swaps(client: BrokerWSClient) -> None:
    assert_type(client.unresolved_swaps(), tuple[UnresolvedSwap, ...])
    intents: list[SwapIntent] = list(client.unresolved_swaps())
    assert_type(intents[0].amount_in, Decimal)
    assert_type(await client.resolve_swap("c1"), SwapReceipt)
    for finding in await client.reconcile():
        assert_type(finding, SwapFinding)
        assert_type(finding.swap.may_still_execute, bool)
        match finding.outcome:
            case SwapOutcome.CONFIRMED:
                assert_type(finding.receipt, SwapReceipt | None)
            case SwapOutcome.REFUSED | SwapOutcome.NOT_SENT | SwapOutcome.UNKNOWN:
                assert_type(finding.reason, str)
            case SwapOutcome.UNDER_WAY | SwapOutcome.SETTLED:
                pass
            case _:
                assert_never(finding.outcome)
    await client.settle_swap("c1", "seen at the desk")
    assert_type(key_fingerprint("key"), str)
    rows: list[JournalRow] = []
    assert_type(rows[0].client_order_id, str)


# --- Errors ---------------------------------------------------------------------------------


async def errors_of_a_swap(client: BrokerWSClient) -> Order | None:
    try:
        return await client.swap_and_wait("1", "ETH", "USDT")
    except SlippageError as error:
        assert_type(error.min_out, Decimal)
    except QuoteExpiredError as error:
        assert_type(error.expired_at, dt.datetime)
    except NotSentError as error:
        nothing_was_sent(error)
    except ServerError as error:
        assert_type(error.op, str | None)
        assert_type(error.message, str)
    except SwapOutcomeUnknownError as error:
        assert_type(error.client_order_id, str)
    except OrderUnfinishedError as error:
        assert_type(error.order_id, str)
    except DuplicateClientOrderIdError as error:
        assert_type(error.outcome, str)
    return None


async def errors_of_a_connection(client: BrokerWSClient) -> None:
    try:
        await client.wait_closed()
    except ConnectFailedError as error:
        assert_type(error.status, int | None)
        assert_type(error.retry_after, float | None)
    except ConnectionLostError as error:
        assert_type(error.code, int | None)
        assert_type(error.is_local, bool)
    except ReconnectFailedError as error:
        assert_type(error.attempts, int)
    except (AuthenticationTimeoutError, RequestTimeoutError, ProtocolError) as error:
        library(error)


def nothing_was_sent(error: NotSentError) -> None: ...
def refused(error: ServerError) -> None: ...
def library(error: BrokerError) -> None: ...
def broken(error: trio.BrokenResourceError) -> None: ...
def closed(error: trio.ClosedResourceError) -> None: ...
def value(error: ValueError) -> None: ...


def kinds(
    *,
    certificate: CertificateError,
    not_sent: NotConnectedError | ClientClosedError | JournalError,
    keys: AuthenticationError | InvalidApiKeyError | InvalidSignatureError,
    trust: ClockSkewError | NonceReusedError | NotAuthenticatedError,
    names: InvalidChannelError | UnknownOperationError | UnknownAssetError | OrderNotFoundError,
    business: InsufficientBalanceError | InvalidAmountError | InvalidRequestError,
    passing: RateLimitedError | InternalServerError,
    unreadable: UnreadableError,
    duplicate: DuplicateClientOrderIdError,
    reply: ReplyTooLargeError,
    arguments: ConfigurationError | MessageTooLargeError,
    streams: ChannelError | SlowConsumerError | SubscriptionLimitError,
    ends: SubscriptionBrokenError,
    shut: ClientClosedError,
) -> None:
    assert_type(certificate.status, int | None)
    nothing_was_sent(not_sent)
    refused(keys)
    refused(trust)
    refused(names)
    refused(business)
    refused(passing)
    assert_type(passing.code, str | None)
    assert_type(passing.is_retryable, bool)
    library(unreadable)
    assert_type(duplicate.was_sent, bool)
    assert_type(duplicate.order, Order | None)
    library(reply)
    assert_type(reply.op, str)
    assert_type(reply.limit, int)
    value(arguments)
    library(streams)
    broken(ends)
    closed(shut)
    refused(ends)  # type: ignore[arg-type]  # the broker said nothing


# --- The sandbox ----------------------------------------------------------------------------


async def sandbox() -> None:
    settings: Settings = {"fee_bps": 0, "pending_delay": (0, 1)}
    assert_type(Rules(**settings).fee_bps, int)
    rich = Account("rich", "secret", {"USDT": 10**6})
    async with open_sandbox(seed=7, accounts=[rich], on_event=told, **settings) as sandbox:
        assert_type(sandbox, Sandbox)
        assert_type(sandbox.balances("rich"), dict[str, Balance])
        assert_type(sandbox.orders(), tuple[SandboxOrder, ...])
        assert_type(sandbox.order("1").terms, Terms)
        assert_type(sandbox.connections, tuple[Connection, ...])
        received: list[Received] = list(sandbox.connections[0].received)
        assert_type(received[0].op, str | None)
        assert_type(sandbox.accounts, tuple[Account, ...])
        assert_type(sandbox.push("text"), int)
        assert_type(sandbox.drop_connections(), int)
        sandbox.next_outcome("filled", Outcome.FAILED)
        assert_type(sandbox.faults, Faults)
        named: NamedFault = Faults.named["swap_error_late"]
        assert_type(named.what, str)
        assert_type(sandbox.faults.start("swap_error_late", times=1), Fault)
        assert_type(sandbox.faults.end_sessions(form="named"), int)
        sandbox.faults.refuse(["a", {"code": "B"}], members={"op": "error"}, executed=True)
        sandbox.faults.change({"orderId": int, "total": "NaN"}, without=["status"])
        with sandbox.faults.swallow(op="swap", times=1) as fault:
            assert_type(fault, Fault)
        async with sandbox.client(request_timeout=1) as client:
            assert_type(client, BrokerWSClient)
    async with open_sandbox(fees=0):  # type: ignore[call-arg]  # no such setting
        pass


async def fixtures(broker_clients: BrokerClients) -> None:
    assert_type(await broker_clients(account=1, request_timeout=5), BrokerWSClient)


def threaded_sandbox() -> None:
    options: SandboxOptions = {"seed": 7, "fee_bps": 0}
    with open_threaded_sandbox(**options) as sandbox:
        assert_type(sandbox, ThreadedSandbox)
        assert_type(sandbox.do(lambda it: it.faults.stop_pushing()), Fault)
    with open_threaded_sandbox(fees=0):  # type: ignore[call-arg]  # no such setting
        pass


def told(event: SandboxEvent) -> None:
    match event:
        case ClientCame() | ClientAsked() | ClientLeft() | ClientTurnedAway() | RestAsked():
            pass
        case OrderMoved(order=order):
            assert_type(order, SandboxOrder)
        case _:
            assert_type(event, SandboxEvent)
