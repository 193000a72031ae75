"""The follow-up commands that are shown to the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_broker.cli.trading.next_commands import NextCommands


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        (Path("/my swaps"), "trio-broker swaps '/my swaps' --reconcile --url wss://broker.example"),
        (None, "trio-broker order mine --url wss://broker.example"),
    ],
)
def test_command_can_be_pasted_into_a_shell(
    place: Path, journal: Path | None, expected: str
) -> None:
    assert NextCommands(journal, ["--url", "wss://broker.example"]).resolve("mine") == expected
