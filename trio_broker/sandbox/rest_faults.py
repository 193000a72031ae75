"""The faults of the sandbox's REST side: methods of `Faults`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

import attrs
import msgspec
import trio

from trio_broker.sandbox.changes import MemberChange
from trio_broker.sandbox.disturbance import Disturbances, Fault, RestAlteration
from trio_broker.sandbox.rest import ORDERS_PATH, RestReply

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_NO_MEMBERS: Final[Mapping[str, object]] = MappingProxyType({})


class RestFaults:
    """The faults of the REST side.

    These parameters mean the same in all methods:

    - `path`: only requests with this path, without the query. A ``*`` at its end matches anything:
      ``"/api/v1/orders/*"``. None for all.
    - `times`: after so many uses the fault ends by itself; None for never. ValueError if it is less
      than 1.

    Requests are handled as without the fault: a nonce is used up, and a limit counts. Only the
    reply is changed. To shift the clock of both sides, use `Faults.shift_clock`; to stop both,
    `Faults.kill`.
    """

    def __init__(self, disturbances: Disturbances) -> None:
        self._disturbances = disturbances

    def stop_rest(
        self,
        how: Literal["reset", "silence"] = "reset",
        *,
        path: str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Answer no REST request.

        Requests that it left without a reply stay so after it is lifted.

        Args:
            how: ``"reset"`` resets the connection instead of a reply; ``"silence"`` keeps it open
                without a word.
            path: Only requests with this path.
            times: How many requests it affects.

        Raises:
            ValueError: There is no such way.
        """
        if how not in {"reset", "silence"}:
            raise ValueError(f"how must be 'reset' or 'silence', not {how!r}")
        return self._alter_rest(lambda reply: attrs.evolve(reply, ends=how), path, times)

    def delay_rest(
        self, seconds: float, *, path: str | None = None, times: int | None = None
    ) -> Fault:
        """Send REST replies later.

        Replies that are delayed when it is lifted are still sent at their time.

        Args:
            seconds: How much later, in seconds of Trio's clock.
            path: Only replies to requests with this path.
            times: How many replies it delays.

        Raises:
            ValueError: `seconds` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"a time must be 0 seconds or more, not {seconds!r}")
        return self._alter_rest(
            lambda reply: attrs.evolve(reply, after=reply.after + seconds), path, times
        )

    def refuse_rest(
        self,
        status: int = 500,
        code: str = "INTERNAL_ERROR",
        message: str = "Internal server error",
        headers: Mapping[str, str] = _NO_HEADERS,
        *,
        path: str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Refuse REST requests, or redirect them.

        Args:
            status: The HTTP status of the reply.
            code: The code of the error.
            message: The text of the error.
            headers: Headers of the reply: ``{"Retry-After": "5"}``.
            path: Only requests with this path.
            times: How many requests it refuses.

        Raises:
            ValueError: The status or a header can't be in an HTTP response.
        """
        body = {"code": code, "message": message, "request_id": "req_fault"}
        return self.replace_rest(msgspec.json.encode(body), status, headers, path=path, times=times)

    def replace_rest(
        self,
        body: str | bytes,
        status: int = 200,
        headers: Mapping[str, str] = _NO_HEADERS,
        *,
        path: str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Send something else in place of REST replies.

        Args:
            body: Any body.
            status: The HTTP status.
            headers: Headers of the reply; they replace those that it has otherwise.
            path: Only replies to requests with this path.
            times: How many replies it replaces.

        Raises:
            ValueError: The status or a header can't be in an HTTP response.
        """
        if not 200 <= status <= 999 or status in {204, 304}:
            raise ValueError(f"a reply with a body has a status from 200 to 999, not {status!r}")
        for name, value in headers.items():
            if not (name and name.isascii() and name.replace("-", "").isalnum()):
                raise ValueError(f"an HTTP header has no such name: {name!r}")
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"an HTTP header is printable ASCII, not {value!r}")
            if name.lower() in {"content-length", "transfer-encoding"}:
                raise ValueError(f"{name} can't be chosen")
        content = body.encode() if isinstance(body, str) else body
        return self._alter_rest(
            lambda reply: attrs.evolve(reply, status=status, body=content, headers=headers),
            path,
            times,
        )

    def change_rest(
        self,
        members: Mapping[str, object] = _NO_MEMBERS,
        *,
        without: Sequence[str] = (),
        path: str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Change members of REST replies, wherever they occur in a body.

        Args:
            members: New values by the names of members; or a function that makes it from the old
                value. See `Faults.change`.
            without: The names of members that are left out.
            path: Only replies to requests with this path.
            times: How many replies it changes.
        """
        change = MemberChange(members, frozenset(without), {}, None)
        return self._alter_rest(
            lambda reply: attrs.evolve(reply, body=change.apply(reply.body.decode()).encode()),
            path,
            times,
        )

    def pad_rest(self, size: int, *, path: str | None = None, times: int | None = None) -> Fault:
        """Make REST replies larger, with spaces after the body.

        The spaces are made while they are sent, so even a gigabyte takes no memory here.

        Args:
            size: How many spaces.
            path: Only replies to requests with this path.
            times: How many replies it makes larger.

        Raises:
            ValueError: `size` is negative.
        """
        if size < 0:
            raise ValueError(f"size must be 0 bytes or more, not {size!r}")
        return self._alter_rest(
            lambda reply: attrs.evolve(reply, padding=reply.padding + size), path, times
        )

    def hide_orders_from_rest(
        self, seconds: float | None = None, *, times: int | None = None
    ) -> Fault:
        """Answer lookups of orders over REST with ``NOT_FOUND``, whether there are such orders.

        Args:
            seconds: For so long from now on, in seconds of Trio's clock; None until it is lifted.
            times: How many lookups it affects.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"a time must be 0 seconds or more, not {seconds!r}")
        until = float("inf") if seconds is None else trio.current_time() + seconds
        body = {"code": "NOT_FOUND", "message": "Order not found", "request_id": "req_fault"}
        hidden = RestReply(404, msgspec.json.encode(body))

        def hide(reply: RestReply) -> RestReply:
            is_hidden = reply.status == 200 and trio.current_time() < until
            return attrs.evolve(hidden, after=reply.after) if is_hidden else reply

        return self._alter_rest(hide, ORDERS_PATH, times)

    def shift_rest_clock(self, seconds: float) -> Fault:
        """Tell a wrong time over REST, while the broker goes by the right one.

        Args:
            seconds: By how much the told time is ahead; negative if it is behind.
        """

        def shifted(told: object) -> object:
            return told + round(seconds * 1000) if isinstance(told, int) else told

        return self.change_rest({"serverTime": shifted, "time": shifted})

    def _alter_rest(
        self,
        alter: Callable[[RestReply], RestReply],
        path: str | None,
        times: int | None,
    ) -> Fault:
        return self._disturbances.add(RestAlteration(path, alter), times)
