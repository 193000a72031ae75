"""What clients of the web examples may send: JSON that Python reads and nobody can use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

GOOD: Final = {"amount_in": "1.5", "asset_in": "ETH", "asset_out": "USDT"}

# As JSON texts, since Python itself wouldn't write some of them.
VALUES: Final = (
    *("1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1e-400", "-1", "-0.5"),
    *("9" * 400, "9" * 5000, "true", "[]", "{}", "[1e400]", '{"a": NaN}', '{"\\ud800": 1}'),
    *('""', '" "', '"ü"', '"\\ud800"', '"1\\udfff"', '"\\u0000"', '"\\u001b[2J"', '"٣"'),
    *('"1e400"', '"-1e400"', '"NaN"', '"Infinity"', '"1e-400"', '"-1"', '"1_000"', '"0x1"'),
    *(f'"{"9" * 400}"', f'"{"x" * 100_000}"'),
)
BODIES: Final = (
    *(
        b"",
        b"1e400",
        b"NaN",
        b"null",
        b"[NaN]",
        b'"\\ud800"',
        b'{"amount_in"',
        b"\xff\xfe",
        b"\x00",
    ),
    *(b"[" * 100_000, b'{"a":' * 100_000),
)


def with_value(field: str, value: str, **good: str) -> bytes:
    """A request with a value in a field."""
    members = {name: json.dumps(text) for name, text in {**GOOD, **good}.items()}
    members[field] = value
    inside = ", ".join(f"{json.dumps(name)}: {text}" for name, text in members.items())
    return f"{{{inside}}}".encode()


def bad_bodies(*fields: str, **good: str) -> Iterator[bytes]:
    """Requests with each value in each field, unknown fields, and what is no request."""
    for field in fields:
        yield from (with_value(field, value, **good) for value in (*VALUES, "null"))
    for unknown in ("\ud800", "slipage_bps", "\x1b[2J", ""):
        yield from (with_value(unknown, value, **good) for value in ("1e400", '"\\ud800"'))
    yield from BODIES
