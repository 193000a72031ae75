"""The house's order: who may import whom, read from the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import _trio_broker_pytest
import trio_broker

ROOT: Final = Path(trio_broker.__file__).parent
PAGE: Final = Path(__file__).parents[2] / "docs" / "architecture.md"

# Users of the library, in its own house: they go in by the front door.
USERS: Final = {"sandbox", "cli"}


def table() -> list[tuple[str, set[str], bool]]:
    """The page's rooms, in their order: name, what it imports, whether it may import Trio."""
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \|([^|]*)\| (yes|no) \|$",
        PAGE.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    return [(name, set(re.findall(r"`(\w+)`", used)), trio == "yes") for name, used, trio in rows]


ROOMS: Final = {name: used for name, used, _ in table()}
NO_TRIO: Final = {name for name, _, has_trio in table() if not has_trio}
PUBLIC: Final = {"", *(name for name in ROOMS if not name.startswith("_"))} - {"client", "aio"}


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
        if not room and (name in ROOMS or name in USERS):
            room, name = name, ""  # noqa: PLW2901 - `from trio_broker import models`
        yield room, name


def test_the_page_lists_every_room_below_what_it_imports() -> None:
    names = [name for name, _, _ in table()]
    seen: set[str] = set()
    for name, used, _ in table():
        assert used <= seen, f"{name} stands above what it imports"
        seen.add(name)
    here = {room_of(path) for path in sources()} - USERS - {""}
    assert here == set(names)
    assert len(names) == len(set(names))


def test_each_room_imports_what_the_page_says() -> None:
    used: dict[str, set[str]] = {name: set() for name in ROOMS}
    for path in sources():
        mine = room_of(path)
        if mine not in USERS and mine:
            used[mine] |= {room for room, _ in rooms_entered(path)} - {mine}
    assert used == ROOMS


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


def test_where_the_page_says_no_trio_there_is_no_io() -> None:
    wrong = [
        f"{path.name} imports {module}"
        for path in sources()
        if room_of(path) in NO_TRIO
        for module, _ in imports(path)
        if module.partition(".")[0] in {"trio", "socket", "random"}
    ]
    assert wrong == []
