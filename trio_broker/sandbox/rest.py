"""The broker's REST side, without a socket, a clock or a task.

Requests go in with the time, replies come out. It reads: nothing is swapped or estimated over it.
Signatures, accounts, nonces and orders are those of the WebSocket side.

Where the documentation of the broker is silent, this one does as follows. `clientOrderId` in the
query counts before the id in the path. Every method but GET is refused with 405. A request over a
limit is refused with `Retry-After` and doesn't count against the limit. Public requests are counted
for each address, private ones for each key, once their signature is checked.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import parse_qs, unquote

import attrs
import msgspec

from trio_broker.sandbox.broker import Broker, order_data
from trio_broker.sandbox.exchange import logger
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.refusals import (
    INVALID_SIGNATURE,
    ORDER_NOT_FOUND,
    RATE_LIMIT,
    Refusal,
    error_code,
    shortened,
)
from trio_broker.sandbox.rules import Rules

ORDERS_PATH: Final = "/api/v1/orders/*"
TIME_PATH: Final = "/api/v1/time"

_HEALTH_PATH: Final = "/healthz"
_VERSION_PATH: Final = "/version"
_BALANCES_PATH: Final = "/api/v1/balances"
_ORDER_PATH: Final = re.compile(r"/api/v1/orders/(?:([^/]+)/)?status")
_PUBLIC_PATHS: Final = frozenset({_HEALTH_PATH, _VERSION_PATH, TIME_PATH})

_MINUTE: Final = 60.0
_LONGEST_NONCE: Final = 128
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

_STATUSES: Final = {
    "INTERNAL_ERROR": 500,
    "INVALID_NONCE": 401,
    "INVALID_REQUEST": 400,
    "INVALID_SIGNATURE": 401,
    "EXPIRED_REQUEST": 401,
    "MISSING_API_KEY": 401,
    "NOT_FOUND": 404,
    "RATE_LIMIT": 429,
    "UNAUTHORIZED": 401,
}
# The REST side's own codes for what the errors of the WebSocket call otherwise.
_CODES: Final = {RATE_LIMIT: "RATE_LIMIT", ORDER_NOT_FOUND: "NOT_FOUND"}


@attrs.frozen
class RestRequest:
    """A request.

    Attributes:
        method: Its method.
        target: The path with the query, as it was sent and signed.
        headers: Its headers, by their names in lower case.
        body: Its body.
        peer: The address that it came from.
    """

    method: str
    target: str
    headers: Mapping[str, str] = attrs.field(default=_NO_HEADERS, repr=False)
    body: bytes = b""
    peer: str = ""

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.target.partition("?")[0]


@attrs.frozen
class RestReply:
    """A reply.

    Attributes:
        status: The HTTP status.
        body: The body.
        headers: Further headers.
        after: How much later it is sent, in seconds.
        padding: How many spaces follow the body.
        ends: What happens to the connection instead of a reply; None for a reply.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = _NO_HEADERS
    after: float = 0.0
    padding: int = 0
    ends: Literal["reset", "silence"] | None = None


class _RefusalError(Exception):
    """A request is refused."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status: int = status or _STATUSES[code]
        self.headers = headers


class _Pace:
    """Counts requests of the last minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: deque[float] = deque()

    def take(self, at: float) -> None:
        while self._taken and at - self._taken[0] >= _MINUTE:
            self._taken.popleft()
        if len(self._taken) >= self._limit:
            wait = int(self._taken[0] + _MINUTE - at) + 1
            raise _RefusalError("RATE_LIMIT", RATE_LIMIT, headers={"Retry-After": str(wait)})
        self._taken.append(at)


