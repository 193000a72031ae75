"""The checks of this project, each in its own environment: `nox -l` lists them.

`.ci/run` runs them all. The README's second command runs the whole test suite. Here, only the
session `tests` does, for another Python: ``nox -s "tests(3.13)"``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import nox

SUPPORTED: Final = ("3.11", "3.12", "3.13", "3.14")
HERE: Final = "{}.{}".format(*sys.version_info)
SOURCES: Final = (
    "trio_broker",
    "_trio_broker_pytest.py",
    "tests",
    "examples",
    "benchmarks",
    "docs",
    "tools",
)
# nox sets another one, below the project, whose settings pytest would then apply to tests of tests.
TEMPORARY: Final = {"TMPDIR": tempfile.gettempdir()}
STARTS: Final = "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '{}')"

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "plugin"]


def find_python(version: str) -> str | None:
    """Find a working interpreter of a version. pyenv's shims fail for unselected versions."""
    if version == HERE:
        return sys.executable
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (f"python{version}", *root.glob(f"versions/{version}.*/bin/python3")):
        command = [str(candidate), "-c", STARTS.format(version)]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:  # noqa: S603
                return str(candidate)
        except OSError:
            continue
    return None


def python_of(session: nox.Session, version: str) -> str:
    """The interpreter for a session's version; without one, the session is skipped."""
    found = find_python(version)
    if found is None:
        session.skip(f"this machine has no working Python {version}")
    return found


def make_environment(session: nox.Session, version: str) -> str:
    """Make a test environment with another Python, and return its interpreter."""
    place = Path(session.create_tmp()) / f"python{version}"
    session.run(python_of(session, version), "-m", "venv", "--clear", str(place), external=True)
    python = str(place / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", ".[test]", external=True)
    return python


def run_quick_tests(session: nox.Session, python: str) -> None:
    """Run the tests that .ci/quick-tests lists."""
    options = ("-q", "-p", "no:cacheprovider", "@.ci/quick-tests")
    session.run(python, "-m", "pytest", *options, external=True, env=TEMPORARY)


@nox.session(venv_backend="none")
@nox.parametrize("version", [nox.param(one, id=one) for one in SUPPORTED])
def tests(session: nox.Session, version: str) -> None:
    """The whole suite on one Python."""
    python = make_environment(session, version)
    session.run(python, "-m", "pytest", *session.posargs, external=True, env=TEMPORARY)


@nox.session(venv_backend="none")
@nox.parametrize("version", [nox.param(one, id=one) for one in SUPPORTED if one != HERE])
def quick(session: nox.Session, version: str) -> None:
    """The tests that .ci/quick-tests lists, on another Python."""
    python = make_environment(session, version)
    run_quick_tests(session, python)


@nox.session
def oldest(session: nox.Session) -> None:
    """The same with the oldest dependencies that pyproject.toml allows."""
    session.install("uv")
    place = Path(session.create_tmp()) / "oldest"
    session.run("python", "-m", "venv", "--clear", str(place))
    python = str(place / "bin" / "python")
    install = ("uv", "pip", "install", "--quiet", "--python", python)
    session.run(*install, "--resolution", "lowest-direct", ".[test]")
    run_quick_tests(session, python)


@nox.session
def lint(session: nox.Session) -> None:
    """The linters: ruff, its format, and flake8-async."""
    session.install("ruff >= 0.11", "flake8-async >= 25.5")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("flake8-async", *python_files())


def python_files() -> list[str]:
    """The project's own files: `flake8-async` takes no folders."""
    return [
        str(path)
        for place in map(Path, SOURCES)
        for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))
    ]


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy, and the completeness of the public types."""
    session.install(".[test,lint]")
    session.run("mypy")
    # In another directory, so that it checks the installed package and not the sources. It finds
    # the package through the first interpreter on the PATH. It fails below 100 %.
    session.chdir(session.create_tmp())
    session.run("basedpyright", "--verifytypes", "trio_broker", "--ignoreexternal")


@nox.session
def plugin(session: nox.Session) -> None:
    """Check that installing the package also installs the pytest plugin."""
    session.install(".", "pytest >= 8.4")
    # Outside the project, because pytest reads settings from the parent folders.
    with tempfile.TemporaryDirectory() as outside, session.chdir(outside):
        printed = session.run("pytest", "--markers", silent=True)
    if "@pytest.mark.broker(" not in str(printed):
        session.error("pytest doesn't know the plugin's marker")
