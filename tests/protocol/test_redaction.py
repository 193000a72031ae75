"""Keys and signatures are removed from texts, in every spelling."""

from __future__ import annotations

import json

import pytest

from trio_broker.redaction import redactor, without_signatures

KEY = 'k"e/y-ü😀.*'
erase = redactor(("sec", KEY, "secret_1"))


@pytest.mark.parametrize(
    "text",
    [
        f"refused {KEY}, sorry",
        json.dumps({"text": KEY}),
        json.dumps({"text": KEY}, ensure_ascii=False),
        json.dumps({"text": json.dumps({"inner": KEY})}),
        json.dumps({"text": KEY}).replace("/", r"\/").replace(r"\u00fc", r"\u00FC"),
        "".join(f"\\u{unit:04x}" for unit in (0x6B, 0x22, 0x65)) + KEY[3:],
    ],
)
def test_secret_is_removed_in_every_spelling(text: str) -> None:
    erased = erase(text)
    assert "<removed>" in erased
    assert "y-" not in erased
    assert ".*" not in erased


def test_longer_secret_is_removed_as_a_whole() -> None:
    assert erase("secret_1 sec SEC") == "<removed> <removed> SEC"


def test_text_without_secrets_is_unchanged() -> None:
    text = '{"ch":"balances","data":[{"asset":"ETH","total":"1.50"}],"nonce":"sig key"}'
    assert erase(text) == text
    assert without_signatures(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"op":"auth","key":"alice","sig" : "ab\\"cd"}',
            '{"op":"auth","key":"<removed>","sig" : "<removed>"}',
        ),
        (
            '{"KEY":"a","apiKey":"b","api_key":"c","secretKey":"d"}',
            '{"KEY":"<removed>","apiKey":"<removed>","api_key":"<removed>","secretKey":"<removed>"}',
        ),
        ('{"sig":"never ends', '{"sig":"<removed>"'),
        ('{"key":12345,"sig":null}', '{"key":"<removed>","sig":"<removed>"}'),
        (r'{"text":"{\"sig\":\"abcd\",\"op\":1}"}', r'{"text":"{\"sig\":\"<removed>\",\"op\":1}"}'),
        ('{"key":{"sig":"abcd"}}', '{"key":{"sig":"<removed>"}}'),
    ],
    ids=["documented", "other names", "cut off", "no texts", "text in a text", "nested"],
)
def test_values_of_keys_and_signatures_are_removed(text: str, expected: str) -> None:
    assert without_signatures(text) == expected


def test_signatures_are_removed_if_requested() -> None:
    signature, transaction = "5e" * 32, f"0x{'ab' * 32}"
    text = f"bad sig {signature} for {transaction}"
    assert redactor(["secret"])(text) == text
    assert redactor(["secret"], signatures=True)(text) == f"bad sig <removed> for {transaction}"
