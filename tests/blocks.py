"""The blocks of code in the pages of the documentation, to be run."""

from __future__ import annotations

import ast
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a page."""
    text = (ROOT / page).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert text.count("```") == 2 * len(found)
    return found


async def run_block(
    body: str, names: dict[str, Any], page: str, mains: list[Callable[[], Awaitable[object]]]
) -> None:
    """Run a block of Python, with ``await`` outside of functions, and then its main program.

    Args:
        body: The block.
        names: What it may use without having made it.
        page: Where it is from.
        mains: Where that which it runs as a program comes to be; whoever calls this sees to it.
    """
    code = compile(body, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    waiting = eval(code, names)  # noqa: S307 - it is our documentation
    if waiting is not None:
        await waiting
    for main in mains:
        await main()
