"""The command line's pictures: that they are whole, stable, and show nothing of this machine."""

from __future__ import annotations

import re
import socket
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import pytest

from tests.pictures import make_pictures

FOLDER = Path(make_pictures.FOLDER)
NAMES = [picture.name for picture in make_pictures.PICTURES]


def text_of(svg: str) -> str:
    """What a picture shows, its lines by their height."""
    lines: dict[float, str] = {}
    for height, text in re.findall(r'<text [^>]*y="([0-9.]+)"[^>]*>([^<]*)</text>', svg):
        lines[float(height)] = lines.get(float(height), "") + unescape(text).replace("\xa0", " ")
    return "\n".join(lines[height] for height in sorted(lines))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_each_has_its_file() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.svg")) == sorted(NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small_and_asks_for_nothing_from_elsewhere(name: str) -> None:
    path = FOLDER / f"{name}.svg"
    assert path.stat().st_size < 60_000
    svg = path.read_text(encoding="utf-8")
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own
    assert "@font-face" not in svg
    urls = re.findall(r"\w+://[^\"<&]+", svg.replace("http://www.w3.org/2000/svg", ""))
    assert [url for url in urls if not url.startswith("ws://127.0.0.1:")] == []  # what it shows
    for own in (str(Path.home()), str(FOLDER.parents[1]), socket.gethostname()):
        assert own not in svg
    assert text_of(svg).startswith(f"$ trio-broker {name}")


def test_the_same_command_makes_the_same_picture() -> None:
    picture = make_pictures.Picture("estimate", ["estimate", "2", "ETH", "USDT"])
    first, second = (
        make_pictures.svg(picture, make_pictures.printed(picture, free_port())) for _ in range(2)
    )
    assert first == second
    assert "2 ETH would bring " in text_of(first)
    # What is in the folder is what the command says today.
    assert text_of((FOLDER / "estimate.svg").read_text(encoding="utf-8")) == text_of(first)


def test_a_live_command_is_shown_as_it_was_seen_last() -> None:
    picture = make_pictures.Picture("sandbox", ["sandbox", "--quiet"], seconds=5.0)
    assert "BROKER_API_KEY=test_key_1" in make_pictures.printed(picture, free_port())


def test_a_command_that_fails_makes_no_picture() -> None:
    picture = make_pictures.Picture("wrong", ["estimate", "2", "ETH", "NOTHING"])
    with pytest.raises(RuntimeError, match=r"wrong: .*Unknown asset"):
        make_pictures.printed(picture, free_port())


def test_only_pictures_that_there_are_can_be_made() -> None:
    with pytest.raises(SystemExit, match="no picture nonsense"):
        make_pictures.main(["nonsense"])


# --- The terminal ----------------------------------------------------------------------------


def shown(*texts: str, width: int = 10, height: int = 4) -> list[str]:
    terminal = make_pictures.Terminal(width, height)
    for text in texts:
        terminal.feed(text)
    return ["".join(one for one, _ in row) for row in terminal.shown()]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a\r\nb\r\n", ["a", "b"]),
        ("abc\rX", ["Xbc"]),
        ("a\r\n\r\n\x1b[2Ab", ["b"]),
        ("a\r\n\x1b[1A\x1b[2Kb", ["b"]),
        ("abc\r\x1b[1C\x1b[Kd", ["ad"]),
        ("abc\x1b[2DX", ["aXc"]),
        ("a\x1b[2Bb", ["a", "", " b"]),
        ("abc\x1b[2GX", ["aXc"]),
        ("abc\x1b[1;2HX", ["aXc"]),
        ("a\r\nb\x1b[HX", ["X", "b"]),
        ("a\r\nb\r\nc\x1b[2;1H\x1b[J", ["a"]),
        ("a\r\nb\x1b[2J\x1b[Hc", ["c"]),
        ("0123456789ab", ["0123456789", "ab"]),
        ("a\x1b]8;;x\x07b\x1b[?25l\x07c", ["abc"]),
        ("a\x1b[?1049hlive\x1b[?1049lb", ["live"]),
        ("a\x1b[?1049lb", ["ab"]),
    ],
)
def test_the_terminal_obeys(text: str, rows: list[str]) -> None:
    assert shown(text) == rows


def test_the_terminal_keeps_what_has_scrolled_away() -> None:
    assert shown("".join(f"{n}\r\n" for n in range(9)), "\x1b[HX") == [
        *"012345", "X", *"78",
    ]  # fmt: skip


def test_colours_are_kept() -> None:
    terminal = make_pictures.Terminal()
    terminal.feed("\x1b[1;31mr\x1b[0mn\x1b[41m \x1b[0m")
    ((red, plain, ground),) = terminal.shown()
    assert red[1].bold
    assert red[1].color.number == 1
    assert plain == ("n", make_pictures.Style.null())
    assert ground[1].bgcolor.number == 1
