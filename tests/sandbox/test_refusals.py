from __future__ import annotations

import pytest

from trio_broker.sandbox.refusals import UNKNOWN_ASSET, Refusal, error_code, shortened


def test_a_refusal_quotes_what_was_wrong() -> None:
    assert str(Refusal(UNKNOWN_ASSET, "XYZ")) == "Unknown asset: XYZ"


def test_a_refusal_is_not_as_long_as_whatever_a_client_sends() -> None:
    assert len(str(Refusal(UNKNOWN_ASSET, "X" * 60_000))) < 100
    assert shortened("X" * 64) == "X" * 64
    assert shortened("X" * 65) == "X" * 64 + "…"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Order not found", "ORDER_NOT_FOUND"),
        ("Unknown asset: XYZ", "INVALID_REQUEST"),
        ("SWAP_ERROR: venue timed out", "SWAP_ERROR"),
        ("INTERNAL_ERROR", "INTERNAL_ERROR"),
        ("ABC: not a code", "INVALID_REQUEST"),
        ("", "INVALID_REQUEST"),
    ],
)
def test_every_refusal_has_a_code(text: str, code: str) -> None:
    assert error_code(text) == code
