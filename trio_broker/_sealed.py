"""`Sealed`: objects that refuse attributes that their class doesn't have.

Users of callback-based clients write ``client.response_handler = f``. Here it would never be
called, so it is an error.
"""

from __future__ import annotations

import difflib
import inspect
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

_NOT_USERS: Final = frozenset({"trio_broker", "trio", "abc", "typing", "builtins"})
_CALLBACKS: Final = ("on_", "handle_", "_handler", "_callback", "_listener", "_hook")


class Run:
    """How many items an iteration took without a checkpoint.

    It is an object of its own because setting an attribute of a `Sealed` is slow.
    """

    __slots__ = ("length",)

    def __init__(self) -> None:
        self.length: int = 0


class Sealed:
    """A base class whose instances accept only attributes that their class has.

    These include methods, so that a test can replace one by a fake. A subclass adds names by
    declaring them in its body or using them in its methods.
    """

    __slots__ = ()

    # What to use instead of a callback, for the error message.
    _instead: str = ""

    # With this method, a type checker would allow every attribute.
    if not TYPE_CHECKING:  # pragma: no branch

        def __setattr__(self, name: str, value: Any) -> None:
            kind = type(self)
            if not any(name in vars(one) or _declares(one, name) for one in kind.__mro__):
                raise AttributeError(self._refusal(name), name=name, obj=self)
            super().__setattr__(name, value)

    def _refusal(self, name: str) -> str:
        kind = type(self)
        text = f"{kind.__name__!r} object has no attribute {name!r}"
        if name.startswith(_CALLBACKS) or name.endswith(_CALLBACKS):
            return f"{text}: there are no callbacks; {self._instead}"
        known = {*dir(kind), *(one for base in kind.__mro__ for one in _annotations(base))}
        public = [one for one in known if not one.startswith("_")]
        near = difflib.get_close_matches(name, public, n=1, cutoff=0.75)
        if near:
            return f"{text}: did you mean {near[0]!r}?"
        return f"{text}: to add an attribute, declare it in a subclass ('{name}: …')"


def _declares(kind: type, name: str) -> bool:
    """Whether a class annotates an attribute or, for a user's class, a method uses its name."""
    if name in _annotations(kind):
        return True
    is_users = kind.__module__.partition(".")[0] not in _NOT_USERS
    return is_users and any(name in _names(member) for member in vars(kind).values())


def _annotations(kind: type) -> dict[str, Any]:
    # Python 3.14 evaluates them here, and a name may not be defined yet.
    with suppress(NameError):
        return inspect.get_annotations(kind)
    return {}


def _names(member: object) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(member) if callable(member) else member, "__code__", None)
    return code.co_names if code is not None else ()
