"""The names that users import: re-exported so that type checkers see them, and documented."""

from __future__ import annotations

import ast
import gc
import inspect
from importlib.resources import files
from types import ModuleType

import pytest

import trio_broker
import trio_broker.aio
import trio_broker.sandbox

MODULES = [trio_broker, trio_broker.aio, trio_broker.sandbox]


def reexports(module: ModuleType) -> list[ast.alias]:
    tree = ast.parse(inspect.getsource(module))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [alias for node in imports if node.module != "__future__" for alias in node.names]


@pytest.mark.parametrize("module", MODULES)
def test_every_name_is_reexported_under_itself(module: ModuleType) -> None:
    wrong = [alias.name for alias in reexports(module) if alias.asname != alias.name]
    assert wrong == []
    assert reexports(module)


@pytest.mark.parametrize("module", MODULES)
def test_every_name_has_a_docstring_of_its_own(module: ModuleType) -> None:
    wrong = [
        alias.name
        for alias in reexports(module)
        if not getattr(module, alias.name).__dict__.get("__doc__")
        and not inspect.isfunction(getattr(module, alias.name))
    ]
    assert wrong == []


def test_everything_public_that_the_classes_have_is_documented() -> None:
    wrong = [
        f"{alias.name}.{name}"
        for module in (trio_broker, trio_broker.aio)
        for alias in reexports(module)
        if inspect.isclass(getattr(module, alias.name))
        for name, member in vars(getattr(module, alias.name)).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property | classmethod))
        and not inspect.getdoc(member)
    ]
    assert wrong == []


def test_nothing_else_is_public() -> None:
    submodules = {
        name for name, value in vars(trio_broker).items() if isinstance(value, ModuleType)
    }
    public = {name for name in vars(trio_broker) if not name.startswith("_")}
    assert public - submodules == {alias.name for alias in reexports(trio_broker)}


def is_the_librarys(kind: type) -> bool:
    """Whether a class is for users; the command line has some of its own."""
    name = kind.__module__
    return name.startswith("trio_broker") and not name.startswith("trio_broker.cli")


def test_every_error_and_every_event_is_public() -> None:
    gc.collect()  # attrs makes a class of slots out of another one, which lingers
    for base in (trio_broker.BrokerError, trio_broker.ConnectionEvent):
        todo: list[type] = [base]
        while todo:
            kind = todo.pop()
            assert getattr(trio_broker, kind.__name__) is kind
            todo += [one for one in kind.__subclasses__() if is_the_librarys(one)]


def test_it_is_typed() -> None:
    assert files("trio_broker").joinpath("py.typed").is_file()


def test_the_version_is_a_version() -> None:
    assert all(part.isdigit() for part in trio_broker.__version__.split("."))
