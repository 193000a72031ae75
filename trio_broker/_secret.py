"""`Secret`: a text that no repr and no traceback shows.

A traceback with locals (`rich`, `cgitb`, ``capture_locals=True``, an error service) prints the repr
of every local variable. So the library keeps keys in a `Secret`, from the first line of the
constructor on. Code that may raise must not have the key itself in a local variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast


class Secret:
    """A key whose repr doesn't show it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text: object = text

    def __repr__(self) -> str:
        return "<secret>"

    def reveal(self) -> str:
        """The key as it was given. Don't keep it in a local variable."""
        return cast("str", self._text)

    @property
    def is_text(self) -> bool:
        """Whether it is a non-blank str."""
        return isinstance(self._text, str) and bool(self._text.strip())

    @property
    def is_clean(self) -> bool:
        """Whether it has no surrounding white space and no control characters."""
        text = self.reveal()
        return text == text.strip() and text.isprintable()


def hide(text: str | Secret) -> Secret:
    """Hide a text, unless it is hidden already."""
    return text if isinstance(text, Secret) else Secret(text)


class Variables:
    """Environment variables, whose values no repr shows."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def get(self, name: str) -> str:
        """The value of a variable, stripped; empty if it isn't set."""
        return self._environ.get(name, "").strip()
