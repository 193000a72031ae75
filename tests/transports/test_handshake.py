"""Responses to the WebSocket handshake: both transports handle them alike."""

from __future__ import annotations

import sys
import time
import traceback
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from typing import Final, get_args
from urllib.parse import quote_plus

import pytest
import trio

from tests.transports.raw_server import (
    Handler,
    frame,
    receive_request,
    send,
    serve_raw,
    switching_protocols,
    wait_gone,
)
from tests.transports.test_both import PATIENCE, failure_to_open, opening, take
from trio_broker._redactor import Redactor
from trio_broker._secret import Secret
from trio_broker.exceptions import ConnectFailedError
from trio_broker.settings import TransportName
from trio_broker.transports.handshake import AnswerError, HandshakeAnswer, seconds_to_wait

Answer = Callable[[bytes], bytes]


@pytest.fixture(autouse=True, params=get_args(TransportName))
def each_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tests.transports.test_both"], "library", request.param)


def with_lines(*lines: bytes) -> Answer:
    """A valid response with further header lines."""
    extra = b"".join(line + b"\r\n" for line in lines)
    return lambda valid: valid[:-2] + extra + b"\r\n"


def replacing(old: bytes, new: bytes) -> Answer:
    def answer(valid: bytes) -> bytes:
        assert old in valid
        return valid.replace(old, new)

    return answer


def after(interim: bytes) -> Answer:
    return lambda valid: interim + valid


STATUS_LINE: Final = b"HTTP/1.1 101 Switching Protocols\r\n"

