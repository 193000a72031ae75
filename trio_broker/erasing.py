"""Keys and signatures taken out of what a broker says, before it is in an error or on a screen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

REMOVED: Final = "<removed>"

_NAMES: Final = "key|sig|api_?key|secret|secret_?key|signature"
# HMAC-SHA256 in hexadecimal, standing alone: "0x" before it makes it a transaction's.
_SIGNATURE: Final = r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])"
# A member and its value: a JSON text, even one without an end; a text within a JSON text, whose
# quotes have backslashes before them; or a number and the like.
_MEMBERS: Final = re.compile(
    rf'"(?P<plain>{_NAMES})"(?P<colon>\s*:\s*)"(?:[^"\\]|\\.)*"?'
    rf'|(?P<quote>\\+")(?P<nested>{_NAMES})(?P=quote)(?P<nested_colon>\s*:\s*)(?P=quote)[^"\\]*'
    rf'|"(?P<bare>{_NAMES})"(?P<bare_colon>\s*:\s*)[^\s"\[{{,}}\]]+',
    flags=re.IGNORECASE | re.DOTALL,
)


def eraser(secrets: Iterable[str], *, signatures: bool = False) -> Callable[[str], str]:
    """A function that takes secrets out of a text, wherever they stand in it.

    Args:
        secrets: The secrets. They are found in JSON too, where characters may be escaped.
        signatures: Whether what looks like a signature goes as well, whosever it is. Some chains'
            transactions are named by the like.
    """
    # The longest first, as one may begin like another.
    spellings = [*map(_spelled, sorted(secrets, key=len, reverse=True))]
    if signatures:
        spellings.append(_SIGNATURE)
    pattern = re.compile("|".join(spellings))
    return lambda text: pattern.sub(REMOVED, text)


def without_signatures(text: str) -> str:
    """A JSON text in which no key and no signature has its value, whosever it is.

    Args:
        text: The text; it may be cut off, or no JSON.
    """
    return _MEMBERS.sub(_emptied, text)


def _emptied(match: re.Match[str]) -> str:
    found = match.groupdict()
    if found["plain"]:
        return f'"{found["plain"]}"{found["colon"]}"{REMOVED}"'
    if found["bare"]:
        return f'"{found["bare"]}"{found["bare_colon"]}"{REMOVED}"'
    quote = found["quote"]
    return f"{quote}{found['nested']}{quote}{found['nested_colon']}{quote}{REMOVED}"


def _spelled(secret: str) -> str:
    """A pattern for a text, each of whose characters may be escaped as JSON allows it."""
    return "".join(map(_spelled_character, secret))


def _spelled_character(one: str) -> str:
    units = one.encode("utf-16-be").hex()
    escaped = "".join(rf"\\+u{units[place : place + 4]}" for place in range(0, len(units), 4))
    return rf"(?:\\*{re.escape(one)}|(?i:{escaped}))"
