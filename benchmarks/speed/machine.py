"""On what is measured, and with what."""

from __future__ import annotations

import os
import platform
import ssl
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.speed.processes import Bench, cores

_PACKAGES: Final = ("trio", "trio-websocket", "websockets", "aiohttp", "msgspec")


def described(bench: Bench) -> list[str]:
    """Lines that tell of the machine, the versions and the run.

    Args:
        bench: The run.

    Raises:
        PackageNotFoundError: Something that is compared isn't installed.
    """
    server, client = cores()
    places = (
        f"the server on core {server}, the clients on core {client}"
        if server is not None
        else "the server and the clients on the same core, which falsifies what is flat out"
    )
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return [
        f"CPU: {_cpu()}, {len(os.sched_getaffinity(0))} cores; {places}",
        f"system: {platform.system()} {platform.release()}; {python}",
        ", ".join([*(f"{name} {version(name)}" for name in _PACKAGES), ssl.OPENSSL_VERSION]),
        f"rounds: {bench.rounds}" + (", with small counts, for a try" if bench.quick else ""),
    ]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
