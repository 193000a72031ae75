"""A process in which one client is measured.

    python -m benchmarks.speed.child MODULE:FUNCTION JSON [--core N] [--watch-sends]

It calls the function with the arguments in a JSON object, and prints what it returns as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os

from benchmarks.speed import sends


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A process in which one client is measured.")
    parser.add_argument("function", help="a module of this package, a colon, its function")
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("--core", type=int, help="the only core to run on")
    parser.add_argument("--watch-sends", action="store_true")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    if arguments.watch_sends:
        sends.watch()
    module, _, name = arguments.function.partition(":")
    function = getattr(importlib.import_module(f"benchmarks.speed.{module}"), name)
    print(json.dumps(function(**arguments.arguments)))


if __name__ == "__main__":
    main()
