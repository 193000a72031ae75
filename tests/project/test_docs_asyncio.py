"""The page about asyncio: its blocks of code run, and its names are those of the code."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.aio_host import PLAIN
from tests.blocks import ROOT, blocks_of, run_block
from tests.broker_thread import Broker
from trio_broker.aio import AioSubscription, open_client

PAGE = "docs/asyncio.md"
BLOCKS = blocks_of(PAGE)


def test_every_block_is_python() -> None:
    assert {language for language, _ in BLOCKS} == {"python"}


@pytest.mark.parametrize("body", [body for _, body in BLOCKS], ids=range(1, len(BLOCKS) + 1))
def test_block_runs(
    body: str, broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        sandbox = broker.sandbox
        mains: list[Callable[[], Awaitable[object]]] = []

        def run(coroutine: Coroutine[Any, Any, object]) -> None:
            mains.append(lambda: coroutine)

        monkeypatch.setattr(asyncio, "run", run)
        async with open_client(sandbox.client()) as client:
            names = {
                "api_key": sandbox.api_key,
                "secret_key": sandbox.secret_key,
                "ws_url": sandbox.url,
                "client": client,
            }
            await run_block(body, names, PAGE, mains)

    PLAIN.run(main)
    assert capsys.readouterr().out


def test_streams_are_told_whole() -> None:
    text = (ROOT / PAGE).read_text()
    section = text.partition("## Streams\n")[2].partition("\n## ")[0]
    own = {name for name in dir(AioSubscription) if not name.startswith("_")}
    assert own <= set(re.findall(r"`(\w+)(?:\(\))?`", section))


def test_links_lead_somewhere() -> None:
    text = (ROOT / PAGE).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (Path(ROOT, PAGE).parent / link).exists()] == []
