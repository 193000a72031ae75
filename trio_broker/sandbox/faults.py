"""Faults on demand: what a test asks of a sandbox so that its broker misbehaves.

>>> with sandbox.faults.stop_pushing():
...     ...  # whoever waits for a push had better ask.
>>> sandbox.faults.swallow(op="swap", times=1)
>>> sandbox.faults.reset(mid_frame=True)

Three kinds of methods. Some ask for a fault that lasts: they give a `Fault`, which ends when it is
lifted, when its ``with`` block is left, or after it has struck `times` times. Some do something
once, to the connections whose handshake is done by now: they give the number of these. And
`kill` ends the server, until `revive`.

Faults that last disturb what the broker itself says and hears. What a test sends, with
`Sandbox.push` or from here, is never swallowed, delayed or changed. Several faults on one message
act in the order in which they were asked for, each on what the one before has left.

All of it acts at the broker's end of a real socket: the client has to find out by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

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

    Wherever a method has them, these parameters mean the same:

    - `account`: only connections of this account: its position in `Sandbox.accounts`, or its API
      key; None for all. A connection is an account's from its authentication on.
    - `op`: only requests with this operation, and replies to them: ``"swap"``.
    - `channel`: with `op`, only where the channel is this one. Without `op`, only pushes to this
      channel. A ``*`` at its end stands for anything: ``"orders:*"``, or ``"*"`` for every push.
      With neither of the two, it is about everything that the broker says.
    - `times`: after so many strikes the fault ends by itself; None for never. ValueError if it is
      less than 1.

    Where something is said to raise LookupError, the sandbox doesn't have the account
    (IndexError for a position). All times are seconds of Trio's clock.

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
        return self._disturbances.last(greeting, times)

    def stall_handshakes(self, *, times: int | None = None) -> Fault:
        """Accept new connections and say nothing, with no end.

        Whoever is caught by it stays so when it is lifted.

        Args:
            times: How many connections it catches.
        """
        return self._disturbances.last(Greeting("silence"), times)

    # ---- Requests

    def ignore(
        self,
        *,
        op: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Lose requests: nobody handles them, and nobody answers.

        `Connection.received` has them all the same. To execute them and lose the answer, `swallow`.

        Args:
            op: Only requests with this operation; None for whatever a client sends.
            account: Only of this account.
            times: How many it loses.

        Raises:
            LookupError: There is no such account.
        """
        selector = Selector(op, None, self._api_key(account))
        return self._disturbances.last(Interception(selector), times)

    def refuse_auth(
        self,
        error: str = INVALID_SIGNATURE,
        *,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Refuse authentication, whoever asks for it with whatever signature.

        Args:
            error: What the client is told.
            account: Only with this account's API key.
            times: How often it refuses.

        Raises:
            LookupError: There is no such account.
        """
        selector = Selector("auth", None, self._api_key(account))
        return self._disturbances.last(Interception(selector, error), times)

    def refuse_channel(
        self,
        channel: str,
        error: str = INVALID_CHANNEL,
        *,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Refuse to subscribe to a channel. What is subscribed stays so.

        Args:
            channel: The channel; a ``*`` at its end stands for anything.
            error: What the client is told.
            account: Only to this account.
            times: How often it refuses.

        Raises:
            LookupError: There is no such account.
        """
        selector = Selector("subscribe", channel, self._api_key(account))
        return self._disturbances.last(Interception(selector, error), times)

    # ---- Replies and pushes

    def swallow(
        self,
        *,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Lose replies or pushes: what a request asks for is done, but the client isn't told.

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
        """Send replies or pushes later. All the others go at once, and so overtake them.

        Those that are held back when it is lifted still come at their time.

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
        """Answer authentication later. The broker takes the client for authenticated at once.

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
            message: Any text, or what is to be printed as a JSON object.
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it replaces.

        Raises:
            LookupError: There is no such account.
            TypeError: The object can't be printed.
        """
        new = message if isinstance(message, str) else msgspec.json.encode(dict(message)).decode()
        return self._alter(lambda late, _text: [(late, new)], op, channel, account, times)

    # ---- The flow of bytes

    def stall_reading(self, *, account: int | str | None = None) -> Fault:
        """Stop reading the sockets that there are now, as a server that hangs.

        What clients send is read when it is lifted. Connections that come later are read; to
        hold those up, `stall_handshakes`.

        Args:
            account: Only of this account.

        Raises:
            LookupError: There is no such account.
        """
        return self._stall(account, reading=True)

    def stall_writing(self, *, account: int | str | None = None) -> Fault:
        """Stop writing to the sockets that there are now: no message, no pong, no close.

        It all goes out when it is lifted. A client for which more than `Rules.outbox_size`
        messages wait is dropped as ever. Connections that come later are written to.

        Args:
            account: Only of this account.

        Raises:
            LookupError: There is no such account.
        """
        return self._stall(account, writing=True)

    def go_silent(self, *, account: int | str | None = None) -> Fault:
        """Neither read nor write, on the sockets that there are now: as when a cable is pulled.

        Connections that come later work.

        Args:
            account: Only of this account.

        Raises:
            LookupError: There is no such account.
        """
        return self._stall(account, reading=True, writing=True)

    def drip(self, delay: float = 0.0, *, account: int | str | None = None) -> Fault:
        """Send everything in single bytes, handshakes and new connections included.

        No deadline of the server's counts for what it makes slow.

        Args:
            delay: Between two bytes.
            account: Only to this account, so no handshakes.

        Raises:
            LookupError: There is no such account.
            ValueError: `delay` is negative.
        """
        _check_seconds(delay)
        return self._disturbances.last(Drip(delay, self._api_key(account)))

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
        """End connections without a close frame (TCP's FIN), once what waits is sent.

        Args:
            account: Only of this account.

        Returns:
            How many.

        Raises:
            LookupError: There is no such account.
        """
        return self._post(Raw(b"", ends=True), account)

    def close(self, code: int, reason: str = "", account: int | str | None = None) -> int:
        """Send a close frame and end connections, once what waits is sent.

        Args:
            code: The close code: any, those that may never be sent included.
            reason: The reason, of at most 123 bytes.
            account: Only of this account.

        Returns:
            How many.

        Raises:
            LookupError: There is no such account.
            ValueError: Code or reason don't fit into a close frame.
        """
        told = reason.encode()
        if not 0 <= code <= 0xFFFF or len(told) > _LONGEST_REASON:
            raise ValueError("a close frame has a code of 16 bits and a reason of up to 123 bytes")
        return self._post(Raw(_frame(_CLOSE, struct.pack("!H", code) + told), ends=True), account)

    def send_text(self, text: str, account: int | str | None = None) -> int:
        """Send a text message.

        Args:
            text: The text.
            account: Only to this account.

        Returns:
            To how many connections it goes.

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
            To how many connections it goes.

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
            To how many connections it goes.

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
            To how many connections they go.

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
            To how many connections they go.

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

        Accounts and orders survive, and orders go on living. Faults that last stay.

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
        return self._disturbances.last(Alteration(selector, alter), times)

    def _stall(
        self, account: int | str | None, *, reading: bool = False, writing: bool = False
    ) -> Fault:
        streams = frozenset(link.stream for link in self._links(account))
        return self._disturbances.last(Stall(streams, reading, writing))

    def _links(self, account: int | str | None) -> list[Link]:
        return self._server.links(self._api_key(account))

    def _post(self, item: Raw, account: int | str | None) -> int:
        links = self._links(account)
        for link in links:
            link.post(item)
        return len(links)


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
