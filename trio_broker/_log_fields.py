"""The fields that every log record of this library has, in `extra`."""

from __future__ import annotations

from typing import Any


def fields(
    *,
    client: str | None = None,
    op: str | None = None,
    client_order_id: str | None = None,
    order_id: str | None = None,
    channel: str | None = None,
    duration: float | None = None,
) -> dict[str, Any]:
    """All fields of one record, None where a field doesn't apply."""
    return {
        "client": client,
        "op": op,
        "client_order_id": client_order_id,
        "order_id": order_id,
        "channel": channel,
        "duration": duration,
    }
