"""A split stream gives what websockets' protocol alone gives, wherever reads are cut."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterable

import attrs
import pytest
from hypothesis import example, given, strategies as st
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import WebSocketURI

from tests.transports.raw_server import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
)
from trio_broker.transports.frame_splitter import FrameSplitter

URI = WebSocketURI(secure=False, host="broker", port=80, path="/", query="")
LIMIT = 1000


@attrs.frozen
class Outcome:
    """All that can be observed of the receiving side."""

    messages: list[str | bytes]
    pongs: list[bytes]
    answers: list[bytes]
    ending: object
    where_it_was_cut: str


def client(max_size: int, *, is_closing: bool) -> ClientProtocol:
    protocol = ClientProtocol(URI, state=OPEN, max_size=max_size)
    if is_closing:
        protocol.send_close(1000)
    return protocol


def unmasked(answers: Iterable[bytes]) -> list[bytes]:
    """Frames without their random masks. None is longer than a control frame."""
    return [
        answer[:2] + bytes(byte ^ answer[2 + place % 4] for place, byte in enumerate(answer[6:]))
        for answer in answers
    ]


def outcome(
    protocol: ClientProtocol, messages: list[str | bytes], pongs: list[bytes], *, is_not_utf8: bool
) -> Outcome:
    answers = unmasked(protocol.data_to_send())
    error = protocol.parser_exc
    ending = (protocol.state, protocol.close_rcvd, protocol.close_sent, repr(error), is_not_utf8)
    # The error for the end of the stream tells how many bytes of a frame the parser has.
    protocol.receive_eof()
    return Outcome(messages, pongs, answers, ending, repr(protocol.parser_exc))


def by_splitter(
    reads: Iterable[bytes], max_size: int = LIMIT, *, is_closing: bool = False
) -> Outcome:
    protocol = client(max_size, is_closing=is_closing)
    splitter = FrameSplitter(protocol, max_size)
    for read in reads:
        rest = read[splitter.split(read) :]
        while rest:
            rest = splitter.receive(rest)
    return outcome(protocol, splitter.messages, splitter.pongs, is_not_utf8=splitter.is_not_utf8)


def by_protocol(stream: bytes, max_size: int = LIMIT, *, is_closing: bool = False) -> Outcome:
    """The same without a splitter. The parser gets single bytes, so frames come one at a time."""
    protocol = client(max_size, is_closing=is_closing)
    messages: list[str | bytes] = []
    pongs: list[bytes] = []
    fragments: list[Frame] = []
    is_not_utf8 = False
    for place in range(len(stream)):
        protocol.receive_data(stream[place : place + 1])
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.PONG:
                pongs.append(bytes(event.data))
            elif event.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                fragments.append(event)
                if event.fin:
                    payload = b"".join(bytes(one.data) for one in fragments)
                    try:
                        is_text = fragments[0].opcode is Opcode.TEXT
                        messages.append(payload.decode() if is_text else payload)
                    except UnicodeDecodeError as error:
                        why = f"can't decode UTF-8: {error.reason}"
                        protocol.fail(CloseCode.INVALID_DATA, why)
                        is_not_utf8 = True
                    fragments.clear()
    return outcome(protocol, messages, pongs, is_not_utf8=is_not_utf8)


def raw(first: int, length: int, payload: bytes = b"", *, bits: int = 7) -> bytes:
    """A frame with any first byte, and a length of 7, 16 or 64 bits, which may be wrong."""
    head = {7: struct.pack("!B", length & 0xFF), 16: struct.pack("!BH", 126, length & 0xFFFF)}
    return bytes([first]) + head.get(bits, struct.pack("!BQ", 127, length)) + payload


# What Hypothesis makes streams of.

texts = st.text(max_size=40)
long_texts = st.sampled_from([125, 126, 127, 300, LIMIT - 1, LIMIT, LIMIT + 1]).map("x".__mul__)
payloads = st.binary(max_size=40)
plain_texts = (texts | long_texts | st.sampled_from(["é" * 63, "€" * 400])).map(frame)
controls = st.builds(frame, payloads, st.sampled_from([PING, PONG]))
fragments = st.builds(
    frame, texts | payloads, st.sampled_from([TEXT, BINARY, CONTINUATION]), fin=st.booleans()
)


@st.composite
def fragmented_messages(draw: st.DrawFn) -> bytes:
    """A valid message in parts, perhaps cut within a character, with control frames between."""
    payload = draw(texts.map(str.encode) | payloads)
    first = draw(st.sampled_from([TEXT, BINARY]))
    place = draw(st.integers(0, len(payload)))
    between = draw(st.just(b"") | controls)
    return frame(payload[:place], first, fin=False) + between + frame(payload[place:], CONTINUATION)


@st.composite
def other_lengths(draw: st.DrawFn) -> bytes:
    """A valid frame whose length takes more bytes than it needs."""
    payload = draw(texts).encode()
    opcode = draw(st.sampled_from([TEXT, BINARY, PING]))
    return raw(0x80 | opcode, len(payload), payload, bits=draw(st.sampled_from([16, 64])))


closes = st.builds(
    close_frame, st.sampled_from([1000, 1001, 1005, 3999, 65535]), st.sampled_from(["", "why"])
)
invalid = st.one_of(
    st.builds(frame, texts, st.sampled_from([TEXT, PING]), mask=st.just(True)),  # a mask
    st.builds(raw, st.integers(0, 255), st.just(4), st.just(b"four")),  # reserved bits and opcodes
    st.sampled_from([b"\xff", b"ok\xc3", b"\xed\xa0\x80"]).map(frame),  # no UTF-8
    st.builds(raw, st.just(0x81), st.integers(LIMIT, 1 << 64 - 1), bits=st.just(64)),
    st.builds(frame, st.just(b"\3"), st.just(CLOSE)),
    st.builds(frame, st.binary(min_size=126, max_size=130), st.just(PING)),
    st.binary(max_size=12),
)
usual = plain_texts | controls | fragmented_messages() | other_lengths()
anything = usual | fragments | closes | invalid
streams = st.builds(
    bytes.__add__, st.lists(usual, max_size=6).map(b"".join), st.lists(anything).map(b"".join)
)


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    ordered = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(ordered)]


def one_by_one(stream: bytes) -> list[bytes]:
    return [stream[place : place + 1] for place in range(len(stream))]


@given(streams, st.lists(st.integers(0, 5000), max_size=8), st.booleans())
def test_any_stream_cut_anywhere_gives_what_the_protocol_gives(
    stream: bytes, places: list[int], is_closing: bool
) -> None:
    expected = by_protocol(stream, is_closing=is_closing)
    assert by_splitter(cut(stream, places), is_closing=is_closing) == expected
    assert by_splitter(one_by_one(stream), is_closing=is_closing) == expected


@given(st.lists(st.sampled_from([*range(0x80, 0x8B), 0, 1, 2, 3, 125, 126, 127, 255, 0xC3])))
@example([0x81, 127, *[0] * 7, 3, 1, 2, 3, 0x81, 1, 2])
def test_any_bytes_give_what_the_protocol_gives(numbers: list[int]) -> None:
    stream = bytes(numbers)
    expected = by_protocol(stream)
    assert by_splitter([stream]) == expected
    assert by_splitter(one_by_one(stream)) == expected


def is_over(stream: bytes, code: int, messages: list[str | bytes] | None = None) -> None:
    """Check that a stream, read at once or cut at each place, has this end."""
    expected = by_protocol(stream)
    assert expected.messages == (messages or [])
    (answer,) = expected.answers
    assert int.from_bytes(answer[2:4], "big") == code
    for place in range(len(stream) + 1):
        assert by_splitter([stream[:place], stream[place:]]) == expected


# The rules, one by one.


def passed_on(*reads: bytes, max_size: int = LIMIT) -> bytes:
    """The bytes that the protocol gets."""
    got = bytearray()

    class Recording(ClientProtocol):
        def receive_data(self, data: bytes | bytearray) -> None:
            got.extend(data)
            super().receive_data(data)

    splitter = FrameSplitter(Recording(URI, state=OPEN, max_size=max_size), max_size)
    for read in reads:
        assert splitter.receive(read) == b""
    return bytes(got)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535])
def test_whole_texts_bypass_the_protocol(size: int) -> None:
    assert passed_on(frame("x" * size) * 3, max_size=1 << 20) == b""
    assert by_splitter([frame("x" * size) * 3], 1 << 20).messages == ["x" * size] * 3


@pytest.mark.parametrize(
    "other",
    [
        frame("binary", BINARY),
        frame("ping", PING),
        frame("pong", PONG),
        frame("half", fin=False) + frame("in between", PING) + frame("and half", CONTINUATION),
        frame("x" * 65_536),
        raw(0x81, 4, b"four", bits=64),
    ],
)
def test_protocol_gets_other_frames_and_no_byte_more(other: bytes) -> None:
    usual = frame("usual")
    assert passed_on(usual + other + usual, max_size=1 << 20) == other
    for place in range(1, min(len(other), 20)):
        read = usual + other[:place], other[place:] + usual
        assert passed_on(*read, max_size=1 << 20) == other


def test_protocol_gets_a_text_that_is_cut() -> None:
    usual = frame("x" * 200)
    for place in range(1, len(usual)):
        assert passed_on(usual + usual[:place], usual[place:] + usual) == usual


@pytest.mark.parametrize(
    "other",
    [
        frame(frame("trap") * 3, BINARY),
        frame(b"\x81\0" + frame(b"\x81\0" * 2, PONG) * 2, BINARY),
        raw(0x82, 0x8100, b"\x81\0" * 0x4080, bits=16),  # its length looks like a text
    ],
)
def test_frame_that_looks_like_texts_inside_stays_whole(other: bytes) -> None:
    stream = frame("usual") + other + frame("usual")
    payload = other[4:] if len(other) > 125 else other[2:]
    for place in range(min(len(stream), 40)):
        found = by_splitter([stream[:place], stream[place:]], 1 << 20).messages
        assert found == ["usual", payload, "usual"]


def test_text_within_a_fragmented_message_is_an_error() -> None:
    is_over(frame("a", fin=False) + frame("b") + frame("c", CONTINUATION), 1002)
    is_over(frame("a", BINARY, fin=False) + frame("b"), 1002)


def test_text_after_a_fragmented_message_is_split_off() -> None:
    stream = frame("a", fin=False) + frame("b", CONTINUATION) + frame("c")
    assert by_splitter([stream]).messages == ["ab", "c"]
    assert passed_on(stream) == stream[: -len(frame("c"))]


def test_control_frame_does_not_end_a_fragmented_message() -> None:
    is_over(frame("a", fin=False) + frame("", PONG) + frame("b"), 1002)


def test_text_of_the_largest_size_is_a_message_and_a_larger_one_an_error() -> None:
    assert passed_on(frame("x" * LIMIT)) == b""
    assert by_splitter([frame("x" * LIMIT)]).messages == ["x" * LIMIT]
    is_over(frame("ok") + frame("x" * (LIMIT + 1)) + frame("no"), 1009, ["ok"])


def test_too_large_frame_is_an_error_before_its_payload_arrives() -> None:
    is_over(raw(0x81, 1 << 62, bits=64), 1009)
    is_over(raw(0x81, LIMIT + 1, bits=16), 1009)


def test_fragments_count_together() -> None:
    half = "x" * (LIMIT // 2 + 1)
    is_over(frame(half, fin=False) + frame(half, CONTINUATION), 1009)


@pytest.mark.parametrize("payload", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_text_that_is_not_utf8_is_an_error_and_nothing_follows(payload: bytes) -> None:
    after = frame("no") + frame("", PING) + frame("", BINARY) + close_frame(1000)
    is_over(frame("ok") + frame(payload) + after, 1007, ["ok"])
    is_over(frame(payload, fin=False) + frame("", CONTINUATION) + after, 1007)


def test_character_may_be_cut_by_fragments_and_reads() -> None:
    stream = frame(b"\xe2\x82", fin=False) + frame(b"\xac", CONTINUATION) + frame("€")
    for place in range(len(stream)):
        assert by_splitter([stream[:place], stream[place:]]).messages == ["€", "€"]


def test_nothing_counts_after_a_close_frame() -> None:
    is_over(frame("ok") + close_frame(1001) + frame("no") + frame("", PONG), 1001, ["ok"])
    assert by_splitter([close_frame(1001), frame("no"), b"\xff"]).messages == []


@pytest.mark.parametrize("first", [0xC1, 0xA1, 0x91, 0x83, 0x8B, 0x09])
def test_reserved_bits_and_opcodes_are_errors(first: int) -> None:
    is_over(frame("ok") + raw(first, 2, b"no") + frame("no"), 1002, ["ok"])


@pytest.mark.parametrize("text", ["no", "x" * 200])
def test_masked_text_is_an_error(text: str) -> None:
    is_over(frame("ok") + frame(text, mask=True) + frame("no"), 1002, ["ok"])


def test_texts_that_arrive_after_our_close_frame_are_messages() -> None:
    assert by_splitter([frame("late")], is_closing=True).messages == ["late"]


def test_many_frames_for_the_protocol_take_several_calls() -> None:
    protocol = client(LIMIT, is_closing=False)
    splitter = FrameSplitter(protocol, LIMIT)
    rest, calls = frame("", PONG) * 1200 + frame("last"), 0
    while rest:
        assert splitter.messages == []
        rest, calls = splitter.receive(rest), calls + 1
    assert calls == 3
    assert (splitter.messages, len(splitter.pongs)) == (["last"], 1200)


def test_many_texts_take_several_calls_and_bypass_the_protocol() -> None:
    texts = [str(number) for number in range(1200)]
    protocol = client(LIMIT, is_closing=False)
    splitter = FrameSplitter(protocol, LIMIT)
    rest, counts = b"".join(map(frame, texts)), []
    while rest:
        rest = splitter.receive(rest)
        counts.append(len(splitter.messages))
    assert counts == [500, 1000, 1200]
    assert splitter.messages == texts
    assert splitter.split(frame("one") + frame("two") + frame("", PING) + frame("no")) == 10


@pytest.mark.parametrize("size", [60_000, 8_000_000])
def test_frame_in_many_reads_takes_linear_time(size: int) -> None:
    stream = frame("x" * size)
    step = size // 60_000
    reads = [stream[place : place + step] for place in range(0, len(stream), step)]
    began = time.process_time()
    assert by_splitter(reads, 1 << 23).messages == ["x" * size]
    # A copy of all that has arrived with each of the 60,000 reads would take minutes.
    assert time.process_time() - began < 5
