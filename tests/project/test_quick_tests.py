"""The tests that CI runs on other Pythons exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def test_every_quick_test_exists() -> None:
    for line in (ROOT / ".ci" / "quick-tests").read_text().split():
        name, _, test = line.partition("::")
        text = (ROOT / name).read_text()
        assert re.search(rf"^(async )?def {test}\b", text, re.MULTILINE) or not test, line
