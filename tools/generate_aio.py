"""Generates `trio_broker/aio/client.py` from `BrokerWSClient`.

    python -m tools.generate_aio

Run it after a change to a public signature or docstring in `trio_broker/client.py`. It needs ruff
(extra `lint`). `tests/aio/test_generated.py` fails until the file is current.

Each public method and property of `BrokerWSClient` becomes one with the same name, signature and
docstring that forwards to the Trio client. `forwarding` chooses how, from the method's shape.
Whatever isn't mechanical is written by hand in `trio_broker/aio/_base.py`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final, TypeAlias

ROOT: Final = Path(__file__).parents[1]
SOURCE: Final = ROOT / "trio_broker" / "client.py"
TARGET: Final = ROOT / "trio_broker" / "aio" / "client.py"

# Public names of `BrokerWSClient` that `AioBrokerClient` doesn't have, and why.
LEFT_OUT: Final = {
    "connect": "`open_client` calls it, with the nursery of the loop's guest",
    "from_env": "`open_client` takes the `BrokerWSClient` that it makes",
}

# Async methods that another method of `ClientBase` than `_call` calls.
CALLED_BY: Final = {"do_swap": "_call_swap", "swap_and_wait": "_call_swap"}

STREAMS: Final = {"BoundedReceiveChannel": "AioChannel", "Subscription": "AioSubscription"}

# Words in Trio's docstrings, and what to write for asyncio.
WORDS: Final = {"`Cancelled`": "`asyncio.CancelledError`"}

# Words that no docstring for asyncio may have.
TRIO_WORDS: Final = re.compile(
    r"\bTrio\b|nurser(y|ies)|checkpoint|cancel scope|`(trio\.)?Cancelled`"
)

# Paragraphs to add for asyncio, before the docstring's first section.
ADDED: Final = {
    "do_swap": "If the receipt arrives just when the task is cancelled, `resolve_swap` returns it "
    "at once, and a warning in `logger` has both of its IDs."
}

HEADER: Final = '''\
"""`AioBrokerClient`: the documented methods, as asyncio programs call them.

Generated from `trio_broker/client.py` by ``python -m tools.generate_aio``. Don't edit this file.
"""

from __future__ import annotations

'''

OPTIONS: Final = '''
class ClientOptions(TypedDict, total=False):
    """The keyword options of `BrokerWSClient`, which documents them and their defaults."""

'''

CLIENT: Final = '''
class AioBrokerClient(ClientBase):
    """A connected client of the broker for asyncio, as `open_broker` and `open_client` return it.

    It has the methods of `BrokerWSClient`, with the same arguments, results and errors. Any number
    of tasks may use it at a time, in the event loop that opened it.

    Cancelling any method is safe. The cancelled task waits until the call has ended, which is
    soon, and then raises `asyncio.CancelledError`. A swap that was sent isn't taken back by it;
    see `do_swap`.
    """

'''

# Imports that the generated code may need besides those of `trio_broker/client.py`.
IMPORTS: Final = """
from functools import partial
from typing import TypedDict
from trio_broker.aio._base import ClientBase
from trio_broker.aio.streams import AioChannel, AioSubscription
"""

LINE_LENGTH: Final = 100

Method: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def generate(source: str) -> str:
    """Generate the module; it isn't formatted yet.

    Args:
        source: The text of `trio_broker/client.py`.

    Returns:
        The text of `trio_broker/aio/client.py`.

    Raises:
        ValueError: A method can't be converted, or an entry of a table doesn't apply any more. The
            message says what to do.
    """
    module = ast.parse(source)
    methods = [
        method
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "BrokerWSClient"
        for method in node.body
        if isinstance(method, Method)
    ]
    check_tables(methods)
    options = [
        ast.unparse(option)
        for method in methods
        if method.name == "__init__"
        for option in method.args.kwonlyargs
    ]
    converted = [
        convert(method)
        for method in methods
        if not method.name.startswith("_") and method.name not in LEFT_OUT
    ]
    code = OPTIONS + indent("\n".join(options)) + "\n" + CLIENT + indent("\n\n".join(converted))
    return HEADER + imports(module, code) + "\n\n" + code


def check_tables(methods: list[Method]) -> None:
    """Refuse entries of the tables that don't apply to any method."""
    unknown = {*LEFT_OUT, *CALLED_BY, *ADDED} - {method.name for method in methods}
    if unknown:
        raise ValueError(f"BrokerWSClient has no methods {unknown}: remove them from the tables")
    docstrings = "\n".join(ast.get_docstring(method) or "" for method in methods)
    unused = [word for word in WORDS if word not in docstrings]
    if unused:
        raise ValueError(f"no docstring of BrokerWSClient has {unused}: remove them from WORDS")


