"""The service: its lifespan and its routes.

All routes are async, even those that don't wait, because FastAPI runs plain functions in threads,
where the client and the board can't be used.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import trio
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from trio.lowlevel import checkpoint

from examples.fastapi_service import errors
from examples.fastapi_service.board import Board, Watch
from examples.fastapi_service.broker import Broker, open_broker
from examples.fastapi_service.models import (
    BalancesOut,
    EstimateIn,
    EstimateOut,
    OrderOut,
    Problem,
    StatusOut,
    SwapIn,
    SwapOut,
    order_link,
)
from examples.fastapi_service.safety import from_here, may_swap
from trio_broker import (
    NotSentError,
    ServerError,
    SwapOutcomeUnknownError,
    new_client_order_id,
)

logger: Final = logging.getLogger("fastapi_service")
routes: Final = APIRouter(dependencies=[Depends(from_here)])

# Seconds to look up a swap's outcome before the response is "still unknown".
PATIENCE: Final = 5.0

_PAGE: Final = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def _content_policy(page: str) -> str:
    """The content security policy: the page's own script and style, and this service."""
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'"]
    policy += ["form-action 'none'", "frame-ancestors 'none'"]
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        policy.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join(policy)


_PAGE_HEADERS: Final = {"Content-Security-Policy": _content_policy(_PAGE)}


def create_app(
    open_broker: Callable[[], AbstractAsyncContextManager[Broker]] = open_broker,
) -> FastAPI:
    """Make the application; nothing is opened before its lifespan begins.

    Args:
        open_broker: Opens the broker for as long as the application runs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_broker() as broker, trio.open_nursery() as nursery:
            board = app.state.board = Board(broker, nursery)
            nursery.start_soon(board.run)
            yield
            await broker.client.aclose()
            for swap in broker.client.unresolved_swaps():
                logger.error("the outcome of swap %s is unknown", swap.client_order_id)
            nursery.cancel_scope.cancel()

    app = FastAPI(
        title="trio-broker as a web service",
        lifespan=lifespan,
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    errors.register(app)
    app.include_router(routes)
    return app


class EventStream(StreamingResponse):
    """The board as server-sent events, while a browser reads them.

    When the browser disconnects, the stream is ended. Its base class would cancel it instead.
    Hypercorn reports the end of every response as a disconnection while it sends the last part. If
    it were cancelled there, the connection would stay open and block the server's shutdown.
    """

    media_type = "text/event-stream"

    def __init__(self, board: Board) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(iter(()), headers=headers)  # what is sent is known once it is being sent
        self._board = board

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - ASGI passes it
        receive: Receive,
        send: Send,
    ) -> None:
        """Send the stream; called by the ASGI server."""
        with self._board.watch() as watch:
            self.body_iterator = watch
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_when_gone, watch, receive)
                await self.stream_response(send)
                nursery.cancel_scope.cancel()


async def _end_when_gone(watch: Watch, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    watch.end()


async def _board(request: Request) -> Board:
    await checkpoint()
    board: Board = request.app.state.board
    return board


TheBoard = Annotated[Board, Depends(_board)]


@routes.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    """The page, for people."""
    await checkpoint()
    return HTMLResponse(_PAGE, headers=_PAGE_HEADERS)


@routes.get("/status")
async def status(board: TheBoard) -> StatusOut:
    """The service's status, available in any state of the connection."""
    await checkpoint()
    return board.status()


@routes.get("/balances")
async def balances(board: TheBoard) -> BalancesOut:
    """The account's balances, requested now."""
    return BalancesOut.of(await board.client.get_balances())


@routes.post("/estimate")
async def estimate(asked: EstimateIn, board: TheBoard) -> EstimateOut:
    """Estimate a swap."""
    with errors.checked_arguments():
        found = await board.client.estimate_swap(**_given(asked))
    return EstimateOut.of(found)


@routes.post(
    "/swap",
    status_code=201,
    dependencies=[Depends(may_swap)],
    responses={202: {"model": SwapOut, "description": "Outcome unknown: request the `Location`."}},
)
async def swap(
    asked: SwapIn,
    board: TheBoard,
    response: Response,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> SwapOut:
    """Swap, at most once for each `Idempotency-Key`, which becomes the client order id.

    If the caller disconnects, the swap continues, and is found by its key.
    """
    key = new_client_order_id() if idempotency_key is None else idempotency_key
    with errors.checked_arguments():
        receipt = await board.client.do_swap(**_given(asked), client_order_id=key)
    board.follow(receipt, asked)
    response.headers["Location"] = order_link(receipt.order_id)
    return SwapOut.confirmed(receipt)


@routes.get(
    "/swaps/{client_order_id:path}",
    responses={202: {"model": SwapOut, "description": "Outcome still unknown: try again."}},
)
async def swap_outcome(client_order_id: str, board: TheBoard, response: Response) -> SwapOut:
    """A swap's outcome, which is looked up if it is unknown."""
    try:
        with errors.checked_arguments(), trio.fail_after(PATIENCE):
            receipt = await board.client.resolve_swap(client_order_id)
    except NotSentError as error:
        return SwapOut.ended(client_order_id, "not sent", str(error))
    except ServerError as error:
        return SwapOut.ended(client_order_id, "refused", error.message)
    except (SwapOutcomeUnknownError, trio.TooSlowError) as error:
        response.status_code = 202
        return SwapOut.unknown(client_order_id, str(error) or "the swap is being looked up")
    return SwapOut.confirmed(receipt)


@routes.get("/orders/{order_id:path}")
async def order(order_id: str, board: TheBoard) -> OrderOut:
    """An order's state, requested now."""
    with errors.checked_arguments():
        return OrderOut.of(await board.client.get_order_status(order_id))


@routes.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(board: TheBoard) -> EventStream:
    """Server-sent events `status`, `balances` and `order`: the current state, then changes."""
    await checkpoint()
    return EventStream(board)


def _given(asked: EstimateIn | SwapIn) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in type(asked).model_fields}


app: Final = create_app()
