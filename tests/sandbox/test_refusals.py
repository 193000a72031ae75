from __future__ import annotations

from trio_broker.sandbox.refusals import UNKNOWN_ASSET, Refusal, shortened


def test_a_refusal_quotes_what_was_wrong() -> None:
    assert str(Refusal(UNKNOWN_ASSET, "XYZ")) == "Unknown asset: XYZ"


def test_a_refusal_is_not_as_long_as_whatever_a_client_sends() -> None:
    assert len(str(Refusal(UNKNOWN_ASSET, "X" * 60_000))) < 100
    assert shortened("X" * 64) == "X" * 64
    assert shortened("X" * 65) == "X" * 64 + "…"
