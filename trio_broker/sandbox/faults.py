"""Faults that a test can inject into a sandbox.

>>> with sandbox.faults.stop_pushing():
...     ...  # the client gets no pushes here
>>> sandbox.faults.swallow(op="swap", times=1)
>>> sandbox.faults.reset(mid_frame=True)

There are three kinds of methods. Some start a lasting fault and return a `Fault`. It ends when it
is lifted, at the end of its ``with`` block, or after `times` uses. Some act once on the connections
whose handshake is done, and return their number. And `kill` stops the server until `revive`.
`start` starts one of the lasting faults by a name for what goes wrong; `Faults.named` has the
names.

Lasting faults affect only the broker's own messages. Messages that a test sends, with
`Sandbox.push` or from here, are never swallowed, delayed or changed. Several faults on one message
are applied in the order in which they were started, each to the result of the one before.

All faults act at the broker's end of a real socket, so the client has to detect them by itself.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import trio

from trio_broker.sandbox import changes
from trio_broker.sandbox.broker import Outgoing
from trio_broker.sandbox.changes import HandshakeKind
from trio_broker.sandbox.disturbance import (
    Alteration,
    ClockShift,
    Drip,
    Fault,
    Greeting,
    Handshake,
    Interception,
    Later,
    Raw,
    Selector,
    Stall,
)
from trio_broker.sandbox.messages import ErrorForm, print_error, print_message
from trio_broker.sandbox.named_faults import NAMED_FAULTS, NamedFault
from trio_broker.sandbox.refusals import INVALID_CHANNEL, INVALID_SIGNATURE
from trio_broker.sandbox.rest_faults import RestFaults
from trio_broker.sandbox.server import Server

if TYPE_CHECKING:
    from trio_broker.sandbox.server import Link

_CONTINUATION: Final = 0x0
_TEXT: Final = 0x1
_BINARY: Final = 0x2
_CLOSE: Final = 0x8
_PING: Final = 0x9
_LONGEST_REASON: Final = 123  # bytes: a control frame holds 125, two of them are the code

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_NO_MEMBERS: Final[Mapping[str, object]] = MappingProxyType({})

# A text; or an error object, which is sent as it is.
Error: TypeAlias = str | Mapping[str, object]


class Faults(RestFaults):
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
    - `every`: the fault affects one in so many of these messages: with 10 the tenth, the twentieth
      and so on. ValueError if it is less than 1.

    A method raises LookupError if the sandbox doesn't have the account (IndexError for a position).
    All times are seconds of Trio's clock. The methods with ``rest`` in their names affect the REST
    side; the others, but for `shift_clock`, `clear`, `kill` and `revive`, the WebSocket side.

    Args:
        server: The sandbox's server.
        api_key: Finds an account's API key, None for all.

    Attributes:
        named: The faults that `start` takes, by name.
    """

    named: Final[Mapping[str, NamedFault]] = NAMED_FAULTS

    def __init__(self, server: Server, api_key: Callable[[int | str | None], str | None]) -> None:
        super().__init__(server.disturbances)
        self._server = server
        self._api_key = api_key

    def clear(self) -> None:
        """Lift every fault that lasts. A killed server stays killed."""
        self._disturbances.clear()

    def start(self, name: str, **arguments: Any) -> Fault:
        """Start a named fault.

        Args:
            name: One of the names in `named`, such as ``"swap_error_late"``.
            arguments: Arguments of the fault's method instead of the table's, for example `times`
                or `account`.

        Raises:
            KeyError: There is no such name.
            TypeError: The fault's method doesn't have such an argument.
            ValueError: An argument is invalid.
            LookupError: There is no such account.
        """
        named = NAMED_FAULTS[name]
        fault: Fault = getattr(self, named.method)(**{**named.arguments, **arguments})
        return fault

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

    def alter_handshakes(self, how: HandshakeKind, *, times: int | None = None) -> Fault:
        """Respond to the WebSocket handshake in an unusual or a wrong way.

        Args:
            how: ``"no_reason"``: without a reason phrase. ``"http_1_0"``: as HTTP/1.0.
                ``"long_headers"``: with 12 KB of headers. ``"interim"``: with the responses 100
                and 103 before. ``"extension"`` and ``"subprotocol"``: with one that may not have
                been requested. ``"wrong_accept"``: with a wrong ``Sec-WebSocket-Accept``.
                ``"truncated"``: half of the response, and the end. ``"not_http"``: something else
                than HTTP, and the end.
            times: How many connections it affects.

        Raises:
            ValueError: There is no such way.
        """
        if how not in changes.HANDSHAKES:
            raise ValueError(f"how must be one of {', '.join(changes.HANDSHAKES)}, not {how!r}")
        handshake = Handshake(changes.HANDSHAKES[how], how in {"truncated", "not_http"})
        return self._disturbances.add(Greeting(handshake), times)

    # ---- Requests

    def ignore(
        self,
        *,
        op: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
        every: int = 1,
    ) -> Fault:
        """Lose requests: they are neither handled nor answered.

        `Connection.received` still has them. To execute requests and lose the replies, use
        `swallow`.

        Args:
            op: Only requests with this operation; None for whatever a client sends.
            account: Only of this account.
            times: How many it loses.
            every: Affect only one in so many of them.

        Raises:
            LookupError: There is no such account.
        """
        interception = Interception(self._selector(op, None, account), lambda _reply, _request: [])
        return self._disturbances.add(interception, times, every)

    def refuse(
        self,
        error: Error | Sequence[Error],
        *,
        executed: bool = False,
        after: float = 0.0,
        reply_after: float | None = None,
        members: Mapping[str, object] = _NO_MEMBERS,
        form: ErrorForm | None = None,
        echo: bool = False,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
        every: int = 1,
    ) -> Fault:
        """Answer requests with an error, whether they are executed or not.

        Args:
            error: The error: a text, or an object of any members; or several, which are used in
                turn.
            executed: Execute the request all the same, and lose its own reply.
            after: Send the error so much later.
            reply_after: Send the request's own reply too, so much later than without the fault.
            members: Further members of the message: ``{"data": {"orderId": "ord_1"}}``, or
                ``{"op": "error"}``.
            form: The form of the error; None for the sandbox's `error_form`.
            echo: Repeat the whole request in the error, with its key and signature. The error must
                be a text.
            op: Only requests with this operation; None for whatever a client sends.
            channel: Only those about this channel.
            account: Only of this account.
            times: How many it refuses.
            every: Affect only one in so many of them.

        Raises:
            LookupError: There is no such account.
            ValueError: There is no error; a time is negative; or there is a `reply_after`, but
                nothing is executed.
        """
        _check_seconds(after)
        if reply_after is not None:
            _check_seconds(reply_after)
            if not executed:
                raise ValueError("only an executed request has a reply: set executed=True")
        if not error:
            raise ValueError("there must be an error")
        errors = itertools.cycle([error] if isinstance(error, str | Mapping) else error)
        form = form or self._server.rules.error_form

        def answer(reply: Outgoing, request: str | bytes) -> list[tuple[float, str]]:
            content = next(errors)
            if echo:
                content = f"{content}: {request!s}"
            text = print_error(form, content, op=reply.op, ch=reply.channel, members=members)
            own = [] if reply_after is None else [(reply_after, reply.text)]
            return [(after, text), *own]

        interception = Interception(self._selector(op, channel, account), answer, executed)
        return self._disturbances.add(interception, times, every)

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
        return self.refuse(error, op="auth", account=account, times=times)

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
        return self.refuse(error, op="subscribe", channel=channel, account=account, times=times)

    # ---- Replies and pushes

    def swallow(
        self,
        *,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
        every: int = 1,
    ) -> Fault:
        """Lose replies or pushes: requests are executed, but the client gets no reply.

        Args:
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it loses.
            every: Affect only one in so many of them.

        Raises:
            LookupError: There is no such account.
        """
        return self._alter(
            lambda _late, _text: [], self._selector(op, channel, account), times, every
        )

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
        every: int = 1,
    ) -> Fault:
        """Send replies or pushes later. Other messages aren't delayed, so they may overtake them.

        Messages that are delayed when it is lifted are still sent at their time.

        Args:
            seconds: How much later.
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it delays.
            every: Affect only one in so many of them.

        Raises:
            LookupError: There is no such account.
            ValueError: `seconds` is negative.
        """
        _check_seconds(seconds)
        return self._alter(
            lambda late, text: [(late + seconds, text)],
            self._selector(op, channel, account),
            times,
            every,
        )

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
        after: float = 0.0,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Send replies or pushes twice.

        Args:
            after: Send the second so much later than the first.
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it doubles.

        Raises:
            LookupError: There is no such account.
            ValueError: `after` is negative.
        """
        _check_seconds(after)
        return self._alter(
            lambda late, text: [(late, text), (late + after, text)],
            self._selector(op, channel, account),
            times,
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
        return self._alter(
            lambda late, _text: [(late, new)], self._selector(op, channel, account), times
        )

    def change(
        self,
        members: Mapping[str, object] = _NO_MEMBERS,
        *,
        without: Sequence[str] = (),
        add: Mapping[str, object] = _NO_MEMBERS,
        asset: str | None = None,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Change members of replies or pushes, wherever they occur in a message.

        A message without any of these members is sent as it is.

        Args:
            members: New values by the names of members: any value that Python's `json` can print,
                so ``float("nan")`` too; or a function that makes it from the old value.
            without: The names of members that are left out.
            add: Members to add to the message's `data`.
            asset: Change only objects whose ``asset`` it is.
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many messages it changes.

        Raises:
            LookupError: There is no such account.
        """
        change = changes.MemberChange(members, frozenset(without), add, asset)
        return self._alter(
            lambda late, text: [(late, change.apply(text))],
            self._selector(op, channel, account),
            times,
        )

    def pad(
        self,
        size: int,
        *,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Make replies or pushes larger, with a further member.

        Args:
            size: How many bytes a message has at least.
            op: Only replies to this operation.
            channel: Only those about this channel.
            account: Only to this account.
            times: How many it makes larger.

        Raises:
            LookupError: There is no such account.
        """
        return self._alter(
            lambda late, text: [(late, changes.padded(text, size))],
            self._selector(op, channel, account),
            times,
        )

    def disconnect(
        self,
        *,
        reply: bool = False,
        op: str | None = None,
        channel: str | None = None,
        account: int | str | None = None,
        times: int | None = None,
    ) -> Fault:
        """Reset connections instead of sending replies or pushes. Requests are executed.

        Args:
            reply: Send the reply or push first, and end the connection without a reset.
            op: Only at replies to this operation.
            channel: Only at those about this channel.
            account: Only to this account.
            times: How often.

        Raises:
            LookupError: There is no such account.
        """

        def alter(late: float, text: str) -> list[Later]:
            if reply:
                return [(late, text), (late, Raw(b"", ends=True))]
            return [(late, Raw(b"", resets=True))]

        return self._alter(alter, self._selector(op, channel, account), times)

    # ---- The broker's clock and its sessions

    def shift_clock(self, seconds: float) -> Fault:
        """Shift the broker's wall clock, by which it checks and makes timestamps.

        Args:
            seconds: By how much it is ahead; negative if it is behind.
        """
        return self._disturbances.add(ClockShift(seconds))

    def end_sessions(
        self,
        error: Error = "Session expired",
        account: int | str | None = None,
        *,
        form: ErrorForm | None = None,
    ) -> int:
        """Forget authentications and subscriptions of open connections, and send an error.

        Args:
            error: The error, which no request asked for.
            account: Only of this account.
            form: The form of the error; None for the sandbox's `error_form`. With ``"named"``,
                its operation is ``auth``.

        Returns:
            The number of connections.

        Raises:
            LookupError: There is no such account.
        """
        form = form or self._server.rules.error_form
        text = print_error(form, error, op="auth", ch=None)
        return self._server.end_sessions(text, self._api_key(account))

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

    def _selector(self, op: str | None, channel: str | None, account: int | str | None) -> Selector:
        return Selector(op, channel, self._api_key(account))

    def _alter(
        self,
        alter: Callable[[float, str], list[Later]],
        selector: Selector,
        times: int | None,
        every: int = 1,
    ) -> Fault:
        return self._disturbances.add(Alteration(selector, alter), times, every)

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