class RestBroker:
    """Answers REST requests.

    Args:
        broker: The broker behind it, which answers the WebSocket's messages.
        rules: The sandbox's settings.
    """

    def __init__(self, broker: Broker, rules: Rules) -> None:
        self._broker = broker
        self._public = defaultdict[str, _Pace](lambda: _Pace(rules.rest_public_per_minute))
        self._private = defaultdict[str, _Pace](lambda: _Pace(rules.rest_private_per_minute))
        self._refused = 0

    def answer(self, request: RestRequest, moment: Moment) -> RestReply:
        """Answer a request."""
        try:
            data = self._answer(request, moment)
        except _RefusalError as refusal:
            return self.refuse(refusal.code, str(refusal), refusal.status, refusal.headers)
        except Refusal as refusal:
            text = str(refusal)
            return self.refuse(_CODES.get(text) or error_code(text), text)
        logger.debug("REST: answered %s %s", request.method, shortened(request.path))
        return RestReply(200, msgspec.json.encode(data))

    def refuse(
        self,
        code: str,
        message: str,
        status: int | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> RestReply:
        """Make the reply that is an error; without a status, with the code's own."""
        self._refused += 1
        logger.info("REST: refused: %s", message)
        body = {"code": code, "message": message, "request_id": f"req_{self._refused:08d}"}
        return RestReply(status or _STATUSES[code], msgspec.json.encode(body), headers)

    def _answer(self, request: RestRequest, moment: Moment) -> Mapping[str, object]:
        path = request.path
        order_path = _ORDER_PATH.fullmatch(path)
        is_public = path in _PUBLIC_PATHS
        if not (is_public or order_path or path == _BALANCES_PATH):
            raise _RefusalError("NOT_FOUND", "No such endpoint")
        if request.method != "GET":
            allowed = {"Allow": "GET"}
            raise _RefusalError("INVALID_REQUEST", "Method not allowed", 405, allowed)
        if is_public:
            self._public[request.peer].take(moment.at)
            return _public_data(path, moment)
        api_key = self._authenticate(request, moment)
        self._private[api_key].take(moment.at)
        if order_path is None:
            held = self._broker.exchange.ledger.accounts[api_key]
            return {"balances": self._broker.holdings(api_key, held)}
        return self._order(api_key, order_path[1], request)

    def _authenticate(self, request: RestRequest, moment: Moment) -> str:
        headers = request.headers
        api_key = headers.get("x-api-key")
        if not api_key:
            raise _RefusalError("MISSING_API_KEY", "Missing API key")
        ts, nonce = headers.get("x-api-timestamp", ""), headers.get("x-api-nonce", "")
        if not re.fullmatch(r"[0-9]{0,18}", ts):
            raise _RefusalError("INVALID_REQUEST", "Invalid timestamp")
        if len(nonce) > _LONGEST_NONCE:
            raise _RefusalError("INVALID_REQUEST", "Invalid nonce")
        sig = headers.get("x-api-sign", "")
        if not (ts and nonce and sig):
            raise Refusal(INVALID_SIGNATURE)
        digest = sha256(request.body).hexdigest()
        text = f"{request.method}\n{request.target}\n{ts}\n{nonce}\n{digest}"
        signatures = self._broker.signatures
        signatures.check_text(api_key, text, sig, ts=int(ts), nonce=nonce, moment=moment)
        return api_key

    def _order(
        self, api_key: str, quoted_id: str | None, request: RestRequest
    ) -> Mapping[str, object]:
        exchange = self._broker.exchange
        query = parse_qs(request.target.partition("?")[2])
        if client_order_ids := query.get("clientOrderId"):
            order = exchange.find_by_client_order_id(api_key, client_order_ids[0])
        elif quoted_id is not None:
            order = exchange.find_by_either_id(api_key, unquote(quoted_id))
        else:
            raise _RefusalError("INVALID_REQUEST", "Missing order id")
        data = order_data(order)
        if order.client_order_id is not None:
            data["clientOrderId"] = order.client_order_id
        return data


def _public_data(path: str, moment: Moment) -> Mapping[str, object]:
    if path == TIME_PATH:
        return {"serverTime": moment.ms}
    if path == _HEALTH_PATH:
        return {"status": "ok", "time": moment.ms}
    return {"version": "sandbox"}
