"""The house's order: who may import whom, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import _trio_broker_pytest
import trio_broker

ROOT: Final = Path(trio_broker.__file__).parent

# A module imports from the rows above its own only. A package is one room.
ROWS: Final = (
    ("exceptions", "lockfile", "erasing"),
    ("models",),
    ("signing",),
    ("settings",),
    ("wire",),
    ("request",),
    ("session",),
    ("pacing",),
    ("swaps", "operations"),
    ("journalfile",),
    ("journal",),
    ("transports",),
    ("subscription",),
    ("taps",),
    ("backoff", "heartbeat"),
    ("membership",),
    ("places", "snapshots"),
    ("channels", "blotter"),
    ("tracking",),
    ("connection",),
    ("supervisor",),
    ("swapping",),
    ("client",),
    ("aio",),
)
ROOM: Final = {name: number for number, row in enumerate(ROWS) for name in row}

# Users of the library, in its own house: they go in by the front door.
USERS: Final = {"sandbox", "cli"}
PUBLIC: Final = {"", "exceptions", "models", "settings", "signing", "lockfile", "erasing"}

NO_TRIO: Final = {
    "erasing",
    "lockfile",
    "models",
    "signing",
    "settings",
    "wire",
    "request",
    "session",
    "pacing",
    "backoff",
    "operations",
    "journalfile",
}


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    """The module or package of the house that a file belongs to, empty for the front door."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py").replace("__init__", "")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every import in a file, wherever it stands: the module, and the name out of it if any."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def rooms_entered(path: Path) -> Iterator[tuple[str, str]]:
    """The rooms of the house that a file imports from, and the name that it takes."""
    for module, name in imports(path):
        first, _, rest = module.partition(".")
        if first != "trio_broker":
            continue
        room = rest.partition(".")[0]
        if not room and (name in ROOM or name in USERS):
            room, name = name, ""  # noqa: PLW2901 - `from trio_broker import wire`
        yield room, name


def test_the_order_is_kept() -> None:
    wrong = []
    for path in sources():
        mine = room_of(path)
        if mine in USERS or not mine:
            continue
        assert mine in ROOM, f"{mine} has no row yet: give it one"
        for room, name in rooms_entered(path):
            # A transport's handshake tells the version, which is the front door's.
            if room == mine or (mine, room, name) == ("transports", "", ""):
                continue
            if not room or ROOM[room] >= ROOM[mine]:
                # swaps and operations share a row: what a swap is, and how it is asked for.
                if (mine, room) == ("operations", "swaps"):
                    continue
                wrong.append(f"{path.name} imports {room or 'the package'}")
    assert wrong == []


def test_the_row_of_two_has_no_circle() -> None:
    assert "operations" not in {room for room, _ in rooms_entered(ROOT / "swaps.py")}


def test_of_the_package_itself_a_transport_takes_the_version_alone() -> None:
    for path in (ROOT / "transports").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "trio_broker" or node.attr == "__version__"


@pytest.mark.parametrize("user", sorted(USERS))
def test_users_within_the_house_use_public_modules_and_names_alone(user: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {room}.{name}"
        for path in (ROOT / user).rglob("*.py")
        for room, name in rooms_entered(path)
        if room not in PUBLIC | USERS or (name.startswith("_") and name != "__version__")
    ]
    assert wrong == []


def test_the_pytest_plugin_stands_outside_and_comes_in_when_it_is_asked_to() -> None:
    path = Path(_trio_broker_pytest.__file__)
    assert {room for room, _ in rooms_entered(path)} == {"", "sandbox"}
    at_once = [
        alias.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(str(node.module))])
    ]
    assert at_once == ["__future__", "inspect", "typing", "pytest"]


@pytest.mark.parametrize("library", ["trio_websocket", "websockets", "wsproto"])
def test_only_transports_and_the_sandbox_know_a_websocket_library(library: str) -> None:
    rooms = {
        room_of(path)
        for path in sources()
        for module, _ in imports(path)
        if module.partition(".")[0] == library
    }
    assert rooms <= {"transports", "sandbox"}


def test_only_the_bridge_to_asyncio_knows_asyncio() -> None:
    rooms = {
        room_of(path)
        for path in sources()
        for module, _ in imports(path)
        if module.partition(".")[0] == "asyncio"
    }
    assert rooms == {"aio"}


def test_the_core_knows_neither_trio_nor_sockets() -> None:
    wrong = [
        f"{path.name} imports {module}"
        for path in sources()
        if room_of(path) in NO_TRIO
        for module, _ in imports(path)
        if module.partition(".")[0] in {"trio", "socket", "random"}
        # Whoever makes a `Backoff` brings the randomness: it names its type alone.
        and (path.name, module) != ("backoff.py", "random")
    ]
    assert wrong == []
