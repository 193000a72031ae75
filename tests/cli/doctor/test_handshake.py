"""The doctor's WebSocket handshake."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from email.utils import format_datetime

import pytest
import trio
from trio.testing import MockClock

from tests.cli.doctor.harness import (
    all_ok,
    answering,
    exit_status,
    failing,
    in_front_of,
    results,
    run_doctor,
    text_of,
)
from tests.transports.raw_server import (
    Handler,
    PeerGoneError,
    receive_request,
    reset,
    send,
    serve_raw,
    switching_protocols,
)
from trio_broker.sandbox import open_sandbox


async def reset_after_the_request(stream: trio.abc.Stream) -> None:
    await receive_request(stream)
    await reset(stream)


async def hang_up_after_the_request(stream: trio.abc.Stream) -> None:
    await receive_request(stream)


@pytest.mark.parametrize(
    ("handler", "texts"),
    [
        (answering(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\n\r\n"),
         ("refused with HTTP status 503, Retry-After: 7", "has a problem: try again later")),
        (answering(b"HTTP/1.1 403 No\r\n\r\n"), ("HTTP status 403", "allows connections from")),
        (answering(b"HTTP/1.1 404 No\r\n\r\n"), ("HTTP status 404", "path of the URL")),
        (answering(b"HTTP/1.1 418 No\r\n\r\n"), ("HTTP status 418", "check the URL")),
        (answering(b"HTTP/1.1 302 No\r\nLocation: https://x.example/y?token=z\r\n\r\n"),
         ("redirected to https://x.example/y (HTTP status 302)", "set it as the URL")),
        (answering(switching_protocols(b"Sec-WebSocket-Key: other\r\n")),
         ("Sec-WebSocket-Accept is wrong", "a proxy")),
        (answering(b"220 mail.example ESMTP\r\n"),
         ("doesn't speak HTTP/1.1 (its data begins with b'220 mai')", "check the port")),
        (answering(b"HTTP/1.1 what?\r\n\r\n"), ("doesn't speak HTTP/1.1 (", "check the port")),
        (hang_up_after_the_request, ("closed by the peer before it responded", "try again later")),
        (reset_after_the_request, ("the connection failed (", "reset", "try again later")),
    ],
    ids=["503", "403", "404", "418", "redirect", "wrong key", "no HTTP", "bad HTTP", "hang-up",
         "reset"],
)  # fmt: skip
async def test_failed_handshake_is_described(
    handler: Handler, texts: tuple[str, ...], autojump_clock: MockClock
) -> None:
    async with serve_raw(handler) as port:
        found = await run_doctor(f"ws://127.0.0.1:{port}?token=z")
    assert results(found) == failing("handshake", tls="skipped")
    for text in texts:
        assert text in text_of(found, "handshake")
    assert "token" not in text_of(found, "handshake")
    assert text_of(found, "clock") == "skipped: no response contained the broker's time; None"
    assert exit_status(found) == 4


async def test_handshake_without_a_response_fails(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.stall_handshakes():
            found = await run_doctor(sandbox.url, limit=2)
    assert results(found) == failing("handshake", tls="skipped")
    assert "not finished within 2 s; the broker, or a proxy in front of it, is slow" in text_of(
        found, "handshake"
    )
    assert exit_status(found) == 4


async def test_slow_handshake_is_slow(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, in_front_of(sandbox, delay=1.5) as url:
        found = await run_doctor(url)
    assert results(found) == all_ok(handshake="slow")
    assert exit_status(found) == 0


async def test_request_is_a_websocket_handshake_and_closes_cleanly(
    autojump_clock: MockClock,
) -> None:
    requests: list[bytes] = []
    close_frames: list[bytes] = []

    async def handler(stream: trio.abc.Stream) -> None:
        requests.append(await receive_request(stream))
        # An informational response may come first.
        hint = b"HTTP/1.1 103 Early Hints\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
        await send(stream, hint + switching_protocols(requests[0]))
        with suppress(PeerGoneError):
            while data := await stream.receive_some():
                close_frames.append(bytes(data))

    async with serve_raw(handler) as port:
        found = await run_doctor(f"ws://127.0.0.1:{port}/a?b=c", limit=0.5)
    lines = requests[0].split(b"\r\n")
    assert lines[0] == b"GET /a?b=c HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}".encode() in lines
    assert close_frames[0] == b"\x88\x80\0\0\0\0"
    assert found["handshake"].finding.result == "ok"


@pytest.mark.parametrize("date", ["yesterday", "Thu, 01 Jan 99999999 00:00:00 GMT"])
async def test_invalid_date_header_is_ignored(date: str, autojump_clock: MockClock) -> None:
    answer = f"HTTP/1.1 503 No\r\nDate: {date}\r\n\r\n".encode()
    async with serve_raw(answering(answer)) as port:
        found = await run_doctor(f"ws://127.0.0.1:{port}")
    assert "no response contained the broker's time" in text_of(found, "clock")


async def test_date_header_of_a_refusal_is_used(autojump_clock: MockClock) -> None:
    date = format_datetime(dt.datetime.now(dt.UTC), usegmt=True)
    answer = f"HTTP/1.1 503 No\r\nDate: {date}\r\n\r\n".encode()
    async with serve_raw(answering(answer)) as port:
        found = await run_doctor(f"ws://127.0.0.1:{port}")
    assert results(found) == failing("handshake", tls="skipped", clock="ok")
