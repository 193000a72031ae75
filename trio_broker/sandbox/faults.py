"""Faults that a test can inject into a sandbox.

>>> with sandbox.faults.stop_pushing():
...     ...  # the client gets no pushes here
>>> sandbox.faults.swallow(op="swap", times=1)
>>> sandbox.faults.reset(mid_frame=True)

There are three kinds of methods. Some start a lasting fault and return a `Fault`. It ends when it
is lifted, at the end of its ``with`` block, or after `times` uses. Some act once on the connections
whose handshake is done, and return their number. And `kill` stops the server until `revive`.

Lasting faults affect only the broker's own messages. Messages that a test sends, with
`Sandbox.push` or from here, are never swallowed, delayed or changed. Several faults on one message
are applied in the order in which they were started, each to the result of the one before.

All faults act at the broker's end of a real socket, so the client has to detect them by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from trio_broker.sandbox.disturbance import (
    Alteration,
    Drip,
    Fault,
    Greeting,
    Interception,
    Later,
    Selector,
    Stall,
)
from trio_broker.sandbox.messages import print_message
from trio_broker.sandbox.refusals import INVALID_CHANNEL, INVALID_SIGNATURE
from trio_broker.sandbox.server import Raw, Server

if TYPE_CHECKING:
    from trio_broker.sandbox.server import Link

_CONTINUATION: Final = 0x0
_TEXT: Final = 0x1
_BINARY: Final = 0x2
_CLOSE: Final = 0x8
_PING: Final = 0x9
_LONGEST_REASON: Final = 123  # bytes: a control frame holds 125, two of them are the code

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Faults:
    """The faults of a running sandbox: `Sandbox.faults`.

    These parameters mean the same in all methods:

    - `account`: only connections of this account: its position in `Sandbox.accounts`, or its API
      key; None for all. A connection is an account's from its authentication on.
    - `op`: only requests with this operation, and replies to them: ``"swap"``.
    - `channel`: with `op`, only requests and replies with this channel. Without `op`, only pushes
      to this channel. A ``*`` at its end matches anything: ``"orders:*"``, or ``"*"`` for every
      push. Without `op` and `channel`, every message of the broker is affected.
    - `times`: after so many uses the fault ends by itself; None for never. ValueError if it is less
      than 1.

    A method raises LookupError if the sandbox doesn't have the account (IndexError for a position).
    All times are seconds of Trio's clock.

    Args:
        server: The sandbox's server.
        api_key: Finds an account's API key, None for all.
    """

    def __init__(self, server: Server, api_key: Callable[[int | str | None], str | None]) -> None:
        self._server = server
        self._disturbances = server.disturbances
        self._api_key = api_key

    def clear(self) -> None:
        """Lift every fault that lasts. A killed server stays killed."""
        self._disturbances.clear()

    # ---- New connections

    def refuse_connections(
        self,
        status: int | None = 503,
        headers: Mapping[str, str] = _NO_HEADERS,
        *,
        times: int | None = None,
    ) -> Fault:
        """Refuse the WebSocket handshake.

        Args:
            status: The HTTP status of the answer; None to reset the connection instead, as soon
                as it is there.
            headers: Headers of the answer: ``{"Retry-After": "5"}``.
            times: How many connections it refuses.

        Raises:
            ValueError: The status or a header can't be in an HTTP response.
        """
        greeting = Greeting("reset" if status is None else _response(status, headers))
        return self._disturbances.add(greeting, times)

    def stall_handshakes(self, *, times: int | None = None) -> Fault:
        """Accept new connections, but never reply to their handshakes.

        Connections that it has stalled stay stalled after it is lifted.

        Args:
            times: How many connections it stalls.
        """
        return self._disturbances.add(Greeting("silence"), times)

    # ---- Requests

    def ignore(
        self,
        *,
        op: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Lose requests: they are neither handled nor answered.

        `Connection.received` still has them. To execute requests and lose the replies, use
        `swallow`.

        Args:
            op: Only requests with this operation; None for whatever a client sends.
            account: Only of this account.
            times: How many it loses.

        Raises:
            LookupError: There is no such account.
        """
        selector = Selector(op, None, self._api_key(account))
        return self._disturbances.add(Interception(selector), times)

    def refuse_auth(
        self,
        error: str = INVALID_SIGNATURE,
        *,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Refuse authentication, even with a valid signature.

        Args:
            error: The error in the reply.
            account: Only with this account's API key.
            times: How often it refuses.

        Raises:
            LookupError: There is no such account.
        """
        selector = Selector("auth", None, self._api_key(account))
        return self._disturbances.add(Interception(selector, error), times)

    def refuse_channel(
        self,
        channel: str,
        error: str = INVALID_CHANNEL,
        *,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Refuse to subscribe to a channel. Existing subscriptions stay.

        Args:
            channel: The channel; a ``*`` at its end stands for anything.
            error: The error in the reply.
            account: Only to this account.
            times: How often it refuses.

        Raises:
            LookupError: There is no such account.
        """
        selector = Selector("subscribe", channel, self._api_key(account))
        return self._disturbances.add(Interception(selector, error), times)

    # ---- Replies and pushes

    def swallow(
        self,
        *,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Lose replies or pushes: requests are executed, but the client gets no reply.

        Args:
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it loses.

        Raises:
            LookupError: There is no such account.
        """
        return self._alter(lambda _late, _text: [], op, channel, account, times)

    def stop_pushing(self, *, account: int | str | None = None) -> Fault:
        """Lose every push; pings and requests are answered.

        Args:
            account: Only to this account.

        Raises:
            LookupError: There is no such account.
        """
        return self.swallow(channel="*", account=account)

    def delay(
        self,
        seconds: float,
        *,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Send replies or pushes later. Other messages aren't delayed, so they may overtake them.

        Messages that are delayed when it is lifted are still sent at their time.

        Args:
            seconds: How much later.
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it delays.

        Raises:
            LookupError: There is no such account.
            ValueError: `seconds` is negative.
        """
        _check_seconds(seconds)
        return self._alter(lambda late, text: [(late + seconds, text)], op, channel, account, times)

    def delay_auth(
        self, seconds: float, *, account: int | str | None = None, times: int | None = None
    ) -> Fault:
        """Delay the reply to an authentication. The broker authenticates the client at once.

        Args:
            seconds: How much later.
            account: Only to this account.
            times: How many answers it delays.

        Raises:
            LookupError: There is no such account.
            ValueError: `seconds` is negative.
        """
        return self.delay(seconds, op="auth", account=account, times=times)

    def duplicate(
        self,
        *,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Send replies or pushes twice, one right after the other.

        Args:
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it doubles.

        Raises:
            LookupError: There is no such account.
        """
        return self._alter(
            lambda late, text: [(late, text), (late, text)], op, channel, account, times
        )

    def replace(
        self,
        message: str | Mapping[str, object],
        *,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Send something else in place of replies or pushes.

        Args:
            message: Any text, or a mapping that is sent as a JSON object.
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it replaces.

        Raises:
            LookupError: There is no such account.
            TypeError: The mapping can't be encoded as JSON.
        """
        new = message if isinstance(message, str) else msgspec.json.encode(dict(message)).decode()
        return self._alter(lambda late, _text: [(late, new)], op, channel, account, times)

    # ---- The flow of bytes

    def stall_reading(self, *, account: int | str | None = None) -> Fault:
        """Stop reading the existing sockets, like a server that hangs.

        The clients' messages are read when it is lifted. Later connections are read; to block
        those, use `stall_handshakes`.

        Args:
            account: Only of this account.

        Raises:
            LookupError: There is no such account.
        """
        return self._stall(account, reading=True)

    def stall_writing(self, *, account: int | str | None = None) -> Fault:
        """Stop writing to the existing sockets: no message, no pong, no close.

        Everything is sent when it is lifted. A client with more than `Rules.outbox_size` waiting
        messages is dropped as usual. Later connections aren't affected.

        Args:
            account: Only of this account.

        Raises:
            LookupError: There is no such account.
        """
        return self._stall(account, writing=True)

    def go_silent(self, *, account: int | str | None = None) -> Fault:
        """Neither read nor write on the existing sockets, as if a cable was pulled.

        Later connections aren't affected.

        Args:
            account: Only of this account.

        Raises:
            LookupError: There is no such account.
        """
        return self._stall(account, reading=True, writing=True)

    def drip(self, delay: float = 0.0, *, account: int | str | None = None) -> Fault:
        """Send everything in single bytes, handshakes and new connections included.

        The server's own deadlines don't apply to the delays that it causes.

        Args:
            delay: Between two bytes.
            account: Only to this account, so no handshakes.

        Raises:
            LookupError: There is no such account.
            ValueError: `delay` is negative.
        """
        _check_seconds(delay)
        return self._disturbances.add(Drip(delay, self._api_key(account)))

    # ---- At once

    def reset(self, account: int | str | None = None, *, mid_frame: bool = False) -> int:
        """Reset connections (TCP's RST).

        Args:
            account: Only of this account.
            mid_frame: First send what waits, and then half a text frame.

        Returns:
            How many.

        Raises:
            LookupError: There is no such account.
        """
        if mid_frame:
            whole = _frame(_TEXT, print_message(ch="balances", data=[]).encode())
            return self._post(Raw(whole[: len(whole) // 2], resets=True), account)
        links = self._links(account)
        for link in links:
            link.reset()
        return len(links)

    def hang_up(self, account: int | str | None = None) -> int:
        """End connections without a close frame (TCP's FIN), after the waiting messages are sent.

        Args:
            account: Only of this account.

        Returns:
            How many.

        Raises:
            LookupError: There is no such account.
        """
        return self._post(Raw(b"", ends=True), account)

    def close(self, code: int, reason: str = "", account: int | str | None = None) -> int:
        """Send a close frame and end connections, after the waiting messages are sent.

        Args:
            code: Any close code, including those that must not be sent.
            reason: The reason, of at most 123 bytes.
            account: Only of this account.

        Returns:
            How many.

        Raises:
            LookupError: There is no such account.
            ValueError: Code or reason don't fit into a close frame.
        """
        payload = reason.encode()
        if not 0 <= code <= 0xFFFF or len(payload) > _LONGEST_REASON:
            raise ValueError("a close frame has a code of 16 bits and a reason of up to 123 bytes")
        return self._post(
            Raw(_frame(_CLOSE, struct.pack("!H", code) + payload), ends=True), account
        )

    def send_text(self, text: str, account: int | str | None = None) -> int:
        """Send a text message.

        Args:
            text: The text.
            account: Only to this account.

        Returns:
            The number of connections.

        Raises:
            LookupError: There is no such account.
        """
        return self._post(Raw(_frame(_TEXT, text.encode())), account)

    def send_binary(self, data: bytes, account: int | str | None = None) -> int:
        """Send a binary message.

        Args:
            data: What it holds.
            account: Only to this account.

        Returns:
            The number of connections.

        Raises:
            LookupError: There is no such account.
        """
        return self._post(Raw(_frame(_BINARY, data)), account)

    def send_fragments(
        self, text: str, fragments: int = 3, account: int | str | None = None
    ) -> int:
        """Send a text message in fragments of about the same size, cut between any two bytes.

        Args:
            text: The text.
            fragments: How many; some are empty if the text is shorter.
            account: Only to this account.

        Returns:
            The number of connections.

        Raises:
            LookupError: There is no such account.
            ValueError: `fragments` is less than 1.
        """
        if fragments < 1:
            raise ValueError(f"a message has at least 1 fragment, not {fragments!r}")
        payload = text.encode()
        cuts = [len(payload) * number // fragments for number in range(fragments + 1)]
        frames = [
            _frame(
                _TEXT if number == 0 else _CONTINUATION,
                payload[cuts[number] : cuts[number + 1]],
                fin=number == fragments - 1,
            )
            for number in range(fragments)
        ]
        return self._post(Raw(b"".join(frames)), account)

    def send_pings(self, count: int = 1, account: int | str | None = None) -> int:
        """Send pings, without a pause between them. Their payloads are their numbers, from 1.

        Args:
            count: How many.
            account: Only to this account.

        Returns:
            The number of connections.

        Raises:
            LookupError: There is no such account.
        """
        pings = b"".join(_frame(_PING, b"%d" % number) for number in range(1, count + 1))
        return self._post(Raw(pings), account)

    def send_raw(self, data: bytes, account: int | str | None = None) -> int:
        """Send bytes that needn't be a frame, between two frames.

        Args:
            data: The bytes.
            account: Only to this account.

        Returns:
            The number of connections.

        Raises:
            LookupError: There is no such account.
        """
        return self._post(Raw(data), account)

    # ---- The whole server

    @property
    def is_killed(self) -> bool:
        """Whether the server is killed, and not yet revived."""
        return self._server.is_killed

    def kill(self) -> None:
        """Stop listening and reset every connection, as when the broker's process is killed.

        Accounts and orders survive, and orders continue. Lasting faults stay.

        Raises:
            RuntimeError: It is killed already.
        """
        if self.is_killed:
            raise RuntimeError("the sandbox is killed already")
        self._server.kill()

    async def revive(self) -> None:
        """Listen again, at the same address and port. Returns once clients can connect.

        Raises:
            RuntimeError: It isn't killed.
        """
        await trio.lowlevel.checkpoint()
        if not self.is_killed:
            raise RuntimeError("the sandbox isn't killed")
        await self._server.revive()

    def _alter(
        self,
        alter: Callable[[float, str], list[Later]],
        op: str | None,
        channel: str | None,
        account: int | str | None,
        times: int | None,
    ) -> Fault:
        selector = Selector(op, channel, self._api_key(account))
        return self._disturbances.add(Alteration(selector, alter), times)

    def _stall(
        self, account: int | str | None, *, reading: bool = False, writing: bool = False
    ) -> Fault:
        streams = frozenset(link.stream for link in self._links(account))
        return self._disturbances.add(Stall(streams, reading, writing))

    def _links(self, account: int | str | None) -> list[Link]:
        return self._server.links(self._api_key(account))

    def _post(self, item: Raw, account: int | str | None) -> int:
        return self._server.post(item, self._api_key(account))


def _check_seconds(seconds: float) -> None:
    if not seconds >= 0:
        raise ValueError(f"a time must be 0 seconds or more, not {seconds!r}")


def _response(status: int, headers: Mapping[str, str]) -> bytes:
    if not 200 <= status <= 999:
        raise ValueError(f"an HTTP answer has a status from 200 to 999, not {status!r}")
    reason = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Refused"
    lines = [f"HTTP/1.1 {status} {reason}"]
    for name, value in {**headers, "Content-Length": "0", "Connection": "close"}.items():
        line = f"{name}: {value}"
        if not (line.isascii() and line.isprintable()):
            raise ValueError(f"an HTTP header is printable ASCII, not {line!r}")
        lines.append(line)
    return "\r\n".join([*lines, "", ""]).encode()


def _frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A WebSocket frame as a server sends it (RFC 6455, section 5.2)."""
    first, size = fin << 7 | opcode, len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload
