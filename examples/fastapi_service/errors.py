"""Errors as HTTP: which status each of the library's errors is, in one JSON form for all.

The statuses say whose turn it is. 4xx: the request can't be fulfilled as it is. 502: the broker, or
this service's settings, must be mended. 503 and 504: nothing was swapped, try again. And 202 is no
error at all: a swap has left, nobody knows yet what became of it, and the link asks again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

import trio
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from examples.fastapi_service.board import Board
from examples.fastapi_service.models import Problem, SwapOut, order_link, swap_link
from trio_broker import (
    AuthenticationError,
    AuthenticationTimeoutError,
    BrokerError,
    ClockSkewError,
    ConnectFailedError,
    ConnectionLostError,
    ConnectionState,
    DuplicateClientOrderIdError,
    InternalServerError,
    MessageTooLargeError,
    NonceReusedError,
    NotAuthenticatedError,
    NotSentError,
    OrderNotFoundError,
    OrderUnfinishedError,
    QuoteExpiredError,
    RateLimitedError,
    ReconnectFailedError,
    ReplyTooLargeError,
    RequestTimeoutError,
    ServerError,
    SlippageError,
    SubscriptionBrokenError,
    SwapOutcomeUnknownError,
    UnknownOperationError,
)

# The first matching class counts, so a subclass is before its base class.
STATUSES: Final[tuple[tuple[type[BrokerError], int], ...]] = (
    (DuplicateClientOrderIdError, 409),
    (SlippageError, 409),
    (QuoteExpiredError, 409),
    (MessageTooLargeError, 413),
    (NotSentError, 503),  # not connected, too late, or the journal's disk: nothing has left
    (ConnectionLostError, 503),
    (ConnectFailedError, 503),
    (ReconnectFailedError, 503),
    (SubscriptionBrokenError, 503),
    (RequestTimeoutError, 504),
    (AuthenticationTimeoutError, 504),
    (SwapOutcomeUnknownError, 202),
    (OrderUnfinishedError, 202),
    (AuthenticationError, 502),  # the service's keys, not the caller's
    (ClockSkewError, 502),
    (NonceReusedError, 502),
    (NotAuthenticatedError, 502),
    (UnknownOperationError, 502),
    (OrderNotFoundError, 404),
    (RateLimitedError, 503),
    (InternalServerError, 502),
    (ReplyTooLargeError, 502),  # asking again doesn't help: the service's limit has to be raised
)


def status_of(error: BrokerError) -> int:
    """The HTTP status of an error of the library.

    Args:
        error: The error.
    """
    for kind, status in STATUSES:
        if isinstance(error, kind):
            return status
    if not isinstance(error, ServerError):
        return 502
    if error.code is not None and error.code.startswith("DUPLICATE"):
        return 409
    return 422  # The request was understood but refused: an unknown asset or too little money.


@contextmanager
def checked_arguments() -> Iterator[None]:
    """Around a call of the library: what it says of its arguments is the caller's to mend.

    Raises:
        HTTPException: 422, for what the library raised before it sent anything.
    """
    try:
        yield
    except BrokerError:
        raise
    except (TypeError, ValueError) as error:
        raise HTTPException(422, str(error)) from error


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Make the response for an error.

    Args:
        status: The HTTP status.
        detail: What is wrong, for people.
        headers: Headers of the answer.
        more: Further members of `Problem`.
    """
    title = HTTPStatus(status).phrase
    body = Problem(title=title, status=status, detail=detail, **{"error": title, **more})
    return JSONResponse(
        body.model_dump(mode="json", exclude_none=True),
        status,
        headers,
        media_type="application/problem+json",
    )


def unknown(error: SwapOutcomeUnknownError) -> JSONResponse:
    """The response for a swap that may have been executed: look it up, don't repeat it.

    Args:
        error: The error.
    """
    body = SwapOut.unknown(error.client_order_id, str(error))
    return JSONResponse(body.model_dump(mode="json"), 202, {"Location": body.swap})


def _broker_problem(board: Board, error: BrokerError) -> JSONResponse:
    name, status = type(error).__name__, status_of(error)
    match error:
        case SwapOutcomeUnknownError():
            return unknown(error)
        case DuplicateClientOrderIdError(client_order_id=key, outcome=outcome):
            link = swap_link(key)
            headers = {"Location": link}
            more = {"error": name, "outcome": str(outcome), "swap": link}
            if error.order is not None and error.order.order_id is not None:
                more["order"] = order_link(error.order.order_id)
            return problem(status, str(error), headers=headers, **more)
    if status == 503 and board.client.state is ConnectionState.FAILED:
        status = 502  # there will be no connection any more: trying again can't help
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(math.ceil(board.status().next_try_in or 1.0))
    return problem(status, str(error), headers=headers, error=name)


def _invalid(error: RequestValidationError) -> JSONResponse:
    # Without the sent values, which don't belong in a response or a log.
    errors = [{"loc": each["loc"], "msg": each["msg"]} for each in error.errors()]
    detail = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in errors)
    return problem(422, detail, errors=errors)


# Not a plain function: Starlette would run that in a thread, and the client belongs to this one.
async def answer(request: Request, error: Exception) -> JSONResponse:
    """Make the response to a failed request.

    Args:
        request: The request.
        error: Why.
    """
    await trio.lowlevel.checkpoint()
    match error:
        case BrokerError():
            return _broker_problem(request.app.state.board, error)
        case RequestValidationError():
            return _invalid(error)
        case AnyHTTPException(status_code=status, detail=detail, headers=headers):
            return problem(status, str(detail), headers=headers)
    # The server logs it. Its text may contain anything, so it isn't sent. And by then a swap
    # may have been accepted, so the response has no `success`.
    return problem(500, "internal error; see the service's log", success=None)


def register(app: FastAPI) -> None:
    """Register the error handlers.

    Args:
        app: The application.
    """
    for kind in (BrokerError, RequestValidationError, AnyHTTPException, Exception):
        app.add_exception_handler(kind, answer)
