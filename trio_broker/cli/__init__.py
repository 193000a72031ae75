"""The ``trio-broker`` command line.

- `commands/`: one module for each command.
- `doctor/`, `watch/`, `demo/`, `sandbox/`: the implementation of these commands.
- `trading/`: code that the commands for swaps and orders share.
- `terminal/`: output, prompts, progress and signals.
- `account`, `options`: the settings and flags that commands share.
- `runner`, `errors`: how a command runs, and its exit status.

The command line needs the extra ``cli``. Without it, `main` prints how to install it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; it always ends with `SystemExit`.

    Args:
        args: The arguments; None means ``sys.argv[1:]``.

    Raises:
        SystemExit: With an exit status of `Status`.
    """
    needed = ("click", "dotenv", "platformdirs", "rich")
    if any(importlib.util.find_spec(name) is None for name in needed):
        sys.exit("trio-broker: the command needs its extra: pip install 'trio-broker[cli]'")
    # Imported here because it needs the extra.
    from trio_broker.cli.app import app  # noqa: PLC0415

    app.main(args, prog_name="trio-broker")