def convert(method: Method) -> str:
    """The method of `AioBrokerClient` for one of `BrokerWSClient`."""
    decorators = [ast.unparse(decorator) for decorator in method.decorator_list]
    # The other decorators are about Trio's checkpoints and Ctrl-C.
    kept = [name for name in decorators if re.fullmatch(r"property|overload|\w+\.setter", name)]
    if "overload" not in kept:
        docstring = [] if f"{method.name}.setter" in kept else [docstring_of(method)]
        method.body = [*map(ast.Expr, docstring), *ast.parse(forwarding(method, kept)).body]
    method.decorator_list = [ast.parse(name, mode="eval").body for name in kept]
    for node in ast.walk(method):
        if isinstance(node, ast.Name):
            node.id = STREAMS.get(node.id, node.id)
    return ast.unparse(method)


def forwarding(method: Method, decorators: list[str]) -> str:
    """The statement that forwards a call to the Trio client."""
    name, target = method.name, f"self._client.{method.name}"
    if "property" in decorators:
        return f"return {target}"
    passed = arguments(method)
    if f"{name}.setter" in decorators:
        return f"{target} = {passed[0]}"
    call = f"{target}({', '.join(passed)})"
    deferred = f"partial({', '.join([target, *passed])})" if passed else target
    returns = ast.unparse(method.returns) if method.returns is not None else "Any"
    if isinstance(method, ast.AsyncFunctionDef):
        forwarded = f"await self.{CALLED_BY.get(name, '_call')}({deferred})"
    elif returns.startswith("Opening[Subscription["):
        return f"return self._opening({deferred}, {name!r})"
    elif returns.startswith("AbstractAsyncContextManager[Subscription["):
        return f"return self._tracked({deferred})"
    elif returns.startswith("BoundedReceiveChannel["):
        return f"return AioChannel({call}, self._guest)"
    else:
        forwarded = call
    if not STREAMS.keys().isdisjoint(re.findall(r"\w+", returns)):
        raise ValueError(f"{name} returns {returns}: add a rule for that to `forwarding`")
    return forwarded if returns == "None" else f"return {forwarded}"


def arguments(method: Method) -> list[str]:
    """A method's parameters, written as the arguments of a call to its namesake."""
    own = method.args
    passed = [parameter.arg for parameter in (own.posonlyargs + own.args)[1:]]
    passed += [f"*{own.vararg.arg}"] if own.vararg is not None else []
    passed += [f"{parameter.arg}={parameter.arg}" for parameter in own.kwonlyargs]
    passed += [f"**{own.kwarg.arg}"] if own.kwarg is not None else []
    return passed


def docstring_of(method: Method) -> ast.Constant:
    """A method's docstring, reworded for asyncio and indented as in a function that isn't."""
    docstring = ast.get_docstring(method)
    if docstring is None:
        raise ValueError(f"{method.name} has no docstring: write one")
    paragraphs = [reword(paragraph) for paragraph in docstring.split("\n\n")]
    if method.name in ADDED:
        sections = (n for n, text in enumerate(paragraphs) if re.match(r"[A-Z]\w+:\n ", text))
        paragraphs.insert(next(sections, len(paragraphs)), fill(ADDED[method.name]))
    docstring = "\n\n".join(paragraphs)
    if (word := TRIO_WORDS.search(docstring)) is not None:
        raise ValueError(f"the docstring of {method.name} says {word[0]!r}: add it to WORDS")
    text = indent(docstring).lstrip()
    return ast.Constant(f"{text}\n    " if "\n" in text else text)


def reword(paragraph: str) -> str:
    """Replace the words about Trio. A paragraph that has some is wrapped again, if it's plain."""
    reworded = paragraph
    for word, ours in WORDS.items():
        reworded = reworded.replace(word, ours)
    return reworded if reworded == paragraph or "\n " in reworded else fill(reworded)


def fill(paragraph: str) -> str:
    """Wrap a paragraph to the width of a method's docstring."""
    return textwrap.fill(paragraph, LINE_LENGTH - 8, break_on_hyphens=False)


def indent(text: str) -> str:
    """Indent a text by one level."""
    return textwrap.indent(text, "    ")


def imports(module: ast.Module, code: str) -> str:
    """The imports of a module and `IMPORTS` that some code needs, one a line."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    return "\n".join(
        (f"from {node.module} " if isinstance(node, ast.ImportFrom) else "")
        + f"import {ast.unparse(alias)}"
        for node in [*module.body, *ast.parse(IMPORTS).body]
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (alias.asname or alias.name) in used
    )


def formatted(text: str) -> str:
    """Sort the imports of a module and format it."""
    for command in (["check", "--quiet", "--select=I", "--fix"], ["format"]):
        text = subprocess.run(  # noqa: S603 - arguments of ours
            [sys.executable, "-m", "ruff", *command, f"--stdin-filename={TARGET}", "-"],
            input=text,
            stdout=subprocess.PIPE,
            check=True,
            encoding="utf-8",
        ).stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(formatted(generate(SOURCE.read_text(encoding="utf-8"))), encoding="utf-8")
