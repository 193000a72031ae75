"""The names that users import: re-exported so that type checkers see them, and documented."""

from __future__ import annotations

import gc
import inspect
import pickle
from decimal import Decimal
from importlib.resources import files
from types import ModuleType
from typing import get_type_hints

import pytest

import trio_broker
import trio_broker.aio
import trio_broker.sandbox

MODULES = [trio_broker, trio_broker.aio, trio_broker.sandbox]


def public(module: ModuleType) -> dict[str, object]:
    """A module's public names, and what they stand for."""
    names: list[str] = module.__all__
    return {name: getattr(module, name) for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_names_are_listed_once_and_in_order(module: ModuleType) -> None:
    names: list[str] = module.__all__
    assert names == sorted(set(names))


@pytest.mark.parametrize("module", MODULES)
def test_every_name_has_a_docstring_of_its_own(module: ModuleType) -> None:
    wrong = [
        name
        for name, value in public(module).items()
        if (inspect.isclass(value) and not value.__dict__.get("__doc__"))
        or (inspect.isfunction(value) and not value.__doc__)
    ]
    assert wrong == []


def test_everything_public_that_the_classes_have_is_documented() -> None:
    wrong = [
        f"{name}.{attribute}"
        for module in (trio_broker, trio_broker.aio)
        for name, value in public(module).items()
        if inspect.isclass(value)
        for attribute, member in vars(value).items()
        if not attribute.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property | classmethod))
        and not inspect.getdoc(member)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_else_is_public(module: ModuleType) -> None:
    seen = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert seen - set(module.__all__) <= {"annotations"}


def test_classes_say_that_they_are_of_the_package() -> None:
    wrong = [
        name
        for name, value in public(trio_broker).items()
        if name != "__version__" and getattr(value, "__module__", "trio_broker") != "trio_broker"
    ]
    assert wrong == []
    assert repr(trio_broker.Order) == "<class 'trio_broker.Order'>"


def test_annotations_of_values_can_be_looked_up() -> None:
    hints = get_type_hints(trio_broker.Order)
    assert hints["filled_out"] == Decimal | None
    assert pickle.loads(pickle.dumps(trio_broker.SlippageError)) is trio_broker.SlippageError  # noqa: S301


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
