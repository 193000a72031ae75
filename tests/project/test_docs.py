"""The pages of documentation: their blocks of code run, as the README's do."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio

from trio_broker import BrokerWSClient
from trio_broker.sandbox import Sandbox, open_sandbox

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("anyio", "errors", "from-callbacks")

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 60.0

# A block is fenced as `python`, and runs; or as `python before`, and shows another client's code.
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def blocks(name: str, info: str) -> list[str]:
    return [body for one, body in FENCE.findall(page(name)) if one == info]


def compiled(body: str, name: str) -> Any:
    return compile(body, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


BLOCKS = [
    pytest.param(name, body, id=f"{name}-{number}")
    for name in PAGES
    for number, body in enumerate(blocks(name, "python"), 1)
]


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_python_that_runs_or_came_before(name: str) -> None:
    fences = FENCE.findall(page(name))
    assert {info for info, _ in fences} <= {"python", "python before"}
    assert page(name).count("```") == 2 * len(fences)
    for body in blocks(name, "python before"):
        compiled(body, name)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", page(name)):
        path, _, anchor = target.partition("#")
        text = (DOCS / path).read_text()
        assert not anchor or re.search(rf"^##+ {anchor}$", text, re.MULTILINE | re.IGNORECASE)


# --- Code -----------------------------------------------------------------------------------


async def names(sandbox: Sandbox, client: BrokerWSClient) -> dict[str, Any]:
    """What a block may take for granted."""

    async def cut_the_line() -> None:
        await trio.lowlevel.checkpoint()
        sandbox.drop_connections()

    async def show(updates: Any) -> None:
        async for _ in updates:
            pass

    return {
        "anyio": anyio,
        "trio": trio,
        "BrokerWSClient": BrokerWSClient,
        "api_key": sandbox.api_key,
        "secret_key": sandbox.secret_key,
        "ws_url": sandbox.url,
        "client": client,
        "order_id": (await client.do_swap("1", "ETH", "USDT")).order_id,
        "cut_the_line": cut_the_line,
        "show": show,
    }


@pytest.mark.parametrize(("name", "body"), BLOCKS)
async def test_block_runs(
    name: str,
    body: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "def test_" in body:
        await run_as_a_users_tests(body, tmp_path)
        return
    monkeypatch.syspath_prepend(ROOT / "examples")
    mains: list[Callable[[], Awaitable[None]]] = []
    monkeypatch.setattr(trio, "run", mains.append)

    def run_on(main: Callable[[], Awaitable[None]], *, backend: str) -> None:
        assert backend == "trio"
        mains.append(main)

    monkeypatch.setattr(anyio, "run", run_on)
    async with open_sandbox(seed=1) as sandbox, sandbox.client() as client:
        known = await names(sandbox, client)
        code = compiled(body, name)
        with trio.fail_after(PATIENCE):
            if code.co_flags & inspect.CO_COROUTINE:
                await eval(code, known)  # noqa: S307 - it is our page
            else:
                exec(code, known)  # noqa: S102 - as above
            for main in mains:
                await main()
            if "app" in known:
                await use_the_service(known)
    assert bool(capsys.readouterr().out) == ("print(" in body)


async def run_as_a_users_tests(body: str, place: Path) -> None:
    (place / "test_theirs.py").write_text(body)
    (place / "pytest.ini").write_text("[pytest]\naddopts = -p no:asyncio -p no:cacheprovider\n")
    ended = await trio.run_process(
        [sys.executable, "-m", "pytest", "-q", str(place)],
        cwd=place,
        capture_stdout=True,
        check=False,
    )
    assert re.search(rb"\n1 passed in ", ended.stdout), ended.stdout.decode()


async def use_the_service(names: Mapping[str, Any]) -> None:
    """Ask a FastAPI app's functions, as its framework would."""
    async with names["lifespan"](names["app"]) as state:
        request = SimpleNamespace(state=SimpleNamespace(**state))
        assert await names["status"](request) == {"websocket_connected": True}
        answer = await names["swap"](
            request, names["Swap"](amount="1", sold="ETH", bought="USDT"), "mine"
        )
        assert answer["success"] is True
        assert answer["order_id"].startswith("ord_")
    assert {route.path for route in names["app"].routes} >= {"/status", "/swap"}
