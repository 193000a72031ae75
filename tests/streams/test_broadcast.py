"""Broadcast: each item goes to all open channels."""

from __future__ import annotations

import pytest
import trio

from trio_broker._streams.broadcast import BUFFER_SIZE, Broadcast
from trio_broker._streams.buffer import Buffer
from trio_broker._streams.subscription import BoundedReceiveChannel


def test_each_channel_gets_every_item_from_its_opening_on() -> None:
    broadcast: Broadcast[int] = Broadcast("numbers")
    broadcast.put(1)
    early = broadcast.open()
    broadcast.put(2)
    late = broadcast.open()
    broadcast.put(3)
    assert [early.receive_nowait(), early.receive_nowait()] == [2, 3]
    assert late.receive_nowait() == 3
    with pytest.raises(trio.WouldBlock):
        late.receive_nowait()


def test_each_open_channel_has_a_buffer() -> None:
    broadcast: Broadcast[int] = Broadcast("numbers")
    assert not broadcast.buffers
    with broadcast.open() as first:
        second = first.clone()
        assert broadcast.buffers
    assert broadcast.buffers
    second.close()
    assert not broadcast.buffers


def test_slow_channel_loses_its_oldest_and_delays_no_other() -> None:
    broadcast: Broadcast[int] = Broadcast("numbers")
    slow, quick = broadcast.open(), broadcast.open()
    received = []
    for number in range(BUFFER_SIZE + 3):
        broadcast.put(number)
        received.append(quick.receive_nowait())
    assert received == list(range(BUFFER_SIZE + 3))
    assert (slow.dropped, quick.dropped) == (3, 0)
    assert slow.receive_nowait() == 3


async def test_end_comes_after_the_buffer() -> None:
    broadcast: Broadcast[int] = Broadcast("numbers")
    channel = broadcast.open()
    broadcast.put(1)
    broadcast.end()
    broadcast.put(2)
    assert [item async for item in channel] == [1]
    assert not broadcast.buffers


async def test_channel_opened_after_the_end_is_at_its_end() -> None:
    broadcast: Broadcast[int] = Broadcast("numbers")
    broadcast.end()
    assert [item async for item in broadcast.open()] == []
    assert not broadcast.buffers


def test_repr_of_a_channel_names_its_items() -> None:
    broadcast: Broadcast[int] = Broadcast("numbers")
    assert "numbers" in repr(broadcast.open())


def test_item_put_into_an_ended_buffer_is_ignored() -> None:
    buffer: Buffer[str] = Buffer("events", 2)
    channel = BoundedReceiveChannel(buffer)
    buffer.end()
    buffer.put("too late")
    with pytest.raises(trio.EndOfChannel):
        channel.receive_nowait()
