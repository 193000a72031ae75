"""The public types: usable as the programs `typing_use` and `typing_aio` write them.

mypy checks them too, with all the rest. `nox -s types` checks that the public types are complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trio_broker
import trio_broker.aio
import trio_broker.sandbox
from trio_broker import BoundedReceiveChannel, BrokerWSClient, Subscription
from trio_broker.aio import AioBrokerClient, AioChannel, AioSubscription
from trio_broker.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
USES = (ROOT / "tests" / "project" / "typing_use.py", ROOT / "tests" / "project" / "typing_aio.py")
USED = "".join(path.read_text(encoding="utf-8") for path in USES)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package as its users have it: where pyright looks at its types, and not at its code."""
    place = tmp_path / "installed"
    shutil.copytree(ROOT / "trio_broker", place / "trio_broker")
    return place


def basedpyright(installed: Path, *arguments: str) -> dict[str, Any]:
    # Away from the repository, whose own package would be found first.
    ended = subprocess.run(  # noqa: S603 - arguments of ours
        [sys.executable, "-m", "basedpyright", "--outputjson", *arguments],
        cwd=installed.parent,
        env={
            **os.environ,
            "PYTHONPATH": str(installed),
            # It asks the first `python` there for its paths.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def test_public_types_are_used_as_users_write_them(installed: Path) -> None:
    place = installed.parent
    for path in USES:
        shutil.copy(path, place)
    settings = {
        "include": [path.name for path in USES],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        # An error that an ignore stands for must be there.
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (place / "pyrightconfig.json").write_text(json.dumps(settings))
    told = basedpyright(installed, "--project", str(place))
    assert told["generalDiagnostics"] == []
    assert told["summary"]["filesAnalyzed"] == len(USES)


@pytest.mark.parametrize("module", [trio_broker, trio_broker.aio, trio_broker.sandbox])
def test_every_public_name_is_used(module: ModuleType) -> None:
    names = set(module.__all__) - {"__version__"}
    assert sorted(names - set(re.findall(r"\w+", USED))) == []


@pytest.mark.parametrize(
    "kind",
    [
        AioBrokerClient,
        AioChannel,
        AioSubscription,
        BoundedReceiveChannel,
        BrokerWSClient,
        Sandbox,
        Subscription,
    ],
)
def test_every_public_method_is_used(kind: type) -> None:
    names = {name for name in dir(kind) if not name.startswith("_")}
    assert sorted(names - set(re.findall(r"\.(\w+)", USED))) == []