TAKEN: Final[dict[str, Answer]] = {
    "as it should be": lambda valid: valid,
    "no reason phrase": replacing(b" Switching Protocols", b" "),
    "no reason phrase and no space": replacing(b" Switching Protocols", b""),
    "another reason phrase": replacing(b"Switching Protocols", b"Web Socket \xff Handshake"),
    "HTTP/1.2": replacing(b"HTTP/1.1", b"HTTP/1.2"),
    "12 KB of headers": with_lines(*(b"X-%d: %s" % (n, b"y" * 100) for n in range(120))),
    "a header of 12 KB": with_lines(b"X-Long: " + b"y" * 12_000),
    "60 KB of headers": with_lines(*(b"X-%d: %s" % (n, b"y" * 1000) for n in range(60))),
    "200 headers": with_lines(*(b"X-%d: y" % n for n in range(200))),
    "100 before": after(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 before, without a reason": after(b"HTTP/1.1 100\r\n\r\n"),
    "103 before": after(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"),
    "100, 102 and 103 before": after(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n"
    ),
    "lower-case names": lambda valid: (
        STATUS_LINE
        + valid[len(STATUS_LINE) :]
        .replace(b"Upgrade:", b"upgrade:")
        .replace(b"Connection:", b"connection:")
        .replace(b"Sec-WebSocket-A", b"sec-websocket-a")
    ),
    "upper-case values": replacing(b"Upgrade: websocket", b"Upgrade: WebSocket"),
    "a list in Connection": replacing(b"Connection: Upgrade", b"Connection: keep-alive, Upgrade"),
    "two lines of Connection": replacing(
        b"Connection: Upgrade", b"Connection: keep-alive\r\nConnection: upgrade"
    ),
    "no space after colons": lambda valid: valid.replace(b": ", b":"),
    "tabs around values": replacing(b"Connection: Upgrade", b"Connection:\t Upgrade \t"),
    "several Set-Cookie": with_lines(b"Set-Cookie: a=1", b"Set-Cookie: b=2; Path=/, c"),
    "a folded header": with_lines(b"X-Folded: one", b" two", b"\tthree"),
    "a folded Upgrade": replacing(b"Upgrade: websocket", b"Upgrade:\r\n websocket"),
    "bytes that aren't ASCII": with_lines(b"Server: caf\xe9 \xe2\x9c\x93"),
    "an empty header": with_lines(b"X-Empty:"),
    "empty extensions": with_lines(b"Sec-WebSocket-Extensions: "),
    "a Content-Length": with_lines(b"Content-Length: 5"),
    "a Transfer-Encoding": with_lines(b"Transfer-Encoding: chunked"),
    "a Date and a Server": with_lines(b"Date: Sun, 29 Nov 2026 22:00:00 GMT", b"Server: nginx"),
    "bare line feeds": lambda valid: valid.replace(b"\r\n", b"\n"),
}

WRONG: Final[dict[str, tuple[Answer, str]]] = {
    "HTTP/1.0": (replacing(b"HTTP/1.1", b"HTTP/1.0"), "HTTP/1.0"),
    "an extension": (
        with_lines(b"Sec-WebSocket-Extensions: permessage-deflate"),
        "an extension that was not asked for",
    ),
    "a folded extension": (
        with_lines(b"Sec-WebSocket-Extensions:", b" x-own; a=b"),
        "an extension that was not asked for",
    ),
    "a subprotocol": (
        with_lines(b"sec-websocket-protocol: chat"),
        "a subprotocol that was not asked for",
    ),
    "no Upgrade": (
        replacing(b"Upgrade: websocket\r\n", b""),
        "a missing or wrong Upgrade header",
    ),
    "another Upgrade": (replacing(b"websocket\r\n", b"h2c\r\n"), "wrong Upgrade header"),
    "two Upgrades": (replacing(b"websocket\r\n", b"websocket, h2c\r\n"), "wrong Upgrade header"),
    "no Connection": (
        replacing(b"Connection: Upgrade\r\n", b""),
        "a missing or wrong Connection header",
    ),
    "another Connection": (
        replacing(b"Connection: Upgrade", b"Connection: keep-alive"),
        "wrong Connection header",
    ),
    "no Accept": (
        lambda valid: valid[: valid.index(b"Sec-WebSocket-Accept")] + b"\r\n",
        "missing or wrong Sec-WebSocket-Accept",
    ),
    "a wrong Accept": (
        lambda valid: valid[: valid.index(b"Accept: ") + 8] + b"d3Jvbmc=\r\n\r\n",
        "wrong Sec-WebSocket-Accept",
    ),
    "two Accepts": (
        with_lines(b"Sec-WebSocket-Accept: d3Jvbmc="),
        "wrong Sec-WebSocket-Accept",
    ),
    "no colon": (with_lines(b"X-Nonsense"), "a line that isn't a header"),
    "a space before the colon": (with_lines(b"X-Space : y"), "a line that isn't a header"),
    "a NUL": (with_lines(b"X-Nul: a\0b"), "a line that isn't a header"),
    "a carriage return": (with_lines(b"X-Return: a\rb"), "a line that isn't a header"),
    "no name": (with_lines(b": y"), "a line that isn't a header"),
    "a space before the first header": (
        replacing(b"Protocols\r\n", b"Protocols\r\n X-First: y\r\n"),
        "a line that isn't a header",
    ),
    "no status": (replacing(b"HTTP/1.1 101", b"HTTP/1.1"), "isn't a status line"),
    "a status of four digits": (replacing(b"101", b"1010"), "isn't a status line"),
    "two spaces": (replacing(b"HTTP/1.1 ", b"HTTP/1.1  "), "isn't a status line"),
    "nonsense after 100": (
        lambda _: b"HTTP/1.1 100 Continue\r\n\r\nnonsense\r\n\r\n",
        "something other than HTTP/1.1",
    ),
    "70 KB of headers": (with_lines(*[b"X-Many: " + b"y" * 1000] * 70), "65536 bytes"),
    "a header without an end": (lambda _: STATUS_LINE + b"X: " + b"y" * 70_000, "65536 bytes"),
    "interim answers without an end": (
        lambda _: b"HTTP/1.1 100 Continue\r\n\r\n" * 3000 + b"HTTP/1.1 10",
        "65536 bytes",
    ),
}


def answering(answer: Answer, *, and_send: bytes = b"") -> Handler:
    async def handler(stream: trio.abc.Stream) -> None:
        valid = switching_protocols(await receive_request(stream))
        text = answer(valid)
        await send(stream, text + and_send)
        await wait_gone(stream)

    return handler


@pytest.mark.parametrize("answer", TAKEN.values(), ids=TAKEN)
async def test_valid_handshake_response_is_accepted(answer: Answer) -> None:
    greeting = frame("hello") + frame("again")
    async with serve_raw(answering(answer, and_send=greeting)) as port, opening(port) as transport:
        assert await take(transport, 2) == ["hello", "again"]


@pytest.mark.parametrize(("answer", "why"), WRONG.values(), ids=WRONG)
async def test_error_names_the_fault_of_a_handshake_response(answer: Answer, why: str) -> None:
    error = await failure_to_open(answering(answer))
    assert why in str(error)
    assert "unpack" not in str(error)
    assert error.status is None


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_refusal_after_interim_answers_has_its_status(version: bytes) -> None:
    refusal = version + b" 503 Later\r\nRetry-After: 7\r\n\r\n"
    error = await failure_to_open(
        answering(lambda _: b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n" + refusal)
    )
    assert (error.status, error.retry_after) == (503, 7.0)


async def test_refusal_with_an_invalid_header_has_its_status() -> None:
    error = await failure_to_open(answering(lambda _: b"HTTP/1.1 403 No\r\nnonsense\r\n\r\n"))
    assert error.status == 403


async def test_handshake_response_in_single_bytes_is_accepted() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        valid = switching_protocols(await receive_request(stream))
        for byte in b"HTTP/1.1 100\r\n\r\n" + valid + frame("hello"):
            await send(stream, bytes([byte]))
        await wait_gone(stream)

    async with serve_raw(handler) as port, opening(port, connect_timeout=PATIENCE) as transport:
        assert await take(transport, 1) == ["hello"]


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (["30"], 30.0),
        (["30.0"], 30.0),
        (["1.939"], 1.939),
        (["5."], 5.0),
        (["0"], 0.0),
        (["30, 60"], 60.0),
        (["60", "30"], 60.0),
        (["soon, 30"], 30.0),
        (["30", "Sun, 06 Nov 1994 08:49:37 GMT"], 30.0),
        (["31536000"], 3600.0),
        (["3601"], 3600.0),
        (["Fri, 31 Dec 2100 23:59:59 GMT"], 3600.0),
        (["Friday, 31-Dec-99 23:59:59 GMT"], 0.0),
        (["Sun, 06 Nov 1994 08:49:37 GMT"], 0.0),
        ([], None),
        ([""], None),
        ([",,"], None),
        (["-5"], None),
        (["+5"], None),
        (["nan"], None),
        (["inf"], None),
        (["1e3"], None),
        (["0x10"], None),
        (["1_000"], None),
        (["1.2.3"], None),
        (["\u0663\u0660"], None),
        (["9" * 10], 3600.0),
        (["9" * 5000], 3600.0),
        (["9" * 1_000_000], 3600.0),
        (["9" * 1_000_000 + ".5"], 3600.0),
        (["0" * 1_000_000 + "30"], 30.0),
        (["30." + "0" * 1_000_000], 30.0),
        (["9" * 1_000_000 + "x"], None),
        (["18446744073709551616"], 3600.0),
        (["30", "10000000000"], 3600.0),
        (["5"] * 1_000_000, 5.0),
        (["," * 1_000_000], None),
        (["30 s"], None),
        (["12:30"], None),
        (["Sun, 06 Nov 99999 08:49:37 GMT"], None),
        (["Sun, 99 Nov 2026 99:49:37 GMT"], None),
    ],
)
def test_retry_after_is_parsed_in_every_format(values: list[str], seconds: float | None) -> None:
    assert seconds_to_wait(values) == seconds


BLANKS: Final = b" \t" * 800
MANY_BLANKS: Final = b" \t" * 20_000
VALID_KEY: Final = "x3JJHMbDL1EzLkh9GBhXDw=="
VALID: Final = switching_protocols(
    b"GET / HTTP/1.1\r\nSec-WebSocket-Key: " + VALID_KEY.encode() + b"\r\n\r\n"
)


@pytest.mark.parametrize(
    "answer",
    [
        with_lines(b"X:" + BLANKS + b"\0"),
        with_lines(b"X:" + BLANKS + b"\ra"),
        with_lines(b"X: a" + MANY_BLANKS + b"b"),
        with_lines(b"X: " + b"a " * 30_000 + b"\0"),
        with_lines(b"X" * 60_000),
        with_lines(*[b" "] * 20_000),
        with_lines(*[b"X:"] * 16_000),
        lambda _: b"HTTP/1.1 302 " + MANY_BLANKS + b"\0\r\nLocation:" + BLANKS + b"\0\r\n\r\n",
        lambda _: b"HTTP/1.1 302 Found\r\nLocation: " + b"? " * 30_000 + b"\r\n\r\n",
        lambda _: b"HTTP/1.1 1" + MANY_BLANKS + b"\r\n\r\n",
        lambda _: b"HTTP/1.1 429 \r\nRetry-After: " + b"9" * 60_000 + b"x\r\n\r\n",
        lambda _: b"HTTP/1.1 429 \r\nRetry-After: " + b"a," * 30_000 + b"\r\n\r\n",
        lambda _: b"HTTP/1.1 429 \r\n" + b"Retry-After: 1 Nov\r\n" * 3000 + b"\r\n",
    ],
)
def test_every_handshake_response_is_parsed_quickly(answer: Answer) -> None:
    head = answer(VALID)
    began = time.process_time()
    with suppress(AnswerError):
        HandshakeAnswer(VALID_KEY).feed(head)
    assert time.process_time() - began < 0.5


def test_retry_after_date_is_seconds_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    assert seconds_to_wait(["Fri, 15 Jan 2027 08:01:30 GMT"]) == 90.0
    assert seconds_to_wait(["Fri, 15 Jan 2027 10:01:30 +0200"]) == 90.0


async def test_repeated_retry_after_counts_for_an_hour_at_most() -> None:
    refusal = b"HTTP/1.1 429 Later\r\nRetry-After: 30\r\nretry-after: 31536000\r\n\r\n"
    error = await failure_to_open(answering(lambda _: refusal))
    assert (error.status, error.retry_after) == (429, 3600.0)


KEY: Final = "canary/Key?0123456789+abcdefghijklmnopqrstuvwxyzü😀=="

QUOTED: Final[dict[str, Callable[[bytes], bytes]]] = {
    "a redirect": lambda text: b"HTTP/1.1 302 Found\r\nLocation: " + text + b"\r\n\r\n",
    "a folded redirect": lambda text: b"HTTP/1.1 302\r\nLocation:\r\n\t" + text + b"\r\n\r\n",
    "a redirect that is cut": lambda text: b"HTTP/1.1 307 \r\nLocation: " + text + b"\r\nX: ",
    "no status line": lambda text: b"HTTP/1." + text + b"\r\n\r\n",
    "no status line after 100": lambda text: (
        b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 1" + text + b"\r\n\r\n"
    ),
}


@pytest.mark.parametrize("quote", [str, urllib.parse.quote, lambda key: quote_plus(key, safe="")])
@pytest.mark.parametrize("answer", QUOTED.values(), ids=QUOTED)
async def test_handshake_error_quotes_no_part_of_a_key(
    answer: Callable[[bytes], bytes], quote: Callable[[str], str]
) -> None:
    key = quote(KEY)
    answers = [
        answer(b"y" * (length - place) + key.encode() + b"z" * 20_000)
        for length in (80, 200)
        for place in range(0, len(key), 11)
    ]

    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await send(stream, answers[-1])

    redact = Redactor([Secret(KEY)]).text
    async with serve_raw(handler) as port:
        while answers:
            with pytest.raises(ConnectFailedError) as caught:
                async with opening(port, redact=redact):
                    pytest.fail("it opened")
            answers.pop()
            shown = "".join(traceback.format_exception(caught.value))
            assert "isn't" in shown
            assert len(shown) < 5000
            parts = [key[place : place + 6] for place in range(len(key) - 5)]
            assert not [part for part in parts if part in shown], shown
