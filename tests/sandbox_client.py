"""A client of the sandbox as somebody would write it in another language.

It signs by its own lines, after the broker's documentation, and shares nothing with the library.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Callable
from typing import Any

import trio_websocket

_nonces = itertools.count(1)


def signature(secret: str, op: str, ts: int, nonce: str, body: str, *, raw: bool = False) -> str:
    path = "/ws/v1/stream" if op == "auth" else f"/ws/v1/{op}"
    digest = hashlib.sha256(body.encode()).hexdigest()
    canonical = "\n".join(("WS", path, str(ts), nonce, digest))
    key = base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest())
    return hmac.new(secret.encode() if raw else key, canonical.encode(), "sha256").hexdigest()


def signed(
    op: str,
    body: str = "",
    *,
    at: float,
    secret: str = "test_secret_1",  # noqa: S107 - a documented one
    nonce: str | None = None,
    raw: bool = False,
    **members: Any,
) -> str:
    """A signed message, its members in an order of its own; `body` is the text of `data`."""
    ts = int(at * 1000)
    nonce = nonce or f"n-{next(_nonces)}"
    sig = signature(secret, op, ts, nonce, body, raw=raw)
    head = json.dumps({"sig": sig, "nonce": nonce, **members, "ts": ts, "op": op})
    return f'{head[:-1]}, "data": {body}}}' if body else head


def auth(at: float, number: int = 1, **options: Any) -> str:
    options = {"secret": f"test_secret_{number}", "key": f"test_key_{number}", **options}
    return signed("auth", at=at, **options)


def swap_body(**changes: Any) -> str:
    body = {"amountIn": "1.5", "assetIn": "ETH", "assetOut": "USDT", **changes}
    return json.dumps({name: value for name, value in body.items() if value is not None})


class RawClient:
    """A WebSocket to a sandbox that speaks for one of its documented accounts."""

    def __init__(
        self,
        websocket: trio_websocket.WebSocketConnection,
        clock: Callable[[], float],
        number: int = 1,
        *,
        raw_key: bool = False,
    ) -> None:
        self.websocket = websocket
        self._clock = clock
        self._number = number
        self._raw_key = raw_key

    async def send(self, text: str | bytes) -> None:
        await self.websocket.send_message(text)

    async def receive_json(self) -> Any:
        return json.loads(await self.websocket.get_message())

    async def request(self, op: str, body: str = "", **members: Any) -> Any:
        secret = f"test_secret_{self._number}"
        at, raw = self._clock(), self._raw_key
        await self.send(signed(op, body, at=at, secret=secret, raw=raw, **members))
        return await self.receive_json()

    async def authenticate(self) -> None:
        reply = await self.request("auth", key=f"test_key_{self._number}")
        assert reply == {"op": "auth", "data": {"status": "authenticated"}}

    async def subscribe(self, channel: str) -> None:
        await self.send(json.dumps({"ch": channel, "op": "subscribe"}))
        data = {"status": "subscribed"}
        assert await self.receive_json() == {"op": "subscribe", "ch": channel, "data": data}
