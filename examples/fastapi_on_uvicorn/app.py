"""FastAPI on uvicorn: asyncio's client in the lifespan, calls as routes, streams as WebSockets.

    uvicorn examples.fastapi_on_uvicorn.app:app

It starts only if it can connect to the broker. A connection that is lost later is replaced for as
long as the service lasts, and meanwhile its routes say so.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import ExitStack, asynccontextmanager
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypedDict
from urllib.parse import quote

from fastapi import (
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, PlainSerializer, StrictInt
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection

from trio_broker import (
    Balance,
    BrokerError,
    BrokerWSClient,
    ConnectionLostError,
    DuplicateClientOrderIdError,
    NotSentError,
    Order,
    ReconnectPolicy,
    RequestTimeoutError,
    ServerError,
    SwapOutcomeUnknownError,
    UnreadableError,
)
from trio_broker.aio import AioBrokerClient, open_client
from trio_broker.sandbox import is_play_money, open_threaded_sandbox

logger: Final = logging.getLogger("uvicorn.error")  # uvicorn's own, which is shown

# Each HTTP request waits for the client, so it has shorter timeouts than by default.
OPTIONS: Final[dict[str, Any]] = {
    "reconnect": ReconnectPolicy(max_attempts=None, max_delay=15.0),
    "request_timeout": 5.0,
    "resolve_timeout": 5.0,
}
HOSTS: Final = ["127.0.0.1", "localhost"]


# --- The client ---------------------------------------------------------------------------------


class State(TypedDict):
    """The state that every request can use."""

    client: AioBrokerClient
    is_play_money: bool


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    """Connect before the first request, and close after the last."""
    with ExitStack() as stack:
        environ: Mapping[str, str] = os.environ
        if "BROKER_API_KEY" not in environ:
            sandbox = stack.enter_context(
                open_threaded_sandbox(pending_delay=(0.3, 0.6), processing_delay=(0.6, 1.2))
            )
            environ = {
                "BROKER_WS_URL": sandbox.url,
                "BROKER_API_KEY": sandbox.api_key,
                "BROKER_SECRET_KEY": sandbox.secret_key,
            }
        async with open_client(BrokerWSClient.from_env(environ, **OPTIONS)) as client:
            yield {
                "client": client,
                "is_play_money": is_play_money(
                    environ["BROKER_API_KEY"],
                    environ.get("BROKER_WS_URL") or environ["BROKER_BASE_URL"],
                ),
            }
        for swap in client.unresolved_swaps():
            logger.error("the outcome of swap %s is unknown", swap.client_order_id)


def client_of(connection: HTTPConnection) -> AioBrokerClient:
    """The client."""
    client: AioBrokerClient = connection.state.client
    return client


async def own_page(connection: HTTPConnection) -> None:
    """Refuse requests from other sites' pages, over HTTP and over WebSockets.

    Browsers name the page that sends something in `Origin`. They let any page open a WebSocket, and
    send some requests without asking first.
    """
    await asyncio.sleep(0)
    origin = connection.headers.get("origin")
    host = connection.headers.get("host", "").lower()
    # Compared as texts: an origin may be anything ("null", for example), and only these are right.
    if origin is None or origin.lower() in {f"http://{host}", f"https://{host}"}:
        return
    if connection.scope["type"] == "websocket":
        raise WebSocketException(1008)
    raise HTTPException(403, "requests from other sites' pages are refused")


app: Final = FastAPI(
    title="trio-broker on asyncio", lifespan=lifespan, dependencies=[Depends(own_page)]
)
# Or another site could have its name point here, and read the account with its page's script.
app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)


# --- Requests and responses ----------------------------------------------------------------------

# A text, both ways: a JSON number is a binary float before anybody sees it.
Amount: TypeAlias = Annotated[
    Decimal, PlainSerializer(lambda amount: f"{amount:f}", return_type=str)
]


class Asset(BaseModel):
    """The account's balance of an asset."""

    asset: str
    total: Amount | Literal["unreadable"]
    locked: Amount | Literal["unreadable"] | None
    available: Amount | Literal["unreadable"]

    @classmethod
    def of(cls, balance: Balance) -> Self:
        """The library's `Balance` as JSON."""
        names = ("total", "locked", "available")
        return cls(asset=balance.asset, **{name: _amount(balance, name) for name in names})


def _amount(balance: Balance, name: str) -> Any:
    """An amount of a balance. The broker may have sent one that can't be read: that isn't zero."""
    try:
        return getattr(balance, name)
    except UnreadableError:
        return "unreadable"


class Account(BaseModel):
    """The whole account, and whether updates were missed, for example during an outage."""

    balances: list[Asset]
    missed: bool = False


class OrderState(BaseModel):
    """The state of an order."""

    order_id: str
    status: str
    is_final: bool
    filled_out: Amount | None
    tx_hash: str | None

    @classmethod
    def of(cls, order_id: str, order: Order) -> Self:
        """The library's `Order` as JSON."""
        return cls(
            order_id=order_id,
            status=order.status,
            is_final=order.is_final,
            filled_out=order.filled_out,
            tx_hash=order.tx_hash,
        )


class Asked(BaseModel):
    """The terms of a swap. Unknown fields are refused, so that no misspelled limit is ignored."""

    model_config = ConfigDict(extra="forbid")

    amount_in: str
    asset_in: str
    asset_out: str
    slippage_bps: StrictInt | None = None  # or `true` would be a limit of 1


class Outcome(BaseModel):
    """A swap's outcome."""

    client_order_id: str
    outcome: Literal["taken", "refused", "not sent"]
    order_id: str | None = None
    detail: str = ""


