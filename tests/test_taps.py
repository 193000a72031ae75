"""Taps: what happens goes to whoever listens at the time."""

from __future__ import annotations

import pytest
import trio

from trio_broker.taps import BUFFER_SIZE, Taps


def test_everybody_who_listens_gets_every_item_from_then_on() -> None:
    taps: Taps[int] = Taps("numbers")
    taps.put(1)
    early = taps.open()
    taps.put(2)
    late = taps.open()
    taps.put(3)
    assert [early.receive_nowait(), early.receive_nowait()] == [2, 3]
    assert late.receive_nowait() == 3
    with pytest.raises(trio.WouldBlock):
        late.receive_nowait()


def test_it_is_true_while_somebody_listens() -> None:
    taps: Taps[int] = Taps("numbers")
    assert not taps
    with taps.open() as first:
        second = first.clone()
        assert taps
    assert taps
    second.close()
    assert not taps


def test_a_slow_listener_loses_the_oldest_and_holds_nobody_up() -> None:
    taps: Taps[int] = Taps("numbers")
    slow, quick = taps.open(), taps.open()
    received = []
    for number in range(BUFFER_SIZE + 3):
        taps.put(number)
        received.append(quick.receive_nowait())
    assert received == list(range(BUFFER_SIZE + 3))
    assert (slow.dropped, quick.dropped) == (3, 0)
    assert slow.receive_nowait() == 3


async def test_the_end_comes_after_what_is_buffered() -> None:
    taps: Taps[int] = Taps("numbers")
    channel = taps.open()
    taps.put(1)
    taps.end()
    taps.put(2)
    assert [item async for item in channel] == [1]
    assert not taps


async def test_opened_after_the_end_it_is_at_its_end() -> None:
    taps: Taps[int] = Taps("numbers")
    taps.end()
    assert [item async for item in taps.open()] == []
    assert not taps


def test_it_says_what_it_holds() -> None:
    taps: Taps[int] = Taps("numbers")
    assert "numbers" in repr(taps.open())
