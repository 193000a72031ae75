"""Removes keys and signatures from texts of the broker, for errors and for the screen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias
from urllib.parse import unquote

Redact: TypeAlias = Callable[[str], str]

REMOVED: Final = "<removed>"

_NAMES: Final = "key|sig|api_?key|secret|secret_?key|signature"
# HMAC-SHA256 in hexadecimal as a word of its own. With "0x" before it, it is a transaction's hash.
_SIGNATURE: Final = r"(?<![0-9A-Za-z])(?:[0-9a-f]{64}|[0-9A-F]{64})(?![0-9A-Za-z])"
# A text with an escaped character has one of these.
_ESCAPES: Final = ("\\", "%")
_ESCAPED: Final = re.compile(r"\\u([0-9a-fA-F]{4})")
# The most backslashes before a character. JSON in JSON in JSON has seven. Without a limit, a long
# text of backslashes would take hours.
_MOST: Final = 15
# A name and its value: a JSON string, which may be cut off; a string in a string of JSON, whose
# quotes are escaped; or a number, `true`, `false` or `null`.
_MEMBERS: Final = re.compile(
    rf'"(?P<plain>{_NAMES})"(?P<colon>\s*:\s*)"(?:[^"\\]|\\.)*"?'
    rf'|(?P<quote>\\+")(?P<nested>{_NAMES})(?P=quote)(?P<nested_colon>\s*:\s*)(?P=quote)[^"\\]*'
    rf'|"(?P<bare>{_NAMES})"(?P<bare_colon>\s*:\s*)[^\s"\[{{,}}\]]+',
    flags=re.IGNORECASE | re.DOTALL,
)


def redactor(secrets: Iterable[str], *, signatures: bool = False) -> Redact:
    """Make a function that removes secrets from a text.

    Args:
        secrets: The secrets. They are found in JSON and URLs too, where characters may be escaped.
        signatures: Whether to remove everything that looks like a signature. The hashes of some
            chains' transactions look like one.
    """
    # The longest first: one may begin with another.
    wanted = sorted(filter(None, secrets), key=len, reverse=True)
    pattern = re.compile("|".join(map(_spelled, wanted)))
    signature = re.compile(_SIGNATURE)
    hints = (*wanted, *_ESCAPES) if wanted else ()

    def redact(text: str) -> str:
        # The pattern is slow, and a text may have a million characters.
        if any(map(text.__contains__, hints)) and _has_any(wanted, text):
            text = pattern.sub(REMOVED, text)
        return signature.sub(REMOVED, text) if signatures else text

    return redact


def _has_any(secrets: list[str], text: str) -> bool:
    """Whether a secret is in a text, as it is or escaped."""
    if any(map(text.__contains__, secrets)):
        return True
    # Without the escapes, however they are nested.
    plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text).replace("\\", "")
    plain = plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    bare = [secret.replace("\\", "") for secret in secrets]
    return any(secret in one for secret in bare for one in (plain, unquote(plain)))


def without_signatures(text: str) -> str:
    """Remove the values of all keys and signatures in a JSON text, by their names.

    Args:
        text: The text. It may be cut off, or not be JSON.
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
    """A pattern for a secret, any of whose characters may be escaped as in JSON or in a URL."""
    return "".join(map(_spelled_character, secret))


def _spelled_character(one: str) -> str:
    # An environment variable that isn't UTF-8 has lone surrogates.
    units = one.encode("utf-16-be", "surrogatepass").hex()
    escaped = "".join(
        rf"\\{{1,{_MOST}}}u{units[place : place + 4]}" for place in range(0, len(units), 4)
    )
    quoted = "".join(f"%{byte:02x}" for byte in one.encode("utf-8", "surrogatepass"))
    return rf"(?:\\{{0,{_MOST}}}{re.escape(one)}|(?i:{escaped}|{quoted}))"
