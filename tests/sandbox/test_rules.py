from __future__ import annotations

from typing import Any, get_type_hints

import attrs
import pytest

from trio_broker.exceptions import ConfigurationError
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.orders import Outcome
from trio_broker.sandbox.rules import Rules, Settings


def test_every_rule_can_be_set_and_nothing_else() -> None:
    rules = {
        attribute.name: attribute.type for attribute in attrs.fields(attrs.resolve_types(Rules))
    }
    assert get_type_hints(Settings) == rules


def test_the_defaults_are_the_documented_limits() -> None:
    rules = Rules()
    assert (rules.dialect, rules.signing_keys) == ("both", ("derived", "raw"))
    assert rules.error_form == "documented"
    assert rules.max_subscriptions == 100
    assert rules.max_message_size == 65536
    assert rules.messages_per_second == 100
    assert rules.max_connections == 100
    assert rules.auth_timeout == 10
    assert rules.idle_timeout == 300


@pytest.mark.parametrize(
    "setting",
    [
        {"max_subscriptions": 0},
        {"messages_per_second": -1},
        {"auth_timeout": -0.5},
        {"idle_timeout": float("nan")},
        {"pending_delay": (2, 1)},
        {"pending_delay": (-1, 1)},
        {"processing_delay": (0, float("inf"))},
        {"processing_delay": 1.0},
        {"dialect": "english"},
        {"error_form": "html"},
        {"order_id_prefix": ""},
        {"order_id_prefix": "a b"},
        {"order_id_prefix": "x" * 65},
        {"order_id_prefix": 5},
        {"outcomes": {}},
        {"outcomes": {"filled": 0}},
        {"outcomes": {"filled": 2, "failed": -1}},
        {"outcomes": {"filled": float("inf")}},
    ],
)
def test_a_setting_that_can_t_be_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        Rules(**setting)


def test_an_unknown_signing_key_or_outcome_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="signing_key must be one of None, 'derived'"):
        Rules(signing_key="hashed")  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="exploded"):
        Rules(outcomes={"exploded": 1})  # type: ignore[dict-item]  # the point of the test


def test_outcomes_may_be_named_by_their_texts() -> None:
    outcomes: Any = {"failed": 1, "filled": 3}
    assert Rules(outcomes=outcomes).outcomes == {Outcome.FAILED: 1, Outcome.FILLED: 3}


def test_a_moment_tells_milliseconds_by_the_wall_clock() -> None:
    assert Moment(at=5.0, wall=1732526400.1239).ms == 1732526400123
