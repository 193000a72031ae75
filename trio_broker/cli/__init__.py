"""The command ``trio-broker``: one module a command, and a few that they share.

`account` says whose account it is, `options` has their common flags, `output` prints, and `ending`
ends.

It needs the extra ``cli``; without it, it says so and nothing more.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; it always ends in `SystemExit`.

    Args:
        args: The arguments, ``sys.argv``'s if None.

    Raises:
        SystemExit: With one of `Status`.
    """
    needed = ("click", "dotenv", "platformdirs", "rich")
    if any(importlib.util.find_spec(name) is None for name in needed):
        sys.exit("trio-broker: the command needs its extra: pip install 'trio-broker[cli]'")
    # Not at the top, since it needs the extra.
    from trio_broker.cli.app import app  # noqa: PLC0415

    app.main(args, prog_name="trio-broker")
