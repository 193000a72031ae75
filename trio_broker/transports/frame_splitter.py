"""Splits the usual text frames off what is read, in front of websockets' parser.

That parser takes several microseconds for a frame. Nearly all frames of a broker are alike: one
whole text, without mask and reserved bits, and with a length of at most 16 bits. `FrameSplitter`
finds these by their first two or four bytes, in a tenth of the time.

**Everything else goes to the protocol**, which decides what it means and answers it: control
frames, binary frames, fragments, what isn't allowed, texts that are too large or aren't UTF-8, text
frames in the middle of a fragmented message, and frames that the end of a read cuts. The protocol
gets all bytes of such a frame as they arrive, and no others. So it is between two frames whenever a
text bypasses it, and it never misses a text that matters to it.
"""

from __future__ import annotations

from typing import Final

from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode

# The first byte of a text frame that is no fragment and has no reserved bit.
_WHOLE_TEXT: Final = 0x81

# The second byte has the length, or says how many bytes the length takes. Masked: 128 and more.
_LENGTH_IN_2_BYTES: Final = 126
_LENGTH_IN_8_BYTES: Final = 127
_LONGEST_HEAD: Final = 10

# Other tasks must run in between: a read can hold thousands of empty texts, fragments or pongs.
_MOST_AT_ONCE: Final = 500


class FrameSplitter:
    """Makes messages of the bytes of an open WebSocket.

    Args:
        protocol: The state of the WebSocket. Its handshake is done.
        max_size: The largest message in bytes, as the protocol has it.

    Attributes:
        messages: What has arrived: str for text, bytes for binary messages. The caller takes them.
        pongs: The payloads of pongs that have arrived. The caller takes them.
        is_over: Whether a close frame or an error has ended the connection. What follows is
            ignored.
        is_not_utf8: Whether that was a text that isn't UTF-8.
    """

    def __init__(self, protocol: ClientProtocol, max_size: int) -> None:
        self.messages: list[str | bytes] = []
        self.pongs: list[bytes] = []
        self.is_over: bool = False
        self.is_not_utf8: bool = False
        self._protocol = protocol
        self._max_size = max_size
        # Of the frame that the end of a read has cut: its head if that is cut too, or how many
        # bytes are missing.
        self._cut_head = b""
        self._missing = 0
        self._is_fragmented = False
        self._fragments = bytearray()
        self._is_text = False

    def split(self, data: bytes, at: int = 0) -> int:
        """Take the usual frames with which what was read begins.

        Returns:
            Where the first other frame begins; `receive` takes what is left.
        """
        if self._missing or self._cut_head or self._is_fragmented or self.is_over:
            return at
        add, max_size, length = self.messages.append, self._max_size, len(data)
        try:
            for _ in range(_MOST_AT_ONCE):
                if data[at] != _WHOLE_TEXT:
                    break
                size, start = data[at + 1], at + 2
                if size >= _LENGTH_IN_2_BYTES:
                    if size > _LENGTH_IN_2_BYTES:
                        break
                    size, start = data[at + 2] << 8 | data[at + 3], at + 4
                end = start + size
                if end > length or size > max_size:
                    break
                add(str(data[start:end], "utf-8"))
                at = end
        except (IndexError, UnicodeDecodeError):  # The first is the end of the data.
            pass
        return at

    def receive(self, data: bytes) -> bytes:
        """Take what was read, and let the protocol take what is its own.

        Returns:
            The rest, for the next call, if all of it would take too long at once.
        """
        before = len(self.messages)
        at = self.split(data)
        for _ in range(_MOST_AT_ONCE):
            if at == len(data) or len(self.messages) - before >= _MOST_AT_ONCE:
                break
            at = self.split(data, self._pass_on(data, at))
            if self.is_over:
                return b""
        return data[at:]

    def _pass_on(self, data: bytes, at: int) -> int:
        """Give the protocol one frame, or what is there of it. Returns where that ends."""
        if self._missing:
            end = at + self._missing
        else:
            passed_on = len(self._cut_head)
            head = self._cut_head + data[at : at + _LONGEST_HEAD]
            size = _frame_size(head)
            self._cut_head = head if size is None else b""
            end = len(data) if size is None else at + size - passed_on
        self._missing = max(0, end - len(data))
        protocol = self._protocol
        protocol.receive_data(data[at:end])
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)  # noqa: S101 - the handshake is done
            self._take(frame)
        if protocol.close_rcvd is not None or protocol.parser_exc is not None:
            self.is_over = True
        return min(end, len(data))

    def _take(self, frame: Frame) -> None:
        """Take a frame that the protocol has accepted. It has answered pings and close frames."""
        if frame.opcode is Opcode.PONG:
            self.pongs.append(bytes(frame.data))
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
            self._fragments += frame.data
            self._is_fragmented = not frame.fin
            if frame.fin:
                self._take_payload()

    def _take_payload(self) -> None:
        payload, self._fragments = self._fragments, bytearray()
        try:
            self.messages.append(payload.decode() if self._is_text else bytes(payload))
        except UnicodeDecodeError as error:
            self._protocol.fail(CloseCode.INVALID_DATA, f"can't decode UTF-8: {error.reason}")
            self.is_over = self.is_not_utf8 = True


def _frame_size(head: bytes) -> int | None:
    """The size of a frame without a mask, its head included; None if the head is cut."""
    if len(head) < 2:
        return None
    size, start = head[1] & 0x7F, 2
    if size >= _LENGTH_IN_2_BYTES:
        start = 4 if size == _LENGTH_IN_2_BYTES else _LONGEST_HEAD
        size = int.from_bytes(head[2:start], "big")
    return start + size if len(head) >= start else None
