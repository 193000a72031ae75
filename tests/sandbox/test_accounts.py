from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox_client import auth, signature, signed
from trio_broker.exceptions import ConfigurationError
from trio_broker.sandbox import is_play_money
from trio_broker.sandbox.accounts import (
    DEFAULT_BALANCES,
    DOCUMENTED_ACCOUNTS,
    Account,
    SignatureChecker,
)
from trio_broker.sandbox.market import ASSETS
from trio_broker.sandbox.messages import parse
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.refusals import Refusal

NOW = 1_732_526_400.0
VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "signing.json").read_text()
)["vectors"]


def moment(wall: float = NOW) -> Moment:
    return Moment(at=0.0, wall=wall)


def check(
    keeper: SignatureChecker, text: str, *, key: str = "test_key_1", wall: float = NOW
) -> None:
    keeper.check(key, parse(text), moment(wall))


@pytest.fixture
def keeper() -> SignatureChecker:
    return SignatureChecker(DOCUMENTED_ACCOUNTS, "derived")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
@pytest.mark.parametrize("raw", [False, True])
def test_the_documented_signatures_pass(vector: dict[str, Any], raw: bool) -> None:
    op, body = vector["operation"] or "auth", vector["body"]
    sig = vector["signature_with_raw_secret" if raw else "signature"]
    ts, nonce = vector["timestamp_ms"], vector["nonce"]
    # The tests' own client signs as the documentation has it as well.
    assert signature(vector["secret"], op, ts, nonce, body, raw=raw) == sig
    message = {"op": op, "ts": ts, "nonce": nonce, "sig": sig}
    text = json.dumps(message)[:-1] + (f',"data":{body}}}' if body else "}")
    keeper = SignatureChecker([Account("k", vector["secret"])], "raw" if raw else "derived")
    check(keeper, text, key="k")
    other = SignatureChecker([Account("k", vector["secret"])], "derived" if raw else "raw")
    with pytest.raises(Refusal, match=r"^Invalid signature$"):
        check(other, text, key="k")


def test_the_signature_is_over_the_body_as_it_was_sent(keeper: SignatureChecker) -> None:
    check(keeper, signed("swap", '{ "b" : 1.50 , "a":\t"\\u00e9é" }', at=NOW))
    text = signed("swap", '{"b":1,"a":2}', at=NOW)
    with pytest.raises(Refusal, match=r"^Invalid signature$"):
        check(keeper, text.replace('{"b":1,"a":2}', '{"b":1, "a":2}'))


def test_a_body_that_is_null_counts_as_none(keeper: SignatureChecker) -> None:
    text = signed("balances", at=NOW)
    check(keeper, text[:-1] + ',"data": null }')


@pytest.mark.parametrize(
    "changes",
    [
        {"sig": None},
        {"sig": ""},
        {"sig": "0" * 64},
        {"sig": "é" * 64},
        {"ts": None},
        {"ts": int(NOW * 1000) + 1},
        {"ts": 10**400},
        {"nonce": None},
        {"nonce": ""},
        {"nonce": "another"},
        {"op": "auth"},
        {"op": None},
        {"data": {}},
    ],
)
def test_a_message_that_was_changed_is_refused(
    keeper: SignatureChecker, changes: dict[str, Any]
) -> None:
    message = json.loads(signed("balances", at=NOW)) | changes
    with pytest.raises(Refusal, match=r"^Invalid signature$"):
        check(keeper, json.dumps(message))


def test_an_upper_case_signature_is_refused(keeper: SignatureChecker) -> None:
    message = json.loads(signed("balances", at=NOW))
    message["sig"] = message["sig"].upper()
    with pytest.raises(Refusal, match="Invalid signature"):
        check(keeper, json.dumps(message))


def test_a_key_that_nobody_has_is_refused(keeper: SignatureChecker) -> None:
    with pytest.raises(Refusal, match=r"^Invalid API key$"):
        check(keeper, auth(NOW), key="nobody")


