"""The page on the command line: what it says of the JSON forms is what commands print."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest

from tests.broker_thread import Broker, when_taken
from tests.cli.harness import status
from trio_broker import ConnectionEvent, SwapCorrected, SwapResolved, SwapUnresolved
from trio_broker.cli.app import COMMANDS
from trio_broker.cli.doctor.steps import Outcome
from trio_broker.cli.errors import Status
from trio_broker.cli.watch.views import event_members

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "terminal.md").read_text(encoding="utf-8")
Forms = dict[str, set[str]]


def forms(command: str) -> Forms:
    """The rows of a command's table: which members a line has."""
    (section,) = re.findall(rf"^### {command}$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`?\w.*?) \| (`.+|none) \|$", section, re.MULTILINE)
    assert rows
    return {
        name.strip("`"): set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", members)))
        for name, members in rows
    }


def forms_of(printed: str) -> Forms:
    """The same of what was printed; lines without an event are all of one form."""
    found: Forms = {}
    for line in printed.splitlines():
        facts: dict[str, Any] = json.loads(line)
        members = set(facts) - {"event"}
        assert found.setdefault(facts.get("event", ""), members) == members, line
    return found


@pytest.fixture
def run(broker: Broker, capsys: pytest.CaptureFixture[str]) -> Any:
    assert broker.url

    def run(*args: str, ends: int = 0) -> Forms:
        assert status(*args, "--json") == ends
        return forms_of(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    "args", [["balances"], ["estimate", "1", "ETH", "USDT"], ["doctor"]], ids=lambda args: args[0]
)
def test_what_prints_one_form(args: Sequence[str], run: Any) -> None:
    (printed,) = run(*args).values()
    assert [printed] == list(forms(args[0]).values())


@pytest.mark.usefixtures("no_patience")
def test_a_swap_and_its_order_and_the_journal(broker: Broker, run: Any, tmp_path: Path) -> None:
    swap = ["swap", "1", "ETH", "USDT", "--yes", "--journal", str(tmp_path / "journal")]
    printed = run(*swap, "--client-order-id", "mine")
    assert forms("swap") == {**printed, "unresolved": {"client_order_ids"}}
    assert list(forms("order").values()) == [*run("order", "mine").values()]

    def lose() -> None:
        broker.sandbox.faults.kill()

    with when_taken(lose):
        assert run(*swap, "--client-order-id", "lost", ends=6)["end"] == forms("swap")["end"]
    broker.revive()
    journal = str(tmp_path / "journal")
    listed, reconciled, settled = forms("swaps").values()
    assert [listed] == [*run("swaps", journal).values()]
    assert [reconciled] == [*run("swaps", journal, "--reconcile").values()]
    assert settled == {"client_order_id", "outcome", "note"}


def test_the_demo(run: Any) -> None:
    assert run("demo") == forms("demo")


def test_each_event_of_the_watch() -> None:
    # Those that swaps bring have no place there. The rest includes the watch's own.
    kinds: set[Any] = {*ConnectionEvent.__subclasses__()} - {
        SwapCorrected,
        SwapResolved,
        SwapUnresolved,
    }
    told = [
        event_members(kind(**{field.name: None for field in attrs.fields(kind)})) for kind in kinds
    ]
    printed = {str(facts.pop("event")): set(facts) for facts in told}
    documented = forms("watch")
    assert documented.pop("message") == {"at", "channel", "origin", "gap", "data"}
    assert printed == documented


def test_statuses_results_and_commands() -> None:
    table = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert [int(number) for number in table] == [*Status]
    assert all(f"`{result}`" in PAGE for result in get_args(Outcome))
    documented = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert {*documented, "completion"} == {*COMMANDS}


def test_each_picture_is_there() -> None:
    shown = set(re.findall(r"\(pictures/(\w+)\.svg\)", PAGE))
    assert shown == {path.stem for path in (ROOT / "docs" / "pictures").glob("*.svg")}
