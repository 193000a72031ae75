"""The generated client for asyncio is current and complete."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Final

import pytest

from tools.generate_aio import ADDED, CALLED_BY, LEFT_OUT, SOURCE, TARGET, WORDS, generate
from trio_broker import BoundedReceiveChannel, BrokerWSClient, Subscription
from trio_broker.aio import AioBrokerClient, AioChannel, AioSubscription

TRIO_CLIENT: Final = SOURCE.read_text(encoding="utf-8")


def parts(source: str) -> tuple[set[str], list[str]]:
    """A module's imports in any order, and its other statements in theirs.

    A formatter doesn't change them.
    """
    imports, others = set(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            imports |= {f"{node.module} {ast.unparse(alias)}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {ast.unparse(alias) for alias in node.names}
        else:
            others.append(ast.unparse(node))
    return imports, others


def trio_client_with(method: str) -> str:
    """The source of the Trio client with another method."""
    module = ast.parse(TRIO_CLIENT)
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == "BrokerWSClient":
            node.body += ast.parse(method).body
    return ast.unparse(module)


def public_names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_generated_client_is_current() -> None:
    current = parts(TARGET.read_text(encoding="utf-8"))
    assert parts(generate(TRIO_CLIENT)) == current, "run python -m tools.generate_aio"


@pytest.mark.parametrize(
    "method",
    [
        'def more(self) -> None:\n    """New."""',
        'async def aclose(self, *, soon: bool = False) -> None:\n    """Close."""',
    ],
)
def test_new_or_changed_method_makes_it_outdated(method: str) -> None:
    current = parts(TARGET.read_text(encoding="utf-8"))
    assert parts(generate(trio_client_with(method))) != current


def test_every_public_name_is_there_or_left_out_with_a_reason() -> None:
    assert public_names(BrokerWSClient) - public_names(AioBrokerClient) == set(LEFT_OUT)
    assert all(LEFT_OUT.values())


def convert_odd(method: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The generated method for another one, `odd`, of the Trio client."""
    client = ast.parse(generate(trio_client_with(method))).body[-1]
    assert isinstance(client, ast.ClassDef)
    odd = client.body[-1]
    assert isinstance(odd, ast.FunctionDef | ast.AsyncFunctionDef)
    assert odd.name == "odd"
    return odd


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("async def odd(self) -> None", "await self._call(self._client.odd)"),
        (
            "async def odd(self, a: int, /, *b: int) -> int",
            "return await self._call(partial(self._client.odd, a, *b))",
        ),
        ("def odd(self) -> None", "self._client.odd()"),
        (
            "def odd(self, a: int, *, b: int = 1, **c: int) -> int",
            "return self._client.odd(a, b=b, **c)",
        ),
    ],
)
def test_arguments_are_passed_on(head: str, expected: str) -> None:
    odd = convert_odd(f'@always_checkpoint\n{head}:\n    """Odd."""')
    assert ast.unparse(odd) == ast.unparse(ast.parse(f'{head}:\n    """Odd."""\n    {expected}'))


def test_reworded_paragraph_is_wrapped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORDS, "`trio.Odd`", "`asyncio.OddError`")
    text = (
        "Cancelled, it waits until it has ended, which takes only a moment. It raises `trio.Odd`."
    )
    odd = convert_odd(f'def odd(self) -> None:\n    """Odd.\n\n    {text}\n    """')
    assert (ast.get_docstring(odd) or "").splitlines() == [
        "Odd.",
        "",
        "Cancelled, it waits until it has ended, which takes only a moment. It raises",
        "`asyncio.OddError`.",
    ]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("def odd(self) -> None: ...", "odd has no docstring"),
        ('def odd(self) -> None:\n    """Use a nursery."""', "docstring of odd says 'nursery'"),
        (
            'def odd(self) -> list[Subscription[Order]]:\n    """Odd."""',
            r"odd returns list\[Subscription\[Order\]\]: add a rule",
        ),
        (
            'async def odd(self) -> Subscription[Order]:\n    """Odd."""',
            r"odd returns Subscription\[Order\]: add a rule",
        ),
    ],
)
def test_method_without_a_rule_or_docstring_is_refused(method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(trio_client_with(method))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (LEFT_OUT, "no methods {'odd'}"),
        (CALLED_BY, "no methods {'odd'}"),
        (ADDED, "no methods {'odd'}"),
        (WORDS, "no docstring of BrokerWSClient has ['odd']"),
    ],
)
def test_table_entry_that_does_not_apply_is_refused(
    table: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table, "odd", "something")
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(TRIO_CLIENT)


# --- The streams, which are written by hand -------------------------------------------------


@pytest.mark.parametrize(
    ("own", "there"), [(AioChannel, BoundedReceiveChannel), (AioSubscription, Subscription)]
)
def test_stream_has_the_methods_of_its_trio_namesake(own: type, there: type) -> None:
    # `when_ready` is for bridges to an event loop, such as this one.
    assert public_names(there) - public_names(own) == {"when_ready"}
    for name in public_names(own):
        ours, theirs = (inspect.getattr_static(kind, name) for kind in (own, there))
        assert type(ours) is type(theirs)
        if inspect.isfunction(ours):
            assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
            assert inspect.signature(ours) == inspect.signature(theirs)