def test_another_accounts_signature_is_refused(keeper: SignatureChecker) -> None:
    with pytest.raises(Refusal, match="Invalid signature"):
        check(keeper, signed("balances", at=NOW, secret="test_secret_2"))


@pytest.mark.parametrize("off", [-30.0, 0.0, 30.0])
def test_a_clock_that_is_half_a_minute_off_is_good_enough(
    keeper: SignatureChecker, off: float
) -> None:
    check(keeper, signed("balances", at=NOW + off))


@pytest.mark.parametrize("off", [-30.001, 30.001, -3600.0])
def test_a_clock_that_is_further_off_is_not(keeper: SignatureChecker, off: float) -> None:
    with pytest.raises(Refusal, match=r"^Request timestamp outside allowed window$"):
        check(keeper, signed("balances", at=NOW + off))


@pytest.mark.parametrize("ahead", [-30.0, 0.0, 30.0])
def test_a_message_is_never_good_twice_at_any_time(keeper: SignatureChecker, ahead: float) -> None:
    text = signed("balances", at=NOW + ahead, nonce="n")
    check(keeper, text)
    for tenths in range(700):
        with pytest.raises(Refusal, match=r"^Nonce has already|^Request timestamp outside"):
            check(keeper, text, wall=NOW + tenths / 10)


def test_a_nonce_is_good_once_whatever_it_comes_with(keeper: SignatureChecker) -> None:
    check(keeper, auth(NOW, nonce="n"))
    with pytest.raises(Refusal, match=r"^Nonce has already been used or is expired$"):
        check(keeper, signed("balances", at=NOW + 5, nonce="n"), wall=NOW + 5)


def test_accounts_may_use_the_same_nonce(keeper: SignatureChecker) -> None:
    check(keeper, auth(NOW, nonce="n"))
    check(keeper, auth(NOW, 2, nonce="n"), key="test_key_2")


@pytest.mark.parametrize("refused", [{"at": NOW + 60}, {"at": NOW, "secret": "wrong"}])
def test_a_refused_message_uses_up_no_nonce(
    keeper: SignatureChecker, refused: dict[str, Any]
) -> None:
    with pytest.raises(Refusal):
        check(keeper, signed("balances", nonce="n", **refused))
    check(keeper, signed("balances", at=NOW, nonce="n"))


def test_nonces_are_forgotten_once_they_can_t_be_used_again(keeper: SignatureChecker) -> None:
    for second in range(600):
        check(keeper, signed("balances", at=NOW + second), wall=NOW + second)
    assert len(keeper._nonces["test_key_1"]) <= 61


def test_no_key_shows_in_an_account() -> None:
    shown = repr(Account("test_key_1", "test_secret_1"))
    assert "test_key_1" not in shown
    assert "test_secret_1" not in shown


def test_an_account_begins_with_some_of_everything_unless_told() -> None:
    assert set(DEFAULT_BALANCES) == set(ASSETS)
    assert Account("k", "s").balances == DEFAULT_BALANCES
    account = Account("k", "s", {"USDT": "0.1", "ETH": 2})
    assert account.balances == {"USDT": Decimal("0.1"), "ETH": Decimal(2)}


@pytest.mark.parametrize("balances", [{"XYZ": 1}, {"USDT": "-1"}, {"USDT": "NaN"}])
def test_an_account_that_can_t_be_is_refused(balances: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"XYZ|USDT"):
        Account("k", "s", balances)


@pytest.mark.parametrize(
    ("api_key", "url", "expected"),
    [
        ("test_key_1", "ws://127.0.0.1:1/ws", True),
        ("test_key_2", "http://localhost:1", True),
        ("test_key_1", " ws://[::1]:1/ws", True),
        ("test_key_1", "wss://broker.example/ws", False),
        ("test_key_1", "ws://192.0.2.1/ws", False),
        ("mine", "ws://127.0.0.1:1/ws", False),
        ("test_key_1", "http://[::1", False),
        ("test_key_1", "", False),
    ],
)
def test_what_is_not_certainly_play_money_is_real(api_key: str, url: str, expected: bool) -> None:
    assert is_play_money(api_key, url) is expected