# --- Calls ---------------------------------------------------------------------------------------


@app.get("/status")
async def status(request: Request) -> dict[str, Any]:
    """The service's status, available in any state of the connection."""
    # A plain function would be run in a thread, and the client belongs to this one.
    await asyncio.sleep(0)
    client = client_of(request)
    return {
        "websocket_connected": client.is_connected(),
        "state": client.state.value,
        "broker": "SANDBOX" if request.state.is_play_money else "LIVE",
        "unresolved_swaps": [swap.client_order_id for swap in client.unresolved_swaps()],
    }


@app.get("/balances")
async def balances(request: Request) -> Account:
    """The account's balances, requested now."""
    held = await client_of(request).get_balances()
    return Account(balances=[Asset.of(each) for each in held])


@app.post("/swap", status_code=201)
async def swap(
    asked: Asked, request: Request, idempotency_key: Annotated[str, Header()]
) -> Outcome:
    """Swap play money, once for each `Idempotency-Key`, which becomes the client order id.

    The header must be there, so that a caller who gets no answer can ask at ``/swaps/{key}``.
    """
    if not request.state.is_play_money:
        raise HTTPException(403, "real money: this example doesn't swap it")
    try:
        receipt = await client_of(request).do_swap(
            asked.amount_in,
            asked.asset_in,
            asked.asset_out,
            slippage_bps=asked.slippage_bps,
            client_order_id=idempotency_key,
        )
    except (TypeError, ValueError) as error:
        raise HTTPException(422, str(error)) from error
    return Outcome(client_order_id=idempotency_key, outcome="taken", order_id=receipt.order_id)


@app.get("/swaps/{key:path}")
async def outcome(key: str, request: Request) -> Outcome:
    """A swap's outcome, which is looked up if it is unknown."""
    try:
        receipt = await client_of(request).resolve_swap(key)
    except NotSentError as error:
        return Outcome(client_order_id=key, outcome="not sent", detail=str(error))
    except ServerError as error:
        return Outcome(client_order_id=key, outcome="refused", detail=error.message)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return Outcome(client_order_id=key, outcome="taken", order_id=receipt.order_id)


# The first matching class counts, so a subclass is before its base class.
STATUSES: Final[tuple[tuple[type[BrokerError], int], ...]] = (
    (SwapOutcomeUnknownError, 202),  # don't swap again: ask at /swaps/{key}
    (DuplicateClientOrderIdError, 409),  # as above
    (NotSentError, 503),  # not connected, or too late: try again
    (ConnectionLostError, 503),  # only what reads fails so, so try again
    (RequestTimeoutError, 504),  # the same
    (ServerError, 422),  # the broker refused it
    (BrokerError, 502),
)


@app.exception_handler(BrokerError)
async def answer(_: Request, error: BrokerError) -> JSONResponse:
    """Make the response to a failed call."""
    await asyncio.sleep(0)
    code = next(code for kind, code in STATUSES if isinstance(error, kind))
    body = {"error": type(error).__name__, "detail": str(error)}
    if isinstance(error, SwapOutcomeUnknownError | DuplicateClientOrderIdError):
        body["swap"] = f"/swaps/{quote(error.client_order_id)}"
    if isinstance(error, DuplicateClientOrderIdError) and error.order is not None:
        body["order_id"] = str(error.order.order_id)  # of this swap, or of an earlier one
    return JSONResponse(body, code)


@app.exception_handler(RequestValidationError)
async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
    r"""Answer a request of the wrong form.

    FastAPI's own answer repeats what was sent. Not all of that can be JSON: Python reads ``1e400``
    as infinity, and ``"\ud800"`` as text that UTF-8 doesn't have.
    """
    await asyncio.sleep(0)
    detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return JSONResponse({"detail": detail.encode("ascii", "backslashreplace").decode()}, 422)


# --- Streams -------------------------------------------------------------------------------------


@app.websocket("/balances")
async def balances_stream(websocket: WebSocket) -> None:
    """The whole account, now and whenever it changes."""

    async def send() -> None:
        account: dict[str, Asset] = {}
        async with client_of(websocket).subscribe_balances() as updates:
            async for batch in updates.batches():
                for message in batch:
                    if message.origin == "snapshot":
                        account.clear()
                    account |= {balance.asset: Asset.of(balance) for balance in message.data}
                missed = any(message.gap is not None for message in batch)
                state = Account(balances=list(account.values()), missed=missed)
                await websocket.send_text(state.model_dump_json())

    await stream(websocket, send)


@app.websocket("/orders/{order_id:path}")
async def order_stream(websocket: WebSocket, order_id: str) -> None:
    """An order's states until it is final; then the WebSocket is closed."""

    async def send() -> None:
        async with client_of(websocket).track_order(order_id) as progress:
            async for message in progress:
                state = OrderState.of(order_id, message.data)
                await websocket.send_text(state.model_dump_json())
        await websocket.close()

    await stream(websocket, send)


async def stream(websocket: WebSocket, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Send until there is nothing more to send, or the other side disconnects.

    uvicorn reports its own shutdown in the same way, so that no stream blocks it.
    """
    await websocket.accept()
    try:
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(send())
            while (await websocket.receive())["type"] != "websocket.disconnect":
                pass
            sending.cancel()
    except* WebSocketDisconnect:
        pass  # it went while something was sent
    except* (BrokerError, ValueError) as group:
        # A reason takes 123 bytes at most.
        await websocket.close(1011, str(group.exceptions[0]).encode()[:123].decode(errors="ignore"))
