"""Access control.

The service has no users and no passwords: whoever reaches its port may look. It listens on this
machine alone, and two doors remain, which any page in a browser here could try:

- *Another site's script posts to us.* Browsers say where a request comes from (`Origin`); what
  doesn't come from our own page is refused. The body must be declared as JSON, too, which
  browsers don't send elsewhere without asking first.
- *Another site's name is made to point at us* (DNS rebinding). Then `Host` has that name: only
  names of this machine are let in, and those in SERVICE_HOSTS.

And real money isn't swapped without a token, whoever asks.

(The checks are no plain functions, as FastAPI would run those in threads.)
"""

from __future__ import annotations

import os
import re
import secrets
from typing import Annotated, Final

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from trio.lowlevel import checkpoint

from examples.fastapi_service.board import Board

_HOST: Final = re.compile(r"(?:\[(?P<address>[^\]]+)\]|(?P<name>[^\[\]:@/,]+))(?::[0-9]+)?")
_THIS_MACHINE: Final = {"127.0.0.1", "::1", "localhost"}

Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def from_here(request: Request) -> None:
    """Refuse requests from other sites' pages.

    Args:
        request: The request.

    Raises:
        HTTPException: 403, with the reason.
    """
    await checkpoint()
    # The header itself: where it is no host, the request's URL has another one in its place.
    host = ",".join(request.headers.getlist("host")).lower()
    if _name_of(host) not in _THIS_MACHINE | _allowed():
        raise HTTPException(403, "unknown host name: add it to SERVICE_HOSTS")
    origin = request.headers.get("origin")
    # As texts: browsers write both in the same way, and what can't be parsed isn't our page's.
    if origin is not None and origin.lower() not in {f"http://{host}", f"https://{host}"}:
        raise HTTPException(403, "requests from other sites' pages are refused")


def _allowed() -> set[str]:
    names = (name.strip().lower() for name in os.environ.get("SERVICE_HOSTS", "").split(","))
    return {name for name in names if name}


def _name_of(host: str) -> str | None:
    found = _HOST.fullmatch(host)
    return found and (found["address"] or found["name"])


async def may_swap(request: Request, shown: Bearer) -> None:
    """Refuse real-money swaps without the token.

    Args:
        request: The request.
        shown: Its token.

    Raises:
        HTTPException: 403 where such swaps are off, 401 without the right token.
    """
    await checkpoint()
    board: Board = request.app.state.board
    if board.broker.is_sandbox:
        return
    token = board.broker.swap_token
    if token is None:
        raise HTTPException(403, "real-money swaps are disabled: set SERVICE_SWAP_TOKEN")
    if shown is None or not secrets.compare_digest(shown.credentials.encode(), token.encode()):
        bearer = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "real-money swaps require the right token", bearer)
