"""The sockets of the sandbox's REST side: HTTP/1.1, with h11.

A client can affect only its own connection. Whatever it sends, the answer is a reply or the end of
its connection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import h11
import trio

from trio_broker.sandbox.disturbance import Disturbances, reset
from trio_broker.sandbox.events import RestAsked, SandboxEvent
from trio_broker.sandbox.exchange import logger
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.refusals import shortened
from trio_broker.sandbox.rest import RestBroker, RestReply, RestRequest
from trio_broker.sandbox.rules import Rules

# Small, because h11 checks the size of a head only between two reads.
_READ_SIZE: Final = 4096
_LARGEST_HEAD: Final = 16 * 1024  # bytes
_WRITE_SIZE: Final = 64 * 1024

_CLIENT_ERRORS: Final = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    OSError,
)


class RestServer:
    """Serves the REST side.

    Args:
        rest: Answers the requests.
        rules: The sandbox's settings.
        disturbances: The faults in force.
        now: Tells the time.
        report: Called with an event for each request.
    """

    def __init__(
        self,
        rest: RestBroker,
        rules: Rules,
        disturbances: Disturbances,
        now: Callable[[], Moment],
        report: Callable[[SandboxEvent], object],
    ) -> None:
        self.rest = rest
        self.rules = rules
        self.disturbances = disturbances
        self.now = now
        self.report = report

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve a client until either side ends the connection. It raises no error.

        Trio always closes the socket after it.
        """
        try:
            await _Conversation(self, stream).run()
        except _CLIENT_ERRORS as error:
            logger.debug("a REST client went wrong: %r", error)
        except Exception:  # noqa: BLE001 - it is logged, and a client must not end the sandbox
            logger.exception("serving a REST client failed: this is a mistake in the sandbox")


class _Conversation:
    """One connection: requests and replies in turn."""

    def __init__(self, server: RestServer, stream: trio.SocketStream) -> None:
        self._server = server
        self._rules = server.rules
        self._stream = stream
        self._peer: str = stream.socket.getpeername()[0]
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD)

    async def run(self) -> None:
        """Answer requests, as long as the connection can be used for another."""
        while await self._answer_one():
            self._http.start_next_cycle()
        await self._linger()

    async def _answer_one(self) -> bool:
        """Answer a request: whether another may follow."""
        try:
            with trio.fail_after(self._rules.idle_timeout):
                request = await self._receive()
        except h11.RemoteProtocolError as error:
            reply = self._server.rest.refuse(
                "INVALID_REQUEST",
                "This isn't a valid HTTP request",
                error.error_status_hint,
                {"Connection": "close"},
            )
            return await self._send(reply)
        if request is None:
            return False
        server = self._server
        reply = server.rest.answer(request, server.now())
        reply = server.disturbances.altered_reply(request.path, reply)
        status = None if reply.ends else reply.status
        method, path = shortened(request.method), shortened(request.path)
        server.report(RestAsked(method=method, path=path, status=status))
        await trio.sleep(reply.after)
        if reply.ends is None:
            return await self._send(reply, with_body=request.method != "HEAD")
        if reply.ends == "reset":
            reset(self._stream)
            raise trio.ClosedResourceError("a fault ends the connection")
        while await self._stream.receive_some(_READ_SIZE):  # silence
            pass
        return False

    async def _receive(self) -> RestRequest | None:
        """The next request; None if the client has closed its end."""
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._write(self._http.send(go_on))
                self._http.receive_data(await self._stream.receive_some(_READ_SIZE))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._rules.max_message_size:
                    raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return RestRequest(
                    head.method.decode(),
                    head.target.decode("latin-1"),
                    {name.decode(): value.decode("latin-1") for name, value in head.headers},
                    bytes(body),
                    self._peer,
                )
            else:
                return None

    async def _send(self, reply: RestReply, *, with_body: bool = True) -> bool:
        """Send a reply: whether another request may follow."""
        http = self._http
        headers = {
            "content-type": "application/json",
            "cache-control": "no-store",
            "content-length": str(len(reply.body) + reply.padding),
            **{name.lower(): value for name, value in reply.headers.items()},
        }
        # After an error of the protocol h11 says by itself that the connection is closed.
        response = h11.Response(status_code=reply.status, headers=list(headers.items()))
        await self._write(http.send(response))
        if with_body:
            await self._write(http.send(h11.Data(data=reply.body)))
            missing = reply.padding
            while missing:
                size = min(missing, _WRITE_SIZE)
                await self._write(http.send(h11.Data(data=b" " * size)))
                missing -= size
        await self._write(http.send(h11.EndOfMessage()))
        return http.our_state is h11.DONE and http.their_state is h11.DONE

    async def _write(self, data: bytes | None) -> None:
        with trio.fail_after(self._rules.write_timeout):
            await self._stream.send_all(data or b"")

    async def _linger(self) -> None:
        # Closing a socket with unread data resets the connection, and the client may never see
        # the reply. So the rest is read and thrown away.
        gone = contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError)
        with trio.move_on_after(self._rules.close_timeout), gone:
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_SIZE):
                pass
