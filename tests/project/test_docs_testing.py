"""docs/testing.md: every block of code is a file that runs, and what it lists is what there is."""

from __future__ import annotations

import re

import pytest

from tests.cli.harness import ROOT
from trio_broker.sandbox.testing import LASTING_FAULTS

PAGE = (ROOT / "docs" / "testing.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {
    name: body
    for language, body in BLOCKS
    if language == "python"
    for name in re.findall(r"\A# (\w+\.py)$", body, re.MULTILINE)
}
# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 60.0

TRIO, ANYIO, PLAIN = "With pytest-trio", "With anyio's plugin", "Plain tests, and pytest-asyncio"


def test_every_block_is_a_file() -> None:
    assert sorted(language for language, _ in BLOCKS) == ["python"] * len(FILES) + ["toml"]
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_every_test_is_in_a_section_that_is_run() -> None:
    told = "".join(SECTIONS[name] for name in (TRIO, ANYIO, PLAIN))
    assert [name for name in FILES if f"# {name}\n" not in told] == ["desk.py"]


@pytest.mark.parametrize(
    ("section", "plugin"), [(TRIO, "trio"), (ANYIO, "anyio"), (PLAIN, "asyncio")]
)
def test_a_section_runs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, section: str, plugin: str
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)  # it may have options of other plugins
    pytester.makepyprojecttoml("".join(body for kind, body in BLOCKS if kind == "toml"))
    if section != TRIO:
        pytester.makepyprojecttoml("[tool.pytest.ini_options]\n")
    for name, body in FILES.items():
        if f"# {name}\n" in SECTIONS[section] or not name.startswith("test_"):
            (pytester.path / name).write_text(body)
    asked = ["-p", "trio_broker", "-p", plugin]
    if section == PLAIN:
        asked += ["-o", "asyncio_default_fixture_loop_scope=function"]
    ended = pytester.runpytest_subprocess("-Werror", "--strict-markers", *asked, timeout=PATIENCE)
    tests = re.findall(r"^(?:async )?def test_", SECTIONS[section], re.MULTILINE)
    twice = SECTIONS[section].count("mark.parametrize")
    ended.assert_outcomes(passed=len(tests) + twice)


def test_all_faults_to_begin_with_are_listed() -> None:
    listed = PAGE.partition("later connections:")[2].partition(". Some of them")[0]
    assert tuple(re.findall(r"`(\w+)`", listed)) == LASTING_FAULTS
