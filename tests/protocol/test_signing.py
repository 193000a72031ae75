from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from trio_broker.signing import (
    Signer,
    canonical_string,
    hmac_key,
    new_nonce,
)

_FILE: Final = Path(__file__).parents[1] / "vectors" / "signing.json"
VECTORS: Final[list[dict[str, Any]]] = json.loads(_FILE.read_text(encoding="utf-8"))["vectors"]


def named(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def arguments(vector: dict[str, Any]) -> tuple[str, int, str, str]:
    op = vector["operation"] or "auth"
    return op, vector["timestamp_ms"], vector["nonce"], vector["body"]


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_signatures_equal_those_of_the_official_client(
    vector: dict[str, Any],
) -> None:
    assert canonical_string(*arguments(vector)) == vector["canonical"]
    assert Signer(vector["secret"]).sign(*arguments(vector)) == vector["signature"]
    assert Signer(vector["secret"], "derived").sign(*arguments(vector)) == vector["signature"]


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_raw_secret_signs_as_documented(vector: dict[str, Any]) -> None:
    signature = Signer(vector["secret"], "raw").sign(*arguments(vector))
    assert signature == vector["signature_with_raw_secret"]


def test_one_signer_signs_many_messages() -> None:
    by_secret: dict[str, Signer] = {}
    for vector in VECTORS * 2:
        signer = by_secret.setdefault(vector["secret"], Signer(vector["secret"]))
        assert signer.sign(*arguments(vector)) == vector["signature"]


def test_path_depends_only_on_the_operation() -> None:
    assert canonical_string("auth", 1, "n", "").startswith("WS\n/ws/v1/stream\n1\n")
    assert canonical_string("swap", 1, "n", "").startswith("WS\n/ws/v1/swap\n1\n")


def test_derived_key_is_base64url_with_padding() -> None:
    assert hmac_key("test_secret_1").endswith(b"=")
    keys = b"".join(hmac_key(str(number)) for number in range(100))
    assert not set(b"+/") & set(keys)
    assert set(b"-_") <= set(keys)
    assert hmac_key("käse", "raw") == "käse".encode()


def test_nonces_differ_within_one_instant_and_keep_their_length() -> None:
    nonces = {new_nonce(1732526400.5) for _ in range(1000)}
    assert len(nonces) == 1000
    assert {nonce.partition("_")[0] for nonce in nonces} == {"1732526400500000000"}
    assert {len(nonce) for nonce in nonces} == {40}
    assert len(new_nonce(0.0)) == 40


def test_repr_of_a_signer_shows_no_secret() -> None:
    assert "hush" not in repr(Signer("hush", "raw"))
