"""The command that counts the frames of the library that a message passes, and what it counts."""

from __future__ import annotations

import logging
from typing import Final, get_args

import pytest

from benchmarks.journeys import main, measure
from trio_broker.settings import TransportName

# In the order in which they are measured: a push, one of a burst, a read, a swap, a recovery. A
# smaller number is written down when it is reached; a larger one wants a reason.
MOST_FRAMES: Final[dict[TransportName, tuple[float, ...]]] = {
    "trio-websocket": (19, 14, 82, 131, 600),
    "websockets": (18, 7, 76, 126, 520),
}
# When bytes arrive in other pieces, a journey has some more. One of so many is undisturbed.
TRIES: Final = 10


@pytest.mark.parametrize("transport", get_args(TransportName))
async def test_no_journey_has_more_frames_than_recorded(
    transport: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A record that is written has frames of its own.
    monkeypatch.setattr(logging.getLogger("trio_broker"), "level", logging.ERROR)
    fewest = [float("inf")] * len(MOST_FRAMES[transport])
    for _ in range(TRIES):
        journeys = await measure(transport)
        fewest = [min(*pair) for pair in zip(fewest, (one.frames for one in journeys), strict=True)]
        if all(map(float.__le__, fewest, map(float, MOST_FRAMES[transport]))):
            return
    names = [one.name for one in journeys]
    assert dict(zip(names, fewest, strict=True)) == dict(
        zip(names, MOST_FRAMES[transport], strict=True)
    ), "more frames than recorded"


def test_journeys_are_printed_with_their_places(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["journeys", "--transport", "websockets", "--places"])
    main()
    printed = capsys.readouterr().out
    assert "over websockets:" in printed
    assert "one swap with its receipt:" in printed
    assert "client.py:" in printed
    assert "trio-websocket" not in printed
